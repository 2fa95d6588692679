"""Closed-form denoisers: the exact E[x0 | x_t] of distributions we can write down, usable wherever a network is.

With a = alpha(t), s = sigma(t), x = x_t flattened to d coordinates:

  1. Gaussian N(m, C), C = U diag(l) U':   E[x0 | x] = m + U diag(a l / (a^2 l + s^2)) U' (x - a m).
  2. Mixture sum_k w_k N(m_k, C_k):        E[x0 | x] = sum_k r_k(x) E_k[x0 | x], with responsibilities
                                           r_k(x) proportional to w_k N(x; a m_k, a^2 C_k + s^2 I).
  3. Empirical (1/N) sum_n delta(y_n):     the mixture of N components without covariance,
                                           r_n(x) proportional to exp(-|x - a y_n|^2 / (2 s^2)).

Components may carry a class: then `label` restricts the sum to the components of that class, and any label that no
component has (such as num_classes, "no class") to nothing, i.e. the whole mixture.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from diffusion.process import GaussianProcess

_PRECISION = jax.lax.Precision.HIGHEST
_einsum = partial(jnp.einsum, precision=_PRECISION)


@dataclass(frozen=True, eq=False)
class ExactMixture:
    """Equations 1 and 2: a mixture of Gaussians with full covariances (one component: a Gaussian).

    Attributes:
      process: the noising process.
      log_weights: [K], normalised.
      means: [K, d].
      eigenvalues, eigenvectors: [K, d] and [K, d, d] of the covariances (columns are vectors).
      classes: [K] class of each component, or None to ignore labels.
    """

    process: GaussianProcess
    log_weights: Float[Array, " k"]
    means: Float[Array, "k d"]
    eigenvalues: Float[Array, "k d"]
    eigenvectors: Float[Array, "k d d"]
    classes: Int[Array, " k"] | None = None

    def _terms(
        self, x: Float[Array, "batch d"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None
    ) -> tuple[Float[Array, "batch k"], Float[Array, "batch k d"], Float[Array, "batch k d"]]:
        """log(w_k N(x; ...)), coordinates of x - a m_k in the eigenbasis of component k, and their variances."""
        a, s = self.process.alpha(t)[:, None, None], self.process.sigma(t)[:, None, None]
        coordinates = _einsum("kdi,bkd->bki", self.eigenvectors, x[:, None, :] - a * self.means)
        variances = a**2 * self.eigenvalues + s**2
        log_density = -0.5 * jnp.sum(coordinates**2 / variances + jnp.log(2 * jnp.pi * variances), -1)
        return log_density + class_weights(self.log_weights, self.classes, label), coordinates, variances

    def __call__(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch *shape"]:
        log_joint, coordinates, variances = self._terms(x_t.reshape(len(x_t), -1), t, label)
        responsibilities = jax.nn.softmax(log_joint, axis=-1)
        gain = self.process.alpha(t)[:, None, None] * self.eigenvalues / variances
        shrunk = _einsum("kdi,bki->bkd", self.eigenvectors, gain * coordinates)
        x0 = _einsum("bk,bkd->bd", responsibilities, self.means + shrunk)
        return x0.reshape(x_t.shape)

    def log_prob(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, " batch"]:
        """log p_t(x_t), the density of the noised mixture."""
        return jax.nn.logsumexp(self._terms(x_t.reshape(len(x_t), -1), t, label)[0], axis=-1)

    def sample(self, key: Key[Array, ""], count: int) -> tuple[Float[Array, "count d"], Int[Array, " count"]]:
        """Exact draws of x0, flat, and the component of each."""
        key_component, key_noise = jax.random.split(key)
        component = jax.random.categorical(key_component, self.log_weights, shape=(count,))
        noise = jax.random.normal(key_noise, (count, self.means.shape[1]))
        scaled = noise * jnp.sqrt(self.eigenvalues[component])
        return self.means[component] + _einsum("ndi,ni->nd", self.eigenvectors[component], scaled), component


def exact_mixture(
    process: GaussianProcess,
    weights: Float[Array, " k"],
    means: Float[Array, "k d"],
    covariances: Float[Array, "k d d"],
    classes: Int[Array, " k"] | None = None,
) -> ExactMixture:
    """The denoiser of equation 2.

    Args:
      weights: positive; normalised here.
      means: flattened to d coordinates (row-major order of the image).
      covariances: symmetric positive semi-definite.
      classes: class of each component, or None to ignore labels.

    Raises:
      ValueError: for a weight that is not positive or a covariance that is not positive semi-definite.
    """
    if not bool((weights > 0).all()):
        raise ValueError(f"mixture weights must be positive, not {weights}")
    eigenvalues, eigenvectors = jnp.linalg.eigh(covariances)
    if bool((eigenvalues < -1e-5 * eigenvalues.max(axis=-1, keepdims=True)).any()):
        raise ValueError(f"mixture covariances must be positive semi-definite; smallest eigenvalue "
                         f"{float(eigenvalues.min()):.3g}")
    log_weights = jnp.log(weights / weights.sum())
    return ExactMixture(process, log_weights, means, jnp.maximum(eigenvalues, 0), eigenvectors, classes)


def exact_gaussian(
    process: GaussianProcess, mean: Float[Array, " d"], covariance: Float[Array, "d d"]
) -> ExactMixture:
    """The denoiser of equation 1, as the mixture of one component."""
    return exact_mixture(process, jnp.ones(1), mean[None], covariance[None])


def fitted_gaussians(
    process: GaussianProcess,
    data: Float[np.ndarray, "n *shape"],
    classes: Int[np.ndarray, " n"] | None = None,
    *,
    floor: float,
) -> ExactMixture:
    """Equation 2 with one Gaussian per class, that of maximum likelihood; all data are one class if there are none.

    Args:
      data: in the range of x0.
      classes: class of each example, or None. Weights are the frequencies.
      floor: variance, positive, that is added in every direction: pixels that never change have none.
    """
    flat = np.asarray(data, np.float64).reshape(len(data), -1)
    names = np.zeros(1, np.int32) if classes is None else np.unique(classes)
    groups = [flat] if classes is None else [flat[classes == name] for name in names]
    means = [group.mean(axis=0) for group in groups]
    # In double precision, since the error of single precision exceeds such a floor.
    spectra = [np.linalg.eigh((group - mean).T @ (group - mean) / len(group)) for group, mean in zip(groups, means)]
    single = partial(jnp.asarray, dtype=jnp.float32)
    return ExactMixture(
        process, single(np.log([len(group) / len(flat) for group in groups])), single(np.stack(means)),
        single(np.stack([np.maximum(values, 0) + floor for values, _ in spectra])),
        single(np.stack([vectors for _, vectors in spectra])),
        None if classes is None else jnp.asarray(names, jnp.int32),
    )


@dataclass(frozen=True, eq=False)
class ExactEmpirical:
    """Equation 3: the distribution of a finite data set. Its samples are the data themselves.

    Attributes:
      process: the noising process.
      data: [N, ...], in the range of x0.
      classes: [N] or None to ignore labels.
    """

    process: GaussianProcess
    data: Float[Array, "n *shape"]
    classes: Int[Array, " n"] | None = None

    def __call__(
        self, x_t: Float[Array, "batch *shape"], t: Float[Array, " batch"], label: Int[Array, " batch"] | None = None
    ) -> Float[Array, "batch *shape"]:
        flat = self.data.reshape(len(self.data), -1)
        a, s = self.process.alpha(t), self.process.sigma(t)

        def square_distances(row: tuple[Array, Array]) -> Array:
            # Direct differences, a few rows at a time: expanding the square would cancel at low noise.
            x, a_row = row
            return jnp.sum((x - a_row * flat) ** 2, axis=-1)

        distances = jax.lax.map(square_distances, (x_t.reshape(len(x_t), -1), a), batch_size=16)
        uniform = jnp.full(len(flat), -jnp.log(float(len(flat))))
        log_joint = -0.5 * distances / s[:, None] ** 2 + class_weights(uniform, self.classes, label)
        x0 = jnp.matmul(jax.nn.softmax(log_joint, axis=-1), flat, precision=_PRECISION)
        return x0.reshape(x_t.shape)


def class_weights(
    log_weights: Float[Array, " k"], classes: Int[Array, " k"] | None, label: Int[Array, " batch"] | None
) -> Float[Array, "..."]:
    """log w_k, or log w_k restricted to the components of each label and normalised, [B, K]."""
    if classes is None or label is None:
        return log_weights
    same = classes[None, :] == label[:, None]
    keep = same | ~same.any(axis=-1, keepdims=True)
    restricted = jnp.where(keep, log_weights, -jnp.inf)
    return restricted - jax.nn.logsumexp(restricted, axis=-1, keepdims=True)
