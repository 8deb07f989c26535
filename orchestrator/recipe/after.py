"""Which runs have to end before this one begins: ``job.after``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from orchestrator.recipe.base import Line, StrictModel

When = Literal["completed", "ended"]


class After(StrictModel):
    """A run that has to end before this one begins; nothing is submitted until then. `RUN` alone is `{run: RUN}`."""

    run: Annotated[Line, Field(min_length=1, max_length=4096)]
    """Its directory, name or id, or `latest`: what `orch.py status` takes."""
    when: When = "completed"
    """`completed`: it must be completed; any other end ends this run as well. `ended`: it must end, whichever way."""


def _run_as_section(value: Any) -> Any:
    return {"run": value} if isinstance(value, (str, int)) else value


def _one_as_list(value: Any) -> Any:
    return (value,) if isinstance(value, (str, int, dict, After)) else value


_Entry = Annotated[After, BeforeValidator(_run_as_section, json_schema_input_type=str | After)]
AfterSection = Annotated[
    tuple[_Entry, ...],
    BeforeValidator(_one_as_list, json_schema_input_type=str | After | tuple[_Entry, ...]),
]
"""Earlier runs; a single one may stand alone, and its name stands for the section."""
