"""Signals of the orchestrator: what ends a run, what leaves it, and what is not ours to take over."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.interrupts import Interrupts, TerminatedError

PROJECT = Path(__file__).parents[2]
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TOLD_TO_HANG_UP = """
import signal
from orchestrator.interrupts import Interrupts
Interrupts().install()
signal.raise_signal(signal.SIGHUP)
print("goes on")
"""


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Return interrupts to be installed; the signals' own handlers come back at the end."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield Interrupts()
    for number, handler in before.items():
        signal.signal(number, handler)


def hung_up(*prefix: str) -> subprocess.CompletedProcess[str]:
    """Return how a process fares that gets a SIGHUP once its interrupts are installed."""
    argv = [*prefix, sys.executable, "-c", TOLD_TO_HANG_UP]
    return subprocess.run(argv, cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


def test_hangup_under_nohup_changes_nothing() -> None:
    done = hung_up("nohup")
    assert (done.returncode, done.stdout) == (0, "goes on\n")


def test_hangup_without_nohup_ends_the_orchestrator() -> None:
    done = hung_up()
    assert (done.returncode, done.stdout) == (1, "")
    assert "the orchestrator got SIGHUP" in done.stderr


def test_install_leaves_an_ignored_hangup_ignored_and_takes_the_others(interrupts: Interrupts) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interrupts.install()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    with pytest.raises(TerminatedError):
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["SIGTERM", "SIGHUP"]
)
def test_signal_held_back_arrives_when_the_block_is_left(
    number: signal.Signals, exit_code: int, interrupts: Interrupts
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    interrupts.install()
    done: list[str] = []

    def submit() -> None:
        with interrupts.held():
            signal.raise_signal(number)
            done.append("submitted")

    with pytest.raises(TerminatedError) as caught:
        submit()
    assert done == ["submitted"]
    assert caught.value.exit_code == exit_code
