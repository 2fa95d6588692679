"""What a checkpoint says about itself: whether it is one, an entry per array, the environment it was made in.

The array files of a checkpoint carry no checksum, so a flipped bit would load as a wrong weight without any error. The
manifest therefore holds, for every leaf of the state, its path, shape, dtype and the sha256 of its bytes. Two states
are bit-identical if and only if their manifests are equal; `state_hash` is the one number for that.
"""

import hashlib
import json
import os
import platform
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

# The parts of a state that hold weights: a NaN there is for ever. An optimiser state is not in the list, since some
# optimisers keep an honest infinity ("best value so far").
WEIGHTS = ("params/", "ema/")
TEMPORARY = ".orbax-checkpoint-tmp"


class DamagedError(Exception):
    """A step folder is not, or no longer, what `save` wrote."""


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by slash-joined path, in tree order: {"params/score/dense/kernel": array, ...}."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}
    if len(named) != len(flat):
        raise ValueError("two leaves of the state have the same path: a key of the state must not contain '/'")
    return named


def describe(tree: Any) -> dict[str, dict]:
    """Shape and dtype of every leaf, concrete or abstract: {path: {"shape": [...], "dtype": "float32"}}."""
    description = {}
    for path, leaf in named_leaves(tree).items():
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            raise ValueError(f"state leaf {path!r} is a {type(leaf).__name__}: a state holds only jax or numpy arrays")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ValueError(f"state leaf {path!r} is a {leaf.dtype}: keys are folded from (seed, step), never saved")
        description[path] = {"shape": list(leaf.shape), "dtype": str(np.dtype(leaf.dtype))}
    return description


def leaf_manifest(tree: Any, *, require_finite: bool = False) -> dict[str, dict]:
    """`describe` plus the sha256 of every leaf's bytes (C order, little endian as on every platform JAX supports).

    Raises ValueError naming the leaves where `require_finite` meets NaN or infinity in `WEIGHTS`.
    """
    manifest = describe(tree)
    # Fetched here and in tree order, because gathering over several processes is a collective operation.
    arrays = {path: host_array(leaf) for path, leaf in named_leaves(tree).items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
        hashes = list(pool.map(_sha256, arrays.values()))
    for path, digest in zip(arrays, hashes):
        manifest[path]["sha256"] = digest
    if require_finite:
        bad = [path for path, array in arrays.items() if path.startswith(WEIGHTS) and not _all_finite(array)]
        if bad:
            raise ValueError(f"not saved: NaN or infinity in {_shortened(bad)}")
    return manifest


def state_hash(tree: Any) -> str:
    """One sha256 over paths, shapes, dtypes and bytes of all leaves: equal if and only if bit-identical."""
    return json_hash(leaf_manifest(tree))


def differences(
    stored: dict[str, dict], wanted: dict[str, dict], keys: tuple[str, ...] = ("shape", "dtype")
) -> list[str]:
    """One line per path whose `keys` differ between two manifests, and per path that only one of them has."""
    lines = [f"{path}: in the checkpoint, not in this run" for path in stored if path not in wanted]
    lines += [f"{path}: in this run, not in the checkpoint" for path in wanted if path not in stored]
    for path in stored:
        for key in keys:
            if path in wanted and stored[path].get(key) != wanted[path].get(key):
                was, now = stored[path].get(key), wanted[path].get(key)
                lines.append(f"{path}: {key} {was} in the checkpoint, {now} in this run")
    return lines


def environment() -> dict:
    """What the bits of a training run depend on besides code, config and data; JSON values only."""
    devices = jax.devices()
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "numpy": np.__version__,
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu_count": len(affinity),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "matmul_precision": str(jax.config.jax_default_matmul_precision),
        "enable_x64": bool(jax.config.jax_enable_x64),
    }


def git_revision() -> str | None:
    """The revision of the code, "+" if it was changed since; None outside a git checkout."""
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def environment_changes(stored: dict) -> list[str]:
    """What differs between a stored `environment` and the present one, as "jax: '0.10.0' -> '0.10.2'"."""
    now = environment()
    return [f"{key}: {stored.get(key)!r} -> {now[key]!r}" for key in now if stored.get(key) != now[key]]


def json_hash(value: Any) -> str:
    """sha256 of a JSON value in canonical form: the same before writing and after reading."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_meta(folder: Path) -> dict:
    """The verified `meta` item of a step folder. Raises DamagedError where the folder is no complete step."""
    name = folder.name
    if not is_step_name(name):
        raise DamagedError(f"{name} is not a step" + (", but an interrupted save" if TEMPORARY in name else ""))
    try:
        if any(path.is_symlink() for path in [folder, *folder.rglob("*")]):
            raise DamagedError(f"{name} is or contains a symbolic link")
        meta = json.loads((folder / "meta" / "metadata").read_text())
        claimed = meta.pop("sha256")
        intact = json_hash(meta) == claimed
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DamagedError(f"step {name} has no readable meta item ({first_line(problem)})") from problem
    if not intact:
        raise DamagedError(f"step {name} has a meta item that was altered")
    if meta["step"] != int(name):
        raise DamagedError(f"step {name} was saved as step {meta['step']}")
    missing = [item for item in ("state", "data", "config") if not (folder / item).is_dir()]
    if missing:
        raise DamagedError(f"step {name} has no item {', '.join(missing)}")
    return meta


def is_step_name(name: str) -> bool:
    """Plain decimal digits as `str` makes them: neither "007" nor other scripts' digits."""
    return name.isascii() and name.isdigit() and name == str(int(name))


def first_line(problem: Exception) -> str:
    """Type and beginning of a message; those of tensorstore go on for pages."""
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0][:200]}"


def host_array(leaf: Any) -> np.ndarray:
    """The whole value of a leaf in host memory, without a copy where it already lies there."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _sha256(array: np.ndarray) -> str:
    # Through uint8, because bfloat16 has no buffer format of its own.
    return hashlib.sha256(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))).hexdigest()


def _all_finite(array: np.ndarray) -> bool:
    # jax.numpy's issubdtype, because numpy's does not know bfloat16.
    return not jax.numpy.issubdtype(array.dtype, np.inexact) or bool(np.isfinite(array).all())


def _shortened(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
