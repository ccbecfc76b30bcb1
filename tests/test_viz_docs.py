"""docs/trajectories.md has a line for each field of the journal, and no other."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import journals
import pytest
from conftest import ROOT

import rlm_viz

PAGE = (ROOT / "docs" / "trajectories.md").read_text()
NOT_IN_EVERY_WORLD = {
    *(("call", name) for name in ("raw", "protocol", "system", "dropped", "forced")),
    ("tool", "brief"),
    ("compact", "restart"),
    ("resume", "divergence"),
    ("interrupted", "turn"),
}
NESTED = ("limits", "context", "token_usage", "left", "totals")


def documented() -> dict[str, dict[str, str]]:
    """Section -> field -> its line."""
    sections: dict[str, dict[str, str]] = {}
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, flags=re.MULTILINE)
        sections[section.partition("\n")[0]] = dict(rows)
    return sections


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Events of a real run and of every story of the generator."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(ROOT / "rlm.py"), "demo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    [log] = (folder / "logs").glob("*.jsonl")
    events, problems = rlm_viz.read(log)
    assert problems == [] and {event["event"] for event in events} == {"start", "call", "tool", "end"}
    for story in (journals.deep_run, journals.failed_run, journals.resumed_run, journals.text_run):
        events += story()
    return events


def test_every_event_has_a_section() -> None:
    assert set(documented()) == {"Every line", *rlm_viz.EVENTS}


def test_every_field_has_a_line_and_every_line_a_field(seen: list[dict[str, Any]]) -> None:
    pages = documented()
    found: dict[str, set[str]] = defaultdict(set)
    for event in seen:
        found[event["event"]] |= event.keys() - pages["Every line"].keys()
        assert event.keys() >= pages["Every line"].keys()
    for name in rlm_viz.EVENTS:
        optional = {field for event, field in NOT_IN_EVERY_WORLD if event == name}
        assert found[name] | optional == set(pages[name]), name


def test_the_parts_of_a_field_are_named_in_its_line(seen: list[dict[str, Any]]) -> None:
    pages = documented()
    for event in (event for event in seen if event["event"] != "resume"):  # its limits are those of `start`
        for field in NESTED:
            for part in event[field] if isinstance(event.get(field), dict) else ():
                assert f"`{part}`" in pages[event["event"]].get(field, ""), (event["event"], field, part)


def test_the_generator_writes_what_a_real_run_writes(seen: list[dict[str, Any]]) -> None:
    """Field by field: what tests build on is what the runtime writes."""
    real = [
        event
        for event in seen
        if event.get("model") == "scripted-demo" or event["trajectory_id"] == seen[0]["trajectory_id"]
    ]
    made = [event for event in seen if event["trajectory_id"] != seen[0]["trajectory_id"]]

    def shapes(events: list[dict[str, Any]]) -> dict[tuple[Any, ...], set[str]]:
        found: dict[tuple[Any, ...], set[str]] = defaultdict(set)
        for event in events:
            found[event["event"], event.get("kind"), "code" in event] |= event.keys()
        return found

    of_made = shapes(made)
    for shape, fields in shapes(real).items():
        assert fields <= of_made[shape], shape


def test_the_pictures_are_there_and_small() -> None:
    for name in re.findall(r"\]\((img/\w+\.png)\)", PAGE):
        assert 10_000 < (ROOT / "docs" / name).stat().st_size < 200_000


def test_the_pages_limit_is_the_one_that_it_tells() -> None:
    assert f"A page holds {rlm_viz.BODY_LIMIT // 1_000_000} MB of journal" in PAGE


def test_the_vendored_file_alone_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "rlm_viz.py").write_bytes((ROOT / "rlm_viz.py").read_bytes())
    log = journals.save(journals.deep_run(), tmp_path)
    command = [sys.executable, "-S", "-E", "rlm_viz.py", log]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "trajectory.html\n", "")
