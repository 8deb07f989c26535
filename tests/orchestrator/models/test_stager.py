"""Models copied to a node's own storage: checked, shared by jobs, and gone when the last one ends."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.models import stager
from orchestrator.models.manifest import MARK, make_manifest
from orchestrator.models.meter import telling_meter
from tests.orchestrator.models.conftest import WHY_NO_MOUNTS, in_mount_namespace

STAGER = Path(stager.__file__)
FILES = {"config.json": b"{}", "weights.safetensors": bytes(range(256)) * 4000, "sub/vocab.txt": b"a\n"}
# An engine that prints the hash of what it is given, says that it is up, and serves until it is told to end.
ENGINE = """
import hashlib, pathlib, sys, time
folder, up, serves = pathlib.Path(sys.argv[1].partition("=")[2]), pathlib.Path(sys.argv[2]), sys.argv[3] == "serves"
print(folder, hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest(), flush=True)
up.touch()
while serves: time.sleep(0.05)
"""


class Node:
    """A node's storage, a shared store with one model, and jobs that stage it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source, self.to = folder, folder / "store" / "models" / "tiny", folder / "scratch"
        for name, data in FILES.items():
            (self.source / name).parent.mkdir(parents=True, exist_ok=True)
            (self.source / name).write_bytes(data)
        self.note_manifest()

    def note_manifest(self) -> None:
        make_manifest("tiny", self.source, telling_meter(print)).write(self.source / MARK)

    def start(self, name: str = "job", *, serves: bool = False, keep: bool = False, to: str = "$SCRATCH/x",
              source: Path | None = None) -> subprocess.Popen[str]:  # fmt: skip
        """Start a job."""
        options = ["--to", to, *(["--keep"] if keep else []), str(source or self.source)]
        engine = [sys.executable, "-c", ENGINE, "--model=@MODEL@", str(self.folder / name), "serves" if serves else "-"]
        argv = [sys.executable, "-S", "-s", str(STAGER), *options, "--", *engine]
        env = {**os.environ, "SCRATCH": str(self.to)}
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
        )

    def run(self, **how: object) -> tuple[int, str, str]:
        """Run a job to its end; return exit code and what it said."""
        job = self.start(**how)  # type: ignore[arg-type]
        out, err = job.communicate(timeout=60)
        return job.returncode, out, err

    def wait_up(self, name: str) -> None:
        """Wait until a job's engine is up."""
        wait_until((self.folder / name).exists)

    @property
    def copies(self) -> list[Path]:
        shelf = self.to / "x" / f"orch-models-{os.getuid()}"
        return sorted(path for path in shelf.iterdir() if path.is_dir()) if shelf.is_dir() else []


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    """Return a node."""
    return Node(tmp_path)


