"""What schedulers say of themselves, accounts and partitions; answers are recorded, or in the recorded form."""

from __future__ import annotations

import os
import time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from orchestrator.sitecheck import batch
from orchestrator.sitecheck.check import run_check
from orchestrator.sitecheck.findings import Finding, Step, Verdict
from orchestrator.sitecheck.show import exit_code
from tests.orchestrator.sitecheck.conftest import MakeVisit, Shim

SLURM = {"kind": "slurm", "command_timeout_s": 5}
GPU = {"gpus_per_node": 4, "gpu_type": "a100"}


def partitions(make_visit: MakeVisit, centre: dict[str, Any]) -> Finding:
    visit = make_visit(centre)
    assert batch.look_at_scheduler(visit).verdict == Verdict.OK
    return batch.look_at_partitions(visit)


def test_scheduler_is_told_with_its_version(make_visit: MakeVisit, slurm_answers: None) -> None:
    found = batch.look_at_scheduler(make_visit({"scheduler": SLURM}))
    assert (found.verdict, found.words) == (Verdict.OK, "slurm: slurm-wlm 22.05.8 (as the site file says)")


@pytest.mark.parametrize(
    ("kills", "verdict"), [("b false", Verdict.OK), ("b true", Verdict.WARNING), ("no bus", Verdict.OK)]
)
def test_plain_machine_is_asked_with_the_program_that_is_brought_there(
    make_visit: MakeVisit, shim: Shim, tmp_path: Path, kills: str, verdict: Verdict
) -> None:
    shim("busctl", f"echo {kills}")
    visit = make_visit({"scheduler": {"kind": "local"}})
    visit.name = "box"
    found = batch.look_at_scheduler(visit)
    assert found.verdict == verdict, found
    assert ("KillUserProcesses" in found.words) is (verdict == Verdict.WARNING)
    assert (visit.own_folder / "jobs" / "local_jobs.py") == PurePosixPath(visit.batch.status_argv()[1])
    assert Path(visit.batch.status_argv()[1]).is_file()
    sizes = batch.look_at_partitions(visit)
    assert f"{len(os.sched_getaffinity(0))} CPUs" in sizes.words


def test_host_without_batch_system_that_is_not_described_as_plain_is_red(
    make_visit: MakeVisit, no_batch_system: Path
) -> None:
    visit = make_visit()
    visit.name = "box"
    found = batch.look_at_scheduler(visit)
    assert found.verdict == Verdict.FAILED
    assert "scheduler: {kind: local}" in found.remedy


def test_pbs_is_told_with_its_version(make_visit: MakeVisit, pbs_answers: None) -> None:
    found = batch.look_at_scheduler(make_visit({"scheduler": {"kind": "pbs"}}))
    assert (found.verdict, found.words) == (Verdict.OK, "pbs: pbs_version = 23.06.06 (as the site file says)")


@pytest.mark.parametrize(
    ("claims", "verdict", "words"),
    [
        ({"gpu": GPU, "cpu": {}}, Verdict.OK, "gpu (4 GPUs), cpu (0 GPUs)"),
        ({"gpux": GPU}, Verdict.FAILED, "there is no 'gpux'; there are: cpu, gpu"),
        ({"gpu": {"gpus_per_node": 8}}, Verdict.FAILED, "'gpu' has 4 GPUs per node, the site file says 8"),
        ({"gpu": {"gpus_per_node": 2}}, Verdict.WARNING, "'gpu' has 4 GPUs per node, the site file says 2"),
        ({"gpu": {**GPU, "gpu_type": "h100"}}, Verdict.FAILED, "'gpu' calls its GPUs a100, the site file h100"),
        ({}, Verdict.NOT_APPLICABLE, "the site file names none; the scheduler has cpu, gpu"),
    ],
)
def test_partitions_of_slurm_are_compared_with_the_site_file(
    claims: dict[str, Any], verdict: Verdict, words: str, make_visit: MakeVisit, slurm_answers: None
) -> None:
    found = partitions(make_visit, {"scheduler": SLURM, "partitions": claims})
    assert (found.verdict, found.words) == (verdict, words)


def test_partition_named_for_a_role_only_has_to_be_there(make_visit: MakeVisit, slurm_answers: None) -> None:
    found = partitions(make_visit, {"scheduler": SLURM, "role_partitions": {"client": "cpus"}})
    assert found.verdict == Verdict.FAILED
    assert "'cpus'" in found.words


@pytest.mark.parametrize(
    ("claims", "verdict"),
    [
        ({"gpu": {"gpus_per_node": 4}, "workq": {}}, Verdict.OK),
        ({"gpu": {"gpus_per_node": 6}}, Verdict.FAILED),
        ({"prod": {"gpus_per_node": 4}}, Verdict.FAILED),
    ],
)
def test_queues_of_pbs_are_compared_with_the_site_file(
    claims: dict[str, Any], verdict: Verdict, make_visit: MakeVisit, pbs_answers: None
) -> None:
    assert partitions(make_visit, {"scheduler": {"kind": "pbs"}, "partitions": claims}).verdict == verdict


@pytest.mark.parametrize(
    ("said", "site", "verdict", "words"),
    [
        ("p200000||default,short", {"account": "p200000", "qos": "short"}, Verdict.OK, "with qos 'short'"),
        ("p200000||default", {"account": "p200000", "qos": "long"}, Verdict.FAILED, "Allowed: default"),
        ("p200000||default", {"account": "p200001"}, Verdict.FAILED, "Yours: p200000"),
        ("p200000||default", {}, Verdict.OK, "the default one is charged"),
        ("", {"account": "p200000"}, Verdict.FAILED, "no account of yours"),
    ],
)
def test_account_is_compared_with_what_slurmdbd_says(
    said: str,
    site: dict[str, str],
    verdict: Verdict,
    words: str,
    make_visit: MakeVisit,
    slurm_answers: None,
    shim: Shim,
) -> None:
    shim("sacctmgr", f"printf '%s' '{said}'")
    visit = make_visit({"scheduler": SLURM, **site})
    batch.look_at_scheduler(visit)
    found = batch.look_at_account(visit)
    assert found.verdict == verdict
    assert words in found.words


def test_account_without_slurmdbd_is_not_applicable(make_visit: MakeVisit, slurm_answers: None, shim: Shim) -> None:
    shim("sacctmgr", "echo You are not running a supported accounting_storage plugin >&2; exit 1")
    visit = make_visit({"scheduler": SLURM, "account": "p1"})
    batch.look_at_scheduler(visit)
    assert batch.look_at_account(visit).verdict == Verdict.NOT_APPLICABLE


def test_scheduler_that_hangs_costs_one_time_limit_and_stops_what_needs_it(make_visit: MakeVisit, shim: Shim) -> None:
    shim("squeue", "sleep 60")
    visit = make_visit({"scheduler": {"kind": "slurm", "command_timeout_s": 1}})
    steps: list[Step] = []
    started = time.monotonic()
    run_check(visit, lambda _: None, steps)
    assert time.monotonic() - started < 20
    verdicts = {step.name: step.finding.verdict for step in steps}
    assert verdicts["scheduler"] == Verdict.FAILED
    assert {verdicts[name] for name in ("account", "partitions", "test job", "node folder")} == {Verdict.NOT_TRIED}
    assert verdicts["folder"] == verdicts["clean up"] == Verdict.OK
    assert exit_code(steps) == 1
    assert not Path(visit.folder).exists()
