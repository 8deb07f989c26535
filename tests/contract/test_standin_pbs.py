"""The stand-in PBS answers as the recorded OpenPBS did, where whole runs rely on it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.contract.recordings import pbs

PROGRAMS = Path(__file__).parents[1] / "standin" / "pbs"
HEAD = "#!/bin/bash\n#PBS -N job\n#PBS -j oe\n#PBS -o {folder}/job.log\n"
# What the node reports while a job runs, which the stand-in does not measure, and what one option only brings.
NOT_THERE = {"resources_used", "jobdir", "session_id"}


class Server:
    """A stand-in server in a folder of its own."""

    def __init__(self, folder: Path, *, history: bool = False) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.state.mkdir()
        if history:
            (self.state / "history").touch()

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "STANDIN_PBS_STATE": str(self.state), "STANDIN_PBS_KILL_DELAY_S": "1"}
        argv = (str(PROGRAMS / argv[0]), *argv[1:])
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=self.folder, env=env)

    def submit(self, body: str, *options: str) -> str:
        (self.folder / "job.sh").write_text(HEAD.format(folder=self.folder) + body)
        done = self.run("qsub", *options, "job.sh")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, job_id: str, *options: str) -> dict[str, Any]:
        jobs: dict[str, dict[str, Any]] = json.loads(self.run("qstat", *options, "-f", "-F", "json").stdout).get(
            "Jobs", {}
        )
        return jobs.get(job_id, {})

    def wait_for(self, job_id: str, state: str, *options: str) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            job = self.job(job_id, *options)
            if job.get("job_state", "gone") == state:
                return job
            time.sleep(0.1)
        pytest.fail(f"{job_id} is not {state}: {self.job(job_id, *options)}")


def recorded_job(name: str) -> dict[str, Any]:
    return dict(next(iter(json.loads(pbs(name).stdout)["Jobs"].values())))


def test_standin_job_has_the_recorded_attributes_and_its_output_comes_at_the_end(tmp_path: Path) -> None:
    server = Server(tmp_path, history=True)
    job_id = server.submit("echo here; sleep 1; exit 3\n")
    running = server.wait_for(job_id, "R")
    assert not (tmp_path / "job.log").exists()
    assert set(recorded_job("history.qstat-running")) - NOT_THERE <= set(running)
    assert server.wait_for(job_id, "gone") == {}
    ended = server.job(job_id, "-x")
    assert set(recorded_job("history.qstat-finished-x")) - NOT_THERE - {"history_timestamp"} <= set(ended)
    assert (ended["job_state"], ended["Exit_status"]) == ("F", 3)
    assert (tmp_path / "job.log").read_text() == "here\n"


def test_standin_qstat_lays_its_document_out_as_recorded(tmp_path: Path) -> None:
    server = Server(tmp_path)
    empty = server.run("qstat", "-f", "-F", "json").stdout.splitlines()
    recorded = pbs("history.qstat-unknown").stdout.splitlines()
    assert [line.partition(":")[0] for line in empty] == [line.partition(":")[0] for line in recorded[: len(empty)]]
    job_id = server.submit("sleep 5\n")
    lines = server.run("qstat", "-f", "-F", "json").stdout.splitlines()
    assert '\t"Jobs":\t{' in lines
    assert f'\t\t"{job_id}":\t{{' in lines
    assert '\t\t\t"Job_Name":\t"job",' in lines
    server.run("qdel", job_id)


def test_standin_qdel_leaves_the_job_running_until_it_is_dead_and_without_history_it_is_unknown(tmp_path: Path) -> None:
    server = Server(tmp_path)
    job_id = server.submit("trap '' TERM\nwhile true; do sleep 0.2; done\n")
    server.wait_for(job_id, "R")
    assert server.run("qdel", job_id).returncode == 0
    assert server.job(job_id)["job_state"] == "R"
    server.wait_for(job_id, "gone")
    for command, name in ((("qstat", "-f", "-F", "json", job_id), "qstat-unknown"), (("qdel", job_id), "qdel-unknown")):
        said, recorded = server.run(*command), pbs(f"nohistory.{name}")
        assert (said.returncode, said.stderr.split()[:4]) == (recorded.returncode, recorded.stderr.split()[:4])


def test_standin_qdel_and_wall_time_end_a_job_with_the_recorded_exit_status(tmp_path: Path) -> None:
    server = Server(tmp_path, history=True)
    deleted = server.submit("exec sleep 30\n")
    limited = server.submit("exec sleep 30\n", "-l", "walltime=00:00:01")
    server.wait_for(deleted, "R")
    server.run("qdel", deleted)
    for job_id, name in ((deleted, "final-deleted-x"), (limited, "final-walltime-exceeded-x")):
        ended, recorded = server.wait_for(job_id, "F", "-x"), recorded_job(f"history.qstat-{name}")
        assert ended["Exit_status"] == recorded["Exit_status"]
        assert ended["substate"] == recorded["substate"]
        assert (
            ended["comment"].partition(") and ")[2].split()[0] == recorded["comment"].partition(") and ")[2].split()[0]
        )


@pytest.mark.parametrize(
    ("argv", "name"),
    [(("qsub", "nosuch.pbs"), "qsub-missing-file"), (("qsub", "-q", "nosuch", "job.sh"), "qsub-unknown-queue")],
)
def test_standin_qsub_refuses_in_the_recorded_words(argv: tuple[str, ...], name: str, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text("true\n")
    said, recorded = Server(tmp_path).run(*argv), pbs(f"history.{name}")
    assert (said.returncode, said.stdout, said.stderr) == (recorded.returncode, recorded.stdout, recorded.stderr)


@pytest.mark.parametrize(("command", "name"), [("qsub", "qsub"), ("qdel", "qdel"), ("qstat -f -F json", "qstat")])
def test_standin_that_is_down_answers_in_the_recorded_words(command: str, name: str, tmp_path: Path) -> None:
    server = Server(tmp_path)
    (server.state / "down").touch()
    (tmp_path / "0").write_text("true\n")
    said, recorded = server.run(*command.split(), "0"), pbs(f"history.{name}-server-down")
    assert (said.returncode, said.stderr) == (recorded.returncode, recorded.stderr)
    assert bool(said.stdout) == bool(recorded.stdout)


def test_standin_qsub_takes_no_arguments_and_no_directive_after_the_first_command(tmp_path: Path) -> None:
    server = Server(tmp_path)
    job_id = server.submit("sleep 3\n#PBS -N other\n")
    assert server.wait_for(job_id, "R")["Job_Name"] == "job"
    assert server.run("qsub", "job.sh", "argument").returncode == 2
    assert server.run("qsub", "-N", "1st", "job.sh").returncode == 2
    server.run("qdel", job_id)
