"""Signals as a request to stop at the next safe point."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.errors import TrainingInterruptedError

# Slurm and PBS send TERM before they kill; USR1 is what batch scripts ask for as an early warning.
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Remembers the first stop signal until somebody asks."""

    def __init__(self) -> None:
        self._signum: int | None = None

    def request(self, signum: int) -> None:
        """Ask for the end, as ``signum`` does; later requests change nothing."""
        if self._signum is None:
            self._signum = signum

    def check(self) -> None:
        """Do nothing unless the end was asked for.

        Raises:
            TrainingInterruptedError: it was.
        """
        if self._signum is not None:
            raise TrainingInterruptedError(self._signum)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Give a request that SIGTERM, SIGUSR1 and Ctrl-C set; a second Ctrl-C ends the process at once."""
    stop = StopRequest()

    def handle(signum: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module gives it
        stop.request(signum)
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {signum: signal.signal(signum, handle) for signum in _STOP_SIGNALS}
    try:
        yield stop
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
