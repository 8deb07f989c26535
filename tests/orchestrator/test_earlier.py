"""Earlier runs: named, put in order, waited for, and mapped to the scheduler's own dependencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.atomic import write_json
from orchestrator.dependency import dependency_words, record_queued
from orchestrator.earlier import Earlier, check_order, find_earlier, wait_for_earlier
from orchestrator.errors import EarlierRunError, RecipeError, UserError
from orchestrator.history import run_state
from orchestrator.lease import Lease
from orchestrator.ledger import Ledger
from orchestrator.own_job import OwnJob
from orchestrator.progress import PlainProgress
from orchestrator.queued_job import scheduler_of
from orchestrator.recipe import parse_recipe
from orchestrator.recipe.after import After
from orchestrator.rundir import RunDir
from orchestrator.schedulers import Scheduler
from orchestrator.transports import scrubbed_environment
from tests.builders import AnsweringTransport

OWN = {"scheduler": "slurm", "job_id": "17", "cluster": "orchtest"}
CONFIG = {
    "scontrol": "Configuration data as of 2026\nClusterName             = orchtest\nCompleteWait = 0 sec\n",
    "squeue": "17|RUNNING|cpu1|None|orch\n18|PENDING||Dependency|orch\n",
}


class Chain:
    """Runs of one output folder, whose ledgers the test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, *events: str, after: Any = ()) -> RunDir:
        """Make a run in which ``events`` happened: names of LIFE_EVENTS, or the state of its end."""
        run = RunDir(self.folder / name)
        run.make()
        write_json(run.plan, {"scheduler": "slurm"})
        write_json(run.recipe, {"job": {"name": name, "after": after}})
        for event in events:
            self.happens(run, event)
        return run

    @staticmethod
    def happens(run: RunDir, event: str) -> None:
        """Let something happen to a run."""
        if event in {"completed", "failed", "interrupted", "stopped"}:
            Ledger(run.events).append("run_finished", state=event, kept=False)
        else:
            Ledger(run.events).append(event, own_job=OWN)


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path / "output")


