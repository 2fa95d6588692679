"""The training loop: facts, steps, metrics, checkpoints, samples. One direction, no branches by method.

The order within a step matters: dispatch step n, then fetch batch n + 1 while the devices work. A checkpoint is taken
between two steps, so that state and data position always agree; the position is the number of the next batch.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from ml_collections import ConfigDict

from training import components
from training.checkpointing import Checkpoints
from training.experiment import Experiment, build_experiment, sampling_params
from training.inference import draw_samples
from training.manifest import state_hash
from training.mesh import put_batch
from training.metric_writers import MetricWriter
from training.monitor import Monitor
from training.preemption import StopSignals
from training.progress import Progress, duration
from training.state import TrainState
from training.teacher_run import check_teacher
from training.workdir import check_config, flat_config, prepare_workdir, store_config

MAX_STEPS_IN_FLIGHT = 2

# Sections and fields of a config that do not change what is learnt: a run may be continued with other values.
FREE_FIELDS = (
    "sampler",
    "evaluation",
    "mesh",
    "data.path",
    "training.log_every",
    "training.evaluate_every",
    "training.evaluate_images",
    "training.sample_every",
    "training.checkpoint_every",
    "training.keep",
    "training.tensorboard",
    "training.profile",
)


def train(config: ConfigDict, workdir: str, *, allow_config_change: bool = False) -> int:
    """Trains, or goes on training, until config.training.steps.

    Args:
      config: validated.
      workdir: created if absent; a run found there is continued.
      allow_config_change: continue although fields that change what is learnt differ from the stored config.

    Returns:
      0, or 128 + signal number after a stop request, when the state has been saved.

    Raises:
      ValueError, OSError, RuntimeError: for whatever does not fit, before anything is lost; FloatingPointError after
        config.training.max_skipped_in_a_row updates that were not finite.
    """
    if components.make_exact(config) is not None:
        raise ValueError(f"config.network.name = '{config.network.name}': there is nothing to train; use --mode=sample "
                         "or --mode=evaluate")
    with StopSignals() as stop:
        experiment = build_experiment(config)
        with prepare_workdir(workdir) as folder:
            check_config(folder, config.to_dict(), allow_change=allow_config_change, ignore=FREE_FIELDS)
            writer = MetricWriter(folder)
            try:
                return _run(experiment, folder, writer, stop, allow_config_change)
            finally:
                writer.close()


def restore_state(
    experiment: Experiment, checkpoints: Checkpoints, *, allow_other_data: bool = False, with_teacher: bool = True
) -> tuple[TrainState, int]:
    """The newest good state and the number of its step; the initial state and 0 for a new run.

    Raises:
      ValueError: the checkpoint belongs to another network, to other data and `allow_other_data` is False, or to
        another teacher and `with_teacher` is True.
    """
    state = experiment.initial_state()
    restored = checkpoints.restore(state)
    if restored is None:
        return state, 0
    stored, now = restored.data["fingerprint"], experiment.pipeline.fingerprint()
    different = [f"{k}: {stored.get(k)} (stored) != {now[k]} (now)" for k in now
                 if k != "process_count" and stored.get(k) != now[k]]
    if different:
        text = f"the data differ from those of checkpoint {restored.step}:\n  " + "\n  ".join(different)
        if not allow_other_data:
            raise ValueError(text)
        logging.warning("Change allowed: %s", text)
    if with_teacher:
        check_teacher(restored.data.get("teacher"), experiment.teacher, restored.step)
    return restored.state, restored.step


def _run(
    experiment: Experiment, workdir: Path, writer: MetricWriter, stop: StopSignals, allow_config_change: bool
) -> int:
    training = experiment.config.training
    checkpoints = Checkpoints(workdir / "checkpoints", keep=training.keep)
    state, start = restore_state(experiment, checkpoints, allow_other_data=allow_config_change)
    store_config(workdir, experiment.config.to_dict())  # only now: what does not fit must leave no trace
    writer.write_hparams(flat_config(experiment.config.to_dict()))
    _log_facts(experiment, state, start)
    if start >= training.steps:
        logging.info("Nothing to do: step %d of %d is saved in %s", start, training.steps, workdir)
        return 0

    step_function = jax.jit(experiment.step(), donate_argnums=0)
    monitor = Monitor(experiment, workdir) if training.evaluate_every else None
    progress = Progress(training.steps, start, make_lines=lambda: writer.progress_lines(training.steps))
    window = _Window(experiment, start)
    begin, step, stuck = time.monotonic(), start, False
    with experiment.pipeline.batches(start) as batches, jax.set_mesh(experiment.mesh):
        profile = _profiler(training.profile, workdir)
        for batch in _device_batches(batches, experiment):
            if stop.received:  # also before the first step is compiled
                break
            # Everything is on the devices already: a hidden copy in the hot path would raise here.
            with jax.transfer_guard("disallow"):
                state, metrics = step_function(state, experiment.frozen, batch)
            step += 1
            if step == start + 1:
                logging.info("Step %d is on its way after %s of start-up", step, duration(time.monotonic() - begin))
            window.add(metrics)
            progress(step)
            profile(step)
            last = step == training.steps
            if step % training.log_every == 0 or last:
                scalars = window.close(step)
                writer.write_scalars(step, scalars)
                progress.metrics(step, scalars)
                stuck = scalars["skipped_in_a_row"] >= training.max_skipped_in_a_row
            if step % training.checkpoint_every == 0 or last or stuck:
                _save(checkpoints, step, state, experiment)
            if monitor and (step % training.evaluate_every == 0 or last):
                writer.write_scalars(step, monitor(state, step, _data_item(experiment, step)))
            if stuck:
                raise _stuck_error(step, int(scalars["skipped_in_a_row"]), training.max_skipped_in_a_row)
            if last or (training.sample_every and step % training.sample_every == 0):
                draw_samples(experiment, sampling_params(experiment, state), writer, step)
            if step == start + 1 and training.tensorboard:
                writer.start_tensorboard()  # last, since its imports would hold up all of the above
            if last:
                break
    progress.close()
    if stop.received:
        _save(checkpoints, step, state, experiment)
        logging.info("Stopped by a signal; step %d is saved in %s", step, workdir)
        return stop.exit_code
    logging.info("Done: step %d, state sha256 %s, %s", step, state_hash(state), duration(time.monotonic() - begin))
    return 0


def _save(checkpoints: Checkpoints, step: int, state: TrainState, experiment: Experiment) -> None:
    checkpoints.save(step, state, data=_data_item(experiment, step), config=experiment.config.to_dict())


def _data_item(experiment: Experiment, step: int) -> dict[str, Any]:
    """What a checkpoint holds besides the state: where the data stand, and the teacher of a student."""
    data = {"position": step, "fingerprint": experiment.pipeline.fingerprint(),
            "image_shape": list(experiment.image_shape)}  # fmt: skip
    return data | ({"teacher": experiment.teacher} if experiment.teacher else {})


def _device_batches(batches: Iterator[dict], experiment: Experiment) -> Iterator[dict]:
    for batch in batches:
        batch.pop("index")  # example ids are for logs and tests
        yield put_batch(batch, experiment.mesh)


class _Window:
    """Metrics since the last line, kept on the devices until the line is written."""

    def __init__(self, experiment: Experiment, start: int):
        self._experiment, self._rows, self._start = experiment, [], start
        self._time = time.monotonic()
        # Of the network that is sampled, which a method updates last.
        self._update = experiment.updates[-1]
        self._rate = components.learning_rate(experiment.config, self._update)

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._rows.append(metrics)
        if len(self._rows) > MAX_STEPS_IN_FLIGHT:
            # The host must not run far ahead, or a stop request would have to wait for all that it enqueued.
            jax.block_until_ready(self._rows[-1 - MAX_STEPS_IN_FLIGHT])

    def close(self, step: int) -> dict[str, float]:
        """Means over the window (counters: their last value) and the rates of the run."""
        rows = jax.device_get(self._rows)
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[-1]}
        means |= {name: float(value) for name, value in rows[-1].items() if name.startswith("skipped")}
        seconds = time.monotonic() - self._time
        batch_size = self._experiment.config.data.batch_size
        means |= {
            "learning_rate": float(self._rate(max(step - 1 - self._update.start, 0))),
            "epoch": step * batch_size / len(self._experiment.train),
            "steps_per_second": (step - self._start) / seconds,
        }
        self._rows, self._start, self._time = [], step, time.monotonic()
        return means


def _stuck_error(step: int, skipped: int, limit: int) -> FloatingPointError:
    # Batches, keys and noise are functions of (seed, step): the numbers of the steps say which they were.
    return FloatingPointError(
        f"{skipped} updates in a row, of steps {step - skipped + 1} to {step}, were not finite (limit "
        f"config.training.max_skipped_in_a_row = {limit}); the parameters before them are saved as step {step}. Lower "
        "config.optimizer.learning_rate, or look at the data of these steps (Pipeline.batch(step - 1))"
    )


def _profiler(enabled: bool, workdir: Path) -> Any:
    """CLU's hook, which writes a trace of a few steps; it imports tensorflow, so only on request."""
    if not enabled:
        return lambda step: None
    from clu import periodic_actions

    return periodic_actions.Profile(logdir=str(workdir / "tensorboard"), first_profile=10, every_secs=None,
                                    num_profile_steps=5)


def _log_facts(experiment: Experiment, state: TrainState, start: int) -> None:
    """What a reader wants to know before the first step."""
    config, mesh = experiment.config, experiment.mesh
    for role, params in state.params.items():
        logging.info("Parameters of '%s':\n%s", role, parameter_overview.get_parameter_overview(params))
    if experiment.teacher:
        logging.info("Teacher: %s", experiment.teacher)
    logging.info(
        "%s: %d x %s, mesh %s, batch %d (%d per device); steps %d to %d, %.1f epochs of %d images %s",
        config.experiment, mesh.size, jax.devices()[0].device_kind, dict(mesh.shape), config.data.batch_size,
        config.data.batch_size // mesh.size, start, config.training.steps,
        config.training.steps * config.data.batch_size / len(experiment.train), len(experiment.train),
        experiment.image_shape,
    )
