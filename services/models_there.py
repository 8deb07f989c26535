"""The model of a server that runs on a host which shares no files with this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import ModelNotFoundError
from orchestrator.service import PlanContext
from orchestrator.transports import TransferOptions
from services.conversion import DONE_MARK
from services.models import check_model, model_argument, package_of, prepare_model

TIMEOUT_S = 60.0


def check_model_there(context: PlanContext) -> None:
    """Look whether the model can be had on the host. Whether its nodes reach a hub, only they can tell.

    Raises:
        ModelNotFoundError: it is not there.
        ProgramMissingError: the package that carries it is not installed here.
    """
    model = context.recipe.job.service.model
    if package_of(model):
        if not _is_complete_there(context):
            check_model(model, sys.executable, context.home_cache)
    elif Path(model).is_absolute() and not _exists_there(context, Path(model) / "config.json"):
        raise ModelNotFoundError(
            f"job.service.model = {model}: there is no model on '{context.host}' (no config.json).\n"
            "Bring it there, or name a Hugging Face id."
        )


def bring_model(context: PlanContext, tell: Callable[[str], None]) -> None:
    """Convert a packaged model here, and bring it into the host's cache, once.

    Raises:
        UserError: it cannot be converted here.
        StorageError: there is no room for it here.
        TransportError: it could not be brought there; what was brought is not brought again.
    """
    model = context.recipe.job.service.model
    if package_of(model) is None or _is_complete_there(context):
        return
    prepare_model(model, sys.executable, context.home_cache, tell)
    here, there = Path(model_argument(model, context.home_cache)), Path(model_argument(model, context.cache))
    tell(f"{context.host}: brings the model to {there}")
    # The mark goes last: a folder with it is whole.
    context.transport.push(here, str(there), TransferOptions(excludes=(f"/{DONE_MARK}",)))
    context.transport.push(here / DONE_MARK, str(there / DONE_MARK))


def _is_complete_there(context: PlanContext) -> bool:
    return _exists_there(context, Path(model_argument(context.recipe.job.service.model, context.cache)) / DONE_MARK)


def _exists_there(context: PlanContext, path: Path) -> bool:
    return context.transport.run(["test", "-f", str(path)], TIMEOUT_S).returncode == 0
