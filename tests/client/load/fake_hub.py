"""A small Hugging Face hub on loopback: what huggingface_hub asks for to download a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def blob_id(data: bytes) -> str:
    """Return a name of the content, of the form that the hub gives."""
    return hashlib.sha256(data).hexdigest()[:40]


@dataclass
class FakeHub:
    """A hub with one data set; ``asked`` is what it was asked for.

    Attributes:
        broken: A file that cannot be had.
    """

    repository: str
    files: dict[str, bytes]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    broken: str | None = None

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, head and body."""
        self.asked.append(path)
        own = f"/api/datasets/{self.repository}"
        if path in {f"{own}/revision/main", f"{own}/revision/{COMMIT}"}:
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {}, json.dumps({"id": self.repository, "sha": COMMIT, "siblings": siblings}).encode()
        if path == f"{own}/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": blob_id(data)}
                for name, data in self.files.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        start = f"/datasets/{self.repository}/resolve/{COMMIT}/"
        name = path.removeprefix(start)
        if path.startswith(start) and name in self.files:
            if name == self.broken:
                return 403, {"X-Error-Message": "not for you"}, b""
            etag = f'"{blob_id(self.files[name])}"'
            return 200, {"X-Repo-Commit": COMMIT, "ETag": etag}, self.files[name]
        return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve ``hub``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, head, body = hub.answer(unquote(urlsplit(self.path).path))
            self.send_response(status)
            for name, value in {**head, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - as the base class wants it

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - as the base class names it

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
