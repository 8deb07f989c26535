"""Whether a model fits where it is to be served: weights, KV cache and what the engine needs besides. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.forecast.document import ModelFit
from orchestrator.model_files import DTYPE_BYTES, ModelShape
from orchestrator.recipe.engines import VllmEngine
from orchestrator.recipe.sections import Precision

GIB = 2**30
# Source: vllm 0.32, vllm/config/cache.py.
GPU_MEMORY_UTILIZATION = 0.92
# CUDA context, activations of the profiling run and CUDA graphs; an allowance, not a measurement.
OVERHEAD_GIB = 2.0
_PRECISIONS: dict[Precision, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# Bytes of a weight under quantisation while loading. Source: vLLM's documentation, "Quantization": "FP8 W8A8" and
# "BitsAndBytes" (4 bits).
_ONLINE_BYTES = {"fp8": 1.0, "bitsandbytes": 0.5}
_MEMORY_FLAGS = ("--kv-cache-dtype", "--cpu-offload-gb", "--dtype", "--max-model-len", "--kv-cache-memory-bytes")


def unknown_fit(why: str) -> ModelFit:
    """Return a verdict for what cannot be judged."""
    return ModelFit(verdict="not known", text=f"not known: {why}")


def loaded_dtype(shape: ModelShape, precision: Precision) -> str | None:
    """Return the type that weights and KV cache have in memory; None where nothing says it.

    Source: vLLM, ``--dtype auto``: half precision for models stored in single precision, else the stored type.
    """
    if precision in _PRECISIONS:
        return _PRECISIONS[precision]
    return "float16" if shape.dtype == "float32" else shape.dtype


def weights_bytes(shape: ModelShape, dtype: str, quantization: str | None) -> float:
    """Return the size of the weights in memory, in bytes."""
    stored = DTYPE_BYTES.get(shape.dtype or dtype, 2.0)
    if shape.is_quantized:
        return shape.weights_bytes
    if quantization is not None:
        return shape.weights_bytes / stored * min(_ONLINE_BYTES.get(quantization, stored), stored)
    return shape.weights_bytes / stored * DTYPE_BYTES.get(dtype, 2.0)


def kv_bytes_per_token(shape: ModelShape, dtype: str, tensor_parallel: int = 1, pipeline_parallel: int = 1) -> float:
    """Return the KV cache of one token on the rank that has most of it, in bytes.

    2 × layers × KV heads × head dimension × bytes of a number (Kwon et al. 2023, section 3). Ranks beyond the number of
    KV heads keep copies of them.
    """
    layers, heads = -(-shape.layers // pipeline_parallel), -(-shape.kv_heads // tensor_parallel)
    return layers * heads * shape.kv_values_per_head * DTYPE_BYTES.get(dtype, 2.0)


def fit_gpu(
    shape: ModelShape, engine: VllmEngine, precision: Precision, gpu_name: str | None, sizes_gib: Sequence[float]
) -> ModelFit:
    """Return whether the model fits each of the GPUs that the engine splits it over.

    An engine refuses to start unless one request of the longest context fits.

    Args:
        shape: The model.
        engine: How it is served.
        precision: What the weights are to be in memory.
        gpu_name: The GPU in words.
        sizes_gib: What one GPU may have, smallest first; none if it is not known.
    """
    dtype = loaded_dtype(shape, precision)
    length = engine.max_model_len or shape.max_model_len
    if dtype is None or length is None:
        return unknown_fit("config.json does not tell " + ("the type of the weights" if dtype is None else _NO_LENGTH))
    ranks = engine.tensor_parallel * engine.pipeline_parallel
    weights_gib = weights_bytes(shape, dtype, engine.quantization) / GIB
    token_bytes = kv_bytes_per_token(shape, dtype, engine.tensor_parallel, engine.pipeline_parallel)
    needs_gib = weights_gib / ranks + token_bytes * length / GIB + OVERHEAD_GIB
    text = (
        f"{weights_gib / ranks:.1f} GiB of weights + {token_bytes * length / GIB:.1f} GiB of KV cache (one request of "
        f"{length} tokens, {token_bytes / 1024:.1f} KiB each) + {OVERHEAD_GIB:g} GiB allowed for the engine = "
        f"{needs_gib:.1f} GiB on each of {ranks} GPU{'s' * (ranks > 1)}{_unseen(engine)}"
    )
    share = engine.gpu_memory_utilization or GPU_MEMORY_UTILIZATION
    figures = {
        "weights_gib": round(weights_gib, 3),
        "kv_bytes_per_token": kv_bytes_per_token(shape, dtype),
        "needs_gib": round(needs_gib, 3),
    }
    if not sizes_gib:
        why = f"the memory of a GPU '{gpu_name}'" if gpu_name else "what GPUs the partition has"
        text += f"; {why} is not known (gpu_memory_gb of the partition, in the site file)"
        return ModelFit(verdict="not known", text=text, **figures)
    largest, smallest = max(sizes_gib) * share, min(sizes_gib) * share
    has = f"{gpu_name or 'the GPU'}: {' or '.join(f'{size:g}' for size in sizes_gib)} GiB × {share:g}"
    text += f", of {largest:.1f} GiB ({has})"
    if needs_gib > largest:
        return ModelFit(verdict="does not fit", text=text, has_gib=round(largest, 3), **figures)
    if needs_gib > smallest:
        text += f": not with {min(sizes_gib):g} GiB (gpu_memory_gb of the partition tells which)"
        return ModelFit(verdict="not known", text=text, has_gib=round(smallest, 3), **figures)
    return ModelFit(verdict="fits", text=text, has_gib=round(smallest, 3), **figures)


def fit_cpu(shape: ModelShape, engine: VllmEngine, precision: Precision, mem_gib: float | None) -> ModelFit:
    """Return whether the model fits the job's memory, and one request the engine's KV-cache space."""
    dtype = loaded_dtype(shape, precision)
    length = engine.max_model_len or shape.max_model_len
    if dtype is None or length is None:
        return unknown_fit("config.json does not tell " + ("the type of the weights" if dtype is None else _NO_LENGTH))
    ranks = engine.tensor_parallel * engine.pipeline_parallel
    weights_gib = weights_bytes(shape, dtype, engine.quantization) / GIB
    token_bytes = kv_bytes_per_token(shape, dtype)
    kv_gib, space_gib = token_bytes * length / GIB, engine.cpu_kv_cache_gib
    needs_gib = weights_gib + ranks * space_gib + OVERHEAD_GIB
    text = (
        f"{weights_gib:.1f} GiB of weights + {ranks * space_gib:g} GiB of KV-cache space + {OVERHEAD_GIB:g} GiB "
        f"allowed for the engine = {needs_gib:.1f} GiB{_unseen(engine)}"
    )
    figures = {
        "weights_gib": round(weights_gib, 3),
        "kv_bytes_per_token": token_bytes,
        "needs_gib": round(needs_gib, 3),
    }
    if kv_gib > ranks * space_gib:
        text += f"; one request of {length} tokens needs {kv_gib:.1f} GiB of KV cache (engine.cpu_kv_cache_gib)"
        return ModelFit(verdict="does not fit", text=text, has_gib=space_gib, **figures)
    if mem_gib is None:
        return ModelFit(verdict="not known", text=f"{text}; the job's memory has no limit", **figures)
    verdict: str = "fits" if needs_gib <= mem_gib else "does not fit"
    text += f", of {mem_gib:g} GiB of the job"
    return ModelFit.model_validate({"verdict": verdict, "text": text, "has_gib": mem_gib, **figures})


_NO_LENGTH = "the longest context; give engine.max_model_len"


def _unseen(engine: VllmEngine) -> str:
    flags = sorted({arg.partition("=")[0] for arg in engine.engine_args} & set(_MEMORY_FLAGS))
    return f" ({', '.join(flags)} of engine_args not counted)" if flags else ""
