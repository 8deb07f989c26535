"""Start, watch and end one job's program on its compute node, and keep the job's records.

``python3 supervisor.py CONFIG.json -- ARGV...``

Copied into the run directory and run by the system Python of a compute node: one file, standard library only,
Python 3.6. docs/run-directory.md describes the files that it reads and writes.

Processes are started and reaped in the main thread only: Linux sends the parent-death signal when the
*thread* that started the child ends. Health probes, which may hang, run in threads of their own.
"""

import ctypes
import errno
import http.client
import ipaddress
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, NamedTuple

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
TCP_LISTEN = "0A"  # net/tcp_states.h
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
TICK_S = 0.25
REQUEUE_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 5.0
SIDECAR_PATIENCE_S = 60.0
LEASE_WITHOUT_FILE_S = 900.0
KILL_PATIENCE_S = 5.0
SENTINEL_PATIENCE_S = 10.0
MEMORY_CHECK_S = 1.0
LOG_TAIL_BYTES = 65536
# Where the exit status is not the child's; sysexits.h names 64, 70 and 75.
EXIT_LEASE_EXPIRED, EXIT_PORT_IN_USE, EXIT_USAGE, EXIT_ERROR, EXIT_FENCED = 0, 1, 64, 70, 75
EXIT_STARTUP_TIMEOUT, EXIT_EXEC_FAILED, EXIT_OUT_OF_MEMORY = 124, 127, 137


class ExecError(Exception):
    """A program cannot be executed."""


class Config(NamedTuple):
    """The supervisor configuration: the keys and the defaults of docs/run-directory.md."""

    schema_version: int
    run_id: str
    run_dir: str
    token: str
    service: str
    kind: str
    bind: str = "127.0.0.1"
    advertise: "str | None" = None
    port: "int | None" = None
    port_attempts: int = 5
    health: "list[dict[str, Any]]" = []
    health_interval_s: float = 0.5
    startup_timeout_s: float = 3600.0
    env: "dict[str, str]" = {}
    secret_env: "dict[str, str]" = {}
    prepend_env: "dict[str, str]" = {}
    auth_token_file: "str | None" = None
    endpoint: "dict[str, Any]" = {}
    targets: "list[dict[str, Any]]" = []
    sidecars: "list[dict[str, Any]]" = []
    requeue_argv: "list[str] | None" = None
    mem_limit_mib: "float | None" = None
    heartbeat_s: float = 5.0
    lease_check_s: float = 15.0
    stop_grace_s: float = 20.0

    @property
    def is_service(self) -> bool:
        """Whether it has a port and runs until told to stop."""
        return self.kind == "service"

    def path(self, *parts: str) -> str:
        """Return a path inside the run directory."""
        return os.path.join(native(self.run_dir), *parts)


class End(NamedTuple):
    """Why the job ends. ``drain_with`` is the signal that asks the program to end first; None kills it."""

    reason: str
    message: str
    exit_status: int
    signal: "int | None" = None
    drain_with: "int | None" = None


def log(text: str) -> None:
    """Write a line to stderr, which may be a closed pipe or a file on a full disk."""
    try:
        sys.stderr.write("{} supervisor: {}\n".format(time.strftime("%Y-%m-%dT%H:%M:%S%z"), text))
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def native(text: str) -> str:
    """Return ``text`` as the operating system's calls want it: Python 3.6 under LANG=C knows ASCII only."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def read_json(path: str) -> "dict[str, Any]":
    """Return the JSON object in a file, empty if there is none that can be read."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def read_secret(path: str) -> str:
    """Return a secret without the newline that editors leave at its end."""
    with open(native(path), encoding="utf-8") as file:
        return file.read().rstrip("\r\n")


