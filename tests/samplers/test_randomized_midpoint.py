"""The randomized midpoint method by linear probing: exact second moments of the production code, no Monte Carlo.

For Gaussian data and given random times every step is linear in the state and the noise, so an image whose noise number
j is the unit vector e_j ends as the row of coefficients of all noises. Images of one batch have different times, the
nodes of a quadrature over them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.kernel_free import DoubleWell
from diffusion.process import GaussianProcess
from diffusion.random import image_keys, image_noise
from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear
from samplers import randomized_midpoint
from samplers.randomized_midpoint import RandomizedMidpoint, image_fractions

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PROCESSES = {
    "vp_linear": GaussianProcess(VPLinear()),
    "cosine": GaussianProcess(Cosine()),
    "edm": GaussianProcess(EDM()),
    "rectified_flow": GaussianProcess(RectifiedFlow()),
}
NODES, WEIGHTS = (part / 2 for part in np.polynomial.legendre.leggauss(24))
NODES = NODES + 0.5
DATA_VARIANCE = 0.25
STEPS = 7  # of everything that is probed: one shape, one set of compiled operations


def keys(count, start=0):
    return image_keys(0, jnp.arange(start, start + count))


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


@pytest.fixture
def probe(monkeypatch, op_by_op):
    """probe(process, denoise, fractions) -> coefficients [calls, batch, 1 + calls] of the states, and those of x0.

    The states are those that are given to the denoiser. Coefficient 0 is that of the state at the start, j that of the
    noise of call j. `fractions` [intervals, batch] are the p of the intervals.
    """

    def unit_noise(keys, index, shape):
        return jnp.broadcast_to(jnp.eye(shape[0])[index], (len(keys), *shape))

    def coefficients(process, denoise, fractions):
        states = []

        def recording(x_t, t, label):
            states.append(np.asarray(x_t, np.float64))
            return denoise(x_t, t)

        monkeypatch.setattr(randomized_midpoint, "image_noise", unit_noise)
        monkeypatch.setattr(randomized_midpoint, "image_fractions", lambda keys, count: jnp.float32(fractions))
        monkeypatch.setattr(GaussianProcess, "prior", lambda self, keys, shape: unit_noise(keys, 0, shape))
        sampler = RandomizedMidpoint(steps=STEPS)
        samples = sampler.sample(recording, process, keys(fractions.shape[1]), None, shape=(2 * STEPS,))
        return np.stack(states), np.asarray(samples.x0, np.float64)

    return coefficients


def gaussian(process):
    """E[x0 | x_t] of N(0, DATA_VARIANCE), which is linear."""

    def denoise(x_t, t):
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        return alpha * DATA_VARIANCE / (alpha**2 * DATA_VARIANCE + sigma**2) * x_t

    return denoise


def at_nodes(steps):
    return np.tile(NODES, (steps - 1, 1))


def variances(states, start_variance):
    """Exact variance at the start of every interval, of the states that `probe` returns for `at_nodes`.

    The times of two intervals are independent, so the average over them is taken at the end of each.
    """
    starts = states[::2]
    found = [start_variance]
    for i in range(len(starts) - 1):
        gain = starts[i + 1][:, 0] / starts[i][:, 0]
        new = starts[i + 1][:, 2 * i + 1 : 2 * i + 3]
        found.append(WEIGHTS @ (gain**2 * found[-1] + (new**2).sum(1)))
    return np.array(found)


def localization(process, t, uniform_in_time=False, independent=False, ancestral=False):
    """The same variances by another road: the state y = rho x / alpha, in which the noise is a Brownian motion in rho.

    y_u = y + p h g y + w(p h) and y_s = y + h g_u y_u + w(h), with h = rho_s - rho_t, p uniform, E[x0 | y] = g y. Two
    mistakes can be asked for: times uniform in t, and noise in y_u that is not that in y_s. `ancestral` is
    y_s = y + h g y + w(h).
    """
    rho = np.exp(process.logsnr(t))
    scale = (rho / process.alpha(t)) ** 2
    variance, found = scale[0] * process.sigma(t[0]) ** 2, []
    for i, h in enumerate(np.diff(rho)):
        found.append(variance)
        p = NODES
        if uniform_in_time:
            p = (np.exp(process.logsnr(t[i] + NODES * (t[i + 1] - t[i]))) - rho[i]) / h
        gain, gain_u = (DATA_VARIANCE / (1 + DATA_VARIANCE * r) for r in (rho[i], rho[i] + p * h))
        on_y, on_first = 1 + h * gain_u * (1 + p * h * gain), h * gain_u
        first = p * h * on_first**2 + h if independent else p * h * (1 + on_first) ** 2 + (1 - p) * h
        variance = (1 + h * gain) ** 2 * variance + h if ancestral else WEIGHTS @ (on_y**2 * variance + first)
    return np.array([*found, variance]) / scale


def uniform_in_time(process, t):
    """p at which time, not SNR, is at NODES between the two ends."""
    rho = np.exp(process.logsnr(t))
    middle = t[:-1, None] + NODES * np.diff(t)[:, None]
    return (np.exp(process.logsnr(middle)) - rho[:-1, None]) / np.diff(rho)[:, None]


def grid_times(process, steps):
    """The default grid, from the schedules' own inverses."""
    ends = process.logsnr(np.array([process.time_max, process.time_min]))
    return np.clip(process.time_of_logsnr(np.linspace(*ends, steps)), process.time_min, process.time_max)


