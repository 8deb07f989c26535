from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.errors import SettingsError, TargetUnavailableError
from client.target import EndpointRecord, parse_ollama_host, parse_server_url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://gpu1:8000", "http://gpu1:8000"),
        ("http://gpu1:8000/", "http://gpu1:8000"),
        ("http://gpu1:8000/v1/", "http://gpu1:8000"),
        ("https://gw/llm/v1", "https://gw/llm"),
        ("http://[::1]:9", "http://[::1]:9"),
    ],
)
def test_parse_server_url_usable_is_a_base(url: str, expected: str) -> None:
    assert parse_server_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gpu1:8000",
        "ftp://h",
        "http://",
        "http://u:p@h",
        "http://h?a=b",
        "http://h#x",
        "http://h:99999",
        "http://a b",
    ],
)
def test_parse_server_url_unusable_is_an_error(url: str) -> None:
    with pytest.raises(SettingsError, match="not a usable server URL"):
        parse_server_url(url)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("10.0.0.7", "http://10.0.0.7:11434"),
        ("gpu1:8000", "http://gpu1:8000"),
        ("http://gpu1:8000", "http://gpu1:8000"),
    ],
)
def test_parse_ollama_host_every_form_is_a_base(value: str, expected: str) -> None:
    assert parse_ollama_host(value) == expected


def test_endpoint_record_is_read_anew_each_time(tmp_path: Path) -> None:
    path = tmp_path / "vllm.json"
    source = EndpointRecord(path)
    with pytest.raises(TargetUnavailableError, match="has not published"):
        source.resolve()
    path.write_text(json.dumps({"url": "http://gpu1:41234", "model": "smollm2", "engine": "vllm"}))
    first = source.resolve()
    assert (first.url, first.host, first.port, first.model, first.api) == (
        "http://gpu1:41234",
        "gpu1",
        41234,
        "smollm2",
        "openai",
    )
    path.write_text(json.dumps({"url": "http://gpu2:1", "model": None, "engine": "ollama"}))
    assert (source.resolve().host, source.resolve().model, source.resolve().api) == ("gpu2", None, "ollama")
    assert EndpointRecord(path, "named", "openai").resolve().model == "named"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"url": 3}', '{"url": "file:///etc/passwd"}', "\x00"])
def test_endpoint_record_broken_is_unavailable(tmp_path: Path, content: str) -> None:
    path = tmp_path / "vllm.json"
    path.write_text(content)
    with pytest.raises(TargetUnavailableError, match=r"vllm\.json"):
        EndpointRecord(path).resolve()
