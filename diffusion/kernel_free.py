"""Processes without a closed-form kernel: they can be simulated, and their scores learnt, but not conditioned on x0.

The scales in which a network sees x_t are alpha = 1 and a length sigma(t), about the width over which p_t varies; the
denoiser of such a process is x_t + sigma^2 score by definition.

  1. Static: dx = 0, hence p_t = p_0 at every t. Score matching on a density as it is.
  2. Langevin in its own clock: dx = beta(t) / 2 F(x) dt + sqrt(beta(t)) dW with F = grad log pi, so that p_t tends to
     pi. In tau = int_0^t beta it is the same at all times, dx = F(x) / 2 dtau + dW, with
       beta = b0 + (b1 - b0) t,  tau = b0 t + (b1 - b0) t^2 / 2,  t = 2 tau / (b0 + sqrt(b0^2 + 2 (b1 - b0) tau)).
     sigma(t) = min(sqrt(tau), length of pi): the spread of a short path, then the smallest scale of pi.
  3. Double well: pi = prod_i [N(x_i; m, s^2) + N(x_i; -m, s^2)] / 2 with m^2 = 0.8, s^2 = 0.2, of unit variance, hence
       F(x) = -x / s^2 + m / s^2 tanh(m x / s^2).
     Not affine in x: between the wells the drift pushes apart. Pixels of images end as random black and white.
"""

from dataclasses import dataclass
from math import sqrt

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion.base import Scalar, array_namespace, expand
from diffusion.random import image_noise
from diffusion.schedules import check_times, require
from diffusion.simulation import Path, simulate

WELL_MEAN = sqrt(0.8)  # m
WELL_VARIANCE = 0.2  # s^2


class KernelFree:
    """What all processes of this kind share: alpha, and everything that follows from sigma."""

    def alpha(self, t: Scalar) -> Scalar:
        return array_namespace(t).ones_like(t)

    def logsnr(self, t: Scalar) -> Scalar:
        return -2 * array_namespace(t).log(self.sigma(t))

    def time_of_logsnr(self, logsnr: Scalar) -> Scalar:
        """Raises ValueError: several times share one length."""
        raise ValueError(
            f"{type(self).__name__} has no time for every log-SNR: its sigma is a length, not a noise level. Choose "
            "times that need none: uniform for the sampler's grid (config.sampler.grid) and uniform or low_discrepancy "
            "for training (config.objective.time_sampler.name)"
        )


@dataclass(frozen=True, kw_only=True)
class Static(KernelFree):
    """Equation 1. `scale` is the length over which p_0 varies, and the standard deviation of the prior.

    The prior is where a sampler may start that needs no process, such as Langevin's; there is nothing to reverse.
    """

    scale: float = 0.5
    time_min: float = 0.0
    time_max: float = 1.0

    def __post_init__(self) -> None:
        check_times(self.time_min, self.time_max)
        require(self.scale > 0, f"scale = {self.scale} must be positive")

    def sigma(self, t: Scalar) -> Scalar:
        return self.scale * array_namespace(t).ones_like(t)

    def conditioning(self, t: Scalar) -> Scalar:
        """The same at every t, as the density is."""
        return array_namespace(t).zeros_like(t)

    def drift(self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"]) -> Float[Array, "batch *shape"]:
        return jnp.zeros_like(x)

    def diffusion(self, t: Scalar) -> Scalar:
        return array_namespace(t).zeros_like(t)

    def prior(self, keys: Key[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
        return self.scale * image_noise(keys, 0, shape)

    def simulate(
        self, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"], key: Key[Array, ""], steps: int
    ) -> Path:
        """x0 itself. No noise is added, so there is no last increment either: `noise` and `step` are 0."""
        return jax.lax.stop_gradient(Path(x0, x0, jnp.zeros_like(x0), jnp.zeros_like(t)))


@dataclass(frozen=True, kw_only=True)
class LangevinProcess(KernelFree):
    """Equation 2, without `force` (F), `length` and `prior`, which its kinds add."""

    beta_min: float = 0.1
    beta_max: float = 40.0
    time_min: float = 1e-3
    time_max: float = 1.0

    def __post_init__(self) -> None:
        check_times(self.time_min, self.time_max)
        require(self.time_min > 0, "time_min must be positive: at t = 0 no noise has been added, and sigma is 0")
        require(0 < self.beta_min < self.beta_max, f"need 0 < beta_min < beta_max, not {self.beta_min}, "
                f"{self.beta_max}")

    def rate(self, t: Scalar) -> Scalar:
        """beta(t)."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def clock(self, t: Scalar) -> Scalar:
        """tau(t), the integral of beta from 0."""
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def time_of_clock(self, clock: Scalar) -> Scalar:
        """t(tau); the root of the quadratic in the form without cancellation near 0."""
        slope = self.beta_max - self.beta_min
        return 2 * clock / (self.beta_min + array_namespace(clock).sqrt(self.beta_min**2 + 2 * slope * clock))

    def sigma(self, t: Scalar) -> Scalar:
        xp = array_namespace(t)
        return xp.minimum(xp.sqrt(self.clock(t)), self.length)

    def conditioning(self, t: Scalar) -> Scalar:
        """log(tau) / 8: log(sigma) / 4 on short paths, but it goes on where sigma has reached its end."""
        return array_namespace(t).log(self.clock(t)) / 8

    def drift(self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"]) -> Float[Array, "batch *shape"]:
        return 0.5 * expand(self.rate(t), x) * self.force(x)

    def diffusion(self, t: Scalar) -> Scalar:
        return array_namespace(t).sqrt(self.rate(t))


@dataclass(frozen=True, kw_only=True)
class DoubleWell(LangevinProcess):
    """Equation 3, of any shape of x: the coordinates are independent. Its exact denoiser is in `grid_oracle.py`."""

    @property
    def length(self) -> float:
        return sqrt(WELL_VARIANCE)

    def force(self, x: Float[Array, "batch *shape"]) -> Float[Array, "batch *shape"]:
        return (WELL_MEAN * jnp.tanh(WELL_MEAN * x / WELL_VARIANCE) - x) / WELL_VARIANCE

    def prior(self, keys: Key[Array, " batch"], shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
        """Exact draws of pi, that of image i from keys[i] alone."""

        def draw(key: Key[Array, ""]) -> Float[Array, "*shape"]:
            key_sign, key_noise = jax.random.split(jax.random.fold_in(key, 0))
            well = WELL_MEAN * jax.random.rademacher(key_sign, shape, jnp.float32)
            return well + sqrt(WELL_VARIANCE) * jax.random.normal(key_noise, shape)

        return jax.vmap(draw)(keys)

    def simulate(
        self, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"], key: Key[Array, ""], steps: int
    ) -> Path:
        """x_t by Euler's method: far out the drift is linear."""
        return simulate(self, x0, t, key, steps=steps, start=0.0)
