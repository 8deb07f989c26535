"""The site file: what belongs to the centre and not to the experiment."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.errors import Problem, SiteError
from orchestrator.recipe.base import Word
from orchestrator.recipe.hosts import Centre, HostName, HostSpec
from orchestrator.recipe.load import expand_variables, read_document, validate


class Site(Centre):
    """One centre's defaults, and the hosts that its users reach."""

    name: Word = "unnamed"
    hosts: dict[HostName, HostSpec] = {}
    """Machines that jobs can run on, by the names under which recipes know them."""


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
