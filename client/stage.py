"""The benchmark stage: the orchestrator's side of the client service. The service itself does not import this."""

from __future__ import annotations

import time
from typing import Any

import requests

from orchestrator.errors import ServiceAnswerError, StageError
from orchestrator.metrics import Sample
from orchestrator.recipe.document import Recipe
from orchestrator.service import JobDraft, PlanContext, Role
from orchestrator.stage import StageContext

SERVICE = "client"
REQUEST_TIMEOUT_S = 20.0
# A client service that is alive may answer late while its load processes have all CPUs.
PATIENCE_S = 60.0
POLL_S = 1.0
DEATH_IS_KNOWN_S = 10.0


class BenchmarkStage:
    """Asks ``POST /benchmark`` for the recipe's requests and waits for the figures."""

    name = "benchmark"
    role: Role = "client"

    def is_wanted(self, recipe: Recipe) -> bool:
        return recipe.job.benchmark.enabled

    def check(self, context: PlanContext) -> None:
        """Nothing more to look at: the client service is checked as a service."""

    def sample_job(self, context: PlanContext) -> JobDraft | None:
        return None

    def run(self, context: StageContext) -> dict[str, Any]:
        job = context.recipe.job
        total = job.service.n_clients * job.service.n_requests_per_client
        benchmark_id = self._choose_id(context)
        body = {
            "id": benchmark_id,
            "background": True,
            "n_clients": job.service.n_clients,
            "n_requests_per_client": job.service.n_requests_per_client,
            "prompt": job.service.prompt,
            "max_tokens": job.benchmark.max_tokens,
            "temperature": job.benchmark.temperature,
            "seed": job.benchmark.seed,
            "warmup_requests": job.benchmark.warmup_requests,
            "request_timeout_s": job.service.request_timeout_s,
            **({"ignore_eos": True} if job.benchmark.ignore_eos else {}),
        }
        context.progress.show_bar(self.name, 0, total, "")
        self._ask(context, "POST", "/benchmark", body)
        status = self._await(context, benchmark_id, total, job.benchmark.timeout_s)
        result: dict[str, Any] = status["result"]
        if result["failed"]:
            # A server that died under the load is known to be dead only when its heartbeat has stopped.
            context.wait(DEATH_IS_KNOWN_S)
        _push(context, result)
        context.fetch(self.role, context.run.benchmark / benchmark_id, ())
        records = context.run.benchmark / benchmark_id / "requests.jsonl"
        if result["successful"] == 0:
            raise StageError(
                f"none of the {result['total_queries']} requests of the benchmark succeeded.\n"
                f"{_failures(result)}\nEach request is recorded in {records}"
            )
        return {**result, "records": str(records)}

    def _choose_id(self, context: StageContext) -> str:
        """Return the id of this run's benchmark: that of an earlier orchestrator, unless it was cut off."""
        number = 1
        while True:
            benchmark_id = f"run-{context.run_id}" + (f"-{number}" if number > 1 else "")
            status = self._ask(context, "GET", f"/benchmark/{benchmark_id}", allows_absence=True)
            is_void = status.get("state") == "done" and (status.get("result") or {}).get("successful") == 0
            if status.get("state") not in {"failed", "cancelled"} and not is_void:
                return benchmark_id
            number += 1

    def _await(self, context: StageContext, benchmark_id: str, total: int, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        path = f"/benchmark/{benchmark_id}"
        while True:
            status = self._ask(context, "GET", path)
            progress = status["progress"]
            detail = f"{progress['tokens_per_s']:.1f} tokens/s"
            if progress["failed"]:
                detail += f", {progress['failed']} failed"
            context.progress.show_bar(self.name, progress["finished"], total, detail)
            if status["state"] == "done":
                return status
            if status["state"] in {"failed", "cancelled"}:
                raise StageError(f"the benchmark {status['state']}: {status.get('error') or 'no reason was given'}")
            if time.monotonic() > deadline:
                self._ask(context, "DELETE", path)
                raise StageError(f"the benchmark did not end within benchmark.timeout_s = {timeout_s:g} s")
            context.wait(POLL_S)

    def _ask(
        self,
        context: StageContext,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        allows_absence: bool = False,
    ) -> dict[str, Any]:
        """Return the service's JSON answer; the id in ``body`` makes it safe to ask again after a lost answer.

        With ``allows_absence`` the answer 404 is an empty one.

        Raises:
            ServiceAnswerError: no usable answer within PATIENCE_S.
        """
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                url = context.endpoint(SERVICE).url + path
                with requests.Session() as session:
                    session.trust_env = False
                    session.headers["Authorization"] = f"Bearer {context.run.api_token.read_text()}"
                    answer = session.request(method, url, json=body, timeout=REQUEST_TIMEOUT_S)
                document: dict[str, Any] = answer.json()
            except (requests.RequestException, ValueError, ServiceAnswerError) as error:
                if time.monotonic() > deadline:
                    raise ServiceAnswerError(f"the client service does not answer {method} {path}: {error}") from error
                context.wait(POLL_S)
                continue
            if answer.status_code == 503 and time.monotonic() < deadline:
                # The client may see the server's endpoint record a moment later than the orchestrator.
                context.wait(POLL_S)
                continue
            if answer.status_code == 404 and allows_absence:
                return {}
            if not answer.ok:
                raise ServiceAnswerError(
                    f"the client service answered {method} {path} with HTTP {answer.status_code}: {document}"
                )
            return document


def _failures(result: dict[str, Any]) -> str:
    failures = {name: count for name, count in result["metrics"]["failures"].items() if count}
    return "Failures: " + (", ".join(f"{name} {count}" for name, count in failures.items()) or "none recorded")


def _push(context: StageContext, result: dict[str, Any]) -> None:
    metrics, model = result["metrics"], result["model"]
    samples = [
        Sample(
            "tokens_per_second", value, "Output tokens per second of one client.", {"model": model, "client_id": client}
        )
        for client, value in metrics["tokens_per_second"].items()
        if value is not None
    ]
    totals = {
        "benchmark_output_tokens_per_second": (
            metrics["output_tokens_per_s"],
            "Output tokens per second of all clients.",
        ),
        "benchmark_requests_total": (result["total_queries"], "Requests sent."),
        "benchmark_requests_failed": (result["failed"], "Requests that failed."),
    }
    for quantity in ("ttft_s", "itl_s", "e2e_s"):
        for statistic in ("mean", "p50", "p90", "p99"):
            value = (metrics.get(quantity) or {}).get(statistic)
            if value is not None:
                name = f"benchmark_{quantity.removesuffix('_s')}_seconds"
                help_text = "Latency as seen by the clients, in seconds."
                samples.append(Sample(name, value, help_text, {"model": model, "statistic": statistic}))
    for name, (value, help_text) in totals.items():
        if value is not None:
            samples.append(Sample(name, value, help_text, {"model": model}))
    context.metrics.push({"job": "orch_benchmark", "run": context.run_id}, samples)
