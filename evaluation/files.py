"""Files that are whole or not there, and the hash of code that results on disk depend on."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_ROOT = Path(__file__).parent.parent


def write_whole(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file in one step: another process, or a later one after a kill, sees the old file or the whole new one.

    Args:
      path: its folder is made if it is not there.
      write: is given the file, open for writing bytes.

    Raises:
      OSError: if it cannot be written, for want of space or permission; and what `write` raises. Nothing is left then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private, a result is to be shared
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def code_sha256(*folders: str) -> str:
    """sha256 of all Python files below some of the project's folders: what they made must not outlive a change of them,
    committed or not."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
