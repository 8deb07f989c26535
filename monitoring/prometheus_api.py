"""Questions to a Prometheus server."""

from __future__ import annotations

from typing import Any

import requests

from orchestrator.errors import ServiceAnswerError

TIMEOUT_S = 5.0


class PrometheusApi:
    """Prometheus' HTTP API, version 1. Source: prometheus.io/docs/prometheus/latest/querying/api."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._session = requests.Session()
        # A proxy of the site is for the world outside, not for the nodes of the run.
        self._session.trust_env = False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the instant vector of a PromQL expression: dicts with ``metric`` and ``value`` ([time, text]).

        Raises:
            ServiceAnswerError: Prometheus did not answer or refused the expression.
        """
        return self._get("query", {"query": expression})

    def query_range(self, expression: str, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """Return the range vectors of a PromQL expression: dicts with ``metric`` and ``values``.

        Args:
            expression: PromQL.
            start: Seconds since the epoch.
            end: Seconds since the epoch.
            step_s: Resolution in seconds.

        Raises:
            ServiceAnswerError: Prometheus did not answer or refused the expression.
        """
        parameters = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step_s:.3f}"}
        return self._get("query_range", parameters)

    def _get(self, what: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        try:
            answer = self._session.get(f"{self._url}/api/v1/{what}", params=parameters, timeout=TIMEOUT_S)
            document = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise ServiceAnswerError(f"Prometheus at {self._url} did not answer: {error}") from error
        if document.get("status") != "success":
            raise ServiceAnswerError(f"Prometheus at {self._url} refused: {document.get('error')}")
        result: list[dict[str, Any]] = document["data"]["result"]
        return result
