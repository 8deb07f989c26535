"""What is sent: requests with their planned lengths, from a prompt, a data set, random text or a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from client.errors import WorkloadError
from client.load.distributions import Distribution
from client.load.prompt_files import Exchange, Sample
from client.load.seeds import generator_for
from client.load.spec import Prompt
from client.load.synthetic import TextMaker
from client.load.tokenizing import TokenCounter
from client.load.traces import Trace

# Mooncake's traces name a prompt's content in blocks of so many tokens.
TRACE_BLOCK_TOKENS = 512


class PlannedPrompt(msgspec.Struct, frozen=True):
    """One request, and how long it is meant to be.

    Attributes:
        prompt: Its ``max_tokens`` are the planned output tokens.
        input_tokens: As the server is expected to count them; None where only the server can tell.
    """

    prompt: Prompt
    input_tokens: int | None = None


@dataclass(frozen=True)
class Workload:
    """Requests in the order in which they are sent.

    Attributes:
        requests: At least one.
        notes: What a reader of the figures must know of it: what was left out, what is estimated.
    """

    requests: tuple[PlannedPrompt, ...]
    notes: tuple[str, ...] = ()

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The requests' content."""
        return tuple(request.prompt for request in self.requests)


@dataclass(frozen=True)
class Limits:
    """Which records of a data set are taken, by their tokens; None for any.

    Attributes:
        min_input, max_input: Bounds of the input tokens, both included.
        max_total: Of input and planned output tokens together: the server's context length.
    """

    min_input: int | None = None
    max_input: int | None = None
    max_total: int | None = None

    def allow(self, input_tokens: int, output_tokens: int | None) -> bool:
        """Return whether a request of such lengths is taken."""
        return (
            (self.min_input is None or input_tokens >= self.min_input)
            and (self.max_input is None or input_tokens <= self.max_input)
            and (self.max_total is None or input_tokens + (output_tokens or 0) <= self.max_total)
        )


def one_prompt(text: str, counter: TokenCounter, max_tokens: int | None = None) -> Workload:
    """Return the workload of one prompt, sent again and again.

    Raises:
        WorkloadError: it is empty.
    """
    if not text.strip():
        raise WorkloadError("the prompt is empty")
    return Workload((PlannedPrompt(Prompt(text, max_tokens=max_tokens), _exactly(counter, text)),))


def sampled(
    samples: Sequence[Sample],
    count: int | None,
    seed: int,
    counter: TokenCounter,
    is_chat: bool,
    limits: Limits = Limits(),
    output_tokens: Distribution | None = None,
    is_shuffled: bool = True,
) -> Workload:
    """Choose requests from a data set: each record once, in random order; then, if more are wanted, at random.

    Args:
        samples: The records.
        count: How many requests; None for each record that fits once.
        seed: Not negative.
        counter: For the limits, and for the lengths of recorded answers, which limit the new ones.
        is_chat: Whether the server's API takes messages.
        limits: Which records are taken.
        output_tokens: Planned output tokens instead of those of the data set.
        is_shuffled: False takes records in their own order, and again from the first if more are wanted.

    Raises:
        WorkloadError: no record fits, or one is a chat and the API takes none.
    """
    order = generator_for(seed, "sample").permutation(len(samples)) if is_shuffled else range(len(samples))
    wanted = generator_for(seed, "output tokens")
    found: list[PlannedPrompt] = []
    unusable = unfit = 0
    for number in order:
        if count is not None and len(found) == count:
            break
        sample = samples[number]
        exchange = sample.exchange()
        if exchange is None:
            unusable += 1
            continue
        limit = _planned_output(sample, exchange, counter) if output_tokens is None else None
        if output_tokens is not None:
            limit = output_tokens.draw_whole(wanted, 1)[0]
        request, input_tokens = _request(sample, exchange, counter, is_chat, limit)
        if limits.allow(input_tokens, limit):
            found.append(request)
        else:
            unfit += 1
    if not found:
        raise WorkloadError(
            f"none of {len(samples)} records can be sent: {unusable} have no question with an answer, and {unfit} are "
            "not within the limits of tokens.\nWiden the limits, or take another data set."
        )
    notes = _notes(len(found), unusable, unfit, counter)
    if count is not None and len(found) < count:
        missing, own = count - len(found), len(found)
        notes += (f"{own} records fit; {missing} of {count} requests repeat one",)
        again = generator_for(seed, "repeat").integers(0, own, missing) if is_shuffled else range(missing)
        found += [found[int(number) % own] for number in again]
    return Workload(tuple(found), notes)


def synthetic(
    count: int, seed: int, maker: TextMaker, input_tokens: Distribution, output_tokens: Distribution | None = None
) -> Workload:
    """Make prompts of random text, no two alike. Request ``i`` depends on the seed and on ``i`` alone.

    Raises:
        WorkloadError: no text of such a length can be made.
    """
    inputs = input_tokens.draw_whole(generator_for(seed, "input tokens"), count)
    outputs = _outputs(output_tokens, seed, count)
    texts = (maker.make(tokens, generator_for(seed, "prompt", index)) for index, tokens in enumerate(inputs))
    return _made(list(zip(texts, inputs, outputs, strict=True)), maker)


