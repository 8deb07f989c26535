"""Values of a run's JSON files, which may be absent, of another type, or hostile: each comes out usable or as None."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Beyond it a number is damage, and would overflow in a plot.
_LARGEST = 1e18
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
# Control characters but tab and newline, lone surrogates, and the marks that reorder the text after them.
_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def as_map(value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return ``value`` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def as_maps(value: object) -> list[Mapping[str, Any]]:
    """Return the objects in the list ``value``; whatever else is in it is left out."""
    return [item for item in as_list(value) if isinstance(item, dict)]


def as_number(value: object) -> float | None:
    """Return ``value`` as a number; None for anything else, NaN, booleans and what is beyond all measure included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if abs(number) <= _LARGEST else None


def as_count(value: object) -> int | None:
    """Return ``value`` as a whole number, None for anything else."""
    number = as_number(value)
    return int(number) if number is not None and number == int(number) else None


def as_text(value: object, limit: int = 2000) -> str | None:
    """Return ``value`` as text that a page can show, or None if there is nothing to show.

    Terminal colours are removed, other control characters replaced; of what is longer than ``limit`` the middle is left
    out.
    """
    if value is None or isinstance(value, (dict, list)) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    text = _UNSHOWABLE.sub("\ufffd", _ANSI.sub("", re.sub(r"\r\n?", "\n", str(value)))).strip()
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n… {len(text) - limit:,} characters left out …\n{text[-(limit // 2) :]}"
    return text or None


def iter_json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects in ``path``, one a line; torn lines are left out, a file that cannot be read has none."""
    try:
        with path.open("rb") as lines:
            for line in lines:
                try:
                    item = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(item, dict):
                    yield item
    except OSError:
        return
