"""Hypothesis strategies for search spaces and points in them."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from agent.space import Param, Space
from orchestrator.recipe.hpo import CategoricalParam, FloatParam, IntParam

# Jobs of other tests may have the machine: how long one example takes says nothing.
unhurried = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = ("model_type", "learning_rate", "batch_size", "num_epochs", "weight_decay", "dropout_rate")
scalars = st.one_of(st.booleans(), st.integers(-1000, 1000), st.sampled_from(["sgd", "adamw", "", "ä"]))


@st.composite
def params(draw: st.DrawFn) -> Param:
    kind = draw(st.sampled_from(["float", "int", "categorical"]))
    if kind == "categorical":
        drawn = draw(st.lists(scalars, min_size=1, max_size=5, unique_by=lambda value: (type(value).__name__, value)))
        return CategoricalParam(choices=tuple(drawn))
    log = draw(st.booleans())
    if kind == "int":
        low = draw(st.integers(1 if log else -1000, 1000))
        return IntParam(low=low, high=low + draw(st.integers(1, 1000)), log=log)
    low_value = draw(st.floats(1e-6 if log else -1e3, 1e3))
    return FloatParam(low=low_value, high=low_value + draw(st.floats(1e-3, 1e3)), log=log)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    names: list[str] = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=6, unique=True))
    space: dict[str, Param] = {}
    for name in names:
        param = draw(params())
        switches = [other for other, known in space.items() if isinstance(known, CategoricalParam)]
        is_conditional: bool = draw(st.booleans())
        if switches and is_conditional:
            other = draw(st.sampled_from(switches))
            choices = space[other].choices  # type: ignore[union-attr]
            param = param.model_copy(update={"when": {other: (draw(st.sampled_from(choices)),)}})
        space[name] = param
    return space


def values_of(param: Param) -> st.SearchStrategy[Any]:
    if isinstance(param, CategoricalParam):
        return st.sampled_from(param.choices)
    if isinstance(param, IntParam):
        whole = st.integers(param.low, param.high)
        return st.one_of(whole, whole.map(float))
    return st.floats(param.low, param.high)


def wrong_values_of(param: Param) -> st.SearchStrategy[Any]:
    """Values that JSON can say and that the parameter must not take."""
    foreign = st.sampled_from([None, [], {}, [1], {"value": 1}])
    if isinstance(param, CategoricalParam):
        return st.one_of(foreign, st.sampled_from(["no such choice", 123456, 0.5]))
    far = st.floats(1e-3, 1e6).map(lambda step: param.high + step)
    near = st.floats(1e-3, 1e6).map(lambda step: param.low - step)
    texts = st.sampled_from(["high", str(param.low), True, False])
    fractions = [st.just(param.low + 0.5)] if isinstance(param, IntParam) else []
    return st.one_of(foreign, far, near, texts, *fractions)


@st.composite
def points(draw: st.DrawFn, space: Space) -> dict[str, Any]:
    return {name: draw(values_of(param)) for name, param in space.items()}
