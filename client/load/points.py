"""Measurements of a sweep on disk as soon as they are made: one that was cut off goes on where it was."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from client.errors import StorageError
from client.load.export import read_parquet, write_parquet, write_private
from client.load.run import Measurement

_SERVER = "server.json"
_REQUESTS = "requests.parquet"
logger = logging.getLogger(__name__)


class _Server(msgspec.Struct):
    api: str
    model: str
    told: dict[str, Any]


@dataclass(frozen=True)
class Points:
    """Where they are.

    Attributes:
        folder: Of this benchmark.
        earlier: Of benchmarks of the same loads that were cut off: what they had measured is taken over.
    """

    folder: Path
    earlier: tuple[Path, ...] = ()

    def keep(self, number: int, load: float, seen: Measurement, asked: tuple[str, str], told: dict[str, Any]) -> None:
        """Write one measurement.

        Args:
            number: Which of the sweep it is, from 0.
            load: What was measured.
            seen: The measurement.
            asked: API and model.
            told: What the server said of itself meanwhile.

        Raises:
            StorageError: it cannot be written.
        """
        point = _place(self.folder, number, load)
        try:
            point.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {point}: {error.strerror}") from error
        write_private(point / _SERVER, msgspec.json.encode(_Server(*asked, told)))
        write_parquet(seen, point / _REQUESTS)  # last: with it the point is whole

    def find(self, number: int, load: float, asked: tuple[str, str]) -> tuple[Measurement, dict[str, Any]] | None:
        """Return an earlier measurement of this load, with what the server said, if there is one without failures.

        One that cannot be read is none.
        """
        for folder in self.earlier:
            point = _place(folder, number, load)
            if not (point / _REQUESTS).exists():
                continue
            try:
                server = msgspec.json.decode((point / _SERVER).read_bytes(), type=_Server)
                seen = read_parquet(point / _REQUESTS)
            except (OSError, msgspec.DecodeError, StorageError) as error:
                logger.warning("%s is measured again: %s", point, error)
                continue
            if (server.api, server.model) == asked and not (seen.rows["error"] >= 0).any():
                return seen, server.told
        return None


def _place(folder: Path, number: int, load: float) -> Path:
    return folder / "points" / f"{number:03d}_{load:g}"
