"""The command line, started as a user starts it."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import orch
from orchestrator.compose import Composed
from orchestrator.errors import StorageError
from orchestrator.ledger import Ledger
from orchestrator.recipe.schema import recipe_schema, recipe_schema_text
from tests.builders import ProgramFolder

PROJECT = Path(__file__).parents[2]
REFERENCE = PROJECT / "recipes" / "inference_recipe.json"


class CommandLine:
    """orch.py in an environment of its own, on a cluster of small programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "out put [" / "]"
        self.programs = ProgramFolder(folder / "bin")
        self.programs.add("sbatch", "echo 42")
        self.programs.add("squeue", "")
        self.programs.add("scancel", "")
        self.programs.add("sinfo", "printf 'cpu*|(null)\\ngpu|gpu:a100:4\\n'")
        self.programs.add("ollama", "sleep 1")

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run orch.py at 80 columns to its end; whatever happens, nobody sees a traceback."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "COLUMNS", "XDG"))}
        env |= {"PATH": self.programs.path, "HOME": str(self.folder), "COLUMNS": "80"}
        argv = [sys.executable, str(PROJECT / "orch.py"), *map(str, arguments)]
        done = subprocess.run(argv, cwd=self.folder, env=env, capture_output=True, text=True, timeout=60)
        assert "Traceback" not in done.stderr
        return done

    def dry_run(self, *arguments: str | Path) -> dict[str, Any]:
        """Return the plan that a dry run prints."""
        done = self.run(*arguments, "--dry-run", "--json", "--output-dir", self.output)
        assert done.returncode == 0, done.stderr
        plan: dict[str, Any] = json.loads(done.stdout)
        return plan


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """Return a command line."""
    return CommandLine(tmp_path)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[CommandLine, dict[str, Any]]:
    """Return a command line and the plan of the reference recipe on Slurm."""
    made = CommandLine(tmp_path_factory.mktemp("planned"))
    return made, made.dry_run(REFERENCE)


def test_dry_run_of_the_reference_recipe_plans_slurm_and_ollama_with_notes(
    planned: tuple[CommandLine, dict[str, Any]],
) -> None:
    plan = planned[1]
    assert plan["scheduler"] == "slurm"
    names = [job["name"] for job in plan["jobs"]]
    assert names[:2] == ["ollama", "client"]
    server = plan["jobs"][0]
    assert server["resources"] == {
        "partition": "cpu", "account": "p200981", "nodes": 1, "cpus": 8, "mem_gb": 64.0, "gpus": 0,
        "time": "01:00:00", "directives": [],
    }  # fmt: skip
    notes = "\n".join(plan["notes"])
    assert "precision = fp16: not applied" in notes
    assert "because 'llama2' is a bare tag" in notes


def test_dry_run_json_names_run_directory_and_each_jobs_script(planned: tuple[CommandLine, dict[str, Any]]) -> None:
    cli, plan = planned
    run_dir = Path(plan["run_dir"])
    assert run_dir.parent == cli.output
    assert not (cli.output / "latest").exists(), "a plan does not take the place of the latest run"
    for job in plan["jobs"]:
        assert {"name", "role", "scheduler", "script", "resources"} <= set(job)
        assert f"#SBATCH --job-name={job['token']}\n" in Path(job["script"]).read_text()
    assert json.loads((run_dir / "plan.json").read_text()) == plan


def test_dry_run_starts_and_submits_nothing(planned: tuple[CommandLine, dict[str, Any]]) -> None:
    cli, plan = planned
    assert [cli.programs.calls(name) for name in ("squeue", "scancel", "ollama")] == [[], [], []]
    assert set(cli.programs.calls("sbatch")) == {"--test-only"}
    run_dir = Path(plan["run_dir"])
    for name in ("events.jsonl", "lease.json", "summary.json"):
        assert not (run_dir / name).exists()
    assert not list((run_dir / "logs").iterdir())


def test_dry_run_writes_private_files_and_a_token_that_no_script_holds(
    planned: tuple[CommandLine, dict[str, Any]],
) -> None:
    run_dir = Path(planned[1]["run_dir"])
    for path in run_dir.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    token = (run_dir / "secrets" / "api_token").read_text()
    assert len(token) >= 32
    for path in run_dir.rglob("*"):
        if path.is_file() and path.parent.name != "secrets":
            assert token not in path.read_text(), path


