"""Langevin dynamics with a frozen drift, integrated exactly: the chains that the Poisson midpoint method speeds up.

One micro step of length d of a state x with drift b is x' = A_d x + G_d b + L_d Z, and n of them with the same b are
one of length n d [Kandasamy & Nagaraj 2024, section 1]. A state has S parts, [B, S, ...], the first being the position.

  1. Overdamped, dx = score dt + sqrt(2) dw:  S = 1, A = 1, G = h, L = sqrt(2 h).
  2. Underdamped with friction g, du = v dt, dv = (score(u) - g v) dt + sqrt(2 g) dw, target p(u) N(v; 0, I): S = 2,
     y = g h, e = exp(-y),
       A = [[1, (1 - e) / g], [0, e]],  G = [(y - (1 - e)) / g^2, (1 - e) / g],
       L L' = [[2 (y - 2 (1 - e) + (1 - e^2) / 2) / g^2, (1 - e)^2 / g], [., 1 - e^2]].
     The first entry is (2 / 3) y^3 / g^2 to leading order: by its series where the formula would cancel.
  3. Stability: on a Gaussian of precision 1 a macro step is a random matrix M, and second moments stay bounded where
     the spectral radius of E[M x M] (Kronecker product) is below 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import factorial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from samplers.midpoint import weights

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True, eq=False)
class LinearDynamics:
    """Macro steps of K equal micro steps, as `samplers.midpoint.Dynamics`. Host tables over n = 0 ... K micro steps.

    Attributes:
      micro_steps: [M] all K.
      transfer: [K + 1, S, S] A of n micro steps.
      force: [K + 1, S] G of n micro steps.
      root: [K + 1, S, S] L of n micro steps, lower triangular.
    """

    micro_steps: np.ndarray
    transfer: np.ndarray
    force: np.ndarray
    root: np.ndarray

    def mean(self, m: Array, tau: Array, x: Array, q: Array) -> Array:
        return _product(self.transfer, tau, x) + _outer(self.force, tau, q)

    def noise(self, m: Array, tau: Array, target: Array, noise: Array, z: Array) -> Array:
        return _product(self.transfer, target - tau, noise) + _product(self.root, target - tau, z)

    def correction(self, m: Array, tau: Array, change: Array) -> Array:
        moved = np.einsum("nij,j->ni", self.transfer[:-1], self.force[1])[::-1]  # A_{(K - 1 - tau) d} G_d
        return _outer(moved, tau, change)


def _product(matrices: np.ndarray, n: Array, x: Array) -> Array:
    """Matrix n[b] times the state of row b."""
    return jnp.einsum("bij,bj...->bi...", jnp.asarray(matrices, x.dtype)[n], x, precision=_HIGHEST)


def _outer(vectors: np.ndarray, n: Array, q: Array) -> Array:
    return jnp.einsum("bi,b...->bi...", jnp.asarray(vectors, q.dtype)[n], q, precision=_HIGHEST)


def overdamped(step_size: float, micro_steps: int, steps: int) -> LinearDynamics:
    """Equation 1: `steps` macro steps of length `step_size`."""
    h = step_size * np.arange(micro_steps + 1) / micro_steps
    return LinearDynamics(np.full(steps, micro_steps), np.ones((len(h), 1, 1)), h[:, None],
                          np.sqrt(2 * h)[:, None, None])


def underdamped(step_size: float, micro_steps: int, steps: int, friction: float) -> LinearDynamics:
    """Equation 2. Raises ValueError for a friction that is not positive."""
    if not friction > 0:
        raise ValueError(f"friction = {friction} must be positive")
    y = friction * step_size * np.arange(micro_steps + 1) / micro_steps
    one_minus_e = -np.expm1(-y)
    transfer, root = np.zeros((2, len(y), 2, 2))
    transfer[:, 0, 0], transfer[:, 0, 1], transfer[:, 1, 1] = 1, one_minus_e / friction, np.exp(-y)
    force = np.stack([(y - one_minus_e) / friction**2, one_minus_e / friction], axis=-1)
    root[:, 0, 0] = np.sqrt(2 * _position_variance(y)) / friction
    covariance = one_minus_e**2 / friction
    root[:, 1, 0] = np.divide(covariance, root[:, 0, 0], out=np.zeros_like(y), where=y > 0)
    root[:, 1, 1] = np.sqrt(np.maximum(-np.expm1(-2 * y) - root[:, 1, 0] ** 2, 0))
    return LinearDynamics(np.full(steps, micro_steps), transfer, force, root)


def _position_variance(y: np.ndarray) -> np.ndarray:
    """y - 2 (1 - e^-y) + (1 - e^-2y) / 2 = sum_{n >= 3} (-1)^n (2 - 2^(n - 1)) y^n / n!."""
    series = sum((-1) ** n * (2 - 2.0 ** (n - 1)) * np.minimum(y, 1) ** n / factorial(n) for n in range(3, 28))
    return np.where(y < 1, series, y + 2 * np.expm1(-y) - 0.5 * np.expm1(-2 * y))


def growth(dynamics: LinearDynamics, mode: str) -> float:
    """Equation 3: the factor by which second moments grow in a macro step, on a Gaussian of precision 1."""
    k, parts = len(dynamics.force) - 1, dynamics.force.shape[1]
    position = np.eye(parts)[0]
    frozen = dynamics.transfer - dynamics.force[:, :, None] * position  # [K + 1, S, S]: x -> x_i of equation 2
    effects = np.einsum("nij,j->ni", dynamics.transfer[:-1], dynamics.force[1])[::-1]
    w = float(weights(mode, dynamics.micro_steps[:1])[0])
    # What a fired i adds to the matrix of the macro step.
    changes = -w * effects[:, :, None] * (frozen[:k, 0] - position)[:, None, :]
    if mode == "bernoulli":
        mean, variance = frozen[k] + changes.mean(axis=0), (1 - 1 / k) / k
        moment = np.kron(mean, mean) + variance * sum(np.kron(change, change) for change in changes)
    else:
        fired = changes[1:] if mode == "single" and k > 1 else changes
        moment = np.mean([np.kron(frozen[k] + change, frozen[k] + change) for change in fired], axis=0)
    return float(np.abs(np.linalg.eigvals(moment)).max())


def step_limit(make: Callable[[float], LinearDynamics], mode: str) -> float:
    """The largest step size at which `make(step_size)` is stable on a Gaussian of precision 1, to 1e-3."""
    low, high = 1e-3, 100.0
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if growth(make(middle), mode) < 1 else (low, middle)
    return low
