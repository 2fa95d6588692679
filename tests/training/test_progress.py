"""What a run tells: a line per metrics without a terminal, a bar on one."""

import io
import logging
import sys

import pytest
from absl import logging as absl_logging

from training import progress as progress_module
from training.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (5.0, "5s"), (59.6, "1m00s"), (125.0, "2m05s"), (3599.4, "59m59s"), (3599.6, "1h00m"),
     (7260.0, "2h01m"), (90061.0, "25h01m")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_of_metrics_with_the_time_left(clock, caplog, monkeypatch):
    """From step 10 to 20 in 5 s: half a second per step, and 80 of 100 steps left."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    absl_logging.set_verbosity(absl_logging.INFO)
    with caplog.at_level(logging.INFO, logger="absl"):
        progress = Progress(100, 10, make_lines=lambda: None)
        clock[0] += 5.0
        progress.metrics(20, {"score/loss": 0.123456, "skipped_updates": 0.0})
        progress.close()
    assert [record.getMessage() for record in caplog.records] == ["step 20/100, ETA 40s: loss=0.1235 skipped_updates=0"]


def test_clu_lines_begin_as_soon_as_clu_is_there(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    seen = []
    made = [None, None, seen.append]
    progress = Progress(10, 0, make_lines=lambda: made.pop(0))
    for step in range(1, 6):
        progress(step)
    assert seen == [3, 4, 5] and made == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_on_a_terminal_there_is_one_bar_that_starts_where_the_run_does(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress(50, 20, make_lines=lambda: pytest.fail("a bar needs no lines"))
    with caplog.at_level(logging.INFO, logger="absl"):
        for step in range(21, 51):
            progress(step)
        progress.metrics(50, {"score/loss": 0.5})
        progress.close()
    assert "50/50" in terminal.getvalue() and "loss=0.5" in terminal.getvalue() and not caplog.records
