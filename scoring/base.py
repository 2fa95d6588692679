"""The contracts of training: an objective, and the update that a training method is made of.

An **objective** is a frozen dataclass, called as `objective(denoise, process, x0, label, key) -> (loss, metrics)`.

An **update** is one optimiser step on one role. A training method is a tuple of updates over named roles: plain score
training is one update on "score"; a distillation adds updates on "auxiliary" and "generator". `training/step.py` runs
any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion.base import Denoiser, Process

Metrics = dict[str, Float[Array, ""]]


@runtime_checkable
class Objective(Protocol):
    """A loss whose minimiser over denoisers is the posterior mean of the data under `process`."""

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        x0: Float[Array, "batch *shape"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]: ...


@dataclass(frozen=True)
class Update:
    """One optimiser step on one role.

    Attributes:
      role: whose parameters it moves; the gradient is taken with respect to these alone.
      loss: (params of the role, parameters of all roles and of frozen networks by name, batch, key)
        -> (scalar, metrics). `batch` holds "image" [B, ...] and, for labelled data, "label" [B].
      repeats: how often it runs in a training step, each time with a key of its own.
      start: training steps before the first in which it runs; until then its role stays as it is.
    """

    role: str
    loss: Callable[[PyTree, dict[str, PyTree], dict[str, Array], Key[Array, ""]], tuple[Float[Array, ""], Metrics]]
    repeats: int = 1
    start: int = 0


def drop_labels(
    label: Int[Array, " batch"] | None, key: Key[Array, ""], *, probability: float, num_classes: int
) -> Int[Array, " batch"] | None:
    """Replaces each label by `num_classes` ("no class") with the given probability, for classifier-free guidance."""
    if label is None or probability == 0:
        return label
    return jnp.where(jax.random.bernoulli(key, probability, label.shape), num_classes, label)


def score_update(
    objective: Objective,
    make_denoise: Callable[[PyTree, Any], Denoiser],
    process: Process,
    *,
    label_dropout: float,
    num_classes: int,
) -> Update:
    """Score training: one update on the role "score".

    Args:
      objective: what to minimise.
      make_denoise: (params, dropout key or None) -> denoiser.
      process: noises the data.
      label_dropout: probability of hiding a label.
      num_classes: 0 for unlabelled data.
    """

    def loss(
        params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        key_label, key_dropout, key_objective = jax.random.split(key, 3)
        label = drop_labels(batch.get("label"), key_label, probability=label_dropout, num_classes=num_classes)
        denoise = make_denoise(params, key_dropout)
        return objective(denoise, process, batch["image"], label, key_objective)

    return Update(role="score", loss=loss)
