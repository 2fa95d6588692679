"""Randomness as a function of (seed, stream, index): nothing to save, nothing to split.

Every use of randomness has a named stream; the key of step n or image i is folded from it. A resumed run therefore
draws what the uninterrupted run would have drawn, and image i is the same whatever batch it is drawn in.
"""

import zlib
from typing import Any

import jax
from jaxtyping import Array, Float, Int, Key


def stream_key(seed: int, stream: str) -> Key[Array, ""]:
    """The root key of a named stream, such as "train" or "sample"."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def image_keys(seed: int, indices: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One key per generated image, from (seed, index of the image)."""
    return jax.vmap(lambda index: jax.random.fold_in(stream_key(seed, "sample"), index))(indices)


def image_noise(keys: Key[Array, " batch"], index: Any, shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """Standard normal noise, one independent draw per image, as a function of (the image's key, index) alone."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(keys)
