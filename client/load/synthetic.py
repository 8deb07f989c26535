"""Texts of a wanted number of tokens: exact with a tokenizer, calibrated by the server's usage without one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from client.errors import WorkloadError
from client.load.seeds import generator_for
from client.load.tokenizing import TokenizerCounter
from client.load.words import WORDS

MAX_ROUNDS = 100
# So many tokens of a vocabulary are tried out at most, and so many that pass are enough for random texts.
MAX_CANDIDATES = 8192
ENOUGH_WORDS = 64
# Lengths in words that span what is usual, for the texts by which a server is calibrated.
PROBE_WORDS = (1, 64, 512)
# A line may miss a count by so many tokens, or by so much of it: words are not one token each in every vocabulary.
MAX_MISFIT_TOKENS, MAX_MISFIT = 2.0, 0.05
# A word without a space before it is one token less often than one with it; this one always is.
FIRST_WORD = "the"
_WORD = re.compile("[A-Za-z]{2,}")
_SPACE_MARKS = ("Ġ", "▁")  # of byte-level BPE, and of SentencePiece


class TextMaker(Protocol):
    """Makes random texts of a wanted length."""

    @property
    def is_exact(self) -> bool:
        """Whether lengths hold exactly."""

    def least_tokens(self, beginning: str = "") -> int:
        """Return the input tokens of a request whose prompt is ``beginning`` and no more."""

    def make(self, tokens: int, generator: np.random.Generator, beginning: str = "") -> str:
        """Return a text that begins with ``beginning`` and of which a request has ``tokens`` input tokens in all.

        Raises:
            WorkloadError: no text is as short as that, or none could be found.
        """

    def block(self, tokens: int, generator: np.random.Generator) -> str:
        """Return about ``tokens`` tokens of text, the overhead left out, to be put together with other blocks."""


@dataclass(frozen=True)
class _Pieces:
    """Texts of one token each.

    Attributes:
        first: What may begin a prompt.
        space: What goes before one of ``first`` that goes on.
        next: What may go on.
    """

    first: tuple[str, ...]
    space: str
    next: tuple[str, ...]


class ExactText:
    """Random words of a tokenizer's own vocabulary, counted again until the number holds."""

    is_exact = True

    def __init__(self, counter: TokenizerCounter) -> None:
        self._counter = counter

    def least_tokens(self, beginning: str = "") -> int:
        return self._counter.count(beginning) if beginning else self._overhead_tokens

    @cached_property
    def _overhead_tokens(self) -> int:
        return self._counter.count("")

    def make(self, tokens: int, generator: np.random.Generator, beginning: str = "") -> str:
        floor = self.least_tokens(beginning)
        if floor > tokens:
            what = "what the server puts around a prompt" + (", with what it begins with," if beginning else "")
            raise WorkloadError(f"a prompt of {tokens} input tokens cannot be made: {what} has {floor} alone")
        opening = self._pieces.space if beginning else ""
        pieces = self._begin(opening, tokens - floor, generator)
        for attempt in range(MAX_ROUNDS):
            text = beginning + "".join(pieces)
            missing = tokens - self._counter.count(text)
            if missing == 0:
                return text
            if missing < 0:
                del pieces[missing:]
            if attempt >= 2:
                # What joins here adds or loses tokens: another end, and now and then another beginning.
                kept = 0 if attempt % 8 == 7 else max(0, len(pieces) - 1)
                missing = max(0, missing) + len(pieces) - kept
                del pieces[kept:]
            if pieces:
                pieces += self._go_on(max(0, missing), generator)
            else:
                pieces = self._begin(opening, missing, generator)
        raise WorkloadError(
            f"no text of exactly {tokens} input tokens was found in {MAX_ROUNDS} attempts with this tokenizer"
        )

    def block(self, tokens: int, generator: np.random.Generator) -> str:
        # It may come to begin a prompt, and is as many tokens there.
        return "".join(self._begin(self._pieces.space, tokens, generator))

    def _begin(self, opening: str, count: int, generator: np.random.Generator) -> list[str]:
        if count < 1:
            return []
        first = self._pieces.first
        return [opening + first[int(generator.integers(0, len(first)))], *self._go_on(count - 1, generator)]

    def _go_on(self, count: int, generator: np.random.Generator) -> list[str]:
        pieces = self._pieces.next
        return [pieces[number] for number in generator.integers(0, len(pieces), count)]

    @cached_property
    def _pieces(self) -> _Pieces:
        """Words of one token each, with the space before them, that do not join with what is beside them.

        A prompt begins without a space, which chat templates would strip. Where a vocabulary has no such words, what
        its ordinary tokens stand for; these may join.
        """
        counter = self._counter
        words = sorted({word for token in counter.vocabulary if (word := _word(token))})
        if len(words) > MAX_CANDIDATES:
            chosen = generator_for(0, "candidates").permutation(len(words))[:MAX_CANDIDATES]
            words = [words[number] for number in sorted(chosen)]
        frame, *counted = counter.lengths(["a a", *(f"a {word} a" for word in words)])
        fit = [word for word, length in zip(words, counted, strict=True) if length == frame + 1]
        if len(fit) >= ENOUGH_WORDS:
            alone = counter.lengths([f"{word} a" for word in fit])
            first = [word for word, length in zip(fit, alone, strict=True) if length == frame]
            return _Pieces(tuple(first or fit), " ", tuple(f" {word}" for word in fit))
        texts = {counter.decode([number]) for token in counter.vocabulary for number in counter.ids(token)}
        found = tuple(sorted(text for text in texts if text.isprintable() and text.strip() and "\ufffd" not in text))
        if not found:
            raise WorkloadError("the tokenizer's vocabulary has no token that is text: no prompt can be made of it")
        return _Pieces(tuple(text.lstrip() for text in found), "", found)


