"""The recipe's JSON schema, generated from the models."""

from __future__ import annotations

import json
from typing import Any

from orchestrator.recipe.document import Recipe


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe."""
    schema = Recipe.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def recipe_schema_text() -> str:
    """Return the schema as it is checked in at ``recipes/recipe.schema.json``."""
    return json.dumps(recipe_schema(), indent=2, ensure_ascii=False) + "\n"
