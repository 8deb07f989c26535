"""Output folders with runs whose orchestrators are gone, on a Slurm of small programs."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.atomic import write_json
from orchestrator.ledger import Ledger
from orchestrator.recipe.load import escape_variables
from orchestrator.rundir import RunDir
from tests.builders import RUN_ID, PlannedRun, ProgramFolder, plan_run, recipe_document
from tests.orchestrator.transports.conftest import require_sshd
from tests.orchestrator.transports.sshd import SshServer

DAY_S = 86400.0
COMPLETED = ("run_started", ("run_finished", {"state": "completed", "kept": False}))
FAILED = ("run_started", ("run_finished", {"state": "failed", "kept": False}))


class Runs:
    """An output folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.output.mkdir()
        self.programs = ProgramFolder(folder / "bin")
        self.queue = folder / "queue"
        self.programs.add("squeue", f"cat {self.queue} 2>/dev/null || true")
        self.planned: dict[str, PlannedRun] = {}

    def add(self, name: str, *events: Any, days: float = 60, **job: Any) -> RunDir:
        """Make a run with these events in its ledger, last active so many days ago."""
        run = RunDir(self.output / f"{name}_{RUN_ID}")
        run.make()
        planned = plan_run(recipe_document("slurm", "vllm", **job), run.root)
        planned.plan.write()
        document = planned.resolved.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
        write_json(run.recipe, escape_variables(document))
        ledger = Ledger(run.events)
        for event in events:
            kind, data = event if isinstance(event, tuple) else (event, {})
            ledger.append(kind, **data)
        run.log("vllm", "41", "err").write_bytes(os.urandom(20_000))
        trial = run.trials / "job_1"
        for part in ("checkpoints", "logs"):
            (trial / part).mkdir(parents=True)
        (trial / "checkpoints" / "last.pt").write_bytes(os.urandom(50_000))
        (trial / "results.json").write_text("{}")
        run.api_token.write_text("canary-of-the-token")
        self.planned[name] = planned
        self.age(run, days)
        return run

    def submit(self, name: str, run: RunDir, answered: bool = True) -> str:
        """Record the submission of the run's server, and return its token."""
        job = self.planned[name].server
        Ledger(run.events).append("job_intent", token=job.token, planned=job.as_json("slurm"))
        if answered:
            Ledger(run.events).append("job_submitted", job=job.name, token=job.token, job_id="41")
        return job.token

    @staticmethod
    def age(run: RunDir, days: float) -> None:
        """Make a run look as if nothing had happened to it for so many days."""
        at = time.time() - days * DAY_S
        for path in (run.plan, run.events, run.summary):
            if path.exists():
                os.utime(path, (at, at))

    @property
    def names(self) -> set[str]:
        """What is in the output folder, without the run id."""
        return {path.name.removesuffix(f"_{RUN_ID}") for path in self.output.iterdir()}


def snapshot(top: Path) -> dict[str, Any]:
    """Return everything about a tree that a command could change, access times left out."""
    found = {}
    for path in sorted([top, *top.rglob("*")]):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        link = str(path.readlink()) if path.is_symlink() else ""
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_ino, data, link)
    return found


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Return an empty output folder."""
    made = Runs(tmp_path)
    monkeypatch.setenv("PATH", made.programs.path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return made


@pytest.fixture
def orch(runs: Runs) -> Callable[..., int]:
    """Run a command of orch.py on the output folder, and return its exit code."""
    from orchestrator.cli import main
    from orchestrator.compose import Parts

    parts = Parts(services_of=lambda _: ([], []), stages=(), make_metrics=lambda *_: None)  # type: ignore[arg-type]

    def run(*words: Any) -> int:
        return main([*map(str, words), "--output-dir", str(runs.output)], parts)

    return run


@pytest.fixture
def far(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """Return a real sshd that the site file describes as `far`; its base_dir is ``far`` in the test's folder."""
    require_sshd()
    sockets = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets))
    server = SshServer(runs.folder / "sshd", SetEnv=f"PATH={runs.programs.path} HOME={runs.folder}").start()
    site = {"hosts": {"far": far_host(server, runs.folder)}}
    (runs.folder / ".config" / "orch").mkdir(parents=True)
    write_json(runs.folder / ".config" / "orch" / "site.yaml", site)
    yield server
    server.kill()
    shutil.rmtree(sockets)


def far_host(server: SshServer, folder: Path) -> dict[str, Any]:
    """Return the description of the host."""
    return {
        "ssh": server.spec(reads_profile=False).model_dump(mode="json", exclude_none=True),
        "base_dir": str(folder / "far"),
        "scheduler": {"kind": "slurm"},
    }
