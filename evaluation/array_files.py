"""A file of results: arrays and a JSON description in one npz, written atomically and checked by content when read."""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.files import write_whole

DESCRIPTION = "__description__"
_SHA256 = "__sha256__"
# What numpy and zipfile raise for damaged files; RuntimeError where a flipped bit claims encryption or patched data.
_UNREADABLE = (
    OSError, EOFError, KeyError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error
)  # fmt: skip


def content_hash(arrays: dict[str, np.ndarray], description: dict[str, Any]) -> str:
    """sha256 over names, types, shapes and bytes of the arrays, in the order of their names, and the description."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_arrays(path: Path, arrays: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    """Writes the file at `path`, in one step: another process sees the old file or the whole new one."""
    extra = {
        DESCRIPTION: np.array(json.dumps(description, sort_keys=True)),
        _SHA256: np.array(content_hash(arrays, description)),
    }
    write_whole(path, lambda file: np.savez(file, **arrays, **extra))


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads (arrays, description) back.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not such a file, or its content is not what was written.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        description = json.loads(str(arrays.pop(DESCRIPTION)))
        expected = str(arrays.pop(_SHA256))
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if content_hash(arrays, description) != expected:
        raise ValueError(f"{path} does not hold what was written: its sha256 differs")
    return arrays, description
