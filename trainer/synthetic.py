"""A small, learnable data set in the on-disk format of CIFAR-100, in a folder of its own name.

The format is that of https://www.cs.toronto.edu/~kriz/cifar.html: pickles ``train``, ``test`` and ``meta``.
It stands in for CIFAR-100 in tests of the machinery; nothing ever reads it under CIFAR's name.
"""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.errors import InputError
from trainer.layout import replace_atomically
from trainer.pictures import Pictures, PictureSource
from trainer.resize import resize_square

FOLDER = "synthetic-cifar-100-python"
_SIDE = 32
_SUPERCLASS_SIZE = 5  # as in CIFAR-100: 100 classes, 20 superclasses
_PICKLE_PROTOCOL = 2  # CIFAR's own


@dataclass(frozen=True)
class SyntheticSize:
    """How much to write; the default has CIFAR-100's 100 classes with 20 and 5 pictures each."""

    num_classes: int = 100
    train_per_class: int = 20
    test_per_class: int = 5
    seed: int = 0


def write_synthetic(data_dir: Path, size: SyntheticSize | None = None) -> Path:
    """Write the data set under ``data_dir`` and return its folder; one that is there already is kept.

    Every class is a smooth coloured pattern; a picture is the pattern of its class, shifted, at another
    contrast and under noise.

    Raises:
        OSError: the folder cannot be written.
    """
    wanted = size or SyntheticSize()
    destination = data_dir / FOLDER
    if destination.is_dir():
        return destination
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    generator = np.random.default_rng(wanted.seed)
    patterns = _draw_patterns(wanted.num_classes, generator)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=data_dir) as temporary:
        unfinished = Path(temporary) / FOLDER
        unfinished.mkdir(mode=0o700)
        for split, count in (("train", wanted.train_per_class), ("test", wanted.test_per_class)):
            _write_pickle(unfinished / split, _draw_split(patterns, split, count, generator))
        _write_pickle(unfinished / "meta", _describe_classes(wanted.num_classes))
        try:
            unfinished.rename(destination)
        except OSError:
            if not destination.is_dir():  # otherwise another trial was faster
                raise
    return destination


def load(data_dir: Path, *, image_size: int | None) -> PictureSource:
    """Return the synthetic pictures under ``data_dir``, written first when they are not there.

    Raises:
        InputError: they cannot be written, or what is there is not such a data set.
    """
    try:
        folder = write_synthetic(data_dir)
    except OSError as error:
        raise InputError(f"--data_dir {data_dir}: cannot be written: {error}.") from error
    names = _read_pickle(folder / "meta").get("fine_label_names", ())
    train = _read_split(folder, "train", image_size)
    return PictureSource(tuple(names), train, partial(_read_split, folder, "test", image_size))


def _draw_patterns(count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return ``count`` smooth patterns, [count, 32, 32, 3] around 0 with a spread of 1."""
    coarse = generator.standard_normal((count, 4, 4, 3))
    along = np.linspace(0, 2 * np.pi, _SIDE, endpoint=False)
    waves = np.stack([np.sin(along), np.cos(along), np.sin(2 * along), np.cos(2 * along)], axis=1)
    patterns = np.einsum("yi,xj,nijc->nyxc", waves, waves, coarse)
    return np.asarray(patterns / patterns.std(axis=(1, 2, 3), keepdims=True))


def _draw_split(
    patterns: NDArray[np.float64], split: str, per_class: int, generator: np.random.Generator
) -> dict[str, Any]:
    labels = generator.permutation(np.repeat(np.arange(len(patterns)), per_class))
    contrast = generator.uniform(25, 55, size=(len(labels), 1, 1, 1))
    shifts = generator.integers(-3, 4, size=(len(labels), 2))
    pictures = np.stack(
        [np.roll(patterns[label], tuple(shift), axis=(0, 1)) for label, shift in zip(labels, shifts, strict=True)]
    )
    pictures = 128 + contrast * pictures + generator.normal(0, 25, size=pictures.shape)
    rows = np.clip(pictures, 0, 255).astype(np.uint8).transpose(0, 3, 1, 2).reshape(len(labels), -1)
    return {
        "filenames": [f"{split}_{index:06d}.png" for index in range(len(labels))],
        "batch_label": f"synthetic {split}",
        "fine_labels": [int(label) for label in labels],
        "coarse_labels": [int(label) // _SUPERCLASS_SIZE for label in labels],
        "data": rows,
    }


def _describe_classes(count: int) -> dict[str, Any]:
    superclasses = -(-count // _SUPERCLASS_SIZE)
    return {
        "fine_label_names": [f"pattern_{index:03d}" for index in range(count)],
        "coarse_label_names": [f"patterns_{index:02d}" for index in range(superclasses)],
    }


def _write_pickle(path: Path, content: dict[str, Any]) -> None:
    with replace_atomically(path) as stream:
        pickle.dump(content, stream, protocol=_PICKLE_PROTOCOL)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles what NumPy arrays need and nothing else: a data folder may be writable for others."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a data set")
        return super().find_class(module, name)


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            content = _ArrayUnpickler(stream).load()
    except (OSError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a readable part of the synthetic data set: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dictionary.")
    return content


def _read_split(folder: Path, split: str, image_size: int | None) -> Pictures:
    content = _read_pickle(folder / split)
    try:
        rows, labels = content["data"], np.asarray(content["fine_labels"], dtype=np.int64)
        images = np.ascontiguousarray(rows.reshape(len(labels), 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))
    except (KeyError, AttributeError, ValueError) as error:
        raise InputError(f"{folder / split}: not in CIFAR-100's layout: {error!r}.") from error
    return Pictures(resize_square(images, image_size), labels)
