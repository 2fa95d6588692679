"""Samplers with exact denoisers: orders of convergence, identities between them, moments in closed form, and counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from diffusion.exact import exact_gaussian, exact_mixture
from diffusion.kernel_free import DoubleWell
from diffusion.process import GaussianProcess
from diffusion.random import image_keys, image_noise
from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear
from samplers import (
    DDIM,
    SAMPLERS,
    Ancestral,
    DPMSolver,
    Euler,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    RandomizedMidpoint,
    SASolver,
)
from samplers.time_grids import TIME_GRIDS

PROCESSES = {
    "vp_linear": GaussianProcess(VPLinear()),
    "cosine": GaussianProcess(Cosine()),
    "edm": GaussianProcess(EDM()),
    "rectified_flow": GaussianProcess(RectifiedFlow()),
}
# alpha at time_max and the noise levels sigma / alpha at both ends, from the papers' formulas.
ENDS = {
    "edm": (1.0, 0.002, 80.0),
    "vp_linear": (np.exp(-5.025), np.sqrt(np.expm1(0.1 * 1e-3 + 9.95 * 1e-6)), np.sqrt(np.expm1(10.05))),
}


def keys(count, start=0):
    return image_keys(0, jnp.arange(start, start + count))


def exact(process, mixture, classes=None):
    parts = (jnp.asarray(part, jnp.float32) for part in (mixture.weights, mixture.means, mixture.covariances))
    return exact_mixture(process, *parts, classes)


def draw(sampler, process, denoise, count=256, label=None, **options):
    samples = sampler.sample(denoise, process, keys(count), label, shape=(2,), **options)
    return samples._replace(x0=np.asarray(samples.x0, np.float64))


def python_loop(body, carry, rows):
    """What lax.scan means, run op by op: for many short programs that would each take a compilation."""
    outputs = []
    for i in range(len(rows["t"])):
        carry, output = body(carry, {name: table[i] for name, table in rows.items()})
        outputs.append(output)
    return carry, (None if outputs[0] is None else jnp.stack(outputs))


@pytest.fixture
def op_by_op(monkeypatch):
    monkeypatch.setattr(jax.lax, "scan", python_loop)


# --- Order of convergence -------------------------------------------------------------------------------------------

STEPS = (16, 32, 64, 128)


@pytest.fixture(scope="module", params=ENDS, ids=str)
def flow(request, mixture):
    """A process, its exact denoiser, and where the probability-flow ODE takes 256 draws of the prior, in float64.

    The ODE is integrated in log u, u = sigma / alpha, where d xbar / d log u = -u^2 score(xbar; u), with an
    eighth-order method at tolerance 1e-10; then one last denoising from the lowest level, as every sampler does.
    """
    process = PROCESSES[request.param]
    alpha, low, high = ENDS[request.param]
    start = np.asarray(process.prior(keys(256), (2,)), np.float64) / alpha

    def velocity(log_u, xbar):
        u = np.exp(log_u)
        return (-(u**2) * mixture.score(xbar.reshape(-1, 2), 1.0, u)).ravel()

    span = (np.log(high), np.log(low))
    path = solve_ivp(velocity, span, start.ravel(), method="DOP853", rtol=1e-10, atol=1e-10)
    return process, exact(process, mixture), mixture.denoise(path.y[:, -1].reshape(-1, 2), 1.0, low)


def ends(sampler_class, flow, grid):
    """The samples at each number of steps."""
    process, denoise, _ = flow
    return [draw(sampler_class(steps=steps, grid=grid), process, denoise).x0 for steps in STEPS]


def order(samples, reference):
    """Minus the slope of log(root mean square error) over log(steps).

    The second value is the negative control: the same against a reference displaced by the third error.
    """

    def slope(point):
        return -np.polyfit(np.log(STEPS), np.log([np.sqrt(np.mean((x0 - point) ** 2)) for x0 in samples]), 1)[0]

    return slope(reference), slope(reference + np.sqrt(np.mean((samples[2] - reference) ** 2)))


def test_heun_is_of_second_order(flow):
    """To the exact solution of the ODE, and only to that."""
    right, wrong = order(ends(Heun, flow, "uniform"), flow[2])
    assert 1.9 < right < 2.25 and wrong < 1.7


@pytest.mark.parametrize("sampler_class", [DDIM, Euler])
def test_ddim_and_euler_are_of_first_order(flow, sampler_class):
    right, wrong = order(ends(sampler_class, flow, "uniform"), flow[2])
    assert 0.93 < right < 1.08 and wrong < 0.85


# --- Identities between samplers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", TIME_GRIDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_ddim_with_all_the_noise_is_ancestral(mixture, op_by_op, name, grid):
    """Pathwise, with the same keys. Half of the noise is another path."""
    process = PROCESSES[name]
    denoise = exact(process, mixture)
    ancestral = draw(Ancestral(steps=6, grid=grid), process, denoise, 16, keep_steps=True)
    ddim = draw(DDIM(steps=6, grid=grid, eta=1.0), process, denoise, 16, keep_steps=True)
    np.testing.assert_allclose(ddim.x0_steps, ancestral.x0_steps, atol=1e-4)
    np.testing.assert_allclose(ddim.x0, ancestral.x0, atol=1e-4)
    if grid == "uniform":
        half = draw(DDIM(steps=6, grid=grid, eta=0.5), process, denoise, 16)
        assert np.abs(half.x0 - ancestral.x0).max() > 0.01


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_of_the_paper(mixture, op_by_op, eta):
    """Song, Meng & Ermon 2021, eq. 12 and 16, in their alpha_bar ("alpha" there), step by step in float64."""
    process = PROCESSES["vp_linear"]
    t = np.linspace(1.0, 1e-3, 7)
    bar = np.append(np.exp(-(0.1 * t + 9.95 * t**2)), 1.0)
    x = np.asarray(process.prior(keys(8), (2,)), np.float64)
    for i in range(7):
        x0_hat = mixture.denoise(x, np.sqrt(bar[i]), np.sqrt(1 - bar[i]))
        noise_hat = (x - np.sqrt(bar[i]) * x0_hat) / np.sqrt(1 - bar[i])
        spread = eta * np.sqrt((1 - bar[i + 1]) / (1 - bar[i])) * np.sqrt(1 - bar[i] / bar[i + 1])
        noise = np.asarray(image_noise(keys(8), i + 1, (2,)), np.float64)
        x = np.sqrt(bar[i + 1]) * x0_hat + np.sqrt(1 - bar[i + 1] - spread**2) * noise_hat + spread * noise
    got = draw(DDIM(steps=7, eta=eta), process, exact(process, mixture), 8)
    np.testing.assert_allclose(got.x0, x, atol=1e-4)


@pytest.mark.parametrize("churn", [0.0, 4.0])
def test_heun_of_the_paper(mixture, op_by_op, churn):
    """Karras et al. 2022, algorithm 2, step by step in float64; our first level is not raised above sigma_max."""
    process, steps = PROCESSES["edm"], 7
    levels = np.append((80 ** (1 / 7) + np.arange(steps) / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0)
    x = np.asarray(process.prior(keys(8), (2,)), np.float64)
    for i in range(steps):
        gamma = min(churn / steps, np.sqrt(2) - 1) if i > 0 and 0.05 <= levels[i] <= 30 else 0.0
        raised = levels[i] * (1 + gamma)
        if gamma:
            # A step has two rows of noise, the first of which, after its predictor, is not used.
            noise = np.asarray(image_noise(keys(8), 2 * i, (2,)), np.float64)
            x = x + 1.01 * np.sqrt(raised**2 - levels[i] ** 2) * noise
        slope = (x - mixture.denoise(x, 1.0, raised)) / raised
        y = x + (levels[i + 1] - raised) * slope
        if levels[i + 1] > 0:
            second = (y - mixture.denoise(y, 1.0, levels[i + 1])) / levels[i + 1]
            y = x + (levels[i + 1] - raised) * (slope + second) / 2
        x = y
    sampler = Heun(steps=steps, churn=churn, churn_min=0.05, churn_max=30.0, churn_noise=1.01)
    got = draw(sampler, process, exact(process, mixture), 8)
    np.testing.assert_allclose(got.x0, x, atol=2e-4)


def test_euler_and_ddim_agree_on_straight_lines(mixture, op_by_op):
    """For rectified flow the ODE's own Euler step is the DDIM step; for a VP process it is not."""
    for name, same in (("rectified_flow", True), ("vp_linear", False)):
        process = PROCESSES[name]
        denoise = exact(process, mixture)
        euler, ddim = (draw(sampler(steps=8), process, denoise, 16).x0 for sampler in (Euler, DDIM))
        assert (np.abs(euler - ddim).max() < 1e-4) == same


