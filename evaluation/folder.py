"""Anybody's images, in a folder or an npz file, measured against a reference: for users of other codebases."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from data.base import Source, gather
from data.sources.files import open_all_images
from evaluation.base import Features
from evaluation.metrics import available, check_metrics, make_reference, measure
from evaluation.references import Reference, read_reference

LOSSY = ("JPEG", "WebP")


def evaluate_folder(
    images: Path,
    reference: Path,
    features: Features,
    metrics: Sequence[str],
    *,
    num_samples: int,
    reference_name: str,
    batch_size: int,
    mesh: Mesh,
    cache: Path | None = None,
    progress: Callable[[str, int, int], Any] = lambda what, done, count: None,
) -> dict[str, Any]:
    """The metrics of a set of images, with what they depend on, ready for json.

    Args:
      images: a folder of PNG, JPEG or WebP files (all sizes and formats equal), or an npz with `images` or `arr_0`.
      reference: a file of statistics (references.py), or images, as above.
      features, metrics: as `evaluation.metrics.measure`.
      num_samples: how many images there must be: a count other than the one reported is refused.
      reference_name: for the names of the metrics.
      cache: where statistics of images are kept, so that an interrupted or repeated evaluation goes on; None: nowhere.
      progress: told (which set, images done, of how many).

    Raises:
      FileNotFoundError: images or reference are not there.
      ValueError: another number of images, or whatever does not fit together.
    """
    check_metrics(metrics, [features.name], num_samples)
    metrics = available(metrics, features.name)
    source = open_all_images(images)
    if len(source) != num_samples:
        raise ValueError(f"{images} holds {len(source)} images, not {num_samples}: a metric carries the number of its "
                         "images in its name; remove what does not belong there, or ask for that number")
    options: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh}
    known = _reference(reference, source, features, metrics, cache, options, progress)
    metrics, details = measure(
        _reader(source), len(source), features, metrics, known, reference_name=reference_name,
        **options, **_kept(cache, source, features), progress=lambda done: progress("images", done, len(source)),
    )  # fmt: skip
    return {"num_samples": len(source), "metrics": metrics, "details": {features.name: details},
            "data": source.provenance}  # fmt: skip


def _reader(source: Source) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: gather(source, np.arange(start, stop))["image"]


def _kept(cache: Path | None, source: Source, features: Features) -> dict[str, Any]:
    """Where a pass over this set keeps what it has done."""
    if cache is None:
        return {}
    about = source.provenance
    return {"folder": cache / f"{features.name}-{about['name']}-{about['sha256'][:8]}", "identity": {"data": about}}


def _reference(
    path: Path, source: Source, features: Features, metrics: Sequence[str], cache: Path | None,
    options: dict[str, Any], progress: Callable[[str, int, int], Any],
) -> Reference:
    """Read from a file of statistics, or taken of the images at `path`."""
    if path.is_file() and not _only_images(path):
        return read_reference(path)
    real = open_all_images(path)
    formats = [set_.provenance["format"] for set_ in (source, real)]
    if formats[0] != formats[1] and {*formats} & {*LOSSY}:
        raise ValueError(f"the images are {formats[0]} and the reference is {formats[1]}: compression changes what is "
                         "measured, so compare sets of one format")
    if source.image_shape != real.image_shape:
        raise ValueError(f"the images have shape {source.image_shape} and those of the reference {real.image_shape}")
    facts = {"dataset": real.provenance["name"], "split": real.provenance["split"], "data": real.provenance}
    return make_reference(
        _reader(real), len(real), features, metrics, facts=facts, **options, **_kept(cache, real, features),
        progress=lambda done: progress("reference", done, len(real)),
    )  # fmt: skip


def _only_images(path: Path) -> bool:
    """Whether an npz holds images, but no statistics of them."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
    return bool(names & {"images", "arr_0"}) and not names & {"mu", "sigma", "pool_3", "feats"}
