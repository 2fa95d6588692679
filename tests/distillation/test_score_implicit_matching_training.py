"""Score implicit matching: which network moves when, and that training finds the teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.base import expand
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM
from distillation.base import AUXILIARY, GENERATOR, TEACHER, Parts
from distillation.score_implicit_matching import ScoreImplicitMatching
from scoring.dsm import DSM
from scoring.time_samplers import LogNormalTimes
from scoring.weightings import EDMWeighting
from training.ema import EMA
from training.state import create_state
from training.step import make_step

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PROCESS = GaussianProcess(EDM())
BATCH, CLASSES = 64, 2
AVERAGE = EMA(half_lives=(2000,), ramp=float("inf"))


def model(params, key=None):
    """A denoiser whose parameters are, class by class, mean and log variance of the Gaussian it belongs to."""
    def denoise(x_t, t, label):
        mean, variance = params["mean"][label], jnp.exp(params["log_variance"][label])
        return mean + variance / (variance + expand(PROCESS.sigma(t), x_t) ** 2) * (x_t - mean)

    return denoise


TEACHER_PARAMS = {
    "mean": jnp.array([[1.0, -0.5], [-0.8, 0.6]]),
    "log_variance": jnp.log(jnp.array([[0.25, 0.5], [0.4, 0.3]])),
}
START_PARAMS = {"mean": jnp.array([[0.2, 0.3], [0.1, -0.2]]), "log_variance": jnp.full((2, 2), -1.5)}


def parts(objective=DSM):
    objective = objective(weighting=EDMWeighting(sigma_data=0.5), time_sampler=LogNormalTimes(), reduction="sum")
    return Parts(network=model, teacher=model, guide=lambda denoise: denoise, process=PROCESS, objective=objective,
                 num_classes=CLASSES)  # fmt: skip


def copy_of(params):
    return jax.tree.map(jnp.copy, params)


def training(method, *, which=slice(None), optimizer=None, start=START_PARAMS, objective=DSM):
    """(state, frozen, step) of training with some of the method's updates; batches give only their size."""
    roles = (AUXILIARY, GENERATOR)
    optimizers = {role: optimizer or optax.adam(0.01) for role in roles}
    state = create_state({role: copy_of(start) for role in roles}, optimizers, AVERAGE, (GENERATOR,))
    step = make_step(method.updates(parts(objective))[which], optimizers, AVERAGE, seed=0, batch_size=BATCH)
    batch = {"image": jnp.zeros((BATCH, 2)), "label": jnp.zeros(BATCH, jnp.int32)}
    frozen = {TEACHER: copy_of(TEACHER_PARAMS)}
    return state, frozen, jax.jit(lambda state: step(state, frozen, batch))


def equal(a, b):
    leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(leaves) == len(others) and all(np.array_equal(x, y) for x, y in zip(leaves, others))


def test_the_generators_update_moves_the_generator_alone():
    """To the bit: the auxiliary network, its optimiser and the teacher stay."""
    state, frozen, step = training(ScoreImplicitMatching(auxiliary_warmup=0), which=slice(1, 2))
    new, _ = step(state)
    assert not equal(new.params[GENERATOR], state.params[GENERATOR])
    assert equal(new.params[AUXILIARY], state.params[AUXILIARY])
    assert equal(new.opt_state[AUXILIARY], state.opt_state[AUXILIARY])
    assert equal(frozen[TEACHER], TEACHER_PARAMS)


def test_updates_give_no_gradient_to_the_other_networks():
    """The auxiliary network and the teacher in the generator's loss; generator and teacher in the auxiliary's."""
    others = {TEACHER: TEACHER_PARAMS, GENERATOR: START_PARAMS,
              AUXILIARY: jax.tree.map(lambda x: 0.7 * x + 0.1, START_PARAMS)}  # fmt: skip
    batch = {"image": jnp.zeros((BATCH, 2))}
    for update in ScoreImplicitMatching().updates(parts()):
        def loss(others, params, update=update):
            return update.loss(params, others, batch, jax.random.key(0))[0]

        slopes, own = jax.jit(jax.grad(loss, (0, 1)))(others, others[update.role])
        assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(slopes)), update.role
        assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(own)) > 1e-4, update.role


