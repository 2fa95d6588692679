"""One pass over numbered images, from which every metric is computed: streamed moments, and rows where they are needed.

A batch of images goes to the device once. There, in one compiled function: image -> network -> taps -> moments, shifted
by the mean of the first batch, accumulated in place. Only taps whose rows a metric asks for come back to the host. The
last batch is padded and masked.

With a folder, what has been accumulated is saved every `SAVE_SECONDS`, and at the end: a pass that was killed goes on
from there to the same bits, and one that is asked for again is read. Rows are written to files mapped into memory.
"""

import functools
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from evaluation.array_files import load_arrays, save_arrays
from evaluation.base import Features
from evaluation.files import code_sha256
from evaluation.moments import Moments, accumulate, finish, from_host, new_accumulator, to_host

SAVE_SECONDS = 30.0
_PARTIAL = "partial.npz"


class Statistics(NamedTuple):
    """What a pass leaves of N images.

    Attributes:
      moments: count, mean and covariance of each tap asked for.
      rows: the vectors themselves, [N, D] float32, of each tap asked for.
    """

    moments: dict[str, Moments]
    rows: dict[str, np.ndarray]


class Interrupted(Exception):
    """A stop request arrived; what has been accumulated is on disk."""


@functools.lru_cache(maxsize=8)  # one function per extractor, so that it is traced and compiled once
def _step(features: Features, moments_of: tuple[str, ...], rows_of: tuple[str, ...], mesh: Mesh) -> Callable:
    """Jitted (params, {tap: (accumulator, shift)}, images, mask, is_first) -> (the same, rows by tap)."""

    def step(params, carry, images, mask, is_first):
        taps = features.taps(params, images)
        new = {}
        for tap in moments_of:
            accumulator, shift = carry[tap]
            x = taps[tap].astype(jnp.float32)
            shift = jax.lax.cond(is_first, lambda x: mask @ x / mask.sum(), lambda _, shift=shift: shift, x)
            new[tap] = accumulate(accumulator, x, mask, shift), shift
        # The mask's sum is what the host waits for where no rows are wanted: it must not run ahead of the devices.
        return new, {tap: taps[tap] for tap in rows_of} | {"": mask.sum()}

    replicated = NamedSharding(mesh, PartitionSpec())
    carried = {tap: (_over_devices(mesh), replicated) for tap in moments_of}
    return jax.jit(step, donate_argnums=1, out_shardings=(carried, replicated))


def one_pass(
    read: Callable[[int, int], np.ndarray],
    count: int,
    features: Features,
    *,
    moments_of: Iterable[str] = (),
    rows_of: Iterable[str] = (),
    batch_size: int,
    mesh: Mesh,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], Any] = lambda done: None,
) -> Statistics:
    """The statistics of images 0 ... count - 1. Memory does not grow with `count`, but for rows without a folder.

    Args:
      read: (start, stop) -> those images, uint8 [stop - start, H, W, C] (or float32 [.., 2] for points).
      count: at least 1.
      features: the extractor.
      moments_of, rows_of: taps of the extractor.
      batch_size: images at a time; brought to a multiple of the number of devices. It changes results by rounding only.
      mesh: the devices, over which a batch is spread.
      folder: of these images and this extractor alone, for what has been done; None: nothing is kept.
      identity: what the statistics depend on, ready for json: what was done for another identity is done again.
      stopped: asked before every batch.
      progress: told the number of images that are done.

    Raises:
      Interrupted: after a stop request.
      ValueError: for images that the extractor does not take, or a tap that it does not have.
      FloatingPointError: if the features are not finite.
    """
    # A small set is one batch of eights: Inception works through a batch in equal parts on CPUs, a prime has none.
    batch_size = _whole_batches(min(batch_size, _whole_batches(count, 8)), mesh.size)
    moments_of, rows_of = tuple(sorted(moments_of)), tuple(sorted(rows_of))
    widths = _widths(features, read(0, 1), {*moments_of, *rows_of})
    row_widths = {tap: widths[tap] for tap in rows_of}
    facts = {"count": count, "moments": moments_of, "rows": rows_of, "batch_size": batch_size, "devices": mesh.size,
             "features": features.provenance, "code": code_sha256("evaluation"), "jax": jax.__version__,
             "device": jax.devices()[0].device_kind, **(identity or {})}
    facts = json.loads(json.dumps(facts))  # as it will be read back
    resumed = None if folder is None else _resume(folder, facts, row_widths, mesh)
    if resumed is None:
        zeros = {tap: (new_accumulator(widths[tap], mesh), jnp.zeros(widths[tap])) for tap in moments_of}
        resumed = zeros, _new_rows(folder, count, row_widths), 0
    carry, rows, done = resumed
    step, on_mesh = _step(features, moments_of, rows_of, mesh), _over_devices(mesh)
    params = jax.device_put(features.params, NamedSharding(mesh, PartitionSpec()))
    saved, fetched = time.monotonic(), done  # images before `fetched` have their rows on the host
    pending: dict[str, jax.Array] = {}
    while done < count:
        if stopped():
            _store(rows, fetched, pending)
            _save(folder, carry, rows, done, facts)
            raise Interrupted(f"{done} of {count} images are measured")
        images, mask = _padded(read(done, min(done + batch_size, count)), batch_size)
        carry, batch_rows = step(params, carry, *jax.device_put((images, mask), on_mesh), done == 0)
        _store(rows, fetched, pending)  # of the batch before, while the devices work on this one
        fetched, pending, done = done, batch_rows, min(done + batch_size, count)
        progress(done)
        if folder is not None and (done == count or time.monotonic() - saved > SAVE_SECONDS):
            _store(rows, fetched, pending)
            _save(folder, carry, rows, done, facts)
            saved = time.monotonic()
    _store(rows, fetched, pending)
    moments = {tap: finish(accumulator, shift) for tap, (accumulator, shift) in carry.items()}
    for tap in rows:  # those of moments are seen by `finish`
        if not np.isfinite(rows[tap]).all():
            raise FloatingPointError(f"the {tap} of {features.name} are not finite: look at the images and the weights")
    return Statistics(moments, rows)


