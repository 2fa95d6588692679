"""Precision and recall, density and coverage of generated samples, from nearest neighbours in feature space.

r_k(s; S) is the distance of s, a member of S, to its k-th nearest other member. With R real and G generated:

    precision = share of g in G with |g - r| <= r_k(r; R) for some r in R                                     (1)
    recall    = share of r in R with |r - g| <= r_k(g; G) for some g in G                                     (2)
    density   = sum over g in G of the number of r in R with |g - r| < r_k(r; R), over k |G|                  (3)
    coverage  = share of r in R with |r - g| < r_k(r; R) for some g in G                                      (4)

(1) and (2): Kynkaanniemi et al. 2019, "improved", k = 3. (3) and (4): Naeem et al. 2020, k = 5.

Decisions are those of |a - b|^2 taken from the difference itself in float64: copies are at distance 0, and
|a - b| = |b - a|. For all pairs that would be slow, so they are screened: the expansion |a|^2 + |b|^2 - 2 a.b in
float32 (one matrix product), with a bound on its error, settles nearly all of them, and leaves those near a tie to the
exact rule. Squares are compared. Thus on ties, of which copies are the usual kind: a sample on the rim of a ball is in
it for (1) and (2), as in ADM, so that a ball of radius 0 (of a point with k copies or more) holds its copies; for (3)
and (4) it is not, as prdc has it, where rounding decides such ties.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from evaluation.moments import checked_features

# Pairs screened at once: 64 MiB of float32. Numbers taken from differences at once: 2 MiB of float64, for the cache.
_PAIRS, _NUMBERS = 2**24, 2**18
# Neighbours beyond the k-th whose exact distances are taken too, since the screening may confuse their order.
_SPARE = 4


class PrecisionRecall(NamedTuple):
    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    density: float
    coverage: float


class _Points(NamedTuple):
    """A set of vectors as given, and for screening.

    Attributes:
      given: [N, D], float32 or float64.
      screen: [N, D] float32: centred, and divided by a scale.
      squares: [N] float32, the squared norms of `screen`.
    """

    given: np.ndarray
    screen: np.ndarray
    squares: np.ndarray


def _scale(*sets: np.ndarray) -> float:
    """The size of the largest deviation from a mean: a power of two, so that dividing by it does not round."""
    largest = max(float(np.abs(bound(x, axis=0) - _mean(sets[0])).max()) for x in sets for bound in (np.min, np.max))
    return 2.0 ** np.ceil(np.log2(largest)) if largest > 0 else 1.0


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=0, dtype=np.float64)


def _points(given: np.ndarray, centre: np.ndarray, scale: float) -> _Points:
    screen, squares = np.empty(given.shape, np.float32), np.empty(len(given), np.float32)
    rows = max(1, _NUMBERS // given.shape[1])
    for start in range(0, len(given), rows):
        block = (given[start : start + rows] - centre) / scale
        screen[start : start + rows] = block
        squares[start : start + rows] = np.einsum("nd,nd->n", block, block)
    return _Points(given, screen, squares)


def _screened(a: _Points, rows: slice, b: _Points) -> tuple[np.ndarray, np.ndarray]:
    """(squared distances [rows, len(b)] over scale^2 in float32, by how much each may be wrong).

    A dot product of D terms in float32 is wrong by at most D u |a| |b| in any order of summation, u = 2^-24; a few u
    more are for the rounding of the vectors, the squares and the three terms, the constant for underflow.
    """
    screened = a.screen[rows] @ b.screen.T
    screened *= -2.0
    both = a.squares[rows, None] + b.squares
    screened += both
    both *= 1.1 * (a.screen.shape[1] + 16) * 2.0**-24
    both += 1e-30
    return screened, both


def _exact(a: _Points, i: np.ndarray, b: _Points, j: np.ndarray, scale: float) -> np.ndarray:
    """Squared distances of a[i] and b[j] over scale^2, from differences in float64, a chunk at a time."""
    found = np.empty(len(i))
    chunk = max(1, _NUMBERS // a.given.shape[1])
    for start in range(0, len(found), chunk):
        part = slice(start, start + chunk)
        difference = (a.given[i[part]].astype(np.float64) - b.given[j[part]]) / scale
        found[part] = np.einsum("nd,nd->n", difference, difference)
    return found


def _blocks(count: int, others: int) -> Iterator[slice]:
    rows = max(1, _PAIRS // others)
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def _squared_radii(given: np.ndarray, k: int, scale: float) -> np.ndarray:
    """r_k(s; S)^2 over scale^2 of each member s of S, [N]."""
    points = _points(given, _mean(given), scale)
    count, kept = len(given), min(k + _SPARE, len(given) - 1)
    radii = np.empty(count)
    for rows in _blocks(count, count):
        screened, error = _screened(points, rows, points)
        members = np.arange(rows.start, rows.stop)
        screened[members - rows.start, members] = np.inf  # itself is not one of its neighbours
        nearest = np.argpartition(screened, kept - 1, axis=1)[:, :kept]
        exact = _exact(points, np.repeat(members, kept), points, nearest.ravel(), scale).reshape(-1, kept)
        radii[rows] = np.partition(exact, k - 1, axis=1)[:, k - 1]
        # The others are at least as far as the farthest of those kept, but for errors.
        farthest = np.take_along_axis(screened, nearest, axis=1).max(axis=1)
        unsure = (farthest - error.max(axis=1) < radii[rows]) & (radii[rows] > 0) & (kept < count - 1)
        for row in np.flatnonzero(unsure):
            near = np.flatnonzero(screened[row] <= radii[rows][row] * (1 + 1e-6) + error[row])
            exact = _exact(points, np.full(len(near), members[row]), points, near, scale)
            radii[members[row]] = np.partition(exact, k - 1)[k - 1]
    return radii


class _Pairs(NamedTuple):
    """Generated samples `rows` against all real ones."""

    generated: _Points
    rows: slice
    real: _Points
    screened: np.ndarray
    error: np.ndarray
    scale: float

    def within(self, squared_radii: np.ndarray, *, rim: bool) -> np.ndarray:
        """Which pairs [rows, len(real)] are at most (`rim`), or less than, a radius apart; it broadcasts to them."""
        gap = self.screened - squared_radii.astype(np.float32)
        inside = gap < -self.error
        i, j = np.nonzero(np.abs(gap) <= self.error)
        exact = _exact(self.generated, self.rows.start + i, self.real, j, self.scale)
        limits = np.broadcast_to(squared_radii, gap.shape)[i, j]
        inside[i, j] = exact <= limits if rim else exact < limits
        return inside


def _pairs(real: np.ndarray, generated: np.ndarray, scale: float) -> Iterator[_Pairs]:
    centre = _mean(real)
    real_points, generated_points = _points(real, centre, scale), _points(generated, centre, scale)
    for rows in _blocks(len(generated), len(real)):
        yield _Pairs(generated_points, rows, real_points, *_screened(generated_points, rows, real_points), scale)


def _check(real: np.ndarray, generated: np.ndarray, k: int) -> None:
    checked_features(real, "real")
    checked_features(generated, "generated")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(f"both sets must have one dimension, got real {real.shape[1]}, generated {generated.shape[1]}")
    if not 1 <= k < min(len(real), len(generated)):
        counts = f"{len(real)} real and {len(generated)} generated samples"
        raise ValueError(f"k must be at least 1 and less than the number of samples, got k = {k} with {counts}")


def precision_recall(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m _d2"], *, k: int = 3
) -> PrecisionRecall:
    """Precision (1) and recall (2) of feature vectors; N and M may differ, but both numbers depend on both.

    Raises:
      ValueError: for vectors that are not finite, two different D, or k outside 1 ... min(N, M) - 1.
    """
    _check(real, generated, k)
    scale = _scale(real, generated)
    real_radii, generated_radii = _squared_radii(real, k, scale), _squared_radii(generated, k, scale)
    precise, recalled = 0, np.zeros(len(real), bool)
    for pairs in _pairs(real, generated, scale):
        precise += np.count_nonzero(pairs.within(real_radii, rim=True).any(axis=1))
        recalled |= pairs.within(generated_radii[pairs.rows, None], rim=True).any(axis=0)
    return PrecisionRecall(float(precise / len(generated)), float(recalled.mean()))


def density_coverage(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "m _d2"], *, k: int = 5
) -> DensityCoverage:
    """Density (3), which may exceed 1, and coverage (4) of feature vectors; N and M may differ.

    Raises:
      ValueError: for vectors that are not finite, two different D, or k outside 1 ... min(N, M) - 1.
    """
    _check(real, generated, k)
    scale = _scale(real, generated)
    radii = _squared_radii(real, k, scale)
    held, covered = 0, np.zeros(len(real), bool)
    for pairs in _pairs(real, generated, scale):
        inside = pairs.within(radii, rim=False)
        held += np.count_nonzero(inside)
        covered |= inside.any(axis=0)
    return DensityCoverage(float(held / (k * len(generated))), float(covered.mean()))