# --- Moments ----------------------------------------------------------------------------------------------------------

MEAN, VARIANCE = np.array([0.7, -0.4]), np.array([0.5, 0.05])
ROTATION = np.array([[0.8, -0.6], [0.6, 0.8]])


def gaussian_chain(alpha, sigma, alpha_end, sigma_end, forward_variance=False):
    """Mean and variance, per eigendirection, of ancestral sampling with the exact denoiser of N(MEAN, VARIANCE).

    Every step is linear and Gaussian. The posterior is that of Ho et al. 2020, eq. 7, in the variances of the forward
    step. `forward_variance` is DDPM's other choice of the noise.
    """
    mean, variance = np.zeros(2), np.full(2, sigma[0] ** 2)
    for a, s, a_next, s_next in zip(alpha, sigma, [*alpha[1:], alpha_end], [*sigma[1:], sigma_end]):
        growth = a / a_next
        step_variance = s**2 - growth**2 * s_next**2
        on_x, on_x0 = growth * s_next**2 / s**2, a_next * step_variance / s**2
        noise = step_variance * (1.0 if forward_variance and s_next > 0 else s_next**2 / s**2)
        gain = a * VARIANCE / (a**2 * VARIANCE + s**2)
        mean = on_x * mean + on_x0 * (MEAN + gain * (mean - a * MEAN))
        variance = (on_x + on_x0 * gain) ** 2 * variance + noise
    return mean, variance


