"""docs/reliability.md names a test in every row, and every test that it names is there."""

from __future__ import annotations

import re

from tests.faults.conftest import PROJECT

FAULTS = PROJECT / "tests" / "faults"


def test_every_row_of_the_reliability_page_names_tests_that_exist() -> None:
    text = (PROJECT / "docs" / "reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        cell = row.strip("| ").rpartition(" | ")[2]
        module, _, names = cell.partition(":")
        named = module.strip("` ").strip()
        path = PROJECT / named if "/" in named else FAULTS / "slurm" / f"test_{named}.py"
        assert path.is_file(), row
        for name in re.findall(r"`([a-z0-9_]+)(?:\[[^]]*\])?`", names):
            assert f"def test_{name}(" in path.read_text(), f"{path.name} has no test_{name}"
        assert names or "/" in named, row


def test_every_fault_injected_into_a_run_on_slurm_has_its_row() -> None:
    text = (PROJECT / "docs" / "reliability.md").read_text()
    for path in sorted((FAULTS / "slurm").glob("test_*.py")):
        for name in re.findall(r"^def test_(\w+)", path.read_text(), re.MULTILINE):
            assert name in text, f"{path.name}: test_{name} has no row in docs/reliability.md"
