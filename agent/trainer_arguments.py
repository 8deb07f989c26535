"""The trainer's command line, as far as a search may use it. A test compares this with the trainer's own ``--help``."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.recipe.hpo import Scalar

TRAINER_ARGUMENTS = frozenset(
    {
        "model_type", "learning_rate", "batch_size", "num_epochs", "weight_decay", "dropout_rate", "hidden_size",
        "num_layers", "momentum", "optimizer", "scheduler", "label_smoothing", "dataset", "data_dir", "image_size",
        "val_fraction", "seed", "device", "precision", "threads", "checkpoint_every", "pushgateway", "output_dir",
        "job_id", "download", "evaluate_test", "resume", "augment",
    }
)  # fmt: skip
"""Every argument of the trainer."""

SET_BY_THE_SEARCH = frozenset(
    {"dataset", "data_dir", "download", "output_dir", "job_id", "resume", "evaluate_test", "pushgateway"}
)
"""Arguments that neither space nor fixed may set."""

SWITCHES = {"augment": "no_augment", "download": None, "evaluate_test": None, "resume": None}
"""Arguments without a value, and the flag that switches each off (None: leaving it out does)."""


def command_line(values: Mapping[str, Scalar]) -> dict[str, str | bool]:
    """Return ``values`` as flags for templates/services/trial.j2; numbers keep every digit."""
    flags: dict[str, str | bool] = {}
    for name, value in values.items():
        off = SWITCHES.get(name)
        if name in SWITCHES:
            if value:
                flags[name] = True
            elif off is not None:
                flags[off] = True
        else:
            flags[name] = repr(value) if isinstance(value, float) else str(value)
    return flags
