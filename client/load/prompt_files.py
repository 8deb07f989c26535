"""Prompts and chats out of files: what is asked, what was answered, and how long an answer may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.errors import WorkloadError
from client.load.records import Row, read_records

# The first of these that a record has is its prompt; a list of messages counts as a chat wherever it stands.
COLUMNS = ("messages", "conversations", "conversation", "prompt", "text", "question", "instruction", "input", "query")
_LIMITS = ("max_tokens", "output_tokens")
_ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "assistant": "assistant",
    "system": "system", "developer": "system", "tool": "tool",
}  # fmt: skip
Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Exchange:
    """One request, and the answer that was once given to it, if that is known."""

    messages: Messages
    answer: str | None


@dataclass(frozen=True)
class Sample:
    """A record of a data set.

    Attributes:
        where: The record's place, for errors.
        messages: As (role, content); a plain prompt is one message of the user.
        begins: Whether a request is made of the first turn (ShareGPT) rather than of the last (a chat).
        max_tokens: What the record says of it.
    """

    where: str
    messages: Messages
    begins: bool
    max_tokens: int | None

    def exchange(self) -> Exchange | None:
        """Return the request that is made of this record, or None if it asks nothing or nothing was answered."""
        asked = [number for number, (role, _) in enumerate(self.messages) if role == "user"]
        if not asked:
            return None
        number = asked[0] if self.begins else asked[-1]
        answers = [content for role, content in self.messages[number + 1 : number + 2] if role == "assistant"]
        if not self.begins:
            return Exchange(self.messages[: number + 1], answers[0] if answers else None)
        if not answers or not answers[0].strip() or not self.messages[number][1].strip():
            return None
        system = tuple(message for message in self.messages[:number] if message[0] == "system")
        return Exchange((*system, self.messages[number]), answers[0])


def read_samples(paths: Iterable[Path], column: str | None = None) -> list[Sample]:
    """Read prompts, chats and ShareGPT's conversations.

    A record has one of COLUMNS, and may have ``max_tokens`` (or ``output_tokens``). In ``conversations``, as in
    ShareGPT's files, the first question with its answer is taken; of other chats all up to the last question.

    Args:
        paths: Files as ``client.load.records`` reads them; taken in this order.
        column: The field with the prompt; None for the first of COLUMNS.

    Raises:
        WorkloadError: a record has no prompt, or something that is none; says where.
    """
    return list(_samples(paths, column))


def _samples(paths: Iterable[Path], column: str | None) -> Iterator[Sample]:
    for path in paths:
        for where, row in read_records(path):
            yield _sample(row, where, column)


def _sample(row: Row, where: str, column: str | None) -> Sample:
    name = column if column is not None else next((name for name in COLUMNS if row.get(name) is not None), None)
    if name is None or name not in row:
        wanted = f"'{column}'" if column is not None else f"any of {', '.join(COLUMNS)}"
        raise WorkloadError(
            f"{where}: has not {wanted}; its fields are {', '.join(sorted(row)) or 'none'}.\n"
            "Name the column of prompts."
        )
    value = row[name]
    if isinstance(value, str):
        if not value.strip():
            raise WorkloadError(f"{where}: {name} is empty")
        messages: Messages = (("user", value),)
    elif isinstance(value, list):
        messages = tuple(_message(entry, f"{where}: {name}[{number}]") for number, entry in enumerate(value))
    else:
        raise WorkloadError(f"{where}: {name} is neither a text nor a list of messages")
    begins = isinstance(value, list) and name.startswith("conversation")
    if not begins and not any(role == "user" for role, _ in messages):
        raise WorkloadError(f"{where}: {name} has no message of the user")
    return Sample(where, messages, begins, _limit(row, where))


def _message(entry: object, where: str) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise WorkloadError(f"{where}: is no message (an object with role and content, or with from and value)")
    role, content = entry.get("role", entry.get("from")), entry.get("content", entry.get("value"))
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise WorkloadError(f"{where}: its role is {role!r}.\nAllowed: {', '.join(_ROLES)}.")
    return known, _text(content, where)


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) != len(parts):
        raise WorkloadError(f"{where}: its content is no text, nor parts of type 'text'; other media cannot be sent")
    return "".join(known)


def _limit(row: Row, where: str) -> int | None:
    for name in _LIMITS:
        value = row.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, str) and value.isdecimal():  # as it comes out of CSV
            value = int(value)
        if type(value) is not int or value < 1:
            raise WorkloadError(f"{where}: {name} = {value!r} is no number of tokens from 1 on")
        return value
    return None
