"""Exporters that run beside a service's main process, on their own free ports."""

from __future__ import annotations

from orchestrator.containers.launch import launch_of
from orchestrator.service import Check, PlanContext, Sidecar, Target
from services.programs import is_installed

# An image has /proc and /sys of its own. Source: node_exporter's README, "Docker".
_HOST_BINDS = ("/proc:/host/proc:ro", "/sys:/host/sys:ro", "/:/host/root:ro")
_HOST_PATHS = ("--path.procfs=/host/proc", "--path.sysfs=/host/sys", "--path.rootfs=/host/root")


def node_exporter(context: PlanContext, node_type: str) -> tuple[Sidecar, ...]:
    """Return the node exporter of one job, or nothing where monitoring is off or it is not installed.

    Args:
        context: What the job is planned with.
        node_type: ``service`` or ``client``, as in the reference's labels.
    """
    monitoring = context.recipe.job.monitoring
    if monitoring.mode == "off" or not monitoring.node_exporter:
        return ()
    program: tuple[str, ...] = (monitoring.binaries.node_exporter,)
    launch = launch_of(context, "monitoring", "node_exporter", binds=_HOST_BINDS)
    if launch:
        program = (*launch.argv, "node_exporter", *_HOST_PATHS)
    elif not is_installed(*program):
        return ()
    argv = (*program, "--web.listen-address=@BIND@:@PORT@")
    target = Target("node", {"job": "node_exporter", "node_type": node_type})
    return (Sidecar("node_exporter", argv, (Check("/metrics"),), (target,)),)
