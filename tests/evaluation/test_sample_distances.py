"""Sliced Wasserstein and energy distances: closed forms of Gaussians, scipy in one dimension, and what is refused."""

import math

import numpy as np
import pytest
from scipy.stats import energy_distance as scipy_energy
from scipy.stats import wasserstein_distance

from evaluation.sample_distances import energy_distance, sliced_wasserstein


def normal(seed, mean, std, count=4000):
    mean = np.asarray(mean)
    return mean + std * np.random.default_rng(seed).standard_normal((count, len(mean)))


def test_sliced_wasserstein_of_gaussians():
    """|m - m'|^2 / d + (s - s')^2 in the mean over directions, of which all are used in one dimension."""
    for mean, std in (([0.7], 1.0), ([0.0], 2.0), ([1.0], 0.5)):
        got = sliced_wasserstein(normal(0, [0.0], 1.0), normal(1, mean, std))
        assert got == pytest.approx(math.hypot(mean[0], std - 1), abs=0.08)
    mean = [0.6, -0.3, 0.2, 0.1]
    got = sliced_wasserstein(normal(0, np.zeros(4), 1.0), normal(1, mean, 1.5), directions=400)
    assert got == pytest.approx(math.sqrt(np.square(mean).sum() / 4 + 0.25), rel=0.05)
    x = normal(2, mean, 1.0, 50)
    assert sliced_wasserstein(x, x) == 0 and sliced_wasserstein(x, x + 0.5) > 0.1


def test_sets_of_different_sizes():
    """Repeating every sample changes nothing; two points against three by hand: thirds and halves meet at sixths."""
    x, y = normal(0, [0.0, 0.0], 1.0, 30), normal(1, [0.5, 0.0], 1.0, 45)
    one = sliced_wasserstein(x, y)
    assert sliced_wasserstein(np.repeat(x, 3, axis=0), np.repeat(y, 2, axis=0)) == pytest.approx(one, rel=1e-12)
    two, three = np.array([[0.0], [1.0]]), np.array([[0.0], [3.0], [1.0]])
    by_hand = 0 / 3 + 1 / 6 + 0 / 6 + 4 / 3
    assert sliced_wasserstein(two, three) == pytest.approx(math.sqrt(by_hand), rel=1e-12)
    shifted = two + 0.25  # all quantiles by as much: any order of the distance is the same
    assert sliced_wasserstein(two, shifted) == pytest.approx(wasserstein_distance(two[:, 0], shifted[:, 0]), rel=1e-12)


def test_energy_distance_in_one_dimension():
    """scipy's, the root of the estimate with the diagonals: 2 a - b (n - 1) / n - c (m - 1) / m."""
    x, y = normal(3, [0.0], 1.0, 60), normal(4, [1.0], 1.0, 90)
    mean = lambda a: np.abs(a - a.T)[~np.eye(len(a), dtype=bool)].mean()  # noqa: E731
    biased = energy_distance(x, y) + mean(x) / 60 + mean(y) / 90
    assert biased == pytest.approx(scipy_energy(x[:, 0], y[:, 0]) ** 2, rel=1e-10)


def test_energy_distance_of_gaussians():
    """E|N(m, 2 s^2)| is known, and there is no bias: the mean over many small sets of one law is 0."""
    def folded(mean, variance):
        ratio = mean**2 / (2 * variance)
        return math.sqrt(2 * variance / math.pi) * math.exp(-ratio) + mean * math.erf(math.sqrt(ratio))

    expected = 2 * folded(0.8, 2) - 2 * folded(0.0, 2)
    assert energy_distance(normal(5, [0.0], 1, 3000), normal(6, [0.8], 1, 3000)) == pytest.approx(expected, abs=0.04)
    values = [energy_distance(normal(k, [0, 0], 1, 10), normal(1000 + k, [0, 0], 1, 12)) for k in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20 and min(values) < 0


@pytest.mark.parametrize("distance", [sliced_wasserstein, energy_distance])
def test_what_is_refused(distance):
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="one dimension, got x with 2 and y with 3"):
        distance(x, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="y must be finite"):
        distance(x, np.full((4, 2), np.nan))
    with pytest.raises(ValueError, match="directions = 0"):
        sliced_wasserstein(x, x, directions=0)
