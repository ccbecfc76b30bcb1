"""Prompts of a batch from tables as programs write them: no cell is lost, and none is made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import rlm
from rlm_cli import read_items

T = "{name} in {city}"


@pytest.mark.parametrize(
    ("name", "content"),
    {
        "a.csv": "name,city\nAda,London\n",
        "semicolon.csv": "name;city\nAda;London\n",
        "tab.csv": "name\tcity\nAda\tLondon\n",
        "a.tsv": "name\tcity\nAda\tLondon\n",
        "comma.tsv": "name,city\nAda,London\n",
        "pipe.csv": "name|city\nAda|London\n",
        "quoted.csv": '"name";"city"\n"Ada";"London"\n',
        "tricky.csv": '"name";"city, or; place";"city"\nAda;"x";London\n',
        "spaces.csv": "name , city\nAda,London\n\n",
        "crlf.csv": "name,city\r\nAda,London\r\n",
    }.items(),
)
def test_the_delimiter_is_found(workspace: Path, name: str, content: str) -> None:
    (workspace / name).write_bytes(content.encode())
    assert read_items(name, T) == [{"prompt": "Ada in London"}]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_table_is_read_in_its_encoding(workspace: Path, encoding: str) -> None:
    (workspace / "a.csv").write_bytes("name;city\nZoë;Zürich\n".encode(encoding))
    notes: list[str] = []
    assert read_items("a.csv", T, None, notes.append) == [{"prompt": "Zoë in Zürich"}]
    assert len(notes) == (encoding == "cp1252")


@pytest.mark.parametrize(
    ("name", "content", "template", "told"),
    [
        ("a.csv", "name,city\nAda,London\nBob\n", T, "a.csv:3: no 'city' in this row"),
        ("a.csv", "name,city\nAda,London,x\n", T, "a.csv:2: 3 cells, but 2 columns"),
        ("a.csv", "prompt\nwhat is a, b?\n", None, "a.csv:2: 2 cells, but 1 columns"),
        ("a.csv", "prompt,context\nwhat?\n", None, "a.csv:2: no 'context' in this row"),
        ("a.csv", "prompt,context\nwhat?,text\n,text\n", None, "a.csv:3: no prompt in this row"),
        ("a.csv", "name,name\na,b\n", T, "two columns are called 'name'"),
        (
            "a.jsonl",
            '{"name": "Ada", "city": "x"}\n{"name": "Bob", "city": null}\n',
            T,
            "a.jsonl:2: no 'city' in this row",
        ),
        ("a.jsonl", '{"prompt": null}\n', None, "a.jsonl:1: no prompt in this row"),
        ("a.csv", "name,city\n", T, "has no rows"),
        ("a.csv", "", T, "has no rows"),
        ("a.csv", "\0\1\2" * 100, T, "is not text"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_nothing_is_sent(
    workspace: Path, name: str, content: str, template: str | None, told: str
) -> None:
    (workspace / name).write_text(content)
    with pytest.raises(rlm.ConfigError) as raised:
        read_items(name, template)
    assert told in raised.value.message
    assert "None" not in raised.value.message


def test_cells_and_values_are_sent_as_they_are(workspace: Path) -> None:
    (workspace / "a.csv").write_text('name,city\n"Ada ""the first"", L.","Lon\ndon"\n,\n' + "x" * 200_000 + ",y\n")
    assert [item["prompt"][:30] for item in read_items("a.csv", T)] == [
        'Ada "the first", L. in Lon\ndon',
        " in ",
        "x" * 30,
    ]
    rows = [{"name": True, "city": [1, {"a": None}]}, {"name": 1.5, "city": "x"}]
    (workspace / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item["prompt"] for item in read_items("a.jsonl", T)] == ['true in [1, {"a": null}]', "1.5 in x"]
    (workspace / "b.jsonl").write_text('{"prompt": "what?", "context": null}\n')
    assert read_items("b.jsonl", None) == [{"prompt": "what?", "context": None}]


def test_a_short_row_may_lack_what_is_not_asked_for(workspace: Path) -> None:
    (workspace / "a.csv").write_text("name,city,note\nAda,London\n")
    assert read_items("a.csv", T) == [{"prompt": "Ada in London"}]
