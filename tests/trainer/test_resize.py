from __future__ import annotations

import numpy as np

from trainer.resize import resize_square


def test_resize_square_same_size_gives_the_pictures_themselves() -> None:
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    assert resize_square(images, None) is images
    assert resize_square(images, 8) is images


def test_resize_square_smaller_averages() -> None:
    images = np.zeros((1, 16, 16, 3), dtype=np.uint8)
    images[0, :, 8:] = 200
    small = resize_square(images, 8)
    assert small.shape == (1, 8, 8, 3)
    assert small.dtype == np.uint8
    assert small[0, 0, 0].tolist() == [0, 0, 0]
    assert small[0, 0, 7].tolist() == [200, 200, 200]
