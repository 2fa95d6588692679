"""The VE and sub-VP SDEs of [Song et al. 2021, app. C], as schedules (`diffusion/schedules.py` has the VP SDE).

  1. VE: alpha = 1, sigma = s0 (s1 / s0)^t; lambda is linear in t, g = sigma sqrt(2 log(s1 / s0)).
  2. Sub-VP: alpha^2 = exp(-B) and sigma = 1 - exp(-B), with the B(t) of the VP SDE and so at most its noise:
       lambda = -B - 2 log(1 - exp(-B)) = -2 log(2 sinh(B / 2)),  g^2 = beta (1 - exp(-2 B)),
       B = 2 asinh(exp(-lambda / 2) / 2).
"""

from dataclasses import dataclass
from math import log

from diffusion.base import Scalar, array_namespace
from diffusion.schedules import VPLinear, check_times, require


@dataclass(frozen=True, kw_only=True)
class VE:
    """Equation 1: variance exploding, sigma geometric from sigma_min to sigma_max."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    time_min: float = 0.0
    time_max: float = 1.0

    def __post_init__(self) -> None:
        check_times(self.time_min, self.time_max)
        require(0 < self.sigma_min < self.sigma_max, f"need 0 < sigma_min < sigma_max, not {self.sigma_min}, "
                f"{self.sigma_max}")

    @property
    def _log_ratio(self) -> float:
        return log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Scalar) -> Scalar:
        return array_namespace(t).ones_like(t)

    def sigma(self, t: Scalar) -> Scalar:
        return self.sigma_min * array_namespace(t).exp(self._log_ratio * t)

    def logsnr(self, t: Scalar) -> Scalar:
        return -2 * (log(self.sigma_min) + self._log_ratio * t)

    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        return 2 * self._log_ratio * gap

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        return (-0.5 * logsnr - log(self.sigma_min)) / self._log_ratio

    def log_alpha_slope(self, t: Scalar) -> Scalar:
        return array_namespace(t).zeros_like(t)

    def logsnr_slope(self, t: Scalar) -> Scalar:
        return -2 * self._log_ratio * array_namespace(t).ones_like(t)


@dataclass(frozen=True, kw_only=True)
class SubVP(VPLinear):
    """Equation 2: alpha and its slope are those of the VP SDE, sigma is the square of its sigma."""

    def sigma(self, t: Scalar) -> Scalar:
        return -array_namespace(t).expm1(-self._integral(t))

    def logsnr(self, t: Scalar) -> Scalar:
        integral = self._integral(t)
        return -integral - 2 * array_namespace(t).log(-array_namespace(t).expm1(-integral))

    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        xp = array_namespace(s)
        difference = self._integral_gap(s, gap)
        # (1 - exp(-B - D)) / (1 - exp(-B)) = 1 + (1 - exp(-D)) / (exp(B) - 1)
        return difference + 2 * xp.log1p(-xp.expm1(-difference) / xp.expm1(self._integral(s)))

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        xp = array_namespace(logsnr)
        return self._time_of_integral(2 * xp.arcsinh(0.5 * xp.exp(-0.5 * logsnr)))

    def logsnr_slope(self, t: Scalar) -> Scalar:
        return -self._rate(t) / array_namespace(t).tanh(0.5 * self._integral(t))
