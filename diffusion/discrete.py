"""The schedule of a network that was trained at N discrete noise levels, as DDPM and latent diffusion are, as one in t.

  1. abar_k = prod_{i <= k} (1 - beta_i), k = 1 ... N, at t = k / N  [Ho et al. 2020, eq. 4]; alpha^2 = abar,
     sigma^2 = 1 - abar.
  2. beta_i linear in i from beta_min to beta_max [Ho et al. 2020], or sqrt(beta_i) linear [Rombach et al. 2022].
  3. Between the levels lambda = log(abar / (1 - abar)) is linear in t. A uniform grid of N times meets every level.
"""

from dataclasses import dataclass
from functools import lru_cache

import jax
import numpy as np

from diffusion.base import Scalar, array_namespace
from diffusion.schedules import require

SPACINGS = ("linear", "sqrt_linear")


@lru_cache(maxsize=8)
def _logsnrs(steps: int, beta_min: float, beta_max: float, spacing: str) -> np.ndarray:
    """[steps] lambda at t = 1 / steps ... 1, by equations 1 and 2."""
    power = 1 if spacing == "linear" else 2
    beta = np.linspace(beta_min ** (1 / power), beta_max ** (1 / power), steps) ** power
    log_abar = np.cumsum(np.log1p(-beta))
    return log_abar - np.log(-np.expm1(log_abar))


@dataclass(frozen=True, kw_only=True)
class Discrete:
    """Equations 1 to 3 on [1 / steps, 1]; `beta_min` and `beta_max` are those of the first and of the last level."""

    steps: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02
    spacing: str = "linear"

    def __post_init__(self) -> None:
        require(self.steps >= 2, f"steps = {self.steps} must be at least 2")
        require(0 < self.beta_min <= self.beta_max < 1, f"need 0 < beta_min <= beta_max < 1, not {self.beta_min}, "
                f"{self.beta_max}")
        require(self.spacing in SPACINGS, f"spacing = '{self.spacing}' is not known; choose from {', '.join(SPACINGS)}")

    @property
    def time_min(self) -> float:
        return 1 / self.steps

    @property
    def time_max(self) -> float:
        return 1.0

    def _table(self, like: Scalar, *, slopes: bool = False) -> Scalar:
        table = _logsnrs(self.steps, self.beta_min, self.beta_max, self.spacing)
        # Differences before rounding: neighbouring levels are close.
        table = np.diff(table) * self.steps if slopes else table
        return array_namespace(like).asarray(table, like.dtype) if isinstance(like, jax.Array) else table

    def alpha(self, t: Scalar) -> Scalar:
        xp = array_namespace(t)
        return xp.exp(-0.5 * xp.logaddexp(-self.logsnr(t), 0.0))

    def sigma(self, t: Scalar) -> Scalar:
        xp = array_namespace(t)
        return xp.exp(-0.5 * xp.logaddexp(self.logsnr(t), 0.0))

    def logsnr(self, t: Scalar) -> Scalar:
        table = self._table(t)
        return array_namespace(t).interp(t * self.steps, array_namespace(t).arange(1, self.steps + 1), table)

    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        """A difference of two log-SNRs: the levels are no closer than their table is exact."""
        return self.logsnr(s) - self.logsnr(s + gap)

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        xp = array_namespace(logsnr)
        # `interp` wants its nodes to increase.
        return xp.interp(-logsnr, -self._table(logsnr), xp.arange(1, self.steps + 1)) / self.steps

    def log_alpha_slope(self, t: Scalar) -> Scalar:
        return 0.5 * self.sigma(t) ** 2 * self.logsnr_slope(t)

    def logsnr_slope(self, t: Scalar) -> Scalar:
        """Constant between two levels; at a level that of the interval above it, at t = 1 of the one below."""
        xp = array_namespace(t)
        index = xp.clip(xp.floor(t * self.steps + 1e-4).astype(int), 1, self.steps - 1)
        return self._table(t, slopes=True)[index - 1]
