"""The allocation that is the batch job around the orchestrator: whose it is, and what is known of it from elsewhere."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.allocation.again import check_is_over, was_submitted, with_parts_for
from orchestrator.allocation.broker import Broker
from orchestrator.allocation.contexts import in_one_allocation
from orchestrator.allocation.within import WITHIN, WithinScheduler, how_to_go_on, outer_nodes, refuse_keep
from orchestrator.errors import UserError
from orchestrator.hosts import ThisMachine
from orchestrator.ledger import Ledger
from orchestrator.recipe import parse_recipe
from orchestrator.recipe.document import Recipe
from orchestrator.resolve import ROLES, resolve
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState, Submission
from orchestrator.service import PlanContext, Role
from orchestrator.site import Site
from orchestrator.transports import Answer, LocalTransport
from tests.builders import AnsweringTransport, plan_run
from tests.orchestrator.allocation.test_parts import one

IN_12 = {"ORCH_OUTER_SLURM_JOB_ID": "12", "ORCH_OUTER_SLURM_JOB_NUM_NODES": "2"}
OURS = {"id": "1.1", "state": "RUNNING", "within": "12"}
EARLIER = {"id": "2.2", "state": "RUNNING", "within": "11"}
ELSEWHERE = {"id": "3.3", "state": "UNKNOWN", "within": "12"}


def states(environ: dict[str, str], *lines: dict[str, Any]) -> dict[str, JobState]:
    """Return what the backend makes of the lines of local_jobs.py."""
    text = "".join(json.dumps({"name": "allocation", "host": "n1", **line}) + "\n" for line in lines)
    seen = WithinScheduler(environ).parse_status(Answer(("x",), 0, text, ""))
    assert seen is not None
    return {job_id: item.state for job_id, item in seen.items()}


def test_allocation_of_another_batch_job_is_lost_and_one_of_another_host_is_not_listed() -> None:
    assert states(IN_12, OURS, EARLIER, ELSEWHERE) == {"1.1": JobState.RUNNING, "2.2": JobState.LOST}
    assert states({}, OURS, ELSEWHERE) == {"1.1": JobState.RUNNING}


def test_absence_is_an_end_in_a_batch_job_and_none_on_a_login_node() -> None:
    assert WithinScheduler(IN_12).is_absence_final
    assert not WithinScheduler({}).is_absence_final


def test_process_that_outlives_its_batch_job_is_lost_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    script = tmp_path / "job.sh"
    script.write_text("sleep 60\n")
    mine, later = WithinScheduler(IN_12), WithinScheduler({"ORCH_OUTER_PBS_JOBID": "13.s"})
    transport = LocalTransport()
    job_id = mine.parse_submit(transport.run(mine.submit_argv(Submission("x", script, tmp_path / "out", None)), 30.0))
    try:
        seen = {at: at.parse_status(transport.run(at.status_argv(), 30.0)) or {} for at in (mine, later)}
    finally:
        transport.run(mine.cancel_argv([job_id]), 60.0)
    assert seen[mine][job_id].state == JobState.RUNNING
    assert seen[later][job_id].state == JobState.LOST
    assert seen[later][job_id].reason == "it was part of batch job 12, and this is 13.s"


def test_host_with_a_line_for_each_rank_is_one_node(tmp_path: Path) -> None:
    nodes = tmp_path / "nodes"
    nodes.write_text("n1\nn1\nn2\nn2\n")
    assert outer_nodes({"ORCH_OUTER_PBS_NODEFILE": str(nodes)}) == 2
    assert outer_nodes(IN_12) == 2
    assert outer_nodes({}) is None


def test_services_that_end_with_the_batch_job_cannot_be_kept() -> None:
    with pytest.raises(UserError, match="end with it"):
        refuse_keep(WITHIN)
    refuse_keep("here")
    refuse_keep(None)


def test_what_is_left_says_how_to_go_on() -> None:
    assert "`sbatch slurm_orch.sh resume R`" in how_to_go_on(IN_12, "R")
    assert "`./pbs_orch.sh resume R`" in how_to_go_on({"ORCH_OUTER_PBS_JOBID": "1.s"}, "R")


def planned_within(
    document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[str, ...], dict[Role, PlanContext]]:
    """Return notes and contexts of a run that is planned in a batch job of two nodes."""
    context = plan_run(document).context
    for name, value in IN_12.items():
        monkeypatch.setenv(name, value)
    resolved = resolve(parse_recipe(document, "recipe"), Site(), AnsweringTransport(), Path("/"))
    contexts = dict.fromkeys(ROLES, replace(context, recipe=resolved.recipe))
    return resolved.notes, in_one_allocation(contexts, IN_12)


def test_places_are_told_of_and_nowhere_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    document = one(account="A1", qos="high", directives=["--exclusive"])
    document["job"]["resources"]["trial"] = {"partition": "gpu", "gpus": 1, "gpu_type": "a100", "time": "00:20:00"}
    notes, contexts = planned_within(document, monkeypatch)
    (note,) = [note for note in notes if note.startswith("not applicable within this batch job: ")]
    named = set(note.partition(": ")[2].split(", "))
    infra = {f"infrastructure.{name}" for name in ("partition", "account", "qos", "directives", "time")}
    assert named == infra | {"resources.trial.partition", "resources.trial.gpu_type"}
    draft = Broker("srun", 30.0).draft(contexts["allocation"])
    trial = contexts["trial"].recipe.job.resources.trial
    for resources in (draft.resources, trial):
        places = [getattr(resources, name) for name in ("partition", "account", "qos", "gpu_type", "directives")]
        assert places == [None, None, None, None, ()]
    assert (draft.resources.nodes, draft.resources.time, trial.time) == (2, None, "00:20:00")


def recipe_of(document: dict[str, Any], **provenance: Any) -> Recipe:
    recipe = plan_run(document).resolved.recipe
    return recipe.model_copy(update={"provenance": provenance or None})


def test_found_parts_are_found_anew_on_the_other_side_and_given_ones_stay(tmp_path: Path) -> None:
    scheduler = plan_run(one()).resolved.scheduler
    here = ThisMachine(scheduler, AnsweringTransport({}), RunDir(tmp_path))
    found = recipe_of(one(), found=["allocation"])
    (outer,) = with_parts_for(found, here, IN_12).job.infrastructure.allocation
    assert (outer.nodes, outer.cpus, outer.gpus) == (2, None, None)
    assert outer.roles == ("server", "client", "monitoring", "trial")
    back = with_parts_for(with_parts_for(found, here, IN_12), here, {})
    assert back.job.infrastructure.allocation == found.job.infrastructure.allocation
    given = recipe_of(one(allocation=[{"roles": outer.roles, "nodes": 3, "cpus": 7}]))
    assert with_parts_for(given, here, IN_12) == given
    (part,) = with_parts_for(given, here, {}).job.infrastructure.allocation
    assert (part.nodes, part.cpus) == (3, 7)


def intend(run: RunDir, host: str) -> None:
    run.make()
    planned = {"name": "allocation", "host": host, "token": "orch-1-allocation"}
    Ledger(run.events).append("job_intent", token=planned["token"], planned=planned)


@pytest.mark.parametrize(("host", "age_s", "is_refused"), [(WITHIN, 20, True), (WITHIN, 95, False), ("here", 1, False)])
def test_run_whose_batch_job_may_live_is_not_resumed_outside_of_it(
    tmp_path: Path, host: str, age_s: float, is_refused: bool
) -> None:
    run = RunDir(tmp_path / "run")
    assert not was_submitted(run)
    intend(run, host)
    assert was_submitted(run)
    heartbeat = run.heartbeat("orch-1-allocation")
    heartbeat.parent.mkdir(exist_ok=True)
    heartbeat.write_text(json.dumps({"at": time.time() - age_s}))
    if is_refused:
        with pytest.raises(UserError, match=r"sign of life 2\ds? ?.* ago\.\n.*`sbatch slurm_orch.sh resume run`"):
            check_is_over(run)
    else:
        check_is_over(run)
