from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trainer.pushing import MetricsPusher
from trainer.records import EpochRecord

RECORD = EpochRecord("a/b", 1, 3, 10, 1.5, 1.0, 2.0, 0.25, 2.5, 0.2, 0.1, 100.0, 1e9)


class Gateway(ThreadingHTTPServer):
    """Remembers what was pushed."""

    def __init__(self) -> None:
        self.pushes: list[tuple[str, str, str]] = []
        super().__init__(("127.0.0.1", 0), GatewayHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class GatewayHandler(BaseHTTPRequestHandler):
    server: Gateway

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.pushes.append((self.command, self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        pass


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with Gateway() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_metrics_pusher_push_sends_gauges_in_the_trials_group(gateway: Gateway) -> None:
    pusher = MetricsPusher(gateway.url, "a/b")
    pusher.push(RECORD)
    pusher.close()
    [(method, path, body)] = gateway.pushes
    assert method == "PUT"
    assert path == "/metrics/job/orch_training/trial@base64/YS9i"
    lines = body.splitlines()
    assert "orch_training_val_accuracy 0.2" in lines
    assert "orch_training_time_seconds 1.5" in lines
    assert "orch_training_epoch_time_seconds 1.0" in lines
    assert "orch_training_images_per_s 100.0" in lines


def test_metrics_pusher_many_epochs_the_last_one_arrives(gateway: Gateway) -> None:
    pusher = MetricsPusher(gateway.url, "t1")
    for epoch in range(1, 50):
        pusher.push(replace(RECORD, epoch=epoch))
    pusher.close()
    assert "orch_training_epoch 49.0" in gateway.pushes[-1][2]


def test_metrics_pusher_dead_gateway_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with caplog.at_level(logging.WARNING):
            pusher = MetricsPusher(url, "t1")
            pusher.push(RECORD)
            pusher.close()
    assert f"epoch 1 could not be pushed to {url}" in caplog.text


def test_metrics_pusher_silent_gateway_delays_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        pusher = MetricsPusher(f"http://127.0.0.1:{silent.getsockname()[1]}", "t1", timeout_s=0.2)
        started = time.monotonic()
        for epoch in range(1, 20):
            pusher.push(replace(RECORD, epoch=epoch))
        assert time.monotonic() - started < 0.1
        pusher.close()
        assert time.monotonic() - started < 1.0
