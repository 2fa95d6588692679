"""What every test shares: annotations checked at run time, JAX on the CPU, and a mixture of Gaussians in float64 numpy.

The import hook has to be in place before the first import of our packages, hence at the top of this file: it checks
every jaxtyping annotation (shapes and dtypes) with beartype at each call. No randomness is seeded here: each test makes
its own generator.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

PACKAGES = ["configs", "data", "diffusion", "distillation", "evaluation", "samplers", "scoring", "training"]
install_import_hook(PACKAGES, "beartype.beartype")

from dataclasses import dataclass

import jax
import numpy as np
import pytest


@dataclass(frozen=True)
class NumpyMixture:
    """A mixture of Gaussians, its noised density and posterior mean in float64, by matrix inverses.

    The oracle of `diffusion/exact.py` and of the samplers: it shares nothing with them, neither code nor the
    eigendecomposition.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def _joint(self, x: np.ndarray, alpha: float, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log(w_k N(x; alpha m_k, alpha^2 C_k + sigma^2 I)) [n, k], residuals [n, k, d], precisions [k, d, d]."""
        dimension = self.means.shape[1]
        covariances = alpha**2 * self.covariances + sigma**2 * np.eye(dimension)
        precisions = np.linalg.inv(covariances)
        residuals = x[:, None, :] - alpha * self.means
        mahalanobis = np.einsum("nki,kij,nkj->nk", residuals, precisions, residuals)
        constants = np.log(self.weights) - 0.5 * np.log(np.linalg.det(2 * np.pi * covariances))
        return constants - 0.5 * mahalanobis, residuals, precisions

    def log_prob(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        return np.logaddexp.reduce(self._joint(x, alpha, sigma)[0], axis=1)

    def score(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """grad log p(x), the responsibility-weighted -S_k^-1 (x - alpha m_k)."""
        joint, residuals, precisions = self._joint(x, alpha, sigma)
        responsibilities = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
        return -np.einsum("nk,kij,nkj->ni", responsibilities, precisions, residuals)

    def denoise(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """E[x0 | x] by Tweedie's formula."""
        return (x + sigma**2 * self.score(x, alpha, sigma)) / alpha


@pytest.fixture(scope="session")
def mixture() -> NumpyMixture:
    """Three unequal components in two dimensions, with correlations, of about unit size."""
    return NumpyMixture(
        weights=np.array([0.5, 0.3, 0.2]),
        means=np.array([[1.0, 0.5], [-1.0, 0.2], [0.1, -1.2]]),
        covariances=np.array(
            [[[0.20, 0.08], [0.08, 0.10]], [[0.15, -0.05], [-0.05, 0.25]], [[0.10, 0.0], [0.0, 0.30]]]
        ),
    )


@pytest.fixture(scope="module")
def quick_to_compile():
    """Programs that are run once: compiling takes the time, and less of it without optimisation.

    JAX keeps them, and would use them in other files, where they differ from optimised ones in the last bit.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
