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

from diffusion.base import Process, expand
from diffusion.simulation import draw
from scoring.terms import ScaledScore, Terms, TraceObjective, dot, half_square

_COLUMNS_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class ISM(TraceObjective):
    """Equations 1 and 2."""

    def terms(
        self, r: ScaledScore, process: Process, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"],
        key: Key[Array, ""],
    ) -> Terms:
        x, z = draw(process, x0, t, key, self.simulation_steps)  # (1)
        return Terms(exact_trace(r, x, process.sigma(t)), half_square(r(x)), half_square(z))  # (2)


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
