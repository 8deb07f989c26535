"""How commands of a scheduler are run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from orchestrator.transports import LocalTransport, scrubbed_environment

RUN = LocalTransport().run


def test_transport_gives_code_and_both_streams() -> None:
    answer = RUN(["bash", "-c", "echo out; echo err >&2; exit 3"], 10)
    assert (answer.returncode, answer.stdout, answer.stderr) == (3, "out\n", "err\n")
    assert answer.argv == ("bash", "-c", "echo out; echo err >&2; exit 3")


def test_transport_of_a_missing_program_answers_127() -> None:
    answer = RUN(["no-such-program-anywhere"], 10)
    assert answer.returncode == 127
    assert "no-such-program-anywhere: No such file" in answer.stderr


def test_transport_of_bytes_that_are_no_text_replaces_them() -> None:
    assert RUN(["printf", r"a\377b"], 10).stdout == "a\N{REPLACEMENT CHARACTER}b"


def test_transport_that_waits_too_long_answers_none_with_what_was_said() -> None:
    started = time.monotonic()
    answer = RUN(["bash", "-c", "echo said; sleep 60 & wait"], 0.3)
    assert (answer.returncode, answer.stdout) == (None, "said\n")
    assert time.monotonic() - started < 10


def test_transport_passes_words_unchanged_and_no_stdin() -> None:
    words = ["a b", "$(touch pwned)", "", "ü", "-x", "'\""]
    answer = RUN([sys.executable, "-c", "import sys; print(repr(sys.argv[1:]), sys.stdin.read())", *words], 30)
    assert answer.stdout == f"{words!r} \n"


def test_transport_command_is_out_of_reach_of_the_terminals_ctrl_c() -> None:
    answer = RUN([sys.executable, "-c", "import os; print(os.getsid(0))"], 30)
    assert int(answer.stdout) != os.getsid(0)


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "SBATCH_PARTITION", "SQUEUE_FORMAT", "PBS_JOBID", "PMI_RANK"])
def test_transport_scrubs_variables_of_a_surrounding_job(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path))
    lines = RUN(["env"], 10).stdout.splitlines()
    assert f"{name}=x" not in lines
    assert f"SLURM_CONF={tmp_path}" in lines


def test_transport_keeps_all_other_variables() -> None:
    kept = {"PATH": "/bin", "SLURM_CONF": "c", "SLURM_JWT": "t", "MY_SLURM_X": "1", "PBS_CONF_FILE": "p"}
    assert scrubbed_environment({**kept, "SLURM_NNODES": "2", "PBS_DPREFIX": "#X"}) == kept
