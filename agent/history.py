"""A trial of the study as prompts, checks and tables see it. Plain data, no Optuna."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.recipe.hpo import Scalar

Params = Mapping[str, Scalar]


@dataclass(frozen=True)
class TrialView:
    """One trial of the study.

    Attributes:
        number: From 0, the study's own.
        state: COMPLETE, FAIL or RUNNING.
        params: Active parameters only.
        objective: What is maximised; None unless the trial is complete.
        attrs: What was noted about it (source, rationale, job, cause, …).
        duration_s: From proposal to the end, or None while it runs.
    """

    number: int
    state: str
    params: Params
    objective: float | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    duration_s: float | None = None

    @property
    def is_running(self) -> bool:
        return self.state == "RUNNING"

    @property
    def is_interrupted(self) -> bool:
        """Whether it was cut off by the end of an orchestrator, so that it says nothing about its parameters."""
        return bool(self.attrs.get("interrupted"))

    @property
    def counts(self) -> bool:
        """Whether it is one of the trials that the recipe asked for."""
        return not self.is_interrupted

    @property
    def has_failed(self) -> bool:
        """Whether the trial itself failed."""
        return self.state == "FAIL" and not self.is_interrupted

    @property
    def cause(self) -> str | None:
        """Why it failed, in words."""
        cause = self.attrs.get("cause")
        return str(cause) if cause is not None else None


def best_of(trials: Iterable[TrialView]) -> TrialView | None:
    """Return the complete trial with the highest objective (the earliest of equals), or None."""
    complete = [trial for trial in trials if trial.objective is not None]
    return max(complete, key=lambda trial: (trial.objective or 0.0, -trial.number), default=None)
