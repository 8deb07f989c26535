"""Scripts are safe for whatever a recipe holds: hostile values arrive unchanged, and nothing of them is executed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.errors import RecipeError, RenderError, UnsafeValueError, UserError
from orchestrator.recipe.load import escape_variables
from orchestrator.render import directive_line, directive_value, quote_word, render
from tests.builders import plan_run, recipe_document

HOSTILE = [
    "it's", 'say "hi"', "$(touch pwned)", "`touch pwned`", "; touch pwned #", "& touch pwned", "| touch pwned",
    "a  b", " leading", "ünïcødé ✓ 日本 🚀", "#x", "%j%%n", "-rf", "--help", "*", "~", "$HOME", "${HOME}", "\\",
    "!!", "{{ 7*7 }}", "{% raw %}", "{## x ##}", "$'\\x41'", "<(touch pwned)", "=x", "'\"'",
    "@BIND", "a\\nb",
]  # fmt: skip
DUMPER = """
import json, os, sys
place = os.path.join(os.path.dirname(sys.argv[1]), "..", "dump.json")
with open(place, "w") as file:
    json.dump({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}, file)
"""


def run_script(script: str, root: Path) -> dict[str, Any]:
    """Execute a rendered script whose supervisor only tells what it got; fail if anything else was done."""
    for folder in ("scripts", "logs"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "scripts" / "supervisor.py").write_text(DUMPER)
    path = root / "scripts" / "job.sh"
    path.write_text(script, encoding="utf-8")
    done = subprocess.run(["bash", str(path)], cwd=root, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(root.parent.rglob("pwned"))
    dump: dict[str, Any] = json.loads((root / "dump.json").read_text())
    return dump


def hostile_document(scheduler: str, engine: str) -> dict[str, Any]:
    """Return a recipe with hostile values in every field that reaches a script's commands."""
    changes: dict[str, Any] = {
        "environment": {
            "supervisor_python": sys.executable,
            "python": "/opt/$(touch pwned)/it's python",
            "variables": {f"HOSTILE_{index}": value for index, value in enumerate(HOSTILE)},
        },
        "service": {"model": "org/$(touch pwned) `touch pwned` it's"},
        "engine": {"environment": {"ENGINE": "$(touch pwned)"}},
    }
    if engine == "vllm":
        changes["engine"] |= {"engine_args": HOSTILE, "served_model_name": "-name; 'x' \"y\"", "quantization": "--help"}
    else:
        changes["engine"] |= {"executable": "/opt/`touch pwned`/ollama"}
    document: dict[str, Any] = escape_variables(recipe_document(scheduler, engine, **changes))
    return document


@pytest.mark.parametrize("folder", ["plain", "it's a run", "ünï 日本", "a#b %j %%", "-dash", "$(touch pwned)", "a&b;c"])
@pytest.mark.parametrize("scheduler", ["local", "slurm", "pbs"])
def test_script_with_hostile_values_runs_nothing_and_hands_them_on(scheduler: str, folder: str, tmp_path: Path) -> None:
    root = tmp_path / folder
    planned = plan_run(hostile_document(scheduler, "vllm"), root)
    dump = run_script(planned.server.script_text, root)
    assert dump["cwd"] == str(root)
    assert dump["argv"][:2] == [str(root / "scripts" / "vllm.json"), "--"]
    argv = dump["argv"][2:]
    assert argv[0] == "/opt/$(touch pwned)/it's python"
    assert "--model=org/$(touch pwned) `touch pwned` it's" in argv
    assert "--served-model-name=-name; 'x' \"y\"" in argv
    assert "--quantization=--help" in argv
    start = argv.index(HOSTILE[0])
    assert argv[start : start + len(HOSTILE)] == HOSTILE
    for index, value in enumerate(HOSTILE):
        assert dump["env"][f"HOSTILE_{index}"] == value


def test_script_of_the_client_with_hostile_values_hands_them_on(tmp_path: Path) -> None:
    planned = plan_run(hostile_document("local", "vllm"), tmp_path / "it's a run")
    argv = run_script(planned.jobs["client"].script_text, tmp_path / "it's a run")["argv"]
    assert "--model=-name; 'x' \"y\"" in argv
    assert f"--output-dir={tmp_path}/it's a run/benchmark" in argv


