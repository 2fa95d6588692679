"""The contract of a feature extractor. Images are quantised (data/images.py:to_uint8) before their features are
taken."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, PyTree, UInt8


@runtime_checkable
class Features(Protocol):
    """Turns 8-bit images into the vectors in which two sets of images are compared.

    Attributes:
      name: of the extractor, part of the metrics' names, e.g. "classifier" in `fd360_test_classifier`.
      dimension: D, the length of a feature vector.
      provenance: what the numbers depend on (weights' hash, resize rule, ...), ready for json; written into each
        result.
      params: the weights, handed back to `taps`: arguments of a compiled function, not constants in it.
    """

    @property
    def name(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def provenance(self) -> dict[str, Any]: ...

    @property
    def params(self) -> PyTree: ...

    def taps(self, params: PyTree, images: UInt8[Array, "n h w c"]) -> dict[str, Float[Array, "n _d"]]:
        """Vectors of N images of 0..255, by the name of the place in the network where they are taken.

        "features" [N, D] is always there; "logits" and "spatial" where the network has them. Traceable, and pure: row i
        depends on image i alone. What is not used of the result is not computed under `jax.jit`.

        Raises:
          ValueError: for images that the network does not take.
        """
        ...
