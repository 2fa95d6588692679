"""The transitions of moment matching: times, kernel, weights, and the sampler whose steps they are.

Numbers are those of a Gaussian in closed form (`conftest.py`), and of [Salimans et al. 2024].
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.process import GaussianProcess
from diffusion.random import image_keys
from diffusion.schedules import EDM, Cosine
from distillation.moment_matching import MomentMatching
from distillation.transitions import Transitions
from samplers import SAMPLERS
from samplers.ancestral import ancestral_tables
from samplers.time_grids import make_grid

pytestmark = pytest.mark.usefixtures("quick_to_compile")

AXES = ("cosine", "karras")


# --- Kernel -----------------------------------------------------------------------------------------------------------


def three_forms(process, s, t):
    """[(A, B, C^2)] by the ratio of the alphas, by inverse variances, and by regression of the joint covariance."""
    alpha_s, alpha_t, var_s, var_t = process.alpha(s), process.alpha(t), process.sigma(s) ** 2, process.sigma(t) ** 2
    ratio = alpha_t / alpha_s
    between = var_t - ratio**2 * var_s
    first = ratio * var_s / var_t, alpha_s * between / var_t, var_s * between / var_t
    variance = 1 / (1 / var_s + ratio**2 / between)
    second = variance * ratio / between, variance * alpha_s / var_s, variance
    slope = np.array([np.linalg.solve([[v]], [r * w])[0] for r, w, v in zip(ratio, var_s, var_t)])
    third = slope, alpha_s - slope * alpha_t, var_s - slope * ratio * var_s
    return [first, second, third]


def pairs(count=200, least=0.02):
    s, t = np.sort(np.random.default_rng(0).uniform(0.02, 0.98, (count, 2)), axis=1).T
    return s[t - s > least], t[t - s > least]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("precision", [np.float64, np.float32])
def test_kernel_is_the_posterior(axis, precision, oracle):
    """Three ways of writing q(x_s | x_t, x0), to rounding."""
    process, (s, t) = oracle.PROCESSES[axis], pairs()
    with jax.enable_x64(precision == np.float64):
        s, t = (value.astype(precision) for value in (s, t))
        got = Transitions().kernel(process, *(jnp.asarray(value) for value in (s, t, t - s)))
        s, t = (value.astype(np.float64) for value in (s, t))
        a, b, c = (np.asarray(value, np.float64) for value in got)
        assert got[0].dtype == precision
    size = process.sigma(s)  # alpha = 1 on the Karras axis, and noise up to 80
    for forms in three_forms(process, s, t):
        for value, right in zip((a, b, c / size), (forms[0], forms[1], np.sqrt(forms[2]) / size)):
            np.testing.assert_allclose(value, right, rtol=0, atol=1e-12 if precision == np.float64 else 1e-6)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_kernel_keeps_the_marginals(axis, eta, oracle, double):
    """A alpha_t + B = alpha_s and A^2 sigma_t^2 + C^2 = sigma_s^2 at every amount of noise."""
    process, (s, t) = oracle.PROCESSES[axis], pairs(least=0.0)
    a, b, c = Transitions(kernel_eta=eta).kernel(process, *(jnp.asarray(value) for value in (s, t, t - s)))
    np.testing.assert_allclose(a * process.alpha(t) + b, process.alpha(s), rtol=1e-12)
    np.testing.assert_allclose(a**2 * process.sigma(t) ** 2 + c**2, process.sigma(s) ** 2, rtol=1e-12)
    assert ((c == 0) == (eta == 0)).all()


@pytest.mark.parametrize("axis", AXES)
def test_kernel_of_the_table(axis, oracle, double):
    """A, B and C^2 of the table, in variance-preserving units; at time_max nothing of x_t is kept."""
    process, table = oracle.PROCESSES[axis], oracle.TABLE[axis]
    t, s = table[:, 0], table[:, 1]
    a, b, c = Transitions().kernel(process, *(jnp.asarray(value) for value in (s, t, t - s)))
    unit_s, unit_t = oracle.scale(process, s), oracle.scale(process, t)
    for got, column in ((a * unit_s / unit_t, 2), (b * unit_s, 3), ((c * unit_s) ** 2, 4)):
        np.testing.assert_allclose(got, table[:, column], atol=1e-6)
    assert a[0] == 0 and b[0] == process.alpha(s[0]) and c[0] == pytest.approx(process.sigma(s[0]), rel=1e-14)
    kept = Transitions(zero_terminal_snr=False).kernel(process, *(jnp.asarray(value) for value in (s, t, t - s)))
    assert kept[0][0] > 0 and (kept[0][1:] == a[1:]).all()


def test_renoising_kernel(oracle, double):
    """Without the condition on x_t: x_s = alpha_s x_gen + sigma_s noise at all times."""
    process, (s, t) = oracle.PROCESSES["cosine"], pairs()
    a, b, c = Transitions(conditional_kernel=False).kernel(process, *(jnp.asarray(value) for value in (s, t, t - s)))
    assert (a == 0).all()
    np.testing.assert_allclose(b, np.cos(np.pi * s / 2), atol=1e-8)
    np.testing.assert_allclose(c, np.sin(np.pi * s / 2), atol=1e-8)


# --- Times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [GaussianProcess(EDM()), GaussianProcess(Cosine(time_min=0.1, time_max=0.9))],
                         ids=["whole", "part"])  # fmt: skip
@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_continuous_times(process, k):
    """s uniform, s <= t <= s + range / k, and t = time_max with probability 1 / (2 k), to 4 standard errors."""
    s, t, gap = Transitions(num_steps=k).draw_times(process, jax.random.key(k), 100_000)
    length, end = process.time_max - process.time_min, np.float32(process.time_max)
    s, t, gap = (np.asarray(value, np.float64) for value in (s, t, gap))
    assert (s >= np.float32(process.time_min)).all() and (t <= end).all() and (gap >= 0).all()
    assert (t >= s).all() and (gap <= length / k + 1e-6).all()
    assert np.abs(t - s - gap).max() < 1.3e-7
    assert abs((t == end).mean() - 1 / (2 * k)) < 0.005
    uniform = (s - process.time_min) / length
    assert abs(uniform.mean() - 0.5) < 4 / np.sqrt(12e5) and abs(uniform.var() - 1 / 12) < 0.002
    inside = gap[t < end]  # of those whose step ends before time_max
    assert inside.max() > 0.98 * length / k


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_times_of_the_grid(k):
    """t on the grid of the sampler, s uniform in the interval below it, every interval as often."""
    s, t, gap = (np.asarray(value, np.float64) for value in
                 Transitions(num_steps=k, pairs="grid").draw_times(GaussianProcess(EDM()), jax.random.key(0), 40_000))
    grid = make_grid(GaussianProcess(EDM()), "trailing", k).t
    index = np.abs(t[:, None] - grid).argmin(axis=1)
    np.testing.assert_allclose(t, grid[index], atol=1e-7)
    np.testing.assert_allclose(np.bincount(index, minlength=k) / len(t), 1 / k, atol=4 / np.sqrt(len(t)))
    np.testing.assert_allclose(t - s, gap, atol=1.3e-7)
    assert abs(gap.mean() * k - 0.5) < 4 / np.sqrt(12 * len(t)) and gap.max() <= 1 / k
    assert s.min() >= -1e-7


# --- Sampler ----------------------------------------------------------------------------------------------------------

# Final variance / c of a chain of k steps whose denoiser is the exact one; that of posterior draws is 1.
FINAL = {
    "cosine": {1: 0.0, 2: 0.16000, 4: 0.37192, 8: 0.55096},
    "karras": {1: 0.0, 2: 0.03657, 4: 0.12888, 8: 0.32310},
}


def final_variance(process, k, slope, spread, zero_terminal_snr=True):
    """Var(x0) / c of the chain x~ = a x_t + b xi, x_s = A x_t + B x~ + C z, by the tables of the sampler."""
    t = make_grid(process, "trailing", k).t
    tables = ancestral_tables(process, t, "small", zero_terminal_snr=zero_terminal_snr)
    variance = float(process.sigma(t[:1])[0] ** 2)
    for a, b, c, own, noise in zip(tables["a"], tables["b"], tables["c"], slope(t), spread(t)):
        variance = (a + b * own) ** 2 * variance + (b * noise) ** 2 + c**2
    return variance / 0.25


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("axis", AXES)
def test_chain_of_means_and_chain_of_draws(axis, k, oracle):
    """By the sampler's tables in float64: posterior draws are exact at every k, means lose the variance."""
    process = oracle.PROCESSES[axis]
    for spread, expected in ((0.0, FINAL[axis][k]), (1.0, 1.0)):
        got = final_variance(
            process, k, lambda t: oracle.posterior_student(process, t)[0] * oracle.scale(process, t),
            lambda t, spread=spread: spread * oracle.posterior_student(process, t)[1],
        )  # fmt: skip
        assert got == pytest.approx(expected, abs=6e-6)


