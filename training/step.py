"""One training step: the updates of a method in order, then the averages; one jit, donated state.

For every update, `repeats` times:
  1. gradient of its loss with respect to its role, averaged over `accumulation` slices of the batch
  2. optimiser
  3. a finite check over loss, gradient norm and changes: if it fails, parameters and optimiser stay as they are
An update with a `start` waits for its step, its optimiser with it; its metrics are 0 until then, and it costs nothing.
Then the EMAs of the roles that moved; a role with a failed update keeps its EMA, too, so that one bad batch cannot
poison an average for ever. The step counts all this and never raises: the loop looks at the counters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key, PyTree

from diffusion.random import stream_key
from scoring.base import Metrics, Update
from training.ema import EMA
from training.state import TrainState

Batch = dict[str, Array]
# Parameters, optimiser state, whether all was finite, metrics.
Moved = tuple[PyTree, PyTree, Bool[Array, ""], Metrics]
Step = Callable[[TrainState, dict[str, PyTree], Batch], tuple[TrainState, Metrics]]


def make_step(
    updates: tuple[Update, ...],
    optimizers: dict[str, optax.GradientTransformation],
    ema: EMA,
    *,
    seed: int,
    batch_size: int,
    accumulation: int = 1,
) -> Step:
    """The pure function (state, frozen, batch) -> (state, metrics); jit it with the state donated.

    Args:
      updates: run in this order.
      optimizers: one per role.
      ema: which averages to keep.
      seed: every random draw is a function of (seed, step, update, repeat, slice).
      batch_size: the global one, for the half-lives of the EMA.
      accumulation: slices of the batch whose gradients are averaged, to save memory.

    Metrics are named "<role>/<metric>"; gradient_norm is before clipping.
    """
    if accumulation < 1 or batch_size % accumulation:
        raise ValueError(f"config.training.accumulation = {accumulation} must divide config.data.batch_size = "
                         f"{batch_size}")

    def step(state: TrainState, frozen: dict[str, PyTree], batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(stream_key(seed, "train"), state.step)
        params, opt_state = dict(state.params), dict(state.opt_state)
        good = {update.role: jnp.array(True) for update in updates}
        metrics: Metrics = {}
        for number, update in enumerate(updates):
            role = update.role
            for repeat in range(update.repeats):
                update_key = jax.random.fold_in(jax.random.fold_in(key, number), repeat)

                def move(params: PyTree, opt_state: PyTree, update: Update = update, key: Key[Array, ""] = update_key,
                         others: dict[str, PyTree] = frozen | params) -> Moved:  # fmt: skip
                    gradient, report = _gradient(update, params, others, batch, key, accumulation)
                    return _apply(gradient, report, optimizers[update.role], params, opt_state)

                if update.start:
                    stay = jax.eval_shape(move, params[role], opt_state[role])[3]
                    moved = jax.lax.cond(state.step >= update.start, move, _stay(stay), params[role], opt_state[role])
                else:
                    moved = move(params[role], opt_state[role])
                params[role], opt_state[role], finite, report = moved
                good[role] &= finite
                metrics |= {f"{role}/{name}": value for name, value in report.items()}
        averages = dict(state.ema)
        for role in [role for role in averages if role in good]:
            moved = ema.update(averages[role], params[role], state.step, batch_size)
            averages[role] = _where(good[role], moved, averages[role])
        bad = ~jnp.stack(list(good.values())).all()
        new = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=averages,
            skipped=state.skipped + bad,
            skipped_in_a_row=jnp.where(bad, state.skipped_in_a_row + 1, 0),
        )
        return new, metrics | {"skipped_updates": new.skipped, "skipped_in_a_row": new.skipped_in_a_row}

    return step


def _apply(
    gradient: PyTree, report: Metrics, optimizer: optax.GradientTransformation, params: PyTree, opt_state: PyTree
) -> Moved:
    """(parameters, optimiser state, whether all was finite, metrics) after one update; as before where it was not."""
    report = {**report, "gradient_norm": optax.tree.norm(gradient)}
    changes, new_opt_state = optimizer.update(gradient, opt_state, params)
    new_params = optax.apply_updates(params, changes)
    finite = _all_finite((report["loss"], report["gradient_norm"], new_params))
    return _where(finite, new_params, params), _where(finite, new_opt_state, opt_state), finite, report


def _stay(report: dict[str, jax.ShapeDtypeStruct]) -> Callable[[PyTree, PyTree], Moved]:
    """In the place of an update that has not started: nothing moves, and a report of this structure is all zero."""
    def stay(params: PyTree, opt_state: PyTree) -> Moved:
        return params, opt_state, jnp.array(True), {name: jnp.zeros(x.shape, x.dtype) for name, x in report.items()}

    return stay


def _gradient(
    update: Update, params: PyTree, others: dict[str, PyTree], batch: Batch, key: Key[Array, ""], accumulation: int
) -> tuple[PyTree, Metrics]:
    """Mean gradient and metrics over the slices of the batch."""
    value_and_grad = jax.value_and_grad(update.loss, has_aux=True)

    def one(rows: Batch, key: Key[Array, ""]) -> tuple[PyTree, Metrics]:
        (loss, metrics), gradient = value_and_grad(params, others, rows, key)
        return gradient, {**metrics, "loss": loss}

    if accumulation == 1:
        return one(batch, key)
    # Slice i takes rows i, i + accumulation, ...: on a mesh every slice stays spread over all devices.
    slices = {k: jnp.moveaxis(v.reshape(-1, accumulation, *v.shape[1:]), 1, 0) for k, v in batch.items()}

    def body(total: PyTree, item: tuple[Array, Batch]) -> tuple[PyTree, None]:
        index, rows = item
        return jax.tree.map(jnp.add, total, one(rows, jax.random.fold_in(key, index))), None

    first = jax.eval_shape(one, {k: v[0] for k, v in slices.items()}, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(accumulation), slices))
    return jax.tree.map(lambda x: x / accumulation, total)


def _all_finite(tree: PyTree) -> Bool[Array, ""]:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
