"""Copy a model to the node's own storage, check the copy, and run the engine on it.

``python3 stager.py --to DIR [--keep] [--revision NAME] SOURCE -- ARGV...``

SOURCE is a folder of a model, or that of a repository in a hub cache; ``@MODEL@`` in ARGV becomes the copy's path.
Copied into the run directory and run by the system Python of a compute node: one file, standard library only,
Python 3.6. docs/models.md tells what it does.
"""

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, List, NamedTuple, Optional, TypeVar

PLACEHOLDER = "@MODEL@"
MARK = ".orch-complete"
NOTES = ".orch"
WORKERS = 8
CHUNK_BYTES = 8 << 20
POLL_S = 0.5
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
# sysexits.h
EXIT_BAD_SOURCE, EXIT_CANNOT_WRITE, EXIT_BAD_PLACE = 65, 74, 78
EXIT_EXEC_FAILED = 127

Item = TypeVar("Item")
Result = TypeVar("Result")


class StageError(Exception):
    """The model cannot be staged; carries the exit status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StoppedError(Exception):
    """The job was told to end while the model was staged."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


class File(NamedTuple):
    """One file of the model; ``sha256`` is None where nobody has told it."""

    path: str
    size: int
    sha256: "Optional[str]"


def log(text: str) -> None:
    """Write a line to stderr, the server's log."""
    sys.stderr.write("{} stager: {}\n".format(time.strftime("%Y-%m-%dT%H:%M:%S%z"), text))
    sys.stderr.flush()


def size_text(n_bytes: float) -> str:
    """Return a size in MiB, or in GiB from one on."""
    return f"{n_bytes / (1 << 20):.1f} MiB" if n_bytes < 1 << 30 else f"{n_bytes / (1 << 30):.1f} GiB"


