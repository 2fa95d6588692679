"""Learning rates against closed forms, the chain against the definition of each part, and bad settings."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from training.optimizers import OPTIMIZERS, SCHEDULES, make_learning_rate, make_optimizer

RATE, WARMUP, TOTAL = 0.02, 10, 110
SETTINGS = {"name": "adam", "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "gradient_clip": 0.0}


def make(**changes):
    return make_optimizer(**SETTINGS | {"learning_rate": optax.constant_schedule(RATE)} | changes)


AFTER_WARM_UP = {
    "constant": lambda fraction: 1.0,
    "cosine": lambda fraction: 0.5 * (1 + np.cos(np.pi * fraction)),
    "linear": lambda fraction: 1 - fraction,
}


@pytest.mark.parametrize("warmup", [0, 1, 2, WARMUP])
@pytest.mark.parametrize("schedule", list(AFTER_WARM_UP))
def test_the_learning_rate_of_every_phase(schedule, warmup):
    rate = make_learning_rate(learning_rate=RATE, schedule=schedule, warmup_steps=warmup, total_steps=TOTAL)
    for step in range(warmup):  # the first step already moves, the last of the warm-up has the full rate
        assert float(rate(step)) == pytest.approx(RATE * (step + 1) / warmup, rel=1e-5)
    for step in (warmup, warmup + 1, (warmup + TOTAL) // 2, TOTAL - 1, TOTAL):
        fraction = (step - warmup) / (TOTAL - warmup)
        assert float(rate(step)) == pytest.approx(RATE * AFTER_WARM_UP[schedule](fraction), rel=1e-4, abs=1e-8)
    values = np.array([float(rate(step)) for step in range(TOTAL)])
    assert (values > 0).all() and values.argmax() == max(warmup - 1, 0)


def test_every_schedule_is_tested():
    assert set(AFTER_WARM_UP) == set(SCHEDULES)


def first_change(optimizer, gradient, params=(3.0, 4.0)):
    params = jnp.asarray(params)
    changes, _ = optimizer.update(jnp.asarray(gradient), optimizer.init(params), params)
    return np.asarray(changes)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_the_first_change_of_adam_is_the_rate_against_the_sign(name):
    """Both moments are one gradient's: m / sqrt(v) = sign(g)."""
    np.testing.assert_allclose(first_change(make(name=name), [0.3, -5.0]), [-RATE, RATE], rtol=1e-4)


def test_the_betas_are_those_of_the_two_moments():
    """Second change after gradients g and 0: m = b1 (1 - b1) g / (1 - b1^2), v = b2 (1 - b2) g^2 / (1 - b2^2)."""
    b1, b2 = 0.6, 0.97
    optimizer = make(beta1=b1, beta2=b2)
    state = optimizer.init(jnp.zeros(1))
    _, state = optimizer.update(jnp.asarray([2.0]), state)
    changes, _ = optimizer.update(jnp.asarray([0.0]), state)
    expected = -RATE * (b1 / (1 + b1)) / np.sqrt(b2 / (1 + b2))
    np.testing.assert_allclose(changes, [expected], rtol=1e-4)


def run_by_hand(optimizer, gradients):
    """All changes of a sequence of gradients, and the last state."""
    params = {"w": jnp.ones(3), "b": jnp.ones(())}
    state, changes = optimizer.init(params), []
    for gradient in gradients:
        change, state = optimizer.update(gradient, state, params)
        changes.append(np.append(change["w"], change["b"]))
    return np.array(changes), state


