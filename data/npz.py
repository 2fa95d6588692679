"""Read arrays from npz files that may be damaged or hostile: nothing is unpickled, nothing allocated on trust."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

# Deflate cannot shrink data by more than this factor (https://zlib.net/zlib_tech.html).
MAX_COMPRESSION = 1032


def read_npz(path: Path, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The arrays `required`, and those of `optional` that are there, by name.

    Before an array is allocated, its header is read: the type must hold no objects, and the size it claims must be
    the size of its member, which in turn must be possible for the bytes on disk.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not an npz file, a required array is missing, or one is damaged, holds objects or lies about its
        size. The message names the file.
    """
    with _opened(path) as archive:
        members = _members(archive)
        missing = [name for name in required if name not in members]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}; it holds {', '.join(sorted(members)) or 'nothing'}")
        names = [*required, *(name for name in optional if name in members)]
        return {name: _read_member(archive, members[name], path.stat().st_size) for name in names}


def npz_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """(shape, type) of each array in the file, by name: what `read_npz` checks before it allocates, and no more.

    Raises:
      FileNotFoundError, ValueError: as `read_npz`, if that holds for any array.
    """
    with _opened(path) as archive:
        size = path.stat().st_size
        return {name: _read_header(archive, info, size) for name, info in _members(archive).items()}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever goes wrong with it becomes a ValueError that names the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"cannot read {path} as an npz file: {error}") from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file_bytes: int) -> tuple[tuple[int, ...], np.dtype]:
    if info.file_size > MAX_COMPRESSION * file_bytes:
        raise ValueError(f"{info.filename} claims {info.file_size} bytes in a file of {file_bytes}")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{info.filename} has npy version {version}; versions 1.0 and 2.0 are read")
        try:
            shape, _, dtype = readers[version](stream)
        except Exception as error:  # besides ValueError, the parser's own: tokenize.TokenError, RecursionError ...
            raise ValueError(f"{info.filename} has an unreadable header ({type(error).__name__})") from error
        header_bytes = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"{info.filename} holds Python objects, which are never unpickled")
    claimed = dtype.itemsize
    for length in shape:  # Python integers: no overflow
        claimed *= int(length)
    if claimed != info.file_size - header_bytes or min(shape, default=0) < 0:
        raise ValueError(
            f"{info.filename} claims shape {shape} of {dtype}, {claimed} bytes, but has {info.file_size - header_bytes}"
        )
    return shape, dtype


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file_bytes: int) -> np.ndarray:
    _read_header(archive, info, file_bytes)
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def check_images(
    file: Path,
    image_key: str,
    images: np.ndarray,
    label_key: str,
    labels: np.ndarray | None,
    classes: int | None = None,
) -> int:
    """Check type, rank and length of images and labels, and return the number of classes (0 without labels).

    Args:
      image_key, label_key: the arrays' names, for the message.
      classes: number of classes that the training labels have; without it, the largest label sets it.

    Raises:
      ValueError: images that are not uint8 [N, H, W, C], labels that are not integers [N] in 0 .. classes - 1, or
        no labels where the training images have some.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{file}: {image_key} is {images.dtype} {images.shape}; it must be uint8 [N, height, width, channels]"
        )
    if labels is None:
        if classes:
            raise ValueError(f"{file} has labels but no {label_key}")
        return 0
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{file}: {label_key} is {labels.dtype} {labels.shape}; it must be integers [{len(images)}]"
        )
    classes = int(labels.max()) + 1 if classes is None else classes
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{file}: {label_key} lie in {labels.min()}..{labels.max()}, outside 0..{classes - 1}")
    return classes
