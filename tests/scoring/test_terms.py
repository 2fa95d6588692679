"""What the objectives without a kernel share: units, reductions, metrics, the processes they run on, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import DoubleWell
from diffusion.process import GaussianProcess
from diffusion.schedules import Cosine, VPLinear
from diffusion.sde_schedules import VE, SubVP
from scoring import OBJECTIVES
from scoring.weightings import LikelihoodWeighting, UniformWeighting

pytestmark = pytest.mark.usefixtures("quick_to_compile")

VARIANCE, LEVEL, COUNT, DIMENSION = 1.69, 0.5, 50_000, 4
EXACT = 1 / (VARIANCE + LEVEL**2)  # s = -EXACT x
LOCAL = {"mode": "local", "local_c": 0.1}
FREE = [
    ("ism", {}),
    ("ssm", {}),
    ("ssm_vr", {}),
    ("fd_ssm", {}),
    ("fd_ssm_vr", {}),
    ("lcss", {**LOCAL, "control_variate": "center"}),
    ("lcss", {**LOCAL, "control_variate": "antithetic"}),
]


@pytest.fixture(scope="module")
def x0():
    draw = np.random.default_rng(0).normal(size=(COUNT, DIMENSION))
    draw = (draw - draw.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(draw.T, bias=True))).T
    return jnp.asarray(np.sqrt(VARIANCE) * draw, jnp.float32)


@pytest.fixture(scope="module")
def metrics(create, one_level, represent, x0):
    """(name, options, k) -> metrics of s = -k x at one level."""

    def compute(name, options, k):
        process = one_level(LEVEL)
        return create(name, **options)(represent(process, lambda x: -k * x), process, x0, None, jax.random.key(2))[1]

    return compute


@pytest.mark.parametrize(("name", "options"), [*FREE, ("lcss", {}), ("lcss", {"num_probes": 2})], ids=str)
def test_balance_and_dsm_equivalent(name, options, metrics):
    """T + 2 N vanishes at the minimum and nowhere near; DSM's expected value is known for every k, minimum or not."""
    at, off = metrics(name, options, EXACT), metrics(name, options, 1.5 * EXACT)
    size = abs(float(at["trace"]))
    assert abs(float(at["balance"])) < 0.03 * size
    assert float(off["balance"]) == pytest.approx(0.75 * size, rel=0.1)
    for found, k in ((at, EXACT), (off, 1.5 * EXACT)):
        assert float(found["loss"]) == pytest.approx(float(found["trace"]) + float(found["norm"]), rel=1e-5)
        if "mode" in options:  # around x' of its own deviation, c times the level
            width, spread = 0.1 * LEVEL, 1 / EXACT + (0.1 * LEVEL) ** 2
        else:
            width, spread = LEVEL, 1 / EXACT
        expected = 0.5 * DIMENSION * (k**2 * spread - 2 * k + 1 / width**2)
        assert float(found["dsm_equivalent"]) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sum_is_half_the_dimension_times_mean(name, create, represent):
    """In the loss and in every metric of it; x0_mse of DSM is always a mean."""
    process = GaussianProcess(VPLinear())
    denoise = represent(process, lambda x: -x)
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3, 2)), jnp.float32)
    options = {"simulation_steps": 4} if name == "last_increment" else {}
    sums, means = (
        create(name, reduction=reduction, **options)(denoise, process, x0, None, jax.random.key(0))[1]
        for reduction in ("sum", "mean")
    )
    assert {"loss"} < set(sums) == set(means)
    for metric in sums:
        factor = 1 if metric == "x0_mse" else 3
        assert float(sums[metric]) == pytest.approx(factor * float(means[metric]), rel=1e-5)


@pytest.mark.parametrize("schedule", [VPLinear(), VE(), SubVP(), Cosine()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["dsm", "lcss", "ssm_vr"])
def test_weightings_in_the_loss(name, schedule, create, represent, one_time):
    """They multiply the plain loss by sigma^2 and by g^2 = d sigma^2 / dt - 2 sigma^2 d log alpha / dt.

    The derivatives are central differences of the schedule's own alpha and sigma, in float64.
    """
    process, time, h = GaussianProcess(schedule), np.float64(0.4), 1e-5
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)), jnp.float32)

    def loss(**options):
        objective = create(name, time_sampler=one_time(float(time)), **options)
        return float(objective(represent(process, lambda x: -x), process, x0, None, jax.random.key(0))[0])

    square = process.sigma(time) ** 2
    slope = (process.sigma(time + h) ** 2 - process.sigma(time - h) ** 2) / (2 * h)
    shrink = (np.log(process.alpha(time + h)) - np.log(process.alpha(time - h))) / (2 * h)
    plain = loss()
    assert loss(weighting=UniformWeighting()) == pytest.approx(square * plain, rel=1e-4)
    assert loss(weighting=LikelihoodWeighting()) == pytest.approx((slope - 2 * square * shrink) * plain, rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_unknown_reduction_lists_the_choices(name, create):
    with pytest.raises(ValueError, match="reduction = 'max' is not known; choose from mean, sum"):
        create(name, reduction="max")


@pytest.mark.parametrize(
    ("name", "options"),
    [*FREE, ("lcss", LOCAL), ("lcss", {**LOCAL, "norm_at": "x"}), ("last_increment", {})],
    ids=str,
)
def test_a_process_that_can_only_be_simulated(name, options, create):
    """Every one of these objectives and its gradient can be formed there; labels reach the denoiser."""
    labels, label = [], jnp.arange(5)

    def loss(k):
        def denoise(x, t, label):
            labels.append(label)
            return k * x

        return create(name, **options)(denoise, DoubleWell(), jnp.zeros((5, 3)), label, jax.random.key(0))[0]

    assert jax.eval_shape(jax.grad(loss), 0.9).shape == ()
    assert labels and all(seen is label for seen in labels)


@pytest.mark.parametrize(("name", "evaluations"), [("fd_ssm", 2), ("last_increment", 1)])
def test_points_of_a_simulated_process(name, evaluations, create, one_time):
    """At the end of the double well, where it has forgotten the data: two wells at +-sqrt(0.8) of variance 0.2."""
    seen = []
    objective = create(name, time_sampler=one_time(1.0), simulation_steps=128)
    x0 = jnp.full((4000, 1), 0.2)
    objective(lambda x, t, label: seen.append((x, t)) or 0.9 * x, DoubleWell(), x0, None, jax.random.key(0))
    assert len(seen) == evaluations and all(np.all(np.asarray(t) == 1) for _, t in seen)
    x = np.mean([np.asarray(x, np.float64) for x, _ in seen], axis=0)
    assert x.var() == pytest.approx(1, abs=0.1) and abs(x.mean()) < 0.1
    assert np.mean(np.abs(x) < 0.3) < 0.2
