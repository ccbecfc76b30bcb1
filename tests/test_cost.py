"""What a batch will cost at most, who is asked before it is sent, and what the journals say runs have cost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from scripted import Request, Server, answer_with, code
from test_cli import Terminal

import rlm
import rlm_viz

MODEL = "gpt-4o-mini"  # 0.15 in, 0.60 out, USD per million
BATCH = code("FINAL(llm_query_batched([f'item {n}' for n in range(4)]))")
MAP = code("FINAL(map_query('Is it so?', ['a', 'b'], ['yes', 'no']))")
CHILD = code("FINAL(rlm_query('one'))")
CHILDREN = code("FINAL(rlm_query_batched(['one', 'two']))")
MOST = 4 * 4096 * 100 / 1e6  # dollars of output that the batch may cost


def runtime(**options: Any) -> rlm.RLM:
    return rlm.RLM(**{"model": MODEL, "prices": {MODEL: [1.0, 100.0]}, **options})


def journals() -> list[list[dict[str, Any]]]:
    return [
        [json.loads(line) for line in path.read_text().splitlines()] for path in sorted(Path("logs").glob("*.jsonl"))
    ]


def subcalls(server: Server) -> int:
    return sum(not request.system for request in server.requests)


# --- the forecast -------------------------------------------------------------------------------------------------


def test_the_ledger_says_what_calls_cost_at_most() -> None:
    def price(size: int, most: int) -> float | None:
        return size * 0.001 + most * 0.01

    def ledger(**options: Any) -> rlm.Ledger:
        return rlm.Ledger(rlm.Options(**options))

    assert ledger().forecast([(100, 10), (200, 10)], price) == pytest.approx(0.5)
    assert ledger(cost_budget_usd=0.2).forecast([(100, 10), (200, 10)], price) == pytest.approx(0.2)
    assert ledger().forecast([(100, 10)], lambda size, most: None) is None


@pytest.mark.parametrize(
    ("cell", "what", "calls"),
    [
        (BATCH, f"sub-calls of {MODEL}", 4),
        (MAP, f"sub-calls of {MODEL}", 1),
        (CHILDREN, f"children of {MODEL}", 2),
        (CHILD, f"children of {MODEL}", 1),
    ],
    ids=["llm_query_batched", "map_query", "rlm_query_batched", "rlm_query"],
)
def test_each_batch_or_child_is_asked_about_once_before_it_is_sent(
    openai: Server, cell: Any, what: str, calls: int
) -> None:
    asked: list[rlm.Forecast] = []

    def confirm(forecast: rlm.Forecast) -> bool:
        assert len(openai.requests) == 1
        asked.append(forecast)
        return True

    def script(request: Request) -> Any:
        if request.prompt in ("one", "two"):
            return "child"
        return cell if request.system else '{"1": "yes", "2": "no"}'

    openai.script = script
    with runtime(confirm_above=0.01, on_confirm=confirm) as made:
        made.completion("?")
    ((number, of, cost),) = asked
    assert (number, of) == (calls, what) and cost is not None
    limit = rlm.Options.token_budget * 100 / 1e6  # which is all that children have
    assert calls * 4096 * 100 / 1e6 < cost <= limit if "sub" in what else 0.99 * limit < cost <= limit


def test_what_the_forecast_says_bounds_what_is_paid(openai: Server) -> None:
    asked: list[rlm.Forecast] = []
    openai.script = answer_with(BATCH, sub="words " * 2_000)
    with runtime(confirm_above=0, on_confirm=lambda forecast: not asked.append(forecast)) as made:
        made.completion("?")
    paid = sum(e["cost_usd"] for e in journals()[0] if e["event"] == "call" and e["kind"] == "sub")
    assert 0 < paid <= asked[0].cost_usd < MOST + 0.1


def test_a_cheap_batch_and_a_single_call_are_not_asked_about(openai: Server) -> None:
    openai.script = answer_with(BATCH)
    with runtime(confirm_above=10) as made:
        assert made.completion("?").value == ["sub-answer"] * 4
    openai.script = answer_with(code("FINAL(llm_query('one'))"))
    with runtime(confirm_above=0.0001) as made:
        assert made.completion("?").value == "sub-answer"


def test_what_nobody_confirms_is_not_sent_and_is_resumed_with_a_higher_value(openai: Server) -> None:
    openai.script = answer_with(BATCH)
    with runtime(confirm_above=0.5) as made:
        with pytest.raises(rlm.LimitExceeded, match=r"4 sub-calls of gpt-4o-mini may cost up to \$1\.63") as caught:
            made.completion("?")
        error = caught.value
        assert (error.option, error.needed, subcalls(openai)) == ("confirm_above", 1.64, 0)
        assert error.result.status == "partial" and error.result.total_calls == 1
        result = made.resume(error.trajectory_id, confirm_above=error.needed)
    assert (result.value, result.total_calls) == (["sub-answer"] * 4, 5)


def test_a_price_that_is_not_known_is_asked_about(openai: Server) -> None:
    asked: list[str] = []
    openai.script = answer_with(code("FINAL(llm_query_batched(['a', 'b'], model='openai:unknown-1'))"))
    made = runtime(confirm_above=1_000, on_confirm=lambda forecast: bool(asked.append(str(forecast))))
    with made, pytest.raises(rlm.LimitExceeded) as caught:
        made.completion("?")
    assert asked == ["2 sub-calls of unknown-1 are of unknown price"] and subcalls(openai) == 0
    assert caught.value.needed is None and "--prices" in caught.value.hint


def test_a_callback_that_raises_stops_the_run(openai: Server) -> None:
    openai.script = answer_with(BATCH)
    made = runtime(confirm_above=0, on_confirm=lambda forecast: 1 / 0)
    with made, pytest.raises(rlm.RLMError, match="on_confirm raised ZeroDivisionError"):
        made.completion("?")
    assert subcalls(openai) == 0


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_exit_of_the_callback_ends_the_run_and_not_just_the_cell(openai: Server, stop: BaseException) -> None:
    def confirm(forecast: rlm.Forecast) -> bool:
        raise stop

    guarded = code("try:\n    llm_query_batched(['a', 'b'])\nexcept BaseException:\n    llm_query('c')")
    openai.script = answer_with(guarded, "done")
    with runtime(confirm_above=0, on_confirm=confirm) as made, pytest.raises(type(stop)) as caught:
        made.completion("?")
    assert caught.value is stop and len(openai.requests) == 1
    assert journals()[0][-1]["status"] == "interrupted"
    result = rlm.RLM(model=MODEL, confirm_above=100).resume()
    assert (result.response, subcalls(openai)) == ("done", 2)


def test_an_interrupt_in_a_listener_ends_the_run(openai: Server) -> None:
    def listen(event: dict[str, Any]) -> None:
        if event.get("kind") == "sub":
            raise KeyboardInterrupt

    openai.script = answer_with(code("llm_query('a')"), code("llm_query('b')"))
    with runtime(on_event=listen) as made, pytest.raises(KeyboardInterrupt):
        made.completion("?")
    assert len(openai.requests) == 2


@pytest.mark.parametrize("answer", ["no", "yes", 1, [False], None, False], ids=repr)
def test_only_true_confirms(openai: Server, answer: Any) -> None:
    openai.script = answer_with(BATCH)
    with runtime(confirm_above=0, on_confirm=lambda forecast: answer) as made, pytest.raises(rlm.LimitExceeded):
        made.completion("?")
    assert subcalls(openai) == 0


@pytest.mark.parametrize(
    ("recorded", "configured", "given", "effective"),
    [(1e9, 0.5, None, 0.5), (0.1, 0.5, None, 0.1), (1e9, None, None, 1e9), (None, 0.5, None, 0.5), (1, 0.5, 7, 7)],
)
def test_a_resumed_run_asks_above_the_smaller_value(
    workspace: Path, recorded: Any, configured: Any, given: Any, effective: float
) -> None:
    config = workspace / "mine.toml"
    config.write_text("[rlm]\n" + (f"confirm_above = {configured}\n" if configured else ""))
    start = {"event": "start", "node": "n0", "kind": "root", "prompt": "?", "trajectory_id": "a1", "model": MODEL}
    recording = rlm.JournalIndex([{**start, "confirm_above": recorded}])
    how: dict[str, Any] = {} if given is None else {"confirm_above": given}
    path = str(workspace / "a1.jsonl")
    assert rlm.RLM(config=str(config))._as_recorded(recording, how, path).options.confirm_above == effective
    assert rlm.RLM(config=str(config), **how)._as_recorded(recording, {}, path).options.confirm_above == effective


def test_what_one_call_may_cost_is_said_in_the_singular() -> None:
    assert str(rlm.Forecast(1, f"children of {MODEL}", 0.5)) == f"1 child of {MODEL} may cost up to $0.5000"
    assert str(rlm.Forecast(1, "sub-calls of unknown-1", None)) == "1 sub-call of unknown-1 is of unknown price"


def test_questions_come_one_at_a_time(openai: Server) -> None:
    """Two children with a batch each: while one is asked about, the other waits, and a no stops both."""
    busy = threading.Lock()
    asked: list[rlm.Forecast] = []

    def confirm(forecast: rlm.Forecast) -> bool:
        assert busy.acquire(blocking=False)
        asked.append(forecast)
        busy.release()
        return "children" in forecast.what

    openai.script = lambda request: CHILDREN if request.prompt == "?" else BATCH
    with runtime(confirm_above=0, on_confirm=confirm) as made, pytest.raises(rlm.LimitExceeded):
        made.completion("?")
    assert ([forecast.calls for forecast in asked], subcalls(openai)) == ([2, 4], 0)


def test_a_batch_of_runs_is_asked_about_as_a_whole(openai: Server) -> None:
    openai.script = answer_with(BATCH)
    asked: list[rlm.Forecast] = []
    with runtime(confirm_above=1, cost_budget_usd=5, on_confirm=lambda f: not asked.append(f)) as made:
        assert [r.value for r in made.batch(["?", "!"])] == [["sub-answer"] * 4] * 2
        assert asked == [rlm.Forecast(2, f"runs of {MODEL}", 10)]
        list(made.batch(["?", "!"], one_ledger=True))
        assert asked[1].cost_usd == 5
    with runtime(confirm_above=1) as made, pytest.raises(rlm.LimitExceeded, match="2 runs of"):
        list(made.batch(["?", "!"]))


# --- on the command line ------------------------------------------------------------------------------------------


ASKS = ("--confirm-above", "0.50", "--prices", json.dumps({MODEL: [1.0, 100.0]}))


def command(*arguments: str) -> tuple[int, str, str]:
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
    ran = subprocess.run([sys.executable, "-m", "rlm", *arguments], **how)
    return ran.returncode, ran.stdout, ran.stderr


def test_without_a_terminal_it_is_an_error_that_names_the_way_on(openai: Server) -> None:
    openai.script = answer_with(BATCH)
    status, out, err = command("Why?", "-q", *ASKS)
    assert (status, out, subcalls(openai)) == (3, "", 0)
    assert "4 sub-calls of gpt-4o-mini may cost up to $1.63" in err
    following = err.rpartition("next: rlm ")[2].split()
    assert following[0] == "resume" and following[2:4] == ["--confirm-above", "1.64"]
    status, out, err = command("resume", following[1], "--confirm-above", "1.64", *ASKS[2:])
    assert (status, json.loads(out)) == (0, ["sub-answer"] * 4)


@pytest.mark.parametrize(("typed", "status"), [("y\n", 0), ("yes\n", 0), ("n\n", 3), ("\n", 3), ("\x04", 3)])
def test_on_a_terminal_it_asks(openai: Server, typed: str, status: int) -> None:
    openai.script = answer_with(BATCH)
    terminal = Terminal("Why?", *ASKS)
    terminal.wait_for(r"may cost up to \$1\.63\d\d\. Go on\? \[y/N\]")
    terminal.type(typed)
    assert (terminal.finish(), subcalls(openai)) == (status, 0 if status else 4)


def test_ctrl_c_at_the_question_is_a_no(openai: Server) -> None:
    openai.script = answer_with(BATCH)
    terminal = Terminal("Why?", *ASKS)
    terminal.wait_for(r"Go on\?")
    os.kill(terminal.process.pid, signal.SIGINT)
    assert (terminal.finish(), subcalls(openai)) == (130, 0)
    assert "rlm resume" in terminal.shown


def test_a_batch_file_is_asked_about_before_its_first_row(openai: Server, workspace: Path) -> None:
    openai.script = answer_with("done")
    (workspace / "rows.jsonl").write_text('"one"\n"two"\n')
    status, _out, err = command("batch", "rows.jsonl", "-o", "out.jsonl", "-q", *ASKS)
    assert (status, openai.requests) == (3, []) and "2 runs of gpt-4o-mini may cost up to $200.00" in err
    terminal = Terminal("batch", "rows.jsonl", "-o", "out.jsonl", "--cost-budget", "1", *ASKS)
    terminal.wait_for(r"2 runs of gpt-4o-mini may cost up to \$2\.0000\. Go on\?")
    terminal.type("y\n")
    assert terminal.finish() == 0 and len(Path("out.jsonl").read_text().splitlines()) == 2


def test_bad_values_and_projects_that_are_not_trusted(workspace: Path) -> None:
    assert command("Why?", "--confirm-above", "-1")[0] == 2
    assert command("Why?", "--confirm-above", "much")[0] == 2
    (workspace / "rlm.toml").write_text("[rlm]\nconfirm_above = 1000\n")
    status, _, err = command("Why?")
    assert status == 2 and "'confirm_above' is not taken from a project file" in err


# --- rlm cost -----------------------------------------------------------------------------------------------------


def test_sums_of_the_journals(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("FINAL(llm_query('a'))"))
    for _ in range(2):
        runtime(sub_model="gpt-4o").completion("?")
    paid = sum(e.get("cost_usd") or 0 for events in journals() for e in events if e["event"] == "call")
    status, out, _ = command("cost", "--json")
    sums = json.loads(out)
    assert status == 0 and sums["by"] == "model"
    assert {row["key"]: (row["runs"], row["calls"]) for row in sums["rows"]} == {MODEL: (2, 2), "gpt-4o": (2, 2)}
    assert sums["total"]["cost_usd"] == pytest.approx(paid) and sums["total"]["runs"] == 2
    tokens = [e["token_usage"] for events in journals() for e in events if e["event"] == "call"]
    assert sums["total"]["output"] == sum(usage["output"] for usage in tokens)
    (row,) = json.loads(command("cost", "--by", "project", "--json")[1])["rows"]
    assert row["key"] == str(workspace) and row["calls"] == 4
    (row,) = rlm_viz.costs(["logs"], "day")["rows"]
    assert len(row["key"]) == 10 and row["runs"] == 2


def test_the_table_has_a_total_and_shows_what_is_not_known(workspace: Path) -> None:
    Path("logs").mkdir()
    events = [
        {"event": "start", "model": "some-model", "depth": 0},
        {"event": "call", "model": "some-model", "cost_usd": 0.25, "token_usage": {"input": 1_000, "output": 20}},
        {"event": "call", "model": "other", "cost_usd": None, "token_usage": {"input": 5, "output": 5}},
    ]
    (workspace / "logs" / "a1b2c3-d4e5f6.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (workspace / "logs" / "torn.jsonl").write_text('{"event": "call"\nnonsense\n[]\n')
    status, out, err = command("cost")
    lines = out.splitlines()
    assert (status, len(lines), err) == (0, 4, "")
    assert lines[0].split() == ["model", "runs", "calls", "input", "cached", "output", "cost"]
    assert lines[1].split() == ["some-model", "1", "1", "1,000", "0", "20", "$0.25"]
    assert lines[2].split() == ["other", "1", "1", "5", "0", "5", "?"]
    assert lines[3].split() == ["total", "1", "2", "1,005", "0", "25", "$0.25", "+", "?"]


def test_no_journals_and_wrong_words_are_said(workspace: Path) -> None:
    assert command("cost") == (0, "", "no calls in ./logs\n")
    status, _, err = command("cost", "nowhere")
    assert status == 2 and "there is no folder 'nowhere'" in err
    assert command("cost", "--by", "colour")[0] == 2
