"""Small commands for files over there: POSIX sh, with paths as arguments and never as text of a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from secrets import token_hex

from orchestrator.transports.base import FileChunk, FileContent
from orchestrator.transports.local import too_large

ABSENT = 44
_GONE = ("No such file or directory", "Not a directory")
# A pipe in place of a record must not be waited for, hence the look before. The boundary is random and not on an argv,
# so that nobody can write a file that looks like several.
_READ = r"""
LC_ALL=C; export LC_ALL; key=$orch_boundary; unset orch_boundary; limit=$1; shift
while [ $# -gt 0 ]; do
  start=$1; p=$2; shift 2
  [ -f "$p" ] || [ ! -e "$p" ] || { printf '%sZnot a regular file%sE' "$key" "$key"; continue; }
  printf '%sD' "$key"
  if [ "$start" = 1 ]; then
    said=$({ head -c "$limit" -- "$p" >&3; } 2>&1)
  else
    said=$({ head -c 1 -- "$p" >/dev/null && tail -c "+$start" -- "$p" | head -c "$limit" >&3; } 2>&1)
  fi
  printf '%sX%s %s%sE' "$key" "$?" "$said" "$key"
done 3>&1
exit 0
"""
_TAIL = rf"""
[ -e "$1" ] || [ -L "$1" ] || exit {ABSENT}
[ -f "$1" ] || {{ echo "not a regular file" >&2; exit 1; }}
size=$(wc -c <"$1") || exit 1
printf '%s\n' $size
tail -c "+$2" -- "$1" | head -c "$3"
"""
_WRITE = r"""
LC_ALL=C; export LC_ALL; umask 077
[ ! -d "$1" ] || { echo "is a directory" >&2; exit 1; }
case $1 in */*) t=${1%/*}/$2 ;; *) t=$2 ;; esac
trap 'rm -f -- "$t"' EXIT
dd status=none bs=65536 conv=fsync "of=$t" || exit 1
[ "$(wc -c <"$t")" -eq "$3" ] || { echo "the connection was lost while it was written" >&2; exit 1; }
chmod "$4" -- "$t" && mv -f -- "$t" "$1"
"""
_LOOK = r"""
if [ -d "$1" ]; then k=folder; elif [ -e "$1" ]; then k=file; else k=absent; fi
if command -v rsync >/dev/null 2>&1; then echo "$k rsync"; else echo "$k none"; fi
"""


def read_argv(paths: Sequence[str], limit_bytes: int, starts: Mapping[str, int]) -> list[str]:
    """Return the command that prints the files; its variable ``orch_boundary`` keeps them apart."""
    words = [word for path in paths for word in (str(starts.get(path, 0) + 1), path)]
    return ["sh", "-c", _READ, "sh", str(limit_bytes + 1), *words]


def parse_read(
    stdout: bytes, boundary: str, paths: Sequence[str], limit_bytes: int, starts: Mapping[str, int]
) -> dict[str, FileContent]:
    """Return the contents by path; fewer than ``paths`` if the answer was cut."""
    contents: list[FileContent] = []
    data = b""
    for part in stdout.split(boundary.encode())[1:]:
        kind, rest = part[:1], part[1:]
        if kind == b"D":
            data = rest
        elif kind == b"Z":
            contents.append(FileContent(problem=rest.decode()))
        elif kind == b"X":
            code, _, said = rest.decode(errors="replace").partition(" ")
            is_part = len(contents) < len(paths) and paths[len(contents)] in starts
            contents.append(_content(data, int(code), said.strip(), limit_bytes, is_part))
    return dict(zip(paths, contents, strict=False))


def _content(data: bytes, code: int, said: str, limit_bytes: int, is_part: bool) -> FileContent:
    if code != 0:
        return FileContent() if said.endswith(_GONE) else FileContent(problem=said.rpartition(": ")[2])
    if is_part:
        return FileContent(data[:limit_bytes])
    return too_large(limit_bytes) if len(data) > limit_bytes else FileContent(data)


def tail_argv(path: str, offset: int, limit_bytes: int) -> list[str]:
    """Return the command that prints a file's size, a line break, and the bytes from ``offset``."""
    return ["sh", "-c", _TAIL, "sh", path, str(offset + 1), str(limit_bytes)]


def parse_tail(stdout: bytes, offset: int) -> FileChunk:
    """Return what tail_argv's command printed."""
    size, _, data = stdout.partition(b"\n")
    # It may have grown since it was looked at.
    end = offset + len(data)
    return FileChunk(data, end, max(int(size), end) if data else int(size))


def write_argv(path: str, n_bytes: int, mode: int) -> list[str]:
    """Return the command that replaces a file by its stdin, if that has ``n_bytes`` bytes."""
    return ["sh", "-c", _WRITE, "sh", path, f".{token_hex(6)}.tmp", str(n_bytes), f"{mode:o}"]


def look_argv(path: str) -> list[str]:
    """Return the command that prints what ``path`` is, and whether rsync is there."""
    return ["sh", "-c", _LOOK, "sh", path]
