"""Pydantic's validation errors in the words of the recipe."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.errors import Problem


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return one problem for each error that pydantic found in a document checked against ``model``."""
    return [_problem(details, model) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    loc = _without_union_tags(details["loc"], model)
    where = _dotted(loc)
    given = _shown(details["input"])
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        known = sorted({name for owner in _models_at(model, details["loc"][:-1]) for name in _keys_of(owner)})
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        remedy = f"Did you mean '{near[0]}'?" if near else ""
        return Problem(where, "unknown key", ", ".join(known), remedy)
    if kind == "missing":
        return Problem(where, "required, but not given")
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        what = "no kind given" if kind == "union_tag_not_found" else f"unknown kind {context.get('tag')!r}"
        return Problem(f"{where}.kind", what, str(context.get("expected_tags", "")))
    if kind == "literal_error":
        return Problem(where, f"is {given}", str(context.get("expected", "")))
    if kind == "value_error":
        return Problem(where, f"is {given}: {context.get('error')}")
    return Problem(where, f"is {given}: {details['msg'][0].lower()}{details['msg'][1:]}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _dotted(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text


def _keys_of(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None:
        for argument in get_args(annotation):
            yield from _models_in(argument)


def _models_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Return the models that may stand at ``loc`` (several where there is a union and ``loc`` has no tag of it)."""
    owners: list[type[BaseModel]] = [model]
    for part in loc:
        found: list[type[BaseModel]] = []
        for owner in owners:
            field = owner.model_fields.get(str(part))
            if field is not None:
                found += _models_in(field.annotation)
        tagged = [owner for owner in owners if _has_tag(owner, part)]
        # A key inside a mapping (a parameter's name) stays with the mapping's value models.
        owners = found or tagged or owners
    return owners


def _has_tag(model: type[BaseModel], part: int | str) -> bool:
    return "kind" in model.model_fields and part in get_args(model.model_fields["kind"].annotation)


def _without_union_tags(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[int | str, ...]:
    """Drop the tags of discriminated unions, which pydantic puts into a location and users do not write."""
    kept: list[int | str] = []
    for part in loc:
        owners = _models_at(model, tuple(kept))
        known = {name for owner in owners for name in owner.model_fields}
        is_tag = any(_has_tag(owner, part) for owner in owners)
        if not (is_tag and kept and part not in known):
            kept.append(part)
    return tuple(kept)
