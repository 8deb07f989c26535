"""Where jobs can run: what belongs to a centre, and machines that are reached over OpenSSH."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from orchestrator.recipe.base import StrictModel, TimeLimit, Word
from orchestrator.recipe.container import Container
from orchestrator.recipe.infrastructure import Environment
from orchestrator.recipe.sections import Binaries, SchedulerSpec
from orchestrator.transports.ssh_spec import SshSpec

HERE = "here"
# The steps of a run's one allocation: no host can be named so.
STEPS = "@allocation"
BASE_DIR = "orch"


def _checked_base_dir(path: str) -> str:
    if "~" in path or "$" in path or ".." in path.split("/"):
        raise ValueError("give an absolute path, or one below the home directory there: without ~, $ and ..")
    return path


class Partition(StrictModel):
    """What is known of one partition."""

    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_type: Word | None = None
    """Name of the GPU in the scheduler's generic resources, such as `a100`."""
    gpu_memory_gb: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Memory of one GPU as `nvidia-smi` tells it, in MiB / 1024. If not given: found by the GPU's name."""


class RolePartitions(StrictModel):
    """Partition of each role where the recipe names none."""

    server: Word | None = None
    client: Word | None = None
    monitoring: Word | None = None
    trial: Word | None = None


class Centre(StrictModel):
    """What belongs to one centre and not to an experiment. The recipe beats all of it."""

    scheduler: SchedulerSpec | None = None
    account: Word | None = None
    qos: Word | None = None
    time: TimeLimit | None = None
    partitions: dict[Word, Partition] = {}
    role_partitions: RolePartitions = RolePartitions()
    environment: Environment = Environment()
    container: Container = Container()
    binaries: Binaries = Binaries()
    bind: Word | None = None
    """Address that services listen on; 127.0.0.1 where all nodes are one machine."""
    batch_template: Word | None = None
    """The centre's own batch template, see job.infrastructure.batch_template. A path on the machine of orch."""
    cache_dir: Word | None = None
    """Shared folder of converted models and images; cache/ in the folder of runs if not given."""


class HostSpec(Centre):
    """A machine that is reached over OpenSSH, such as the login node of a cluster. It shares no files with this one."""

    ssh: SshSpec
    """How it is reached. What is not given here comes from ~/.ssh/config."""
    base_dir: Annotated[Word, AfterValidator(_checked_base_dir)] = BASE_DIR
    """Folder there that its nodes share: code/, cache/ and runs/ are made in it (jobs/, where scheduler.kind is local).
    Below the home directory if not absolute."""


HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
