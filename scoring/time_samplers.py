"""Which times a batch is noised to.

  1. uniform          t ~ U[time_min, time_max]
  2. log_normal       log(sigma / alpha) ~ N(mean, std^2), clipped to the range of the process
                      [Karras et al. 2022, table 1]
  3. low_discrepancy  t_i = frac(u + i / B), one uniform u for the batch: each t_i is uniform and together they cover
                      the interval evenly, for a smaller variance of the loss [Kingma et al. 2021, app. I.1]
  4. karras           (sigma / alpha)^(1 / 7) uniform between the smallest noise level of the process and `upper` of the
                      way to the largest [Karras et al. 2022, eq. 5; the law of Zhou et al. 2024, upper = 0.8]
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion.base import Process

RHO = 7.0


@runtime_checkable
class TimeSampler(Protocol):
    def __call__(self, process: Process, key: Key[Array, ""], count: int) -> Float[Array, " count"]: ...


def _to_range(process: Process, u: Float[Array, " count"]) -> Float[Array, " count"]:
    return process.time_min + (process.time_max - process.time_min) * u


@dataclass(frozen=True, kw_only=True)
class UniformTimes:
    """Equation 1."""

    def __call__(self, process: Process, key: Key[Array, ""], count: int) -> Float[Array, " count"]:
        return _to_range(process, jax.random.uniform(key, (count,)))


@dataclass(frozen=True, kw_only=True)
class LogNormalTimes:
    """Equation 2; `mean` and `std` are of the natural logarithm of the noise level sigma / alpha."""

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std = {self.std} must be positive")

    def __call__(self, process: Process, key: Key[Array, ""], count: int) -> Float[Array, " count"]:
        log_level = self.mean + self.std * jax.random.normal(key, (count,))
        return jnp.clip(process.time_of_logsnr(-2 * log_level), process.time_min, process.time_max)


@dataclass(frozen=True, kw_only=True)
class LowDiscrepancyTimes:
    """Equation 3."""

    def __call__(self, process: Process, key: Key[Array, ""], count: int) -> Float[Array, " count"]:
        return _to_range(process, jnp.mod(jax.random.uniform(key) + jnp.arange(count) / count, 1.0))


@dataclass(frozen=True, kw_only=True)
class KarrasTimes:
    """Equation 4. On EDM's schedule, whose time is this scale, t ~ U[time_min, upper]."""

    upper: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.upper <= 1:
            raise ValueError(f"upper = {self.upper} must lie in (0, 1]")

    def __call__(self, process: Process, key: Key[Array, ""], count: int) -> Float[Array, " count"]:
        ends = process.logsnr(np.array([process.time_min, process.time_max], np.float64))
        low, high = np.exp(-0.5 * ends / RHO)
        root = low + self.upper * (high - low) * jax.random.uniform(key, (count,))
        return jnp.clip(process.time_of_logsnr(-2 * RHO * jnp.log(root)), process.time_min, process.time_max)


TIME_SAMPLERS = {
    "uniform": UniformTimes,
    "log_normal": LogNormalTimes,
    "low_discrepancy": LowDiscrepancyTimes,
    "karras": KarrasTimes,
}
