from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient

from client.app import ServiceSettings, create_app
from client.load.bench import Bench, Outcome, Tell, run_bench
from client.load.points import Points
from tests.client.fake_server import Behaviour, FakeServer

BODY = {"n_clients": 2, "n_requests_per_client": 3, "prompt": "Test prompt", "model": "fake-model", "self_check": False}
REFERENCE_FIELDS = {
    "n_clients",
    "n_requests_per_client",
    "total_queries",
    "successful",
    "failed",
    "total_time",
    "avg_request_time",
    "queries_per_second",
    "results",
}
SLOW = Behaviour(n_tokens=50, token_delay_s=0.5)


def wait_for(http: FlaskClient, benchmark_id: str, is_reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        status: dict[str, Any] = http.get(f"/benchmark/{benchmark_id}").get_json()
        if is_reached(status):
            return status
        time.sleep(0.05)
    raise AssertionError(f"not reached: {status}")


def has_ended(status: dict[str, Any]) -> bool:
    return status["state"] in {"done", "failed", "cancelled"}


def test_benchmark_blocking_answers_the_references_fields_and_figures(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = Behaviour(n_tokens=4, first_token_delay_s=0.1)
    fake.script.append(Behaviour(status=500))
    answer = http.post("/benchmark", json={**BODY, "max_failed_share": 0.5})
    assert answer.status_code == 200
    result = answer.get_json()
    assert set(result) >= REFERENCE_FIELDS
    assert (result["total_queries"], result["successful"], result["failed"]) == (6, 5, 1)
    assert len(result["results"]) == 6
    assert sum(entry["success"] for entry in result["results"]) == 5
    assert {entry["response"] for entry in result["results"] if entry["success"]} == {"tok0 tok1 tok2 tok3 "}
    assert result["avg_request_time"] == pytest.approx(
        sum(entry["request_time"] for entry in result["results"]) / 6, abs=1e-4
    )
    assert result["failures"]["http_status"] == 1
    assert result["ttft_ms"]["count"] == 5
    assert result["ttft_ms"]["p50"] == pytest.approx(200, abs=105)
    assert set(result["itl_ms"]) == {"mean", "p50", "p90", "p95", "p99", "p999", "max", "count", "intervals"}
    assert set(result["tokens_per_second"]) == {"0", "1"}
    assert result["output_tokens_per_s"] == pytest.approx(20 / result["total_time"])
    assert not any("failed" in reason for reason in result["invalid_reasons"])
    assert result["valid"] is (result["invalid_reasons"] == [])


def test_benchmark_all_failing_is_an_answer_and_not_valid(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = Behaviour(n_tokens=0)
    result = http.post("/benchmark", json=BODY).get_json()
    assert (result["successful"], result["failed"], result["valid"]) == (0, 6, False)
    assert result["failures"]["zero_tokens"] == 6
    assert result["ttft_ms"]["mean"] is None


def test_benchmark_no_usage_says_that_chunks_were_counted(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = Behaviour(has_usage=False)
    result = http.post("/benchmark", json=BODY).get_json()
    assert result["tokens_source"] == "chunks"
    assert "no usage" in result["notes"][0]


def test_benchmark_async_is_accepted_with_a_location(http: FlaskClient) -> None:
    answer = http.post("/benchmark", json={**BODY, "async": True, "id": "later"})
    assert (answer.status_code, answer.headers["Location"]) == (202, "/benchmark/later")
    assert http.post("/benchmark", json={**BODY, "async": "yes"}).status_code in {400, 422}


def test_benchmark_background_shows_progress_then_result(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = Behaviour(n_tokens=3, token_delay_s=0.1)
    answer = http.post("/benchmark", json={**BODY, "background": True})
    assert answer.status_code == 202
    started = answer.get_json()
    assert started["status_url"] == f"/benchmark/{started['id']}"
    running = wait_for(http, started["id"], lambda status: status["progress"]["finished"] > 0)
    assert running["progress"]["total"] == 6
    assert running["progress"]["tokens_per_s"] > 0
    done = wait_for(http, started["id"], has_ended)
    assert (done["state"], done["progress"]["finished"], done["error"]) == ("done", 6, None)
    assert "results" not in done["result"]
    with_results = http.get(f"{started['status_url']}?results=1").get_json()
    assert len(with_results["result"]["results"]) == 6
    assert "response" not in with_results["result"]["results"][0]
    exposition = http.get("/metrics").text
    assert 'orch_client_benchmark_requests{model="fake-model",outcome="success"} 6.0' in exposition
    assert 'orch_client_benchmark_ttft_seconds{model="fake-model",quantile="0.99"}' in exposition
    assert "orch_client_benchmark_running 0.0" in exposition


def test_benchmark_second_one_is_409_and_cancel_makes_room(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = SLOW
    first = http.post("/benchmark", json={**BODY, "background": True, "id": "first"}).get_json()
    second = http.post("/benchmark", json={**BODY, "id": "second"})
    assert second.status_code == 409
    assert second.get_json()["running_id"] == "first"
    wait_for(http, "first", lambda status: status["state"] == "running")
    assert 'orch_client_requests_in_flight{source="benchmark"} 2.0' in http.get("/metrics").text
    assert http.delete(first["status_url"]).status_code == 202
    ended = wait_for(http, "first", has_ended)
    assert ended["state"] == "cancelled"
    assert ended["result"]["valid"] is False
    assert "the benchmark was cancelled" in ended["result"]["invalid_reasons"]
    assert http.delete(first["status_url"]).get_json()["state"] == "cancelled"
    fake.behaviour = Behaviour()
    assert http.post("/benchmark", json={**BODY, "id": "second"}).status_code == 200


def test_benchmark_same_id_twice_runs_once(http: FlaskClient, fake: FakeServer) -> None:
    first = http.post("/benchmark", json={**BODY, "id": "again"})
    again = http.post("/benchmark", json={**BODY, "id": "again"})
    in_background = http.post("/benchmark", json={**BODY, "id": "again", "background": True})
    assert (again.status_code, again.get_json()) == (200, first.get_json())
    assert (in_background.status_code, in_background.get_json()["state"]) == (202, "done")
    assert len(fake.requests) == 6
    other = http.post("/benchmark", json={**BODY, "id": "again", "n_clients": 1})
    assert (other.status_code, other.get_json()["id"]) == (409, "again")


def test_benchmark_same_id_after_restart_is_found_on_disk(
    http: FlaskClient, settings: ServiceSettings, fake: FakeServer
) -> None:
    first = http.post("/benchmark", json={**BODY, "id": "kept"}).get_json()
    restarted = create_app(settings).test_client()
    again = restarted.post("/benchmark", json={**BODY, "id": "kept"})
    assert (again.status_code, again.get_json()) == (200, first)
    assert restarted.get("/benchmark/kept").get_json()["progress"]["finished"] == 6
    assert len(fake.requests) == 6
    assert restarted.post("/benchmark", json={**BODY, "id": "kept", "seed": 1}).status_code == 409


def test_benchmark_interrupted_by_the_services_end_is_failed(settings: ServiceSettings, http: FlaskClient) -> None:
    http.post("/benchmark", json={**BODY, "id": "cut"})
    (settings.output_dir / "cut" / "summary.json").unlink()
    status = create_app(settings).test_client().get("/benchmark/cut").get_json()
    assert (status["state"], status["progress"]["total"]) == ("failed", 6)
    assert "ended before" in status["error"]


@pytest.mark.parametrize(
    "benchmark_id", ["nope", "..", ".", "%2e%2e", "..%2f..%2fetc", "a%00b", "a" * 65, "x%0a", "request.json"]
)
def test_benchmark_unknown_or_unsafe_id_is_404(http: FlaskClient, benchmark_id: str) -> None:
    for answer in (http.get(f"/benchmark/{benchmark_id}"), http.delete(f"/benchmark/{benchmark_id}")):
        assert answer.status_code in {404, 405}
        assert answer.mimetype == "application/json"


@pytest.mark.parametrize("query", ["results=2", "results=1&results=1", "result=1"])
def test_benchmark_odd_query_string_is_400(http: FlaskClient, query: str) -> None:
    answer = http.get(f"/benchmark/x?{query}")
    assert answer.status_code == 400
    assert answer.get_json()["errors"]


def test_benchmark_other_engine_behind_the_seam_is_used(settings: ServiceSettings) -> None:
    asked = []

    def engine(
        bench: Bench,
        tell: Tell,
        is_cancelled: Callable[[], bool],
        on_start: Callable[[float], None],
        points: Points | None,
    ) -> Outcome:
        asked.append(bench)
        return run_bench(bench, tell, is_cancelled, on_start, points)

    answer = create_app(settings, engine).test_client().post("/benchmark", json=BODY)
    assert answer.status_code == 200
    assert asked[0].loads == (2.0,)


def test_benchmark_self_check_tells_what_the_client_adds(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = Behaviour(first_token_delay_s=0.5)
    result = http.post("/benchmark", json={**BODY, "self_check": True}).get_json()
    assert 0 <= result["client_adds_ms"] < 50
    assert len(fake.requests) == 6, "the self-check has a server of its own"


def test_benchmark_sweep_has_a_point_for_each_load_and_its_files(
    http: FlaskClient, fake: FakeServer, settings: ServiceSettings
) -> None:
    body = {"prompt": "p", "self_check": False, "concurrency": [1, 2, 4], "requests": 8, "slo": "ttft_ms<=5000"}
    started = http.post("/benchmark", json={**body, "async": True, "id": "sweep"})
    assert started.status_code == 202
    done = wait_for(http, "sweep", has_ended)
    assert (done["state"], done["progress"]["finished"], done["progress"]["total"]) == ("done", 24, 24)
    result = done["result"]
    assert [point["load"] for point in result["points"]] == [1, 2, 4]
    assert (result["n_clients"], result["n_requests_per_client"]) == (None, None)
    assert fake.max_in_flight == 4
    folder = settings.output_dir / "sweep"
    assert len(list((folder / "points").glob("*/requests.parquet"))) == 3
    assert (folder / "points.csv").read_text().count("\n") == 4


def test_benchmark_of_conversations_sends_as_many_requests_as_are_asked_for(
    http: FlaskClient, fake: FakeServer
) -> None:
    fake.behaviour = Behaviour(counts_prompt=True)
    body = {"self_check": False, "input_tokens": "20", "turns": "3"}
    counted = http.post("/benchmark", json={**body, "n_clients": 2, "n_requests_per_client": 5}).get_json()
    assert (counted["total_queries"], counted["failed"]) == (10, 0)
    limited = http.post("/benchmark", json={**body, "concurrency": 3, "requests": 10}).get_json()
    assert (limited["total_queries"], limited["unfinished"]) == (10, 0)


def test_benchmark_sweep_has_prompts_of_its_own_for_each_load(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = Behaviour(counts_prompt=True)
    body = {"self_check": False, "input_tokens": "30", "concurrency": [1, 2], "requests": 5, "repeats": 2}
    assert http.post("/benchmark", json=body).status_code == 200
    assert len({request.payload["messages"][-1]["content"] for request in fake.requests[-20:]}) == 20


SWEEP = {"prompt": "p", "self_check": False, "concurrency": [1, 2, 4], "requests": 8, "async": True}


def test_benchmark_that_continues_one_that_was_cut_off_measures_what_is_missing(
    http: FlaskClient, fake: FakeServer, settings: ServiceSettings
) -> None:
    fake.behaviour = Behaviour(first_token_delay_s=0.2)
    http.post("/benchmark", json={**SWEEP, "id": "first"})
    wait_for(http, "first", lambda status: status["progress"]["finished"] > 8)
    assert http.delete("/benchmark/first").status_code == 202
    assert wait_for(http, "first", has_ended)["state"] == "cancelled"
    (settings.output_dir / "first" / "summary.json").unlink()  # as after a kill
    begun = len(fake.requests)
    assert http.post("/benchmark", json={**SWEEP, "id": "second", "continues": ["first"]}).status_code == 202
    result = wait_for(http, "second", has_ended)["result"]
    assert [(point["load"], point["failed_share"]) for point in result["points"]] == [(1, 0), (2, 0), (4, 0)]
    assert len(fake.requests) - begun == 16, "the first point is taken over"
    kept = sorted(path.parent.name for path in (settings.output_dir / "second").glob("points/*/requests.parquet"))
    assert kept == ["000_1", "001_2", "002_4"]


def test_benchmark_that_continues_measures_points_with_failures_again(http: FlaskClient, fake: FakeServer) -> None:
    fake.script.append(Behaviour(status=500))
    http.post("/benchmark", json={**SWEEP, "id": "first"})
    wait_for(http, "first", has_ended)
    begun = len(fake.requests)
    http.post("/benchmark", json={**SWEEP, "id": "second", "continues": ["first"]})
    assert wait_for(http, "second", has_ended)["result"]["failed"] == 0
    assert len(fake.requests) - begun == 8


@pytest.mark.parametrize("continues", [["nope"], ["first"]])
def test_benchmark_that_continues_what_is_not_there_or_had_another_body_measures_all(
    http: FlaskClient, fake: FakeServer, continues: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    http.post("/benchmark", json={**BODY, "id": "first"})
    begun = len(fake.requests)
    http.post("/benchmark", json={**SWEEP, "id": "second", "continues": continues})
    assert wait_for(http, "second", has_ended)["state"] == "done"
    assert len(fake.requests) - begun == 24
    assert f"{continues[0]} is not continued" in caplog.text


def test_benchmark_that_continues_takes_no_point_of_another_model_and_none_that_is_damaged(
    http: FlaskClient, fake: FakeServer, settings: ServiceSettings
) -> None:
    http.post("/benchmark", json={**SWEEP, "id": "first"})
    wait_for(http, "first", has_ended)
    first, second = sorted((settings.output_dir / "first" / "points").iterdir())[:2]
    (first / "requests.parquet").write_bytes(b"damaged")
    server = json.loads((second / "server.json").read_text())
    (second / "server.json").write_text(json.dumps({**server, "model": "another"}))
    begun = len(fake.requests)
    http.post("/benchmark", json={**SWEEP, "id": "second", "continues": ["first"]})
    assert wait_for(http, "second", has_ended)["state"] == "done"
    assert len(fake.requests) - begun == 16


@pytest.mark.parametrize(("continues", "words"), [(["../x"], "no id"), ("first", "a list")])
def test_benchmark_that_continues_what_is_no_id_is_refused(
    http: FlaskClient, fake: FakeServer, continues: object, words: str
) -> None:
    http.post("/benchmark", json={**BODY, "id": "first"})
    answer = http.post("/benchmark", json={**SWEEP, "continues": continues})
    assert answer.status_code == 400
    assert words in answer.text


def test_benchmark_open_loop_sends_at_its_rate(http: FlaskClient, fake: FakeServer) -> None:
    body = {"prompt": "p", "self_check": False, "rate": 40, "arrivals": "constant", "requests": 60}
    result = http.post("/benchmark", json=body).get_json()
    assert (result["is_open_loop"], result["total_queries"]) == (True, 60)
    assert result["rate_sent_per_s"] == pytest.approx(40, rel=0.05)


def test_benchmark_synthetic_prompts_have_the_asked_length(http: FlaskClient, fake: FakeServer) -> None:
    fake.behaviour = Behaviour(counts_prompt=True)
    body = {"self_check": False, "input_tokens": "uniform:40-60", "n_clients": 2, "n_requests_per_client": 3}
    answer = http.post("/benchmark", json=body)
    assert answer.status_code == 200, answer.get_json()
    assert len({request.payload["messages"][-1]["content"] for request in fake.requests[-6:]}) == 6
    assert all(40 <= entry["prompt_tokens"] <= 60 for entry in answer.get_json()["results"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"concurrency": [1, 2], "rate": 3}, "beside concurrency"),
        ({"concurrency": 2, "n_clients": 2}, "beside concurrency or rate"),
        ({"requests": 5}, "without concurrency and rate"),
        ({"concurrency": [2, 2]}, "[2, 2]"),
        ({"concurrency": 1.5}, "a whole number"),
        ({"concurrency": []}, "[]"),
        ({"rate": True}, "true"),
        ({"rate": 1e6}, "1000000.0"),
        ({"rate": 100_000, "duration_s": 86_400}, "requests at most"),
        ({"find_capacity": True, "rate": 5}, "slo"),
        ({"find_capacity": True}, "give rate"),
        ({"slo": "nonsense<=1", "rate": 5}, "nonsense"),
        ({"input_tokens": "100"}, "prompt or input_tokens"),
        ({"prompt": None, "input_tokens": "file:/etc/passwd"}, "names a file"),
        ({"prompt": None, "input_tokens": "1e12"}, "tokens in all"),
        ({"prompt": None, "input_tokens": "10", "shared_prefixes": "x"}, "N:LENGTHS"),
        ({"output_tokens": "many"}, "no number"),
        ({"arrivals": "bursty"}, "poisson"),
        ({"ramp_s": -1}, "-1"),
        ({"rate": 5, "ramp_s": 1}, "ramp"),
        ({"burstiness": 2}, "gamma"),
        ({"think_time": "1"}, "turns"),
        ({"turns": "3"}, "needs input_tokens"),
        ({"prompt": None, "input_tokens": "9", "turns": "3", "rate": 2}, "a turn waits"),
        ({"prompt": None, "input_tokens": "9", "turns": "3", "shared_prefixes": "2:9"}, "no conversations"),
        ({"prompt": None, "input_tokens": "lognormal:mean=1,std=1e200"}, "too large"),
        ({"prompt": None, "input_tokens": "lognormal:mean=512,std=1e-300"}, "too small"),
        ({"output_tokens": "1e12"}, "at most 1000000"),
        (
            {"prompt": None, "input_tokens": "9", "shared_prefixes": "999999:50000", "concurrency": 1, "requests": 1},
            "tokens in all",
        ),
        ({"exporters": "http://h:9100"}, "a list"),
        ({"exporters": ["file:///etc/passwd"]}, "exporter"),
    ],
)
def test_benchmark_loads_that_make_no_sense_are_refused_with_their_fields(
    http: FlaskClient, fake: FakeServer, fields: dict[str, Any], words: str
) -> None:
    answer = http.post("/benchmark", json={"prompt": "p", "self_check": False, **fields})
    assert answer.status_code == 400, answer.get_json()
    assert words in answer.text
    assert "--" not in answer.text
    assert fake.requests == []
