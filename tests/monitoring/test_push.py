"""Pushed metrics: the real Pushgateway and the real Prometheus, and what happens without them."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from monitoring.prometheus_api import PrometheusApi
from monitoring.push import PushedMetrics, make_metrics
from orchestrator.atomic import write_json
from orchestrator.errors import ServiceAnswerError, UnsafeValueError
from orchestrator.metrics import NoMetrics, Sample
from orchestrator.recipe import parse_recipe
from orchestrator.rundir import RunDir
from services.prometheus import config_text
from tests.builders import plan_run, recipe_document

PROGRAMS = {name: shutil.which(name) for name in ("prometheus", "prometheus-pushgateway", "promtool")}
RUN_ID = "0a1b2c3d"
GROUP = {"job": "orch_benchmark", "run": RUN_ID}


def need(*names: str) -> None:
    """Skip where a program is not installed, and say which."""
    missing = [name for name in names if PROGRAMS[name] is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: prometheus, prometheus-pushgateway)")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(url: str) -> None:
    """Wait for a server's readiness."""
    deadline = time.monotonic() + 30
    while True:
        try:
            if requests.get(f"{url}/-/ready", timeout=2).ok:
                return
        except requests.ConnectionError:
            pass
        assert time.monotonic() < deadline, url
        time.sleep(0.05)


def pushgateway_argv(root: Path) -> list[str]:
    """Return the program and arguments of a run's own script, without the address."""
    document = recipe_document("local", "vllm", monitoring={"binaries": {"pushgateway": "prometheus-pushgateway"}})
    words = shlex.split(plan_run(document, root).jobs["pushgateway"].script_text.partition(" -- ")[2])
    return [word for word in words if not word.startswith("--web.listen-address") and word.strip()]


class Monitored:
    """A run directory with a real Pushgateway and Prometheus."""

    def __init__(self, root: Path) -> None:
        self.run = RunDir(root)
        self.run.make()
        document = recipe_document("local", "vllm", monitoring={"scrape_interval_s": 0.5})
        self.config = self.run.config("prometheus.yml")
        self.config.write_text(config_text(plan_run(document, root).context))
        for name in ("api_token", "scrape_token"):
            (root / "secrets" / name).write_text("x")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.gateway = self.start("pushgateway", pushgateway_argv(root))
        targets = [{"targets": [self.gateway.removeprefix("http://")], "labels": {"job": "pushgateway"}}]
        write_json(self.run.targets / "pushgateway_targets_1.json", targets)
        self.prometheus = self.start(
            "prometheus", ["prometheus", f"--config.file={self.config}", f"--storage.tsdb.path={root}/data/prometheus"]
        )
        self.metrics = PushedMetrics(self.run, RUN_ID, 0.5)

    def start(self, name: str, argv: list[str]) -> str:
        """Start a server on a free port, publish its endpoint, return its URL."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with (self.run.logs / f"{name}.err").open("wb") as log:
            argv = [*argv, f"--web.listen-address=127.0.0.1:{port}"]
            self.processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        wait_until_ready(url)
        publish(self.run, name, url)
        return url

    def close(self) -> None:
        """End both servers."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(20)


def publish(run: RunDir, service: str, url: str) -> None:
    """Write an endpoint record."""
    port = int(url.rpartition(":")[2])
    record = {"service": service, "job_id": "1", "attempt": "a", "host": "127.0.0.1", "port": port, "url": url}
    write_json(run.endpoint(service), {**record, "started_at": 1.0, "ready_at": 2.0})


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    """Return a monitored run in a folder whose name Prometheus could take for a pattern."""
    need("prometheus", "prometheus-pushgateway")
    made = Monitored(tmp_path_factory.mktemp("it's") / "run [1]? ü")
    yield made
    made.close()


def groups(monitored: Monitored) -> list[dict[str, str]]:
    """Return the grouping keys that the Pushgateway holds."""
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(f"{monitored.gateway}/api/v1/metrics", timeout=5).json()
    return [group["labels"] for group in answer["data"]]


def tokens(value: float, client: str = "0") -> Sample:
    """Return one sample."""
    return Sample("tokens_per_second", value, "Output tokens per second.", {"model": "m", "client_id": client})