def test_script_of_ollama_with_hostile_names_asks_for_exactly_that_model(tmp_path: Path) -> None:
    root = tmp_path / "run"
    programs = tmp_path / "it's; $(touch pwned)"
    programs.mkdir()
    program = programs / "ollama"
    program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >>{tmp_path}/calls\n[ "$1" != show ]\n')
    program.chmod(0o755)
    document = recipe_document("local", "ollama", environment={"supervisor_python": sys.executable})
    document["job"]["service"]["model"] = "m$(touch pwned)`touch pwned`'\""
    document["job"]["engine"]["executable"] = str(program)
    argv = run_script(plan_run(document, root).server.script_text, root)["argv"][2:]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=30)
    assert done.stderr == ""
    assert not list(tmp_path.rglob("pwned"))
    calls = (tmp_path / "calls").read_text().splitlines()
    model = "m$(touch pwned)`touch pwned`'\""
    assert sorted(calls) == sorted(["serve", "list", "show", model, "pull", model])


def test_script_in_a_folder_with_a_line_break_runs_locally_and_is_refused_on_clusters(tmp_path: Path) -> None:
    root = tmp_path / "a\ntouch pwned"
    document = recipe_document("local", "vllm", environment={"supervisor_python": sys.executable})
    assert run_script(plan_run(document, root).server.script_text, root)["cwd"] == str(root)
    for scheduler in ("slurm", "pbs"):
        with pytest.raises(UnsafeValueError, match="control characters"):
            plan_run(recipe_document(scheduler, "vllm"), root)


@pytest.mark.parametrize("value", ["gpu\ntouch pwned", "gpu\r#SBATCH --uid=0", "gpu\x00"])
def test_directive_with_a_line_break_is_refused_in_the_recipe_and_by_the_template(value: str) -> None:
    with pytest.raises(RecipeError):
        plan_run(recipe_document("slurm", "vllm", infrastructure={"partition": value}))
    for function in (directive_value, directive_line):
        with pytest.raises(RenderError):
            function(value)


@pytest.mark.parametrize("partition", ["a\\b", "a\"b'c"])
def test_directive_that_slurm_would_change_is_an_error_of_the_users(partition: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_run(recipe_document("slurm", "vllm", infrastructure={"partition": partition}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("gpu", "gpu"),
        ("a b", '"a b"'),
        ("a#b", '"a#b"'),
        ("it's", '"it\'s"'),
        ('say "x"', "'say \"x\"'"),
        (64, "64"),
        (0.5, "0.5"),
        (Path("/a b"), '"/a b"'),
    ],
)
def test_directive_value_is_quoted_only_where_it_must_be(value: object, expected: str) -> None:
    assert directive_value(value) == expected


def test_directive_of_a_run_folder_with_percent_signs_escapes_them() -> None:
    script = plan_run(recipe_document("slurm", "vllm"), Path("/runs/50%j")).server.script_text
    assert "#SBATCH --output=/runs/50%%j/logs/vllm_%j.batch\n" in script


@pytest.mark.parametrize("mem_gb", [0.0001, 0.001, 6.5])
def test_directive_of_memory_is_never_zero_which_means_all(mem_gb: float) -> None:
    script = plan_run(recipe_document("slurm", "vllm", infrastructure={"mem_gb": mem_gb})).server.script_text
    line = next(line for line in script.splitlines() if "--mem=" in line)
    assert int(line.removeprefix("#SBATCH --mem=").removesuffix("M")) == max(1, round(mem_gb * 1024))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), max_size=8))
@example(["-n", "", "\n", "'"])
def test_quote_word_gives_bash_exactly_the_words(words: list[str]) -> None:
    script = "printf '%s\\0' " + " ".join(quote_word(word) for word in ["start", *words])
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().split("\0")[:-1] == ["start", *words]


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
@example(86399.75)
@example(0.1 + 0.2)
def test_quote_word_of_a_number_keeps_every_digit(number: float) -> None:
    assert float(quote_word(number)) == number


@pytest.mark.parametrize("value", [None, True, [], {}, float("nan"), float("inf")])
def test_quote_word_of_what_is_no_word_is_refused(value: object) -> None:
    with pytest.raises(RenderError, match="no text, number or path"):
        quote_word(value)


def test_quote_word_with_nul_is_refused() -> None:
    with pytest.raises(UnsafeValueError, match="NUL"):
        quote_word("a\0b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{{ nothing }}", "undefined"), ("{% if %}", "Expected an expression"), ("{{ name | nofilter }}", "nofilter")],
)
def test_render_of_a_wrong_template_names_it(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "x.j2").write_text(text)
    with pytest.raises(RenderError, match=rf"templates/x\.j2: .*{expected}"):
        render("x.j2", {"name": 1}, tmp_path)


def test_render_of_a_missing_template_names_it(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=r"templates/none\.j2"):
        render("none.j2", {}, tmp_path)


def test_render_leaves_bash_lengths_alone_and_drops_comments(tmp_path: Path) -> None:
    (tmp_path / "x.j2").write_text("{## gone ##}\necho ${#name}\n")
    assert render("x.j2", {}, tmp_path) == "echo ${#name}\n"
