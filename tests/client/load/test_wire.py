"""Heads and chunked bodies, however they are cut into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.load.wire import Dechunker, WireError, may_have_ended, parse_head

BODY = b"5\r\nhello\r\n7;name=value\r\n, world\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
CONTENT = b"hello, world0123456789"


def test_head_that_is_not_whole_is_waited_for() -> None:
    assert parse_head(b"HTTP/1.1 200 OK\r\nContent-Len") is None


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"Content-Length: 12\r\n", (12, False, True)),
        (b"transfer-encoding: Chunked\r\n", (None, True, True)),
        (b"Content-Length: 12\r\nTransfer-Encoding: chunked\r\n", (None, True, True)),
        (b"Content-Length: 12\r\nConnection: close\r\n", (12, False, False)),
        (b"", (None, False, False)),
    ],
)
def test_head_tells_how_the_body_ends(lines: bytes, expected: tuple[int | None, bool, bool]) -> None:
    head = parse_head(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\nrest")
    assert head is not None
    assert (head.length, head.is_chunked, head.keeps_alive) == expected


def test_http_1_0_keeps_a_connection_only_where_it_says_so() -> None:
    closing, keeping = (
        parse_head(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n" + line + b"\r\n")
        for line in (b"", b"Connection: keep-alive\r\n")
    )
    assert closing is not None
    assert keeping is not None
    assert (closing.keeps_alive, keeping.keeps_alive) == (False, True)


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"garbage", b"HTTP/1.1 2" * 9000]
)
def test_what_is_no_head_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        parse_head(data)


def test_length_that_is_no_number_is_refused() -> None:
    with pytest.raises(WireError, match="Content-Length"):
        parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\n")


@given(st.lists(st.integers(1, len(BODY) - 1), unique=True))
def test_chunked_body_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[start:end] for start, end in itertools.pairwise(edges)]
    dechunker, found, seen = Dechunker(), b"", []
    for number, piece in enumerate(pieces, 1):
        assert not dechunker.is_complete
        found += dechunker.feed(piece)
        seen.append(may_have_ended(pieces[:number]))
    assert (found, dechunker.is_complete, seen[-1]) == (CONTENT, True, True)


@pytest.mark.parametrize("body", [b"xyz\r\nhello", b"5\r\nhello\r\n0\r\n\r\nmore"])
def test_broken_chunks_are_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        Dechunker().feed(body)
