"""The sampler of one-step students: one call at the right time and level."""


import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.base import expand
from diffusion.process import GaussianProcess
from diffusion.random import image_keys, image_noise
from diffusion.schedules import EDM, VPLinear
from distillation.score_implicit_matching import ScoreImplicitMatching
from samplers.one_step import OneStep, one_step

pytestmark = pytest.mark.usefixtures("quick_to_compile")



# (alpha, sigma) at noise level 2.5, and the time, from the papers' formulas.
KARRAS_TIME = (2.5 ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))
# B(t) = 0.1 t + 9.95 t^2 = log(1 + 2.5^2).
VP_TIME = (-0.1 + np.sqrt(0.1**2 + 4 * 9.95 * np.log1p(2.5**2))) / (2 * 9.95)
ONE_STEP = {
    "edm": (GaussianProcess(EDM()), 2.5, KARRAS_TIME),
    "vp": (GaussianProcess(VPLinear()), 2.5 / np.sqrt(1 + 2.5**2), VP_TIME),
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_is_one_call_at_the_right_time_and_level(name):
    """The input has the standard deviation sigma(t), and the sample is what the denoiser says."""
    process, sigma, time = ONE_STEP[name]
    keys, label = image_keys(0, jnp.arange(5)), jnp.array([3, 1, 4, 1, 5])

    def denoise(x, t, label):
        return jnp.tanh(x) * (1 + expand(t, x)) + expand(label, x)

    samples = OneStep(level=2.5).sample(denoise, process, keys, label, shape=(2, 3), keep_steps=True)
    z = np.asarray(image_noise(keys, 0, (2, 3)), np.float64)
    expected = np.tanh(sigma * z) * (1 + time) + np.asarray(label)[:, None, None]
    np.testing.assert_allclose(samples.x0, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(samples.t_steps, [time], rtol=1e-6)
    assert samples.nfe.tolist() == [1] * 5 and samples.x0_steps.shape == (1, 5, 2, 3)
    # Training makes the same images of the same noise.
    np.testing.assert_allclose(
        one_step(denoise, process, 2.5, jnp.asarray(z, jnp.float32), label), expected, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(samples.x0, np.tanh(2.0 * z) * (1 + time) + np.asarray(label)[:, None, None],
                                   rtol=1e-5, atol=1e-5)  # fmt: skip


def test_methods_sampler_is_the_one_it_was_trained_with():
    assert ScoreImplicitMatching(level=1.0).sampler == {"name": "one_step", "level": 1.0}


@pytest.mark.parametrize("level", [2.5, 0.001])
def test_a_level_the_process_does_not_reach_is_refused(level):
    process = GaussianProcess(EDM(sigma_max=2.0))
    message = rf"level = {level} must lie between the noise levels of the process, 0\.002 and 2"
    with pytest.raises(ValueError, match=message):
        OneStep(level=level).sample(lambda x, t, label: x, process, image_keys(0, jnp.arange(2)), None, shape=(2,))
    with pytest.raises(ValueError, match=message):
        one_step(lambda x, t, label: x, process, level, jnp.ones((2, 2)), None)


@pytest.mark.parametrize(("options", "message"), [({"level": 0.0}, r"level = 0\.0"), ({"steps": 4}, r"steps = 4")])
def test_bad_options_of_the_sampler_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OneStep(**options)
