"""Randomness as a function of (seed, stream, index): nothing to save, nothing to split.

Every use of randomness has a named stream; the key of step n or image i is folded from it. A resumed run therefore
draws what the uninterrupted run would have drawn, and image i is the same whatever batch it is drawn in.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def stream_key(seed: int, stream: str) -> Key[Array, ""]:
    """The root key of a named stream, such as "train" or "sample"."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def image_keys(seed: int, indices: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One key per generated image, from (seed, index of the image)."""
    return jax.vmap(lambda index: jax.random.fold_in(stream_key(seed, "sample"), index))(indices)


def image_noise(keys: Key[Array, " batch"], index: Any, shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """Standard normal noise, one independent draw per image, as a function of (the image's key, index) alone.

    `index` is one integer for all images, or [B] with each image's own.
    """
    return jax.vmap(lambda key, index: jax.random.normal(jax.random.fold_in(key, index), shape))(
        keys, jnp.broadcast_to(index, keys.shape)
    )


def image_stream(keys: Key[Array, " batch"], stream: str) -> Key[Array, " batch"]:
    """The images' keys of a named stream, independent of the noise that is drawn from `keys` themselves."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(stream.encode()))


def image_uniform(keys: Key[Array, " batch"], index: Any) -> Float[Array, " batch"]:
    """Uniform on [0, 1), one draw per image; `index` as in `image_noise`."""
    return jax.vmap(lambda key, index: jax.random.uniform(jax.random.fold_in(key, index)))(
        keys, jnp.broadcast_to(index, keys.shape)
    )
