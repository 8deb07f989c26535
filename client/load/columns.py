"""Requests of a measurement as columns: every latency of every request at once.

Definitions, over requests that succeeded: the first token is the first piece with text in it, reasoning
included; a chunk holds one token where the tokens exceed the chunks by at most one (the unseen end-of-sequence token),
else tokens / chunks; TPOT divides the time from the first to the last piece by the tokens after the first arrival. Each
latency exists twice: from sending ("service time"), and from the time at which it was meant to be sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from client.load.rows import MEASURED
from client.load.run import Measurement

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Window = tuple[float, float]


@dataclass(frozen=True)
class Columns:
    """Measured requests, the warm-up left out, in the order of their intended times.

    Arrays have one entry a request, seconds since the common start, NaN where something did not happen.
    """

    rows: npt.NDArray[np.void]
    all_gaps: Floats

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def is_open(self) -> bool:
        """Whether the load was an open loop: its requests belong to no client."""
        return len(self) > 0 and bool((self.rows["client"] < 0).all())

    @cached_property
    def is_success(self) -> Flags:
        """Which requests brought a whole answer."""
        return np.asarray(self.rows["error"] < 0)

    @cached_property
    def intended_s(self) -> Floats:
        """When each request was meant to be sent; in a closed loop, when its client was free to."""
        return np.ascontiguousarray(self.rows["intended_s"])

    @cached_property
    def sent_s(self) -> Floats:
        """When each request was sent."""
        return np.ascontiguousarray(self.rows["sent_s"])

    @cached_property
    def eof_s(self) -> Floats:
        """When each answer had ended, or its failure was noticed; never before it was sent."""
        return np.asarray(np.maximum(self.rows["eof_s"], self.rows["sent_s"]))

    @cached_property
    def start_s(self) -> Floats:
        """From when latency counts: the intended time in an open loop, the sending in a closed one."""
        return self.intended_s if self.is_open else self.sent_s

    @cached_property
    def first_s(self) -> Floats:
        """When the first text came, be it reasoning or content."""
        return np.asarray(np.fmin(self.rows["first_reasoning_s"], self.rows["first_content_s"]))

    @cached_property
    def content_s(self) -> Floats:
        """When the first text came that is no reasoning."""
        return np.ascontiguousarray(self.rows["first_content_s"])

    @cached_property
    def last_s(self) -> Floats:
        """When the last text came."""
        return np.ascontiguousarray(self.rows["last_token_s"])

    @cached_property
    def tokens(self) -> Ints:
        """Output tokens of each request, zero for a failed one."""
        return np.where(self.is_success, self.rows["completion_tokens"], 0).astype(np.int64)

    @cached_property
    def prompt_tokens(self) -> Ints:
        """Prompt tokens of each request, zero for a failed one and where the server did not say."""
        return np.where(self.is_success, np.maximum(self.rows["prompt_tokens"], 0), 0).astype(np.int64)

    @cached_property
    def tokens_per_chunk(self) -> Floats:
        """How many tokens a piece of each stream held."""
        tokens, chunks = self.rows["completion_tokens"], self.rows["chunks"]
        is_single = (chunks < 1) | (tokens - chunks <= 1)
        return np.where(is_single, 1.0, tokens / np.maximum(chunks, 1))

    @cached_property
    def gap_count(self) -> Ints:
        """Gaps between pieces of each request that succeeded, zero for the others."""
        return np.where(self.is_success, self.rows["gap_count"], 0).astype(np.int64)

    @cached_property
    def gaps_s(self) -> Floats:
        """Gaps between pieces of the requests that succeeded, request after request."""
        counts = self.gap_count
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        place = np.repeat(self.rows["gap_start"] - ends + counts, counts) + np.arange(total)
        return np.asarray(self.all_gaps[place])

    @cached_property
    def token_gaps_s(self) -> Floats:
        """Each of ``gaps_s`` divided by the tokens in a piece of its stream."""
        if (self.tokens_per_chunk == 1.0).all():
            return self.gaps_s
        return self.gaps_s / np.repeat(self.tokens_per_chunk, self.gap_count)

    @cached_property
    def itl_s(self) -> Floats:
        """Mean time between tokens of each request; NaN for a stream of a single arrival."""
        return _divide(self.per_request(self.gaps_s), self.gap_count * self.tokens_per_chunk)

    @cached_property
    def tpot_s(self) -> Floats:
        """Time per output token after the first arrival; NaN for a stream of a single arrival."""
        return _divide(self.last_s - self.first_s, self.gap_count * self.tokens_per_chunk)

    def per_request(self, of_gaps: Floats | Flags) -> Floats:
        """Return the sum of ``of_gaps``, which has one entry for each of ``gaps_s``, over each request."""
        sums = np.concatenate([[0.0], np.cumsum(of_gaps, dtype=np.float64)])
        ends = np.cumsum(self.gap_count)
        return np.asarray(sums[ends] - sums[ends - self.gap_count])

    def within(self, window: Window) -> Columns:
        """Return the requests that were meant to be sent (closed loop: were sent) within ``window``, in seconds."""
        kept = (self.start_s >= window[0]) & (self.start_s < window[1])
        return self if kept.all() else Columns(self.rows[kept], self.all_gaps)


def columns_of(measurement: Measurement) -> Columns:
    """Return the requests of ``measurement`` without its warm-up."""
    rows = measurement.rows[measurement.rows["phase"] == MEASURED]
    return Columns(rows[np.lexsort((rows["index"], rows["intended_s"]))], measurement.gaps)


def _divide(amounts: Floats, counts: Floats) -> Floats:
    return np.asarray(np.divide(amounts, counts, out=np.full(len(counts), np.nan), where=counts > 0))
