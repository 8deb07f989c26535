from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from client.app import ServiceSettings, create_app
from client.bodies import QueryDefaults
from client.engine.spec import Api, LoadSpec, RequestSpec
from client.target import EndpointRecord, FixedTarget, Target
from tests.client.fake_server import FakeServer

API_TOKEN = "tok-5e81f0c7a2"
MakeSpec = Callable[..., LoadSpec]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that asks for the token."""
    with FakeServer(token=API_TOKEN) as server:
        yield server


@pytest.fixture
def make_spec(fake: FakeServer) -> MakeSpec:
    """Makes a load for the fake server."""

    def make(
        n_clients: int = 1,
        n_requests_per_client: int = 1,
        *,
        api: Api = "openai",
        api_token: str | None = API_TOKEN,
        base_url: str | None = None,
        request_timeout_s: float = 10.0,
        processes: int = 1,
        warmup_requests: int = 0,
        keep_text: bool = False,
    ) -> LoadSpec:
        request = RequestSpec(
            api=api,
            base_url=base_url or fake.url,
            model="fake-model",
            prompt="Say something",
            max_tokens=8,
            request_timeout_s=request_timeout_s,
            api_token=api_token,
        )
        return LoadSpec(request, n_clients, n_requests_per_client, processes, warmup_requests, keep_text)

    return make


@pytest.fixture
def settings(fake: FakeServer, tmp_path: Path) -> ServiceSettings:
    target = Target(fake.url, "openai", fake.model)
    return ServiceSettings(
        source=FixedTarget(target),
        output_dir=tmp_path / "benchmark",
        api_token=API_TOKEN,
        defaults=QueryDefaults(request_timeout_s=10.0),
    )


@pytest.fixture
def http(settings: ServiceSettings) -> Iterator[FlaskClient]:
    """A client of the service, whose LLM server is the fake."""
    app = create_app(settings)
    yield app.test_client()
    app.extensions["benchmarks"].close()


def write_endpoint(folder: Path, server: FakeServer, engine: str = "vllm") -> EndpointRecord:
    """Publish ``server`` as a supervisor does."""
    folder.mkdir(exist_ok=True)
    path = folder / "vllm.json"
    path.write_text(json.dumps({"url": server.url, "model": server.model, "engine": engine}))
    return EndpointRecord(path)
