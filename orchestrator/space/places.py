"""A host of the site file, as space on it is looked at: where its folders are, and what its batch system says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.resolve import base_dir_there, find_scheduler_there
from orchestrator.schedulers import Scheduler, make_scheduler_there
from orchestrator.site import load_site
from orchestrator.transports import Transport
from orchestrator.transports.ways import can_ask, way_to


@dataclass(frozen=True)
class Place:
    """A host that is connected.

    Attributes:
        name: In the site file.
        base: Its base_dir, absolute.
        cache: Folder of its models and images.
    """

    name: str
    transport: Transport
    scheduler: Scheduler
    base: str
    cache: str

    @property
    def runs(self) -> str:
        """The folder of its runs."""
        return f"{self.base}/runs"


def open_place(name: str, site_file: Path | None) -> Place:
    """Connect to a host of the site file.

    Raises:
        UserError: the site file does not describe it.
        TransportError: it cannot be reached or asked.
    """
    site, source = load_site(site_file)
    if name not in site.hosts:
        known = ", ".join(sorted(site.hosts)) or "none: describe it in the site file (docs/recipe.md)"
        raise UserError(f"'{name}' is no host of the site file ({source}).\nKnown hosts: {known}.")
    spec = site.hosts[name]
    transport = way_to(spec.ssh)
    transport.open(interactive=can_ask())
    base = base_dir_there(name, spec, transport)
    chosen = spec.scheduler or find_scheduler_there(name, transport, [])
    scheduler = make_scheduler_there(chosen, name, spec.environment.supervisor_python, base)
    return Place(name, transport, scheduler, base, spec.cache_dir or f"{base}/cache")


def cache_here(site_file: Path | None, project: Path) -> Path:
    """Return the cache of this machine; see compose."""
    site, _ = load_site(site_file)
    return Path(site.cache_dir).expanduser().absolute() if site.cache_dir else project / "output" / "cache"