class Told:
    """Collects what people see."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""


class NeverEndsError(Exception):
    """The wait went on longer than the test lets it."""


def waits(items: list[Earlier], *steps: Callable[[], None]) -> str:
    """Wait, with one of ``steps`` between looks; return what was shown."""
    told, left = Told(), list(steps)

    def wait(_: float) -> None:
        if not left:
            raise NeverEndsError
        left.pop(0)()

    wait_for_earlier(items, 1.0, wait, PlainProgress(told))  # type: ignore[arg-type]
    assert not left, "it ended too early"
    return told.text


def test_after_takes_a_name_a_section_or_several() -> None:
    def after(value: Any) -> tuple[After, ...]:
        return parse_recipe({"job": {"name": "x", "after": value}}, "r").job.after

    assert after("a") == (After(run="a"),)
    assert after(12345678) == (After(run="12345678"),)
    assert after({"run": "a", "when": "ended"}) == (After(run="a", when="ended"),)
    assert after(["a", {"run": "b", "when": "ended"}]) == (After(run="a"), After(run="b", when="ended"))
    for wrong in (["a", 1.5], {"run": "a", "when": "soon"}, "", True, ["a\nb"]):
        with pytest.raises(RecipeError, match=r"job\.after"):
            after(wrong)


def test_find_earlier_takes_what_status_takes(chain: Chain) -> None:
    first = chain.run("20260101_000000_first_0a1b2c3d")
    chain.run("20260101_000000_other_11111111")
    for name in ("0a1b2c3d", first.root.name, str(first.root)):
        (found,) = find_earlier([After(run=name, when="ended")], chain.folder)
        assert (found.run.root, found.when) == (first.root, "ended")
    first.make_latest()
    assert find_earlier([After(run="latest")], chain.folder)[0].run.root == first.root
    with pytest.raises(UserError, match=r"job\.after: no run 'nosuch'(.|\n)*first_0a1b2c3d"):
        find_earlier([After(run="nosuch")], chain.folder)


@pytest.mark.parametrize(
    ("event", "state"),
    [("completed", "completed"), ("failed", "failed"), ("interrupted", "interrupted"), ("run_stopped", "stopped")],
)
def test_wait_ends_as_the_earlier_run_does(event: str, state: str, chain: Chain) -> None:
    run = chain.run("first", "run_started")
    lease = Lease(run.lease)
    lease.take()
    assert "waits for first, which is running" in waits([Earlier(run, "ended")], lambda: chain.happens(run, event))
    if state == "completed":
        assert waits([Earlier(run, "completed")]) == "[0:00] earlier runs: 1/1\n"
    else:
        with pytest.raises(EarlierRunError, match=f"first has ended as {state} and had to be completed"):
            waits([Earlier(run, "completed")])


@pytest.mark.parametrize(
    ("events", "shown"),
    [
        ((), "planned: `orch.py resume first` starts it"),
        (("run_started",), "left, its orchestrator ended before it did: `orch.py resume first` goes on with it"),
        (("run_started", "orchestrator_left"), "left, its orchestrator ended"),
        (("run_started", "failed", "run_resumed"), "left, its orchestrator ended"),
    ],
)
def test_wait_for_a_run_that_has_not_ended_goes_on_and_says_what_to_do(
    events: tuple[str, ...], shown: str, chain: Chain
) -> None:
    run = chain.run("first", *events)
    steps = [lambda: None, lambda: chain.happens(run, "run_resumed"), lambda: chain.happens(run, "completed")]
    told = waits([Earlier(run, "completed")], *steps)
    assert shown in told
    with pytest.raises(NeverEndsError):
        waits([Earlier(chain.run("second", *events), "completed")], lambda: None)


def test_wait_for_several_runs_is_for_all_of_them(chain: Chain) -> None:
    one, two = chain.run("one", "run_started"), chain.run("two", "run_started")
    items = [Earlier(one, "completed"), Earlier(two, "ended")]
    told = waits(items, lambda: chain.happens(two, "failed"), lambda: chain.happens(one, "completed"))
    assert "earlier runs: 0/2 one, two" in told
    assert "earlier runs: 2/2" in told


def test_wait_reads_what_is_new_in_a_ledger_and_only_then(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    run = chain.run("first", "run_started")
    for number in range(1000):
        Ledger(run.events).append("job_state", job=f"trial_{number:04}")
    reads: list[tuple[int, int]] = []
    read = Ledger.events_from

    def counted(ledger: Ledger, start: int, *kinds: str) -> tuple[list[dict[str, Any]], int]:
        found, end = read(ledger, start, *kinds)
        reads.append((start, end))
        return found, end

    monkeypatch.setattr(Ledger, "events_from", counted)
    size = run.events.stat().st_size
    waits([Earlier(run, "completed")], *[lambda: None] * 50, lambda: chain.happens(run, "completed"))
    assert reads == [(0, size), (size, run.events.stat().st_size)]


def test_wait_for_a_ledger_with_a_torn_line_sees_what_comes_after(chain: Chain) -> None:
    run = chain.run("first", "run_started")

    def tear() -> None:
        with run.events.open("a") as file:
            file.write('{"at": 1, "event": "run_fin')

    waits([Earlier(run, "completed")], tear, lambda: chain.happens(run, "completed"))


def test_wait_for_a_run_that_is_deleted_ends_with_that(chain: Chain) -> None:
    run = chain.run("first", "run_started")

    def delete() -> None:
        run.events.unlink()
        run.plan.unlink()

    with pytest.raises(UserError, match="was deleted while this run waited for it"):
        waits([Earlier(run, "completed")], delete)


def test_wait_for_a_run_that_cannot_be_read_for_a_while_goes_on(chain: Chain) -> None:
    run = chain.run("first", "run_started")
    aside = run.root / "aside"
    run.events.rename(aside)
    run.events.mkdir()

    def mend() -> None:
        run.events.rmdir()
        aside.rename(run.events)
        chain.happens(run, "completed")

    assert "waits for first, which is not readable (Is a directory)" in waits([Earlier(run, "completed")], mend)


def test_run_that_would_wait_for_itself_is_refused_with_the_way(chain: Chain) -> None:
    one = chain.run("one")
    two = chain.run("two", after=[{"run": str(one.root)}])
    three = chain.run("three", after=["two", "gone"])
    check_order(chain.run("four"), [Earlier(three, "completed"), Earlier(one, "completed")])
    with pytest.raises(UserError, match="one would wait for itself: one after three after two after one"):
        check_order(one, [Earlier(three, "completed")])
    with pytest.raises(UserError, match="two would wait for itself: two after two"):
        check_order(two, [Earlier(two, "ended")])


def test_run_state_tells_what_a_run_waits_for_while_it_does(chain: Chain) -> None:
    run = chain.run("later", "run_started")
    Ledger(run.events).append("waiting", runs=["/runs/first"])
    assert run_state(run).waits_for == ()
    lease = Lease(run.lease)
    lease.take()
    assert (run_state(run).waits_for, run_state(run).has_waited) == (("/runs/first",), False)
    Ledger(run.events).append("waited")
    assert (run_state(run).waits_for, run_state(run).has_waited) == ((), True)
    chain.happens(run, "run_resumed")
    assert run_state(run).has_waited


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("slurm 17 orchtest", OwnJob("slurm", "17", "orchtest")),
        ("slurm 17 ", OwnJob("slurm", "17")),
        ("pbs 12.server", OwnJob("pbs", "12.server")),
        ("", None),
        ("slurm", None),
        ("slurm --wrap", None),
        ("slurm 1,afterany:2", None),
        ("slurm 1 2 3", None),
    ],
)
def test_own_job_is_read_from_the_environment(text: str, job: OwnJob | None) -> None:
    assert OwnJob.of_this_process({"ORCH_OWN_JOB": text}) == job
    assert OwnJob.of_this_process({}) is None
    assert "ORCH_OWN_JOB" not in scrubbed_environment({"ORCH_OWN_JOB": text}), "jobs of a run are not its orchestrator"


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
def test_own_job_of_any_ledger_is_whole_or_none(data: Any) -> None:
    found = OwnJob.from_json(data)
    assert found is None or (found.scheduler and found.job_id)


def words(items: list[Earlier], kind: str = "slurm", answers: Mapping[str, str] = CONFIG) -> list[str]:
    return dependency_words(items, scheduler_of(kind), AnsweringTransport(answers))


def test_dependency_is_on_the_batch_jobs_of_runs_that_have_not_ended(chain: Chain) -> None:
    one, two = chain.run("one", "run_started"), chain.run("two", "run_started")
    over = chain.run("over", "run_started", "completed")
    leases = [Lease(run.lease) for run in (one, two)]
    for lease in leases:
        lease.take()
    items = [Earlier(one, "completed"), Earlier(two, "ended"), Earlier(over, "completed")]
    assert words(items) == ["--dependency=afterok:17,afterany:17", "--kill-on-invalid-dep=yes"]
    assert words(items[2:]) == []
    assert words(items, "pbs") == [], "a job of Slurm means nothing to PBS"
    assert words(items, "local") == []
    for answers in ({}, CONFIG | {"scontrol": "ClusterName = other\n"}):
        assert words(items, answers=answers) == [], "on another cluster the id is another job's"


def test_dependency_on_a_run_that_has_failed_is_refused(chain: Chain) -> None:
    run = chain.run("first", "run_started", "failed")
    with pytest.raises(UserError, match="has ended as failed") as caught:
        words([Earlier(run, "completed")])
    assert caught.value.exit_code == 2
    assert words([Earlier(run, "ended")]) == []


@pytest.mark.parametrize("events", [(), ("run_started", "orchestrator_left")])
def test_dependency_is_on_the_job_in_the_queue_that_will_start_or_resume_a_run(
    events: tuple[str, ...], chain: Chain
) -> None:
    run = chain.run("first", *events)
    assert words([Earlier(run, "completed")]) == []
    scheduler: Scheduler = scheduler_of("slurm")
    record_queued(run, "18", scheduler, AnsweringTransport(CONFIG))
    assert words([Earlier(run, "completed")])[0] == "--dependency=afterok:18"
    # It starts, and its orchestrator dies: nothing of it is in the queue.
    chain.happens(run, "run_resumed" if events else "run_started")
    assert words([Earlier(run, "completed")]) == []


@pytest.mark.parametrize(
    "queue", ["", "18|CANCELLED||None|orch\n", "18|RUNNING|cpu1|None|another\n", "torn\n"], ids=str.strip
)
def test_dependency_is_not_on_a_job_that_does_not_live_any_more(queue: str, chain: Chain) -> None:
    run = chain.run("first")
    record_queued(run, "18", scheduler_of("slurm"), AnsweringTransport(CONFIG))
    assert words([Earlier(run, "completed")], answers=CONFIG | {"squeue": queue}) == []


def test_job_that_started_before_it_was_recorded_is_not_in_the_queue_any_more(chain: Chain) -> None:
    run = chain.run("first", "run_started", "run_queued")
    assert run_state(run).own_job is None
    Lease(run.lease).take()


def test_dependency_option_of_pbs_and_slurm_name_both_kinds() -> None:
    pbs, slurm = scheduler_of("pbs"), scheduler_of("slurm")
    assert pbs.dependency_option(["1.s", "2.s"], ["3.s"]) == ["-W", "depend=afterok:1.s:2.s,afterany:3.s"]
    assert slurm.dependency_option([], ["3"])[0] == "--dependency=afterany:3"
    assert pbs.dependency_option([], []) == slurm.dependency_option([], []) == []


def test_events_of_a_ledger_are_read_on_from_where_a_line_began(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.jsonl")
    with pytest.raises(FileNotFoundError):
        ledger.events_from(0)
    ledger.append("one")
    ledger.append("two")
    found, end = ledger.events_from(0, "two")
    assert [event["event"] for event in found] == ["two"]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "three"')
    assert ledger.events_from(end) == ([], end)
