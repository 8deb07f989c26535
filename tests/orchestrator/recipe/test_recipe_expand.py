"""``${VAR}``: expanded once, at load, from the environment."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import Problem, RecipeError
from orchestrator.recipe import parse_recipe
from orchestrator.recipe.load import escape_variables, expand_variables

ENV = {"USER": "ada", "ACCOUNT": "p1", "NESTED": "${USER}", "N": "4", "EMPTY": ""}
FRAGMENTS = st.sampled_from(["$", "{", "}", "${USER}", "$${USER}", "${", "$$", "a", "${1}", "\n", "ü", "${N"])
TEXTS = st.lists(FRAGMENTS | st.text(max_size=3), max_size=8).map("".join)
DOCUMENTS = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(DOCUMENTS)
@example("$$$${USER}")
@example("$${USER}${USER}")
def test_expand_undoes_escape_for_every_document(value: Any) -> None:
    problems: list[Problem] = []
    assert expand_variables(escape_variables(value), ENV, problems) == value
    assert problems == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${USER}", "ada"),
        ("/scratch/${USER}/${ACCOUNT}", "/scratch/ada/p1"),
        ("${NESTED}", "${USER}"),
        ("$${USER}", "${USER}"),
        ("$USER", "$USER"),
        ("${}", "${}"),
        ("${USER:-x}", "${USER:-x}"),
        ("$(id)", "$(id)"),
        ("${EMPTY}", ""),
    ],
)
def test_expand_replaces_exactly_the_documented_form_once(text: str, expected: str) -> None:
    problems: list[Problem] = []
    assert expand_variables(text, ENV, problems) == expected
    assert problems == []


def test_expand_leaves_keys_and_numbers_alone() -> None:
    assert expand_variables({"${USER}": [1, None, True, "${N}"]}, ENV, []) == {"${USER}": [1, None, True, "4"]}


def test_expand_unset_variable_is_a_problem_with_place_and_remedy() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"job": {"name": "x", "environment": {"modules": ["ok", "${NOPE}"]}}}, "r", env=ENV)
    first = caught.value.problems[0]
    assert first.where == "job.environment.modules[1]"
    assert "NOPE is not set" in first.what
    assert "$${NOPE}" in first.remedy


def test_expand_gives_numbers_where_numbers_are_wanted() -> None:
    assert (
        parse_recipe({"job": {"name": "x", "service": {"n_clients": "${N}"}}}, "r", env=ENV).job.service.n_clients == 4
    )


def test_expand_cannot_smuggle_a_line_break_into_a_directive() -> None:
    document = {"job": {"name": "x", "infrastructure": {"account": "${EVIL}"}}}
    with pytest.raises(RecipeError, match="control characters"):
        parse_recipe(document, "r", env={"EVIL": "p1\ntouch pwned"})
