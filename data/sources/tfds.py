"""tfds:<name>: any TensorFlow Datasets image set, by random access to its array_record files.

Nothing is downloaded here: the set must have been prepared (once, with TensorFlow) by the command that the error
message names. Reading it does not import TensorFlow.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np

from data.base import check_labels
from data.images import resize

FILE_FORMAT = "array_record"


@dataclass(frozen=True, kw_only=True, eq=False)
class TfdsSource:
    """One split of a TFDS set with features `image` and, optionally, `label`."""

    records: Sequence[Any] = field(repr=False)
    image_shape: tuple[int, ...]
    image_size: int
    class_names: tuple[str, ...]
    provenance: dict[str, Any] = field(repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        record = self.records[index]
        image = resize(record["image"], self.image_size) if self.image_size else record["image"]
        label = int(record["label"]) if self.class_names else 0
        check_labels(np.array([label]), self.num_classes, self.provenance["name"])
        return {"image": image, "label": label}


def open_tfds(argument: str, split: str, *, path: str, image_size: int, seed: int) -> TfdsSource:
    """Open a prepared set; `path` is TFDS's data_dir (default: its own, ~/tensorflow_datasets).

    `image_size` cuts out the centre square and resizes it; it is needed where the images differ in size.

    Raises:
      FileNotFoundError: the set has not been prepared in this format; the message names the command.
      ValueError: an unknown set or split, no uint8 images, or images of several sizes without `image_size`.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(argument, data_dir=path or None)
    except tfds.core.DatasetNotFoundError as error:  # its text lists all thousand sets
        raise ValueError(f"config.data.source = 'tfds:{argument}': TensorFlow Datasets has no such set") from error
    except ValueError as error:
        raise ValueError(f"config.data.source = 'tfds:{argument}': {error}") from error
    info = builder.info
    if info.splits and split not in info.splits:
        raise ValueError(f"split '{split}' is not available for tfds:{argument}; choose from {', '.join(info.splits)}")
    features = dict(info.features or {})
    feature, label = features.get("image"), features.get("label")
    if feature is None or feature.np_dtype != np.uint8:
        raise ValueError(f"config.data.source = 'tfds:{argument}' has no uint8 feature `image`")
    if image_size == 0 and None in feature.shape:
        raise ValueError(f"tfds:{argument} has images of several sizes: set config.data.image_size")
    try:
        records = builder.as_data_source(split=split)
    except (KeyError, OSError, NotImplementedError, AssertionError) as error:
        folder = f"data_dir={path!r}, " if path else ""
        raise FileNotFoundError(
            f"tfds:{argument} is not prepared as {FILE_FORMAT} in {builder.data_dir}. Prepare it once (in another "
            'data_dir if it is there in another format): python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({argument!r}, {folder}file_format={FILE_FORMAT!r}).download_and_prepare()\""
        ) from error
    identity = f"{info.full_name} {split} {len(records)} {image_size}"
    shape = (image_size, image_size, feature.shape[-1]) if image_size else feature.shape
    return TfdsSource(
        records=records,
        image_shape=tuple(shape),
        image_size=image_size,
        class_names=tuple(label.names) if label is not None and hasattr(label, "names") else (),
        provenance={
            "name": f"tfds:{argument}",
            "package": "tensorflow-datasets",
            "version": str(info.version),
            "sha256": hashlib.sha256(identity.encode()).hexdigest(),
            "sha256_of": "full name, split, count and image size",
            "split": split,
            "split_rule": "official",
            "split_seed": seed,
            "count": len(records),
        },
    )
