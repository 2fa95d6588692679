"""Progressive distillation [Salimans & Ho 2022, algorithm 2]: a student of k steps from a teacher of 2 k.

On the grid of `distillation/ddim_steps.py`, with T the teacher and f the student:

  1. x_t = alpha_t x0 + sigma_t noise at t = t_i, i uniform on 2, 4 ... 2 k of the teacher's grid of 2 k steps
  2. two DDIM steps of the teacher lead to x_s; the target x~ is the x0 whose one step leads there, too
  3. L = E max(snr(t), 1) |x~ - f(x_t, t)|^2 / d                                    (truncated SNR weighting)

One stage. A student of few steps is made by a chain of them, each with the student before it as its teacher.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from diffusion.base import Denoiser, Process
from distillation.base import GENERATOR, TEACHER, Parts, square
from distillation.ddim_steps import ddim_step, grid_time, implied_x0, student_sampler
from scoring.base import Metrics, Update


@dataclass(frozen=True, kw_only=True)
class ProgressiveDistillation:
    """Equations 1 to 3. `num_steps` is k. Raises ValueError for k < 1."""

    num_steps: int = 8

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps = {self.num_steps} must be at least 1")

    @property
    def sampler(self) -> dict[str, Any]:
        return student_sampler(self.num_steps)

    def target(
        self, teacher: Denoiser, process: Process, x_t: Float[Array, "batch *shape"], index: Int[Array, " batch"],
        label: Int[Array, " batch"] | None,
    ) -> Float[Array, "batch *shape"]:
        """x~ of equation 2 for x_t at t_index, index even."""
        steps = 2 * self.num_steps
        x_half = ddim_step(process, x_t, teacher(x_t, grid_time(process, index, steps), label), index - 1, index, steps)
        x0_half = teacher(x_half, grid_time(process, index - 1, steps), label)
        x_s = ddim_step(process, x_half, x0_half, index - 2, index - 1, steps)
        return implied_x0(process, x_t, x_s, index - 2, index, steps)

    def updates(self, parts: Parts) -> tuple[Update, ...]:
        process = parts.process

        def loss(
            params: PyTree, others: dict[str, PyTree], batch: dict[str, Array], key: Key[Array, ""]
        ) -> tuple[Float[Array, ""], Metrics]:
            key_time, key_noise, key_dropout = jax.random.split(key, 3)
            x0, label = batch["image"], batch.get("label")
            index = 2 * jax.random.randint(key_time, x0.shape[:1], 1, self.num_steps + 1)
            t = grid_time(process, index, 2 * self.num_steps)
            x_t = process.corrupt(x0, jax.random.normal(key_noise, x0.shape), t)  # (1)
            teacher = parts.guide(parts.teacher(others[TEACHER]))
            target = jax.lax.stop_gradient(self.target(teacher, process, x_t, index, label))  # (2)
            errors = square(target - parts.network(params, key_dropout)(x_t, t, label)) / x0[0].size
            weight = jnp.maximum(jnp.exp(process.logsnr(t)), 1.0)
            value = jnp.mean(weight * errors)  # (3)
            return value, {"loss": value, "x0_mse": jnp.mean(errors)}

        return (Update(role=GENERATOR, loss=loss),)
