"""job.after on the command line: the plan of a later run, and ``orch.py after``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from orchestrator.history import run_state
from orchestrator.ledger import Ledger
from orchestrator.rundir import RunDir
from tests.orchestrator.test_cli import REFERENCE, CommandLine, cli

__all__ = ["cli"]


class Later:
    """A planned run, and the recipe of one that begins after it."""

    def __init__(self, cli: CommandLine) -> None:
        self.cli = cli
        cli.programs.add("scontrol", "echo 'ClusterName             = here'")
        self.queue = cli.folder / "queue"
        self.queue.write_text("17|PENDING||Dependency|orch\n")
        cli.programs.add("squeue", f"cat {self.queue}")
        self.first = Path(cli.dry_run(REFERENCE)["run_dir"])
        self.ledger = Ledger(self.first / "events.jsonl")
        self.flags = ("--set", f"job.after={self.first.name}")

    def after(self, *words: str | Path) -> tuple[int, str, str]:
        """Return exit code and both outputs of ``orch.py after``."""
        done = self.cli.run("after", "--scheduler", "slurm", *words, "--output-dir", self.cli.output)
        return done.returncode, done.stdout, done.stderr

    def in_place(self, *words: str | Path) -> list[str]:
        """Return the words of ``orch.py after --in-place``, without the output folder's."""
        code, out, error = self.after("--in-place", *words)
        assert code == 0, error
        found = shlex.split(out)
        return [word for word in found if word not in {"--output-dir", str(self.cli.output)}]


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


def test_after_puts_the_runs_directory_in_place_and_leaves_all_other_words(later: Later) -> None:
    first, name = str(later.first), later.first.name
    assert later.in_place("resume") == ["resume", first]
    assert later.in_place("resume", "--keep", "latest", "--json") == ["resume", "--keep", first, "--json"]
    assert later.in_place("resume", "--log-level", "INFO", name) == ["resume", "--log-level", "INFO", first]
    assert later.in_place("status") == ["status"]
    for words in (("--keep", "--set", "job.service.model=it's"), ("--set", "job.after=latest", "--dry-run")):
        assert later.in_place(REFERENCE, *later.flags, *words) == [str(REFERENCE), *later.flags, *words]


@pytest.mark.parametrize(
    ("value", "whens"),
    [
        ("latest", ["completed"]),
        ('{"run": "latest", "when": "ended"}', ["ended"]),
        ('["latest", {"run": "latest", "when": "ended"}]', ["completed", "ended"]),
    ],
)
def test_after_puts_directories_in_place_in_job_after(value: str, whens: list[str], later: Later) -> None:
    RunDir(later.first).make_latest()
    words = later.in_place(REFERENCE, "--set", f"job.after={value}")
    RunDir(Path(later.cli.dry_run(REFERENCE)["run_dir"])).make_latest()
    resolved = json.loads((Path(later.cli.dry_run(*words)["run_dir"]) / "recipe.json").read_text())
    assert resolved["job"]["after"] == [{"run": str(later.first), "when": when} for when in whens]


def test_run_that_was_stopped_is_not_started_by_a_job_submitted_before(
    later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert later.after("--submitted", "17", "resume", later.first)[0] == 0
    stopped = later.cli.run("stop", later.first)
    assert (stopped.returncode, stopped.stdout) == (0, "Stopped: orchestrator (batch job 17).\n")
    assert later.cli.programs.calls("scancel") == ["17"]
    monkeypatch.setenv("ORCH_OWN_JOB", "slurm 17 here")
    done = later.cli.run("resume", later.first)
    assert done.returncode == 2
    assert "was stopped after batch job 17 had been submitted for it: nothing was started" in done.stderr
    assert not (later.first / "lease.json").exists()
    # Submitted anew, under an id that is used again.
    assert later.after("--submitted", "17", "resume", later.first)[0] == 0
    assert run_state(RunDir(later.first)).withdrawn == frozenset()


def test_batch_job_refuses_latest_which_nobody_put_in_place(later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_OWN_JOB", "slurm 17 here")
    for words in (("resume",), (REFERENCE, "--set", "job.after=latest")):
        done = later.cli.run(*words, "--output-dir", later.cli.output)
        assert (done.returncode, "in a batch job `latest` is" in done.stderr) == (2, True)
    assert list(later.cli.output.iterdir()) == [later.first]


def test_batch_job_that_slurm_has_started_again_begins_no_second_run(
    later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCH_OWN_JOB", "slurm 17 here")
    monkeypatch.setenv("ORCH_OUTER_SLURM_RESTART_COUNT", "1")
    refused = later.cli.run(REFERENCE, "--output-dir", later.cli.output)
    assert refused.returncode == 2
    assert "(restart 1): a second run of the recipe would begin" in refused.stderr
    assert str(later.first) not in refused.stderr
    later.ledger.append("run_started", own_job={"scheduler": "slurm", "job_id": "17", "cluster": "here"})
    refused = later.cli.run(REFERENCE, "--output-dir", later.cli.output)
    assert f"`./slurm_orch.sh resume {later.first}`" in refused.stderr
    assert list(later.cli.output.iterdir()) == [later.first]


@pytest.mark.parametrize(
    ("queue", "text", "short"),
    [
        ("echo '17|PENDING||None|orch'", "planned, submitted as batch job 17", "planned, job 17"),
        ("", "planned, batch job 17 is gone from the queue", "planned, job 17 gone"),
        ("exit 1", "planned, submitted as batch job 17, which cannot be asked about now", "planned, job 17?"),
    ],
)
def test_list_and_status_tell_whether_the_batch_job_is_in_the_queue(
    queue: str, text: str, short: str, later: Later
) -> None:
    assert later.after("--submitted", "17", "resume", later.first)[0] == 0
    later.cli.programs.add("squeue", queue)
    assert f"{text} on slurm" in " ".join(later.cli.run("status", later.first).stdout.split())
    assert short in later.cli.run("list", "--output-dir", later.cli.output).stdout


def test_after_refuses_what_can_never_start(later: Later) -> None:
    later.ledger.append("run_finished", state="stopped", kept=False)
    code, out, error = later.after(REFERENCE, *later.flags)
    assert (code, out) == (2, "")
    assert f"{later.first.name} has ended as stopped and had to be completed" in error
    code, out, error = later.after(REFERENCE, "--set", "job.after=nosuch")
    assert (code, out) == (2, "")
    assert f"job.after: no run 'nosuch' in {later.cli.output}" in error
    assert later.first.name in error
