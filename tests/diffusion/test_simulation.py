"""Simulated paths of a linear SDE against its recursion, the score of the last increment, and taming."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.kernel_free import DoubleWell
from diffusion.process import GaussianProcess
from diffusion.schedules import VPLinear
from diffusion.simulation import simulate

LINEAR = GaussianProcess(VPLinear())
STEPS, COUNT = 4, 20_000
TIMES = np.array([0.15, 0.4])


class Cubic:
    """dx = -x^3 dt + dW: too steep for Euler's method from afar."""

    time_min, time_max = 0.0, 1.0

    def alpha(self, t):
        return jnp.ones_like(t)

    sigma = diffusion = alpha

    def logsnr(self, t):
        return jnp.zeros_like(t)

    conditioning = logsnr

    def drift(self, x, t):
        return -(x**3)

    def prior(self, keys, shape):
        return jnp.zeros((len(keys), *shape))


@pytest.fixture(scope="module")
def paths():
    """x0 = 1 and -0.5 in two coordinates, half of the samples to each of two times; in float64."""
    t = np.repeat(TIMES, COUNT // 2)
    x0 = np.tile([1.0, -0.5], (COUNT, 1))
    run = jax.jit(lambda x0, t, key: simulate(LINEAR, x0, t, key, steps=STEPS))
    path = run(jnp.asarray(x0, jnp.float32), jnp.asarray(t, jnp.float32), jax.random.key(0))
    return t, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), path)


def recursion(t, start):
    """Mean and variance of x_K: beta(t) = 0.1 + 19.9 t, f = -beta / 2, g^2 = beta, from t = 0.001 on."""
    mean, variance, dt = start, 0.0, (t - 1e-3) / STEPS
    for k in range(STEPS):
        beta = 0.1 + 19.9 * (1e-3 + k * dt)
        mean, variance = (1 - dt * beta / 2) * mean, (1 - dt * beta / 2) ** 2 * variance + beta * dt
    return mean, variance


def test_moments_are_those_of_the_recursion(paths):
    t, path = paths
    for time in TIMES:
        for coordinate, start in enumerate((1.0, -0.5)):
            x = path.x[t == time][:, coordinate]
            mean, variance = recursion(time, start)
            assert abs(x.mean() - mean) < 4 * np.sqrt(variance / len(x))
            assert abs(x.var() / variance - 1) < 4 * np.sqrt(2 / len(x))
    # Negative control: steps so few that the true variance, 1 - exp(-B), is told apart.
    exact = 1 - np.exp(-(0.1 * TIMES[1] + 9.95 * TIMES[1] ** 2))
    assert abs(path.x[t == TIMES[1]].var(axis=0) / exact - 1).mean() > 4 * np.sqrt(4 / COUNT)


def test_the_last_step_is_what_it_says(paths):
    t, path = paths
    np.testing.assert_allclose(path.step, (t - 1e-3) / STEPS, rtol=1e-5)
    beta = (0.1 + 19.9 * (t - path.step))[:, None]
    step = path.step[:, None]
    end = path.before * (1 - step * beta / 2) + np.sqrt(beta * step) * path.noise
    np.testing.assert_allclose(path.x, end, atol=1e-5)


def regression(x, target):
    """Slope of target on x and its standard error."""
    x, target = x - x.mean(), target - target.mean()
    slope = (x @ target) / (x @ x)
    return slope, np.sqrt(np.mean((target - slope * x) ** 2) / (x @ x))


@pytest.mark.parametrize("index", [0, 1])
def test_last_increment_is_the_score_on_average(paths, index):
    """E[-z_K / (g sqrt(dt)) | x_K] = -(x - mean) / variance, the score of the simulated Gaussian."""
    t, path = paths
    now, rng = t == TIMES[index], np.random.default_rng(1)
    step = path.step[now][0]
    scale = np.sqrt((0.1 + 19.9 * (TIMES[index] - step)) * step)
    x, score = path.x[now][:, 0], -path.noise[now][:, 0] / scale
    mean, variance = recursion(TIMES[index], 1.0)
    slope, error = regression(x, score)
    assert abs(slope + 1 / variance) < 4 * error and error < 0.1 / variance
    assert abs(score.mean() + (x.mean() - mean) / variance) < 4 * score.std() / np.sqrt(len(x))
    # Negative control: draws that did not drive the step, and those of another coordinate, carry no score.
    for wrong in (rng.normal(size=len(x)), path.noise[now][:, 1]):
        slope, error = regression(x, -wrong / scale)
        assert abs(slope + 1 / variance) > 10 * error


def test_a_path_is_a_function_of_the_key():
    x0, t = jnp.ones((3, 2)), jnp.array([0.1, 0.2, 0.3])
    run = jax.jit(lambda key, steps: simulate(LINEAR, x0, t, key, steps=steps), static_argnums=1)
    one, same, other = (run(jax.random.key(seed), 4) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.x, same.x)
    assert not np.isclose(one.x, other.x).any()
    assert not np.isclose(one.noise, run(jax.random.key(0), 5).noise).any()  # every step has noise of its own


def test_taming_holds_what_euler_loses():
    x0, t = jnp.full((64, 1), 20.0), jnp.ones(64)
    euler, tamed = (simulate(Cubic(), x0, t, jax.random.key(0), steps=40, method=m).x for m in ("euler", "tamed"))
    assert not np.isfinite(euler).any()
    assert np.abs(tamed).max() < 22  # it walks in from 20 by at most one per unit of time and step


def test_one_tamed_step():
    """x + dt f / (1 + dt |f|) + g sqrt(dt) z, with the draw that it reports."""
    x0 = jnp.linspace(-3, 3, 8)[:, None]
    path = simulate(Cubic(), x0, jnp.full(8, 0.25), jax.random.key(0), steps=1, method="tamed")
    drift = -0.25 * np.asarray(x0, np.float64) ** 3
    np.testing.assert_allclose(path.x, x0 + drift / (1 + np.abs(drift)) + 0.5 * path.noise, atol=1e-5)
    np.testing.assert_array_equal(path.before, x0)


def test_no_gradient_flows_through_a_path():
    def total(x0):
        path = simulate(LINEAR, x0, jnp.full(3, 0.4), jax.random.key(0), steps=3)
        return sum(jnp.sum(leaf) for leaf in path)

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(jnp.ones((3, 2))), 0.0)


def scans(jaxpr):
    inner = [value for equation in jaxpr.eqns for value in equation.params.values()]
    below = sum(scans(getattr(part, "jaxpr", part)) for part in inner if hasattr(getattr(part, "jaxpr", part), "eqns"))
    return below + sum(equation.primitive.name == "scan" for equation in jaxpr.eqns)


@pytest.mark.parametrize("process", [LINEAR, DoubleWell()], ids=["linear", "double well"])
def test_one_loop_whatever_its_length(process):
    def jaxpr(steps):
        return jax.make_jaxpr(lambda x, t, key: simulate(process, x, t, key, steps=steps))(
            jnp.ones((2, 3)), jnp.full(2, 0.5), jax.random.key(0)).jaxpr

    assert scans(jaxpr(300)) == 1 and len(str(jaxpr(300))) < 1.1 * len(str(jaxpr(3)))


@pytest.mark.parametrize("options, message", [({"steps": 0}, "steps = 0"), ({"steps": 2, "method": "heun"}, "'heun'")])
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        simulate(LINEAR, jnp.ones((1, 1)), jnp.ones(1), jax.random.key(0), **options)
