"""The batch system of one machine, with real jobs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.schedulers.local import LocalScheduler
from orchestrator.transports import Answer
from tests.orchestrator.conftest import NODE_PYTHON, SUPERVISOR, SupervisedJob, is_running, wait_for

PROGRAM = SUPERVISOR.parent / "schedulers" / "local_jobs.py"
COMMAND = [*NODE_PYTHON, str(PROGRAM)]


class Machine:
    """The command line, with a registry of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.registry = folder / "state"

    def run(self, command: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        argv = [*COMMAND, command, "--state-dir", str(self.registry), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, **options)

    def lines(self, command: str, *arguments: str) -> list[dict[str, Any]]:
        """Return the JSON lines that a command answers."""
        done = self.run(command, *arguments)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def script(self, text: str) -> str:
        """Return the path of a new script; bash reads it bit by bit, so no two jobs share one."""
        path = self.folder / f"job's script {len(list(self.folder.iterdir()))}.sh"
        path.write_text(text)
        return str(path)

    def submit(self, text: str, *options: str, name: str = "orch-1-vllm") -> str:
        """Start a job and return its id."""
        arguments = ["--name", name, "--stdout", str(self.folder / "job.out"), *options, self.script(text)]
        done = self.run("submit", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def output(self) -> str:
        """Return what jobs have written."""
        return (self.folder / "job.out").read_text()

    def pid(self, name: str) -> int:
        """Return a pid that a job has written to a file."""
        path = self.folder / name
        return int(wait_for(lambda: path.read_text().strip() if path.exists() else None))

    def state(self, job_id: str) -> str | None:
        """Return a job's state by the one status call."""
        return next((line["state"] for line in self.lines("status") if line["id"] == job_id), None)

    def wait_for_state(self, job_id: str, state: str) -> None:
        """Wait until the status call shows a state."""
        wait_for(lambda: self.state(job_id) == state)

    def register(self, pid: int, starttime: int, **changes: Any) -> str:
        """Write a registry file by hand and return the id."""
        job_id = f"{pid}.{starttime}"
        entry = {"id": job_id, "name": "by-hand", "pid": pid, "starttime": starttime, "sid": pid, "script": "/x"}
        entry.update(stdout="/x", submitted_at=time.time(), host=socket.gethostname())
        self.registry.mkdir(exist_ok=True)
        (self.registry / f"{job_id}.json").write_text(json.dumps({**entry, **changes}))
        return job_id


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Return a machine whose jobs are gone after the test."""
    machine = Machine(tmp_path)
    yield machine
    ids = [line["id"] for line in machine.lines("status") if line["state"] in {"RUNNING", "ORPHANED"}]
    if ids:
        machine.lines("cancel", "--grace-s", "0", *ids)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process, leader of its own session, that no command may touch."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        yield process
        process.kill()


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_submit_answers_at_once_with_pid_and_start_time(machine: Machine) -> None:
    # The pipes of capture_output would be held open by a job that had inherited them.
    before = time.monotonic()
    job_id = machine.submit("sleep 60")
    assert time.monotonic() - before < 5.0
    pid, ticks = map(int, job_id.split("."))
    assert start_time(pid) == ticks
    assert os.getsid(pid) == pid
    assert machine.lines("status") == [
        {"id": job_id, "name": "orch-1-vllm", "state": "RUNNING", "host": socket.gethostname()}
    ]


def test_job_outlives_a_killed_submitter(machine: Machine) -> None:
    argv = [*COMMAND, "submit", "--state-dir", str(machine.registry), "--name", "n", "--stdout"]
    argv += [str(machine.folder / "job.out"), machine.script("sleep 60")]
    with subprocess.Popen(
        ["sh", "-c", '"$@"; sleep 60', "sh", *argv], stdout=subprocess.PIPE, start_new_session=True, text=True
    ) as shell:
        assert shell.stdout is not None
        job_id = shell.stdout.readline().strip()
        os.killpg(shell.pid, signal.SIGHUP)
        os.killpg(shell.pid, signal.SIGKILL)
    assert machine.state(job_id) == "RUNNING"


def test_job_is_registered_before_its_script_runs(machine: Machine) -> None:
    job_id = machine.submit(f"cat '{machine.registry}'/*.json; echo id=$ORCH_JOB_ID; umask")
    machine.wait_for_state(job_id, "ENDED")
    first, *rest = machine.output().splitlines()
    assert rest == [f"id={job_id}", "0077"]
    entry = json.loads(first)
    pid, ticks = map(int, job_id.split("."))
    assert (entry["id"], entry["name"], entry["pid"], entry["starttime"]) == (job_id, "orch-1-vllm", pid, ticks)
    assert (entry["sid"], entry["stdout"]) == (pid, str(machine.folder / "job.out"))
    assert Path(entry["script"]).read_text().startswith("cat ")
    assert abs(entry["submitted_at"] - time.time()) < 30
    assert (machine.folder / "job.out").stat().st_mode & 0o777 == 0o600


def test_job_starts_with_default_signals_and_no_inherited_files(machine: Machine) -> None:
    read, write = os.pipe()
    script = machine.script("grep -E 'Sig(Ign|Blk)' /proc/self/status; ls /proc/$$/fd; readlink /proc/$$/fd/0")
    output = machine.folder / "job.out"
    argv = ["nohup", *COMMAND, "submit", "--state-dir", str(machine.registry), "--name", "n"]
    subprocess.run([*argv, "--stdout", str(output), script], pass_fds=(write,), capture_output=True, check=True)
    os.close(write)
    assert os.read(read, 1) == b""  # nobody holds the other side
    os.close(read)
    lines = wait_for(lambda: output.read_text().splitlines() if "/dev/null" in output.read_text() else None)
    # Signals 32 and 33 belong to the C library; no program can set them.
    ours = ~(0b11 << 31)
    assert [int(line.split()[1], 16) & ours for line in lines[:2]] == [0, 0]
    assert set(lines[2:-1]) <= {"0", "1", "2", "255"}  # 255 is bash's own, its script


def test_find_gives_jobs_by_name(machine: Machine) -> None:
    first = machine.submit("sleep 60", name="orch-1-vllm")
    machine.submit("sleep 60", name="orch-1-vllm2")
    assert [line["id"] for line in machine.lines("find", "--name", "orch-1-vllm")] == [first]
    assert machine.lines("find", "--name", "orch-1") == []


@pytest.mark.parametrize("change", ["script", "bash", "stdout"])
def test_submit_that_fails_says_why_and_registers_nothing(machine: Machine, change: str) -> None:
    script = "/no/such/script.sh" if change == "script" else machine.script("true")
    stdout = "/no/such/folder/out" if change == "stdout" else str(machine.folder / "job.out")
    env = {**os.environ, "PATH": "/nowhere"} if change == "bash" else None
    done = machine.run("submit", "--name", "n", "--stdout", stdout, script, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert "No such file or directory" in done.stderr
    assert list(machine.registry.glob("*.json")) == []


def test_status_after_kill_9_shows_orphans_then_the_end(machine: Machine) -> None:
    job_id = machine.submit(f"sleep 60 & echo $! > '{machine.folder}/pid'; wait")
    sleeper = machine.pid("pid")
    os.kill(int(job_id.split(".")[0]), signal.SIGKILL)
    machine.wait_for_state(job_id, "ORPHANED")
    os.kill(sleeper, signal.SIGKILL)
    machine.wait_for_state(job_id, "ENDED")


def test_cancel_ends_a_job_that_heeds_term(machine: Machine) -> None:
    job_id = machine.submit("exec sleep 60")
    before = time.monotonic()
    assert machine.lines("cancel", job_id, "1.2") == [
        {
            "id": job_id,
            "name": "orch-1-vllm",
            "state": "CANCELLED",
            "was": "RUNNING",
            "host": socket.gethostname(),
            "unkillable": [],
        },
        {"id": "1.2", "name": None, "state": "UNKNOWN", "was": "UNKNOWN", "unkillable": []},
    ]
    assert time.monotonic() - before < 5.0
    assert not is_running(int(job_id.split(".")[0]))
    assert machine.state(job_id) == "CANCELLED"
    assert machine.lines("cancel", job_id)[0]["was"] == "CANCELLED"


def test_cancel_tells_what_a_shell_left_running(machine: Machine) -> None:
    # bash dies of TERM and tells its children nothing.
    folder = machine.folder
    machine.script(f"trap 'echo > \"{folder}/told\"; exit' TERM; echo $$ > '{folder}/pid'; while :; do sleep 0.1; done")
    inner = next(folder.glob("job's script *.sh")).rename(folder / "inner.sh")
    job_id = machine.submit(f"bash '{inner}'\ntrue")
    pid = machine.pid("pid")
    machine.lines("cancel", "--grace-s", "5", job_id)
    assert (machine.folder / "told").exists()
    assert not is_running(pid)


def test_cancel_kills_a_tree_that_ignores_term(machine: Machine) -> None:
    folder = machine.folder
    text = f"""
trap '' TERM
(trap '' TERM; echo $BASHPID > '{folder}/child'; while :; do sleep 1; done) &
setsid bash -c 'trap "" TERM; echo $$ > "$1/own"; while :; do sleep 1; done' - '{folder}' &
while :; do sleep 1; done
"""
    job_id = machine.submit(text)
    pids = [machine.pid("child"), machine.pid("own"), int(job_id.split(".")[0])]
    assert os.getsid(pids[1]) != pids[2]
    assert machine.lines("cancel", "--grace-s", "0.5", job_id)[0]["state"] == "CANCELLED"
    assert [pid for pid in pids if is_running(pid)] == []


def test_cancel_kills_what_left_the_session_of_a_leader_that_died(machine: Machine) -> None:
    inner = """trap "" TERM; echo $$ > "$1/own"; while :; do sleep 1; done"""
    job_id = machine.submit(f"setsid bash -c '{inner}' - '{machine.folder}' &\nsleep 60")
    pid = machine.pid("own")
    assert machine.lines("cancel", "--grace-s", "0.5", job_id)[0]["state"] == "CANCELLED"
    assert not is_running(pid)


def test_cancel_ends_several_jobs_in_one_grace_time(machine: Machine) -> None:
    ids = [machine.submit("trap '' TERM; while :; do sleep 0.2; done", name=f"n{at}") for at in range(3)]
    before = time.monotonic()
    assert [line["state"] for line in machine.lines("cancel", "--grace-s", "1", *ids)] == ["CANCELLED"] * 3
    assert time.monotonic() - before < 3.0


def test_job_that_ended_by_itself_is_not_cancelled(machine: Machine) -> None:
    job_id = machine.submit("true")
    machine.wait_for_state(job_id, "ENDED")
    assert [(line["was"], line["state"]) for line in machine.lines("cancel", job_id)] == [("ENDED", "ENDED")]


def test_reused_pid_is_never_signalled(machine: Machine, bystander: subprocess.Popen[bytes]) -> None:
    job_id = machine.register(bystander.pid, start_time(bystander.pid) - 100)
    assert machine.state(job_id) == "ENDED"
    again = machine.register(bystander.pid, start_time(bystander.pid) - 50)
    assert machine.lines("cancel", "--grace-s", "0.2", again)[0]["was"] == "ENDED"
    assert bystander.poll() is None


@pytest.mark.parametrize("change", [{"host": "elsewhere"}, {"boot_id": "before"}, {"ended_at": time.time()}])
def test_process_that_is_not_this_machines_job_is_never_signalled(
    machine: Machine, bystander: subprocess.Popen[bytes], change: dict[str, object]
) -> None:
    job_id = machine.register(bystander.pid, start_time(bystander.pid), **change)
    expected = "UNKNOWN" if "host" in change else "ENDED"
    assert machine.state(job_id) == expected
    assert machine.lines("cancel", "--grace-s", "0.2", job_id)[0]["was"] == expected
    assert bystander.poll() is None


def test_ended_jobs_are_listed_for_a_day_and_kept_for_a_week(machine: Machine) -> None:
    ages_s = {1: 3600.0, 2: 2 * 86400.0, 3: 8 * 86400.0}
    ids = {at: machine.register(at, at, ended_at=time.time() - age_s) for at, age_s in ages_s.items()}
    assert [line["id"] for line in machine.lines("status")] == [ids[1]]
    month_s = 30 * 86400.0
    machine.register(4, 4, host="elsewhere", submitted_at=time.time() - month_s - 60)
    ids[5] = machine.register(5, 5, host="elsewhere", submitted_at=time.time() - month_s + 3600)
    machine.submit("true")
    found = {line["id"] for line in machine.lines("find", "--name", "by-hand")}
    assert found == {ids[1], ids[2], ids[5]}


def test_status_of_hundreds_is_cheap_and_survives_a_broken_file(machine: Machine) -> None:
    for at in range(2, 402):
        machine.register(10_000_000 + at, at)  # above the highest pid: ended
    (machine.registry / "broken.json").write_text("{")
    (machine.registry / "other.json").write_text('{"id": "x"}')
    before = time.monotonic()
    done = machine.run("status")
    assert time.monotonic() - before < 3.0
    assert len(done.stdout.splitlines()) == 400
    assert done.returncode == 0
    assert "broken.json is no job" in done.stderr
    assert "other.json is no job" in done.stderr


def test_cpus_are_handed_out_in_turn(machine: Machine) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    text = f"'{sys.executable}' -S -c 'import os; print(*os.sched_getaffinity(0))'"
    seen = []
    for _ in allowed:
        job_id = machine.submit(text, "--cpus", "1")
        machine.wait_for_state(job_id, "ENDED")
        seen.append(int(machine.output().split()[-1]))
    assert sorted(seen) == allowed


def test_more_cpus_than_there_are_is_refused(machine: Machine) -> None:
    arguments = ["--name", "n", "--stdout", str(machine.folder / "job.out"), "--cpus", "4096"]
    done = machine.run("submit", *arguments, machine.script("true"))
    assert done.returncode == 1
    assert "--cpus 4096: this machine gives" in done.stderr
    assert list(machine.registry.glob("*.json")) == []


def test_registry_is_in_the_users_state_folder(tmp_path: Path) -> None:
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "xdg")}
    subprocess.run([*COMMAND, "status"], env=env, check=True, capture_output=True)
    assert (tmp_path / "xdg" / "orch" / "jobs").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("command", ["submit", "status", "find", "cancel"])
@pytest.mark.parametrize("variable", ["HOME", "XDG_STATE_HOME"])
def test_registry_that_cannot_be_made_is_told_in_one_line_and_nothing_starts(
    variable: str, command: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    script = tmp_path / "job.sh"
    script.write_text(f"touch '{tmp_path}/started'")
    env = {name: value for name, value in os.environ.items() if name != "XDG_STATE_HOME"}
    arguments = {
        "submit": ["--name", "n", "--stdout", str(tmp_path / "out"), str(script)],
        "find": ["--name", "n"],
        "cancel": ["1.2"],
    }.get(command, [])
    done = subprocess.run(
        [*COMMAND, command, *arguments],
        env={**env, variable: str(tmp_path / "file")},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"local_jobs: the registry of jobs in {tmp_path}/file/")
    assert "Not a directory" in done.stderr
    assert "XDG_STATE_HOME" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    time.sleep(0.2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "job.sh"]


@pytest.fixture
def unreadable() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Return a folder that may be entered and not listed, and the options of a process of its owner."""
    folder = Path(tempfile.mkdtemp())
    (folder / "state").mkdir()
    shutil.copyfile(PROGRAM, folder / "local_jobs.py")
    who: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
    if who:
        os.chown(folder / "state", 65534, 65534)
    (folder / "state").chmod(0o300)
    folder.chmod(0o755)
    (folder / "local_jobs.py").chmod(0o644)
    yield folder, who
    (folder / "state").chmod(0o700)
    shutil.rmtree(folder)


def test_registry_that_cannot_be_read_is_not_taken_for_an_empty_one(unreadable: tuple[Path, dict[str, Any]]) -> None:
    folder, who = unreadable
    argv = [os.path.realpath(sys.executable), "-S", "-s", str(folder / "local_jobs.py"), "status", "--state-dir"]
    done = subprocess.run([*argv, str(folder / "state")], capture_output=True, text=True, cwd=folder, **who)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Permission denied" in done.stderr
    answer = Answer(("local_jobs.py",), done.returncode, done.stdout, done.stderr)
    assert LocalScheduler().parse_status(answer) is None


def test_batch_log_is_named_by_the_id_and_a_run_directory_may_hold_percent_j(machine: Machine) -> None:
    folder = machine.folder / "50%j run"
    folder.mkdir()
    job_id = machine.submit("echo said", "--stdout", str(folder / "vllm_%j.batch"))
    machine.wait_for_state(job_id, "ENDED")
    assert (folder / f"vllm_{job_id}.batch").read_text() == "said\n"
    assert machine.lines("find", "--name", "orch-1-vllm")[0]["id"] == job_id
    assert {path.name for path in machine.folder.iterdir() if path.is_dir()} == {"50%j run", "state"}


def test_cancelled_supervisor_leaves_its_sentinel(machine: Machine, job: SupervisedJob) -> None:
    config = job.run_dir / "scripts" / "vllm.json"
    config.write_text(json.dumps(job.config))
    words = [*NODE_PYTHON, str(SUPERVISOR), str(config), "--", *job.server]
    # As within a Slurm job: the outer job's id must not be taken for this one's.
    job_id = machine.submit("export SLURM_JOB_ID=123\nexec " + " ".join(f"'{word}'" for word in words))
    status = job.wait_for_state("ready")
    assert (status["job_id"], status["pid"]) == (job_id, int(job_id.split(".")[0]))
    machine.lines("cancel", job_id)
    assert (job.status["state"], job.status["reason"], job.status["signal"]) == ("finished", "signal", 15)
    assert job.endpoint == {}
