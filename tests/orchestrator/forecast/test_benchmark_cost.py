"""The longest that a benchmark may last, by the shape of its load."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.forecast.stages import benchmark_cost
from orchestrator.recipe.load import parse_recipe

SLO = "ttft_ms<=200"


@pytest.mark.parametrize(
    ("load", "lasts_s"),
    [
        ({}, (4 + 1) * 10),
        ({"repeats": 3}, (4 + 1) * 10 * 3),
        ({"ramp_s": 7}, (4 + 1) * 10 + 7),
        ({"concurrency": [1, 4], "requests": 8}, (8 * 10 + 10) + (2 * 10 + 10)),
        ({"concurrency": 2, "duration_s": 60}, 60 + 10 + 10),
        ({"concurrency": 2}, 50 * 10 + 10),
        ({"rate": 2, "requests": 40}, 20 + 10 + 10),
        ({"rate": 2, "find_capacity": True, "slo": SLO}, 3000),
        ({"turns": "5", "input_tokens": "9"}, 3000),
    ],
)
def test_benchmark_lasts_as_long_as_its_load_at_most(load: dict[str, Any], lasts_s: float) -> None:
    service = {"n_clients": 2, "n_requests_per_client": 4, "request_timeout_s": 10}
    benchmark = {"warmup_requests": 1, "timeout_s": 3000, "load": load}
    recipe = parse_recipe({"job": {"name": "x", "service": service, "benchmark": benchmark}}, "recipe")
    cost = benchmark_cost(recipe.job, 4)
    assert cost.lasts_s == pytest.approx(lasts_s)
    assert cost.gpu_hours == pytest.approx(lasts_s / 3600 * 4)
