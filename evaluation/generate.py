"""Generated images, numbered: image i is a function of (seed, i), so that any subset can be made again.

Label of image i: i mod num_classes. Images are made `batch_size` at a time, always in a batch of exactly that size (the
surplus of the last one is dropped), and every finished batch is a file:

  <directory>/00000000-00000256.npz   image (uint8, or float32 points), nfe [n], seconds

An interrupted generation goes on with the first missing file. Seconds are of the batch, without compilation. The images
stay on disk: what measures them reads a batch at a time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from data.images import to_uint8
from diffusion.random import image_keys
from evaluation.array_files import load_arrays, save_arrays
from evaluation.one_pass import Interrupted


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """Images of one sampler, read when they are asked for.

    Attributes:
      read: (start, stop) -> those images, uint8 [stop - start, H, W, C], or float32 [stop - start, 2] for points.
      labels: [N], or None for unlabelled data.
      nfe: [N] network evaluations spent on each image.
      seconds: time of sampling, compilation not included.
    """

    read: Callable[[int, int], np.ndarray]
    labels: np.ndarray | None
    nfe: np.ndarray
    seconds: float

    def __len__(self) -> int:
        return len(self.nfe)

    def part(self, start: int, stop: int) -> "Generated":
        """Images start ... stop - 1 as a set of their own; `seconds` in proportion."""
        labels = None if self.labels is None else self.labels[start:stop]
        seconds = self.seconds * (stop - start) / len(self)
        read = self.read
        return Generated(
            read=lambda first, last: read(start + first, start + last), labels=labels, nfe=self.nfe[start:stop],
            seconds=seconds,
        )


def labels_of(indices: np.ndarray, num_classes: int) -> np.ndarray | None:
    """The class that image i is asked for: i mod num_classes, None for unlabelled data."""
    return (indices % num_classes).astype(np.int32) if num_classes else None


def generate(
    sample: Any,
    params: PyTree,
    directory: Path,
    *,
    seed: int,
    num_samples: int,
    batch_size: int,
    num_classes: int,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], Any] = lambda done: None,
) -> Generated:
    """Images 0 ... num_samples - 1, from disk where they have been made before.

    Args:
      sample: jitted function (params, keys [B], labels [B] or None) -> Samples, with B = batch_size.
      params: handed on to `sample`.
      directory: of this sampler, checkpoint and seed, and of nothing else.
      seed: of the images.
      num_samples, batch_size: at least 1.
      num_classes: 0 for unlabelled data.
      stopped: asked before every batch.
      progress: told the number of images that are done.

    Raises:
      Interrupted: after a stop request.
      FloatingPointError: if an image is not finite.
    """
    directory.mkdir(parents=True, exist_ok=True)
    nfe, seconds, compiled = [], 0.0, None
    for start in range(0, num_samples, batch_size):
        if stopped():
            raise Interrupted(f"{start} of {num_samples} images are in {directory}")
        path = _path(directory, start, batch_size)
        batch = _read(path)
        if batch is None:
            indices = np.arange(start, start + batch_size)
            keys, labels = image_keys(seed, jnp.asarray(indices)), labels_of(indices, num_classes)
            labels = None if labels is None else jnp.asarray(labels)
            if compiled is None:  # ahead of time, since its seconds are not the sampler's
                compiled = sample.lower(params, keys, labels).compile()
            begin = time.perf_counter()
            x0, calls = jax.device_get(compiled(params, keys, labels)[:2])
            batch = {"image": _stored(x0, start), "nfe": calls, "seconds": np.float64(time.perf_counter() - begin)}
            if jax.process_index() == 0:
                save_arrays(path, batch, {"seed": seed, "first": start})
        nfe.append(batch["nfe"])
        seconds += float(batch["seconds"])
        progress(min(start + batch_size, num_samples))
    if jax.process_count() > 1:  # the files are written by the first process and read by all
        multihost_utils.sync_global_devices(f"generated {directory}")
    return Generated(
        read=_reader(directory, batch_size), labels=labels_of(np.arange(num_samples), num_classes),
        nfe=np.concatenate(nfe)[:num_samples], seconds=seconds,
    )


def _path(directory: Path, start: int, batch_size: int) -> Path:
    return directory / f"{start:08d}-{start + batch_size:08d}.npz"


def _reader(directory: Path, batch_size: int) -> Callable[[int, int], np.ndarray]:
    """(start, stop) -> those images; the file read last is kept, since neighbours ask for it again."""

    @lru_cache(maxsize=1)
    def batch(start: int) -> np.ndarray:
        return load_arrays(_path(directory, start, batch_size))[0]["image"]

    def read(start: int, stop: int) -> np.ndarray:
        firsts = range(start // batch_size * batch_size, stop, batch_size)
        return np.concatenate([batch(first)[max(start - first, 0) : stop - first] for first in firsts])

    return read


def _stored(x0: np.ndarray, start: int) -> np.ndarray:
    if not np.isfinite(x0).all():
        bad = np.flatnonzero(~np.isfinite(x0.reshape(len(x0), -1)).all(axis=1))
        raise FloatingPointError(f"image {start + bad[0]} is not finite ({len(bad)} of this batch of {len(x0)}): the "
                                 "sampler diverged; take more steps, less guidance, or another checkpoint")
    return to_uint8(x0) if x0.ndim == 4 else x0


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """A finished batch, or None where it is missing or damaged and has to be made again."""
    try:
        return load_arrays(path)[0]
    except FileNotFoundError:
        return None
    except ValueError as problem:
        logging.warning("Made again: %s", problem)
        return None
