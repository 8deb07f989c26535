#!/usr/bin/env python3
"""The front door: one recipe in; a served, measured, monitored and self-tuning LLM workload out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent


def _enter_environment() -> None:
    """Go on under the project's own interpreter where this one lacks the packages; `make env` makes it."""
    python = PROJECT / ".venv" / "bin" / "python"
    if python.is_file() and Path(sys.prefix) != PROJECT / ".venv":
        os.execv(python, [str(python), *sys.argv])  # noqa: S606
    sys.exit("orch: its packages are not installed here.\nRun `make env` in the project's folder first.")


def main() -> int:
    """Run the command line and return its exit code."""
    sys.path.insert(0, str(PROJECT))
    try:
        if sys.argv[1:2] == ["bench"]:  # it starts in no time, and knows nothing of recipes
            from client.load.command import main as run_bench

            return run_bench(sys.argv[2:])
        if sys.argv[1:2] == ["compare"]:
            from client.load.compare_command import main as run_compare

            return run_compare(sys.argv[2:])
        from agent.stage import PACKAGES as TRAINER_PACKAGES
        from agent.stage import HpoStage
        from client.stage import BenchmarkStage
        from monitoring.push import make_metrics
        from orchestrator.cli import main as run_command
        from orchestrator.compose import Parts
        from orchestrator.sitecheck.packages import Packages
        from services.catalog import services_of
        from services.client import PACKAGES as CLIENT_PACKAGES
        from services.front import PACKAGES as BALANCER_PACKAGES
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in {"agent", "client", "monitoring", "orchestrator", "services"}:
            raise
        _enter_environment()
    parts = Parts(
        services_of=services_of,
        stages=(BenchmarkStage(), HpoStage()),
        make_metrics=make_metrics,
        packages=Packages(client=CLIENT_PACKAGES, trainer=TRAINER_PACKAGES, balancer=BALANCER_PACKAGES),
    )
    return run_command(sys.argv[1:], parts)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
