"""The training step against float64 numpy, one role against the others, and against values that are not finite."""

import dataclasses
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.random import stream_key
from scoring.base import Update
from training import step as step_module
from training.ema import EMA
from training.optimizers import make_optimizer
from training.state import create_state
from training.step import make_step

SEED, BATCH = 5, 8
AVERAGE = EMA(half_lives=(10,), ramp=float("inf"))


def make_batch(number, poison=None):
    draw = np.random.default_rng(number)
    batch = {"image": draw.normal(size=(BATCH, 3)), "target": draw.normal(size=(BATCH, 2)), "smooth": np.ones(BATCH)}
    if poison == "image":
        batch["image"][3, 1] = np.nan
    if poison == "target":
        batch["target"][0, 0] = np.inf
    if poison == "gradient":
        batch["smooth"] *= 0
    return {name: jnp.asarray(value, jnp.float32) for name, value in batch.items()}


def make_params(number=0):
    draw = np.random.default_rng(100 + number)
    return {"w": jnp.asarray(draw.normal(size=(3, 2)), jnp.float32), "b": jnp.asarray(draw.normal(size=2), jnp.float32)}


def linear_loss(params, others, batch, key):
    residual = batch["image"] @ params["w"] + params["b"] - batch["target"]
    loss = jnp.mean(residual**2)
    return loss, {"residual": jnp.mean(residual)}


def kinked_loss(params, others, batch, key):
    """`linear_loss` + sqrt(smooth + 0): where smooth is 0 the value is finite and the gradient is inf * 0."""
    loss, metrics = linear_loss(params, others, batch, key)
    zero = params["w"] - jax.lax.stop_gradient(params["w"])
    return loss + jnp.sqrt(batch["smooth"].mean() + jnp.sum(zero**2)), metrics


def noisy_loss(params, others, batch, key):
    noise = jax.random.normal(key, batch["image"].shape)
    loss, _ = linear_loss(params, others, batch | {"image": batch["image"] + noise}, key)
    return loss, {"draw": jax.random.uniform(key)}


def setup(updates, optimizer=None, *, roles=("score",), ema_roles=None, ema=AVERAGE, accumulation=1):
    optimizers = {role: optimizer or optax.sgd(0.1) for role in roles}
    params = {role: make_params(number) for number, role in enumerate(roles)}
    state = create_state(params, optimizers, ema, roles if ema_roles is None else ema_roles)
    function = make_step(updates, optimizers, ema, seed=SEED, batch_size=BATCH, accumulation=accumulation)
    return state, jax.jit(function)


def equal(a, b):
    """Whether two trees are the same to the bit."""
    leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(leaves) == len(others) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(leaves, others)
    )


def assert_close(tree, expected, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), y, rtol=rtol, atol=1e-6), tree, expected)


# --- float64 numpy ---------------------------------------------------------------------------------------------------


def numpy_gradient(params, batch, clip):
    x, y = (np.asarray(batch[name], np.float64) for name in ("image", "target"))
    residual = x @ params["w"] + params["b"] - y
    gradient = {"w": 2 * x.T @ residual / residual.size, "b": 2 * residual.sum(axis=0) / residual.size}
    norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
    scale = min(1.0, clip / norm) if clip else 1.0
    return {name: scale * g for name, g in gradient.items()}, norm, (residual**2).mean()


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_sgd_with_clipping_equals_numpy(clip):
    rate = 0.1
    state, step = setup((Update("score", linear_loss),), optax.chain(optax.clip_by_global_norm(clip), optax.sgd(rate)))
    params = {name: np.asarray(value, np.float64) for name, value in make_params().items()}
    for number in range(4):
        batch = make_batch(number)
        gradient, norm, loss = numpy_gradient(params, batch, clip)
        assert (norm > clip) == (clip < 1)  # one case clips, the other does not
        params = {name: params[name] - rate * gradient[name] for name in params}
        state, metrics = step(state, {}, batch)
        assert_close(state.params["score"], params)
        assert metrics["score/loss"] == pytest.approx(loss, rel=1e-5)
        assert metrics["score/gradient_norm"] == pytest.approx(norm, rel=1e-5)  # before clipping
    assert int(state.step) == 4


