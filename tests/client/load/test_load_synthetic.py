"""Texts of exact lengths, by tokenizers of every kind, and by a server's counts alone."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from client.errors import WorkloadError
from client.load.chat_template import ChatTemplate
from client.load.seeds import generator_for
from client.load.synthetic import PROBE_WORDS, CalibratedText, ExactText, calibrate, probe_text
from client.load.tokenizing import Counting, EstimatedCounter, TokenizerCounter
from client.load.words import WORDS
from tests.client.load.vocabularies import TRAINED, write_smollm, write_trained

COUNTINGS: tuple[Counting, ...] = ("content", "completion", "chat")


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a real model's tokenizer."""
    return write_smollm(tmp_path_factory.mktemp("smollm"))


@pytest.fixture(scope="module", params=["smollm", *TRAINED])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's directory, of each kind of tokenizer."""
    if request.param == "smollm":
        found: Path = request.getfixturevalue("smollm")
        return found
    return write_trained(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tokenizer that puts <s> first."""
    return write_trained("sentence-piece", tmp_path_factory.mktemp("llama"))


@lru_cache
def reference(folder: Path) -> Any:
    """Return the tokenizer itself."""
    import tokenizers

    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    own.no_truncation()
    return own


def served_count(folder: Path, counting: Counting, text: str) -> int:
    """Count as a server does."""
    if counting == "chat":
        text = ChatTemplate(folder).render([("user", text)])
    return len(reference(folder).encode(text, add_special_tokens=counting == "completion").ids)


@pytest.mark.parametrize("counting", COUNTINGS)
def test_every_length_is_exact(folder: Path, counting: Counting) -> None:
    maker = ExactText(TokenizerCounter(folder, counting))
    lengths = [*range(maker.least_tokens(), maker.least_tokens() + 12), 100, 517]
    for index, tokens in enumerate(lengths):
        text = maker.make(tokens, generator_for(5, "prompt", index))
        assert served_count(folder, counting, text) == tokens
        assert text == text.strip()


def test_same_seed_gives_the_same_text_and_no_two_prompts_are_alike(folder: Path) -> None:
    first, second = (ExactText(TokenizerCounter(folder, "content")) for _ in range(2))
    texts = [first.make(64, generator_for(9, "prompt", index)) for index in range(20)]
    assert texts == [second.make(64, generator_for(9, "prompt", index)) for index in range(20)]
    assert len({text[:16] for text in texts}) == 20


def test_text_goes_on_after_its_beginning_with_the_same_tokens(folder: Path) -> None:
    counter = TokenizerCounter(folder, "content")
    maker = ExactText(counter)
    beginning = maker.make(80, generator_for(1, "prefix"))
    text = maker.make(130, generator_for(1, "prompt"), beginning)
    assert text.startswith(beginning)
    assert counter.count(text) == 130
    if "spaceless" not in str(folder):  # there the last tokens of the beginning join with what follows
        assert list(counter.ids(text))[:80] == list(counter.ids(beginning))


def test_what_the_server_adds_counts(llama: Path) -> None:
    content, completion, chat = (TokenizerCounter(llama, counting) for counting in COUNTINGS)
    assert completion.count("time") == content.count("time") + 1
    rendered = "<s>[user] time [assistant]"
    assert chat.count(" time ") == content.count(rendered)
    assert chat.count_answer("time") == content.count("time")


def test_system_message_counts_as_it_is_sent(llama: Path) -> None:
    content = TokenizerCounter(llama, "content")
    chat = TokenizerCounter(llama, "chat", system="go home")
    assert chat.count("time") == content.count("<s>[system] go home[user] time [assistant]")
    completion = TokenizerCounter(llama, "completion", system="go home")
    assert completion.count("time") == content.count("go home\n\ntime") + 1


def test_length_below_what_the_server_adds_is_refused(llama: Path) -> None:
    maker = ExactText(TokenizerCounter(llama, "chat"))
    overhead = maker.least_tokens()
    with pytest.raises(WorkloadError, match=f"of {overhead - 1} input tokens cannot be made: .* has {overhead} alone"):
        maker.make(overhead - 1, generator_for(0, "prompt"))


def test_roles_that_a_template_refuses_are_an_error(llama: Path) -> None:
    with pytest.raises(WorkloadError, match="refuses messages of user, tool: no such role"):
        TokenizerCounter(llama, "chat").count_chat((("user", "a"), ("tool", "b")))


def test_directories_without_what_is_needed_are_refused(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(WorkloadError, match="no such directory"):
        TokenizerCounter(tmp_path / "none", "content")
    (tmp_path / "tokenizer.json").write_bytes((llama / "tokenizer.json").read_bytes())
    with pytest.raises(WorkloadError, match="has no chat template"):
        TokenizerCounter(tmp_path, "chat")
    config = {"chat_template": [{"name": "default", "template": "{{ oh"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(WorkloadError, match="the chat template is broken"):
        TokenizerCounter(tmp_path, "chat")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WorkloadError, match="is no tokenizer"):
        TokenizerCounter(tmp_path, "content")


@pytest.mark.parametrize(("per_word", "overhead"), [(1.0, 0), (1.0, 31), (1.37, 5)])
def test_calibrated_text_has_the_length_that_the_server_counts(per_word: float, overhead: int) -> None:
    def served(text: str) -> int:
        return round(overhead + per_word * len(text.split()))

    maker = CalibratedText(calibrate([(words, served(probe_text(words))) for words in PROBE_WORDS]))
    beginning = maker.make(200, generator_for(2, "prefix"))
    for tokens in (40, 77, 512, 4000):
        text = maker.make(tokens, generator_for(2, "prompt", tokens))
        assert abs(served(text) - tokens) <= per_word / 2 + 0.5 + 0.001 * tokens
        if per_word == 1.0:
            assert served(text) == tokens
    longer = maker.make(333, generator_for(2, "prompt"), beginning)
    assert longer.startswith(f"{beginning} ")
    assert abs(served(longer) - 333) <= per_word / 2 + 0.5
    with pytest.raises(WorkloadError, match=r"input tokens cannot be made: .* longer beginning"):
        maker.make(197, generator_for(2, "prompt"), beginning)


def test_words_are_one_token_each_for_a_real_model(smollm: Path) -> None:
    counter = TokenizerCounter(smollm, "chat")
    assert counter.lengths([f"a {word}" for word in WORDS]) == [2] * len(WORDS)
    measured = [(words, counter.count(probe_text(words))) for words in PROBE_WORDS]
    text = CalibratedText(calibrate(measured)).make(777, generator_for(0, "prompt"))
    assert counter.count(text) == 777


@pytest.mark.parametrize(
    "measured",
    [[(1, 10), (64, 73), (512, 256)], [(1, 30), (64, 30), (512, 30)], [(1, 3), (64, 66), (512, 2)]],
    ids=["cut", "no growth", "cached"],
)
def test_server_that_cuts_or_caches_cannot_be_calibrated(measured: list[tuple[int, int]]) -> None:
    with pytest.raises(WorkloadError, match="do not grow in proportion"):
        calibrate(measured)


def test_one_length_is_no_calibration() -> None:
    with pytest.raises(WorkloadError, match="at least two lengths"):
        calibrate([(5, 6), (5, 6)])


def test_estimate_is_told_from_a_count() -> None:
    counter = EstimatedCounter()
    assert (counter.is_exact, counter.count("x" * 400), counter.count("x")) == (False, 100, 1)
    assert counter.count_chat((("user", "x" * 40), ("assistant", "y" * 40))) == 20


def test_tokenizer_that_only_transformers_can_load_counts_the_same(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pytest.importorskip("transformers", reason="transformers comes with the engine, not with the client")
    fast = write_trained("byte-level", tmp_path_factory.mktemp("fast"))
    model = json.loads((fast / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    counter = TokenizerCounter(tmp_path, "completion")
    text = ExactText(counter).make(50, generator_for(0, "prompt"))
    assert counter.count(text) == served_count(fast, "content", text) == 50
    with pytest.raises(WorkloadError, match="has no tokenizer that can be loaded"):
        TokenizerCounter(tmp_path_factory.mktemp("empty"), "content")
