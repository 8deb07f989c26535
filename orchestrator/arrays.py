"""Jobs of equal needs that are submitted together: a job array, and what each of its tasks runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.atomic import write_text
from orchestrator.batch_template import render_job
from orchestrator.plan import PlannedJob, job_stem, job_token, planned_job, script_values
from orchestrator.render import render
from orchestrator.schedulers import Scheduler, task_name
from orchestrator.service import JobDraft, PlanContext

ARRAY_BODY = "partials/array.j2"
TASK_SCRIPT = "partials/array_task.j2"


@dataclass(frozen=True)
class PlannedArray:
    """Jobs that are submitted with one script, ready for it.

    Attributes:
        token: The array's name in the scheduler; a member's token is the scheduler's name of its task.
        script: The array's own script, which ends in that of a member.
        members: The jobs, by their index in the array.
    """

    token: str
    script: Path
    script_text: str
    members: tuple[PlannedJob, ...]

    def write(self) -> None:
        """Put all scripts and configurations into the run directory.

        Raises:
            StorageError: they could not be written.
        """
        for member in self.members:
            member.write()
        write_text(self.script, self.script_text)

    def write_sample(self) -> None:
        """Put the array's own script and that of its first member into the run directory, for people to look at.

        Raises:
            StorageError: they could not be written.
        """
        self.members[0].write()
        write_text(self.script, self.script_text)

    def as_json(self) -> dict[str, Any]:
        """Return the array as it stands in plan.json."""
        return {
            "token": self.token,
            "script": str(self.script),
            "sha256": hashlib.sha256(self.script_text.encode()).hexdigest(),
            "size": len(self.members),
        }


@dataclass(frozen=True)
class ArrayValues:
    """What the templates are told of an array, or of one of its tasks.

    Attributes:
        last: Index of its last task; the first has 0.
        name: Name of its files.
        index: What stands for a task's index in a script, for the shell.
        job_id: The same for a task's job id.
    """

    last: int
    name: str
    index: str
    job_id: str


def plan_array(
    drafts: Sequence[JobDraft], context: PlanContext, scheduler: Scheduler, run_id: str, generation: int = 1
) -> PlannedArray:
    """Return the array of ``drafts``, which differ in nothing that the scheduler is told.

    Args:
        drafts: What is to run: two or more, as PBS takes no array of one.
        context: The run that they belong to.
        scheduler: The backend that will take it; it has arrays.
        run_id: The run's id.
        generation: Which submission of the first draft's job it is, from 1: no two arrays of a run have one name.

    Raises:
        RenderError: a value cannot be put into a script safely.
        UserError: the centre's own template drops what an array must carry.
    """
    words, first = scheduler.arrays, drafts[0]
    if words is None or len(drafts) < 2:
        raise ValueError(f"{scheduler.kind} has no array of {len(drafts)} jobs")
    name = f"{job_stem(first.name, generation)}-array"
    array = ArrayValues(len(drafts) - 1, name, words.index, words.job_id)
    token = job_token(run_id, name)
    values = script_values(first, context, scheduler, name, token, name)
    values = {**values, "array": array, "job": {**values["job"], "body": ARRAY_BODY}}
    template = context.recipe.job.infrastructure.batch_template
    members = []
    for index, draft in enumerate(drafts):
        stem = task_name(name, index)
        own = {**script_values(draft, context, scheduler, draft.name, task_name(token, index), stem), "array": array}
        script = render(TASK_SCRIPT, own)
        members.append(planned_job(draft, context, scheduler, run_id, stem, script, in_array=True))
    script_text = render_job(scheduler.template, template, scheduler.kind, values)
    return PlannedArray(token, context.home.script(name), script_text, tuple(members))
