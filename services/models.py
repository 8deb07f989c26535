"""The model of a server: looked for, brought to where the server runs, and what the server is told of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.atomic import make_private_dir
from orchestrator.errors import ModelNotFoundError, UserError
from orchestrator.models import stager
from orchestrator.models.manifest import MARK, make_manifest
from orchestrator.models.meter import telling_meter
from orchestrator.models.source import is_hub_id, package_of, source_of
from orchestrator.models.store import MAIN, repo_manifest
from orchestrator.recipe.engines import VllmEngine
from orchestrator.service import PlanContext
from orchestrator.transports import TransferOptions

STAGER = "orch_stager.py"
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Staging:
    """How a server's model is copied to the node first; values of templates/partials/stage.j2."""

    python: str
    program: Path
    to: str
    is_kept: bool
    revision: str
    source: str


class ServedModel:
    """The model of one run's server."""

    def __init__(self, context: PlanContext, engine: VllmEngine, python: str) -> None:
        """Take where the server runs; nothing is looked at yet.

        Args:
            context: Of the server.
            engine: Of the recipe.
            python: The engine's interpreter, where the server runs.
        """
        self._context, self._engine = context, engine
        job, is_here = context.recipe.job, context.is_here
        self._name = job.service.model
        self._here = source_of(job, context.home_cache, os.environ, python if is_here else sys.executable)
        self._source = self._here if is_here else source_of(job, context.cache, {}, python)

    @property
    def argument(self) -> str:
        """What the engine is told to load."""
        if self._engine.stage_to is not None:
            return stager.PLACEHOLDER
        return self._name if self._is_from_hub else str(self._folder)

    @property
    def revision(self) -> str | None:
        """What the engine is told of it; only a hub's model has revisions."""
        return self._engine.revision if self.argument == self._name else None

    @property
    def _is_from_hub(self) -> bool:
        """Whether the engine is to find it in a hub cache: on hosts only what the node itself fetches."""
        return is_hub_id(self._name) and (self._context.is_here or not self._engine.offline)

    @property
    def _folder(self) -> Path:
        """Where it is stored, where the server runs."""
        if is_hub_id(self._name) and not self._is_from_hub:
            suffix = "" if self._engine.revision is None else f"@{self._engine.revision.replace('/', '--')}"
            return self._context.cache / "models" / f"{self._name.replace('/', '--')}{suffix}"
        return self._source.store

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the server: where hub caches are, and that it is to ask no hub."""
        env = {"HF_HUB_CACHE": str(self._source.store.parent)} if self._is_from_hub else {}
        if self._engine.offline:
            env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        return env

    @property
    def staging(self) -> Staging | None:
        """How it is copied to the node before the engine starts, or None."""
        if self._engine.stage_to is None:
            return None
        return Staging(
            python=self._context.recipe.job.environment.supervisor_python,
            program=self._context.run.config(STAGER),
            to=self._engine.stage_to,
            is_kept=self._engine.keep_staged,
            revision=self._engine.revision or MAIN,
            source=str(self._folder),
        )

    def check_fields(self) -> None:
        """Look whether what the recipe says of the model fits together.

        Raises:
            UserError: it does not.
        """
        engine = self._engine
        if engine.keep_staged and engine.stage_to is None:
            raise UserError("job.engine.keep_staged: nothing is staged.\nName a folder of the nodes in stage_to.")
        if engine.revision is not None and not is_hub_id(self._name):
            raise UserError(f"job.engine.revision: {self._name} is not from a hub and has no revisions.")
        if engine.stage_to is not None and not engine.offline:
            raise UserError(
                "job.engine.stage_to: what is staged has to be there before the job.\nLeave job.engine.offline on."
            )

    def check(self) -> None:
        """Look whether it is there or can be had.

        Raises:
            ModelNotFoundError: it is not.
            ProgramMissingError: the package that carries it is not installed.
        """
        if self._context.is_here:
            self._here.check()
        elif self._is_brought:
            if not self._exists_there(self._folder / MARK):
                self._here.check()
        elif Path(self._name).is_absolute() and not self._exists_there(Path(self._name) / "config.json"):
            raise ModelNotFoundError(
                f"job.service.model = {self._name}: there is no model on '{self._context.host}' (no config.json).\n"
                "Bring it there, or name a Hugging Face id."
            )

    @property
    def _is_brought(self) -> bool:
        """Whether it goes from this machine to the server's."""
        if self._context.is_here:
            return False
        return package_of(self._name) is not None or (is_hub_id(self._name) and self._engine.offline)

    def prepare(self, tell: Callable[[str], None]) -> None:
        """Pull or convert it once, and bring it to the server's host; may take long.

        Raises:
            UserError: it cannot be had here.
            HubError: the hub cannot be reached, or cut the connection.
            StorageError: there is no room for it here.
            TransportError: it could not be brought there; what was brought is not brought again.
        """
        if not self._context.is_here and (not self._is_brought or self._exists_there(self._folder / MARK)):
            return
        self._here.prepare(tell)
        if self._is_brought:
            self._bring(tell)

    def _bring(self, tell: Callable[[str], None]) -> None:
        there, push = self._folder, self._context.transport.push
        tell(f"{self._context.host}: brings the model to {there}")
        if is_hub_id(self._name):
            folder, mark = self._snapshot(tell)
            # It consists of links, which not every way of copying knows.
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                push(path.resolve(), str(there / path.relative_to(folder)))
        else:
            mark = self._here.store / MARK
            push(self._here.store, str(there), TransferOptions(excludes=(f"/{MARK}",)))
        # The mark goes last: a folder with it is whole.
        push(mark, str(there / MARK))

    def _snapshot(self, tell: Callable[[str], None]) -> tuple[Path, Path]:
        """Return the folder of the hub's model here and the file of its manifest, made if others brought the model."""
        folder = self._here.folder()
        manifest = repo_manifest(self._here.store, folder.name)
        if not manifest.is_file():
            make_private_dir(manifest.parent)
            found = make_manifest(self._name, folder, telling_meter(tell))
            replace(found, commit=folder.name).write(manifest)
        return folder, manifest

    def _exists_there(self, path: Path) -> bool:
        return self._context.transport.run(["test", "-f", str(path)], TIMEOUT_S).returncode == 0
