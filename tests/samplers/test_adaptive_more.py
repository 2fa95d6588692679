"""Adaptive sampling: increments per noise level, states in half precision, denoisers with one time, labels as trees;
and seconds.

Increments per noise level are told apart from others by a fact: a first-order solver moves x / alpha by the network's
noise times the change of sigma / alpha. The oracle knows nothing of alpha, and so VP and EDM must decide alike.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.guidance import Guided
from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from diffusion.schedules import EDM, RectifiedFlow, VPLinear
from samplers.adaptive import Adaptive, run_in_step, solver_steps, with_preset
from samplers.ancestral import Ancestral
from samplers.ddim import DDIM
from samplers.desynchronised import Requests, run_queue
from samplers.dpm_solver import DPMSolver
from samplers.skipping import ALL_IMAGES, EACH_IMAGE, Limits, Skipping, Steps, device_tables, row_at
from training.timing import paired

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


def clean(z, level, label, xp=jnp, mixture=(CENTRES, WIDTHS)):
    """x0_hat of three Gaussians from z = x / alpha and the noise level; labels make them lean to one of them."""
    centres, widths = (xp.asarray(values, z.dtype) for values in mixture)
    spread = widths + level[:, None] ** 2
    joint = -0.5 * ((z[:, None] - centres) ** 2 / spread[:, None]).sum(-1)
    joint = joint + (0.0 if label is None else 0.5 * (label[:, None] == xp.arange(3)))
    shares = xp.exp(joint - joint.max(-1, keepdims=True))
    mean = shares / shares.sum(-1, keepdims=True) @ centres
    return mean + widths / spread * (z - mean)


def mixture_denoise(process, mixture=(CENTRES, WIDTHS)):
    """In float32 at least, with the result in the precision of the images."""

    def denoise(x, t, label):
        alpha, sigma = process.alpha(t), process.sigma(t)
        z = x.astype(jnp.promote_types(x.dtype, jnp.float32)) / alpha[:, None]
        return clean(z, sigma / alpha, label, jnp, mixture).astype(x.dtype)

    return denoise


def keys(count):
    return image_keys(0, jnp.arange(count))


def limits(count, delta, steps, c_max=4):
    whole = (c_max, steps, 4, 0, steps)
    return Limits(jnp.full(count, delta, float), *(jnp.full(count, value, jnp.int32) for value in whole))


# --- Increments per unit of noise level -------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="skipping")
def one_step(skipping, x, x0, tables, k):
    """x after step k and what is remembered of the increment, as if it were the first step."""
    count = x.shape[:1] if skipping.over == EACH_IMAGE else ()
    row, ahead = ({name: jnp.broadcast_to(value, count + value.shape) for name, value in row_at(tables, 0, at).items()}
                  for at in (k, k + 1))  # fmt: skip
    state = skipping.step(skipping.start(x, 1), x0, row, ahead, limits(count, 0.1, tables["t"].shape[1]), None)
    return state.x, state.past[0]


@pytest.mark.parametrize("over", [ALL_IMAGES, EACH_IMAGE])
@pytest.mark.parametrize("process", PROCESSES)
def test_normalised_increments_are_the_noise(process, over, double):
    """Of DDIM, with their sign, and a flow's velocity; by other increments they are another thing. Step by step."""
    rng, steps = np.random.default_rng(0), 6
    run, process = solver_steps(DDIM(steps=steps), PROCESSES[process]), PROCESSES[process]
    alpha, sigma = process.alpha(run.t), process.sigma(run.t)
    tables, flow = device_tables([run]), isinstance(process.schedule, RectifiedFlow)
    for k in range(steps - 1):
        x0, noise = rng.standard_normal((2, 3, D))
        x = alpha[k] * x0 + sigma[k] * noise
        after = alpha[k + 1] * x0 + sigma[k + 1] * noise
        remembered = {}
        for criterion, normalize in (("vector", True), ("scalar", True), ("vector", False)):
            skipping = Skipping(criterion=criterion, reuse="hold", over=over, normalize=normalize)
            moved, remembered[criterion, normalize] = one_step(skipping, jnp.asarray(x), jnp.asarray(x0), tables, k)
            np.testing.assert_allclose(moved, after, rtol=1e-12, atol=1e-12)
        expected = noise - x0 if flow else noise
        np.testing.assert_allclose(remembered["vector", True], expected, rtol=1e-9, atol=1e-9)
        sizes = np.abs(expected).mean(1) if over == EACH_IMAGE else np.abs(expected).mean()
        np.testing.assert_allclose(remembered["scalar", True], sizes, rtol=1e-9)
        assert np.abs(remembered["vector", False] - expected).max() > 0.1