def replace_file(path: str, text: str, mark: str, sync: bool) -> None:
    """Replace a file as a whole; ``mark`` keeps the temporary files of two attempts apart."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{mark}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        remove_file(temporary)
        raise


def remove_file(path: str) -> None:
    """Remove a file that may be gone already."""
    try:
        os.unlink(path)
    except OSError:
        pass


def descendants(root: int, spared: "frozenset[int]" = frozenset()) -> "dict[int, int]":
    """Return the living processes below ``root`` and their process groups, without ``spared`` subtrees."""
    children: "dict[int, list[tuple[int, int]]]" = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The name in parentheses may itself hold spaces and parentheses (proc(5)).
                state, ppid, group = file.read().rpartition(b")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if state not in (b"Z", b"X"):
            children.setdefault(int(ppid), []).append((int(name), int(group)))
    found: "dict[int, int]" = {}
    queue = [root]
    while queue:
        below = {pid: group for pid, group in children.get(queue.pop(), []) if pid not in spared}
        found.update(below)
        queue.extend(below)
    return found


def kill_descendants(spared: "frozenset[int]" = frozenset()) -> None:
    """Kill every process below this one, also in sessions of their own: a subreaper inherits orphans."""
    deadline = time.monotonic() + KILL_PATIENCE_S
    remaining = descendants(os.getpid(), spared)
    while remaining and time.monotonic() < deadline:
        for pid in remaining:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.01)
        remaining = descendants(os.getpid(), spared)
    if remaining:
        log(f"these processes do not die: {sorted(remaining)}")


def memory_kib(pid: int, is_shared_divided: bool) -> int:
    """Return a process's resident memory, shared pages divided among their users where that can be read."""
    try:
        if is_shared_divided:
            with open(f"/proc/{pid}/smaps_rollup") as file:  # since Linux 4.14
                return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        pass
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except (OSError, IndexError):
        return 0


def socket_inodes(pid: "int | str") -> "set[str]":
    """Return the inodes of the sockets that a process holds; none if it is not ours to look into."""
    inodes = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                inodes.add(os.readlink(f"/proc/{pid}/fd/{name}"))
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass
    return {link[8:-1] for link in inodes if link.startswith("socket:[")}


class Address:
    """The address that the job's services bind.

    Raises:
        OSError: the name does not resolve.
    """

    def __init__(self, bind: str) -> None:
        found = socket.getaddrinfo(bind, None, 0, socket.SOCK_STREAM)
        family, _, _, _, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        self._family = family
        self.ip = ipaddress.ip_address(str(where[0]).partition("%")[0])
        loopback = "127.0.0.1" if self.ip.version == 4 else "::1"
        self.probe_host = loopback if self.ip.is_unspecified else str(self.ip)

    def bind_error(self, port: int) -> "OSError | None":
        """Return why a server could not bind the port now, or None if it could."""
        with socket.socket(self._family, socket.SOCK_STREAM) as probe:
            # As servers do: connections of an earlier server in TIME_WAIT do not make a port taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((str(self.ip), port))
            except OSError as error:
                return error
        return None

    def draw_port(self, avoided: "set[int]") -> int:
        """Return a port that is free now and none of ``avoided``, and add it there."""
        while True:
            with socket.socket(self._family, socket.SOCK_STREAM) as probe:
                probe.bind((str(self.ip), 0))
                port = int(probe.getsockname()[1])
            if port not in avoided:
                avoided.add(port)
                return port

    def listener_inodes(self, port: int) -> "set[str]":
        """Return the inodes of the sockets that could take a connection to this address and port."""
        inodes = set()
        for table in ("/proc/net/tcp", "/proc/net/tcp6"):
            try:
                with open(table) as file:
                    lines = file.readlines()[1:]
            except OSError:
                continue  # no IPv6 here
            for fields in map(str.split, lines):
                hex_ip, _, hex_port = fields[1].partition(":")
                if fields[3] != TCP_LISTEN or int(hex_port, 16) != port:
                    continue
                # Each 32-bit word of the address is printed in the byte order of the machine.
                words = [bytes.fromhex(hex_ip[at : at + 8]) for at in range(0, len(hex_ip), 8)]
                ip = ipaddress.ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))
                ip = getattr(ip, "ipv4_mapped", None) or ip
                if ip == self.ip or ip.is_unspecified or self.ip.is_unspecified:
                    inodes.add(fields[9])
        return inodes

    def holder(self, port: int) -> str:
        """Return who listens on a port, by pid and name only (an argv may hold somebody's key)."""
        inodes = self.listener_inodes(port)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if inodes & socket_inodes(pid):
                try:
                    with open(f"/proc/{pid}/comm", errors="replace") as file:
                        return f"pid {pid} ({file.read().strip()})"
                except OSError:
                    break
        return "another process"

    def public_ip(self, host: str) -> str:
        """Return the IP address under which other nodes reach this node as ``host``."""
        if not self.ip.is_unspecified:
            return str(self.ip)
        try:
            ip = socket.gethostbyname(host)
            if ip.startswith("127."):  # Debian's /etc/hosts gives the host's own name 127.0.1.1
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
                    route.connect(("10.255.255.255", 9))  # asks for a route; sends nothing
                    ip = str(route.getsockname()[0])
        except OSError:
            return self.probe_host
        return ip


