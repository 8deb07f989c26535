"""The definitions: each pinned, from a registry that a site can replace, with the project's own versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from agent.stage import PACKAGES as TRAINER_PACKAGES
from orchestrator.containers.definition import Definition, catalogue
from orchestrator.recipe.container import ImageName
from services.client import PACKAGES as CLIENT_PACKAGES
from tests.orchestrator.containers.conftest import PROJECT

DEFINITIONS = list(catalogue().values())


def test_every_image_that_a_recipe_can_name_has_a_definition() -> None:
    assert set(get_args(ImageName)) | {"grafana", "dcgm_exporter"} == set(catalogue())


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.name)
def test_definition_is_pinned_and_its_registry_can_be_replaced(definition: Definition) -> None:
    assert re.search(r":.*\d", definition.base)
    text = definition.path.read_text()
    arguments = set(re.findall(r"\{\{ (\w+) \}\}", text))
    defaults = set(re.findall(r"^    (\w+)=", text, re.MULTILINE))
    assert arguments == defaults >= {"BOOTSTRAP", "REGISTRY"}
    assert definition.registry in {"docker.io", "nvcr.io"}


@pytest.mark.parametrize(("name", "needed"), [("client", CLIENT_PACKAGES), ("trainer", TRAINER_PACKAGES)])
def test_built_image_has_the_project_s_own_versions(name: str, needed: tuple[str, ...]) -> None:
    text = catalogue()[name].path.read_text()
    pins = dict(re.findall(r"([\w-]+)==([\w.]+)", text))
    assert {package.replace("_", "-") for package in needed} <= set(pins)
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    own = dict(requirement.split("==") for requirement in project if "==" in requirement)
    assert {package: own.get(package, version) for package, version in pins.items()} == pins
    tested = text.partition("%test")[2]
    assert all(re.search(rf"\b{package}\b", tested) for package in needed)


@pytest.mark.parametrize("text", ["Bootstrap: docker\nFrom: python:3\n", "From: {{ REGISTRY }}/a/b:1\n"])
def test_definition_without_a_pin_or_a_registry_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.def").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.def"):
        catalogue(tmp_path)
