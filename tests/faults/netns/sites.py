"""Clusters whose hosts are network namespaces: each has its address, its name and a link that can be taken down.

A site is a login host and its nodes on a bridge of their own, in 10.77.0.0/24; two sites use the same addresses and
share nothing. From outside only the login host is reached, over a link of its own, as from a laptop. All hosts share
the machine's processes and its disk: a node that is cut off still sees the site's file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.transports.ssh import SshSpec
from tests.faults.slurm.fault_cluster import SETTINGS, FaultCluster, wait_until
from tests.faults.slurm.fault_cluster import why_not as why_no_slurm
from tests.orchestrator.transports.sshd import SSHD, SshServer, server_environment

NEEDED = ("ip", "nsenter", "unshare", "mount", "hostname", "sshd")
LOGIN_ADDRESS = "10.77.0.11"
FIRST_NODE = 12
SERVING = frozenset({"idle", "mixed", "allocated", "completing"})
# What a host's program is started with: its name and its hosts file are its own, /sys stays the machine's.
ENTER = 'hostname "$1" && mount --bind "$2" /etc/hosts && shift 2 && exec "$@"'
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def why_not() -> str:
    """Return why no hosts can be made of network namespaces here, empty if they can."""
    if os.getuid() != 0:
        return "only root may make network namespaces"
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: iproute2 util-linux hostname openssh-server)"
    if problem := why_no_slurm():
        return problem
    name = f"orchtry{os.getpid()}"
    try:
        for words in (["netns", "add", name], ["-n", name, "link", "add", "sw", "type", "bridge"]):
            done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
            if done.returncode != 0:
                return f"`ip {' '.join(words)}` failed: {done.stderr.strip()}"
        enter = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "--mount", "true"]
        done = subprocess.run(enter, capture_output=True, text=True, timeout=20, check=False)
        return "" if done.returncode == 0 else f"`unshare --uts --mount` failed: {done.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, timeout=20, check=False)


def ip(*words: str) -> str:
    """Run ip(8), which must succeed; return what it printed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
    return done.stdout


def free_link() -> str:
    """Return the first three numbers of a small network that this machine has no address in."""
    taken = ip("-4", "-o", "address", "show")
    return next(net for net in (f"10.78.{random.randrange(256)}" for _ in range(1000)) if f"{net}." not in taken)


