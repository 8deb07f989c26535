"""What the hyperparameter search found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from orchestrator.plots import STYLES, Curve, TrialPoint, plot_curves, plot_objective
from orchestrator.report.traces import TrialTrace
from orchestrator.report.untrusted import as_count, as_map, as_maps, as_number, as_text
from orchestrator.report.views import Badge, Callout, Cell, Fact, Key, Pairs, Plot, Section, Table, number_cell
from orchestrator.report.wording import plural, quantity, setting, share, state_badge, time_span

_MAX_ROWS = 500
_MAX_CURVES = 100
_GLYPHS = ("●", "■", "▲", "◆", "▼", "★")
_STYLES = {"llm": 0, "tpe": 1, "random": 2}
_OBJECTIVES = {
    "val_accuracy": "validation accuracy of the last epoch",
    "best_val_accuracy": "best validation accuracy",
    "val_auc": "mean validation accuracy over epochs",
}


@dataclass(frozen=True)
class Search:
    """The search's figures, and a style for each source of proposals."""

    figures: Mapping[str, Any]
    trials: Sequence[Mapping[str, Any]]
    styles: Mapping[str, int]

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> Search:
        """Return the search of ``stages.hpo``."""
        trials = sorted(as_maps(figures.get("trials")), key=lambda trial: as_number(trial.get("number")) or 0.0)
        styles: dict[str, int] = {}
        for trial in trials:
            source = _source(trial)
            free = len(_STYLES) + sum(known not in _STYLES for known in styles) % (STYLES - len(_STYLES))
            styles.setdefault(source, _STYLES.get(source, free))
        return cls(figures, trials, styles)

    @property
    def objective(self) -> str:
        """What was maximised, in words of ours."""
        return _OBJECTIVES.get(str(self.figures.get("objective_name")), "objective")

    @property
    def best_number(self) -> int | None:
        """The number of the best trial: the one recorded, else the one with the highest objective."""
        recorded = as_count(as_map(self.figures.get("best")).get("number"))
        if recorded is not None:
            return recorded
        done = [(value, trial) for trial in self.trials if (value := as_number(trial.get("objective"))) is not None]
        return as_count(max(done, key=lambda pair: pair[0])[1].get("number")) if done else None

    @property
    def best_accuracy(self) -> float | None:
        """The validation accuracy of the best trial, as the objective has it, else the highest one of any."""
        objective = as_number(as_map(self.figures.get("best")).get("objective"))
        if objective is not None and self.figures.get("objective_name") != "val_auc":
            return objective
        known = [(trial.get("number"), as_number(trial.get("val_accuracy"))) for trial in self.trials]
        of_best = [value for number, value in known if number == self.best_number and value is not None]
        return max(of_best or [value for _, value in known if value is not None], default=None)


def _source(trial: Mapping[str, Any]) -> str:
    return as_text(trial.get("source"), 40) or "unknown"


def search_cards(search: Search) -> list[Fact]:
    """Return the key figures; none if there was no search."""
    if not search.figures:
        return []
    finished, failed = as_count(search.figures.get("finished")), as_count(search.figures.get("failed"))
    number = search.best_number
    remark = f"of {plural(len(search.trials), 'trial')}" + (f", {failed} failed" if failed else "")
    test = as_number(search.figures.get("test_accuracy"))
    return [
        Fact(
            "Best validation accuracy", share(search.best_accuracy), f"trial {number}" if number is not None else None
        ),
        Fact("Trials finished", quantity(finished), remark),
        Fact("Test accuracy", share(test), "of the winner, measured once" if test is not None else "not measured"),
    ]


def search_section(search: Search, traces: Sequence[TrialTrace], absence: str) -> Section:
    """Return the section; ``absence`` says why there is none if the search has no figures."""
    title = "Hyperparameter search"
    if not search.figures:
        return Section("search", title, absence=absence)
    callouts = []
    if error := as_text(search.figures.get("error"), 8000):
        callouts.append(Callout("bad", "The search ended with an error.", code=error))
    callouts += _best(search)
    return Section(
        "search",
        title,
        badge=state_badge(search.figures.get("state")),
        callouts=tuple(callouts),
        facts=tuple(_facts(search)),
        plots=tuple(_plots(search, traces)),
        tables=tuple(_trials_table(search)),
        paragraphs=() if search.trials else ("No trial was started.",),
    )


def _best(search: Search) -> list[Callout]:
    best = as_map(search.figures.get("best"))
    number, objective = search.best_number, as_number(best.get("objective"))
    if number is None:
        return [Callout("warn", "No trial finished with a result, so there is no best one.")] if search.trials else []
    value = f" with {share(objective)} {search.objective}" if objective is not None else ""
    return [Callout("good", f"Best: trial {number}{value}.", pairs=_pairs(best.get("params")))]


