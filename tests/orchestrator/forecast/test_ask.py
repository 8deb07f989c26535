"""What schedulers say beforehand, on what the real ones answered."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from orchestrator.errors import NoConnectionError, UnsupportedFieldError
from orchestrator.forecast.ask import (
    Inquiry,
    account_warnings,
    ask_accounts,
    ask_limits,
    ask_starts,
    limit_warnings,
    start_warnings,
)
from orchestrator.plan import PlannedJob
from orchestrator.recipe.sections import LocalSchedulerSpec, PbsSchedulerSpec, SlurmSchedulerSpec
from orchestrator.schedulers import Association, PartitionLimits, make_scheduler
from orchestrator.transports import Answer, Fault, LocalTransport
from tests.builders import plan_run, recipe_document, slurm_scheduler
from tests.contract.recordings import answer, pbs, slurm

SLURM, PBS, LOCAL = (make_scheduler(spec()) for spec in (SlurmSchedulerSpec, PbsSchedulerSpec, LocalSchedulerSpec))


class Replying(LocalTransport):
    """Gives the same answer to everything, and notes what it was asked."""

    def __init__(self, said: Answer | Exception) -> None:
        self._said = said
        self.asked: list[tuple[Sequence[str], bytes | None]] = []

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        stdin: bytes | None = None,
        cwd: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Answer:
        self.asked.append((argv, stdin))
        if isinstance(self._said, Exception):
            raise self._said
        return self._said


def jobs(**sections: object) -> list[PlannedJob]:
    return list(plan_run(recipe_document("slurm", "vllm", **sections)).jobs.values())


@pytest.mark.parametrize("name", ["sbatch_test_only_stdin", "sbatch_test_only", "sbatch_test_only_over_time_limit"])
def test_start_is_slurms_own_time(name: str) -> None:
    said = SLURM.parse_test(slurm(name))
    assert said is not None
    assert said.refusal is None
    assert said.starts_at is not None
    assert time.strptime(said.starts_at, "%Y-%m-%dT%H:%M:%S")


@pytest.mark.parametrize(
    "name", ["sbatch_test_only_too_wide", "sbatch_test_only_unknown_partition", "sbatch_test_only_too_many_gpus"]
)
def test_start_that_slurm_would_refuse_has_its_words(name: str) -> None:
    said = SLURM.parse_test(slurm(name))
    assert said is not None
    assert (said.starts_at, said.refusal) == (None, slurm(name).stderr.strip())


@pytest.mark.parametrize(
    "said",
    [
        answer("42\n"),
        answer(returncode=127, stderr="sbatch: No such file"),
        answer(returncode=1, stderr="allocation failure: Unable to contact slurm controller (connect failure)"),
        answer(returncode=None),
    ],
)
def test_start_without_a_proper_answer_is_not_known(said: Answer) -> None:
    assert SLURM.parse_test(said) is None
    starts = ask_starts(Inquiry(SLURM, Replying(said)), jobs())
    assert all(start.unknown and start.unknown.startswith("not known: ") for start in starts)
    assert {(start.at, start.refusal) for start in starts} == {(None, None)}


def test_start_is_asked_with_the_script_itself_once_for_like_jobs() -> None:
    transport, planned = Replying(slurm("sbatch_test_only_stdin")), jobs()
    starts = ask_starts(Inquiry(SLURM, transport), planned)
    assert [start.job for start in starts] == ["vllm", "client", "pushgateway", "prometheus"]
    assert all(start.at for start in starts)
    scripts = {job.script_text.encode() for job in planned}
    assert len(transport.asked) == 2, "client, Pushgateway and Prometheus ask for the same"
    assert all(argv == ["sbatch", "--test-only"] and stdin in scripts for argv, stdin in transport.asked)


@pytest.mark.parametrize(
    "silence",
    [Answer(("x",), None, "", "", Fault.TIMED_OUT), NoConnectionError("cluster", "it is gone")],
    ids=["timed out", "no connection"],
)
def test_scheduler_that_is_silent_is_asked_once_and_everything_is_not_known(silence: Answer | Exception) -> None:
    transport = Replying(silence)
    inquiry = Inquiry(SLURM, transport)
    limits, limits_text = ask_limits(inquiry)
    accounts, account_text = ask_accounts(inquiry)
    starts = ask_starts(inquiry, jobs())
    assert (limits, accounts, len(transport.asked)) == ({}, None, 1)
    for text in (limits_text, account_text, *(start.unknown or "" for start in starts)):
        assert text.startswith("not known: ")
        assert "did not answer in time" in text or "it is gone" in text


def test_scheduler_that_hangs_costs_one_time_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sinfo", "sbatch", "sacctmgr"):
        (tmp_path / name).write_text("#!/bin/bash\nsleep 60\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    inquiry = Inquiry(slurm_scheduler(command_timeout_s=1), LocalTransport())
    began = time.monotonic()
    ask_limits(inquiry)
    ask_starts(inquiry, jobs())
    ask_accounts(inquiry)
    assert time.monotonic() - began < 3


def test_local_job_starts_at_once_and_pbs_cannot_be_asked() -> None:
    for scheduler, words in ((LOCAL, "at once"), (PBS, "not applicable")):
        transport = Replying(answer())
        starts = ask_starts(Inquiry(scheduler, transport), jobs())
        assert all(start.unknown is not None and start.unknown.startswith(words) for start in starts)
        assert transport.asked == []


def test_limits_of_slurm_are_those_of_each_partition() -> None:
    gpu = PartitionLimits(True, 1800, 1800, 2, 8, 16000, 4, "a100")
    assert SLURM.parse_limits(slurm("sinfo_limits")) == {
        "cpu": PartitionLimits(True, 1800, 1800, 3, 8, 16000, 0, None),
        "gpu": gpu,
    }


def test_limits_of_a_partition_with_several_kinds_of_nodes_are_those_of_the_largest() -> None:
    said = answer(
        "gpu*|up|2-00:00:00|1:00:00|4|64|512000|gpu:a100:4\n"
        "gpu*|up|2-00:00:00|1:00:00|2|96|256000|gpu:h100:8(S:0-1)\n"
        "old|down|infinite|n/a|1|8|1000|(null)\n"
    )
    limits = SLURM.parse_limits(said)
    assert limits == {
        "gpu": PartitionLimits(True, 172800, 3600, 6, 96, 512000, 8, None),
        "old": PartitionLimits(False, math.inf, None, 1, 8, 1000, 0, None),
    }


@pytest.mark.parametrize("text", ["garbage\n", "gpu|up|30:00|30:00|2|8+|16000|(null)\n"])
def test_limits_in_another_form_are_not_known(text: str) -> None:
    assert SLURM.parse_limits(answer(text)) is None
    assert SLURM.parse_limits(answer(returncode=1)) is None


def test_limits_of_pbs_are_those_of_its_queues() -> None:
    for history in ("history", "nohistory"):
        limits = PBS.parse_limits(pbs(f"{history}.qstat-queues"))
        assert limits is not None
        assert limits["gpu"] == PartitionLimits(True, 3600, 3600)
        assert limits["workq"] == PartitionLimits(True)
    assert PBS.parse_limits(answer("Queue  Max\n")) is None
    stopped = '{"pbs_server": "h", "Queue": {"q": {"enabled": "True", "started": "False"}}}'
    assert PBS.parse_limits(answer(stopped)) == {"q": PartitionLimits(is_up=False)}


def test_limits_of_this_machine_are_its_gpus() -> None:
    said = "81559, NVIDIA H100 80GB HBM3\n81559, NVIDIA H100 80GB HBM3\n"
    limits = LOCAL.parse_limits(answer(said)) or {}
    assert [(item.gpus, item.gpu_type) for item in limits.values()] == [(2, "NVIDIA H100 80GB HBM3")]
    assert [item.gpu_memory_gib for item in limits.values()] == [81559 / 1024]
    assert LOCAL.parse_limits(answer(returncode=127)) == {}
    assert LOCAL.parse_limits(answer(returncode=9, stderr="no driver")) is None


def test_limits_warn_of_what_a_partition_does_not_have() -> None:
    limits = SLURM.parse_limits(slurm("sinfo_limits")) or {}
    planned = jobs(
        infrastructure={"partition": "gpu", "time": "50", "mem_gb": 20, "gpus_per_node": 5, "nodes": 3},
        resources={"client": {"partition": "nosuch"}},
        monitoring={"mode": "off"},
    )
    never = "the job would be refused, or wait for ever"
    assert limit_warnings(planned, limits, "slurm") == [
        f"vllm: time 0:50:00 is over the longest of partition 'gpu', 0:30:00: {never}",
        "vllm: nodes 3 is more than partition 'gpu' has, 2",
        "vllm: mem 20.0G is more than partition 'gpu' has, 15.6G",
        "vllm: gpus 5 is more than partition 'gpu' has, 4",
        "client: slurm has no partition 'nosuch'. It has: cpu, gpu",
    ]
    assert limit_warnings(planned, {}, "slurm") == [], "what is not known is not warned of"


def test_warning_that_holds_for_several_jobs_is_given_once() -> None:
    planned = jobs(infrastructure={"partition": "cpu", "time": "30", "mem_gb": 1}, hpo={"dataset": {"kind": "digits"}})
    limits = {"cpu": PartitionLimits(max_time_s=60)}
    assert [text.partition(": ")[0] for text in limit_warnings(planned, limits, "slurm")] == [
        "vllm, client, pushgateway, prometheus, trials"
    ]
    refused = ask_starts(Inquiry(SLURM, Replying(slurm("sbatch_test_only_unknown_partition"))), planned)
    said = "sbatch: error: invalid partition specified: nosuch; allocation failure: Invalid partition name specified"
    names = "vllm, client, pushgateway, prometheus, trials"
    assert start_warnings(refused, planned) == [f"{names}: the scheduler would refuse it: {said}"]


def test_limits_warn_of_a_partition_that_is_down_and_not_of_what_fits() -> None:
    planned = jobs(infrastructure={"partition": "gpu", "time": "30", "mem_gb": 1}, monitoring={"mode": "off"})
    limits = {"gpu": PartitionLimits(is_up=False, max_time_s=1800, nodes=1, cpus=8, gpus=1), "cpu": PartitionLimits()}
    assert limit_warnings(planned, limits, "slurm") == ["vllm: partition 'gpu' is not up: jobs of it wait"]


def test_accounts_are_not_known_where_slurm_keeps_none() -> None:
    accounts, text = ask_accounts(Inquiry(SLURM, Replying(slurm("sacctmgr_own"))))
    assert (accounts, text) == (None, "not known: You are not running a supported accounting_storage plugin")
    assert account_warnings(jobs(infrastructure={"account": "nosuch"}), accounts) == []


def test_accounts_of_slurmdbd_are_checked_with_partition_and_qos() -> None:
    # The form of sacctmgr(1), -n -P; the test cluster has no slurmdbd to record it from.
    accounts = SLURM.parse_accounts(answer("p1||normal,short\np2|cpu|\n"))
    assert accounts == (Association("p1", None, ("normal", "short")), Association("p2", "cpu", ()))
    assert account_warnings(jobs(infrastructure={"account": "p1", "qos": "short"}), accounts) == []
    assert account_warnings(jobs(infrastructure={"account": "p3"}), accounts) == [
        "account 'p3' is not yours as far as the scheduler knows. Yours: p1, p2"
    ]
    assert account_warnings(jobs(infrastructure={"account": "p1", "qos": "long"}), accounts) == [
        "qos 'long' does not go with account 'p1'. Allowed: normal, short"
    ]
    assert account_warnings(jobs(infrastructure={"account": "p2", "partition": "gpu"}), accounts) == [
        "account 'p2' does not hold for partition 'gpu'"
    ]


def test_mail_has_each_schedulers_names_of_events() -> None:
    assert SLURM.mail_events({"ready", "failed", "finished", "near_end"}) == "BEGIN,FAIL,END,TIME_LIMIT_90"
    assert SLURM.mail_events({"failed"}) == "FAIL"
    assert PBS.mail_events({"ready", "failed", "finished"}) == "abe"
    for scheduler, events in ((PBS, {"near_end"}), (LOCAL, {"failed"})):
        with pytest.raises(UnsupportedFieldError, match=r"job\.notify"):
            scheduler.mail_events(events)
