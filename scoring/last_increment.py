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
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, has_kernel
from diffusion.simulation import Path, simulate
from scoring.base import Metrics
from scoring.terms import Terms, check_at_least_one, check_reduction, dot, scaled_score, weighted_loss
from scoring.time_samplers import TimeSampler
from scoring.weightings import Weighting


@dataclass(frozen=True, kw_only=True)
class LastIncrement:
    """Equations 1 and 2 with K = `simulation_steps`."""

    weighting: Weighting
    time_sampler: TimeSampler
    reduction: str = "mean"
    simulation_steps: int = 256

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        check_at_least_one(simulation_steps=self.simulation_steps)

    def __call__(
        self,
        denoise: Denoiser,
        process: Process,
        x0: Float[Array, "batch *shape"],
        label: Int[Array, " batch"] | None,
        key: Key[Array, ""],
    ) -> tuple[Float[Array, ""], Metrics]:
        if process.diffusion(np.float64(process.time_max)) == 0:
            raise ValueError(f"last_increment needs a process that moves, and {type(process).__name__} adds no noise")
        key_time, key_path = jax.random.split(key)
        t = self.time_sampler(process, key_time, len(x0))
        path = _path(process, x0, t, key_path, self.simulation_steps)  # (1)
        output = scaled_score(denoise, process, t, label)(path.x)
        ratio = process.sigma(t) / (process.diffusion(t - path.step) * jnp.sqrt(path.step))
        noise = 0.5 * ratio**2 * dot(path.noise, path.noise)
        # The square of equation 2 without its constant, which would drown the loss; it is added to dsm_equivalent.
        terms = Terms(ratio * dot(path.noise, output), 0.5 * dot(output, output), noise)  # (2)
        return weighted_loss(terms, self.weighting, process, t, dimension=x0[0].size, reduction=self.reduction)


def _path(process: Process, x0: Float[Array, "batch *shape"], t: Array, key: Key[Array, ""], steps: int) -> Path:
    """Equation 1 from the data, or, where there is a kernel, from the smallest time of the process."""
    if not has_kernel(process):
        return process.simulate(x0, t, key, steps)
    key_start, key_path = jax.random.split(key)
    start = process.corrupt(x0, jax.random.normal(key_start, x0.shape), jnp.full_like(t, process.time_min))
    return simulate(process, start, t, key_path, steps=steps)
