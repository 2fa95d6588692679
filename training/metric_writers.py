"""Where numbers and pictures of a run go. The only file that knows CLU.

    <workdir>/metrics.jsonl     always: {"step": 100, "segment": 1, "time": 1.7e9, "score/loss": 0.12}
    <workdir>/images/           always: <name>-<step>.png
    <workdir>/tensorboard/      event files through CLU, where tensorflow is installed

A run that was killed repeats the steps since its last checkpoint and logs them again. Every start of a run is a
segment; `read_metrics` takes the newest segment's value of a step.

CLU imports tensorflow, which takes many seconds. It happens in a thread, and what is logged meanwhile waits in a queue.
No writer that fails, for want of disk space or of a package, ever stops the training: it warns once.
"""

import contextlib
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from evaluation.files import write_whole
from training.workdir import append_json_line, read_json_lines

METRICS, IMAGES, TENSORBOARD = "metrics.jsonl", "images", "tensorboard"
RESERVED = ("step", "segment", "time")
CLOSE_TIMEOUT = 60.0  # seconds; the import of tensorflow alone may take 20


class MetricWriter:
    """CLU's interface (`write_scalars`, `write_images`, `write_hparams`, `flush`, `close`) over JSON lines and CLU.

    Only the first process writes; in the others every call does nothing.
    """

    def __init__(self, workdir: str | os.PathLike):
        self.workdir = Path(workdir)
        self._active = jax.process_index() == 0
        self._warned: set[str] = set()
        self._events = _EventFiles(self.workdir / TENSORBOARD)
        records = read_json_lines(self.workdir / METRICS) if self._active else []
        self.segment = 1 + max((record.get("segment", 0) for record in records), default=0)

    def start_tensorboard(self) -> None:
        """Begins to load CLU in the background: to be called when the first step is on its way."""
        if self._active:
            self._events.start()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Python, numpy or JAX numbers by name, fetched from the device together.

        NaN and infinities are written as JSON strings. Raises ValueError for a name of `RESERVED` and TypeError for
        what is not one number: faults of the program.
        """
        if not self._active:
            return
        numbers = {name: _number(name, value) for name, value in jax.device_get(dict(scalars)).items()}
        with self._forgiving("metrics"):
            record = {"step": int(step), "segment": self.segment, "time": time.time(), **numbers}
            append_json_line(self.workdir / METRICS, record)
        self._events.put(lambda writer: writer.write_scalars(int(step), numbers))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """uint8 arrays by name, [height, width, channels] or [n, height, width, channels], 1 or 3 channels.

        Raises ValueError for another shape or dtype.
        """
        if not self._active:
            return
        pixels = {name: _pixels(name, value) for name, value in jax.device_get(dict(images)).items()}
        for name, batch in pixels.items():
            file_name = f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}-{int(step):08d}.png"
            with self._forgiving("images"):
                _write_png(self.workdir / IMAGES / file_name, batch)
        self._events.put(lambda writer: writer.write_images(int(step), pixels))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Flat settings for TensorBoard's table; what is no number, string or truth value is shown as text."""
        if self._active:
            plain = (bool, int, float, str)
            shown = {name: value if isinstance(value, plain) else str(value) for name, value in hparams.items()}
            self._events.put(lambda writer: writer.write_hparams(shown))

    def progress_lines(self, total: int) -> Callable[[int], Any] | None:
        """CLU's action that logs steps per second and the time left, to be called at every step.

        None as long as CLU is not loaded: the training must not wait for it.
        """
        if not self._events.loaded:
            return None
        from clu import periodic_actions

        return periodic_actions.ReportProgress(num_train_steps=total, every_secs=30.0)

    def flush(self) -> None:
        """Asks for the event files to be flushed; JSON lines and images are on the disk already."""
        self._events.put(lambda writer: writer.flush())

    def close(self) -> None:
        """Writes out what is waiting, for at most `CLOSE_TIMEOUT` seconds. May be called again."""
        self._events.close()

    @contextlib.contextmanager
    def _forgiving(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            if what not in self._warned:
                logging.warning("The %s of %s cannot be written; training goes on: %s", what, self.workdir, problem)
            self._warned.add(what)


def read_metrics(workdir: str | os.PathLike) -> dict[str, dict[int, float]]:
    """Logged scalars as {name: {step: value}}; of a step repeated after a restart, the newest segment's value."""
    metrics: dict[str, dict[int, float]] = {}
    records = [record for record in read_json_lines(Path(workdir) / METRICS) if record.keys() >= set(RESERVED)]
    for record in sorted(records, key=lambda record: record["segment"]):
        for name, value in record.items():
            if name not in RESERVED:
                metrics.setdefault(name, {})[record["step"]] = float(value)
    return {name: dict(sorted(values.items())) for name, values in metrics.items()}


class _EventFiles:
    """CLU's summary writer, living in a thread of its own; calls are done in the order in which they were put."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._calls: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed = False
        self.loaded = False

    def start(self) -> None:
        if self._thread is None:
            # A daemon, so that a hanging import cannot keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="tensorboard", daemon=True)
            self._thread.start()

    def put(self, call: Callable[[Any], None]) -> None:
        if not self._failed:
            self._calls.put(call)

    def close(self) -> None:
        """A run that ends before `start` has no event files: importing tensorflow only for them is not worth it."""
        if self._thread is not None and self._thread.is_alive():
            self._calls.put(None)
            self._thread.join(CLOSE_TIMEOUT)
            if self._thread.is_alive():
                logging.warning("TensorBoard's event files in %s are incomplete", self._directory)

    def _run(self) -> None:
        try:
            writer = _clu_writer(self._directory)
            self.loaded = True
            while (call := self._calls.get()) is not None:
                call(writer)
            writer.close()
        except Exception as problem:  # whatever a backend raises, training goes on
            self._failed = True
            logging.warning("No TensorBoard event files (%s: %s); metrics go to %s only. CLU needs tensorflow and "
                            "tensorboard.", type(problem).__name__, problem, METRICS)


def _clu_writer(directory: Path) -> Any:
    """The slow part. Raises ImportError where tensorflow, tensorboard or CLU is missing."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    from clu import metric_writers, periodic_actions  # noqa: F401 - progress_lines imports it without waiting then

    tf.config.set_visible_devices([], "GPU")  # otherwise it takes the memory that JAX needs
    return metric_writers.SummaryWriter(str(directory))


def _number(name: str, value: Any) -> int | float:
    if name in RESERVED:
        raise ValueError(f"metric name {name!r} is reserved; reserved are {', '.join(RESERVED)}")
    if np.ndim(value) != 0:
        raise TypeError(f"metric {name!r} must be one number, not an array of shape {np.shape(value)}")
    number = np.asarray(value).item()
    return int(number) if isinstance(number, bool | int) else float(number)


def _pixels(name: str, value: Any) -> np.ndarray:
    """[n, height, width, channels], uint8."""
    array = np.asarray(value)
    array = array[None] if array.ndim == 3 else array
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3) or not array.size:
        raise ValueError(f"image {name!r} must be uint8, [height, width, 1 or 3] or a batch of these; it is "
                         f"{array.dtype} {np.shape(value)}")
    return array


def _write_png(path: Path, batch: np.ndarray) -> None:
    """Tiles n images into about the square root of n columns and writes them in one move."""
    from PIL import Image

    count, height, width, channels = batch.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    padded = np.concatenate([batch, np.zeros((rows * columns - count, height, width, channels), np.uint8)])
    tiled = padded.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    picture = tiled.reshape(rows * height, columns * width, channels)
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    write_whole(path, lambda file: image.save(file, format="PNG"))
