"""Tool calls that models write as text: every form is run as the call that it is, and what is no call is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import scripted
from scripted import Request, Server, Turn, call, code

import rlm

MODEL = "gpt-4o-mini"
KNOWN = frozenset({"execute_code", "file_read", "file_search", "llm_query", "rlm_query", "FINAL", "budget"})
CODE = "print(len(context))"
TWO_LINES = 'x = "a"\nprint(x, len(context))'


def as_json(name: str = "execute_code", source: str = CODE, key: str = "arguments", **more: Any) -> str:
    return json.dumps({"name": name, key: {"code": source}, **more})


# (name, the reply, the code that it asks to be run)
FORMS: list[tuple[str, str, str]] = [
    ("JSON", as_json(), CODE),
    ("JSON in a fence", f"```json\n{as_json()}\n```", CODE),
    ("JSON in a bare fence", f"```\n{as_json()}\n```", CODE),
    ("JSON in an unclosed fence", f"```json\n{as_json()}", CODE),
    ("JSON among prose", f"I will count first.\n\n{as_json()}\n\nThen I answer.", CODE),
    ("arguments first", json.dumps({"arguments": {"code": CODE}, "name": "execute_code"}), CODE),
    ("parameters", as_json(key="parameters"), CODE),
    ("input", as_json(key="input"), CODE),
    ("args", as_json(key="args"), CODE),
    ("function", json.dumps({"function": "execute_code", "arguments": {"code": CODE}}), CODE),
    ("tool", json.dumps({"tool": "execute_code", "input": {"code": CODE}}), CODE),
    ("tool_name", json.dumps({"tool_name": "execute_code", "parameters": {"code": CODE}}), CODE),
    ("action", json.dumps({"action": "execute_code", "action_input": {"code": CODE}}), CODE),
    (
        "the wire's own form",
        json.dumps(
            {"id": "c", "type": "function", "function": {"name": "execute_code", "arguments": as_json()[:0] + "{}"}}
        ).replace('"{}"', json.dumps(json.dumps({"code": CODE}))),
        CODE,
    ),
    ("tool_calls", json.dumps({"tool_calls": [{"name": "execute_code", "arguments": {"code": CODE}}]}), CODE),
    (
        "tool_uses",
        json.dumps({"tool_uses": [{"recipient_name": "functions.execute_code", "parameters": {"code": CODE}}]}),
        CODE,
    ),
    ("arguments as a string", json.dumps({"name": "execute_code", "arguments": json.dumps({"code": CODE})}), CODE),
    ("the name as the key", json.dumps({"execute_code": {"code": CODE}}), CODE),
    ("the bare arguments", f"```json\n{json.dumps({'code': CODE})}\n```", CODE),
    (
        "raw line breaks",
        '{"name": "execute_code", "arguments": {"code": "a = context\nprint(a)"}}',
        "a = context\nprint(a)",
    ),
    ("Python's quotes", "{'name': 'execute_code', 'arguments': {'code': 'print(context)'}}", "print(context)"),
    ("a missing bracket", as_json()[:-1], CODE),
    (
        "unescaped quotes",
        '{"name": "execute_code", "arguments": {"code": "print(context.count("x"))"}}',
        'print(context.count("x"))',
    ),
    ("tool_call tags", f"<tool_call>\n{as_json()}\n</tool_call>", CODE),
    ("an unclosed tool_call tag", f"<tool_call>\n{as_json()}", CODE),
    ("tools tags", f"<tools>\n{as_json()}\n</tools>", CODE),
    ("function_call tags", f"<function_call>{as_json()}</function_call>", CODE),
    ("call_record tags", f"<call_record>{as_json()}</call_record>", CODE),
    ("function= with JSON", f"<function=execute_code>{json.dumps({'code': CODE})}</function>", CODE),
    (
        "function= with parameters",
        f"<tool_call>\n<function=execute_code>\n<parameter=code>\n{TWO_LINES}\n</parameter>\n</function>\n</tool_call>",
        TWO_LINES,
    ),
    (
        "invoke",
        f'<function_calls>\n<invoke name="execute_code">\n<parameter name="code">{TWO_LINES}</parameter>\n</invoke>\n'
        "</function_calls>",
        TWO_LINES,
    ),
    ("TOOL_CALLS with a list", f"[TOOL_CALLS][{as_json()}]", CODE),
    ("TOOL_CALLS with ARGS", f"[TOOL_CALLS]execute_code[ARGS]{json.dumps({'code': CODE})}", CODE),
    ("TOOL_CALLS with the name", f"[TOOL_CALLS]execute_code{json.dumps({'code': CODE})}", CODE),
    (
        "harmony",
        "<|channel|>analysis<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.execute_code "
        f"<|constrain|>json<|message|>{json.dumps({'code': CODE})}<|call|>",
        CODE,
    ),
    ("harmony's python", f"<|channel|>analysis to=python code<|message|>{TWO_LINES}<|call|>", TWO_LINES),
    (
        "DeepSeek V3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>execute_code\n```json\n"
        f"{json.dumps({'code': CODE})}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        CODE,
    ),
    (
        "DeepSeek V3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>execute_code<｜tool▁sep｜>"
        f"{json.dumps({'code': CODE})}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        CODE,
    ),
    (
        "DeepSeek's DSML",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="execute_code">\n<｜DSML｜parameter name="code" string="true">'
        f"{TWO_LINES}</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        TWO_LINES,
    ),
    (
        "Kimi",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.execute_code:0<|tool_call_argument_begin|>"
        f"{json.dumps({'code': CODE})}<|tool_call_end|><|tool_calls_section_end|>",
        CODE,
    ),
    (
        "GLM",
        f"<tool_call>execute_code\n<arg_key>code</arg_key>\n<arg_value>{TWO_LINES}</arg_value>\n</tool_call>",
        TWO_LINES,
    ),
    ("python_tag with code", f"<|python_tag|>{TWO_LINES}<|eom_id|>", TWO_LINES),
    ("python_tag with JSON", f"<|python_tag|>{as_json(key='parameters')}", CODE),
    ("python_tag with a call", f'<|python_tag|>execute_code.call(code="{CODE}")', CODE),
    (
        "Cohere",
        f"<|START_ACTION|>[{json.dumps({'tool_name': 'execute_code', 'parameters': {'code': CODE}})}]<|END_ACTION|>",
        CODE,
    ),
    ("Granite", f"<|tool_call|>[{as_json()}]", CODE),
    ("functools", f"functools[{as_json()}]", CODE),
    ("tool_code", f'```tool_code\nexecute_code(code="{CODE}")\n```', CODE),
    ("tool_code, printed", f'```tool_code\nprint(default_api.execute_code(code="{CODE}"))\n```', CODE),
    ("a call", f'execute_code("{CODE}")', CODE),
    ("doubled braces", "execute_code({{'code': 'x'}})\n\n" + as_json(), CODE),
    ("a call by keyword", f"execute_code(code='''{TWO_LINES}''')", TWO_LINES),
    ("a call in a fence", f'```python\nexecute_code("{CODE}")\n```', CODE),
    ("a call among prose", f'I count:\n\nexecute_code("{CODE}")\n\nand see.', CODE),
    ("a list of calls", f'[execute_code(code="{CODE}")]', CODE),
    ("LFM", f'<|tool_call_start|>[execute_code(code="{CODE}")]<|tool_call_end|>', CODE),
    ("tool_code tags", f'<tool_code>\nexecute_code(code="{CODE}")\n</tool_code>', CODE),
    ("a call with an object", f"functions.execute_code({json.dumps({'code': CODE})})", CODE),
    ("a name and an object", f"execute_code {json.dumps({'code': CODE})}", CODE),
    ("harmony without marks", f"commentary to=functions.execute_code json{json.dumps({'code': CODE})}", CODE),
    ("code as the arguments", json.dumps({"name": "python", "arguments": CODE}), CODE),
    ("ReAct with code", f"Action: execute_code\nAction Input: {CODE}", CODE),
    ("ReAct", f"Thought: I look.\nAction: execute_code\nAction Input: {json.dumps({'code': CODE})}", CODE),
    ("execute_code tags", f"<execute_code>\n{TWO_LINES}\n</execute_code>", TWO_LINES),
    ("code tags", f"<code>\n{TWO_LINES}\n</code>", TWO_LINES),
    ("a channel in the name", as_json("execute_code<|channel|>commentary"), CODE),
    ("a namespace", as_json("functions.execute_code"), CODE),
    ("another namespace", as_json("default_api.execute_code"), CODE),
    ("capitals", as_json("Execute_Code"), CODE),
    ("camel case", as_json("executeCode"), CODE),
    ("python as the name", as_json("python"), CODE),
]


def asked(text: str) -> list[str]:
    """The code that a reply asks to be run."""
    action = rlm.written_action(text, KNOWN)
    if action is None:
        return []
    assert all(call["name"] == "execute_code" for call in action.calls), action
    return [rlm.code_argument(call["arguments"])[0] for call in action.calls] or [action.code or ""]


@pytest.mark.parametrize(("text", "source"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_a_call_written_as_text_is_read(text: str, source: str) -> None:
    assert asked(text) == [source]


CLOSED = [form for form in FORMS if form[1].rstrip().endswith((">", "]", "```", ")"))]  # forms with an end of their own


@pytest.mark.parametrize(("text", "source"), [form[1:] for form in CLOSED], ids=[form[0] for form in CLOSED])
def test_what_follows_a_written_call_is_not_part_of_it(text: str, source: str) -> None:
    tail = "\n\nUser: Output: 3\nAssistant: ANSWER: 3"
    action = rlm.written_action(text + tail, KNOWN)
    assert action is not None and action.end <= len(text) and asked(text + tail) == [source]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (
            '{"name": "llm_query", "arguments": {"prompt": "count"}}',
            [{"name": "llm_query", "arguments": {"prompt": "count"}}],
        ),
        (
            '```json\n{"name": "file_search", "arguments": {"pattern": "x"}}\n```',
            [{"name": "file_search", "arguments": {"pattern": "x"}}],
        ),
        (
            '<tool_call>{"name": "file_read", "arguments": {"path": "a"}}</tool_call>\n'
            '<tool_call>{"name": "file_read", "arguments": {"path": "b"}}</tool_call>\nDone.',
            [{"name": "file_read", "arguments": {"path": "a"}}, {"name": "file_read", "arguments": {"path": "b"}}],
        ),
        (
            '{"name": "web_search", "arguments": {"q": "x"}}',
            [{"name": "web_search", "arguments": {"q": "x"}}],
        ),
    ],
    ids=["a function of the REPL", "a tool", "two calls", "an unknown tool"],
)
def test_calls_of_tools_are_read(text: str, calls: list[dict[str, Any]]) -> None:
    action = rlm.written_action(text, KNOWN)
    assert action is not None and action.calls == calls


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 4.",
        '{"name": "Ada", "age": 36}',
        '```json\n{"answer": 42, "input": "the log"}\n```',
        '[{"name": "Ada"}, {"name": "Emil"}]',
        '{"code": "DE", "count": 3}',
        '{"code": "DE"}',
        '[{"name": "Python", "year": 1991}, {"name": "C", "year": 1972}]',
        '{"budget": {"2024": 100}}',
        '{"tool": "python", "score": 5}',
        '{"name": "python", "parameters": {"version": 3}}',
        '{"calls":' + ("[" + " " * 50) * 400,
        "Use `execute_code` to run it.",
        "The function f(x) is linear.",
        "<b>bold</b> and <table>",
        "```bash\nls\n```",
        "| name | input |\n|---|---|\n| a | {1} |",
    ],
)
def test_data_and_prose_are_no_calls(text: str) -> None:
    assert rlm.written_action(text, KNOWN) is None


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("execute_code", "execute_code"),
        ("functions.execute_code", "execute_code"),
        ("functions.execute_code:3", "execute_code"),
        ("default_api.file_read", "file_read"),
        ("execute_code<|channel|>commentary", "execute_code"),
        ("EXECUTE-CODE", "execute_code"),
        ("mcp__rlm__file_read", "file_read"),
        ("code_interpreter", "execute_code"),
        ("final", "FINAL"),
        ("web_search", "web_search"),
    ],
)
def test_decorated_names_are_resolved(written: str, name: str) -> None:
    assert rlm.tool_name(written, KNOWN) == name


@pytest.mark.parametrize(
    "piece",
    ['{"name": ', "<tool_call>", "```\n", "``` ", "execute_code(", '{"code": "', "[TOOL_CALLS]", "<function=x>", " "],
)
def test_reading_takes_time_in_proportion_to_the_reply(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in tries, since times are not asserted: a reply twice as long may be tried twice as often, not more."""
    tries: list[int] = []
    for name in ("_json_value", "parses", "_python_call"):
        function = getattr(rlm, name)
        monkeypatch.setattr(rlm, name, lambda *args, f=function: tries.append(1) or f(*args))
    counts = []
    for times in (2_000, 4_000):
        tries.clear()
        rlm.written_action(piece * times, KNOWN)
        counts.append(len(tries))
    assert counts[1] <= 2 * counts[0] + 50


