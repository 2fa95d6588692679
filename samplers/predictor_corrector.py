"""Predictor-corrector sampling [Song et al. 2021, app. G, algorithms 2 to 5], for any schedule and any grid.

  1. Predictor, from t to s < t: the ancestral step x_s = A x_t + B x0_hat + C z (`samplers/ancestral.py`).
  2. Corrector, `corrector_steps` times at the new level s: Langevin steps on p_s,
         x + eps score + sqrt(2 eps) z,   eps = 2 (snr |z| / |score|)^2
  3. With score = (alpha x0_hat - x) / sigma^2 and k = eps / sigma^2, the part of the way to alpha x0_hat that is gone:
         x + k (alpha x0_hat - x) + sqrt(2 k) sigma z,   k = min(2 snr^2 d / |sigma score|^2, 1)
  4. The last interval ends at x0_hat, without a corrector.

What differs from the paper in equation 3:

  * The norms are those of one image, and |z|^2 is its mean d, the number of values in an image. The paper averages both
    norms over the batch, and image i would depend on its batch mates. Its own draw in the place of d would make the
    noise larger than the drift allows, by (d + 2) / d in variance. A step that depends on |score| still has a bias: on
    normal data one corrector step takes the variance from 1 to 1 + 8 snr^2 / (d - 2) + 4 snr^4 d / (d - 2), of which
    a batch mean has 4 snr^4.
  * k is at most 1, where the mean of the step is alpha x0_hat. It matters in few dimensions, where |score| is small
    close to a mode and eps has no bound.
  * No factor alpha_i = 1 - beta_i, which the paper has for VP processes: it is a number of its discrete levels that
    tends to 1 as they get finer. Without it the step is the same for x and x / alpha, so for every schedule.

Weak order 1, stochastic; steps + (steps - 1) corrector_steps network calls, all of them rows of one table, so that the
network is compiled once. Without correctors it is ancestral sampling.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.base import Denoiser, Process, require_kernel
from diffusion.random import image_noise
from samplers.ancestral import ancestral_tables, check_variance
from samplers.base import Samples, run_scan, scan_tables
from samplers.time_grids import check_grid, make_grid


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector:
    """`steps` intervals on the grid `grid` (a name of TIME_GRIDS), a predictor each and correctors between them.

    Attributes:
      corrector_steps: Langevin steps after each predictor but the last; 0 for none.
      snr: signal-to-noise ratio of a corrector step, snr of equation 2; the paper's best are 0.01 to 0.2.
      variance: of the predictor's noise, "small" or "large" as in ancestral sampling.
    """

    steps: int = 100
    grid: str = "uniform"
    corrector_steps: int = 1
    snr: float = 0.16
    variance: str = "small"

    def __post_init__(self) -> None:
        check_grid(self.grid, self.steps)
        check_variance(self.variance)
        if self.corrector_steps < 0:
            raise ValueError(f"corrector_steps = {self.corrector_steps} must be at least 0")
        if self.snr <= 0:
            raise ValueError(f"snr = {self.snr} must be positive; corrector_steps = 0 turns the corrector off")

    def _rows(self, process: Process) -> dict[str, Array]:
        """One row per network call: a predictor, its correctors, ..., the last predictor."""
        times = make_grid(process, self.grid, self.steps).t
        # A predictor is called at the time it starts from, a corrector at the time it stays at, the next predictor's.
        t = np.append(times[0], np.repeat(times[1:], self.corrector_steps + 1))
        predictors = np.arange(self.steps) * (self.corrector_steps + 1)
        rows = {name: np.zeros(len(t)) for name in "abc"}
        for name, table in ancestral_tables(process, times, self.variance).items():
            rows[name][predictors] = table
        corrects = np.ones(len(t))
        corrects[predictors] = 0
        return scan_tables(t=t, alpha=process.alpha(t), sigma=process.sigma(t), corrects=corrects, **rows)

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
        require_kernel(process, "the predictor-corrector sampler")

        def update(x: Float[Array, "batch *shape"], extra: None, x0_hat: Array, row: dict[str, Array]) -> Any:
            noise = image_noise(keys, row["index"] + 1, shape)
            predicted = row["a"] * x + row["b"] * x0_hat + row["c"] * noise  # (1)
            if self.corrector_steps == 0:
                return predicted, extra
            way = row["alpha"] * x0_hat - x
            k = corrector_step(way / row["sigma"], self.snr)
            corrected = x + k * way + jnp.sqrt(2 * k) * row["sigma"] * noise  # (3)
            return jnp.where(row["corrects"] > 0, corrected, predicted), extra

        return run_scan(update, denoise, process.prior(keys, shape), None, self._rows(process), label,
                        keep_steps=keep_steps)


def corrector_step(scaled_score: Float[Array, "batch *shape"], snr: float) -> Float[Array, "batch ..."]:
    """k of equation 3 for each image, [B, 1, ..., 1], in (0, 1].

    Args:
      scaled_score: [B, ...] sigma score.
      snr: signal-to-noise ratio.
    """
    wanted = 2 * snr**2 * prod(scaled_score.shape[1:])
    size = jnp.sum(scaled_score**2, axis=tuple(range(1, scaled_score.ndim)), keepdims=True)
    return wanted / jnp.maximum(size, wanted)
