from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from client import results
from client.app import ServiceSettings
from client.errors import StorageError
from tests.client.conftest import API_TOKEN

BODY = {"n_clients": 2, "n_requests_per_client": 3, "prompt": "Test prompt", "model": "fake-model"}


def test_benchmark_files_are_private_and_complete(http: FlaskClient, settings: ServiceSettings) -> None:
    before = os.umask(0)
    try:
        result = http.post("/benchmark", json={**BODY, "id": "mine", "warmup_requests": 1}).get_json()
    finally:
        os.umask(before)
    folder = settings.output_dir / "mine"
    assert {path.name for path in folder.iterdir()} == {"request.json", "requests.jsonl", "summary.json"}
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert API_TOKEN not in path.read_text()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(settings.output_dir.stat().st_mode) == 0o700
    lines = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    assert set(lines[0]) >= {
        "client_id",
        "index",
        "intended_at_s",
        "sent_at_s",
        "first_byte_at_s",
        "first_token_at_s",
        "last_token_at_s",
        "eof_at_s",
        "prompt_tokens",
        "completion_tokens",
        "chunks",
        "finish_reason",
        "http_status",
        "error_class",
        "error",
        "text_length",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["started_at"] == pytest.approx(time.time(), abs=60)
    assert summary["metrics"] == result["metrics"]
    assert "results" not in summary


def test_benchmark_disk_full_fails_clearly_and_the_service_lives_on(
    http: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = results.open_private

    def full_disk(path: Path, flags: int) -> int:
        return os.open("/dev/full", os.O_WRONLY) if path.name == "requests.jsonl" else real(path, flags)

    monkeypatch.setattr(results, "open_private", full_disk)
    answer = http.post("/benchmark", json={**BODY, "id": "full"})
    assert (answer.status_code, answer.get_json()["state"]) == (507, "failed")
    assert "No space left on device" in answer.get_json()["error"]
    monkeypatch.setattr(results, "open_private", real)
    assert http.post("/benchmark", json={**BODY, "id": "next"}).status_code == 200


def test_benchmark_disk_full_at_the_start_leaves_the_id_free(
    http: FlaskClient, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = results.open_private
    monkeypatch.setattr(results, "open_private", lambda path, flags: os.open("/dev/full", os.O_WRONLY))
    assert http.post("/benchmark", json={**BODY, "id": "early"}).status_code == 507
    assert not (settings.output_dir / "early").exists()
    monkeypatch.setattr(results, "open_private", real)
    assert http.post("/benchmark", json={**BODY, "id": "early"}).status_code == 200


def test_benchmark_output_folder_not_writable_is_507(http: FlaskClient, settings: ServiceSettings) -> None:
    settings.output_dir.write_text("a file where the folder should be")
    answer = http.post("/benchmark", json=BODY)
    assert answer.status_code == 507
    assert "cannot make" in answer.get_json()["error"]
    assert http.get("/health").status_code == 200


def test_write_private_json_failing_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    results.write_private_json(path, {"a": 1})
    monkeypatch.setattr(results, "open_private", lambda path, flags: os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(StorageError, match="No space left"):
        results.write_private_json(path, {"a": 2})
    assert results.read_json(path) == {"a": 1}
