"""How much each time counts: weights w of the squared error of x0_hat, with lambda the log-SNR and snr = exp(lambda).

  1. edm          snr + 1 / d^2, which makes the loss of EDM's F uniform   [Karras et al. 2022, table 1; d = sigma_data]
  2. sigmoid      snr * sigmoid(bias - lambda)                             [Kingma & Gao 2023; Hoogeboom et al. 2024]
  3. uniform      snr: the plain squared error of the noise                [Ho et al. 2020, eq. 14]
  4. snr_clipped  min(snr, gamma)                                          [Hang et al. 2023, Min-SNR]
  5. likelihood   snr g^2 / sigma^2, a bound of the log-likelihood         [Song, Durkan et al. 2021, theorem 1]
  6. score        snr / sigma^2: the plain squared error of the score      [Hyvarinen 2005; Vincent 2011]

A squared error of the noise is snr times that of x0, |noise_hat - noise|^2 = snr |x0_hat - x0|^2, and a squared error
of the score is 1 / sigma^2 times that of the noise. In a paper's score-matching loss 1/2 E[c(t) |s - s*|^2] the
weights 3, 5 and 6 are c = sigma^2, g^2 and 1, up to one constant factor.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffusion.base import Process


@runtime_checkable
class Weighting(Protocol):
    def __call__(self, process: Process, t: Float[Array, " batch"]) -> Float[Array, " batch"]: ...


@dataclass(frozen=True, kw_only=True)
class EDMWeighting:
    """Equation 1."""

    sigma_data: float = 0.5

    def __call__(self, process: Process, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.exp(process.logsnr(t)) + 1 / self.sigma_data**2


@dataclass(frozen=True, kw_only=True)
class SigmoidWeighting:
    """Equation 2. A larger bias gives more weight to low noise."""

    bias: float = 2.0

    def __call__(self, process: Process, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        logsnr = process.logsnr(t)
        return jnp.exp(logsnr) * jax.nn.sigmoid(self.bias - logsnr)


@dataclass(frozen=True, kw_only=True)
class UniformWeighting:
    """Equation 3."""

    def __call__(self, process: Process, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.exp(process.logsnr(t))


@dataclass(frozen=True, kw_only=True)
class ClippedSNRWeighting:
    """Equation 4."""

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma = {self.gamma} must be positive")

    def __call__(self, process: Process, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.minimum(jnp.exp(process.logsnr(t)), self.gamma)


@dataclass(frozen=True, kw_only=True)
class LikelihoodWeighting:
    """Equation 5. Zero, hence useless, where a process stands still."""

    def __call__(self, process: Process, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.exp(process.logsnr(t)) * jnp.square(process.diffusion(t) / process.sigma(t))


@dataclass(frozen=True, kw_only=True)
class ScoreWeighting:
    """Equation 6."""

    def __call__(self, process: Process, t: Float[Array, " batch"]) -> Float[Array, " batch"]:
        return jnp.exp(process.logsnr(t)) / jnp.square(process.sigma(t))


WEIGHTINGS = {
    "edm": EDMWeighting,
    "sigmoid": SigmoidWeighting,
    "uniform": UniformWeighting,
    "snr_clipped": ClippedSNRWeighting,
    "likelihood": LikelihoodWeighting,
    "score": ScoreWeighting,
}
