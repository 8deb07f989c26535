from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from client.app import ServiceSettings, create_app
from client.target import EndpointRecord
from tests.client.conftest import API_TOKEN, write_endpoint
from tests.client.fake_server import Behaviour, FakeServer

QUERY = {"prompt": "Your question", "model": "fake-model"}


def test_health_server_up_has_the_references_fields(http: FlaskClient, fake: FakeServer) -> None:
    answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json == {
        "status": "healthy",
        "ollama_host": "127.0.0.1",
        "server_url": fake.url,
        "server_ready": True,
        "model": "fake-model",
        "reason": None,
    }


def test_health_no_endpoint_yet_is_healthy_and_not_ready(settings: ServiceSettings, tmp_path: Path) -> None:
    http = create_app(replace(settings, source=EndpointRecord(tmp_path / "vllm.json"))).test_client()
    answer = http.get("/health")
    assert answer.status_code == 200
    assert answer.json is not None
    assert (answer.json["status"], answer.json["server_ready"], answer.json["ollama_host"]) == ("healthy", False, None)


def test_endpoint_published_later_is_used_without_restart(
    settings: ServiceSettings, tmp_path: Path, fake: FakeServer
) -> None:
    folder = tmp_path / "endpoints"
    http = create_app(replace(settings, source=EndpointRecord(folder / "vllm.json"))).test_client()
    for answer in (http.post("/query", json=QUERY), http.post("/benchmark", json=QUERY), http.get("/simple-test")):
        assert answer.status_code == 503
        assert answer.json is not None
        assert "has not published" in answer.json["error"]
    write_endpoint(folder, fake)
    assert http.post("/query", json=QUERY).status_code == 200


