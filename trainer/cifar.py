"""CIFAR-10 and CIFAR-100 through torchvision, which checks their files; downloaded only when asked to."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np

from trainer.errors import InputError
from trainer.layout import replace_atomically
from trainer.pictures import Pictures, PictureSource
from trainer.resize import resize_square


@dataclass(frozen=True)
class CifarArchive:
    """One of the archives of https://www.cs.toronto.edu/~kriz/cifar.html and torchvision's class for it."""

    torchvision_class: str
    filename: str
    md5: str
    folder: str


ARCHIVES = {
    "cifar100": CifarArchive(
        "CIFAR100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"
    ),
    "cifar10": CifarArchive(
        "CIFAR10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"
    ),
}


def find_location_problem(archive: CifarArchive, data_dir: Path, download: bool) -> str | None:
    """Return why the archive cannot be read from ``data_dir``, or None; looks at names only."""
    root = _find_root(archive, data_dir)
    if download or (root / archive.folder).is_dir() or (root / archive.filename).is_file():
        return None
    return (
        f"{archive.torchvision_class} was looked for in {root} and is not there: neither {archive.folder}/ "
        "nor "
        f"{archive.filename}.\n{_how_to_place(archive, root)}"
    )


def load(archive: CifarArchive, data_dir: Path, *, download: bool, image_size: int | None) -> PictureSource:
    """Return the archive's pictures; an archive that is there but not unpacked is checked and unpacked first.

    Raises:
        InputError: files are absent or damaged, or the download failed.
    """
    root = _find_root(archive, data_dir)
    if not (root / archive.folder).is_dir():
        try:
            _unpack(archive, root, download=download)
        except OSError as error:
            raise InputError(f"{root / archive.filename}: cannot be unpacked: {error}.") from error
    train = _read(archive, root, train=True)
    pictures = _to_pictures(train, image_size)
    return PictureSource(tuple(train.classes), pictures, partial(_load_test, archive, root, image_size))


def _load_test(archive: CifarArchive, root: Path, image_size: int | None) -> Pictures:
    return _to_pictures(_read(archive, root, train=False), image_size)


def _to_pictures(dataset: Any, image_size: int | None) -> Pictures:
    return Pictures(resize_square(dataset.data, image_size), np.asarray(dataset.targets, dtype=np.int64))


def _read(archive: CifarArchive, root: Path, *, train: bool) -> Any:
    from torchvision import datasets

    try:
        return getattr(datasets, archive.torchvision_class)(root=root, train=train, download=False)
    except RuntimeError as error:  # torchvision's answer to a missing file or a wrong md5
        raise InputError(
            f"{root / archive.folder}: files are missing or do not have torchvision's md5 sums. Remove "
            "that folder, "
            f"then:\n{_how_to_place(archive, root)}"
        ) from error


def _find_root(archive: CifarArchive, data_dir: Path) -> Path:
    """Return the folder that holds the archive's; ``data_dir`` may also name the unpacked folder itself."""
    return data_dir.parent if data_dir.name == archive.folder and data_dir.is_dir() else data_dir


def _unpack(archive: CifarArchive, root: Path, *, download: bool) -> None:
    packed = root / archive.filename
    if download:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not packed.is_file() and download:
        _download(archive, root)
    with packed.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != archive.md5:
        raise InputError(
            f"{packed}: its md5 is {found}, not {archive.md5}: it is damaged or another file. Remove it, "
            "then:\n"
            f"{_how_to_place(archive, root)}"
        )
    # Trials of one search start together and share data_dir: unpack beside, then rename.
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as temporary:
        unpacked = Path(temporary) / archive.folder
        unpacked.mkdir(mode=0o700)
        with tarfile.open(packed) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    with replace_atomically(unpacked / Path(member.name).name) as stream:
                        shutil.copyfileobj(content, stream)
        _place(unpacked, root / archive.folder)


def _place(unpacked: Path, destination: Path) -> None:
    try:
        unpacked.rename(destination)
    except OSError:
        if not destination.is_dir():  # otherwise another trial was faster
            raise


def _download(archive: CifarArchive, root: Path) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_url

    url = getattr(datasets, archive.torchvision_class).url
    with tempfile.TemporaryDirectory(prefix=".downloading-", dir=root) as folder:
        try:
            download_url(url, folder, archive.filename, archive.md5)
        except (URLError, RuntimeError, TimeoutError) as error:
            raise InputError(f"{url} could not be downloaded: {error}.\n{_how_to_place(archive, root)}") from error
        shutil.move(Path(folder) / archive.filename, root / archive.filename)


def _how_to_place(archive: CifarArchive, root: Path) -> str:
    return (
        f"Copy {archive.filename} (md5 {archive.md5}, from https://www.cs.toronto.edu/~kriz/cifar.html) "
        f"into {root}/ "
        "(it is unpacked by the trainer), or name another --data_dir, or pass --download where the node "
        "has internet."
    )
