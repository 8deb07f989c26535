"""What goes of the cache, and what stays."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.atomic import write_json
from orchestrator.models.lock import sole_maker
from orchestrator.space.caches import CachesHere, lock_path
from orchestrator.space.removal import doomed_name
from tests.orchestrator.space.conftest import COMPLETED, DAY_S, Runs

Orch = Callable[..., int]


@pytest.fixture
def cache(runs: Runs) -> Path:
    """Return the cache that the site file names."""
    folder = runs.folder / ".config" / "orch"
    folder.mkdir(parents=True)
    write_json(folder / "site.yaml", {"cache_dir": str(runs.folder / "cache")})
    (runs.folder / "cache" / "models").mkdir(parents=True)
    return runs.folder / "cache"


def add_model(cache: Path, name: str, days: float, shelf: str = "models") -> Path:
    """Put a model into the cache that was last used so many days ago."""
    model = cache / shelf / name
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"w" * 1000)
    at = time.time() - days * DAY_S
    for path in (model / "weights", model):
        os.utime(path, (at, at))
    return model


def test_models_and_containers_that_nobody_uses_go(runs: Runs, cache: Path, orch: Orch) -> None:
    add_model(cache, "old", 40)
    add_model(cache, "image", 40, "containers")
    add_model(cache, "young", 10)
    mine = add_model(cache, "mine", 40)
    runs.add("recent", *COMPLETED, days=10, service={"model": str(mine)})
    past = add_model(cache, "past", 40)
    runs.add("past", *COMPLETED, days=50, service={"model": str(past)})
    add_model(cache, "models--org--old", 40, "hub")
    add_model(cache, "models--org--mine", 40, "hub")
    add_model(cache, "blobs", 40, "hub")
    runs.add("hub", *COMPLETED, days=10, service={"model": "org/mine"})
    outside = add_model(cache, "x", 40, "elsewhere")
    (cache / "models" / "link").symlink_to(outside)
    assert orch("clean", "--caches", "--yes") == 0
    assert {path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")} == {
        "young", "mine", "link",
    }  # fmt: skip
    assert not (cache / "containers" / "image").exists()
    assert sorted(path.name for path in (cache / "hub").iterdir() if path.is_dir()) == ["blobs", "models--org--mine"]
    assert (outside / "weights").is_file()
    # Runs are no caches.
    assert runs.names == {"recent", "past", "hub"}


def test_model_that_was_read_lately_stays(runs: Runs, cache: Path, orch: Orch) -> None:
    model = add_model(cache, "shared", 400)
    old = time.time() - 400 * DAY_S
    os.utime(model / "weights", (time.time() - DAY_S, old))
    assert orch("clean", "--caches", "--yes") == 0
    assert model.is_dir()
    os.utime(model / "weights", (old, old))
    assert orch("clean", "--caches", "--yes") == 0
    assert not model.exists()


def test_nothing_goes_while_a_converter_is_at_work(
    runs: Runs, cache: Path, orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = add_model(cache, "llm", 400)
    partial = add_model(cache, ".llm.partial", 0)
    with sole_maker(model, print):
        assert orch("clean", "--caches", "--yes", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert {item["why_left"] for item in told["left"]} == {"a converter is at work on it"}
        # One that begins after the look is seen as well.
        cleaner = CachesHere(cache, runs.output, 30 * DAY_S)
        for item in cleaner.look():
            assert "converter" in cleaner.delete(item)
    assert model.is_dir()
    assert orch("clean", "--caches", "--yes") == 0
    assert not model.exists()
    assert not partial.exists()


def test_lock_is_the_converters(tmp_path: Path) -> None:
    with sole_maker(tmp_path / "llm", print) as lock:
        for name in ("llm", ".llm.partial", doomed_name("llm")):
            assert lock_path(tmp_path / name) == Path(lock.name)


def test_half_deleted_model_goes(runs: Runs, cache: Path, orch: Orch) -> None:
    half = add_model(cache, doomed_name("llm"), 0)
    assert orch("clean", "--caches", "--yes") == 0
    assert not half.exists()


def test_model_of_another_user_stays(runs: Runs, cache: Path, orch: Orch) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder away")
    model = add_model(cache, "theirs", 400)
    os.chown(model, 65534, 65534)
    assert orch("clean", "--caches", "--yes") == 0
    assert model.is_dir()
