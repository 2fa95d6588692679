"""Exact nearest neighbours in pixel space: are the samples new images, or copies of training images?

    nn(q; R)  = min_{r in R} |q - r|_2                                                                        (1)
    ratio     = median_i nn(sample_i; train) / median_j nn(test_j; train)                                     (2)
"""

import numpy as np
from jaxtyping import Float

# References x queries held at once, as float64: 64 MiB.
_BLOCK_ENTRIES = 2**23


def _flat(images: np.ndarray, name: str) -> np.ndarray:
    if len(images) == 0:
        raise ValueError(f"{name} must hold at least one image")
    flat = images.reshape(len(images), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise ValueError(f"{name} must be finite")
    return flat


def nearest_distances(
    queries: Float[np.ndarray, "n ..."], references: Float[np.ndarray, "m ..."], *, exclude_self: bool = False
) -> Float[np.ndarray, " n"]:
    """The Euclidean distance (1) from each query [N, ...] to its nearest reference [M, ...], in float64.

    Args:
      exclude_self: `queries` and `references` are one set in one order; the i-th query ignores the i-th reference.

    Raises:
      ValueError: if the shapes of one item differ, a set is empty (or too small for exclude_self), or a value is not
        finite.
    """
    if queries.shape[1:] != references.shape[1:]:
        raise ValueError(f"queries and references differ in shape: {queries.shape[1:]} and {references.shape[1:]}")
    if exclude_self and (len(queries) != len(references) or len(queries) < 2):
        counts = f"{len(queries)} queries and {len(references)} references"
        raise ValueError(f"exclude_self needs one set of at least 2 items, got {counts}")
    queries, references = _flat(queries, "queries"), _flat(references, "references")
    squares = np.einsum("md,md->m", references, references)
    rows = max(1, _BLOCK_ENTRIES // len(references))
    distances = np.empty(len(queries))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        # |q - r|^2 - |q|^2 by one matrix product finds the neighbour; its distance is then taken from the difference
        # itself, because the expansion would leave about 1e-7 where a copy must give 0.
        scores = squares - 2.0 * block @ references.T
        if exclude_self:
            own = np.arange(len(block))
            scores[own, start + own] = np.inf
        distances[start : start + rows] = np.linalg.norm(block - references[scores.argmin(axis=1)], axis=1)
    return distances


def memorisation_ratio(
    samples: Float[np.ndarray, "n ..."], train: Float[np.ndarray, "m ..."], test: Float[np.ndarray, "k ..."]
) -> float:
    """How far generated samples lie from the training set, in units of how far unseen real images do: (2).

    About 1: the samples are as far from the training images as the test images are, as new draws from the data would
    be. Near 0: most samples are copies. Well above 1: the samples leave the data (blur, artefacts), which hides
    copying: read it beside a Frechet distance. The medians make it a statement about typical samples; a few copies do
      not show.

    Args:
      samples: generated images, pixels in [-1, 1].
      train: the images the model was trained on, in the same range.
      test: images of the same source that it was not trained on.

    Raises:
      ValueError: as `nearest_distances`, or if half of the test images are themselves in the training set.
    """
    unit = float(np.median(nearest_distances(test, train)))
    if unit == 0.0:
        raise ValueError("at least half of the test images are in the training set: no memorisation ratio")
    return float(np.median(nearest_distances(samples, train))) / unit
