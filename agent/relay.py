"""Carries what trials write about their epochs on to where metrics are collected."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.trials import is_finite_number
from orchestrator.metrics import MetricsSink, Sample

TRAINING_JOB = "orch_training"
SEARCH_JOB = "orch_hpo"
# Field of metrics.jsonl, metric, help.
_EPOCH_METRICS = (
    ("epoch", "training_epoch", "Epochs that the trial has finished."),
    ("train_loss", "training_loss", "Mean training loss of the last epoch."),
    ("train_accuracy", "training_accuracy", "Share of training pictures classified right in the last epoch."),
    ("val_loss", "validation_loss", "Mean validation loss after the last epoch."),
    ("val_accuracy", "validation_accuracy", "Share of validation pictures classified right after the last epoch."),
    ("learning_rate", "training_learning_rate", "Learning rate of the last step."),
    ("images_per_s", "training_images_per_second", "Training pictures per second of the last epoch."),
)


class LineTail:
    """Reads the lines that are appended to a file, each once, when they are whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read_new(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects of lines that are new; a torn last line is read when its end has come."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._position:
                    self._position = 0  # it was replaced
                file.seek(self._position)
                data = file.read()
        except OSError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict):
                yield value


class TrialRelay:
    """Pushes one trial's last epoch: only after a new one, and not more often than every ``every_s`` seconds."""

    def __init__(self, metrics: MetricsSink, path: Path, run_id: str, trial: str, every_s: float) -> None:
        self._metrics, self._every_s = metrics, every_s
        self._tail = LineTail(path)
        self._group = {"job": TRAINING_JOB, "run": run_id, "trial": trial}
        self._unpushed: dict[str, Any] | None = None
        self._next = 0.0

    def look(self, is_over: bool = False) -> None:
        """Push what is new, if it is time; at the trial's end it always is."""
        for line in self._tail.read_new():
            self._unpushed = line
        if self._unpushed is None or (time.monotonic() < self._next and not is_over):
            return
        samples = epoch_samples(self._unpushed)
        self._unpushed = None
        self._next = time.monotonic() + self._every_s
        if samples:
            self._metrics.push(self._group, samples)


def epoch_samples(line: dict[str, Any]) -> list[Sample]:
    """Return the samples of one line of metrics.jsonl; what is missing or not finite is left out."""
    return [
        Sample(metric, float(line[field]), help_text)
        for field, metric, help_text in _EPOCH_METRICS
        if is_finite_number(line.get(field))
    ]


def search_samples(finished: int, failed: int, best: float | None) -> list[Sample]:
    """Return the samples that tell how far a search is."""
    samples = [
        Sample("hpo_trials_finished", float(finished), "Trials of the search that have ended, failed ones included."),
        Sample("hpo_trials_failed", float(failed), "Trials of the search that have failed."),
    ]
    if best is not None:
        samples.append(Sample("hpo_best_objective", best, "Highest objective of the search so far."))
    return samples
