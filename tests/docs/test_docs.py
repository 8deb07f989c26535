"""What the documents say is true: links lead somewhere, commands exist, snippets are valid."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import SiteError
from orchestrator.recipe import load_recipe, parse_recipe
from orchestrator.recipe.fields import fields_markdown
from orchestrator.recipe.load import validate
from orchestrator.site import Site

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for path in [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("client/*.md")]
    if ".venv" not in path.parts
)
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)(?:#[^)]*)?\)")
SNIPPET = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)


def snippets(path: Path, language: str) -> list[str]:
    return [text for name, text in SNIPPET.findall(path.read_text()) if name == language]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_of_a_document_lead_to_files(document: Path) -> None:
    targets = [target for target in LINK.findall(document.read_text()) if "://" not in target]
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert missing == []


def test_documents_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "recipe.md", "architecture.md"} <= {path.name for path in DOCUMENTS}


def test_readme_commands_exist() -> None:
    text = "\n".join(snippets(PROJECT / "README.md", "bash"))
    makefile = (PROJECT / "Makefile").read_text()
    targets = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    assert {"run", "test"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    recipes = set(re.findall(r"recipes/[\w.]+", (PROJECT / "README.md").read_text()))
    assert recipes
    assert all((PROJECT / recipe).is_file() for recipe in recipes)
    shown = subprocess.run(
        [sys.executable, "orch.py", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for command in re.findall(r"^python orch.py ([a-z]+)(?![\w/])", text, re.MULTILINE):
        assert re.search(rf"^\s+{command}\b", shown.stdout, re.MULTILINE), command


def test_readme_flags_exist() -> None:
    flags = set(re.findall(r"`(--[a-z-]+)", (PROJECT / "README.md").read_text()))
    shown = subprocess.run(
        [sys.executable, "orch.py", "run", "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert flags >= {"--keep", "--no-monitoring", "--json", "--set"}
    assert [flag for flag in sorted(flags) if flag not in shown.stdout] == []


def test_recipe_snippets_are_valid_recipes() -> None:
    recipes = [json.loads(text) for text in snippets(PROJECT / "docs" / "recipe.md", "json")]
    assert recipes
    for recipe in recipes:
        parse_recipe(recipe, "docs/recipe.md")


def test_site_snippets_are_valid_site_files() -> None:
    texts = snippets(PROJECT / "docs" / "recipe.md", "yaml")
    sites = [validate(Site, yaml.safe_load(text), "docs/recipe.md", SiteError) for text in texts]
    assert 4 in [site.partitions["gpu"].gpus_per_node for site in sites if "gpu" in site.partitions]
    assert "pbs" in [site.scheduler.kind for site in sites if site.scheduler]


@pytest.mark.parametrize("recipe", sorted(PROJECT.glob("recipes/*.json")), ids=lambda path: path.name)
def test_shipped_recipes_are_valid(recipe: Path) -> None:
    if recipe.name != "recipe.schema.json":
        assert load_recipe(recipe).job.name


def test_table_of_fields_is_up_to_date() -> None:
    assert (PROJECT / "docs" / "recipe-fields.md").read_text() == fields_markdown(), "run `make schema`"
