"""The steps of one allocation: a broker inside one batch job, and the commands that speak with it through files.

``python3 steps.py serve|submit|status|find|cancel --dir DIR …``

Standard library only, Python 3.6, one file: it runs on login nodes and on compute nodes. The folder DIR lies in the
run directory, on a file system that both see, and belongs to one allocation; a requeued allocation keeps it. In it:

- ``<id>.request.json``: what ``submit`` asks for; ids are ``<number>.<random>``, in the order of submission;
- ``<id>.cancel.json``: ``cancel`` wants it ended;
- ``<id>.step.json``: what the broker says of it: state, node, reason, and what its node has to know to start it;
- ``<id>.pid.json``, ``<id>.exit.json``: its process and its end, written on its node by ``attend``;
- ``broker.json``, ``broker.heartbeat``: who serves, with what, until when, and the last sign of life.

All of it is one folder on purpose: NFS shows a new name late, unless the folder was changed from the host that looks,
and the heartbeat changes it. Answers go to stdout (an id, or one JSON object a line), complaints to stderr.
"""

import argparse
import contextlib
import ctypes
import fcntl
import http.server
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

POLL_S = 0.2
HEARTBEAT_S = 2.0
QUIET_AFTER_S = 15.0
SILENT_AFTER_S = 90.0  # as truth.py looks for a job that nobody knows of
ALONE_AFTER_BEATS = 150
HELPER_TIMEOUT_S = 30.0
KILL_PATIENCE_S = 5.0
RETRY_S = 5.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
EXIT_REFUSED, EXIT_FENCED = 1, 75
LAUNCHERS = ("srun", "pbsdsh", "ssh", "here")
OPEN = ("PENDING", "RUNNING", "UNKNOWN")
# Devices of the broker's own job step, which are not those of the steps that srun starts.
_OWN_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")


class StepsError(Exception):
    """Something cannot be done; the words are for the user."""


class TornError(StepsError):
    """A file is there and does not hold what it should, and will not later either."""


def log(text: str) -> None:
    """Write a line to stderr, which may be a file on a full disk."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write("{} steps: {}\n".format(time.strftime("%Y-%m-%dT%H:%M:%S%z"), text))
        sys.stderr.flush()


def start_time(pid: int) -> "int | None":
    """Return when a living process started, in clock ticks since boot; None if there is none."""
    try:
        # The name in parentheses may itself hold spaces and parentheses (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def descendants(root: int) -> "set[int]":
    """Return the living processes below ``root``."""
    children: dict[int, list[int]] = {}
    for entry in [entry for entry in Path("/proc").iterdir() if entry.name.isdigit()]:
        try:
            state, parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[:2]
        except OSError:
            continue
        if state not in (b"Z", b"X"):
            children.setdefault(int(parent), []).append(int(entry.name))
    found: set[int] = set()
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found.update(below)
        queue.extend(below)
    return found


class Spool:
    """The folder of one allocation's steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self) -> None:
        """Make the folder, 0700."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StepsError(f"cannot make {self.folder}: {error.strerror}") from error

    def path(self, step_id: str, kind: str) -> Path:
        """Return the file of one kind of a step."""
        return self.folder / f"{step_id}.{kind}.json"

    def write(self, path: Path, document: "dict[str, Any]") -> None:
        """Replace a file as a whole, 0600.

        Raises:
            StepsError: no space, no quota, no permission; what was there before is kept.
        """
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(document, file)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise StepsError(f"cannot write {path}: {error.strerror}") from error

    def read(self, path: Path) -> "dict[str, Any] | None":
        """Return a file's object, or None if it is not there.

        Raises:
            StepsError: it is there and cannot be read now.
            TornError: it is no object.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StepsError(f"{path} cannot be read: {error}") from error
        except ValueError as error:
            raise TornError(f"{path} cannot be read: {error}") from error
        if not isinstance(document, dict):
            raise TornError(f"{path} is no JSON object")
        return document

    def ids(self, kind: str) -> "list[str]":
        """Return the ids of the steps with a file of one kind, in the order of submission."""
        ending = f".{kind}.json"
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        found = [name[: -len(ending)] for name in names if name.endswith(ending) and not name.startswith(".")]
        return sorted(found, key=lambda step_id: (number_of(step_id), step_id))

    def heartbeat(self) -> "tuple[str | None, float]":
        """Return which attempt of the broker gave the last sign of life, and when; None and 0 if there was none."""
        path = self.folder / "broker.heartbeat"
        document = self.read(path)
        if document is None:
            return None, 0.0
        with contextlib.suppress(OSError):
            return str(document.get("attempt")), max(float(document.get("at", 0)), path.stat().st_mtime)
        return None, 0.0

    @contextlib.contextmanager
    def locked(self) -> "Any":
        """Keep other submissions out."""
        path = self.folder / "lock"
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise StepsError(f"{path} cannot be locked: {error.strerror}") from error
            yield


def number_of(step_id: str) -> int:
    """Return the number that a step's id begins with."""
    number = step_id.partition(".")[0]
    return int(number) if number.isdigit() else 0


class Group(NamedTuple):
    """Nodes of one kind: how many, and what each has for steps; None is measured."""

    name: str
    nodes: int = 1
    cpus: "int | None" = None
    mem_mib: "int | None" = None
    gpus: "int | None" = None


class Life(NamedTuple):
    """Whether the broker serves: none (never began), alive, quiet, or over; and why, in words."""

    state: str
    words: str = ""
    attempt: "str | None" = None
    groups: "tuple[Group, ...]" = ()


