"""Errors as JSON answers: never HTML, never a traceback."""

from __future__ import annotations

from dataclasses import asdict

from flask import Flask, Response, jsonify
from werkzeug.exceptions import HTTPException

from client.errors import (
    BenchmarkBusyError,
    BenchmarkConflictError,
    InvalidInputError,
    StorageError,
    TargetUnavailableError,
)

Answer = tuple[Response, int]


def install(app: Flask) -> None:
    """Make ``app`` answer every error in JSON. What nobody foresaw is 500, its traceback goes to the log
    only.
    """
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(InvalidInputError, _invalid_input)
    app.register_error_handler(TargetUnavailableError, _unavailable)
    app.register_error_handler(BenchmarkBusyError, _busy)
    app.register_error_handler(BenchmarkConflictError, _conflict)
    app.register_error_handler(StorageError, _storage)


def _http_error(error: HTTPException) -> Response:
    # Its own response has the headers that belong to it: Allow with 405, WWW-Authenticate with 401.
    response = Response(error.get_response().data, status=error.code)
    response.headers.extend(
        [pair for pair in error.get_headers() if pair[0].lower() not in {"content-type", "content-length"}]
    )
    response.set_data(jsonify({"error": error.description or error.name}).data)
    response.content_type = "application/json"
    return response


def _invalid_input(error: InvalidInputError) -> Answer:
    return jsonify({"errors": [asdict(one) for one in error.errors]}), 400


def _unavailable(error: TargetUnavailableError) -> Answer:
    return jsonify({"error": str(error)}), 503


def _busy(error: BenchmarkBusyError) -> Answer:
    status_url = f"/benchmark/{error.running_id}"
    return jsonify({"error": str(error), "running_id": error.running_id, "status_url": status_url}), 409


def _conflict(error: BenchmarkConflictError) -> Answer:
    return jsonify({"error": str(error), "id": error.benchmark_id}), 409


def _storage(error: StorageError) -> Answer:
    return jsonify({"error": str(error)}), 507
