"""The data set of a search: arguments for the trainer, words for the prompt, and whether it is where it should be."""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import DataNotFoundError
from orchestrator.recipe.hpo import DigitsData, FolderData, Hpo, Scalar, SyntheticData, TorchvisionData

# Source: https://www.cs.toronto.edu/~kriz/cifar.html; the folder is the one inside the archive.
CIFAR_FILES = {
    "cifar100": ("cifar-100-python", "cifar-100-python.tar.gz"),
    "cifar10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
}
_CIFAR_WORDS = {
    "cifar100": "CIFAR-100, 50,000 colour pictures of 32x32 pixels in 100 classes",
    "cifar10": "CIFAR-10, 50,000 colour pictures of 32x32 pixels in 10 classes",
}
Data = TorchvisionData | FolderData | DigitsData | SyntheticData


def data_arguments(data: Data) -> dict[str, Scalar]:
    """Return the trainer's arguments for ``data``."""
    values: dict[str, Scalar] = {"dataset": data.kind}
    if not isinstance(data, DigitsData):
        values["data_dir"] = data.dir
    if isinstance(data, TorchvisionData):
        values["download"] = data.download
    if isinstance(data, FolderData) and data.image_size is not None:
        values["image_size"] = data.image_size
    return values


def describe_data(data: Data, is_here: bool = True) -> str:
    """Return ``data`` in words, for the model; folders that are not on this machine are not counted."""
    if isinstance(data, TorchvisionData):
        return _CIFAR_WORDS[data.kind]
    if isinstance(data, DigitsData):
        return "scikit-learn's digits, 1,797 grey pictures of 8x8 pixels in 10 classes"
    if isinstance(data, SyntheticData):
        return "made-up colour pictures of 32x32 pixels in 100 classes"
    classes = f"{_class_folders(Path(data.dir))} classes" if is_here else "classes"
    return f"colour pictures in {classes}" + (f", {data.image_size} pixels a side" if data.image_size else "")


def check_data(hpo: Hpo) -> None:
    """Make sure that the data set is where the recipe says; looks at names only.

    Raises:
        DataNotFoundError: it is not; says what was expected where.
    """
    data = hpo.dataset
    if isinstance(data, FolderData):
        _check_folder(Path(data.dir), needs_test=hpo.evaluate_winner)
    elif isinstance(data, TorchvisionData) and not data.download:
        _check_cifar(data.kind, Path(data.dir))


def _check_folder(folder: Path, needs_test: bool) -> None:
    where = "job.hpo.dataset.dir"
    layout = f"Expected: {folder}/train/CLASS/PICTURE.jpg (or .jpeg, .png), and the same classes in {folder}/test/."
    if not folder.is_dir():
        raise DataNotFoundError(f"{where} = {folder}: there is no such directory.\n{layout}")
    if _class_folders(folder) < 2:
        raise DataNotFoundError(
            f"{where} = {folder}: train/ holds {_class_folders(folder)} class folders; two at least.\n{layout}"
        )
    if needs_test and not (folder / "test").is_dir():
        raise DataNotFoundError(
            f"{where} = {folder}: there is no test/, and job.hpo.evaluate_winner measures test accuracy at the end.\n"
            f"{layout} Or set job.hpo.evaluate_winner = false."
        )


def _check_cifar(kind: str, folder: Path) -> None:
    unpacked, archive = CIFAR_FILES[kind]
    # The trainer takes the unpacked folder itself as well.
    root = folder.parent if folder.name == unpacked and folder.is_dir() else folder
    if (root / unpacked).is_dir() or (root / archive).is_file():
        return
    raise DataNotFoundError(
        f"job.hpo.dataset.dir = {folder}: {kind} is not there: neither {unpacked}/ nor {archive}.\n"
        f"Put {archive} there (https://www.cs.toronto.edu/~kriz/{archive}), or set job.hpo.dataset.download = true "
        "where compute nodes reach the internet."
    )


def _class_folders(folder: Path) -> int:
    train = folder / "train"
    return sum(item.is_dir() for item in train.iterdir()) if train.is_dir() else 0
