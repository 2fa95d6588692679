"""The energy network is the gradient of a scalar: no curl, and the line integral of the field is the energy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import initialise

OPTIONS = {"shape": (3,), "num_classes": 2, "width": 16, "depth": 2}


def create(name):
    """Network as a function of one x [3], all parameters moved from their start."""
    apply, params = initialise(name, jax.random.key(0), **OPTIONS)
    draws = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + jnp.asarray(0.3 * draws.standard_normal(p.shape), jnp.float32), params)
    return lambda x: apply(params, x[None], jnp.array([0.4]), jnp.array([1]))[0]


@pytest.fixture(scope="module")
def fields():
    return create("energy"), create("mlp")


def curl(field, x):
    jacobian = jax.jacfwd(field)(x)
    return float(jnp.linalg.norm(jacobian - jacobian.T) / jnp.linalg.norm(jacobian))


def test_the_field_has_no_curl(fields):
    energy, perceptron = fields
    for x in np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32):
        assert curl(energy, jnp.asarray(x)) < 1e-5
        assert curl(perceptron, jnp.asarray(x)) > 0.05  # its inner network alone has some


def test_it_is_the_gradient_of_x_times_the_perceptron(fields):
    """Same parameters: along a closed way the field does no work, along an open one the difference of <x, M(x)>."""
    energy, perceptron = fields
    a, b = jnp.array([0.5, -1.0, 0.3]), jnp.array([-0.7, 0.2, 1.1])
    nodes, weights = np.polynomial.legendre.leggauss(24)

    def work(start, end):
        places = start + (end - start) * jnp.asarray((nodes[:, None] + 1) / 2, jnp.float32)
        return float(jnp.asarray(weights / 2, jnp.float32) @ jax.vmap(energy)(places) @ (end - start))

    difference = float(b @ perceptron(b) - a @ perceptron(a))
    assert abs(difference) > 0.1
    assert work(a, b) == pytest.approx(difference, abs=1e-3 * abs(difference) + 1e-4)
    corner = jnp.array([1.0, 1.0, -0.5])
    assert work(a, corner) + work(corner, b) == pytest.approx(difference, abs=1e-3 * abs(difference) + 1e-3)
