"""Implicit score matching with the exact trace [Hyvarinen 2005, eq. 4]: the yardstick of the others.

  1. x by the process at time t.
  2. T = tr ds/dx = sum over i of (ds/dx e_i)_i, one forward-mode column per coordinate,   N = |s|^2 / 2.

Its minimiser is grad log p_t. It costs 1 + d times DSM and differentiates the network twice: for small d. Where p_t has
compact support (data without noise) the loss has no minimum, and neither has that of SSM.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, expand
from scoring.base import Metrics
from scoring.terms import (
    ScaledScore,
    Terms,
    check_at_least_one,
    check_reduction,
    dot,
    draw,
    scaled_score,
    weighted_loss,
)
from scoring.time_samplers import TimeSampler
from scoring.weightings import Weighting

_COLUMNS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class ISM:
    """Equations 1 and 2; `simulation_steps` are of a process without a kernel."""

    weighting: Weighting
    time_sampler: TimeSampler
    reduction: str = "mean"
    simulation_steps: int = 256

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        check_at_least_one(simulation_steps=self.simulation_steps)

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        x0: Float[Array, "batch *shape"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        key_time, key_noise = jax.random.split(key)
        t = self.time_sampler(process, key_time, len(x0))
        x, noise = draw(process, x0, t, key_noise, self.simulation_steps)  # (1)
        r = scaled_score(denoise, process, t, label)
        output = r(x)
        terms = Terms(exact_trace(r, x, process.sigma(t)), 0.5 * dot(output, output), noise)  # (2)
        return weighted_loss(terms, self.weighting, process, t, dimension=x0[0].size, reduction=self.reduction)


def exact_trace(
    r: ScaledScore, x: Float[Array, "batch *shape"], sigma: Float[Array, " batch"]
) -> Float[Array, " batch"]:
    """sigma tr dr/dx = sigma^2 tr ds/dx of each example, in d forward-mode products."""
    size = x[0].size

    def diagonal_entry(i: Int[Array, ""]) -> Float[Array, " batch"]:
        direction = jax.nn.one_hot(i, size, dtype=x.dtype).reshape(x.shape[1:])
        column = jax.jvp(r, (x,), (expand(sigma, x) * direction,))[1]
        return dot(column, jnp.broadcast_to(direction, x.shape))

    if size <= _COLUMNS_AT_ONCE:
        return jnp.sum(jax.vmap(diagonal_entry)(jnp.arange(size)), axis=0)
    return jnp.sum(jax.lax.map(diagonal_entry, jnp.arange(size), batch_size=_COLUMNS_AT_ONCE), axis=0)
