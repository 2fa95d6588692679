"""The user's own images: folder:<path> and npz:<path>, and whole sets that are only measured."""

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from data import splits
from data.base import ArraySource, array_source
from data.images import read_image
from data.npz import check_images, read_npz

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WebP"}
HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderSource:
    """Image files, decoded when asked for. `image_size` 0 = the files' own size, the same for all."""

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...]
    image_size: int
    class_names: tuple[str, ...]
    provenance: dict[str, Any] = field(repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def image_shape(self) -> tuple[int, ...]:
        return read_image(self.root / self.files[0], self.image_size).shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        path = self.root / self.files[index]
        image = read_image(path, self.image_size)
        if image.shape != self.image_shape and image.shape == (*self.image_shape[:2], 1):
            image = np.repeat(image, 3, axis=2)  # a gray file among RGB ones loses nothing; the reverse would
        if image.shape != self.image_shape:
            advice = "" if self.image_size else "; config.data.image_size=<pixels> crops and resizes"
            raise ValueError(
                f"{path} has shape {image.shape}, but {self.files[0]} has {self.image_shape}: all must agree{advice}"
            )
        return {"image": image, "label": self.labels[index]}


def _list_images(folder: Path) -> list[str]:
    """Relative paths of the image files below `folder`, sorted; hidden ones are left out."""
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return sorted(file.as_posix() for file in found if not any(part.startswith(".") for part in file.parts))


def _classes(files: list[str], folder: Path) -> tuple[str, ...]:
    """The first-level sub-folders that hold images; () when all images lie in `folder` itself."""
    tops = {file.partition("/")[0] if "/" in file else "" for file in files}
    if "" in tops and len(tops) > 1:
        raise ValueError(f"{folder} has images both in itself and in the class folders {', '.join(sorted(tops)[1:])}")
    return tuple(sorted(tops - {""}))


def open_folder(argument: str, split: str, *, path: str, image_size: int, seed: int) -> FolderSource:
    """PNG, JPEG or WebP files below a folder; its sub-folders, if any, are the classes.

    Where sub-folders train/ and test/ both exist they are the splits; otherwise a tenth of the files is held out by
    the hash of the relative path.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: no images in the split, images of several sizes without `image_size`, or an unreadable file.
    """
    root = Path(argument or path)
    if not root.is_dir():
        raise FileNotFoundError(f"config.data.source = 'folder:{root}': there is no such folder")
    official = (root / "train").is_dir() and (root / "test").is_dir()
    root = root / split if official else root
    files = _list_images(root)
    if not files:
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)})")
    train_root = root.parent / "train" if official else root
    class_names = _classes(_list_images(train_root), train_root) if official else _classes(files, root)
    unknown = sorted(set(_classes(files, root)) ^ set(class_names)) if official and split == "test" else []
    if unknown:
        raise ValueError(f"train/ and test/ of {root.parent} must have the same classes; they differ in {unknown}")
    if not official:
        held_out = splits.threshold(splits.key_words(files, seed), HELD_OUT)
        files = [files[i] for i in splits.take(split, held_out)]
        if not files:
            raise ValueError(f"the {split} split of {root} is empty: give it more images, or folders train/ and test/")
    labels = tuple(class_names.index(file.partition("/")[0]) if class_names else 0 for file in files)
    listing = "\n".join(f"{file} {(root / file).stat().st_size}" for file in files)
    source = FolderSource(
        root=root,
        files=tuple(files),
        labels=labels,
        image_size=image_size,
        class_names=class_names,
        provenance={
            "name": "folder",
            "path": str(root),
            "sha256": hashlib.sha256(f"{image_size}\n{listing}".encode()).hexdigest(),
            "sha256_of": "image size, relative paths and file sizes",
            "split": split,
            "split_rule": "folders train/ and test/" if official else "90/10 by hash of the relative path",
            "split_seed": seed,
            "count": len(files),
        },
    )
    _check_sizes(source)
    return source


