"""Exact second moments of the Poisson midpoint method on Gaussian data, from its own code and without sampling.

Where the network is linear, a macro step of `samplers.midpoint.walk` is linear in the state and in its normal draws,
once it is known which midpoints fire. Unit vectors in the place of state and draws give the matrix R of that map, rows
in and columns out, and the covariance after a step is

  1. V' = E_H [R_x' V R_x + R_z' R_z],   R_x the rows of the state, R_z those of the draws.
  2. Where at most one midpoint fires (modes single0 and single), the expectation is the mean over its offset.
  3. Mode bernoulli: on the noise of all micro steps R is affine in independent H, so that with R_0 where none fires and
     R_i where only i does,  V' of the matrix R_0 + sum_i (R_i - R_0) / K,  and of (R_i - R_0) sqrt(K - 1) / K for every
     i > 0, all added up.
  4. A draw stands for the noise between two calls, from micro step s to e. With N = z L that noise, L from the
     dynamics, and N = sum_j Z_j C_j in terms of the micro steps' draws, z = sum_j Z_j C_j L^-1.

Run it in double precision, `with jax.enable_x64(True)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from samplers.midpoint import Dynamics, check_mode, walk, weights

# (state [B, S, F], macro step [B], micro step [B]) -> the frozen quantity, linear in the state.
Quantity = Callable[[Array, Array, Array], Array]


class Transitions(NamedTuple):
    """Equation 1 of every macro step and every feature: V'_ab = sum_cd growth_abcd V_cd + added_ab.

    Attributes:
      growth: [M, F, S, S, S, S].
      added: [M, F, S, S].
    """

    growth: Float[np.ndarray, "m f s s s s"]
    added: Float[np.ndarray, "m f s s"]

    def after(self, v: Float[np.ndarray, "f s s"]) -> Float[np.ndarray, "f s s"]:
        """The covariance after all macro steps, one after another."""
        for growth, added in zip(self.growth, self.added):
            v = np.einsum("fabcd,fcd->fab", growth, v) + added
        return v

    def stationary(self) -> Float[np.ndarray, "f s s"]:
        """The covariance that the first macro step leaves as it is. Raises ValueError where there is none."""
        growth, added = self.growth[0], self.added[0]
        features, parts = added.shape[:2]
        matrix = growth.reshape(features, parts**2, parts**2)
        if np.abs(np.linalg.eigvals(matrix)).max() >= 1:
            raise ValueError("the step is not stable: second moments grow without end")
        flat = np.linalg.solve(np.eye(parts**2) - matrix, added.reshape(features, -1, 1))
        return flat.reshape(features, parts, parts)


@dataclass(frozen=True, eq=False)
class _Placed:
    """One macro step, which in row b is macro step place[b] of `tables`, with its weight."""

    tables: Dynamics
    weight: np.ndarray
    place: Array

    @property
    def micro_steps(self) -> np.ndarray:
        return self.tables.micro_steps.max(keepdims=True)

    def _inner(self, tau: Array) -> Array:
        """Micro steps are counted to the largest K, at which all rows end."""
        return jnp.where(tau == self.micro_steps[0], jnp.asarray(self.tables.micro_steps)[self.place], tau)

    def mean(self, m: Array, tau: Array, x: Array, q: Array) -> Array:
        return self.tables.mean(self.place, self._inner(tau), x, q)

    def noise(self, m: Array, tau: Array, target: Array, noise: Array, z: Array) -> Array:
        return self.tables.noise(self.place, self._inner(tau), self._inner(target), noise, z)

    def correction(self, m: Array, tau: Array, change: Array) -> Array:
        moved = self.tables.correction(self.place, tau, change)
        weight = jnp.asarray(self.weight, moved.dtype)[self.place]
        return weight.reshape(-1, *(1,) * (moved.ndim - 1)) * moved


def transitions(dynamics: Dynamics, quantity: Quantity, mode: str, *, parts: int = 1, features: int = 1) -> Transitions:
    """Equations 1 to 4.

    Args:
      dynamics: M macro steps, states [B, S, F].
      quantity: linear in the state, and in each feature by itself.
      mode: of MODES.
      parts, features: S and F; features are independent problems that are probed at once.
    """
    check_mode(mode)
    sizes = dynamics.micro_steps.tolist()
    cases = [(m, i) for m, k in enumerate(sizes) for i in range(k)]  # i = 0: none fires
    responses = _responses(dynamics, quantity, mode, np.array(cases), parts, features)
    growth, added = np.empty((len(sizes), features, *4 * (parts,))), np.empty((len(sizes), features, parts, parts))
    ends = np.cumsum(sizes)
    paths = _paths(dynamics, parts) if mode == "bernoulli" else None
    for m, (end, k) in enumerate(zip(ends, sizes)):
        of_step = responses[end - k : end]  # [K, F, 3 S, S]
        if mode == "bernoulli":
            on_path = _on_micro_steps(of_step, paths[m], k)
            changes = on_path[1:] - on_path[0]
            terms = np.concatenate([on_path[:1] + changes.sum(0, keepdims=True) / k, changes * np.sqrt(k - 1) / k])
            share = 1.0
        else:
            terms = of_step[1:] if mode == "single" and k > 1 else of_step
            share = 1 / len(terms)
        of_x, of_z = terms[:, :, :parts], terms[:, :, parts:]
        growth[m] = share * np.einsum("ifca,ifdb->fabcd", of_x, of_x)
        added[m] = share * np.einsum("ifza,ifzb->fab", of_z, of_z)
    return Transitions(growth, added)


def _responses(
    dynamics: Dynamics, quantity: Quantity, mode: str, cases: np.ndarray, parts: int, features: int
) -> Float[np.ndarray, "n f probes s"]:
    """[N, F, 3 S, S]: the macro step of each case (macro step, offset) fed with unit vectors of x, first and last z."""
    probes = np.eye(3 * parts).reshape(3 * parts, 3, parts)
    rows = np.tile(probes, (len(cases), 1, 1))[..., None].repeat(features, axis=-1)  # [N 3 S, 3, S, F]
    place, fired = np.repeat(cases, 3 * parts, axis=0).T
    most = int(dynamics.micro_steps.max())
    weight = weights(mode, dynamics.micro_steps)

    def run(rows: Array, place: Array, fired: Array) -> Array:
        def evaluate(x: Array, m: Array, tau: Array) -> tuple[Array, Array]:
            return quantity(x, place, tau), jnp.ones(len(x), jnp.int32)

        return walk(
            _Placed(dynamics, weight, place), evaluate, rows[:, 0], weight=np.ones(1),
            offsets=lambda m, tau, count: jnp.where((tau > 0) | (fired == 0), most, fired).astype(jnp.int32),
            # Without a midpoint there is one draw, that of the whole step.
            normal=lambda count: jnp.where((count == 0)[:, None, None], rows[:, 1], rows[:, 2]),
        ).x  # fmt: skip

    end = np.asarray(jax.jit(run)(jnp.asarray(rows), jnp.asarray(place), jnp.asarray(fired)))
    return end.reshape(len(cases), 3 * parts, parts, features).transpose(0, 3, 1, 2)


def _paths(dynamics: Dynamics, parts: int) -> list[dict[str, np.ndarray]]:
    """Of each macro step, C and L of equation 4: [K, K + 1, S, S], by j and e, and by s and e."""
    sizes = dynamics.micro_steps.tolist()
    triples = np.array([(m, j, e) for m, k in enumerate(sizes) for j in range(k) for e in range(j + 1, k + 1)])
    m, j, e = (jnp.asarray(np.repeat(column, parts), jnp.int32) for column in triples.T)
    unit = jnp.tile(jnp.eye(parts), (len(triples), 1))[..., None]
    zero = jnp.zeros_like(unit)

    @jax.jit
    def parts_of(unit: Array, zero: Array) -> tuple[Array, Array]:
        own = dynamics.noise(m, j, j + 1, zero, unit)
        # Not carried where there is nothing left to carry it over.
        carried = jnp.where((j + 1 == e)[:, None, None], own, dynamics.noise(m, j + 1, e, own, zero))
        return carried, dynamics.noise(m, j, e, zero, unit)

    of_path, of_segment = (np.asarray(found).reshape(-1, parts, parts) for found in parts_of(unit, zero))
    result = []
    for step, k in enumerate(sizes):
        mine = triples[:, 0] == step
        _, first, last = triples[mine].T
        tables = {"C": np.zeros((k, k + 1, parts, parts)), "L": np.zeros((k, k + 1, parts, parts))}
        tables["C"][first, last], tables["L"][first, last] = of_path[mine], of_segment[mine]
        result.append(tables)
    return result


def _on_micro_steps(responses: np.ndarray, path: dict[str, np.ndarray], k: int) -> np.ndarray:
    """[K, F, 3 S, S] -> [K, F, S + K S, S]: equation 4, from the one or two draws of a walk to those of micro steps."""
    count, features, _, parts = responses.shape
    result = np.zeros((count, features, parts * (1 + k), parts))
    result[:, :, :parts] = responses[:, :, :parts]
    for i in range(count):
        segments = [(0, i), (i, k)] if i else [(0, k)]
        for draw, (begin, end) in enumerate(segments, start=1):
            root = path["L"][begin, end]
            if not root.any():  # the end of the last macro step has no noise
                continue
            shares = path["C"][begin:end, end] @ np.linalg.inv(root)  # [J, S, S]
            given = responses[i, :, draw * parts : (draw + 1) * parts]
            spread = np.einsum("jab,fbc->fjac", shares, given).reshape(features, -1, parts)
            result[i, :, parts * (1 + begin) : parts * (1 + end)] = spread
    return result
