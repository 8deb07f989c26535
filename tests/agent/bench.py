"""A search over real jobs: the local scheduler, the real supervisor, and a tiny program in place of the trainer."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.stage import HpoStage
from orchestrator import supervisor
from orchestrator.arrays import PlannedArray
from orchestrator.hosts import Hosts, ThisMachine
from orchestrator.jobs import JobTracker
from orchestrator.ledger import Ledger
from orchestrator.metrics import Sample
from orchestrator.plan import PlannedJob, plan_job
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.infrastructure import RoleResources
from orchestrator.recipe.load import parse_recipe
from orchestrator.records import Endpoint
from orchestrator.rundir import RunDir
from orchestrator.schedulers import JobState
from orchestrator.schedulers.local import LocalScheduler
from orchestrator.service import JobDraft, PlanContext
from orchestrator.stage import StageContext
from orchestrator.tracked import TrackedJob
from orchestrator.transports import LocalTransport

RUN_ID = "7f3a2b1c"
EXPERIMENT = f"tune_{RUN_ID}"
TOKEN = "secret-canary-40f1"
SPACE: dict[str, Any] = {
    "model_type": {"kind": "categorical", "choices": ["resnet18", "customcnn"]},
    "learning_rate": {"kind": "float", "low": 1e-4, "high": 0.1, "log": True},
    "batch_size": {"kind": "categorical", "choices": [32, 64, 128]},
    "num_layers": {"kind": "int", "low": 2, "high": 6, "when": {"model_type": ["customcnn"]}},
}
FAKE_TRAINER = """
import json, math, os, pathlib, sys, time
flags, words = {}, sys.argv[1:]
for word in words:
    name, equals, value = word[2:].partition("=")
    flags[name] = value if equals else True
root = pathlib.Path(flags["output_dir"])
(root / "argv.json").write_text(json.dumps([sys.argv[1:], os.environ.get("OMP_NUM_THREADS")]))
how = json.loads((pathlib.Path(__file__).parent / "how.json").read_text())
how = {**how, **how.get(flags["job_id"].rpartition("_")[2], {})}
if flags.get("evaluate_test"):
    results = json.loads((root / "results.json").read_text())
    if how.get("evaluation") == "fails":
        sys.exit("the test pictures are gone")
    if how.get("evaluation") == "hangs":
        time.sleep(600)
    assert flags["resume"] is True and (root / "checkpoints" / "best.pt").exists()
    results["test_accuracy"] = how.get("test_accuracy", 0.875)
    (root / "results.json").write_text(json.dumps(results))
    sys.exit(0)
if how.get("trial") == "fails":
    sys.exit("CUDA is out of luck")
value = round(1 - abs(math.log10(float(flags["learning_rate"])) + 2) / 4, 6)
with (root / "metrics.jsonl").open("a") as file:
    for epoch in (1, 2):
        line = {"job_id": flags["job_id"], "epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": value,
                "val_loss": 0.5, "val_accuracy": value, "learning_rate": 0.1, "images_per_s": 9.5, "at": time.time()}
        file.write(json.dumps(line) + chr(10))
        file.flush()
time.sleep(how.get("sleep_s", 0))
(root / "checkpoints" / "best.pt").write_bytes(flags["job_id"].encode())
(root / "tensorboard" / "events").write_text(flags["job_id"])
if how.get("trial") == "says nothing":
    sys.exit(0)
results = {"job_id": flags["job_id"], "status": "completed", "val_accuracy": value, "best_val_accuracy": value,
           "val_auc": value, "epochs_run": 2, "training_time_s": 0.1, "test_accuracy": None}
if how.get("trial") == "is not finite":
    results["best_val_accuracy"] = float("nan")
