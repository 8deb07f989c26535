"""Exporters that run beside a service's main process, on their own free ports."""

from __future__ import annotations

from orchestrator.recipe.document import Recipe
from orchestrator.service import Check, Sidecar, Target
from services.programs import is_installed


def node_exporter(recipe: Recipe, node_type: str) -> tuple[Sidecar, ...]:
    """Return the node exporter of one job, or nothing where monitoring is off or it is not installed.

    Args:
        recipe: With every choice made.
        node_type: ``service`` or ``client``, as in the reference's labels.
    """
    monitoring = recipe.job.monitoring
    program = monitoring.binaries.node_exporter
    if monitoring.mode == "off" or not monitoring.node_exporter or not is_installed(program):
        return ()
    argv = (program, "--web.listen-address=@BIND@:@PORT@")
    target = Target("node", {"job": "node_exporter", "node_type": node_type})
    return (Sidecar("node_exporter", argv, (Check("/metrics"),), (target,)),)
