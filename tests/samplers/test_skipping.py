"""The state machine of adaptive sampling: decisions on hand-made series, against plain Python; reuse, and its merging.

Here the network is told what to say, so that the states move by given increments whatever is skipped. Increments and
thresholds are dyadic and small, so that float32 is exact and equality at the threshold can be asked for.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, RectifiedFlow, VPLinear
from samplers.adaptive import solver_steps
from samplers.ddim import DDIM
from samplers.dpm_solver import DPMSolver
from samplers.euler import Euler
from samplers.skipping import (
    ALL_IMAGES,
    EACH_IMAGE,
    Limits,
    Skipping,
    Steps,
    device_tables,
    least_calls,
    protected,
    row_at,
)

pytestmark = pytest.mark.usefixtures("quick_to_compile")

NEVER, ALWAYS = -1.0, 1e9  # thresholds at which nothing is skipped, and all that may be
N = 50


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def machine(criterion="scalar", reuse="hold", over=EACH_IMAGE, **options):
    return Skipping(criterion=criterion, reuse=reuse, over=over, **options)


def limits(delta, c_max, steps, *, first=4, tail=0, budget=None):
    """Arrays of the common shape of all arguments."""
    budget = steps if budget is None else budget
    delta, *whole = np.broadcast_arrays(delta, c_max, steps, first, tail, budget)
    return Limits(jnp.asarray(delta, float), *(jnp.asarray(values, jnp.int32) for values in whole))


def where(choose, new, old):
    wide = (1,) * (new.ndim - choose.ndim) if choose.ndim else ()
    return jnp.where(choose.reshape(choose.shape + wide), new, old)


@partial(jax.jit, static_argnames=("skipping", "told"))
def loop(skipping, x, tables, p, q, limits, noise=None, mask=None, told=False):
    """[N] or [N, B] steps that call, [N, B, d] states before every step, [N, B, d] outputs taken, and the last state.

    Args:
      tables: of `device_tables`, of one run.
      p, q: [N] and [N, B, d]; the network says p x + q.
      noise: [N, B, d].
      mask: [N], in place of the rules.
      told: the solver is given what the network says at steps without a call, too.
    """
    steps, count = len(p), x.shape[:1] if skipping.over == EACH_IMAGE else ()

    def row(at):
        return {name: jnp.broadcast_to(value, count + value.shape) for name, value in row_at(tables, 0, at).items()}

    def step(state, k):
        said, reused = p[k] * state.x + q[k], skipping.reused(state, row(k))
        after = skipping.called(state, said, row(k))
        known = jax.tree.map(lambda new, old: where(state.need, new, old), after, state)
        x0_hat = said if told else where(state.need, said, reused)
        drawn = None if noise is None else noise[k]
        given = None if mask is None else jnp.broadcast_to(mask[jnp.minimum(k + 1, steps - 1)], count)
        return skipping.step(known, x0_hat, row(k), row(k + 1), limits, drawn, given), (state.need, state.x, x0_hat)

    start = skipping.start(x, tables["weights"].shape[-1])
    last, (called, states, outputs) = jax.lax.scan(step, start, jnp.arange(steps))
    return called, states, outputs, last


def even(values, multiple):
    """Filled up with the last row, so that few programs serve all tests."""
    return np.concatenate([values, np.repeat(values[-1:], -len(values) % multiple, axis=0)])


def drive(skipping, increments, limits, *, outputs=None, lam=None, forced=None, mask=None, noise=None):
    """[N, B], or [N] for one decision: which steps call. States [B, d] move by `increments` [N, B, d] whatever happens.

    Args:
      outputs: [N, B, d] what equation 1 makes of the network; then nothing moves.
      lam, forced, mask: [N].
      noise: [N, B, d] added to the states.
    """
    steps, batch, _ = increments.shape
    each = skipping.over == EACH_IMAGE

    def filled(values):
        if values is None:
            return None
        values = even(np.asarray(values, float), 10)
        return jnp.asarray(np.moveaxis(even(np.moveaxis(values, 1, 0), 8), 0, 1) if each else values)

    longest = steps + -steps % 10
    ones, lam = np.ones(longest), np.arange(steps, dtype=float) if lam is None else lam
    table = Steps(
        t=ones, m=ones, sigma=ones, lam=even(lam, 10), a=ones, weights=ones[:, None] * (outputs is None), noise=ones,
        forced=even(np.zeros(steps, bool) if forced is None else forced, 10),
    )  # fmt: skip
    if each:
        limits = jax.tree.map(lambda values: jnp.asarray(even(np.asarray(values), 8)), limits)
    # x + increment, or x0_hat with e = x - x0_hat.
    p, q = (0.0, filled(increments)) if outputs is None else (1.0, -filled(outputs))
    called, *_, last = loop(
        skipping, jnp.zeros(q.shape[1:]), device_tables([table]), jnp.full(longest, p), q, limits, filled(noise),
        None if mask is None else jnp.asarray(even(mask, 10)), told=True,
    )  # fmt: skip
    np.testing.assert_array_equal(last.calls, np.asarray(called).sum(0))
    return np.asarray(called)[:steps, :batch] if each else np.asarray(called)[:steps]


def moves(*series):
    """[N, B, 1] from B series of signed sizes, the first given the earliest."""
    return np.array(series, float).T[:, :, None]


def skips_after(criterion, series, delta, **options):
    """Whether each of the images skips right after its series, of [length] or of [length, d] increments."""
    increments = np.stack([np.asarray(one, float).reshape(len(one), -1) for one in series], axis=1)
    length, batch = increments.shape[:2]
    increments = np.concatenate([increments, increments[-1:]])
    called = drive(machine(criterion, **options), increments, limits([delta] * batch, 9, 99, first=length))
    assert called[:length].all()
    return ~called[length]


# --- Equation 4 -------------------------------------------------------------------------------------------------------


def test_scalar_on_series_by_hand():
    """Half of d0 - 2 d1 + d2 against delta d1, equality included; d are sizes, so signs of increments do not matter."""
    assert skips_after("scalar", [(1, 1, 1), (2, 1, 0), (1, 2, 3), (0, 0, 0), (1, -1, 1)], 0.0).all()
    # (1, 1, 2) is half of d1 away, (2, 1, 2) is d1 away, and (1, 4, 1) three quarters of it.
    away = [(1, 1, 2), (2, 1, 1), (2, 1, 2), (1, 4, 1)]
    assert list(skips_after("scalar", away, 0.5)) == [True, True, False, False]
    assert list(skips_after("scalar", away, 0.5 - 2**-20)) == [False] * 4
    assert list(skips_after("scalar", away, 0.75)) == [True, True, False, True]
    assert list(skips_after("scalar", away, 1.0)) == [True] * 4


def test_only_the_last_three_increments_enter():
    series = [(1, 1, 1), (9, 1, 1, 1), (0, 9, 1, 1, 1)]
    assert all(skips_after("scalar", [one], 0.0)[0] for one in series)
    assert all(skips_after("vector", [one], 0.0)[0] for one in series)


def test_sizes_are_means_over_an_image():
    """Of absolute values: components may differ, and cancel in a plain mean; in root mean squares they would differ."""
    series = [[(1, 1), (2, 0), (-1, 1)], [(2, -2), (3, -1), (0, 4)]]
    assert skips_after("scalar", series, 0.0).all()


def test_vector_on_series_by_hand():
    """mean |D0 - 2 D1 + D2| <= delta mean |D1|; a turn is seen that the scalar rule is blind to."""
    straight, bent = [(1, 0), (2, 1), (3, 2)], [(1, 0), (0, 1), (1, 0)]
    assert skips_after("vector", [straight, np.zeros((3, 2))], 0.0).all()
    assert skips_after("scalar", [bent], 0.0).all()
    # |(2, -2)| of |(0, 1)|: four times.
    assert skips_after("vector", [bent], 4.0).all() and not skips_after("vector", [bent], 4.0 - 2**-18).any()
    # No factor of one half: (1, 1, 2) bends by as much as D1.
    assert skips_after("vector", [(1, 1, 2)], 1.0).all() and not skips_after("vector", [(1, 1, 2)], 0.75).any()


@pytest.mark.parametrize("criterion", ["scalar", "vector"])
def test_a_state_that_stood_still(criterion):
    """d1 = 0: skipped only where the rest is 0, too, however large delta is."""
    series = [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 0, 1), (3, 0, 0), (2, 1, 0)]
    for delta in (0.0, 0.5, ALWAYS):
        assert list(skips_after(criterion, series, delta)) == [True, False, False, False, False, True]


def slope_skips(calls, lam, delta):
    """Whether the step after `calls` (outputs of the first steps, [d] each) is skipped; lam of all steps up to it."""
    outputs = np.array(calls, float)[:, None]
    outputs = np.concatenate([outputs, outputs[-1:]])
    called = drive(machine("slope"), np.zeros_like(outputs), limits([delta], 9, 99, first=len(calls)),
                   outputs=outputs, lam=np.array(lam, float))  # fmt: skip
    return not called[-1, 0]


def test_slope_on_outputs_by_hand():
    """|e_a - e_b| = 5, |e_a| = 13, and the step ahead is three times the one behind: a drift of 15/13."""
    calls, lam = [(2, 8), (5, 12)], [0, 1, 4]
    assert slope_skips(calls, lam, 15 / 13 + 1e-6) and not slope_skips(calls, lam, 15 / 13 - 1e-6)
    # Two steps behind instead: the drift is half.
    lam = [0, 2, 5]
    assert slope_skips(calls, lam, 7.5 / 13 + 1e-6) and not slope_skips(calls, lam, 7.5 / 13 - 1e-6)
    # A falling lam is no other case, and a constant output is always skipped.
    assert slope_skips(calls, [0, -2, -5], 7.5 / 13 + 1e-6) and not slope_skips(calls, [0, -2, -5], 7.5 / 13 - 1e-6)
    assert slope_skips([(1, 1), (1, 1)], lam, 0.0)
    # Only the last two calls enter; one is too few.
    assert slope_skips([(70, -9), (2, 8), (5, 12)], [-9, 0, 2, 5], 7.5 / 13 + 1e-6)
    assert not slope_skips([(1, 1)], [0, 1], ALWAYS)


def test_slope_looks_from_the_last_call_to_the_step_ahead():
    """While nothing is called, e_a and lam_a stay, and the drift grows: 1/8 a step, so that the third skip is too many.

    Outputs of skipped steps must not enter: here they are wild.
    """
    outputs = np.full((8, 1, 1), 1e6)
    outputs[:2, 0, 0] = 7, 8
    called = drive(machine("slope"), np.zeros((8, 1, 1)), limits([0.25], 9, 99, first=2), outputs=outputs)
    assert list(called[:5, 0]) == [True, True, False, False, True]


def test_one_decision_for_the_batch_takes_means_over_it():
    """(1, 1, 2) and (2, 1, 0) have means (1.5, 1, 1), a quarter away; each alone is 1/2 and 0 away."""
    increments = np.concatenate([moves((1, 1, 2), (2, 1, 0))] * 2)
    for delta, skip in ((0.25, True), (0.25 - 2**-20, False)):
        called = drive(machine(over=ALL_IMAGES), increments, limits(delta, 9, 99, first=3))
        assert called.shape == (6,) and called[3] == (not skip)


@pytest.mark.parametrize("batch", [10, 70])
def test_agreement_of_nine_in_ten_and_of_all(batch):
    """Exactly nine in ten are enough."""
    for unwilling in (0, 1, batch // 10, batch // 10 + 1):
        series = [(1, 1, 9, 1)] * unwilling + [(1, 1, 1, 1)] * (batch - unwilling)
        for agreement in (0.9, 1.0):
            called = drive(machine(over=ALL_IMAGES, agreement=agreement), moves(*series), limits(0.1, 9, 99, first=3))
            willing = 10 * unwilling <= batch if agreement == 0.9 else unwilling == 0
            assert called[3] == (not willing), (unwilling, agreement)


@pytest.mark.parametrize("criterion", ["scalar", "vector"])
def test_noise_of_the_solver_is_no_increment(criterion):
    """The drift is steady, and all is skipped that may be; were the noise counted, nothing would be."""
    noise = np.random.default_rng(0).integers(-8, 9, (20, 1, 64)).astype(float)
    drift = np.ones((20, 1, 64))
    settings = limits([2**-6], 4, 20)
    called = drive(machine(criterion), drift, settings, noise=noise)
    np.testing.assert_array_equal(called, drive(machine(criterion), drift, settings))
    assert called.sum() == 4 + 16 // 5
    assert drive(machine(criterion), drift + noise, settings).sum() > 15


# --- Equations 5 and 6 ------------------------------------------------------------------------------------------------


def strict(d, *, delta, c_max, first=4, tail=0, budget=None):
    """Which steps call, in plain Python; d of N sizes."""
    steps, mask, run, need = len(d), [], 0, True
    budget = steps if budget is None else budget
    for k in range(steps):
        mask.append(need)
        run = 0 if need else run + 1
        threshold, spent = delta, False
        if budget < steps:
            spent = sum(mask) + tail >= budget
            if not spent:
                threshold = delta * ((steps - tail - k - 1) / (budget - sum(mask) - tail) * budget / steps) ** 4
        skip = k >= 2 and abs((d[k] + d[k - 2]) / 2 - d[k - 1]) <= threshold * d[k - 1]
        need = not skip or run >= c_max or k + 1 < first
        if spent:
            need = False
        if k + 1 >= steps - tail:
            need = True
    return mask


def authors(d, *, delta, c_max):
    """The same as the authors count: a list of decisions, whose last c_max are looked at once it is longer than 4."""
    log = []
    for k in range(3, len(d) - 1):
        if len(log) > 4 and all(log[-c_max:]):  # with c_max = 0 this is the whole list
            log.append(False)
        else:
            log.append(abs((d[k] + d[k - 2]) / 2 - d[k - 1]) <= delta * d[k - 1])
    return [True] * 4 + [not skip for skip in log]


def sizes(count, spread=10):
    """[count, N] integers about 100, smooth in places and rough in others."""
    rng = np.random.default_rng(1)
    rough = rng.integers(-spread, spread + 1, (count, N)) * (rng.random((count, N)) < 0.3)
    return 100 + rough


DELTAS = (NEVER, 0.0, 2**-6, 2**-5, 2**-4, ALWAYS)


@pytest.mark.parametrize("compat", [False, True])
def test_masks_are_those_of_plain_python(compat):
    """Five series, six thresholds, c_max of 0 to 8."""
    series = sizes(5)
    cases = [(d, delta, c_max) for d in series for delta in DELTAS for c_max in range(9)]
    called = drive(machine(compat=compat), moves(*[d for d, _, _ in cases]),
                   limits([delta for _, delta, _ in cases], [c_max for _, _, c_max in cases], N))  # fmt: skip
    oracle = authors if compat else strict
    expected = np.array([oracle(d, delta=delta, c_max=c_max) for d, delta, c_max in cases]).T
    np.testing.assert_array_equal(called, expected)
    # The series are no trivial ones: there are steps that call because of 4, and others because of 5.
    between = expected[:, [1 / 64 <= delta <= 1 / 16 for _, delta, _ in cases]].mean()
    assert 0.4 < between < 0.9


@pytest.mark.parametrize("options", [{"tail": 3}, {"first": 9}, {"first": 3, "tail": 2}, {"first": N}, {"tail": N}])
def test_first_and_last_steps_call(options):
    series, c_max = sizes(4), np.array([1, 2, 4, 8])
    called = drive(machine(), moves(*series), limits([2**-5] * 4, c_max, N, **options))
    expected = [strict(d, delta=2**-5, c_max=c, **options) for d, c in zip(series, c_max)]
    np.testing.assert_array_equal(called, np.array(expected).T)


@pytest.mark.parametrize("tail", [0, 2])
def test_budget_is_paced_as_in_plain_python(tail):
    """And kept, also where c_max would have it otherwise."""
    series, budgets = sizes(6), (12, 15, 20, 25, 40, N)
    cases = [(d, delta, budget) for d in series for delta in (0.0, 0.013, 0.11) for budget in budgets]
    called = drive(
        machine(), moves(*[d for d, _, _ in cases]),
        limits([delta for _, delta, _ in cases], 4, N, tail=tail, budget=[budget for _, _, budget in cases]),
    )  # fmt: skip
    expected = [strict(d, delta=delta, c_max=4, tail=tail, budget=budget) for d, delta, budget in cases]
    np.testing.assert_array_equal(called, np.array(expected).T)
    assert (called.sum(0) <= [budget for _, _, budget in cases]).all()
    assert called[N - tail :].all()


def counts(c_max, **options):
    """Calls of N steps with a threshold that skips everything, and which."""
    flat = np.ones((N, len(c_max), 1))
    called = drive(machine(**options), flat, limits([ALWAYS] * len(c_max), c_max, N))
    return list(called.sum(0)), ["".join("E" if call else "." for call in column) for column in called.T]


def test_fewest_calls():
    """4 + floor(46 / (c_max + 1)), and what the authors' guard makes of it."""
    strict_counts, strict_masks = counts([0, 1, 2, 4, 6])
    assert strict_counts == [50, 27, 19, 13, 10]
    assert strict_counts == [least_calls(N, warmup=4, c_max=c) for c in (0, 1, 2, 4, 6)]
    assert strict_masks[3] == "EEEE" + "....E" * 9 + "."
    compat_counts, compat_masks = counts([0, 2, 4, 6], compat=True)
    assert compat_counts == [5, 18, 13, 10]
    assert compat_masks[2].startswith("EEEE.....E....E....E")
    # The first run is 5 long even if c_max is 2, and is cut at 5 if it is 6.
    assert compat_masks[1].startswith("EEEE.....E..E..E") and compat_masks[3].startswith("EEEE.....E......E")
    assert compat_masks[0] == "EEEE.....E" + "." * 40


