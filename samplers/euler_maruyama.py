"""Euler-Maruyama on the reverse SDE [Anderson 1982; Song et al. 2021, eq. 6], for any process.

  1. dx = (f(x, t) - g(t)^2 score(x, t)) dt + g(t) dW backwards in time,  score = (alpha x0_hat - x) / sigma^2
  2. x_s = x_t - (t - s) (f - g^2 score) + g sqrt(t - s) z
  3. At the last time, x = x0_hat.

Weak order 1, stochastic; one network call a step. Nothing but the score and the two coefficients of the process is
used, so it reverses processes that can only be simulated. Where the drift is stiff the steps have to be small: the last
ones must not be longer than the square of the smallest detail of the data over g^2.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process
from diffusion.random import image_noise
from samplers.base import Samples, run_scan, scan_tables
from samplers.euler import reverse_step, reverse_tables
from samplers.time_grids import check_grid, make_grid


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama:
    """`steps` network calls on the grid `grid` (a name of TIME_GRIDS)."""

    steps: int = 200
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
        t = make_grid(process, self.grid, self.steps).t
        noise = process.diffusion(t[:-1]) * np.sqrt(-np.diff(t))
        rows = scan_tables(t=t, noise=np.append(noise, 0.0), **reverse_tables(process, t, 1.0))

        def update(x: Float[Array, "batch *shape"], extra: None, x0_hat: Array, row: dict[str, Array]) -> Any:
            draw = image_noise(keys, row["index"] + 1, shape)
            return reverse_step(process, x, x0_hat, row) + row["noise"] * draw, extra

        return run_scan(update, denoise, process.prior(keys, shape), None, rows, label, keep_steps=keep_steps)
