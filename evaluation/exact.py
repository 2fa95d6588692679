"""Data sets whose noised density is known: name and process -> exact denoiser, hence exact score.

    checkerboard   boxes; rings: rings (diffusion/exact_densities.py)
    mixture        Gaussians, one per class; three_modes: the nine products of the modes of two coordinates
                   (diffusion/exact.py)
    swiss_roll     Gaussians along the curve, quadrature over its parameter

under every process with a Gaussian kernel, and three_modes under the double well too, as its coordinates are
independent draws (diffusion/grid_oracle.py). The constants are those of data/sources/toy2d.py.
"""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np

from data.sources import toy2d
from diffusion.base import Denoiser, Process
from diffusion.exact import ExactMixture, exact_mixture
from diffusion.exact_densities import ExactBoxes, ExactRings
from diffusion.grid_oracle import ExactDoubleWell, exact_double_well, mixture_density
from diffusion.kernel_free import DoubleWell
from diffusion.process import GaussianProcess

# At the roll's own width the integrand is resolved to float32; more noise only smooths it.
_ROLL_NODES = 768


@lru_cache(maxsize=4)
def exact_denoiser(source_name: str, process: Process) -> Denoiser | None:
    """E[x0 | x_t] of a data set under a process, of each class where it has labels; None where nobody knows it.

    Args:
      source_name: as in config.data.source, "toy2d:rings".
      process: hashable, as all of ours are.
    """
    source, _, variant = source_name.partition(":")
    kinds = {GaussianProcess: _UNDER_A_KERNEL, DoubleWell: _UNDER_THE_DOUBLE_WELL}
    known = kinds.get(type(process), {}) if source == "toy2d" else {}
    make = known.get(variant or "checkerboard")
    return make(process) if make else None


def _checkerboard(process: GaussianProcess) -> ExactBoxes:
    return ExactBoxes(process, _single(toy2d.CORNERS), jnp.full(2, toy2d.SQUARE))


def _rings(process: GaussianProcess) -> ExactRings:
    return ExactRings(process, jnp.arange(1, toy2d.RINGS + 1) / toy2d.RINGS, toy2d.NOISE)


def _mixture(process: GaussianProcess) -> ExactMixture:
    count = len(toy2d.MIXTURE_MEANS)
    return _isotropic(process, np.ones(count), toy2d.MIXTURE_MEANS, toy2d.MIXTURE_STD, classes=np.arange(count))


def _swiss_roll(process: GaussianProcess) -> ExactMixture:
    nodes, weights = np.polynomial.legendre.leggauss(_ROLL_NODES)
    return _isotropic(process, weights, toy2d.swiss_roll_curve((nodes + 1) / 2), toy2d.NOISE)


def _three_modes(process: GaussianProcess) -> ExactMixture:
    weights = np.outer(toy2d.THREE_MODES_WEIGHTS, toy2d.THREE_MODES_WEIGHTS)
    means = np.stack(np.meshgrid(toy2d.THREE_MODES_MEANS, toy2d.THREE_MODES_MEANS, indexing="ij"), axis=-1)
    return _isotropic(process, weights.ravel(), means.reshape(-1, 2), toy2d.THREE_MODES_STD)


def _three_modes_in_double_well(process: DoubleWell) -> ExactDoubleWell:
    density = mixture_density(
        np.array(toy2d.THREE_MODES_WEIGHTS), np.array(toy2d.THREE_MODES_MEANS), toy2d.THREE_MODES_STD
    )
    return exact_double_well(process, density)


def _isotropic(
    process: GaussianProcess, weights: np.ndarray, means: np.ndarray, std: float, classes: np.ndarray | None = None
) -> ExactMixture:
    covariances = np.broadcast_to(std**2 * np.eye(2), (len(means), 2, 2))
    return exact_mixture(process, _single(weights), _single(means), _single(covariances),
                         None if classes is None else jnp.asarray(classes))


def _single(values: np.ndarray) -> jnp.ndarray:
    return jnp.asarray(values, jnp.float32)


_UNDER_A_KERNEL = {
    "checkerboard": _checkerboard, "rings": _rings, "mixture": _mixture, "swiss_roll": _swiss_roll,
    "three_modes": _three_modes,
}  # fmt: skip
_UNDER_THE_DOUBLE_WELL = {"three_modes": _three_modes_in_double_well}
