"""Whole runs from a laptop to two clusters with hosts of their own; only LLM server and trainer are stand-ins."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import TRAINER, TRIALS
from tests.faults.netns.sites import Site, why_not
from tests.faults.slurm.conftest import SlurmScene
from tests.life.conftest import HPO


class TwoSites(SlurmScene):
    """One run: the agent here, server and client on site a, trials on site b."""

    def __init__(self, folder: Path, recipe: dict[str, Any], a: Site, b: Site) -> None:
        super().__init__(folder, recipe, a)
        self.a, self.b = a, b

    def there(self, site: Site) -> Path:
        """Return the run's directory at a site."""
        return self.folder / f"base-{site.name}" / "runs" / self.run_dir.name

    def held(self) -> Counter[str]:
        """Return how often the held trainers of each node have written into their trial's folder."""
        lines = [path.read_text().split() for path in self.there(self.b).glob("trials/*/held")]
        return Counter(line for found in lines for line in found)

    def check_nothing_is_left(self) -> None:
        """See SlurmScene; at both sites."""
        for site in (self.a, self.b):
            self.cluster = site
            super().check_nothing_is_left()


@pytest.fixture
def counting_python(tmp_path: Path) -> Path:
    """An interpreter that notes every trainer's start and gives the stand-in in its place.

    While it is held it writes its node's name into the trial's folder, over and over.
    """
    script = tmp_path / "counting-python"
    real, folder = shlex.quote(sys.executable), shlex.quote(str(tmp_path))
    script.write_text(
        "#!/bin/bash\n"
        "if [[ $1 == */trainer/train.py ]]; then\n"
        '  shift; for word in "$@"; do\n'
        "    [[ $previous == --job_id ]] && name=$word; [[ $word == --job_id=* ]] && name=${word#*=}\n"
        "    [[ $previous == --output_dir ]] && trial=$word; [[ $word == --output_dir=* ]] && trial=${word#*=}\n"
        "    previous=$word; done\n"
        f'  mkdir -p "$trial"; echo "$name $SLURM_JOB_ID ${{SLURM_RESTART_COUNT:-0}} $HOSTNAME" >>{folder}/starts\n'
        f'  while [[ -e {folder}/hold ]]; do echo "$HOSTNAME" >>"$trial/held"; sleep 0.2; done\n'
        f'  exec {real} {shlex.quote(str(TRAINER))} "$@"\n'
        "fi\n"
        f'exec {real} "$@"\n'
    )
    script.chmod(0o700)
    return script


@pytest.fixture(scope="package")
def sites() -> Iterator[tuple[Site, Site]]:
    """Return two clusters with hosts of their own, which nothing is left of at the end."""
    why = why_not()
    if why:
        pytest.skip(f"no hosts of network namespaces: {why}")
    # Below /tmp and short: a socket's path has 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="orch-netns-"))
    # The server and the client need one node each, and the second one takes both.
    made = Site(folder / "a", "a", {"a1": 2, "a2": 4}), Site(folder / "b", "b", {"b1": 2, "b2": 2})
    try:
        for site in made:
            site.up()
        yield made
    finally:
        for site in made:
            site.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def scene(
    tmp_path: Path,
    standin_python: Path,
    model_dir: Path,
    counting_python: Path,
    sites: tuple[Site, Site],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TwoSites]:
    """Return a run that takes seconds: benchmark and search; nothing is left of it."""
    a, b = sites
    for site in sites:
        site.heal()
    sockets = Path(tempfile.mkdtemp(prefix="o-", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(sockets))
    # What another cluster's tests have left in the environment is nothing to this laptop.
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    hosts: dict[str, dict[str, Any]] = {
        site.name: {
            "ssh": site.spec(),
            "base_dir": str(tmp_path / f"base-{site.name}"),
            "environment": {"python": str(counting_python)},
        }
        for site in sites
    }
    small = {"partition": "cpu", "cpus": 1, "mem_gb": 1, "gpus": 0, "time": "00:10:00"}
    recipe = {
        "job": {
            "name": "netns",
            "host": a.name,
            "hosts": hosts,
            "resources": {
                "server": {**small, "cpus": 2},
                "client": {**small},
                "trial": {**small, "host": b.name},
            },
            "service": {"model": str(model_dir), "n_clients": 2, "n_requests_per_client": 2, "startup_timeout_s": 60},
            "engine": {"kind": "vllm", "device": "cpu", "python": str(standin_python)},
            "benchmark": {"max_tokens": 4, "warmup_requests": 0},
            "monitoring": {"mode": "off"},
            "polling": {"scheduler_s": 1, "records_s": 0.3, "metrics_s": 0.5},
            "hpo": {**HPO, "trials": TRIALS, "parallel_trials": 1, "sampler": "llm", "evaluate_winner": False},
        }
    }
    made = TwoSites(tmp_path, recipe, a, b)
    made.shims.mkdir()
    yield made
    made.hold.unlink(missing_ok=True)
    for site in sites:
        site.heal()
    for run in made.runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
    if (made.output_dir / "latest").is_symlink():
        made.orch("stop").process.wait(120)
    for site in sites:
        for job_id in site.queue():
            site.run("scancel", job_id)
    shutil.rmtree(sockets, ignore_errors=True)
    assert made.left() == []