def test_zero_terminal_snr_is_about_the_first_step_alone():
    """It keeps nothing of x_1; without it A = sigma_s^2 / sigma_t^2 of the state is kept."""
    process = GaussianProcess(EDM(sigma_max=2.0))
    t = make_grid(process, "trailing", 4).t
    kept, zero = (ancestral_tables(process, t, "small", zero_terminal_snr=flag) for flag in (False, True))
    assert [zero[name][0] for name in "abc"] == [0.0, 1.0, process.sigma(t[1])]
    assert kept["a"][0] == pytest.approx((process.sigma(t[1]) / 2.0) ** 2, rel=1e-12)
    for name in "abc":
        np.testing.assert_array_equal(kept[name][1:], zero[name][1:])
    alone = ancestral_tables(process, t[:1], "small", zero_terminal_snr=True)  # one step leads to the data
    assert [alone[name][0] for name in "abc"] == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("axis", AXES)
def test_sampler_of_the_student(axis, k, oracle):
    """The sampler that the method names, run: 100,000 draws, within 2 % of the closed form (4.5 standard errors)."""
    process = {"cosine": GaussianProcess(Cosine(logsnr_limit=30.0)), "karras": GaussianProcess(EDM())}[axis]
    options = dict(MomentMatching(num_steps=k).sampler)
    sampler = SAMPLERS[options.pop("name")](**options)
    table = [jnp.asarray(np.interp(np.arange(k + 1) / k, np.arange(1, k + 1) / k, column), jnp.float32)
             for column in map(np.asarray, oracle.posterior_student(process, np.arange(1, k + 1) / k))]  # fmt: skip

    def denoise(x_t, t, label, *, noisy):
        index = jnp.round(t[0] * k).astype(int)
        unit = 1 / jnp.sqrt(process.alpha(t) ** 2 + process.sigma(t) ** 2)
        xi = jax.random.normal(jax.random.fold_in(jax.random.key(5), index), x_t.shape)
        return table[0][index] * unit[:, None] * x_t + noisy * table[1][index] * xi

    for noisy, expected in ((0.0, FINAL[axis][k]), (1.0, 1.0)):
        samples = sampler.sample(lambda x, t, label, noisy=noisy: denoise(x, t, label, noisy=noisy), process,
                                 image_keys(0, jnp.arange(4)), None, shape=(25_000,))  # fmt: skip
        ratio = float(samples.x0.astype(jnp.float32).var()) / oracle.VARIANCE
        assert abs(ratio - expected) < max(0.005, 0.02 * expected)
        assert (samples.nfe == k).all()


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_trailing_grid_has_equal_intervals(k):
    """t = 1, 1 - 1 / k ... 1 / k, of which the last ends at the data."""
    grid = make_grid(GaussianProcess(Cosine()), "trailing", k)
    np.testing.assert_allclose(grid.t, np.arange(k, 0, -1) / k, rtol=1e-13)
    assert (grid.alpha[-1], grid.sigma[-1]) == (1.0, 0.0)
    part = make_grid(GaussianProcess(Cosine(time_min=0.2, time_max=0.8)), "trailing", k)
    np.testing.assert_allclose(np.append(part.t, 0.2), np.linspace(0.8, 0.2, k + 1), rtol=1e-13)


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("eta, name", [(1.0, "ancestral"), (0.0, "ddim"), (0.5, "ddim")])
def test_sampler_that_is_named_has_the_trained_kernel(eta, name, step, oracle):
    """A, B and C of each step of the sampler, by regression on what goes into it, are those of the training pairs."""
    process, method = oracle.PROCESSES["karras"], Transitions(num_steps=4, kernel_eta=eta)
    options = dict(method.sampler)
    assert options.pop("name") == name and options["grid"] == "trailing" and options["steps"] == 4
    states, x0_hat = [], jax.random.normal(jax.random.key(1), (4, 10_000))

    def denoise(x_t, t, label):
        states.append(np.asarray(x_t, np.float64).ravel())
        return x0_hat

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.lax, "scan", python_scan)
        SAMPLERS[name](**options).sample(denoise, process, image_keys(0, jnp.arange(4)), None, shape=(10_000,))
    inputs = np.stack([states[step], np.asarray(x0_hat, np.float64).ravel()], axis=1)
    (a, b), *_ = np.linalg.lstsq(inputs, states[step + 1])
    c = (states[step + 1] - inputs @ [a, b]).std()
    t = make_grid(process, "trailing", 4).t
    expected = [float(x[0]) for x in method.kernel(process, *(jnp.asarray(x[step : step + 1]) for x in
                                                              (t[1:], t[:-1], -np.diff(t))))]  # fmt: skip
    error = 4 * expected[2] / 200 + 1e-5
    assert abs(c - expected[2]) < error and abs(b - expected[1]) < error
    assert abs(a - expected[0]) < error / states[step].std() + 1e-5


