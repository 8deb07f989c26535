from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer.datasets import find_location_problem, load_source
from trainer.errors import InputError
from trainer.settings import Settings


@pytest.mark.parametrize("dataset", ["cifar100", "cifar10", "folder"])
def test_find_location_problem_absent_is_reported(tmp_path: Path, dataset: str) -> None:
    assert str(tmp_path / "nowhere") in (find_location_problem(dataset, tmp_path / "nowhere", False) or "")


@pytest.mark.parametrize("dataset", ["digits", "synthetic"])
def test_find_location_problem_nothing_needed_is_none(tmp_path: Path, dataset: str) -> None:
    assert find_location_problem(dataset, tmp_path / "nowhere", False) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every directory")
def test_find_location_problem_forbidden_is_reported(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    problem = find_location_problem("folder", tmp_path / "locked" / "data", False) or ""
    assert "Permission denied" in problem


@pytest.mark.parametrize(("dataset", "num_classes"), [("digits", 10), ("synthetic", 100)])
def test_load_source_reads_the_named_data_set(
    tmp_path: Path, make_settings: Callable[..., Settings], dataset: str, num_classes: int
) -> None:
    source = load_source(make_settings(dataset=dataset, data_dir=tmp_path, image_size=16))
    assert len(source.classes) == num_classes
    assert source.train.images.shape[1:] == (16, 16, 3)


def test_load_source_too_small_for_the_model_is_refused(tmp_path: Path, make_settings: Callable[..., Settings]) -> None:
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "train" / name / "0.png")
    settings = make_settings(dataset="folder", data_dir=tmp_path, model_type="vgg16")
    with pytest.raises(InputError, match="Pass --image_size 32"):
        load_source(settings)
