"""How the benchmark measures and what it prints, with a clock of our own. The suites themselves take too long here."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "scripts" / "benchmark.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_figure_is_a_line_of_json_with_the_hardware(script):
    figure = script.figure("step", "a case", "seconds", np.float64(1.23456789), 11)
    line = json.loads(json.dumps(figure))
    assert {name: line[name] for name in ("suite", "case", "metric", "value", "n")} == {
        "suite": "step", "case": "a case", "metric": "seconds", "value": 1.2346, "n": 11}  # fmt: skip
    assert line["hardware"].startswith(f"{jax.device_count()} x ") and "CPU" in line["hardware"]
    assert f"{len(os.sched_getaffinity(0))} cores" in line["hardware"]


@pytest.fixture
def machine(script, monkeypatch):
    """A machine whose work takes the seconds it is told, times a drift of 10 % per run."""
    state = {"now": 0.0, "speed": 1.0, "order": ""}
    monkeypatch.setattr(time, "perf_counter", lambda: state["now"])

    def work(name, seconds):
        def run():
            state["now"] += seconds * state["speed"]
            state["speed"] *= 1.1
            state["order"] += name

        return run

    return state, work


@pytest.mark.parametrize("n", [4, 7])
def test_pairs_are_run_in_turn_and_drift_cancels(script, machine, n):
    """b is twice as fast; in a pair the later run is 1.1 times slower, as often a as b."""
    state, work = machine
    seconds_a, seconds_b, ratio = script.paired(work("a", 2.0), work("b", 1.0), n)
    pairs = [state["order"][i : i + 2] for i in range(0, len(state["order"]), 2)]
    assert len(pairs) == n + 1 and all(first != second for first, second in itertools.pairwise(pairs))
    assert 2 / 1.1 <= ratio <= 2 * 1.1
    assert seconds_a > seconds_b


def test_the_first_pair_is_left_out(script, machine):
    """The one that compiles."""
    state, _ = machine
    calls = []

    def slow_at_first():
        state["now"] += 1.0 if calls else 1000.0
        calls.append(1)

    seconds_a, _, ratio = script.paired(slow_at_first, slow_at_first, 1)
    assert (seconds_a, ratio) == (1.0, 1.0) and len(calls) == 4


def test_an_unknown_suite_is_refused():
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, str(PATH), "--suite=nonsense"], env=environment, capture_output=True,
                           text=True, timeout=100)  # fmt: skip
    assert ended.returncode == 2 and "invalid choice: 'nonsense'" in ended.stderr and "step" in ended.stderr
