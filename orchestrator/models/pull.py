"""Models brought into the store, whole and checked: from a hub, or from a directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import HubError, ModelNotFoundError, StorageError
from orchestrator.models.hub import Hub, HubFile, Listing
from orchestrator.models.lock import REMEDY, sole_maker
from orchestrator.models.manifest import (
    CHUNK_BYTES,
    MARK,
    FileEntry,
    Manifest,
    faults,
    hash_files,
    make_manifest,
)
from orchestrator.models.meter import Meter
from orchestrator.models.room import check_room
from orchestrator.models.store import NOTES, Held, find_snapshot, read_made, repo_folder, repo_manifest
from orchestrator.models.threads import in_threads
from orchestrator.space.removal import replace_folder
from orchestrator.space.wording import size_text

# huggingface_hub, constants.MAX_HTTP_DOWNLOAD_SIZE: the hub gives larger files by a protocol of its own, in lay_out.
PLAIN_BYTES = 50 * 10**9


def pull_hub(model: str, revision: str, cache: Path, hub: Hub, meter: Meter, tell: Callable[[str], None]) -> Held:
    """Make a model of a hub whole in a hub cache, and return it; what is there already is checked and kept.

    Args:
        model: The hub's id.
        revision: Branch, tag or commit.
        cache: Of the layout of huggingface_hub.
        hub: Where it is.
        meter: Shows how far it is.
        tell: Told what takes time or is remarkable, in words.

    Raises:
        ModelNotFoundError: the hub has none for this user.
        HubError: the hub cannot be reached, or cut the connection; the next call goes on from there.
        StorageError: there is no room for it.
    """
    began = time.time()
    listing = hub.list_files(model, revision)
    if listing.name != model:
        tell(f"{model} is named {listing.name} at the hub now; better write that into your recipe")
    repo = repo_folder(cache, model)
    with sole_maker(repo, tell):
        held = find_snapshot(repo, listing.commit)
        if held is not None and held.manifest is not None and held.manifest.made_at > began:
            return held  # made by whom we have waited for
        try:
            unchecked = _fetch_missing(listing, repo, hub, meter, tell)
            if held is None:
                repo_manifest(repo, listing.commit).touch()  # so that what is laid out by halves is not taken for whole
            hub.lay_out(listing, cache)
            if _remove_damaged(listing, unchecked, repo, meter):
                raise HubError(
                    f"{listing.model}: what {hub.endpoint} gave has another checksum than it lists: try again."
                )
            if not listing.is_all:
                # huggingface_hub's own list of all files: by it, a snapshot without those left out is not whole.
                (repo / "trees" / f"{listing.commit}.json").unlink(missing_ok=True)
            _write_manifest(listing, repo, meter)
        except OSError as error:
            raise StorageError(repo, error, REMEDY) from error
        held = find_snapshot(repo, listing.commit)
    if held is None:
        raise ModelNotFoundError(f"'{model}': {repo} was removed while it was pulled.")
    return held


def _remove_damaged(listing: Listing, files: Sequence[HubFile], repo: Path, meter: Meter) -> list[HubFile]:
    """Remove those of ``files`` whose checksum is wrong, and return them."""
    blobs = repo / "blobs"
    with meter(f"{listing.model}: checks", sum(file.size for file in files)) as note:
        is_right = in_threads(lambda file, step: file.digest(blobs / file.etag, step) == file.etag, files, note)
    damaged = [file for file, is_kept in zip(files, is_right, strict=True) if not is_kept]
    for file in damaged:
        (blobs / file.etag).unlink(missing_ok=True)
    return damaged


def _fetch_missing(listing: Listing, repo: Path, hub: Hub, meter: Meter, tell: Callable[[str], None]) -> list[HubFile]:
    """Fetch what is missing or damaged; return what has to come in another way."""
    blobs, parts = repo / "blobs", repo / NOTES
    there = [file for file in listing.files if (blobs / file.etag).is_file()]
    for file in _remove_damaged(listing, there, repo, meter):
        tell(f"{file.path}: its checksum is wrong; it is fetched anew")
    # Two paths may have one content.
    missing = {file.etag: file for file in listing.files if not (blobs / file.etag).is_file()}
    total = sum(file.size for file in missing.values())
    begun = sum(_size(parts / etag) for etag in missing)
    check_room(blobs, max(total - begun, 0), f"{listing.model} needs")
    parts.mkdir(mode=0o700, exist_ok=True)

    def fetch(file: HubFile, step: Callable[[int], None]) -> None:
        hub.fetch(listing, file, parts / file.etag, step)
        (parts / file.etag).rename(blobs / file.etag)

    if missing:
        tell(f"{listing.model}: fetches {len(missing)} files, {size_text(total - begun)} of {size_text(total)}")
    plain = [file for file in missing.values() if file.size <= PLAIN_BYTES]
    with meter(listing.model, sum(file.size for file in plain)) as note:
        in_threads(fetch, plain, note)
    return [file for file in missing.values() if file.size > PLAIN_BYTES]


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _write_manifest(listing: Listing, repo: Path, meter: Meter) -> None:
    """Write the sizes and SHA-256 of a snapshot; that of a large file is known, as it was checked by it."""
    folder = repo / "snapshots" / listing.commit
    small = [file for file in listing.files if len(file.etag) != 64]
    hashes = hash_files([folder / file.path for file in small], f"{listing.model}: checksums", meter)
    known = {file.path: file.etag for file in listing.files} | {
        file.path: sha256 for file, sha256 in zip(small, hashes, strict=True)
    }
    files = tuple(FileEntry(file.path, file.size, known[file.path]) for file in listing.files)
    Manifest(listing.model, files, listing.commit).write(repo_manifest(repo, listing.commit))


def pull_directory(source: Path, target: Path, meter: Meter, tell: Callable[[str], None]) -> Held:
    """Copy the model in a directory into the folder ``target`` of the store, and return it.

    What an earlier call has copied is checked and kept.

    Raises:
        UserError: ``target`` was made of another source.
        StorageError: there is no room for it, or it cannot be read.
    """
    partial = target.with_name(f".{target.name}.partial")
    with sole_maker(target, tell):
        try:
            before = read_made(target, str(source))
            manifest = replace(make_manifest(str(target), source, meter), source=str(source))
            if before is None or before.files != manifest.files or faults(target, before, meter):
                _copy(source, partial, manifest, meter)
                manifest.write(partial / MARK)
                replace_folder(target, partial)
        except OSError as error:
            raise StorageError(target, error, REMEDY) from error
    return Held(str(target), (), target, manifest)


def _remove_others(folder: Path, manifest: Manifest) -> None:
    """Remove what a pull that was killed has left of files that the model does not have."""
    files = {folder / entry.path for entry in manifest.files}
    folders = {parent for file in files for parent in file.parents}
    for path in sorted(folder.rglob("*"), reverse=True):
        is_folder = path.is_dir()
        if path not in (folders if is_folder else files):
            (path.rmdir if is_folder else path.unlink)()


def _copy(source: Path, partial: Path, manifest: Manifest, meter: Meter) -> None:
    _remove_others(partial, manifest)
    wrong = {fault.partition(": ")[0] for fault in faults(partial, manifest, meter)}
    missing = [entry for entry in manifest.files if entry.path in wrong]
    needed = sum(entry.size for entry in missing)
    check_room(partial, needed, f"{source} needs")

    def copy(entry: FileEntry, step: Callable[[int], None]) -> None:
        (partial / entry.path).parent.mkdir(parents=True, exist_ok=True)
        with (source / entry.path).open("rb") as read, (partial / entry.path).open("wb") as written:
            while chunk := read.read(CHUNK_BYTES):
                written.write(chunk)
                step(len(chunk))

    with meter(f"{source.name}: copies", needed) as note:
        in_threads(copy, missing, note)
    left: Sequence[str] = faults(partial, manifest, meter)
    if left:
        raise OSError(None, f"what was copied is not what is in {source}: {'; '.join(left)}")
