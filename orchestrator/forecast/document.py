"""The forecast of a run as it stands in plan.json: what it may cost, when it may start, whether it can work."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


def clock(seconds: float) -> str:
    """Return a length of time as H:MM:SS, as schedulers write it."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class StageCost(_Section):
    """One stage of the run.

    Attributes:
        lasts_s: How long it lasts, in seconds; None where nothing bounds it.
        is_bound: Whether that is the longest it may last, not what is expected.
        made_of: What the length is made of, in words.
        gpu_hours: GPU-hours of services and of the stage's own jobs in that time; None where nothing bounds them.
    """

    name: str
    lasts_s: float | None
    is_bound: bool
    made_of: str
    gpu_hours: float | None


class JobStart(_Section):
    """When one job would start; exactly one of the three is given.

    Attributes:
        at: The scheduler's own words, in the cluster's local time.
        refusal: Why the scheduler would not take it.
        unknown: Why it is not known, or does not apply.
    """

    job: str
    at: str | None = None
    refusal: str | None = None
    unknown: str | None = None


class WallTime(_Section):
    """The wall time of one job.

    Attributes:
        limit_s: In seconds; None where there is none or it is not known.
        source: Who set it: recipe, partition, none.
        needs_s: What the run may need of it, in seconds; None for a job that only its own stage needs.
    """

    job: str
    limit_s: float | None
    source: Literal["recipe", "partition", "none"]
    needs_s: float | None


class ModelFit(_Section):
    """Whether the model's weights and KV cache fit.

    Attributes:
        verdict: What the figures say.
        text: The figures in words, or why they are not known.
        weights_gib: Weights in memory, all ranks together.
        kv_bytes_per_token: KV cache of one token, all ranks together.
        needs_gib: What one GPU (on a CPU the job) needs at least.
        has_gib: What it can use.
    """

    verdict: Literal["fits", "does not fit", "not known"]
    text: str
    weights_gib: float | None = None
    kv_bytes_per_token: float | None = None
    needs_gib: float | None = None
    has_gib: float | None = None


class Forecast(_Section):
    """What can be told of a run before anything is submitted.

    Attributes:
        gpu_hours: The most that all jobs may use within their wall time; None where one with a GPU has none.
        account: What the scheduler says of accounts, or why it is not known.
        limits: What the scheduler says of partitions, or why it is not known.
        warnings: What is likely to go wrong, each with what to do.
    """

    gpu_hours: float | None
    stages: tuple[StageCost, ...]
    starts: tuple[JobStart, ...]
    wall_times: tuple[WallTime, ...]
    fit: ModelFit
    account: str
    limits: str
    warnings: tuple[str, ...]

    def limit_s(self, job: str) -> float | None:
        """Return the wall time of ``job`` in seconds, or None."""
        return next((item.limit_s for item in self.wall_times if item.job == job), None)
