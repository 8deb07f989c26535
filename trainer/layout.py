"""Every path of a trial's directory, and how files in it are replaced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class TrialLayout:
    """The files of one trial under ``root``, as docs/run-directory.md names them."""

    root: Path

    @property
    def metrics(self) -> Path:
        """One JSON line per epoch, append-only."""
        return self.root / "metrics.jsonl"

    @property
    def results(self) -> Path:
        """The outcome, written once at the end."""
        return self.root / "results.json"

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.root / "output" / "config.json"

    @property
    def last_checkpoint(self) -> Path:
        """What ``--resume`` goes on from."""
        return self.root / "checkpoints" / "last.pt"

    @property
    def best_checkpoint(self) -> Path:
        """The weights of the epoch with the best validation accuracy."""
        return self.root / "checkpoints" / "best.pt"

    @property
    def tensorboard(self) -> Path:
        """The folder of TensorBoard's event files."""
        return self.root / "tensorboard"

    @property
    def log(self) -> Path:
        """The trainer's own log."""
        return self.root / "logs" / "train.log"

    def create(self) -> None:
        """Create the directories that are missing, 0700.

        Raises:
            OSError: a directory cannot be created.
        """
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in ("output", "logs", "checkpoints", "tensorboard"):
            (self.root / folder).mkdir(mode=0o700, exist_ok=True)


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Give a file that takes ``path``'s place, 0600 and synced to disk, when the block ends without an error.

    Raises:
        OSError: the file cannot be written; ``path`` is then as it was.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