def host_and_port(host: str, port: object) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def find_job_id() -> str:
    """Return the batch system's id of this job.

    A local job inside a Slurm job, or the reverse, inherits the other's variable: the local id goes first
    only if it names the leader of this very session. A step of an allocation has the allocation's variables too.
    """
    step = os.environ.get("ORCH_STEP_ID")
    if step:
        return step
    local = os.environ.get("ORCH_JOB_ID", "")
    if local.partition(".")[0] == str(os.getsid(0)):
        return local
    found = slurm_job_id() or os.environ.get("PBS_JOBID") or local
    return (found or str(os.getpid())).replace("/", "_")


def slurm_job_id() -> str:
    """Return Slurm's id of this job as squeue shows it, empty outside of Slurm.

    A task of a job array has a SLURM_JOB_ID too, which squeue shows nowhere (sbatch(1), "JOB ARRAY SUPPORT").
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


class Records:
    """The files that tell others about this attempt: status, heartbeat, endpoint, targets.

    A file that could not be written is logged and tried again with each heartbeat.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.job_id = find_job_id()
        self.attempt = secrets.token_hex(8)
        self.host = socket.gethostname()
        self._status = config.path("status", config.token + ".json")
        self._heartbeat = config.path("status", config.token + ".heartbeat")
        self._fence = config.path("status", config.token + ".fence")
        self.endpoint = config.path("endpoints", config.service + ".json")
        self._wanted: "dict[str, str]" = {}
        self._written: "dict[str, str]" = {}
        self.status: "dict[str, Any]" = {"schema_version": 1, "token": config.token, "service": config.service}
        self.status.update(job_id=self.job_id, attempt=self.attempt, host=self.host, pid=os.getpid())
        self.status.update(restart_count=int(os.environ.get("SLURM_RESTART_COUNT") or 0), state="starting")
        self.status.update(started_at=time.time(), ready_at=None, finished_at=None)
        self.status.update(exit_code=None, signal=None, reason=None, message=None)

    def targets_path(self, kind: str) -> str:
        """Return the file of this job's targets of one kind."""
        return self._config.path("prometheus_assets", f"{kind}_targets_{self.job_id}.json")

    def claim(self) -> None:
        """Take the status record over from any earlier attempt, and remove what that one left behind."""
        for folder in ("logs", "status", "endpoints", "prometheus_assets"):
            try:
                os.makedirs(self._config.path(folder), exist_ok=True)
            except OSError as error:
                log(f"cannot make a folder of the run: {error}")
        self.publish(self._status, self.status)
        if read_json(self.endpoint).get("token") == self._config.token:
            remove_file(self.endpoint)
        for part in [{"targets": self._config.targets}, *self._config.sidecars]:
            for target in part.get("targets", []):
                remove_file(self.targets_path(target["kind"]))

    def is_given_up(self) -> bool:
        """Tell whether the orchestrator has given this job up: it may have submitted another one in its place."""
        return os.path.exists(self._fence)

    def is_fenced(self) -> bool:
        """Tell whether this attempt must not go on: the job was given up, or another attempt has taken it over."""
        if self.is_given_up():
            return True
        if self._status not in self._written:
            return False  # never claimed (disk full): what lies there is older
        return bool(read_json(self._status).get("attempt", self.attempt) != self.attempt)

    def update(self, **fields: Any) -> bool:
        """Change and write the status record, unless fenced; tell whether it is on disk."""
        self.status.update(fields)
        return not self.is_fenced() and self.publish(self._status, self.status)

    def publish(self, path: str, document: object) -> bool:
        """Write a record of this attempt; tell whether all records are on disk."""
        self._wanted[path] = json.dumps(document, indent=1) + "\n"
        return self._flush()

    def _flush(self) -> bool:
        for path, text in self._wanted.items():
            if self._written.get(path) != text:
                try:
                    replace_file(path, text, self.attempt, sync=True)
                    self._written[path] = text
                except OSError as error:
                    log(f"cannot write {path} (will try again): {error}")
        return self._wanted == self._written

    def withdraw(self, path: str) -> None:
        """Remove a record, if it is still the one that this attempt wrote."""
        self._wanted.pop(path, None)
        text = self._written.pop(path, None)
        try:
            with open(path, encoding="utf-8") as file:
                is_own = file.read() == text
        except (OSError, ValueError):
            return
        if is_own:
            remove_file(path)

    def withdraw_all(self) -> None:
        """Remove the targets, and the endpoint record unless a new attempt may be about to replace it."""
        kept = {self._status, self.endpoint} if self.is_fenced() else {self._status}
        for path in {*self._wanted, *self._written} - kept:
            self.withdraw(path)

    def beat(self) -> bool:
        """Renew the heartbeat and write what is due; False, and nothing done, if fenced."""
        if self.is_fenced():
            return False
        self._flush()
        try:
            text = json.dumps({"attempt": self.attempt, "at": time.time()})
            replace_file(self._heartbeat, text + "\n", self.attempt, sync=False)
        except OSError as error:
            log(f"cannot write the heartbeat: {error}")
        return True

    def finish(self, **fields: Any) -> None:
        """Write the sentinel, trying for a while if the disk is full."""
        deadline = time.monotonic() + SENTINEL_PATIENCE_S
        while not self.update(state="finished", finished_at=time.time(), **fields):
            if self.is_fenced() or time.monotonic() > deadline:
                log("ended without a sentinel: " + json.dumps(self.status))
                return
            time.sleep(0.5)