def broker_life(spool: Spool) -> Life:
    """Return what the broker's files, and the record of its own supervisor, say of it, by this machine's clock."""
    broker = spool.read(spool.folder / "broker.json")
    if broker is None:
        return Life("none", "waits for the allocation to start")
    attempt = str(broker.get("attempt"))
    groups = tuple(Group(**group) for group in broker["groups"])
    if broker.get("ended_at"):
        return Life("over", f"the allocation's broker has ended: {broker.get('why')}", attempt, groups)
    outer = os.environ.get("ORCH_OUTER_SLURM_JOB_ID") or os.environ.get("ORCH_OUTER_PBS_JOBID")
    if broker.get("within") and outer and broker["within"] != outer:
        return Life("over", f"it was part of batch job {broker['within']}, and this is {outer}", attempt, groups)
    try:
        record = spool.read(Path(broker["record"])) if broker.get("record") else None
        beat_at = max(float(broker["started_at"]), spool.heartbeat()[1])
    except StepsError as error:
        return Life("quiet", str(error), attempt, groups)
    if record and record.get("state") == "finished" and float(record.get("finished_at") or 0) > broker["started_at"]:
        return Life("over", f"the allocation's broker has ended: {record.get('message')}", attempt, groups)
    silent_s = time.time() - beat_at
    words = f"the allocation's broker has been silent for {silent_s:.0f} s"
    if silent_s > SILENT_AFTER_S:
        return Life("over", words, attempt, groups)
    return Life("quiet" if silent_s > QUIET_AFTER_S else "alive", words, attempt, groups)


def describe(spool: Spool, step_id: str, life: Life) -> "dict[str, Any]":
    """Return a step's line in an answer.

    Raises:
        StepsError: not even its name can be read.
    """
    line: dict[str, Any] = {"id": step_id, "name": None, "state": "PENDING", "node": None, "reason": None}
    line["exit_code"] = None
    try:
        record = spool.read(spool.path(step_id, "step")) or {}
    except StepsError as error:
        name = (spool.read(spool.path(step_id, "request")) or {}).get("name")
        return dict(line, name=name, state="UNKNOWN", reason=str(error))
    # What the broker has read already is not read again: a file system of many users is asked for each.
    line.update((key, value) for key, value in record.items() if key in line)
    if line["name"] is None:
        line["name"] = (spool.read(spool.path(step_id, "request")) or {}).get("name")
    if line["state"] not in OPEN:
        return line
    if record.get("attempt"):
        if life.attempt != record["attempt"]:
            return dict(line, state="NODE_FAIL", reason="the allocation was started again after it had begun")
        if life.state == "over":
            return dict(line, state="LOST", reason=life.words)
        return dict(line, state="UNKNOWN", reason=life.words) if life.state == "quiet" else line
    if life.state == "alive":
        return dict(line, reason=line["reason"] or "waits for the allocation's broker")
    if spool.path(step_id, "cancel").exists():
        return dict(line, state="CANCELLED", reason="cancelled before it started")
    is_over = life.state == "over"
    return dict(line, reason=life.words + ("; it waits for a new start of the allocation" if is_over else ""))


def describe_all(spool: Spool) -> "list[dict[str, Any]]":
    """Return the lines of all steps; a request that cannot be read is complained about and left out."""
    life = broker_life(spool)
    lines = []
    for step_id in spool.ids("request"):
        try:
            lines.append(describe(spool, step_id, life))
        except StepsError as error:
            log(str(error))
    return lines


class Config(NamedTuple):
    """The broker's configuration.

    ``env`` is set for every step. ``record`` is the status record of the broker's own supervisor: once that says
    finished, the broker is dead, whatever its heartbeat.
    """

    launcher: str
    groups: "list[Group]"
    env: "dict[str, str]"
    record: "str | None" = None

    @classmethod
    def read(cls, path: Path) -> "Config":
        """Return the configuration in a file.

        Raises:
            StepsError: it is none.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            config = cls(**dict(raw, groups=[Group(**group) for group in raw["groups"]]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StepsError(f"{path} is no configuration of a broker: {error!r}") from error
        if config.launcher not in LAUNCHERS or not config.groups:
            is_now = f"launcher = {config.launcher!r}, {len(config.groups)} groups"
            raise StepsError(f"{path}: {is_now}. Allowed: {', '.join(LAUNCHERS)}; one group or more")
        return config


class Share:
    """One node's part of the allocation, and what of it is free: CPUs and GPUs by their position on the node."""

    def __init__(self, group: Group, host: str, index: int, number: int, offsets: "tuple[int, int]") -> None:
        self.group = group
        self.host = host
        self.index = index
        self.group_number = number
        self.cpus = [offsets[0] + at for at in range(group.cpus or 0)]
        self.gpus = [offsets[1] + at for at in range(group.gpus or 0)]
        self.mem_mib = sys.maxsize if group.mem_mib is None else group.mem_mib

    def has_room(self, request: "dict[str, Any]") -> bool:
        """Tell whether a step fits now."""
        has_devices = len(self.cpus) >= request["cpus"] and len(self.gpus) >= request["gpus"]
        return has_devices and self.mem_mib >= int(request["mem_mib"])

    def take(self, request: "dict[str, Any]") -> "Taken":
        """Return what a step gets of this share."""
        cpus, self.cpus = self.cpus[: request["cpus"]], self.cpus[request["cpus"] :]
        gpus, self.gpus = self.gpus[: request["gpus"]], self.gpus[request["gpus"] :]
        self.mem_mib -= request["mem_mib"]
        return Taken(self, cpus, gpus, request["mem_mib"])


class Taken(NamedTuple):
    """What one step has of one share."""

    share: Share
    cpus: "list[int]"
    gpus: "list[int]"
    mem_mib: int

    def give_back(self) -> None:
        """Make it free again."""
        self.share.cpus = sorted(self.share.cpus + self.cpus)
        self.share.gpus = sorted(self.share.gpus + self.gpus)
        self.share.mem_mib += self.mem_mib


def is_named(group: Group, name: str) -> bool:
    """Tell whether a step asks for this group, by its name or by one of the roles that it is made of."""
    return name == group.name or name in group.name.split("+")


def why_never(groups: "Sequence[Group]", request: "dict[str, Any]") -> "str | None":
    """Return why a step can never run in this allocation, or None."""
    group = next((group for group in groups if is_named(group, request["group"])), None)
    if group is None:
        return f"group = {request['group']}: the allocation has none. Allowed: {', '.join(g.name for g in groups)}"
    for name, has in (("nodes", group.nodes), ("cpus", group.cpus), ("mem_mib", group.mem_mib), ("gpus", group.gpus)):
        if has is not None and request[name] > has:
            each = "" if name == "nodes" else " on each node"
            return f"{name} = {request[name]}: group {group.name} of the allocation has {has}{each}. Lower it"
    return None


