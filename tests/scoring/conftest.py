"""What the tests of the objectives share: score fields written as denoisers, one noise level, and chosen draws."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.base import expand
from diffusion.process import GaussianProcess
from diffusion.schedules import Constant
from scoring import OBJECTIVES
from scoring.time_samplers import UniformTimes
from scoring.weightings import ScoreWeighting

DRAWS = 4000
MATRIX = np.array([[1.0, 0.4, -0.3], [0.2, 0.8, 0.5], [-0.6, 0.1, 1.2]])


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """Hundreds of small programs, each run once: compiling takes the time, and half as much without optimisation."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@dataclass(frozen=True)
class OneTime:
    """A time sampler that knows one time."""

    time: float | jax.Array

    def __call__(self, process, key, count):
        return jnp.full(count, self.time)


def _curved(x, matrix=MATRIX):
    """s(x) = -B x + 0.7 sin(1.3 x) roll(x, 1) - 0.05 x |x|^2 of points [B, 3]: nonlinear, and with curl."""
    bent = 0.7 * jnp.sin(1.3 * x) * jnp.roll(x, 1, axis=-1)
    return -(x[..., None, :] * matrix).sum(-1) + bent - 0.05 * x * (x * x).sum(-1, keepdims=True)


@pytest.fixture(scope="session")
def curved():
    return _curved


@pytest.fixture(scope="session")
def one_time():
    return OneTime


@pytest.fixture(scope="session")
def one_level():
    """level -> the process of one noise level."""
    return lambda level: GaussianProcess(Constant(level=float(level)))


@pytest.fixture(scope="session")
def represent():
    """(process, x -> s(x)) -> the denoiser (x + sigma^2 s) / alpha, whose score is s."""

    def make(process, field):
        def denoise(x, t, label):
            return (x + expand(process.sigma(t), x) ** 2 * field(x)) / expand(process.alpha(t), x)

        return denoise

    return make


@pytest.fixture(scope="session")
def create():
    """(name, **options) -> an objective in the units of score-matching papers: E[T + N], summed over coordinates."""

    def make(name, **options):
        options = {"weighting": ScoreWeighting(), "time_sampler": UniformTimes(), "reduction": "sum", **options}
        return OBJECTIVES[name](**options)

    return make


@pytest.fixture
def of_draw(monkeypatch):
    """(objective, denoise, process, x0 of one example) -> (z -> metrics), all normal draws of the objective being z."""

    def make(objective, denoise, process, x0):
        def metrics(z):
            with monkeypatch.context() as patch:
                patch.setattr(jax.random, "normal", lambda key, shape=(), dtype=None: z.reshape(shape))
                return objective(denoise, process, jnp.asarray(x0)[None], None, jax.random.key(0))[1]

        return metrics

    return make


@pytest.fixture(scope="session")
def of_key():
    """(objective, denoise, process, x0 of one example) -> metrics [4000] of independent draws on that example."""

    def make(objective, denoise, process, x0):
        def one(key):
            return objective(denoise, process, jnp.asarray(x0)[None], None, key)[1]

        # Without jit, which would compile each objective anew for longer than it then runs.
        metrics = jax.vmap(one)(jax.random.split(jax.random.key(0), DRAWS))
        return {name: np.asarray(value, np.float64) for name, value in metrics.items()}

    return make
