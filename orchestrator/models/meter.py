"""How far the reading, fetching or copying of a model is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from orchestrator.space.wording import size_text

Meter = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Takes what is done and how many bytes it is in all; gives a function that is told further bytes, from any thread."""
TELL_EVERY_S = 10.0


def telling_meter(tell: Callable[[str], None]) -> Meter:
    """Return a meter that tells a line every ten seconds."""

    @contextmanager
    def meter(what: str, total: int) -> Iterator[Callable[[int], None]]:
        lock = threading.Lock()
        done, told_at = 0, time.monotonic()

        def note(n_bytes: int) -> None:
            nonlocal done, told_at
            with lock:
                done += n_bytes
                if time.monotonic() - told_at < TELL_EVERY_S:
                    return
                told_at = time.monotonic()
                tell(f"{what}: {size_text(done)} of {size_text(total)}")

        yield note

    return meter


def bar_meter(console: Console) -> Meter:
    """Return a meter that draws a bar."""

    @contextmanager
    def meter(what: str, total: int) -> Iterator[Callable[[int], None]]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f}% of " + size_text(total)),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, expand=True, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda n_bytes: progress.advance(task, n_bytes)

    return meter