LEVELS = np.linspace(20.0 ** (1 / 7), 0.02 ** (1 / 7), 24) ** 7


def level_tables():
    """DDIM from one noise level to the next, with the level as the time, of VP and of EDM; both end at x0_hat."""
    made = []
    for alpha in (1 / np.sqrt(1 + LEVELS**2), np.ones_like(LEVELS)):
        sigma, n = LEVELS * alpha, len(LEVELS)
        a = np.append(sigma[1:] / sigma[:-1], 0.0)
        weights = np.append(alpha[1:], 1.0) - a * alpha
        made.append(Steps(LEVELS, alpha, sigma, -np.log(LEVELS), a, weights[:, None], np.zeros(n), np.zeros(n, bool)))
    return made


def level_denoise(x, level, label):
    """Label 0: a state of VP. 1: of EDM, which is x / alpha."""
    alpha = jnp.where(label == 1, 1.0, 1 / jnp.sqrt(1 + level**2))[:, None]
    return clean(x / alpha, level, None)


def by_noise(z, delta, criterion, reuse, c_max=4):
    """x0 and which steps call, of one image z = x / alpha in numpy: nothing but z, the noise e and its level."""
    called, calls, history, run, need = [], [], [], 0, True
    for k, level in enumerate(LEVELS):
        called.append(need)
        run = 0 if need else run + 1
        if need:
            calls.append((-np.log(level), (z - clean(z[None], np.array([level]), None, np)[0]) / level))
        (lam, e), (lam_b, e_b) = calls[-1], calls[-2] if len(calls) > 1 else calls[-1]
        if not need and reuse == "linear":
            e = e + (-np.log(level) - lam) / (lam - lam_b) * (e - e_b)
        history.append(e)
        z = z + ((LEVELS[k + 1] if k + 1 < len(LEVELS) else 0.0) - level) * e
        if k < 3:
            continue
        old, middle, new = history[-3:]
        if criterion == "scalar":
            bend = abs((np.abs(new).mean() + np.abs(old).mean()) / 2 - np.abs(middle).mean())
        else:
            bend = np.abs(new - 2 * middle + old).mean()
        need = bend > delta * np.abs(middle).mean() or run >= c_max
    return z, np.array(called)


@partial(jax.jit, static_argnames="skipping")
def of_levels(skipping, x, kind, tables, delta):
    samples, report = run_in_step(skipping, level_denoise, x, keys(len(x)), jnp.broadcast_to(kind, len(x)), tables,
                                  limits((len(x),), delta, len(LEVELS)), stochastic=False)  # fmt: skip
    return samples.x0, report.called


def both_processes(skipping, z, delta):
    """x0 and called of VP and of EDM, both from the same x / alpha."""
    runs = level_tables()
    return [of_levels(skipping, jnp.asarray(z * run.m[0]), kind, device_tables([run]), delta)
            for kind, run in enumerate(runs)]  # fmt: skip


