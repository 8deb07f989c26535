"""The batch system of one machine: jobs are sessions of processes that outlive whoever submitted them.

``python3 local_jobs.py submit|status|find|cancel …``

Standard library only, Python 3.6, no import from this project: it is run as a command, over SSH too.
Answers go to stdout (an id, or one JSON object a line), complaints to stderr.

A job's id is ``<pid>.<start time in clock ticks since boot>`` of its leader, the ``bash`` that runs the script
or what that has exec'ed: the pair, unlike a pid, is never given twice before the next boot. The registry holds
one file for each job, written before the first line of the script can run.
"""

import argparse
import contextlib
import errno
import fcntl
import functools
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

LISTED_AFTER_END_S = 86400.0
KEPT_AFTER_END_S = 7 * 86400.0
# A home folder may serve many hosts; only its own host can tell whether a job has ended.
KEPT_OF_OTHER_HOSTS_S = 30 * 86400.0
POLL_S = 0.05
KILL_PATIENCE_S = 5.0


class SubmitError(Exception):
    """A job could not be started."""


class Process(NamedTuple):
    """A process and what identifies it."""

    pid: int
    ppid: int
    session: int
    start_time: int
    is_alive: bool

    @classmethod
    def read(cls, pid: "int | str") -> "Process | None":
        """Return the process with this pid now, or None."""
        try:
            raw = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        # Fields from the third on (proc(5)); the second, a name in parentheses, may hold anything.
        fields = raw.rpartition(b")")[2].split()
        is_alive = fields[0] not in (b"Z", b"X")
        return cls(int(pid), int(fields[1]), int(fields[3]), int(fields[19]), is_alive)

    def send(self, number: int) -> None:
        """Send a signal, if the pid still is this process."""
        now = Process.read(self.pid)
        if now is not None and now.start_time == self.start_time:
            with contextlib.suppress(OSError):  # it ended by itself
                os.kill(self.pid, number)


