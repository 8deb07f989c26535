"""Every field of a recipe as a table, generated from the models: ``python -m orchestrator.recipe.fields``."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.recipe.document import Job

_HEAD = """\
# Every field of a recipe

Generated from the models by `make schema`; do not edit. How recipes are written: [recipe.md](recipe.md).
"""


@dataclass(frozen=True)
class Row:
    """One field: its dotted path, type, default and meaning."""

    path: str
    type: str
    default: str
    text: str


def fields_markdown() -> str:
    """Return the table of all fields as Markdown."""
    lines = [_HEAD, "| field | type | default | |", "|---|---|---|---|"]
    for row in _rows(Job, "job"):
        cells = (f"`{row.path}`", row.type, row.default, row.text)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[Row]:
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}"
        models = list(_models(field.annotation))
        if not models:
            yield Row(path, _type(field.annotation, field), _default(field), field.description or "")
            continue
        if get_origin(field.annotation) is dict:
            path = f"{path}.NAME"
        for inner in models:
            kind = inner.model_fields.get("kind")
            inner_path = f"{path} ({' or '.join(get_args(kind.annotation))})" if kind else path
            yield Row(inner_path, "section", _section_default(field), (inner.__doc__ or "").split("\n")[0])
            yield from _rows(inner, inner_path if kind else path)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _models(argument)


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    limits = [text for item in (field.metadata if field else ()) if (text := _limit(item))]
    if origin is Annotated:
        text = _type(arguments[0])
    elif origin is Literal:
        text = " or ".join(f"`{value}`" for value in arguments)
    elif origin in {Union, types.UnionType}:
        text = " or ".join(_type(item) for item in arguments if item is not type(None))
    elif origin is tuple:
        text = f"list of {_type(arguments[0])}"
    elif origin is dict:
        text = f"map to {_type(arguments[1])}"
    else:
        names = {str: "text", int: "integer", float: "number", bool: "true or false"}
        text = names.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{text}, {' and '.join(limits)}" if limits else text


def _limit(item: Any) -> str:
    for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
        value = getattr(item, name, None)
        if value is not None:
            return f"{sign} {value:g}"
    return ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None:
        return "-"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value in ((), {}):
        return "none"
    return f"`{value}`"


def _section_default(field: FieldInfo) -> str:
    return "found" if field.default is None and not field.is_required() else ""


if __name__ == "__main__":
    sys.stdout.write(fields_markdown())
