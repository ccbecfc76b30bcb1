"""A short context goes to the model in one plain call; what that does not answer goes on in the loop."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scripted import Request, Server, Turn, answer_with, code, error

import rlm
import rlm_viz

MODEL = "gpt-4o-mini"
PIXEL = "data:image/png;base64," + base64.b64encode(bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001")).decode()


def journal() -> list[dict[str, Any]]:
    (path,) = Path("logs").glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_a_short_context_is_one_plain_call(openai: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm.rlm_sandbox.LocalSandbox, "__init__", lambda *a, **k: pytest.fail("a REPL was started"))
    openai.script = answer_with("42 EUR")
    result = rlm.complete("What is the fee?", "The fee is 42 EUR.", model=MODEL, plain_below=100, system="Be terse.")
    (request,) = openai.requests
    assert "tools" not in request.body
    assert [message["role"] for message in request.body["messages"]] == ["system", "user"]
    assert request.body["messages"][0]["content"].endswith("Be terse.")
    assert request.body["messages"][1]["content"] == "What is the fee?\n\nThe fee is 42 EUR."
    assert (result.response, result.status, result.total_calls) == ("42 EUR", "answered", 1)
    events = journal()
    assert names(events) == ["start", "call", "end"]
    assert (events[0]["protocol"], events[0]["tools"], events[0]["context"]["size"]) == ("plain", [], 18)
    assert events[2]["response"] == "42 EUR"


@pytest.mark.parametrize(
    ("below", "context", "is_plain"),
    [
        (None, "short", False),
        (0, "short", False),
        (100, "x y " * 1000, False),
        (2_000, "x y " * 1000, True),
        ("auto", "x y " * 900, True),
        ("auto", "x y " * 1_100, False),
        (10_000_000, "x y " * 300_000, False),  # beyond the model's window
        (100, None, False),
        (100, b"\0\1", False),
        (100, ["one", 2], True),
    ],
)
def test_what_is_plain(openai: Server, below: Any, context: Any, is_plain: bool) -> None:
    openai.script = lambda request: "done" if "tools" not in request.body else code("FINAL(len(context or ''))")
    rlm.complete("How many?", context, model=MODEL, plain_below=below)
    assert (journal()[0]["protocol"] == "plain") is is_plain


def test_files_stand_under_their_names_and_images_go_along(openai: Server, workspace: Path) -> None:
    openai.script = answer_with("fine")
    rlm.complete("Compare.", {"a.txt": "one", "b.txt": "two", "c.png": PIXEL}, model=MODEL, plain_below=5_000)
    text, image = openai.requests[0].body["messages"][1]["content"]
    assert text["text"] == "Compare.\n\na.txt:\none\n\nb.txt:\ntwo" and image["type"] == "image_url"


def test_tools_of_the_caller_and_conversations_are_for_the_loop(openai: Server) -> None:
    @rlm.tool
    def price(item: str) -> float:
        """The price."""
        return 1.0

    openai.script = lambda request: "done" if "tools" not in request.body else code("FINAL('loop')")
    assert str(rlm.complete("?", "short", model=MODEL, plain_below=100, tools=[price])) == "loop"
    with rlm.RLM(model=MODEL, plain_below=100, persistent=True) as talk:
        assert str(talk.completion("?", "short")) == "loop"


SCHEMA = {"type": "object", "properties": {"fee": {"type": "integer"}}, "required": ["fee"]}


def test_a_typed_answer_is_validated(openai: Server) -> None:
    openai.script = answer_with('{"fee": 42}')
    result = rlm.complete("Fee?", "42 EUR", model=MODEL, plain_below=100, schema=SCHEMA)
    assert (result.value, result.total_calls) == ({"fee": 42}, 1)
    assert openai.requests[0].body["response_format"]["type"] == "json_schema"


def fails_first(bad: Any) -> Any:
    """A model whose plain answer is no use, and which then works by code."""

    def script(request: Request) -> Any:
        return code("FINAL({'fee': int(context.split()[0])})") if "tools" in request.body else bad

    return script


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("no idea", "it does not fit the schema"),
        ("", "it was empty"),
        (Turn('{"fee": 4', finish="length"), "it was cut off"),
        (code("FINAL({'fee': 1})"), "it asked for a tool"),
    ],
    ids=["schema", "empty", "cut", "tool"],
)
def test_what_is_no_answer_goes_on_in_the_loop(openai: Server, bad: Any, said: str) -> None:
    openai.script = fails_first(bad)
    with rlm.RLM(model=MODEL, plain_below=100, schema=SCHEMA) as runtime:
        result = runtime.completion("Fee?", "42 EUR")
        assert (result.value, result.total_calls) == ({"fee": 42}, 2)
        messages = openai.requests[1].body["messages"]
        assert said in messages[-1]["content"] and "execute_code" in messages[0]["content"]
        replayed = runtime.replay(result.trajectory_id)
    assert (replayed.result.value, replayed.divergence) == ({"fee": 42}, [])
    assert rlm_viz.totals(journal())["status"] == "answered"
    assert "Fee?" in rlm_viz.render(journal())


def test_a_message_that_the_model_finds_too_long_goes_on_in_the_loop(openai: Server) -> None:
    too_long = error(400, "too long", code="context_length_exceeded")
    openai.script = lambda request: code("FINAL(len(context))") if "tools" in request.body else too_long
    with rlm.RLM(model=MODEL, plain_below=1_000) as runtime:
        result = runtime.completion("How long?", "x" * 300)
        assert (result.response, result.total_calls) == ("300", 1)
        assert "x" * 300 in openai.requests[1].body["messages"][1]["content"]  # it is short enough to be shown
        replayed = runtime.replay(result.trajectory_id)
    assert (replayed.result.response, replayed.divergence) == ("300", [])


def test_limits_hold_and_a_stopped_call_is_resumed_plainly(openai: Server) -> None:
    openai.script = answer_with("42")
    with rlm.RLM(model=MODEL, plain_below=100) as runtime:
        with pytest.raises(rlm.TokenBudgetExhausted) as caught:
            rlm.complete("Fee?", "42 EUR", model=MODEL, plain_below=100, token_budget=10)
        assert openai.requests == []
        result = runtime.resume(str(caught.value.trajectory_id), token_budget=10_000)
    assert (result.response, result.total_calls, len(openai.requests)) == ("42", 1, 1)
    assert "tools" not in openai.requests[0].body


def test_the_command_line_has_it(openai: Server, workspace: Path) -> None:
    openai.script = answer_with("42")
    (workspace / "a.txt").write_text("42 EUR")
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
    run = [sys.executable, "-m", "rlm"]
    ran = subprocess.run([*run, "Fee?", "-c", "a.txt", "--plain-below", "auto", "--json"], **how)
    assert json.loads(ran.stdout)["response"] == "42" and "tools" not in openai.requests[0].body
    identity = json.loads(ran.stdout)["trajectory_id"]
    ran = subprocess.run([*run, "replay", identity], **how)
    assert (ran.returncode, ran.stdout) == (0, "42\n"), ran.stderr
    assert subprocess.run([*run, "visualize", identity, "-o", "page.html"], **how).returncode == 0
    ran = subprocess.run([*run, "Fee?", "--plain-below", "-1"], **how)
    assert ran.returncode == 2 and "plain_below" in ran.stderr
    ran = subprocess.run([*run, "Fee?", "--plain-below", "soon"], **how)
    assert ran.returncode == 2 and "'soon' is not a whole number or auto" in ran.stderr


def test_a_project_that_is_not_trusted_may_not_route(workspace: Path) -> None:
    (workspace / "rlm.toml").write_text('[rlm]\nplain_below = "auto"\n')
    with pytest.raises(rlm.ConfigError, match="'plain_below' is not taken from a project file"):
        rlm.RLM()


@pytest.mark.parametrize(("prompt", "depth", "offered"), [("full", 4, True), ("full", 0, False), ("small", 4, False)])
def test_recursion_is_offered_where_the_model_gains_by_it(
    openai: Server, prompt: str, depth: int, offered: bool
) -> None:
    openai.script = answer_with("done")
    rlm.RLM(model=MODEL, prompt=prompt, max_depth=depth).completion("?")
    assert ("rlm_query" in openai.requests[0].system) is offered
