"""Keeps HAProxy's members those of the endpoint records whose jobs live."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from services.balancer.admin import Admin, AdminError
from services.balancer.members import Member, RecordError, read_member, record_paths

# A supervisor renews its heartbeat every 3 s; shared file systems show it a few seconds late.
SILENT_S = 12.0
LOG = logging.getLogger(__name__)


@dataclass
class Sign:
    """A sign of life: the heartbeat's text, and when it was first seen, by the monotonic clock of this machine."""

    text: bytes
    at_s: float


@dataclass
class Follower:
    """Compares records with members, and changes the members.

    Attributes:
        present: Those that take requests, by the path of their record.
        leaving: Those whose record is gone, or that are silent, until their last request has ended.
        signs: The last sign of life of each job with a record, by token.
        troubles: What does not work now; each is logged once, as long as it lasts.
    """

    endpoints: Path
    status: Path
    service: str
    admin: Admin
    present: dict[Path, Member] = field(default_factory=dict)
    leaving: set[Member] = field(default_factory=set)
    signs: dict[str, Sign] = field(default_factory=dict)
    troubles: set[str] = field(default_factory=set)

    def follow(self) -> None:
        """Bring the members up to date; what does not work is logged, and tried again by the next call."""
        before, self.troubles = self.troubles, set()
        with self._noting():
            self._change(self._living(self._wanted()))
        for trouble in sorted(self.troubles - before):
            LOG.warning("%s", trouble)

    def _wanted(self) -> dict[Path, Member]:
        wanted = {}
        for path in record_paths(self.endpoints, self.service):
            try:
                wanted[path] = read_member(path)
            except FileNotFoundError:
                continue
            except RecordError as error:
                # It may be a fault of the file system: whoever serves goes on.
                self.troubles.add(str(error))
                if path in self.present:
                    wanted[path] = self.present[path]
        return wanted

    def _living(self, wanted: dict[Path, Member]) -> dict[Path, Member]:
        """Return those whose jobs give signs of life; all, while none does: that may be a fault of the file system."""
        now_s = time.monotonic()
        self.signs = {member.token: self._sign(member.token, now_s) for member in wanted.values()}
        living = {path: member for path, member in wanted.items() if now_s - self.signs[member.token].at_s < SILENT_S}
        return living or wanted

    def _sign(self, token: str, now_s: float) -> Sign:
        """Return the last sign of life; a job without any is as if it had given one when its record was found."""
        last = self.signs.get(token, Sign(b"", now_s))
        with suppress(OSError):
            text = (self.status / f"{token}.heartbeat").read_bytes()
            return last if text == last.text else Sign(text, now_s)
        return last

    def _change(self, wanted: dict[Path, Member]) -> None:
        for path, member in list(self.present.items()):
            if wanted.get(path) != member:
                with self._noting():
                    self.admin.disable(member)
                    self.leaving.add(self.present.pop(path))
                    LOG.info("%s left", member.name)
        for path, member in wanted.items():
            if path not in self.present:
                with self._noting():
                    self.admin.add(member)
                    self.present[path] = member
                    self.leaving.discard(member)
                    LOG.info("%s at %s joined", member.name, member.address)
        for member in list(self.leaving):
            with self._noting():
                if self.admin.is_deleted(member):
                    self.leaving.remove(member)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, AdminError) as error:
            self.troubles.add(f"the members stay as they are: {error}")
