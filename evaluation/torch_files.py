"""Reads the tensors of a PyTorch state dict (.pth, .pt) without PyTorch, and without running anything it names.

Such a file is a pickle that describes tensors as views of numbered storages, and the storages' raw bytes:

  zip     an uncompressed archive with <name>/data.pkl, <name>/byteorder and one <name>/data/<key> for each storage
  legacy  five pickles (magic number, protocol, system, the object, the keys in their order), then for each key the
          number of its elements as int64 and its bytes

A pickle is a program that may import and call anything. Here its instructions are first checked against the few that
`torch.save` writes for a state dict; the names that it may import stand for three functions without effects and the
names of number types; and the calls only record what is asked for. Arrays are made at the end, once every size is known
to lie within the file.
"""

import hashlib
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Little-endian: a file that says otherwise is refused.
_STORAGES = {
    "DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_INSTRUCTIONS = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "NONE", "NEWTRUE", "NEWFALSE", "BININT",
    "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET",
}  # fmt: skip
# Tied weights make the arrays larger than the file, but not by more than this.
_MOST_EXPANSION = 4
_MALFORMED = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, ValueError, TypeError, KeyError, IndexError,
    AttributeError, NotImplementedError, OverflowError, RuntimeError,
)  # fmt: skip


# Tuples and slotless objects: a pickle can set no attribute on them.
class _StorageType(NamedTuple):
    dtype: str


class _Storage(NamedTuple):
    key: str
    dtype: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _RebuildTensor:
    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or not _counts((offset,)) or not _counts(shape) or not _counts(strides):
            raise ValueError("a tensor is not described by a storage, an offset, a shape and strides")
        tensor = _Tensor(storage, offset, shape, strides)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
        # More elements than the storage has (a stride of 0) would let a small file ask for any amount of memory.
        if len(shape) != len(strides) or tensor.size > storage.count or (tensor.size and last >= storage.count):
            raise ValueError(
                f"a tensor of shape {shape}, strides {strides} and offset {offset} "
                f"reaches beyond its storage of {storage.count} elements"
            )
        return tensor


class _RebuildParameter:
    __slots__ = ()

    def __call__(self, tensor: Any, *_: Any) -> Any:
        return tensor


def _counts(values: Any) -> bool:
    """Whether this is a tuple of non-negative integers."""
    return isinstance(values, tuple) and all(type(value) is int and value >= 0 for value in values)


class _Unpickler(pickle.Unpickler):
    """Knows the names below and no others; collects the storages that are referred to."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content))
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": _RebuildTensor(),
            "torch._utils._rebuild_parameter": _RebuildParameter(),
        }
        if f"{module}.{name}" not in known:
            raise ValueError(f"it names {module}.{name}, which a state dict of plain tensors does not need")
        return known[f"{module}.{name}"]

    def persistent_load(self, identity: Any) -> _Storage:
        match identity:
            # The legacy format has a sixth item, None unless the storage is part of another.
            case ("storage", _StorageType(dtype), str(key), str(_), int(count)) if count >= 0:
                storage = _Storage(key, dtype, count)
            case ("storage", _StorageType(dtype), str(key), str(_), int(count), None) if count >= 0:
                storage = _Storage(key, dtype, count)
            case _:
                raise ValueError("a storage is not described by its type, key, device and number of elements")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key!r} is described in two ways")
        return storage


def _next_pickle(stream: io.BytesIO) -> bytes:
    """The bytes of the pickle at the stream's position, which is moved to its end; known instructions only."""
    start = stream.tell()
    for instruction, argument, position in pickletools.genops(stream):
        if instruction.name not in _INSTRUCTIONS:
            raise ValueError(f"its pickle has the instruction {instruction.name}, which a state dict does not need")
        # The unpickler makes a table as long as the largest number given to an object.
        if instruction.name in ("BINPUT", "LONG_BINPUT") and argument > position:
            raise ValueError(f"its pickle numbers an object {argument} at byte {position}")
    length = stream.tell() - start
    stream.seek(start)
    return stream.read(length)


