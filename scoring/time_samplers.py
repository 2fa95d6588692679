"""Which times a batch is noised to.

  1. uniform          t ~ U[time_min, time_max]
  2. log_normal       log(sigma / alpha) ~ N(mean, std^2), clipped to the range of the process
                      [Karras et al. 2022, table 1]
  3. low_discrepancy  t_i = frac(u + i / B), one uniform u for the batch: each t_i is uniform and together they cover
                      the interval evenly, for a smaller variance of the loss [Kingma et al. 2021, app. I.1]
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from diffusion.base import Process


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


TIME_SAMPLERS = {
    "uniform": UniformTimes,
    "log_normal": LogNormalTimes,
    "low_discrepancy": LowDiscrepancyTimes,
}
