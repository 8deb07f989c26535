"""job.after on the command line: the plan of a later run, and ``orch.py after``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import Ledger
from tests.orchestrator.test_cli import REFERENCE, CommandLine, cli

__all__ = ["cli"]


class Later:
    """A planned run, and the recipe of one that begins after it."""

    def __init__(self, cli: CommandLine) -> None:
        self.cli = cli
        cli.programs.add("scontrol", "echo 'ClusterName             = here'")
        self.first = Path(cli.dry_run(REFERENCE)["run_dir"])
        self.ledger = Ledger(self.first / "events.jsonl")
        self.flags = ("--set", f"job.after={self.first.name}")

    def after(self, *words: str | Path) -> tuple[int, str, str]:
        """Return exit code and both outputs of ``orch.py after``."""
        done = self.cli.run("after", "--scheduler", "slurm", *words, "--output-dir", self.cli.output)
        return done.returncode, done.stdout, done.stderr


@pytest.fixture
def later(cli: CommandLine) -> Later:
    return Later(cli)


def notes_and_starts(plan: dict[str, Any]) -> tuple[list[str], set[str]]:
    notes = [note for note in plan["notes"] if "start" in note]
    return notes, {str(start["unknown"]) for start in plan["forecast"]["starts"]}


def test_plan_of_a_later_run_says_after_which_one_it_starts(later: Later) -> None:
    name = later.first.name
    plan = later.cli.dry_run(REFERENCE, *later.flags)
    notes, starts = notes_and_starts(plan)
    assert f"starts after {name} (state: planned), once it is completed" in notes
    assert starts == {f"once {name} (planned) is completed"}
    resolved = json.loads((Path(plan["run_dir"]) / "recipe.json").read_text())
    assert resolved["job"]["after"] == [{"run": str(later.first), "when": "completed"}]
    shown = later.cli.run(REFERENCE, *later.flags, "--dry-run", "--output-dir", later.cli.output).stdout
    assert f"Start: once {name} (planned) is completed" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("state", "note"),
    [("completed", "starts after {} (state: completed)"), ("failed", "would not start: job.after: {}")],
)
def test_plan_after_a_run_that_has_ended_tells_starts_as_ever(state: str, note: str, later: Later) -> None:
    later.ledger.append("run_finished", state=state, kept=False)
    notes, starts = notes_and_starts(later.cli.dry_run(REFERENCE, *later.flags))
    assert any(found.startswith(note.format(later.first.name)) for found in notes)
    assert not any("once" in start for start in starts)


def test_after_prints_the_option_of_the_batch_job_that_a_run_is_submitted_as(later: Later) -> None:
    assert later.after(REFERENCE, *later.flags) == (0, "", "")
    assert later.after("--submitted", "17", "resume", later.first) == (0, "", "")
    option = "--dependency=afterok:17 --kill-on-invalid-dep=yes\n"
    assert later.after(REFERENCE, *later.flags, "--keep") == (0, option, "")
    second = later.cli.dry_run(REFERENCE, *later.flags)["run_dir"]
    assert later.after("resume", second) == (0, option, "")
    shown = later.cli.run("list", "--json", "--output-dir", later.cli.output).stdout
    assert [run["state"] for run in json.loads(shown)["runs"]] == ["planned", "planned"]


def test_after_has_nothing_to_say_of_what_starts_no_run(later: Later) -> None:
    assert later.after("--submitted", "17", "resume", later.first)[0] == 0
    assert later.after("--submitted", "18", REFERENCE, *later.flags) == (0, "", "")
    for words in ((REFERENCE, *later.flags, "--dry-run"), ("status", later.first), (REFERENCE,)):
        assert later.after(*words) == (0, "", "")


def test_after_refuses_what_can_never_start(later: Later) -> None:
    later.ledger.append("run_finished", state="stopped", kept=False)
    code, out, error = later.after(REFERENCE, *later.flags)
    assert (code, out) == (2, "")
    assert f"{later.first.name} has ended as stopped and had to be completed" in error
    code, out, error = later.after(REFERENCE, "--set", "job.after=nosuch")
    assert (code, out) == (2, "")
    assert f"job.after: no run 'nosuch' in {later.cli.output}" in error
    assert later.first.name in error
