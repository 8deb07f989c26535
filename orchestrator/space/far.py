"""Deletion of runs on a host: by what lies there, what its scheduler says, and the copy here if there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import TransportError
from orchestrator.rundir import RunDir
from orchestrator.space.clean import away_from
from orchestrator.space.places import Place
from orchestrator.space.removal import doomed_name, is_doomed, is_real_folder
from orchestrator.space.selection import FAILED_STATES, Filters, Item, why_checkpoints_stay
from orchestrator.space.usage import measure, size_of_run
from orchestrator.space.verdict import Fate, Queues, Verdict, judge_run, run_id_of
from orchestrator.space.wording import DAY_S

_ASK_S = 300.0
_DELETE_S = 3600.0
_NOT_THERE = 44
# Type, seconds since the epoch and path of each folder of runs/, and of the small files that tell of a run.
_LIST = f"""
[ -d "$1" ] || exit {_NOT_THERE}
cd -- "$1" && date '+n %s -' | tr '\\n' '\\0' && find . -mindepth 1 -maxdepth 3 \\
  \\( -path './*/*/*' ! -path './*/scripts/*' ! -path './*/status/*' -prune \\) -o -printf '%y %T@ %P\\0'
"""
# Folders that may not be entered are opened up first; rm follows no link.
_DELETE = """
cd -- "$1" && [ -d "$2" ] && [ ! -L "$2" ] || { echo "it is no folder any more" >&2; exit 1; }
[ "$2" = "$3" ] || mv -T -- "$2" "$3" || exit 1
find "./$3" -type d ! -perm -700 -exec chmod u+rwx {} \\;
rm -rf -- "./$3"
"""


@dataclass
class FarRun:
    """One folder of a host's runs/.

    Attributes:
        newest: When the last of its records was written, in seconds since the epoch by the host's clock.
        files: Paths of its small files, from the run.
    """

    name: str
    newest: float = 0.0
    files: list[str] = field(default_factory=list)


class RunsThere:
    """The runs of one host, as what could be deleted."""

    def __init__(self, place: Place, output_dir: Path, filters: Filters, only_checkpoints: bool) -> None:
        """Prepare; nothing is asked yet.

        Args:
            place: The host.
            output_dir: Folder of the orchestrator's copies.
            filters: Which runs are meant.
            only_checkpoints: Delete the checkpoints of their trials instead of the runs.
        """
        self._place, self._output_dir = place, output_dir
        self._filters, self._only_checkpoints = filters, only_checkpoints
        self._now = 0.0

    def look(self) -> list[Item]:
        """Return what would go and what stays; nothing is changed there.

        Raises:
            TransportError: the host cannot be asked.
        """
        listed = self._list()
        if not listed:
            return []
        tree = measure(self._place.transport, self._place.runs)
        items = [Item("leftover", name, tree.sizes.get(name, 0)) for name in sorted(listed) if is_doomed(name)]
        runs = sorted((run for run in listed.values() if not is_doomed(run.name)), key=lambda run: run.newest)
        runs = runs[: len(runs) - self._filters.keep_last] if self._filters.keep_last else runs
        queues = Queues()
        for run in runs:
            age_s = max(0.0, self._now - run.newest)  # what lives there is written while this looks
            if self._filters.older_than_s is not None and age_s < self._filters.older_than_s:
                continue
            verdict = self._judge(run, queues)
            if self._filters.failed and verdict.state not in FAILED_STATES:
                continue
            if self._only_checkpoints:
                trials = tree.folders(f"{run.name}/trials")
                n_bytes = sum(tree.sizes.get(f"{run.name}/trials/{trial}/checkpoints", 0) for trial in trials)
                why = why_checkpoints_stay(verdict)
                items += [Item("checkpoints", run.name, n_bytes, age_s, verdict.state, why)] if n_bytes else []
            else:
                why = "" if verdict.fate == Fate.ENDED else verdict.why
                items.append(Item("run", run.name, size_of_run(tree, run.name).total, age_s, verdict.state, why))
        return items

    def _list(self) -> dict[str, FarRun]:
        answer = self._place.transport.run(["sh", "-c", _LIST, "sh", self._place.runs], _ASK_S)
        if answer.returncode == _NOT_THERE:
            return {}
        # find ends with 1 where it may not enter a folder, which then counts as no run.
        if answer.returncode not in {0, 1} or not answer.stdout.startswith("n "):
            raise TransportError(self._place.name, f"cannot list {self._place.runs}: {answer.stderr.strip()}")
        runs: dict[str, FarRun] = {}
        for record in answer.stdout.split("\0")[:-1]:
            kind, at, path = record.split(" ", 2)
            name, _, below = path.partition("/")
            if kind == "n":
                self._now = float(at)
            elif kind == "d" and not below:
                runs[name] = FarRun(name)
            elif name in runs and kind == "f":
                runs[name].newest = max(runs[name].newest, float(at))
                runs[name].files.append(below)
        return runs

    def _judge(self, run: FarRun, queues: Queues) -> Verdict:
        run_id = self._run_id(run)
        if run_id is None:
            return Verdict(Fate.UNKNOWN, "it has no scripts of a run of orch with this name")
        living = queues.living(self._place.scheduler, self._place.transport, run_id)
        if living is None:
            return Verdict(Fate.UNKNOWN, "the scheduler there does not answer")
        if living:
            return Verdict(Fate.LIVES, f"jobs have not ended: {' '.join(living[:3])}")
        home = self._home(run.name)
        return self._judge_alone(run) if home is None else judge_run(home, queues)

    def _home(self, name: str) -> RunDir | None:
        """Return the orchestrator's copy of a run, if it is in the output folder."""
        home = RunDir(self._output_dir / name)
        return home if is_real_folder(home.root) and run_id_of(home) is not None else None

    def _judge_alone(self, run: FarRun) -> Verdict:
        """Judge a run whose orchestrator's copy is not here: it was deleted, or lies on another machine."""
        lease = self._read(f"{run.name}/lease.json")
        if lease.get("keep"):
            return Verdict(Fate.KEPT, "its services were kept, and no copy of it is here to tell more")
        expires_at = lease.get("expires_at")
        if isinstance(expires_at, (int, float)) and expires_at > self._now:
            return Verdict(Fate.LIVES, "an orchestrator on another machine looks after it")
        if self._now - run.newest < DAY_S:
            return Verdict(Fate.FRESH, "it was active less than a day ago, and no copy of it is here to tell more")
        return Verdict(Fate.ENDED)

    def _run_id(self, run: FarRun) -> str | None:
        """Return the id of a run that a supervisor's configuration in it proves to be one; None for other folders."""
        configs = [path for path in run.files if path.startswith("scripts/") and path.endswith(".json")]
        for path in sorted(configs)[:1]:
            config = self._read(f"{run.name}/{path}")
            run_id, run_dir = config.get("run_id"), config.get("run_dir")
            if isinstance(run_id, str) and len(run_id) >= 6 and run_id in run.name and isinstance(run_dir, str):
                return run_id if Path(run_dir).name == run.name else None
        return None

    def _read(self, path: str) -> Mapping[str, Any]:
        """Return a JSON object of the host's runs/; empty if it is not there or none."""
        full = f"{self._place.runs}/{path}"
        data = self._place.transport.read_many([full])[full].data
        try:
            document = json.loads(data or b"{}")
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}

    def delete(self, item: Item) -> str:
        """Delete what ``item`` names, if it may still go; return why it stays, or an empty string.

        Raises:
            TransportError: not all of it could be deleted.
            StorageError: no lock can be made on the copy here.
        """
        if item.what == "leftover":
            self._remove(".", item.name, item.name)
            return ""
        with self._away_from(item.name) as why:
            return why or self._delete(item)

    def _delete(self, item: Item) -> str:
        run = self._list().get(item.name)
        if run is None:
            return "it is not there any more"
        verdict = self._judge(run, Queues())
        if not self._only_checkpoints:
            if verdict.fate == Fate.ENDED:
                self._remove(".", run.name, doomed_name(run.name))
            return "" if verdict.fate == Fate.ENDED else verdict.why
        why = why_checkpoints_stay(verdict)
        for trial, name in () if why else self._checkpoints(run.name):
            doomed = name if is_doomed(name) else doomed_name(name)
            self._remove(f"{run.name}/trials/{trial}", name, doomed)
        return why

    @contextmanager
    def _away_from(self, name: str) -> Iterator[str]:
        home = self._home(name)
        if home is None:
            yield ""
            return
        with away_from(home) as why:
            yield why

    def _checkpoints(self, name: str) -> list[tuple[str, str]]:
        """Return trial and name of each checkpoint folder, half-deleted ones included, behind no link."""
        argv = ["find", f"{self._place.runs}/{name}/trials", "-mindepth", "2", "-maxdepth", "2", "-type", "d"]
        names = ["(", "-name", "checkpoints", "-o", "-name", ".deleting-????????-checkpoints", ")"]
        answer = self._place.transport.run([*argv, *names, "-printf", r"%P\0"], _ASK_S)
        if answer.returncode != 0:
            raise TransportError(self._place.name, f"cannot look for checkpoints: {answer.stderr.strip()}")
        parts = (path.partition("/") for path in answer.stdout.split("\0")[:-1])
        return [(trial, folder) for trial, _, folder in parts]

    def _remove(self, folder: str, name: str, doomed: str) -> None:
        argv = ["sh", "-c", _DELETE, "sh", f"{self._place.runs}/{folder}", name, doomed]
        answer = self._place.transport.run(argv, _DELETE_S)
        if answer.returncode != 0:
            said = answer.stderr.strip() or "no answer"
            raise TransportError(self._place.name, f"cannot delete {folder}/{name}: {said}", "Try again later.")

    def finish(self) -> None:
        """Do nothing: there is no `latest` on a host."""