def _check_sizes(source: FolderSource) -> None:
    """Without a resize, read every file's header now: a stray size must not end a run hours later."""
    from PIL import Image

    height, width = source.image_shape[:2]  # reads the first file: unreadable ones are reported at once
    if source.image_size:
        return
    for file in source.files:
        try:
            with Image.open(source.root / file) as image:
                size = image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"cannot read {source.root / file} as an image: {error}") from error
        if size != (width, height):
            raise ValueError(
                f"{source.root / file} has {size[0]}x{size[1]} pixels, but {source.files[0]} has {width}x{height}; "
                "config.data.image_size=<pixels> crops and resizes"
            )


def open_all_images(path: Path) -> FolderSource | ArraySource:
    """All images of a folder or of an npz file, without labels and without splits: what somebody's model has made.

    Raises:
      FileNotFoundError: neither a folder nor a file.
      ValueError: no images, images of several sizes or in several formats, or an unreadable file.
    """
    if path.is_dir():
        files = _list_images(path)
        if not files:
            raise ValueError(f"{path} holds no images ({', '.join(SUFFIXES)})")
        formats = sorted({_FORMATS[Path(file).suffix.lower()] for file in files})
        if len(formats) > 1:
            raise ValueError(f"{path} holds {' and '.join(formats)} images: compression changes what is measured, so a "
                             "set must be of one format")  # fmt: skip
        digest = hashlib.sha256()
        for file in files:  # by content: what is measured of a folder is kept under this hash
            digest.update(file.encode() + hashlib.sha256((path / file).read_bytes()).digest())
        about = {"name": path.name, "path": str(path), "split": "all", "format": formats[0], "count": len(files),
                 "sha256": digest.hexdigest(), "sha256_of": "relative paths and file contents"}  # fmt: skip
        source = FolderSource(root=path, files=tuple(files), labels=(0,) * len(files), image_size=0, class_names=(),
                              provenance=about)  # fmt: skip
        _check_sizes(source)
        return source
    arrays = read_npz(path, (), ("images", "arr_0"))
    images = arrays.get("images", arrays.get("arr_0"))
    if images is None:
        raise ValueError(f"{path} has no array `images` (or arr_0)")
    check_images(path, "images", images, "labels", None)
    return array_source(images, None, [], name=path.stem, path=str(path), split="all", split_rule="none", split_seed=0,
                        format="npz")  # fmt: skip


def open_npz(argument: str, split: str, *, path: str, image_size: int, seed: int) -> ArraySource:
    """An npz file: `images` uint8 [N, H, W, C] (or arr_0), optionally `labels` int [N] (or arr_1).

    Where `images_test` (and `labels_test`) exist they are the test split; otherwise a tenth of each class is held out.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged or hostile file (see data/npz.py), or arrays of another type, rank or length.
    """
    file = Path(argument or path)
    arrays = read_npz(file, (), ("images", "labels", "images_test", "labels_test", "arr_0", "arr_1"))
    images, labels = arrays.get("images", arrays.get("arr_0")), arrays.get("labels", arrays.get("arr_1"))
    if images is None:
        raise ValueError(f"{file} has no array `images` (or arr_0)")
    num_classes = check_images(file, "images", images, "labels", labels)
    official = "images_test" in arrays
    if official:
        if arrays["images_test"].shape[1:] != images.shape[1:]:
            raise ValueError(f"{file}: images and images_test have other shapes")
        check_images(file, "images_test", arrays["images_test"], "labels_test", arrays.get("labels_test"), num_classes)
        if split == "test":
            images, labels = arrays["images_test"], arrays.get("labels_test")
    if image_size and images.shape[1:3] != (image_size, image_size):
        raise ValueError(f"config.data.image_size = {image_size}, but {file} has images of {images.shape[1:3]}: use 0")
    if not official:
        strata = np.zeros(len(images), np.int64) if labels is None else labels
        kept = splits.take(split, splits.stratified(splits.position_words(len(images), seed), strata, HELD_OUT))
        images, labels = images[kept], None if labels is None else labels[kept]
    return array_source(
        images,
        None if labels is None else labels.astype(np.int64),
        [str(k) for k in range(num_classes)],
        name="npz",
        path=str(file),
        split=split,
        split_rule="images and images_test" if official else "stratified 90/10 by position",
        split_seed=seed,
    )
