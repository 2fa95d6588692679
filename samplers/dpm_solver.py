"""DPM-Solver++(2M) and SDE-DPM-Solver++(2M) [Lu et al. 2022b, algorithm 2 and app. A], for any schedule and any grid.

With l = log(alpha / sigma) (half the log-SNR), h = l_s - l_t the step and h' the step before it:

  1. D = (1 + h / (2 h')) x0_hat - h / (2 h') x0_hat_previous: the output extrapolated to the middle of the step.
  2. ODE: x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - exp(-h)) D
  3. SDE: x_s = (sigma_s / sigma_t) exp(-h) x_t + alpha_s (1 - exp(-2 h)) D + sigma_s sqrt(1 - exp(-2 h)) z
  4. In the first step D = x0_hat, and in the last, to the clean end where l is infinite: x = x0_hat.

With D = x0_hat everywhere, 2 is DDIM and 3 is ancestral sampling. Order 2 without noise; with noise, the error in the
variance of Gaussian data is of order 2, against 1 of ancestral sampling. One network call a step.

The default grid is log-SNR, the variable in which the outputs are extrapolated and the authors' choice for pixels at
low resolution (for latents at high resolution they take uniform). On mixtures of Gaussians it needs about two thirds
of the steps of the Karras grid under a VP or EDM process, and a third of those of the uniform grid under a VP process.
"""

from dataclasses import dataclass

import numpy as np

from diffusion.base import Process
from samplers.multistep import Multistep, Tables, half_logsnr_steps
from samplers.time_grids import check_grid, make_grid


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Multistep):
    """`steps` network calls on the grid `grid` (a name of TIME_GRIDS).

    Attributes:
      stochastic: the SDE solver in place of the ODE's.
    """

    steps: int = 20
    grid: str = "logsnr"
    stochastic: bool = False

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)

    def tables(self, process: Process) -> Tables:
        """Equations 1 to 4 as tables."""
        grid = make_grid(process, self.grid, self.steps)
        h = half_logsnr_steps(process, grid.t)
        rate = 2 if self.stochastic else 1
        a = grid.sigma[1:-1] / grid.sigma[:-2] * np.exp(-(rate - 1) * h)
        gain = grid.alpha[1:] * np.append(-np.expm1(-rate * h), 1.0)
        back = np.zeros(self.steps)
        back[1:-1] = 0.5 * h[1:] / h[:-1]
        noise = grid.sigma[1:-1] * np.sqrt(-np.expm1(-2 * h)) if self.stochastic else np.zeros_like(h)
        weights = np.stack([gain * (1 + back), -gain * back], axis=-1)
        return Tables(grid.t, np.append(a, 0.0), weights, np.append(noise, 0.0))