_UNUSED = """
cd -- "$1" 2>/dev/null || exit 0
for p in models/* containers/* hub/models--* ollama_models; do
  [ -d "$p" ] && [ ! -L "$p" ] && [ ! -L "${p%%/*}" ] || continue
  used=$(find "./$p" -type f -printf '%A@\\n%T@\\n' | sort -rn | head -n 1)
  name=${p##*/}
  case $p in hub/*) name=$(printf '%s' "${name#models--}" | sed 's|--|/|') ;; esac
  runs=$(find "$2" -mindepth 3 -maxdepth 3 -type f -path '*/scripts/*' -mtime "-$3" \\
    -exec grep -lwF -e "$name" {} + 2>/dev/null | head -n 1)
  [ -O "$p" ] && own=1 || own=0
  printf '%s\\0%s\\0%s\\0%s\\0' "$p" "${used:-0}" "$runs" "$own"
done
find . -type d -name .orch-partial -mtime +0 -prune -printf 'partial\\0%P\\0\\0\\0'
find . -mindepth 1 -maxdepth 2 -type d -name '.deleting-????????-*' -printf 'partial\\0%P\\0\\0\\0'
date +%s
"""
# The lock is that of orchestrator/models/lock.py, should orch run there as well.
_DELETE_CACHED = (
    """
command -v flock >/dev/null || { echo "flock (util-linux) is not installed there" >&2; exit 1; }
cd -- "$1" || exit 1
exec 9>>".$4.lock" && flock -n 9 || { echo "a converter is at work on it" >&2; exit 1; }
"""
    + _DELETE
)


