"""Adaptive sampling: both modes against the plain samplers, against plain numpy image by image, and each other.

The oracle (`alone`) is one image in float64 numpy, written from the recursion; it shares nothing with the code but the
solvers' tables and, where a solver is stochastic, its draws. Its agreement with `run_queue` covers any number of slots.
"""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.guidance import Guided
from diffusion.kernel_free import DoubleWell
from diffusion.process import GaussianProcess
from diffusion.random import image_keys, image_noise
from diffusion.schedules import EDM, RectifiedFlow, VPLinear
from samplers.adaptive import PRESETS, SOLVERS, Adaptive, run_in_step, solver_steps, with_preset
from samplers.ancestral import Ancestral
from samplers.ddim import DDIM
from samplers.desynchronised import Requests, run_queue
from samplers.dpm_solver import DPMSolver
from samplers.euler import Euler
from samplers.heun import Heun
from samplers.masks import sample_with_mask
from samplers.sa_solver import SASolver
from samplers.skipping import ALL_IMAGES, EACH_IMAGE, Limits, Skipping, device_tables
from samplers.time_grids import make_grid

pytestmark = pytest.mark.usefixtures("quick_to_compile")

VP = GaussianProcess(VPLinear())
PROCESSES = {"vp": VP, "edm": GaussianProcess(EDM()), "flow": GaussianProcess(RectifiedFlow())}
D = 4
CENTRES = np.array([[1.0, -0.5, 0.3, 0.0], [-0.8, 0.6, 0.1, 0.9], [0.2, 0.2, -1.0, -0.4]])
WIDTHS = np.array([0.05, 0.3, 0.02, 0.6]) ** 2


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def mixture_denoise(process, xp=jnp):
    """Three equal Gaussians; labels make them lean to one of them."""

    def denoise(x, t, label):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        centres, widths = xp.asarray(CENTRES, x.dtype), xp.asarray(WIDTHS, x.dtype)
        spread = alpha**2 * widths + sigma**2
        residual = x[:, None] - alpha[:, None] * centres
        leaning = 0.0 if label is None else 0.5 * (label[:, None] == xp.arange(3))
        joint = leaning - 0.5 * (residual**2 / spread[:, None]).sum(-1)
        joint = xp.exp(joint - joint.max(-1, keepdims=True))
        shares = joint / joint.sum(-1, keepdims=True)
        mean = shares @ centres
        return mean + alpha * widths / spread * (x - alpha * mean)

    return denoise


def keys(count, seed=0):
    return image_keys(seed, jnp.arange(count))


# --- The plain samplers -----------------------------------------------------------------------------------------------

