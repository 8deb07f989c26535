"""Requests chosen and made: what is sent, in what order, and how long it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from client.errors import WorkloadError
from client.load.conversations import recorded_conversations, synthetic_conversations
from client.load.distributions import parse_lengths, parse_seconds
from client.load.prompt_files import Sample, read_samples
from client.load.run import PROJECT
from client.load.spec import Prompt
from client.load.synthetic import CalibratedText, Calibration, ExactText
from client.load.tokenizing import EstimatedCounter, TokenizerCounter
from client.load.traces import Trace, read_trace
from client.load.workload import Limits, Workload, one_prompt, sampled, shared_prefixes, synthetic, trace_prompts
from tests.client.load.test_prompt_files import SHARE_GPT
from tests.client.load.vocabularies import write_trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's directory."""
    return write_trained("byte-level", tmp_path_factory.mktemp("model"))


@pytest.fixture
def counter(folder: Path) -> TokenizerCounter:
    return TokenizerCounter(folder, "completion")


def texts(count: int) -> list[Sample]:
    return [Sample(f"line {number}", (("user", "x" * number),), False, None) for number in range(1, count + 1)]


def sizes(workload: Workload) -> list[int]:
    return [len(prompt.text) for prompt in workload.prompts]


def share_gpt(folder: Path) -> list[Sample]:
    path = folder / "sharegpt.json"
    path.write_text(json.dumps(SHARE_GPT))
    return read_samples([path])


def test_records_are_taken_once_each_before_any_is_repeated() -> None:
    workload = sampled(texts(50), 120, 3, EstimatedCounter(), is_chat=False)
    found = sizes(workload)
    assert sorted(found[:50]) == list(range(1, 51))
    assert found[:50] != list(range(1, 51))
    assert len(found) == 120
    assert max(Counter(found[50:]).values()) > 2  # with replacement, not round after round
    assert "50 records fit; 70 of 120 requests repeat one" in workload.notes


def test_sample_depends_on_its_seed_and_begins_with_the_shorter() -> None:
    def chosen(count: int | None, seed: int) -> list[int]:
        return sizes(sampled(texts(50), count, seed, EstimatedCounter(), is_chat=False))

    assert chosen(30, 1) == chosen(40, 1)[:30] == chosen(None, 1)[:30] == chosen(200, 1)[:30]
    assert chosen(30, 1) != chosen(30, 2)
    assert len(chosen(None, 1)) == 50


def test_records_can_be_taken_in_their_own_order() -> None:
    found = sampled(texts(3), 7, 0, EstimatedCounter(), is_chat=False, is_shuffled=False)
    assert sizes(found) == [1, 2, 3, 1, 2, 3, 1]


def test_limits_choose_by_exact_counts(counter: TokenizerCounter) -> None:
    samples = [Sample("", (("user", " ".join(["time"] * number)),), False, 10) for number in range(1, 41)]
    workload = sampled(samples, None, 0, counter, False, Limits(min_input=10, max_input=30, max_total=35))
    counts = sorted(request.input_tokens or 0 for request in workload.requests)
    assert all(counter.count(request.prompt.text) == request.input_tokens for request in workload.requests)
    assert counts[0] >= 10
    assert counts[-1] <= 25
    assert any("beyond the limits" in note for note in workload.notes)


def test_recorded_answers_limit_the_new_ones(tmp_path: Path, counter: TokenizerCounter) -> None:
    workload = sampled(share_gpt(tmp_path), None, 0, counter, is_chat=True)
    found = {request.prompt.max_tokens: request.prompt for request in workload.requests}
    assert found == {
        counter.count_answer("Four."): Prompt(
            messages=(("system", "Be kind."), ("user", "What is two and two?")),
            max_tokens=counter.count_answer("Four."),
        ),
        counter.count_answer("A"): Prompt("Q", max_tokens=counter.count_answer("A")),
    }
    assert workload.notes == ("3 records without a question and its answer left out",)


def test_planned_outputs_may_replace_those_of_the_data() -> None:
    found = sampled(texts(100), None, 5, EstimatedCounter(), False, output_tokens=parse_lengths("uniform:5-9", "o"))
    assert {prompt.max_tokens for prompt in found.prompts} == {5, 6, 7, 8, 9}


