"""A job that goes well: readiness, records, targets, sidecars, heartbeats, what the program gets."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orchestrator.conftest import PYTHON, TOKEN, SupervisedJob, is_running, wait_for

NewJob = Callable[..., SupervisedJob]
MODELS = {"path": "/v1/models", "auth": True, "nonempty": "data"}


def test_service_healthy_publishes_status_and_endpoint(job: SupervisedJob) -> None:
    job.start(job.server, endpoint={"model": "smollm2", "engine": "vllm"})
    status = job.wait_for_state("ready")
    assert job.process is not None
    assert list(status) == [
        "schema_version", "token", "service", "job_id", "attempt", "host", "pid", "restart_count", "state",
        "started_at", "ready_at", "finished_at", "exit_code", "signal", "reason", "message",
    ]  # fmt: skip
    assert (status["job_id"], status["pid"], status["restart_count"]) == ("77", job.process.pid, 0)
    assert status["host"] == socket.gethostname()
    assert status["ready_at"] >= status["started_at"]
    endpoint = job.endpoint
    assert endpoint == {
        "schema_version": 1, "service": "vllm", "token": "orch-7f3a2b-vllm", "job_id": "77",
        "attempt": status["attempt"], "host": "127.0.0.1", "ip": "127.0.0.1", "port": endpoint["port"],
        "url": f"http://127.0.0.1:{endpoint['port']}", "started_at": status["started_at"],
        "ready_at": status["ready_at"], "model": "smollm2", "engine": "vllm",
    }  # fmt: skip
    with urllib.request.urlopen(endpoint["url"] + "/health", timeout=5) as answer:
        assert answer.status == 200


def test_service_on_all_addresses_advertises_the_node(job: SupervisedJob) -> None:
    job.start(job.server, bind="0.0.0.0")  # noqa: S104 - what is tested
    job.wait_for_state("ready")
    assert job.endpoint["host"] == socket.gethostname()
    assert job.endpoint["ip"] != "0.0.0.0"  # noqa: S104
    assert job.endpoint["url"] == f"http://{socket.gethostname()}:{job.endpoint['port']}"


def test_service_with_advertised_name_publishes_it(job: SupervisedJob) -> None:
    job.start(job.server, advertise="node.example", targets=[{"kind": "service", "port": "@PORT@", "labels": {}}])
    job.wait_for_state("ready")
    assert job.endpoint["url"] == f"http://node.example:{job.endpoint['port']}"
    assert job.targets("service")[0]["targets"] == [f"node.example:{job.endpoint['port']}"]


def test_health_with_token_and_key_becomes_ready(job: SupervisedJob) -> None:
    secrets = {"secret_env": {"VLLM_API_KEY": str(job.token_file)}, "auth_token_file": str(job.token_file)}
    job.start(job.server, health=[MODELS], **secrets)
    job.wait_for_state("ready")


@pytest.mark.parametrize(
    ("check", "why"),
    [({**MODELS, "auth": False}, "answered 401"), ({**MODELS, "path": "/health", "nonempty": "none"}, "is empty")],
)
def test_health_not_met_never_becomes_ready(job: SupervisedJob, check: dict[str, object], why: str) -> None:
    secrets = {"secret_env": {"VLLM_API_KEY": str(job.token_file)}, "auth_token_file": str(job.token_file)}
    job.start(job.server, health=[check], startup_timeout_s=1.0, **secrets)
    assert job.wait() == 124
    assert why in job.status["message"]
    assert job.status["ready_at"] is None


def test_targets_of_one_kind_share_a_file(job: SupervisedJob) -> None:
    labels = {"job": "vllm", "where": "@HOST@ @JOB_ID@", "node": "given"}
    second = {"kind": "service", "port": 9, "labels": {}}
    job.start(job.server, targets=[{"kind": "service", "port": "@PORT@", "labels": labels}, second])
    status = job.wait_for_state("ready")
    node = socket.gethostname()
    assert job.targets("service") == [
        {
            "targets": [f"127.0.0.1:{job.endpoint['port']}"],
            "labels": {
                "job": "vllm", "where": "127.0.0.1 77", "run": "7f3a2b", "attempt": status["attempt"],
                "node": "given", "slurm_job_id": "77",
            },
        },
        {
            "targets": ["127.0.0.1:9"],
            "labels": {"run": "7f3a2b", "attempt": status["attempt"], "node": node, "slurm_job_id": "77"},
        },
    ]  # fmt: skip


def sidecar(name: str, argv: list[str]) -> dict[str, object]:
    """Return a sidecar with one target of kind node."""
    health = [{"path": "/metrics", "auth": False, "nonempty": None}]
    return {
        "name": name,
        "argv": argv,
        "health": health,
        "targets": [{"kind": "node", "port": "@PORT@", "labels": {"job": name}}],
    }


def test_sidecars_are_registered_and_their_death_does_not_end_the_job(job: SupervisedJob) -> None:
    sidecars = [sidecar(name, [*job.server, name]) for name in ("first", "second")]
    sidecars += [sidecar("missing", ["/no/such/exporter"]), sidecar("broken", [*PYTHON, "-c", "raise SystemExit(4)"])]
    job.start(job.server, sidecars=sidecars)
    job.wait_for_state("ready")
    wait_for(lambda: len(job.targets("node")) == 2)
    ports = {entry["labels"]["job"]: entry["targets"][0] for entry in job.targets("node")}
    assert len({*ports.values(), f"127.0.0.1:{job.endpoint['port']}"}) == 3
    assert ports["first"].split(":")[1] in job.log(name="first")
    pids = wait_for(lambda: pids_with_argument(job, "first"))
    os.kill(pids[0], signal.SIGKILL)
    wait_for(lambda: [entry["labels"]["job"] for entry in job.targets("node")] == ["second"])
    os.kill(pids_with_argument(job, "second")[0], signal.SIGKILL)
    wait_for(lambda: not job.targets("node"))
    assert job.status["state"] == "ready"
    text = job.batch_log.read_text()
    for words in ("first was killed by signal 9", "cannot execute '/no/such/exporter'", "broken exited with code 4"):
        assert words in text


def pids_with_argument(job: SupervisedJob, word: str) -> list[int]:
    """Return the supervisor's children whose argv ends in a word."""
    assert job.process is not None
    path = Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children")
    pids = [int(pid) for pid in path.read_text().split() if is_running(int(pid))]
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().endswith(f"\0{word}\0".encode())]


