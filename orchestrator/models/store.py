"""Where models lie: the hub's cache as huggingface_hub lays it out, and beside it folders of converted and copied ones.

Source of the layout: huggingface_hub, "Understand caching" and "Environment variables" (HF_HUB_CACHE, HF_HOME).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.atomic import read_json
from orchestrator.errors import UserError
from orchestrator.models.manifest import MARK, Manifest, read_manifest, size_faults

MAIN = "main"
# In the folder of a repository: what orch knows of its snapshots. huggingface_hub leaves it alone.
NOTES = ".orch"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf")
_REPO_PREFIX = "models--"


@dataclass(frozen=True)
class Held:
    """A model that is in a store.

    Attributes:
        model: As a recipe names it: a hub's id, or a folder.
        revisions: Names of this snapshot at the hub; empty for other sources.
        folder: With its files.
        manifest: None if it was not orch that brought it.
    """

    model: str
    revisions: tuple[str, ...]
    folder: Path
    manifest: Manifest | None


def hub_places(cache: Path, variables: Mapping[str, str]) -> tuple[Path, ...]:
    """Return the hub caches in which a model is looked for; the first is the one into which it is pulled.

    Args:
        cache: Shared folder of all runs.
        variables: Environment variables: HF_HUB_CACHE and HF_HOME say where.
    """
    home = Path.home() / ".cache" / "huggingface" / "hub"
    if "HF_HUB_CACHE" in variables:
        own = Path(variables["HF_HUB_CACHE"]).expanduser()
    elif "HF_HOME" in variables:
        own = Path(variables["HF_HOME"]).expanduser() / "hub"
    else:
        own = cache / "hub"
    return tuple(dict.fromkeys((own, home)))


def repo_folder(hub: Path, model: str) -> Path:
    """Return the folder of a hub's id in a hub cache, whether it is there or not."""
    return hub / f"{_REPO_PREFIX}{model.replace('/', '--')}"


def repo_manifest(repo: Path, commit: str) -> Path:
    """Return the file of the manifest of a snapshot; empty while a pull makes that snapshot."""
    return repo / NOTES / f"{commit}.json"


def read_made(folder: Path, source: str) -> Manifest | None:
    """Return the manifest of a folder of the store that is made of ``source``, or None if there is none.

    Raises:
        UserError: it was made of another source.
    """
    manifest = read_manifest(folder / MARK)
    if manifest is not None and manifest.source not in {"", source}:
        raise UserError(
            f"{folder} was made of {manifest.source}, not of {source}.\n"
            "Give the new one another name (`orch.py models pull` and `convert`: --name), or delete that folder."
        )
    return manifest


def find_snapshot(repo: Path, revision: str) -> Held | None:
    """Return the snapshot of a branch, tag or commit in a repository's folder, or None."""
    commit = _refs(repo).get(revision, revision)
    folder = repo / "snapshots" / commit
    if not folder.is_dir():
        return None
    names = tuple(name for name, target in _refs(repo).items() if target == commit) or (commit,)
    return Held(_model_of(repo), names, folder, read_manifest(repo_manifest(repo, commit)))


def find_hub(places: Sequence[Path], model: str, revision: str) -> Path:
    """Return the hub cache that holds ``model``, or the first of ``places`` if none does."""
    return next((hub for hub in places if is_usable(find_snapshot(repo_folder(hub, model), revision))), places[0])


def is_usable(held: Held | None) -> bool:
    """Return whether it is whole, as far as sizes tell; what other tools brought is, if it has config and weights."""
    if held is None:
        return False
    if held.manifest is not None:
        return not size_faults(held.folder, held.manifest)
    is_begun_here = repo_manifest(held.folder.parents[1], held.folder.name).exists()
    return not is_begun_here and (held.folder / "config.json").is_file() and _has_weights(held.folder)


def _has_weights(folder: Path) -> bool:
    """Return whether every file that an index names is there, or any file of weights if there is no index."""
    indices: list[Any] = [read_json(path) for path in folder.glob("*.safetensors.index.json")]
    if not indices:
        return any(path.is_file() for pattern in _WEIGHTS for path in folder.glob(pattern))
    try:
        return all((folder / name).is_file() for index in indices for name in index["weight_map"].values())
    except (KeyError, TypeError, AttributeError):
        return False


def list_models(cache: Path, places: Sequence[Path]) -> Iterator[Held]:
    """Yield all models of a store, and those that other tools have put into the hub caches."""
    for folder in _folders(cache / "models"):
        if (folder / MARK).is_file():
            manifest = read_manifest(folder / MARK)
            yield Held(manifest.model if manifest else str(folder), (), folder, manifest)
    for hub in places:
        for repo in _folders(hub):
            if repo.name.startswith(_REPO_PREFIX):
                held = (find_snapshot(repo, snapshot.name) for snapshot in _folders(repo / "snapshots"))
                yield from (each for each in held if each is not None)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _model_of(repo: Path) -> str:
    return repo.name.removeprefix(_REPO_PREFIX).replace("--", "/", 1)


def _refs(repo: Path) -> dict[str, str]:
    """Return the commits of branches and tags; a name may have slashes."""
    refs = repo / "refs"
    return {
        path.relative_to(refs).as_posix(): path.read_text(encoding="utf-8").strip()
        for path in sorted(refs.rglob("*"))
        if path.is_file()
    }
