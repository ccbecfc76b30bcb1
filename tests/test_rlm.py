"""The loop, its limits and its journal, against a scripted model over real HTTP and a real sandbox."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import ROOT
from scripted import Request, Server, Turn, answer_with, call, code

import rlm
import rlm_sandbox
from rlm_backends import BackendError, Reply

MODEL = "gpt-4o-mini"


def events_of(result: rlm.CompletionResult) -> list[dict[str, Any]]:
    assert result.log
    return [json.loads(line) for line in Path(result.log).read_text().splitlines()]


def run(server: Server, *turns: Any, sub: Any = "sub-answer", context: Any = None, **options: Any) -> Any:
    server.script = answer_with(*turns, sub=sub)
    options.setdefault("model", MODEL)
    return rlm.complete("Why-7c?", context, **options)


# --- answering -----------------------------------------------------------------------------------------------------


def test_plain_text_is_the_answer(openai: Server) -> None:
    result = run(openai, "Paris")
    assert (result.response, str(result), result.value, result.status) == ("Paris", "Paris", None, "answered")
    assert (result.total_calls, result.depth_reached, result.tool_calls) == (1, 0, [])
    assert result.total_tokens == result.usage["input"] + result.usage["output"] > 0


def test_code_looks_at_the_context_and_its_output_comes_back(openai: Server) -> None:
    result = run(openai, code("print(context.count('x'))"), lambda r: r.last, context="axbxc")
    answer = openai.requests[-1].results
    assert list(answer.values()) == ["2"]
    assert result.total_calls == 2
    assert [c["name"] for c in result.tool_calls] == ["execute_code"]


@pytest.mark.parametrize(
    ("source", "response", "value"),
    [
        ("FINAL('done')", "done", "done"),
        ("FINAL(42)", "42", 42),
        ("FINAL({'a': [1, 2]})", '{"a": [1, 2]}', {"a": [1, 2]}),
        ("x = 'kept'\nFINAL_VAR('x')", "kept", "kept"),
        ("FINAL('')", "", ""),
        ("FINAL({1, 2})", "{1, 2}", {1, 2}),
    ],
    ids=["text", "number", "dict", "variable", "empty", "set"],
)
def test_final_keeps_python_data(openai: Server, source: str, response: str, value: Any) -> None:
    result = run(openai, code(source))
    assert (result.response, result.value) == (response, value)


def test_final_is_void_when_the_cell_then_fails(openai: Server) -> None:
    result = run(openai, code("FINAL('too early')\n1/0"), "the right answer")
    assert result.response == "the right answer"
    assert "ZeroDivisionError" in openai.requests[-1].last


def test_variables_assigned_before_an_exception_are_kept(openai: Server) -> None:
    result = run(openai, code("paid = [1, 2, 3]\nraise ValueError('typo')"), code("FINAL(paid)"))
    assert result.value == [1, 2, 3]


def test_the_last_expression_is_shown(openai: Server) -> None:
    run(openai, code("x = 20\nx + 1"), "ok")
    assert openai.requests[-1].last.strip() == "21"


def test_long_output_is_cut_in_the_middle_and_kept_whole(openai: Server) -> None:
    turns = [code("for i in range(5000): print('line', i)"), code("FINAL(len(_out[1]))")]
    result = run(openai, *turns, output_limit=1000)
    shown = openai.requests[1].last
    assert shown.startswith("line 0") and "line 4999" in shown and len(shown) < 1300 and "_out[1]" in shown
    assert result.value == len("".join(f"line {i}\n" for i in range(5000)))


# --- sub-calls and recursion ---------------------------------------------------------------------------------------


def test_llm_query_sends_the_prompt_verbatim_and_returns_text(openai: Server) -> None:
    result = run(openai, code("FINAL(llm_query('what is {x}?\\n'))"), sub=lambda r: f"<{r.prompt}>")
    assert result.value == "<what is {x}?\n>"
    sent = openai.requests[1].body["messages"]
    assert sent == [{"role": "user", "content": "what is {x}?\n"}] and "tools" not in openai.requests[1].body


def test_llm_query_batched_answers_in_order_and_in_parallel(openai: Server) -> None:
    together = threading.Barrier(8, timeout=20)

    def sub(request: Request) -> str:
        together.wait()
        return request.prompt.upper()

    result = run(openai, code("FINAL(llm_query_batched([f'p{i}' for i in range(8)]))"), sub=sub)
    assert result.value == [f"P{i}" for i in range(8)]
    assert (result.total_calls, result.depth_reached) == (9, 1)


def test_a_batch_with_failures_raises_with_results_and_errors(openai: Server) -> None:
    source = (
        "try:\n    llm_query_batched(['a', 'b', 'c'])\nexcept Exception as e:\n"
        "    FINAL([e.results, [bool(x) for x in e.errors], type(e).__name__])"
    )
    sub = lambda r: scripted.error(400, "no") if r.prompt == "b" else r.prompt  # noqa: E731
    result = run(openai, code(source), sub=sub)
    assert result.value == [["a", None, "c"], [False, True, False], "SubcallError"]


def test_rlm_query_is_a_child_with_its_own_repl(openai: Server) -> None:
    def reply(request: Request) -> Any:
        if "sum the numbers" in request.prompt:
            return code("FINAL(sum(context))")
        return code("x = 'mine'\nFINAL(rlm_query('sum the numbers', [1, 2, 3]) + 1)")

    openai.script = reply
    result = rlm.complete("go", model=MODEL)
    assert (result.value, result.depth_reached, result.total_calls) == (7, 1, 2)


def test_recursion_past_the_limit_is_an_exception_in_the_code(openai: Server) -> None:
    source = "try:\n    rlm_query('x')\nexcept MaxDepthExceeded as e:\n    FINAL(str(e))"
    source = source.replace("MaxDepthExceeded as e", "Exception as e")
    result = run(openai, code(source), max_depth=0)
    assert "llm_query" in result.value and result.total_calls == 1


def test_sub_model_is_used_for_llm_query_and_an_explicit_one_wins(openai: Server) -> None:
    source = "llm_query('a'); llm_query('b', model='gpt-4.1'); FINAL('ok')"
    run(openai, code(source), sub_model="gpt-4o")
    assert [r.model for r in openai.requests] == [MODEL, "gpt-4o", "gpt-4.1"]


# --- limits --------------------------------------------------------------------------------------------------------


def test_a_batch_beyond_the_limit_of_sub_calls_sends_none(openai: Server) -> None:
    with pytest.raises(rlm.MaxSubcallsExceeded) as caught:
        run(openai, code("llm_query_batched(['x'] * 64)"), max_subcalls=5)
    assert (caught.value.calls, caught.value.limit, len(openai.requests)) == (64, 5, 1)
    assert caught.value.result is not None and caught.value.result.status == "partial"
    assert caught.value.trajectory_id


def test_token_budget_stops_before_a_call_that_does_not_fit(openai: Server) -> None:
    with pytest.raises(rlm.TokenBudgetExhausted) as caught:
        run(openai, code("print('x' * 6000)"), token_budget=4000)
    assert caught.value.budget == 4000 and 0 < caught.value.tokens_used <= 4000
    assert all((r.max_tokens or 0) <= 4000 for r in openai.requests)


def test_token_budget_holds_inside_one_cell(openai: Server) -> None:
    usage = {"input": 100, "output": 100}
    with pytest.raises(rlm.TokenBudgetExhausted) as caught:
        source = "for i in range(40):\n    llm_query('x' * 400)"
        run(openai, code(source), sub=lambda r: Turn("ok", usage=usage), token_budget=6000)
    assert caught.value.result.total_tokens <= 6000


def test_cost_budget_holds_inside_one_cell(openai: Server) -> None:
    usage = {"input": 10_000, "output": 1_000}
    with pytest.raises(rlm.CostBudgetExhausted) as caught:
        source = "for i in range(400):\n    llm_query('x' * 40000)"
        run(openai, code(source), sub=lambda r: Turn("ok", usage=usage), cost_budget_usd=0.02, max_subcalls=400)
    assert caught.value.budget == 0.02 and caught.value.cost_used <= 0.02


def test_cost_budget_with_an_unknown_price_is_an_error_at_the_start(openai: Server) -> None:
    with pytest.raises(rlm.ConfigError, match="price"):
        run(openai, "never asked", model="openai/mystery-9", cost_budget_usd=1.0)
    assert openai.requests == []


def test_a_cell_cannot_pass_the_cost_budget_by_a_model_of_unknown_price(openai: Server) -> None:
    source = "try:\n    llm_query('x', model='mystery-9')\nexcept Exception as error:\n    FINAL(str(error))"
    said = run(openai, code(source), sub="never asked", cost_budget_usd=1.0).response
    assert said == "the price of 'mystery-9' is not known, so cost_budget_usd cannot hold"
    assert len(openai.requests) == 1


def test_iterations_of_the_root_are_raised(openai: Server) -> None:
    with pytest.raises(rlm.MaxIterationsExceeded):
        run(openai, code("print(1)"), max_iterations=3)
    assert len(openai.requests) == 3


def test_a_child_out_of_iterations_is_an_exception_in_its_callers_code(openai: Server) -> None:
    def reply(request: Request) -> Any:
        if "child" in request.prompt:
            return code("print('again')")
        return code("try:\n    rlm_query('child')\nexcept Exception as e:\n    FINAL(type(e).__name__)")

    openai.script = reply
    assert rlm.complete("go", model=MODEL, max_iterations=2).value == "MaxIterationsExceeded"


def test_timeout_ends_a_hanging_provider(openai: Server) -> None:
    openai.script = lambda request: scripted.hang()
    with pytest.raises(rlm.TimeoutExceeded) as caught:
        rlm.complete("go", model=MODEL, timeout_seconds=0.5)
    assert caught.value.timeout_seconds == 0.5 and caught.value.elapsed_seconds >= 0.5


def test_timeout_ends_a_cell_that_loops(openai: Server) -> None:
    with pytest.raises(rlm.TimeoutExceeded):
        run(openai, code("while True: pass"), timeout_seconds=1)


def test_a_looping_cell_is_stopped_and_its_variables_are_kept(openai: Server) -> None:
    result = run(openai, code("x = 5\nwhile True: pass"), code("FINAL(x)"), cell_timeout=0.3)
    assert result.value == 5
    assert "limit" in openai.requests[1].last


def test_failures_in_a_row_are_raised_with_code_and_stderr(openai: Server) -> None:
    with pytest.raises(rlm.REPLExecutionError) as caught:
        run(openai, code("undefined_name"), max_errors=3)
    assert (caught.value.code, len(openai.requests)) == ("undefined_name", 4)  # the last asks for an answer
    assert "NameError" in caught.value.stderr and openai.requests[-1].tools == []


def test_an_unknown_tool_is_answered_and_finally_raised(openai: Server) -> None:
    with pytest.raises(rlm.ToolNotFoundError) as caught:
        run(openai, Turn(tool_calls=[call("web_search", q="x")]), max_errors=2)
    assert caught.value.tool_name == "web_search" and "execute_code" in caught.value.available_tools
    assert "execute_code" in openai.requests[1].last


def test_uncaught_depth_errors_are_raised_as_such(openai: Server) -> None:
    with pytest.raises(rlm.MaxDepthExceeded) as caught:
        run(openai, code("rlm_query('deeper')"), max_depth=0, max_errors=2)
    assert (caught.value.depth, caught.value.max_depth) == (1, 0)


def test_the_model_is_told_when_little_is_left(openai: Server) -> None:
    run(openai, code("print(1)"), code("print(2)"), code("print(3)"), "ok", max_iterations=4)
    assert "left" in openai.requests[-1].body["messages"][-1]["content"]


def test_every_error_survives_pickling() -> None:
    errors = [
        rlm.RLMError("m", hint="h", trajectory_id="t"),
        rlm.ProviderError("m", provider="p", status=500),
        rlm.REPLExecutionError("m", code="c", stderr="s"),
        rlm.ToolNotFoundError("t", ["a"]),
        rlm.MaxDepthExceeded(5, 4),
        rlm.MaxSubcallsExceeded(6, 5),
        rlm.MaxIterationsExceeded(3, 3),
        rlm.TokenBudgetExhausted(7, 6),
        rlm.CostBudgetExhausted(0.2, 0.1),
        rlm.TimeoutExceeded(2.0, 1.0),
        rlm.SandboxError("m", hint="h"),
        rlm.ConfigError("m"),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)


# --- the text protocol ---------------------------------------------------------------------------------------------


def test_text_protocol_runs_the_first_block_and_drops_what_follows_it(openai: Server) -> None:
    blocks = "Look:\n```repl\na = 1\nprint(a)\n```\nOutput:\n7\n```python\na = 100\n```"
    result = run(openai, blocks, "```\nFINAL(a)\n```", protocol="text")
    assert result.value == 1
    assert "tools" not in openai.requests[0].body
    sent = openai.requests[1].messages
    assert sent[-2:] == [
        {"role": "assistant", "content": "Look:\n```repl\na = 1\nprint(a)\n```"},
        {"role": "user", "content": "Output:\n1"},
    ]
    first = next(event for event in events_of(result) if event["event"] == "call")
    assert (first["response"], first["dropped"]) == (blocks, len("\nOutput:\n7\n```python\na = 100\n```"))


def test_a_server_without_tools_is_noticed_and_the_text_protocol_goes_on(openai: Server) -> None:
    def reply(request: Request) -> Any:
        if request.tools:
            return scripted.error(400, "this model does not support tools")
        return "```repl\nFINAL(context)\n```"

    openai.script = reply
    assert rlm.complete("go", "found", model=MODEL).value == "found"


def test_a_fence_in_a_tools_reply_is_run_until_code_has_worked(openai: Server) -> None:
    result = run(openai, "I will do:\n```python\nprint(1)\n```", "It is 1.")
    assert (openai.requests[1].last, result.response) == ("Output:\n1", "It is 1.")


def test_a_fence_after_tool_calls_that_worked_is_part_of_the_answer(openai: Server) -> None:
    answer = "Write it like this:\n```python\nprint(1)\n```"
    result = run(openai, code("print(2)"), answer)
    assert (result.response, result.total_calls) == (answer, 2)


@pytest.mark.parametrize(
    "case", json.loads((Path(__file__).parent / "corpus/replies.json").read_text()), ids=lambda c: c["name"]
)
def test_reading_of_text_replies(case: dict[str, Any]) -> None:
    assert rlm.code_blocks(case["text"]) == case["code"]
    assert rlm.final_call(case["text"]) == case.get("final")


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("```python\nx = (\n", 1),
        ("```python\nx = (\n```\n", 2_000),
        ("```\nprose, no code\n```\n", 2_000),
        ("FINAL(\n", 0),
    ],
    ids=["openings", "blocks", "prose", "finals"],
)
def test_a_reply_that_repeats_itself_is_read_in_a_bounded_number_of_tries(
    monkeypatch: pytest.MonkeyPatch, text: str, blocks: int
) -> None:
    tried: list[str] = []
    parses = rlm.parses
    monkeypatch.setattr(rlm, "parses", lambda code: tried.append(code) or parses(code))
    assert len(rlm.fences(text * 2_000)) == blocks
    rlm.final_call(text * 2_000 + ")")
    assert len(tried) < 500


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"code": "x"}, "x"),
        ({"code": "x", "why": "y"}, "x"),
        ({"python": "x"}, "x"),
        ("print(1)", "print(1)"),
        ("```python\nprint(1)\n```", "print(1)"),
        ({"code": ["a = 1", "a"]}, "a = 1\na"),
        ({}, None),
        ('{"code": "unterminated', None),
        ({"code": 5}, None),
    ],
)
def test_arguments_of_execute_code_are_read_or_corrected(arguments: Any, expected: str | None) -> None:
    source, problem = rlm.code_argument(arguments)
    assert (source, bool(problem)) == (expected or "", expected is None)


# --- the journal ---------------------------------------------------------------------------------------------------


def test_the_journal_is_a_tree_with_each_message_once(openai: Server) -> None:
    marker = "OUTPUT-MARKER-5b1"
    turns = [code(f"print('{marker[:6]}' + '{marker[6:]}')\nllm_query('leaf-prompt')"), code("print(2)"), "the end"]
    result = run(openai, *turns)
    events = events_of(result)
    kinds = [(e["event"], e.get("kind")) for e in events]
    assert kinds == [
        ("start", "root"),
        ("call", "turn"),
        ("call", "sub"),
        ("tool", None),
        ("call", "turn"),
        ("tool", None),
        ("call", "turn"),
        ("end", None),
    ]
    turn, leaf = events[1], events[2]
    assert (turn["parent_call_id"], leaf["parent_call_id"], leaf["depth"]) == (None, turn["call_id"], 1)
    assert events[3]["call_id"] == turn["call_id"]
    text = Path(str(result.log)).read_text()
    assert text.count(marker) == 1 and text.count("Why-7c?") == 1 and text.count("leaf-prompt") <= 3
    for event in events:
        assert {"v", "event", "trajectory_id", "call_id", "parent_call_id", "depth", "timestamp"} <= event.keys()


def test_each_limit_is_in_the_journal_and_documented(openai: Server) -> None:
    start = events_of(run(openai, "ok"))[0]
    page = (ROOT / "docs/trajectories.md").read_text()
    documented = page.partition("| `limits` | ")[2].partition(";")[0].replace("`", "").split(", ")
    assert list(start["limits"]) == documented
    limits = [name for name, row in rlm.OPTIONS.items() if row.metadata["limit"]]
    assert documented == limits and all(rlm.OPTIONS[name].metadata["project"] for name in limits)


def test_the_journal_is_private_and_holds_no_key(openai: Server) -> None:
    result = run(openai, f"the key is {scripted.KEY}")
    assert stat.S_IMODE(Path(str(result.log)).stat().st_mode) == 0o600
    assert scripted.KEY not in Path(str(result.log)).read_text()


def test_an_empty_list_of_folders_leaves_cells_no_file_to_read(openai: Server, workspace: Path) -> None:
    (workspace / "notes.txt").write_text("seen")
    read = code("FINAL(open('notes.txt').read())")
    assert run(openai, read).response == "seen"
    assert "FileNotFoundError" in run(openai, read, lambda request: request.last, allowed_paths=[]).response


def test_stop_ends_a_completion_from_another_thread_with_what_it_has(openai: Server) -> None:
    openai.script = answer_with(code("import time\nprint('begun')\ntime.sleep(60)"))
    begun = threading.Event()
    runtime = rlm.RLM(model=MODEL, on_event=lambda event: begun.set() if event["event"] == "output" else None)
    failed: list[rlm.RLMError] = []

    def complete() -> None:
        try:
            runtime.completion("go")
        except rlm.RLMError as error:
            failed.append(error)

    asking = threading.Thread(target=complete)
    asking.start()
    assert begun.wait(30)
    runtime.stop("the page was closed")
    asking.join(30)
    assert [str(error) for error in failed] == ["the page was closed"]
    assert failed[0].result is not None and failed[0].result.total_calls == 1


def test_events_reach_the_caller_as_they_are_written(openai: Server) -> None:
    seen: list[dict[str, Any]] = []
    result = run(openai, code("print(1)"), "ok", on_event=seen.append)
    assert [e for e in seen if e["event"] not in ("text", "output")] == events_of(result)
    assert "".join(e["delta"] for e in seen if e["event"] == "text").endswith("ok")
    assert {e["trajectory_id"] for e in seen} == {result.trajectory_id}


def test_a_log_folder_that_cannot_be_written_is_an_error_at_the_start(openai: Server, workspace: Path) -> None:
    (workspace / "file").write_text("")
    with pytest.raises(rlm.ConfigError, match="log folder"):
        run(openai, "never", log_dir=str(workspace / "file" / "logs"))
    assert openai.requests == []


def test_a_failing_provider_is_raised_with_its_status_and_journalled(openai: Server) -> None:
    openai.script = lambda request: scripted.error(401, f"bad key {scripted.KEY}")
    with pytest.raises(rlm.ProviderError) as caught:
        rlm.complete("go", model=MODEL)
    assert caught.value.status == 401 and scripted.KEY not in str(caught.value)
    log = next(Path("logs").glob("*.jsonl"))
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()] == ["start", "interrupted", "end"]


def test_a_stream_that_was_cut_is_asked_for_again_and_never_the_answer(openai: Server) -> None:
    """Also a tool call of which only half arrived is not run."""
    whole = code("FINAL('whole')")
    openai.script = lambda r: (
        scripted.cut(Turn("let me see", tool_calls=whole.tool_calls), 600) if r.number == 1 else whole
    )
    result = rlm.complete("go", model=MODEL, on_event=lambda event: None)
    assert (result.value, [r.stream for r in openai.requests][-1]) == ("whole", True)


def test_what_the_prompt_cache_saved_is_in_the_totals(openai: Server) -> None:
    result = run(openai, Turn("ok", usage={"input": 10_000, "output": 10, "cached": 8_000}))
    totals = events_of(result)[-1]["totals"]
    assert totals["usage"]["cached"] == result.usage["cached"] == 8_000
    assert totals["saved_usd"] == pytest.approx(8_000 * 0.075e-6)


# --- resume and replay ---------------------------------------------------------------------------------------------

WORK = "parts = llm_query_batched(['one', 'two'])\nchild = rlm_query('child', parts)\nprint(parts, child)"


def recorded_script(request: Request) -> Any:
    if not request.system:
        return request.prompt.upper()
    if request.prompt == "child":
        return code("FINAL(llm_query('leaf of ' + context[0]))") if request.turn == 1 else "unused"
    return [code("x = 1"), code(WORK), code("FINAL([x, parts, child])")][request.turn - 1]


def test_resume_serves_what_is_recorded_at_every_line(openai: Server, workspace: Path) -> None:
    openai.script = recorded_script
    whole = rlm.complete("go", "the input", model=MODEL)
    assert whole.value == [1, ["ONE", "TWO"], "LEAF OF ONE"]
    lines = Path(str(whole.log)).read_text().splitlines(keepends=True)
    calls = [json.loads(line) for line in lines if json.loads(line)["event"] == "call"]
    for kept in range(1, len(lines)):
        Path(str(whole.log)).write_text("".join(lines[:kept]) + '{"torn')
        paid = sum(json.loads(line)["event"] == "call" for line in lines[:kept])
        openai.requests.clear()
        result = rlm.RLM(model=MODEL).resume(whole.trajectory_id[:5])
        assert (result.value, len(openai.requests)) == (whole.value, len(calls) - paid), kept
        assert (result.total_calls, result.total_tokens) == (whole.total_calls, whole.total_tokens)


def test_resume_with_a_raised_limit_goes_on(openai: Server) -> None:
    openai.script = answer_with(code("x = 1"), code("x += 1"), code("FINAL(x)"))
    with pytest.raises(rlm.MaxIterationsExceeded) as caught:
        rlm.complete("go", model=MODEL, max_iterations=2)
    openai.requests.clear()
    result = rlm.RLM(model=MODEL).resume(caught.value.trajectory_id, max_iterations=5)
    assert (result.value, len(openai.requests)) == (2, 1)


def test_replay_is_offline_and_reports_a_divergence(openai: Server) -> None:
    openai.script = recorded_script
    whole = rlm.complete("go", "the input", model=MODEL)
    openai.requests.clear()
    replayed = rlm.RLM().replay(whole.trajectory_id)
    assert (replayed.result.value, replayed.divergence, openai.requests) == (whole.value, [], [])


def test_the_replay_example_is_a_regression_test(workspace: Path) -> None:
    """It passes offline, without a key, and fails when the code's outcome is not the recorded one."""
    shutil.copytree(ROOT / "examples/recorded", workspace / "recorded")
    example = shutil.copy(ROOT / "examples/test_replay.py", workspace)
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(workspace), example]
    assert subprocess.run(pytest_here, capture_output=True).returncode == 0
    log = workspace / "recorded/tickets.jsonl"
    log.write_text(log.read_text().replace('"4 I want a refund', '"5 I want a refund'))
    failed = subprocess.run(pytest_here, capture_output=True, text=True)
    assert failed.returncode == 1 and "cell 1 of n0: stdout differ" in failed.stdout


