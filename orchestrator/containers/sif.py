"""The header of an image file."""

from __future__ import annotations

import struct
from pathlib import Path

from orchestrator.errors import OrchError

# Source: https://github.com/apptainer/sif, pkg/sif/sif.go, type header: launch script, magic, version, architecture and
# id, then times, descriptors, and the place and size of the data.
_MAGIC_AT, _MAGIC = 32, b"SIF_MAGIC\0"
_DATA_AT, _DATA = 112, struct.Struct("<qq")
_HEADER_BYTES = _DATA_AT + _DATA.size


class ImageError(OrchError):
    """An image could not be made, or is not what it should be."""


def check_sif(path: Path) -> int:
    """Return the size of an image file in bytes, if it is one and not cut short.

    Raises:
        ImageError: it is none, or is cut short.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    size = path.stat().st_size
    if len(header) < _HEADER_BYTES or header[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
        raise ImageError(f"{path} is no SIF image")
    needed = sum(_DATA.unpack_from(header, _DATA_AT))
    if size < needed:
        raise ImageError(f"{path} is cut short: {size} of {needed} bytes")
    return size
