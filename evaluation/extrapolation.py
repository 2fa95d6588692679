"""The Frechet distance of infinitely many samples (Chong and Forsyth 2020, FID_infinity).

The distance of N samples from a fixed reference is biased by about C / N, where C depends on the model, so that a
comparison at equal N is still unfair. Over 15 sample sizes, evenly spaced, the straight line

    FD_N = FD_infinity + C / N                                                                                (1)

is fitted by ordinary least squares. Each point is one random subset of the samples, drawn without replacement.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from evaluation.distances import frechet_distance_to
from evaluation.moments import Moments, checked_features, moments

_POINTS = 15


# Images in the smallest subset, as in the paper: below, 1/N alone does not describe the bias.
SMALLEST = 5000


class Extrapolation(NamedTuple):
    """A fitted line (1).

    Attributes:
      value: FD_infinity, the intercept.
      slope: C.
      standard_error: of the intercept, from the points' scatter about the line. It takes the points for independent,
        which subsets of one set of samples are not: read it as a check of the fit, not as a confidence interval.
      counts, distances: the points, N and FD_N.
    """

    value: float
    slope: float
    standard_error: float
    counts: tuple[int, ...]
    distances: tuple[float, ...]


def fit_line(counts: tuple[int, ...], distances: tuple[float, ...]) -> Extrapolation:
    """The line (1) through the points (N, FD_N), by ordinary least squares.

    Raises:
      ValueError: for fewer than 3 points, or fewer than 2 different N.
    """
    if len(counts) != len(distances) or len(counts) < 3 or len(set(counts)) < 2:
        raise ValueError(f"need at least 3 points of at least 2 sizes, got {len(distances)} for the sizes {counts}")
    x, y = 1.0 / np.asarray(counts, np.float64), np.asarray(distances, np.float64)
    centred = x - x.mean()
    spread = centred @ centred
    slope = centred @ y / spread
    intercept = y.mean() - slope * x.mean()
    residual = y - intercept - slope * x
    variance = residual @ residual / (len(x) - 2)
    error = np.sqrt(variance * (1 / len(x) + x.mean() ** 2 / spread))
    return Extrapolation(float(intercept), float(slope), float(error), tuple(counts), tuple(distances))


def extrapolate(
    features: Float[np.ndarray, "n d"],
    distance_of: Callable[[np.ndarray], float],
    *,
    smallest: int = SMALLEST,
    seed: int = 0,
) -> Extrapolation:
    """A distance that is biased by C / N, extrapolated to infinitely many samples by the line (1).

    Args:
      features: of the samples; 50,000 in the paper.
      distance_of: the distance of some of these rows, [n, D], from the reference.
      smallest: the smallest of the 15 sizes; the largest is N.
      seed: of the subsets.

    Raises:
      ValueError: if there are fewer than 2 * smallest samples: 1 / N would hardly vary; or fewer than 2 in a subset.
    """
    count = len(checked_features(features, "features"))
    if smallest < 2 or count < 2 * smallest:
        raise ValueError(
            f"extrapolation from subsets of {smallest} (at least 2) samples and more needs at least twice as many "
            f"samples, got {count}"
        )
    counts = tuple(int(n) for n in np.linspace(smallest, count, _POINTS))
    random = np.random.default_rng(seed)
    distances = tuple(float(distance_of(features[random.choice(count, n, replace=False)])) for n in counts)
    return fit_line(counts, distances)


def frechet_distance_infinity(
    features: Float[np.ndarray, "n d"], reference: Moments, *, smallest: int = SMALLEST, seed: int = 0
) -> Extrapolation:
    """The Frechet distance of samples from a reference, extrapolated to infinitely many samples.

    The bias that is left is that of the reference's own finite number. Arguments and errors are those of `extrapolate`.

    Raises:
      ValueError: also if the dimensions differ.
    """
    distance = frechet_distance_to(reference)
    return extrapolate(features, lambda rows: distance(moments(rows)), smallest=smallest, seed=seed)