def _facts(search: Search) -> list[Fact]:
    llm = as_map(search.figures.get("llm"))
    facts = [Fact("Maximised", search.objective)]
    for name, item in as_map(search.figures.get("by_source")).items():
        figures, source = as_map(item), as_text(name, 40) or "unknown"
        proposed, best = as_count(figures.get("count")), as_number(figures.get("best"))
        tried = "not counted" if proposed is None else plural(proposed, "trial")
        facts.append(Fact(f"Proposed by {source}", tried, None if best is None else f"best {share(best)}"))
    for key, label in (
        ("requests", "Questions to the LLM"),
        ("prompt_tokens", "Prompt tokens"),
        ("completion_tokens", "Tokens answered"),
    ):
        if (count := as_number(llm.get(key))) is not None:
            facts.append(Fact(label, quantity(count)))
    latency = llm.get("latency_s")
    latency_s = as_number(as_map(latency).get("p50")) if isinstance(latency, dict) else as_number(latency)
    if latency_s is not None:
        facts.append(Fact("LLM latency", time_span(latency_s)))
    return facts


def _pairs(params: object) -> Pairs:
    return tuple((as_text(name, 60) or "–", setting(value)) for name, value in as_map(params).items())


def _key(search: Search, source: str) -> Key:
    style = search.styles.get(source)
    return Key(_GLYPHS[style] if style is not None else "", style, source)


def _trials_table(search: Search) -> list[Table]:
    if not search.trials:
        return []
    rows = []
    for trial in search.trials[:_MAX_ROWS]:
        number = as_count(trial.get("number"))
        cause, why = as_text(trial.get("cause")), as_text(trial.get("rationale"))
        is_best = number is not None and number == search.best_number
        rows.append(
            (
                Cell(
                    "–" if number is None else str(number),
                    badge=Badge("best", "good") if is_best else None,
                    is_number=True,
                ),
                Cell(key=_key(search, _source(trial))),
                Cell(pairs=_pairs(trial.get("params"))),
                number_cell(share(as_number(trial.get("objective")))),
                number_cell(time_span(as_number(trial.get("duration_s")))),
                Cell(badge=state_badge(trial.get("state"))),
                Cell("" if cause or why else "–", cause=cause, remark=why),
            )
        )
    left = len(search.trials) - len(rows)
    columns = ("Trial", "Source", "Parameters", "Objective", "Duration", "State", "Cause or rationale")
    remark = f"{plural(left, 'further trial')} in summary.json." if left > 0 else None
    return [Table("Trials", columns, tuple(rows), is_wide=True, remark=remark)]


def _plots(search: Search, traces: Sequence[TrialTrace]) -> list[Plot]:
    keys = tuple(_key(search, source) for source in search.styles)
    points = [
        TrialPoint(number, as_number(trial.get("objective")), search.styles[_source(trial)])
        for trial in search.trials
        if (number := as_count(trial.get("number"))) is not None
    ]
    plots = []
    if points:
        lost = sum(point.objective is None for point in points)
        done = len(points) - lost
        words = f"{plural(done, 'trial')} with a result" + (f", {lost} without." if lost else ".")
        svg = plot_objective(points, search.objective, f"{search.objective.capitalize()} by trial number. {words}")
        best, none = (Key("line", None, "best so far"),), (Key("×", None, "no result"),)
        shown = keys + (best if done else ()) + (none if lost else ())
        plots.append(Plot("Objective by trial", Markup(svg), shown, words))  # noqa: S704 - our own picture
    if traces:
        plots.append(_curves_plot(search, traces, keys))
    return plots


def _curves_plot(search: Search, traces: Sequence[TrialTrace], keys: tuple[Key, ...]) -> Plot:
    by_job = {as_text(trial.get("job_id")): trial for trial in search.trials if trial.get("job_id") is not None}
    curves: list[Curve] = []
    for trace in sorted(traces, key=lambda item: -max(item.accuracy.values())):
        trial = by_job.get(trace.job_id) or by_job.get(trace.folder.removeprefix("job_")) or {}
        is_best = bool(trial) and as_count(trial.get("number")) == search.best_number is not None
        style = search.styles.get(_source(trial)) if trial else None
        epochs = sorted(trace.accuracy)
        if is_best or len(curves) < _MAX_CURVES:
            curves.append(Curve(epochs, [trace.accuracy[epoch] for epoch in epochs], style, is_best))
    highest = max(max(curve.accuracy) for curve in curves)
    words = f"Validation accuracy of {plural(len(curves), 'trial')} by epoch, {share(highest)} at most."
    if len(curves) < len(traces):
        words += f" The best of {len(traces):,} curves are drawn."
    svg = plot_curves(curves, words)
    best = (Key("thick", None, f"best: trial {search.best_number}"),) if any(curve.is_best for curve in curves) else ()
    apart = (Key("line", None, "trial not in the table"),) if any(curve.style is None for curve in curves) else ()
    return Plot("Training curves", Markup(svg), (*keys, *best, *apart), words)  # noqa: S704 - our own picture
