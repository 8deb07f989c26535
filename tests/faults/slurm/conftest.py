"""Whole runs on a real Slurm that is being broken: only the LLM server and the trainer are stand-ins."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.ledger import Ledger
from tests.faults.conftest import TRAINER, TRIALS
from tests.faults.slurm.fault_cluster import FaultCluster, wait_until, why_not
from tests.life.conftest import HPO, PROJECT, OrchRun, processes_with

IS_WHOLE = os.environ.get("ORCH_FAULTS") == "all"
whole_suite = pytest.mark.skipif(not IS_WHOLE, reason="a slow fault: `make test-faults` (ORCH_FAULTS=all) injects it")


class FaultRun(OrchRun):
    """One orch.py under way; nothing is waited for once it has ended."""

    def wait_for(self, condition: Callable[[], Any], what: str, timeout_s: float = 60) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            has_ended = self.process.poll() is not None
            value = condition()
            if value:
                return value
            if has_ended or time.monotonic() > deadline:
                how = f"ended with {self.process.returncode}" if has_ended else f"went on for {timeout_s:.0f} s"
                pytest.fail(f"orch.py {how} without {what}:\n{self.stderr[-3000:]}")
            time.sleep(0.05)


class SlurmScene:
    """One run on the fault cluster; it is started, hurt and resumed in its folder."""

    def __init__(self, folder: Path, recipe: dict[str, Any], cluster: FaultCluster) -> None:
        self.folder, self.cluster, self.recipe = folder, cluster, recipe
        self.job: dict[str, Any] = recipe["job"]
        self.output_dir = folder / "output"
        self.env: dict[str, str] = {}
        self.runs: list[FaultRun] = []
        self.is_journal_cut = False

    @property
    def hold(self) -> Path:
        """While this file exists no trial gets on."""
        return self.folder / "hold"

    @property
    def shims(self) -> Path:
        """Programs in this folder are found before Slurm's own."""
        return self.folder / "shims"

    def start(self, *flags: str, limits: str = "") -> FaultRun:
        """Start the run in the background, under ``ulimit`` where ``limits`` says so."""
        path = self.folder / "recipe.json"
        path.write_text(json.dumps(self.recipe))
        return self.orch(str(path), *flags, limits=limits)

    def resume(self) -> FaultRun:
        """Resume the run in the background."""
        return self.orch("resume")

    def orch(self, *arguments: str, limits: str = "") -> FaultRun:
        """Start a command of orch.py in the background."""
        argv = [sys.executable, str(PROJECT / "orch.py"), *arguments, "--output-dir", str(self.output_dir)]
        if limits:
            argv = ["bash", "-c", f'{limits}; exec "$@"', "bash", *argv]
        path = f"{self.shims}:{os.environ['PATH']}"
        env = {**os.environ, "XDG_CONFIG_HOME": str(self.folder), "PATH": path, **self.env}
        log = self.folder / f"stderr{len(self.runs)}"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                argv, stdout=subprocess.DEVNULL, stderr=stderr, stdin=subprocess.DEVNULL, text=True, env=env
            )
        self.runs.append(FaultRun(process, self.output_dir, log))
        return self.runs[-1]

    def shim(self, name: str, body: str) -> None:
        """Put a bash program before one of Slurm's, which it finds in ``$real``."""
        real = shutil.which(name)
        assert real is not None
        path = self.shims / name
        path.write_text(f"#!/bin/bash\nreal={real}\nfolder={shlex.quote(str(self.folder))}\n{body}\n")
        path.chmod(0o700)

    def unshim(self, name: str) -> None:
        """Let Slurm's own program be found again."""
        (self.shims / name).unlink()

    @property
    def run_dir(self) -> Path:
        """The only run."""
        (found,) = {path.parent.resolve() for path in self.output_dir.glob("*/plan.json")}
        return found

    @property
    def run_id(self) -> str:
        return self.run_dir.name.rpartition("_")[2]

    def summary(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return document

    def summary_job(self, name: str) -> dict[str, Any]:
        """Return what the summary says of one job."""
        (found,) = [job for job in self.summary()["jobs"] if job["name"] == name]
        return dict(found)

    def record(self, name: str) -> dict[str, Any]:
        """Return the status record of a job, empty if there is none yet."""
        for path in self.output_dir.glob(f"*_*/status/orch-*-{name}.json"):
            document: dict[str, Any] = json.loads(path.read_text())
            return document
        return {}

    def endpoint(self, name: str) -> dict[str, Any]:
        """Return the endpoint record of a service, empty if there is none."""
        for path in self.output_dir.glob(f"*_*/endpoints/{name}.json"):
            document: dict[str, Any] = json.loads(path.read_text())
            return document
        return {}

    def targets(self, service: str) -> list[Path]:
        """Return the scrape targets of a service's job."""
        job_id = self.record(service)["job_id"]
        return list((self.run_dir / "prometheus_assets").glob(f"*_targets_{job_id}.json"))

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Return events of the ledger."""
        return list(Ledger(self.run_dir / "events.jsonl").events(*kinds))

    def states(self, name: str) -> list[str]:
        """Return the states that the orchestrator saw of a job, in their order."""
        return [event["state"] for event in self.events("job_state") if event["job"] == name]

    def await_state(self, run: FaultRun, name: str, state: str) -> dict[str, Any]:
        """Return a job's record once it says so itself."""
        run.wait_for(lambda: self.record(name).get("state") == state, f"{name} being {state}", 90)
        return self.record(name)

    def starts(self) -> Counter[str]:
        """Return how often each trainer was started, evaluations as ``evaluation``."""
        path = self.folder / "starts"
        return Counter(line.split()[0] for line in path.read_text().splitlines()) if path.exists() else Counter()

    def left(self) -> list[int]:
        """Return the processes of the run that still live."""
        return processes_with(f"{self.folder}/")

    def own_queue(self) -> dict[str, tuple[str, str, str]]:
        """Return the run's jobs that Slurm still has to do with."""
        return {key: job for key, job in self.cluster.queue().items() if job[2].startswith(f"orch-{self.run_id}-")}

    def check_nothing_is_left(self) -> None:
        """Check that no job and no process of the run lives, and that each intent became one job at most."""
        wait_until(lambda: self.own_queue() == {}, "an empty queue", 30)
        assert self.left() == []
        submitted = {event["token"]: {event["job_id"]} for event in self.events("job_submitted")}
        intents = {event["token"] for event in self.events("job_intent")}
        known = {name: ids for name, ids in self.cluster.ended_ids().items() if name.startswith(f"orch-{self.run_id}-")}
        assert len(self.events("job_submitted")) == len(submitted), "an intent was submitted twice"
        unknown = {name: ids for name, ids in known.items() if ids - submitted.get(name, set())}
        if self.is_journal_cut:
            assert set(unknown) <= intents - set(submitted), "its intent stays open: a resume looks for its job"
            assert all(len(ids) == 1 for ids in unknown.values())
        else:
            assert unknown == {}
        assert set(known) <= intents

    def check_trials(self, *, again: int = 0, trials: int = TRIALS) -> None:
        """Check that the search has all its trials, each counted once.

        Args:
            again: How many starts Slurm itself repeated.
            trials: How many were asked for.
        """
        hpo = self.summary()["stages"]["hpo"]
        assert [trial["state"] for trial in hpo["trials"]] == ["COMPLETE"] * trials
        assert hpo["finished"] == trials
        starts = self.starts()
        starts.pop("evaluation", None)
        assert len(starts) == trials
        assert sum(starts.values()) == trials + again
        assert len(list(self.run_dir.glob("trials/*/results.json"))) == trials

    def check_trials_after_loss(self, *, lost: int = 1) -> None:
        """Check that the search has its trials, ``lost`` of which were cut off and replaced."""
        hpo = self.summary()["stages"]["hpo"]
        states = [trial["state"] for trial in hpo["trials"]]
        assert states.count("COMPLETE") == hpo["finished"] == TRIALS
        assert len(states) <= TRIALS + lost
        starts = self.starts()
        starts.pop("evaluation", None)
        assert max(starts.values()) == 1

    def check_completed(self, *, requests: int = 4) -> None:
        """Check that the run is complete and nothing of it lives."""
        summary = self.summary()
        assert (summary["state"], summary["error"]) == ("completed", None)
        if self.job["benchmark"].get("enabled", True):
            benchmark = summary["stages"]["benchmark"]
            assert (benchmark["successful"], benchmark["failed"]) == (requests, 0)
        self.check_nothing_is_left()


@pytest.fixture(scope="package")
def fault_cluster() -> Iterator[FaultCluster]:
    """A Slurm of the tests' own, brought up once."""
    why = why_not()
    if why:
        pytest.skip(f"no cluster to break: {why}")
    # Below /tmp and short: a socket's path has 107 characters, and pytest's folders are closed to munged.
    folder = Path(tempfile.mkdtemp(prefix="orch-faults-"))
    cluster = FaultCluster(folder / "cluster")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def counting_python(tmp_path: Path) -> Path:
    """An interpreter that notes every trainer's start, holds it while asked to, and gives the stand-in in its place."""
    script = tmp_path / "counting-python"
    real, folder = shlex.quote(sys.executable), shlex.quote(str(tmp_path))
    script.write_text(
        "#!/bin/bash\n"
        "if [[ $1 == */trainer/train.py ]]; then\n"
        '  shift; name=; for word in "$@"; do\n'
        "    [[ $previous == --job_id ]] && name=$word; [[ $word == --job_id=* ]] && name=${word#*=}\n"
        "    [[ $word == --evaluate_test* ]] && kind=evaluation; previous=$word; done\n"
        f'  echo "${{kind:-$name}} $SLURM_JOB_ID ${{SLURM_RESTART_COUNT:-0}}" >>{folder}/starts\n'
        f"  while [[ -e {folder}/hold ]]; do sleep 0.1; done\n"
        f'  exec {real} {shlex.quote(str(TRAINER))} "$@"\n'
        "fi\n"
        f'exec {real} "$@"\n'
    )
    script.chmod(0o700)
    return script


@pytest.fixture
def scene(
    tmp_path: Path,
    standin_python: Path,
    model_dir: Path,
    counting_python: Path,
    fault_cluster: FaultCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SlurmScene]:
    """Return a run that takes seconds: server on cpu[1-3], client and trials on gpu[1-2]; nothing is left of it."""
    fault_cluster.heal()
    monkeypatch.setenv("SLURM_CONF", str(fault_cluster.conf))
    small = {"partition": "gpu", "cpus": 1, "mem_gb": 1, "gpus": 0}
    recipe = {
        "job": {
            "name": "faults",
            "scheduler": {"kind": "slurm", "command_timeout_s": 15},
            "infrastructure": {
                "partition": "cpu",
                "mem_gb": 1,
                "time": "00:10:00",
                "cpus_per_task": 1,
                "gpus_per_node": 0,
            },
            "resources": {"client": {**small}, "trial": {**small}},
            "service": {"model": str(model_dir), "n_clients": 2, "n_requests_per_client": 2, "startup_timeout_s": 60},
            "engine": {"kind": "vllm", "device": "cpu", "python": str(standin_python)},
            "environment": {"python": str(counting_python)},
            "benchmark": {"max_tokens": 4, "warmup_requests": 0},
            "monitoring": {"mode": "off"},
            "polling": {"scheduler_s": 1, "records_s": 0.1, "metrics_s": 0.5},
        }
    }
    made = SlurmScene(tmp_path, recipe, fault_cluster)
    made.shims.mkdir()
    yield made
    made.hold.unlink(missing_ok=True)
    fault_cluster.heal()
    for run in made.runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()
    for name in list(made.shims.iterdir()):
        name.unlink()
    if (made.output_dir / "latest").is_symlink():
        made.orch("stop").process.wait(120)
    for job_id in fault_cluster.queue():
        fault_cluster.run("scancel", job_id)
    deadline = time.monotonic() + 30
    while made.left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert made.left() == []


@pytest.fixture
def search(scene: SlurmScene) -> SlurmScene:
    """Return the run with a search of a few trials in the place of the benchmark."""
    scene.job["benchmark"]["enabled"] = False
    scene.job["hpo"] = {**HPO, "trials": TRIALS, "parallel_trials": 1, "sampler": "random", "evaluate_winner": False}
    return scene
