"""The run directory: one class owns every path in it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.atomic import make_private_dir, point_link
from orchestrator.errors import RunNotFoundError

LATEST = "latest"
# What is being deleted has this in front of its name and is no run any more.
DELETING = ".deleting-"
_FOLDERS = (
    "scripts", "logs", "status", "stages", "endpoints", "secrets", "config", "data", "prometheus_assets",
    "benchmark", "hpo", "trials", "checkpoints", "tensorboard", "reports",
)  # fmt: skip


def new_run_id() -> str:
    """Return a fresh run id: eight hexadecimal digits."""
    return secrets.token_hex(4)


def experiment_id_of(name: str, run_id: str) -> str:
    """Return the id under which the trials of a run are named."""
    return f"{name}_{run_id}"


class RunDir:
    """Every path of one run.

    Attributes:
        root: The run directory, absolute.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @classmethod
    def name_new(cls, output_dir: Path, pattern: str, name: str, run_id: str) -> RunDir:
        """Return a new run's paths; nothing is made yet.

        Args:
            output_dir: Folder of all runs.
            pattern: Name of the run directory, with the fields timestamp, name, run_id and experiment_id.
            name: The job's name.
            run_id: The run's id.
        """
        timestamp = time.strftime("%Y%m%d_%H%M%S")
        experiment_id = experiment_id_of(name, run_id)
        return cls(
            output_dir.absolute()
            / pattern.format(timestamp=timestamp, name=name, run_id=run_id, experiment_id=experiment_id)
        )

    def make(self) -> None:
        """Make the run directory and all its folders.

        Raises:
            StorageError: it cannot be made.
        """
        for folder in self.folders():
            make_private_dir(folder)

    def folders(self) -> tuple[Path, ...]:
        """The run directory and all its folders."""
        return (self.root, *(self.root / folder for folder in _FOLDERS))

    def make_latest(self) -> None:
        """Point ``latest``, beside the run, at this run."""
        point_link(self.root.parent / LATEST, self.root.name)

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def lease(self) -> Path:
        return self.root / "lease.json"

    @property
    def summary(self) -> Path:
        return self.root / "summary.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def orchestrator_log(self) -> Path:
        return self.logs / "orch.log"

    @property
    def stop_request(self) -> Path:
        return self.root / "stop.json"

    @property
    def stages(self) -> Path:
        return self.root / "stages"

    @property
    def endpoints(self) -> Path:
        return self.root / "endpoints"

    @property
    def heartbeats(self) -> Path:
        """Folder of the jobs' records, heartbeats and fences."""
        return self.root / "status"

    @property
    def targets(self) -> Path:
        return self.root / "prometheus_assets"

    @property
    def api_token(self) -> Path:
        return self.root / "secrets" / "api_token"

    @property
    def scrape_token(self) -> Path:
        return self.root / "secrets" / "scrape_token"

    @property
    def code(self) -> Path:
        """What runs on compute nodes; only on a host that does not share the clone."""
        return self.root / "code"

    @property
    def supervisor(self) -> Path:
        return self.root / "scripts" / "supervisor.py"

    @property
    def benchmark(self) -> Path:
        return self.root / "benchmark"

    @property
    def hpo(self) -> Path:
        return self.root / "hpo"

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    def script(self, job: str) -> Path:
        return self.root / "scripts" / f"{job}.sh"

    def supervisor_config(self, job: str) -> Path:
        return self.root / "scripts" / f"{job}.json"

    def config(self, name: str) -> Path:
        return self.root / "config" / name

    def data(self, service: str) -> Path:
        return self.root / "data" / service

    def status(self, token: str) -> Path:
        return self.root / "status" / f"{token}.json"

    def heartbeat(self, token: str) -> Path:
        return self.root / "status" / f"{token}.heartbeat"

    def fence(self, token: str) -> Path:
        return self.root / "status" / f"{token}.fence"

    def stage(self, name: str) -> Path:
        return self.stages / f"{name}.json"

    def endpoint(self, service: str) -> Path:
        return self.endpoints / f"{service}.json"

    def log(self, service: str, job_id: str, stream: str) -> Path:
        """Return the log of ``stream`` ('out', 'err' or 'batch') of one job."""
        return self.logs / f"{service}_{job_id}.{stream}"

    def trial(self, job_pattern: str, job_id: str, number: int, experiment_id: str) -> Path:
        """Return the directory of one trial, named by the recipe's ``job_pattern``."""
        return self.trials / job_pattern.format(job_id=job_id, number=number, experiment_id=experiment_id)


def iter_runs(output_dir: Path) -> Iterator[RunDir]:
    """Yield all runs in ``output_dir``, oldest first (by the time of their first event)."""
    if not output_dir.is_dir():
        return
    found = [item for item in output_dir.iterdir() if _is_run(item)]
    for item in sorted(found, key=lambda path: ((path / "plan.json").stat().st_mtime, path.name)):
        yield RunDir(item)


def _is_run(folder: Path) -> bool:
    """Tell whether a folder looks like a run; one that may not be entered does not."""
    try:
        return not folder.is_symlink() and not folder.name.startswith(DELETING) and (folder / "plan.json").is_file()
    except PermissionError:
        return False


def find_run(output_dir: Path, wanted: str = LATEST) -> RunDir:
    """Return the run that ``wanted`` names: ``latest``, a directory, its name, or a run id.

    Raises:
        RunNotFoundError: there is none, or several fit.
    """
    direct = Path(wanted)
    if wanted != LATEST and (direct / "plan.json").is_file():
        return RunDir(direct.resolve())
    inside = output_dir / wanted
    if (inside / "plan.json").is_file():
        return RunDir(inside.resolve())
    runs = list(iter_runs(output_dir))
    if wanted == LATEST and runs:
        # Nothing was started here yet; a dry run does not become the latest.
        return runs[-1]
    exact = [run for run in runs if run.root.name.endswith(f"_{wanted}")]
    fitting = exact if len(exact) == 1 else [run for run in runs if wanted in run.root.name]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(run.root.name for run in fitting[-5:])
        raise RunNotFoundError(f"'{wanted}' fits {len(fitting)} runs: {names}\nGive more of the name.")
    names = ", ".join(run.root.name for run in runs[-5:]) or "none"
    raise RunNotFoundError(f"no run '{wanted}' in {output_dir}\nLast runs there: {names}. See `orch.py list`.")
