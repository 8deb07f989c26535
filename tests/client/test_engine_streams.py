from __future__ import annotations

import json

import pytest

from client.engine import streams
from client.engine.streams import CompletionStream, OllamaStream, OpenAiStream


def event(delta: dict[str, object], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"


def failure_class(stream: CompletionStream) -> str | None:
    return stream.failure[0] if stream.failure else None


def test_openai_stream_role_only_first_chunk_is_not_a_token() -> None:
    stream = OpenAiStream()
    for at_s, data in enumerate([ROLE, event({"content": "a"}), event({"content": "b"}, "length"), USAGE, DONE]):
        stream.feed(data, float(at_s))
    stream.finish(9.0)
    assert stream.failure is None
    assert (stream.first_token_at_s, stream.last_token_at_s) == (1.0, 2.0)
    assert (stream.chunks, list(stream.chunk_gaps_s)) == (2, [1.0])
    assert (stream.prompt_tokens, stream.usage_tokens, stream.finish_reason) == (3, 2, "length")
    assert "".join(stream.text_parts) == "ab"


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_openai_stream_cut_at_every_byte_reads_the_same(newline: bytes) -> None:
    whole = (ROLE + b": a comment\n\n" + event({"content": "Grüße"}) + USAGE + DONE).replace(b"\n", newline)
    for cut in range(len(whole)):
        stream = OpenAiStream()
        stream.feed(whole[:cut], 1.0)
        stream.feed(whole[cut:], 2.0)
        stream.finish(3.0)
        assert stream.failure is None
        assert "".join(stream.text_parts) == "Grüße"
        assert stream.usage_tokens == 2


def test_openai_stream_chunks_in_one_read_share_the_gap() -> None:
    stream = OpenAiStream()
    stream.feed(event({"content": "a"}), 1.0)
    stream.feed(event({"content": "b"}) + event({"content": "c"}), 2.0)
    assert list(stream.chunk_gaps_s) == [0.5, 0.5]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_openai_stream_reasoning_counts_as_token_but_not_as_answer(field: str) -> None:
    stream = OpenAiStream()
    stream.feed(event({field: "hm", "content": None}), 1.0)
    assert (stream.first_token_at_s, stream.text_parts, stream.reasoning_parts) == (1.0, [], ["hm"])
    assert stream.text_length == 2


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
        (DONE, None),
        (b"data: [DONE]", None),
        (b'data: {"choices": "x", "usage": {"completion_tokens": -1}}\n\n' + DONE, None),
        (b'data: {"choices": [{"delta": {"content": 7}}]}\n\n' + DONE, None),
    ],
)
def test_openai_stream_broken_ends_in_its_class(data: bytes, expected: str | None) -> None:
    stream = OpenAiStream()
    stream.feed(data, 1.0)
    stream.finish(2.0)
    assert failure_class(stream) == expected
    assert stream.chunks <= 1


def test_stream_endless_line_is_a_protocol_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 10)
    stream = OllamaStream()
    stream.feed(b"x" * 11, 1.0)
    assert failure_class(stream) == "protocol"


def test_ollama_stream_final_line_gives_counts_and_timings() -> None:
    stream = OllamaStream()
    stream.feed(b'{"response": "a", "done": false}\n{"response": "b", "done": fal', 1.0)
    stream.feed(b'se}\n{"response": "", "done": true, "done_reason": "stop", "eval_count": 3,', 2.0)
    stream.feed(b'"prompt_eval_count": 5, "eval_duration": 9}', 3.0)
    stream.finish(4.0)
    assert stream.failure is None
    assert (stream.usage_tokens, stream.prompt_tokens, stream.finish_reason) == (3, 5, "stop")
    assert stream.timings_ns == {"eval_duration": 9}
    assert (stream.first_token_at_s, stream.last_token_at_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("data", "expected"), [(b'{"response": "a"}\n', "protocol"), (b'{"error": "no such model"}\n', "server_error")]
)
def test_ollama_stream_broken_ends_in_its_class(data: bytes, expected: str) -> None:
    stream = OllamaStream()
    stream.feed(data, 1.0)
    stream.finish(2.0)
    assert failure_class(stream) == expected
