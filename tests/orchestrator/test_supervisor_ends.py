"""How a job ends: deaths, signals, time limits, the lease, memory, fencing, and what is left afterwards."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.schedulers.pbs import PbsScheduler
from tests.orchestrator.conftest import SUPERVISOR, SupervisedJob, is_running, wait_for

NewJob = Callable[..., SupervisedJob]
TARGETS = [{"kind": "service", "port": "@PORT@", "labels": {}}]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP]

# Says which signal came, and ends with code 5.
LISTENER = """
import signal, sys, time
def say(number, frame):
    print(signal.Signals(number).name, flush=True)
    sys.exit(5)
for name in ("TERM", "INT", "USR1", "USR2", "HUP"):
    signal.signal(getattr(signal, "SIG" + name), say)
print("waiting", flush=True)
time.sleep(60)
"""
# Starts a process in a session of its own, whose parent then dies, and waits.
PARENT = """
import subprocess, sys, time
shell = 'trap "" TERM; setsid sh -c \\'trap "" TERM; echo $$ > "$0.part"; mv "$0.part" "$0"; sleep 60\\' "$0" &'
subprocess.run(["sh", "-c", shell, sys.argv[1]])
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("ending", "exit_status", "code", "number", "message"),
    [
        ("exit 3", 3, 3, None, "vllm exited with code 3 before it was healthy"),
        ("exit 0", 0, 0, None, "vllm exited with code 0 before it was healthy"),
        ("kill -9 $$", 137, None, 9, "vllm was killed by signal 9 (SIGKILL) before it was healthy"),
        ("kill -15 $$", 143, None, 15, "vllm was killed by signal 15 (SIGTERM) before it was healthy"),
    ],
)
def test_early_death_ends_the_job_within_a_second(
    job: SupervisedJob, ending: str, exit_status: int, code: int | None, number: int | None, message: str
) -> None:
    job.start(["sh", "-c", f'sleep 0.3; date +%s.%N > "$0"; {ending}', str(job.run_dir / "died")])
    assert job.wait() == exit_status
    status = job.status
    assert (status["state"], status["reason"], status["message"]) == ("finished", "exited", message)
    assert (status["exit_code"], status["signal"]) == (code, number)
    assert status["finished_at"] - float((job.run_dir / "died").read_text()) < 1.0


def test_death_after_ready_removes_the_records(job: SupervisedJob) -> None:
    job.start(job.server, targets=TARGETS)
    job.wait_for_state("ready")
    assert len(job.records_left()) == 2
    os.kill(job.child_pid(), signal.SIGSEGV)
    assert job.wait(2.0) == 128 + signal.SIGSEGV
    assert job.status["message"] == "vllm was killed by signal 11 (SIGSEGV)"
    assert job.records_left() == []


def test_death_takes_the_orphans_along(job: SupervisedJob) -> None:
    job.start(job.task(PARENT, str(job.run_dir / "pid")))
    orphan = job.wait_for_pid("pid")
    os.kill(job.child_pid(), signal.SIGKILL)
    assert job.wait(3.0) == 137
    assert not is_running(orphan)


def test_hung_startup_ends_at_the_limit(job: SupervisedJob) -> None:
    job.start(["sleep", "60"], startup_timeout_s=0.5)
    assert job.wait(5.0) == 124
    status = job.status
    assert (status["reason"], status["exit_code"], status["signal"]) == ("startup_timeout", None, 15)
    assert status["message"].startswith("vllm was not healthy within 0.5 s: nothing listens on port ")


@pytest.mark.parametrize("argv", [["/no/such/program"], ["no-such-program"], ["/etc/passwd"]])
def test_program_that_cannot_run_is_named(job: SupervisedJob, argv: list[str]) -> None:
    job.start([*argv, "--flag"])
    assert job.wait() == 127
    status = job.status
    assert (status["reason"], status["exit_code"], status["signal"]) == ("exec_failed", None, None)
    assert status["message"].startswith(f"cannot execute {argv[0]!r}: ")


