"""`python -m tests.bench.many_trials N [PARALLEL] [--arrays]`: N trials of a second each on the real test cluster.

Prints how long it took, how often the scheduler was asked and submitted to, and what the process cost; with
``--arrays`` trials that are proposed together are one job array. Stand-ins for the server and the trainer; Slurm, the
jobs and the orchestrator are real.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def wrapper(path: Path, lines: str) -> Path:
    """Write a program."""
    path.write_text(f"#!/bin/bash\n{lines}")
    path.chmod(0o700)
    return path


def main() -> int:
    """Run the search and print its figures."""
    numbers = [int(word) for word in sys.argv[1:] if word != "--arrays"]
    trials, parallel = numbers[0], numbers[1] if len(numbers) > 1 else 16
    folder = Path(tempfile.mkdtemp(prefix="orch-many-"))
    real = sys.executable
    python = wrapper(
        folder / "python",
        f"""[ "$1" = -m ] && {{ shift 2; exec {real} {PROJECT}/tests/standin/openai_server.py "$@"; }}
[ "$1" = -c ] && exit 0
[[ $1 == */trainer/train.py ]] && {{ shift; exec {real} {PROJECT}/tests/standin/trainer.py "$@"; }}
exec {real} "$@"
""",
    )
    calls = {name: folder / f"{name}-calls" for name in ("squeue", "sbatch")}
    for name, path in calls.items():
        program = subprocess.run(["which", name], capture_output=True, text=True, check=True).stdout.strip()
        wrapper(folder / name, f'date +%s.%N >>{path}; exec {program} "$@"\n')
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    small = {"cpus": 1, "mem_gb": 0.5, "gpus": 0, "partition": "cpu"}
    recipe = {
        "job": {
            "name": "many",
            "scheduler": {"kind": "slurm"},
            "infrastructure": {"partition": "cpu", "mem_gb": 1, "cpus_per_task": 1, "gpus_per_node": 0, "time": 30},
            "resources": dict.fromkeys(("client", "monitoring", "trial"), small),
            "service": {"model": str(folder / "model")},
            "engine": {"kind": "vllm", "device": "cpu", "python": str(python)},
            "environment": {"python": str(python)},
            "benchmark": {"enabled": False},
            "monitoring": {"mode": "off"},
            "polling": {"scheduler_s": 2, "records_s": 0.5, "submits_per_s": 20},
            "hpo": {
                "trials": trials,
                "parallel_trials": parallel,
                "job_arrays": "--arrays" in sys.argv,
                "sampler": "random",
                "evaluate_winner": False,
                "dataset": {"kind": "digits"},
                "space": {"learning_rate": {"kind": "float", "low": 0.005, "high": 0.2, "log": True}},
            },
        }
    }
    recipe["job"]["infrastructure"]["time"] = "00:30:00"  # type: ignore[index]
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe))
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "STANDIN_TRAINING_S": "0.2"}
    began = time.time()
    argv = [real, str(PROJECT / "orch.py"), str(path), "--output-dir", str(folder / "output")]
    with (folder / "log").open("w") as log:
        code = subprocess.run(argv, env=env, stdout=log, stderr=log, check=False).returncode
    took = time.time() - began
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    asked, submitted = (
        [float(line) for line in path.read_text().splitlines()] for path in (calls["squeue"], calls["sbatch"])
    )
    middle = (asked[0] + asked[-1]) / 2
    first, last = sum(at < middle for at in asked), sum(at >= middle for at in asked)
    figures = json.loads((folder / "output" / "latest" / "summary.json").read_text())["stages"]["hpo"]
    print(f"exit {code}; {figures['finished']} finished, {figures['failed']} failed of {trials} in {took:.0f} s")
    print(f"squeue was asked {len(asked)} times: {first} in the first half, {last} in the second")
    print(f"sbatch was called {len(submitted)} times")
    cpu_s, largest_mib = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    print(f"CPU of orch and its commands: {cpu_s:.0f} s; largest process {largest_mib:.0f} MiB")
    print(f"kept in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