def test_query_answer_has_text_times_and_counts(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = Behaviour(n_tokens=3, first_token_delay_s=0.2)
    body = {**QUERY, "max_tokens": 5, "temperature": 0, "seed": 1, "system": "Be brief"}
    answer = http.post("/query", json=body)
    assert answer.status_code == 200
    assert answer.json is not None
    assert answer.json["response"] == "tok0 tok1 tok2 "
    assert answer.json["model"] == "fake-model"
    assert 0.195 <= answer.json["ttft_s"] < 0.5
    assert answer.json["request_time"] >= answer.json["ttft_s"]
    assert (answer.json["eval_count"], answer.json["completion_tokens"]) == (3, 3)
    assert (answer.json["prompt_eval_count"], answer.json["prompt_tokens"]) == (11, 11)
    payload = fake.requests[0].payload
    assert payload["messages"][0] == {"role": "system", "content": "Be brief"}
    assert (payload["max_tokens"], payload["temperature"], payload["seed"]) == (5, 0.0, 1)


def test_query_ollama_has_its_metadata(settings: ServiceSettings, tmp_path: Path, fake: FakeServer) -> None:
    source = write_endpoint(tmp_path / "endpoints", fake, engine="ollama")
    http = create_app(replace(settings, source=source)).test_client()
    answer = http.post("/query", json={"prompt": "p", "system": "s", "seed": 3, "temperature": 1})
    assert answer.json is not None
    assert (answer.json["eval_count"], answer.json["total_duration"]) == (8, 5_000_000)
    assert fake.requests[0].payload["options"] == {"num_predict": 64, "temperature": 1.0, "seed": 3}


def test_simple_test_answers_like_query(http: FlaskClient, fake: FakeServer) -> None:
    answer = http.get("/simple-test")
    assert answer.status_code == 200
    assert answer.json is not None
    assert answer.json["eval_count"] == 8
    assert "sky" in fake.requests[0].payload["messages"][0]["content"]


@pytest.mark.parametrize(
    ("behaviour", "status", "error_class"),
    [
        (Behaviour(status=500), 502, "http_status"),
        (Behaviour(n_tokens=0), 502, "zero_tokens"),
        (Behaviour(reset_after=1), 502, "protocol"),
        (Behaviour(first_token_delay_s=5), 504, "timeout"),
    ],
)
def test_query_server_failing_is_a_gateway_error(
    settings: ServiceSettings, fake: FakeServer, behaviour: Behaviour, status: int, error_class: str
) -> None:
    fake.behaviour = behaviour
    defaults = replace(settings.defaults, request_timeout_s=1.0)
    answer = create_app(replace(settings, defaults=defaults)).test_client().post("/query", json=QUERY)
    assert (answer.status_code, (answer.json or {})["error_class"]) == (status, error_class)


def test_query_token_is_in_no_answer_and_no_log(
    http: FlaskClient, fake: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.behaviour = Behaviour(status=401, echo_token=True)
    answers = [http.post("/query", json=QUERY), http.get("/health"), http.get("/metrics"), http.get("/simple-test")]
    assert fake.requests[0].authorization == f"Bearer {API_TOKEN}"
    assert all(API_TOKEN not in answer.text for answer in answers)
    assert API_TOKEN not in caplog.text


def test_query_bad_body_is_400_with_every_error(http: FlaskClient) -> None:
    answer = http.post("/query", json={"modle": "x", "max_tokens": 0, "n_clients": 3})
    assert answer.status_code == 400
    errors = (answer.json or {})["errors"]
    assert {error["field"] for error in errors} == {"modle", "max_tokens", "n_clients", "prompt"}
    assert all(set(error) == {"field", "message", "allowed"} for error in errors)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_query_wrong_content_type_is_415(http: FlaskClient, content_type: str) -> None:
    answer = http.post("/query", data=b'{"prompt": "p"}', content_type=content_type)
    assert (answer.status_code, answer.mimetype) == (415, "application/json")


def test_unknown_route_and_method_are_json_errors(http: FlaskClient) -> None:
    missing, wrong, huge = http.get("/nope"), http.get("/query"), http.post("/query", json={"prompt": "x" * 2**24})
    assert (missing.status_code, wrong.status_code, huge.status_code) == (404, 405, 413)
    assert "POST" in wrong.headers["Allow"]
    assert all(answer.mimetype == "application/json" and answer.json for answer in (missing, wrong, huge))


def test_unforeseen_error_is_json_without_traceback(settings: ServiceSettings) -> None:
    class Broken:
        def resolve(self) -> None:
            raise RuntimeError("secret detail")

    app = create_app(replace(settings, source=Broken()))  # type: ignore[arg-type]
    answer = app.test_client().get("/health")
    assert (answer.status_code, answer.mimetype) == (500, "application/json")
    assert "secret detail" not in answer.text


def test_auth_tokens_guard_all_but_health(settings: ServiceSettings) -> None:
    http = create_app(replace(settings, auth_token="caller", scrape_token="scraper")).test_client()
    assert http.get("/health").status_code == 200
    refused = http.get("/metrics")
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    caller, scraper = {"Authorization": "Bearer caller"}, {"Authorization": "Bearer scraper"}
    assert http.get("/metrics", headers=scraper).status_code == 200
    assert http.get("/metrics", headers=caller).status_code == 200
    assert http.get("/simple-test", headers=scraper).status_code == 401
    assert http.get("/simple-test", headers=caller).status_code == 200
    assert http.get("/nope").status_code == 401
    assert http.get("/metrics", headers={"Authorization": "Bearer sch\u00e4l"}).status_code == 401


def test_metrics_count_queries_by_outcome(http: FlaskClient, fake: FakeServer) -> None:
    fake.script.append(Behaviour(status=500))
    http.post("/query", json=QUERY)
    http.post("/query", json=QUERY)
    answer = http.get("/metrics")
    assert answer.mimetype == "text/plain"
    assert 'orch_client_requests_total{outcome="success",source="query"} 1.0' in answer.text
    assert 'orch_client_requests_total{outcome="http_status",source="query"} 1.0' in answer.text
    assert 'orch_client_requests_in_flight{source="query"} 0.0' in answer.text
