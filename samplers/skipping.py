"""The state machine of adaptive sampling: when a step may go without its network call, and on what it then lives.

After Ye et al., "Training-Free Adaptive Diffusion with Bounded Difference Approximation Strategy", NeurIPS 2024. All
updates of the solver happen; some of them take an output that the network gave earlier. With x_k the state at step k
of N (k = 0 is noise), Dx_k = x_{k+1} - x_k without any noise that the solver adds, and e the network's output as noise
or velocity:

  1. e_k = (x_k - m_k x0_hat) / sigma_k, m = alpha for the noise and 1 for the velocity of a flow with alpha + sigma = 1
  2. reuse   hold    e = e_a, of the last call
             linear  e = e_a + (lam - lam_a) / (lam_a - lam_b) (e_a - e_b),  lam = log(alpha / sigma), b the one before
  3. x_{k+1} = a x_k + sum_j w_j x0_hat_j + c z (`samplers/multistep.py`), x0_hat from e by 1 where there was no call
  4. skip the next call where
             scalar  |(d_k + d_{k-2}) / 2 - d_{k-1}| <= delta d_{k-1},  d = mean |Dx|          [the authors' code]
             vector  mean |Dx_k - 2 Dx_{k-1} + Dx_{k-2}| <= delta mean |Dx_{k-1}|               [the paper]
             slope   |e_a - e_b| |lam_{k+1} - lam_a| <= delta |e_a| |lam_a - lam_b|, the drift of e        [ours]
     normalised (an experiment): Dx_k = (x_{k+1} / m_{k+1} - x_k / m_k) / (s_{k+1} - s_k) with s = sigma / m in place of
             the increment, which is e itself for DDIM and for Euler in the noise level
  5. but call after c_max skips in a row, in the first steps and in the last ones
  6. budget K: delta becomes delta pace^4, pace = (N - tail - k - 1) / (K - u - tail) * K / N with u calls made; once
     u + tail = K everything but the tail is skipped, whatever 5 says

Nothing is divided in 4: a state that stands still (d = 0) is skipped where its third difference is 0, too. Statistics
are float32 means over each image, or over the whole batch; a state of less precision is rounded once a step.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

CRITERIA = {"scalar": 0.01, "vector": 0.05, "slope": 0.1}  # with the delta of each
REUSES = ("hold", "linear")
LEAST_WARMUP = {"scalar": 3, "vector": 3, "slope": 2}  # calls that equation 4 looks back on
ALL_IMAGES, EACH_IMAGE = "all_images", "each_image"


class Steps(NamedTuple):
    """A solver's run as tables, float64 on the host; K outputs enter a step.

    Attributes:
      t: [N] times of the calls.
      m, sigma: [N] of equation 1.
      lam: [N] log(alpha / sigma).
      a, weights, noise: [N], [N, K], [N] of equation 3.
      forced: [N] whether a step always calls: where the guidance is another one than in the step before.
    """

    t: np.ndarray
    m: np.ndarray
    sigma: np.ndarray
    lam: np.ndarray
    a: np.ndarray
    weights: np.ndarray
    noise: np.ndarray
    forced: np.ndarray


class Limits(NamedTuple):
    """What may differ from image to image, () or [B] each.

    Attributes:
      delta: of equation 4; below 0 nothing is skipped.
      c_max: most skips in a row; 0 for none at all.
      steps: N.
      first: steps at the beginning that always call.
      tail: steps at the end that do.
      budget: most calls; N or more is no limit.
    """

    delta: Shaped[Array, "*count"]
    c_max: Shaped[Array, "*count"]
    steps: Shaped[Array, "*count"]
    first: Shaped[Array, "*count"]
    tail: Shaped[Array, "*count"]
    budget: Shaped[Array, "*count"]


class SkipState(NamedTuple):
    """Between two steps. "count" is () where one decision is taken for the whole batch, and B elsewhere.

    Attributes:
      x: [B, ...] the state.
      k: the next step.
      e_a, e_b: outputs of the last two calls, at lam_a and lam_b.
      back: [K - 1] x0_hat of the steps before, the newest first.
      past: what equation 4 remembers of the last two increments: their sizes d, or for `vector` themselves.
      run: skips in a row.
      need: whether the next step calls.
      calls: made so far.
    """

    x: Float[Array, "batch *shape"]
    k: Int[Array, "*count"]
    e_a: Float[Array, "batch *shape"]
    e_b: Float[Array, "batch *shape"]
    lam_a: Float[Array, "*count"]
    lam_b: Float[Array, "*count"]
    back: tuple[Float[Array, "batch *shape"], ...]
    past: tuple[Array, Array]
    run: Int[Array, "*count"]
    need: Bool[Array, "*count"]
    calls: Int[Array, "*count"]


@dataclass(frozen=True, kw_only=True)
class Skipping:
    """Equations 1 to 6 for one choice of criterion and reuse; see `samplers/adaptive.py` for the choices.

    Attributes:
      criterion: a name of CRITERIA.
      reuse: a name of REUSES.
      over: statistics and decision of EACH_IMAGE, or one for ALL_IMAGES.
      agreement: with one decision from each image's statistics, the share of the images that must want to skip; None
        for statistics of the whole batch.
      compat: count skips in a row as the authors' code does: their limit begins at step 8 only, and the first run may
        be as long as k - 3.
      normalize: increments per unit of noise level; see equation 4.
    """

    criterion: str
    reuse: str
    over: str
    agreement: float | None = None
    compat: bool = False
    normalize: bool = False

    def start(self, x: Float[Array, "batch *shape"], outputs: int) -> SkipState:
        """Before the first step, of a solver that takes `outputs` outputs a step."""
        count = x.shape[:1] if self.over == EACH_IMAGE else ()
        zeros, whole = jnp.zeros_like(x), jnp.zeros(count, jnp.int32)
        # One image's statistics are kept for each, even if one decision is taken from them.
        of_past = x.shape[:1] if self.over == EACH_IMAGE or self.agreement is not None else ()
        past = zeros if self.criterion == "vector" else jnp.zeros(of_past, precise(x).dtype)
        lam = jnp.zeros(count)
        return SkipState(x, whole, zeros, zeros, lam, lam, (zeros,) * (outputs - 1), (past, past), whole,
                         jnp.ones(count, bool), whole)  # fmt: skip

    def called(
        self, state: SkipState, x0_hat: Float[Array, "batch *shape"], row: dict[str, Array]
    ) -> SkipState:
        """Takes note of what the network said at this step; equation 1."""
        e = (precise(state.x) - wide(row["m"], state.x) * x0_hat) / wide(row["sigma"], state.x)
        e, lam = e.astype(state.e_a.dtype), row["lam"] + jnp.zeros_like(state.lam_a)
        return state._replace(e_a=e, e_b=state.e_a, lam_a=lam, lam_b=state.lam_a, calls=state.calls + 1)

    def reused(self, state: SkipState, row: dict[str, Array]) -> Float[Array, "batch *shape"]:
        """x0_hat of a step without a call; equations 2 and 1."""
        e = state.e_a
        if self.reuse == "linear":
            gap = state.lam_a - state.lam_b
            slope = (state.calls >= 2) & (gap != 0)  # two calls at one noise level have none
            far = jnp.where(slope, (row["lam"] - state.lam_a) / jnp.where(slope, gap, 1.0), 0.0)
            e = e + wide(far, e) * (state.e_a - state.e_b)
        return ((state.x - wide(row["sigma"], e) * e) / wide(row["m"], e)).astype(state.x.dtype)

    def step(
        self, state: SkipState, x0_hat: Float[Array, "batch *shape"], row: dict[str, Array], ahead: dict[str, Array],
        limits: Limits, noise: Float[Array, "batch *shape"] | None, mask: Array | None = None,
    ) -> SkipState:
        """The solver's update, and whether the next step calls; equations 3 to 6.

        Args:
          x0_hat: of the network or `reused`.
          row, ahead: of this step and of the next, which calls if its column "forced" says so.
          noise: z, or None where the solver adds none.
          mask: whether the next step calls, in place of equations 4 to 6.
        """
        outputs = (x0_hat, *state.back)
        weights = jnp.moveaxis(row["weights"], -1, 0)
        drifted = wide(row["a"], state.x) * precise(state.x)
        drifted = drifted + sum(wide(weights[j], state.x) * output for j, output in enumerate(outputs))
        x = drifted if noise is None else drifted + wide(row["noise"], noise) * noise  # (3)
        run = jnp.where(state.need, 0, state.run + 1)
        skip, past = self._wants_to_skip(state, self._increment(state.x, drifted, row, ahead), ahead["lam"], limits)
        need = self._need(state, skip, run, limits, ahead["reserve"]) | ahead["forced"] if mask is None else mask
        back = tuple(output.astype(state.x.dtype) for output in outputs[:-1])
        return state._replace(x=x.astype(state.x.dtype), k=state.k + 1, back=back, past=past, run=run, need=need)

    def _increment(
        self, x: Float[Array, "batch *shape"], drifted: Float[Array, "batch *shape"], row: dict[str, Array],
        ahead: dict[str, Array],
    ) -> Float[Array, "batch *shape"]:
        """Dx of equation 4."""
        if not self.normalize:
            return drifted - x
        level = ahead["sigma"] / ahead["m"] - row["sigma"] / row["m"]
        level = jnp.where(level == 0, 1.0, level)  # after the last step, where nothing is decided
        return (drifted / wide(ahead["m"], x) - x / wide(row["m"], x)) / wide(level, x)

    def _wants_to_skip(
        self, state: SkipState, increment: Float[Array, "batch *shape"], next_lam: Array, limits: Limits
    ) -> tuple[Array, tuple[Array, Array]]:
        """Equation 4 with the delta of equation 6, and what to remember."""
        delta, (d1, d2) = limits.delta * self._pace(state, limits) ** 4, state.past
        mean = self._mean
        if self.criterion == "slope":
            # Roots of means: a common factor of both sides.
            change, size = (jnp.sqrt(mean(jnp.square(precise(e)))) for e in (state.e_a - state.e_b, state.e_a))
            ahead, behind = jnp.abs(next_lam - state.lam_a), jnp.abs(state.lam_a - state.lam_b)
            return self._agreed((change * ahead <= delta * size * behind) & (state.calls >= 2)), state.past
        if self.criterion == "vector":
            bend = mean(jnp.abs(precise(increment) - 2 * precise(d1) + precise(d2)))
            return self._agreed(bend <= delta * mean(jnp.abs(precise(d1)))), (increment.astype(d1.dtype), d1)
        d0 = mean(jnp.abs(precise(increment)))
        return self._agreed(jnp.abs((d0 + d2) / 2 - d1) <= delta * d1), (d0, d1)

    def _pace(self, state: SkipState, limits: Limits) -> Array:
        """Equation 6; 1 without a budget."""
        left = (limits.budget - state.calls - limits.tail).astype(jnp.float32)
        ahead = (limits.steps - limits.tail - state.k - 1).astype(jnp.float32)
        pace = jnp.maximum(ahead, 0.0) / jnp.maximum(left, 1.0) * limits.budget / limits.steps
        return jnp.where(limits.budget >= limits.steps, 1.0, pace)

    def _need(self, state: SkipState, skip: Array, run: Array, limits: Limits, reserve: Array) -> Array:
        """Equations 5 and 6 on top of equation 4; `reserve` calls of the budget are for steps that are forced later."""
        long = run >= limits.c_max
        if self.compat:
            most = jnp.where(limits.c_max > 0, limits.c_max, jnp.iinfo(jnp.int32).max)
            long = (state.k >= 8) & (run >= jnp.minimum(most, state.k - 3))
        ending = state.k + 1 >= limits.steps - limits.tail
        need = ~skip | long | (state.k + 1 < limits.first) | (limits.delta < 0)
        spent = (limits.budget < limits.steps) & (state.calls + limits.tail + reserve >= limits.budget)
        return (need & ~spent) | ending

    def _mean(self, values: Float[Array, "batch *shape"]) -> Array:
        if self.over == ALL_IMAGES and self.agreement is None:
            return jnp.mean(values)
        return jnp.mean(values.reshape(len(values), -1), axis=-1)

    def _agreed(self, skip: Array) -> Array:
        return skip if self.agreement is None else jnp.mean(skip.astype(jnp.float32)) >= self.agreement


def precise(values: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """In float32 at least."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def wide(values: Shaped[Array, "*count"], like: Shaped[Array, "batch *shape"]) -> Shaped[Array, "..."]:
    """() or [B] -> what broadcasts against images."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if jnp.ndim(values) else values


def select(choose: Bool[Array, " batch"], new: Any, old: Any) -> Any:
    """Each image's values from one of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(wide(choose, a), a, b), new, old)


