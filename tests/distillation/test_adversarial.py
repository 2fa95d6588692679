"""The adversarial term of Score Implicit Matching, by what it must be for Gaussians and by who may move whom.

The values of D are put in by hand where the optimum is known: D = log p - log q of data p and images q on the line, all
expectations by the trapezoidal rule in float64. The method is tried on a network of one hidden layer, whose values are
its features. On eight virtual devices this file runs as a program.
"""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import kstest, norm, pearsonr, vonmises

from diffusion.base import expand
from diffusion.denoiser import NetworkDenoiser
from diffusion.process import GaussianProcess
from diffusion.schedules import EDM
from distillation import adversarial
from distillation import score_implicit_matching as module
from distillation.base import AUXILIARY, DISCRIMINATOR, GENERATOR, TEACHER, Parts
from distillation.score_implicit_matching import ScoreImplicitMatching
from scoring.dsm import DSM
from scoring.time_samplers import LogNormalTimes
from scoring.weightings import EDMWeighting
from training.ema import EMA
from training.mesh import make_mesh, put_batch
from training.state import create_state
from training.step import make_step

pytestmark = pytest.mark.usefixtures("quick_to_compile")


# --- the losses, at the optimal discriminator -------------------------------------------------------------------------

X = np.linspace(-14, 14, 5601)
STEP = X[1] - X[0]
DATA, IMAGES = norm(0.5, 0.8), norm(-0.6, 1.1)


def log_ratio(images=IMAGES):
    return DATA.logpdf(X) - images.logpdf(X)


def discriminator_value(values):
    """E over data and images of the production loss of D; an infinite D leaves one of the two out."""
    infinite = jnp.array([jnp.inf])
    of_data = jax.vmap(lambda d: adversarial.discriminator_loss(d[None], -infinite))(values)
    of_images = jax.vmap(lambda d: adversarial.discriminator_loss(infinite, d[None]))(values)
    return STEP * (DATA.pdf(X) @ of_data + IMAGES.pdf(X) @ of_images)


def test_the_optimal_discriminators_loss_is_that_of_the_jensen_shannon_divergence(double):
    """2 log 2 - 2 JSD, by scipy; with the sign turned it is more by the sum of both KL, known for Gaussians."""
    value = float(discriminator_value(log_ratio()))
    divergence = jensenshannon(DATA.pdf(X), IMAGES.pdf(X)) ** 2
    assert 0.1 < divergence < 0.5
    assert value == pytest.approx(2 * np.log(2) - 2 * divergence, rel=1e-9)
    ratio, gap = (0.8 / 1.1) ** 2, 1.1**2
    both = 0.5 * (ratio + 1 / ratio - 2) + 0.5 * gap * (1 / 0.8**2 + 1 / 1.1**2)
    assert float(discriminator_value(-log_ratio())) == pytest.approx(value + both, rel=1e-9)


@pytest.mark.parametrize("direction", [np.ones_like, lambda x: x, lambda x: x**2 / 4, lambda x: np.sin(3 * x)],
                         ids=["constant", "slope", "curvature", "wave"])  # fmt: skip
def test_every_other_discriminator_has_a_larger_loss(direction, double):
    """The loss is flat at the optimum and rises on both sides; elsewhere it is not flat."""
    best, change = log_ratio(), direction(X)
    slope = jax.grad(lambda size, start: discriminator_value(start + size * change))
    assert abs(slope(0.0, best)) < 1e-9
    assert min(abs(slope(size, best)) for size in (-0.3, 0.3)) > 1e-2
    for size in (-0.3, 0.3):
        assert discriminator_value(best + size * change) > discriminator_value(best) + 1e-3


def student_gradient(mean, losses=adversarial.student_losses, sign=1.0):
    """d / d mean of the student's loss for images mean + 1.1 z, at the optimal D of this mean held constant."""
    z, (variance, spread) = X[np.abs(X) < 9], (0.8**2, 1.1**2)

    def value(moving):
        x = moving + 1.1 * z
        d = -((x - 0.5) ** 2) / (2 * variance) + (x - mean) ** 2 / (2 * spread) + np.log(1.1 / 0.8)
        return STEP * jnp.sum(norm.pdf(z) * losses(sign * d))

    return float(jax.grad(value)(mean))


