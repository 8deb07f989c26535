"""``--set PATH=VALUE``."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import Problem, RecipeError
from orchestrator.recipe import parse_recipe
from orchestrator.recipe.load import apply_overrides

BASE: dict[str, Any] = {
    "job": {
        "name": "x",
        "engine": {"kind": "vllm", "max_model_len": 4096},
        "monitoring": "auto",
        "hpo": None,
        "service": {"n_clients": 1},
    }
}


def overridden(*overrides: str) -> dict[str, Any]:
    """Return the job of BASE with overrides that are all good."""
    problems: list[Problem] = []
    document = apply_overrides(BASE, overrides, problems)
    assert problems == []
    job: dict[str, Any] = document["job"]
    return job


@pytest.mark.parametrize(
    ("override", "section", "expected"),
    [
        ("job.service.n_clients=4", "service", {"n_clients": 4}),
        ("job.service.model=llama2", "service", {"n_clients": 1, "model": "llama2"}),
        ("job.service.prompt=a=b=c", "service", {"n_clients": 1, "prompt": "a=b=c"}),
        ("job.service.prompt=", "service", {"n_clients": 1, "prompt": ""}),
        ('job.service.model="4"', "service", {"n_clients": 1, "model": "4"}),
        ("job.benchmark.enabled=false", "benchmark", {"enabled": False}),
        ("job.benchmark.seed=null", "benchmark", {"seed": None}),
        ('job.environment.modules=["a","b"]', "environment", {"modules": ["a", "b"]}),
        ("job.monitoring.mode=off", "monitoring", {"mode": "off"}),
        ("job.hpo.trials=3", "hpo", {"trials": 3}),
        ('job.service={"model": "m"}', "service", {"model": "m"}),
        ("job.engine.kind=ollama", "engine", {"kind": "ollama"}),
        ("job.engine.kind=vllm", "engine", {"kind": "vllm", "max_model_len": 4096}),
        (" job.name =y", "name", "y"),
    ],
)
def test_set_good_override_changes_exactly_its_field(override: str, section: str, expected: Any) -> None:
    job = overridden(override)
    assert job[section] == expected
    others = {name: value for name, value in job.items() if name != section}
    assert others == {name: value for name, value in BASE["job"].items() if name != section}


def test_set_leaves_the_given_document_alone() -> None:
    overridden("job.service.n_clients=9", "job.engine.kind=ollama")
    assert BASE["job"]["service"] == {"n_clients": 1}
    assert BASE["job"]["engine"] == {"kind": "vllm", "max_model_len": 4096}


def test_set_later_override_of_the_same_field_wins() -> None:
    assert overridden("job.service.n_clients=2", "job.service.n_clients=3")["service"] == {"n_clients": 3}


def test_set_kind_given_last_loses_no_field_of_that_kind() -> None:
    engine = overridden("job.engine.num_parallel=4", "job.engine.kind=ollama")["engine"]
    assert engine == {"kind": "ollama", "num_parallel": 4}


@pytest.mark.parametrize("override", ["job.name", "=x", "job..name=x", ".job=x", "job.=x", ""])
def test_set_override_without_path_or_value_is_a_problem(override: str) -> None:
    with pytest.raises(RecipeError, match="not of the form PATH=VALUE"):
        parse_recipe(BASE, "r", [override], env={})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("job.service=5", "'service' is a section"),
        ("job=5", "'job' is a section"),
        ("job.service.modle=x", "Did you mean 'model'?"),
        ("job.service.n_clients=many", "job.service.n_clients: is 'many'"),
        ("job.service.model.x=1", "job.service.model"),
        ("job.engine.kind=[1]", "job.engine.kind"),
        ('job.engine.kind={"a": 1}', "job.engine.kind"),
        ("job.engine.kind=tgi", "unknown kind 'tgi'"),
        ("job.environment.modules.0=a", "job.environment.modules"),
        ("job.service.n_clients=NaN", "job.service.n_clients"),
        ("nonsense=1", "nonsense: unknown key"),
        ("job.service.model=${NOPE}", "NOPE is not set"),
    ],
)
def test_set_bad_override_is_a_recipe_error_that_names_it(override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(BASE, "r", [override], env={})
    assert expected in str(caught.value)


def test_set_all_bad_overrides_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(BASE, "r", ["nothing", "job.service=5", "job.service.n_clients=0"], env={})
    assert len(caught.value.problems) == 3


def test_set_number_for_a_time_limit_means_minutes() -> None:
    assert parse_recipe(BASE, "r", ["job.infrastructure.time=30"], env={}).job.infrastructure.time == "30"


def test_set_value_is_expanded_like_any_other() -> None:
    job = parse_recipe(BASE, "r", ["job.infrastructure.account=${ACCOUNT}"], env={"ACCOUNT": "p1"}).job
    assert job.infrastructure.account == "p1"
