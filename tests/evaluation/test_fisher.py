"""The relative Fisher error of scores whose error is known, the draws it is taken over, and masses of modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources import open_source
from diffusion.exact import exact_gaussian
from diffusion.kernel_free import DoubleWell
from diffusion.process import GaussianProcess
from diffusion.schedules import VPLinear
from evaluation.fisher import noised, relative_fisher_error
from evaluation.modes import mass_error, mode_masses

PROCESS = GaussianProcess(VPLinear())
EXACT = jax.jit(exact_gaussian(PROCESS, jnp.array([0.3, -0.1]), jnp.diag(jnp.array([0.5, 0.1]))))


def scaled(factor):
    """The denoiser whose score is `factor` times the exact one."""

    def denoise(x_t, t, label):
        alpha = PROCESS.alpha(t)[:, None]
        return x_t / alpha + factor * (EXACT(x_t, t, label) - x_t / alpha)

    return denoise


@pytest.fixture(scope="module")
def points():
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(500, 2)), jnp.float32)
    return noised(PROCESS, x0, 0.4, jax.random.key(0))


@pytest.mark.parametrize(("factor", "error"), [(0.9, 0.01), (0.0, 1.0), (-1.0, 4.0), (3.0, 4.0)])
def test_scores_of_known_error(points, factor, error):
    assert relative_fisher_error(scaled(factor), EXACT, PROCESS, *points) == pytest.approx(error, rel=1e-4)


def test_the_exact_score_has_no_error(points):
    assert relative_fisher_error(EXACT, EXACT, PROCESS, *points) == 0


def test_errors_count_where_points_are(points):
    """A score that is 0 in the left half: the sum of squares there over that of all, not the mean of ratios."""
    x_t, t = points

    def half(x_t, t, label):
        return jnp.where(x_t[:, :1] < 0, scaled(0)(x_t, t, label), EXACT(x_t, t, label))

    alpha, sigma = (float(f(np.float64(t[0]))) for f in (PROCESS.alpha, PROCESS.sigma))
    squares = ((alpha * np.asarray(EXACT(x_t, t, None), np.float64) - np.asarray(x_t)) ** 2).sum(1) / sigma**4
    expected = squares[np.asarray(x_t[:, 0] < 0)].sum() / squares.sum()
    assert relative_fisher_error(half, EXACT, PROCESS, x_t, t) == pytest.approx(expected, rel=1e-4)


def test_points_are_the_data_with_the_noise_of_the_kernel():
    x0 = jnp.full((20_000, 2), 2.0)
    x_t, t = noised(PROCESS, x0, 0.3, jax.random.key(1))
    alpha, sigma = (float(f(np.float64(0.3))) for f in (PROCESS.alpha, PROCESS.sigma))
    residual = (np.asarray(x_t, np.float64) - 2 * alpha) / sigma
    assert abs(residual.mean()) < 5 / np.sqrt(40_000) and abs(residual.std() - 1) < 5 / np.sqrt(80_000)
    np.testing.assert_allclose(t, 0.3)
    again, other = (noised(PROCESS, x0, 0.3, jax.random.key(seed))[0] for seed in (1, 2))
    assert (again == x_t).all() and not (other == x_t).any()


def test_points_of_a_process_without_a_kernel_are_simulated():
    """From 0 under the double well, against the published variances and kurtosis at two clocks."""
    process = DoubleWell()
    draw = jax.jit(lambda x0, t: noised(process, x0, t, jax.random.key(0))[0])
    for clock, variance, kurtosis in ((0.05, 0.0622, -0.231), (0.5, 0.6420, -1.056)):
        x_t = np.asarray(draw(jnp.zeros((10_000, 2)), process.time_of_clock(clock)), np.float64)
        assert np.var(x_t) == pytest.approx(variance, rel=0.04)
        assert (x_t**4).mean() / np.var(x_t) ** 2 - 3 == pytest.approx(kurtosis, abs=0.1)


def test_masses_of_modes():
    points = np.array([[-0.9, 0.1], [1.5, -0.41], [-0.39, 0.79], [0.81, 3.0]])
    np.testing.assert_allclose(mode_masses(points), [2 / 8, 3 / 8, 3 / 8])
    assert mass_error(points) == pytest.approx(0.25)  # of the first mode: 0.25 instead of 0.5
    data = open_source("toy2d:three_modes", "test").images
    assert mass_error(data) < 5 * np.sqrt(0.25 / data.size)
    assert mass_error(-data) > 0.1