def python_scan(body, carry, rows):
    outputs = []
    for i in range(len(rows["t"])):
        carry, output = body(carry, {name: table[i] for name, table in rows.items()})
        outputs.append(output)
    return carry, None if outputs[0] is None else jnp.stack(outputs)


# --- Weights, levels, options -----------------------------------------------------------------------------------------


def test_levels_and_weights_of_the_karras_axis(double):
    """sigma, log-SNR and EDM's weight at t = 1/2 and 1/4; doubled noise for doubled sides shifts by 2 log(1/2)."""
    process, t = GaussianProcess(EDM()), jnp.array([0.5, 0.25])
    np.testing.assert_allclose(process.sigma(t), [2.515219, 0.169753], atol=1e-6)
    assert float(process.logsnr(t)[0]) == pytest.approx(-1.844720, abs=1e-6)
    weight = Transitions(weight="edm").weights(process, t, jnp.zeros((2, 3)))
    np.testing.assert_allclose(weight, [4.158070, 1 / 0.169753**2 + 4], rtol=1e-5)
    large = GaussianProcess(EDM(sigma_min=0.004, sigma_max=160.0))
    np.testing.assert_allclose(large.logsnr(t) - process.logsnr(t), -1.386294, atol=1e-6)


@pytest.mark.parametrize("k, flat", [(1, True), (2, True), (3, False), (8, False)])
def test_automatic_weight_is_flat_for_few_steps(k, flat):
    process, t = GaussianProcess(EDM()), jnp.array([0.5, 0.25])
    weight = Transitions(num_steps=k).weights(process, t, jnp.zeros((2, 3)))
    assert ((weight == 1).all() if flat else weight[0] > 4) and weight.shape == (2,)