def test_sidecars_end_with_the_job(job: SupervisedJob) -> None:
    job.start(job.server, sidecars=[sidecar("first", [*job.server, "first"])])
    job.wait_for_state("ready")
    pid = wait_for(lambda: pids_with_argument(job, "first"))[0]
    wait_for(lambda: job.targets("node"))
    job.send(signal.SIGTERM)
    assert job.wait() == 143
    assert not is_running(pid)
    assert job.records_left() == []


def test_heartbeat_is_renewed(job: SupervisedJob) -> None:
    job.start(job.server)
    attempt = job.wait_for_state("ready")["attempt"]
    first = job.heartbeat["at"]
    second = wait_for(lambda: job.heartbeat["at"] if job.heartbeat["at"] > first else None)
    assert second - first < 2.0
    wait_for(lambda: job.heartbeat["at"] > second)
    assert job.heartbeat["attempt"] == attempt


def test_status_folder_lost_for_a_while_leaves_the_server_alone(job: SupervisedJob) -> None:
    job.start(job.server)
    job.wait_for_state("ready")
    pid = job.child_pid()
    status = job.run_dir / "status"
    status.rename(job.run_dir / "away")
    status.write_text("no folder")  # every write fails, for root too
    wait_for(lambda: job.batch_log.read_text().count("cannot write the heartbeat") > 2)
    assert is_running(pid)
    job.send(signal.SIGTERM)
    wait_for(lambda: not is_running(pid))
    wait_for(lambda: "will try again" in job.batch_log.read_text())
    status.unlink()
    (job.run_dir / "away").rename(status)
    assert job.wait() == 143
    assert job.status["reason"] == "signal"


def test_records_are_private_under_a_wide_umask(job: SupervisedJob) -> None:
    before = os.umask(0)
    try:
        job.start(job.server, targets=[{"kind": "service", "port": "@PORT@", "labels": {}}])
    finally:
        os.umask(before)
    job.wait_for_state("ready")
    for folder in ("status", "endpoints", "logs", "prometheus_assets"):
        paths = [path for path in (job.run_dir / folder).iterdir() if not path.name.endswith(".tmp")]
        assert paths
        assert [path.stat().st_mode & 0o777 for path in paths] == [0o600] * len(paths)
        assert (job.run_dir / folder).stat().st_mode & 0o777 == 0o700


def test_secret_reaches_the_server_and_nothing_else(job: SupervisedJob) -> None:
    secrets = {"secret_env": {"VLLM_API_KEY": str(job.token_file)}, "auth_token_file": str(job.token_file)}
    job.start([*job.server, "main"], health=[MODELS], sidecars=[sidecar("first", [*job.server, "first"])], **secrets)
    job.wait_for_state("ready")
    wait_for(lambda: job.targets("node"))
    main, first = pids_with_argument(job, "main")[0], pids_with_argument(job, "first")[0]
    assert f"VLLM_API_KEY={TOKEN}\0".encode() in Path(f"/proc/{main}/environ").read_bytes()
    assert TOKEN.encode() not in Path(f"/proc/{first}/environ").read_bytes()
    job.send(signal.SIGTERM)
    job.wait()
    places = [path for path in job.run_dir.rglob("*") if path.is_file() and path != job.token_file]
    assert len(places) > 6
    assert [path for path in places if TOKEN.encode() in path.read_bytes()] == []


