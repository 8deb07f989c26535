"""What a server can do to a client: each is measured or classed exactly. Real sockets, a mock that knows the truth."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from client.load.run import Measurement
from client.load.spec import ERROR_CLASSES, Api
from tests.client.load.conftest import Ask

APIS: tuple[Api, ...] = ("openai-chat", "openai-completions", "ollama-generate", "ollama-chat")


def error_of(seen: Measurement) -> str | None:
    """Return the class of the only request's failure, None for success."""
    (row,) = seen.rows
    return None if row["error"] < 0 else ERROR_CLASSES[row["error"]]


def words_of(seen: Measurement) -> str:
    """Return the words of the only request's failure."""
    (note,) = seen.notes
    return str(note["error"])


@pytest.mark.parametrize("api", APIS)
def test_stream_of_each_api_is_timed_and_counted(ask: Ask, api: Api) -> None:
    seen = ask("mock:tokens=10,ttft=0.05,itl=0.01", api)
    (row,) = seen.rows
    assert error_of(seen) is None
    assert (row["chunks"], row["completion_tokens"], row["usage_tokens"], row["prompt_tokens"]) == (10, 10, 10, 7)
    assert row["first_content_s"] - row["sent_s"] == pytest.approx(0.05, abs=0.02)
    assert row["gap_count"] == 9
    assert np.median(seen.gaps) == pytest.approx(0.01, abs=0.004)
    assert row["sent_s"] <= row["first_byte_s"] <= row["first_content_s"] <= row["last_token_s"] <= row["eof_s"]


def test_chunk_with_only_a_role_is_no_token(ask: Ask) -> None:
    (row,) = ask("mock:role,tokens=4,ttft=0.1,itl=0.01").rows
    assert row["first_byte_s"] - row["sent_s"] < 0.05
    assert row["first_content_s"] - row["sent_s"] >= 0.1
    assert row["chunks"] == 4


def test_several_tokens_in_a_chunk_are_counted_by_the_servers_usage(ask: Ask) -> None:
    (row,) = ask("mock:tokens=16,per_chunk=4,itl=0.01").rows
    assert (row["chunks"], row["completion_tokens"], row["gap_count"]) == (4, 16, 3)


def test_reasoning_and_content_begin_at_their_own_times(ask: Ask) -> None:
    (row,) = ask("mock:tokens=6,reasoning=3,ttft=0.05,itl=0.02").rows
    assert row["first_reasoning_s"] - row["sent_s"] == pytest.approx(0.05, abs=0.02)
    assert row["first_content_s"] - row["first_reasoning_s"] == pytest.approx(0.06, abs=0.02)


def test_stream_without_usage_counts_its_chunks(ask: Ask) -> None:
    (row,) = ask("mock:tokens=5,nousage").rows
    assert (row["completion_tokens"], row["usage_tokens"]) == (5, -1)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("mock:tokens=9,itl=0.01,cut=3", "protocol", "the connection ended in the middle of the body"),
        ("mock:status=503", "http_status", "HTTP 503: told to fail"),
        ("mock:tokens=9,itl=0.01,error=2", "server_error", "told to fail"),
        ("mock:tokens=0", "zero_tokens", "no text arrived"),
        ("mock:tokens=9,itl=0.01,stall=2", "timeout", "no complete answer within 0.5 s"),
    ],
)
@pytest.mark.parametrize("api", ["openai-chat", "ollama-chat"])
def test_failures_have_their_class_and_words(ask: Ask, api: Api, model: str, error: str, words: str) -> None:
    seen = ask(model, api, timeout_s=0.5)
    assert (error_of(seen), words in words_of(seen)) == (error, True), words_of(seen)


def test_part_of_a_stream_that_was_cut_is_still_timed(ask: Ask) -> None:
    (row,) = ask("mock:tokens=9,ttft=0.05,itl=0.01,cut=3").rows
    assert (row["chunks"], row["gap_count"]) == (3, 2)
    assert row["first_content_s"] - row["sent_s"] == pytest.approx(0.05, abs=0.02)


def test_head_that_comes_byte_by_byte_is_read(ask: Ask) -> None:
    seen = ask("mock:slow_head,tokens=3,ttft=0.5,itl=0.01")
    assert error_of(seen) is None
    (row,) = seen.rows
    assert row["first_byte_s"] - row["sent_s"] < 0.2
    assert row["first_content_s"] - row["sent_s"] == pytest.approx(0.5, abs=0.05)


def test_body_that_ends_with_its_connection_is_whole(ask: Ask) -> None:
    seen = ask("mock:close,tokens=5,itl=0.01", requests=3)
    assert [row["error"] for row in seen.rows] == [-1, -1, -1]
    assert sum(worker.opened for worker in seen.workers) == 3


def test_connections_are_used_again(ask: Ask) -> None:
    seen = ask("mock:tokens=2", clients=5, requests=20)
    assert len(seen.rows) == 100
    assert sum(worker.opened for worker in seen.workers) <= 5


def test_nobody_listening_is_a_connect_failure(ask: Ask) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        seen = ask("mock:", url=f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert error_of(seen) == "connect"


def test_token_that_a_server_echoes_is_not_noted(ask: Ask, talker: Talker) -> None:
    talker.answers = [b"HTTP/1.1 401 No\r\nContent-Length: 20\r\n\r\nwrong key: sesame-42"]
    seen = ask("any", url=talker.url, token="sesame-42")
    assert words_of(seen) == "HTTP 401: wrong key: [token]"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", "not a chunk's size"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ndata: x", "after the end of the body"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\ndata: {x}\n\n\n\n", "data: {x}"[6:]),
        (b"", "the connection ended before the answer's head"),
    ],
)
def test_answers_that_are_none_are_protocol_failures(ask: Ask, talker: Talker, answer: bytes, words: str) -> None:
    talker.answers = [answer]
    seen = ask("any", url=talker.url)
    assert error_of(seen) == "protocol"
    assert words in words_of(seen)


def test_connection_that_was_closed_while_idle_is_opened_anew(ask: Ask, talker: Talker) -> None:
    event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n'
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(event), event)
    talker.answers = [whole, whole]
    seen = ask("any", requests=2, url=talker.url)
    assert [row["error"] for row in seen.rows] == [-1, -1]


class Talker:
    """Gives each connection one answer, and closes it."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(self.answers.pop(0))
                connection.shutdown(socket.SHUT_WR)
                connection.recv(65536)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def talker() -> Iterator[Talker]:
    """Return a server that says what it is told."""
    made = Talker()
    yield made
    made.close()
