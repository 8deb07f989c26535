from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from agent.space import Param, active, centre, distance, distribution, json_schema, ordered
from orchestrator.errors import UserError
from orchestrator.recipe.hpo import REFERENCE_SPACE, CategoricalParam, FloatParam, IntParam
from tests.agent.spaces import points, spaces, unhurried


def test_active_condition_not_met_parameter_is_left_out() -> None:
    space: dict[str, Param] = {
        "num_layers": IntParam(low=1, high=3, when={"model_type": ("customcnn",)}),
        "model_type": CategoricalParam(choices=("resnet18", "customcnn")),
    }
    assert active(space, {"model_type": "resnet18", "num_layers": 2}) == {"model_type": "resnet18"}
    assert active(space, {"model_type": "customcnn", "num_layers": 2}) == {"model_type": "customcnn", "num_layers": 2}


def test_active_below_an_inactive_parameter_is_inactive() -> None:
    space: dict[str, Param] = {
        "a": CategoricalParam(choices=(True, False)),
        "b": CategoricalParam(choices=(1, 2), when={"a": (True,)}),
        "c": FloatParam(low=0, high=1, when={"b": (1,)}),
    }
    assert active(space, {"a": False, "b": 1, "c": 0.5}) == {"a": False}
    assert active(space, {"a": True, "b": 1, "c": 0.5}) == {"a": True, "b": 1, "c": 0.5}
    assert active(space, {"a": 1, "b": 1, "c": 0.5}) == {"a": 1}


def test_ordered_circle_of_conditions_names_its_members() -> None:
    space: dict[str, Param] = {
        "lonely": FloatParam(low=0, high=1),
        "a": CategoricalParam(choices=(1, 2), when={"b": (1,)}),
        "b": CategoricalParam(choices=(1, 2), when={"a": (1,)}),
    }
    with pytest.raises(UserError, match="conditions of a, b depend on each other in a circle"):
        ordered(space)


def test_centre_of_the_reference_space_is_the_middle_of_each_scale() -> None:
    middle = centre(REFERENCE_SPACE)
    assert middle["model_type"] == "resnet18"
    assert middle["learning_rate"] == pytest.approx(0.0054772, rel=1e-4)
    assert middle["num_epochs"] == 52
    assert "num_layers" not in middle


def test_distance_measures_on_the_parameters_own_scale() -> None:
    space: dict[str, Param] = {"x": FloatParam(low=1e-4, high=1e-2, log=True), "n": IntParam(low=0, high=10)}
    assert distance(space, {"x": 1e-4, "n": 0}, {"x": 1e-3, "n": 1}) == pytest.approx(0.5)
    assert distance(space, {"x": 1e-4, "n": 0}, {"x": 1e-4, "n": 1}) == pytest.approx(0.1)
    assert distance(space, {"x": 1e-4}, {"x": 1e-4, "n": 1}) == 1.0


@unhurried
@given(data=st.data(), space=spaces())
def test_schema_and_distributions_accept_every_point_of_the_space(
    data: st.DataObject, space: dict[str, FloatParam]
) -> None:
    point = data.draw(points(space))
    Draft202012Validator.check_schema(json_schema(space))
    assert not list(Draft202012Validator(json_schema(space)).iter_errors(point))
    for name, value in point.items():
        known = distribution(space[name])
        assert known._contains(known.to_internal_repr(value))
    chosen = active(space, point)
    assert distance(space, chosen, chosen) == 0
    assert 0 <= distance(space, active(space, centre(space)), chosen) <= 1.0000001
