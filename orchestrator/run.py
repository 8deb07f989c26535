"""The life of a run: prepare, deploy, stages, collect, tear down."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.atomic import make_private_dir, write_json
from orchestrator.compose import Composed, Parts
from orchestrator.errors import (
    CommandError,
    JobFailedError,
    LeaseLostError,
    NoConnectionError,
    OrchError,
    ServiceAnswerError,
    StageError,
    StorageError,
)
from orchestrator.gpu_guard import GpuGuard
from orchestrator.history import RunState, replay, saved_stages
from orchestrator.interrupts import Interrupts, TerminatedError
from orchestrator.jobs import JobTracker
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.metrics import MetricsSink
from orchestrator.notices import Notifier, RunFacts, own_end
from orchestrator.progress import Progress
from orchestrator.recipe.hosts import HERE
from orchestrator.records import Endpoint, read_endpoint
from orchestrator.report import write_report
from orchestrator.rundir import experiment_id_of
from orchestrator.service import Role
from orchestrator.stage import Stage, StageContext
from orchestrator.summary import Outcome, finite, summarise
from orchestrator.tracked import TrackedJob
from orchestrator.truth import FRESH_S

END_TIMEOUT_S = 90.0
CANCEL_AGAIN_S = 20.0
TICK_S = 0.5
# What notices of a run's end may take; a batch job out of time is killed half a minute after it was told to end.
NOTICE_PATIENCE_S = 45.0
LEAVING_PATIENCE_S = 8.0
log = logging.getLogger(__name__)


class StopRequestedError(OrchError):
    """``orch.py stop`` asked this run to end."""


class Run:
    """Takes one composed run through its life."""

    def __init__(
        self,
        composed: Composed,
        parts: Parts,
        progress: Progress,
        interrupts: Interrupts,
        keep: bool,
        past: RunState | None = None,
    ) -> None:
        """Take a run that was composed just now, or one that was opened again.

        Args:
            composed: What is to be run.
            parts: What is built on the core.
            progress: What people see.
            interrupts: The signals of this process.
            keep: Whether services stay up when the run has been completed.
            past: What was run of it before, if it was.
        """
        self._composed, self._progress, self._interrupts, self._keep = composed, progress, interrupts, keep
        self._run = composed.plan.run
        self._ledger = Ledger(self._run.events)
        self._lease = Lease(self._run.lease)
        job, polling = composed.recipe.job, composed.recipe.job.polling
        trial_timeout_s = job.hpo.trial_timeout_s if job.hpo else None
        limits_s = composed.plan.limits_s
        self._guard = GpuGuard(self._run, job.guard.max_gpu_hours, trial_timeout_s, limits_s)
        facts = RunFacts(composed.plan.run_id, job.name, self._run.root)
        self._notifier = Notifier(job.notify, facts, limits_s, own_end(os.environ))
        self._jobs = JobTracker(self._run, self._ledger, composed.hosts, polling, self._undisturbed, self._guard.check)
        self._metrics: MetricsSink = parts.make_metrics(self._run, composed.plan.run_id, composed.recipe)
        self._records_s = polling.records_s
        self._told_dead: set[str] = set()
        self._lost = False
        self._past = past if past is not None and past.started_at is not None else None
        self.outcome = Outcome()
        if self._past is not None and self._past.started_at is not None:
            self.outcome.started_at, self.outcome.resumed = self._past.started_at, self._past.resumed + 1

    def execute(self) -> Outcome:
        """Run everything that is missing; return how it ended: an OrchError of the run itself is in the outcome.

        Raises:
            RunBusyError: another orchestrator looks after the run; nothing was touched.
            OrchError: the run could not be taken over; nothing was touched.
        """
        self._lease.take()
        try:
            with self._progress:
                if self._is_left_behind() or not self._is_still_ours():
                    return self._leave()
                self._interrupts.ignore()
                self._put_away()
        finally:
            self._give_back()
        return self.outcome

    def _is_still_ours(self) -> bool:
        """Return whether the run may be put away: one that was taken over meanwhile is another's."""
        try:
            self._lease.verify()
        except LeaseLostError as error:
            self.outcome.state, self.outcome.error, self.outcome.exit_code = "left", str(error), error.exit_code
            self._lost = True
            return False
        return True

    def _give_back(self) -> None:
        try:
            self._lease.give_back()
        except StorageError as error:
            # Its owner is this process: the lease is free as soon as that has ended.
            log.warning("%s", error)

    def _is_left_behind(self) -> bool:
        """Take the run to its end or its failure; return whether its jobs are to be left as they are."""
        outcome = self.outcome
        try:
            if self._past is not None:
                self._take_up()
        except KeyboardInterrupt:
            outcome.state, outcome.error, outcome.exit_code = "left", "interrupted by Ctrl-C", 130
            return True
        except OrchError as error:
            outcome.state, outcome.error, outcome.exit_code = "left", str(error), error.exit_code
            return True
        except Exception as error:  # a defect of orch must not end what lives
            log.exception("internal error")
            outcome.state, outcome.error, outcome.exit_code = "left", f"internal error: {error!r}", 1
            return True
        try:
            self._begin()
            if self._has_work():
                self._prepare()
                self._deploy()
                self._stages()
            outcome.monitoring = self._settled()
            outcome.state = "completed"
        except (TerminatedError, LeaseLostError, NoConnectionError) as error:
            self._lost = isinstance(error, LeaseLostError)
            outcome.state, outcome.error, outcome.exit_code = "left", str(error), error.exit_code
            return True
        except KeyboardInterrupt:
            outcome.state, outcome.error, outcome.exit_code = "interrupted", "interrupted by Ctrl-C", 130
        except StopRequestedError as error:
            outcome.state, outcome.error, outcome.exit_code = "stopped", str(error), 1
        except OrchError as error:
            outcome.state, outcome.error, outcome.exit_code = "failed", str(error), error.exit_code
        except Exception as error:  # a defect of orch must not leave jobs behind
            log.exception("internal error")
            self._add_defect(error)
        return False

    def _add_defect(self, error: Exception) -> None:
        self._add_error(f"internal error: {error!r}; the traceback is in {self._run.orchestrator_log}")

    def _add_error(self, text: str) -> None:
        """Put a failure into the outcome; the first error is the one to show first."""
        outcome = self.outcome
        outcome.error = f"{outcome.error}\n{text}" if outcome.error else text
        if outcome.state in {"running", "completed"}:
            outcome.state = "failed"
        outcome.exit_code = outcome.exit_code or 1

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Hold signals back, and make sure that the run is ours: what follows is done once or not at all."""
        with self._interrupts.held():
            self._lease.verify()
            self._renew_lease()
            yield

    def _begin(self) -> None:
        self._run.stop_request.unlink(missing_ok=True)
        make_private_dir(self._run.stages)
        if self._past is None:
            self._ledger.append("run_started", run_id=self._composed.plan.run_id)
        else:
            self._ledger.append("run_resumed", run_id=self._composed.plan.run_id)
            self._jobs.unmark_living()
            self.outcome.stages.update(saved_stages(self._run))

    def _take_up(self) -> None:
        """Learn what became of the jobs of before, of all of them: until then nothing is to be touched.

        Raises:
            OrchError: it cannot be known now.
        """
        replay(self._run, self._jobs)
        self._jobs.adopt_intended()
        if self._jobs.open_intents:
            raise StageError(
                "the scheduler does not answer, and whether these jobs were submitted is not known: "
                f"{' '.join(self._jobs.open_intents)}"
            )
        self._jobs.poll()

    def _has_work(self) -> bool:
        """Return whether anything is left to be done but putting away."""
        stages = self._composed.stages
        return not stages or any(stage.name not in self.outcome.stages for stage in stages)

    def _prepare(self) -> None:
        for host in self._composed.hosts:
            if host.name != HERE:
                self._progress.say(f"{host.name}: connects, and brings the run's files to {host.run.root}")
            host.prepare()
        for service in self._composed.services:
            service.prepare(self._composed.contexts[service.role], self._progress.say)

    def _deploy(self) -> None:
        planned = self._composed.plan.jobs
        for job in planned:
            tracked = self._jobs.get(job.name)
            generation = self._jobs.next_generation(job.name)
            if tracked is not None and not tracked.state.is_final:
                self._progress.say(f"{job.name}: job {tracked.job_id} of before goes on")
            elif generation == 1:
                self._jobs.submit(job)
            else:
                self._jobs.submit(self._composed.plan_service_again(job.name, generation))
        self._ledger.append("deployed", jobs=[job.name for job in planned])
        while True:
            self._watch()
            waiting = [job for job in self._services() if not job.state.is_final and self._ready_endpoint(job) is None]
            if not waiting:
                break
            time.sleep(min(self._records_s, TICK_S))
        self._ledger.append("ready")
        self._notifier.tell("ready", "running", f"{self._composed.recipe.job.name}: all services are ready")

    def _services(self) -> list[TrackedJob]:
        return list(self._jobs.services)

    def _stages(self) -> None:
        recipe, plan = self._composed.recipe, self._composed.plan
        context = StageContext(
            recipe=recipe,
            run=self._run,
            run_id=plan.run_id,
            experiment_id=experiment_id_of(recipe.job.name, plan.run_id),
            plan=self._composed.contexts["trial"],
            jobs=self._jobs,
            metrics=self._metrics,
            progress=self._progress,
            ledger=self._ledger,
            endpoint=self._endpoint,
            plan_job=lambda draft: self._composed.plan_job(draft, self._jobs.next_generation(draft.name)),
            fetch=self._fetch,
            wait=self._wait,
        )
        for stage in self._composed.stages:
            if stage.name in self.outcome.stages:
                self._progress.say(f"{stage.name}: was completed before")
            else:
                self._run_stage(stage, context)

    def _run_stage(self, stage: Stage, context: StageContext) -> None:
        self._ledger.append("stage_started", stage=stage.name)
        figures: dict[str, Any] = {"state": "failed"}
        self.outcome.stages[stage.name] = figures
        try:
            figures.update(stage.run(context))
            figures["state"] = "completed"
            write_json(self._run.stage(stage.name), finite(figures))
        except (StageError, ServiceAnswerError) as error:
            cause = self._cause_of(error)
            figures["error"] = str(cause)
            raise cause from error
        except OrchError as error:
            figures["error"] = str(error)
            raise
        finally:
            try:
                self._ledger.append("stage_finished", stage=stage.name, state=figures["state"])
            except StorageError as error:
                log.warning("%s", error)

    def _cause_of(self, error: OrchError) -> OrchError:
        """Return the death of a job where that is what a stage stumbled over, else the stage's own error.

        A stage sees a dead server at once; that its job is dead is known only when its heartbeat has stopped.
        """
        deadline = time.monotonic() + FRESH_S + 2 * TICK_S
        while time.monotonic() < deadline:
            self._jobs.refresh()
            try:
                self._watch()
            except JobFailedError as death:
                return death
            time.sleep(2 * TICK_S)
        return error

    def _fetch(self, role: Role, path: Path, excludes: tuple[str, ...] = ()) -> None:
        self._composed.hosts[self._composed.contexts[role].host].fetch(path, excludes)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._watch()
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, TICK_S))

    def _watch(self) -> None:
        """Look at everything once.

        Raises:
            JobFailedError: an essential service has ended.
            CannotStartError: a job can never start.
            StopRequestedError: ``orch.py stop`` asked for the end.
            LeaseLostError: another orchestrator has taken the run over.
        """
        self._renew_lease()
        self._jobs.poll()
        self._show_jobs()
        self._notifier.look(self._services())
        self._jobs.raise_if_dead()
        self._jobs.raise_if_stuck()
        for job in self._services():
            if job.state.is_final and job.name not in self._told_dead:
                self._told_dead.add(job.name)
                self._progress.say(f"{job.name} is left out from here on: {self._jobs.failure(job)}")
        if self._run.stop_request.exists():
            raise StopRequestedError("stopped by `orch.py stop`")

    def _show_jobs(self) -> None:
        self._progress.show_jobs(self._jobs.current, self._jobs.count)

    def _renew_lease(self) -> None:
        written = self._lease.renew()
        if written is not None:
            self._composed.hosts.write_lease(written)

    def _ready_endpoint(self, job: TrackedJob) -> Endpoint | None:
        """Return the endpoint of a ready job; an endpoint of another attempt is somebody else's."""
        endpoint = read_endpoint(self._run, job.name) if job.is_ready else None
        if endpoint is None or job.record is None or endpoint.attempt != job.record.attempt:
            return None
        return endpoint

    def _endpoint(self, service: str) -> Endpoint:
        endpoint = self._ready_endpoint(self._jobs[service]) if service in self._jobs else None
        if endpoint is None:
            raise ServiceAnswerError(f"the service '{service}' is not ready")
        return endpoint

    def _put_away(self) -> None:
        """Collect and end everything; no failure of one step keeps the next from being done."""
        outcome = self.outcome
        if outcome.state == "interrupted":
            self._progress.say("interrupted: ending this run's jobs")
        if outcome.state == "failed":
            self._attempt(self._settle_failed)
        keep = self._keep and outcome.state == "completed"
        if keep:
            self._attempt(self._keep_services)
        else:
            self._attempt(self._clear_metrics)
            self._attempt(self._tear_down)
        outcome.finished_at = time.time()
        # A run without summary has not finished: one that is killed in between is put away again by `resume`.
        self._attempt(self._summarise)
        self._attempt(lambda: self._ledger.append("run_finished", state=outcome.state, kept=keep))
        self._tell_end(NOTICE_PATIENCE_S)

    def _tell_end(self, patience_s: float) -> None:
        """Tell whoever wants to know how the run ended, and wait that long for them to be told."""
        state, error = self.outcome.state, (self.outcome.error or "").partition("\n")[0]
        text = f"{self._composed.recipe.job.name}: {state}" + (f": {error}" if error else "")
        self._notifier.tell("failed" if state in {"failed", "left"} else "finished", state, text)
        self._notifier.close(patience_s)

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OrchError as error:
            self._add_error(str(error))
        except Exception as error:  # what is left to be ended must be ended all the same
            log.exception("internal error")
            self._add_defect(error)

    def _settle_failed(self) -> None:
        self.outcome.monitoring = self._settled()

    def _keep_services(self) -> None:
        prometheus = read_endpoint(self._run, "prometheus")
        self._composed.hosts.write_lease(self._lease.keep())
        self.outcome.monitoring["prometheus_url"] = prometheus.url if prometheus else None

    def _clear_metrics(self) -> None:
        if self.outcome.monitoring.get("series"):
            self._metrics.clear()

    def _summarise(self) -> None:
        composed = self._composed
        self.outcome.gpu_hours = self._guard.figures()
        summary = summarise(composed.recipe, composed.plan, self.outcome, self._jobs.jobs)
        write_json(self._run.summary, summary)
        write_report(self._run)

    def _settled(self) -> dict[str, Any]:
        """Return what Prometheus holds, once it has seen everything that was pushed."""
        is_alive = all(name in self._jobs and self._jobs[name].is_ready for name in ("pushgateway", "prometheus"))
        if not is_alive:
            return {"seen": False, "why": "no Pushgateway and Prometheus ran at the end", "series": []}
        self._progress.say("waiting for Prometheus to scrape the last values")
        return self._metrics.settle()

    def _tear_down(self) -> None:
        """End exactly this run's jobs, by id.

        Raises:
            OrchError: some are left, or may be; says which and how to end them.
        """
        try:
            self._jobs.adopt_intended()
            self._jobs.refresh()
            self._jobs.poll()
        except OrchError as error:
            # What is known is ended all the same.
            log.warning("%s", error)
        deadline = time.monotonic() + END_TIMEOUT_S
        left = self._jobs.jobs
        while left and time.monotonic() < deadline:
            try:
                self._jobs.cancel(left)
            except CommandError as error:
                log.warning("%s", error)
            left = tuple(self._jobs.wait_for_end(CANCEL_AGAIN_S, self._show_jobs))
        name = self._run.root.name
        how = f"Look with `orch.py status {name}`, end them with `orch.py stop {name}`."
        if left:
            ids = " ".join(job.job_id for job in left)
            raise OrchError(f"these jobs have not ended within {END_TIMEOUT_S:.0f} s of being cancelled: {ids}\n{how}")
        if self._jobs.open_intents:
            tokens = " ".join(self._jobs.open_intents)
            raise OrchError(f"whether these jobs were submitted is not known, the scheduler is silent: {tokens}\n{how}")

    def _leave(self) -> Outcome:
        """End the orchestrator without ending its jobs."""
        outcome, name = self.outcome, self._run.root.name
        outcome.finished_at = time.time()
        if not self._lost:
            outcome.error = (
                f"{outcome.error}: its jobs are left as they are. `orch.py resume {name}` goes on with them, "
                f"`orch.py stop {name}` ends them. Services that run end themselves when the lease runs out, within 15 "
                "minutes; those that are still queued end as they start."
            )
            try:
                self._ledger.append("orchestrator_left", exit_code=outcome.exit_code)
            except StorageError as error:
                log.warning("%s", error)
        return outcome
