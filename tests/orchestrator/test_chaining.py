"""When a serving job can have successors, and how many it needs."""

from __future__ import annotations

import pytest

from orchestrator.chaining import jobs_needed, lead_problems
from orchestrator.recipe.infrastructure import RoleResources

SERVER, LASTING = RoleResources(time="01:00:00"), RoleResources(time="10:00:00")


@pytest.mark.parametrize(
    ("server", "lead", "words"),
    [
        (RoleResources(), "00:10:00", "needs a wall time"),
        (RoleResources(time="01:00:00", requeue=True), "00:10:00", "goes not with requeue"),
        (SERVER, "01:00:00", "is 01:00:00, and the wall time is 01:00:00"),
    ],
)
def test_lead_that_cannot_be_kept_is_named(server: RoleResources, lead: str, words: str) -> None:
    (problem,) = lead_problems(lead, server, LASTING, "slurm")
    assert words in problem.what


def test_lead_of_a_run_with_replicas_is_named() -> None:
    (problem,) = lead_problems("00:10:00", SERVER, LASTING, "slurm", replicas=2)
    assert "goes not with service.replicas" in problem.what


def test_client_that_ends_with_the_first_server_is_named() -> None:
    (problem,) = lead_problems("00:10:00", SERVER, RoleResources(time="01:00:00"), "slurm")
    assert "the run with it" in problem.what
    assert "job.resources.client.time" in (problem.remedy or "")


@pytest.mark.parametrize(("lead", "kind"), [(None, "slurm"), ("00:10:00", "slurm"), ("02:00:00", "local")])
def test_lead_that_is_kept_or_does_not_apply_is_no_problem(lead: str | None, kind: str) -> None:
    assert lead_problems(lead, SERVER, LASTING, kind) == []


@pytest.mark.parametrize(
    ("needs_s", "limit_s", "lead", "expected"),
    [
        (9000.0, 3600.0, None, 1),
        (3600.0, 3600.0, "00:10:00", 1),
        (3601.0, 3600.0, "00:10:00", 2),
        (6600.0, 3600.0, "00:10:00", 2),
        (6601.0, 3600.0, "00:10:00", 3),
        (9000.0, None, "00:10:00", 1),
    ],
)
def test_jobs_needed_follow_each_other_with_the_lead_in_common(
    needs_s: float, limit_s: float | None, lead: str | None, expected: int
) -> None:
    assert jobs_needed(needs_s, limit_s, lead) == expected
