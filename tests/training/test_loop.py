"""The loop in this process: what it logs and saves, and that a run in two pieces is the run in one, to the bit."""

import dataclasses
import json
import logging
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from absl import logging as absl_logging

from training import loop
from training.checkpointing import Checkpoints
from training.components import learning_rate
from training.experiment import build_experiment
from training.loop import train
from training.manifest import state_hash
from training.metric_writers import MetricWriter, read_metrics
from training.workdir import read_config, read_json_lines

# 1438 images in batches of 300: epochs end within the steps 5, 10, 15, 20; noise in data, labels, network and loss.
RUN = {"data.batch_size": 300, "data.shift": 1, "data.dequantise": True, "network.dropout": 0.3}
STEPS = 24
TIMES = ("time", "segment", "steps_per_second")

pytestmark = pytest.mark.usefixtures("no_tensorboard")


def final_state(config, workdir):
    return Checkpoints(workdir / "checkpoints").restore(build_experiment(config).initial_state())


def numbers(workdir):
    """{step: metrics} without those that depend on the clock; a step must not be logged twice."""
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read_json_lines(workdir / "metrics.jsonl")]
    by_step = {line["step"]: line for line in lines}
    assert len(by_step) == len(lines)
    return by_step


class Spy:
    """Watches the batches of a run, counted from its start: their ids, a signal, NaN or an error at chosen ones."""

    def __init__(self, monkeypatch, *, stop_at=None, number=signal.SIGTERM, poison=(), fail_at=None):
        self.ids, self.placed = [], 0
        batches, put = loop._device_batches, loop.put_batch

        def spying(iterator, experiment):
            def watched():
                for batch in iterator:
                    self.ids.append(batch["index"].copy())
                    yield batch

            return batches(watched(), experiment)

        def placing(batch, mesh):
            if self.placed == stop_at:
                os.kill(os.getpid(), number)
            if self.placed == fail_at:
                raise IndexError("as when the power fails")
            if self.placed in poison:
                batch["image"][0, 0] = np.nan
            self.placed += 1
            return put(batch, mesh)

        monkeypatch.setattr(loop, "_device_batches", spying)
        monkeypatch.setattr(loop, "put_batch", placing)


