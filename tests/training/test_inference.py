"""The modes sample and evaluate on a checkpoint of the tiny run; features are pixels, since a classifier takes long."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.random import image_keys
from training import evaluation, inference
from training.checkpointing import Checkpoints
from training.experiment import build_experiment
from training.manifest import state_hash
from training.workdir import read_json_lines

pytestmark = pytest.mark.usefixtures("no_tensorboard", "pixel_features")
STEPS, COUNT = 24, 20
MODES = {"sample": inference.sample, "evaluate": evaluation.evaluate}


@pytest.fixture
def run(trained, tiny_config, tmp_path):
    """A copy of the trained run, and its state."""
    state = Checkpoints(trained / "checkpoints").restore(build_experiment(tiny_config()).initial_state()).state
    return shutil.copytree(trained, tmp_path / "run"), state


def only(paths):
    (path,) = paths
    return path


def test_sample_writes_all_images_of_the_chosen_average(run, tiny_config):
    workdir, state = run
    assert inference.sample(tiny_config(), str(workdir)) == 0
    with np.load(only(workdir.glob("generated/*/samples.npz"))) as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (COUNT, 8, 8, 1) and images.dtype == np.uint8
    assert labels.tolist() == [i % 10 for i in range(COUNT)]
    # All images at once by the sampler itself, from the average with half-life 100.
    experiment = build_experiment(tiny_config())
    samples = inference.sample_function(experiment)(
        state.ema["score"]["100"], image_keys(0, jnp.arange(COUNT)), jnp.asarray(labels)
    )
    expected = np.round((np.clip(np.asarray(samples.x0), -1, 1) + 1) * 127.5)
    assert np.abs(images - expected).max() <= 1


def test_an_evaluation_is_one_line_with_all_that_it_depends_on(run, tiny_config):
    workdir, state = run
    config = tiny_config()
    assert evaluation.evaluate(config, str(workdir)) == 0
    record = only(read_json_lines(workdir / "results.jsonl"))
    json.loads((workdir / "results.jsonl").read_text(), parse_constant=pytest.fail)  # no bare NaN or Infinity
    expected = {"experiment": "tiny", "step": STEPS, "nfe": 2.0, "nfe_max": 2, "num_samples": COUNT, "seed": 0,
                "ema_half_life": 100, "parameters_sha256": state_hash(state.ema["score"]["100"])}  # fmt: skip
    assert {name: record[name] for name in expected} == expected
    assert [record["sampler"][field] for field in ("name", "steps", "guidance")] == ["ddim", 2, 1]
    names = {f"fd{COUNT}_test_pixels", f"fd{COUNT}_test_pixels_of_train", f"fd{COUNT}_test_pixels_ratio",
             f"kid{COUNT}_test_pixels", "memorisation_ratio"}  # fmt: skip
    assert record["metrics"].keys() == names and np.isfinite(list(record["metrics"].values())).all()
    assert record["ranges"] == [{"first": 0, "metrics": record["metrics"]}]
    assert record["details"]["pixels"]["reference"]["split"] == "test" and record["quantisation"].startswith("floor(")
    assert record["data"]["train"]["name"] == "digits" and record["data"]["train"]["split"] == "train"
    assert record["environment"]["jax"] == jax.__version__ and len(record["config_sha256"]) == 64
    assert record["pictures"].keys() == {"samples", "grid", "strip"}
    for picture in record["pictures"].values():
        assert (workdir / picture).read_bytes().startswith(b"\x89PNG")
    # Again: the images are taken from disk, and the numbers are the same.
    batches = sorted(workdir.glob("generated/*/0*.npz"))
    times = [path.stat().st_mtime_ns for path in batches]
    assert len(batches) == 3 and evaluation.evaluate(config, str(workdir)) == 0
    assert [path.stat().st_mtime_ns for path in batches] == times
    again = read_json_lines(workdir / "results.jsonl")[1]
    assert {k: v for k, v in again.items() if k != "time"} == {k: v for k, v in record.items() if k != "time"}


@pytest.mark.parametrize(
    ("changes", "nfe"),
    [({"sampler.guidance": 2.0}, 4), ({"sampler.name": "heun", "sampler.steps": 3}, 5)],
)
def test_network_calls_are_counted(run, tiny_config, changes, nfe):
    """Guidance doubles them; Heun needs two for every step but the last."""
    workdir, _ = run
    assert inference.sample(tiny_config(changes | {"evaluation.num_samples": 8}), str(workdir)) == 0
    with np.load(only(workdir.glob("generated/*/0*.npz"))) as file:
        assert file["nfe"].tolist() == [nfe] * 8


def test_every_setting_of_sampling_has_its_own_folder(trained, tiny_config):
    experiment = build_experiment(tiny_config())
    changes = [{}, {"sampler.steps": 3}, {"sampler.eta": 0.5}, {"sampler.guidance": 2.0}, {"evaluation.seed": 1},
               {"sampler.guidance": 2.0, "sampler.guidance_interval": (0.0, 1.0)},
               {"sampler.grid": "karras"}, {"sigma_data": 0.5}, {"network.dtype": "bfloat16"},
               {"process.sigma_max": 40.0}]  # fmt: skip
    names = [
        inference.name_of(dataclasses.replace(experiment, config=tiny_config(change)), STEPS, identity)
        for change in changes
        for identity in ("a", "b")
    ]
    assert len(set(names)) == len(names) and names[0].startswith("step24-ddim2-")


def test_images_do_not_outlive_a_change_of_the_sampling_code(trained, tiny_config, monkeypatch):
    experiment = build_experiment(tiny_config())
    before = inference.name_of(experiment, STEPS, "a")
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read_bytes(path) + (b"#" if path.name == "ddim.py" else b""))
    assert inference.name_of(experiment, STEPS, "a") != before


def test_the_live_parameters_can_be_evaluated(run, tiny_config):
    workdir, state = run
    config = tiny_config({"evaluation.ema": -1, "evaluation.num_samples": 8})
    assert evaluation.evaluate(config, str(workdir)) == 0
    record = only(read_json_lines(workdir / "results.jsonl"))
    assert record["parameters_sha256"] == state_hash(state.params["score"]) and record["ema_half_life"] is None


@pytest.mark.parametrize("mode", ["sample", "evaluate"])
def test_a_stop_keeps_the_batches_and_writes_no_result(run, tiny_config, mode, monkeypatch):
    workdir, _ = run
    generate = inference.generate

    def stopping(*arguments, progress, **settings):
        return generate(*arguments, **settings, progress=lambda done: os.kill(os.getpid(), signal.SIGTERM))

    with monkeypatch.context() as patch:
        patch.setattr(inference, "generate", stopping)
        assert MODES[mode](tiny_config(), str(workdir)) == 143
    first = only(workdir.glob("generated/*/*.npz"))
    time = first.stat().st_mtime_ns
    assert not (workdir / "results.jsonl").exists() and not (workdir / "figures").exists()
    assert MODES[mode](tiny_config(), str(workdir)) == 0
    assert first.stat().st_mtime_ns == time
    assert len(list(workdir.glob("generated/*/0*.npz"))) == 3


def test_padding_is_cut_off_again(tiny_config):
    experiment = build_experiment(tiny_config({"data.pad_to": 13}))
    batch = experiment.pipeline.batch(0)
    cropped = inference._centre_crop(jnp.asarray(batch["image"]), (8, 8, 1))
    plain = build_experiment(tiny_config()).pipeline.batch(0)
    assert np.array_equal(batch["index"], plain["index"])
    assert np.array_equal(cropped, plain["image"])


def test_evaluating_what_is_not_there(tiny_config, tmp_path, run):
    missing = tmp_path / "missing"
    for mode in MODES.values():
        with pytest.raises(FileNotFoundError, match=f"no run in workdir {missing}: train one first, with --mode=train"):
            mode(tiny_config(), str(missing))
        assert not missing.exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no run in workdir .*empty"):
        evaluation.evaluate(tiny_config(), str(tmp_path / "empty"))
    workdir, _ = run
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*checkpoints yet: train first"):
        evaluation.evaluate(tiny_config(), str(workdir))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"experiment": "other"}, 'experiment: "tiny" (stored) != "other" (now)'),
        ({"network.width": 32}, "network.width: 16 (stored) != 32 (now)"),
        ({"prediction": "v"}, 'prediction: "edm" (stored) != "v" (now)'),
        ({"data.source": "toy2d"}, 'data.source: "digits" (stored) != "toy2d" (now)'),
    ],
)
def test_the_weights_of_another_experiment_are_refused(trained, tiny_config, changes, line):
    with pytest.raises(ValueError) as caught:
        evaluation.evaluate(tiny_config(changes), str(trained))
    assert f"workdir {trained} holds another experiment:\n  {line}" in str(caught.value)
