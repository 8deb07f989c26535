"""Prompts and chats out of files."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from client.errors import WorkloadError
from client.load.prompt_files import Exchange, read_samples

SHARE_GPT: list[dict[str, Any]] = [
    {
        "id": "a",
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "What is two and two?"},
            {"from": "gpt", "value": "Four."},
            {"from": "human", "value": "And three?"},
            {"from": "gpt", "value": "Seven."},
        ],
    },
    {"id": "b", "conversations": [{"from": "gpt", "value": "Hello!"}]},
    {"id": "c", "conversations": []},
    {"id": "d", "conversations": [{"from": "human", "value": "Anyone?"}]},
    {
        "id": "e",
        "conversations": [
            {"from": "gpt", "value": "…"},
            {"from": "user", "value": "Q"},
            {"from": "bard", "value": "A"},
        ],
    },
]


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines_of_prompts_texts_and_chats(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]
    path = written(
        tmp_path,
        "prompts.jsonl",
        "\ufeff" + lines({"prompt": "one", "max_tokens": 7}, {"text": "two\n", "output_tokens": 3}, {"messages": chat}),
    )
    first, second, third = read_samples([path])
    assert first.exchange() == Exchange((("user", "one"),), None)
    assert second.exchange() == Exchange((("user", "two\n"),), None)
    assert third.exchange() == Exchange((("system", "s"), ("user", "q")), None)
    assert [first.max_tokens, second.max_tokens, third.max_tokens] == [7, 3, None]


def test_chat_that_ends_with_an_answer_is_asked_again_up_to_its_last_question(tmp_path: Path) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    (sample,) = read_samples([written(tmp_path, "chats.jsonl", lines(row))])
    assert sample.exchange() == Exchange(tuple(said[:3]), "d")


def test_sharegpt_gives_first_questions_with_their_answers(tmp_path: Path) -> None:
    samples = read_samples([written(tmp_path, "sharegpt.json", json.dumps(SHARE_GPT))])
    assert [sample.exchange() for sample in samples] == [
        Exchange((("system", "Be kind."), ("user", "What is two and two?")), "Four."),
        None,
        None,
        None,
        Exchange((("user", "Q"),), "A"),
    ]


def test_csv_and_compressed_files_and_several_of_them(tmp_path: Path) -> None:
    table = written(tmp_path, "a.csv", 'id,prompt,max_tokens\n1,"one\ntwo, three",5\n2,four,\n')
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(lines({"prompt": "five"}).encode()))
    samples = read_samples([table, packed])
    assert [sample.messages[0][1] for sample in samples] == ["one\ntwo, three", "four", "five"]
    assert [sample.max_tokens for sample in samples] == [5, None, None]


def test_column_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "p.jsonl", lines({"prompt": "no", "article": "yes"}))
    assert read_samples([path], "article")[0].messages == (("user", "yes"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', r"line 2: not JSON: .*: \{\"prompt\":"),
        ('{"prompt": "a"}\n{"prompts": "b"}\n', "line 2: has not any of messages, .*; its fields are prompts"),
        ('{"prompt": "a"}\n\n"b"\n', 'line 3: is no JSON object: "b"'),
        ('{"prompt": "  "}\n', "line 1: prompt is empty"),
        ('{"prompt": 3}\n', "line 1: prompt is neither a text nor a list"),
        ('{"prompt": "a", "max_tokens": 0}\n', "line 1: max_tokens = 0 is no number of tokens"),
        ('{"prompt": "a", "max_tokens": "many"}\n', "line 1: max_tokens = 'many'"),
        ('{"prompt": "a", "max_tokens": true}\n', "line 1: max_tokens = True"),
        ('{"messages": [{"role": "robot", "content": "x"}]}\n', r"line 1: messages\[0\]: its role is 'robot'"),
        ('{"messages": ["x"]}\n', r"line 1: messages\[0\]: is no message"),
        ('{"messages": [{"role": "system", "content": "x"}]}\n', "line 1: messages has no message of the user"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}\n', "other media cannot be sent"),
        ('{"messages": [{"role": "user"}]}\n', r"messages\[0\]: its content is no text"),
        ('[{"prompt": "a"}, 3]', "entry 2: is no JSON object: 3"),
        ('[{"prompt": "a"}', "not a JSON array"),
    ],
)
def test_broken_records_say_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        read_samples([written(tmp_path, "prompts.jsonl", text)])


def test_column_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="line 1: has not 'article'; its fields are prompt"):
        read_samples([written(tmp_path, "p.jsonl", lines({"prompt": "a"}))], "article")


def test_broken_archive_and_text_are_errors(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="cannot be read: Not a gzipped file"):
        read_samples([written(tmp_path, "p.jsonl.gz", "plain")])
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(WorkloadError, match="line 1: not JSON"):
        read_samples([tmp_path / "latin.jsonl"])


def test_parquet_is_read_like_the_others(tmp_path: Path) -> None:
    rows = [{"text": "one", "other": 1}, {"text": "two", "other": 2}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    assert [sample.messages for sample in read_samples([tmp_path / "p.parquet"])] == [
        (("user", "one"),),
        (("user", "two"),),
    ]
    with pytest.raises(WorkloadError, match="not a Parquet file"):
        read_samples([written(tmp_path, "broken.parquet", "no")])


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(WorkloadError, match=r"the Python package 'pyarrow' is needed to read .*p\.parquet"):
        read_samples([tmp_path / "p.parquet"])
