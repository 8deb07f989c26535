"""What a trial leaves for others to read: one line per epoch, and its outcome. The fields are a contract, see
docs/run-directory.md.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer.errors import InputError
from trainer.layout import replace_atomically

_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class EpochRecord:
    """One epoch; accuracies are shares in 0..1, ``at`` is seconds since the epoch of Unix.

    ``time_s`` counts training from its very start, over all resumptions; ``epoch_time_s`` includes
    validation; ``images_per_s`` counts training pictures over the time spent on them alone. ``epoch`` counts
    from 1, ``step`` is the number of optimizer steps so far, ``learning_rate`` that of the last one.
    """

    job_id: str
    epoch: int
    num_epochs: int
    step: int
    time_s: float
    epoch_time_s: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    images_per_s: float
    at: float

    def as_line(self) -> str:
        """Return the epoch as one plain line for people."""
        return (
            f"epoch {self.epoch}/{self.num_epochs}  train loss {self.train_loss:.4f} acc "
            f"{self.train_accuracy:.4f}  "
            f"val loss {self.val_loss:.4f} acc {self.val_accuracy:.4f}  lr {self.learning_rate:.3g}  "
            f"{self.images_per_s:.0f} img/s  {self.epoch_time_s:.1f} s"
        )


class MetricsFile:
    """``metrics.jsonl``: append-only, each epoch once however often a trial is resumed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_epoch = 0

    def reconcile(self, history: Sequence[EpochRecord]) -> None:
        """Cut a torn last line off and append the lines of ``history`` (a checkpoint's) that are missing.

        Epochs that the file has and the checkpoint does not stay; they are not written again.

        Raises:
            InputError: the last line is whole but not an epoch's record.
            OSError: the file cannot be read or written.
        """
        content = self._path.read_bytes() if self._path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._path, len(whole))
        lines = whole.splitlines()
        try:
            self._last_epoch = int(json.loads(lines[-1])["epoch"]) if lines else 0
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._path}: its last line is no epoch's record. Remove the file, or repair it."
            ) from error
        for record in history:
            self.append(record)

    def append(self, record: EpochRecord) -> None:
        """Append the epoch unless it is there already.

        Raises:
            OSError: the file cannot be written.
            ValueError: a number is not finite, which JSON cannot say.
        """
        if record.epoch <= self._last_epoch:
            return
        line = json.dumps(asdict(record), allow_nan=False) + "\n"
        # Opened for each line: on NFS other nodes see what was written when the file is closed.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
        self._last_epoch = record.epoch


@dataclass
class TrialReport:
    """What is known of a trial so far; whatever was never reached stays None."""

    job_id: str
    hyperparameters: dict[str, Any]
    dataset: str
    seed: int
    num_classes: int | None = None
    train_images: int | None = None
    val_images: int | None = None
    test_images: int | None = None
    test_accuracy: float | None = None
    num_parameters: int | None = None
    device: str | None = None
    device_name: str | None = None
    precision: str | None = None
    training_time_s: float = 0.0
    images_per_s: float | None = None
    history: list[EpochRecord] = field(default_factory=list)

    def as_results(self, status: str, cause: str | None) -> dict[str, Any]:
        """Return the content of ``results.json``; ``cause`` says why ``status`` is not ``completed``."""
        values = asdict(self)
        del values["history"]
        best = max(self.history, key=lambda record: record.val_accuracy, default=None)
        return {
            "schema_version": _SCHEMA_VERSION,
            "status": status,
            "cause": cause,
            **values,
            "epochs_run": len(self.history),
            "val_accuracy": self.history[-1].val_accuracy if self.history else None,
            "best_val_accuracy": best.val_accuracy if best else None,
            "best_epoch": best.epoch if best else None,
            "val_auc": mean_under_curve([record.val_accuracy for record in self.history]),
            "versions": collect_versions(),
        }


def mean_under_curve(values: Sequence[float]) -> float | None:
    """Return the area under ``values`` by the trapezoid rule over the span; one value is its own mean."""
    if len(values) < 2:
        return values[0] if values else None
    return (math.fsum(values) - (values[0] + values[-1]) / 2) / (len(values) - 1)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace ``path`` atomically by ``content`` as indented JSON.

    Raises:
        OSError: the file cannot be written.
        ValueError: a number is not finite.
    """
    encoded = (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
    with replace_atomically(path) as stream:
        stream.write(encoded)


def collect_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that decide a trial's numbers."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
