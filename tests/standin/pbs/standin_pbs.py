"""A PBS of one node in one folder: qsub, qstat and qdel beside this file, for whole runs where no PBS is.

It is a stand-in for OpenPBS 23.06.06 as ``tests/contract/recorded_pbs`` shows it, and nothing is to be concluded from
it about a real one: orch is checked on a real OpenPBS as well, from time to time. Taken over from there:

- qsub takes one script and no arguments, reads ``#PBS`` lines up to the first command, refuses names that PBS refuses;
- a job starts in the home directory with a fresh environment, and its output is copied to ``-o`` at its very end;
- qstat writes the recorded JSON, exits 153 or 35 for unknown and finished jobs *and* prints the others; without
  history (a file ``history`` in the state folder turns it on) a finished job is as unknown as one that never was;
- an array job (``-J``) is listed by itself, and with ``-t`` its subjobs too; those that have ended are ``X`` until all
  have;
- qdel sends TERM to the whole session, the job stays ``R``, and what lives after the kill delay is killed;
- with a file ``down`` in the state folder nothing answers, and qstat still prints a document.

There is no scheduling: every job starts at once, but for those with ``-W depend``, which are held until the others have
ended, and deleted when an ``afterok`` cannot be met any more (by qsub(1B); not recorded). State is in the folder that
STANDIN_PBS_STATE names.
"""

from __future__ import annotations

import fcntl
import getopt
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HOST = "pbshost"
HERE = Path(__file__).resolve().parent
QUEUES = ("workq", "gpu", "cpu")
UNKNOWN_JOB, FINISHED_JOB, FINISHED_SUBJOB, NO_CONNECTION, UNKNOWN_QUEUE = 153, 35, 55, 162, 170
KILL_DELAY_S = float(os.environ.get("STANDIN_PBS_KILL_DELAY_S", "10"))
POLL_S = 0.05
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]{0,229}")
_OPTIONS = "A:e:j:J:l:m:M:N:o:q:r:S:v:W:"
Job = dict[str, Any]


class RefusedError(Exception):
    """A command ends with this exit code and these words."""

    def __init__(self, code: int, words: str) -> None:
        self.code = code
        super().__init__(words)


class State:
    """The files of the server: one JSON file for each job, its spooled script and output, requests to delete it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def has_history(self) -> bool:
        return (self.folder / "history").exists()

    @property
    def is_down(self) -> bool:
        return (self.folder / "down").exists()

    def path(self, key: str, what: str) -> Path:
        return self.folder / f"{key}.{what}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def next_number(self) -> int:
        with self.locked():
            path = self.folder / "sequence"
            number = int(path.read_text()) + 1 if path.exists() else 0
            path.write_text(str(number))
        return number

    def write(self, key: str, job: Job) -> None:
        draft = self.path(key, f"draft{os.getpid()}")
        draft.write_text(json.dumps(job))
        draft.replace(self.path(key, "job"))

    def jobs(self) -> dict[str, Job]:
        """Return the jobs by their ids without the server's name: ``19``, ``20[]`` and its subjobs ``20[0]``, …"""
        found = {}
        for path in self.folder.glob("*.job"):
            with suppress(FileNotFoundError):  # it ends while we look
                found[path.name.partition(".")[0]] = json.loads(path.read_text())
        return dict(sorted(found.items(), key=lambda item: [int(part) for part in re.findall(r"\d+", item[0])]))

    def subjobs(self, parent: str) -> dict[str, Job]:
        """Return the subjobs of an array job."""
        return {key: job for key, job in self.jobs().items() if job.get("array_id") == f"{parent}.{HOST}"}


def user() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


def clock(at: float | None = None) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(at))


def directives(script: str) -> list[str]:
    """Return the words of the ``#PBS`` lines before the first command."""
    words: list[str] = []
    for line in script.splitlines():
        text = line.lstrip()
        if text.startswith("#PBS"):
            words += shlex.split(text.removeprefix("#PBS"))
        elif text and not text.startswith("#"):
            break
    return words


