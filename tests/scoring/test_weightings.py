"""Weightings against the formulas of their papers, and against the losses they stand for."""

import jax.numpy as jnp
import numpy as np
import pytest

from scoring.weightings import WEIGHTINGS, ClippedSNRWeighting, EDMWeighting, SigmoidWeighting, UniformWeighting

LEVEL = np.array([0.01, 0.3, 1.0, 5.0, 50.0])  # sigma / alpha
LOGSNR = jnp.asarray(-2 * np.log(LEVEL), jnp.float32)


@pytest.mark.parametrize("d", [0.5, 1.3])
def test_edm(d):
    """lambda(sigma) = (sigma^2 + d^2) / (sigma d)^2 [Karras et al. 2022, table 1]."""
    expected = (LEVEL**2 + d**2) / (LEVEL * d) ** 2
    np.testing.assert_allclose(EDMWeighting(sigma_data=d)(LOGSNR), expected, rtol=1e-5)
    assert np.abs(EDMWeighting(sigma_data=1.1 * d)(LOGSNR) / expected - 1).max() > 0.01


def test_edm_makes_the_loss_of_f_uniform():
    """lambda(sigma) c_out(sigma)^2 = 1 with the published c_out."""
    c_out = LEVEL * 0.5 / np.sqrt(LEVEL**2 + 0.25)
    np.testing.assert_allclose(EDMWeighting(sigma_data=0.5)(LOGSNR) * c_out**2, 1, rtol=1e-5)


def test_sigmoid():
    """On the squared error of the noise it is 1 / (1 + exp(lambda - bias)) [Kingma & Gao 2023]."""
    for bias in (0.0, 2.0):
        on_noise = np.asarray(SigmoidWeighting(bias=bias)(LOGSNR)) * LEVEL**2
        np.testing.assert_allclose(on_noise, 1 / (1 + np.exp(-2 * np.log(LEVEL) - bias)), rtol=1e-5)
    assert (SigmoidWeighting(bias=3.0)(LOGSNR) > SigmoidWeighting(bias=1.0)(LOGSNR)).all()


def test_uniform_is_the_squared_error_of_the_noise():
    """Per sample: w |x0_hat - x0|^2 = |noise_hat - noise|^2 for any estimate."""
    rng = np.random.default_rng(0)
    x0, x0_hat, noise = rng.normal(size=(3, 5, 4))
    for alpha in (1.0, 0.6):
        sigma = alpha * LEVEL[:, None]
        noise_hat = (alpha * x0 + sigma * noise - alpha * x0_hat) / sigma
        expected = ((noise_hat - noise) ** 2).mean(axis=1)
        got = np.asarray(UniformWeighting()(LOGSNR)) * ((x0_hat - x0) ** 2).mean(axis=1)
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_clipped_snr():
    """min(1 / level^2, gamma)."""
    np.testing.assert_allclose(ClippedSNRWeighting(gamma=5.0)(LOGSNR), [5.0, 5.0, 1.0, 0.04, 0.0004], rtol=1e-5)


def test_weights_are_positive_and_bad_fields_refused():
    for weighting in WEIGHTINGS.values():
        assert (np.asarray(weighting()(LOGSNR)) > 0).all()
    with pytest.raises(ValueError, match=r"gamma = 0\.0"):
        ClippedSNRWeighting(gamma=0.0)
