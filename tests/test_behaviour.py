"""The behaviours that this project is compared by: each holds here, and the page says so."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, need

sys.path.append(str(ROOT / "benchmarks"))
import behaviour
from behaviour import BEHAVIOURS, MARKS, Behaviour, Server, Verdict

sys.path.pop()  # that folder has a mcp.py, which must not stand in for the package of that name

PYTHON = Path(sys.executable)
HERE = {"PYTHONPATH": str(ROOT), "PATH": "/usr/local/bin:/usr/bin:/bin", "NO_PROXY": "127.0.0.1"}
# What does not hold here, and the page says so.
NOT_HERE = {"flag_first": "n/a", "threads": "fails", "asyncio": "fails", "packages": "fails"}


@pytest.fixture(scope="module")
def models() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("wanted", BEHAVIOURS, ids=lambda one: one.key)
def test_behaviour(wanted: Behaviour, models: Server) -> None:
    need("linux")
    verdict = behaviour.examine(wanted, "flat-rlm", PYTHON, HERE, models)
    assert verdict.mark == NOT_HERE.get(wanted.key, "holds"), verdict.evidence


def test_the_page_has_each_behaviour_with_the_mark_it_has_here() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in page.splitlines() if row.startswith("|")]
    column = rows[0].index("flat-rlm")
    shown = {row[0]: re.sub(r"\[\^\d+\]", "", row[column]) for row in rows if len(row) == len(rows[0])}
    wanted = {one.name: MARKS[NOT_HERE.get(one.key, "holds")] for one in BEHAVIOURS}
    assert {name: shown.get(name) for name in wanted} == wanted


def test_a_check_that_goes_wrong_is_the_harness_s_trouble_and_nobody_s_failure(models: Server) -> None:
    def broken(outcome: behaviour.Outcome) -> str | None:
        raise KeyError("a mistake of the harness")

    wanted = behaviour.PLAIN._replace(check=broken)
    verdict = behaviour.examine(wanted, "flat-rlm", PYTHON, HERE, models)
    assert verdict == Verdict("trouble", "KeyError: 'a mistake of the harness'")


def test_a_run_that_says_otherwise_fails_with_what_was_seen(models: Server) -> None:
    wanted = behaviour.PLAIN._replace(check=behaviour.answers("43"))
    verdict = behaviour.examine(wanted, "flat-rlm", PYTHON, HERE, models)
    assert verdict == Verdict("fails", "answered `42`")
