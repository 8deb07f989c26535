"""What is PBS's own: its states, its almost-JSON, its directives, its limits."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RecipeError, UnsafeValueError, UnsupportedFieldError
from orchestrator.recipe.infrastructure import Resources, RoleResources
from orchestrator.recipe.sections import PbsSchedulerSpec
from orchestrator.schedulers import JobState, PartitionFacts, Submission
from orchestrator.schedulers.pbs import EXIT_STATES, FINISHED, STATES, PbsScheduler, walltime
from orchestrator.schedulers.pbs_json import read_jobs
from orchestrator.site import Site
from orchestrator.transports import Answer, LocalTransport
from tests.builders import plan_run, recipe_document
from tests.contract.recordings import PBS, PBS_USER, answer, pbs, pbs_names, pbs_queue, pbs_status

SCHEDULER = PbsScheduler(PbsSchedulerSpec())


def state_of(**job: object) -> JobState:
    seen = SCHEDULER.parse_status(answer(pbs_queue({"1.h": {"Job_Name": "x", **job}})))
    assert seen is not None
    return seen["1.h"].state


def test_pbs_states_of_the_manual_are_all_known() -> None:
    # qstat(1B), "Job Status in Default Format", 23.06.
    assert set(STATES) | FINISHED == set("BEFHMQRSTUWX")


@pytest.mark.parametrize(
    ("job", "state"),
    [
        ({"job_state": "F", "Exit_status": 0}, JobState.COMPLETED),
        ({"job_state": "F", "Exit_status": 1}, JobState.FAILED),
        ({"job_state": "F", "Exit_status": 271}, JobState.CANCELLED),
        ({"job_state": "F", "Exit_status": 265}, JobState.CANCELLED),
        ({"job_state": "F", "Exit_status": 267}, JobState.FAILED),
        ({"job_state": "F", "Exit_status": -29}, JobState.TIMEOUT),
        ({"job_state": "F", "Exit_status": 271, "comment": "… and exceeded resource walltime"}, JobState.TIMEOUT),
        ({"job_state": "F", "Exit_status": -27}, JobState.OUT_OF_MEMORY),
        ({"job_state": "F", "Exit_status": 271, "comment": "… and exceeded resource mem"}, JobState.OUT_OF_MEMORY),
        ({"job_state": "F", "Exit_status": -20}, JobState.NODE_FAIL),
        ({"job_state": "F", "Exit_status": -3}, JobState.FAILED),
        ({"job_state": "F", "substate": 91}, JobState.CANCELLED),
        ({"job_state": "F"}, JobState.FAILED),
        ({"job_state": "X", "Exit_status": 0}, JobState.COMPLETED),
        ({"job_state": "Q", "run_count": 1}, JobState.REQUEUED),
        ({"job_state": "Q"}, JobState.PENDING),
        ({"job_state": "E", "Exit_status": 0}, JobState.RUNNING),
        ({"job_state": "M"}, JobState.UNKNOWN),
        ({"job_state": "S"}, JobState.SUSPENDED),
    ],
)
def test_pbs_job_is_in_the_state_that_letter_status_and_comment_tell(job: dict[str, Any], state: JobState) -> None:
    assert state_of(**job) == state


def test_pbs_exit_states_are_final() -> None:
    assert all(state.is_final for state in EXIT_STATES.values())


def test_pbs_answers_are_not_all_gone() -> None:
    assert len(pbs_names("qsub")) >= 20
    assert len(pbs_names("qstat")) >= 25
    assert len(list(PBS.glob("*.json"))) >= 60


def test_pbs_reason_is_the_comment_and_what_can_never_run_is_told() -> None:
    seen = SCHEDULER.parse_status(pbs_status("history.qstat-all"))
    assert seen is not None
    assert seen["14.pbshost"].never_starts
    assert str(seen["14.pbshost"].reason).startswith("Can Never Run: Insufficient amount of resource: ngpus")
    assert not seen["17.pbshost"].never_starts
    assert seen["16.pbshost"].node == "pbshost"


def test_pbs_node_is_each_host_of_exec_host_once() -> None:
    job: dict[str, object] = {"Job_Name": "x", "job_state": "R", "exec_host": "n1/0*8+n1/1*8+n2.site.org/0"}
    seen = SCHEDULER.parse_status(answer(pbs_queue({"1.h": job})))
    assert seen is not None
    assert seen["1.h"].node == "n1,n2.site.org"


def test_pbs_value_that_qstat_writes_without_quotes_is_text_again() -> None:
    # cJSON writes whatever parses as JSON without quotes (pbs_cjson.c, pbs_json_insert_parsed).
    seen = SCHEDULER.parse_status(answer(pbs_queue({"1.h": {"Job_Name": 12, "job_state": "R", "comment": 7}})))
    assert seen is not None
    assert (seen["1.h"].name, seen["1.h"].reason) == ("12", "7")


OLD_WRITER = """{
    "timestamp":1570045708,
    "pbs_version":"19.1.1",
    "pbs_server":"scheduler",
    "Jobs":{
        "4.scheduler":{
            "Job_Name":"STDIN",
            "Job_Owner":"someone@login",
            "job_state":"R",
            "exec_host":"n1/0",
            "Resource_List":{
                "select":"1"
            },
            "Variable_List":{
                "foo":005,
                "limit":.5,
                "BASH_FUNC_module%%":"() {  eval `\\usr\\bin \\(x\\)`\\n}",
                "job_state":"F",
                "fake":"} \\n        \\"5.scheduler\\":{"
            },
            "comment":"Job run at Fri Jul 01"
        },
        "5.scheduler":{
            "Job_Name":"orch-0a1b2c3d-vllm",
            "Job_Owner":"me@login",
            "job_state":"Q",
            "comment":"Not Running: \\(host\\)"
        }
    }
}
"""


def test_pbs_document_that_is_no_json_is_read_by_its_lines() -> None:
    # openpbs issues 1255 (foo) and 2541 (BASH_FUNC): an environment of another user spoils the whole document.
    found = read_jobs(OLD_WRITER)
    assert found is not None
    assert {job_id: job["job_state"] for job_id, job in found.items()} == {"4.scheduler": "R", "5.scheduler": "Q"}
    assert found["5.scheduler"]["Job_Name"] == "orch-0a1b2c3d-vllm"
    for user, job_id, state in (
        ("someone", "4.scheduler", JobState.RUNNING),
        ("me", "5.scheduler", JobState.PENDING),
    ):
        seen = SCHEDULER.parse_status(answer(f"{user}\n{OLD_WRITER}"))
        assert seen is not None
        assert {job.job_id: job.state for job in seen.values()} == {job_id: state}


@pytest.mark.parametrize("end", range(2, len(OLD_WRITER) - 1, 7))
def test_pbs_document_that_is_no_json_and_cut_short_is_no_answer(end: int) -> None:
    assert SCHEDULER.parse_status(answer("me\n" + OLD_WRITER[:end])) is None


@pytest.mark.parametrize("name", [name for name in pbs_names("qstat") if "queues" not in name])
def test_pbs_recorded_document_reads_the_same_by_its_lines(name: str) -> None:
    text = pbs(name).stdout
    spoiled = text.replace('"Priority":\t0', '"Priority":\t005')
    if spoiled != text:
        whole, lines = read_jobs(text), read_jobs(spoiled)
        assert whole is not None
        assert lines is not None
        assert list(lines) == list(whole)
        assert all(whole[job_id].get(key) == value for job_id, job in lines.items() for key, value in job.items())


def test_pbs_asks_once_for_all_jobs_and_for_history_only_where_it_is_wanted() -> None:
    assert SCHEDULER.status_argv() == ["sh", "-c", "id -un && exec qstat -f -F json"]
    asked = PbsScheduler(PbsSchedulerSpec(history=True))
    assert asked.status_argv()[-1] == "id -un && exec qstat -x -f -F json"
    assert asked.status_argv(with_tasks=True)[-1] == "id -un && exec qstat -x -t -f -F json"


@pytest.mark.parametrize(
    "owner", ["mallory@pbshost", f"{PBS_USER}x@pbshost", f"x@{PBS_USER}@pbshost", PBS_USER, 5, None]
)
def test_pbs_job_of_another_user_under_our_name_is_not_seen(owner: object) -> None:
    stolen = {"Job_Name": "orch-0a1b2c3d-vllm", "job_state": "R", "Job_Owner": owner}
    ours: dict[str, object] = {"Job_Name": "orch-0a1b2c3d-vllm", "job_state": "Q"}
    seen = SCHEDULER.parse_status(answer(pbs_queue({"1.h": stolen, "2.h": ours, "3.h": stolen})))
    assert seen is not None
    assert list(seen) == ["2.h"]


def test_pbs_user_whose_name_holds_an_at_is_known_by_all_of_it() -> None:
    job: dict[str, object] = {"Job_Name": "x", "job_state": "R", "Job_Owner": "me@site.org@login1"}
    text = pbs_queue({"1.h": job}).partition("\n")[2]
    assert list(SCHEDULER.parse_status(answer(f"me@site.org\n{text}")) or {}) == ["1.h"]
    assert SCHEDULER.parse_status(answer(f"me\n{text}")) == {}


def test_pbs_status_command_tells_who_asks_and_fails_as_qstat_does(tmp_path: Path) -> None:
    document = tmp_path / "document"
    document.write_text(
        pbs("history.qstat-all").stdout.replace("user@pbshost", f"{pwd.getpwuid(os.getuid()).pw_name}@login1")
    )
    program = tmp_path / "qstat"
    program.write_text(f"#!/bin/sh\ncat {document}\nexit 153\n")
    program.chmod(0o700)
    said = subprocess.run(
        SCHEDULER.status_argv(), capture_output=True, text=True, check=False, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}
    )
    assert said.returncode == 153
    whole = SCHEDULER.parse_status(answer(said.stdout))
    assert whole is not None
    assert len(whole) == 5


@pytest.mark.parametrize("name", pbs_names("qdel"))
def test_pbs_recorded_cancellation_is_taken_unless_the_server_is_down(name: str) -> None:
    assert SCHEDULER.has_cancelled(pbs(name)) == ("server-down" not in name)


def test_pbs_cancellation_that_is_not_permitted_has_failed() -> None:
    said = answer(returncode=159, stderr="qdel: Unknown Job Id 1.h\nqdel: Unauthorized Request  2.h")
    assert not SCHEDULER.has_cancelled(said)
    assert SCHEDULER.has_cancelled(answer(returncode=35, stderr="qdel: Job has finished 1.h"))


def test_pbs_gpus_are_those_of_the_largest_node() -> None:
    facts = SCHEDULER.parse_partitions(pbs_nodes())
    assert facts == {"": PartitionFacts(4, "pbsnodes", cpus=8, mem_mib=24_105)}
    assert SCHEDULER.resources("server", RoleResources(partition="any"), None, facts, []).gpus == 1
    assert SCHEDULER.resources("client", RoleResources(), None, facts, []).gpus == 0
    assert SCHEDULER.parse_partitions(answer(returncode=127)) == {}
    assert SCHEDULER.parse_partitions(answer("garbage")) == {}


def pbs_nodes() -> Answer:
    return pbs("history.pbsnodes")


def test_pbs_more_gpus_than_any_node_has_are_refused_because_the_job_would_wait_for_ever() -> None:
    facts = SCHEDULER.parse_partitions(pbs_nodes())
    with pytest.raises(UnsupportedFieldError, match=r"gpus = 64 for the server job.*no node has more than 4"):
        SCHEDULER.resources("server", RoleResources(gpus=64), None, facts, [])
    site = {**facts, "big": PartitionFacts(64, "site file")}
    assert SCHEDULER.resources("server", RoleResources(gpus=64, partition="big"), None, site, []).gpus == 64


@pytest.mark.parametrize(
    ("limit", "hours"), [("30", "00:30:00"), ("1:5", "00:01:05"), ("2-0", "48:00:00"), ("120:00:00", "120:00:00")]
)
def test_pbs_wall_time_is_written_in_hours(limit: str, hours: str) -> None:
    assert walltime(limit) == hours
    assert walltime(hours) == hours


def script(scheduler: dict[str, Any] | None = None, site: Site | None = None, **job: Any) -> str:
    document = recipe_document("pbs", "vllm", **job)
    document["job"]["scheduler"] |= scheduler or {}
    return plan_run(document, site=site).server.script_text


@pytest.mark.parametrize(
    ("scheduler", "line"),
    [
        ({"place": "scatter:excl"}, "-l place=scatter:excl"),
        ({"filesystems": "home:flare"}, "-l filesystems=home:flare"),
        ({"chunk": "a=b:c=d"}, "-l select=1:ncpus=8:ngpus=1:a=b:c=d:mem=65536mb"),
        ({"gpu_resource": "gpus"}, "-l select=1:ncpus=8:gpus=1:mem=65536mb"),
        ({"mail_events": "ae", "mail_users": "me@site.org"}, "-m ae"),
        ({"mail_users": "me@site.org"}, "-M me@site.org"),
        ({"rerunnable": False}, "-r n"),
    ],
)  # fmt: skip
def test_pbs_option_of_the_scheduler_is_a_directive(scheduler: dict[str, Any], line: str) -> None:
    assert f"#PBS {line}\n" in script(scheduler)
    assert f"#PBS {line}\n" not in script()


def test_pbs_options_of_the_site_hold_where_the_recipe_names_none() -> None:
    site = Site(scheduler=PbsSchedulerSpec(filesystems="home:flare", place="pack"))
    text = script({"place": "scatter"}, site)
    assert "#PBS -l filesystems=home:flare\n" in text
    assert "#PBS -l place=scatter\n" in text


def test_pbs_nodes_of_one_job_are_different_hosts() -> None:
    assert "#PBS -l place=scatter\n" in script(infrastructure={"nodes": 2})
    assert "place" not in script()
    given = script(infrastructure={"nodes": 2, "directives": ["-l place=vscatter:excl"]})
    assert "#PBS -l place=vscatter:excl\n" in given
    assert "place=scatter" not in given


@pytest.mark.parametrize("field", ["qos", "gpu_type"])
def test_pbs_field_that_it_has_not_is_refused(field: str) -> None:
    with pytest.raises(
        UnsupportedFieldError, match=f"{field} = x for the server job: not supported by scheduler 'pbs'"
    ):
        script(infrastructure={field: "x"})


@pytest.mark.parametrize(
    "directive",
    [
        "-l filesystems=home:flare", "-lfilesystems=home", "-P project", "-W group_list=staff", "-V", "-p 10",
        "-l software=x,license=2", "-v 'A=b c'", "-k doe",
    ],
)  # fmt: skip
def test_pbs_extra_directive_is_written_as_it_is(directive: str) -> None:
    assert f"#PBS {directive}\n" in script(infrastructure={"directives": [directive]})


@pytest.mark.parametrize(
    "directive",
    [
        "-N other", "-Nother", "-o /tmp/x", "-e x", "-j oe", "-S /bin/csh", "-q gpu", "-A p", "-m a", "-M me", "-r y",
        "-I", "-J 0-3", "-z", "-C '#X'", "-X", "-- sleep 1", "-l select=1", "-l walltime=1:0:0", "-l mem=1gb",
        "-l ncpus=2,ngpus=1", "-l nodes=2:ppn=4", "-W block=true", "--exclusive", "exclusive", "", "-l", "-P 'x",
        "-P x\\",
    ],
)  # fmt: skip
def test_pbs_extra_directive_that_orch_sets_or_qsub_has_not_is_refused(directive: str) -> None:
    with pytest.raises(UnsupportedFieldError, match="directives"):
        script(infrastructure={"directives": [directive]})


def test_pbs_extra_directive_for_what_the_scheduler_sets_as_well_is_refused() -> None:
    with pytest.raises(UnsupportedFieldError, match=r"job\.scheduler\.filesystems is set as well"):
        script({"filesystems": "home"}, infrastructure={"directives": ["-l filesystems=other"]})


@pytest.mark.parametrize(
    "scheduler",
    [{"place": "free\n#PBS -l x=1"}, {"filesystems": "home flare"}, {"chunk": "a=b c"}, {"gpu_resource": "n:x"}],
)
def test_pbs_option_that_would_end_the_directive_is_refused_in_the_recipe(scheduler: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        script(scheduler)


@pytest.mark.parametrize("partition", ["a\\b", "a\"b'c"])
def test_pbs_queue_that_qsub_would_change_is_refused(partition: str) -> None:
    with pytest.raises(UnsafeValueError):
        script(infrastructure={"partition": partition})


def test_pbs_name_of_every_job_is_one_that_pbs_takes() -> None:
    # OpenPBS's ck_job_name.c: a letter, then letters, digits and -_+., 230 at most (PBS_MAXJOBNAME).
    hpo = {"dataset": {"kind": "folder", "dir": "/data"}, "trials": 2}
    for job in plan_run(recipe_document("pbs", "vllm", hpo=hpo)).jobs.values():
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_+.-]{0,229}", job.token)


FIELDS: dict[str, Any] = {
    "partition": "other",
    "account": "p3",
    "qos": "urgent",
    "nodes": 3,
    "cpus": 5,
    "mem_gb": 33,
    "gpus": 3,
    "gpu_type": "h100",
    "time": "00:07:00",
    "requeue": False,
    "directives": ["-P other"],
}


@pytest.mark.parametrize("role", Resources.model_fields)
@pytest.mark.parametrize("field", [name for name in RoleResources.model_fields if name != "host"])
def test_pbs_field_of_a_job_changes_its_script_or_is_refused(field: str, role: str) -> None:
    hpo = {"dataset": {"kind": "folder", "dir": "/data"}, "trials": 2}
    before = plan_run(recipe_document("pbs", "vllm", hpo=hpo)).scripts()
    try:
        after = plan_run(recipe_document("pbs", "vllm", hpo=hpo, resources={role: {field: FIELDS[field]}})).scripts()
    except UnsupportedFieldError as error:
        assert field in str(error)  # noqa: PT017 - either is right
    else:
        assert after != before


def test_pbs_every_option_of_the_scheduler_is_tried_above_or_acts_after_the_plan() -> None:
    tried = {"kind", "place", "filesystems", "chunk", "gpu_resource", "mail_events", "mail_users", "rerunnable"}
    assert set(PbsSchedulerSpec.model_fields) == tried | {"history", "command_timeout_s"}
    assert PbsScheduler(PbsSchedulerSpec(command_timeout_s=7)).command_timeout_s == 7


def slurms_qsub() -> str:
    """Return why Slurm's qsub cannot be tried here, or nothing."""
    found = shutil.which("qsub")
    if found is None or "Slurm" not in Path(found).read_text(errors="replace"):
        return "no qsub of Slurm is installed (Debian: slurm-wlm-torque)"
    said = subprocess.run(["squeue", "--me"], capture_output=True, text=True, timeout=30)
    return "" if said.returncode == 0 else f"squeue does not answer: {said.stderr.strip()[:200]}"


