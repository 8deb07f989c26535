"""The language model as an Optuna sampler: what it proposed beforehand, or else what Optuna's own sampler suggests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from agent.history import Params
from agent.space import Space, distribution

TPE_STARTUP_TRIALS = 5


def make_tpe(seed: int) -> Any:
    """Return Optuna's TPE, with few random trials at first; multivariate, its default for one objective."""
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=TPE_STARTUP_TRIALS)


def make_sampler(kind: str, space: Space, seed: int) -> Any:
    """Return the sampler of the recipe: llm, tpe or random."""
    if kind == "llm":
        return LlmSampler(space, make_tpe(seed))
    return make_tpe(seed) if kind == "tpe" else optuna.samplers.RandomSampler(seed=seed)


class LlmSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Gives the next trial what was prepared for it.

    An exception inside ``ask()`` would leave a trial running for ever, and a value out of range would be replaced in
    silence. So everything is checked in ``prepare``, before ``ask()``, and inside nothing can go wrong any more.
    """

    def __init__(self, space: Space, fallback: Any) -> None:
        self._distributions = {name: distribution(param) for name, param in space.items()}
        self._fallback = fallback
        self._prepared: dict[str, Any] | None = None

    def prepare(self, params: Params) -> None:
        """Take ``params`` (active parameters, checked) for the next trial.

        Raises:
            ValueError: a value is not in its distribution.
        """
        for name, value in params.items():
            known = self._distributions.get(name)
            if known is None or not _contains(known, value):
                raise ValueError(f"{name} = {value!r} is not in {known}")
        self._prepared = dict(params)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Mapping[str, Any]:
        if self._prepared is None:
            inferred: Mapping[str, Any] = self._fallback.infer_relative_search_space(study, trial)
            return inferred
        return {name: self._distributions[name] for name in self._prepared}

    def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._prepared is None:
            sampled: Mapping[str, Any] = self._fallback.sample_relative(study, trial, search_space)
            return sampled
        prepared, self._prepared = self._prepared, None
        return prepared

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Any, trial: Any) -> None:
        self._fallback.before_trial(study, trial)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self._fallback.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        self._fallback.reseed_rng()


def _contains(known: Any, value: Any) -> bool:
    if isinstance(known, optuna.distributions.CategoricalDistribution):
        return any(type(choice) is type(value) and choice == value for choice in known.choices)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(known, optuna.distributions.IntDistribution) and not isinstance(value, int):
        return False
    return is_number and known.low <= value <= known.high
