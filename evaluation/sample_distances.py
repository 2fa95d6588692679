"""Distances between two sets of samples in their own coordinates, without a network: for data whose law is known.

Sliced Wasserstein distance of order 2 [Rabin et al. 2011; Bonneel et al. 2015], over directions u, uniform on the
sphere and the same for all sets of one dimension and seed:

    SW^2 = mean_u W2^2({x_i . u}, {y_j . u})                                                                  (1)
    W2^2 = integral_0^1 (F^-1(p) - G^-1(p))^2 dp                                                              (2)

with (2) exact for any two sizes, as quantile functions of samples are steps. For N(m, s^2 I) against N(m', s'^2 I) it
is |m - m'|^2 / d + (s - s')^2 in the mean over all directions.

Energy distance [Szekely & Rizzo 2013], the unbiased estimate, which may be slightly negative:

    E = 2 mean |x_i - y_j| - mean_{i != j} |x_i - x_j| - mean_{i != j} |y_i - y_j|                            (3)
"""

import numpy as np
from jaxtyping import Float

from evaluation.moments import checked_features


def _checked_pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = checked_features(x, "x"), checked_features(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both sets must have one dimension, got x with {x.shape[1]} and y with {y.shape[1]}")
    return x.astype(np.float64), y.astype(np.float64)


def sliced_wasserstein(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m _d2"], *, directions: int = 256, seed: int = 0
) -> float:
    """The root of (1), in the units of the samples.

    Args:
      directions: how many u; with them the distance is one of fixed projections, and comparable between sets.
      seed: of the directions.

    Raises:
      ValueError: for fewer than 2 samples, values that are not finite, two different D, or directions < 1.
    """
    x, y = _checked_pair(x, y)
    if directions < 1:
        raise ValueError(f"directions = {directions} must be at least 1")
    u = np.random.default_rng(seed).standard_normal((x.shape[1], directions))
    u /= np.linalg.norm(u, axis=0)
    ours, theirs = np.sort(x @ u, axis=0), np.sort(y @ u, axis=0)
    # (2): both quantile functions are constant between the multiples of 1/n and of 1/m, counted in units of 1/(n m).
    n, m = len(x), len(y)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    widths = np.diff(ends, prepend=0) / (n * m)
    difference = ours[(ends - 1) // m] - theirs[(ends - 1) // n]
    return float(np.sqrt((widths @ difference**2).mean()))


def energy_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m _d2"]) -> float:
    """(3), in the units of the samples; not its root, which many take.

    Raises:
      ValueError: as `sliced_wasserstein`.
    """
    from scipy.spatial.distance import cdist, pdist

    x, y = _checked_pair(x, y)
    return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())  # (3)