def _word(token: str) -> str | None:
    """Return the word that a token is, with or without the mark of the space before it."""
    bare = token[1:] if token.startswith(_SPACE_MARKS) else token
    return bare if _WORD.fullmatch(bare) else None


@dataclass(frozen=True)
class Calibration:
    """How a server counts texts of WORDS: ``overhead_tokens + words * tokens_per_word``.

    Attributes:
        error_tokens: By how many tokens the line missed what was measured, at most.
    """

    tokens_per_word: float
    overhead_tokens: float
    error_tokens: float


def probe_text(words: int, seed: int = 0) -> str:
    """Return a text of so many words by which a server can be calibrated."""
    return _begin(words, generator_for(seed, "probe", words))


def calibrate(measured: Sequence[tuple[int, int]]) -> Calibration:
    """Fit a line to pairs of words in a prompt, as made by ``probe_text``, and input tokens by the server's usage.

    Raises:
        WorkloadError: less than two lengths, or no line: the server cuts prompts, or leaves out cached tokens.
    """
    words = np.array([pair[0] for pair in measured], dtype=np.float64)
    tokens = np.array([pair[1] for pair in measured], dtype=np.float64)
    if len(set(words)) < 2:
        raise WorkloadError("a server is calibrated by prompts of at least two lengths")
    spread = words - words.mean()
    slope = float((spread * tokens).sum() / (spread * spread).sum())
    overhead = float(tokens.mean() - slope * words.mean())
    misfit = np.abs(overhead + slope * words - tokens)
    if slope <= 0 or bool(np.any(misfit > np.maximum(MAX_MISFIT_TOKENS, MAX_MISFIT * tokens))):
        pairs = ", ".join(f"{one} words: {two} tokens" for one, two in measured)
        raise WorkloadError(
            f"the server's counts of input tokens do not grow in proportion to the prompt ({pairs}).\n"
            "It may cut long prompts or leave out cached ones; give the directory of the model's tokenizer instead."
        )
    return Calibration(slope, overhead, float(misfit.max()))


class CalibratedText:
    """Random common words, as many as a server counts the wanted number of tokens for."""

    is_exact = False

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    def least_tokens(self, beginning: str = "") -> int:
        found = self._calibration
        return round(found.overhead_tokens + found.tokens_per_word * len(beginning.split()))

    def make(self, tokens: int, generator: np.random.Generator, beginning: str = "") -> str:
        per_word, overhead = self._calibration.tokens_per_word, self._calibration.overhead_tokens
        wanted = round((tokens - overhead) / per_word)
        missing = wanted - len(beginning.split())
        if wanted < 1 or missing < 0:
            what = f"{overhead:.0f} are around every prompt" + (", and it has a longer beginning" if beginning else "")
            raise WorkloadError(f"a prompt of {tokens} input tokens cannot be made: {what}")
        if not beginning:
            return _begin(missing, generator)
        return beginning + _continue(missing, generator)

    def block(self, tokens: int, generator: np.random.Generator) -> str:
        return _continue(round(tokens / self._calibration.tokens_per_word), generator)


def _begin(count: int, generator: np.random.Generator) -> str:
    return FIRST_WORD + _continue(count - 1, generator)


def _continue(count: int, generator: np.random.Generator) -> str:
    return "".join(f" {WORDS[number]}" for number in generator.integers(0, len(WORDS), count))
