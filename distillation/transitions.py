"""What both variants of moment matching train on: steps of the student's own sampler from noised data.

  1. s ~ U[time_min, time_max],  t = min(s + gap, time_max),  gap ~ U(0, range / k)      ("continuous")
     or t on the grid of the k-step sampler and s in the interval below it               ("grid")
  2. x_t = alpha_t x0 + sigma_t noise, of data x0;   x_gen = g(x_t, t)
  3. x_s = sg(A x_t + B x_gen + C noise'),  with A, B, C of q(x_s | x_t, x0 = x_gen)     (`diffusion/process.py`, 2)
     [Salimans et al. 2024, algorithms 2 and 3]

At t = time_max the process is taken to have forgotten the data (`zero_terminal_snr`, with the ancestral kernel):
x_t = sigma_t noise, A = 0, B = alpha_s, C = sigma_s. The few per cent of signal that are left in truth would pull a
student that cannot see the noise towards the mean of the data. The whole of x_s is a constant for the gradient.

  4. w(s), weights of |x_gen - ...|^2: "edm" snr + 1 / sigma_data^2; "flat" 1; "adaptive" 1 / mean |x_gen - T(x_s)|;
     "auto" is flat for k <= 2, else edm  [section 3.3].
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, expand
from scoring.weightings import EDMWeighting

PAIRS = ("continuous", "grid")
WEIGHTS = ("auto", "edm", "flat", "adaptive")
SMALLEST_ERROR = 1e-5


class Transition(NamedTuple):
    """Equations 1 to 3.

    Attributes:
      s: [B] the earlier times.
      x_gen: [B, ...] what the student says of x_t; the gradient goes through this alone.
      x_s: [B, ...] where its sampler goes, a constant.
    """

    s: Float[Array, " batch"]
    x_gen: Float[Array, "batch *shape"]
    x_s: Float[Array, "batch *shape"]


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """The options that both variants have.

    Attributes:
      num_steps: k, the steps of the student's sampler.
      pairs: a name of PAIRS.
      weight: a name of WEIGHTS.
      sigma_data: of the weight edm.
      kernel_eta: amount of noise of the kernel; 1 is ancestral sampling, 0 is DDIM.
      conditional_kernel: False noises x_gen afresh instead, x_s = alpha_s x_gen + sigma_s noise, to show what is lost.
      zero_terminal_snr: see above.

    Raises:
      ValueError: for an unknown name or a number out of range.
    """

    num_steps: int = 8
    pairs: str = "continuous"
    weight: str = "auto"
    sigma_data: float = 0.5
    kernel_eta: float = 1.0
    conditional_kernel: bool = True
    zero_terminal_snr: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("pairs", PAIRS), ("weight", WEIGHTS)):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} = '{value}' is not known; choose from {', '.join(choices)}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps} must be at least 1")
        if not 0 <= self.kernel_eta <= 1:
            raise ValueError(f"kernel_eta = {self.kernel_eta} must lie in [0, 1]")

    @property
    def sampler(self) -> dict[str, Any]:
        """Algorithm 1: the kernel of equation 3 on k equal intervals."""
        steps = {"steps": self.num_steps, "grid": "trailing"}
        if self.kernel_eta == 1:
            return {"name": "ancestral", **steps, "zero_terminal_snr": self.zero_terminal_snr}
        return {"name": "ddim", **steps, "eta": self.kernel_eta}

    def draw_times(
        self, process: Process, key: Key[Array, ""], count: int
    ) -> tuple[Float[Array, " count"], Float[Array, " count"], Float[Array, " count"]]:
        """(s, t, t - s) of equation 1; the gap is exact where a difference of the two would not be."""
        key_time, key_gap = jax.random.split(key)
        length = process.time_max - process.time_min
        gap = jax.random.uniform(key_gap, (count,), minval=0.0, maxval=length / self.num_steps)
        if self.pairs == "grid":
            index = jax.random.randint(key_time, (count,), 1, self.num_steps + 1)
            t = process.time_min + length * (index / self.num_steps)
            return t - gap, t, gap
        s = process.time_min + length * jax.random.uniform(key_time, (count,))
        gap = jnp.minimum(gap, process.time_max - s)
        return s, jnp.minimum(s + gap, process.time_max), gap

    def kernel(
        self, process: Process, s: Float[Array, " batch"], t: Float[Array, " batch"], gap: Float[Array, " batch"]
    ) -> tuple[Float[Array, " batch"], Float[Array, " batch"], Float[Array, " batch"]]:
        """A, B and C of equation 3."""
        a, b, c = process.posterior(s, t, gap=gap, eta=self.kernel_eta)
        forgotten = self._forgotten(process, t) | (not self.conditional_kernel)
        alpha_s, sigma_s = process.alpha(s), process.sigma(s)
        return (jnp.where(forgotten, 0.0, a), jnp.where(forgotten, alpha_s, b), jnp.where(forgotten, sigma_s, c))

    def _forgotten(self, process: Process, t: Float[Array, " batch"]) -> Array:
        # With less noise than ancestral sampling has, x_s needs that of x_t, and with it the signal.
        return (t >= process.time_max) & (self.zero_terminal_snr and self.kernel_eta == 1)

    def draw(
        self, generator: Denoiser, process: Process, x0: Float[Array, "batch *shape"],
        label: Int[Array, " batch"] | None, key: Key[Array, ""],
    ) -> Transition:
        """Equations 1 to 3 for a batch of data."""
        key_times, key_t, key_s = jax.random.split(key, 3)
        s, t, gap = self.draw_times(process, key_times, len(x0))
        data = jnp.where(expand(self._forgotten(process, t), x0), 0.0, x0)
        x_t = process.corrupt(data, jax.random.normal(key_t, x0.shape), t)  # (2)
        x_gen = generator(x_t, t, label)
        a, b, c = (expand(coefficient, x0) for coefficient in self.kernel(process, s, t, gap))
        x_s = a * x_t + b * x_gen + c * jax.random.normal(key_s, x0.shape)  # (3)
        return Transition(s, x_gen, jax.lax.stop_gradient(x_s))

    def weights(
        self, process: Process, s: Float[Array, " batch"], error: Float[Array, "batch *shape"]
    ) -> Float[Array, " batch"]:
        """w(s) of equation 4, a constant; `error` is x_gen - T(x_s)."""
        weight = self.weight
        if weight == "auto":
            weight = "flat" if self.num_steps <= 2 else "edm"
        if weight == "flat":
            return jnp.ones_like(s)
        if weight == "edm":
            return EDMWeighting(sigma_data=self.sigma_data)(process, s)
        size = jnp.mean(jnp.abs(error).reshape(len(s), -1), axis=-1)
        return jax.lax.stop_gradient(1 / jnp.maximum(size, SMALLEST_ERROR))