def missing(request: "dict[str, Any]", shares: "list[Share]") -> str:
    """Return what a step waits for, in words."""
    lacking = []
    for name, unit in (("gpus", "GPU"), ("cpus", "CPU")):
        wanted = request[name]
        if wanted and sum(len(getattr(share, name)) >= wanted for share in shares) < request["nodes"]:
            lacking.append(f"{wanted} {unit}{'s' if wanted > 1 else ''}")
    if sum(share.mem_mib >= request["mem_mib"] for share in shares) < request["nodes"]:
        lacking.append(f"{request['mem_mib']} MiB of memory")
    on = f"{request['nodes']} nodes" if request["nodes"] > 1 else "one node"
    return f"waits for {' and '.join(lacking) or 'room'} on {on} of group {request['group']}"


def slurm_hosts(nodelist: str) -> "list[str]":
    """Return the names in a Slurm node list (scontrol(1), show hostnames)."""
    try:
        said = subprocess.check_output(["scontrol", "show", "hostnames", nodelist], timeout=HELPER_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise StepsError(f"the nodes {nodelist} have no names: {error}") from error
    return said.decode().split()


def slurm_measures(group: Group, environ: "dict[str, str]", suffix: str) -> Group:
    """Return a group with what Slurm says that its smallest node has (sbatch(1), OUTPUT ENVIRONMENT VARIABLES).

    Memory is None, not limited, where Slurm does not say how much there is.
    """
    counts = [int(count) for count in re.findall(r"(?:^|,)(\d+)", environ.get("SLURM_JOB_CPUS_PER_NODE" + suffix, ""))]
    cpus = group.cpus if group.cpus is not None else min(counts, default=1)
    mem = environ.get("SLURM_MEM_PER_NODE" + suffix)
    per_cpu = environ.get("SLURM_MEM_PER_CPU" + suffix)
    gpus = environ.get("SLURM_GPUS_PER_NODE" + suffix) or (environ.get("SLURM_GPUS_ON_NODE") if not suffix else None)
    return group._replace(
        cpus=cpus,
        mem_mib=group.mem_mib
        if group.mem_mib is not None
        else int(mem or int(per_cpu or 0) * min(counts, default=1)) or None,
        gpus=group.gpus if group.gpus is not None else int((gpus or "0").rpartition(":")[2]),
    )


def machine_measures(group: Group, environ: "dict[str, str]", parts: int) -> Group:
    """Return a group with a ``parts``-th of what this process may use."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", environ.get("ROCR_VISIBLE_DEVICES"))
    devices = [path for path in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+", path.name)]
    gpus = len(devices) if visible is None else len([word for word in visible.split(",") if word])
    mem_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return group._replace(
        cpus=group.cpus if group.cpus is not None else max(1, len(os.sched_getaffinity(0)) // parts),
        mem_mib=group.mem_mib if group.mem_mib is not None else mem_mib // parts,
        gpus=group.gpus if group.gpus is not None else gpus // parts,
    )


def is_slurms(config: Config, environ: "dict[str, str]") -> bool:
    """Tell whether Slurm says which nodes there are and what they have, whoever starts steps on them."""
    is_slurm = bool(environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_HET_SIZE"))
    return config.launcher == "srun" or (config.launcher == "ssh" and is_slurm)


def pbs_lines(environ: "dict[str, str]") -> "list[str]":
    """Return the lines of PBS_NODEFILE: one for each MPI rank of a chunk, in the order of the select statement.

    Source: pbs_resources(7B), mpiprocs.
    """
    try:
        return Path(environ.get("PBS_NODEFILE", "")).read_text(encoding="utf-8").split()
    except OSError as error:
        raise StepsError(f"PBS_NODEFILE cannot be read: {error}") from error


def hosts_of_groups(config: Config, environ: "dict[str, str]") -> "list[list[str]]":
    """Return the node names of each group.

    Raises:
        StepsError: the batch system gave other nodes than the configuration says.
    """
    wanted = [group.nodes for group in config.groups]
    if config.launcher == "here":
        return [[socket.gethostname()] * nodes for nodes in wanted]
    if is_slurms(config, environ):
        size = int(environ.get("SLURM_HET_SIZE") or 1)
        suffixes = [f"_HET_GROUP_{at}" for at in range(size)] if size > 1 else [""]
        found = [slurm_hosts(environ.get("SLURM_JOB_NODELIST" + suffix, "")) for suffix in suffixes]
    else:
        lines = pbs_lines(environ)
        if len(lines) > sum(wanted) or any(group.cpus is None for group in config.groups):
            # Several ranks of a chunk; and what is measured is a whole host, which is there once.
            lines = list(dict.fromkeys(lines))
        ends = [sum(wanted[: at + 1]) for at in range(len(wanted))]
        found = [lines[end - wanted[at] : end] for at, end in enumerate(ends)]
        found[-1] += lines[ends[-1] :]
    if [len(hosts) for hosts in found] != wanted:
        raise StepsError(f"the allocation's groups have {found} as nodes, and the configuration says {wanted}")
    return found


def shares_of(config: Config, environ: "dict[str, str]") -> "tuple[list[Group], list[Share]]":
    """Return the groups with nothing left to measure, and a share for each node."""
    hosts = hosts_of_groups(config, environ)
    by_slurm = is_slurms(config, environ)
    is_het = by_slurm and len(config.groups) > 1
    lines = pbs_lines(environ) if config.launcher in ("pbsdsh", "ssh") and not by_slurm else []
    has_line_each = len(lines) == sum(map(len, hosts))
    groups: list[Group] = []
    shares: list[Share] = []
    offsets: dict[str, tuple[int, int]] = {}
    for number, group in enumerate(config.groups):
        if by_slurm:
            group = slurm_measures(group, environ, f"_HET_GROUP_{number}" if is_het else "")
        else:
            parts = sum(map(len, hosts)) if config.launcher == "here" else 1
            group = machine_measures(group, environ, parts)
        groups.append(group)
        for host in hosts[number]:
            cpus, gpus = offsets.get(host, (0, 0))
            # pbsdsh(1B) counts as PBS_NODEFILE does.
            index = len(shares) if has_line_each or not lines else lines.index(host)
            shares.append(Share(group, host, index, number, (cpus, gpus)))
            offsets[host] = (cpus + (group.cpus or 0), gpus + (group.gpus or 0))
    return groups, shares


class Launcher:
    """How this program is run on a node of the allocation."""

    def __init__(self, kind: str, spool: Spool, environ: "dict[str, str]", head: str, is_het: bool) -> None:
        self._kind = "ssh" if kind == "pbsdsh" and shutil.which("pbsdsh") is None else kind
        if self._kind != kind:
            log("pbsdsh is not on PATH: other nodes are reached with ssh")
        self._spool = spool
        self._head = head
        self._environ = environ
        self._is_het = is_het
        self.env = dict(environ)
        if self._kind == "srun":
            # The options of the job would be taken for the step's; --gres=none, for one, fails beside them.
            is_kept = {name: not name.startswith(("SLURM_", "SRUN_")) and name not in _OWN_DEVICES for name in environ}
            self.env = {
                name: value for name, value in environ.items() if is_kept[name] or name in ("SLURM_CONF", "SLURM_JWT")
            }

    def kind_at(self, share: Share) -> str:
        """Return which launcher a node needs."""
        return "here" if self._kind in ("pbsdsh", "ssh") and share.host == self._head else self._kind

    def own_argv(self, command: str, *words: str) -> "list[str]":
        """Return the argv of a command of this program."""
        return [sys.executable, str(Path(__file__).absolute()), command, "--dir", str(self._spool.folder), *words]

    def start_argv(self, taken: Taken, request: "dict[str, Any]") -> "list[str]":
        """Return the command that starts a step on its first node and ends when it has ended."""
        command = self.own_argv("attend", request["id"])
        if self.kind_at(taken.share) != "srun":
            return self._reach(taken.share, command)
        # Source: srun(1). --exact: nothing but what is asked for, or steps run one after the other.
        argv = ["srun", "--jobid=" + self._environ["SLURM_JOB_ID"], "--exact", "--nodes=1", "--ntasks=1", "--mpi=none"]
        argv += ["--nodelist=" + taken.share.host, f"--cpus-per-task={request['cpus']}"]
        argv += ["--job-name=" + request["name"], "--export=ALL", "--input=none"]
        if request["mem_mib"]:
            argv.append(f"--mem={request['mem_mib']}M")
        if self._is_het:
            argv.append(f"--het-group={taken.share.group_number}")
        if taken.share.group.gpus:
            argv.append(f"--gpus-per-node={request['gpus']}")  # 0, too: else it gets all that the job has
        return argv + command

    def signal_argv(self, share: Share, step_id: str, number: int, pid: "dict[str, Any]") -> "list[str]":
        """Return the command that sends a signal to a step that has left its process's record."""
        if self.kind_at(share) != "srun":
            return self._reach(share, self.own_argv("signal", "--number", str(int(number)), step_id))
        # srun that gets TERM kills its step at once; and a step of another component is not the leader's.
        job_id = self._environ["SLURM_JOB_ID"]
        if self._is_het:
            job_id = self._environ[f"SLURM_JOB_ID_HET_GROUP_{share.group_number}"]
        return ["scancel", "--signal=" + signal.Signals(number).name[3:], f"{job_id}.{pid['slurm_step']}"]

    def _reach(self, share: Share, command: "list[str]") -> "list[str]":
        kind = self.kind_at(share)
        if kind == "here":
            return command
        if kind == "pbsdsh":
            return ["pbsdsh", "-n", str(share.index), "--", *command]
        words = " ".join(map(shlex.quote, command))
        return ["ssh", "-n", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "--", share.host, words]


class Step:
    """A step as the broker knows it."""

    def __init__(self, request: "dict[str, Any]") -> None:
        self.request = request
        self.id = str(request["id"])
        self.taken: list[Taken] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.record: dict[str, Any] = {"id": self.id, "name": request["name"], "state": "PENDING", "reason": None}
        self.written: dict[str, Any] = {}
        self.end_as: tuple[str, str] | None = None
        self.kill_at_s: float | None = None
        self.due_at_s: float | None = None
        self.gone_at_s: float | None = None

    @property
    def is_started(self) -> bool:
        """Whether it has been launched and has not ended."""
        return self.process is not None and self.record["state"] in OPEN


class Broker:
    """Starts, watches and ends the steps of this allocation."""

    def __init__(self, spool: Spool, config: Config, grace_s: float, outer_pid: "int | None" = None) -> None:
        environ = dict(os.environ)
        # The batch job around this one, where its script's process is on this machine too; a pid is given again.
        self.outer = None if outer_pid is None else (outer_pid, start_time(outer_pid))
        self.spool = spool
        self.config = config
        self.grace_s = grace_s
        self.groups, self.shares = shares_of(config, environ)
        is_het = config.launcher == "srun" and len(config.groups) > 1
        self.launcher = Launcher(config.launcher, spool, environ, self.shares[0].host, is_het)
        allocation = environ.get("SLURM_JOB_ID") or environ.get("PBS_JOBID") or str(os.getpid())
        self.document: dict[str, Any] = {"attempt": secrets.token_hex(8), "allocation": allocation}
        self.document.update(host=socket.gethostname(), pid=os.getpid(), started_at=time.time(), record=config.record)
        self.document.update(restart_count=int(environ.get("SLURM_RESTART_COUNT") or 0), ended_at=None, why=None)
        self.document.update(groups=[group._asdict() for group in self.groups])
        self.document.update(within=None if outer_pid is None else allocation)
        self.steps: dict[str, Step] = {}
        self.unreadable: set[str] = set()
        self.helpers: list[tuple[subprocess.Popen[bytes], float]] = []
        self.signal = 0
        self.outer_end = ""
        self.listed = 0
        self.beat_at_s = 0.0
        self.retry_at_s = 0.0

    def run(self) -> int:
        """Serve until a signal comes; return the exit status.

        Raises:
            StepsError: the spool cannot be written at the start.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._note_signal)
        self.spool.write(self.spool.folder / "broker.json", self.document)
        self._end_earlier_attempts()
        is_ending = False
        while not (is_ending and not any(step.is_started for step in self.steps.values())):
            if not self._beat():
                return self._leave_to_another()
            self._reap()
            self._look_at_outer()
            if self.signal and not is_ending:
                is_ending = True
                self._end_all(self.signal, f"the allocation{self.why}")
            if not is_ending:
                self._take_requests()
                self._start_what_fits()
            self._enforce()
            self._save()
            time.sleep(POLL_S)
        deadline = time.monotonic() + 2 * RETRY_S
        while not self._save() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        self.document.update(ended_at=time.time(), why=f"it{self.why}")
        self.spool.write(self.spool.folder / "broker.json", self.document)
        return 128 + self.signal

    def _note_signal(self, number: int, _: object) -> None:
        self.signal = self.signal or number

    @property
    def why(self) -> str:
        """What has ended it, in words that follow its name."""
        return self.outer_end or f" received {signal.Signals(self.signal).name}"

    def _look_at_outer(self) -> None:
        """End with the batch job around: not every batch system ends what is in a session of its own."""
        if self.outer is None or self.signal:
            return
        pid, started = self.outer
        if started is None or start_time(pid) != started:
            self.outer_end = f"'s batch job has ended (process {pid} is gone)"
            log(f"the allocation{self.outer_end}")
            self.signal = int(signal.SIGTERM)

    def _beat(self) -> bool:
        """Renew the heartbeat when it is due; False if another broker has taken the spool over."""
        if time.monotonic() < self.beat_at_s:
            return True
        self.beat_at_s = time.monotonic() + HEARTBEAT_S
        path = self.spool.folder / "broker.heartbeat"
        try:
            if self._is_replaced():
                return False
            self.spool.write(path, {"attempt": self.document["attempt"], "at": time.time()})
        except StepsError as error:
            log(f"{error} (will try again)")
            with contextlib.suppress(OSError):
                os.utime(str(path))  # needs no space
        return True

    def _is_replaced(self) -> bool:
        """Tell whether another broker has taken the spool over.

        Raises:
            StepsError: this cannot be read.
        """
        broker = self.spool.read(self.spool.folder / "broker.json")
        return broker is not None and broker.get("attempt") != self.document["attempt"]

    def _leave_to_another(self) -> int:
        log("another broker has taken its place: the steps of this one are ended")
        for step in filter(lambda step: step.is_started, self.steps.values()):
            self._send(step, signal.SIGKILL)
        for helper, _ in self.helpers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                helper.wait(HELPER_TIMEOUT_S)
        return EXIT_FENCED

    def _end_earlier_attempts(self) -> None:
        """Mark what an earlier attempt of this allocation had begun as ended; nothing is started twice."""
        for step_id in self.spool.ids("step"):
            path = self.spool.path(step_id, "step")
            try:
                record = self.spool.read(path) or {}
            except StepsError as error:
                log(str(error))
                record = {"id": step_id, "attempt": "cannot be read", "state": "UNKNOWN"}
                with contextlib.suppress(StepsError):
                    record.update(name=(self.spool.read(self.spool.path(step_id, "request")) or {}).get("name"))
            if record.get("attempt") and record.get("state") in OPEN:
                reason = "the allocation was started again after it had begun"
                self.spool.write(path, dict(record, state="NODE_FAIL", reason=reason, ended_at=time.time()))

    def _take_requests(self) -> None:
        """Read new requests and cancellations, if the folder has changed, which each heartbeat does."""
        try:
            changed = self.spool.folder.stat().st_mtime_ns
            if changed == self.listed:
                return
            requests, cancels = self.spool.ids("request"), self.spool.ids("cancel")
        except OSError as error:
            log(f"{self.spool.folder} cannot be listed: {error} (will try again)")
            return
        self.listed = changed
        for step_id in requests:
            if step_id in self.steps or step_id in self.unreadable:
                continue
            try:
                request = self.spool.read(self.spool.path(step_id, "request"))
                record = self.spool.read(self.spool.path(step_id, "step")) or {}
                if request is None:
                    continue
                step = Step(self._completed(dict(request, id=step_id)))
            except (TornError, KeyError, TypeError) as error:
                log(f"the request of step {step_id} is none: {error!r}")
                self.unreadable.add(step_id)
                continue
            except StepsError as error:
                log(f"{error} (will try again)")  # ESTALE, EIO: each heartbeat changes the folder, which is read again
                continue
            self.steps[step_id] = step
            if record.get("attempt") or record.get("state", "PENDING") not in OPEN:
                step.record = step.written = record  # of an earlier attempt
                continue
            why = why_never(self.groups, step.request)
            if why:
                self._finish(step, "FAILED", f"can never run: {why}")
        for step_id in cancels:
            known = self.steps.get(step_id)
            if known is not None and known.record["state"] in OPEN and known.end_as is None:
                self._end(known, "CANCELLED", "cancelled", signal.SIGTERM)

    def _completed(self, request: "dict[str, Any]") -> "dict[str, Any]":
        """Return a request that names its memory: if it does not, the part of the node that its CPUs are."""
        group = next((group for group in self.groups if is_named(group, request["group"])), None)
        if group is None or group.mem_mib is None or request["mem_mib"]:
            return request
        return dict(request, mem_mib=group.mem_mib * request["cpus"] // max(1, group.cpus or 1))

    def _start_what_fits(self) -> None:
        is_waiting = time.monotonic() < self.retry_at_s
        for step in self.steps.values():
            if step.process is not None or step.record["state"] != "PENDING" or is_waiting:
                continue
            request = step.request
            group = [share for share in self.shares if is_named(share.group, request["group"])]
            roomy = [share for share in group if share.has_room(request)]
            if len(roomy) < request["nodes"]:
                step.record["reason"] = missing(request, group)
                continue
            try:
                self._start(step, roomy[: request["nodes"]])
            except StepsError as error:
                log(f"step {step.id} is not started: {error} (will try again)")
                step.record["reason"] = str(error)
                self.retry_at_s = time.monotonic() + RETRY_S
                is_waiting = True

    def _start(self, step: Step, shares: "list[Share]") -> None:
        """Start a step, once it is written down that it was begun.

        Raises:
            StepsError: that cannot be written.
        """
        request = step.request
        hosts = [share.host for share in shares]
        step.taken = [share.take(request) for share in shares]
        kind = self.launcher.kind_at(shares[0])
        begun = dict(step.record, attempt=self.document["attempt"], node=",".join(hosts), launcher=kind)
        begun.update(reason=f"{kind} has not started it yet", env=self.config.env, launched_at=time.time())
        begun.update(cpus=step.taken[0].cpus, gpus=step.taken[0].gpus)
        begun.update((key, request[key]) for key in ("script", "stdout"))
        try:
            self.spool.write(self.spool.path(step.id, "step"), begun)
        except StepsError:
            self._free(step)
            raise
        step.record, step.written = begun, dict(begun)
        try:
            with Path(request["stdout"]).open("ab") as output:
                step.process = subprocess.Popen(
                    self.launcher.start_argv(step.taken[0], request),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=self.launcher.env,
                    start_new_session=True,
                )
        except OSError as error:
            self._finish(step, "FAILED", f"cannot be started: {error}")

    def _reap(self) -> None:
        """See which steps have begun or ended."""
        for step in self.steps.values():
            if not step.is_started or step.process is None:
                continue
            if step.record["state"] == "PENDING" and self._read(step, "pid"):
                step.record.update(state="RUNNING", reason=None, started_at=time.time())
                if step.request.get("time_s"):
                    step.due_at_s = time.monotonic() + step.request["time_s"]
                if step.end_as is not None:
                    self._end(step, *step.end_as, number=signal.SIGTERM)
            code = step.process.poll()
            if code is not None:
                self._judge_end(step, code if code >= 0 else 128 - code)
        kept = []
        for helper, until_s in self.helpers:
            if helper.poll() is None:
                if time.monotonic() > until_s:
                    helper.kill()
                kept.append((helper, until_s))
        self.helpers = kept

    def _read(self, step: Step, kind: str) -> "dict[str, Any]":
        try:
            return self.spool.read(self.spool.path(step.id, kind)) or {}
        except StepsError as error:
            log(str(error))
            return {}

    def _judge_end(self, step: Step, code: int) -> None:
        """Take the end of a step from its node's word, or else from its launcher's."""
        exit_record = self._read(step, "exit")
        if exit_record:
            self._finish_with(step, exit_record["exit_code"])
        elif step.record["launcher"] in ("srun", "here") and (code == 0 or self._read(step, "pid")):
            self._finish_with(step, code)
        elif step.gone_at_s is None:
            step.gone_at_s = time.monotonic()  # NFS may show what the node wrote a little later
        elif time.monotonic() < step.gone_at_s + 2 * HEARTBEAT_S:
            return
        elif not self._read(step, "pid") and code != 0:
            said = f"{step.record['launcher']} ended with exit code {code}: {last_line(step)}"
            self._finish(step, *(step.end_as or ("FAILED", f"could not be started: {said}")))
        else:
            self._follow_cut_off(step, time.monotonic() - step.gone_at_s)

    def _follow_cut_off(self, step: Step, gone_s: float) -> None:
        """End a step whose launcher is gone and whose node has not told of an end; its share stays taken till then."""
        if step.end_as is None:
            reason = f"{step.record['launcher']} lost it, and its node told of no end"
            self._end(step, "NODE_FAIL", reason, signal.SIGTERM)
        elif gone_s > SILENT_AFTER_S:
            step.taken = []  # whatever still runs there keeps its CPUs and GPUs
            self._finish_with(step, None)

    def _finish_with(self, step: Step, code: "int | None") -> None:
        step.record["exit_code"] = code
        if step.end_as is not None:
            self._finish(step, *step.end_as)
        elif code == 0:
            self._finish(step, "COMPLETED", None)
        elif code is not None and code - 128 in STOP_SIGNALS:
            # Whoever ends the allocation tells its steps too, often before the broker.
            self._finish(step, "CANCELLED", f"ended by {signal.Signals(code - 128).name} from outside")
        else:
            self._finish(step, "FAILED", f"exit code {code}")

    def _finish(self, step: Step, state: str, reason: "str | None") -> None:
        step.record.update(state=state, reason=reason, ended_at=time.time())
        self._free(step)

    def _free(self, step: Step) -> None:
        for taken in step.taken:
            taken.give_back()
        step.taken = []

    def _end(self, step: Step, state: str, reason: str, number: int) -> None:
        """Have a step end: now if it has not begun, otherwise by a signal, and KILL after a while."""
        step.end_as = (state, reason)
        if step.process is None:
            self._finish(step, state, reason + " before it started")
            return
        is_known = bool(self._read(step, "pid"))
        if is_known:
            self._send(step, number)
        # One whose process is not known yet is told once it is.
        step.kill_at_s = time.monotonic() + (self.grace_s if is_known else 2 * HEARTBEAT_S)

    def _end_all(self, number: int, reason: str) -> None:
        for step in self.steps.values():
            if step.is_started and step.end_as is None:
                self._end(step, "CANCELLED", reason, number)

    def _enforce(self) -> None:
        """End what is over its time, and kill what did not end when it was told to."""
        now_s = time.monotonic()
        for step in self.steps.values():
            if not step.is_started:
                continue
            if step.due_at_s is not None and now_s > step.due_at_s and step.end_as is None:
                self._end(step, "TIMEOUT", f"over its time of {step.request['time_s']} s", signal.SIGTERM)
            if step.kill_at_s is not None and now_s > step.kill_at_s:
                self._send(step, signal.SIGKILL)
                step.kill_at_s = now_s + self.grace_s

    def _send(self, step: Step, number: int) -> None:
        """Send a signal to a step, without waiting for whoever carries it there."""
        pid = self._read(step, "pid")
        share = step.taken[0].share
        if not pid and step.process is not None:
            step.process.terminate()  # srun then kills what it may have started
            return
        if self.launcher.kind_at(share) == "here":
            send_to_process(pid, number)
            return
        try:
            argv = self.launcher.signal_argv(share, step.id, number, pid)
            helper = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=self.launcher.env, start_new_session=True)
        except OSError as error:
            log(f"step {step.id} cannot be sent signal {number}: {error}")
            return
        self.helpers.append((helper, time.monotonic() + HELPER_TIMEOUT_S))

    def _save(self) -> bool:
        """Write down what has changed, and tell whether all of it is; what cannot be written is tried again."""
        if time.monotonic() < self.retry_at_s:
            return False
        for step in self.steps.values():
            if step.record != step.written:
                try:
                    if self._is_replaced():  # since the last beat, as while this process was stopped
                        self.beat_at_s = 0.0
                        return False
                    self.spool.write(self.spool.path(step.id, "step"), step.record)
                except StepsError as error:
                    log(f"{error} (will try again)")
                    self.retry_at_s = time.monotonic() + RETRY_S
                    return False
                step.written = dict(step.record)
        return True


def last_line(step: Step) -> str:
    """Return the end of what a step's launcher and script have said."""
    with contextlib.suppress(OSError):
        lines = Path(step.request["stdout"]).read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return "it said nothing"


class HealthServer(socketserver.TCPServer):
    """Not http.server's, which asks the name service for this host's full name before it listens."""

    allow_reuse_address = True


class HealthHandler(http.server.BaseHTTPRequestHandler):
    """Answers GET /health, and nothing else."""

    timeout = 5

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: "Any") -> None:  # noqa: A002 - the name in the base class
        """Keep quiet."""


