"""One row of a measurement in words, under the names that requests have in files and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from client.load.driver import FINISH_REASONS
from client.load.rows import WARMUP
from client.load.spec import ERROR_CLASSES


def fields_of(row: Mapping[str, Any], note: Mapping[str, Any], zero_s: float = 0.0) -> dict[str, Any]:
    """Return what a row says; None for what did not happen.

    Args:
        row: The values of ROW by name.
        note: What was said of the request, or nothing.
        zero_s: When the measurement began, on the row's clock; times are counted from there, in seconds.
    """
    reasoning_s, content_s = _since(row["first_reasoning_s"], zero_s), _since(row["first_content_s"], zero_s)
    firsts = [at_s for at_s in (reasoning_s, content_s) if at_s is not None]
    return {
        "client_id": row["client"],
        "index": row["index"],
        "intended_at_s": _since(row["intended_s"], zero_s),
        "sent_at_s": _since(row["sent_s"], zero_s),
        "eof_at_s": _since(row["eof_s"], zero_s),
        "first_byte_at_s": _since(row["first_byte_s"], zero_s),
        "first_token_at_s": min(firsts, default=None),
        "first_reasoning_at_s": reasoning_s,
        "first_content_at_s": content_s,
        "last_token_at_s": _since(row["last_token_s"], zero_s),
        "prompt_tokens": row["prompt_tokens"] if row["prompt_tokens"] >= 0 else None,
        "completion_tokens": row["completion_tokens"],
        "tokens_source": "usage" if row["usage_tokens"] >= 0 else "chunks" if row["chunks"] else None,
        "chunks": row["chunks"],
        "finish_reason": FINISH_REASONS[row["finish"]] or None,
        "http_status": row["status"] or None,
        "error_class": ERROR_CLASSES[row["error"]] if row["error"] >= 0 else None,
        "error": note.get("error"),
        "text_length": row["text_length"],
        "loop_lag_s": row["loop_lag_s"],
        "warmup": row["phase"] == WARMUP,
    }


def _since(at_s: float, zero_s: float) -> float | None:
    return at_s - zero_s if at_s == at_s else None
