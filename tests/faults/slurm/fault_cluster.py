"""A private Slurm whose daemons may be stopped and killed: tests/cluster/up.sh as the caller's own, root or not."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from tests.life.conftest import PROJECT

SCRIPTS = PROJECT / "tests" / "cluster"
# A requeued job waits cred_expire seconds (slurm.conf(5), AuthInfo); the default is two minutes.
SETTINGS = {
    "ClusterName": "orchfaults",
    "MinJobAge": "5",
    "SlurmdTimeout": "10",
    "MessageTimeout": "5",
    "KillWait": "5",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "preempt_send_user_signal",
    "JobCompType": "jobcomp/filetxt",
}
LINES = (
    "PartitionName=urgent Nodes=cpu[1-3] PriorityTier=10 MaxTime=30 DefaultTime=30",
    "PartitionName=graced Nodes=cpu[1-3] PriorityTier=1 GraceTime=30 MaxTime=30 DefaultTime=30",
)
DAEMON_NEEDS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol")


def why_not() -> str:
    """Return why no fault cluster can be had on this machine, empty if one can."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [name for name in DAEMON_NEEDS if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(missing)} (Debian: slurm-wlm munge)" if missing else ""


def wait_until(look: Callable[[], object], what: str, within_s: float = 60.0) -> None:
    """Wait until ``look`` gives something true."""
    deadline = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < deadline, f"waited {within_s:.0f} s for {what}"
        time.sleep(0.1)


def free_ports(count: int) -> int:
    """Return the first of so many free ports in a row, below those that the kernel gives out by itself."""
    for first in random.sample(range(20_000, 32_000, count), 200):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            return first
    raise OSError("no free ports")


class FaultCluster:
    """Five nodes on this machine, in one folder, on ports of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.ended = folder / "ended"
        self._env = {
            **os.environ,
            "ORCH_CLUSTER_OWN": "1",
            "ORCH_CLUSTER_DIR": str(folder),
            "SLURM_CONF": str(self.conf),
        }

    def up(self) -> None:
        """Start everything."""
        auth = f"socket={self.folder}/munge/socket,cred_expire=5"
        settings = {**SETTINGS, "AuthInfo": auth, "JobCompLoc": str(self.ended)}
        options = ["--port", str(free_ports(6))]
        options += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        options += [word for line in LINES for word in ("--line", line)]
        self._script("up.sh", *options)

    def down(self) -> None:
        """End its jobs and exactly its daemons."""
        for name in ("slurmctld", "gpu1", "gpu2", "cpu1", "cpu2", "cpu3"):
            self.signal(name, signal.SIGCONT)
        self._script("down.sh")

    def _script(self, name: str, *arguments: str) -> None:
        argv = [str(SCRIPTS / name), *arguments]
        done = subprocess.run(argv, env=self._env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def pid(self, daemon: str) -> int | None:
        """Return the pid of a daemon (munged, slurmctld, a node's name), None if it is dead."""
        try:
            pid, ticks, _ = (self.folder / "pids" / daemon).read_text().split()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            return None
        return int(pid) if fields[0] not in "ZX" and fields[19] == ticks else None

    def signal(self, daemon: str, number: int) -> None:
        """Send a daemon a signal, if it lives."""
        pid = self.pid(daemon)
        if pid is not None:
            os.kill(pid, number)

    def kill(self, daemon: str) -> None:
        """Kill a daemon outright and wait until it is gone."""
        self.signal(daemon, signal.SIGKILL)
        wait_until(lambda: self.pid(daemon) is None, f"the end of {daemon}")

    def start(self, daemon: str) -> None:
        """Start a daemon again that was killed; for slurmctld, wait until it answers."""
        self._script("up.sh", "--start", daemon)
        if daemon == "slurmctld":
            wait_until(self.answers, "slurmctld")

    def answers(self) -> bool:
        """Tell whether the controller answers."""
        return self.run("squeue", "--noheader", "--format=%i").returncode == 0

    def heal(self) -> None:
        """Bring back whatever a test stopped or killed, and wait until every node serves."""
        for name in ("slurmctld", "gpu1", "gpu2", "cpu1", "cpu2", "cpu3"):
            self.signal(name, signal.SIGCONT)
            if self.pid(name) is None:
                self.start(name)
        wait_until(self.answers, "slurmctld")
        for node in self._nodes() - self._serving():
            # Drained by Slurm when a launch failed.
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        wait_until(lambda: self._nodes() == self._serving(), "the nodes")

    @staticmethod
    def _nodes() -> set[str]:
        return {"gpu1", "gpu2", "cpu1", "cpu2", "cpu3"}

    def _serving(self) -> set[str]:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").stdout.splitlines()
        return {line.split()[0] for line in states if line.split()[1] in {"idle", "mixed", "allocated", "completing"}}

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands."""
        return subprocess.run(argv, env=self._env, capture_output=True, text=True, timeout=60, check=False)

    def do(self, *argv: str) -> str:
        """Run one of Slurm's commands that must succeed; return what it printed."""
        done = self.run(*argv)
        assert done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout.strip()

    def queue(self) -> dict[str, tuple[str, str, str]]:
        """Return id → (state, node, name) of what is queued or runs."""
        text = self.do("squeue", "--noheader", "--format=%i|%T|%N|%j")
        rows = [line.split("|", 3) for line in text.splitlines()]
        return {job_id: (state, node, name) for job_id, state, node, name in rows}

    def known(self) -> set[str]:
        """Return the ids of all jobs that Slurm remembers."""
        return set(self.do("squeue", "--noheader", "--states=all", "--format=%i").split())

    def state(self, job_id: str) -> str:
        """Return the state of a job in the queue, empty if it is not there any more."""
        return self.queue().get(job_id, ("", "", ""))[0]

    def node(self, job_id: str) -> str:
        """Return the node of a job in the queue."""
        return self.queue().get(job_id, ("", "", ""))[1]

    def ended_ids(self) -> dict[str, set[str]]:
        """Return name → ids of all jobs that have ended, as Slurm wrote them down."""
        found: dict[str, set[str]] = defaultdict(set)
        text = self.ended.read_text() if self.ended.exists() else ""
        for job_id, name in re.findall(r"^JobId=(\d+) .*? Name=(\S+) ", text, re.MULTILINE):
            found[name].add(job_id)
        return found
