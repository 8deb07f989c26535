from __future__ import annotations

import json

import pytest

from client.load import replies
from client.load.replies import Reply, read_reply
from client.load.spec import Api


def event(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"


def failure_class(reply: Reply) -> str | None:
    return reply.failure[0] if reply.failure else None


def read(api: Api, *pieces: bytes, is_whole: bool = True) -> Reply:
    """Return what pieces said that arrived at 1, 2, 3 … seconds."""
    return read_reply(api, pieces, [float(at_s) for at_s in range(1, len(pieces) + 1)], is_whole)


def test_openai_stream_role_only_first_chunk_is_not_a_token() -> None:
    reply = read("openai-chat", ROLE, event({"content": "a"}), event({"content": "b"}, "length"), USAGE, DONE)
    assert reply.failure is None
    assert (reply.first_content_s, reply.last_token_s) == (2.0, 3.0)
    assert (reply.chunks, list(reply.gaps_s)) == (2, [1.0])
    assert (reply.prompt_tokens, reply.usage_tokens, reply.finish_reason) == (3, 2, "length")
    assert reply.text == "ab"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_openai_stream_cut_at_every_byte_reads_the_same(newline: bytes) -> None:
    whole = (ROLE + b": a comment\n\n" + event({"content": "Grüße"}) + USAGE + DONE).replace(b"\n", newline)
    for cut in range(len(whole)):
        reply = read("openai-chat", whole[:cut], whole[cut:])
        assert reply.failure is None
        assert reply.text == "Grüße"
        assert reply.usage_tokens == 2


def test_openai_stream_chunks_in_one_read_share_the_gap() -> None:
    pieces = (event({"content": "a"}), event({"content": "b"}) + event({"content": "c"}))
    assert list(read("openai-chat", *pieces, is_whole=False).gaps_s) == [0.5, 0.5]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_openai_stream_reasoning_counts_as_token_but_not_as_answer(field: str) -> None:
    reply = read("openai-chat", event({field: "hm", "content": None}), is_whole=False)
    assert (reply.first_reasoning_s, reply.text_parts, reply.reasoning_parts) == (1.0, [], ["hm"])
    assert (reply.chunks, reply.text_length) == (1, 2)


def test_completions_stream_has_its_text_beside_no_delta() -> None:
    reply = read("openai-completions", b'data: {"choices": [{"text": "a", "finish_reason": "stop"}]}\n\n', DONE)
    assert (reply.failure, reply.text, reply.finish_reason) == (None, "a", "stop")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (event({"content": "a"}), "protocol"),
        (b"data: {broken\n\n" + DONE, "protocol"),
        (b"data: [1]\n\n" + DONE, "protocol"),
        (b"data: " + b"[" * 100_000 + b"\n\n" + DONE, "protocol"),
        (b'data: {"error": {"message": "boom"}}\n\n' + DONE, "server_error"),
        (b'data: {"object": "error", "message": "boom"}\n\n' + DONE, "server_error"),
        (b'{"choices": []}', "protocol"),
        (b"", "protocol"),
        (DONE, "zero_tokens"),
        (b"data: [DONE]", "zero_tokens"),
        (event({"content": "a"}) + b'data: {"usage": {"completion_tokens": -1}}\n\n' + DONE, None),
        (b'data: {"choices": "x"}\n\n' + DONE, "protocol"),
        (b'data: {"choices": [{"delta": {"content": 7}}]}\n\n' + DONE, "protocol"),
    ],
)
def test_openai_stream_broken_ends_in_its_class(data: bytes, expected: str | None) -> None:
    reply = read("openai-chat", data)
    assert failure_class(reply) == expected
    assert reply.chunks <= 1


def test_stream_endless_line_is_a_protocol_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "MAX_LINE_BYTES", 10)
    assert failure_class(read("ollama-generate", b"x" * 11, is_whole=False)) == "protocol"


def test_ollama_stream_final_line_gives_counts_and_timings() -> None:
    reply = read(
        "ollama-generate",
        b'{"response": "a", "done": false}\n{"response": "b", "done": fal',
        b'se}\n{"response": "", "done": true, "done_reason": "stop", "eval_count": 3,',
        b'"prompt_eval_count": 5, "eval_duration": 9}',
    )
    assert reply.failure is None
    assert (reply.usage_tokens, reply.prompt_tokens, reply.finish_reason) == (3, 5, "stop")
    assert reply.timings_ns == {"eval_duration": 9}
    assert (reply.first_content_s, reply.last_token_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("data", "expected"), [(b'{"response": "a"}\n', "protocol"), (b'{"error": "no such model"}\n', "server_error")]
)
def test_ollama_stream_broken_ends_in_its_class(data: bytes, expected: str) -> None:
    assert failure_class(read("ollama-generate", data)) == expected