@pytest.mark.slurm
def test_pbs_live_commands_submit_and_delete_through_slurms_wrappers(tmp_path: Path) -> None:
    """Its qstat has no `-F json`, so the job is looked for with squeue."""
    reason = slurms_qsub()
    if reason:
        pytest.skip(reason)
    token = f"orch-test-{uuid.uuid4().hex[:8]}"
    path = tmp_path / "job.sh"
    path.write_text(
        f"#!/bin/bash\n#PBS -N {token}\n#PBS -j oe\n#PBS -o {tmp_path}/log\n#PBS -l walltime=00:02:00\nsleep 90\n"
    )
    argv = SCHEDULER.submit_argv(Submission(token, path, tmp_path / "x", 1))
    job_id = SCHEDULER.parse_submit(run(argv))
    try:
        listed = run(["squeue", "--me", "--noheader", "--format=%i|%j"]).stdout.splitlines()
        assert f"{job_id.partition('.')[0]}|{token}" in listed
    finally:
        cancelled = run(SCHEDULER.cancel_argv([job_id]))
    assert SCHEDULER.has_cancelled(cancelled)
    left = run(["squeue", "--me", "--noheader", "--states=PENDING,RUNNING", "--format=%j"]).stdout.splitlines()
    assert token not in left


def run(argv: list[str]) -> Answer:
    return LocalTransport().run(argv, 30.0)