class CachesThere:
    """The cache of a host, as what could be deleted."""

    def __init__(self, place: Place, unused_s: float) -> None:
        """Prepare; what was used within ``unused_s`` seconds stays."""
        self._place, self._unused_s = place, unused_s

    def look(self) -> list[Item]:
        """Return what would go and what stays; nothing is changed there.

        Raises:
            TransportError: the host cannot be asked.
        """
        days = str(max(1, round(self._unused_s / DAY_S)))
        argv = ["sh", "-c", _UNUSED, "sh", self._place.cache, self._place.runs, days]
        answer = self._place.transport.run(argv, _ASK_S)
        if answer.returncode != 0:
            raise TransportError(self._place.name, f"cannot look at {self._place.cache}: {answer.stderr.strip()}")
        *fields, now = answer.stdout.split("\0")
        tree = measure(self._place.transport, self._place.cache)
        items = []
        for first, second, run, own in zip(fields[0::4], fields[1::4], fields[2::4], fields[3::4], strict=True):
            if first == "partial":
                items.append(Item("leftover", second, tree.sizes.get(second, 0)))
                continue
            age_s = float(now) - float(second)
            why = self._why_left(run, own == "1", age_s)
            items.append(Item("cache", first, tree.sizes.get(first, 0), age_s, why_left=why))
        return items

    def _why_left(self, run: str, is_own: bool, age_s: float) -> str:
        if not is_own:
            return "it belongs to another user"
        if run:
            return f"{run.removeprefix(self._place.runs).split('/')[1]} uses it"
        return "it was used lately" if age_s < self._unused_s else ""

    def delete(self, item: Item) -> str:
        """Delete what ``item`` names, if it may still go; return why it stays, or an empty string.

        Raises:
            TransportError: not all of it could be deleted.
        """
        again = {found.name: found.why_left for found in self.look()}
        why = again.get(item.name, "it is not there any more")
        if why:
            return why
        folder, _, name = item.name.rpartition("/")
        doomed = name if is_doomed(name) else doomed_name(name)
        argv = ["sh", "-c", _DELETE_CACHED, "sh", f"{self._place.cache}/{folder}", name, doomed, name]
        answer = self._place.transport.run(argv, _DELETE_S)
        if answer.returncode != 0:
            raise TransportError(self._place.name, f"cannot delete {item.name}: {answer.stderr.strip()}")
        return ""

    def finish(self) -> None:
        """Do nothing."""
