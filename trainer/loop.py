"""The training loop over pictures on the device, stoppable and resumable between any two batches."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trainer.augment import DevicePictures, Normalizer, crop_and_flip
from trainer.errors import TrainingError
from trainer.models import to_channels_last
from trainer.records import EpochRecord
from trainer.schedule import build_optimizer, learning_rate_at, set_learning_rate

if TYPE_CHECKING:
    from trainer.devices import Compute
    from trainer.settings import Settings
    from trainer.stopping import StopRequest

_FINITE_CHECK_STEPS = 50  # each check waits for the device
_EVALUATION_PIXELS = 500 * 32 * 32  # of a batch; bounds memory for larger pictures


@dataclass
class Progress:
    """How far a trial is: completed epochs, and the sums of the epoch under way; times in seconds."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    time_s: float = 0.0
    epoch_time_s: float = 0.0
    epoch_training_s: float = 0.0
    training_s: float = 0.0
    loss_sum: float = 0.0
    correct: int = 0
    history: list[EpochRecord] = field(default_factory=list)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Progress:
        """Return the progress that ``asdict`` made ``content`` from."""
        history = [EpochRecord(**record) for record in content["history"]]
        return cls(**{**content, "history": history})


class TrainingLoop:
    """Trains ``model`` on ``train`` and measures it on ``val`` after every epoch.

    Shuffling, augmentation and dropout depend on the seed, the epoch and the batch alone, so that a resumed
    trial gives the numbers of an uninterrupted one (exactly so where the device's kernels are deterministic,
    as on a CPU).
    """

    def __init__(
        self,
        settings: Settings,
        compute: Compute,
        model: nn.Module,
        train: DevicePictures,
        val: DevicePictures,
        stop: StopRequest,
    ) -> None:
        self.model = to_channels_last(model).to(compute.device)
        self.progress = Progress()
        self._settings = settings
        self._device = compute.device
        self._autocast_dtype = compute.autocast_dtype
        self._train = train
        self._val = val
        self._stop = stop
        self._normalizer = Normalizer.from_pictures(train)
        self._optimizer = build_optimizer(settings, self.model)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=compute.precision == "fp16")
        self._batches_per_epoch = len(train) // settings.batch_size  # the rest sits out: another one every epoch

    @property
    def normalizer(self) -> Normalizer:
        """How pictures must be scaled for the model."""
        return self._normalizer

    def run(self, on_epoch: Callable[[EpochRecord], None]) -> None:
        """Train the epochs that are missing, calling ``on_epoch`` after each, ``progress`` already advanced.

        Raises:
            TrainingError: the loss is not finite, or the device is out of memory.
            TrainingInterruptedError: a stop was requested; ``state_dict`` then goes on from the very batch.
        """
        try:
            while self.progress.epoch < self._settings.num_epochs:
                on_epoch(self._run_epoch())
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"out of memory on {self._device}: lower --batch_size {self._settings.batch_size}, or take "
                "a smaller "
                "--model_type."
            ) from error

    def evaluate(self, pictures: DevicePictures) -> tuple[float, float]:
        """Return (mean loss, accuracy 0..1) of the model on ``pictures``.

        Raises:
            TrainingInterruptedError: a stop was requested.
        """
        self.model.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        correct = torch.zeros((), dtype=torch.int64, device=self._device)
        batch_size = max(1, _EVALUATION_PIXELS // pictures.images[0, :, :, 0].numel())
        batches = [torch.split(part, batch_size) for part in (pictures.images, pictures.labels)]
        with torch.inference_mode():
            for images, labels in zip(*batches, strict=True):
                self._stop.check()
                logits = self._forward(images)
                loss_sum += cross_entropy(logits, labels, reduction="sum")
                correct += (logits.argmax(dim=1) == labels).sum()
        return float(loss_sum) / len(pictures), int(correct) / len(pictures)

    def state_dict(self) -> dict[str, Any]:
        """Return all that ``load_state_dict`` needs to go on from here, in types a checkpoint can hold."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "progress": asdict(self.progress),
            "cpu_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self._device.type == "cuda" else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.progress = Progress.from_json(state["progress"])
        torch.set_rng_state(state["cpu_rng"].cpu())
        if self._device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu())

    def _run_epoch(self) -> EpochRecord:
        progress, settings = self.progress, self._settings
        started = time.monotonic()
        earlier_s = progress.epoch_time_s
        try:
            self._train_batches()
            val_loss, val_accuracy = self.evaluate(self._val)
        finally:
            elapsed_s = time.monotonic() - started
            progress.epoch_time_s = earlier_s + elapsed_s
            progress.time_s += elapsed_s
        self._check_finite(val_loss, "the validation loss")
        images = self._batches_per_epoch * settings.batch_size
        record = EpochRecord(
            job_id=settings.job_id,
            epoch=progress.epoch + 1,
            num_epochs=settings.num_epochs,
            step=progress.step,
            time_s=progress.time_s,
            epoch_time_s=progress.epoch_time_s,
            train_loss=progress.loss_sum / self._batches_per_epoch,
            train_accuracy=progress.correct / images,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            images_per_s=images / progress.epoch_training_s,
            at=time.time(),
        )
        progress.history.append(record)
        progress.training_s += progress.epoch_training_s
        progress.epoch += 1
        progress.batch = progress.correct = 0
        progress.loss_sum = progress.epoch_time_s = progress.epoch_training_s = 0.0
        return record

    def _train_batches(self) -> None:
        """Train the batches of this epoch that are missing, keeping ``progress`` true whatever happens."""
        progress, batch_size = self.progress, self._settings.batch_size
        order = self._shuffle().to(self._device)
        if progress.batch == 0:
            torch.manual_seed(self._epoch_seed())
        self.model.train()
        loss_sum = torch.full((), progress.loss_sum, dtype=torch.float64, device=self._device)
        correct = torch.full((), progress.correct, dtype=torch.int64, device=self._device)
        started = time.monotonic()
        try:
            while progress.batch < self._batches_per_epoch:
                self._stop.check()
                index = order[progress.batch * batch_size : (progress.batch + 1) * batch_size]
                loss, hits = self._step(index)
                loss_sum += loss
                correct += hits
                progress.batch += 1
                progress.step += 1
                if progress.step % _FINITE_CHECK_STEPS == 0:
                    self._check_finite(float(loss_sum), "the training loss")
        finally:
            progress.loss_sum, progress.correct = float(loss_sum), int(correct)
            progress.epoch_training_s += time.monotonic() - started
        self._check_finite(progress.loss_sum, "the training loss")

    def _step(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one optimizer step; return its mean loss and its correct answers, still on the device."""
        settings = self._settings
        total_steps = settings.num_epochs * self._batches_per_epoch
        set_learning_rate(
            self._optimizer,
            learning_rate_at(settings.scheduler, settings.learning_rate, self.progress.step, total_steps),
        )
        images = crop_and_flip(self._train.images, index) if settings.augment else self._train.images[index]
        labels = self._train.labels[index]
        logits = self._forward(images)
        loss = cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return float32 logits for uint8 [B, H, W, 3] pictures."""
        inputs = self._normalizer.apply(images)
        with torch.autocast(self._device.type, dtype=self._autocast_dtype, enabled=self._autocast_dtype is not None):
            logits: torch.Tensor = self.model(inputs)
        return logits.float()

    def _shuffle(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self._epoch_seed())
        return torch.randperm(len(self._train), generator=generator)

    def _epoch_seed(self) -> int:
        return self._settings.seed * 1_000_003 + self.progress.epoch

    def _check_finite(self, loss: float, name: str) -> None:
        if not math.isfinite(loss):
            settings = self._settings
            raise TrainingError(
                f"{name} became {loss} in epoch {self.progress.epoch + 1} by step {self.progress.step} with "
                f"--learning_rate {settings.learning_rate:g} --optimizer {settings.optimizer}: lower the "
                "learning rate."
            )
