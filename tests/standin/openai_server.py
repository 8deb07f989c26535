"""A light stand-in for vLLM's server, for tests of the life of a run: same command line, same routes, made-up text.

The real vLLM takes half a minute to start; faults are injected many times.
Environment: STANDIN_START_DELAY_S (before it listens), STANDIN_TOKEN_DELAY_S (between two chunks),
STANDIN_CRASH_AFTER_S, STANDIN_SILENCE (a file: while it exists, no question is answered that is not streamed).
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

WORDS = ("a", "supercomputer", "is", "used", "for", "weather", "climate", "and", "for", "training")


def streams(output_dir: Path, how: str) -> int:
    """Return how many streams stand-ins of the runs below ``output_dir`` have told of: ``begins`` or ``has ended``."""
    logs = output_dir.glob("**/logs/vllm*_*.out")
    return sum(log.read_text().count(f"stand-in: a stream {how}") for log in logs)


def value_for(schema: dict[str, Any], chance: random.Random) -> Any:
    """Return a value that fits a JSON schema of objects, numbers, texts and enums."""
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        return {name: value_for(inner, chance) for name, inner in schema["properties"].items()}
    if kind == "integer":
        return chance.randint(schema.get("minimum", 0), schema.get("maximum", 10))
    if kind == "number":
        return chance.uniform(schema.get("minimum", 0.0), schema.get("maximum", 1.0))
    if kind == "array":
        return [value_for(schema["items"], chance) for _ in range(schema.get("minItems", 1))]
    return "made up"[: schema.get("maxLength", 7)]


class Standin:
    """The routes."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._key = os.environ.get("VLLM_API_KEY", "")
        self._delay_s = float(os.environ.get("STANDIN_TOKEN_DELAY_S", "0.005"))
        self._silence = os.environ.get("STANDIN_SILENCE", "")
        self._chance = random.Random(os.getpid())
        self._requests = 0

    def app(self) -> web.Application:
        @web.middleware
        async def authorise(request: web.Request, handler: Any) -> web.StreamResponse:
            return await self._authorise(request, handler)

        app = web.Application(middlewares=[authorise])
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _authorise(self, request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if request.path.startswith("/v1") and not hmac.compare_digest(given, f"Bearer {self._key}"):
            return web.json_response({"error": "Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=f"# TYPE vllm:standin_requests counter\nvllm:standin_requests {self._requests}\n")

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self._model, "object": "model"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._requests += 1
        body = await request.json()
        answer_format = body.get("response_format") or {}
        if answer_format.get("type") == "json_schema":
            text = json.dumps(value_for(answer_format["json_schema"]["schema"], self._chance))
            pieces = [text]
        else:
            count = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
            pieces = [self._chance.choice(WORDS) + " " for _ in range(count)]
        usage = {"prompt_tokens": 11, "completion_tokens": len(pieces), "total_tokens": 11 + len(pieces)}
        if not body.get("stream"):
            while self._is_silent():  # noqa: ASYNC110 - another process removes the file
                await asyncio.sleep(0.1)
            message = {"role": "assistant", "content": "".join(pieces)}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return web.json_response({"id": "1", "model": self._model, "choices": [choice], "usage": usage})
        print("stand-in: a stream begins", flush=True)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._send(response, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for piece in pieces:
            await asyncio.sleep(self._delay_s)
            await self._send(response, {"choices": [{"index": 0, "delta": {"content": piece}}]})
        await self._send(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        await self._send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        print("stand-in: a stream has ended", flush=True)
        return response

    def _is_silent(self) -> bool:
        return bool(self._silence) and Path(self._silence).exists()

    async def _send(self, response: web.StreamResponse, document: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps({"id": "1", "model": self._model, **document}).encode() + b"\n\n")


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    for name in ("model", "served-model-name", "host"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    options, _ = parser.parse_known_args()
    print("stand-in: loading", options.model, flush=True)
    time.sleep(float(os.environ.get("STANDIN_START_DELAY_S", "0")))
    crash_after_s = os.environ.get("STANDIN_CRASH_AFTER_S")
    if crash_after_s is not None:
        time.sleep(float(crash_after_s))
        sys.exit("stand-in: CUDA error: out of memory (made up)")
    web.run_app(Standin(options.served_model_name).app(), host=options.host, port=options.port, print=None)


if __name__ == "__main__":
    main()