@pytest.fixture(scope="module")
def straight(tiny_config, tmp_path_factory):
    """One uninterrupted run: its folder, config, the ids of its batches, and how often its step was compiled."""
    from training import metric_writers

    workdir, config, compiled = tmp_path_factory.mktemp("straight"), tiny_config(RUN), []

    def missing(directory):
        compiled.append("tensorboard")  # called when the first step is on its way
        raise ImportError

    class Compilations(logging.Handler):
        def emit(self, record):
            compiled.extend(re.findall(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage()))

    handler, dispatch = Compilations(), logging.getLogger("jax._src.dispatch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_writers, "_clu_writer", missing)
        spy = Spy(patch)
        dispatch.addHandler(handler)
        try:
            with jax.log_compiles():
                assert train(config, str(workdir)) == 0
        finally:
            dispatch.removeHandler(handler)
    return workdir, config, spy.ids, compiled


# --- one run ---------------------------------------------------------------------------------------------------------


def test_the_step_is_compiled_once_and_before_anything_of_tensorboard_is_loaded(straight):
    compiled = straight[3]
    assert compiled.count("step") == compiled.count("tensorboard") == 1
    assert compiled.index("step") < compiled.index("tensorboard")


def test_every_step_is_logged_with_its_learning_rate_and_epoch(straight):
    workdir, config, *_ = straight
    lines, rate = numbers(workdir), learning_rate(config)
    assert list(lines) == list(range(1, STEPS + 1))
    for step, line in lines.items():
        assert line["learning_rate"] == float(rate(step - 1))  # of the update that made step n, the n-th
        assert line["epoch"] == pytest.approx(step * 300 / 1438)
        assert np.isfinite(line["score/loss"]) and line["skipped_updates"] == 0
    values = [line["score/loss"] for line in lines.values()]
    assert len(set(values)) == STEPS and np.mean(values[-6:]) < 0.95 * np.mean(values[:6])


def test_every_example_comes_once_per_epoch(straight):
    ids = np.concatenate(straight[2])
    for epoch in range(len(ids) // 1438):
        assert np.array_equal(np.sort(ids[epoch * 1438 : (epoch + 1) * 1438]), np.arange(1438))


def test_the_checkpoints_are_the_newest_regular_ones_and_the_last_step(straight):
    workdir, config, *_ = straight
    assert Checkpoints(workdir / "checkpoints").good_steps() == [20, STEPS]
    restored = final_state(config, workdir)
    assert restored.data["position"] == restored.step == int(restored.state.step) == STEPS
    assert read_config(workdir) == json.loads(json.dumps(config.to_dict()).replace("Infinity", '"Infinity"'))


def test_a_line_of_several_steps_is_their_mean_and_pictures_come_when_asked_for(straight, tiny_config, tmp_path):
    config = tiny_config(RUN | {"training.log_every": 7, "training.sample_every": 10, "training.keep": 1,
                                "training.checkpoint_every": 100})  # fmt: skip
    assert train(config, str(tmp_path)) == 0
    single, several = numbers(straight[0]), numbers(tmp_path)
    assert list(several) == [7, 14, 21, STEPS]
    for first, last in ((1, 7), (8, 14), (15, 21), (22, STEPS)):
        for name in ("score/loss", "score/gradient_norm", "score/x0_mse"):
            mean = np.mean([single[step][name] for step in range(first, last + 1)])
            assert several[last][name] == pytest.approx(mean, rel=1e-6), name
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        f"samples-{step:08d}.png" for step in (10, 20, STEPS)
    ]
    assert Checkpoints(tmp_path / "checkpoints").good_steps() == [STEPS]
    assert state_hash(final_state(config, tmp_path).state) == state_hash(final_state(config, straight[0]).state)


def test_a_finished_run_is_left_alone(straight, caplog):
    workdir, config, *_ = straight
    before = (workdir / "metrics.jsonl").read_bytes()
    absl_logging.set_verbosity(absl_logging.INFO)
    with caplog.at_level(logging.INFO, logger="absl"):
        assert train(config, str(workdir)) == 0
    assert f"Nothing to do: step {STEPS} of {STEPS} is saved in {workdir}" in caplog.text
    assert (workdir / "metrics.jsonl").read_bytes() == before


# --- two pieces ------------------------------------------------------------------------------------------------------


def test_a_run_in_pieces_is_the_run_in_one_to_the_bit(straight, tmp_path, monkeypatch):
    """Parameters, optimiser, averages and counters, every logged number of every step, the ids of every batch. Dropout,
    noise, label dropout and augmentation are on. The pieces end with Ctrl-C before the first step is compiled, with
    SIGTERM within an epoch, and, as after kill -9, with an error between two checkpoints."""
    workdir, config, ids, _ = straight

    def piece(code, **faults):
        with monkeypatch.context() as patch:
            spy = Spy(patch, **faults)
            assert train(config, str(tmp_path)) == code
        return spy.ids, Checkpoints(tmp_path / "checkpoints").latest_good_step()

    _, saved = piece(130, stop_at=0, number=signal.SIGINT)
    assert saved == 0 and not (tmp_path / "metrics.jsonl").exists()
    first, saved = piece(143, stop_at=7)
    assert saved == 7  # no step is redone
    with pytest.raises(IndexError):
        piece(None, fail_at=5)  # after step 12
    assert Checkpoints(tmp_path / "checkpoints").latest_good_step() == 10
    last, saved = piece(0)
    assert saved == STEPS
    assert state_hash(final_state(config, tmp_path).state) == state_hash(final_state(config, workdir).state)
    lines = read_json_lines(tmp_path / "metrics.jsonl")
    expected = [(1, step) for step in range(1, 8)] + [(2, step) for step in range(8, 13)]
    assert [(line["segment"], line["step"]) for line in lines] == expected + [(3, n) for n in range(11, STEPS + 1)]
    reference = numbers(workdir)
    for line in lines:  # those of the steps that were done twice, too
        assert {name: value for name, value in line.items() if name not in TIMES} == reference[line["step"]]
    assert np.array_equal(np.stack(first[:7]), np.stack(ids[:7]))
    assert np.array_equal(np.stack(last[: STEPS - 10]), np.stack(ids[10:STEPS]))


# --- updates that are not finite -------------------------------------------------------------------------------------


def test_a_poisoned_batch_is_skipped_and_the_run_goes_on(straight, tmp_path, monkeypatch):
    config = straight[1]
    Spy(monkeypatch, poison=(3, 4, 9))
    assert train(config, str(tmp_path)) == 0
    lines = numbers(tmp_path)
    assert [lines[step]["skipped_in_a_row"] for step in range(3, 12)] == [0, 1, 2, 0, 0, 0, 0, 1, 0]
    assert lines[STEPS]["skipped_updates"] == 3 and lines[4]["score/loss"] == "NaN"
    values = read_metrics(tmp_path)["score/loss"]
    assert {step for step, value in values.items() if np.isnan(value)} == {4, 5, 10}
    restored = final_state(config, tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored.state))
    assert int(restored.state.skipped) == 3 and restored.step == STEPS