class Site(FaultCluster):
    """One cluster: the login host with slurmctld and sshd, and its nodes with a slurmd each."""

    def __init__(self, folder: Path, name: str, nodes: dict[str, int]) -> None:
        """Nothing is made yet.

        Args:
            folder: Gets all files of the site; its path is short, for the sake of sockets.
            name: One letter, in the names of its hosts and of its link.
            nodes: Each node's CPUs; the first is filled first.
        """
        super().__init__(folder)
        self.name, self.nodes, self.login = name, nodes, f"{name}-login"
        self.addresses = {self.login: LOGIN_ADDRESS}
        self.addresses |= {node: f"10.77.0.{FIRST_NODE + at}" for at, node in enumerate(nodes)}
        self._prefix = f"orch{os.getpid()}-"
        self._switch = f"{self._prefix}{name}-switch"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._laptop, self._outside = "", ""

    def namespace(self, host: str) -> str:
        """Return the name of a host's network namespace."""
        return f"{self._prefix}{host}"

    def up(self) -> None:
        """Make the hosts and start everything."""
        for part in ("state", "spool", "log", "munge"):
            (self.folder / part).mkdir(parents=True, mode=0o755)
        self._wire()
        lines = ["127.0.0.1 localhost", *(f"{address} {host}" for host, address in self.addresses.items())]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n")
        self.conf.write_text(self._slurm_conf())
        (self.folder / "munge" / "key").touch(0o600)
        (self.folder / "munge" / "key").write_bytes(os.urandom(128))
        for daemon in ("munged", "slurmctld", *self.nodes, "sshd"):
            self.start(daemon)
        wait_until(lambda: self._serving() == set(self.nodes), f"the nodes of {self.name}: {self.said()}")

    def _wire(self) -> None:
        """Make a bridge, and a host with a link to it for each name; the login host is linked to this machine too."""
        ip("netns", "add", self._switch)
        ip("-n", self._switch, "link", "add", "sw", "type", "bridge")
        ip("-n", self._switch, "link", "set", "sw", "up")
        for host, address in self.addresses.items():
            space = self.namespace(host)
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", self._switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", self._switch, "link", "set", host, "master", "sw", "up")
            ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
        net, space = free_link(), self.namespace(self.login)
        device = f"o{os.getpid()}{self.name}"
        self._laptop, self._outside = f"{net}.1", f"{net}.2"
        ip("link", "add", device, "type", "veth", "peer", "name", "eth1", "netns", space)
        ip("address", "add", f"{self._laptop}/30", "dev", device)
        ip("link", "set", device, "up")
        ip("-n", space, "address", "add", f"{self._outside}/30", "dev", "eth1")
        ip("-n", space, "link", "set", "eth1", "up")

    def _slurm_conf(self) -> str:
        settings = {
            **SETTINGS,
            "ClusterName": f"orch{self.name}",
            "SlurmctldHost": f"{self.login}({LOGIN_ADDRESS})",
            "SlurmUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge/socket,cred_expire=5",
            "CredType": "cred/munge",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "MpiDefault": "none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "DefMemPerCPU": "1000",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": "2",
            "SchedulerParameters": "bf_interval=5",
            "JobCompLoc": str(self.ended),
            "StateSaveLocation": f"{self.folder}/state",
            "SlurmdSpoolDir": f"{self.folder}/spool/%n",
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/slurmd-%n.pid",
            "SlurmctldLogFile": f"{self.folder}/log/slurmctld",
            "SlurmdLogFile": f"{self.folder}/log/%n",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        for at, (node, cpus) in enumerate(self.nodes.items()):
            lines.append(f"NodeName={node} NodeAddr={self.addresses[node]} CPUs={cpus} RealMemory=8000 Weight={at + 1}")
        lines.append(f"PartitionName=cpu Nodes={','.join(self.nodes)} Default=YES MaxTime=30 DefaultTime=30")
        return "\n".join(lines) + "\n"

    def on(self, host: str, *argv: str) -> list[str]:
        """Return the command that runs ``argv`` on a host."""
        enter = ["nsenter", f"--net=/run/netns/{self.namespace(host)}", "unshare", "--uts", "--mount"]
        return [*enter, "sh", "-c", ENTER, "sh", host, str(self.folder / "hosts"), *argv]

    def _command(self, daemon: str) -> Sequence[str]:
        if daemon == "munged":
            munge = self.folder / "munge"
            files = [f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid"]
            files += [f"--seed-file={munge}/seed", f"--log-file={munge}/log"]
            return self.on(self.login, "munged", "--foreground", "--force", *files)
        if daemon == "slurmctld":
            return self.on(self.login, "slurmctld", "-D", "-f", str(self.conf))
        if daemon == "sshd":
            return self.on(self.login, SSHD, "-D", "-e", "-f", str(self._sshd_config()))
        return self.on(daemon, "slurmd", "-D", "-f", str(self.conf), "-N", daemon)

    def _sshd_config(self) -> Path:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        server = SshServer(
            self.folder / "sshd", Port="22", ListenAddress=self._outside, SetEnv=f"SLURM_CONF={self.conf}"
        )
        key = " ".join((server.folder / "host.pub").read_text().split()[:2])
        (server.folder / "known_hosts").write_text(f"{self._outside} {key}\n")
        return server.configure()

    def start(self, daemon: str) -> None:
        """Start a daemon, and wait until it answers where others need that."""
        with (self.folder / "log" / f"{daemon}.err").open("ab") as log:
            self._daemons[daemon] = subprocess.Popen(
                self._command(daemon),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(server_environment()),
                start_new_session=True,
                cwd="/",
            )
        looks = {"munged": (self.folder / "munge" / "socket").exists, "slurmctld": self.answers, "sshd": self.listens}
        if daemon in looks:
            wait_until(lambda: looks[daemon]() or self._has_ended(daemon), daemon)
        assert not self._has_ended(daemon), self.said()

    def _has_ended(self, daemon: str) -> bool:
        return self._daemons[daemon].poll() is not None

    def listens(self) -> bool:
        """Tell whether the login host takes connections from here."""
        try:
            socket.create_connection((self._outside, 22), 1).close()
        except OSError:
            return False
        return True

    def said(self) -> str:
        """Return the ends of all logs."""
        logs = [(path.name, path.read_text(errors="replace")) for path in sorted((self.folder / "log").glob("*"))]
        return "".join(f"--- {name}\n{text[-1500:]}\n" for name, text in logs if text)

    def spec(self) -> dict[str, object]:
        """Return how a recipe reaches it."""
        keys = self.folder / "sshd"
        spec = SshSpec.model_validate(
            {
                "host": self._outside,
                "identity_file": keys / "user",
                "known_hosts": keys / "known_hosts",
                "config_file": "/dev/null",
                "connect_timeout_s": 20,
                "retry_first_s": 0.2,
            }
        )
        document: dict[str, object] = json.loads(spec.model_dump_json(exclude_none=True))
        return document

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands on the login host."""
        env = {**server_environment(), "SLURM_CONF": str(self.conf)}
        return subprocess.run(
            self.on(self.login, *argv), env=env, capture_output=True, text=True, timeout=60, check=False
        )

    def node_state(self, node: str) -> str:
        """Return what Slurm says of a node: ``idle``, ``down*``."""
        return self.do("sinfo", "--noheader", f"--nodes={node}", "--format=%T").split()[0]

    def cut(self, node: str) -> None:
        """Take a node's link down: nothing reaches it or leaves it any more, and all its processes go on."""
        ip("-n", self._switch, "link", "set", node, "down")

    def mend(self, node: str) -> None:
        """Bring a node's link back."""
        ip("-n", self._switch, "link", "set", node, "up")

    def is_reached(self, node: str, port: int) -> bool:
        """Tell whether the login host reaches a port of a node."""
        probe = f"exec 3<>/dev/tcp/{self.addresses[node]}/{port}"
        return self.run("timeout", "2", "bash", "-c", probe).returncode == 0

    def pids(self, host: str) -> list[int]:
        """Return all processes of a host."""
        return [int(word) for word in ip("netns", "pids", self.namespace(host)).split()]

    def heal(self) -> None:
        """Bring all links back and wait until every node serves."""
        for node in self.nodes:
            self.mend(node)
        wait_until(self.answers, "slurmctld")
        wait_until(lambda: self._serving() == set(self.nodes), f"the nodes of {self.name}", 120)

    def _serving(self) -> set[str]:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%N %T").stdout.splitlines()
        return {line.split()[0] for line in states if line.split()[1] in SERVING}

    def down(self) -> None:
        """End every process of the site's hosts, and remove the hosts."""
        spaces = ip("netns", "list").split()
        hosts = [host for host in self.addresses if self.namespace(host) in spaces]
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 5
            while left := [pid for host in hosts for pid in self.pids(host)]:
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
                        os.kill(pid, number)
                self._reap()
                if time.monotonic() > deadline:
                    break
                time.sleep(0.2)
        self._reap()
        for space in (*(self.namespace(host) for host in hosts), self._switch):
            if space in spaces:
                ip("netns", "delete", space)

    def _reap(self) -> None:
        for process in self._daemons.values():
            process.poll()
