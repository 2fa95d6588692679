"""What a gradient of each objective costs, and which of them differentiate the network twice."""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import DoubleWell
from diffusion.denoiser import NetworkDenoiser
from diffusion.process import GaussianProcess
from diffusion.schedules import VPLinear
from scoring import OBJECTIVES

LAYERS, WIDTH = 9, 32
LOCAL = {"mode": "local"}
LCSS = [
    {},
    {"center": "x0", "sigma": "g"},
    LOCAL,
    {**LOCAL, "norm_at": "x"},
    {**LOCAL, "control_variate": "center"},
    {**LOCAL, "control_variate": "antithetic"},
]


def convolutions(params, x, level, label):
    """A residual network of 3 x 3 convolutions."""

    def layer(h, kernel):
        return jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    h = layer(x, params[0])
    for kernel in params[1:-1]:
        h = h + layer(jax.nn.silu(h), kernel)
    return layer(h, params[-1])


@pytest.fixture(scope="module")
def flops(create):
    """(name, **options) -> floating-point operations of the gradient of the parameters, before compilation."""
    channels = [3, *[WIDTH] * (LAYERS - 1), 3]
    params = [jnp.ones((3, 3, a, b)) for a, b in pairwise(channels)]
    process = GaussianProcess(VPLinear())

    @cache
    def count(name, **options):
        def loss(params, x0):
            def network(x, level, label):
                return convolutions(params, x, level, label)

            denoise = NetworkDenoiser(network, process, prediction="epsilon", sigma_data=0.5)
            return create(name, **options)(denoise, process, x0, None, jax.random.key(0))[0]

        return jax.jit(jax.grad(loss)).lower(params, jnp.ones((2, 8, 8, 3))).cost_analysis()["flops"]

    return count


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("lcss", {}, 1.0),
        ("lcss", LOCAL, 1.0),
        ("lcss", {**LOCAL, "control_variate": "center"}, 2.0),
        ("fd_ssm_vr", {}, 2.0),
        ("ssm_vr", {}, 2.0),
    ],
    ids=str,
)
def test_cost_of_a_gradient_over_that_of_dsm(name, options, expected, flops):
    """To 5 %; two evaluations cost twice one, and a forward derivative as much as the other evaluation."""
    assert flops(name, **options) / flops("dsm") == pytest.approx(expected, rel=0.05)


# --- derivatives of derivatives ---------------------------------------------------------------------------------------


@pytest.fixture
def twice():
    """(objective, process) -> how often the gradient of the loss differentiates the derivative of the network."""

    def count(objective, process):
        seen = []

        @jax.custom_jvp
        def slope(x):
            return 1 - jnp.tanh(x) ** 2

        @slope.defjvp
        def _(primals, tangents):
            seen.append(1)
            return slope(*primals), -2 * jnp.tanh(primals[0]) * slope(*primals) * tangents[0]

        @jax.custom_jvp
        def activation(x):
            return jnp.tanh(x)

        @activation.defjvp
        def _(primals, tangents):
            return activation(*primals), slope(*primals) * tangents[0]

        def loss(weights):
            def denoise(x, t, label):
                return activation(x @ weights) @ weights.T

            x0 = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)
            return objective(denoise, process, x0, None, jax.random.key(0))[0]

        jax.make_jaxpr(jax.grad(loss))(jnp.ones((2, 4)))
        return len(seen)

    return count


ONCE = [("dsm", {}), *(("lcss", options) for options in LCSS), ("fd_ssm", {}), ("fd_ssm_vr", {}),
        ("last_increment", {"simulation_steps": 2})]  # fmt: skip
TWICE = [("ism", {}), ("ssm", {}), ("ssm_vr", {})]


@pytest.mark.parametrize(("name", "options"), ONCE, ids=str)
def test_first_derivatives_are_enough(name, options, create, twice):
    assert twice(create(name, **options), GaussianProcess(VPLinear())) == 0
    if name != "dsm" and (name != "lcss" or "mode" in options):
        few = {**options, "simulation_steps": 2}
        assert twice(create(name, **few), DoubleWell()) == 0


@pytest.mark.parametrize(("name", "options"), TWICE, ids=str)
def test_second_derivatives_are_seen(name, options, create, twice):
    """Positive control; and together the two lists are all objectives."""
    assert twice(create(name, **options), GaussianProcess(VPLinear())) > 0
    assert {entry[0] for entry in ONCE + TWICE} == set(OBJECTIVES)
