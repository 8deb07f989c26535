"""The answer of a benchmark: the reference's fields, the figures, and whether they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from client.bodies import BenchmarkBody
from client.load.bench import Bench, Outcome
from client.load.export import Summary

_CHUNKS_NOTE = (
    "the server sent no usage for some answers: their tokens are the chunks with text, "
    "fewer than the tokens where a chunk carries several"
)


class BenchmarkSummary(Summary, frozen=True, kw_only=True):
    """``summary.json`` of a benchmark of the service: a load's summary, with the reference's fields beside.

    Attributes:
        n_clients, n_requests_per_client: None where the load is not counted in clients.
        total_time, queries_per_second: Over all requests, failed ones included, in seconds and per second; the
            figures' own rates keep the two apart.
        avg_request_time: From sending to the end, over all requests, in seconds; None without any.
        request: The benchmark as asked for.
    """

    id: str
    state: Literal["done", "cancelled"]
    model: str
    api: str
    server_url: str
    n_clients: int | None
    n_requests_per_client: int | None
    total_queries: int
    total_time: float
    avg_request_time: float | None
    queries_per_second: float
    notes: tuple[str, ...]
    request: dict[str, Any]


def build_summary(benchmark_id: str, body: BenchmarkBody, bench: Bench, outcome: Outcome) -> BenchmarkSummary:
    """Return what ``summary.json`` holds and what the answer has besides ``results``."""
    found, columns = outcome.summary, outcome.main.analysis.columns
    times_s = columns.eof_s - columns.sent_s
    counted = body.counts_clients
    return BenchmarkSummary(
        **{name: getattr(found, name) for name in Summary.__struct_fields__},
        id=benchmark_id,
        state="cancelled" if outcome.was_cancelled else "done",
        model=bench.sampling.model,
        api=bench.server.api,
        server_url=bench.server.url,
        n_clients=body.n_clients if counted else None,
        n_requests_per_client=body.n_requests_per_client if counted else None,
        total_queries=found.total,
        total_time=found.duration_s,
        avg_request_time=float(times_s.mean()) if len(times_s) else None,
        queries_per_second=found.total / found.duration_s if found.duration_s > 0 else 0.0,
        notes=(_CHUNKS_NOTE,) if found.tokens_source in {"chunks", "mixed"} else (),
        request=body.to_json(),
    )


def as_document(summary: BenchmarkSummary) -> dict[str, Any]:
    """Return ``summary`` as JSON has it."""
    document: dict[str, Any] = msgspec.to_builtins(summary)
    return document


def result_entry(record: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return one entry of ``results`` from a line of ``requests.jsonl``, under the reference's names where
    it has them.

    ``response`` is there if the responses were kept.
    """
    first_token_at_s = record["first_token_at_s"]
    entry = {
        "client_id": record["client_id"],
        "index": record["index"],
        "success": record["error_class"] is None,
        "model": model,
        "request_time": record["eof_at_s"] - record["sent_at_s"],
        "ttft_s": None if first_token_at_s is None else first_token_at_s - record["sent_at_s"],
        "prompt_tokens": record["prompt_tokens"],
        "completion_tokens": record["completion_tokens"],
        "prompt_eval_count": record["prompt_tokens"],
        "eval_count": record["completion_tokens"],
        "finish_reason": record["finish_reason"],
        "http_status": record["http_status"],
        "error_class": record["error_class"],
        "error": record["error"],
    }
    if "text" in record:
        entry["response"] = record["text"]
    return entry
