"""Counter-based words: golden numbers, skipping, uniformity."""

import hashlib

import numpy as np
from scipy import stats

from data import randomness, splits


def philox4x64(counter, key):
    """Philox 4x64-10 in Python integers, from the paper's definition (Salmon et al. 2011, section 3.3)."""
    mask = 2**64 - 1
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (right >> 64) ^ counter[1] ^ key[0],
            right & mask,
            (left >> 64) ^ counter[3] ^ key[1],
            left & mask,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) & mask, (key[1] + 0xBB67AE8584CAA73B) & mask]
    return counter


def test_words_are_the_published_philox():
    # The known answer that the authors' library publishes for zero counter and key.
    known = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox4x64([0, 0, 0, 0], [0, 0]) == known
    # NumPy steps the counter before each block of four.
    expected = philox4x64([1, 0, 0, 3], [5, 9]) + philox4x64([2, 0, 0, 3], [5, 9])
    assert randomness.words(8, seed=5, purpose=3, index=9).tolist() == expected


def test_start_skips_exactly():
    whole = randomness.words(64, 3, randomness.DEQUANTISE, 2)
    np.testing.assert_array_equal(randomness.words(20, 3, randomness.DEQUANTISE, 2, start=24), whole[24:44])


def test_purposes_indices_and_seeds_have_streams_of_their_own():
    streams = [randomness.words(4, seed, purpose, index) for seed in (0, 1) for purpose in (0, 1) for index in (0, 1)]
    assert len({word for stream in streams for word in stream.tolist()}) == 32


def test_uniforms_are_uniform():
    draws = randomness.uniforms((20_000,), 11, randomness.POINTS)
    assert draws.min() >= 0 and draws.max() < 1
    assert stats.kstest(draws, "uniform").pvalue > 1e-3


def test_permutations_are_uniform_over_all_orders():
    counts = np.zeros((4, 4), int)
    for index in range(4000):
        counts[np.arange(4), randomness.permutation(4, 1, randomness.SHUFFLE, index)] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_key_words_do_not_depend_on_the_other_keys():
    both = splits.key_words(["b", "a"], 0)
    assert both[1] == splits.key_words(["a"], 0)[0]
    assert both[1] != splits.key_words(["a"], 1)[0]
    assert int(both[1]) == int.from_bytes(hashlib.sha256(b"0:a").digest()[:8], "little")


def test_stratified_counts_per_class():
    labels = np.repeat([0, 1, 2], [100, 57, 3])
    held_out = splits.stratified(splits.position_words(160, 0), labels, 0.2)
    assert np.bincount(labels[held_out]).tolist() == [20, 11, 1]
    assert sorted([*splits.take("train", held_out), *splits.take("test", held_out)]) == list(range(160))
