from __future__ import annotations

import json

from agent.history import TrialView
from agent.prompts import Task, first_messages, repair_messages
from orchestrator.recipe.hpo import REFERENCE_SPACE

TASK = Task("ten digits", "best_val_accuracy", REFERENCE_SPACE, {"optimizer": "sgd"}, 40)


def complete(number: int, objective: float) -> TrialView:
    figures = {"val_accuracy": 0.111, "test_accuracy": 0.987654}
    attrs = {"figures": figures, "rationale": "r", "source": "llm"}
    return TrialView(number, "COMPLETE", {"num_epochs": number}, objective, attrs)


def text_of(trials: list[TrialView]) -> str:
    return "\n".join(message["content"] for message in first_messages(TASK, trials))


def test_first_messages_name_every_parameter_with_bounds_scale_and_condition() -> None:
    text = text_of([])
    assert "- learning_rate: a number from 0.0001 to 0.3, log scale" in text
    assert "- batch_size: one of 32, 64, 128, 256, 512" in text
    assert '- num_layers: a whole number from 2 to 6 (used only if model_type is "customcnn")' in text
    assert 'Fixed: {"optimizer":"sgd"}' in text
    assert "No trial has been run yet." in text


def test_first_messages_show_five_best_and_five_recent_only() -> None:
    trials = [complete(number, 0.9 - number / 1000) for number in range(40)]
    text = text_of(trials)
    shown = [number for number in range(40) if f'{{"num_epochs":{number}}}' in text]
    assert shown == [0, 1, 2, 3, 4, 35, 36, 37, 38, 39]
    assert "Propose trial 40" in text
    # Two characters a token at the very worst, of a model with 4096 tokens.
    assert len(text) < 4000


def test_first_messages_show_failures_with_cause_and_running_trials() -> None:
    failed = TrialView(0, "FAIL", {"batch_size": 512}, None, {"cause": "OUT_OF_MEMORY: it\nused too much " + "x" * 500})
    cut_off = TrialView(1, "FAIL", {"batch_size": 64}, None, {"interrupted": True})
    running = TrialView(2, "RUNNING", {"batch_size": 32})
    text = text_of([failed, cut_off, running])
    assert '{"batch_size":512} failed: OUT_OF_MEMORY: it used too much xxx' in text
    assert 'Running trials:\n- {"batch_size":32}' in text
    assert '{"batch_size":64}' not in text
    assert "x" * 200 not in text


def test_first_messages_never_show_test_accuracy() -> None:
    text = text_of([complete(0, 0.5)])
    assert "0.987654" not in text
    assert "test" not in text.lower()


def test_repair_messages_quote_the_reason_and_the_answer_only_if_given() -> None:
    asked = first_messages(TASK, [])
    with_answer = repair_messages(asked, '{"a":1}', "a is missing")
    assert [message["role"] for message in with_answer] == ["system", "user", "assistant", "user"]
    assert "a is missing" in with_answer[-1]["content"]
    without = repair_messages(asked, None, "this repeats trial 3")
    assert [message["role"] for message in without] == ["system", "user"]
    assert without[-1]["content"].startswith(asked[-1]["content"])
    assert "this repeats trial 3" in without[-1]["content"]
    assert json.dumps(asked) == json.dumps(first_messages(TASK, []))