# --- in a run --------------------------------------------------------------------------------------------------------


def complete(server: Server, *turns: Any, context: Any = "x" * 5000, **options: Any) -> rlm.CompletionResult:
    server.script = list(turns)
    return rlm.complete("How long?", context, model=MODEL, **options)


def events_of(result: rlm.CompletionResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(str(result.log)).read_text().splitlines()]


@pytest.mark.parametrize(("text", "source"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
@pytest.mark.parametrize("protocol", ["auto", "text"])
def test_a_call_written_as_text_is_run_and_is_no_answer(openai: Server, text: str, source: str, protocol: str) -> None:
    result = complete(openai, text, "It is 5000.", protocol=protocol)
    cells = [event["code"] for event in events_of(result) if event["event"] == "tool"]
    assert (result.response, cells, result.status, result.forced) == ("It is 5000.", [source], "answered", False)
    assert openai.requests[1].last.startswith("Output:\n")


def test_after_two_written_calls_the_run_goes_on_in_the_text_protocol(openai: Server) -> None:
    result = complete(openai, as_json(), as_json(source="print(2)"), "```python\nprint(3)\n```", "It is 5000.")
    assert [bool(request.tools) for request in openai.requests] == [True, True, False, False]
    assert "```" in openai.requests[2].system and openai.requests[2].system != openai.requests[1].system
    calls = [event for event in events_of(result) if event["event"] == "call"]
    assert [call.get("protocol") for call in calls] == [None, None, "text", "text"]
    assert calls[2]["system"] == openai.requests[2].system
    assert result.response == "It is 5000."


def test_a_protocol_that_was_asked_for_is_kept(openai: Server) -> None:
    complete(openai, as_json(), as_json(source="print(2)"), as_json(source="print(3)"), "It is 5000.", protocol="tools")
    assert all(request.tools for request in openai.requests)


def test_the_name_of_a_real_tool_call_is_resolved(openai: Server) -> None:
    result = complete(
        openai,
        Turn(tool_calls=[call("functions.execute_code", code=CODE)]),
        Turn(tool_calls=[call("llm_query", prompt="x" * 30)]),
        "a sub-answer",
        "5000",
    )
    codes = [event["code"] for event in events_of(result) if event["event"] == "tool"]
    assert codes == [CODE, f"llm_query({'x' * 30!r})"]
    sent = openai.requests[1].messages[2]["tool_calls"][0]["function"]["name"]
    assert (sent, result.response) == ("execute_code", "5000")


def test_an_unknown_tool_written_as_text_is_answered_with_those_there_are(openai: Server) -> None:
    unknown = '{"name": "web_search", "arguments": {"q": "x"}}'
    complete(openai, unknown, code(CODE), "It is 5000.")
    assert "no tool is called 'web_search'" in openai.requests[1].last and "execute_code" in openai.requests[1].last


@pytest.mark.parametrize(
    "turns", [[as_json(), as_json(source="print(2)"), "```python\nprint(3)\n```\nOutput:\n9", "5000"]]
)
def test_a_run_with_written_calls_is_resumed_at_every_line_and_replayed(openai: Server, turns: list[str]) -> None:
    def script(request: Request) -> Any:
        return turns[request.turn - 1]

    openai.script = script
    whole = rlm.complete("How long?", "x" * 5000, model=MODEL)
    lines = Path(str(whole.log)).read_text().splitlines(keepends=True)
    sent = [request.body["messages"] for request in openai.requests]
    calls = [json.loads(line) for line in lines if json.loads(line)["event"] == "call"]
    for kept in range(1, len(lines)):
        Path(str(whole.log)).write_text("".join(lines[:kept]))
        paid = sum(json.loads(line)["event"] == "call" for line in lines[:kept])
        openai.requests.clear()
        result = rlm.RLM(model=MODEL).resume(whole.trajectory_id)
        assert (result.response, len(openai.requests)) == ("5000", len(calls) - paid), kept
        assert [request.body["messages"] for request in openai.requests] == sent[paid:], kept
    replayed = rlm.RLM().replay(whole.trajectory_id)
    assert (replayed.result.response, replayed.divergence) == ("5000", [])


def test_a_refused_script_is_never_needed(openai: Server) -> None:
    """The server checks what it is sent: a history with written calls is one that providers take."""
    complete(openai, as_json(), "It is 5000.")
    assert scripted.KEY not in json.dumps(openai.requests[1].body)
