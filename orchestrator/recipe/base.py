"""What all models of the recipe share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class StrictModel(BaseModel):
    """A frozen section of a document; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)


_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


def _reject_control_characters(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("control characters and line breaks are not allowed here")
    return text


Line = Annotated[str, AfterValidator(_reject_control_characters)]
"""Text of one line: no control characters, no line breaks (they would end a batch directive)."""

Word = Annotated[Line, Field(min_length=1, max_length=256)]
"""A non-empty line."""

_TIME = re.compile(r"^(?:\d+-\d{1,2}(?::\d{1,2}){0,2}|\d+(?::\d{1,2}){0,2})$")


def _check_time_limit(text: str) -> str:
    if not _TIME.match(text):
        raise ValueError("a time limit is MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS")
    if time_limit_s(text) <= 0:
        raise ValueError("a time limit must be longer than zero")
    return text


def time_limit_s(text: str) -> int:
    """Return a Slurm time limit in seconds.

    Source: ``sbatch(1)``, option ``--time``: "minutes", "minutes:seconds", "hours:minutes:seconds", "days-hours",
    "days-hours:minutes" and "days-hours:minutes:seconds".
    """
    days_text, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return int(days_text) * 86400 + hours * 3600 + minutes * 60 + seconds
    if len(parts) == 1:
        return parts[0] * 60
    if len(parts) == 2:
        return parts[0] * 60 + parts[1]
    return parts[0] * 3600 + parts[1] * 60 + parts[2]


TimeLimit = Annotated[str, AfterValidator(_check_time_limit)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
