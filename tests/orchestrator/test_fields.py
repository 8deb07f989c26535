"""No field of a recipe is dropped in silence: each changes what is submitted, raises, is noted, or acts elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from orchestrator.errors import UserError
from orchestrator.recipe.benchmark import Load
from orchestrator.recipe.document import Job
from tests.builders import PlannedRun, plan_run, recipe_document

PROJECT = Path(__file__).parents[2]
KINDS = {"job.scheduler": "slurm", "job.hpo.dataset": "folder"}

# A value other than the baseline's for each field that changes the plan.
CHANGED: dict[str, Any] = {
    "job.name": "other",
    "job.notify": [{"on": ["failed"], "mail": "me@site.example"}],
    "job.infrastructure.partition": "cpu",
    "job.infrastructure.account": "p2",
    "job.infrastructure.qos": "urgent",
    "job.infrastructure.nodes": 2,
    "job.infrastructure.mem_gb": 65,
    "job.infrastructure.time": "00:10:00",
    "job.infrastructure.cpus_per_task": 3,
    "job.infrastructure.gpus_per_node": 4,
    "job.infrastructure.gpu_type": "h100",
    "job.infrastructure.client_partition": "login",
    "job.infrastructure.client_mem_gb": 9,
    "job.infrastructure.client_time": "00:20:00",
    "job.infrastructure.requeue": True,
    "job.infrastructure.directives": ["--exclusive"],
    **{
        f"job.resources.{role}.{field}": value
        for role in ("server", "client", "monitoring", "trial")
        for field, value in {
            "partition": "other",
            "account": "p3",
            "qos": "urgent",
            "nodes": 3,
            "cpus": 5,
            "mem_gb": 33,
            "gpus": 3,
            "gpu_type": "h100",
            "time": "00:07:00",
            "requeue": False,
            "directives": ["--exclusive"],
        }.items()
    },
    "job.container.roles": ["client"],
    "job.container.images": {"client": "/own.sif"},
    "job.container.dir": "/images",
    "job.container.runtime": "singularity",
    "job.container.gpu": "amd",
    "job.container.binds": ["/data"],
    "job.container.options": ["--nvccli"],
    "job.container.registry": "registry.site.example/mirror",
    "job.container.index": "https://site.example/simple",
    "job.environment.python": "/other/bin/python",
    "job.environment.supervisor_python": "python3.11",
    "job.environment.modules": ["CUDA"],
    "job.environment.variables": {"A": "b"},
    "job.network.bind": "10.0.0.1",
    "job.service.model": "another",
    "job.service.precision": "fp16",
    "job.service.n_clients": 200,
    "job.service.request_timeout_s": 33.5,
    "job.service.startup_timeout_s": 44.0,
    "job.service.replicas": 2,
    "job.service.balancer.policy": "prefix",
    "job.service.balancer.haproxy": "/other/haproxy",
    "job.benchmark.max_tokens": 77,
    "job.benchmark.processes": 5,
    "job.monitoring.mode": "required",
    "job.monitoring.scrape_interval_s": 3.5,
    "job.monitoring.retention": "2d",
    "job.monitoring.node_exporter": False,
    "job.monitoring.time": "00:09:00",
    "job.monitoring.prometheus_port": 9999,
    "job.monitoring.binaries.prometheus": "/other/prometheus",
    "job.monitoring.binaries.pushgateway": "/other/pushgateway",
    "job.monitoring.binaries.node_exporter": "/other/node_exporter",
    "job.working_dirs.job_pattern": "t_{number}",
    "job.hpo.seed": 9,
    "job.hpo.space": {"weight_decay": {"kind": "float", "low": 0.1, "high": 0.2}},
    "job.hpo.fixed": {"model_type": "resnet34"},
    "job.hpo.dataset.dir": "/other/data",
    "job.hpo.dataset.image_size": 64,
    "job.engine.device": "cpu",
    "job.engine.port": 8123,
    "job.engine.environment": {"A": "b"},
    "job.engine.engine_args": ["--x"],
}
ENGINE_FIELDS: dict[str, dict[str, Any]] = {
    "vllm": {
        "job.engine.python": "/vllm/bin/python",
        "job.engine.served_model_name": "shown",
        "job.engine.revision": "v2",
        "job.engine.offline": False,
        "job.engine.stage_to": "$TMPDIR",
        "job.engine.keep_staged": True,
        "job.engine.tensor_parallel": 2,
        "job.engine.pipeline_parallel": 2,
        "job.engine.max_model_len": 4096,
        "job.engine.gpu_memory_utilization": 0.5,
        "job.engine.cpu_kv_cache_gib": 7.0,
        "job.engine.enforce_eager": True,
        "job.engine.quantization": "awq",
        "job.engine.trust_remote_code": True,
        "job.engine.seed": 5,
    },
    "ollama": {
        "job.engine.executable": "/other/ollama",
        "job.engine.num_parallel": 7,
        "job.engine.max_loaded_models": 3,
        "job.engine.models_dir": "/models",
    },
}
# Fields that act when the plan is made already, with the file and the words that read them.
ELSEWHERE: dict[str, tuple[str, str]] = {
    "job.scheduler.command_timeout_s": ("orchestrator/host_view.py", "command_timeout_s"),
    "job.polling.scheduler_s": ("orchestrator/jobs.py", "polling.scheduler_s"),
    "job.polling.records_s": ("orchestrator/jobs.py", "polling.records_s"),
    "job.polling.metrics_s": ("agent", "polling.metrics_s"),
    "job.working_dirs.launch_iteration_pattern": ("orchestrator/compose.py", "launch_iteration_pattern"),
    "job.service.n_requests_per_client": ("client/stage.py", "service.n_requests_per_client"),
    "job.service.prompt": ("client/stage.py", "service.prompt"),
    **{f"job.benchmark.load.{field}": ("client/stage.py", "load.model_dump(") for field in Load.model_fields},
    "job.benchmark.enabled": ("client/stage.py", "benchmark.enabled"),
    "job.benchmark.temperature": ("client/stage.py", "benchmark.temperature"),
    "job.benchmark.ignore_eos": ("client/stage.py", "benchmark.ignore_eos"),
    "job.benchmark.warmup_requests": ("client/stage.py", "benchmark.warmup_requests"),
    "job.benchmark.seed": ("client/stage.py", "benchmark.seed"),
    "job.benchmark.timeout_s": ("client/stage.py", "benchmark.timeout_s"),
    "job.hpo.trials": ("agent", "hpo.trials"),
    "job.polling.submits_per_s": ("orchestrator/jobs.py", "submits_per_s"),
    "job.infrastructure.placement": ("orchestrator/allocation/parts.py", "infrastructure.placement"),
    "job.infrastructure.launcher": ("orchestrator/compose.py", "infrastructure.launcher"),
    "job.infrastructure.allocation": ("orchestrator/allocation/broker.py", "infrastructure.allocation"),
    "job.infrastructure.successor_lead": ("orchestrator/run.py", "infrastructure.successor_lead"),
    "job.infrastructure.batch_template": ("orchestrator/plan.py", "infrastructure.batch_template"),
    "job.after": ("orchestrator/run.py", "recipe.job.after"),
    "job.host": ("orchestrator/resolve.py", "job.host"),
    "job.guard.max_gpu_hours": ("orchestrator/run.py", "job.guard.max_gpu_hours"),
    "job.hosts": ("orchestrator/resolve.py", "job.hosts"),
    **{
        f"job.resources.{role}.host": ("orchestrator/resolve.py", ".host")
        for role in ("server", "client", "monitoring", "trial")
    },
    "job.hpo.parallel_trials": ("agent", "parallel_trials"),
    "job.hpo.job_arrays": ("orchestrator/compose.py", "hpo.job_arrays"),
    "job.hpo.sampler": ("agent", "hpo.sampler"),
    "job.hpo.objective": ("agent", "hpo.objective"),
    "job.hpo.max_failed_trials": ("agent", "max_failed_trials"),
    "job.hpo.trial_timeout_s": ("agent", "hpo.trial_timeout_s"),
    "job.hpo.evaluate_winner": ("agent", "evaluate_winner"),
    "job.hpo.llm.temperature": ("agent", "temperature"),
    "job.hpo.llm.max_tokens": ("agent", "max_tokens"),
    "job.hpo.llm.max_repairs": ("agent", "max_repairs"),
    "job.hpo.llm.request_timeout_s": ("agent", "llm.request_timeout_s"),
}
# Given in the baseline, and told apart by tests of their own.
CONSTANT = {"job.service.type", "job.scheduler.kind", "job.engine.kind", "job.hpo.dataset.kind"}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models of an annotation, those inside of mappings and lists left out."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from models_in(get_args(annotation)[0])
    elif get_origin(annotation) not in {dict, list, tuple}:
        for argument in get_args(annotation):
            yield from models_in(argument)


def leaf_fields(model: type[BaseModel], where: str, kinds: dict[str, str]) -> Iterator[str]:
    """Yield the dotted path of every field that is no section."""
    for name, field in model.model_fields.items():
        path = f"{where}.{name}"
        inner = list(models_in(field.annotation))
        if path in kinds:
            inner = [each for each in inner if kinds[path] in get_args(each.model_fields["kind"].annotation)]
        for each in inner:
            yield from leaf_fields(each, path, kinds)
        if not inner:
            yield path


def baseline(engine: str) -> dict[str, Any]:
    """Return a recipe on Slurm with every section."""
    return recipe_document(
        "slurm",
        engine,
        infrastructure={"partition": "gpu", "time": "01:00:00"},
        hpo={
            "dataset": {"kind": "folder", "dir": "/data"},
            "space": {"num_layers": {"kind": "int", "low": 1, "high": 3}},
        },
    )


def cases() -> list[tuple[str, str]]:
    """Return every pair of engine and leaf field."""
    found = []
    for engine in ENGINE_FIELDS:
        fields = leaf_fields(Job, "job", {**KINDS, "job.engine": engine})
        found += [(engine, field) for field in dict.fromkeys(fields)]
    return found


def with_value(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return ``document`` with ``value`` at a dotted path."""
    head, _, rest = path.partition(".")
    inner = with_value(document.get(head, {}), rest, value) if rest else value
    return {**document, head: inner}


