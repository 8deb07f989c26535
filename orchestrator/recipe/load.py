"""From a file and overrides to a valid recipe; every problem is reported at once."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.errors import DocumentError, Problem, RecipeError
from orchestrator.recipe.document import Recipe
from orchestrator.recipe.problems import problems_of
from orchestrator.recipe.yaml_text import load_yaml

ModelT = TypeVar("ModelT", bound=BaseModel)
MAX_BYTES = 4 << 20
MAX_DEPTH = 100
_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_recipe(path: Path, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None) -> Recipe:
    """Return the valid recipe in ``path`` with ``--set`` overrides applied and ``${VAR}`` expanded.

    Args:
        path: A JSON file, or YAML if it ends in .yaml or .yml.
        overrides: ``PATH=VALUE`` texts, such as ``job.scheduler.kind=slurm``.
        env: Where variables are looked up; the process's environment if None.

    Raises:
        RecipeError: the file cannot be read or parsed, or anything in it is wrong; carries all problems.
    """
    document = read_document(path, RecipeError)
    return parse_recipe(document, source=str(path), overrides=overrides, env=env)


def parse_recipe(
    document: Any, source: str, overrides: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> Recipe:
    """Return the valid recipe of an already parsed document; see load_recipe."""
    problems: list[Problem] = []
    if isinstance(document, dict):
        document = apply_overrides(document, overrides, problems)
    document = expand_variables(document, os.environ if env is None else env, problems)
    return validate(Recipe, document, source, RecipeError, problems)


def validate(
    model: type[ModelT],
    document: Any,
    source: str,
    error_type: type[DocumentError],
    problems: Sequence[Problem] = (),
) -> ModelT:
    """Return ``document`` as ``model``; raise ``error_type`` with all problems, the given ones included."""
    found = list(problems)
    try:
        valid = model.model_validate(document)
    except ValidationError as error:
        # A variable that is not set leaves a value that is wrong for that reason only.
        told = {problem.where for problem in problems}
        found += [problem for problem in problems_of(error, model) if problem.where not in told]
        raise error_type(source, found) from error
    if found:
        raise error_type(source, found)
    return valid


def read_document(path: Path, error_type: type[DocumentError]) -> Any:
    """Return the parsed content of a JSON or YAML file.

    Raises:
        DocumentError: of the given type; names line and column of a syntax error.
    """
    source = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise error_type(source, [Problem("", f"larger than {MAX_BYTES} bytes", remedy="Is this the right file?")])
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise error_type(source, [Problem("", "no such file", remedy=_nearby(path))]) from error
    except UnicodeDecodeError as error:
        raise error_type(source, [Problem("", f"not UTF-8 text (byte {error.start})")]) from error
    except OSError as error:
        raise error_type(source, [Problem("", f"cannot be read: {error.strerror or error}")]) from error
    try:
        if path.suffix in {".yaml", ".yml"}:
            document = load_yaml(text)
        else:
            document = json.loads(text, object_pairs_hook=_reject_duplicates, parse_constant=_reject_constant)
        _check_depth(document)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        line = text.splitlines()[error.lineno - 1] if error.lineno <= len(text.splitlines()) else ""
        raise error_type(source, [Problem(where, f"invalid JSON: {error.msg}: {line.strip()[:80]}")]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error_type(source, [Problem(where, f"invalid YAML: {getattr(error, 'problem', error)}")]) from error
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise error_type(source, [Problem("", f"invalid document: {what}")]) from error
    return document


def _check_depth(value: Any, left: int = MAX_DEPTH) -> None:
    """Raise a RecursionError for what is nested too deeply; a YAML alias can even hold itself."""
    if left == 0:
        raise RecursionError
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(item, left - 1)


def expand_variables(value: Any, env: Mapping[str, str], problems: list[Problem], where: str = "") -> Any:
    """Return ``value`` with ``${VAR}`` in every text replaced, once; ``$${VAR}`` stays as a literal ``${VAR}``.

    A variable that is not set is added to ``problems``.
    """
    if isinstance(value, dict):
        return {
            key: expand_variables(item, env, problems, f"{where}.{key}" if where else str(key))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [expand_variables(item, env, problems, f"{where}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        escape, name = match.groups()
        if escape:
            return match.group(0)[1:]
        if name not in env:
            remedy = f"Set it, or write $${{{name}}} for the literal text."
            problems.append(Problem(where, f"environment variable {name} is not set", remedy=remedy))
            return ""
        return env[name]

    return _VARIABLE.sub(replace, value)


def escape_variables(value: Any) -> Any:
    """Return ``value`` with every literal ``${VAR}`` escaped, so that expand_variables gives it back."""
    if isinstance(value, dict):
        return {key: escape_variables(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escape_variables(item) for item in value]
    return _VARIABLE.sub(lambda match: "$" + match.group(0), value) if isinstance(value, str) else value


def apply_overrides(document: dict[str, Any], overrides: Sequence[str], problems: list[Problem]) -> dict[str, Any]:
    """Return a copy of ``document`` with each ``PATH=VALUE`` set; VALUE is JSON, or else plain text."""
    result: dict[str, Any] = json.loads(json.dumps(document, default=str))
    # A new kind makes way for fields of that kind, so it goes first: no override is lost to another.
    for override in sorted(overrides, key=lambda text: not text.partition("=")[0].strip().endswith(".kind")):
        path, equals, text = override.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(Problem(f"--set {override}", "not of the form PATH=VALUE", "job.service.n_clients=4"))
            continue
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        _set_path(result, keys, value, override, problems)
    return result


def _set_path(target: dict[str, Any], keys: list[str], value: Any, override: str, problems: list[Problem]) -> None:
    for key in keys[:-1]:
        inner = target.setdefault(key, {})
        if not isinstance(inner, dict):
            # A null or shorthand section gives way to the section that is being set.
            inner = target[key] = {}
        target = inner
    last = keys[-1]
    if isinstance(target.get(last), dict) and not isinstance(value, dict) and value is not None:
        problems.append(Problem(f"--set {override}", f"'{last}' is a section", remedy="Name a field inside it."))
        return
    if last == "kind" and target.get("kind") not in (None, value):
        # Another kind has other fields: those of the old kind would all be unknown keys.
        target.clear()
    target[last] = value


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key '{key}' stands twice in one object")
        result[key] = value
    return result


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _nearby(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else Path("recipes")
    names = sorted(item.name for item in folder.glob("*.json") if item.name != "recipe.schema.json")[:8]
    return f"In {folder}/ there are: {', '.join(names)}." if names else "Give the path of a recipe."
