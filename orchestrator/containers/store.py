"""The store: a folder of images, each in a folder of its own with a manifest, which appear whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator.atomic import read_json, write_json
from orchestrator.containers.definition import Definition
from orchestrator.containers.sif import ImageError, check_sif
from orchestrator.models.manifest import digest

IMAGE, MANIFEST = "image.sif", "manifest.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """What an image was when it was made.

    Attributes:
        name: In the catalogue.
        version: See Definition.
        source: What it was made from, mirror included.
        made_with: The runtime's own words for its version.
        size: In bytes.
        sha256: Of the image file, in hexadecimal.
        made_at: Seconds since the epoch.
        verified_at: When its checksum was last found right, in seconds since the epoch.
    """

    name: str
    version: str
    source: str
    made_with: str
    size: int
    sha256: str
    made_at: float
    verified_at: float

    def write(self, path: Path) -> None:
        """Put it into a file.

        Raises:
            StorageError: it could not be written.
        """
        write_json(path, {"schema_version": SCHEMA_VERSION, **asdict(self)})


@dataclass(frozen=True)
class Entry:
    """One image of a store.

    Attributes:
        folder: Its folder.
        manifest: None if there is none that can be read.
    """

    folder: Path
    manifest: Manifest | None

    @property
    def image(self) -> Path:
        """The image file."""
        return self.folder / IMAGE

    def fault(self) -> str:
        """Return what is wrong as far as can be told without reading all of it, or an empty string."""
        if self.manifest is None:
            return f"{MANIFEST} is missing or damaged"
        try:
            size = check_sif(self.image)
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f"{IMAGE}: {error.strerror}"
        return "" if size == self.manifest.size else f"{IMAGE} has {size} bytes, not {self.manifest.size}"

    def verify(self, step: Callable[[int], None]) -> str:
        """Read all of the image and return what is wrong, or an empty string; ``step`` is told of each chunk's bytes.

        Raises:
            StorageError: the time of a good verification could not be written down.
        """
        fault = self.fault()
        if fault or self.manifest is None:
            return fault
        try:
            sha256 = digest(self.image, "sha256", b"", step)
        except OSError as error:
            return f"{IMAGE}: {error.strerror}"
        if sha256 != self.manifest.sha256:
            return f"the checksum of {IMAGE} is wrong"
        replace(self.manifest, verified_at=time.time()).write(self.folder / MANIFEST)
        return ""


class Store:
    """Images that jobs of all runs share."""

    def __init__(self, folder: Path) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            folder: Of the store; need not be there.
        """
        self.folder = folder

    def entry(self, definition: Definition) -> Entry:
        """Return an image of the catalogue, whether it is there or not."""
        return _read(self.folder / definition.folder)

    def has(self, definition: Definition) -> bool:
        """Tell whether an image is there and whole; not all of it is read."""
        return not self.entry(definition).fault()

    def entries(self) -> Iterator[Entry]:
        """Yield all images that are there, older versions included, by name."""
        if self.folder.is_dir():
            yield from (_read(path) for path in sorted(self.folder.iterdir()) if (path / IMAGE).is_file())


def partial_of(folder: Path) -> Path:
    """Return where an image is made before it is renamed to ``folder``; see space.caches.is_leftover."""
    return folder.with_name(f".{folder.name}.partial")


def _read(folder: Path) -> Entry:
    document: Any = read_json(folder / MANIFEST)
    try:
        return Entry(folder, Manifest(**{name: document[name] for name in Manifest.__dataclass_fields__}))
    except (KeyError, TypeError):
        return Entry(folder, None)
