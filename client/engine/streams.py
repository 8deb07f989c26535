"""Incremental readers of the two streaming formats: Server-Sent Events of OpenAI's API, NDJSON of Ollama's.

Pure: bytes and their time of arrival in, what the stream said out. Sources: the SSE section of the WHATWG
HTML standard, OpenAI's "chat/completions streaming" reference, and Ollama's ``docs/api.md``.
"""

from __future__ import annotations

import json
from array import array
from typing import Any

from client.engine.spec import Api, ErrorClass

# A server that never ends a line must not fill the client's memory.
MAX_LINE_BYTES = 16 * 2**20
OLLAMA_TIMINGS = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")


class CompletionStream:
    """What a streamed completion has said so far.

    ``feed`` never raises: a broken stream sets ``failure`` and the rest of the body is only drained.
    Times are whatever clock the caller feeds.
    """

    def __init__(self) -> None:
        self.failure: tuple[ErrorClass, str] | None = None
        self.first_token_at_s: float | None = None
        self.last_token_at_s: float | None = None
        self.chunks = 0
        self.chunk_gaps_s = array("d")
        self.prompt_tokens: int | None = None
        self.usage_tokens: int | None = None
        self.finish_reason: str | None = None
        self.text_parts: list[str] = []
        self.reasoning_parts: list[str] = []
        self.timings_ns: dict[str, int] = {}
        self.is_complete = False
        self._rest = b""

    def feed(self, data: bytes, at_s: float) -> None:
        """Take the bytes that arrived at ``at_s``."""
        chunks_before = self.chunks
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if self.failure is None:
                self._take_line(line.removesuffix(b"\r"))
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest = b""
            self._fail("protocol", f"a line of the stream is longer than {MAX_LINE_BYTES} bytes")
        self._mark(self.chunks - chunks_before, at_s)

    def finish(self, at_s: float) -> None:
        """Take the end of the body; a stream that stopped before its end mark is a ``protocol`` failure."""
        if self._rest:
            self.feed(b"\n", at_s)
        if self.failure is None and not self.is_complete:
            self._fail("protocol", self._incomplete())

    @property
    def text_length(self) -> int:
        """Return the characters of answer and reasoning together."""
        return sum(map(len, self.text_parts)) + sum(map(len, self.reasoning_parts))

    def _mark(self, arrived: int, at_s: float) -> None:
        if not arrived:
            return
        if self.last_token_at_s is None:
            self.first_token_at_s = at_s
        else:
            self.chunk_gaps_s.extend([(at_s - self.last_token_at_s) / arrived] * arrived)
        self.last_token_at_s = at_s

    def _fail(self, error_class: ErrorClass, message: str) -> None:
        if self.failure is None:
            self.failure = (error_class, message)

    def _take_json(self, raw: bytes) -> None:
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            self._fail("protocol", f"not JSON: {raw[:80].decode('utf-8', 'replace')}")
            return
        if not isinstance(document, dict):
            self._fail("protocol", f"not a JSON object: {raw[:80].decode('utf-8', 'replace')}")
        elif document.get("error") is not None or document.get("object") == "error":
            self._fail("server_error", _error_text(document))
        else:
            self._take_document(document)

    def _take_text(self, text: object, reasoning: object) -> None:
        has_text = isinstance(text, str) and text != ""
        has_reasoning = isinstance(reasoning, str) and reasoning != ""
        if has_text:
            self.text_parts.append(str(text))
        if has_reasoning:
            self.reasoning_parts.append(str(reasoning))
        self.chunks += has_text or has_reasoning

    def _take_line(self, line: bytes) -> None:
        raise NotImplementedError

    def _take_document(self, document: dict[str, Any]) -> None:
        raise NotImplementedError

    def _incomplete(self) -> str:
        raise NotImplementedError


class OpenAiStream(CompletionStream):
    """The stream of ``/v1/chat/completions``. vLLM's first chunk carries a role and no text: it is not a
    token.
    """

    def __init__(self) -> None:
        super().__init__()
        self._data: list[bytes] = []

    def finish(self, at_s: float) -> None:
        """Take the end of the body; a last event needs no blank line behind it."""
        self.feed(b"\n\n", at_s)
        super().finish(at_s)

    def _take_line(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            data = b"\n".join(self._data)
            self._data = []
            if data == b"[DONE]":
                self.is_complete = True
            else:
                self._take_json(data)

    def _take_document(self, document: dict[str, Any]) -> None:
        usage = document.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = _count(usage.get("prompt_tokens"), self.prompt_tokens)
            self.usage_tokens = _count(usage.get("completion_tokens"), self.usage_tokens)
        choices = document.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            return
        delta = choice.get("delta")
        if isinstance(delta, dict):
            # "reasoning_content" is DeepSeek's and older vLLM's name, "reasoning" that of newer vLLM.
            self._take_text(delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning"))
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]

    def _incomplete(self) -> str:
        return "the stream ended without [DONE]"


class OllamaStream(CompletionStream):
    """The stream of ``/api/generate``: one JSON object a line, the last one with ``done`` and the counts."""

    def _take_line(self, line: bytes) -> None:
        if line.strip():
            self._take_json(line)

    def _take_document(self, document: dict[str, Any]) -> None:
        self._take_text(document.get("response"), document.get("thinking"))
        if document.get("done") is True:
            self.is_complete = True
            self.prompt_tokens = _count(document.get("prompt_eval_count"), None)
            self.usage_tokens = _count(document.get("eval_count"), None)
            reason = document.get("done_reason")
            self.finish_reason = reason if isinstance(reason, str) else None
            for name in OLLAMA_TIMINGS:
                value = _count(document.get(name), None)
                if value is not None:
                    self.timings_ns[name] = value

    def _incomplete(self) -> str:
        return 'the stream ended without "done": true'


STREAMS: dict[Api, type[CompletionStream]] = {"openai": OpenAiStream, "ollama": OllamaStream}


def _count(value: object, default: int | None) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return int(value) if is_count and isinstance(value, int) else default


def _error_text(document: dict[str, Any]) -> str:
    error = document.get("error")
    if isinstance(error, dict):
        error = error.get("message") or json.dumps(error)
    return str(error if error is not None else document.get("message", "the server gave no message"))
