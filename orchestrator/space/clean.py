"""Deletion of runs on this machine, and of their trials' checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import RunBusyError
from orchestrator.lease import Lease
from orchestrator.rundir import RunDir, iter_runs
from orchestrator.space.removal import (
    delete_folder,
    finish_deletion,
    is_doomed,
    is_real_folder,
    mend_latest,
    real_folders,
)
from orchestrator.space.selection import Filters, Item, meant, verdicts, why_checkpoints_stay
from orchestrator.space.usage import measure, size_of_run
from orchestrator.space.verdict import Fate, Queues, judge_run, last_activity
from orchestrator.transports import LocalTransport


class RunsHere:
    """The runs of one output folder, as what could be deleted."""

    def __init__(self, output_dir: Path, filters: Filters, only_checkpoints: bool) -> None:
        """Prepare; nothing is looked at yet.

        Args:
            output_dir: Folder of all runs.
            filters: Which runs are meant.
            only_checkpoints: Delete the checkpoints of their trials instead of the runs.
        """
        self._output_dir, self._filters, self._only_checkpoints = output_dir, filters, only_checkpoints

    def look(self) -> list[Item]:
        """Return what would go and what stays, leftovers of an earlier deletion included; nothing is changed.

        Raises:
            TransportError: sizes cannot be measured.
        """
        tree = measure(LocalTransport(), str(self._output_dir))
        items = [Item("leftover", path.name, tree.sizes.get(path.name, 0)) for path in self._leftovers()]
        for run, verdict in verdicts(meant(list(iter_runs(self._output_dir)), self._filters), Queues()):
            name, age_s = run.root.name, time.time() - last_activity(run)
            if self._only_checkpoints:
                folders = list(checkpoint_folders(run))
                n_bytes = sum(tree.sizes.get(str(path.relative_to(self._output_dir.absolute())), 0) for path in folders)
                item = Item("checkpoints", name, n_bytes, age_s, verdict.state, why_checkpoints_stay(verdict))
                items += [item] if folders else []
            else:
                why = "" if verdict.fate == Fate.ENDED else verdict.why
                items.append(Item("run", name, size_of_run(tree, name).total, age_s, verdict.state, why))
        return items

    def delete(self, item: Item) -> str:
        """Delete what ``item`` names, if it may still go; return why it stays, or an empty string.

        Raises:
            StorageError: not all of it could be deleted.
        """
        path = self._output_dir.absolute() / item.name
        if item.what == "leftover":
            finish_deletion(path)
            return ""
        run = RunDir(path)
        with away_from(run) as why:
            if why:
                return why
            return self._delete_checkpoints(run) if self._only_checkpoints else delete_run(run)

    def _delete_checkpoints(self, run: RunDir) -> str:
        why = why_checkpoints_stay(judge_run(run, Queues()))
        if not why:
            for folder in checkpoint_folders(run):
                finish_deletion(folder) if is_doomed(folder.name) else delete_folder(folder)
        return why

    def _leftovers(self) -> list[Path]:
        return [path for path in real_folders(self._output_dir) if is_doomed(path.name)]

    def finish(self) -> None:
        """Put `latest` right; see mend_latest."""
        if not self._only_checkpoints:
            mend_latest(self._output_dir)


def delete_run(run: RunDir) -> str:
    """Delete a run whose lock is held, if it has surely ended; return why it stays, or an empty string.

    Raises:
        StorageError: not all of it could be deleted.
    """
    verdict = judge_run(run, Queues())
    if verdict.fate != Fate.ENDED:
        return verdict.why
    delete_folder(run.root)
    return ""


@contextmanager
def away_from(run: RunDir) -> Iterator[str]:
    """Keep orchestrators away from a run; give why that cannot be, or an empty string.

    Raises:
        StorageError: no lock can be made.
    """
    if not is_real_folder(run.root):
        yield "it is not there any more"
        return
    lease = Lease(run.lease)
    try:
        if not lease.lock():
            yield "its file system has no locks, so that another machine could resume it meanwhile"
            return
    except RunBusyError as error:
        lease.unlock()
        yield str(error).splitlines()[0].rstrip(".")
        return
    try:
        yield ""
    finally:
        lease.unlock()


def checkpoint_folders(run: RunDir) -> Iterator[Path]:
    """Yield the checkpoint folders of a run's trials, half-deleted ones included, behind no link.

    The best trial's checkpoint, in the run's own checkpoints/, is not among them.
    """
    for trial in real_folders(run.trials):
        for folder in real_folders(trial):
            if folder.name == "checkpoints" or (is_doomed(folder.name) and folder.name.endswith("-checkpoints")):
                yield folder