@pytest.mark.monitoring
def test_metrics_pushed_are_settled_returned_and_cleared_by_their_full_key(
    monitored: Monitored, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    trial = {"job": "orch_trial", "run": RUN_ID, "trial": "3 / ü"}
    other = {"job": "orch_trial", "run": "another", "trial": "1"}
    metrics, stranger = monitored.metrics, PushedMetrics(monitored.run, "another", 0.5)
    metrics.push(GROUP, [tokens(1.0), tokens(2.0, "1")])
    metrics.push(trial, [Sample("training_loss", 0.5, "Loss.")])
    stranger.push(other, [Sample("training_loss", 9.0, "Loss.")])
    metrics.push(GROUP, [tokens(5.0), tokens(7.0, "1")])
    settled = metrics.settle()
    assert (settled["seen"], settled["why"]) == (True, None)
    last = {
        (item["metric"]["__name__"], item["metric"].get("client_id")): float(item["values"][-1][1])
        for item in settled["series"]
    }
    assert last == {
        ("tokens_per_second", "0"): 5.0,
        ("tokens_per_second", "1"): 7.0,
        ("training_loss", None): 0.5,
    }
    assert {item["metric"]["job"] for item in settled["series"]} == {"orch_benchmark", "orch_trial"}
    assert len(groups(monitored)) == 3
    metrics.clear()
    assert groups(monitored) == [other]
    stranger.clear()
    assert groups(monitored) == []
    assert metrics.settle()["why"] == "nothing was pushed"


@pytest.mark.monitoring
def test_pushgateway_of_a_run_starts_empty_whatever_the_machine_kept(monitored: Monitored) -> None:
    assert "--persistence.file=" in pushgateway_argv(monitored.run.root)
    assert groups(monitored) == []


@pytest.mark.monitoring
def test_metrics_that_prometheus_never_scrapes_are_said_to_be_unseen(
    monitored: Monitored, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    run.make()
    gateway = monitored.start("pushgateway", pushgateway_argv(tmp_path))
    publish(monitored.run, "pushgateway", monitored.gateway)
    publish(run, "pushgateway", gateway)
    publish(run, "prometheus", monitored.prometheus)
    metrics = PushedMetrics(run, "unseen", -4.9)
    metrics.push({"job": "j", "run": "unseen"}, [tokens(1.0)])
    settled = metrics.settle()
    assert settled == {"seen": False, "why": "Prometheus has not seen the last push of 1 groups", "series": []}


@pytest.mark.monitoring
def test_prometheus_api_returns_values_and_refusals(monitored: Monitored) -> None:
    api = PrometheusApi(monitored.prometheus + "/")
    assert float(api.query("vector(42)")[0]["value"][1]) == 42
    now = time.time()
    assert len(api.query_range("vector(1)", now - 10, now, 5.0)[0]["values"]) == 3
    with pytest.raises(ServiceAnswerError, match="refused"):
        api.query("sum(")


@pytest.mark.monitoring
@pytest.mark.parametrize("interval_s", [0.5, 1.0, 15.0, 2.25])
@pytest.mark.parametrize("folder", ["/runs/plain", "/runs/it's [1] ? \\ ü 日本", '/runs/"quoted": {x}', "/runs/🚀 #1"])
def test_prometheus_configuration_in_any_folder_satisfies_promtool(
    folder: str, interval_s: float, tmp_path: Path
) -> None:
    need("promtool")
    document = recipe_document("local", "vllm", monitoring={"scrape_interval_s": interval_s})
    root = tmp_path / folder.removeprefix("/runs/")
    context = plan_run(document, root).context
    context.run.make()
    context.run.scrape_token.write_text("x")
    path = context.run.config("prometheus.yml")
    path.write_text(config_text(context), encoding="utf-8")
    done = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config["global"]["scrape_interval"] == f"{interval_s * 1000:.0f}ms"


def test_prometheus_configuration_below_a_star_is_refused() -> None:
    with pytest.raises(UnsafeValueError, match="--output-dir"):
        config_text(plan_run(recipe_document("slurm", "ollama", monitoring="off"), Path("/runs/a*b")).context)


class BadServer:
    """A server that answers with bytes that are no HTTP, or with nothing."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._process: Any = None

    def __enter__(self) -> BadServer:
        def serve() -> None:
            connection, _ = self._socket.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(self._answer)

        self._process = threading.Thread(target=serve)
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.join(10)
        self._socket.close()


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 400 Bad\r\n\r\n"]
)
def test_push_that_fails_is_logged_and_never_raised(
    answer: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path)
    run.make()
    with BadServer(answer) as server, caplog.at_level(logging.WARNING):
        publish(run, "pushgateway", server.url)
        metrics = PushedMetrics(run, RUN_ID, 1.0)
        metrics.push(GROUP, [tokens(1.0)])
    assert "could not be pushed" in caplog.text
    assert metrics.settle()["why"] == "nothing was pushed"


def test_push_without_a_gateway_is_nothing(tmp_path: Path) -> None:
    metrics = PushedMetrics(RunDir(tmp_path), RUN_ID, 1.0)
    metrics.push(GROUP, [tokens(1.0)])
    metrics.clear()
    assert metrics.settle() == {"seen": False, "why": "nothing was pushed", "series": []}


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]"])
def test_prometheus_api_without_a_usable_answer_is_a_service_answer_error(answer: bytes) -> None:
    with BadServer(answer) as server, pytest.raises(ServiceAnswerError, match="did not answer"):
        PrometheusApi(server.url).query("up")


def test_make_metrics_of_a_run_without_monitoring_pushes_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for mode, kind in (("off", NoMetrics), ("auto", PushedMetrics), ("required", PushedMetrics)):
        recipe = parse_recipe({"job": {"name": "x", "monitoring": mode}}, "recipe")
        assert type(make_metrics(run, RUN_ID, recipe)) is kind
    nothing = NoMetrics()
    nothing.push(GROUP, [tokens(1.0)])
    nothing.clear()
    assert json.dumps(nothing.settle()) == '{"seen": false, "why": "the run has no monitoring", "series": []}'
