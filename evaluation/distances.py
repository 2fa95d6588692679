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

averaged over random subsets. The Frechet distance of N samples is biased upwards by about C/N: compare only at equal N.
(4) is unbiased at any N, and may be slightly negative.
"""

import numpy as np
from jaxtyping import Float
from scipy import linalg


def _checked(features: np.ndarray, name: str) -> np.ndarray:
    """The features as float64, or a ValueError that says what is wrong with them."""
    if features.ndim != 2:
        raise ValueError(f"{name} must have shape [N, D], got {features.shape}")
    if len(features) < 2:
        raise ValueError(f"{name} must hold at least 2 samples, got {len(features)}: one sample has no covariance")
    if not np.isfinite(features).all():
        bad = np.count_nonzero(~np.isfinite(features).all(axis=1))
        raise ValueError(f"{name} must be finite, but {bad} of {len(features)} samples hold NaN or infinity")
    return features.astype(np.float64)


def _same_dimension(x: np.ndarray, y: np.ndarray) -> None:
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both feature sets must have one dimension, got x with {x.shape[1]} and y with {y.shape[1]}")


def moments(features: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
    """The mean [D] and the covariance [D, D], divisor N-1, of feature vectors [N, D].

    Raises:
      ValueError: for fewer than 2 samples, or values that are not finite.
    """
    features = _checked(features, "features")
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(
    mean1: Float[np.ndarray, " d"],
    covariance1: Float[np.ndarray, "d d"],
    mean2: Float[np.ndarray, " _d2"],
    covariance2: Float[np.ndarray, "_d2 _d2"],
) -> float:
    """The Frechet distance (1) of two Gaussians, by two symmetric eigendecompositions (2).

    The rounding of (2) can leave a tiny negative number for equal Gaussians: about -1e-11 of full rank, -1e-6 of
    deficient rank. It is returned as it is.

    Raises:
      ValueError: if the sizes do not fit, a value is not finite, or a covariance is not symmetric.
    """
    shapes = [mean1.shape, covariance1.shape, mean2.shape, covariance2.shape]
    d = mean1.shape[-1]
    if shapes != [(d,), (d, d)] * 2:
        raise ValueError(f"the means must be [D] and the covariances [D, D] with one D, got shapes {shapes}")
    mean1, covariance1, mean2, covariance2 = (
        np.asarray(a, np.float64) for a in (mean1, covariance1, mean2, covariance2)
    )
    if not all(np.isfinite(a).all() for a in (mean1, covariance1, mean2, covariance2)):
        raise ValueError("the means and the covariances must be finite")
    for name, covariance in (("covariance1", covariance1), ("covariance2", covariance2)):
        if np.abs(covariance - covariance.T).max() > 1e-6 * np.abs(covariance).max():
            raise ValueError(f"{name} must be symmetric")
    eigenvalues, vectors = linalg.eigh(covariance1)
    root = (vectors * np.sqrt(np.clip(eigenvalues, 0.0, None))) @ vectors.T  # R
    product = linalg.eigvalsh(root @ covariance2 @ root)
    trace_of_root = np.sqrt(np.clip(product, 0.0, None)).sum()  # (2)
    difference = mean1 - mean2
    return float(difference @ difference + np.trace(covariance1) + np.trace(covariance2) - 2.0 * trace_of_root)  # (1)


def frechet_distance_of_features(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m _d2"]) -> float:
    """The Frechet distance (1) between two sets of feature vectors, each [N, D]; N may differ.

    Raises:
      ValueError: for fewer than 2 samples, values that are not finite, or two different D.
    """
    x, y = _checked(x, "x"), _checked(y, "y")
    _same_dimension(x, y)
    return frechet_distance(*moments(x), *moments(y))


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate (4) from float64 features [m, D] and [n, D]."""
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
    seed: int = 0,
) -> tuple[float, float]:
    """The kernel distance (4) between two sets of feature vectors: (mean, standard deviation) over random subsets.

    If both sets have at most `subset_size` samples, (4) is computed once from all of them, and the deviation is 0. Else
    it is computed `subsets` times from min(subset_size, N_x, N_y) samples of each set, drawn without replacement; the
    deviation (divisor `subsets`) is then the spread of one such estimate, not the error of their mean.

    Raises:
      ValueError: for fewer than 2 samples, values that are not finite, two different D, subset_size < 2 or subsets < 1.
    """
    x, y = _checked(x, "x"), _checked(y, "y")
    _same_dimension(x, y)
    if subset_size < 2 or subsets < 1:
        raise ValueError(f"need subset_size >= 2 and subsets >= 1, got {subset_size} and {subsets}")
    if max(len(x), len(y)) <= subset_size:
        return _squared_mmd(x, y), 0.0
    size = min(subset_size, len(x), len(y))
    random = np.random.default_rng(seed)
    estimates = [
        _squared_mmd(
            x[random.choice(len(x), size, replace=False)],
            y[random.choice(len(y), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(estimates)), float(np.std(estimates))
