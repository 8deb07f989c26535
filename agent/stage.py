"""The hpo stage: checks, the plan's sample job, and the search itself."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agent.dataset import check_data, data_arguments, describe_data
from agent.space import centre, ordered
from agent.trainer_arguments import SET_BY_THE_SEARCH, TRAINER_ARGUMENTS
from agent.trials import trial_draft, trial_place
from orchestrator.containers.launch import check_image, is_in_image
from orchestrator.errors import (
    LeaseLostError,
    NoConnectionError,
    OrchError,
    Problem,
    ProgramMissingError,
    RecipeError,
    StageError,
)
from orchestrator.interrupts import TerminatedError
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.hpo import Hpo
from orchestrator.rundir import experiment_id_of
from orchestrator.service import JobDraft, PlanContext, Role
from orchestrator.stage import StageContext

if TYPE_CHECKING:
    from agent.search import Search

PYTHON_TIMEOUT_S = 60.0
log = logging.getLogger(__name__)
PACKAGES = ("torch", "torchvision", "numpy")
"""What the trainer imports on a compute node."""


class HpoStage:
    """A search over the trainer's hyperparameters."""

    name = "hpo"
    role: Role = "trial"

    def is_wanted(self, recipe: Recipe) -> bool:
        return recipe.job.hpo is not None

    def check(self, context: PlanContext) -> None:
        hpo = _hpo(context.recipe)
        _check_names(hpo)
        ordered(hpo.space)
        if is_in_image(context, self.role):
            # It is not made while the services of the run are up and wait for it.
            check_image(context, "trainer", is_made_by_run=False)
        else:
            _check_python(context)
        if context.is_here:
            check_data(hpo)

    def sample_job(self, context: PlanContext) -> JobDraft | None:
        """Return a job like that of a trial, with the middle of the space for its parameters."""
        hpo = _hpo(context.recipe)
        job = context.recipe.job
        experiment_id = experiment_id_of(job.name, context.run_id)
        place = trial_place(context.run, job.working_dirs.job_pattern, experiment_id, 0)
        # Under a name of its own: the scripts of the real trials must not replace what was planned.
        return replace(trial_draft(context, hpo, place, centre(hpo.space)), name="trial_example")

    def run(self, context: StageContext) -> dict[str, Any]:
        # LangGraph and Optuna take seconds to import, which other commands need not wait for.
        from agent.flow import run_flow
        from agent.search import Search

        search = Search(context, _hpo(context.recipe), *_open_study(context))
        try:
            return run_flow(search)
        except (TerminatedError, LeaseLostError, NoConnectionError):
            raise  # the trials run on, to be adopted, or are another orchestrator's
        except (OrchError, KeyboardInterrupt) as error:
            _abandon(search, str(error).splitlines()[0] if str(error) else "interrupted by Ctrl-C")
            raise


def _abandon(search: Search, why: str) -> None:
    """Put a search away that has failed already: what goes wrong on the way does not take the place of the cause."""
    try:
        search.abandon(why)
    except (OrchError, OSError) as error:
        log.warning("the search was not put away in order: %s", error)


def _open_study(context: StageContext) -> tuple[Any, Any]:
    """Return the study and, if the model is the sampler, its proposer."""
    from agent.llm import LlmClient
    from agent.prompts import Task
    from agent.proposer import Proposer
    from agent.study import SearchStudy

    hpo, job = _hpo(context.recipe), context.recipe.job
    study = SearchStudy(context.run.hpo / "study.journal", context.experiment_id, hpo)
    if hpo.sampler != "llm":
        return study, None
    client = LlmClient(
        lambda: context.endpoint(job.front), context.run.api_token, hpo.llm.request_timeout_s, job.service.model
    )
    task = Task(describe_data(hpo.dataset, context.plan.is_here), hpo.objective, hpo.space, hpo.fixed, hpo.trials)
    log = context.run.hpo / "proposals.jsonl"
    proposer = Proposer(client, task, hpo.llm, hpo.seed, log, job.polling.records_s)
    return study, proposer


def _hpo(recipe: Recipe) -> Hpo:
    if recipe.job.hpo is None:
        raise StageError("the recipe has no job.hpo")
    return recipe.job.hpo


def _check_names(hpo: Hpo) -> None:
    """Make sure that every parameter is an argument of the trainer that a search may set.

    Raises:
        RecipeError: some are not; names all of them.
    """
    by_data = frozenset(data_arguments(hpo.dataset))
    allowed = TRAINER_ARGUMENTS - SET_BY_THE_SEARCH - by_data
    problems = [
        Problem(f"job.hpo.{section}.{name}", _why_not(name, by_data), ", ".join(sorted(allowed)))
        for section, names in (("space", hpo.space), ("fixed", hpo.fixed))
        for name in names
        if name not in allowed
    ]
    if problems:
        raise RecipeError("recipe", problems)


def _why_not(name: str, by_data: frozenset[str]) -> str:
    if name == "evaluate_test":
        return "test accuracy is measured once, on the winner: job.hpo.evaluate_winner"
    if name in by_data:
        return "is set by job.hpo.dataset"
    if name in SET_BY_THE_SEARCH:
        return "is set by the search itself"
    return "is not an argument of the trainer"


def _check_python(context: PlanContext) -> None:
    python = context.recipe.job.environment.python
    if context.is_here:
        is_there = python is not None and shutil.which(python) is not None
    else:
        is_there = python is not None and context.transport.run([python, "-c", ""], PYTHON_TIMEOUT_S).returncode == 0
    if not is_there:
        raise ProgramMissingError(
            f"job.environment.python = {python}: there is no such interpreter on '{context.host}'.\n"
            "Name the one that has torch and torchvision, there and on the nodes."
        )
