"""What a model's files say of its size: config.json and the weights beside it. Nothing is downloaded or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.atomic import read_json

DTYPE_BYTES: Mapping[str, float] = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
# Under these types of RoPE scaling an engine makes the context longer than config.json says.
_STRETCHING_ROPE = frozenset({"linear", "dynamic", "yarn"})


class UnknownSizeError(Exception):
    """A model's size cannot be told; says why in words that go on after "not known: "."""


@dataclass(frozen=True)
class ModelShape:
    """What a model needs memory for.

    Attributes:
        weights_bytes: Size of the stored weights.
        dtype: What they are stored in, such as ``bfloat16``; None where config.json does not say.
        is_quantized: Whether they are stored quantised.
        layers: Layers with a KV cache.
        kv_heads: Heads of keys and values in each; 1 for a latent cache.
        kv_values_per_head: Numbers that each such head keeps of one token.
        max_model_len: Longest context in tokens; None where an engine would stretch it, or nothing is said.
    """

    weights_bytes: int
    dtype: str | None
    is_quantized: bool
    layers: int
    kv_heads: int
    kv_values_per_head: int
    max_model_len: int | None


def read_shape(folder: Path) -> ModelShape:
    """Return what the files in ``folder`` say.

    Raises:
        UnknownSizeError: they do not say enough.
    """
    config = _object(folder / "config.json")
    # Models that see or hear keep their language model's figures in a section of its own.
    text = {**config, **config["text_config"]} if isinstance(config.get("text_config"), dict) else config
    kv_heads, kv_values = _kv_of_layer(text)
    dtype = text.get("dtype") or text.get("torch_dtype")
    return ModelShape(
        weights_bytes=_weights_bytes(folder),
        dtype=dtype if isinstance(dtype, str) else None,
        is_quantized=isinstance(config.get("quantization_config"), dict),
        layers=_count(text, "num_hidden_layers", "n_layer"),
        kv_heads=kv_heads,
        kv_values_per_head=kv_values,
        max_model_len=_max_model_len(text),
    )


def _object(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise UnknownSizeError(f"{path.name} is not there or cannot be read")
    return document


def _count(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    raise UnknownSizeError(f"config.json has no {names[0]}")


def _kv_of_layer(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return heads, and numbers per head and token, of one layer's cache.

    Keys and values of each head; with multi-head latent attention (DeepSeek-V2, section 2.1) one compressed vector and
    the rotary part of the key.
    """
    rank = config.get("kv_lora_rank")
    if isinstance(rank, int) and rank > 0:
        return 1, rank + _count(config, "qk_rope_head_dim")
    heads = _count(config, "num_attention_heads", "n_head")
    head_dim = config.get("head_dim")
    if not isinstance(head_dim, int) or head_dim <= 0:
        head_dim = _count(config, "hidden_size", "n_embd") // heads
    kv_heads = config.get("num_key_value_heads")
    return kv_heads if isinstance(kv_heads, int) and kv_heads > 0 else heads, 2 * head_dim


def _max_model_len(config: Mapping[str, Any]) -> int | None:
    scaling = config.get("rope_scaling")
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind in _STRETCHING_ROPE:
        return None
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _weights_bytes(folder: Path) -> int:
    """Return the size of what an engine would load.

    Source: transformers, "Sharded checkpoints": the index's ``metadata.total_size`` counts the tensors' bytes.
    """
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            total = _object(folder / index).get("metadata", {}).get("total_size")
            if isinstance(total, (int, float)) and total > 0:
                return int(total)
    for pattern in ("model.safetensors", "model-*.safetensors", "*.safetensors", "pytorch_model*.bin"):
        sizes = [_size(path) for path in folder.glob(pattern)]
        if sizes:
            return sum(sizes)
    raise UnknownSizeError("there are no weights (safetensors, bin) beside config.json")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UnknownSizeError(f"{path.name} cannot be looked at: {error.strerror}") from error
