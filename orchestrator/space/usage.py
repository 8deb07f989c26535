"""What lies where: space by run and by kind, as `du` of GNU coreutils measures it, here and on a host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.errors import TransportError
from orchestrator.space.removal import is_doomed
from orchestrator.transports import Transport

DU_TIMEOUT_S = 3600.0
KINDS = ("logs", "checkpoints", "data", "rest")
# Deep enough for <run>/trials/<trial>/checkpoints.
_DEPTH = 4
_ABSENT = 44
_DU = f"""
[ -d "$1" ] || exit {_ABSENT}
cd -- "$1" && exec du -0 --block-size=1 --max-depth="$2" .
"""


@dataclass(frozen=True)
class Tree:
    """Sizes in a folder.

    Attributes:
        sizes: Bytes on the disk of each folder with all that is below it, by its path from the top ("" is the top).
            A file with several names counts once; links are not followed.
        problems: What could not be looked at, in du's own words.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return self.sizes.get("", 0)

    def folders(self, below: str = "") -> dict[str, int]:
        """Return the sizes of the folders right below ``below``, by name."""
        prefix = f"{below}/" if below else ""
        inner = {path[len(prefix) :]: size for path, size in self.sizes.items() if path.startswith(prefix)}
        return {name: size for name, size in inner.items() if name and "/" not in name}


@dataclass(frozen=True)
class RunSize:
    """The space of one run in bytes, by kind; ``rest`` is what is none of the others."""

    name: str
    kinds: Mapping[str, int]

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(self.kinds.values())


def measure(transport: Transport, folder: str, depth: int = _DEPTH) -> Tree:
    """Return the sizes of ``folder`` and of the folders in it, down to ``depth``; nothing if it is not there.

    Raises:
        TransportError: it cannot be measured.
    """
    argv = ["sh", "-c", _DU, "sh", folder, str(depth)]
    answer = transport.run(argv, DU_TIMEOUT_S, environment={"LC_ALL": "C"})
    if answer.returncode == _ABSENT:
        return Tree()
    sizes = {}
    for line in answer.stdout.split("\0"):
        size, tab, path = line.partition("\t")
        if tab and size.isdigit():
            sizes[path.removeprefix(".").removeprefix("/")] = int(size)
    # du ends with 1 where it could not look at everything, and tells the sizes of the rest.
    if answer.returncode not in {0, 1} or "" not in sizes:
        raise TransportError(transport.host, f"du of {folder}: {answer.stderr.strip() or 'no answer'}")
    return Tree(sizes, tuple(answer.stderr.split("\n")[:-1]))


def size_of_run(tree: Tree, name: str) -> RunSize:
    """Return the space of the folder ``name`` of ``tree``, taken as a run."""
    kinds = {"logs": 0, "checkpoints": 0, "data": tree.sizes.get(f"{name}/data", 0)}
    for kind in ("logs", "checkpoints"):
        trials = (tree.sizes.get(f"{name}/trials/{trial}/{kind}", 0) for trial in tree.folders(f"{name}/trials"))
        kinds[kind] = tree.sizes.get(f"{name}/{kind}", 0) + sum(trials)
    kinds["rest"] = tree.sizes.get(name, 0) - sum(kinds.values())
    return RunSize(name, kinds)


@dataclass(frozen=True)
class Usage:
    """What lies on one machine, in bytes.

    Attributes:
        where: The folders that were measured.
        runs: Each run.
        others: What is no run, by what it is called for people.
        problems: What could not be looked at.
    """

    where: str
    runs: tuple[RunSize, ...]
    others: Mapping[str, int]
    problems: tuple[str, ...]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(run.total for run in self.runs) + sum(self.others.values())


def usage_of(runs: Tree, run_names: set[str], where: str, others: Mapping[str, Tree]) -> Usage:
    """Return what lies on one machine.

    Args:
        runs: The folder of all runs.
        run_names: Which folders in it are runs.
        where: What was measured, for people.
        others: Further folders, by what they are called.
    """
    folders = runs.folders()
    found = tuple(size_of_run(runs, name) for name in sorted(folders) if name in run_names)
    named = {name: tree.total for name, tree in others.items()}
    half_deleted = sum(size for name, size in folders.items() if is_doomed(name))
    plain = {name: size for name, size in folders.items() if name not in run_names and not is_doomed(name)}
    for name in ("cache", "archives"):
        if name in plain:
            key = f"{name}s" if name == "cache" else name
            named[key] = named.get(key, 0) + plain.pop(name)
    named["half-deleted runs"] = half_deleted
    named["other files"] = runs.total - sum(folders.values()) + sum(plain.values())
    problems = (*runs.problems, *(problem for tree in others.values() for problem in tree.problems))
    return Usage(where, found, {name: size for name, size in named.items() if size}, problems)
