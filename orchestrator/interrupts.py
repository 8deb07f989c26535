"""Signals of the orchestrator: Ctrl-C ends the run, TERM and HUP leave its jobs to be adopted."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from orchestrator.errors import OrchError


class TerminatedError(OrchError):
    """The orchestrator was told to end (TERM, HUP, or the end of its own wall time)."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.exit_code = 128 + number
        super().__init__(f"the orchestrator got {signal.Signals(number).name}")


class Interrupts:
    """Turns signals into exceptions, but never in the middle of a submission."""

    def __init__(self) -> None:
        self._depth = 0
        self._pending: int | None = None
        self._ignored = False

    def install(self) -> None:
        """Take over INT, TERM and HUP; main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            is_under_nohup = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if not is_under_nohup:
                signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """From now on the run is being put away: further signals change nothing."""
        self._ignored = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals back until the block is left."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            # Also where the block failed: the signal goes before its error.
            if self._depth == 0 and self._pending is not None:
                number, self._pending = self._pending, None
                self._raise(number)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._ignored:
            return
        if self._depth:
            self._pending = number
        else:
            self._raise(number)

    @staticmethod
    def _raise(number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise TerminatedError(number)
