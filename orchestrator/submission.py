"""Submitting the jobs of one run: once each, whatever becomes of the answers."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.arrays import PlannedArray
from orchestrator.errors import NoConnectionError, SubmitError
from orchestrator.host_view import HostView, Views
from orchestrator.job_table import JobTable
from orchestrator.journal import Journal
from orchestrator.plan import PlannedJob
from orchestrator.records import read_status
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


class Guard(Protocol):
    """Raises where a job is not to be submitted, those ``beside`` it counted that are submitted together with it."""

    def __call__(self, planned: PlannedJob, /, *beside: PlannedJob) -> None: ...


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
        guard: Guard,
    ) -> None:
        """Start with no intents.

        Args:
            journal: Gets intents and submissions.
            table: Gets the submitted jobs.
            views: Batch systems by host.
            submits_per_s: Jobs submitted per second at most.
            uninterrupted: Holds signals back while a job is being submitted.
            guard: Asked before each submission; see Guard.
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

    def submit(
        self, planned: PlannedJob, is_successor: bool = False, patience_s: float = UNREACHABLE_PATIENCE_S
    ) -> TrackedJob:
        """Submit ``planned``, whose script is already written; see JobTracker.submit for the errors.

        Args:
            planned: The job.
            is_successor: See Intent.
            patience_s: How long a host that cannot be reached is waited for, in seconds.
        """
        self.check(planned)
        found = self._settle(planned)
        if found is not None:
            return found
        return self._send((planned,), planned.token, planned.script, is_successor, patience_s)[0]

    def submit_array(self, array: PlannedArray) -> list[TrackedJob]:
        """Submit ``array``, whose scripts are already written; see JobTracker.submit_array for the errors."""
        for index, member in enumerate(array.members):
            self.check(member, *array.members[:index])
        for member in array.members:
            if self._settle(member) is not None:
                what = f"job '{member.name}': it was submitted before, and has been found"
                raise SubmitError((), None, "", what, is_refusal=False)
        return self._send(array.members, array.token, array.script, is_successor=False)

    def check(self, planned: PlannedJob, *beside: PlannedJob) -> None:
        """Raise where ``planned`` is not to be submitted together with those ``beside`` it."""
        self._guard(planned, *beside)

    def _send(
        self,
        members: Sequence[PlannedJob],
        token: str,
        script: Path,
        is_successor: bool,
        patience_s: float = UNREACHABLE_PATIENCE_S,
    ) -> list[TrackedJob]:
        """Submit jobs with one command, as soon as its host can be reached."""
        deadline = time.monotonic() + patience_s
        self._keep_pace()
        while True:
            try:
                with self._uninterrupted():
                    return self._submit(members, token, script, is_successor)
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

    def _submit(self, members: Sequence[PlannedJob], token: str, script: Path, is_successor: bool) -> list[TrackedJob]:
        first = members[0]
        view = self._views[first.host]
        for planned in members:
            self._make_ready(planned, view, is_successor)
        if first.in_array:
            view.host.deliver(script)
        log_there, resources = view.there(first.batch_log), first.resources
        submission = Submission(token, view.there(script), log_there, resources.cpus, resources, first.role)
        answer = view.ask(view.scheduler.submit_argv(submission))
        if answer.fault == Fault.NOT_SENT:
            raise NoConnectionError(view.host.name, answer.stderr.strip() or "no connection")
        try:
            job_id = view.scheduler.parse_submit(answer)
        except SubmitError as error:
            job_id = self._resolve(members, answer, error)
        tracked = []
        for planned, own_id in zip(members, self._ids(members, job_id, view), strict=True):
            tracked.append(self.adopt(planned, own_id, time.time()))
            self._journal.append("job_submitted", job=planned.name, token=planned.token, job_id=own_id)
        return tracked

    def _make_ready(self, planned: PlannedJob, view: HostView, is_successor: bool) -> None:
        """Bring a job's files to its host and record the intent, once what was there before is fenced."""
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

    def _ids(self, members: Sequence[PlannedJob], job_id: str, view: HostView) -> list[str]:
        """Return the id of each job, of that of their array (or one of its tasks)."""
        words = view.scheduler.arrays
        if words is None or not members[0].in_array:
            return [job_id]
        return [words.id_of(job_id, index) for index in range(len(members))]

    def _resolve(self, members: Sequence[PlannedJob], answer: Answer, error: SubmitError) -> str:
        """Return the id of a job (of a task of an array) whose submission failed, if it has been taken all the same.

        Raises:
            SubmitError: it has not, or nobody can tell.
        """
        first = members[0]
        view = self._views[first.host]
        is_ambiguous = view.scheduler.is_ambiguous(answer)
        others = f" and {len(members) - 1} more" if len(members) > 1 else ""
        what = f"job '{first.name}'{others}: {error.what}"
        is_known, found = self._look_up(members) if is_ambiguous else (True, None)
        if found is not None:
            return found
        if is_known:
            for planned in members:
                if is_ambiguous:
                    # A controller that hangs may take the job when it goes on.
                    self._journal.fence(planned, view)
                self.forget(planned.token)
                stderr = answer.stderr[-2000:]
                self._journal.append("job_refused", job=planned.name, token=planned.token, stderr=stderr)
        else:
            # The intent stays open, for tear-down, `stop` and `resume` to look it up again.
            what += f"; whether it was submitted is not known, look for the name {first.token}"
        raise SubmitError(error.argv, error.returncode, error.stderr, what, not is_ambiguous) from error

    def _look_up(self, members: Sequence[PlannedJob]) -> tuple[bool, str | None]:
        """Look for a job, or for any of an array, by its token after an ambiguous submission.

        Returns:
            Whether the scheduler answered at all, and an id that was found or None if there is none.
        """
        has_answered = False
        tokens = {planned.token for planned in members}
        for wait_s in LOOKUP_WAITS_S:
            time.sleep(wait_s)
            seen = self._views[members[0].host].query()
            has_answered = seen is not None
            for item in (seen or {}).values():
                # Slurm may keep a record of a job that it refused, under an id that it never gave out.
                was_refused = item.state.is_final and item.node is None
                if item.name in tokens and not was_refused:
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
        if planned.in_array:
            self._views[planned.host].has_arrays = True
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
