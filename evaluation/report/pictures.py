"""Pictures of a run as data URIs: only image files inside the run's folder, encoded again only where all are too
much."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.report.columns import data_name
from evaluation.report.records import Row

BUDGET = 8 * 2**20  # bytes of all picture files together; above, they are encoded again
SAMPLES = "samples"  # the grid of single pixels; other pictures are figures with text
_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
_SHOWN = 640  # pixels that an enlarged picture may be wide


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file of one row: `name` as in its record, size in pixels, `content` as it is embedded."""

    row: Row
    name: str
    width: int
    height: int
    type: str
    content: bytes

    @property
    def uri(self) -> str:
        return f"data:{self.type};base64,{base64.b64encode(self.content).decode()}"

    @property
    def is_pixels(self) -> bool:
        """Whether it is shown with whole pixels: samples, and small enough to need it."""
        return self.name == SAMPLES and self.width <= _SHOWN

    @property
    def scale(self) -> int:
        """The largest whole enlargement that stays within the page."""
        return max(1, _SHOWN // self.width)


def load_pictures(rows: Sequence[Row]) -> tuple[list[Picture], list[str]]:
    """The pictures of all rows, and a warning for each that is not there, is no image or lies outside the folder."""
    pictures, warnings = [], []
    for row in rows:
        named = row.record.get("pictures")
        for name, path in named.items() if isinstance(named, dict) else ():
            try:
                pictures.append(_load(row, name, path))
            except (OSError, ValueError) as problem:
                warnings.append(f"picture {name!r} of {row.title} is left out: {problem}")
    total = sum(len(picture.content) for picture in pictures)
    if total > BUDGET:
        pictures = [_smaller(picture) for picture in pictures]
        after = sum(len(picture.content) for picture in pictures)
        warnings.append(f"the pictures of {total / 2**20:.1f} MiB are encoded again, as WebP, to {after / 2**20:.1f} "
                        "MiB; the samples without loss")  # fmt: skip
    return pictures, warnings


def comparable(pictures: Sequence[Picture]) -> list[list[Picture]]:
    """Pictures of samples, grouped by what makes image i of each the same draw: seed, data, and the picture's size."""
    groups: dict[tuple, list[Picture]] = {}
    for picture in pictures:
        if picture.name == SAMPLES:
            record = picture.row.record
            key = (str(record.get("seed")), data_name(record), picture.width, picture.height)
            groups.setdefault(key, []).append(picture)
    return list(groups.values())


def _load(row: Row, name: str, path: object) -> Picture:
    """Raises OSError or ValueError: a page that is handed on must hold nothing but pictures of the run."""
    from PIL import Image, UnidentifiedImageError

    folder = row.run.folder.resolve()
    if not isinstance(path, str) or not (folder / path).resolve().is_relative_to(folder):
        raise ValueError(f"{path!r} is not a path inside {row.run.folder}")
    try:
        content = (folder / path).read_bytes()
        with Image.open(io.BytesIO(content), formats=list(_TYPES)) as image:
            image.load()  # a file that is cut off is found here
            picture = Picture(row=row, name=name, width=image.width, height=image.height, type=_TYPES[image.format],
                              content=content)  # fmt: skip
            return _shrunk(picture, np.asarray(image)) if name == SAMPLES else picture
    except FileNotFoundError as problem:
        raise FileNotFoundError(f"no file {path!r} in {row.run.folder}") from problem
    except (UnidentifiedImageError, Image.DecompressionBombError) as problem:
        raise ValueError(f"{path!r} is no image that can be shown") from problem


def _shrunk(picture: Picture, pixels: np.ndarray) -> Picture:
    """Undoes a whole enlargement: the page then shows exact multiples of the pixels that were generated."""
    from PIL import Image

    common = math.gcd(picture.width, picture.height)
    for scale in range(common, 1, -1):
        if common % scale == 0:
            small = pixels[::scale, ::scale]
            if np.array_equal(small.repeat(scale, axis=0).repeat(scale, axis=1), pixels):
                buffer = io.BytesIO()
                Image.fromarray(small).save(buffer, "PNG", optimize=True)
                return replace(picture, width=small.shape[1], height=small.shape[0], type="image/png",
                               content=buffer.getvalue())  # fmt: skip
    return picture


def _smaller(picture: Picture) -> Picture:
    """The same as WebP, or as it was where that is smaller."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(picture.content)) as image:
        image.convert("RGB").save(buffer, "WEBP", lossless=picture.name == SAMPLES, quality=80)
    if buffer.tell() >= len(picture.content):
        return picture
    return replace(picture, type="image/webp", content=buffer.getvalue())
