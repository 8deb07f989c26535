"""The benchmark stage: the orchestrator's side of the client service. The service itself does not import this."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import requests

from orchestrator.atomic import read_json, write_json
from orchestrator.errors import ServiceAnswerError, StageError, UserError
from orchestrator.metrics import Sample
from orchestrator.recipe.document import Job, Recipe
from orchestrator.records import Endpoint
from orchestrator.service import JobDraft, PlanContext, Role
from orchestrator.stage import StageContext
from orchestrator.tracked import ready_endpoint

SERVICE = "client"
REQUEST_TIMEOUT_S = 20.0
# A client service that is alive may answer late while its load processes have all CPUs.
PATIENCE_S = 60.0
POLL_S = 1.0
DEATH_IS_KNOWN_S = 10.0
RESTARTED = "the LLM server was restarted while it was measured"
# What is told of a benchmark that was measured again.
EARLIER_FIELDS = ("id", "total_queries", "successful", "failed", "valid", "invalid_reasons")


class BenchmarkStage:
    """Asks ``POST /benchmark`` for the recipe's requests and waits for the figures."""

    name = "benchmark"
    role: Role = "client"

    def is_wanted(self, recipe: Recipe) -> bool:
        return recipe.job.benchmark.enabled

    def check(self, context: PlanContext) -> None:
        """Look whether the client service will take the recipe's load; the service itself is checked as one."""
        from client.bodies import QueryDefaults, read_benchmark
        from client.errors import InvalidInputError
        from client.target import Family, Target

        job = context.recipe.job
        family: Family = "ollama" if job.engine is not None and job.engine.kind == "ollama" else "openai"
        try:
            read_benchmark(_body(job, "check"), QueryDefaults()).check(Target("http://server:1", family, "model"))
        except InvalidInputError as error:
            raise UserError(f"job.benchmark.load: {error}") from error

    def sample_job(self, context: PlanContext) -> JobDraft | None:
        return None

    def run(self, context: StageContext) -> dict[str, Any]:
        """Measure, and once more if the LLM server was restarted meanwhile; see Stage.run."""
        deadline = time.monotonic() + context.recipe.job.benchmark.timeout_s
        result = self._measure(context, self._choose_ids(context), deadline)
        earlier = []
        if RESTARTED in result["invalid_reasons"]:
            context.progress.say(f"benchmark: {RESTARTED}; it is measured once more")
            earlier.append(
                {name: result[name] for name in EARLIER_FIELDS} | {"records": str(_records(context, result))}
            )
            result = self._measure(context, self._choose_ids(context, result["id"]), deadline)
        _push(context, result)
        records = _records(context, result)
        if result["successful"] == 0:
            raise StageError(
                f"none of the {result['total_queries']} requests of the benchmark succeeded.\n"
                f"{_failures(result)}\nEach request is recorded in {records}"
            )
        told = {"records": str(records), "page": _write_page(context, records.parent)}
        return {**result, **told, **({"earlier": earlier} if earlier else {})}

    def _measure(self, context: StageContext, ids: Sequence[str], deadline: float) -> dict[str, Any]:
        """Return the figures of one benchmark; they are not valid if a server was restarted, lost or added meanwhile.

        Args:
            context: The run.
            ids: The benchmark's own, after those whose points it takes over.
            deadline: On the monotonic clock.

        Raises:
            StageError: it did not end by ``deadline``, or the server was not there by then.
        """
        *continued, benchmark_id = ids
        server, asked = self._asked(context, benchmark_id, deadline)
        body = _body(context.recipe.job, benchmark_id)
        body |= {"exporters": _exporters(context, asked), "continues": continued}
        self._ask(context, "POST", "/benchmark", body)
        result, is_restarted = self._await(context, benchmark_id, server, deadline)
        context.fetch(self.role, context.run.benchmark / benchmark_id, ())
        has_failures = result["failed"] or any(point["failed_share"] for point in result["points"])
        if has_failures and not is_restarted:
            # A server that died under the load is known to be dead only when its heartbeat has stopped.
            context.wait(DEATH_IS_KNOWN_S)
            is_restarted = self._await_server(context, deadline).attempt != server.attempt
        reasons = [*([RESTARTED] if is_restarted else []), *_changes(asked, _servers(context, server))]
        if reasons:
            result |= {"valid": False, "invalid_reasons": [*result["invalid_reasons"], *reasons]}
        return result

    def _asked(self, context: StageContext, benchmark_id: str, deadline: float) -> tuple[Endpoint, dict[str, Endpoint]]:
        """Return whom a benchmark asks, and the LLM servers behind it, as they were when it was begun.

        This is written down: whoever resumes the run has to see whether they are still the same.
        """
        path = context.run.stages / f"{benchmark_id}.asked.json"
        known = read_json(path)
        if known is not None:
            servers = {name: Endpoint(**endpoint) for name, endpoint in known["servers"].items()}
            return Endpoint(**known["front"]), servers
        server = self._await_server(context, deadline)
        asked = _servers(context, server)
        write_json(path, {"front": asdict(server), "servers": {name: asdict(one) for name, one in asked.items()}})
        return server, asked

    def _choose_ids(self, context: StageContext, spent: str | None = None) -> list[str]:
        """Return the id of this run's benchmark: that of an earlier orchestrator, unless it is of no use, or ``spent``.

        Of no use is one that was cut off, and one that lost requests, as to a server that died. Before it come the ids
        of those, whose points can be taken over.
        """
        ids: list[str] = []
        while True:
            benchmark_id = f"run-{context.run_id}" + (f"-{len(ids) + 1}" if ids else "")
            status = self._ask(context, "GET", f"/benchmark/{benchmark_id}", allows_absence=True)
            result = status.get("result") or {}
            is_void = status.get("state") == "done" and bool(result.get("failed")) and not result.get("valid")
            ids.append(benchmark_id)
            if status.get("state") not in {"failed", "cancelled"} and not is_void and benchmark_id != spent:
                return ids

    def _await_server(self, context: StageContext, deadline: float) -> Endpoint:
        """Return where the LLM server is, once it is ready.

        Raises:
            StageError: it was not ready by ``deadline``.
        """
        while True:
            try:
                return _server(context)
            except ServiceAnswerError as error:
                if time.monotonic() > deadline:
                    raise StageError(f"the benchmark: {error}, within {_limit(context)}") from error
            context.wait(POLL_S)

    def _await(
        self, context: StageContext, benchmark_id: str, server: Endpoint, deadline: float
    ) -> tuple[dict[str, Any], bool]:
        """Return the figures of the benchmark once it has ended, and whether it was cut short as its server is gone."""
        path = f"/benchmark/{benchmark_id}"
        is_cut = False
        while True:
            status = self._ask(context, "GET", path)
            progress = status["progress"]
            detail = f"{progress['doing']}, {progress['tokens_per_s']:.1f} tokens/s"
            if progress["failed"]:
                detail += f", {progress['failed']} failed"
            context.progress.show_bar(self.name, progress["finished"], progress["total"], detail)
            if status["state"] == "done" or (status["state"] == "cancelled" and is_cut):
                return status["result"], is_cut
            if status["state"] in {"failed", "cancelled"}:
                raise StageError(f"the benchmark {status['state']}: {status.get('error') or 'no reason was given'}")
            if time.monotonic() > deadline:
                self._ask(context, "DELETE", path)
                raise StageError(f"the benchmark did not end within {_limit(context)}")
            if not is_cut and _is_replaced(context, server, bool(progress["failed"])):
                self._ask(context, "DELETE", path)
                is_cut = True
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