def test_dry_run_resolved_recipe_is_a_valid_recipe_that_plans_the_same_scripts(
    planned: tuple[CommandLine, dict[str, Any]],
) -> None:
    cli, first = planned
    recipe = Path(first["run_dir"]) / "recipe.json"
    jsonschema.validate(json.loads(recipe.read_text()), recipe_schema())
    second = cli.dry_run(recipe)
    assert [job["name"] for job in second["jobs"]] == [job["name"] for job in first["jobs"]]
    for one, two in zip(first["jobs"], second["jobs"], strict=True):
        assert one["resources"] == two["resources"]
        for kind in ("script", "config"):
            texts = []
            for plan, job in ((first, one), (second, two)):
                text = Path(job[kind]).read_text()
                texts.append(text.replace(plan["run_dir"], "RUN").replace(plan["run_id"], "ID"))
            assert texts[0] == texts[1]


def test_dry_run_prints_a_table_that_fits_80_columns(cli: CommandLine) -> None:
    done = cli.run(REFERENCE, "--dry-run", "--no-monitoring", "--output-dir", cli.output)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines)
    for words in (
        "ollama",
        "client",
        "cpu/p200981",
        "64G",
        "01:00:00",
        "GPU-hours at most: 0",
        "Note: monitoring: off",
    ):
        assert words in done.stdout
    assert "prometheus" not in done.stdout


