"""Labelled pictures in memory, where a data set's come from, and the validation split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Pictures:
    """``images`` as uint8 [N, height, width, 3], ``labels`` as int64 [N] indexing the source's classes."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: NDArray[np.int64]) -> Pictures:
        """Return copies of the pictures at ``index``, in that order."""
        return Pictures(self.images[index], self.labels[index])


@dataclass(frozen=True)
class PictureSource:
    """A data set: its classes in label order, its training pictures, and how to read its test pictures.

    ``load_test`` is called for ``--evaluate_test`` only, so that nothing about the test set can leak into a
    search.
    """

    classes: tuple[str, ...]
    train: Pictures
    load_test: Callable[[], Pictures]


def split_stratified(
    labels: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted indices (kept, held out), with ``fraction`` of every class held out.

    The same labels, fraction and seed give the same split on every machine. A class of two or more gives at
    least one and keeps at least one; a class of one is kept.
    """
    generator = np.random.default_rng(seed)
    held_out = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held_out.append(members[:count])
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.concatenate(held_out)] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def split_validation(pictures: Pictures, fraction: float, seed: int) -> tuple[Pictures, Pictures]:
    """Return (training, validation) pictures, both taken from ``pictures``.

    Raises:
        InputError: no class has a second picture to hold out.
    """
    kept, held_out = split_stratified(pictures.labels, fraction, seed)
    if len(held_out) == 0:
        raise InputError("the training set has one picture per class: nothing can be held out for validation.")
    return pictures.take(kept), pictures.take(held_out)
