"""How far a growing file on another machine was read, and how one that was replaced is noticed."""

from __future__ import annotations

import os
from pathlib import Path

OVERLAP_BYTES = 256
_END_BYTES = 64 << 10


class GrowingFile:
    """One file that others append to; what is read of it begins with the last bytes that were read before.

    If they are not what they were, the file was cut or replaced, whatever its length and its inode are now.
    """

    def __init__(self, position: int = 0, before: bytes = b"") -> None:
        self.position, self._before = position, before

    @classmethod
    def copied_to(cls, path: Path) -> GrowingFile:
        """Return how far a file of lines was read whose copy here is ``path``; a torn last line is not counted.

        Raises:
            OSError: the copy cannot be read.
        """
        try:
            with path.open("rb") as file:
                start = max(0, file.seek(0, os.SEEK_END) - _END_BYTES)
                file.seek(start)
                end = file.read()
        except FileNotFoundError:
            return cls()
        whole = end[: end.rfind(b"\n") + 1]
        return cls(start + len(whole), whole[-OVERLAP_BYTES:]) if whole else cls()

    @property
    def start(self) -> int:
        """The byte from which on it is to be read."""
        return self.position - len(self._before)

    def news(self, data: bytes) -> bytes | None:
        """Return what is new in ``data``, the bytes from ``start`` on; None if this is not the file of before."""
        return data[len(self._before) :] if data.startswith(self._before) else None

    def advance(self, taken: bytes) -> None:
        """Go on behind ``taken``, which is new or a part of it."""
        self.position += len(taken)
        self._before = (self._before + taken)[-OVERLAP_BYTES:]

    def restart(self) -> None:
        """Read it from its beginning with the next look."""
        self.position, self._before = 0, b""
