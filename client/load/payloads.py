"""Requests as the bytes that go over the wire, made before a measurement begins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from client.load.spec import PATHS, Prompt, Sampling, Server


def encode_request(server: Server, sampling: Sampling, prompt: Prompt) -> bytes:
    """Return one whole HTTP request, its head included. It holds the token: never log it."""
    body = msgspec.json.encode(_document(server, sampling, prompt))
    return _head(server, len(body)) + body


def encode_requests(server: Server, sampling: Sampling, prompts: Iterable[Prompt]) -> tuple[bytes, ...]:
    """Return the requests of ``prompts``; equal ones are one object."""
    known: dict[Prompt, bytes] = {}
    found = []
    for prompt in prompts:
        if prompt not in known:
            known[prompt] = encode_request(server, sampling, prompt)
        found.append(known[prompt])
    return tuple(found)


def _head(server: Server, length: int) -> bytes:
    parts = urlsplit(server.url)
    lines = [
        f"POST {parts.path.rstrip('/')}{PATHS[server.api]} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "Content-Type: application/json",
        "Accept: text/event-stream, application/x-ndjson",
        "Accept-Encoding: identity",
        "User-Agent: orch",
        f"Content-Length: {length}",
    ]
    if server.token is not None:
        lines.append(f"Authorization: Bearer {server.token}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _document(server: Server, sampling: Sampling, prompt: Prompt) -> dict[str, Any]:
    max_tokens = prompt.max_tokens or sampling.max_tokens
    document: dict[str, Any] = {"model": sampling.model, "stream": True}
    if server.api in {"openai-chat", "ollama-chat"}:
        messages = prompt.messages or (("user", prompt.text),)
        if sampling.system is not None:
            messages = (("system", sampling.system), *messages)
        document["messages"] = [{"role": role, "content": content} for role, content in messages]
    else:
        document["prompt"] = prompt.text
        if sampling.system is not None:
            document |= (
                {"system": sampling.system}
                if server.api == "ollama-generate"
                else {"prompt": f"{sampling.system}\n\n{prompt.text}"}
            )
    chosen = {"temperature": sampling.temperature, "seed": sampling.seed}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if server.api.startswith("ollama"):
        document["options"] = {"num_predict": max_tokens, **chosen}
        return document
    document |= {"max_tokens": max_tokens, "stream_options": {"include_usage": True}, **chosen}
    if sampling.ignore_eos:
        document["ignore_eos"] = True
    return document
