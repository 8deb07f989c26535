"""Whom a run tells when it is ready, failed, finished or nearly out of time: commands and webhooks.

Each is told in a thread of its own with a time limit: nothing of this keeps a run from being looked after or ends it.
Mail is the scheduler's: it stands in the script of the serving job.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from orchestrator.errors import NotHereError
from orchestrator.recipe.guard import Notice, Occasion
from orchestrator.tracked import TrackedJob, ends_at

WEBHOOK_WAITS_S = (1.0, 4.0)
_TOO_BUSY = 429
_SERVER_ERROR = 500
# The end of the orchestrator's own wall time, in seconds since the epoch: slurm_orch.sh sets the first one, Slurm 23.02
# and later the second (sbatch(1), "OUTPUT ENVIRONMENT VARIABLES").
_OWN_END = ("ORCH_END_TIME", "SLURM_JOB_END_TIME")
log = logging.getLogger(__name__)


class NotSentError(Exception):
    """One attempt to tell somebody failed.

    Attributes:
        is_lasting: Whether another attempt would fail as well.
    """

    def __init__(self, what: str, is_lasting: bool) -> None:
        self.is_lasting = is_lasting
        super().__init__(what)


@dataclass(frozen=True)
class RunFacts:
    """What every event says of its run."""

    run_id: str
    name: str
    run_dir: Path


def missing_for(notices: Iterable[Notice]) -> list[NotHereError]:
    """Return why some of ``notices`` could not be given from this machine."""
    found = []
    for notice in notices:
        if notice.command is not None and shutil.which(notice.command[0]) is None:
            found.append(NotHereError(f"job.notify: the command '{notice.command[0]}' was not found here."))
        if notice.token_file is not None and not os.access(notice.token_file, os.R_OK):
            found.append(NotHereError(f"job.notify: token_file = {notice.token_file} cannot be read."))
    return found


def own_end(environment: Mapping[str, str]) -> float | None:
    """Return when the wall time of the batch job around this process ends, in seconds since the epoch, or None."""
    for name in _OWN_END:
        text = environment.get(name, "")
        if text.isdigit():
            return float(text)
    return None


class Notifier:
    """Tells everybody of the events of one run."""

    def __init__(
        self,
        notices: Sequence[Notice],
        facts: RunFacts,
        limits_s: Mapping[str, float | None],
        own_end_at: float | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make a notifier; nobody is told anything yet.

        Args:
            notices: Whom to tell of what.
            facts: The run.
            limits_s: By role, the wall time in seconds of jobs that ask for none, where the partition has one.
            own_end_at: When this process's own wall time ends, in seconds since the epoch, or None.
            clock: Returns seconds since the epoch.
        """
        self._notices = [notice for notice in notices if notice.mail is None]
        self._facts, self._limits_s, self._own_end_at, self._clock = facts, limits_s, own_end_at, clock
        if any(notice.webhook is not None for notice in self._notices):
            # It logs the paths of URLs at DEBUG.
            logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
        self._told: set[tuple[int, str]] = set()
        self._threads: dict[int, threading.Thread] = {}

    def tell(self, occasion: Occasion, state: str, text: str, **details: Any) -> None:
        """Tell of ``occasion`` whoever wants to hear of it; returns at once."""
        event = self._event(occasion, state, text, details)
        for index, notice in enumerate(self._notices):
            if occasion in notice.on:
                self._send(index, event)

    def look(self, jobs: Iterable[TrackedJob]) -> None:
        """Tell of what is nearly out of wall time: each service's job, each attempt once, and this process."""
        if not self._notices:
            return
        ends = {
            f"{job.name} {job.record.attempt}": (job.name, end)
            for job in jobs
            if (end := ends_at(job, self._limits_s)) and job.record
        }
        if self._own_end_at is not None:
            ends["orchestrator"] = ("the orchestrator's own batch job", self._own_end_at)
        for key, (name, end) in ends.items():
            for index, notice in enumerate(self._notices):
                left_s = end - self._clock()
                if "near_end" in notice.on and left_s < notice.near_end_minutes * 60 and (index, key) not in self._told:
                    self._told.add((index, key))
                    text = f"{name}: its wall time ends in {max(0.0, left_s) / 60:.1f} minutes"
                    self._send(index, self._event("near_end", "running", text, {"job": name, "ends_at": end}))

    def close(self, timeout_s: float) -> None:
        """Wait for what is still being told, for ``timeout_s`` seconds at most."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads.values()):
            log.warning("notify: not everybody was told within %.0f s", timeout_s)

    def _event(self, occasion: Occasion, state: str, text: str, details: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "event": occasion,
            "at": self._clock(),
            "run_id": self._facts.run_id,
            "name": self._facts.name,
            "run_dir": str(self._facts.run_dir),
            "state": state,
            "text": text,
            **details,
        }

    def _send(self, index: int, event: Mapping[str, Any]) -> None:
        # A daemon: one that hangs must not keep the process from ending.
        notice, before = self._notices[index], self._threads.get(index)
        thread = threading.Thread(target=_deliver, args=(notice, event, before), daemon=True, name=f"notify {index}")
        self._threads[index] = thread
        thread.start()


def _deliver(notice: Notice, event: Mapping[str, Any], before: threading.Thread | None) -> None:
    """Tell one of one event, after the one before it: nobody hears of an end and then of a beginning."""
    if before is not None:
        before.join()
    try:
        if notice.command is not None:
            _run(notice.command, notice.timeout_s, event)
        elif notice.webhook is not None:
            _post_with_patience(notice, notice.webhook, event)
    except NotSentError as error:
        log.warning("notify %s: %s", event["event"], error)


def _run(command: Sequence[str], timeout_s: float, event: Mapping[str, Any]) -> None:
    variables = {f"ORCH_{name.upper()}": str(event[name]) for name in ("event", "run_id", "run_dir", "state", "text")}
    try:
        done = subprocess.run(
            command,
            input=json.dumps(event).encode(),
            env={**os.environ, **variables},
            capture_output=True,
            timeout=timeout_s,
            check=False,
            start_new_session=True,  # Ctrl-C is for the run
        )
    except subprocess.TimeoutExpired as error:
        raise NotSentError(f"{command[0]} was ended after {timeout_s:g} s", is_lasting=True) from error
    except OSError as error:
        raise NotSentError(f"{command[0]} could not be started: {error.strerror}", is_lasting=True) from error
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()[-500:]
        raise NotSentError(f"{command[0]} ended with exit code {done.returncode}: {words}", is_lasting=True)


def _post_with_patience(notice: Notice, url: str, event: Mapping[str, Any]) -> None:
    for wait_s in (*WEBHOOK_WAITS_S, None):
        try:
            _post(notice, url, event)
        except NotSentError as error:
            if error.is_lasting or wait_s is None:
                raise
            time.sleep(wait_s)
        else:
            return


def _post(notice: Notice, url: str, event: Mapping[str, Any]) -> None:
    """Send one POST request. Paths of webhooks are secrets: only the host is ever named."""
    where = f"webhook at {urlsplit(url).hostname}"
    headers = {}
    if notice.token_file is not None:
        try:
            headers["Authorization"] = f"Bearer {Path(notice.token_file).read_text(encoding='utf-8').strip()}"
        except (OSError, UnicodeDecodeError) as error:
            raise NotSentError(f"{where}: its token_file cannot be read: {type(error).__name__}", True) from error
    try:
        # A redirect could carry the token elsewhere.
        answer = requests.post(url, json=event, headers=headers, timeout=notice.timeout_s, allow_redirects=False)
    except requests.RequestException as error:
        # Its words hold the whole URL.
        raise NotSentError(f"{where}: {type(error).__name__}", is_lasting=isinstance(error, ValueError)) from None
    except UnicodeEncodeError:
        raise NotSentError(f"{where}: its token_file holds no token", is_lasting=True) from None
    if not answer.ok or answer.is_redirect:
        is_lasting = answer.status_code < _SERVER_ERROR and answer.status_code != _TOO_BUSY
        raise NotSentError(f"{where}: HTTP {answer.status_code}", is_lasting)
