from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from client.app import ServiceSettings, create_app
from client.bodies import QueryDefaults
from client.target import EndpointRecord, FixedTarget, Target
from tests.client.fake_server import FakeServer

API_TOKEN = "tok-5e81f0c7a2"


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server that asks for the token."""
    with FakeServer(token=API_TOKEN) as server:
        yield server


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
