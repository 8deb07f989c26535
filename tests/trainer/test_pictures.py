from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import InputError
from trainer.pictures import Pictures, split_stratified, split_validation


@settings(deadline=None)  # a busy machine is no failure
@given(
    counts=st.lists(st.integers(2, 40), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**31 - 1),
)
def test_split_stratified_any_labels_parts_every_class(counts: list[int], fraction: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    kept, held_out = split_stratified(labels, fraction, seed)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        held = int((labels[held_out] == label).sum())
        assert 1 <= held < count
        assert abs(held - count * fraction) <= 1


def test_split_stratified_same_seed_gives_same_split() -> None:
    labels = np.arange(200) % 10
    first, again, other = (split_stratified(labels, 0.1, seed)[1] for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


def test_split_validation_keeps_pictures_with_their_labels(random_pictures: Callable[..., Pictures]) -> None:
    pictures = random_pictures(40)
    train, val = split_validation(pictures, 0.25, 0)
    labels = {image.tobytes(): label for image, label in zip(pictures.images, pictures.labels, strict=True)}
    assert (len(train), len(val)) == (32, 8)
    for part in (train, val):
        assert [labels[image.tobytes()] for image in part.images] == part.labels.tolist()


def test_split_validation_one_picture_per_class_is_refused(random_pictures: Callable[..., Pictures]) -> None:
    with pytest.raises(InputError, match="one picture per class"):
        split_validation(random_pictures(4), 0.25, 0)