def test_a_forced_call_starts_the_count_again():
    """Runs are never longer than c_max, and after a call as long as before, also where 4 asked for the call.

    A counter that went on would force every later call, or two in a row.
    """
    series = np.ones(N)
    series[20] = 50  # asks for calls while it is one of three
    c_max = np.array([1, 2, 3, 4, 7])
    called = drive(machine(), moves(*[series] * 5), limits([2**-4] * 5, c_max, N))
    for column, most in zip(called.T, c_max):
        runs = ["".join(part) for part in "".join(".E"[int(call)] for call in column).split("E")]
        lengths = [len(run) for run in runs if run]
        assert max(lengths) == most
        # Besides the last run and the one that is cut at the bump, all are full.
        assert sum(length < most for length in lengths) <= 2


@pytest.mark.parametrize("criterion", ["scalar", "vector", "slope"])
@pytest.mark.parametrize("over", [EACH_IMAGE, ALL_IMAGES])
def test_negative_delta_skips_nothing(criterion, over):
    still = np.zeros((12, 2, 3))
    for outputs in (None, np.ones_like(still)):
        delta = [NEVER] * 2 if over == EACH_IMAGE else NEVER
        assert drive(machine(criterion, over=over), still, limits(delta, 4, 12), outputs=outputs).all()


