"""Moment matching in parameter space, "instant" [Salimans et al. 2024, section 3.2 and algorithm 3].

In place of an auxiliary network stands the teacher after one infinitesimal step of training on the student's samples:
the student is right when the teacher, trained on them, would not want to move. With J = d T / d phi, Lambda a fixed
diagonal (the preconditioner of Adam), the transitions of `distillation/transitions.py` and T of
`distillation/teachers.py`:

  1. G = grad_phi E w(s) |x_gen - T(x_s, s)|^2 = -2 E w J^T (x_gen - T)        the wish to move
  2. L = G^T Lambda G / 2
  3. first half of the batch:  nu = Lambda G_1, a constant
  4. second half:              l = -2 w (x_gen - T)^T sg(J nu),  gradient through x_gen alone

The gradient of 4 is an unbiased estimate of that of 2, and E <nu, G_2> / 2 is its value; G of one batch alone, squared,
would be too large by tr(Lambda Cov G) / 2. J nu is a derivative in forward mode, so that no graph of second order is
ever held. The minus sign of 4 is lost in the paper's print, where equation 2 would be climbed.

  5. With `centre_on_data` the same gradient for the data's own pairs, (x0, x_s ~ q(x_s | x0)), is taken from G: needed
     where the teacher is not at rest under this w and s, as an average of weights is not. It would also take out what
     guidance adds.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from diffusion.base import Denoiser
from distillation.base import GENERATOR, PRECONDITIONER, TEACHER, Parts, halves, root_mean_square, square
from distillation.teachers import teacher_value
from distillation.transitions import Transition, Transitions
from scoring.base import Metrics, Update
from scoring.terms import dot


@dataclass(frozen=True, kw_only=True)
class InstantMomentMatching(Transitions):
    """Equations 1 to 5.

    Attributes:
      clip_teacher: keep the teacher's values in [-1, 1], the range of images.
      centre_on_data: equation 5.
    """

    clip_teacher: bool = True
    centre_on_data: bool = False

    def wish(
        self, parts: Parts, teacher_params: PyTree, transition: Transition, label: Array | None
    ) -> PyTree:
        """G of equation 1, of one batch."""
        s, x_gen, x_s = jax.lax.stop_gradient(transition)

        def error(params: PyTree) -> Float[Array, ""]:
            residual = x_gen - self._teacher(parts, params)(x_s, s, label)
            return jnp.mean(self.weights(parts.process, s, residual) * square(residual))

        return jax.grad(error)(teacher_params)

    def loss(
        self, parts: Parts, teacher_params: PyTree, nu: PyTree, transition: Transition, label: Array | None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Equation 4. Metrics: `objective`, <nu, G_2> / 2, an estimate of equation 2; `delta`, J nu; `pull`, the mean
        size of the gradient at a generated image.
        """
        s, x_gen, x_s = transition
        value, slope = jax.lax.stop_gradient(
            jax.jvp(lambda params: self._teacher(parts, params)(x_s, s, label), (teacher_params,), (nu,)))
        weight = self.weights(parts.process, s, x_gen - value)
        loss = jnp.mean(-2 * weight * dot(x_gen - value, slope))
        pull = jnp.mean(2 * weight * jnp.sqrt(square(slope)))
        return loss, {"loss": loss, "objective": loss / 2, "delta": root_mean_square(slope), "pull": pull}

    def _teacher(self, parts: Parts, params: PyTree) -> Denoiser:
        return teacher_value(parts.teacher(params), parts.guide, clip=self.clip_teacher)

    def data_transition(self, parts: Parts, x0: Float[Array, "batch *shape"], key: Key[Array, ""]) -> Transition:
        """The pairs of equation 5: s of the same law, x_s ~ q(x_s | x0)."""
        key_time, key_noise = jax.random.split(key)
        s, _, _ = self.draw_times(parts.process, key_time, len(x0))
        return Transition(s, x0, parts.process.corrupt(x0, jax.random.normal(key_noise, x0.shape), s))

    def updates(self, parts: Parts) -> tuple[Update, ...]:
        def generator(
            params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            key_first, key_second, key_dropout, key_data = jax.random.split(key, 4)
            first, second = halves(batch)
            teacher = others[TEACHER]
            network = parts.network(jax.lax.stop_gradient(params), None)
            transition = self.draw(network, parts.process, first["image"], first.get("label"), key_first)
            wish = self.wish(parts, teacher, transition, first.get("label"))
            if self.centre_on_data:
                of_data = self.wish(parts, teacher, self.data_transition(parts, first["image"], key_data),
                                    first.get("label"))  # fmt: skip
                wish = jax.tree.map(jnp.subtract, wish, of_data)
            nu = jax.lax.stop_gradient(jax.tree.map(jnp.multiply, others[PRECONDITIONER], wish))  # (3)
            transition = self.draw(parts.network(params, key_dropout), parts.process, second["image"],
                                   second.get("label"), key_second)  # fmt: skip
            return self.loss(parts, teacher, nu, transition, second.get("label"))  # (4)

        return (Update(role=GENERATOR, loss=generator),)
