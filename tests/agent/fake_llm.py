"""A small OpenAI-compatible server that answers what a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "fake-model"


@dataclass(frozen=True)
class Reply:
    """One answer: content of the message, or a whole body of another form."""

    content: str | None = ""
    status: int = 200
    finish_reason: str = "stop"
    body: bytes | None = None
    delay_s: float = 0.0


Script = Callable[[int, dict[str, Any]], Reply]


class FakeLlm:
    """Answers the requests of a test, in order, and keeps what it was asked."""

    def __init__(self, script: Script | list[Reply]) -> None:
        """Answer by ``script``: a function of index and body, or a list whose last item is repeated."""
        self._script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reply_to(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        index = len(self.bodies)
        self.bodies.append(body)
        self.headers.append(headers)
        if isinstance(self._script, list):
            return self._script[min(index, len(self._script) - 1)]
        return self._script(index, body)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                reply = fake.reply_to({"path": self.path, **body}, dict(self.headers))
                time.sleep(reply.delay_s)
                data = completion(reply, body) if reply.body is None else reply.body
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the test did not wait for it
                    self.send_response(reply.status)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


def completion(reply: Reply, body: dict[str, Any]) -> bytes:
    return json.dumps(
        {
            "model": MODEL,
            "choices": [
                {
                    "message": {"role": "assistant", "content": reply.content},
                    "finish_reason": reply.finish_reason,
                }
            ],
            "usage": {"prompt_tokens": len(json.dumps(body["messages"])) // 4, "completion_tokens": 40},
        }
    ).encode()