def test_missing_secret_file_is_named_in_the_sentinel(job: SupervisedJob) -> None:
    job.start(job.server, secret_env={"VLLM_API_KEY": "/no/such/secret"})
    assert job.wait() == 70
    assert job.status["reason"] == "supervisor_error"
    assert "/no/such/secret" in job.status["message"]


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"kind": "other"}, {"unknown_key": 1}])
def test_configuration_not_understood_starts_nothing(job: SupervisedJob, change: dict[str, object]) -> None:
    job.start(job.server, **change)
    assert job.wait() == 70
    assert "vllm.json: " in job.batch_log.read_text()
    assert not (job.run_dir / "logs").exists()


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_to_a_service_drains_it(job: SupervisedJob, number: signal.Signals) -> None:
    argv = job.task(LISTENER)
    job.start(argv, kind="service", targets=TARGETS)
    wait_for(lambda: "waiting" in job.log())
    job.send(number)
    assert job.wait(5.0) == 128 + number
    assert job.log().split() == ["waiting", "SIGTERM"]
    status = job.status
    assert (status["state"], status["reason"]) == ("finished", "signal")
    assert (status["exit_code"], status["signal"]) == (5, number)
    assert number.name in status["message"]


@pytest.mark.parametrize(
    ("number", "arrives"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, "SIGINT"),
        (signal.SIGHUP, "SIGHUP"),
        (signal.SIGUSR1, "SIGTERM"),
        (signal.SIGUSR2, "SIGTERM"),
    ],
)
def test_signal_to_a_task_is_forwarded(job: SupervisedJob, number: signal.Signals, arrives: str) -> None:
    job.start(job.task(LISTENER))
    wait_for(lambda: "waiting" in job.log())
    job.send(number)
    assert job.wait(5.0) == 128 + number
    assert job.log().split() == ["waiting", arrives]


