"""What is left of a search: tables, figures for summary.json, the best checkpoint, and all curves in one place."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.history import TrialView, best_of
from agent.trials import TrialPlace
from orchestrator.atomic import point_link, write_json, write_text
from orchestrator.errors import StorageError
from orchestrator.recipe.hpo import Hpo
from orchestrator.rundir import RunDir

Row = dict[str, Any]
BEST_CHECKPOINT = "best.pt"
SUMMED_NOTES = ("requests", "failed_requests", "prompt_tokens", "completion_tokens")
_COLUMNS_BEFORE = ("number", "job_id", "state", "source")
_COLUMNS_AFTER = (
    "objective", "val_accuracy", "best_val_accuracy", "val_auc", "epochs_run", "training_time_s", "duration_s", "cause",
)  # fmt: skip


def trial_row(trial: TrialView, place: TrialPlace) -> Row:
    """Return one trial as the tables and summary.json have it."""
    attrs = trial.attrs
    return {
        "number": trial.number,
        "job_id": place.job_id,
        "job": place.job,
        "directory": str(place.root),
        "state": trial.state,
        "job_state": attrs.get("job_state"),
        "source": attrs.get("source"),
        "params": dict(trial.params),
        "objective": trial.objective,
        **dict(attrs.get("figures", {})),
        "duration_s": attrs.get("run_s", trial.duration_s),
        "cause": trial.cause,
        "interrupted": trial.is_interrupted,
        "rationale": attrs.get("rationale"),
        "rejects": list(attrs.get("rejects", ())),
    }


def search_figures(hpo: Hpo, trials: Sequence[TrialView], place_of: Callable[[int], TrialPlace]) -> dict[str, Any]:
    """Return the figures of a search, as JSON has them; only trials that count are in its numbers."""
    counted = [trial for trial in trials if trial.counts]
    best = best_of(counted)
    return {
        "state": "completed",
        "objective_name": hpo.objective,
        "sampler": hpo.sampler,
        "trials": [trial_row(trial, place_of(trial.number)) for trial in trials],
        "asked_for": hpo.trials,
        "finished": sum(not trial.is_running for trial in counted),
        "failed": sum(trial.has_failed for trial in counted),
        "best": trial_row(best, place_of(best.number)) if best else None,
        "by_source": _by_source(counted),
        "llm": _llm_figures(counted) if hpo.sampler == "llm" else None,
        "test_accuracy": None,
        "stopped_by": None,
        "warnings": [],
    }


def _by_source(trials: Sequence[TrialView]) -> dict[str, dict[str, float | int | None]]:
    """Return, for each source of proposals, how many trials it gave and its best objective."""
    sources: dict[str, list[TrialView]] = {}
    for trial in trials:
        sources.setdefault(str(trial.attrs.get("source")), []).append(trial)
    return {
        source: {
            "count": len(given),
            "best": max((trial.objective for trial in given if trial.objective is not None), default=None),
        }
        for source, given in sources.items()
    }


def _llm_figures(trials: Sequence[TrialView]) -> dict[str, Any]:
    asked = [trial.attrs for trial in trials if "requests" in trial.attrs]
    latencies = [float(attrs.get("latency_s", 0.0)) for attrs in asked]
    return {
        **{name: sum(int(attrs.get(name, 0)) for attrs in asked) for name in SUMMED_NOTES},
        "rejected_answers": sum(len(attrs.get("rejects", ())) - attrs.get("failed_requests", 0) for attrs in asked),
        "latency_s": sum(latencies),
        "mean_latency_per_proposal_s": sum(latencies) / len(latencies) if latencies else None,
        "models": sorted({str(attrs["model"]) for attrs in asked if attrs.get("model")}),
    }


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """Write trials.json and trials.csv.

    Raises:
        StorageError: they could not be written.
    """
    write_json(folder / "trials.json", list(rows))
    write_text(folder / "trials.csv", _as_csv(rows))


def _as_csv(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS_BEFORE, *names, *_COLUMNS_AFTER])
    for row in rows:
        cells = [
            *(row.get(column) for column in _COLUMNS_BEFORE),
            *(row["params"].get(name) for name in names),
            *(row.get(column) for column in _COLUMNS_AFTER),
        ]
        writer.writerow([_cell(value) for value in cells])
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def keep_best_checkpoint(place: TrialPlace, checkpoints: Path) -> str | None:
    """Put the trial's best weights into ``checkpoints`` as best.pt; return a warning if there are none.

    Raises:
        StorageError: the file could not be written.
    """
    source, destination = place.best_checkpoint, checkpoints / BEST_CHECKPOINT
    if not source.is_file():
        return f"the best trial left no {source}"
    temporary = checkpoints / f".{BEST_CHECKPOINT}.tmp"
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, temporary)
        temporary.chmod(0o600)
        temporary.replace(destination)
    except OSError as error:
        raise StorageError(destination, error) from error
    return None


def link_curves(run: RunDir, places: Sequence[TrialPlace]) -> None:
    """Link each trial's TensorBoard folder below the run's, so that one TensorBoard shows all of them.

    Raises:
        StorageError: a link could not be made.
    """
    for place in places:
        if place.tensorboard.is_dir():
            point_link(run.tensorboard / place.job_id, os.path.relpath(place.tensorboard, run.tensorboard))


def describe_params(params: Mapping[str, Any]) -> str:
    """Return parameters on one short line, for people."""
    return " ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items()
    )
