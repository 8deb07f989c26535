"""HTTP/1.1 responses as far as a load generator needs them: head, framing of the body, end.

Pure: bytes in, bytes out. Source: RFC 9112, sections 4 to 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_HEAD_BYTES = 64 * 1024
_CRLF = b"\r\n"
_END = b"\r\n\r\n"


class WireError(Exception):
    """The bytes are no HTTP/1.1 response; the words say what is wrong."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a response.

    Attributes:
        size: Bytes of the head with its empty line.
        length: Bytes of the body; None if it is chunked or ends with the connection.
        keeps_alive: Whether the connection may carry another request.
    """

    status: int
    size: int
    length: int | None
    is_chunked: bool
    keeps_alive: bool


def parse_head(data: bytes) -> Head | None:
    """Return the head that ``data`` begins with, or None if it is not whole yet.

    Raises:
        WireError: it is no head.
    """
    end = data.find(_END)
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise WireError(f"the head of the response is longer than {MAX_HEAD_BYTES} bytes")
        if not b"HTTP/1.".startswith(data[:7]):
            raise WireError(f"not HTTP/1.1: {data[:40]!r}")
        return None
    lines = data[:end].split(_CRLF)
    first = lines[0]
    if not first.startswith(b"HTTP/1.") or not first[9:12].isdigit():
        raise WireError(f"not HTTP/1.1: {first[:40]!r}")
    status = int(first[9:12])
    length: int | None = None
    is_chunked, keeps_alive = False, first[7:8] == b"1"
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        match name.lower():
            case b"content-length":
                if not value.strip().isdigit():
                    raise WireError(f"Content-Length is {value.strip()[:40]!r}")
                length = int(value)
            case b"transfer-encoding":
                is_chunked = value.strip().lower() == b"chunked"
            case b"connection":
                options = value.lower()
                keeps_alive = b"close" not in options and (keeps_alive or b"keep-alive" in options)
    if status < 200 or status in {204, 304}:
        length, is_chunked = 0, False
    if is_chunked:
        length = None
    return Head(status, end + len(_END), length, is_chunked, keeps_alive and (is_chunked or length is not None))


class Dechunker:
    """Takes the chunked coding off a body, piece by piece as it arrived."""

    def __init__(self) -> None:
        self._left = 0  # bytes of the present chunk, its final CRLF included
        self._line = b""  # a chunk's size line, as far as it has arrived
        self._in_trailer = False
        self.is_complete = False

    def feed(self, data: bytes) -> bytes:
        """Return the content in ``data``; what follows the body's end is an error.

        Raises:
            WireError: this is no chunked coding.
        """
        parts: list[bytes] = []
        at, size = 0, len(data)
        while at < size:
            if self._left:
                content = min(self._left - 2, size - at)
                if content > 0:
                    parts.append(data[at : at + content])
                taken = min(self._left, size - at)
                self._left -= taken
                at += taken
                continue
            if self.is_complete:
                raise WireError(f"bytes after the end of the body: {data[at : at + 40]!r}")
            end = data.find(b"\n", at)
            if end < 0:
                self._line += data[at:]
                if len(self._line) > MAX_HEAD_BYTES:
                    raise WireError("a chunk's size line does not end")
                break
            line, self._line = self._line + data[at:end], b""
            at = end + 1
            self._take_line(line.rstrip(b"\r"))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take_line(self, line: bytes) -> None:
        if self._in_trailer:
            self.is_complete = not line
            return
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            raise WireError(f"not a chunk's size: {line[:40]!r}") from None
        if size:
            self._left = size + 2
        else:
            self._in_trailer = True


def may_have_ended(pieces: Sequence[bytes]) -> bool:
    """Tell at little cost whether a chunked body may be complete: its last piece always ends in an empty line."""
    last = pieces[-1]
    if len(last) >= 4:
        return last.endswith(_END)
    return b"".join(pieces[-4:]).endswith(_END)
