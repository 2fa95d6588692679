"""The difference of two denoisers: the digits that it keeps, and where it is plain subtraction."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.denoiser import NetworkDenoiser, difference
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM, RectifiedFlow, VPLinear

pytestmark = pytest.mark.usefixtures("quick_to_compile")



def tables(gap):
    """Two outputs [4, 3], float32, `gap` apart; constants, so that float64 sees the same numbers."""
    draw = np.random.default_rng(7)
    one = draw.normal(size=(4, 3)).astype(np.float32)
    return one, (one + gap * draw.normal(size=(4, 3))).astype(np.float32)


def pair_of_networks(process, prediction, gap=1e-3, sigma_data=(0.5, 0.5), predictions=None):
    predictions = predictions or (prediction, prediction)
    return [NetworkDenoiser(lambda x, c, label, table=table: jnp.asarray(table), process, kind, data)
            for table, kind, data in zip(tables(gap), predictions, sigma_data)]  # fmt: skip


def scale_of_output(prediction, alpha, sigma, sigma_data=0.5):
    """d x0 / d output, from the papers' formulas."""
    return {
        "epsilon": -sigma / alpha,
        "v": -sigma / (alpha**2 + sigma**2),
        "score": sigma**2 / alpha,
        "edm": sigma * sigma_data / np.sqrt(sigma**2 + (alpha * sigma_data) ** 2),
    }[prediction]


@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), RectifiedFlow()], ids=lambda schedule: type(schedule).__name__)
@pytest.mark.parametrize("prediction", ["epsilon", "v", "edm"])
def test_difference_keeps_the_digits_that_subtraction_loses(schedule, prediction):
    """At low noise; in float32 against float64. Both denoisers are returned as they are."""
    process, (one, other) = GaussianProcess(schedule), tables(1e-3)
    t = np.full(4, process.time_min + 1e-3, np.float32)
    x_t = jnp.asarray(np.random.default_rng(8).normal(size=(4, 3)), jnp.float32)
    first, second = pair_of_networks(process, prediction)
    x0_one, x0_other, delta = difference(first, second, x_t, jnp.asarray(t), None)
    alpha, sigma = (np.asarray(level, np.float64)[:, None] for level in (process.alpha(t.astype(np.float64)),
                                                                        process.sigma(t.astype(np.float64))))
    exact = scale_of_output(prediction, alpha, sigma) * (one.astype(np.float64) - other)

    def error(value):
        return np.linalg.norm(np.asarray(value, np.float64) - exact) / np.linalg.norm(exact)

    np.testing.assert_array_equal(x0_one, first(x_t, jnp.asarray(t), None))
    np.testing.assert_array_equal(x0_other, second(x_t, jnp.asarray(t), None))
    assert error(delta) < 1e-4
    assert error(x0_one - x0_other) > 10 * error(delta)


@pytest.mark.parametrize("prediction", ["x0", "epsilon", "v", "score", "edm"])
def test_difference_is_subtraction_where_digits_are_not_lost(prediction):
    """At high noise both agree for every prediction, and the gradient in x_t is that of the subtraction."""
    process = GaussianProcess(VPLinear())
    t, x_t = jnp.full(4, 0.6), jnp.asarray(np.random.default_rng(9).normal(size=(4, 3)), jnp.float32)
    networks = [NetworkDenoiser(lambda x, c, label, a=a: jnp.tanh(a * x), process, prediction, 0.5) for a in (0.5, 2.0)]
    both = (
        lambda x: difference(*networks, x, t, None)[2],
        lambda x: networks[0](x, t, None) - networks[1](x, t, None),
    )
    (ours, slope), (plain, plain_slope) = (jax.jvp(function, (x_t,), (jnp.ones_like(x_t),)) for function in both)
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slope, plain_slope, rtol=1e-4, atol=1e-4)
    assert np.abs(slope).max() > 0.01


class Steep(GaussianProcess):
    """A process whose denoisers get a part of the score on top, which is not zero at the origin."""

    def steep_score(self, x):
        return 1.0 - x


UNLIKE = {
    "prediction": lambda process: pair_of_networks(process, None, predictions=("epsilon", "v")),
    "sigma_data": lambda process: pair_of_networks(process, "edm", sigma_data=(0.5, 0.7)),
    "process": lambda process: [pair_of_networks(process, "edm")[0],
                                pair_of_networks(GaussianProcess(VPLinear(beta_max=15.0)), "edm")[1]],
    "steep": lambda process: pair_of_networks(Steep(process.schedule), "epsilon"),
    "function": lambda process: [pair_of_networks(process, "edm")[0], lambda x, t, label: 0.3 * x],
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_difference_of_unlike_denoisers_is_subtraction(name):
    one, other = UNLIKE[name](GaussianProcess(VPLinear()))
    x_t, t = jnp.asarray(np.random.default_rng(10).normal(size=(4, 3)), jnp.float32), jnp.full(4, 0.3)
    x0_one, x0_other, delta = difference(one, other, x_t, t, None)
    np.testing.assert_array_equal(x0_one, one(x_t, t, None))
    np.testing.assert_array_equal(x0_other, other(x_t, t, None))
    np.testing.assert_array_equal(delta, x0_one - x0_other)
