"""Noise schedules: alpha(t), sigma(t) and log-SNR of x_t = alpha(t) x0 + sigma(t) noise.

With lambda(t) = log(alpha^2 / sigma^2) (`logsnr`), strictly decreasing in t:

  1. VP linear [Song et al. 2021, eq. 33; Ho et al. 2020]: B(t) = b0 t + (b1 - b0) t^2 / 2,
       alpha^2 = exp(-B), sigma^2 = 1 - exp(-B), lambda = -log(exp(B) - 1).
  2. Cosine [Nichol & Dhariwal 2021] in the truncated form of [Salimans & Ho 2022, app. E], moved for the resolution
     [Hoogeboom et al. 2023, eq. 4]: lambda = -2 log tan(u) + 2 log(shift), u linear in t, alpha^2 = sigmoid(lambda).
  3. EDM [Karras et al. 2022, eq. 5]: alpha = 1, sigma = (a + t (b - a))^rho with a = sigma_min^(1/rho),
     b = sigma_max^(1/rho), so that uniform times are Karras' noise levels.
  4. Rectified flow [Liu et al. 2023]: alpha = 1 - t, sigma = t.
  5. Constant: alpha = 1 and one sigma at every t, to learn the score of data with one amount of noise. It is no way
     from data to noise, and its log-SNR is the exception that does not decrease.

The VE and sub-VP SDEs are in `diffusion/sde_schedules.py`.

Every method takes host values (float64 tables) or traced arrays. The two slopes give the drift and the diffusion of
the SDE with these marginals: f(t) = d log alpha / dt and g(t)^2 = -sigma^2 d lambda / dt [Kingma et al. 2021].

`logsnr_gap(s, gap)` is lambda(s) - lambda(s + gap) >= 0 from the gap itself, by log1p: in float32 the difference of two
log-SNRs that are close has no correct digits left.
"""

from dataclasses import dataclass
from math import atan, exp, log
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from diffusion.base import Scalar, array_namespace


def _softplus(x: Scalar) -> Scalar:
    return array_namespace(x).logaddexp(x, 0.0)


def _sigmoid(x: Scalar) -> Scalar:
    # exp(-softplus(-x)) keeps relative precision in the lower tail; the naive form on the host would overflow.
    return jax.nn.sigmoid(x) if isinstance(x, jax.Array) else np.exp(-np.logaddexp(-np.asarray(x, np.float64), 0.0))


def require(condition: bool, message: str) -> None:
    """Raises ValueError with `message` unless `condition`."""
    if not condition:
        raise ValueError(message)


@runtime_checkable
class Schedule(Protocol):
    """Scalar functions of t in [time_min, time_max]; each takes and returns arrays of any one shape."""

    time_min: float
    time_max: float

    def alpha(self, t: Scalar) -> Scalar: ...
    def sigma(self, t: Scalar) -> Scalar: ...
    def logsnr(self, t: Scalar) -> Scalar: ...
    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar: ...
    def time_of_logsnr(self, logsnr: Scalar) -> Scalar: ...
    def log_alpha_slope(self, t: Scalar) -> Scalar: ...
    def logsnr_slope(self, t: Scalar) -> Scalar: ...


def check_times(time_min: float, time_max: float) -> None:
    """Raises ValueError unless 0 <= time_min < time_max <= 1."""
    require(0 <= time_min < time_max <= 1, f"time_min={time_min}, time_max={time_max}: need 0 <= min < max <= 1")


