"""What a streamed completion said, and when: Server-Sent Events of OpenAI's API, NDJSON of Ollama's.

Pure: pieces of a body and their times of arrival in, a Reply out. It is read after its request has ended, so that no
time stamp waits for it. Sources: the SSE section of the WHATWG HTML standard, OpenAI's "chat/completions streaming"
and "completions" references, Ollama's ``docs/api.md``.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from client.load.spec import Api, ErrorClass

# A server that never ends a line must not fill the client's memory.
MAX_LINE_BYTES = 16 * 2**20
NAN = float("nan")
OLLAMA_TIMINGS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
_ERROR_CHARS = 300


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    # "reasoning_content" is DeepSeek's and older vLLM's name, "reasoning" that of newer vLLM.
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _OpenAiEvent(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None
    message: Any = None


class _OllamaMessage(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None


class _OllamaEvent(msgspec.Struct):
    response: str | None = None
    thinking: str | None = None
    message: _OllamaMessage | None = None
    done: bool = False
    done_reason: str | None = None
    error: Any = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_duration: int | None = None
    eval_duration: int | None = None


_DECODE_OPENAI = msgspec.json.Decoder(_OpenAiEvent).decode
_DECODE_OLLAMA = msgspec.json.Decoder(_OllamaEvent).decode


class Reply:
    """What one streamed completion said.

    Attributes:
        failure: Why it is no success, as class and words, or None.
        first_reasoning_s, first_content_s, last_token_s: Arrival of text, on the clock of the caller; NaN for none.
        chunks: Pieces with text in them.
        gaps_s: One entry for each piece after the first arrival; pieces that arrived together share the time since the
            arrival before.
        usage_tokens: Output tokens as the server counts them; None if it does not say.
    """

    __slots__ = (
        "chunks", "failure", "finish_reason", "first_content_s", "first_reasoning_s", "gaps_s", "is_complete",
        "last_token_s", "prompt_tokens", "reasoning_parts", "text_parts", "timings_ns", "usage_tokens",
    )  # fmt: skip

    def __init__(self) -> None:
        self.failure: tuple[ErrorClass, str] | None = None
        self.first_reasoning_s = self.first_content_s = self.last_token_s = NAN
        self.chunks = 0
        self.gaps_s = array("d")
        self.prompt_tokens: int | None = None
        self.usage_tokens: int | None = None
        self.finish_reason: str | None = None
        self.text_parts: list[str] = []
        self.reasoning_parts: list[str] = []
        self.timings_ns: dict[str, int] = {}
        self.is_complete = False

    @property
    def text(self) -> str:
        """The answer without its reasoning."""
        return "".join(self.text_parts)

    @property
    def text_length(self) -> int:
        """Characters of answer and reasoning together."""
        return sum(map(len, self.text_parts)) + sum(map(len, self.reasoning_parts))

    @property
    def tokens(self) -> int:
        """Output tokens: the server's count, or one for each piece."""
        return self.chunks if self.usage_tokens is None else self.usage_tokens

    def fail(self, error_class: ErrorClass, words: str) -> None:
        """Note the first failure."""
        if self.failure is None:
            self.failure = (error_class, words[:_ERROR_CHARS])

    def note_text(self, text: str | None, reasoning: str | None, at_s: float) -> int:
        """Take a piece's text; return 1 if there is any."""
        if text:
            if self.first_content_s != self.first_content_s:
                self.first_content_s = at_s
            self.text_parts.append(text)
        if reasoning:
            if self.first_reasoning_s != self.first_reasoning_s:
                self.first_reasoning_s = at_s
            self.reasoning_parts.append(reasoning)
        return 1 if text or reasoning else 0

    def note_arrival(self, pieces: int, at_s: float) -> None:
        """Take the time at which ``pieces`` with text arrived together."""
        if self.last_token_s == self.last_token_s:
            gap = (at_s - self.last_token_s) / pieces
            if pieces == 1:
                self.gaps_s.append(gap)
            else:
                self.gaps_s.extend([gap] * pieces)
        self.chunks += pieces
        self.last_token_s = at_s


