"""LCSS in mode `kernel`: DSM minus a term without parameters, draw by draw; and mistakes that must not go unseen."""

from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.base import expand
from diffusion.denoiser import NetworkDenoiser
from diffusion.process import GaussianProcess
from diffusion.schedules import VPLinear
from diffusion.sde_schedules import VE
from scoring.lcss import LCSS
from scoring.terms import dot

pytestmark = pytest.mark.usefixtures("quick_to_compile")

POINT, DRAW = (0.3, -0.8, 1.1), (0.7, -1.2, 0.4)
# Of the curved field at x' = POINT + level DRAW, in float64: level, T, N, DSM's loss, |z|^2 / (2 level^2).
GOLDEN = (
    (1.0, -1.725231021791, 4.963564958743, 4.283333936952, 1.045),
    (0.5, -1.068502846809, 2.948119634641, 6.059616787832, 4.18),
    (0.1, -2.105447191606, 1.889781223574, 104.284334031968, 104.5),
)


class WrongSign(LCSS):
    """The trace term enters with the other sign."""

    def _kernel(self, r, process, x0, t, key):
        terms = super()._kernel(r, process, x0, t, key)
        return terms._replace(trace=-terms.trace)


class OtherDraw(LCSS):
    """The trace term multiplies by another draw than the one in x'."""

    def _kernel(self, r, process, x0, t, key):
        outputs = []
        terms = super()._kernel(lambda x: outputs.append(r(x)) or outputs[0], process, x0, t, key)
        return terms._replace(trace=dot(jax.random.normal(jax.random.fold_in(key, 1), x0.shape), outputs[0]))


class NotDivided(LCSS):
    """The trace term z's(x') without 1 / sigma."""

    def _kernel(self, r, process, x0, t, key):
        terms = super()._kernel(r, process, x0, t, key)
        return terms._replace(trace=terms.trace * process.sigma(t))


MISTAKES = (WrongSign, OtherDraw, NotDivided)


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize(("level", "trace", "norm", "dsm", "constant"), GOLDEN)
def test_single_draw(level, trace, norm, dsm, constant, double, create, represent, one_level, of_draw, curved):
    with jax.enable_x64(double):
        process = one_level(level)
        denoise = represent(process, curved)
        z, x0 = jnp.asarray(DRAW), jnp.asarray(POINT)
        lcss = of_draw(create("lcss"), denoise, process, x0)(z)
        plain = of_draw(create("dsm"), denoise, process, x0)(z)
    tolerance = 1e-10 if double else 1e-5
    size = abs(trace) + norm
    np.testing.assert_allclose(lcss["trace"], trace, atol=tolerance * size)
    np.testing.assert_allclose(lcss["norm"], norm, atol=tolerance * size)
    np.testing.assert_allclose(lcss["loss"], trace + norm, atol=tolerance * size)
    np.testing.assert_allclose(lcss["balance"], trace + 2 * norm, atol=2 * tolerance * size)
    np.testing.assert_allclose(plain["loss"], dsm, rtol=tolerance)
    np.testing.assert_allclose(lcss["dsm_equivalent"], dsm, rtol=tolerance)
    assert dsm - constant == pytest.approx(trace + norm, abs=1e-9)


@pytest.mark.parametrize("schedule", [VE(sigma_min=0.05, sigma_max=2.0), VPLinear(time_min=0.05)], ids=["ve", "vp"])
def test_loss_is_that_of_dsm_minus_a_constant_for_every_draw(schedule, create, represent, of_key, curved):
    """And the constant, |z|^2 / (2 sigma^2), is DSM's own loss of the score zero. Every draw has a time of its own."""
    process = GaussianProcess(schedule)
    denoise, nothing = (represent(process, field) for field in (curved, jnp.zeros_like))
    loss, constant = (of_key(create("dsm"), which, process, POINT)["loss"] for which in (denoise, nothing))
    lcss = of_key(create("lcss"), denoise, process, POINT)
    np.testing.assert_allclose(lcss["loss"] + constant, loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lcss["dsm_equivalent"], loss, rtol=1e-5, atol=1e-5)
    assert np.ptp(constant) > 1
    for mistake in MISTAKES:
        options = {"weighting": create("dsm").weighting, "time_sampler": create("dsm").time_sampler}
        wrong = of_key(mistake(**options, reduction="sum"), denoise, process, POINT)["loss"]
        assert np.abs(wrong + constant - loss).max() > 1, mistake.__name__


