"""What the load engine is asked to do, in terms that travel to worker processes as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from client.errors import WorkloadError

Api = Literal["openai-chat", "openai-completions", "ollama-generate", "ollama-chat"]
PATHS: dict[Api, str] = {
    "openai-chat": "/v1/chat/completions",
    "openai-completions": "/v1/completions",
    "ollama-generate": "/api/generate",
    "ollama-chat": "/api/chat",
}
ErrorClass = Literal["connect", "timeout", "http_status", "protocol", "server_error", "zero_tokens", "unfinished"]
ERROR_CLASSES: tuple[ErrorClass, ...] = (
    "connect", "timeout", "http_status", "protocol", "server_error", "zero_tokens", "unfinished",
)  # fmt: skip


class Server(msgspec.Struct, frozen=True):
    """Whom the load is put on.

    Attributes:
        url: Scheme, host and port, and a path that goes before that of the API; no trailing slash.
        token: Sent as ``Authorization: Bearer``. Never log this.
        ca_file: Certificates to trust instead of the system's; None for those.
    """

    url: str
    api: Api
    token: str | None = None
    ca_file: str | None = None

    def __repr__(self) -> str:
        return f"Server({self.url!r}, {self.api!r})"


class Prompt(msgspec.Struct, frozen=True):
    """One request's content.

    Attributes:
        text: The prompt; with ``messages`` unused.
        messages: A chat, as (role, content).
        max_tokens: Output tokens at most; None for the workload's own.
    """

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    max_tokens: int | None = None


class Turn(msgspec.Struct, frozen=True):
    """What a user says, once the answer before it has ended.

    Attributes:
        text: The user's message alone.
        input_tokens: Those of ``text`` itself, where counted exactly; history and template come on top.
        max_tokens: Output tokens at most; None for the workload's own.
        think_s: The pause between the end of the answer before and this message, in seconds; 0 for the first turn.
        answer: What was answered when the conversation was recorded; None for a synthetic one.
    """

    text: str
    input_tokens: int | None = None
    max_tokens: int | None = None
    think_s: float = 0.0
    answer: str | None = None


class Conversation(msgspec.Struct, frozen=True):
    """Turns to be sent one after another, each with all that was said before."""

    turns: tuple[Turn, ...]
    system: str | None = None

    def prompt(self, turn: int, answers: Sequence[str]) -> Prompt:
        """Return the request of a turn.

        Args:
            turn: Counted from 0.
            answers: What was answered to each turn before it.

        Raises:
            WorkloadError: there are not as many answers as turns before this one.
        """
        if len(answers) != turn:
            raise WorkloadError(f"turn {turn} of a conversation follows on {turn} answers, not on {len(answers)}")
        said: list[tuple[str, str]] = [] if self.system is None else [("system", self.system)]
        for before, answer in zip(self.turns, answers, strict=False):
            said += [("user", before.text), ("assistant", answer)]
        said.append(("user", self.turns[turn].text))
        return Prompt(messages=tuple(said), max_tokens=self.turns[turn].max_tokens)

    def recorded_prompts(self) -> tuple[Prompt, ...]:
        """Return the requests of all turns with the recorded answers as history: they need not wait for each other.

        Raises:
            WorkloadError: an answer before the last turn is not recorded.
        """
        answers = [turn.answer for turn in self.turns[:-1]]
        known = [answer for answer in answers if answer is not None]
        if len(known) != len(answers):
            raise WorkloadError("a conversation without recorded answers can only be sent turn by turn")
        return tuple(self.prompt(number, known[:number]) for number in range(len(self.turns)))


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are chosen; None leaves it to the server."""

    model: str
    max_tokens: int
    temperature: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    system: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """The share of one worker in one measurement. Times are in seconds.

    Attributes:
        bodies: Encoded requests; request ``i`` of this worker sends ``bodies[i % len(bodies)]``.
        first_index, index_step: Request ``i`` of this worker is request ``first_index + i * index_step`` of all.
        clients: Ids of the clients of a closed loop; empty for an open one.
        starts_s: When each client begins, for a ramp; as many as ``clients``.
        requests_per_client: How many requests each client sends at most; None for no limit.
        requests: How many requests the clients send together at most; None for no limit.
        conversations: What clients say turn by turn, in the place of ``bodies``: once each, or again and again where
            requests or a duration limit the load. ``sampling`` is then needed.
        arrivals_s: When each request of an open loop is to be sent, ascending; empty for a closed loop.
        duration_s: No request is begun later than this.
        warmup: Requests that are sent, and waited for, before the measurement begins.
        timeout_s: How long one request may take, from its sending to the end of its body.
        keeps_text: Whether generated texts are kept.
        rows, gaps, texts: Files that this worker writes; see client/load/rows.py.
    """

    server: Server
    bodies: tuple[bytes, ...]
    rows: str
    gaps: str
    texts: str
    first_index: int = 0
    index_step: int = 1
    clients: tuple[int, ...] = ()
    starts_s: tuple[float, ...] = ()
    requests_per_client: int | None = None
    requests: int | None = None
    conversations: tuple[Conversation, ...] = ()
    sampling: Sampling | None = None
    arrivals_s: tuple[float, ...] = ()
    duration_s: float | None = None
    warmup: int = 0
    timeout_s: float = 120.0
    keeps_text: bool = False
