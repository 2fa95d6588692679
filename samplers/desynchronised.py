"""Adaptive sampling with a decision for each image: slots that are each at a step of their own, refilled from a queue.

Every image skips other steps than its neighbours, so that in lock-step the network would be called at nearly all of
them. Here nobody waits. One turn of the loop:

  1. one dense call of the network on all slots, each at its own time; every slot needs it
  2. one step of all slots (`samplers/skipping.py`)
  3. further steps of the slots that need no call, until all do or are finished
  4. finished images go to their place in the result, and their slots take the next requests

What comes out for a request depends neither on its neighbours nor on its slot: its noise is drawn from its own key and
step. Shapes are static, nothing is sorted, and the host is not asked. Utilisation is the share of the rows of all calls
that belonged to an unfinished image; what is lost is lost at the end, when the queue is empty.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffusion.base import Denoiser, network_calls
from diffusion.random import image_noise
from samplers.skipping import Limits, Skipping, SkipState, row_at, select


class Requests(NamedTuple):
    """Images to be made, [R, ...] each.

    Attributes:
      x: the noise they begin with.
      keys: for further noise.
      label: what the denoiser is given as its label, any tree of [R, ...] arrays.
      schedule: which of the tables.
      limits: of each.
    """

    x: Float[Array, "batch *shape"]
    keys: Key[Array, " batch"]
    label: Any
    schedule: Int[Array, " batch"]
    limits: Limits


class Finished(NamedTuple):
    """Attributes:
      x: [R, ...] the results.
      calls: [R] steps with a call.
      nfe: [R] network evaluations.
      called: [R, N] whether each step called.
      turns: dense calls of the network.
    """

    x: Float[Array, "batch *shape"]
    calls: Int[Array, " batch"]
    nfe: Int[Array, " batch"]
    called: Bool[Array, "batch n"]
    turns: Int[Array, ""]


class _Loop(NamedTuple):
    state: SkipState
    request: Int[Array, " slots"]  # R for an idle slot
    nfe: Int[Array, " slots"]
    next: Int[Array, ""]
    done: Finished


def run_queue(
    skipping: Skipping, denoise: Denoiser, requests: Requests, tables: dict[str, Array], *, slots: int,
    stochastic: bool,
) -> Finished:
    """Makes all requests with `slots` slots (fewer where there are fewer requests).

    Args:
      skipping: over each image.
      denoise: called with a time per slot.
      tables: of `device_tables`.
      stochastic: whether the solver adds noise.
    """
    count, shape = len(requests.x), requests.x.shape[1:]
    slots, longest = min(slots, count), tables["t"].shape[1]

    def of(tree: Any, request: Array) -> Any:
        return jax.tree.map(lambda values: values[jnp.minimum(request, count - 1)], tree)

    def fresh(request: Array) -> SkipState:
        return skipping.start(of(requests.x, request), tables["weights"].shape[-1])

    def advance(loop: _Loop, active: Array, x0_hat: Array, state: SkipState) -> _Loop:
        """One step of the active slots, `state` being what they know by now."""
        limits, schedule = of((requests.limits, requests.schedule), loop.request)
        row, ahead = row_at(tables, schedule, state.k), row_at(tables, schedule, state.k + 1)
        noise = image_noise(of(requests.keys, loop.request), state.k + 1, shape) if stochastic else None
        after = skipping.step(state, x0_hat, row, ahead, limits, noise)
        place = jnp.where(active, loop.request, count)
        called = loop.done.called.at[place, state.k].set(state.need, mode="drop")
        return loop._replace(state=select(active, after, loop.state), done=loop.done._replace(called=called))

    def rows_of(loop: _Loop) -> dict[str, Array]:
        return row_at(tables, of(requests.schedule, loop.request), loop.state.k)

    def working(loop: _Loop) -> Array:
        return (loop.request < count) & (loop.state.k < of(requests.limits, loop.request).steps)

    def turn(loop: _Loop) -> _Loop:
        active, row, label = working(loop), rows_of(loop), of(requests.label, loop.request)
        x0_hat = denoise(loop.state.x, row["t"], label).astype(loop.state.x.dtype)  # (1)
        cost = jnp.where(active, network_calls(denoise, row["t"], label), 0)
        loop = advance(loop, active, x0_hat, skipping.called(loop.state, x0_hat, row))  # (2)
        loop = loop._replace(nfe=loop.nfe + cost)

        def idle(loop: _Loop) -> Array:
            return working(loop) & ~loop.state.need

        def forward(loop: _Loop) -> _Loop:
            return advance(loop, idle(loop), skipping.reused(loop.state, rows_of(loop)), loop.state)

        loop = jax.lax.while_loop(lambda loop: idle(loop).any(), forward, loop)  # (3)
        return refill(loop)

    def refill(loop: _Loop) -> _Loop:
        over = (loop.request < count) & ~working(loop)
        place, done = jnp.where(over, loop.request, count), loop.done
        done = done._replace(
            x=done.x.at[place].set(loop.state.x, mode="drop"), nfe=done.nfe.at[place].set(loop.nfe, mode="drop"),
            calls=done.calls.at[place].set(loop.state.calls, mode="drop"), turns=done.turns + 1,
        )
        request = jnp.where(over, jnp.minimum(loop.next + jnp.cumsum(over) - 1, count), loop.request)
        return _Loop(select(over, fresh(request), loop.state), request, jnp.where(over, 0, loop.nfe),
                     loop.next + jnp.sum(over), done)  # fmt: skip

    request = jnp.arange(slots)
    nothing = jnp.zeros(count, jnp.int32)
    done = Finished(jnp.zeros_like(requests.x), nothing, nothing, jnp.zeros((count, longest), bool), jnp.array(0))
    start = _Loop(fresh(request), request, jnp.zeros(slots, jnp.int32), jnp.array(slots), done)
    return jax.lax.while_loop(lambda loop: (loop.request < count).any(), turn, start).done
