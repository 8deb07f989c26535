"""What a model answered, judged: parsed, typed, bounded and new, or rejected with the reason. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from agent.history import Params, TrialView
from agent.space import Space, active, distance, is_same_scalar, json_schema
from orchestrator.recipe.hpo import CategoricalParam, FloatParam, IntParam, Scalar

RATIONALE = "rationale"
RATIONALE_MAX_CHARS = 160
# Two points closer than this share of every parameter's range are the same experiment up to its noise.
DUPLICATE_DISTANCE = 0.01
_MAX_REASONS = 4


class RejectedError(Exception):
    """A proposal that cannot be used; ``str()`` is the reason, in words for the model."""


class DuplicateError(RejectedError):
    """A proposal that repeats an earlier trial."""


@dataclass(frozen=True)
class Proposal:
    """A candidate that can be run.

    Attributes:
        params: Active parameters only, each of its own type and within its bounds.
        rationale: The model's own words, one line.
    """

    params: Params
    rationale: str


def proposal_schema(space: Space) -> dict[str, Any]:
    """Return the JSON schema of the model's answer: the parameters, then a short rationale."""
    schema = json_schema(space)
    schema["properties"][RATIONALE] = {"type": "string", "maxLength": RATIONALE_MAX_CHARS}
    schema["required"] = [*schema["required"], RATIONALE]
    return schema


def read_proposal(text: str, space: Space, trials: Iterable[TrialView]) -> Proposal:
    """Return the proposal in ``text``. Nothing is clamped, guessed or filled in.

    Args:
        text: The model's whole answer.
        space: What may be proposed.
        trials: Earlier trials, of which it must not be a repetition.

    Raises:
        DuplicateError: it repeats an earlier trial.
        RejectedError: it cannot be used; says everything that is wrong with it.
    """
    document = parse_strictly(text)
    schema = proposal_schema(space)
    errors = sorted(Draft202012Validator(schema).iter_errors(document), key=lambda error: list(map(str, error.path)))
    if errors:
        raise RejectedError("; ".join([_say(error, space) for error in errors[:_MAX_REASONS]]))
    values = {name: _typed(param, document[name]) for name, param in space.items()}
    params = active(space, values)
    repeated = find_duplicate(space, params, trials)
    if repeated is not None:
        raise DuplicateError(_say_duplicate(repeated))
    return Proposal(params, " ".join(document[RATIONALE].split()))


def parse_strictly(text: str) -> Any:
    """Return the JSON value of ``text``.

    Raises:
        RejectedError: it is not one JSON value, a key stands twice, or a number is NaN or infinite.
    """
    try:
        return json.loads(text, object_pairs_hook=_reject_twice, parse_constant=_reject_constant)
    except RecursionError:
        raise RejectedError("the answer is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RejectedError(f"the answer is not one JSON object: {error.msg} at character {error.pos}") from error
    except ValueError as error:  # a whole number with thousands of digits
        raise RejectedError("the answer holds a number that is too long") from error


def find_duplicate(space: Space, params: Params, trials: Iterable[TrialView]) -> TrialView | None:
    """Return the earlier trial that ``params`` would repeat, or None."""
    return next(
        (
            trial
            for trial in trials
            if not trial.is_interrupted and distance(space, params, trial.params) < DUPLICATE_DISTANCE
        ),
        None,
    )


def _reject_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise RejectedError(f"the key {key[:40]!r} stands twice")
        result[key] = value
    return result


def _reject_constant(name: str) -> Any:
    raise RejectedError(f"{name} is not a number")


def _typed(param: FloatParam | IntParam | CategoricalParam, value: Any) -> Scalar:
    """Return a checked value in the parameter's own type: 2.0 is the whole number 2, 1 the real number 1.0."""
    if isinstance(param, CategoricalParam):
        return next(choice for choice in param.choices if is_same_scalar(choice, value))
    return int(value) if isinstance(param, IntParam) else float(value)


def _say(error: ValidationError, space: Space) -> str:
    """Return what is wrong, in words that a small model can act on."""
    if not error.path:
        return _say_keys(error, space)
    name = str(error.path[0])
    if name == RATIONALE:
        return f"{RATIONALE} must be a text of at most {RATIONALE_MAX_CHARS} characters"
    shown = json.dumps(error.instance, ensure_ascii=False)[:60]
    return f"{name} is {shown}, but must be {describe_allowed(space[name])}"


def _say_keys(error: ValidationError, space: Space) -> str:
    if not isinstance(error.instance, dict):
        return "the answer must be one JSON object"
    expected = [*space, RATIONALE]
    missing = [key for key in expected if key not in error.instance]
    if error.validator == "required":
        # There is one error for each missing key; its message begins with the key's repr.
        return next(f"{key} is missing" for key in missing if error.message.startswith(repr(key)))
    unknown = sorted(key for key in error.instance if key not in expected)
    return f"unknown keys: {', '.join(repr(key[:40]) for key in unknown[:3])}"


def describe_allowed(param: FloatParam | IntParam | CategoricalParam) -> str:
    """Return what a parameter may be, in words."""
    if isinstance(param, CategoricalParam):
        return "one of " + ", ".join(json.dumps(choice, ensure_ascii=False) for choice in param.choices)
    kind = "a whole number" if isinstance(param, IntParam) else "a number"
    return f"{kind} from {param.low:g} to {param.high:g}" + (", log scale" if param.log else "")


def _say_duplicate(trial: TrialView) -> str:
    values = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
    return f"this repeats trial {trial.number} ({values}); change at least one value clearly"


def _short(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
