"""Which older environments are removed, and which stay."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.atomic import write_json
from orchestrator.ledger import Ledger
from orchestrator.recipe.load import escape_variables
from orchestrator.rundir import RunDir
from tests.builders import RUN_ID, plan_run, recipe_document
from tests.orchestrator.environment.conftest import Maker, step


@pytest.fixture
def older(maker: Maker) -> list[str]:
    """Names of two environments that were replaced, on a Slurm whose queue is the file `queue`."""
    maker.shim("sbatch", "exit 1")
    maker.shim("squeue", f"cat {maker.folder}/queue 2>/dev/null || true")
    site = maker.folder / "site.yaml"
    site.write_text("scheduler: {kind: slurm}\n")
    names = ["env.20260101T000000Z-0001", "env.20260202T000000Z-0002"]
    for name in names:
        folder = maker.path.parent / name
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").symlink_to(sys.executable)
        (folder / "orch-environment.json").write_text("{}")
    maker.path.symlink_to(names[-1])
    return names


def prune(maker: Maker, *more: str) -> dict[str, str]:
    done = maker.make("--json", "--prune", "--site", maker.folder / "site.yaml", *more)
    assert done.returncode == 0, done.stdout
    return step(done, "prune")


def add_run(maker: Maker, python: str) -> RunDir:
    """Make a run on Slurm under way, whose jobs use ``python``."""
    run = RunDir(maker.folder / "output" / f"some_{RUN_ID}")
    run.make()
    planned = plan_run(recipe_document("slurm", "vllm", environment={"python": python}), run.root)
    planned.plan.write()
    document = planned.resolved.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    write_json(run.recipe, escape_variables(document))
    job = planned.server
    ledger = Ledger(run.events)
    ledger.append("run_started")
    ledger.append("job_intent", token=job.token, planned=job.as_json("slurm"))
    ledger.append("job_submitted", job=job.name, token=job.token, job_id="41")
    return run


def test_only_what_no_process_uses_is_removed(maker: Maker, older: list[str]) -> None:
    python = maker.path.parent / older[0] / "bin" / "python"
    with subprocess.Popen([python, "-c", "print(flush=True); input()"], stdin=-1, stdout=-1) as user:
        assert user.stdout is not None
        user.stdout.readline()
        found = prune(maker)["found"]
        assert f"removed: {older[1]}" in found
        assert f"kept: {older[0]} (a process on its machine uses it)" in found
        assert (older[0] in maker.beside(), older[1] in maker.beside()) == (True, False)
        user.communicate(b"\n")
    assert maker.version() == "1.0"


def test_dry_run_removes_nothing_and_says_what_would_go(maker: Maker, older: list[str]) -> None:
    before = maker.beside()
    found = prune(maker, "--dry-run")
    assert found["state"] == "dry run"
    # What the path leads to now would be an older one then.
    assert all(f"{name}" in found["found"] for name in older)
    assert found["found"].count("rm -rf -- ") == 2
    assert maker.beside() == before


def test_run_that_lives_keeps_all_of_the_path_that_it_names(maker: Maker, older: list[str]) -> None:
    run = add_run(maker, str(maker.path / "bin" / "python"))
    (maker.folder / "queue").write_text(f"41|RUNNING|gpu1|None|orch-{RUN_ID}-vllm\n")
    found = prune(maker)["found"]
    assert "none was removed" in found
    assert found.count(run.root.name) == 2
    assert set(older) <= set(maker.beside())


def test_run_that_lives_with_another_environment_keeps_none(maker: Maker, older: list[str]) -> None:
    add_run(maker, "/opt/other/bin/python")
    (maker.folder / "queue").write_text(f"41|RUNNING|gpu1|None|orch-{RUN_ID}-vllm\n")
    assert f"removed: {', '.join(older)}" in prune(maker)["found"]
    assert not set(older) & set(maker.beside())


@pytest.mark.parametrize(
    ("queue", "words"),
    [
        ("41|RUNNING|gpu1|None|orch-ffffffff-vllm\n", "the job orch-ffffffff-vllm belongs to a run that is not in"),
        (None, "the scheduler does not answer"),
    ],
)
def test_what_nobody_can_tell_of_keeps_all(queue: str | None, words: str, maker: Maker, older: list[str]) -> None:
    if queue is None:
        maker.shim("squeue", "exit 1")
    else:
        (maker.folder / "queue").write_text(queue)
    assert words in prune(maker)["found"]
    assert set(older) <= set(maker.beside())
