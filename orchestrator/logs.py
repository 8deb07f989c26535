"""Logs of jobs: where they are, their last words, and following them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.rundir import RunDir

STREAMS = ("out", "err", "batch")
TAIL_LINES = 15
TAIL_BYTES = 64 << 10


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
    kept = [line.split("\r")[-1].rstrip() for line in text.splitlines() if line.strip()]
    return kept[-lines:]


def last_words(run: RunDir, service: str, job_id: str) -> str:
    """Return the ends of all logs of one job, those that say nothing left out."""
    parts = []
    for stream in STREAMS:
        path = run.log(service, job_id, stream)
        lines = tail(path)
        if lines:
            parts.append("\n".join([f"  {path.relative_to(run.root)}:", *(f"    {line}" for line in lines)]))
    return "\n".join(parts) or f"  (nothing in {run.logs}/{service}_{job_id}.*)"


def follow(paths: Callable[[], list[Path]], is_over: Callable[[], bool], poll_s: float = 0.3) -> Iterator[str]:
    """Yield text as it is appended to any of the files that ``paths`` names, until ``is_over`` and all is read."""
    positions: dict[Path, int] = {}
    # A look may end in the middle of a character.
    decoders: dict[Path, codecs.IncrementalDecoder] = defaultdict(codecs.getincrementaldecoder("utf-8")("replace").__copy__)
    while True:
        over = is_over()
        for path in paths():
            try:
                with path.open("rb") as file:
                    file.seek(positions.get(path, 0))
                    data = file.read()
            except OSError:
                continue
            if data:
                positions[path] = positions.get(path, 0) + len(data)
                yield data.decode(errors="replace")
        if over:
            return
        time.sleep(poll_s)
