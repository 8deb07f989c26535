"""The bodies of ``POST /query`` and ``POST /benchmark``, checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from client.errors import FieldError, InvalidInputError, WorkloadError
from client.fields import ID_ALLOWED, FieldReader, is_valid_id
from client.load.bench import Bench
from client.load.inputs import Wanted, check, make_bench
from client.load.spec import Prompt, Sampling, Server
from client.target import Target

MAX_PROMPT_CHARS = 1_000_000
MAX_MODEL_CHARS = 512
MAX_OUTPUT_TOKENS = 1_000_000
MAX_TIMEOUT_S = 86_400.0
MAX_CLIENTS = 100_000
MAX_REQUESTS_PER_CLIENT = 1_000_000
MAX_TOTAL_REQUESTS = 1_000_000
MAX_WARMUP_REQUESTS = 100_000
DEFAULT_MAX_FAILED_SHARE = 0.05
MAX_LOADS = 100
MAX_RATE_PER_S = 100_000.0
MAX_REPEATS = 100
MAX_TERMS_CHARS = 300
MAX_EXPORTERS = 64
MAX_CONTINUED = 100
MAX_ID_CHARS = 64
_SAMPLING_FIELDS = ("prompt", "model", "max_tokens", "temperature", "seed", "system")
# Texts that are read as `orch.py bench` reads its options of the same names.
_TERMS = ("input_tokens", "output_tokens", "shared_prefixes", "turns", "think_time", "slo")
_SHAPE_FIELDS = (
    "concurrency", "rate", "arrivals", "burstiness", "requests", "duration_s", "ramp_s", "warmup_s", "cooldown_s",
    "repeats", "find_capacity", "self_check", *_TERMS,
)  # fmt: skip
_BENCHMARK_FIELDS = (
    *_SAMPLING_FIELDS,
    *_SHAPE_FIELDS,
    "n_clients",
    "n_requests_per_client",
    "ignore_eos",
    "request_timeout_s",
    "warmup_requests",
    "async",
    "background",
    "exporters",
    "continues",
    "id",
    "keep_responses",
    "max_failed_share",
)


_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class QueryDefaults:
    """What a body may leave out. ``request_timeout_s`` is the reference's 120 s unless the service was told
    else.
    """

    max_tokens: int = 64
    request_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion, addressed."""

    server: Server
    sampling: Sampling
    prompt: Prompt
    timeout_s: float


@dataclass(frozen=True, slots=True)
class QueryBody:
    """One completion as asked for; ``model`` None means the one that the server serves."""

    prompt: str | None
    model: str | None
    max_tokens: int
    temperature: float | None
    seed: int | None
    system: str | None
    ignore_eos: bool
    request_timeout_s: float

    def model_of(self, target: Target) -> str:
        """Return the model to ask for.

        Raises:
            InvalidInputError: none is known.
        """
        model = self.model or target.model
        if model is None:
            unknown = FieldError("model", "required: the server's model is not known", "the served model's name")
            raise InvalidInputError([unknown])
        return model

    def to_completion(self, target: Target, api_token: str | None) -> Completion:
        """Return this completion addressed to ``target``.

        Raises:
            InvalidInputError: no model is known.
        """
        sampling = Sampling(self.model_of(target), self.max_tokens, self.temperature, self.seed, system=self.system)
        return Completion(target.server(api_token), sampling, Prompt(self.prompt or ""), self.request_timeout_s)


@dataclass(frozen=True, slots=True)
class LoadShape:
    """A load as ``orch.py bench`` takes it; without ``concurrency`` and ``rate`` the clients are counted instead."""

    concurrency: tuple[float, ...] | None
    rate: tuple[float, ...] | None
    arrivals: str
    burstiness: float
    requests: int | None
    duration_s: float | None
    ramp_s: float
    warmup_s: float
    cooldown_s: float
    repeats: int
    find_capacity: bool
    self_check: bool
    input_tokens: str | None
    output_tokens: str | None
    shared_prefixes: str | None
    turns: str | None
    think_time: str | None
    slo: str | None


