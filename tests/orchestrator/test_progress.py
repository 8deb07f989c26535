"""What people see while a run goes on."""

from __future__ import annotations

import io
import os
import time
from typing import Any

import pytest
from rich.console import Console

from orchestrator.progress import MAX_ROWS, LiveProgress, PlainProgress, elapsed, make_progress
from orchestrator.records import StatusRecord
from orchestrator.schedulers import JobState
from orchestrator.tracked import TrackedJob
from tests.builders import plan_run, recipe_document

PLANNED = plan_run(recipe_document("slurm", "vllm")).server


def job(name: str = "vllm", kind: str = "service", **fields: Any) -> TrackedJob:
    """Return a job."""
    planned = type(PLANNED)(**{**vars(PLANNED), "name": name, "kind": kind})
    return TrackedJob(**{"planned": planned, "job_id": "42", "submitted_at": time.time(), **fields})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.9, "0:59"), (61, "1:01"), (3600, "1:00:00"), (90_061, "25:01:01")]
)
def test_elapsed_reads_like_a_clock(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text


def test_plain_progress_says_each_change_once() -> None:
    text = io.StringIO()
    with PlainProgress(text) as progress:
        pending = job(why="Priority")
        for _ in range(3):
            progress.show_jobs([pending])
        running = job(state=JobState.RUNNING, node="gpu1", record=StatusRecord("t", "42", "a", "gpu1", "ready", 0.0))
        for _ in range(3):
            progress.show_jobs([running])
    assert text.getvalue() == "[0:00] vllm: pending (job 42): Priority\n[0:00] vllm: ready (job 42 on gpu1)\n"


def test_plain_progress_leaves_out_why_a_cancelled_job_ended() -> None:
    text = io.StringIO()
    PlainProgress(text).show_jobs([job(state=JobState.CANCELLED, why="signal 15", cancelled=True)])
    assert "signal" not in text.getvalue()


def test_plain_progress_of_a_bar_is_seldom_but_tells_the_end() -> None:
    text = io.StringIO()
    progress = PlainProgress(text)
    for done in range(1, 101):
        progress.show_bar("benchmark", done, 100, "7.0 tokens/s")
    assert text.getvalue().splitlines() == [
        "[0:00] benchmark: 1/100 7.0 tokens/s",
        "[0:00] benchmark: 100/100 7.0 tokens/s",
    ]


def test_make_progress_on_a_file_is_plain() -> None:
    assert isinstance(make_progress(io.StringIO()), PlainProgress)


def test_live_progress_at_80_columns_keeps_names_states_and_bars_whole() -> None:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=True, color_system=None)
    jobs = [job(f"service_{number}") for number in range(4)]
    jobs += [job(f"trial_{number:04}", "task", node="[/x] gpu[1-2]") for number in range(40)]
    with LiveProgress(console) as progress:
        progress.say("a note with [brackets] and a very long path " + "/x" * 60)
        progress.show_jobs(jobs)
        progress.show_bar("benchmark", 3, 10, "1234.5 tokens/s, 2 failed")
    shown = text.getvalue()
    assert "[brackets]" in shown
    for name in ("service_0", "service_3", "trial_0039", "3/10", "1234.5 tokens/s, 2 failed", "[/x] gpu[1-2]"):
        assert name in shown
    assert "trial_0000" not in shown
    assert f"… and {44 - MAX_ROWS} more that have ended" in shown
    rows = [line for line in shown.splitlines() if "trial_" in line or "service_" in line]
    assert all(len(line.rstrip()) <= 80 for line in rows)


def test_live_progress_stops_the_clock_of_a_job_that_has_ended() -> None:
    console = Console(file=io.StringIO(), width=80)
    progress = LiveProgress(console)
    ended = job(state=JobState.COMPLETED, submitted_at=time.time() - 100)
    progress.show_jobs([ended])
    first = progress._ended["vllm"]
    progress.show_jobs([ended])
    assert progress._ended["vllm"] == first


def test_progress_that_nobody_reads_any_more_is_logged_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w", buffering=1) as stream:
        progress = PlainProgress(stream)
        progress.say("one")
        os.close(read)
        progress.say("two")
        progress.say("three")
        assert [record.message for record in caplog.records] == ["progress is no longer shown: [Errno 32] Broken pipe"]
        with pytest.raises(BrokenPipeError):
            stream.close()


def test_plain_progress_says_nothing_twice_when_a_job_is_cancelled() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    running = job(state=JobState.RUNNING, node="gpu1", record=StatusRecord("t", "42", "a", "gpu1", "ready", 0.0))
    progress.show_jobs([running])
    running.cancelled, running.why = True, "a signal ended it; the scheduler has not said why"
    progress.show_jobs([running])
    assert len(stream.getvalue().splitlines()) == 1
