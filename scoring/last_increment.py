"""Denoising score matching on the last increment of a simulation: exact for any process, at the cost of DSM.

  1. x_0 ... x_K by Euler's method, x_K = x_{K-1} + f dt + g sqrt(dt) z: a Gaussian kernel, though only of one step.
  2. L = |s(x_K) + z / (g sqrt(dt))|^2 / 2;   E[-z / (g sqrt(dt)) | x_K] is the score of the simulated density at x_K.

There is no smoothing and nothing to tune, but the variance grows as 1 / dt: more `simulation_steps` make the simulation
finer and the loss noisier. Relatives: local denoising score matching (arXiv 2407.07998), nonlinear denoising score
matching (arXiv 2405.15625).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from diffusion.base import Process, has_kernel
from diffusion.simulation import Path, simulate
from scoring.terms import ScaledScore, Terms, TraceObjective, dot, half_square


@dataclass(frozen=True, kw_only=True)
class LastIncrement(TraceObjective):
    """Equations 1 and 2 with K = `simulation_steps`, for processes with a kernel, too."""

    def terms(
        self, r: ScaledScore, process: Process, x0: Float[Array, "batch *shape"], t: Float[Array, " batch"],
        key: Key[Array, ""],
    ) -> Terms:
        if process.diffusion(np.float64(process.time_max)) == 0:
            raise ValueError(f"last_increment needs a process that moves, and {type(process).__name__} adds no noise")
        path = _path(process, x0, t, key, self.simulation_steps)  # (1)
        output = r(path.x)
        ratio = process.sigma(t) / (process.diffusion(t - path.step) * jnp.sqrt(path.step))
        # The square of equation 2 without its constant, which would drown the loss; it is added to dsm_equivalent.
        return Terms(ratio * dot(path.noise, output), half_square(output), ratio**2 * half_square(path.noise))  # (2)


def _path(process: Process, x0: Float[Array, "batch *shape"], t: Array, key: Key[Array, ""], steps: int) -> Path:
    """Equation 1 from the data, or, where there is a kernel, from the smallest time of the process."""
    if not has_kernel(process):
        return process.simulate(x0, t, key, steps)
    key_start, key_path = jax.random.split(key)
    start = process.corrupt(x0, jax.random.normal(key_start, x0.shape), jnp.full_like(t, process.time_min))
    return simulate(process, start, t, key_path, steps=steps)
