"""DDIM [Song, Meng & Ermon 2021, eq. 12 and 16], for any schedule and any grid.

  1. noise_hat = (x_t - alpha_t x0_hat) / sigma_t
  2. C = eta sigma_s sqrt(1 - exp(lambda_t - lambda_s)): eta times the ancestral standard deviation
  3. x_s = alpha_s x0_hat + sqrt(sigma_s^2 - C^2) noise_hat + C z

eta = 0 is deterministic: the exponential integrator of the probability-flow ODE with x0_hat frozen, order 1.
eta = 1 is ancestral sampling. In the last interval alpha_s = 1 and sigma_s = 0, hence x = x0_hat. One network call a
step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, require_kernel
from diffusion.random import image_noise
from samplers.base import Samples, run_scan, scan_tables
from samplers.time_grids import check_grid, make_grid


def ddim_tables(process: Process, t: np.ndarray, eta: float) -> dict[str, np.ndarray]:
    """One step from each t to the next, x_s = a x_t + b x0_hat + c z: equation 3 with equation 1 inserted.

    Args:
      process: with a kernel.
      t: [N] decreasing times.
      eta: amount of noise in [0, 1].

    Returns:
      a, b and c, [N] each; the last row is x0_hat itself.
    """
    a, b, c = process.posterior(t[1:], t[:-1], eta=eta)
    return {"a": np.append(a, 0.0), "b": np.append(b, 1.0), "c": np.append(c, 0.0)}


@dataclass(frozen=True, kw_only=True)
class DDIM:
    """`steps` network calls on the grid `grid` (a name of TIME_GRIDS), with noise `eta` in [0, 1]."""

    steps: int = 50
    grid: str = "uniform"
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta = {self.eta} must lie in [0, 1]")

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
        require_kernel(process, "DDIM")
        t = make_grid(process, self.grid, self.steps).t
        rows = scan_tables(t=t, **ddim_tables(process, t, self.eta))

        def update(x: Float[Array, "batch *shape"], extra: None, x0_hat: Array, row: dict[str, Array]) -> Any:
            x = row["a"] * x + row["b"] * x0_hat
            if self.eta > 0:
                x = x + row["c"] * image_noise(keys, row["index"] + 1, shape)
            return x, extra

        return run_scan(update, denoise, process.prior(keys, shape), None, rows, label, keep_steps=keep_steps)
