"""Jobs submitted together as one job array; the schedulers' programs are stand-ins on PATH."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator import submission as submission_module
from orchestrator.arrays import PlannedArray
from orchestrator.errors import SubmitError, UnsupportedFieldError
from orchestrator.gpu_guard import GpuCapError, GpuGuard
from orchestrator.history import replay
from orchestrator.jobs import JobTracker
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.recipe.infrastructure import Polling
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState, make_scheduler
from orchestrator.transports import LocalTransport
from tests.builders import ProgramFolder, hosts_here, plan_run, planned_array, recipe_document
from tests.contract.recordings import pbs_queue

HPO = {"dataset": {"kind": "folder", "dir": "/data"}, "trials": 9, "parallel_trials": 3, "job_arrays": True}
COUNT = 3
# sbatch that takes an array: one line of the queue for each task, as `squeue --array` shows them.
TAKES = """script="${@: -1}"; folder="$(dirname "$0")"
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script"); last=$(sed -n 's/^#SBATCH --array=0-//p' "$script")
id=$((100 + $(wc -l <"$folder/sbatch.calls")))
for index in $(seq 0 "$last"); do echo "${id}_$index|PENDING||None|$name" >>"$folder/queue"; done"""
QUEUE = 'cat "$(dirname "$0")/queue" 2>/dev/null || true'


@dataclass
class Bench:
    """A run on a Slurm of three small programs, or on a PBS of them."""

    programs: ProgramFolder
    run: RunDir
    kind: str = "slurm"
    array: PlannedArray = field(init=False)

    def __post_init__(self) -> None:
        self.run.make()
        self.planned = plan_run(recipe_document(self.kind, "vllm", hpo=HPO), self.run.root)
        self.array = self.plan()

    def plan(self, generation: int = 1) -> PlannedArray:
        """Return the array for one more submission, its scripts written."""
        array = planned_array(self.planned, COUNT, generation)
        array.write()
        return array

    def tracker(self, guard: Any = lambda *_: None, **polling_s: float) -> JobTracker:
        """Return a tracker that looks at the queue with every poll."""
        pace = {"scheduler_s": 0.0, "records_s": 0.01, "metrics_s": 1.0, "submits_per_s": 1000.0, **polling_s}
        polling = Polling.model_construct(**pace)  # type: ignore[arg-type]
        scheduler = make_scheduler(self.planned.context.recipe.job.scheduler)  # type: ignore[arg-type]
        return JobTracker(self.run, self.ledger, hosts_here(scheduler, self.run), polling, guard=guard)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.run.events)

    def events(self) -> list[str]:
        """Return the kinds of the ledger's events."""
        return [event["event"] for event in self.ledger.events()]

    def queue(self) -> dict[str, str]:
        """Return the names in the queue by id; of an array all tasks have its own."""
        path = self.programs.folder / "queue"
        lines = path.read_text().splitlines() if path.exists() else []
        return {line.split("|")[0]: line.split("|")[4] for line in lines}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a run whose scheduler takes arrays; a lost answer is looked up without long waits."""
    made = Bench(ProgramFolder(tmp_path / "bin"), RunDir(tmp_path / "run"))
    made.programs.add("sbatch", f"{TAKES}\necho $id")
    made.programs.add("squeue", QUEUE)
    made.programs.add("scancel", "")
    monkeypatch.setenv("PATH", made.programs.path)
    monkeypatch.setattr(submission_module, "LOOKUP_WAITS_S", (0.01, 0.05))
    monkeypatch.setattr(submission_module, "LATE_SUBMIT_S", 0.0)
    return made


def test_array_is_submitted_once_with_an_intent_and_an_id_for_each_job(bench: Bench) -> None:
    bench.programs.add("sbatch", f"cp {bench.run.events} {bench.run.root}/then; {TAKES}\necho $id")
    jobs = bench.tracker().submit_array(bench.array)
    assert bench.programs.calls("sbatch") == [f"--parsable {bench.array.script}"]
    assert [event["event"] for event in Ledger(bench.run.root / "then").events()] == ["job_intent"] * COUNT
    assert bench.events() == ["job_intent"] * COUNT + ["job_submitted"] * COUNT
    assert [(job.name, job.job_id) for job in jobs] == [(f"trial_{n:04}", f"101_{n}") for n in range(COUNT)]
    assert [job.planned.token for job in jobs] == [f"{bench.array.token}_{n}" for n in range(COUNT)]


def test_array_waits_once_for_the_pace_of_submissions(bench: Bench) -> None:
    tracker = bench.tracker(submits_per_s=0.01)  # a second submission would have to wait for 100 s
    assert len(tracker.submit_array(bench.array)) == COUNT


def test_array_each_job_has_its_tasks_state_and_is_cancelled_by_its_own_id(bench: Bench) -> None:
    tracker = bench.tracker()
    jobs = tracker.submit_array(bench.array)
    name = bench.array.token
    (bench.programs.folder / "queue").write_text(
        f"101_0|RUNNING|cpu1|None|{name}\n101_1|FAILED|cpu1|NonZeroExitCode|{name}\n101_2|PENDING||Priority|{name}\n"
    )
    tracker.poll()
    assert [job.state for job in jobs] == [JobState.RUNNING, JobState.FAILED, JobState.PENDING]
    tracker.cancel(jobs[2:])
    assert bench.programs.calls("scancel") == ["101_2"]


def test_array_refused_refuses_every_job_and_leaves_no_intent(bench: Bench) -> None:
    bench.programs.add("sbatch", "echo 'sbatch: error: Invalid job array specification' >&2; exit 1")
    tracker = bench.tracker()
    with pytest.raises(SubmitError, match=r"'trial_0000' and 2 more: .*(.|\n)*Invalid job array") as caught:
        tracker.submit_array(bench.array)
    assert caught.value.is_refusal
    assert bench.events() == ["job_intent"] * COUNT + ["job_refused"] * COUNT
    assert tracker.open_intents == ()
    assert bench.programs.calls("squeue") == []


def test_array_whose_answer_is_lost_is_found_by_the_name_of_any_of_its_jobs(bench: Bench) -> None:
    # The first has ended and was forgotten already.
    bench.programs.add("sbatch", f"{TAKES}\nsed -i /^101_0/d $folder/queue; echo 'Socket timed out' >&2; exit 1")
    jobs = bench.tracker().submit_array(bench.array)
    assert [job.job_id for job in jobs] == ["101_0", "101_1", "101_2"]
    assert len(bench.programs.calls("sbatch")) == 1


def test_array_whose_answer_is_lost_and_is_not_there_is_fenced_job_by_job(bench: Bench) -> None:
    bench.programs.add("sbatch", "echo 'Socket timed out' >&2; exit 1")
    with pytest.raises(SubmitError) as caught:
        bench.tracker().submit_array(bench.array)
    assert not caught.value.is_refusal
    assert all(bench.run.fence(member.token).exists() for member in bench.array.members)


def test_array_after_silence_is_not_submitted_beside_one_that_is_found(bench: Bench) -> None:
    bench.programs.add("sbatch", f"{TAKES}\necho 'Socket timed out' >&2; exit 1")
    bench.programs.add("squeue", "exit 1")
    tracker = bench.tracker()
    with pytest.raises(SubmitError, match=f"look for the name {bench.array.token}_0"):
        tracker.submit_array(bench.array)
    again = bench.plan(tracker.next_generation("trial_0000"))
    with pytest.raises(SubmitError, match="is not known"):
        tracker.submit_array(again)
    bench.programs.add("squeue", QUEUE)
    with pytest.raises(SubmitError, match="has been found") as caught:
        tracker.submit_array(again)
    assert not caught.value.is_refusal
    tracker.adopt_intended()
    assert [job.job_id for job in tracker.jobs] == ["101_0", "101_1", "101_2"]
    assert len(bench.programs.calls("sbatch")) == 1


def test_array_asks_the_guard_for_each_job_beside_those_before_it(bench: Bench) -> None:
    asked: list[list[str]] = []
    bench.tracker(guard=lambda *jobs: asked.append([job.name for job in jobs])).submit_array(bench.array)
    assert asked == [
        ["trial_0000"], ["trial_0001", "trial_0000"], ["trial_0002", "trial_0000", "trial_0001"],
    ]  # fmt: skip


def test_gpu_cap_counts_the_jobs_that_are_submitted_together(bench: Bench) -> None:
    hpo = {**HPO, "trial_timeout_s": 3600.0}
    planned = plan_run(recipe_document("slurm", "vllm", hpo=hpo, resources={"trial": {"gpus": 1}}), bench.run.root)
    first, second, third = planned_array(planned, COUNT).members
    guard = GpuGuard(bench.run, 2.0, 3600.0, {})
    guard.check(second, first)
    with pytest.raises(GpuCapError, match=r"'trial_0002' is not submitted: .*open jobs can still use 2"):
        guard.check(third, first, second)
    guard.check(third)


class KilledError(BaseException):
    """What kill -9 is to the code under test: nothing of it runs any more."""


@dataclass
class Killer:
    """Ends the process, so to say, before a numbered step that another process could see."""

    fatal: int
    count: int = 0

    def before(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **named: Any) -> Any:
            self.step()
            return work(*arguments, **named)

        return stepped

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **named: Any) -> Any:
            self.step()
            done = work(*arguments, **named)
            self.step()
            return done

        return stepped

    def step(self) -> None:
        self.count += 1
        if self.count >= self.fatal:
            raise KilledError


# Of 3 scripts, 3 configurations, the array's script, 3 intents, sbatch and 3 answers.
STEPS = 7 * 2 + 3 + 2 + 3


@pytest.mark.parametrize("fatal", range(1, STEPS + 2))
def test_array_whose_orchestrator_is_killed_at_a_step_is_there_once(
    fatal: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(fatal)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", killer.before(os.fsync))
        patched.setattr(Path, "replace", killer.before(Path.replace))
        patched.setattr(LocalTransport, "run", killer.around(LocalTransport.run))
        try:
            bench.array.write()
            bench.tracker().submit_array(bench.array)
        except KilledError:
            pass
        else:
            assert fatal == STEPS + 1

    tracker = bench.tracker()
    replay(bench.run, tracker)
    tracker.adopt_intended()
    if not len(tracker.jobs):
        bench.array.write()
        tracker.submit_array(bench.plan(tracker.next_generation("trial_0000")))

    assert [job.name for job in tracker.jobs] == [f"trial_{n:04}" for n in range(COUNT)]
    queue = bench.queue()
    assert all(job.planned.token == f"{queue[job.job_id]}_{job.job_id[-1]}" for job in tracker.jobs)
    others = {f"{name}_{job_id[-1]}" for job_id, name in queue.items()} - {job.planned.token for job in tracker.jobs}
    assert all(bench.run.fence(token).exists() for token in others)
    assert tracker.open_intents == ()


def test_array_of_pbs_is_followed_by_subjob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(ProgramFolder(tmp_path / "bin"), RunDir(tmp_path / "run"), "pbs")
    states = {"19[].h": "B", "19[0].h": "R", "19[1].h": "X", "19[2].h": "Q"}
    name = bench.array.token
    jobs: dict[str, dict[str, object]]
    jobs = {job_id: {"Job_Name": name, "job_state": state} for job_id, state in states.items()}
    (tmp_path / "said").write_text(pbs_queue({**jobs, "19[1].h": {**jobs["19[1].h"], "Exit_status": 271}}))
    bench.programs.add("qsub", "echo '19[].h'")
    bench.programs.add("qstat", f"cat {tmp_path}/said | tail -n +2")
    bench.programs.add("id", "echo user")
    bench.programs.add("qdel", "echo 'qdel: Request invalid for finished array subjob 19[1].h' >&2; exit 55")
    monkeypatch.setenv("PATH", bench.programs.path)
    tracker = bench.tracker()
    tracker.poll()
    submitted = tracker.submit_array(bench.array)
    tracker.poll()
    assert [job.job_id for job in submitted] == ["19[0].h", "19[1].h", "19[2].h"]
    assert [job.state for job in submitted] == [JobState.RUNNING, JobState.CANCELLED, JobState.PENDING]
    assert bench.programs.calls("qstat") == ["-t -f -F json"]
    tracker.cancel([submitted[0], submitted[2]])
    assert bench.programs.calls("qdel") == ["19[0].h 19[2].h"]


def test_array_of_jobs_that_may_not_be_run_again_is_refused_on_pbs() -> None:
    with pytest.raises(UnsupportedFieldError, match="cannot submit non-rerunable Array Job"):
        plan_run(recipe_document("pbs", "vllm", hpo=HPO, scheduler={"rerunnable": False}))


def test_array_on_local_does_not_apply_and_is_noted() -> None:
    planned = plan_run(recipe_document("local", "vllm", hpo=HPO, engine={"device": "cpu"}))
    assert "trial: not applicable on local: job_arrays" in planned.resolved.notes
    assert planned.resolved.scheduler.arrays is None


def test_array_members_have_configurations_of_their_own_and_the_same_allocation(bench: Bench) -> None:
    tokens = [f'"token": "{bench.array.token}_{index}"' for index in range(COUNT)]
    members = bench.array.members
    assert all(token in member.config_text for token, member in zip(tokens, members, strict=True))
    assert len({member.config for member in members}) == len({member.script for member in members}) == COUNT
    assert all(str(member.config) in member.script_text for member in members)
    again: list[PlannedJob] = [PlannedJob.from_json(bench.run, member.as_json("slurm")) for member in members]
    assert again == list(members)
