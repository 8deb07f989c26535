"""Jobs are watched and ended all the same when nothing can be written any more."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.jobs import JobTracker
from orchestrator.ledger import Ledger
from orchestrator.recipe.infrastructure import Polling
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState
from tests.builders import ProgramFolder, hosts_here, planned_service, slurm_scheduler


class FullDisk:
    """A run on a Slurm of three small programs, whose disk gets full."""

    def __init__(self, folder: Path) -> None:
        self.programs = ProgramFolder(folder / "bin")
        self.run = RunDir(folder / "run")
        self.planned = planned_service(self.run)
        queue = folder / "queue"
        queue.write_text(f"42|RUNNING|gpu1|None|{self.planned.token}\n")
        self.programs.add("sbatch", "echo 42")
        self.programs.add("squeue", f"cat {queue}")
        self.programs.add("scancel", f"sed -i s/RUNNING/CANCELLED/ {queue}")
        self.ledger = Ledger(self.run.events)
        polling = Polling.model_construct(scheduler_s=0.0, records_s=0.01, metrics_s=1.0, submits_per_s=1000.0)
        self.tracker = JobTracker(self.run, self.ledger, hosts_here(slurm_scheduler(), self.run), polling)

    def fill(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let every further line of the ledger fail."""

        def fail(event: str, **data: Any) -> None:
            raise StorageError(self.run.events, OSError(errno.ENOSPC, "No space left on device"))

        monkeypatch.setattr(self.ledger, "append", fail)


def test_jobs_are_cancelled_and_waited_for_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = FullDisk(tmp_path)
    monkeypatch.setenv("PATH", disk.programs.path)
    job = disk.tracker.submit(disk.planned)
    disk.fill(monkeypatch)

    with caplog.at_level(logging.WARNING):
        disk.tracker.poll()
        disk.tracker.cancel(disk.tracker.jobs)
        left = disk.tracker.wait_for_end(20.0)

    assert left == []
    assert job.state == JobState.CANCELLED
    assert "42" in disk.programs.calls("scancel")[0]
    assert "No space left on device" in caplog.text


def test_job_is_not_submitted_where_its_intent_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(tmp_path)
    monkeypatch.setenv("PATH", disk.programs.path)
    disk.fill(monkeypatch)
    with pytest.raises(StorageError):
        disk.tracker.submit(disk.planned)
    assert disk.programs.calls("sbatch") == []
