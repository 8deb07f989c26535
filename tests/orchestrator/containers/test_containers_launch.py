"""How jobs are started in images: each field of the section acts, and plain jobs are as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.containers import guard
from orchestrator.containers.launch import check_image, prepare_image
from orchestrator.errors import ProgramMissingError, RecipeError, UnsafeValueError
from orchestrator.recipe.container import Container, merge_container
from orchestrator.recipe.hosts import HERE
from orchestrator.site import Site
from services.exporters import node_exporter
from tests.builders import PlannedRun, plan_run, recipe_document
from tests.orchestrator.conftest import wait_for
from tests.orchestrator.containers.conftest import FakeApptainer

ALL = {"roles": ["server", "client", "trial", "monitoring"], "dir": "/images", "runtime": "apptainer"}
HPO = {"dataset": {"kind": "folder", "dir": "/data"}, "space": {"num_layers": {"kind": "int", "low": 1, "high": 3}}}


def planned(engine: str = "vllm", site: Site | None = None, /, **job: Any) -> PlannedRun:
    document = recipe_document("slurm", engine, infrastructure={"partition": "gpu"}, hpo=HPO, **job)
    return plan_run(document, site=site)


def launch_line(run: PlannedRun, job: str = "vllm") -> str:
    """Return the line of a job's script that starts its runtime."""
    (line,) = [line for line in run.jobs[job].script_text.splitlines() if " exec " in line and line.startswith(" ")]
    return line


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("dir", "/other", " /other/vllm-v0.32.0/image.sif "),
        ("images", {"vllm": "/own.sif"}, " /own.sif "),
        ("runtime", "/opt/bin/singularity", " /opt/bin/singularity exec "),
        ("gpu", "amd", " --rocm "),
        ("binds", ["/a", "/b:/c:ro"], " --bind=/a --bind=/b:/c:ro "),
        ("options", ["--nvccli", "--env=A=$(id)"], " --nvccli '--env=A=$(id)' "),
    ],
)
def test_field_of_the_section_changes_how_a_job_is_started(field: str, value: Any, word: str) -> None:
    before, after = launch_line(planned(container=ALL)), launch_line(planned(container={**ALL, field: value}))
    assert word in after
    assert word not in before


def test_gpu_libraries_come_in_only_where_a_job_gets_gpus() -> None:
    run = planned(container=ALL)
    assert " --nv " in launch_line(run)
    assert " --nv " not in launch_line(run, "client")
    assert " --nv " in launch_line(planned(container={**ALL, "gpu": "nvidia"}), "client")
    assert " --nv " not in launch_line(planned(container={**ALL, "gpu": "none"}))


@pytest.mark.parametrize("role", ["server", "client", "trial", "monitoring"])
@pytest.mark.parametrize("engine", ["vllm", "ollama"])
def test_only_jobs_of_the_roles_named_run_in_images(engine: str, role: str) -> None:
    plain, run = planned(engine), planned(engine, container={**ALL, "roles": [role]})
    for name, job in run.jobs.items():
        is_launched = "--containall" in job.script_text
        assert is_launched == (job.role == role), name
        if not is_launched:
            assert job.script_text == plain.jobs[name].script_text


def test_variables_of_a_job_reach_its_image_under_the_runtime_s_prefix() -> None:
    run = planned(
        container=ALL, environment={"variables": {"MY_FLAG": "1", "PATH": "/x"}}, engine={"environment": {"A": "b"}}
    )
    config = run.config("vllm")
    assert config["env"]["APPTAINERENV_A"] == "b"
    assert set(config["secret_env"]) == {"APPTAINERENV_VLLM_API_KEY", "APPTAINERENV_ORCH_SCRAPE_TOKEN"}
    assert all(name.startswith("APPTAINERENV_") for name in (*config["env"], *config["prepend_env"]))
    (loop,) = [line for line in run.server.script_text.splitlines() if line.startswith("for name in CUDA_VISIBLE")]
    passed = loop.replace(";", "").split()
    assert ("MY_FLAG" in passed, "PATH" in passed) == (True, False)
    other = planned(container={**ALL, "runtime": "singularity"}).config("vllm")
    assert all(name.startswith("SINGULARITYENV_") for name in (*other["env"], *other["secret_env"]))


