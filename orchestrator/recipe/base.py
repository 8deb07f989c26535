"""What all models of the recipe share."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class StrictModel(BaseModel):
    """A frozen section of a document; unknown keys are errors."""

    # JSON's 1e999 is infinite, and what is infinite cannot be written as JSON again.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def _whole_number_as_text(value: Any) -> Any:
    """Return a whole number as text: ``--set job.infrastructure.time=30`` and ``account: 1234`` mean their digits."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _reject_control_characters(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("control characters and line breaks are not allowed here")
    return reject_surrogates(text)


def reject_surrogates(text: str) -> str:
    """Return ``text``; half a character, which JSON can escape but UTF-8 cannot write, is a ValueError."""
    if _SURROGATE.search(text):
        raise ValueError("half a surrogate pair is no character")
    return text


Line = Annotated[str, BeforeValidator(_whole_number_as_text), AfterValidator(_reject_control_characters)]
"""Text of one line: no control characters, no line breaks (they would end a batch directive)."""

Word = Annotated[Line, Field(min_length=1, max_length=256)]
"""A non-empty line."""


def _scalar_as_text(value: Any) -> Any:
    """Return a number or a truth value as JSON writes it: an environment variable set to 0.3 means the text 0.3."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("not a finite number; write it in quotes if the text is meant")
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value


EnvValue = Annotated[
    str,
    BeforeValidator(_scalar_as_text, json_schema_input_type=str | int | float | bool),
    AfterValidator(_reject_control_characters),
]
"""Value of an environment variable: text of one line; numbers and truth values become text."""

_TIME = re.compile(r"\d+-\d{1,2}(?::\d{1,2}){0,2}|\d+(?::\d{1,2}){0,2}", re.ASCII)


def _check_time_limit(text: str) -> str:
    if not _TIME.fullmatch(text):
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


TimeLimit = Annotated[str, BeforeValidator(_whole_number_as_text), AfterValidator(_check_time_limit)]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
