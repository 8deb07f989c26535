"""Environments of a host, made over a real SSH server."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.orchestrator.environment.conftest import SLOW, Maker, processes_in, step, wait_for
from tests.orchestrator.transports.conftest import require_sshd
from tests.orchestrator.transports.sshd import SshServer


class FarMaker(Maker):
    """A maker whose environments are on a host."""

    def __init__(self, folder: Path, runtime_dir: Path) -> None:
        super().__init__(folder, runtime_dir)
        require_sshd()
        self.server = SshServer(folder / "sshd").start()
        self.site = folder / "site.yaml"
        self.base = folder / "the host's"
        ssh = json.loads(self.server.spec().model_dump_json(exclude_unset=True))
        host = {"ssh": ssh, "base_dir": str(self.base), "scheduler": {"kind": "slurm"}}
        self.site.write_text(yaml.safe_dump({"hosts": {"box": host}}))
        self.path = self.base / "env"

    def argv(self, *more: str | Path, path: Path | str | None = None) -> list[str]:
        argv = super().argv("--site", self.site, "--host", "box", *more, path=path)
        if path is None:
            index = argv.index("--path")
            del argv[index : index + 2]
        return argv


@pytest.fixture
def far(tmp_path: Path, runtime_dir: Path) -> Iterator[FarMaker]:
    maker = FarMaker(tmp_path, runtime_dir)
    yield maker
    maker.server.kill()


def test_environment_of_a_host_is_made_from_wheels_that_are_sent_once(far: FarMaker) -> None:
    done = far.make()
    assert done.returncode == 0, done.stdout + done.stderr
    assert far.version() == "1.0"
    told = yaml.safe_load(done.stdout.split(":\n\n", 1)[1])
    assert told == {"hosts": {"box": {"environment": {"python": f"{far.base}/env/bin/python"}}}}
    assert [item.name for item in (far.base / "env.wheels").iterdir()] == ["orch_tiny-1.0-py3-none-any.whl"]
    far.ask_for("2.0")
    again = far.make("--json")
    assert again.returncode == 0, again.stdout
    assert ": 1 sent by " in step(again, "send")["found"]
    assert far.version() == "2.0"


def test_environment_that_the_site_file_names_is_the_one_that_is_made(far: FarMaker) -> None:
    site = yaml.safe_load(far.site.read_text())
    site["hosts"]["box"]["environment"] = {"python": f"{far.base}/named/bin/python"}
    far.site.write_text(yaml.safe_dump(site))
    done = far.make()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (far.base / "named").is_symlink()
    assert "names it already: hosts.box.environment.python" in " ".join(done.stdout.split())


def test_ctrl_c_ends_what_runs_on_the_host(far: FarMaker, tmp_path: Path) -> None:
    assert far.make().returncode == 0
    before = far.beside()
    far.ask_for("2.0", SLOW.format(mark=str(tmp_path / "mark")))
    process = far.start()
    wait_for(tmp_path / "mark", process)
    process.send_signal(2)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 130, output
    assert (far.version(), far.beside()) == ("1.0", before)
    assert processes_in(far.path) == []


def test_lost_connection_leaves_the_old_environment_and_the_next_run_starts_clean(
    far: FarMaker, tmp_path: Path
) -> None:
    assert far.make().returncode == 0
    far.ask_for("2.0", SLOW.format(mark=str(tmp_path / "mark")))
    process = far.start("--json")
    wait_for(tmp_path / "mark", process)
    far.server.kill()
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 1, output
    steps = {item["name"]: item for item in json.loads(output)["steps"]}
    assert steps["import"]["found"].startswith("the environment's interpreter failed: ")
    assert "connection was lost" in steps["import"]["found"]
    assert steps["clean up"]["state"] == "warning"
    assert far.version() == "1.0"
    far.server.start()
    far.ask_for("3.0")
    done = far.make("--json")
    assert done.returncode == 0, done.stdout
    assert "removed, unfinished: 1" in step(done, "lock")["found"]
    assert (far.version(), processes_in(far.path)) == ("3.0", [])


def test_unknown_host_is_named_with_those_that_are_known(far: FarMaker) -> None:
    argv = far.argv()
    argv[argv.index("box")] = "nobox"
    done = subprocess.run(argv, env=far.environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "'nobox' is no host of recipe or site file" in done.stderr
    assert "Known: box" in done.stderr
