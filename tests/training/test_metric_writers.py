"""Metric writers: lines that survive kills and restarts, and a TensorBoard that may be slow, missing or broken."""

import builtins
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from training import metric_writers
from training.metric_writers import MetricWriter, read_metrics

ROOT = Path(__file__).parents[2]


class Recorder:
    """Stands for CLU's writer."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, *args))


@pytest.fixture
def recorder(monkeypatch):
    writer = Recorder()
    monkeypatch.setattr(metric_writers, "_clu_writer", lambda directory: writer)
    return writer


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# JSON lines.


def test_scalars_of_every_kind_become_plain_numbers(tmp_path):
    before = time.time()
    numbers = {"a": 0.1, "b": jnp.asarray(1.5, jnp.bfloat16), "c": np.int64(3), "d": jnp.asarray(7)}
    MetricWriter(tmp_path).write_scalars(5, numbers | {"e": np.float32(0.1)})
    [record] = lines(tmp_path)
    assert before <= record.pop("time") <= time.time()
    assert record == {"step": 5, "segment": 1, "a": 0.1, "b": 1.5, "c": 3, "d": 7, "e": float(np.float32(0.1))}
    assert type(record["c"]) is int and type(record["d"]) is int


def test_values_that_are_not_finite_survive(tmp_path):
    MetricWriter(tmp_path).write_scalars(1, {"nan": jnp.asarray(np.nan), "inf": -np.inf})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text().replace('"NaN"', "")
    metrics = read_metrics(tmp_path)
    assert np.isnan(metrics["nan"][1]) and metrics["inf"][1] == -np.inf


def test_one_transfer_for_all_scalars(tmp_path, monkeypatch):
    transfers = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: transfers.append(len(tree)) or device_get(tree))
    MetricWriter(tmp_path).write_scalars(1, {name: jnp.asarray(1.0) for name in "abc"})
    assert transfers == [3]


@pytest.mark.parametrize(
    ("scalars", "error", "message"),
    [
        ({"step": 1}, ValueError, "metric name 'step' is reserved; reserved are step, segment, time"),
        ({"loss": np.zeros(2)}, TypeError, r"metric 'loss' must be one number, not an array of shape \(2,\)"),
    ],
)
def test_faults_of_the_program_are_errors(tmp_path, scalars, error, message):
    with pytest.raises(error, match=message):
        MetricWriter(tmp_path).write_scalars(1, scalars)


def test_repeated_steps_count_once_and_the_newest_wins(tmp_path):
    first = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        first.write_scalars(step, {"loss": step / 10, "fid": 1.0})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "seg')  # killed in the middle of a line
    second = MetricWriter(tmp_path)
    assert (first.segment, second.segment) == (1, 2)
    second.write_scalars(30, {"loss": -3.0})
    second.write_scalars(40, {"loss": -4.0})
    metrics = read_metrics(tmp_path)
    assert metrics == {"loss": {10: 1.0, 20: 2.0, 30: -3.0, 40: -4.0}, "fid": {10: 1.0, 20: 1.0, 30: 1.0}}
    assert MetricWriter(tmp_path).segment == 3


def test_the_segment_decides_not_the_order_of_lines(tmp_path):
    for segment, loss in ((2, 2.0), (1, 1.0)):
        writer = MetricWriter(tmp_path)
        writer.segment = segment
        writer.write_scalars(1, {"loss": loss})
    assert read_metrics(tmp_path) == {"loss": {1: 2.0}}


def test_a_full_disk_warns_once_and_recovers(tmp_path, monkeypatch, caplog):
    writer = MetricWriter(tmp_path)

    def full(path, record):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(metric_writers, "append_json_line", full)
        for step in range(3):
            writer.write_scalars(step, {"loss": 1.0})
    assert caplog.text.count("cannot be written; training goes on") == 1
    writer.write_scalars(3, {"loss": 2.0})
    assert read_metrics(tmp_path) == {"loss": {3: 2.0}}


def test_only_the_first_process_writes(tmp_path, monkeypatch, recorder):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = MetricWriter(tmp_path)
    writer.start_tensorboard()
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_images(1, {"samples": np.zeros((2, 2, 1), np.uint8)})
    writer.write_hparams({"a": 1})
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == [] and recorder.calls == []


# Images.


def test_images_are_tiled_row_by_row(tmp_path):
    batch = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    MetricWriter(tmp_path).write_images(7, {"samples/ema 0.99": batch})
    with Image.open(tmp_path / "images" / "samples_ema_0.99-00000007.png") as image:
        picture = np.asarray(image)
    assert picture.shape == (4, 9, 3)
    for index, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        np.testing.assert_array_equal(picture[2 * row : 2 * row + 2, 3 * column : 3 * column + 3], batch[index])
    assert not picture[2:, 6:].any()
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["samples_ema_0.99-00000007.png"]


def test_one_grey_image(tmp_path):
    image = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    MetricWriter(tmp_path).write_images(0, {"x": jnp.asarray(image)})
    with Image.open(tmp_path / "images" / "x-00000000.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), image[..., 0])


@pytest.mark.parametrize(("shape", "dtype"), [((2, 2, 3), np.float32), ((2, 2), np.uint8), ((2, 2, 2), np.uint8)])
def test_what_is_no_image_is_refused(tmp_path, shape, dtype):
    with pytest.raises(ValueError, match=rf"image 'x' must be uint8, .*; it is {np.dtype(dtype)} \({shape[0]}, "):
        MetricWriter(tmp_path).write_images(0, {"x": np.zeros(shape, dtype)})


# Event files.


def test_calls_wait_for_a_slow_import_without_holding_the_loop_and_keep_their_order(tmp_path, monkeypatch):
    recorder, loaded = Recorder(), threading.Event()
    monkeypatch.setattr(metric_writers, "_clu_writer", lambda directory: loaded.wait(30) and recorder)
    writer = MetricWriter(tmp_path)
    writer.write_hparams({"lr": 0.1, "shape": (8, 8)})
    writer.write_scalars(1, {"loss": jnp.asarray(1.0)})
    writer.start_tensorboard()
    writer.start_tensorboard()  # again: nothing
    for step in (2, 3):
        writer.write_scalars(step, {"loss": float(step)})
    writer.write_images(3, {"x": np.zeros((2, 2, 1), np.uint8)})
    writer.flush()
    assert recorder.calls == [] and len(lines(tmp_path)) == 3
    loaded.set()
    writer.close()
    writer.close()
    names = ["write_hparams", *["write_scalars"] * 3, "write_images", "flush", "close"]
    assert [call[0] for call in recorder.calls] == names
    assert recorder.calls[0][1] == {"lr": 0.1, "shape": "(8, 8)"}
    assert [call[1:] for call in recorder.calls[1:4]] == [(1, {"loss": 1.0}), (2, {"loss": 2.0}), (3, {"loss": 3.0})]
    assert recorder.calls[4][2]["x"].shape == (1, 2, 2, 1)


def test_a_run_that_ends_before_tensorboard_was_started_imports_nothing(tmp_path, recorder):
    writer = MetricWriter(tmp_path)
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert recorder.calls == [] and read_metrics(tmp_path) == {"loss": {1: 1.0}}


@pytest.mark.parametrize("missing", ["tensorflow", "clu"])
def test_without_tensorflow_or_clu_there_is_one_warning_and_the_lines_go_on(tmp_path, monkeypatch, caplog, missing):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name in (missing, "tensorflow"):  # tensorflow in both cases, to spare its long import
            if missing == name:
                raise ModuleNotFoundError(f"No module named {name!r}")
            return None
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    writer = MetricWriter(tmp_path)
    writer.start_tensorboard()
    writer._events._thread.join(30)
    for step in range(3):
        writer.write_scalars(step, {"loss": 1.0})
    writer.close()
    assert caplog.text.count("No TensorBoard event files") == 1
    assert f"No module named '{missing}'" in caplog.text
    assert len(read_metrics(tmp_path)["loss"]) == 3


def test_a_backend_that_fails_later_stops_alone(tmp_path, monkeypatch, caplog, recorder):
    def fail(*args):
        raise RuntimeError("disk full")

    monkeypatch.setattr(Recorder, "write_images", fail, raising=False)
    writer = MetricWriter(tmp_path)
    writer.start_tensorboard()
    writer.write_images(1, {"x": np.zeros((2, 2, 1), np.uint8)})
    writer._events._thread.join(30)
    for step in range(3):
        writer.write_scalars(step, {"loss": 1.0})
    writer.close()
    assert caplog.text.count("disk full") == 1 and writer._events._calls.empty()
    assert len(read_metrics(tmp_path)["loss"]) == 3


def test_a_hanging_backend_does_not_hold_up_the_end_for_ever(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(metric_writers, "CLOSE_TIMEOUT", 0.2)
    released = threading.Event()
    monkeypatch.setattr(metric_writers, "_clu_writer", lambda directory: released.wait(30) and Recorder())
    writer = MetricWriter(tmp_path)
    writer.start_tensorboard()
    writer.close()
    released.set()
    assert "event files in" in caplog.text and "are incomplete" in caplog.text


CHILD = """
import sys, time
from absl import logging
from training.metric_writers import MetricWriter
writer = MetricWriter(sys.argv[1])
assert "tensorflow" not in sys.modules
assert writer.progress_lines(10) is None and "clu" not in sys.modules
start = time.monotonic()
writer.start_tensorboard()
writer.write_scalars(1, {"loss": 0.25})
returned = time.monotonic() - start
writer.write_hparams({"lr": 0.1})
writer.close()
print(returned / (time.monotonic() - start))
logging.set_verbosity(logging.INFO)
lines = writer.progress_lines(3)
for step in (1, 2, 3):
    lines(step)
"""


def test_real_event_files_appear_without_waiting_for_tensorflow(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CHILD, tmp_path]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 0.3  # of the time that the import took
    assert "100.0% (3/3), ETA: " in ended.stderr
    [event_file] = (tmp_path / "tensorboard").iterdir()
    content = event_file.read_bytes()
    assert b"loss" in content and np.float32(0.25).tobytes() in content and b"hparams" in content
