"""Oracles: closed forms, a double loop over probabilities, and values that torch-fidelity gave (fixtures)."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from evaluation.inception_score import inception_score, inception_score_of_blocks


def draws(count=200, classes=7, seed=0):
    return 3 * np.random.default_rng(seed).standard_normal((count, classes))


def by_loops(logits):
    """exp of the mean divergence, from probabilities one by one."""
    p = np.array([[np.exp(v) / sum(np.exp(w) for w in row) for v in row] for row in logits])
    mean = p.mean(axis=0)
    return np.exp(np.mean([sum(a * np.log(a / b) for a, b in zip(row, mean)) for row in p]))


def test_inception_score_is_that_of_torch_fidelity():
    from scripts.record_fixtures import metric_inputs

    logits = metric_inputs()["logits"]
    with np.load(Path(__file__).parent / "fixtures" / "torch_fidelity_metrics.npz") as file:
        mean, deviation = float(file["isc_mean"]), float(file["isc_std"])
    assert inception_score(logits) == pytest.approx((mean, deviation), rel=1e-5)
    for options in ({"seed": None}, {"seed": 0}, {"splits": 9}):
        assert inception_score(logits, **options) != pytest.approx((mean, deviation), rel=1e-4)


@pytest.mark.parametrize("splits", [1, 3, 10])
def test_equal_parts_of_the_shuffled_samples(splits):
    logits = draws(203)
    order = np.random.RandomState(5).permutation(203)
    edges = [i * 203 // splits for i in range(splits + 1)]
    scores = [by_loops(logits[order[a:b]]) for a, b in itertools.pairwise(edges)]
    assert inception_score(logits, splits=splits, seed=5) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)


def test_consecutive_blocks_and_the_rest():
    logits = draws(203)
    scores = [by_loops(logits[a : a + 80]) for a in (0, 80, 160)]
    assert inception_score_of_blocks(logits, block=80) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-10)
    large = draws(11_000, 3)
    scores = [by_loops(part) for part in (large[:5000], large[5000:10_000], large[10_000:])]
    assert inception_score_of_blocks(large)[0] == pytest.approx(np.mean(scores), rel=1e-10)


@pytest.mark.parametrize("certainty", [50.0, 1e5])
def test_closed_forms(certainty):
    """Uniform predictions score 1, certain ones of C equally frequent classes score C; also where exp underflows."""
    classes = np.arange(100) % 5
    certain = certainty * np.eye(8)[classes]
    assert inception_score(np.ones((100, 8)), splits=4) == pytest.approx((1, 0))
    assert inception_score(certain, splits=1) == pytest.approx((5, 0))
    assert inception_score_of_blocks(certain, block=50) == pytest.approx((5, 0))
    # In the order of their classes a block has one class only, unless they are shuffled.
    ordered = certain[np.argsort(classes, kind="stable")]
    assert inception_score_of_blocks(ordered, block=20) == pytest.approx((1, 0))
    assert inception_score(ordered, splits=5)[0] > 4


def test_adding_a_constant_to_a_row_changes_nothing():
    logits = draws()
    shifted = logits + 1e3 * np.random.default_rng(1).standard_normal((len(logits), 1))
    assert inception_score(shifted) == pytest.approx(inception_score(logits), rel=1e-9)


def test_what_has_no_score_is_refused():
    for splits in (0, 201):
        with pytest.raises(ValueError, match=rf"splits must lie in 1 ... 200.*got {splits}"):
            inception_score(draws(), splits=splits)
    with pytest.raises(ValueError, match="block must be at least 1"):
        inception_score_of_blocks(draws(), block=0)
    for score in (inception_score, inception_score_of_blocks):
        with pytest.raises(ValueError, match="logits must be finite"):
            score(np.full((20, 3), np.nan))
        with pytest.raises(ValueError, match="at least 2 samples"):
            score(np.zeros((1, 3)))