PLAIN = {
    "ddim": (partial(DDIM, eta=0.5), "edm", "vector"), "euler": (Euler, "flow", "scalar"),
    "2m": (DPMSolver, "vp", "slope"), "heun": (Heun, "edm", "slope"), "heun, flow": (Heun, "flow", "scalar"),
    "ancestral": (partial(Ancestral, variance="large"), "vp", "vector"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_negative_delta_is_the_plain_sampler(name):
    """In both modes, with as many calls; four slots for six images."""
    make, process, criterion = PLAIN[name]
    process, solver = PROCESSES[process], make(steps=7)
    denoise, label = mixture_denoise(process), jnp.arange(6) % 3
    options = {"criterion": criterion, "delta": -1.0, "reuse": "linear" if criterion == "slope" else "hold", "slots": 4}
    samplers = [solver, *(Adaptive(solver=solver, mode=mode, **options) for mode in ("shared", "per_sample"))]

    @jax.jit
    def sample(keys):
        return [sampler.sample(denoise, process, keys, label, shape=(D,)) for sampler in samplers]

    plain, *both = sample(keys(6))
    for samples in both:
        np.testing.assert_array_equal(samples.nfe, np.full(6, 13 if "heun" in name else 7))
        np.testing.assert_allclose(samples.x0, plain.x0, rtol=2e-6, atol=2e-6 * np.abs(plain.x0).max())


@pytest.mark.parametrize("criterion", ["scalar", "slope"])
def test_negative_delta_is_the_same_loop_with_all_steps_called(criterion):
    """Bit for bit; a mask is followed whatever delta says, and one that skips gives something else."""
    tables, denoise = device_tables([solver_steps(DPMSolver(steps=8), VP)]), mixture_denoise(VP)
    skipping = Skipping(criterion=criterion, reuse="linear", over=ALL_IMAGES)

    @jax.jit
    def sample(delta, mask):
        limits = Adaptive(solver=DPMSolver(steps=8)).limits()._replace(delta=delta)
        return run_in_step(skipping, denoise, VP.prior(keys(3), (D,)), keys(3), None, tables, limits, stochastic=False,
                           mask=mask)  # fmt: skip

    decided, report = sample(jnp.float32(-1), None)
    masked, masked_report = sample(jnp.float32(-1), jnp.ones(8, bool))
    assert report.called.all() and masked_report.called.all()
    np.testing.assert_array_equal(decided.x0, masked.x0)
    np.testing.assert_array_equal(sample(jnp.float32(1e9), jnp.ones(8, bool))[0].x0, masked.x0)
    mask = np.array([1, 1, 1, 0, 0, 1, 0, 1], bool)
    skipped, report = sample(jnp.float32(-1), jnp.asarray(mask))
    np.testing.assert_array_equal(report.called, np.broadcast_to(mask, (3, 8)))
    assert np.abs(skipped.x0 - masked.x0).max() > 1e-4


# --- Image by image in numpy ------------------------------------------------------------------------------------------


def alone(denoise, steps, x, label, *, delta, c_max, first=4, tail=0, criterion="scalar", reuse="hold", noise=None,
          counting_noise=False, linear_in="noise"):  # fmt: skip
    """The result of one image [d] and which steps called.

    Args:
      noise: [N, d].
      counting_noise, linear_in: mistakes to be seen: noise as a part of the increment; "x0" for reuse of x0_hat.
    """
    n, calls, increments, outputs, called, run, need = len(steps.t), [], [], [], [], 0, True
    for k in range(n):
        called.append(need)
        run = 0 if need else run + 1
        if need:
            x0 = denoise(x[None], steps.t[k : k + 1], label)[0]
            calls.append((steps.lam[k], (x - steps.m[k] * x0) / steps.sigma[k], x0))
        else:
            (lam, e, x0), (lam_b, e_b, x0_b) = calls[-1], calls[-2] if len(calls) > 1 else calls[-1]
            rate = (steps.lam[k] - lam) / (lam - lam_b) if reuse == "linear" and len(calls) > 1 else 0.0
            if linear_in == "noise":
                x0 = (x - steps.sigma[k] * (e + rate * (e - e_b))) / steps.m[k]
            else:
                x0 = x0 + rate * (x0 - x0_b)
        outputs.append(x0)
        after = steps.a[k] * x + sum(w * outputs[k - j] for j, w in enumerate(steps.weights[k]) if k >= j)
        added = 0.0 if noise is None else steps.noise[k] * noise[k]
        increments.append(after - x + (added if counting_noise else 0.0))
        x = after + added
        if k + 1 < n:
            d = [np.abs(increment).mean() for increment in increments[-3:]]
            if len(calls) < 2 or k < 2:
                skip = False
            elif criterion == "scalar":
                skip = abs((d[2] + d[0]) / 2 - d[1]) <= delta * d[1]
            elif criterion == "vector":
                skip = np.abs(increments[-1] - 2 * increments[-2] + increments[-3]).mean() <= delta * d[1]
            else:
                (lam, e, _), (lam_b, e_b, _) = calls[-1], calls[-2]
                drift = np.linalg.norm(e - e_b) / (abs(lam - lam_b) * np.linalg.norm(e))
                skip = drift * abs(steps.lam[k + 1] - lam) <= delta
            need = not skip or run >= c_max or k + 1 < first or k + 1 >= n - tail
    return x, np.array(called)


def padded(steps):
    """With room for two outputs, so that all solvers fit into one batch."""
    return steps._replace(weights=np.pad(steps.weights, ((0, 0), (0, 2 - steps.weights.shape[1]))))


DELTAS = {"scalar": (-1.0, 0.01, 0.03, 0.1, 1e9), "vector": (-1.0, 0.05, 0.2, 0.5, 1e9), "slope": (-1.0, 0.1, 0.3, 1e9)}


def queue(runs, criterion, count=37, seed=0):
    """Requests of all kinds mixed: schedules, thresholds, c_max with 0, and tails."""
    rng = np.random.default_rng(seed)
    schedule = np.arange(count) % len(runs)
    lengths = np.array([len(run.t) for run in runs])[schedule]
    whole = [rng.choice([0, 1, 2, 4], count), lengths, np.full(count, 4), rng.choice([0, 2], count), lengths]
    limits = Limits(jnp.asarray(rng.choice(DELTAS[criterion], count), float),
                    *(jnp.asarray(values, jnp.int32) for values in whole))  # fmt: skip
    x = jnp.asarray(rng.standard_normal((count, D)))
    return Requests(x, keys(count), jnp.asarray(rng.integers(0, 3, count)), jnp.asarray(schedule, jnp.int32), limits)


def each_alone(runs, requests, denoise, **options):
    """[(result, called)] of `alone`."""
    limits, results = requests.limits, []
    for i in range(len(requests.x)):
        results.append(alone(
            denoise, runs[int(requests.schedule[i])], np.asarray(requests.x[i]), np.asarray(requests.label[i : i + 1]),
            delta=float(limits.delta[i]), c_max=int(limits.c_max[i]), first=int(limits.first[i]),
            tail=int(limits.tail[i]),
            **{name: value[i] if name == "noise" else value for name, value in options.items()},
        ))  # fmt: skip
    return results


@partial(jax.jit, static_argnames=("skipping", "slots", "stochastic"))
def run(skipping, requests, tables, slots, stochastic=False):
    return run_queue(skipping, mixture_denoise(VP), requests, tables, slots=slots, stochastic=stochastic)


def assert_alike(done, other):
    """x, calls, nfe and called; not the number of turns."""
    np.testing.assert_allclose(done[0], other[0], rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(done[1:4], other[1:4]):
        np.testing.assert_array_equal(ours, theirs)


LONG, SHORT = 18, 11
MIXED = [make(steps=steps) for steps in (LONG, SHORT, 1) for make in (DDIM, Euler, DPMSolver)]


@pytest.mark.parametrize("criterion, reuse", [("scalar", "hold"), ("slope", "linear")])
def test_any_number_of_slots_gives_what_each_image_gives_alone(criterion, reuse, double):
    """In double precision, with as many calls at the same steps: DDIM, Euler and 2M of 18, 11 and 1 steps at once."""
    runs = [padded(solver_steps(solver, VP)) for solver in MIXED]
    requests, tables = queue(runs, criterion), device_tables(runs)
    skipping = Skipping(criterion=criterion, reuse=reuse, over=EACH_IMAGE)
    expected = each_alone(runs, requests, mixture_denoise(VP, np), criterion=criterion, reuse=reuse)
    ones = run(skipping, requests, tables, 1)
    for i, (x, called) in enumerate(expected):
        np.testing.assert_array_equal(ones.called[i][: len(called)], called)
        assert not ones.called[i][len(called) :].any() and ones.calls[i] == ones.nfe[i] == called.sum()
        np.testing.assert_allclose(ones.x[i], x, rtol=1e-9, atol=1e-9)
    # Nothing here is trivial: images skip different steps, and one of them none.
    long = ones.calls[requests.schedule < 3]
    assert len(set(long.tolist())) > 4 and long.max() == LONG and long.min() < 10
    for slots in (4, 16) if reuse == "hold" else (16,):
        done = run(skipping, requests, tables, slots)
        assert_alike(done, ones)
        assert done.turns < ones.turns == ones.calls.sum()
    # The control: linear reuse of x0_hat in place of the noise.
    if reuse == "linear":
        wrong = each_alone(runs, requests, mixture_denoise(VP, np), criterion=criterion, reuse=reuse, linear_in="x0")
        assert max(np.abs(x - y).max() for (x, _), (y, _) in zip(wrong, expected)) > 1e-3


def permuted(requests, order):
    return jax.tree.map(lambda values: values[order], requests)


STOCHASTIC = [partial(Ancestral), partial(DDIM, eta=0.5), partial(DPMSolver, stochastic=True)]


def test_neither_slots_nor_order_matter_with_noise(double):
    """A request keeps its noise, step by step. And that noise is no part of the increments that decide."""
    runs = [padded(solver_steps(make(steps=steps), VP)) for steps in (14, 9) for make in STOCHASTIC]
    requests, tables = queue(runs, "scalar", 23), device_tables(runs)
    skipping = Skipping(criterion="scalar", reuse="hold", over=EACH_IMAGE)
    few = run(skipping, requests, tables, 3, True)
    assert_alike(run(skipping, requests, tables, 8, True), few)
    order = np.random.default_rng(2).permutation(23)
    assert_alike(run(skipping, permuted(requests, order), tables, 3, True), permuted(few[:4], order))

    noise = np.stack([image_noise(requests.keys, k + 1, (D,)) for k in range(14)], axis=1)
    expected = each_alone(runs, requests, mixture_denoise(VP, np), noise=noise)
    for i, (x, called) in enumerate(expected):
        np.testing.assert_array_equal(few.called[i][: len(called)], called)
        np.testing.assert_allclose(few.x[i], x, rtol=1e-9, atol=1e-9)
    wrong = each_alone(runs, requests, mixture_denoise(VP, np), noise=noise, counting_noise=True)
    assert sum((a != b).any() for (_, a), (_, b) in zip(expected, wrong)) > 5


def test_in_step_is_the_queue_with_one_decision_for_each(double):
    """Also with noise: in lock-step an image waits for its neighbours, but comes out the same."""
    steps = padded(solver_steps(Ancestral(steps=14), VP))
    requests, tables = queue([steps], "scalar", 8), device_tables([steps])
    skipping = Skipping(criterion="scalar", reuse="linear", over=EACH_IMAGE)
    done = run(skipping, requests, tables, 4, True)
    samples, report = jax.jit(
        lambda: run_in_step(skipping, mixture_denoise(VP), requests.x, requests.keys, requests.label, tables,
                            requests.limits, stochastic=True)
    )()  # fmt: skip
    np.testing.assert_allclose(samples.x0, done.x, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(samples.nfe, done.nfe)
    np.testing.assert_array_equal(report.called, done.called)
    assert report.dense_calls == report.called.any(0).sum()


@pytest.mark.parametrize(
    "solver, options",
    [
        (DPMSolver(steps=20), {"criterion": "slope", "delta": 0.2, "reuse": "linear", "c_max": 2}),
        (Ancestral(steps=20), {"criterion": "vector", "delta": 0.3, "tail": 2, "budget": 15}),
    ],
    ids=["2m", "ancestral"],
)
def test_one_image_is_the_same_in_both_modes(solver, options):
    @jax.jit
    def sample(keys):
        samplers = [Adaptive(solver=solver, mode=mode, **options) for mode in ("shared", "per_sample")]
        return [sampler.sample_with_report(mixture_denoise(VP), VP, keys, None, shape=(D,)) for sampler in samplers]

    (shared, shared_report), (solo, report) = sample(keys(1))
    np.testing.assert_allclose(shared.x0, solo.x0, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(shared_report.called, report.called)
    assert shared.nfe == solo.nfe == report.calls and 4 < solo.nfe[0] < 20


def test_a_shared_decision_depends_on_the_neighbours():
    """In larger company an image is another one, as it is not with a decision of its own."""

    def sample(count):
        sampler = Adaptive(solver=DDIM(steps=20), criterion="scalar", delta=0.02)
        return jax.jit(lambda: sampler.sample(mixture_denoise(VP), VP, keys(count), None, shape=(D,)))()

    few, many = sample(2), sample(7)
    assert np.abs(few.x0 - many.x0[:2]).max() > 1e-2


def test_coarse_outputs_change_few_decisions():
    """A network in half precision: its outputs are rounded, the statistics are not."""
    exact = mixture_denoise(VP)

    def rounded(x, t, label):
        return exact(x, t, label).astype(jnp.bfloat16).astype(x.dtype)

    @jax.jit
    def calls(keys):
        sampler = Adaptive(solver=DDIM(steps=30), criterion="scalar", delta=0.02)
        return [sampler.sample(denoise, VP, keys, None, shape=(D,)).nfe[0] for denoise in (exact, rounded)]

    fine, coarse = (int(count) for count in calls(keys(16)))
    assert abs(coarse - fine) <= 1 and fine < 26


# --- Cost -------------------------------------------------------------------------------------------------------------

WEIGHT = (D, 11)  # a shape that nothing else has


def network_denoise(weight):
    def denoise(x, t, label):
        return jnp.tanh(x @ weight)[:, :D] * jnp.exp(-t[:, None])

    return denoise


def equations(jaxpr):
    """All, also within loops and branches, each with the names of what it lies in."""
    for equation in jaxpr.eqns:
        yield (), equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda leaf: hasattr(leaf, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                for inside, other in equations(inner):
                    yield (equation.primitive.name, *inside), other


def network_calls_and_copies(function):
    """What every matrix product lies in, and how many parameters are given a batch axis."""
    found = list(equations(jax.make_jaxpr(function)(jnp.zeros(WEIGHT)).jaxpr))
    calls = [inside for inside, equation in found if equation.primitive.name == "dot_general"]
    copies = [
        equation for _, equation in found if equation.primitive.name in ("select_n", "broadcast_in_dim")
        for output in equation.outvars if len(output.aval.shape) > 2 and output.aval.shape[-2:] == WEIGHT
    ]  # fmt: skip
    return [tuple(name for name in inside if name not in ("jit", "pjit")) for inside in calls], len(copies)


def sample_with(mode, count=5, reuse="linear", solver=None, **options):
    sampler = Adaptive(solver=solver or DDIM(steps=9), mode=mode, reuse=reuse, slots=3, **options)
    return lambda weight: sampler.sample(network_denoise(weight), VP, keys(count), None, shape=(D,)).x0


@pytest.mark.parametrize("solver", [DDIM(steps=9), DPMSolver(steps=9), Ancestral(steps=9)], ids=["ddim", "2m", "noise"])
def test_one_call_of_the_network_under_a_condition_and_no_copies_of_parameters(solver):
    assert network_calls_and_copies(sample_with("shared", solver=solver)) == ([("scan", "cond")], 0)
    # In the outer loop, where each call is dense, and not in the inner one.
    assert network_calls_and_copies(sample_with("per_sample", solver=solver)) == ([("while",)], 0)


def test_a_condition_for_each_image_would_copy_parameters():
    """Negative control: a batch of samplers with one decision each is a select of both branches."""

    def mapped(weight):
        def one(x):
            sampler = Adaptive(solver=DDIM(steps=9))
            tables = device_tables([solver_steps(sampler.solver, VP)])
            return run_in_step(sampler.skipping(), network_denoise(weight), x[None], keys(1), None, tables,
                               sampler.limits(), stochastic=False)[0].x0  # fmt: skip

        return jax.vmap(one)(jnp.ones((5, D)))

    calls, copies = network_calls_and_copies(mapped)
    assert copies > 0 or calls != [("scan", "cond")]


@pytest.mark.parametrize("mode, slots", [("shared", 16), ("per_sample", 4), ("per_sample", 16)])
def test_the_report_adds_up(mode, slots):
    """Calls of images, of the network, and its rows, the network being run as often as reported; nine images."""
    counted = []

    def denoise(x, t, label):
        jax.debug.callback(lambda: counted.append(len(x)))
        return mixture_denoise(VP)(x, t, label)

    sampler = Adaptive(solver=DDIM(steps=20), mode=mode, criterion="scalar", delta=0.02, slots=slots)

    @jax.jit
    def sample():
        samples, report = sampler.sample_with_report(denoise, VP, keys(9), None, shape=(D,))
        return samples, report._replace(rows=jnp.array(report.rows)), report.utilisation

    samples, report, utilisation = jax.block_until_ready(sample())
    jax.effects_barrier()
    assert counted == [int(report.rows)] * int(report.dense_calls)
    np.testing.assert_array_equal(report.calls, report.called.sum(1))
    np.testing.assert_array_equal(samples.nfe, report.calls)
    assert report.called.shape == (9, 20) and report.called[:, :4].all() and (report.calls < 20).all()
    assert report.rows == (9 if mode == "shared" else min(slots, 9))
    wanted, dense = int(report.calls.sum()), int(report.dense_calls)
    assert utilisation == np.float32(wanted / (dense * int(report.rows)))
    if mode == "shared":
        assert utilisation == 1 and dense == report.calls[0]
    elif slots == 16:  # more than images: all begin at once
        assert dense == report.calls.max() and utilisation < 1
    else:
        assert report.calls.max() < dense < wanted and 0.7 < utilisation < 1
        # No slot waits while there are requests: what is lost is lost at the end.
        assert dense * slots - wanted <= (slots - 1) * report.calls.max()


def test_kept_steps():
    """x0_hat of every step, also of those that skip, the sample being the last; the same samples as without."""
    sampler = Adaptive(solver=DDIM(steps=12), mode="per_sample", criterion="scalar", delta=0.05, slots=2)

    @jax.jit
    def sample(keys):
        return [sampler.sample(mixture_denoise(VP), VP, keys, None, shape=(D,), keep_steps=keep)
                for keep in (True, False)]  # fmt: skip

    kept, plain = sample(keys(5))
    assert kept.x0_steps.shape == (12, 5, D) and plain.x0_steps is None
    np.testing.assert_array_equal(kept.x0_steps[-1], kept.x0)
    np.testing.assert_allclose(kept.x0, plain.x0, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(kept.nfe, plain.nfe)
    np.testing.assert_allclose(kept.t_steps, solver_steps(sampler.solver, VP).t, rtol=1e-6)


# --- Guidance ---------------------------------------------------------------------------------------------------------


def guided_denoiser(interval, scale=3.0):
    main = mixture_denoise(VP)
    return Guided(main=main, guide=lambda x, t, label: main(x, t, None), process=VP, scale=scale, interval=interval)


def guided_steps(steps, interval):
    level = np.exp(-0.5 * VP.logsnr(np.linspace(1.0, 1e-3, steps)))
    return (level > interval[0]) & (level <= interval[1])


INTERVAL = (0.3, 2.0)


@pytest.mark.parametrize("mode", ["shared", "per_sample"])
def test_a_call_where_guidance_begins_and_ends(mode):
    """A held output belongs to one guidance. Two evaluations are counted where it acts; here nothing else calls."""
    sampler = Adaptive(solver=DDIM(steps=24), mode=mode, criterion="scalar", delta=1e9, c_max=30, slots=1)
    guided = guided_steps(24, INTERVAL)
    changes = 1 + np.flatnonzero(guided[1:] != guided[:-1])
    assert len(changes) == 2 and changes.min() > 4
    called = np.isin(np.arange(24), [0, 1, 2, 3, *changes])

    def sample(denoise):
        return jax.jit(lambda: sampler.sample_with_report(denoise, VP, keys(3), jnp.arange(3), shape=(D,)))()

    samples, report = sample(guided_denoiser(INTERVAL))
    np.testing.assert_array_equal(report.called, np.broadcast_to(called, (3, 24)))
    np.testing.assert_array_equal(samples.nfe, np.full(3, called.sum() + (called & guided).sum()))
    if mode == "per_sample":
        return
    # Without an interval there is nothing to force.
    samples, report = sample(guided_denoiser((0.0, np.inf)))
    np.testing.assert_array_equal(report.calls, np.full(3, 4))
    np.testing.assert_array_equal(samples.nfe, np.full(3, 8))


def test_guided_images_do_not_depend_on_slots():
    """Though they stand at different times, some guided and some not."""

    def sample(slots):
        sampler = Adaptive(solver=DDIM(steps=24), mode="per_sample", criterion="scalar", delta=0.02, slots=slots)
        denoise = guided_denoiser(INTERVAL)
        return jax.jit(lambda: sampler.sample_with_report(denoise, VP, keys(7), jnp.arange(7) % 3, shape=(D,)))()

    (one, one_report), (many, many_report) = sample(1), sample(3)
    np.testing.assert_array_equal(one_report.called, many_report.called)
    np.testing.assert_allclose(one.x0, many.x0, rtol=1e-4, atol=1e-4)
    guided = guided_steps(24, INTERVAL)
    np.testing.assert_array_equal(one.nfe, (one_report.called * (1 + guided)).sum(1))
    # The guide is evaluated for all slots if one of them is guided, and that is counted.
    assert (many.nfe >= one.nfe).all() and (many.nfe <= 2 * one_report.calls).all()


def test_a_budget_is_kept_where_guidance_changes():
    """Calls that the guidance forces come out of the budget, here at 20 and 22; less than they leave is refused."""
    level = np.exp(-0.5 * VP.logsnr(np.linspace(1.0, 1e-3, 24)))
    denoise = guided_denoiser((level[21:23].mean(), level[19:21].mean()))
    for budget, delta in ((10, 1e9), (12, 0.01), (15, 1e-4)):
        sampler = Adaptive(solver=DDIM(steps=24), criterion="scalar", delta=delta, c_max=4, budget=budget)
        _, report = jax.jit(lambda s=sampler: s.sample_with_report(denoise, VP, keys(2), jnp.arange(2), shape=(D,)))()
        assert report.called[:, [20, 22]].all()
        assert (report.calls <= budget).all()
    # A tail that has both calls in it takes nothing more for them.
    sampler = Adaptive(solver=DDIM(steps=24), criterion="scalar", delta=1e9, c_max=4, tail=4, budget=4 + 16 // 5 + 4)
    _, report = jax.jit(lambda: sampler.sample_with_report(denoise, VP, keys(2), jnp.arange(2), shape=(D,)))()
    assert (report.calls == 11).all()
    sampler = Adaptive(solver=DDIM(steps=24), criterion="scalar", c_max=4, budget=9)
    with pytest.raises(ValueError, match=r"budget = 9 is less than 10: 8 calls at least, and 2 where the guidance"):
        sampler.sample(denoise, VP, keys(2), jnp.arange(2), shape=(D,))


# --- Options ----------------------------------------------------------------------------------------------------------


def test_smallest_budget():
    """The floor of 13 calls for 50 steps and c_max 4 is accepted, 12 is not."""
    options = {"solver": DDIM(steps=50), "criterion": "scalar"}
    assert Adaptive(budget=13, **options).limits().budget == 13
    with pytest.raises(ValueError, match=r"budget = 12 is less than the 13 calls that 50 steps .* take at least"):
        Adaptive(budget=12, **options)
    # A tail of 2 leaves 44 in the middle: 4 + 8 + 2.
    assert Adaptive(budget=14, tail=2, **options).limits().budget == 14
    with pytest.raises(ValueError, match="budget = 13 is less than the 14 calls"):
        Adaptive(budget=13, tail=2, **options)
    # Half of the steps protected: 25 + 5.
    with pytest.raises(ValueError, match="budget = 29 is less than the 30 calls"):
        Adaptive(budget=29, start=0.5, **options)


def test_smallest_budget_as_the_authors_count():
    """Without a limit, one call after the first run; c_max 2 is 18 calls and not 19."""
    options = {"solver": DDIM(steps=50), "criterion": "scalar", "compat": True}
    for c_max, least in ((0, 5), (2, 18), (4, 13), (6, 10)):
        assert Adaptive(budget=least, c_max=c_max, **options).limits().budget == least


def test_options_become_limits_and_a_state_machine():
    sampler = Adaptive(solver=DDIM(steps=50))
    assert sampler.steps == 50
    limits = sampler.limits()
    expected = {"c_max": 4, "steps": 50, "first": 4, "tail": 0, "budget": 50}
    assert limits.delta == np.float32(0.01) and {name: int(getattr(limits, name)) for name in expected} == expected
    assert sampler.skipping() == Skipping(criterion="scalar", reuse="hold", over=ALL_IMAGES)
    for criterion, delta in (("scalar", 0.01), ("vector", 0.05), ("slope", 0.1)):
        assert Adaptive(solver=DDIM(), criterion=criterion).limits((3,)).delta.tolist() == [np.float32(delta)] * 3
    assert Adaptive(solver=DDIM(steps=50), start=0.21).limits().first == 11
    other = Adaptive(solver=DDIM(), mode="per_sample", criterion="slope", reuse="linear", warmup=2, compat=True)
    assert other.skipping() == Skipping(criterion="slope", reuse="linear", over=EACH_IMAGE, compat=True)
    assert [Adaptive(solver=DDIM(), aggregate=a).skipping().agreement for a in ("mean", "max", "quantile")] == [
        None, 1.0, 0.9]  # fmt: skip


def test_agreement_skips_less():
    """One decision that all images must agree to, or nine in ten: fewer skips than from the mean over the batch."""

    @jax.jit
    def calls(keys):
        samplers = [Adaptive(solver=DDIM(steps=30), criterion="scalar", delta=0.02, aggregate=aggregate)
                    for aggregate in ("mean", "quantile", "max")]  # fmt: skip
        return [sampler.sample(mixture_denoise(VP), VP, keys, None, shape=(D,)).nfe[0] for sampler in samplers]

    mean, nine, every = calls(keys(20))
    assert mean < nine <= every <= 30


def test_presets():
    """What is given goes before the preset, and a criterion in another unit drops the preset's delta."""
    for name, expected in PRESETS.items():
        sampler = Adaptive(solver=DDIM(steps=50), **with_preset(name, {}))
        assert {field: getattr(sampler, field) for field in expected} == expected
    assert with_preset(None, {"tail": 3}) == {"tail": 3}
    assert with_preset("safe", {"c_max": 3})["c_max"] == 3
    assert Adaptive(solver=DDIM(), **with_preset("fast", {"criterion": "vector"})).limits().delta == np.float32(0.05)
    assert with_preset("fast", {"criterion": "slope"})["delta"] == 0.2
    with pytest.raises(ValueError, match="preset = 'best' is not known; choose from default, paper, safe, acc"):
        with_preset("best", {})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"solver": SASolver(steps=50)}, f"solver = SASolver cannot skip calls; choose from {', '.join(SOLVERS)}"),
        ({"solver": Heun(churn=4.0)}, "solver = Heun with churn = 4.0 cannot skip calls; it must be 0"),
        ({"mode": "lock_step"}, "mode = 'lock_step' is not known; choose from shared, per_sample"),
        ({"reuse": "quadratic"}, "reuse = 'quadratic' is not known; choose from hold, linear"),
        ({"aggregate": "median"}, "aggregate = 'median' is not known; choose from mean, max, quantile"),
        ({"criterion": "fourth"}, "criterion = 'fourth' is not known; choose from scalar, vector, slope"),
        ({"delta": 0.1}, "delta = 0.1 needs its criterion, whose unit it has; choose from scalar, vector, slope"),
        ({"delta": np.nan, "criterion": "scalar"}, "delta = nan must be finite"),
        ({"delta": np.inf, "criterion": "slope"}, "delta = inf must be finite"),
        ({"c_max": 0}, "c_max = 0 must be at least 1"),
        ({"c_max": -1, "compat": True}, "c_max = -1 must be at least 0"),
        ({"start": -0.1}, r"start = -0.1 must lie in \[0, 1\]"),
        ({"start": 1.5}, r"start = 1.5 must lie in \[0, 1\]"),
        ({"tail": -1}, "tail = -1 must be at least 0"),
        ({"slots": 0}, "slots = 0 must be at least 1"),
        ({"mode": "per_sample", "aggregate": "max"}, "aggregate = 'max' is for mode = 'shared': per_sample decides"),
        ({"warmup": 2}, "warmup = 2 must be at least 3 for criterion = 'scalar'"),
        ({"warmup": 2, "criterion": "vector"}, "warmup = 2 must be at least 3 for criterion = 'vector'"),
        ({"warmup": 1, "criterion": "slope"}, "warmup = 1 must be at least 2 for criterion = 'slope'"),
        ({"warmup": 50}, "warmup = 50 leaves nothing to skip of the 50 steps"),
        ({"solver": DDIM(steps=4)}, "warmup = 4 leaves nothing to skip of the 4 steps"),
        ({"budget": 12}, "budget = 12 is less than the 13 calls"),
        ({"budget": 0}, "budget = 0 is less than the 13 calls"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    """In one line."""
    with pytest.raises(ValueError, match=message) as error:
        Adaptive(**({"solver": DDIM(steps=50)} | options))
    assert re.fullmatch(".*", str(error.value))


def test_the_least_is_accepted():
    for options in ({"c_max": 0, "compat": True}, {"warmup": 3}, {"warmup": 2, "criterion": "slope"}, {"start": 1.0},
                    {"tail": 0}, {"slots": 1}, {"solver": DDIM(steps=5)}):  # fmt: skip
        Adaptive(**({"solver": DDIM(steps=50)} | options))


def test_a_process_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match=r"adaptive sampling needs a process with .*, and DoubleWell has none"):
        Adaptive(solver=DDIM(steps=9)).sample(mixture_denoise(VP), DoubleWell(), keys(2), None, shape=(2,))


def test_guided_answers_numpy_on_the_host():
    """As solver tables need it: in float64, and as in a program."""
    denoise, t = guided_denoiser(INTERVAL), np.linspace(1.0, 1e-3, 24)
    host = denoise.guided(t)
    assert type(host) is np.ndarray and host.dtype == bool
    np.testing.assert_array_equal(host, guided_steps(24, INTERVAL))
    np.testing.assert_array_equal(host, denoise.guided(jnp.asarray(t, jnp.float32)))
    assert list(np.flatnonzero(solver_steps(DDIM(steps=24), VP, denoise).forced)) == list(
        1 + np.flatnonzero(np.diff(host.astype(int))))  # fmt: skip


# --- Steps of two calls -----------------------------------------------------------------------------------------------


def test_a_step_of_heun_is_skipped_as_a_whole(double):
    """Held over m steps, the mean slope of two calls is one longer step of Euler's with that slope, in plain numpy."""
    process, steps = PROCESSES["edm"], 6
    denoise, solver = mixture_denoise(process), Heun(steps=steps)
    t = make_grid(process, "karras", steps).t
    level = np.append(process.sigma(t), 0.0)
    mask = np.array([True, False, False, True, True, True])
    samples, report = sample_with_mask(solver, mask, denoise, process, keys(3), None, shape=(D,))
    x, x0 = np.asarray(process.prior(keys(3), (D,)), np.float64), mixture_denoise(process, np)
    called = [*np.flatnonzero(mask), steps]
    for k, after in itertools.pairwise(called):
        slope = (x - x0(x, np.full(3, t[k]), None)) / level[k]
        if k < steps - 1:
            y = x + (level[k + 1] - level[k]) * slope
            slope = (slope + (y - x0(y, np.full(3, t[k + 1]), None)) / level[k + 1]) / 2
        x = x + (level[after] - level[k]) * slope
    np.testing.assert_allclose(samples.x0, x, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(samples.nfe, 7)  # 2 + 2 + 2 + 1
    np.testing.assert_array_equal(report.calls, 4)
