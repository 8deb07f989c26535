"""A run whose model is pulled from a hub before its job, copied to the node in the job, and served offline."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.life.conftest import OrchRun
from tests.standin.hub import FakeHub, serving

FILES = {"config.json": b"{}", "model.safetensors": bytes(2_000_000)}


def test_run_pulls_stages_and_serves_a_hubs_model_once(
    recipe: dict[str, Any], start: Callable[..., OrchRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    store, scratch = tmp_path / "store", tmp_path / "scratch"
    recipe["job"]["service"]["model"] = "org/tiny"
    recipe["job"]["engine"]["stage_to"] = "$SCRATCH"
    recipe["job"]["environment"] = {"variables": {"SCRATCH": str(scratch), "HF_HUB_CACHE": str(store)}}
    recipe["job"]["monitoring"] = {"mode": "off"}
    with serving(FakeHub("org/tiny", FILES, kind="models")) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        run = start(recipe)
        assert run.wait(180) == 0, run.stderr
        assert hub.sent == {name: len(data) for name, data in FILES.items()}
    config = run.json("scripts/vllm.json")
    assert {config["env"][name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")} == {"1"}
    (log,) = (run.run_dir / "logs").glob("vllm_*.err")
    said = log.read_text()
    assert f"the model is in {scratch}/orch-models-" in said
    assert "1.9 MiB, of which 1.9 MiB copied" in said
    copies = [path for path in scratch.rglob("*") if path.is_dir() and not path.name.startswith("orch-models-")]
    assert copies == [], "the copy goes with the job"