def test_adam_without_a_first_moment_is_adam_and_keeps_none():
    """Against optax.adam(b1=0), over steps with zeros, large and tiny numbers; its state is smaller by one copy."""
    draw = np.random.default_rng(0)
    gradients = [{"w": jnp.asarray(draw.normal(size=3) * [0, 1e3, 1e-7], jnp.float32), "b": jnp.float32(draw.normal())}
                 for _ in range(6)]  # fmt: skip
    schedule = optax.linear_schedule(0.1, 0.01, 6)
    made, state = run_by_hand(make(beta1=0.0, beta2=0.8, learning_rate=schedule), gradients)
    expected, with_both = run_by_hand(optax.adam(schedule, b1=0.0, b2=0.8), gradients)
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-12)
    assert np.abs(made[:, 1:]).min() > 0 and (made[:, 0] == 0).all()
    assert optax.tree.get(state, "mu") is None and optax.tree.get(state, "nu") is not None
    assert optax.tree.get(with_both, "mu") is not None  # the negative control
    other, _ = run_by_hand(make(beta1=0.5, beta2=0.8, learning_rate=schedule), gradients)
    assert np.abs(other / np.where(made == 0, 1, made) - 1).max() > 0.1


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_epsilon_is_added_to_the_denominator(name, beta1):
    """The first change is -rate g / (|g| + epsilon); left out it is 1e-8."""
    gradient = np.array([0.3, -5.0])
    made = first_change(make(name=name, beta1=beta1, epsilon=0.2), gradient)
    np.testing.assert_allclose(made, -RATE * gradient / (np.abs(gradient) + 0.2), rtol=1e-5)
    tiny = np.array([1e-8, -3e-8])
    made = first_change(make(name=name, beta1=beta1), tiny)
    np.testing.assert_allclose(made, -RATE * tiny / (np.abs(tiny) + 1e-8), rtol=1e-4)


def test_adamw_decays_the_weights_and_not_the_gradient():
    np.testing.assert_allclose(first_change(make(name="adamw", weight_decay=0.1), [0.0, 0.0]),
                               [-RATE * 0.1 * 3, -RATE * 0.1 * 4], rtol=1e-5)  # fmt: skip
    np.testing.assert_allclose(first_change(make(name="adamw"), [0.0, 0.0]), [0.0, 0.0])


@pytest.mark.parametrize(("clip", "scale"), [(0.0, 1.0), (2.5, 0.5), (5.0, 1.0), (50.0, 1.0)])
def test_gradients_are_clipped_by_their_norm(clip, scale):
    """Seen in Adam's first moment, (1 - b1) g, for a gradient of norm 5."""
    optimizer = make(gradient_clip=clip)
    _, state = optimizer.update(jnp.asarray([3.0, -4.0]), optimizer.init(jnp.zeros(2)))
    moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moment, 0.1 * scale * np.array([3.0, -4.0]), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "sgd"}, "config.optimizer.name = 'sgd' is not known; choose from adam, adamw"),
        ({"gradient_clip": -1.0}, "config.optimizer.gradient_clip = -1.0 must be positive, or 0"),
        ({"beta1": 1.0}, r"config.optimizer.beta1 = 1.0 must lie in \[0, 1\)"),
        ({"epsilon": 0.0}, "config.optimizer.epsilon = 0.0 must be positive"),
        ({"epsilon": float("nan")}, "config.optimizer.epsilon = nan must be positive"),
        ({"beta2": -0.1}, r"config.optimizer.beta2 = -0.1 must lie in \[0, 1\)"),
        ({"weight_decay": 0.1}, "config.optimizer.weight_decay = 0.1 has no effect with adam; choose adamw or 0"),
    ],
)
def test_bad_settings_of_an_optimiser(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "step"}, "config.optimizer.schedule = 'step' is not known; choose from constant, cosine, linear"),
        ({"warmup_steps": TOTAL}, rf"config.optimizer.warmup_steps = {TOTAL} must lie in \[0, .*steps = {TOTAL}\)"),
        ({"warmup_steps": -1}, "config.optimizer.warmup_steps = -1 must lie in"),
        ({"learning_rate": 0.0}, "config.optimizer.learning_rate = 0.0 must be positive"),
        ({"learning_rate": float("nan")}, "config.optimizer.learning_rate = nan must be positive"),
    ],
)
def test_bad_settings_of_a_schedule(changes, message):
    settings = {"learning_rate": RATE, "schedule": "cosine", "warmup_steps": WARMUP, "total_steps": TOTAL}
    with pytest.raises(ValueError, match=message):
        make_learning_rate(**settings | changes)