# --- One step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_constant_denoiser_gives_the_posterior(probe, name):
    """With x0_hat frozen, x_u and x_s are draws of q(. | x_t, x0), jointly, whatever the random time."""
    process = PROCESSES[name]
    t = grid_times(process, STEPS)
    # x0_hat is the unit vector of the last noise, which is not used, so that coefficient -1 is that of x0.
    states, _ = probe(process, lambda x_t, t: jnp.broadcast_to(jnp.eye(2 * STEPS)[-1], x_t.shape), at_nodes(STEPS))
    rho, alpha = np.exp(process.logsnr(t)), process.alpha(t)
    for i in range(STEPS - 1):
        rho_u = rho[i] + NODES * (rho[i + 1] - rho[i])
        alpha_u = process.alpha(process.time_of_logsnr(np.log(rho_u)))
        before, inside, after = states[2 * i], states[2 * i + 1], states[2 * i + 2]
        noise = slice(2 * i + 1, 2 * i + 3)
        for end, rho_end, alpha_end in ((inside, rho_u, alpha_u), (after, rho[i + 1], alpha[i + 1])):
            shrink, ratio = rho[i] / alpha[i] * alpha_end / rho_end, rho[i] / rho_end
            np.testing.assert_allclose(end[:, 0], shrink * before[:, 0], rtol=1e-3)
            np.testing.assert_allclose(end[:, -1], shrink * before[:, -1] + alpha_end * (1 - ratio), rtol=1e-3)
            variance = (alpha_end / rho_end) ** 2 * (rho_end - rho[i])
            np.testing.assert_allclose((end[:, noise] ** 2).sum(1), variance, rtol=2e-3)
        # The two share their noise: cov(x_u, x_s) = (rho_u - rho_t) in y. An independent draw would give 0.
        shared = alpha_u / rho_u * alpha[i + 1] / rho[i + 1] * (rho_u - rho[i])
        np.testing.assert_allclose((inside * after)[:, noise].sum(1), shared, rtol=2e-3)


