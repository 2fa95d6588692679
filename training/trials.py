"""Many runs, some at a time: each is a process with a workdir of its own, and may be stopped and resumed like any run.

    <workdir>/log.txt         all that the process wrote, of all attempts
    <workdir>/finished.json   written when it ended well: proves that exactly these settings are done

What finished is never repeated. What was interrupted goes on by the same command, for the runs resume from their own
checkpoints. What fails is told with its last lines, and the others go on. SIGTERM and Ctrl-C are handed on to the
processes, which save and leave; no further ones are started then.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from training.preemption import StopSignals
from training.progress import duration
from training.workdir import read_json_lines, write_json_atomic

MARKER, LOG, RESULTS = "finished.json", "log.txt", "results.jsonl"
SHOWN_LINES = 5  # of the log of a trial that failed
_POLL_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run.

    Attributes:
      name: for people.
      workdir: of this trial alone; made if absent.
      command: the process, with its arguments.
      identity: hash of all that the result depends on.
    """

    name: str
    workdir: Path
    command: tuple[str, ...]
    identity: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended.

    Attributes:
      state: "finished", "finished before", "failed" or "stopped".
      seconds: of the attempt that finished it.
      message: why it failed: the last lines of its log.
    """

    trial: Trial
    state: str
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class _Running:
    trial: Trial
    process: subprocess.Popen
    log: IO[bytes]
    begin: float


def run_trials(
    trials: Sequence[Trial],
    *,
    processes: int,
    done: Callable[[Outcome], None] = lambda outcome: None,
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> tuple[list[Outcome], int]:
    """Runs what has not finished yet, `processes` at a time.

    Args:
      done: called with each finished trial as soon as it is, also with those of an earlier call; a ValueError or
        OSError that it raises makes the trial a failed one.
      report: is given lines for people.

    Returns:
      The outcomes, in the order of the trials as far as they were started, and an exit code: 0; 1 if a trial failed;
      128 + signal number after a stop request.

    Raises:
      ValueError: for two trials of one workdir, or fewer than one process.
    """
    if processes < 1:
        raise ValueError(f"--processes = {processes} must be at least 1")
    _refuse_duplicates(trials)
    outcomes: dict[str, Outcome] = {}
    waiting: deque[Trial] = deque()
    for trial in trials:
        seconds = finished_seconds(trial)
        if seconds is None:
            waiting.append(trial)
        else:
            outcomes[trial.name] = _deliver(Outcome(trial=trial, state="finished before", seconds=seconds), done)
    if outcomes:
        report(f"{len(outcomes)} of {len(trials)} have finished before")

    def ended(outcome: Outcome) -> None:
        outcomes[outcome.trial.name] = outcome
        report(_line(outcome, list(outcomes.values()), len(trials), processes))

    with StopSignals() as stop:
        _run_waiting(waiting, processes, stop, done, ended, report)
    ordered = [outcomes[trial.name] for trial in trials if trial.name in outcomes]
    return ordered, stop.exit_code or int(any(outcome.state == "failed" for outcome in ordered))


def _run_waiting(
    waiting: deque[Trial], processes: int, stop: StopSignals, done: Callable[[Outcome], None],
    ended: Callable[[Outcome], None], report: Callable[[str], None],
) -> None:
    """Starts and awaits processes until none is left, or until those that run have heard of a stop request and left."""
    running: list[_Running] = []
    environment, forwarded = child_environment(processes), False
    try:
        while running or (waiting and not stop.received):
            while waiting and len(running) < processes and not stop.received:
                running.append(_start(waiting.popleft(), environment))
            if stop.received and not forwarded:
                forwarded = True
                report(f"stopping {len(running)} process(es); nothing that is saved is lost")
                _signal(running, stop.received)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                ended(_end(one, stopping=stop.received is not None, done=done))
            time.sleep(_POLL_SECONDS)
    finally:  # a fault of ours must not leave processes behind
        _signal(running, signal.SIGTERM)


def finished_seconds(trial: Trial) -> float | None:
    """How long the last attempt of a trial took that finished with exactly these settings; None if none did."""
    try:
        record = json.loads((trial.workdir / MARKER).read_text())
        return float(record["seconds"]) if record["identity"] == trial.identity else None
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or not ours: then it runs again
        return None


def newest_record(workdir: Path) -> dict:
    """The newest line of results.jsonl. Raises ValueError where there is none."""
    records = [record for record in read_json_lines(workdir / RESULTS) if isinstance(record.get("metrics"), dict)]
    if not records:
        raise ValueError(f"{workdir / RESULTS} holds no results")
    return records[-1]


def child_environment(processes: int) -> dict[str, str]:
    """Variables of processes that share the machine: without them each would start as many threads as there are cores.

    What the user has set stays as it is.
    """
    environment = dict(os.environ)
    if processes == 1:
        return environment
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // processes)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        environment.setdefault(name, str(threads))
    if threads == 1 and "xla_cpu_multi_thread_eigen" not in environment.get("XLA_FLAGS", ""):
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or the first process takes most of a GPU
    return environment


def _refuse_duplicates(trials: Sequence[Trial]) -> None:
    for of in (lambda trial: trial.name, lambda trial: trial.workdir.absolute()):
        seen: dict[object, Trial] = {}
        for trial in trials:
            if seen.setdefault(of(trial), trial) is not trial:
                raise ValueError(f"two trials have the same name or workdir: {trial.name}, {trial.workdir}")


def _start(trial: Trial, environment: dict[str, str]) -> _Running:
    trial.workdir.mkdir(parents=True, exist_ok=True)
    log = open(trial.workdir / LOG, "ab")  # noqa: SIM115 - closed when the process has ended
    # A session of its own: a terminal sends Ctrl-C to all of a session, and the process must hear of it once, from us.
    process = subprocess.Popen(trial.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                               env=environment, start_new_session=True)  # fmt: skip
    return _Running(trial=trial, process=process, log=log, begin=time.monotonic())


def _signal(running: Sequence[_Running], number: int) -> None:
    for one in running:
        one.process.send_signal(number)


def _end(ended: _Running, *, stopping: bool, done: Callable[[Outcome], None]) -> Outcome:
    trial, code, seconds = ended.trial, ended.process.returncode, time.monotonic() - ended.begin
    ended.log.close()
    if code == 0:
        outcome = _deliver(Outcome(trial=trial, state="finished", seconds=seconds), done)
        if outcome.state == "finished":  # only now: what could not be delivered has to be done again
            write_json_atomic(trial.workdir / MARKER, {"identity": trial.identity, "seconds": seconds})
        return outcome
    if stopping:
        return Outcome(trial=trial, state="stopped", seconds=seconds)
    lines = [line for line in (trial.workdir / LOG).read_text(errors="replace").splitlines() if line.strip()]
    message = "\n".join([f"exit code {code}", *lines[-SHOWN_LINES:]])
    return Outcome(trial=trial, state="failed", seconds=seconds, message=message)


def _deliver(outcome: Outcome, done: Callable[[Outcome], None]) -> Outcome:
    try:
        done(outcome)
    except (ValueError, OSError) as problem:
        return Outcome(trial=outcome.trial, state="failed", seconds=outcome.seconds, message=str(problem))
    return outcome


def _line(outcome: Outcome, outcomes: Sequence[Outcome], total: int, processes: int) -> str:
    """How a trial ended, and how long the rest will take if the other trials are like those that ran so far."""
    took = [one.seconds for one in outcomes if one.state == "finished"]
    left = total - len(outcomes)
    known = took and left and outcome.state != "stopped"
    eta = f", ETA {duration(sum(took) / len(took) * left / processes)}" if known else ""
    text = f"[{len(outcomes)}/{total}] {outcome.trial.name}: {outcome.state} after {duration(outcome.seconds)}{eta}"
    return text + "".join(f"\n    {line}" for line in outcome.message.splitlines())
