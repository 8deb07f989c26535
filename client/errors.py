"""What can go wrong in the client service. The tree is its own: the service runs without the orchestrator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class ClientServiceError(Exception):
    """Root of the errors that the client service raises on purpose."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One thing that is wrong with a request: where, what, and what would be allowed."""

    field: str
    message: str
    allowed: Any


class InvalidInputError(ClientServiceError):
    """A request's body or query string does not hold; carries every error, not the first."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.field}: {error.message}" for error in errors))
        self.errors = errors


class SettingsError(ClientServiceError):
    """The service cannot be started with these options or this environment."""


class TargetUnavailableError(ClientServiceError):
    """There is no LLM server to talk to yet, or its endpoint record cannot be used."""


class BenchmarkBusyError(ClientServiceError):
    """Another benchmark is running; two at once would measure each other."""

    def __init__(self, running_id: str) -> None:
        super().__init__(f"benchmark {running_id} is running; wait for it, or DELETE /benchmark/{running_id}")
        self.running_id = running_id


class BenchmarkConflictError(ClientServiceError):
    """The id of this benchmark belongs to another one, with another body."""

    def __init__(self, benchmark_id: str) -> None:
        super().__init__(f"benchmark {benchmark_id} exists with another body; choose another id")
        self.benchmark_id = benchmark_id


class StorageError(ClientServiceError):
    """A result could not be written or read back (disk full, quota, permissions)."""


class WorkerDiedError(ClientServiceError):
    """A worker process of the load engine ended before its work did."""

    def __init__(self, shard: int, exit_code: int | None, words: str = "") -> None:
        why = words or "its traceback is on stderr"
        super().__init__(f"load worker {shard} ended early with exit code {exit_code}; {why}")
        self.shard = shard
        self.exit_code = exit_code


class WorkloadError(ClientServiceError):
    """The asked-for load cannot be made: a file, a length or a rate does not hold. Says where, and what would."""
