"""A run with real Apptainer: the client's image is built from a local base, and serves a benchmark."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.containers.launch import launch_of
from orchestrator.service import Launch
from tests.builders import plan_run, recipe_document
from tests.life.conftest import PROJECT, OrchRun, processes_with
from tests.life.local_base import make_base, make_root
from tests.life.oci_registry import registry
from tests.orchestrator.conftest import SERVER, TOKEN, SupervisedJob, wait_for

Start = Callable[..., OrchRun]
INSTALLER = Path(__file__).with_name("apptainer.sh")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "orch-test-apptainer"
CLIENT = PROJECT / "containers" / "client.def"


def _or_skip(what: str, *argv: str | Path) -> str:
    """Return what a command says, or skip the test with its last words."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{what}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


@pytest.fixture(scope="module")
def apptainer() -> Path:
    """Return a folder with a real Apptainer that makes and runs images here."""
    _or_skip("Apptainer was not installed", "bash", INSTALLER, CACHE)
    return CACHE / "bin"


def containers(apptainer: Path, store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `orch.py containers` with the real Apptainer."""
    env = {**os.environ, "PATH": f"{apptainer}:{os.environ['PATH']}", "XDG_CONFIG_HOME": str(store)}
    env["APPTAINER_MKSQUASHFS_ARGS"] = "-noI -noD -noF -noX"  # compressing would take most of the time
    env["APPTAINER_NOHTTPS"] = "1"
    argv = [sys.executable, str(PROJECT / "orch.py"), "containers", *arguments, f"--dir={store}"]
    return subprocess.run(argv, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def images(apptainer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image store with the client's image, built from this machine's Python."""
    mirror, store = tmp_path_factory.mktemp("mirror"), tmp_path_factory.mktemp("store")
    text = CLIENT.read_text()
    base = re.search(r"^From: \{\{ REGISTRY \}\}/(\S+)$", text, re.MULTILINE)
    assert base is not None
    try:
        make_base(mirror / base[1], re.findall(r"[\w-]+==[\w.]+", text))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no local base: {error.stderr.strip().splitlines()[-1]}")
    done = containers(apptainer, store, "build", "client", f"--registry={mirror}")
    assert done.returncode == 0, done.stderr
    _or_skip("Apptainer runs no image here", apptainer / "apptainer", "exec", "--containall", done.stdout.strip(), "sh")
    return store


@pytest.fixture
def contained(recipe: dict[str, Any], images: Path, apptainer: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A recipe whose client runs in the image."""
    monkeypatch.setenv("PATH", f"{apptainer}:{os.environ['PATH']}")
    recipe["job"]["container"] = {"roles": ["client"], "dir": str(images)}
    recipe["job"]["monitoring"] = "off"
    return recipe


def test_run_with_its_client_in_an_image_completes(contained: dict[str, Any], start: Start) -> None:
    run = start(contained, "--json")
    run.wait_for(lambda: run.status("client").get("state") == "ready", "the client in its image")
    inside = processes_with("client/server.py", str(run.run_dir), "--bind")
    assert run.wait(180) == 0, run.stderr
    benchmark = run.json("summary.json")["stages"]["benchmark"]
    assert (benchmark["total_queries"], benchmark["successful"], benchmark["failed"]) == (6, 6, 0)
    assert inside
    assert processes_with(str(run.run_dir)) == []


@pytest.fixture
def job(tmp_path: Path) -> Iterator[SupervisedJob]:
    found = SupervisedJob(tmp_path / "run")
    yield found
    found.close()


@pytest.fixture
def launch(job: SupervisedJob, images: Path, apptainer: Path) -> Launch:
    """How the client's program is started in its image, the folders made."""
    container = {"roles": ["client"], "dir": str(images), "runtime": str(apptainer / "apptainer")}
    planned = plan_run(recipe_document("local", "vllm", container=container), job.run_dir, project=PROJECT)
    found = launch_of(planned.context, "client", "client", "client")
    assert found is not None
    for folder in found.folders:
        folder.mkdir(parents=True)
    return found


def test_image_is_pulled_from_a_mirror_and_another_is_not_there(apptainer: Path, tmp_path: Path) -> None:
    make_root(tmp_path / "root")
    with registry(tmp_path / "root", "mirror/prom/pushgateway", "v1.11.1") as place:
        done = containers(apptainer, tmp_path / "store", "pull", "pushgateway", f"--registry={place}/mirror")
        assert done.returncode == 0, done.stderr
        missing = containers(apptainer, tmp_path / "store", "pull", "prometheus", f"--registry={place}/mirror")
    (image,) = (tmp_path / "store").glob("*/image.sif")
    assert done.stdout.strip() == str(image)
    assert missing.returncode == 1
    assert re.search(r"prometheus-v2\.55\.1 could not be made .*apptainer pull", missing.stderr)
    assert "container.registry" in missing.stderr
    argv = [str(apptainer / "apptainer"), "exec", "--containall", str(image), "sh", "-c"]
    _or_skip("pulled; but Apptainer runs no image here", *argv, "true")
    assert subprocess.run([*argv, "echo inside"], capture_output=True, text=True).stdout == "inside\n"


def start_server(job: SupervisedJob, launch: Launch) -> None:
    """Start a server in the image that asks for the token, and wait until it has proven that it knows it."""
    job.start(
        [*launch.argv, "python3", str(job.program("server.py", SERVER)), "@BIND@", "@PORT@"],
        health=[{"path": "/v1/models", "auth": True, "nonempty": "data"}],
        auth_token_file=str(job.token_file),
        secret_env={f"{launch.prefix}VLLM_API_KEY": str(job.token_file)},
    )
    job.wait_for_state("ready", 30)


def test_token_reaches_a_server_in_an_image_and_no_command_line(job: SupervisedJob, launch: Launch) -> None:
    start_server(job, launch)
    assert processes_with(str(job.run_dir), "server.py")
    assert processes_with(TOKEN) == []
    job.send(signal.SIGTERM)
    job.wait()
    assert processes_with(str(job.run_dir)) == []


def test_server_in_an_image_dies_with_its_supervisor(job: SupervisedJob, launch: Launch) -> None:
    start_server(job, launch)
    job.send(signal.SIGKILL)
    job.wait()
    wait_for(lambda: not processes_with(str(job.run_dir), "server.py"))


def test_program_in_an_image_sees_what_it_was_given_and_nothing_else(job: SupervisedJob, launch: Launch) -> None:
    look = """
import json, os, sys

def can_write(folder):
    try:
        open(os.path.join(folder, "x"), "w").close()
    except OSError:
        return False
    return True
folders = {name: [os.path.exists(name), can_write(name)] for name in sys.argv[2:]}
json.dump({"env": dict(os.environ), "folders": folders, "home": os.path.expanduser("~")}, open(sys.argv[1], "w"))
"""
    odd = 'a\'b "$HOME" `id` \\ é'
    home, run = str(Path.home()), str(job.run_dir)
    job.env["SECRET_OF_THE_NODE"] = "x"
    said = job.run_dir / "said.json"
    program = job.program("look.py", look)
    argv = [*launch.argv, "python3", str(program), str(said), home, run, str(PROJECT), "/tmp"]
    job.start(argv, kind="task", env={f"{launch.prefix}ODD": odd})
    assert job.wait(30) == 0, job.log("err")
    found = json.loads(said.read_text())
    assert found["env"]["ODD"] == odd
    assert "SECRET_OF_THE_NODE" not in found["env"]
    assert found["home"] == "/tmp"
    seen = {name: tuple(is_so) for name, is_so in found["folders"].items()}
    assert seen.pop(home) in {(False, False), (True, False)}
    assert seen == {run: (True, True), str(PROJECT): (True, False), "/tmp": (True, True)}
