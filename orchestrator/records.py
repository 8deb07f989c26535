"""What jobs write about themselves: status records, heartbeats, endpoint records (docs/run-directory.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.atomic import read_json
from orchestrator.rundir import RunDir


@dataclass(frozen=True)
class StatusRecord:
    """A job's own word on its state; see docs/run-directory.md for the fields."""

    token: str
    job_id: str
    attempt: str
    host: str
    state: str
    started_at: float
    ready_at: float | None = None
    finished_at: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None
    message: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether this is the sentinel of the job's end."""
        return self.state == "finished"

    @property
    def is_success(self) -> bool:
        """Whether the job ended by itself with exit code 0."""
        return self.is_finished and self.reason == "exited" and self.exit_code == 0


@dataclass(frozen=True)
class Endpoint:
    """Where a healthy service answers."""

    service: str
    job_id: str
    attempt: str
    host: str
    port: int
    url: str
    model: str | None
    ready_at: float
    started_at: float


def read_status(run: RunDir, token: str) -> StatusRecord | None:
    """Return the status record of ``token``, or None if there is none yet."""
    data = read_json(run.status(token))
    return _typed(StatusRecord, data) if isinstance(data, dict) and data.get("token") == token else None


def read_heartbeat(run: RunDir, token: str) -> float | None:
    """Return when the job of ``token`` last gave a sign of life (seconds since the epoch), or None if never."""
    data = read_json(run.heartbeat(token))
    at = data.get("at") if isinstance(data, dict) else None
    return float(at) if isinstance(at, (int, float)) else None


def read_endpoint(run: RunDir, service: str) -> Endpoint | None:
    """Return the endpoint record of ``service``, or None if it is not ready (any more)."""
    data = read_json(run.endpoint(service))
    return _typed(Endpoint, data) if isinstance(data, dict) else None


def _typed(kind: type[Any], data: dict[str, Any]) -> Any | None:
    """Return ``data`` as the dataclass ``kind``; None if a field is missing. Unknown fields are left out."""
    names = kind.__dataclass_fields__
    try:
        return kind(
            **{
                name: data.get(name) if name == "model" else data[name]
                for name in names
                if name in data or name == "model"
            }
        )
    except TypeError:
        return None
