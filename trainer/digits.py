"""scikit-learn's 1,797 scanned digits: real pictures inside a package, for runs without any download."""

from __future__ import annotations

import numpy as np

from trainer.errors import InputError
from trainer.pictures import Pictures, PictureSource, split_stratified
from trainer.resize import resize_square

_TEST_FRACTION = 0.2
_BRIGHTEST = 16  # load_digits counts the ink of 4x4 pixels: 0..16


def load(seed: int, *, image_size: int | None) -> PictureSource:
    """Return the digits as colour pictures; a fifth of each class, chosen by ``seed``, is the test set.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise InputError("--dataset digits comes with scikit-learn, which is not installed here.") from error
    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / _BRIGHTEST)).astype(np.uint8)
    pictures = Pictures(resize_square(np.repeat(grey[..., None], 3, axis=3), image_size), bunch.target.astype(np.int64))
    # Its own stream: with the seed alone, validation would repeat the test set's choice.
    train, test = split_stratified(pictures.labels, _TEST_FRACTION, seed + 2**32)
    return PictureSource(tuple(str(digit) for digit in range(10)), pictures.take(train), lambda: pictures.take(test))
