"""Slurm's programs answer late, not at all, or nonsense."""

from __future__ import annotations

import pytest

from tests.faults.slurm.conftest import SlurmScene, whole_suite

FIRST = "trial_0000"
# When a job would start is asked of sbatch too, and submits nothing.
FORECAST = '[[ " $* " == *" --test-only "* ]] && exec "$real" "$@"'
BAD = {
    "hung": "exec sleep 600",
    "garbage": 'head -c 2000 /dev/urandom; echo "|||"',
    "error page": "echo '<html>502</html>'",
    "torn": '"$real" "$@" | head -c 25',
    "empty": "exit 0",
    "error": "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1",
    "welcome": 'echo "Welcome to the centre"; exec "$real" "$@"',
}


@whole_suite
@pytest.mark.parametrize("how", BAD)
def test_squeue_without_a_proper_answer_for_a_while_does_not_end_the_run(how: str, search: SlurmScene) -> None:
    search.job["scheduler"]["command_timeout_s"] = 2
    run = search.start()
    search.await_state(run, "client", "ready")
    for name in ("squeue", "sacct"):
        search.shim(name, f'echo x >>"$folder/asked"\n{BAD[how]}')
    run.wait_for(lambda: search.record("trial_0001").get("state"), "the second trial", 120)
    assert (search.folder / "asked").read_text().count("x") > 1
    for name in ("squeue", "sacct"):
        search.unshim(name)
    assert run.wait(120) == 0, run.stderr
    search.check_completed()
    search.check_trials()


@whole_suite
def test_scancel_that_hangs_is_asked_again(search: SlurmScene) -> None:
    search.job["scheduler"]["command_timeout_s"] = 2
    search.shim(
        "scancel",
        'echo x >>"$folder/asked"\n[[ $(wc -l <"$folder/asked") -gt 1 ]] && exec "$real" "$@"; exec sleep 600',
    )
    run = search.start()
    assert run.wait(180) == 0, run.stderr
    assert (search.folder / "asked").read_text().count("x") > 1
    search.check_completed()
    search.check_trials()


@whole_suite
def test_sbatch_that_hangs_after_it_has_submitted_is_looked_up(search: SlurmScene) -> None:
    search.job["scheduler"]["command_timeout_s"] = 3
    search.shim("sbatch", f'{FORECAST}; "$real" "$@" >/dev/null; exec sleep 600')
    run = search.start()
    assert run.wait(240) == 0, run.stderr
    search.check_completed()
    search.check_trials()


@whole_suite
def test_sbatch_that_hangs_before_it_has_submitted_is_not_repeated_and_says_so(search: SlurmScene) -> None:
    search.job["scheduler"]["command_timeout_s"] = 2
    search.shim("sbatch", f"{FORECAST}; exec sleep 600")
    run = search.start()
    assert run.wait(120) == 1
    assert "no answer in time" in run.stderr
    assert search.events("job_submitted") == []
    search.check_nothing_is_left()
    search.unshim("sbatch")
    again = search.resume()
    assert again.wait(150) == 0, again.stderr
    search.check_completed()
    search.check_trials()
