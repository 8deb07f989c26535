"""The test job: on this machine, on the stand-in of PBS, and against schedulers that fail in their own ways."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UnsupportedFieldError
from orchestrator.sitecheck import job
from orchestrator.sitecheck.check import run_check
from orchestrator.sitecheck.findings import Step, Verdict
from orchestrator.sitecheck.visit import Visit
from tests.orchestrator.sitecheck.conftest import MakeVisit, Shim

PROJECT = Path(__file__).parents[3]
STANDIN = PROJECT / "tests" / "standin" / "pbs"
SLURM = {"kind": "slurm", "command_timeout_s": 2}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.2)
    monkeypatch.setattr(job, "GRACE_S", 1.0)


def tried(visit: Visit) -> dict[str, Step]:
    steps: list[Step] = []
    run_check(visit, lambda _: None, steps)
    return {step.name: step for step in steps}


def test_job_on_this_machine_brings_its_report_and_leaves_nothing(make_visit: MakeVisit, tmp_path: Path) -> None:
    data = tmp_path / "it's data"
    data.mkdir()
    visit = make_visit({"scheduler": {"kind": "local"}}, data=(str(data),))
    steps = tried(visit)
    for name in ("test job", "node folder", "node python", "node clock", "data", "clean up"):
        assert steps[name].finding.verdict == Verdict.OK, steps[name]
    assert steps["node GPUs"].finding.verdict == Verdict.NOT_APPLICABLE
    assert not Path(visit.folder).exists()


def test_job_is_not_submitted_where_none_is_wanted(make_visit: MakeVisit) -> None:
    steps = tried(make_visit({"scheduler": {"kind": "local"}}, wants_job=False))
    names = ("test job", "node folder", "node python", "node GPUs", "node clock")
    assert {steps[name].finding.verdict for name in names} == {Verdict.NOT_TRIED}
    assert steps["clean up"].finding.words == "files are removed"


def test_data_that_is_not_there_fails(make_visit: MakeVisit) -> None:
    steps = tried(make_visit({"scheduler": {"kind": "local"}}, wants_job=False, data=("/etc/hostname", "/no/such")))
    assert steps["data"].finding.verdict == Verdict.FAILED
    assert steps["data"].finding.words == "cannot be read: /no/such"


def test_job_whose_module_is_on_the_login_node_only_fails_with_its_last_words(
    make_visit: MakeVisit, home: Path
) -> None:
    # A login shell reads ~/.bash_profile, a batch script does not.
    (home / ".bash_profile").write_text("module() { :; }\n")
    steps = tried(make_visit({"scheduler": {"kind": "local"}, "environment": {"modules": ["cuda"]}}))
    assert steps["modules"].finding.verdict == Verdict.OK
    assert steps["test job"].finding.verdict == Verdict.FAILED
    assert "module: command not found" in steps["test job"].finding.words
    assert steps["node folder"].finding.verdict == Verdict.NOT_TRIED
    assert steps["clean up"].finding.verdict == Verdict.OK


@pytest.fixture
def pbs_standin(tmp_path: Path, shim: Shim, pbs_answers: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recorded answers on nodes and queues; jobs by the stand-in."""
    state = tmp_path / "pbs"
    monkeypatch.setenv("STANDIN_PBS_STATE", str(state))
    answers = (tmp_path / "shims" / "qstat").rename(tmp_path / "shims" / "qstat-recorded")
    shim("qstat", f'case $* in --version|-Q*) exec {answers} "$@";; *) exec {STANDIN}/qstat "$@";; esac')
    for name in ("qsub", "qdel"):
        shim(name, f'exec {STANDIN}/{name} "$@"')
    return state


def test_job_on_pbs_brings_its_report_and_is_deleted_by_its_id(make_visit: MakeVisit, pbs_standin: Path) -> None:
    centre = {"scheduler": {"kind": "pbs"}, "partitions": {"gpu": {"gpus_per_node": 0}}}
    visit = make_visit(centre, folder=Path(os.environ.get("TMPDIR", "/tmp")) / f"orch-pbs-{os.getpid()}")
    steps = tried(visit)
    assert steps["test job"].finding.verdict == Verdict.OK, steps["test job"]
    assert visit.job_id is not None
    assert re.fullmatch(r"\d+\.pbshost", visit.job_id)
    assert steps["node python"].finding.verdict == Verdict.OK
    assert steps["clean up"].finding.verdict == Verdict.OK
    assert not Path(visit.folder).exists()
    said = subprocess.run(["qstat", "-f", "-F", "json"], capture_output=True, text=True, check=True)
    assert json.loads(said.stdout).get("Jobs", {}) == {}


def test_job_that_slurm_refuses_fails_with_its_words(
    make_visit: MakeVisit,
    slurm_answers: None,
    shim: Shim,
) -> None:
    shim("sbatch", "[ \"$1\" = --version ] || { echo 'sbatch: error: Invalid account' >&2; exit 1; }")
    visit = make_visit({"scheduler": SLURM, "partitions": {"cpu": {}}})
    steps = tried(visit)
    assert steps["test job"].finding.verdict == Verdict.FAILED
    assert "Invalid account" in steps["test job"].finding.words
    assert "partition cpu" in steps["test job"].finding.remedy
    assert (visit.may_be_queued, steps["clean up"].finding.words) == (False, "files are removed")


