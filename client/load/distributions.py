"""Distributions of lengths and pauses, written as ``512``, ``uniform:100-200`` or ``mean=512,std=64,min=32,max=2048``.

| text | values |
|---|---|
| ``512`` | always that |
| ``uniform:100-200`` | all of these with the same probability, both ends included |
| ``normal:mean=512,std=64`` (``normal:`` may be left out) | normal |
| ``lognormal:mean=512,std=300`` | lognormal; mean and standard deviation are of the values, not of their logarithms |
| ``file:PATH`` | drawn from the numbers in a file, one per line |

``min=`` and ``max=`` truncate a distribution: values beyond are drawn anew rather than moved to the limit, so its mean
is not ``mean`` any more. One uniform number is drawn per value (inverse transform), so that a longer workload begins
with the shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, StatisticsError

import numpy as np
import numpy.typing as npt

from client.errors import WorkloadError

Values = npt.NDArray[np.float64]
_STANDARD = NormalDist()
_GRAMMAR = (
    "Allowed: a number, uniform:LOW-HIGH, normal:mean=M,std=S[,min=A][,max=B], lognormal:mean=M,std=S[,min=A][,max=B] "
    "or file:PATH."
)


@dataclass(frozen=True)
class Distribution:
    """What values are drawn from.

    Attributes:
        text: As it was written.
        is_whole: Whether values are whole numbers.
        low, high: No value is outside of these.
        at: The value in (low, high) below which a share of all values lies, for an array of shares.
    """

    text: str
    is_whole: bool
    low: float
    high: float
    at: Callable[[Values], Values]

    def draw(self, generator: np.random.Generator, count: int) -> Values:
        """Return ``count`` values."""
        values = self.at(generator.random(count))
        return np.clip(np.rint(values) if self.is_whole else values, self.low, self.high)

    def draw_whole(self, generator: np.random.Generator, count: int) -> list[int]:
        """Return ``count`` values of a distribution of whole numbers."""
        return [int(value) for value in self.draw(generator, count)]


def parse_lengths(text: str, field: str) -> Distribution:
    """Return the distribution of a number of tokens, at least 1.

    Args:
        text: As in the table above.
        field: What it is for, to name it in errors.

    Raises:
        WorkloadError: it is none; says why, and what is allowed.
    """
    return _Parser(text, field, lowest=1.0, is_whole=True).parse()


def parse_seconds(text: str, field: str) -> Distribution:
    """Return the distribution of a pause in seconds, at least 0; see ``parse_lengths``."""
    return _Parser(text, field, lowest=0.0, is_whole=False).parse()


class _Parser:
    def __init__(self, text: str, field: str, lowest: float, is_whole: bool) -> None:
        self._text, self._field, self._lowest, self._is_whole = text.strip(), field, lowest, is_whole

    def parse(self) -> Distribution:
        try:
            return self._parse()
        except (OverflowError, StatisticsError) as error:
            raise self._error("its numbers are too large or too small") from error

    def _parse(self) -> Distribution:
        kind, colon, rest = self._text.partition(":")
        if not colon:
            kind, rest = ("normal", self._text) if "=" in self._text else ("constant", self._text)
        match kind:
            case "constant":
                value = self._number(rest)
                return self._make(value, value, lambda shares: np.full(len(shares), value))
            case "uniform":
                return self._uniform(rest)
            case "normal" | "lognormal":
                return self._normal(rest, is_log=kind == "lognormal")
            case "file":
                return self._file(Path(rest))
        raise self._error(f"'{kind}' is no distribution")

    def _uniform(self, rest: str) -> Distribution:
        first, dash, second = rest.partition("-")
        if not dash:
            raise self._error("a uniform distribution is LOW-HIGH")
        low, high = self._number(first), self._number(second)
        slack = self._slack
        return self._make(low, high, lambda shares: low - slack + shares * (high - low + 2 * slack))

    def _normal(self, rest: str, is_log: bool) -> Distribution:
        given = self._pairs(rest)
        if missing := [name for name in ("mean", "std") if name not in given]:
            raise self._error(f"{' and '.join(missing)} missing")
        mean, std = given["mean"], given["std"]
        low, high = given.get("min", self._lowest), given.get("max", math.inf)
        if std <= 0:
            raise self._error("std is not greater than 0; for one fixed value write the number alone")
        if is_log and mean <= 0:
            raise self._error("mean is not greater than 0")
        sigma = math.sqrt(math.log1p((std / mean) ** 2)) if is_log else std
        normal = NormalDist(math.log(mean) - sigma**2 / 2 if is_log else mean, sigma)

        def level(value: float) -> float:
            """Return the share of values below ``value``."""
            if is_log:
                return normal.cdf(math.log(value)) if 0 < value < math.inf else float(value > 0)
            return normal.cdf(value)

        bottom, top = level(low - self._slack), level(high + self._slack)
        if low <= high and top - bottom < 1e-9:
            raise self._error("next to no value lies between min and max")

        def at(shares: Values) -> Values:
            levels = np.clip(bottom + shares * (top - bottom), 5e-17, 1 - 1e-16)
            values = np.array([normal.inv_cdf(float(value)) for value in levels])
            return np.exp(values) if is_log else values

        return self._make(low, high, at)

    def _file(self, path: Path) -> Distribution:
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(f"the file cannot be read: {error}") from error
        values: list[float] = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    values.append(float(line))
                except ValueError:
                    raise self._error(f"line {number} of the file is no number: {line.strip()[:40]!r}") from None
        if not values:
            raise self._error("the file has no numbers")
        known = np.array(values)
        last = len(values) - 1
        return self._make(
            min(values),
            max(values),
            lambda shares: known[np.minimum((shares * len(known)).astype(np.int64), last)],
            *values,
        )

    @property
    def _slack(self) -> float:
        """How far beyond its limits a whole number is drawn from, before it is rounded."""
        return 0.5 if self._is_whole else 0.0

    def _make(self, low: float, high: float, at: Callable[[Values], Values], *also: float) -> Distribution:
        for value in (low, high, *also):
            if math.isnan(value) or value < self._lowest or math.isinf(low):
                raise self._error(f"{value:g} is less than {self._lowest:g}")
            if self._is_whole and not math.isinf(value) and value != int(value):
                raise self._error(f"{value:g} is no whole number")
        if low > high:
            raise self._error(f"{low:g} is more than {high:g}")
        return Distribution(self._text, self._is_whole, low, high, at)

    def _pairs(self, text: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in {"mean", "std", "min", "max"}:
                raise self._error(f"'{part.strip()}' is none of mean=, std=, min=, max=")
            if name in found:
                raise self._error(f"{name} is given twice")
            found[name] = self._number(value)
        return found

    def _number(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise self._error(f"'{text.strip()}' is no number") from None
        if not math.isfinite(value):
            raise self._error(f"'{text.strip()}' is not finite")
        return value

    def _error(self, why: str) -> WorkloadError:
        return WorkloadError(f"{self._field} = '{self._text}': {why}.\n{_GRAMMAR}")
