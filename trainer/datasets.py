"""The data sets by name: where each must lie, and how it is read. Never one in place of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trainer import cifar, digits, folder, synthetic
from trainer.errors import InputError
from trainer.options import MINIMUM_IMAGE_SIZE

if TYPE_CHECKING:
    from trainer.pictures import PictureSource
    from trainer.settings import Settings


def find_location_problem(dataset: str, data_dir: Path, download: bool) -> str | None:
    """Return why ``dataset`` cannot be read from ``data_dir``, or None; looks at names only."""
    try:
        if dataset in cifar.ARCHIVES:
            return cifar.find_location_problem(cifar.ARCHIVES[dataset], data_dir, download)
        if dataset == "folder":
            return folder.find_location_problem(data_dir)
    except OSError as error:
        return f"--data_dir: {error.filename}: {error.strerror}."
    return None


def load_source(settings: Settings) -> PictureSource:
    """Return the data set that ``settings`` asks for, its test pictures not yet read.

    Raises:
        InputError: the data set is absent, damaged, or does not fit the settings.
    """
    source = _read_source(settings)
    size = source.train.images.shape[1]
    minimum = MINIMUM_IMAGE_SIZE[settings.model_type]
    if size < minimum:
        raise InputError(
            f"--model_type {settings.model_type} needs pictures of {minimum} pixels a side; these have "
            f"{size}. "
            f"Pass --image_size {minimum}."
        )
    return source


def _read_source(settings: Settings) -> PictureSource:
    size = settings.image_size
    if settings.dataset in cifar.ARCHIVES:
        archive = cifar.ARCHIVES[settings.dataset]
        return cifar.load(archive, settings.data_dir, download=settings.download, image_size=size)
    if settings.dataset == "folder":
        return folder.load(settings.data_dir, image_size=size)
    if settings.dataset == "digits":
        return digits.load(settings.seed, image_size=size)
    return synthetic.load(settings.data_dir, image_size=size)
