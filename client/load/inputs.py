"""From what a user asks for, in words and numbers, to a Bench: prompts of planned lengths, loads, arrivals, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from client.errors import WorkloadError
from client.load.bench import Arrivals, Bench
from client.load.conversations import recorded_conversations, synthetic_conversations
from client.load.datasets import find_files, parse_reference
from client.load.distributions import Distribution, parse_lengths, parse_seconds
from client.load.payloads import encode_request
from client.load.prompt_files import read_samples
from client.load.run import measure, scratch
from client.load.saturation import LoadKind
from client.load.seeds import generator_for
from client.load.shapes import ClosedLoop, How, deal_out
from client.load.slo import Slo, parse_slos
from client.load.spec import Api, Conversation, Prompt, Sampling, Server
from client.load.synthetic import CalibratedText, ExactText, TextMaker, calibrate, probe_text
from client.load.tokenizing import Counting, EstimatedCounter, TokenCounter, TokenizerCounter
from client.load.traces import Trace, read_trace
from client.load.validity import Limits
from client.load.watch import exporter_at
from client.load.workload import Limits as TokenLimits
from client.load.workload import PlannedPrompt, Workload, one_prompt, sampled, shared_prefixes, synthetic, trace_prompts

DEFAULT_PROMPT = "Explain in a few sentences what a supercomputer is used for."
DEFAULT_REQUESTS = 100
# Of a load that only a duration ends, so many different prompts are made; they then begin again.
MOST_PROMPTS = 2000
PROBE_WORDS = (16, 64, 256)
_COUNTINGS: dict[Api, Counting] = {
    "openai-chat": "chat",
    "openai-completions": "completion",
    "ollama-generate": "content",
    "ollama-chat": "content",
}
MAX_CONCURRENCY = 100_000
MAX_REQUESTS = 10_000_000
MAX_PROMPT_TOKENS = 100_000_000
MAX_OUTPUT_TOKENS = 1_000_000


@dataclass(frozen=True)
class Wanted:
    """What a user asks for; None is not given. Lengths are texts as client/load/distributions.py reads them.

    Attributes:
        dataset: A file, a folder, or ``hf:OWNER/NAME[:SPLIT[:COLUMN]]``.
        loads: Requests at once, or per second; several make a sweep.
        requests_per_client: In the place of ``requests``, where loads are requests at once.
        shared_prefixes: How many beginnings synthetic prompts share, and how long they are.
        turns: How many turns synthetic conversations have.
        is_multi_turn: Send a data set's conversations turn by turn.
        think_s: How long users think between turns.
        seed: Of what is drawn here: prompts, lengths, arrivals.
        sampling_seed: Sent to the server.
        exporters: URLs of Prometheus exporters on the server's machines.
    """

    server: Server
    model: str
    kind: LoadKind = "concurrency"
    loads: tuple[float, ...] = (1.0,)
    requests: int | None = None
    requests_per_client: int | None = None
    duration_s: float | None = None
    prompt: str | None = None
    system: str | None = None
    dataset: str | None = None
    trace: Path | None = None
    trace_speed: float = 1.0
    tokenizer: Path | None = None
    cache: Path = Path()
    input_tokens: str | None = None
    output_tokens: str | None = None
    shared_prefixes: tuple[int, str] | None = None
    turns: str | None = None
    is_multi_turn: bool = False
    think_s: str | None = None
    max_input_tokens: int | None = None
    max_tokens: int = 128
    temperature: float | None = None
    ignore_eos: bool = False
    seed: int = 0
    sampling_seed: int | None = None
    arrivals: str = "poisson"
    burstiness: float = 1.0
    ramp_s: float = 0.0
    processes: int | None = None
    warmup: int = 1
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    timeout_s: float = 120.0
    repeats: int = 1
    finds_capacity: bool = False
    slo: str | None = None
    max_failed_share: float = 0.0
    keeps_text: bool = False
    has_self_check: bool = True
    checks_tokens: bool = False
    exporters: tuple[str, ...] = ()


def make_bench(wanted: Wanted) -> Bench:
    """Return the benchmark that is asked for; the server may be asked for a few token counts.

    Raises:
        WorkloadError: what is asked for goes not together, or cannot be made.
        SloError: the objectives cannot be read.
    """
    check(wanted)
    trace = None
    if wanted.trace is not None:
        trace = read_trace(wanted.trace, wanted.trace_speed, wanted.requests, wanted.duration_s)
    requests = wanted.requests
    if requests is None and wanted.requests_per_client is None and wanted.duration_s is None and trace is None:
        requests = DEFAULT_REQUESTS
    sampling = Sampling(
        wanted.model, wanted.max_tokens, wanted.temperature, wanted.sampling_seed, wanted.ignore_eos, wanted.system
    )
    conversations = _conversations(wanted, sampling, requests)
    if conversations:
        workload = Workload((PlannedPrompt(conversations[0].prompt(0, ())),))
        if wanted.is_multi_turn:  # without a limit, each recorded one is sent once
            requests = wanted.requests
    else:
        # Each measurement has prompts of its own: a server may have kept those of the one before.
        planned = requests * len(wanted.loads) * wanted.repeats if requests is not None else None
        workload = _workload(wanted, sampling, trace, planned)
    slos: tuple[Slo, ...] = parse_slos(wanted.slo) if wanted.slo else ()
    fixed = tuple(float(at_s) for at_s in trace.times_s) if trace is not None else ()
    return Bench(
        server=wanted.server,
        sampling=sampling,
        prompts=workload.prompts,
        conversations=conversations,
        kind="rate" if trace is not None else wanted.kind,
        loads=(len(fixed) / fixed[-1] if fixed[-1] > 0 else float(len(fixed)),) if fixed else wanted.loads,
        requests=requests,
        requests_per_client=wanted.requests_per_client,
        duration_s=wanted.duration_s,
        arrivals=Arrivals(wanted.arrivals, wanted.burstiness, fixed),
        ramp_s=wanted.ramp_s,
        how=How(wanted.warmup, wanted.timeout_s, wanted.keeps_text or wanted.checks_tokens),
        count_answer=_counter(wanted).count_answer if wanted.checks_tokens else None,
        processes=wanted.processes,
        seed=wanted.seed,
        repeats=wanted.repeats,
        finds_capacity=wanted.finds_capacity,
        has_self_check=wanted.has_self_check,
        slos=slos,
        limits=Limits(failed_share=wanted.max_failed_share),
        warmup_s=wanted.warmup_s,
        cooldown_s=wanted.cooldown_s,
        exporters=tuple(exporter_at(url) for url in wanted.exporters),
        about={
            "url": wanted.server.url,
            "api": wanted.server.api,
            "model": wanted.model,
            "seed": wanted.seed,
            "max_tokens": wanted.max_tokens,
            "prompts": len(workload.requests),
            "notes": list(workload.notes),
        },
    )


def check(wanted: Wanted) -> None:
    """Look whether what is asked for goes together, as far as can be seen without the server and without files.

    Raises:
        WorkloadError: it does not; says what.
    """
    sources = {"--prompt": wanted.prompt, "--dataset": wanted.dataset, "--trace": wanted.trace}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise WorkloadError(f"{' and '.join(given)}: one source of prompts at a time")
    if given and wanted.input_tokens is not None:
        raise WorkloadError(f"--input-tokens makes synthetic prompts; {given[0]} brings its own")
    if wanted.output_tokens is not None and _most(wanted.output_tokens, "--output-tokens") > MAX_OUTPUT_TOKENS:
        raise WorkloadError(f"--output-tokens {wanted.output_tokens}: at most {MAX_OUTPUT_TOKENS}")
    if wanted.checks_tokens and wanted.tokenizer is None:
        raise WorkloadError("--check-tokens counts with the model's tokenizer: give --tokenizer DIR")
    if wanted.shared_prefixes is not None and wanted.input_tokens is None:
        raise WorkloadError("--shared-prefixes needs --input-tokens: how long the rest of each prompt is")
    if (tokens := _prompt_tokens(wanted)) > MAX_PROMPT_TOKENS:
        raise WorkloadError(f"the prompts would have {tokens:.0f} tokens in all; at most {MAX_PROMPT_TOKENS}")
    if wanted.ignore_eos and wanted.server.api.startswith("ollama"):
        raise WorkloadError("--ignore-eos: Ollama has no such option")
    _check_load(wanted)
    _check_conversations(wanted)


def _check_conversations(wanted: Wanted) -> None:
    think = parse_seconds(wanted.think_s, "--think-time") if wanted.think_s is not None else None
    if wanted.turns is None and not wanted.is_multi_turn:
        if think is not None:
            raise WorkloadError("--think-time lies between the turns of conversations: give --turns or --multi-turn")
        return
    if wanted.server.api not in {"openai-chat", "ollama-chat"} or wanted.kind != "concurrency":
        raise WorkloadError("conversations need a chat API and --concurrency: a turn waits for the answer before it")
    if wanted.shared_prefixes is not None:
        raise WorkloadError("--shared-prefixes makes single prompts, no conversations")
    if wanted.is_multi_turn and wanted.dataset is None:
        raise WorkloadError("--multi-turn takes the conversations of a data set: give --dataset")
    if wanted.turns is not None:
        parse_lengths(wanted.turns, "--turns")
        if not wanted.is_multi_turn and wanted.input_tokens is None:
            raise WorkloadError("--turns needs --input-tokens: how long each message is")


def _check_load(wanted: Wanted) -> None:
    for load in wanted.loads:
        if not 0 < load <= (MAX_CONCURRENCY if wanted.kind == "concurrency" else 1e6):
            raise WorkloadError(f"{wanted.kind} = {load:g}: a number above 0, {MAX_CONCURRENCY} at most")
        if wanted.kind == "concurrency" and load != int(load):
            raise WorkloadError(f"concurrency = {load:g}: a whole number")
    if wanted.requests is not None and not 1 <= wanted.requests <= MAX_REQUESTS:
        raise WorkloadError(f"requests = {wanted.requests}: from 1 to {MAX_REQUESTS}")
    if wanted.kind == "rate" and (wanted.duration_s or 0.0) * max(wanted.loads) > MAX_REQUESTS:
        raise WorkloadError(f"rate × duration: {MAX_REQUESTS} requests at most")
    if wanted.finds_capacity and wanted.kind != "rate":
        raise WorkloadError("--find-capacity searches a rate: give --rate, where it begins")
    if wanted.slo is not None:
        parse_slos(wanted.slo)
    elif wanted.finds_capacity:
        raise WorkloadError("the highest good rate can only be found with objectives: give --slo 'ttft_ms<=200'")
    if wanted.kind == "rate" and wanted.ramp_s:
        raise WorkloadError("--ramp is of clients: it does not go with --rate")
    if wanted.burstiness != 1.0 and (wanted.arrivals != "gamma" or wanted.kind != "rate"):
        raise WorkloadError("--burstiness is of --rate with --arrivals gamma")


def _prompt_tokens(wanted: Wanted) -> float:
    """Return how many tokens synthetic prompts have together, if they are long for their distribution."""
    if wanted.input_tokens is None:
        return 0.0

    each = _most(wanted.input_tokens, "--input-tokens")
    count = (wanted.requests or MOST_PROMPTS) * len(wanted.loads) * wanted.repeats
    if wanted.shared_prefixes is not None:
        each += _most(wanted.shared_prefixes[1], "--shared-prefixes")
        count = max(count, wanted.shared_prefixes[0])
    if wanted.turns is not None:
        each *= _most(wanted.turns, "--turns")
    return each * count


def _most(lengths: str, option: str) -> float:
    """Return what only one in a hundred of ``lengths`` is above."""
    return float(parse_lengths(lengths, option).at(np.array([0.99]))[0])


def _workload(wanted: Wanted, sampling: Sampling, trace: Trace | None, requests: int | None) -> Workload:
    outputs = parse_lengths(wanted.output_tokens, "--output-tokens") if wanted.output_tokens is not None else None
    count = requests if requests is not None else MOST_PROMPTS
    if trace is not None:
        return trace_prompts(trace, wanted.seed, _maker(wanted, sampling))
    if wanted.dataset is not None:
        reference = parse_reference(wanted.dataset)
        samples = read_samples(find_files(reference, wanted.cache).paths, reference.column)
        limits = TokenLimits(max_input=wanted.max_input_tokens)
        is_chat = wanted.server.api in {"openai-chat", "ollama-chat"}
        return sampled(samples, requests, wanted.seed, _counter(wanted), is_chat, limits, outputs)
    if wanted.input_tokens is not None:
        return _synthetic(wanted, sampling, count, outputs)
    found = one_prompt(wanted.prompt or DEFAULT_PROMPT, _counter(wanted))
    if outputs is None:
        return found
    return synthetic_outputs(found, outputs, count, wanted.seed)


def _conversations(wanted: Wanted, sampling: Sampling, requests: int | None) -> tuple[Conversation, ...]:
    """Return the conversations that are asked for, if they are.

    Raises:
        WorkloadError: they do not go with the rest.
    """
    if wanted.turns is None and not wanted.is_multi_turn:
        return ()
    think = parse_seconds(wanted.think_s, "--think-time") if wanted.think_s is not None else None
    if wanted.is_multi_turn and wanted.dataset is not None:
        reference = parse_reference(wanted.dataset)
        samples = read_samples(find_files(reference, wanted.cache).paths, reference.column)
        found = recorded_conversations(samples, wanted.seed, _counter(wanted), think)
        if not found:
            raise WorkloadError(f"{wanted.dataset}: no record is a conversation with answers")
        return found
    turns = parse_lengths(wanted.turns or "", "--turns")
    inputs = parse_lengths(wanted.input_tokens or "", "--input-tokens")
    outputs = parse_lengths(wanted.output_tokens, "--output-tokens") if wanted.output_tokens is not None else None
    count = min(MOST_PROMPTS, requests if requests is not None else MOST_PROMPTS)
    maker = _maker(wanted, sampling, is_content=True)
    return synthetic_conversations(count, wanted.seed, maker, turns, inputs, outputs, think)


def _synthetic(wanted: Wanted, sampling: Sampling, count: int, outputs: Distribution | None) -> Workload:
    maker, inputs = _maker(wanted, sampling), parse_lengths(wanted.input_tokens or "", "--input-tokens")
    if wanted.shared_prefixes is None:
        return synthetic(count, wanted.seed, maker, inputs, outputs)
    prefixes, length = wanted.shared_prefixes
    questions = -(-count // prefixes)
    return shared_prefixes(
        prefixes, questions, wanted.seed, maker, parse_lengths(length, "--shared-prefixes"), inputs, outputs
    )


def synthetic_outputs(one: Workload, outputs: Distribution, count: int, seed: int) -> Workload:
    """Return the one request of a workload ``count`` times, each with output tokens of its own."""
    request = one.requests[0]
    drawn = outputs.draw_whole(generator_for(seed, "output tokens"), count)
    prompts = (Prompt(request.prompt.text, request.prompt.messages, limit) for limit in drawn)
    return Workload(tuple(PlannedPrompt(prompt, request.input_tokens) for prompt in prompts), one.notes)


def _counter(wanted: Wanted) -> TokenCounter:
    if wanted.tokenizer is None:
        return EstimatedCounter()
    return TokenizerCounter(wanted.tokenizer, _COUNTINGS[wanted.server.api], wanted.system)


def _maker(wanted: Wanted, sampling: Sampling, is_content: bool = False) -> TextMaker:
    """Return what makes texts of a wanted length: by the tokenizer, or by the server's own counts."""
    if wanted.tokenizer is not None:
        counting: Counting = "content" if is_content else _COUNTINGS[wanted.server.api]
        return ExactText(TokenizerCounter(wanted.tokenizer, counting, None if is_content else wanted.system))
    return CalibratedText(calibrate(_probe(wanted, sampling)))


def _probe(wanted: Wanted, sampling: Sampling) -> Sequence[tuple[int, int]]:
    """Ask the server for the tokens of a few prompts.

    Raises:
        WorkloadError: it does not tell.
    """
    one_token = Sampling(sampling.model, 1, 0.0, None, False, sampling.system)
    bodies = [encode_request(wanted.server, one_token, Prompt(probe_text(words))) for words in PROBE_WORDS]
    with scratch() as folder:
        shape = ClosedLoop(1, requests=len(bodies))
        seen = measure(deal_out(wanted.server, bodies, shape, How(timeout_s=wanted.timeout_s), 1, folder), folder)
    counts = [int(row["prompt_tokens"]) for row in seen.rows]
    if len(counts) < len(bodies) or min(counts) < 0:
        words = "; ".join(str(note.get("error")) for note in seen.notes[:1]) or "it does not count input tokens"
        raise WorkloadError(f"the server cannot be asked how long a prompt is: {words}.\nGive --tokenizer DIR.")
    return list(zip(PROBE_WORDS, counts, strict=True))