def serve(spool: Spool, options: argparse.Namespace) -> int:
    """Be the broker."""
    config = Config.read(options.config)
    config = config._replace(record=options.record or config.record)
    spool.make()
    broker = Broker(spool, config, options.grace_s, options.outer_pid)
    try:
        HealthServer.address_family = socket.AF_INET6 if ":" in options.bind else socket.AF_INET
        server = HealthServer((options.bind, options.port), HealthHandler)
    except OSError as error:
        raise StepsError(f"cannot listen on {options.bind}:{options.port}: {error.strerror}") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return broker.run()


def attend(spool: Spool, options: argparse.Namespace) -> int:
    """Run one step on its node, stay its parent, and tell of its process and its end."""
    record = spool.read(spool.path(options.id, "step"))
    if record is None:
        raise StepsError(f"there is no step {options.id} in {spool.folder}")
    return Attendant(spool, record).run()


class Attendant:
    """The parent of one step's processes on its node."""

    def __init__(self, spool: Spool, record: "dict[str, Any]") -> None:
        self.spool = spool
        self.record = record
        self.signals: list[int] = []
        self.heartbeat_at = 0.0
        self.beats_missed = 0
        self.look_at_s = 0.0

    def run(self) -> int:
        """Start the script and wait for its end; return its exit code, 128 + N if signal N ended it."""
        output = os.open(self.record["stdout"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, _: self.signals.append(number))
        env = self._environment()
        self._bind_cpus()
        if self._is_cancelled():
            return 128 + signal.SIGTERM
        process = subprocess.Popen(
            ["bash", self.record["script"]],
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509 - one thread
        )
        pid = {"host": socket.gethostname(), "pid": process.pid, "start": start_time(process.pid)}
        pid["slurm_step"] = os.environ.get("SLURM_STEP_ID")
        self._tell("pid", pid)
        if self._is_cancelled():
            self.signals.append(signal.SIGTERM)
        code = self._wait(process)
        self._tell("exit", {"exit_code": code, "ended_at": time.time()})
        return code

    def _is_cancelled(self) -> bool:
        """Tell whether it was cancelled before the broker could know of its process."""
        with contextlib.suppress(OSError):
            return self.spool.path(self.record["id"], "cancel").exists()
        return False

    def _tell(self, kind: str, document: "dict[str, Any]") -> None:
        try:
            self.spool.write(self.spool.path(self.record["id"], kind), document)
        except StepsError as error:
            log(str(error))

    def _environment(self) -> "dict[str, str]":
        env = dict(os.environ, **self.record["env"])
        env.update(ORCH_STEP_ID=self.record["id"], ORCH_JOB_ID=self.record["id"], ORCH_STEP_NODES=self.record["node"])
        gpus = self.record["gpus"]
        if self.record["launcher"] == "srun" and gpus:
            return env  # bound by Slurm
        # Positions are those in the list that the node's own batch system made visible.
        name = "ROCR_VISIBLE_DEVICES" if Path("/dev/kfd").exists() else "CUDA_VISIBLE_DEVICES"
        visible = [word for word in env.get(name, "").split(",") if word]
        if visible and gpus and gpus[-1] >= len(visible):
            raise StepsError(f"GPU {gpus[-1]} of this node is for this step, and {name} shows {len(visible)}")
        for other in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"):
            env.pop(other, None)
        if not gpus:
            env.update(CUDA_VISIBLE_DEVICES="", ROCR_VISIBLE_DEVICES="")
        else:
            env[name] = ",".join(visible[at] if visible else str(at) for at in gpus)
        return env

    def _bind_cpus(self) -> None:
        if self.record["launcher"] == "srun":
            return
        allowed = sorted(os.sched_getaffinity(0))
        if self.record["cpus"][-1] < len(allowed):
            os.sched_setaffinity(0, {allowed[at] for at in self.record["cpus"]})
        else:
            log(f"not bound to CPUs: {len(allowed)} may be used here, and the allocation's configuration says more")

    def _wait(self, process: "subprocess.Popen[bytes]") -> int:
        killed_at_s = None
        while True:
            while self.signals:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, self.signals.pop(0))
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == process.pid:
                break
            if pid == 0:
                time.sleep(POLL_S)
            if killed_at_s is None and self._is_alone():
                log("the allocation's broker gives no sign of life or was replaced: the step is ended")
                self.signals.append(signal.SIGTERM)
                killed_at_s = time.monotonic() + HELPER_TIMEOUT_S
            elif killed_at_s is not None and time.monotonic() > killed_at_s:
                self.signals.append(signal.SIGKILL)
        process.returncode = 0  # it was waited for
        deadline = time.monotonic() + KILL_PATIENCE_S
        remaining = descendants(os.getpid())
        while remaining and time.monotonic() < deadline:
            for left in remaining:
                with contextlib.suppress(OSError):
                    os.kill(left, signal.SIGKILL)
            time.sleep(0.01)
            remaining = descendants(os.getpid())
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

    def _is_alone(self) -> bool:
        """Tell whether the broker has been replaced, or has given no sign of life in many looks."""
        if time.monotonic() < self.look_at_s:
            return False
        self.look_at_s = time.monotonic() + HEARTBEAT_S
        try:
            attempt, beat_at = self.spool.heartbeat()
        except StepsError as error:
            log(str(error))
            return False
        if attempt is not None and attempt != self.record["attempt"]:
            return True
        # Looks are counted, not seconds: a file system that hangs makes one look long.
        self.beats_missed = self.beats_missed + 1 if beat_at == self.heartbeat_at else 0
        self.heartbeat_at = beat_at
        return self.beats_missed > ALONE_AFTER_BEATS


