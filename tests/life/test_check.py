"""`orch.py check` and `orch.py site init` as a user starts them: a real Slurm, and a real sshd in front of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.life.conftest import PROJECT
from tests.life.test_run_slurm import WHY_NO_SLURM
from tests.orchestrator.transports.sshd import SSHD, SshServer

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-")]
GPU = {"gpus_per_node": 4, "gpu_type": "a100"}
NVIDIA_SMI = """\
#!/bin/bash
IFS=, read -ra ids <<<"$CUDA_VISIBLE_DEVICES"
for id in "${ids[@]}"; do echo "GPU $id: NVIDIA A100-SXM4-40GB (UUID: GPU-$id)"; done
"""


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home directory without start-up files, and a driver's program that shows the GPUs of the job."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(NVIDIA_SMI)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")


def argv(tmp_path: Path, site: dict[str, Any], *words: str) -> list[str]:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(site))
    orch = [sys.executable, str(PROJECT / "orch.py"), "check", "--site", str(path), "--json"]
    return [*orch, "--output-dir", str(tmp_path / "runs"), *words]


def check(tmp_path: Path, site: dict[str, Any], *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code and the steps by name."""
    done = subprocess.run(argv(tmp_path, site, *words), capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.returncode, {step["name"]: step for step in json.loads(done.stdout)["steps"]}


def my_checks() -> list[str]:
    """Return the names of test jobs that Slurm still has to do with."""
    said = subprocess.run(["squeue", "--me", "-h", "-o", "%j"], capture_output=True, text=True, timeout=30, check=True)
    return [name for name in said.stdout.split() if name.startswith("orch-check-")]


def assert_nothing_is_left(tmp_path: Path) -> None:
    assert not (tmp_path / "runs").exists()
    deadline = time.monotonic() + 20
    while my_checks():
        assert time.monotonic() < deadline, my_checks()
        time.sleep(0.5)


def test_check_of_a_site_that_is_well_exits_0(tmp_path: Path) -> None:
    code, steps = check(tmp_path, {"scheduler": {"kind": "slurm"}, "partitions": {"gpu": GPU, "cpu": {}}})
    assert code == 0, steps
    good = {"folder", "python", "supervisor", "scheduler", "partitions", "test job", "clean up"}
    good |= {"node folder", "node python", "node GPUs", "node clock"}
    assert {name for name in good if steps[name]["state"] != "ok"} == set()
    assert steps["node GPUs"]["found"] == "4 seen by nvidia-smi, 4 asked for: NVIDIA A100-SXM4-40GB"
    assert "on gpu" in steps["test job"]["found"]
    assert_nothing_is_left(tmp_path)


def test_check_of_a_site_with_an_unknown_partition_exits_1_and_submits_nothing(tmp_path: Path) -> None:
    code, steps = check(tmp_path, {"partitions": {"gpux": GPU}})
    assert (code, steps["partitions"]["state"], steps["test job"]["state"]) == (1, "failed", "not tried")
    assert "there are: cpu, gpu" in steps["partitions"]["found"]
    assert_nothing_is_left(tmp_path)


def test_check_whose_job_can_never_start_says_slurms_reason(tmp_path: Path) -> None:
    code, steps = check(tmp_path, {"partitions": {"cpu": {}}}, "--directive=--time=10:00:00")
    assert (code, steps["test job"]["state"]) == (1, "failed")
    assert "can never start: Partition" in steps["test job"]["found"]
    assert steps["clean up"]["state"] == "ok"
    assert_nothing_is_left(tmp_path)


def test_check_whose_job_is_impossible_is_refused_with_slurms_words(tmp_path: Path) -> None:
    code, steps = check(tmp_path, {"partitions": {"cpu": {}}}, "--directive=--constraint=nosuch")
    assert (code, steps["test job"]["state"]) == (1, "failed")
    assert "Invalid feature specification" in steps["test job"]["found"]
    assert_nothing_is_left(tmp_path)


def test_check_whose_job_waits_too_long_warns_and_cancels_it(tmp_path: Path) -> None:
    code, steps = check(tmp_path, {"partitions": {"cpu": {}}}, "--directive=--begin=now+1hour", "--wait", "1")
    assert (code, steps["test job"]["state"], steps["node GPUs"]["state"]) == (0, "warning", "not tried")
    assert "BeginTime" in steps["test job"]["found"]
    assert_nothing_is_left(tmp_path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_check_that_is_interrupted_cancels_its_job_and_removes_its_files(
    number: int, code: int, tmp_path: Path
) -> None:
    words = argv(tmp_path, {"partitions": {"cpu": {}}}, "--directive=--begin=now+1hour")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not my_checks():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    if number == signal.SIGINT:
        said = json.loads(stdout)
        assert (said["ok"], said["interrupted"]) == (False, True)
        states = {step["name"]: step["state"] for step in said["steps"]}
        assert (states["test job"], states["clean up"]) == ("not tried", "ok")
    assert_nothing_is_left(tmp_path)


def test_check_of_wrong_input_exits_2(tmp_path: Path) -> None:
    words = argv(tmp_path, {}, "nowhere")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'nowhere' is no host of the site file" in done.stderr


def test_table_of_a_check_fits_80_columns(tmp_path: Path) -> None:
    words = [word for word in argv(tmp_path, {"partitions": {"gpux": GPU}}) if word != "--json"]
    env = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, env=env)
    rows = done.stdout.splitlines()[1:]
    assert max(map(len, rows)) <= 80
    assert rows[-1].endswith("not tried")
    assert any("→ Correct partitions in the site file." in row for row in rows)


def test_site_that_init_writes_passes_its_own_check(tmp_path: Path) -> None:
    path = tmp_path / "made.yaml"
    words = [sys.executable, str(PROJECT / "orch.py"), "site", "init", "--output", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    code, steps = check(tmp_path, yaml.safe_load(path.read_text()))
    assert code == 0, steps
    assert steps["partitions"]["found"] == "cpu (0 GPUs), gpu (4 GPUs)"
    assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 2


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """The cluster's login node."""
    if shutil.which(SSHD) is None:
        pytest.skip("sshd is not installed (apt-get install openssh-server)")
    sockets = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets))
    made = SshServer(tmp_path / "sshd").start()
    yield made
    made.kill()
    shutil.rmtree(sockets)


