"""Several devices against one: this file run as a program on four virtual CPU devices, against pytest's single one.

Gradient descent, not Adam: Adam's first change is the sign of the gradient, and rounding may turn that of one near 0.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from configs.base import get_config
from training.checkpointing import Checkpoints
from training.experiment import build_experiment
from training.manifest import named_leaves, state_hash
from training.mesh import make_mesh, put_batch, state_sharding

STEPS, FSDP = 3, (1, 2)
CHANGES = {"data.batch_size": 16, "network.dropout": 0.0, "training.accumulation": 2, "ema.half_lives": (100,)}


def sgd_experiment(config):
    return dataclasses.replace(build_experiment(config), optimizers={"score": optax.sgd(0.5)})


def run_steps(experiment, state):
    """Three steps from `state`: the final state, {path: value} after each, losses, and how often it was compiled."""
    step = jax.jit(experiment.step(), donate_argnums=0)
    values, losses = [], []
    for number in range(STEPS):
        rows = experiment.pipeline.batch(number)
        del rows["index"]
        with jax.set_mesh(experiment.mesh), jax.transfer_guard("disallow"):
            state, metrics = step(state, {}, put_batch(rows, experiment.mesh))
        tree = {"params": state.params, "ema": state.ema}
        values.append({path: np.asarray(leaf) for path, leaf in named_leaves(tree).items()})
        losses.append(float(metrics["score/loss"]))
    return state, values, losses, step._cache_size()


def same_layout(tree, other):
    return all(a.sharding.is_equivalent_to(b.sharding, a.ndim) for a, b in zip(*map(jax.tree.leaves, (tree, other))))


SHAPES = {"wide": (4, 6), "tall": (8, 6), "odd": (3, 4), "none": (3, 5), "scalar": (), "one": (1, 1)}


def layouts(mesh):
    tree = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in SHAPES.items()}
    return {name: str(tuple(sharding.spec)) for name, sharding in state_sharding(mesh, tree).items()}


def rows_by_device(experiment):
    """[first, last + 1] of the rows of a batch that each device holds."""
    image = put_batch({"image": experiment.pipeline.batch(0)["image"]}, experiment.mesh)["image"]
    return [list(shard.index[0].indices(len(image))[:2]) for shard in image.addressable_shards]


def child(folder, config_json):
    """On four devices: for each mesh the steps, and the checkpoint that one device wrote."""
    folder, report = Path(folder), {}
    for fsdp in FSDP:
        config = ConfigDict(get_config().to_dict() | json.loads(config_json), type_safe=False)
        config.mesh.fsdp = fsdp
        experiment = sgd_experiment(config)
        state = experiment.initial_state()
        restored = Checkpoints(folder / "checkpoints").restore(state)
        facts = {
            "mesh": dict(experiment.mesh.shape),
            "layouts": layouts(experiment.mesh),
            "rows": sorted(rows_by_device(experiment)),
            "split": sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)),
            "restored_step": restored.step,
            "restored_hash": state_hash(restored.state),
            "restored_as_wanted": same_layout(restored.state, state),
        }
        fresh = jax.tree.map(lambda leaf: leaf, state)
        final, values, facts["loss"], facts["compiled"] = run_steps(experiment, state)
        facts["kept_layout"] = same_layout(final, restored.state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(fresh))
        np.savez(folder / f"fsdp{fsdp}.npz", **{f"{i}|{k}": v for i, row in enumerate(values) for k, v in row.items()})
        report[fsdp] = facts
    print(json.dumps(report))


@pytest.fixture(scope="module")
def one_device(tiny_config):
    assert jax.device_count() == 1
    experiment = sgd_experiment(tiny_config(CHANGES))
    return experiment, *run_steps(experiment, experiment.initial_state())


@pytest.fixture(scope="module")
def four_devices(one_device, tmp_path_factory):
    experiment, final, *_ = one_device
    folder = tmp_path_factory.mktemp("mesh")
    Checkpoints(folder / "checkpoints").save(STEPS, final, data={}, config={})
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root,
                                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # fmt: skip
    command = [sys.executable, __file__, str(folder), experiment.config.to_json()]
    ended = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return folder, json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("fsdp", FSDP)
def test_four_devices_learn_what_one_learns(fsdp, one_device, four_devices):
    experiment, _, values, losses, _ = one_device
    folder, report = four_devices
    facts = report[str(fsdp)]
    assert facts["mesh"] == {"data": 4 // fsdp, "fsdp": fsdp}
    assert (facts["split"] > 5) == (fsdp > 1)  # the parameters are really split
    assert facts["rows"] == [[0, 4], [4, 8], [8, 12], [12, 16]]  # and so is the batch, over all of them
    assert facts["compiled"] == 1 and facts["kept_layout"]
    np.testing.assert_allclose(facts["loss"], losses, rtol=1e-5)
    initial = {f"params/{path}": leaf for path, leaf in named_leaves(experiment.params).items()}
    with np.load(folder / f"fsdp{fsdp}.npz") as file:
        for number, row in enumerate(values):
            for path, value in row.items():
                np.testing.assert_allclose(file[f"{number}|{path}"], value, rtol=0, atol=1e-5, err_msg=path)
    moved = max(np.abs(values[-1][path] - leaf).max() for path, leaf in initial.items())
    assert moved > 1e-2  # a thousand times the tolerance


@pytest.mark.parametrize("fsdp", FSDP)
def test_a_checkpoint_of_one_device_restores_on_four(fsdp, one_device, four_devices):
    facts = four_devices[1][str(fsdp)]
    assert facts["restored_step"] == STEPS and facts["restored_as_wanted"]
    assert facts["restored_hash"] == state_hash(one_device[1])


@pytest.mark.parametrize("fsdp", [0, 2, -1])
def test_fsdp_must_divide_the_devices(fsdp):
    with pytest.raises(ValueError, match=f"config.mesh.fsdp = {fsdp} must divide the number of devices, 1"):
        make_mesh(fsdp)


def test_the_batch_on_the_devices_is_the_batch():
    rows = {"image": np.arange(12, dtype=np.float32).reshape(4, 3), "label": np.arange(4, dtype=np.int32)}
    placed = put_batch(rows, make_mesh())
    for name, value in rows.items():
        np.testing.assert_array_equal(placed[name], value)
        assert placed[name].dtype == value.dtype


def test_the_largest_axis_that_divides_is_split(four_devices):
    layouts = {fsdp: four_devices[1][str(fsdp)]["layouts"] for fsdp in FSDP}
    assert set(layouts[1].values()) == {"()"}
    assert layouts[2] == {"wide": "(None, 'fsdp')", "tall": "('fsdp',)", "odd": "(None, 'fsdp')", "none": "()",
                          "scalar": "()", "one": "()"}  # fmt: skip


if __name__ == "__main__":
    child(*sys.argv[1:])
