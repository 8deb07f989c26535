"""Files that say the same as the measurement, and are read by those who read the files of before."""

from __future__ import annotations

import csv
import json
import stat
from dataclasses import replace
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest

from client.errors import StorageError
from client.load.analysis import Options, compute_figures
from client.load.export import (
    Summary,
    encode_summary,
    points_csv,
    read_parquet,
    read_summary,
    summarise,
    summary_schema,
    write_jsonl,
    write_parquet,
    write_private,
)
from client.load.figures import metrics_of
from client.load.repeats import combine
from client.load.rows import WARMUP
from client.load.run import Measurement
from client.load.saturation import Capacity, find_knee, point_of
from client.load.slo import parse_slos
from client.results import read_records
from client.summary import result_entry
from orchestrator.report.traces import read_requests
from orchestrator.rundir import RunDir
from tests.client.load.synthetic import closed_loop, failed, open_loop


def _noted() -> Measurement:
    made = failed(closed_loop(2, 10), [4], "server_error")
    made.rows["phase"][0], made.rows["index"][0] = WARMUP, -1
    notes: tuple[dict[str, object], ...] = (
        {"index": 4, "phase": 1, "error": "out of <memory>"},
        {"index": 5, "phase": 1, "text": "Grüße", "reasoning": "hm"},
    )
    return replace(made, notes=notes)


def test_parquet_holds_the_whole_measurement(tmp_path: Path) -> None:
    made = _noted()
    write_parquet(made, tmp_path / "requests.parquet")
    back = read_parquet(tmp_path / "requests.parquet")
    assert compute_figures(back) == compute_figures(made)
    for name in made.rows.dtype.names or ():
        if name not in {"gap_start", "gap_count"}:
            np.testing.assert_array_equal(back.rows[name], made.rows[name])
    np.testing.assert_array_equal(back.rows["gap_count"], made.rows["gap_count"])
    assert (back.notes, back.started_at, back.start_s, back.workers) == (
        made.notes, made.started_at, made.start_s, made.workers
    )  # fmt: skip
    assert stat.S_IMODE((tmp_path / "requests.parquet").stat().st_mode) == 0o600


def test_a_file_that_is_no_measurement_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"PAR1 no")
    for name in ("a", "missing"):
        with pytest.raises(StorageError, match=name):
            read_parquet(tmp_path / name)


def test_lines_are_read_by_the_readers_of_before(tmp_path: Path) -> None:
    made = _noted()
    run = RunDir(tmp_path)
    (run.benchmark / "b").mkdir(parents=True)
    path = run.benchmark / "b" / "requests.jsonl"
    write_jsonl(made, path)
    entries = [result_entry(record, "m") for record in read_records(path)]
    assert len(entries) == 20
    assert [entry["success"] for entry in entries].count(False) == 1
    assert entries[4]["error"] == "out of <memory>"
    assert entries[5]["response"] == "Grüße"
    trace = read_requests(run, 19)
    assert len(trace.flights) == 19
    figures = compute_figures(made)
    assert np.median(trace.ttft_s) * 1000 == pytest.approx(figures.ttft_ms.p50, abs=2e-3)
    assert sum(flight.tokens for flight in trace.flights) == figures.output_tokens


def _summary() -> Summary:
    slos = parse_slos("ttft_ms<=100")
    sweep = [compute_figures(open_loop(200, rate), Options(slos=slos)) for rate in (10, 20, 40, 80)]
    points = tuple(point_of("rate", figures.rate_asked_per_s or 0.0, figures, True) for figures in sweep)
    repeats = combine([metrics_of(figures) for figures in sweep])
    more = {
        "repeats": repeats,
        "points": points,
        "knee": find_knee(points),
        "capacity": Capacity(10.0, 20.0),
        "client_adds_ms": 0.1,
    }
    return summarise(sweep[0], 1.7e9, ["too slow"], {"model": "m", "rates": [10, 20]}, **more)


def test_a_summary_keeps_to_its_schema_and_comes_back(tmp_path: Path) -> None:
    summary, schema = _summary(), summary_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(encode_summary(summary))
    jsonschema.validate(document, schema)
    assert document["valid"] is False
    assert {"mean", "p50", "p90", "p99", "p999"} <= document["ttft_ms"].keys()
    assert {"requests_per_s", "output_tokens_per_s", "ttft_ms", "itl_ms", "tpot_ms", "e2e_ms", "schedule_delay_ms",
            "client_cpu_s", "client_start_s", "connections_opened", "failures", "goodput_per_s", "valid",
            "invalid_reasons"} <= document.keys()  # fmt: skip
    write_private(tmp_path / "summary.json", encode_summary(summary))
    assert read_summary(tmp_path / "summary.json") == summary
    del document["ttft_ms"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_a_summary_without_any_success_is_json(tmp_path: Path) -> None:
    figures = compute_figures(failed(open_loop(20), list(range(20)), "connect"))
    document = json.loads(encode_summary(summarise(figures, 1.0, [], {})))
    jsonschema.validate(document, summary_schema())
    assert document["ttft_ms"]["p50"] is None


def test_a_broken_summary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"valid": 3}')
    with pytest.raises(StorageError, match=r"summary\.json"):
        read_summary(tmp_path / "summary.json")


def test_points_are_a_table() -> None:
    points = _summary().points
    rows = list(csv.DictReader(points_csv(points).splitlines()))
    assert [float(row["load"]) for row in rows] == [point.load for point in points]
    assert float(rows[1]["ttft_p99_ms"]) == points[1].ttft_ms.p99
    assert float(rows[2]["requests_per_s_low"]) == points[2].intervals["requests_per_s"][0]
    bare = msgspec.structs.replace(points[0], intervals={}, is_good=None)
    row = next(csv.DictReader(points_csv([bare]).splitlines()))
    assert row["requests_per_s_low"] == row["is_good"] == ""


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        write_private(tmp_path / "no" / "file", b"x")
