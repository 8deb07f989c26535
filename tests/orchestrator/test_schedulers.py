"""What the backends make of real answers."""

from __future__ import annotations

import csv
import json
import shutil
import uuid
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SubmitError
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.render import directive_value
from orchestrator.schedulers import JobState, PartitionFacts, Seen, Submission
from orchestrator.schedulers.local import LocalScheduler, machine_mem_gb
from orchestrator.schedulers.slurm import STATES
from orchestrator.transports import Answer, LocalTransport
from tests.builders import slurm_scheduler
from tests.orchestrator.conftest import wait_for

RECORDED = Path(__file__).parents[1] / "cluster" / "recorded"
with (RECORDED / "INDEX.tsv").open() as _file:
    INDEX = {name: (int(code), command) for name, code, command in csv.reader(_file, delimiter="\t")}
SUBMITTED = [name for name, (code, command) in INDEX.items() if "sbatch --parsable" in command and code == 0]
REFUSED = [name for name, (code, command) in INDEX.items() if "sbatch --parsable" in command and code != 0]
SLURM = slurm_scheduler()


def recorded(name: str) -> Answer:
    """Return a recorded answer of a real Slurm 22.05."""
    code, command = INDEX[name]
    err = RECORDED / f"{name}.err"
    return Answer((command,), code, (RECORDED / f"{name}.out").read_text(), err.read_text() if err.exists() else "")


def in_our_order(answer: Answer) -> Answer:
    """Return a recorded `%i|%j|%T|%N|%r` as our `%i|%T|%N|%r|%j`; names may hold '|', the other fields do not."""
    lines = []
    for line in answer.stdout.splitlines():
        job_id, rest = line.split("|", 1)
        name, state, node, reason = rest.rsplit("|", 3)
        lines.append(f"{job_id}|{state}|{node}|{reason}|{name}\n")
    return Answer(answer.argv, answer.returncode, "".join(lines), answer.stderr)


def answer(stdout: str = "", returncode: int | None = 0, stderr: str = "") -> Answer:
    """Return an answer."""
    return Answer(("program",), returncode, stdout, stderr)


@pytest.mark.parametrize("name", SUBMITTED)
def test_slurm_recorded_submission_gives_its_id(name: str) -> None:
    assert SLURM.parse_submit(recorded(name)) == recorded(name).stdout.strip().split(";")[0]


@pytest.mark.parametrize("name", REFUSED)
def test_slurm_recorded_refusal_is_final_and_carries_slurms_words(name: str) -> None:
    said = recorded(name)
    assert not SLURM.is_ambiguous(said)
    with pytest.raises(SubmitError) as caught:
        SLURM.parse_submit(said)
    assert said.stderr.strip()
    assert said.stderr.strip() in str(caught.value)


def test_slurm_recorded_answers_are_not_all_gone() -> None:
    assert len(SUBMITTED) >= 10
    assert len(REFUSED) >= 15


def test_slurm_too_large_a_request_is_told_in_words() -> None:
    with pytest.raises(SubmitError, match="no node of the partition has the CPUs, memory or GPUs"):
        SLURM.parse_submit(recorded("sbatch_too_many_gpus"))


def test_slurm_id_on_a_federation_is_without_its_cluster() -> None:
    assert SLURM.parse_submit(answer("42;cluster1\n")) == "42"
    assert SLURM.parse_submit(answer("sbatch: a site's greeting\n42\n")) == "42"


@pytest.mark.parametrize(
    "said",
    [
        answer(returncode=None),
        answer(returncode=-9),
        answer("nothing that is a number\n"),
        answer(
            returncode=1, stderr="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
        ),
        answer(returncode=1, stderr="sbatch: error: Batch job submission failed: Unable to contact slurm controller"),
        answer(
            returncode=1, stderr="sbatch: error: Batch job submission failed: Zero Bytes were transmitted: Connection"
        ),
    ],
)
def test_slurm_lost_answer_is_ambiguous_and_no_id(said: Answer) -> None:
    assert SLURM.is_ambiguous(said)
    with pytest.raises(SubmitError):
        SLURM.parse_submit(said)