class Source:
    """The model in the shared store.

    Raises:
        StageError: it is not there.
    """

    def __init__(self, path: str, revision: str) -> None:
        self.folder, manifest = path, os.path.join(path, MARK)
        if os.path.isdir(os.path.join(path, "snapshots")):
            commit = self._commit(path, revision)
            self.folder, manifest = os.path.join(path, "snapshots", commit), os.path.join(path, NOTES, commit + ".json")
        if not os.path.isdir(self.folder):
            raise StageError(EXIT_BAD_SOURCE, f"there is no model in {self.folder}")
        self.files = self._listed(manifest) or self._found()

    @staticmethod
    def _commit(repo: str, revision: str) -> str:
        try:
            with open(os.path.join(repo, "refs", revision)) as file:
                return file.read().strip()
        except OSError:
            return revision

    @staticmethod
    def _listed(manifest: str) -> "List[File]":
        try:
            with open(manifest, encoding="utf-8") as file:
                return [File(entry["path"], entry["size"], entry["sha256"]) for entry in json.load(file)["files"]]
        except (OSError, ValueError):
            return []  # brought by another tool, or an earlier version

    def _found(self) -> "List[File]":
        found = []
        for folder, folders, names in os.walk(self.folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = os.path.join(folder, name)
                if not name.startswith("."):
                    found.append(File(os.path.relpath(path, self.folder), os.path.getsize(path), None))
        return found

    def complete(self, crew: "Crew") -> None:
        """Read the hashes that nobody has told."""
        unknown = [file for file in self.files if file.sha256 is None]
        read = crew.each(lambda file: crew.sha256(os.path.join(self.folder, file.path)), unknown)
        found = dict(zip((file.path for file in unknown), read))
        self.files = [file._replace(sha256=found.get(file.path, file.sha256)) for file in self.files]

    @property
    def name(self) -> str:
        """The same for the same content."""
        digest = hashlib.sha256(json.dumps(sorted(self.files)).encode("utf-8")).hexdigest()
        return f"{os.path.basename(self.folder)}-{digest[:16]}"


class Crew:
    """Threads that read and write files, and end soon once something has gone wrong."""

    def __init__(self) -> None:
        self._is_over = threading.Event()

    def each(self, work: "Callable[[Item], Result]", items: "List[Item]") -> "List[Result]":
        """Return what ``work`` returns for each of ``items``."""
        with ThreadPoolExecutor(WORKERS) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._is_over.set()
                for future in futures:
                    future.cancel()
                raise

    def _chunks(self, path: str) -> "Iterator[bytes]":
        with open(path, "rb") as file:
            while not self._is_over.is_set():
                chunk = file.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of a file, empty if it is not there."""
        found = hashlib.sha256()
        try:
            for chunk in self._chunks(path):
                found.update(chunk)
        except FileNotFoundError:
            return ""
        return found.hexdigest()

    def copy(self, source: str, target: str) -> None:
        """Copy one file, whole or not at all."""
        folder, name = os.path.split(target)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        temporary = os.path.join(folder, f".{name}.tmp")
        with open(temporary, "wb") as written:
            for chunk in self._chunks(source):
                written.write(chunk)
        if not self._is_over.is_set():
            os.replace(temporary, target)


class Shelf:
    """The copies of one user on this node, in a folder of their own below a place that may be everybody's.

    Raises:
        StageError: there can be no such folder.
    """

    def __init__(self, place: str) -> None:
        expanded = os.path.expandvars(place)
        if "$" in expanded or not os.path.isabs(expanded):
            raise StageError(
                EXIT_BAD_PLACE, f"job.engine.stage_to = {place}: is no absolute path on this node: {expanded}"
            )
        self.path = os.path.join(expanded, f"orch-models-{os.getuid()}")
        try:
            os.makedirs(expanded, exist_ok=True)
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                pass
            status = os.lstat(self.path)
        except OSError as error:
            raise StageError(EXIT_CANNOT_WRITE, f"cannot make {self.path}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise StageError(EXIT_BAD_PLACE, f"{self.path} is not your own folder")

    def make_room(self, needed: int) -> None:
        """Remove copies that no job uses until ``needed`` bytes are free.

        Raises:
            StageError: there are not enough.
        """
        for name in sorted(os.listdir(self.path)):
            if shutil.disk_usage(self.path).free >= needed:
                return
            if not name.startswith(".") and Copy(self, name).remove_if_unused():
                log(f"removed {os.path.join(self.path, name)}, which no job uses, to have its room")
        free = shutil.disk_usage(self.path).free
        if free < needed:
            text = f"the model needs {size_text(needed)} more in {self.path}, and {size_text(free)} are free"
            raise StageError(EXIT_CANNOT_WRITE, f"{text}. Name another folder in job.engine.stage_to, or leave it out.")


class Copy:
    """A copy of one model. Jobs that use it share one lock, and whoever checks or mends it holds another one."""

    def __init__(self, shelf: Shelf, name: str) -> None:
        self._shelf = shelf
        self.path = os.path.join(shelf.path, name)
        self._use, self._fill = [
            os.open(os.path.join(shelf.path, f".{name}.{lock}"), os.O_RDWR | os.O_CREAT, 0o600)
            for lock in ("use", "fill")
        ]

    def remove_if_unused(self) -> bool:
        """Remove it unless another job uses it; tell whether it is gone."""
        is_alone = self._try(self._use, fcntl.LOCK_EX)
        if is_alone:
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()
        return is_alone

    def release(self) -> None:
        """Use it no longer."""
        for lock in (self._use, self._fill):
            os.close(lock)

    @staticmethod
    def _try(lock: int, how: int) -> bool:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _take(self, lock: int, how: int, who: str) -> None:
        if not self._try(lock, how):
            log(f"waits for another job of this node, which {who} {self.path}")
            while not self._try(lock, how):
                time.sleep(POLL_S)

    def make(self, source: Source, crew: Crew) -> int:
        """Use it, and bring what is missing or wrong; return how many bytes were copied.

        Raises:
            StageError: there is no room, or the source is not what its manifest says.
        """
        self._take(self._use, fcntl.LOCK_SH, "removes")
        self._take(self._fill, fcntl.LOCK_EX, "copies or checks")
        missing = self._wrong(source.files, crew)
        if missing:
            needed = sum(file.size for file in missing)
            self._shelf.make_room(needed)
            crew.each(lambda file: crew.copy(os.path.join(source.folder, file.path), self._place(file)), missing)
            wrong = self._wrong(missing, crew)
            if wrong:
                names = ", ".join(file.path for file in wrong)
                text = f"{names} of {source.folder} or the copy is damaged: the checksum is wrong"
                raise StageError(
                    EXIT_BAD_SOURCE, f"{text}.\nSee `orch.py models verify`; `orch.py models pull` mends it."
                )
        fcntl.flock(self._fill, fcntl.LOCK_UN)
        return sum(file.size for file in missing)

    def _place(self, file: File) -> str:
        return os.path.join(self.path, file.path)

    def _wrong(self, files: "List[File]", crew: Crew) -> "List[File]":
        hashes = crew.each(lambda file: crew.sha256(self._place(file)), files)
        return [file for file, found in zip(files, hashes) if found != file.sha256]


def stage(source: Source, shelf: Shelf) -> Copy:
    """Return the whole copy of a model on this node, in use by this process.

    Raises:
        StageError: it cannot be made.
    """
    began, crew = time.monotonic(), Crew()
    source.complete(crew)
    copy = Copy(shelf, source.name)
    try:
        copied = copy.make(source, crew)
    except BaseException as error:
        is_gone = copy.remove_if_unused()
        log(f"{copy.path} is {'removed' if is_gone else 'left to other jobs'}")
        if isinstance(error, OSError):
            raise StageError(EXIT_CANNOT_WRITE, f"cannot copy the model: {error}") from error
        raise
    total = sum(file.size for file in source.files)
    took = time.monotonic() - began
    log(f"the model is in {copy.path}: {size_text(total)}, of which {size_text(copied)} copied; {took:.1f} s")
    return copy


def run(argv: "List[str]") -> int:
    """Run the engine to its end and return its exit status, negative for a signal.

    Raises:
        StageError: it cannot be executed.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork

    def enter() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os.kill(os.getpid(), signal.SIGKILL)

    # The supervisor signals the whole process group: the engine decides when it is over.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    try:
        return subprocess.Popen(argv, preexec_fn=enter).wait()
    except OSError as error:
        raise StageError(EXIT_EXEC_FAILED, f"cannot execute {argv[0]!r}: {error.strerror}") from error


def stopped(number: int, _frame: object) -> None:
    """Answer a signal while the model is staged."""
    raise StoppedError(number)


def main(words: "List[str]") -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--to", required=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--revision", default="main")
    parser.add_argument("source")
    options = parser.parse_args(words[: words.index("--")])
    argv = words[words.index("--") + 1 :]
    os.umask(0o077)
    for number in STOP_SIGNALS:
        signal.signal(number, stopped)
    try:
        copy = stage(Source(options.source, options.revision), Shelf(options.to))
        try:
            code = run([word.replace(PLACEHOLDER, copy.path) for word in argv])
        finally:
            if options.keep:
                copy.release()
            else:
                copy.remove_if_unused()
    except StageError as error:
        log(str(error))
        return error.status
    except StoppedError as error:
        return 128 + error.number
    if code < 0:
        # So that the supervisor tells how the engine itself ended.
        if -code in STOP_SIGNALS:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