def test_secret_is_on_no_command_line(job: SupervisedJob) -> None:
    job.start(job.server, secret_env={"VLLM_API_KEY": str(job.token_file)})
    job.wait_for_state("ready")
    assert job.process is not None
    for pid in (job.process.pid, job.child_pid()):
        assert TOKEN.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_placeholders_are_replaced_in_argv_and_env(job: SupervisedJob) -> None:
    argv = job.task("import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))")
    words = ["@BIND@:@PORT@", "@HOST@", "@JOB_ID@@ATTEMPT@", "@OTHER@"]
    job.start([*argv, *words], env={"WHERE": "@HOST@/@JOB_ID@"})
    assert job.wait() == 0
    arguments, environ = json.loads(job.log())
    assert arguments == ["127.0.0.1:@PORT@", "127.0.0.1", "77" + job.status["attempt"], "@OTHER@"]
    assert environ["WHERE"] == "127.0.0.1/77"
    assert environ["ORCH_RUN_ID"] == "7f3a2b"
    assert environ["ORCH_TOKEN"] == "orch-7f3a2b-vllm"
    assert environ["PATH"] == job.env["PATH"]


def test_program_has_its_own_group_in_the_same_session(job: SupervisedJob) -> None:
    job.start(job.server)
    job.wait_for_state("ready")
    assert job.process is not None
    pid = job.child_pid()
    assert (os.getpgid(pid), os.getsid(pid)) == (pid, job.process.pid)


@pytest.mark.parametrize("code", [0, 3])
def test_task_exit_code_is_the_result(job: SupervisedJob, code: int) -> None:
    job.start(job.task("import sys, time; time.sleep(0.4); sys.exit(int(sys.argv[1]))", str(code)))
    job.wait_for_state("running")
    assert job.wait() == code
    status = job.status
    assert (status["state"], status["reason"], status["exit_code"]) == ("finished", "exited", code)
    assert status["message"] == f"vllm exited with code {code}"
    assert status["finished_at"] > status["started_at"]


def test_job_id_comes_from_slurm_with_its_restart_count(job: SupervisedJob) -> None:
    job.env.update(SLURM_JOB_ID="123", SLURM_RESTART_COUNT="2")
    job.start(job.task("print('done')"))
    assert job.wait() == 0
    assert (job.status["job_id"], job.status["restart_count"]) == ("123", 2)
    job.job_id = "123"
    assert job.log() == "done\n"


def test_job_id_of_a_task_of_an_array_is_the_one_that_the_scheduler_shows(job: SupervisedJob) -> None:
    job.env.update(SLURM_JOB_ID="9", SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="1", PBS_JOBID="19[0].h")
    job.start(job.task("print('done')"))
    assert job.wait() == 0
    job.job_id = "6_1"
    assert (job.status["job_id"], job.log()) == ("6_1", "done\n")


def test_job_id_of_a_subjob_of_pbs_names_its_files(job: SupervisedJob) -> None:
    job.env.update(PBS_JOBID="19[0].h")
    job.start(job.task("print('done')"))
    assert job.wait() == 0
    job.job_id = "19[0].h"
    assert (job.status["job_id"], job.log()) == ("19[0].h", "done\n")


@pytest.mark.parametrize("name", ["with space", 'it\'s "quoted" $HOME `x`', "ünïcödé-日本", "-dash;rm\nline"])
def test_hostile_run_directory_is_served(new_job: NewJob, name: str) -> None:
    job = new_job(name)
    secrets = {"secret_env": {"VLLM_API_KEY": str(job.token_file)}, "auth_token_file": str(job.token_file)}
    job.start(job.server, health=[MODELS], targets=[{"kind": "service", "port": "@PORT@", "labels": {}}], **secrets)
    job.wait_for_state("ready")
    assert job.targets("service")
    job.send(signal.SIGTERM)
    assert job.wait() == 143
    assert job.records_left() == []


def test_unicode_paths_work_where_the_locale_is_ascii(new_job: NewJob) -> None:
    job = new_job("ünïcödé")
    # Python 3.6 under LANG=C, as far as a newer Python can be talked into it.
    job.env.update(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    job.start(job.server, env={"NAME": "ü"}, secret_env={"VLLM_API_KEY": str(job.token_file)})
    job.wait_for_state("ready")
    assert "NAME=ü\0".encode() in Path(f"/proc/{job.child_pid()}/environ").read_bytes()
