"""Looking at metrics while a load runs: all targets from one thread, none of them in another's way."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Self
from urllib.parse import urlsplit

from client.errors import WorkloadError
from client.load.quantities import Reading, read
from client.load.wire import Dechunker, WireError, parse_head

PERIOD_S = 1.0
_LIMIT_S = 2.0
_GUESS_LIMIT_S = 0.5
_MAX_BYTES = 8 * 2**20
_USUAL_PORTS = (9100, 9400)  # node_exporter, dcgm-exporter


@dataclass(frozen=True)
class Target:
    """Where metrics are read.

    Attributes:
        url: With the path.
        token: Sent as ``Authorization: Bearer``. Never log this.
        ca_file: Certificates to trust instead of the system's.
        limit_s: How long the first answer may take.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    limit_s: float = _LIMIT_S


def exporter_at(url: str) -> Target:
    """Return the exporter at ``url``, whose path is /metrics if it has none.

    Raises:
        WorkloadError: this is no URL of an exporter.
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_usable = False
    if not is_usable or "@" in parts.netloc or not url.isprintable() or " " in url:
        raise WorkloadError("--exporter: give http:// or https://, host and port, as in http://node7:9100")
    return Target(url if parts.path.strip("/") else parts._replace(path="/metrics").geturl())


def usual_exporters(url: str) -> tuple[Target, ...]:
    """Return where exporters would be on the host of ``url``."""
    host = urlsplit(url).hostname or ""
    host = f"[{host}]" if ":" in host else host
    return tuple(Target(f"http://{host}:{port}/metrics", limit_s=_GUESS_LIMIT_S) for port in _USUAL_PORTS)


class Seen:
    """What one target has shown.

    Attributes:
        first, last: Readings; None for a target that did not answer.
        series: (seconds of the monotonic clock, value) of each look, by the names of Reading.now.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.first: Reading | None = None
        self.last: Reading | None = None
        self.series: dict[str, list[tuple[float, float]]] = {}

    def add(self, at_s: float, reading: Reading) -> None:
        """Keep one reading."""
        self.first, self.last = self.first or reading, reading
        for name, value in reading.now.items():
            self.series.setdefault(name, []).append((at_s, value))


class Watch:
    """Reads ``targets`` each second; a context manager around the load.

    The first readings are taken on entering, the last ones on leaving. Only those who answer the first time are asked
    again; one that is slow or dies later keeps what it has shown.
    """

    def __init__(self, targets: Iterable[Target]) -> None:
        self.seen: Sequence[Seen] = [Seen(target) for target in targets]
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._has_begun.wait(_LIMIT_S + PERIOD_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(2 * _LIMIT_S)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        try:
            await asyncio.gather(*(_look(seen, seen.target.limit_s) for seen in self.seen))
        finally:
            self._has_begun.set()
        await asyncio.gather(self._over.wait(), *(self._follow(seen) for seen in self.seen if seen.first))

    async def _follow(self, seen: Seen) -> None:
        is_over = False
        while not is_over:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), PERIOD_S)
            is_over = self._over.is_set()
            await _look(seen, _LIMIT_S)  # the last one begins after the load


async def _look(seen: Seen, limit_s: float) -> None:
    """Add what the target shows now; nothing if it shows nothing."""
    try:
        async with asyncio.timeout(limit_s):
            text = await _fetch(seen.target)
        reading = read(text)
    except (OSError, ValueError, WireError):
        return
    if reading is not None:
        seen.add(monotonic(), reading)


async def _fetch(target: Target) -> bytes:
    """Return the body of the answer.

    Raises:
        OSError: the target does not answer.
        WireError: it does not answer with a whole page.
        ValueError: its URL names no host that can be looked up.
    """
    parts = urlsplit(target.url)
    context = ssl.create_default_context(cafile=target.ca_file) if parts.scheme == "https" else None
    port = parts.port or (80 if context is None else 443)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=context)
    try:
        asked = parts._replace(scheme="", netloc="").geturl()
        lines = [f"GET {asked} HTTP/1.1", f"Host: {parts.netloc}", "Accept: text/plain", "Connection: close"]
        lines += [f"Authorization: Bearer {target.token}"] if target.token else []
        writer.write("\r\n".join([*lines, "", ""]).encode())
        answer = bytearray()
        head = None
        while piece := await reader.read(2**16):
            answer += piece
            if len(answer) > _MAX_BYTES:
                raise WireError(f"more than {_MAX_BYTES} bytes")
            head = head or parse_head(bytes(answer))
            if head is not None and head.length is not None and len(answer) >= head.size + head.length:
                break
    finally:
        writer.transport.abort()
    if head is None or head.status != 200:
        raise WireError(f"no answer 200: {bytes(answer[:40])!r}")
    body = bytes(answer[head.size :])
    if head.length is not None and len(body) < head.length:
        raise WireError(f"{len(body)} of {head.length} bytes")
    return Dechunker().feed(body) if head.is_chunked else body
