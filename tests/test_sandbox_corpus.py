"""Every adversarial cell of the corpus, each in a host process of its own, and every ordinary one.

`escapes.json`, `own.json` and `policy.json` are attacks; `cells.json` are cells of the kind that models write, which
must all run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from sandbox_harness import judge

from rlm_sandbox import LocalSandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks hosts and reads /proc")

CORPUS = Path(__file__).parent / "corpus" / "sandbox"
ATTACKS = [
    p for name in ("escapes", "own", "policy") for p in json.loads((CORPUS / f"{name}.json").read_text())["payloads"]
]
ORDINARY = json.loads((CORPUS / "cells.json").read_text())
BOTH = ("policy", "confinement")
# What the operating system cannot tell from ordinary work: a session that breaks itself.
BENEATH = {
    "own_kill_group",
    "own_audit_hook",
    "own_swallow_host_frames",
    "own_garbage_frames",
    "own_blind_forgery",
}


def stopped(payload: dict[str, Any], layers: tuple[str, ...], folder: Path) -> dict[str, Any]:
    report = judge(payload, layers, folder)
    assert report["verdict"] == "", report
    return report


@pytest.mark.parametrize("payload", ATTACKS, ids=lambda payload: payload["name"])
def test_both_layers_stop_it_and_the_variables_stay(payload: dict[str, Any], tmp_path: Path) -> None:
    assert stopped(payload, BOTH, tmp_path)["kept"]


@pytest.mark.slow
@pytest.mark.parametrize("payload", ATTACKS, ids=lambda payload: payload["name"])
def test_the_confinement_alone_stops_it(payload: dict[str, Any], tmp_path: Path) -> None:
    report = stopped(payload, ("confinement",), tmp_path)
    assert report["kept"] or payload["name"] in BENEATH


@pytest.mark.parametrize("number", range(len(ORDINARY["cells"])))
def test_an_ordinary_cell_runs(number: int, tmp_path: Path) -> None:
    code = ORDINARY["cells"][number]
    if "asyncio" in code:
        pytest.skip("refused, with a word on what to write instead")
    functions = {
        "llm_query": lambda prompt, model=None: "an answer",
        "llm_query_batched": lambda prompts: ["x"] * len(prompts),
    }
    with LocalSandbox() as box:
        for name, value in ORDINARY["variables"].items():
            box.set(name, value)
        cell = box.execute(code, functions=functions)
    assert cell.ok, cell.error
