"""Stop signals, sent to this process for the flag and to a child for what would end it."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from training.preemption import StopSignals

ROOT = Path(__file__).parents[2]


def send(number):
    os.kill(os.getpid(), number)  # to the own process it is delivered before this returns


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_sets_the_flag_and_nothing_else(number, code, capfd):
    with StopSignals() as stop:
        assert stop.received is None and stop.exit_code == 0
        send(number)
        assert stop.received == number and stop.exit_code == code
    assert f"{number.name}: finishing the step" in capfd.readouterr().err


def test_the_first_signal_decides_and_more_of_them_change_nothing(capfd):
    with StopSignals() as stop:
        for number in [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM]:
            send(number)
        assert stop.received == signal.SIGTERM and stop.exit_code == 143
    assert capfd.readouterr().err.count("already saving") == 5


def test_the_previous_handlers_come_back_also_after_an_error():
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(KeyError), StopSignals() as stop:
            send(signal.SIGTERM)
            raise KeyError
        assert seen == [] and stop.received == signal.SIGTERM
        send(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)
    # Python's own, also where the tests run in the background and SIGINT was ignored from the start.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with StopSignals():
            pass
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_signal_arrives_while_a_log_line_is_written():
    """The handler takes no lock: a signal that arrives inside a locked logging handler must not block."""
    lock = threading.Lock()
    with StopSignals() as stop, lock:
        send(signal.SIGTERM)
        assert stop.received == signal.SIGTERM


def test_a_closed_terminal_does_not_matter():
    saved = os.dup(2)
    try:
        os.close(2)
        with StopSignals() as stop:
            send(signal.SIGTERM)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert stop.received == signal.SIGTERM


CHILD = """
import os, signal, sys
from training.preemption import StopSignals
with StopSignals() as stop:
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
    print("saved", flush=True)
sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(
    ("numbers", "code", "output"),
    [
        ((signal.SIGTERM,) * 4, 143, "saved\n"),
        ((signal.SIGINT,) * 2, 130, "saved\n"),
        ((signal.SIGINT,) * 3, -signal.SIGINT, ""),
        ((), 0, "saved\n"),
    ],
)
def test_exit_codes_and_the_third_interrupt(numbers, code, output):
    command = [sys.executable, "-c", CHILD, *map(str, map(int, numbers))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (code, output)
