"""What jobs on another machine have written about themselves, put into the orchestrator's copy of their run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.atomic import make_private_dir, write_bytes
from orchestrator.errors import StorageError
from orchestrator.growing import GrowingFile
from orchestrator.rundir import RunDir
from orchestrator.transports import FileContent, Transport

_TIMES = ("started_at", "ready_at", "finished_at", "at")
# In the order in which a job goes through them (docs/run-directory.md).
_STATES = ("starting", "running", "ready", "draining", "finished")
log = logging.getLogger(__name__)


class Arrivals:
    """Takes the files of one host over.

    Attributes:
        ahead_s: How far the host's clock is ahead of this machine's, in seconds.
    """

    def __init__(self, name: str, home: RunDir, transport: Transport, only_looks: bool) -> None:
        """Take nothing over yet.

        Args:
            name: The host's name in the recipe.
            home: The orchestrator's copy of the run.
            transport: The way to the host; endpoints get forwards through it.
            only_looks: Leave endpoint records and growing files to the run's orchestrator, and replace no record by an
                older one.
        """
        self._name, self._home, self._transport, self._only_looks = name, home, transport, only_looks
        self.ahead_s = 0.0
        self._seen: dict[Path, tuple[bytes, bytes]] = {}
        self._growing: dict[Path, GrowingFile] = {}
        self._forwards: dict[Path, tuple[str, int]] = {}

    def is_wanted(self, path: Path) -> bool:
        """Return whether ``path`` is taken over by whom this is."""
        return not self._only_looks or not (self._is_endpoint(path) or _grows(path))

    def starts(self, paths: Iterable[Path]) -> dict[Path, int]:
        """Return the growing files among ``paths``, and from which byte on each is to be read."""
        found = {}
        for path in paths:
            if not _grows(path):
                continue
            if path not in self._growing:
                try:
                    self._growing[path] = GrowingFile.copied_to(path)
                except OSError:
                    self._growing[path] = GrowingFile()  # whoever writes to the copy says what is wrong with it
            found[path] = self._growing[path].start
        return found

    def take(self, path: Path, content: FileContent) -> None:
        """Take one file; a full disk here must not keep the others from being looked at, nor jobs from being ended."""
        if content.problem is not None:
            log.warning("%s: %s: %s", self._name, path.name, content.problem)
            return
        try:
            if content.data is None:
                self._drop(path)
            elif _grows(path):
                self._append(path, content.data)
            else:
                self._replace(path, content.data)
        except (StorageError, OSError, ValueError) as error:
            log.warning("%s: %s was not taken over: %s", self._name, path.name, error)

    def _is_endpoint(self, path: Path) -> bool:
        return path.parent == self._home.endpoints

    def _append(self, path: Path, data: bytes) -> None:
        """Add the lines that are new to the copy; the end of a torn one comes with a later look."""
        file = self._growing[path]
        news = file.news(data)
        if news is None:
            log.info("%s: %s is not the file of before and is read anew", self._name, path.name)
            file.restart()
            return
        lines = news[: news.rfind(b"\n") + 1]
        if not lines:
            return
        make_private_dir(path.parent)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as copy:
            if os.fstat(descriptor).st_size < file.position:
                file.restart()  # somebody has changed the copy
                return
            copy.truncate(file.position)
            copy.seek(file.position)
            copy.write(lines)
        file.advance(lines)

    def _replace(self, path: Path, data: bytes) -> None:
        """Put a small file into the copy, if it is new, or if somebody who looked has put an older one there."""
        held = path.read_bytes() if path.exists() else None
        if self._seen.get(path) == (data, held) and not self._is_endpoint(path):
            return
        text: bytes | None = data
        if path.parent in {self._home.endpoints, self._home.root / "status"}:
            text = self._adapted(path, data)
        if text is None:
            return  # torn or foreign: it counts as not there yet
        is_older = self._only_looks and held is not None and _is_older(_record(text), _record(held))
        if not is_older and text != held:  # a forward that was made anew may have another port
            make_private_dir(path.parent)
            write_bytes(path, text)
        self._seen[path] = (data, text)

    def _adapted(self, path: Path, data: bytes) -> bytes | None:
        """Return a record with its times by this machine's clock, and its URL as it is reached from here."""
        record = _record(data)
        if record is None:
            return None
        for name in _TIMES:
            if isinstance(record.get(name), (int, float)):
                record[name] -= self.ahead_s
        if self._is_endpoint(path):
            host, port = record.get("host"), record.get("port")
            if not isinstance(host, str) or not isinstance(port, int):
                return None
            address = self._transport.forward(host, port)
            self._forwards[path] = (host, port)
            record = {**record, "there": {"host": host, "port": port, "url": record.get("url")}}
            record |= {"host": address.host, "port": address.port, "url": f"http://{address.host}:{address.port}"}
        return json.dumps(record, indent=1).encode()

    def _drop(self, path: Path) -> None:
        """Follow a record that was withdrawn; what was measured stays."""
        if self._seen.pop(path, None) is None or not self._is_endpoint(path):
            return
        path.unlink(missing_ok=True)
        if path in self._forwards:
            self._transport.unforward(*self._forwards.pop(path))


def _grows(path: Path) -> bool:
    """Return whether a file is only appended to (docs/run-directory.md)."""
    return path.suffix == ".jsonl"


def _record(data: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _is_older(record: Mapping[str, Any] | None, held: Mapping[str, Any] | None) -> bool:
    """Return whether a status record or a heartbeat is from before the one that is held."""
    if record is None or held is None:
        return False
    if record.get("attempt") == held.get("attempt") and record.get("state") in _STATES:
        return _STATES.index(record["state"]) < _rank(held.get("state"))
    name = "started_at" if "state" in record else "at"
    at, held_at = record.get(name), held.get(name)
    return isinstance(at, (int, float)) and isinstance(held_at, (int, float)) and at < held_at


def _rank(state: object) -> int:
    return _STATES.index(state) if state in _STATES else 0
