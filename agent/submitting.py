"""Submitting the trials of a search: one by one, or those that were proposed together as one job array."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from agent.history import TrialView
from agent.study import SearchStudy
from agent.trials import TrialPlaces, trial_draft
from orchestrator.errors import StageError, SubmitError
from orchestrator.gpu_guard import GpuCapError
from orchestrator.recipe.hpo import Hpo
from orchestrator.service import JobDraft
from orchestrator.stage import StageContext
from orchestrator.tracked import TrackedJob

MAX_REFUSALS = 3
# How long a scheduler may be silent, and how often it is tried again meanwhile.
SILENT_PATIENCE_S = 900.0
SUBMIT_AGAIN_S = 10.0


class TrialSubmitter:
    """Submits proposed trials, and keeps those that have to wait.

    Attributes:
        waiting: Numbers of trials that were proposed and have no job yet.
        stopped: Why no further trials are submitted, in words; None while they are.
    """

    def __init__(
        self,
        context: StageContext,
        hpo: Hpo,
        study: SearchStudy,
        places: TrialPlaces,
        watch: Callable[[int, TrackedJob], None],
        finish: Callable[[TrialView], None],
        breathe: Callable[[float], None],
    ) -> None:
        """Start with no trials.

        Args:
            context: What the stage may use.
            hpo: What is searched.
            study: Its trials.
            places: Where they lie.
            watch: Takes a trial that was submitted.
            finish: Takes one that was refused.
            breathe: Waits, and looks after the trials that run.
        """
        self._context, self._hpo, self._study, self._places = context, hpo, study, places
        self._watch, self._finish, self._breathe = watch, finish, breathe
        self.waiting: list[int] = []
        self.stopped: str | None = None
        self._running = 0
        self._held_beside: int | None = None
        self._refusals = 0
        self._silent_since: float | None = None

    @property
    def is_together(self) -> bool:
        """Whether trials are submitted as job arrays where there are several."""
        return self._context.plan_array is not None

    def take_waiting(self, running: int) -> list[int]:
        """Return what waits and is to be submitted now; nothing while it is held beside ``running`` trials."""
        if self._held_beside is not None and running >= self._held_beside:
            return []
        self._held_beside = None
        count = len(self.waiting) if self.is_together else 1
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def submit(self, numbers: Sequence[int], running: int) -> None:
        """Submit trials beside ``running`` others; those that the scheduler refuses have failed.

        Raises:
            StageError: the scheduler refuses everything.
            SubmitError: it has been silent for too long.
        """
        self._running = running
        missing = []
        for number in numbers:
            found = self._context.jobs.get(self._places.here(number).job)
            if found is None or found.ended_with_its_allocation:
                missing.append(number)
            else:
                self._take(number, found)  # an answer that was lost has been found
        count, over = self._count_fitting(missing)
        is_settled = self._send(missing[:count]) if count else True
        if not is_settled:
            self.waiting += missing[count:]
        elif over is not None:
            self._hold(missing[count:], over)

    def _count_fitting(self, numbers: Sequence[int]) -> tuple[int, GpuCapError | None]:
        """Return how many of ``numbers`` fit under the cap on GPU-hours together, and what is said of the next one."""
        if len(numbers) < 2:
            return len(numbers), None
        planned = [self._context.plan_job(self._draft(number)) for number in numbers]
        for count, job in enumerate(planned):
            try:
                self._context.jobs.check(job, *planned[:count])
            except GpuCapError as error:
                return count, error
        return len(numbers), None

    def _send(self, numbers: Sequence[int]) -> bool:
        """Submit trials with one command; return whether that is settled."""
        for number in numbers:
            self._places.here(number).make()
        try:
            jobs = self._submit(numbers)
        except GpuCapError as error:
            self._hold(numbers, error)
            return True
        except SubmitError as error:
            if not error.is_refusal:
                self._submit_later(numbers, error)
                return False
            self._refuse(numbers, error)
            return True
        self._refusals, self._silent_since = 0, None
        for number, job in zip(numbers, jobs, strict=True):
            self._study.note(number, scheduler_job_id=job.job_id)
            self._take(number, job)
        return True

    def _submit(self, numbers: Sequence[int]) -> list[TrackedJob]:
        drafts = [self._draft(number) for number in numbers]
        if len(drafts) == 1 or self._context.plan_array is None:
            planned = self._context.plan_job(drafts[0])
            self._note(numbers[0], planned.token)
            planned.write()
            return [self._context.jobs.submit(planned)]
        array = self._context.plan_array(drafts)
        for number, member in zip(numbers, array.members, strict=True):
            self._note(number, member.token)
        array.write()
        return self._context.jobs.submit_array(array)

    def _draft(self, number: int) -> JobDraft:
        params = self._study.view(number).params
        return trial_draft(self._context.plan, self._hpo, self._places.there(number), params)

    def _note(self, number: int, token: str) -> None:
        place = self._places.here(number)
        self._study.note(number, job=place.job, job_id=place.job_id, job_token=token)

    def _take(self, number: int, job: TrackedJob) -> None:
        self._running += 1
        self._watch(number, job)

    def _refuse(self, numbers: Sequence[int], error: SubmitError) -> None:
        """Let trials fail that were refused with one command, which counts once.

        Raises:
            StageError: the scheduler has refused too often.
        """
        self._refusals += 1
        for number in numbers:
            self._finish(self._study.tell_failure(number, str(error), {"job_state": "REFUSED"}))
        if self._refusals >= MAX_REFUSALS:
            raise StageError(
                f"hpo: the scheduler refused {self._refusals} submissions in a row. The last time:\n{error}"
            ) from error

    def _hold(self, numbers: Sequence[int], error: GpuCapError) -> None:
        """Put trials off that would break the cap on GPU-hours: until another has ended, or for good."""
        if error.may_fit_later and self._running:
            self.waiting = [*numbers, *self.waiting]
            self._held_beside = self._running
            return
        words = str(error).splitlines()[0]
        self._context.progress.say(f"hpo: no further trials: {words}")
        self.stopped = words
        for left in (*numbers, *self.waiting):
            self._study.tell_failure(left, words, {"interrupted": True})
        self.waiting.clear()

    def _submit_later(self, numbers: Sequence[int], error: SubmitError) -> None:
        """Keep trials for another try: a scheduler that is silent for a while says nothing of them.

        Raises:
            SubmitError: it has been silent for too long.
        """
        now = time.monotonic()
        self._silent_since = self._silent_since or now
        if now - self._silent_since > SILENT_PATIENCE_S:
            raise error
        names = f"trial {numbers[0]} is" if len(numbers) == 1 else f"trials {numbers[0]} to {numbers[-1]} are"
        self._context.progress.say(f"hpo: {names} submitted again later: {error.what}")
        self.waiting = [*numbers, *self.waiting]
        self._breathe(SUBMIT_AGAIN_S)
        self._context.jobs.adopt_intended()
