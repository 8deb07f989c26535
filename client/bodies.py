"""The bodies of ``POST /query`` and ``POST /benchmark``, checked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from client.engine.spec import LoadSpec, RequestSpec
from client.errors import FieldError, InvalidInputError
from client.fields import FieldReader
from client.target import Target

MAX_PROMPT_CHARS = 1_000_000
MAX_MODEL_CHARS = 512
MAX_OUTPUT_TOKENS = 1_000_000
MAX_TIMEOUT_S = 86_400.0
MAX_CLIENTS = 10_000
MAX_REQUESTS_PER_CLIENT = 1_000_000
MAX_TOTAL_REQUESTS = 1_000_000
MAX_WARMUP_REQUESTS = 100_000
DEFAULT_MAX_FAILED_SHARE = 0.05
_SAMPLING_FIELDS = ("prompt", "model", "max_tokens", "temperature", "seed", "system")
_BENCHMARK_FIELDS = (
    *_SAMPLING_FIELDS,
    "n_clients",
    "n_requests_per_client",
    "ignore_eos",
    "request_timeout_s",
    "warmup_requests",
    "async",
    "background",
    "id",
    "keep_responses",
    "max_failed_share",
)


@dataclass(frozen=True, slots=True)
class QueryDefaults:
    """What a body may leave out. ``request_timeout_s`` is the reference's 120 s unless the service was told
    else.
    """

    max_tokens: int = 64
    request_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True)
class QueryBody:
    """One completion as asked for; ``model`` None means the one that the server serves."""

    prompt: str
    model: str | None
    max_tokens: int
    temperature: float | None
    seed: int | None
    system: str | None
    ignore_eos: bool
    request_timeout_s: float

    def to_request(self, target: Target, api_token: str | None) -> RequestSpec:
        """Return this completion addressed to ``target``.

        Raises:
            InvalidInputError: no model is known, or the server's API has no such option.
        """
        errors = []
        model = self.model or target.model
        if model is None:
            errors.append(FieldError("model", "required: the server's model is not known", "the served model's name"))
        if self.ignore_eos and target.api == "ollama":
            errors.append(FieldError("ignore_eos", "Ollama has no such option", [False]))
        if errors or model is None:
            raise InvalidInputError(errors)
        return RequestSpec(
            api=target.api,
            base_url=target.url,
            model=model,
            prompt=self.prompt,
            max_tokens=self.max_tokens,
            request_timeout_s=self.request_timeout_s,
            temperature=self.temperature,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            system=self.system,
            api_token=api_token,
        )


@dataclass(frozen=True, slots=True)
class BenchmarkBody:
    """A benchmark as asked for; ``id`` and ``background`` are about the asking only."""

    query: QueryBody
    n_clients: int
    n_requests_per_client: int
    warmup_requests: int
    keep_responses: bool
    max_failed_share: float
    background: bool
    id: str | None

    @property
    def total_requests(self) -> int:
        """Return how many requests will be measured."""
        return self.n_clients * self.n_requests_per_client

    def to_json(self) -> dict[str, object]:
        """Return the benchmark's own fields, defaults resolved, flat as in a request's body."""
        fields = asdict(self)
        query = fields.pop("query")
        return {**query, **{name: fields[name] for name in fields if name not in {"background", "id"}}}

    def fingerprint(self) -> str:
        """Return a hash over what shapes the load: what two requests for one benchmark have in common."""
        fields = self.to_json()
        # Its default follows ``background``: asking again in the other way is asking for the same benchmark.
        del fields["keep_responses"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    def to_load(self, target: Target, api_token: str | None, processes: int) -> LoadSpec:
        """Return this benchmark addressed to ``target``.

        Raises:
            InvalidInputError: see ``QueryBody.to_request``.
        """
        return LoadSpec(
            request=self.query.to_request(target, api_token),
            n_clients=self.n_clients,
            n_requests_per_client=self.n_requests_per_client,
            processes=processes,
            warmup_requests=self.warmup_requests,
            keep_text=self.keep_responses,
        )


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
    body = BenchmarkBody(
        query=_read_sampling(
            reader,
            defaults,
            ignore_eos=reader.boolean("ignore_eos", False),
            request_timeout_s=timeout_s,
        ),
        n_clients=reader.integer("n_clients", 1, MAX_CLIENTS, 1),
        n_requests_per_client=reader.integer("n_requests_per_client", 1, MAX_REQUESTS_PER_CLIENT, 1),
        warmup_requests=reader.integer("warmup_requests", 0, MAX_WARMUP_REQUESTS, 0),
        keep_responses=reader.boolean("keep_responses", not background),
        max_failed_share=reader.number("max_failed_share", 0.0, 1.0, DEFAULT_MAX_FAILED_SHARE),
        background=background,
        id=reader.identifier("id"),
    )
    if body.total_requests > MAX_TOTAL_REQUESTS:
        reader.reject(
            "n_requests_per_client",
            f"{body.n_clients} x {body.n_requests_per_client} = {body.total_requests} requests",
            f"at most {MAX_TOTAL_REQUESTS} requests in all",
        )
    reader.finish()
    return body


def _read_sampling(
    reader: FieldReader, defaults: QueryDefaults, *, ignore_eos: bool, request_timeout_s: float
) -> QueryBody:
    return QueryBody(
        prompt=reader.required_text("prompt", max_chars=MAX_PROMPT_CHARS),
        model=reader.text("model", max_chars=MAX_MODEL_CHARS, is_label=True),
        max_tokens=reader.integer("max_tokens", 1, MAX_OUTPUT_TOKENS, defaults.max_tokens),
        temperature=reader.number("temperature", 0.0, 2.0, 0.0) if reader.has("temperature") else None,
        seed=reader.integer("seed", -(2**63), 2**63 - 1, 0) if reader.has("seed") else None,
        system=reader.text("system", max_chars=MAX_PROMPT_CHARS),
        ignore_eos=ignore_eos,
        request_timeout_s=request_timeout_s,
    )
