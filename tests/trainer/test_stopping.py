from __future__ import annotations

import os
import signal

import pytest

from trainer.errors import TrainingInterruptedError
from trainer.stopping import stop_on_signals


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)])
def test_stop_on_signals_signal_is_raised_at_the_next_check(signum: int, exit_code: int) -> None:
    before = signal.getsignal(signum)
    with stop_on_signals() as stop:
        stop.check()
        os.kill(os.getpid(), signum)
        with pytest.raises(TrainingInterruptedError) as caught:
            stop.check()
    assert caught.value.exit_code == exit_code
    assert signal.getsignal(signum) is before


def test_stop_on_signals_first_signal_decides() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(TrainingInterruptedError, match="SIGUSR1"):
            stop.check()


def test_stop_on_signals_second_interrupt_ends_at_once() -> None:
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
