"""Fixtures that several test modules of the trainer share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from trainer.arguments import parse_settings
from trainer.pictures import Pictures
from trainer.settings import Settings
from trainer.train import main

MakeSettings = Callable[..., Settings]


@dataclass(frozen=True)
class FinishedTrial:
    """What a trial left in ``directory``."""

    exit_code: int
    directory: Path

    @property
    def results(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.directory / "results.json").read_text())
        return content

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    @property
    def curve(self) -> list[tuple[float, ...]]:
        """Everything in the metrics that does not depend on the clock."""
        names = ("epoch", "step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
        return [tuple(line[name] for name in names) for line in self.metrics]


RunTrial = Callable[..., FinishedTrial]


@pytest.fixture(autouse=True)
def _process_state_restored() -> Iterator[None]:
    import torch

    umask = os.umask(0o022)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small batches, and threads that wait for one another on a busy machine
    yield
    os.umask(umask)
    torch.set_num_threads(threads)


@pytest.fixture
def make_settings(tmp_path: Path) -> MakeSettings:
    """Settings of a small digits trial; keyword arguments are flags, True stands for a switch."""

    def make(**flags: object) -> Settings:
        return parse_settings(_argv(tmp_path / "trial", flags))

    return make


@pytest.fixture
def run_trial(tmp_path: Path) -> RunTrial:
    """Runs train.py's main in this process; ``name`` is the trial's directory, keyword arguments are flags."""

    def run(name: str = "trial", **flags: object) -> FinishedTrial:
        directory = tmp_path / name
        return FinishedTrial(main(_argv(directory, flags)), directory)

    return run


@pytest.fixture
def random_pictures() -> Callable[..., Pictures]:
    """Pictures of uniform noise with labels 0..num_classes-1 in turn."""

    def make(count: int, size: int = 8, num_classes: int = 4, seed: int = 0) -> Pictures:
        images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return Pictures(images, np.arange(count, dtype=np.int64) % num_classes)

    return make


def _argv(output_dir: Path, flags: dict[str, object]) -> list[str]:
    chosen: dict[str, object] = {
        "model_type": "customcnn",
        "dataset": "digits",
        "num_epochs": 2,
        "device": "cpu",
        "threads": 1,
        "output_dir": output_dir,
        "job_id": "t1",
    }
    chosen |= flags
    if chosen["model_type"] == "customcnn":
        chosen = {"hidden_size": 16, "num_layers": 2, **chosen}
    argv = []
    for name, value in chosen.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return argv
