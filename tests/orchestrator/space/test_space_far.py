"""A host over a real sshd: what is sent and fetched, what lies there, and what may go."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.atomic import write_json
from orchestrator.ledger import Ledger
from orchestrator.rundir import RunDir
from orchestrator.space.removal import doomed_name, is_doomed
from tests.builders import RUN_ID
from tests.orchestrator.conftest import wait_for
from tests.orchestrator.space.conftest import COMPLETED, DAY_S, FAILED, Runs, far_host, snapshot
from tests.orchestrator.transports.sshd import SshServer

Orch = Callable[..., int]
PROJECT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("far")


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return the object that a command printed."""
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def far_copy(runs: Runs, name: str, days: float = 60, keep: bool = False) -> RunDir:
    """Make what a run leaves on the host, last active so many days ago."""
    run = RunDir(runs.folder / "far" / "runs" / f"{name}_{RUN_ID}")
    run.make()
    config = {"run_id": RUN_ID, "run_dir": str(run.root)}
    write_json(run.supervisor_config("vllm"), config)
    at = time.time() - days * DAY_S
    write_json(run.lease, {"owner": None, "renewed_at": at, "expires_at": at + 900, "keep": keep})
    run.log("vllm", "41", "err").write_bytes(os.urandom(30_000))
    (run.trials / "job_1" / "checkpoints").mkdir(parents=True)
    (run.trials / "job_1" / "checkpoints" / "last.pt").write_bytes(os.urandom(60_000))
    for path in (run.lease, run.supervisor_config("vllm")):
        os.utime(path, (at, at))
    return run


def far_names(runs: Runs) -> set[str]:
    """Return what is in the host's runs/, without the run id."""
    return {path.name.removesuffix(f"_{RUN_ID}") for path in (runs.folder / "far" / "runs").iterdir()}


