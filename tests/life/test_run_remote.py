"""A run from a laptop to a cluster: a real sshd on loopback, a real Slurm behind it, no folder in common."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import HPO, STANDIN, OrchRun, orch, processes_with
from tests.life.test_run_slurm import WHY_NO_SLURM, jobs_of
from tests.orchestrator.transports.sshd import SSHD, SshServer

Start = Callable[..., OrchRun]
WHY_NOT = WHY_NO_SLURM or ("" if shutil.which(SSHD) else "sshd is not installed (apt-get install openssh-server)")
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """The cluster's login node."""
    sockets = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets))
    made = SshServer(tmp_path / "sshd").start()
    yield made
    made.kill()
    shutil.rmtree(sockets)


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """The cluster's file system."""
    return tmp_path / "far away"


@pytest.fixture
def remote_recipe(recipe: dict[str, Any], server: SshServer, far: Path, standin_python: Path) -> dict[str, Any]:
    """The quick recipe, with everything but monitoring on the cluster."""
    job = recipe["job"]
    job.pop("scheduler")
    job["engine"] = {"kind": "vllm", "device": "cpu", "python": str(standin_python)}
    job["monitoring"] = {"mode": "off"}
    job["host"] = "cluster"
    job["hosts"] = {
        "cluster": {
            "ssh": json.loads(server.spec().model_dump_json(exclude_none=True)),
            "base_dir": str(far).replace(" ", "_"),
            "environment": {"python": sys.executable},
        }
    }
    small = {"cpus": 1, "mem_gb": 1, "gpus": 0, "partition": "cpu", "time": "00:10:00"}
    job["resources"] = dict.fromkeys(("server", "client", "trial"), small)
    return recipe


def remote_run(remote_recipe: dict[str, Any], run: OrchRun) -> Path:
    """Return the run's directory on the cluster."""
    return Path(remote_recipe["job"]["hosts"]["cluster"]["base_dir"]) / "runs" / run.run_dir.name


def test_run_on_a_remote_cluster_brings_everything_home(remote_recipe: dict[str, Any], start: Start) -> None:
    remote_recipe["job"]["hpo"] = HPO
    run = start(remote_recipe)
    assert run.wait(280) == 0, run.stderr
    summary = run.json("summary.json")
    assert (summary["state"], summary["error"]) == ("completed", None)
    assert summary["stages"]["benchmark"]["successful"] == 6
    assert [trial["state"] for trial in summary["stages"]["hpo"]["trials"]] == ["COMPLETE", "COMPLETE"]
    assert summary["stages"]["hpo"]["test_accuracy"] is not None
    assert summary["stages"]["hpo"]["warnings"] == []
    assert all(job["job_id"].isdigit() for job in summary["jobs"])
    there = remote_run(remote_recipe, run)
    # What was measured lies here; the code and the supervisor that ran are those that were brought there.
    for name in ("benchmark", "trials"):
        found = {path.name for path in (run.run_dir / name).rglob("*.json*")}
        assert {"requests.jsonl"} <= found if name == "benchmark" else {"results.json", "metrics.jsonl"} <= found
    assert (run.run_dir / "checkpoints" / "best.pt").is_file()
    assert list((run.run_dir / "logs").glob("vllm_*.err"))
    assert (there / "code" / "trainer" / "train.py").is_file()
    assert str(run.run_dir) not in (there / "scripts" / "vllm.sh").read_text()
    assert oct((there / "secrets" / "api_token").stat().st_mode)[-3:] == "600"
    assert jobs_of(summary["run_id"]) == {}
    assert processes_with(str(there)) == []


def test_run_with_replicas_on_a_remote_cluster_asks_the_balancer_there(
    remote_recipe: dict[str, Any], start: Start
) -> None:
    remote_recipe["job"]["service"]["replicas"] = 2
    run = start(remote_recipe)
    assert run.wait(280) == 0, run.stderr
    summary = run.json("summary.json")
    assert summary["stages"]["benchmark"]["successful"] == 6
    assert [job["name"] for job in summary["jobs"]] == ["vllm-1", "vllm-2", "balancer", "client"]
    assert summary["served"]["node"] == next(job["node"] for job in summary["jobs"] if job["name"] == "balancer")
    assert processes_with(str(remote_run(remote_recipe, run))) == []


def test_run_whose_connection_is_cut_for_a_while_loses_nothing(
    remote_recipe: dict[str, Any], start: Start, server: SshServer
) -> None:
    remote_recipe["job"]["hpo"] = HPO
    run = start(remote_recipe)
    run.wait_for(lambda: list((run.run_dir / "trials").glob("*/metrics.jsonl")), "the first epoch of a trial", 240)
    server.kill()
    time.sleep(15)
    server.start()
    assert run.wait(280) == 0, run.stderr
    summary = run.json("summary.json")
    assert [trial["state"] for trial in summary["stages"]["hpo"]["trials"]] == ["COMPLETE", "COMPLETE"]
    tokens = [path.name for path in (remote_run(remote_recipe, run) / "scripts").glob("*.sh")]
    assert not [name for name in tokens if "-r2" in name]
    assert jobs_of(summary["run_id"]) == {}


