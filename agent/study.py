"""The Optuna study of one run: the only store of its trials. One writer: the orchestrator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from agent.history import TrialView
from agent.proposer import Asked
from agent.sampler import LlmSampler, make_sampler
from agent.space import Space, distribution, is_active, ordered
from orchestrator.errors import StorageError
from orchestrator.recipe.hpo import Hpo

CAUSE_CHARS = 500


class _Journal(JournalFileBackend):  # type: ignore[misc]
    """Optuna's journal in a file, whose failures name the file."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines.

        Raises:
            StorageError: they could not be written.
        """
        try:
            super().append_logs(logs)
        except OSError as error:
            raise StorageError(self._path, error) from error


class SearchStudy:
    """Trials of one search, in ``study.journal``.

    A parameter whose condition does not hold is not part of its trial, so that what the study says is what was run.
    """

    def __init__(self, journal: Path, name: str, hpo: Hpo) -> None:
        """Open the study in ``journal``, or make it.

        Raises:
            StorageError: the journal cannot be written.
        """
        # Optuna's own lines would break the live display; warnings reach the run's log.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        optuna.logging.disable_default_handler()
        optuna.logging.enable_propagation()
        self._space: Space = hpo.space
        self._ended: dict[int, TrialView] = {}
        try:
            # Of an orchestrator that was killed while it wrote: the run's lease says that there is no other writer.
            journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
            journal.touch(mode=0o600)
            _cut_torn_line(journal)
            self._storage = JournalStorage(_Journal(journal))
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
            )
        except OSError as error:
            raise StorageError(journal, error) from error
        # The second half of a search that was cut off must not draw the numbers of the first half again.
        seed = (hpo.seed + self.next_number * 1_000_003) % 2**32
        self._study.sampler = make_sampler(hpo.sampler, hpo.space, seed)
        self._id = self._storage.get_study_id_from_name(name)

    @property
    def next_number(self) -> int:
        """Number that the next trial will have."""
        return len(self._study.get_trials(deepcopy=False))

    def views(self) -> tuple[TrialView, ...]:
        """Return all trials, in the order of their numbers."""
        return tuple(self._seen(trial) for trial in self._study.get_trials(deepcopy=False))

    def _seen(self, trial: Any) -> TrialView:
        """Return a trial's view; that of an ended one is made once."""
        ended = self._ended.get(trial.number)
        if ended is not None:
            return ended
        view = _view(trial)
        if trial.state.is_finished():
            self._ended[trial.number] = view
        return view

    def view(self, number: int) -> TrialView:
        """Return one trial."""
        return _view(self._study.get_trials(deepcopy=False)[number])

    def ask(self, asked: Asked) -> TrialView:
        """Make the next trial: of the proposal if there is one, otherwise of the sampler's own suggestion."""
        if asked.params is not None and isinstance(self._study.sampler, LlmSampler):
            self._study.sampler.prepare(asked.params)
        names = ordered(self._space)
        unconditional = {name: distribution(self._space[name]) for name in names if not self._space[name].when}
        trial = self._study.ask(unconditional)
        for name in names:
            if self._space[name].when and is_active(name, self._space, trial.params):
                _suggest(trial, name, self._space[name])
        self.note(trial.number, source=asked.source, **asked.notes)
        return self.view(trial.number)

    def note(self, number: int, **attrs: Any) -> None:
        """Write user attributes of a running trial; None is left out."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        for name, value in attrs.items():
            if value is not None:
                self._storage.set_trial_user_attr(trial_id, name, value)

    def tell_value(self, number: int, objective: float, attrs: Mapping[str, Any]) -> TrialView:
        """End a trial with its objective; one that is not finite is a failure."""
        if not math.isfinite(objective):
            return self.tell_failure(number, f"the objective is {objective}, not a finite number", attrs)
        self.note(number, **attrs)
        self._study.tell(number, objective)
        return self.view(number)

    def tell_failure(self, number: int, cause: str, attrs: Mapping[str, Any]) -> TrialView:
        """End a trial without a value, and say why."""
        self.note(number, cause=cause[:CAUSE_CHARS], **attrs)
        self._study.tell(number, state=optuna.trial.TrialState.FAIL)
        return self.view(number)


def _cut_torn_line(journal: Path) -> None:
    """Cut off a last line without its end, of a writer that was killed or had no space: Optuna would add to it."""
    with journal.open("rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def _suggest(trial: Any, name: str, param: Any) -> None:
    if param.kind == "categorical":
        trial.suggest_categorical(name, param.choices)
    elif param.kind == "int":
        trial.suggest_int(name, param.low, param.high, log=param.log)
    else:
        trial.suggest_float(name, param.low, param.high, log=param.log)


def _view(trial: Any) -> TrialView:
    duration = trial.duration
    return TrialView(
        number=trial.number,
        state=trial.state.name,
        params=dict(trial.params),
        objective=trial.value if trial.state == optuna.trial.TrialState.COMPLETE else None,
        attrs=dict(trial.user_attrs),
        duration_s=duration.total_seconds() if duration is not None else None,
    )
