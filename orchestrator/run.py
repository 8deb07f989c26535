"""The life of a run: prepare, deploy, stages, collect, tear down."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from orchestrator.atomic import write_json
from orchestrator.compose import Composed, Parts
from orchestrator.errors import CommandError, OrchError, ServiceAnswerError
from orchestrator.interrupts import Interrupts, TerminatedError
from orchestrator.jobs import JobTracker, TrackedJob
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.metrics import MetricsSink
from orchestrator.plan import plan_job
from orchestrator.progress import Progress
from orchestrator.records import Endpoint, read_endpoint
from orchestrator.report import write_report
from orchestrator.rundir import experiment_id_of
from orchestrator.stage import StageContext
from orchestrator.summary import summarise
from orchestrator.transport import LocalTransport

END_TIMEOUT_S = 90.0
TICK_S = 0.5
log = logging.getLogger(__name__)


class StopRequestedError(OrchError):
    """``orch.py stop`` asked this run to end."""


@dataclass
class Outcome:
    """How a run ended, filled while it goes on.

    Attributes:
        state: completed, failed, interrupted or stopped.
        error: What went wrong, in words for the user.
        stages: Figures of each stage.
        monitoring: What Prometheus held of the run.
        exit_code: What the process ends with.
    """

    state: str = "running"
    error: str | None = None
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    monitoring: dict[str, Any] = field(default_factory=dict)
    started_at: float = field(default_factory=time.time)
    finished_at: float | None = None
    exit_code: int = 0


class Run:
    """Takes one composed run through its life."""

    def __init__(
        self,
        composed: Composed,
        parts: Parts,
        transport: LocalTransport,
        progress: Progress,
        interrupts: Interrupts,
        keep: bool,
    ) -> None:
        self._composed, self._progress, self._interrupts, self._keep = composed, progress, interrupts, keep
        self._run = composed.plan.run
        self._ledger = Ledger(self._run.events)
        self._lease = Lease(self._run.lease)
        polling = composed.recipe.job.polling
        self._jobs = JobTracker(
            self._run, self._ledger, composed.resolved.scheduler, transport, polling, interrupts.held
        )
        self._metrics: MetricsSink = parts.make_metrics(self._run, composed.plan.run_id, composed.recipe)
        self._records_s = polling.records_s
        self._told_dead: set[str] = set()
        self.outcome = Outcome()

    def execute(self) -> Outcome:
        """Run everything; return how it ended. Never raises an OrchError: the outcome carries it."""
        outcome = self.outcome
        with self._progress:
            try:
                self._ledger.append("run_started", run_id=self._composed.plan.run_id)
                self._lease.renew()
                self._prepare()
                self._deploy()
                self._stages()
                outcome.monitoring = self._settled()
                outcome.state = "completed"
            except TerminatedError as error:
                return self._leave(error)
            except KeyboardInterrupt:
                outcome.state, outcome.error, outcome.exit_code = "interrupted", "interrupted by Ctrl-C", 130
            except StopRequestedError as error:
                outcome.state, outcome.error, outcome.exit_code = "stopped", str(error), 1
            except OrchError as error:
                outcome.state, outcome.error, outcome.exit_code = "failed", str(error), error.exit_code
            except Exception as error:  # a defect of orch must not leave jobs behind
                log.exception("internal error")
                outcome.error = f"internal error: {error!r}; the traceback is in {self._run.orchestrator_log}"
                outcome.state, outcome.exit_code = "failed", 1
            self._interrupts.ignore()
            try:
                self._finish()
            except OrchError as error:
                # What was measured is still in the run directory; the first error is the one to show.
                outcome.error = f"{outcome.error}\n{error}" if outcome.error else str(error)
                outcome.state, outcome.exit_code = "failed", outcome.exit_code or 1
        return outcome

    def _prepare(self) -> None:
        for service in self._composed.services:
            with self._interrupts.held():
                service.prepare(self._composed.context, self._progress.say)

    def _deploy(self) -> None:
        planned = self._composed.plan.jobs
        for job in planned:
            self._jobs.submit(job)
        self._ledger.append("deployed", jobs=[job.name for job in planned])
        while True:
            self._watch()
            waiting = [job for job in self._jobs.jobs if not job.state.is_final and self._ready_endpoint(job) is None]
            if not waiting:
                break
            time.sleep(min(self._records_s, TICK_S))
        self._ledger.append("ready")

    def _stages(self) -> None:
        recipe, plan = self._composed.recipe, self._composed.plan
        context = StageContext(
            recipe=recipe,
            run=self._run,
            run_id=plan.run_id,
            experiment_id=experiment_id_of(recipe.job.name, plan.run_id),
            plan=self._composed.context,
            jobs=self._jobs,
            metrics=self._metrics,
            progress=self._progress,
            ledger=self._ledger,
            endpoint=self._endpoint,
            plan_job=lambda draft: plan_job(
                draft, self._composed.context, self._composed.resolved.scheduler, plan.run_id
            ),
            wait=self._wait,
        )
        for stage in self._composed.stages:
            self._ledger.append("stage_started", stage=stage.name)
            figures: dict[str, Any] = {"state": "failed"}
            self.outcome.stages[stage.name] = figures
            try:
                figures.update(stage.run(context))
                figures["state"] = "completed"
            except OrchError as error:
                figures["error"] = str(error)
                raise
            finally:
                self._ledger.append("stage_finished", stage=stage.name, state=figures["state"])

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
            StopRequestedError: ``orch.py stop`` asked for the end.
        """
        self._lease.renew()
        self._jobs.poll()
        self._progress.show_jobs(self._jobs.jobs)
        self._jobs.raise_if_dead()
        for job in self._jobs.jobs:
            if job.planned.kind == "service" and job.state.is_final and job.name not in self._told_dead:
                self._told_dead.add(job.name)
                self._progress.say(f"{job.name} is left out from here on: {self._jobs.failure(job)}")
        if self._run.stop_request.exists():
            raise StopRequestedError("stopped by `orch.py stop`")

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

    def _finish(self) -> None:
        outcome = self.outcome
        if outcome.state == "interrupted":
            self._progress.say("interrupted: ending this run's jobs")
        if outcome.state == "failed":
            outcome.monitoring = self._settled()
        prometheus = read_endpoint(self._run, "prometheus")
        keep = self._keep and outcome.state == "completed"
        if keep:
            self._lease.keep()
            outcome.monitoring["prometheus_url"] = prometheus.url if prometheus else None
        else:
            if outcome.monitoring.get("series"):
                self._metrics.clear()
            self._tear_down()
        outcome.finished_at = time.time()
        self._ledger.append("run_finished", state=outcome.state, kept=keep)
        write_json(self._run.summary, summarise(self._composed, outcome, self._jobs.jobs))
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
            OrchError: some are left; says which and how to end them.
        """
        self._jobs.adopt_intended()
        self._jobs.poll()
        try:
            self._jobs.cancel(self._jobs.jobs)
        except CommandError as error:
            log.warning("%s", error)
        left = self._jobs.wait_for_end(END_TIMEOUT_S, lambda: self._progress.show_jobs(self._jobs.jobs))
        if left:
            ids = " ".join(job.job_id for job in left)
            raise OrchError(
                f"these jobs have not ended within {END_TIMEOUT_S:.0f} s of being cancelled: {ids}\n"
                f"Look with `orch.py status {self._run.root.name}`, end them with `orch.py stop {self._run.root.name}`."
            )

    def _leave(self, error: TerminatedError) -> Outcome:
        """End the orchestrator without ending its jobs."""
        self.outcome.state, self.outcome.exit_code = "left", error.exit_code
        self.outcome.finished_at = time.time()
        self.outcome.error = (
            f"{error}: its jobs are left running. They end themselves when the lease runs out, within 15 minutes; "
            f"`orch.py stop {self._run.root.name}` ends them now."
        )
        self._ledger.append("orchestrator_left", signal=error.number)
        return self.outcome
