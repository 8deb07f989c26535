from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.errors import InputError
from trainer.records import EpochRecord, MetricsFile, TrialReport, mean_under_curve, write_json

RECORD = EpochRecord(
    job_id="t1",
    epoch=1,
    num_epochs=3,
    step=10,
    time_s=1.0,
    epoch_time_s=1.0,
    train_loss=2.0,
    train_accuracy=0.25,
    val_loss=2.5,
    val_accuracy=0.2,
    learning_rate=0.1,
    images_per_s=100.0,
    at=1e9,
)
HISTORY = [replace(RECORD, epoch=epoch, val_accuracy=accuracy) for epoch, accuracy in ((1, 0.2), (2, 0.6), (3, 0.4))]
# The contract of docs/run-directory.md.
LINE_FIELDS = (
    "job_id epoch num_epochs step time_s epoch_time_s train_loss train_accuracy val_loss val_accuracy learning_rate "
    "images_per_s at"
)
RESULT_FIELDS = (
    "schema_version job_id status hyperparameters dataset num_classes train_images val_images test_images epochs_run "
    "val_accuracy best_val_accuracy best_epoch val_auc test_accuracy training_time_s images_per_s num_parameters "
    "device precision seed versions"
)


def epochs_in(path: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


def test_metrics_file_append_writes_the_contract_fields(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).append(RECORD)
    assert " ".join(json.loads(path.read_text())) == LINE_FIELDS
    assert path.read_text().endswith("}\n")
    assert path.stat().st_mode & 0o777 == 0o600


def test_metrics_file_append_nonfinite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        MetricsFile(tmp_path / "metrics.jsonl").append(replace(RECORD, val_loss=math.nan))


def test_metrics_file_reconcile_missing_lines_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).append(HISTORY[0])
    metrics = MetricsFile(path)
    metrics.reconcile(HISTORY[:2])
    metrics.append(HISTORY[2])
    assert epochs_in(path) == [1, 2, 3]


def test_metrics_file_reconcile_older_checkpoint_writes_no_epoch_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for record in HISTORY:
        MetricsFile(path).append(record)
    before = path.read_bytes()
    metrics = MetricsFile(path)
    metrics.reconcile(HISTORY[:1])
    for record in HISTORY[1:]:
        metrics.append(record)
    assert path.read_bytes() == before


def test_metrics_file_reconcile_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path).append(HISTORY[0])
    with path.open("a") as stream:
        stream.write('{"job_id": "t1", "epo')
    metrics = MetricsFile(path)
    metrics.reconcile(HISTORY[:1])
    metrics.append(HISTORY[1])
    assert epochs_in(path) == [1, 2]


@pytest.mark.parametrize("line", ["garbage", "[1]", '{"step": 1}'])
def test_metrics_file_reconcile_foreign_line_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(InputError, match="no epoch's record"):
        MetricsFile(path).reconcile([])


@pytest.mark.parametrize(("values", "expected"), [([], None), ([0.5], 0.5), ([0.2, 0.6], 0.4), ([0.0, 1.0, 0.0], 0.5)])
def test_mean_under_curve_follows_the_trapezoid_rule(values: list[float], expected: float | None) -> None:
    assert mean_under_curve(values) == pytest.approx(expected)


def test_trial_report_completed_has_the_contract_fields() -> None:
    report = TrialReport("t1", {"learning_rate": 0.1}, "digits", 0, history=HISTORY)
    results = report.as_results("completed", None)
    assert set(RESULT_FIELDS.split()) <= set(results)
    assert (results["epochs_run"], results["best_epoch"]) == (3, 2)
    assert (results["val_accuracy"], results["best_val_accuracy"]) == (0.4, 0.6)
    assert results["val_auc"] == pytest.approx((0.4 + 0.5) / 2)
    assert results["test_accuracy"] is None


def test_trial_report_without_epochs_has_nulls() -> None:
    results = TrialReport("t1", {}, "digits", 0).as_results("failed", "why")
    assert (results["status"], results["cause"], results["epochs_run"]) == ("failed", "why", 0)
    assert results["val_accuracy"] is results["best_epoch"] is results["val_auc"] is None


def test_write_json_nonfinite_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": math.inf})
    assert json.loads(path.read_text()) == {"a": 1}
