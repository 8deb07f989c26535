"""Logs of jobs: where they are, their last words, and following them."""

from __future__ import annotations

import codecs
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
    kept = [line.rstrip().split("\r")[-1] for line in text.split("\n") if line.strip()]
    return kept[-lines:]


def log_paths(run: RunDir, service: str, job_id: str) -> list[Path]:
    """Return the logs of one job: out, err, batch; some may not be there."""
    paths = [run.log(service, job_id, stream) for stream in STREAMS]
    # Where a backend cannot put the job's id into the name, the placeholder stays in it.
    unnamed = run.log(service, "%j", "batch")
    return [*paths[:-1], paths[-1] if paths[-1].exists() or not unnamed.exists() else unnamed]


def last_words(run: RunDir, service: str, job_id: str) -> str:
    """Return the ends of all logs of one job, those that say nothing left out."""
    parts = []
    for path in log_paths(run, service, job_id):
        lines = tail(path)
        if lines:
            parts.append("\n".join([f"  {path.relative_to(run.root)}:", *(f"    {line}" for line in lines)]))
    return "\n".join(parts) or f"  (nothing in {run.logs}/{service}_{job_id}.*)"


def follow(paths: Callable[[], list[Path]], is_over: Callable[[], bool], poll_s: float = 0.3) -> Iterator[str]:
    """Yield text as it is appended to any of the files that ``paths`` names, until ``is_over`` and all is read."""
    positions: dict[Path, int] = {}
    # A look may end in the middle of a character.
    decoders: dict[Path, codecs.IncrementalDecoder] = {}
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
                decoder = decoders.setdefault(path, codecs.getincrementaldecoder("utf-8")(errors="replace"))
                yield decoder.decode(data)
        if over:
            return
        time.sleep(poll_s)