def test_loop_of_variables_passes_those_that_are_set_and_no_others(tmp_path: Path) -> None:
    script = planned(container=ALL).server.script_text
    loop = script[script.index("for name in CUDA") : script.index("\nexec ")]
    env = {"PATH": os.defpath, "CUDA_VISIBLE_DEVICES": "2,3", "HF_TOKEN": "a b$(id)", "OTHER": "x"}
    done = subprocess.run(["bash", "-euc", f"{loop}\nenv"], env=env, capture_output=True, text=True, check=True)
    passed = sorted(line for line in done.stdout.splitlines() if line.startswith("APPTAINERENV_"))
    assert passed == ["APPTAINERENV_CUDA_VISIBLE_DEVICES=2,3", "APPTAINERENV_HF_TOKEN=a b$(id)"]


def test_model_and_data_are_seen_under_their_own_names_and_only_read() -> None:
    run = planned(container=ALL, service={"model": "/models/m"})
    assert " --bind=/models/m:/models/m:ro " in launch_line(run)
    assert " --bind=/data:/data:ro " in launch_line(run, "trial_example")
    assert " --bind=/cache/ollama_models:/cache/ollama_models:rw " in launch_line(
        planned("ollama", container=ALL), "ollama"
    )


def test_run_inside_of_the_project_is_bound_over_it(tmp_path: Path) -> None:
    document = recipe_document("slurm", "vllm", container=ALL)
    line = launch_line(plan_run(document, tmp_path / "output" / "run", project=tmp_path))
    assert line.index(f"--bind={tmp_path}:{tmp_path}:ro") < line.index(f"--bind={tmp_path}/output/run:")


def test_staged_model_is_copied_before_the_image_is_entered() -> None:
    script = planned(container=ALL, service={"model": "/models/m"}, engine={"stage_to": "$TMPDIR"}).server.script_text
    assert script.index("orch_stager.py") < script.index("guard.py") < script.index("--bind=@MODEL@:@MODEL@:ro")


@pytest.mark.parametrize("path", ["/runs/a:b", "/runs/a,b", "/runs/a\\b"])
def test_path_that_the_runtime_would_take_apart_is_refused(path: str) -> None:
    with pytest.raises(UnsafeValueError, match="cannot stand in a path that a container sees"):
        plan_run(recipe_document("slurm", "vllm", container=ALL), Path(path))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("roles", ["all"]),
        ("images", {"nosuch": "/x.sif"}),
        ("binds", ["relative:/x"]),
        ("binds", ["/a:/b:rx"]),
        ("binds", ["/a,/b"]),
        ("options", ["image.sif"]),
        ("registry", "docker://docker.io"),
        ("registry", "site.example/"),
        ("index", "site.example/simple"),
    ],
)
def test_wrong_value_of_the_section_is_refused_with_its_place(field: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"job\.container\.{field}"):
        planned(container={field: value})


def test_recipe_beats_site_field_by_field() -> None:
    site = Site(container=Container(roles=("server",), dir="/site", registry="site.example/m"))
    run = planned("vllm", site, container={"dir": "/mine", "runtime": "apptainer"})
    assert " /mine/vllm-v0.32.0/image.sif " in launch_line(run)
    assert run.resolved.recipe.job.container.registry == "site.example/m"
    assert merge_container(Container(), site.container) == site.container


def test_fields_without_roles_and_an_interpreter_beside_an_image_are_noted() -> None:
    assert any("container.roles is empty: dir" in note for note in planned(container={"dir": "/x"}).resolved.notes)
    notes = planned(container=ALL, engine={"python": "/venv/bin/python"}).resolved.notes
    assert any(note.startswith("engine.python: not applied") for note in notes)


