"""What goes with one allocation and what does not, and the sizes of the parts that a recipe names."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import RecipeError
from tests.builders import merged, plan_run, recipe_document

HPO = {
    "trials": 4,
    "parallel_trials": 2,
    "dataset": {"kind": "digits"},
    "space": {"num_layers": {"kind": "int", "low": 1, "high": 3}},
}


def one(kind: str = "slurm", resources: dict[str, Any] | None = None, **infrastructure: Any) -> dict[str, Any]:
    """Return a recipe with everything in one job."""
    infra = {"partition": "gpu", "time": "01:00:00", "placement": "one_allocation", **infrastructure}
    return recipe_document(kind, "vllm", infrastructure=infra, resources=resources or {}, hpo=HPO)


def parts_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the resolved parts."""
    allocation = plan_run(document).resolved.recipe.job.infrastructure.allocation
    return [part.model_dump(exclude_none=True) for part in allocation]


def test_sizes_that_a_recipe_leaves_open_are_filled_and_its_own_stay() -> None:
    roles = ("server", "client", "monitoring", "trial")
    (part,) = parts_of(one(allocation=[{"roles": list(roles), "nodes": 3}]))
    assert part["roles"] == roles
    assert part["nodes"] == 3
    assert part["cpus"] >= 8 + 2 + 2
    assert part["gpus"] >= 1


def test_resolved_recipe_with_its_parts_resolves_to_the_same() -> None:
    first = plan_run(one()).resolved.recipe
    document = first.model_dump(mode="json", by_alias=True, exclude_none=True)
    again = plan_run(document).resolved.recipe
    assert again.job.infrastructure.allocation == first.job.infrastructure.allocation != ()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (one(requeue=True), "all its services would be gone at once"),
        (one(resources={"trial": {"requeue": True}}), "a step is not requeued by itself"),
        (one(successor_lead="00:10:00"), "goes not with placement"),
        (merged(one(), {"job": {"service": {"replicas": 2}}}), "job.service.replicas"),
        (one(allocation=[{"roles": ["client"], "cpus": 1}, {"roles": ["server"], "cpus": 8}]), "begins with client"),
        (one(allocation=[{"roles": ["server", "client"]}, {"roles": ["client"]}]), "a role is in two parts"),
        (one("pbs", resources={"trial": {"partition": "other"}}), "one pbs job has one partition"),
        (one("pbs", {"trial": {"account": "A1"}}, partition=None), "one pbs job has one account"),
        (recipe_document("slurm", "vllm", infrastructure={"allocation": [{"roles": ["server"]}]}), "without placement"),
    ],
)
def test_what_does_not_go_with_one_allocation_is_named(document: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_run(document)
    assert words in str(caught.value)


def test_time_of_a_service_that_does_not_apply_is_noted() -> None:
    notes = plan_run(one(resources={"client": {"time": "00:05:00"}})).resolved.notes
    assert [note for note in notes if note.startswith("client: not applicable in one allocation: time")]


def test_gpus_of_an_allocation_are_those_of_all_its_parts_and_steps_have_none() -> None:
    planned = plan_run(one(resources={"server": {"partition": "cpu", "gpus": 0}, "trial": {"gpus": 1}}))
    allocation = planned.jobs["allocation"]
    assert allocation.resources.gpus == 0
    assert allocation.gpus == sum((part.gpus or 0) * (part.nodes or 1) for part in allocation.components) == 2
    assert {job.gpus for name, job in planned.jobs.items() if name != "allocation"} == {0}
    assert [part["gpus"] for part in allocation.as_json("slurm")["components"]] == [2]


def test_local_has_nothing_to_place() -> None:
    document = recipe_document(
        "local", "vllm", infrastructure={"placement": "one_allocation"}, engine={"device": "cpu"}
    )
    planned = plan_run(document)
    assert "allocation" not in planned.jobs
    assert [note for note in planned.resolved.notes if "not applicable on local: placement" in note]
