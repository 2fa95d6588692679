"""Oracles: double loops in float64; hand-made sets with ties; torch-fidelity's values (fixtures)."""

from pathlib import Path

import numpy as np
import pytest

import evaluation.precision_recall as module
from evaluation.precision_recall import density_coverage, precision_recall


def features(count, dimension=12, seed=0, shift=0.0):
    random = np.random.default_rng(seed)
    return (np.maximum(0, random.standard_normal((count, dimension)) + 0.4) + shift).astype(np.float32)


def squared_distances(a, b):
    return np.array([[((p - q) ** 2).sum() for q in b.astype(np.float64)] for p in a.astype(np.float64)])


def by_loops(real, generated, k, *, own=True):
    """((precision, recall), (density, coverage)); without `own`, a sample counts as its own first neighbour."""
    nth = k if own else k - 1
    real_radii, generated_radii = (np.sort(squared_distances(x, x), axis=1)[:, nth] for x in (real, generated))
    across = squared_distances(generated, real)
    precision = (across <= real_radii).any(axis=1).mean()
    recall = (across <= generated_radii[:, None]).any(axis=0).mean()
    inside = across < real_radii
    return (precision, recall), (inside.sum() / (k * len(generated)), inside.any(axis=0).mean())


@pytest.fixture(params=[(2**24, 2**18, 4), (300, 40, 4), (1, 1, 1)], ids=["large blocks", "small", "rows"])
def sizes(request, monkeypatch):
    for name, value in zip(("_PAIRS", "_NUMBERS", "_SPARE"), request.param):
        monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_counts_are_those_of_a_double_loop(k, shift, sizes):
    real, generated = features(90, shift=shift), 0.9 * features(70, seed=1, shift=shift / 0.9)
    expected = by_loops(real, generated, k)
    assert precision_recall(real, generated, k=k) == expected[0]
    assert density_coverage(real, generated, k=k) == expected[1]
    assert by_loops(real, generated, k, own=False) != expected  # control
    assert 0.1 < expected[0][0] < 1 and 0.1 < expected[0][1] < 1


def test_precision_and_recall_are_those_of_torch_fidelity():
    from scripts.record_fixtures import metric_inputs

    inputs = metric_inputs()
    with np.load(Path(__file__).parent / "fixtures" / "torch_fidelity_metrics.npz") as file:
        expected = float(file["precision"]), float(file["recall"])
    assert precision_recall(inputs["y"], inputs["x"]) == pytest.approx(expected, abs=1e-6)
    assert precision_recall(inputs["x"], inputs["y"]) != pytest.approx(expected, abs=1e-2)
    assert precision_recall(inputs["y"], inputs["x"], k=2) != pytest.approx(expected, abs=1e-2)


def test_pairs_that_the_screening_cannot_tell_apart_are_decided_exactly(sizes):
    """Points of a line, whose distances differ by far less than float32 resolves."""
    random = np.random.default_rng(2)
    real = np.concatenate([[[1e3]], 1e-7 * random.standard_normal((40, 1)), [[-1e3]] * 2])
    generated = np.concatenate([1e-7 * random.standard_normal((30, 1)), [[1e3]] * 2])
    expected = by_loops(real, generated, 3)
    assert precision_recall(real, generated) == expected[0]
    assert density_coverage(real, generated, k=3) == expected[1]


def test_a_tie_is_inside_for_precision_and_outside_for_density():
    """Real points 0, 1, 3: their nearest others are at 1, 1, 2. Generated points exactly on the rims."""
    real = np.array([[0.0], [1.0], [3.0]])
    on_rims = np.array([[-1.0], [2.0], [5.0]])
    assert precision_recall(real, on_rims, k=1).precision == 1
    assert density_coverage(real, on_rims, k=1) == (1 / 3, 1 / 3)  # 2 is inside the ball of 3
    assert precision_recall(real, on_rims + 1e-9, k=1).precision == 2 / 3  # 5 + 1e-9 has left the ball of 3 ...
    assert precision_recall(real, on_rims - 1e-9, k=1).precision == 2 / 3  # ... and -1 - 1e-9 that of 0


def test_copies(sizes):
    real = features(40)
    assert precision_recall(real, real) == (1, 1)
    density, coverage = density_coverage(real, real[::-1].copy(), k=3)
    assert coverage == 1 and density == 1  # itself and two nearer ones; the third is on the rim
    # Balls of radius 0 hold their own copies, and nothing else.
    collapsed = np.repeat(real[:1], 20, axis=0)
    assert precision_recall(real, collapsed) == (1, 1 / 40)
    assert density_coverage(collapsed, collapsed) == (0, 0)
    far = np.repeat(features(1, seed=3), 20, axis=0) + 50
    assert precision_recall(collapsed, collapsed) == (1, 1) and precision_recall(far, collapsed) == (0, 0)


def test_the_extremes_of_float32_do_not_overflow():
    real, generated = features(60).astype(np.float64), features(50, seed=1).astype(np.float64)
    expected = precision_recall(real, generated), density_coverage(real, generated)
    for factor in (2.0**100, 2.0**-100):
        assert (precision_recall(factor * real, factor * generated),
                density_coverage(factor * real, factor * generated)) == expected  # fmt: skip


def test_modes_that_are_missing_and_samples_that_are_off():
    real = np.concatenate([features(100), features(100, seed=1, shift=20.0)])
    half = features(100, seed=2)
    precision, recall = precision_recall(real, half)
    assert precision > 0.75 and 0.3 < recall <= 0.5
    off = np.concatenate([features(50, seed=3), features(50, seed=4, shift=100.0)])
    assert precision_recall(features(100), off).precision <= 0.5
    assert density_coverage(real, half).coverage <= 0.5 < density_coverage(real, half).density


def test_sets_that_do_not_fit_are_refused():
    for metric in (precision_recall, density_coverage):
        with pytest.raises(ValueError, match="real 12, generated 5"):
            metric(features(20), features(20, 5))
        with pytest.raises(ValueError, match="k = 20 with 20 real and 30 generated"):
            metric(features(20), features(30), k=20)
        with pytest.raises(ValueError, match="k must be at least 1"):
            metric(features(20), features(30), k=0)
        with pytest.raises(ValueError, match="generated must be finite"):
            metric(features(20), np.full((20, 12), np.inf, np.float32))
