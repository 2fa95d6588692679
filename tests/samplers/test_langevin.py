"""Langevin Monte Carlo against its own stationary density, which is Gaussian for a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.exact import exact_gaussian
from diffusion.kernel_free import Static
from diffusion.process import GaussianProcess
from diffusion.schedules import Constant, VPLinear
from samplers.langevin import Langevin

PROCESS = GaussianProcess(Constant(level=0.3))
VARIANCE = 0.25 + 0.3**2  # of N(0, 0.25) with the noise of the process
DENOISE = exact_gaussian(PROCESS, jnp.zeros(2), 0.25 * jnp.eye(2))
KEYS = jax.random.split(jax.random.key(0), 4_000)


def variance(denoise, process=PROCESS, **options):
    samples = Langevin(**options).sample(denoise, process, KEYS, None, shape=(2,))
    assert (samples.nfe == options["steps"]).all()
    return float(jnp.var(samples.x0)), samples.x0


@pytest.mark.parametrize("h", [0.3, 0.5])
def test_the_stationary_variance_is_that_of_the_discretisation(h):
    """v / (1 - h / (4 v)), not v: the bias of the step is seen and is the known one."""
    expected = VARIANCE / (1 - h / (4 * VARIANCE))
    measured, x = variance(DENOISE, steps=60, step_size=h)
    error = expected * np.sqrt(2 / x.size)
    assert abs(measured - expected) < 4 * error < abs(measured - VARIANCE)


def test_a_score_of_the_wrong_sign_is_seen():
    assert variance(lambda x, t, label: 2 * x - DENOISE(x, t, label), steps=60, step_size=0.1)[0] > 10


def test_a_density_without_noise():
    """Static: the denoiser says x + scale^2 score."""
    process = Static(scale=0.7)
    expected = 0.25 / (1 - 0.1 / (4 * 0.25))
    measured, x = variance(lambda x, t, label: x - 0.7**2 * x / 0.25, process, steps=60, step_size=0.1)
    assert abs(measured - expected) < 4 * expected * np.sqrt(2 / x.size)


def test_it_starts_uniform_and_forgets_it():
    _, x = variance(DENOISE, steps=1, step_size=1e-12, start=3.0)
    assert abs(float(jnp.var(x)) - 3.0) < 0.1 and float(jnp.abs(x).max()) <= 3.001
    for start in (0.01, 3.0):
        assert abs(variance(DENOISE, steps=60, step_size=0.1, start=start)[0] / VARIANCE - 1) < 0.1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"langevin.*GaussianProcess moves"):
        Langevin().sample(DENOISE, GaussianProcess(VPLinear()), KEYS[:2], None, shape=(2,))
    with pytest.raises(ValueError, match=r"step_size = 0.0 must be positive"):
        Langevin(step_size=0.0)
