"""What the load engine is asked to do and what it hands back, request by request."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Api = Literal["openai", "ollama"]
ErrorClass = Literal["connect", "timeout", "http_status", "protocol", "server_error", "zero_tokens"]
ERROR_CLASSES: tuple[ErrorClass, ...] = (
    "connect",
    "timeout",
    "http_status",
    "protocol",
    "server_error",
    "zero_tokens",
)


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """One completion to ask for.

    ``base_url`` has no path of the API and no trailing slash. ``None`` leaves a sampling parameter to the
    server. ``request_timeout_s`` covers the whole request, from connecting to the end of the body.
    """

    api: Api
    base_url: str
    model: str
    prompt: str
    max_tokens: int
    request_timeout_s: float
    temperature: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    system: str | None = None
    api_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """A closed-loop load: ``n_clients`` at once, each sending its requests one after the other.

    ``warmup_requests`` is their total over all clients; they end before the measurement starts.
    ``keep_text`` puts the generated text into the records.
    """

    request: RequestSpec
    n_clients: int
    n_requests_per_client: int
    processes: int = 1
    warmup_requests: int = 0
    keep_text: bool = False

    @property
    def total_requests(self) -> int:
        """Return how many requests are measured, without the warm-up."""
        return self.n_clients * self.n_requests_per_client


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What one request did. Times are in seconds of one monotonic clock, relative to the start of the
    measurement.

    ``intended_at_s`` is when the client was free to send; ``sent_at_s`` precedes connecting;
    ``first_byte_at_s`` is the arrival of the response's head; the token times are those of the first and
    last piece with text in it; ``eof_at_s`` is the end of the body or, for a failure, when it was noticed.
    ``chunks`` counts pieces with text. ``chunk_gaps_s`` has one entry for each piece after the first arrival:
    pieces that arrived in one read share the time since the read before.
    ``tokens_source`` says whether ``completion_tokens`` is the server's count or the number of chunks.
    ``loop_lag_s`` is the mean lateness of a timer in the worker while the request ran: the client's own
    error. ``warmup`` requests are not part of any figure.
    """

    client_id: int
    index: int
    intended_at_s: float
    sent_at_s: float
    eof_at_s: float
    first_byte_at_s: float | None = None
    first_token_at_s: float | None = None
    last_token_at_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    tokens_source: Literal["usage", "chunks"] | None = None
    chunks: int = 0
    chunk_gaps_s: Sequence[float] = field(default_factory=lambda: array("d"))
    finish_reason: str | None = None
    http_status: int | None = None
    error_class: ErrorClass | None = None
    error: str | None = None
    text_length: int = 0
    loop_lag_s: float = 0.0
    warmup: bool = False
    text: str | None = None

    @property
    def is_success(self) -> bool:
        """Return whether the whole answer arrived and has at least one token."""
        return self.error_class is None

    @property
    def e2e_s(self) -> float:
        """Return the seconds from sending to the end of the body, or to the failure."""
        return self.eof_at_s - self.sent_at_s

    @property
    def ttft_s(self) -> float | None:
        """Return the seconds from sending to the first text, connecting included; None where none came."""
        return None if self.first_token_at_s is None else self.first_token_at_s - self.sent_at_s
