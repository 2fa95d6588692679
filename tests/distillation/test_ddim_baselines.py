"""Progressive and consistency distillation: targets by the DDIM sampler itself, and for a Gaussian in closed form.

For N(0, c) everything is linear: the exact denoiser is d_t x_t, a step of DDIM a factor, and the path of the
probability-flow ODE x_s = x_t sqrt(m_s / m_t), with m = alpha^2 c + sigma^2 and m = c at the data.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.exact import exact_gaussian, exact_mixture
from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from diffusion.schedules import EDM, Cosine, VPLinear
from distillation.consistency_distillation import ConsistencyDistillation
from distillation.ddim_steps import ddim_step, grid_time, implied_x0
from distillation.progressive_distillation import ProgressiveDistillation
from samplers import SAMPLERS
from samplers.ddim import DDIM

pytestmark = pytest.mark.usefixtures("quick_to_compile")

VARIANCE = 0.25
PROCESSES = {"cosine": GaussianProcess(Cosine()), "edm": GaussianProcess(EDM()),
             "part": GaussianProcess(VPLinear(time_min=0.05, time_max=0.9))}  # fmt: skip


@pytest.fixture(params=PROCESSES, ids=str)
def process(request):
    return PROCESSES[request.param]


def levels(process, steps):
    """alpha and sigma at t_0 ... t_steps in float64; t_0 is the data."""
    t = process.time_min + (process.time_max - process.time_min) * np.arange(steps + 1) / steps
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha[0], sigma[0] = 1.0, 0.0
    return alpha, sigma


def second_moment(process, steps):
    alpha, sigma = levels(process, steps)
    return alpha**2 * VARIANCE + sigma**2


def exact_slope(process, steps):
    """d at t_1 ... t_steps (index 0 is not used)."""
    return levels(process, steps)[0] * VARIANCE / second_moment(process, steps)


def step_factor(process, steps, end, start, slope):
    """x_end / x_start of one step whose x0_hat is slope x_start: noise_hat and x0_hat put together anew at t_end."""
    alpha, sigma = levels(process, steps)
    return alpha[end] * slope + sigma[end] * (1 - alpha[start] * slope) / sigma[start]


def slope_of_factor(process, steps, end, start, factor):
    """The slope whose one step has this factor: the factor is affine in the slope."""
    zero, one = (step_factor(process, steps, end, start, slope) for slope in (0.0, 1.0))
    return (factor - zero) / (one - zero)


def table_student(process, steps, slopes):
    """The denoiser slopes[i] x at t_i."""
    def denoise(x, t, label=None):
        index = jnp.round((t - process.time_min) / (process.time_max - process.time_min) * steps).astype(int)
        return jnp.asarray(slopes, x.dtype)[index][:, None] * x

    return denoise


def gaussian(process):
    return exact_gaussian(process, jnp.zeros(1), VARIANCE * jnp.eye(1))


def mixture_teacher(process, mixture):
    return exact_mixture(process, *(jnp.asarray(x, jnp.float32) for x in
                                    (mixture.weights, mixture.means, mixture.covariances)))  # fmt: skip


def sample(process, denoise, steps, shape=(2,)):
    """64 samples of the DDIM sampler on the trailing grid, always from the same noise."""
    sampler = DDIM(steps=steps, grid="trailing")
    samples = jax.jit(lambda keys: sampler.sample(denoise, process, keys, None, shape=shape).x0)
    return np.asarray(samples(image_keys(0, jnp.arange(64))), np.float64)


def index_of(process, t, steps):
    return jnp.round((t - process.time_min) / (process.time_max - process.time_min) * steps).astype(jnp.int32)


# --- Progressive distillation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 8])
def test_a_student_that_says_the_target_samples_as_its_teacher(k, process, mixture):
    """The sampler of k steps with the targets as its denoiser ends where the teacher ends with 2 k."""
    teacher, method = mixture_teacher(process, mixture), ProgressiveDistillation(num_steps=k)

    def student(x, t, label, shift=0):
        return method.target(teacher, process, x, index_of(process, t, 2 * k) - shift, label)

    options = dict(method.sampler)
    assert SAMPLERS[options.pop("name")] is DDIM and options == {"steps": k, "grid": "trailing"}
    right = sample(process, teacher, 2 * k)
    np.testing.assert_allclose(sample(process, student, k), right, atol=5e-5)
    # Negative controls: the teacher's own x0 as the target; the target of another index.
    assert np.abs(sample(process, teacher, k) - right).max() > 0.01
    if k > 1:
        wrong = sample(process, lambda x, t, label: student(x, t, label, shift=1), k)
        assert not np.abs(wrong - right).max() < 0.01


@pytest.mark.parametrize("k", [1, 4])
def test_progressive_target_of_a_gaussian(k, process, double):
    """At every even index the factor of the target's step is that of the teacher's two; the last leads to the data."""
    method, steps = ProgressiveDistillation(num_steps=k), 2 * k
    index, x_t = np.arange(2, steps + 1, 2), np.linspace(-2, 2, k + 1)[1:, None]
    target = method.target(gaussian(process), process, jnp.asarray(x_t), jnp.asarray(index), None)
    d = exact_slope(process, steps)
    half = np.array([step_factor(process, steps, i - 1, i, d[i]) for i in index])
    both = half * np.array([step_factor(process, steps, i - 2, i - 1, d[i - 1]) for i in index])
    slopes = np.array([slope_of_factor(process, steps, i - 2, i, f) for i, f in zip(index, both)])
    np.testing.assert_allclose(target, slopes[:, None] * x_t, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(target[0], d[1] * half[0] * x_t[0], rtol=1e-9)  # the clean end: the second x0 itself
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(target, d[index][:, None] * x_t, rtol=1e-3)


def parts_of(oracle, process):
    teacher = gaussian(process)
    return oracle.parts(process, lambda params: table_student(process, len(params) - 1, params), lambda params: teacher)


def loss_and_gradient(method, parts, slopes, count=20_000, seed=0):
    """Of a student given by its slopes at t_0 ... t_N, on `count` draws of the Gaussian."""
    (update,) = method.updates(parts)
    assert update.role == "generator"
    batch = {"image": np.sqrt(VARIANCE) * jax.random.normal(jax.random.key(seed), (count, 1))}
    run = jax.jit(jax.value_and_grad(lambda p: update.loss(p, {"teacher": jnp.zeros(())}, batch, jax.random.key(1)),
                                     has_aux=True))  # fmt: skip
    (loss, metrics), gradient = run(jnp.asarray(slopes))
    return float(loss), {name: float(value) for name, value in metrics.items()}, np.asarray(gradient)


def progressive_slopes(process, k):
    """The fixed point of the student at t_0 ... t_2k; 0 at odd indices, which it never sees."""
    steps, d = 2 * k, exact_slope(process, 2 * k)
    slopes = np.zeros(steps + 1)
    for i in range(2, steps + 1, 2):
        factor = step_factor(process, steps, i - 1, i, d[i]) * step_factor(process, steps, i - 2, i - 1, d[i - 1])
        slopes[i] = slope_of_factor(process, steps, i - 2, i, factor)
    return slopes


def test_progressive_loss_is_least_at_the_fixed_point(oracle, double):
    """Zero there with no gradient; of a student that is off by e it is mean_i max(snr_i, 1) e^2 m_i."""
    process, k, off = PROCESSES["cosine"], 4, 0.1
    method, parts = ProgressiveDistillation(num_steps=k), parts_of(oracle, process)
    slopes = progressive_slopes(process, k)
    loss, _, gradient = loss_and_gradient(method, parts, slopes)
    assert loss == pytest.approx(0, abs=1e-18) and np.abs(gradient).max() < 1e-9
    loss, metrics, _ = loss_and_gradient(method, parts, slopes + off)
    alpha, sigma = (x[2::2] for x in levels(process, 2 * k))
    m = second_moment(process, 2 * k)[2::2]
    weight = np.maximum((alpha / sigma) ** 2, 1)
    each = off**2 * m  # the error at each index, times chi^2 with one degree of freedom
    error = 4 * np.sqrt((3 * (weight * each) ** 2).mean() / 20_000)
    assert abs(loss - (weight * each).mean()) < error < 0.1 * loss
    assert metrics["loss"] == loss
    assert abs(metrics["x0_mse"] - each.mean()) < 4 * np.sqrt((3 * each**2).mean() / 20_000)
    assert abs((weight * each).mean() - each.mean()) > 2 * error  # the weight is seen


# --- Consistency distillation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4])
def test_as_many_segments_as_steps_leave_the_teacher(k, process, mixture):
    """k = N: the target is what the teacher says of x_t, whatever the student says."""
    teacher, method = mixture_teacher(process, mixture), ConsistencyDistillation(num_steps=k, teacher_steps=k)
    index = jnp.arange(1, k + 1)
    t = grid_time(process, index, k)
    x_t = process.corrupt(jnp.ones((k, 2)), jax.random.normal(jax.random.key(0), (k, 2)), t)

    def garbage(x, t, label):
        return jnp.full_like(x, jnp.nan)

    got = method.target(teacher, garbage, process, x_t, index, None)
    np.testing.assert_allclose(got, teacher(x_t, t, None), rtol=2e-4, atol=2e-4)


def consistent_slopes(process, k, steps):
    """The fixed point at t_0 ... t_N: whose one step leads where the teacher's steps lead to the end of the segment."""
    d, slopes, length = exact_slope(process, steps), np.zeros(steps + 1), steps // k
    for i in range(1, steps + 1):
        end = (i - 1) // length * length
        factor = np.prod([step_factor(process, steps, j - 1, j, d[j]) for j in range(end + 1, i + 1)])
        slopes[i] = slope_of_factor(process, steps, end, i, factor)
    return slopes


