"""What a data set is: random access to examples, and where they came from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, Integer, UInt8

Images = UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n d"]
Labels = Integer[np.ndarray, "n"]


@runtime_checkable
class Source(Protocol):
    """Random access to one split of one data set.

    `source[i]` is {"image": uint8 [H, W, C] (float32 [2] for toy2d), "label": int}; the label is 0 where there
    are none. A source may offer `gather(indices)`, the stacked examples, where that is faster than one by one.

    Attributes:
      image_shape: the shape of one image.
      num_classes: number of labels; 0 = unlabelled.
      class_names: one name per label.
      provenance: JSON-able facts that identify the examples: name, version or path, sha256 (of the content, unless
        sha256_of says of what), split, split_rule, split_seed, count.
    """

    image_shape: tuple[int, ...]
    num_classes: int
    class_names: tuple[str, ...]
    provenance: dict[str, Any]

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource:
    """A data set held in memory.

    Attributes:
      images: uint8 [N, H, W, C], or float32 [N, D] points.
      labels: int [N], all 0 when num_classes is 0.

    Raises:
      ValueError: no examples, not one label per image, or a label that is no class.
    """

    images: Images
    labels: Labels
    num_classes: int
    class_names: tuple[str, ...]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        name = f"{self.provenance.get('name')} ({self.provenance.get('split')})"
        if len(self.images) == 0:
            raise ValueError(f"{name} holds no examples")
        if len(self.images) != len(self.labels):
            raise ValueError(f"{name} has {len(self.images)} images but {len(self.labels)} labels")
        check_labels(self.labels, self.num_classes, name)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def gather(self, indices: Int[np.ndarray, "b"]) -> dict[str, np.ndarray]:
        return {"image": self.images[indices], "label": self.labels[indices].astype(np.int32)}


def check_labels(labels: Integer[np.ndarray, "n"], num_classes: int, name: str) -> None:
    """Raise ValueError unless every label is in 0 .. num_classes - 1 (0 alone for an unlabelled set)."""
    classes = max(num_classes, 1)
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        example = int(np.argmax(outside))
        raise ValueError(f"label {labels[example]} of example {example} of {name} is outside 0..{classes - 1}")


def gather(source: Source, indices: Int[np.ndarray, "b"]) -> dict[str, np.ndarray]:
    """The examples `indices`, stacked: {"image": [B, ...], "label": int32 [B]}."""
    if hasattr(source, "gather"):
        return source.gather(indices)
    examples = [source[int(index)] for index in indices]
    images = np.stack([example["image"] for example in examples])
    return {"image": images, "label": np.array([example["label"] for example in examples], np.int32)}


def all_images(source: Source) -> Images:
    """Every example of a split, stacked: [N, H, W, C] uint8 or [N, 2] float32."""
    return gather(source, np.arange(len(source)))["image"]


def array_source(
    images: Images,
    labels: Labels | None,
    class_names: Sequence[str],
    *,
    name: str,
    split: str,
    split_rule: str,
    split_seed: int,
    **origin: str,
) -> ArraySource:
    """An ArraySource with its provenance; `labels` None = unlabelled, `origin` says where the data came from."""
    labels = np.zeros(len(images), np.int64) if labels is None else labels
    provenance = {
        "name": name,
        **origin,
        "sha256": content_sha256(images, labels),
        "split": split,
        "split_rule": split_rule,
        "split_seed": split_seed,
        "count": len(images),
    }
    return ArraySource(
        images=images,
        labels=labels,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        provenance=provenance,
    )


def content_sha256(images: Images, labels: Labels) -> str:
    """sha256 over shape, type and bytes of the images and of the labels as little-endian int64."""
    digest = hashlib.sha256()
    for array in (images, labels.astype("<i8")):
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