def device_tables(runs: list[Steps]) -> dict[str, Array]:
    """[S, longest N, ...] tables of several runs, float32, the shorter ones filled up with their last row.

    Raises:
      ValueError: where they do not take the same number of outputs a step.
    """
    widths = {run.weights.shape[1] for run in runs}
    if len(widths) > 1:
        raise ValueError(f"solvers of one batch take {', '.join(map(str, sorted(widths)))} outputs a step; they must "
                         "take as many")
    longest = max(len(run.t) for run in runs)

    def filled(table: np.ndarray) -> np.ndarray:
        return np.concatenate([table, np.repeat(table[-1:], longest - len(table), axis=0)])

    tables = {name: [filled(getattr(run, name)) for run in runs] for name in Steps._fields}
    # Forced steps after each.
    tables["reserve"] = [filled(run.forced[::-1].cumsum()[::-1] - run.forced) for run in runs]
    return {name: jnp.asarray(np.stack(of_runs)) for name, of_runs in tables.items()}


def row_at(tables: dict[str, Array], schedule: Any, k: Any) -> dict[str, Array]:
    """Row k, kept within the table, of each image's run."""
    last = tables["t"].shape[1] - 1
    return {name: table[schedule, jnp.minimum(k, last)] for name, table in tables.items()}


def least_calls(steps: int, *, warmup: int, c_max: int, tail: int = 0, compat: bool = False) -> int:
    """Calls that equation 5 asks for even if equation 4 never does."""
    if not compat:
        return min(warmup + max(steps - warmup - tail, 0) // (c_max + 1) + tail, steps)
    calls = run = 0
    for k in range(steps):
        most = min(c_max or steps, k - 4) if k > 8 else steps  # of the decision at k - 1
        called = k < warmup or k >= steps - tail or run >= most
        calls, run = calls + called, 0 if called else run + 1
    return calls


def protected(steps: int, *, warmup: int, start: float) -> int:
    """Steps at the beginning that always call: `warmup`, or the share `start` if that is more."""
    return max(warmup, math.ceil(start * steps))
