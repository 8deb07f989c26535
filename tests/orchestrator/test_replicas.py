"""When another job takes the place of a replica, and when the run ends instead."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

from orchestrator.errors import CannotStartError, JobFailedError, NoConnectionError, OrchError, SubmitError
from orchestrator.interrupts import TerminatedError
from orchestrator.jobs import JobTracker
from orchestrator.plan import PlannedJob
from orchestrator.records import StatusRecord
from orchestrator.replicas import AGAIN_S, MAX_REPLACEMENTS, Replicas
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState
from orchestrator.tracked import TrackedJob
from orchestrator.watch import Watch
from tests.builders import plan_run, recipe_document

NAMES = ("vllm-1", "vllm-2")
REFUSAL = SubmitError((), 1, "QOSMaxSubmitJobPerUserLimit", "job 'vllm-2'", is_refusal=True)


class FakeJobs:
    """A tracker whose jobs are in the state that the test says; a submitted one is pending."""

    def __init__(self) -> None:
        self.planned = plan_run(recipe_document("slurm", "vllm", service={"replicas": 2})).jobs
        self.jobs = {name: TrackedJob(self.planned[name], f"{name}.1", 0.0) for name in (*NAMES, "balancer", "client")}
        self.generations = Counter(NAMES)
        self.error: OrchError | None = None
        self.stuck: set[str] = set()
        self.given_up: list[str] = []

    @property
    def services(self) -> tuple[TrackedJob, ...]:
        return tuple(self.jobs.values())

    def next_generation(self, name: str) -> int:
        return self.generations[name] + 1

    def submit_replacement(self, planned: PlannedJob) -> TrackedJob:
        if self.error is not None:
            raise self.error
        self.generations[planned.name] += 1
        job = TrackedJob(planned, f"{planned.name}.{self.generations[planned.name]}", 0.0)
        self.jobs[planned.name] = job
        return job

    def is_stuck(self, job: TrackedJob) -> bool:
        return job.job_id in self.stuck

    def give_up(self, job: TrackedJob) -> CannotStartError:
        self.given_up.append(job.job_id)
        self.stuck.discard(job.job_id)
        job.stuck_since = None
        return CannotStartError(job.name, job.job_id, "JobHoldMaxRequeue")

    def failure(self, job: TrackedJob) -> JobFailedError:
        return JobFailedError(job.name, f"ended: {job.state}", "")


@dataclass
class Scene:
    """Two replicas, what was said of them, and the time."""

    jobs: FakeJobs
    said: list[str]
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.resume()

    def resume(self) -> None:
        """Go on with a new orchestrator."""

        def plan_again(name: str, generation: int) -> PlannedJob:
            return replace(self.jobs.planned[name], token=f"{name}-r{generation}", script=Path("x"))

        tracker = cast("JobTracker", self.jobs)
        self.replicas = Replicas(tracker, NAMES, 60.0, plan_again, self.said.append, lambda: self.now)

    def is_ready(self, name: str, ready_at: float = 1000.0) -> None:
        self.jobs.jobs[name].state = JobState.RUNNING
        fields: dict[str, Any] = {"job_id": "1", "attempt": "a", "host": "h", "started_at": 0.0}
        self.jobs.jobs[name].record = StatusRecord("t", state="ready", ready_at=ready_at, **fields)

    def is_stuck(self, name: str) -> None:
        self.jobs.jobs[name].stuck_since = 1.0
        self.jobs.stuck.add(self.jobs.jobs[name].job_id)

    def ends(self, name: str, state: JobState = JobState.FAILED) -> None:
        self.jobs.jobs[name].state = state


@pytest.fixture
def scene() -> Scene:
    return Scene(FakeJobs(), [])


def test_replica_that_has_ended_is_replaced_at_once_while_another_is_ready(scene: Scene) -> None:
    scene.is_ready("vllm-1")
    scene.ends("vllm-2", JobState.OUT_OF_MEMORY)
    scene.replicas.look()
    scene.replicas.look()
    assert scene.jobs.generations == {"vllm-1": 1, "vllm-2": 2}
    assert scene.jobs.jobs["vllm-2"].planned.token == "vllm-2-r2"
    (text,) = scene.said
    assert "ended: OUT_OF_MEMORY" in text
    assert "job vllm-2.2 takes the place of vllm-2.1" in text


def test_replica_that_has_ended_waits_until_another_has_shown_that_it_works(scene: Scene) -> None:
    scene.ends("vllm-2")
    scene.replicas.look()
    assert scene.jobs.generations["vllm-2"] == 1
    scene.is_ready("vllm-1")
    scene.replicas.look()
    assert scene.jobs.generations["vllm-2"] == 2


@pytest.mark.parametrize("last", NAMES)
def test_run_whose_replicas_have_all_ended_fails_with_the_last_one(last: str, scene: Scene) -> None:
    first = next(name for name in NAMES if name != last)
    scene.ends(first)
    scene.replicas.look()
    scene.ends(last, JobState.TIMEOUT)
    with pytest.raises(JobFailedError, match=rf"'{last}' ended: TIMEOUT"):
        scene.replicas.look()


def test_replicas_that_were_cancelled_are_neither_replaced_nor_missed(scene: Scene) -> None:
    for name in NAMES:
        scene.ends(name, JobState.CANCELLED)
        scene.jobs.jobs[name].cancelled = True
    scene.replicas.look()
    scene.is_ready("vllm-1")
    scene.replicas.look()
    assert scene.jobs.generations["vllm-2"] == 1


def test_replica_that_dies_again_and_again_is_left_at_last(scene: Scene) -> None:
    scene.is_ready("vllm-1")
    for _ in range(MAX_REPLACEMENTS + 2):
        scene.ends("vllm-2")
        scene.replicas.look()
    assert scene.jobs.generations["vllm-2"] == 1 + MAX_REPLACEMENTS


def test_replacements_of_an_orchestrator_of_before_count(scene: Scene) -> None:
    scene.is_ready("vllm-1")
    for _ in range(MAX_REPLACEMENTS + 2):
        scene.ends("vllm-2")
        scene.replicas.look()
        scene.resume()
    assert scene.jobs.generations["vllm-2"] == 1 + MAX_REPLACEMENTS


def test_replacement_that_found_no_connection_is_tried_again_and_does_not_count(scene: Scene) -> None:
    scene.is_ready("vllm-1")
    scene.ends("vllm-2")
    scene.jobs.error = NoConnectionError("far", "no connection")
    for _ in range(MAX_REPLACEMENTS + 1):
        scene.replicas.look()
        scene.now += AGAIN_S
    scene.jobs.error = None
    scene.replicas.look()
    assert scene.jobs.generations["vllm-2"] == 2


def test_stuck_replica_is_given_up_once_another_is_ready_and_replaced_once_it_has_ended(scene: Scene) -> None:
    scene.is_stuck("vllm-2")
    scene.replicas.look()
    assert (scene.jobs.given_up, set(scene.replicas.spared)) == ([], set(NAMES)), "vllm-1 may still start"
    scene.is_ready("vllm-1")
    scene.replicas.look()
    assert scene.jobs.given_up == ["vllm-2.1"]
    assert "JobHoldMaxRequeue" in scene.said[0]
    assert scene.jobs.generations["vllm-2"] == 1
    scene.ends("vllm-2", JobState.CANCELLED)
    scene.replicas.look()
    assert scene.jobs.generations["vllm-2"] == 2


@pytest.mark.parametrize("other", ["stuck", "ended"])
def test_stuck_replica_without_a_living_one_is_not_spared(other: str, scene: Scene) -> None:
    scene.is_stuck("vllm-2")
    if other == "stuck":
        scene.is_stuck("vllm-1")
    else:
        scene.ends("vllm-1")
    scene.replicas.look()
    assert (scene.jobs.given_up, tuple(scene.replicas.spared)) == ([], ())


def test_run_is_not_ended_by_a_stuck_job_that_the_replicas_spare(tmp_path: Path) -> None:
    jobs, lease = Mock(services=()), Mock()
    lease.renew.return_value = None
    Watch(RunDir(tmp_path), jobs, lease, Mock(), Mock(), Mock(), Mock(), Mock(spared=("vllm-2",))).look()
    jobs.raise_if_stuck.assert_called_once_with(("vllm-2",))


def test_refused_replacement_is_tried_again_after_a_while(scene: Scene) -> None:
    scene.is_ready("vllm-1")
    scene.ends("vllm-2")
    scene.jobs.error = REFUSAL
    scene.replicas.look()
    scene.jobs.error = None
    scene.replicas.look()
    assert scene.jobs.generations["vllm-2"] == 1
    scene.now += AGAIN_S
    scene.replicas.look()
    assert scene.jobs.generations["vllm-2"] == 2
    assert "no job was submitted in the place of vllm-2.1: " in scene.said[0]


def test_orchestrator_that_is_told_to_end_while_it_replaces_a_replica_ends(scene: Scene) -> None:
    scene.is_ready("vllm-1")
    scene.ends("vllm-2")
    scene.jobs.error = TerminatedError(15)
    with pytest.raises(TerminatedError):
        scene.replicas.look()


def test_stages_wait_for_late_replicas_only_so_long_and_for_other_services_always(scene: Scene) -> None:
    late, client = scene.jobs.jobs["vllm-2"], scene.jobs.jobs["client"]
    assert not scene.replicas.may_begin_without(late), "none is ready"
    scene.is_ready("vllm-1", ready_at=scene.now)
    scene.now += 60.0
    assert not scene.replicas.may_begin_without(late)
    scene.now += 0.1
    assert scene.replicas.may_begin_without(late)
    assert not scene.replicas.may_begin_without(client)
