"""Servers that are not what they seem, and two orchestrators for one run."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.faults.slurm.conftest import SlurmScene, whole_suite
from tests.life.conftest import processes_with
from tests.standin.openai_server import streams

FIRST = "trial_0000"
# Answers everything with 200, and writes down what it was sent.
DECOY = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Decoy(BaseHTTPRequestHandler):
    def do_GET(self):
        open(sys.argv[2], "a").write(f"{self.path} {self.headers.get('Authorization')}\\n")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "m"}]}')
    do_POST = do_GET

server = HTTPServer(("0.0.0.0", int(sys.argv[1])), Decoy)
print("listening", flush=True)
server.timeout = 60
for _ in range(20):
    server.handle_request()
"""


@pytest.fixture
def thief(scene: SlurmScene, standin_python: Path) -> Path:
    """Let a decoy take the port of the server's first start; return what it writes down."""
    program, heard = scene.folder / "decoy.py", scene.folder / "heard"
    program.write_text(DECOY)
    text = standin_python.read_text()
    steal = (
        f"if [[ ! -e {shlex.quote(str(heard))} && $2 == vllm.* ]]; then\n"
        f'  : >{shlex.quote(str(heard))}; port=; for word in "$@"; do [[ $previous == --port ]] && port=$word;\n'
        "  [[ $word == --port=* ]] && port=${word#*=}; previous=$word; done\n"
        f"  echo $port >{shlex.quote(str(scene.folder / 'stolen'))}\n"
        # Not a descendant of the supervisor: a stranger on the same node.
        f"  while [[ ! -e {shlex.quote(str(scene.folder / 'taken'))} ]]; do sleep 0.05; done\n"
        "fi\n"
    )
    standin_python.write_text(text.replace("#!/bin/bash\n", "#!/bin/bash\n" + steal, 1))
    return heard


def test_port_stolen_by_a_decoy_is_given_up_and_the_decoy_gets_no_token(search: SlurmScene, thief: Path) -> None:
    import subprocess

    run = search.start()
    stolen = search.folder / "stolen"
    run.wait_for(lambda: stolen.exists() and stolen.read_text().strip(), "the server's first port", 90)
    port = stolen.read_text().strip()
    argv = [sys.executable, str(search.folder / "decoy.py"), port, str(thief)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as decoy:
        assert decoy.stdout is not None
        assert decoy.stdout.readline() == "listening\n"
        (search.folder / "taken").touch()
        try:
            code = run.wait(150)
        finally:
            decoy.kill()
    assert code == 0, run.stderr
    token = (search.run_dir / "secrets" / "api_token").read_text().strip()
    assert token not in thief.read_text()
    assert "was lost to another process; drawing another" in (
        next((search.run_dir / "logs").glob("vllm_*.batch")).read_text()
    )
    search.check_completed()
    search.check_trials()


@whole_suite
def test_server_that_hangs_for_a_while_is_waited_for(scene: SlurmScene) -> None:
    scene.job["service"]["n_requests_per_client"] = 10
    scene.env["STANDIN_TOKEN_DELAY_S"] = "0.1"
    run = scene.start()
    run.wait_for(lambda: streams(scene.output_dir, "begins"), "the benchmark", 90)
    pid = server_pid(scene)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(pid, signal.SIGCONT)
    assert run.wait(120) == 0, run.stderr
    scene.check_completed(requests=20)


@whole_suite
def test_server_that_hangs_for_good_is_told_of_with_its_failures(scene: SlurmScene) -> None:
    scene.job["service"].update(n_requests_per_client=2, request_timeout_s=5)
    scene.env["STANDIN_TOKEN_DELAY_S"] = "1"
    run = scene.start()
    run.wait_for(lambda: streams(scene.output_dir, "begins"), "the benchmark", 90)
    os.kill(server_pid(scene), signal.SIGSTOP)
    assert run.wait(150) == 1, run.stderr
    assert "none of the 4 requests of the benchmark succeeded" in run.stderr
    assert "Failures: " in run.stderr
    assert scene.summary()["state"] == "failed"
    scene.check_nothing_is_left()


@whole_suite
def test_server_that_hangs_while_it_starts_ends_with_its_startup_timeout(scene: SlurmScene) -> None:
    scene.job["service"]["startup_timeout_s"] = 8
    scene.env["STANDIN_START_DELAY_S"] = "3"
    run = scene.start()
    run.wait_for(lambda: server_pid(scene), "the server", 60)
    os.kill(server_pid(scene), signal.SIGSTOP)
    assert run.wait(90) == 1
    assert "was not healthy within 8 s" in run.stderr
    scene.check_nothing_is_left()


def server_pid(scene: SlurmScene) -> int:
    """Return the stand-in server's own pid, 0 if it does not run."""
    found = processes_with("openai_server.py", f"{scene.folder}/model")
    alone = [pid for pid in found if "supervisor.py" not in _words(pid) and "standin-python" not in _words(pid)]
    return alone[0] if alone else 0


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "supervisor.py"


@whole_suite
def test_second_orchestrator_is_turned_away_while_the_first_lives(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    second = search.resume()
    assert second.wait(30) == 2
    assert f"process {run.process.pid} on" in second.stderr
    assert "looks after this run" in second.stderr
    assert run.process.poll() is None
    # A stopped one has not ended: it would go on with the run when it is continued.
    run.process.send_signal(signal.SIGSTOP)
    third = search.resume()
    assert third.wait(30) == 2
    run.process.send_signal(signal.SIGCONT)
    search.hold.unlink()
    assert run.wait(120) == 0, run.stderr
    search.check_completed()
    search.check_trials()


@whole_suite
def test_two_orchestrators_that_resume_at_once_are_one(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    run.process.kill()
    run.process.wait()
    both = [search.resume(), search.resume()]
    search.hold.unlink()
    codes = sorted(again.wait(150) for again in both)
    assert codes == [0, 2], [again.stderr for again in both]
    search.check_completed()
    search.check_trials()
