"""One trial from settings to weights: data, model, loop, and the records it leaves on the way."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import ExitStack

import torch

from trainer.augment import DevicePictures
from trainer.checkpoint import check_same_trial, load_checkpoint, save_checkpoint
from trainer.curves import Curves
from trainer.datasets import load_source
from trainer.devices import choose_compute
from trainer.errors import InputError, TrainingInterruptedError
from trainer.layout import TrialLayout
from trainer.loop import TrainingLoop
from trainer.models import build_model, count_parameters
from trainer.pictures import Pictures, PictureSource, split_validation
from trainer.pushing import MetricsPusher
from trainer.records import EpochRecord, MetricsFile, TrialReport, write_json
from trainer.settings import Settings
from trainer.stopping import StopRequest

_log = logging.getLogger(__name__)


class Trial:
    """Runs one trial and keeps ``report`` true while it does."""

    def __init__(self, settings: Settings, layout: TrialLayout, report: TrialReport, stop: StopRequest) -> None:
        self._settings = settings
        self._layout = layout
        self._report = report
        self._stop = stop
        self._metrics = MetricsFile(layout.metrics)

    def run(self) -> None:
        """Train, and measure the test set if that was asked for.

        Raises:
            InputError: data, device or checkpoint do not allow the trial.
            TrainingError: the training went wrong.
            TrainingInterruptedError: a signal asked for the end; last.pt holds the state.
            OSError: a record cannot be written.
        """
        settings = self._settings
        self._check_earlier_attempt()
        write_json(self._layout.config, settings.as_json())
        compute = choose_compute(settings)
        source = load_source(settings)
        train, val = split_validation(source.train, settings.val_fraction, settings.seed)
        self._describe(source, train, val)
        report = self._report
        report.device, report.device_name = compute.device.type, compute.device_name
        report.precision = compute.precision
        self._stop.check()

        torch.manual_seed(settings.seed)
        model = build_model(settings, len(source.classes))
        report.num_parameters = count_parameters(model)
        on_device = [DevicePictures.from_pictures(pictures, compute.device) for pictures in (train, val)]
        loop = TrainingLoop(settings, compute, model, on_device[0], on_device[1], self._stop)
        self._resume(loop, compute.device)
        _log.info(
            "%s, %d parameters, on %s (%s), %d training and %d validation pictures",
            *(settings.model_type, report.num_parameters, report.device_name, report.precision),
            *(len(train), len(val)),
        )
        self._train(loop, source)
        if settings.evaluate_test:
            self._evaluate_test(loop, source, compute.device)

    def _check_earlier_attempt(self) -> None:
        """Refuse to add to the metrics of other settings, which matters where last.pt (checked on its own) is lost."""
        config = self._layout.config
        if self._layout.metrics.exists() and config.exists():
            try:
                found = dict(json.loads(config.read_bytes()))
            except (ValueError, TypeError) as error:
                raise InputError(f"{config}: not readable as JSON. Name another --output_dir.") from error
            check_same_trial(config, found, self._settings.decisive())

    def _describe(self, source: PictureSource, train: Pictures, val: Pictures) -> None:
        if self._settings.batch_size > len(train):
            raise InputError(
                f"--batch_size {self._settings.batch_size}: the training set has {len(train)} pictures. "
                f"Allowed: 2 to {len(train)}."
            )
        self._report.num_classes = len(source.classes)
        self._report.train_images, self._report.val_images = len(train), len(val)
        self._report.hyperparameters["image_size"] = train.images.shape[1]

    def _resume(self, loop: TrainingLoop, device: torch.device) -> None:
        path = self._layout.last_checkpoint
        if self._settings.resume and path.exists():
            state = load_checkpoint(path, device)
            check_same_trial(path, state["settings"], self._settings.decisive())
            loop.load_state_dict(state["loop"])
            _log.info("resumed after epoch %d, batch %d", loop.progress.epoch, loop.progress.batch)
        self._metrics.reconcile(loop.progress.history)
        self._update_report(loop)

    def _train(self, loop: TrainingLoop, source: PictureSource) -> None:
        settings = self._settings
        with ExitStack() as stack:
            curves = Curves(self._layout.tensorboard, loop.progress.epoch + 1)
            stack.callback(curves.close)
            pusher = MetricsPusher(settings.pushgateway, settings.job_id) if settings.pushgateway else None
            if pusher:
                stack.callback(pusher.close)

            def on_epoch(record: EpochRecord) -> None:
                self._update_report(loop)
                self._save_if_best(loop, source, record)
                if record.epoch % settings.checkpoint_every == 0 or record.epoch == settings.num_epochs:
                    self._save_last(loop)
                self._metrics.append(record)  # after last.pt, which restores the line if we die in between
                curves.add(record)
                if pusher:
                    pusher.push(record)
                sys.stdout.write(record.as_line() + "\n")
                sys.stdout.flush()

            try:
                loop.run(on_epoch)
            except TrainingInterruptedError:
                self._update_report(loop)
                self._save_last(loop)
                raise

    def _update_report(self, loop: TrainingLoop) -> None:
        progress, report = loop.progress, self._report
        report.history = list(progress.history)
        report.training_time_s = progress.time_s
        if progress.history:
            batches = progress.history[-1].step
            report.images_per_s = batches * self._settings.batch_size / progress.training_s

    def _save_last(self, loop: TrainingLoop) -> None:
        save_checkpoint(
            self._layout.last_checkpoint, {"settings": self._settings.decisive(), "loop": loop.state_dict()}
        )

    def _save_if_best(self, loop: TrainingLoop, source: PictureSource, record: EpochRecord) -> None:
        earlier = (other.val_accuracy for other in loop.progress.history[:-1])
        if record.val_accuracy <= max(earlier, default=-1.0):
            return
        content = {
            "model": loop.model.state_dict(),
            "hyperparameters": self._report.hyperparameters,
            "classes": list(source.classes),
            "mean": loop.normalizer.mean,
            "std": loop.normalizer.std,
            "epoch": record.epoch,
            "val_accuracy": record.val_accuracy,
        }
        save_checkpoint(self._layout.best_checkpoint, content)

    def _evaluate_test(self, loop: TrainingLoop, source: PictureSource, device: torch.device) -> None:
        best = load_checkpoint(self._layout.best_checkpoint, device)
        loop.model.load_state_dict(best["model"])
        test = source.load_test()
        _, accuracy = loop.evaluate(DevicePictures.from_pictures(test, device))
        self._report.test_images, self._report.test_accuracy = len(test), accuracy
        sys.stdout.write(f"test accuracy {accuracy:.4f} on {len(test)} pictures, weights of epoch {best['epoch']}\n")
