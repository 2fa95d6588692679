"""What a network's output means: each row of the table against its definition, and the rows against each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.denoiser import NetworkDenoiser, score
from diffusion.prediction import PREDICTIONS
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear

PROCESSES = {
    "vp_linear": GaussianProcess(VPLinear()),
    "cosine": GaussianProcess(Cosine()),
    "edm": GaussianProcess(EDM()),
    "rectified_flow": GaussianProcess(RectifiedFlow()),
}
SIGMA_DATA = 0.5
COUNT = 25


@pytest.fixture(scope="module", params=PROCESSES, ids=str)
def known(request):
    """x0, noise and x_t in float64 at many times of a process, with alpha and sigma as columns."""
    process = PROCESSES[request.param]
    rng = np.random.default_rng(0)
    x0, noise = rng.normal(size=(2, COUNT, 6))
    t = np.linspace(process.time_min, process.time_max, COUNT)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    return {"x0": x0, "noise": noise, "x_t": alpha * x0 + sigma * noise, "alpha": alpha, "sigma": sigma}


def convert(function, value, known):
    with jax.enable_x64(True):
        arguments = [jnp.asarray(array) for array in (value, known["x_t"], known["alpha"], known["sigma"])]
        return np.asarray(function(*arguments, SIGMA_DATA))


def edm_output(known):
    """F of Karras et al. 2022: D(xbar; u) = c_skip xbar + c_out F with the published c_skip and c_out, solved for F."""
    xbar, u = known["x_t"] / known["alpha"], known["sigma"] / known["alpha"]
    c_skip = SIGMA_DATA**2 / (u**2 + SIGMA_DATA**2)
    c_out = u * SIGMA_DATA / np.sqrt(u**2 + SIGMA_DATA**2)
    return (known["x0"] - c_skip * xbar) / c_out


# What each output is, from x0 and the noise.
DEFINITIONS = {
    "x0": lambda known: known["x0"],
    "epsilon": lambda known: known["noise"],
    "v": lambda known: known["alpha"] * known["noise"] - known["sigma"] * known["x0"],
    "score": lambda known: -known["noise"] / known["sigma"],
    "edm": edm_output,
}


def test_every_prediction_has_a_definition():
    assert DEFINITIONS.keys() == PREDICTIONS.keys()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_targets_and_back(known, name):
    """The target of the network is what the name says, and to_x0 of it is x0."""
    output = DEFINITIONS[name](known)
    target = convert(PREDICTIONS[name].from_x0, known["x0"], known)
    np.testing.assert_allclose(target, output, rtol=1e-9, atol=1e-9 * np.abs(output).max())
    np.testing.assert_allclose(convert(PREDICTIONS[name].to_x0, output, known), known["x0"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_round_trip_of_any_estimate(known, name):
    """x0_hat -> output -> x0_hat for an estimate that is not the truth, and a wrong inverse does not pass."""
    estimate = np.random.default_rng(1).normal(size=known["x0"].shape)
    output = convert(PREDICTIONS[name].from_x0, estimate, known)
    np.testing.assert_allclose(convert(PREDICTIONS[name].to_x0, output, known), estimate, rtol=1e-9, atol=1e-9)
    if name != "x0":
        wrong = convert(PREDICTIONS[name].to_x0, 1.001 * output, known)
        assert np.abs(wrong - estimate).max() > 1e-5


def test_all_pairs_agree(known):
    """Any output read as x0 and written as any other is that other's definition."""
    for source in DEFINITIONS:
        x0 = convert(PREDICTIONS[source].to_x0, DEFINITIONS[source](known), known)
        for target in DEFINITIONS:
            got = convert(PREDICTIONS[target].from_x0, x0, known)
            expected = DEFINITIONS[target](known)
            np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8 * np.abs(expected).max(), err_msg=target)


