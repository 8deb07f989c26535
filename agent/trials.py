"""The jobs of trials: what each runs, where it writes, and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.dataset import data_arguments
from agent.history import Params
from agent.trainer_arguments import command_line
from orchestrator.atomic import make_private_dir, read_json
from orchestrator.containers.launch import PYTHON, launch_of
from orchestrator.logs import last_words, tail
from orchestrator.recipe.hpo import Hpo, Scalar
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState
from orchestrator.service import JobDraft, PlanContext
from orchestrator.tracked import TrackedJob

TRIAL_BODY = "services/trial.j2"
EVALUATION_JOB = "evaluate"
_FOLDERS = ("output", "logs", "checkpoints", "tensorboard")
LAST_WORDS_CHARS = 2000
RESULT_FIGURES = (
    "val_accuracy", "best_val_accuracy", "best_epoch", "val_auc", "epochs_run", "training_time_s", "images_per_s",
)  # fmt: skip

# What job.hpo.objective may name; each a share of pictures, or a mean of such.
SHARES = ("val_accuracy", "best_val_accuracy", "val_auc")


@dataclass(frozen=True)
class TrialContext:
    """Values of templates/services/trial.j2; arguments that are true are flags without a value."""

    python: str
    program: Path
    arguments: Mapping[str, str | bool]
    output_dir: Path
    job_id: str


@dataclass(frozen=True)
class TrialPlace:
    """Names and files of one trial.

    Attributes:
        job_id: ``<experiment id>_iter_<number>``: its name in records and metrics.
        job: Its job's name in the run.
        root: Its directory.
    """

    job_id: str
    job: str
    root: Path

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def results(self) -> Path:
        return self.root / "results.json"

    @property
    def best_checkpoint(self) -> Path:
        return self.root / "checkpoints" / "best.pt"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    def make(self) -> None:
        """Make the directory with its folders.

        Raises:
            StorageError: it cannot be made.
        """
        for folder in _FOLDERS:
            make_private_dir(self.root / folder)


def trial_place(run: RunDir, job_pattern: str, experiment_id: str, number: int) -> TrialPlace:
    """Return names and files of trial ``number``."""
    job_id = f"{experiment_id}_iter_{number}"
    return TrialPlace(job_id, f"trial_{number:04}", run.trial(job_pattern, job_id, number, experiment_id))


class TrialPlaces:
    """Where the trials of one search lie."""

    def __init__(self, here: RunDir, there: RunDir, job_pattern: str, experiment_id: str) -> None:
        """Take the paths of the run on this machine, and as its trials' jobs see them."""
        self._here, self._there = here, there
        self._job_pattern, self._experiment_id = job_pattern, experiment_id

    def here(self, number: int) -> TrialPlace:
        """Return the place of one trial."""
        return trial_place(self._here, self._job_pattern, self._experiment_id, number)

    def there(self, number: int) -> TrialPlace:
        """Return the place of one trial as its job sees it."""
        return trial_place(self._there, self._job_pattern, self._experiment_id, number)


def trial_draft(plan: PlanContext, hpo: Hpo, place: TrialPlace, params: Params) -> JobDraft:
    """Return the job that trains with ``params``; one that is run again goes on from its last checkpoint."""
    return _draft(plan, hpo, place, place.job, params, {"resume": True})


def evaluation_draft(plan: PlanContext, hpo: Hpo, place: TrialPlace, params: Params) -> JobDraft:
    """Return the job that measures the test accuracy of a finished trial with its best checkpoint.

    With ``--resume`` the trainer finds every epoch done and trains none.
    """
    return _draft(plan, hpo, place, EVALUATION_JOB, params, {"resume": True, "evaluate_test": True})


