"""What a stage of a run (benchmark, hpo) is, and what it may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from orchestrator.arrays import PlannedArray
from orchestrator.jobs import JobTracker
from orchestrator.ledger import Ledger
from orchestrator.metrics import MetricsSink
from orchestrator.plan import PlannedJob
from orchestrator.progress import Progress
from orchestrator.recipe.document import Recipe
from orchestrator.records import Endpoint
from orchestrator.rundir import RunDir
from orchestrator.service import JobDraft, PlanContext, Role


@dataclass(frozen=True)
class StageContext:
    """What a stage may use.

    Attributes:
        recipe: With every choice made.
        run: The run's paths.
        run_id: The run's id.
        experiment_id: ``<name>_<run id>``.
        plan: For drafts of further jobs, which are trials.
        jobs: Submits and tracks jobs.
        metrics: Where pushed metrics go.
        progress: What people see.
        ledger: The run's ledger.
        endpoint: Returns the endpoint of a ready service of this run; raises ServiceAnswerError if it is not ready.
        plan_job: Makes a job of a draft, without submitting it.
        plan_array: Makes jobs that are submitted together of two drafts or more; None where there are no arrays.
        fetch: Brings a file or folder of the run here from where jobs of a role write it: role, path, what to leave
            out. Raises TransportError.
        wait: Sleeps that many seconds while it watches all jobs, renews the lease and shows progress. Stages call it
            in every loop. Raises JobFailedError as soon as an essential service has died.
    """

    recipe: Recipe
    run: RunDir
    run_id: str
    experiment_id: str
    plan: PlanContext
    jobs: JobTracker
    metrics: MetricsSink
    progress: Progress
    ledger: Ledger
    endpoint: Callable[[str], Endpoint]
    plan_job: Callable[[JobDraft], PlannedJob]
    plan_array: Callable[[Sequence[JobDraft]], PlannedArray] | None
    fetch: Callable[[Role, Path, tuple[str, ...]], None]
    wait: Callable[[float], None]


class Stage(Protocol):
    """One stage of a run."""

    name: str
    role: Role
    """Role of the jobs that it starts or asks; its checks are those of their host."""

    def is_wanted(self, recipe: Recipe) -> bool:
        """Return whether the recipe asks for this stage."""
        ...

    def check(self, context: PlanContext) -> None:
        """Look, without changing anything, whether the stage can do its work.

        Raises:
            UserError: it cannot; says why and what to do.
        """
        ...

    def sample_job(self, context: PlanContext) -> JobDraft | None:
        """Return what one of the stage's own jobs looks like, for the plan; None if it has none."""
        ...

    def run(self, context: StageContext) -> dict[str, Any]:
        """Do the work and return its figures for summary.json.

        Raises:
            OrchError: it could not be done.
        """
        ...