@pytest.mark.parametrize("name", ["vp_linear", "rectified_flow"])
def test_ancestral_moments_of_a_gaussian(name):
    """50,000 draws of a coarse chain, whose moments are not those of the data: within 4 standard errors."""
    t = np.linspace(*{"vp_linear": (1.0, 1e-3), "rectified_flow": (1 - 1e-3, 1e-3)}[name], 6)
    bar = np.exp(-(0.1 * t + 9.95 * t**2))
    alpha, sigma = {"vp_linear": (np.sqrt(bar), np.sqrt(1 - bar)), "rectified_flow": (1 - t, t)}[name]
    process = PROCESSES[name]
    mean_all = jnp.asarray(ROTATION @ MEAN, jnp.float32)
    covariance = jnp.asarray(ROTATION @ np.diag(VARIANCE) @ ROTATION.T, jnp.float32)
    count = 50_000
    samples = draw(Ancestral(steps=6), process, exact_gaussian(process, mean_all, covariance), count)
    x0 = samples.x0 @ ROTATION  # to eigendirections

    def deviations(mean, variance):
        """In standard errors: both means, both variances, the correlation."""
        return np.concatenate([
            (x0.mean(0) - mean) / np.sqrt(variance / count),
            (x0.var(0) / variance - 1) / np.sqrt(2 / count),
            [np.corrcoef(x0.T)[0, 1] * np.sqrt(count)],
        ])

    assert np.abs(deviations(*gaussian_chain(alpha, sigma, 1.0, 0.0))).max() < 4
    # Negative controls: the other variance of DDPM, and the moments of the data themselves, are far outside.
    assert np.abs(deviations(*gaussian_chain(alpha, sigma, 1.0, 0.0, forward_variance=True))).max() > 10
    assert np.abs(deviations(MEAN, VARIANCE)).max() > 10


