"""The mock whose timing is known, and loads on it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client.load.payloads import encode_request
from client.load.run import PROJECT, Measurement, measure
from client.load.spec import Api, Plan, Prompt, Sampling, Server


@dataclass
class Mock:
    """A running mock."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def truth(self) -> dict[str, Any]:
        """Return what was really sent since the last time."""
        with urllib.request.urlopen(f"{self.url}/truth", timeout=10) as answer:
            document: dict[str, Any] = json.load(answer)
        return document


@pytest.fixture(scope="session")
def mock() -> Iterator[Mock]:
    """A mock for the session."""
    with subprocess.Popen(
        [sys.executable, "-m", "client.load.mock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT
    ) as process:
        assert process.stdout is not None
        yield Mock(int(process.stdout.readline()))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


Ask = Callable[..., Measurement]


@pytest.fixture
def ask(mock: Mock, tmp_path: Path) -> Ask:
    """Put a load on the mock (or on ``url``) with one worker, a single request unless told otherwise."""

    def put(
        model: str,
        api: Api = "openai-chat",
        clients: int = 1,
        requests: int = 1,
        url: str | None = None,
        token: str | None = None,
        most: int | None = None,
        **changes: Any,
    ) -> Measurement:
        server = Server(url or mock.url, api, token)
        changes.setdefault("bodies", (encode_request(server, Sampling(model, 64), Prompt("hello")),))
        ids = tuple(range(clients)) if "arrivals_s" not in changes else ()
        plan = Plan(
            server=server,
            rows=str(tmp_path / "rows"),
            gaps=str(tmp_path / "gaps"),
            texts=str(tmp_path / "texts"),
            clients=ids,
            starts_s=(0.0,) * len(ids),
            requests_per_client=requests if ids and "conversations" not in changes else None,
            requests=most,
            **changes,
        )
        return measure([plan], tmp_path)

    return put
