"""One batch job as a scheduler: jobs are steps of an allocation, started by the program steps.py beside this file."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from orchestrator.errors import SubmitError
from orchestrator.recipe.base import time_limit_s
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.schedulers.base import (
    ArrayWords,
    Association,
    JobState,
    PartitionFacts,
    PartitionLimits,
    Scheduler,
    Seen,
    StartForecast,
    Submission,
)
from orchestrator.transports import Answer

PROGRAM = Path(__file__).with_name("steps.py")
# Source: steps.py, describe and Broker.
STATES: Mapping[str, JobState] = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "COMPLETED": JobState.COMPLETED,
    "FAILED": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "TIMEOUT": JobState.TIMEOUT,
    "NODE_FAIL": JobState.NODE_FAIL,
    "LOST": JobState.LOST,
}
# What ends the allocation ends its steps first, then the broker (steps.py, serve --grace-s), within one grace.
STEP_GRACE_SHARE, BROKER_GRACE_SHARE = 0.5, 0.75


class AllocationScheduler:
    """The steps of one job of another scheduler; what may be asked for is that one's affair.

    A job that asks for no memory gets the part of its node's that its CPUs are. ``time`` counts from a step's start.
    """

    kind = "allocation"
    template = "schedulers/step.j2"
    is_absence_final = False  # the spool may be out of sight for a while
    supervisor_limits_memory = True  # the allocation as a whole is limited, and its steps on Slurm with cgroups only
    untold_start = "once its part of the allocation is free"
    arrays: ArrayWords | None = None

    def __init__(
        self,
        inner: Scheduler,
        spool: str,
        groups: Mapping[str, str],
        python: str = sys.executable,
        program: str = str(PROGRAM),
    ) -> None:
        """Make the backend.

        Args:
            inner: The scheduler whose job the allocation is.
            spool: The steps' folder, as the machine that the commands run on sees it.
            groups: Which group of the allocation's nodes each role's jobs run in.
            python: Interpreter for steps.py on that machine, 3.6 or newer.
            program: Where steps.py lies on that machine.
        """
        self.command_timeout_s = inner.command_timeout_s
        self.default_bind = inner.default_bind
        self.components_by, self.launcher = inner.components_by, inner.launcher
        self.stop_grace_s = inner.stop_grace_s * STEP_GRACE_SHARE
        is_here = program == str(PROGRAM)
        self.programs: Mapping[str, Path] = {**inner.programs, **({} if is_here else {program: PROGRAM})}
        self._inner = inner
        self._groups = groups
        self._words = [python, program]
        self._spool = ["--dir", spool]

    def _command(self, name: str) -> list[str]:
        return [*self._words, name, *self._spool]

    def submit_argv(self, submission: Submission) -> list[str]:
        wanted = submission.resources or RoleResources()
        argv = ["--name", submission.token, "--stdout", str(submission.batch_log)]
        argv += ["--group", self._groups[submission.role], "--nodes", str(wanted.nodes or 1)]
        argv += ["--cpus", str(wanted.cpus or submission.cpus or 1), "--gpus", str(wanted.gpus or 0)]
        if wanted.mem_gb is not None:
            argv += ["--mem-mib", str(max(1, round(wanted.mem_gb * 1024)))]
        if wanted.time is not None:
            argv += ["--time-s", str(time_limit_s(wanted.time))]
        return [*self._command("submit"), *argv, str(submission.script)]

    def parse_submit(self, answer: Answer) -> str:
        step_id = answer.stdout.strip()
        if answer.returncode != 0 or not step_id:
            raise SubmitError(answer.argv, answer.returncode, answer.stderr, "the allocation refused the step")
        return step_id

    def is_ambiguous(self, answer: Answer) -> bool:
        # Over SSH a signal's end arrives as 128 + N.
        return answer.returncode is None or answer.returncode <= 0 or answer.returncode > 128

    def status_argv(self, with_tasks: bool = False) -> list[str]:
        return self._command("status")

    def parse_status(self, answer: Answer) -> dict[str, Seen] | None:
        if answer.returncode != 0:
            return None
        seen = {}
        try:
            for line in answer.stdout.splitlines():
                step = json.loads(line)
                state = STATES.get(step["state"], JobState.UNKNOWN)
                seen[step["id"]] = Seen(step["id"], step["name"], state, step["node"], step["reason"])
        except (ValueError, KeyError, TypeError):
            return None
        return seen

    def cancel_argv(self, job_ids: Sequence[str]) -> list[str]:
        return [*self._command("cancel"), *job_ids]

    def has_cancelled(self, answer: Answer) -> bool:
        return answer.returncode == 0

    def requeue_argv(self) -> None:
        """Return None: the allocation is requeued, never one step of it."""

    def partitions_argv(self) -> list[str]:
        return self._inner.partitions_argv()

    def parse_partitions(self, answer: Answer) -> Mapping[str, PartitionFacts]:
        return self._inner.parse_partitions(answer)

    def test_argv(self) -> None:
        """Return None: a step's start depends on the other steps of its run."""

    def parse_test(self, answer: Answer) -> StartForecast | None:
        return None

    def limits_argv(self) -> list[str] | None:
        return self._inner.limits_argv()

    def parse_limits(self, answer: Answer) -> Mapping[str, PartitionLimits] | None:
        return self._inner.parse_limits(answer)

    def accounts_argv(self) -> list[str] | None:
        return self._inner.accounts_argv()

    def parse_accounts(self, answer: Answer) -> tuple[Association, ...] | None:
        return self._inner.parse_accounts(answer)

    def defaults_argv(self) -> list[str] | None:
        return self._inner.defaults_argv()

    def parse_defaults(self, answer: Answer) -> Association | None:
        return self._inner.parse_defaults(answer)

    def version_argv(self) -> list[str] | None:
        return self._inner.version_argv()

    def cluster_argv(self) -> list[str] | None:
        return self._inner.cluster_argv()

    def parse_cluster(self, answer: Answer) -> str | None:
        return self._inner.parse_cluster(answer)

    def dependency_option(self, completed: Sequence[str], ended: Sequence[str]) -> list[str]:
        return self._inner.dependency_option(completed, ended)

    def mail_events(self, events: Collection[str]) -> str:
        return self._inner.mail_events(events)

    def resources(
        self,
        role: str,
        wanted: RoleResources,
        default_cpus: int | None,
        facts: Mapping[str, PartitionFacts],
        notes: list[str],
    ) -> RoleResources:
        return self._inner.resources(role, wanted, default_cpus, facts, notes)

    def check_arrays(self, role: str, resolved: RoleResources, notes: list[str]) -> None:
        notes.append(f"{role}: not applicable in one allocation: job_arrays")
