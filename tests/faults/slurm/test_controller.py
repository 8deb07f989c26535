"""A slurmctld that hangs, dies or forgets, around a submission and during a run."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.slurm.conftest import FaultRun, SlurmScene, whole_suite
from tests.faults.slurm.fault_cluster import wait_until

FIRST = "trial_0000"
HELD = "launch failed requeued held"
# sbatch of the third job stops or kills the controller first, and goes on to the real sbatch.
AROUND_SUBMIT = """
if [[ " $* " == *" --test-only "* ]]; then exec "$real" "$@"; fi
echo x >>"$folder/calls"
if [[ $(wc -l <"$folder/calls") == 3 ]]; then
  touch "$folder/struck"
  BEFORE
  "$real" "$@"; code=$?
  AFTER
  exit $code
fi
exec "$real" "$@"
"""


def strike(scene: SlurmScene, before: str = ":", after: str = ":") -> None:
    """Let the third submission, the first trial's, meet with a fault."""
    scene.shim("sbatch", AROUND_SUBMIT.replace("BEFORE", before).replace("AFTER", after))


def complete(scene: SlurmScene, run: FaultRun) -> bool:
    """Wait for the run. Slurm may give a forgotten job's id out again and hold that job: it is said, and resumed.

    Returns whether it was.
    """
    code = run.wait(250)
    was_held = code == 2 and HELD in run.stderr
    if was_held:
        run = scene.resume()
        code = run.wait(250)
    assert code == 0, run.stderr
    return was_held


def has_struck(scene: SlurmScene) -> bool:
    """Tell whether the third submission was reached."""
    return (scene.folder / "struck").exists()


def test_submission_to_a_controller_that_hangs_is_adopted_not_repeated(search: SlurmScene) -> None:
    pid = search.cluster.pid("slurmctld")
    strike(search, f"kill -STOP {pid}", f"(sleep 2; kill -CONT {pid}) </dev/null >/dev/null 2>&1 &")
    run = search.start()
    assert run.wait(180) == 0, run.stderr
    assert has_struck(search)
    search.check_completed()
    search.check_trials()
    assert len((search.folder / "calls").read_text().split()) == 2 + 3, "one sbatch for each job"


@whole_suite
@pytest.mark.timeout(400)
def test_submission_to_a_controller_that_hangs_for_long_is_found_when_it_answers(search: SlurmScene) -> None:
    """The answer is lost, and nobody can be asked for minutes: the trial waits, and its job is found or made again."""
    pid = search.cluster.pid("slurmctld")
    search.job["scheduler"]["command_timeout_s"] = 2
    strike(search, f"kill -STOP {pid}")
    run = search.start()
    run.wait_for(lambda: has_struck(search), "the third submission", 90)
    run.wait_for(lambda: "is submitted again later" in run.stderr, "the end of the first try", 150)
    search.cluster.signal("slurmctld", signal.SIGCONT)
    wait_until(search.cluster.answers, "slurmctld")
    assert run.wait(180) == 0, run.stderr
    search.check_completed()
    search.check_trials_after_loss()


@whole_suite
def test_controller_that_hangs_for_a_while_does_not_end_the_run(search: SlurmScene) -> None:
    search.job["scheduler"]["command_timeout_s"] = 3
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    search.cluster.signal("slurmctld", signal.SIGSTOP)
    time.sleep(8)
    assert run.process.poll() is None
    search.cluster.signal("slurmctld", signal.SIGCONT)
    search.hold.unlink()
    assert run.wait(180) == 0, run.stderr
    search.check_completed()
    search.check_trials()
    assert set(search.states("vllm")) <= {"PENDING", "RUNNING", "CANCELLED"}, "its heartbeat says that it lives"


@whole_suite
@pytest.mark.parametrize("delay_s", [0, 2])
def test_controller_killed_after_a_submission_has_no_trial_counted_twice(delay_s: int, search: SlurmScene) -> None:
    """Slurm may forget the job, or start it a second time under the same id."""
    pid = search.cluster.pid("slurmctld")
    search.env["STANDIN_TRAINING_S"] = "1"
    strike(search, after=f"(sleep {delay_s}; kill -KILL {pid}) </dev/null >/dev/null 2>&1 &")
    run = search.start()
    run.wait_for(lambda: has_struck(search), "the third submission", 90)
    wait_until(lambda: search.cluster.pid("slurmctld") is None, "slurmctld's end")
    time.sleep(3)
    search.cluster.start("slurmctld")
    complete(search, run)
    summary = search.summary()
    assert summary["state"] == "completed"
    hpo = summary["stages"]["hpo"]
    assert hpo["finished"] == 3
    assert [trial["state"] for trial in hpo["trials"]].count("COMPLETE") + hpo["failed"] == 3
    search.check_nothing_is_left()


@whole_suite
@pytest.mark.timeout(400)
@pytest.mark.parametrize("after_s", [1, 12])
def test_controller_killed_during_a_run_and_started_again_does_not_end_the_run(
    after_s: int, search: SlurmScene
) -> None:
    """Slurm saves its state every few seconds: it may remember a running job as pending, and start it once more."""
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    time.sleep(after_s)
    search.cluster.kill("slurmctld")
    time.sleep(10)
    search.cluster.start("slurmctld")
    search.hold.unlink()
    was_held = complete(search, run)
    search.check_completed()
    if was_held:
        search.check_trials_after_loss()
    else:
        search.check_trials()


@whole_suite
@pytest.mark.timeout(400)
def test_controller_dead_at_ctrl_c_is_named_and_stop_ends_the_jobs_later(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    time.sleep(8)
    search.cluster.kill("slurmctld")
    run.interrupt()
    code = run.wait(200)
    assert code == 130, run.stderr
    assert "have not ended within 90 s of being cancelled" in run.stderr
    assert f"orch.py stop {search.run_dir.name}" in run.stderr
    assert search.summary()["state"] == "interrupted"
    search.cluster.start("slurmctld")
    search.hold.unlink()
    stop = search.orch("stop")
    assert stop.wait(150) == 0, stop.stderr
    search.check_nothing_is_left()


@whole_suite
@pytest.mark.timeout(400)
def test_orchestrator_and_controller_killed_together_are_resumed(search: SlurmScene) -> None:
    search.hold.touch()
    run = search.start()
    search.await_state(run, FIRST, "running")
    time.sleep(8)
    os.kill(run.process.pid, signal.SIGKILL)
    search.cluster.kill("slurmctld")
    run.process.wait()
    search.hold.unlink()
    time.sleep(3)
    search.cluster.start("slurmctld")
    again = search.resume()
    assert again.wait(250) == 0, again.stderr
    search.check_completed()
    search.check_trials()


@whole_suite
@pytest.mark.timeout(400)
def test_trials_that_slurm_has_forgotten_are_taken_up_by_resume(search: SlurmScene) -> None:
    """MinJobAge has passed: squeue does not know the finished trial any more, and its record still decides."""
    run = search.start()
    run.wait_for(lambda: search.record("trial_0001").get("state") == "running", "the second trial", 120)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    ids = {search.record(name)["job_id"] for name in (FIRST, "trial_0001")}
    wait_until(lambda: ids.isdisjoint(search.cluster.known()), "Slurm to forget the trials", 180)
    again = search.resume()
    assert again.wait(180) == 0, again.stderr
    search.check_completed()
    search.check_trials()
