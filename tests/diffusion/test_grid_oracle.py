"""The grid oracle against published figures, Gaussians where the drift does not act yet, and its own table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from diffusion.denoiser import score
from diffusion.grid_oracle import (
    GRID,
    SPACING,
    exact_double_well,
    grid_score,
    mixture_density,
    propagate,
    stationary_density,
)
from diffusion.kernel_free import DoubleWell

WELL = DoubleWell()
WEIGHTS, MEANS, STD = np.array([0.5, 0.2, 0.3]), np.array([-0.9, 0.1, 1.5]), 0.05
START = mixture_density(WEIGHTS, MEANS, STD)


@pytest.fixture(scope="module")
def exact():
    return exact_double_well(WELL, START)


def moments(density):
    """Variance and excess kurtosis of a density on the grid, nan counting as nothing."""
    weight = np.nan_to_num(density)
    weight = weight / weight.sum()
    variance = weight @ GRID**2 - (weight @ GRID) ** 2
    return variance, weight @ GRID**4 / variance**2 - 3


def fisher(density):
    return np.nansum(density * grid_score(density) ** 2) * SPACING


def test_stationary_density():
    """Variance 1, excess kurtosis -1.28, pi(0) over its peak .2706, Fisher information 3.628."""
    pi = stationary_density()
    variance, excess = moments(pi)
    assert abs(pi.sum() * SPACING - 1) < 1e-12 and abs(variance - 1) < 1e-4 and abs(excess + 1.28) < 1e-3
    assert abs(pi[800] / pi.max() - 0.2706) < 5e-5 and abs(fisher(pi) - 3.628) < 2e-3
    np.testing.assert_allclose(propagate(pi, np.array([3.0]))[0][200:1400], pi[200:1400], rtol=1e-6)


def test_relaxation():
    """Spectral gap .29767 per unit of the clock: 5.0 % of the slowest mode left at 10.05, .26 % at 20.05.

    The mode is what keeps an odd start, all in one well, from being even.
    """
    start = np.where(np.abs(GRID - 0.9) < 0.2, 1.0, 0.0)
    sides = [np.nansum(np.sign(GRID) * density) for density in propagate(start, np.array([5.0, 10.05, 20.05]))]
    gap = np.log(sides[1] / sides[2]) / 10
    assert abs(gap - 0.29767) < 2e-5
    np.testing.assert_allclose(np.exp(-gap * np.array([10.05, 20.05])), [0.050, 0.0026], rtol=0.02)


@pytest.mark.parametrize(
    "clock, variance, excess",
    [(0.05, 0.0622, -0.231), (0.2, 0.2881, -0.712), (0.5, 0.6420, -1.056), (2.0, 0.9925, -1.276)],
)
def test_kernel_from_the_middle(clock, variance, excess):
    start = np.zeros(len(GRID))
    start[800] = 1 / SPACING
    got = moments(propagate(start, np.array([clock]))[0])
    np.testing.assert_allclose(got, [variance, excess], atol=6e-4)


PUBLISHED = {
    0.1: ([1.2774, 0.7265, -2.3162, 3.9496, -1.6707], 7.511),
    0.5: ([0.6755, -0.6343, 1.7894, -0.1960, -2.5809], 3.694),
    2.0: ([0.5100, -0.1552, 1.8149, -0.5488, -3.0371], 3.631),
}


@pytest.mark.parametrize("clock", PUBLISHED)
def test_published_scores(exact, clock):
    """At five points and in the mean square, from the grid and from the table that networks' places are taken by."""
    values, information = PUBLISHED[clock]
    x = np.array([-1.0, 0.0, 0.5, 1.0, 1.5])
    density = propagate(START(GRID), np.array([clock]))[0]
    np.testing.assert_allclose(np.interp(x, GRID, grid_score(density)), values, atol=2e-4)
    assert abs(fisher(density) - information) < 2e-3
    t = jnp.full(5, WELL.time_of_clock(clock), jnp.float32)
    np.testing.assert_allclose(exact.score(jnp.asarray(x, jnp.float32)[:, None], t)[:, 0], values, atol=4e-3)


