"""The run directory and how runs are found."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from orchestrator.errors import RunNotFoundError
from orchestrator.rundir import RunDir, find_run, iter_runs, new_run_id


def make_run(output: Path, name: str, age_s: float = 0) -> RunDir:
    """Make a run with a plan."""
    run = RunDir(output / name)
    run.make()
    run.plan.write_text("{}")
    at = 1_700_000_000 - age_s
    os.utime(run.plan, (at, at))
    run.make_latest()
    return run


def test_run_name_has_every_field_of_the_pattern(tmp_path: Path) -> None:
    run = RunDir.name_new(tmp_path, "{name}-{run_id}-{experiment_id}", "job", "ab12")
    assert run.root == tmp_path / "job-ab12-job_ab12"
    assert not run.root.exists()
    assert RunDir.name_new(tmp_path, "{timestamp}_{run_id}", "job", "ab12").root.name[8] == "_"


def test_run_ids_differ_and_are_eight_digits() -> None:
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(run_id) == 8 and int(run_id, 16) >= 0 for run_id in ids)


def test_run_made_has_private_folders_and_can_be_made_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "out" / "run")
    run.make()
    run.make()
    folders = [path for path in (tmp_path / "out").rglob("*") if path.is_dir()]
    assert {"scripts", "logs", "status", "endpoints", "secrets", "trials"} <= {path.name for path in folders}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_every_path_of_a_run_is_inside_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    names = [name for name, value in vars(RunDir).items() if isinstance(value, property)]
    paths = [getattr(run, name) for name in names]
    paths += [run.script("a"), run.supervisor_config("a"), run.config("c"), run.data("d"), run.status("t")]
    paths += [run.heartbeat("t"), run.endpoint("s"), run.log("s", "1", "out"), run.trial("{job_id}", "j", 1, "e")]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(tmp_path) for path in paths)


def test_runs_come_oldest_first_without_latest_and_strangers(tmp_path: Path) -> None:
    for age_s, name in ((1, "c"), (3, "b"), (2, "a")):
        make_run(tmp_path, name, age_s)
    (tmp_path / "cache").mkdir()
    (tmp_path / "note.txt").write_text("x")
    assert [run.root.name for run in iter_runs(tmp_path)] == ["b", "a", "c"]
    assert list(iter_runs(tmp_path / "none")) == []


def test_find_run_takes_latest_name_id_part_and_directory(tmp_path: Path) -> None:
    run = make_run(tmp_path, "20260101_000000_job_0a1b2c3d")
    for wanted in ("latest", run.root.name, "0a1b2c3d", "000000_job", str(run.root)):
        assert find_run(tmp_path, wanted).root == run.root


def test_find_run_latest_is_the_one_made_last(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path, "b")
    assert find_run(tmp_path).root.name == "b"


def test_find_run_that_fits_several_names_them(tmp_path: Path) -> None:
    for name in ("x_job_11111111", "x_job_22222222"):
        make_run(tmp_path, name)
    with pytest.raises(RunNotFoundError, match=r"'job' fits 2 runs: x_job_11111111, x_job_22222222") as caught:
        find_run(tmp_path, "job")
    assert caught.value.exit_code == 2


def test_find_run_by_a_whole_id_is_not_confused_by_another_name_that_holds_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "x_job_20260101")
    make_run(tmp_path, "20260101_other_22222222")
    assert find_run(tmp_path, "20260101").root == run.root


def test_find_run_without_any_says_where_it_looked(tmp_path: Path) -> None:
    for wanted in ("latest", "nothing"):
        with pytest.raises(RunNotFoundError, match="Last runs there: none"):
            find_run(tmp_path, wanted)


def test_find_run_that_is_gone_names_the_last_runs(tmp_path: Path) -> None:
    make_run(tmp_path, "x_job_11111111")
    with pytest.raises(RunNotFoundError, match=r"no run 'zzz'.*\n.*x_job_11111111"):
        find_run(tmp_path, "zzz")
