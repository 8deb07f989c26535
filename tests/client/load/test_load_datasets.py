"""Data sets in files, folders, the hub and its cache."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.errors import WorkloadError
from client.load.datasets import DataReference, choose_split, find_files, parse_reference
from client.load.prompt_files import read_samples
from tests.standin.hub import COMMIT, FakeHub, serving

FILES = {
    "README.md": b"---\n---\n",
    "dataset_infos.json": b"{}",
    "data/train-00000-of-00002.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "data/train-00001-of-00002.jsonl": b'{"text": "three"}\n',
    "data/test-00000-of-00001.jsonl": b'{"text": "four", "other": "vier"}\n',
}
NAME = "AIEnergyScore/text_generation"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that is asked in place of the real one."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub comes with the engine, not with the client")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeHub(NAME, dict(FILES))) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def prompts(reference: str, cache: Path) -> list[str]:
    asked = parse_reference(reference)
    return [sample.messages[0][1] for sample in read_samples(find_files(asked, cache).paths, asked.column)]


def test_reference_to_the_hub() -> None:
    assert parse_reference("hf:o/n") == DataReference("o/n")
    assert parse_reference("hf:o/n@v1.0:test") == DataReference("o/n", "v1.0", None, "test")
    assert parse_reference("hf:o/n::question") == DataReference("o/n", "main", None, None, "question")
    assert parse_reference("hf:o/n:en/test:question") == DataReference("o/n", "main", None, "en/test", "question")


def test_reference_to_a_path_that_may_have_colons(tmp_path: Path) -> None:
    path = tmp_path / "a:b.jsonl"
    path.touch()
    assert parse_reference(str(path)) == DataReference(path=path)
    assert parse_reference(f"{path}::text") == DataReference(path=path, column="text")
    assert parse_reference(f"{tmp_path}:test:text") == DataReference(path=tmp_path, split="test", column="text")


@pytest.mark.parametrize(
    "text", ["hf:", "hf:name", "hf:o/n:a:b:c", "hf:o/..", "hf:../../etc", "hf:o/n@", "hf:o/n@/etc", "hf:o/n/m"]
)
def test_reference_that_names_nothing_on_the_hub_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match=re.escape("Allowed: hf:OWNER/NAME[@REVISION]")):
        parse_reference(text)


@pytest.mark.parametrize("text", ["/no/such/file", "/no/such:train:text", ":train"])
def test_reference_to_no_path_is_refused(text: str) -> None:
    with pytest.raises(WorkloadError, match="no such file or folder"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["data/train-1.jsonl", "data/test-1.jsonl"], None, ["data/train-1.jsonl"]),
        (["train/b.csv", "train/a.csv", "test/a.csv"], "train", ["train/a.csv", "train/b.csv"]),
        (["b.json", "a.json"], None, ["a.json", "b.json"]),
        (["constrained.json", "trained.json"], None, ["constrained.json", "trained.json"]),
        (["en/train.json", "fr/train.json"], "fr/train", ["fr/train.json"]),
        (["validation.parquet", ".cache/validation.parquet"], "validation", ["validation.parquet"]),
    ],
)
def test_split_is_a_word_of_the_path(names: list[str], split: str | None, expected: list[str]) -> None:
    assert choose_split(names, split, "set") == expected


@pytest.mark.parametrize(
    ("names", "split", "words"),
    [
        (["test.json"], None, "set: has no files of the split 'train'; its data files are test.json"),
        (["README.md"], None, "its data files are none"),
        (["a.json"], "test", "has no files of the split 'test'"),
        (["en/train.json", "fr/train.json"], None, "is in several folders: en, fr.\nName one of them: FOLDER/train"),
        (["train-00000-of-00003.json", "train-00002-of-00003.json"], None, "only 2 of the 3 files of train are there"),
    ],
)
def test_split_that_is_not_there_or_not_whole_is_refused(names: list[str], split: str | None, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        choose_split(names, split, "set")


def test_local_folder_is_read_like_a_data_set(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert prompts(str(tmp_path), tmp_path) == ["one", "two", "three"]
    assert prompts(f"{tmp_path}:test:other", tmp_path) == ["vier"]
    with pytest.raises(WorkloadError, match="is one file, which has no splits"):
        prompts(f"{tmp_path / 'data/test-00000-of-00001.jsonl'}:test", tmp_path)


def test_data_set_is_downloaded_once_and_then_read_without_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prompts(f"hf:{NAME}", tmp_path) == ["one", "two", "three"]
    fetched = [path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path]
    assert set(fetched) == {"train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"}
    hub.asked.clear()
    assert prompts(f"hf:{NAME}", tmp_path) == ["one", "two", "three"]
    assert hub.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as on a node that has not got it
    assert prompts(f"hf:{NAME}@{COMMIT}:train:text", tmp_path) == ["one", "two", "three"]
    assert find_files(parse_reference(f"hf:{NAME}"), tmp_path).origin == f"{NAME} at {COMMIT}"
    assert hub.asked == []


def test_other_split_of_a_cached_data_set_is_downloaded_too(hub: FakeHub, tmp_path: Path) -> None:
    assert prompts(f"hf:{NAME}:test", tmp_path) == ["four"]
    assert prompts(f"hf:{NAME}:train", tmp_path) == ["one", "two", "three"]


def test_what_is_not_cached_is_an_error_where_the_hub_is_switched_off(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prompts(f"hf:{NAME}:test", tmp_path) == ["four"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    with pytest.raises(WorkloadError, match=r"'train', revision 'main'\) is not in .*, and HF_HUB_OFFLINE is set"):
        prompts(f"hf:{NAME}", tmp_path)
    assert hub.asked == []


def test_download_that_was_cut_is_not_taken_for_the_whole(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without numbers in the names the files do not tell that one is missing.
    hub.files = {"train/a.jsonl": b'{"text": "one"}\n', "train/b.jsonl": b'{"text": "two"}\n'}
    hub.broken = "train/b.jsonl"
    with pytest.raises(WorkloadError, match=r"for you \(HTTP 403\)"):
        prompts(f"hf:{NAME}", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WorkloadError, match="HF_HUB_OFFLINE is set"):
        prompts(f"hf:{NAME}", tmp_path)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.broken = None
    assert prompts(f"hf:{NAME}", tmp_path) == ["one", "two"]


def test_data_set_that_the_hub_has_not_is_named(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"has no data set 'nobody/nothing' .* \(HTTP 404\)"):
        prompts("hf:nobody/nothing", tmp_path)


def test_hub_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub comes with the engine, not with the client")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WorkloadError, match=r"could not be downloaded from http://127\.0\.0\.1:9 .*\n.*give a file"):
        prompts(f"hf:{NAME}", tmp_path)


def test_cache_that_others_filled_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = tmp_path / f"datasets--{NAME.replace('/', '--')}"
    (own / "blobs").mkdir(parents=True)
    (own / "refs").mkdir()
    (own / "refs" / "main").write_text(COMMIT)
    (own / "snapshots" / COMMIT).mkdir(parents=True)
    (own / "blobs" / "b1").write_text(json.dumps({"prompt": "hello"}))
    (own / "snapshots" / COMMIT / "train.jsonl").symlink_to(Path("../../blobs/b1"))
    assert prompts(f"hf:{NAME}", tmp_path) == ["hello"]
    (own / "blobs" / "b1").unlink()
    with pytest.raises(WorkloadError, match="HF_HUB_OFFLINE is set"):
        prompts(f"hf:{NAME}", tmp_path)
