from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from client.app import ServiceSettings
from client.errors import StorageError
from client.load.export import read_summary
from client.results import read_json, write_private_json
from tests.client.conftest import API_TOKEN

BODY = {"n_clients": 2, "n_requests_per_client": 3, "prompt": "Test prompt", "model": "fake-model", "self_check": False}


def test_benchmark_files_are_private_and_complete(http: FlaskClient, settings: ServiceSettings) -> None:
    before = os.umask(0)
    try:
        result = http.post("/benchmark", json={**BODY, "id": "mine", "warmup_requests": 1}).get_json()
    finally:
        os.umask(before)
    folder = settings.output_dir / "mine"
    assert {path.name for path in folder.iterdir()} == {
        "request.json", "requests.jsonl", "requests.parquet", "summary.json",
    }  # fmt: skip
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert API_TOKEN.encode() not in path.read_bytes()
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
    assert summary == {name: value for name, value in result.items() if name != "results"}
    assert read_summary(folder / "summary.json").ttft_ms.p50 == result["ttft_ms"]["p50"], (
        "as `orch.py compare` reads it"
    )


class Disk:
    """Lets files of some names not be written."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full_for: set[str] = set()
        self._real: Callable[..., int] = os.open
        monkeypatch.setattr(os, "open", self._open)

    def _open(self, path: Any, *more: Any, **options: Any) -> int:
        if any(f".{name}." in str(path) for name in self.full_for):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._real(path, *more, **options)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("name", ["requests.parquet", "requests.jsonl", "summary.json"])
def test_benchmark_disk_full_fails_clearly_and_the_service_lives_on(http: FlaskClient, disk: Disk, name: str) -> None:
    disk.full_for = {name}
    answer = http.post("/benchmark", json={**BODY, "id": "full"})
    assert (answer.status_code, answer.get_json()["state"]) == (507, "failed")
    assert f"{name}: No space left on device" in answer.get_json()["error"]
    disk.full_for = set()
    assert http.post("/benchmark", json={**BODY, "id": "next"}).status_code == 200


def test_benchmark_disk_full_at_the_start_leaves_the_id_free(
    http: FlaskClient, settings: ServiceSettings, disk: Disk
) -> None:
    disk.full_for = {"request.json"}
    assert http.post("/benchmark", json={**BODY, "id": "early"}).status_code == 507
    assert not (settings.output_dir / "early").exists()
    disk.full_for = set()
    assert http.post("/benchmark", json={**BODY, "id": "early"}).status_code == 200


def test_benchmark_output_folder_not_writable_is_507(http: FlaskClient, settings: ServiceSettings) -> None:
    settings.output_dir.write_text("a file where the folder should be")
    answer = http.post("/benchmark", json=BODY)
    assert answer.status_code == 507
    assert "cannot make" in answer.get_json()["error"]
    assert http.get("/health").status_code == 200


def test_write_private_json_failing_keeps_what_was_there(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "summary.json"
    write_private_json(path, {"a": 1})
    disk.full_for = {"summary.json"}
    with pytest.raises(StorageError, match="No space left"):
        write_private_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