def test_adaptive_weight():
    """1 / mean |x_gen - T| of each image, finite where they agree, and no gradient passes it."""
    method, process = Transitions(weight="adaptive"), GaussianProcess(EDM())
    error = jnp.array([[[1.0, -3.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    np.testing.assert_allclose(method.weights(process, jnp.array([0.5, 0.25]), error), [0.5, 1e5], rtol=1e-6)
    gradient = jax.grad(lambda x: method.weights(process, jnp.array([0.5, 0.25]), x).sum())(error)
    assert (gradient == 0).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_steps": 0}, "num_steps = 0 must be at least 1"),
        ({"pairs": "dense"}, "pairs = 'dense' is not known; choose from continuous, grid"),
        ({"weight": "snr"}, "weight = 'snr' is not known; choose from auto, edm, flat, adaptive"),
        ({"kernel_eta": 1.5}, r"kernel_eta = 1.5 must lie in \[0, 1\]"),
        ({"kernel_eta": -0.1}, r"kernel_eta = -0.1 must lie in \[0, 1\]"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Transitions(**options)


# --- Draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [True, False])
def test_x_t_is_noised_data_and_noise_alone_at_time_max(zero, oracle, exact_draws, double):
    """Second moments of what the student is shown, exactly: m_t below time_max; there sigma^2, or m if it is kept."""
    process, t, seen = oracle.PROCESSES["karras"], np.array([1.0, 0.5]), []
    method = oracle.at(Transitions, np.array([0.4, 0.2]), t)(zero_terminal_snr=zero)

    def network(x_t, t, label):
        seen.append(np.asarray(x_t))
        return x_t

    method.draw(network, process, oracle.data(2), None, jax.random.key(0))
    got = (seen[0].reshape(2, oracle.ROWS, 2) ** 2).mean(axis=1)
    expected = process.sigma(t) ** 2 + np.where(t == 1, 0.0 if zero else 1.0, 1.0) * oracle.VARIANCE
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-13)
    np.testing.assert_allclose(got[:, 1], process.sigma(t) ** 2, rtol=1e-13)


@pytest.mark.parametrize("axis", AXES)
def test_posterior_student_reproduces_the_data(axis, oracle, exact_draws, double):
    """Exactly: (x_gen, x_s) has the second moments of (x0, x_s); a student that says the mean does not."""
    process, table = oracle.PROCESSES[axis], oracle.TABLE[axis]
    t, s = table[:, 0], table[:, 1]
    method = oracle.at(Transitions, s, t)()
    a, b = (np.repeat(value, oracle.ROWS) for value in oracle.posterior_student(process, t))
    np.testing.assert_allclose(a[:: oracle.ROWS], table[:, 8], atol=1e-6)
    np.testing.assert_allclose(b[:: oracle.ROWS], table[:, 9], atol=1e-6)

    def moments(spread):
        network = oracle.student(process, jnp.asarray(a), jnp.asarray(spread * b))
        draw = method.draw(network, process, oracle.data(4), None, jax.random.key(0))
        x_gen, x_s = (np.asarray(value)[:, 0].reshape(4, -1) for value in (draw.x_gen, draw.x_s))
        return (x_gen**2).mean(1), (x_gen * x_s).mean(1), (x_s**2).mean(1) * oracle.scale(process, s) ** 2

    joint = oracle.VARIANCE * process.alpha(s)
    for got, right in zip(moments(1.0), (np.full(4, oracle.VARIANCE), joint, table[:, 6])):
        np.testing.assert_allclose(got, right, rtol=2e-6)
    assert np.abs(moments(0.0)[2] - table[:, 6])[:3].min() > 1e-3