class Lease:
    """Until when the run's services may live without hearing from the orchestrator."""

    def __init__(self, path: str, started_at: float) -> None:
        self._path = path
        self._expires_at = started_at + LEASE_WITHOUT_FILE_S
        self._keep = False

    def is_expired(self) -> bool:
        """Read the lease and judge it; one that cannot be read is judged as it was last read."""
        lease = read_json(self._path)
        if isinstance(lease.get("expires_at"), (int, float)):
            self._expires_at = lease["expires_at"]
            self._keep = lease.get("keep") is True
        return not self._keep and time.time() > self._expires_at


class Probe:
    """Checks the health of one started program, a thread at a time, until it was healthy once."""

    def __init__(self, address: Address, port: int, pid: int, checks: "list[dict[str, Any]]") -> None:
        self._address = address
        self._port = port
        self._pid = pid
        self._checks = checks
        self._thread = threading.Thread()
        self._next_at_s = 0.0
        self.is_healthy = False
        self.problem = "it was not checked yet"

    def poll(self, config: Config, wake_fd: int) -> bool:
        """Start a check if one is due; tell whether the program has been found healthy."""
        now_s = time.monotonic()
        if not self.is_healthy and now_s >= self._next_at_s and not self._thread.is_alive():
            self._next_at_s = now_s + config.health_interval_s
            arguments = (config.auth_token_file, wake_fd)
            self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)
            self._thread.start()
        return self.is_healthy

    def _run(self, token_file: "str | None", wake_fd: int) -> None:
        # The owner is checked before the token is sent to it, and again because it may have died meanwhile.
        problem = self._owner_problem()
        for check in self._checks:
            problem = problem or self._check_problem(check, token_file)
        self.problem = problem or self._owner_problem()
        if not self.problem:
            self.is_healthy = True
            os.write(wake_fd, b"\0")

    def _owner_problem(self) -> str:
        inodes = self._address.listener_inodes(self._port)
        if not inodes:
            return f"nothing listens on port {self._port} of {self._address.ip}"
        if inodes.difference(*map(socket_inodes, [self._pid, *descendants(self._pid)])):
            holder = self._address.holder(self._port)
            return f"port {self._port} is held by {holder}, not only by the job's own process"
        return ""

    def _check_problem(self, check: "dict[str, Any]", token_file: "str | None") -> str:
        path, key = check["path"], check.get("nonempty")
        connection = http.client.HTTPConnection(self._address.probe_host, self._port, timeout=PROBE_TIMEOUT_S)
        try:
            headers = {}
            if token_file and check.get("auth"):
                headers["Authorization"] = "Bearer " + read_secret(token_file)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            if answer.status != 200:
                return f"GET {path} answered {answer.status}"
            document = json.loads(answer.read().decode("utf-8")) if key else None
        except (OSError, ValueError, http.client.HTTPException) as error:
            return f"GET {path}: {error!r}"
        finally:
            connection.close()
        value = document.get(key) if isinstance(document, dict) else None
        return "" if not key or (value and isinstance(value, list)) else f"GET {path}: {key!r} is empty"


