from __future__ import annotations

import numpy as np

from trainer import digits


def test_load_gives_all_digits_once() -> None:
    source = digits.load(0, image_size=None)
    test = source.load_test()
    assert source.classes == tuple("0123456789")
    assert len(source.train) + len(test) == 1797
    assert source.train.images.shape[1:] == (8, 8, 3)
    assert source.train.images.max() == 255
    assert np.bincount(test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]


def test_load_image_size_enlarges() -> None:
    assert digits.load(0, image_size=16).train.images.shape[1:] == (16, 16, 3)


def test_load_seed_decides_the_test_set() -> None:
    first, again, other = (digits.load(seed, image_size=None).load_test().images for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:30], other[:30])
