"""Kills and stop signals against real processes of main.py: what comes out is the uninterrupted run, to the bit.

Signals are sent on observed progress (lines of metrics.jsonl, a line of the log), never by the clock, which would only
ever hit the start-up. A big batch in many slices makes a step long enough to be seen.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.checkpointing import Checkpoints

ROOT = Path(__file__).parents[2]
STEPS, EVERY = 40, 5
FLAGS = {
    "network.width": 16,
    "network.depth": 1,
    "network.dropout": 0.1,
    "data.batch_size": 1280,
    "data.shift": 1,
    "training.accumulation": 80,
    "training.steps": STEPS,
    "training.log_every": 1,
    "training.checkpoint_every": EVERY,
    "optimizer.warmup_steps": 2,
    "sampler.steps": 2,
}
PATIENCE = 300.0  # seconds until a test is given up


class Run:
    """Processes of main.py on one workdir, one after another."""

    def __init__(self, workdir, environment):
        self.workdir, self.environment, self.process = workdir, environment, None
        self.log = workdir.with_suffix(".log")

    def start(self):
        command = [sys.executable, "main.py", "--config=configs/digits.py:dsm", f"--workdir={self.workdir}"]
        command += [f"--config.{name}={value}" for name, value in FLAGS.items()]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        return self

    def wait_until(self, seen):
        deadline = time.monotonic() + PATIENCE
        while not seen():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"nothing came:\n{self.log.read_text()}"
            time.sleep(0.005)
        return self

    def steps(self):
        """(segment, step) of every whole line of metrics."""
        path = self.workdir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = []
        for line in lines:
            with contextlib.suppress(ValueError):
                records.append(json.loads(line))
        return [(record["segment"], record["step"]) for record in records]

    def last_step(self):
        return max((step for _, step in self.steps()), default=0)

    def send(self, number):
        self.process.send_signal(number)
        return self.end()

    def end(self):
        return self.process.wait(PATIENCE)

    def saved(self):
        return Checkpoints(self.workdir / "checkpoints").good_steps()

    def losses(self):
        """{step: every (loss, gradient norm) that was logged for it, by the digits of the JSON}."""
        values = {}
        for line in (self.workdir / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            pair = repr(record["score/loss"]), repr(record["score/gradient_norm"])
            values.setdefault(record["step"], set()).add(pair)
        return values

    def final_hash(self):
        (digest,) = re.findall(rf"Done: step {STEPS}, state sha256 ([0-9a-f]{{64}})", self.log.read_text())
        return digest


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """make(name) -> Run; all of them share main.py's compilation cache, which lies beside their workdirs."""
    folder = tmp_path_factory.mktemp("faults")
    stub = folder / "stub"
    stub.mkdir()
    # Without event files, as where tensorflow is missing: importing it takes longer than these runs.
    (stub / "tensorflow.py").write_text("raise ImportError('left out of this test')\n")
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(stub), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    made = []

    def make(name):
        made.append(Run(folder / name, environment))
        return made[-1]

    yield make
    for run in made:
        if run.process is not None and run.process.poll() is None:
            run.process.kill()
            run.process.wait()


@pytest.fixture(scope="module")
def reference(runs):
    run = runs("reference").start()
    assert run.end() == 0, run.log.read_text()
    return run


def assert_same(run, reference):
    assert run.final_hash() == reference.final_hash()
    losses = run.losses()
    assert losses == reference.losses() and set(losses) == set(range(1, STEPS + 1))
    assert all(len(values) == 1 for values in losses.values())  # steps done twice had the same numbers twice


def test_a_kill_and_a_stop_signal(runs, reference):
    """kill -9 between two checkpoints, then SIGTERM: the steps since the checkpoint are redone, after SIGTERM none."""
    run = runs("both").start()
    killed_at = run.wait_until(lambda: run.last_step() >= EVERY + 2).last_step()
    assert run.send(signal.SIGKILL) == -signal.SIGKILL
    saved, first = max(run.saved()), run.last_step()
    assert saved % EVERY == 0 and EVERY <= saved <= killed_at <= first < STEPS
    run.start().wait_until(lambda: (2, first + 6) in run.steps())
    assert run.send(signal.SIGTERM) == 143
    stopped = run.last_step()
    assert max(run.saved()) == stopped < STEPS  # at the very step
    assert f"step {stopped} is saved in {run.workdir}" in run.log.read_text()
    assert run.start().end() == 0
    steps = run.steps()
    assert [step for segment, step in steps if segment == 1] == list(range(1, first + 1))
    assert [step for segment, step in steps if segment == 2] == list(range(saved + 1, stopped + 1))
    assert [step for segment, step in steps if segment == 3] == list(range(stopped + 1, STEPS + 1))
    assert_same(run, reference)


def test_a_stop_signal_while_the_step_compiles(runs):
    """The run ends within a grace time and leaves a whole state, that of the steps done. Here the cache is cold, so
    that the signal comes at the compilation: after the facts were logged, and long before a line of metrics."""
    run = runs("cold/run")
    run.workdir.parent.mkdir()
    run.start().wait_until(lambda: run.log.exists() and "steps 0 to" in run.log.read_text())
    begin = time.monotonic()
    assert run.send(signal.SIGTERM) == 143
    assert time.monotonic() - begin < 60
    done = run.last_step()
    assert done <= 2 and run.saved() == [done]
    assert not [path.name for path in (run.workdir / "checkpoints").iterdir() if path.name != str(done)]


@pytest.mark.slow
def test_ctrl_c(runs, reference):
    run = runs("interrupted").start()
    run.wait_until(lambda: run.last_step() >= 3)
    assert run.send(signal.SIGINT) == 130
    assert max(run.saved()) == run.last_step() < STEPS
    assert run.start().end() == 0
    assert_same(run, reference)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 6), (signal.SIGTERM, 3)])
def test_many_interruptions(runs, reference, number, count):
    run, redone = runs(f"many_{int(number)}"), 0
    for segment in range(1, count + 1):
        run.start().wait_until(lambda segment=segment: sum(s == segment for s, _ in run.steps()) >= 6)
        code = run.send(number)
        assert code == (143 if number == signal.SIGTERM else -number)
        done, saved = run.last_step(), max(run.saved())
        assert done < STEPS and saved == (done if number == signal.SIGTERM else done - done % EVERY)
        redone += done - saved
    assert run.start().end() == 0
    assert len(run.steps()) == STEPS + redone
    assert_same(run, reference)
