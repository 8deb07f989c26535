"""Conversations of several turns, whose prompts grow by what was said before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import msgspec

from client.load.distributions import Distribution
from client.load.prompt_files import Sample
from client.load.seeds import generator_for
from client.load.spec import Conversation, Turn
from client.load.synthetic import TextMaker
from client.load.tokenizing import TokenCounter


def synthetic_conversations(
    count: int,
    seed: int,
    maker: TextMaker,
    turns: Distribution,
    input_tokens: Distribution,
    output_tokens: Distribution | None = None,
    think_s: Distribution | None = None,
    system_tokens: int | None = None,
) -> tuple[Conversation, ...]:
    """Make conversations of random text.

    Args:
        count: How many.
        seed: Not negative. Conversation ``i`` depends on it and on ``i`` alone.
        maker: Of texts whose content alone is counted: history and template come on top.
        turns: How many turns a conversation has.
        input_tokens: How long each message of the user is.
        output_tokens: How long each answer may be; None for the workload's own limit.
        think_s: How long the user thinks before each turn but the first, in seconds; None for not at all.
        system_tokens: The length of a system message that all conversations share; None for none.

    Raises:
        WorkloadError: no text of such a length can be made.
    """
    system = None if system_tokens is None else maker.make(system_tokens, generator_for(seed, "system"))
    found = []
    for index in range(count):
        generator = generator_for(seed, "conversation", index)
        number = turns.draw_whole(generator, 1)[0]
        inputs = input_tokens.draw_whole(generator, number)
        outputs = [None] * number if output_tokens is None else output_tokens.draw_whole(generator, number)
        pauses = _pauses(think_s, seed, index, number)
        texts = [maker.make(tokens, generator) for tokens in inputs]
        said = zip(texts, inputs, outputs, pauses, strict=True)
        found.append(
            Conversation(
                tuple(
                    Turn(text, tokens if maker.is_exact else None, limit, pause) for text, tokens, limit, pause in said
                ),
                system,
            )
        )
    return tuple(found)


def recorded_conversations(
    samples: Iterable[Sample], seed: int, counter: TokenCounter, think_s: Distribution | None = None
) -> tuple[Conversation, ...]:
    """Make conversations of recorded ones, as ShareGPT's; those that have no question with an answer are left out.

    A turn is a user's message; one after which nothing was answered ends its conversation. The length of each recorded
    answer is the limit of the new one.
    """
    found = []
    for index, sample in enumerate(samples):
        turns = _recorded_turns(sample, counter)
        if not turns:
            continue
        pauses = _pauses(think_s, seed, index, len(turns))
        system = "\n".join(content for role, content in sample.messages if role == "system")
        timed = tuple(msgspec.structs.replace(turn, think_s=pause) for turn, pause in zip(turns, pauses, strict=True))
        found.append(Conversation(timed, system or None))
    return tuple(found)


def _recorded_turns(sample: Sample, counter: TokenCounter) -> list[Turn]:
    turns: list[Turn] = []
    said = [message for message in sample.messages if message[0] in {"user", "assistant"}]
    for (role, text), (next_role, answer) in itertools.pairwise(said):
        if role != "user":
            continue
        if next_role != "assistant" or not text.strip() or not answer.strip():
            break
        tokens = counter.count_answer(text) if counter.is_exact else None
        turns.append(Turn(text, tokens, counter.count_answer(answer), answer=answer))
    return turns


def _pauses(think_s: Distribution | None, seed: int, index: int, turns: int) -> list[float]:
    if think_s is None:
        return [0.0] * turns
    drawn = think_s.draw(generator_for(seed, "think", index), turns - 1)
    return [0.0, *(float(value) for value in drawn)]
