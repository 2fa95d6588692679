"""Files of reference statistics: what the samples are compared with. Ours, and those of other projects.

  kind           keys                                            written by
  ours           mu, sigma [, mu_s, sigma_s, feats, arr_0]       `write_reference`, with a description and a hash
  statistics     mu, sigma                                       TTUR, pytorch-fid, EDM, jax-fid, clean-fid
  adm            arr_0 [, arr_1, mu, sigma, mu_s, sigma_s]       guided-diffusion
  score_sde      pool_3                                          score_sde
  clean_fid_kid  feats                                           clean-fid

mu [D] and sigma [D, D] (divisor N-1) are mean and covariance of the features, mu_s and sigma_s those of the spatial
features of sFID; pool_3 and feats are the features [N, D] themselves, arr_0 images [N, H, W, C] in uint8. In ADM's
reference files mu and sigma are those of the whole data set, and arr_0 is only a part of it, for precision and recall.

A file of ours is an npz that the other programs can read; only it says what it was computed from. The kind is told by
the keys. Shapes and types are read from the headers, and checked, before an array is allocated; nothing is unpickled.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.npz import npz_headers, read_npz
from evaluation.array_files import DESCRIPTION, load_arrays, save_arrays
from evaluation.moments import Moments, checked_features, moments

_FORMAT = "reference statistics 1"
_MOMENTS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
_IMAGES, _LABELS, _ROWS = "arr_0", "arr_1", "feats"
# Of provenance: what must agree with that of the samples.
COMPARED = ("features", "weights_sha256", "resize", "image_shape")
# Of provenance: what it always has; None where it is not known.
_FACTS = ("num_images", *COMPARED, "ddof", "dataset", "split")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A set of images, as far as it is known, that samples are compared with.

    Attributes:
      moments: by tap of the feature extractor: "features", and "spatial" for sFID. Empty for a file of mere images.
      rows: the vectors [N, D] themselves, by tap ("features"), where they are there.
      images: [N, H, W, C] uint8, where they are there.
      provenance: kind, path, file_sha256, and what the file says, None where it does not: num_images, features (the
        extractor's name), weights_sha256, resize, image_shape, ddof, dataset, split. Files of ours may say more.
    """

    moments: dict[str, Moments]
    rows: dict[str, np.ndarray]
    images: np.ndarray | None
    provenance: dict[str, Any]


def _kind(path: Path, keys: set[str]) -> str:
    if DESCRIPTION in keys:
        return "ours"
    if _IMAGES in keys:
        return "adm"
    if {"mu", "sigma"} <= keys:
        return "statistics"
    for key, kind in (("pool_3", "score_sde"), (_ROWS, "clean_fid_kid")):
        if key in keys:
            return kind
    held = ", ".join(sorted(keys)) or "nothing"
    raise ValueError(f"{path} is no file of reference statistics: it needs mu and sigma, pool_3, feats or arr_0, "
                     f"but holds {held}")  # fmt: skip


def _check_header(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype, headers: dict[str, Any]) -> None:
    """Raises ValueError if the array of this name cannot be what its name says."""
    if key == _IMAGES:
        if dtype != np.uint8 or len(shape) != 4 or 0 in shape:
            raise ValueError(f"{path}: {key} is {dtype} {shape}; it must be uint8 images [N, height, width, channels]")
        return
    rank = 1 if key.startswith("mu") else 2
    if dtype.kind != "f" or dtype.itemsize not in (4, 8) or len(shape) != rank or 0 in shape:
        wanted = {"mu": "[D]", "si": "[D, D]"}.get(key[:2], "[N, D]")
        raise ValueError(f"{path}: {key} is {dtype} {shape}; it must be float32 or float64 {wanted}")
    if key.startswith("sigma"):
        expected = headers[key.replace("sigma", "mu")][0] * 2
    elif rank == 2 and "mu" in headers:
        expected = shape[:1] + headers["mu"][0]
    else:
        expected = shape
    if shape != expected:
        raise ValueError(f"{path}: {key} has shape {shape}, which does not fit the mean; it must be {expected}")


