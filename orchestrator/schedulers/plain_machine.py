"""A machine that is reached over OpenSSH and has no batch system, as a scheduler: local_jobs.py is brought there."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.errors import UserError
from orchestrator.schedulers.base import PartitionFacts
from orchestrator.schedulers.local import MACHINE, PROGRAM, LocalScheduler
from orchestrator.transports import Answer

FOLDER = "jobs"
# `nproc` counts the CPUs that a process may use, which are those that local_jobs.py hands out; it obeys OpenMP's
# variables (nproc(1)). proc_meminfo(5): MemTotal is in KiB.
_SIZE = r"""
LC_ALL=C; export LC_ALL; unset OMP_NUM_THREADS OMP_THREAD_LIMIT
cpus=$(nproc) && mem_kib=$(awk '/^MemTotal:/ { print $2 }' /proc/meminfo) || exit 1
printf 'size %s %s\n' "$cpus" "$mem_kib"
if command -v nvidia-smi >/dev/null 2>&1; then nvidia-smi --list-gpus; fi
exit 0
"""


class PlainMachineScheduler(LocalScheduler):
    """Process groups of another machine, which outlive the connection to it.

    The program and its registry of jobs lie in ``jobs`` below the host's base_dir: one batch system for all runs.
    """

    def __init__(self, name: str, python: str, base_dir: str) -> None:
        """Describe the machine.

        Args:
            name: Its name for people.
            python: Its interpreter for programs of orch, 3.6 or newer.
            base_dir: Folder there; below the home directory if not absolute.
        """
        super().__init__()
        self.machine = name
        program, self._registry = f"{base_dir}/{FOLDER}/{PROGRAM.name}", f"{base_dir}/{FOLDER}"
        self._program = [python, program]
        self.programs = {program: PROGRAM}

    def _words(self, command: str) -> list[str]:
        return [*super()._words(command), "--state-dir", self._registry]

    def is_ambiguous(self, answer: Answer) -> bool:
        # A signal's end arrives as 128 + N; 127 is a missing interpreter.
        return super().is_ambiguous(answer) or (answer.returncode or 0) > 128

    def partitions_argv(self) -> list[str]:
        return ["sh", "-c", _SIZE]

    def parse_partitions(self, answer: Answer) -> dict[str, PartitionFacts]:
        words = answer.stdout.partition("\n")[0].split()
        if answer.returncode != 0 or len(words) != 3 or words[0] != "size" or not (words[1] + words[2]).isdigit():
            return {}
        gpus = super().parse_partitions(answer)[MACHINE].gpus_per_node
        return {MACHINE: PartitionFacts(gpus, "the machine", cpus=int(words[1]), mem_mib=int(words[2]) // 1024)}

    def _size(self, facts: Mapping[str, PartitionFacts]) -> tuple[int, float]:
        told = facts.get(MACHINE)
        if told is None or told.cpus is None or told.mem_mib is None:
            raise UserError(
                f"{self.machine} does not tell its CPUs and memory.\n"
                "scheduler.kind = local needs a Linux machine with nproc, awk and /proc."
            )
        return told.cpus, round(told.mem_mib * 1.048576 / 1000, 1)
