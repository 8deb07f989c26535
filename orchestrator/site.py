"""The site file: what belongs to the centre and not to the experiment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from orchestrator.errors import Problem, SiteError
from orchestrator.recipe.base import StrictModel, TimeLimit, Word
from orchestrator.recipe.infrastructure import Environment
from orchestrator.recipe.load import expand_variables, read_document, validate
from orchestrator.recipe.sections import Binaries, SchedulerSpec


class Partition(StrictModel):
    """What is known of one partition."""

    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_type: Word | None = None
    """Name of the GPU in the scheduler's generic resources, such as `a100`."""


class RolePartitions(StrictModel):
    """Partition of each role where the recipe names none."""

    server: Word | None = None
    client: Word | None = None
    monitoring: Word | None = None
    trial: Word | None = None


class Site(StrictModel):
    """One centre's defaults. The recipe beats all of them."""

    name: Word = "unnamed"
    scheduler: SchedulerSpec | None = None
    account: Word | None = None
    qos: Word | None = None
    time: TimeLimit | None = None
    partitions: dict[Word, Partition] = {}
    role_partitions: RolePartitions = RolePartitions()
    environment: Environment = Environment()
    binaries: Binaries = Binaries()
    bind: Word | None = None
    """Address that services listen on; 127.0.0.1 where all nodes are one machine."""
    cache_dir: Word | None = None
    """Shared folder of converted models and images; cache/ in the project's output folder if not given."""


def default_site_path(home: Path | None = None) -> Path:
    """Return where the user's site file is looked for: ``$XDG_CONFIG_HOME/orch/site.yaml`` or ``~/.config/…``."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base and home is None else (home or Path.home()) / ".config") / "orch" / "site.yaml"


def load_site(path: Path | None) -> tuple[Site, str]:
    """Return the site and where it came from.

    Args:
        path: The file named by the user, or None for the default place, where a missing file is no error.

    Raises:
        SiteError: a named file is missing, or anything in the file is wrong.
    """
    chosen = path or default_site_path()
    if path is None and not chosen.is_file():
        return Site(), "none"
    document = read_document(chosen, SiteError)
    problems: list[Problem] = []
    document = expand_variables(document if document is not None else {}, os.environ, problems)
    return validate(Site, document, str(chosen), SiteError, problems), str(chosen)
