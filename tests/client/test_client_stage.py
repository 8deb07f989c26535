"""The benchmark stage on a real client service, while its LLM server is restarted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from client import stage as stage_module
from client.stage import RESTARTED, BenchmarkStage
from orchestrator.atomic import write_json
from orchestrator.errors import JobFailedError, ServiceAnswerError, StageError, UserError
from orchestrator.recipe.load import parse_recipe
from orchestrator.records import Endpoint
from orchestrator.rundir import RunDir
from orchestrator.service import PlanContext
from orchestrator.stage import StageContext
from tests.agent.bench import RecordingMetrics, RecordingProgress
from tests.client.conftest import API_TOKEN, write_endpoint
from tests.client.fake_server import Behaviour, FakeServer
from tests.client.test_client_server import ROOT, RunningService, serve

SLOW = Behaviour(n_tokens=4, first_token_delay_s=0.15)
REQUESTS = 10


class Scene:
    """One run with a client service; the LLM server is where the test says."""

    def __init__(self, folder: Path, service: RunningService) -> None:
        self.run, self.service = RunDir(folder), service
        self.server: Endpoint | None = None
        self.replicas: dict[str, SimpleNamespace] = {}
        self.metrics, self.progress = RecordingMetrics(), RecordingProgress()
        self.on_wait: Callable[[], None] = lambda: None
        self.job: dict[str, Any] = {
            "name": "x",
            "engine": {"kind": "vllm"},
            "service": {"n_clients": 1, "n_requests_per_client": REQUESTS, "request_timeout_s": 5},
            "benchmark": {"warmup_requests": 0, "max_tokens": 4, "timeout_s": 60},
        }

    def publish(self, server: FakeServer, attempt: str, job_id: str = "1") -> None:
        """Let a server be ready, for the client service and for the orchestrator."""
        write_endpoint(self.run.endpoints, server)
        self.server = Endpoint("vllm", job_id, attempt, "h", server.port, server.url, "fake-model", 0.0, 0.0)

    def replica(self, name: str, attempt: str) -> None:
        """Let a replica be ready, behind what is published."""
        fields = {"service": name, "job_id": "7", "attempt": attempt, "host": "h", "port": 1, "url": "http://h:1"}
        write_json(self.run.endpoint(name), {**fields, "ready_at": 0.0, "started_at": 0.0})
        self.replicas[name] = SimpleNamespace(
            name=name, planned=SimpleNamespace(role="server"), is_ready=True, record=SimpleNamespace(attempt=attempt)
        )

    def endpoint(self, name: str) -> Endpoint:
        if name == "client":
            return Endpoint("client", "2", "c", "h", 1, self.service.url, None, 0.0, 0.0)
        if self.server is None:
            raise ServiceAnswerError("the service 'vllm' is not ready")
        return self.server

    def wait(self, seconds: float) -> None:
        self.on_wait()
        time.sleep(min(seconds, 0.05))

    def measure(self) -> dict[str, Any]:
        """Run the stage and return its figures."""
        context = SimpleNamespace(
            recipe=parse_recipe({"job": self.job}, "recipe"),
            run=self.run,
            run_id="7f3a",
            metrics=self.metrics,
            progress=self.progress,
            jobs=SimpleNamespace(services=self.replicas.values()),
            endpoint=self.endpoint,
            fetch=lambda role, path, excludes: None,
            wait=self.wait,
        )
        return BenchmarkStage().run(cast("StageContext", context))

    def finished(self) -> int:
        """Return how many requests the last look has seen finished."""
        return self.progress.bars[-1][1] if self.progress.bars else 0


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(stage_module, "DEATH_IS_KNOWN_S", 0.0)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "stages").mkdir()
    (tmp_path / "secrets" / "api_token").write_text(API_TOKEN)
    with serve(tmp_path, ["-m", "client.server"], ROOT) as service:
        yield Scene(tmp_path, service)


@pytest.fixture
def new_server() -> Iterator[Callable[[], FakeServer]]:
    """Return a starter of LLM servers, which take their time."""
    running: list[FakeServer] = []

    def start() -> FakeServer:
        running.append(FakeServer(token=API_TOKEN, behaviour=SLOW).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__(None, None, None)


def hang_up(server: FakeServer) -> None:
    """Let every further request to ``server`` fail, as one to a server that has died."""
    server.behaviour = Behaviour(reset_after=0)


def test_benchmark_whose_server_is_restarted_is_measured_once_more_on_the_new_one(
    scene: Scene, new_server: Callable[[], FakeServer]
) -> None:
    old, new = new_server(), new_server()
    scene.publish(old, "a")

    def restart() -> None:
        if scene.finished() >= 2 and scene.server is not None and scene.server.attempt == "a":
            hang_up(old)
            scene.publish(new, "b")

    scene.on_wait = restart
    figures = scene.measure()
    assert (figures["id"], figures["valid"], figures["successful"]) == ("run-7f3a-2", True, REQUESTS)
    assert figures["server_url"] == new.url
    assert len(new.requests) == REQUESTS
    (earlier,) = figures["earlier"]
    assert (earlier["id"], earlier["valid"]) == ("run-7f3a", False)
    assert earlier["invalid_reasons"][-1] == RESTARTED
    assert 2 <= earlier["successful"] < REQUESTS
    assert Path(earlier["records"]).read_text().count("\n") >= 2
    assert any("measured once more" in text for text in scene.progress.said)
    assert [push["benchmark_requests_failed"] for _, push in scene.metrics.pushes] == [0], "what holds is pushed"


def test_resumed_benchmark_whose_server_was_restarted_stays_without_effect(
    scene: Scene, new_server: Callable[[], FakeServer]
) -> None:
    """The service calls it valid, as few requests failed; who knows better has been killed meanwhile."""
    old, new = new_server(), new_server()
    scene.job["benchmark"]["load"] = {"max_failed_share": 0.5}
    old.behaviour = new.behaviour = Behaviour(n_tokens=4, first_token_delay_s=0.3)
    old.script.append(Behaviour(status=500))
    scene.publish(old, "a")

    def restart() -> None:
        if json.loads(scene.service.call("/benchmark/run-7f3a")[1])["state"] == "done":
            scene.publish(new, "b", job_id="9")
        if any("measured once more" in text for text in scene.progress.said):
            raise KeyboardInterrupt

    scene.on_wait = restart
    with pytest.raises(KeyboardInterrupt):
        scene.measure()
    scene.on_wait = lambda: None
    figures = scene.measure()
    assert (figures["id"], figures["valid"], figures["server_url"]) == ("run-7f3a-2", True, new.url)
    assert [one["id"] for one in figures["earlier"]] == ["run-7f3a"]


def test_load_that_the_service_would_refuse_is_refused_before_anything_is_submitted(scene: Scene) -> None:
    scene.job["benchmark"]["load"] = {"concurrency": [2, 2]}
    context = SimpleNamespace(recipe=parse_recipe({"job": scene.job}, "recipe"))
    with pytest.raises(UserError, match=r"job\.benchmark\.load: concurrency: is \[2, 2\]"):
        BenchmarkStage().check(cast("PlanContext", context))
    scene.job["benchmark"]["load"] = {"rate": 5, "slo": "ttft<200"}
    context = SimpleNamespace(recipe=parse_recipe({"job": scene.job}, "recipe"))
    with pytest.raises(UserError, match=r"job\.benchmark\.load: .*ttft<200"):
        BenchmarkStage().check(cast("PlanContext", context))


def test_benchmark_of_a_server_that_is_missing_for_a_while_waits_for_it(
    scene: Scene, new_server: Callable[[], FakeServer]
) -> None:
    old, new = new_server(), new_server()
    scene.publish(old, "a")
    waits = 0

    def restart() -> None:
        nonlocal waits
        if scene.finished() >= 1 and scene.server is not None and scene.server.attempt == "a":
            hang_up(old)
            scene.server = None
        waits += scene.server is None
        if waits == 60:
            scene.publish(new, "b")

    scene.on_wait = restart
    figures = scene.measure()
    assert (figures["valid"], figures["successful"], len(figures["earlier"])) == (True, REQUESTS, 1)
    assert figures["earlier"][0]["failed"] > 0


def test_benchmark_whose_server_is_restarted_again_stays_invalid_and_is_not_measured_a_third_time(
    scene: Scene, new_server: Callable[[], FakeServer]
) -> None:
    servers = [new_server() for _ in range(3)]
    scene.publish(servers[0], "0")
    number = 0

    def restart() -> None:
        nonlocal number
        if number < 2 and len(servers[number].requests) >= 3:
            hang_up(servers[number])
            number += 1
            scene.publish(servers[number], str(number))

    scene.on_wait = restart
    figures = scene.measure()
    assert (figures["id"], figures["valid"]) == ("run-7f3a-2", False)
    assert RESTARTED in figures["invalid_reasons"]
    assert [one["id"] for one in figures["earlier"]] == ["run-7f3a"]
    assert servers[2].requests == []


def test_benchmark_watches_the_exporters_beside_its_server(scene: Scene, new_server: Callable[[], FakeServer]) -> None:
    server = new_server()
    scene.publish(server, "a", job_id="7")
    scene.run.targets.mkdir()
    registered = [{"targets": [f"127.0.0.1:{server.port}"], "labels": {"job": "node_exporter"}}]
    (scene.run.targets / "node_targets_7.json").write_text(json.dumps(registered))
    (scene.run.targets / "node_targets_8.json").write_text(json.dumps([{"targets": ["127.0.0.1:1"], "labels": {}}]))
    told = scene.measure()["about"]["server_side"]["exporters"]
    assert list(told) == [f"http://127.0.0.1:{server.port}/metrics"], "that of the server's job, answering or not"


def test_benchmark_in_which_a_replica_was_replaced_is_not_valid(
    scene: Scene, new_server: Callable[[], FakeServer]
) -> None:
    balancer = new_server()
    scene.job["service"]["replicas"] = 2
    scene.publish(balancer, "a")
    scene.replica("vllm-1", "b")
    scene.replica("vllm-2", "c")
    scene.on_wait = lambda: scene.replica("vllm-2", "d") if scene.finished() >= 2 else None
    figures = scene.measure()
    assert (figures["valid"], figures["successful"]) == (False, REQUESTS)
    assert figures["invalid_reasons"][-1] == "replicas came or went while they were measured: vllm-2"
    assert "earlier" not in figures


def test_benchmark_that_goes_on_after_a_handover_is_valid(scene: Scene, new_server: Callable[[], FakeServer]) -> None:
    old, successor = new_server(), new_server()
    scene.publish(old, "a")
    scene.on_wait = lambda: scene.publish(successor, "b", job_id="9") if scene.finished() >= 2 else None
    figures = scene.measure()
    assert (figures["valid"], figures["successful"], figures["server_url"]) == (True, REQUESTS, old.url)
    assert "earlier" not in figures
    assert successor.requests == []


def test_benchmark_with_failures_on_a_server_that_stays_is_not_repeated(
    scene: Scene, new_server: Callable[[], FakeServer]
) -> None:
    server = new_server()
    server.script.extend([Behaviour(status=500), Behaviour(status=500)])
    scene.publish(server, "a")
    figures = scene.measure()
    assert (figures["valid"], figures["failed"], figures["id"]) == (False, 2, "run-7f3a")
    assert RESTARTED not in figures["invalid_reasons"]
    assert "earlier" not in figures
    again = scene.measure()
    assert (again["id"], again["valid"]) == ("run-7f3a-2", True), "a resumed run does not take broken figures over"


def test_benchmark_whose_server_does_not_come_back_ends_with_its_timeout(
    scene: Scene, new_server: Callable[[], FakeServer]
) -> None:
    scene.job["benchmark"]["timeout_s"] = 3
    old = new_server()
    scene.publish(old, "a")

    def end() -> None:
        if scene.finished() >= 1:
            hang_up(old)
            scene.server = None

    scene.on_wait = end
    with pytest.raises(StageError, match=r"the service 'vllm' is not ready, within benchmark.timeout_s = 3 s"):
        scene.measure()


def test_benchmark_whose_servers_job_has_died_ends_with_that(
    scene: Scene, new_server: Callable[[], FakeServer]
) -> None:
    scene.publish(new_server(), "a")

    def die() -> None:
        raise JobFailedError("vllm", "ended: FAILED")

    scene.on_wait = die
    with pytest.raises(JobFailedError):
        scene.measure()
