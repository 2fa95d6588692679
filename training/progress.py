"""Where a run stands, for people: a bar on a terminal, lines otherwise.

Lines come from CLU's `ReportProgress` as soon as CLU is loaded (it imports tensorflow, which the first step must not
wait for); until then, and where tensorflow is missing, the line of metrics says the same.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from absl import logging


class Progress:
    """Called once per step with the number of finished steps."""

    def __init__(self, total: int, start: int, *, make_lines: Callable[[], Callable[[int], Any] | None]):
        """`make_lines` gives CLU's action, or None while CLU is not loaded."""
        self._total, self._start, self._time = total, start, time.monotonic()
        self._make_lines, self._lines = make_lines, None
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def __call__(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            return
        if self._lines is None:
            self._lines = self._make_lines()
        if self._lines is not None:
            self._lines(step)

    def metrics(self, step: int, scalars: dict[str, float]) -> None:
        """One line of metrics with the time left."""
        # The role of a metric is said where there are several.
        several = len({name.split("/")[0] for name in scalars if "/" in name}) > 1
        shown = " ".join(f"{name if several else name.split('/')[-1]}={value:.4g}" for name, value in scalars.items())
        if self._bar is not None:
            self._bar.set_postfix_str(shown[:80])
            return
        rate = (step - self._start) / max(time.monotonic() - self._time, 1e-9)
        left = (self._total - step) / max(rate, 1e-9)
        logging.info("step %d/%d, ETA %s: %s", step, self._total, duration(left), shown)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """5 -> '5s', 125 -> '2m05s', 7260 -> '2h01m'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
