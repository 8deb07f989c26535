"""How long the stages of a run may last, and what they cost in GPU-hours. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from orchestrator.forecast.document import StageCost, WallTime, clock
from orchestrator.plan import PlannedJob
from orchestrator.recipe.benchmark import DEFAULT_REQUESTS
from orchestrator.recipe.document import Job
from orchestrator.recipe.hpo import Hpo

# From the start of the server's process to the loading of weights, and after it to the first good answer: vLLM 0.32 was
# ready after 52 s on a CPU with a model of 0.3 GB. CUDA graphs take about as long again.
ENGINE_START_S = 60.0
# What one node reads from a shared file system that others use too; an assumption, not a measurement.
READ_GB_PER_S = 1.0
_NO_LIMIT = "trials have neither resources.trial.time nor hpo.trial_timeout_s"


def load_cost(stored_bytes: int | None, server_gpus: int) -> StageCost:
    """Return what loading the model is expected to take, in seconds from the start of the server's job."""
    read_s = (stored_bytes or 0) / 1e9 / READ_GB_PER_S
    made_of = f"{ENGINE_START_S:g} s to start"
    if stored_bytes is None:
        made_of += "; the model's size is not known"
    else:
        made_of += f" + {stored_bytes / 1e9:.1f} GB at {READ_GB_PER_S:g} GB/s"
    lasts_s = ENGINE_START_S + read_s
    return StageCost(
        name="load", lasts_s=lasts_s, is_bound=False, made_of=made_of, gpu_hours=lasts_s / 3600 * server_gpus
    )


def benchmark_cost(job: Job, server_gpus: int) -> StageCost:
    """Return the longest that the benchmark may last."""
    by_requests_s, made_of = _load_limit(job)
    lasts_s = min(by_requests_s, job.benchmark.timeout_s)
    if job.benchmark.timeout_s < by_requests_s:
        made_of = f"benchmark.timeout_s, less than {made_of}"
    return StageCost(
        name="benchmark", lasts_s=lasts_s, is_bound=True, made_of=made_of, gpu_hours=lasts_s / 3600 * server_gpus
    )


def _load_limit(job: Job) -> tuple[float, str]:
    """Return the longest that the benchmark's requests may last, in seconds, and what that is made of."""
    load, each_s, warmup = job.benchmark.load, job.service.request_timeout_s, job.benchmark.warmup_requests
    if load.find_capacity or load.turns is not None:
        return math.inf, "a search of unknown length" if load.find_capacity else "conversations of unknown length"
    if load.counts_clients:
        requests = (job.service.n_requests_per_client + warmup) * load.repeats
        return requests * each_s + load.ramp_s, f"{requests} requests of a client × {each_s:g} s"
    loads: Sequence[float] = load.rate or load.concurrency or ()
    requests = load.requests or DEFAULT_REQUESTS
    total_s = 0.0
    for amount in loads:
        # The requests of a rate begin when they are due, those of a client one after the other.
        by_requests_s = requests / amount + each_s if load.rate else math.ceil(requests / amount) * each_s
        by_duration_s = math.inf if load.duration_s is None else load.duration_s + each_s
        is_counted = load.requests is not None or load.duration_s is None
        total_s += min(by_requests_s if is_counted else math.inf, by_duration_s) + load.ramp_s + warmup * each_s
    measurements = len(loads) * load.repeats
    return total_s * load.repeats, f"measurements ({measurements}) with requests of at most {each_s:g} s"


def trial_limit_s(hpo: Hpo, wall_time_s: float | None) -> float | None:
    """Return the longest that one trial may run, in seconds; None without a limit."""
    return min((limit for limit in (hpo.trial_timeout_s, wall_time_s) if limit is not None), default=None)


def trial_jobs(hpo: Hpo) -> int:
    """Return how many jobs a search submits: its trials, and one that measures the winner."""
    return hpo.trials + int(hpo.evaluate_winner)


def search_cost(hpo: Hpo, limit_s: float | None, server_gpus: int, trial_gpus: int) -> StageCost:
    """Return the longest that a search may last, waiting in the queue left out.

    Args:
        hpo: The search.
        limit_s: The longest that one trial may run.
        server_gpus: GPUs that are held meanwhile.
        trial_gpus: GPUs of one trial.
    """
    if limit_s is None:
        hours = None if server_gpus or trial_gpus else 0.0
        return StageCost(name="hpo", lasts_s=None, is_bound=True, made_of=_NO_LIMIT, gpu_hours=hours)
    waves = -(-hpo.trials // hpo.parallel_trials) + int(hpo.evaluate_winner)
    lasts_s = waves * limit_s
    rounds = f"{hpo.trials} trials, {hpo.parallel_trials} at once" + (", and the winner's test" * hpo.evaluate_winner)
    hours = (lasts_s * server_gpus + trial_jobs(hpo) * limit_s * trial_gpus) / 3600
    made_of = f"{rounds}, × {clock(limit_s)}; waiting in the queue comes on top"
    return StageCost(name="hpo", lasts_s=lasts_s, is_bound=True, made_of=made_of, gpu_hours=hours)


def gpu_hours(jobs: Iterable[tuple[PlannedJob, int]], limit_s: Callable[[PlannedJob], float | None]) -> float | None:
    """Return the most that ``jobs`` (each with how many there are of it) can use; None where one has no limit."""
    total = 0.0
    for job, count in jobs:
        limit = limit_s(job) if job.gpus else 0.0
        if limit is None:
            return None
        total += count * job.gpus * limit / 3600
    return round(total, 4)


def wall_time_warnings(times: Sequence[WallTime], stages: Sequence[StageCost], hpo: Hpo | None) -> list[str]:
    """Return what is likely to end before its work does."""
    made_of = " + ".join(
        f"{stage.name} {clock(stage.lasts_s)}" if stage.lasts_s is not None else f"{stage.name} without a bound"
        for stage in stages
    )
    short: dict[str, list[str]] = {}
    for item in times:
        if item.limit_s is not None and item.needs_s is not None and item.limit_s < item.needs_s:
            words = f"wall time {_limit(item)} is shorter than what the run may need, {clock(item.needs_s)}: {made_of}"
            short.setdefault(words, []).append(item.job)
    timeout_s = hpo.trial_timeout_s if hpo else None
    trials = [
        f"trials: wall time {_limit(item)} is shorter than hpo.trial_timeout_s, {clock(timeout_s)}: the scheduler "
        "would end them first"
        for item in times
        if item.needs_s is None and item.limit_s is not None and timeout_s is not None and item.limit_s < timeout_s
    ]
    return [*(f"{', '.join(jobs)}: {words}" for words, jobs in short.items()), *trials]


def _limit(item: WallTime) -> str:
    source = " (the partition's default)" if item.source == "partition" else ""
    return f"{clock(item.limit_s or 0.0)}{source}"
