"""The Gaussian diffusion process over a schedule.

  1. Kernel:     x_t = alpha_t x0 + sigma_t noise.
  2. Posterior:  q(x_s | x_t, x0) = N(A x_t + B x0, C^2) for s < t, with r = exp(lambda_t - lambda_s) in (0, 1):
                 A = r alpha_s / alpha_t,  B = alpha_s (1 - r),  C^2 = sigma_s^2 (1 - r)   [Kingma et al. 2021, app. A].
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

    def posterior(self, s: Scalar, t: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        """The coefficients (A, B, C) of equation 2, for times s <= t of equal shape; C is a standard deviation."""
        xp = array_namespace(t)
        difference = self.logsnr(t) - self.logsnr(s)
        # By expm1, since 1 - exp(...) would lose digits where r is close to 1.
        one_minus_r = -xp.expm1(difference)
        alpha_s = self.alpha(s)
        return (
            xp.exp(difference) * alpha_s / self.alpha(t),
            alpha_s * one_minus_r,
            self.sigma(s) * xp.sqrt(one_minus_r),
        )

    def drift(self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"]) -> Float[Array, "batch *shape"]:
        """f(t) x of equation 3."""
        return expand(self.schedule.log_alpha_slope(t), x) * x

    def diffusion(self, t: Scalar) -> Scalar:
        """g(t) of equation 3, of the shape of t."""
        return self.sigma(t) * array_namespace(t).sqrt(-self.schedule.logsnr_slope(t))

    def prior(self, keys: Key[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
        """Noise at time_max, one draw per image: sigma(time_max) N(0, I), the kernel with alpha x0 neglected."""
        return float(self.sigma(np.float64(self.time_max))) * image_noise(keys, 0, shape)
