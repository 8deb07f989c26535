"""A registry on this machine with one image, as far as a pull needs it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_OCI = "application/vnd.oci.image"
MANIFEST, CONFIG, LAYER = f"{_OCI}.manifest.v1+json", f"{_OCI}.config.v1+json", f"{_OCI}.layer.v1.tar+gzip"


@contextmanager
def registry(root: Path, name: str, tag: str) -> Iterator[str]:
    """Serve the file system in ``root`` as the image ``name:tag``, over HTTP; give ``host:port``.

    Source: the OCI distribution and image specifications.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(root, arcname=".")
    layer, diff_id = gzip.compress(packed.getvalue(), 1), _digest(packed.getvalue())
    fs = {"type": "layers", "diff_ids": [diff_id]}
    config = _json({"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/usr/bin"]}, "rootfs": fs})
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _described(config, CONFIG),
            "layers": [_described(layer, LAYER)],
        }
    )
    answers = {"/v2/": (b"{}", "application/json"), f"/v2/{name}/manifests/{tag}": (manifest, MANIFEST)}
    answers[f"/v2/{name}/manifests/{_digest(manifest)}"] = (manifest, MANIFEST)
    for blob in (config, layer):
        answers[f"/v2/{name}/blobs/{_digest(blob)}"] = (blob, "application/octet-stream")

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(is_head=True)

        def do_GET(self) -> None:
            self._answer(is_head=False)

        def _answer(self, is_head: bool) -> None:
            body, kind = answers.get(self.path, (b"", ""))
            self.send_response(200 if kind else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Docker-Content-Digest", _digest(body))
            self.end_headers()
            self.wfile.write(b"" if is_head else body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name in the base class
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _described(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}