def test_status_list_report_stop_and_logs_of_a_planned_run(planned: tuple[CommandLine, dict[str, Any]]) -> None:
    cli, plan = planned
    name = Path(plan["run_dir"]).name
    status = json.loads(cli.run("status", name, "--json", "--output-dir", cli.output).stdout)
    assert (status["run_dir"], status["state"], status["jobs"]) == (plan["run_dir"], "planned", [])
    text = cli.run("status", name, "--output-dir", cli.output).stdout
    assert text == f"{plan['run_dir']}\nplanned on slurm, not started\n"
    listed = json.loads(cli.run("list", "--json", "--output-dir", cli.output).stdout)
    assert name in {Path(run["run_dir"]).name for run in listed["runs"]}
    table = cli.run("list", "--output-dir", cli.output)
    assert all(len(line) <= 80 for line in table.stdout.splitlines())
    report = cli.run("report", name, "--output-dir", cli.output)
    assert report.returncode == 2
    assert f"has no summary yet, as it is planned.\nStart it with `orch.py resume {name}`" in report.stderr
    stopped = cli.run("stop", name, "--output-dir", cli.output)
    assert (stopped.returncode, stopped.stdout) == (0, "No job of this run was alive.\n")
    logs = cli.run("logs", "ollama", "--run", name, "--output-dir", cli.output)
    assert logs.returncode == 2
    assert "the run has no job 'ollama'" in logs.stderr


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Give the umask back that a run in this process has changed."""
    umask = os.umask(0o022)
    yield
    os.umask(umask)


def main(*arguments: str | Path) -> int:
    """Run the command line in this process, without a new interpreter."""
    argv, sys.argv = sys.argv, ["orch.py", *map(str, arguments)]
    try:
        return orch.main()
    finally:
        sys.argv = argv


def test_bad_recipe_ends_with_2_and_tells_all_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.json"
    recipe.write_text('{"job": {"name": "a b", "service": {"modle": "x"}}}')
    assert main(recipe, "--dry-run", "--output-dir", tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"orch: {recipe}: 2 problems" in captured.err
    assert "Did you mean 'model'?" in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such.json", "--dry-run"], "no such file"),
        (["status", "nothing"], "no run 'nothing'"),
        (["report"], "no run 'latest'"),
        (["stop"], "no run 'latest'"),
        (["logs"], "no run 'latest'"),
        (["validate", str(REFERENCE), "--set", "nonsense"], "PATH=VALUE"),
        (["validate", str(REFERENCE), "--site", "/no/site.yaml"], "no such file"),
    ],
)
def test_wrong_input_ends_with_2_in_words(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(*arguments, "--output-dir", tmp_path) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("below", ["", "a/b"])
@pytest.mark.parametrize("command", [[REFERENCE, "--set", "job.scheduler.kind=slurm", "--dry-run"], ["list"], ["stop"]])
def test_output_folder_that_is_a_file_ends_with_2_and_leaves_the_file_alone(
    command: list[str | Path], below: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    before = path.stat().st_mode
    assert main(*command, "--output-dir", path / below) == 2
    error = capsys.readouterr().err
    assert f"{path} is a file, not a folder" in error
    assert "Free some space" not in error
    assert (path.read_text(), path.stat().st_mode) == ("mine", before)


def test_output_folder_that_cannot_be_written_ends_with_2_and_says_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Not even root makes a folder there.
    assert main(REFERENCE, "--set", "job.scheduler.kind=slurm", "--dry-run", "--output-dir", "/proc/orch") == 2
    error = capsys.readouterr().err
    assert "--output-dir = /proc/orch: cannot write /proc/orch: " in error
    assert "Name a folder in which you may write" in error
    assert "Free some space" not in error


def test_output_folder_without_space_is_no_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(composed: Composed) -> None:
        raise StorageError(tmp_path / "recipe.json", OSError(errno.ENOSPC, "No space left on device"))

    monkeypatch.setattr(Composed, "write", fail)
    assert main(REFERENCE, "--set", "job.scheduler.kind=slurm", "--dry-run", "--output-dir", tmp_path) == 1
    assert "Free some space" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["schema"], ["--help"], ["list", "--json"], ["validate", str(REFERENCE)]])
def test_reader_that_leaves_early_gets_no_traceback(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, str(PROJECT / "orch.py"), *arguments]
    done = subprocess.run(argv, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_while_packages_are_imported_ends_with_130_and_no_traceback(cli: CommandLine) -> None:
    package = cli.folder / "packages" / "pydantic"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    argv = [sys.executable, str(PROJECT / "orch.py"), "schema"]
    env = {**os.environ, "PYTHONPATH": str(package.parent)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_logs_have_no_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main("logs", "--json", "--output-dir", tmp_path)
    assert caught.value.code == 2
    assert "unrecognized arguments: --json" in capsys.readouterr().err


def test_list_json_without_runs_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("list", "--json", "--output-dir", tmp_path) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": []}


def test_unknown_option_ends_with_2_and_shows_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(REFERENCE, "--dry-runn")
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_validate_prints_a_recipe_that_is_valid_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("validate", REFERENCE, "--json", "--set", "job.service.n_clients=3") == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.validate(document, recipe_schema())
    assert document["job"]["service"]["n_clients"] == 3
    assert main("validate", REFERENCE) == 0
    assert capsys.readouterr().out == f"{REFERENCE}: valid\n"


def test_schema_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("schema") == 0
    assert capsys.readouterr().out == recipe_schema_text()


def test_list_leaves_out_a_damaged_run_and_shows_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "plan.json").write_text("{")
    (tmp_path / "[whole]").mkdir()
    (tmp_path / "[whole]" / "plan.json").write_text('{"scheduler": "local"}')
    assert main("list", "--output-dir", tmp_path) == 0
    captured = capsys.readouterr()
    assert "[whole]" in captured.out
    assert "damaged" in captured.err


def test_help_fits_80_columns_and_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main("--help")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(len(line) <= 80 for line in text.splitlines())
    for command in ("validate", "schema", "list", "status", "logs", "stop", "report"):
        assert f"orch.py {command}" in text


def test_resume_that_cannot_know_what_became_of_a_job_touches_nothing(cli: CommandLine) -> None:
    plan = cli.dry_run(REFERENCE)
    run_dir = Path(plan["run_dir"])
    ledger = Ledger(run_dir / "events.jsonl")
    ledger.append("run_started")
    living, lost = plan["jobs"][0], plan["jobs"][1]
    ledger.append("job_intent", token=living["token"], planned=living)
    ledger.append("job_submitted", job=living["name"], token=living["token"], job_id="41")
    ledger.append("job_intent", token=lost["token"], planned=lost)
    cli.programs.add("squeue", "exit 1")
    before = len(cli.programs.calls("sbatch"))
    done = cli.run("resume", run_dir.name, "--output-dir", cli.output)
    assert done.returncode == 1
    assert "whether these jobs were submitted is not known" in done.stderr
    assert f"orch.py resume {run_dir.name}" in done.stderr
    assert cli.programs.calls("scancel") == []
    assert len(cli.programs.calls("sbatch")) == before
    assert not (run_dir / "summary.json").exists()
    assert [event["event"] for event in ledger.events()][-1] == "orchestrator_left"
    assert json.loads((run_dir / "lease.json").read_text())["owner"] is None


def test_resume_of_a_local_run_on_another_machine_is_refused(cli: CommandLine) -> None:
    plan = cli.dry_run(REFERENCE, "--set", "job.scheduler.kind=local", "--set", "job.infrastructure.mem_gb=1")
    recipe = Path(plan["run_dir"]) / "recipe.json"
    document = json.loads(recipe.read_text())
    document["provenance"]["host"] = "elsewhere"
    recipe.write_text(json.dumps(document))
    done = cli.run("resume", Path(plan["run_dir"]).name, "--output-dir", cli.output)
    assert done.returncode == 2
    assert "are processes of elsewhere, and this is" in done.stderr
