from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.bench import Bench
from tests.agent.fake_llm import FakeLlm, Reply, Script


@pytest.fixture
def new_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    """Return a maker of run directories whose jobs are in a registry of their own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    benches: list[Bench] = []

    def make(hpo: dict[str, Any], how: dict[str, Any] | None = None) -> Bench:
        benches.append(Bench(tmp_path, hpo, how))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def new_llm() -> Iterator[Callable[[Script | list[Reply]], FakeLlm]]:
    """Return a starter of servers."""
    servers: list[FakeLlm] = []

    def start(script: Script | list[Reply]) -> FakeLlm:
        servers.append(FakeLlm(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
