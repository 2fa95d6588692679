"""The reverse SDE with exact scores: its update by hand, its order, and data of a process that has no kernel."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from diffusion.base import expand
from diffusion.exact import exact_gaussian
from diffusion.grid_oracle import exact_double_well, mixture_density
from diffusion.kernel_free import DoubleWell, KernelFree, Static
from diffusion.process import GaussianProcess
from diffusion.random import image_keys, image_noise
from diffusion.schedules import Constant, VPLinear
from samplers import Euler, EulerMaruyama
from samplers.time_grids import make_grid

VP = GaussianProcess(VPLinear())
VARIANCE = np.array([0.5, 0.05])
GAUSSIAN = exact_gaussian(VP, jnp.zeros(2), jnp.diag(jnp.asarray(VARIANCE, jnp.float32)))


def keys(count):
    return image_keys(0, jnp.arange(count))


def draw(sampler, process, denoise, count):
    """[count, 2] samples in float64."""
    run = jax.jit(lambda keys: sampler.sample(denoise, process, keys, None, shape=(2,)).x0)
    return np.asarray(run(keys(count)), np.float64)


def test_the_update_of_the_paper():
    """Song et al. 2021, eq. 6 with f = -beta / 2 x and g^2 = beta, step by step in float64."""
    t = np.linspace(1.0, 1e-3, 6)
    x = np.asarray(VP.prior(keys(8), (2,)), np.float64)
    noise = np.asarray(jax.jit(jax.vmap(lambda i: image_noise(keys(8), i + 1, (2,))))(jnp.arange(5)), np.float64)
    paths = {1.0: x, -1.0: x}  # the negative control has the other sign of the score
    for i in range(6):
        signal = np.exp(-(0.1 * t[i] + 9.95 * t[i] ** 2))
        for sign, x in paths.items():
            score = -x / (signal * VARIANCE + 1 - signal)
            if i == 5:
                paths[sign] = (x + (1 - signal) * score) / np.sqrt(signal)
                continue
            beta, dt = 0.1 + 19.9 * t[i], t[i] - t[i + 1]
            paths[sign] = x - dt * (-beta / 2 * x - beta * sign * score) + np.sqrt(beta * dt) * noise[i]
    got = draw(EulerMaruyama(steps=6), VP, GAUSSIAN, 8)
    np.testing.assert_allclose(got, paths[1.0], rtol=1e-4, atol=1e-4)
    assert np.abs(got - paths[-1.0]).max() > 0.1


def test_weak_order_one():
    """The variance of Gaussian data is missed by the order of the step."""
    steps = (16, 48)
    errors = [abs(draw(EulerMaruyama(steps=n), VP, GAUSSIAN, 20_000)[:, 0].var() / VARIANCE[0] - 1) for n in steps]
    assert 0.7 < -np.polyfit(np.log(steps), np.log(errors), 1)[0] < 1.4


@dataclass(frozen=True)
class Simulated(KernelFree):
    """A Gaussian process whose kernel nobody knows; the denoiser is then x + sigma^2 score."""

    inner: GaussianProcess
    time_min: float = 1e-3
    time_max: float = 1.0

    def sigma(self, t):
        return 0.3 + 0.0 * t

    def conditioning(self, t):
        return t

    def drift(self, x, t):
        return self.inner.drift(x, t)

    def diffusion(self, t):
        return self.inner.diffusion(t)

    def prior(self, keys, shape):
        return self.inner.prior(keys, shape)


@pytest.mark.parametrize("sampler_class", [Euler, EulerMaruyama])
def test_without_a_kernel_the_path_is_the_same(sampler_class):
    """The same SDE, its drift as a function and its network seen at another scale: the same steps, up to the last."""

    def score(x, t):
        signal = expand(VP.alpha(t), x) ** 2
        return -x / (signal * jnp.asarray(VARIANCE, jnp.float32) + 1 - signal)

    def denoise(x, t, label):
        return x + 0.3**2 * score(x, t)

    sampler, options = sampler_class(steps=12), {"shape": (2,), "keep_steps": True}
    with_kernel = sampler.sample(GAUSSIAN, VP, keys(16), None, **options)
    without = sampler.sample(denoise, Simulated(VP), keys(16), None, **options)
    # What the network was given in each row, from what it returned.
    t = with_kernel.t_steps[:, None, None]
    signal = VP.alpha(t) ** 2
    seen = with_kernel.x0_steps * (signal * VARIANCE + 1 - signal) / (VP.alpha(t) * VARIANCE)
    gain = 1 - 0.3**2 / (signal * VARIANCE + 1 - signal)
    np.testing.assert_allclose(without.x0_steps / gain, seen, rtol=2e-2, atol=2e-3)
    assert np.abs(with_kernel.x0 - without.x0).max() > 0.01  # the last denoising is over sigma, which differs


# --- Data of the double well ------------------------------------------------------------------------------------------

WEIGHTS, MODES, STD = np.array([0.5, 0.2, 0.3]), np.array([-0.9, 0.1, 1.5]), 0.05
WELL = DoubleWell()


@pytest.fixture(scope="module")
def exact():
    return exact_double_well(WELL, mixture_density(WEIGHTS, MODES, STD))


def distance_and_masses(x):
    """W1 to the data, the mean of both coordinates, and the masses of the three modes."""
    reference = np.concatenate([
        np.full(round(w * 20), m)[:, None] + STD * np.random.default_rng(0).normal(size=(1, 2000))
        for w, m in zip(WEIGHTS, MODES)
    ], axis=None)
    distance = np.mean([wasserstein_distance(column, reference) for column in x.T])
    return distance, np.histogram(x, [-np.inf, -0.4, 0.8, np.inf])[0] / x.size


@pytest.mark.parametrize("sampler", [EulerMaruyama(steps=400), Euler(steps=200)], ids=["sde", "ode"])
def test_data_come_back_without_a_kernel(exact, sampler):
    """From exact draws of the wells to three narrow modes, 10,000 points of two coordinates."""
    distance, masses = distance_and_masses(draw(sampler, WELL, exact, 10_000))
    assert distance < 0.03
    np.testing.assert_allclose(masses, WEIGHTS, atol=0.02)


def test_data_do_not_come_back_with_another_score(exact):
    """Negative controls: the score of the other sign, and none at all (the drift alone, run backwards)."""
    @jax.jit
    def sample(keys, factor):
        def denoise(x, t, label):
            return x + factor * (exact(x, t) - x)

        return EulerMaruyama(steps=100).sample(denoise, WELL, keys, None, shape=(2,)).x0

    for factor in (-1.0, 0.0):
        x = np.asarray(sample(keys(1_000), factor), np.float64)
        assert not np.isfinite(x).all() or distance_and_masses(x)[0] > 0.3


# --- Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [WELL, Static(), GaussianProcess(Constant())], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("grid", ["karras", "logsnr"])
def test_grids_of_noise_levels_need_levels_with_a_time(process, grid):
    with pytest.raises(ValueError, match=r"log-SNR.*uniform for the sampler's grid"):
        make_grid(process, grid, 8)
    with pytest.raises(ValueError, match=r"log-SNR.*uniform for the sampler's grid"):
        EulerMaruyama(steps=8, grid=grid).sample(lambda x, t, label: x, process, keys(2), None, shape=(2,))
    uniform = make_grid(process, "uniform", 5)
    np.testing.assert_allclose(uniform.t, np.linspace(process.time_max, process.time_min, 5))


@pytest.mark.parametrize("make, message", [
    (lambda: EulerMaruyama(steps=0), "steps = 0"), (lambda: EulerMaruyama(grid="cosine"), "grid = 'cosine'"),
])
def test_bad_fields_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
