"""The Flask app of the client service: its routes and their answers. See ``client/README.md`` for the
contract.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask, Response, jsonify, request
from prometheus_client import CONTENT_TYPE_LATEST
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import NotFound, Unauthorized, UnsupportedMediaType

from client import http_errors
from client.benchmark import LoadEngine
from client.benchmarks import Benchmarks
from client.bodies import QueryBody, QueryDefaults, read_benchmark, read_query
from client.errors import FieldError, InvalidInputError, TargetUnavailableError
from client.exposition import ServiceMetrics
from client.fields import is_valid_id, parse_json
from client.load.bench import run_bench
from client.query import SIMPLE_TEST_PROMPT, query_answer, run_query
from client.target import TargetSource

MAX_BODY_BYTES = 16 * 2**20
Answer = tuple[Response, int]


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What the service is told at its start.

    ``api_token`` goes to the LLM server. ``auth_token``, where given, is asked of whoever calls this
    service, except for ``/health``; ``scrape_token`` opens ``/metrics`` only. ``processes`` None chooses by
    the load and the CPUs.
    """

    source: TargetSource
    output_dir: Path
    api_token: str | None = field(default=None, repr=False)
    auth_token: str | None = field(default=None, repr=False)
    scrape_token: str | None = field(default=None, repr=False)
    defaults: QueryDefaults = field(default_factory=QueryDefaults)
    processes: int | None = None


def create_app(settings: ServiceSettings, engine: LoadEngine = run_bench) -> Flask:
    """Return the app. ``app.extensions["benchmarks"]`` is to be closed at the end.

    Nothing is read, written or started before the first request.
    """
    app = Flask("orch-client", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    metrics = ServiceMetrics()
    benchmarks = Benchmarks(settings.output_dir, metrics, engine)
    app.extensions["benchmarks"] = benchmarks
    http_errors.install(app)
    _add_guard(app, settings)
    _add_observation(app, settings, metrics)
    _add_queries(app, settings, metrics)
    _add_benchmarks(app, settings, benchmarks)
    return app


def _add_guard(app: Flask, settings: ServiceSettings) -> None:
    def authorize() -> None:
        allowed = [settings.auth_token]
        if request.path == "/metrics":
            allowed.append(settings.scrape_token)
        tokens = [token for token in allowed if token is not None]
        if request.path == "/health" or not tokens:
            return
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        # No early end: the time taken must not tell which token was near.
        matches = [hmac.compare_digest(given, f"Bearer {token}".encode()) for token in tokens]
        if not any(matches):
            raise Unauthorized(
                "send this service's token as 'Authorization: Bearer …'",
                www_authenticate=WWWAuthenticate("bearer"),
            )

    app.before_request(authorize)


def _add_observation(app: Flask, settings: ServiceSettings, metrics: ServiceMetrics) -> None:
    @app.get("/health")
    def health() -> Answer:
        answer: dict[str, Any] = {"status": "healthy", "ollama_host": None, "server_url": None}
        answer |= {"server_ready": False, "model": None, "reason": None}
        try:
            target = settings.source.resolve()
        except TargetUnavailableError as error:
            answer["reason"] = str(error)
            return jsonify(answer), 200
        answer |= {"ollama_host": target.host, "server_url": target.url, "model": target.model}
        answer["server_ready"] = target.is_listening()
        if not answer["server_ready"]:
            answer["reason"] = f"nothing accepts connections at {target.url}"
        return jsonify(answer), 200

    @app.get("/metrics")
    def exposition() -> Response:
        return Response(metrics.render(), content_type=CONTENT_TYPE_LATEST)


def _add_queries(app: Flask, settings: ServiceSettings, metrics: ServiceMetrics) -> None:
    def answer_query(body: QueryBody) -> Answer:
        wanted = body.to_completion(settings.source.resolve(), settings.api_token)
        metrics.query_started()
        try:
            answered = run_query(wanted)
        finally:
            metrics.query_ended()
        failure = answered.reply.failure
        metrics.count("query", failure[0] if failure else None)
        metrics.count_tokens("query", answered.reply.tokens)
        answer, status = query_answer(wanted, answered)
        return jsonify(answer), status

    @app.post("/query")
    def query() -> Answer:
        return answer_query(read_query(_json_body(), settings.defaults))

    @app.get("/simple-test")
    def simple_test() -> Answer:
        return answer_query(read_query({"prompt": SIMPLE_TEST_PROMPT}, settings.defaults))


def _add_benchmarks(app: Flask, settings: ServiceSettings, benchmarks: Benchmarks) -> None:
    @app.post("/benchmark")
    def start() -> Answer:
        body = read_benchmark(_json_body(), settings.defaults)
        benchmark_id, _ = benchmarks.start(
            body, lambda: body.to_bench(settings.source.resolve(), settings.api_token, settings.processes)
        )
        if body.background:
            status_url = f"/benchmark/{benchmark_id}"
            state = _status(benchmarks, benchmark_id)["state"]
            answer = jsonify({"id": benchmark_id, "status_url": status_url, "state": state})
            answer.headers["Location"] = status_url
            return answer, 202
        return _await_result(benchmarks, benchmark_id)

    @app.get("/benchmark/<benchmark_id>")
    def show(benchmark_id: str) -> Answer:
        return jsonify(_status(benchmarks, benchmark_id, with_results=_wants_results())), 200

    @app.delete("/benchmark/<benchmark_id>")
    def cancel(benchmark_id: str) -> Answer:
        live = benchmarks.live(benchmark_id)
        if live is None or live.has_ended:
            return jsonify(_status(benchmarks, benchmark_id)), 200
        live.cancel()
        return jsonify({"id": benchmark_id, "cancelling": True, "status_url": f"/benchmark/{benchmark_id}"}), 202


def _await_result(benchmarks: Benchmarks, benchmark_id: str) -> Answer:
    live = benchmarks.live(benchmark_id)
    if live is not None:
        live.wait()
    status = _status(benchmarks, benchmark_id, with_results=True)
    if status["state"] == "done":
        return jsonify(status["result"]), 200
    if status["state"] == "cancelled":
        return jsonify({**status, "error": "the benchmark was cancelled"}), 409
    return jsonify(status), 507 if live is not None and live.is_storage_error else 500


def _status(benchmarks: Benchmarks, benchmark_id: str, *, with_results: bool = False) -> dict[str, Any]:
    # The id becomes a path: one that could not have been given out is not even looked for.
    status = benchmarks.status(benchmark_id, with_results=with_results) if is_valid_id(benchmark_id) else None
    if status is None:
        raise NotFound(f"there is no benchmark {benchmark_id[:64]!r}")
    return status


def _wants_results() -> bool:
    errors = [
        FieldError(name[:80], "unknown query parameter", ["results"]) for name in request.args if name != "results"
    ]
    values = request.args.getlist("results")
    if values not in ([], ["0"], ["1"]):
        errors.append(FieldError("results", "is none of these", ["0", "1"]))
    if errors:
        raise InvalidInputError(errors)
    return values == ["1"]


def _json_body() -> Any:
    if request.mimetype != "application/json":
        raise UnsupportedMediaType("send a JSON body with 'Content-Type: application/json'")
    return parse_json(request.get_data(cache=False))
