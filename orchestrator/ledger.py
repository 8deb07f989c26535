"""The append-only ledger of a run: what was intended, submitted and seen, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from orchestrator.atomic import append_line


class Ledger:
    """Writes and reads ``events.jsonl``. There is one writer: the orchestrator that owns the run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, event: str, **data: Any) -> None:
        """Write one event with the time; it is on the disk when this returns.

        Raises:
            StorageError: it could not be written; the caller must not act on the intent.
        """
        append_line(self._path, json.dumps({"at": time.time(), "event": event, **data}, allow_nan=False))

    def events(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yield the events of the given kinds (all, if none), oldest first.

        A torn last line (the writer was killed while writing) is left out.
        """
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        yield from _events(text, kinds)

    def events_from(self, start: int, *kinds: str) -> tuple[list[dict[str, Any]], int]:
        """Return the events of the given kinds in whole lines behind byte ``start``, and where the next line begins.

        Raises:
            FileNotFoundError: there is no ledger.
        """
        with self._path.open("rb") as file:
            file.seek(start)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        return list(_events(whole.decode(errors="replace"), kinds)), start + len(whole)


def _events(text: str, kinds: Collection[str]) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and (not kinds or event.get("event") in kinds):
            yield event
