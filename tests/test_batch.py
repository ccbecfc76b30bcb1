"""Many completions: on threads, under one ledger, and on a real cluster that loses a worker in mid-run."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import need
from scripted import Request, Server, Turn, code

import rlm

MODEL = "gpt-4o-mini"


def shout(request: Request) -> Any:
    if not request.system:
        return request.prompt.upper()
    return code(f"FINAL(llm_query({request.prompt!r}) + str(context))")


def test_results_come_in_order_whichever_finishes_first(openai: Server) -> None:
    first_may_end = threading.Event()
    openai.script = lambda request: Turn(request.prompt.upper(), until=first_may_end if request.prompt == "a" else None)
    finished: list[int] = []

    def note(place: int, _: Any) -> None:
        finished.append(place)
        first_may_end.set()

    with rlm.RLM(model=MODEL) as runtime:
        results = list(runtime.batch(["a", "b"], on_result=note))
    assert ([str(r) for r in results], finished) == (["A", "B"], [1, 0])


def test_a_bad_item_is_an_error_in_its_place(openai: Server) -> None:
    openai.script = lambda request: "ok"
    results = list(rlm.batch(["a", {"context": "no prompt"}, {"prompt": "c", "context": object()}], model=MODEL))
    assert [type(r).__name__ for r in results] == ["CompletionResult", "ConfigError", "ConfigError"]


def test_leaving_a_batch_stops_its_own_items_alone(openai: Server) -> None:
    left = threading.Event()
    openai.script = lambda request: Turn(request.prompt.upper(), until=left if request.prompt != "a" else None)
    answers: list[str] = []
    with rlm.RLM(model=MODEL) as runtime:
        other = threading.Thread(target=lambda: answers.append(str(runtime.completion("other"))))
        other.start()
        for result in runtime.batch(["a", "b"]):
            assert str(result) == "A"
            break
        left.set()
        other.join(30)
    assert answers == ["OTHER"]


def test_leaving_a_batch_takes_back_what_its_executor_has_not_begun(openai: Server) -> None:
    openai.script = lambda request: "ok"
    with ThreadPoolExecutor(1) as executor, rlm.RLM(model=MODEL) as runtime:
        next(iter(results := runtime.batch(["x"] * 20, executor=executor)))
        results.close()  # type: ignore[attr-defined]
    assert len(openai.requests) < 20


def test_on_result_is_called_as_each_one_finishes_also_on_an_executor(openai: Server) -> None:
    finished, order = threading.Event(), []
    openai.script = lambda request: str(finished.wait(60)) if request.prompt == "slow" else "fast"

    def on_result(number: int, _: Any) -> None:
        order.append(number)
        finished.set()

    with ThreadPoolExecutor(2) as executor:
        results = rlm.batch(["slow", "fast"], model=MODEL, executor=executor, on_result=on_result)
        assert [str(result) for result in results] == ["True", "fast"]
    assert order == [1, 0]


def test_what_on_result_raises_is_raised_where_the_results_are_read(openai: Server) -> None:
    openai.script = lambda request: "ok"

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        list(rlm.batch(["a", "b"], model=MODEL, on_result=full))


def test_one_ledger_stops_the_whole_batch(openai: Server) -> None:
    openai.script = lambda request: Turn("ok", usage={"input": 1000, "output": 100})
    with rlm.RLM(model=MODEL, token_budget=5000) as runtime:
        results = list(runtime.batch(["x"] * 12, max_workers=3, one_ledger=True))
    kinds = [type(r).__name__ for r in results]
    assert 1 <= kinds.count("CompletionResult") <= 5
    assert set(kinds) == {"CompletionResult", "TokenBudgetExhausted"}
    assert len(openai.requests) == kinds.count("CompletionResult")


def test_any_executor_runs_a_batch(openai: Server) -> None:
    openai.script = shout
    with ThreadPoolExecutor(3) as executor:
        results = list(rlm.batch([{"prompt": f"p{i}", "context": i} for i in range(6)], model=MODEL, executor=executor))
    assert [r.value for r in results if isinstance(r, rlm.CompletionResult)] == [f"P{i}{i}" for i in range(6)]


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_still_gives_every_result(openai: Server, workspace: Path) -> None:
    need("import distributed")
    from distributed import Client, LocalCluster

    reached = threading.Event()

    def reply(request: Request) -> Any:
        if len(openai.requests) >= 20:
            reached.set()
        return shout(request)

    openai.script = reply
    with (
        LocalCluster(n_workers=3, threads_per_worker=2, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))

        def kill() -> None:
            if reached.wait(60):
                os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        runtime = rlm.RLM(model=MODEL, log_dir=str(workspace / "logs"))
        items = [{"prompt": f"p{i}", "context": i} for i in range(40)]
        results = list(runtime.batch(items, executor=client.get_executor()))
        killer.join()
    openai.problems.clear()  # half a request of the worker that was killed
    assert [r.value if isinstance(r, rlm.CompletionResult) else repr(r) for r in results] == [
        f"P{i}{i}" for i in range(40)
    ]


def test_the_scripted_server_is_the_judge_of_each_request(openai: Server) -> None:
    openai.script = lambda request: scripted.error(400, "no")
    (result,) = rlm.batch(["x"], model=MODEL)
    assert isinstance(result, rlm.ProviderError) and result.status == 400


@pytest.mark.parametrize("prompts", ["hello", {"prompt": "a"}])
def test_a_batch_of_one_thing_is_refused(prompts: Any) -> None:
    with pytest.raises(rlm.ConfigError, match="a batch takes a list of prompts"):
        list(rlm.batch(prompts, model="openai/gpt-4o"))


def test_a_batch_item_with_a_misspelt_key_is_not_sent(openai: Server) -> None:
    openai.script = lambda request: "ok"
    wrong, number, right = rlm.batch([{"prompt": "x", "contxt": 1}, 3, "y"], model="openai/gpt-4o")
    assert str(wrong) == "unknown key 'contxt' in a batch item" and wrong.hint == "did you mean 'context'?"
    assert isinstance(number, rlm.ConfigError) and right.response == "ok" and len(openai.requests) == 1