def test_run_on_a_remote_cluster_whose_server_dies_shows_its_last_words(
    remote_recipe: dict[str, Any], start: Start, far: Path
) -> None:
    remote_recipe["job"]["engine"]["environment"] = {"STANDIN_START_DELAY_S": "60"}
    run = start(remote_recipe)
    run.wait_for(lambda: run.status("vllm").get("state") == "starting", "the server's start", 120)
    there = remote_run(remote_recipe, run)
    run.wait_for(lambda: processes_with(str(STANDIN)), "the server")
    run.wait_for(lambda: [*(there / "logs").glob("vllm_*.out")], "the server's log")
    for pid in processes_with(str(STANDIN), str(far.parent / "model")):
        os.kill(pid, signal.SIGKILL)
    assert run.wait(60) == 1
    assert "job 'vllm' ended: FAILED" in run.stderr
    assert "was killed by signal 9" in run.stderr
    assert jobs_of(run.json("summary.json")["run_id"]) == {}


def test_run_with_its_server_and_its_trials_on_two_clusters(
    remote_recipe: dict[str, Any], start: Start, server: SshServer, tmp_path: Path
) -> None:
    # The agent here, the model there, training elsewhere: three hosts in one recipe.
    other = SshServer(tmp_path / "other sshd".replace(" ", "_")).start()
    try:
        job = remote_recipe["job"]
        job["hosts"]["other"] = {
            "ssh": json.loads(other.spec().model_dump_json(exclude_none=True)),
            "base_dir": str(tmp_path / "elsewhere"),
            "scheduler": {"kind": "slurm"},
            "environment": {"python": sys.executable},
        }
        job["resources"]["trial"] = {**job["resources"]["trial"], "host": "other"}
        job["hpo"] = {**HPO, "trials": 1, "evaluate_winner": False}
        run = start(remote_recipe)
        assert run.wait(280) == 0, run.stderr
    finally:
        other.kill()
    summary = run.json("summary.json")
    assert summary["stages"]["hpo"]["finished"] == 1
    there, elsewhere = remote_run(remote_recipe, run), tmp_path / "elsewhere" / "runs" / run.run_dir.name
    assert [path.name for path in sorted((there / "status").glob("*.json"))] == [
        f"orch-{summary['run_id']}-{name}.json" for name in ("client", "vllm")
    ]
    assert [path.name for path in (elsewhere / "status").glob("*.json")] == [
        f"orch-{summary['run_id']}-trial_0000.json"
    ]
    assert list(elsewhere.glob("trials/*/results.json"))
    assert not list(there.glob("trials/*"))
    assert jobs_of(summary["run_id"]) == {}


def test_run_on_a_remote_cluster_is_left_seen_and_stopped(remote_recipe: dict[str, Any], start: Start) -> None:
    run = start(remote_recipe, "--keep")
    assert run.wait(240) == 0, run.stderr
    seen = orch(run, "status", "--json")
    assert seen.returncode == 0, seen.stderr
    jobs = {job["name"]: job for job in json.loads(seen.stdout)["jobs"]}
    assert jobs["vllm"]["state"] == "ready"
    stopped = orch(run, "stop")
    assert stopped.returncode == 0, stopped.stderr
    assert jobs_of(run.json("summary.json")["run_id"]) == {}


def test_run_on_a_host_that_cannot_be_reached_says_so_before_anything_is_started(
    remote_recipe: dict[str, Any], start: Start, server: SshServer
) -> None:
    server.kill()
    run = start(remote_recipe)
    assert run.wait(60) == 1
    assert "127.0.0.1" in run.stderr
    assert "Traceback" not in run.stderr
    assert not run.output_dir.exists() or list(run.output_dir.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can let an sshd log another user in")
def test_run_as_another_user_of_the_cluster_below_that_users_home(
    remote_recipe: dict[str, Any], start: Start, request: pytest.FixtureRequest
) -> None:
    user = os.environ.get("ORCH_CLUSTER_USER", "orchtest")
    try:
        home = Path(pwd.getpwnam(user).pw_dir)
    except KeyError:
        pytest.skip(f"there is no user {user} (tests/cluster/up.sh makes one)")
    # What that user has to read: the key that lets in, the server and its model.
    common = Path(tempfile.mkdtemp(prefix="orch-common-", dir="/tmp"))
    common.chmod(0o755)
    request.addfinalizer(lambda: shutil.rmtree(common))
    job = remote_recipe["job"]
    shutil.copytree(job["service"]["model"], common / "model")
    shutil.copy(job["engine"]["python"], common / "python")
    for path in [common / "model", common / "python"]:
        path.chmod(0o755)
    # Without PAM sshd refuses an account that has no password.
    other = SshServer(common / "sshd", UsePAM="yes").start()
    request.addfinalizer(other.kill)
    (common / "sshd").chmod(0o755)
    (common / "sshd" / "authorized_keys").chmod(0o644)
    base = f"orch-test-{os.getpid()}"
    request.addfinalizer(lambda: shutil.rmtree(home / base, ignore_errors=True))
    job["service"]["model"], job["engine"]["python"] = str(common / "model"), str(common / "python")
    job["hosts"]["cluster"] |= {"ssh": json.loads(other.spec(user=user).model_dump_json(exclude_none=True))}
    job["hosts"]["cluster"]["base_dir"] = base
    job["hpo"] = {**HPO, "trials": 1}
    run = start(remote_recipe)
    assert run.wait(280) == 0, run.stderr
    summary = run.json("summary.json")
    assert summary["stages"]["hpo"]["finished"] == 1
    there = home / base / "runs" / run.run_dir.name
    assert there.owner() == (there / "secrets" / "api_token").owner() == user
    assert {oct(path.stat().st_mode)[-3:] for path in (home / base, there, there.parent)} == {"700"}
    assert list((run.run_dir / "trials").glob("*/results.json"))
    assert processes_with(str(there)) == []
