"""How many tokens a server counts for a prompt, by the tokenizer in its model's directory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from client.errors import WorkloadError
from client.load.chat_template import ChatTemplate, Messages
from client.load.optional import import_optional

# content: the prompt's own text; completion: with what the tokenizer puts around it; chat: with the chat template.
Counting = Literal["content", "completion", "chat"]
# Mean of English text over the usual vocabularies; only where nothing better is known.
CHARS_PER_TOKEN = 4.0


class TokenCounter(Protocol):
    """Counts tokens of prompts and answers."""

    @property
    def is_exact(self) -> bool:
        """Whether counts are those of the model's own tokenizer."""

    def count(self, text: str) -> int:
        """Return the input tokens of a request with this prompt."""

    def count_chat(self, messages: Messages) -> int:
        """Return the input tokens of a request with these messages."""

    def count_answer(self, text: str) -> int:
        """Return the output tokens of an answer, its end mark left out."""


class EstimatedCounter:
    """Guesses by the number of characters, where there is no tokenizer."""

    is_exact = False

    def count(self, text: str) -> int:
        return max(1, round(len(text) / CHARS_PER_TOKEN))

    def count_chat(self, messages: Messages) -> int:
        return sum(self.count(content) for _, content in messages)

    def count_answer(self, text: str) -> int:
        return self.count(text)


class TokenizerCounter:
    """Counts as the engine does that serves the model.

    vLLM, SGLang and TGI put the tokenizer's special tokens around a completion's prompt, and none around a rendered
    chat template, which has its own.
    """

    is_exact = True

    def __init__(self, folder: Path, counting: Counting, system: str | None = None) -> None:
        """Load the tokenizer of ``folder``.

        Args:
            folder: A model's directory: tokenizer.json, or files that only transformers can read.
            counting: What of a request is counted.
            system: The system message that each request gets when it is sent.

        Raises:
            WorkloadError: there is no tokenizer, it cannot be read, or the library for it is missing.
        """
        self._folder, self._counting, self._system = folder, counting, system
        self._tokenizer = _load(folder)
        self._template = ChatTemplate(folder) if counting == "chat" else None

    def count(self, text: str) -> int:
        if self._template is not None:
            return self.count_chat((("user", text),))
        if self._counting == "completion":
            whole = text if self._system is None else f"{self._system}\n\n{text}"
            return len(self._tokenizer.encode(whole, True))
        return len(self.ids(text))

    def count_chat(self, messages: Messages) -> int:
        if self._template is None:
            return sum(len(self.ids(content)) for _, content in messages)
        if self._system is not None:
            messages = (("system", self._system), *messages)
        return len(self.ids(self._template.render(messages)))

    def count_answer(self, text: str) -> int:
        return len(self.ids(text))

    def ids(self, text: str) -> Sequence[int]:
        """Return the tokens of ``text`` itself."""
        return self._tokenizer.encode(text, False)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens' own spelling, sorted, without special ones."""
        return tuple(sorted(self._tokenizer.vocabulary()))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids``."""
        return self._tokenizer.decode(ids)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text itself."""
        return self._tokenizer.lengths(texts)


class _Backend(Protocol):
    def encode(self, text: str, has_special: bool) -> Sequence[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def lengths(self, texts: Sequence[str]) -> list[int]: ...
    def vocabulary(self) -> list[str]: ...


class _Fast:
    def __init__(self, path: Path) -> None:
        library = import_optional("tokenizers", f"to count tokens with {path}")
        try:
            self._own: Any = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises nothing narrower
            raise WorkloadError(f"{path}: is no tokenizer: {error}") from error
        # A file may ask for prompts to be cut or filled up; servers do neither.
        self._own.no_truncation()
        self._own.no_padding()

    def encode(self, text: str, has_special: bool) -> Sequence[int]:
        # The fast one leaves out where each token lies in the text.
        ids: list[int] = self._own.encode_batch_fast([text], add_special_tokens=has_special)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._own.decode(list(ids), skip_special_tokens=False))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(found.ids) for found in self._own.encode_batch_fast(list(texts), add_special_tokens=False)]

    def vocabulary(self) -> list[str]:
        added = {token.content for token in self._own.get_added_tokens_decoder().values()}
        return [token for token in self._own.get_vocab() if token not in added]


class _Slow:
    """A tokenizer that only transformers can load."""

    def __init__(self, folder: Path) -> None:
        library = import_optional("transformers", f"to read the tokenizer in {folder}, which has no tokenizer.json")
        try:
            self._own: Any = library.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise WorkloadError(f"{folder}: has no tokenizer that can be loaded: {error}") from error

    def encode(self, text: str, has_special: bool) -> Sequence[int]:
        ids: list[int] = self._own.encode(text, add_special_tokens=has_special)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._own.decode(list(ids), skip_special_tokens=False))

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(self.encode(text, False)) for text in texts]

    def vocabulary(self) -> list[str]:
        special = set(self._own.all_special_tokens) | set(self._own.get_added_vocab())
        return [token for token in self._own.get_vocab() if token not in special]


def _load(folder: Path) -> _Backend:
    if not folder.is_dir():
        raise WorkloadError(f"{folder}: no such directory; give that of a model's tokenizer")
    fast = folder / "tokenizer.json"
    return _Fast(fast) if fast.is_file() else _Slow(folder)