def test_adam_with_clipping_and_a_schedule_equals_numpy():
    rates, clip, b1, b2 = [0.02, 0.05, 0.03, 0.01, 0.005], 0.5, 0.8, 0.95
    optimizer = make_optimizer(name="adam", learning_rate=lambda count: jnp.asarray(rates)[count], beta1=b1, beta2=b2,
                               weight_decay=0.0, gradient_clip=clip)  # fmt: skip
    state, step = setup((Update("score", linear_loss),), optimizer)
    params = {name: np.asarray(value, np.float64) for name, value in make_params().items()}
    mean, square = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
    for number, rate in enumerate(rates):
        batch = make_batch(number)
        gradient, _, _ = numpy_gradient(params, batch, clip)
        for name, g in gradient.items():
            mean[name] = b1 * mean[name] + (1 - b1) * g
            square[name] = b2 * square[name] + (1 - b2) * g**2
            unbiased = mean[name] / (1 - b1 ** (number + 1)), square[name] / (1 - b2 ** (number + 1))
            params[name] = params[name] - rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        state, _ = step(state, {}, batch)
        assert_close(state.params["score"], params)


# --- roles, repeats, accumulation ------------------------------------------------------------------------------------


def coupled_loss(own, other):
    def loss(params, others, batch, key):
        value = jnp.mean((batch["image"] @ (params["w"] * others[other]["w"]) - others["teacher"]["w"][0]) ** 2)
        return value + 0.0 * jnp.sum(others[own]["b"]), {}

    return loss


def test_an_update_moves_only_its_own_role():
    roles = ("auxiliary", "generator", "idle")
    update = Update("generator", coupled_loss("generator", "auxiliary"))
    state, step = setup((update,), optax.adam(0.1), roles=roles)
    frozen = {"teacher": make_params(7)}
    kept = jax.tree.map(np.asarray, frozen)
    new, metrics = step(state, frozen, make_batch(0))
    for part in ("params", "opt_state", "ema"):
        before, after = getattr(state, part), getattr(new, part)
        for role in ("auxiliary", "idle"):
            assert equal(before[role], after[role]), (part, role)
        assert not equal(before["generator"], after["generator"]), part
    assert equal(frozen, kept) and {name.split("/")[0] for name in metrics if "/" in name} == {"generator"}


def test_updates_run_in_order_and_the_later_sees_what_the_earlier_did():
    roles, rate = ("auxiliary", "generator"), 0.1
    losses = {"auxiliary": coupled_loss("auxiliary", "generator"), "generator": coupled_loss("generator", "auxiliary")}
    updates = tuple(Update(role, losses[role]) for role in roles)
    frozen, batch = {"teacher": make_params(7)}, make_batch(1)
    state, step = setup(updates, optax.sgd(rate), roles=roles)
    new, _ = step(state, frozen, batch)

    def descend(role, params):
        gradient = jax.grad(lambda p: losses[role](p, frozen | params | {role: p}, batch, None)[0])(params[role])
        return params | {role: jax.tree.map(lambda p, g: p - rate * g, params[role], gradient)}

    assert_close(new.params, descend("generator", descend("auxiliary", state.params)))
    backwards = descend("auxiliary", descend("generator", state.params))
    assert np.abs(new.params["generator"]["w"] - backwards["generator"]["w"]).max() > 1e-3


