"""Real brokers of steps, and the command line that speaks with them, for the tests of this folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.orchestrator.conftest import NODE_PYTHON, SUPERVISOR, wait_for

PROGRAM = SUPERVISOR.parent / "schedulers" / "steps.py"
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "LOST"}


class Allocation:
    """A spool, the brokers that serve it, and steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spool = folder / "it's a spool"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PBS_"))}
        self.brokers: list[subprocess.Popen[bytes]] = []
        self._n_scripts = 0

    def serve(self, *groups: dict[str, Any], launcher: str = "here", **config: Any) -> subprocess.Popen[bytes]:
        """Start a broker and wait until it serves; port 0 is one that is free."""
        broker = self.start_broker(*groups, launcher=launcher, **config)
        wait_for(lambda: self.read("broker.json").get("pid") == broker.pid or broker.poll() is not None)
        assert broker.poll() is None, self.broker_log
        return broker

    def add_program(self, name: str, text: str) -> None:
        """Put a program on the PATH of brokers."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o700)
        self.env["PATH"] = f"{folder}{os.pathsep}{self.env['PATH']}"

    def start_broker(self, *groups: dict[str, Any], launcher: str = "here", **config: Any) -> subprocess.Popen[bytes]:
        """Start a broker."""
        path = self.folder / f"config{len(self.brokers)}.json"
        options = {name: config.pop(name) for name in ("port", "grace_s", "outer_pid") if name in config}
        path.write_text(json.dumps({"launcher": launcher, "groups": groups, "env": {}, **config}))
        argv = [*NODE_PYTHON, str(PROGRAM), "serve", "--dir", str(self.spool), "--config", str(path)]
        argv += ["--port", str(options.get("port", 0)), "--grace-s", str(options.get("grace_s", 5))]
        if "outer_pid" in options:
            argv += ["--outer-pid", str(options["outer_pid"])]
        with (self.folder / "broker.log").open("ab") as log:
            broker = subprocess.Popen(
                argv, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.brokers.append(broker)
        return broker

    @property
    def broker_log(self) -> str:
        """What brokers have said."""
        return (self.folder / "broker.log").read_text()

    def read(self, name: str) -> dict[str, Any]:
        """Return a file of the spool, empty if there is none."""
        path = self.spool / name
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def beat(self, age_s: float) -> None:
        """Make the broker's start and its last sign of life so old."""
        at = time.time() - age_s
        (self.spool / "broker.json").write_text(json.dumps({**self.read("broker.json"), "started_at": at}))
        path = self.spool / "broker.heartbeat"
        path.write_text(json.dumps({**self.read("broker.heartbeat"), "at": at}))
        os.utime(path, (at, at))

    def run(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        argv = [*NODE_PYTHON, str(PROGRAM), command, "--dir", str(self.spool), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, env=self.env)

    def script(self, text: str) -> str:
        """Return the path of a new script."""
        self._n_scripts += 1
        path = self.folder / f"job's script {self._n_scripts}.sh"
        path.write_text(f"#!/bin/bash\n{text}\n")
        return str(path)

    def submit_argv(self, name: str, text: str, *options: str) -> list[str]:
        """Return the words that ask for a step."""
        stdout = str(self.folder / f"{name}.out")
        group = [] if "--group" in options else ["--group", "all"]
        return ["submit", "--name", name, "--stdout", stdout, *group, *options, self.script(text)]

    def submit(self, name: str, text: str, *options: str) -> str:
        """Ask for a step and return its id."""
        command, *words = self.submit_argv(name, text, *options)
        done = self.run(command, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def output(self, name: str) -> str:
        """Return what a step has written so far."""
        path = self.folder / f"{name}.out"
        return path.read_text() if path.exists() else ""

    def wait_output(self, name: str) -> str:
        """Return what a step has written, as soon as it has."""
        return wait_for(lambda: self.output(name))

    def steps(self) -> dict[str, dict[str, Any]]:
        """Return the lines of status by name."""
        done = self.run("status")
        assert done.returncode == 0, done.stderr
        return {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}

    def states(self) -> dict[str, str]:
        """Return the states by name."""
        return {name: line["state"] for name, line in self.steps().items()}

    def wait(self, **states: str) -> dict[str, dict[str, Any]]:
        """Return the lines of status, once the named steps have the given states."""
        found: dict[str, dict[str, Any]] = {}

        def look() -> bool:
            found.update(self.steps())
            return {name: found[name]["state"] for name in states} == states

        deadline = time.monotonic() + 30
        while not look():
            assert time.monotonic() < deadline, (states, found, self.broker_log)
            time.sleep(0.1)
        return found

    def cancel(self, *names: str) -> None:
        """Cancel steps by name."""
        steps = self.steps()
        assert self.run("cancel", *(steps[name]["id"] for name in names)).returncode == 0

    def pid(self, name: str) -> int:
        """Return the pid that a step has written to a file of the folder."""
        path = self.folder / name
        return int(wait_for(lambda: path.read_text().strip() if path.exists() else None))

    def close(self) -> None:
        """End the brokers with all that they started."""
        for broker in self.brokers:
            broker.terminate()
        for broker in self.brokers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                broker.wait(15)
            broker.kill()
            broker.wait()
        for path in self.spool.glob("*.pid.json"):
            process = json.loads(path.read_text())
            with contextlib.suppress(OSError):
                if (
                    int(Path(f"/proc/{process['pid']}/stat").read_text().rpartition(")")[2].split()[19])
                    == process["start"]
                ):
                    os.killpg(process["pid"], signal.SIGKILL)
