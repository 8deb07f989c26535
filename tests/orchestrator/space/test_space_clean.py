"""Deletion of runs on this machine: what goes, and above all what stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.atomic import point_link, write_json
from orchestrator.errors import RunBusyError
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.rundir import LATEST, find_run, iter_runs
from orchestrator.space.clean import RunsHere, away_from
from orchestrator.space.removal import doomed_name, is_doomed, mend_latest
from orchestrator.space.selection import Filters
from orchestrator.space.wording import age_argument
from tests.orchestrator.conftest import wait_for
from tests.orchestrator.space.conftest import COMPLETED, DAY_S, FAILED, Runs, snapshot

Orch = Callable[..., int]
PROJECT = Path(__file__).resolve().parents[3]
CLEAN = ("clean", "--older-than", "30d", "--yes")


def left(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return why things were left, by name, of a clean with --json."""
    return {item["name"]: item["why_left"] for item in json.loads(capsys.readouterr().out)["left"]}


def test_clean_deletes_old_runs_that_have_ended_and_no_others(runs: Runs, orch: Orch) -> None:
    runs.add("old", *COMPLETED)
    runs.add("young", *COMPLETED, days=2)
    assert orch(*CLEAN) == 0
    assert runs.names == {"young"}


def test_dry_run_lists_and_changes_nothing(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    runs.add("old", *COMPLETED)
    (runs.output / doomed_name("earlier")).mkdir()
    before = snapshot(runs.folder)
    for flags in ((), ("--checkpoints",), ("--caches",)):
        assert orch("clean", "--older-than", "30d", *flags, "--dry-run") == 0
    shown = capsys.readouterr().out
    after = snapshot(runs.folder)
    noted = [path for path in after if path.startswith(str(runs.programs.folder))]
    assert {path: after[path] for path in after if path not in noted} == {
        path: before[path] for path in before if path not in noted
    }
    assert "old_0a1b2c3d" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_clean_without_a_word_on_which_runs_or_without_a_terminal_is_refused(
    runs: Runs, orch: Orch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.add("old", *COMPLETED)
    monkeypatch.setattr(sys, "stdin", None)
    assert orch("clean", "--yes") == 2
    assert "which runs?" in capsys.readouterr().err
    assert orch("clean", "--older-than", "30d") == 2
    assert "no terminal to ask on" in capsys.readouterr().err
    assert orch("clean", "--caches", "--failed", "--yes") == 2
    assert runs.names == {"old"}


@pytest.mark.parametrize(("answer", "is_left"), [("y\n", False), ("\n", True), ("n\n", True)])
def test_clean_asks_on_a_terminal(
    answer: str, is_left: bool, runs: Runs, orch: Orch, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.add("old", *COMPLETED)
    ours, theirs = os.openpty()
    os.write(ours, answer.encode())
    with os.fdopen(theirs, encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert orch("clean", "--older-than", "30d") == 0
    os.close(ours)
    assert bool(runs.names) == is_left


def test_failed_and_keep_last_choose_together(runs: Runs, orch: Orch) -> None:
    runs.add("f1", *FAILED, days=50)
    runs.add("c1", *COMPLETED, days=40)
    runs.add("f2", *FAILED, days=30)
    runs.add("interrupted", "run_started", ("run_finished", {"state": "interrupted"}), days=20)
    runs.add("f3", *FAILED, days=10)
    assert orch("clean", "--failed", "--keep-last", "1", "--yes") == 0
    assert runs.names == {"c1", "f3"}


def test_run_that_may_live_stays_and_the_reason_is_told(
    runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ("run_started", ("run_finished", {"state": "completed", "kept": True}))
    runs.add("kept", *kept)
    runs.add("planned", days=0.5)
    damaged = runs.add("damaged", *COMPLETED)
    damaged.recipe.write_text("{")
    runs.add("newest", *COMPLETED, days=0.1)
    assert orch("clean", "--keep-last", "1", "--yes", "--json") == 0
    why = {name.split("_")[0]: text for name, text in left(capsys).items()}
    assert "its services are kept" in why["kept"]
    assert "less than a day ago" in why["planned"]
    assert "cannot be read" in why["damaged"]
    assert runs.names == {"kept", "planned", "damaged", "newest"}


def test_run_with_a_living_job_or_a_silent_scheduler_stays(
    runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.add("left", "run_started", days=60)
    token = runs.submit("left", run)
    runs.age(run, 60)
    runs.queue.write_text(f"41|RUNNING|n1|None|{token}\n")
    assert orch(*CLEAN, "--json") == 0
    assert "jobs have not ended" in left(capsys)[run.root.name]
    runs.programs.add("squeue", "echo down >&2; exit 1")
    assert orch(*CLEAN, "--json") == 0
    assert "scheduler does not answer" in left(capsys)[run.root.name]
    runs.programs.add("squeue", f"echo '41|COMPLETED|n1|None|{token}'")
    write_json(run.heartbeat(token), {"attempt": "a", "at": time.time() - 30})
    assert orch(*CLEAN, "--json") == 0
    assert "sign of life" in left(capsys)[run.root.name]
    write_json(run.heartbeat(token), {"attempt": "a", "at": time.time() - DAY_S})
    assert orch(*CLEAN) == 0
    assert runs.names == set()


@pytest.mark.parametrize(
    ("queue", "cluster", "why"),
    [
        ("echo '51|PENDING||Dependency|orch'", "here", "is in the queue; `orch.py stop` cancels it"),
        ("exit 1", "here", "cannot be asked about from here"),
        ("echo '51|CANCELLED||None|orch'", "there", "cannot be asked about from here"),
        ("echo '51|CANCELLED||None|orch'", "here", None),
    ],
)
def test_planned_run_whose_orchestrator_is_queued_stays(
    queue: str, cluster: str, why: str | None, runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    own_job = {"scheduler": "slurm", "job_id": "51", "cluster": "here", "name": "orch"}
    run = runs.add("planned", ("run_queued", {"own_job": own_job}), days=60)
    runs.programs.add("squeue", queue)
    runs.programs.add("scontrol", f"echo ClusterName = {cluster}")
    assert orch(*CLEAN, "--json") == 0
    told = left(capsys).get(run.root.name)
    assert runs.names == ({run.root.name.removesuffix("_0a1b2c3d")} if why else set())
    assert (told is None) if why is None else (told is not None and why in told)


def test_run_whose_submission_was_never_answered_stays_for_a_while(
    runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.add("left", "run_started")
    runs.submit("left", run, answered=False)
    runs.add("newest", *COMPLETED, days=-1)
    assert orch("clean", "--keep-last", "1", "--yes", "--json") == 0
    assert "has not said how it ended" in left(capsys)[run.root.name]
    assert run.root.is_dir()


def test_local_run_of_another_machine_stays(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.add("left", "run_started", scheduler={"kind": "local"}, engine={"device": "cpu"})
    token = runs.submit("left", run)
    fields = {"job_id": "41", "attempt": "a", "host": "login9", "state": "ready", "started_at": 1.0}
    write_json(run.status(token), {"token": token, **fields})
    runs.age(run, 60)
    assert orch(*CLEAN, "--json") == 0
    assert "only that machine can tell" in left(capsys)[run.root.name]
    write_json(run.status(token), {"token": token, **fields, "host": socket.gethostname()})
    assert orch(*CLEAN) == 0
    assert runs.names == set()


def test_run_of_another_user_stays(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    run = runs.add("theirs", *COMPLETED)
    os.chown(run.root, 65534, 65534)
    assert orch(*CLEAN, "--json") == 0
    assert "another user" in left(capsys)[run.root.name]


HOLDER = """
import sys, time
from pathlib import Path
from orchestrator.lease import Lease
lease = Lease(Path(sys.argv[1]))
getattr(lease, sys.argv[2])()
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("hold", ["take", "_lock_file"])
def test_run_that_another_process_holds_stays(
    hold: str, runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A living orchestrator, and one that has just locked the run and not written its lease yet.
    run = runs.add("held", *COMPLETED)
    argv = [sys.executable, "-c", HOLDER, str(run.lease), hold]
    with subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert orch(*CLEAN, "--json") == 0
        told = json.loads(capsys.readouterr().out)["left"][0]["why_left"]
        assert ("looks after" if hold == "take" else "just taking it over") in told
        assert run.recipe.is_file()
        assert orch("archive", run.root.name, "--remove") == 2
        holder.kill()
    assert orch(*CLEAN) == 0
    assert runs.names == set()


def test_resume_is_refused_while_a_run_is_being_deleted(runs: Runs) -> None:
    run = runs.add("old", *COMPLETED)
    with away_from(run) as why:
        assert why == ""
        with pytest.raises(RunBusyError):
            Lease(run.lease).take()
    Lease(run.lease).take()


def test_run_that_was_resumed_after_it_was_listed_stays(runs: Runs) -> None:
    run = runs.add("old", *COMPLETED)
    cleaner = RunsHere(runs.output, Filters(older_than_s=DAY_S), only_checkpoints=False)
    (item,) = cleaner.look()
    assert item.why_left == ""
    Ledger(run.events).append("run_resumed")
    Ledger(run.events).append("run_finished", state="completed", kept=True)
    assert "kept" in cleaner.delete(item)
    assert run.recipe.is_file()


def test_links_go_and_what_they_lead_to_stays(runs: Runs, orch: Orch, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    run = runs.add("old", *COMPLETED)
    (run.root / "link").symlink_to(outside)
    (run.trials / "job_2").symlink_to(outside)
    (run.data("x")).mkdir(parents=True)
    (run.data("x") / "file").symlink_to(outside / "precious")
    other = runs.add("elsewhere", *COMPLETED)
    other.root.rename(tmp_path / other.root.name)
    other.root.symlink_to(tmp_path / other.root.name)
    (runs.output / doomed_name("link")).symlink_to(outside)
    assert orch(*CLEAN) == 0
    assert not run.root.exists()
    assert (outside / "precious").read_text() == "x"
    assert (tmp_path / other.root.name / "recipe.json").is_file()
    assert other.root.is_symlink()


def test_folder_that_merely_looks_like_a_run_stays(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    real = runs.add("old", *COMPLETED)
    for name in ("my thesis", f"copy_of_{real.root.name}"):
        (runs.output / name).mkdir()
        (runs.output / name / "plan.json").write_bytes(real.plan.read_bytes())
    for name, text in {"empty": "", "list": "[]", "words": '{"run_id": "words", "run_dir": "/x/words"}'}.items():
        (runs.output / name).mkdir()
        (runs.output / name / "plan.json").write_text(text)
    for name in ("models", ".deleting-mine"):
        (runs.output / name).mkdir()
    for folder in runs.output.iterdir():
        for path in folder.glob("plan.json"):
            os.utime(path, (1, 1))
    assert orch(*CLEAN, "--json") == 0
    assert set(left(capsys)) == {"my thesis", f"copy_of_{real.root.name}", "empty", "list", "words"}
    assert runs.names == {"my thesis", "copy_of_old", "empty", "list", "words", "models", ".deleting-mine"}


def test_folders_without_permissions_are_deleted() -> None:
    # As an ordinary user: root may do everything.
    code = "import sys; from pathlib import Path; from orchestrator.space.removal import delete_folder\n"
    code += "delete_folder(Path(sys.argv[1]))"
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        top = Path(folder) / "top"
        (top / "a" / "b").mkdir(parents=True)
        (top / "a" / "b" / "file").write_text("x")
        (top / "a" / "b").chmod(0)
        (top / "a").chmod(0o500)
        is_root = os.getuid() == 0
        if is_root:
            subprocess.run(["chown", "-R", "65534:65534", folder], check=True)
        argv = [sys.executable, "-c", code, str(top)]
        user = {"user": 65534, "group": 65534, "extra_groups": []} if is_root else {}
        subprocess.run(argv, cwd=PROJECT, check=True, timeout=60, **user)  # type: ignore[call-overload]
        assert list(Path(folder).iterdir()) == []


SLOW_CLEAN = """
import sys, time
from orchestrator.space import removal
plain = removal.os.unlink
removal.os.unlink = lambda *a, **k: (plain(*a, **k), time.sleep(0.05))
from orchestrator.cli import main
main(sys.argv[1:], None)
"""


def test_clean_that_was_killed_half_way_is_finished_by_the_next(runs: Runs, orch: Orch) -> None:
    run = runs.add("old", *COMPLETED)
    point_link(runs.output / LATEST, run.root.name)
    other = runs.add("other", *COMPLETED, days=1)
    argv = [sys.executable, "-c", SLOW_CLEAN, *CLEAN, "--output-dir", str(runs.output)]
    with subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.DEVNULL) as killed:
        wait_for(lambda: [path for path in runs.output.iterdir() if is_doomed(path.name)], 30)
        time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
    (half,) = [path for path in runs.output.iterdir() if is_doomed(path.name)]
    assert not run.root.exists()
    assert any(half.rglob("*"))
    # No command takes it for a run, whatever of it is left.
    assert [found.root for found in iter_runs(runs.output)] == [other.root]
    assert find_run(runs.output, "latest").root == other.root
    assert orch(*CLEAN) == 0
    assert runs.names == {"other", LATEST}
    assert (runs.output / LATEST).resolve() == other.root


def test_two_cleans_at_once_delete_everything_without_an_error(runs: Runs) -> None:
    for number in range(4):
        runs.add(f"old{number}", *COMPLETED)
    argv = [sys.executable, "-c", SLOW_CLEAN, *CLEAN, "--output-dir", str(runs.output)]
    both = [subprocess.Popen(argv, cwd=PROJECT, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert runs.names == set()
    assert b"Traceback" not in b"".join(said)


def test_latest_points_at_the_newest_started_run_that_is_left_or_goes(runs: Runs, orch: Orch) -> None:
    first = runs.add("first", *COMPLETED, days=20)
    runs.add("only-planned", days=5)
    last = runs.add("last", *FAILED, days=10)
    point_link(runs.output / LATEST, last.root.name)
    assert orch("clean", "--failed", "--yes") == 0
    assert (runs.output / LATEST).readlink() == Path(first.root.name)
    assert orch("clean", "--older-than", "10d", "--yes") == 0
    assert runs.names == {"only-planned"}
    mend_latest(runs.output)
    assert runs.names == {"only-planned"}


def test_checkpoints_of_completed_runs_go_and_the_best_stays(
    runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done, failed = runs.add("done", *COMPLETED), runs.add("failed", *FAILED)
    best = done.checkpoints / "best.pt"
    best.write_text("best")
    outside = tmp_path / "outside"
    (outside / "checkpoints").mkdir(parents=True)
    (done.trials / "job_2").symlink_to(outside)
    (done.trials / "job_3").mkdir()
    (done.trials / "job_3" / "checkpoints").symlink_to(outside / "checkpoints")
    (done.trials / "job_1" / doomed_name("checkpoints")).mkdir()
    assert orch(*CLEAN, "--checkpoints", "--json") == 0
    assert "resume" in left(capsys)[failed.root.name]
    assert sorted(path.name for path in (done.trials / "job_1").iterdir()) == ["logs", "results.json"]
    assert best.read_text() == "best"
    assert (outside / "checkpoints").is_dir()
    assert (failed.trials / "job_1" / "checkpoints" / "last.pt").is_file()


def test_what_cannot_be_deleted_is_told_and_keeps_nothing_else_back(
    runs: Runs, orch: Orch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.add("a", *COMPLETED)
    runs.add("b", *COMPLETED)
    plain = os.unlink

    def refuse(path: str, *, dir_fd: int | None = None) -> None:
        if dir_fd is not None and "-a_" in str(Path(f"/proc/self/fd/{dir_fd}").readlink()):
            raise PermissionError(1, "Operation not permitted")
        plain(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", refuse)
    assert orch(*CLEAN) == 1
    assert "Operation not permitted" in capsys.readouterr().err
    monkeypatch.undo()
    (name,) = runs.names
    assert is_doomed(name)


@pytest.mark.parametrize(("text", "hours"), [("30d", 720), ("12h", 12), ("2w", 336)])
def test_ages_are_read(text: str, hours: float) -> None:
    assert age_argument(text) == hours * 3600


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "1y", ""])
def test_other_ages_are_refused(text: str, runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        orch("clean", f"--older-than={text}")
    assert "is no age" in capsys.readouterr().err
