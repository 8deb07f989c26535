"""Commands and webhooks that are told of a run; the receiver is a real server on loopback."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator import notices as notices_module
from orchestrator.notices import Notifier, RunFacts, missing_for, own_end
from orchestrator.recipe.guard import Notice
from orchestrator.records import StatusRecord
from orchestrator.schedulers import JobState
from orchestrator.tracked import TrackedJob
from tests.builders import plan_run, recipe_document

NOW = 1_000_000.0
SECRET_PATH = "/services/T0/canary-path"
TOKEN = "canary-token"


class Receiver:
    """Takes POST requests, and answers with the given codes one after the other, then 200."""

    def __init__(self, *codes: int) -> None:
        self.codes, self.bodies, self.headers = list(codes), list[dict[str, Any]](), list[dict[str, str]]()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.headers.append({**self.headers, "path": self.path})
                receiver.bodies.append(json.loads(body))
                code = receiver.codes.pop(0) if receiver.codes else 200
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{SECRET_PATH}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a receiver that takes everything."""
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices_module, "WEBHOOK_WAITS_S", (0.01, 0.02))


def notifier(*notices: Notice, own_end_at: float | None = None, now: float = NOW) -> Notifier:
    facts = RunFacts("0a1b2c3d", "job", Path("/runs/x"))
    return Notifier(notices, facts, {"monitoring": 1800.0}, own_end_at, lambda: now)


def script(folder: Path, body: str) -> tuple[str, ...]:
    path = folder / "it's a command"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return (str(path), "an argument")


def test_command_gets_the_event_as_json_and_in_its_environment(tmp_path: Path) -> None:
    body = f'cat >"{tmp_path}/stdin"; env | grep ^ORCH_ | sort >"{tmp_path}/env"; echo "$1" >"{tmp_path}/arguments"'
    made = notifier(Notice(command=script(tmp_path, body)))
    made.tell("failed", "failed", "job: failed: it's\n broken")
    made.close(10)
    event = json.loads((tmp_path / "stdin").read_text())
    assert event == {
        "schema_version": 1, "event": "failed", "at": NOW, "run_id": "0a1b2c3d", "name": "job", "run_dir": "/runs/x",
        "state": "failed", "text": "job: failed: it's\n broken",
    }  # fmt: skip
    said = (tmp_path / "env").read_text()
    for line in ("ORCH_EVENT=failed", "ORCH_RUN_ID=0a1b2c3d", "ORCH_RUN_DIR=/runs/x", "ORCH_STATE=failed"):
        assert f"{line}\n" in said
    assert (tmp_path / "arguments").read_text() == "an argument\n"


def test_only_who_wants_to_hear_of_an_event_is_told(tmp_path: Path) -> None:
    made = notifier(Notice(on=("ready",), command=script(tmp_path, f'touch "{tmp_path}/told"')))
    made.tell("finished", "completed", "done")
    made.close(10)
    assert not (tmp_path / "told").exists()
    made.tell("ready", "running", "up")
    made.close(10)
    assert (tmp_path / "told").exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo no mail here >&2; exit 3", "ended with exit code 3: no mail here"),
        ("sleep 60", "was ended after 0.3 s"),
    ],
)
def test_command_that_fails_or_hangs_is_logged_and_nothing_else(
    body: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = notifier(Notice(command=script(tmp_path, body), timeout_s=0.3))
    began = time.monotonic()
    made.tell("ready", "running", "up")
    assert time.monotonic() - began < 0.25, "the run does not wait for it"
    made.close(10)
    assert words in caplog.text


def test_command_that_cannot_be_started_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "not executable").write_text("")
    made = notifier(Notice(command=(str(tmp_path / "not executable"),)))
    made.tell("ready", "running", "up")
    made.close(10)
    assert "could not be started: Permission denied" in caplog.text


