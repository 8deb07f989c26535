"""Training curves for TensorBoard."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from trainer.records import EpochRecord

_log = logging.getLogger(__name__)


class Curves:
    """Writes each epoch as scalars, against the epoch; writes nothing where TensorBoard is not installed."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        """Open ``folder``; points at ``first_epoch`` and later, from an earlier attempt, are discarded."""
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            _log.warning("tensorboard is not installed: no curves are written to %s", folder)
            return
        self._writer = SummaryWriter(log_dir=str(folder), purge_step=first_epoch)

    def add(self, record: EpochRecord) -> None:
        """Add one epoch and flush it."""
        if self._writer is None:
            return
        scalars = {
            "loss/train": record.train_loss,
            "loss/validation": record.val_loss,
            "accuracy/train": record.train_accuracy,
            "accuracy/validation": record.val_accuracy,
            "learning_rate": record.learning_rate,
            "images_per_s": record.images_per_s,
            "epoch_time_s": record.epoch_time_s,
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
