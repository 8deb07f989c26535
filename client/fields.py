"""Strict reading of request bodies: every error at once, unknown fields with the nearest known one."""

from __future__ import annotations

import difflib
import json
import math
import re
from typing import Any

from client.errors import FieldError, InvalidInputError

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ID_ALLOWED = "1 to 64 of A-Z a-z 0-9 . _ -, the first a letter or a digit"
_MISSING = "required"


class DuplicateFieldError(ValueError):
    """A JSON object names a field twice."""


def parse_json(raw: bytes) -> Any:
    """Return the JSON document in ``raw``.

    Raises:
        InvalidInputError: not UTF-8 JSON, a field named twice in one object, or nested too deeply.
    """
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        message = f"not JSON: {error}" if isinstance(error, ValueError) else "nested too deeply"
        raise InvalidInputError([FieldError("body", message, "one JSON object, UTF-8")]) from error


def is_valid_id(value: str) -> bool:
    """Return whether ``value`` can name a benchmark, and so a folder."""
    return ID_PATTERN.fullmatch(value) is not None


class FieldReader:
    """Takes the fields of one object, gathers what is wrong, and raises it all in ``finish``.

    ``null`` stands for a field that is left out. A method whose field is wrong returns the default, or a
    stand-in of the right type that ``finish`` keeps from being used.
    """

    def __init__(self, body: object, known: tuple[str, ...]) -> None:
        self._errors: list[FieldError] = []
        self._body: dict[str, Any] = {}
        if not isinstance(body, dict):
            self.reject("body", f"is {_kind(body)}", "one JSON object")
            raise InvalidInputError(self._errors)
        for name, value in body.items():
            if name in known:
                self._body[name] = value
            else:
                nearest = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
                self.reject(_shown(name), f"unknown field{hint}", list(known))

    def reject(self, field: str, message: str, allowed: object) -> None:
        """Note that ``field`` is wrong."""
        self._errors.append(FieldError(field, message, allowed))

    def has(self, name: str) -> bool:
        """Return whether the field is there and not null."""
        return self._body.get(name) is not None

    def text(self, name: str, *, max_chars: int, is_label: bool = False) -> str | None:
        """Return a non-empty text of Unicode scalars, or None; a label is short, printable and has no blanks
        around.
        """
        value = self._body.get(name)
        if value is None:
            return None
        allowed = f"a text of 1 to {max_chars} characters" + (", printable" if is_label else "")
        if not isinstance(value, str):
            self.reject(name, f"is {_kind(value)}", allowed)
        elif not 1 <= len(value) <= max_chars:
            self.reject(name, f"has {len(value)} characters", allowed)
        elif any("\ud800" <= character <= "\udfff" for character in value):
            self.reject(name, "has half of a surrogate pair", allowed)
        elif is_label and (not value.isprintable() or value != value.strip()):
            self.reject(name, "has control characters or blanks around", allowed)
        else:
            return value
        return None

    def required_text(self, name: str, *, max_chars: int) -> str:
        """Return a text that must be there."""
        if not self.has(name):
            self.reject(name, _MISSING, f"a text of 1 to {max_chars} characters")
            return ""
        return self.text(name, max_chars=max_chars) or ""

    def integer(self, name: str, low: int, high: int, default: int) -> int:
        """Return a whole number within the bounds, both allowed."""
        value = self._body.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            self.reject(name, f"is {_kind(value)}", f"a whole number from {low} to {high}")
        elif not low <= value <= high:
            self.reject(name, f"is {_shown(value)}", f"a whole number from {low} to {high}")
        else:
            return value
        return default

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """Return a finite number within the bounds, both allowed."""
        value = self._body.get(name)
        if value is None:
            return default
        allowed = f"a number from {low:g} to {high:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.reject(name, f"is {_kind(value)}", allowed)
        elif not low <= value <= high or not math.isfinite(value):
            self.reject(name, f"is {_shown(value)}", allowed)
        else:
            return float(value)
        return default

    def numbers(self, name: str, low: float, high: float, most: int) -> tuple[float, ...] | None:
        """Return a number, or the different ones of a list of at most ``most``, in its order; None if left out."""
        value = self._body.get(name)
        if value is None:
            return None
        found = value if isinstance(value, list) else [value]
        is_usable = 0 < len(found) <= most and all(
            isinstance(one, int | float) and not isinstance(one, bool) and low <= one <= high for one in found
        )
        if not is_usable or len(set(found)) < len(found):
            allowed = f"a number from {low:g} to {high:g}, or a list of {most} different ones at most"
            self.reject(name, f"is {_shown(value)}", allowed)
            return None
        return tuple(float(one) for one in found)

    def texts(self, name: str, max_chars: int, most: int) -> tuple[str, ...]:
        """Return the texts of a list of at most ``most``; none if it is left out."""
        value = self._body.get(name)
        if value is None:
            return ()
        is_usable = isinstance(value, list) and len(value) <= most
        if not is_usable or not all(isinstance(one, str) and 1 <= len(one) <= max_chars for one in value):
            self.reject(name, f"is {_shown(value)}", f"a list of at most {most} texts of 1 to {max_chars} characters")
            return ()
        return tuple(value)

    def choice(self, name: str, allowed: tuple[str, ...]) -> str:
        """Return one of ``allowed``, the first of them if it is left out."""
        value = self._body.get(name)
        if value is None:
            return allowed[0]
        if value not in allowed:
            self.reject(name, f"is {_shown(value)}", list(allowed))
            return allowed[0]
        return str(value)

    def boolean(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._body.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.reject(name, f"is {_kind(value)}", [True, False])
            return default
        return value

    def identifier(self, name: str) -> str | None:
        """Return an id that is safe as a folder's name, or None."""
        value = self._body.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not is_valid_id(value):
            self.reject(name, f"is {_shown(value)}", ID_ALLOWED)
            return None
        return value

    def finish(self) -> None:
        """End the reading.

        Raises:
            InvalidInputError: something was wrong; carries all of it.
        """
        if self._errors:
            raise InvalidInputError(self._errors)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise DuplicateFieldError(f"named twice: {', '.join(map(_shown, twice))}")
    return document


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
