"""Wheels for a machine without the network: collected here, sent there."""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from orchestrator.environment.failure import checked
from orchestrator.environment.interpreter import Interpreter
from orchestrator.environment.roles import Chosen
from orchestrator.errors import UserError
from orchestrator.space.sending import COPY_TIMEOUT_S
from orchestrator.space.wording import size_text
from orchestrator.transports import LocalTransport, Transfer, TransferOptions, Transport

_ASK_S = 300.0
_DOWNLOAD_S = 4 * 3600.0
_OFFLINE = ("--no-index",)


def download_commands(folder: Path, python: Interpreter, chosen: Chosen, lists: Path) -> list[list[str]]:
    """Return the commands that collect the wheels in ``folder``.

    What is locked needs no resolver. Own requirements are resolved by pip here, which evaluates markers on the version
    of Python for this interpreter, not for ``python`` (pip download --help, --python-version).

    Args:
        folder: Of the wheels.
        python: What they are for.
        chosen: The packages.
        lists: Folder of the two files that write_lists wrote.
    """
    fit = [
        "--only-binary=:all:",
        "--implementation",
        "cp",
        "--python-version",
        f"{python.version[0]}.{python.version[1]}",
    ]
    for tag in python.platforms():
        fit += ["--platform", tag]
    common = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--progress-bar", "off"]
    common += ["--dest", str(folder), "--find-links", str(folder), *fit]
    locked, loose = str(lists / "locked.txt"), str(lists / "own.txt")
    commands = [[*common, "--no-deps", "--requirement", locked]] if chosen.locked else []
    return [*commands, *([[*common, "--requirement", loose, "--constraint", locked]] if chosen.loose else [])]


def locked_text(chosen: Chosen) -> str:
    """Return the locked packages as a requirements file."""
    return "".join(f"{package}\n" for package in chosen.locked)


def own_text(chosen: Chosen) -> str:
    """Return what the installer resolves as a requirements file."""
    return "".join(f"{text}\n" for text in chosen.loose)


def space_problem(folder: Path, need_bytes: int) -> str:
    """Return in words that wheels of ``need_bytes`` do not fit where ``folder`` is or will be; empty if they do."""
    there = sum(path.stat().st_size for path in folder.glob("*.whl"))
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(nearest).free
    if need_bytes <= free + there:
        return ""
    return f"{size_text(need_bytes - there)} needed here for wheels; {size_text(free)} free in {nearest}"


def collect(folder: Path, python: Interpreter, chosen: Chosen) -> int:
    """Collect the wheels in ``folder`` and return how many of them were not there before.

    The index is asked only if something is missing.

    Raises:
        UserError: there can be none.
        MakingError: pip failed.
    """
    if python.glibc is None:
        raise UserError(f"{python.executable} runs on no glibc: wheels from here do not fit.\nMake them there.")
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("*.whl"))
    cut = sorted(path.name for path in before if not zipfile.is_zipfile(path))
    if cut:
        raise UserError(f"{folder}: {', '.join(cut)}: cut off, or no wheel.\nDelete it; it will be collected anew.")
    try:
        _download(folder, python, chosen)
    finally:
        # A copy that was interrupted has its final name already.
        for path in set(folder.glob("*.whl")) - before:
            if not zipfile.is_zipfile(path):
                path.unlink()
    return len(set(folder.glob("*.whl")) - before)


def _download(folder: Path, python: Interpreter, chosen: Chosen) -> None:
    with tempfile.TemporaryDirectory(prefix="orch-env-") as name:
        lists = Path(name)
        (lists / "locked.txt").write_text(locked_text(chosen))
        (lists / "own.txt").write_text(own_text(chosen))
        here = LocalTransport()
        for command in download_commands(folder.absolute(), python, chosen, lists):
            if here.run([*command, *_OFFLINE], _ASK_S).returncode == 0:
                continue
            checked(here.run(command, _DOWNLOAD_S), short(command), "wheels were not collected", here.host)


def short(command: Sequence[str]) -> list[str]:
    """Return a command for people: of its platforms, of which there are dozens, only the first."""
    places = [index for index, word in enumerate(command) if word == "--platform"][1:]
    return [word for index, word in enumerate(command) if not {index, index - 1} & set(places)]


def send(folder: Path, transport: Transport, target: str) -> Transfer:
    """Send wheels that are not there yet.

    Raises:
        TransportError: they were not sent; what was stays.
    """
    options = TransferOptions(is_checksummed=False, timeout_s=COPY_TIMEOUT_S)
    return transport.push(folder.absolute(), target, options)
