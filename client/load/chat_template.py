"""The chat template of a model's directory, rendered as an engine does before it counts tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from client.errors import WorkloadError

Messages = Sequence[tuple[str, str]]
_FILES = ("tokenizer_config.json", "chat_template.jinja")


class ChatTemplate:
    """Turns messages into the one text that the model sees; the answer's opening is part of it."""

    def __init__(self, folder: Path) -> None:
        """Read the template of ``folder``.

        Raises:
            WorkloadError: there is none, or it is broken.
        """
        self._folder = folder
        config = _read_json(folder / "tokenizer_config.json")
        # Older directories keep some of these apart.
        names = {**_read_json(folder / "special_tokens_map.json"), **config}
        tokens = {name: _token(value) for name, value in names.items() if name.endswith("_token")}
        self._tokens = {name: value for name, value in tokens.items() if value is not None}
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            self._template = environment.from_string(_source(folder, config))
        except TemplateError as error:
            raise WorkloadError(f"{folder}: the chat template is broken: {error}") from error

    def render(self, messages: Messages) -> str:
        """Return the text of a conversation.

        Raises:
            WorkloadError: the template refuses it.
        """
        entries = [{"role": role, "content": content} for role, content in messages]
        try:
            return self._template.render(messages=entries, add_generation_prompt=True, **self._tokens)
        except (TemplateError, TypeError) as error:
            roles = ", ".join(role for role, _ in messages)
            raise WorkloadError(f"{self._folder}: the chat template refuses messages of {roles}: {error}") from error


def _source(folder: Path, config: dict[str, Any]) -> str:
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
    if not isinstance(found, str):
        raise WorkloadError(
            f"{folder}: has no chat template ({' or '.join(_FILES)}).\n"
            "Use a completions API for this model, or count tokens of the content alone."
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise WorkloadError(f"{path}: cannot be read: {error}") from error


def _token(value: object) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _to_json(value: object, indent: int | None = None) -> str:
    # Unlike jinja's own, without escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005 - templates show the local date, as transformers does
