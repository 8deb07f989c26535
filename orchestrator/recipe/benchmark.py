"""The benchmark of a recipe and the shape of its load."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from orchestrator.recipe.base import StrictModel, Word


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


DEFAULT_REQUESTS = 100
AtOnce = Annotated[int, Field(ge=1, le=100_000)]
PerSecond = Annotated[float, Field(gt=0, le=100_000)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]


class Load(StrictModel):
    """What load is put on the server, as `orch.py bench` has it. Lengths (`…_tokens`, `turns`, `think_time`) are texts:
    `512`, `uniform:100-200`, `mean=512,std=64,min=32,max=2048`, `lognormal:mean=512,std=300`.
    """

    concurrency: (
        Annotated[
            tuple[AtOnce, ...],
            BeforeValidator(_as_list, json_schema_input_type=AtOnce | tuple[AtOnce, ...]),
            Field(min_length=1, max_length=100),
        ]
        | None
    ) = None
    """Requests at once, in the place of service.n_clients; several make a sweep."""
    rate: (
        Annotated[
            tuple[PerSecond, ...],
            BeforeValidator(_as_list, json_schema_input_type=PerSecond | tuple[PerSecond, ...]),
            Field(min_length=1, max_length=100),
        ]
        | None
    ) = None
    """Requests per second, sent whatever becomes of those before; several make a sweep."""
    arrivals: Literal["poisson", "constant", "gamma"] = "poisson"
    """How the requests of a rate are spaced."""
    burstiness: Annotated[float, Field(ge=0.001, le=1000)] = 1.0
    """The shape of gamma arrivals: 1 is Poisson, less comes in bursts."""
    requests: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Of each measurement; 100 if neither this nor duration_s is given."""
    duration_s: Annotated[float, Field(ge=0.1, le=86_400)] | None = None
    """No request of a measurement begins later than this."""
    ramp_s: Seconds = 0.0
    """Over how long the clients begin."""
    warmup_s: Seconds = 0.0
    """Left out of the figures at the beginning of each measurement."""
    cooldown_s: Seconds = 0.0
    """Left out of the figures at the end of each measurement."""
    repeats: Annotated[int, Field(ge=1, le=100)] = 1
    find_capacity: bool = False
    """Search the highest rate that meets the objectives of slo, from the first rate on."""
    slo: Word | None = None
    """What a good request meets, such as `ttft_ms<=200,itl_ms<=20`."""
    input_tokens: Word | None = None
    """Synthetic prompts of such lengths, in the place of service.prompt."""
    output_tokens: Word | None = None
    """Lengths of answers, in the place of max_tokens."""
    shared_prefixes: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,5}:.+$", max_length=256)] | None = None
    """`N:LENGTHS`: synthetic prompts have one of N beginnings of such lengths."""
    turns: Word | None = None
    """Synthetic conversations of so many turns, each with all that was said before."""
    think_time: Word | None = None
    """Seconds between the turns of a conversation."""
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of requests that may fail in a valid benchmark."""
    self_check: bool = True
    """Measure first what the client itself adds to a time to first token."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.concurrency is not None and self.rate is not None:
            raise ValueError("concurrency and rate: one of the two")
        if self.concurrency is None and self.rate is None and (self.requests or self.duration_s):
            raise ValueError("requests and duration_s go with concurrency or rate, else service.n_requests_per_client")
        if self.find_capacity and (self.rate is None or self.slo is None):
            raise ValueError("find_capacity needs a rate to begin with, and slo")
        return self

    @property
    def counts_clients(self) -> bool:
        """Return whether the load is service.n_clients with service.n_requests_per_client each."""
        return self.concurrency is None and self.rate is None


class Benchmark(StrictModel):
    """The benchmark stage: service.n_clients × service.n_requests_per_client requests, unless load says else."""

    enabled: bool = True
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    ignore_eos: bool = False
    """Let the server generate max_tokens every time (vLLM only)."""
    warmup_requests: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Requests sent before the measured ones and left out of the figures."""
    seed: int = 0
    load: Load = Load()
    processes: Annotated[int, Field(ge=1, le=256)] | None = None
    """Load processes; one per 64 clients, 8 at most, if not given."""
    timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """Longest duration of the whole stage, in seconds."""
