"""Jobs submitted once each, watched together, cancelled by id; Slurm's programs are stand-ins on PATH."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from orchestrator import jobs as jobs_module
from orchestrator import submission as submission_module
from orchestrator.atomic import write_json
from orchestrator.errors import CannotStartError, CommandError, JobFailedError, NoConnectionError, SubmitError
from orchestrator.host_view import HostView
from orchestrator.hosts import Hosts, ThisMachine
from orchestrator.interrupts import Interrupts, TerminatedError
from orchestrator.jobs import JobTracker
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.recipe.infrastructure import Polling
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState
from orchestrator.tracked import TrackedJob
from orchestrator.transports import Answer, Fault, LocalTransport
from tests.builders import ProgramFolder, hosts_here, planned_service, slurm_scheduler

QUEUE = 'cat "$(dirname "$0")/queue" 2>/dev/null || true'


class Cluster:
    """A run on a Slurm of three small programs."""

    def __init__(self, folder: Path) -> None:
        self.programs = ProgramFolder(folder / "bin")
        self.run = RunDir(folder / "run")
        self.ledger = Ledger(self.run.events)
        self.planned: PlannedJob = planned_service(self.run)
        self.programs.add("sbatch", "echo 42")
        self.programs.add("squeue", QUEUE)
        self.programs.add("scancel", "")

    def tracker(self, held: Any = nullcontext, timeout_s: float = 20.0, **polling_s: float) -> JobTracker:
        """Return a tracker that looks at the queue with every poll."""
        scheduler = slurm_scheduler(command_timeout_s=timeout_s)
        pace: dict[str, Any] = {"scheduler_s": 0.0, "records_s": 0.01, "metrics_s": 1.0, "submits_per_s": 1000.0}
        polling = Polling.model_construct(**{**pace, **polling_s})
        return JobTracker(self.run, self.ledger, hosts_here(scheduler, self.run), polling, held)

    def queue(self, *lines: str) -> None:
        """Set what squeue answers: lines of ID|STATE|NODE|REASON|NAME."""
        (self.programs.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def listed(self, state: str, reason: str = "None", job_id: str = "42") -> None:
        """Let squeue list the job in a state."""
        self.queue(f"{job_id}|{state}|gpu1|{reason}|{self.planned.token}")

    def says(self, state: str, attempt: str = "a1", **fields: Any) -> None:
        """Write the job's own record."""
        base = {"token": self.planned.token, "job_id": "42", "attempt": attempt, "host": "gpu1", "state": state}
        write_json(self.run.status(self.planned.token), {**base, "started_at": 1.0, **fields})

    def beats(self, ago_s: float = 0.0) -> None:
        """Write the job's heartbeat."""
        write_json(self.run.heartbeat(self.planned.token), {"attempt": "a1", "at": time.time() - ago_s})

    def events(self) -> list[str]:
        """Return the kinds of the ledger's events."""
        return [event["event"] for event in self.ledger.events()]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Return a cluster whose programs are on PATH; a lost answer is looked up without long waits."""
    made = Cluster(tmp_path)
    monkeypatch.setenv("PATH", made.programs.path)
    monkeypatch.setattr(submission_module, "LOOKUP_WAITS_S", (0.01, 0.05))
    return made


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Return installed interrupts; the signals' own handlers come back at the end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    made = Interrupts()
    made.install()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def submitted(cluster: Cluster, timeout_s: float = 20.0, **polling_s: float) -> tuple[JobTracker, TrackedJob]:
    """Return a tracker and its one job."""
    tracker = cluster.tracker(timeout_s=timeout_s, **polling_s)
    return tracker, tracker.submit(cluster.planned)


@pytest.mark.parametrize("is_own", [True, False])
def test_poll_of_a_service_killed_outright_removes_its_endpoint_and_no_other_s(cluster: Cluster, is_own: bool) -> None:
    tracker, job = submitted(cluster)
    cluster.says("ready", ready_at=2.0)
    token = cluster.planned.token if is_own else f"{cluster.planned.token}-r2"
    write_json(cluster.run.endpoint("vllm"), {"token": token})
    cluster.listed("NODE_FAIL")
    tracker.poll()
    assert job.state == JobState.NODE_FAIL
    assert cluster.run.endpoint("vllm").exists() == (not is_own)


def test_poll_of_a_service_killed_outright_removes_its_scrape_targets_and_no_other_s(cluster: Cluster) -> None:
    tracker, _ = submitted(cluster)
    cluster.says("ready", ready_at=2.0)
    for name in ("node_targets_42", "service_targets_42", "service_targets_142", "service_targets_421"):
        write_json(cluster.run.targets / f"{name}.json", [])
    cluster.listed("NODE_FAIL")
    tracker.poll()
    assert {path.stem for path in cluster.run.targets.iterdir()} == {"service_targets_142", "service_targets_421"}


def test_submit_records_the_intent_before_the_scheduler_hears_of_it(cluster: Cluster) -> None:
    cluster.programs.add("sbatch", f"cp {cluster.run.events} {cluster.run.root}/then; echo 42")
    _, job = submitted(cluster)
    then = [event["event"] for event in Ledger(cluster.run.root / "then").events()]
    assert then == ["job_intent"]
    assert cluster.events() == ["job_intent", "job_submitted"]
    assert job.job_id == "42"
    assert cluster.programs.calls("sbatch") == [f"--parsable {cluster.planned.script}"]


def test_submit_refused_carries_slurms_words_and_is_recorded(cluster: Cluster) -> None:
    words = "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified"
    cluster.programs.add("sbatch", f"echo '{words}' >&2; exit 1")
    with pytest.raises(SubmitError, match="Invalid account") as caught:
        submitted(cluster)
    assert caught.value.exit_code == 2
    assert "job 'vllm'" in str(caught.value)
    refusal = list(cluster.ledger.events("job_refused"))
    assert [event["stderr"].strip() for event in refusal] == [words]
    assert cluster.programs.calls("squeue") == []
    assert len(cluster.programs.calls("sbatch")) == 1


def test_submit_that_hangs_is_looked_up_and_adopted_never_repeated(cluster: Cluster) -> None:
    line = f"77|PENDING||Priority|{cluster.planned.token}"
    cluster.programs.add("sbatch", f"echo '{line}' >>{cluster.programs.folder}/queue; sleep 30")
    _, job = submitted(cluster, timeout_s=1.0)
    assert job.job_id == "77"
    assert len(cluster.programs.calls("sbatch")) == 1
    assert cluster.events() == ["job_intent", "job_submitted"]


def test_submit_that_hangs_has_no_child_left_that_could_submit_later(cluster: Cluster) -> None:
    cluster.programs.add("sbatch", f"(sleep 2.5; touch {cluster.run.root}/late) & wait")
    with pytest.raises(SubmitError, match="no answer in time"):
        submitted(cluster, timeout_s=1.0)
    time.sleep(1.8)
    assert not (cluster.run.root / "late").exists()


def test_submit_lost_and_not_in_the_queue_was_not_taken(cluster: Cluster) -> None:
    cluster.programs.add("sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(SubmitError, match="Socket timed out") as caught:
        submitted(cluster)
    assert caught.value.exit_code == 1
    assert cluster.events() == ["job_intent", "job_refused"]
    assert len(cluster.programs.calls("sbatch")) == 1


def test_submit_lost_while_the_queue_is_silent_stays_open_and_is_adopted_later(cluster: Cluster) -> None:
    cluster.programs.add("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    cluster.programs.add("squeue", "exit 1")
    tracker = cluster.tracker()
    with pytest.raises(SubmitError, match=f"look for the name {cluster.planned.token}"):
        tracker.submit(cluster.planned)
    assert cluster.events() == ["job_intent"]
    tracker.adopt_intended()
    assert len(tracker.jobs) == 0
    cluster.programs.add("squeue", QUEUE)
    cluster.listed("RUNNING", job_id="43")
    tracker.adopt_intended()
    assert tracker["vllm"].job_id == "43"
    assert len(cluster.programs.calls("sbatch")) == 1


def test_submit_answered_without_an_id_is_looked_up(cluster: Cluster) -> None:
    line = f"44|RUNNING|gpu1|None|{cluster.planned.token}"
    cluster.programs.add("sbatch", f"echo '{line}' >{cluster.programs.folder}/queue; echo 'Welcome to the centre'")
    assert submitted(cluster)[1].job_id == "44"


def test_submit_lookup_is_not_fooled_by_a_refused_job_or_another_token(cluster: Cluster) -> None:
    cluster.queue(
        f"50|FAILED||BadConstraints|{cluster.planned.token}", f"51|RUNNING|gpu1|None|{cluster.planned.token}_2"
    )
    cluster.programs.add("sbatch", "kill -9 $$")
    with pytest.raises(SubmitError):
        submitted(cluster)


@pytest.mark.parametrize(("name", "error"), [("INT", KeyboardInterrupt), ("TERM", TerminatedError)])
def test_submit_holds_signals_until_the_job_is_recorded(
    name: str, error: type[BaseException], cluster: Cluster, interrupts: Interrupts
) -> None:
    cluster.programs.add("sbatch", f"kill -{name} $PPID; sleep 0.1; echo 42")
    tracker = cluster.tracker(interrupts.held)
    with pytest.raises(error):
        tracker.submit(cluster.planned)
    assert [job.job_id for job in tracker.jobs] == ["42"]
    assert cluster.events() == ["job_intent", "job_submitted"]


def test_poll_follows_a_job_from_the_queue_to_ready(cluster: Cluster) -> None:
    tracker, job = submitted(cluster)
    cluster.listed("PENDING", "Priority")
    tracker.poll()
    assert (job.state, job.why, job.phase, job.is_ready) == (JobState.PENDING, "Priority", "pending", False)
    cluster.listed("RUNNING")
    cluster.says("starting")
    tracker.poll()
    assert (job.state, job.phase, job.is_ready, job.node) == (JobState.RUNNING, "starting", False, "gpu1")
    cluster.says("ready", ready_at=2.0)
    tracker.poll()
    assert (job.phase, job.is_ready) == ("ready", True)
    cluster.says("finished", reason="exited", exit_code=0)
    tracker.poll()
    assert job.state == JobState.COMPLETED
    states = [event["state"] for event in cluster.ledger.events("job_state")]
    assert states == ["PENDING", "RUNNING", "COMPLETED"]


@pytest.mark.parametrize("body", ["echo garbage", "exit 1", "sleep 60", "echo 'slurm_load_jobs error' >&2; exit 1"])
def test_poll_without_a_proper_answer_is_unknown_never_failed(body: str, cluster: Cluster) -> None:
    tracker, job = submitted(cluster, timeout_s=2.0)
    cluster.programs.add("squeue", body)
    tracker.poll()
    assert (job.state, job.why) == (JobState.UNKNOWN, "the scheduler does not answer")
    tracker.raise_if_dead()
    cluster.programs.add("squeue", QUEUE)
    cluster.listed("RUNNING")
    tracker.poll()
    assert job.state == JobState.RUNNING


def test_poll_of_a_job_that_is_no_longer_listed_is_not_its_end(cluster: Cluster) -> None:
    tracker, job = submitted(cluster)
    job.submitted_at = time.time() - 7200
    cluster.listed("PENDING", "Priority")
    tracker.poll()
    cluster.queue()
    tracker.poll()
    assert (job.state, job.why) == (JobState.UNKNOWN, "the scheduler does not list it")


def test_poll_of_a_preempted_job_waits_for_its_second_attempt(cluster: Cluster) -> None:
    tracker, job = submitted(cluster)
    cluster.listed("RUNNING")
    cluster.says("ready", ready_at=2.0)
    tracker.poll()
    cluster.says("finished", reason="signal", signal=15)
    tracker.poll()
    assert not job.state.is_final
    cluster.listed("PENDING", "BeginTime")
    tracker.poll()
    assert job.phase == "requeued"
    cluster.listed("RUNNING")
    tracker.poll()
    # The first attempt's sentinel says nothing of the second.
    assert (job.phase, job.is_ready) == ("running", False)
    cluster.says("ready", attempt="a2", ready_at=9.0)
    tracker.poll()
    assert job.is_ready
    cluster.says("finished", attempt="a2", reason="exited", exit_code=0)
    tracker.poll()
    assert job.state == JobState.COMPLETED


def test_poll_of_a_completed_task_that_is_queued_again_ends_the_second_copy(cluster: Cluster) -> None:
    """A slurmctld that was killed remembers the job as pending, and starts it again under its id."""
    tracker = cluster.tracker()
    job = tracker.submit(PlannedJob(**{**vars(cluster.planned), "kind": "task"}))
    cluster.listed("RUNNING")
    cluster.says("running")
    tracker.poll()
    cluster.listed("PENDING", "launch failed requeued held")
    cluster.says("finished", reason="exited", exit_code=0)
    tracker.poll()
    assert job.state == JobState.COMPLETED
    assert cluster.programs.calls("scancel") == ["42"]
    assert cluster.run.fence(cluster.planned.token).exists()
    assert not job.cancelled
    assert "cancel" not in cluster.events()


def test_poll_of_a_completed_task_leaves_its_job_alone_where_it_is_not_queued_again(cluster: Cluster) -> None:
    tracker = cluster.tracker()
    job = tracker.submit(PlannedJob(**{**vars(cluster.planned), "kind": "task"}))
    cluster.listed("PENDING", "Priority")
    tracker.poll()
    cluster.listed("RUNNING")
    cluster.says("finished", reason="exited", exit_code=0)
    tracker.poll()
    assert job.state == JobState.COMPLETED
    assert cluster.programs.calls("scancel") == []
    assert not cluster.run.fence(cluster.planned.token).exists()


def test_poll_asks_the_scheduler_no_more_often_for_tasks_that_say_that_they_are_done(cluster: Cluster) -> None:
    tracker = cluster.tracker(scheduler_s=3600.0, records_s=0.0)
    for number in range(5):
        token = f"{cluster.planned.token}-{number}"
        planned = PlannedJob(**{**vars(cluster.planned), "name": f"t{number}", "token": token, "kind": "task"})
        tracker.adopt(planned, str(number), time.time())
    tracker.poll()
    for number in range(5):
        fields = {"token": f"{cluster.planned.token}-{number}", "job_id": str(number), "attempt": "a", "host": "n"}
        end = {"state": "finished", "started_at": 1.0, "reason": "exited", "exit_code": 0}
        write_json(cluster.run.status(fields["token"]), fields | end)
        tracker.poll()
        assert tracker[f"t{number}"].state == JobState.COMPLETED
    assert len(cluster.programs.calls("squeue")) == 1


def test_poll_of_a_job_out_of_time_gives_slurms_reason_not_the_signal(cluster: Cluster) -> None:
    tracker, job = submitted(cluster)
    cluster.listed("TIMEOUT", "TimeLimit")
    cluster.says("finished", reason="signal", signal=15)
    tracker.poll()
    assert (job.state, job.why) == (JobState.TIMEOUT, "the scheduler says TIMEOUT (TimeLimit)")


def test_poll_of_a_short_job_does_not_trust_an_answer_from_before_its_end(cluster: Cluster) -> None:
    tracker, job = submitted(cluster, scheduler_s=3600.0)
    cluster.listed("PENDING", "Priority")
    tracker.poll()
    cluster.listed("COMPLETED")
    cluster.says("finished", reason="exited", exit_code=0)
    tracker.poll()
    assert job.state == JobState.COMPLETED


def test_poll_asks_once_for_all_jobs(cluster: Cluster) -> None:
    tracker = cluster.tracker()
    for number, name in enumerate(("vllm", "client", "prometheus")):
        tracker.adopt(planned_service(cluster.run, name), str(number), time.time())
    tracker.poll()
    assert len(cluster.programs.calls("squeue")) == 1


def test_dead_essential_service_is_raised_with_the_end_of_its_log(cluster: Cluster) -> None:
    tracker, job = submitted(cluster)
    cluster.run.log("vllm", "42", "err").write_text("loading\nRuntimeError: CUDA out of memory\n")
    cluster.listed("FAILED", "NonZeroExitCode")
    cluster.says("finished", reason="exited", exit_code=1, message="exit code 1")
    tracker.poll()
    with pytest.raises(JobFailedError) as caught:
        tracker.raise_if_dead()
    text = str(caught.value)
    for words in ("job 'vllm' ended: FAILED: exit code 1", "logs/vllm_42.err:", "CUDA out of memory"):
        assert words in text
    assert job.state == JobState.FAILED


@pytest.mark.parametrize(("kind", "is_essential"), [("service", False), ("task", True)])
def test_dead_job_that_is_not_essential_or_a_task_is_not_raised(
    kind: Any, is_essential: bool, cluster: Cluster
) -> None:
    planned = PlannedJob(**{**vars(cluster.planned), "kind": kind, "is_essential": is_essential})
    tracker = cluster.tracker()
    job = tracker.submit(planned)
    cluster.says("finished", reason="exited", exit_code=1)
    tracker.poll()
    assert job.state == JobState.FAILED
    tracker.raise_if_dead()


def test_cancel_names_ids_of_living_jobs_only(cluster: Cluster) -> None:
    tracker, job = submitted(cluster)
    done = tracker.adopt(planned_service(cluster.run, "client"), "43", time.time())
    done.state = JobState.COMPLETED
    tracker.cancel(tracker.jobs)
    assert cluster.programs.calls("scancel") == ["42"]
    assert job.cancelled
    assert not done.cancelled
    cluster.says("finished", reason="signal", signal=15)
    tracker.poll()
    assert job.state == JobState.CANCELLED
    tracker.raise_if_dead([job])
    tracker.cancel(tracker.jobs)
    assert len(cluster.programs.calls("scancel")) == 1


def test_cancel_that_fails_shows_the_command_and_its_words(cluster: Cluster) -> None:
    tracker, _ = submitted(cluster)
    cluster.programs.add("scancel", "echo 'Kill job error on job id 42: Access denied' >&2; exit 1")
    with pytest.raises(CommandError, match=r"exit code 1.*scancel 42\n.*Access denied"):
        tracker.cancel(tracker.jobs)


def test_wait_for_end_returns_whatever_has_not_ended(cluster: Cluster) -> None:
    tracker, job = submitted(cluster)
    cluster.listed("RUNNING")
    told = []
    assert tracker.wait_for_end(0.05, lambda: told.append(1)) == [job]
    assert told
    cluster.says("finished", reason="exited", exit_code=0)
    assert tracker.wait_for_end(5.0) == []


def test_job_that_can_never_start_is_raised_with_the_reason_when_it_stays_so(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, job = submitted(cluster)
    cluster.listed("PENDING", "PartitionTimeLimit")
    tracker.poll()
    tracker.raise_if_stuck()
    monkeypatch.setattr(jobs_module, "STUCK_PATIENCE_S", 0.0)
    cluster.listed("PENDING", "Resources")
    tracker.poll()
    tracker.raise_if_stuck()
    cluster.listed("PENDING", "PartitionTimeLimit")
    tracker.poll()
    with pytest.raises(
        CannotStartError, match=r"'vllm' \(42\) can never start .* PartitionTimeLimit\nAsk for less"
    ) as caught:
        tracker.raise_if_stuck()
    assert caught.value.exit_code == 2
    job.cancelled = True
    tracker.raise_if_stuck()


def test_stuck_job_that_is_given_up_is_cancelled_and_counts_as_ended_by_itself(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, job = submitted(cluster)
    monkeypatch.setattr(jobs_module, "STUCK_PATIENCE_S", 0.0)
    cluster.listed("PENDING", "JobHoldMaxRequeue")
    tracker.poll()
    tracker.raise_if_stuck(spared=("vllm",))
    assert tracker.is_stuck(job)
    assert "JobHoldMaxRequeue" in str(tracker.give_up(job))
    assert cluster.programs.calls("scancel") == ["42"]
    assert not tracker.is_stuck(job)
    tracker.poll()
    assert tracker.is_stuck(job), "it was not ended: it is to be given up again"
    cluster.listed("CANCELLED")
    tracker.poll()
    assert (job.state, job.cancelled) == (JobState.CANCELLED, False)


def test_replacement_does_not_wait_for_a_connection(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = cluster.tracker()
    cut = Answer(("sbatch",), None, "", "no route", Fault.NOT_SENT)
    monkeypatch.setattr(HostView, "ask", lambda *_: cut)
    began_s = time.monotonic()
    with pytest.raises(NoConnectionError, match="no route"):
        tracker.submit_replacement(cluster.planned)
    assert time.monotonic() - began_s < 1.0


def test_id_that_slurm_gave_out_again_is_not_our_job_and_is_not_cancelled(cluster: Cluster) -> None:
    tracker, job = submitted(cluster)
    cluster.queue("42|RUNNING|gpu1|None|somebody-elses")
    tracker.poll()
    assert (job.state, job.why) == (JobState.UNKNOWN, "the scheduler does not list it")
    tracker.cancel(tracker.jobs)
    assert cluster.programs.calls("scancel") == []


def test_intent_whose_job_has_run_and_is_forgotten_is_adopted_by_its_record(cluster: Cluster) -> None:
    cluster.ledger.append("job_intent")
    tracker = cluster.tracker()
    tracker.intend(cluster.planned, time.time())
    cluster.says("finished", reason="exited", exit_code=0)
    tracker.adopt_intended()
    assert cluster.programs.calls("squeue") == []
    tracker.poll()
    assert (tracker["vllm"].job_id, tracker["vllm"].state) == ("42", JobState.COMPLETED)


def test_intent_of_a_job_that_comes_late_is_waited_for(cluster: Cluster) -> None:
    line = f"45|PENDING||Priority|{cluster.planned.token}"
    cluster.programs.add("squeue", f'test -e "$(dirname "$0")/late" && echo "{line}"; touch "$(dirname "$0")/late"')
    tracker = cluster.tracker()
    tracker.intend(cluster.planned, time.time())
    tracker.adopt_intended()
    assert tracker["vllm"].job_id == "45"


def test_intent_of_a_job_that_does_not_come_is_given_up_and_fenced(cluster: Cluster) -> None:
    tracker = cluster.tracker()
    tracker.intend(cluster.planned, time.time() - 3600)
    tracker.adopt_intended()
    assert tracker.open_intents == ()
    assert cluster.run.fence(cluster.planned.token).exists()
    assert cluster.events() == ["job_abandoned"]
    assert tracker.next_generation("vllm") == 2


def again(cluster: Cluster) -> PlannedJob:
    """Return the job as it is planned for a second submission."""
    return PlannedJob(**{**vars(cluster.planned), "token": f"{cluster.planned.token}-r2"})


def lost_intent(cluster: Cluster) -> JobTracker:
    """Return a tracker after a submission of which nobody could tell whether it was taken."""
    cluster.programs.add("sbatch", "echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1")
    cluster.programs.add("squeue", "exit 1")
    tracker = cluster.tracker()
    with pytest.raises(SubmitError):
        tracker.submit(cluster.planned)
    cluster.programs.add("sbatch", "echo 43")
    return tracker


def test_submit_while_an_earlier_one_is_unsettled_submits_nothing(cluster: Cluster) -> None:
    tracker = lost_intent(cluster)
    with pytest.raises(SubmitError, match=r"whether it was submitted before .* is not known") as caught:
        tracker.submit(again(cluster))
    assert not caught.value.is_refusal
    assert len(cluster.programs.calls("sbatch")) == 1


def test_submit_after_an_earlier_one_that_was_taken_gives_that_job(cluster: Cluster) -> None:
    tracker = lost_intent(cluster)
    cluster.programs.add("squeue", QUEUE)
    cluster.listed("RUNNING", job_id="42")
    assert tracker.submit(again(cluster)).job_id == "42"
    assert len(cluster.programs.calls("sbatch")) == 1


def test_submit_after_an_earlier_one_that_was_not_taken_fences_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = lost_intent(cluster)
    monkeypatch.setattr(submission_module, "LATE_SUBMIT_S", 0.0)
    cluster.programs.add("squeue", QUEUE)
    assert tracker.submit(again(cluster)).job_id == "43"
    assert cluster.run.fence(cluster.planned.token).exists()
    assert tracker.open_intents == ()


def test_found_job_that_was_replaced_meanwhile_is_fenced_and_cancelled(cluster: Cluster) -> None:
    tracker = cluster.tracker()
    tracker.intend(cluster.planned, time.time())
    living = tracker.adopt(again(cluster), "43", time.time())
    cluster.listed("RUNNING", job_id="42")
    tracker.adopt_intended()
    assert tracker["vllm"] is living
    assert cluster.programs.calls("scancel") == ["42"]
    assert cluster.run.fence(cluster.planned.token).exists()


def test_submit_in_the_place_of_a_job_that_left_processes_ends_those(cluster: Cluster) -> None:
    tracker, first = submitted(cluster)
    first.state = JobState.RUNNING
    tracker.submit(again(cluster))
    assert cluster.programs.calls("scancel") == ["42"]


def test_signal_during_a_submission_that_fails_is_not_lost(cluster: Cluster, interrupts: Interrupts) -> None:
    cluster.programs.add("sbatch", "kill -INT $PPID; sleep 0.1; echo 'Invalid account' >&2; exit 1")
    with pytest.raises(KeyboardInterrupt):
        cluster.tracker(interrupts.held).submit(cluster.planned)


def test_submit_that_was_not_taken_is_fenced_as_a_hung_controller_may_take_it_later(cluster: Cluster) -> None:
    cluster.programs.add("sbatch", "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1")
    with pytest.raises(SubmitError):
        submitted(cluster)
    assert cluster.run.fence(cluster.planned.token).exists()


def test_submit_in_the_place_of_an_earlier_job_fences_that_one(cluster: Cluster) -> None:
    tracker, first = submitted(cluster)
    second = PlannedJob(**{**vars(cluster.planned), "token": f"{cluster.planned.token}-r2"})
    cluster.programs.add("sbatch", "echo 43")
    tracker.submit(second)
    assert cluster.run.fence(first.planned.token).exists()
    assert not cluster.run.fence(second.token).exists()
    assert tracker["vllm"].job_id == "43"


def test_tracker_that_only_looks_writes_nothing_and_submits_nothing(cluster: Cluster) -> None:
    polling = Polling.model_construct(scheduler_s=0.0, records_s=0.0)
    tracker = JobTracker(cluster.run, None, hosts_here(slurm_scheduler(), cluster.run), polling)
    tracker.adopt(cluster.planned, "42", time.time())
    cluster.listed("RUNNING")
    tracker.poll()
    assert tracker["vllm"].state == JobState.RUNNING
    assert not cluster.run.events.exists()
    with pytest.raises(RuntimeError, match="only looks"):
        tracker.submit(cluster.planned)
    assert cluster.programs.calls("sbatch") == []


def test_interrupts_outside_of_a_submission_come_at_once(interrupts: Interrupts) -> None:
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(TerminatedError) as caught:
        signal.raise_signal(signal.SIGHUP)
    assert caught.value.exit_code == 129


def test_interrupts_held_come_when_the_outermost_block_ends(interrupts: Interrupts) -> None:
    reached = []

    def submit() -> None:
        with interrupts.held():
            with interrupts.held():
                signal.raise_signal(signal.SIGTERM)
            reached.append("inner")

    with pytest.raises(TerminatedError):
        submit()
    assert reached == ["inner"]
    with interrupts.held():
        reached.append("again")


def test_interrupts_ignored_while_a_run_is_put_away_change_nothing(interrupts: Interrupts) -> None:
    interrupts.ignore()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.raise_signal(number)
    assert interrupts._pending is None


def test_poll_looks_at_no_job_that_has_ended(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = cluster.tracker()
    for number in range(50):
        planned = PlannedJob(
            **{**vars(cluster.planned), "name": f"t{number}", "token": f"token-{number}", "kind": "task"}
        )
        tracker.adopt(planned, str(number), time.time())
    for number in range(49):
        fields = {"token": f"token-{number}", "job_id": str(number), "attempt": "a", "host": "n", "started_at": 1.0}
        end = {"state": "finished", "reason": "exited", "exit_code": 0}
        write_json(cluster.run.status(f"token-{number}"), {**fields, **end})
    tracker.poll()
    looked: list[str] = []
    monkeypatch.setattr(jobs_module, "read_status", lambda run, token: looked.append(token))
    tracker.poll()
    assert looked == ["token-49"]
    assert [job.name for job in tracker.current] == [*(f"t{number}" for number in range(37, 49)), "t49"]
    assert (tracker.count, len(tracker.jobs)) == (50, 50)


def test_submissions_keep_their_pace(cluster: Cluster) -> None:
    tracker = cluster.tracker(submits_per_s=5.0)
    began = time.monotonic()
    for number in range(4):
        planned = PlannedJob(**{**vars(cluster.planned), "name": f"t{number}", "token": f"token-{number}"})
        tracker.submit(planned)
    assert time.monotonic() - began >= 0.6


def test_last_word_that_a_host_had_when_the_scheduler_told_of_the_end_is_fetched(cluster: Cluster) -> None:
    class Far(ThisMachine):
        """Its records are brought here by collect() alone; the job writes its last one after the first look."""

        looks = 0

        def collect(self, jobs: Sequence[PlannedJob]) -> bool:
            self.looks += 1
            if self.looks == 1:
                cluster.says("running")
            else:
                cluster.says("finished", reason="exited", exit_code=0)
            return True

    host = Far(slurm_scheduler(), LocalTransport(), cluster.run)
    polling = Polling.model_construct(scheduler_s=0.0, records_s=0.01, metrics_s=1.0, submits_per_s=1000.0)
    tracker = JobTracker(cluster.run, cluster.ledger, Hosts([host]), polling)
    job = tracker.submit(cluster.planned)
    cluster.listed("COMPLETED")
    tracker.poll()
    assert (job.state, host.looks) == (JobState.COMPLETED, 2)
