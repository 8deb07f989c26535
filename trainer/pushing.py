"""Each epoch's metrics to a Pushgateway, from a thread of its own: a dead gateway costs nothing."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import asdict
from http.client import HTTPException

from trainer.errors import InputError
from trainer.records import EpochRecord

_TIMEOUT_S = 3.0
_HELP = {
    "epoch": "Epochs completed",
    "num_epochs": "Epochs planned",
    "step": "Optimizer steps taken",
    "time_s": "Seconds since training started",
    "epoch_time_s": "Seconds that the last epoch took, validation included",
    "train_loss": "Training loss of the last epoch",
    "train_accuracy": "Training accuracy of the last epoch, 0 to 1",
    "val_loss": "Validation loss of the last epoch",
    "val_accuracy": "Validation accuracy of the last epoch, 0 to 1",
    "learning_rate": "Learning rate of the last step",
    "images_per_s": "Training pictures per second in the last epoch",
}

_log = logging.getLogger(__name__)


class MetricsPusher:
    """Pushes the newest epoch as gauges ``orch_training_*`` in the group job=orch_training, trial=<job id>.

    An epoch that was not pushed when the next one ends is left out. The group is not deleted at the end:
    whoever scrapes the gateway decides when it was seen.
    """

    def __init__(self, url: str, job_id: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Start the thread.

        Raises:
            InputError: prometheus-client is not installed.
        """
        try:
            import prometheus_client  # noqa: F401 - here, so that its absence is known before the training
        except ModuleNotFoundError as error:
            raise InputError(
                "--pushgateway needs the package prometheus-client, which is not installed here."
            ) from error
        self._url = url
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._newest: queue.Queue[EpochRecord | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="pushgateway", daemon=True)
        self._thread.start()

    def push(self, record: EpochRecord) -> None:
        """Hand the epoch over and return at once."""
        self._newest.put(record)

    def close(self) -> None:
        """Let the last push end, for as long as two time-outs at most."""
        self._newest.put(None)
        self._thread.join(2 * self._timeout_s)

    def _work(self) -> None:
        is_open = True
        while is_open:
            waiting = [self._newest.get()]
            while not self._newest.empty():
                waiting.append(self._newest.get())
            is_open = None not in waiting
            records = [record for record in waiting if record is not None]
            if records:
                self._push_now(records[-1])

    def _push_now(self, record: EpochRecord) -> None:
        from prometheus_client import CollectorRegistry, Gauge, push_to_gateway

        registry = CollectorRegistry()
        values = asdict(record)
        for name, text in _HELP.items():
            metric = f"orch_training_{name.removesuffix('_s')}_seconds" if name.endswith("time_s") else name
            metric = metric if metric.startswith("orch_") else f"orch_training_{name}"
            Gauge(metric, text, registry=registry).set(values[name])
        try:
            push_to_gateway(
                self._url,
                job="orch_training",
                registry=registry,
                grouping_key={"trial": self._job_id},
                timeout=self._timeout_s,
            )
        except (OSError, HTTPException) as error:
            _log.warning("epoch %d could not be pushed to %s: %s", record.epoch, self._url, error)
