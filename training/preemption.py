"""Stop requests: SIGTERM from a scheduler and Ctrl-C only set a flag; the loops look at it and save before they leave.

    with StopSignals() as stop:
        for step in ...:
            ...
            if stop.received:
                save(); sys.exit(stop.exit_code)

Whatever takes longer than a step (compiling, sampling, an evaluation) has to look at the flag as well: a stop request
often arrives there. Processes that load data would have to ignore SIGTERM, for they receive it too and must outlive
the save; here data are loaded by threads. Regular saves remain the real guarantee: nothing helps against SIGKILL.
"""

import contextlib
import os
import signal
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ABORTING_INTERRUPT = 3


class StopSignals:
    """Context manager that turns SIGTERM and SIGINT into a flag; the previous handlers come back at its end.

    Further signals change nothing, since a save may be running; only the third Ctrl-C, an impatient person's, ends the
    process at once, which costs the steps since the last checkpoint, but never a checkpoint.

    Attributes:
      received: number of the first signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._interrupts = 0
        self._previous: dict[int, object] = {}

    @property
    def exit_code(self) -> int:
        """128 + signal number, as a shell reports it: 143 (SIGTERM) or 130 (SIGINT); 0 without a signal."""
        return 128 + self.received if self.received is not None else 0

    def __enter__(self) -> "StopSignals":
        """Raises ValueError outside the main thread, where Python allows no handlers."""
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not installed from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Runs between any two lines of the program, perhaps inside a logging call: no locks, so no logging, no print.
        name = signal.Signals(number).name
        self._interrupts += number == signal.SIGINT
        if self.received is None:
            self.received = number
            _tell(f"{name}: finishing the step, then saving and leaving")
        elif number == signal.SIGINT and self._interrupts >= ABORTING_INTERRUPT:
            _tell(f"{name}: aborting without saving")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            _tell(f"{name}: already saving; the third Ctrl-C aborts")


def _tell(message: str) -> None:
    with contextlib.suppress(OSError):  # a closed terminal must not keep the state from being saved
        os.write(2, f"\n{message}\n".encode())
