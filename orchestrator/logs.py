"""Logs of jobs: where they are, their last words, and following them."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.growing import GrowingFile
from orchestrator.rundir import RunDir
from orchestrator.transports import FileContent

STREAMS = ("out", "err", "batch")
TAIL_LINES = 15
TAIL_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20
LOOK_EVERY_S = 0.3
ReadLogs = Callable[[Mapping[Path, int]], Mapping[Path, FileContent] | None]


def tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """Return the last ``lines`` non-empty lines of ``path``; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    # A progress bar rewrites its line with carriage returns: its last state is what it said.
    kept = [line.rstrip().split("\r")[-1] for line in text.split("\n") if line.strip()]
    return kept[-lines:]


def log_paths(run: RunDir, service: str, job_id: str) -> list[Path]:
    """Return the logs of one job: out, err, batch; some may not be there."""
    paths = [run.log(service, job_id, stream) for stream in STREAMS]
    # Where a backend cannot put the job's id into the name, the placeholder stays in it.
    unnamed = run.log(service, "%j", "batch")
    return [*paths[:-1], paths[-1] if paths[-1].exists() or not unnamed.exists() else unnamed]


def log_candidates(run: RunDir, service: str, job_id: str) -> list[Path]:
    """Return every path that a log of one job may have on its host; see log_paths."""
    return [*(run.log(service, job_id, stream) for stream in STREAMS), run.log(service, "%j", "batch")]


def last_words(run: RunDir, service: str, job_id: str) -> str:
    """Return the ends of all logs of one job, those that say nothing left out."""
    parts = []
    for path in log_paths(run, service, job_id):
        lines = tail(path)
        if lines:
            parts.append("\n".join([f"  {path.relative_to(run.root)}:", *(f"    {line}" for line in lines)]))
    return "\n".join(parts) or f"  (nothing in {run.logs}/{service}_{job_id}.*)"


class _LogText:
    """What one log says, as far as it was read."""

    def __init__(self) -> None:
        self.file = GrowingFile()
        # A look may end in the middle of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, data: bytes) -> str | None:
        """Return the text that is new in the bytes from ``file.start`` on; None if it is to be read anew."""
        news = self.file.news(data)
        if news is None:
            self.file.restart()
            self._decoder.reset()
            return None
        self.file.advance(news)
        return self._decoder.decode(news)


def follow(
    paths: Sequence[Path], read: ReadLogs, is_over: Callable[[], bool], poll_s: float = LOOK_EVERY_S
) -> Iterator[str]:
    """Yield text as it is appended to any of the logs, until ``is_over`` and all is read.

    Args:
        paths: They need not be there yet.
        read: Reads them from a byte on, CHUNK_BYTES of each at most; returns None if that cannot be done now.
        is_over: Whether nothing more will be written.
        poll_s: How often to look, in seconds.
    """
    texts = {path: _LogText() for path in paths}
    while True:
        over, has_more = is_over(), True
        while has_more:
            found = read({path: text.file.start for path, text in texts.items()})
            over = over and found is not None
            has_more = False
            for path, content in (found or {}).items():
                data = content.data or b""
                text = texts[path].take(data)
                yield text or ""
                has_more = has_more or text is None or len(data) >= CHUNK_BYTES
        if over:
            return
        time.sleep(poll_s)
