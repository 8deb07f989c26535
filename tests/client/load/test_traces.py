"""Recorded arrivals as others write them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from client.errors import WorkloadError
from client.load.traces import read_trace

MOONCAKE = """\
{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, 48]}
{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 47, 99]}

{"timestamp": 27482, "input_length": 10, "output_length": 1, "hash_ids": []}
"""
AZURE_2023 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-17 18:15:46.6805901,5,6
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 02:00:00.017335+02:00,2399,6
"""
BURST_GPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,Conversation log
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.jsonl.gz"])
def test_mooncake_trace_is_put_in_order_from_its_first_request_on(tmp_path: Path, name: str) -> None:
    trace = read_trace(written(tmp_path, name, MOONCAKE))
    assert list(trace.times_s) == [0.0, 0.0, 3.053]
    assert trace.input_tokens == (6955, 10, 6472)
    assert trace.output_tokens == (52, 1, 26)
    assert trace.hash_ids == ((46, 47, 48), (), (46, 47, 99))


def test_azure_traces_keep_100_nanoseconds_and_their_zones(tmp_path: Path) -> None:
    first = read_trace(written(tmp_path, "one.csv", AZURE_2023))
    assert list(first.times_s) == [0.0, 4.314579, 86400.0000001]
    assert first.input_tokens == (374, 396, 5)
    assert first.output_tokens == (44, 109, 6)
    assert first.hash_ids is None
    second = read_trace(written(tmp_path, "two.csv", AZURE_2024))
    assert list(second.times_s) == [0.0, 0.007405]


def test_requests_that_failed_when_recorded_are_left_out_and_counted(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "burst.csv", BURST_GPT))
    assert list(trace.times_s) == [0.0, 113.0]
    assert (trace.output_tokens, trace.left_out) == ((18, 276), 1)


def test_speed_and_limits_cut_the_replay(tmp_path: Path) -> None:
    path = written(tmp_path, "times.jsonl", "".join(f'{{"timestamp_s": {number}}}\n' for number in range(10)))
    assert list(read_trace(path, speed=2.0).times_s) == [number / 2 for number in range(10)]
    assert list(read_trace(path, requests=3).times_s) == [0.0, 1.0, 2.0]
    assert list(read_trace(path, speed=2.0, duration_s=1.0).times_s) == [0.0, 0.5]
    assert read_trace(path).input_tokens is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.jsonl", '{"timestamp": 1}\n{"time": 2}\n', "line 2: has no time; its fields are time"),
        ("t.jsonl", '{"timestamp": 1}\n{"timestamp"\n', "line 2: not JSON"),
        ("t.jsonl", '{"timestamp": "soon"}\n', "line 1: timestamp = 'soon' is no time"),
        ("t.jsonl", '{"timestamp": 1, "input_length": 2.5}\n', "line 1: input_length = 2.5 is no number of tokens"),
        ("t.jsonl", '{"timestamp": 1, "hash_ids": [-1]}\n', "line 1: hash_ids"),
        ("t.jsonl", '{"timestamp": 1, "input_length": 2}\n{"timestamp": 1}\n', "1 of 2 entries lack input_length"),
        ("t.jsonl", "[1]\n", "entry 1: is no JSON object: 1"),
        ("t.jsonl", "", "has no request"),
        ("t.csv", "Timestamp,Response tokens\n1,0\n", "has no request that did not fail"),
        ("t.csv", "TIMESTAMP\nyesterday\n", "line 2: TIMESTAMP = 'yesterday'"),
        ("t.csv", "TIMESTAMP\n2023-13-01 00:00:00\n", "line 2: TIMESTAMP = '2023-13-01 00:00:00'"),
        ("t.csv", "timestamp,a\n1\n", "line 2: has not as many values"),
        ("t.txt", "1\n", "cannot tell what kind of file"),
    ],
)
def test_broken_traces_say_where(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        read_trace(written(tmp_path, name, text))


def test_trace_that_is_not_there_and_speed_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"none\.jsonl: cannot be read"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(WorkloadError, match="speed = 0"):
        read_trace(written(tmp_path, "trace.jsonl", MOONCAKE), speed=0.0)
    for limits in ({"requests": 0}, {"duration_s": 0.0}):
        with pytest.raises(WorkloadError, match="nothing of the trace would be sent"):
            read_trace(written(tmp_path, "trace.jsonl", MOONCAKE), **limits)