def read_all_processes() -> "dict[int, Process]":
    """Return every living process of this machine by pid."""
    found = (Process.read(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return {process.pid: process for process in found if process is not None and process.is_alive}


@functools.lru_cache(maxsize=1)
def boot_id() -> str:
    """Return what changes when the machine boots, and start times begin anew."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Job:
    """One registry file."""

    def __init__(self, path: Path, entry: "dict[str, Any]") -> None:
        self.path = path
        self.entry = entry
        self.id = str(entry["id"])
        self.pid = int(entry["pid"])
        self.start_time = int(entry["starttime"])
        self.is_here = entry.get("host", socket.gethostname()) == socket.gethostname()
        self._is_this_boot = entry.get("boot_id", boot_id()) == boot_id()

    def save(self, **changes: Any) -> None:
        """Replace the file as a whole."""
        self.entry.update(changes)
        temporary = self.path.parent / f".{self.path.name}.{os.getpid()}.tmp"
        temporary.write_text(json.dumps(self.entry) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def note(self, **changes: Any) -> None:
        """Save what was seen or done, if the disk lets us."""
        try:
            self.save(**changes)
        except OSError as error:
            print(f"local_jobs: cannot note the state of {self.id}: {error}", file=sys.stderr)

    def is_pid_ours(self, process: "Process | None") -> bool:
        """Tell whether the process with the leader's pid is the leader."""
        return self._is_this_boot and process is not None and process.start_time == self.start_time

    def members(self, processes: "dict[int, Process]", known: "set[Process]") -> "list[Process]":
        """Return the job's living processes: leader, session, and all that descend from these or ``known``.

        A session's number is not given to another process while a member lives. So if a later process has the
        leader's pid, the session had ended before, and nothing with that number is ours.
        """
        leader = processes.get(self.pid)
        is_over = "ended_at" in self.entry or not self.is_here or not self._is_this_boot
        if is_over or (leader is not None and not self.is_pid_ours(leader)):
            return []
        uid = os.getuid()
        found = {pid for pid, process in processes.items() if process.session == self.pid and is_owned(pid, uid)}
        found.update(old.pid for old in known if is_same(processes.get(old.pid), old))
        found = {pid for pid in found if processes[pid].start_time >= self.start_time}
        queue = list(found)
        children: dict[int, list[int]] = {}
        for process in processes.values():
            children.setdefault(process.ppid, []).append(process.pid)
        while queue:
            below = [pid for pid in children.get(queue.pop(), []) if pid not in found]
            found.update(below)
            queue.extend(below)
        return [processes[pid] for pid in found]


def is_owned(pid: int, uid: int) -> bool:
    """Tell whether a process belongs to the user."""
    try:
        return Path(f"/proc/{pid}").stat().st_uid == uid
    except OSError:
        return False


def is_same(process: "Process | None", earlier: Process) -> bool:
    """Tell whether a pid still means the process that was seen earlier."""
    return process is not None and process.start_time == earlier.start_time


class Registry:
    """The folder with one file for each job of this user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._processes: dict[int, Process] | None = None

    def jobs(self) -> "list[Job]":
        """Return all jobs, oldest first; a file that is no job is complained about and left alone.

        Raises:
            OSError: the folder cannot be read: whether there are jobs is not known.
        """
        found = []
        # Not glob(), which takes a folder that may not be read for an empty one.
        for path in [path for path in self.folder.iterdir() if path.suffix == ".json"]:
            try:
                found.append(Job(path, json.loads(path.read_text(encoding="utf-8"))))
            except FileNotFoundError:
                continue  # pruned meanwhile
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"local_jobs: {path} is no job: {error!r}", file=sys.stderr)
        return sorted(found, key=lambda job: float(job.entry.get("submitted_at", 0.0)))

    def state(self, job: Job) -> str:
        """Return the job's state, and note in its file when it was first seen ended."""
        if not job.is_here:
            return "UNKNOWN"
        if "ended_at" not in job.entry:
            leader = Process.read(job.pid)
            if leader is not None and leader.is_alive and job.is_pid_ours(leader):
                return "RUNNING"
            if self._processes is None:
                self._processes = read_all_processes()
            if job.members(self._processes, set()):
                return "ORPHANED"
            job.note(ended_at=time.time())
        return "CANCELLED" if "cancelled_at" in job.entry else "ENDED"

    def describe(self, job: Job) -> "dict[str, Any]":
        """Return the job's line in an answer."""
        host = job.entry.get("host", socket.gethostname())
        line = {"id": job.id, "name": job.entry.get("name"), "state": self.state(job), "host": host}
        return dict(line, within=job.entry["within"]) if "within" in job.entry else line

    def prune(self) -> None:
        """Remove the files of jobs that ended long ago."""
        for job in self.jobs():
            self.state(job)
            now, entry = time.time(), job.entry
            is_old = now - float(entry.get("ended_at", now)) > KEPT_AFTER_END_S
            is_foreign = not job.is_here and now - float(entry.get("submitted_at", now)) > KEPT_OF_OTHER_HOSTS_S
            if is_old or is_foreign:
                with contextlib.suppress(FileNotFoundError):
                    job.path.unlink()

    def choose_cpus(self, number: int) -> "set[int]":
        """Return the next CPUs in turn, of those that this process may use.

        Raises:
            SubmitError: there are fewer.
        """
        allowed = sorted(os.sched_getaffinity(0))
        if not 1 <= number <= len(allowed):
            raise SubmitError(f"--cpus {number}: this machine gives {len(allowed)}. Allowed: 1-{len(allowed)}.")
        with (self.folder / "next_cpu").open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            first = int(text) if text.isdigit() else 0
            file.truncate(0)
            file.write(str((first + number) % len(allowed)))
        return {allowed[(first + at) % len(allowed)] for at in range(number)}


class Submission(NamedTuple):
    """A job to be: what its registry file says, and what becomes its leader."""

    registry: Registry
    name: str
    script: Path
    stdout: Path
    cpus: "set[int]"
    within: "str | None" = None

    def start(self) -> str:
        """Start the job in a session of its own and return its id once bash runs.

        Raises:
            SubmitError: bash cannot be executed, or the job cannot be registered.
        """
        answer_read, answer_write = os.pipe()
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                self._become_job(answer_write)
            os._exit(0)
        os.close(answer_write)
        os.waitpid(child, 0)
        with os.fdopen(answer_read, "rb") as file:
            answer = file.read().decode("utf-8", "replace")  # ends when exec closes the other side
        job_id, _, problem = answer.partition("\n")
        if problem or not job_id:
            raise SubmitError(problem.strip() or "the job died before it was registered")
        return job_id

    def _become_job(self, answer_fd: int) -> None:
        """Turn this process into the job's leader; never returns."""
        path = None
        try:
            os.setsid()
            process = Process.read(os.getpid())
            if process is None:
                raise OSError(errno.ESRCH, "/proc does not show this process")
            job_id = f"{process.pid}.{process.start_time}"
            stdout = self.stdout.with_name(self.stdout.name.replace("%j", job_id))
            null = os.open(os.devnull, os.O_RDONLY)
            output = os.open(str(stdout), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for source, target in ((null, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            for fd in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
                if fd > 2 and fd != answer_fd:
                    with contextlib.suppress(OSError):  # the listing's own is closed by now
                        os.close(fd)
            if self.cpus:
                os.sched_setaffinity(0, self.cpus)
            job = self._register(job_id, process, stdout)
            path = job.path
            os.environ["ORCH_JOB_ID"] = job.id
            with contextlib.suppress(BrokenPipeError):  # the submitter is gone: the job runs all the same
                os.write(answer_fd, (job.id + "\n").encode())
            for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)  # Python ignores SIGPIPE, a submitter under nohup SIGHUP
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvp("bash", ["bash", str(self.script)])  # noqa: S606 - the script is the job
        except OSError as error:
            if path is not None:
                path.unlink()
            os.write(answer_fd, f"\n{error}".encode("utf-8", "replace"))
        finally:
            os._exit(127)

    def _register(self, job_id: str, process: Process, stdout: Path) -> Job:
        entry = {"id": job_id, "name": self.name, "pid": process.pid, "starttime": process.start_time}
        entry.update(sid=process.session, script=str(self.script), stdout=str(stdout))
        entry.update(submitted_at=time.time(), host=socket.gethostname(), boot_id=boot_id())
        if self.within is not None:
            entry["within"] = self.within
        job = Job(self.registry.folder / f"{job_id}.json", entry)
        job.save()
        return job


class Cancellation:
    """Ends jobs: asks their leaders, waits, then kills whatever is left of their sessions and descendants."""

    def __init__(self, jobs: "list[Job]") -> None:
        self._known: dict[str, set[Process]] = {job.id: set() for job in jobs}
        self._jobs = jobs

    def run(self, grace_s: float) -> "dict[str, list[int]]":
        """Return the pids of each job that could not even be killed."""
        for job in self._jobs:
            job.note(cancelled_at=time.time())
        remaining = self._look()
        asked: set[tuple[int, int]] = set()
        deadline = time.monotonic() + grace_s
        while any(remaining.values()) and time.monotonic() < deadline:
            for job in self._jobs:
                members = remaining[job.id]
                leaders = [process for process in members if process.pid == job.pid]
                # A leader tells its own processes; without one (it died, or bash did) they are told directly.
                for process in sorted(leaders or members, key=lambda process: process.start_time):
                    if (process.pid, process.start_time) not in asked:
                        process.send(signal.SIGTERM)
                        asked.add((process.pid, process.start_time))
            time.sleep(POLL_S)
            remaining = self._look()
        return self._kill(remaining)

    def _look(self) -> "dict[str, list[Process]]":
        processes = read_all_processes()
        found = {job.id: job.members(processes, self._known[job.id]) for job in self._jobs}
        for job_id, members in found.items():
            # Remembered, because a child in a session of its own cannot be traced once its parent is gone.
            self._known[job_id].update(members)
        return found

    def _kill(self, remaining: "dict[str, list[Process]]") -> "dict[str, list[int]]":
        deadline = time.monotonic() + KILL_PATIENCE_S
        stopped: set[Process] = set()
        while any(remaining.values()) and time.monotonic() < deadline:
            fresh = {process for members in remaining.values() for process in members} - stopped
            if fresh:  # stopped first, so that no child is born between the look and the kill
                for process in fresh:
                    process.send(signal.SIGSTOP)
                stopped |= fresh
            else:
                for process in stopped:
                    process.send(signal.SIGKILL)
                time.sleep(POLL_S)
            remaining = self._look()
        return {job_id: [process.pid for process in members] for job_id, members in remaining.items()}


def submit(registry: Registry, options: argparse.Namespace) -> int:
    """Start a job and print its id."""
    try:
        script, stdout = Path(options.script).absolute(), Path(options.stdout).absolute()
        with script.open("rb"):
            pass
        registry.prune()
        cpus = registry.choose_cpus(options.cpus) if options.cpus is not None else set()
        job_id = Submission(registry, options.name, script, stdout, cpus, options.within).start()
    except (OSError, SubmitError) as error:
        print(f"local_jobs: {error}", file=sys.stderr)
        return 1
    print(job_id)
    return 0


def status(registry: Registry, _: argparse.Namespace) -> int:
    """Print every job that lives or ended in the last day."""
    for job in registry.jobs():
        line = registry.describe(job)
        if time.time() - float(job.entry.get("ended_at", time.time())) <= LISTED_AFTER_END_S:
            print(json.dumps(line))
    return 0


def find(registry: Registry, options: argparse.Namespace) -> int:
    """Print the jobs with a name."""
    for job in registry.jobs():
        if job.entry.get("name") == options.name:
            print(json.dumps(registry.describe(job)))
    return 0


def cancel(registry: Registry, options: argparse.Namespace) -> int:
    """End jobs and print what became of each: CANCELLED, or what it had been before, or UNKNOWN."""
    known = {job.id: job for job in registry.jobs()}
    states = {job_id: registry.state(known[job_id]) if job_id in known else "UNKNOWN" for job_id in options.ids}
    living = [known[job_id] for job_id, state in states.items() if state in ("RUNNING", "ORPHANED")]
    survivors = Cancellation(living).run(options.grace_s)
    for job_id in options.ids:
        line: dict[str, Any] = {"id": job_id, "name": None, "state": "UNKNOWN", "was": states[job_id]}
        if job_id in known:
            line.update(Registry(registry.folder).describe(known[job_id]))
        print(json.dumps(dict(line, unkillable=survivors.get(job_id, []))))
    return 0


def default_state_dir() -> Path:
    """Return the folder of this user's jobs.

    Raises:
        RuntimeError: the user has no home.
    """
    state_home = os.environ.get("XDG_STATE_HOME")
    return (Path(state_home) if state_home else Path.home() / ".local" / "state") / "orch" / "jobs"


def main(argv: "list[str]") -> int:
    """Run the command line and return the exit status."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--state-dir", type=Path, help="folder of the jobs ($XDG_STATE_HOME/orch/jobs)")
    parser = argparse.ArgumentParser(prog="local_jobs.py", description="The batch system of one machine.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    command = commands.add_parser("submit", parents=[common], help="start a job and print its id")
    command.add_argument("--name", required=True)
    command.add_argument("--stdout", required=True, help="file for the output of the script; %%j is its id")
    command.add_argument("--cpus", type=int, help="bind the job to so many CPUs")
    command.add_argument("--within", metavar="ID", help="batch job that this one ends with; it is told of again")
    command.add_argument("script")
    command.set_defaults(run=submit)

    command = commands.add_parser("status", parents=[common], help="print jobs that live or ended in the last day")
    command.set_defaults(run=status)

    command = commands.add_parser("find", parents=[common], help="print the jobs with a name")
    command.add_argument("--name", required=True)
    command.set_defaults(run=find)

    command = commands.add_parser("cancel", parents=[common], help="end jobs")
    command.add_argument("--grace-s", type=float, default=30.0, help="time between SIGTERM and SIGKILL")
    command.add_argument("ids", nargs="+", metavar="ID")
    command.set_defaults(run=cancel)

    options = parser.parse_args(argv)
    if options.command is None:
        parser.error("a COMMAND is needed")
    os.umask(0o077)
    try:
        folder = (options.state_dir or default_state_dir()).absolute()
    except (OSError, RuntimeError) as error:
        print(f"local_jobs: no place for the registry of jobs: {error}. Set XDG_STATE_HOME.", file=sys.stderr)
        return 1
    try:
        return int(options.run(Registry(folder), options))
    except OSError as error:
        print(
            f"local_jobs: the registry of jobs in {folder} cannot be used: {error}. "
            "Set XDG_STATE_HOME to a folder that you may write.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
