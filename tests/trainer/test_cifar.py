from __future__ import annotations

import hashlib
import shutil
import socket
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from torchvision import datasets

from trainer import cifar
from trainer.cifar import ARCHIVES, CifarArchive
from trainer.errors import InputError
from trainer.synthetic import SyntheticSize, write_synthetic


class SmallCifar(datasets.CIFAR100):  # type: ignore[misc] # torchvision has no types
    """Stands in for torchvision's class, with files that a test can make."""

    base_folder = "small-cifar"
    train_list: ClassVar = [["train", None]]
    test_list: ClassVar = [["test", None]]
    meta: ClassVar = {"filename": "meta", "key": "fine_label_names", "md5": None}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CifarArchive:
    """A small archive in CIFAR's layout, packed as tmp_path/data/small.tar.gz."""
    monkeypatch.setattr(datasets, "SmallCifar", SmallCifar, raising=False)
    written = write_synthetic(tmp_path, SyntheticSize(num_classes=5, train_per_class=4, test_per_class=2))
    packed = tmp_path / "data" / "small.tar.gz"
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(written, "small-cifar")
    md5 = hashlib.md5(packed.read_bytes(), usedforsecurity=False).hexdigest()
    return CifarArchive("SmallCifar", "small.tar.gz", md5, "small-cifar")


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_torchvisions(name: str) -> None:
    archive = ARCHIVES[name]
    known = getattr(datasets, archive.torchvision_class)
    assert (archive.filename, archive.md5, archive.folder) == (known.filename, known.tgz_md5, known.base_folder)


def test_find_location_problem_absent_archive_says_how_to_place_it(tmp_path: Path) -> None:
    problem = cifar.find_location_problem(ARCHIVES["cifar100"], tmp_path, download=False) or ""
    for part in (str(tmp_path), "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "--download"):
        assert part in problem
    assert cifar.find_location_problem(ARCHIVES["cifar100"], tmp_path, download=True) is None


def test_load_packed_archive_is_unpacked_and_read(tmp_path: Path, archive: CifarArchive) -> None:
    data_dir = tmp_path / "data"
    assert cifar.find_location_problem(archive, data_dir, download=False) is None
    source = cifar.load(archive, data_dir, download=False, image_size=None)
    assert source.train.images.shape == (20, 32, 32, 3)
    assert np.bincount(source.train.labels).tolist() == [4] * 5
    assert len(source.classes) == 5
    assert len(source.load_test()) == 10
    assert {path.name for path in data_dir.iterdir()} == {"small.tar.gz", "small-cifar"}


def test_load_unpacked_folder_itself_may_be_named(tmp_path: Path, archive: CifarArchive) -> None:
    cifar.load(archive, tmp_path / "data", download=False, image_size=None)
    (tmp_path / "data" / "small.tar.gz").unlink()
    source = cifar.load(archive, tmp_path / "data" / "small-cifar", download=False, image_size=16)
    assert source.train.images.shape == (20, 16, 16, 3)


def test_load_wrong_md5_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "cifar-100-python.tar.gz"
    packed.write_bytes(b"half an archive")
    with pytest.raises(InputError, match="not eb9058c3a382ffc7106e4002c42a8d85") as caught:
        cifar.load(ARCHIVES["cifar100"], tmp_path, download=False, image_size=None)
    assert str(packed) in str(caught.value)


def test_load_damaged_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test", "meta"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match="torchvision's md5 sums"):
        cifar.load(ARCHIVES["cifar100"], tmp_path, download=False, image_size=None)


def test_load_synthetic_in_cifars_place_is_refused(tmp_path: Path) -> None:
    shutil.move(write_synthetic(tmp_path), tmp_path / "cifar-100-python")
    with pytest.raises(InputError, match="torchvision's md5 sums"):
        cifar.load(ARCHIVES["cifar100"], tmp_path, download=False, image_size=None)


def test_load_download_offline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/cifar-100-python.tar.gz"
        monkeypatch.setattr(datasets.CIFAR100, "url", url)
        with pytest.raises(InputError, match="could not be downloaded") as caught:
            cifar.load(ARCHIVES["cifar100"], tmp_path / "data", download=True, image_size=None)
    assert "eb9058c3a382ffc7106e4002c42a8d85" in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []
