"""Deterministic steps of DDIM on the grid of a k-step student, and their inverse: what the baselines are made of.

  1. t_i = time_min + (time_max - time_min) i / N, i = N ... 1; the step from t_1 ends at the data: alpha = 1, sigma = 0
  2. x_s = a x_t + b x0_hat,  a = sigma_s / sigma_t,  b = alpha_s - a alpha_t   (`diffusion/process.py`, 2, eta = 0)
  3. x0_hat = (x_s - a x_t) / b: the x0_hat whose one step leads from x_t to x_s
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffusion.base import Process, expand

Index = Int[Array, " batch"]


def grid_time(process: Process, index: Index, steps: int) -> Float[Array, " batch"]:
    """t_i of equation 1 for i in [0, steps]."""
    return process.time_min + (process.time_max - process.time_min) * (index / steps)


def coefficients(process: Process, end: Index, start: Index, steps: int, like: Array) -> tuple[Array, Array]:
    """a and b of equation 2 from t_start to t_end, end <= start, broadcast against `like`; end = 0 is the data."""
    s, t = grid_time(process, end, steps), grid_time(process, start, steps)
    a, b, _ = process.posterior(s, t, eta=0.0)
    data = end == 0
    return expand(jnp.where(data, 0.0, a), like), expand(jnp.where(data, 1.0, b), like)


def ddim_step(
    process: Process, x_t: Float[Array, "batch *shape"], x0_hat: Float[Array, "batch *shape"], end: Index,
    start: Index, steps: int,
) -> Float[Array, "batch *shape"]:
    """x at t_end, by equation 2."""
    a, b = coefficients(process, end, start, steps, x_t)
    return a * x_t + b * x0_hat


def implied_x0(
    process: Process, x_t: Float[Array, "batch *shape"], x_s: Float[Array, "batch *shape"], end: Index,
    start: Index, steps: int,
) -> Float[Array, "batch *shape"]:
    """Equation 3, for end < start."""
    a, b = coefficients(process, end, start, steps, x_t)
    return (x_s - a * x_t) / b


def student_sampler(num_steps: int) -> dict[str, Any]:
    """How a student that was trained on this grid has to be sampled."""
    return {"name": "ddim", "steps": num_steps, "grid": "trailing"}
