"""Libraries that only some workloads need, imported when they do."""

from __future__ import annotations

import importlib
from typing import Any

from client.errors import WorkloadError

_PACKAGES = {"huggingface_hub": "huggingface-hub"}


def import_optional(module: str, purpose: str) -> Any:
    """Return ``module``.

    Raises:
        WorkloadError: it is not installed; says what for it is needed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        raise WorkloadError(
            f"the Python package '{_PACKAGES.get(package, package)}' is needed {purpose}, and is not installed "
            f"(missing: {error.name}).\nInstall it for the interpreter that makes the load."
        ) from error
