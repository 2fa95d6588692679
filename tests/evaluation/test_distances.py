"""Oracles: scipy.linalg.sqrtm, the nuclear norm of the data, closed forms of Gaussians, double loops, and values that
torch-fidelity gave (fixtures, recorded by scripts/record_fixtures.py)."""

import time
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg

from evaluation.distances import (
    cmmd,
    frechet_distance,
    frechet_distance_of_features,
    frechet_distance_to,
    kernel_distance,
)
from evaluation.moments import Moments, moments


@pytest.fixture(scope="module")
def recorded():
    """(inputs of torch-fidelity, what it gave for them)."""
    from scripts.record_fixtures import metric_inputs

    with np.load(Path(__file__).parent / "fixtures" / "torch_fidelity_metrics.npz") as file:
        return metric_inputs(), {name: file[name] for name in file.files}


def gaussian(mean, covariance):
    return Moments(None, np.asarray(mean, np.float64), np.asarray(covariance, np.float64))


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
    got = frechet_distance(
        gaussian(mean1, (rotation * a**2) @ rotation.T), gaussian(mean2, (rotation * b**2) @ rotation.T)
    )
    assert got == pytest.approx(((mean1 - mean2) ** 2).sum() + ((a - b) ** 2).sum(), rel=1e-6)


def test_scaling_the_features_scales_the_frechet_distance_by_its_square():
    x, y = gaussian_pair(100, 100, 10)
    assert frechet_distance_of_features(7 * x, 7 * y) == pytest.approx(49 * frechet_distance_of_features(x, y))


@pytest.mark.parametrize(("n", "tolerance"), [(500, 1e-9), (20, 1e-5)])
def test_frechet_distance_of_a_set_to_itself_is_zero(n, tolerance):
    x, _ = gaussian_pair(n, 2, 40)
    assert abs(frechet_distance_of_features(x, x)) < tolerance


def test_one_reference_for_several_distances():
    x, y = gaussian_pair(60, 50, 12)
    sets = [moments(z) for z in (y, 2 * y, x)]
    distance = frechet_distance_to(moments(x))
    got = [distance(other) for other in sets]
    assert got == [frechet_distance(moments(x), other) for other in sets]
    assert got == pytest.approx([frechet_distance(other, moments(x)) for other in sets], abs=1e-9)  # symmetric
    assert got[1] > got[0] > 0.1 > 1e-9 > abs(got[2])


def test_frechet_distance_is_that_of_torch_fidelity(recorded):
    inputs, values = recorded
    assert frechet_distance_of_features(inputs["x"], inputs["y"]) == pytest.approx(float(values["fid"]), rel=1e-6)


def test_float32_would_not_do():
    """Equal Gaussians whose eigenvalues span nine decades, of trace 500."""
    random = np.random.default_rng(4)
    rotation, _ = np.linalg.qr(random.standard_normal((100, 100)))
    covariance = (rotation * np.logspace(2, -7, 100)) @ rotation.T
    assert abs(frechet_distance(*[gaussian(np.zeros(100), covariance)] * 2)) < 2e-6
    single = covariance.astype(np.float32)
    eigenvalues, vectors = linalg.eigh(single)
    root = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
    product = linalg.eigvalsh(root @ single @ root)
    assert product.dtype == np.float32
    assert abs(2 * np.trace(single) - 2 * np.sqrt(np.clip(product, 0, None)).sum()) > 1e-3


@pytest.mark.slow
def test_speed_of_the_frechet_distance():
    """Of 2048 dimensions it takes 3 s on two quiet cores: twice one eigendecomposition, which is the unit here, since
    others may be at work."""
    a, b = map(moments, np.random.default_rng(0).standard_normal((2, 1500, 1024)))

    def seconds(run):
        start = time.monotonic()
        run()
        return time.monotonic() - start

    unit = min(seconds(lambda: linalg.eigh(a.covariance)) for _ in range(3))
    assert min(seconds(lambda: frechet_distance(a, b)) for _ in range(3)) < 5 * unit