def _check_values(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for key, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{path}: {key} holds {np.count_nonzero(~np.isfinite(array))} numbers that are not finite")
        if not key.startswith("sigma"):
            continue
        asymmetry = float(np.abs(array - array.T).max())
        if asymmetry > 1e-6 * float(np.abs(array).max()):
            raise ValueError(f"{path}: {key} is not symmetric: it differs from its transpose by up to {asymmetry:.3g}")
        if array.diagonal().min() < 0:
            raise ValueError(f"{path}: {key} has a negative variance, {array.diagonal().min():.3g}, on its diagonal")


def _wanted(path: Path, keys: set[str]) -> list[str]:
    """Names of the arrays to be read."""
    for mean, covariance in _MOMENTS.values():
        if len({mean, covariance} & keys) == 1:
            there, missing = (mean, covariance) if mean in keys else (covariance, mean)
            raise ValueError(f"{path} has {there} but no {missing}")
    known = [*(key for pair in _MOMENTS.values() for key in pair), _IMAGES, "pool_3", _ROWS]
    return [key for key in known if key in keys]


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_reference(path: Path) -> Reference:
    """Reads a file of reference statistics of any kind.

    Where a file holds features but no moments of them, the moments are computed, in float64.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an npz file, is damaged, holds Python objects, or its arrays are not what their names say
        (shape, type, finite, sigma symmetric with a diagonal of at least 0). The message names file, key and reason.
    """
    if path.suffix in (".pkl", ".pickle"):
        raise ValueError(f"{path} is a pickle, which can run any code when it is read, so it is not read here. EDM2's "
                         "reference statistics are such files: use an npz file that holds mu and sigma")  # fmt: skip
    headers = npz_headers(path)
    kind, wanted = _kind(path, set(headers)), _wanted(path, set(headers))
    for key in wanted:
        _check_header(path, key, *headers[key], headers)
    arrays, description = _read_ours(path) if kind == "ours" else (read_npz(path, wanted), {})
    arrays = {key: arrays[key] for key in wanted}
    _check_values(path, arrays)
    images = arrays.get(_IMAGES)
    rows = next((arrays[key] for key in ("pool_3", _ROWS) if key in arrays), None)
    rows = None if rows is None else rows.astype(rows.dtype.newbyteorder("="), copy=False)
    facts = dict.fromkeys(_FACTS) | description
    if kind != "ours" and images is not None:
        facts["image_shape"] = list(images.shape[1:])
    if kind != "ours" and rows is not None:
        facts |= {"num_images": len(rows), "ddof": 1}
    count = facts["num_images"]
    found = {tap: Moments(count, *(arrays[key].astype(np.float64) for key in pair))
             for tap, pair in _MOMENTS.items() if pair[0] in arrays}  # fmt: skip
    if rows is not None and "features" not in found:
        try:
            found["features"] = moments(checked_features(rows, "the features"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return Reference(
        moments=found,
        rows={} if rows is None else {"features": rows},
        images=images,
        provenance=facts | {"kind": kind, "path": str(path), "file_sha256": _file_sha256(path)},
    )


def _read_ours(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    arrays, description = load_arrays(path)
    if not isinstance(description, dict) or description.pop("format", None) != _FORMAT:
        raise ValueError(f"{path} is a file of this project, but not one of reference statistics ('{_FORMAT}')")
    return arrays, description


def write_reference(path: Path, reference: Reference) -> None:
    """Writes a file of ours, in one step. `provenance` must be ready for json.

    Raises:
      ValueError: if there are no moments of the features, taps that such a file has no keys for, or values that
        `read_reference` would refuse.
    """
    unknown = sorted(reference.moments.keys() - _MOMENTS.keys()) + sorted(reference.rows.keys() - {"features"})
    if unknown or "features" not in reference.moments:
        taps = f"moments of {[*reference.moments]} and rows of {[*reference.rows]}"
        raise ValueError(f"a reference file holds moments of features [and spatial] and rows [of features], got {taps}")
    arrays = {}
    for tap, found in reference.moments.items():
        mean, covariance = _MOMENTS[tap]
        arrays |= {mean: found.mean, covariance: found.covariance}
    if "features" in reference.rows:
        arrays[_ROWS] = np.asarray(reference.rows["features"])
    if reference.images is not None:
        arrays[_IMAGES] = reference.images
    _check_values(path, arrays)
    facts = {name: value for name, value in reference.provenance.items() if name not in ("kind", "path", "file_sha256")}
    facts["num_images"] = reference.moments["features"].count
    save_arrays(path, arrays, facts | {"format": _FORMAT})


def check_comparable(sample_provenance: dict[str, Any], reference: Reference) -> list[str]:
    """Refuses to compare samples with a reference that was computed in another way.

    Args:
      sample_provenance: of the samples' features: `COMPARED` and, if it is there, dimension (of the features).

    Returns:
      Those of `COMPARED` that only one side, or neither, knows, to be recorded beside the number. In a file of ours
      None is an answer: what the samples do not have either agrees.

    Raises:
      ValueError: naming the first field that differs, and both its values.
    """
    ours = reference.provenance.get("kind") == "ours"
    known = {name: reference.provenance.get(name) for name in COMPARED}
    if "features" in reference.moments:
        known["dimension"] = len(reference.moments["features"].mean)
    unverified = []
    for name, value in known.items():
        sampled = sample_provenance.get(name)
        value, sampled = (list(x) if isinstance(x, tuple) else x for x in (value, sampled))
        if value is not None and sampled is not None and value != sampled:
            source = reference.provenance.get("path", "the reference")
            raise ValueError(f"samples and reference cannot be compared: {name} is {sampled} of the samples, but "
                             f"{value} of {source}")  # fmt: skip
        agree = value == sampled if ours else value is not None and sampled is not None
        if name in COMPARED and not agree:
            unverified.append(name)
    return unverified