class Program:
    """The job's program, or a sidecar: what is started, and the process that it became."""

    def __init__(self, name: str, argv: "list[str]", raw: "dict[str, Any]", log_stem: str) -> None:
        self.name = name
        self.argv = argv
        self.checks = raw.get("health", [])
        self.targets = raw.get("targets", [])
        self.is_registered = False  # healthy, its targets published
        self.is_given_up = False
        self.port: "int | None" = None
        self.probe: "Probe | None" = None
        self.pid = 0  # also the process group
        self.returncode: "int | None" = None  # negative: the signal that ended it
        self._log_sizes = {log_stem + ".out": 0, log_stem + ".err": 0}
        self._process: "subprocess.Popen[bytes] | None" = None

    def start(self, argv: "list[str]", env: "dict[str, str]") -> None:
        """Start the program in a process group of its own that dies with this process.

        Raises:
            ExecError: it cannot be executed.
        """
        parent = os.getpid()
        prctl = ctypes.CDLL(None).prctl  # looked up before the fork

        def enter() -> None:
            os.setpgid(0, 0)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os.kill(os.getpid(), signal.SIGKILL)

        out_path, err_path = self._log_sizes
        with open(out_path, "ab") as out, open(err_path, "ab") as err:
            self._log_sizes = {out_path: out.tell(), err_path: err.tell()}
            try:
                self._process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, preexec_fn=enter
                )
            except OSError as error:
                raise ExecError(f"cannot execute {argv[0]!r}: {error.strerror}") from error
        self.pid = self._process.pid
        self.returncode = None

    def note_exit(self, status: int) -> None:
        """Take the exit status that waitpid gave for this program."""
        self.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if self._process:
            self._process.returncode = self.returncode  # or Popen would wait for the pid itself

    def is_complaining_of_address(self) -> bool:
        """Tell whether the log since the last start says that an address was taken."""
        for path, size in self._log_sizes.items():
            try:
                with open(path, "rb") as file:
                    file.seek(max(size, os.path.getsize(path) - LOG_TAIL_BYTES))
                    if re.search(rb"address already in use|EADDRINUSE", file.read(), re.IGNORECASE):
                        return True
            except OSError:
                continue
        return False

    def describe_exit(self) -> str:
        """Return how the program ended, in words."""
        code = self.returncode or 0
        if code >= 0:
            return f"{self.name} exited with code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"{self.name} was killed by signal {-code} ({names.get(-code, 'real-time')})"