def test_repeats_equal_single_updates_with_the_documented_keys():
    rate, repeats = 0.05, 3
    updates = (Update("first", linear_loss), Update("second", noisy_loss, repeats=repeats))
    state, step = setup(updates, optax.sgd(rate), roles=("first", "second"))
    params = state.params["second"]
    for number in range(2):
        batch = make_batch(number)
        state, metrics = step(state, {}, batch)
        for repeat in range(repeats):
            key = jax.random.fold_in(stream_key(SEED, "train"), number)
            key = jax.random.fold_in(jax.random.fold_in(key, 1), repeat)  # 1: the second update
            gradient, report = jax.grad(noisy_loss, has_aux=True)(params, {}, batch, key)
            params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
        assert_close(state.params["second"], params)
        assert float(metrics["second/draw"]) == float(report["draw"])


def test_no_key_is_used_twice():
    """Over steps, updates, repeats and slices of an accumulated batch; a seed of its own gives keys of its own."""
    accumulation, seen = 2, []

    def spying(params, others, batch, key):
        loss, metrics = noisy_loss(params, others, batch, key)
        jax.debug.callback(lambda data: seen.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key))
        return loss, metrics

    updates = (Update("first", spying, repeats=2), Update("second", spying))
    optimizers = {role: optax.sgd(0.1) for role in ("first", "second")}
    for seed in (SEED, SEED + 1):
        state, _ = setup(updates, roles=("first", "second"))
        function = make_step(updates, optimizers, AVERAGE, seed=seed, batch_size=BATCH, accumulation=accumulation)
        step = jax.jit(function)
        for number in range(3):
            state, _ = step(state, {}, make_batch(number))
    jax.effects_barrier()
    # An unordered callback may run once more when a loop is traced on the host; what counts is that none is shared.
    assert len(set(seen)) == len(seen) == 2 * 3 * 3 * accumulation


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_gives_the_gradient_of_the_whole_batch(accumulation):
    results = []
    for slices in (1, accumulation):
        state, step = setup((Update("score", linear_loss),), optax.sgd(1.0), accumulation=slices)
        results.append((*step(state, {}, make_batch(0)), state))
    (whole, metrics, start), (sliced, sliced_metrics, _) = results
    moved = jax.tree.map(lambda a, b: a - b, whole.params, start.params)
    assert float(optax.tree.norm(moved)) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), whole.params, sliced.params)
    for name in ("score/loss", "score/gradient_norm", "score/residual"):
        assert float(metrics[name]) == pytest.approx(float(sliced_metrics[name]), abs=1e-6), name


@pytest.mark.parametrize("accumulation", [0, -1, 3])
def test_accumulation_must_divide_the_batch(accumulation):
    with pytest.raises(ValueError, match=rf"config.training.accumulation = {accumulation} must divide .* {BATCH}"):
        make_step((), {}, AVERAGE, seed=0, batch_size=BATCH, accumulation=accumulation)


# --- not finite ------------------------------------------------------------------------------------------------------


def tree_of(state):
    return {"params": state.params, "opt_state": state.opt_state, "ema": state.ema}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("poison", ["image", "target", "gradient"])
def test_bad_updates_in_a_row_change_nothing_and_the_next_good_one_goes_on(poison, accumulation):
    state, step = setup((Update("score", kinked_loss),), optax.adam(0.1), accumulation=accumulation)
    state, _ = step(state, {}, make_batch(0))
    before = tree_of(state)
    for bad in (1, 2, 3):
        state, metrics = step(state, {}, make_batch(bad, poison))
        assert np.isfinite(metrics["score/loss"]) == (poison == "gradient")
        assert not np.isfinite(metrics["score/gradient_norm"])
        assert equal(tree_of(state), before)
        assert (int(metrics["skipped_updates"]), int(metrics["skipped_in_a_row"])) == (bad, bad)
        assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (1 + bad, bad, bad)
    state, metrics = step(state, {}, make_batch(4))
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (5, 3, 0)
    # Adam has counted the two good steps only, and both have moved everything.
    assert int(state.opt_state["score"][0].count) == 2
    for part, old in before.items():
        assert not equal(getattr(state, part), old), part
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_without_the_protection_one_bad_batch_poisons_everything(monkeypatch):
    """The negative control of the test above."""
    monkeypatch.setattr(step_module, "_where", lambda condition, new, old: new)
    state, step = setup((Update("score", kinked_loss),), optax.adam(0.1))
    for number, poison in enumerate([None, "gradient", None]):
        state, _ = step(state, {}, make_batch(number, poison))
    for part in (state.params, state.ema, state.opt_state["score"][0].mu):
        assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(part))


