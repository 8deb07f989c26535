"""The forecast as a whole: cost of each stage, wall times, and what is warned of."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.forecast.document import Forecast
from orchestrator.forecast.make import Place, make_forecast
from orchestrator.plan import Plan
from orchestrator.plan_view import show_plan
from orchestrator.recipe.hosts import Partition
from orchestrator.rundir import RunDir
from tests.builders import AnsweringTransport, plan_run, recipe_document
from tests.orchestrator.forecast.test_fit import LLAMA_8B, model

HPO = {"dataset": {"kind": "digits"}, "trials": 10, "parallel_trials": 4}
# In the form of a real sinfo; sbatch and sacctmgr are not there.
SINFO = "cpu*|up|30:00|30:00|3|8|160000|(null)\ngpu|up|30:00|30:00|2|8|160000|gpu:a100:4\n"


def forecast_of(
    job: dict[str, Any], sinfo: str | None = SINFO, cache: Path = Path("/cache"), **partitions: Partition
) -> tuple[Forecast, Plan]:
    planned = plan_run(recipe_document(job.pop("kind", "slurm"), "vllm", **job))
    trial = planned.jobs.get("trial_example")
    services = tuple(item for item in planned.jobs.values() if item.role != "trial")
    transport = AnsweringTransport({} if sinfo is None else {"sinfo": sinfo})
    place = Place(planned.resolved.scheduler, transport, partitions)
    forecast = make_forecast(planned.resolved.recipe.job, services, trial, cache, {"here": place})
    trials = planned.resolved.recipe.job.hpo.trials if planned.resolved.recipe.job.hpo else 0
    return forecast, replace(planned.plan, trial=trial, trials=trials, forecast=forecast)


def costs(forecast: Forecast) -> dict[str, Any]:
    return {stage.name: (stage.lasts_s, stage.gpu_hours) for stage in forecast.stages}


def test_cost_is_told_for_each_stage_and_in_all() -> None:
    forecast, plan = forecast_of(
        {
            "infrastructure": {"partition": "gpu", "gpus_per_node": 2, "time": "30"},
            "resources": {"trial": {"gpus": 1, "time": "10"}},
            "service": {"n_requests_per_client": 4, "request_timeout_s": 60},
            "hpo": HPO,
        }
    )
    found = costs(forecast)
    assert found["load"] == (60, pytest.approx(60 * 2 / 3600))
    # 4 requests and one to warm up, one after the other.
    assert found["benchmark"] == (300, pytest.approx(300 * 2 / 3600))
    # Ten trials, four at once, then the winner's test: 4 × 10 min with 2 GPUs held, and 11 × 10 min of one GPU.
    assert found["hpo"] == (2400, pytest.approx((2400 * 2 + 11 * 600) / 3600))
    assert forecast.gpu_hours == pytest.approx(2 * 0.5 + 11 / 6, abs=1e-4)
    assert plan.gpu_hours() == plan.as_json()["gpu_hours"] == forecast.gpu_hours


def test_cost_counts_every_replica() -> None:
    job: dict[str, Any] = {"infrastructure": {"partition": "gpu", "gpus_per_node": 2, "time": "30"}}
    single, _ = forecast_of({**job})
    forecast, plan = forecast_of({**job, "service": {"replicas": 3}})
    assert forecast.gpu_hours == plan.gpu_hours() == pytest.approx(3 * 2 * 0.5)
    assert costs(forecast)["benchmark"] == (costs(single)["benchmark"][0], 3 * costs(single)["benchmark"][1])


def test_cost_of_trials_is_bounded_by_their_time_limit_where_that_is_shorter() -> None:
    forecast, _ = forecast_of(
        {
            "infrastructure": {"partition": "gpu", "gpus_per_node": 0, "time": "30"},
            "resources": {"trial": {"gpus": 1, "time": "10"}},
            "hpo": {**HPO, "trial_timeout_s": 60, "evaluate_winner": False},
        }
    )
    assert costs(forecast)["hpo"] == (180, pytest.approx(10 / 60))
    assert forecast.gpu_hours == pytest.approx(10 / 60, abs=1e-4)


def test_cost_without_any_limit_is_unbounded_and_the_partitions_default_is_one() -> None:
    job: dict[str, Any] = {"infrastructure": {"partition": "gpu", "gpus_per_node": 1}, "hpo": HPO}
    unbounded, _ = forecast_of(dict(job), sinfo=None)
    assert (unbounded.gpu_hours, costs(unbounded)["hpo"]) == (None, (None, None))
    bounded, _ = forecast_of(dict(job))
    assert {item.source for item in bounded.wall_times} == {"partition"}
    # Default wall time of 30 minutes, for the server, ten trials and the winner's test.
    assert bounded.gpu_hours == pytest.approx(0.5 + 11 * 0.5)


def test_cost_of_a_run_without_gpus_is_nothing_even_without_limits() -> None:
    forecast, _ = forecast_of(
        {"infrastructure": {"gpus_per_node": 0}, "resources": {"trial": {"gpus": 0}}, "hpo": HPO}, sinfo=None
    )
    assert forecast.gpu_hours == 0


def test_benchmark_is_bounded_by_its_own_time_out() -> None:
    forecast, _ = forecast_of({"benchmark": {"timeout_s": 100}})
    assert costs(forecast)["benchmark"][0] == 100
    assert [stage.name for stage in forecast_of({"benchmark": {"enabled": False}})[0].stages] == ["load"]


def test_wall_time_shorter_than_load_and_stages_is_warned_of_and_says_what_that_is_made_of(tmp_path: Path) -> None:
    model(tmp_path / "m", LLAMA_8B, 30_000_000_000)
    job: dict[str, Any] = {
        "infrastructure": {"partition": "gpu", "gpus_per_node": 1, "time": "10"},
        "engine": {"max_model_len": 1024},
        "service": {"model": str(tmp_path / "m"), "n_requests_per_client": 5},
        "monitoring": {"mode": "off"},
    }
    forecast, _ = forecast_of(job)
    assert costs(forecast)["load"][0] == 90
    words = "wall time 0:10:00 is shorter than what the run may need, 0:13:30: load 0:01:30 + benchmark 0:12:00"
    assert forecast.warnings == (f"vllm, client: {words}",)
    job["infrastructure"]["time"] = "00:13:30"
    assert forecast_of(job)[0].warnings == ()


def test_wall_time_that_is_the_partitions_default_is_warned_of_too() -> None:
    forecast, _ = forecast_of(
        {
            "infrastructure": {"partition": "gpu"},
            "service": {"n_requests_per_client": 20},
            "monitoring": {"mode": "off"},
        }
    )
    assert len(forecast.warnings) == 1
    assert "wall time 0:30:00 (the partition's default) is shorter" in forecast.warnings[0]


def test_wall_time_of_trials_shorter_than_their_time_out_is_warned_of() -> None:
    forecast, _ = forecast_of(
        {
            "infrastructure": {"partition": "gpu", "time": "30"},
            "resources": {"trial": {"time": "1"}},
            "hpo": {**HPO, "trials": 1, "trial_timeout_s": 90},
        }
    )
    assert [text for text in forecast.warnings if text.startswith("trials")] == [
        "trials: wall time 0:01:00 is shorter than hpo.trial_timeout_s, 0:01:30: the scheduler would end them first"
    ]


def test_search_without_a_bound_is_named_where_wall_time_is_short_already() -> None:
    forecast, _ = forecast_of(
        {"infrastructure": {"partition": "gpu", "time": "5"}, "hpo": HPO, "resources": {"trial": {"partition": "x"}}}
    )
    # Trials inherit the server's time; without it and without a known partition nothing bounds them.
    assert "hpo 0:20:00" in forecast.warnings[-1]


def test_model_that_does_not_fit_is_warned_of_with_what_to_do(tmp_path: Path) -> None:
    model(tmp_path / "m", LLAMA_8B, 200_000_000_000)
    job: dict[str, Any] = {
        "infrastructure": {"partition": "gpu", "gpus_per_node": 1},
        "service": {"model": str(tmp_path / "m")},
    }
    forecast, _ = forecast_of(dict(job))
    assert forecast.fit.verdict == "does not fit"
    assert [text for text in forecast.warnings if text.startswith("the model does not fit: 186.3 GiB of weights")]
    assert "Lower engine.max_model_len" in forecast.warnings[-1]
    large, _ = forecast_of(dict(job), gpu=Partition(gpus_per_node=4, gpu_type="a100", gpu_memory_gb=500))
    assert (large.fit.verdict, large.fit.has_gib) == ("fits", 460)


def test_forecast_of_a_silent_scheduler_says_why_and_warns_of_nothing() -> None:
    forecast, _ = forecast_of({"infrastructure": {"partition": "gpu", "time": "30"}}, sinfo=None)
    assert forecast.limits == "not known: sinfo gave no usable answer"
    assert forecast.account.startswith("not known: ")
    assert all(start.unknown for start in forecast.starts)
    assert forecast.fit.text == "not known: the model is not in the hub's cache of this machine"
    assert forecast.warnings == ()


def test_forecast_in_plan_json_is_read_back(tmp_path: Path) -> None:
    forecast, plan = forecast_of({"infrastructure": {"partition": "gpu", "time": "30"}})
    document = json.loads(json.dumps(plan.as_json(), allow_nan=False))
    assert Forecast.model_validate(document["forecast"]) == forecast
    run = RunDir(tmp_path / "run")
    run.make()
    planned = plan_run(recipe_document("slurm", "vllm"), run.root)
    saved = replace(planned.plan, forecast=forecast)
    saved.write()
    again = Plan.from_json(run, json.loads(run.plan.read_text()))
    assert again.forecast == forecast
    assert again.limits_s["server"] == 1800
    old = {name: value for name, value in json.loads(run.plan.read_text()).items() if name != "forecast"}
    assert Plan.from_json(run, old).forecast is None


def test_forecast_is_shown_at_80_columns() -> None:
    _, plan = forecast_of(
        {"infrastructure": {"partition": "gpu", "gpus_per_node": 1, "time": "40"}, "hpo": HPO, "engine": {"seed": 1}}
    )
    text = io.StringIO()
    show_plan(plan, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    for words in (
        "stage",
        "about 0:01:00",
        "≤ 0:12:00",
        "GPU-hours at most: 8",
        "Start: not known",
        "Account: not known",
        "Partitions: cpu, gpu",
        "Memory: not known",
        "Warning: vllm, trials: time 0:40:00 is over the longest of partition 'gpu',",
    ):
        assert any(words in line for line in lines), words
