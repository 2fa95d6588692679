"""The double well against autodiff, quadrature and published figures; what processes without a kernel promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import kstest, kurtosis, norm

from diffusion import PROCESSES
from diffusion.base import Process, has_kernel, require_kernel
from diffusion.denoiser import NetworkDenoiser, score
from diffusion.kernel_free import DoubleWell, Static
from diffusion.phi4 import Phi4
from diffusion.random import image_keys, image_noise

WELL = DoubleWell()


def keys(count, start=0):
    return image_keys(0, jnp.arange(start, start + count))


@pytest.fixture(params=PROCESSES, ids=str)
def process(request):
    return PROCESSES[request.param]()


# --- What all of them promise -----------------------------------------------------------------------------------------


def test_there_is_no_kernel(process):
    assert isinstance(process, Process) and not has_kernel(process)
    with pytest.raises(ValueError, match=f"this test needs a process with .* kernel, and {type(process).__name__} has"):
        require_kernel(process, "this test")


def test_no_time_belongs_to_a_logsnr(process):
    with pytest.raises(ValueError, match=f"{type(process).__name__} has no time for every log-SNR.*sampler.grid"):
        process.time_of_logsnr(np.array([0.0]))


def test_scales_of_the_network(process):
    """alpha = 1 and a log-SNR that is that of sigma, on the host and on the device."""
    t = np.linspace(process.time_min, process.time_max, 9)
    for times, tolerance in ((t, 1e-12), (jnp.asarray(t, jnp.float32), 1e-5)):
        assert (process.alpha(times) == 1).all()
        np.testing.assert_allclose(np.exp(-0.5 * process.logsnr(times)), process.sigma(times), rtol=tolerance)
        np.testing.assert_allclose(process.sigma(times), process.sigma(t), rtol=1e-4)
        np.testing.assert_allclose(process.diffusion(times), process.diffusion(t), rtol=1e-4)
    assert (np.diff(process.sigma(t)) >= 0).all() and process.sigma(t)[0] > 0


def test_the_score_of_a_denoiser(process):
    """With the prediction "score" the network's output is the score, so the scales cancel: Tweedie as a definition.

    Of the lattice field it is the score but for -x^3, which the network is spared.
    """
    x, t = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32), jnp.array([0.2, 0.5, 1.0])
    denoise = NetworkDenoiser(lambda x_in, level, label: jnp.sin(x), process, prediction="score", sigma_data=0.5)
    given = -np.asarray(x) ** 3 if isinstance(process, Phi4) else 0
    np.testing.assert_allclose(score(denoise, process, x, t), np.sin(x) + given, atol=1e-4)


def test_image_i_of_the_prior_depends_on_its_key_alone(process):
    eight, three = process.prior(keys(8), (4,)), process.prior(keys(3, 5), (4,))
    np.testing.assert_array_equal(three, eight[5:])
    assert len(np.unique(eight)) == 32
    # Nor does the prior share its draws with the steps of a sampler, whose noise has the indices from 1.
    noise = image_noise(keys(8), 1, (4,)).ravel()
    assert abs(np.corrcoef(np.ravel(eight), noise)[0, 1]) < 0.75


# --- Static -----------------------------------------------------------------------------------------------------------


def test_static_stands_still():
    static, x = Static(scale=0.3), jnp.arange(6.0).reshape(3, 2)
    path = static.simulate(x, jnp.array([0.0, 0.5, 1.0]), jax.random.key(0), 7)
    np.testing.assert_array_equal(path.x, x)
    np.testing.assert_array_equal(static.drift(x, jnp.ones(3)), 0 * x)
    assert static.diffusion(np.float64(0.5)) == 0 and (path.step == 0).all()
    draws = np.asarray(static.prior(keys(4000), (2,)))
    assert abs(draws.std() / 0.3 - 1) < 4 / np.sqrt(2 * draws.size)


# --- Double well ------------------------------------------------------------------------------------------------------


def log_pi(x):
    """m^2 = 0.8, s^2 = 0.2."""
    mean = np.sqrt(0.8)
    return jnp.logaddexp(-((x - mean) ** 2) / 0.4, -((x + mean) ** 2) / 0.4)


def test_drift_is_half_the_score_of_the_wells():
    """By autodiff, coordinate by coordinate, times beta(t); its slope is 7.5 between the wells and -2.5 outside."""
    with jax.enable_x64(True):
        x, t = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 3, 1))), jnp.linspace(0.1, 1, 5)
        expected = 0.5 * (0.1 + 39.9 * t)[:, None, None, None] * jax.vmap(jax.grad(log_pi))(x.ravel()).reshape(x.shape)
        np.testing.assert_allclose(WELL.drift(x, t), expected, rtol=1e-10)
        np.testing.assert_allclose(WELL.diffusion(t) ** 2, 0.1 + 39.9 * t, rtol=1e-12)

        def slope(point):
            drift = jax.grad(lambda x: WELL.drift(x[None], jnp.ones(1)).sum())(jnp.array([point]))
            return float(drift[0]) / 40

        assert abs(slope(0.0) - 7.5) < 1e-9 and abs(slope(4.0) + 2.5) < 1e-9


def test_clock_is_the_integral_of_the_rate():
    t = np.array([1e-3, 0.1, 0.5, 1.0])
    integrals = [quad(lambda u: float(WELL.diffusion(u)) ** 2, 0, end)[0] for end in t]
    np.testing.assert_allclose(WELL.clock(t), integrals, rtol=1e-10)
    assert abs(WELL.clock(1.0) - 20.05) < 1e-12
    np.testing.assert_allclose(WELL.time_of_clock(WELL.clock(t)), t, rtol=1e-12)
    np.testing.assert_allclose(WELL.sigma(t), np.minimum(np.sqrt(integrals), np.sqrt(0.2)), rtol=1e-10)


def test_prior_is_the_two_wells():
    """Kolmogorov-Smirnov, and variance 1 with excess kurtosis -1.28; the pixels are independent."""
    x = np.asarray(WELL.prior(keys(5000), (2, 2, 1)), np.float64)

    def cdf(x, mean=0.8**0.5):
        return 0.5 * (norm.cdf(x, mean, np.sqrt(0.2)) + norm.cdf(x, -mean, np.sqrt(0.2)))

    assert kstest(x.ravel(), cdf).pvalue > 1e-3
    assert kstest(x.ravel(), lambda x: cdf(x, 0.86)).pvalue < 1e-6  # a mean 4 % off is noticed
    assert abs(x.var() - 1) < 0.03 and abs(kurtosis(x.ravel()) + 1.28) < 0.02
    correlations = np.corrcoef(x.reshape(5000, 4).T)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(5000)


def test_simulated_kernel_from_the_middle():
    """From 0 to three times: variance and excess kurtosis of x_t as the Fokker-Planck equation has them."""
    clocks = np.array([0.05, 0.2, 2.0])
    t = jnp.asarray(np.repeat(WELL.time_of_clock(clocks), 10_000), jnp.float32)
    run = jax.jit(lambda t, key: WELL.simulate(jnp.zeros((30_000, 2)), t, key, 128).x)
    paths = np.asarray(run(t, jax.random.key(1)), np.float64).reshape(3, 10_000, 2)
    for x, variance, excess in zip(paths, (0.0622, 0.2881, 0.9925), (-0.231, -0.712, -1.276)):
        assert abs(x.var() / variance - 1) < 0.04 and abs(kurtosis(x.ravel()) - excess) < 0.1
        assert abs(np.corrcoef(x.T)[0, 1]) < 0.04


def test_simulation_starts_where_the_clock_does():
    """At t = 0, not at time_min: the last increment of the smallest time is not empty."""
    path = WELL.simulate(jnp.zeros((2, 1)), jnp.array([1e-3, 0.5]), jax.random.key(0), 4)
    np.testing.assert_allclose(path.step, [2.5e-4, 0.125], rtol=1e-5)


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: Static(scale=0.0), "scale = 0.0"),
        (lambda: Static(time_max=2.0), "time_max=2.0"),
        (lambda: DoubleWell(time_min=0.0), "time_min"),
        (lambda: DoubleWell(beta_min=0.0), "beta_min"),
        (lambda: DoubleWell(beta_max=0.05), "beta_max"),
    ],
)
def test_bad_fields_are_refused_by_name(make, field):
    with pytest.raises(ValueError, match=field):
        make()


def test_a_network_can_tell_all_times_apart():
    """sigma stays at the length of pi while p_t still changes: what the network is told must not."""
    for process in (DoubleWell(), Phi4()):
        t = np.linspace(process.time_min, process.time_max, 200)
        seen = []

        def network(x_in, level, label, seen=seen):
            seen.append(np.asarray(level))
            return x_in

        denoise = NetworkDenoiser(network, process, prediction="x0", sigma_data=0.5)
        denoise(jnp.zeros((200, 1)), jnp.asarray(t, jnp.float32), None)
        assert (np.diff(seen[0]) > 1e-4).all() and np.abs(seen[0]).max() < 3
        assert np.ptp(np.asarray(process.sigma(t))[100:]) == 0
