"""The two variances of DDPM are each exact, for any number of steps, on one kind of data [Ho et al. 2020, sec. 3.2]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import Cosine, VPLinear
from diffusion.exact import exact_gaussian
from diffusion.process import GaussianProcess
from samplers import Ancestral

COUNT = 40_000


def variance_after(steps: int, schedule, data_variance: float, variance: str) -> float:
    """Sample variance of one coordinate before the last denoising, i.e. alpha^2 v + sigma^2 at time_min if exact."""
    process = GaussianProcess(schedule)
    denoise = exact_gaussian(process, jnp.zeros(1), jnp.full((1, 1), data_variance))

    def record(x_t, t, label=None):
        jax.debug.callback(lambda x: states.append(np.asarray(x)), x_t, ordered=True)
        return denoise(x_t, t, label)

    states: list[np.ndarray] = []
    keys = jax.random.split(jax.random.key(0), COUNT)
    jax.block_until_ready(Ancestral(steps=steps, variance=variance).sample(record, process, keys, None, shape=(1,)))
    jax.effects_barrier()
    return float(states[-1].var())


@pytest.mark.parametrize("schedule", [VPLinear(time_min=0.3), Cosine(time_min=0.3)], ids=["vp_linear", "cosine"])
def test_large_is_exact_for_unit_gaussian_data(schedule):
    """N(0, I) stays N(0, I) under a VP process, whatever the steps; the small variance loses some of it."""
    error = 4 * np.sqrt(2 / COUNT)
    assert abs(variance_after(4, schedule, 1.0, "large") - 1) < error + float(schedule.alpha(1.0)) ** 2
    assert variance_after(4, schedule, 1.0, "small") < 1 - 5 * error


@pytest.mark.parametrize("schedule", [VPLinear(time_min=0.3), Cosine(time_min=0.3)], ids=["vp_linear", "cosine"])
def test_small_is_exact_for_one_point(schedule):
    """All data at 0: the variance at the last time is sigma^2; the large variance overshoots."""
    expected = float(schedule.sigma(0.3)) ** 2
    error = 4 * np.sqrt(2 / COUNT) * expected
    assert abs(variance_after(4, schedule, 0.0, "small") - expected) < error
    assert variance_after(4, schedule, 0.0, "large") > expected + 5 * error


def test_unknown_variance():
    with pytest.raises(ValueError, match="'medium' is not known; choose from small, large"):
        Ancestral(variance="medium")