@pytest.mark.parametrize("criterion, reuse, delta", [("scalar", "hold", 0.02), ("vector", "linear", 0.05)])
def test_normalised_decisions_are_those_of_noise_on_any_process(criterion, reuse, delta, double):
    """VP and EDM, at the same noise levels, skip what plain numpy skips, and end alike. Plain increments do not."""
    count = 9
    z = np.sqrt(1 + LEVELS[0] ** 2) * np.random.default_rng(1).standard_normal((count, D))
    skipping = Skipping(criterion=criterion, reuse=reuse, over=EACH_IMAGE, normalize=True)
    (vp, vp_called), (edm, edm_called) = both_processes(skipping, z, delta)
    expected = [by_noise(one, delta, criterion, reuse) for one in z]
    np.testing.assert_array_equal(vp_called, [called for _, called in expected])
    np.testing.assert_array_equal(edm_called, vp_called)
    np.testing.assert_allclose(vp, [x0 for x0, _ in expected], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(edm, vp, rtol=1e-8, atol=1e-8)
    assert len({called.tobytes() for _, called in expected}) > 2 and 8 < np.mean(vp_called.sum(1)) < 22
    # The control: without normalisation the two processes skip other steps, and other ones than with it.
    skipping = Skipping(criterion=criterion, reuse=reuse, over=EACH_IMAGE)
    (_, vp_plain), (_, edm_plain) = both_processes(skipping, z, delta)
    assert ((vp_plain != edm_plain).any(1)).mean() > 0.5
    assert (vp_plain != vp_called).any() and (edm_plain != vp_called).any()


def test_normalize_is_passed_on_and_refused_where_there_are_no_increments():
    for criterion in (None, "scalar", "vector"):
        for normalize in (False, True):
            sampler = Adaptive(solver=DDIM(steps=9), criterion=criterion, normalize=normalize)
            assert sampler.skipping().normalize is normalize
    assert Adaptive(solver=DDIM(steps=9)).skipping().normalize is False
    for options in ({"criterion": "slope"}, with_preset("accurate", {}), with_preset("fast", {"delta": 0.3})):
        Adaptive(solver=DDIM(steps=9), **options)
        with pytest.raises(ValueError, match="normalize = True is for criterion = 'scalar' or 'vector': slope sees no"):
            Adaptive(solver=DDIM(steps=9), normalize=True, **options)


# --- States in half precision -----------------------------------------------------------------------------------------


def half(values):
    return np.asarray(values, np.float32).astype(jnp.bfloat16).astype(np.float64)


@pytest.mark.parametrize("over", [ALL_IMAGES, EACH_IMAGE])
@pytest.mark.parametrize("solver, criterion, reuse", [
    (DDIM(steps=9), "scalar", "hold"), (DPMSolver(steps=9), "vector", "linear"),
    (Ancestral(steps=9), "slope", "linear"),
], ids=["ddim", "2m", "ancestral"])  # fmt: skip
def test_a_state_keeps_its_precision(solver, criterion, reuse, over):
    """Through both loops; without running them."""
    skipping, tables = Skipping(criterion=criterion, reuse=reuse, over=over), device_tables([solver_steps(solver, VP)])
    stochastic, count = isinstance(solver, Ancestral), (3,) if over == EACH_IMAGE else ()

    def in_step(x):
        return run_in_step(skipping, mixture_denoise(VP), x, keys(3), None, tables, limits(count, 0.1, 9),
                           stochastic=stochastic, keep_steps=True)[0]  # fmt: skip

    def queue(x):
        requests = Requests(x, keys(3), None, jnp.zeros(3, jnp.int32), limits(count, 0.1, 9))
        return run_queue(skipping, mixture_denoise(VP), requests, tables, slots=2, stochastic=stochastic).x

    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        x = jax.ShapeDtypeStruct((3, D), dtype)
        samples = jax.eval_shape(in_step, x)
        assert samples.x0.dtype == samples.x0_steps.dtype == dtype
        if over == EACH_IMAGE:
            assert jax.eval_shape(queue, x).dtype == dtype


def test_sizes_of_increments_are_float32():
    """Also those of a state in half precision, and of what the solver makes of it before that is rounded."""
    tables = device_tables([solver_steps(DDIM(steps=30), VP)])
    x, x0 = (jnp.asarray(z, jnp.bfloat16) for z in np.random.default_rng(2).standard_normal((2, 3, D)))
    skipping = Skipping(criterion="scalar", reuse="hold", over=EACH_IMAGE)
    moved, size = one_step(skipping, x, x0, tables, 3)
    assert skipping.start(x, 1).past[1].dtype == size.dtype == jnp.float32 and moved.dtype == jnp.bfloat16
    a, b = float(tables["a"][0, 3]), float(tables["weights"][0, 3, 0])
    x, x0 = np.asarray(x, np.float64), np.asarray(x0, np.float64)
    after = a * x + b * x0
    np.testing.assert_allclose(size, np.abs(after - x).mean(1), rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(moved, np.float64), half(after))
    # The control: the difference of the rounded states is far from that.
    of_rounded = np.abs(half(after) - x).mean(1)
    assert np.abs(of_rounded / np.abs(after - x).mean(1) - 1).max() > 0.01


def called_by(x, delta, mixture, *, rounded, of_rounded=False):
    """Which of 30 steps of DDIM call, of one image in numpy, with a state in half precision or not.

    Args:
      of_rounded: increments are differences of the rounded states, the mistake to be seen.
    """
    run, d, skips, need, called = solver_steps(DDIM(steps=30), VP), [], 0, True, []
    kept = half if rounded else np.asarray
    for k in range(30):
        called.append(need)
        skips = 0 if need else skips + 1
        if need:
            x0 = kept(said(x, run, k, mixture))
            e = kept((x - run.m[k] * x0) / run.sigma[k])
        else:
            x0 = kept((x - run.sigma[k] * e) / run.m[k])
        after = run.a[k] * x + run.weights[k, 0] * x0
        d.append(np.abs((kept(after) if of_rounded else after) - x).mean())
        x = kept(after)
        if k >= 3:
            need = abs((d[-1] + d[-3]) / 2 - d[-2]) > delta * d[-2] or skips >= 4
    return called


def said(x, run, k, mixture):
    return clean(x[None] / run.m[k], run.sigma[k : k + 1] / run.m[k], None, np, mixture)[0]


def test_half_precision_changes_few_decisions():
    """One of 30 in the mean, of images of 192 values. Differences of rounded states, in numpy, would change many."""
    delta, count, size = 0.02, 16, 192
    draw = np.random.default_rng(0)
    mixture = 0.7 * draw.standard_normal((3, size)), draw.uniform(0.02, 0.6, size) ** 2
    tables = device_tables([solver_steps(DDIM(steps=30), VP)])
    skipping = Skipping(criterion="scalar", reuse="hold", over=EACH_IMAGE)

    @jax.jit
    def run(x):
        samples, report = run_in_step(skipping, mixture_denoise(VP, mixture), x, keys(count), None, tables,
                                      limits((count,), delta, 30), stochastic=False)  # fmt: skip
        return samples.x0, report.called

    x = jnp.asarray(draw.standard_normal((count, size)), jnp.bfloat16)
    (fine, fine_called), (coarse, coarse_called) = run(x.astype(jnp.float32)), run(x)
    assert fine.dtype == jnp.float32 and coarse.dtype == jnp.bfloat16
    exact, rounded, wrong = (
        np.array([called_by(one, delta, mixture, **options) for one in np.asarray(x, np.float64)])
        for options in ({"rounded": False}, {"rounded": True}, {"rounded": True, "of_rounded": True})
    )
    np.testing.assert_array_equal(fine_called, exact)
    assert exact.sum(1).max() < 26
    for called in (np.asarray(coarse_called), rounded):
        assert (called != exact).sum(1).mean() < 2 and np.abs(called.sum(1) - exact.sum(1)).mean() < 0.5
        assert np.abs(called.sum(1) - exact.sum(1)).max() <= 1
    assert (wrong != exact).sum(1).mean() > 5 and np.abs(wrong.sum(1) - exact.sum(1)).max() > 2
    np.testing.assert_allclose(coarse.astype(jnp.float32), fine, atol=0.05)


# --- Denoisers that take one time -------------------------------------------------------------------------------------


class OneTime:
    """Looks at the first of the times only, and says so."""

    one_time = True

    def __call__(self, x, t, label):
        return mixture_denoise(VP)(x, jnp.full_like(t, t[0]), label)


def sample(denoise, mode, shape=(D,), *, count=5, keep_steps=False, slots=5):
    sampler = Adaptive(solver=DDIM(steps=9), mode=mode, criterion="scalar", delta=-1.0, slots=slots)
    return sampler.sample(denoise, VP, keys(count), None, shape=shape, keep_steps=keep_steps)


RULE = "mode = 'per_sample' calls the network with a time for each image, and this denoiser takes one for all; "


def test_a_denoiser_that_says_that_it_takes_one_time_is_for_the_shared_mode():
    """There it is the plain sampler's, as with kept steps; and one that says the contrary decides for each image."""
    for denoise in (OneTime(), Guided(main=OneTime(), guide=mixture_denoise(VP), process=VP, scale=2.0)):
        with pytest.raises(ValueError, match=f"{RULE}choose mode = 'shared'$"):
            sample(denoise, "per_sample")
    plain, shared = jax.jit(lambda: (
        DDIM(steps=9).sample(mixture_denoise(VP), VP, keys(5), None, shape=(D,)).x0, sample(OneTime(), "shared").x0
    ))()  # fmt: skip
    np.testing.assert_allclose(shared, plain, rtol=1e-5, atol=1e-5)
    any_times = OneTime()
    assert jax.eval_shape(lambda: sample(any_times, "per_sample", keep_steps=True)).x0_steps.shape == (9, 5, D)
    any_times.one_time = False
    assert jax.eval_shape(lambda: sample(any_times, "per_sample")).x0.shape == (5, D)


@pytest.mark.parametrize("shape, problem", [
    ((3, 3, 1), r"x0_hat has shape \(5, 3, 3, 5\), the images \(5, 3, 3, 1\)"),  # five times along the channels
    ((3, 3, 3), "Incompatible shapes"),
    ((2, 2, 5), "Incompatible shapes"),  # as many channels as slots
])  # fmt: skip
def test_a_denoiser_that_cannot_take_a_time_for_each_image_is_refused(shape, problem):
    """Times that are not made to fit the images, whether that fails or gives something else; not those that are."""
    with pytest.raises(ValueError, match=rf"{RULE}choose mode = 'shared' \(.*{problem}") as error:
        sample(lambda x, t, label: x * t, "per_sample", shape)
    assert "\n" not in str(error.value)
    fitting = jax.eval_shape(lambda: sample(lambda x, t, label: x * t[:, None, None, None], "per_sample", shape))
    assert fitting.x0.shape == (5, *shape)


def test_it_is_asked_with_as_many_images_as_slots():
    """Three slots are three times, also for nine images: a network that is made for three images is not refused."""
    seen = []

    def denoise(x, t, label):
        seen.append((x.shape, t.shape))
        return 0.5 * x

    jax.eval_shape(lambda: sample(denoise, "per_sample", count=9, slots=3))
    assert set(seen) == {((3, D), (3,))}


# --- Labels as trees --------------------------------------------------------------------------------------------------


def guided(x, t, klass, scale):
    """Guidance with a scale for each image."""
    free, held = (mixture_denoise(VP)(x, t, label) for label in (None, klass))
    return free + scale[:, None] * (held - free)


def guided_by_tree(x, t, label):
    return guided(x, t, label["class"], label["scale"])


CLASSES, SCALES = np.array([0, 1, 2, 0, 1, 2]), np.array([0.0, 1.0, 3.0, 8.0, 8.0, 5.0], np.float32)


def run_guided(mode, denoise, label, of_keys, slots=2):
    sampler = Adaptive(solver=DDIM(steps=12), mode=mode, criterion="scalar", delta=0.05, slots=slots)
    samples, report = sampler.sample_with_report(denoise, VP, of_keys, label, shape=(D,))
    return samples.x0, report.called, samples.nfe


@jax.jit
def by_trees(klass, scale):
    label = {"class": klass, "scale": scale}
    return [run_guided(mode, guided_by_tree, label, keys(6)) for mode in ("per_sample", "shared")]


def test_labels_may_be_trees():
    """A class and a guidance scale for each image: it comes out as if made alone, with both as constants."""

    @jax.jit
    def alone(key, klass, scale):
        return run_guided("shared", lambda x, t, _: guided(x, t, klass[None], scale[None]), None, key[None])

    @jax.jit
    def together(klass, scale):
        return run_guided("shared", lambda x, t, _: guided(x, t, klass, scale), None, keys(6))

    (x, called, nfe), shared = by_trees(CLASSES, SCALES)
    for i, (klass, scale) in enumerate(zip(CLASSES, SCALES)):
        x_alone, called_alone, nfe_alone = alone(keys(6)[i], klass, scale)
        np.testing.assert_array_equal(called[i], called_alone[0])
        np.testing.assert_allclose(x[i], x_alone[0], rtol=1e-4, atol=1e-5)
        assert nfe[i] == nfe_alone[0] == called[i].sum()
    assert len({row.tobytes() for row in np.asarray(called)}) > 2
    for ours, expected in zip(shared, together(CLASSES, SCALES)):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    # The control: every leaf of the tree counts.
    for klass, scale in ((CLASSES, SCALES[::-1].copy()), ((CLASSES + 1) % 3, SCALES)):
        for (other, *_), (same, *_) in zip(by_trees(klass, scale), ((x,), shared)):
            assert (np.abs(other - same).max(1) > 1e-3).sum() >= 4


# --- Seconds ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def optimised():
    """Programs as they are compiled outside the tests."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def residual_mlp(pixels, layers=6, width=512):
    """(denoiser of images and their weights, weights)."""
    draw = np.random.default_rng(0)
    sizes = [(pixels, width), *[(width, width)] * layers, (width, pixels)]
    weights = [jnp.asarray(draw.standard_normal(size) / np.sqrt(size[0]), jnp.float32) for size in sizes]

    def denoise(weights, x, t):
        first, *middle, last = weights
        h = x @ first + t[:, None]
        for matrix in middle:
            h = h + jax.nn.gelu(h @ matrix) / layers
        return jnp.tanh(h @ last)

    return denoise, weights


@pytest.mark.slow
def test_half_of_the_calls_take_less_than_three_quarters_of_the_time(optimised):
    """In shared mode, of a network of six layers. The control: where at every step some image calls, nothing is won."""
    count, pixels, steps = 64, 64, 20
    network, weights = residual_mlp(pixels)
    solver = DDIM(steps=steps)
    sampler = Adaptive(solver=solver, criterion="slope", delta=1e9, reuse="linear", c_max=2, warmup=2, start=0.25)
    skipping, tables = sampler.skipping(), device_tables([solver_steps(solver, VP)])
    by_turns = jnp.asarray((np.arange(count)[:, None] + np.arange(steps)) % 2 == 0)

    def compiled(run):
        return jax.jit(lambda weights: run(lambda x, t, _: network(weights, x, t)))

    def lock_step(denoise):
        each = dataclasses.replace(skipping, over=EACH_IMAGE)
        return run_in_step(each, denoise, VP.prior(keys(count), (pixels,)), keys(count), None, tables,
                           limits((count,), 0.1, steps), stochastic=False, mask=by_turns)  # fmt: skip

    given = (VP, keys(count), None)
    plain = compiled(lambda denoise: solver.sample(denoise, *given, shape=(pixels,)).x0)
    shared = compiled(lambda denoise: sampler.sample_with_report(denoise, *given, shape=(pixels,)))

    shares = {}
    for name, run, calls, dense in (("shared", shared, (10, 10), 10),
                                    ("lock_step", compiled(lock_step), (10, 11), steps)):  # fmt: skip
        samples, report = run(weights)
        assert (report.calls.min(), report.calls.max()) == calls and report.dense_calls == dense
        assert np.isfinite(samples.x0).all() and np.abs(samples.x0).max() <= 1
        _, _, shares[name] = paired(lambda run=run: run(weights), lambda: plain(weights), 5)
    assert shares["shared"] < 0.75 < shares["lock_step"], shares