def test_without_a_tokenizer_lengths_are_called_estimates() -> None:
    workload = sampled(texts(100), None, 0, EstimatedCounter(), False, Limits(max_input=10))
    assert max(sizes(workload)) <= 42
    assert {request.input_tokens for request in workload.requests} == {None}
    assert "no tokenizer: limits and lengths of answers are estimated at 4 characters per token" in workload.notes


def test_data_that_cannot_be_sent_is_refused(tmp_path: Path, counter: TokenizerCounter) -> None:
    with pytest.raises(
        WorkloadError, match=r"none of 5 records can be sent: 3 have no question .* and 2 are not within"
    ):
        sampled(share_gpt(tmp_path), 1, 0, counter, True, Limits(min_input=5000))
    with pytest.raises(WorkloadError, match="entry 1: is a chat of 2 messages, and this API takes one text"):
        sampled(share_gpt(tmp_path), None, 0, counter, is_chat=False)
    with pytest.raises(WorkloadError, match="the prompt is empty"):
        one_prompt(" ", counter)


def test_one_prompt_is_counted(counter: TokenizerCounter) -> None:
    (request,) = one_prompt("what time", counter, 9).requests
    assert (request.prompt.max_tokens, request.input_tokens) == (9, counter.count("what time"))


def test_synthetic_prompts_have_their_lengths_and_longer_workloads_begin_with_shorter(
    counter: TokenizerCounter,
) -> None:
    inputs, outputs = parse_lengths("mean=64,std=20,min=16,max=128", "i"), parse_lengths("uniform:1-50", "o")
    workload = synthetic(40, 11, ExactText(counter), inputs, outputs)
    assert all(counter.count(request.prompt.text) == request.input_tokens for request in workload.requests)
    assert len({request.input_tokens for request in workload.requests}) > 10
    assert len({prompt.max_tokens for prompt in workload.prompts}) > 10
    assert len({prompt.text for prompt in workload.prompts}) == 40
    assert synthetic(10, 11, ExactText(counter), inputs, outputs).requests == workload.requests[:10]
    assert synthetic(10, 12, ExactText(counter), inputs, outputs).requests != workload.requests[:10]


