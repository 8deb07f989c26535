"""One completion for ``/query`` and ``/simple-test``, sent and timed as the benchmark's are."""

from __future__ import annotations

from typing import Any

from client.bodies import Completion
from client.load.once import Answered, ask_once
from client.load.payloads import encode_request

SIMPLE_TEST_PROMPT = "Why is the sky blue? Answer in one sentence."


def run_query(wanted: Completion) -> Answered:
    """Send one request and return its answer; failures are told in it."""
    request = encode_request(wanted.server, wanted.sampling, wanted.prompt)
    return ask_once(wanted.server, request, wanted.timeout_s)


def query_answer(wanted: Completion, answered: Answered) -> tuple[dict[str, Any], int]:
    """Return the JSON answer and the HTTP status for ``answered``.

    A failure of the LLM server is 502, its time-out 504. Ollama's durations are in nanoseconds, as Ollama's
    are.
    """
    exchange, reply = answered.exchange, answered.reply
    first_s = min((at_s for at_s in (reply.first_reasoning_s, reply.first_content_s) if at_s == at_s), default=None)
    answer: dict[str, Any] = {
        "model": wanted.sampling.model,
        "request_time": exchange.eof_s - exchange.sent_s,
        "ttft_s": None if first_s is None else first_s - exchange.sent_s,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.tokens,
        "prompt_eval_count": reply.prompt_tokens,
        "eval_count": reply.tokens,
        "tokens_source": "usage" if reply.usage_tokens is not None else "chunks" if reply.chunks else None,
        "finish_reason": reply.finish_reason,
    }
    if reply.failure is not None:
        error_class, words = reply.failure
        status = exchange.head.status if exchange.head is not None else None
        answer |= {"error": words, "error_class": error_class, "http_status": status}
        return answer, 504 if error_class == "timeout" else 502
    answer |= {"response": reply.text, **reply.timings_ns}
    if reply.reasoning_parts:
        answer["reasoning"] = "".join(reply.reasoning_parts)
    return answer, 200
