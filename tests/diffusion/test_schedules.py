"""Schedules against the formulas of their papers, their inverses, autodiff, and the moment equations of the SDE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from diffusion import SCHEDULES
from diffusion.discrete import Discrete
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Constant, Cosine, RectifiedFlow, VPLinear
from diffusion.sde_schedules import VE, SubVP

ALL = {
    "vp_linear": VPLinear(),
    "vp_linear mild": VPLinear(beta_min=0.2, beta_max=12.0),
    "sub_vp": SubVP(),
    "sub_vp mild": SubVP(beta_min=0.2, beta_max=12.0),
    "ve": VE(),
    "ve wide": VE(sigma_min=0.02, sigma_max=348.0),
    "cosine": Cosine(),
    "cosine shifted": Cosine(shift=0.5, logsnr_limit=10.0),
    "edm": EDM(),
    "edm narrow": EDM(sigma_min=0.01, sigma_max=20.0, rho=5.0),
    "rectified_flow": RectifiedFlow(),
}
FUNCTIONS = ("alpha", "sigma", "logsnr", "log_alpha_slope", "logsnr_slope")


@pytest.fixture(params=ALL, ids=str)
def schedule(request):
    return ALL[request.param]


def times(schedule, count=101):
    return np.linspace(schedule.time_min, schedule.time_max, count)


def truncated_cosine(t, logsnr_limit, shift):
    """alpha and sigma on the unit circle: angle from arctan(e^-limit/2) up, cot(angle) = alpha / sigma, times shift."""
    low = np.arctan(np.exp(-logsnr_limit / 2))
    angle = low + t * (np.pi / 2 - 2 * low)
    norm = np.hypot(shift * np.cos(angle), np.sin(angle))
    return shift * np.cos(angle) / norm, np.sin(angle) / norm


# alpha(t) and sigma(t) as their papers write them.
KERNELS = {
    "vp_linear": lambda t: (np.exp(-(0.1 * t + 9.95 * t**2) / 2), np.sqrt(1 - np.exp(-(0.1 * t + 9.95 * t**2)))),
    "vp_linear mild": lambda t: (np.exp(-(0.2 * t + 5.9 * t**2) / 2), np.sqrt(1 - np.exp(-(0.2 * t + 5.9 * t**2)))),
    "sub_vp": lambda t: (np.exp(-(0.1 * t + 9.95 * t**2) / 2), 1 - np.exp(-(0.1 * t + 9.95 * t**2))),
    "sub_vp mild": lambda t: (np.exp(-(0.2 * t + 5.9 * t**2) / 2), 1 - np.exp(-(0.2 * t + 5.9 * t**2))),
    "ve": lambda t: (np.ones_like(t), 0.01 * 5000**t),
    "ve wide": lambda t: (np.ones_like(t), 0.02 * 17400**t),
    "cosine": lambda t: truncated_cosine(t, 15.0, 1.0),
    "cosine shifted": lambda t: truncated_cosine(t, 10.0, 0.5),
    "edm": lambda t: (np.ones_like(t), (80 ** (1 / 7) * t + 0.002 ** (1 / 7) * (1 - t)) ** 7),
    "edm narrow": lambda t: (np.ones_like(t), (20**0.2 * t + 0.01**0.2 * (1 - t)) ** 5),
    "rectified_flow": lambda t: (1 - t, t),
}

# d log alpha / dt and d lambda / dt by hand.
SLOPES = {
    "vp_linear": lambda t: (-(0.1 + 19.9 * t) / 2, -(0.1 + 19.9 * t) / (1 - np.exp(-(0.1 * t + 9.95 * t**2)))),
    "edm": lambda t: (
        np.zeros_like(t),
        -14 * (80 ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) * t + 0.002 ** (1 / 7) * (1 - t)),
    ),
    "rectified_flow": lambda t: (-1 / (1 - t), -2 / (1 - t) - 2 / t),
    "ve": lambda t: (np.zeros_like(t), -2 * np.log(5000) * np.ones_like(t)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_of_the_paper(name):
    t = times(ALL[name])
    alpha, sigma = KERNELS[name](t)
    np.testing.assert_allclose(ALL[name].alpha(t), alpha, rtol=1e-10)
    np.testing.assert_allclose(ALL[name].sigma(t), sigma, rtol=1e-10)
    np.testing.assert_allclose(ALL[name].logsnr(t), 2 * np.log(alpha / sigma), rtol=1e-10, atol=1e-10)
    # Negative control: the same formula a thousandth later does not pass.
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ALL[name].sigma(t), KERNELS[name](0.999 * t)[1], rtol=1e-10)


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_of_the_paper(name):
    t = times(ALL[name])
    for got, expected in zip((ALL[name].log_alpha_slope(t), ALL[name].logsnr_slope(t)), SLOPES[name](t)):
        np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_slopes_are_the_derivatives(schedule):
    """Against reverse-mode autodiff in float64, of log alpha and of the log-SNR."""
    with jax.enable_x64(True):
        t = jnp.asarray(times(schedule, 41)[1:-1])
        log_alpha_slope = jax.vmap(jax.grad(lambda t: jnp.log(schedule.alpha(t))))(t)
        logsnr_slope = jax.vmap(jax.grad(schedule.logsnr))(t)
        np.testing.assert_allclose(schedule.log_alpha_slope(t), log_alpha_slope, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(schedule.logsnr_slope(t), logsnr_slope, rtol=1e-8)


def test_snr_is_that_of_the_kernel_and_decreases(schedule):
    t = times(schedule, 2001)
    snr = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    np.testing.assert_allclose(np.exp(schedule.logsnr(t)), snr, rtol=1e-9)
    assert (np.diff(schedule.logsnr(t)) < 0).all()


# Relative error of `logsnr_gap` in float32. The cosine's angle comes so close to pi / 2 that its rounding shows.
SINGLE = {"cosine": 1e-4, "cosine shifted": 1e-4}
GAPS = (1e-1, 1e-3, 1e-4, 1e-5, 1e-6)


def starts(schedule, gap):
    """Times s, and the gap, that float32 holds exactly, with s + gap inside of the schedule."""
    gap = np.float32(gap)
    s = np.linspace(schedule.time_min, schedule.time_max, 101).astype(np.float32)
    double = s.astype(np.float64)
    return s[(double >= schedule.time_min) & (double + np.float64(gap) <= schedule.time_max)], gap


@pytest.mark.parametrize("gap", GAPS)
def test_gap_of_logsnrs_is_their_difference(schedule, gap):
    """In float64, where a difference of two log-SNRs still has digits; and on a traced array as on the host."""
    s, gap = (np.asarray(value, np.float64) for value in starts(schedule, gap))
    difference = schedule.logsnr(s) - schedule.logsnr(s + gap)
    np.testing.assert_allclose(schedule.logsnr_gap(s, gap) * np.ones_like(s), difference, rtol=1e-9)
    with jax.enable_x64(True):
        traced = schedule.logsnr_gap(jnp.asarray(s), jnp.full(s.shape, gap))
        np.testing.assert_allclose(traced, schedule.logsnr_gap(s, gap) * np.ones_like(s), rtol=1e-12)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", ALL)
def test_gap_of_logsnrs_keeps_its_digits_in_float32(name, gap):
    """At close times, where the difference of two log-SNRs in float32 has lost them (the negative control)."""
    schedule = ALL[name]
    s, gap = starts(schedule, gap)
    wide, single = s.astype(np.float64), jnp.asarray(s)
    right = schedule.logsnr(wide) - schedule.logsnr(wide + np.float64(gap))
    got = np.asarray(schedule.logsnr_gap(single, jnp.full(s.shape, gap)))
    assert got.dtype == np.float32
    tolerance = SINGLE.get(name, 1e-6)
    np.testing.assert_allclose(got, right, rtol=tolerance)
    inside = wide + gap < schedule.time_max - 0.01
    np.testing.assert_allclose(got[inside], right[inside], rtol=1e-5)
    if gap < 5e-4:
        naive = np.asarray(schedule.logsnr(single) - schedule.logsnr(single + gap))
        assert np.abs(naive / right - 1).max() > 3 * tolerance


def test_gap_of_logsnrs_of_the_tables_and_of_one_level():
    """`Discrete` takes the difference; `Constant` has none."""
    s, gap = np.linspace(0.01, 0.9, 50), np.float64(0.05)
    difference = Discrete().logsnr(s) - Discrete().logsnr(s + gap)
    np.testing.assert_allclose(Discrete().logsnr_gap(s, gap), difference, rtol=1e-12)
    assert (Constant(level=0.3).logsnr_gap(s, gap) == 0).all()


@pytest.mark.parametrize("name", [name for name in ALL if name.startswith(("vp", "cosine"))])
def test_variance_preserving(name):
    t = times(ALL[name])
    np.testing.assert_allclose(ALL[name].alpha(t) ** 2 + ALL[name].sigma(t) ** 2, 1, rtol=1e-13)


def test_time_of_logsnr_is_the_inverse(schedule):
    t = times(schedule)
    np.testing.assert_allclose(schedule.time_of_logsnr(schedule.logsnr(t)), t, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_device_and_host_agree(schedule, name):
    """Traced arrays take other branches than host values: in float64 they agree, and float32 loses little."""
    t = times(schedule, 21)
    host = getattr(schedule, name)(t)
    assert isinstance(host, np.ndarray) and host.dtype == np.float64
    with jax.enable_x64(True):
        np.testing.assert_allclose(getattr(schedule, name)(jnp.asarray(t)), host, rtol=1e-11, atol=1e-11)
    single = getattr(schedule, name)(jnp.asarray(t, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, host, rtol=1e-3, atol=1e-3 if name == "logsnr" else 1e-6)


def test_inverse_in_float32(schedule):
    t = times(schedule, 21)
    back = schedule.time_of_logsnr(jnp.asarray(schedule.logsnr(t), jnp.float32))
    np.testing.assert_allclose(back, t, rtol=1e-4, atol=2e-6)


def moments(schedule, drift_factor=1.0):
    """The mean of a unit start and the variance at time_max, by dm/dt = f m and dV/dt = 2 f V + g^2 from time_min."""
    process = GaussianProcess(schedule)

    def rates(t, state):
        f, g = drift_factor * schedule.log_alpha_slope(np.float64(t)), process.diffusion(np.float64(t))
        return [f * state[0], 2 * f * state[1] + g**2]

    ends = (schedule.time_min, schedule.time_max)
    start = [schedule.alpha(np.float64(ends[0])), schedule.sigma(np.float64(ends[0])) ** 2]
    return solve_ivp(rates, ends, start, method="DOP853", rtol=1e-11, atol=1e-14).y[:, -1]


def test_drift_and_diffusion_carry_the_moments(schedule):
    end = np.float64(schedule.time_max)
    expected = [schedule.alpha(end), schedule.sigma(end) ** 2]
    # Where alpha nearly vanishes the mean is what is left of a long decay: an absolute tolerance on top.
    np.testing.assert_allclose(moments(schedule), expected, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", ["vp_linear", "cosine", "rectified_flow"])
def test_moments_notice_a_wrong_drift(name):
    """Negative control of the test above: a drift that is 1 % off is caught."""
    end = np.float64(ALL[name].time_max)
    expected = [ALL[name].alpha(end), ALL[name].sigma(end) ** 2]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(moments(ALL[name], 1.01), expected, rtol=1e-3)


def test_cosine_of_nichol_and_dhariwal():
    """Without truncation the log-SNR is that of alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    t = np.linspace(0.05, 0.95, 19)
    schedule = Cosine(logsnr_limit=40.0)
    np.testing.assert_allclose(schedule.alpha(t), np.cos(np.pi * t / 2), rtol=1e-7)
    np.testing.assert_allclose(schedule.sigma(t), np.sin(np.pi * t / 2), rtol=1e-7)


