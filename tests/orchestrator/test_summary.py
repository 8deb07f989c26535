"""The end of a run in figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.plan import Plan
from orchestrator.recipe.document import Recipe
from orchestrator.records import StatusRecord
from orchestrator.schedulers import JobState
from orchestrator.summary import Outcome, headline, ready_after_s, summarise
from orchestrator.tracked import TrackedJob
from tests.builders import RUN_ID, plan_run, recipe_document


def finished(**fields: Any) -> tuple[Recipe, Plan, Outcome, TrackedJob]:
    """Return a finished run and its server's job."""
    planned = plan_run(recipe_document("slurm", "vllm"))
    record = StatusRecord("t", "42", "a", "gpu1", "finished", 105.0, ready_at=130.0)
    job = TrackedJob(planned.server, "42", 102.0, state=JobState.CANCELLED, node="gpu1", record=record)
    outcome = Outcome(**{"state": "completed", "started_at": 100.0, "finished_at": 160.5, **fields})
    return planned.resolved.recipe, planned.plan, outcome, job


def test_summary_has_duration_served_model_and_jobs() -> None:
    recipe, plan, outcome, job = finished()
    summary = summarise(recipe, plan, outcome, [job])
    assert (summary["run_id"], summary["duration_s"], summary["state"]) == (RUN_ID, 60.5, "completed")
    assert summary["served"]["ready_after_s"] == ready_after_s(job) == 28.0
    assert (summary["served"]["engine"], summary["served"]["node"]) == ("vllm", "gpu1")
    assert [(each["name"], each["state"], each["job_id"]) for each in summary["jobs"]] == [("vllm", "CANCELLED", "42")]


def test_summary_of_replicas_tells_of_the_balancer_and_their_number() -> None:
    planned = plan_run(recipe_document("slurm", "vllm", service={"replicas": 2}))
    jobs = [TrackedJob(planned.jobs[name], str(i), 1.0, node=f"n{i}") for i, name in enumerate(planned.jobs)]
    served = summarise(planned.resolved.recipe, planned.plan, Outcome(), jobs)["served"]
    assert (served["job_id"], served["node"], served["replicas"]) == ("2", "n2", 2)
    assert headline({"served": served})[0].endswith("with 2 replicas of vllm, balanced on n2")


def test_summary_of_numbers_that_json_cannot_say_holds_none() -> None:
    recipe, plan, outcome, job = finished(stages={"hpo": {"best": [float("nan"), {"x": float("inf"), 3: (1.5, "a")}]}})
    summary = summarise(recipe, plan, outcome, [job])
    assert summary["stages"]["hpo"]["best"] == [None, {"x": None, "3": [1.5, "a"]}]
    json.dumps(summary, allow_nan=False)


def test_summary_of_a_run_that_served_nothing_says_so() -> None:
    recipe, plan, outcome, _ = finished(state="failed", error="no", finished_at=None)
    summary = summarise(recipe, plan, outcome, [])
    assert (summary["served"], summary["jobs"], summary["duration_s"]) == (None, [], 0.0)


def test_headline_of_a_benchmark_that_is_not_valid_says_why() -> None:
    figures = {"successful": 1, "total_queries": 9, "output_tokens_per_s": 2.0, "valid": False}
    lines = headline({"stages": {"benchmark": {**figures, "invalid_reasons": ["8 of 9 requests failed"]}}})
    assert "           NOT VALID for publication: 8 of 9 requests failed" in lines
    assert not any("NOT VALID" in line for line in headline({"stages": {"benchmark": {**figures, "valid": True}}}))


def test_headline_of_a_sweep_says_of_which_load_its_figures_are() -> None:
    figures = {"successful": 8, "total_queries": 8, "output_tokens_per_s": 20.0, "points": [{}, {}, {}]}
    lines = headline({"stages": {"benchmark": {**figures, "about": {"figures_of": "concurrency 4"}}}})
    assert lines[0] == "Benchmark  8/8 requests, 20.0 output tokens/s at concurrency 4, of 3 loads"


def test_headline_has_the_main_figures() -> None:
    lines = headline(
        {
            "served": {"model": "m", "engine": "vllm", "node": "gpu1"},
            "stages": {
                "benchmark": {
                    "successful": 9,
                    "total_queries": 10,
                    "output_tokens_per_s": 123.45,
                    "ttft_ms": {"p50": 12.3, "p99": 500.0},
                    "itl_ms": {"p50": 2.0, "p99": None},
                },
                "hpo": {
                    "finished": 4, "failed": 1, "by_source": {"llm": {"count": 3}, "tpe": {"count": 2}},
                    "objective_name": "val_accuracy", "best": {"objective": 0.91234, "number": 2}, "test_accuracy": 0.9,
                },
            },
        }
    )  # fmt: skip
    text = "\n".join(lines)
    for words in (
        "m with vllm on gpu1", "9/10 requests, 123.5 output tokens/s", "TTFT p50 12.3 ms p99 500.0 ms",
        "ITL p50 2.0 ms p99 -", "4 finished, 1 failed (llm 3, tpe 2)", "best val_accuracy 0.9123 in trial 2", "0.9000",
    ):  # fmt: skip
        assert words in text
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("summary", [{}, {"served": None, "stages": None}, {"stages": {"benchmark": {}, "hpo": {}}}])
def test_headline_of_nothing_is_nothing(summary: dict[str, Any]) -> None:
    assert headline(summary) == []
