"""Runs as their ledgers tell of them."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator import history
from orchestrator.atomic import write_json
from orchestrator.errors import CommandError, OrchError, RunNotFoundError
from orchestrator.history import is_orchestrated, run_state, stop_run, tracker_of
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob, plan_job
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState
from tests.builders import PlannedRun, ProgramFolder, plan_run, recipe_document


class PastRun:
    """A run on a Slurm of three small programs, whose orchestrator is gone."""

    def __init__(self, folder: Path) -> None:
        self.run = RunDir(folder / "run")
        self.run.make()
        document = recipe_document("slurm", "vllm", polling={"scheduler_s": 0.2, "records_s": 0.1})
        document["job"]["scheduler"]["command_timeout_s"] = 20
        self.planned: PlannedRun = plan_run(document, self.run.root)
        self.planned.plan.write()
        write_json(self.run.recipe, self.planned.resolved.recipe.model_dump(mode="json", exclude_none=True))
        self.ledger = Ledger(self.run.events)
        self.programs = ProgramFolder(folder / "bin")
        self.programs.add("sbatch", "exit 1")
        self.programs.add("squeue", f"cat {folder}/queue 2>/dev/null || true")
        self.programs.add("scancel", f"rm -f {folder}/queue")
        self.queue = folder / "queue"

    def submitted(self, name: str, job_id: str) -> str:
        """Record a submission and return the job's token."""
        token = self.intended(name)
        self.ledger.append("job_submitted", job=name, token=token, job_id=job_id)
        return token

    def intended(self, name: str) -> str:
        """Record an intent and return the job's token."""
        job = self.planned.jobs[name]
        self.ledger.append("job_intent", token=job.token, planned=job.as_json("slurm"))
        return job.token

    def ended(self, name: str, **fields: Any) -> None:
        """Write a job's sentinel."""
        token = self.planned.jobs[name].token
        base = {"token": token, "job_id": "1", "attempt": "a", "host": "n", "state": "finished", "started_at": 1.0}
        write_json(self.run.status(token), {**base, **fields})


@pytest.fixture
def past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PastRun:
    """Return a planned run with its programs on PATH."""
    made = PastRun(tmp_path)
    monkeypatch.setenv("PATH", made.programs.path)
    return made


@pytest.mark.parametrize(
    ("events", "state", "kept"),
    [
        ([], "planned", False),
        (["run_started"], "left", False),
        (["run_started", "orchestrator_left"], "left", False),
        (["run_started", ("run_finished", {"state": "completed", "kept": False})], "completed", False),
        (["run_started", ("run_finished", {"state": "completed", "kept": True})], "completed", True),
        (["run_started", ("run_finished", {"state": "failed", "kept": False})], "failed", False),
        (["run_started", ("run_finished", {"state": "completed", "kept": True}), "run_stopped"], "completed", False),
        (["run_started", "orchestrator_left", "run_stopped"], "stopped", False),
        (["run_started", "run_stopped"], "stopped", False),
    ],
)
def test_run_state_follows_the_ledger(events: list[Any], state: str, kept: bool, past: PastRun) -> None:
    for event in events:
        name, data = event if isinstance(event, tuple) else (event, {})
        past.ledger.append(name, **data)
    found = run_state(past.run)
    assert (found.state, found.kept, found.name, found.scheduler) == (state, kept, "job", "slurm")
    assert (found.started_at is None) == (not events)


def test_run_state_is_running_while_its_orchestrator_lives(past: PastRun) -> None:
    past.ledger.append("run_started")
    lease = Lease(past.run.lease)
    lease.take()
    assert run_state(past.run).state == "running"
    assert is_orchestrated(past.run)
    lease.give_back()
    assert run_state(past.run).state == "left"
    assert not is_orchestrated(past.run)


def test_run_state_of_a_resumed_run_counts_how_often(past: PastRun) -> None:
    past.ledger.append("run_started")
    past.ledger.append("run_finished", state="failed", kept=False)
    past.ledger.append("run_resumed")
    past.ledger.append("run_resumed")
    state = run_state(past.run)
    assert (state.state, state.resumed, state.finished_at) == ("left", 2, None)


def test_run_with_a_damaged_plan_is_not_found(past: PastRun) -> None:
    past.run.plan.write_text('{"scheduler": ')
    with pytest.raises(RunNotFoundError, match="not a whole plan"):
        run_state(past.run)


def test_tracker_of_a_run_knows_its_jobs_and_their_ends(past: PastRun) -> None:
    token = past.submitted("vllm", "41")
    past.submitted("client", "42")
    past.ledger.append("cancel", job_ids=["41"], tokens=[token])
    past.ended("vllm", reason="signal", signal=15)
    past.ended("client", reason="exited", exit_code=3)
    tracker = tracker_of(past.run)
    tracker.poll()
    assert {job.name: job.state for job in tracker.jobs} == {"vllm": JobState.CANCELLED, "client": JobState.FAILED}