# --- gradients --------------------------------------------------------------------------------------------------------


def ravel(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def difference(objectives, make_denoise, params, process, x0):
    """Relative L2 difference of the parameter gradients of two objectives with the same key."""
    gradients = [
        ravel(jax.grad(lambda p, o=o: o(make_denoise(p), process, x0, None, jax.random.key(3))[0])(params))
        for o in objectives
    ]
    return float(jnp.linalg.norm(gradients[0] - gradients[1]) / jnp.linalg.norm(gradients[1]))


@pytest.mark.parametrize("level", [0.1, 0.5])
def test_gradient_is_that_of_dsm_and_a_mistake_changes_it(level, create, represent, one_level, curved):
    """With the same draws, for a field whose parameters are its matrix."""
    process = one_level(level)
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.float32)
    plain = create("dsm")
    arguments = lambda p: represent(process, lambda x: curved(x, p)), jnp.eye(3), process, x0
    assert difference((create("lcss"), plain), *arguments) < 1e-5
    for mistake in MISTAKES:
        wrong = mistake(weighting=plain.weighting, time_sampler=plain.time_sampler, reduction="sum")
        assert difference((wrong, plain), *arguments) > 0.05, mistake.__name__


def convolutions(params, x, level, label):
    """Three layers of 3 x 3; the noise level scales the first one's output."""
    h = x
    for index, kernel in enumerate(params):
        h = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        h = h * (1 + 0.1 * level[:, None, None, None]) if index == 0 else h
        h = jax.nn.silu(h) if index < 2 else h
    return h


def test_gradient_of_a_convolutional_network_is_that_of_dsm(create, one_time):
    """At levels from 0.01 to 50, with the float32 denoiser that is trained."""
    draws = np.random.default_rng(0)
    params = [jnp.asarray(0.2 * draws.normal(size=(3, 3, *c)), jnp.float32) for c in ((3, 8), (8, 8), (8, 3))]
    process = GaussianProcess(VE(sigma_min=0.005, sigma_max=100.0))
    x0 = jnp.asarray(draws.uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)

    def gradient(name):
        def loss(params, time):
            denoise = NetworkDenoiser(partial(convolutions, params), process, prediction="epsilon", sigma_data=0.5)
            objective = create(name, time_sampler=one_time(time))
            return objective(denoise, process, x0, None, jax.random.key(3))[0]

        return jax.jit(jax.grad(loss))

    functions = gradient("lcss"), gradient("dsm")
    for level in (0.01, 0.3, 1.0, 50.0):
        time = process.time_of_logsnr(np.float64(-2 * np.log(level))).astype(np.float32)
        ours, theirs = (ravel(function(params, time)) for function in functions)
        assert jnp.linalg.norm(ours - theirs) < 1e-5 * jnp.linalg.norm(theirs), level


def perceptron(params, x, level, label):
    """One hidden layer that sees x and the noise level."""
    return jnp.tanh(jnp.concatenate([x, level[:, None]], axis=-1) @ params["in"]) @ params["out"]


