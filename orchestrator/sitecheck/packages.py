"""What the project's parts need of an interpreter; orch.py tells."""

from __future__ import annotations

from dataclasses import dataclass

PYTHON_FOR_JOBS = (3, 11)
"""Oldest Python of the client service and the trainer: `requires-python` of pyproject.toml."""
PYTHON_FOR_SUPERVISOR = (3, 6)


@dataclass(frozen=True)
class Packages:
    """Import names of what has to be installed.

    Attributes:
        client: For the client service, which every benchmark needs.
        trainer: For the trials of a search.
        balancer: For the balancer of replicas, which runs in the client's environment.
    """

    client: tuple[str, ...] = ()
    trainer: tuple[str, ...] = ()
    balancer: tuple[str, ...] = ()


NOTHING_NEEDED = Packages()
