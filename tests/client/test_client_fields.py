from __future__ import annotations

import json
from typing import Any

import pytest

from client.bodies import QueryDefaults, read_benchmark, read_query
from client.errors import InvalidInputError
from client.fields import is_valid_id, parse_json
from client.load.shapes import ClosedLoop
from client.target import Target

DEFAULTS = QueryDefaults()
GOOD = {"n_clients": 2, "n_requests_per_client": 3, "prompt": "p", "model": "m"}


def rejected(**fields: Any) -> dict[str, str]:
    with pytest.raises(InvalidInputError) as caught:
        read_benchmark({**GOOD, **fields}, DEFAULTS)
    assert all(error.allowed for error in caught.value.errors)
    return {error.field: error.message for error in caught.value.errors}


def test_read_benchmark_reference_body_is_accepted_with_the_references_defaults() -> None:
    body = read_benchmark(GOOD, DEFAULTS)
    assert (body.n_clients, body.n_requests_per_client, body.counts_clients) == (2, 3, True)
    assert (body.query.prompt, body.query.model, body.query.max_tokens) == ("p", "m", 64)
    assert body.query.request_timeout_s == 120.0
    assert (body.background, body.keep_responses, body.warmup_requests) == (False, True, 0)
    assert read_benchmark({"prompt": "p"}, DEFAULTS).n_clients == 1


def test_read_benchmark_many_errors_are_told_at_once() -> None:
    errors = rejected(
        n_clients=0,
        n_requests_per_client=True,
        prompt="",
        model=" m",
        max_tokens=1.5,
        temperature=3,
        seed=2**63,
        ignore_eos="yes",
        request_timeout_s=0,
        warmup_requests=-1,
        background=1,
        id="../x",
        promt="p",
    )
    assert set(errors) == {
        "n_clients",
        "n_requests_per_client",
        "prompt",
        "model",
        "max_tokens",
        "temperature",
        "seed",
        "ignore_eos",
        "request_timeout_s",
        "warmup_requests",
        "background",
        "id",
        "promt",
    }
    assert errors["promt"] == "unknown field; did you mean 'prompt'?"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", 7),
        ("prompt", "\ud800"),
        ("model", "a\nb"),
        ("n_clients", 10**400),
        ("temperature", 10**400),
        ("n_requests_per_client", 999_999),
        ("max_failed_share", 1.1),
    ],
)
def test_read_benchmark_odd_value_is_that_fields_error(field: str, value: object) -> None:
    assert list(rejected(**{field: value})) == [field]


@pytest.mark.parametrize("document", [None, [], "x", 3, True])
def test_read_query_not_an_object_is_an_error(document: object) -> None:
    with pytest.raises(InvalidInputError, match="body"):
        read_query(document, DEFAULTS)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"[" * 100_000, b"1" * 10_000],
)
def test_parse_json_broken_is_an_error(raw: bytes) -> None:
    with pytest.raises(InvalidInputError):
        parse_json(raw)


@pytest.mark.parametrize("value", ["", ".", "..", ".a", "-a", "a/b", "a\n", "a" * 65, "ä", "a b", "a%2e"])
def test_is_valid_id_unsafe_name_is_refused(value: str) -> None:
    assert not is_valid_id(value)


def test_fingerprint_ignores_how_it_was_asked_and_nothing_else() -> None:
    body = read_benchmark(GOOD, DEFAULTS)
    assert body.fingerprint() == read_benchmark({**GOOD, "background": True, "id": "x"}, DEFAULTS).fingerprint()
    assert body.fingerprint() != read_benchmark({**GOOD, "seed": 1}, DEFAULTS).fingerprint()
    assert json.dumps(body.to_json())


def test_to_bench_ollama_ignore_eos_is_refused() -> None:
    body = read_benchmark({**GOOD, "ignore_eos": True}, DEFAULTS)
    with pytest.raises(InvalidInputError, match="ignore_eos"):
        body.to_bench(Target("http://h:1", "ollama", None), None, 1)


def test_to_bench_has_the_clients_with_their_requests() -> None:
    bench = read_benchmark(GOOD, DEFAULTS).to_bench(Target("http://h:1", "openai", None), None, None)
    assert bench.shape(bench.loads[0]) == ClosedLoop(2, requests_per_client=3)
    assert bench.total == 6


def test_to_completion_no_model_anywhere_is_refused() -> None:
    body = read_query({"prompt": "p"}, DEFAULTS)
    with pytest.raises(InvalidInputError, match="model"):
        body.to_completion(Target("http://h:1", "openai", None), None)
    assert body.to_completion(Target("http://h:1", "openai", "served"), None).sampling.model == "served"
