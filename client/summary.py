"""The answer of a benchmark: the reference's fields, the figures, and whether they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from client.bodies import BenchmarkBody
from client.engine.metrics import compute_figures, invalid_reasons
from client.engine.spec import LoadSpec, RequestRecord

SCHEMA_VERSION = 1
_CHUNKS_NOTE = (
    "the server sent no usage for some answers: their tokens are the chunks with text, "
    "fewer than the tokens where a chunk carries several"
)


def build_summary(
    benchmark_id: str,
    body: BenchmarkBody,
    spec: LoadSpec,
    records: list[RequestRecord],
    *,
    started_at: float | None,
    cancelled: bool,
) -> dict[str, Any]:
    """Return what ``summary.json`` holds and what the answer has besides ``results``.

    ``started_at`` is the wall clock of the records' time zero, in seconds since the epoch.
    ``avg_request_time`` is over all requests, failed ones included, as ``queries_per_second`` is; the
    figures under ``metrics`` keep the two apart.
    """
    figures = compute_figures(records, expected=body.total_requests)
    reasons = invalid_reasons(figures, max_failed_share=body.max_failed_share, cancelled=cancelled)
    times_s = [record.e2e_s for record in records if not record.warmup]
    return {
        "schema_version": SCHEMA_VERSION,
        "id": benchmark_id,
        "state": "cancelled" if cancelled else "done",
        "started_at": started_at,
        "model": spec.request.model,
        "api": spec.request.api,
        "server_url": spec.request.base_url,
        "processes": min(spec.processes, spec.n_clients),
        "n_clients": body.n_clients,
        "n_requests_per_client": body.n_requests_per_client,
        "total_queries": body.total_requests,
        "successful": figures.successful,
        "failed": figures.failed,
        "total_time": figures.duration_s,
        "avg_request_time": sum(times_s) / len(times_s) if times_s else None,
        "queries_per_second": figures.total / figures.duration_s if figures.duration_s > 0 else 0.0,
        "valid": not reasons,
        "invalid_reasons": reasons,
        "notes": [_CHUNKS_NOTE] if figures.tokens_source in {"chunks", "mixed"} else [],
        "metrics": asdict(figures),
        "request": body.to_json(),
    }


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
