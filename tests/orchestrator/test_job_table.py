"""Which job stands for a name while successors come and predecessors go."""

from __future__ import annotations

from pathlib import Path

from orchestrator.job_table import JobTable
from orchestrator.plan import PlannedJob
from orchestrator.rundir import RunDir
from tests.builders import planned_service


def generations(folder: Path, count: int) -> list[PlannedJob]:
    """Return submissions of one service."""
    first = planned_service(RunDir(folder))
    return [PlannedJob(**{**vars(first), "token": f"{first.token}-r{number}"}) for number in range(1, count + 1)]


def test_successor_stands_beside_until_it_takes_over(tmp_path: Path) -> None:
    first, second = generations(tmp_path, 2)
    table = JobTable()
    before = table.add(first, "1", 0.0)
    after = table.add_successor(second, "2", 1.0)
    assert (table[first.name], table.services, table.beside) == (before, (before,), (after,))
    assert table.open == (before, after)
    assert table.hand_over(first.name) is before
    assert (table[first.name], table.services, table.beside) == (after, (after,), (before,))
    table.close(before)
    assert list(table.open) == [after]
    assert list(table.predecessors) == []


def test_handing_over_from_a_job_that_has_ended_leaves_no_predecessor(tmp_path: Path) -> None:
    first, second = generations(tmp_path, 2)
    table = JobTable()
    table.close(table.add(first, "1", 0.0))
    after = table.add_successor(second, "2", 1.0)
    assert table.hand_over(first.name) is None
    assert (table.open, table.beside) == ((after,), ())


def test_job_in_the_place_of_another_is_the_only_one_looked_at(tmp_path: Path) -> None:
    first, second = generations(tmp_path, 2)
    table = JobTable()
    table.add(first, "1", 0.0)
    after = table.add(second, "2", 1.0)
    assert (table.open, len(table), table.get(first.name)) == ((after,), 1, after)
