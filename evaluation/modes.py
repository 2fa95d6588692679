"""How much of a sample lies in each mode of toy2d:three_modes, the first thing that a wrong score gets wrong."""

import numpy as np
from jaxtyping import Float

from data.sources.toy2d import THREE_MODES_WEIGHTS

# Between the modes at -0.9, 0.1 and 1.5, ten standard deviations and more from each.
_THRESHOLDS = (-0.4, 0.8)


def mode_masses(points: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "3"]:
    """Shares of the coordinates of all points below, between and above the thresholds; they add up to 1."""
    modes = np.searchsorted(_THRESHOLDS, points.ravel())
    return np.bincount(modes, minlength=3) / points.size


def mass_error(points: Float[np.ndarray, "n d"]) -> float:
    """The largest deviation of a mode's mass from its probability, in [0, 1]."""
    return float(np.abs(mode_masses(points) - THREE_MODES_WEIGHTS).max())