def nan_value(params, others, batch, key):
    loss, metrics = linear_loss(params, others, batch, key)
    return loss + jax.lax.stop_gradient(jnp.nan), metrics


def steep(params, others, batch, key):
    return 1e25 * jnp.sum(params["w"]), {}


@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [
        (nan_value, optax.sgd(0.1)),  # the gradient is fine, the loss is not
        (linear_loss, optax.chain(optax.scale(1e30), optax.scale(1e30))),  # the gradient is fine, the change is not
        (linear_loss, optax.chain(optax.set_to_zero(), optax.add_decayed_weights(3e38), optax.scale(1e2))),
        (steep, optax.adam(1e-3)),  # the gradient is finite, its square is not: Adam would stand still for ever
    ],
)
def test_whatever_is_not_finite_skips_the_update(loss, optimizer):
    state, step = setup((Update("score", loss),), optimizer)
    new, _ = step(state, {}, make_batch(0))
    assert equal(tree_of(new), tree_of(state)) and int(new.skipped) == 1


def test_parameters_that_overflow_are_not_taken():
    """Old parameters and their change are finite, the sum is not."""
    large = jax.tree.map(lambda p: jnp.full_like(p, 3e38), make_params())
    constant = optax.stateless(lambda updates, params: jax.tree.map(lambda u: jnp.full_like(u, 3e38), updates))
    _, step = setup((Update("score", lambda params, *rest: (1e-30 * jnp.sum(params["w"] * 1e-10), {})),), constant)
    state = create_state({"score": large}, {"score": constant}, AVERAGE, ("score",))
    new, _ = step(state, {}, make_batch(0))
    assert equal(tree_of(new), tree_of(state)) and int(new.skipped) == 1


def test_a_bad_role_does_not_hold_up_the_others():
    updates = (Update("bad", kinked_loss), Update("good", linear_loss))
    state, step = setup(updates, optax.adam(0.1), roles=("bad", "good"))
    new, _ = step(state, {}, make_batch(0, "gradient"))
    for part in ("params", "opt_state", "ema"):
        assert equal(getattr(new, part)["bad"], getattr(state, part)["bad"]), part
        assert not equal(getattr(new, part)["good"], getattr(state, part)["good"]), part
    assert (int(new.skipped), int(new.skipped_in_a_row)) == (1, 1)


def test_a_role_with_one_bad_repeat_keeps_its_average():
    first_key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(stream_key(SEED, "train"), 0), 0), 0)

    def bad_at_first(params, others, batch, key):
        first = (jax.random.key_data(key) == jax.random.key_data(first_key)).all()
        return kinked_loss(params, others, batch | {"smooth": batch["smooth"] * ~first}, key)

    state, step = setup((Update("score", bad_at_first, repeats=2),), optax.adam(0.1))
    new, _ = step(state, {}, make_batch(0))
    assert int(new.opt_state["score"][0].count) == 1 and int(new.skipped) == 1
    assert not equal(new.params, state.params) and equal(new.ema, state.ema)


# --- updates that start late -----------------------------------------------------------------------------------------


def counting_loss(calls):
    """`linear_loss`, which leaves a mark each time that it is computed."""
    def loss(params, others, batch, key):
        value, metrics = linear_loss(params, others, batch, key)
        jax.debug.callback(lambda x: calls.append(float(x)), value)
        return value, metrics

    return loss


