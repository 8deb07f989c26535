"""Templates to scripts: strict, and safe for whatever a recipe holds."""

from __future__ import annotations

import json
import math
import re
import shlex
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError

from orchestrator.errors import RenderError, UnsafeValueError

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


def quote_word(value: object) -> str:
    """Return ``value`` as one complete word of a POSIX shell, quoted only where it needs to be.

    Raises:
        UnsafeValueError: it holds a NUL, which no shell word can.
    """
    text = _text(value)
    if "\0" in text:
        raise UnsafeValueError(f"a NUL cannot stand in a script: {text!r}")
    return shlex.quote(text)


def directive_value(value: object) -> str:
    """Return ``value`` for a batch directive, in quotes where it needs them.

    Shell quoting does not hold in a directive: a line break would end it and the rest would be executed. An unquoted
    ``#`` or space cuts the value short, in silence.

    Raises:
        UnsafeValueError: it holds a control character, a backslash or both kinds of quotes, and would be
            read back changed.
    """
    text = _text(value)
    if _CONTROL.search(text):
        raise UnsafeValueError(f"control characters cannot stand in a batch directive: {text!r}")
    if "\\" in text or ('"' in text and "'" in text):
        raise UnsafeValueError(f"a backslash or both kinds of quotes cannot stand in a batch directive: {text!r}")
    if '"' in text:
        return f"'{text}'"
    return f'"{text}"' if re.search(r"[\s#']", text) else text


def directive_line(value: object) -> str:
    """Return a whole extra directive as the user wrote it.

    Raises:
        UnsafeValueError: it holds a control character.
    """
    text = _text(value)
    if _CONTROL.search(text):
        raise UnsafeValueError(f"control characters cannot stand in a batch directive: {text!r}")
    return text


def yaml_text(value: object) -> str:
    """Return ``value`` as a double-quoted YAML scalar.

    JSON's own escapes will not do: YAML has no surrogate pairs, and folds more kinds of line breaks.
    """
    return _CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", json.dumps(_text(value), ensure_ascii=False))


def _text(value: object) -> str:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number and not isinstance(value, (str, Path)):
        raise RenderError(f"{value!r} is no text, number or path: the template must decide how to write it")
    # repr keeps every digit, which %g does not.
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


@lru_cache(maxsize=4)
def template_environment(folder: Path) -> Environment:
    """Return the Jinja environment of the templates below ``folder``.

    Comments are ``{## ##}``, since Jinja's own delimiter begins bash's ``${#name}``.
    """
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        comment_start_string="{##",
        comment_end_string="##}",
        # Scripts are quoted by `sh` and `directive`; pages are escaped.
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),  # noqa: S701
    )
    environment.filters["sh"] = quote_word
    environment.filters["yaml"] = yaml_text
    environment.filters["directive"] = directive_value
    environment.filters["directive_line"] = directive_line
    return environment


def render_text(source: str, name: str, context: dict[str, Any]) -> str:
    """Return a template that lies elsewhere, rendered like the shipped ones, which it may include.

    Raises:
        RenderError: see render.
    """
    try:
        return template_environment(TEMPLATES).from_string(source).render(context)
    except TemplateError as error:
        raise RenderError(f"{name}: {error}") from error


def render(template: str, context: dict[str, Any], folder: Path = TEMPLATES) -> str:
    """Return ``template`` rendered with ``context``.

    Raises:
        RenderError: the template is missing or wrong, names something undefined, or a value is not safe there.
    """
    try:
        return template_environment(folder).get_template(template).render(context)
    except TemplateError as error:
        raise RenderError(f"templates/{template}: {error}") from error
