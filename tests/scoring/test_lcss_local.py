"""Stein's identity in the objectives themselves, by Gauss-Hermite quadrature: traces, deviations, control variates.

The numbers are of the curved field at POINT, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import DoubleWell, Static
from scoring.lcss import LCSS
from scoring.time_samplers import UniformTimes
from scoring.weightings import ScoreWeighting

pytestmark = pytest.mark.usefixtures("quick_to_compile")

POINT = (0.3, -0.8, 1.1)
TRACE = -2.523129309915  # tr ds/dx at POINT
# Level b -> E[tr ds/dx (x')], E[|s(x')|^2 / 2], and the deviation of T per draw: none, center, antithetic.
TABLE = {
    1.0: (-3.821821367427, 5.0831813069, (4.67, 4.47, 4.29)),
    0.5: (-2.893796759622, 2.2340820164, (4.46, 3.29, 3.14)),
    0.1: (-2.538722873780, 1.6917538819, (18.4, 2.95, 2.94)),
    0.01: (-2.523285584554, 1.6723697834, (183, 2.94, 2.94)),
}
HALF = {"mode": "local", "local_c": 0.5}
VARIATES = ("none", "center", "antithetic")


@pytest.fixture(scope="module")
def quadrature():
    """24 points per axis: draws z [13824, 3] and weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), axis=-1).reshape(-1, 3)
    return grid, np.einsum("i,j,k->ijk", weights, weights, weights).ravel()


@pytest.fixture
def moments(of_draw, quadrature):
    """(objective, denoise, process) -> {metric: (mean, standard deviation)} over all draws of an x' about POINT."""

    def compute(objective, denoise, process):
        draws, weights = quadrature
        values = jax.vmap(of_draw(objective, denoise, process, np.array(POINT)))(jnp.asarray(draws))
        means = {name: float(weights @ np.asarray(value, np.float64)) for name, value in values.items()}
        return {
            name: (mean, float(np.sqrt(weights @ (np.asarray(values[name], np.float64) - mean) ** 2)))
            for name, mean in means.items()
        }

    return compute


@pytest.mark.parametrize("level", TABLE)
def test_trace_and_norm_of_every_form(level, moments, create, represent, one_level, curved):
    """Kernel, local with each control variate, and the exact trace at the same x': one expectation."""
    trace, norm, deviations = TABLE[level]
    with jax.enable_x64(True):
        process = one_level(level)
        denoise = represent(process, curved)
        kernel = moments(create("lcss"), denoise, process)
        exact = moments(create("ism"), denoise, process)
        still = Static(scale=2 * level)
        local = {
            name: moments(create("lcss", **HALF, control_variate=name), represent(still, curved), still)
            for name in VARIATES
        }
    for found in (kernel, exact, *local.values()):
        assert found["trace"][0] == pytest.approx(trace, abs=1e-10)
        assert found["norm"][0] == pytest.approx(norm, abs=1e-10)
    # Three digits are printed, the last one rounded.
    for found, deviation in [(kernel, deviations[0]), *zip(local.values(), deviations)]:
        assert found["trace"][1] == pytest.approx(deviation, rel=4e-3)
    assert exact["trace"][1] < 0.7 * deviations[2]  # it has the spread of x' alone
    for found in (kernel, *local.values()):
        offset = 3 / (2 * level**2)
        assert found["dsm_equivalent"][0] == pytest.approx(trace + norm + offset, abs=1e-5 * offset + 1e-5)


def test_norm_at_x(moments, create, represent, curved):
    """|s(POINT)|^2 / 2 whatever the draw; T as before."""
    with jax.enable_x64(True):
        process = Static(scale=1.0)
        found = moments(create("lcss", **HALF, norm_at="x"), represent(process, curved), process)
        norm = 0.5 * float((curved(jnp.asarray(np.array(POINT))[None]) ** 2).sum())
    assert found["norm"][0] == pytest.approx(norm, rel=1e-10) and found["norm"][1] < 1e-7
    assert found["trace"][0] == pytest.approx(TABLE[0.5][0], abs=1e-10)


class OneSided(LCSS):
    """Subtracts the field at x' - b z but forgets to halve."""

    def _local(self, r, process, x_t, t, key):
        terms = super()._local(r, process, x_t, t, key)
        return terms._replace(trace=2 * terms.trace)


class Fresh(LCSS):
    """The draw of x' is not the one that multiplies the field."""

    def _local(self, r, process, x_t, t, key):
        moved = []
        super()._local(lambda x: moved.append(r(x)) or moved[-1], process, x_t, t, jax.random.fold_in(key, 1))
        outputs = iter(moved)
        return super()._local(lambda x: next(outputs), process, x_t, t, key)