def test_sync_sends_what_is_new_and_a_dry_run_sends_nothing(
    runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = runs.folder / "my data"
    (source / "__pycache__").mkdir(parents=True)
    for name, text in {"a.csv": "a" * 5000, "b.tmp": "b", "__pycache__/c": "c"}.items():
        (source / name).write_text(text)
    words = ("sync", "far", source, "--exclude", "*.tmp", "--json")
    assert orch(*words, "--dry-run") == 0
    assert told(capsys)["copies"][0]["files"] == ["a.csv"]
    assert not (runs.folder / "far").exists()
    assert orch(*words) == 0
    found = told(capsys)
    there = runs.folder / "far" / "data" / "my data"
    assert (found["copies"][0]["target"], found["bytes"]) == (str(there), 5000)
    assert [path.name for path in there.iterdir()] == ["a.csv"]
    assert orch(*words) == 0
    assert told(capsys)["files"] == 0
    # Same size and time: only the contents tell.
    status = (source / "a.csv").stat()
    (source / "a.csv").write_text("z" * 5000)
    os.utime(source / "a.csv", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert orch(*words) == 0
    assert told(capsys)["files"] == 0
    assert orch(*words, "--checksum", "--all", "--no-compress") == 0
    assert sorted(told(capsys)["copies"][0]["files"]) == ["__pycache__/c", "a.csv"]
    assert (there / "a.csv").read_text() == "z" * 5000


def test_sync_compresses_unless_told_otherwise(runs: Runs, orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs.folder / "x").write_text("x")
    real = shutil.which("rsync")
    if real is None:
        pytest.skip("rsync is not installed (apt-get install rsync)")
    runs.programs.add("rsync", f'exec {real} "$@"')
    assert orch("sync", "far", runs.folder / "x", "--bwlimit", "5000") == 0
    assert orch("sync", "far", runs.folder / "x", "--no-compress") == 0
    first, second = (call for call in runs.programs.calls("rsync") if call.startswith("-rlptv"))
    assert "--compress" in first
    assert "--bwlimit=5000" in first
    assert "--compress" not in second


def test_sync_that_is_cut_goes_on_where_it_was(runs: Runs, orch: Orch, far: SshServer) -> None:
    source = runs.folder / "big"
    source.write_bytes(os.urandom(6 << 20))
    argv = [sys.executable, "-c", "import sys; from orchestrator.cli import main; sys.exit(main(sys.argv[1:], None))"]
    words = ["sync", "far", str(source), "--bwlimit", "1024", "--no-compress"]
    with subprocess.Popen([*argv, *words], cwd=PROJECT, stderr=subprocess.PIPE) as cut:
        folder = runs.folder / "far" / "data"
        wait_for(lambda: [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 1 << 20], 20)
        far.kill()
        assert cut.stderr is not None
        said = cut.stderr.read()
    assert cut.returncode == 1
    assert b"goes on there" in said
    partial = wait_for(lambda: list(folder.rglob(".orch-partial/big")), 20)
    assert partial[0].stat().st_size >= 1 << 19
    assert not (folder / "big").exists()
    far.start()
    began = time.monotonic()
    assert orch("sync", "far", source, "--no-compress") == 0
    assert time.monotonic() - began < 20
    assert (folder / "big").read_bytes() == source.read_bytes()
    assert not partial[0].exists()


@pytest.mark.parametrize("to", ["/etc", "../x", "a/../../b", "", "runs", "runs/x", "a//b"])
def test_sync_stays_below_the_hosts_folder_and_out_of_its_runs(
    to: str, runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs.folder / "x").write_text("x")
    assert orch("sync", "far", runs.folder / "x", "--to", to) == 2
    assert "--to" in capsys.readouterr().err
    assert not (runs.folder / "far").exists()


def test_sync_with_wrong_words_is_refused(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (runs.folder / name).mkdir()
        (runs.folder / name / "same").write_text(name)
    assert orch("sync", "nowhere", runs.folder / "a") == 2
    assert "Known hosts: far" in capsys.readouterr().err
    assert orch("sync", "far", runs.folder / "a" / "same", runs.folder / "b" / "same") == 2
    assert "two paths" in capsys.readouterr().err
    assert orch("sync", "far", runs.folder / "none") == 2
    assert orch("sync", "far", runs.folder / "a", "--exclude", "**/x") == 2
    assert "--exclude" in capsys.readouterr().err
    assert not (runs.folder / "far").exists()


def remote_run(runs: Runs, server: SshServer, *events: Any) -> tuple[RunDir, RunDir]:
    """Make a run whose jobs ran on the host; return the copy here and the one there."""
    hosts = {"far": far_host(server, runs.folder)}
    run = runs.add("remote", *events)
    plan = json.loads(run.plan.read_text())
    for job in plan["jobs"]:
        job["host"] = "far"
    write_json(run.plan, plan)
    recipe = json.loads(run.recipe.read_text())
    recipe["job"]["hosts"] = hosts
    for role in ("server", "client", "trial"):
        recipe["job"]["resources"][role]["host"] = "far"
    write_json(run.recipe, recipe)
    runs.age(run, 60)
    return run, far_copy(runs, "remote")


def test_fetch_brings_results_of_a_run_whose_orchestrator_died(
    runs: Runs, orch: Orch, far: SshServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run, there = remote_run(runs, far, "run_started")
    (there.benchmark / "b1").mkdir()
    (there.benchmark / "b1" / "summary.json").write_text("{}")
    (there.trials / "job_1" / "results.json").write_text('{"new": 1}')
    (there.trials / "job_1" / "logs").mkdir()
    (there.trials / "job_1" / "logs" / "train.log").write_text("epoch")
    (there.logs / "orch.log").write_text("not ours")
    (there.root / "recipe.json").write_text("not ours")
    before = snapshot(run.root)
    assert orch("fetch", run.root.name, "--dry-run", "--json") == 0
    found = told(capsys)
    assert found["files"] >= 4
    assert snapshot(run.root) == before
    assert orch("fetch", run.root.name, "--only", "trials") == 0
    assert (run.trials / "job_1" / "results.json").read_text() == '{"new": 1}'
    assert not (run.trials / "job_1" / "logs" / "train.log").exists()
    assert orch("fetch", run.root.name, "--only", "logs") == 0
    assert (run.trials / "job_1" / "logs" / "train.log").read_text() == "epoch"
    assert not (run.benchmark / "b1").exists()
    assert orch("fetch", run.root.name) == 0
    assert (run.benchmark / "b1" / "summary.json").is_file()
    mine, theirs = (copy.trials / "job_1" / "checkpoints" / "last.pt" for copy in (run, there))
    assert mine.read_bytes() == theirs.read_bytes()
    assert not run.orchestrator_log.exists()
    assert "not ours" not in run.recipe.read_text()
    capsys.readouterr()
    assert orch("fetch", run.root.name, "--json") == 0
    assert told(capsys)["files"] == 0


def test_fetch_of_a_run_of_this_machine_has_nothing_to_do(
    runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.add("here", *COMPLETED)
    assert orch("fetch", run.root.name) == 0
    assert "Nothing of this run" in capsys.readouterr().err


def test_du_of_a_host_tells_runs_data_and_caches(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    run = far_copy(runs, "old")
    for name in ("data/set", "cache/models/m"):
        (runs.folder / "far" / name).mkdir(parents=True)
        (runs.folder / "far" / name / "file").write_bytes(os.urandom(200_000))
    assert orch("du", "--host", "far", "--json") == 0
    found = told(capsys)
    assert [item["name"] for item in found["runs"]] == [run.root.name]
    assert found["runs"][0]["checkpoints"] >= 60_000
    assert min(found["others"][name] for name in ("data", "caches")) >= 200_000
    said = subprocess.run(["du", "-s", "-B1", str(runs.folder / "far")], capture_output=True, text=True, check=True)
    assert found["total"] == int(said.stdout.split()[0])
    assert orch("du", "--host", "far") == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[1:])) <= 80


def test_clean_of_a_host_deletes_what_has_surely_ended(
    runs: Runs, orch: Orch, far: SshServer, capsys: pytest.CaptureFixture[str]
) -> None:
    home, there = remote_run(runs, far, *FAILED)
    far_copy(runs, "orphan")
    far_copy(runs, "young", days=0.5)
    far_copy(runs, "kept", keep=True)
    outside = runs.folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (there.root / "link").symlink_to(outside)
    (there.root.parent / f"linked_{RUN_ID}").symlink_to(outside)
    (there.root.parent / f"strange_{RUN_ID}").mkdir()
    (there.root.parent / doomed_name("half")).mkdir()
    (there.logs / "closed").mkdir(mode=0o000)
    before = snapshot(runs.folder / "far")
    assert orch("clean", "--host", "far", "--older-than", "1h", "--dry-run") == 0
    assert snapshot(runs.folder / "far") == before
    capsys.readouterr()
    assert orch("clean", "--host", "far", "--older-than", "1h", "--yes", "--json") == 0
    why = {item["name"].removesuffix(f"_{RUN_ID}"): item["why_left"] for item in told(capsys)["left"]}
    assert "less than a day ago" in why["young"]
    assert "kept" in why["kept"]
    assert "no scripts" in why["strange"]
    assert far_names(runs) == {"young", "kept", "strange", "linked"}
    assert (outside / "precious").is_file()
    assert home.recipe.is_file()


def test_clean_of_a_host_spares_runs_with_living_jobs_or_a_living_copy(
    runs: Runs, orch: Orch, far: SshServer, capsys: pytest.CaptureFixture[str]
) -> None:
    home, there = remote_run(runs, far, *COMPLETED)
    words = ("clean", "--host", "far", "--older-than", "1d", "--yes", "--json")

    def reason() -> str:
        assert orch(*words) == 0
        (item,) = told(capsys)["left"]
        return str(item["why_left"])

    runs.queue.write_text(f"41|PENDING||Priority|orch-{RUN_ID}-vllm\n")
    assert "jobs have not ended" in reason()
    runs.queue.unlink()
    runs.programs.add("squeue", "exit 1")
    assert "scheduler there does not answer" in reason()
    runs.programs.add("squeue", "true")
    Ledger(home.events).append("run_finished", state="completed", kept=True)
    assert "kept" in reason()
    shutil.rmtree(home.root)
    # Its orchestrator may be another laptop's.
    write_json(there.lease, {"owner": None, "expires_at": time.time() + 600, "keep": False})
    old = time.time() - 60 * DAY_S
    os.utime(there.lease, (old, old))
    assert "another machine looks after it" in reason()
    assert there.root.is_dir()


def test_run_here_whose_job_lives_on_its_host_stays(
    runs: Runs, orch: Orch, far: SshServer, capsys: pytest.CaptureFixture[str]
) -> None:
    home, there = remote_run(runs, far, "run_started")
    token = runs.submit("remote", home)
    text = home.events.read_text().replace('"host": "here"', '"host": "far"')
    home.events.write_text(text)
    runs.age(home, 60)
    write_json(there.heartbeat(token), {"attempt": "a", "at": time.time() - 20})
    before = snapshot(home.root)
    words = ("clean", "--older-than", "1d", "--yes", "--json")
    assert orch(*words, "--dry-run") == 0
    assert "sign of life" in told(capsys)["left"][0]["why_left"]
    assert snapshot(home.root) == before
    far.kill()
    assert orch(*words) == 0
    assert "does not answer" in told(capsys)["left"][0]["why_left"]
    assert home.recipe.is_file()


def test_checkpoints_on_a_host_go_and_the_run_stays(runs: Runs, orch: Orch, far: SshServer) -> None:
    _, there = remote_run(runs, far, *COMPLETED)
    orphan = far_copy(runs, "orphan")
    outside = runs.folder / "outside" / "checkpoints"
    outside.mkdir(parents=True)
    (there.trials / "job_2").symlink_to(outside.parent)
    (there.trials / "job_1" / doomed_name("checkpoints")).mkdir()
    assert orch("clean", "--host", "far", "--checkpoints", "--older-than", "1d", "--yes") == 0
    assert list((there.trials / "job_1").iterdir()) == []
    assert outside.is_dir()
    # Whether an orphan was completed, only its orchestrator's copy tells.
    assert (orphan.trials / "job_1" / "checkpoints" / "last.pt").is_file()


def test_clean_of_a_host_that_was_killed_half_way_is_finished_by_the_next(runs: Runs, orch: Orch) -> None:
    run = far_copy(runs, "old")
    for number in range(30):
        (run.logs / str(number)).write_text("x")
    slow = runs.programs.add("mv", '/bin/mv "$@"; sleep 30')
    code = "import sys; from orchestrator.cli import main; sys.exit(main(sys.argv[1:], None))"
    words = ["clean", "--host", "far", "--older-than", "1d", "--yes", "--output-dir", str(runs.output)]
    with subprocess.Popen([sys.executable, "-c", code, *words], cwd=PROJECT, stdout=subprocess.DEVNULL) as killed:
        wait_for(lambda: [name for name in far_names(runs) if is_doomed(name)], 30)
        killed.send_signal(signal.SIGKILL)
    slow.unlink()
    assert orch(*words[:-2]) == 0
    assert far_names(runs) == set()


def test_caches_on_a_host_go_unless_used_or_locked(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    cache = runs.folder / "far" / "cache" / "models"
    old = time.time() - 60 * DAY_S
    for name in ("old", "used", "young", "locked"):
        (cache / name).mkdir(parents=True)
        (cache / name / "weights").write_bytes(b"w" * 1000)
        if name != "young":
            os.utime(cache / name / "weights", (old, old))
    (cache / "old" / ".orch-partial").mkdir()
    os.utime(cache / "old" / ".orch-partial", (old, old))
    run = far_copy(runs, "recent", days=2)
    config = json.loads(run.supervisor_config("vllm").read_text())
    write_json(run.supervisor_config("vllm"), {**config, "env": {"MODEL": str(cache / "used")}})
    words = ("clean", "--host", "far", "--caches", "--yes", "--json")
    with subprocess.Popen(
        ["flock", str(cache / ".locked.lock"), "sh", "-c", "echo held; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert orch(*words) == 1
        why = {item["name"]: item["why_left"] for item in told(capsys)["left"]}
        assert "converter is at work" in why["models/locked"]
        assert "uses it" in why["models/used"]
        assert {path.name for path in cache.iterdir() if not path.name.startswith(".")} == {"used", "young", "locked"}
    assert orch(*words) == 0
    assert {path.name for path in cache.iterdir() if not path.name.startswith(".")} == {"used", "young"}
