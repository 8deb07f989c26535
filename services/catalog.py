"""Which services a recipe needs. A new engine or service is added to the tables here."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.containers.launch import is_in_image
from orchestrator.errors import ProgramMissingError
from orchestrator.service import PlanContext, Role, Service
from services.client import ClientService
from services.front import BalancerService
from services.ollama import OllamaService
from services.programs import is_installed
from services.prometheus import PrometheusService
from services.pushgateway import PushgatewayService
from services.vllm import VllmService

ENGINES: Mapping[str, type[VllmService] | type[OllamaService]] = {
    "vllm": VllmService,
    "ollama": OllamaService,
}
MONITORING: Mapping[str, type[PushgatewayService] | type[PrometheusService]] = {
    "pushgateway": PushgatewayService,
    "prometheus": PrometheusService,
}


def services_of(contexts: Mapping[Role, PlanContext]) -> tuple[list[Service], list[str]]:
    """Return the services of a run, in the order of submission, and notes on what is left out and why.

    Args:
        contexts: What each role's jobs are planned with.

    Raises:
        ProgramMissingError: monitoring is required and a program of it is not installed.
    """
    monitoring, notes = _monitoring(contexts["monitoring"])
    return [*serving_of(contexts), *monitoring], notes


def serving_of(contexts: Mapping[Role, PlanContext]) -> list[Service]:
    """Return the LLM server of a run, or its replicas and the balancer in front of them, and the client that asks."""
    context = contexts["server"]
    engine, replicas = context.recipe.job.engine, context.recipe.job.service.replicas
    make = ENGINES[engine.kind if engine else "vllm"]
    if replicas == 1:
        server = make()
        return [server, ClientService(server.draft(context))]
    servers = [make(number) for number in range(1, replicas + 1)]
    balancer = BalancerService(servers[0].draft(context))
    return [*servers, balancer, ClientService(balancer.draft(contexts["client"]))]


def _monitoring(context: PlanContext) -> tuple[list[Service], list[str]]:
    wanted = context.recipe.job.monitoring
    if wanted.mode == "off":
        return [], ["monitoring: off, as asked for"]
    binaries = wanted.binaries.model_dump()
    if not wanted.node_exporter:
        binaries.pop("node_exporter")
    if is_in_image(context, "monitoring"):
        binaries = {}
    missing = {name: program for name, program in binaries.items() if not is_installed(program)}
    if missing and wanted.mode == "required":
        names = ", ".join(f"{name} ('{program}')" for name, program in missing.items())
        raise ProgramMissingError(
            f"job.monitoring is required, but not installed here: {names}.\n"
            "On Debian: apt-get install prometheus prometheus-pushgateway prometheus-node-exporter; elsewhere give "
            "their paths in job.monitoring.binaries or the site file."
        )
    notes = [
        f"monitoring: {name} is left out, because '{program}' was not found here (job.monitoring.binaries.{name})"
        for name, program in missing.items()
    ]
    return [make() for name, make in MONITORING.items() if name not in missing], notes
