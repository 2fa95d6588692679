"""SA-Solver [Xue et al. 2023, algorithm 1, data prediction]: stochastic Adams methods, for any schedule and any grid.

With l = log(alpha / sigma) (half the log-SNR), h = l_s - l_t the step, tau the amount of noise, constant in a step, and
k = 1 + tau^2, the reverse process of that noise is solved exactly for given x0_hat(l):

  1. x_s = (sigma_s / sigma_t) exp(-tau^2 h) x_t + alpha_s integral k exp(-k (l_s - l)) x0_hat(l) dl
           + sigma_s sqrt(1 - exp(-2 tau^2 h)) z,  the integral from l_t to l_s.
  2. x0_hat(l) is the polynomial through the last p outputs: weights b_j for the predictor (nodes l_t and before), or
     d_j for the corrector (nodes l_s and before) [eq. 15 and 18]. With v = (l_s - l) / h they are the weights that give
     the powers v^0 ... v^(p - 1) their integrals m_n = integral_0^1 k h exp(-k h v) v^n dv
     = n! P(n + 1, k h) / (k h)^n, P the regularised incomplete gamma function.
  3. PEC, with one network call a step: predict x_s, call the network there, correct x_s with the same z by adding
     alpha_s sum_j (d_j - b_j) x0_hat_j, and predict the next from the corrected state.
  4. p grows from the first step on, as outputs become known, and falls to 1 in the last, to the clean end, where l is
     infinite: x = x0_hat. The corrector may always use one output more than the predictor.

diffusers replaces m_1 by m_0 - k h / 2 where p = 2, a change of order h^3; here it is m_1.

Order p in h without noise, p that of the corrector where there is one and the predictor has at least p - 1. With noise,
the error in the variance of Gaussian data is of order 2 from predictor 2 or corrector 2 on. tau = 0 is the
probability-flow ODE: predictor 1 without corrector is then DDIM; with tau = 1 at every level it is ancestral sampling.
Xue et al. count the steps back: their 3-step predictor and 3-step corrector are orders 3 and 4 here.

The default grid is that of `samplers/dpm_solver.py`, for the same reason.
"""

from dataclasses import dataclass
from math import inf

import numpy as np
from scipy.special import gammainc, gammaln

from diffusion.base import Process
from samplers.multistep import Multistep, Tables, half_logsnr_steps
from samplers.time_grids import check_grid, make_grid


def adams_weights(nodes: np.ndarray, rate: float) -> np.ndarray:
    """The weights of equation 2.

    Args:
      nodes: [p] v of the outputs: 0 at l_s, 1 at l_t, more before.
      rate: k h > 0.

    Returns:
      [p] w with sum_j w_j q(v_j) = integral_0^1 rate exp(-rate v) q(v) dv for every polynomial q of degree below p.
    """
    n = np.arange(len(nodes))
    moments = np.exp(gammaln(n + 1) - n * np.log(rate)) * gammainc(n + 1, rate)
    return np.linalg.solve(np.vander(nodes, increasing=True).T, moments)


@dataclass(frozen=True, kw_only=True)
class SASolver(Multistep):
    """`steps` network calls on the grid `grid` (a name of TIME_GRIDS).

    Attributes:
      predictor_order: outputs of which the predictor makes use, 1 to 3.
      corrector_order: those of the corrector, with the one at the predicted state; 0 for none, else 1 to 4.
      tau: amount of noise, 1 that of the reverse SDE, 0 none.
      tau_low, tau_high: noise is added in steps that start at a noise level sigma / alpha (EDM's sigma) from tau_low to
        tau_high. An interval of t is one of levels: 200 to 800 of DDPM's 1000, the default of diffusers, is 0.72 to
        25.7.
    """

    steps: int = 20
    grid: str = "logsnr"
    predictor_order: int = 3
    corrector_order: int = 4
    tau: float = 1.0
    tau_low: float = 0.05
    tau_high: float = 1.0

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)
        if self.predictor_order not in (1, 2, 3):
            raise ValueError(f"predictor_order = {self.predictor_order} must be 1, 2 or 3")
        if self.corrector_order not in (0, 1, 2, 3, 4):
            raise ValueError(f"corrector_order = {self.corrector_order} must be 0 (none), 1, 2, 3 or 4")
        if not 0 <= self.tau < inf:
            raise ValueError(f"tau = {self.tau} must be at least 0, and finite")
        if not 0 <= self.tau_low <= self.tau_high:
            raise ValueError(f"tau_low = {self.tau_low}, tau_high = {self.tau_high}: need 0 <= tau_low <= tau_high")

    def tables(self, process: Process) -> Tables:
        """Equations 1 to 4 as tables: a correction and the prediction after it in one row."""
        grid = make_grid(process, self.grid, self.steps)
        h = half_logsnr_steps(process, grid.t)
        noisy = (grid.level[:-2] >= self.tau_low) & (grid.level[:-2] <= self.tau_high)
        tau = np.where(noisy, self.tau, 0.0)
        a = np.append(grid.sigma[1:-1] / grid.sigma[:-2] * np.exp(-(tau**2) * h), 0.0)
        noise = np.append(grid.sigma[1:-1] * np.sqrt(-np.expm1(-2 * tau**2 * h)), 0.0)
        weights = np.zeros((self.steps, max(self.predictor_order + (self.corrector_order > 0), self.corrector_order)))
        weights[-1, 0] = 1.0
        for i in range(self.steps - 1):
            # Nodes in order of age: the end of the step, its start, the times before.
            nodes = np.append(0.0, np.cumsum(h[i::-1]) / h[i])
            rate = (1 + tau[i] ** 2) * h[i]
            left = self.steps - i
            p = min(self.predictor_order, i + 1, left)
            predict = grid.alpha[i + 1] * adams_weights(nodes[1 : p + 1], rate)
            weights[i, :p] += predict
            q = min(self.corrector_order, i + 2, left + 1)
            if q > 0:
                correction = np.zeros(weights.shape[1])
                correction[:q] = grid.alpha[i + 1] * adams_weights(nodes[:q], rate)
                correction[1 : p + 1] -= predict
                # The corrected state goes through the linear part of the next step.
                weights[i + 1] += a[i + 1] * correction
        return Tables(grid.t, a, weights, noise)