def test_slurm_recorded_queue_is_read_whole() -> None:
    seen = SLURM.parse_status(in_our_order(recorded("squeue_all_array_expanded")))
    assert seen is not None
    assert len(seen) == len(recorded("squeue_all_array_expanded").stdout.splitlines())
    assert seen["9_2"] == Seen("9_2", "a|b c_2", JobState.COMPLETED, "cpu1", None)
    assert seen["4"] == Seen("4", "gpus", JobState.COMPLETED, "gpu[1-2]", None)
    assert seen["5"] == Seen("5", "too_wide", JobState.PENDING, None, "PartitionNodeLimit", never_starts=True)
    assert seen["11"] == Seen("11", "over_time", JobState.TIMEOUT, "cpu1", "TimeLimit")
    assert seen["12"] == Seen("12", "no_folder", JobState.FAILED, "cpu1", "JobLaunchFailure")
    assert seen["17"] == Seen("17", "refused_2", JobState.FAILED, None, "BadConstraints")
    assert seen["10_9"].state == JobState.PENDING
    assert JobState.UNKNOWN not in {job.state for job in seen.values()}


def test_slurm_completing_job_still_runs() -> None:
    seen = SLURM.parse_status(in_our_order(recorded("squeue_job_completing")))
    assert seen is not None
    assert seen["13"].state == JobState.RUNNING


def test_slurm_empty_queue_is_an_answer_and_a_failure_is_none() -> None:
    assert SLURM.parse_status(recorded("squeue_empty")) == {}
    assert SLURM.parse_status(recorded("squeue_unknown_job")) is None
    assert SLURM.parse_status(answer(returncode=None)) is None


@pytest.mark.parametrize("text", ["garbage\n", "1|RUNNING\n", "|RUNNING|n|r|x\n", "1|RUNNING|n|r|x\nhello\n", "\n"])
def test_slurm_garbage_in_the_queue_is_no_answer(text: str) -> None:
    assert SLURM.parse_status(answer(text)) is None


@settings(deadline=None)
@given(st.text())
@example("1| |n|r|x")
@example("1||||")
def test_slurm_queue_of_any_text_is_read_or_no_answer(text: str) -> None:
    seen = SLURM.parse_status(answer(text))
    assert seen is None or all(isinstance(job.state, JobState) for job in seen.values())


def test_slurm_state_that_is_new_is_unknown_and_decorated_ones_are_known() -> None:
    seen = SLURM.parse_status(answer("1|BRAND_NEW|n|r|x\n2|CANCELLED by 1000|n|r|x\n3||n|r|x\n"))
    assert seen is not None
    assert [job.state for job in seen.values()] == [JobState.UNKNOWN, JobState.CANCELLED, JobState.UNKNOWN]


def test_slurm_states_of_the_manual_are_all_known() -> None:
    # squeue(1), "JOB STATE CODES", 22.05.
    manual = """BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING
        PREEMPTED RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED SIGNALING SPECIAL_EXIT
        STAGE_OUT STOPPED SUSPENDED TIMEOUT"""
    assert set(manual.split()) == set(STATES)


def test_slurm_asks_once_for_all_of_the_users_jobs() -> None:
    argv = SLURM.status_argv()
    assert argv[:2] == ["squeue", "--me"]
    assert "--states=all" in argv
    assert "--format=%i|%T|%N|%r|%j" in argv


def test_slurm_cancels_by_id_only() -> None:
    assert SLURM.cancel_argv(["1", "2_3"]) == ["scancel", "1", "2_3"]


def test_slurm_recorded_sinfo_tells_gpus_of_partitions() -> None:
    # Recorded with more columns: '%P|%G|%l|%c|%m'; ours are the first two.
    lines = ["|".join(line.split("|")[:2]) for line in recorded("sinfo").stdout.splitlines()]
    assert SLURM.parse_partitions(answer("\n".join(lines))) == {
        "cpu": PartitionFacts(0, "sinfo"),
        "gpu": PartitionFacts(4, "sinfo"),
    }


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100_1g.5gb:7", 7),
        ("gpu:a:2,gpu:b:1", 3),
        ("fs:1", 0),
    ],
)
def test_slurm_gres_in_each_form_is_counted(gres: str, gpus: int) -> None:
    assert SLURM.parse_partitions(answer(f"p*|{gres}\n")) == {"p": PartitionFacts(gpus, "sinfo")}


def test_slurm_partition_of_different_nodes_has_those_of_the_largest() -> None:
    assert SLURM.parse_partitions(answer("p|gpu:2\np|gpu:8\np|(null)\n"))["p"].gpus_per_node == 8
    assert SLURM.parse_partitions(answer(returncode=1)) == {}


