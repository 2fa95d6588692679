"""Counter-based random words: draw number i of a purpose is a function of (seed, purpose, index, i) alone.

Everything random in `data` (splits, order, augmentation, toy points) comes from here. The words are those of
Philox 4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), keyed by (seed, index) with
the purpose in the counter's highest word: no state has to be saved, and purposes never share a stream.
Only raw words are used: NumPy keeps the streams of its bit generators fixed for ever, those of
`Generator.permutation` and its kin it does not.
"""

import numpy as np
from jaxtyping import Float, Int, UInt64

SPLIT, SHUFFLE, FLIP, SHIFT, DEQUANTISE, POINTS = range(6)
WORDS_PER_COUNT = 4  # one step of Philox's counter yields four 64-bit words


def words(count: int, seed: int, purpose: int, index: int = 0, start: int = 0) -> UInt64[np.ndarray, "count"]:
    """Uniform 64-bit words number start .. start + count - 1 of the stream (seed, purpose, index).

    Args:
      start: number of words to skip, a multiple of WORDS_PER_COUNT.
    """
    counter = [start // WORDS_PER_COUNT, 0, 0, purpose]
    generator = np.random.Philox(key=np.array([seed, index], np.uint64), counter=np.array(counter, np.uint64))
    return generator.random_raw(count)


def uniforms(shape: tuple[int, ...], seed: int, purpose: int, index: int = 0) -> Float[np.ndarray, "..."]:
    """Float64 draws in [0, 1) with 53 random bits each."""
    return (words(int(np.prod(shape)), seed, purpose, index) >> np.uint64(11)).reshape(shape) * 2.0**-53


def permutation(count: int, seed: int, purpose: int, index: int = 0) -> Int[np.ndarray, "count"]:
    """A uniformly random order of 0 .. count - 1: the ranks of `count` independent words."""
    return np.argsort(words(count, seed, purpose, index), kind="stable")