@pytest.mark.parametrize(("number", "is_requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_job_near_the_end_of_its_time_requeues_itself_once_it_has_drained(
    number: signal.Signals, is_requeued: bool, job: SupervisedJob
) -> None:
    asked = job.run_dir / "asked"
    said = f'cp {job.run_dir}/status/*.json {asked}; echo "$1" >>{asked}.id; kill -9 $PPID'
    job.start(job.task(LISTENER), requeue_argv=["sh", "-c", said, "sh", "@JOB_ID@"])
    wait_for(lambda: "waiting" in job.log())
    job.send(number)
    assert job.wait(5.0) == (-9 if is_requeued else 128 + number)
    assert asked.exists() is is_requeued
    if is_requeued:
        # The scheduler ends the job as it requeues it: by then the sentinel is written.
        status = json.loads(asked.read_text())
        assert (status["state"], status["reason"], status["signal"]) == ("finished", "signal", signal.SIGUSR1)
        assert (job.run_dir / "asked.id").read_text().strip() == status["job_id"]


def test_job_that_cannot_be_requeued_ends_and_says_so(job: SupervisedJob) -> None:
    job.start(job.task(LISTENER), requeue_argv=["false"])
    wait_for(lambda: "waiting" in job.log())
    job.send(signal.SIGUSR1)
    assert job.wait(5.0) == 128 + signal.SIGUSR1
    assert job.status["reason"] == "signal"


def test_draining_is_shown_and_the_records_are_gone_at_once(job: SupervisedJob) -> None:
    job.start([*job.server, "ignore-term"], targets=TARGETS, stop_grace_s=1.5)
    job.wait_for_state("ready")
    pid = job.child_pid()
    job.send(signal.SIGTERM)
    job.wait_for_state("draining")
    wait_for(lambda: not job.records_left(), 1.0)
    assert is_running(pid)
    beat = job.heartbeat["at"]
    wait_for(lambda: job.heartbeat["at"] > beat)
    job.send(signal.SIGTERM)  # a second one changes nothing
    job.send(signal.SIGUSR1)
    assert job.wait(5.0) == 143
    assert not is_running(pid)
    status = job.status
    assert (status["reason"], status["exit_code"], status["signal"]) == ("signal", None, 15)


def test_service_that_does_not_end_on_pbs_has_its_sentinel_before_pbs_kills_all_of_it(job: SupervisedJob) -> None:
    job.start([*job.server, "ignore-term"], targets=TARGETS, stop_grace_s=PbsScheduler.stop_grace_s)
    job.wait_for_state("ready")
    assert job.process is not None
    # qdel: TERM to every process of the job, and KILL 10 s later, the default kill_delay of a queue.
    os.killpg(job.process.pid, signal.SIGTERM)
    os.kill(job.child_pid(), signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        job.wait(10.0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.process.pid, signal.SIGKILL)
    status = job.status
    assert (status["state"], status["reason"], status["signal"]) == ("finished", "signal", signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM
    assert job.records_left() == []


def test_descendants_with_their_own_session_are_killed(job: SupervisedJob) -> None:
    job.start(job.task(PARENT, str(job.run_dir / "pid")), stop_grace_s=1.0)
    orphan = job.wait_for_pid("pid")
    assert job.process is not None
    assert os.getsid(orphan) != job.process.pid
    job.send(signal.SIGTERM)
    assert job.wait(5.0) == 143
    assert not is_running(orphan)


def test_batch_system_that_signals_the_child_first_counts_as_signal(job: SupervisedJob) -> None:
    job.start(job.server)
    job.wait_for_state("ready")
    pid = job.child_pid()
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not is_running(pid))
    time.sleep(0.08)  # long enough for the supervisor to see the death first
    job.send(signal.SIGTERM)
    assert job.wait(3.0) == 143
    assert job.status["reason"] == "signal"


def test_killed_supervisor_takes_its_child_along(job: SupervisedJob) -> None:
    job.start(job.server)
    job.wait_for_state("ready")
    pid = job.child_pid()
    job.send(signal.SIGKILL)
    assert job.wait() == -9
    wait_for(lambda: not is_running(pid), 2.0)
    assert job.status["state"] == "ready"  # no sentinel: the heartbeat has to tell


def lease(job: SupervisedJob, **fields: Any) -> None:
    """Write the run's lease."""
    document = {"owner": "login:1", "renewed_at": 1.0, "expires_at": 0.0, "keep": False, **fields}
    temporary = job.run_dir / "lease.tmp"
    temporary.write_text(json.dumps(document))
    temporary.rename(job.run_dir / "lease.json")


def test_expired_lease_drains_a_service(job: SupervisedJob) -> None:
    lease(job, expires_at=time.time() + 900)
    job.start(job.server, targets=TARGETS)
    job.wait_for_state("ready")
    lease(job, expires_at=time.time() - 1)
    assert job.wait(5.0) == 0
    assert (job.status["reason"], job.status["signal"]) == ("lease_expired", 15)
    assert job.records_left() == []


def test_expired_lease_with_keep_is_ignored(job: SupervisedJob) -> None:
    lease(job, keep=True)
    job.start(job.server)
    job.wait_for_state("ready")
    before = job.heartbeat["at"]
    wait_for(lambda: job.heartbeat["at"] > before + 1.0)  # five looks at the lease
    assert job.status["state"] == "ready"


def test_expired_lease_does_not_concern_a_task(job: SupervisedJob) -> None:
    lease(job)
    job.start(job.task("import time; time.sleep(0.8)"))
    assert job.wait() == 0


@pytest.mark.parametrize("text", ["", '{"expires_at": "never", "keep": true}'])
def test_unreadable_lease_is_judged_by_the_last_readable_one(job: SupervisedJob, text: str) -> None:
    lease(job, expires_at=time.time() + 900)
    job.start(job.server)
    job.wait_for_state("ready")
    expires_at = time.time() + 1.5
    lease(job, expires_at=expires_at)
    before = job.heartbeat["at"]
    wait_for(lambda: job.heartbeat["at"] > before + 0.5)  # it has been read
    (job.run_dir / "lease.json").write_text(text)
    assert job.wait(5.0) == 0
    assert job.status["reason"] == "lease_expired"
    assert job.status["finished_at"] > expires_at


@pytest.mark.parametrize(("age_s", "is_expired"), [(890.0, False), (910.0, True)])
def test_lease_never_seen_lasts_fifteen_minutes(tmp_path: Path, age_s: float, is_expired: bool) -> None:
    spec = importlib.util.spec_from_file_location("supervisor", SUPERVISOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.Lease(str(tmp_path / "lease.json"), time.time() - age_s).is_expired() is is_expired


def test_memory_above_the_limit_ends_the_job(job: SupervisedJob) -> None:
    text = "import time; block = bytearray(200 << 20); print('have', flush=True); time.sleep(60)"
    job.start(job.task(text), mem_limit_mib=100)
    assert job.wait(8.0) == 137
    status = job.status
    assert (status["reason"], status["signal"]) == ("out_of_memory", 9)
    words = re.fullmatch(r"the job's 1 processes use (\d+) MiB of memory; the limit is 100", status["message"])
    assert words is not None
    assert int(words[1]) >= 100


def test_memory_shared_between_processes_counts_once(job: SupervisedJob) -> None:
    text = """
import os, time
block = bytearray(b"x") * (150 << 20)
for _ in range(3):
    if os.fork() == 0:
        time.sleep(2.5)
        os._exit(0)
time.sleep(2.5)
"""
    job.start(job.task(text), mem_limit_mib=300)
    assert job.wait() == 0


def test_newer_attempt_fences_the_older(new_job: NewJob, job: SupervisedJob) -> None:
    job.start(job.server, targets=TARGETS)
    older = job.wait_for_state("ready")["attempt"]
    pid = job.child_pid()
    newer = new_job()
    newer.job_id = "78"
    newer.start(job.server, targets=TARGETS)
    assert job.wait(5.0) == 75
    assert not is_running(pid)
    status = newer.wait_for_state("ready")
    assert status["attempt"] != older
    wait_for(lambda: newer.heartbeat["attempt"] == status["attempt"])
    assert newer.endpoint["attempt"] == status["attempt"]
    assert sorted(newer.records_left()) == ["service_targets_78.json", "vllm.json"]


def test_fenced_attempt_touches_no_record(job: SupervisedJob) -> None:
    job.start(job.server)
    job.wait_for_state("ready")
    text = json.dumps({"attempt": "another", "state": "starting"})
    (job.run_dir / "status" / "new").write_text(text)
    (job.run_dir / "status" / "new").rename(job.run_dir / "status" / "orch-7f3a2b-vllm.json")
    assert job.wait(5.0) == 75
    assert job.status == json.loads(text)
    assert job.endpoint


def test_new_attempt_removes_what_a_killed_one_left(new_job: NewJob, job: SupervisedJob) -> None:
    job.start(job.server, targets=TARGETS)
    job.wait_for_state("ready")
    job.send(signal.SIGKILL)
    job.wait()
    assert len(job.records_left()) == 2
    again = new_job()
    again.start(["sleep", "60"], targets=TARGETS)
    again.wait_for_state("starting")
    wait_for(lambda: not again.records_left())


def test_end_leaves_records_of_others_alone(job: SupervisedJob) -> None:
    job.start(job.server, targets=TARGETS)
    job.wait_for_state("ready")
    foreign = {"token": "another", "attempt": "another"}
    (job.run_dir / "endpoints" / "vllm.json").write_text(json.dumps(foreign))
    job.send(signal.SIGTERM)
    assert job.wait() == 143
    assert job.endpoint == foreign
    assert job.records_left() == ["vllm.json"]
