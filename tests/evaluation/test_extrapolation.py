"""Oracles: numpy's and scipy's least squares, distances that are exactly a + b / N, the known bias of Gaussians."""

import numpy as np
import pytest
from scipy import stats

from evaluation.distances import frechet_distance
from evaluation.extrapolation import extrapolate, fit_line, frechet_distance_infinity
from evaluation.moments import Moments, moments

COUNTS = tuple(int(n) for n in np.linspace(5000, 50000, 15))


def test_the_line_is_that_of_least_squares():
    random = np.random.default_rng(0)
    distances = tuple(3 + 4000 / np.array(COUNTS) + 0.05 * random.standard_normal(15))
    fit = fit_line(COUNTS, distances)
    design = np.stack([np.ones(15), 1 / np.array(COUNTS)], axis=1)
    intercept, slope = np.linalg.lstsq(design, np.array(distances), rcond=None)[0]
    assert fit.value == pytest.approx(intercept, abs=1e-9) and fit.slope == pytest.approx(slope, rel=1e-9)
    assert fit.standard_error == pytest.approx(stats.linregress(1 / np.array(COUNTS), distances).intercept_stderr)
    # Control: a line in N, or in the square root of 1 / N, has another intercept.
    for x in (np.array(COUNTS), np.array(COUNTS) ** -0.5):
        assert abs(np.polyfit(x, distances, 1)[1] - fit.value) > 0.01


def test_a_distance_with_a_bias_of_one_over_n_is_freed_of_it():
    features, asked = np.zeros((1200, 2)), []
    features[:, 0] = np.arange(1200)

    def distance_of(rows):
        asked.append(rows[:, 0].astype(int))
        return 7.25 + 310.0 / len(rows)

    fit = extrapolate(features, distance_of, smallest=100)
    assert fit.value == pytest.approx(7.25, abs=1e-6) and fit.slope == pytest.approx(310, abs=1e-6)
    assert fit.counts == tuple(map(len, asked)) == tuple(int(n) for n in np.linspace(100, 1200, 15))
    assert fit.distances[-1] == 7.25 + 310 / 1200
    assert all(len(set(rows)) == len(rows) for rows in asked)  # without replacement
    assert sorted(asked[-1]) == list(range(1200)) and not set(asked[0]) <= set(asked[1])  # each subset is a draw


def test_the_seed_decides():
    features = np.random.default_rng(1).standard_normal((400, 3))
    reference = moments(np.random.default_rng(2).standard_normal((400, 3)))
    fits = [frechet_distance_infinity(features, reference, smallest=50, seed=seed) for seed in (0, 0, 1)]
    assert fits[0] == fits[1] and fits[0].distances[:-1] != fits[2].distances[:-1]
    assert fits[0].distances[-1] == pytest.approx(frechet_distance(moments(features), reference), abs=1e-12)


def test_the_frechet_distance_of_infinitely_many_draws():
    """N(0.3, 1) in 10 dimensions from N(0, 1), whose distance is 0.9: closer than that of all samples, which is biased
    by 3000 / N. Over many sets, since one intercept scatters."""
    reference = Moments(None, np.zeros(10), np.eye(10))
    random = np.random.default_rng(3)
    sets = [0.3 + random.standard_normal((400, 10)) for _ in range(40)]
    limits = np.array([frechet_distance_infinity(x, reference, smallest=80).value for x in sets])
    finite = np.array([frechet_distance(moments(x), reference) for x in sets])
    error = limits.std() / np.sqrt(len(sets))
    assert abs(limits.mean() - 0.9) < 3 * error
    assert finite.mean() - 0.9 > 4 * error  # control


def test_too_few_samples_are_refused():
    features = np.zeros((9999, 2))
    with pytest.raises(ValueError, match=r"subsets of 5000 .* needs at least twice as many samples, got 9999"):
        frechet_distance_infinity(features, Moments(None, np.zeros(2), np.eye(2)))
    with pytest.raises(ValueError, match="at least 2"):
        extrapolate(features, len, smallest=1)
    with pytest.raises(ValueError, match="at least 2 sizes"):
        fit_line((5, 5, 5), (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="3 points"):
        fit_line((5, 6), (1.0, 2.0))
    with pytest.raises(ValueError, match="one dimension"):
        frechet_distance_infinity(np.ones((8, 3)), Moments(None, np.zeros(2), np.eye(2)), smallest=4)