def send_signal(spool: Spool, options: argparse.Namespace) -> int:
    """Send a signal to the process of a step of this node."""
    pid = spool.read(spool.path(options.id, "pid")) or {}
    return 0 if pid and send_to_process(pid, options.number) else EXIT_REFUSED


def send_to_process(pid: "dict[str, Any]", number: int) -> bool:
    """Send a signal to a process of this machine; False if it has ended, whoever has its number now."""
    if start_time(pid["pid"]) != pid["start"]:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid["pid"], number)
    return True


def submit(spool: Spool, options: argparse.Namespace) -> int:
    """Ask for a step and print its id; one of the same name that has not ended is the one that is asked for."""
    script = Path(options.script).absolute()
    if not os.access(str(script), os.R_OK):
        raise StepsError(f"{script} cannot be read")
    request = {name: getattr(options, name) for name in ("name", "group", "nodes", "cpus", "mem_mib", "gpus", "time_s")}
    if min(request["nodes"], request["cpus"]) < 1 or min(request["mem_mib"], request["gpus"]) < 0:
        raise StepsError("nodes and cpus are 1 at least, mem-mib and gpus 0 at least")
    spool.make()
    with spool.locked():
        known = {line["id"]: line for line in describe_all(spool)}
        for line in known.values():
            if line["name"] == options.name and line["state"] in OPEN:
                sys.stdout.write(line["id"] + "\n")
                return 0
        groups = broker_life(spool).groups
        why = why_never(groups, request) if groups else None
        if why:
            raise StepsError(f"step {options.name} can never run: {why}")
        number = 1 + max(map(number_of, spool.ids("request")), default=0)
        step_id = f"{number:04d}.{secrets.token_hex(3)}"
        stdout = str(Path(options.stdout).absolute()).replace("%j", step_id)
        request.update(id=step_id, script=str(script), stdout=stdout, submitted_at=time.time())
        spool.write(spool.path(step_id, "request"), request)
    sys.stdout.write(step_id + "\n")
    return 0


