"""Multistep consistency distillation, deterministic [Heek, Hoogeboom & Salimans 2024, algorithm 1].

The path of a teacher of N DDIM steps is cut into k segments. Within each of them the student f shall say the same at
every point of a path: where its one step to the end of the segment leads. On the grid of `distillation/ddim_steps.py`:

  1. x_t at t = t_i, i uniform on 1 ... N; e(i), the end of its segment, is the largest multiple of N / k below i
  2. the teacher goes from t_i to t_(i - 1);  x_ref = sg f(x_s, s) there;  a DDIM step with x_ref leads to x_e
  3. the target x~ is the x0 whose one step leads from x_t to x_e
  4. L = E (snr(t) + 1 / sigma_data^2) |x~ - f(x_t, t)|^2 / d

k = 1 is a consistency model [Song et al. 2023], k = N one step of distillation from the teacher itself.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion.base import Denoiser, Process, expand
from distillation.base import GENERATOR, TEACHER, Parts, square
from distillation.ddim_steps import ddim_step, grid_time, implied_x0, student_sampler
from scoring.base import Metrics, Update
from scoring.weightings import EDMWeighting


@dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation:
    """Equations 1 to 4.

    Attributes:
      num_steps: k, segments and steps of the student.
      teacher_steps: N, a multiple of k.
      sigma_data: of the weight.

    Raises:
      ValueError: for numbers out of range, or an N that k does not divide.
    """

    num_steps: int = 8
    teacher_steps: int = 64
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps} must be at least 1")
        if self.teacher_steps < 1 or self.teacher_steps % self.num_steps:
            raise ValueError(f"teacher_steps = {self.teacher_steps} must be a multiple of num_steps = {self.num_steps}")

    @property
    def sampler(self) -> dict[str, Any]:
        return student_sampler(self.num_steps)

    def target(
        self, teacher: Denoiser, student: Denoiser, process: Process, x_t: Float[Array, "batch *shape"],
        index: Int[Array, " batch"], label: Int[Array, " batch"] | None,
    ) -> Float[Array, "batch *shape"]:
        """x~ of equation 3 for x_t at t_index."""
        steps, length = self.teacher_steps, self.teacher_steps // self.num_steps
        end = (index - 1) // length * length
        x0_hat = teacher(x_t, grid_time(process, index, steps), label)
        x_s = ddim_step(process, x_t, x0_hat, index - 1, index, steps)
        reference = student(x_s, grid_time(process, index - 1, steps), label)
        # At the end of a segment nothing is left to say: a step of no length, or at the data no noise to be seen.
        arrived = expand(index - 1 == end, x_t)
        x_end = jnp.where(arrived, x_s, ddim_step(process, x_s, reference, end, index - 1, steps))
        return implied_x0(process, x_t, x_end, end, index, steps)

    def updates(self, parts: Parts) -> tuple[Update, ...]:
        process, weighting = parts.process, EDMWeighting(sigma_data=self.sigma_data)

        def loss(
            params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            key_time, key_noise, key_dropout = jax.random.split(key, 3)
            x0, label = batch["image"], batch.get("label")
            index = jax.random.randint(key_time, x0.shape[:1], 1, self.teacher_steps + 1)  # (1)
            t = grid_time(process, index, self.teacher_steps)
            x_t = process.corrupt(x0, jax.random.normal(key_noise, x0.shape), t)
            student = parts.network(params, key_dropout)  # the same dropout at both points [Song et al. 2023]
            teacher = parts.guide(parts.teacher(others[TEACHER]))
            target = jax.lax.stop_gradient(self.target(teacher, student, process, x_t, index, label))  # (2), (3)
            errors = square(target - student(x_t, t, label)) / x0[0].size
            value = jnp.mean(weighting(process, t) * errors)  # (4)
            return value, {"loss": value, "x0_mse": jnp.mean(errors)}

        return (Update(role=GENERATOR, loss=loss),)