@pytest.mark.parametrize("accumulation", [1, 2])
def test_before_its_start_an_update_moves_nothing_reports_nothing_and_costs_nothing(accumulation):
    """Parameters and optimiser to the bit; the loss is not computed, which a callback in the compiled step shows."""
    start, calls = 3, []
    updates = (Update("auxiliary", noisy_loss), Update("generator", counting_loss(calls), start=start))
    state, step = setup(updates, optax.adam(0.1), roles=("auxiliary", "generator"), accumulation=accumulation)
    first = state
    for number in range(start):
        state, metrics = step(state, {}, make_batch(number))
        jax.effects_barrier()
        assert equal(state.params["generator"], first.params["generator"])
        assert equal(state.opt_state["generator"], first.opt_state["generator"])
        assert not equal(state.params["auxiliary"], first.params["auxiliary"])
        own = {name: float(value) for name, value in metrics.items() if name.startswith("generator/")}
        assert own == dict.fromkeys(("generator/loss", "generator/residual", "generator/gradient_norm"), 0.0)
        assert calls == [] and metrics["auxiliary/loss"] > 0 and int(metrics["skipped_updates"]) == 0
    for number in range(start, start + 2):  # the negative control
        before, calls[:] = state, []
        state, metrics = step(state, {}, make_batch(number))
        jax.effects_barrier()
        assert len(calls) == accumulation and metrics["generator/loss"] > 0
        assert not equal(state.params["generator"], before.params["generator"])
    assert int(state.opt_state["generator"][0].count) == 2 and int(state.opt_state["auxiliary"][0].count) == start + 2


def test_an_update_that_starts_late_does_from_then_on_what_one_from_the_first_step_does():
    """Its key is that of the training step, and its optimiser begins with its own first step."""
    late, step = setup((Update("score", noisy_loss, start=2),), optax.adam(0.1))
    for number in range(4):
        late, _ = step(late, {}, make_batch(number))
    early, step = setup((Update("score", noisy_loss),), optax.adam(0.1))
    early = dataclasses.replace(early, step=jnp.asarray(2, jnp.int32))
    for number in (2, 3):
        early, _ = step(early, {}, make_batch(number))
    assert_close(late.params, early.params)
    assert_close(late.opt_state, early.opt_state)


# --- the compiled step -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tiny_config):
    """The step of a real experiment, compiled as the loop does, and its batches."""
    from training.experiment import build_experiment
    from training.mesh import put_batch

    experiment = build_experiment(tiny_config())

    def batch(number):
        rows = experiment.pipeline.batch(number)
        del rows["index"]
        return put_batch(rows, experiment.mesh)

    step = jax.jit(experiment.step(), donate_argnums=0)
    return SimpleNamespace(experiment=experiment, step=step, state=experiment.initial_state(), batch=batch)


def test_the_state_is_donated_and_the_step_compiles_once_without_transfers(real):
    state, frozen = jax.tree.map(jnp.copy, real.state), {"teacher": make_params()}
    for number in range(3):
        batch, old = real.batch(number), state
        with jax.set_mesh(real.experiment.mesh), jax.transfer_guard("disallow"):
            state, _ = real.step(old, frozen, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((batch, frozen, real.experiment.params)))
    assert real.step._cache_size() == 1
    assert int(state.step) == 3 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    rows = {name: np.asarray(value) for name, value in real.batch(3).items()}
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match=r"[Dd]isallowed.*transfer"):
        real.step(state, frozen, rows)


def test_the_step_is_a_function_of_seed_step_and_batch(real):
    def loss(start, number):
        state = jax.tree.map(jnp.copy, real.state)
        state = dataclasses.replace(state, step=jax.device_put(jnp.asarray(start, jnp.int32), state.step.sharding))
        return float(real.step(state, {}, real.batch(number))[1]["score/loss"])

    values = {case: loss(*case) for case in itertools.product((0, 1), (0, 1))}
    assert len(set(values.values())) == 4
    assert loss(1, 0) == values[1, 0]
