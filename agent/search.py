"""One search: the work of each node of the flow. The study says what has been done; nothing else is remembered."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from agent.history import TrialView, best_of
from agent.proposer import Asked, Proposer
from agent.relay import SEARCH_JOB, TrialRelay, search_samples
from agent.report import describe_params, keep_best_checkpoint, link_curves, search_figures, write_tables
from agent.study import SearchStudy
from agent.submitting import TrialSubmitter
from agent.time_limit import TimeLimit
from agent.trials import (
    EVALUATION_JOB,
    TrialPlace,
    TrialPlaces,
    evaluation_draft,
    has_results,
    is_share,
    read_end,
)
from orchestrator.atomic import read_json
from orchestrator.errors import CommandError, StageError, SubmitError, TransportError
from orchestrator.gpu_guard import STOPPED_BY, GpuCapError
from orchestrator.recipe.hpo import Hpo
from orchestrator.schedulers import JobState
from orchestrator.stage import StageContext
from orchestrator.tracked import TrackedJob

# A shared file system shows a file of another node late.
RESULTS_GRACE_S = 10.0
log = logging.getLogger(__name__)

Next = Literal["propose", "submit", "poll", "report"]


class SearchState(TypedDict, total=False):
    """What nodes tell each other; plain data, so that a checkpointer can keep it.

    Attributes:
        proposed: Numbers of the trials to submit.
        ended: Numbers of the trials whose jobs have ended.
        next: Where decide leads.
        result: What report found.
    """

    proposed: list[int]
    ended: list[int]
    next: Next
    result: dict[str, Any]


@dataclass
class RunningTrial:
    """A submitted trial."""

    place: TrialPlace
    job: TrackedJob
    relay: TrialRelay
    limit: TimeLimit
    ended_at: float | None = None


class Search:
    """The nodes of the flow over one study."""

    def __init__(self, context: StageContext, hpo: Hpo, study: SearchStudy, proposer: Proposer | None) -> None:
        """Make a search; without a proposer the study's own sampler suggests everything."""
        self._context, self._hpo, self._study, self._proposer = context, hpo, study, proposer
        self._polling = context.recipe.job.polling
        self._running: dict[int, RunningTrial] = {}
        job = context.recipe.job
        self._places = TrialPlaces(context.run, context.plan.run, job.working_dirs.job_pattern, context.experiment_id)
        self._submitter = TrialSubmitter(context, hpo, study, self._places, self._watch, self._finish, self.breathe)

    def reconcile(self) -> SearchState:
        """Adopt what the study already holds, whatever an earlier orchestrator died of.

        Trials with a job go on, or are told how it ended; those that were proposed and not submitted are submitted.
        """
        trials = self._study.views()
        for trial in trials:
            if trial.is_running:
                self._take_up(trial)
        finished = sum(trial.counts and not trial.is_running for trial in self._study.views())
        if trials:
            self._say(f"hpo: goes on after {finished} trials")
        self._context.progress.show_bar("trials", finished, self._hpo.trials, "")
        return self._lead_on()

    def _take_up(self, trial: TrialView) -> None:
        jobs, place = self._context.jobs, self._places.here(trial.number)
        is_over_limit = trial.attrs.get("is_over_limit", False)
        job = jobs.get(place.job)
        if job is not None and job.ended_with_its_allocation:
            self._submitter.waiting.append(trial.number)  # it goes on from its last checkpoint
            return
        # What has completed counts, whatever it was to be cancelled with.
        was_cut_off = job is not None and job.cancelled and job.state.is_final and job.state != JobState.COMPLETED
        if job is not None and (is_over_limit or not was_cut_off):
            self._watch(trial.number, job)
        elif place.job not in jobs and "source" in trial.attrs:
            self._submitter.waiting.append(trial.number)
        else:
            # It was cancelled with its run, or the study holds only a part of its parameters.
            cause = "the orchestrator ended before this trial did"
            self._study.tell_failure(trial.number, cause, {"interrupted": True})

    def _lead_on(self) -> SearchState:
        """Return where the flow goes on: first to what was proposed already."""
        waiting = self._submitter.take_waiting(len(self._running))
        return {"proposed": waiting, "next": "submit"} if waiting else {"next": self._choose_next()}

    def propose(self) -> SearchState:
        """Choose the parameters of the next trial, or of as many as there is room for if they are submitted together.

        They are asked for one after the other: a sampler knows those that were proposed before.
        """
        room = min(self._hpo.parallel_trials - len(self._running), self._hpo.trials - self._count())
        return {"proposed": [self._propose_one() for _ in range(room if self._submitter.is_together else 1)]}

    def _propose_one(self) -> int:
        if self._proposer is None:
            asked = Asked(None, self._hpo.sampler, {})
        else:
            asked = self._proposer.propose(self._study.views(), self._study.next_number, self.breathe)
        trial = self._study.ask(asked)
        if asked.source == "tpe_fallback":
            self._say(f"trial {trial.number}: TPE's suggestion instead of the model's: {asked.notes['rejects'][-1]}")
        return trial.number

    def submit(self, state: SearchState) -> SearchState:
        """Submit the proposed trials; those that the scheduler refuses have failed."""
        self._submitter.submit(state["proposed"], len(self._running))
        return {}

    def poll(self) -> SearchState:
        """Wait until a trial has ended; not at all while there is room for a further one."""
        has_room = self._choose_next() == "propose"
        while True:
            self.breathe(0.0 if has_room else self._polling.records_s)
            ended = [number for number, trial in self._running.items() if self._has_ended(trial)]
            if ended or has_room or not self._running:
                return {"ended": ended}

    def tell(self, state: SearchState) -> SearchState:
        """Tell the study how the ended trials went."""
        for number in state.get("ended", []):
            running = self._running.pop(number)
            running.relay.look(is_over=True)
            is_over_limit = self._study.view(number).attrs.get("is_over_limit", False)
            cause = running.limit.cause if is_over_limit else None
            self._fetch(running.place.root, ("/checkpoints",))
            end = read_end(self._context.run, running.job, running.place, self._hpo.objective, cause)
            if end.objective is None:
                told = self._study.tell_failure(number, end.cause or "", end.attrs)
            else:
                told = self._study.tell_value(number, end.objective, end.attrs)
            self._finish(told)
        return {"ended": []}

    def decide(self) -> SearchState:
        """Choose where to go on.

        Raises:
            StageError: too many trials have failed.
        """
        failed = [trial for trial in self._study.views() if trial.has_failed]
        limit = self._hpo.max_failed_trials
        allowed = self._hpo.trials // 2 if limit is None else limit
        if len(failed) > allowed or len(failed) >= self._hpo.trials:
            raise StageError(
                f"hpo: {len(failed)} of {self._hpo.trials} trials failed, {allowed} may. "
                f"The last, trial {failed[-1].number}:\n{failed[-1].cause}\n"
                f"All causes: {self._context.run.reports}/trials.csv. The limit is job.hpo.max_failed_trials."
            )
        return self._lead_on()

    def report(self) -> SearchState:
        """Write the tables, keep the best weights, and measure test accuracy once."""
        result = search_figures(self._hpo, self._study.views(), self._places.here)
        best, stopped = best_of(self._study.views()), self._submitter.stopped
        if best is None:
            raise StageError("hpo: no trial has a result" + (f": {stopped}" if stopped else ""))
        if stopped is not None:
            result["stopped_by"] = STOPPED_BY
        self.write_tables()
        place = self._places.here(best.number)
        self._fetch(place.best_checkpoint)
        warning = keep_best_checkpoint(place, self._context.run.checkpoints)
        warnings = [text for text in (stopped, warning) if text]
        link_curves(self._context.run, [self._places.here(trial.number) for trial in self._study.views()])
        if self._hpo.evaluate_winner:
            accuracy, warning = self._evaluate(best, place)
            result["test_accuracy"] = accuracy
            warnings += [warning] if warning else []
        for warning in warnings:
            self._say(f"hpo: warning: {warning}")
        return {"result": {**result, "warnings": warnings}}

    def write_tables(self) -> None:
        """Write trials.json and trials.csv of what the study holds now."""
        rows = search_figures(self._hpo, self._study.views(), self._places.here)["trials"]
        write_tables(self._context.run.reports, rows)

    def abandon(self, why: str) -> None:
        """End the running trials, in the scheduler and in the study: nothing is left RUNNING for ever."""
        try:
            self._context.jobs.cancel([job for job in self._context.jobs.jobs if job.planned.role == "trial"])
        except CommandError as error:
            log.warning("%s", error)  # the run's tear-down tries again
        for trial in self._study.views():
            if trial.is_running:
                self._study.tell_failure(trial.number, f"the search ended: {why}", {"interrupted": True})
        self._running.clear()
        self.write_tables()

    def breathe(self, seconds: float) -> None:
        """Wait, while jobs are watched, what trials write is passed on, and those over their time are ended."""
        self._context.wait(seconds)
        for number, running in self._running.items():
            running.relay.look()
            self._enforce_limit(number, running)

    def _choose_next(self) -> Next:
        may_propose = self._submitter.stopped is None and not self._submitter.waiting
        if may_propose and self._count() < self._hpo.trials and len(self._running) < self._hpo.parallel_trials:
            return "propose"
        return "poll" if self._running else "report"

    def _count(self) -> int:
        """Return how many trials there are of those that were asked for."""
        return sum(trial.counts for trial in self._study.views())

    def _fetch(self, path: Path, excludes: tuple[str, ...] = ()) -> None:
        """Bring here what a trial wrote elsewhere; what counts has been read already."""
        try:
            self._context.fetch("trial", path, excludes)
        except TransportError as error:
            self._say(f"hpo: warning: {path.name} of a trial stays where it is: {error}")

    def _look_for(self, path: Path) -> None:
        """Bring a file here that may not be seen yet where it was written."""
        try:
            self._context.fetch("trial", path, ())
        except TransportError as error:
            log.debug("%s", error)

    def _watch(self, number: int, job: TrackedJob) -> None:
        place, context = self._places.here(number), self._context
        relay = TrialRelay(context.metrics, place.metrics, context.run_id, place.job_id, self._polling.metrics_s)
        self._running[number] = RunningTrial(place, job, relay, TimeLimit(self._hpo.trial_timeout_s))

    def _enforce_limit(self, number: int, running: RunningTrial) -> None:
        """End the trial's job, by id, once it has run for longer than it may."""
        if not running.limit.is_due(running.job):
            return
        # Noted first, so that an orchestrator that adopts the job knows why it ended.
        self._study.note(number, is_over_limit=True)
        self._say(f"trial {number}: {running.limit.cause}; its job is being ended")
        self._cancel(running.job)

    def _cancel(self, job: TrackedJob) -> None:
        try:
            self._context.jobs.cancel([job])
        except CommandError as error:
            log.warning("%s", error)  # it is asked again

    def _has_ended(self, running: RunningTrial) -> bool:
        """Return whether the job has ended and its results, if it completed, are to be seen."""
        if not running.job.state.is_final:
            return False
        now = time.monotonic()
        running.ended_at = running.ended_at or now
        is_late = now - running.ended_at > RESULTS_GRACE_S
        if running.job.state == JobState.COMPLETED and not has_results(running.place) and not is_late:
            self._look_for(running.place.results)
        return running.job.state != JobState.COMPLETED or has_results(running.place) or is_late

    def _finish(self, trial: TrialView) -> None:
        """Tell everybody of an ended trial."""
        trials = [other for other in self._study.views() if other.counts]
        best, finished = best_of(trials), sum(not other.is_running for other in trials)
        how = (
            f"{self._hpo.objective} {trial.objective:.4f}" if trial.objective is not None else f"failed: {trial.cause}"
        )
        self._say(f"trial {trial.number} ({trial.attrs.get('source')}): {describe_params(trial.params)} → {how}")
        detail = f"best {best.objective:.4f} (trial {best.number})" if best and best.objective is not None else ""
        self._context.progress.show_bar("trials", finished, self._hpo.trials, detail)
        samples = search_samples(finished, sum(other.has_failed for other in trials), best.objective if best else None)
        self._context.metrics.push({"job": SEARCH_JOB, "run": self._context.run_id}, samples)

    def _evaluate(self, best: TrialView, place: TrialPlace) -> tuple[float | None, str | None]:
        """Return the winner's test accuracy, or None and a warning."""
        jobs = self._context.jobs
        if EVALUATION_JOB not in jobs or (jobs[EVALUATION_JOB].cancelled and jobs[EVALUATION_JOB].state.is_final):
            self._say(f"hpo: measures the test accuracy of trial {best.number}")
            there = self._places.there(best.number)
            planned = self._context.plan_job(evaluation_draft(self._context.plan, self._hpo, there, best.params))
            planned.write()
            try:
                self._context.jobs.submit(planned)
            except (SubmitError, GpuCapError) as error:
                return None, f"test accuracy was not measured: {error}"
        job, limit = self._context.jobs[EVALUATION_JOB], TimeLimit(self._hpo.trial_timeout_s)
        while not job.state.is_final:
            self.breathe(self._polling.records_s)
            if limit.is_due(job):
                self._say(f"hpo: the test accuracy of trial {best.number}: {limit.cause}; its job is being ended")
                self._cancel(job)
        if limit.was_exceeded and job.state != JobState.COMPLETED:
            return None, f"test accuracy was not measured: {limit.cause}"
        if job.state != JobState.COMPLETED:
            return None, f"test accuracy was not measured: {self._context.jobs.failure(job)}"
        accuracy = self._read_test_accuracy(place)
        return (
            (accuracy, None) if accuracy is not None else (None, f"{place.results} holds no test accuracy from 0 to 1")
        )

    def _read_test_accuracy(self, place: TrialPlace) -> float | None:
        """Return the figure when it can be seen; the file was there before and is replaced."""
        deadline = time.monotonic() + RESULTS_GRACE_S
        while True:
            results = read_json(place.results)
            value = results.get("test_accuracy") if isinstance(results, dict) else None
            if is_share(value):
                return float(value)  # type: ignore[arg-type]
            if time.monotonic() > deadline:
                return None
            self._look_for(place.results)
            self.breathe(self._polling.records_s)

    def _say(self, text: str) -> None:
        self._context.progress.say(text)