def read_reply(api: Api, pieces: Sequence[bytes], times_s: Sequence[float], is_whole: bool = True) -> Reply:
    """Return what a body said.

    Args:
        api: Its format.
        pieces: The body as it arrived, its transfer coding taken off.
        times_s: When each piece arrived.
        is_whole: Whether the body came to its end; only then a missing end mark is a failure of its own.
    """
    reply = Reply()
    take = _take_openai if api in {"openai-chat", "openai-completions"} else _take_ollama
    rest = b""
    for piece, at_s in zip(pieces, times_s, strict=True):
        lines = (rest + piece if rest else piece).split(b"\n")
        rest = lines.pop()
        arrived = 0
        for line in lines:
            # A line of one event's data is an event: neither API spreads one over several lines.
            if len(line) > 1:
                arrived += take(reply, line, at_s)
        if arrived:
            reply.note_arrival(arrived, at_s)
        if len(rest) > MAX_LINE_BYTES:
            reply.fail("protocol", f"a line of the stream is longer than {MAX_LINE_BYTES} bytes")
            return reply
    if rest.strip() and take(reply, rest, times_s[-1]):
        reply.note_arrival(1, times_s[-1])
    if reply.failure is None and is_whole:
        _judge(reply, api)
    return reply


def _judge(reply: Reply, api: Api) -> None:
    if not reply.is_complete:
        mark = "[DONE]" if api.startswith("openai") else '"done": true'
        reply.fail("protocol", f"the stream ended without {mark}")
    elif not reply.chunks or reply.usage_tokens == 0:
        reply.fail("zero_tokens", f"no text arrived; tokens according to the server: {reply.usage_tokens}")


def _take_openai(reply: Reply, line: bytes, at_s: float) -> int:
    if line[:5] != b"data:" or reply.failure is not None:
        return 0
    data = line[6:] if line[5:6] == b" " else line[5:]
    try:
        event = _DECODE_OPENAI(data)
    except msgspec.DecodeError as error:
        if data.strip() == b"[DONE]":
            reply.is_complete = True
        else:
            reply.fail("protocol", f"{error}: {data[:80].decode('utf-8', 'replace')}")
        return 0
    if event.error is not None or event.object == "error":
        reply.fail("server_error", error_text(event.error if event.error is not None else event.message))
        return 0
    if event.usage is not None:
        reply.prompt_tokens = _count(event.usage.prompt_tokens, reply.prompt_tokens)
        reply.usage_tokens = _count(event.usage.completion_tokens, reply.usage_tokens)
    if not event.choices:
        return 0
    choice = event.choices[0]
    if choice.finish_reason is not None:
        reply.finish_reason = choice.finish_reason
    if choice.delta is not None:
        delta = choice.delta
        return reply.note_text(delta.content, delta.reasoning_content or delta.reasoning, at_s)
    return reply.note_text(choice.text, None, at_s)


def _take_ollama(reply: Reply, line: bytes, at_s: float) -> int:
    if reply.failure is not None or not line.strip():
        return 0
    try:
        event = _DECODE_OLLAMA(line)
    except msgspec.DecodeError as error:
        reply.fail("protocol", f"{error}: {line[:80].decode('utf-8', 'replace')}")
        return 0
    if event.error is not None:
        reply.fail("server_error", error_text(event.error))
        return 0
    if event.done:
        reply.is_complete = True
        reply.prompt_tokens = _count(event.prompt_eval_count, None)
        reply.usage_tokens = _count(event.eval_count, None)
        reply.finish_reason = event.done_reason
        timings = {name: getattr(event, name) for name in OLLAMA_TIMINGS}
        reply.timings_ns = {name: value for name, value in timings.items() if value is not None and value >= 0}
    if event.message is not None:
        return reply.note_text(event.message.content, event.message.thinking, at_s)
    return reply.note_text(event.response, event.thinking, at_s)


def _count(value: int | None, default: int | None) -> int | None:
    return value if value is not None and value >= 0 else default


def error_text(error: Any) -> str:
    """Return a server's words about an error."""
    if isinstance(error, dict):
        error = error.get("message") or msgspec.json.encode(error).decode()
    return str(error) if error is not None else "the server gave no message"