def _read_legacy(content: bytes) -> tuple[Any, dict[str, _Storage], dict[str, memoryview]]:
    """(object, described storages, their bytes by key)."""
    stream = io.BytesIO(content)
    heads = [_Unpickler(_next_pickle(stream)).load() for _ in range(3)]
    if heads[:2] != [_MAGIC, _PROTOCOL]:
        raise ValueError("it does not begin as PyTorch's files do")
    if not isinstance(heads[2], dict) or heads[2].get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    unpickler = _Unpickler(_next_pickle(stream))
    result = unpickler.load()
    keys = _Unpickler(_next_pickle(stream)).load()
    if not isinstance(keys, list) or sorted(keys) != sorted(unpickler.storages):
        raise ValueError("its list of storages is not that of its tensors")
    position, data = stream.tell(), {}
    for key in keys:
        storage = unpickler.storages[key]
        (count,) = struct.unpack_from("<q", content, position)
        end = position + 8 + count * np.dtype(storage.dtype).itemsize
        if count != storage.count or end > len(content):
            raise ValueError(f"storage {key!r} should have {storage.count} elements; {count} are announced")
        data[key] = memoryview(content)[position + 8 : end]
        position = end
    if position != len(content):
        raise ValueError(f"{len(content) - position} bytes follow its end")
    return result, unpickler.storages, data


def _read_zip(content: bytes) -> tuple[Any, dict[str, _Storage], dict[str, bytes]]:
    """(object, described storages, their bytes by key)."""
    # The end record without a comment is the file's last 22 bytes; zipfile itself would also look for it further up.
    if content[-22:-18] != b"PK\5\6" or content[-2:] != b"\0\0":
        raise ValueError("it does not end with the end of its archive")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
            raise ValueError("its archive is compressed")
        # Members that share their bytes would make the content larger than the file.
        if len(members) != len(archive.infolist()) or sum(info.file_size for info in members.values()) > len(content):
            raise ValueError("the members of its archive overlap")
        roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise ValueError(f"its archive has {len(roots)} members data.pkl instead of one")
        # Older files have no such member and are little-endian.
        if f"{roots[0]}/byteorder" in members and archive.read(f"{roots[0]}/byteorder") != b"little":
            raise ValueError("its numbers are not little-endian")
        stream = io.BytesIO(archive.read(f"{roots[0]}/data.pkl"))
        unpickler = _Unpickler(_next_pickle(stream))
        result = unpickler.load()
        if stream.read(1):
            raise ValueError("bytes follow the end of its pickle")
        data = {}
        for key, storage in unpickler.storages.items():
            size = members[f"{roots[0]}/data/{key}"].file_size
            if size != storage.count * np.dtype(storage.dtype).itemsize:
                raise ValueError(f"storage {key!r} should have {storage.count} {storage.dtype}; it has {size} bytes")
            data[key] = archive.read(f"{roots[0]}/data/{key}")
    return result, unpickler.storages, data


def _arrays(result: Any, storages: dict[str, _Storage], data: dict[str, Any], most: int) -> dict[str, np.ndarray]:
    """The arrays of a flat dictionary of tensors, at most `most` bytes of them."""
    if not isinstance(result, dict):
        raise ValueError(f"it holds a {type(result).__name__}, not a state dict")
    # dict's own method: a pickle may have put something else in its place on the instance.
    tensors = dict(dict.items(result))
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise ValueError(f"its entry {name!r} is a {type(tensor).__name__}, not a tensor")
    total = sum(tensor.size * np.dtype(tensor.storage.dtype).itemsize for tensor in tensors.values())
    if total > most:
        raise ValueError(f"its tensors would take {total} bytes, more than {_MOST_EXPANSION} times the file's size")
    whole = {key: np.frombuffer(data[key], storage.dtype) for key, storage in storages.items()}
    arrays = {}
    for name, tensor in tensors.items():
        values = whole[tensor.storage.key][tensor.offset :]
        strides = [stride * values.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(values, tensor.shape, strides, writeable=False)
        arrays[name] = np.array(view, order="C")
    return arrays


def read_torch_file(path: Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a state dict saved by `torch.save`, in either of its two formats.

    Args:
      sha256: of the file, in hexadecimal; None: any file.

    Returns:
      {name: contiguous array with its own memory}, in the file's order.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if its sha256 is another, which is looked at before anything else; or it is damaged; or it holds
        anything but a flat dictionary of dense tensors.
    """
    content = Path(path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise ValueError(f"{path} has the sha256 {found}, not {sha256}")
    try:
        read = _read_zip if content.startswith(b"PK\3\4") else _read_legacy
        return _arrays(*read(content), _MOST_EXPANSION * len(content))
    except _MALFORMED as error:
        raise ValueError(f"{path} cannot be read as a PyTorch state dict: {error}") from error