results.update(how.get("results", {}))
(root / "results.json").write_text(how.get("text") or json.dumps(results))
"""


class RecordingMetrics:
    """Keeps what is pushed."""

    def __init__(self) -> None:
        self.pushes: list[tuple[dict[str, str], dict[str, float]]] = []

    def push(self, group: Mapping[str, str], samples: Sequence[Sample]) -> None:
        self.pushes.append((dict(group), {sample.name: sample.value for sample in samples}))

    def settle(self) -> dict[str, Any]:
        return {}

    def clear(self) -> None:
        pass


class RecordingProgress:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.bars: list[tuple[str, int, int | None, str]] = []

    def __enter__(self) -> RecordingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)

    def show_jobs(self, jobs: Sequence[TrackedJob], count: int | None = None) -> None:
        pass

    def show_bar(self, name: str, done: int, total: int | None, detail: str) -> None:
        self.bars.append((name, done, total, detail))


class Bench:
    """One run directory with everything that a search uses."""

    def __init__(self, folder: Path, hpo: dict[str, Any], how: dict[str, Any] | None = None) -> None:
        self.project = folder / "it's a clone"
        (self.project / "trainer").mkdir(parents=True, exist_ok=True)
        (self.project / "trainer" / "train.py").write_text(FAKE_TRAINER)
        self.how(how or {})
        self.recipe = make_recipe(hpo)
        self.run = RunDir(folder / "run")
        self.run.make()
        self.run.api_token.write_text(TOKEN)
        shutil.copyfile(supervisor.__file__, self.run.supervisor)
        run, cache = self.run, folder / "cache"
        self.plan = PlanContext(self.recipe, run, self.project, cache, "127.0.0.1", RUN_ID, run, cache)
        self.metrics, self.progress = RecordingMetrics(), RecordingProgress()
        self.endpoint: Endpoint | Exception = LookupError("no server")
        self.on_wait: Callable[[], None] = lambda: None
        self.guard: Callable[[PlannedJob], None] = lambda _: None
        self.plan_array: Callable[[Sequence[JobDraft]], PlannedArray] | None = None
        self.most_at_once = 0
        self.beside: tuple[PlannedJob, ...] = ()
        self._planned: Counter[str] = Counter()
        self.restart()

    def _check(self, planned: PlannedJob, *beside: PlannedJob) -> None:
        self.beside = beside
        self.guard(planned)

    def restart(self) -> None:
        """Begin anew, as a second orchestrator would: nothing in memory."""
        ledger, polling = Ledger(self.run.events), self.recipe.job.polling
        self.scheduler = LocalScheduler()
        hosts = Hosts([ThisMachine(self.scheduler, LocalTransport(), self.run)])
        self.jobs = JobTracker(self.run, ledger, hosts, polling, guard=self._check)
        self.context = StageContext(
            recipe=self.recipe,
            run=self.run,
            run_id=RUN_ID,
            experiment_id=EXPERIMENT,
            plan=self.plan,
            jobs=self.jobs,
            metrics=self.metrics,
            progress=self.progress,
            ledger=ledger,
            endpoint=self.find_endpoint,
            plan_job=self.plan_job,
            plan_array=self.plan_array,
            fetch=lambda role, path, excludes: None,
            wait=self.wait,
        )

    def how(self, how: dict[str, Any]) -> None:
        """Tell the fake trainer how to behave: all trials, or single ones by their number."""
        (self.project / "trainer" / "how.json").write_text(json.dumps(how))

    def serve(self, url: str) -> None:
        """Let the run's server be at ``url``."""
        self.endpoint = Endpoint("vllm", "1", "a", "h", 1, url, "fake-model", 0.0, 0.0)

    def find_endpoint(self, service: str) -> Endpoint:
        assert service == "vllm"
        if isinstance(self.endpoint, Exception):
            raise self.endpoint
        return self.endpoint

    def plan_job(self, draft: JobDraft) -> PlannedJob:
        # As in a run, no token is used twice, whatever a restarted orchestrator remembers.
        self._planned[draft.name] += 1
        return plan_job(draft, self.plan, self.scheduler, RUN_ID, self._planned[draft.name])

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self.jobs.poll()
            self.on_wait()
            self.most_at_once = max(self.most_at_once, sum(not job.state.is_final for job in self.jobs.jobs))
            if time.monotonic() >= deadline:
                return
            time.sleep(0.02)

    def search(self) -> dict[str, Any]:
        """Run the stage and return its figures, having made sure that they are JSON."""
        figures = HpoStage().run(self.context)
        loaded: dict[str, Any] = json.loads(json.dumps(figures, allow_nan=False))
        return loaded

    def close(self) -> None:
        self.jobs.cancel(self.jobs.jobs)
        self.jobs.wait_for_end(20.0)

    def trials(self) -> list[dict[str, Any]]:
        """Return reports/trials.json."""
        loaded: list[dict[str, Any]] = json.loads((self.run.reports / "trials.json").read_text())
        return loaded

    def states(self) -> dict[str, JobState]:
        return {job.name: job.state for job in self.jobs.jobs}

    def argv(self, number: int) -> tuple[list[str], str | None]:
        """Return what the fake trainer of a trial was called with, and its OMP_NUM_THREADS."""
        place = self.run.trials / f"job_{EXPERIMENT}_iter_{number}" / "argv.json"
        argv, threads = json.loads(place.read_text())
        return argv, threads


def make_recipe(hpo: dict[str, Any] | None, **job: Any) -> Recipe:
    """Return a resolved recipe with a small space and quick looks; without a search if ``hpo`` is None."""
    document = {
        "job": {
            "name": "tune",
            "scheduler": {"kind": "local"},
            "engine": {"kind": "vllm"},
            "environment": {"python": sys.executable, "supervisor_python": sys.executable},
            "polling": {"scheduler_s": 0.2, "records_s": 0.1, "metrics_s": 0.2},
            "resources": {"trial": RoleResources(nodes=1, gpus=0).model_dump(exclude_none=True)},
            **({} if hpo is None else {"hpo": {"space": SPACE, "trials": 3, **hpo}}),
            **job,
        }
    }
    return parse_recipe(document, "test")


def answer(**values: Any) -> str:
    """Return a whole proposal as the model would write it."""
    whole = {
        "model_type": "customcnn",
        "learning_rate": 0.01,
        "batch_size": 64,
        "num_layers": 3,
        "rationale": "a good start",
        **values,
    }
    return json.dumps(whole)
