"""Oracles: a double loop over all pairs, copies, and independent draws of one distribution."""

import numpy as np
import pytest

import evaluation.neighbours as neighbours
from evaluation.neighbours import memorisation_ratio, nearest_distances


def images(n, seed, shape=(4, 4, 1)):
    return np.random.default_rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)


def by_loops(queries, references, exclude_self=False):
    return [
        min(
            np.sqrt(((q.astype(np.float64) - r) ** 2).sum())
            for j, r in enumerate(references)
            if not (exclude_self and i == j)
        )
        for i, q in enumerate(queries)
    ]


@pytest.mark.parametrize("entries", [2**23, 100, 1])
def test_nearest_distances_are_those_of_a_double_loop_for_any_block_size(monkeypatch, entries):
    monkeypatch.setattr(neighbours, "_BLOCK_ENTRIES", entries)
    queries, references = images(37, 0), images(29, 1)
    np.testing.assert_allclose(nearest_distances(queries, references), by_loops(queries, references), rtol=1e-12)
    own = nearest_distances(queries, queries, exclude_self=True)
    np.testing.assert_allclose(own, by_loops(queries, queries, exclude_self=True), rtol=1e-12)
    assert own.min() > 0


def test_a_copy_is_at_distance_zero_and_a_near_copy_is_not():
    references = images(50, 0, (16, 16, 3))
    near = references.copy()
    near[:, 0, 0, 0] += np.float32(1e-4)
    assert (nearest_distances(references[::-1], references) == 0).all()
    moved = np.abs(near[:, 0, 0, 0].astype(np.float64) - references[:, 0, 0, 0])
    np.testing.assert_allclose(nearest_distances(near, references), moved, rtol=1e-9)


def test_excluding_self_still_sees_a_second_copy():
    once = images(5, 0)
    assert (nearest_distances(np.concatenate([once, once]), np.concatenate([once, once]), exclude_self=True) == 0).all()


def test_memorisation_ratio_of_copies_and_of_new_draws():
    train, test, fresh = images(400, 0), images(200, 1), images(200, 2)
    assert memorisation_ratio(train[:100], train, test) == 0.0
    assert memorisation_ratio(fresh, train, test) == pytest.approx(1.0, abs=0.05)
    halfway = train[:200] + 0.5 * (test - train[:200])
    assert 0.2 < memorisation_ratio(halfway, train, test) < 0.9


def test_sets_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        nearest_distances(images(3, 0), images(3, 0, (4, 4, 3)))
    with pytest.raises(ValueError, match="references must hold at least one"):
        nearest_distances(images(3, 0), images(0, 0))
    with pytest.raises(ValueError, match="exclude_self"):
        nearest_distances(images(3, 0), images(4, 0), exclude_self=True)
    with pytest.raises(ValueError, match="queries must be finite"):
        nearest_distances(np.full((1, 2, 2, 1), np.nan, np.float32), images(3, 0, (2, 2, 1)))
    with pytest.raises(ValueError, match="test images are in the training set"):
        memorisation_ratio(images(3, 1), images(3, 0), images(3, 0))
