"""Where a data set lies: a file, a folder, or the Hugging Face hub with its cache.

A data set is written as ``PATH`` or ``hf:OWNER/NAME[@REVISION]``, each with ``[:SPLIT[:COLUMN]]`` after it. What is in
the cache is not asked for again: with the same cache the same prompts are sent, with and without a network.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from client.errors import WorkloadError
from client.load.optional import import_optional
from client.load.records import SUFFIXES

HUB_PREFIX = "hf:"
DEFAULT_SPLIT = "train"
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@(\w[\w./-]*))?")
_SHARD = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\b(.*)$")
# Names of splits that files carry; where no file has any of them, all are the split "train".
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval")
_UNFINISHED = ".orch-unfinished"


@dataclass(frozen=True)
class DataReference:
    """A data set as it was asked for.

    Attributes:
        repository: Owner and name on the hub; None for a path.
        revision: A branch, tag or commit there.
        path: A file or folder; None for the hub.
        split: With a folder before it, ``FOLDER/SPLIT``, files of that folder alone; None for the only one or "train".
        column: The field with the prompt; None for the usual ones.
    """

    repository: str | None = None
    revision: str = "main"
    path: Path | None = None
    split: str | None = None
    column: str | None = None


@dataclass(frozen=True)
class DataFiles:
    """The files of a data set, in order, and the words that say where they are from."""

    paths: tuple[Path, ...]
    origin: str


def parse_reference(text: str) -> DataReference:
    """Return the data set that ``text`` names.

    Raises:
        WorkloadError: it names none; says what is allowed.
    """
    if text.startswith(HUB_PREFIX):
        name, *rest = text.removeprefix(HUB_PREFIX).split(":")
        found = _REPOSITORY.fullmatch(name)
        if found is None or len(rest) > 2 or ".." in name:
            raise WorkloadError(f"'{text}' names no data set.\nAllowed: hf:OWNER/NAME[@REVISION][:SPLIT[:COLUMN]].")
        return DataReference(found[1], found[2] or "main", None, *_split_and_column(rest))
    path, rest = text, []
    # A path may have colons of its own.
    while not Path(path).exists() and ":" in path and len(rest) < 2:
        path, _, last = path.rpartition(":")
        rest.insert(0, last)
    if not path or not Path(path).exists():
        raise WorkloadError(
            f"{text}: no such file or folder.\n"
            "Allowed: PATH[:SPLIT[:COLUMN]] or hf:OWNER/NAME[@REVISION][:SPLIT[:COLUMN]]."
        )
    return DataReference(None, "main", Path(path), *_split_and_column(rest))


def find_files(reference: DataReference, cache: Path) -> DataFiles:
    """Return the files of a data set; they are downloaded if it is on the hub and not in ``cache``.

    The hub is ``HF_ENDPOINT``, its token ``HF_TOKEN``; with ``HF_HUB_OFFLINE`` it is not asked.

    Args:
        reference: The data set.
        cache: A folder laid out as huggingface_hub's own cache.

    Raises:
        WorkloadError: it is not there, cannot be had, or has no files of that split.
    """
    if reference.repository is not None:
        return _hub_files(reference, reference.repository, cache)
    path = reference.path
    assert path is not None  # noqa: S101 - one of both is set
    if path.is_dir():
        return DataFiles(_files_below(path, reference.split, str(path)), str(path))
    if reference.split is not None:
        raise WorkloadError(f"{path}: is one file, which has no splits; leave '{reference.split}' empty (PATH::COLUMN)")
    return DataFiles((path,), str(path))


def choose_split(names: Iterable[str], split: str | None, where: str) -> list[str]:
    """Return those of the files ``names`` that belong to a split, sorted.

    A file belongs to a split if its path has the split's name as a word, as ``data/train-00000-of-00002.parquet``.

    Raises:
        WorkloadError: there are none, they lie in several folders, or shards of them are missing.
    """
    folder, _, split_name = (split or DEFAULT_SPLIT).rpartition("/")
    data = sorted(name for name in names if name.lower().endswith(SUFFIXES) and not _is_hidden(name))
    inside = [name for name in data if not folder or name.startswith(f"{folder}/")]
    chosen = [name for name in inside if _has_word(name, split_name)]
    if (
        not chosen
        and split_name == DEFAULT_SPLIT
        and not any(_has_word(name, one) for name in inside for one in _SPLITS)
    ):
        chosen = inside
    if not chosen:
        raise WorkloadError(
            f"{where}: has no files of the split '{split or DEFAULT_SPLIT}'; its data files are {_listed(data)}."
        )
    folders = sorted({str(PurePosixPath(name).parent) for name in chosen})
    if len(folders) > 1:
        raise WorkloadError(
            f"{where}: the split '{split_name}' is in several folders: {_listed(folders)}.\n"
            f"Name one of them: FOLDER/{split_name} for the split."
        )
    _check_shards(chosen, where)
    return chosen


def _hub_files(reference: DataReference, repository: str, cache: Path) -> DataFiles:
    own = cache / f"datasets--{repository.replace('/', '--')}"
    snapshot = _cached_snapshot(own, reference.revision)
    if snapshot is not None and not (own / _UNFINISHED).exists() and _has_split(snapshot, reference):
        return _of_snapshot(snapshot, reference, repository)
    if variables := [name for name in _OFFLINE if os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}]:
        raise WorkloadError(
            f"the data set '{repository}' (split '{reference.split or DEFAULT_SPLIT}', revision "
            f"'{reference.revision}') is not in {cache}, and {variables[0]} is set.\n"
            "Download it where there is a network, or give a file."
        )
    return _of_snapshot(_download(reference, repository, cache, own), reference, repository)


def _of_snapshot(snapshot: Path, reference: DataReference, repository: str) -> DataFiles:
    origin = f"{repository} at {snapshot.name}"
    return DataFiles(_files_below(snapshot, reference.split, origin), origin)


def _cached_snapshot(own: Path, revision: str) -> Path | None:
    """Return the folder of a revision in the cache, as huggingface_hub lays it out, or None."""
    name = own / "refs" / revision
    commit = name.read_text().strip() if name.is_file() else revision
    snapshot = own / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _has_split(snapshot: Path, reference: DataReference) -> bool:
    try:
        return bool(_files_below(snapshot, reference.split, str(snapshot)))
    except WorkloadError:
        return False


def _files_below(folder: Path, split: str | None, where: str) -> tuple[Path, ...]:
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return tuple(folder / name for name in choose_split(names, split, where))


def _download(reference: DataReference, repository: str, cache: Path, own: Path) -> Path:
    hub = import_optional("huggingface_hub", f"to download '{repository}'")
    errors = import_optional("huggingface_hub.errors", f"to download '{repository}'")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    where: dict[str, Any] = {"repo_type": "dataset", "revision": reference.revision}
    try:
        found = hub.HfApi(endpoint=endpoint).repo_info(repository, **where)
        names = choose_split((one.rfilename for one in found.siblings), reference.split, repository)
        own.mkdir(parents=True, exist_ok=True)
        # Files come one by one: a download that was cut must not pass for the whole split later.
        (own / _UNFINISHED).touch()
        patterns = [glob.escape(name) for name in names]
        folder = hub.snapshot_download(
            repository, **where, allow_patterns=patterns, cache_dir=str(cache), endpoint=endpoint
        )
        (own / _UNFINISHED).unlink(missing_ok=True)
    # The first is the root of all errors of the HTTP library underneath, whichever it is.
    except (*errors.HfHubHTTPError.__bases__, OSError, ValueError) as error:
        raise WorkloadError(_refusal(error, repository, endpoint or "https://huggingface.co", cache)) from error
    return Path(folder)


def _refusal(error: Exception, repository: str, endpoint: str, cache: Path) -> str:
    # What the hub said may be wrapped in that the file is not in the cache either.
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    answer = getattr(error, "response", None)
    if answer is not None and answer.status_code in {401, 403, 404}:
        # The hub answers 401 for a repository that does not exist as well as for one that is closed.
        return (
            f"{endpoint} has no data set '{repository}' of that revision for you (HTTP {answer.status_code}).\n"
            "Check the spelling; for a gated one accept its terms and set HF_TOKEN."
        )
    return (
        f"the data set '{repository}' is not in {cache}, and could not be downloaded from {endpoint} "
        f"({type(error).__name__}: {error}).\nDownload it where there is a network, or give a file."
    )


def _check_shards(names: list[str], where: str) -> None:
    found: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if shard := _SHARD.match(name):
            found.setdefault((shard[1], shard[3], shard[4]), set()).add(int(shard[2]))
    for (stem, total, _), numbers in found.items():
        if len(numbers) < int(total):
            raise WorkloadError(f"{where}: only {len(numbers)} of the {int(total)} files of {stem} are there")


def _has_word(name: str, word: str) -> bool:
    return re.search(rf"(?:^|[/._-]){re.escape(word)}(?:[/._-]|$)", name) is not None


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return any(part.startswith(".") for part in parts) or parts[-1] in {"dataset_infos.json", "dataset_info.json"}


def _split_and_column(parts: list[str]) -> tuple[str | None, str | None]:
    split, column = [*parts, "", ""][:2]
    return split or None, column or None


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "none"
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
