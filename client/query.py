"""One completion for ``/query`` and ``/simple-test``, sent and timed as the benchmark's are."""

from __future__ import annotations

import asyncio
from typing import Any

from client.engine.http_request import Reply, open_session, prepare, send_request
from client.engine.spec import RequestSpec

SIMPLE_TEST_PROMPT = "Why is the sky blue? Answer in one sentence."


def run_query(spec: RequestSpec) -> Reply:
    """Send one request and return its reply; failures are told in its record."""
    return asyncio.run(_send(spec))


async def _send(spec: RequestSpec) -> Reply:
    async with open_session(spec) as session:
        return await send_request(session, prepare(spec))


def query_answer(spec: RequestSpec, reply: Reply) -> tuple[dict[str, Any], int]:
    """Return the JSON answer and the HTTP status for ``reply``.

    A failure of the LLM server is 502, its time-out 504. Ollama's durations are in nanoseconds, as Ollama's
    are.
    """
    record = reply.record
    answer: dict[str, Any] = {
        "model": spec.model,
        "request_time": record.e2e_s,
        "ttft_s": record.ttft_s,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "prompt_eval_count": record.prompt_tokens,
        "eval_count": record.completion_tokens,
        "tokens_source": record.tokens_source,
        "finish_reason": record.finish_reason,
    }
    if not record.is_success:
        answer |= {
            "error": record.error,
            "error_class": record.error_class,
            "http_status": record.http_status,
        }
        return answer, 504 if record.error_class == "timeout" else 502
    answer |= {"response": reply.text, **reply.timings_ns}
    if reply.reasoning:
        answer["reasoning"] = reply.reasoning
    return answer, 200