def test_what_is_not_determined_is_said_and_survived(openai: Server) -> None:
    source = "import time\nprint(time.time_ns())"
    openai.script = answer_with(code(source), code("FINAL('done')"))
    whole = rlm.complete("go", model=MODEL)
    lines = Path(str(whole.log)).read_text().splitlines(keepends=True)
    Path(str(whole.log)).write_text("".join(lines[:3]))
    told: list[dict[str, Any]] = []
    result = rlm.RLM(model=MODEL, on_event=told.append).resume(whole.trajectory_id)
    assert result.value == "done"
    assert [e["divergence"] for e in told if e.get("divergence")] == ["cell 1 of n0: stdout differ when run again"]


def test_a_changed_context_file_is_an_error_that_says_so(openai: Server, workspace: Path) -> None:
    data = workspace / "data.txt"
    data.write_text("one")
    openai.script = answer_with(code("x = 1"), "ok")
    result = rlm.complete("go", data, model=MODEL)
    data.write_text("two")
    with pytest.raises(rlm.ConfigError, match="changed"):
        rlm.RLM(model=MODEL).resume(result.trajectory_id)


@pytest.mark.parametrize("form", ["folder", "glob", "two files", "file and stdin", "pipe", "journal without names"])
def test_a_context_of_files_is_resumed_and_replayed_from_anywhere(
    openai: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    (workspace / "src").mkdir()
    for name in ("src/a.txt", "src/b.txt"):
        (workspace / name).write_text(name)
    specs = {"folder": ["src"], "glob": ["src/*.txt"], "two files": ["src/a.txt", "src/b.txt"], "pipe": ["pipe"]}
    specs["journal without names"] = [str(workspace / "src")]
    if form == "pipe":
        os.mkfifo("pipe")
        threading.Thread(target=lambda: (workspace / "pipe").write_text("from a pipe"), daemon=True).start()
    context = rlm.read_context(specs.get(form, ["src/a.txt", "-"]), stdin="piped" if "stdin" in form else None)
    openai.script = answer_with(code("x = context"), code("FINAL(x)"))
    whole = rlm.complete("go", context, model=MODEL)
    assert whole.value == context.value
    log = Path(str(whole.log)).absolute()
    lines = log.read_text().splitlines(keepends=True)
    if form == "journal without names":
        start = json.loads(lines[0])
        del start["context"]["source"]["names"]
        lines[0] = json.dumps(start) + "\n"
    log.write_text("".join(lines[:3]))
    monkeypatch.chdir("/")
    assert rlm.RLM(model=MODEL, log_dir=log.parent).resume(whole.trajectory_id).value == context.value
    assert rlm.RLM(log_dir=log.parent).replay(whole.trajectory_id).divergence == []


def test_a_folder_as_context_is_taken_without_the_logs(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("FINAL(sorted(context))"))
    (workspace / "a.txt").write_text("a")
    assert [rlm.complete("go", workspace, model=MODEL).value for _ in "12"] == [[str(workspace / "a.txt")]] * 2
    results = rlm.batch([{"prompt": "go", "context": workspace}], model=MODEL)
    assert [result.value for result in results] == [[str(workspace / "a.txt")]]


def test_the_hint_about_a_context_that_was_not_kept_is_true(openai: Server) -> None:
    openai.script = answer_with(code("x = 1"), "ok")
    result = rlm.complete("go", "by value", model=MODEL, save_context=False)
    with pytest.raises(rlm.ConfigError, match="was not kept") as caught:
        rlm.RLM(model=MODEL).resume(result.trajectory_id)
    assert "start a new run" in caught.value.hint and "-c" not in caught.value.hint.split()


def long_work(request: Request) -> Any:
    """Depth 0 to 2, with batches at each."""
    if not request.system:
        return request.prompt.upper()
    if request.prompt == "grandchild":
        return code("FINAL(llm_query('deep'))")
    if request.prompt.startswith("child"):
        sources = ["a = llm_query_batched(['x', 'y'])", "FINAL([a, rlm_query('grandchild'), context])"]
        return code(sources[request.turn - 1])
    sources = [
        "kids = rlm_query_batched(['child 1', 'child 2'], [1, 2])",
        "t = sorted(str(k) for k in kids)",
        "FINAL(t)",
    ]
    return code(sources[request.turn - 1])


KILLED = """
import os, signal, sys, requests, rlm, rlm_backends, rlm_sandbox
def stop_at(line):
    seen = 0
    def on_event(event):
        nonlocal seen
        if event["event"] not in ("text", "output"):
            seen += 1
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
    return on_event
for line in range(1, int(sys.argv[1])):
    os.mkdir(str(line))
    if os.fork() == 0:
        try:
            os.chdir(str(line))
            rlm.complete("go", {"in": "put"}, model="gpt-4o-mini", on_event=stop_at(line))
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.slow
def test_kill_minus_9_at_every_line_repeats_no_paid_call(openai: Server, workspace: Path) -> None:
    openai.script = long_work
    whole = rlm.complete("go", {"in": "put"}, model=MODEL)
    lines, calls = len(events_of(whole)), whole.total_calls
    ended = subprocess.run([sys.executable, "-c", KILLED, str(lines)], capture_output=True, text=True)
    assert ended.stdout.split() == [str(-signal.SIGKILL)] * (lines - 1), ended.stderr
    for line in range(1, lines):
        folder = workspace / str(line)
        log = next((folder / "logs").glob("*.jsonl"))
        recorded = sum(e["event"] == "call" for e in rlm.read_journal(str(log)))
        with Server(long_work) as counting:  # of its own, since what the dead process sent may still arrive
            result = rlm.RLM(model=MODEL, log_dir=str(folder / "logs"), base_url=counting.base_url).resume()
            assert (result.value, len(counting.requests), counting.problems) == (whole.value, calls - recorded, []), (
                line
            )


def test_a_conversation_is_resumed_with_all_its_prompts(openai: Server) -> None:
    def reply(request: Request) -> Any:
        users = [m["content"] for m in request.messages if m["role"] == "user"]
        if request.messages[-1]["role"] == "user":
            return code({"first": "x = 1", "second": "x += 1", "third": "x += 1"}[users[-1]])
        return code("FINAL(x)") if request.last == "[no output]" else "never"

    openai.script = reply
    with rlm.RLM(model=MODEL, persistent=True) as session:
        values = [session.completion(prompt).value for prompt in ("first", "second")]
        log = Path(str(rlm.last_result().log))
    lines = log.read_text().splitlines(keepends=True)
    second = max(i for i, line in enumerate(lines) if json.loads(line)["event"] == "start")
    log.write_text("".join(lines[: second + 2]))
    openai.requests.clear()
    with rlm.RLM(model=MODEL, persistent=True) as session:
        resumed = session.resume(log.stem)
        assert (values, resumed.value, len(openai.requests)) == ([1, 2], 2, 1)
        assert session.completion("third").value == 3


def long_script(request: Request) -> Any:
    if request.turn < 200:
        return code(f"print('output {request.turn} ' + 'x' * 9000)")
    return code("FINAL([len(_out), _out[1][:9]])")


@pytest.mark.slow
def test_a_run_of_200_turns_goes_through_a_small_window_by_stubs(openai: Server) -> None:
    """Beside the same run in a window that holds it all."""
    how: dict[str, Any] = {"max_iterations": 200, "token_budget": 1_000_000_000}
    openai.window, openai.script = 128_000, long_script
    result = rlm.complete("go", model=MODEL, **how)
    assert result.value == [199, "output 1 "]
    assert max(len(r.raw) // 4 for r in openai.requests) < 128_000
    events = events_of(result)
    compactions = [e for e in events if e["event"] == "compact"]
    assert 4 <= len(compactions) <= 9 and all("summary" not in e for e in compactions)
    assert "_out[1]" in openai.requests[-1].messages[3]["content"]
    assert sum(len(e["stdout"]) > 9000 for e in events if e["event"] == "tool") == 199, "the journal holds everything"

    openai.window = None
    whole = rlm.complete("go", model="gpt-4.1-mini", compaction=False, **how)
    assert whole.value == result.value
    assert result.total_tokens < whole.total_tokens / 3


def test_a_summary_is_asked_for_when_stubs_are_not_enough(openai: Server) -> None:
    def reply(request: Request) -> Any:
        if not request.tools:
            return "so far: x counts to 60"
        if request.messages[2:] and "x counts to 60" in str(request.messages[2]["content"]):
            return code("FINAL(x)")
        return Turn("thinking aloud " * 700, tool_calls=[call("execute_code", code=f"x = {request.turn}")])

    openai.window, openai.script = 128_000, reply
    result = rlm.complete("go", model=MODEL, max_iterations=200, token_budget=1_000_000_000)
    (compaction,) = [e for e in events_of(result) if e["event"] == "compact"]
    assert compaction["summary"] == "so far: x counts to 60"
    assert compaction["tokens_after"] < compaction["tokens_before"] / 10
    calls = [e for e in events_of(result) if e["event"] == "call"]
    assert result.value == len(calls) - 2 and result.total_calls == len(calls)
    lines = Path(str(result.log)).read_text().splitlines(keepends=True)
    Path(str(result.log)).write_text("".join(lines[:-2]))
    openai.requests.clear()
    assert rlm.RLM(model=MODEL).resume(result.trajectory_id).value == result.value
    assert openai.requests == []


def test_show_writes_the_page_beside_the_log_and_opens_it(
    openai: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    path = run(openai, "ok").show()
    assert capsys.readouterr().out == path + "\n" and Path(path).read_text().startswith("<!doctype html>")
    assert opened == [Path(path).resolve().as_uri()]


def test_a_journal_that_cannot_be_written_stops_the_run_with_the_partial_result(openai: Server) -> None:
    script = (
        "import resource, rlm\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "try:\n    rlm.complete('go', model='gpt-4o-mini')\n"
        "except rlm.RLMError as e:\n    print(type(e).__name__, e.result.status, e.message)"
    )
    openai.script = lambda r: code("print('x' * 3000)")
    done = subprocess.run([sys.executable, "-B", "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith("RLMError partial cannot write the journal"), done.stderr


# --- the rest of the face ------------------------------------------------------------------------------------------


def test_stream_yields_tokens(openai: Server) -> None:
    openai.script = lambda request: Turn("one two three")
    parts = list(rlm.RLM(model=MODEL).stream("go"))
    assert "".join(parts) == "one two three" and len(parts) > 1
    assert "tools" not in openai.requests[0].body


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_stream_is_journalled_as_what_it_is_and_not_resumed(openai: Server, system: str | None) -> None:
    openai.script = lambda request: scripted.error(400, "no")
    with pytest.raises(rlm.ProviderError) as caught:
        list(rlm.RLM(model=MODEL).stream("go", system=system))
    name = str(caught.value.trajectory_id)
    start = json.loads((Path("logs") / f"{name}.jsonl").read_text().splitlines()[0])
    facts = [start[key] for key in ("kind", "prompt", "system", "protocol", "tools")]
    assert facts == ["root", "go", system, "stream", []]
    openai.requests.clear()
    for go_on in (rlm.RLM(model=MODEL).resume, rlm.RLM(model=MODEL).replay):
        with pytest.raises(rlm.ConfigError, match="was a stream") as refused:
            go_on(name)
        assert "rlm --stream" in refused.value.hint
    assert openai.requests == []


class Whole:
    """A backend object that knows nothing of `on_text`."""

    model = "mine"

    def complete(self, messages: list[dict[str, Any]], **how: Any) -> str:
        return f"{messages[-1]['content']}, in one piece"


def test_a_backend_that_does_not_stream_still_answers(workspace: Path) -> None:
    assert list(rlm.RLM(backend=Whole()).stream("go")) == ["go, in one piece"]


class Stoppable:
    """A backend object that says one word and then waits to be stopped, in its calls of that number."""

    def __init__(self, *waiting: int) -> None:
        self.waiting, self.calls = waiting, 0
        self.asked = threading.Event()

    def complete(self, messages: list[dict[str, Any]], *, on_text: Any, cancel: threading.Event, **how: Any) -> str:
        self.calls += 1
        if self.calls not in self.waiting:
            return "ok"
        if on_text:
            on_text("one")
        self.asked.set()
        cancel.wait(60)
        raise InterruptedError("cancelled")


def test_a_stream_is_stopped_from_another_thread(workspace: Path) -> None:
    runtime = rlm.RLM(backend=Stoppable(1), config=False)
    parts = runtime.stream("go")
    assert next(parts) == "one"
    runtime.stop("enough")
    with pytest.raises(rlm.RLMError, match="enough"):
        next(parts)


def test_after_a_stop_a_conversation_begins_anew(workspace: Path) -> None:
    """Its REPL was killed, and its journal takes no more. None for a context keeps the current one, as always."""
    backend = Stoppable(2)
    with rlm.RLM(backend=backend, persistent=True, config=False) as session:
        first = session.completion("one", "text")
        stopping = threading.Thread(target=lambda: (backend.asked.wait(60), session.stop("enough")))
        stopping.start()
        with pytest.raises(rlm.RLMError, match="enough"):
            session.completion("two")
        stopping.join()
        third = session.completion("three")
    assert third.trajectory_id != first.trajectory_id
    assert [event["event"] for event in third.events()] == ["start", "call", "end"]
    assert third.events()[0]["context"]["size"] == 4


def test_batch_keeps_order_and_a_failure_is_an_item(openai: Server) -> None:
    openai.script = lambda r: scripted.error(400, "no") if "bad" in r.prompt else r.prompt.upper()
    results = list(rlm.batch(["a", "bad", {"prompt": "c", "context": "d"}], model=MODEL))
    assert [r.response if isinstance(r, rlm.CompletionResult) else type(r).__name__ for r in results] == [
        "A",
        "ProviderError",
        "C",
    ]


def test_an_rlm_pickles_as_its_configuration(openai: Server) -> None:
    openai.script = lambda request: "ok"
    copy = pickle.loads(pickle.dumps(rlm.RLM(model=MODEL, max_depth=2)))
    assert (copy.options.max_depth, copy.completion("go").response) == (2, "ok")


def test_persistent_keeps_variables_and_messages(openai: Server) -> None:
    openai.script = lambda r: code("x = 41") if r.prompt == "first" and r.turn == 1 else code("FINAL(x + 1)")
    with rlm.RLM(model=MODEL, persistent=True) as session:
        assert session.completion("first").value == 42
        assert session.completion("second").value == 42
    assert "first" in json.dumps(openai.requests[-1].body["messages"])


def test_a_conversation_goes_on_after_a_limit_stopped_a_cell(openai: Server) -> None:
    """The tool call that was cut short gets a result, since providers want one for each."""

    def reply(request: Request) -> Any:
        if not request.system:
            return "sub"
        sources = {"first": "x = 1\nllm_query_batched(['p'] * 9)", "second": "FINAL(1)"}
        return code(sources[[m["content"] for m in request.messages if m["role"] == "user"][-1]])

    openai.script = reply
    with rlm.RLM(model=MODEL, persistent=True, max_subcalls=3) as session:
        with pytest.raises(rlm.MaxSubcallsExceeded):
            session.completion("first")
        assert session.completion("second").value == 1
        log = rlm.last_result().log
    openai.requests.clear()
    lines = Path(str(log)).read_text().splitlines(keepends=True)
    Path(str(log)).write_text("".join(line for line in lines[:-1]))
    with rlm.RLM(model=MODEL, persistent=True, max_subcalls=3) as session:
        assert session.resume(Path(str(log)).stem).value == 1
        assert openai.requests == []
        assert session.completion("second").value == 1


def test_a_resumed_conversation_counts_its_newest_prompt_alone(openai: Server) -> None:
    """Limits hold for each prompt, so all prompts together may have passed them."""
    cell = "FINAL([llm_query('one'), llm_query('two')])"
    openai.script = lambda request: code(cell) if request.system else "sub"
    with rlm.RLM(model=MODEL, persistent=True, max_subcalls=3) as session:
        last = [session.completion(prompt) for prompt in ("first", "second")][-1]
    openai.requests.clear()
    with rlm.RLM(model=MODEL, persistent=True) as session:
        resumed = session.resume(last.trajectory_id)
        assert (resumed.value, resumed.total_calls) == (["sub", "sub"], last.total_calls)
        assert openai.requests == []
    with rlm.RLM(model=MODEL) as session, pytest.raises(rlm.MaxSubcallsExceeded):
        session.resume(last.trajectory_id, max_subcalls=1)


def test_a_single_environment_object_serves_one_node(openai: Server) -> None:
    with rlm_sandbox.LocalSandbox() as box:
        source = "try:\n    rlm_query('x')\nexcept TypeError as e:\n    FINAL(str(e))"
        assert "llm_query" in run(openai, code(source), environment=box).value
        assert box.execute("1 + 1").value == "2"  # and is the caller's to close


def test_a_schema_is_enforced_and_the_value_is_typed(openai: Server) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    result = run(openai, code("FINAL({'m': 1})"), code("FINAL({'n': 3})"), schema=schema)
    assert result.value == {"n": 3}
    assert "schema" in json.dumps(openai.requests[1].body["messages"][-1])


def test_the_notebook_bundle_has_no_scripts(openai: Server) -> None:
    bundle = run(openai, "<script>alert(1)</script>")._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/markdown", "text/html"}
    assert "<script" not in bundle["text/html"] and len(bundle["text/html"]) < 20_000


@pytest.mark.parametrize("bad", [object(), [1, object()], {"a": lambda: 0}], ids=["object", "in a list", "in a dict"])
def test_a_context_that_is_no_plain_data_says_what_to_do(bad: Any) -> None:
    with pytest.raises(TypeError, match="plain data"):
        rlm.RLM(model=MODEL, api_key="sk-unused-unused").completion("go", bad)


@pytest.mark.parametrize("context", [b"\0\xff", {1, 2}, [1, "a"], {"k": (1, 2)}, "é\ud800", 5, None], ids=repr)
def test_any_plain_context_arrives_as_it_is(openai: Server, context: Any) -> None:
    result = run(openai, code("FINAL([type(context).__name__, context])"), context=context)
    assert result.value == [type(context).__name__, context]


PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.mark.parametrize("form", ["bytes", "file", "data URI", "URL", "folder of images"])
def test_an_image_in_the_context_is_shown_to_the_model(openai: Server, workspace: Path, form: str) -> None:
    (workspace / "shots").mkdir()
    (workspace / "shots/a.png").write_bytes(PNG)
    data_uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    url = "https://images.example/a.png"
    given = {
        "bytes": PNG,
        "file": workspace / "shots/a.png",
        "data URI": data_uri,
        "URL": url,
        "folder of images": workspace / "shots",
    }[form]
    run(openai, code("print(type(context).__name__)"), "ok", context=given)
    text, image = openai.requests[0].messages[1]["content"]
    assert text == {"type": "text", "text": "Why-7c?"}
    assert image["image_url"]["url"] == (url if form == "URL" else data_uri)


def test_an_image_for_a_model_without_vision_is_a_clear_error(openai: Server) -> None:
    with pytest.raises(rlm.RLMError, match="image"):
        run(openai, "never", context=PNG, model="openai/gpt-3.5-turbo")
    assert openai.requests == []


@dataclasses.dataclass
class Finding:
    name: str
    count: int


def test_a_typed_answer_is_built(openai: Server) -> None:
    result = run(openai, code("FINAL({'name': 'a', 'count': '3'})"), schema=Finding)
    assert result.value == Finding("a", 3)


@dataclasses.dataclass
class Checked:
    count: int
    made = 0

    def __post_init__(self) -> None:
        Checked.made += 1
        if self.count < 0:
            raise ValueError("a count is not below 0")


def test_what_a_class_itself_refuses_is_told_to_the_model(openai: Server) -> None:
    result = run(openai, code("FINAL({'count': -1})"), code("FINAL({'count': 2})"), schema=Checked)
    assert Checked.made == 2  # each answer is made into one once
    assert (result.value, rlm.last_result()) == (Checked(2), result)
    assert "not a valid Checked: a count is not below 0" in openai.requests[1].last


def test_a_class_that_refuses_for_good_is_an_error_with_the_result(openai: Server) -> None:
    with pytest.raises(rlm.RLMError, match="not a valid Checked") as caught:
        run(openai, *[code("FINAL({'count': -1})")] * 2, schema=Checked, max_errors=2)
    # The third call asked for the best answer, without tools; it called one all the same.
    assert caught.value.result == rlm.last_result() and caught.value.result.total_calls == 3


@pytest.mark.parametrize(
    "schema", [5, "x", [1], object(), {"type": 5}], ids=["number", "text", "list", "object", "malformed"]
)
def test_what_is_no_schema_is_refused_before_anything_is_written(openai: Server, schema: Any) -> None:
    with pytest.raises(rlm.ConfigError, match=r"^schema: (no|not a) JSON Schema") as caught:
        run(openai, "unused", schema=schema)
    assert "dataclass" in caught.value.hint
    assert openai.requests == [] and not Path("logs").exists()


def test_the_system_prompt_is_short_and_constant(openai: Server) -> None:
    run(openai, code("x = 1"), code("print(x)"), "ok", context="a\nb")
    bodies = [r.body for r in openai.requests]
    size = len(bodies[0]["messages"][0]["content"]) + len(json.dumps(bodies[0]["tools"]))
    assert size < 3300
    for earlier, later in itertools.pairwise(bodies):
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]


# --- going on from a journal: what is there again, and what is refused --------------------------------------------


class Scripted:
    """A backend object of a caller's own: says these in turn, or raises them; `seen` are the messages of each call."""

    model = "of-my-own"
    supports_tools = True

    def __init__(self, *turns: Any, window: int | None = None) -> None:
        self.turns, self.window = list(turns), window
        self.seen: list[list[dict[str, Any]]] = []

    def complete(self, messages: list[dict[str, Any]], **how: Any) -> Any:
        self.seen.append([dict(message) for message in messages])
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]
        if isinstance(turn, BaseException):
            raise turn
        return turn if isinstance(turn, Reply) else said(turn)