def at_level_one(prediction, network):
    """(denoiser on EDM, x, t) at noise level 1, with data of standard deviation 1/2."""
    process = PROCESSES["edm"]
    denoise = NetworkDenoiser(network, process, prediction=prediction, sigma_data=0.5)
    t = jnp.full(3, process.time_of_logsnr(np.float64(0.0)), jnp.float32)
    return denoise, jnp.array([[-1.0], [0.5], [2.0]]), t


def test_golden_preconditioning():
    """At sigma = 1, sigma_data = 1/2: c_skip = 0.2, c_out = 1 / sqrt(5), c_in = 2 / sqrt(5), c_noise = 0."""
    seen = {}

    def network(x, c_noise, label):
        seen.update(x=x, c_noise=c_noise)
        return jnp.ones_like(x)

    denoise, x, t = at_level_one("edm", network)
    np.testing.assert_allclose(denoise(x, t, None), 0.2 * x + 0.4472135955, rtol=1e-5)
    np.testing.assert_allclose(seen["x"], 0.8944271910 * x, rtol=1e-5)
    np.testing.assert_allclose(seen["c_noise"], 0, atol=1e-5)
    denoise, x, t = at_level_one("edm", lambda x, c_noise, label: jnp.zeros_like(x))
    np.testing.assert_allclose(denoise(x, t, None), 0.2 * x, rtol=1e-5)


def test_noise_level_is_a_quarter_of_log_sigma():
    process, seen = PROCESSES["edm"], []
    denoise = NetworkDenoiser(
        lambda x, c_noise, label: seen.append(c_noise) or x, process, prediction="x0", sigma_data=0.5
    )
    sigma = np.array([0.002, 0.5, 3.0, 80.0])
    t = jnp.asarray(process.time_of_logsnr(-2 * np.log(sigma)), jnp.float32)
    denoise(jnp.ones((4, 2)), t, None)
    np.testing.assert_allclose(seen[0], np.log(sigma) / 4, rtol=1e-4)


@pytest.mark.parametrize("name", PROCESSES)
def test_network_input_has_unit_variance(name):
    """For data of standard deviation 1/2, whatever the time."""
    process, seen = PROCESSES[name], []
    denoise = NetworkDenoiser(lambda x, c_noise, label: seen.append(x) or x, process, prediction="x0", sigma_data=0.5)
    rng = np.random.default_rng(0)
    t = jnp.linspace(process.time_min, process.time_max, 5)
    x0, noise = (jnp.asarray(draw, jnp.float32) for draw in rng.normal(size=(2, 5, 20_000)))
    denoise(process.corrupt(0.5 * x0, noise, t), t, None)
    np.testing.assert_allclose(np.asarray(seen[0]).std(axis=1), 1, atol=4 / np.sqrt(2 * 20_000))


def test_denoiser_passes_labels_and_returns_float32():
    process = PROCESSES["cosine"]
    seen = []

    def network(x, c_noise, label):
        seen.append(label)
        return x.astype(jnp.bfloat16)

    denoise = NetworkDenoiser(network, process, prediction="v", sigma_data=0.5)
    label = jnp.array([2, 0])
    assert denoise(jnp.ones((2, 3, 3, 1)), jnp.array([0.2, 0.7]), label).dtype == jnp.float32
    np.testing.assert_array_equal(seen[0], label)


@pytest.mark.parametrize("name", PROCESSES)
def test_score_of_a_gaussian(name):
    """Data N(0, 1/4): the optimal denoiser is linear and the score is -x / (alpha^2 / 4 + sigma^2)."""
    process = PROCESSES[name]
    t = jnp.linspace(process.time_min, process.time_max, 9)[1:-1]
    alpha, sigma = (function(np.asarray(t, np.float64))[:, None] for function in (process.alpha, process.sigma))
    variance = alpha**2 / 4 + sigma**2
    gain = jnp.asarray(alpha / 4 / variance, jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)) * np.sqrt(variance), jnp.float32)
    got = score(lambda x_t, t, label: gain * x_t, process, x, t)
    np.testing.assert_allclose(got, -x / variance, rtol=2e-3)
