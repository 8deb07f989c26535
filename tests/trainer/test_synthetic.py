from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from torchvision import datasets

from trainer import synthetic
from trainer.errors import InputError
from trainer.synthetic import SyntheticSize, write_synthetic

SMALL = SyntheticSize(num_classes=10, train_per_class=6, test_per_class=2)


class TorchvisionReader(datasets.CIFAR100):  # type: ignore[misc] # torchvision has no types
    """torchvision's own reader, without the md5 sums of the real data set."""

    base_folder = synthetic.FOLDER
    train_list: ClassVar = [["train", None]]
    test_list: ClassVar = [["test", None]]
    meta: ClassVar = {"filename": "meta", "key": "fine_label_names", "md5": None}


def test_write_synthetic_is_read_by_torchvision(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path, SMALL)
    source = synthetic.load(tmp_path, image_size=None)
    for pictures, is_train in ((source.train, True), (source.load_test(), False)):
        read = TorchvisionReader(tmp_path, train=is_train)
        assert np.array_equal(read.data, pictures.images)
        assert read.targets == pictures.labels.tolist()
        assert tuple(read.classes) == source.classes
    assert {path.name for path in folder.iterdir()} == {"train", "test", "meta"}


def test_write_synthetic_again_leaves_it_as_it_is(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path, SMALL)
    before = (folder / "train").stat().st_mtime_ns
    assert write_synthetic(tmp_path) == folder
    assert (folder / "train").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == [synthetic.FOLDER]


def test_write_synthetic_same_size_gives_same_bytes(tmp_path: Path) -> None:
    first, again = (write_synthetic(tmp_path / name, SMALL) for name in "ab")
    assert (first / "train").read_bytes() == (again / "train").read_bytes()


def test_load_absent_writes_a_hundred_classes(tmp_path: Path) -> None:
    source = synthetic.load(tmp_path / "data", image_size=None)
    assert (len(source.classes), len(source.train), len(source.load_test())) == (100, 2000, 500)
    assert np.bincount(source.train.labels).tolist() == [20] * 100
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "data" / synthetic.FOLDER).iterdir()}
    assert modes == {0o600}


def test_load_code_in_the_pickle_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("executed",)

    folder = write_synthetic(tmp_path, SMALL)
    (folder / "train").write_bytes(pickle.dumps({"data": Payload()}))
    with pytest.raises(InputError, match="print has no place in a data set"):
        synthetic.load(tmp_path, image_size=None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", pickle.dumps([1]), pickle.dumps({"data": 1}), pickle.dumps({})])
def test_load_damaged_is_refused(tmp_path: Path, content: bytes) -> None:
    (write_synthetic(tmp_path, SMALL) / "train").write_bytes(content)
    with pytest.raises(InputError, match="train: "):
        synthetic.load(tmp_path, image_size=None)


def test_synthetic_trial_learns(tmp_path: Path, run_trial: Callable[..., Any]) -> None:
    write_synthetic(tmp_path / "data", SyntheticSize(num_classes=10, train_per_class=60, test_per_class=10))
    trial = run_trial(
        dataset="synthetic",
        data_dir=tmp_path / "data",
        hidden_size=32,
        num_layers=3,
        num_epochs=4,
        batch_size=32,
        learning_rate=0.01,
    )
    assert trial.exit_code == 0
    assert trial.results["val_accuracy"] > 0.7
