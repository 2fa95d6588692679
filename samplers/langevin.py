"""Langevin Monte Carlo at one noise level, for densities that do not move (processes `constant` and `static`).

  1. x_0 uniform on [-start, start]
  2. x_{k+1} = x_k + h / 2 score(x_k) + sqrt(h) z_k,   h = step_size

the Euler-Maruyama discretisation of dx = score / 2 dt + dw, whose stationary density is p [Roberts & Tweedie 1996]; its
own is p up to order h: for N(0, v) the variance comes out as v / (1 - h / (4 v)). One network call a step.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process
from diffusion.random import image_noise
from samplers.base import Samples, run_scan, scan_tables


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """Equations 1 and 2, `steps` times; `step_size` and `start` are on the scale of the data."""

    steps: int = 1000
    step_size: float = 0.005
    start: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "step_size", "start"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")

    def sample(
        self,
        denoise: Denoiser,
        process: Process,
        keys: Key[Array, " batch"],
        label: Int[Array, " batch"] | None,
        *,
        shape: tuple[int, ...],
        keep_steps: bool = False,
    ) -> Samples:
        t = np.float64(process.time_max)
        if process.diffusion(t) != 0:
            raise ValueError(f"name = 'langevin' samples a density that stands still, and {type(process).__name__} "
                             "moves; choose config.process.name = constant or static, or another sampler")
        # h / 2 score, with score = (alpha x0_hat - x) / sigma^2.
        pull = 0.5 * self.step_size / process.sigma(t) ** 2
        rows = scan_tables(t=np.full(self.steps, t))
        x = jax.vmap(
            lambda key: jax.random.uniform(jax.random.fold_in(key, 0), shape, minval=-self.start, maxval=self.start)
        )(keys)  # (1)

        def update(x: Float[Array, "batch *shape"], extra: None, x0_hat: Array, row: dict[str, Array]) -> Any:
            noise = image_noise(keys, row["index"] + 1, shape)
            return x + pull * (process.alpha(t) * x0_hat - x) + self.step_size**0.5 * noise, extra  # (2)

        return run_scan(update, denoise, x, None, rows, label, keep_steps=keep_steps)
