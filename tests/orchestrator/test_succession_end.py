"""Submitting a successor, when something else than the scheduler speaks up."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.errors import CommandError, LeaseLostError, OrchError
from orchestrator.interrupts import TerminatedError
from orchestrator.succession import Succession


def succession(error: OrchError, said: list[str]) -> Succession:
    """Return a succession whose submissions end with ``error``."""

    def submit(planned: object) -> object:
        raise error

    jobs = cast(Any, SimpleNamespace(next_generation=lambda name: 1, submit_successor=submit))
    return Succession(cast(Any, None), jobs, 60.0, {}, lambda name, generation: cast(Any, None), 5.0, said.append)


@pytest.mark.parametrize("error", [TerminatedError(signal.SIGTERM), LeaseLostError("the lease is another's")])
def test_end_of_the_orchestrator_while_it_submits_a_successor_is_no_refusal(error: OrchError) -> None:
    said: list[str] = []
    with pytest.raises(type(error)):
        succession(error, said)._begin(cast(Any, SimpleNamespace(name="vllm")))
    assert said == []


def test_refused_successor_is_told_and_the_server_goes_on() -> None:
    said: list[str] = []
    succession(CommandError(["sbatch"], 1, "no", "sbatch failed"), said)._begin(cast(Any, SimpleNamespace(name="vllm")))
    assert "the successor of vllm was not submitted: sbatch failed" in said[0]
