"""How the fake server answers a completion: as vLLM or as Ollama would, or broken in a chosen way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Behaviour:
    """How a completion is answered. Without faults: ``n_tokens`` tokens after a role-only first chunk.

    ``reply`` makes the text from the request's JSON, for tests in which it matters; it is split at blanks.
    ``reset_after``, ``error_after`` and ``truncate_after`` take a number of token chunks.
    ``counts_prompt`` counts a token for each word of the prompt and four around them.
    ``echo_token`` puts the request's Authorization header into the error's text, as a careless proxy would.
    """

    n_tokens: int = 8
    tokens_per_chunk: int = 1
    reply: Callable[[dict[str, Any]], str] | None = None
    first_token_delay_s: float = 0.0
    token_delay_s: float = 0.0
    has_role_chunk: bool = True
    has_usage: bool = True
    counts_prompt: bool = False
    has_done: bool = True
    is_reasoning: bool = False
    status: int = 200
    echo_token: bool = False
    reset_after: int | None = None
    error_after: int | None = None
    truncate_after: int | None = None
    raw_line: str | None = None


class Writer:
    """Writes one completion; the subclasses know the format."""

    content_type = "application/json"

    def __init__(self, request: web.Request, payload: dict[str, Any], behaviour: Behaviour, model: str) -> None:
        self.request = request
        self.payload = payload
        self.behaviour = behaviour
        self.model = model
        words = [f"tok{index} " for index in range(behaviour.n_tokens)]
        if behaviour.reply is not None:
            words = [f"{word} " for word in behaviour.reply(payload).split(" ")]
            words[-1] = words[-1][:-1]
        self.words = words

    @property
    def pieces(self) -> list[str]:
        step = self.behaviour.tokens_per_chunk
        return ["".join(self.words[start : start + step]) for start in range(0, len(self.words), step)]

    async def whole(self) -> web.Response:
        await asyncio.sleep(self.behaviour.first_token_delay_s + self.behaviour.token_delay_s * len(self.words))
        return web.json_response(self.document("".join(self.words)))

    async def stream(self) -> web.StreamResponse:
        behaviour = self.behaviour
        response = web.StreamResponse(headers={"Content-Type": self.content_type})
        await response.prepare(self.request)
        if behaviour.has_role_chunk:
            await response.write(self.opening())
        await asyncio.sleep(behaviour.first_token_delay_s)
        for index, piece in enumerate(self.pieces):
            if index == behaviour.reset_after and self.request.transport is not None:
                self.request.transport.abort()
                return response
            if index == behaviour.truncate_after:
                return response
            if index == behaviour.error_after:
                await response.write(self.error("the engine died"))
                return response
            if index:
                await asyncio.sleep(behaviour.token_delay_s)
            await response.write(self.chunk(piece))
        if behaviour.raw_line is not None:
            await response.write(self.line(behaviour.raw_line))
        for last in self.closing():
            await response.write(last)
        return response

    def document(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def opening(self) -> bytes:
        raise NotImplementedError

    def chunk(self, text: str) -> bytes:
        raise NotImplementedError

    def error(self, message: str) -> bytes:
        raise NotImplementedError

    def closing(self) -> list[bytes]:
        raise NotImplementedError

    def line(self, text: str) -> bytes:
        raise NotImplementedError


class OpenAiWriter(Writer):
    """``/v1/chat/completions``, as vLLM writes it."""

    content_type = "text/event-stream; charset=utf-8"

    @property
    def usage(self) -> dict[str, int]:
        prompt = 11
        if self.behaviour.counts_prompt:
            prompt = 4 + sum(len(message["content"].split()) for message in self.payload["messages"])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": len(self.words),
            "total_tokens": prompt + len(self.words),
        }

    def document(self, text: str) -> dict[str, Any]:
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return {
            "id": "x",
            "object": "chat.completion",
            "model": self.model,
            "choices": [choice],
            "usage": self.usage,
        }

    def line(self, text: str) -> bytes:
        return f"data: {text}\n\n".encode()

    def opening(self) -> bytes:
        return self._event({"role": "assistant", "content": ""})

    def chunk(self, text: str) -> bytes:
        return self._event({"reasoning_content" if self.behaviour.is_reasoning else "content": text})

    def error(self, message: str) -> bytes:
        return self.line(json.dumps({"error": {"message": message, "type": "server_error", "code": 500}}))

    def closing(self) -> list[bytes]:
        events = [self._event({"content": ""}, "stop")]
        wants_usage = (self.payload.get("stream_options") or {}).get("include_usage")
        if self.behaviour.has_usage and wants_usage:
            events.append(
                self.line(json.dumps({"object": "chat.completion.chunk", "choices": [], "usage": self.usage}))
            )
        if self.behaviour.has_done:
            events.append(self.line("[DONE]"))
        return events

    def _event(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        chunk = {"id": "x", "object": "chat.completion.chunk", "model": self.model, "choices": [choice]}
        return self.line(json.dumps(chunk))


class OllamaWriter(Writer):
    """``/api/generate``."""

    content_type = "application/x-ndjson"

    def document(self, text: str) -> dict[str, Any]:
        counts = {"prompt_eval_count": 7, "eval_count": len(self.words)} if self.behaviour.has_usage else {}
        return {
            "model": self.model,
            "response": text,
            "done": True,
            "done_reason": "stop",
            "total_duration": 5_000_000,
            "eval_duration": 4_000_000,
            **counts,
        }

    def line(self, text: str) -> bytes:
        return f"{text}\n".encode()

    def opening(self) -> bytes:
        return b""

    def chunk(self, text: str) -> bytes:
        field_name = "thinking" if self.behaviour.is_reasoning else "response"
        return self.line(json.dumps({"model": self.model, "response": "", field_name: text, "done": False}))

    def error(self, message: str) -> bytes:
        return self.line(json.dumps({"error": message}))

    def closing(self) -> list[bytes]:
        return [self.line(json.dumps(self.document("")))] if self.behaviour.has_done else []
