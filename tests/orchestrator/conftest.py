"""Real supervisors and the small programs that they supervise, for the tests of this folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
SUPERVISOR = Path(__file__).parents[2] / "orchestrator" / "supervisor.py"
TOKEN = "canary-5f1e0d"
PYTHON = (sys.executable, "-S", "-s")
# A compute node's system Python: point this at a 3.6 to run the supervisor and the local batch system under it.
NODE_PYTHON = (os.environ.get("ORCH_TEST_NODE_PYTHON", sys.executable), "-S", "-s")

SERVER = """
import json, os, signal, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        is_authorized = self.headers.get("Authorization") == "Bearer " + os.environ.get("VLLM_API_KEY", "")
        if self.path == "/v1/models" and not is_authorized:
            self.send_response(401)
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "m"}], "none": []}).encode())

    def log_message(self, *args):
        pass

if "ignore-term" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler)
print("listening", sys.argv[2:], flush=True)
server.serve_forever()
"""


def wait_for(look: Callable[[], T | None], within_s: float = 10.0) -> T:
    """Return the first answer of ``look`` that counts as true."""
    deadline = time.monotonic() + within_s
    while True:
        answer = look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"nothing within {within_s} s"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Tell whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


class SupervisedJob:
    """One supervisor in a run directory of its own, started as a job script starts it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.job_id = "77"
        self.config: dict[str, Any] = {
            "schema_version": 1,
            "run_id": "7f3a2b",
            "run_dir": str(run_dir),
            "token": "orch-7f3a2b-vllm",
            "service": "vllm",
            "kind": "service",
            "health": [{"path": "/health", "auth": False, "nonempty": None}],
            "health_interval_s": 0.05,
            "startup_timeout_s": 20.0,
            "heartbeat_s": 0.2,
            "lease_check_s": 0.2,
            "stop_grace_s": 5.0,
        }
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PBS_"))}
        self.process: subprocess.Popen[bytes] | None = None
        for folder in ("scripts", "secrets"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        self.token_file = run_dir / "secrets" / "api_token"
        self.token_file.write_text(TOKEN + "\n")
        self.batch_log = run_dir / "vllm.batch"

    @property
    def server(self) -> list[str]:
        """The argv of a server that becomes healthy at once."""
        return [*PYTHON, str(self.program("server.py", SERVER)), "@BIND@", "@PORT@"]

    def program(self, name: str, text: str) -> Path:
        """Write a Python program beside the run and return its path."""
        path = self.run_dir / "scripts" / name
        path.write_text(text)
        return path

    def task(self, text: str, *arguments: str) -> list[str]:
        """Make the job a task, and return the argv of a Python program."""
        self.config["kind"] = "task"
        return [*PYTHON, str(self.program("task.py", text)), *arguments]

    def start(self, argv: list[str], **config: Any) -> SupervisedJob:
        """Start the supervisor in a session of its own."""
        self.config.update(config)
        path = self.run_dir / "scripts" / "vllm.json"
        path.write_text(json.dumps(self.config))
        with self.batch_log.open("ab") as log:
            self.process = subprocess.Popen(
                [*NODE_PYTHON, str(SUPERVISOR), str(path), "--", *argv],
                env={"ORCH_JOB_ID": self.job_id, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def send(self, number: int) -> None:
        """Send the supervisor a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within_s: float = 15.0) -> int:
        """Return the supervisor's exit status."""
        assert self.process is not None
        return self.process.wait(within_s)

    def read(self, *parts: str) -> Any:
        """Return a JSON file of the run, None if there is none."""
        path = self.run_dir.joinpath(*parts)
        return json.loads(path.read_text()) if path.exists() else None

    @property
    def status(self) -> dict[str, Any]:
        """The status record."""
        return self.read("status", f"{self.config['token']}.json") or {"state": None}

    @property
    def endpoint(self) -> dict[str, Any]:
        """The endpoint record, empty if there is none."""
        return self.read("endpoints", "vllm.json") or {}

    @property
    def heartbeat(self) -> dict[str, Any]:
        """The heartbeat, empty if there is none."""
        return self.read("status", f"{self.config['token']}.heartbeat") or {}

    def targets(self, kind: str) -> list[dict[str, Any]]:
        """Return the published targets of one kind."""
        return self.read("prometheus_assets", f"{kind}_targets_{self.job_id}.json") or []

    def wait_for_state(self, state: str, within_s: float = 10.0) -> dict[str, Any]:
        """Return the status record once it shows a state."""
        return wait_for(lambda: self.status if self.status["state"] == state else None, within_s)

    def wait_for_pid(self, name: str) -> int:
        """Return the pid that a supervised program has written to a file of the run."""
        path = self.run_dir / name
        return int(wait_for(lambda: path.read_text().strip() if path.exists() else None))

    def child_pid(self) -> int:
        """Return the pid of the supervisor's first child."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(wait_for(lambda: path.read_text().split())[0])

    def log(self, stream: str = "out", name: str = "vllm") -> str:
        """Return what a program has written so far."""
        path = self.run_dir / "logs" / f"{name}_{self.job_id}.{stream}"
        return path.read_text() if path.exists() else ""

    def records_left(self) -> list[str]:
        """Return the endpoint records and target files that are there."""
        folders = (self.run_dir / "endpoints", self.run_dir / "prometheus_assets")
        return [entry.name for folder in folders if folder.exists() for entry in folder.iterdir()]

    def close(self) -> None:
        """End the supervisor and whatever it left behind in its session."""
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def new_job(tmp_path: Path) -> Iterator[Callable[..., SupervisedJob]]:
    """Return a maker of jobs; two of the same name share a run directory."""
    jobs: list[SupervisedJob] = []

    def make(name: str = "run") -> SupervisedJob:
        jobs.append(SupervisedJob(tmp_path / name))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


@pytest.fixture
def job(new_job: Callable[..., SupervisedJob]) -> SupervisedJob:
    """Return a job that is not started yet."""
    return new_job()