def _draft(
    plan: PlanContext, hpo: Hpo, place: TrialPlace, name: str, params: Params, switches: Mapping[str, Scalar]
) -> JobDraft:
    job = plan.recipe.job
    resources = job.resources.trial
    values = {"seed": hpo.seed % 2**31, **data_arguments(hpo.dataset), **hpo.fixed, **params, **switches}
    data = [Path(str(values["data_dir"]))] if "data_dir" in values else []
    reads, writes = ([], data) if values.get("download") else (data, [])
    launch = launch_of(plan, "trial", "trainer", name, reads=reads, writes=writes)
    return JobDraft(
        name=name,
        role="trial",
        kind="task",
        body=TRIAL_BODY,
        context=TrialContext(
            python=PYTHON if launch else job.environment.python or "python3",
            program=plan.project / "trainer" / "train.py",
            arguments=command_line(values),
            output_dir=place.root,
            job_id=place.job_id,
        ),
        resources=resources,
        env={"OMP_NUM_THREADS": str(resources.cpus)} if resources.cpus else {},
        is_essential=False,
        pulls=(place.metrics, place.results),
        launch=launch,
    )


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended.

    Attributes:
        objective: None if it failed.
        cause: Why it failed, in words; None if it did not.
        attrs: What the study keeps of it.
    """

    objective: float | None
    cause: str | None
    attrs: Mapping[str, Any]


def has_results(place: TrialPlace) -> bool:
    """Return whether the trial has written its results."""
    return place.results.is_file()


def read_end(
    run: RunDir, job: TrackedJob, place: TrialPlace, objective: str, known_cause: str | None = None
) -> TrialEnd:
    """Return how the trial of an ended job went. Only a completed job with completed results has a value.

    Args:
        run: The run's paths.
        job: The trial's job.
        place: The trial's files.
        objective: Which figure is maximised.
        known_cause: Why the search itself ended the job, or None; a job that completed all the same counts.
    """
    results = read_json(place.results)
    figures = _figures(results if isinstance(results, dict) else {})
    record = job.record
    ran_s = record.finished_at - record.started_at if record is not None and record.finished_at else None
    attrs: dict[str, Any] = {"job_state": job.state.value, "figures": figures, "run_s": ran_s}
    value = figures.get(objective)
    own_cause = _find_cause(run, job, results, objective, place)
    cause = own_cause if known_cause is None or job.state == JobState.COMPLETED else known_cause
    if cause is None:
        return TrialEnd(value, None, attrs)
    attrs["last_words"] = last_words(run, job.name, job.job_id)[-LAST_WORDS_CHARS:]
    return TrialEnd(None, cause, attrs)


def _find_cause(run: RunDir, job: TrackedJob, results: Any, objective: str, place: TrialPlace) -> str | None:
    said = results.get("cause") if isinstance(results, dict) else None
    said = said if isinstance(said, str) else None
    if job.state != JobState.COMPLETED:
        last_line = "".join(tail(run.log(job.name, job.job_id, "err"), lines=1)).strip()
        words = [str(word) for word in (job.why, said or last_line) if word]
        return f"{job.state}: {': '.join(words) or 'it said nothing of its end'}"
    if not isinstance(results, dict):
        return f"its job completed, but it left no results.json in {place.root}"
    if results.get("job_id") != place.job_id:
        return f"results.json in {place.root} is that of {_shown(results.get('job_id'))}"
    if results.get("status") != "completed":
        return f"results.json says {_shown(results.get('status'))}: {said or 'no cause given'}"
    for name in SHARES:
        value = results.get(name)
        if not is_share(value) and (name == objective or value is not None):
            return f"{name} in results.json is {_shown(value)}, not a number from 0 to 1"
    return None


def _shown(value: Any) -> str:
    # repr() of something nested a thousand times fails, and of a long text it is long.
    return repr(value)[:80] if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"


def _figures(results: Mapping[str, Any]) -> dict[str, float]:
    found = {name: results[name] for name in RESULT_FIGURES if is_finite_number(results.get(name))}
    return {name: value for name, value in found.items() if name not in SHARES or is_share(value)}


def is_share(value: Any) -> bool:
    """Return whether ``value`` is a number from 0 to 1, as every accuracy is."""
    return is_finite_number(value) and 0 <= value <= 1


def is_finite_number(value: Any) -> bool:
    """Return whether ``value`` is a number that JSON can say; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float holds
        return False
