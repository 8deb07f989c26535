"""YAML as JSON's equal: scalars of YAML 1.2's core schema, no key twice, nothing but plain data."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _CoreLoader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where ``off`` is false, ``01:00:00`` is 3600 and ``1e-4`` is text."""

    # Source: yaml.org/spec/1.2.2, 10.3.2 "Tag Resolution".
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", [*"~nN", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", [*"-+0123456789"]),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("merge", r"<<", ["<"]),
):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _mapping(loader: _CoreLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.value in seen if isinstance(key, yaml.ScalarNode) else True:
            what = f"the key '{key.value}' stands twice" if isinstance(key, yaml.ScalarNode) else "a key must be text"
            raise yaml.constructor.ConstructorError(None, None, what, key.start_mark)
        seen.add(key.value)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True) for key, value in node.value
    }


_CoreLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load_yaml(text: str) -> Any:
    """Return the plain data of one YAML document.

    Raises:
        yaml.YAMLError: it is not YAML, has a key twice, or a tag that stands for more than plain data.
    """
    return yaml.load(text, Loader=_CoreLoader)  # noqa: S506 - a SafeLoader
