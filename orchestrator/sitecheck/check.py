"""All steps of one check, and the removal of whatever it made."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from secrets import token_hex

from orchestrator.errors import TransportError
from orchestrator.interrupts import TerminatedError
from orchestrator.sitecheck import batch, job, machine, node, software
from orchestrator.sitecheck.findings import Check, Finding, Step, not_applicable, not_tried, ok, try_checks, warning
from orchestrator.sitecheck.visit import Visit
from orchestrator.transports.ways import can_ask

TIDY_ATTEMPTS = 5
TIDY_PAUSE_S = 1.0


def checks_of(visit: Visit) -> list[Check]:
    """Return the steps for one place, in their order."""
    nonce = token_hex(8)
    interactive = can_ask()

    def step(name: str, look: Callable[[Visit], Finding], *needs: str) -> Check:
        return Check(name, partial(look, visit), needs)

    return [
        Check("login", partial(machine.look_at_login, visit, interactive)),
        Check("folder", partial(machine.look_at_folder, visit, nonce), ("login",)),
        step("space", machine.look_at_space, "folder"),
        step("cache", machine.look_at_cache, "login"),
        step("modules", software.look_at_modules, "login"),
        step("python", software.look_at_python, "folder", "modules"),
        step("supervisor", software.look_at_supervisor_python, "folder", "modules"),
        step("container", software.look_at_containers, "folder", "modules"),
        step("scheduler", batch.look_at_scheduler, "login"),
        step("account", batch.look_at_account, "scheduler"),
        step("partitions", batch.look_at_partitions, "scheduler"),
        step("test job", job.try_job, "folder", "modules", "partitions", "account"),
        Check("node folder", partial(node.look_at_node_folder, visit, nonce), ("test job",)),
        step("node python", node.look_at_node_python, "test job"),
        step("node GPUs", node.look_at_gpus, "test job"),
        step("node clock", node.look_at_clock, "test job"),
        step("data", node.look_at_data, "login"),
    ]


def run_check(visit: Visit, tell: Callable[[str], None], steps: list[Step]) -> None:
    """Try all steps and add each to ``steps`` as it ends; whatever ends this, job and files are removed.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was made is removed already.
        TerminatedError: TERM or HUP; the same.
    """
    under_way = ""

    def begin(name: str) -> None:
        nonlocal under_way
        under_way = name
        tell(name)

    try:
        steps.extend(try_checks(checks_of(visit), begin))
    except (KeyboardInterrupt, TerminatedError):
        steps.append(Step(under_way, not_tried("interrupted")))
        raise
    finally:
        visit.interrupts.ignore()
        tell("clean up")
        started = time.monotonic()
        steps.append(Step("clean up", clean_up(visit), time.monotonic() - started))


def clean_up(visit: Visit) -> Finding:
    """Cancel the test job by its id, and remove the files of this check."""
    if not visit.has_written:
        return not_applicable("nothing was written")
    try:
        left = [text for text in (job.cancel(visit),) if text]
        for attempt in range(TIDY_ATTEMPTS):
            # A job that ends may still be writing, and NFS keeps open files under another name for a moment.
            time.sleep(TIDY_PAUSE_S if attempt else 0)
            if machine.tidy(visit):
                break
        else:
            left.append(f"{visit.own_folder} could not be removed")
    except TransportError as error:
        left = [f"{visit.own_folder} may be left: {error.what}"]
    if left:
        return warning("; ".join(left), "Remove by hand what is named here.")
    return ok(f"job {visit.job_id} is cancelled or gone, files are removed" if visit.job_id else "files are removed")
