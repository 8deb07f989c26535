"""Logs of jobs: their last words, and following them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestrator.logs import CHUNK_BYTES, TAIL_BYTES, follow, last_words, log_paths, tail
from orchestrator.rundir import RunDir
from orchestrator.transports import FileContent, LocalTransport


def read(starts: Mapping[Path, int]) -> Mapping[Path, FileContent]:
    """Read logs of this machine."""
    names = {str(path): start for path, start in starts.items()}
    found = LocalTransport().read_many(list(names), CHUNK_BYTES, starts=names)
    return {Path(name): content for name, content in found.items()}


def test_tail_gives_the_last_lines_that_say_something(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("".join(f"line {number}\n\n" for number in range(30)))
    assert tail(tmp_path / "log", 3) == ["line 27", "line 28", "line 29"]


def test_tail_of_a_progress_bar_is_its_last_state(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"start\nloading 1%\rloading 50%\rloading 100%\nend")
    assert tail(tmp_path / "log") == ["start", "loading 100%", "end"]


def test_tail_of_a_huge_or_odd_or_missing_file_is_text_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(b"x" * (3 * TAIL_BYTES) + b"\nlast \xff\n")
    assert tail(tmp_path / "huge")[-1] == "last \N{REPLACEMENT CHARACTER}"
    assert sum(len(line) for line in tail(tmp_path / "huge")) <= TAIL_BYTES
    assert tail(tmp_path / "missing") == []
    assert tail(tmp_path) == []


def test_last_words_show_every_stream_that_says_something(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.make()
    run.log("vllm", "7", "out").write_text("hello\n")
    run.log("vllm", "7", "err").write_text("\n")
    run.log("vllm", "7", "batch").write_text("slurmstepd: error: Exceeded job memory limit\n")
    run.log("vllm", "8", "err").write_text("another job\n")
    assert last_words(run, "vllm", "7") == (
        "  logs/vllm_7.out:\n    hello\n  logs/vllm_7.batch:\n    slurmstepd: error: Exceeded job memory limit"
    )


def test_last_words_of_a_silent_job_say_where_they_would_be(tmp_path: Path) -> None:
    assert last_words(RunDir(tmp_path), "vllm", "7") == f"  (nothing in {tmp_path}/logs/vllm_7.*)"


def test_log_paths_are_out_err_and_batch(tmp_path: Path) -> None:
    assert [path.name for path in log_paths(RunDir(tmp_path), "v", "1")] == ["v_1.out", "v_1.err", "v_1.batch"]


def test_follow_gives_text_as_it_comes_even_a_character_in_two_parts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    parts = iter([b"one \xc3", b"\xbc two\n", b""])

    def is_over() -> bool:
        data = next(parts)
        with path.open("ab") as file:
            file.write(data)
        return not data

    assert "".join(follow([path, tmp_path / "later"], read, is_over, poll_s=0.0)) == "one ü two\n"


def test_follow_reads_files_that_come_later_and_stops_at_the_end(tmp_path: Path) -> None:
    states = iter([False, False, True])

    def is_over() -> bool:
        state = next(states)
        if state:
            (tmp_path / "b").write_text("late\n")
        return state

    (tmp_path / "a").write_text("early\n")
    assert "".join(follow([tmp_path / "a", tmp_path / "b"], read, is_over, poll_s=0.0)) == "early\nlate\n"
    with pytest.raises(StopIteration):
        next(states)


def test_follow_of_a_log_longer_than_one_look_gives_all_of_it(tmp_path: Path) -> None:
    text = "".join(f"{number}\n" for number in range(CHUNK_BYTES // 2))
    (tmp_path / "log").write_text(text)
    assert "".join(follow([tmp_path / "log"], read, lambda: True, poll_s=0.0)) == text


def test_follow_of_a_log_that_is_begun_anew_gives_the_new_one(tmp_path: Path) -> None:
    looks = iter(["of the first attempt\n", "of the second attempt, and longer\n"])

    def is_over() -> bool:
        text = next(looks, None)
        if text is not None:
            (tmp_path / "log").write_text(text)
        return text is None

    assert "".join(follow([tmp_path / "log"], read, is_over, poll_s=0.0)) == (
        "of the first attempt\nof the second attempt, and longer\n"
    )


def test_follow_reads_to_the_end_what_it_could_not_read_when_the_job_ended(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("the end\n")
    looks = iter([False, False, True])

    def read_late(starts: Mapping[Path, int]) -> Mapping[Path, FileContent] | None:
        return read(starts) if next(looks) else None

    assert "".join(follow([tmp_path / "log"], read_late, lambda: True, poll_s=0.0)) == "the end\n"
    assert list(looks) == []
