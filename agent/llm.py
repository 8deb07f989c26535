"""A small client for ``POST /v1/chat/completions``, as OpenAI defined it and vLLM and Ollama serve it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import requests

from orchestrator.errors import ServiceAnswerError
from orchestrator.records import Endpoint

CONNECT_TIMEOUT_S = 10.0
ERROR_CHARS = 300
# Answers after which the same request may succeed: time-out, too many requests, and all of the server's own errors.
_TRANSIENT_STATUS = (408, 429)
ResultT = TypeVar("ResultT")


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
    """Asks the run's LLM server.

    The endpoint is looked up for every request, since a restarted server is somewhere else.
    """

    def __init__(
        self, find_endpoint: Callable[[], Endpoint], token_file: Path, timeout_s: float, default_model: str
    ) -> None:
        self._find_endpoint, self._token_file = find_endpoint, token_file
        self._timeout_s, self._default_model = timeout_s, default_model

    def complete(self, question: Question, idle: Callable[[], None], look_every_s: float) -> Completion:
        """Return the model's answer.

        Args:
            question: What is asked.
            idle: Called every ``look_every_s`` seconds meanwhile; whatever it raises ends the wait.
            look_every_s: See ``idle``.

        Raises:
            LlmError: no server, no answer in time, an HTTP error, or an answer of another form.
        """
        try:
            endpoint = self._find_endpoint()
        except ServiceAnswerError as error:
            raise LlmError(str(error), is_transient=True) from error
        model = endpoint.model or self._default_model
        token = self._read_token()
        started = time.monotonic()
        answer = _run_beside(
            lambda: self._post(endpoint.url, token, model, question), idle, look_every_s, self._timeout_s
        )
        return _read_completion(answer, time.monotonic() - started, model)

    def _read_token(self) -> str | None:
        try:
            return self._token_file.read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def _post(self, url: str, token: str | None, model: str, question: Question) -> Any:
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
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with requests.Session() as session:
                # A site's HTTP proxy cannot reach compute nodes, and a .netrc would replace the token.
                session.trust_env = False
                response = session.post(
                    f"{url.rstrip('/')}/v1/chat/completions",
                    json=body,
                    headers=headers,
                    timeout=(CONNECT_TIMEOUT_S, self._timeout_s),
                    allow_redirects=False,
                )
            if response.status_code != requests.codes.ok:
                raise _http_error(response.status_code, _without(response.text, token))
            return response.json()
        except requests.Timeout as error:
            raise LlmError(f"no answer within {self._timeout_s:g} s", is_transient=True) from error
        except requests.JSONDecodeError as error:
            raise LlmError("the server's answer is not JSON", is_transient=True) from error
        except requests.RequestException as error:
            raise LlmError(f"{type(error).__name__}: {_without(str(error), token)[:ERROR_CHARS]}", True) from error


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


def _run_beside(
    work: Callable[[], ResultT], idle: Callable[[], None], look_every_s: float, timeout_s: float
) -> ResultT:
    """Return the result of ``work``, done in a thread so that ``idle`` is called meanwhile.

    The thread is a daemon: a server that never answers must not hold up the end of the process.

    Raises:
        LlmError: ``work`` has not ended after ``timeout_s`` seconds, however much it has received by then.
    """
    done: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def report() -> None:
        try:
            done.put((True, work()))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits
            done.put((False, error))

    threading.Thread(target=report, name="llm-request", daemon=True).start()
    deadline = time.monotonic() + timeout_s + CONNECT_TIMEOUT_S
    while True:
        try:
            is_result, value = done.get(timeout=look_every_s)
        except queue.Empty:
            if time.monotonic() > deadline:
                raise LlmError(f"no whole answer within {timeout_s:g} s", is_transient=True) from None
            idle()
            continue
        if is_result:
            result: ResultT = value
            return result
        raise value
