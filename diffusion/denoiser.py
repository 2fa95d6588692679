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

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion.base import Denoiser, Process, expand
from diffusion.prediction import PREDICTIONS


def make_denoiser(
    network: Callable[..., Float[Array, "batch *shape"]],
    process: Process,
    *,
    prediction: str,
    sigma_data: float,
) -> Denoiser:
    """The denoiser of a network.

    Args:
      network: (x_in [B, ...], c_noise [B], label [B] or None) -> output [B, ...], with its parameters bound.
      process: gives alpha, sigma and the log-SNR at t.
      prediction: what the output means, a name of PREDICTIONS.
      sigma_data: standard deviation of the data, about 0.5 for images in [-1, 1].

    Returns:
      `denoise(x_t, t, label) -> x0_hat`, float32.
    """
    to_x0 = PREDICTIONS[prediction].to_x0

    def denoise(
        x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch *shape"]:
        alpha, sigma = expand(process.alpha(t), x_t), expand(process.sigma(t), x_t)
        scale = 1 / jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)  # (1)
        output = network(scale * x_t, process.conditioning(t), label)  # (2)
        x0_hat = to_x0(output.astype(jnp.float32), x_t, alpha, sigma, sigma_data)  # (3)
        return x0_hat + sigma**2 * process.steep_score(x_t) if hasattr(process, "steep_score") else x0_hat  # (4)

    return denoise


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
