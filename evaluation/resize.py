"""The rules by which images are brought to a detector's size; a distance depends on which one is used.

  tf1    bilinear as in TensorFlow 1: no half-pixel offset, no antialias. TTUR, ADM, torch-fidelity, EDM.
             y_i = x_lo + (x_hi - x_lo) (s - lo),   s = i in/out,  lo = floor(s),  hi = min(lo + 1, in - 1)        (1)
  torch  bilinear with half-pixel centres, no antialias. pytorch-fid.
             as (1) with s = (i + 1/2) in/out - 1/2, clipped to 0..in-1                                            (2)
  clean  bicubic with a = -1/2, widened by in/out where that is above 1 (antialias), in floating point as Pillow's
         mode "F", clipped to 0..255. clean-fid (Parmar et al. 2022).
             y_i = sum_j k((j - s_i) / w) x_j / sum_j k((j - s_i) / w),   w = max(in/out, 1),  s_i of (2) unclipped  (3)
             k(d) = 3/2 |d|^3 - 5/2 |d|^2 + 1 below 1, -1/2 |d|^3 + 5/2 |d|^2 - 4 |d| + 2 below 2                    (4)

Each works on one axis after the other.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def _interpolated(x: Float[Array, "n h w c"], axis: int, positions: np.ndarray) -> Float[Array, "n h2 w2 c"]:
    """Linear interpolation between neighbours along `axis` at `positions` [out] float32, equation (1)."""
    low = np.floor(positions).astype(np.int32)
    high = np.minimum(low + 1, x.shape[axis] - 1)
    weight = jnp.expand_dims(positions - low.astype(np.float32), [i for i in range(4) if i != axis])
    x_low, x_high = (jnp.take(x, index, axis=axis) for index in (low, high))
    return x_low + (x_high - x_low) * weight


def tf1(images: Float[Array, "n h w c"], size: int) -> Float[Array, "n size size c"]:
    """Equation (1), in float32 as TensorFlow computes it."""
    for axis in (2, 1):
        scale = np.float32(images.shape[axis] / size)
        images = _interpolated(images, axis, np.arange(size, dtype=np.float32) * scale)
    return images


def torch(images: Float[Array, "n h w c"], size: int) -> Float[Array, "n size size c"]:
    """Equation (2)."""
    for axis in (2, 1):
        length = images.shape[axis]
        # PyTorch's float32 ratio: at 1024 pixels it moves a position by up to 6e-5, white noise by 0.01 grey levels.
        positions = (np.arange(size) + 0.5) * float(np.float32(length / size)) - 0.5
        images = _interpolated(images, axis, np.clip(positions, 0, length - 1).astype(np.float32))
    return images


def _bicubic_matrix(length: int, size: int) -> np.ndarray:
    """[size, length] weights of equations (3) and (4)."""
    centres = (np.arange(size) + 0.5) * (length / size) - 0.5
    distance = np.abs(np.arange(length) - centres[:, None]) / max(length / size, 1.0)
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))  # (4)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def clean(images: Float[Array, "n h w c"], size: int) -> Float[Array, "n size size c"]:
    """Equation (3)."""
    for axis in (2, 1):
        matrix = _bicubic_matrix(images.shape[axis], size)
        product = jnp.tensordot(images, matrix, axes=(axis, 1), precision=jax.lax.Precision.HIGHEST)
        images = jnp.moveaxis(product, -1, axis)
    return jnp.clip(images, 0.0, 255.0)


Resize = Callable[[Float[Array, "n h w c"], int], Float[Array, "n size size c"]]
RESIZES: dict[str, Resize] = {"tf1": tf1, "torch": torch, "clean": clean}
