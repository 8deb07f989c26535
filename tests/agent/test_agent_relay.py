from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from agent.relay import LineTail, TrialRelay, epoch_samples, search_samples
from tests.agent.bench import RecordingMetrics

LINE = {
    "job_id": "t", "epoch": 3, "train_loss": 0.5, "train_accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.7,
    "learning_rate": 0.01, "images_per_s": 123.0,
}  # fmt: skip


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_line_tail_torn_last_line_is_read_once_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = LineTail(path)
    assert list(tail.read_new()) == []
    append(path, '{"epoch": 1}\n{"epo')
    assert list(tail.read_new()) == [{"epoch": 1}]
    assert list(tail.read_new()) == []
    append(path, 'ch": 2}\n')
    assert list(tail.read_new()) == [{"epoch": 2}]


def test_line_tail_broken_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'nonsense\n[1]\n\xff\n{"epoch": 2}\n')
    assert list(LineTail(path).read_new()) == [{"epoch": 2}]


@pytest.mark.parametrize("rubbish", ["[" * 100_000, '{"a":' * 100_000, '{"epoch": 1' + "0" * 5000 + "}"])
def test_line_tail_line_that_is_too_deep_or_too_long_is_left_out(rubbish: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(rubbish + '\n{"epoch": 2}\n')
    assert list(LineTail(path).read_new()) == [{"epoch": 2}]


def test_epoch_samples_of_a_number_beyond_floats_leave_it_out() -> None:
    assert [sample.name for sample in epoch_samples({"epoch": 2, "train_loss": 10**400})] == ["training_epoch"]


def test_epoch_samples_name_every_figure_and_leave_out_what_is_not_finite() -> None:
    assert {sample.name: sample.value for sample in epoch_samples(LINE)} == {
        "training_epoch": 3,
        "training_loss": 0.5,
        "training_accuracy": 0.8,
        "validation_loss": 0.6,
        "validation_accuracy": 0.7,
        "training_learning_rate": 0.01,
        "training_images_per_second": 123.0,
    }
    assert [sample.name for sample in epoch_samples({"epoch": 1, "train_loss": float("nan"), "val_loss": None})] == [
        "training_epoch"
    ]


def test_trial_relay_pushes_only_news_and_not_too_often(tmp_path: Path) -> None:
    path, metrics = tmp_path / "metrics.jsonl", RecordingMetrics()
    relay = TrialRelay(metrics, path, "run", "trial", 0.1)
    relay.look()
    assert metrics.pushes == []
    append(path, json.dumps(LINE) + "\n")
    relay.look()
    relay.look()
    append(path, json.dumps({**LINE, "epoch": 4}) + "\n")
    relay.look()
    assert [samples["training_epoch"] for _, samples in metrics.pushes] == [3]
    time.sleep(0.11)
    relay.look()
    relay.look()
    assert [samples["training_epoch"] for _, samples in metrics.pushes] == [3, 4]
    assert metrics.pushes[0][0] == {"job": "orch_training", "run": "run", "trial": "trial"}
    append(path, json.dumps({**LINE, "epoch": 5}) + "\n")
    relay.look(is_over=True)
    assert metrics.pushes[-1][1]["training_epoch"] == 5


def test_search_samples_without_a_best_have_none() -> None:
    assert [sample.name for sample in search_samples(2, 2, None)] == ["hpo_trials_finished", "hpo_trials_failed"]