def test_a_column_forces_calls():
    forced = np.zeros(N, bool)
    forced[[6, 30]] = True
    called = drive(machine(), np.ones((N, 1, 1)), limits([ALWAYS], 10, N), forced=forced)[:, 0]
    assert list(np.flatnonzero(called)) == [0, 1, 2, 3, 6, 17, 28, 30, 41]  # each run of ten starts after a call


def test_a_mask_takes_the_place_of_the_rules():
    mask = np.random.default_rng(3).random(N) < 0.4
    mask[0] = True
    called = drive(machine(over=ALL_IMAGES), np.ones((N, 2, 1)), limits(NEVER, 1, N), mask=mask)
    np.testing.assert_array_equal(called, mask)


def test_least_calls_are_reached():
    """By the state machine at a threshold that skips everything."""
    cases = [(c, first, tail) for c in (1, 2, 4) for first in (2, 4, 25) for tail in (0, 1, 2, 7, 40)]
    c_max, first, tail = np.array(cases).T
    called = drive(machine(), np.ones((N, len(cases), 1)), limits([ALWAYS] * len(cases), c_max, N,
                                                                   first=np.maximum(first, 3), tail=tail))  # fmt: skip
    expected = [least_calls(N, warmup=max(f, 3), c_max=c, tail=t) for c, f, t in cases]
    np.testing.assert_array_equal(called.sum(0), expected)


