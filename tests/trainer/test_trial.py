from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.checkpoint import load_checkpoint
from trainer.synthetic import SyntheticSize, write_synthetic

RunTrial = Callable[..., Any]


def test_trial_digits_learns_in_two_epochs(run_trial: RunTrial, capsys: pytest.CaptureFixture[str]) -> None:
    trial = run_trial(hidden_size=64, num_layers=3, batch_size=32, learning_rate=0.005, evaluate_test=True)
    results = trial.results
    assert trial.exit_code == 0
    assert results["status"] == "completed"
    assert results["val_accuracy"] > 0.9
    assert results["test_accuracy"] > 0.9
    assert (results["train_images"], results["val_images"], results["test_images"]) == (1295, 143, 359)
    assert (results["num_classes"], results["epochs_run"], results["device"]) == (10, 2, "cpu")
    assert results["hyperparameters"]["image_size"] == 16
    assert [line["epoch"] for line in trial.metrics] == [1, 2]
    assert trial.metrics[-1]["val_accuracy"] == results["val_accuracy"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert "test accuracy" in lines[2]


def test_trial_best_checkpoint_holds_the_model(run_trial: RunTrial) -> None:
    trial = run_trial()
    best = load_checkpoint(trial.directory / "checkpoints" / "best.pt", torch.device("cpu"))
    assert best["epoch"] == trial.results["best_epoch"]
    assert best["val_accuracy"] == trial.results["best_val_accuracy"]
    assert best["classes"] == list("0123456789")
    assert best["hyperparameters"] == trial.results["hyperparameters"]
    assert set(best["model"]) >= {"0.weight"}


def test_trial_writes_config_log_and_curves(run_trial: RunTrial) -> None:
    trial = run_trial(seed=5)
    config = json.loads((trial.directory / "output" / "config.json").read_text())
    assert (config["seed"], config["job_id"], config["hidden_size"]) == (5, "t1", 16)
    assert "customcnn" in (trial.directory / "logs" / "train.log").read_text()
    [events] = (trial.directory / "tensorboard").iterdir()
    assert b"accuracy/validation" in events.read_bytes()


def test_trial_interrupted_by_signal_resumes_to_the_same_curve(run_trial: RunTrial, tmp_path: Path) -> None:
    flags = {"num_epochs": 6, "batch_size": 64, "augment": True}
    whole = run_trial("whole", **flags)

    def terminate_after_first_epoch() -> None:
        metrics = tmp_path / "broken" / "metrics.jsonl"
        while not metrics.exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=terminate_after_first_epoch)
    watcher.start()
    broken = run_trial("broken", **flags)
    watcher.join()
    assert broken.exit_code == 143
    assert broken.results["status"] == "interrupted"
    assert "SIGTERM" in broken.results["cause"]
    assert 1 <= broken.results["epochs_run"] < 6

    resumed = run_trial("broken", resume=True, **flags)
    assert resumed.exit_code == 0
    assert resumed.curve == whole.curve
    assert resumed.results["val_auc"] == whole.results["val_auc"]
    assert resumed.results["training_time_s"] >= broken.results["training_time_s"]


def test_trial_resumed_from_older_checkpoint_repeats_no_line(run_trial: RunTrial) -> None:
    flags = {"num_epochs": 3, "checkpoint_every": 2}
    trial = run_trial(**flags)
    lines, checkpoint = trial.metrics, trial.directory / "checkpoints" / "last.pt"
    checkpoint.unlink()
    again = run_trial(resume=True, **flags)
    assert again.exit_code == 0
    assert again.metrics == lines
    assert checkpoint.exists()


def test_trial_completed_may_be_resumed_for_its_test_accuracy(run_trial: RunTrial) -> None:
    first = run_trial()
    assert first.results["test_accuracy"] is None
    lines = first.metrics
    again = run_trial(resume=True, evaluate_test=True)
    assert again.metrics == lines
    assert again.results["epochs_run"] == 2
    assert 0 < again.results["test_accuracy"] <= 1


def test_trial_resumed_with_other_settings_is_refused(run_trial: RunTrial) -> None:
    run_trial()
    other = run_trial(resume=True, seed=1, learning_rate=0.5)
    assert other.exit_code == 2
    assert "--seed 0, not 1" in other.results["cause"]
    assert "--learning_rate 0.001, not 0.5" in other.results["cause"]


def test_trial_other_settings_without_checkpoint_are_refused(run_trial: RunTrial) -> None:
    trial = run_trial()
    (trial.directory / "checkpoints" / "last.pt").unlink()
    other = run_trial(resume=True, batch_size=64)
    assert other.exit_code == 2
    assert "--batch_size 128, not 64" in other.results["cause"]
    assert other.metrics == trial.metrics


def test_trial_resume_without_checkpoint_starts_afresh(run_trial: RunTrial) -> None:
    assert run_trial(resume=True).results["epochs_run"] == 2


def test_trial_huge_learning_rate_fails_with_its_cause(run_trial: RunTrial, capsys: pytest.CaptureFixture[str]) -> None:
    trial = run_trial(optimizer="sgd", learning_rate=1e9, precision="fp32", num_epochs=20)
    assert trial.exit_code == 1
    assert trial.results["status"] == "failed"
    assert "lower the learning rate" in trial.results["cause"]
    assert "Traceback" not in capsys.readouterr().err


def test_trial_batch_larger_than_the_training_set_is_refused(run_trial: RunTrial) -> None:
    trial = run_trial(batch_size=1296)
    assert trial.exit_code == 2
    assert trial.results["status"] == "failed"
    assert "Allowed: 2 to 1295." in trial.results["cause"]


def test_trial_dead_pushgateway_fails_nothing(run_trial: RunTrial) -> None:
    trial = run_trial(num_epochs=1, pushgateway="http://127.0.0.1:9")
    assert trial.exit_code == 0
    assert "could not be pushed" in (trial.directory / "logs" / "train.log").read_text()


def test_trial_full_disk_fails_with_its_cause(run_trial: RunTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.trial.save_checkpoint", fail)
    trial = run_trial()
    assert trial.exit_code == 1
    assert "No space left on device" in trial.results["cause"]


def test_trial_synthetic_test_pictures_are_read_for_the_flag_only(run_trial: RunTrial, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    folder = write_synthetic(data_dir, SyntheticSize(num_classes=5, train_per_class=10, test_per_class=2))
    (folder / "test").unlink()
    flags = {"dataset": "synthetic", "data_dir": data_dir, "batch_size": 8, "num_epochs": 1}
    without = run_trial("without", **flags)
    assert without.exit_code == 0
    assert without.results["test_accuracy"] is without.results["test_images"] is None
    assert run_trial("with", evaluate_test=True, **flags).exit_code == 2


def test_trial_folder_test_pictures_are_read_for_the_flag_only(run_trial: RunTrial, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in "ab":
            (data_dir / split / name).mkdir(parents=True)
            for index in range(6):
                noise = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(noise).save(data_dir / split / name / f"{index}.png")
    (data_dir / "test" / "a" / "0.png").write_bytes(b"damaged")
    flags = {"dataset": "folder", "data_dir": data_dir, "batch_size": 4, "num_epochs": 1}
    assert run_trial("without", **flags).exit_code == 0
    measured = run_trial("with", evaluate_test=True, **flags)
    assert measured.exit_code == 2
    assert str(data_dir / "test" / "a" / "0.png") in measured.results["cause"]