def saturating(of_images):
    """The other loss of Goodfellow et al. 2014: minus the discriminator's, with weight p / (p + q)."""
    return -jax.nn.softplus(of_images)


def test_the_students_gradient_is_that_of_the_log_ratio_with_the_weight_of_the_images(double):
    """-grad log(p / q), mean over images with weight q / (p + q): numpy alone. Wrong signs and weights are seen."""
    p, q = DATA.pdf(X), IMAGES.pdf(X)
    slope = (X - 0.5) / 0.8**2 - (X + 0.6) / 1.1**2
    expected = STEP * np.sum(q * q / (p + q) * slope)
    assert expected < -0.1  # the data are to the right
    assert student_gradient(-0.6) == pytest.approx(expected, rel=1e-9)
    for wrong in (student_gradient(-0.6, sign=-1.0), student_gradient(-0.6, losses=saturating)):
        assert wrong != pytest.approx(expected, rel=0.05)


def test_the_student_is_pulled_towards_the_data_from_everywhere(double):
    """By the sign; and far away, where D is sure, as hard as the log ratio, when the saturating loss has given up."""
    for mean in (-4.0, -0.6, 0.3, 0.7, 4.0):
        assert np.sign(student_gradient(mean)) == np.sign(mean - 0.5)
        assert np.sign(student_gradient(mean, sign=-1.0)) == -np.sign(mean - 0.5)
    assert abs(student_gradient(0.5)) < 1e-9
    far = (9.5 - 0.5) / 0.8**2  # of E_q (x - 0.5) / 0.8^2 - (x - mean) / 1.1^2
    assert student_gradient(9.5) == pytest.approx(far, rel=1e-3)
    assert abs(student_gradient(9.5, losses=saturating)) < 1e-3 * far


def test_losses_are_means_over_positions_and_finite_for_every_value():
    """Positions that say the same count once; an image's loss is its own; no overflow where D is very sure."""
    draw = np.random.default_rng(0)
    data, images = (jnp.asarray(3 * draw.normal(size=5), jnp.float32) for _ in range(2))
    copies = [jnp.broadcast_to(values[:, None, None], (5, 2, 3)) for values in (data, images)]
    np.testing.assert_allclose(adversarial.discriminator_loss(*copies), adversarial.discriminator_loss(data, images),
                               rtol=1e-5)  # fmt: skip
    np.testing.assert_allclose(adversarial.student_losses(copies[1]), adversarial.student_losses(images), rtol=1e-5)
    one = copies[1].at[1, 0, 0].add(1.0)
    changed = adversarial.student_losses(one) != adversarial.student_losses(copies[1])
    np.testing.assert_array_equal(changed, np.arange(5) == 1)
    sure = jnp.array([-1e5, 1e5])
    np.testing.assert_allclose(adversarial.student_losses(sure), [1e5, 0.0], atol=1e-6)
    np.testing.assert_allclose(adversarial.discriminator_loss(sure, sure), 1e5, rtol=1e-6)
    slopes = jax.grad(adversarial.discriminator_loss, (0, 1))(sure, sure)
    np.testing.assert_allclose(slopes, [[-0.5, 0.0], [0.0, 0.5]], atol=1e-6)


# --- the head ---------------------------------------------------------------------------------------------------------


def random_head(seed, width):
    """A head that has an opinion."""
    draw = np.random.default_rng(seed)
    start = adversarial.initial_head(jax.random.key(seed), width)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.5 * draw.normal(size=leaf.shape), leaf.dtype), start)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 2, 6)], ids=["vector", "tokens", "image"])
def test_the_head_says_zero_at_first_and_then_judges_each_position_for_itself(shape):
    """Exactly zero whatever it is shown. Moving the positions of the features moves the judgements."""
    features = jnp.asarray(100 * np.random.default_rng(1).normal(size=(3, *shape)), jnp.float32)
    head = adversarial.initial_head(jax.random.key(0), 6)
    np.testing.assert_array_equal(adversarial.logits(head, features), np.zeros((3, *shape[:-1])))
    values = np.asarray(adversarial.logits(random_head(0, 6), features)).reshape(3, -1)
    assert np.unique(values).size == values.size
    order = np.random.default_rng(2).permutation(values.shape[1])
    shuffled = features.reshape(3, -1, 6)[:, order]
    np.testing.assert_allclose(adversarial.logits(random_head(0, 6), shuffled), values[:, order], rtol=1e-4, atol=1e-5)