def test_share_at_the_start():
    assert [protected(50, warmup=4, start=start) for start in (0.0, 0.05, 0.1, 0.101, 1.0)] == [4, 4, 5, 6, 50]


# --- Equations 1 to 3 -------------------------------------------------------------------------------------------------

VP = GaussianProcess(VPLinear())
PROCESSES = {"vp": VP, "edm": GaussianProcess(EDM(rho=1.0)), "flow": GaussianProcess(RectifiedFlow())}


def walk(skipping, steps, x, called_at, q, p=0.0):
    """[N + 1] states, and the outputs that were taken; the network says p x + q."""
    n = len(steps.t)
    mask = np.isin(np.arange(n), called_at)
    assert mask[0]
    p, q = jnp.broadcast_to(p, n).astype(x.dtype), jnp.asarray(q[:n], x.dtype)
    tables, none = device_tables([steps]), limits(NEVER, 1, n)
    _, states, outputs, last = loop(skipping, x, tables, p, q, none, mask=jnp.asarray(mask))
    return np.append(states, last.x[None], axis=0), np.array(outputs)


def draws(shape=(2, 3)):
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.standard_normal(shape)), jnp.asarray(rng.standard_normal((20, *shape)))


HOLD = machine(over=ALL_IMAGES)


class Velocity(Skipping):
    """Holds v = alpha noise - sigma x0 of a variance-preserving process, as a network that says v would."""

    def called(self, state, x0_hat, row):
        return super().called(state, x0_hat, row)._replace(e_a=(row["m"] * state.x - x0_hat) / row["sigma"])

    def reused(self, state, row):
        return row["m"] * state.x - row["sigma"] * state.e_a


