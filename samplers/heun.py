"""EDM's second-order Heun sampler with churn [Karras et al. 2022, algorithm 2], for any schedule.

It solves the probability-flow ODE in xbar = x / alpha over the noise level u = sigma / alpha,
d xbar / du = (xbar - x0_hat) / u. From level u to the next level w:

  1. Churn:      v = u (1 + gamma), gamma = min(churn / steps, sqrt(2) - 1) if u in [churn_min, churn_max] else 0;
                 xbar += sqrt(v^2 - u^2) churn_noise z.  v stops at the largest level of the process, so the first
                 step adds none.
  2. Predictor:  d = (xbar - x0_hat(xbar, v)) / v,     y = xbar + (w - v) d.
  3. Corrector:  d' = (y - x0_hat(y, w)) / w,          xbar + (w - v) (d + d') / 2   if w > 0, else y.

Order 2, deterministic without churn; 2 steps - 1 network calls. Predictors and correctors are rows of one table, so
that the network is compiled once.
"""

from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, require_kernel
from diffusion.process import GaussianProcess
from diffusion.random import image_noise
from samplers.base import Samples, run_scan, scan_tables
from samplers.time_grids import check_grid, make_grid


@dataclass(frozen=True, kw_only=True)
class Heun:
    """`steps` intervals on the grid `grid` (a name of TIME_GRIDS), 2 steps - 1 network calls.

    Attributes:
      churn: amount of noise added and removed over the whole run (S_churn), 0 for none.
      churn_min, churn_max: noise levels sigma / alpha between which it is (S_min, S_max).
      churn_noise: scale of that noise (S_noise).
    """

    steps: int = 18
    grid: str = "karras"
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = inf
    churn_noise: float = 1.0

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)
        if self.churn < 0:
            raise ValueError(f"churn = {self.churn} must be at least 0")
        if not 0 <= self.churn_min <= self.churn_max:
            raise ValueError(f"churn_min = {self.churn_min}, churn_max = {self.churn_max}: need 0 <= min <= max")
        if self.churn_noise < 0:
            raise ValueError(f"churn_noise = {self.churn_noise} must be at least 0")

    def _rows(self, process: GaussianProcess) -> dict[str, Array]:
        """One row per network call: predictor, corrector, predictor, ..., predictor."""
        grid = make_grid(process, self.grid, self.steps)
        u, w = grid.level[:-1], grid.level[1:]
        churned = (u >= self.churn_min) & (u <= self.churn_max)
        gamma = np.where(churned, min(self.churn / self.steps, sqrt(2) - 1), 0.0)
        v = np.minimum(u * (1 + gamma), u[0])
        t_hat = np.where(v == u, grid.t, process.time_of_logsnr(-2 * np.log(v)))
        predictor = {
            "t": t_hat, "alpha": process.alpha(t_hat), "level": v, "step": w - v,
            "churn": self.churn_noise * np.sqrt(np.maximum(v**2 - u**2, 0)), "corrects": np.zeros(self.steps),
        }
        corrector = {
            "t": grid.t[1:], "alpha": grid.alpha[1:-1], "level": w[:-1], "step": (w - v)[:-1],
            "churn": np.zeros(self.steps - 1), "corrects": np.ones(self.steps - 1),
        }
        rows = {}
        for name in predictor:
            rows[name] = np.empty(2 * self.steps - 1)
            rows[name][0::2], rows[name][1::2] = predictor[name], corrector[name]
        # Noise is added before the call it belongs to, i.e. at the end of the row before.
        rows["churn"] = np.append(rows["churn"][1:], 0.0)
        rows["next_alpha"] = np.append(rows["alpha"][1:], 1.0)
        return scan_tables(**rows)

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
        require_kernel(process, "the Heun sampler")
        x = process.prior(keys, shape)

        def update(x: Float[Array, "batch *shape"], extra: Any, x0_hat: Array, row: dict[str, Array]) -> Any:
            start, first_slope = extra
            xbar = x / row["alpha"]
            slope = (xbar - x0_hat) / row["level"]
            corrects = row["corrects"] > 0
            start = jnp.where(corrects, start, xbar)
            slope = jnp.where(corrects, 0.5 * (first_slope + slope), slope)
            xbar = start + row["step"] * slope
            if self.churn > 0:
                xbar = xbar + row["churn"] * image_noise(keys, row["index"] + 1, shape)
            return xbar * row["next_alpha"], (start, slope)

        extra = (jnp.zeros_like(x), jnp.zeros_like(x))
        return run_scan(update, denoise, x, extra, self._rows(process), label, keep_steps=keep_steps)