def host(server: SshServer, base_dir: str) -> dict[str, Any]:
    return {
        "ssh": json.loads(server.spec().model_dump_json(exclude_none=True)),
        "base_dir": base_dir,
        "environment": {"python": sys.executable, "supervisor_python": sys.executable},
        "partitions": {"cpu": {}},
    }


def test_check_over_ssh_proves_the_site_there(server: SshServer, tmp_path: Path) -> None:
    code, steps = check(tmp_path, {"hosts": {"far": host(server, str(tmp_path / "far" / "orch"))}}, "far")
    assert code == 0, steps
    assert "127.0.0.1" in steps["login"]["found"]
    good = ("login", "folder", "python", "scheduler", "test job", "node folder", "node python", "clean up")
    assert [name for name in good if steps[name]["state"] != "ok"] == []
    assert not (tmp_path / "far").exists()
    assert_nothing_is_left(tmp_path)


def test_check_over_ssh_of_a_folder_that_cannot_be_written_goes_on_where_it_can(
    server: SshServer, tmp_path: Path
) -> None:
    code, steps = check(tmp_path, {"hosts": {"far": host(server, "/proc/orch")}}, "far")
    assert (code, steps["folder"]["state"], steps["partitions"]["state"]) == (1, "failed", "ok")
    assert "base_dir" in steps["folder"]["remedy"]
    assert {steps[name]["state"] for name in ("space", "python", "test job", "node folder")} == {"not tried"}


def test_check_over_ssh_of_a_machine_that_is_off_fails_at_its_login(server: SshServer, tmp_path: Path) -> None:
    site = {"hosts": {"far": host(server, "orch")}}
    server.kill()
    code, steps = check(tmp_path, site, "far")
    assert (code, steps["login"]["state"]) == (1, "failed")
    assert {step["state"] for name, step in steps.items() if name not in {"login", "clean up"}} == {"not tried"}
