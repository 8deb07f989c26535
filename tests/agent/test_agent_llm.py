from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import llm as llm_module
from agent.llm import LlmClient, LlmError, Question
from agent.prompts import Task
from agent.proposer import Asked, Proposer
from orchestrator.errors import JobFailedError
from orchestrator.recipe.hpo import CategoricalParam, FloatParam, LlmProposals
from orchestrator.records import Endpoint
from tests.agent.bench import TOKEN
from tests.agent.fake_llm import MODEL, FakeLlm, Reply, Script

NewLlm = Callable[[Script | list[Reply]], FakeLlm]
QUESTION = Question([{"role": "user", "content": "?"}], {"type": "object"}, 0.5, 99, 7)
TASK = Task(
    "digits",
    "val_auc",
    {"learning_rate": FloatParam(low=0, high=1), "optimizer": CategoricalParam(choices=("sgd", "adamw"))},
    {},
    9,
)
GOOD = json.dumps({"learning_rate": 0.5, "optimizer": "sgd", "rationale": "middle"})


def client_of(url: str, token_file: Path, timeout_s: float = 5.0) -> LlmClient:
    endpoint = Endpoint("vllm", "1", "a", "h", 1, url, "smollm2", 0.0, 0.0)
    return LlmClient(lambda: endpoint, token_file, timeout_s, "default")


def complete(client: LlmClient, idle: Callable[[], None] = lambda: None) -> Any:
    return client.complete(QUESTION, idle, 0.05)


def test_complete_sends_the_question_and_reads_the_answer(new_llm: NewLlm, tmp_path: Path) -> None:
    llm = new_llm([Reply("hello", finish_reason="length")])
    (tmp_path / "token").write_text(TOKEN + "\n")

    completion = complete(client_of(llm.url + "/", tmp_path / "token"))

    assert (completion.text, completion.is_cut_off, completion.model) == ("hello", True, MODEL)
    assert completion.completion_tokens == 40
    assert 0 < completion.latency_s < 5
    body = llm.bodies[0]
    assert body["path"] == "/v1/chat/completions"
    assert (body["model"], body["temperature"], body["max_tokens"], body["seed"]) == ("smollm2", 0.5, 99, 7)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert llm.headers[0]["Authorization"] == f"Bearer {TOKEN}"


def test_complete_without_a_token_file_sends_none(new_llm: NewLlm, tmp_path: Path) -> None:
    llm = new_llm([Reply("hello")])
    complete(client_of(llm.url, tmp_path / "none"))
    assert "Authorization" not in llm.headers[0]


def test_complete_proxy_and_netrc_of_the_environment_are_ignored(
    new_llm: NewLlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password mine\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    (tmp_path / "token").write_text(TOKEN)
    llm = new_llm([Reply("hello")])
    complete(client_of(llm.url, tmp_path / "token"))
    assert llm.headers[0]["Authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("reply", "reason", "is_transient"),
    [
        (Reply(status=500, body=b"boom"), "HTTP 500: boom", True),
        (Reply(status=429, body=b"later"), "HTTP 429", True),
        (Reply(status=400, body=b"no such schema"), "HTTP 400: no such schema", False),
        (Reply(status=401, body=f"not {TOKEN}".encode()), "HTTP 401: not <token>", False),
        (Reply(status=307, body=b""), "HTTP 307", False),
        (Reply(body=b"<html>"), "not JSON", True),
        (Reply(body=b"[]"), "no chat completion", False),
        (Reply(body=b'{"choices": []}'), "no chat completion", False),
        (Reply(content=None), "no chat completion", False),
    ],
)
def test_complete_other_answers_are_errors(
    reply: Reply, reason: str, is_transient: bool, new_llm: NewLlm, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(TOKEN)
    llm = new_llm([reply])
    with pytest.raises(LlmError, match=reason) as caught:
        complete(client_of(llm.url, tmp_path / "token"))
    assert caught.value.is_transient is is_transient


def test_complete_refused_connection_is_a_transient_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_module, "DEATH_IS_KNOWN_S", 0.2)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(LlmError, match="ConnectionRefusedError") as caught:
        complete(client_of(f"http://127.0.0.1:{port}", tmp_path / "none"))
    assert caught.value.is_transient


def test_complete_late_answer_is_a_transient_error(new_llm: NewLlm, tmp_path: Path) -> None:
    llm = new_llm([Reply("hello", delay_s=1.0)])
    started = time.monotonic()
    with pytest.raises(LlmError, match=r"no answer within 0.2 s"):
        complete(client_of(llm.url, tmp_path / "none", timeout_s=0.2))
    assert time.monotonic() - started < 0.9


def test_complete_looks_around_meanwhile_and_leaves_when_that_raises(new_llm: NewLlm, tmp_path: Path) -> None:
    llm = new_llm([Reply("hello", delay_s=1.0)])

    def idle() -> None:
        raise JobFailedError("vllm", "ended: FAILED")

    started = time.monotonic()
    with pytest.raises(JobFailedError):
        complete(client_of(llm.url, tmp_path / "none"), idle)
    assert time.monotonic() - started < 0.9


def ask(llm: FakeLlm, tmp_path: Path, waits: list[float] | None = None, **settings: Any) -> Asked:
    log = tmp_path / "proposals.jsonl"
    wait = (waits if waits is not None else []).append
    proposer = Proposer(client_of(llm.url, tmp_path / "token"), TASK, LlmProposals(**settings), 5, log, 0.05)
    return proposer.propose((), 0, wait)


def test_propose_server_error_is_asked_again_after_a_pause(new_llm: NewLlm, tmp_path: Path) -> None:
    waits: list[float] = []
    asked = ask(new_llm([Reply(status=503, body=b"busy"), Reply(GOOD)]), tmp_path, waits)
    assert asked.source == "llm"
    assert asked.params == {"learning_rate": 0.5, "optimizer": "sgd"}
    assert asked.notes["rejects"] == ["no answer: HTTP 503: busy"]
    assert (asked.notes["requests"], asked.notes["failed_requests"]) == (2, 1)
    assert 1.0 in waits


def test_propose_final_error_is_not_asked_again(new_llm: NewLlm, tmp_path: Path) -> None:
    llm = new_llm([Reply(status=400, body=b"unknown field")])
    asked = ask(llm, tmp_path)
    assert (asked.source, asked.params, len(llm.bodies)) == ("tpe_fallback", None, 1)


def test_propose_looping_white_space_is_cut_off_and_repaired(new_llm: NewLlm, tmp_path: Path) -> None:
    loop = Reply('{"learning_rate": 0.5,' + "\n" * 3000, finish_reason="length")
    llm = new_llm([loop, Reply(GOOD)])
    asked = ask(llm, tmp_path, max_tokens=64)
    assert asked.source == "llm_repaired"
    assert asked.notes["rejects"] == ["the answer was cut off after 64 tokens; write it compactly, on one line"]
    assert llm.bodies[0]["max_tokens"] == 64
    assert len(llm.bodies[1]["messages"][2]["content"]) < 100
    assert asked.notes["prompt_tokens"] > 0


def test_propose_no_repairs_allowed_falls_back_after_one_answer(new_llm: NewLlm, tmp_path: Path) -> None:
    llm = new_llm([Reply("nonsense")])
    asked = ask(llm, tmp_path, max_repairs=0)
    assert (asked.source, len(llm.bodies)) == ("tpe_fallback", 1)
    line = json.loads((tmp_path / "proposals.jsonl").read_text())
    assert line["answer"] == "nonsense"
    assert line["verdict"].startswith("rejected: the answer is not one JSON object")
