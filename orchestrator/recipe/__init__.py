"""The recipe: typed, frozen, and the only source of its JSON schema."""

from orchestrator.recipe.document import Job, Recipe
from orchestrator.recipe.load import load_recipe, parse_recipe

__all__ = ["Job", "Recipe", "load_recipe", "parse_recipe"]
