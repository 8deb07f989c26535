"""The pump of one ssh session: sends a remote command and collects its answer."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from orchestrator.transports.remote_command import AnswerReader, Outcome, RemoteCommand

_BLOCK_BYTES = 1 << 16
_EXIT_WAIT_S = 5.0


@dataclass(frozen=True)
class Waits:
    """How long a session may take, in seconds.

    Attributes:
        hello_s: Until the remote side says hello.
        answer_s: From there until its answer is complete.
    """

    hello_s: float
    answer_s: float


@dataclass(frozen=True)
class SessionEnd:
    """How a session ended.

    Attributes:
        outcome: What came back.
        was_sent: Whether the command was sent, so that it may have run.
        ssh_code: Exit code of the local ssh; None if it was ended from here, as time was up or the answer complete.
    """

    outcome: Outcome
    was_sent: bool
    ssh_code: int | None


def run_session(
    ssh_argv: Sequence[str], command: RemoteCommand, login_line: str, stdin: bytes, waits: Waits
) -> SessionEnd:
    """Return how ``command`` ended.

    Args:
        ssh_argv: The ssh program with all its words, host included.
        command: What to run; its ``has_stdin`` says whether ``stdin`` is for it.
        login_line: The command line for the remote login shell.
        stdin: What the command reads.
        waits: Limits of time.

    Raises:
        OSError: the ssh program could not be started.
    """
    process = subprocess.Popen(
        [*ssh_argv, login_line],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    with process:
        try:
            return _Pump(process, command, command.script_line() + stdin).run(waits)
        finally:
            # Whatever ends the wait, Ctrl-C included; the remote side ends by its own time limit.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@dataclass
class _Pump:
    process: subprocess.Popen[bytes]
    command: RemoteCommand
    to_send: bytes
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    n_sent: int = 0
    was_sent: bool = False

    def run(self, waits: Waits) -> SessionEnd:
        reader = AnswerReader(self.command)
        self.selector.register(_pipe(self.process.stdout), selectors.EVENT_READ, reader.stdout)
        self.selector.register(_pipe(self.process.stderr), selectors.EVENT_READ, reader.stderr)
        with self.selector:
            deadline = time.monotonic() + waits.hello_s
            while self._is_open() and not reader.is_complete:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return SessionEnd(reader.outcome(), self.was_sent, None)
                for key, _ in self.selector.select(left_s):
                    self._step(key)
                if reader.said_hello and not self.was_sent:
                    self.was_sent = True
                    deadline = time.monotonic() + waits.answer_s
                    os.set_blocking(_pipe(self.process.stdin).fileno(), False)
                    self.selector.register(_pipe(self.process.stdin), selectors.EVENT_WRITE)
        return SessionEnd(reader.outcome(), self.was_sent, None if reader.is_complete else self._exit_code())

    def _exit_code(self) -> int | None:
        try:
            return self.process.wait(_EXIT_WAIT_S)
        except subprocess.TimeoutExpired:
            return None

    def _is_open(self) -> bool:
        return any(key.events == selectors.EVENT_READ for key in self.selector.get_map().values())

    def _step(self, key: selectors.SelectorKey) -> None:
        if key.events == selectors.EVENT_WRITE:
            self._send(_pipe(self.process.stdin))
            return
        data = os.read(key.fd, _BLOCK_BYTES)
        key.data.extend(data)
        if not data:
            self.selector.unregister(key.fileobj)

    def _send(self, file: IO[bytes]) -> None:
        try:
            self.n_sent += os.write(file.fileno(), memoryview(self.to_send)[self.n_sent : self.n_sent + _BLOCK_BYTES])
        except BrokenPipeError:
            # The command did not want its stdin, or the connection ended; the answer tells which.
            self.n_sent = len(self.to_send)
        if self.n_sent >= len(self.to_send):
            self.selector.unregister(file)
            file.close()


def _pipe(file: IO[bytes] | None) -> IO[bytes]:
    assert file is not None  # noqa: S101 — all three were asked for
    return file
