"""Which runs the user means, and which of them may go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import RunNotFoundError
from orchestrator.history import run_state
from orchestrator.rundir import RunDir
from orchestrator.space.verdict import Fate, Queues, Verdict, judge_run, last_activity

# They were started and did not come to their end.
FAILED_STATES = frozenset({"failed", "interrupted", "stopped", "left"})


@dataclass(frozen=True)
class Filters:
    """Which runs are meant; all of them must fit.

    Attributes:
        older_than_s: Not active for at least this many seconds.
        failed: Started, and not completed.
        keep_last: The newest so many runs are never meant.
    """

    older_than_s: float | None = None
    failed: bool = False
    keep_last: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was asked for."""
        return self.older_than_s is None and not self.failed and self.keep_last is None


@dataclass(frozen=True)
class Item:
    """One thing that was looked at for deletion.

    Attributes:
        what: `run`, `checkpoints`, `cache`, `leftover`.
        name: Of the run, or of the thing in the cache.
        n_bytes: On the disk; 0 for what stays.
        age_s: Since it was last active or used.
        state: Of a run.
        why_left: Why it stays; empty for what is to go.
    """

    what: str
    name: str
    n_bytes: int = 0
    age_s: float = 0.0
    state: str = ""
    why_left: str = ""


def meant(runs: Sequence[RunDir], filters: Filters) -> list[RunDir]:
    """Return the runs that fit ``filters``.

    Args:
        runs: All runs, oldest first.
        filters: What was asked for.
    """
    kept = filters.keep_last or 0
    chosen = list(runs[: len(runs) - kept] if kept else runs)
    if filters.older_than_s is not None:
        chosen = [run for run in chosen if time.time() - last_activity(run) >= filters.older_than_s]
    return [run for run in chosen if not filters.failed or _state(run) in {*FAILED_STATES, ""}]


def _state(run: RunDir) -> str:
    """Return a run's state; empty if it cannot be read, which the verdict then says."""
    try:
        return run_state(run).state
    except (RunNotFoundError, KeyError, TypeError, AttributeError, OSError):
        return ""


def verdicts(runs: Sequence[RunDir], queues: Queues) -> list[tuple[RunDir, Verdict]]:
    """Return what is known of the end of each run."""
    return [(run, judge_run(run, queues)) for run in runs]


def why_checkpoints_stay(verdict: Verdict) -> str:
    """Return why the checkpoints of a run's trials must stay; empty if they need not."""
    if verdict.fate != Fate.ENDED:
        return verdict.why
    if not verdict.state:
        return "whether it was completed is not known here"
    return "" if verdict.state == "completed" else f"it is {verdict.state}: `resume` would go on from its checkpoints"