def bad(value):
    x = np.ones((5, 3))
    x[2, 1] = value
    return x


@pytest.mark.parametrize("distance", [frechet_distance_of_features, kernel_distance, cmmd])
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


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (gaussian(np.zeros(2), np.eye(2)), "one dimension D, got 3 and 2"),
        (gaussian(np.zeros(3), np.eye(2)), r"the other set: the mean must have shape \[D\]"),
        (gaussian(np.zeros((1, 3)), np.eye(3)), r"got \(1, 3\) and \(3, 3\)"),
        (gaussian([0, np.nan, 0], np.eye(3)), "the other set: the mean and the covariance must be finite"),
        (gaussian(np.zeros(3), np.triu(np.ones((3, 3)))), "the other set: the covariance must be symmetric"),
    ],
)
def test_moments_that_do_not_fit_are_refused(other, message):
    fine = gaussian(np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match=message):
        frechet_distance(fine, other)
    mirrored = message.replace("the other set", "the reference").replace("3 and 2", "2 and 3")
    with pytest.raises(ValueError, match=mirrored):
        frechet_distance(other, fine)


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


def test_kernel_distance_is_that_of_torch_fidelity(recorded):
    """The same draws: seed 2020, the generated set's before the real one's."""
    inputs, values = recorded
    options = {"subsets": 50, "subset_size": 500}
    mean, deviation = kernel_distance(inputs["x"], inputs["y"], **options)
    assert mean == pytest.approx(float(values["kid_mean"]), rel=1e-6)
    assert deviation == pytest.approx(float(values["kid_std"]), rel=1e-4)
    # Controls: other subsets do not give it.
    for wrong in (kernel_distance(inputs["x"], inputs["y"], seed=2021, **options),
                  kernel_distance(inputs["y"], inputs["x"], **options)):  # fmt: skip
        assert wrong[0] != pytest.approx(float(values["kid_mean"]), rel=1e-4)


def test_kernel_distance_refuses_empty_subsets():
    x, y = gaussian_pair(9, 9, 2)
    for options in ({"subset_size": 1}, {"subsets": 0}):
        with pytest.raises(ValueError, match="subset_size >= 2 and subsets >= 1"):
            kernel_distance(x, y, **options)


def cmmd_by_loops(x, y, *, width=10.0, diagonal=True):
    def mean(a, b, same):
        terms = [np.exp(-sum((p - q) ** 2 for p, q in zip(u, v)) / (2 * width**2))
                 for i, u in enumerate(a) for j, v in enumerate(b) if diagonal or not same or i != j]  # fmt: skip
        return sum(terms) / len(terms)

    x, y = x.astype(np.longdouble), y.astype(np.longdouble)
    return float(1000 * (mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)))


@pytest.mark.parametrize("length", [1.0, 20.0])
def test_cmmd_is_that_of_a_double_loop(length):
    """Of unit vectors, as CLIP's embeddings are, and of vectors that the kernel tells apart."""
    x, y = gaussian_pair(23, 31, 6)
    x, y = (length * z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    assert cmmd(x, y) == pytest.approx(cmmd_by_loops(x, y), rel=1e-9)
    for mutation in ({"width": np.sqrt(10.0)}, {"diagonal": False}):
        assert cmmd(x, y) != pytest.approx(cmmd_by_loops(x, y, **mutation), rel=1e-3)


def test_cmmd_of_points_and_of_equal_sets(monkeypatch):
    assert cmmd(np.zeros((2, 1)), np.full((3, 1), 5.0)) == pytest.approx(2000 * (1 - np.exp(-25 / 200)), rel=1e-12)
    x, y = gaussian_pair(70, 50, 6)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-10)
    whole = cmmd(x.astype(np.float32), y.astype(np.float32))
    monkeypatch.setattr("evaluation.distances._CMMD_ROWS", 16)
    assert cmmd(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(whole, rel=1e-10)