def test_tracker_of_a_run_finds_the_job_whose_answer_was_never_recorded(past: PastRun) -> None:
    token = past.intended("vllm")
    past.intended("client")
    past.ledger.append("job_refused", job="client", token=past.planned.jobs["client"].token)
    past.queue.write_text(f"77|RUNNING|n1|None|{token}\n")
    before = past.run.events.read_text()
    tracker = tracker_of(past.run)
    assert len(tracker.jobs) == 0
    tracker.adopt_intended()
    assert tracker["vllm"].job_id == "77"
    assert "client" not in tracker
    # It only looks: the run's orchestrator may live and write.
    assert past.run.events.read_text() == before


def test_tracker_of_a_run_has_the_last_of_several_submissions(past: PastRun) -> None:
    token = past.submitted("vllm", "41")
    past.ledger.append("cancel", job_ids=["41"], tokens=[token])
    again = plan_again(past, "vllm", 2)
    past.ledger.append("job_intent", token=again.token, planned=again.as_json("slurm"))
    past.ledger.append("job_submitted", job="vllm", token=again.token, job_id="41")
    tracker = tracker_of(past.run)
    assert (tracker["vllm"].planned.token, tracker["vllm"].cancelled) == (again.token, False)
    assert tracker.next_generation("vllm") == 3
    assert tracker.next_generation("client") == 1


def plan_again(past: PastRun, name: str, generation: int) -> PlannedJob:
    """Plan a service for another submission."""
    planned = past.planned
    draft = next(service for service in planned.services if service.name == name).draft(planned.context)
    job = plan_job(draft, planned.context, planned.resolved.scheduler, "0a1b2c3d", generation)
    job.write()
    return job


def test_stop_of_a_run_whose_orchestrator_died_writes_its_summary_and_report(past: PastRun) -> None:
    past.ledger.append("run_started")
    past.submitted("vllm", "41")
    past.ended("vllm", reason="exited", exit_code=0)
    write_json(past.run.stage("benchmark"), {"state": "completed", "successful": 3})
    stop_run(past.run)
    summary = json.loads(past.run.summary.read_text())
    assert (summary["state"], summary["stages"]["benchmark"]["successful"]) == ("stopped", 3)
    assert [job["job_id"] for job in summary["jobs"]] == ["41"]
    assert "its orchestrator ended before the run did" in past.run.report.read_text()


def test_tracker_of_a_run_without_its_scripts_says_so(past: PastRun) -> None:
    past.submitted("vllm", "41")
    past.run.script("vllm").unlink()
    with pytest.raises(RunNotFoundError, match="scripts of"):
        tracker_of(past.run)


def test_stop_cancels_by_id_and_records_it(past: PastRun) -> None:
    token = past.submitted("vllm", "41")
    past.submitted("client", "42")
    past.ended("client", reason="exited", exit_code=0)
    past.queue.write_text(f"41|RUNNING|n1|None|{token}\n99|RUNNING|n1|None|somebody-elses\n")
    past.programs.add("scancel", "")
    past.ledger.append("run_started")

    token_file = past.run.status(token)
    fields = {"token": token, "job_id": "41", "attempt": "a", "host": "n", "state": "finished", "started_at": 1.0}
    sentinel = json.dumps({**fields, "reason": "signal", "signal": 15})
    past.programs.add("scancel", f"echo '{sentinel}' >{token_file}")
    assert stop_run(past.run) == ["vllm"]
    assert past.programs.calls("scancel") == ["41"]
    assert run_state(past.run).state == "stopped"


def test_stop_of_a_run_whose_jobs_have_ended_cancels_nothing(past: PastRun) -> None:
    past.submitted("vllm", "41")
    past.ended("vllm", reason="exited", exit_code=0)
    assert stop_run(past.run) == []
    assert past.programs.calls("scancel") == []


def test_stop_that_is_refused_or_in_vain_is_an_error(past: PastRun, monkeypatch: pytest.MonkeyPatch) -> None:
    token = past.submitted("vllm", "41")
    past.queue.write_text(f"41|RUNNING|n1|None|{token}\n")
    past.programs.add("scancel", "echo 'Access denied' >&2; exit 1")
    with pytest.raises(CommandError, match="Access denied"):
        stop_run(past.run)
    past.programs.add("scancel", "")
    monkeypatch.setattr(history, "STOP_PATIENCE_S", 0.3)
    with pytest.raises(OrchError, match="these jobs have not ended: 41"):
        stop_run(past.run)


