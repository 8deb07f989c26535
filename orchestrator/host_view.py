"""One host's batch system as the tracker of a run sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.hosts import Host
from orchestrator.schedulers import Seen
from orchestrator.transports import Answer


class HostView:
    """What is known of one host's batch system, and when it is to be asked again."""

    def __init__(self, host: Host) -> None:
        self.host, self.scheduler = host, host.scheduler
        self.next_query = self.next_collect = 0.0
        self.has_answered = self.is_reachable = True
        self.answered_at = 0.0
        self.has_arrays = False

    def ask(self, argv: Sequence[str]) -> Answer:
        """Return the answer of one of the scheduler's commands."""
        return self.host.transport.run(argv, self.scheduler.command_timeout_s)

    def cancel(self, *job_ids: str) -> Answer:
        """Ask for the end of jobs, by id, and return the answer."""
        return self.ask(self.scheduler.cancel_argv(job_ids))

    def query(self) -> dict[str, Seen] | None:
        """Return what the scheduler says of all jobs, or None if it does not answer properly."""
        return self.scheduler.parse_status(self.ask(self.scheduler.status_argv(with_tasks=self.has_arrays)))

    def there(self, path: Path) -> Path:
        """Return a path of the orchestrator's copy of the run as the host's programs see it."""
        return self.host.there(path)


Views = Mapping[str, HostView]
