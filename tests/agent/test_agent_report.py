from __future__ import annotations

import csv
import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from agent.history import TrialView
from agent.report import describe_params, keep_best_checkpoint, link_curves, search_figures, write_tables
from agent.trials import TrialPlace
from orchestrator.recipe.hpo import Hpo
from orchestrator.rundir import RunDir


def place_of(root: Path) -> Any:
    return lambda number: TrialPlace(f"exp_iter_{number}", f"trial_{number:04}", root / f"job_exp_iter_{number}")


def trials() -> list[TrialView]:
    noted = {"source": "llm", "requests": 2, "rejects": ["a"], "latency_s": 1.5, "prompt_tokens": 10, "run_s": 3.0}
    return [
        TrialView(0, "COMPLETE", {"learning_rate": 0.1}, 0.5, {**noted, "figures": {"val_auc": 0.4}}),
        TrialView(
            1, "FAIL", {"learning_rate": 0.2, "num_layers": 3}, None, {"source": "tpe_fallback", "cause": 'a "b",\nc'}
        ),
        TrialView(2, "FAIL", {"learning_rate": 0.3}, None, {"source": "llm", "interrupted": True}),
    ]


def test_search_figures_count_what_counts(tmp_path: Path) -> None:
    figures = search_figures(Hpo(trials=2), trials(), place_of(tmp_path))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert (figures["finished"], figures["failed"]) == (2, 1)
    assert figures["by_source"] == {"llm": {"count": 1, "best": 0.5}, "tpe_fallback": {"count": 1, "best": None}}
    assert figures["best"]["number"] == 0
    assert figures["trials"][0]["duration_s"] == 3.0
    assert (figures["llm"]["requests"], figures["llm"]["rejected_answers"], figures["llm"]["latency_s"]) == (2, 1, 1.5)


def test_write_tables_have_one_row_a_trial_and_every_parameter(tmp_path: Path) -> None:
    figures = search_figures(Hpo(trials=2), trials(), place_of(tmp_path))
    write_tables(tmp_path, figures["trials"])
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert (rows[0]["learning_rate"], rows[0]["num_layers"], rows[1]["num_layers"]) == ("0.1", "", "3")
    assert rows[1]["cause"] == 'a "b",\nc'
    assert json.loads((tmp_path / "trials.json").read_text()) == figures["trials"]


def test_keep_best_checkpoint_is_copied_where_links_are_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(tmp_path)(0)
    assert "left no" in (keep_best_checkpoint(place, tmp_path) or "")
    place.make()
    place.best_checkpoint.write_bytes(b"weights")
    assert keep_best_checkpoint(place, tmp_path) is None
    assert (tmp_path / "best.pt").stat().st_ino == place.best_checkpoint.stat().st_ino

    def refuse(*_: Any) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    assert keep_best_checkpoint(place, tmp_path) is None
    assert (tmp_path / "best.pt").stat().st_ino != place.best_checkpoint.stat().st_ino
    assert (tmp_path / "best.pt").read_bytes() == b"weights"


def test_link_curves_are_followed_by_tensorboards_reader(tmp_path: Path) -> None:
    event_processing = importlib.import_module("tensorboard.backend.event_processing.event_multiplexer")
    writing = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    event = importlib.import_module("tensorboard.compat.proto.event_pb2").Event
    summary = importlib.import_module("tensorboard.compat.proto.summary_pb2").Summary
    run = RunDir(tmp_path / "run")
    run.make()
    place = place_of(run.trials)(0)
    place.make()
    writer = writing.EventFileWriter(str(place.tensorboard))
    writer.add_event(event(step=1, summary=summary(value=[summary.Value(tag="val", simple_value=0.5)])))
    writer.close()

    link_curves(run, [place, place_of(run.trials)(1)])
    link_curves(run, [place])

    assert [link.name for link in run.tensorboard.iterdir()] == ["exp_iter_0"]
    multiplexer = event_processing.EventMultiplexer().AddRunsFromDirectory(str(run.tensorboard)).Reload()
    assert list(multiplexer.Runs()) == ["exp_iter_0"]


def test_describe_params_is_short() -> None:
    assert describe_params({"learning_rate": 0.0123456, "batch_size": 64, "augment": True}) == (
        "learning_rate=0.0123 batch_size=64 augment=True"
    )