@dataclass(frozen=True, kw_only=True)
class VPLinear:
    """Equation 1: variance preserving, noise rate linear in t from beta_min to beta_max."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    time_min: float = 1e-3
    time_max: float = 1.0

    def __post_init__(self) -> None:
        check_times(self.time_min, self.time_max)
        require(self.time_min > 0, "time_min must be positive: the log-SNR is infinite at t = 0")
        require(0 < self.beta_min < self.beta_max, f"need 0 < beta_min < beta_max, not {self.beta_min}, "
                f"{self.beta_max}")

    def _integral(self, t: Scalar) -> Scalar:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def _rate(self, t: Scalar) -> Scalar:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _time_of_integral(self, integral: Scalar) -> Scalar:
        # The root of the quadratic in the form without cancellation near t = 0.
        root = array_namespace(integral).sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root)

    def alpha(self, t: Scalar) -> Scalar:
        return array_namespace(t).exp(-0.5 * self._integral(t))

    def sigma(self, t: Scalar) -> Scalar:
        xp = array_namespace(t)
        return xp.sqrt(-xp.expm1(-self._integral(t)))

    def logsnr(self, t: Scalar) -> Scalar:
        xp = array_namespace(t)
        # log(e^B - 1) written as B + log(1 - e^-B), which cannot overflow.
        integral = self._integral(t)
        return -integral - xp.log(-xp.expm1(-integral))

    def _integral_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        """B(s + gap) - B(s)."""
        return gap * self._rate(s + 0.5 * gap)

    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        xp = array_namespace(s)
        return xp.log1p(xp.expm1(self._integral_gap(s, gap)) / -xp.expm1(-self._integral(s)))

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        return self._time_of_integral(_softplus(-logsnr))

    def log_alpha_slope(self, t: Scalar) -> Scalar:
        return -0.5 * self._rate(t)

    def logsnr_slope(self, t: Scalar) -> Scalar:
        return self._rate(t) / array_namespace(t).expm1(-self._integral(t))


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Equation 2: variance preserving, truncated to |lambda| <= logsnr_limit before the shift.

    `shift` is reference side / image side (64 / d in the source): below 1 it adds noise for larger images.
    """

    shift: float = 1.0
    logsnr_limit: float = 15.0
    time_min: float = 0.0
    time_max: float = 1.0

    def __post_init__(self) -> None:
        check_times(self.time_min, self.time_max)
        require(self.shift > 0, f"shift={self.shift} must be positive")
        require(self.logsnr_limit > 0, f"logsnr_limit={self.logsnr_limit} must be positive")

    @property
    def _angles(self) -> tuple[float, float]:
        return atan(exp(-0.5 * self.logsnr_limit)), atan(exp(0.5 * self.logsnr_limit))

    def _angle(self, t: Scalar) -> Scalar:
        low, high = self._angles
        return low + (high - low) * t

    def alpha(self, t: Scalar) -> Scalar:
        return array_namespace(t).sqrt(_sigmoid(self.logsnr(t)))

    def sigma(self, t: Scalar) -> Scalar:
        return array_namespace(t).sqrt(_sigmoid(-self.logsnr(t)))

    def logsnr(self, t: Scalar) -> Scalar:
        xp = array_namespace(t)
        return -2 * xp.log(xp.tan(self._angle(t))) + 2 * log(self.shift)

    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        xp = array_namespace(s)
        low, high = self._angles
        # tan(a + d) / tan(a) = 1 + sin d / (cos(a + d) sin a)
        return 2 * xp.log1p(xp.sin((high - low) * gap) / (xp.cos(self._angle(s + gap)) * xp.sin(self._angle(s))))

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        xp = array_namespace(logsnr)
        low, high = self._angles
        return (xp.arctan(xp.exp(0.5 * (2 * log(self.shift) - logsnr))) - low) / (high - low)

    def log_alpha_slope(self, t: Scalar) -> Scalar:
        return 0.5 * _sigmoid(-self.logsnr(t)) * self.logsnr_slope(t)

    def logsnr_slope(self, t: Scalar) -> Scalar:
        low, high = self._angles
        return -4 * (high - low) / array_namespace(t).sin(2 * self._angle(t))


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Equation 3: variance exploding, alpha = 1, sigma from sigma_min to sigma_max."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    time_min: float = 0.0
    time_max: float = 1.0

    def __post_init__(self) -> None:
        check_times(self.time_min, self.time_max)
        require(0 < self.sigma_min < self.sigma_max, f"need 0 < sigma_min < sigma_max, not {self.sigma_min}, "
                f"{self.sigma_max}")
        require(self.rho >= 1, f"rho={self.rho} must be at least 1")

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def _root(self, t: Scalar) -> Scalar:
        low, high = self._roots
        return low + (high - low) * t

    def alpha(self, t: Scalar) -> Scalar:
        return array_namespace(t).ones_like(t)

    def sigma(self, t: Scalar) -> Scalar:
        return self._root(t) ** self.rho

    def logsnr(self, t: Scalar) -> Scalar:
        return -2 * self.rho * array_namespace(t).log(self._root(t))

    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        low, high = self._roots
        return 2 * self.rho * array_namespace(s).log1p((high - low) * gap / self._root(s))

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        low, high = self._roots
        return (array_namespace(logsnr).exp(-logsnr / (2 * self.rho)) - low) / (high - low)

    def log_alpha_slope(self, t: Scalar) -> Scalar:
        return array_namespace(t).zeros_like(t)

    def logsnr_slope(self, t: Scalar) -> Scalar:
        low, high = self._roots
        return -2 * self.rho * (high - low) / self._root(t)


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """Equation 4: straight lines from data to noise. Both ends are left out, where the log-SNR is infinite."""

    time_min: float = 1e-3
    time_max: float = 1 - 1e-3

    def __post_init__(self) -> None:
        check_times(self.time_min, self.time_max)
        require(self.time_min > 0 and self.time_max < 1, "time_min and time_max must lie inside (0, 1): the log-SNR "
                "is infinite at both ends")

    def alpha(self, t: Scalar) -> Scalar:
        return 1.0 - t

    def sigma(self, t: Scalar) -> Scalar:
        return 1.0 * t

    def logsnr(self, t: Scalar) -> Scalar:
        xp = array_namespace(t)
        return 2 * (xp.log1p(-t) - xp.log(t))

    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        xp = array_namespace(s)
        return 2 * (xp.log1p(gap / (1.0 - s - gap)) + xp.log1p(gap / s))

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        return _sigmoid(-0.5 * logsnr)

    def log_alpha_slope(self, t: Scalar) -> Scalar:
        return -1.0 / (1.0 - t)

    def logsnr_slope(self, t: Scalar) -> Scalar:
        return -2.0 / (t * (1.0 - t))


