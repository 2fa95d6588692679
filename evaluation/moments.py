"""Means and covariances of feature vectors: of an array in float64, or streamed on the devices in float32.

Streamed, of vectors f_i, i = 1 ... N, shifted by a fixed vector c near their mean (the mean of the first batch, say):

    n = sum_i m_i,   s = sum_i m_i (f_i - c),   M = sum_i m_i (f_i - c)(f_i - c)^T,   m_i in {0, 1}           (1)
    mean = c + s / n                                                                                          (2)
    covariance = (M - s s^T / n) / (n - 1)                                                                    (3)

The mask m leaves out the rows that fill up the last batch. Each device sums its own rows, so no step communicates; the
host adds the devices' sums and does (2) and (3) in float64.

Without the shift, M - s s^T / n of float32 sums cancels: 5e-5 of FID instead of 1e-7. The running sums are compensated
(Knuth's two-sum: a + b is the rounded sum plus an error that is itself a float32, kept apart): plain ones are wrong by
1e-6 of the variance after 800 batches of 64, and by more the more batches there are; these stay at 3e-7, the rounding
of one batch's product.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

# Rows that `moments` takes to float64 at once: 64 MiB of Inception features.
_BLOCK = 4096
# Rows whose product is one matrix product: how it adds them up is the library's choice, and on some processors it is
# one after another, at the expense of digits.
_PRODUCT = 128


class Moments(NamedTuple):
    """What a Frechet distance needs to know of a set.

    Attributes:
      count: number of vectors N; None where the file they come from does not say.
      mean: [D] float64.
      covariance: [D, D] float64, divisor N-1.
    """

    count: int | None
    mean: np.ndarray
    covariance: np.ndarray


class Accumulator(NamedTuple):
    """The sums (1) so far, one slot per device. Its arrays are laid out over the devices along the leading axis.

    Attributes:
      count: [devices] int32, exact to 2^31.
      sum, second: s [devices, D] and M [devices, D, D] in float32.
      sum_error, second_error: what rounding has taken from `sum` and `second` so far, in the same shapes.
    """

    count: Int[Array, " k"]
    sum: Float[Array, "k d"]
    second: Float[Array, "k d d"]
    sum_error: Float[Array, "k d"]
    second_error: Float[Array, "k d d"]


def checked_features(features: np.ndarray, name: str) -> np.ndarray:
    """The features, if they are at least two finite vectors.

    Raises:
      ValueError: that says what is wrong with them.
    """
    if features.ndim != 2:
        raise ValueError(f"{name} must have shape [N, D], got {features.shape}")
    if len(features) < 2:
        raise ValueError(f"{name} must hold at least 2 samples, got {len(features)}: one sample has no covariance")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        bad = np.count_nonzero(~finite)
        raise ValueError(f"{name} must be finite, but {bad} of {len(features)} samples hold NaN or infinity")
    return features


def moments(features: Float[np.ndarray, "n d"]) -> Moments:
    """The moments of feature vectors [N, D], in float64.

    Raises:
      ValueError: for fewer than 2 samples, or values that are not finite.
    """
    count, dimension = checked_features(features, "features").shape
    mean = features.mean(axis=0, dtype=np.float64)
    second = np.zeros((dimension, dimension))
    for start in range(0, count, _BLOCK):
        centred = features[start : start + _BLOCK].astype(np.float64) - mean
        second += centred.T @ centred
    return Moments(count, mean, second / (count - 1))


def _sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def new_accumulator(dimension: int, mesh: Mesh) -> Accumulator:
    """Sums over nothing, a slot on each device of `mesh`, for vectors of `dimension` numbers."""
    k, d = mesh.size, dimension
    shapes = Accumulator((k,), (k, d), (k, d, d), (k, d), (k, d, d))
    dtypes = Accumulator(jnp.int32, *[jnp.float32] * 4)
    zeros = jax.jit(lambda: Accumulator(*map(jnp.zeros, shapes, dtypes)), out_shardings=_sharding(mesh))
    return zeros()


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """(rounded a + b, its rounding error), exactly, whichever is larger."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def accumulate(
    accumulator: Accumulator,
    features: Float[Array, "b d"],
    mask: Bool[Array, " b"] | Int[Array, " b"] | Float[Array, " b"],
    shift: Float[Array, " d"],
) -> Accumulator:
    """Adds the rows of `features` that `mask` does not leave out (zero) to the sums (1).

    Traceable; meant for the inside of the `jax.jit` that computes the features, with the accumulator donated. A batch
    that is laid out over the devices along its rows stays where it is: nothing is communicated. What rows that are left
    out hold does not matter.

    Args:
      shift: c, the same at every call.

    Raises:
      ValueError: if the number of rows is not a multiple of the number of devices.
    """
    devices, (rows, dimension) = len(accumulator.count), features.shape
    if rows % devices:
        raise ValueError(f"a batch of {rows} rows cannot be split evenly over {devices} devices: pad and mask it")
    kept = (mask != 0).reshape(devices, -1)
    shifted = (features.astype(jnp.float32) - shift).reshape(devices, -1, dimension)
    shifted = jnp.where(kept[..., None], shifted, 0.0)  # not a product with the mask: 0 * NaN is NaN
    for start in range(0, rows // devices, _PRODUCT):
        accumulator = _add(accumulator, shifted[:, start : start + _PRODUCT])
    return accumulator._replace(count=accumulator.count + kept.sum(axis=1, dtype=jnp.int32))


def _add(accumulator: Accumulator, shifted: Float[Array, "k b d"]) -> Accumulator:
    """The compensated sums of (1) with some more rows of each device, which are 0 where they are left out."""
    second = jnp.einsum("kbd,kbe->kde", shifted, shifted, precision=jax.lax.Precision.HIGHEST)
    new_sum, sum_error = _two_sum(accumulator.sum, shifted.sum(axis=1))
    new_second, second_error = _two_sum(accumulator.second, second)
    return accumulator._replace(
        sum=new_sum, second=new_second, sum_error=accumulator.sum_error + sum_error,
        second_error=accumulator.second_error + second_error,
    )


def _on_host(accumulator: Accumulator) -> Accumulator:
    """All slots as numpy arrays, in every process."""
    if accumulator.count.is_fully_addressable:
        return jax.tree.map(np.asarray, accumulator)
    return multihost_utils.process_allgather(accumulator, tiled=True)


def finish(accumulator: Accumulator, shift: Float[Array | np.ndarray, " d"]) -> Moments:
    """The moments (2) and (3) from the sums of all devices, in float64.

    Raises:
      ValueError: if fewer than 2 vectors have been accumulated.
      FloatingPointError: if one of them was not finite.
    """
    host = _on_host(accumulator)
    count = int(host.count.sum(dtype=np.int64))
    if count < 2:
        raise ValueError(f"need at least 2 samples for a covariance, got {count}")
    total = host.sum.sum(axis=0, dtype=np.float64) + host.sum_error.sum(axis=0, dtype=np.float64)
    second = host.second.sum(axis=0, dtype=np.float64) + host.second_error.sum(axis=0, dtype=np.float64)
    if not (np.isfinite(total).all() and np.isfinite(second).all()):
        raise FloatingPointError(f"one of the {count} feature vectors, at least, holds NaN, infinity or above 1e18")
    covariance = (second - np.outer(total, total) / count) / (count - 1)
    return Moments(count, np.asarray(shift, np.float64) + total / count, (covariance + covariance.T) / 2)


def to_host(accumulator: Accumulator, shift: Float[Array | np.ndarray, " d"]) -> dict[str, np.ndarray]:
    """The sums so far and their shift as arrays to be stored, by name; `from_host` takes them back."""
    return _on_host(accumulator)._asdict() | {"shift": np.asarray(shift)}


def from_host(arrays: dict[str, np.ndarray], mesh: Mesh) -> tuple[Accumulator, np.ndarray]:
    """(accumulator, shift) of what `to_host` returned.

    On as many devices as before the sums are bit for bit what they were. On another number of devices the slots are
    added up into the first: the same sums up to rounding.

    Raises:
      ValueError: if an array is missing, or if their shapes do not fit each other.
    """
    names = (*Accumulator._fields, "shift")
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"stored sums lack {', '.join(missing)}")
    stored, shift = Accumulator(*(arrays[name] for name in Accumulator._fields)), arrays["shift"]
    k, d = stored.count.size, shift.size
    shapes = [arrays[name].shape for name in names]
    if shapes != [(k,), (k, d), (k, d, d), (k, d), (k, d, d), (d,)]:
        raise ValueError(f"the shapes of stored sums do not fit each other: {dict(zip(names, shapes))}")
    if k != mesh.size:
        stored = _in_first_slot(stored, mesh.size)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, _sharding(mesh), x.__getitem__), stored), shift


def _in_first_slot(stored: Accumulator, slots: int) -> Accumulator:
    def split(total: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        exact = total.sum(axis=0, dtype=np.float64) + error.sum(axis=0, dtype=np.float64)
        rounded = exact.astype(np.float32)
        return rounded, (exact - rounded).astype(np.float32)

    new_sum, sum_error = split(stored.sum, stored.sum_error)
    second, second_error = split(stored.second, stored.second_error)
    first = Accumulator(stored.count.sum(dtype=np.int32), new_sum, second, sum_error, second_error)
    return jax.tree.map(lambda x: np.concatenate([x[None], np.zeros((slots - 1, *x.shape), x.dtype)]), first)
