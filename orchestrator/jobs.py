"""The jobs of one run: submitted once each, watched together, cancelled by id."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from orchestrator.arrays import PlannedArray
from orchestrator.atomic import read_json
from orchestrator.errors import CannotStartError, CommandError, JobFailedError, StorageError, TransportError
from orchestrator.host_view import HostView
from orchestrator.hosts import Hosts
from orchestrator.job_table import JobTable
from orchestrator.journal import Journal
from orchestrator.ledger import Ledger
from orchestrator.logs import last_words
from orchestrator.plan import PlannedJob
from orchestrator.recipe.hosts import STEPS
from orchestrator.recipe.infrastructure import Polling
from orchestrator.records import read_heartbeat, read_status
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState, Seen
from orchestrator.submission import Guard, Submitter
from orchestrator.tracked import TrackedJob
from orchestrator.truth import Evidence, judge

log = logging.getLogger(__name__)
# A reason for which no job can start may be that of a moment: a partition that is being changed.
STUCK_PATIENCE_S = 20.0


class JobTracker:
    """Submits, polls and cancels the jobs of one run; how they are submitted is in orchestrator/submission.py."""

    def __init__(
        self,
        run: RunDir,
        ledger: Ledger | None,
        hosts: Hosts,
        polling: Polling,
        uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
        guard: Guard = lambda *_: None,
    ) -> None:
        """Start with no jobs.

        Args:
            run: The run's paths.
            ledger: Gets intents, submissions and states; None for one who only looks.
            hosts: Where jobs run, with their schedulers.
            polling: How often to look.
            uninterrupted: Holds signals back while a job is being submitted.
            guard: Asked before each submission; see Guard.
        """
        self._run, self._polling = run, polling
        self._journal, self._table = Journal(run, ledger), JobTable()
        self._views = {host.name: HostView(host) for host in hosts}
        self._submitter = Submitter(
            self._journal, self._table, self._views, polling.submits_per_s, uninterrupted, guard
        )
        self._done: dict[str, TrackedJob] = {}
        self._vain_since: float | None = None

    @property
    def jobs(self) -> tuple[TrackedJob, ...]:
        """The last submission of each job, and what still lives beside it."""
        return (*self._table.present, *self._table.beside)

    @property
    def services(self) -> tuple[TrackedJob, ...]:
        """The submitted services, ended ones included; of each the one that is asked."""
        return self._table.services

    @property
    def current(self) -> tuple[TrackedJob, ...]:
        """What is to be shown: services, tasks that have not ended, and the last that have."""
        return self._table.shown

    @property
    def count(self) -> int:
        """How many jobs there are, ended ones included."""
        return len(self._table)

    def next_generation(self, name: str) -> int:
        """Return which submission of the job ``name`` the next one is, from 1."""
        return self._submitter.next_generation(name)

    def __getitem__(self, name: str) -> TrackedJob:
        return self._table[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def get(self, name: str) -> TrackedJob | None:
        """Return the job of that name, or None if none was submitted."""
        return self._table.get(name)

    def submit(self, planned: PlannedJob) -> TrackedJob:
        """Submit ``planned``, whose script is already written, and return it tracked.

        Raises:
            SubmitError: the scheduler refused it; carries the scheduler's own words.
            StorageError: the intent could not be recorded, so nothing was submitted.
            GpuCapError: the run has used up its GPU-hours.
        """
        return self._submitter.submit(planned)

    def submit_array(self, array: PlannedArray) -> list[TrackedJob]:
        """Submit all jobs of ``array`` with one command, its scripts already written, and return them tracked.

        Raises:
            SubmitError: the scheduler refused all of them, or it is not known whether it took them; see submit.
            StorageError: an intent could not be recorded, so nothing was submitted.
            GpuCapError: not all of them fit into the run's GPU-hours.
        """
        return self._submitter.submit_array(array)

    def check(self, planned: PlannedJob, *beside: PlannedJob) -> None:
        """Let ``planned`` be submitted together with the jobs ``beside`` it, or not.

        Raises:
            GpuCapError: the run has used up its GPU-hours.
        """
        self._submitter.check(planned, *beside)

    def submit_replacement(self, planned: PlannedJob) -> TrackedJob:
        """Submit a job in the place of one that has ended, without waiting for a connection; see submit.

        Raises:
            NoConnectionError: its host cannot be reached now; it was not submitted.
        """
        return self._submitter.submit(planned, patience_s=0.0)

    def submit_successor(self, planned: PlannedJob) -> TrackedJob:
        """Submit a job that is to take the place of the living one of its name; see submit for the errors."""
        return self._submitter.submit(planned, is_successor=True)

    def successor(self, name: str) -> TrackedJob | None:
        """Return the job that is to take the place of ``name``, if one was submitted."""
        return self._table.successor(name)

    def hand_over(self, name: str) -> None:
        """Let the successor of ``name`` take its place; the one before it goes on until it is cancelled."""
        successor = self._table.successor(name)
        if successor is not None:
            self._table.hand_over(name)
            self._journal.note("job_handed_over", job=name, token=successor.planned.token)

    def drop_successor(self, name: str) -> None:
        """Forget a successor that has ended before it could take over."""
        successor = self._table.successor(name)
        if successor is not None:
            self._table.drop_successor(name)
            self._journal.note("successor_dropped", job=name, token=successor.planned.token)

    def replay_succession(self, name: str, token: str, has_taken_over: bool) -> None:
        """Do again what the ledger tells of a successor, without telling it twice."""
        successor = self._table.successor(name)
        if successor is None or successor.planned.token != token:
            return
        if has_taken_over:
            self._table.hand_over(name)
        else:
            self._table.drop_successor(name)

    @property
    def predecessors(self) -> tuple[TrackedJob, ...]:
        """Jobs that handed over to their successors and have not ended."""
        return self._table.predecessors

    def poll(self) -> None:
        """Look at the records of all jobs that have not ended, and at each scheduler when that is due."""
        open_jobs = [job for job in self._table.open if not job.state.is_final]
        for view in self._views.values():
            jobs = [job for job in open_jobs if job.planned.host == view.host.name]
            if jobs:
                self._poll_host(view, jobs)

    def _poll_host(self, view: HostView, jobs: Sequence[TrackedJob]) -> None:
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

    def _update(self, job: TrackedJob, view: HostView) -> None:
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
            view.is_reachable = view.host.collect([job.planned])
            if not view.is_reachable:
                return  # what it said last is not known
            self._read_record(job)
            if job.record != before:
                self._update(job, view)
                return
        node = (job.seen.node if job.seen else None) or (job.record.host if job.record else None) or job.node
        if (verdict.state, node) != (job.state, job.node) or (verdict.state.is_final and job.why != verdict.why):
            self._journal.note(
                "job_state", job=job.name, job_id=job.job_id, state=verdict.state, node=node, why=verdict.why
            )
        if verdict.state.is_final and not job.state.is_final:
            view.host.collect_logs(job.planned, job.job_id)
            self._withdraw(job, view)
            self._table.close(job)
            if job.planned.kind == "task" and verdict.state == JobState.COMPLETED:
                self._done[token] = job
        job.state, job.why, job.node = verdict.state, verdict.why, node

    def _withdraw(self, job: TrackedJob, view: HostView) -> None:
        """Remove the endpoint record and the scrape targets of a job that was killed outright.

        Its ports may soon be somebody else's, who is not to be sent the run's tokens.
        """
        if self._journal.only_looks:
            return
        endpoint, targets = self._run.endpoint(job.name), self._run.targets
        record = read_json(endpoint)
        commands = []
        if isinstance(record, dict) and record.get("token") == job.planned.token:
            commands.append(["rm", "-f", "--", str(view.there(endpoint))])
        if job.record is not None and not job.record.is_finished:
            script = 'rm -f -- "$1"/*"_targets_$2.json"'
            commands.append(["sh", "-c", script, "sh", str(view.there(targets)), job.job_id])
        for argv in commands:
            answer = view.ask(argv)
            if answer.returncode != 0:
                log.warning("where %s answered is left behind: %s", job.name, answer.stderr.strip())

    def _end_repetitions(self, seen: Mapping[str, Seen], view: HostView) -> None:
        """Keep tasks that are done from running once more, where the scheduler has them in the queue again.

        Slurm does so after its controller was killed: it starts what it remembers as pending (and holds it, while the
        first copy still runs).
        """
        for item in seen.values():
            if item.name in self._done and item.state in {JobState.PENDING, JobState.REQUEUED}:
                self._end_repetition(self._done.pop(item.name), view)

    def _end_repetition(self, job: TrackedJob, view: HostView) -> None:
        if self._journal.only_looks:
            return
        log.warning("%s has ended, and job %s is in the queue again: it is being cancelled", job.name, job.job_id)
        try:
            self._journal.fence(job.planned, view)
        except (StorageError, TransportError) as error:
            log.warning("%s", error)
        # Not as this run's cancellation of the job: what it has done counts.
        view.cancel(job.job_id)

    def raise_if_dead(self, jobs: Iterable[TrackedJob] | None = None) -> None:
        """Raise for the first essential service that has ended.

        Raises:
            JobFailedError: with the last lines of its log.
        """
        is_ending = any(job.planned.role == "allocation" and job.is_ending for job in self.services)
        for job in self.services if jobs is None else jobs:
            if self._table.successor(job.name) is not None:
                continue
            if is_ending and job.planned.host == STEPS:
                continue  # the end of its allocation is about to tell why
            if job.planned.kind == "service" and job.planned.is_essential and job.state.is_final and not job.cancelled:
                raise self.failure(job)

    def is_stuck(self, job: TrackedJob) -> bool:
        """Return whether a job has waited for long for something that will never come."""
        if job.stuck_since is None or job.cancelled or job.state.is_final:
            return False
        return time.monotonic() - job.stuck_since > STUCK_PATIENCE_S

    def give_up(self, job: TrackedJob) -> CannotStartError:
        """Ask the scheduler to end a stuck job, and return the error that tells of it.

        This is not the run's cancellation of the job, which counts as one that ended by itself. If the scheduler does
        not end it, it is soon stuck again.
        """
        error = self._stuck_error(job)
        job.stuck_since = None
        view = self._views[job.planned.host]
        answer = view.cancel(job.job_id)
        view.next_query = 0.0
        if not view.scheduler.has_cancelled(answer):
            log.warning("job %s of %s was not cancelled: %s", job.job_id, job.name, answer.stderr.strip())
        return error

    def raise_if_stuck(self, spared: Collection[str] = ()) -> None:
        """Raise for the first job that waits for something that will never come.

        Args:
            spared: Names of jobs without which the run goes on.

        Raises:
            CannotStartError: with the scheduler's reason.
        """
        for job in self._table.open:
            if job.name not in spared and self.is_stuck(job):
                raise self._stuck_error(job)
        waiting = self._waiting_in_vain()
        if waiting is None:
            self._vain_since = None
            return
        self._vain_since = self._vain_since or time.monotonic()
        if time.monotonic() - self._vain_since > STUCK_PATIENCE_S:
            reason = f"{waiting.seen and waiting.seen.reason}, and services that do not end hold all the rest"
            raise CannotStartError(waiting.name, waiting.job_id, reason)

    def _stuck_error(self, job: TrackedJob) -> CannotStartError:
        return CannotStartError(job.name, job.job_id, (job.seen and job.seen.reason) or "no reason given")

    def _waiting_in_vain(self) -> TrackedJob | None:
        """Return a step that waits for a part of its allocation which is held by services only."""
        steps = [job for job in self._table.open if job.planned.host == STEPS and not job.cancelled]
        # One that has its node already is only slow to start.
        waiting = [job for job in steps if job.state == JobState.PENDING and not (job.seen and job.seen.node)]
        are_held = all(job.is_ready and job.planned.kind == "service" for job in steps if job not in waiting)
        return waiting[0] if waiting and are_held and len(waiting) < len(steps) else None

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
        self._journal.note(
            "cancel", job_ids=[job.job_id for job in chosen], tokens=[job.planned.token for job in chosen]
        )
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

    def unmark_living(self) -> None:
        """Forget cancellations that were asked for and did not come about: the jobs live."""
        for job in self._table.open:
            job.cancelled = False

    def mark_cancelled(self, tokens: Iterable[str]) -> None:
        """Remember that the jobs of these tokens were cancelled, by this or another orchestrator."""
        marked = set(tokens)
        for job in self.jobs:
            job.cancelled = job.cancelled or job.planned.token in marked

    @property
    def open_intents(self) -> tuple[str, ...]:
        """Tokens of jobs of which nobody knows yet whether they were submitted."""
        return self._submitter.open_intents

    def intend(self, planned: PlannedJob, at: float, is_successor: bool = False) -> None:
        """Remember an intent of before; see Submitter.intend."""
        self._submitter.intend(planned, at, is_successor)

    def intended(self, token: str) -> PlannedJob | None:
        """Return the job of an open intent."""
        return self._submitter.intended(token)

    def adopt(self, planned: PlannedJob, job_id: str, submitted_at: float) -> TrackedJob:
        """Track a job that was submitted before; see Submitter.adopt."""
        return self._submitter.adopt(planned, job_id, submitted_at)

    def forget(self, token: str) -> None:
        """Drop an intent that was refused or given up."""
        self._submitter.forget(token)

    def adopt_intended(self) -> None:
        """Find jobs whose submission was cut off before its answer came; see Submitter.adopt_intended."""
        self._submitter.adopt_intended()

    def wait_for_end(self, timeout_s: float, tell: Callable[[], None] | None = None) -> list[TrackedJob]:
        """Poll until every job has ended; return those that have not within ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            self.poll()
            if tell:
                tell()
            left = [job for job in self._table.open if not job.state.is_final]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(min(self._polling.records_s, 0.5))
