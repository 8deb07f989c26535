"""Answers that real schedulers gave, and answers in the same form."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from orchestrator.transports import Answer

PBS = Path(__file__).with_name("recorded_pbs")
PBS_USER = "user"
SLURM = Path(__file__).parents[1] / "cluster" / "recorded"
with (SLURM / "INDEX.tsv").open() as _file:
    SLURM_INDEX = {name: (int(code), command) for name, code, command in csv.reader(_file, delimiter="\t")}


def answer(stdout: str = "", returncode: int | None = 0, stderr: str = "") -> Answer:
    """Return an answer of some program."""
    return Answer(("program",), returncode, stdout, stderr)


def pbs(name: str) -> Answer:
    """Return what a real OpenPBS 23.06.06 answered; ``name`` as in ``history.qstat-all``."""
    said = json.loads((PBS / f"{name}.json").read_text(encoding="utf-8"))
    return Answer(tuple(said["argv"]), said["rc"], said["stdout"], said["stderr"])


def pbs_status(name: str) -> Answer:
    """Return what the status command prints where qstat answers ``name``: the asking user goes before it."""
    said = pbs(name)
    return Answer(said.argv, said.returncode, f"{PBS_USER}\n{said.stdout}", said.stderr)


def pbs_names(part: str) -> list[str]:
    """Return the names of all recordings of one command, such as ``qsub``."""
    return sorted(path.stem for path in PBS.glob(f"*.{part}-*.json"))


def slurm(name: str) -> Answer:
    """Return what a real Slurm 22.05 answered."""
    code, command = SLURM_INDEX[name]
    err = SLURM / f"{name}.err"
    return Answer((command,), code, (SLURM / f"{name}.out").read_text(), err.read_text() if err.exists() else "")


def slurm_queue(name: str) -> Answer:
    """Return a recorded `%i|%j|%T|%N|%r` as orch's `%i|%T|%N|%r|%j`."""
    said = slurm(name)
    lines = []
    for line in said.stdout.splitlines():
        job_id, rest = line.split("|", 1)
        job_name, state, node, reason = rest.rsplit("|", 3)
        lines.append(f"{job_id}|{state}|{node}|{reason}|{job_name}\n")
    return Answer(said.argv, said.returncode, "".join(lines), said.stderr)


def pbs_queue(jobs: dict[str, dict[str, object]]) -> str:
    """Return what the status command prints, the jobs as OpenPBS 23.06 writes them; ours, where no owner is given."""
    owned = {job_id: {"Job_Owner": f"{PBS_USER}@pbshost", **job} for job_id, job in jobs.items()}
    document = {"timestamp": 1795314224, "pbs_version": "23.06.06", "pbs_server": "pbshost", "Jobs": owned}
    return f"{PBS_USER}\n" + json.dumps(document, indent="\t", separators=(",", ":\t"), ensure_ascii=False)
