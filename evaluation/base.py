"""The contract of a feature extractor. Images are quantised (data/images.py:to_uint8) before their features are
taken."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8


@runtime_checkable
class Features(Protocol):
    """Turns 8-bit images into the vectors in which two sets of images are compared.

    Attributes:
      name: part of the metric's name, e.g. "classifier" in `fd_classifier_360`.
      dimension: D, the length of a feature vector.
      provenance: what the numbers depend on (weights' hash, training data, ...), ready for json; written into each
        result.
    """

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def provenance(self) -> dict[str, Any]: ...

    def features(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n d"]:
        """The features of N images of 0..255. Row i depends on image i alone."""
        ...
