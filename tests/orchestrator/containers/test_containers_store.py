"""What lies in a store is told, and damage to it is found."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from orchestrator.containers.definition import definition_of
from orchestrator.containers.sif import ImageError, check_sif
from tests.orchestrator.containers.conftest import FakeApptainer, sif_bytes

FOLDER = definition_of("prometheus").folder


@pytest.fixture
def stored(fake: FakeApptainer) -> Path:
    """The image file of a store with one image."""
    assert fake.run("pull", "prometheus")[0] == 0
    return fake.store / FOLDER / "image.sif"


def rows(fake: FakeApptainer) -> dict[str, dict[str, object]]:
    return {f"{row['name']}-{row['version']}": row for row in json.loads(fake.run("list", "--json")[1])}


def test_list_shows_what_is_there_and_what_is_missing(fake: FakeApptainer, stored: Path) -> None:
    older = fake.store / "prometheus-v2.1.0"
    older.mkdir()
    (older / "image.sif").write_bytes(sif_bytes())
    found = rows(fake)
    here = found[FOLDER]
    assert (here["state"], here["size"], here["image"]) == ("there", 4096, str(stored))
    assert abs(float(str(here["verified_at"])) - time.time()) < 60
    assert found["grafana-11.6.0"]["state"] == "missing"
    assert found["prometheus-v2.1.0-?"]["state"] == "manifest.json is missing or damaged"
    code, out, _ = fake.run("list")
    assert code == 0
    assert any(line.split()[:5] == ["prometheus", "v2.55.1", "there", "4.0", "KiB"] for line in out.splitlines())


def test_verify_writes_down_when_it_found_an_image_whole(fake: FakeApptainer, stored: Path) -> None:
    manifest = stored.with_name("manifest.json")
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "verified_at": 1.0}))
    assert fake.run("verify")[:2] == (0, f"{FOLDER}: whole\n")
    assert json.loads(manifest.read_text())["verified_at"] > document["made_at"]


def test_verify_finds_a_single_changed_byte(fake: FakeApptainer, stored: Path) -> None:
    content = bytearray(stored.read_bytes())
    content[3000] ^= 1
    stored.write_bytes(content)
    assert rows(fake)[FOLDER]["state"] == "there"
    code, out, _ = fake.run("verify", "prometheus")
    assert (code, out.splitlines()[0]) == (1, f"{FOLDER}: the checksum of image.sif is wrong")
    assert "--force" in out
    code, out, _ = fake.run("verify", "--json")
    assert (code, json.loads(out)[0]["fault"]) == (1, "the checksum of image.sif is wrong")
    assert fake.run("pull", "--force", "prometheus")[0] == 0
    assert fake.run("verify")[0] == 0


def test_cut_and_missing_images_are_told_apart(fake: FakeApptainer, stored: Path) -> None:
    os.truncate(stored, 2000)
    assert fake.run("verify")[1].startswith(f"{FOLDER}: {stored} is cut short: 2000 of 4096 bytes\n")
    stored.unlink()
    assert fake.run("verify", "prometheus")[1].startswith(f"{FOLDER}: image.sif: No such file or directory\n")


def test_header_of_other_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    for content in (b"", b"SIF_MAGIC", os.urandom(4096)):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="no SIF image"):
            check_sif(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pull"], "which?"),
        (["pull", "nosuch"], "'nosuch' is no image of containers/"),
        (["pull", "client"], "Use `orch.py containers build`"),
        (["build", "vllm"], "Use `orch.py containers pull`"),
        (["pull", "prometheus", "--registry=a b"], "registry"),
    ],
)
def test_wrong_input_is_told_before_anything_is_made(fake: FakeApptainer, words: list[str], said: str) -> None:
    code, _, err = fake.run(*words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert fake.makings == []
