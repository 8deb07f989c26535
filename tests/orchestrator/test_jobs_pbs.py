"""Jobs on a PBS whose queue shows the jobs of other users: what has our job's name is ours only if we own it."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest

from orchestrator import submission as submission_module
from orchestrator.errors import SubmitError
from orchestrator.jobs import JobTracker
from orchestrator.ledger import Ledger
from orchestrator.recipe.infrastructure import Polling
from orchestrator.recipe.sections import PbsSchedulerSpec
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState, make_scheduler
from tests.builders import ProgramFolder, hosts_here, planned_service
from tests.contract.recordings import pbs

ME = pwd.getpwuid(os.getuid()).pw_name
LOST = "echo 'qsub: Communication failure.' >&2; exit 1"


class Queue:
    """A run on a PBS of three small programs, whose qstat prints a document in the recorded form."""

    def __init__(self, folder: Path) -> None:
        self.programs = ProgramFolder(folder / "bin")
        self.run = RunDir(folder / "run")
        self.planned = planned_service(self.run)
        self._document = folder / "document"
        self.programs.add("qsub", "echo 7.pbshost")
        self.programs.add("qstat", f"cat {self._document}")
        self.programs.add("qdel", "")
        self.lists()
        polling = Polling.model_construct(scheduler_s=0.0, records_s=0.01, metrics_s=1.0, submits_per_s=1000.0)
        hosts = hosts_here(make_scheduler(PbsSchedulerSpec()), self.run)
        self.tracker = JobTracker(self.run, Ledger(self.run.events), hosts, polling)

    def lists(self, **owners: str) -> None:
        """Let qstat list running jobs under our token: number and owner."""
        document = json.loads(pbs("history.qstat-running").stdout)
        job = next(iter(document["Jobs"].values())) | {"Job_Name": self.planned.token}
        document["Jobs"] = {
            f"{number[1:]}.pbshost": {**job, "Job_Owner": f"{user}@login1"} for number, user in owners.items()
        }
        self._document.write_text(json.dumps(document, indent="\t"))


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Return a queue whose programs are on PATH; a lost answer is looked up without long waits."""
    made = Queue(tmp_path)
    monkeypatch.setenv("PATH", made.programs.path)
    monkeypatch.setattr(submission_module, "LOOKUP_WAITS_S", (0.01, 0.05))
    return made


def test_job_of_another_user_under_our_name_is_not_adopted(queue: Queue) -> None:
    queue.programs.add("qsub", LOST)
    queue.lists(_9="mallory")
    with pytest.raises(SubmitError):
        queue.tracker.submit(queue.planned)
    assert queue.planned.name not in queue.tracker
    assert queue.run.fence(queue.planned.token).exists(), "it was not taken, as far as we can see"
    assert queue.programs.calls("qdel") == []


def test_our_job_is_adopted_beside_one_of_another_user_under_its_name(queue: Queue) -> None:
    queue.programs.add("qsub", LOST)
    queue.lists(_6="mallory", _7=ME, _8="mallory")
    job = queue.tracker.submit(queue.planned)
    assert job.job_id == "7.pbshost"
    queue.tracker.poll()
    assert job.state == JobState.RUNNING
    queue.tracker.cancel(queue.tracker.jobs)
    assert queue.programs.calls("qdel") == ["7.pbshost"]


def test_id_that_has_become_a_job_of_another_user_is_not_ours(queue: Queue) -> None:
    job = queue.tracker.submit(queue.planned)
    queue.lists(_7="mallory")
    queue.tracker.poll()
    assert (job.state, job.why) == (JobState.UNKNOWN, "the scheduler does not list it")
