"""Images are made under another name beside their place, verified, and then renamed to it."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.atomic import make_private_dir
from orchestrator.containers.definition import Definition
from orchestrator.containers.lock import REMEDY, sole_maker
from orchestrator.containers.sif import ImageError, check_sif
from orchestrator.containers.store import IMAGE, MANIFEST, Manifest, Store, partial_of
from orchestrator.errors import ProgramMissingError, StorageError
from orchestrator.lease import Lease
from orchestrator.models.manifest import digest
from orchestrator.models.meter import Meter
from orchestrator.recipe.container import Container
from orchestrator.space.removal import delete_folder, replace_folder
from orchestrator.space.wording import size_text

POLL_S = 0.2
_FULL = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_LAST_LINES = 15


@dataclass(frozen=True)
class Runtime:
    """The program that makes and runs images.

    Attributes:
        program: Its name or path.
    """

    program: str

    @property
    def prefix(self) -> str:
        """What its own variables begin with; only Apptainer knows both spellings."""
        return "SINGULARITY" if Path(self.program).name == "singularity" else "APPTAINER"

    def check(self) -> None:
        """Look whether it can be run here.

        Raises:
            ProgramMissingError: it cannot.
        """
        if shutil.which(self.program) is None:
            what = "neither apptainer nor singularity is" if self.program == "apptainer" else f"'{self.program}' is not"
            raise ProgramMissingError(
                f"{what} on PATH here.\n"
                "Load its module first (`module load Apptainer`), name it in container.runtime, or install Apptainer, "
                "which takes no root: https://apptainer.org/docs/admin/latest/installation.html"
            )


def runtime_of(container: Container) -> Runtime:
    """Return the runtime that a recipe or site names, or else the one that is on PATH here."""
    has_only_singularity = shutil.which("apptainer") is None and shutil.which("singularity") is not None
    return Runtime(container.runtime or ("singularity" if has_only_singularity else "apptainer"))


def fetch(
    definition: Definition,
    store: Store,
    container: Container,
    tell: Callable[[str], None],
    meter: Meter,
    is_forced: bool = False,
) -> Path:
    """Return the image file of ``definition``, made if it is not there; however many want it, one makes it.

    Args:
        definition: What is wanted.
        store: Where.
        container: Names runtime, registry and index.
        tell: Told what takes time, in words.
        meter: Shows how far the checksum is.
        is_forced: Make it again if it is there.

    Raises:
        ProgramMissingError: there is no runtime.
        ImageError: it could not be made, or is not what it should be.
        StorageError: there is no room for it.
    """
    entry = store.entry(definition)
    if store.has(definition) and not is_forced:
        return entry.image  # also where the store is not ours to write
    runtime = runtime_of(container)
    runtime.check()
    with sole_maker(entry.folder, tell) as lease:
        if is_forced or not store.has(definition):
            source = _source(definition, container)
            tell(f"{'building' if definition.is_built else 'pulling'} {definition.folder} from {source}")
            argv = _build(definition, container) if definition.is_built else _pull(source)
            _Making(definition, runtime, entry.folder, source, lease).make(argv, meter)
    return entry.image


def _source(definition: Definition, container: Container) -> str:
    return f"{container.registry or definition.registry}/{definition.base}"


def _pull(source: str) -> list[str]:
    return ["build", IMAGE, source] if source.startswith("/") else ["pull", IMAGE, f"docker://{source}"]


def _build(definition: Definition, container: Container) -> list[str]:
    bootstrap = "localimage" if (container.registry or "").startswith("/") else None
    given = {"REGISTRY": container.registry, "BOOTSTRAP": bootstrap, "INDEX": container.index}
    arguments = [f"--build-arg={name}={value}" for name, value in given.items() if value is not None]
    return ["build", *arguments, IMAGE, str(definition.path)]


class _Making:
    """One image that is being made."""

    def __init__(self, definition: Definition, runtime: Runtime, folder: Path, source: str, lease: Lease) -> None:
        self._definition, self._runtime, self._source, self._lease = definition, runtime, source, lease
        self._folder, self._partial = folder, partial_of(folder)

    def make(self, argv: Sequence[str], meter: Meter) -> None:
        """Run the runtime, verify what it made, and put it in its place; nothing is left of what failed."""
        try:
            if self._partial.exists():  # of a maker that was killed
                delete_folder(self._partial)
            make_private_dir(self._partial / "tmp")
            self._run(argv)
            manifest = self._verified(meter)
            delete_folder(self._partial / "tmp")
            manifest.write(self._partial / MANIFEST)
            self._lease.verify()
            replace_folder(self._folder, self._partial)
        except StorageError as error:
            raise StorageError(error.path, self._with_sizes(error.error), REMEDY) from error
        except OSError as error:
            raise StorageError(self._partial, self._with_sizes(error), REMEDY) from error
        finally:
            if self._partial.exists():
                delete_folder(self._partial)

    def _run(self, argv: Sequence[str]) -> None:
        """Run the runtime inside the partial folder.

        Raises:
            ImageError: it failed.
            OSError: there is no room.
        """
        command = [self._runtime.program, *argv]
        # In memory: what is said of a full disk must not need room on it.
        with os.fdopen(os.memfd_create("orch-runtime"), "w+b") as log:
            process = subprocess.Popen(
                command,
                cwd=self._partial,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C on the terminal is for orch alone, which ends the whole group.
                start_new_session=True,
                # Should it outlive this process, nobody makes the image beside it.
                pass_fds=() if self._lease.descriptor is None else (self._lease.descriptor,),
            )
            try:
                while process.poll() is None:
                    self._lease.renew()
                    time.sleep(POLL_S)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):  # it ended by itself
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            log.seek(0)
            said = log.read().decode(errors="replace")
        if process.returncode == 0:
            return
        if full := _FULL.search(said):
            raise OSError(errno.EDQUOT if "quota" in full[0].lower() else errno.ENOSPC, full[0].capitalize())
        how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise ImageError(
            f"{self._definition.folder} could not be made ({how}): {shlex.join(command)}\n"
            + "\n".join(said.splitlines()[-_LAST_LINES:])
            + "\nWhere no registry is reached, name the site's mirror in container.registry (docs/containers.md)."
        )

    def _environment(self) -> Mapping[str, str]:
        """Return the runtime's environment; what the user has set for it holds."""
        prefix = self._runtime.prefix
        # Temporary files go where the next maker sweeps, and nothing into the home, where quotas are small.
        own = {f"{prefix}_TMPDIR": str(self._partial / "tmp"), f"{prefix}_DISABLE_CACHE": "1"}
        if f"{prefix}_CACHEDIR" in os.environ:
            own.pop(f"{prefix}_DISABLE_CACHE")
        return {**own, **os.environ}

    def _verified(self, meter: Meter) -> Manifest:
        """Return the manifest of the image that was made.

        Raises:
            ImageError: it is no image, or the runtime cannot read it.
            OSError: it cannot be read.
        """
        image = self._partial / IMAGE
        size = check_sif(image)
        self._ask("inspect", str(image))
        with meter(f"{self._definition.folder}: checksum", size) as step:
            sha256 = digest(image, "sha256", b"", step)
        now = time.time()
        name, version = self._definition.name, self._definition.version
        return Manifest(name, version, self._source, self._ask("--version"), size, sha256, now, now)

    def _ask(self, *words: str) -> str:
        argv = [self._runtime.program, *words]
        answer = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
        if answer.returncode != 0:
            raise ImageError(f"{shlex.join(argv)} failed:\n{answer.stderr.strip()[-2000:]}")
        return answer.stdout.strip()

    def _with_sizes(self, error: OSError) -> OSError:
        """Return a lack of room with what was written and what is free; another error as it is."""
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            return error
        written = sum(path.lstat().st_size for path in self._partial.rglob("*"))
        free = shutil.disk_usage(self._folder.parent).free
        return OSError(
            error.errno, f"{error.strerror}: {size_text(written)} were written, and {size_text(free)} are free"
        )