def test_the_head_is_blind_to_the_size_and_the_mean_of_the_features():
    """Those of each position. Whatever scale they have, and where they are constant, its gradient is finite."""
    head, features = random_head(1, 6), jnp.asarray(np.random.default_rng(3).normal(size=(4, 6)), jnp.float32)
    values = adversarial.logits(head, features)
    size, mean = jnp.array([[0.5], [3.0], [40.0], [1.0]]), jnp.array([[0.0], [-7.0], [20.0], [1.0]])
    np.testing.assert_allclose(adversarial.logits(head, size * features + mean), values, rtol=1e-3, atol=1e-3)
    assert np.abs(adversarial.logits(head, -features) - values).max() > 0.1
    assert np.abs(adversarial.logits(head, features.at[:, 0].add(1.0)) - values).min() > 1e-3
    for constant in (jnp.zeros((2, 6)), jnp.full((2, 6), 7.0)):
        slopes = jax.grad(lambda h, f: jnp.sum(adversarial.logits(h, f)), (0, 1))(head, constant)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


KAPPA, ANGLE = 2.0, 1.0


def on_a_circle(angles, seed):
    """Features of width 3 whose direction, once mean and size are gone, is this angle; both are drawn at random."""
    basis = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    draw = np.random.default_rng(seed)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1) @ basis
    size, mean = draw.uniform(1, 4, size=(len(angles), 1)), draw.normal(size=(len(angles), 1))
    return jnp.asarray(size * directions + mean, jnp.float32)


@jax.jit
def trained_head(of_data, of_images):
    """(the loss before each of 400 steps of Adam on the head alone, the values of the last head)."""
    optimizer, head = optax.adam(0.05), adversarial.initial_head(jax.random.key(0), 3)

    def loss(head):
        return adversarial.discriminator_loss(*(adversarial.logits(head, h) for h in (of_data, of_images)))

    def step(carry, _):
        head, state = carry
        value, slopes = jax.value_and_grad(loss)(head)
        changes, state = optimizer.update(slopes, state)
        return (optax.apply_updates(head, changes), state), value

    (head, _), values = jax.lax.scan(step, (head, optimizer.init(head)), None, length=400)
    return values, *(adversarial.logits(head, h) for h in (of_data, of_images))


def test_a_trained_head_reaches_the_best_loss_and_accuracy_that_there_are():
    """Of von Mises distributions on the circle that is left of three features, by quadrature; they begin at 2 log 2.

    Where images are data nothing is learnt.
    """
    theta = np.linspace(-np.pi, np.pi, 8001)[:-1]
    weight = theta[1] - theta[0]
    p, q = (vonmises.pdf(theta, KAPPA, loc=loc) for loc in (ANGLE, -ANGLE))
    ranks = (np.arange(1000) + 0.5) / 1000
    angles = [np.interp(ranks, weight * (np.cumsum(density) - 0.5 * density), theta) for density in (p, q)]
    data, images = (on_a_circle(angle, seed) for seed, angle in enumerate(angles))
    best = 2 * np.log(2) - 2 * jensenshannon(p, q) ** 2
    accuracy = 0.5 * weight * np.sum(np.maximum(p, q))
    values, of_data, of_images = map(np.asarray, trained_head(data, images))
    assert values[0] == pytest.approx(2 * np.log(2), rel=1e-6) and best < 0.7 * values[0]
    assert best - 2e-3 < values[-1] < best + 0.01
    assert (np.mean(of_data > 0) + np.mean(of_images < 0)) / 2 == pytest.approx(accuracy, abs=0.01)
    np.testing.assert_allclose(of_data, 2 * KAPPA * np.sin(ANGLE) * np.sin(angles[0]), atol=0.5)  # log p / q
    values, *_ = trained_head(data, data)
    assert min(values) > 2 * np.log(2) - 1e-5


# --- the method -------------------------------------------------------------------------------------------------------

PROCESS = GaussianProcess(EDM())
WIDTH, CLASSES, BATCH = 6, 3, 16
ROLES = (AUXILIARY, DISCRIMINATOR, GENERATOR)


