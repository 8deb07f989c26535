"""The steps of one allocation as a scheduler: its commands, and a real broker's answers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.recipe.sections import LocalSchedulerSpec, PbsSchedulerSpec, SlurmSchedulerSpec
from orchestrator.schedulers import JobState, Scheduler, Seen, Submission, make_scheduler
from orchestrator.schedulers.allocation import PROGRAM, AllocationScheduler
from orchestrator.transports import Answer
from tests.orchestrator.brokers import Allocation
from tests.orchestrator.conftest import wait_for

GROUPS = {"server": "gpu", "trial": "gpu", "client": "cpu", "monitoring": "cpu"}
ALL = {"name": "all", "nodes": 1, "cpus": 4, "mem_mib": 4000, "gpus": 2}


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    """Return an allocation whose brokers and steps are gone after the test."""
    allocation = Allocation(tmp_path)
    yield allocation
    allocation.close()


def ask(argv: list[str]) -> Answer:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    return Answer(tuple(argv), done.returncode, done.stdout, done.stderr)


def slurm_steps() -> AllocationScheduler:
    return AllocationScheduler(make_scheduler(SlurmSchedulerSpec()), "/run/steps", GROUPS, "python3", "/run/steps.py")


def test_submission_asks_for_all_that_the_role_gets() -> None:
    resources = RoleResources(nodes=2, cpus=8, mem_gb=1.5, gpus=4, time="01:00:00")
    submission = Submission("orch-1-vllm", Path("/run/a b.sh"), Path("/run/%j.batch"), 3, resources, "server")
    assert slurm_steps().submit_argv(submission) == [
        *("python3", "/run/steps.py", "submit", "--dir", "/run/steps", "--name", "orch-1-vllm"),
        *("--stdout", "/run/%j.batch", "--group", "gpu", "--nodes", "2", "--cpus", "8", "--gpus", "4"),
        *("--mem-mib", "1536", "--time-s", "3600", "/run/a b.sh"),
    ]


def test_submission_without_resources_has_the_tasks_cpus() -> None:
    argv = slurm_steps().submit_argv(Submission("t", Path("/s"), Path("/o"), 3, role="client"))
    assert argv[argv.index("--group") + 1 : -1] == ["cpu", "--nodes", "1", "--cpus", "3", "--gpus", "0"]


@pytest.mark.parametrize("spec", [SlurmSchedulerSpec(), PbsSchedulerSpec(), LocalSchedulerSpec()])
def test_what_may_be_asked_for_is_the_inner_schedulers_affair(
    spec: SlurmSchedulerSpec | PbsSchedulerSpec | LocalSchedulerSpec,
) -> None:
    inner: Scheduler = make_scheduler(spec)
    steps: Scheduler = AllocationScheduler(inner, "/steps", GROUPS)
    wanted = RoleResources(cpus=1, mem_gb=0.5, gpus=0)
    assert steps.resources("client", wanted, None, {}, []) == inner.resources("client", wanted, None, {}, [])
    assert [steps.limits_argv(), steps.partitions_argv()] == [inner.limits_argv(), inner.partitions_argv()]
    assert steps.default_bind == inner.default_bind
    assert steps.requeue_argv() is None
    assert steps.stop_grace_s < inner.stop_grace_s


def test_program_is_brought_to_where_it_is_not() -> None:
    assert slurm_steps().programs == {"/run/steps.py": PROGRAM}
    assert AllocationScheduler(make_scheduler(SlurmSchedulerSpec()), "/steps", GROUPS).programs == {}


def test_step_is_submitted_seen_and_cancelled_by_its_broker(allocation: Allocation) -> None:
    inner = make_scheduler(LocalSchedulerSpec())
    steps = AllocationScheduler(inner, str(allocation.spool), {"trial": "all"}, sys.executable)
    script = Path(allocation.script("sleep 60"))
    submission = Submission("orch-1-trial", script, allocation.folder / "%j.batch", 1, RoleResources(gpus=2), "trial")
    step_id = steps.parse_submit(ask(steps.submit_argv(submission)))

    def seen() -> dict[str, Seen]:
        found = steps.parse_status(ask(steps.status_argv()))
        assert found is not None
        return found

    assert seen()[step_id] == Seen(step_id, "orch-1-trial", JobState.PENDING, None, "waits for the allocation to start")
    allocation.serve(ALL)
    wait_for(lambda: seen()[step_id].state == JobState.RUNNING)
    assert (allocation.folder / f"{step_id}.batch").exists()
    assert steps.has_cancelled(ask(steps.cancel_argv([step_id])))
    wait_for(lambda: seen()[step_id].state == JobState.CANCELLED)
    too_many = Submission("orch-1-more", script, allocation.folder / "o", 1, RoleResources(gpus=3), "trial")
    refusal = ask(steps.submit_argv(too_many))
    assert not steps.is_ambiguous(refusal)
    assert "gpus = 3: group all of the allocation has 2 on each node" in refusal.stderr
