"""A machine without a batch system as a scheduler; tests/life/test_run_plain_host.py has whole runs on one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UnsupportedFieldError, UserError
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.recipe.sections import LocalSchedulerSpec, SlurmSchedulerSpec
from orchestrator.remote_host import bring_programs
from orchestrator.schedulers import PartitionFacts, Submission, make_scheduler_there
from orchestrator.schedulers.local import MACHINE
from orchestrator.schedulers.plain_machine import PlainMachineScheduler
from orchestrator.transports import Answer, LocalTransport

SIZE = "size 3 2097152\nGPU 0: NVIDIA H100 (UUID: GPU-0)\nGPU 1: NVIDIA H100 (UUID: GPU-1)\n"


@pytest.fixture
def box() -> PlainMachineScheduler:
    """Return the batch system of a machine called box."""
    return PlainMachineScheduler("box", "/opt/python3.6", "/data/orch")


def told(box: PlainMachineScheduler, stdout: str = SIZE, code: int = 0) -> dict[str, PartitionFacts]:
    return box.parse_partitions(Answer(("sh",), code, stdout, ""))


def test_commands_run_the_program_that_was_brought_there_with_the_machines_own_registry(
    box: PlainMachineScheduler,
) -> None:
    program = ["/opt/python3.6", "/data/orch/jobs/local_jobs.py"]
    registry = ["--state-dir", "/data/orch/jobs"]
    assert box.status_argv() == [*program, "status", *registry]
    assert box.cancel_argv(["7.8"]) == [*program, "cancel", *registry, "7.8"]
    submit = box.submit_argv(Submission("orch-1-vllm", Path("/run/vllm.sh"), Path("/run/vllm_%j.batch"), 2))
    assert submit[: len(program) + 3] == [*program, "submit", *registry]
    assert submit[-1] == "/run/vllm.sh"


def test_only_a_machine_without_batch_system_gets_the_program() -> None:
    words = ("box", "python3", "orch")
    assert isinstance(make_scheduler_there(LocalSchedulerSpec(), *words), PlainMachineScheduler)
    slurm = make_scheduler_there(SlurmSchedulerSpec(), *words)
    assert (slurm.kind, dict(slurm.programs)) == ("slurm", {})


@pytest.mark.parametrize(
    ("wanted", "problem"), [({"cpus": 4}, "box has 3"), ({"mem_gb": 2.2}, "box has 2.1"), ({"gpus": 3}, "box has 2")]
)
def test_resources_are_those_of_that_machine(box: PlainMachineScheduler, wanted: dict[str, Any], problem: str) -> None:
    facts = told(box)
    asked = RoleResources(cpus=3, mem_gb=2.1, gpus=2)
    assert box.resources("server", asked, None, facts, []) == asked.model_copy(update={"nodes": 1})
    with pytest.raises(UnsupportedFieldError, match=problem):
        box.resources("server", RoleResources(**wanted), None, facts, [])


@pytest.mark.parametrize(("stdout", "code"), [("", 0), (SIZE, 1), ("size x y\n", 0), ("motd\nsize 3 2\n", 0)])
def test_machine_that_does_not_tell_its_size_is_an_error(box: PlainMachineScheduler, stdout: str, code: int) -> None:
    facts = told(box, stdout, code)
    assert facts == {}
    with pytest.raises(UserError, match="box does not tell its CPUs and memory"):
        box.resources("client", RoleResources(), None, facts, [])


def test_size_is_what_a_process_may_use_whatever_openmp_is_told(
    box: PlainMachineScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    found = box.parse_partitions(LocalTransport().run(box.partitions_argv(), 30.0))[MACHINE]
    assert found.cpus == len(os.sched_getaffinity(0))
    assert found.mem_mib == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20, rel=0.01)


@pytest.mark.parametrize(("code", "is_ambiguous"), [(None, True), (137, True), (1, False), (127, False)])
def test_submission_is_ambiguous_where_it_may_have_been_cut_off(
    box: PlainMachineScheduler, code: int | None, is_ambiguous: bool
) -> None:
    assert box.is_ambiguous(Answer(("python3",), code, "", "")) is is_ambiguous


def test_program_is_brought_below_the_home_directory_and_works_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    box = PlainMachineScheduler("box", "python3", "orch files")
    bring_programs(box, LocalTransport())
    assert oct((tmp_path / "orch files").stat().st_mode)[-3:] == "700"
    answer = LocalTransport().run(box.status_argv(), 30.0)
    assert box.parse_status(answer) == {}, answer
