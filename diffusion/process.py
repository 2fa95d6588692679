"""The Gaussian diffusion process over a schedule.

  1. Kernel:     x_t = alpha_t x0 + sigma_t noise.
  2. Posterior:  q(x_s | x_t, x0) = N(A x_t + B x0, C^2) for s < t, with r = exp(lambda_t - lambda_s) in (0, 1):
                 A = r alpha_s / alpha_t,  B = alpha_s (1 - r),  C^2 = sigma_s^2 (1 - r)   [Kingma et al. 2021, app. A].
                 With less noise, C -> eta C, A = sqrt(sigma_s^2 - C^2) / sigma_t, B = alpha_s - A alpha_t has the same
                 marginals  [Song, Meng & Ermon 2021, eq. 12 and 16]; eta = 0 is DDIM.
  3. SDE:        dx = f(t) x dt + g(t) dw,  f = d log alpha / dt,  g^2 = -sigma^2 d lambda / dt.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Key

from diffusion.base import Scalar, array_namespace, expand
from diffusion.random import image_noise
from diffusion.schedules import Schedule


@dataclass(frozen=True)
class GaussianProcess:
    """x_t = alpha(t) x0 + sigma(t) noise on t in [time_min, time_max] of its schedule. Times have shape [B]."""

    schedule: Schedule

    @property
    def time_min(self) -> float:
        return self.schedule.time_min

    @property
    def time_max(self) -> float:
        return self.schedule.time_max

    def alpha(self, t: Scalar) -> Scalar:
        return self.schedule.alpha(t)

    def sigma(self, t: Scalar) -> Scalar:
        return self.schedule.sigma(t)

    def logsnr(self, t: Scalar) -> Scalar:
        return self.schedule.logsnr(t)

    def conditioning(self, t: Scalar) -> Scalar:
        """What a network is told of t: EDM's c_noise, log(sigma / alpha) / 4, about in [-3, 3]."""
        return -self.logsnr(t) / 8

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        return self.schedule.time_of_logsnr(logsnr)

    def corrupt(
        self, x0: Float[Array, "batch *shape"], noise: Float[Array, "batch *shape"], t: Float[Array, " batch"]
    ) -> Float[Array, "batch *shape"]:
        """x_t of equation 1."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    def posterior(
        self, s: Scalar, t: Scalar, *, gap: Scalar | None = None, eta: float = 1.0
    ) -> tuple[Scalar, Scalar, Scalar]:
        """The coefficients (A, B, C) of equation 2; C is a standard deviation.

        Args:
          s, t: times, s <= t, of equal shape.
          gap: t - s where it is known better than by subtraction, as it has to be for close times in float32.
          eta: amount of noise in [0, 1].
        """
        xp = array_namespace(t)
        difference = self.logsnr(t) - self.logsnr(s) if gap is None else -self.schedule.logsnr_gap(s, gap)
        # By expm1, since 1 - exp(...) would lose digits where r is close to 1.
        one_minus_r = -xp.expm1(difference)
        alpha_s, alpha_t, sigma_s = self.alpha(s), self.alpha(t), self.sigma(s)
        c = eta * sigma_s * xp.sqrt(one_minus_r)
        if eta == 1:
            return xp.exp(difference) * alpha_s / alpha_t, alpha_s * one_minus_r, c
        a = xp.sqrt(sigma_s**2 - c**2) / self.sigma(t)
        return a, alpha_s - a * alpha_t, c

    def drift(self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"]) -> Float[Array, "batch *shape"]:
        """f(t) x of equation 3."""
        return expand(self.schedule.log_alpha_slope(t), x) * x

    def diffusion(self, t: Scalar) -> Scalar:
        """g(t) of equation 3, of the shape of t."""
        return self.sigma(t) * array_namespace(t).sqrt(-self.schedule.logsnr_slope(t))

    def prior(self, keys: Key[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
        """Noise at time_max, one draw per image: sigma(time_max) N(0, I), the kernel with alpha x0 neglected."""
        return float(self.sigma(np.float64(self.time_max))) * image_noise(keys, 0, shape)
