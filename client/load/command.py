"""``orch.py bench`` and ``orch.py compare``: any OpenAI- or Ollama-compatible server, no deployment needed."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import msgspec

from client.errors import ClientServiceError, StorageError, WorkloadError
from client.load.bench import Outcome, errors_of, run_bench, write_files
from client.load.export import Summary, encode_summary, write_private
from client.load.inputs import DEFAULT_REQUESTS, Wanted, make_bench
from client.load.points import Points
from client.load.report import write_report
from client.load.run import Progress
from client.load.saturation import LoadKind
from client.load.show import show_summary
from client.load.spec import Api, Server

EXIT_INVALID, EXIT_WRONG_INPUT, EXIT_INTERRUPTED = 1, 2, 130
PROJECT = Path(__file__).resolve().parents[2]
_EPILOG = """\
exit codes: 0 measured, 1 measured and not valid (the reasons are told), 2 wrong input, 130 Ctrl-C
lengths (--input-tokens, --output-tokens): 512, uniform:100-200, mean=512,std=64,min=32,max=2048, lognormal:…, file:PATH
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``orch.py bench``."""
    made = argparse.ArgumentParser(
        prog="orch.py bench",
        description="Measure an LLM server: time to first token, time between tokens, throughput.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("url", metavar="URL", help="scheme, host and port of the server, such as http://127.0.0.1:8000")
    made.add_argument("--model", required=True, metavar="NAME", help="as the server names it")
    made.add_argument("--api", choices=get_args(Api), default="openai-chat")
    made.add_argument("--api-key-file", type=Path, metavar="FILE", help="holds the token to send")
    made.add_argument("--ca-file", type=Path, metavar="FILE", help="certificates to trust for https")
    load = made.add_argument_group("load")
    how = load.add_mutually_exclusive_group()
    how.add_argument("--concurrency", type=_numbers, metavar="N[,N…]", help="requests at once (1); several: a sweep")
    how.add_argument("--rate", type=_numbers, metavar="R[,R…]", help="requests per second; several make a sweep")
    how.add_argument("--trace", type=Path, metavar="FILE", help="replay a trace's times and lengths")
    load.add_argument("--trace-speed", type=float, default=1.0, metavar="X", help="how much faster than recorded")
    load.add_argument("--arrivals", choices=["constant", "poisson", "gamma"], default="poisson", help="of --rate")
    load.add_argument("--burstiness", type=float, default=1.0, metavar="SHAPE", help="of gamma; 1 is Poisson")
    load.add_argument("--requests", type=int, metavar="N", help=f"of each measurement ({DEFAULT_REQUESTS})")
    load.add_argument("--duration", type=float, metavar="S", help="no request begins later than this")
    load.add_argument("--ramp", type=float, default=0.0, metavar="S", help="over which clients begin")
    load.add_argument("--warmup", type=int, default=1, metavar="N", help="requests before the measurement (1)")
    load.add_argument("--warmup-s", type=float, default=0.0, metavar="S", help="left out at the beginning")
    load.add_argument("--cooldown-s", type=float, default=0.0, metavar="S", help="left out at the end")
    load.add_argument("--find-capacity", action="store_true", help="search the highest rate that meets --slo")
    load.add_argument("--repeats", type=int, default=1, metavar="N")
    load.add_argument("--processes", type=int, metavar="N", help="load processes")
    load.add_argument("--timeout", type=float, default=120.0, metavar="S", help="for a whole request (120)")
    load.add_argument("--seed", type=int, default=0)
    what = made.add_argument_group("requests")
    what.add_argument("--prompt", metavar="TEXT")
    what.add_argument("--system", metavar="TEXT")
    what.add_argument("--dataset", metavar="FILE", help="prompts or chats: JSONL, ShareGPT, CSV, or hf:OWNER/NAME")
    what.add_argument("--tokenizer", type=Path, metavar="DIR", help="the model's folder: exact token counts")
    what.add_argument("--input-tokens", metavar="LENGTHS", help="synthetic prompts of such lengths")
    what.add_argument("--output-tokens", metavar="LENGTHS", help="instead of --max-tokens")
    what.add_argument("--shared-prefixes", type=_prefixes, metavar="N:LENGTHS", help="beginnings in common")
    what.add_argument("--turns", metavar="LENGTHS", help="synthetic conversations of so many turns")
    what.add_argument("--multi-turn", action="store_true", help="send a data set's conversations turn by turn")
    what.add_argument("--think-time", metavar="SECONDS", help="between turns: 2, uniform:1-5, …")
    what.add_argument("--max-input-tokens", type=int, metavar="N", help="leave longer records out")
    what.add_argument("--max-tokens", type=int, default=128, metavar="N")
    what.add_argument("--temperature", type=float)
    what.add_argument("--ignore-eos", action="store_true", help="generate --max-tokens each time (vLLM)")
    verdict = made.add_argument_group("verdict and results")
    verdict.add_argument("--slo", metavar="TERMS", help="such as 'ttft_ms<=200,itl_ms<=20'")
    verdict.add_argument("--max-failed-share", type=float, default=0.0, metavar="X", help="of requests (0)")
    verdict.add_argument("--check-tokens", action="store_true", help="count answers with --tokenizer too")
    verdict.add_argument("--no-self-check", action="store_true", help="do not measure what the client adds")
    verdict.add_argument(
        "--exporter", action="append", default=[], metavar="URL", help="of the server's machine or GPUs; again for more"
    )
    verdict.add_argument("--output", type=Path, metavar="DIR", help="folder of the results; a new one in output/bench")
    verdict.add_argument("--cache", type=Path, default=PROJECT / "output" / "cache", metavar="DIR", help="of data sets")
    verdict.add_argument("--keep-responses", action="store_true", help="keep the generated texts")
    verdict.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    return made


def main(argv: Sequence[str]) -> int:
    """Run ``orch.py bench`` and return its exit code."""
    options = parser().parse_args(argv)
    teller = Teller(is_quiet=options.json or not sys.stderr.isatty())
    stopping: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: stopping.append(number))
    try:
        bench = make_bench(_wanted(options))
        folder = _folder(options)
        outcome = run_bench(bench, teller.tell, lambda: bool(stopping), points=Points(folder))
        teller.close()
        write_files(outcome, folder)
        write_report(folder, outcome.summary, outcome.main.analysis.columns, errors_of(outcome.main.measurement))
        write_private(folder / "summary.json", encode_summary(outcome.summary))
    except ClientServiceError as error:
        teller.close()
        sys.stderr.write(f"orch: {error}\n")
        return EXIT_WRONG_INPUT
    finally:
        signal.signal(signal.SIGINT, before)
    _print(outcome, folder, options.json)
    if stopping:
        return EXIT_INTERRUPTED
    return 0 if outcome.summary.valid else EXIT_INVALID


def _wanted(options: argparse.Namespace) -> Wanted:
    kind: LoadKind = "rate" if options.rate or options.trace else "concurrency"
    return Wanted(
        server=_server(options),
        model=options.model,
        kind=kind,
        loads=options.rate or options.concurrency or (1.0,),
        requests=options.requests,
        duration_s=options.duration,
        prompt=options.prompt,
        system=options.system,
        dataset=options.dataset,
        trace=options.trace,
        trace_speed=options.trace_speed,
        tokenizer=options.tokenizer,
        cache=options.cache,
        input_tokens=options.input_tokens,
        output_tokens=options.output_tokens,
        shared_prefixes=options.shared_prefixes,
        turns=options.turns,
        is_multi_turn=options.multi_turn,
        think_s=options.think_time,
        max_input_tokens=options.max_input_tokens,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        ignore_eos=options.ignore_eos,
        seed=options.seed,
        sampling_seed=options.seed,
        arrivals=options.arrivals,
        burstiness=options.burstiness,
        ramp_s=options.ramp,
        processes=options.processes,
        warmup=options.warmup,
        warmup_s=options.warmup_s,
        cooldown_s=options.cooldown_s,
        timeout_s=options.timeout,
        repeats=options.repeats,
        finds_capacity=options.find_capacity,
        slo=options.slo,
        max_failed_share=options.max_failed_share,
        keeps_text=options.keep_responses,
        has_self_check=not options.no_self_check,
        checks_tokens=options.check_tokens,
        exporters=tuple(options.exporter),
    )


def _server(options: argparse.Namespace) -> Server:
    url = options.url.rstrip("/")
    parts = urlsplit(url)
    try:
        is_usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.username is not None or parts.query or parts.fragment:
        told = re.sub(r"//[^/@]*@", "//…@", options.url)
        raise WorkloadError(f"URL {told!r}: give http:// or https://, host and port, as in http://127.0.0.1:8000")
    # The API's own path comes behind it: people paste the base URL of client libraries.
    url = re.sub(r"/(v1|api)$", "", url)
    token = None
    if options.api_key_file is not None:
        try:
            token = options.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise WorkloadError(f"--api-key-file {options.api_key_file}: it cannot be read: {error}") from error
        if not token or not token.isprintable() or not token.isascii():
            raise WorkloadError(f"--api-key-file {options.api_key_file}: it holds no token")
    ca_file = str(options.ca_file) if options.ca_file is not None else None
    return Server(url, options.api, token, ca_file)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _prefixes(text: str) -> tuple[int, str]:
    count, colon, lengths = text.partition(":")
    if not colon or not count.isdigit() or not int(count):
        raise argparse.ArgumentTypeError("as in 8:1024")
    return int(count), lengths


def _folder(options: argparse.Namespace) -> Path:
    """Make the folder of the results.

    Raises:
        StorageError: it cannot be made, or there are results in it.
    """
    os.umask(0o077)
    stamp = time.strftime("%Y%m%d_%H%M%S")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", options.model).strip("-.")[:40] or "model"
    folder: Path = options.output or PROJECT / "output" / "bench" / f"{stamp}_{name}_{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (folder / "summary.json").exists():
            raise StorageError(f"{folder} holds the results of another benchmark; name another folder with --output")
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror}") from error
    return folder


def _print(outcome: Outcome, folder: Path, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {**msgspec.to_builtins(outcome.summary), "output": str(folder)}
        sys.stdout.write(msgspec.json.encode(document).decode() + "\n")
        return
    summary: Summary = outcome.summary
    sys.stdout.write(show_summary(summary, errors_of(outcome.main.measurement)))
    sys.stdout.write(f"Results: {folder}/report.html\n")


class Teller:
    """A line of progress on standard error, where somebody looks."""

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet, self._width, self._told_s = is_quiet, 0, 0.0

    def tell(self, text: str, progress: Progress | None) -> None:
        """Show what is being done."""
        now_s = time.monotonic()
        if self._is_quiet or (progress is not None and now_s - self._told_s < 0.2):
            return
        self._told_s = now_s
        if progress is not None:
            text += f": {progress.finished} requests" + (f", {progress.failed} failed" if progress.failed else "")
            text += f", {progress.tokens} tokens"
        sys.stderr.write("\r" + text.ljust(self._width)[:79])
        sys.stderr.flush()
        self._width = len(text)

    def close(self) -> None:
        """End the line."""
        if self._width:
            sys.stderr.write("\r" + " " * min(self._width, 79) + "\r")
            sys.stderr.flush()
