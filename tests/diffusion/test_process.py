"""The Gaussian process: its posterior against Gaussian conditioning and DDPM, its SDE, its randomness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.base import expand, network_calls, require_kernel
from diffusion.process import GaussianProcess
from diffusion.random import image_keys, image_noise, stream_key
from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear

PROCESSES = {
    "vp_linear": GaussianProcess(VPLinear()),
    "cosine": GaussianProcess(Cosine(shift=0.5)),
    "edm": GaussianProcess(EDM()),
    "rectified_flow": GaussianProcess(RectifiedFlow()),
}


@pytest.fixture(params=PROCESSES, ids=str)
def process(request):
    return PROCESSES[request.param]


def ordered_times(process, columns, rows=300):
    """Random times, increasing along each row."""
    times = np.random.default_rng(0).uniform(process.time_min, process.time_max, (rows, columns))
    return np.sort(times, axis=1).T


def close(got, expected, scale=1.0, tolerance=1e-12):
    """Absolute agreement in units of `scale`."""
    np.testing.assert_array_less(np.abs(got - expected), tolerance * scale * np.ones_like(got))


def check_marginals(process, coefficients, s, t):
    """Averaging q(x_s | x_t, x0) over q(x_t | x0) gives q(x_s | x0): the mean and the variance."""
    a, b, c = coefficients
    close(a * process.alpha(t) + b, process.alpha(s))
    close(a**2 * process.sigma(t) ** 2 + c**2, process.sigma(s) ** 2, scale=process.sigma(s) ** 2)


def test_posterior_keeps_the_marginals(process):
    s, t = ordered_times(process, 2)
    check_marginals(process, process.posterior(s, t), s, t)


def test_wrong_posteriors_are_caught(process):
    """Negative control: each coefficient a millionth off, or the variance of the forward step, fails the identities."""
    s, t = ordered_times(process, 2)
    right = process.posterior(s, t)
    for index in range(3):
        wrong = tuple(value * (1 + 1e-6 * (index == i)) for i, value in enumerate(right))
        with pytest.raises(AssertionError):
            check_marginals(process, wrong, s, t)


def test_posterior_semigroup(process):
    """q(x_r | x_s, x0) averaged over q(x_s | x_t, x0) is q(x_r | x_t, x0)."""
    r, s, t = ordered_times(process, 3)
    a_rs, b_rs, c_rs = process.posterior(r, s)
    a_st, b_st, c_st = process.posterior(s, t)
    a_rt, b_rt, c_rt = process.posterior(r, t)
    close(a_rs * a_st, a_rt)
    close(b_rs + a_rs * b_st, b_rt)
    close(c_rs**2 + a_rs**2 * c_st**2, c_rt**2, scale=process.sigma(r) ** 2)


def test_posterior_is_gaussian_conditioning(process):
    """From the joint covariance of (x_s, x_t) given x0 alone: the regression of x_s on x_t."""
    s, t = ordered_times(process, 2)
    keep = t - s > 0.02  # conditioning by subtraction is accurate only for separated times
    s, t = s[keep], t[keep]
    growth = process.alpha(t) / process.alpha(s)
    variance_s, variance_t = process.sigma(s) ** 2, process.sigma(t) ** 2
    covariance = growth * variance_s
    a, b, c = process.posterior(s, t)
    np.testing.assert_allclose(a, covariance / variance_t, rtol=1e-10)
    close(b, process.alpha(s) - covariance / variance_t * process.alpha(t))
    np.testing.assert_allclose(c**2, variance_s - covariance**2 / variance_t, rtol=1e-9)


def test_posterior_of_ddpm():
    """Ho et al. 2020, eq. 7, written with the discrete alpha_bar and beta of a VP process on 1000 times."""
    process = PROCESSES["vp_linear"]
    t = np.linspace(process.time_min, process.time_max, 1000)
    bar = np.exp(-(0.1 * t + 9.95 * t**2))
    beta = 1 - bar[1:] / bar[:-1]
    on_x0 = np.sqrt(bar[:-1]) * beta / (1 - bar[1:])
    on_x_t = np.sqrt(1 - beta) * (1 - bar[:-1]) / (1 - bar[1:])
    variance = (1 - bar[:-1]) / (1 - bar[1:]) * beta
    a, b, c = process.posterior(t[:-1], t[1:])
    np.testing.assert_allclose(a, on_x_t, rtol=1e-10)
    np.testing.assert_allclose(b, on_x0, rtol=1e-9)
    np.testing.assert_allclose(c**2, variance, rtol=1e-9)
    assert np.abs(c**2 / beta - 1).max() > 0.1  # the other choice of DDPM, beta itself, is another number


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_posterior_keeps_the_marginals_at_any_noise(process, eta):
    """And its noise is eta times that of the posterior [Song, Meng & Ermon 2021, eq. 16]."""
    s, t = ordered_times(process, 2)
    coefficients = process.posterior(s, t, eta=eta)
    check_marginals(process, coefficients, s, t)
    np.testing.assert_allclose(coefficients[2], eta * process.posterior(s, t)[2], rtol=1e-13)
    for index, value in enumerate(coefficients):
        wrong = list(coefficients)
        wrong[index] = value * (1 + 1e-6) + 1e-6 * (value == 0).all()
        with pytest.raises(AssertionError):
            check_marginals(process, wrong, s, t)


def test_posterior_near_eta_one_is_the_posterior(process):
    """The two branches of the code meet: eta just below 1 against eta = 1."""
    s, t = ordered_times(process, 2)
    for below, right in zip(process.posterior(s, t, eta=1 - 1e-13), process.posterior(s, t)):
        close(below, right, scale=np.maximum(np.abs(right), 1.0), tolerance=1e-6)


def test_posterior_without_noise_is_ddim(process):
    """x_s = alpha_s x0_hat + sigma_s noise_hat, with noise_hat = (x_t - alpha_t x0_hat) / sigma_t; no noise."""
    s, t = ordered_times(process, 2)
    x_t, x0_hat = np.random.default_rng(1).normal(size=(2, len(t)))
    a, b, c = process.posterior(s, t, eta=0.0)
    noise_hat = (x_t - process.alpha(t) * x0_hat) / process.sigma(t)
    expected = process.alpha(s) * x0_hat + process.sigma(s) * noise_hat
    assert (c == 0).all()
    close(a * x_t + b * x0_hat, expected, scale=1 + np.abs(noise_hat))
    ancestral = process.posterior(s, t)
    with pytest.raises(AssertionError):
        close(ancestral[0] * x_t + ancestral[1] * x0_hat, expected, scale=1 + np.abs(noise_hat))


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-4, 1e-5, 1e-6])
def test_posterior_of_a_gap_keeps_its_digits_in_float32(process, gap):
    """C of close times from the gap itself, against float64; from the two times alone it is lost (negative control)."""
    gap = np.float32(gap)
    s = np.linspace(process.time_min + 0.01, process.time_max - 0.12, 61).astype(np.float32)
    wide = s.astype(np.float64)
    expected = process.posterior(wide, wide + np.float64(gap))
    single, gaps = jnp.asarray(s), jnp.full(s.shape, gap)
    got = process.posterior(single, single + gaps, gap=gaps)
    for value, right in zip(got, expected):
        assert value.dtype == jnp.float32
        close(np.asarray(value, np.float64), right, scale=np.maximum(1.0, np.abs(right)), tolerance=2e-6)
    np.testing.assert_allclose(got[2], expected[2], rtol=5e-6)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-5)
    if gap < 5e-6:
        lost = process.posterior(single, single + gaps)[2]
        assert np.abs(np.asarray(lost) / expected[2] - 1).max() > 1e-3


def test_posterior_of_equal_times(process):
    t = np.linspace(process.time_min, process.time_max, 11)
    a, b, c = process.posterior(t, t)
    assert (a == 1).all() and (b == 0).all() and (c == 0).all()


def test_posterior_of_close_times(process):
    """C^2 -> sigma^2 |d lambda / dt| dt with its digits kept."""
    t = np.linspace(process.time_min, process.time_max, 9)[1:-1]
    step = 1e-7
    _, _, c = process.posterior(t - step, t)
    np.testing.assert_allclose(c**2, -process.sigma(t) ** 2 * process.schedule.logsnr_slope(t) * step, rtol=1e-4)


# f(t) and g(t)^2 of the SDE, as they are known.
SDES = {
    "vp_linear": lambda t: (-(0.1 + 19.9 * t) / 2, 0.1 + 19.9 * t),
    "edm": lambda t: (
        0 * t,
        14 * (80 ** (1 / 7) - 0.002 ** (1 / 7)) * (80 ** (1 / 7) * t + 0.002 ** (1 / 7) * (1 - t)) ** 13,
    ),
    "rectified_flow": lambda t: (-1 / (1 - t), 2 * t / (1 - t)),
}


@pytest.mark.parametrize("name", SDES)
def test_drift_and_diffusion_of_the_paper(name):
    """VP: f = -beta / 2, g^2 = beta; VE: f = 0, g^2 = d sigma^2 / dt; rectified flow: -1 / (1 - t), 2 t / (1 - t)."""
    process = PROCESSES[name]
    t = np.linspace(process.time_min, process.time_max, 51)
    f, g2 = SDES[name](t)
    np.testing.assert_allclose(process.diffusion(t) ** 2, g2, rtol=1e-9)
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(51, 2, 3)))
        np.testing.assert_allclose(process.drift(x, jnp.asarray(t)), f[:, None, None] * x, rtol=1e-12)


def test_corrupt_uses_one_time_per_image(process):
    rng = np.random.default_rng(2)
    x0, noise = rng.normal(size=(2, 5, 4, 3, 1))
    t = np.linspace(process.time_min, process.time_max, 5)
    with jax.enable_x64(True):
        x_t = np.asarray(process.corrupt(jnp.asarray(x0), jnp.asarray(noise), jnp.asarray(t)))
    for i in range(5):
        expected = np.exp(process.logsnr(t[i]) / 2) * x0[i] + noise[i]  # x_t / sigma, from the log-SNR alone
        np.testing.assert_allclose(x_t[i] / process.sigma(t[i]), expected, rtol=1e-10)


def test_prior_is_noise_of_the_last_level(process):
    x = np.asarray(process.prior(image_keys(0, jnp.arange(20_000)), (2,)))
    sigma = float(process.sigma(np.float64(process.time_max)))
    assert abs(x.std() / sigma - 1) < 4 / np.sqrt(2 * x.size)
    assert np.abs(x.mean(axis=0)).max() < 4 * sigma / np.sqrt(len(x))
    assert abs(np.corrcoef(x.T)[0, 1]) < 4 / np.sqrt(len(x))


def test_noise_depends_on_seed_image_and_index_alone():
    all_keys = image_keys(3, jnp.arange(8))
    noise = np.asarray(image_noise(all_keys, 5, (4,)))
    few = np.asarray(image_noise(image_keys(3, jnp.array([6, 1])), 5, (4,)))
    np.testing.assert_array_equal(few, noise[[6, 1]])
    others = [image_noise(image_keys(4, jnp.arange(8)), 5, (4,)), image_noise(all_keys, 4, (4,))]
    for other in others:
        assert not np.isclose(other, noise).any()
    assert len(np.unique(noise)) == noise.size


def test_streams_are_apart():
    draws = [jax.random.normal(stream_key(seed, name), (3,)) for seed in (0, 1) for name in ("train", "sample", "init")]
    assert len(np.unique(np.asarray(draws))) == 18
    np.testing.assert_array_equal(draws[0], jax.random.normal(stream_key(0, "train"), (3,)))


def test_expand_broadcasts_over_the_trailing_axes():
    values = expand(jnp.arange(3.0), jnp.zeros((3, 4, 5, 1)))
    assert values.shape == (3, 1, 1, 1)
    assert expand(jnp.arange(3.0), jnp.zeros((3,))).shape == (3,)


def test_network_calls_asks_the_denoiser():
    class Costly:
        def __call__(self, x_t, t, label):
            return x_t

        def network_calls(self, t, label):
            return 3 * jnp.ones(t.shape, jnp.int32)

    t = jnp.zeros(2)
    np.testing.assert_array_equal(network_calls(Costly(), t, None), [3, 3])
    np.testing.assert_array_equal(network_calls(lambda x_t, t, label: x_t, t, None), [1, 1])


def test_require_kernel(process):
    require_kernel(process, "this test")

    class Simulated:
        time_min, time_max = 0.0, 1.0

        def alpha(self, t):
            return 1.0

        def sigma(self, t):
            return 0.5

        def logsnr(self, t):
            return 1.4

        def conditioning(self, t):
            return t

        def drift(self, x, t):
            return x

        def diffusion(self, t):
            return t

        def prior(self, keys, shape):
            return image_noise(keys, 0, shape)

    with pytest.raises(ValueError, match=r"this test needs a process with a closed-form .*Simulated has none"):
        require_kernel(Simulated(), "this test")
