"""What happens to the jobs of one run, written down; and the fences of what was given up."""

from __future__ import annotations

import logging
import time
from typing import Any

from orchestrator.atomic import write_json
from orchestrator.errors import StorageError
from orchestrator.host_view import HostView
from orchestrator.ledger import Ledger
from orchestrator.plan import PlannedJob
from orchestrator.rundir import RunDir

log = logging.getLogger(__name__)


class Journal:
    """What happens to the jobs of a run, for its ledger."""

    def __init__(self, run: RunDir, ledger: Ledger | None) -> None:
        """Write to ``ledger``; without one this is for someone who only looks, and may not submit."""
        self.run, self._ledger = run, ledger

    @property
    def only_looks(self) -> bool:
        return self._ledger is None

    def append(self, event: str, **data: Any) -> None:
        """Write an event that something depends on.

        Raises:
            StorageError: it could not be written.
        """
        if self._ledger is None:
            raise RuntimeError("this tracker only looks")
        self._ledger.append(event, **data)

    def note(self, event: str, **data: Any) -> None:
        """Write an event that nothing depends on: a full disk must not keep jobs from being watched and ended."""
        if self._ledger is None:
            return
        try:
            self._ledger.append(event, **data)
        except StorageError as error:
            log.warning("%s", error)

    def fence(self, planned: PlannedJob, view: HostView) -> None:
        """Give a token up: a supervisor that finds this file ends without doing anything.

        Raises:
            StorageError: the fence could not be written.
            TransportError: it could not be brought to the job's host.
        """
        fence = self.run.fence(planned.token)
        write_json(fence, {"at": time.time()})
        view.host.deliver(fence)