def test_cosine_limits_and_shift():
    """The log-SNR runs from +limit to -limit; a shift moves it by 2 log(shift) [Hoogeboom et al. 2023, eq. 4]."""
    ends = np.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(Cosine(logsnr_limit=12.0).logsnr(ends), [12.0, 0.0, -12.0], atol=1e-9)
    t = times(Cosine())
    moved = Cosine(shift=0.25).logsnr(t) - Cosine().logsnr(t)
    np.testing.assert_allclose(moved, -2 * np.log(4), rtol=1e-10)


@pytest.mark.parametrize("sigma_max, ratio", [(50, 4.127), (90, 4.267), (348, 4.573), (1348, 4.860)])
def test_diffusion_of_ve(sigma_max, ratio):
    """Its SDE has g = sigma sqrt(2 log(sigma_max / sigma_min)) [Song et al. 2021]; the ratios by hand."""
    process, t = GaussianProcess(VE(sigma_max=float(sigma_max))), np.linspace(0, 1, 7)
    np.testing.assert_allclose(process.diffusion(t) / process.sigma(t), ratio, atol=5e-4)


def test_diffusion_of_sub_vp():
    """Its SDE has g^2 = beta (1 - exp(-2 B)) [Song et al. 2021], and g / sigma falls from far above 1; by hand."""
    process, t = GaussianProcess(SubVP()), np.array([0.001, 0.1, 0.5, 1.0])
    g2 = (0.1 + 19.9 * t) * (1 - np.exp(-2 * (0.1 * t + 9.95 * t**2)))
    np.testing.assert_allclose(process.diffusion(t) ** 2, g2, rtol=1e-10)
    np.testing.assert_allclose(process.diffusion(t) / process.sigma(t), [46.7, 6.18, 3.43, 4.47], rtol=2e-3)
    # Negative control: the VP process of the same noise rates is another one.
    assert np.abs(GaussianProcess(VPLinear()).diffusion(t) ** 2 / g2 - 1).max() > 1


