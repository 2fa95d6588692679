"""From a network to a denoiser, and from a denoiser to the score and the noise.

  1. Input scale: x_in = x_t / sqrt(sigma^2 + alpha^2 d^2), of unit variance at every t for data of standard deviation d
     [Karras et al. 2022, eq. 7; the identity for a VP process with d = 1].
  2. Time: c_noise = log(sigma / alpha) / 4 = -lambda / 8 [Karras et al. 2022, table 1]; a process whose sigma does not
     determine the time has its own (`conditioning`).
  3. x0_hat = to_x0(network(x_in, c_noise, label)) by the table of `diffusion/prediction.py`.
  4. Plus sigma^2 steep_score(x_t), where the score grows faster than linearly (`diffusion/phi4.py`): far
     out a network is at most linear, and could not hold what such a drift pushes outwards when time runs backwards.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion.base import Denoiser, Process, expand
from diffusion.prediction import PREDICTIONS

Network = Callable[..., Float[Array, "batch *shape"]]


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """The denoiser of a network; equations 1 to 4.

    Attributes:
      network: (x_in [B, ...], c_noise [B], label [B] or None) -> output [B, ...], with its parameters bound.
      process: gives alpha, sigma and the log-SNR at t.
      prediction: what the output means, a name of PREDICTIONS.
      sigma_data: standard deviation of the data, about 0.5 for images in [-1, 1].
      hidden: like `network`, to features [B, ...]; None where nobody wants them.
    """

    network: Network
    process: Process
    prediction: str
    sigma_data: float
    hidden: Callable[..., Float[Array, "batch *hidden"]] | None = None

    def __call__(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch *shape"]:
        """x0_hat, float32."""
        return self.to_x0(self.output(x_t, t, label), x_t, t)

    def output(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None
    ) -> Float[Array, "batch *shape"]:
        """What the network says, float32: equations 1 and 2."""
        return self.network(*self._input(x_t, t), label).astype(jnp.float32)

    def features(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None
    ) -> Float[Array, "batch *hidden"]:
        """What the network makes of x_t on its way to the output (`diffusion/networks`), float32."""
        return self.hidden(*self._input(x_t, t), label).astype(jnp.float32)

    def _input(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"]
    ) -> tuple[Float[Array, "batch *shape"], Float[Array, " batch"]]:
        alpha, sigma = expand(self.process.alpha(t), x_t), expand(self.process.sigma(t), x_t)
        scale = 1 / jnp.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2)  # (1)
        return scale * x_t, self.process.conditioning(t)  # (2)

    def to_x0(
        self, output: Float[Array, "batch *shape"], x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch *shape"]:
        """Equations 3 and 4. Affine in (output, x_t) but for the steep score."""
        alpha, sigma = expand(self.process.alpha(t), x_t), expand(self.process.sigma(t), x_t)
        x0_hat = PREDICTIONS[self.prediction].to_x0(output, x_t, alpha, sigma, self.sigma_data)  # (3)
        steep = hasattr(self.process, "steep_score")
        return x0_hat + sigma**2 * self.process.steep_score(x_t) if steep else x0_hat  # (4)


def difference(
    one: Denoiser, other: Denoiser, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None,
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
    """Two denoisers at one point, and how far apart they are: (one, other, one - other).

    Of two networks in the same preconditioning the difference is that of their outputs, scaled: what they have in
    common, of which x0_hat is made almost alone where there is little noise, cancels before anything is rounded.
    """
    alike = isinstance(one, NetworkDenoiser) and isinstance(other, NetworkDenoiser) and (
        (one.process, one.prediction, one.sigma_data) == (other.process, other.prediction, other.sigma_data)
    )
    if not alike or hasattr(one.process, "steep_score"):
        x0_one, x0_other = one(x_t, t, label), other(x_t, t, label)
        return x0_one, x0_other, x0_one - x0_other
    first, second = one.output(x_t, t, label), other.output(x_t, t, label)
    # Equation 3 is affine, so that its part in x_t drops out.
    return one.to_x0(first, x_t, t), other.to_x0(second, x_t, t), one.to_x0(first - second, jnp.zeros_like(x_t), t)


def score(
    denoise: Denoiser,
    process: Process,
    x_t: Float[Array, "batch *shape"],
    t: Float[Array, " batch"],
    label: Int[Array, " batch"] | None = None,
) -> Float[Array, "batch *shape"]:
    """grad log p_t(x_t) of a denoiser, by Tweedie's formula."""
    alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
    return PREDICTIONS["score"].from_x0(denoise(x_t, t, label), x_t, alpha, sigma, None)