def test_too_many_bad_updates_in_a_row_end_the_run_and_lose_nothing(straight, tiny_config, tmp_path, monkeypatch):
    config = tiny_config(RUN | {"training.max_skipped_in_a_row": 4})
    with monkeypatch.context() as patch:
        spy = Spy(patch, poison=range(7, 100))
        with pytest.raises(FloatingPointError) as caught:
            train(config, str(tmp_path))
    message = str(caught.value)
    assert message.startswith("4 updates in a row, of steps 8 to 11, were not finite (limit "
                              "config.training.max_skipped_in_a_row = 4)")
    assert "config.optimizer.learning_rate" in message and "\n" not in message
    assert spy.placed <= 12 and max(numbers(tmp_path)) == 11  # steps 8, 9, 10, 11 were bad
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.latest_good_step() == 11  # the good parameters of step 7 are saved before the run gives up
    state = checkpoints.restore(build_experiment(config).initial_state()).state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (4, 4)
    assert train(config, str(tmp_path)) == 0  # the data are good again
    assert numbers_last(tmp_path)["skipped_updates"] == 4


def numbers_last(workdir):
    return read_json_lines(workdir / "metrics.jsonl")[-1]


# --- another config --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_once(straight, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricWriter, "start_tensorboard", lambda self: None)
        Spy(patch, stop_at=3)
        assert train(straight[1], str(workdir)) == 143
    return workdir


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that was stopped after three steps."""
    return shutil.copytree(stopped_once, tmp_path / "run")


def test_fields_that_do_not_change_what_is_learnt_may_change(straight, stopped, tiny_config):
    free = {"training.log_every": 5, "training.keep": 1, "training.checkpoint_every": 50, "sampler.steps": 3,
            "evaluation.num_samples": 10}  # fmt: skip
    assert train(tiny_config(RUN | free), str(stopped)) == 0
    config = straight[1]
    assert state_hash(final_state(config, stopped).state) == state_hash(final_state(config, straight[0]).state)


def test_a_changed_config_is_refused_with_a_list_and_allowed_on_request(straight, stopped, tiny_config, caplog):
    changed = tiny_config(RUN | {"optimizer.learning_rate": 0.5, "training.max_skipped_in_a_row": 9})
    with pytest.raises(ValueError) as caught:
        train(changed, str(stopped))
    assert str(caught.value).splitlines()[1:] == [
        "  optimizer.learning_rate: 0.01 (stored) != 0.5 (now)",
        "  training.max_skipped_in_a_row: 50 (stored) != 9 (now)",
    ]
    assert read_config(stopped)["optimizer"]["learning_rate"] == 0.01
    changed = tiny_config(RUN | {"training.max_skipped_in_a_row": 9})
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert train(changed, str(stopped), allow_config_change=True) == 0
    assert "Change allowed" in caplog.text
    assert "training.max_skipped_in_a_row: 50 (stored) != 9 (now)" in caplog.text
    assert read_config(stopped)["training"]["max_skipped_in_a_row"] == 9


def test_an_allowed_change_that_does_not_fit_leaves_the_config(stopped, tiny_config):
    """Another network cannot take the state: the run must stay what it was, and continue with its own config."""
    stored = read_config(stopped)
    with pytest.raises(ValueError, match=r"(?s)checkpoint .*/3 does not fit this run:.*kernel"):
        train(tiny_config(RUN | {"network.width": 24}), str(stopped), allow_config_change=True)
    assert read_config(stopped) == stored


def test_another_batch_size_may_be_allowed(stopped, tiny_config, caplog):
    """The position counts batches: the change is allowed on request, with a warning that lists it."""
    changed = tiny_config(RUN | {"data.batch_size": 16})
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert train(changed, str(stopped), allow_config_change=True) == 0
    listed = r"data differ from those of checkpoint 3:\n  batch_size: \d+ \(stored\) != 16 \(now\)"
    assert re.search(listed, caplog.text)
    assert read_config(stopped)["data"]["batch_size"] == 16


def test_a_workdir_of_another_experiment_is_refused(stopped, tiny_config):
    with pytest.raises(ValueError, match=r'experiment: "tiny" \(stored\) != "other"'):
        train(tiny_config(RUN | {"experiment": "other"}), str(stopped))


@pytest.mark.parametrize(
    ("field", "value"), [("seed", 1), ("batch_size", 299), ("length", 1437), ("sha256", "0"), ("transform_version", 9)]
)
def test_a_position_in_other_data_is_refused(straight, stopped, field, value, monkeypatch):
    """The config may be the same and the data another; grain itself would take the position."""
    config = straight[1]
    experiment = build_experiment(config)
    now = experiment.pipeline.fingerprint()
    assert field in now
    pipeline = type(experiment.pipeline)
    monkeypatch.setattr(pipeline, "fingerprint", lambda self: now | {field: value})
    with pytest.raises(ValueError, match=rf"the data differ from those of checkpoint 3:\n  {field}: .* \(now\)$"):
        loop.restore_state(dataclasses.replace(experiment), Checkpoints(stopped / "checkpoints"))


def test_an_unwritable_workdir_is_refused_before_anything_is_trained(straight, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="the workdir cannot be written"):
        train(straight[1], str(tmp_path / "file" / "run"))
