"""The lease that tells services that somebody still wants them."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator.atomic import write_json
from orchestrator.errors import LeaseLostError, RunBusyError, StorageError
from orchestrator.lease import LEASE_S, SILENT_S, Lease, Owner, living_owner


def read(path: Path) -> dict[str, Any]:
    """Return the lease as it lies there."""
    lease: dict[str, Any] = json.loads(path.read_text())
    return lease


def foreign(path: Path, renewed_ago_s: float, keep: bool = False, **owner: Any) -> None:
    """Write a lease of another orchestrator."""
    fields = {"host": "elsewhere", "boot_id": "b", "pid": 1, "started": 1, "nonce": "another", **owner}
    write_json(path, {"owner": fields, "renewed_at": time.time() - renewed_ago_s, "expires_at": 0.0, "keep": keep})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the lease lies."""
    return tmp_path / "lease.json"


def test_lease_renewed_holds_for_a_quarter_of_an_hour(path: Path) -> None:
    Lease(path).renew()
    lease = read(path)
    assert (lease["owner"]["host"], lease["owner"]["pid"]) == (socket.gethostname(), os.getpid())
    assert lease["expires_at"] - lease["renewed_at"] == pytest.approx(LEASE_S) == pytest.approx(900)
    assert abs(lease["renewed_at"] - time.time()) < 5
    assert lease["keep"] is False


def test_lease_of_a_living_process_of_this_host_is_its_own(path: Path) -> None:
    first = Lease(path)
    first.take()
    owner = living_owner(path)
    assert owner is not None
    assert owner.pid == os.getpid()
    with pytest.raises(RunBusyError, match=f"process {os.getpid()} on {socket.gethostname()} looks after this run"):
        Lease(path).take()
    first.give_back()
    assert living_owner(path) is None
    Lease(path).take()


@pytest.mark.parametrize(
    ("renewed_ago_s", "keep", "is_alive"), [(5.0, False, True), (SILENT_S + 5, False, False), (5.0, True, False)]
)
def test_lease_of_another_host_counts_while_it_is_renewed(
    renewed_ago_s: float, keep: bool, is_alive: bool, path: Path
) -> None:
    foreign(path, renewed_ago_s, keep)
    assert (living_owner(path) is not None) is is_alive
    if is_alive:
        with pytest.raises(RunBusyError, match="on elsewhere"):
            Lease(path).take()
    else:
        Lease(path).take()


@pytest.mark.parametrize("change", [{"started": 1}, {"boot_id": "another boot"}, {"pid": 4194305}])
def test_lease_of_a_process_that_is_gone_is_free_though_its_pid_is_used_again(change: Any, path: Path) -> None:
    foreign(path, 0.0, **{**asdict(Owner.of_this_process()), **change})
    assert living_owner(path) is None
    Lease(path).take()


@pytest.mark.parametrize("lease", ["[]", "{", '{"owner": "host:1"}', '{"owner": {"host": "x"}}', '{"owner": null}'])
def test_lease_that_names_nobody_is_free(lease: str, path: Path) -> None:
    path.write_text(lease)
    assert living_owner(path) is None


def test_lease_taken_over_by_another_orchestrator_is_lost_and_left_alone(path: Path) -> None:
    lease = Lease(path)
    lease.take()
    foreign(path, 0.0)
    theirs = path.read_text()
    with pytest.raises(LeaseLostError, match="process 1 on elsewhere"):
        lease.verify()
    lease.give_back()
    assert path.read_text() == theirs


def test_lease_held_by_a_lock_is_busy_before_it_is_written(path: Path) -> None:
    first = Lease(path)
    first.take()
    path.unlink()
    with pytest.raises(RunBusyError, match="just taking it over"):
        Lease(path).take()
    first.give_back()


def test_lease_given_back_lets_services_live_on(path: Path) -> None:
    lease = Lease(path)
    lease.take()
    expires_at = read(path)["expires_at"]
    lease.give_back()
    assert read(path)["expires_at"] == expires_at
    assert read(path)["owner"] is None


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


def test_lock_keeps_orchestrators_away_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    mine, other = Lease(path), Lease(path)
    assert mine.lock()
    assert not path.exists()
    with pytest.raises(RunBusyError):
        other.take()
    mine.take()
    mine.give_back()
    other.take()
    with pytest.raises(RunBusyError):
        mine.lock()
