"""The engine on small programs in place of runs: what is run, repeated, stopped, reported."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from training import trials as engine
from training.trials import Outcome, Trial, child_environment, finished_seconds, run_trials

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trial(tmp_path):
    """trial(name, shell script, identity=...): the script runs with its workdir as $1."""

    def make(name, script="true", identity="a"):
        workdir = tmp_path / name
        return Trial(name=name, workdir=workdir, identity=identity,
                     command=("/bin/sh", "-c", f"echo ran >> {tmp_path}/{name}.count; {script}", "sh", str(workdir)))

    make.runs = lambda name: len((tmp_path / f"{name}.count").read_text().splitlines())
    return make


def run(trials, **options):
    lines = []
    outcomes, code = run_trials(trials, report=lines.append, **({"processes": 2} | options))
    return [outcome.state for outcome in outcomes], code, lines, outcomes


def test_a_failing_trial_is_told_with_its_last_lines_and_the_others_go_on(trial):
    script = "for i in 1 2 3 4 5 6 7; do echo line $i; done; echo bad news >&2; exit 3"
    states, code, lines, outcomes = run([trial("a"), trial("b", script), trial("c"), trial("d")])
    assert states == ["finished", "failed", "finished", "finished"] and code == 1
    assert outcomes[1].message.splitlines() == ["exit code 3", "line 4", "line 5", "line 6", "line 7", "bad news"]
    told = next(line for line in lines if " b: failed" in line)
    assert "bad news" in told and "line 3" not in told
    assert (outcomes[1].trial.workdir / "log.txt").read_text().startswith("line 1\n")


def test_what_finished_is_not_repeated_and_what_failed_is(trial):
    trials = [trial("a"), trial("b", "test -e $1/second || { touch $1/second; exit 1; }")]
    assert run(trials)[:2] == (["finished", "failed"], 1)
    states, code, lines, _ = run(trials)
    assert states == ["finished before", "finished"] and code == 0
    assert lines[0] == "1 of 2 have finished before"
    assert (trial.runs("a"), trial.runs("b")) == (1, 2)


def test_a_marker_of_other_settings_or_a_torn_one_does_not_count(trial):
    run([trial("a")])
    assert finished_seconds(trial("a")) is not None
    assert finished_seconds(trial("a", identity="b")) is None
    marker = trial("a").workdir / "finished.json"
    for text in ("", "{", "[]", '{"identity": "a"}', '{"seconds": 1}'):
        marker.write_text(text)
        assert finished_seconds(trial("a")) is None, text
        assert run([trial("a")])[0] == ["finished"]


def test_as_many_at_a_time_as_asked_for(trial, tmp_path):
    """Each writes when it began and ended; the largest number of overlapping intervals is the number of processes."""
    script = "date +%s%N > $1/begin; sleep 0.3; date +%s%N > $1/end"
    for processes in (1, 3):
        names = [f"{processes}-{i}" for i in range(3)]
        run([trial(name, script) for name in names], processes=processes)
        times = [[int((tmp_path / name / end).read_text()) for end in ("begin", "end")] for name in names]
        overlaps = max(sum(begin <= at < end for begin, end in times) for at, _ in times)
        assert overlaps == processes


def test_delivery_comes_before_the_marker(trial):
    """What could not be stored is done again; what finished before is delivered again."""
    states, code, _, outcomes = run([trial("a")], done=lambda outcome: (_ for _ in ()).throw(ValueError("no results")))
    assert (states, code, outcomes[0].message) == (["failed"], 1, "no results")
    delivered = []
    for expected in ("finished", "finished before"):
        assert run([trial("a")], done=delivered.append)[0] == [expected]
    assert [outcome.state for outcome in delivered] == ["finished", "finished before"] and trial.runs("a") == 2


def test_duplicates_and_no_processes_are_refused(trial):
    with pytest.raises(ValueError, match="same name or workdir: a"):
        run([trial("a"), trial("a", "exit 1")])
    with pytest.raises(ValueError, match="--processes = 0 must be at least 1"):
        run([trial("a")], processes=0)
    assert not trial("a").workdir.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_is_handed_on_and_leaves_a_state_to_resume_from(trial, number):
    """The process saves on the signal, and the second call goes on where it was; the waiting one was never started."""
    script = textwrap.dedent("""
        trap 'echo saved > $1/checkpoint; exit 143' TERM INT
        test -e $1/checkpoint && exit 0
        touch $1/started; while true; do sleep 0.05; done
    """)
    trials = [trial("a", script), trial("b")]

    def stop():
        while not (trials[0].workdir / "started").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    states, code, lines, _ = run(trials, processes=1)
    thread.join()
    assert (states, code) == (["stopped"], 128 + number) and any("stopping 1 process" in line for line in lines)
    assert (trials[0].workdir / "checkpoint").read_text() == "saved\n" and not trials[1].workdir.exists()
    assert run(trials, processes=1)[:2] == (["finished", "finished"], 0)


def test_a_fault_of_the_engine_leaves_no_process_behind(trial, monkeypatch):
    def fault(*arguments, **options):
        raise ZeroDivisionError

    started = []
    start = engine._start
    monkeypatch.setattr(engine, "_start", lambda *a: started.append(start(*a)) or started[-1])
    monkeypatch.setattr(engine, "_end", fault)
    with pytest.raises(ZeroDivisionError):
        run([trial("a", "exec sleep 60"), trial("b")])
    assert started[0].process.wait(timeout=5) == -signal.SIGTERM


def test_the_time_left(trial):
    """Four trials of 10 s, two at a time: after the second, the other two need 10 s."""
    done = [Outcome(trial=trial(name), state="finished", seconds=10.0) for name in "ab"]
    assert engine._line(done[1], done, 4, 2) == "[2/4] b: finished after 10s, ETA 10s"
    before = [Outcome(trial=trial("c"), state="finished before", seconds=500.0)]
    assert engine._line(done[1], [*before, *done], 4, 1) == "[3/4] b: finished after 10s, ETA 10s"


def test_processes_share_the_cores_and_the_user_has_the_last_word(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name in ("OMP_NUM_THREADS", "XLA_FLAGS", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.delenv(name, raising=False)
    assert child_environment(1) == dict(os.environ)
    two, many = child_environment(2), child_environment(12)
    assert two["OMP_NUM_THREADS"] == "4" and "XLA_FLAGS" not in two and two["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert many["OMP_NUM_THREADS"] == "1" and many["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")
    mine = child_environment(8)
    assert mine["OMP_NUM_THREADS"] == "3" and mine["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=true"


def test_importing_the_engine_does_not_start_jax_devices():
    """The scripts only start processes: a GPU that they took would be missing there."""
    code = ("import sys; import training.trials, jax; from jax._src import xla_bridge; "
            "print(xla_bridge.backends_are_initialized())")
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_the_newest_record(tmp_path):
    with pytest.raises(ValueError, match="holds no results"):
        engine.newest_record(tmp_path)
    lines = [{"metrics": {"fd": 1}}, {"metrics": {"fd": 2}}, {"note": "no metrics"}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"metrics"')
    assert engine.newest_record(tmp_path) == {"metrics": {"fd": 2}}
