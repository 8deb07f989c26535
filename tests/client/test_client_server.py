from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from client.errors import SettingsError
from client.server import build_parser, settings_from
from tests.client.conftest import API_TOKEN, write_endpoint
from tests.client.fake_server import Behaviour, FakeServer

ROOT = Path(__file__).resolve().parents[2]
BODY = {"n_clients": 2, "n_requests_per_client": 2, "prompt": "p", "id": "run-1"}


class RunningService:
    def __init__(self, process: subprocess.Popen[str], log_path: Path) -> None:
        self.process = process
        self.log_path = log_path
        self.url = ""

    def wait_until_listening(self) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"listening on (\S+) port (\d+)", self.log_path.read_text())
            if found:
                self.url = f"http://{found[1]}:{found[2]}"
                return
            time.sleep(0.05)
        raise AssertionError(self.log_path.read_text())

    def call(self, path: str, body: object = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()


@contextmanager
def serve(tmp_path: Path, program: list[str], cwd: Path) -> Iterator[RunningService]:
    token_path = tmp_path / "api_token"
    token_path.write_text(API_TOKEN + "\n")
    log_path = tmp_path / "service.err"
    argv = [sys.executable, *program, "--bind", "127.0.0.1", "--port", "0"]
    argv += ["--endpoints-dir", str(tmp_path / "endpoints"), "--server-service", "vllm"]
    argv += ["--output-dir", str(tmp_path / "benchmark"), "--api-token-file", str(token_path)]
    with log_path.open("w") as log:
        process = subprocess.Popen(argv, cwd=cwd, stderr=log, text=True, start_new_session=True)
    service = RunningService(process, log_path)
    try:
        service.wait_until_listening()
        yield service
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("by_path", [True, False])
def test_server_started_either_way_runs_a_benchmark_and_hides_the_token(
    tmp_path: Path, fake: FakeServer, by_path: bool
) -> None:
    write_endpoint(tmp_path / "endpoints", fake)
    fake.behaviour = Behaviour(first_token_delay_s=0.2)
    program = [str(ROOT / "client" / "server.py")] if by_path else ["-m", "client.server"]
    with serve(tmp_path, program, tmp_path if by_path else ROOT) as service:
        status, health = service.call("/health")
        assert (status, json.loads(health)["server_ready"]) == (200, True)
        assert service.call("/benchmark", {**BODY, "background": True})[0] == 202
        argv = []
        for _ in range(10):
            argv += [argv_of(pid) for pid in family_of(service.process.pid)]
            time.sleep(0.05)
        status, answer = service.call("/benchmark", BODY)
        assert (status, json.loads(answer)["successful"]) == (200, 4)
        assert fake.requests[0].authorization == f"Bearer {API_TOKEN}"
        assert any("client.load.worker" in line for line in argv)
        assert API_TOKEN not in " ".join(argv) + health + answer + service.log_path.read_text()
        assert "Traceback" not in service.log_path.read_text()


def test_server_term_during_a_benchmark_cancels_it_and_leaves_nothing_behind(tmp_path: Path, fake: FakeServer) -> None:
    write_endpoint(tmp_path / "endpoints", fake)
    fake.behaviour = Behaviour(first_token_delay_s=60)
    with serve(tmp_path, ["-m", "client.server"], ROOT) as service:
        service.call("/benchmark", {**BODY, "background": True})
        deadline = time.monotonic() + 10
        while fake.in_flight < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        family = family_of(service.process.pid)
        assert len(family) >= 2
        # The whole group, as a scheduler does.
        os.killpg(service.process.pid, signal.SIGTERM)
        assert service.process.wait(10) == 0
        assert all_end(family)
        summary = json.loads((tmp_path / "benchmark" / "run-1" / "summary.json").read_text())
        assert summary["state"] == "cancelled"
        assert "Traceback" not in service.log_path.read_text()


def test_server_killed_workers_end_too(tmp_path: Path, fake: FakeServer) -> None:
    write_endpoint(tmp_path / "endpoints", fake)
    fake.behaviour = Behaviour(first_token_delay_s=60)
    with serve(tmp_path, ["-m", "client.server"], ROOT) as service:
        service.call("/benchmark", {**BODY, "background": True})
        deadline = time.monotonic() + 10
        while fake.in_flight < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        workers = [pid for pid in family_of(service.process.pid) if pid != service.process.pid]
        service.process.kill()
        assert workers
        assert all_end(workers)


def test_server_taken_port_is_exit_code_2(fake: FakeServer, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "client.server", "--port", str(fake.port), "--server-url", fake.url]
    ended = subprocess.run([*argv, "--output-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {fake.port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def settings_for(*argv: str, **environ: str) -> object:
    return settings_from(build_parser().parse_args(["--output-dir", "out", *argv]), environ)


def test_settings_no_server_named_is_an_error() -> None:
    with pytest.raises(SettingsError, match="--endpoints-dir or --server-url"):
        settings_for()
    assert "11434" in repr(settings_for(OLLAMA_HOST="10.0.0.7"))
    assert "10.0.0.7" not in repr(settings_for("--server-url", "http://h:1", OLLAMA_HOST="10.0.0.7"))


def test_settings_token_from_file_or_environment_is_not_in_the_repr(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    from_file = settings_for("--server-url", "http://h:1", "--api-token-file", str(path), ORCH_API_TOKEN="env-tok")
    from_environment = settings_for("--server-url", "http://h:1", ORCH_API_TOKEN="env-tok")
    assert getattr(from_file, "api_token", None) == "from-file"
    assert getattr(from_environment, "api_token", None) == "env-tok"
    assert "from-file" not in repr(from_file)
    assert "env-tok" not in repr(from_environment)


@pytest.mark.parametrize("content", ["", "a b", "a\nb", "ä"])
def test_settings_odd_token_file_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(SettingsError, match="does not hold a token"):
        settings_for("--server-url", "http://h:1", "--api-token-file", str(path))
    with pytest.raises(SettingsError, match="cannot read the token file"):
        settings_for("--server-url", "http://h:1", "--api-token-file", str(tmp_path / "none"))


def family_of(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) != pid:
            children += [int(child) for child in (task / "children").read_text().split()]
    return [pid, *children]


def argv_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def all_end(pids: list[int]) -> bool:
    # multiprocessing's resource tracker ends by itself a moment after its parent.
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(is_alive(pid) for pid in pids)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
