"""The discriminator of Score Implicit Matching from the config on: what is refused, the third role, and resuming."""

import json

import jax
import numpy as np
import pytest

from distillation import METHODS
from training import distilling, loop
from training.checkpointing import Checkpoints
from training.experiment import build_experiment
from training.inference import load_run
from training.loop import train
from training.manifest import state_hash
from training.mesh import put_batch
from training.workdir import read_json_lines

pytestmark = pytest.mark.usefixtures("no_tensorboard")
SIM = "score_implicit_matching"
TIMES = ("time", "segment", "steps_per_second")
ROLES = {"auxiliary", "discriminator", "generator"}
NETWORKS = {
    # Options, and the width of the features.
    "mlp": ({"network.width": 16}, 16),
    "energy": ({"network.name": "energy", "network.width": 16}, 16),
    "dit": ({"network.name": "dit", "network.width": 8, "network.num_heads": 2}, 8),
    "unet": ({"network.name": "unet", "network.depth": None, "network.width": 4, "network.channel_multipliers": (1, 3),
              "network.num_heads": 2}, 12),
}  # fmt: skip


@pytest.fixture(scope="module")
def student(tiny_config):
    """student(weight, fields, method) -> the validated config of a student of the data's closed form."""

    def make(weight=0.5, fields=None, name=SIM):
        own = {"distillation.name": name, "distillation.teacher": "exact", "training.steps": 6,
               "training.checkpoint_every": 2, "optimizer.warmup_steps": 0,
               "distillation.adversarial_weight": weight}  # fmt: skip
        if name == SIM:
            own["distillation.auxiliary_warmup"] = 1
        return tiny_config(own | (fields or {}))

    return make


@pytest.mark.parametrize("weight", [-0.5, float("nan")])
def test_a_weight_that_is_no_weight_is_refused_in_one_line(student, weight):
    with pytest.raises(ValueError) as caught:
        student(weight)
    assert str(caught.value) == f"config.distillation.adversarial_weight = {weight} must be at least 0"


@pytest.mark.parametrize("name", [name for name in METHODS if name != SIM])
def test_a_method_without_a_discriminator_refuses_the_weight(student, name):
    """Even one of zero, which says nothing to it."""
    for weight in (0.5, 0.0):
        with pytest.raises(ValueError) as caught:
            student(weight, name=name)
        message = str(caught.value)
        assert f"config.distillation.adversarial_weight = {weight} has no meaning" in message and name in message
        assert "\n" not in message


def test_the_weight_arrives_and_is_nothing_by_default(student):
    assert [distilling.make_method(student(weight)).adversarial_weight for weight in (0.5, 0.0, None)] == [0.5, 0, 0]
    stored = json.loads(json.dumps(student().to_dict(), default=str))
    assert stored["distillation"]["adversarial_weight"] == 0.5


def test_a_weight_of_zero_is_the_run_without_it(student):
    """The same roles, hence the same initial state, to the bit; with one, the two old roles begin as before."""
    none, zero, some = (build_experiment(student(weight)) for weight in (None, 0.0, 0.5))
    assert set(none.params) == set(zero.params) == ROLES - {"discriminator"} and set(some.params) == ROLES
    assert state_hash(none.initial_state()) == state_hash(zero.initial_state())
    assert state_hash({name: some.params[name] for name in none.params}) == state_hash(none.params)
    assert [update.role for update in some.updates] == ["auxiliary", "discriminator", "generator"]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_has_the_width_of_the_features(student, name):
    """Whatever the network; the head is one of its own for each seed, and says zero at first."""
    fields, width = NETWORKS[name]
    heads = [build_experiment(student(fields=fields | {"seed": seed})).params["discriminator"] for seed in (0, 0, 1)]
    assert heads[0]["hidden"]["kernel"].shape == (width, width)
    assert not np.any(heads[0]["out"]["kernel"]) and not np.any(heads[0]["out"]["bias"])
    assert state_hash(heads[0]) == state_hash(heads[1]) != state_hash(heads[2])
    assert 0.5 < np.std(heads[0]["hidden"]["kernel"]) * width**0.5 < 1.5


@pytest.mark.slow
def test_only_the_auxiliary_network_has_the_auxiliary_rate(student):
    """And only the generator is averaged. A step with donated buffers leaves the start as it was."""
    config = student(fields={"distillation.auxiliary_learning_rate": 1e-6, "optimizer.learning_rate": 0.01,
                             "distillation.auxiliary_warmup": 0})  # fmt: skip
    experiment = build_experiment(config)
    start = jax.device_get(experiment.initial_state())
    assert set(start.ema) == {"generator"} and set(start.opt_state) == ROLES
    rows = experiment.pipeline.batch(0)
    del rows["index"]
    with jax.set_mesh(experiment.mesh):
        state, metrics = jax.jit(experiment.step(), donate_argnums=0)(
            experiment.initial_state(), experiment.frozen, put_batch(rows, experiment.mesh)
        )
    assert state_hash(jax.device_get(experiment.initial_state())) == state_hash(start)
    # Adam's first change is the rate, with a sign, wherever there is a gradient.
    changes = {role: max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (state.params[role], old))))
               for role, old in start.params.items()}  # fmt: skip
    assert changes["auxiliary"] < 1e-5 and 1e-3 < changes["discriminator"] < 0.011
    assert float(metrics["discriminator/loss"]) == pytest.approx(2 * np.log(2), rel=1e-5)
    assert float(metrics["generator/adversarial"]) > 0 and int(state.skipped) == 0


def numbers(workdir):
    return {line["step"]: {name: value for name, value in line.items() if name not in TIMES}
            for line in read_json_lines(workdir / "metrics.jsonl")}  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_is_the_run_in_one_to_the_bit_and_is_sampled_without_its_teacher(student, tmp_path, monkeypatch):
    """All roles with their optimisers, and every logged number; broken off between two checkpoints."""
    config, folders = student(), [tmp_path / name for name in ("one", "two")]
    assert train(config, str(folders[0])) == 0
    with monkeypatch.context() as patch:
        placed, put = [], loop.put_batch

        def placing(batch, mesh):
            placed.append(batch)
            if len(placed) == 6:
                raise IndexError("as when the power fails")
            return put(batch, mesh)

        patch.setattr(loop, "put_batch", placing)
        with pytest.raises(IndexError):
            train(config, str(folders[1]))
    assert Checkpoints(folders[1] / "checkpoints").latest_good_step() == 4
    assert train(config, str(folders[1])) == 0
    states = [Checkpoints(folder / "checkpoints").restore(build_experiment(config).initial_state()).state
              for folder in folders]  # fmt: skip
    assert set(states[0].params) == set(states[0].opt_state) == ROLES
    assert state_hash(states[0]) == state_hash(states[1])
    assert numbers(folders[0]) == numbers(folders[1]) and list(numbers(folders[0])) == list(range(1, 7))
    for line in numbers(folders[0]).values():
        assert {"discriminator/loss", "discriminator/accuracy", "generator/adversarial"} < set(line)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(states[0].params["discriminator"]["out"]))
    _, params, step, _ = load_run(config, str(folders[0]))
    average = states[0].ema["generator"]
    assert step == 6 and state_hash(params) in {state_hash(tree) for tree in average.values()}
