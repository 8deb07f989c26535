"""The lease that tells services that somebody still wants them."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest

from orchestrator.errors import StorageError
from orchestrator.lease import LEASE_S, Lease


def test_lease_renewed_holds_for_a_quarter_of_an_hour(tmp_path: Path) -> None:
    Lease(tmp_path / "lease.json").renew()
    lease = json.loads((tmp_path / "lease.json").read_text())
    assert lease["owner"] == f"{socket.gethostname()}:{os.getpid()}"
    assert lease["expires_at"] - lease["renewed_at"] == pytest.approx(LEASE_S) == pytest.approx(900)
    assert abs(lease["renewed_at"] - time.time()) < 5
    assert lease["keep"] is False


def test_lease_is_written_anew_only_when_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("orchestrator.lease.time.monotonic", lambda: clock[0])
    lease, path = Lease(tmp_path / "lease.json"), tmp_path / "lease.json"
    lease.renew()
    path.unlink()
    clock[0] += 29.0
    lease.renew()
    assert not path.exists()
    clock[0] += 1.0
    lease.renew()
    assert path.exists()


def test_lease_kept_is_lifted(tmp_path: Path) -> None:
    Lease(tmp_path / "lease.json").keep()
    assert json.loads((tmp_path / "lease.json").read_text())["keep"] is True


def test_lease_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Lease(tmp_path / "none" / "lease.json").renew()