def test_churn_keeps_the_distribution(mixture):
    """Noise added and removed again: with fine steps the samples still have the mixture's mean and covariance."""
    process = PROCESSES["edm"]
    denoise = exact(process, mixture)
    mean = mixture.weights @ mixture.means
    centred = mixture.means - mean
    second = mixture.covariances + centred[:, :, None] * centred[:, None, :]
    covariance = np.einsum("k,kij->ij", mixture.weights, second)
    for loudness, kept in ((1.0, True), (1.5, False)):  # noise that is half as large again is noticed
        x0 = draw(Heun(steps=32, churn=12.0, churn_noise=loudness), process, denoise, 6_000).x0
        errors = [np.abs(x0.mean(0) - mean).max(), np.abs(np.cov(x0.T) - covariance).max()]
        assert (max(errors) < 0.06) == kept, errors


# --- What every sampler promises --------------------------------------------------------------------------------------

EVERY = {
    "ancestral": Ancestral(steps=5),
    "ddim": DDIM(steps=5),
    "ddim with noise": DDIM(steps=5, eta=0.7),
    "euler": Euler(steps=5),
    "euler_maruyama": EulerMaruyama(steps=5),
    "heun": Heun(steps=5),
    "heun with churn": Heun(steps=5, churn=2.0),
    "dpm_solver": DPMSolver(steps=5),
    "dpm_solver with noise": DPMSolver(steps=5, stochastic=True),
    "sa_solver": SASolver(steps=5),
    "randomized_midpoint": RandomizedMidpoint(steps=5),
    "predictor_corrector": PredictorCorrector(steps=5),
}
CALLS = {name: 9 if name.startswith(("heun", "randomized", "predictor")) else 5 for name in EVERY}
OWN_TIMES = "randomized_midpoint"  # the others call the network at one time for the whole batch


# Samplers that go through a grid; the Langevin, Poisson midpoint and one-step samplers have their own tests.
REVERSING = {name: sampler for name, sampler in SAMPLERS.items()
             if name not in ("ddpm", "langevin", "lmc", "ulmc", "poisson_midpoint", "one_step")}  # fmt: skip


def test_every_named_sampler_is_tested():
    assert {type(sampler) for sampler in EVERY.values()} == set(REVERSING.values())


@pytest.mark.parametrize("name", EVERY)
def test_calls_are_counted_as_they_happen(mixture, name):
    """A counter called from the running program: as many calls as nfe says, at as many rows as x0_steps has."""
    process, calls = PROCESSES["vp_linear"], []
    inner = exact(process, mixture)

    def denoise(x_t, t, label):
        jax.debug.callback(lambda t, label: calls.append(t) or labels.append(label), t, label)
        return inner(x_t, t, label)

    labels = []
    samples = draw(EVERY[name], process, denoise, 3, label=jnp.array([4, 0, 7]), keep_steps=True)
    jax.effects_barrier()
    assert len(calls) == CALLS[name]
    np.testing.assert_array_equal(samples.nfe, np.full(3, CALLS[name]))
    assert samples.x0_steps.shape == (CALLS[name], 3, 2)
    assert np.array_equal(labels, [[4, 0, 7]] * CALLS[name])
    times = np.array(calls)
    assert (times == times[:, :1]).all() != (name == OWN_TIMES)
    assert times.max() <= 1.0 and times.min() >= np.float32(1e-3)
    # The last output is the sample.
    np.testing.assert_allclose(samples.x0_steps[-1], samples.x0, atol=1e-5)