def test_training_takes_the_same_path(create):
    """60 Adam steps of a small network with the same keys: the same parameters, and losses a constant apart."""
    start = {"in": jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32), "out": jnp.zeros((16, 2))}
    process = GaussianProcess(VE(sigma_min=0.1, sigma_max=3.0))
    x0 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (128, 2)), jnp.float32)
    optimizer = optax.adam(1e-2)

    def train(objective):
        def loss(params, key):
            denoise = NetworkDenoiser(partial(perceptron, params), process, prediction="epsilon", sigma_data=0.5)
            return objective(denoise, process, x0, None, key)

        def step(state, index):
            params, moments = state
            gradients, metrics = jax.grad(loss, has_aux=True)(params, jax.random.fold_in(jax.random.key(1), index))
            updates, moments = optimizer.update(gradients, moments)
            return (optax.apply_updates(params, updates), moments), metrics

        (end, _), metrics = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(60))
        return ravel(end), metrics

    (dsm, plain), (lcss, metrics) = train(create("dsm")), train(create("lcss"))
    moved = jnp.linalg.norm(dsm - ravel(start))
    assert moved > 0.5 and jnp.linalg.norm(lcss - dsm) < 1e-4 * moved
    np.testing.assert_allclose(metrics["dsm_equivalent"], plain["loss"], rtol=1e-4)
    assert np.all(np.asarray(plain["loss"]) - np.asarray(metrics["loss"]) > 1)
    assert metrics["loss"][-20:].mean() < -0.1


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"center": "x0", "gamma": 2.0}, {"num_probes": 3}, {"mode": "local"}, {"mode": "local", "norm_at": "x"},
     {"mode": "local", "control_variate": "center"}, {"mode": "local", "control_variate": "antithetic"}],
    ids=str,
)  # fmt: skip
def test_the_score_zero_costs_exactly_nothing(options, create):
    """What a freshly made network with prediction epsilon says, at every noise level."""
    process = GaussianProcess(VE())
    denoise = NetworkDenoiser(lambda x, level, label: 0 * x, process, prediction="epsilon", sigma_data=0.5)
    x0 = jnp.asarray(np.random.default_rng(0).normal(size=(50, 6)), jnp.float32)
    metrics = create("lcss", **options)(denoise, process, x0, None, jax.random.key(0))[1]
    assert [float(metrics[name]) for name in ("loss", "trace", "norm")] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("level", [0.05, 2.0])
def test_dsm_of_the_score_zero(level, create, one_level):
    """d / (2 sigma^2), to 4 standard errors."""
    loss = create("dsm")(lambda x, t, label: x, one_level(level), jnp.zeros((5000, 6)), None, jax.random.key(0))[0]
    assert abs(float(loss) / (6 / (2 * level**2)) - 1) < 4 * np.sqrt(2 / 30_000)


@pytest.mark.parametrize("center", ["mean", "x0"])
@pytest.mark.parametrize("sigma", ["std", "g"])
def test_where_x_prime_is(center, sigma, create, one_time):
    """Seen by the denoiser: its mean over the draws is the centre, its spread sigma_t or g(t)."""
    process, seen = GaussianProcess(VPLinear()), []
    objective = create("lcss", center=center, sigma=sigma, time_sampler=one_time(0.3))
    x0 = jnp.broadcast_to(jnp.array([2.0, -1.0]), (20_000, 2))
    objective(lambda x, t, label: seen.append(np.asarray(x)) or x, process, x0, None, jax.random.key(0))
    (x_prime,) = seen
    t = np.float64(0.3)
    integral = 0.1 * t + 9.95 * t**2
    width = np.sqrt(1 - np.exp(-integral)) if sigma == "std" else np.sqrt(0.1 + 19.9 * t)
    place = np.array([2.0, -1.0]) * (np.exp(-integral / 2) if center == "mean" else 1)
    assert np.abs(x_prime.mean(axis=0) - place).max() < 4 * width / np.sqrt(20_000)
    assert abs((x_prime - place).std() / width - 1) < 4 / np.sqrt(80_000)
    assert x_prime.dtype == np.float32


def test_local_x_prime_is_near_x_t(create, represent):
    """Two evaluations, at x_t and at x_t + c sigma z, where a control variate needs both."""
    process, seen = GaussianProcess(VE(sigma_min=0.3, sigma_max=3.0)), []

    def denoise(x, t, label):
        seen.append((np.asarray(x), np.asarray(expand(process.sigma(t), x))))
        return x

    options = {"mode": "local", "local_c": 0.25, "control_variate": "center"}
    create("lcss", **options)(denoise, process, jnp.ones((20_000, 2)), None, jax.random.key(0))
    (x_prime, sigma), (x_t, _) = seen
    step, noise = (x_prime - x_t) / (0.25 * sigma), (x_t - 1) / sigma
    for draw in (step, noise):
        assert abs(draw.mean()) < 4 / np.sqrt(40_000) and abs(draw.std() - 1) < 4 / np.sqrt(80_000)
    assert abs(np.corrcoef(step.ravel(), noise.ravel())[0, 1]) < 4 / np.sqrt(40_000)
