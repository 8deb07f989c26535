from __future__ import annotations

import resource
import stat
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.proposer import Asked
from agent.sampler import LlmSampler, make_tpe
from agent.space import Space, active, distribution
from agent.study import SearchStudy
from orchestrator.errors import StorageError
from orchestrator.recipe.hpo import Hpo
from tests.agent.bench import SPACE
from tests.agent.spaces import points, spaces, unhurried

HPO = Hpo.model_validate({"space": SPACE, "sampler": "llm"})
FALLBACK = Asked(None, "tpe_fallback", {"rejects": ["no answer"]})


def open_study(folder: Path, hpo: Hpo = HPO) -> SearchStudy:
    return SearchStudy(folder / "study.journal", "search", hpo)


def test_ask_takes_the_proposal_as_it_is(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    params: dict[str, Any] = {
        "model_type": "customcnn",
        "learning_rate": 0.0123456789,
        "batch_size": 128,
        "num_layers": 6,
    }
    trial = study.ask(Asked(params, "llm", {"rationale": "because", "model": None}))
    assert trial.params == params
    assert trial.attrs == {"source": "llm", "rationale": "because"}
    assert trial.is_running


def test_ask_inactive_parameters_are_no_part_of_the_trial(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    params: dict[str, Any] = {"model_type": "resnet18", "learning_rate": 0.01, "batch_size": 128}
    assert study.ask(Asked(params, "llm", {})).params == params
    for _ in range(10):
        trial = study.ask(FALLBACK)
        assert ("num_layers" in trial.params) == (trial.params["model_type"] == "customcnn")
        study.tell_value(trial.number, 0.5, {})


def test_ask_proposal_is_used_once(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    params: dict[str, Any] = {"model_type": "resnet18", "learning_rate": 0.01, "batch_size": 128}
    first, second = study.ask(Asked(params, "llm", {})), study.ask(FALLBACK)
    assert first.params["learning_rate"] != second.params["learning_rate"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.2},
        {"learning_rate": float("nan")},
        {"batch_size": 48},
        {"momentum": 0.9},
        {"num_layers": 2.0},
    ],
)
def test_ask_wrong_proposal_is_refused_before_a_trial_exists(wrong: dict[str, Any], tmp_path: Path) -> None:
    study = open_study(tmp_path)
    params: dict[str, Any] = {
        "model_type": "customcnn",
        "learning_rate": 0.01,
        "batch_size": 128,
        "num_layers": 2,
        **wrong,
    }
    with pytest.raises(ValueError, match="is not in"):
        study.ask(Asked(params, "llm", {}))
    assert study.views() == ()


@unhurried
@given(data=st.data(), space=spaces())
def test_llm_sampler_every_point_of_every_space_goes_through_optuna_unchanged(
    data: st.DataObject, space: Space
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    params = active(space, {name: _own_type(space, name, value) for name, value in data.draw(points(space)).items()})
    sampler = LlmSampler(space, make_tpe(0))
    study = optuna.create_study(sampler=sampler)
    sampler.prepare(params)
    trial = study.ask({name: distribution(space[name]) for name in params})
    assert trial.params == params


def _own_type(space: Space, name: str, value: Any) -> Any:
    return int(value) if space[name].kind == "int" else value


def test_tell_what_is_not_finite_is_a_failure_with_a_cause(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    trial = study.tell_value(study.ask(FALLBACK).number, float("inf"), {"job_state": "COMPLETED"})
    assert (trial.state, trial.objective, trial.has_failed) == ("FAIL", None, True)
    assert trial.cause == "the objective is inf, not a finite number"


def test_study_is_private_and_survives_being_opened_again(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    done, failed = study.ask(FALLBACK).number, study.ask(FALLBACK).number
    study.tell_value(done, 0.75, {"figures": {"val_auc": 0.5}})
    study.tell_failure(failed, "it broke", {})
    again = open_study(tmp_path)
    assert again.views() == study.views()
    assert again.view(0).objective == 0.75
    assert again.view(1).cause == "it broke"
    assert stat.S_IMODE((tmp_path / "study.journal").stat().st_mode) == 0o600


def test_random_search_goes_on_with_new_numbers_after_a_restart(tmp_path: Path) -> None:
    hpo = HPO.model_copy(update={"sampler": "random"})
    first = open_study(tmp_path, hpo).ask(Asked(None, "random", {}))
    second = open_study(tmp_path, hpo).ask(Asked(None, "random", {}))
    assert first.params["learning_rate"] != second.params["learning_rate"]


def test_journal_that_cannot_grow_is_named(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "study.journal").stat().st_size, before[1]))
    try:
        with pytest.raises(StorageError, match=r"study\.journal"):
            study.ask(FALLBACK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