@pytest.mark.parametrize("name", ["vp_linear", "edm"])
def test_path_on_a_mixture(mixture, op_by_op, name):
    """Step by step in float64, in y = rho x / alpha, with the production code's own draws."""
    process, steps = PROCESSES[name], 4
    t = grid_times(process, steps)
    rho, alpha = np.exp(process.logsnr(t)), process.alpha(t)
    p = np.asarray(image_fractions(keys(8), steps - 1), np.float64)

    def x0_hat(y, rho, alpha):
        """Row by row, each at its own time."""
        rho, alpha = np.broadcast_to(rho, 8), np.broadcast_to(alpha, 8)
        return np.concatenate([
            mixture.denoise(alpha[b] / rho[b] * y[b : b + 1], alpha[b], alpha[b] / np.sqrt(rho[b])) for b in range(8)
        ])

    def noise(index):
        return np.asarray(image_noise(keys(8), index, (2,)), np.float64)

    y = rho[0] / alpha[0] * np.asarray(process.prior(keys(8), (2,)), np.float64)
    for i in range(steps - 1):
        h = rho[i + 1] - rho[i]
        rho_u = rho[i] + p[i] * h
        alpha_u = process.alpha(process.time_of_logsnr(np.log(rho_u)))
        first = np.sqrt(p[i] * h)[:, None] * noise(2 * i + 1)
        y_u = y + (p[i] * h)[:, None] * x0_hat(y, rho[i], alpha[i]) + first
        y = y + h * x0_hat(y_u, rho_u, alpha_u) + first + np.sqrt((1 - p[i]) * h)[:, None] * noise(2 * i + 2)

    def denoise(x_t, t, label):
        t = np.asarray(t, np.float64)
        rows = [mixture.denoise(np.asarray(x_t, np.float64)[b : b + 1], process.alpha(t[b]), process.sigma(t[b]))
                for b in range(8)]
        return jnp.asarray(np.concatenate(rows), jnp.float32)

    samples = RandomizedMidpoint(steps=steps).sample(denoise, process, keys(8), None, shape=(2,), keep_steps=True)
    np.testing.assert_allclose(samples.x0, x0_hat(y, rho[-1], alpha[-1]), atol=2e-4)
    np.testing.assert_array_equal(samples.nfe, 2 * steps - 1)
    assert samples.x0_steps.shape == (2 * steps - 1, 8, 2)
    # The times reported are those of the grid, and of the mean SNR between them.
    np.testing.assert_allclose(samples.t_steps[::2], t, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(process.logsnr(np.float64(samples.t_steps[1::2]))), (rho[1:] + rho[:-1]) / 2,
                               rtol=1e-3)


# --- Many steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROCESSES)
def test_second_moments_of_a_gaussian(probe, name):
    """Every variance of the chain equals that of the Brownian picture; the two classic mistakes do not."""
    process = PROCESSES[name]
    t = grid_times(process, STEPS)
    states, x0 = probe(process, gaussian(process), at_nodes(STEPS))
    got = variances(states, process.sigma(t[0]) ** 2)
    np.testing.assert_allclose(got, localization(process, t), rtol=1e-3)
    last = gaussian(process)(jnp.float32(states[-1]), jnp.full(len(NODES), t[-1]))
    np.testing.assert_allclose(x0, np.asarray(last), rtol=1e-4, atol=1e-12)
    for mistake in ({"uniform_in_time": True}, {"independent": True}):
        assert np.abs(localization(process, t, **mistake) / got - 1).max() > 0.05, mistake


def test_mistakes_in_the_code_are_seen(probe, monkeypatch):
    """The two mistakes made in the production code are those of the oracle: the test above would fail."""
    process = PROCESSES["vp_linear"]
    t = grid_times(process, STEPS)
    start = process.sigma(t[0]) ** 2
    states, _ = probe(process, gaussian(process), uniform_in_time(process, t))
    np.testing.assert_allclose(variances(states, start), localization(process, t, uniform_in_time=True), rtol=1e-3)
    rows = RandomizedMidpoint._rows

    def independent(self, process, p):
        """All of C z1 is drawn anew."""
        table = rows(self, process, p)
        fresh = jnp.sqrt(table["c"][1::2] ** 2 + table["keep_z"][:-1:2] ** 2)
        return table | {"keep_z": 0 * table["keep_z"], "c": table["c"].at[1::2].set(fresh)}

    monkeypatch.setattr(RandomizedMidpoint, "_rows", independent)
    states, _ = probe(process, gaussian(process), at_nodes(STEPS))
    np.testing.assert_allclose(variances(states, start), localization(process, t, independent=True), rtol=1e-3)


