"""Conversations of several turns, whose prompts grow by what was said before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import msgspec

from client.errors import WorkloadError
from client.load.distributions import Distribution
from client.load.prompt_files import Sample
from client.load.seeds import generator_for
from client.load.spec import Prompt
from client.load.synthetic import TextMaker
from client.load.tokenizing import TokenCounter


class Turn(msgspec.Struct, frozen=True):
    """What a user says, once the answer before it has ended.

    Attributes:
        text: The user's message alone.
        input_tokens: Those of ``text`` itself, where counted exactly; history and template come on top.
        max_tokens: Output tokens at most; None for the workload's own.
        think_s: The pause between the end of the answer before and this message, in seconds; 0 for the first turn.
        answer: What was answered when the conversation was recorded; None for a synthetic one.
    """

    text: str
    input_tokens: int | None = None
    max_tokens: int | None = None
    think_s: float = 0.0
    answer: str | None = None


class Conversation(msgspec.Struct, frozen=True):
    """Turns to be sent one after another, each with all that was said before."""

    turns: tuple[Turn, ...]
    system: str | None = None

    def prompt(self, turn: int, answers: Sequence[str]) -> Prompt:
        """Return the request of a turn.

        Args:
            turn: Counted from 0.
            answers: What was answered to each turn before it.

        Raises:
            WorkloadError: there are not as many answers as turns before this one.
        """
        if len(answers) != turn:
            raise WorkloadError(f"turn {turn} of a conversation follows on {turn} answers, not on {len(answers)}")
        said: list[tuple[str, str]] = [] if self.system is None else [("system", self.system)]
        for before, answer in zip(self.turns, answers, strict=False):
            said += [("user", before.text), ("assistant", answer)]
        said.append(("user", self.turns[turn].text))
        return Prompt(messages=tuple(said), max_tokens=self.turns[turn].max_tokens)

    def recorded_prompts(self) -> tuple[Prompt, ...]:
        """Return the requests of all turns with the recorded answers as history: they need not wait for each other.

        Raises:
            WorkloadError: an answer before the last turn is not recorded.
        """
        answers = [turn.answer for turn in self.turns[:-1]]
        known = [answer for answer in answers if answer is not None]
        if len(known) != len(answers):
            raise WorkloadError("a conversation without recorded answers can only be sent turn by turn")
        return tuple(self.prompt(number, known[:number]) for number in range(len(self.turns)))


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
