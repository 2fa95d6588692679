"""How noisy the gradients and the values are: linear fields on N(0, I) in 1024 dimensions, kappa its exact value.

Left: standard deviation of dL/dkappa of one example over its mean second derivative. Right: mean and standard deviation
of the value per coordinate in units of the noise. Golden numbers of float64 simulations with other code.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scoring.weightings import UniformWeighting

pytestmark = pytest.mark.usefixtures("quick_to_compile")

COUNT, DIMENSION = 500, 1024  # a standard deviation is known to 3.2 %
LOCAL = {"mode": "local", "local_c": 0.2}
NOISE = [
    ("ssm_vr", {}, 0.01, 0.044),
    pytest.param("ssm_vr", {"probe": "gaussian"}, 0.01, 0.063, marks=pytest.mark.slow),
    pytest.param("ssm", {"probe": "sphere"}, 0.01, 1.43, marks=pytest.mark.slow),
    pytest.param("dsm", {}, 0.01, 3.12, marks=pytest.mark.slow),
    pytest.param("lcss", {}, 0.01, 3.12, marks=pytest.mark.slow),
    pytest.param("lcss", LOCAL, 0.01, 15.6, marks=pytest.mark.slow),
    ("lcss", {**LOCAL, "control_variate": "center"}, 0.01, 0.063),
    pytest.param("dsm", {}, 1.0, 0.0156, marks=pytest.mark.slow),
    ("lcss", {}, 1.0, 0.0156),
    ("lcss", LOCAL, 1.0, 0.109),
]
VALUES = [
    ("dsm", 0.01, 0.4998, 0.0223),
    ("lcss", 0.01, -0.0001, 0.0003),
    ("dsm", 1.0, 0.2498, 0.0111),
    ("lcss", 1.0, -0.2498, 0.0191),
    ("dsm", 10.0, 0.0049, 0.0002),
    ("lcss", 10.0, -0.4950, 0.0219),
]


@pytest.fixture(scope="module")
def examples():
    """Data and a key for each."""
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(COUNT, DIMENSION)), jnp.float32)
    return x0, jax.random.split(jax.random.key(0), COUNT)


@pytest.fixture(scope="module")
def loss(represent):
    """(objective, process) -> (kappa, x0 of one example, key) -> loss."""

    def make(objective, process):
        def of(kappa, x0, key):
            return objective(represent(process, lambda x: -kappa * x), process, x0[None], None, key)[0]

        return of

    return make


@pytest.mark.parametrize(("name", "options", "level", "expected"), NOISE, ids=str)
def test_gradient_noise(name, options, level, expected, examples, loss, create, one_level):
    """To 10 %. Of a multiple of the identity signs as a probe give the exact trace: the first row is that of ISM."""
    slope = jax.grad(loss(create(name, **options), one_level(level)))
    kappa = 1 / (1 + level**2)
    at, beyond = (np.asarray(jax.vmap(slope, (None, 0, 0))(k, *examples), np.float64) for k in (kappa, kappa + 1))
    assert at.std() / (beyond - at).mean() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("name", "level", "mean", "deviation"), VALUES)
def test_noise_of_the_plotted_value(name, level, mean, deviation, examples, loss, create, one_level):
    """A calm curve is no sign of calm training: DSM and LCSS share their gradients, not their values."""
    function = loss(create(name, weighting=UniformWeighting()), one_level(level))
    values = np.asarray(jax.vmap(function, (None, 0, 0))(1 / (1 + level**2), *examples), np.float64) / DIMENSION
    assert values.mean() == pytest.approx(mean, abs=5e-5 + 4 * deviation / np.sqrt(COUNT))
    assert values.std() == pytest.approx(deviation, rel=0.1, abs=5e-5)