def call_sites(jaxpr, name):
    """Occurrences of the jitted function `name` in a jaxpr and all jaxprs inside it."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.params.get("name") == name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                count += call_sites(inner, name)
    return count


@pytest.mark.parametrize("name", EVERY)
def test_one_network_call_site(name):
    """The network is in the program once, so it is compiled once."""
    process = PROCESSES["vp_linear"]

    @jax.jit
    def marked_network(x_t, t, label):
        return 0.5 * x_t

    def sample(keys):
        return EVERY[name].sample(marked_network, process, keys, None, shape=(2,)).x0

    assert call_sites(jax.make_jaxpr(sample)(keys(3)).jaxpr, "marked_network") == 1
    twice = jax.make_jaxpr(lambda keys: sample(keys) + sample(keys))(keys(3))
    assert call_sites(twice.jaxpr, "marked_network") == 2  # the counter does count


@pytest.mark.parametrize("name", EVERY)
def test_image_does_not_depend_on_its_batch(mixture, op_by_op, name):
    """Images 8 to 15 of sixteen are those of a batch of eight."""
    process = PROCESSES["cosine"]
    denoise = exact(process, mixture)
    sixteen, eight = (
        np.asarray(EVERY[name].sample(denoise, process, image, None, shape=(2,)).x0) for image in (keys(16), keys(8, 8))
    )
    np.testing.assert_allclose(eight, sixteen[8:], atol=1e-6)
    assert np.abs(eight - sixteen[:8]).max() > 0.1 and len(np.unique(sixteen)) == 32


@pytest.mark.parametrize("sampler_class", REVERSING.values(), ids=REVERSING)
def test_one_step_is_one_denoising_of_the_prior(mixture, op_by_op, sampler_class):
    process = PROCESSES["edm"]
    samples = draw(sampler_class(steps=1), process, exact(process, mixture), 4)
    prior = np.asarray(process.prior(keys(4), (2,)), np.float64)
    np.testing.assert_allclose(samples.x0, mixture.denoise(prior, 1.0, 80.0), atol=1e-4)
    np.testing.assert_array_equal(samples.nfe, np.ones(4))
    assert samples.x0_steps is None


@pytest.mark.parametrize("sampler_class", REVERSING.values(), ids=REVERSING)
def test_compiled_is_the_same(mixture, monkeypatch, sampler_class):
    """Under jit, with the keys as arguments and in another batch, as op by op."""
    process = PROCESSES["vp_linear"]
    denoise = exact(process, mixture)

    def sample(keys):
        return sampler_class(steps=5).sample(denoise, process, keys, None, shape=(2,)).x0

    compiled = jax.jit(sample)(keys(16))
    monkeypatch.setattr(jax.lax, "scan", python_loop)
    np.testing.assert_allclose(compiled[8:], sample(keys(8, 8)), atol=1e-4)


def test_images_are_flat_vectors_in_another_shape():
    """[B, 2, 2, 3] against [B, 12], of the same keys."""
    images, flat = (
        DDIM(steps=4).sample(lambda x, t, label: 0.5 * jnp.tanh(x), PROCESSES["edm"], keys(3), None, shape=shape).x0
        for shape in ((2, 2, 3), (12,))
    )
    assert images.shape == (3, 2, 2, 3)
    np.testing.assert_allclose(images.reshape(3, 12), flat, atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        *((lambda cls=cls: cls(steps=0), "steps = 0") for cls in SAMPLERS.values()),
        (lambda: DDIM(eta=1.5), r"eta = 1.5"),
        (lambda: DDIM(eta=-0.1), r"eta = -0.1"),
        (lambda: Heun(churn=-1.0), r"churn = -1.0"),
    ],
)
def test_bad_fields_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", sorted({*REVERSING, "poisson_midpoint"} - {"euler", "euler_maruyama"}))
def test_process_without_kernel_is_refused(name):
    """What cannot do without one says so; Euler and Euler-Maruyama can (`test_euler_maruyama.py`)."""
    with pytest.raises(ValueError, match=r"needs a process with a closed-form .*, and DoubleWell has none"):
        SAMPLERS[name]().sample(lambda x_t, t, label: x_t, DoubleWell(), keys(2), None, shape=(2,))
