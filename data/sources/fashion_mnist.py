"""Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 gray 28x28 images of ten garments, in four idx files.

idx: two zero bytes, a type code (8 = uint8), the rank, one big-endian uint32 per dimension, the values row by row.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data import randomness
from data.base import ArraySource, array_source

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
UINT8_CODE = 8
CHUNK = 1 << 20


def read_idx(path: Path, rank: int) -> UInt8[np.ndarray, "..."]:
    """Read a gzip-compressed idx file of uint8.

    Raises:
      ValueError: not gzip, another type or rank, or another number of values than the header claims; the message
        names the file.
    """
    try:
        with gzip.open(path) as stream:
            header = stream.read(4 + 4 * rank)
            if header[:4] != bytes([0, 0, UINT8_CODE, rank]) or len(header) != 4 + 4 * rank:
                raise ValueError(f"it starts with {header[:4].hex()}, expected 0000{UINT8_CODE:02x}{rank:02x}")
            shape = struct.unpack(f">{rank}I", header[4:])
            count = int(np.prod(shape, dtype=object))
            content = bytearray()  # grows with the data that are there, not with the header's claim
            while len(content) <= count and (chunk := stream.read(CHUNK)):
                content += chunk
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"cannot read {path} as an idx file: {error}") from error
    if len(content) != count:
        relation = "more" if len(content) > count else f"only {len(content)}"
        raise ValueError(f"cannot read {path} as an idx file: its header claims {count} values, it holds {relation}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def open_fashion_mnist(argument: str, split: str, *, path: str, image_size: int, seed: int) -> ArraySource:
    """The official split; the last twelfth (5,000) of a seeded permutation of train is the validation split.

    Args:
      path: folder with the four files; default: where Debian's package dataset-fashion-mnist puts them.

    Raises:
      FileNotFoundError: the files are not there.
      ValueError: a file is damaged, or images and labels do not belong together.
    """
    folder = Path(path) if path else DEBIAN_FOLDER
    prefix = "t10k" if split == "test" else "train"
    files = [folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"fashion_mnist: {folder} lacks {', '.join(missing)}. Install Debian's package, "
            "`apt-get install dataset-fashion-mnist`, or name the folder: --config.data.path=<folder>"
        )
    images, labels = read_idx(files[0], rank=3)[..., None], read_idx(files[1], rank=1)
    if len(images) != len(labels):
        raise ValueError(f"{folder} has {len(images)} {prefix} images but {len(labels)} labels")
    if image_size and images.shape[1:3] != (image_size, image_size):
        raise ValueError(
            f"config.data.image_size = {image_size}, but fashion_mnist has images of {images.shape[1]} pixels: use 0"
        )
    if split != "test":
        order = randomness.permutation(len(images), seed, randomness.SPLIT)
        first_held_out = len(images) - len(images) // 12
        kept = np.sort(order[first_held_out:] if split == "validation" else order[:first_held_out])
        images, labels = images[kept], labels[kept]
    return array_source(
        images,
        labels,
        CLASS_NAMES,
        name="fashion_mnist",
        path=str(folder),
        split=split,
        split_rule="official; validation = last twelfth of a seeded permutation of train",
        split_seed=seed,
    )
