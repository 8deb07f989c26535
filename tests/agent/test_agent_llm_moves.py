"""A server that ends or moves while it is asked: the question is put to it where it is then."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent import llm as llm_module
from agent.llm import Completion, LlmClient, LlmError
from agent.proposer import Proposer
from orchestrator.errors import JobFailedError, ServiceAnswerError
from orchestrator.recipe.hpo import LlmProposals
from orchestrator.records import Endpoint
from tests.agent.fake_llm import FakeLlm, Reply, Script
from tests.agent.test_agent_llm import GOOD, QUESTION, TASK

NewLlm = Callable[[Script | list[Reply]], FakeLlm]
LOOK_S = 0.02


class Silent:
    """A server that takes a request and says nothing, or hangs up after a while."""

    def __init__(self, hangs_up_after_s: float = 60.0) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked, self.dropped = threading.Event(), threading.Event()
        threading.Thread(target=self._serve, args=(hangs_up_after_s,), daemon=True).start()

    def _serve(self, hangs_up_after_s: float) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # nobody has asked
        with connection:
            connection.settimeout(hangs_up_after_s)
            try:
                while connection.recv(65536):
                    self.asked.set()
                self.dropped.set()
            except TimeoutError:
                return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for a connection
        self._listener.close()


class Whereabouts:
    """Where the server is, as the run knows it: each look goes one step on, the last stays."""

    def __init__(self, *steps: str | None) -> None:
        self.steps = list(steps)
        self.looks = 0

    def find(self) -> Endpoint:
        url = self.steps[0]
        self.looks += 1
        if url is None:
            raise ServiceAnswerError("the service 'vllm' is not ready")
        return Endpoint("vllm", "1", f"attempt at {url}", "h", 1, url, "smollm2", 0.0, 0.0)


@pytest.fixture
def new_silent() -> Iterator[Callable[..., Silent]]:
    made: list[Silent] = []

    def make(hangs_up_after_s: float = 60.0) -> Silent:
        made.append(Silent(hangs_up_after_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(
    where: Whereabouts, folder: Path, idle: Callable[[], None] = lambda: None, timeout_s: float = 30.0
) -> Completion:
    return LlmClient(where.find, folder / "none", timeout_s, "default").complete(QUESTION, idle, LOOK_S)


def step_when(where: Whereabouts, event: threading.Event) -> Callable[[], None]:
    """Return what takes the server one step on with each look, once ``event`` has come."""

    def idle() -> None:
        if event.is_set() and len(where.steps) > 1:
            where.steps.pop(0)

    return idle


def test_server_that_has_moved_is_asked_at_its_new_place_and_the_old_connection_is_dropped(
    new_silent: Callable[..., Silent], new_llm: NewLlm, tmp_path: Path
) -> None:
    old, new = new_silent(), new_llm([Reply("hello")])
    where = Whereabouts(old.url, new.url)
    started = time.monotonic()
    completion = ask(where, tmp_path, step_when(where, old.asked))
    assert (completion.text, len(new.bodies)) == ("hello", 1)
    assert time.monotonic() - started < 2, "long before the time-out of 30 s"
    assert completion.latency_s < 1, "of the request that was answered"
    assert old.dropped.wait(2)


def test_server_that_has_ended_is_waited_for_and_asked_when_it_is_back(
    new_silent: Callable[..., Silent], new_llm: NewLlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_module, "GONE_S", 0.1)
    old, new = new_silent(), new_llm([Reply("hello")])
    where = Whereabouts(old.url, *[None] * 20, new.url)
    assert ask(where, tmp_path, step_when(where, old.asked)).text == "hello"
    assert old.dropped.wait(2)


def test_server_that_is_not_seen_for_a_moment_is_not_asked_twice(new_llm: NewLlm, tmp_path: Path) -> None:
    llm = new_llm([Reply("hello", delay_s=0.5)])
    where = Whereabouts(llm.url, None, None, None, llm.url)
    asked = threading.Event()
    asked.set()
    assert ask(where, tmp_path, step_when(where, asked)).text == "hello"
    assert len(llm.bodies) == 1
    assert where.steps == [llm.url]


def test_broken_connection_to_a_server_that_has_moved_is_no_failure_of_the_model(
    new_silent: Callable[..., Silent], new_llm: NewLlm, tmp_path: Path
) -> None:
    old, new = new_silent(hangs_up_after_s=0.2), new_llm([Reply(GOOD)])
    where = Whereabouts(old.url, old.url, old.url, None, None, new.url)
    step = step_when(where, old.asked)
    client = LlmClient(where.find, tmp_path / "none", 30.0, "default")
    proposer = Proposer(client, TASK, LlmProposals(), 5, tmp_path / "proposals.jsonl", LOOK_S)
    asked = proposer.propose((), 0, lambda _: step())
    assert (asked.source, asked.notes["rejects"]) == ("llm", [])
    assert (asked.notes["requests"], asked.notes["failed_requests"]) == (1, 0)
    assert len(new.bodies) == 1


def test_broken_connection_to_a_server_that_stays_is_a_failure_once_its_death_would_be_known(
    new_silent: Callable[..., Silent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_module, "DEATH_IS_KNOWN_S", 0.3)
    old = new_silent(hangs_up_after_s=0.1)
    where = Whereabouts(old.url)
    with pytest.raises(LlmError, match="RemoteDisconnected") as caught:
        ask(where, tmp_path)
    assert caught.value.is_transient
    assert where.looks > 5


def test_server_that_does_not_come_back_is_waited_for_as_long_as_for_an_answer(
    new_silent: Callable[..., Silent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_module, "GONE_S", 0.1)
    old = new_silent()
    where = Whereabouts(old.url, None)
    started = time.monotonic()
    with pytest.raises(LlmError, match=r"the service 'vllm' is not ready, 1 s long") as caught:
        ask(where, tmp_path, step_when(where, old.asked), timeout_s=1.0)
    assert not caught.value.is_transient, "it is not waited for again at once"
    assert 1.0 < time.monotonic() - started < 2.5


def test_server_that_moves_again_and_again_is_given_up(
    new_silent: Callable[..., Silent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = [new_silent() for _ in range(llm_module.MAX_MOVES + 2)]
    where = Whereabouts(*(server.url for server in servers))
    events = iter(servers)
    current = next(events)

    def idle() -> None:
        nonlocal current
        if current.asked.is_set():
            where.steps.pop(0)
            current = next(events)

    with pytest.raises(LlmError, match=r"ended or moved 4 times"):
        ask(where, tmp_path, idle)
    assert [server.asked.is_set() for server in servers] == [True] * 4 + [False]


def test_run_that_ends_while_the_server_is_waited_for_ends_the_wait(tmp_path: Path) -> None:
    def idle() -> None:
        raise JobFailedError("vllm", "ended: FAILED")

    with pytest.raises(JobFailedError):
        ask(Whereabouts(None), tmp_path, idle)