def test_another_process_makes_the_same_bytes(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from client.load.synthetic import ExactText\n"
        "from client.load.tokenizing import TokenizerCounter; from client.load.distributions import parse_lengths\n"
        "from client.load.workload import synthetic\n"
        "maker = ExactText(TokenizerCounter(Path(sys.argv[1]), 'chat'))\n"
        "print(*(prompt.text for prompt in synthetic(5, 3, maker, parse_lengths('uniform:40-60', 'i')).prompts))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(PROJECT)},
            capture_output=True, text=True, check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    own = synthetic(5, 3, ExactText(TokenizerCounter(folder, "chat")), parse_lengths("uniform:40-60", "i"))
    assert said == {" ".join(prompt.text for prompt in own.prompts) + "\n"}


def test_calibrated_lengths_are_not_called_exact() -> None:
    workload = synthetic(3, 0, CalibratedText(Calibration(1.0, 20.0, 0.0)), parse_lengths("60", "i"))
    assert [len(prompt.text.split()) for prompt in workload.prompts] == [40, 40, 40]
    assert workload.requests[0].input_tokens is None
    assert "calibrated" in workload.notes[0]


def test_shared_prefixes_are_shared_and_nothing_else_is(counter: TokenizerCounter) -> None:
    workload = shared_prefixes(
        3, 5, 1, ExactText(counter), parse_lengths("64", "prefix"), parse_lengths("uniform:8-16", "question")
    )
    tokens = [list(counter.ids(prompt.text)) for prompt in workload.prompts]
    groups = Counter(tuple(ids[:64]) for ids in tokens)
    assert sorted(groups.values()) == [5, 5, 5]
    assert len({tuple(ids[:66]) for ids in tokens}) == 15
    assert [len(ids) for ids in tokens] == [request.input_tokens for request in workload.requests]
    assert [tuple(ids[:64]) for ids in tokens[:5]] != [tuple(tokens[0][:64])] * 5  # in random order


def test_trace_prompts_have_its_lengths_and_share_its_blocks(folder: Path, tmp_path: Path) -> None:
    rows = [(0, 40, 5, [1, 2, 3]), (1, 43, 6, [1, 2, 4]), (2, 20, 7, [9, 2]), (3, 12, 1, [1]), (4, 45, 2, [1, 2, 4])]
    path = tmp_path / "trace.jsonl"
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    counter = TokenizerCounter(folder, "chat")
    least = counter.count("") + 1
    workload = trace_prompts(read_trace(path), 0, ExactText(counter), block_tokens=16)
    assert [counter.count(prompt.text) for prompt in workload.prompts] == [40, 43, 20, least, 45]
    assert [prompt.max_tokens for prompt in workload.prompts] == [5, 6, 7, 1, 2]
    first, second, third, _, fifth = (list(counter.ids(prompt.text)) for prompt in workload.prompts)
    assert least > 12
    assert workload.notes == (
        f"1 prompts of the trace are shorter than a request can be; they have {least} input tokens",
    )
    assert first[:16] == second[:16] == fifth[:16]
    assert first[:16] != third[:16]
    # The template leaves no room for the whole of their second block; what there is of it is the same.
    assert first[16:24] == second[16:24]
    assert second[:28] == fifth[:28]
    assert [request.input_tokens for request in workload.requests] == [40, 43, 20, least, 45]
    content = TokenizerCounter(folder, "content")
    plain = trace_prompts(read_trace(path), 0, ExactText(content), block_tokens=16)
    first, second, third, fourth, _ = (list(content.ids(prompt.text)) for prompt in plain.prompts)
    assert first[:32] == second[:32]
    assert first[32:34] != second[32:34]
    assert len(fourth) == 12
    assert third[16:18] == first[16:18]


def test_trace_without_lengths_makes_no_prompts(counter: TokenizerCounter) -> None:
    import numpy as np

    with pytest.raises(WorkloadError, match="does not tell the lengths"):
        trace_prompts(Trace(np.zeros(1), None, None, None, 0), 0, ExactText(counter))


def test_synthetic_conversations_grow_by_what_was_said(folder: Path) -> None:
    maker = ExactText(TokenizerCounter(folder, "content"))
    made = synthetic_conversations(
        6, 2, maker, parse_lengths("uniform:2-4", "turns"), parse_lengths("uniform:10-20", "i"),
        parse_lengths("8", "o"), parse_seconds("uniform:0.5-2", "think"), system_tokens=30,
    )  # fmt: skip
    assert {len(one.turns) for one in made} <= {2, 3, 4}
    assert len({one.system for one in made}) == 1
    for one in made:
        assert one.turns[0].think_s == 0.0
        assert all(0.5 <= turn.think_s <= 2 for turn in one.turns[1:])
        assert [len(maker._counter.ids(turn.text)) for turn in one.turns] == [turn.input_tokens for turn in one.turns]
    prompt = made[0].prompt(1, ["answer"])
    assert made[0].system is not None
    assert prompt.messages == (
        ("system", made[0].system), ("user", made[0].turns[0].text), ("assistant", "answer"),
        ("user", made[0].turns[1].text),
    )  # fmt: skip
    assert prompt.max_tokens == 8
    with pytest.raises(WorkloadError, match="turn 1 of a conversation follows on 1 answers, not on 0"):
        made[0].prompt(1, [])
    with pytest.raises(WorkloadError, match="only be sent turn by turn"):
        made[0].recorded_prompts()


def test_recorded_conversations_replay_what_was_answered(tmp_path: Path, counter: TokenizerCounter) -> None:
    first, second = recorded_conversations(share_gpt(tmp_path), 0, counter, parse_seconds("3", "think"))
    assert [turn.think_s for turn in first.turns] == [0.0, 3.0]
    assert [turn.text for turn in second.turns] == ["Q"]
    prompts = first.recorded_prompts()
    assert prompts[1].messages == (
        ("system", "Be kind."), ("user", "What is two and two?"), ("assistant", "Four."), ("user", "And three?"),
    )  # fmt: skip
    assert [prompt.max_tokens for prompt in prompts] == [counter.count_answer("Four."), counter.count_answer("Seven.")]