def network(params, key=None):
    """One hidden layer, whose values are the features."""
    def hidden(x, noise_level, label):
        seen = x @ params["in"] + noise_level[:, None] * params["level"]
        return jnp.tanh(seen if label is None else seen + params["label"][label])

    def output(x, noise_level, label):
        return hidden(x, noise_level, label) @ params["out"]

    return NetworkDenoiser(output, PROCESS, "edm", 0.5, hidden=hidden)


def make_params(seed):
    draw = np.random.default_rng(seed)
    shapes = {"in": (2, WIDTH), "level": (WIDTH,), "label": (CLASSES, WIDTH), "out": (WIDTH, 2)}
    return {name: jnp.asarray(0.7 * draw.normal(size=shape), float) for name, shape in shapes.items()}


def everyone():
    """The parameters of each role, all different."""
    return {name: make_params(seed) for seed, name in enumerate((TEACHER, GENERATOR, AUXILIARY))} | {
        DISCRIMINATOR: random_head(3, WIDTH)
    }


def make_batch(count=BATCH):
    draw = np.random.default_rng(5)
    return {"image": jnp.asarray(draw.normal(size=(count, 2)), float), "label": jnp.arange(count) % 2}


def make_parts(network=network, num_classes=CLASSES):
    objective = DSM(weighting=EDMWeighting(sigma_data=0.5), time_sampler=LogNormalTimes(), reduction="sum")
    return Parts(network=network, teacher=lambda params: network(params, None), guide=lambda denoise: denoise,
                 process=PROCESS, objective=objective, num_classes=num_classes)  # fmt: skip


def update_of(role, weight=1.0, parts=None, **options):
    method = ScoreImplicitMatching(adversarial_weight=weight, **options)
    (update,) = [update for update in method.updates(parts or make_parts()) if update.role == role]
    return update


@functools.cache
def compiled(role, weight):
    """(parameters of the role, everyone's) -> ((loss, metrics), gradient), always with the same draws."""
    update = update_of(role, weight)
    return jax.jit(jax.value_and_grad(lambda p, o: update.loss(p, o, make_batch(), jax.random.key(0)), has_aux=True))


def slopes_of(weight, others):
    """(loss, metrics, gradient) of the generator's update, each time with the same images, times and noise."""
    (loss, metrics), gradient = compiled(GENERATOR, weight)(others[GENERATOR], others)
    return float(loss), {name: float(value) for name, value in metrics.items()}, gradient


def without_head(others):
    return {name: params for name, params in others.items() if name != DISCRIMINATOR}


def inner(one, other):
    return float(sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)))


def test_without_a_weight_there_is_no_third_role_and_no_need_for_features():
    """Its updates, in order: auxiliary, discriminator, generator; the discriminator does not wait for the warm-up."""
    def updates(**options):
        method = ScoreImplicitMatching(auxiliary_updates=3, auxiliary_warmup=7, **options)
        return [(update.role, update.repeats, update.start) for update in method.updates(make_parts())]

    assert updates() == updates(adversarial_weight=0.0) == [(AUXILIARY, 3, 0), (GENERATOR, 1, 7)]
    assert updates(adversarial_weight=0.1) == [(AUXILIARY, 3, 0), (DISCRIMINATOR, 1, 0), (GENERATOR, 1, 7)]

    def featureless(params, key):
        return dataclasses.replace(network(params), hidden=None)

    others = without_head(everyone())
    for role in (AUXILIARY, GENERATOR):
        update = update_of(role, 0.0, make_parts(featureless))
        _, metrics = jax.eval_shape(update.loss, others[role], others, make_batch(), jax.random.key(0))
        assert "adversarial" not in metrics


@pytest.mark.parametrize("weight", [float("nan"), -0.1, -float("inf")])
def test_a_weight_that_is_no_weight_is_refused_by_name(weight):
    with pytest.raises(ValueError, match=rf"^adversarial_weight = {weight} must be at least 0$"):
        ScoreImplicitMatching(adversarial_weight=weight)
    with pytest.raises(ValueError, match=r"^adversarial_weight = inf must be finite$"):
        ScoreImplicitMatching(adversarial_weight=float("inf"))


