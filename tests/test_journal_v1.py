"""Journals of version 1 are read, shown, exported, resumed and replayed as the version that wrote them did.

journals_v1/ holds runs that it recorded, and in expected.json what it made of them.
"""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import rlm
import rlm_viz
from rlm_backends import Reply

FOLDER = Path(__file__).parent / "journals_v1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
LOGS = sorted(EXPECTED)


class Answers:
    """A backend object that always gives one answer; `seen` are the messages of each call."""

    model = "of-my-own"

    def __init__(self, supports_tools: bool) -> None:
        self.supports_tools = supports_tools
        self.seen: list[list[dict[str, Any]]] = []

    def complete(self, messages: list[dict[str, Any]], **how: Any) -> Reply:
        self.seen.append([{k: v for k, v in message.items() if k[0] != "_"} for message in messages])
        return Reply("ANSWER: 129 and 4", [], {"input": 10, "output": 5}, "stop", self.model, 0.001)


def digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def copied(name: str, folder: Path, *, lines: int | None = None) -> Path:
    """A copy of a run, with its context beside it, cut after so many lines."""
    log = folder / f"{name}.jsonl"
    log.write_text("".join((FOLDER / log.name).read_text().splitlines(keepends=True)[:lines]))
    shutil.copy(FOLDER / "input.context", folder / f"{name}.context")
    return log


def last_turn(name: str) -> int:
    """The number of the line that has the root's last turn."""
    events = map(json.loads, (FOLDER / f"{name}.jsonl").read_text().splitlines())
    return max(n for n, e in enumerate(events) if e["event"] == "call" and e["kind"] == "turn" and not e["depth"])


@pytest.mark.parametrize("name", LOGS)
def test_it_is_shown_and_exported_as_before(name: str) -> None:
    events, problems = rlm_viz.read(FOLDER / f"{name}.jsonl")
    expected = EXPECTED[name]
    assert problems == [] and {event["v"] for event in events} == {2}
    assert rlm_viz.tree(events, width=110).split("\n") == expected["tree"]
    assert rlm_viz.totals(events) == expected["totals"]
    calls = [event for event in rlm_viz.merge(events) if event["event"] == "call"]
    assert digest([call["prompt"] for call in calls]) == expected["prompts"]
    assert digest(list(rlm_viz.training_samples(events))) == expected["samples"]
    assert digest(rlm_viz.notebook(events)) == expected["notebook"]
    assert digest("".join(rlm_viz.csv_table(events))) == expected["csv"]


@pytest.mark.parametrize("name", LOGS)
def test_events_in_memory_are_read_like_the_file(name: str) -> None:
    path = FOLDER / f"{name}.jsonl"
    raw, events = [json.loads(line) for line in path.read_text().splitlines()], rlm_viz.read(path)[0]
    assert {event["v"] for event in raw} == {1}
    assert rlm_viz.tree(raw) == rlm_viz.tree(events) and rlm_viz.totals(raw) == rlm_viz.totals(events)
    assert rlm_viz.merge(raw) == rlm_viz.merge(events) and rlm_viz.upgraded(events) == events
    assert rlm_viz.spans(raw, bodies=True) == rlm_viz.spans(events, bodies=True)
    assert rlm.read_journal(str(path)) == events


@pytest.mark.parametrize("name", LOGS)
def test_it_is_resumed_with_the_same_messages(name: str, tmp_path: Path) -> None:
    log = copied(name, tmp_path, lines=last_turn(name))
    before = log.read_bytes()
    backend = Answers(json.loads(before.splitlines()[0])["protocol"] == "tools")
    with rlm.RLM(backend=backend, config=False, log_dir=str(tmp_path)) as runtime:
        result = runtime.resume(name)
    assert result.response.removeprefix("ANSWER: ") == "129 and 4"
    assert digest(backend.seen[0]) == EXPECTED[name]["seen"]
    assert log.read_bytes().startswith(before), "what is recorded stays as it is"
    events = rlm_viz.read(log)[0]
    assert [event["index"] for event in events] == list(range(len(events)))
    sent = [sample["messages"] for sample in rlm_viz.training_samples(events)]
    assert [message["content"] for message in sent[-len(backend.seen)][:-1]] == [
        message["content"] for message in backend.seen[0]
    ], "a reader finds what the new lines name in the old ones"
    recorded = sum(json.loads(line)["event"] == "call" for line in before.splitlines())
    assert rlm_viz.totals(events)["calls"] == recorded + len(backend.seen), "nothing is paid for twice"


@pytest.mark.parametrize("name", LOGS)
def test_it_is_replayed(name: str, tmp_path: Path) -> None:
    copied(name, tmp_path)
    with rlm.RLM(config=False, log_dir=str(tmp_path)) as runtime:
        result, divergence = runtime.replay(name)
    assert (result.response, divergence) == (EXPECTED[name]["response"], [])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Timeout: too slow", {"type": "Timeout", "message": "too slow"}),
        ("ToolError: a: b\nc", {"type": "ToolError", "message": "a: b\nc"}),
        ("Full: ", {"type": "Full", "message": ""}),
    ],
)
def test_an_error_that_code_got_from_a_tool_keeps_its_class(text: str, error: dict[str, str]) -> None:
    line = {"v": 1, "event": "tool", "key": "n0/1/ab/0", "name": "fetch", "error": text}
    assert rlm_viz.upgraded([line])[0]["error"] == error
