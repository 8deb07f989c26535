"""What the template gets: a page of sections, each of callouts, facts, plots and tables, all of it ready to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

Tone = Literal["good", "bad", "warn", "plain"]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Badge:
    """A state and its tone."""

    text: str
    tone: Tone


@dataclass(frozen=True)
class Fact:
    """One value and what it is, with a remark where the value needs one."""

    label: str
    value: str
    remark: str | None = None


@dataclass(frozen=True)
class Callout:
    """A sentence that must not be overlooked, with reasons, settings or the end of a log where there are any."""

    tone: Tone
    text: str
    items: tuple[str, ...] = ()
    pairs: Pairs = ()
    code: str | None = None


@dataclass(frozen=True)
class Key:
    """One entry of a plot's legend: ``shape`` is a character, or ``line``, ``dash`` or ``thick``."""

    shape: str
    style: int | None
    text: str


@dataclass(frozen=True)
class Plot:
    """A picture, its title, its legend and what to know about it."""

    title: str
    svg: Markup
    keys: tuple[Key, ...] = ()
    caption: str | None = None


@dataclass(frozen=True)
class Cell:
    """One cell of a table; whatever is given is shown, in this order."""

    text: str = ""
    key: Key | None = None
    badge: Badge | None = None
    pairs: Pairs = ()
    cause: str | None = None
    remark: str | None = None
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption. ``is_wide`` ones become one block a row on a narrow screen, the others scroll."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_wide: bool = False
    remark: str | None = None


@dataclass(frozen=True)
class Section:
    """One part of the report; ``absence`` says in words why there is nothing in it."""

    anchor: str
    title: str
    badge: Badge | None = None
    absence: str | None = None
    callouts: tuple[Callout, ...] = ()
    facts: tuple[Fact, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()
    paragraphs: tuple[str, ...] = ()
    code: str | None = None


@dataclass(frozen=True)
class Page:
    """The whole report."""

    name: str
    badge: Badge
    facts: tuple[Fact, ...]
    callouts: tuple[Callout, ...]
    cards: tuple[Fact, ...]
    sections: tuple[Section, ...]
    footer: str


def number_cell(text: str) -> Cell:
    """Return a cell that is aligned as a number."""
    return Cell(text, is_number=True)