def test_the_term_comes_with_its_weight_and_its_gradient_is_linear_in_it(double):
    """Under the same key; the images, hence all else that is reported, are those without it."""
    others = everyone()
    plain, metrics, base = slopes_of(0.0, without_head(others))
    (one, of_one, slope_one), (four, of_four, slope_four) = (slopes_of(weight, others) for weight in (1.0, 4.0))
    term = of_one["adversarial"]
    assert term > 0.1 and of_four["adversarial"] == term
    assert one - plain == pytest.approx(term, rel=1e-10)
    assert four - plain == pytest.approx(4 * term, rel=1e-10)
    assert of_four["delta"] == pytest.approx(metrics["delta"], rel=1e-12)
    assert of_four["pull"] != pytest.approx(metrics["pull"], rel=1e-3)  # the gradient of all of it
    single, fourfold = (jax.tree.map(jnp.subtract, slope, base) for slope in (slope_one, slope_four))
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(fourfold)):
        np.testing.assert_allclose(4 * a, b, atol=1e-6 * np.abs(b).max())  # features are float32
    assert inner(single, single) > 1e-6 * inner(base, base)


def test_the_terms_gradient_is_that_of_its_value_through_the_noised_images(double):
    """By central differences of the reported term along random directions; networks answer in float32."""
    others, step = everyone(), 3e-3
    base, full = (slopes_of(*case)[2] for case in ((0.0, without_head(others)), (1.0, others)))
    ours = jax.tree.map(jnp.subtract, full, base)

    def term(params):
        return slopes_of(1.0, others | {GENERATOR: params})[1]["adversarial"]

    wrongs = (base, full, jax.tree.map(jnp.negative, ours))
    seen = [False] * len(wrongs)  # by chance a wrong gradient may be right along one direction
    for seed in range(3):
        direction = make_params(100 + seed)
        ends = [jax.tree.map(lambda x, d, by=by: x + by * d, others[GENERATOR], direction) for by in (step, -step)]
        slope = (term(ends[0]) - term(ends[1])) / (2 * step)
        assert abs(slope) > 1e-2
        assert inner(ours, direction) == pytest.approx(slope, rel=1e-3)
        seen = [one or inner(wrong, direction) != pytest.approx(slope, rel=0.1) for one, wrong in zip(seen, wrongs)]
    assert all(seen)


def test_a_head_that_says_the_same_to_everything_has_known_losses_and_pulls_at_nothing(double):
    """D = c: log(1 + e^-c) in the generator's loss, that and log(1 + e^c) in the discriminator's."""
    c, others = 0.7, everyone()
    start = adversarial.initial_head(jax.random.key(0), WIDTH)
    others[DISCRIMINATOR] = start | {"out": start["out"] | {"bias": jnp.array([c])}}
    _, metrics, gradient = slopes_of(4.0, others)
    assert metrics["adversarial"] == pytest.approx(np.log1p(np.exp(-c)), rel=1e-6)
    *_, base = slopes_of(0.0, without_head(others))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(base)):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)
    (loss, metrics), gradient = compiled(DISCRIMINATOR, 1.0)(others[DISCRIMINATOR], others)
    assert float(loss) == pytest.approx(np.log1p(np.exp(-c)) + np.log1p(np.exp(c)), rel=1e-6)
    assert metrics["accuracy"] == 0.5  # all the data, none of the images
    # E of the derivatives of both, -sigmoid(-c) and sigmoid(c).
    assert float(gradient["out"]["bias"][0]) == pytest.approx(np.tanh(c / 2), rel=1e-6)


def gradients(role):
    """(gradient in everyone else, gradient in its own) of an update's loss."""
    update, others = update_of(role), everyone()

    def loss(others, params):
        return update.loss(params, others, make_batch(), jax.random.key(0))[0]

    return jax.jit(jax.grad(loss, (0, 1)))(others, others[role])


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_no_update_has_a_gradient_in_another_network():
    """Exactly none: in the head and in the auxiliary network of the generator's, in all networks of the head's."""
    for role in (GENERATOR, DISCRIMINATOR):
        slopes, own = gradients(role)
        assert set(slopes) == {TEACHER, *ROLES}
        assert largest(slopes) == 0 and min(map(largest, own.values())) > 1e-4, role


