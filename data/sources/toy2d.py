"""Points in the plane with known distributions, within about [-1, 1]^2 unless said otherwise.

    checkerboard   uniform on the eight dark squares of a 4 x 4 board on [-1, 1]^2
    swiss_roll     (r cos t, r sin t) + 0.02 n,  t = 1.5 pi (1 + 2 u),  r = t / (4.5 pi),  u uniform in [0, 1)
    rings          circles of radius k / 4 + 0.02 n, k = 1..4, equally likely; label k - 1
    mixture        eight Gaussians of standard deviation MIXTURE_STD around MIXTURE_MEANS; label = component
    three_modes    both coordinates independent draws from three Gaussians, of standard deviation THREE_MODES_STD around
                   THREE_MODES_MEANS with probabilities THREE_MODES_WEIGHTS; reaches to 1.7

n is standard normal. Point i of a split is a function of (variant, split, seed, i) alone.
"""

import zlib

import numpy as np
from jaxtyping import Float

from data import randomness
from data.base import ArraySource, array_source

COUNTS = {"train": 50_000, "test": 10_000}
NOISE = 0.02
SQUARE = 0.5  # side of a square of the board
# Lower left corners of the dark ones.
CORNERS: Float[np.ndarray, "8 2"] = np.array([(i, j) for i in range(4) for j in range(i % 2, 4, 2)]) * SQUARE - 1
RINGS = 4
MIXTURE_STD = 0.05
MIXTURE_MEANS: Float[np.ndarray, "8 2"] = 0.75 * np.stack(
    [np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], axis=1
)

THREE_MODES_WEIGHTS, THREE_MODES_MEANS, THREE_MODES_STD = (0.5, 0.2, 0.3), (-0.9, 0.1, 1.5), 0.05


def _normal_pairs(u: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Two standard normal draws per pair of uniform ones (Box and Muller 1958)."""
    radius = np.sqrt(-2 * np.log1p(-u[:, 0]))
    return radius[:, None] * np.stack([np.cos(2 * np.pi * u[:, 1]), np.sin(2 * np.pi * u[:, 1])], axis=1)


def checkerboard(u: Float[np.ndarray, "n 5"]) -> tuple[np.ndarray, np.ndarray | None]:
    column = np.floor(4 * u[:, 0])
    row = 2 * np.floor(2 * u[:, 1]) + column % 2
    return np.stack([4 * u[:, 0], row + u[:, 2]], axis=1) / 2 - 1, None


def swiss_roll_curve(u: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 2"]:
    """The points of the roll before the noise, at u in [0, 1]."""
    angle = 1.5 * np.pi * (1 + 2 * u)
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / (4.5 * np.pi)


def swiss_roll(u: Float[np.ndarray, "n 5"]) -> tuple[np.ndarray, np.ndarray | None]:
    return swiss_roll_curve(u[:, 0]) + NOISE * _normal_pairs(u[:, 3:]), None


def rings(u: Float[np.ndarray, "n 5"]) -> tuple[np.ndarray, np.ndarray | None]:
    labels = np.floor(RINGS * u[:, 0]).astype(np.int64)
    radius = (labels + 1) / RINGS + NOISE * _normal_pairs(u[:, 3:])[:, 0]
    angle = 2 * np.pi * u[:, 1]
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1), labels


def mixture(u: Float[np.ndarray, "n 5"]) -> tuple[np.ndarray, np.ndarray | None]:
    labels = np.floor(len(MIXTURE_MEANS) * u[:, 0]).astype(np.int64)
    return MIXTURE_MEANS[labels] + MIXTURE_STD * _normal_pairs(u[:, 3:]), labels


def three_modes(u: Float[np.ndarray, "n 5"]) -> tuple[np.ndarray, np.ndarray | None]:
    component = np.searchsorted(np.cumsum(THREE_MODES_WEIGHTS)[:-1], u[:, :2], side="right")
    return np.asarray(THREE_MODES_MEANS)[component] + THREE_MODES_STD * _normal_pairs(u[:, 3:]), None


VARIANTS = {
    "checkerboard": checkerboard, "swiss_roll": swiss_roll, "rings": rings, "mixture": mixture,
    "three_modes": three_modes,
}  # fmt: skip
CLASS_NAMES = {
    "rings": tuple(f"ring {k}" for k in range(RINGS)),
    "mixture": tuple(f"component {k}" for k in range(len(MIXTURE_MEANS))),
}


def open_toy2d(variant: str, split: str, *, path: str, image_size: int, seed: int) -> ArraySource:
    """float32 [2] points of one variant (default: checkerboard); rings and mixture are labelled.

    Raises:
      ValueError: unknown variant, or an image size.
    """
    variant = variant or "checkerboard"
    if variant not in VARIANTS:
        raise ValueError(f"config.data.source = 'toy2d:{variant}' is not known; choose from {', '.join(VARIANTS)}")
    if image_size:
        raise ValueError(f"config.data.image_size = {image_size}, but toy2d has points, not images: leave it at 0")
    stream = zlib.crc32(f"{variant} {split}".encode())  # a stable number for each variant and split
    points, labels = VARIANTS[variant](randomness.uniforms((COUNTS[split], 5), seed, randomness.POINTS, stream))
    return array_source(
        points.astype(np.float32),
        labels,
        CLASS_NAMES.get(variant, ()),
        name=f"toy2d:{variant}",
        version="1",
        split=split,
        split_rule="independent draws",
        split_seed=seed,
    )