def test_stop_while_the_scheduler_is_silent_does_not_claim_success(
    past: PastRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    past.intended("vllm")
    past.programs.add("squeue", "exit 1")
    monkeypatch.setattr(history, "STOP_PATIENCE_S", 0.3)
    with pytest.raises(OrchError, match="does not answer"):
        stop_run(past.run)


def test_state_of_a_run_is_a_value(past: PastRun) -> None:
    assert dataclasses.asdict(run_state(past.run))["finished_at"] is None


def test_stop_keeps_resume_away_while_it_ends_jobs(past: PastRun) -> None:
    token = past.submitted("vllm", "41")
    past.queue.write_text(f"41|RUNNING|n1|None|{token}\n")
    lock = past.run.lease.with_suffix(".lock")
    past.programs.add("scancel", f"flock -n {lock} true || echo held >>{past.run.root}/lock; rm -f {past.queue}")
    past.ended("vllm", state="running")
    past.programs.add("squeue", f"cat {past.queue} 2>/dev/null || echo '41|CANCELLED|n1|None|{token}'")
    stop_run(past.run)
    assert (past.run.root / "lock").read_text() == "held\n"
    Lease(past.run.lease).take()


def test_stop_leaves_the_jobs_of_a_living_orchestrator_that_does_not_obey(
    past: PastRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = past.submitted("vllm", "41")
    past.queue.write_text(f"41|RUNNING|n1|None|{token}\n")
    Lease(past.run.lease).take()
    before = past.run.events.read_text()
    monkeypatch.setattr(history, "STOP_PATIENCE_S", 0.3)
    with pytest.raises(OrchError, match="looks after run and has not stopped it within 0 s: its jobs were left"):
        stop_run(past.run)
    assert past.programs.calls("scancel") == []
    assert past.run.events.read_text() == before
    assert past.run.stop_request.exists(), "it stops the run when it goes on"


def test_stop_waits_for_a_living_orchestrator_to_obey(past: PastRun) -> None:
    past.ledger.append("run_started")
    lease = Lease(past.run.lease)
    lease.take()

    def obey() -> None:
        while not past.run.stop_request.exists():
            time.sleep(0.05)
        past.ledger.append("run_finished", state="stopped", kept=False)
        lease.give_back()

    orchestrator = threading.Thread(target=obey)
    orchestrator.start()
    assert stop_run(past.run) == []
    orchestrator.join()
    assert [event["event"] for event in past.ledger.events("run_finished", "run_stopped")] == [
        "run_finished",
        "run_stopped",
    ]


def queued(past: PastRun, *job_ids: str) -> None:
    """Record batch jobs that will start or resume the run."""
    past.programs.add("scontrol", "echo ClusterName = here")
    for job_id in job_ids:
        past.ledger.append("run_queued", own_job=asked_for(job_id))


def asked_for(job_id: str) -> dict[str, str]:
    return {"scheduler": "slurm", "job_id": job_id, "cluster": "here", "name": "orch"}


def test_stop_cancels_every_orchestrator_in_the_queue_and_no_job_that_has_its_id_by_now(past: PastRun) -> None:
    queued(past, "51", "52", "53", "54")
    past.queue.write_text(
        "51|PENDING||None|orch\n52|PENDING||None|mine\n53|FAILED||None|orch\n55|RUNNING|n|None|orch\n"
    )
    past.programs.add("scancel", "")
    assert stop_run(past.run) == ["orchestrator (batch job 51)"]
    assert past.programs.calls("scancel") == ["51"]
    state = run_state(past.run)
    assert (state.state, state.own_job, state.batch_jobs, len(state.withdrawn)) == ("planned", None, (), 4)


def test_stop_cancels_the_job_of_the_last_orchestrator_that_slurm_has_requeued(past: PastRun) -> None:
    queued(past, "51")
    past.ledger.append("run_started", own_job=asked_for("51"))
    past.queue.write_text("51|PENDING||BeginTime|orch\n")
    assert stop_run(past.run) == ["orchestrator (batch job 51)"]
    assert past.programs.calls("scancel") == ["51"]


@pytest.mark.parametrize(
    ("program", "body", "words"),
    [
        ("scancel", "echo 'Access denied' >&2; exit 1", "Access denied"),
        ("squeue", "exit 1", "batch job 51 of here: its slurm cannot be asked from here"),
        ("scontrol", "echo ClusterName = other", "batch job 51 of here: its slurm cannot be asked from here"),
    ],
)
def test_stop_that_cannot_cancel_an_orchestrator_in_the_queue_says_so_and_withdraws_it(
    program: str, body: str, words: str, past: PastRun
) -> None:
    queued(past, "51")
    past.queue.write_text("51|PENDING||None|orch\n")
    past.programs.add(program, body)
    with pytest.raises(OrchError, match=rf"may still be in a queue:(.|\n)*{words}"):
        stop_run(past.run)
    assert [job.job_id for job in run_state(past.run).withdrawn] == ["51"]