@pytest.fixture(autouse=True)
def _exporter_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.exporters.is_installed", lambda program: True)


def outcome(document: dict[str, Any]) -> PlannedRun | str:
    """Return the plan, or the message of a refusal; services check as in a real run, but for what is installed."""
    try:
        planned = plan_run(document)
        planned.server  # noqa: B018
        for service in planned.services[:1]:
            service.check(planned.context)
    except UserError as error:
        if "not installed" not in str(error) and "cannot be run on 'here'" not in str(error):
            return str(error)
    return planned


@pytest.mark.parametrize(("engine", "path"), cases())
def test_field_of_the_recipe_acts_or_is_told(engine: str, path: str) -> None:
    values = {**CHANGED, **ENGINE_FIELDS[engine]}
    assert (path in values) + (path in ELSEWHERE) + (path in CONSTANT) == 1, (
        f"{path} is new: give it a value in CHANGED (or name in ELSEWHERE what reads it)"
    )
    if path in ELSEWHERE:
        place, words = ELSEWHERE[path]
        files = [PROJECT / place] if place.endswith(".py") else sorted((PROJECT / place).glob("*.py"))
        assert any(words in file.read_text() for file in files), f"nothing in {place} reads {words}"
    elif path in values:
        before, after = outcome(baseline(engine)), outcome(with_value(baseline(engine), path, values[path]))
        assert isinstance(before, PlannedRun)
        if isinstance(after, PlannedRun):
            is_told = after.resolved.notes != before.resolved.notes
            assert after.everything() != before.everything() or is_told, f"{path} is dropped in silence"
        else:
            assert path.rpartition(".")[2] in after


def test_field_tables_name_no_field_that_is_gone() -> None:
    known = {path for _, path in cases()}
    named = {*CHANGED, *ELSEWHERE, *CONSTANT, *(path for table in ENGINE_FIELDS.values() for path in table)}
    assert named <= known


@pytest.mark.parametrize("field", ["partition", "account", "qos", "time", "gpu_type", "directives"])
def test_field_of_placement_on_local_is_noted_as_not_applicable(field: str) -> None:
    value: Any = ["--x"] if field == "directives" else "1"
    notes = plan_run(recipe_document("local", "vllm", infrastructure={field: value})).resolved.notes
    assert any("not applicable on local" in note and field in note for note in notes)