def parse(words: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    try:
        return getopt.getopt(words, _OPTIONS)
    except getopt.GetoptError as error:
        raise RefusedError(2, f"qsub: {error}\nusage: qsub [-A <account string>] … [script]") from error


def resources(options: list[tuple[str, str]]) -> dict[str, str]:
    found = {}
    for name, value in options:
        if name == "-l":
            for item in value.split(","):
                key, _, wanted = item.partition("=")
                found[key] = wanted
    return found


def variables(options: list[tuple[str, str]]) -> dict[str, str]:
    found = {}
    for name, value in options:
        if name == "-v":
            for item in value.split(","):
                key, is_given, text = item.partition("=")
                found[key] = text if is_given else os.environ.get(key, "")
    return found


def qsub(state: State, argv: list[str]) -> None:
    given, operands = parse(argv)
    if len(operands) != 1:
        raise RefusedError(2, "usage: qsub [-A <account string>] … [script]")
    try:
        script = Path(operands[0]).read_text()
    except FileNotFoundError as error:
        raise RefusedError(1, "qsub: script file:: No such file or directory") from error
    if state.is_down:
        raise RefusedError(NO_CONNECTION, f"Connection refused\nqsub: cannot connect to server {HOST} (errno=15010)")
    inside, rest = parse(directives(script))
    if rest:
        raise RefusedError(2, f"qsub: directive error: {' '.join(rest)}")
    options = [*inside, *given]
    last = dict(options)
    name = last.get("-N", Path(operands[0]).name)
    if "-N" in last and not _NAME.fullmatch(name):
        raise RefusedError(2, "qsub: illegal -N value")
    queue = last.get("-q", QUEUES[0])
    if queue not in QUEUES:
        raise RefusedError(UNKNOWN_QUEUE, "qsub: Unknown queue")
    number = state.next_number()
    asked = resources(options)
    job = new_job(number, name, queue, last, asked, operands[0])
    job["Variable_List"] |= variables(options)
    depend = [value.partition("=")[2] for name, value in options if name == "-W" and value.startswith("depend=")]
    if depend:
        job |= {"job_state": "H", "Hold_Types": "s", "depend": depend[-1]}
    if "-J" in last:
        if last.get("-r") == "n":
            raise RefusedError(1, "qsub: cannot submit non-rerunable Array Job")
        queue_array(state, number, job, last["-J"], script)
        print(f"{number}[].{HOST}")
    else:
        queue_job(state, str(number), job, script)
        print(f"{number}.{HOST}")


def queue_job(state: State, key: str, job: Job, script: str) -> None:
    """Spool a job and start the daemon that runs it."""
    state.path(key, "SC").write_text(script)
    state.write(key, job)
    with (state.folder / "mom.log").open("a") as log:
        subprocess.Popen(
            [sys.executable, str(HERE / "standin_pbs.py"), "mom", key],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def queue_array(state: State, number: int, job: Job, wanted: str, script: str) -> None:
    """Spool an array job and its subjobs; all of them are there before the first one starts."""
    first, _, last = wanted.partition("-")
    indices = range(int(first), int(last or first) + 1)
    if len(indices) < 2:
        raise RefusedError(1, "qsub: illegal -J value")
    state.write(f"{number}[]", {**job, "job_state": "B", "array": "True", "array_indices_submitted": wanted})
    subjobs = {
        f"{number}[{index}]": {
            **job,
            "Output_Path": job["Output_Path"].replace("^array_index^", str(index)),
            "array_id": f"{number}[].{HOST}",
            "array_index": index,
        }
        for index in indices
    }
    for key, subjob in subjobs.items():
        state.write(key, subjob)
    for key, subjob in subjobs.items():
        queue_job(state, key, subjob, script)


def new_job(number: int, name: str, queue: str, last: dict[str, str], asked: dict[str, str], script: str) -> Job:
    """Return a queued job's attributes, in the recorded order."""
    home, now = str(Path.home()), clock()
    output = str(Path(last.get("-o", f"{name}.o{number}")).absolute())
    chunk = dict(item.partition("=")[::2] for item in asked.get("select", "1:ncpus=1").split(":")[1:])
    return {
        "Job_Name": name,
        "Job_Owner": f"{user()}@{HOST}",
        "job_state": "Q",
        "queue": queue,
        "server": HOST,
        **({"Account_Name": last["-A"]} if "-A" in last else {}),
        "Checkpoint": "u",
        "ctime": now,
        "Error_Path": f"{HOST}:{Path.cwd()}/{name}.e{number}",
        "Hold_Types": "n",
        "Join_Path": last.get("-j", "n"),
        "Keep_Files": "n",
        "Mail_Points": last.get("-m", "a"),
        "mtime": now,
        "Output_Path": f"{HOST}:{output}",
        "Priority": 0,
        "qtime": now,
        "Rerunable": "False" if last.get("-r") == "n" else "True",
        "Resource_List": {
            "mem": chunk.get("mem", "0b"),
            "ncpus": int(chunk.get("ncpus", 1)),
            **({"ngpus": int(chunk["ngpus"])} if "ngpus" in chunk else {}),
            "nodect": int(asked.get("select", "1").partition(":")[0]),
            "place": asked.get("place", "free"),
            "select": asked.get("select", "1:ncpus=1"),
            **({"walltime": asked["walltime"]} if "walltime" in asked else {}),
        },
        "substate": 10,
        "Variable_List": {
            "PBS_O_HOME": home,
            "PBS_O_LANG": "C.UTF-8",
            "PBS_O_LOGNAME": user(),
            "PBS_O_PATH": os.environ.get("PATH", ""),
            "PBS_O_SHELL": "/bin/bash",
            "PBS_O_WORKDIR": str(Path.cwd()),
            "PBS_O_SYSTEM": "Linux",
            "PBS_O_QUEUE": queue,
            "PBS_O_HOST": HOST,
        },
        "etime": now,
        "Submit_arguments": script,
        "project": "_pbs_project_default",
        "Submit_Host": HOST,
    }


def in_session(session: int) -> list[int]:
    """Return the pids of a session's living processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found


def send(session: int, number: signal.Signals) -> None:
    for pid in in_session(session):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Mom:
    """The daemon of the node, for one job."""

    def __init__(self, state: State, key: str) -> None:
        self.state, self.key = state, key
        self.job: Job = state.jobs()[key]
        self.output = state.path(key, "OU")

    def run(self) -> None:
        if not self.is_released():
            self.state.path(self.key, "exit").write_text("271")
            self.state.path(self.key, "job").unlink()
            return
        process = self.start()
        why = self.watch(process)
        send(process.pid, signal.SIGKILL)
        code = process.wait()
        status = 256 - code if code < 0 else code
        self.end(-29 if why == "exceeded resource walltime" else status, why or ("finished" if not code else "failed"))

    def is_released(self) -> bool:
        """Wait for the jobs that this one depends on; return whether it may start."""
        clauses = [clause.split(":") for clause in self.job.get("depend", "").split(",") if clause]
        waits = [(kind, self.state.path(job_id.partition(".")[0], "exit")) for kind, *ids in clauses for job_id in ids]
        while waits:
            if self.state.path(self.key, "delete").exists():
                return False
            over = [(kind, path) for kind, path in waits if path.exists()]
            if any(kind == "afterok" and path.read_text() != "0" for kind, path in over):
                return False
            waits = [item for item in waits if item not in over]
            time.sleep(POLL_S)
        return True

    def start(self) -> subprocess.Popen[bytes]:
        job_id = f"{self.key}.{HOST}"
        nodes = self.state.path(self.key, "nodes")
        nodes.write_text(HOST + "\n")
        cpus = str(self.job["Resource_List"]["ncpus"])
        environment = {name: os.environ[name] for name in ("HOME", "STANDIN_PBS_STATE") if name in os.environ}
        environment |= {"USER": user(), "LOGNAME": user(), "SHELL": "/bin/bash", "LANG": "C.UTF-8"}
        environment |= {"PATH": f"{HERE}:/usr/local/bin:/usr/bin:/bin", "NCPUS": cpus, "OMP_NUM_THREADS": cpus}
        environment |= {"PBS_ENVIRONMENT": "PBS_BATCH", "PBS_JOBID": job_id, "PBS_JOBNAME": self.job["Job_Name"]}
        environment |= {"PBS_QUEUE": self.job["queue"], "PBS_NODEFILE": str(nodes), **self.job["Variable_List"]}
        if "array_index" in self.job:
            environment |= {"PBS_ARRAY_INDEX": str(self.job["array_index"]), "PBS_ARRAY_ID": self.job["array_id"]}
        with self.output.open("wb") as output:
            self.output.chmod(0o600)
            process = subprocess.Popen(
                ["/bin/bash", str(self.state.path(self.key, "SC"))],
                cwd=Path.home(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        where = f"({HOST}:ncpus={cpus}:mem={self.job['Resource_List']['mem']})"
        self.job |= {"job_state": "R", "substate": 42, "stime": clock(), "mtime": clock(), "run_count": 1}
        self.job |= {
            "exec_host": f"{HOST}/{self.key.partition('[')[0]}",
            "exec_vnode": where,
            "session_id": process.pid,
        }
        self.job["comment"] = f"Job run at {time.strftime('%a %b %e at %H:%M')} on {where}"
        self.state.write(self.key, self.job)
        return process

    def watch(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for the end; return what asked for it, in PBS's words, or nothing."""
        began, asked_at, why = time.monotonic(), 0.0, ""
        hours, minutes, seconds = (self.job["Resource_List"].get("walltime") or "9999:0:0").split(":")
        limit_s = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
        while process.poll() is None:
            now = time.monotonic()
            if not why:
                if self.state.path(self.key, "delete").exists():
                    why = f"terminated by {user()}@{HOST}"
                elif now - began > limit_s:
                    why = "exceeded resource walltime"
                    with self.output.open("a") as output:
                        output.write(f"=>> PBS: job killed: walltime {now - began:.0f} exceeded limit {limit_s}\n")
                if why:
                    asked_at = now
                    send(process.pid, signal.SIGTERM)
            elif now - asked_at > KILL_DELAY_S:
                send(process.pid, signal.SIGKILL)
            time.sleep(POLL_S)
        return why

    def end(self, status: int, why: str) -> None:
        target = Path(self.job["Output_Path"].partition(":")[2])
        with suppress(OSError):  # PBS mails the user and keeps the file
            shutil.copyfile(self.output, target)
            target.chmod(0o600)
        substate = 91 if why.startswith("terminated") else 93 if status else 92
        self.job |= {"job_state": "F", "substate": substate, "obittime": clock(), "mtime": clock()}
        self.job |= {"comment": f"{self.job['comment']} and {why}", "Stageout_status": 1, "Exit_status": status}
        draft = self.state.path(self.key, "exiting")
        draft.write_text(str(status))
        draft.replace(self.state.path(self.key, "exit"))
        if "array_id" in self.job:
            self.end_subjob()
        else:
            self.forget(self.key, self.job)

    def end_subjob(self) -> None:
        """Let the subjob be ``X``, and the whole array be finished with its last one."""
        parent = self.job["array_id"].partition(".")[0]
        with self.state.locked():
            self.state.write(self.key, {**self.job, "job_state": "X"})
            siblings = self.state.subjobs(parent)
            if all(job["job_state"] == "X" for job in siblings.values()):
                for key, job in {parent: self.state.jobs()[parent], **siblings}.items():
                    self.forget(key, {**job, "job_state": "F"})

    def forget(self, key: str, job: Job) -> None:
        if self.state.has_history:
            self.state.write(key, job)
        else:
            self.state.path(key, "job").unlink()


def split(state: State, ids: list[str]) -> tuple[dict[str, Job], dict[str, str | None]]:
    """Return all jobs, and the key of each asked id, None for those that are not known."""
    jobs = state.jobs()
    keys = {job_id: job_id.partition(".")[0] for job_id in ids}
    return jobs, {job_id: key if key in jobs else None for job_id, key in keys.items()}


def qdel(state: State, argv: list[str]) -> None:
    if state.is_down:
        raise RefusedError(NO_CONNECTION, f"Connection refused\nCouldn't connect to cluster: {HOST}")
    jobs, asked = split(state, argv)
    problems: list[str] = []
    code = 0
    for job_id, key in asked.items():
        if key is None:
            problems, code = [*problems, f"qdel: Unknown Job Id {job_id}"], UNKNOWN_JOB
        elif jobs[key]["job_state"] == "F":
            problems, code = [*problems, f"qdel: Job has finished {job_id}"], FINISHED_JOB
        elif jobs[key]["job_state"] == "X":
            words = f"qdel: Request invalid for finished array subjob {job_id}"
            problems, code = [*problems, words], FINISHED_SUBJOB
        else:
            for one in state.subjobs(key) or [key]:
                state.path(one, "delete").touch()
    if problems:
        raise RefusedError(code, "\n".join(problems))


def qstat(state: State, argv: list[str]) -> None:
    options, ids = getopt.getopt(argv, "fxtF:")
    if ("-F", "json") not in options or ("-f", "") not in options:
        raise RefusedError(2, "qstat: conflicting options.")
    document: dict[str, Any] = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": HOST}
    wants_finished = ("-x", "") in options
    try:
        if state.is_down:
            raise RefusedError(255, f"Connection refused\nqstat: cannot connect to server {HOST} (errno=15010)")
        listed, problem = look(state, ids, wants_finished)
        wants_subjobs = ("-t", "") in options
        told = {key: job for key, job in listed.items() if wants_subjobs or "array_id" not in job}
        if told:
            document["Jobs"] = {f"{key}.{HOST}": job for key, job in told.items()}
        if problem:
            raise problem
    finally:
        print(json.dumps(document, indent="\t", separators=(",", ":\t")))


def look(state: State, ids: list[str], wants_finished: bool) -> tuple[dict[str, Job], RefusedError | None]:
    """Return the jobs to tell of, and what goes to stderr with which code."""
    jobs, asked = split(state, ids)
    if wants_finished and not state.has_history:
        words = [f"qstat: PBS is not configured to maintain job history {job_id}".rstrip() for job_id in ids or [""]]
        return {}, RefusedError(0, "\n".join(words))
    chosen = {
        key: job
        for key, job in jobs.items()
        if (not ids or key in asked.values()) and (wants_finished or job["job_state"] != "F")
    }
    problems: list[str] = []
    code = 0
    for job_id, wanted in asked.items():
        if wanted is None:
            problems, code = [*problems, f"qstat: Unknown Job Id {job_id}"], UNKNOWN_JOB
        elif wanted not in chosen:
            text = f"qstat: {job_id} Job has finished, use -x or -H to obtain historical job information"
            problems, code = [*problems, text], FINISHED_JOB
    return chosen, RefusedError(code, "\n".join(problems)) if problems else None


def main(command: str, argv: list[str]) -> int:
    """Run one of the commands and return its exit code."""
    state = State(Path(os.environ["STANDIN_PBS_STATE"]))
    try:
        {"qsub": qsub, "qstat": qstat, "qdel": qdel}[command](state, argv)
    except RefusedError as refusal:
        print(refusal, file=sys.stderr)
        return refusal.code
    return 0


if __name__ == "__main__":
    Mom(State(Path(os.environ["STANDIN_PBS_STATE"])), sys.argv[2]).run()
