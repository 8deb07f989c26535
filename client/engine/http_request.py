"""One streamed completion over HTTP, timed and classified."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import aiohttp

from client.engine.spec import Api, ErrorClass, RequestRecord, RequestSpec
from client.engine.streams import STREAMS, CompletionStream

MAX_CONNECT_S = 30.0
MAX_ERROR_CHARS = 300
_ERROR_BODY_BYTES = 4096
_PATHS: dict[Api, str] = {"openai": "/v1/chat/completions", "ollama": "/api/generate"}


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request encoded once and sent many times. ``headers`` hold the token: never log this."""

    spec: RequestSpec
    url: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """A record and what is too big for it. ``timings_ns`` are Ollama's own durations, empty for other
    servers.
    """

    record: RequestRecord
    text: str
    reasoning: str
    timings_ns: dict[str, int]


@dataclass(slots=True)
class _Head:
    """What is known before the body: filled as it happens, so that a failure keeps what came before it."""

    status: int | None = None
    first_byte_at_s: float | None = None


def prepare(spec: RequestSpec) -> PreparedRequest:
    """Return ``spec`` as the bytes and headers that go over the wire."""
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if spec.api_token is not None:
        headers["Authorization"] = f"Bearer {spec.api_token}"
    payload = _openai_payload(spec) if spec.api == "openai" else _ollama_payload(spec)
    return PreparedRequest(spec, spec.base_url + _PATHS[spec.api], headers, json.dumps(payload).encode())


def open_session(spec: RequestSpec) -> aiohttp.ClientSession:
    """Return a session without a limit on connections, without cookies, and deaf to proxy variables."""
    timeout = aiohttp.ClientTimeout(
        total=spec.request_timeout_s, sock_connect=min(MAX_CONNECT_S, spec.request_timeout_s)
    )
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())


async def send_request(
    session: aiohttp.ClientSession,
    request: PreparedRequest,
    *,
    client_id: int = 0,
    index: int = 0,
    intended_at_s: float | None = None,
) -> Reply:
    """Send ``request``, read its stream to the end of the body and return what happened.

    Failures are told in the record. Times are absolute ``time.monotonic()``; arrival is stamped before
    parsing. Redirects are failures: the token goes to no other host.
    """
    stream = STREAMS[request.spec.api]()
    head = _Head()
    failure: tuple[ErrorClass, str] | None = None
    sent_at_s = time.monotonic()
    try:
        failure = await _exchange(session, request, stream, head)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        failure = ("connect", _describe(error))
    except TimeoutError:
        failure = ("timeout", f"no complete answer within {request.spec.request_timeout_s:g} s")
    except (aiohttp.ClientError, OSError) as error:
        failure = ("protocol", _describe(error))
    eof_at_s = time.monotonic()
    failure = stream.failure or failure or _emptiness(stream)
    record = RequestRecord(
        client_id=client_id,
        index=index,
        intended_at_s=sent_at_s if intended_at_s is None else intended_at_s,
        sent_at_s=sent_at_s,
        eof_at_s=eof_at_s,
        first_byte_at_s=head.first_byte_at_s,
        first_token_at_s=stream.first_token_at_s,
        last_token_at_s=stream.last_token_at_s,
        prompt_tokens=stream.prompt_tokens,
        completion_tokens=stream.chunks if stream.usage_tokens is None else stream.usage_tokens,
        tokens_source=_tokens_source(stream),
        chunks=stream.chunks,
        chunk_gaps_s=stream.chunk_gaps_s,
        finish_reason=stream.finish_reason,
        http_status=head.status,
        text_length=stream.text_length,
    )
    if failure is not None:
        record = replace(record, error_class=failure[0], error=redact(failure[1], request.spec.api_token))
    return Reply(record, "".join(stream.text_parts), "".join(stream.reasoning_parts), stream.timings_ns)


def redact(text: str, api_token: str | None) -> str:
    """Return ``text`` without the token, which a server may echo, and no longer than a log line should be."""
    if api_token:
        text = text.replace(api_token, "[token]")
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 1] + "…"


async def _exchange(
    session: aiohttp.ClientSession, request: PreparedRequest, stream: CompletionStream, head: _Head
) -> tuple[ErrorClass, str] | None:
    async with session.post(request.url, data=request.body, headers=request.headers, allow_redirects=False) as response:
        head.first_byte_at_s = time.monotonic()
        head.status = response.status
        if response.status == 200:
            async for data in response.content.iter_any():
                stream.feed(data, time.monotonic())
            stream.finish(time.monotonic())
            return None
        body = bytearray()
        async for data in response.content.iter_any():
            body += data[: _ERROR_BODY_BYTES - len(body)]
    return ("http_status", f"HTTP {head.status}: {body.decode('utf-8', 'replace').strip()}")


def _emptiness(stream: CompletionStream) -> tuple[ErrorClass, str] | None:
    if stream.chunks and stream.usage_tokens != 0:
        return None
    return ("zero_tokens", f"no text arrived; tokens according to the server: {stream.usage_tokens}")


def _tokens_source(stream: CompletionStream) -> Literal["usage", "chunks"] | None:
    if stream.usage_tokens is not None:
        return "usage"
    return "chunks" if stream.chunks else None


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _openai_payload(spec: RequestSpec) -> dict[str, Any]:
    messages = [{"role": "user", "content": spec.prompt}]
    if spec.system is not None:
        messages.insert(0, {"role": "system", "content": spec.system})
    payload: dict[str, Any] = {
        "model": spec.model,
        "messages": messages,
        "max_tokens": spec.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if spec.temperature is not None:
        payload["temperature"] = spec.temperature
    if spec.seed is not None:
        payload["seed"] = spec.seed
    if spec.ignore_eos:
        payload["ignore_eos"] = True
    return payload


def _ollama_payload(spec: RequestSpec) -> dict[str, Any]:
    options: dict[str, Any] = {"num_predict": spec.max_tokens}
    if spec.temperature is not None:
        options["temperature"] = spec.temperature
    if spec.seed is not None:
        options["seed"] = spec.seed
    payload: dict[str, Any] = {"model": spec.model, "prompt": spec.prompt, "stream": True, "options": options}
    if spec.system is not None:
        payload["system"] = spec.system
    return payload
