"""Drafts to jobs, and the plan as a whole."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator.errors import UserError
from orchestrator.plan import Plan, PlannedJob, check_names, job_token
from orchestrator.plan_view import show_plan
from orchestrator.recipe.load import escape_variables
from orchestrator.rundir import RunDir
from tests.builders import RUN_ID, PlannedRun, plan_run, planned_array, recipe_document

HPO = {"dataset": {"kind": "folder", "dir": "/data"}, "trials": 10}


def with_trials(planned: PlannedRun, count: int = 10) -> Plan:
    """Return the plan with its trial."""
    trial = next((job for job in planned.jobs.values() if job.role == "trial"), None)
    return dataclasses.replace(planned.plan, trial=trial, trials=count)


def test_plan_of_slurm_has_server_client_and_monitoring_in_order() -> None:
    plan = plan_run(recipe_document("slurm", "vllm")).plan
    assert [(job.name, job.role) for job in plan.jobs] == [
        ("vllm", "server"),
        ("client", "client"),
        ("pushgateway", "monitoring"),
        ("prometheus", "monitoring"),
    ]


def test_plan_job_has_the_run_in_its_token_and_the_token_in_its_script() -> None:
    job = plan_run(recipe_document("slurm", "vllm")).server
    assert job.token == job_token(RUN_ID, "vllm") == f"orch-{RUN_ID}-vllm"
    assert f"#SBATCH --job-name={job.token}\n" in job.script_text


def test_plan_job_hash_covers_script_and_configuration() -> None:
    job = plan_run(recipe_document("slurm", "vllm")).server
    assert job.sha256 == hashlib.sha256((job.script_text + "\0" + job.config_text).encode()).hexdigest()
    assert dataclasses.replace(job, script_text=job.script_text + " ").sha256 != job.sha256
    assert dataclasses.replace(job, config_text=job.config_text + " ").sha256 != job.sha256


def test_plan_written_and_read_back_gives_the_same_jobs(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.make()
    planned = plan_run(recipe_document("slurm", "vllm", hpo=HPO), run.root)
    with_trials(planned).write()
    document = json.loads(run.plan.read_text())
    again = [PlannedJob.from_json(run, data) for data in [*document["jobs"], document["trials"]["job"]]]
    assert again == list(planned.jobs.values())
    assert [data["sha256"] for data in document["jobs"]] == [job.sha256 for job in planned.plan.jobs]


def test_plan_as_json_names_each_job_with_its_resources() -> None:
    document = with_trials(plan_run(recipe_document("slurm", "vllm", hpo=HPO))).as_json()
    for job in document["jobs"]:
        assert {"name", "role", "scheduler", "script", "resources", "sha256", "token"} <= set(job)
        assert job["scheduler"] == "slurm"
    assert document["trials"]["count"] == 10
    assert document["trials"]["job"]["name"] == "trial_example"
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(
    ("infrastructure", "trial", "expected"),
    [
        ({"gpus_per_node": 2, "nodes": 2, "time": "01:30:00"}, {"gpus": 0}, 6.0),
        ({"gpus_per_node": 0, "time": "01:00:00"}, {"gpus": 1, "time": "00:30:00"}, 5.0),
        ({"gpus_per_node": 0}, {"gpus": 0}, 0.0),
        ({"gpus_per_node": 1}, {"gpus": 0}, None),
        ({"gpus_per_node": 1, "time": "1-0"}, {"gpus": 1, "time": "6"}, 25.0),
    ],
)
def test_plan_gpu_hours_are_an_upper_bound_or_unknown(
    infrastructure: dict[str, object], trial: dict[str, object], expected: float | None
) -> None:
    document = recipe_document("slurm", "ollama", infrastructure=infrastructure, resources={"trial": trial}, hpo=HPO)
    assert with_trials(plan_run(document)).gpu_hours() == expected


def test_plan_with_job_arrays_tells_of_their_size_and_writes_what_one_looks_like(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.make()
    planned = plan_run(
        recipe_document("slurm", "vllm", hpo={**HPO, "parallel_trials": 4, "job_arrays": True}), run.root
    )
    plan = dataclasses.replace(with_trials(planned), array=planned_array(planned, 4))
    plan.write()
    text = io.StringIO()
    show_plan(plan, Console(file=text, width=120))
    assert "Trials: as job arrays of up to 4\n" in text.getvalue().replace(" \n", "\n")
    told = json.loads(run.plan.read_text())["trials"]["array"]
    assert (told["size"], told["token"]) == (4, f"orch-{RUN_ID}-trial_0000-array")
    assert "#SBATCH --array=0-3\n" in Path(told["script"]).read_text()
    assert run.script("trial_0000-array_0").is_file()
    assert Plan.from_json(run, json.loads(run.plan.read_text())).array is None


def test_plan_with_one_name_twice_is_refused() -> None:
    job = plan_run(recipe_document("slurm", "vllm")).server
    with pytest.raises(UserError, match="vllm"):
        check_names([job, job])


def test_plan_table_at_80_columns_shows_all_jobs_and_notes_whole() -> None:
    document = recipe_document("slurm", "vllm", infrastructure={"partition": "p" * 40, "account": "a" * 40}, hpo=HPO)
    plan = with_trials(plan_run(document, Path("/" + "long/" * 30)))
    text = io.StringIO()
    show_plan(plan, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    for name in ("vllm", "client", "pushgateway", "prometheus", "trial × 10", "nodes", "cpus", "gpus", "mem", "time"):
        assert any(name in line.split("  ") or f" {name} " in f" {line} " for line in lines), name
    joined = "".join(line.rstrip() for line in lines).replace(" ", "")
    for note in plan.notes:
        assert note.replace(" ", "") in joined


@pytest.mark.parametrize(
    ("scheduler", "engine"), [("slurm", "vllm"), ("slurm", "ollama"), ("local", "vllm"), ("local", "ollama")]
)
def test_plan_of_the_resolved_recipe_is_byte_for_byte_the_same(scheduler: str, engine: str) -> None:
    document = recipe_document(
        scheduler,
        engine,
        infrastructure={
            "partition": "gpu",
            "account": "p1",
            "time": "10",
            "client_partition": "cpu",
            "client_mem_gb": 1,
        },
        environment={"modules": ["A"], "variables": {"LITERAL": "$${HOME} $$${HOME}"}},
        service={"n_clients": 300, "request_timeout_s": 33.25},
        hpo={**HPO, "fixed": {"augment": False, "momentum": 0.125}},
        monitoring={"scrape_interval_s": 2.5},
    )
    first = plan_run(document)
    resolved = first.resolved.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    text = json.dumps({**escape_variables(resolved), "provenance": {"orch_version": "0"}}, allow_nan=False)
    second = plan_run(json.loads(text))
    assert second.scripts() == first.scripts()
    assert second.files == first.files
    again = second.resolved.recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert {**again, "provenance": None} == {**resolved, "provenance": None}
