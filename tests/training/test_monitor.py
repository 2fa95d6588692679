"""Small evaluations during training: the best state is kept, never a bad one; other images than evaluation's."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.sources import open_source
from diffusion.random import image_keys
from evaluation.distances import kernel_distance
from training import inference, loop, monitor
from training.checkpointing import Checkpoints
from training.experiment import build_experiment
from training.loop import train
from training.manifest import state_hash
from training.metric_writers import read_metrics
from training.monitor import Monitor
from training.workdir import read_json_lines

pytestmark = pytest.mark.usefixtures("no_tensorboard", "pixel_features")
COUNT = 30
EVERY = {"training.evaluate_every": 2, "training.evaluate_images": COUNT, "training.steps": 6, "training.keep": 3,
         "training.checkpoint_every": 2}  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tiny_config):
    return build_experiment(tiny_config(EVERY | {"evaluation.ranges": 2}))


@pytest.fixture(scope="module")
def state(experiment):
    return experiment.initial_state()


def at(state, step):
    """A state that can be told from those of other steps."""
    return dataclasses.replace(state, step=jnp.asarray(step, jnp.int32))


@pytest.fixture
def inject(monkeypatch):
    """inject(distances, x0=...) has the next evaluations find these distances, without sampling; -> keys they used."""

    def set_up(distances, x0=0.0):
        keys, left = [], iter(distances)

        def sample(params, image_keys, labels):
            keys.append(np.asarray(jax.random.key_data(image_keys)))
            shape = (len(image_keys), 8, 8, 1)
            return SimpleNamespace(x0=jnp.full(shape, x0), nfe=jnp.full(len(image_keys), 2))

        monkeypatch.setattr(monitor, "sample_function", lambda experiment: sample)
        monkeypatch.setattr(monitor, "kernel_distance", lambda *arguments: (next(left), 0.0))
        return keys

    return set_up


def kept(folder):
    """(steps in best/, what best.json says)."""
    return Checkpoints(folder / "best").good_steps(), json.loads((folder / "best.json").read_text())


def test_the_state_with_the_smallest_distance_is_kept(experiment, state, inject, tmp_path):
    inject([3.0, 1.0, 2.0, 1.0])
    watch = Monitor(experiment, tmp_path)
    for step in (2, 4, 6, 8):
        metrics = watch(at(state, step), step, {"position": step})
        assert metrics.keys() == {"evaluate/kid", "evaluate/nfe"} and metrics["evaluate/nfe"] == 2
    assert kept(tmp_path) == ([4], {"step": 4, "kid": 1.0, "images": COUNT})  # the first of two that are equal
    restored = Checkpoints(tmp_path / "best").restore(state)
    assert state_hash(restored.state) == state_hash(at(state, 4)) != state_hash(at(state, 6))
    assert restored.data == {"position": 4}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_never_the_best(experiment, state, inject, tmp_path, bad):
    """One such pixel is enough; the extractor would make a black image of it, with some distance."""
    inject([0.0], x0=jnp.zeros((8, 8, 1)).at[0, 0].set(bad))
    assert np.isnan(Monitor(experiment, tmp_path)(state, 2, {})["evaluate/kid"])
    assert not (tmp_path / "best").exists() and not (tmp_path / "best.json").exists()
    inject([0.0])  # the negative control
    Monitor(experiment, tmp_path)(state, 2, {})
    assert kept(tmp_path)[0] == [2]


def test_a_distance_that_is_not_a_number_replaces_nothing_and_blocks_nothing(experiment, state, inject, tmp_path):
    inject([float("nan"), 2.0, float("nan"), 1.0])
    watch, steps = Monitor(experiment, tmp_path), []
    for step in (2, 4, 6, 8):
        watch(at(state, step), step, {})
        steps.append(Checkpoints(tmp_path / "best").good_steps())
    assert steps == [[], [4], [4], [8]]


def test_the_best_survives_a_restart(experiment, state, inject, tmp_path):
    inject([1.0])
    Monitor(experiment, tmp_path)(at(state, 2), 2, {})
    inject([1.5, 0.5])
    watch = Monitor(experiment, tmp_path)
    watch(at(state, 4), 4, {})
    assert kept(tmp_path) == ([2], {"step": 2, "kid": 1.0, "images": COUNT})
    watch(at(state, 6), 6, {})
    assert kept(tmp_path) == ([6], {"step": 6, "kid": 0.5, "images": COUNT})


def test_after_a_restart_from_an_older_checkpoint_the_best_may_be_an_earlier_step(experiment, state, inject, tmp_path):
    """Killed after step 12 was the best, restarted from checkpoint 10 with other, free, settings."""
    inject([2.0])
    Monitor(experiment, tmp_path)(at(state, 12), 12, {})
    inject([1.0])
    Monitor(experiment, tmp_path)(at(state, 11), 11, {})
    steps, record = kept(tmp_path)
    assert steps == [record["step"]] == [11]


def test_a_step_that_is_done_again_with_other_bits_may_be_the_best(experiment, state, inject, tmp_path):
    """Killed after step 12, restarted from checkpoint 10 on another machine: not bit for bit, as the loop allows."""
    inject([2.0])
    Monitor(experiment, tmp_path)(at(state, 12), 12, {})
    inject([1.0])
    other = dataclasses.replace(at(state, 12), skipped=jnp.asarray(1, jnp.int32))
    Monitor(experiment, tmp_path)(other, 12, {})
    assert kept(tmp_path)[1]["kid"] == 1.0


def test_its_images_are_none_of_those_of_an_evaluation(experiment, state, inject, tmp_path):
    """Mode `evaluate` makes images 0 to ranges * num_samples - 1, and image i has the key (seed, i)."""
    keys = inject([1.0])
    Monitor(experiment, tmp_path)(state, 2, {})
    own = {tuple(key) for key in keys[0].tolist()}
    evaluated = {tuple(key) for key in jax.random.key_data(image_keys(0, jnp.arange(2 * 20))).tolist()}
    following = {tuple(key) for key in jax.random.key_data(image_keys(0, 40 + jnp.arange(COUNT))).tolist()}
    assert len(own) == COUNT and not own & evaluated and own == following


def test_the_distance_is_that_of_these_images_to_the_test_images(experiment, state, tmp_path):
    """By hand, from the sampler and the means of quarters of images."""
    keys, labels = image_keys(0, 40 + jnp.arange(COUNT)), jnp.arange(COUNT) % 10
    samples = inference.sample_function(experiment)(state.ema["score"]["100"], keys, labels)
    images = np.clip(np.floor((np.clip(samples.x0, -1, 1) + 1) * 127.5 + 0.5), 0, 255)

    def rows(images):
        return images.reshape(len(images), 4, -1).astype(np.float64).mean(axis=2) / 255

    expected = kernel_distance(rows(images), rows(open_source("digits", "test").images))[0]
    metrics = Monitor(experiment, tmp_path)(state, 2, {})
    assert metrics["evaluate/kid"] == pytest.approx(expected, rel=1e-3) and metrics["evaluate/nfe"] == 2
    assert kept(tmp_path)[1]["kid"] == metrics["evaluate/kid"]


# --- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_config, inject, tmp_path, monkeypatch):
    """The workdir of a run whose evaluations at steps 2, 4, 6 found the distances 5, 2, 4."""
    monkeypatch.setattr(loop, "draw_samples", lambda *arguments: None)
    inject([5.0, 2.0, 4.0])
    assert train(tiny_config(EVERY), str(tmp_path / "run")) == 0
    return tmp_path / "run"


def test_best_and_newest_of_a_run(run, tiny_config, inject):
    """Metrics of every evaluation, the best checkpoint, which of them is loaded; and all that after going on."""
    values = read_metrics(run)
    assert values["evaluate/kid"] == {2: 5.0, 4: 2.0, 6: 4.0} and set(values["score/loss"]) == set(range(1, 7))
    assert kept(run) == ([4], {"step": 4, "kid": 2.0, "images": COUNT})
    # Step 4 as the regular checkpoint of that step has it.
    stored = Checkpoints(run / "checkpoints").restore(build_experiment(tiny_config(EVERY)).initial_state(), step=4)
    for choice, step in (("best", 4), ("newest", 6), (None, 6)):
        config = tiny_config(EVERY | {"evaluation.checkpoint": choice})
        _, params, found, identity = inference.load_run(config, str(run))
        assert found == step and identity == state_hash(params)
        assert (identity == state_hash(stored.state.ema["score"]["100"])) == (step == 4)
    inject([3.0, 1.0])
    more = tiny_config(EVERY | {"training.steps": 10})
    assert train(more, str(run), allow_config_change=True) == 0
    assert read_metrics(run)["evaluate/kid"] == {2: 5.0, 4: 2.0, 6: 4.0, 8: 3.0, 10: 1.0}
    assert kept(run) == ([10], {"step": 10, "kid": 1.0, "images": COUNT})
    assert len(read_json_lines(run / "metrics.jsonl")) == 10 + 5


def test_a_run_without_a_best_checkpoint_says_what_makes_one(trained, tiny_config, tmp_path):
    config, workdir = tiny_config({"evaluation.checkpoint": "best"}), shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(FileNotFoundError) as caught:
        inference.sample(config, str(workdir))
    message = str(caught.value)
    assert f"no checkpoint in {workdir / 'best'} yet" in message and "\n" not in message
    assert "--config.training.evaluate_every=STEPS" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.evaluate_every": 0}, r"config\.training\.evaluate_every = 0 must be at least 1, or None"),
        ({"training.evaluate_images": 0}, r"config\.training\.evaluate_images = 0 must be at least"),
        ({"evaluation.checkpoint": "latest"}, r"config\.evaluation\.checkpoint = latest must be newest or best"),
    ],
)
def test_settings_out_of_range(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(changes)


def test_a_number_of_images_without_a_distance_is_refused_before_training(tiny_config):
    """The kernel distance needs two."""
    with pytest.raises(ValueError, match=r"config\.training\.evaluate_images = 1"):
        tiny_config({"training.evaluate_every": 2, "training.evaluate_images": 1})
