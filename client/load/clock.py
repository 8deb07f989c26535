"""Timers with the kernel's precision: uvloop's own are rounded to milliseconds."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from time import monotonic

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLOCK_MONOTONIC, _TFD_TIMER_ABSTIME = 1, 1  # linux/time.h, sys/timerfd.h
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_ITIMERSPEC = struct.Struct("qqqq")


class Alarm:
    """Calls back at absolute times of the monotonic clock; see timerfd_create(2)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        """Make an alarm that is not set.

        Raises:
            OSError: the kernel has no timer for it.
        """
        self._fd = _LIBC.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._loop, self._callback = loop, callback
        loop.add_reader(self._fd, self._ring)

    def set(self, at_s: float) -> None:
        """Ring at ``at_s``, at once if that is over."""
        seconds = max(at_s, 1e-9)
        whole = int(seconds)
        spec = _ITIMERSPEC.pack(0, 0, whole, int((seconds - whole) * 1e9))
        if _LIBC.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, spec, None) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._callback()

    def close(self) -> None:
        """Never ring again."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class LagProbe:
    """How late this event loop runs its timers, sampled all the time: the client's own error."""

    PERIOD_S = 0.01

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._alarm = Alarm(loop, self._sample)
        self._due_s = monotonic() + self.PERIOD_S
        self.samples = 0
        self.total_s = 0.0
        self.latest_s = 0.0
        self.worst_s = 0.0
        self._alarm.set(self._due_s)

    def _sample(self) -> None:
        now_s = monotonic()
        self.latest_s = max(0.0, now_s - self._due_s)
        self.worst_s = max(self.worst_s, self.latest_s)
        self.samples += 1
        self.total_s += self.latest_s
        self._due_s = now_s + self.PERIOD_S
        self._alarm.set(self._due_s)

    def mean_since(self, samples: int, total_s: float) -> float:
        """Return the mean lateness in seconds since there were so many samples."""
        taken = self.samples - samples
        return (self.total_s - total_s) / taken if taken else self.latest_s

    def close(self) -> None:
        """Sample no more."""
        self._alarm.close()
