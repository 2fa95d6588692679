"""How much each noise level counts: weights w(lambda) of the squared error of x0_hat, with snr = exp(lambda).

  1. edm          snr + 1 / d^2, which makes the loss of EDM's F uniform   [Karras et al. 2022, table 1; d = sigma_data]
  2. sigmoid      snr * sigmoid(bias - lambda)                             [Kingma & Gao 2023; Hoogeboom et al. 2024]
  3. uniform      snr: the plain squared error of the noise                [Ho et al. 2020, eq. 14]
  4. snr_clipped  min(snr, gamma)                                          [Hang et al. 2023, Min-SNR]

A squared error of the noise is snr times that of x0: |noise_hat - noise|^2 = snr |x0_hat - x0|^2.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@runtime_checkable
class Weighting(Protocol):
    def __call__(self, logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]: ...


@dataclass(frozen=True, kw_only=True)
class EDMWeighting:
    """Equation 1."""

    sigma_data: float = 0.5

    def __call__(self, logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.exp(logsnr) + 1 / self.sigma_data**2


@dataclass(frozen=True, kw_only=True)
class SigmoidWeighting:
    """Equation 2. A larger bias gives more weight to low noise."""

    bias: float = 2.0

    def __call__(self, logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.exp(logsnr) * jax.nn.sigmoid(self.bias - logsnr)


@dataclass(frozen=True, kw_only=True)
class UniformWeighting:
    """Equation 3."""

    def __call__(self, logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.exp(logsnr)


@dataclass(frozen=True, kw_only=True)
class ClippedSNRWeighting:
    """Equation 4."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma = {self.gamma} must be positive")

    def __call__(self, logsnr: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.minimum(jnp.exp(logsnr), self.gamma)


WEIGHTINGS = {
    "edm": EDMWeighting,
    "sigmoid": SigmoidWeighting,
    "uniform": UniformWeighting,
    "snr_clipped": ClippedSNRWeighting,
}
