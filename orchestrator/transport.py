"""How commands of the scheduler are run: here, as child processes that a Ctrl-C on the terminal does not reach."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A job submitted from inside a job inherits its variables, and SBATCH_* would override the script's directives.
# SLURM_CONF and SLURM_JWT say how to reach the controller and stay.
_SCRUBBED_PREFIXES = ("SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SCANCEL_", "SINFO_", "PBS_", "PMI_", "ORCH_JOB_ID")
_KEPT = frozenset({"SLURM_CONF", "SLURM_JWT"})


@dataclass(frozen=True)
class Answer:
    """What a command answered.

    Attributes:
        returncode: Exit code, or None if it was ended because it did not answer in time.
    """

    argv: tuple[str, ...]
    returncode: int | None
    stdout: str
    stderr: str


def scrubbed_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return ``env`` without the variables of a surrounding batch job."""
    return {name: value for name, value in env.items() if name in _KEPT or not name.startswith(_SCRUBBED_PREFIXES)}


class LocalTransport:
    """Runs argv on this machine."""

    def run(self, argv: Sequence[str], timeout_s: float) -> Answer:
        """Return the answer of ``argv``; a missing program answers 127 as a shell would.

        The command is a session of its own, so that Ctrl-C never ends a submission half way.
        """
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                env=scrubbed_environment(os.environ),
                start_new_session=True,
            )
        except OSError as error:
            return Answer(tuple(argv), 127, "", f"{argv[0]}: {error.strerror}")
        with process:
            returncode: int | None
            try:
                stdout, stderr = process.communicate(timeout=timeout_s)
                returncode = process.returncode
            except BaseException as error:
                # With all its children: a wrapper's sbatch must not submit after it was looked for.
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                stdout, stderr = process.communicate()
                returncode = None
        return Answer(tuple(argv), returncode, stdout, stderr)