def merging_error(skipping, solver, process, last=9, precision=jnp.float64):
    """Calls at 0 and 1, then held: how far state `last` is from that of one large step there, relatively."""
    steps = solver_steps(solver, process)
    x, said = draws()
    x, said = x.astype(precision), said.astype(precision)
    states, outputs = walk(skipping, steps, x, (0, 1), said)
    t, s = steps.t[1], steps.t[last]
    alpha, sigma = (np.array([at(t), at(s)]) for at in (process.alpha, process.sigma))
    noise = (states[1] - alpha[0] * outputs[1]) / sigma[0]
    if isinstance(solver, Euler):
        # sigma is linear in t: dx/dsigma = noise where alpha = 1, and noise - x0 for a flow.
        slope = noise if np.all(alpha == 1) else noise - outputs[1]
        large = states[1] + (sigma[1] - sigma[0]) * slope
    else:
        d = outputs[1]
        if isinstance(solver, DPMSolver):
            lam = np.log(process.alpha(steps.t) / process.sigma(steps.t))
            d = d + (d - outputs[0]) * (lam[last] - lam[1]) / (2 * (lam[1] - lam[0]))
        # With D in place of x0 in the exact solution for a constant output.
        shrink = sigma[1] / sigma[0]
        large = shrink * states[1] + (alpha[1] - alpha[0] * shrink) * d
    return np.abs(states[last] - large).max() / np.abs(large).max()