def test_constant_has_one_level_and_no_time():
    process, t = GaussianProcess(Constant(level=0.3)), np.linspace(0, 1, 5)
    assert (process.alpha(t) == 1).all() and (process.sigma(t) == 0.3).all()
    np.testing.assert_allclose(np.exp(-process.logsnr(t) / 2), 0.3, rtol=1e-12)
    assert (process.schedule.log_alpha_slope(t) == 0).all() and (process.schedule.logsnr_slope(t) == 0).all()
    assert (process.diffusion(t) == 0).all()  # nothing moves
    for name in FUNCTIONS:
        single = getattr(process.schedule, name)(jnp.asarray(t, jnp.float32))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, getattr(process.schedule, name)(t), rtol=1e-6)
    with pytest.raises(ValueError, match=r"one noise level, 0.3, at every time, so a log-SNR has no time"):
        process.time_of_logsnr(np.array([1.0]))


def test_edm_ends():
    np.testing.assert_allclose(EDM().sigma(np.array([0.0, 1.0])), [0.002, 80.0], rtol=1e-12)


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: VPLinear(time_min=0.0), "time_min"),
        (lambda: VPLinear(time_min=0.5, time_max=0.2), "time_max=0.2"),
        (lambda: VPLinear(beta_min=0.0), "beta_min"),
        (lambda: VPLinear(beta_min=5.0, beta_max=5.0), "beta_max"),
        (lambda: Cosine(shift=0.0), "shift=0.0"),
        (lambda: Cosine(shift=float("nan")), "shift=nan"),
        (lambda: Cosine(logsnr_limit=-1.0), "logsnr_limit=-1.0"),
        (lambda: Cosine(time_max=1.5), "time_max=1.5"),
        (lambda: EDM(sigma_min=0.0), "sigma_min"),
        (lambda: EDM(sigma_max=0.001), "sigma_max"),
        (lambda: EDM(rho=0.5), "rho=0.5"),
        (lambda: VE(sigma_min=0.0), "sigma_min"),
        (lambda: VE(sigma_max=0.001), "sigma_max"),
        (lambda: SubVP(time_min=0.0), "time_min"),
        (lambda: SubVP(beta_max=0.01), "beta_max"),
        (lambda: Constant(level=0.0), "level=0.0"),
        (lambda: RectifiedFlow(time_min=0.0), "time_min"),
        (lambda: RectifiedFlow(time_max=1.0), "time_max"),
    ],
)
def test_bad_fields_are_refused_by_name(make, field):
    with pytest.raises(ValueError, match=field):
        make()


def test_every_named_schedule_is_tested():
    # `Discrete` has kinks, and a file of its own.
    assert {type(schedule) for schedule in ALL.values()} | {Constant, Discrete} == set(SCHEDULES.values())
