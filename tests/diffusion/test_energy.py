"""The energy network is the gradient of a scalar: no curl, and the line integral of the field is the energy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import initialise

OPTIONS = {"shape": (3,), "num_classes": 2, "width": 8, "depth": 1}
# These programs run for microseconds and compile for seconds.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def field(name):
    """A network as a function of x [n, 3], all of its parameters moved from their start."""
    apply, params = initialise(name, jax.random.key(0), **OPTIONS)
    draws = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + jnp.asarray(0.6 * draws.standard_normal(p.shape), jnp.float32), params)
    return lambda x: apply(params, x, jnp.full(len(x), 0.4), jnp.ones(len(x), jnp.int32))


@pytest.mark.parametrize("name", ["energy", "mlp"])
def test_only_the_energy_has_no_curl(name):
    """Its Jacobian is symmetric, by forward mode over its reverse mode; that of the perceptron inside of it is not."""
    network = field(name)
    jacobians = jit(jax.vmap(jax.jacfwd(lambda x: network(x[None])[0])))
    found = np.asarray(jacobians(jnp.asarray(np.random.default_rng(1).standard_normal((3, 3)), jnp.float32)))
    curl = np.linalg.norm(found - found.swapaxes(1, 2), axis=(1, 2)) / np.linalg.norm(found, axis=(1, 2))
    assert np.all(curl < 1e-5) if name == "energy" else np.all(curl > 0.05)


def test_it_is_the_gradient_of_x_times_the_perceptron():
    """Same parameters: the work done along a way is the difference of <x, M(x)>, straight or around a corner."""
    a, b, corner = np.array([[0.5, -1.0, 0.3], [-0.7, 0.2, 1.1], [1.0, 1.0, -0.5]])
    nodes, weights = np.polynomial.legendre.leggauss(24)
    energy = jit(field("energy"))

    def work(start, end):
        places = start + (end - start) * (nodes[:, None] + 1) / 2
        return weights / 2 @ np.asarray(energy(jnp.asarray(places, jnp.float32)), np.float64) @ (end - start)

    inner = np.asarray(jit(field("mlp"))(jnp.asarray([a, b], jnp.float32)), np.float64)
    difference = b @ inner[1] - a @ inner[0]
    assert abs(difference) > 0.1
    assert work(a, b) == pytest.approx(difference, rel=2e-3)
    assert work(a, corner) + work(corner, b) == pytest.approx(difference, rel=2e-3)
