"""Asks for the run's token on every route of vLLM; brought to the server as ``--middleware`` (vLLM's own ``--api-key``
guards /v1 only). Runs inside the engine: standard library only, and nothing of orch.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
App = Callable[[Scope, Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]], Awaitable[None]]
OPEN_PATHS = frozenset({"/health"})
METRICS = "/metrics"


class Guard:
    """An ASGI application around another: requests without a token are answered 401, web sockets are not accepted.

    The tokens come from the environment: VLLM_API_KEY opens everything, ORCH_SCRAPE_TOKEN the metrics.
    """

    def __init__(self, app: App) -> None:
        """Take the application to be guarded.

        Raises:
            RuntimeError: there is no token to ask for.
        """
        self._app = app
        self._api, self._scrape = os.environ.get("VLLM_API_KEY", ""), os.environ.get("ORCH_SCRAPE_TOKEN", "")
        if not self._api:
            raise RuntimeError("VLLM_API_KEY is not set: the server would be open to everybody")

    async def __call__(
        self, scope: Scope, receive: Callable[..., Awaitable[Any]], send: Callable[..., Awaitable[Any]]
    ) -> None:
        if scope["type"] == "lifespan" or self._is_allowed(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})

    def _is_allowed(self, scope: Scope) -> bool:
        path = scope.get("path", "")
        if scope["type"] == "http" and path in OPEN_PATHS:
            return True
        given = next((value for name, value in scope.get("headers", ()) if name == b"authorization"), b"")
        tokens = [self._api, *([self._scrape] if path == METRICS and self._scrape else [])]
        # No early end: the time taken must not tell which token was near.
        matches = [hmac.compare_digest(given, b"Bearer " + token.encode()) for token in tokens]
        return any(matches)
