"""Torn and full state on a real Slurm: what was finished stays, jobs are ended all the same."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.slurm.conftest import SlurmScene, whole_suite

FIRST = "trial_0000"


@whole_suite
@pytest.mark.parametrize("blocks", [2, 4, 6, 12])
def test_run_whose_files_may_not_grow_names_the_file_and_ends_its_jobs(blocks: int, search: SlurmScene) -> None:
    """`ulimit -f`: every file that grows beyond so many KiB fails with EFBIG, as a quota does."""
    # The last answer of the scheduler may be what could not be written down.
    search.is_journal_cut = True
    # The run directory is planned without the limit.
    dry = search.start("--dry-run")
    assert dry.wait(60) == 0, dry.stderr
    run = search.orch("resume", limits=f"ulimit -f {blocks}; trap '' XFSZ")
    code = run.wait(240)
    assert code == 1, run.stderr
    assert "cannot write" in run.stderr
    assert "File too large" in run.stderr
    assert "Free some space or quota there" in run.stderr
    assert "Traceback" not in run.stderr
    search.check_nothing_is_left()
    again = search.resume()
    assert again.wait(180) == 0, again.stderr
    search.check_completed()
    assert max(search.starts().values()) == 1


@whole_suite
@pytest.mark.parametrize("what", ["ledger", "status", "lease", "study"])
def test_run_with_a_torn_file_is_resumed(what: str, search: SlurmScene) -> None:
    """The file's last write was cut off by a crash of the machine that held it."""
    search.hold.touch()
    run = search.start()
    run.wait_for(lambda: search.record(FIRST).get("state") == "running", "the first trial", 120)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    folder = search.run_dir
    if what == "ledger":
        path = folder / "events.jsonl"
        whole = path.read_bytes().rstrip(b"\n").rpartition(b"\n")[0]
        path.write_bytes(whole + b'\n{"at": 17')
    elif what == "status":
        path = next((folder / "status").glob(f"*-{FIRST}.json"))
        path.write_bytes(path.read_bytes()[:40])
    elif what == "lease":
        path = folder / "lease.json"
        path.write_bytes(b"")
    else:
        path = folder / "hpo" / "study.journal"
        path.write_bytes(path.read_bytes()[:-9])
    search.hold.unlink()
    again = search.resume()
    assert again.wait(180) == 0, again.stderr
    search.check_completed()
    hpo = search.summary()["stages"]["hpo"]
    assert [trial["state"] for trial in hpo["trials"]].count("COMPLETE") == 3