MERGING = {
    "ddim, vp": (DDIM, "vp"), "ddim, edm": (DDIM, "edm"), "euler, edm": (Euler, "edm"), "euler, flow": (Euler, "flow"),
    "ddim, flow": (DDIM, "flow"),
}  # fmt: skip


@pytest.mark.parametrize("name", MERGING)
def test_held_steps_of_a_first_order_solver_are_one_large_step(name, double):
    make, process = MERGING[name]
    assert merging_error(HOLD, make(steps=12), PROCESSES[process]) < 2e-14


def test_held_steps_merge_in_float32():
    assert merging_error(HOLD, DDIM(steps=12), VP, precision=jnp.float32) < 1e-5
    assert merging_error(HOLD, Euler(steps=12), PROCESSES["flow"], precision=jnp.float32) < 1e-5


def test_neither_2m_nor_a_held_v_merges(double):
    """Negative control, and a fact: 2M remembers, and v belongs to a time."""
    assert merging_error(HOLD, DPMSolver(steps=12), VP) > 1e-2
    assert merging_error(Velocity(criterion="scalar", reuse="hold", over=ALL_IMAGES), DDIM(steps=12), VP) > 1e-2


def says(steps, noise):
    """p and q of a network whose x0_hat means the noise [N, B, d]."""
    return {"p": 1 / steps.m, "q": -(steps.sigma / steps.m)[:, None, None] * noise}


