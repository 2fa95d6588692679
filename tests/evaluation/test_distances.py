"""Oracles: scipy.linalg.sqrtm, the nuclear norm of the data, closed forms of Gaussians, double loops."""

import numpy as np
import pytest
from scipy import linalg

from evaluation.distances import frechet_distance, frechet_distance_of_features, kernel_distance, moments


def gaussian_pair(n, m, d, seed=0):
    """Two sets with different, non-commuting covariances."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, d)) @ random.standard_normal((d, d)) / np.sqrt(d)
    y = random.standard_normal((m, d)) @ random.standard_normal((d, d)) / np.sqrt(d) + 0.3
    return x, y


def frechet_by_sqrtm(x, y, ddof=1, factor=2.0):
    s1, s2 = np.cov(x.T, ddof=ddof), np.cov(y.T, ddof=ddof)
    root = linalg.sqrtm(s1 @ s2)
    difference = x.mean(0) - y.mean(0)
    return difference @ difference + np.trace(s1) + np.trace(s2) - factor * np.trace(root).real


def test_frechet_distance_full_rank_is_that_of_sqrtm():
    x, y = gaussian_pair(500, 400, 48)
    assert frechet_distance_of_features(x, y) == pytest.approx(frechet_by_sqrtm(x, y), rel=1e-8)


@pytest.mark.parametrize("mutation", [{"ddof": 0}, {"factor": 1.0}])
def test_the_oracle_tells_a_wrong_divisor_or_factor(mutation):
    x, y = gaussian_pair(500, 400, 48)
    assert frechet_distance_of_features(x, y) != pytest.approx(frechet_by_sqrtm(x, y, **mutation), rel=1e-4)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 90)])
def test_frechet_distance_of_fewer_samples_than_dimensions(n, m):
    # tr (S1 S2)^(1/2) is the nuclear norm of A B^T for S1 = A^T A, S2 = B^T B: no square root of a singular matrix.
    x, y = gaussian_pair(n, m, 64)
    a, b = (z - z.mean(0) for z in (x, y))
    a, b = a / np.sqrt(n - 1), b / np.sqrt(m - 1)
    trace = (a**2).sum() + (b**2).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + trace - 2 * linalg.svdvals(a @ b.T).sum()
    assert frechet_distance_of_features(x, y) == pytest.approx(expected, abs=5e-6 * trace)


def test_frechet_distance_of_commuting_covariances():
    random = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(random.standard_normal((20, 20)))
    a, b = random.uniform(0, 3, 20), random.uniform(0, 3, 20)
    a[:4], b[2:6] = 0.0, 0.0  # singular in different directions
    mean1, mean2 = random.standard_normal((2, 20))
    got = frechet_distance(mean1, (rotation * a**2) @ rotation.T, mean2, (rotation * b**2) @ rotation.T)
    assert got == pytest.approx(((mean1 - mean2) ** 2).sum() + ((a - b) ** 2).sum(), rel=1e-6)


def test_scaling_the_features_scales_the_frechet_distance_by_its_square():
    x, y = gaussian_pair(100, 100, 10)
    assert frechet_distance_of_features(7 * x, 7 * y) == pytest.approx(49 * frechet_distance_of_features(x, y))


@pytest.mark.parametrize(("n", "tolerance"), [(500, 1e-9), (20, 1e-5)])
def test_frechet_distance_of_a_set_to_itself_is_zero(n, tolerance):
    x, _ = gaussian_pair(n, 2, 40)
    assert abs(frechet_distance_of_features(x, x)) < tolerance


def test_moments_of_float32_with_a_large_mean_are_float64():
    random = np.random.default_rng(2)
    x = (1000 + random.standard_normal((2000, 5))).astype(np.float32)
    mean, covariance = moments(x)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(x.astype(np.float64).T), rtol=1e-9, atol=1e-10)


def bad(value):
    x = np.ones((5, 3))
    x[2, 1] = value
    return x


@pytest.mark.parametrize("distance", [frechet_distance_of_features, kernel_distance])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((1, 3)), "at least 2 samples, got 1"),
        (bad(np.nan), "finite, but 1 of 5"),
        (bad(np.inf), "finite"),
        (np.ones((5, 4)), "4 and y with 3"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(distance, x, message):
    with pytest.raises(ValueError, match=message):
        distance(x, np.ones((5, 3)))


def test_moments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one D"):
        frechet_distance(np.zeros(3), np.eye(3), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="covariance2 must be symmetric"):
        frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.zeros(2), np.eye(2), np.array([np.nan, 0.0]), np.eye(2))


def mmd_by_loops(x, y, *, diagonal=False):
    def kernel(a, b):
        return (sum(float(p) * float(q) for p, q in zip(a, b)) / len(a) + 1.0) ** 3

    def within(z):
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if diagonal or i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(p, q) for p in x for q in y]
    return within(x) + within(y) - 2 * sum(across) / len(across)


def test_kernel_distance_is_that_of_a_double_loop_also_for_unequal_sizes():
    x, y = gaussian_pair(23, 31, 6)
    mean, deviation = kernel_distance(x.astype(np.float32), y.astype(np.float32))
    expected = mmd_by_loops(x.astype(np.float32), y.astype(np.float32))
    assert mean == pytest.approx(expected, rel=1e-10)
    assert deviation == 0.0
    assert mean != pytest.approx(mmd_by_loops(x, y, diagonal=True), rel=1e-3)


def test_kernel_distance_of_constant_sets_has_a_closed_form():
    # All x are 0 and all y are c in one dimension: 1 + (c^2 + 1)^3 - 2.
    assert kernel_distance(np.zeros((3, 1)), np.full((4, 1), 0.7))[0] == pytest.approx((0.49 + 1) ** 3 - 1)


def test_kernel_distance_is_unbiased_for_gaussians():
    # (s + 1)^3 = 1 + 3 s + 3 s^2 + s^3, so in one dimension the squared discrepancy is a weighted sum of squared
    # differences of raw moments: N(a, 1) has a, a^2 + 1, a^3 + 3 a.
    random = np.random.default_rng(3)
    for a, b in [(0.0, 0.0), (0.0, 0.5)]:
        truth = 3 * (a - b) ** 2 + 3 * (a**2 - b**2) ** 2 + (a**3 + 3 * a - b**3 - 3 * b) ** 2
        draws = [(a + random.standard_normal((20, 1)), b + random.standard_normal((30, 1))) for _ in range(1000)]
        estimates = np.array([kernel_distance(x, y)[0] for x, y in draws])
        error = estimates.std() / np.sqrt(len(estimates))
        assert abs(estimates.mean() - truth) < 4 * error
        # Control: with the diagonals in (the V-statistic) the same draws are far off.
        within = [((x[:, 0] ** 2 + 1) ** 3).mean() / len(x) for pair in draws for x in pair]
        assert sum(within) / len(draws) > 8 * error


def test_kernel_distance_over_subsets():
    x, y = gaussian_pair(300, 500, 8)
    mean, deviation = kernel_distance(x, y, subsets=40, subset_size=60)
    whole, _ = kernel_distance(x, y)
    assert abs(mean - whole) < 4 * deviation / np.sqrt(40)
    assert deviation > 0
    assert kernel_distance(x, y, subsets=40, subset_size=60) == (mean, deviation)
    assert kernel_distance(x, y, subsets=40, subset_size=60, seed=1) != (mean, deviation)


def test_subsets_are_drawn_without_replacement():
    # 300 distinct points of both sets in one subset: the estimate of the smaller set whole, whatever the order.
    x, _ = gaussian_pair(300, 2, 8)
    y = np.repeat(x.mean(0, keepdims=True), 400, axis=0)
    mean, deviation = kernel_distance(x, y, subsets=5, subset_size=350)
    assert mean == pytest.approx(kernel_distance(x, y[:300])[0], rel=1e-10)
    assert deviation == pytest.approx(0.0, abs=1e-10)


def test_kernel_distance_refuses_empty_subsets():
    x, y = gaussian_pair(9, 9, 2)
    for options in ({"subset_size": 1}, {"subsets": 0}):
        with pytest.raises(ValueError, match="subset_size >= 2 and subsets >= 1"):
            kernel_distance(x, y, **options)
