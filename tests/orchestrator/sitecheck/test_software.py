"""Modules, interpreters and container runtimes, under real shells."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from orchestrator.sitecheck import software
from orchestrator.sitecheck.findings import Finding, Verdict
from orchestrator.sitecheck.packages import Packages
from tests.orchestrator.sitecheck.conftest import MakeVisit, Shim

# A stand-in for Lmod's function: knows two modules, of which the second needs the first.
LMOD = """
module() {
  if [ "$1" = --force ]; then shift; fi
  case "$1 $2" in
    "purge "*) LOADED= ;;
    "load env/release/2024.1") LOADED=yes ;;
    "load Python")
      [ -n "$LOADED" ] || { echo 'Lmod has detected the following error:' >&2
        echo '  These module(s) exist but cannot be loaded as requested: "Python"' >&2; return 1; } ;;
    "load Apptainer") PATH=$PATH:$HOME/apptainer ;;
    *) echo "Lmod has detected the following error:  The following module(s) are unknown: \\"$2\\"" >&2; return 1 ;;
  esac
}
"""
# Environment Modules 3.2 say ERROR and succeed.
TCL = """
module() { [ "$1" = purge ] || echo "ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for '$2'" >&2; }
"""


def test_modules_that_load_in_their_order_are_well(make_visit: MakeVisit, home: Path) -> None:
    (home / ".bash_profile").write_text(f"echo Welcome to the cluster\n{LMOD}")
    found = software.look_at_modules(make_visit({"environment": {"modules": ["env/release/2024.1", "Python"]}}))
    assert found.verdict == Verdict.OK, found


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (["env/release/2024.1", "Pyhton"], 'Pyhton: Lmod has.*unknown: "Pyhton"'),
        (["Python"], "Python: Lmod.*cannot be"),
    ],
)
def test_module_that_does_not_load_fails_with_its_own_words(
    modules: list[str], words: str, make_visit: MakeVisit, home: Path
) -> None:
    (home / ".bash_profile").write_text(LMOD)
    found = software.look_at_modules(make_visit({"environment": {"modules": modules}}))
    assert found.verdict == Verdict.FAILED
    assert re.search(words, found.words)
    assert "env/release" not in found.words


def test_module_of_old_environment_modules_fails_though_its_exit_code_is_0(make_visit: MakeVisit, home: Path) -> None:
    (home / ".bash_profile").write_text(TCL)
    found = software.look_at_modules(make_visit({"environment": {"modules": ["cuda"]}}))
    assert found.verdict == Verdict.FAILED
    assert "Unable to locate a modulefile" in found.words


def test_modules_without_a_module_command_fail(make_visit: MakeVisit, home: Path) -> None:
    (home / ".bash_profile").write_text("unset -f module\n")
    found = software.look_at_modules(make_visit({"environment": {"modules": ["cuda"]}}))
    assert (found.verdict, found.words) == (Verdict.FAILED, "there is no `module` command")


def test_python_of_a_module_is_found_after_loading_it(make_visit: MakeVisit, home: Path, tmp_path: Path) -> None:
    (home / "apptainer").mkdir()
    (home / "apptainer" / "apptainer").write_text("#!/bin/sh\necho apptainer version 1.3.4\n")
    (home / "apptainer" / "apptainer").chmod(0o755)
    (home / ".bash_profile").write_text(LMOD)
    visit = make_visit({"environment": {"modules": ["Apptainer"]}}, folder=tmp_path)
    found = software.look_at_containers(visit)
    assert (found.verdict, found.words) == (Verdict.OK, "apptainer version 1.3.4")
    (home / "apptainer" / "apptainer").unlink()
    assert software.look_at_containers(visit).verdict == Verdict.FAILED


def test_container_runtime_that_nobody_asks_for_is_not_applicable(make_visit: MakeVisit, tmp_path: Path) -> None:
    assert software.look_at_containers(make_visit(folder=tmp_path)).verdict == Verdict.NOT_APPLICABLE


def test_python_is_judged_by_version_and_packages(make_visit: MakeVisit, tmp_path: Path) -> None:
    def look(client: str, trainer: str) -> Finding:
        packages = Packages(client=("json", client), trainer=(trainer,))
        return software.look_at_python(make_visit(folder=tmp_path, packages=packages))

    assert look("sys", "os").verdict == Verdict.OK
    lacks = look("orch_no_such", "orch_nor_this")
    assert lacks.verdict == Verdict.FAILED
    assert "lacks orch_no_such, orch_nor_this" in lacks.words
    assert look("sys", "orch_nor_this").verdict == Verdict.WARNING


@pytest.mark.parametrize(
    ("version", "python", "supervisor"),
    [
        ("2.7.18", Verdict.FAILED, Verdict.FAILED),
        ("3.5.3", Verdict.FAILED, Verdict.FAILED),
        ("3.6.8", Verdict.FAILED, Verdict.OK),
        ("3.10.12", Verdict.FAILED, Verdict.OK),
        ("3.11.0", Verdict.OK, Verdict.OK),
    ],
)
def test_old_python_fails_for_what_it_is_too_old_for(
    version: str, python: Verdict, supervisor: Verdict, make_visit: MakeVisit, shim: Shim, tmp_path: Path
) -> None:
    old = shim("python-old", f"echo orch-python {version} ''")
    visit = make_visit({"environment": {"python": str(old), "supervisor_python": str(old)}}, folder=tmp_path)
    found = software.look_at_python(visit)
    assert found.verdict == python
    assert version in found.words
    assert software.look_at_supervisor_python(visit).verdict == supervisor


def test_python_that_is_not_there_fails_with_the_shells_words(make_visit: MakeVisit, tmp_path: Path) -> None:
    found = software.look_at_python(make_visit({"environment": {"python": "/no/such/python"}}, folder=tmp_path))
    assert found.verdict == Verdict.FAILED
    assert "No such file" in found.words


def test_python_code_tells_version_and_what_is_missing(make_visit: MakeVisit) -> None:
    answer = make_visit().transport.run([sys.executable, "-c", software.PYTHON_CODE, "json", "no_such"], 30)
    found = software.parse_python(answer.stdout)
    assert found == software.Interpreter((sys.version_info[0], sys.version_info[1], sys.version_info[2]), ("no_such",))
