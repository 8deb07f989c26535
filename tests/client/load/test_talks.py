"""Conversations under load: each turn carries the answer that the server gave to the one before."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from client.load.spec import Conversation, Sampling, Turn
from tests.client.load.conftest import Ask


class Parrot(BaseHTTPRequestHandler):
    """Answers with the number of messages, and remembers them."""

    protocol_version = "HTTP/1.1"
    heard: list[list[dict[str, str]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.heard.append(body["messages"])
        if body["messages"][-1]["content"] == "fail":
            self.send_error(500)
            return
        event = {"choices": [{"delta": {"content": f"answer {len(body['messages'])}"}}]}
        text = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Keep quiet."""


@pytest.fixture
def parrot() -> Iterator[tuple[str, list[list[dict[str, str]]]]]:
    """Return a server's URL, and what it has heard."""
    heard: list[list[dict[str, str]]] = []
    handler = type("Own", (Parrot,), {"heard": heard})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", heard
        server.shutdown()


def talk(*texts: str, think_s: float = 0.0) -> Conversation:
    """Return a conversation with a pause before each turn but the first."""
    return Conversation(tuple(Turn(text, think_s=think_s if number else 0.0) for number, text in enumerate(texts)))


def put(ask: Ask, url: str, *talks: Conversation, **changes: object) -> list[int]:
    """Put conversations on a server; return the index of each request in the order of sending."""
    seen = ask("m", url=url, conversations=talks, sampling=Sampling("m", 8), **changes)
    rows = seen.rows[seen.rows["phase"] == 1]
    return [int(row["index"]) for row in sorted(rows, key=lambda row: float(row["sent_s"]))]


def test_turns_carry_the_servers_own_answers(ask: Ask, parrot: tuple[str, list[list[dict[str, str]]]]) -> None:
    url, heard = parrot
    assert put(ask, url, talk("one", "two", "three")) == [0, 1, 2]
    assert [message["content"] for message in heard[-1]] == ["one", "answer 1", "two", "answer 3", "three"]
    assert [len(messages) for messages in heard] == [1, 3, 5]


def test_clients_take_the_next_conversation_when_one_has_ended_or_failed(
    ask: Ask, parrot: tuple[str, list[list[dict[str, str]]]]
) -> None:
    url, heard = parrot
    assert len(put(ask, url, talk("a", "fail", "never"), talk("b"), talk("c", "d"), clients=2)) == 5
    assert "never" not in [messages[-1]["content"] for messages in heard]


def test_pause_between_turns_counts_from_the_answer(ask: Ask, parrot: tuple[str, list[list[dict[str, str]]]]) -> None:
    seen = ask("m", url=parrot[0], conversations=(talk("a", "b", think_s=0.3),), sampling=Sampling("m", 8))
    first, second = seen.rows
    assert second["intended_s"] - first["eof_s"] == pytest.approx(0.3, abs=1e-6)
    assert 0 <= second["sent_s"] - second["intended_s"] < 0.1


def test_number_of_requests_ends_a_conversation_in_its_middle(
    ask: Ask, parrot: tuple[str, list[list[dict[str, str]]]]
) -> None:
    seen = ask("m", url=parrot[0], conversations=(talk("a", "b"),), sampling=Sampling("m", 8), most=5)
    assert len(seen.rows) == 5
