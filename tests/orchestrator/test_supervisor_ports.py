"""Ports that are taken, lost, or answered by somebody else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.orchestrator.conftest import PYTHON, SupervisedJob, is_running, wait_for

# Tells its port, and binds it when allowed to; silent or not about a failure.
BINDER = """
import os, sys, time
folder, port, manner = sys.argv[1], sys.argv[2], sys.argv[3]
open(os.path.join(folder, "ports"), "a").write(port + "\\n")
while not os.path.exists(os.path.join(folder, "go")):
    time.sleep(0.01)
from http.server import HTTPServer, SimpleHTTPRequestHandler
try:
    server = HTTPServer(("127.0.0.1", int(port)), SimpleHTTPRequestHandler)
except OSError as error:
    sys.exit(str(error) if manner == "says" else 1)
server.serve_forever()
"""


class Decoy(ThreadingHTTPServer):
    """Answers every request with 200, and remembers what was sent to it."""

    def __init__(self, port: int) -> None:
        self.requests: list[str | None] = []

        class Answer(BaseHTTPRequestHandler):
            def do_GET(handler) -> None:  # noqa: N805 - self is the decoy
                self.requests.append(handler.headers.get("Authorization"))
                handler.send_response(200)
                handler.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", port), Answer)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


@pytest.fixture
def thief() -> Iterator[socket.socket]:
    """Return a socket of this process, which is no child of a supervisor."""
    with socket.socket() as taken:
        yield taken


def first_port(job: SupervisedJob) -> int:
    """Return the port that BINDER was given first."""
    path = job.run_dir / "ports"
    return int(wait_for(lambda: path.read_text().split() if path.exists() else None)[0])


@pytest.mark.parametrize("manner", ["says", "silent"])
def test_free_port_lost_to_a_thief_is_drawn_again(job: SupervisedJob, thief: socket.socket, manner: str) -> None:
    program = job.program("binder.py", BINDER)
    argv = [*PYTHON, str(program), str(job.run_dir), "@PORT@", manner]
    job.start(argv, health=[{"path": "/", "auth": False, "nonempty": None}])
    port = first_port(job)
    thief.bind(("127.0.0.1", port))
    thief.listen()
    (job.run_dir / "go").touch()
    job.wait_for_state("ready")
    ports = (job.run_dir / "ports").read_text().split()
    assert len(ports) == 2
    assert job.endpoint["port"] == int(ports[1]) != port
    assert f"port {port} was lost" in job.batch_log.read_text()


def test_free_ports_lost_too_often_end_the_job(job: SupervisedJob) -> None:
    program = job.program("crash.py", "import sys; print('.'); sys.exit('OSError: [Errno 98] Address already in use')")
    job.start([*PYTHON, str(program)], port_attempts=3)
    assert job.wait() == 1
    assert (job.status["reason"], job.status["exit_code"]) == ("port_in_use", 1)
    assert "started 3 times" in job.status["message"]
    assert job.log() == ".\n" * 3


def test_own_crash_is_not_taken_for_a_lost_port(job: SupervisedJob) -> None:
    # Bound, answered one connection (which leaves TIME_WAIT behind), then died: the port is still its own.
    text = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
connection, _ = server.accept()
connection.recv(4096)
connection.close()
connection, _ = server.accept()
sys.exit(4)
"""
    job.start([*PYTHON, str(job.program("crash.py", text)), "@PORT@"])
    assert job.wait() == 4
    assert job.status["reason"] == "exited"


def test_fixed_port_that_is_taken_is_refused_with_its_holder(job: SupervisedJob, thief: socket.socket) -> None:
    thief.bind(("127.0.0.1", 0))
    thief.listen()
    port = thief.getsockname()[1]
    job.start(job.server, port=port)
    assert job.wait() == 1
    status = job.status
    assert (status["reason"], status["exit_code"], status["signal"]) == ("port_in_use", None, None)
    assert status["message"].startswith(f"port {port} of 127.0.0.1 is already in use by pid ")
    assert "End that process, or set no port" in status["message"]
    assert job.log() == ""


def test_fixed_port_answered_by_a_decoy_is_refused(job: SupervisedJob) -> None:
    with Decoy(0) as decoy:
        job.start(job.server, port=decoy.server_address[1])
        assert job.wait() == 1
        decoy.shutdown()
    assert job.status["reason"] == "port_in_use"
    assert decoy.requests == []


def test_fixed_port_lost_after_the_check_is_port_in_use(job: SupervisedJob, thief: socket.socket) -> None:
    thief.bind(("127.0.0.1", 0))
    port = thief.getsockname()[1]
    thief.close()
    program = job.program("binder.py", BINDER)
    job.start([*PYTHON, str(program), str(job.run_dir), "@PORT@", "silent"], port=port)
    assert first_port(job) == port
    with socket.create_server(("127.0.0.1", port)):
        (job.run_dir / "go").touch()
        assert job.wait() == 1
    assert job.status["reason"] == "port_in_use"


def test_free_fixed_port_is_used(job: SupervisedJob, thief: socket.socket) -> None:
    thief.bind(("127.0.0.1", 0))
    port = thief.getsockname()[1]
    thief.close()
    job.start(job.server, port=port)
    job.wait_for_state("ready")
    assert job.endpoint["port"] == port


def test_decoy_that_answers_for_the_server_does_not_count(job: SupervisedJob) -> None:
    program = job.program("binder.py", BINDER)
    check = {"path": "/v1/models", "auth": True, "nonempty": None}
    job.start(
        [*PYTHON, str(program), str(job.run_dir), "@PORT@", "never"],
        health=[check],
        auth_token_file=str(job.token_file),
        startup_timeout_s=2.0,
    )
    with Decoy(first_port(job)) as decoy:
        pid = job.child_pid()
        assert job.wait() == 124
        decoy.shutdown()
    assert decoy.requests == []  # nor was it sent the token
    assert not is_running(pid)
    assert job.status["ready_at"] is None
    assert "is held by pid " in job.status["message"]
    assert "not only by the job's own process" in job.status["message"]


def test_server_of_a_descendant_counts(job: SupervisedJob) -> None:
    # A container runtime or a shell stands between the supervisor and the server.
    words = " ".join(f"'{word}'" for word in job.server)
    job.start(["sh", "-c", f'(sh -c "{words} & wait"); true'])
    job.wait_for_state("ready")


def test_server_on_ipv6_is_found(job: SupervisedJob) -> None:
    text = """
import socket, sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
class Server(HTTPServer):
    address_family = socket.AF_INET6
Server((sys.argv[1], int(sys.argv[2])), SimpleHTTPRequestHandler).serve_forever()
"""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    argv = [*PYTHON, str(job.program("server6.py", text)), "@BIND@", "@PORT@"]
    job.start(argv, bind="::1", health=[{"path": "/", "auth": False, "nonempty": None}])
    job.wait_for_state("ready")
    assert job.endpoint["url"] == f"http://[::1]:{job.endpoint['port']}"
