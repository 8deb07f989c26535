from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.dataset import data_arguments, describe_data
from agent.stage import HpoStage
from agent.trainer_arguments import SET_BY_THE_SEARCH, SWITCHES, TRAINER_ARGUMENTS, command_line
from orchestrator.errors import ProgramMissingError, RecipeError, UserError
from orchestrator.plan import plan_job
from orchestrator.recipe.hpo import REFERENCE_SPACE, FolderData, Scalar, TorchvisionData
from orchestrator.rundir import RunDir
from orchestrator.schedulers.local import LocalScheduler
from orchestrator.service import PlanContext
from tests.agent.bench import make_recipe

PROJECT = Path(__file__).parents[2]


def context_of(tmp_path: Path, hpo: dict[str, Any], **job: Any) -> PlanContext:
    run = RunDir(tmp_path / "run")
    return PlanContext(make_recipe(hpo, **job), run, PROJECT, tmp_path, "127.0.0.1", "0a1b2c3d", run, tmp_path)


def check(tmp_path: Path, hpo: dict[str, Any], **job: Any) -> None:
    HpoStage().check(context_of(tmp_path, hpo, **job))


def test_trainer_arguments_are_those_of_the_trainer() -> None:
    trainer = PROJECT / "trainer" / "train.py"
    done = subprocess.run([sys.executable, trainer, "--help"], capture_output=True, text=True, check=True)
    shown = {flag for flag in re.findall(r"--([a-z_]+)\b(?![-\w])", done.stdout) if f"--{flag}" in done.stdout}
    options = done.stdout.partition("options:")[2]
    flags = set(re.findall(r"^ +--([a-z_]+)", options, re.MULTILINE))
    assert flags == TRAINER_ARGUMENTS
    without_value = {flag for flag in flags if not re.search(rf"^ +--{flag} VALUE", options, re.MULTILINE)}
    assert without_value == set(SWITCHES)
    assert {off for off in SWITCHES.values() if off} <= shown
    assert SET_BY_THE_SEARCH < TRAINER_ARGUMENTS


def test_command_line_switches_and_numbers_are_exact() -> None:
    values: dict[str, Scalar] = {
        "augment": False,
        "learning_rate": 0.1 + 0.2,
        "num_epochs": 3,
        "optimizer": "sgd",
        "resume": True,
    }
    assert command_line({**values, "download": False}) == {
        "no_augment": True,
        "learning_rate": "0.30000000000000004",
        "num_epochs": "3",
        "optimizer": "sgd",
        "resume": True,
    }
    assert command_line({"augment": True}) == {"augment": True}


def test_is_wanted_only_with_a_section() -> None:
    assert HpoStage().is_wanted(make_recipe({}))
    assert not HpoStage().is_wanted(make_recipe(None))


def test_check_the_reference_space_on_digits_is_fine(tmp_path: Path) -> None:
    check(tmp_path, {"space": {name: param.model_dump() for name, param in REFERENCE_SPACE.items()}})


def test_check_unknown_and_reserved_names_are_all_reported(tmp_path: Path) -> None:
    number = {"kind": "float", "low": 0, "high": 1}
    hpo = {"space": {"lr": number, "momentum": number}, "fixed": {"evaluate_test": True, "output_dir": "/x"}}
    with pytest.raises(RecipeError) as caught:
        check(tmp_path, hpo)
    text = str(caught.value)
    assert "job.hpo.space.lr: is not an argument of the trainer" in text
    assert "job.hpo.fixed.evaluate_test: test accuracy is measured once, on the winner" in text
    assert "job.hpo.fixed.output_dir: is set by the search itself" in text
    assert "momentum: " not in text


def test_check_argument_of_the_data_set_may_not_be_given_twice(tmp_path: Path) -> None:
    dataset = {"kind": "folder", "dir": str(tmp_path), "image_size": 16}
    with pytest.raises(RecipeError, match=r"job.hpo.fixed.image_size: is set by job.hpo.dataset"):
        check(tmp_path, {"dataset": dataset, "fixed": {"image_size": 32}})
    check(tmp_path, {"fixed": {"image_size": 32}})


def test_check_conditions_in_a_circle_are_refused(tmp_path: Path) -> None:
    space = {
        "batch_size": {"kind": "categorical", "choices": [1, 2], "when": {"optimizer": ["sgd"]}},
        "optimizer": {"kind": "categorical", "choices": ["sgd"], "when": {"batch_size": [1]}},
    }
    with pytest.raises(UserError, match="circle"):
        check(tmp_path, {"space": space})


def test_check_missing_interpreter_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProgramMissingError, match="/no/such/python: there is no such interpreter"):
        check(tmp_path, {}, environment={"python": "/no/such/python"})


def test_check_folder_data_says_what_is_expected(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    hpo = {"dataset": {"kind": "folder", "dir": str(data)}}
    with pytest.raises(UserError, match=r"there is no such directory(.|\n)*train/CLASS/PICTURE.jpg"):
        check(tmp_path, hpo)
    (data / "train" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="train/ holds 1 class folders"):
        check(tmp_path, hpo)
    (data / "train" / "dog").mkdir()
    with pytest.raises(UserError, match=r"there is no test/(.|\n)*evaluate_winner = false"):
        check(tmp_path, hpo)
    check(tmp_path, {**hpo, "evaluate_winner": False})
    (data / "test").mkdir()
    check(tmp_path, hpo)


@pytest.mark.parametrize(
    ("kind", "unpacked", "archive"),
    [
        ("cifar100", "cifar-100-python", "cifar-100-python.tar.gz"),
        ("cifar10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    ],
)
def test_check_cifar_needs_archive_or_folder_unless_downloaded(
    kind: str, unpacked: str, archive: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    dataset = {"kind": kind, "dir": str(data)}
    with pytest.raises(UserError, match=f"neither {unpacked}/ nor {archive}(.|\n)*download = true"):
        check(tmp_path, {"dataset": dataset})
    check(tmp_path, {"dataset": {**dataset, "download": True}})
    (data / unpacked).mkdir(parents=True)
    check(tmp_path, {"dataset": dataset})
    check(tmp_path, {"dataset": {**dataset, "dir": str(data / unpacked)}})
    (data / unpacked).rmdir()
    (data / archive).touch()
    check(tmp_path, {"dataset": dataset})


def test_sample_job_is_an_example_in_the_middle_of_the_space(tmp_path: Path) -> None:
    context = context_of(tmp_path, {"fixed": {"optimizer": "adamw"}})
    draft = HpoStage().sample_job(context)
    assert draft is not None
    planned = plan_job(draft, context, LocalScheduler(), "7f3a2b1c")
    assert (planned.name, planned.kind, planned.role) == ("trial_example", "task", "trial")
    assert "--model_type=resnet18" in planned.script_text
    assert "--optimizer=adamw" in planned.script_text
    assert not (tmp_path / "run").exists()


def test_data_arguments_and_words_fit_each_kind(tmp_path: Path) -> None:
    folder = FolderData(kind="folder", dir=str(tmp_path), image_size=48)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
    assert data_arguments(folder) == {"dataset": "folder", "data_dir": str(tmp_path), "image_size": 48}
    assert describe_data(folder) == "colour pictures in 2 classes, 48 pixels a side"
    cifar = TorchvisionData(kind="cifar100", dir="/data", download=True)
    assert data_arguments(cifar) == {"dataset": "cifar100", "data_dir": "/data", "download": True}


def test_stage_import_loads_neither_langgraph_nor_optuna() -> None:
    program = (
        "import sys, agent.stage; print([n for n in ('langgraph', 'optuna', 'torch', 'requests') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.strip() == "[]"