def gaussian_mixture_score(x, alpha, variance):
    """Of data sum_k w_k N(m_k, STD^2), scaled by alpha, with Gaussian noise added."""
    variance = alpha**2 * STD**2 + variance
    joint = WEIGHTS * norm.pdf(x[:, None], alpha * MEANS, np.sqrt(variance)) + 1e-300
    return np.sum(joint * (alpha * MEANS - x[:, None]), axis=1) / variance / joint.sum(axis=1)


def relative_error(density, approximation):
    """E (a - s)^2 / E s^2 on the grid."""
    right = grid_score(density)
    return np.nansum(density * (approximation - right) ** 2) / np.nansum(density * right**2)


def test_before_the_drift_acts_it_is_plain_noise():
    """p_0 * N(0, tau) for small tau. Later it is not, and the kernel of a VP process is wrong by far."""
    clocks = np.array([2e-4, 0.5])
    early, late = propagate(START(GRID), clocks)
    assert relative_error(early, gaussian_mixture_score(GRID, 1.0, clocks[0])) < 1e-3
    assert relative_error(late, gaussian_mixture_score(GRID, 1.0, clocks[1])) > 0.3
    assert relative_error(late, gaussian_mixture_score(GRID, np.exp(-0.25), 1 - np.exp(-0.5))) > 0.3


def test_the_table_is_as_good_as_the_grid(exact):
    """At times and places between the nodes, from t = 0.001 to 1: the relative Fisher error is below (0.5 %)^2."""
    run = jax.jit(exact.score)
    for clock in np.exp(np.random.default_rng(0).uniform(*np.log(WELL.clock(np.array([1e-3, 1.0]))), 6)):
        density = propagate(START(GRID), np.array([clock]))[0]
        middles, t = 0.5 * (GRID[1:] + GRID[:-1]), jnp.full(1600, WELL.time_of_clock(clock), jnp.float32)
        got = np.asarray(run(jnp.asarray(middles, jnp.float32)[:, None], t)[:, 0], np.float64)
        right = 0.5 * (grid_score(density)[1:] + grid_score(density)[:-1])
        weight = 0.5 * (density[1:] + density[:-1])
        assert np.nansum(weight * (got - right) ** 2) < 0.005**2 * np.nansum(weight * right**2)
        assert np.nanmax(np.abs(got - right) * (weight > 1e-8)) < 0.03 * np.nanmax(np.abs(right) * (weight > 1e-8))


def test_it_is_a_denoiser(exact):
    """x + sigma^2 score, so the score of the denoiser is the table's; any shape, coordinates apart, labels ignored."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 1)), jnp.float32)
    t = jnp.array([0.05, 0.3, 1.0])
    labels = jnp.array([1, 2, 3])

    @jax.jit
    def both(x, t):
        return score(exact, WELL, x, t, labels), exact.score(x, t), exact(x, t), exact(x[:, 0, 1], t)

    tweedie, direct, images, columns = both(x, t)
    np.testing.assert_allclose(tweedie, direct, atol=2e-4)
    np.testing.assert_allclose(images[:, 0, 1], columns, atol=1e-6)


def test_far_outside_it_points_home(exact):
    """Beyond what rounding leaves of the density, and beyond the grid, at every time."""
    t = jnp.repeat(jnp.geomspace(1e-3, 1.0, 12), 2)
    x = jnp.tile(jnp.array([[3.5, 5.9, 8.0]]) * jnp.array([[1.0], [-1.0]]), (12, 1))
    got = np.asarray(jax.jit(exact.score)(x, t))
    assert np.isfinite(got).all() and (np.sign(got) == -np.sign(x)).all()


def test_the_density_of_a_mixture():
    weight = START(GRID) * SPACING
    mean, second = WEIGHTS @ MEANS, WEIGHTS @ (MEANS**2 + STD**2)
    np.testing.assert_allclose([weight.sum(), weight @ GRID, weight @ GRID**2], [1, mean, second], rtol=1e-9)


@pytest.mark.parametrize("density", [lambda x: -np.ones_like(x), np.zeros_like, lambda x: x / 0.0 * 0, lambda x: x[:5]])
def test_bad_densities_are_refused(density):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="density must be finite and at least 0"):
        exact_double_well(WELL, density)
