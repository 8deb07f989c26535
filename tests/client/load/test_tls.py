"""The engine over TLS: a server's certificate is checked against the given authority, and never otherwise trusted."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from client.load.once import ask_once
from client.load.payloads import encode_request
from client.load.run import measure
from client.load.shapes import ClosedLoop, How, deal_out
from client.load.spec import ERROR_CLASSES, Prompt, Sampling, Server

WHY_NOT = "" if shutil.which("openssl") else "openssl is not installed: no certificate for the test's server"
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
ANSWER = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: [DONE]\n\n'


class Handler(BaseHTTPRequestHandler):
    """Answers with one token."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        """Keep quiet."""


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Return the URL of a server, and the file of its own authority."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    argv += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(argv, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://localhost:{server.server_port}", str(cert)
        server.shutdown()


def put(server: Server, folder: Path) -> list[str | None]:
    """Send three requests one after the other; return the class of each failure."""
    body = encode_request(server, Sampling("m", 4), Prompt("hello"))
    seen = measure(deal_out(server, (body,), ClosedLoop(1, requests=3), How(timeout_s=10), 1, folder), folder)
    assert seen.workers[0].opened == 1 or seen.notes
    return [None if row["error"] < 0 else ERROR_CLASSES[row["error"]] for row in seen.rows]


def test_server_with_a_known_certificate_is_measured_on_one_connection(
    certified: tuple[str, str], tmp_path: Path
) -> None:
    url, authority = certified
    assert put(Server(url, "openai-chat", None, authority), tmp_path) == [None] * 3


def test_server_with_an_unknown_certificate_is_a_connect_failure(certified: tuple[str, str], tmp_path: Path) -> None:
    assert put(Server(certified[0], "openai-chat"), tmp_path) == ["connect"] * 3


def test_single_request_over_tls_is_answered(certified: tuple[str, str]) -> None:
    server = Server(certified[0], "openai-chat", None, certified[1])
    answered = ask_once(server, encode_request(server, Sampling("m", 4), Prompt("hello")), 10.0)
    assert (answered.reply.failure, answered.reply.text) == (None, "x")