def test_a_gradient_that_leaks_would_be_seen(monkeypatch):
    """The control of the test above: without its stops, there are gradients in all who take part."""
    monkeypatch.setattr(jax.lax, "stop_gradient", lambda x: x)
    slopes, _ = gradients(DISCRIMINATOR)
    assert min(largest(slopes[name]) for name in (AUXILIARY, GENERATOR)) > 1e-4

    def naive(losses, x0):
        of_image, more = losses(x0)
        return jnp.mean(of_image), jnp.zeros(()), more

    monkeypatch.setattr(module, "through_images", naive)
    slopes, _ = gradients(GENERATOR)
    assert min(largest(slopes[name]) for name in (AUXILIARY, DISCRIMINATOR, TEACHER)) > 1e-4


def hash_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("role", [DISCRIMINATOR, GENERATOR])
def test_a_step_of_one_update_moves_its_role_alone(role):
    """To the bit, optimisers included; by the production step."""
    params = everyone()
    frozen = {TEACHER: params.pop(TEACHER)}
    optimizers, average = dict.fromkeys(ROLES, optax.adam(0.01)), EMA(half_lives=(2000,), ramp=float("inf"))
    state = create_state(params, optimizers, average, (GENERATOR,))
    step = make_step((update_of(role, auxiliary_warmup=0),), optimizers, average, seed=0, batch_size=BATCH)
    new, metrics = jax.jit(step)(state, frozen, make_batch())
    for name in ROLES:
        assert (hash_of(new.params[name]) != hash_of(state.params[name])) == (name == role)
        assert (hash_of(new.opt_state[name]) != hash_of(state.opt_state[name])) == (name == role)
    assert {name.split("/")[0] for name in metrics if "/" in name} == {role} and int(new.skipped) == 0


# --- what the discriminator is shown ----------------------------------------------------------------------------------


def spying(seen):
    """`network`, which notes what it is asked: (role, "output" or "hidden", input, noise level, label, key)."""
    def make(params, key):
        denoise, role = network(params), next(name for name in (TEACHER, *ROLES) if name in params)

        def watched(name):
            def call(x, noise_level, label):
                def note(x, c, y=None):
                    seen.append((role, name, np.asarray(x), np.asarray(c), y, key))

                jax.debug.callback(note, x, noise_level, *(() if label is None else (label,)))
                return getattr(denoise, {"output": "network"}.get(name, name))(x, noise_level, label)

            return call

        return dataclasses.replace(denoise, network=watched("output"), hidden=watched("hidden"))

    return make


def shown(role, batch, num_classes=CLASSES, **options):
    """What the networks were asked in one evaluation of an update, by role and name in order."""
    seen, others = [], everyone()
    others |= {name: others[name] | {name: jnp.zeros(1)} for name in (TEACHER, GENERATOR, AUXILIARY)}
    update = update_of(role, parts=make_parts(spying(seen), num_classes), **options)
    update.loss(others[role], others, batch, jax.random.key(7))
    jax.effects_barrier()
    calls = {}
    for name, what, *call in seen:
        calls.setdefault((name, what), []).append(call)
    return calls


def clean(call, sigma):
    """x_t of what the network saw: the input scale of EDM [Karras et al. 2022, table 1] taken out, float64."""
    return np.float64(call[0]) * np.sqrt(sigma**2 + 0.25)


