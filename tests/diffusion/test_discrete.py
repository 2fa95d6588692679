"""The schedule of discrete noise levels against its defining products, and its own slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.discrete import Discrete
from diffusion.process import GaussianProcess
from samplers.time_grids import make_grid

CASES = {
    "ddpm": (Discrete(), np.linspace(1e-4, 0.02, 1000)),
    "latent": (
        Discrete(beta_min=0.0015, beta_max=0.0195, spacing="sqrt_linear"),
        np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2,
    ),
    "short": (Discrete(steps=10, beta_max=0.5), np.linspace(1e-4, 0.5, 10)),
}


@pytest.mark.parametrize("name", CASES)
def test_levels_are_the_products(name):
    schedule, beta = CASES[name]
    abar, t = np.cumprod(1 - beta), np.arange(1, len(beta) + 1) / len(beta)
    np.testing.assert_allclose(schedule.alpha(t) ** 2, abar, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(t) ** 2, 1 - abar, rtol=1e-11)
    np.testing.assert_allclose(schedule.logsnr(t), np.log(abar / (1 - abar)), rtol=1e-10, atol=1e-10)
    grid = make_grid(GaussianProcess(schedule), "uniform", len(beta))
    np.testing.assert_allclose(grid.t, t[::-1], rtol=1e-12)
    # Negative control: one level later is another value.
    assert np.abs(schedule.alpha(t[:-1]) ** 2 / abar[1:] - 1).min() > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_variance_is_preserved_and_times_are_found_again(name):
    schedule, _ = CASES[name]
    t = np.linspace(schedule.time_min, 1, 173)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1, rtol=1e-13)
    np.testing.assert_allclose(schedule.time_of_logsnr(schedule.logsnr(t)), t, rtol=1e-12)
    back = schedule.time_of_logsnr(jnp.asarray(schedule.logsnr(t), jnp.float32))
    np.testing.assert_allclose(back, t, atol=3e-6)


@pytest.mark.parametrize("name", CASES)
def test_slopes_are_the_derivatives(name):
    """Between the levels, in float64."""
    schedule, beta = CASES[name]
    t = (np.arange(1, len(beta))[:: len(beta) // 10] + 0.37) / len(beta)
    with jax.enable_x64(True):
        traced = jnp.asarray(t)
        np.testing.assert_allclose(schedule.logsnr_slope(t), jax.vmap(jax.grad(schedule.logsnr))(traced), rtol=1e-8)
        log_alpha_slope = jax.vmap(jax.grad(lambda t: jnp.log(schedule.alpha(t))))(traced)
        np.testing.assert_allclose(schedule.log_alpha_slope(t), log_alpha_slope, rtol=1e-8)


@pytest.mark.parametrize("function", ["alpha", "sigma", "logsnr", "log_alpha_slope", "logsnr_slope"])
def test_device_and_host_agree(function):
    """At the levels, also in float32, where t * steps is not a whole number any more."""
    schedule, t = Discrete(), np.arange(1, 1001)[::9] / 1000
    host = getattr(schedule, function)(t)
    single = getattr(schedule, function)(jnp.asarray(t, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, host, rtol=2e-5, atol=2e-5 if function == "logsnr" else 0)


def test_bad_fields_are_refused_by_name():
    for make, message in (
        (lambda: Discrete(steps=1), "steps = 1 must"),
        (lambda: Discrete(beta_max=1.0), "beta_max"),
        (lambda: Discrete(spacing="cosine"), "spacing = 'cosine' is not known; choose from linear, sqrt_linear"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
