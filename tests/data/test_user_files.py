"""folder:<path> and npz:<path>: what users bring, whole, damaged or hostile."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from data.base import gather
from data.npz import read_npz
from data.sources import open_source


def write_image(path, seed, size=(6, 5), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def photos(tmp_path):
    """80 images in two class folders, by relative path."""
    files = [f"{'cat' if i % 4 else 'dog'}/{i:02d}.png" for i in range(80)]
    return tmp_path, {file: write_image(tmp_path / file, i) for i, file in enumerate(files)}


def test_folder_reads_every_image_once(photos):
    root, pixels = photos
    train, test = (open_source(f"folder:{root}", split) for split in ("train", "test"))
    assert sorted([*train.files, *test.files]) == sorted(pixels) and not set(train.files) & set(test.files)
    assert list(train.files) == sorted(train.files) and 1 <= len(test) <= 20
    assert train.class_names == test.class_names == ("cat", "dog") and train.image_shape == (5, 6, 3)
    batch = gather(test, np.arange(len(test)))
    for file, image, label in zip(test.files, batch["image"], batch["label"]):
        np.testing.assert_array_equal(image, pixels[file])
        assert test.class_names[label] == file[:3]


def test_folder_split_does_not_move_when_images_are_added(photos):
    root, _ = photos
    before = set(open_source(f"folder:{root}", "test").files)
    for i in range(80, 120):
        write_image(root / f"cat/{i}.png", i)
    after = set(open_source(f"folder:{root}", "test").files)
    assert before < after and not any(int(file[4:-4]) < 80 for file in after - before)


def test_folder_with_official_splits(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for i in range(count):
            write_image(tmp_path / split / "a" / f"{i}.png", i)
            write_image(tmp_path / split / "b" / f"{i}.png", 10 + i)
    train, test = (open_source(f"folder:{tmp_path}", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (6, 4) and test[3]["label"] == 1
    write_image(tmp_path / "test" / "c" / "0.png", 1)
    with pytest.raises(ValueError, match=r"same classes; they differ in \['c'\]"):
        open_source(f"folder:{tmp_path}", "test")


def test_folder_without_classes_and_with_a_resize(tmp_path):
    for i in range(20):
        write_image(tmp_path / f"{i}.jpg", i, size=(8 + i, 12))
    source = open_source("folder", "train", path=str(tmp_path), image_size=4)
    assert source.num_classes == 0 and source.image_shape == (4, 4, 3)
    assert all(source[i]["image"].shape == (4, 4, 3) for i in range(len(source)))
    same = open_source("folder", "train", path=str(tmp_path), image_size=4).provenance
    other = open_source("folder", "train", path=str(tmp_path), image_size=5).provenance
    assert same == source.provenance and other["sha256"] != same["sha256"]


def test_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        open_source(f"folder:{tmp_path}/none", "train")
    with pytest.raises(ValueError, match="holds no images"):
        open_source(f"folder:{tmp_path}", "train")
    for i in range(30):
        write_image(tmp_path / f"{i:02d}.png", i)
    train = open_source(f"folder:{tmp_path}", "train")
    write_image(tmp_path / train.files[5], 0, size=(6, 7))
    with pytest.raises(ValueError, match=rf"{train.files[5]} has 6x7 pixels, but 0\d.png has 6x5"):
        open_source(f"folder:{tmp_path}", "train")
    (tmp_path / train.files[5]).write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"cannot read .*{train.files[5]} as an image"):
        open_source(f"folder:{tmp_path}", "train")
    with pytest.raises(ValueError, match=rf"cannot read .*{train.files[5]} as an image"):
        train[5]  # damaged after it was opened
    write_image(tmp_path / "class" / "0.png", 0)
    with pytest.raises(ValueError, match="both in itself and in the class folders class"):
        open_source(f"folder:{tmp_path}", "train")


def test_folder_with_an_empty_split(tmp_path):
    write_image(tmp_path / "0.png", 0)
    outcomes = []
    for split in ("train", "test"):
        try:
            outcomes.append(len(open_source(f"folder:{tmp_path}", split)))
        except ValueError as error:
            outcomes.append(str(error))
    assert 1 in outcomes and any("split of" in str(outcome) and "is empty" in str(outcome) for outcome in outcomes)


def test_folder_mixes_gray_into_colour_but_not_the_reverse(tmp_path):
    for i in range(20):
        write_image(tmp_path / f"{i:02d}.png", i)
    source = open_source(f"folder:{tmp_path}", "train")
    write_image(tmp_path / source.files[3], 3, mode="L")
    image = open_source(f"folder:{tmp_path}", "train")[3]["image"]
    assert image.shape == (5, 6, 3) and (image == image[:, :, :1]).all()
    write_image(tmp_path / source.files[0], 0, mode="L")
    with pytest.raises(ValueError, match=r"has shape \(5, 6, 3\), but .* has \(5, 6, 1\)"):
        open_source(f"folder:{tmp_path}", "train")[1]


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {"images": rng.integers(0, 256, (40, 3, 4, 2)).astype(np.uint8), "labels": np.arange(40) % 4}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_split_is_stratified(tmp_path, arrays, save):
    save(tmp_path / "a.npz", **arrays)
    train, test = (open_source(f"npz:{tmp_path}/a.npz", split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [9] * 4 and np.bincount(test.labels).tolist() == [1] * 4
    found = sorted(image.tobytes() for source in (train, test) for image in source.images)
    assert found == sorted(image.tobytes() for image in arrays["images"])
    for image, label in zip(test.images, test.labels):
        original = next(i for i in range(40) if (arrays["images"][i] == image).all())
        assert label == arrays["labels"][original]


def test_npz_with_official_test_positional_names_and_no_labels(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays, images_test=arrays["images"][:3], labels_test=arrays["labels"][:3])
    train, test = (open_source(f"npz:{tmp_path}/a.npz", split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, arrays["images"])
    np.testing.assert_array_equal(test.images, arrays["images"][:3])
    assert test.num_classes == 4
    np.savez(tmp_path / "b.npz", arrays["images"], arrays["labels"])
    assert open_source("npz", "train", path=f"{tmp_path}/b.npz").num_classes == 4
    np.savez(tmp_path / "c.npz", images=arrays["images"])
    assert open_source(f"npz:{tmp_path}/c.npz", "test").num_classes == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 3, 3), np.uint8)}, r"images is uint8 \(4, 3, 3\); it must be uint8 \[N, height"),
        ({"images": np.zeros((40, 3, 3, 1), np.float32)}, r"images is float32"),
        ({"images": np.zeros((0, 3, 3, 1), np.uint8)}, r"images is uint8 \(0, 3, 3, 1\)"),
        ({"labels": np.zeros(40)}, "labels is float64"),
        ({"labels": np.zeros(39, int)}, r"labels is int64 \(39,\); it must be integers \[40\]"),
        ({"labels": np.arange(40) - 1}, "labels lie in -1..38, outside 0..38"),
        ({"images_test": np.zeros((2, 3, 4, 1), np.uint8)}, "other shapes"),
        ({"images_test": np.zeros((2, 3, 4, 2), np.uint8)}, "has labels but no labels_test"),
        ({"images_test": np.zeros((2, 3, 4, 2), np.uint8), "labels_test": np.array([0, 4])}, "lie in 0..4"),
    ],
)
def test_npz_with_unfit_arrays(tmp_path, arrays, change, message):
    np.savez(tmp_path / "a.npz", **{**arrays, **change})
    with pytest.raises(ValueError, match=message):
        open_source(f"npz:{tmp_path}/a.npz", "train")


def npy(header, content=b""):
    """The bytes of a version 1.0 npy file with any header."""
    header = header.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + content


def write_zip(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


class Sentinel:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_npz_with_objects_runs_no_code(tmp_path):
    sentinel = tmp_path / "ran"
    objects = np.array([Sentinel(str(sentinel))], dtype=object)
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, objects, allow_pickle=True)
    write_zip(tmp_path / "a.npz", images=buffer.getvalue())
    with pytest.raises(ValueError, match=r"a\.npz as an npz file: images\.npy holds Python objects"):
        open_source(f"npz:{tmp_path}/a.npz", "train")
    assert not sentinel.exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)["images"]  # negative control: the trap does work
    assert sentinel.exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (34359738368, 1, 1, 1), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 1, 1), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -10, 1, 1), }",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 1, 1, 1), }",
    ],
)
def test_npz_with_a_lying_header_takes_no_memory(tmp_path, header):
    write_zip(tmp_path / "a.npz", images=npy(header, b"0123456789"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.npz as an npz file: images\.npy claims shape"):
            open_source(f"npz:{tmp_path}/a.npz", "train")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_npz_whose_directory_lies_too(tmp_path):
    path = tmp_path / "a.npz"
    claimed = 2**31 - 1000
    content = npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({claimed - 128}, 1, 1, 1), }}", b"0" * 10)
    write_zip(path, images=content)
    data = path.read_bytes().replace(len(content).to_bytes(4, "little"), claimed.to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.npz as an npz file: images\.npy claims 2147482648 bytes in a file of"):
        open_source(f"npz:{path}", "train")


@pytest.mark.parametrize(
    "header", ["{'descr': __import__('os').mkdir('ran')}", "not a dict", "{'descr': '|u1', 'shape': (1,)}", "(" * 9000]
)
def test_npz_with_a_nonsense_header(tmp_path, header):
    write_zip(tmp_path / "a.npz", images=npy(header))
    with pytest.raises(ValueError, match=r"cannot read .*a\.npz as an npz file"):
        open_source(f"npz:{tmp_path}/a.npz", "train")


def test_npz_damaged_anywhere_is_refused_or_equal(tmp_path, arrays):
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    whole = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "b.npz").write_bytes(damaged)
        try:
            found = read_npz(tmp_path / "b.npz", ("images", "labels"))
        except ValueError as error:
            assert "b.npz" in str(error)
            refused += 1
        else:  # bytes that mean nothing to us, such as time stamps
            assert all((found[key] == arrays[key]).all() for key in arrays)
    assert refused > 0.7 * len(range(0, len(whole), 7))


@pytest.mark.parametrize("keep", [0, 1, 10, 500])
def test_npz_truncated_or_foreign(tmp_path, arrays, keep):
    np.savez(tmp_path / "a.npz", **arrays)
    content = (tmp_path / "a.npz").read_bytes()[:keep]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*a\.npz as an npz file"):
        open_source(f"npz:{tmp_path}/a.npz", "train")


def test_npz_missing_file_or_array(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(f"npz:{tmp_path}/a.npz", "train")
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"has no array `images`"):
        open_source(f"npz:{tmp_path}/a.npz", "train")
    with pytest.raises(ValueError, match="it lacks images, keys; it holds x"):
        read_npz(tmp_path / "a.npz", ("images", "keys"))