def _body(job: Job, benchmark_id: str) -> dict[str, Any]:
    """Return the body of ``POST /benchmark``, as client/README.md has it."""
    load = job.benchmark.load
    body: dict[str, Any] = {
        "id": benchmark_id,
        "background": True,
        "max_tokens": job.benchmark.max_tokens,
        "temperature": job.benchmark.temperature,
        "seed": job.benchmark.seed,
        "warmup_requests": job.benchmark.warmup_requests,
        "request_timeout_s": job.service.request_timeout_s,
        **load.model_dump(mode="json", exclude_none=True),
    }
    if load.counts_clients:
        body |= {"n_clients": job.service.n_clients, "n_requests_per_client": job.service.n_requests_per_client}
    if load.input_tokens is None:
        body["prompt"] = job.service.prompt
    if job.benchmark.ignore_eos:
        body["ignore_eos"] = True
    return body


def _servers(context: StageContext, front: Endpoint) -> dict[str, Endpoint]:
    """Return the LLM servers that are ready, by name: the one that is asked, or the replicas behind the balancer."""
    if context.recipe.job.service.replicas == 1:
        return {front.service: front}
    jobs = [job for job in context.jobs.services if job.planned.role == "server"]
    return {job.name: endpoint for job in jobs if (endpoint := ready_endpoint(context.run, job)) is not None}


