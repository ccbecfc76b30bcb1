"""The reference pages are what `make docs` makes of the code, and what they say of names and commands is whole."""

from __future__ import annotations

import importlib.util
import inspect
import re
import shlex
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

import rlm
import rlm_backends
import rlm_cli
import rlm_config
import rlm_mcp
import rlm_sandbox
import rlm_tools
import rlm_viz


@pytest.fixture(scope="module")
def make() -> Any:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "docs" / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["api.md", "help.md", "prompts.md"])
def test_a_reference_page_is_what_the_code_says(make: Any, name: str) -> None:
    made, page = make.PAGES[name]().splitlines(), (ROOT / "docs" / name).read_text("utf-8").splitlines()
    assert made == page, "run: make docs"


def test_every_reference_page_is_made(make: Any) -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md") if make.MADE in path.read_text("utf-8")}
    assert pages == {name for name in make.PAGES if name.endswith(".md")}


@pytest.mark.parametrize("module", [rlm, rlm_backends, rlm_cli, rlm_mcp, rlm_sandbox, rlm_tools, rlm_viz])
def test_every_public_name_has_an_entry(make: Any, module: ModuleType) -> None:
    entries = {name for section in make.SECTIONS for name in section.names if hasattr(section.module, name)}
    assert set(module.__all__) - entries == set()


def test_what_has_no_meaning_in_the_source_is_an_error(make: Any) -> None:
    class Bare:
        pass

    with pytest.raises(make.Missing, match="Bare has no docstring"):
        make.meaning(Bare, "Bare")


def test_a_field_has_the_comment_beside_or_above_it(make: Any) -> None:
    source = "class C:\n    a: int = 1  # beside\n    # above,\n    # two lines\n    b: str\n\n    c: str\n"
    assert {line: text for line, text in make.comments(source).items() if text} == {2: "beside", 5: "above, two lines"}


def test_the_arguments_of_rlm_are_the_options_and_four_more() -> None:
    named = set(inspect.signature(rlm.RLM).parameters)
    assert named - set(rlm_config.OPTIONS) == {"config", "on_event", "on_progress", "on_confirm"}
    assert set(rlm_config.OPTIONS) <= named


@pytest.mark.parametrize("name", rlm_cli.COMMANDS)
def test_the_examples_of_a_command_can_be_called(name: str) -> None:
    assert rlm_cli.EXAMPLES[name]
    for line in rlm_cli.EXAMPLES[name]:
        if found := re.search(r"\$\((.*)\)", line):
            line = found[1]
        words = shlex.split(line.rpartition("| ")[2].partition(" > ")[0])
        assert words[0] == "rlm" and (words[1] == name or name == "run"), line
        if name == "mcp-serve":  # it has no parser
            flags = re.findall(r"--[\w-]+", rlm_cli._SERVE_HELP)
            assert [word for word in words[2:] if word.startswith("--") and word not in flags] == []
            continue
        parser = rlm_cli.command_parser("" if name == "run" else name)
        args = rlm_cli.parse_args(parser, words[1 if name == "run" else 2 :], named=name != "run")
        rlm_cli.given_options(args)


def test_the_figures_of_the_sample_are_those_of_its_journal() -> None:
    page = (ROOT / "docs" / "sample.md").read_text("utf-8")
    events = rlm_viz.read(ROOT / "docs" / "sample" / "journal.jsonl")[0]
    totals = events[-1]["totals"]
    usage = totals["usage"]
    for name, count in (
        ("input, in three calls", usage["input"]),
        ("prompt cache", usage["cached"]),
        ("output", usage["output"]),
    ):
        assert re.search(rf"{name} \| {count:,} \|", page), name
    assert f"took {totals['duration_ms'] / 1000:.0f} seconds" in page
    assert events[-1]["response"] in " ".join(page.split())
    cells = [event["code"] for event in events if event["event"] == "tool"]
    assert cells[0] in page and cells[1].splitlines()[2] in page
    models = re.findall(r"^\| `([\w.-]+)` \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(models) == 3
    for model, cost, uncached in models:
        provider = rlm_backends.connect(model, api_key="x" * 20).provider
        costs = [
            rlm_backends.cost_of(model, {**usage, "cached": cached}, None, provider) for cached in (usage["cached"], 0)
        ]
        assert [f"{each:.5f}" for each in costs] == [cost, uncached]
