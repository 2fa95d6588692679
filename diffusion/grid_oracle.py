"""The exact denoiser of the double-well process, for data whose coordinates are independent draws of one density.

Every coordinate follows the same one-dimensional equation, dx = grad log pi / 2 dtau + dW in the clock tau, so one
table serves any dimension. On a grid of spacing h:

  1. Jumps from i to a neighbour j at the rate sqrt(pi_j / pi_i) / (2 h^2): pi is stationary, and the diffusion is 1.
  2. With q = p / sqrt(pi) the generator is symmetric: dq/dtau = S q, S tridiagonal with 1 / (2 h^2) beside its
     diagonal. S = V diag(w) V', so q(tau) = V exp(w tau) V' q(0), in float64 on the host.
  3. score = d log p / dx by central differences, tabulated over log tau and interpolated linearly in log tau and x.
  4. x0_hat = x + sigma^2 score, the denoiser of a process without a kernel.

Where q is below 1e-11 of its maximum rounding has eaten it (nobody is there: p is smaller still); the score is
continued from what is known on both sides, linearly in x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.linalg import eigh_tridiagonal

from diffusion.base import expand
from diffusion.kernel_free import WELL_MEAN, WELL_VARIANCE, DoubleWell

GRID = np.linspace(-6.0, 6.0, 1601)
SPACING = GRID[1] - GRID[0]
CLOCK_NODES = 256  # 5 % from node to node
_FLOOR = 1e-11


def stationary_density() -> np.ndarray:
    """[1601] pi on GRID, of integral 1."""
    density = np.exp(_log_stationary())
    return density / (density.sum() * SPACING)


def propagate(start: np.ndarray, clock: np.ndarray) -> np.ndarray:
    """Densities on GRID after the times `clock` (equation 2).

    Args:
      start: [1601] density at tau = 0.
      clock: [N] values of tau, at least 0.

    Returns:
      [N, 1601]; nan where rounding has eaten the density.
    """
    rates, modes = _spectrum()
    root = np.exp(0.5 * _log_stationary())
    q = (np.exp(np.outer(clock, rates)) * (modes.T @ (start / root))) @ modes.T
    return np.where(q > _FLOOR * q.max(axis=1, keepdims=True), q * root, np.nan)


def grid_score(density: np.ndarray) -> np.ndarray:
    """[..., 1601] central differences of the logarithm, nan where the density is unknown (equation 3)."""
    return np.gradient(np.log(density), SPACING, axis=-1)


@dataclass(frozen=True, eq=False)
class ExactDoubleWell:
    """Equations 3 and 4, usable wherever a network is. Labels are ignored.

    Attributes:
      process: gives the clock and sigma.
      log_clock: the first and the last node.
      table: [nodes, 1601] scores.
    """

    process: DoubleWell
    log_clock: tuple[float, float]
    table: Float[Array, "nodes grid"]

    def score(self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"]) -> Float[Array, "batch *shape"]:
        """grad log p_t(x), coordinate by coordinate; outside of the grid continued linearly."""
        first, last = self.log_clock
        nodes, points = self.table.shape
        row, row_weight = _position((jnp.log(self.process.clock(t)) - first) / (last - first) * (nodes - 1), nodes)
        column, weight = _position((x - GRID[0]) / SPACING, points)
        row, row_weight = expand(row, x), expand(row_weight, x)

        def along_x(row: Int[Array, "..."]) -> Float[Array, "batch *shape"]:
            return (1 - weight) * self.table[row, column] + weight * self.table[row, column + 1]

        return (1 - row_weight) * along_x(row) + row_weight * along_x(row + 1)

    def __call__(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch *shape"]:
        return x_t + expand(self.process.sigma(t), x_t) ** 2 * self.score(x_t, t)


def exact_double_well(process: DoubleWell, density: Callable[[np.ndarray], np.ndarray]) -> ExactDoubleWell:
    """The exact denoiser for data whose coordinates are independent draws of one density, between the process's times.

    Args:
      process: the noising process.
      density: of one coordinate of x0, at points [1601] of [-6, 6]; normalised here. It should be wider than the
        grid's spacing of 0.0075.

    Raises:
      ValueError: for a density that is not finite, negative somewhere, or zero on the whole grid.
    """
    start = np.asarray(density(GRID), np.float64)
    if start.shape != GRID.shape or not np.isfinite(start).all() or start.min() < 0 or start.max() == 0:
        raise ValueError("density must be finite and at least 0 on the whole grid, and not 0 everywhere")
    ends = np.log(process.clock(np.array([process.time_min, process.time_max])))
    clock = np.exp(np.linspace(*ends, CLOCK_NODES))
    scores = grid_score(propagate(start / (start.sum() * SPACING), clock))
    table = np.stack([_continued(row) for row in scores])
    return ExactDoubleWell(process, (float(ends[0]), float(ends[1])), jnp.asarray(table, jnp.float32))


def mixture_density(weights: np.ndarray, means: np.ndarray, std: float) -> Callable[[np.ndarray], np.ndarray]:
    """x -> sum_k w_k N(x; m_k, std^2): the density of the data of most of our examples."""

    def density(x: np.ndarray) -> np.ndarray:
        z = (np.asarray(x)[..., None] - np.asarray(means)) / std
        return np.exp(-0.5 * z**2) @ np.asarray(weights) / (std * np.sqrt(2 * np.pi))

    return density


def _log_stationary() -> np.ndarray:
    return np.logaddexp(*(-((GRID - mean) ** 2) / (2 * WELL_VARIANCE) for mean in (WELL_MEAN, -WELL_MEAN)))


@cache
def _spectrum() -> tuple[np.ndarray, np.ndarray]:
    """w [1601] and V [1601, 1601] of equation 2: of nothing but pi, so made once."""
    rate = 0.5 / SPACING**2
    ratio = np.exp(0.5 * np.diff(_log_stationary()))  # sqrt(pi_{i+1} / pi_i)
    leaving = np.append(ratio, 0.0) + np.append(0.0, 1 / ratio)
    return eigh_tridiagonal(-rate * leaving, np.full(len(GRID) - 1, rate))


def _continued(score: np.ndarray) -> np.ndarray:
    """`score` without its nans: linear across a gap, and outwards with the slope of the last five points."""
    known = np.flatnonzero(np.isfinite(score))
    low, high = known[0], known[-1]
    filled = np.interp(GRID, GRID[known], score[known])
    below, above = np.arange(len(GRID)) < low, np.arange(len(GRID)) > high
    filled[below] += (GRID[below] - GRID[low]) * (score[low + 4] - score[low]) / (4 * SPACING)
    filled[above] += (GRID[above] - GRID[high]) * (score[high] - score[high - 4]) / (4 * SPACING)
    return filled


def _position(place: Float[Array, "..."], size: int) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """A place between points of a table -> the point below it and the fraction beyond; outside, above 1 or below 0."""
    below = jnp.clip(jnp.floor(place), 0, size - 2)
    return below.astype(jnp.int32), place - below