def end(job: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """End a job as its supervisor does, and return what it said."""
    os.killpg(job.pid, number)
    return job.communicate(timeout=30)[1]


def test_engine_gets_a_whole_copy_that_is_gone_afterwards(node: Node) -> None:
    code, out, err = node.run()
    assert code == 0, err
    folder, sha256 = out.split()
    assert folder.startswith(str(node.to / "x"))
    assert sha256 == hashlib.sha256(FILES["weights.safetensors"]).hexdigest()
    assert "1.0 MiB, of which 1.0 MiB copied" in err
    assert node.copies == []
    assert (node.to / "x" / f"orch-models-{os.getuid()}").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", ["main", "v1", "c0ffee"])
def test_snapshot_of_a_hub_cache_is_found_by_branch_tag_and_commit(name: str, node: Node) -> None:
    repo = node.folder / "hub" / "models--org--tiny"
    snapshot = repo / "snapshots" / "c0ffee"
    snapshot.parent.mkdir(parents=True)
    node.source.rename(repo / "blobs")
    snapshot.symlink_to(repo / "blobs")
    (repo / ".orch").mkdir()
    (repo / "blobs" / MARK).rename(repo / ".orch" / "c0ffee.json")
    (repo / "refs").mkdir()
    for ref in ("main", "v1"):
        (repo / "refs" / ref).write_text("c0ffee")
    found = stager.Source(str(repo), name)
    assert found.folder == str(snapshot)
    assert {file.path for file in found.files} == set(FILES)
    assert node.run(source=repo)[0] == 0


def test_model_without_a_manifest_is_checked_against_its_source(node: Node) -> None:
    (node.source / MARK).unlink()
    (node.source / ".hidden").write_text("x")
    code, out, err = node.run(keep=True)
    assert code == 0, err
    assert sorted(path.name for path in Path(out.split()[0]).iterdir()) == ["config.json", "sub", "weights.safetensors"]


def test_kept_copy_is_taken_again_and_mended_where_it_was_damaged(node: Node) -> None:
    assert node.run(keep=True)[0] == 0
    (copy,) = node.copies
    weights = copy / "weights.safetensors"
    before = weights.stat().st_ino
    assert node.run(keep=True)[0] == 0
    assert weights.stat().st_ino == before
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    (copy / "config.json").unlink()
    code, out, err = node.run(keep=True)
    assert code == 0, err
    assert out.split()[1] == hashlib.sha256(FILES["weights.safetensors"]).hexdigest()
    assert (copy / "config.json").read_bytes() == FILES["config.json"]


def test_source_that_is_not_what_its_manifest_says_is_refused(node: Node) -> None:
    (node.source / "weights.safetensors").write_bytes(b"x" * len(FILES["weights.safetensors"]))
    code, out, err = node.run(keep=True)
    assert code == stager.EXIT_BAD_SOURCE
    assert "weights.safetensors of " in err
    assert "orch.py models verify" in err
    assert (out, node.copies) == ("", [])


def test_two_jobs_share_a_copy_and_the_last_one_removes_it(node: Node) -> None:
    jobs = [node.start(name, serves=True) for name in ("first", "second")]
    for name in ("first", "second"):
        node.wait_up(name)
    (copy,) = node.copies
    end(jobs[0])
    assert copy.is_dir()
    said = end(jobs[1])
    assert not copy.exists()
    assert jobs[0].returncode == jobs[1].returncode == -signal.SIGTERM, said


def test_second_job_waits_for_the_one_that_copies(node: Node) -> None:
    shelf = stager.Shelf(str(node.to / "x"))
    copying = stager.Copy(shelf, stager.Source(str(node.source), "main").name)
    copying._take(copying._fill, fcntl.LOCK_EX, "copies")
    job = node.start("late")
    time.sleep(1.0)
    assert job.poll() is None
    assert not (node.folder / "late").exists()
    copying.release()
    _, said = job.communicate(timeout=30)
    assert job.returncode == 0
    assert "waits for another job of this node, which copies or checks" in said


def test_job_that_is_killed_outright_takes_its_engine_along_and_its_copy_is_used_again(node: Node) -> None:
    job = node.start("first", serves=True)
    node.wait_up("first")
    (copy,) = node.copies
    engine = int(Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text())
    job.kill()
    job.communicate(timeout=30)
    wait_until(lambda: not Path(f"/proc/{engine}").exists())
    assert copy.is_dir()
    code, out, _ = node.run()
    assert (code, out.split()[0]) == (0, str(copy))
    assert not copy.exists()


def test_signal_while_it_copies_leaves_nothing(node: Node) -> None:
    big = node.source / "weights.safetensors"
    with big.open("wb") as file:
        file.truncate(3 << 30)
    (node.source / MARK).write_text(json.dumps({"files": [{"path": big.name, "size": 3 << 30, "sha256": "0" * 64}]}))
    job = node.start()
    wait_until(lambda: any(path.stat().st_size for path in node.to.rglob(".*.tmp")))
    said = end(job)
    assert job.returncode == 128 + signal.SIGTERM, said
    assert node.copies == []
    assert "Traceback" not in said


@pytest.mark.skipif(bool(WHY_NO_MOUNTS), reason=WHY_NO_MOUNTS or "-")
def test_place_without_room_is_told_with_both_sizes(node: Node) -> None:
    node.to.mkdir()
    script = 'mount -t tmpfs -o size=512k none "$1" && exec "$2" "$3" --to "$1" "$4" -- /bin/true'
    argv = in_mount_namespace(script, str(node.to), sys.executable, str(STAGER), str(node.source))
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == stager.EXIT_CANNOT_WRITE
    assert "the model needs 1.0 MiB more in " in done.stderr
    assert ", and 0.5 MiB are free" in done.stderr


@pytest.mark.parametrize(("to", "said"), [("$NOWHERE", "$NOWHERE"), ("relative/x", "relative/x")])
def test_place_that_is_none_on_this_node_is_named(to: str, said: str, node: Node) -> None:
    code, _, err = node.run(to=to)
    assert code == stager.EXIT_BAD_PLACE
    assert f"job.engine.stage_to = {said}: is no absolute path on this node" in err


def test_folder_that_another_has_put_there_is_refused(node: Node) -> None:
    (node.to / "x").mkdir(parents=True)
    (node.to / "x" / f"orch-models-{os.getuid()}").symlink_to(node.folder)
    code, _, err = node.run()
    assert code == stager.EXIT_BAD_PLACE
    assert "is not your own folder" in err


def test_copies_that_no_job_uses_make_room_for_another(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node.run(keep=True)[0] == 0
    shelf = stager.Shelf(str(node.to / "x"))
    used = stager.Copy(shelf, "used")
    Path(used.path).mkdir()
    used._take(used._use, fcntl.LOCK_SH, "uses")
    free = {2: 10 << 20, 1: 1000 << 20}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free[len(node.copies)]))
    shelf.make_room(500 << 20)
    assert [path.name for path in node.copies] == ["used"]
    with pytest.raises(stager.StageError, match=r"needs 4\.9 GiB more in .*, and 1000\.0 MiB are free"):
        shelf.make_room(5000 << 20)
    used.release()


def test_engine_that_cannot_be_executed_is_told_by_its_code(node: Node) -> None:
    argv = [sys.executable, str(STAGER), "--to", str(node.to), str(node.source), "--", "/no/engine"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == stager.EXIT_EXEC_FAILED
    assert "cannot execute '/no/engine'" in done.stderr


def test_end_of_the_engine_is_the_end_of_the_job(node: Node) -> None:
    for words, code in ((["exit 3"], 3), (["kill -9 $$"], -9)):
        argv = [sys.executable, str(STAGER), "--to", str(node.to), str(node.source), "--", "sh", "-c", *words]
        assert subprocess.run(argv, capture_output=True).returncode == code
