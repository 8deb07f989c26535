"""Pictures in folders: DATA/train/CLASS/*.jpg and DATA/test/CLASS/*.jpg (also .jpeg, .png)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.devices import count_usable_cores
from trainer.errors import InputError
from trainer.pictures import Pictures, PictureSource

_SUFFIXES = {".jpg", ".jpeg", ".png"}
_LARGEST_DEFAULT_SIZE = 32
_NAMED_AT_MOST = 10

_log = logging.getLogger(__name__)


def find_location_problem(data_dir: Path) -> str | None:
    """Return why ``data_dir`` is no such data set, or None; looks at names only, opens no picture.

    Raises:
        OSError: a folder may not be listed.
    """
    expected = f"Expected: {data_dir}/train/CLASS/*.jpg (or .jpeg, .png), and the same classes under test/."
    for folder in (data_dir, data_dir / "train"):
        if not folder.is_dir():
            return f"--data_dir: {folder} is not a directory. {expected}"
    classes = _list_classes(data_dir / "train")
    if len(classes) < 2:
        return f"--data_dir: {data_dir / 'train'} has {len(classes)} class folders; two at least. {expected}"
    if not (data_dir / "test").is_dir():
        return None
    test_classes = _list_classes(data_dir / "test")
    if test_classes != classes:
        only_train = sorted(set(classes) - set(test_classes))
        only_test = sorted(set(test_classes) - set(classes))
        return (
            f"--data_dir: the classes of {data_dir}/train and {data_dir}/test differ: "
            f"only in train: {_enumerate(only_train)}; only in test: {_enumerate(only_test)}."
        )
    return None


def load(data_dir: Path, *, image_size: int | None) -> PictureSource:
    """Return the pictures of ``data_dir``, decoded once, cut to squares of ``image_size`` pixels a side.

    ``None`` takes the shorter side of the first picture, 32 at most. Classes are in alphabetical order.

    Raises:
        InputError: folders are missing or empty, classes differ, or pictures cannot be read (they are named).
    """
    problem = find_location_problem(data_dir)
    if problem:
        raise InputError(problem)
    classes = _list_classes(data_dir / "train")
    files, labels = _list_pictures(data_dir / "train", classes)
    size = image_size or min(_measure_shorter_side(files[0]), _LARGEST_DEFAULT_SIZE)
    _log.info("decoding %d pictures of %d classes at %dx%d", len(files), len(classes), size, size)
    train = Pictures(_decode_all(files, size), labels)
    return PictureSource(tuple(classes), train, partial(_load_test, data_dir, classes, size))


def _load_test(data_dir: Path, classes: Sequence[str], size: int) -> Pictures:
    if not (data_dir / "test").is_dir():
        raise InputError(f"--evaluate_test: {data_dir / 'test'} is not a directory.")
    files, labels = _list_pictures(data_dir / "test", classes)
    return Pictures(_decode_all(files, size), labels)


def _list_classes(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_pictures(folder: Path, classes: Sequence[str]) -> tuple[list[Path], NDArray[np.int64]]:
    files: list[Path] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in _SUFFIXES)
        if not found:
            empty.append(name)
        files += found
        labels += [label] * len(found)
    if empty:
        raise InputError(f"{folder}: no .jpg, .jpeg or .png in the class folders {_enumerate(empty)}.")
    return files, np.asarray(labels, dtype=np.int64)


def _measure_shorter_side(path: Path) -> int:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return min(picture.size)
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"1 picture cannot be read:\n  {path}: {error}") from error


def _decode_all(files: Sequence[Path], size: int) -> NDArray[np.uint8]:
    try:
        images = np.empty((len(files), size, size, 3), dtype=np.uint8)
    except MemoryError as error:
        needed_gib = len(files) * size * size * 3 / 2**30
        raise InputError(
            f"{len(files)} pictures at {size}x{size} need {needed_gib:.1f} GiB of memory: lower --image_size."
        ) from error

    def decode_into(index: int) -> str | None:
        try:
            images[index] = _decode(files[index], size)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
            return f"{files[index]}: {error}"
        return None

    with ThreadPoolExecutor(max_workers=count_usable_cores()) as pool:  # Pillow decodes without the GIL
        bad = [message for message in pool.map(decode_into, range(len(files)), chunksize=64) if message]
    if bad:
        more = f"\n  and {len(bad) - _NAMED_AT_MOST} more" if len(bad) > _NAMED_AT_MOST else ""
        shown = "\n  ".join(bad[:_NAMED_AT_MOST])
        raise InputError(f"{len(bad)} pictures cannot be read; repair or remove them:\n  {shown}{more}")
    return images


def _decode(path: Path, size: int) -> NDArray[np.uint8]:
    """Return one picture as uint8 [size, size, 3], cut to a square around its middle.

    Raises:
        OSError, SyntaxError, ValueError: the file is not a whole picture that Pillow can read.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (size, size))  # JPEG: decode at the next larger eighth
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    if upright.size != (size, size):
        upright = ImageOps.fit(upright, (size, size), method=Image.Resampling.BILINEAR)
    return np.asarray(upright)


def _enumerate(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_NAMED_AT_MOST]) or "none"
    return f"{shown}, …" if len(names) > _NAMED_AT_MOST else shown