def test_only_the_teacher_is_guided():
    """With a guidance that gives the auxiliary network back, delta is zero and the generator has no gradient."""
    others = {TEACHER: TEACHER_PARAMS, GENERATOR: START_PARAMS, AUXILIARY: START_PARAMS}
    batch = {"image": jnp.zeros((BATCH, 2))}

    def gradient_of(number, guide):
        update = ScoreImplicitMatching().updates(dataclasses.replace(parts(), guide=guide))[number]
        slopes = jax.jit(jax.grad(lambda params: update.loss(params, others, batch, jax.random.key(0))[0]))
        return slopes(others[update.role])

    zero = jax.tree.map(jnp.zeros_like, START_PARAMS)
    assert equal(gradient_of(1, lambda denoise: model(START_PARAMS)), zero)
    assert not equal(gradient_of(1, lambda denoise: denoise), zero)
    assert equal(gradient_of(0, lambda denoise: model(START_PARAMS)), gradient_of(0, lambda denoise: denoise))


def test_dropout_is_on_in_the_network_that_is_trained_alone():
    calls = []

    def network(params, key):
        calls.append((next(role for role in (GENERATOR, AUXILIARY) if role in params), key is not None))
        return model(params)

    others = {role: START_PARAMS | {role: jnp.zeros(1)} for role in (TEACHER, GENERATOR, AUXILIARY)}
    for update in ScoreImplicitMatching().updates(dataclasses.replace(parts(), network=network)):
        calls.clear()
        batch = {"image": jnp.zeros((BATCH, 2))}
        jax.eval_shape(update.loss, others[update.role], others, batch, jax.random.key(0))
        assert sorted(calls) == [(AUXILIARY, update.role == AUXILIARY), (GENERATOR, update.role == GENERATOR)]


def test_warmup_holds_the_generator_for_exactly_that_many_steps():
    """To the bit, with its optimiser and average; then it moves. The auxiliary network moves from the first step.

    It moves twice in each, as Adam counts, every time on images of its own; the teacher never does.
    """
    seen = []

    class Spy(DSM):
        def __call__(self, denoise, process, x0, label, key):
            jax.debug.callback(lambda x: seen.append(np.asarray(x).tobytes()), x0)
            return super().__call__(denoise, process, x0, label, key)

    method = ScoreImplicitMatching(auxiliary_warmup=3, auxiliary_updates=2)
    state, frozen, step = training(method, objective=Spy)
    start = state
    for number in range(5):
        new, metrics = step(state)
        waits = number < 3
        for part in ("params", "opt_state", "ema"):
            assert equal(getattr(new, part)[GENERATOR], getattr(start, part)[GENERATOR]) == waits, (number, part)
        assert (float(metrics["generator/gradient_norm"]) == 0) == waits, number
        assert not equal(new.params[AUXILIARY], state.params[AUXILIARY])
        state = new
    counts = [int(new.opt_state[role][0].count) for role in (AUXILIARY, GENERATOR)]
    assert counts == [5 * 2, 5 - 3] and int(new.skipped) == 0
    jax.effects_barrier()
    assert len(set(seen)) == 5 * 2
    assert equal(frozen[TEACHER], TEACHER_PARAMS)


def moments(params, level=2.5):
    """Mean and standard deviation, class by class, of the images: g(z) is affine in z."""
    variance = np.exp(np.asarray(params["log_variance"], np.float64))
    return (np.asarray(params["mean"]) * level**2 / (variance + level**2), variance * level / (variance + level**2))


MEMBERS = {
    "pseudo_huber": ScoreImplicitMatching(),
    "dmd": ScoreImplicitMatching(distance="l2", through_scores=False, normalizer="l1"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_training_takes_a_wrong_generator_to_the_teacher(name):
    """The images of each class get the mean and the spread that the teacher has for it, starting far from both."""
    method = dataclasses.replace(MEMBERS[name], auxiliary_warmup=20)
    state, _, step = training(method, optimizer=optax.adam(0.02, b1=0.0))
    target = np.asarray(TEACHER_PARAMS["mean"]), np.exp(0.5 * np.asarray(TEACHER_PARAMS["log_variance"]))
    for _ in range(500):
        state, _ = step(state)
    (averaged,) = state.ema[GENERATOR].values()
    for ours, before, expected in zip(moments(averaged), moments(START_PARAMS), target):
        assert np.abs(before - expected).max() > 0.3
        np.testing.assert_allclose(ours, expected, atol=0.1)
