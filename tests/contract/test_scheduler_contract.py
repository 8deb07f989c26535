"""What holds of every scheduler backend: one suite over slurm, pbs, local and allocation, on what they answered."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SubmitError
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.recipe.sections import LocalSchedulerSpec, PbsSchedulerSpec, SlurmSchedulerSpec
from orchestrator.schedulers import JobState, Scheduler, Submission, make_scheduler, task_name
from orchestrator.schedulers.allocation import AllocationScheduler
from orchestrator.transports import Answer
from tests.contract.recordings import answer, pbs, pbs_queue, pbs_status, slurm, slurm_queue

HOSTILE_NAMES = [
    "a|b c",
    'say "hi"',
    "it's",
    "ünï 日本",
    "$(touch pwned)",
    "true",
    "12",
    "\\(x\\)",
    "F",
    "}",
    '"Jobs": {',
]


@dataclass(frozen=True)
class Case:
    """One backend with what its commands answer.

    Attributes:
        submitted: Answers to a submission that went well, with the id.
        refused: Answers that say no for good.
        lost: Answers after which the job may be there or not.
        states: A status answer with a job's id and state in it.
        nothing: A proper status answer without jobs.
        broken: What is no proper status answer.
        listing: Writes the status answer with running jobs of the given names, by id.
        ids: Two ids of jobs; where there are arrays the second one is that of a task.
        cancel: The words before the ids on the command line that cancels.
        not_cancelled: Answers of a cancellation that failed.
        array: The answer to the submission of a job array, the status answer with it, its name and its size; None
            where there are no arrays.
    """

    scheduler: Scheduler
    submitted: Mapping[str, Answer]
    refused: tuple[Answer, ...]
    lost: tuple[Answer, ...]
    states: tuple[tuple[Answer, str, JobState], ...]
    nothing: Answer
    broken: tuple[Answer, ...]
    listing: Callable[[Mapping[str, str]], str]
    ids: tuple[str, str]
    cancel: tuple[str, ...]
    not_cancelled: tuple[Answer, ...]
    array: tuple[Answer, Answer, str, int] | None


def slurm_listing(names: Mapping[str, str]) -> str:
    return "".join(f"{job_id}|RUNNING|cpu1|None|{name}\n" for job_id, name in names.items())


def pbs_listing(names: Mapping[str, str]) -> str:
    return pbs_queue({job_id: {"Job_Name": name, "job_state": "R"} for job_id, name in names.items()})


def local_listing(names: Mapping[str, str]) -> str:
    lines = [{"id": job_id, "name": name, "state": "RUNNING", "host": "h"} for job_id, name in names.items()]
    return "".join(json.dumps(line) + "\n" for line in lines)


def step_line(state: str) -> str:
    line = {"id": "0001.ab", "name": "x", "state": state, "node": "n1", "reason": None, "exit_code": None}
    return json.dumps(line) + "\n"


def step_listing(names: Mapping[str, str]) -> str:
    lines = [json.loads(step_line("RUNNING")) | {"id": step_id, "name": name} for step_id, name in names.items()]
    return "".join(json.dumps(line) + "\n" for line in lines)


STEP_STATES = ("PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "LOST", "UNKNOWN")
STEPS = AllocationScheduler(make_scheduler(SlurmSchedulerSpec()), "/runs/it's one/steps", {"": "gpu"}, "python3")
CUT_OFF = (answer(returncode=None), answer(returncode=-9), answer("what is this\n"))
GARBAGE = tuple(answer(text) for text in ("garbage\n", "[]\n", "1\n", '"x"\n', "\ufffd\ufffd\n", "<html></html>\n"))
FAILED = (answer(returncode=None), answer(returncode=-15), answer(returncode=127, stderr="not found"))
CASES = {
    "slurm": Case(
        make_scheduler(SlurmSchedulerSpec()),
        {slurm("sbatch_parsable").stdout.strip(): slurm("sbatch_parsable"), "42": answer("42;cluster\n")},
        tuple(slurm(name) for name in ("sbatch_unknown_partition", "sbatch_too_many_gpus", "sbatch_no_file")),
        (
            *CUT_OFF,
            answer(returncode=1, stderr="sbatch: error: Batch job submission failed: Socket timed out on send/recv"),
            answer(returncode=1, stderr="sbatch: error: Unable to contact slurm controller (connect failure)"),
        ),
        (
            (slurm_queue("squeue_all_array_expanded"), "5", JobState.PENDING),
            (slurm_queue("squeue_job_completing"), "13", JobState.RUNNING),
            (slurm_queue("squeue_all_array_expanded"), "4", JobState.COMPLETED),
            (slurm_queue("squeue_all_array_expanded"), "11", JobState.TIMEOUT),
            (slurm_queue("squeue_all_array_expanded"), "12", JobState.FAILED),
            (slurm("squeue_tasks"), "192_0", JobState.COMPLETED),
            (slurm("squeue_tasks"), "192_1", JobState.FAILED),
            (slurm("squeue_tasks"), "192_2", JobState.CANCELLED),
            (slurm("squeue_tasks"), "192_3", JobState.RUNNING),
            (slurm("squeue_tasks"), "192_6", JobState.PENDING),
            (answer("1|BRAND_NEW|n|r|x\n"), "1", JobState.UNKNOWN),
        ),
        slurm("squeue_empty"),
        (slurm("squeue_unknown_job"), answer("1|RUNNING|n\n"), *GARBAGE, *FAILED),
        slurm_listing,
        ("4", "9_2"),
        ("scancel",),
        (answer(returncode=1, stderr="scancel: error: Unable to contact slurm controller"), *FAILED),
        (slurm("sbatch_tasks"), slurm("squeue_tasks"), "orch-0a1b2c3d-trial_0000-array", 7),
    ),
    "pbs": Case(
        make_scheduler(PbsSchedulerSpec()),
        {
            "11.pbshost": pbs("history.qsub-ok"),
            "19[].pbshost": pbs("history.qsub-array"),
            "0.pbs-01.hsn.example.org": answer("0.pbs-01.hsn.example.org\n"),
            "7.h": answer("qsub: the site's greeting\n7.h\n"),
        },
        tuple(pbs(f"history.qsub-{name}") for name in ("unknown-queue", "walltime-over-queue-limit", "missing-file")),
        (
            *CUT_OFF,
            pbs("history.qsub-server-down"),
            answer("12.pbshost\n", returncode=1, stderr="qsub: something after the job was there"),
            answer(returncode=1, stderr="qsub: Communication failure."),
            answer(returncode=190, stderr="qsub: Batch protocol error"),
        ),
        (
            (pbs_status("history.qstat-queued"), "17.pbshost", JobState.PENDING),
            (pbs_status("history.qstat-held"), "20.pbshost", JobState.PENDING),
            (pbs_status("history.qstat-running"), "11.pbshost", JobState.RUNNING),
            (pbs_status("history.qstat-deleted-x"), "16.pbshost", JobState.RUNNING),
            (pbs_status("history.qstat-many-one-gone"), "16.pbshost", JobState.RUNNING),
            (pbs_status("nohistory.qstat-many-one-gone"), "6.pbshost", JobState.RUNNING),
            (pbs_status("history.qstat-finished-x"), "11.pbshost", JobState.COMPLETED),
            (pbs_status("history.qstat-array-finished-x"), "19[0].pbshost", JobState.FAILED),
            (pbs_status("history.qstat-final-deleted-x"), "16.pbshost", JobState.CANCELLED),
            (pbs_status("history.qstat-final-walltime-exceeded-x"), "18.pbshost", JobState.TIMEOUT),
            (answer(pbs_queue({"1.h": {"Job_Name": "x", "job_state": "?"}})), "1.h", JobState.UNKNOWN),
        ),
        answer('user\n{"timestamp": 1, "pbs_version": "23.06.06", "pbs_server": "pbshost"}\n'),
        (
            pbs_status("history.qstat-server-down"),
            pbs_status("nohistory.qstat-finished-x"),
            answer("user\nJob id            Name\n----- ----\n11.pbshost  ok\n"),
            answer('user\n{"pbs_server": "h", "Jobs": []}'),
            answer('user\n{"pbs_server": "h", "Jobs": {"1.h": 5}}'),
            answer(pbs_queue({}).partition("\n")[2]),
            answer("\n" + pbs_queue({}).partition("\n")[2]),
            *GARBAGE,
            *FAILED,
        ),
        pbs_listing,
        ("4.pbshost", "19[1].pbshost"),
        ("qdel",),
        (pbs("history.qdel-server-down"), *FAILED),
        (pbs("history.qsub-array"), pbs_status("history.qstat-array-finished-x"), "fail", 4),
    ),
    "local": Case(
        make_scheduler(LocalSchedulerSpec()),
        {"123.456": answer("123.456\n")},
        (answer(returncode=1, stderr="local_jobs: no such script"),),
        CUT_OFF[:2],
        (
            (answer('{"id": "1.2", "name": "x", "state": "RUNNING", "host": "h"}\n'), "1.2", JobState.RUNNING),
            (answer('{"id": "1.2", "name": "x", "state": "ENDED", "host": "h"}\n'), "1.2", JobState.FAILED),
            (answer('{"id": "1.2", "name": "x", "state": "CANCELLED", "host": "h"}\n'), "1.2", JobState.CANCELLED),
            (answer('{"id": "1.2", "name": "x", "state": "NEW", "host": "h"}\n'), "1.2", JobState.UNKNOWN),
        ),
        answer(""),
        (answer('{"id": "1"}\n'), *GARBAGE, *FAILED),
        local_listing,
        ("1.2", "3.4"),
        (*make_scheduler(LocalSchedulerSpec()).status_argv()[:-1], "cancel"),
        (answer(returncode=1), *FAILED),
        None,
    ),
    "allocation": Case(
        STEPS,
        {"0001.8d264e": answer("0001.8d264e\n")},
        (answer(returncode=1, stderr="steps: step t4 can never run: gpus = 3: group gpu of the allocation has 2"),),
        (*CUT_OFF[:2], answer(returncode=137)),
        tuple((answer(step_line(state)), "0001.ab", JobState(state)) for state in STEP_STATES),
        answer(""),
        (answer('{"id": "1"}\n'), *GARBAGE, *FAILED),
        step_listing,
        ("0001.ab", "0002.cd"),
        (*STEPS.status_argv()[:2], "cancel", "--dir", "/runs/it's one/steps"),
        (answer(returncode=1), *FAILED),
        None,
    ),
}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@CASE
def test_submission_that_went_well_gives_the_id(case: Case) -> None:
    for job_id, said in case.submitted.items():
        assert case.scheduler.parse_submit(said) == job_id


@CASE
def test_submission_that_is_refused_carries_the_schedulers_words(case: Case) -> None:
    for said in case.refused:
        assert not case.scheduler.is_ambiguous(said), said
        with pytest.raises(SubmitError) as caught:
            case.scheduler.parse_submit(said)
        assert said.stderr.strip()
        assert said.stderr.strip() in str(caught.value)


@CASE
def test_submission_whose_answer_is_lost_is_ambiguous_and_gives_no_id(case: Case) -> None:
    for said in case.lost:
        assert case.scheduler.is_ambiguous(said), said
        with pytest.raises(SubmitError):
            case.scheduler.parse_submit(said)


@CASE
def test_submission_names_the_script_as_one_word(case: Case) -> None:
    script = Path("/runs/it's a $(touch pwned)/scripts/vllm.sh")
    argv = case.scheduler.submit_argv(Submission("orch-0a1b2c3d-vllm", script, Path("/log"), 2))
    assert argv[-1] == str(script)


@CASE
def test_status_of_each_job_is_the_schedulers(case: Case) -> None:
    for said, job_id, state in case.states:
        seen = case.scheduler.parse_status(said)
        assert seen is not None, said
        assert (job_id, seen[job_id].job_id, seen[job_id].state) == (job_id, job_id, state)


@CASE
def test_status_without_jobs_is_an_answer_and_no_end(case: Case) -> None:
    assert case.scheduler.parse_status(case.nothing) == {}
    assert not case.scheduler.is_absence_final or case.scheduler.kind == "local"


@CASE
def test_status_that_is_no_proper_answer_is_none(case: Case) -> None:
    for said in case.broken:
        assert case.scheduler.parse_status(said) is None, said


@CASE
def test_status_that_is_cut_short_never_makes_a_job_end(case: Case) -> None:
    for said, _, _ in case.states:
        whole = case.scheduler.parse_status(said) or {}
        length = len(said.stdout.rstrip())
        for end in range(0, length, max(1, length // 200)):
            seen = case.scheduler.parse_status(Answer(said.argv, 0, said.stdout[:end], ""))
            for job_id, job in (seen or {}).items():
                # A line of squeue whose name is cut is a line all the same: its state is whole.
                assert job_id in whole
                assert job.state == whole[job_id].state


@CASE
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_status_with_a_hostile_name_is_read_with_exactly_that_name(name: str, case: Case) -> None:
    mine, other = case.ids
    seen = case.scheduler.parse_status(answer(case.listing({other: name, mine: "orch-0a1b2c3d-vllm"})))
    assert seen is not None
    index = "".join(re.findall(r"_(\d+)|\[(\d+)\]", other)[0]) if case.scheduler.arrays else ""
    shown = task_name(name, index) if index else name
    assert {job_id: job.name for job_id, job in seen.items()} == {other: shown, mine: "orch-0a1b2c3d-vllm"}
    assert {job.state for job in seen.values()} == {JobState.RUNNING}


@CASE
def test_tasks_of_an_array_have_names_and_ids_of_their_own(case: Case) -> None:
    words = case.scheduler.arrays
    assert (words is None) == (case.array is None)
    if words is None or case.array is None:
        return
    submitted, status, name, size = case.array
    array_id, seen = case.scheduler.parse_submit(submitted), case.scheduler.parse_status(status)
    assert seen is not None
    ids = [words.id_of(array_id, index) for index in range(size)]
    assert [seen[job_id].name for job_id in ids] == [task_name(name, index) for index in range(size)]
    assert [words.id_of(ids[-1], index) for index in range(size)] == ids


@CASE
@settings(deadline=None, max_examples=50)
@given(text=st.text())
def test_status_of_any_text_is_read_or_no_answer(case: Case, text: str) -> None:
    seen = case.scheduler.parse_status(answer(text))
    assert seen is None or all(isinstance(job.state, JobState) for job in seen.values())


@CASE
def test_cancellation_names_each_job_by_its_id(case: Case) -> None:
    assert case.scheduler.cancel_argv(case.ids) == [*case.cancel, *case.ids]


@CASE
def test_cancellation_that_failed_is_told_from_one_that_was_taken(case: Case) -> None:
    assert case.scheduler.has_cancelled(answer())
    assert not any(case.scheduler.has_cancelled(said) for said in case.not_cancelled)


@CASE
def test_resources_that_are_resolved_once_are_resolved_for_good(case: Case) -> None:
    wanted = RoleResources(cpus=1, mem_gb=0.5, gpus=0, time="0-1" if case.scheduler.kind != "local" else None)
    once = case.scheduler.resources("server", wanted, None, {}, [])
    assert case.scheduler.resources("server", once, None, {}, []) == once
