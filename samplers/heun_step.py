"""A whole step of Heun's method as one denoiser, so that a step can be skipped as a whole.

From t with (alpha, sigma) to the next time of the grid with (alpha', sigma'), D being the denoiser:

  1. e_1 = (x - alpha D(x, t)) / sigma,   y = alpha' D(x, t) + sigma' e_1
  2. e_2 = (y - alpha' D(y, t')) / sigma',  e = (e_1 + e_2) / 2
  3. x0_hat = (x - sigma e) / alpha, with which DDIM's step goes where Heun's goes; in the last step D(x, t)
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion.base import Denoiser, Process, expand, network_calls


@dataclass(frozen=True, eq=False)
class HeunStep:
    """Equations 1 to 3, two calls but for the last step's one.

    Attributes:
      denoise: D.
      process: with a kernel.
      t: [N] times of the steps, decreasing.
    """

    denoise: Denoiser
    process: Process
    t: Float[np.ndarray, " n"]

    @property
    def one_time(self) -> bool:
        return getattr(self.denoise, "one_time", False)

    def __call__(self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Any) -> Array:
        after, last = self._after(t)
        alpha, sigma, alpha_after, sigma_after = (
            expand(values, x) for time in (t, after) for values in (self.process.alpha(time), self.process.sigma(time)))
        first = self.denoise(x, t, label)

        def whole() -> Array:
            noise = (x - alpha * first) / sigma  # (1)
            y = alpha_after * first + sigma_after * noise
            second = (y - alpha_after * self.denoise(y, after, label)) / sigma_after  # (2)
            return jnp.where(expand(last, x), first, (x - sigma * (noise + second) / 2) / alpha)  # (3)

        return jax.lax.cond(last.all(), lambda: first, whole)

    def network_calls(self, t: Float[Array, " batch"], label: Any) -> Int[Array, " batch"]:
        after, last = self._after(t)
        return network_calls(self.denoise, t, label) + jnp.where(last, 0, network_calls(self.denoise, after, label))

    def _after(self, t: Float[Array, " batch"]) -> tuple[Array, Array]:
        """The time after each t, of the last one itself, and which are the last."""
        times = jnp.asarray(self.t, t.dtype)
        index = jnp.argmin(jnp.abs(t[:, None] - times), axis=1)
        return times[jnp.minimum(index + 1, len(times) - 1)], index == len(times) - 1