def ode_slopes(process, k, steps):
    """The exact consistency function: whose one step leads along the ODE to the end of the segment."""
    m, slopes, length = second_moment(process, steps), np.zeros(steps + 1), steps // k
    for i in range(1, steps + 1):
        end = (i - 1) // length * length
        slopes[i] = slope_of_factor(process, steps, end, i, np.sqrt(m[end] / m[i]))
    return slopes


def consistency_target(method, process, slopes):
    """Slope of the target at t_1 ... t_N for a student of these slopes."""
    steps, teacher = method.teacher_steps, gaussian(process)

    def target(slopes):
        index = jnp.arange(1, steps + 1)
        return method.target(teacher, table_student(process, steps, slopes), process, jnp.ones((steps, 1)), index, None)

    return np.asarray(jax.jit(target)(jnp.asarray(slopes)))[:, 0]


@pytest.mark.parametrize("k, steps", [(1, 8), (2, 8), (4, 12)])
def test_consistent_student_is_its_own_target(k, steps, process, double):
    """And sampled with k steps it ends where the teacher ends with N."""
    method, slopes = ConsistencyDistillation(num_steps=k, teacher_steps=steps), consistent_slopes(process, k, steps)
    np.testing.assert_allclose(consistency_target(method, process, slopes), slopes[1:], rtol=1e-8, atol=1e-10)
    # Negative control: of the segments of another k it is not the fixed point.
    other = consistent_slopes(process, 2 * k, steps)
    assert np.abs(consistency_target(method, process, other) - other[1:]).max() > 1e-3
    options = dict(method.sampler)
    assert SAMPLERS[options.pop("name")] is DDIM and options == {"steps": k, "grid": "trailing"}
    ends = (sample(process, denoise, count, (1,)) for denoise, count in
            ((table_student(process, steps, slopes), k), (gaussian(process), steps)))  # fmt: skip
    np.testing.assert_allclose(*ends, atol=1e-5)


