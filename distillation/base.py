"""The contract of a distillation method, and what the methods share.

A **method** is a frozen dataclass: its options, and

    updates(parts) -> tuple of Update      what is trained, in which order (`scoring/base.py`)
    sampler -> {"name": ..., "steps": ...} how the student has to be sampled

over the roles "generator" (the student, which is sampled) and "auxiliary" (follows the student's own distribution), and
the frozen networks "teacher" and, for the instant moment matching, "preconditioner". Both roles begin as copies of the
teacher. A third, "discriminator", is a head on the auxiliary network's features (`distillation/adversarial.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion.base import Denoiser, Process
from scoring.base import Objective, Update
from scoring.terms import dot

TEACHER, GENERATOR, AUXILIARY, PRECONDITIONER = "teacher", "generator", "auxiliary", "preconditioner"
DISCRIMINATOR = "discriminator"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a method is made on.

    Attributes:
      network: (parameters of a role, dropout key or None) -> denoiser.
      teacher: (parameters of the teacher) -> denoiser, without guidance.
      guide: denoiser -> the same with the teacher's guidance; only the teacher is guided.
      process: noises the data.
      objective: what the auxiliary network minimises on generated images, where the method wants score matching.
      num_classes: 0 for unlabelled data.
    """

    network: Callable[[PyTree, Key[Array, ""] | None], Denoiser]
    teacher: Callable[[PyTree], Denoiser]
    guide: Callable[[Denoiser], Denoiser]
    process: Process
    objective: Objective
    num_classes: int


@runtime_checkable
class Method(Protocol):
    """See the module docstring."""

    @property
    def sampler(self) -> dict[str, Any]: ...

    def updates(self, parts: Parts) -> tuple[Update, ...]: ...


def random_labels(key: Key[Array, ""], count: int, num_classes: int) -> Int[Array, " count"] | None:
    """Uniform over the classes; None for unlabelled data."""
    return jax.random.randint(key, (count,), 0, num_classes) if num_classes else None


def halves(batch: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The even and the odd rows of a batch: two independent batches, each spread over all devices as the whole is.

    Raises:
      ValueError: for an odd number of rows.
    """
    count = len(batch["image"])
    if count % 2:
        raise ValueError(f"config.data.batch_size: {count} images cannot be split into two batches")
    pairs = {name: rows.reshape(count // 2, 2, *rows.shape[1:]) for name, rows in batch.items()}
    even, odd = ({name: rows[:, k] for name, rows in pairs.items()} for k in (0, 1))
    return even, odd


def square(x: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """|x|^2, the sum over all coordinates of each example."""
    return dot(x, x)


def root_mean_square(x: Float[Array, "batch *shape"]) -> Float[Array, ""]:
    """Of all coordinates of all examples."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def through_images(
    losses: Callable[[Float[Array, "batch *shape"]], tuple[Float[Array, " batch"], Any]],
    x0: Float[Array, "batch *shape"],
) -> tuple[Float[Array, ""], Float[Array, ""], Any]:
    """The mean of a loss of generated images, and how hard it pulls at them.

    Args:
      losses: images -> (one loss per image, anything else).
      x0: the images, functions of the generator's parameters.

    Returns:
      (mean loss, with its gradient through x0; mean over the images of |d loss / d x0|; what else `losses` returned,
      without a gradient). The pull is taken from the one backward pass that the gradient needs anyway. When it grows
      while the loss does not, training is about to fail.
    """
    def total(images: Float[Array, "batch *shape"]) -> tuple[Array, Any]:
        of_image, more = losses(images)
        return jnp.sum(of_image), more

    (value, more), gradient = jax.value_and_grad(total, has_aux=True)(jax.lax.stop_gradient(x0))
    value, gradient, more = jax.lax.stop_gradient((value, gradient, more))
    linear = jnp.sum(gradient * x0) / len(x0)  # its gradient is the chain rule; its value is taken out again
    return value / len(x0) + linear - jax.lax.stop_gradient(linear), jnp.mean(jnp.sqrt(square(gradient))), more