def said(text: str = "", *, run: str | None = None) -> Reply:
    calls = [{"id": "c1", "name": "execute_code", "arguments": {"code": run}}] if run is not None else []
    return Reply(text, calls, {"input": 10, "output": 5}, "tool_calls" if calls else "stop", "of-my-own", 0.0)


def forget_the_last(log: Any, lines: int) -> str:
    """Cut a journal short, as a crash does; the id to resume it by."""
    path = Path(str(log))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-lines]))
    return path.stem


def test_a_cell_that_was_stopped_softly_is_run_again_when_resumed(openai: Server) -> None:
    turns = [code("x = 1"), code("x = 5\nwhile True: pass"), code("x += 1"), code("FINAL(x)")]
    result = run(openai, *turns, cell_timeout=0.5)
    assert result.value == 6
    assert rlm.RLM(model=MODEL).resume(forget_the_last(result.log, 3)).value == 6
    assert rlm.RLM(model=MODEL).replay(result.trajectory_id).divergence == []


def test_a_run_does_not_go_on_at_another_server_unasked(openai: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    name = forget_the_last(run(openai, "ok").log, 2)
    with Server(lambda request: "from the other") as other:
        monkeypatch.setenv("OPENAI_BASE_URL", other.base_url)
        with pytest.raises(rlm.ConfigError, match="would go on with") as refused:
            rlm.RLM(model=MODEL).resume(name)
        assert openai.base_url in str(refused.value) and other.base_url in refused.value.hint and not other.requests
        assert rlm.RLM(model=MODEL, base_url=other.base_url).resume(name).response == "from the other"


def test_a_resume_that_lacks_the_address_names_it(openai: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    address = openai.base_url
    name = forget_the_last(run(openai, "ok", model="my-own-model", base_url=address).log, 2)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(rlm.ConfigError, match=f"recorded with {address}") as refused:
        rlm.RLM().resume(name)
    assert refused.value.hint == f"if it is to go on there: --base-url {address}"
    assert rlm.RLM(base_url=address).resume(name).response == "ok"


def test_a_run_goes_on_with_its_schema_and_not_without_its_tools(openai: Server) -> None:
    price = rlm.Tool("price", "a price", {"type": "object", "properties": {}}, lambda: 3)
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    first = run(openai, '{"n": 1}', tools=[price], schema=schema)
    name = forget_the_last(first.log, 2)
    with pytest.raises(rlm.ConfigError, match="'price'"):
        rlm.RLM(model=MODEL).resume(name)
    openai.script = answer_with("no JSON", '{"n": 2}')
    assert rlm.RLM(model=MODEL, tools=[price]).resume(name).value == {"n": 2}


def test_a_model_without_tool_calling_and_its_instructions_are_resumed() -> None:
    refusal = BackendError("no tools here", code="no_tools")
    first = Scripted(refusal, said("```python\nx = 1\n```"), said("```python\nFINAL(x)\n```"))
    with rlm.RLM(backend=first, config=False) as runtime:
        result = runtime.completion("go", system="Speak LATIN.")
    assert result.value == 1
    again = Scripted(refusal, said("x"))
    with rlm.RLM(backend=again, config=False) as runtime:
        assert runtime.resume(forget_the_last(result.log, 5)).response == "x"
    assert "LATIN" in again.seen[-1][0]["content"]


def test_a_tool_that_failed_is_not_called_again(openai: Server) -> None:
    asked: list[str] = []

    @rlm.tool
    def pay(name: str) -> str:
        """Pay somebody."""
        asked.append(name)
        raise ValueError("no money")

    source = "try: pay(name='ann')\nexcept ValueError as e: print('failed:', e)"
    result = run(openai, code(source), "done", tools=[pay])
    rlm.RLM(model=MODEL, tools=[pay]).resume(forget_the_last(result.log, 2))
    replayed = rlm.RLM(model=MODEL, tools=[pay]).replay(result.trajectory_id)
    assert (asked, replayed.divergence) == (["ann"], [])


def test_an_environment_that_starts_while_the_run_is_stopped_is_closed() -> None:
    starting, stopped = threading.Event(), threading.Event()
    boxes: list[rlm_sandbox.LocalSandbox] = []

    def slow() -> rlm_sandbox.LocalSandbox:
        starting.set()
        stopped.wait(30)
        boxes.append(rlm_sandbox.LocalSandbox())
        return boxes[0]

    runtime = rlm.RLM(backend=Scripted(said(run="1")), environment=slow, config=False)

    def complete() -> None:
        with pytest.raises(rlm.RLMError, match="stopped"):
            runtime.completion("go")

    asking = threading.Thread(target=complete)
    asking.start()
    assert starting.wait(30)
    runtime.stop()
    stopped.set()
    asking.join(30)
    with pytest.raises(rlm_sandbox.SandboxError, match="closed"):
        boxes[0].execute("1")


# --- backends of the caller's own ------------------------------------------------------------------------------------


def test_what_a_backend_raises_is_an_error_of_ours() -> None:
    outage = BackendError("overloaded", code="server", status=529)
    failures = (Scripted(ValueError("a mistake")), Scripted(BackendError("cut", code="truncated"), outage))
    for backend, words in zip(failures, ("raised ValueError: a mistake", "overloaded"), strict=True):
        with pytest.raises(rlm.ProviderError, match=words):
            rlm.complete("go", backend=backend, config=False)
    results = list(rlm.batch(["a", "b"], backend=failures[0], config=False))
    assert [type(result) for result in results] == [rlm.ProviderError] * 2


def test_tool_calls_with_one_id_are_resumed_each_with_its_own_result() -> None:
    names = {"one": "ONE", "two": "TWO"}
    tools = [
        rlm.Tool(name, "Say it.", {"type": "object", "properties": {}}, lambda r=r: r) for name, r in names.items()
    ]
    calls = [{"id": "same", "name": name, "arguments": {}} for name in names]
    first = Scripted(Reply("", calls, {"input": 1, "output": 1}, "tool_calls", "of-my-own", 0.0), said("ok"))
    result = rlm.complete("go", backend=first, tools=tools, config=False)
    again = Scripted(said("ok"))
    rlm.RLM(backend=again, tools=tools, config=False).resume(forget_the_last(result.log, 2))
    for seen in (first.seen[-1], again.seen[-1]):
        assert [message["content"] for message in seen if message["role"] == "tool"] == ["ONE", "TWO"]


def test_prompts_that_are_no_list_are_refused_in_words() -> None:
    source = "try: rlm_query_batched(None)\nexcept TypeError as e: FINAL(str(e))"
    result = rlm.complete("go", backend=Scripted(said(run=source)), config=False)
    assert result.value == "rlm_query_batched takes a list of prompts, not NoneType"


def test_an_unknown_model_is_told_the_room_it_has(openai: Server) -> None:
    run(openai, "ok", model="openai/mystery", token_budget=20_000)
    run(openai, "ok", model="openai/mystery", token_budget=1_000_000)
    assert [request.max_tokens is None for request in openai.requests] == [False, True]


# --- conversations -------------------------------------------------------------------------------------------------


def test_a_later_context_is_told_to_the_model_and_resumed() -> None:
    backend = Scripted(said(run="FINAL(len(context))"))
    with rlm.RLM(backend=backend, config=False, persistent=True) as session:
        values = [session.completion(f"q{size}", "x" * size).value for size in (10, 999)]
        log = Path(str(rlm.last_result().log))  # type: ignore[union-attr]
    assert values == [10, 999]
    assert "999 characters" in backend.seen[1][-1]["content"]
    starts = [event for event in rlm.read_journal(str(log)) if event["event"] == "start"]
    assert [start["context"]["size"] for start in starts] == [10, 999]
    name = forget_the_last(log, 3)
    with rlm.RLM(backend=Scripted(said(run="FINAL(len(context))")), config=False, persistent=True) as session:
        assert session.resume(name).value == 999


def test_a_conversation_whose_environment_could_not_start_begins_anew(workspace: Path) -> None:
    failures = [rlm_sandbox.SandboxError("not there yet")]

    def box() -> rlm_sandbox.LocalSandbox:
        if failures:
            raise failures.pop()
        return rlm_sandbox.LocalSandbox()

    backend = Scripted(said(run="FINAL(2)"))
    with rlm.RLM(backend=backend, environment=box, persistent=True, config=False) as session:
        with pytest.raises(rlm.SandboxError, match="not there yet"):
            session.completion("one")
        assert session.completion("two").value == 2


def test_a_resumed_conversation_takes_the_place_of_the_one_before(workspace: Path) -> None:
    boxes: list[rlm_sandbox.LocalSandbox] = []

    def box() -> rlm_sandbox.LocalSandbox:
        boxes.append(rlm_sandbox.LocalSandbox())
        return boxes[-1]

    backend = Scripted(said("ok"))
    earlier = rlm.complete("go", backend=backend, config=False)
    with rlm.RLM(backend=backend, environment=box, persistent=True, config=False) as session:
        session.completion("one")
        assert session.resume(forget_the_last(earlier.log, 2)).response == "ok"
        assert session.completion("two").trajectory_id == earlier.trajectory_id
        with pytest.raises(rlm_sandbox.SandboxError, match="closed"):
            boxes[0].execute("1")


def test_a_summary_keeps_the_question_that_is_being_answered() -> None:
    backend = Scripted(said("long " * 2000), said("SUMMARY"), said("ok"), window=3000)
    with rlm.RLM(backend=backend, config=False, persistent=True) as session:
        session.completion("first question")
        assert session.completion("second question").response == "ok"
    asked = [message["content"] for message in backend.seen[-1] if message["role"] == "user"]
    assert asked == ["first question", "[the work so far, summed up]\nSUMMARY", "second question"]


def test_a_conversation_answers_one_prompt_after_the_other() -> None:
    inside: list[str] = []

    def ask_again(event: dict[str, Any]) -> None:
        if event["event"] == "call" and not inside:
            with pytest.raises(rlm.ConfigError, match="answering another prompt"):
                session.completion("meanwhile")
            inside.append("refused")

    with rlm.RLM(backend=Scripted("ok"), config=False, persistent=True, on_event=ask_again) as session:
        session.completion("first", system="Be brief.")
        with pytest.raises(rlm.ConfigError, match="first prompt"):
            session.completion("second", system="Be long.")
        assert [str(result) for result in session.batch(["a", "b"])] == ["ok", "ok"]
    assert "refused" in inside


# --- the ledger ----------------------------------------------------------------------------------------------------


def test_nobody_can_reserve_between_the_end_of_a_call_and_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = rlm.Ledger(rlm.Options(token_budget=2000))
    ticket = ledger.reserve(100, 900, lambda *tokens: None)
    enter, free = ledger._enter, []

    def entering(*what: Any) -> None:
        trying = threading.Thread(target=lambda: free.append(ledger.changed.acquire(blocking=False)))
        trying.start()
        trying.join()
        enter(*what)

    monkeypatch.setattr(ledger, "_enter", entering)
    ledger.settle(ticket, {"input": 100, "output": 900}, None, 0.0)
    assert (free, ledger.tokens) == ([False], 1000)


def test_the_limits_of_a_batch_are_seen_inside_its_items() -> None:
    pool = rlm.Ledger(rlm.Options(timeout_seconds=5, token_budget=1000))
    pool.spend({"input": 900, "output": 0}, None)
    item = rlm.Ledger(rlm.Options(timeout_seconds=500, token_budget=1000), pool)
    assert item.deadline == pool.deadline
    assert item.left()["tokens"] == 100 and item.nearly_used()[0] == "100 tokens"


def test_a_queued_call_whose_turn_has_come_is_not_counted_twice() -> None:
    ledger = rlm.Ledger(rlm.Options(token_budget=20_000))
    with ledger.queue(10) as begun:
        begun()
        ticket = ledger.reserve(0, 8000, lambda *tokens: None)
    assert ticket.output == 2000


def test_a_mention_of_final_in_prose_is_no_answer() -> None:
    assert rlm.final_call("The functions are:\nFINAL(value) ends the run\nand others (see the docs)") is None
    assert rlm.final_call("FINAL(it is (nearly) done)") == "FINAL(it is (nearly) done)"


# --- tools that misbehave, and what a newcomer does ----------------------------------------------------------------


@pytest.mark.parametrize("source", [None, "print(wait())"], ids=["called by the model", "from code"])
def test_a_tool_that_hangs_does_not_outlast_the_runs_time(openai: Server, source: str | None) -> None:
    hanging = threading.Event()

    @rlm.tool
    def wait() -> str:
        """Wait."""
        hanging.wait(60)
        return "late"

    turn = code(source) if source else Turn("", tool_calls=[call("wait")])
    with pytest.raises(rlm.TimeoutExceeded):
        run(openai, turn, "never", tools=[wait], timeout_seconds=1)
    hanging.set()


@pytest.mark.parametrize("source", [None, "try: leave()\nexcept Exception as e: print(e)"], ids=["called", "from code"])
def test_a_tool_that_would_end_the_process_has_failed(openai: Server, source: str | None) -> None:
    @rlm.tool
    def leave() -> str:
        """Leave."""
        sys.exit(3)

    turn = code(source) if source else Turn("", tool_calls=[call("leave")])
    assert "the tool called sys.exit(3)" in run(openai, turn, lambda request: request.last, tools=[leave]).response


def test_a_folders_images_are_not_shown_unless_they_are_named(openai: Server, workspace: Path) -> None:
    (workspace / "docs").mkdir()
    (workspace / "docs" / "a.md").write_text("text")
    shutil.copy(ROOT / "docs" / "img" / "tree.png", workspace / "docs" / "tree.png")
    folder = rlm.read_context(["docs"])
    assert (list(folder.value), folder.images) == (["docs/a.md"], [])
    assert "left out 1 image: name each that is to be seen" in folder.notes
    named = rlm.read_context(["docs/a.md", "docs/tree.png"])
    assert (list(named.value), len(named.images)) == (["docs/a.md", "docs/tree.png"], 1)


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("a", 1), ("a\n", 1), ("a\nb", 2), ("a\nb\n", 2)])
def test_lines_are_counted_as_people_do(text: str, lines: int) -> None:
    assert f"in {lines} line{'' if lines == 1 else 's'}" in rlm.Context(text).describe()