def test_local_answers_are_read() -> None:
    local = LocalScheduler()
    lines = [
        {"id": "1.2", "name": "t", "state": "RUNNING", "host": "h"},
        {"id": "3.4", "name": "u", "state": "ENDED", "host": "h"},
        {"id": "5.6", "name": "v", "state": "BRAND_NEW", "host": "h"},
    ]
    seen = local.parse_status(answer("".join(json.dumps(line) + "\n" for line in lines)))
    assert seen is not None
    assert [job.state for job in seen.values()] == [JobState.RUNNING, JobState.FAILED, JobState.UNKNOWN]
    assert local.parse_submit(answer("1.2\n")) == "1.2"


@pytest.mark.parametrize("text", ["x\n", "[]\n", '{"id": "1"}\n', "1\n"])
def test_local_garbage_is_no_answer(text: str) -> None:
    assert LocalScheduler().parse_status(answer(text)) is None
    assert LocalScheduler().parse_status(answer(returncode=1)) is None


def test_local_failed_submission_carries_its_words() -> None:
    said = answer(returncode=1, stderr="local_jobs: no such script")
    assert not LocalScheduler().is_ambiguous(said)
    with pytest.raises(SubmitError, match="no such script"):
        LocalScheduler().parse_submit(said)
    assert LocalScheduler().is_ambiguous(answer(returncode=None))


def test_local_submission_names_token_log_and_cpus() -> None:
    argv = LocalScheduler().submit_argv(Submission("token", Path("/s.sh"), Path("/l.batch"), 2))
    assert argv[2:] == ["submit", "--name", "token", "--stdout", "/l.batch", "--cpus", "2", "/s.sh"]
    assert "--cpus" not in LocalScheduler().submit_argv(Submission("token", Path("/s.sh"), Path("/l.batch"), None))


def test_local_gpus_are_those_that_nvidia_smi_lists() -> None:
    local = LocalScheduler()
    facts = local.parse_partitions(answer("GPU 0: A (UUID: 1)\nGPU 1: A (UUID: 2)\n"))
    wanted = RoleResources()
    assert local.resources("server", wanted, None, facts, []).gpus == 1
    assert local.resources("client", wanted, None, facts, []).gpus == 0
    none = local.parse_partitions(answer(returncode=127))
    assert local.resources("server", wanted, None, none, []).gpus == 0


def test_local_memory_of_this_machine_is_that_of_proc() -> None:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    assert machine_mem_gb() == pytest.approx(int(line.split()[1]) * 1024 / 1e9, abs=0.1)


def controller() -> str | None:
    """Return why no Slurm answers here, or None."""
    if shutil.which("squeue") is None:
        return "squeue is not installed (tests/cluster/up.sh brings Slurm up)"
    said = LocalTransport().run(["squeue", "--me", "--noheader"], 10.0)
    return None if said.returncode == 0 else f"squeue does not answer: {said.stderr.strip()[:200]}"


@pytest.mark.slurm
def test_slurm_live_takes_our_directives_and_lists_the_job_by_its_token(tmp_path: Path) -> None:
    reason = controller()
    if reason:
        pytest.skip(reason)
    transport = LocalTransport()
    folder = tmp_path / "it's 50%j #1"
    folder.mkdir()
    tmp_path.chmod(0o755)
    token = f"orch-test-{uuid.uuid4().hex[:8]}"
    script = folder / "job.sh"
    log = directive_value(f"{str(folder).replace('%', '%%')}/vllm_%j.batch")
    script.write_text(
        f"#!/bin/bash\n#SBATCH --job-name={directive_value(token)}\n#SBATCH --output={log}\n"
        "#SBATCH --mem=100M\n#SBATCH --time=2\necho here\nsleep 60\n"
    )
    submission = Submission(token, script, folder / "x", 1)
    job_id = SLURM.parse_submit(transport.run(SLURM.submit_argv(submission), 30.0))
    try:
        wait_for((folder / f"vllm_{job_id}.batch").exists, 60.0)
        seen = SLURM.parse_status(transport.run(SLURM.status_argv(), 30.0))
        assert seen is not None
        assert (seen[job_id].name, seen[job_id].state) == (token, JobState.RUNNING)
        assert seen[job_id].node
    finally:
        cancelled = transport.run(SLURM.cancel_argv([job_id]), 30.0)
    assert cancelled.returncode == 0
    seen = SLURM.parse_status(transport.run(SLURM.status_argv(), 30.0))
    assert seen is not None
    assert seen[job_id].state in {JobState.RUNNING, JobState.CANCELLED}
    assert SLURM.parse_partitions(transport.run(SLURM.partitions_argv(), 30.0))