@pytest.mark.parametrize("variate", VARIATES)
def test_the_mean_over_draws_finds_mistakes(variate, create, represent, of_key, curved):
    """Monte Carlo, with the objective's own draws: to 4 standard errors it is the trace, and for mistakes it is not."""
    process = Static(scale=1.0)
    options = {"weighting": ScoreWeighting(), "time_sampler": UniformTimes(), "reduction": "sum", **HALF,
               "control_variate": variate}  # fmt: skip

    def distance(objective):
        trace = of_key(objective, represent(process, curved), process, POINT)["trace"]
        return abs(trace.mean() - TABLE[0.5][0]) / (trace.std() / np.sqrt(len(trace)))

    assert distance(LCSS(**options)) < 4
    assert distance(OneSided(**options)) > 20 and distance(Fresh(**options)) > 20


def test_the_centred_trace_is_a_forward_difference_of_every_draw(create, represent, of_draw, curved):
    """T = z'(s(x + b z) - s(x)) / b."""
    z, b = np.random.default_rng(0).normal(size=(20, 3)), 0.1
    with jax.enable_x64(True):
        process = Static(scale=b / 0.2)
        objective = create("lcss", mode="local", local_c=0.2, control_variate="center")
        trace = jax.vmap(of_draw(objective, represent(process, curved), process, np.array(POINT)))(jnp.asarray(z))
        difference = np.asarray(curved(jnp.asarray(np.array(POINT) + b * z)) - curved(jnp.asarray([POINT])))
    np.testing.assert_allclose(trace["trace"], (z * difference).sum(axis=1) / b, rtol=1e-5, atol=1e-5)


def test_the_antithetic_trace_is_a_central_difference_of_every_draw(create, represent, of_draw, curved):
    """FD-SSM along the same direction u = z / |z| with the step b |z|, times |z|^2 / d: a Gaussian probe in FD-SSM."""
    b = 0.1
    with jax.enable_x64(True):
        process = Static(scale=1.0)
        denoise = represent(process, curved)
        for z in np.random.default_rng(0).normal(size=(5, 3)):
            length = np.linalg.norm(z)
            lcss = create("lcss", mode="local", local_c=b, control_variate="antithetic")
            fd = create("fd_ssm", difference=b * length)
            draws = (of_draw(objective, denoise, process, np.array(POINT)) for objective in (lcss, fd))
            ours, theirs = (float(of(jnp.asarray(z))["trace"]) for of in draws)
            assert ours == pytest.approx(theirs * length**2 / 3, rel=1e-6)


# --- choices that are refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm_at": "x"}, "norm_at = 'x'.*mode 'kernel'.*'xprime'"),
        ({"control_variate": "center"}, "control_variate = 'center'.*mode 'kernel'.*'none'"),
        ({"control_variate": "antithetic"}, "control_variate = 'antithetic'.*mode 'kernel'"),
        ({"mode": "local", "center": "x0"}, "center = 'x0'.*mode 'local'.*'mean'"),
        ({"mode": "local", "sigma": "g"}, "sigma = 'g'.*mode 'local'.*'std'"),
        ({"mode": "local", "norm_at": "x", "local_c": 1.0}, r"local_c = 1\.0.*below 1 with norm_at"),
        ({"mode": "local", "local_c": 0.0}, r"local_c = 0\.0 must be positive"),
        ({"gamma": 0.0}, r"gamma = 0\.0"),
        ({"gamma": -1.0}, r"gamma = -1\.0"),
        ({"num_probes": 0}, "num_probes = 0"),
        ({"simulation_steps": 0}, "simulation_steps = 0"),
        ({"mode": "global"}, "mode = 'global'.*kernel, local"),
        ({"center": "zero"}, "center = 'zero'.*mean, x0"),
        ({"sigma": "sd"}, "sigma = 'sd'.*std, g"),
        ({"mode": "local", "norm_at": "y"}, "norm_at = 'y'.*xprime, x"),
        ({"mode": "local", "control_variate": "all"}, "control_variate = 'all'.*none, center, antithetic"),
        ({"reduction": "max"}, "reduction = 'max'.*mean, sum"),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(options, words, create):
    with pytest.raises(ValueError, match=words):
        create("lcss", **options)


def test_a_wide_local_step_is_allowed_with_the_norm_at_x_prime(create):
    assert create("lcss", mode="local", local_c=1.5).local_c == 1.5


@pytest.mark.parametrize("process", [Static(), DoubleWell()], ids=["static", "double_well"])
def test_mode_kernel_needs_a_kernel(process, create):
    with pytest.raises(ValueError, match=f"lcss in mode 'kernel' needs a process .* {type(process).__name__} has none"):
        create("lcss")(lambda x, t, label: x, process, jnp.zeros((2, 3)), None, jax.random.key(0))
    with pytest.raises(ValueError, match=f"dsm needs a process .* {type(process).__name__} has none"):
        create("dsm")(lambda x, t, label: x, process, jnp.zeros((2, 3)), None, jax.random.key(0))
