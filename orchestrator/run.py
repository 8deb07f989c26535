"""The life of a run: prepare, deploy, stages, collect, tear down."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.atomic import make_private_dir, read_json, write_json
from orchestrator.compose import Composed, Parts
from orchestrator.earlier import check_order, find_earlier, wait_for_earlier
from orchestrator.errors import (
    LeaseLostError,
    NoConnectionError,
    OrchError,
    ServiceAnswerError,
    StageError,
    StopRequestedError,
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
from orchestrator.own_job import OwnJob
from orchestrator.progress import Progress
from orchestrator.put_away import PuttingAway
from orchestrator.recipe.base import time_limit_s
from orchestrator.replicas import Replicas
from orchestrator.rundir import experiment_id_of
from orchestrator.service import Role
from orchestrator.stage import Stage, StageContext
from orchestrator.succession import Succession
from orchestrator.summary import Outcome, finite
from orchestrator.watch import Watch

log = logging.getLogger(__name__)


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
        self._lost = False
        self._taken_at = 0.0
        self._past = past if past is not None and past.started_at is not None else None
        self.outcome = Outcome()
        if self._past is not None and self._past.started_at is not None:
            self.outcome.started_at, self.outcome.resumed = self._past.started_at, self._past.resumed + 1
        lead = job.infrastructure.successor_lead
        self._succession = Succession(
            self._run, self._jobs, time_limit_s(lead) if lead else None, limits_s, composed.plan_service_again,
            job.service.request_timeout_s, progress.say,
        )  # fmt: skip
        names = [planned.name for planned in composed.plan.jobs if planned.role == "server"]
        replicas = self._replicas = Replicas(
            self._jobs, names if len(names) > 1 else (), job.service.startup_timeout_s, composed.plan_service_again,
            progress.say,
        )  # fmt: skip
        self._watch = Watch(
            self._run, self._jobs, self._lease, composed.hosts, progress, self._notifier, self._succession, replicas
        )
        self._ending = PuttingAway(
            composed, self.outcome, self._jobs, self._lease, self._metrics, self._guard, self._notifier, progress
        )

    def execute(self) -> Outcome:
        """Run everything that is missing; return how it ended: an OrchError of the run itself is in the outcome.

        Raises:
            RunBusyError: another orchestrator looks after the run; nothing was touched.
            OrchError: the run could not be taken over; nothing was touched.
        """
        self._taken_at = time.time()
        self._lease.take()
        try:
            with self._progress:
                if self._is_left_behind() or not self._is_still_ours():
                    self._ending.leave(self._lost)
                    return self.outcome
                self._interrupts.ignore()
                self._ending.put_away(self._keep)
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
            self._await_earlier()
            if self._has_work():
                self._prepare()
                self._deploy()
                self._stages()
            outcome.monitoring = self._ending.settled()
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
            self._ending.add_defect(error)
        return False

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Hold signals back, and make sure that the run is ours: what follows is done once or not at all."""
        with self._interrupts.held():
            self._lease.verify()
            self._watch.renew_lease()
            yield

    def _begin(self) -> None:
        request = read_json(self._run.stop_request)
        if not isinstance(request, dict) or request.get("at", 0.0) < self._taken_at:
            # It was meant for the orchestrator before.
            self._run.stop_request.unlink(missing_ok=True)
        make_private_dir(self._run.stages)
        own_job = OwnJob.of_this_process(os.environ)
        facts = {"run_id": self._composed.plan.run_id, "own_job": asdict(own_job) if own_job else None}
        if self._past is None:
            self._ledger.append("run_started", **facts)
        else:
            self._ledger.append("run_resumed", **facts)
            self._jobs.unmark_living()
            self.outcome.stages.update(saved_stages(self._run))

    def _await_earlier(self) -> None:
        """Wait until the runs of job.after have ended as they have to; a run that was let go on waits no more.

        Raises:
            EarlierRunError: one has ended otherwise.
            UserError: one is not there, or waits for this one.
        """
        after = self._composed.recipe.job.after
        if not after or (self._past is not None and self._past.has_waited):
            return
        earlier = find_earlier(after, self._run.root.parent)
        check_order(self._run, earlier)
        self._ledger.append("waiting", runs=[str(item.run.root) for item in earlier])
        wait_for_earlier(earlier, self._records_s, self._watch.wait, self._progress)
        self._ledger.append("waited")

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
            if host.name in self._composed.recipe.job.hosts:
                self._progress.say(f"{host.name}: connects, and brings the run's files to {host.run.root}")
            host.prepare()
        for service in self._composed.services:
            service.prepare(self._composed.contexts[service.role], self._progress.say)

    def _deploy(self) -> None:
        planned = self._composed.plan.jobs
        self._succession.settle()
        for job in planned:
            tracked = self._jobs.get(job.name)
            generation = self._jobs.next_generation(job.name)
            if tracked is not None and not tracked.state.is_final:
                self._progress.say(f"{job.name}: job {tracked.job_id} of before goes on")
            elif generation == 1:
                self._jobs.submit(job)
            elif tracked is not None and self._replicas.can_spare(tracked):
                self._replicas.replace(tracked)
            else:
                self._jobs.submit(self._composed.plan_service_again(job.name, generation))
        self._ledger.append("deployed", jobs=[job.name for job in planned])
        self._watch.wait_for_services(self._records_s)
        self._ledger.append("ready")
        self._notifier.tell("ready", "running", f"{self._composed.recipe.job.name}: all services are ready")

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
            endpoint=self._watch.endpoint,
            plan_job=lambda draft: self._composed.plan_job(draft, self._jobs.next_generation(draft.name)),
            plan_array=self._composed.array_planner(self._jobs.next_generation),
            fetch=self._fetch,
            wait=self._watch.wait,
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
            cause = self._watch.cause_of(error)
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

    def _fetch(self, role: Role, path: Path, excludes: tuple[str, ...] = ()) -> None:
        self._composed.hosts[self._composed.contexts[role].host].fetch(path, excludes)
