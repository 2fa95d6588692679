"""How near images are to others that they should equal, pair by pair: of one noise, say, by a faster sampler.

  1. relative_l2   |x - y| / |y| of each pair
  2. psnr          10 log10(2^2 / mean (x - y)^2) in dB, the mean over all pixels of all pairs, images in [-1, 1]
  3. ssim          structural similarity, scikit-image's with its defaults (uniform window of 7), the mean over pairs
  4. feature_distance_<features>   |f(x) - f(y)| over the distance of two of the y's, both as roots of mean squares: 0
     for equal features, 1 for images that are no more alike than two at random. Features are the project's own; this is
     not LPIPS.

None of them says how good images are: a sampler can be near another one and both be far from the data.
"""

import numpy as np
from jaxtyping import Float

SSIM_WINDOW = 7


def relative_l2(x: Float[np.ndarray, "n ..."], y: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, " n"]:
    """Equation 1, of each pair.

    Raises:
      ValueError: for sets of different shapes.
    """
    x, y = _pairs(x, y)
    return np.linalg.norm(x - y, axis=1) / np.linalg.norm(y, axis=1)


def psnr(x: Float[np.ndarray, "n ..."], y: Float[np.ndarray, "n ..."]) -> float:
    """Equation 2, images clipped to [-1, 1]; infinite for equal ones."""
    x, y = _pairs(np.clip(x, -1.0, 1.0), np.clip(y, -1.0, 1.0))
    error = np.mean(np.square(x - y))
    return float(10 * np.log10(4 / error)) if error else float("inf")


def ssim(x: Float[np.ndarray, "n h w c"], y: Float[np.ndarray, "n h w c"]) -> float:
    """Equation 3, images clipped to [-1, 1].

    Raises:
      ValueError: for sets of different shapes, or images smaller than the window.
    """
    from skimage.metrics import structural_similarity  # takes a second

    _pairs(x, y)
    if min(x.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"structural similarity needs images of at least {SSIM_WINDOW} pixels a side, got "
                         f"{x.shape[1:3]}")
    pairs = zip(np.clip(x, -1.0, 1.0).astype(np.float64), np.clip(y, -1.0, 1.0).astype(np.float64))
    return float(np.mean([structural_similarity(a, b, win_size=SSIM_WINDOW, data_range=2.0, channel_axis=-1)
                          for a, b in pairs]))  # fmt: skip


def feature_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> float:
    """Equation 4, of rows of features; two of the y's are each and the next.

    Raises:
      ValueError: for sets of different shapes, or fewer than two pairs.
    """
    x, y = _pairs(x, y)
    if len(y) < 2:
        raise ValueError(f"a distance of features needs at least two pairs, got {len(y)}")
    apart = np.square(y - np.roll(y, 1, axis=0)).sum(1).mean()
    return float(np.sqrt(np.square(x - y).sum(1).mean() / apart))


def paired_fidelity(x: Float[np.ndarray, "n h w c"], y: Float[np.ndarray, "n h w c"]) -> dict[str, float]:
    """{"relative_l2" (median), "relative_l2_mean", "relative_l2_p95", "psnr", "ssim"}, at their worst where x is not
    finite."""
    if not np.isfinite(x).all():
        return {"relative_l2": np.inf, "relative_l2_mean": np.inf, "relative_l2_p95": np.inf, "psnr": -np.inf,
                "ssim": -1.0}  # fmt: skip
    errors = relative_l2(x, y)
    return {"relative_l2": float(np.median(errors)), "relative_l2_mean": float(np.mean(errors)),
            "relative_l2_p95": float(np.percentile(errors, 95)), "psnr": psnr(x, y), "ssim": ssim(x, y)}  # fmt: skip


def _pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 rows."""
    if x.shape != y.shape or not len(x):
        raise ValueError(f"pairs need two sets of one shape, got {x.shape} and {y.shape}")
    return tuple(np.asarray(some, np.float64).reshape(len(some), -1) for some in (x, y))