def test_paths_are_read_and_a_files_name_is_noted(workspace: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (workspace / name).write_text(name.upper())
    assert rlm.as_context([Path("a.txt"), Path("b.txt")]).value == {"a.txt": "A.TXT", "b.txt": "B.TXT"}
    assert rlm.read_context("a.txt").value == rlm.read_context([Path("a.txt")]).value == "A.TXT"
    with pytest.warns(RuntimeWarning, match="not the file of that name: give Path"):
        text = rlm.as_context("a.txt")
    assert "a file has this name; what it holds was not given" in text.describe()


def test_a_block_that_answers_is_run_also_where_tools_are_called(openai: Server) -> None:
    result = run(openai, code("x = 20"), '```python\ny = len("ab")\nFINAL(x + y)\n```')
    assert result.value == 22


@pytest.mark.parametrize("name", ["local_memory", "docker_memory"])
def test_an_amount_of_memory_is_checked_with_the_other_options(name: str) -> None:
    with pytest.raises(rlm.ConfigError, match=rf"{name} \(argument\): 'lots' is not an amount of memory"):
        rlm.RLM(model=MODEL, **{name: "lots"})


def test_a_resumed_run_reaches_no_further_than_before(openai: Server, workspace: Path) -> None:
    (workspace / "in").mkdir()
    (workspace / "outside.txt").write_text("secret")
    name = forget_the_last(run(openai, "ok", allowed_paths=["in"]).log, 2)
    openai.script = answer_with(code("FINAL(open('outside.txt').read())"), lambda request: request.last)
    assert "FileNotFoundError" in rlm.RLM(model=MODEL).resume(name).response


def test_a_context_that_is_nested_too_deep_is_refused_before_the_run() -> None:
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(TypeError, match="nested over 100 deep"):
        rlm.complete("go", deep, backend=Scripted("never"), config=False)


def test_a_budget_error_says_what_was_needed_and_a_traceback_what_to_do() -> None:
    with pytest.raises(rlm.TokenBudgetExhausted, match=r"0 of 100 tokens are used, and it needs about \d+"):
        rlm.complete("go", backend=Scripted("never"), token_budget=100, config=False)
    error = rlm.ConfigError("no key", hint="export OPENAI_API_KEY=…")
    assert getattr(error, "__notes__", ["next: export OPENAI_API_KEY=…"]) == ["next: export OPENAI_API_KEY=…"]
    assert str(pickle.loads(pickle.dumps(error))) == "no key"


def test_a_replay_has_the_limits_that_a_resume_was_given(openai: Server) -> None:
    with pytest.raises(rlm.MaxIterationsExceeded) as stopped:
        run(openai, code("x = 1"), code("FINAL(x)"), max_iterations=1)
    name = str(stopped.value.trajectory_id)
    assert rlm.RLM(model=MODEL).resume(name, max_iterations=3).value == 1
    assert rlm.RLM(model=MODEL).replay(name).result.value == 1


def test_the_newest_run_that_can_go_on_is_not_a_stream(openai: Server) -> None:
    name = forget_the_last(run(openai, "ok").log, 2)
    openai.script = lambda request: scripted.error(400, "no")
    with pytest.raises(rlm.ProviderError):
        list(rlm.stream("go", model=MODEL))
    openai.script = lambda request: "resumed"
    assert rlm.RLM(model=MODEL).resume().trajectory_id == name