def test_job_whose_submission_hangs_is_found_by_its_name_and_cancelled_by_its_id(
    make_visit: MakeVisit,
    slurm_answers: None,
    shim: Shim,
    tmp_path: Path,
) -> None:
    shim("sbatch", '[ "$1" = --version ] || { touch "$0.taken"; sleep 60; }')
    told = 'echo "77|PENDING||None|orch-check-0a1b2c3d"'
    shim("squeue", f"[ ! -f {tmp_path}/shims/sbatch.taken ] || {told}")
    shim("scancel", f'echo "$@" >>{tmp_path}/cancelled')
    visit = make_visit({"scheduler": SLURM, "partitions": {"cpu": {}}}, wait_s=0.5)
    steps = tried(visit)
    assert steps["test job"].finding.verdict == Verdict.WARNING
    assert "77 waited" in steps["test job"].finding.words
    assert steps["node folder"].finding.verdict == Verdict.NOT_TRIED
    assert (tmp_path / "cancelled").read_text() == "77\n"


def test_job_whose_submission_hangs_and_is_not_found_is_named_in_the_end(
    make_visit: MakeVisit,
    slurm_answers: None,
    shim: Shim,
) -> None:
    shim("sbatch", '[ "$1" = --version ] || sleep 60')
    visit = make_visit({"scheduler": {**SLURM, "command_timeout_s": 1}, "partitions": {"cpu": {}}})
    steps = tried(visit)
    assert steps["test job"].finding.verdict == Verdict.FAILED
    assert steps["clean up"].finding.verdict == Verdict.WARNING
    assert visit.token in steps["clean up"].finding.words


def test_job_whose_node_does_not_see_the_folder_says_so(
    make_visit: MakeVisit,
    slurm_answers: None,
    shim: Shim,
) -> None:
    shim("sbatch", '[ "$1" = --version ] && echo v || echo 77')
    shim("squeue", "echo '77|FAILED|gpu1|NonZeroExitCode|orch-check-0a1b2c3d'")
    shim("scancel", "exit 0")
    steps = tried(make_visit({"scheduler": SLURM, "partitions": {"cpu": {}}}))
    assert steps["test job"].finding.verdict == Verdict.FAILED
    assert "77 ended (FAILED) and left neither report nor log" in steps["test job"].finding.words
    assert "file system that the nodes see" in steps["test job"].finding.remedy


def prepared(make_visit: MakeVisit, centre: dict[str, Any], **options: Any) -> Visit:
    visit = make_visit({"scheduler": {"kind": "slurm"}, **centre}, **options)
    job_module_scheduler(visit)
    return visit


def job_module_scheduler(visit: Visit) -> None:
    from orchestrator.schedulers import PartitionFacts, make_scheduler

    assert visit.centre.scheduler is not None
    visit.spec, visit.scheduler = visit.centre.scheduler, make_scheduler(visit.centre.scheduler)
    claims = visit.centre.partitions.items()
    visit.facts = {name: PartitionFacts(item.gpus_per_node, "site file", item.gpu_type) for name, item in claims}


def test_job_asks_for_all_gpus_that_are_claimed_of_the_servers_partition(make_visit: MakeVisit) -> None:
    site = {
        "account": "p1",
        "qos": "test",
        "partitions": {"cpu": {}, "gpu": {"gpus_per_node": 4, "gpu_type": "a100"}},
    }
    asked = job.choose_resources(prepared(make_visit, site))
    assert (asked.partition, asked.gpus, asked.gpu_type) == ("gpu", 4, "a100")
    assert (asked.account, asked.qos, asked.time, asked.nodes, asked.cpus, asked.mem_gb) == ("p1", "test", "1", 1, 1, 1)
    less = job.choose_resources(prepared(make_visit, site, gpus=1, partition="gpu", time="5"))
    assert (less.gpus, less.time) == (1, "5")
    assert job.choose_resources(prepared(make_visit, site, partition="cpu")).gpus == 0
    unnamed = job.choose_resources(prepared(make_visit, {}))
    assert (unnamed.partition, unnamed.gpus) == (None, 0)


def test_job_with_what_its_scheduler_has_not_is_refused(make_visit: MakeVisit) -> None:
    with pytest.raises(UnsupportedFieldError, match="qos"):
        job.choose_resources(prepared(make_visit, {"scheduler": {"kind": "pbs"}, "qos": "x"}))


@pytest.mark.parametrize("kind", ["slurm", "pbs", "local"])
def test_job_script_is_clean_bash_with_hostile_paths(kind: str, make_visit: MakeVisit, tmp_path: Path) -> None:
    folder = tmp_path / "a $(touch pwned) 'b'"
    environment = {"python": "/x/it's/python", "modules": ["a'b"], "variables": {"X": "$(touch pwned)"}}
    folder = folder if kind == "local" else tmp_path / "a $(touch pwned)"
    site = {"scheduler": {"kind": kind}, "environment": environment}
    visit = prepared(make_visit, site, folder=folder, data=("/d/$(touch pwned)",))
    visit.resources = job.choose_resources(visit)
    script = tmp_path / "script.sh"
    script.write_text(job._script_text(visit))
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    shellcheck = shutil.which("shellcheck")
    if shellcheck:
        said = subprocess.run(
            [shellcheck, "-s", "bash", "-e", "SC2016", str(script)], capture_output=True, text=True, check=False
        )
        assert said.returncode == 0, said.stdout
