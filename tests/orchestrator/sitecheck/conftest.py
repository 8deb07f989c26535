"""A place under check: this machine, with whatever a test puts on PATH or into the home directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.recipe.hosts import HERE, Centre
from orchestrator.recipe.infrastructure import Environment
from orchestrator.sitecheck.packages import Packages
from orchestrator.sitecheck.visit import Options, Visit
from orchestrator.transports import LocalTransport
from tests.contract.recordings import PBS, slurm

MakeVisit = Callable[..., Visit]
Shim = Callable[[str, str], Path]


@pytest.fixture
def make_visit(tmp_path: Path) -> MakeVisit:
    """Make a visit to this machine."""

    def make(
        centre: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        packages: Packages | None = None,
        **options: Any,
    ) -> Visit:
        known = Centre.model_validate(centre or {})
        environment: Environment = known.environment
        return Visit(
            name=HERE,
            centre=known,
            transport=LocalTransport(),
            environment=environment.model_copy(update={"python": environment.python or sys.executable}),
            folder=str(folder or tmp_path / "runs"),
            token="orch-check-0a1b2c3d",
            packages=packages or Packages(client=("flask",), trainer=("torch",)),
            options=Options(**options),
        )

    return make


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shim:
    """Put a program in front of PATH."""
    folder = tmp_path / "shims"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        return path

    return put


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without start-up files: those of whoever runs the tests may be slow."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def no_batch_system(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH without sbatch and qsub, at login too; return its folder."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for path in [*Path("/usr/bin").iterdir(), *Path("/bin").iterdir()]:
        if path.name not in {"sbatch", "qsub"} and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    monkeypatch.setenv("PATH", str(folder))
    (home / ".bash_profile").write_text(f"PATH={folder}\n")
    return folder


@pytest.fixture
def slurm_answers(shim: Shim, tmp_path: Path) -> None:
    """Slurm's programs as a real 22.05 answered."""
    (tmp_path / "limits").write_text(slurm("sinfo_limits").stdout)
    shim("sbatch", "echo slurm-wlm 22.05.8")
    shim("squeue", "exit 0")
    full = f"cat {tmp_path}/limits"
    shim("sinfo", f"case $* in *--exact*) {full};; *) {full} | awk -F'|' '{{ print $1 \"|\" $8 }}';; esac")


def recorded(name: str) -> str:
    return str(json.loads((PBS / f"{name}.json").read_text())["stdout"])


@pytest.fixture
def pbs_answers(shim: Shim, tmp_path: Path) -> None:
    """PBS's programs as a real OpenPBS 23.06 answered."""
    for name in ("history.qstat-queues", "history.pbsnodes", "history.qstat-all"):
        (tmp_path / name).write_text(recorded(name))
    shim("pbsnodes", f"cat {tmp_path}/history.pbsnodes")
    shim(
        "qstat",
        f"case $* in --version) echo pbs_version = 23.06.06;; -Q*) cat {tmp_path}/history.qstat-queues;; "
        f"*) cat {tmp_path}/history.qstat-all;; esac",
    )
