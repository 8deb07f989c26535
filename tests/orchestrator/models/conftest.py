"""A hub on loopback with one model, and a store that is empty."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.standin.hub import FakeHub, serving

PROJECT = Path(__file__).parents[3]
MODEL = "org/tiny"
# huggingface_hub writes 10 MiB at once: what is to be cut in its middle is larger.
WEIGHTS = bytes(range(256)) * 100_000
FILES = {
    "config.json": b'{"model_type": "tiny"}',
    "tokenizer/vocab.txt": b"a\nb\n",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[:4_000_000],
    "original/consolidated.00.pth": bytes(300_000),
    "onnx/model.onnx": bytes(1000),
}
WANTED = [name for name in FILES if not name.endswith((".pth", ".onnx"))]


def in_mount_namespace(script: str, *arguments: str) -> list[str]:
    """Return the argv of a bash script that may mount file systems, which nobody else sees; no root is needed."""
    return ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "bash", *arguments]


def _why_no_mounts() -> str:
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    done = subprocess.run(in_mount_namespace("mount -t tmpfs none /tmp"), capture_output=True, text=True)
    return "" if done.returncode == 0 else f"no mount namespace for this user: {done.stderr.strip()}"


WHY_NO_MOUNTS = _why_no_mounts()


@pytest.fixture(autouse=True)
def _no_hub_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("HF_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Return a hub with the model."""
    with serving(FakeHub(MODEL, dict(FILES), kind="models")) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return the cache that the site file names."""
    folder = tmp_path / "home" / ".config" / "orch"
    folder.mkdir(parents=True)
    (folder / "site.yaml").write_text(f"cache_dir: {tmp_path}/cache\n")
    return tmp_path / "cache"


class Orch:
    """Runs `orch.py models …` as users do."""

    def __init__(self) -> None:
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        done = self.start(*words)
        self.out, self.err = done.communicate(timeout=120)
        return done.returncode

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start it, and do not wait."""
        argv = [sys.executable, str(PROJECT / "orch.py"), "models", *words]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], list[bool]]:
    """Return a watch on a file: a list that tells at each removal of a folder whether the file was there."""

    def watch(file: Path) -> list[bool]:
        seen: list[bool] = []
        remove = os.rmdir

        def noting(*args: Any, **options: Any) -> None:
            seen.append(file.is_file())
            remove(*args, **options)

        monkeypatch.setattr(os, "rmdir", noting)
        return seen

    return watch


@pytest.fixture
def orch() -> Orch:
    """Return the command."""
    return Orch()