def test_node_exporter_in_an_image_looks_at_the_node() -> None:
    (sidecar,) = node_exporter(planned(container=ALL).context, "service")
    words = " ".join(sidecar.argv)
    assert "--bind=/proc:/host/proc:ro" in words
    assert words.index("image.sif node_exporter") < words.index("--path.procfs=/host/proc")


def test_missing_image_is_an_error_with_the_command_that_makes_it(fake: FakeApptainer) -> None:
    context = planned(container={**ALL, "dir": str(fake.store)}).context
    check_image(context, "vllm")  # the run makes it
    with pytest.raises(ProgramMissingError, match=rf"on '{HERE}'.*\n`orch.py containers build trainer`"):
        check_image(context, "trainer", is_made_by_run=False)
    own = planned(container={**ALL, "images": {"vllm": str(fake.store / "own.sif")}}).context
    with pytest.raises(ProgramMissingError, match=r"own\.sif.*\nCorrect job\.container\.images"):
        check_image(own, "vllm")


def test_missing_runtime_is_an_error_unless_a_module_brings_it(fake: FakeApptainer) -> None:
    own = fake.folder / "sif"
    container = {**ALL, "images": {"vllm": str(own)}, "runtime": "apptainer-9"}
    with pytest.raises(ProgramMissingError, match=r"'apptainer-9' is not on PATH on 'here'"):
        check_image(planned(container=container).context, "vllm")
    check_image(planned(container=container, environment={"modules": ["Apptainer"]}).context, "vllm")


def test_run_makes_the_images_of_its_roles_and_no_others(fake: FakeApptainer) -> None:
    context = planned(container={**ALL, "roles": ["client"], "dir": str(fake.store)}).context
    told: list[str] = []
    prepare_image(context, "server", "vllm", told.append)
    assert fake.makings == []
    prepare_image(context, "client", "client", told.append)
    assert len(fake.makings) == 1
    assert told[0].startswith("building client-")


# Like a container runtime, it forgets what it was told of its parent's death.
FORGETFUL = "import ctypes, time; ctypes.CDLL(None).prctl(1, 0); print('up', flush=True); time.sleep(60)"


def guarded(*argv: str) -> subprocess.Popen[str]:
    words = [sys.executable, guard.__file__, *argv]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_guard_ends_the_runtime_when_its_own_parent_dies(tmp_path: Path) -> None:
    parent = (
        "import subprocess, sys, os; p = subprocess.Popen(sys.argv[1:], preexec_fn=lambda: os.setpgid(0, 0));"
        "print(p.pid, flush=True); p.wait()"
    )
    words = [sys.executable, "-c", parent, sys.executable, guard.__file__, sys.executable, "-c", FORGETFUL]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    group = int(process.stdout.readline())
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate()

    def is_gone() -> bool:
        groups = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
        return not any(int(fields[2]) == group and fields[0] not in "ZX" for fields in groups)

    wait_for(is_gone)


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_guard_ends_as_the_runtime_did(code: str, status: int) -> None:
    with guarded(sys.executable, "-c", code) as process:
        assert process.wait(20) == status


def test_guard_leaves_it_to_the_program_when_to_stop() -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True);"
        "[time.sleep(0.1) for _ in range(600)]"
    )
    with guarded(sys.executable, "-c", code) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(20) == 7


def test_guard_says_what_cannot_be_executed() -> None:
    with guarded("/nosuch/apptainer", "exec") as process:
        assert process.wait(20) == 127
        assert process.stderr is not None
        assert "cannot execute '/nosuch/apptainer'" in process.stderr.read()


def test_resolved_section_is_read_back_as_it_was() -> None:
    container = planned(container=ALL).resolved.recipe.job.container
    assert Container.model_validate(json.loads(container.model_dump_json())) == container
