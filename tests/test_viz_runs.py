"""What page, terminal and notebook say of real runs is what the result says: generated runs, a scripted model."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scripted
from scripted import Request, Server, Turn, code

import rlm
import rlm_viz

STEPS = (
    "x = llm_query('one')\nprint(x)",
    "y = llm_query_batched([f'item {n}' for n in range(9)])\nlen(y)",
    "1 / 0",
    "print('a' * 30_000)",
    "z = rlm_query('a part')\nz",
    "try:\n    rlm_query_batched(['a part', 'a part'])\nexcept Exception as error:\n    print(error)",
)


def plan(seed: int) -> Callable[[Request], Turn | str]:
    """A model that takes some of the steps, in a node of its own fewer, and then answers."""
    dice = random.Random(seed)
    root = [dice.choice(STEPS) for _ in range(dice.randrange(1, 5))]
    child = [dice.choice(STEPS[:4]) for _ in range(dice.randrange(2))]

    def reply(request: Request) -> Turn | str:
        if not request.tools:
            return "a sub-answer " * dice.randrange(1, 9)
        steps = [*(child if "a part" in request.prompt else root), "FINAL('done')"]
        return code(steps[request.turn - 1])

    return reply


@pytest.mark.parametrize("model", ["gpt-4o-mini", "a-model-without-a-price"])
@pytest.mark.parametrize("seed", range(8))
def test_everything_shown_agrees_with_the_result(seed: int, model: str, openai: Server, tmp_path: Path) -> None:
    openai.script = plan(seed)
    result = rlm.complete(f"run {seed}", model=model, backend="openai", log_dir=str(tmp_path), max_errors=20)
    assert result.log
    events, problems = rlm_viz.read(result.log)
    assert problems == []
    sums = rlm_viz.totals(events)
    assert sums["calls"] == result.total_calls
    assert sums["tokens"] == result.total_tokens
    assert sums["usage"] == {name: result.usage[name] for name in rlm_viz.USAGE}
    assert sums["cost_usd"] == (None if result.cost_usd is None else pytest.approx(result.cost_usd, abs=1e-9))
    assert sums["depth_reached"] == result.depth_reached
    assert sums["tool_calls"] == len(result.tool_calls)
    assert sums["status"] == result.status
    told = {name: value for name, value in events[-1]["totals"].items() if name != "saved_usd"}  # needs a price list
    assert {name: sums[name] for name in told} == {
        **told,
        "cost_usd": sums["cost_usd"],
    }
    figures = f"{sums['calls']:,} calls · {sums['tokens']:,} tok · {'?' if result.cost_usd is None else '$'}"
    assert figures in rlm_viz.tree(events).splitlines()[0]
    assert figures in rlm_viz.table(events)
    assert shown_by_the_page(result.log) == {name: sums[name] for name in ("calls", "tokens", "cost_usd", "errors")}
    assert all(row.kind != "detached" for row in rlm_viz.rows(events))


def shown_by_the_page(log: str) -> dict[str, Any]:
    page = Path(rlm_viz.write([log], log + ".html")).read_text()
    data = re.search(r'id="data">(.*?)</script>', page)
    assert data
    meta = json.loads(data.group(1))["runs"][0]
    return {name: meta[name] for name in ("calls", "tokens", "cost_usd", "errors")}


def test_the_rows_of_a_real_run_show_who_called_whom(openai: Server, tmp_path: Path) -> None:
    steps = [STEPS[1], STEPS[4], "FINAL('done')"]

    def reply(request: Request) -> Turn | str:
        if not request.tools:
            return "short"
        return code("FINAL(llm_query('deeper'))" if "a part" in request.prompt else steps[request.turn - 1])

    openai.script = reply
    result = rlm.complete("who calls whom", model="gpt-4o-mini", backend="openai", log_dir=str(tmp_path))
    rows = rlm_viz.rows(rlm_viz.read(str(result.log))[0])
    assert [(row.level, row.name) for row in rows if row.name != "llm_query" or row.level > 4] == [
        *((0, "run"), (1, "turn 1"), (2, "cell 1"), (3, "llm_query × 9")),
        *((1, "turn 2"), (2, "cell 2"), (3, "rlm_query"), (4, "turn 1"), (5, "cell 1"), (6, "llm_query")),
        *((4, "answered"), (1, "turn 3"), (2, "cell 3"), (1, "answered")),
    ]
    final = [row.name for row in rows if row.flags & rlm_viz.FINAL]
    assert final == ["cell 1", "cell 3"]


def test_a_failed_run_says_why_on_its_page(openai: Server, tmp_path: Path) -> None:
    openai.script = lambda request: scripted.error(400, "no such thing")
    with pytest.raises(rlm.ProviderError):
        rlm.complete("fail", model="gpt-4o-mini", backend="openai", log_dir=str(tmp_path))
    [log] = tmp_path.glob("*.jsonl")
    events, _ = rlm_viz.read(log)
    assert rlm_viz.totals(events)["status"] == "error"
    assert "no such thing" in rlm_viz.render(events)


def test_a_resumed_run_adds_up(openai: Server, tmp_path: Path) -> None:
    steps = [STEPS[0], STEPS[1], "FINAL('done')"]
    openai.script = lambda request: code(steps[request.turn - 1]) if request.tools else "short"
    runtime = rlm.RLM(model="gpt-4o-mini", backend="openai", log_dir=str(tmp_path), max_iterations=1)
    with runtime, pytest.raises(rlm.MaxIterationsExceeded) as stopped:
        runtime.completion("in two parts")
    result = runtime.resume(str(stopped.value.trajectory_id), max_iterations=9)
    events, problems = rlm_viz.read(str(result.log))
    sums = rlm_viz.totals(events)
    assert (problems, sums["status"]) == ([], "answered")
    assert (sums["calls"], sums["tokens"]) == (result.total_calls, result.total_tokens)
    assert (sums["tool_calls"], sums["depth_reached"]) == (len(result.tool_calls), result.depth_reached)
    names = [row.name for row in rlm_viz.rows(events) if row.level == 1]
    assert names == ["turn 1", "partial", "resumed", "turn 2", "turn 3", "answered"]