class Supervisor:
    """Starts the job's program and its sidecars and watches them until there is a reason to end."""

    def __init__(self, config: Config, argv: "list[str]", records: Records) -> None:
        self.config = config
        self.records = records
        self.address = Address(config.bind)
        self.advertise = config.advertise or (str(self.address.ip) if self.address.ip.is_loopback else records.host)
        self.lease = Lease(config.path("lease.json"), time.time())
        own = {"health": config.health, "targets": config.targets}
        self.main = Program(config.service, argv, own, self._log_stem(config.service))
        self.sidecars = [
            Program(raw["name"], list(map(native, raw["argv"])), raw, self._log_stem(raw["name"]))
            for raw in config.sidecars
        ]
        self._started_at_s = time.monotonic()
        self._used_ports: "set[int]" = set()
        self._starts = 0
        self._stop_signal = 0
        self._due_at_s: "dict[str, float]" = {}
        self._wake_read, self._wake_write = os.pipe()

    def _log_stem(self, name: str) -> str:
        return self.config.path("logs", f"{name}_{self.records.job_id}")

    def run(self) -> End:
        """Start everything; return once the job must end and its program has been asked to."""
        self._take_signals()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
        end = self._check_heartbeat() or self._check_lease()
        if end is None:
            for sidecar in self.sidecars:
                self._start_sidecar(sidecar)
            end = self._start_main()
        while end is None:
            self._pause()
            end = self._check_signal() or self._check_exit() or self._check_heartbeat()
            end = end or self._check_lease() or self._check_memory() or self._check_startup()
            if end is None:
                self._tend_sidecars()
        if end.drain_with is not None and self.main.pid:
            end = self._drain(end.drain_with) or end
        return end

    def _take_signals(self) -> None:
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wake_write)
        for number in (*STOP_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)  # any handler will do: the number arrives in the pipe
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _pause(self) -> None:
        """Wait for a signal, a healthy probe or the next tick; then reap whatever ended."""
        if select.select([self._wake_read], [], [], TICK_S)[0]:
            arrived = [number for number in os.read(self._wake_read, 4096) if number in STOP_SIGNALS]
            self._stop_signal = self._stop_signal or (arrived or [0])[0]
        self.reap()

    def reap(self) -> None:
        """Take the exit status of every child that has ended, adopted orphans included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for program in [self.main, *self.sidecars]:
                if program.pid == pid:
                    program.note_exit(status)

    def _is_due(self, what: str, interval_s: float) -> bool:
        now_s = time.monotonic()
        is_due = now_s >= self._due_at_s.get(what, 0.0)
        if is_due:
            self._due_at_s[what] = now_s + interval_s
        return is_due

    def _fill(self, text: str, port: "int | None") -> str:
        values = {"BIND": self.config.bind, "HOST": self.advertise, "JOB_ID": self.records.job_id}
        values.update(ATTEMPT=self.records.attempt, PORT="@PORT@" if port is None else str(port))
        return re.sub("@(PORT|BIND|HOST|JOB_ID|ATTEMPT)@", lambda match: values[match.group(1)], text)

    def _start(self, program: Program, env: "dict[str, str]") -> None:
        program.start([self._fill(word, program.port) for word in program.argv], env)
        if program.port is not None:
            program.probe = Probe(self.address, program.port, program.pid, program.checks)

    def _start_main(self) -> "End | None":
        config, main = self.config, self.main
        if config.is_service:
            self._starts += 1
            main.port = config.port or self.address.draw_port(self._used_ports)
            error = self.address.bind_error(main.port) if config.port else None
            if error is not None and error.errno == errno.EADDRINUSE:
                return self._port_in_use(main.port)
            if error is not None:
                raise error
        env = dict(os.environ, ORCH_RUN_ID=config.run_id, ORCH_TOKEN=config.token)
        env.update((key, self._fill(native(str(value)), main.port)) for key, value in config.env.items())
        env.update(
            (key, os.pathsep.join(filter(None, (path, env.get(key))))) for key, path in config.prepend_env.items()
        )
        env.update((key, read_secret(path)) for key, path in config.secret_env.items())
        try:
            self._start(main, env)
        except ExecError as error:
            return End("exec_failed", str(error), EXIT_EXEC_FAILED)
        if not config.is_service:
            self._register(main)
            self.records.update(state="running")
        return None

    def _start_sidecar(self, sidecar: Program) -> None:
        try:
            sidecar.port = self.address.draw_port(self._used_ports)
            self._start(sidecar, dict(os.environ))
        except (OSError, ExecError) as error:
            self._give_up(sidecar, f"{sidecar.name}: {error}")

    def _port_in_use(self, port: int) -> End:
        text = f"port {port} of {self.address.ip} is already in use by {self.address.holder(port)}"
        remedy = "End that process, or set no port to have a free one drawn."
        if self.config.port is None:
            remedy = f"The server was started {self._starts} times, each time on another free port."
        return End("port_in_use", f"{text}. {remedy}", EXIT_PORT_IN_USE)

    def _check_signal(self) -> "End | None":
        number = self._stop_signal
        if not number:
            return None
        # USR1 and USR2 announce the end of the allocation; few programs know them.
        is_forwarded = not self.config.is_service and number not in (signal.SIGUSR1, signal.SIGUSR2)
        text = f"the job received signal {number} ({signal.Signals(number).name})"
        return End("signal", text, 128 + number, number, number if is_forwarded else signal.SIGTERM)

    def _check_exit(self) -> "End | None":
        code = self.main.returncode
        if code is None:
            return None
        if -code in STOP_SIGNALS and not self._stop_signal:
            self._pause()  # batch systems signal the processes of a job one by one: ours may be on its way
            if self._stop_signal:
                return self._check_signal()
        text = self.main.describe_exit()
        if self.main.port is not None and not self.main.is_registered:
            # What the dead server left behind could hold the port as well as a stranger.
            kill_descendants(frozenset(sidecar.pid for sidecar in self.sidecars))
            error = self.address.bind_error(self.main.port)
            if self.main.is_complaining_of_address() or (error and error.errno == errno.EADDRINUSE):
                if self.config.port is not None or self._starts >= self.config.port_attempts:
                    return self._port_in_use(self.main.port)
                log(f"port {self.main.port} was lost to another process; drawing another")
                return self._start_main()
            text += " before it was healthy"
        return End("exited", text, code if code >= 0 else 128 - code)

    def _check_heartbeat(self) -> "End | None":
        if self._is_due("heartbeat", self.config.heartbeat_s) and not self.records.beat():
            return End("fenced", "another attempt or another job has taken its place", EXIT_FENCED)
        return None

    def _check_lease(self) -> "End | None":
        is_due = self.config.is_service and self._is_due("lease", self.config.lease_check_s)
        if not is_due or not self.lease.is_expired():
            return None
        text = "the run's lease has expired: no orchestrator renewed it"
        return End("lease_expired", text, EXIT_LEASE_EXPIRED, drain_with=signal.SIGTERM)

    def _check_memory(self) -> "End | None":
        limit_mib = self.config.mem_limit_mib
        if limit_mib is None or not self._is_due("memory", MEMORY_CHECK_S):
            return None
        pids = descendants(os.getpid())
        # Pss is never above Rss but dear to read: asked for only when Rss is too much.
        for is_shared_divided in (False, True):
            used_mib = sum(memory_kib(pid, is_shared_divided) for pid in pids) / 1024
            if used_mib <= limit_mib:
                return None
        text = f"the job's {len(pids)} processes use {used_mib:.0f} MiB of memory; the limit is {limit_mib:g}"
        return End("out_of_memory", text, EXIT_OUT_OF_MEMORY)

    def _check_startup(self) -> "End | None":
        probe, limit_s = self.main.probe, self.config.startup_timeout_s
        if probe is None or self.main.is_registered:
            return None
        if probe.poll(self.config, self._wake_write):
            self._become_ready()
        elif time.monotonic() - self._started_at_s > limit_s:
            text = f"{self.main.name} was not healthy within {limit_s:g} s: {probe.problem}"
            return End("startup_timeout", text, EXIT_STARTUP_TIMEOUT, drain_with=signal.SIGTERM)
        return None

    def _become_ready(self) -> None:
        ready_at, port, status = time.time(), self.main.port, self.records.status
        endpoint = {key: status[key] for key in ("schema_version", "service", "token", "job_id", "attempt")}
        endpoint.update(host=self.advertise, ip=self.address.public_ip(self.advertise), port=port)
        endpoint.update(url="http://" + host_and_port(self.advertise, port))
        endpoint.update(started_at=status["started_at"], ready_at=ready_at)
        if not self.records.is_fenced():
            self.records.publish(self.records.endpoint, dict(self.config.endpoint, **endpoint))
            self._register(self.main)
            self.records.update(state="ready", ready_at=ready_at)

    def _register(self, program: Program) -> None:
        program.is_registered = True
        self._publish_targets()

    def _publish_targets(self) -> None:
        files: "dict[str, list[Any]]" = {}
        for program in [self.main, *self.sidecars]:
            for target in program.targets:
                entries = files.setdefault(self.records.targets_path(target["kind"]), [])
                if program.is_registered:
                    where = host_and_port(self.advertise, self._fill(str(target["port"]), program.port))
                    labels = {"run": self.config.run_id, "attempt": self.records.attempt}
                    labels.update(node=self.records.host, slurm_job_id=self.records.job_id)
                    for name, value in target.get("labels", {}).items():
                        labels[name] = self._fill(str(value), program.port)
                    entries.append({"targets": [where], "labels": labels})
        for path, entries in files.items():
            if entries:
                self.records.publish(path, entries)
            else:
                self.records.withdraw(path)

    def _tend_sidecars(self) -> None:
        for sidecar in self.sidecars:
            if sidecar.is_given_up or sidecar.probe is None:
                continue
            if sidecar.returncode is not None:
                self._give_up(sidecar, sidecar.describe_exit())
            elif sidecar.is_registered:
                continue
            elif sidecar.probe.poll(self.config, self._wake_write):
                self._register(sidecar)
            elif time.monotonic() - self._started_at_s > SIDECAR_PATIENCE_S and self._is_due(sidecar.name, 3600):
                log(f"sidecar {sidecar.name} is not healthy yet: {sidecar.probe.problem}")

    def _give_up(self, sidecar: Program, why: str) -> None:
        log(f"sidecar {why}; the job goes on without it")
        sidecar.is_given_up = True
        sidecar.is_registered = False
        self._publish_targets()

    def _drain(self, number: int) -> "End | None":
        """Ask the program's process group to end and wait; what is left is killed by the caller."""
        self.records.update(state="draining")
        self.records.withdraw_all()
        deadline = time.monotonic() + self.config.stop_grace_s
        if self.main.pid in descendants(os.getpid()).values():
            try:
                os.killpg(self.main.pid, number)
            except OSError:
                pass  # it ended by itself just now
        while time.monotonic() < deadline and self.main.pid in descendants(os.getpid()).values():
            self._pause()
            end = self._check_heartbeat()
            if end is not None:
                return end
        return None


