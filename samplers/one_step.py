"""One call of a generator: the sampler of a model that was distilled into one step.

  1. x = sigma(t) z,  z ~ N(0, I),  at the time t whose noise level sigma / alpha is `level`.
  2. x0 = D(x, t): the network as a denoiser, with its preconditioning, at this one level.

Of a diffusion model this is the mean image of a class; a generator that was trained so makes samples of it
[Luo et al. 2024, algorithm 1; level 2.5 from Zhou et al. 2024]. One network call.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, network_calls, require_kernel
from diffusion.random import image_noise
from samplers.base import Samples

ROUNDING = 1e-9  # relative; the ends of a process are levels that it reaches


def time_of_level(process: Process, level: float) -> float:
    """The time whose noise level sigma / alpha is `level`. Raises ValueError where the process does not reach it."""
    require_kernel(process, "a one-step generator")
    low, high = (float(np.exp(-0.5 * process.logsnr(np.float64(t)))) for t in (process.time_min, process.time_max))
    if not low * (1 - ROUNDING) <= level <= high * (1 + ROUNDING):
        raise ValueError(f"level = {level} must lie between the noise levels of the process, {low:.4g} and {high:.4g}")
    t = float(process.time_of_logsnr(np.float64(-2 * np.log(level))))
    return min(max(t, process.time_min), process.time_max)


def one_step(
    denoise: Denoiser, process: Process, level: float, noise: Float[Array, "batch *shape"],
    label: Int[Array, " batch"] | None,
) -> Float[Array, "batch *shape"]:
    """Equations 1 and 2, for noise z [B, ...]."""
    t = time_of_level(process, level)
    return denoise(float(process.sigma(np.float64(t))) * noise, jnp.full(noise.shape[:1], t), label)


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """Equations 1 and 2. Raises ValueError for a level that is not positive, or more than one step."""

    steps: int = 1
    level: float = 2.5

    def __post_init__(self) -> None:
        if self.steps != 1:
            raise ValueError(f"steps = {self.steps}: this sampler makes one step; few-step students take ancestral, "
                             "with preset student")
        if not self.level > 0:
            raise ValueError(f"level = {self.level} must be positive")

    def sample(
        self,
        denoise: Denoiser,
        process: Process,
        keys: Key[Array, " batch"],
        label: Int[Array, " batch"] | None,
        *,
        shape: tuple[int, ...],
        keep_steps: bool = False,
    ) -> Samples:
        x0 = one_step(denoise, process, self.level, image_noise(keys, 0, shape), label)
        t = jnp.full(len(x0), time_of_level(process, self.level))
        steps = (x0[None], t[:1]) if keep_steps else (None, None)
        return Samples(x0, network_calls(denoise, t, label), *steps)
