"""The jobs of one run: submitted once each, watched together, cancelled by id."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.atomic import write_json
from orchestrator.errors import (
    CannotStartError,
    CommandError,
    JobFailedError,
    NoConnectionError,
    StorageError,
    SubmitError,
    TransportError,
)
from orchestrator.hosts import Host, Hosts
from orchestrator.ledger import Ledger
from orchestrator.logs import last_words
from orchestrator.plan import PlannedJob
from orchestrator.recipe.infrastructure import Polling
from orchestrator.records import read_heartbeat, read_status
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState, Seen, Submission
from orchestrator.tracked import TrackedJob
from orchestrator.transports import Answer, Fault
from orchestrator.truth import Evidence, judge

log = logging.getLogger(__name__)
LOOKUP_WAITS_S = (0.5, 2.0, 5.0, 10.0)
LATE_SUBMIT_S = 10.0
# How many ended tasks are still shown.
RECENT = 12
# As long as services live without hearing from their orchestrator.
UNREACHABLE_PATIENCE_S = 900.0
# A reason for which no job can start may be that of a moment: a partition that is being changed.
STUCK_PATIENCE_S = 20.0


class _View:
    """What is known of one host's batch system, and when it is to be asked again."""

    def __init__(self, host: Host) -> None:
        self.host, self.scheduler = host, host.scheduler
        self.next_query = self.next_collect = 0.0
        self.has_answered = self.is_reachable = True
        self.answered_at = 0.0

    def ask(self, argv: Sequence[str]) -> Answer:
        """Return the answer of one of the scheduler's commands."""
        return self.host.transport.run(argv, self.scheduler.command_timeout_s)

    def cancel(self, *job_ids: str) -> Answer:
        """Ask for the end of jobs, by id, and return the answer."""
        return self.ask(self.scheduler.cancel_argv(job_ids))

    def query(self) -> dict[str, Seen] | None:
        """Return what the scheduler says of all jobs, or None if it does not answer properly."""
        return self.scheduler.parse_status(self.ask(self.scheduler.status_argv()))

    def there(self, path: Path) -> Path:
        """Return a path of the orchestrator's copy of the run as the host's programs see it."""
        return self.host.there(path)


@dataclass(frozen=True)
class Intent:
    """A job that was to be submitted, and when (seconds since the epoch)."""

    planned: PlannedJob
    at: float


