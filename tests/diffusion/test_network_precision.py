"""The first layer works in float32 whatever the body does: a small perturbation of the input must arrive as it is."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffusion.networks import NETWORKS, initialise

IMAGE = {"shape": (8, 8, 1), "width": 8}
OPTIONS = {
    "mlp": {**IMAGE, "depth": 1},
    "energy": {**IMAGE, "depth": 1},
    "unet": {**IMAGE, "channel_multipliers": (1,), "blocks_per_level": 1, "attention_resolutions": ()},
    "dit": {**IMAGE, "depth": 1, "num_heads": 2},
}
# RMS error of a perturbation z s of pixels in [0, 1], in units of z s, if the sum is rounded to bfloat16; by s.
ROUNDED = {0.001: 0.85, 0.01: 0.086, 0.1: 0.009}


def reached(jaxpr, inputs):
    """Equations that depend on `inputs`, in order, with the same inside of calls."""
    known = set(inputs)
    for equation in jaxpr.eqns:
        places = [i for i, v in enumerate(equation.invars) if not isinstance(v, jax.extend.core.Literal) and v in known]
        if not places:
            continue
        known.update(equation.outvars)
        subs = list(jax.extend.core.jaxprs_in_params(equation.params))
        same = [sub for sub in subs if len(sub.invars) == len(equation.invars)]
        if same:
            yield from reached(same[0], [same[0].invars[i] for i in places])
        else:
            yield equation


@pytest.mark.parametrize("name", NETWORKS)
def test_x_meets_the_first_weights_in_float32(name):
    """From the input to the first product with weights nothing is rounded; the body then runs in bfloat16."""
    apply, params = initialise(name, jax.random.key(0), **OPTIONS[name], dtype="bfloat16")
    x = jnp.zeros((2, 8, 8, 1))

    def dtypes(function):
        """Of everything up to and including the first product that x enters, and of the factors of all products."""
        jaxpr = jax.make_jaxpr(function)(x).jaxpr
        path = list(reached(jaxpr, jaxpr.invars))
        products = [e for e in path if e.primitive.name in ("dot_general", "conv_general_dilated")]
        first = path[: path.index(products[0]) + 1]
        return [{v.aval.dtype.name for e in group for v in (*e.invars, *e.outvars)} for group in (first, products)]

    first, body = dtypes(lambda x: apply(params, x, jnp.zeros(2)))
    assert first == {"float32"} and body == {"float32", "bfloat16"}
    rounded, _ = dtypes(lambda x: apply(params, x.astype(jnp.bfloat16).astype(jnp.float32), jnp.zeros(2)))
    assert "bfloat16" in rounded


@pytest.mark.parametrize("spread", ROUNDED)
def test_response_of_the_first_layer_to_small_noise(spread):
    """Of a linear layer made by the network: right to 1e-3; rounding x first would lose as much as published."""
    network = NETWORKS["mlp"](**{**OPTIONS["mlp"], "width": 256}, dtype="bfloat16", rngs=nnx.Rngs(0))
    draws = np.random.default_rng(0)
    x = draws.uniform(size=(500, 64)).astype(np.float32)
    z = draws.standard_normal((500, 64))
    moved = (x + np.float32(spread) * z).astype(np.float32)
    kernel = np.asarray(network.inputs.kernel[...], np.float64)
    expected = spread * z @ kernel

    def error(a, b):
        response = np.asarray(network.inputs(jnp.asarray(a)) - network.inputs(jnp.asarray(b)), np.float64)
        return np.sqrt(np.mean((response - expected) ** 2) / np.mean(expected**2))

    assert error(moved, x) < 1e-3
    assert error(np.asarray(jnp.asarray(moved, jnp.bfloat16), np.float32), x) == pytest.approx(ROUNDED[spread], rel=0.1)
