"""Checkpoints: written atomically, read without executing what they hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from trainer.errors import InputError
from trainer.layout import replace_atomically

_SCHEMA_VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Replace ``path`` by ``content``, which holds tensors, numbers, strings, lists and dictionaries only.

    Raises:
        OSError: the file cannot be written; the one before it is kept.
    """
    with replace_atomically(path) as stream:
        torch.save({"schema_version": _SCHEMA_VERSION, **content}, stream)


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Return what ``save_checkpoint`` wrote, tensors on ``device``.

    Raises:
        InputError: the file cannot be read, is damaged, or is of another version of the trainer.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable checkpoint ({reason}). Remove it to start afresh.") from error
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != _SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version is {found}, this trainer reads {_SCHEMA_VERSION}. Remove it to start afresh."
        )
    return dict(content)


def check_same_trial(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Make sure that a checkpoint's settings are those of the trial that wants to go on from it.

    Raises:
        InputError: they differ; every difference is named.
    """
    problems = [
        f"--resume: {path} was made with --{name} {found.get(name)}, not {value}."
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if problems:
        raise InputError(*problems, "Pass the same arguments, or name another --output_dir.")