def test_the_discriminator_is_shown_data_and_images_with_their_own_labels_at_the_same_noise_levels():
    """Each with noise of its own; the times are those at which the generator is judged, up to `time_upper`."""
    batch = make_batch(4096)
    calls = shown(DISCRIMINATOR, batch, time_upper=0.6)
    assert set(calls) == {(GENERATOR, "output"), (AUXILIARY, "hidden")}
    (made,), (of_data, of_images) = calls[GENERATOR, "output"], calls[AUXILIARY, "hidden"]
    np.testing.assert_array_equal(of_data[1], of_images[1])
    np.testing.assert_array_equal(of_data[2], batch["label"])
    np.testing.assert_array_equal(of_images[2], made[2])
    np.testing.assert_allclose(np.bincount(made[2], minlength=CLASSES) / 4096, 1 / 3, atol=0.03)
    assert all(call[3] is None for call in (made, of_data, of_images))  # without dropout
    # The noise level is ln(sigma) / 4, and Karras' scale is sigma^(1 / 7).
    sigma, (low, high) = np.exp(4 * np.float64(of_data[1])), np.array([0.002, 80.0]) ** (1 / 7)
    scale = (sigma ** (1 / 7) - low) / (high - low)
    assert kstest(scale, "uniform", (0, 0.6)).pvalue > 1e-3 and kstest(scale, "uniform", (0, 0.65)).pvalue < 1e-3
    start = clean(made, 2.5)
    images = network(everyone()[GENERATOR])(jnp.asarray(start, jnp.float32), jnp.full(4096, time_of(2.5)), made[2])
    draws = [(clean(call, sigma[:, None]) - np.float64(x0)) / sigma[:, None]
             for call, x0 in ((of_data, batch["image"]), (of_images, images))] + [start / 2.5]  # fmt: skip
    for number, noise in enumerate(draws):
        assert kstest(noise.ravel(), "norm").pvalue > 1e-3, number
        assert pearsonr(noise.ravel(), draws[number - 1].ravel()).pvalue > 1e-3, number
    wrong = (clean(of_images, sigma[:, None]) - np.float64(batch["image"])) / sigma[:, None]
    assert kstest(wrong.ravel(), "norm").pvalue < 1e-3


def time_of(sigma):
    return float(PROCESS.time_of_logsnr(np.float64(-2 * np.log(sigma))))


def test_in_the_generators_loss_the_head_is_shown_what_the_score_is_asked_at():
    """The same noised images, noise levels and labels; the auxiliary network has no dropout, the generator has."""
    calls = shown(GENERATOR, make_batch())
    (made,), (hidden,) = calls[GENERATOR, "output"], calls[AUXILIARY, "hidden"]
    (score,), (teacher,) = calls[AUXILIARY, "output"], calls[TEACHER, "output"]
    for call in (score, teacher):
        for ours, theirs in zip(hidden[:3], call[:3]):
            np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(hidden[2], made[2])
    assert made[3] is not None and hidden[3] is score[3] is None


def test_unlabelled_data_have_no_labels_anywhere():
    calls = shown(DISCRIMINATOR, {"image": make_batch()["image"]}, num_classes=0)
    assert [call[2] for name in calls for call in calls[name]] == [None, None, None]


def test_accuracy_is_the_share_of_right_signs():
    """Data far to the right and images far to the left, beyond all noise, by a head that looks where they are."""
    def sided(params, key):
        def sides(x, noise_level, label):
            return jnp.stack([x[:, 0], -x[:, 0]], axis=-1)

        return NetworkDenoiser(lambda x, c, label: 0 * x - 1e5, PROCESS, "x0", 0.5, hidden=sides)

    eye = {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}
    batch = {"image": jnp.full((BATCH, 1), 1e5)}

    def judged(out, image=batch["image"]):
        head = {"hidden": eye, "out": {"kernel": jnp.array(out)[:, None], "bias": jnp.zeros(1)}}
        update = update_of(DISCRIMINATOR, parts=make_parts(sided, 0))
        return update.loss(head, everyone(), {"image": image}, jax.random.key(0))[1]

    right, wrong = judged([1.0, -1.0]), judged([-1.0, 1.0])
    assert right["accuracy"] == 1 and wrong["accuracy"] == 0
    # D is +-(silu(1) - silu(-1)) = +-1: log(1 + e^-1) or log(1 + e) of each
    assert float(right["loss"]) == pytest.approx(2 * np.log1p(np.exp(-1)), rel=1e-5)
    assert float(wrong["loss"]) == pytest.approx(2 * np.log1p(np.exp(1)), rel=1e-5)
    some = batch["image"].at[: BATCH // 4].multiply(-1.0)
    assert judged([1.0, -1.0], some)["accuracy"] == pytest.approx(0.5 * (0.75 + 1))


# --- training ---------------------------------------------------------------------------------------------------------

DATA_MEAN, TEACHER_MEAN, STD = 1.0, 0.0, 0.4
PROJECTION = np.random.default_rng(8).normal(size=(3, 8))


class Gaussian:
    """The denoiser of N(mean, 0.4^2) with the mean as its parameter; features of the noised image and its level."""

    def __init__(self, params, key=None):
        self.mean = params["mean"]

    def __call__(self, x_t, t, label=None):
        return self.mean + STD**2 / (STD**2 + expand(PROCESS.sigma(t), x_t) ** 2) * (x_t - self.mean)

    def features(self, x_t, t, label):
        scaled = x_t[:, 0] / jnp.sqrt(PROCESS.sigma(t) ** 2 + 1.0)
        return jnp.tanh(jnp.stack([scaled, PROCESS.conditioning(t), jnp.ones_like(t)], axis=-1) @ PROJECTION)


def where_training_ends(weight, steps=400):
    """The mean of the generator's images, and the last metrics, after training on data that the teacher has wrong."""
    start = {"mean": jnp.array([TEACHER_MEAN])}
    params = {GENERATOR: start, AUXILIARY: start}
    if weight:
        params[DISCRIMINATOR] = adversarial.initial_head(jax.random.key(0), 8)
    method = ScoreImplicitMatching(adversarial_weight=weight, auxiliary_warmup=50)
    optimizers, average = dict.fromkeys(params, optax.adam(0.02, b1=0.5)), EMA(half_lives=(2000,), ramp=float("inf"))
    state = create_state(jax.tree.map(jnp.copy, params), optimizers, average, (GENERATOR,))
    step = make_step(method.updates(make_parts(Gaussian, 0)), optimizers, average, seed=0, batch_size=256)

    @jax.jit
    def run(state):
        def one(state, key):
            rows = DATA_MEAN + STD * jax.random.normal(key, (256, 1))
            return step(state, {TEACHER: start}, {"image": rows})

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(1), steps))

    state, metrics = run(state)
    assert int(state.skipped) == 0
    return float(state.params[GENERATOR]["mean"][0]), metrics


