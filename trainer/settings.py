"""The settings of a trial, checked and frozen, and the defaults that depend on one another."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.options import MINIMUM_IMAGE_SIZE

_LEARNING_RATE = {"adamw": 0.001, "sgd": 0.1}
_WEIGHT_DECAY = {"adamw": 0.01, "sgd": 5e-4}
_CUSTOMCNN = {"hidden_size": 128, "num_layers": 4}

_HYPERPARAMETERS = (
    *("model_type", "learning_rate", "batch_size", "num_epochs", "weight_decay", "dropout_rate"),
    *("hidden_size", "num_layers", "momentum", "optimizer", "scheduler", "label_smoothing"),
    *("augment", "image_size", "val_fraction"),
)
# What a resumed trial must share with the one it goes on from, or its curve would mean nothing.
_DECISIVE = (*_HYPERPARAMETERS, "dataset", "seed", "precision")


@dataclass(frozen=True)
class Settings:
    """Everything that decides a trial; ``None``: the model has no such thing, or the data decides."""

    model_type: str
    learning_rate: float
    batch_size: int
    num_epochs: int
    weight_decay: float
    dropout_rate: float
    hidden_size: int | None
    num_layers: int | None
    momentum: float | None
    optimizer: str
    scheduler: str
    label_smoothing: float
    augment: bool
    dataset: str
    data_dir: Path
    download: bool
    image_size: int | None
    val_fraction: float
    seed: int
    device: str
    precision: str
    threads: int | None
    evaluate_test: bool
    checkpoint_every: int
    resume: bool
    pushgateway: str | None
    output_dir: Path
    job_id: str

    def as_json(self) -> dict[str, Any]:
        """Return all settings in types that JSON has."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def decisive(self) -> dict[str, Any]:
        """Return the settings that decide the numbers a trial produces."""
        return {name: getattr(self, name) for name in _DECISIVE}

    def hyperparameters(self) -> dict[str, Any]:
        """Return the settings that a search may vary, as ``results.json`` has them."""
        return {name: getattr(self, name) for name in _HYPERPARAMETERS}


def resolve_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with the defaults that depend on other settings filled in."""
    resolved = dict(values)
    optimizer, model_type = values["optimizer"], values["model_type"]
    defaults: dict[str, Any] = {
        "learning_rate": _LEARNING_RATE[optimizer],
        "weight_decay": _WEIGHT_DECAY[optimizer],
        "momentum": 0.9 if optimizer == "sgd" else None,
        "augment": values["dataset"] != "digits",
        **(_CUSTOMCNN if model_type == "customcnn" else {}),
    }
    if values["dataset"] == "digits":
        defaults["image_size"] = max(16, MINIMUM_IMAGE_SIZE[model_type])
    for name, default in defaults.items():
        if resolved[name] is None:
            resolved[name] = default
    return resolved
