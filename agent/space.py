"""The search space: which parameters apply, their JSON schema, their distributions, and distances between points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from agent.history import Params
from orchestrator.errors import UserError
from orchestrator.recipe.hpo import CategoricalParam, FloatParam, IntParam, Scalar

Param = FloatParam | IntParam | CategoricalParam
Space = Mapping[str, Param]


def ordered(space: Space) -> tuple[str, ...]:
    """Return the names of ``space``, each after all that its ``when`` names, otherwise as the recipe has them.

    Raises:
        UserError: conditions go round in a circle.
    """
    done: list[str] = []
    waiting = list(space)
    while waiting:
        ready = [name for name in waiting if all(other in done for other in space[name].when)]
        if not ready:
            raise UserError(
                f"job.hpo.space: the conditions of {', '.join(waiting)} depend on each other in a circle.\n"
                "Take one of their 'when' away."
            )
        done.append(ready[0])
        waiting.remove(ready[0])
    return tuple(done)


def is_active(name: str, space: Space, chosen: Params) -> bool:
    """Return whether ``name`` applies, given the active parameters chosen before it."""
    return all(
        other in chosen and any(is_same_scalar(chosen[other], value) for value in values)
        for other, values in space[name].when.items()
    )


def active(space: Space, values: Params) -> dict[str, Scalar]:
    """Return those of ``values`` whose conditions hold; a parameter below an inactive one is inactive as well."""
    chosen: dict[str, Scalar] = {}
    for name in ordered(space):
        if name in values and is_active(name, space, chosen):
            chosen[name] = values[name]
    return chosen


def centre(space: Space) -> dict[str, Scalar]:
    """Return the active parameters of the middle of the space; of categories, the first."""
    values: dict[str, Scalar] = {}
    for name, param in space.items():
        if isinstance(param, CategoricalParam):
            values[name] = param.choices[0]
            continue
        middle = math.sqrt(param.low * param.high) if param.log else (param.low + param.high) / 2
        values[name] = round(middle) if isinstance(param, IntParam) else middle
    return active(space, values)


def is_same_scalar(one: Scalar, other: Scalar) -> bool:
    """Return whether two values are the same choice: 2 and 2.0 are, 1 and true are not."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def json_schema(space: Space) -> dict[str, Any]:
    """Return the JSON schema of one proposal: every parameter required, nothing else allowed."""
    properties = {name: _value_schema(param) for name, param in space.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _value_schema(param: Param) -> dict[str, Any]:
    if isinstance(param, CategoricalParam):
        return {"enum": list(param.choices)}
    kind = "integer" if isinstance(param, IntParam) else "number"
    return {"type": kind, "minimum": param.low, "maximum": param.high}


def distribution(param: Param) -> Any:
    """Return Optuna's distribution of ``param``."""
    from optuna import distributions

    if isinstance(param, CategoricalParam):
        return distributions.CategoricalDistribution(param.choices)
    if isinstance(param, IntParam):
        return distributions.IntDistribution(param.low, param.high, log=param.log)
    return distributions.FloatDistribution(param.low, param.high, log=param.log)


def distance(space: Space, one: Params, other: Params) -> float:
    """Return how far two points are apart: the largest difference in any parameter, from 0 to 1.

    Numbers are measured on the parameter's own scale (logarithmic or linear) as a share of its range; different
    categories, and a parameter that only one of the points has, are 1 apart.
    """
    if set(one) != set(other):
        return 1.0
    return max((_difference(space[name], one[name], other[name]) for name in one if name in space), default=0.0)


def _difference(param: Param, one: Scalar, other: Scalar) -> float:
    if isinstance(param, CategoricalParam):
        return 0.0 if is_same_scalar(one, other) else 1.0
    if isinstance(one, str) or isinstance(other, str):
        return 1.0
    low, high, first, second = (float(value) for value in (param.low, param.high, one, other))
    if param.log:
        low, high, first, second = (math.log(value) for value in (low, high, first, second))
    return abs(first - second) / (high - low)