@dataclass(frozen=True, slots=True)
class BenchmarkBody:
    """A benchmark as asked for; ``id`` and ``background`` are about the asking only."""

    query: QueryBody
    shape: LoadShape
    n_clients: int
    n_requests_per_client: int
    warmup_requests: int
    keep_responses: bool
    max_failed_share: float
    exporters: tuple[str, ...]
    continues: tuple[str, ...]
    background: bool
    id: str | None

    @property
    def counts_clients(self) -> bool:
        """Return whether the load is ``n_clients`` with ``n_requests_per_client`` each."""
        return self.shape.concurrency is None and self.shape.rate is None

    def to_json(self) -> dict[str, Any]:
        """Return the benchmark's own fields, defaults resolved, flat as in a request's body."""
        fields = asdict(self)
        query, shape = fields.pop("query"), fields.pop("shape")
        return {**query, **shape, **{name: fields[name] for name in fields if name not in {"background", "id"}}}

    def fingerprint(self) -> str:
        """Return a hash over what shapes the load: what two requests for one benchmark have in common."""
        fields = self.to_json()
        # Its default follows ``background``: asking again in the other way is asking for the same benchmark.
        del fields["keep_responses"]
        # Whoever asks again may know of others by now.
        del fields["exporters"], fields["continues"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def to_bench(self, target: Target, api_token: str | None, processes: int | None) -> Bench:
        """Return this benchmark addressed to ``target``, which may be asked for token counts.

        Raises:
            InvalidInputError: no model is known, or fields do not go together.
        """
        return _as_fields(make_bench, self._wanted(target, api_token, processes))

    def check(self, target: Target) -> None:
        """Look whether the fields go together, without asking ``target``.

        Raises:
            InvalidInputError: no model is known, or fields do not go together.
        """
        _as_fields(check, self._wanted(target, None, None))

    def _wanted(self, target: Target, api_token: str | None, processes: int | None) -> Wanted:
        query, shape = self.query, self.shape
        prefixes = None
        if shape.shared_prefixes is not None:
            count, _, lengths = shape.shared_prefixes.partition(":")
            prefixes = (int(count), lengths)
        return Wanted(
            server=target.server(api_token),
            model=query.model_of(target),
            kind="concurrency" if shape.rate is None else "rate",
            loads=shape.rate or shape.concurrency or (float(self.n_clients),),
            requests=shape.requests,
            requests_per_client=self.n_requests_per_client if self.counts_clients else None,
            duration_s=shape.duration_s,
            prompt=query.prompt,
            system=query.system,
            input_tokens=shape.input_tokens,
            output_tokens=shape.output_tokens,
            shared_prefixes=prefixes,
            turns=shape.turns,
            think_s=shape.think_time,
            max_tokens=query.max_tokens,
            temperature=query.temperature,
            ignore_eos=query.ignore_eos,
            seed=abs(query.seed or 0),
            sampling_seed=query.seed,
            arrivals=shape.arrivals,
            burstiness=shape.burstiness,
            ramp_s=shape.ramp_s,
            processes=processes,
            warmup=self.warmup_requests,
            warmup_s=shape.warmup_s,
            cooldown_s=shape.cooldown_s,
            timeout_s=query.request_timeout_s,
            repeats=shape.repeats,
            finds_capacity=shape.find_capacity,
            slo=shape.slo,
            max_failed_share=self.max_failed_share,
            keeps_text=self.keep_responses,
            has_self_check=shape.self_check,
            exporters=self.exporters,
        )


def _as_fields(make: Callable[[Wanted], _Made], wanted: Wanted) -> _Made:
    """Return what is made of ``wanted``; what cannot be is told in the words of a body's fields."""
    try:
        return make(wanted)
    except WorkloadError as error:
        # Its words name options of `orch.py bench`, which are these fields.
        words = re.sub(r"--([a-z-]+)", lambda found: found[1].replace("-", "_"), str(error))
        raise InvalidInputError([FieldError("body", words, "see client/README.md")]) from error


def read_query(document: object, defaults: QueryDefaults) -> QueryBody:
    """Return the query that ``document`` asks for.

    Raises:
        InvalidInputError: carries everything that is wrong.
    """
    reader = FieldReader(document, _SAMPLING_FIELDS)
    query = _read_sampling(reader, defaults, ignore_eos=False, request_timeout_s=defaults.request_timeout_s)
    reader.finish()
    return query


def read_benchmark(document: object, defaults: QueryDefaults) -> BenchmarkBody:
    """Return the benchmark that ``document`` asks for.

    Responses are kept by default where the caller waits for them, as the reference does, and not in the
    background.

    Raises:
        InvalidInputError: carries everything that is wrong.
    """
    reader = FieldReader(document, _BENCHMARK_FIELDS)
    timeout_s = reader.number("request_timeout_s", 0.001, MAX_TIMEOUT_S, defaults.request_timeout_s)
    # The same under two names: "async" is the field's word for it.
    background = reader.boolean("async", reader.boolean("background", False))
    shape = _read_shape(reader)
    body = BenchmarkBody(
        query=_read_sampling(
            reader,
            defaults,
            ignore_eos=reader.boolean("ignore_eos", False),
            request_timeout_s=timeout_s,
            needs_prompt=shape.input_tokens is None,
        ),
        shape=shape,
        n_clients=reader.integer("n_clients", 1, MAX_CLIENTS, 1),
        n_requests_per_client=reader.integer("n_requests_per_client", 1, MAX_REQUESTS_PER_CLIENT, 1),
        warmup_requests=reader.integer("warmup_requests", 0, MAX_WARMUP_REQUESTS, 0),
        keep_responses=reader.boolean("keep_responses", not background),
        max_failed_share=reader.number("max_failed_share", 0.0, 1.0, DEFAULT_MAX_FAILED_SHARE),
        exporters=reader.texts("exporters", MAX_TERMS_CHARS, MAX_EXPORTERS),
        continues=reader.texts("continues", MAX_ID_CHARS, MAX_CONTINUED),
        background=background,
        id=reader.identifier("id"),
    )
    if not all(is_valid_id(one) for one in body.continues):
        reader.reject("continues", "names what is no id", ID_ALLOWED)
    _check_load(reader, body)
    reader.finish()
    return body


def _read_shape(reader: FieldReader) -> LoadShape:
    terms = {name: reader.text(name, max_chars=MAX_TERMS_CHARS, is_label=True) for name in _TERMS}
    for name in set(_TERMS) - {"slo"}:
        if "file:" in (terms[name] or ""):
            reader.reject(name, "names a file", "lengths without file:, as no file of this machine is read")
            terms[name] = None
    if terms["shared_prefixes"] and not re.fullmatch(r"[1-9][0-9]{0,5}:.+", terms["shared_prefixes"]):
        reader.reject("shared_prefixes", f"is {terms['shared_prefixes']}", "N:LENGTHS, as in 8:1024")
        terms["shared_prefixes"] = None

    def seconds(name: str) -> float:
        return reader.number(name, 0.0, MAX_TIMEOUT_S, 0.0)

    return LoadShape(
        concurrency=reader.numbers("concurrency", 1, MAX_CLIENTS, MAX_LOADS),
        rate=reader.numbers("rate", 1e-6, MAX_RATE_PER_S, MAX_LOADS),
        arrivals=reader.choice("arrivals", ("poisson", "constant", "gamma")),
        burstiness=reader.number("burstiness", 0.001, 1000.0, 1.0),
        requests=reader.integer("requests", 1, MAX_TOTAL_REQUESTS, 1) if reader.has("requests") else None,
        duration_s=reader.number("duration_s", 0.1, MAX_TIMEOUT_S, 1.0) if reader.has("duration_s") else None,
        ramp_s=seconds("ramp_s"),
        warmup_s=seconds("warmup_s"),
        cooldown_s=seconds("cooldown_s"),
        repeats=reader.integer("repeats", 1, MAX_REPEATS, 1),
        find_capacity=reader.boolean("find_capacity", False),
        self_check=reader.boolean("self_check", True),
        **terms,
    )


def _check_load(reader: FieldReader, body: BenchmarkBody) -> None:
    shape = body.shape
    counted = [name for name in ("n_clients", "n_requests_per_client") if reader.has(name)]
    if shape.concurrency is not None and shape.rate is not None:
        reader.reject("rate", "is given beside concurrency", "one of the two")
    if body.counts_clients:
        for name in ("requests", "duration_s"):
            if reader.has(name):
                reader.reject(name, "is given without concurrency and rate", "n_requests_per_client")
    elif counted:
        reader.reject(counted[0], "is given beside concurrency or rate", "requests or duration_s")
    if body.query.prompt is not None and shape.input_tokens is not None:
        reader.reject("input_tokens", "makes prompts, and there is one", "prompt or input_tokens")
    total = body.n_clients * body.n_requests_per_client
    if total > MAX_TOTAL_REQUESTS:
        product = f"{body.n_clients} x {body.n_requests_per_client} = {total} requests"
        reader.reject("n_requests_per_client", product, f"at most {MAX_TOTAL_REQUESTS} requests in all")


def _read_sampling(
    reader: FieldReader,
    defaults: QueryDefaults,
    *,
    ignore_eos: bool,
    request_timeout_s: float,
    needs_prompt: bool = True,
) -> QueryBody:
    read_prompt = reader.required_text if needs_prompt else reader.text
    return QueryBody(
        prompt=read_prompt("prompt", max_chars=MAX_PROMPT_CHARS),
        model=reader.text("model", max_chars=MAX_MODEL_CHARS, is_label=True),
        max_tokens=reader.integer("max_tokens", 1, MAX_OUTPUT_TOKENS, defaults.max_tokens),
        temperature=reader.number("temperature", 0.0, 2.0, 0.0) if reader.has("temperature") else None,
        seed=reader.integer("seed", -(2**63), 2**63 - 1, 0) if reader.has("seed") else None,
        system=reader.text("system", max_chars=MAX_PROMPT_CHARS),
        ignore_eos=ignore_eos,
        request_timeout_s=request_timeout_s,
    )