@pytest.mark.parametrize("name", PROCESSES)
def test_weak_order(name):
    """The error of the last variance falls as steps^-2, ancestral's and that with independent noise as steps^-1.

    By the recursion, which the production code has been shown to follow.
    """
    process, counts = PROCESSES[name], (64, 128, 256)
    errors = {"midpoint": [], "ancestral": [], "independent": []}
    for steps in counts:
        t = grid_times(process, steps)
        exact = process.alpha(t[-1]) ** 2 * DATA_VARIANCE + process.sigma(t[-1]) ** 2
        errors["midpoint"].append(localization(process, t)[-1] / exact - 1)
        errors["independent"].append(localization(process, t, independent=True)[-1] / exact - 1)
        errors["ancestral"].append(localization(process, t, ancestral=True)[-1] / exact - 1)
    slopes = {kind: -np.polyfit(np.log(counts), np.log(np.abs(error)), 1)[0] for kind, error in errors.items()}
    assert 1.9 < slopes["midpoint"] < 2.2, slopes
    assert 0.9 < slopes["ancestral"] < 1.1, slopes
    assert slopes["independent"] < 1.3, slopes
    # At equal cost: half the steps.
    assert abs(localization(process, grid_times(process, 64))[-1] / exact - 1) < 0.35 * abs(errors["ancestral"][1])


# --- What every sampler promises ------------------------------------------------------------------------------------


def test_times_are_random_for_each_image(op_by_op):
    """Uniform in (0, 1], other for every image and interval; image i is the same in any company."""
    p = np.asarray(image_fractions(keys(8), 2000))
    assert p.shape == (2000, 8) and p.min() > 0 and p.max() <= 1 and len(np.unique(p)) > 15_900
    assert np.abs(np.mean(p, 0) - 0.5).max() < 4 * np.sqrt(1 / 12 / 2000)
    assert np.abs(np.mean(p**2, 0) - 1 / 3).max() < 4 * np.sqrt(4 / 45 / 2000)
    assert np.abs(np.corrcoef(p.T) - np.eye(8)).max() < 4 / np.sqrt(2000)
    assert np.abs(np.mean((p[1:] - 0.5) * (p[:-1] - 0.5))) < 4 / 12 / np.sqrt(2000 * 8)
    one, other = (
        np.asarray(RandomizedMidpoint(steps=4).sample(
            lambda x, t, label: jnp.tanh(x), PROCESSES["edm"], batch, None, shape=(2,)).x0)
        for batch in (keys(8), jnp.concatenate([keys(4, 4), keys(4, 100)]))
    )  # fmt: skip
    np.testing.assert_allclose(other[:4], one[4:], atol=1e-6)
    assert np.abs(other[4:] - one[:4]).max() > 0.1


@pytest.mark.parametrize("name", ["cosine", "edm"])
def test_extreme_times_are_finite(probe, name):
    """The smallest and the largest p there are."""
    p = np.resize([2.0**-24, 2.0**-12, 1 - 2.0**-24, 1.0], (STEPS - 1, len(NODES)))
    states, x0 = probe(PROCESSES[name], gaussian(PROCESSES[name]), p)
    assert np.isfinite(states).all() and np.isfinite(x0).all()


def test_process_without_kernel_is_refused():
    with pytest.raises(ValueError, match=r"the randomized midpoint sampler needs .*, and DoubleWell has none"):
        RandomizedMidpoint().sample(lambda x, t, label: x, DoubleWell(), keys(2), None, shape=(2,))