def test_exact_consistency_function_is_a_fixed_point_as_steps_get_small(double):
    """The target moves it by 1 / N^2 a step (inside of a segment), hence the fixed point is off by 1 / N; measured.

    The negative control, what the teacher says of x_t, is moved by 1 / N a step, and its distance does not fall.
    """
    process, sizes, k = PROCESSES["cosine"], np.array([32, 64, 128, 256]), 2

    def moved(slopes_of, steps):
        """Over the upper halves of both segments: the last steps have next to nothing left to divide by."""
        slopes = slopes_of(int(steps))
        change = consistency_target(ConsistencyDistillation(num_steps=k, teacher_steps=int(steps)), process, slopes)
        return np.abs(change - slopes[1:]).reshape(2, -1)[:, steps // 4 :].max()

    def order(errors):
        return -np.polyfit(np.log(sizes), np.log(errors), 1)[0]

    def exact(n):
        return ode_slopes(process, k, n)

    assert 1.9 < order([moved(exact, n) for n in sizes]) < 2.1
    assert 0.9 < order([moved(lambda n: exact_slope(process, n), n) for n in sizes]) < 1.1
    assert 0.9 < order([np.abs(consistent_slopes(process, k, n) - exact(n)).max() for n in sizes]) < 1.1
    assert np.abs(exact_slope(process, 256) - exact(256)).max() > 0.1


def test_consistency_loss_is_least_at_the_fixed_point(oracle, double):
    """Zero there with no gradient; a student off by e has (snr_i + 4) times the squared error of its own target."""
    process, off = PROCESSES["cosine"], 0.1
    method, parts = ConsistencyDistillation(num_steps=2, teacher_steps=8), parts_of(oracle, process)
    slopes = consistent_slopes(process, 2, 8)
    loss, _, gradient = loss_and_gradient(method, parts, slopes)
    assert loss == pytest.approx(0, abs=1e-16) and np.abs(gradient).max() < 1e-7
    moved = slopes + off
    loss, metrics, gradient = loss_and_gradient(method, parts, moved)
    alpha, sigma = (x[1:] for x in levels(process, 8))
    m, weight = second_moment(process, 8)[1:], (alpha / sigma) ** 2 + 4
    residual = consistency_target(method, process, moved) - moved[1:]
    each = residual**2 * m
    error = 4 * np.sqrt((3 * (weight * each) ** 2).mean() / 20_000)
    assert abs(loss - (weight * each).mean()) < error < 0.1 * loss and metrics["loss"] == loss
    assert abs(metrics["x0_mse"] - each.mean()) < 4 * np.sqrt((3 * each**2).mean() / 20_000)
    # The target is a constant: d loss / d f_i is -2 w residual m / N, and no other index takes part in it.
    expected = -2 * weight * residual * m / 8
    spread = 4 * np.abs(2 * weight * residual * m) * np.sqrt(3 / 8 / 20_000)
    assert (np.abs(gradient[1:] - expected) < spread).all() and gradient[0] == 0


def test_a_target_that_is_not_constant_is_another_gradient(oracle, double, monkeypatch):
    """Negative control of the stop at the target."""
    process = PROCESSES["cosine"]
    method, parts = ConsistencyDistillation(num_steps=2, teacher_steps=8), parts_of(oracle, process)
    slopes = consistent_slopes(process, 2, 8) + 0.1
    right = loss_and_gradient(method, parts, slopes, count=500)[2]
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    wrong = loss_and_gradient(method, parts, slopes, count=500)[2]
    assert np.linalg.norm(wrong - right) > 0.05 * np.linalg.norm(right)


# --- Steps and options ------------------------------------------------------------------------------------------------


def test_step_and_its_inverse(process, double):
    """implied_x0 undoes ddim_step; to the data a step is x0_hat, and a step of no length nothing."""
    draw = np.random.default_rng(0)
    end, start = (jnp.array(x) for x in ((0, 0, 2, 5, 1), (1, 6, 3, 6, 4)))
    x_t, x0_hat = (jnp.asarray(x) for x in draw.normal(size=(2, 5, 2)))
    x_s = ddim_step(process, x_t, x0_hat, end, start, 6)
    np.testing.assert_allclose(implied_x0(process, x_t, x_s, end, start, 6), x0_hat, rtol=1e-8, atol=1e-8)
    np.testing.assert_array_equal(x_s[:2], x0_hat[:2])
    alpha, sigma = levels(process, 6)
    noise_hat = (x_t - alpha[start, None] * x0_hat) / sigma[start, None]
    np.testing.assert_allclose(x_s, alpha[end, None] * x0_hat + sigma[end, None] * noise_hat, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ddim_step(process, x_t, x0_hat, start, start, 6), x_t, rtol=1e-10)


def test_both_ask_for_labels_and_guide_the_teacher_alone(oracle):
    """The label of each image goes to every network; the student is not guided."""
    seen = {"network": [], "teacher": []}

    def denoiser(name):
        def make(params):
            def denoise(x, t, label):
                seen[name].append(np.asarray(label))
                return params * x

            return denoise

        return make

    guides = []

    def guide(denoise):
        guides.append(denoise)
        return denoise

    parts = oracle.parts(PROCESSES["cosine"], denoiser("network"), denoiser("teacher"), guide, num_classes=4)
    batch = {"image": jnp.ones((4, 2)), "label": jnp.array([0, 1, 2, 3])}
    for method in (ProgressiveDistillation(num_steps=2), ConsistencyDistillation(num_steps=2, teacher_steps=4)):
        (update,) = method.updates(parts)
        update.loss(jnp.float32(0.1), {"teacher": jnp.float32(0.2)}, batch, jax.random.key(0))
    assert len(guides) == 2 and len(seen["network"]) == 3 and len(seen["teacher"]) == 3
    for label in seen["network"] + seen["teacher"]:
        np.testing.assert_array_equal(label, batch["label"])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ProgressiveDistillation(num_steps=0), "num_steps = 0 must be at least 1"),
        (lambda: ConsistencyDistillation(num_steps=0), "num_steps = 0 must be at least 1"),
        (lambda: ConsistencyDistillation(num_steps=-2), "num_steps = -2 must be at least 1"),
        (lambda: ConsistencyDistillation(num_steps=4, teacher_steps=10),
         "teacher_steps = 10 must be a multiple of num_steps = 4"),
        (lambda: ConsistencyDistillation(num_steps=4, teacher_steps=0),
         "teacher_steps = 0 must be a multiple of num_steps = 4"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