def feature_rows(features: Features, images: np.ndarray, tap: str = "features", *, batch_size: int = 256) -> np.ndarray:
    """The vectors [N, D] of a few images, on one device. Raises as `one_pass`."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1], axis_types=(AxisType.Auto,))
    options = {"rows_of": [tap], "batch_size": batch_size, "mesh": mesh}
    return one_pass(lambda start, stop: images[start:stop], len(images), features, **options).rows[tap]


def _whole_batches(count: int, unit: int) -> int:
    """The least multiple of `unit` that holds `count`."""
    return -(-count // unit) * unit


def _widths(features: Features, image: np.ndarray, taps: set[str]) -> dict[str, int]:
    """The length of every tap's vectors; raises ValueError for taps that are not there."""
    shapes = jax.eval_shape(features.taps, features.params, jax.ShapeDtypeStruct(image.shape, image.dtype))
    missing = sorted(taps - shapes.keys())
    if missing:
        raise ValueError(f"{features.name} has no tap '{missing[0]}'; it has {', '.join(shapes)}")
    return {tap: shapes[tap].shape[1] for tap in shapes}


def _padded(images: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Always one shape, so that there is one compilation; the mask is 1 for images, 0 for padding."""
    padded = np.zeros((batch_size, *images.shape[1:]), images.dtype)
    padded[: len(images)] = images
    return padded, (np.arange(batch_size) < len(images)).astype(np.float32)


def _over_devices(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def _store(rows: dict[str, np.ndarray], start: int, batch: dict[str, jax.Array]) -> None:
    fetched = jax.device_get(batch)
    for tap in rows if fetched else ():
        values = fetched[tap]
        kept = rows[tap][start : start + len(values)]
        kept[:] = values[: len(kept)]


def _rows_path(folder: Path, tap: str) -> Path:
    return folder / f"rows-{tap}.npy"


def _new_rows(folder: Path | None, count: int, widths: dict[str, int]) -> dict[str, np.ndarray]:
    if folder is None or jax.process_index():
        return {tap: np.empty((count, width), np.float32) for tap, width in widths.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _PARTIAL).unlink(missing_ok=True)  # what it tells of the rows ends here
    make = functools.partial(np.lib.format.open_memmap, mode="w+", dtype=np.float32)
    return {tap: make(_rows_path(folder, tap), shape=(count, width)) for tap, width in widths.items()}


def _save(folder: Path | None, carry: dict, rows: dict[str, np.ndarray], done: int, facts: dict) -> None:
    if folder is None or jax.process_index():
        return
    for kept in rows.values():
        kept.flush()
    arrays = {"done": np.array(done)}
    for tap, (accumulator, shift) in carry.items():
        arrays |= {f"{tap}.{name}": array for name, array in to_host(accumulator, shift).items()}
    save_arrays(folder / _PARTIAL, arrays, facts)


def _resume(folder: Path, facts: dict, widths: dict[str, int], mesh: Mesh) -> tuple[dict, dict, int] | None:
    """What a former pass has left in the folder; None where there is nothing of use."""
    try:
        arrays, description = load_arrays(folder / _PARTIAL)
        if description != facts:
            return None
        rows = {tap: np.lib.format.open_memmap(_rows_path(folder, tap), mode="r+") for tap in widths}
    except FileNotFoundError:
        return None
    except ValueError as problem:
        logging.warning("Measured again: %s", problem)
        return None
    if any(rows[tap].shape != (facts["count"], width) for tap, width in widths.items()):
        return None
    parts = {tap: {name.removeprefix(f"{tap}."): array for name, array in arrays.items() if name.startswith(f"{tap}.")}
             for tap in facts["moments"]}  # fmt: skip
    carry = {tap: from_host(part, mesh) for tap, part in parts.items()}
    return carry, rows, int(arrays["done"])
