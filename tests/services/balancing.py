"""A balancer as a process, with members that can be killed, for tests against real sockets."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

PROJECT = Path(__file__).resolve().parents[2]
API, SCRAPE = "api-secret-5e81", "scrape-secret-77aa"
AUTHORIZED = {"Authorization": f"Bearer {API}"}


def wait_until(is_so: Callable[[], bool], timeout_s: float = 15.0) -> float:
    """Wait until a condition holds; return how long that took, in seconds."""
    began_s = time.monotonic()
    while not is_so():
        assert time.monotonic() - began_s < timeout_s, "it did not become so in time"
        time.sleep(0.02)
    return time.monotonic() - began_s


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Replica:
    """A stand-in for a vLLM server, as a process of its own.

    ``silence`` is a file: while it exists, no question is answered that is not streamed.
    """

    def __init__(self, folder: Path, name: str, token_delay_s: float = 0.005) -> None:
        self.name, self.port, self.silence = name, free_port(), folder / f"{name}.silence"
        self._token_delay_s = token_delay_s
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, the first time or anew on the same port, and wait until it listens."""
        argv = [sys.executable, "-m", "tests.standin.openai_server", "--model", "m", "--served-model-name", self.name]
        environment = {
            **os.environ,
            "VLLM_API_KEY": API,
            "STANDIN_TOKEN_DELAY_S": str(self._token_delay_s),
            "STANDIN_SILENCE": str(self.silence),
        }
        self._process = subprocess.Popen(
            [*argv, "--host", "127.0.0.1", "--port", str(self.port)], cwd=PROJECT, env=environment
        )
        wait_until(self._is_listening)
        return self

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def asked(self) -> int:
        """Return how many questions it has seen."""
        text = requests.get(f"http://127.0.0.1:{self.port}/metrics", timeout=5).text
        return int(text.split()[-1])

    def signal(self, number: int) -> None:
        """Send it a signal; after SIGKILL it is gone."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(10)

    def stop(self) -> None:
        """End it if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)


class Balancer:
    """The program under test, its run folder, and what its metrics say."""

    def __init__(self, folder: Path, policy: str = "least_outstanding", host: str = "127.0.0.1") -> None:
        self.endpoints, self.status, self.log = folder / "endpoints", folder / "status", folder / "balancer.log"
        self.host, self.port = host, free_port(host)
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self._folder, self._policy = folder, policy
        self._attempts = 0

    def __enter__(self) -> Self:
        self.endpoints.mkdir()
        self.status.mkdir()
        (self._folder / "api").write_text(f"{API}\n")
        (self._folder / "scrape").write_text(SCRAPE)
        argv = [sys.executable, "-m", "services.balancer", "--service", "vllm"]
        argv += ["--endpoints-dir", str(self.endpoints), "--status-dir", str(self.status)]
        argv += ["--bind", self.host, "--port", str(self.port), "--policy", self._policy, "--threads", "2"]
        argv += ["--api-token-file", str(self._folder / "api"), "--scrape-token-file", str(self._folder / "scrape")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, cwd=PROJECT, stdout=log, stderr=log)
        wait_until(self._is_listening)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)

    def _is_listening(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def publish(self, name: str, port: int) -> None:
        """Write an endpoint record as a supervisor does, and wait until the member is there."""
        self._attempts += 1
        record = {"ip": "127.0.0.1", "port": port, "attempt": f"{self._attempts:016x}", "token": f"orch-{name}"}
        temporary = self.endpoints / f".{name}.json.tmp"
        temporary.write_text(json.dumps(record))
        temporary.rename(self.endpoints / f"{name}.json")
        member = f"{name}.{record['attempt']}"
        wait_until(lambda: member in self.members())

    def beat(self, name: str) -> None:
        """Write a sign of life of a member's job as a supervisor does."""
        temporary = self.status / f".{name}.tmp"
        temporary.write_text(json.dumps({"attempt": "x", "at": time.time()}))
        temporary.rename(self.status / f"orch-{name}.heartbeat")

    def withdraw(self, name: str) -> None:
        """Remove a record, and wait until its member takes no more requests."""
        (self.endpoints / f"{name}.json").unlink()
        wait_until(lambda: all(not member.startswith(f"{name}.") for member in self.members()))

    def metric(self, name: str, **labels: str) -> dict[str, float]:
        """Return a metric's values by server; of those only that have ``labels``."""
        answer = requests.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {SCRAPE}"}, timeout=5)
        found = {}
        for given, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", answer.text, re.MULTILINE):
            of = dict(re.findall(r'(\w+)="([^"]*)"', given))
            if labels.items() <= of.items():
                found[of.get("server", "")] = float(value)
        return found

    def members(self) -> set[str]:
        """Return the names of the members that take requests."""
        return {name for name, value in self.metric("haproxy_server_status", state="UP").items() if value}

    def ask(self, prompt: str = "hello", stream: bool = False, tokens: int = 4, **options: Any) -> requests.Response:
        """Ask a question."""
        messages = [{"role": "user", "content": prompt}]
        document = {"model": "m", "messages": messages, "max_tokens": tokens, "stream": stream}
        headers = {**AUTHORIZED, **options.pop("headers", {})}
        return requests.post(
            f"{self.url}/v1/chat/completions", json=document, headers=headers, stream=stream, timeout=30, **options
        )

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection to it."""
        return http.client.HTTPConnection(self.host, self.port, timeout=30)
