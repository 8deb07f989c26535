"""What people see while a run goes on: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.tracked import TrackedJob

_STYLES = {
    "ready": "green", "running": "green", "completed": "green", "starting": "yellow", "pending": "yellow",
    "draining": "cyan", "finished": "cyan", "cancelled": "cyan",
}  # fmt: skip
MAX_ROWS = 12
log = logging.getLogger(__name__)


class Progress(Protocol):
    """How a run tells of itself."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def say(self, text: str) -> None:
        """Tell one thing that happened."""
        ...

    def show_jobs(self, jobs: Sequence[TrackedJob], count: int | None = None) -> None:
        """Show the state of jobs: of all, or of the latest of ``count``."""
        ...

    def show_bar(self, name: str, done: int, total: int | None, detail: str) -> None:
        """Show how far something is; ``done == total`` ends it, None is not known."""
        ...


def make_progress(stream: TextIO | None = None) -> Progress:
    """Return the display that fits ``stream`` (standard error if None)."""
    console = Console(file=stream or sys.stderr)
    return LiveProgress(console) if console.is_terminal else PlainProgress(stream or sys.stderr)


def _of(done: int, total: int | None) -> str:
    return str(done) if total is None else f"{done}/{total}"


def elapsed(seconds: float) -> str:
    """Return a duration as M:SS or H:MM:SS."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PlainProgress:
    """One line for each change, for logs and batch jobs."""

    BAR_EVERY_S = 10.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._started = time.monotonic()
        self._shown: dict[str, tuple[str, str]] = {}
        self._bars: dict[str, tuple[int, float]] = {}
        self._is_read = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is left to be undone."""

    def say(self, text: str) -> None:
        if not self._is_read:
            return
        try:
            self._stream.write(f"[{elapsed(time.monotonic() - self._started)}] {text}\n")
            self._stream.flush()
        except OSError as error:
            # `orch.py … 2>&1 | head`: that nobody reads on is no reason to end a run, nor to leave its jobs behind.
            self._is_read = False
            log.warning("progress is no longer shown: %s", error)

    def show_jobs(self, jobs: Sequence[TrackedJob], count: int | None = None) -> None:
        for job in jobs:
            where = f" on {job.node}" if job.node else ""
            why = f": {job.why}" if job.why and not job.cancelled else ""
            line = f"{job.name}: {job.phase} (job {job.job_id}{where}){why}"
            # A node that becomes known is no news of its own.
            shown = (job.phase, why)
            if self._shown.get(job.name) != shown:
                self._shown[job.name] = shown
                self.say(line)

    def show_bar(self, name: str, done: int, total: int | None, detail: str) -> None:
        last_done, last_at = self._bars.get(name, (-1, -self.BAR_EVERY_S))
        now = time.monotonic()
        if done != last_done and (done == total or now - last_at >= self.BAR_EVERY_S):
            self._bars[name] = (done, now)
            self.say(f"{name}: {_of(done, total)} {detail}".rstrip())


class LiveProgress:
    """A table of jobs and a bar for each thing under way, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._jobs: Sequence[TrackedJob] = ()
        self._count = 0
        self._bars: dict[str, tuple[int, int | None, str]] = {}
        self._ended: dict[str, float] = {}
        # Live asks for a first picture at once.
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._live.console.print(
            Text(f"[{elapsed(time.monotonic() - self._started)}] ", style="dim").append(text, style="default"),
            soft_wrap=True,
        )

    def show_jobs(self, jobs: Sequence[TrackedJob], count: int | None = None) -> None:
        self._jobs = tuple(jobs)
        self._count = len(jobs) if count is None else count
        for job in jobs:
            if job.state.is_final:
                self._ended.setdefault(job.name, time.time())

    def show_bar(self, name: str, done: int, total: int | None, detail: str) -> None:
        self._bars[name] = (done, total, detail)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._jobs:
            table = Table(box=None, pad_edge=False, header_style="bold", expand=False)
            table.add_column("job", no_wrap=True, max_width=20)
            table.add_column("state", no_wrap=True)
            table.add_column("id", no_wrap=True, max_width=18)
            table.add_column("node", no_wrap=True, max_width=16)
            table.add_column("elapsed", justify="right", no_wrap=True)
            shown = self._rows()
            for job in shown:
                until = self._ended.get(job.name, time.time())
                style = _STYLES.get(job.phase, "red")
                row = (
                    job.name,
                    Text(job.phase, style=style),
                    job.job_id,
                    Text(job.node or "-"),
                    elapsed(until - job.submitted_at),
                )
                table.add_row(*row)
            parts.append(table)
            if len(shown) < self._count:
                parts.append(Text(f"… and {self._count - len(shown)} more that have ended", style="dim"))
        if self._bars:
            bars = Table.grid(padding=(0, 1))
            for name, (done, total, detail) in self._bars.items():
                bar = ProgressBar(None if total is None else max(1, total), completed=done, width=24)
                bars.add_row(Text(name, style="bold"), bar, _of(done, total), Text(detail, overflow="ellipsis"))
            parts.append(bars)
        return Group(*parts)

    def _rows(self) -> list[TrackedJob]:
        """Return the jobs to show: all services, and as many of the latest tasks as fit."""
        services = [job for job in self._jobs if job.planned.kind == "service"]
        tasks = [job for job in self._jobs if job.planned.kind == "task"]
        room = max(1, MAX_ROWS - len(services))
        return [*services, *tasks[-room:]]