@pytest.mark.parametrize("make", [DDIM, DPMSolver])
def test_linear_reuse_extends_an_output_that_is_linear_in_lam(make, double):
    """Two calls are enough to know it; before the second, the first is held. Linear in x0_hat it is not extended."""
    steps, linear = solver_steps(make(steps=12), VP), machine(reuse="linear", over=ALL_IMAGES)
    x, (first, second, *_) = draws()
    line = first + steps.lam[:, None, None] * second
    full, _ = walk(linear, steps, x, range(12), **says(steps, line))
    for called_at in ((0, 1), (0, 1, 2, 7)):
        states, _ = walk(linear, steps, x, called_at, **says(steps, line))
        np.testing.assert_allclose(states, full, rtol=1e-9, atol=1e-9)
    states, outputs = walk(linear, steps, x, (0, 5), **says(steps, line))
    e = (states[:-1] - steps.m[:, None, None] * outputs) / steps.sigma[:, None, None]
    np.testing.assert_allclose(e, np.where(np.arange(12)[:, None, None] < 5, line[0], line), rtol=1e-9, atol=1e-9)
    # The controls: holding is something else, and so is extending x0_hat, which is exact here.
    for skipping, said in ((HOLD, says(steps, line)), (linear, {"q": line})):
        full, _ = walk(skipping, steps, x, range(12), **said)
        assert np.abs(walk(skipping, steps, x, (0, 1), **said)[0] - full).max() > 1e-2


def test_later_calls_replace_earlier_ones(double):
    """An output with a kink: extended across it from both sides, and exact after two calls beyond it."""
    steps = solver_steps(DDIM(steps=12), VP)
    x, (first, second, third, *_) = draws()
    lam = steps.lam[:, None, None]
    line = np.array(first + lam * second + np.maximum(lam - lam[4], 0) * third)
    states, outputs = walk(machine(reuse="linear", over=ALL_IMAGES), steps, x, (0, 1, 5, 7), **says(steps, line))
    e = (states[:-1] - steps.m[:, None, None] * outputs) / steps.sigma[:, None, None]
    np.testing.assert_allclose(e[7:], line[7:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(e[6], line[5] + (lam[6] - lam[5]) / (lam[5] - lam[1]) * (line[5] - line[1]), rtol=1e-9)


def test_two_calls_at_one_level_give_no_nan():
    """There is no slope to extend: the last output is held."""
    steps = solver_steps(DDIM(steps=6), VP)
    steps = steps._replace(lam=np.array([0.0, 0.0, 1.0, 2.0, 3.0, 4.0]))
    x, said = draws()
    linear = machine(reuse="linear", over=ALL_IMAGES)
    states, outputs = walk(linear, steps, x, (0, 1), said)
    held, _ = walk(HOLD, steps, x, (0, 1), said)
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(states, held, rtol=1e-6)
    # No level lies behind: nothing is too little until the level moves, and then any drift is too much.
    for outputs, skips in ((said[:6], 2), (np.ones((6, 2, 3)), 3)):
        called = drive(machine("slope"), np.zeros((6, 2, 3)), limits([0.1] * 2, 4, 6, first=3), outputs=outputs,
                       lam=np.array([0.0, 0, 0, 0, 0, 1]))  # fmt: skip
        np.testing.assert_array_equal((~called).sum(0), skips)


def test_shorter_runs_are_filled_up_and_widths_must_agree():
    short, long = solver_steps(DDIM(steps=3), VP), solver_steps(DDIM(steps=5), VP)
    tables = device_tables([short, long])
    assert tables["weights"].shape == (2, 5, 1)
    np.testing.assert_allclose(tables["t"][0], [*short.t, short.t[-1], short.t[-1]], rtol=1e-6)
    row = row_at(tables, jnp.array([1, 0]), jnp.array([2, 99]))
    np.testing.assert_allclose(row["t"], [long.t[2], short.t[2]], rtol=1e-6)
    with pytest.raises(ValueError, match="solvers of one batch take 1, 2 outputs a step; they must take as many"):
        device_tables([short, solver_steps(DPMSolver(steps=3), VP)])