def _changes(before: Mapping[str, Endpoint], after: Mapping[str, Endpoint]) -> list[str]:
    """Return which replicas came or went, in words."""
    attempts = [{(name, endpoint.attempt) for name, endpoint in servers.items()} for servers in (before, after)]
    names = sorted({name for name, _ in attempts[0] ^ attempts[1]})
    return [f"replicas came or went while they were measured: {', '.join(names)}"] if names else []


def _exporters(context: StageContext, servers: Mapping[str, Endpoint]) -> list[str]:
    """Return the URLs of the exporters beside LLM servers, as far as they have registered where this can be seen."""
    urls = []
    for server in servers.values():
        for kind in ("node", "gpu"):
            path = context.run.targets / f"{kind}_targets_{server.job_id}.json"
            for entry in read_json(path) or []:
                urls += [f"http://{where}" for where in entry["targets"]]
    return urls


def _write_page(context: StageContext, folder: Path) -> str | None:
    """Draw the benchmark's own report; return where it is below the run, or None, having told why."""
    from client.errors import StorageError
    from client.load.bench import errors_of
    from client.load.columns import columns_of
    from client.load.export import read_parquet, read_summary
    from client.load.report import write_report

    try:
        summary, seen = read_summary(folder / "summary.json"), read_parquet(folder / "requests.parquet")
        write_report(folder, summary, columns_of(seen), errors_of(seen))
    except StorageError as error:
        context.progress.say(f"benchmark: its own report could not be written: {error}")
        return None
    return str((folder / "report.html").relative_to(context.run.root))


def _server(context: StageContext) -> Endpoint:
    return context.endpoint(context.recipe.job.front)


def _is_replaced(context: StageContext, server: Endpoint, has_failures: bool) -> bool:
    """Return whether requests to ``server`` are in vain: another attempt of its job is ready, or requests to it fail.

    A server that has handed over to its successor still answers what it is asked.
    """
    try:
        now = _server(context)
    except ServiceAnswerError:
        return False
    return now.attempt != server.attempt and (now.job_id == server.job_id or has_failures)


def _records(context: StageContext, result: dict[str, Any]) -> Path:
    records: Path = context.run.benchmark / result["id"] / "requests.jsonl"
    return records


def _limit(context: StageContext) -> str:
    return f"benchmark.timeout_s = {context.recipe.job.benchmark.timeout_s:g} s"


def _failures(result: dict[str, Any]) -> str:
    failures = {name: count for name, count in result["failures"].items() if count}
    return "Failures: " + (", ".join(f"{name} {count}" for name, count in failures.items()) or "none recorded")


def _push(context: StageContext, result: dict[str, Any]) -> None:
    model = result["model"]
    samples = [
        Sample(
            "tokens_per_second", value, "Output tokens per second of one client.", {"model": model, "client_id": client}
        )
        for client, value in result["tokens_per_second"].items()
        if value is not None
    ]
    totals = {
        "benchmark_output_tokens_per_second": (
            result["output_tokens_per_s"],
            "Output tokens per second of all clients.",
        ),
        "benchmark_requests_total": (result["total_queries"], "Requests sent."),
        "benchmark_requests_failed": (result["failed"], "Requests that failed."),
    }
    for quantity in ("ttft", "itl", "e2e"):
        for statistic in ("mean", "p50", "p90", "p99"):
            value_ms = result[f"{quantity}_ms"][statistic]
            if value_ms is not None:
                name, help_text = f"benchmark_{quantity}_seconds", "Latency as seen by the clients, in seconds."
                samples.append(Sample(name, value_ms / 1000, help_text, {"model": model, "statistic": statistic}))
    for name, (value, help_text) in totals.items():
        if value is not None:
            samples.append(Sample(name, value, help_text, {"model": model}))
    context.metrics.push({"job": "orch_benchmark", "run": context.run_id}, samples)
