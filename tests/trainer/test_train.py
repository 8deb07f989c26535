from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.train import main

REPOSITORY = Path(__file__).resolve().parents[2]


def test_train_copied_alone_runs_by_path_from_anywhere(tmp_path: Path) -> None:
    package = tmp_path / "it's a node" / "trainer"
    shutil.copytree(REPOSITORY / "trainer", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "elsewhere").mkdir()
    flags = ["--model_type", "customcnn", "--learning_rate", "0.001", "--batch_size", "128", "--num_epochs", "1"]
    argv = [sys.executable, str(package / "train.py"), *flags, "--dataset", "digits", "--hidden_size", "16"]
    finished = subprocess.run(
        [*argv, "--output_dir", "trial", "--job_id", "job_1"],
        cwd=tmp_path / "elsewhere",
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
        umask=0o000,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("epoch 1/1")
    assert "Warning" not in finished.stderr
    trial = tmp_path / "elsewhere" / "trial"
    results = json.loads((trial / "results.json").read_text())
    assert (results["status"], results["job_id"]) == ("completed", "job_1")
    entries = [trial, *trial.rglob("*")]
    assert {entry.stat().st_mode & 0o777 for entry in entries if entry.is_dir()} == {0o700}
    assert {entry.stat().st_mode & 0o777 for entry in entries if entry.is_file()} == {0o600}
    files = {str(entry.relative_to(trial)) for entry in entries if entry.is_file() and "events" not in entry.name}
    assert files == {
        "metrics.jsonl",
        "results.json",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "output/config.json",
        "logs/train.log",
    }


def test_train_bad_arguments_need_no_torch(tmp_path: Path) -> None:
    blocker = tmp_path / "torch.py"
    blocker.write_text("raise SystemExit('torch was imported')")
    finished = subprocess.run(
        [sys.executable, str(REPOSITORY / "trainer" / "train.py"), "--seed", "x", "--data_dir", str(tmp_path)],
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert [line.split()[1] for line in finished.stderr.splitlines() if line.startswith("train.py:")] == [
        "--seed",
        "--output_dir:",
        "--job_id:",
        "CIFAR100",
    ]


def test_main_output_cannot_be_created_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    argv = ["--dataset", "digits", "--job_id", "1", "--output_dir", str(tmp_path / "file" / "trial")]
    assert main(argv) == 2
    assert "cannot be created" in capsys.readouterr().err


def test_main_internal_error_is_recorded_and_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("trainer.trial.load_source", fail)
    argv = ["--dataset", "digits", "--job_id", "1", "--output_dir", str(tmp_path / "trial")]
    with pytest.raises(ZeroDivisionError):
        main(argv)
    results = json.loads((tmp_path / "trial" / "results.json").read_text())
    assert results["status"] == "failed"
    assert "traceback" in results["cause"]


@pytest.mark.parametrize("module", ["orchestrator", "services", "monitoring", "client", "agent"])
def test_trainer_imports_nothing_of_the_project(module: str) -> None:
    for path in (REPOSITORY / "trainer").glob("*.py"):
        text = path.read_text()
        assert f"import {module}" not in text
        assert f"from {module}" not in text
