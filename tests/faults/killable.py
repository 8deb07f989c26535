"""orch.py that kills itself at a step boundary: ``killable.py N ARGUMENTS...``, N from 1; 0 only counts.

A step is anything that another process could see: a file brought to the disk or put in its place, a command that
submits or cancels. The boundary is before each, and after each command. Status queries are no steps: they change
nothing. The steps are written to the file that ORCH_STEPS_FILE names.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
READ_ONLY = ("status", "squeue", "qstat", "sinfo", "partitions", "nvidia-smi")


class Steps:
    """Counts steps and ends the process, as kill -9 does, when the number is reached."""

    def __init__(self, fatal: int, record: Path) -> None:
        self._fatal, self._record, self._count = fatal, record, 0

    def step(self, what: str) -> None:
        """Count one step, and die if it is the one."""
        self._count += 1
        descriptor = os.open(self._record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, f"{self._count} {what}\n".encode())
        os.close(descriptor)
        if self._count == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, work: Callable[..., Any], what: str) -> Callable[..., Any]:
        """Return ``work`` with a step before it."""

        def stepped(*arguments: Any, **named: Any) -> Any:
            self.step(what)
            return work(*arguments, **named)

        return stepped


def main() -> int:
    """Patch what makes steps, then run orch.py's own entry."""
    fatal, arguments = int(sys.argv[1]), sys.argv[2:]
    steps = Steps(fatal, Path(os.environ["ORCH_STEPS_FILE"]))
    sys.path.insert(0, str(PROJECT))
    from orchestrator.transports import LocalTransport

    os.fsync = steps.before(os.fsync, "fsync")
    Path.replace = steps.before(Path.replace, "replace")  # type: ignore[method-assign]
    run = LocalTransport.run

    def stepped_run(self: LocalTransport, argv: Sequence[str], *arguments: Any, **named: Any) -> Any:
        is_read_only = any(word in " ".join(map(str, argv[:3])) for word in READ_ONLY)
        if is_read_only:
            return run(self, argv, *arguments, **named)
        steps.step(f"before {argv[-1]}")
        answer = run(self, argv, *arguments, **named)
        steps.step(f"after {argv[-1]}")
        return answer

    LocalTransport.run = stepped_run  # type: ignore[method-assign]
    sys.argv = [str(PROJECT / "orch.py"), *arguments]
    import runpy

    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
