"""One run as one file, and what keeps it from being made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.atomic import point_link
from orchestrator.rundir import LATEST
from orchestrator.space import archive
from orchestrator.space.archive import ArchiveError, make_archive
from tests.orchestrator.space.conftest import COMPLETED, Runs, snapshot

Orch = Callable[..., int]
PROJECT = Path(__file__).resolve().parents[3]
ENDINGS = pytest.mark.parametrize("ending", ["tar.zst", "tar.gz"])


@ENDINGS
def test_archive_holds_the_run_without_secrets_and_its_sums_are_right(
    ending: str, runs: Runs, orch: Orch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.add("old run", *COMPLETED)
    for name in ("with\nline", "back\\slash", "ünï", "-x"):
        (run.benchmark / name).write_text(name)
    os.link(run.benchmark / "-x", run.benchmark / "second name")
    (run.root / "link").symlink_to("/etc/passwd")
    os.mkfifo(run.root / "pipe")
    before = snapshot(run.root)
    target = tmp_path / f"out.{ending}"
    assert orch("archive", run.root.name, "--output", target, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    after = snapshot(run.root)
    after.pop(str(run.root / "lease.lock"))
    assert {name: value for name, value in after.items() if name != str(run.root)} == {
        name: value for name, value in before.items() if name != str(run.root)
    }
    assert told["left_out"] == ["pipe"]
    assert oct(target.stat().st_mode)[-3:] == "600"
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", str(target), "-C", str(tmp_path / "unpacked")], check=True)
    unpacked = tmp_path / "unpacked"
    checked = subprocess.run(
        ["sha256sum", "--quiet", "-c", f"{run.root.name}/MANIFEST.sha256"], cwd=unpacked, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    top = unpacked / run.root.name
    assert (top / "benchmark" / "with\nline").read_text() == "with\nline"
    assert (top / "benchmark" / "second name").read_text() == "-x"
    assert (top / "link").is_symlink()
    assert not (top / "secrets").exists()
    assert (top / "trials" / "job_1" / "checkpoints" / "last.pt").is_file()
    assert not [path for path in top.rglob("*") if path.is_file() and b"canary-of-the-token" in path.read_bytes()]


def test_archive_without_checkpoints_leaves_them_out(runs: Runs, orch: Orch, tmp_path: Path) -> None:
    run = runs.add("old", *COMPLETED)
    (run.checkpoints / "best.pt").write_text("best")
    (run.root / "data" / "checkpoints").mkdir()
    (run.root / "data" / "checkpoints" / "kept").write_text("x")
    target = tmp_path / "a.tar.gz"
    assert orch("archive", run.root.name, "--output", target, "--without-checkpoints") == 0
    with tarfile.open(target) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert "trials/job_1/results.json" in names
    assert "data/checkpoints/kept" in names
    assert not {name for name in names if name.endswith(".pt")}


def test_archive_with_remove_deletes_the_run_and_mends_latest(runs: Runs, orch: Orch) -> None:
    older, run = runs.add("older", *COMPLETED, days=90), runs.add("old", *COMPLETED)
    point_link(runs.output / LATEST, run.root.name)
    assert orch("archive", "--remove") == 0
    assert runs.names == {"older", LATEST, "archives"}
    assert (runs.output / LATEST).readlink() == Path(older.root.name)
    assert len(list((runs.output / "archives").iterdir())) == 1


@ENDINGS
@pytest.mark.parametrize("harm", ["flip", "cut", "swap"])
def test_archive_that_is_damaged_is_no_archive_and_nothing_is_removed(
    harm: str, ending: str, runs: Runs, orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.add("old", *COMPLETED)
    plain = archive._verify

    def spoiled(partial: Path, *rest: Any) -> None:
        data = bytearray(partial.read_bytes())
        if harm == "flip":
            data[len(data) // 2] ^= 0xFF
        elif harm == "cut":
            del data[-200:]
        if harm == "swap":
            rest = (*rest[:2], {**rest[2], f"{run.root.name}/more": "0" * 64})
        partial.write_bytes(data)
        plain(partial, *rest)

    monkeypatch.setattr(archive, "_verify", spoiled)
    assert orch("archive", run.root.name, "--output", tmp_path / f"a.{ending}", "--remove") == 1
    assert run.recipe.is_file()
    assert not list(tmp_path.glob("*a.tar*"))


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from orchestrator.cli import main
sys.exit(main(sys.argv[1:], None))
"""


@ENDINGS
def test_archive_on_a_full_disk_leaves_no_file_and_the_run(ending: str, runs: Runs, tmp_path: Path) -> None:
    run = runs.add("old", *COMPLETED)
    target = tmp_path / f"a.{ending}"
    argv = [sys.executable, "-c", LIMITED, "archive", run.root.name, "--output", str(target), "--remove"]
    done = subprocess.run(
        [*argv, "--output-dir", str(runs.output)], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "--output" in done.stderr
    assert "Traceback" not in done.stderr
    assert run.recipe.is_file()
    assert not list(tmp_path.glob("*a.tar*"))


def test_archive_of_what_cannot_be_read_is_refused(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.add("old", *COMPLETED)
    plain = os.open

    def refuse(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).endswith("results.json"):
            raise PermissionError(13, "Permission denied")
        return plain(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    for ending in ("tar.gz", "tar.zst"):
        with pytest.raises(ArchiveError, match=r"results\.json cannot be read: Permission denied"):
            make_archive(run, tmp_path / f"a.{ending}", without_checkpoints=False)
    assert not list(tmp_path.glob("*a.tar*"))


def test_archive_of_a_run_that_lives_is_refused(runs: Runs, orch: Orch, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs.add("left", "run_started")
    token = runs.submit("left", run)
    runs.queue.write_text(f"41|RUNNING|n1|None|{token}\n")
    assert orch("archive", run.root.name) == 2
    assert "have not ended" in capsys.readouterr().err
    runs.programs.add("squeue", "exit 1")
    # Nobody can tell: it may be read, and must not be removed.
    assert orch("archive", run.root.name, "--remove") == 2
    assert orch("archive", run.root.name) == 0
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.zip", "what kind"), ("there.tar.gz", "there already"), ("{run}/x.tar.gz", "in the run itself")],
)
def test_archive_in_a_wrong_place_is_refused(
    name: str, words: str, runs: Runs, orch: Orch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs.add("old", *COMPLETED)
    (tmp_path / "there.tar.gz").write_text("mine")
    target = tmp_path / name.format(run=f"output/{run.root.name}")
    assert orch("archive", run.root.name, "--output", target, "--remove") == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "there.tar.gz").read_text() == "mine"
    assert run.recipe.is_file()