def supervise(config: Config, argv: "list[str]") -> int:
    """Run a job to its end, leave no process and no stale record, and return the exit status."""
    records = Records(config)
    if records.is_given_up():
        log("fenced: the orchestrator has given this job up before it started")
        return EXIT_FENCED
    records.claim()
    code = None
    try:
        supervisor = Supervisor(config, argv, records)
        end = supervisor.run()
        kill_descendants()
        supervisor.reap()
        code = supervisor.main.returncode
    except Exception as error:  # noqa: BLE001 - whatever it is, the server must not outlive its supervisor
        log(traceback.format_exc())
        end = End("supervisor_error", f"{type(error).__name__}: {error}", EXIT_ERROR)
        kill_descendants()
    log(f"{end.reason}: {end.message}")
    records.withdraw_all()
    if end.reason != "fenced":
        exit_code = code if code is not None and code >= 0 else None
        number = end.signal or (-code if code is not None and code < 0 else None)
        records.finish(reason=end.reason, message=end.message, exit_code=exit_code, signal=number)
        if end.signal == signal.SIGUSR1 and config.requeue_argv:
            requeue(config.requeue_argv, records.job_id)
    return end.exit_status


def requeue(argv: "list[str]", job_id: str) -> None:
    """Put this job back into the queue, as its wall time is nearly over; the scheduler then ends what is left of it."""
    words = [word.replace("@JOB_ID@", job_id) for word in argv]
    try:
        subprocess.run(words, check=True, stdin=subprocess.DEVNULL, timeout=REQUEUE_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        log(f"cannot be requeued, and ends here: {error}")
        return
    log("requeued: its wall time was nearly over")
    time.sleep(REQUEUE_TIMEOUT_S)


def main(argv: "list[str]") -> int:
    """Run the command line and return the exit status."""
    if len(argv) < 3 or argv[1] != "--":
        log("usage: supervisor.py CONFIG.json -- ARGV...")
        return EXIT_USAGE
    os.umask(0o077)
    try:
        with open(argv[0], encoding="utf-8") as file:
            config = Config(**json.load(file))
        if config.schema_version != 1 or config.kind not in ("service", "task"):
            raise ValueError("schema_version must be 1, and kind service or task")
    except (OSError, ValueError, TypeError) as error:
        log(f"{argv[0]}: {error}")
        return EXIT_ERROR
    return supervise(config, argv[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
