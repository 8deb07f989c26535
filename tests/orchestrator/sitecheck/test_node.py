"""What the test job told, judged."""

from __future__ import annotations

import pytest

from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.sitecheck import node
from orchestrator.sitecheck.findings import Finding, Verdict
from orchestrator.sitecheck.visit import Report
from tests.orchestrator.sitecheck.conftest import MakeVisit

NVIDIA = [
    f"GPU {index}: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-0000-0000-0000-00000000000{index})" for index in range(4)
]
# In the form of `rocm-smi -i`: several lines for each GPU.
ROCM = [line for index in range(8) for line in (f"GPU[{index}]\t\t: Device Name: MI250X", f"GPU[{index}]\t\t: GUID: 1")]
# Source: https://docs.alcf.anl.gov/aurora/performance-tools/xpu-smi/ ("xpu-smi discovery" on a node of Aurora).
XPU = [
    "| Device ID | Device Information                                                  |",
    *(
        line
        for index in range(6)
        for line in (
            f"| {index}         | Device Name: Intel(R) Data Center GPU Max 1550          |",
            "|           | Vendor Name: Intel(R) Corporation                                   |",
        )
    ),
]


def judged(make_visit: MakeVisit, asked: int, **facts: list[str]) -> Finding:
    visit = make_visit()
    visit.resources = RoleResources(gpus=asked)
    visit.report = Report({name.replace("_smi", "-smi"): lines for name, lines in facts.items()}, (0, 0))
    return node.look_at_gpus(visit)


@pytest.mark.parametrize(
    ("tool", "lines", "count"), [("nvidia_smi", NVIDIA, 4), ("rocm_smi", ROCM, 8), ("xpu_smi", XPU, 6)]
)
def test_gpus_are_counted_by_each_makers_program(
    tool: str, lines: list[str], count: int, make_visit: MakeVisit
) -> None:
    found = judged(make_visit, count, **{tool: lines})
    assert found.verdict == Verdict.OK
    assert found.words.startswith(f"{count} seen by {tool.replace('_', '-')}, {count} asked for")
    too_few = judged(make_visit, count + 1, **{tool: lines})
    assert too_few.verdict == Verdict.FAILED
    assert f"{count + 1} asked for, {count} seen" in too_few.words


def test_gpus_without_any_program_are_not_proven(make_visit: MakeVisit) -> None:
    assert judged(make_visit, 4, CUDA_VISIBLE_DEVICES=["0,1,2,3"]).verdict == Verdict.WARNING
    assert judged(make_visit, 4, CUDA_VISIBLE_DEVICES=["0,1"]).verdict == Verdict.FAILED
    assert judged(make_visit, 4).verdict == Verdict.FAILED
    assert judged(make_visit, 0).verdict == Verdict.NOT_APPLICABLE


def test_gpus_whose_driver_fails_are_told_with_its_words(make_visit: MakeVisit) -> None:
    found = judged(make_visit, 1, nvidia_smi=["NVIDIA-SMI has failed because it couldn't communicate with the driver"])
    assert found.verdict == Verdict.FAILED
    assert "couldn't communicate with the driver" in found.words


@pytest.mark.parametrize(
    ("ahead_s", "verdict"),
    [
        ((-3.0, 1.0), Verdict.OK),
        ((2.0, 6.0), Verdict.OK),
        ((20.0, 24.0), Verdict.WARNING),
        ((-24.0, -20.0), Verdict.WARNING),
        ((900.0, 904.0), Verdict.FAILED),
        ((-3604.0, -3600.0), Verdict.FAILED),
    ],
)
def test_clock_is_judged_by_the_least_that_it_must_be_off(
    ahead_s: tuple[float, float], verdict: Verdict, make_visit: MakeVisit
) -> None:
    visit = make_visit()
    visit.report = Report({}, ahead_s)
    assert node.look_at_clock(visit).verdict == verdict


def test_folder_of_the_same_name_on_the_nodes_own_disk_fails(make_visit: MakeVisit) -> None:
    visit = make_visit()
    visit.report = Report({"host": ["gpu1"], "nonce": ["another"]}, (0, 0))
    assert node.look_at_node_folder(visit, "mine").verdict == Verdict.FAILED
    assert node.look_at_node_folder(visit, "another").verdict == Verdict.OK


def test_data_that_only_the_login_node_sees_fails(make_visit: MakeVisit) -> None:
    visit = make_visit(data=("/etc/hostname", "/etc/hosts"))
    visit.report = Report({"host": ["gpu1"], "data": ["yes", "no"]}, (0, 0))
    found = node.look_at_data(visit)
    assert (found.verdict, found.words) == (Verdict.FAILED, "cannot be read on gpu1: /etc/hosts")


def test_node_with_another_python_fails(make_visit: MakeVisit) -> None:
    visit = make_visit()
    visit.report = Report({"python": ["orch-python 3.11.2 "], "supervisor_python": ["sh: python3: not found"]}, (0, 0))
    found = node.look_at_node_python(visit)
    assert found.verdict == Verdict.FAILED
    assert "not found" in found.words
