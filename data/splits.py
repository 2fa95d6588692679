"""Which examples are held out.

Every example gets one 64-bit word, from its position (`position_words`) or from its name (`key_words`); the
examples with the smallest words are held out. By name, an image stays on its side when others come or go.
The split seed is a constant of the data set, independent of the training seed: runs with other seeds are
measured on the same examples.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int, Integer, UInt64

from data import randomness


def position_words(count: int, seed: int) -> UInt64[np.ndarray, "count"]:
    """One word per position, for sets whose examples have no names."""
    return randomness.words(count, seed, randomness.SPLIT)


def key_words(keys: Iterable[str], seed: int) -> UInt64[np.ndarray, "n"]:
    """One word per key: the first eight bytes of the sha256 of "<seed>:<key>"."""
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8] for key in keys]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)


def stratified(
    words: UInt64[np.ndarray, "n"], labels: Integer[np.ndarray, "n"], fraction: float
) -> Bool[np.ndarray, "n"]:
    """Hold out the round(fraction * count) examples of each class with the smallest words: True = held out."""
    held_out = np.zeros(len(words), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(words[members], kind="stable")]
        held_out[order[: round(fraction * len(members))]] = True
    return held_out


def threshold(words: UInt64[np.ndarray, "n"], fraction: float) -> Bool[np.ndarray, "n"]:
    """Hold out every example whose word, read as a number in [0, 1), is below `fraction`: True = held out."""
    return words < np.uint64(fraction * 2.0**64)


def take(split: str, held_out: Bool[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """The indices of split "train" (not held out) or "test" (held out), ascending."""
    return np.flatnonzero(held_out if split == "test" else ~held_out)
