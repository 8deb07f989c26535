"""The JSON schema that editors use is the one of the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.schema import recipe_schema, recipe_schema_text

RECIPES = Path(__file__).parents[3] / "recipes"


def test_schema_checked_in_equals_the_generated_one() -> None:
    checked_in = (RECIPES / "recipe.schema.json").read_text(encoding="utf-8")
    assert checked_in == recipe_schema_text(), "run `make schema`"


def test_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())


@pytest.mark.parametrize("name", sorted(path.name for path in RECIPES.glob("*.json") if "schema" not in path.name))
def test_schema_accepts_every_shipped_recipe(name: str) -> None:
    jsonschema.validate(json.loads((RECIPES / name).read_text()), recipe_schema())


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"name": "a b"},
        {"name": "x", "unknown": 1},
        {"name": "x", "service": {"n_clients": 0}},
        {"name": "x", "engine": {"kind": "tgi"}},
        {"name": "x", "engine": {"kind": "ollama", "tensor_parallel": 2}},
        {"name": "x", "scheduler": {"kind": "local", "command_timeout_s": 5}},
    ],
)
def test_schema_refuses_what_the_models_refuse(job: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"job": job}, recipe_schema())


def test_schema_takes_monitoring_as_a_word_or_a_section() -> None:
    for monitoring in ("off", {"mode": "off"}):
        jsonschema.validate({"job": {"name": "x", "monitoring": monitoring}}, recipe_schema())


@pytest.mark.parametrize(
    ("text", "seconds"),
    # sbatch(1), --time.
    [("5", 300), ("5:30", 330), ("1:00:00", 3600), ("2-3", 183_600), ("1-02:03", 93_780), ("1-02:03:04", 93_784)],
)
def test_time_limit_in_each_of_slurms_forms_is_read_as_slurm_does(text: str, seconds: int) -> None:
    assert time_limit_s(text) == seconds
