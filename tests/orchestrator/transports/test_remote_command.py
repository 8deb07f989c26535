"""What a remote shell is told, without a connection."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from orchestrator.transports.remote_command import AnswerReader, RemoteCommand, quoted


def started(command: RemoteCommand, sent: bytes, since: str = "") -> AnswerReader:
    """Return what sh answers to the login line and ``sent``."""
    line = command.login_line(reads_profile=False)
    if since:
        line = line.replace("orch_b=$(date +%s)", f"orch_b={since}")
    process = subprocess.run(["sh", "-c", line], input=sent, capture_output=True, timeout=30)
    reader = AnswerReader(command)
    reader.stdout += process.stdout
    reader.stderr += process.stderr
    return reader


def test_command_that_arrives_too_late_is_not_run(tmp_path: Path) -> None:
    command = RemoteCommand(("touch", str(tmp_path / "x")), 5, 5)
    outcome = started(command, command.script_line(), since="1000").outcome()
    assert (outcome.was_too_late, outcome.returncode) == (True, None)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("n_missing", [1, 10, 200])
def test_command_whose_line_is_cut_is_not_run(tmp_path: Path, n_missing: int) -> None:
    command = RemoteCommand(("touch", str(tmp_path / "x")), 5, 5)
    outcome = started(command, command.script_line()[:-n_missing]).outcome()
    assert (outcome.said_hello, outcome.is_complete) == (True, False)
    assert not (tmp_path / "x").exists()


def test_login_line_has_nothing_that_shells_read_differently() -> None:
    line = RemoteCommand(("a",), 5, 5).login_line(reads_profile=True)
    assert line.startswith("exec sh -l -c '")
    assert line.count("'") == 2
    assert not set(line) & set("\\!\n`")


def test_quoted_word_is_one_line() -> None:
    assert quoted("a\nb c") == "a\"$orch_n\"'b c'"
    assert quoted("") == "''"
    assert "\n" not in quoted("\n\n'\n")
