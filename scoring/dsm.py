"""Denoising score matching [Vincent 2011; Song & Ermon 2019; Ho et al. 2020].

  1. t by the time sampler, x_t = alpha x0 + sigma noise
  2. L = mean over the batch of w(t) |x0_hat(x_t, t) - x0|^2 / d,   d the number of coordinates; for the reduction "sum"
     times d / 2, the loss 1/2 |s_hat - s|^2 as score-matching papers write it

Its minimiser is x0_hat = E[x0 | x_t], equivalently the score of p_t, for every positive weighting. As
|s_hat - s|^2 = (alpha / sigma^2)^2 |x0_hat - x0|^2, the score-matching form of Vincent is w = snr / sigma^2 ("score").
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, require_kernel
from scoring.base import Metrics
from scoring.terms import check_reduction
from scoring.time_samplers import TimeSampler
from scoring.weightings import Weighting


@dataclass(frozen=True, kw_only=True)
class DSM:
    """Equations 1 and 2."""

    weighting: Weighting
    time_sampler: TimeSampler
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_reduction(self.reduction)

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        x0: Float[Array, "batch *shape"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        require_kernel(process, "objective dsm")
        key_time, key_noise = jax.random.split(key)
        t = self.time_sampler(process, key_time, len(x0))
        x_t = process.corrupt(x0, jax.random.normal(key_noise, x0.shape), t)  # (1)
        square_error = jnp.mean(jnp.square(denoise(x_t, t, label) - x0).reshape(len(x0), -1), axis=-1)
        factor = 1.0 if self.reduction == "mean" else x0[0].size / 2
        loss = factor * jnp.mean(self.weighting(process, t) * square_error)  # (2)
        return loss, {"loss": loss, "x0_mse": jnp.mean(square_error)}
