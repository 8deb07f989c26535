"""Copies by sftp, for machines without rsync: every file anew, no resume, no links."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from orchestrator.atomic import make_private_dir
from orchestrator.errors import TransferError
from orchestrator.transports.base import Answer, Transfer, TransferOptions
from orchestrator.transports.copying import TreeEntry, is_excluded, log, remedy_for, walk
from orchestrator.transports.rsync import wait_or_end

LIMITS = (
    "every file is copied anew and whole, symbolic links are left out, nothing is compressed, "
    "and a cut copy starts again"
)
_UNSPEAKABLE = re.compile(r"[\r\n\0]")


@dataclass(frozen=True)
class Sftp:
    """sftp between this machine and another.

    Attributes:
        host: The other machine for people.
        words: sftp's words for the connection, and the host.
        run: Runs a command over there.
        tick: Called every second while files are copied.
    """

    host: str
    words: tuple[str, ...]
    run: Callable[[Sequence[str]], Answer]
    tick: Callable[[], None]

    def push(self, local: Path, remote: str, options: TransferOptions) -> Transfer:
        """Copy ``local`` to ``remote``.

        Raises:
            TransferError: with sftp's words; names with line breaks cannot be spoken of.
        """
        if not local.is_dir():
            status = local.stat()
            entries = [TreeEntry("", status.st_mode, status.st_size)]
            files = entries
        else:
            entries = [TreeEntry("", local.stat().st_mode, 0), *walk(local, options.excludes)]
            files = self._files(entries)
        if options.is_dry_run:
            return _transfer(files, local.name)
        folders = [entry for entry in entries if stat.S_ISDIR(entry.mode)]
        paths = [_join(remote, folder.path) for folder in folders]
        self._check(self.run(["sh", "-c", 'umask 077; mkdir -p -- "$@"', "sh", *paths])) if paths else None
        batch = []
        for entry in files:
            target = _join(remote, entry.path)
            temporary = f"{os.path.dirname(target) or '.'}/.{token_hex(6)}.tmp"  # noqa: PTH120 — a path over there
            batch.append(
                f"put -p {self._word(str(local / entry.path) if entry.path else str(local))} {self._word(temporary)}"
            )
            batch.append(f"rename {self._word(temporary)} {self._word(target)}")
        batch += [f"chmod {stat.S_IMODE(f.mode):o} {self._word(_join(remote, f.path))}" for f in reversed(folders)]
        self._speak(batch, options)
        return _transfer(files, local.name)

    def pull(self, remote: str, local: Path, is_folder: bool, options: TransferOptions) -> Transfer:
        """Copy ``remote`` to ``local``; see push."""
        name = os.path.basename(remote)  # noqa: PTH119 — a path over there
        entries = [entry for entry in self._list(remote) if not _is_left_out(entry, options.excludes)]
        files = self._files(entries) if is_folder else entries
        if options.is_dry_run:
            return _transfer(files, name)
        folders = [entry for entry in entries if stat.S_ISDIR(entry.mode)]
        for folder in folders:
            make_private_dir(local / folder.path)
        renames, batch = [], []
        for entry in files:
            target = local / entry.path if entry.path else local
            temporary = target.with_name(f".{token_hex(6)}.tmp")
            renames.append((temporary, target))
            batch.append(f"get -p {self._word(_join(remote, entry.path))} {self._word(str(temporary))}")
        try:
            self._speak(batch, options)
            for temporary, target in renames:
                temporary.replace(target)
        finally:
            for temporary, _ in renames:
                temporary.unlink(missing_ok=True)
        for folder in reversed(folders):
            (local / folder.path).chmod(stat.S_IMODE(folder.mode))
        return _transfer(files, name)

    def _list(self, remote: str) -> list[TreeEntry]:
        # GNU find; type, permissions, size and the path below the top.
        answer = self.run(["find", remote if remote.startswith("/") else f"./{remote}", "-printf", r"%y %m %s %P\0"])
        self._check(answer)
        types = {"d": stat.S_IFDIR, "f": stat.S_IFREG, "l": stat.S_IFLNK}
        entries = []
        for record in answer.stdout.split("\0")[:-1]:
            kind, mode, size, path = record.split(" ", 3)
            if ".." in path.split("/"):
                raise TransferError(self.host, f"{remote}: {path!r} leads out of the tree")
            entries.append(TreeEntry(path, types.get(kind, stat.S_IFIFO) | int(mode, 8), int(size)))
        return entries

    def _files(self, entries: Sequence[TreeEntry]) -> list[TreeEntry]:
        for entry in entries:
            if not stat.S_ISREG(entry.mode) and not stat.S_ISDIR(entry.mode):
                log.warning("%s: sftp leaves out %s, which is no regular file", self.host, entry.path)
        return [entry for entry in entries if stat.S_ISREG(entry.mode)]

    def _check(self, answer: Answer) -> None:
        if answer.returncode != 0:
            raise TransferError(self.host, f"{answer.argv[0]}: {answer.stderr.strip()}", remedy_for(answer.stderr))

    def _word(self, path: str) -> str:
        if _UNSPEAKABLE.search(path):
            raise TransferError(self.host, f"sftp cannot copy {path!r}: a line break in the name", "Install rsync.")
        # Between double quotes sftp takes wildcards for themselves (sftp.c, makeargv).
        return '"' + re.sub(r'([\\"])', r"\\\1", path if path.startswith("/") else f"./{path}") + '"'

    def _speak(self, batch: Sequence[str], options: TransferOptions) -> None:
        limit = options.bandwidth_limit_kib_per_s
        speed = [] if limit is None else ["-l", str(limit * 8)]
        process = subprocess.Popen(
            ["sftp", "-q", *speed, "-b", "-", *self.words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        script = os.fsencode("".join(f"{line}\n" for line in batch))
        _, stderr = wait_or_end(process, options.timeout_s, self.tick, script)
        said = stderr.decode(errors="replace").strip()
        if process.returncode != 0:
            raise TransferError(
                self.host, f"sftp ended with exit code {process.returncode}\n{said[-4000:]}", remedy_for(said)
            )


def _is_left_out(entry: TreeEntry, excludes: Sequence[str]) -> bool:
    parts = entry.path.split("/")
    above = ("/".join(parts[:count]) for count in range(1, len(parts)))
    is_folder = stat.S_ISDIR(entry.mode)
    return bool(entry.path) and (
        is_excluded(entry.path, is_folder, excludes) or any(is_excluded(path, True, excludes) for path in above)
    )


def _transfer(files: Sequence[TreeEntry], name: str) -> Transfer:
    return Transfer(tuple(entry.path or name for entry in files), sum(entry.n_bytes for entry in files), "sftp")


def _join(top: str, path: str) -> str:
    return f"{top}/{path}" if path else top
