"""Environments of this machine, made by the real command from a folder of wheels."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from orchestrator.environment.hold import Hold
from orchestrator.lease import Owner
from orchestrator.transports import LocalTransport
from tests.orchestrator.environment.conftest import SLOW, Maker, processes_in, step, wait_for


def test_environment_is_made_proven_and_told_of_without_any_index(maker: Maker) -> None:
    done = maker.make()
    assert done.returncode == 0, done.stdout + done.stderr
    assert maker.path.is_symlink()
    assert maker.version() == "1.0"
    proof = json.loads((maker.path / "orch-environment.json").read_text())
    assert proof["packages"] == {"orch-tiny": "1.0"}
    assert all(len(line) <= 80 for line in done.stdout.split("Now put")[0].splitlines())
    told = yaml.safe_load(done.stdout.split(":\n\n", 1)[1])
    assert told == {"environment": {"python": str(maker.path / "bin" / "python")}}
    assert "127.0.0.1:9" not in "".join(
        path.read_text(errors="replace") for path in maker.path.glob("*") if path.is_file()
    )


def test_environment_that_is_replaced_serves_the_processes_that_it_has(maker: Maker) -> None:
    assert maker.make().returncode == 0
    code = "import sys; print(sys.prefix, flush=True); input(); import orch_tiny.later as m; print(m.VERSION)"
    argv = [str(maker.path / "bin" / "python"), "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as old:
        assert old.stdout is not None
        first = Path(old.stdout.readline().strip()).name
        maker.ask_for("2.0")
        done = maker.make("--json")
        assert "kept for jobs that run: " + first in step(done, "switch")["found"]
        assert maker.version() == "2.0"
        assert old.communicate("\n")[0] == "1.0\n"


@pytest.mark.parametrize(
    ("body", "version", "failing", "words"),
    [
        ("raise OSError('libcuda.so.1 is missing')", "2.0", "import", "OSError: libcuda.so.1 is missing"),
        ("", "3.0", "wheels", "No matching distribution found for orch-tiny==3.0"),
    ],
)
def test_failure_leaves_the_old_environment_and_no_trace(
    body: str, version: str, failing: str, words: str, maker: Maker
) -> None:
    assert maker.make().returncode == 0
    before = maker.beside()
    maker.ask_for("2.0", body)
    maker.requirements.write_text(f"orch-tiny=={version}\n")
    done = maker.make("--json")
    assert done.returncode == 1
    assert step(done, failing)["state"] == "failed"
    assert words in step(done, failing)["found"]
    assert (maker.version(), maker.beside()) == ("1.0", before)
    maker.ask_for("2.1")
    assert maker.make().returncode == 0
    assert maker.version() == "2.1"


def test_ctrl_c_ends_what_runs_and_leaves_the_old_environment(maker: Maker, tmp_path: Path) -> None:
    assert maker.make().returncode == 0
    before = maker.beside()
    maker.ask_for("2.0", SLOW.format(mark=str(tmp_path / "mark")))
    process = maker.start()
    wait_for(tmp_path / "mark", process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert (maker.version(), maker.beside()) == ("1.0", before)
    assert processes_in(maker.path.parent) == []
    assert (maker.path.parent / "env.lock").read_text() == ""


def test_maker_that_was_killed_is_followed_by_one_that_starts_clean_at_once(maker: Maker, tmp_path: Path) -> None:
    maker.ask_for("1.0", SLOW.format(mark=str(tmp_path / "mark")))
    process = maker.start()
    wait_for(tmp_path / "mark", process)
    process.kill()
    process.communicate()
    assert processes_in(maker.path.parent) != []
    maker.ask_for("2.0")
    done = maker.make("--json")
    assert done.returncode == 0, done.stdout
    assert "removed, unfinished: 1" in step(done, "lock")["found"]
    assert maker.version() == "2.0"
    assert maker.beside() == ["env", json.loads(done.stdout)["made"]]
    assert processes_in(maker.path.parent) == []


def test_second_maker_is_told_who_is_at_it(maker: Maker) -> None:
    maker.path.parent.mkdir()
    hold = Hold(LocalTransport().run, str(maker.path))
    hold.take()
    done = maker.make("--json")
    assert done.returncode == 1
    found = step(done, "lock")
    assert f"on {socket.gethostname()} (process {os.getpid()}, since 20" in found["found"]
    assert maker.beside() == []
    hold.release()
    assert maker.make().returncode == 0


def test_command_that_still_runs_keeps_others_away_whoever_started_it(maker: Maker) -> None:
    maker.path.parent.mkdir()
    elsewhere = {"owner": asdict(Owner("login2", "b", 7, 1, "n" * 16)), "user": "ada", "since": 1}
    lock = maker.path.parent / "env.lock"
    lock.write_text(json.dumps(elsewhere) + "\n")
    os.utime(lock, (1, 1))
    with subprocess.Popen(["flock", str(lock), "sh", "-c", "echo; read x"], stdin=-1, stdout=-1) as command:
        assert command.stdout is not None
        command.stdout.readline()
        done = maker.make("--json")
        assert "ada on login2 (process 7" in step(done, "lock")["found"]
        command.communicate(b"\n")
    # It is silent, and nothing of it runs any more.
    assert maker.make().returncode == 0


def test_dry_run_prints_the_commands_and_changes_nothing(maker: Maker) -> None:
    before = sorted(maker.folder.rglob("*"))
    done = maker.make("--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(maker.folder.rglob("*")) == before
    plain = " ".join(done.stdout.split())
    assert "-m venv" in plain or "/uv venv" in plain
    for words in ("-m pip download", "--no-index --find-links", "import orch_tiny'", "ln -s env.20"):
        assert words in plain
    assert "It would then go into your site file:" in done.stdout


def test_wheel_that_is_cut_off_is_named_and_nothing_is_made(maker: Maker) -> None:
    wheel = maker.wheelhouse / "orch_tiny-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel.read_bytes()[:200])
    done = maker.make("--json")
    assert done.returncode == 1
    assert f"{wheel.name}: cut off" in step(done, "wheels")["found"]
    assert not maker.path.parent.exists()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_path_that_env_create_did_not_make_is_left_alone(kind: str, maker: Maker) -> None:
    maker.path.parent.mkdir()
    other = maker.folder / "other"
    other.mkdir()
    if kind == "folder":
        maker.path.mkdir()
    else:
        maker.path.symlink_to(other)
    done = maker.make("--json")
    assert done.returncode == 1
    assert "`env create` did not make it" in step(done, "path")["found"]
    assert list(maker.path.parent.iterdir()) == [maker.path]


@pytest.mark.parametrize(
    ("free_kib", "quota", "words"),
    [
        (10240, "", "10.0 MiB free in "),
        (1 << 30, "/dev/x 9000000 0 9010000 0 1 0 0 0", "user quota 8.6 of 8.6 GiB"),
    ],
)
def test_too_little_space_is_told_with_sizes_before_anything_is_made(
    free_kib: int, quota: str, words: str, maker: Maker
) -> None:
    maker.shim("df", f"echo Filesystem 1024-blocks Used Available; echo /dev/x 1 1 {free_kib} 90% /")
    maker.shim("quota", f"echo '{quota}'")
    done = maker.make("--json", "--for", "client")
    assert done.returncode == 1
    assert re.match(r"about \d+\.\d MiB needed", step(done, "space")["found"])
    assert words in step(done, "space")["found"]
    assert not maker.path.parent.exists()


def test_modules_and_variables_of_the_site_are_those_of_the_making(maker: Maker) -> None:
    (maker.home / "lib").mkdir()
    (maker.home / "lib" / "python3").write_text(
        f'#!/bin/sh\n[ "$SITE" = "a b" ] || exit 9\nexec {sys.executable} "$@"\n'
    )
    (maker.home / "lib" / "python3").chmod(0o755)
    (maker.home / ".bash_profile").write_text(
        'module() { case "$1 $2" in "load Python/3") PATH=$HOME/lib:$PATH ;; *purge*) ;; *) return 1 ;; esac; }\n'
    )
    site = maker.folder / "site.yaml"
    site.write_text("environment:\n  modules: [Python/3]\n  variables: {SITE: a b}\n")
    argv = maker.argv("--json", "--site", site)
    del argv[argv.index("--python") : argv.index("--python") + 2]
    done = subprocess.run(argv, env=maker.environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert step(done, "modules")["found"] == "Python/3 load in a login shell"
    assert maker.version() == "1.0"


def test_uv_installs_where_it_is_there_and_pips_own_index_is_not_passed_over(maker: Maker) -> None:
    maker.shim("uv", "exit 3")
    (maker.home / ".bash_profile").write_text(f"PATH='{maker.shims}':$PATH\n")
    assert uses_uv(str(step(maker.make("--json", "--dry-run"), "python")["found"]))
    argv = maker.argv("--json", "--dry-run")
    index = argv.index("--wheelhouse")
    del argv[index : index + 2]

    def found() -> str:
        done = subprocess.run(argv, env=maker.environment, capture_output=True, text=True)
        return str(step(done, "python")["found"])

    assert found().endswith("pip: uv would not read pip's configuration")
    del maker.environment["PIP_INDEX_URL"]
    (maker.home / ".config" / "pip").mkdir(parents=True)
    (maker.home / ".config" / "pip" / "pip.conf").write_text("[global]\nindex-url = https://mirror.example/simple\n")
    assert found().endswith("pip: uv would not read pip's configuration")
    maker.environment["PIP_CONFIG_FILE"] = os.devnull
    assert uses_uv(found())


def uses_uv(found: str) -> bool:
    """Tell whether uv was chosen: the shim, or the one beside the interpreter of the tests."""
    return re.search(r"; uv \(/\S+/uv\)$", found) is not None


def test_index_in_a_requirements_file_is_refused_and_not_repeated(maker: Maker) -> None:
    maker.requirements.write_text("--index-url https://me:canary@pypi.example/simple\n")
    done = maker.make()
    assert done.returncode == 2
    assert "line 1: options are not taken" in done.stderr
    assert "canary" not in done.stdout + done.stderr
