"""The broker of one allocation's steps, with real steps on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.brokers import FINAL, PROGRAM, Allocation
from tests.orchestrator.conftest import NODE_PYTHON, SUPERVISOR, is_running, wait_for

ALL = {"name": "all", "nodes": 1, "cpus": 4, "mem_mib": 4000, "gpus": 2}


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Allocation]:
    """Return an allocation whose brokers and steps are gone after the test."""
    allocation = Allocation(tmp_path)
    yield allocation
    allocation.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_broker_answers_health_and_nothing_else(allocation: Allocation) -> None:
    port = free_port()
    allocation.serve(ALL, port=port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/steps", timeout=5)


def test_many_steps_never_use_more_than_there_is(allocation: Allocation) -> None:
    allocation.serve(ALL)
    for number in range(12):
        gpus = str(number % 2)
        text = 'echo "began $(date +%s.%N) $CUDA_VISIBLE_DEVICES"; sleep 0.5; echo "ended $(date +%s.%N)"'
        allocation.submit(f"s{number}", text, "--gpus", gpus, "--cpus", "1", "--mem-mib", "1500")
    wait_for(lambda: set(allocation.states().values()) == {"COMPLETED"}, 60)
    spans = []
    for number in range(12):
        lines = [line.split() for line in allocation.output(f"s{number}").splitlines() if line[0] in "be"]
        spans.append((float(lines[0][1]), float(lines[1][1]), lines[0][2:]))
    for began, _, _ in spans:
        here = [gpus for other, ended, gpus in spans if other <= began < ended]
        devices = [device for gpus in here for device in gpus]
        assert len(here) <= 2  # the memory of two
        assert len(devices) == len(set(devices))
    assert {device for _, _, gpus in spans for device in gpus} <= {"0", "1"}
    assert sum(len(gpus) for _, _, gpus in spans) == 6


def test_step_that_does_not_fit_waits_with_a_reason_and_smaller_ones_go_first(allocation: Allocation) -> None:
    allocation.serve(ALL)
    allocation.submit("first", "sleep 60", "--gpus", "1")
    allocation.wait(first="RUNNING")
    allocation.submit("big", "true", "--gpus", "2", "--cpus", "4")
    allocation.submit("small", "true", "--gpus", "1")
    steps = allocation.wait(small="COMPLETED", big="PENDING")
    assert steps["big"]["reason"] == "waits for 2 GPUs and 4 CPUs and 4000 MiB of memory on one node of group all"
    allocation.cancel("first")
    allocation.wait(first="CANCELLED", big="COMPLETED")


def test_step_gets_its_id_its_environment_and_gpus_of_those_that_are_visible(allocation: Allocation) -> None:
    allocation.env["CUDA_VISIBLE_DEVICES"] = "GPU-aa,GPU-bb"
    allocation.serve({"name": "all"}, env={"GREETING": "it's $HOME"})
    text = (
        'echo "$ORCH_STEP_ID|$ORCH_JOB_ID|$GREETING|$CUDA_VISIBLE_DEVICES|${ROCR_VISIBLE_DEVICES-}|$(umask)"; sleep 60'
    )
    ids = [allocation.submit(name, text, "--gpus", gpus) for name, gpus in (("a", "1"), ("b", "1"), ("c", "0"))]
    wait_for(lambda: all(allocation.output(name) for name in "abc"[: len(os.sched_getaffinity(0))]))
    for name, step_id, gpus in zip("ab", ids, ("GPU-aa", "GPU-bb"), strict=False):
        assert allocation.output(name).splitlines() == [f"{step_id}|{step_id}|it's $HOME|{gpus}||0077"]
    assert allocation.read("broker.json")["groups"][0]["gpus"] == 2
    assert not allocation.run(*allocation.submit_argv("d", "true", "--gpus", "3")).stdout


def test_step_that_can_never_run_is_refused_at_once(allocation: Allocation) -> None:
    allocation.submit("early", "true", "--cpus", "5")
    allocation.submit("elsewhere", "true", "--group", "cpu")
    allocation.serve(ALL)
    steps = allocation.wait(early="FAILED", elsewhere="FAILED")
    assert (
        steps["early"]["reason"] == "can never run: cpus = 5: group all of the allocation has 4 on each node. Lower it"
    )
    assert "Allowed: all" in steps["elsewhere"]["reason"]
    for options in (("--cpus", "5"), ("--mem-mib", "4001"), ("--gpus", "3"), ("--nodes", "2"), ("--group", "x")):
        done = allocation.run(*allocation.submit_argv("late", "true", *options))
        assert (done.returncode, done.stdout) == (1, "")
        assert "step late can never run" in done.stderr
    assert "late" not in allocation.steps()


@pytest.mark.parametrize("options", [("--cpus", "0"), ("--nodes", "0"), ("--gpus", "-1"), ("--mem-mib", "-1")])
def test_submission_of_nonsense_is_refused(allocation: Allocation, options: tuple[str, str]) -> None:
    done = allocation.run(*allocation.submit_argv("x", "true", *options))
    assert (done.returncode, done.stdout) == (1, "")
    assert "1 at least" in done.stderr


def test_submission_of_an_open_name_is_the_same_step(allocation: Allocation) -> None:
    words = allocation.submit_argv("token", "sleep 0.5; echo ran")
    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(lambda _: allocation.run(*words), range(8)))
    assert [done.returncode for done in said] == [0] * 8
    (step_id,) = {done.stdout.strip() for done in said}
    allocation.serve(ALL)
    allocation.wait(token="RUNNING")
    assert allocation.run(*words).stdout.strip() == step_id
    allocation.wait(token="COMPLETED")
    assert allocation.output("token").count("ran") == 1
    assert allocation.run(*words).stdout.strip() != step_id


def test_steps_ids_are_in_the_order_of_submission(allocation: Allocation) -> None:
    ids = [allocation.submit(name, "true") for name in ("b", "a", "c")]
    assert list(allocation.steps()) == ["b", "a", "c"]
    assert [step_id.partition(".")[0] for step_id in ids] == ["0001", "0002", "0003"]
    found = allocation.run("find", "--name", "a")
    assert [json.loads(line)["id"] for line in found.stdout.splitlines()] == [ids[1]]


def test_pending_steps_are_cancelled_with_and_without_a_broker(allocation: Allocation) -> None:
    allocation.submit("one", "touch ran")
    assert allocation.steps()["one"]["reason"] == "waits for the allocation to start"
    allocation.cancel("one")
    assert allocation.states() == {"one": "CANCELLED"}
    allocation.serve(ALL)
    allocation.submit("busy", "sleep 60", "--cpus", "4")
    allocation.submit("two", "touch ran")
    allocation.wait(busy="RUNNING", two="PENDING")
    allocation.cancel("two", "two")
    steps = allocation.wait(one="CANCELLED", two="CANCELLED", busy="RUNNING")
    assert steps["two"]["reason"] == "cancelled before it started"
    assert allocation.run("cancel", "9999.nobody").returncode == 0


def test_cancelled_step_leaves_no_process_though_it_ignores_term(allocation: Allocation) -> None:
    allocation.serve(ALL, grace_s=0.5)
    folder = allocation.folder
    text = f"trap '' TERM; setsid sleep 60 & echo $! >'{folder}/child'; echo $$ >'{folder}/leader'"
    allocation.submit("stubborn", f"{text}; while :; do sleep 1; done")
    pids = [allocation.pid("child"), allocation.pid("leader")]
    allocation.wait(stubborn="RUNNING")
    allocation.cancel("stubborn")
    assert allocation.wait(stubborn="CANCELLED")["stubborn"]["exit_code"] == 137
    assert not any(map(is_running, pids))


def test_supervised_step_has_the_steps_id_and_its_last_word(allocation: Allocation, tmp_path: Path) -> None:
    config = {"schema_version": 1, "run_id": "7f", "run_dir": str(tmp_path), "token": "t", "service": "trial"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "kind": "task", "stop_grace_s": 2.0}))
    allocation.env["SLURM_JOB_ID"] = "4711"
    allocation.serve(ALL)
    words = " ".join(NODE_PYTHON)
    step_id = allocation.submit("t", f"exec {words} {SUPERVISOR} '{tmp_path}/config.json' -- sleep 60")
    record = wait_for(lambda: (tmp_path / "status" / "t.json").exists() and allocation.states()["t"] == "RUNNING")
    assert record
    allocation.cancel("t")
    allocation.wait(t="CANCELLED")
    status: dict[str, Any] = json.loads((tmp_path / "status" / "t.json").read_text())
    assert (status["job_id"], status["state"], status["reason"]) == (step_id, "finished", "signal")


@pytest.mark.parametrize(("text", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("nosuchprogram", 127)])
def test_step_that_fails_says_how(allocation: Allocation, text: str, code: int) -> None:
    allocation.serve(ALL)
    allocation.submit("bad", text)
    line = allocation.wait(bad="FAILED")["bad"]
    assert (line["exit_code"], line["reason"]) == (code, f"exit code {code}")


def test_step_that_somebody_else_ended_by_a_signal_is_cancelled(allocation: Allocation) -> None:
    allocation.serve(ALL)
    allocation.submit("ended", "kill -TERM $$; sleep 60")
    line = allocation.wait(ended="CANCELLED")["ended"]
    assert (line["exit_code"], line["reason"]) == (143, "ended by SIGTERM from outside")


def test_step_over_its_time_is_ended(allocation: Allocation) -> None:
    allocation.serve(ALL)
    allocation.submit("slow", "sleep 60", "--time-s", "1")
    assert allocation.wait(slow="TIMEOUT")["slow"]["reason"] == "over its time of 1.0 s"


def test_step_whose_output_cannot_be_written_fails_with_the_file(allocation: Allocation) -> None:
    allocation.serve(ALL)
    done = allocation.run(
        "submit", "--name", "x", "--stdout", "/nowhere/x", "--group", "all", allocation.script("true")
    )
    assert done.returncode == 0
    assert "/nowhere/x" in allocation.wait(x="FAILED")["x"]["reason"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_to_the_broker_reaches_all_steps_and_their_ends_are_written(
    allocation: Allocation, number: signal.Signals
) -> None:
    broker = allocation.serve(ALL)
    for name in ("a", "b"):
        allocation.submit(
            name, f"trap 'echo got it; exit 3' {number.name[3:]}; echo up; while :; do sleep 0.1; done", "--cpus", "2"
        )
    allocation.submit("c", "true")
    wait_for(lambda: all("up" in allocation.output(name) for name in "ab"))
    allocation.wait(a="RUNNING", b="RUNNING")
    broker.send_signal(number)
    assert broker.wait(15) == 128 + number
    steps = allocation.steps()
    assert {name: (steps[name]["state"], steps[name]["exit_code"]) for name in "ab"} == dict.fromkeys(
        "ab", ("CANCELLED", 3)
    )
    assert steps["a"]["reason"] == f"the allocation received {number.name}"
    assert all("got it" in allocation.output(name) for name in "ab")
    assert steps["c"]["state"] == "PENDING"
    assert steps["c"]["reason"].endswith("it waits for a new start of the allocation")
    allocation.cancel("c")
    assert allocation.states()["c"] == "CANCELLED"


def test_broker_that_is_silent_has_steps_unknown_and_then_lost(allocation: Allocation) -> None:
    broker = allocation.serve(ALL)
    allocation.submit("one", "sleep 60")
    allocation.submit("two", "true", "--cpus", "4")
    allocation.wait(one="RUNNING", two="PENDING")
    broker.kill()
    broker.wait()
    assert allocation.states()["one"] == "RUNNING"
    allocation.beat(20)
    assert allocation.states() == {"one": "UNKNOWN", "two": "PENDING"}
    allocation.beat(91)
    steps = allocation.steps()
    assert (steps["one"]["state"], steps["two"]["state"]) == ("LOST", "PENDING")
    assert "has been silent for 91 s" in steps["one"]["reason"]


def test_broker_whose_supervisor_has_ended_has_its_steps_lost_at_once(allocation: Allocation, tmp_path: Path) -> None:
    record = tmp_path / "broker-status.json"
    allocation.serve(ALL, record=str(record))
    allocation.submit("one", "sleep 60")
    allocation.wait(one="RUNNING")
    record.write_text(json.dumps({"state": "finished", "finished_at": 5.0, "message": "of an earlier attempt"}))
    assert allocation.states()["one"] == "RUNNING"
    record.write_text(json.dumps({"state": "finished", "finished_at": time.time(), "message": "killed by signal 9"}))
    assert allocation.steps()["one"]["reason"] == "the allocation's broker has ended: killed by signal 9"
    assert allocation.states()["one"] == "LOST"


def test_new_broker_starts_what_waited_and_nothing_twice_and_the_old_one_gives_way(allocation: Allocation) -> None:
    old = allocation.serve(ALL)
    allocation.submit("begun", f"echo $$ >>'{allocation.folder}/starts'; exec sleep 60", "--cpus", "4")
    allocation.submit("waiting", "echo ran", "--cpus", "4")
    pid = allocation.pid("starts")
    allocation.wait(begun="RUNNING", waiting="PENDING")
    old.send_signal(signal.SIGSTOP)
    allocation.env["SLURM_RESTART_COUNT"] = "1"
    allocation.serve(ALL)
    steps = allocation.wait(begun="NODE_FAIL", waiting="COMPLETED")
    assert steps["begun"]["reason"] == "the allocation was started again after it had begun"
    wait_for(lambda: not is_running(pid))  # its node saw that the broker was replaced
    old.send_signal(signal.SIGCONT)
    assert old.wait(15) == 75
    assert (allocation.folder / "starts").read_text().split() == [str(pid)]
    assert allocation.states() == {"begun": "NODE_FAIL", "waiting": "COMPLETED"}


def test_step_whose_attendant_is_killed_does_not_live_on(allocation: Allocation) -> None:
    allocation.serve(ALL)
    allocation.submit("one", f"echo $$ >'{allocation.folder}/pid'; exec sleep 60")
    pid = allocation.pid("pid")
    allocation.wait(one="RUNNING")
    os.kill(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    assert allocation.wait(one="FAILED")["one"]["exit_code"] == 137
    wait_for(lambda: not is_running(pid))


@pytest.fixture
def with_srun(allocation: Allocation) -> Allocation:
    """Make it an allocation of a Slurm whose srun waits, and then runs what it was given or fails."""
    allocation.env["SLURM_JOB_ID"] = "7"
    allocation.add_program("scontrol", "echo n1")
    folder = allocation.folder
    allocation.add_program(
        "srun",
        f"cd '{folder}'; touch launched; while [[ ! -e go && ! -e refuse ]]; do sleep 0.1; done\n"
        'if [[ -e refuse ]]; then echo "srun: error: Unable to create step" >&2; exit 1; fi\n'
        'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    )
    allocation.serve(ALL, launcher="srun")
    return allocation


@pytest.mark.parametrize("comes", [True, False])
def test_step_that_is_cancelled_while_its_launcher_starts_runs_nothing(with_srun: Allocation, comes: bool) -> None:
    allocation = with_srun
    allocation.submit("one", f"touch '{allocation.folder}/ran'")
    wait_for((allocation.folder / "launched").exists)
    assert allocation.steps()["one"]["reason"] == "srun has not started it yet"
    allocation.cancel("one")
    if comes:
        (allocation.folder / "go").touch()
    allocation.wait(one="CANCELLED")
    assert not (allocation.folder / "ran").exists()


def test_step_that_srun_refuses_says_why(with_srun: Allocation) -> None:
    allocation = with_srun
    (allocation.folder / "refuse").touch()
    allocation.submit("one", "true")
    reason = allocation.wait(one="FAILED")["one"]["reason"]
    assert reason == "could not be started: srun ended with exit code 1: srun: error: Unable to create step"


def test_torn_files_are_told_of_and_stop_nobody(allocation: Allocation) -> None:
    torn = allocation.submit("torn", "true")
    begun = allocation.submit("begun", "true")
    (allocation.spool / f"{torn}.request.json").write_text('{"id": "0001')
    (allocation.spool / f"{begun}.step.json").write_text('{"id": "0002", "sta')
    assert allocation.states() == {"begun": "UNKNOWN"}
    assert f"{torn}.request.json cannot be read" in allocation.run("status").stderr
    allocation.serve(ALL)
    allocation.submit("whole", "true")
    allocation.wait(whole="COMPLETED", begun="NODE_FAIL")
    assert f"the request of step {torn} is none" in allocation.broker_log


def test_files_are_private(allocation: Allocation) -> None:
    allocation.serve(ALL)
    allocation.submit("one", "true")
    allocation.wait(one="COMPLETED")
    assert allocation.spool.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in allocation.spool.iterdir()} == {0o600}
    assert (allocation.folder / "one.out").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"launcher": "mpirun"}, "Allowed: srun, pbsdsh, ssh, here"),
        ({"envs": {}}, "is no configuration of a broker"),
        ({"launcher": "ssh"}, "PBS_NODEFILE cannot be read"),
    ],
)
def test_broker_refuses_a_configuration_that_is_none(
    allocation: Allocation, config: dict[str, Any], words: str
) -> None:
    broker = allocation.start_broker(ALL, **config)
    assert broker.wait(10) == 1
    assert words in allocation.broker_log


def test_status_without_a_spool_is_empty_and_a_script_that_is_not_there_is_refused(allocation: Allocation) -> None:
    assert (allocation.run("status").returncode, allocation.run("status").stdout) == (0, "")
    done = allocation.run("submit", "--name", "x", "--stdout", "/x", "--group", "all", "/nowhere.sh")
    assert (done.returncode, done.stderr) == (1, "steps: /nowhere.sh cannot be read\n")


# The spool is a small file system of its own, in a mount namespace.
FULL_DISK = r"""
mount -t tmpfs -o size=256k none "$1"; spool=$1/spool; out=$2; shift 2
"$@" serve --dir "$spool" --port 0 --config "$out/config.json" 2>"$out/broker.log" & broker=$!
say() { "$@" status --dir "$spool"; }
ask() {
  name=$1; shift
  "$@" submit --dir "$spool" --name "$name" --stdout "$out/$name.out" --group all "$out/script.sh"
}
ask before "$@"
until [[ $(say "$@") == *COMPLETED* ]]; do sleep 0.1; done
head -c 1m /dev/zero >"$spool/../filler"
beat() { stat -c %y "$spool/broker.heartbeat"; }
first=$(beat); for _ in {1..60}; do if [[ $(beat) != "$first" ]]; then echo alive; break; fi; sleep 0.1; done
ask full "$@" 2>"$out/refusal"; echo "code $?"
rm "$spool/../filler"
ask after "$@"
until [[ $(say "$@" | grep -c COMPLETED) == 2 ]]; do sleep 0.1; done
kill $broker; wait $broker; say "$@"
"""


def test_full_disk_is_told_of_and_nothing_is_half_written(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    (tmp_path / "mount").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"launcher": "here", "groups": [ALL], "env": {}}))
    (tmp_path / "script.sh").write_text("true\n")
    argv = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "bash",
        "-c",
        FULL_DISK,
        "story",
        str(tmp_path / "mount"),
    ]
    done = subprocess.run(
        [*argv, str(tmp_path), *NODE_PYTHON, str(PROGRAM)], capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no mount namespace for this user: {done.stderr.strip()}")
    first, sign_of_life, code, second, *lines = done.stdout.splitlines()
    assert (sign_of_life, code) == ("alive", "code 1"), done.stderr
    assert "broker.heartbeat: No space left on device (will try again)" in (tmp_path / "broker.log").read_text()
    assert "No space left on device" in (tmp_path / "refusal").read_text()
    assert [(line["id"], line["state"]) for line in map(json.loads, lines)] == [
        (first, "COMPLETED"),
        (second, "COMPLETED"),
    ]
    assert {line["state"] for line in map(json.loads, lines)} <= FINAL
