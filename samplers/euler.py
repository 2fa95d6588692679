"""Euler's method on the probability-flow ODE in its own time [Song et al. 2021, eq. 13], for any process.

  1. dx/dt = f(x, t) - g(t)^2 / 2 * score(x, t),  score = (alpha x0_hat - x) / sigma^2
  2. x_s = x_t + (s - t) dx/dt
  3. At the last time, x = x0_hat.

Order 1, deterministic; one network call a step. The plain baseline: unlike DDIM it does not integrate the linear part
exactly, so it needs more steps.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, has_kernel
from samplers.base import Samples, run_scan, scan_tables
from samplers.time_grids import check_grid, make_grid


def reverse_tables(process: Process, t: np.ndarray, score_weight: float) -> dict[str, np.ndarray]:
    """One Euler step of dx/dt = f - w g^2 score from each t to the next, as x_s = a x_t + b x0_hat + step f(x_t, t).

    Args:
      process: any. Where there is a kernel the drift is linear and part of a, in float64, and `step` is 0.
      t: [N] decreasing times.
      score_weight: w, 1/2 for the probability-flow ODE and 1 for the reverse SDE.

    Returns:
      a, b and step, [N] each; the last row is x0_hat itself.
    """
    step = np.diff(t)
    noise = score_weight * process.diffusion(t) ** 2 / process.sigma(t) ** 2
    slope = process.schedule.log_alpha_slope(t) if has_kernel(process) else np.zeros_like(t)
    a = 1 + step * (slope + noise)[:-1]
    b = -step * (noise * process.alpha(t))[:-1]
    nonlinear = np.zeros_like(step) if has_kernel(process) else step
    return {"a": np.append(a, 0.0), "b": np.append(b, 1.0), "step": np.append(nonlinear, 0.0)}


def reverse_step(
    process: Process, x: Float[Array, "batch *shape"], x0_hat: Float[Array, "batch *shape"], row: dict[str, Array]
) -> Float[Array, "batch *shape"]:
    """x_s of one row of `reverse_tables`."""
    moved = row["a"] * x + row["b"] * x0_hat
    if has_kernel(process):
        return moved
    return moved + row["step"] * process.drift(x, jnp.full(x.shape[:1], row["t"]))


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
        t = make_grid(process, self.grid, self.steps).t
        rows = scan_tables(t=t, **reverse_tables(process, t, 0.5))

        def update(x: Float[Array, "batch *shape"], extra: None, x0_hat: Array, row: dict[str, Array]) -> Any:
            return reverse_step(process, x, x0_hat, row), extra

        return run_scan(update, denoise, process.prior(keys, shape), None, rows, label, keep_steps=keep_steps)