@dataclass(frozen=True, kw_only=True)
class Constant:
    """Equation 5: `level` is sigma. Samplers of the reverse process have nothing to reverse."""

    level: float = 0.1
    time_min: float = 0.0
    time_max: float = 1.0

    def __post_init__(self) -> None:
        check_times(self.time_min, self.time_max)
        require(self.level > 0, f"level={self.level} must be positive")

    def alpha(self, t: Scalar) -> Scalar:
        return array_namespace(t).ones_like(t)

    def sigma(self, t: Scalar) -> Scalar:
        return self.level * array_namespace(t).ones_like(t)

    def logsnr(self, t: Scalar) -> Scalar:
        return -2 * log(self.level) * array_namespace(t).ones_like(t)

    def logsnr_gap(self, s: Scalar, gap: Scalar) -> Scalar:
        return array_namespace(s).zeros_like(s)

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        """Raises ValueError: one level has no time."""
        raise ValueError(
            f"the constant schedule has one noise level, {self.level}, at every time, so a log-SNR has no time. Choose "
            "times that need none: uniform for the sampler's grid (config.sampler.grid) and uniform or low_discrepancy "
            "for training (config.objective.time_sampler.name)"
        )

    def log_alpha_slope(self, t: Scalar) -> Scalar:
        return array_namespace(t).zeros_like(t)

    def logsnr_slope(self, t: Scalar) -> Scalar:
        return array_namespace(t).zeros_like(t)
