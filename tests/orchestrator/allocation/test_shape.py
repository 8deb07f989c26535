"""How large an allocation must be for everything to run in it at once."""

from __future__ import annotations

from orchestrator.allocation.shape import Demand, Group, groups_of
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.schedulers import PartitionLimits

SLURM = ("partition", "account", "qos", "gpu_type", "directives")
NODE = PartitionLimits(cpus=64, mem_mib=512 * 1024, gpus=4)


def demand(role: str, count: int = 1, partition: str = "gpu", **sizes: float) -> Demand:
    """Return what jobs of a role need."""
    return Demand(role, RoleResources.model_validate({"partition": partition, **sizes}), count)


SERVER = demand("server", cpus=8, mem_gb=64, gpus=2)
CLIENT = demand("client", cpus=2, mem_gb=8)


def sizes(group: Group) -> tuple[int | None, int | None, float | None, int | None]:
    """Return nodes, and CPU cores, memory and GPUs of each."""
    asked = group.resources
    return (asked.nodes, asked.cpus, asked.mem_gb, asked.gpus)


def test_everything_that_fits_goes_on_one_node() -> None:
    trials = demand("trial", 2, cpus=4, mem_gb=16, gpus=1)
    (group,) = groups_of([SERVER, CLIENT, trials], SLURM, {"gpu": NODE})
    assert group.roles == ("server", "client", "trial")
    assert sizes(group) == (1, 8 + 2 + 2 * 4, 64 + 8 + 2 * 16, 4)


def test_trials_that_do_not_fit_beside_the_server_get_further_nodes() -> None:
    trials = demand("trial", 6, cpus=4, mem_gb=16, gpus=1)
    (group,) = groups_of([SERVER, CLIENT, trials], SLURM, {"gpu": NODE})
    assert (group.resources.nodes, group.resources.gpus) == (2, 4)


def test_server_over_several_nodes_takes_its_share_of_each() -> None:
    server = demand("server", nodes=2, cpus=8, mem_gb=64, gpus=4)
    (group,) = groups_of([server, CLIENT], SLURM, {"gpu": NODE})
    assert sizes(group) == (2, 10, 72, 4)


def test_other_partitions_make_further_groups() -> None:
    gpu, cpu = groups_of([SERVER, demand("client", partition="cpu", cpus=2, mem_gb=8)], SLURM, {})
    assert (gpu.name, gpu.resources.partition, cpu.name, cpu.resources.partition) == ("server", "gpu", "client", "cpu")
    assert sizes(cpu) == (1, 2, 8, 0)


def test_batch_system_without_components_gets_one_group() -> None:
    (group,) = groups_of([SERVER, demand("client", partition="cpu", cpus=2, mem_gb=8)], (), {})
    assert group.roles == ("server", "client")


def test_nodes_of_unknown_size_are_taken_to_be_large_enough() -> None:
    (group,) = groups_of([SERVER, demand("trial", 8, cpus=4, mem_gb=16, gpus=1)], SLURM, {})
    assert sizes(group) == (1, 8 + 32, 64 + 128, 10)


def test_job_larger_than_any_node_is_left_to_the_batch_system_to_refuse() -> None:
    (group,) = groups_of([demand("server", cpus=8, mem_gb=64, gpus=8), CLIENT], SLURM, {"gpu": NODE})
    assert group.resources.gpus == 8
    assert group.resources.nodes == 2