def shared_prefixes(
    prefixes: int,
    questions: int,
    seed: int,
    maker: TextMaker,
    prefix_tokens: Distribution,
    question_tokens: Distribution,
    output_tokens: Distribution | None = None,
) -> Workload:
    """Make ``prefixes`` × ``questions`` prompts that share their beginnings, in random order.

    Args:
        prefixes: How many beginnings.
        questions: How many different prompts begin with each.
        seed: Not negative.
        maker: Of texts; what the server puts around a prompt counts with the prefix.
        prefix_tokens: How long the beginnings are.
        question_tokens: How long the rest is.
        output_tokens: Planned output tokens; None for the workload's own.

    Raises:
        WorkloadError: no text of such a length can be made.
    """
    lengths = prefix_tokens.draw_whole(generator_for(seed, "prefix tokens"), prefixes)
    beginnings = [maker.make(tokens, generator_for(seed, "prefix", one)) for one, tokens in enumerate(lengths)]
    count = prefixes * questions
    rest = question_tokens.draw_whole(generator_for(seed, "input tokens"), count)
    outputs = _outputs(output_tokens, seed, count)
    made = []
    for index in range(count):
        tokens = lengths[index // questions] + rest[index]
        text = maker.make(tokens, generator_for(seed, "prompt", index), beginnings[index // questions])
        made.append((text, tokens, outputs[index]))
    order = generator_for(seed, "order").permutation(count)
    return _made([made[number] for number in order], maker)


def trace_prompts(trace: Trace, seed: int, maker: TextMaker, block_tokens: int = TRACE_BLOCK_TOKENS) -> Workload:
    """Make the prompts of a trace in its order: of the lengths that it tells, with the same text where it says so.

    Blocks that a prompt has in full are the same text in all prompts that name them. What the server puts around a
    prompt counts with its last block; a prompt that is shorter than that alone becomes one token longer than it.

    Raises:
        WorkloadError: the trace tells no lengths, or no text of such a length can be made.
    """
    if trace.input_tokens is None:
        raise WorkloadError("the trace does not tell the lengths of prompts: take them from a data set")
    outputs: Sequence[int | None] = trace.output_tokens or [None] * len(trace)
    blocks, least = _Blocks(seed, maker, block_tokens), maker.least_tokens() + 1
    made = []
    for index, told in enumerate(trace.input_tokens):
        tokens = max(told, least)
        ids = trace.hash_ids[index] if trace.hash_ids is not None else ()
        whole, beginning = blocks.beginning(ids, tokens)
        generator = generator_for(seed, "block", ids[whole]) if ids else generator_for(seed, "prompt", index)
        made.append((maker.make(tokens, generator, beginning), tokens, outputs[index]))
    workload = _made(made, maker)
    notes = workload.notes
    if trace.left_out:
        notes += (f"{trace.left_out} failed requests of the trace left out",)
    if short := sum(told < least for told in trace.input_tokens):
        notes += (f"{short} prompts of the trace are shorter than a request can be; they have {least} input tokens",)
    return Workload(workload.requests, notes)


class _Blocks:
    """The texts of a trace's blocks, made when they are first named."""

    def __init__(self, seed: int, maker: TextMaker, tokens: int) -> None:
        self._seed, self._maker, self._tokens = seed, maker, tokens
        self._texts: dict[int, str] = {}

    def beginning(self, ids: Sequence[int], tokens: int) -> tuple[int, str]:
        """Return how many blocks a prompt of ``tokens`` input tokens has in full, and their text."""
        whole = max(0, min(len(ids) - 1, tokens // self._tokens))
        while True:
            # Templates strip prompts: they begin without a space.
            text = "".join(self._text(number) for number in ids[:whole]).lstrip()
            if not whole or self._maker.least_tokens(text) < tokens:
                return whole, text
            whole -= 1

    def _text(self, number: int) -> str:
        if number not in self._texts:
            self._texts[number] = self._maker.block(self._tokens, generator_for(self._seed, "block", number))
        return self._texts[number]


def _planned_output(sample: Sample, exchange: Exchange, counter: TokenCounter) -> int | None:
    if sample.max_tokens is not None:
        return sample.max_tokens
    return None if exchange.answer is None else max(1, counter.count_answer(exchange.answer))


def _request(
    sample: Sample, exchange: Exchange, counter: TokenCounter, is_chat: bool, limit: int | None
) -> tuple[PlannedPrompt, int]:
    messages = exchange.messages
    if len(messages) == 1:
        text = messages[0][1]
        prompt, tokens = Prompt(text, max_tokens=limit), counter.count(text)
    elif is_chat:
        prompt, tokens = Prompt(messages=messages, max_tokens=limit), counter.count_chat(messages)
    else:
        raise WorkloadError(
            f"{sample.where}: is a chat of {len(messages)} messages, and this API takes one text.\n"
            "Use a chat API, or a data set of single prompts."
        )
    return PlannedPrompt(prompt, tokens if counter.is_exact else None), tokens


def _notes(found: int, unusable: int, unfit: int, counter: TokenCounter) -> tuple[str, ...]:
    notes = []
    if unusable:
        notes.append(f"{unusable} records without a question and its answer left out")
    if unfit:
        notes.append(f"{unfit} records beyond the limits of tokens left out, {found} taken")
    if not counter.is_exact:
        notes.append("no tokenizer: limits and lengths of answers are estimated at 4 characters per token")
    return tuple(notes)


def _exactly(counter: TokenCounter, text: str) -> int | None:
    return counter.count(text) if counter.is_exact else None


def _outputs(output_tokens: Distribution | None, seed: int, count: int) -> Sequence[int | None]:
    if output_tokens is None:
        return [None] * count
    return output_tokens.draw_whole(generator_for(seed, "output tokens"), count)


def _made(made: Sequence[tuple[str, int, int | None]], maker: TextMaker) -> Workload:
    if not made:
        raise WorkloadError("a workload has at least one request")
    requests = (
        PlannedPrompt(Prompt(text, max_tokens=limit), tokens if maker.is_exact else None)
        for text, tokens, limit in made
    )
    notes = () if maker.is_exact else ("no tokenizer: input lengths are calibrated by the server's own counts",)
    return Workload(tuple(requests), notes)
