"""Ancestral sampling of DDPM [Ho et al. 2020, algorithm 2], for any schedule and any grid.

  1. x_s = A x_t + B x0_hat + C z,  with A, B of q(x_s | x_t, x0) (`diffusion/process.py`, equation 2).
  2. C^2 = sigma_s^2 (1 - r), the variance of that posterior ("small"), or sigma_t^2 (1 - r), the variance of the noise
     between s and t ("large"; beta_t in DDPM), with r = exp(lambda_t - lambda_s). They are exact for data that are one
     point and for data that are N(0, I) under a VP process; for real data the truth lies between them, and both tend to
     it as the steps get smaller [Ho et al. 2020, section 3.2].
  3. In the last interval s is the clean end: A = 0, B = 1, C = 0, hence x = x0_hat.
  4. With `zero_terminal_snr` the state at time_max is noise alone, and the first step keeps nothing of it: A = 0,
     B = alpha_s, C = sigma_s. So a few-step student is trained [Salimans et al. 2024; Lin et al. 2024].

Order 1 (weak), stochastic; one network call a step.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, require_kernel
from diffusion.random import image_noise
from samplers.base import Samples, run_scan, scan_tables
from samplers.time_grids import check_grid, make_grid


def check_variance(variance: str) -> None:
    """Raises ValueError unless `variance` is a choice of equation 2."""
    if variance not in ("small", "large"):
        raise ValueError(f"variance = '{variance}' is not known; choose from small, large")


def ancestral_tables(
    process: Process, t: np.ndarray, variance: str, *, zero_terminal_snr: bool = False
) -> dict[str, np.ndarray]:
    """One step of equations 1 to 4 from each t to the next, x_s = a x_t + b x0_hat + c z.

    Args:
      process: with a kernel.
      t: [N] decreasing times.
      variance: "small" or "large".
      zero_terminal_snr: equation 4 for the first step, which begins at time_max.

    Returns:
      a, b and c, [N] each; the last row is x0_hat itself.
    """
    a, b, c = process.posterior(t[1:], t[:-1])
    if variance == "large":
        c = c * process.sigma(t[:-1]) / process.sigma(t[1:])
    if zero_terminal_snr and len(t) > 1:
        a[0], b[0], c[0] = 0.0, process.alpha(t[1]), process.sigma(t[1])
    return {"a": np.append(a, 0.0), "b": np.append(b, 1.0), "c": np.append(c, 0.0)}


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """`steps` network calls on the grid `grid` (a name of TIME_GRIDS), with `variance` "small" or "large".

    Attributes:
      zero_terminal_snr: equation 4.
    """

    steps: int = 100
    grid: str = "uniform"
    variance: str = "small"
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)
        check_variance(self.variance)

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
        require_kernel(process, "the ancestral sampler")
        t = make_grid(process, self.grid, self.steps).t
        tables = ancestral_tables(process, t, self.variance, zero_terminal_snr=self.zero_terminal_snr)
        rows = scan_tables(t=t, **tables)

        def update(x: Float[Array, "batch *shape"], extra: None, x0_hat: Array, row: dict[str, Array]) -> Any:
            noise = image_noise(keys, row["index"] + 1, shape)
            return row["a"] * x + row["b"] * x0_hat + row["c"] * noise, extra

        return run_scan(update, denoise, process.prior(keys, shape), None, rows, label, keep_steps=keep_steps)