def status(spool: Spool, options: argparse.Namespace) -> int:
    """Print all steps, or those of a name."""
    for line in describe_all(spool):
        if options.name is None or line["name"] == options.name:
            sys.stdout.write(json.dumps(line) + "\n")
    return 0


def cancel(spool: Spool, options: argparse.Namespace) -> int:
    """Ask the broker to end steps; one that has ended, or that nobody knows, needs nothing."""
    known = {line["id"]: line["state"] for line in describe_all(spool)}
    for step_id in options.ids:
        if known.get(step_id) in OPEN:
            spool.write(spool.path(step_id, "cancel"), {"at": time.time()})
    return 0


def main(argv: "list[str]") -> int:
    """Run the command line and return the exit status."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--dir", type=Path, required=True, help="folder of the allocation's steps")
    parser = argparse.ArgumentParser(prog="steps.py", description="The steps of one allocation.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    command = commands.add_parser("serve", parents=[common], help="be the broker, inside the allocation")
    command.add_argument("--bind", default="127.0.0.1")
    command.add_argument("--port", type=int, required=True, help="answers GET /health")
    command.add_argument("--config", type=Path, required=True)
    command.add_argument("--record", help="status record of the broker's own supervisor")
    command.add_argument("--grace-s", type=float, default=30.0, help="time between the signal that ends steps and KILL")
    command.add_argument("--outer-pid", type=int, metavar="PID", help="end when this process of this machine is gone")
    command.set_defaults(run=serve)

    command = commands.add_parser("submit", parents=[common], help="ask for a step and print its id")
    command.add_argument("--name", required=True)
    command.add_argument("--stdout", required=True, help="file for the output of the script; %%j is its id")
    command.add_argument("--group", required=True)
    command.add_argument("--nodes", type=int, default=1, help="the script runs on the first of ORCH_STEP_NODES")
    command.add_argument("--cpus", type=int, default=1, help="on each node")
    command.add_argument("--mem-mib", type=int, default=0, help="on each node; 0: as much of it as of the CPUs")
    command.add_argument("--gpus", type=int, default=0, help="on each node")
    command.add_argument("--time-s", type=float, help="it is ended after so many seconds")
    command.add_argument("script")
    command.set_defaults(run=submit)

    command = commands.add_parser("status", parents=[common], help="print all steps")
    command.set_defaults(run=status, name=None)

    command = commands.add_parser("find", parents=[common], help="print the steps with a name")
    command.add_argument("--name", required=True)
    command.set_defaults(run=status)

    command = commands.add_parser("cancel", parents=[common], help="end steps")
    command.add_argument("ids", nargs="+", metavar="ID")
    command.set_defaults(run=cancel)

    command = commands.add_parser("attend", parents=[common], help="(the broker's) run a step on this node")
    command.add_argument("id")
    command.set_defaults(run=attend)

    command = commands.add_parser("signal", parents=[common], help="(the broker's) send a signal to a step here")
    command.add_argument("--number", type=int, required=True)
    command.add_argument("id")
    command.set_defaults(run=send_signal)

    options = parser.parse_args(argv)
    if options.command is None:
        parser.error("a COMMAND is needed")
    os.umask(0o077)
    try:
        return int(options.run(Spool(options.dir.absolute()), options))
    except (OSError, StepsError) as error:
        sys.stderr.write(f"steps: {error}\n")
        return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
