"""Distances between two sets of feature vectors, in float64 on the host.

Frechet distance (Dowson and Landau 1982; Heusel et al. 2017), between Gaussians of the sets' means m and covariances S,
S with divisor N-1:

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)                                                     (1)
    tr (S1 S2)^(1/2) = sum_i sqrt(lambda_i(R S2 R)),   R = S1^(1/2)                                           (2)

R S2 R is symmetric and has the eigenvalues of S1 S2, so (2) stays real for singular covariances, where a general matrix
square root may turn complex or fail. Float32 here would cost up to 0.03 of FID.

Kernel distance (Binkowski et al. 2018, KID), the unbiased estimate of the squared maximum mean discrepancy with a cubic
kernel:

    k(x, y) = (x.y / d + 1)^3                                                                                 (3)
    KD = sum_{i != j} k(x_i, x_j) / (m (m-1)) + sum_{i != j} k(y_i, y_j) / (n (n-1))
         - 2 sum_{ij} k(x_i, y_j) / (m n)                                                                     (4)

averaged over random subsets. The Frechet distance of N samples is biased upwards by about C/N: compare only at equal N,
or extrapolate (evaluation/extrapolation.py). (4) is unbiased at any N, and may be slightly negative.

CMMD (Jayasumana et al. 2024), the squared maximum mean discrepancy with a Gaussian kernel of width 10, diagonals in:

    k(x, y) = exp(-|x - y|^2 / (2 10^2))                                                                      (5)
    CMMD = 1000 (mean_{ij} k(x_i, x_j) + mean_{ij} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j))                     (6)
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy import linalg

from evaluation.moments import Moments, checked_features, moments

# Rows of x that `cmmd` compares with all of y at once: 80 MB for 10,000 vectors.
_CMMD_ROWS = 1024


def _checked_pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets, or a ValueError that says what is wrong with them. Large ones are not copied to float64 as a whole."""
    x, y = checked_features(x, "x"), checked_features(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both feature sets must have one dimension, got x with {x.shape[1]} and y with {y.shape[1]}")
    return x, y


def _checked_moments(given: Moments, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(mean, covariance) in float64."""
    mean, covariance = np.asarray(given.mean, np.float64), np.asarray(given.covariance, np.float64)
    d = mean.shape[-1] if mean.ndim else 0
    if mean.shape != (d,) or covariance.shape != (d, d) or d == 0:
        got = f"{mean.shape} and {covariance.shape}"
        raise ValueError(f"{name}: the mean must have shape [D] and the covariance [D, D], got {got}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{name}: the mean and the covariance must be finite")
    if np.abs(covariance - covariance.T).max() > 1e-6 * np.abs(covariance).max():
        raise ValueError(f"{name}: the covariance must be symmetric")
    return mean, covariance


def frechet_distance_to(reference: Moments) -> Callable[[Moments], float]:
    """The Frechet distance (1) to one Gaussian, as a function of the other: R in (2) is computed once.

    Raises:
      ValueError: if sizes do not fit, a value is not finite, or a covariance is not symmetric; so does the function
        that is returned.
    """
    mean1, covariance1 = _checked_moments(reference, "the reference")
    eigenvalues, vectors = linalg.eigh(covariance1, driver="evd")  # divide and conquer, a third faster than the default
    root = (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T  # R

    def distance(other: Moments) -> float:
        mean2, covariance2 = _checked_moments(other, "the other set")
        if mean2.shape != mean1.shape:
            raise ValueError(f"both sets must have one dimension D, got {mean1.size} and {mean2.size}")
        product = linalg.eigvalsh(root @ covariance2 @ root)
        trace_of_root = np.sqrt(np.clip(product, 0.0, None)).sum()  # (2)
        difference = mean1 - mean2
        traces = np.trace(covariance1) + np.trace(covariance2)
        return float(difference @ difference + traces - 2.0 * trace_of_root)  # (1)

    return distance


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Frechet distance (1) of two Gaussians, by two symmetric eigendecompositions (2).

    The rounding of (2) can leave a tiny negative number for equal Gaussians: about -1e-11 of full rank, -1e-6 of
    deficient rank. It is returned as it is.

    Raises:
      ValueError: if the sizes do not fit, a value is not finite, or a covariance is not symmetric.
    """
    return frechet_distance_to(a)(b)


def frechet_distance_of_features(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m _d2"]) -> float:
    """The Frechet distance (1) between two sets of feature vectors, each [N, D]; N may differ.

    Raises:
      ValueError: for fewer than 2 samples, values that are not finite, or two different D.
    """
    x, y = _checked_pair(x, y)
    return frechet_distance(moments(x), moments(y))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate (4) from features [m, D] and [n, D]."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    m, n, d = len(x), len(y), x.shape[1]

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        base = a @ b.T / d + 1.0
        return base * base * base  # (3); `** 3` calls pow, an order of magnitude slower

    k_xx, k_yy = kernel(x, x), kernel(y, y)
    within_x = (k_xx.sum() - np.trace(k_xx)) / (m * (m - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (n * (n - 1))
    return float(within_x + within_y - 2.0 * kernel(x, y).mean())  # (4)


def kernel_distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "m _d2"],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """The kernel distance (4) between two sets of feature vectors: (mean, standard deviation) over random subsets.

    It is computed `subsets` times from `subset_size` samples of each set, drawn without replacement; the deviation
    (divisor `subsets`) is the spread of one such estimate, not the error of their mean. With the defaults, the draws
    are those of torch-fidelity (numpy's RandomState of seed 2020, x before y), so that both give one value for the same
    features: given in float64, since torch-fidelity computes in the type of the features, and (4) cancels.

    Sets that are too small for this, which torch-fidelity refuses, are handled thus: if both have at most
    `subset_size` samples, (4) is computed once from all of them, and the deviation is 0. If one of them has fewer than
    `subset_size`, its whole size is that of the subsets. The mean is an unbiased estimate in each case.

    Raises:
      ValueError: for fewer than 2 samples, values that are not finite, two different D, subset_size < 2 or subsets < 1.
    """
    x, y = _checked_pair(x, y)
    if subset_size < 2 or subsets < 1:
        raise ValueError(f"need subset_size >= 2 and subsets >= 1, got {subset_size} and {subsets}")
    if max(len(x), len(y)) <= subset_size:
        return _squared_mmd(x, y), 0.0
    size = min(subset_size, len(x), len(y))
    random = np.random.RandomState(seed)
    estimates = [
        _squared_mmd(
            x[random.choice(len(x), size, replace=False)],
            y[random.choice(len(y), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(estimates)), float(np.std(estimates))


def cmmd(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m _d2"]) -> float:
    """CMMD (6) between two sets of embeddings, at their published scale of 1000, in float64.

    The published values are those of the embeddings of CLIP ViT-L/14 at 336 pixels, of unit length; the embeddings are
    compared as they are given.

    Raises:
      ValueError: for fewer than 2 samples, values that are not finite, or two different D.
    """
    x, y = _checked_pair(x, y)
    centre = y.mean(axis=0, dtype=np.float64)  # differences stay, the products below get smaller: less cancellation
    x, y = x - centre, y - centre

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        """The mean of (5), less 1: the ones of (6) cancel."""
        squares, total = np.einsum("nd,nd->n", b, b), 0.0
        for start in range(0, len(a), _CMMD_ROWS):
            block = a[start : start + _CMMD_ROWS]
            distances = np.einsum("nd,nd->n", block, block)[:, None] + squares - 2.0 * block @ b.T
            total += np.expm1(np.clip(distances, 0.0, None) / -200.0).sum()
        return total / (len(a) * len(b))

    return float(1000.0 * (mean_kernel(x, x) + mean_kernel(y, y) - 2.0 * mean_kernel(x, y)))  # (6)
