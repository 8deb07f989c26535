from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.history import TrialView
from agent.proposals import RATIONALE_MAX_CHARS, DuplicateError, RejectedError, read_proposal
from agent.space import Param, Space
from orchestrator.recipe.hpo import CategoricalParam, FloatParam, IntParam
from tests.agent.spaces import points, spaces, unhurried, wrong_values_of

SPACE: dict[str, Param] = {
    "learning_rate": FloatParam(low=1e-4, high=0.1, log=True),
    "batch_size": CategoricalParam(choices=(32, 64)),
    "num_epochs": IntParam(low=1, high=100),
    "augment": CategoricalParam(choices=(True, False)),
}
GOOD: dict[str, Any] = {
    "learning_rate": 0.01,
    "batch_size": 64,
    "num_epochs": 5,
    "augment": True,
    "rationale": "why not",
}


def read(document: dict[str, Any], *trials: TrialView) -> dict[str, Any]:
    return dict(read_proposal(json.dumps(document), SPACE, trials).params)


def earlier(number: int = 0, state: str = "COMPLETE", **changes: Any) -> TrialView:
    params = {name: value for name, value in {**GOOD, **changes}.items() if name in SPACE}
    attrs = {"interrupted": True} if changes.get("interrupted") else {}
    return TrialView(number, state, params, 0.5 if state == "COMPLETE" else None, attrs)


@unhurried
@given(data=st.data(), space=spaces())
def test_read_proposal_every_valid_point_is_accepted_unchanged(data: st.DataObject, space: Space) -> None:
    point = data.draw(points(space))
    proposal = read_proposal(json.dumps({**point, "rationale": "x"}), space, ())
    for name, value in proposal.params.items():
        assert value == point[name]
        assert isinstance(value, bool) == isinstance(point[name], bool)
        if isinstance(space[name], IntParam):
            assert type(value) is int
        if isinstance(space[name], FloatParam):
            assert type(value) is float


@unhurried
@given(data=st.data(), space=spaces())
def test_read_proposal_one_wrong_value_is_rejected_and_named(data: st.DataObject, space: Space) -> None:
    point = data.draw(points(space))
    name = data.draw(st.sampled_from(sorted(space)))
    wrong = data.draw(wrong_values_of(space[name]))
    with pytest.raises(RejectedError, match=f"^{name} is "):
        read_proposal(json.dumps({**point, name: wrong, "rationale": "x"}), space, ())


@unhurried
@given(data=st.data(), space=spaces())
def test_read_proposal_missing_and_unknown_keys_are_rejected(data: st.DataObject, space: Space) -> None:
    point = {**data.draw(points(space)), "rationale": "x"}
    gone = data.draw(st.sampled_from(sorted(point)))
    less = {name: value for name, value in point.items() if name != gone}
    with pytest.raises(RejectedError, match=f"{gone} is missing"):
        read_proposal(json.dumps(less), space, ())
    with pytest.raises(RejectedError, match="unknown keys: 'momentum'"):
        read_proposal(json.dumps({**point, "momentum": 0.9}), space, ())


@unhurried
@given(text=st.text())
def test_read_proposal_any_text_is_rejected_and_nothing_else_is_raised(text: str) -> None:
    with pytest.raises(RejectedError):
        read_proposal(text, SPACE, ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not one JSON object"),
        ("null", "must be one JSON object"),
        ("[]", "must be one JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"learning_rate": ' + "1" * 5000 + "}", "too long"),
        (json.dumps(GOOD) + json.dumps(GOOD), "not one JSON object"),
        ("```json\n" + json.dumps(GOOD) + "\n```", "not one JSON object"),
        (json.dumps(GOOD).replace("0.01", "NaN"), "NaN is not a number"),
        (json.dumps(GOOD).replace("0.01", "-Infinity"), "-Infinity is not a number"),
        (
            json.dumps(GOOD).replace("0.01", "1e400"),
            "learning_rate is Infinity, but must be a number from 0.0001 to 0.1",
        ),
        (json.dumps(GOOD).replace('"num_epochs"', '"batch_size"'), "'batch_size' stands twice"),
        (json.dumps({**GOOD, "learning_rate": "0.01"}), 'learning_rate is "0.01"'),
        (json.dumps({**GOOD, "learning_rate": True}), "learning_rate is true"),
        (json.dumps({**GOOD, "num_epochs": 2.5}), "num_epochs is 2.5, but must be a whole number from 1 to 100"),
        (json.dumps({**GOOD, "augment": 1}), "augment is 1, but must be one of true, false"),
        (json.dumps({**GOOD, "rationale": "x" * (RATIONALE_MAX_CHARS + 1)}), "rationale must be a text of at most 160"),
        (json.dumps({**GOOD, "rationale": None}), "rationale must be a text"),
        (json.dumps({**GOOD, "batch_size": 48, "num_epochs": 0}), "batch_size is 48, but .*; num_epochs is 0, but"),
    ],
)
def test_read_proposal_broken_answers_are_rejected_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(RejectedError, match=reason):
        read_proposal(text, SPACE, ())


def test_read_proposal_whole_floats_are_whole_numbers() -> None:
    read_params = read({**GOOD, "num_epochs": 5.0, "batch_size": 64.0})
    assert (type(read_params["num_epochs"]), type(read_params["batch_size"])) == (int, int)


def test_read_proposal_bounds_themselves_are_inside() -> None:
    for learning_rate in (1e-4, 0.1):
        assert read({**GOOD, "learning_rate": learning_rate})["learning_rate"] == learning_rate
    for outside in (math.nextafter(1e-4, 0), math.nextafter(0.1, 1)):
        with pytest.raises(RejectedError, match="learning_rate"):
            read({**GOOD, "learning_rate": outside})


@pytest.mark.parametrize("state", ["COMPLETE", "FAIL", "RUNNING"])
def test_read_proposal_repetition_of_any_trial_is_rejected_with_its_number(state: str) -> None:
    with pytest.raises(DuplicateError, match=r"repeats trial 7 .*learning_rate 0\.01"):
        read(GOOD, earlier(3, learning_rate=0.05), earlier(7, state))


def test_read_proposal_nearly_the_same_is_a_repetition_and_clearly_different_is_not() -> None:
    with pytest.raises(DuplicateError):
        read({**GOOD, "learning_rate": 0.0104}, earlier())
    assert read({**GOOD, "learning_rate": 0.0115}, earlier())
    assert read({**GOOD, "batch_size": 32}, earlier())
    assert read({**GOOD, "num_epochs": 6}, earlier())


def test_read_proposal_interrupted_trial_may_be_repeated() -> None:
    assert read(GOOD, earlier(0, "FAIL", interrupted=True))


def test_read_proposal_inactive_parameters_do_not_make_a_difference() -> None:
    space: dict[str, Param] = {
        "model_type": CategoricalParam(choices=("resnet18", "customcnn")),
        "num_layers": IntParam(low=2, high=6, when={"model_type": ("customcnn",)}),
    }
    first = read_proposal('{"model_type":"resnet18","num_layers":2,"rationale":""}', space, ())
    assert first.params == {"model_type": "resnet18"}
    trial = TrialView(0, "COMPLETE", first.params, 0.5)
    with pytest.raises(DuplicateError):
        read_proposal('{"model_type":"resnet18","num_layers":6,"rationale":""}', space, [trial])