class JobTracker:
    """Submits, polls and cancels the jobs of one run.

    The intent to submit is in the ledger before the scheduler hears of it, and the token is the job's name: an answer
    that was lost is looked up, never repeated blindly. A token that was given up is fenced: should its job start after
    all, it does nothing.
    """

    def __init__(
        self,
        run: RunDir,
        ledger: Ledger | None,
        hosts: Hosts,
        polling: Polling,
        uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
        guard: Callable[[PlannedJob], None] = lambda _: None,
    ) -> None:
        """Start with no jobs.

        Args:
            run: The run's paths.
            ledger: Gets intents, submissions and states; None for one who only looks.
            hosts: Where jobs run, with their schedulers.
            polling: How often to look.
            uninterrupted: Holds signals back while a job is being submitted.
            guard: Asked before each submission; raises where there is to be none.
        """
        self._guard = guard
        self._uninterrupted = uninterrupted
        self._run, self._written, self._polling = run, ledger, polling
        self._views = {host.name: _View(host) for host in hosts}
        self._jobs: dict[str, TrackedJob] = {}
        # What a look costs must not grow with the number of jobs that have ended.
        self._open: dict[str, TrackedJob] = {}
        self._services: dict[str, TrackedJob] = {}
        self._ended: deque[TrackedJob] = deque(maxlen=RECENT)
        self._done: dict[str, TrackedJob] = {}
        self._intended: dict[str, Intent] = {}
        self._generations: Counter[str] = Counter()
        self._next_submit = 0.0

    @property
    def jobs(self) -> tuple[TrackedJob, ...]:
        """All submitted jobs, in the order of submission; of those that were submitted again the last."""
        return tuple(self._jobs.values())

    @property
    def services(self) -> tuple[TrackedJob, ...]:
        """The submitted services, ended ones included."""
        return tuple(self._services.values())

    @property
    def current(self) -> tuple[TrackedJob, ...]:
        """What is to be shown: services, tasks that have not ended, and the last that have."""
        tasks = {job.name: job for job in (*self._ended, *self._open.values()) if job.planned.kind == "task"}
        return (*self.services, *tasks.values())

    @property
    def count(self) -> int:
        """How many jobs there are, ended ones included."""
        return len(self._jobs)

    @property
    def _ledger(self) -> Ledger:
        if self._written is None:
            raise RuntimeError("this tracker only looks")
        return self._written

    def next_generation(self, name: str) -> int:
        """Return which submission of the job ``name`` the next one is, from 1."""
        return self._generations[name] + 1

    def __getitem__(self, name: str) -> TrackedJob:
        return self._jobs[name]

    def __contains__(self, name: object) -> bool:
        return name in self._jobs

    def get(self, name: str) -> TrackedJob | None:
        """Return the job of that name, or None if none was submitted."""
        return self._jobs.get(name)

    def submit(self, planned: PlannedJob) -> TrackedJob:
        """Submit ``planned``, whose script is already written, and return it tracked.

        Raises:
            SubmitError: the scheduler refused it; carries the scheduler's own words.
            StorageError: the intent could not be recorded, so nothing was submitted.
            GpuCapError: the run has used up its GPU-hours.
        """
        self._guard(planned)
        deadline = time.monotonic() + UNREACHABLE_PATIENCE_S
        found = self._settle(planned)
        if found is not None:
            return found
        self._keep_pace()
        while True:
            try:
                with self._uninterrupted():
                    return self._submit(planned)
            except NoConnectionError:
                # It was certainly not submitted: the connection is waited for, in the reach of signals.
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOKUP_WAITS_S[1])

    def _settle(self, planned: PlannedJob) -> TrackedJob | None:
        """Settle what became of an earlier submission of this job, and return that job if it was taken after all.

        Raises:
            SubmitError: nobody can tell yet; a second submission could run beside the first.
        """
        for token, intent in list(self._intended.items()):
            if intent.planned.name != planned.name or token == planned.token:
                continue
            job_id = self._find(intent)
            if job_id is None:
                what = f"job '{planned.name}': whether it was submitted before as {token} is not known"
                raise SubmitError((), None, "", what, is_refusal=False)
            if job_id:
                self._adopt_found(intent, job_id)
                return self._jobs[planned.name]
            self._abandon(intent)
        return None

    def _adopt_found(self, intent: Intent, job_id: str) -> None:
        """Track the job of an intent that was looked up; one that was replaced meanwhile is fenced and cancelled."""
        planned = intent.planned
        there = self._jobs.get(planned.name)
        if there is not None and not there.state.is_final and there.planned.token != planned.token:
            self._fence(planned)
            self.forget(planned.token)
            self._views[planned.host].cancel(job_id)
            self._note("job_abandoned", job=planned.name, token=planned.token, job_id=job_id)
            return
        self.adopt(planned, job_id, intent.at)
        self._note("job_submitted", job=planned.name, token=planned.token, job_id=job_id, adopted=True)

    def _abandon(self, intent: Intent) -> None:
        self._fence(intent.planned)
        self.forget(intent.planned.token)
        self._note("job_abandoned", job=intent.planned.name, token=intent.planned.token)

    def _keep_pace(self) -> None:
        """Wait until the next submission may be made: schedulers suffer from bursts."""
        now = time.monotonic()
        time.sleep(max(0.0, self._next_submit - now))
        self._next_submit = max(now, self._next_submit) + 1.0 / self._polling.submits_per_s

    def _submit(self, planned: PlannedJob) -> TrackedJob:
        view = self._views[planned.host]
        if planned.name in self._jobs:
            # What was lost may live on somewhere; it must not go on beside the new one.
            self._fence(self._jobs[planned.name].planned)
            if self._jobs[planned.name].must_be_ended:
                view.cancel(self._jobs[planned.name].job_id)
        view.host.deliver(planned.config, planned.script)
        if planned.token not in self._intended:
            scheduler = view.scheduler.kind
            self._ledger.append("job_intent", token=planned.token, planned=planned.as_json(scheduler))
            self.intend(planned, time.time())
        submission = Submission(
            planned.token, view.there(planned.script), view.there(planned.batch_log), planned.resources.cpus
        )
        answer = view.ask(view.scheduler.submit_argv(submission))
        if answer.fault == Fault.NOT_SENT:
            raise NoConnectionError(view.host.name, answer.stderr.strip() or "no connection")
        try:
            job_id = view.scheduler.parse_submit(answer)
        except SubmitError as error:
            job_id = self._resolve(planned, answer, error)
        tracked = self.adopt(planned, job_id, time.time())
        self._ledger.append("job_submitted", job=planned.name, token=planned.token, job_id=job_id)
        return tracked

    def _resolve(self, planned: PlannedJob, answer: Answer, error: SubmitError) -> str:
        """Return the id of a job whose submission failed, if the scheduler has taken it all the same.

        Raises:
            SubmitError: it has not, or nobody can tell.
        """
        is_ambiguous = self._views[planned.host].scheduler.is_ambiguous(answer)
        what = f"job '{planned.name}': {error.what}"
        is_known, found = self._look_up(planned) if is_ambiguous else (True, None)
        if found is not None:
            return found
        if is_known:
            if is_ambiguous:
                # A controller that hangs may take the job when it goes on.
                self._fence(planned)
            self._intended.pop(planned.token)
            self._ledger.append("job_refused", job=planned.name, token=planned.token, stderr=answer.stderr[-2000:])
        else:
            # The intent stays open, for tear-down, `stop` and `resume` to look it up again.
            what += f"; whether it was submitted is not known, look for the name {planned.token}"
        raise SubmitError(error.argv, error.returncode, error.stderr, what, not is_ambiguous) from error

    def _fence(self, planned: PlannedJob) -> None:
        """Give a token up: a supervisor that finds this file ends without doing anything.

        Raises:
            StorageError: the fence could not be written.
            TransportError: it could not be brought to the job's host.
        """
        fence = self._run.fence(planned.token)
        write_json(fence, {"at": time.time()})
        self._views[planned.host].host.deliver(fence)

    def _look_up(self, planned: PlannedJob) -> tuple[bool, str | None]:
        """Look for a job by its token after an ambiguous submission.

        Returns:
            Whether the scheduler answered at all, and the job's id or None if there is none.
        """
        has_answered = False
        for wait_s in LOOKUP_WAITS_S:
            time.sleep(wait_s)
            seen = self._views[planned.host].query()
            has_answered = seen is not None
            for item in (seen or {}).values():
                # Slurm may keep a record of a job that it refused, under an id that it never gave out.
                was_refused = item.state.is_final and item.node is None
                if item.name == planned.token and not was_refused:
                    return True, item.job_id
        return has_answered, None

    def poll(self) -> None:
        """Look at the records of all jobs that have not ended, and at each scheduler when that is due."""
        open_jobs = [job for job in self._open.values() if not job.state.is_final]
        for view in self._views.values():
            jobs = [job for job in open_jobs if job.planned.host == view.host.name]
            if jobs:
                self._poll_host(view, jobs)

    def _poll_host(self, view: _View, jobs: Sequence[TrackedJob]) -> None:
        now = time.monotonic()
        if now >= view.next_collect:
            view.is_reachable = view.host.collect([job.planned for job in jobs])
            view.next_collect = time.monotonic() + self._polling.records_s
        has_news = [self._read_record(job) for job in jobs]
        # An answer from before an end cannot tell whether the job was requeued.
        is_doubtful = any(has_news) and not view.scheduler.is_absence_final
        seen = None
        if not view.is_reachable:
            view.has_answered = False
        elif is_doubtful or now >= view.next_query:
            asked_at, seen = time.time(), view.query()
            view.next_query = time.monotonic() + self._polling.scheduler_s
            view.has_answered = seen is not None
            if seen is not None:
                view.answered_at = asked_at
                for job in jobs:
                    job.note_seen(seen.get(job.job_id))
        for job in jobs:
            self._update(job, view)
        if seen is not None:
            self._end_repetitions(seen, view)

    def refresh(self) -> None:
        """Ask every scheduler with the next poll, whenever it was asked last."""
        for view in self._views.values():
            view.next_query = view.next_collect = 0.0

    def _read_record(self, job: TrackedJob) -> bool:
        """Read the job's own record; return whether it tells of an end that the scheduler has to be asked about.

        A task that says that its work is done needs nobody's word. The sentinel of an attempt that was requeued says
        nothing of the next one.
        """
        record = read_status(self._run, job.planned.token) or job.record
        if record is not None and record.is_finished and record.attempt == job.superseded_attempt:
            record = None
        job.record = record
        if record is None or not record.is_finished or record.attempt == job.ended_attempt:
            return False
        job.ended_attempt = record.attempt
        return not (record.is_success and job.planned.kind == "task")

    def _update(self, job: TrackedJob, view: _View) -> None:
        token = job.planned.token
        verdict = judge(
            Evidence(
                now=time.time(),
                submitted_at=job.submitted_at,
                record=job.record,
                heartbeat_at=read_heartbeat(self._run, token),
                seen=job.seen,
                scheduler_answered=view.has_answered,
                is_absence_final=view.scheduler.is_absence_final,
                cancelled=job.cancelled,
                was_asked=view.answered_at > job.submitted_at,
                listed_at=job.listed_at,
                is_task=job.planned.kind == "task",
            )
        )
        if verdict.state == JobState.REQUEUED and job.record is not None:
            job.superseded_attempt = job.record.attempt
            job.record = None
        if verdict.state.is_final and (job.record is None or not job.record.is_finished):
            # Its first word or its sentinel may have been written between the two looks.
            before = job.record
            self._read_record(job)
            if job.record != before:
                self._update(job, view)
                return
        node = (job.seen.node if job.seen else None) or (job.record.host if job.record else None) or job.node
        if (verdict.state, node) != (job.state, job.node) or (verdict.state.is_final and job.why != verdict.why):
            self._note("job_state", job=job.name, job_id=job.job_id, state=verdict.state, node=node, why=verdict.why)
        if verdict.state.is_final and not job.state.is_final:
            view.host.collect_logs(job.planned, job.job_id)
            self.forget_ended(job)
            if job.planned.kind == "task" and verdict.state == JobState.COMPLETED:
                self._done[token] = job
        job.state, job.why, job.node = verdict.state, verdict.why, node

    def _end_repetitions(self, seen: Mapping[str, Seen], view: _View) -> None:
        """Keep tasks that are done from running once more, where the scheduler has them in the queue again.

        Slurm does so after its controller was killed: it starts what it remembers as pending (and holds it, while the
        first copy still runs).
        """
        for item in seen.values():
            if item.name in self._done and item.state in {JobState.PENDING, JobState.REQUEUED}:
                self._end_repetition(self._done.pop(item.name), view)

    def _end_repetition(self, job: TrackedJob, view: _View) -> None:
        if self._written is None:
            return
        log.warning("%s has ended, and job %s is in the queue again: it is being cancelled", job.name, job.job_id)
        try:
            self._fence(job.planned)
        except (StorageError, TransportError) as error:
            log.warning("%s", error)
        # Not as this run's cancellation of the job: what it has done counts.
        view.cancel(job.job_id)

    def forget_ended(self, job: TrackedJob) -> None:
        """Look at a job no more; it is still among all jobs."""
        self._open.pop(job.name, None)
        self._ended.append(job)

    def raise_if_dead(self, jobs: Iterable[TrackedJob] | None = None) -> None:
        """Raise for the first essential service that has ended.

        Raises:
            JobFailedError: with the last lines of its log.
        """
        for job in self.services if jobs is None else jobs:
            if job.planned.kind == "service" and job.planned.is_essential and job.state.is_final and not job.cancelled:
                raise self.failure(job)

    def raise_if_stuck(self) -> None:
        """Raise for the first job that waits for something that will never come.

        Raises:
            CannotStartError: with the scheduler's reason.
        """
        for job in self._open.values():
            if job.stuck_since is None or job.cancelled or job.state.is_final:
                continue
            if time.monotonic() - job.stuck_since > STUCK_PATIENCE_S:
                raise CannotStartError(job.name, job.job_id, (job.seen and job.seen.reason) or "no reason given")

    def failure(self, job: TrackedJob) -> JobFailedError:
        """Return the error that tells of a job's end."""
        why = f"ended: {job.state}" + (f": {job.why}" if job.why else "")
        return JobFailedError(job.name, why, last_words(self._run, job.name, job.job_id))

    def cancel(self, jobs: Iterable[TrackedJob]) -> None:
        """Ask the scheduler to end ``jobs``, by id.

        Raises:
            CommandError: the scheduler did not take the request.
        """
        chosen = [job for job in jobs if job.must_be_ended]
        if not chosen:
            return
        for job in chosen:
            job.cancelled = job.cancelled or not job.state.is_final
        self._note("cancel", job_ids=[job.job_id for job in chosen], tokens=[job.planned.token for job in chosen])
        failed = None
        for view in self._views.values():
            ids = [job.job_id for job in chosen if job.planned.host == view.host.name]
            if not ids:
                continue
            answer = view.cancel(*ids)
            view.next_query = 0.0
            if not view.scheduler.has_cancelled(answer):
                failed = CommandError(
                    answer.argv, answer.returncode, answer.stderr, "the scheduler did not cancel the jobs"
                )
        if failed is not None:
            raise failed

    def _note(self, event: str, **data: Any) -> None:
        """Write an event that nothing depends on: a full disk must not keep jobs from being watched and ended."""
        if self._written is None:
            return
        try:
            self._written.append(event, **data)
        except StorageError as error:
            log.warning("%s", error)

    def intend(self, planned: PlannedJob, at: float) -> None:
        """Remember an intent; until its answer is recorded nobody knows whether the job was submitted.

        Args:
            planned: The job.
            at: When it was to be submitted, in seconds since the epoch.
        """
        self._generations[planned.name] += 1
        self._intended[planned.token] = Intent(planned, at)

    def adopt(self, planned: PlannedJob, job_id: str, submitted_at: float) -> TrackedJob:
        """Track a submitted job, in the place of an earlier one of its name."""
        self._intended.pop(planned.token, None)
        tracked = TrackedJob(planned, job_id, submitted_at)
        self._jobs[planned.name] = self._open[planned.name] = tracked
        if planned.kind == "service":
            self._services[planned.name] = tracked
        return tracked

    def forget(self, token: str) -> None:
        """Drop an intent that was refused or given up."""
        self._intended.pop(token, None)

    def unmark_living(self) -> None:
        """Forget cancellations that were asked for and did not come about: the jobs live."""
        for job in self._open.values():
            job.cancelled = False

    def mark_cancelled(self, tokens: Iterable[str]) -> None:
        """Remember that the jobs of these tokens were cancelled, by this or another orchestrator."""
        marked = set(tokens)
        for job in self._jobs.values():
            job.cancelled = job.cancelled or job.planned.token in marked

    @property
    def open_intents(self) -> tuple[str, ...]:
        """Tokens of jobs of which nobody knows yet whether they were submitted."""
        return tuple(self._intended)

    def adopt_intended(self) -> None:
        """Find jobs whose submission was cut off before its answer came; those that are surely not there are fenced.

        A submit command may have outlived the orchestrator that started it, so the scheduler's "no such job" is not
        believed at once; a job that comes later still finds the fence.
        """
        for intent in list(self._intended.values()):
            job_id = self._find(intent)
            if job_id is None:
                continue  # the intent stays open
            if job_id:
                self._adopt_found(intent, job_id)
            else:
                self._abandon(intent)

    def _find(self, intent: Intent) -> str | None:
        """Return the job id of an intent, empty if it has surely not been submitted; None if nobody can tell."""
        token, view = intent.planned.token, self._views[intent.planned.host]
        # A clock that was set back must not make this last.
        deadline = time.monotonic() + min(LATE_SUBMIT_S, LATE_SUBMIT_S - (time.time() - intent.at))
        while True:
            if not view.host.collect([intent.planned]):
                return None
            record = read_status(self._run, token)
            if record is not None:
                return record.job_id  # it has run already, whatever the scheduler still knows of it
            seen = view.query()
            if seen is None:
                return None
            for item in seen.values():
                if item.name == token and not item.state.is_final:
                    return item.job_id
            if time.monotonic() > deadline:
                return ""
            time.sleep(LOOKUP_WAITS_S[0])

    def wait_for_end(self, timeout_s: float, tell: Callable[[], None] | None = None) -> list[TrackedJob]:
        """Poll until every job has ended; return those that have not within ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.poll()
            if tell:
                tell()
            left = [job for job in self._open.values() if not job.state.is_final]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(min(self._polling.records_s, 0.5))
