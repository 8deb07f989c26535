"""Earlier runs: those that have to end before a run begins (``job.after``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.compose import Composed, saved_recipe
from orchestrator.errors import EarlierRunError, RunNotFoundError, UserError
from orchestrator.forecast.document import Forecast, JobStart
from orchestrator.history import is_orchestrated, run_state
from orchestrator.ledger import Ledger
from orchestrator.life import ENDED, LIFE_EVENTS, Life
from orchestrator.progress import Progress
from orchestrator.recipe.after import After, When
from orchestrator.rundir import RunDir, find_run

_HINTS = {
    "planned": ": `orch.py resume {name}` starts it",
    "left": ", its orchestrator ended before it did: `orch.py resume {name}` goes on with it",
}


@dataclass(frozen=True)
class Earlier:
    """An earlier run, and how it has to end."""

    run: RunDir
    when: When

    def is_met_by(self, state: str) -> bool:
        """Return whether the later run may begin.

        Raises:
            EarlierRunError: the run has ended otherwise than it had to.
        """
        if state in ENDED and self.when == "completed" and state != "completed":
            raise EarlierRunError(str(self.run.root), state)
        return state in ENDED


def find_earlier(entries: Sequence[After], output_dir: Path) -> tuple[Earlier, ...]:
    """Return the runs that ``job.after`` names.

    Raises:
        UserError: one of them is not there.
    """
    found = []
    for entry in entries:
        try:
            found.append(Earlier(find_run(output_dir, entry.run), entry.when))
        except RunNotFoundError as error:
            raise UserError(f"job.after: {error}") from error
    return tuple(found)


def check_order(run: RunDir, earlier: Sequence[Earlier]) -> None:
    """Refuse a run that would wait for itself, at once or by way of others.

    Raises:
        UserError: it would; names the way.
    """
    way = _way_to(run.root, [item.run for item in earlier], (), set())
    if way is None:
        return
    names = " after ".join([run.root.name, *(root.name for root in way)])
    raise UserError(f"job.after: {run.root.name} would wait for itself: {names}.\nTake one of them out of job.after.")


def _way_to(wanted: Path, runs: Sequence[RunDir], way: tuple[Path, ...], known: set[Path]) -> tuple[Path, ...] | None:
    for run in runs:
        here = (*way, run.root)
        if run.root == wanted:
            return here
        if run.root not in known:
            known.add(run.root)
            found = _way_to(wanted, list(_before(run)), here, known)
            if found is not None:
                return found
    return None


def _before(run: RunDir) -> Iterator[RunDir]:
    try:
        entries = saved_recipe(run).job.after
    except RunNotFoundError:  # of another version of orch: it waits for nothing that this one knows of
        return
    for entry in entries:
        try:
            yield find_run(run.root.parent, entry.run)
        except RunNotFoundError:  # told of when that run is started
            continue


def with_earlier(composed: Composed, is_plan_only: bool) -> Composed:
    """Return ``composed`` with the directories of the runs that it waits for, and a plan that tells of them.

    Args:
        composed: A run that is not written yet.
        is_plan_only: Note that a run is not there instead of raising: it may be there when this one is started.

    Raises:
        UserError: a run is not there.
    """
    recipe = composed.recipe
    entries: list[After] = []
    notes, starts = [], []
    for entry in recipe.job.after:
        try:
            (item,) = find_earlier([entry], composed.plan.run.root.parent)
        except UserError as error:
            if not is_plan_only:
                raise
            entries.append(entry)
            notes.append(f"would not start from here: {str(error).splitlines()[0]}")
            continue
        entries.append(entry.model_copy(update={"run": str(item.run.root)}))
        state = run_state(item.run).state
        notes.append(_note(item, state))
        if state not in ENDED:
            starts.append(f"{item.run.root.name} ({state}) {_HAS[item.when]}")
    job = recipe.job.model_copy(update={"after": tuple(entries)})
    plan = replace(composed.plan, notes=(*composed.plan.notes, *notes))
    if starts and plan.forecast is not None:
        plan = replace(plan, forecast=_later(plan.forecast, f"once {' and '.join(starts)}"))
    return replace(composed, recipe=recipe.model_copy(update={"job": job}), plan=plan)


_HAS = {"completed": "is completed", "ended": "has ended"}


def _note(item: Earlier, state: str) -> str:
    name = item.run.root.name
    try:
        is_met = item.is_met_by(state)
    except EarlierRunError as error:
        return f"would not start: {str(error).splitlines()[0]}"
    return f"starts after {name} (state: {state})" + ("" if is_met else f", once it {_HAS[item.when]}")


def _later(forecast: Forecast, when: str) -> Forecast:
    """Return ``forecast`` with no start that the scheduler would give the jobs if they were submitted now."""
    starts = [
        start if start.refusal is not None else JobStart(job=start.job, unknown=when) for start in forecast.starts
    ]
    return forecast.model_copy(update={"starts": tuple(starts)})


class _EarlierLife:
    """The state of an earlier run, looked at again and again: its ledger is read on, never again from its start."""

    def __init__(self, run: RunDir) -> None:
        self._run, self._ledger = run, Ledger(run.events)
        self._restart()

    def _restart(self) -> None:
        self._life, self._read_to, self._seen = Life(), 0, (0, 0)

    def state(self) -> str:
        """Return the state (see history.RunState), or why it cannot be read now.

        Raises:
            UserError: the run was deleted.
        """
        # Asked first: an orchestrator that ends has written so before it lets go.
        is_alive = is_orchestrated(self._run)
        try:
            self._read_on()
        except FileNotFoundError:
            if not self._run.plan.exists():
                raise UserError(f"job.after: {self._run.root} was deleted while this run waited for it.") from None
        except OSError as error:  # a file system that is out of sight for a while
            return f"not readable ({error.strerror or error})"
        return "left" if self._life.state == "running" and not is_alive else self._life.state

    def _read_on(self) -> None:
        told = self._run.events.stat()
        seen = (told.st_size, told.st_mtime_ns)
        if seen == self._seen:
            return
        if told.st_size < self._read_to:
            self._restart()
        events, self._read_to = self._ledger.events_from(self._read_to, *LIFE_EVENTS)
        for event in events:
            self._life.take(event)
        self._seen = seen


def wait_for_earlier(
    earlier: Sequence[Earlier], every_s: float, wait: Callable[[float], None], progress: Progress
) -> None:
    """Return when every earlier run has ended as it has to.

    Args:
        earlier: The runs.
        every_s: How often to look at them, in seconds.
        wait: Lets that time pass, and raises what ends the wait.
        progress: Where people see what is waited for.

    Raises:
        EarlierRunError: one has ended otherwise.
        UserError: one was deleted.
    """
    lives = {item: _EarlierLife(item.run) for item in earlier}
    told: dict[Earlier, str] = {}
    left = list(earlier)
    while left:
        states = {item: lives[item].state() for item in left}
        left = [item for item in left if not item.is_met_by(states[item])]
        for item in left:
            if told.get(item) != states[item]:
                told[item] = states[item]
                name = item.run.root.name
                progress.say(f"waits for {name}, which is {states[item]}{_hint(states[item], name)}")
        names = ", ".join(item.run.root.name for item in left)
        progress.show_bar("earlier runs", len(earlier) - len(left), len(earlier), names)
        if left:
            wait(every_s)


def _hint(state: str, name: str) -> str:
    return _HINTS.get(state, "").format(name=name)
