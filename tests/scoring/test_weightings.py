"""Weightings against the formulas of their papers, and against the losses they stand for."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import DoubleWell, Static
from diffusion.process import GaussianProcess
from diffusion.sde_schedules import VE, SubVP
from scoring.weightings import (
    WEIGHTINGS,
    ClippedSNRWeighting,
    EDMWeighting,
    LikelihoodWeighting,
    ScoreWeighting,
    SigmoidWeighting,
    UniformWeighting,
)

LEVEL = np.array([0.01, 0.3, 1.0, 5.0, 50.0])  # sigma / alpha
PROCESSES = {"ve": GaussianProcess(VE(sigma_min=0.005, sigma_max=100.0)), "sub_vp": GaussianProcess(SubVP())}


def at(process):
    """The times of LEVEL."""
    return jnp.asarray(process.time_of_logsnr(-2 * np.log(LEVEL)), jnp.float32)


@pytest.fixture(params=PROCESSES)
def weights(request):
    """weighting -> w at the times of LEVEL: those that look at the log-SNR alone are the same on every process."""
    process = PROCESSES[request.param]
    return lambda weighting: np.asarray(weighting(process, at(process)), np.float64)


@pytest.mark.parametrize("d", [0.5, 1.3])
def test_edm(d, weights):
    """lambda(sigma) = (sigma^2 + d^2) / (sigma d)^2 [Karras et al. 2022, table 1]."""
    expected = (LEVEL**2 + d**2) / (LEVEL * d) ** 2
    np.testing.assert_allclose(weights(EDMWeighting(sigma_data=d)), expected, rtol=2e-5)
    assert np.abs(weights(EDMWeighting(sigma_data=1.1 * d)) / expected - 1).max() > 0.01


def test_edm_makes_the_loss_of_f_uniform(weights):
    """lambda(sigma) c_out(sigma)^2 = 1 with the published c_out."""
    c_out = LEVEL * 0.5 / np.sqrt(LEVEL**2 + 0.25)
    np.testing.assert_allclose(weights(EDMWeighting(sigma_data=0.5)) * c_out**2, 1, rtol=2e-5)


def test_sigmoid(weights):
    """On the squared error of the noise it is 1 / (1 + exp(lambda - bias)) [Kingma & Gao 2023]."""
    for bias in (0.0, 2.0):
        on_noise = weights(SigmoidWeighting(bias=bias)) * LEVEL**2
        np.testing.assert_allclose(on_noise, 1 / (1 + np.exp(-2 * np.log(LEVEL) - bias)), rtol=2e-5)
    assert (weights(SigmoidWeighting(bias=3.0)) > weights(SigmoidWeighting(bias=1.0))).all()


@pytest.mark.parametrize("name", PROCESSES)
def test_uniform_and_score_are_squared_errors(name):
    """Per sample: w |x0_hat - x0|^2 = |noise_hat - noise|^2, and |s_hat - s|^2 with s = -noise / sigma."""
    process, rng = PROCESSES[name], np.random.default_rng(0)
    t = np.asarray(at(process), np.float64)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    x0, x0_hat, noise = rng.normal(size=(3, 5, 4))
    x_t = alpha * x0 + sigma * noise
    noise_hat, score_hat = (x_t - alpha * x0_hat) / sigma, (alpha * x0_hat - x_t) / sigma**2
    square = ((x0_hat - x0) ** 2).sum(axis=1)
    for weighting, expected in (
        (UniformWeighting(), ((noise_hat - noise) ** 2).sum(axis=1)),
        (ScoreWeighting(), ((score_hat + noise / sigma) ** 2).sum(axis=1)),
    ):
        found = np.asarray(weighting(process, at(process)), np.float64) * square
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_likelihood_over_the_noise_error_is_the_published_rate():
    """g^2 / sigma^2: constant for VE, 2 log(sigma_max / sigma_min); for sub-VP these squares, at four times."""
    for sigma_max, ratio in ((50, 4.127), (90, 4.267), (348, 4.573), (1348, 4.860)):
        process = GaussianProcess(VE(sigma_min=0.01, sigma_max=float(sigma_max)))
        t = jnp.array([0.1, 0.7])
        found = LikelihoodWeighting()(process, t) / UniformWeighting()(process, t)
        np.testing.assert_allclose(np.sqrt(found), ratio, rtol=2e-4)
    process, t = PROCESSES["sub_vp"], jnp.array([0.001, 0.1, 0.5, 1.0])
    found = LikelihoodWeighting()(process, t) / UniformWeighting()(process, t)
    np.testing.assert_allclose(np.sqrt(found), [46.7, 6.18, 3.43, 4.47], rtol=2e-3)


def test_clipped_snr(weights):
    """min(1 / level^2, gamma)."""
    np.testing.assert_allclose(weights(ClippedSNRWeighting(gamma=5.0)), [5.0, 5.0, 1.0, 0.04, 0.0004], rtol=2e-5)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_are_positive(name, weights):
    assert (weights(WEIGHTINGS[name]()) > 0).all()
    moving = np.asarray(WEIGHTINGS[name]()(DoubleWell(), jnp.array([0.01, 1.0])))
    assert (moving > 0).all() and np.isfinite(moving).all()
    still = np.asarray(WEIGHTINGS[name]()(Static(), jnp.array([0.0, 1.0])))
    assert (still > 0).all() or name == "likelihood"  # nothing moves, and g is zero


def test_bad_fields_are_refused():
    with pytest.raises(ValueError, match=r"gamma = 0\.0"):
        ClippedSNRWeighting(gamma=0.0)
