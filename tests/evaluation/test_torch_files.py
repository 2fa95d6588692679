"""The reader of PyTorch files against arrays known beforehand, in files by torch 2.13 and in files built here by hand.

Every dangerous file is a good one with one thing changed.
"""

import hashlib
import io
import math
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.torch_files import read_torch_file

FIXTURES = Path(__file__).parent / "fixtures"
FORMATS = ("legacy", "zip")
HEAD = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "protocol_version": 1001}]
VALUES = np.arange(24, dtype="<f4") / 7
CONTIGUOUS = {"storage": "0", "offset": 0, "shape": (4, 6), "strides": (6, 1)}


@dataclass
class Name:
    module: str
    name: str


@dataclass
class Call:
    function: Any
    arguments: tuple
    state: Any = None


@dataclass
class Stored:
    identity: tuple


def encode(value):
    """The instructions of pickle's protocol 2 for a value."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            content = value.to_bytes(16, "little", signed=True)
            return b"\x8a" + bytes([len(content)]) + content
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            return b"}(" + b"".join(encode(key) + encode(item) for key, item in value.items()) + b"u"
        case Name(module, name):
            return b"c" + f"{module}\n{name}\n".encode()
        case Call(function, arguments, state):
            built = b"" if state is None else encode(state) + b"b"
            return encode(function) + encode(arguments) + b"R" + built
        case Stored(identity):
            return encode(identity) + b"Q"
    raise TypeError(value)


def pickled(value):
    return b"\x80\x02" + encode(value) + b"."


def tensor(*, storage="0", offset=0, shape=(24,), strides=(1,), count=24, kind="FloatStorage", legacy=True):
    identity = ("storage", Name("torch", kind), storage, "cpu", count) + ((None,) if legacy else ())
    arguments = (Stored(identity), offset, shape, strides, False, Call(Name("collections", "OrderedDict"), ()))
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), arguments)


def legacy_file(result, storages, *, head=HEAD, counts=None, end=b""):
    parts = [*map(pickled, head), pickled(result), pickled(list(storages))]
    for key, values in storages.items():
        parts += [struct.pack("<q", (counts or {}).get(key, values.size)), values.tobytes()]
    return b"".join(parts) + end


def zip_file(result, storages, *, byteorder=b"little", compression=zipfile.ZIP_STORED, extra=None, pickle_end=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("any/data.pkl", pickled(result) + pickle_end)
        if byteorder:
            archive.writestr("any/byteorder", byteorder)
        for key, values in storages.items():
            archive.writestr(f"any/data/{key}", values.tobytes())
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def built(form, description, values=VALUES, **options):
    """A file with one tensor, "weight"."""
    make = {"legacy": legacy_file, "zip": zip_file}[form]
    return make({"weight": tensor(**description, legacy=form == "legacy")}, {"0": values}, **options)


def read(content, tmp_path, sha256=None):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    return read_torch_file(path, sha256)


def refused(content, tmp_path, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        read(content, tmp_path)
    assert "weights.pth" in str(caught.value)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_by_torch_is_read_to_the_bit(form):
    def counting(number, *shape, dtype="<f4"):
        return (np.arange(math.prod(shape)).reshape(shape) + 100 * number).astype(dtype)

    expected = {
        "0.weight": counting(0, 3, 2, 2, 2),
        "0.bias": counting(1, 3),
        "1.weight": counting(2, 3),
        "1.bias": counting(3, 3),
        "1.running_mean": counting(4, 3),
        "1.running_var": counting(5, 3),
        "1.num_batches_tracked": counting(6, dtype="<i8"),
        "transposed": np.arange(24.0).reshape(4, 6).T,
        "every third": np.array([5.0, 8.0, 11.0, 14.0]),
        "tied": counting(0, 3, 2, 2, 2),
        "parameter": np.full(3, 0.5, np.float32),
        "half": np.array([1.5, -2.0], np.float16),
        "int": np.array([[-1, 2]], np.int32),
        "byte": np.array([0, 255], np.uint8),
        "bool": np.array([True, False, True]),
        "empty": np.zeros((0, 3), np.float32),
    }
    arrays = read_torch_file(FIXTURES / f"torch_{form}.pth")
    assert list(arrays) == list(expected)
    for name, values in expected.items():
        assert arrays[name].dtype == values.dtype and arrays[name].flags.c_contiguous, name
        np.testing.assert_array_equal(arrays[name], values, strict=True)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (CONTIGUOUS, VALUES.reshape(4, 6)),
        ({"shape": (6, 4), "strides": (1, 6)}, VALUES.reshape(4, 6).T),
        ({"offset": 3, "shape": (2, 3), "strides": (7, 2)}, np.stack([VALUES[3:9:2], VALUES[10:16:2]])),
        ({"offset": 23, "shape": (1, 1), "strides": (999, 999)}, VALUES[23:].reshape(1, 1)),
        ({"offset": 5, "shape": (), "strides": ()}, VALUES[5]),
        ({"offset": 24, "shape": (0, 2), "strides": (2, 1)}, np.zeros((0, 2), np.float32)),
    ],
)
def test_views_of_a_storage(form, view, expected, tmp_path):
    array = read(built(form, view), tmp_path)["weight"]
    np.testing.assert_array_equal(array, expected)
    assert array.shape == expected.shape and array.flags.c_contiguous and array.flags.owndata


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "view",
    [
        {"shape": (25,)},
        {"offset": 1},
        {"offset": -1},
        {"shape": (4, 6), "strides": (6, 2)},
        {"shape": (4, 6), "strides": (6,)},
        {"shape": (2,), "strides": (-1,), "offset": 5},
        {"shape": (10**12,), "strides": (0,)},
        {"shape": [24]},
        {"shape": (True,)},
    ],
)
def test_views_beyond_the_storage_are_refused(form, view, tmp_path):
    refused(built(form, view), tmp_path, "reaches beyond its storage|is not described by")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("function", [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")])
def test_a_named_function_is_refused_and_not_called(form, function, tmp_path):
    proof = tmp_path / "proof"
    attack = Call(Name(*function), (f"touch {proof}",))
    content = legacy_file({"weight": attack}, {}) if form == "legacy" else zip_file({"weight": attack}, {})
    refused(content, tmp_path, f"it names {function[0]}.{function[1]}")
    assert not proof.exists()
    os.system(f"touch {proof}")  # what would have happened
    assert proof.exists()


def test_attributes_set_by_a_pickle_change_nothing(tmp_path):
    good, other = tensor(), tensor(offset=23, shape=(1,))
    hidden = Call(Name("collections", "OrderedDict"), ([("weight", good)],), {"items": other, "keys": other})
    np.testing.assert_array_equal(read(legacy_file(hidden, {"0": VALUES}), tmp_path)["weight"], VALUES)
    for function in (Name("torch._utils", "_rebuild_tensor_v2"), Name("torch", "FloatStorage")):
        attack = Call(Name("collections", "OrderedDict"), ([("weight", good)],))
        body = encode(function) + encode({"dtype": "<f8"}) + b"b" + b"0" + encode(attack)
        content = b"".join(map(pickled, HEAD)) + b"\x80\x02" + body + b"."
        refused(content, tmp_path, "POP|attribute")
        # Without the POP, as part of a tuple.
        body = b"(" + encode(function) + encode({"dtype": "<f8"}) + b"bt"
        refused(b"".join(map(pickled, HEAD)) + b"\x80\x02" + body + b".", tmp_path, "attribute")


@pytest.mark.parametrize("form", FORMATS)
def test_other_instructions_are_refused(form, tmp_path):
    # STACK_GLOBAL, NEWOBJ, EXT1, and a table of 2**32 numbered objects.
    for instructions, reason in [
        (encode("os") + encode("system") + b"\x93.", "STACK_GLOBAL"),
        (encode(Name("collections", "OrderedDict")) + encode(()) + b"\x81.", "NEWOBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"}r\xff\xff\xff\xff.", "numbers an object 4294967295"),
    ]:
        body = b"\x80\x02" + instructions
        if form == "legacy":
            content = b"".join(map(pickled, HEAD)) + body
        else:
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("any/data.pkl", body)
            content = buffer.getvalue()
        refused(content, tmp_path, reason)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_not_a_flat_dictionary_of_tensors_is_refused(form, tmp_path):
    legacy = form == "legacy"
    make = legacy_file if legacy else zip_file
    one = tensor(legacy=legacy)
    storages = {"0": VALUES}
    refused(make({"state_dict": {"weight": one}}, storages), tmp_path, "entry 'state_dict' is a dict")
    refused(make({"weight": one, "epoch": 3}, storages), tmp_path, "entry 'epoch' is a int")
    refused(make({3: one}, storages), tmp_path, "entry 3")
    refused(make([one], storages), tmp_path, "holds a list")


@pytest.mark.parametrize("form", FORMATS)
def test_storages_must_be_as_long_as_they_are_said_to_be(form, tmp_path):
    for count in (23, 25, 2**40):
        refused(built(form, {"count": count, "shape": (2,)}), tmp_path, "'0' should have")
    refused(built(form, {"count": -1, "shape": (0,)}), tmp_path, "a storage is not described")
    refused(built(form, {"count": 0, "shape": (0,), "kind": "ComplexFloatStorage"}), tmp_path, "torch.ComplexFloat")


@pytest.mark.parametrize("form", FORMATS)
def test_one_storage_cannot_be_described_in_two_ways(form, tmp_path):
    legacy = form == "legacy"
    make = legacy_file if legacy else zip_file
    both = {"a": tensor(legacy=legacy), "b": tensor(kind="IntStorage", legacy=legacy)}
    refused(make(both, {"0": VALUES}), tmp_path, "described in two ways")


@pytest.mark.parametrize("form", FORMATS)
def test_a_storage_shared_by_very_many_tensors_is_refused(form, tmp_path):
    legacy = form == "legacy"
    make = legacy_file if legacy else zip_file
    values = np.zeros(100_000, np.float32)
    state = {str(i): tensor(shape=(100_000,), count=100_000, legacy=legacy) for i in range(8)}
    refused(make(state, {"0": values}), tmp_path, "its tensors would take 3200000 bytes")
    few = {name: state[name] for name in "012"}
    assert read(make(few, {"0": values}), tmp_path)["2"].shape == (100_000,)


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_refused_wherever_it_ends(form, tmp_path):
    content = built(form, CONTIGUOUS)
    for length in [*range(0, len(content), 7), len(content) - 1]:
        refused(content[:length], tmp_path, "cannot be read")


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_give_an_error_that_names_them(form, tmp_path):
    """Any one byte changed: the file is refused, or (where nothing checks it) still gives an array of its size."""
    content = built(form, CONTIGUOUS)
    random = np.random.default_rng(0)
    outcomes = []
    for position in random.choice(len(content), 200, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= int(random.integers(1, 256))
        try:
            arrays = read(bytes(damaged), tmp_path)
        except ValueError as error:
            assert "weights.pth" in str(error)
            outcomes.append("refused")
        else:
            assert all(array.size <= 24 for array in arrays.values())
            outcomes.append("read")
    assert outcomes.count("refused") >= 50


def test_bytes_after_the_end_are_refused(tmp_path):
    for end in (b"\0", b"more", built("legacy", CONTIGUOUS)):
        refused(built("legacy", CONTIGUOUS, end=end), tmp_path, "bytes follow its end")
        refused(built("zip", CONTIGUOUS) + end, tmp_path, "does not end with the end of its archive|cannot be read")
        refused(built("zip", CONTIGUOUS, pickle_end=end), tmp_path, "bytes follow the end of its pickle")
    refused(b"before" + built("zip", CONTIGUOUS), tmp_path, "cannot be read")


def test_the_heads_are_checked(tmp_path):
    refused(built("legacy", CONTIGUOUS, head=[1, *HEAD[1:]]), tmp_path, "does not begin")
    refused(built("legacy", CONTIGUOUS, head=[HEAD[0], 1002, HEAD[2]]), tmp_path, "does not begin")
    refused(built("legacy", CONTIGUOUS, head=[*HEAD[:2], {"little_endian": False}]), tmp_path, "little-endian")
    refused(built("zip", CONTIGUOUS, byteorder=b"big"), tmp_path, "little-endian")
    assert read(built("zip", CONTIGUOUS, byteorder=None), tmp_path)  # as older files are
    refused(b"\x89PNG\r\n", tmp_path, "cannot be read")


def test_only_the_announced_storages_are_there(tmp_path):
    state = {"weight": tensor()}
    refused(legacy_file(state, {"0": VALUES, "1": VALUES}), tmp_path, "list of storages")
    refused(legacy_file(state, {}), tmp_path, "list of storages")
    refused(built("legacy", {}, counts={"0": 2**60}), tmp_path, "1152921504606846976 are announced")
    refused(zip_file({"weight": tensor(legacy=False)}, {}), tmp_path, "any/data/0")


def test_compressed_and_overlapping_archives_are_refused(tmp_path):
    refused(built("zip", CONTIGUOUS, compression=zipfile.ZIP_DEFLATED), tmp_path, "compressed")
    refused(built("zip", CONTIGUOUS, extra={"other/data.pkl": b""}), tmp_path, "2 members data.pkl")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = built("zip", CONTIGUOUS, extra={"any/data/0": VALUES.tobytes()})
    refused(twice, tmp_path, "overlap")


@pytest.mark.parametrize("form", FORMATS)
def test_the_hash_is_checked_before_the_pickle_is_looked_at(form, tmp_path):
    content = built(form, CONTIGUOUS)
    digest = hashlib.sha256(content).hexdigest()
    assert read(content, tmp_path, digest.upper())["weight"].shape == (4, 6)
    attack = legacy_file({"weight": Call(Name("os", "system"), ("true",))}, {})
    for other in (content[:-1] + b"\1", attack):
        with pytest.raises(ValueError, match=f"has the sha256 .*, not {digest}"):
            read(other, tmp_path, digest)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        read_torch_file(tmp_path / "absent.pth")
