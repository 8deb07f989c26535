"""The end of a run: metrics settled, exactly its own jobs ended, summary and report written, whoever asked told."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from orchestrator.allocation.broker import ALLOCATION
from orchestrator.allocation.within import WITHIN, how_to_go_on
from orchestrator.atomic import write_json
from orchestrator.compose import Composed
from orchestrator.errors import CommandError, OrchError, StorageError
from orchestrator.gpu_guard import GpuGuard
from orchestrator.jobs import JobTracker
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.metrics import MetricsSink
from orchestrator.notices import Notifier
from orchestrator.progress import Progress
from orchestrator.records import read_endpoint
from orchestrator.report import write_report
from orchestrator.summary import Outcome, summarise

END_TIMEOUT_S = 90.0
CANCEL_AGAIN_S = 20.0
# What notices of a run's end may take; a batch job out of time is killed half a minute after it was told to end.
NOTICE_PATIENCE_S = 45.0
LEAVING_PATIENCE_S = 8.0
log = logging.getLogger(__name__)


class PuttingAway:
    """Brings one run to its end. No failure of one step keeps the next from being done."""

    def __init__(
        self,
        composed: Composed,
        outcome: Outcome,
        jobs: JobTracker,
        lease: Lease,
        metrics: MetricsSink,
        guard: GpuGuard,
        notifier: Notifier,
        progress: Progress,
    ) -> None:
        self._composed, self._outcome, self._jobs, self._lease = composed, outcome, jobs, lease
        self._metrics, self._guard, self._notifier, self._progress = metrics, guard, notifier, progress
        self._run = composed.plan.run
        self._ledger = Ledger(self._run.events)

    def put_away(self, keep: bool) -> None:
        """Collect and end everything.

        Args:
            keep: Whether services stay up if the run has been completed.
        """
        outcome = self._outcome
        if outcome.state == "interrupted":
            self._progress.say("interrupted: ending this run's jobs")
        if outcome.state == "failed":
            self._attempt(self._settle_failed)
        keep = keep and outcome.state == "completed"
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

    def leave(self, is_lost: bool) -> None:
        """End the orchestrator without ending its jobs.

        Args:
            is_lost: Whether another orchestrator looks after the run by now.
        """
        outcome, name = self._outcome, self._run.root.name
        outcome.finished_at = time.time()
        if is_lost:
            return
        outcome.error = f"{outcome.error}: {self._what_is_left(name)}"
        try:
            self._ledger.append("orchestrator_left", exit_code=outcome.exit_code)
        except StorageError as error:
            log.warning("%s", error)
        self._tell_end(LEAVING_PATIENCE_S)

    def _what_is_left(self, name: str) -> str:
        allocation = self._jobs.get(ALLOCATION)
        if allocation is not None and allocation.planned.host == WITHIN:
            return f"{how_to_go_on(os.environ, name)}."
        return (
            f"its jobs are left as they are. `orch.py resume {name}` goes on with them, "
            f"`orch.py stop {name}` ends them. Services that run end themselves when the lease runs out, within 15 "
            "minutes; those that are still queued end as they start."
        )

    def add_defect(self, error: Exception) -> None:
        """Put a defect of orch itself into the outcome."""
        self._add_error(f"internal error: {error!r}; the traceback is in {self._run.orchestrator_log}")

    def _add_error(self, text: str) -> None:
        """Put a failure into the outcome; the first error is the one to show first."""
        outcome = self._outcome
        outcome.error = f"{outcome.error}\n{text}" if outcome.error else text
        if outcome.state in {"running", "completed"}:
            outcome.state = "failed"
        outcome.exit_code = outcome.exit_code or 1

    def _tell_end(self, patience_s: float) -> None:
        """Tell whoever wants to know how the run ended, and wait that long for them to be told."""
        state, error = self._outcome.state, (self._outcome.error or "").partition("\n")[0]
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
            self.add_defect(error)

    def _settle_failed(self) -> None:
        self._outcome.monitoring = self.settled()

    def _keep_services(self) -> None:
        prometheus = read_endpoint(self._run, "prometheus")
        self._outcome.monitoring["prometheus_url"] = prometheus.url if prometheus else None
        self._composed.hosts.write_lease(self._lease.keep())

    def _clear_metrics(self) -> None:
        if self._outcome.monitoring.get("series"):
            self._metrics.clear()

    def _summarise(self) -> None:
        composed = self._composed
        self._outcome.gpu_hours = self._guard.figures()
        summary = summarise(composed.recipe, composed.plan, self._outcome, self._jobs.jobs)
        write_json(self._run.summary, summary)
        write_report(self._run)

    def settled(self) -> dict[str, Any]:
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

    def _show_jobs(self) -> None:
        self._progress.show_jobs(self._jobs.current, self._jobs.count)