def test_command_that_hangs_keeps_the_end_only_for_the_given_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = notifier(Notice(command=script(tmp_path, "sleep 3"), timeout_s=2))
    made.tell("ready", "running", "up")
    began = time.monotonic()
    made.close(0.2)
    assert time.monotonic() - began < 1
    assert "not everybody was told" in caplog.text
    made.close(10)


def test_webhook_gets_the_event_with_its_token(receiver: Receiver, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    made = notifier(Notice(webhook=receiver.url, token_file=str(tmp_path / "token")))
    made.tell("finished", "completed", "job: completed", extra=1)
    made.close(10)
    assert [body["event"] for body in receiver.bodies] == ["finished"]
    assert receiver.bodies[0]["extra"] == 1
    assert receiver.headers[0]["Authorization"] == f"Bearer {TOKEN}"
    assert receiver.headers[0]["path"] == SECRET_PATH


@pytest.mark.parametrize(
    ("codes", "attempts"),
    [((500, 503), 3), ((429,), 2), ((500, 500, 500), 3), ((404,), 1), ((302,), 1)],
)
def test_webhook_is_tried_again_where_that_may_help(codes: tuple[int, ...], attempts: int, tmp_path: Path) -> None:
    receiver = Receiver(*codes)
    try:
        made = notifier(Notice(webhook=receiver.url))
        made.tell("ready", "running", "up")
        made.close(10)
        assert len(receiver.bodies) == attempts
    finally:
        receiver.close()


def test_webhook_hears_of_events_in_their_order_even_if_the_first_is_sent_again(tmp_path: Path) -> None:
    receiver = Receiver(500)
    try:
        made = notifier(Notice(webhook=receiver.url))
        made.tell("ready", "running", "up")
        made.tell("finished", "completed", "done")
        made.close(10)
        assert [body["event"] for body in receiver.bodies] == ["ready", "ready", "finished"]
    finally:
        receiver.close()


@pytest.mark.parametrize("token", [TOKEN, f"{TOKEN}\nX-Evil: 1", f"{TOKEN}€"])
@pytest.mark.parametrize("fate", [(404,), (500, 500, 500), (), None])
def test_webhook_secrets_are_in_no_log(
    fate: tuple[int, ...] | None, token: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "token").write_text(token)
    receiver = Receiver(*(fate or ()))
    if fate is None:
        receiver.close()  # nobody listens any more
    made = notifier(Notice(webhook=receiver.url, token_file=str(tmp_path / "token")))
    made.tell("ready", "running", "up")
    made.close(10)
    assert "canary" not in caplog.text
    assert "Traceback" not in caplog.text
    if fate != ():
        assert "webhook at 127.0.0.1: " in caplog.text
        receiver.close() if fate is not None else None
    else:
        receiver.close()


def test_webhook_without_its_token_file_is_not_called(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    made = notifier(Notice(webhook=receiver.url, token_file="/no/token"))
    made.tell("ready", "running", "up")
    made.close(10)
    assert receiver.bodies == []
    assert "token_file cannot be read: FileNotFoundError" in caplog.text


def running(
    name: str = "vllm", attempt: str = "a1", started_at: float = NOW, time_limit: str | None = "60"
) -> TrackedJob:
    infrastructure = {"partition": "gpu", **({"time": time_limit} if time_limit else {})}
    planned = plan_run(recipe_document("slurm", "vllm", infrastructure=infrastructure)).jobs[name]
    job = TrackedJob(planned, "42", started_at, JobState.RUNNING)
    job.record = StatusRecord(planned.token, "42", attempt, "h", "ready", started_at)
    return job


def test_service_near_its_wall_time_is_told_of_once_for_each_attempt(receiver: Receiver) -> None:
    made = notifier(Notice(webhook=receiver.url, near_end_minutes=15))
    made.look([running(started_at=NOW - 44 * 60)])
    made.close(10)
    assert receiver.bodies == []
    job = running(started_at=NOW - 46 * 60)
    for _ in range(3):
        made.look([job])
    made.close(10)
    assert [(body["event"], body["job"], body["ends_at"]) for body in receiver.bodies] == [
        ("near_end", "vllm", NOW + 14 * 60)
    ]
    assert receiver.bodies[0]["text"] == "vllm: its wall time ends in 14.0 minutes"
    made.look([running(attempt="a2", started_at=NOW - 50 * 60)])
    made.close(10)
    assert len(receiver.bodies) == 2


def test_service_without_a_wall_time_has_no_end_but_for_the_partitions(receiver: Receiver) -> None:
    made = notifier(Notice(webhook=receiver.url))
    made.look([running(started_at=NOW - 9e9, time_limit=None)])
    made.close(10)
    assert receiver.bodies == []
    made.look([running("prometheus", started_at=NOW - 25 * 60, time_limit=None)])
    made.close(10)
    assert [body["job"] for body in receiver.bodies] == ["prometheus"]


def test_service_that_does_not_run_is_not_told_of(receiver: Receiver) -> None:
    made = notifier(Notice(webhook=receiver.url))
    job = running(started_at=NOW - 55 * 60)
    job.state = JobState.COMPLETED
    made.look([job])
    made.close(10)
    assert receiver.bodies == []


def test_orchestrators_own_end_is_told_of_once_to_each_at_its_own_time(receiver: Receiver) -> None:
    early, late = Notice(webhook=receiver.url, near_end_minutes=60), Notice(webhook=receiver.url, near_end_minutes=5)
    made = notifier(early, late, own_end_at=NOW + 1200)
    made.look([])
    made.look([])
    made.close(10)
    assert [body["job"] for body in receiver.bodies] == ["the orchestrator's own batch job"]


@pytest.mark.parametrize(
    ("environment", "end"),
    [
        ({}, None),
        ({"SLURM_JOB_END_TIME": "1795330000"}, 1795330000.0),
        ({"ORCH_END_TIME": "1795330001", "SLURM_JOB_END_TIME": "1795330000"}, 1795330001.0),
        ({"ORCH_END_TIME": ""}, None),
        ({"ORCH_END_TIME": "N/A"}, None),
    ],
)
def test_own_end_is_what_the_batch_job_says(environment: dict[str, str], end: float | None) -> None:
    assert own_end(environment) == end


def test_what_is_missing_here_is_found_before_the_run(tmp_path: Path) -> None:
    good = Notice(command=("sh", "-c", "true"))
    bad = Notice(command=("no-such-program-at-all",)), Notice(webhook="http://h/", token_file=str(tmp_path / "none"))
    assert missing_for([good]) == []
    assert [str(error).split(":")[0] for error in missing_for([good, *bad])] == ["job.notify", "job.notify"]


def test_mail_is_the_schedulers_and_in_the_servers_script_only() -> None:
    notify = [{"mail": "me@site"}, {"on": ["failed"], "mail": "you@site"}, {"mail": "me@site"}]
    jobs = plan_run(recipe_document("slurm", "vllm", notify=notify)).jobs
    assert "#SBATCH --mail-type=BEGIN,FAIL,END,TIME_LIMIT_90\n#SBATCH --mail-user=me@site,you@site\n" in (
        jobs["vllm"].script_text
    )
    assert "mail" not in jobs["client"].script_text
    notify = [{"on": ["failed"], "mail": "me@site"}]
    pbs = plan_run(
        recipe_document("pbs", "vllm", notify=notify, scheduler={"mail_events": "b", "mail_users": "all"})
    ).jobs
    assert "#PBS -m a\n#PBS -M me@site\n" in pbs["vllm"].script_text
    assert "#PBS -m b\n#PBS -M all\n" in pbs["client"].script_text
    assert "all" not in [line.split()[-1] for line in pbs["vllm"].script_text.splitlines() if line.startswith("#PBS")]
    notifier(Notice(mail="me@site")).tell("failed", "failed", "nothing is sent from here")
