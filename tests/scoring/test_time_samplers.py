"""Time samplers: their laws by Kolmogorov-Smirnov, their strata, and what the strata are for."""

import jax
import numpy as np
import pytest
from scipy import stats

from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, Cosine, RectifiedFlow, VPLinear
from scoring.time_samplers import KarrasTimes, LogNormalTimes, LowDiscrepancyTimes, UniformTimes

CUT = GaussianProcess(Cosine(time_min=0.1, time_max=0.7))


def unit(t, process):
    return (np.asarray(t, np.float64) - process.time_min) / (process.time_max - process.time_min)


@pytest.mark.parametrize("sampler", [UniformTimes(), LowDiscrepancyTimes()], ids=["uniform", "low_discrepancy"])
def test_times_are_uniform(sampler):
    """For the low-discrepancy sampler: any one of its times, over batches. A skewed law is rejected."""
    draws = [np.asarray(sampler(CUT, jax.random.key(seed), 5)) for seed in range(400)]
    u = unit([draw[seed % 5] for seed, draw in enumerate(draws)], CUT)
    assert u.min() >= 0 and u.max() <= 1
    assert stats.kstest(u, "uniform").pvalue > 0.01
    assert stats.kstest(u**1.3, "uniform").pvalue < 0.01
    assert not np.isclose(draws[0], draws[1]).any()


@pytest.mark.parametrize("count", [1, 8, 33])
def test_one_low_discrepancy_time_per_stratum(count):
    for seed in range(20):
        u = unit(LowDiscrepancyTimes()(CUT, jax.random.key(seed), count), CUT)
        np.testing.assert_array_equal(np.sort(np.floor(u * count + 1e-5)), np.arange(count))
    if count > 1:
        u = unit(UniformTimes()(CUT, jax.random.key(0), count), CUT)
        assert len(np.unique(np.floor(u * count))) < count  # independent times do not do that


def test_low_discrepancy_lowers_the_variance_of_a_batch_mean():
    """Of e^(2u): Var(e^(2u)) / B for independent times; with strata (f(1) - f(0))^2 / (12 B^2), fifteen times less.

    The second is that of the error of a midpoint-like rule with one random shift, to first order in 1 / B.
    """
    batch = 16
    iid, strata = (
        np.var([np.mean(np.exp(2 * unit(sampler(CUT, jax.random.key(seed), batch), CUT))) for seed in range(300)])
        for sampler in (UniformTimes(), LowDiscrepancyTimes())
    )
    one = (np.exp(4) - 1) / 4 - ((np.exp(2) - 1) / 2) ** 2
    assert abs(iid / (one / batch) - 1) < 4 * np.sqrt(2 / 300)
    assert abs(strata / ((np.exp(2) - 1) ** 2 / (12 * batch**2)) - 1) < 4 * np.sqrt(2 / 300)


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), RectifiedFlow()], ids=lambda schedule: type(schedule).__name__)
def test_log_normal_levels(schedule):
    """log(sigma / alpha) ~ N(-1.2, 1.2^2) on any schedule, by the kernel's own ratio at the drawn times."""
    process = GaussianProcess(schedule)
    t = np.asarray(LogNormalTimes(mean=-1.2, std=1.2)(process, jax.random.key(0), 20_000), np.float64)
    log_level = np.log(process.sigma(t) / process.alpha(t))
    assert abs(log_level.mean() + 1.2) < 4 * 1.2 / np.sqrt(20_000)
    assert abs(log_level.std() / 1.2 - 1) < 4 / np.sqrt(2 * 20_000)
    assert stats.kstest(log_level, stats.norm(-1.2, 1.2).cdf).pvalue > 0.01
    assert stats.kstest(log_level, stats.norm(-1.15, 1.2).cdf).pvalue < 0.01


def test_log_normal_stays_in_range():
    t = np.asarray(LogNormalTimes(mean=0.0, std=5.0)(CUT, jax.random.key(0), 1000))
    assert t.min() == np.float32(0.1) and t.max() == np.float32(0.7)  # both ends are reached, none passed


def test_bad_std_is_refused():
    with pytest.raises(ValueError, match=r"std = 0\.0"):
        LogNormalTimes(std=0.0)


def test_karras_times_are_uniform_on_edm():
    """On [0, 0.8], as that schedule's time is Karras' scale."""
    t = np.asarray(KarrasTimes(upper=0.8)(GaussianProcess(EDM()), jax.random.key(0), 20_000), np.float64)
    assert stats.kstest(t, stats.uniform(0, 0.8).cdf).pvalue > 0.01
    assert stats.kstest(t, stats.uniform(0, 0.82).cdf).pvalue < 0.01
    assert t.min() >= 0 and t.max() <= 0.8 + 1e-6


@pytest.mark.parametrize("schedule", [VPLinear(), RectifiedFlow()], ids=lambda schedule: type(schedule).__name__)
def test_karras_times_give_the_noise_levels_of_the_law(schedule):
    """(sigma / alpha)^(1 / 7) is uniform from the lowest level of the process to 0.8 of the way to the highest."""
    process = GaussianProcess(schedule)
    t = np.asarray(KarrasTimes(upper=0.8)(process, jax.random.key(1), 20_000), np.float64)
    ends = np.array([schedule.time_min, schedule.time_max])
    low, high = (process.sigma(ends) / process.alpha(ends)) ** (1 / 7)
    root = (process.sigma(t) / process.alpha(t)) ** (1 / 7)
    assert stats.kstest(root, stats.uniform(low, 0.8 * (high - low)).cdf).pvalue > 0.01
    assert stats.kstest(root, stats.uniform(low, 0.82 * (high - low)).cdf).pvalue < 0.01
    assert t.min() >= process.time_min and t.max() <= process.time_max


@pytest.mark.parametrize("upper", [0.0, 1.2, -0.5])
def test_bad_upper_is_refused(upper):
    with pytest.raises(ValueError, match=rf"upper = {upper} must lie in \(0, 1\]"):
        KarrasTimes(upper=upper)
