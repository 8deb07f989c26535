"""Every problem of a document is told at once: where, what, what is allowed, what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import Problem, RecipeError
from orchestrator.recipe import parse_recipe


def problems_in(job: Any) -> list[Problem]:
    """Return the problems of a recipe with this job."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"job": job}, "recipe.json", env={})
    return list(caught.value.problems)


def test_problems_of_a_bad_recipe_come_all_at_once() -> None:
    found = problems_in(
        {
            "name": "bad name",
            "infrastructure": {"partion": "gpu", "nodes": 0, "time": "soon"},
            "service": {"precision": "fp8", "n_clients": "many", "model": "${NOT_SET}"},
            "engine": {"kind": "tgi"},
            "scheduler": {"command_timeout_s": 3},
            "hpo": {"space": {"learning_rate": {"kind": "float", "low": 1, "high": 0}}},
        }
    )
    assert {problem.where for problem in found} == {
        "job.name",
        "job.infrastructure.partion",
        "job.infrastructure.nodes",
        "job.infrastructure.time",
        "job.service.precision",
        "job.service.n_clients",
        "job.service.model",
        "job.engine.kind",
        "job.scheduler.kind",
        "job.hpo.space.learning_rate",
    }


def test_problem_of_an_unknown_key_names_the_nearest_and_all_known() -> None:
    (problem,) = problems_in({"name": "x", "infrastructure": {"partion": "gpu"}})
    assert (problem.where, problem.what) == ("job.infrastructure.partion", "unknown key")
    assert problem.remedy == "Did you mean 'partition'?"
    assert {"partition", "account", "nodes", "mem_gb", "time"} <= set(problem.allowed.split(", "))


def test_problem_of_an_unknown_key_in_an_engine_names_only_keys_of_that_engine() -> None:
    (problem,) = problems_in({"name": "x", "engine": {"kind": "ollama", "tensor_paralel": 2}})
    assert problem.where == "job.engine.tensor_paralel"
    assert "num_parallel" in problem.allowed
    assert "tensor_parallel" not in problem.allowed


def test_problem_of_a_key_unlike_any_other_gives_no_wrong_hint() -> None:
    (problem,) = problems_in({"name": "x", "zzzz": 1})
    assert (problem.where, problem.remedy) == ("job.zzzz", "")


def test_problem_of_a_wrong_choice_names_value_and_choices() -> None:
    (problem,) = problems_in({"name": "x", "service": {"precision": "fp8"}})
    assert problem.what == "is 'fp8'"
    for choice in ("auto", "fp32", "fp16", "bf16"):
        assert choice in problem.allowed


def test_problem_of_an_unknown_kind_names_the_kinds() -> None:
    (problem,) = problems_in({"name": "x", "scheduler": {"kind": "lsf"}})
    assert (problem.where, problem.what) == ("job.scheduler.kind", "unknown kind 'lsf'")
    assert "slurm" in problem.allowed
    assert "local" in problem.allowed


def test_problem_of_a_missing_field_says_so() -> None:
    (problem,) = problems_in({})
    assert (problem.where, problem.what) == ("job.name", "required, but not given")


def test_problem_in_a_parameter_of_the_space_names_the_parameter() -> None:
    (problem,) = problems_in({"name": "x", "hpo": {"space": {"batch_size": {"kind": "int", "low": 1, "hi": 2}}}})[:1]
    assert problem.where.startswith("job.hpo.space.batch_size.")


def test_problem_in_a_list_names_the_index() -> None:
    (problem,) = problems_in({"name": "x", "environment": {"modules": ["a", 1.5]}})
    assert problem.where == "job.environment.modules[1]"


def test_problem_with_a_long_value_is_cut() -> None:
    (problem,) = problems_in({"name": "x" * 500})
    assert len(problem.what) < 250


def test_problem_text_has_place_allowed_values_and_remedy() -> None:
    assert Problem("a.b", "is 6", "1-4", "Lower it.").render() == "a.b: is 6\n    Allowed: 1-4. Lower it."
    assert Problem("", "no such file").render() == "no such file"


def test_recipe_error_counts_its_problems() -> None:
    assert str(RecipeError("r.json", [Problem("a", "b")])) == "r.json: 1 problem\n  a: b"
    assert str(RecipeError("r.json", [Problem("a", "b")] * 2)).startswith("r.json: 2 problems\n")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = st.sampled_from(
    ["name", "infrastructure", "service", "scheduler", "engine", "hpo", "monitoring", "resources", "environment"]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(SECTIONS, PLAIN, max_size=4))
def test_problems_of_any_plain_data_are_a_recipe_error_and_nothing_else(job: dict[str, Any]) -> None:
    try:
        recipe = parse_recipe({"job": job}, "recipe", env={})
    except RecipeError as error:
        told = (len(error.problems), str(error))
    else:
        told = (1, recipe.job.name)
    assert all(told)
