"""Euler's method on the probability-flow ODE in its own time [Song et al. 2021, eq. 13].

  1. dx/dt = f(t) x - g(t)^2 / 2 * score(x, t),  score = (alpha x0_hat - x) / sigma^2
  2. x_s = x_t + (s - t) dx/dt
  3. At the last time, x = x0_hat.

Order 1, deterministic; one network call a step. The plain baseline: unlike DDIM it does not integrate the linear part
exactly, so it needs more steps.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, require_kernel
from samplers.base import Samples, run_scan, scan_tables
from samplers.time_grids import check_grid, make_grid


@dataclass(frozen=True, kw_only=True)
class Euler:
    """`steps` network calls on the grid `grid` (a name of TIME_GRIDS)."""

    steps: int = 100
    grid: str = "uniform"

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)

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
        require_kernel(process, "the Euler sampler")
        t = make_grid(process, self.grid, self.steps).t
        half_g2 = 0.5 * process.diffusion(t) ** 2 / process.sigma(t) ** 2
        # Equations 1 and 2 as x_s = a x + b x0_hat; the last row is equation 3.
        step = np.diff(t)
        a = 1 + step * (process.schedule.log_alpha_slope(t) + half_g2)[:-1]
        b = -step * (half_g2 * process.alpha(t))[:-1]
        rows = scan_tables(t=t, a=np.append(a, 0.0), b=np.append(b, 1.0))

        def update(x: Float[Array, "batch *shape"], extra: None, x0_hat: Array, row: dict[str, Array]) -> Any:
            return row["a"] * x + row["b"] * x0_hat, extra

        return run_scan(update, denoise, process.prior(keys, shape), None, rows, label, keep_steps=keep_steps)
