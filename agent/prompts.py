"""What the model is told: the task, the parameters, what has been tried. Pure, and short enough for a small model.

Only validation figures are shown; test accuracy would make the search choose by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent.history import TrialView
from agent.proposals import RATIONALE, describe_allowed
from agent.space import Space
from orchestrator.recipe.hpo import Scalar

BEST_SHOWN = 5
RECENT_SHOWN = 5
FAILED_SHOWN = 3
RUNNING_SHOWN = 8
CAUSE_CHARS = 120
ANSWER_CHARS = 1000
# Lower and upper ends of the objective's scale, as the metric names of the trainer's records mean them.
OBJECTIVES = {
    "val_accuracy": "validation accuracy after the last epoch",
    "best_val_accuracy": "best validation accuracy of any epoch",
    "val_auc": "mean validation accuracy over all epochs",
}

Message = dict[str, str]


@dataclass(frozen=True)
class Task:
    """What stays the same over a whole search.

    Attributes:
        data: The data set in words.
        objective: Name of the objective.
        space: The parameters.
        fixed: Further settings, the same in every trial.
        total: Trials asked for.
    """

    data: str
    objective: str
    space: Space
    fixed: Mapping[str, Scalar]
    total: int


def first_messages(task: Task, trials: Sequence[TrialView]) -> list[Message]:
    """Return the conversation that asks for one candidate, given all earlier trials."""
    return [
        {"role": "system", "content": _system(task)},
        {"role": "user", "content": _user(trials)},
    ]


def repair_messages(asked: Sequence[Message], answer: str | None, reason: str) -> list[Message]:
    """Return the conversation that asks again, with the reason why the answer cannot be used.

    Args:
        asked: The first conversation.
        answer: What the model answered; None to leave it out, since a small model copies what it has said before.
        reason: Why that cannot be used.
    """
    if answer is None:
        last = asked[-1]
        again = f"{last['content']}\nYour last answer cannot be used: {reason}."
        return [*asked[:-1], {**last, "content": again}]
    return [
        *asked,
        {"role": "assistant", "content": " ".join(answer.split())[:ANSWER_CHARS]},
        {"role": "user", "content": f"That cannot be used: {reason}. Answer with a corrected JSON object."},
    ]


def _system(task: Task) -> str:
    lines = [
        "You tune hyperparameters of an image classifier.",
        f"Data: {task.data}. Goal: the highest {OBJECTIVES[task.objective]} (0 to 1) within {task.total} trials.",
        "Parameters:",
        *(_parameter_line(name, task.space) for name in task.space),
    ]
    if task.fixed:
        lines.append("Fixed: " + _compact(task.fixed))
    lines.append(
        "Answer with one JSON object that has exactly these keys and, last, "
        f'"{RATIONALE}": why, in a few words. Never repeat a trial.'
    )
    return "\n".join(lines)


def _parameter_line(name: str, space: Space) -> str:
    param = space[name]
    conditions = [
        f"{other} is {' or '.join(json.dumps(value, ensure_ascii=False) for value in values)}"
        for other, values in param.when.items()
    ]
    used = f" (used only if {' and '.join(conditions)})" if conditions else ""
    return f"- {name}: {describe_allowed(param)}{used}"


def _user(trials: Sequence[TrialView]) -> str:
    counted = [trial for trial in trials if trial.counts]
    complete = [trial for trial in counted if trial.objective is not None]
    best = sorted(complete, key=lambda trial: (-(trial.objective or 0.0), trial.number))[:BEST_SHOWN]
    shown = {trial.number for trial in best}
    recent = [trial for trial in complete[-RECENT_SHOWN:] if trial.number not in shown]
    failed = [trial for trial in counted if trial.has_failed][-FAILED_SHOWN:]
    running = [trial for trial in counted if trial.is_running][-RUNNING_SHOWN:]
    lines = [
        *_section("Best trials so far", best, _with_objective),
        *_section("Recent trials", recent, _with_objective),
        *_section("Failed trials", failed, _with_cause),
        *_section("Running trials", running, lambda trial: _compact(trial.params)),
    ]
    if not lines:
        lines = ["No trial has been run yet."]
    lines.append(f"Propose trial {len(trials)}: different from all above, and likely to be better.")
    return "\n".join(lines)


def _section(title: str, trials: Sequence[TrialView], say: Any) -> Iterable[str]:
    return [f"{title}:", *(f"- {say(trial)}" for trial in trials)] if trials else []


def _with_objective(trial: TrialView) -> str:
    return f"{trial.objective:.4f} with {_compact(trial.params)}"


def _with_cause(trial: TrialView) -> str:
    cause = " ".join((trial.cause or "").split())[:CAUSE_CHARS]
    return f"{_compact(trial.params)} failed: {cause}"


def _compact(params: Mapping[str, Any]) -> str:
    return json.dumps(
        {name: float(f"{value:.3g}") if isinstance(value, float) else value for name, value in params.items()},
        separators=(",", ":"),
        ensure_ascii=False,
    )
