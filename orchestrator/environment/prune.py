"""Removal of environments that were replaced; never of one that may be in use.

A job keeps the environment that the path led to when it started. So one may be in use by processes on its machine, by
jobs of runs that name the path, or its own folder, and have not surely ended, and by jobs of runs that nobody here
knows.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from orchestrator.environment.build import INSTALL_TIMEOUT_S, Build
from orchestrator.environment.place import PROOF
from orchestrator.errors import TransportError
from orchestrator.plan import job_token
from orchestrator.recipe.hosts import HostSpec
from orchestrator.resolve import base_dir_there, find_scheduler_there
from orchestrator.rundir import RunDir, iter_runs
from orchestrator.schedulers import Scheduler, find_scheduler, make_scheduler, make_scheduler_there
from orchestrator.sitecheck.findings import Finding, not_applicable, ok, planned
from orchestrator.space.caches import mentions
from orchestrator.space.verdict import Fate, Queues, judge_run, run_id_of

_ASK_S = 120.0
# Folders on stdin, as arguments would find the search itself. Maps tell of libraries, whatever started the process.
_USED = """
while IFS= read -r folder; do
  printf '%s/\\n' "$folder" | grep -qsF -f - /proc/[0-9]*/maps /proc/[0-9]*/cmdline || continue
  printf '%s\\n' "$folder"
done
"""


class Prune:
    """The step that removes older environments."""

    def __init__(self, build: Build, output_dir: Path) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            build: The environment that is made.
            output_dir: Folder of the runs that may use older ones.
        """
        self._build, self._place, self._output_dir = build, build.place, output_dir

    def look(self) -> Finding:
        """Remove those that nothing uses, and say why the others stay.

        Raises:
            TransportError: the machine cannot be asked.
            MakingError: one could not be removed; it is not taken for whole any more.
        """
        found = self._place.find()
        old = found.whole if self._build.is_dry else found.old
        if not old:
            return not_applicable("there are no older ones")
        stay = self._why_they_stay(old)
        going = [name for name in old if name not in stay]
        words = [f"kept: {name} ({why})" for name, why in stay.items()]
        if self._build.is_dry:
            return planned(
                "\n".join([*(f"rm -rf -- {shlex.quote(self._place.beside(name))}" for name in going), *words])
            )
        for name in going:
            folder = self._place.beside(name)
            script = f'rm -f -- "$1/{PROOF}" && rm -rf -- "$1"'
            self._build.do(["sh", "-c", script, "sh", folder], INSTALL_TIMEOUT_S, "an old environment was not removed")
        return ok("\n".join([f"removed: {', '.join(going)}" if going else "none was removed", *words]))

    def _why_they_stay(self, names: tuple[str, ...]) -> Mapping[str, str]:
        for_all = self._why_all_stay()
        if for_all:
            return dict.fromkeys(names, for_all)
        why = dict.fromkeys(self._used(names), "a process on its machine uses it")
        for run in iter_runs(self._output_dir):
            for name in names:
                if name not in why and mentions(run, name) and judge_run(run, Queues()).fate != Fate.ENDED:
                    why[name] = f"{run.root.name} names it"
        return {name: why[name] for name in names if name in why}

    def _why_all_stay(self) -> str:
        scheduler = self._scheduler()
        transport = self._place.visit.transport
        seen = scheduler.parse_status(transport.run(scheduler.status_argv(), scheduler.command_timeout_s))
        if seen is None:
            return "the scheduler does not answer"
        living = [job.name for job in seen.values() if job.has_leftovers or not job.state.is_final]
        runs = {run_id: run for run in iter_runs(self._output_dir) if (run_id := run_id_of(run)) is not None}
        for name in living:
            if name.startswith("orch-") and not any(name.startswith(job_token(run_id, "")) for run_id in runs):
                return f"the job {name} belongs to a run that is not in {self._output_dir}"
        return next((why for run in runs.values() if (why := self._why_of(run))), "")

    def _why_of(self, run: RunDir) -> str:
        if not mentions(run, str(self._place.path)):
            return ""
        verdict = judge_run(run, Queues())
        return "" if verdict.fate in {Fate.ENDED, Fate.FRESH} else f"{run.root.name}: {verdict.why}"

    def _scheduler(self) -> Scheduler:
        visit = self._place.visit
        centre = visit.centre
        if not isinstance(centre, HostSpec):
            return make_scheduler(centre.scheduler or find_scheduler()[0])
        spec = centre.scheduler or find_scheduler_there(visit.name, visit.transport, [])
        base = base_dir_there(visit.name, centre, visit.transport)
        return make_scheduler_there(spec, visit.name, centre.environment.supervisor_python, base)

    def _used(self, names: tuple[str, ...]) -> list[str]:
        transport = self._place.visit.transport
        folders = {self._place.beside(name): name for name in names}
        asked = "".join(f"{folder}\n" for folder in folders).encode()
        answer = transport.run(["sh", "-c", _USED], _ASK_S, stdin=asked)
        if answer.returncode not in {0, 1}:
            raise TransportError(transport.host, f"its processes cannot be looked at: {answer.stderr.strip()}")
        return [folders[line] for line in answer.stdout.splitlines() if line in folders]
