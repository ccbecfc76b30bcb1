"""The limits of a run hold for the code of a cell behind the MCP server as they do in a run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import scripted
from mcp_peer import Peer, text_of
from scripted import Turn
from test_mcp_models import keyed, suspended

MANY = """\
from concurrent.futures import ThreadPoolExecutor
done, failed = 0, []
def ask(n):
    return llm_query(f"question {n}")
for n in range(20):
    try:
        ask(n)
        done += 1
    except Exception as error:
        failed.append(str(error))
with ThreadPoolExecutor() as pool:
    for future in [pool.submit(ask, n) for n in range(20)]:
        try:
            future.result()
            done += 1
        except Exception as error:
            failed.append(str(error))
try:
    done += len(llm_query_batched([f"b{n}" for n in range(20)]))
except Exception as error:
    failed.append(str(error))
for n in range(20):
    try:
        rlm_query("deeper", "text")
        done += 1
    except Exception as error:
        failed.append(str(error))
print(done, failed[0])"""


@pytest.mark.parametrize(
    ("limit", "most", "told"),
    [
        ({"RLM_MAX_SUBCALLS": "3"}, 3, "the limit is 3"),
        ({"RLM_TOKEN_BUDGET": "100"}, 3, "of 100 tokens"),
        ({"RLM_COST_BUDGET_USD": "0.000001"}, 0, "of $1e-06"),
        ({"RLM_TIMEOUT_SECONDS": "0.000001"}, 0, "the limit is 1e-06 s"),
    ],
    ids=["subcalls", "tokens", "cost", "time"],
)
def test_a_cell_spends_no_more_than_a_run(server: scripted.Server, limit: dict[str, str], most: int, told: str) -> None:
    server.script = lambda request: Turn("an answer", usage={"input": 30, "output": 10})
    with Peer(environ={**keyed(server), **limit}) as peer:
        shown = peer.run(MANY)
        assert told in shown
        assert shown.startswith(f"Output: {len(server.requests)} ")
        assert len(server.requests) <= most


def test_what_a_child_spends_counts_for_the_cell_that_asked_it(server: scripted.Server) -> None:
    child = 'x = llm_query_batched(["a", "b", "c"])\nFINAL("done")'
    server.script = lambda request: f"```repl\n{child}\n```" if request.system else "x"
    with Peer(environ={**keyed(server), "RLM_MAX_SUBCALLS": "5"}) as peer:
        assert "the limit is 5" in peer.refused(
            "execute_python", code="print(rlm_query('p', 'c'))\nrlm_query('p', 'c')"
        )
        assert sum(not request.system for request in server.requests) == 3


def test_a_cell_goes_as_deep_as_a_run(server: scripted.Server) -> None:
    server.script = lambda request: "```repl\nFINAL(rlm_query('deeper', 'c'))\n```"
    with Peer(environ={**keyed(server), "RLM_MAX_DEPTH": "0"}) as peer:
        assert "the limit is 0" in peer.refused("execute_python", code="rlm_query('p', 'c')")
        assert not server.requests
    with Peer(
        environ={**keyed(server), "RLM_MAX_DEPTH": "2", "RLM_MAX_ERRORS": "1", "RLM_MAX_ITERATIONS": "1"}
    ) as peer:
        peer.call("execute_python", code="rlm_query('p', 'c')")
        assert len(server.requests) == 2


def test_limits_hold_for_the_clients_own_model_and_begin_anew_with_each_cell() -> None:
    with Peer(environ={"RLM_MAX_SUBCALLS": "3"}) as peer:
        assert "the limit is 3" in peer.refused("execute_python", code="llm_query_batched(['p'] * 4)")
        status = suspended(peer.call("execute_python", code="llm_query_batched(['p'] * 3)"))
        assert peer.text("resume", handle=status["handle"], answers=["x"] * 3) == "Value: ['x', 'x', 'x']"
    with Peer(environ={"RLM_TOKEN_BUDGET": "400"}) as peer:
        code = "for n in range(9):\n    print(n)\n    llm_query('p')"
        result: Any = peer.call("execute_python", code=code)
        rounds = 0
        while "needs_completions" in text_of(result):
            rounds += 1
            handle = json.loads(text_of(result))["handle"]
            result = peer.call("resume", handle=handle, answers=["w " * 150])
        assert "of 400 tokens" in text_of(result)
        assert 1 <= rounds <= 4


def test_a_cost_budget_needs_a_price(server: scripted.Server) -> None:
    server.script = lambda request: "x"
    environ = {**keyed(server), "RLM_MODEL": "nobody-knows", "RLM_BACKEND": "openai", "RLM_COST_BUDGET_USD": "1"}
    with Peer(environ=environ) as peer:
        assert "the price of 'nobody-knows' is not known" in peer.refused("execute_python", code="llm_query('p')")
        assert not server.requests
