"""Submitting the jobs of one run: once each, whatever becomes of the answers."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from orchestrator.atomic import write_json
from orchestrator.errors import NoConnectionError, StorageError, SubmitError
from orchestrator.host_view import HostView, Views
from orchestrator.job_table import JobTable
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.records import read_status
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Submission
from orchestrator.tracked import TrackedJob
from orchestrator.transports import Answer, Fault

log = logging.getLogger(__name__)
LOOKUP_WAITS_S = (0.5, 2.0, 5.0, 10.0)
LATE_SUBMIT_S = 10.0
# As long as services live without hearing from their orchestrator.
UNREACHABLE_PATIENCE_S = 900.0


@dataclass(frozen=True)
class Intent:
    """A job that was to be submitted.

    Attributes:
        at: When, in seconds since the epoch.
        is_successor: Whether it is to live beside the present job of its name until it takes its place.
    """

    planned: PlannedJob
    at: float
    is_successor: bool = False


class Journal:
    """What happens to the jobs of a run, for its ledger."""

    def __init__(self, run: RunDir, ledger: Ledger | None) -> None:
        """Write to ``ledger``; without one this is for someone who only looks, and may not submit."""
        self.run, self._ledger = run, ledger

    @property
    def only_looks(self) -> bool:
        return self._ledger is None

    def append(self, event: str, **data: Any) -> None:
        """Write an event that something depends on.

        Raises:
            StorageError: it could not be written.
        """
        if self._ledger is None:
            raise RuntimeError("this tracker only looks")
        self._ledger.append(event, **data)

    def note(self, event: str, **data: Any) -> None:
        """Write an event that nothing depends on: a full disk must not keep jobs from being watched and ended."""
        if self._ledger is None:
            return
        try:
            self._ledger.append(event, **data)
        except StorageError as error:
            log.warning("%s", error)

    def fence(self, planned: PlannedJob, view: HostView) -> None:
        """Give a token up: a supervisor that finds this file ends without doing anything.

        Raises:
            StorageError: the fence could not be written.
            TransportError: it could not be brought to the job's host.
        """
        fence = self.run.fence(planned.token)
        write_json(fence, {"at": time.time()})
        view.host.deliver(fence)


class Submitter:
    """Submits jobs.

    The intent to submit is in the ledger before the scheduler hears of it, and the token is the job's name: an answer
    that was lost is looked up, never repeated blindly. A token that was given up is fenced: should its job start after
    all, it does nothing.
    """

    def __init__(
        self,
        journal: Journal,
        table: JobTable,
        views: Views,
        submits_per_s: float,
        uninterrupted: Callable[[], AbstractContextManager[None]],
        guard: Callable[[PlannedJob], None],
    ) -> None:
        """Start with no intents.

        Args:
            journal: Gets intents and submissions.
            table: Gets the submitted jobs.
            views: Batch systems by host.
            submits_per_s: Jobs submitted per second at most.
            uninterrupted: Holds signals back while a job is being submitted.
            guard: Asked before each submission; raises where there is to be none.
        """
        self._journal, self._table, self._views = journal, table, views
        self._submits_per_s, self._uninterrupted, self._guard = submits_per_s, uninterrupted, guard
        self._intended: dict[str, Intent] = {}
        self._generations: Counter[str] = Counter()
        self._next_submit = 0.0

    @property
    def open_intents(self) -> tuple[str, ...]:
        """Tokens of jobs of which nobody knows yet whether they were submitted."""
        return tuple(self._intended)

    def next_generation(self, name: str) -> int:
        """Return which submission of the job ``name`` the next one is, from 1."""
        return self._generations[name] + 1

    def submit(self, planned: PlannedJob, is_successor: bool = False) -> TrackedJob:
        """Submit ``planned``, whose script is already written; see JobTracker.submit for the errors."""
        self._guard(planned)
        deadline = time.monotonic() + UNREACHABLE_PATIENCE_S
        found = self._settle(planned)
        if found is not None:
            return found
        self._keep_pace()
        while True:
            try:
                with self._uninterrupted():
                    return self._submit(planned, is_successor)
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
                return self._table.successor(planned.name) if intent.is_successor else self._table[planned.name]
            self._abandon(intent)
        return None

    def _adopt_found(self, intent: Intent, job_id: str) -> None:
        """Track the job of an intent that was looked up; one that was replaced meanwhile is fenced and cancelled."""
        planned = intent.planned
        there = self._table.get(planned.name)
        is_replaced = there is not None and not there.state.is_final and there.planned.token != planned.token
        if is_replaced and not intent.is_successor:
            self._journal.fence(planned, self._views[planned.host])
            self.forget(planned.token)
            self._views[planned.host].cancel(job_id)
            self._journal.note("job_abandoned", job=planned.name, token=planned.token, job_id=job_id)
            return
        self.adopt(planned, job_id, intent.at)
        self._journal.note("job_submitted", job=planned.name, token=planned.token, job_id=job_id, adopted=True)

    def _abandon(self, intent: Intent) -> None:
        self._journal.fence(intent.planned, self._views[intent.planned.host])
        self.forget(intent.planned.token)
        self._journal.note("job_abandoned", job=intent.planned.name, token=intent.planned.token)

    def _keep_pace(self) -> None:
        """Wait until the next submission may be made: schedulers suffer from bursts."""
        now = time.monotonic()
        time.sleep(max(0.0, self._next_submit - now))
        self._next_submit = max(now, self._next_submit) + 1.0 / self._submits_per_s

    def _submit(self, planned: PlannedJob, is_successor: bool) -> TrackedJob:
        view = self._views[planned.host]
        before = None if is_successor else self._table.get(planned.name)
        if before is not None:
            # What was lost may live on somewhere; it must not go on beside the new one.
            self._journal.fence(before.planned, view)
            if before.must_be_ended:
                view.cancel(before.job_id)
        view.host.deliver(planned.config, planned.script)
        if planned.token not in self._intended:
            document = planned.as_json(view.scheduler.kind)
            self._journal.append("job_intent", token=planned.token, planned=document, is_successor=is_successor)
            self.intend(planned, time.time(), is_successor)
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
        self._journal.append("job_submitted", job=planned.name, token=planned.token, job_id=job_id)
        return tracked

    def _resolve(self, planned: PlannedJob, answer: Answer, error: SubmitError) -> str:
        """Return the id of a job whose submission failed, if the scheduler has taken it all the same.

        Raises:
            SubmitError: it has not, or nobody can tell.
        """
        view = self._views[planned.host]
        is_ambiguous = view.scheduler.is_ambiguous(answer)
        what = f"job '{planned.name}': {error.what}"
        is_known, found = self._look_up(planned) if is_ambiguous else (True, None)
        if found is not None:
            return found
        if is_known:
            if is_ambiguous:
                # A controller that hangs may take the job when it goes on.
                self._journal.fence(planned, view)
            self.forget(planned.token)
            self._journal.append("job_refused", job=planned.name, token=planned.token, stderr=answer.stderr[-2000:])
        else:
            # The intent stays open, for tear-down, `stop` and `resume` to look it up again.
            what += f"; whether it was submitted is not known, look for the name {planned.token}"
        raise SubmitError(error.argv, error.returncode, error.stderr, what, not is_ambiguous) from error

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

    def intend(self, planned: PlannedJob, at: float, is_successor: bool = False) -> None:
        """Remember an intent; until its answer is recorded nobody knows whether the job was submitted.

        Args:
            planned: The job.
            at: When it was to be submitted, in seconds since the epoch.
            is_successor: See Intent.
        """
        self._generations[planned.name] += 1
        self._intended[planned.token] = Intent(planned, at, is_successor)

    def adopt(self, planned: PlannedJob, job_id: str, submitted_at: float) -> TrackedJob:
        """Track a submitted job, as its intent says."""
        intent = self._intended.pop(planned.token, None)
        if intent is not None and intent.is_successor:
            return self._table.add_successor(planned, job_id, submitted_at)
        return self._table.add(planned, job_id, submitted_at)

    def forget(self, token: str) -> None:
        """Drop an intent that was refused or given up."""
        self._intended.pop(token, None)

    def intended(self, token: str) -> PlannedJob | None:
        """Return the job of an open intent."""
        intent = self._intended.get(token)
        return intent.planned if intent else None

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
            record = read_status(self._journal.run, token)
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
