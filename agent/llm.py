"""A small client for ``POST /v1/chat/completions``, as OpenAI defined it and vLLM and Ollama serve it."""

from __future__ import annotations

import http.client
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.chat_request import CONNECT_TIMEOUT_S, ChatRequest, ConnectionLostError, NoAnswerError, Reply
from orchestrator.errors import ServiceAnswerError
from orchestrator.records import Endpoint
from orchestrator.truth import FRESH_S

log = logging.getLogger(__name__)
ERROR_CHARS = 300
# A server that is to end may still answer what it was asked, and a scheduler be silent for a moment.
GONE_S = 3.0
DEATH_IS_KNOWN_S = FRESH_S + 3.0
MAX_MOVES = 3
# Answers after which the same request may succeed: time-out, too many requests, and all of the server's own errors.
_TRANSIENT_STATUS = (408, 429)


class LlmError(ServiceAnswerError):
    """The model gave no usable answer.

    Attributes:
        is_transient: Whether the same request may succeed later.
    """

    def __init__(self, reason: str, is_transient: bool) -> None:
        self.is_transient = is_transient
        super().__init__(reason)


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        messages: The conversation, each with role and content.
        schema: JSON schema of the answer.
        seed: Makes the server's sampling repeatable, as far as it can.
    """

    messages: Sequence[dict[str, str]]
    schema: dict[str, Any]
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Completion:
    """One answer.

    Attributes:
        text: What the model wrote.
        is_cut_off: Whether max_tokens ended it.
        latency_s: From sending the request to having read the whole answer.
    """

    text: str
    is_cut_off: bool
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    model: str


class LlmClient:
    """Asks the run's LLM server, wherever it is: a server that is restarted while it is asked is somewhere else."""

    def __init__(
        self, find_endpoint: Callable[[], Endpoint], token_file: Path, timeout_s: float, default_model: str
    ) -> None:
        self._find_endpoint, self._token_file = find_endpoint, token_file
        self._timeout_s, self._default_model = timeout_s, default_model

    def complete(
        self, question: Question, idle: Callable[[], None], look_every_s: float, is_awaited: bool = True
    ) -> Completion:
        """Return the model's answer; a server that ends or moves meanwhile is asked again where it is then.

        Args:
            question: What is asked.
            idle: Called every ``look_every_s`` seconds meanwhile; whatever it raises ends the wait.
            look_every_s: See ``idle``.
            is_awaited: Whether a server that is not there at first is waited for, as long as for an answer.

        Raises:
            LlmError: no server, no answer in time, an HTTP error, or an answer of another form.
        """
        for _ in range(MAX_MOVES + 1):
            endpoint = self._await_endpoint(idle, look_every_s, self._timeout_s if is_awaited else 0.0)
            completion = self._ask(endpoint, question, idle, look_every_s)
            if completion is not None:
                return completion
            is_awaited = True
            log.warning("the LLM server at %s has ended or moved while it was asked; it is asked again", endpoint.url)
        raise LlmError(f"the server ended or moved {MAX_MOVES + 1} times while it was asked", is_transient=False)

    def _await_endpoint(self, idle: Callable[[], None], look_every_s: float, patience_s: float) -> Endpoint:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return self._find_endpoint()
            except ServiceAnswerError as error:
                if time.monotonic() >= deadline:
                    waited = f", {patience_s:g} s long" if patience_s else ""
                    # To try again at once would be to wait as long again.
                    raise LlmError(f"{error}{waited}", is_transient=not patience_s) from error
            time.sleep(look_every_s)
            idle()

    def _ask(
        self, endpoint: Endpoint, question: Question, idle: Callable[[], None], look_every_s: float
    ) -> Completion | None:
        """Return the answer of the server at ``endpoint``, or None if it has ended or moved before that."""
        model, token = endpoint.model or self._default_model, self._read_token()
        presence = _Presence(self._find_endpoint, endpoint.attempt)
        started = time.monotonic()
        request = self._send(endpoint.url, token, model, question)
        try:
            while not request.wait(look_every_s):
                if time.monotonic() - started > self._timeout_s + CONNECT_TIMEOUT_S:
                    raise LlmError(f"no whole answer within {self._timeout_s:g} s", is_transient=True)
                idle()
                if (presence.missing_s() or 0.0) > GONE_S:
                    return None
            latency_s = time.monotonic() - started
            return _read_completion(_read_reply(request.reply(), token), latency_s, model)
        except NoAnswerError as error:
            raise LlmError(f"no answer within {self._timeout_s:g} s", is_transient=True) from error
        except ConnectionLostError as error:
            # That its job is dead is known only when its heartbeat has stopped.
            deadline = time.monotonic() + DEATH_IS_KNOWN_S
            while time.monotonic() < deadline:
                idle()
                if presence.missing_s() is not None:
                    return None
                time.sleep(look_every_s)
            raise LlmError(_without(str(error), token)[:ERROR_CHARS], is_transient=True) from error
        finally:
            request.drop()

    def _read_token(self) -> str | None:
        try:
            return self._token_file.read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def _send(self, url: str, token: str | None, model: str, question: Question) -> ChatRequest:
        body = {
            "model": model,
            "messages": list(question.messages),
            "temperature": question.temperature,
            "max_tokens": question.max_tokens,
            "seed": question.seed,
            "stream": False,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "proposal", "schema": question.schema, "strict": True},
            },
        }
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        return ChatRequest(
            f"{url.rstrip('/')}/v1/chat/completions", headers, json.dumps(body).encode(), self._timeout_s
        )


class _Presence:
    """Whether one attempt of the server is still the one to ask."""

    def __init__(self, find_endpoint: Callable[[], Endpoint], attempt: str) -> None:
        self._find_endpoint, self._attempt = find_endpoint, attempt
        self._missing_since: float | None = None

    def missing_s(self) -> float | None:
        """Return for how long it has been missing, in seconds: infinity if another is there, None if it is there."""
        try:
            is_there = self._find_endpoint().attempt == self._attempt
        except ServiceAnswerError:
            now = time.monotonic()
            self._missing_since = now if self._missing_since is None else self._missing_since
            return now - self._missing_since
        self._missing_since = None
        return None if is_there else math.inf


def _read_reply(reply: Reply, token: str | None) -> Any:
    if reply.status != http.client.OK:
        raise _http_error(reply.status, _without(reply.text, token))
    try:
        return json.loads(reply.text)
    except ValueError as error:
        raise LlmError("the server's answer is not JSON", is_transient=True) from error


def _http_error(status: int, text: str) -> LlmError:
    is_transient = status in _TRANSIENT_STATUS or status >= 500
    return LlmError(f"HTTP {status}: {' '.join(text.split())[:ERROR_CHARS]}", is_transient)


def _without(text: str, token: str | None) -> str:
    return text.replace(token, "<token>") if token else text


def _read_completion(answer: Any, latency_s: float, model: str) -> Completion:
    try:
        choice = answer["choices"][0]
        text, usage = choice["message"]["content"], answer.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError("content is no text")
        return Completion(
            text=text,
            is_cut_off=choice.get("finish_reason") == "length",
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            latency_s=latency_s,
            model=str(answer.get("model") or model),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise LlmError(f"the server's answer is no chat completion ({error!r})", is_transient=False) from error
