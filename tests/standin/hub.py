"""A small Hugging Face hub on loopback: what huggingface_hub asks for to download a data set or a model."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK_BYTES = 1 << 18


@dataclass
class FakeHub:
    """A hub with one repository.

    Attributes:
        kind: ``datasets`` or ``models``.
        asked: The paths that it was asked for.
        sent: Bytes of each file that it gave.
        broken: A file that cannot be had.
        changed: Files that are given with another content than is listed.
        large_bytes: Files from this size on are known by their SHA-256, smaller ones by git's SHA-1.
        token: Without it files are refused as those of a gated repository.
        old_name: Another name of the repository, which it was renamed from.
        cuts: How often the connection is cut in the middle of a large file.
        pause_s: Between two chunks of a file.
        status: What everything is answered with, or None.
    """

    repository: str
    files: dict[str, bytes]
    kind: str = "datasets"
    url: str = ""
    asked: list[str] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    broken: str | None = None
    changed: dict[str, bytes] = field(default_factory=dict)
    large_bytes: int = 100_000
    token: str | None = None
    old_name: str | None = None
    cuts: int = 0
    pause_s: float = 0.0
    status: int | None = None
    lock: Lock = field(default_factory=Lock)

    @property
    def own(self) -> str:
        """Where the repository's files are below."""
        return f"/{self.repository}" if self.kind == "models" else f"/datasets/{self.repository}"

    def etag(self, name: str) -> str:
        """Return the name of a file's content."""
        data = self.files[name]
        if self.is_large(name):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()

    def is_large(self, name: str) -> bool:
        return len(self.files[name]) >= self.large_bytes

    def entry(self, name: str) -> dict[str, Any]:
        """Return a file as the tree lists it."""
        listed = {"type": "file", "path": name, "size": len(self.files[name]), "oid": self.etag(name)}
        if self.is_large(name):
            listed["lfs"] = {"oid": self.etag(name), "size": len(self.files[name]), "pointerSize": 134}
        return listed

    def answer(self, path: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Return status, head and body."""
        self.asked.append(path)
        if self.status is not None:
            return self.status, {}, b""
        if self.old_name is not None and self.old_name in path:
            return 307, {"Location": path.replace(self.old_name, self.repository)}, b""
        api = f"/api/{self.kind}/{self.repository}"
        if path in {f"{api}/revision/main", f"{api}/revision/{COMMIT}"}:
            siblings = [{"rfilename": name} for name in self.files]
            return 200, {}, json.dumps({"id": self.repository, "sha": COMMIT, "siblings": siblings}).encode()
        if path == f"{api}/tree/{COMMIT}":
            return 200, {}, json.dumps([self.entry(name) for name in self.files]).encode()
        if path.startswith(f"{api}/revision/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        start = f"{self.own}/resolve/{COMMIT}/"
        name = path.removeprefix(start)
        if path.startswith(start) and name in self.files:
            if name == self.broken:
                return 403, {"X-Error-Message": "not for you"}, b""
            if self.token is not None and token != f"Bearer {self.token}":
                return 401, {"X-Error-Code": "GatedRepo"}, b""
            head = {"X-Repo-Commit": COMMIT, "ETag": f'"{self.etag(name)}"', "Accept-Ranges": "bytes"}
            return 200, head, self.changed.get(name, self.files[name])
        return 404, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'

    def cuts_now(self, n_bytes: int) -> bool:
        """Tell whether this answer is to be cut in its middle."""
        with self.lock:
            is_cut = n_bytes >= self.large_bytes and self.cuts > 0
            self.cuts -= is_cut
            return is_cut

    def note(self, path: str, n_bytes: int) -> None:
        with self.lock:
            self.sent[path.rpartition("/")[2]] += n_bytes


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve ``hub``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            status, head, body = hub.answer(path, self.headers.get("Authorization"))
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            if wanted and status == 200:
                status, total, body = 206, len(body), body[int(wanted[1]) :]
                head["Content-Range"] = f"bytes {wanted[1]}-{total - 1}/{total}"
            self.send_response(status)
            for name, value in {**head, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.send_body(path, body, "ETag" in head)

        def send_body(self, path: str, body: bytes, is_file: bool) -> None:
            if is_file and hub.cuts_now(len(body)):
                body = body[: len(body) // 2]
                self.close_connection = True
            try:
                for start in range(0, len(body), CHUNK_BYTES):
                    self.wfile.write(body[start : start + CHUNK_BYTES])
                    if is_file:
                        hub.note(path, len(body[start : start + CHUNK_BYTES]))
                        time.sleep(hub.pause_s)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

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
