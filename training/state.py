"""The state of a training run: everything that a checkpoint must hold, and nothing that can be recomputed.

Keys and the data order are functions of (seed, step), learning rate and EMA rates are functions of the config, frozen
teachers are references: none of them is state.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from training.ema import EMA


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Arrays only, or in the same places their shapes or shardings: hence no array types in the annotations.

    Attributes:
      step: int32 [], number of finished training steps, skipped ones included.
      params: role -> parameters (float32).
      opt_state: role -> optax state.
      ema: role -> name of the average -> parameters.
      skipped: int32 [], steps so far with an update that was skipped because something was not finite.
      skipped_in_a_row: the same, since the last good update.
    """

    step: PyTree
    params: dict[str, PyTree]
    opt_state: dict[str, PyTree]
    ema: dict[str, dict[str, PyTree]]
    skipped: PyTree
    skipped_in_a_row: PyTree


def create_state(
    params: dict[str, PyTree], optimizers: dict[str, optax.GradientTransformation], ema: EMA, ema_roles: tuple[str, ...]
) -> TrainState:
    """The state before step one; every average starts at the parameters. Traceable: it can be made in one jit."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state={role: optimizers[role].init(tree) for role, tree in params.items()},
        ema={role: {name: jax.tree.map(jnp.copy, params[role]) for name in ema.names} for role in ema_roles},
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )
