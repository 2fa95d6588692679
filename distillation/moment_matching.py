"""Moment matching, alternating [Salimans et al. 2024, algorithm 2]: a student of k steps from a teacher and data.

The student is right if its conditional means are the data's, E_g[x_gen | x_s] = E_q[x0 | x_s] for all s; then its
sampler is exact for any number of steps. With the transitions (s, x_gen, x_s) of `distillation/transitions.py`, T the
teacher (which knows the right side) and f the auxiliary network (which learns the left):

  1. auxiliary:  E w(s) (|x_gen - f(x_s, s)|^2 + q |T(x_s, s) - f(x_s, s)|^2)         x_gen, x_s and T constant
  2. generator:  E w(s) (x_gen - sg T)^T sg(f - T)                                    gradient through x_gen alone

2 has the gradient of the paper's w x_gen^T sg(f - T). Written with x_gen - T it also has a value: at the optimal f it
is half of w |E_g[x_gen | x_s] - T|^2 (for q = 1), which falls to 0. A value below 0 for long means that f lags behind.

The two updates see different halves of a batch.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from diffusion.base import Denoiser
from diffusion.denoiser import difference
from distillation.base import AUXILIARY, GENERATOR, TEACHER, Parts, halves, root_mean_square, square
from distillation.teachers import teacher_value
from distillation.transitions import Transition, Transitions
from scoring.base import Metrics, Update
from scoring.terms import dot


@dataclass(frozen=True, kw_only=True)
class MomentMatching(Transitions):
    """Equations 1 and 2.

    Attributes:
      clip_teacher: keep the teacher's values in [-1, 1], the range of images.
      auxiliary_teacher_weight: q; how much of the auxiliary network's attention the teacher has.

    Raises:
      ValueError: as `Transitions`, or for a negative q.
    """

    clip_teacher: bool = True
    auxiliary_teacher_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.auxiliary_teacher_weight < 0:
            raise ValueError(f"auxiliary_teacher_weight = {self.auxiliary_teacher_weight} must be at least 0")

    def auxiliary_loss(
        self, auxiliary: Denoiser, teacher: Denoiser, parts: Parts, transition: Transition, label: Array | None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation 1."""
        s, x_gen, x_s = jax.lax.stop_gradient(transition)
        value = jax.lax.stop_gradient(teacher(x_s, s, label))
        f = auxiliary(x_s, s, label)
        errors = square(x_gen - f) + self.auxiliary_teacher_weight * square(value - f)
        loss = jnp.mean(self.weights(parts.process, s, x_gen - value) * errors)
        return loss, {"loss": loss}

    def generator_loss(
        self, auxiliary: Denoiser, teacher: Denoiser, parts: Parts, transition: Transition, label: Array | None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation 2. Metrics: `delta` = f - T, and `pull`, the mean size of the gradient at a generated image."""
        s, x_gen, x_s = transition
        _, value, delta = jax.lax.stop_gradient(difference(auxiliary, teacher, x_s, s, label))
        weight = self.weights(parts.process, s, x_gen - value)
        loss = jnp.mean(weight * dot(x_gen - value, delta))
        pull = jnp.mean(weight * jnp.sqrt(square(delta)))
        return loss, {"loss": loss, "delta": root_mean_square(delta), "pull": pull}

    def updates(self, parts: Parts) -> tuple[Update, ...]:
        def teacher(others: dict[str, PyTree]) -> Denoiser:
            return teacher_value(parts.teacher(others[TEACHER]), parts.guide, clip=self.clip_teacher)

        def auxiliary_loss(
            params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            key_draw, key_dropout = jax.random.split(key)
            rows, _ = halves(batch)
            label, student = rows.get("label"), parts.network(others[GENERATOR], None)
            transition = self.draw(student, parts.process, rows["image"], label, key_draw)
            return self.auxiliary_loss(parts.network(params, key_dropout), teacher(others), parts, transition, label)

        def generator_loss(
            params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            key_draw, key_dropout = jax.random.split(key)
            _, rows = halves(batch)
            label, student = rows.get("label"), parts.network(params, key_dropout)
            transition = self.draw(student, parts.process, rows["image"], label, key_draw)
            auxiliary = parts.network(others[AUXILIARY], None)
            return self.generator_loss(auxiliary, teacher(others), parts, transition, label)

        return Update(role=AUXILIARY, loss=auxiliary_loss), Update(role=GENERATOR, loss=generator_loss)
