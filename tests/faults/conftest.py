"""Runs that are killed and resumed: stand-ins for server and trainer, everything of orch real."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import HPO, model_dir, processes_with, standin_python

__all__ = ["model_dir", "standin_python"]  # fixtures
PROJECT = Path(__file__).resolve().parents[2]
TRAINER = PROJECT / "tests" / "standin" / "trainer.py"
KILLABLE = Path(__file__).with_name("killable.py")
TRIALS = 3


class Scene:
    """One run's folder; the run is started, killed and resumed in it."""

    def __init__(self, folder: Path, recipe: dict[str, Any]) -> None:
        self.output_dir, self.starts, self.steps = folder / "output", folder / "starts", folder / "steps"
        self._recipe = folder / "recipe.json"
        self._recipe.write_text(json.dumps(recipe))
        self.said = ""

    def orch(self, *arguments: str, fatal: int | None = None, timeout_s: float = 120) -> int:
        """Run a command of orch.py, killed before step ``fatal`` where given; return its exit code."""
        program = [str(PROJECT / "orch.py")] if fatal is None else [str(KILLABLE), str(fatal)]
        env = {**os.environ, "ORCH_STEPS_FILE": str(self.steps), "XDG_CONFIG_HOME": str(self._recipe.parent)}
        argv = [sys.executable, *program, *arguments, "--output-dir", str(self.output_dir)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False, env=env)
        self.said = done.stderr
        return done.returncode

    def start(self, fatal: int | None = None) -> int:
        """Start the run; see orch."""
        return self.orch(str(self._recipe), fatal=fatal)

    def start_dry(self) -> int:
        """Only plan the run."""
        return self.orch(str(self._recipe), "--dry-run")

    def resume(self, fatal: int | None = None) -> int:
        """Resume the run; see orch."""
        return self.orch("resume", fatal=fatal)

    @property
    def run_dir(self) -> Path | None:
        """The run, if the orchestrator lived long enough to plan it."""
        found = [path.parent for path in self.output_dir.glob("*/plan.json") if path.parent.name != "latest"]
        return found[0] if found else None

    def summary(self) -> dict[str, Any]:
        assert self.run_dir is not None
        document: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return document

    def started(self) -> Counter[str]:
        """Return how often each trainer's ``--job_id`` was started, evaluations apart."""
        lines = self.starts.read_text().splitlines() if self.starts.exists() else []
        return Counter(lines)

    def left(self) -> list[int]:
        """Return the processes of the run that still live."""
        return processes_with(str(self.output_dir))


@pytest.fixture
def counting_python(tmp_path: Path) -> Path:
    """An interpreter that notes every trainer's start and gives the stand-in in its place."""
    script = tmp_path / "counting-python"
    starts = shlex.quote(str(tmp_path / "starts"))
    real = shlex.quote(sys.executable)
    script.write_text(
        "#!/bin/bash\n"
        "if [[ $1 == */trainer/train.py ]]; then\n"
        '  shift; name=trial; id=; for word in "$@"; do\n'
        "    [[ $previous == --job_id ]] && id=$word; [[ $word == --job_id=* ]] && id=${word#*=}\n"
        "    [[ $word == --evaluate_test* ]] && name=evaluation; previous=$word; done\n"
        f'  echo "$name $id" >>{starts}; exec {real} {shlex.quote(str(TRAINER))} "$@"\n'
        "fi\n"
        f'exec {real} "$@"\n'
    )
    script.chmod(0o700)
    return script


@pytest.fixture
def scene(tmp_path: Path, standin_python: Path, model_dir: Path, counting_python: Path) -> Iterator[Scene]:
    """Return a run that takes seconds; whatever is left of it at the end of the test is stopped."""
    recipe = {
        "job": {
            "name": "faults",
            "scheduler": {"kind": "local"},
            "service": {"model": str(model_dir), "n_clients": 2, "n_requests_per_client": 2, "startup_timeout_s": 60},
            "engine": {"kind": "vllm", "device": "cpu", "python": str(standin_python)},
            "environment": {"python": str(counting_python)},
            "benchmark": {"max_tokens": 4, "warmup_requests": 0},
            "monitoring": {"mode": "off"},
            "polling": {"scheduler_s": 0.5, "records_s": 0.1, "metrics_s": 0.5},
            "hpo": {**HPO, "trials": TRIALS, "parallel_trials": 1, "sampler": "random"},
        }
    }
    made = Scene(tmp_path, recipe)
    yield made
    if made.run_dir is not None:
        made.orch("stop")
    assert made.left() == []
