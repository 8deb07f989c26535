"""The append-only ledger."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from orchestrator.errors import StorageError
from orchestrator.ledger import Ledger


def test_ledger_gives_events_of_a_kind_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.jsonl")
    for number in range(3):
        ledger.append("job_state", number=number)
        ledger.append("other", text="a\nb ü")
    assert [event["number"] for event in ledger.events("job_state")] == [0, 1, 2]
    assert len(list(ledger.events())) == 6
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 6


def test_ledger_event_has_its_time(tmp_path: Path) -> None:
    before = time.time()
    Ledger(tmp_path / "e").append("x")
    (event,) = Ledger(tmp_path / "e").events()
    assert before <= event["at"] <= time.time()


def test_ledger_that_is_not_there_has_no_events(tmp_path: Path) -> None:
    assert list(Ledger(tmp_path / "e").events()) == []


def test_ledger_leaves_out_a_torn_line_and_keeps_what_is_written_after_it(tmp_path: Path) -> None:
    path = tmp_path / "e"
    Ledger(path).append("first")
    whole = path.read_text()
    path.write_text(whole + json.dumps({"at": 1.0, "event": "torn"})[:12])
    assert [event["event"] for event in Ledger(path).events()] == ["first"]
    Ledger(path).append("after")
    assert [event["event"] for event in Ledger(path).events()] == ["first", "after"]


def test_ledger_line_that_is_no_event_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_text('[1]\n"x"\n\n{"event": "good"}\n')
    assert [event["event"] for event in Ledger(path).events("good")] == ["good"]


def test_ledger_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Ledger(tmp_path / "none" / "e").append("x")


def test_ledger_refuses_a_number_that_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Ledger(tmp_path / "e").append("x", value=float("nan"))
