"""Points of the plane, compared as they are: the `Features` of data sets that hold no images."""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Array, Float, PyTree


@dataclass(frozen=True, eq=False)
class Points:
    """A `Features` whose vectors are the points themselves."""

    name: str = "points"
    dimension: int = 2
    provenance: dict[str, Any] = field(default_factory=lambda: {"name": "points"})
    params: PyTree = ()

    def taps(self, params: PyTree, images: Float[Array, "n d"]) -> dict[str, Float[Array, "n d"]]:
        """"features": the points [N, 2]."""
        return {"features": images}