def test_data_take_a_student_beyond_its_teacher():
    """The teacher is off by 2.5 deviations. Without the term the student stays with it.

    The head begins at 2 log 2, learns while the generator waits, and has a harder time when the images come closer.
    """
    alone, _ = where_training_ends(0.0)
    assert abs(alone - TEACHER_MEAN) < 0.1
    taught, metrics = where_training_ends(20.0)
    assert abs(taught - DATA_MEAN) < 0.35, taught
    loss = metrics[f"{DISCRIMINATOR}/loss"]
    assert float(loss[0]) == pytest.approx(2 * np.log(2), rel=1e-5)
    assert loss[30:50].mean() + 0.02 < loss[-100:].mean() < loss[0] - 0.02


# --- devices ----------------------------------------------------------------------------------------------------------

DEVICES = 8


def results():
    """{name: value} of losses, metrics and gradients of both updates, for one global batch on all devices there are."""
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        batch = put_batch({name: np.asarray(rows) for name, rows in make_batch(32).items()}, mesh)
        assert len(batch["image"].sharding.device_set) == jax.device_count()
        updates = [update_of(role) for role in (DISCRIMINATOR, GENERATOR)]

        def both(others, batch):
            return {update.role: jax.value_and_grad(update.loss, has_aux=True)(others[update.role], others, batch,
                                                                               jax.random.key(0))
                    for update in updates}  # fmt: skip

        tree = jax.jit(both)(everyone(), batch)
    values = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return values


@pytest.mark.slow
def test_eight_devices_are_as_one(tmp_path):
    """Losses, metrics and gradients of the same global batch, to 1e-5 of their size."""
    assert jax.device_count() == 1
    root = str(Path(__file__).parents[2])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root,
                                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # fmt: skip
    command = [sys.executable, __file__, str(tmp_path / "values.npz")]
    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    one = results()
    with np.load(tmp_path / "values.npz") as many:
        assert set(many) == set(one) and len(one) == (2 + 1 + 4) + (1 + 4 + 4)
        for name, value in one.items():
            size = max(np.linalg.norm(value), 1e-12)
            assert size > 1e-6 and np.linalg.norm(many[name] - value) < 1e-5 * size, name
            wrong = np.linalg.norm(many[name] / DEVICES - value)  # a mean over devices that was a sum, or the reverse
            assert wrong > 0.5 * size


if __name__ == "__main__":
    np.savez(sys.argv[1], **results())
