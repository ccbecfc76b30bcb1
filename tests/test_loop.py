"""What the loop does with what models really do: answers without a look, repeated cells, failures, replies without end.

Each rule is tried on a scripted server, resumed at every line of its journal, and replayed.
"""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import scripted
from scripted import Request, Server, Turn, call, code

import rlm

MODEL = "gpt-4o-mini"
SMALL = "openai/qwen2.5-coder-1.5b"
LOG = "\n".join(f"2026-01-01 line {n} ERROR disk" for n in range(500))
ANSWER_NOW = "No turn is left for code."


def events_of(result: rlm.CompletionResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(str(result.log)).read_text().splitlines()]


def run(server: Server, *turns: Any, context: Any = LOG, prompt: str = "Is it long?", **options: Any) -> Any:
    left = iter(turns)
    server.script = lambda request: next(left)
    return rlm.RLM(model=options.pop("model", MODEL), **options).completion(prompt, context)


def block(source: str) -> str:
    return f"```python\n{source}\n```"


# --- an answer without a look ----------------------------------------------------------------------------------------


def test_an_answer_before_any_look_is_sent_back_once(openai: Server) -> None:
    result = run(openai, "There are 2.", "I said 2.")
    assert "You have not looked at `context` yet" in openai.requests[1].last
    assert (result.response, result.total_calls) == ("I said 2.", 2)


def test_a_look_after_being_sent_back_counts(openai: Server) -> None:
    result = run(openai, "There are 2.", code("print(len(context.splitlines()))"), "500 lines.")
    assert (result.response, result.total_calls) == ("500 lines.", 3)


@pytest.mark.parametrize("source", ["# nothing to do", "print('hello')", "1 / 0"], ids=["comment", "print", "failure"])
def test_code_that_does_not_touch_the_context_is_no_look(openai: Server, source: str) -> None:
    run(openai, code(source), "There are 2.", code("print(len(context))"), "500")
    assert "You have not looked" in openai.requests[2].last


@pytest.mark.parametrize(
    "context", [None, "short\ntext", ["a", "b"], {"a.md": "text"}], ids=["none", "text", "list", "dict"]
)
def test_a_context_that_was_shown_whole_may_be_answered_at_once(openai: Server, context: Any) -> None:
    result = run(openai, "The answer.", context=context)
    assert (result.response, result.total_calls) == ("The answer.", 1)


def test_a_short_context_is_in_the_users_message_and_the_repl_has_it_too(openai: Server) -> None:
    result = run(openai, code("FINAL(context)"), context="only this", prompt="What?")
    user = openai.requests[0].messages[1]["content"]
    assert user == "What?\n\n`context` is a str of 9 characters. This is all of it:\nonly this"
    assert result.value == "only this"


@pytest.mark.parametrize(("size", "whole"), [(4000, True), (4001, False)])
def test_show_below_says_how_short(openai: Server, size: int, whole: bool) -> None:
    run(openai, code("FINAL(1)"), context="x" * size)
    assert ("x" * size in openai.requests[0].messages[1]["content"]) is whole


def test_show_below_is_an_option(openai: Server) -> None:
    run(openai, code("FINAL(1)"), context="x" * 100, show_below=0)
    assert "x" * 100 in openai.requests[0].messages[1]["content"]  # its first line is
    assert "This is all of it" not in openai.requests[0].messages[1]["content"]


# --- the same cell again, and failures -------------------------------------------------------------------------------


def test_a_repeated_cell_is_answered_and_not_asked_for_again(openai: Server) -> None:
    turns = [code("print(len(context))"), code("print(len(context))"), "It is long."]
    result = run(openai, *turns)
    assert openai.requests[1].last == f"{len(LOG)}"
    assert openai.requests[2].last == (f"{len(LOG)}\nYou have this output already: answer in one line.")
    notes = [event["note"] for event in events_of(result) if event["event"] == "tool"]
    assert notes == ["", "You have this output already: answer in one line."]


def test_the_same_code_with_another_outcome_is_not_the_same_cell(openai: Server) -> None:
    turns = [code("n = 1 + globals().get('n', len(context))\nprint(n)")] * 2
    run(openai, *turns, "It is long.")
    assert "before" not in openai.requests[2].last


def test_after_a_failure_mended_code_is_asked_for(openai: Server) -> None:
    run(openai, block("print(contxt)"), block("print(len(context))"), "It is long.", protocol="text")
    assert "NameError" in openai.requests[1].last
    assert openai.requests[1].last.endswith("That failed. Mend the code and reply with one ```python block.")


def test_a_small_model_that_copies_its_failing_code_begins_afresh(openai: Server) -> None:
    failing, other = block("import numpy\nprint(len(context))"), block("print(len(context))")
    result = run(openai, failing, failing, other, "ANSWER: long", model=SMALL)
    last = openai.requests[2].messages
    assert [message["role"] for message in last] == ["system", "user"]  # both attempts are gone
    assert "Code that was tried before ended with:\nModuleNotFoundError: no module 'numpy'" in last[1]["content"]
    assert openai.requests[1].body["temperature"] == 0 and openai.requests[2].body["temperature"] > 0
    [restart] = [event for event in events_of(result) if event["event"] == "compact"]
    assert (restart["restart"], restart["cells"], restart["turn"]) == (True, [1, 2], 2)
    assert result.response == "long"


def test_a_small_model_that_repeats_itself_a_third_time_is_shown_only_the_output(openai: Server) -> None:
    again = block("print(len(context))")
    result = run(openai, again, again, again, "ANSWER: long", model=SMALL)
    last = openai.requests[3].messages
    assert [message["role"] for message in last] == ["system", "user"]
    assert f"Code has run on `context` already. Output:\n{len(LOG)}" in last[1]["content"]
    assert result.response == "long"


def test_a_small_model_that_only_repeats_itself_is_asked_for_its_answer_before_its_turns_are_used_up(
    openai: Server,
) -> None:
    again = block("print(len(context))")
    openai.script = lambda request: "ANSWER: 500" if "No turn is left" in request.last else again
    result = rlm.complete("How long is it?", LOG, model=SMALL)
    assert (result.response, result.forced) == ("500", True)
    assert len(openai.requests) < 12
    openai.script = lambda request: again
    with pytest.raises(rlm.RLMError, match="the model repeats code whose output it has seen"):
        rlm.complete("How long is it?", LOG, model=SMALL)


@pytest.mark.parametrize("source", ["print(0)", "print([])", "print(None)"], ids=["zero", "empty", "none"])
def test_a_small_model_is_told_that_it_found_nothing_and_asked_for_other_code(openai: Server, source: str) -> None:
    looking, other = block(f"context\n{source}"), block("print(len(context))")
    run(openai, looking, looking, other, "ANSWER: long", model=SMALL)
    assert "Nothing was found: the code does not fit the data." in openai.requests[1].last
    assert "Write different code." in openai.requests[2].last and len(openai.requests[2].messages) == 2


def test_a_small_model_whose_code_finds_nothing_in_a_short_context_is_shown_it(openai: Server) -> None:
    notes = "\n".join(f"{n}. A note on something, number {n}." for n in range(40))
    result = run(
        openai,
        block("print(context.count('zebra'))"),
        block("print([])"),
        "ANSWER: the seventh",
        model=SMALL,
        context=notes,
    )
    assert f"This is all of it:\n{notes}\nAnswer from it in one line" in openai.requests[2].last
    assert notes not in json.dumps(openai.requests[0].body) and result.response == "the seventh"


def test_a_small_model_that_prints_too_much_sees_how_it_begins(openai: Server) -> None:
    run(openai, block("print(context)"), block("print(len(context))"), "ANSWER: long", model=SMALL)
    last = openai.requests[1].messages
    assert len(last) == 2 and len(last[1]["content"]) < 1500
    assert "Code that was tried before printed too much, beginning with:\n2026-01-01 line 0" in last[1]["content"]


@pytest.mark.parametrize(
    ("prompt", "answer", "doubt"),
    [
        ("How many lines?", "It has 77 lines.", "No output shows 77: do not guess."),
        ("Which, and how many?", "The first.", "The question asks for a number, too."),
    ],
    ids=["a number that no output shows", "no number where one was asked for"],
)
def test_a_small_models_made_up_number_is_asked_for_again(openai: Server, prompt: str, answer: str, doubt: str) -> None:
    turns = [block("print(len(context))"), f"ANSWER: {answer}", block("print(500)"), "ANSWER: 500"]
    result = run(openai, *turns, model=SMALL, prompt=prompt)
    assert doubt in openai.requests[2].last
    assert answer not in json.dumps(openai.requests[2].messages) and result.response == "500"


@pytest.mark.parametrize(
    ("answer", "seen", "unseen"),
    [
        ("It is 1,224.", "1224", []),
        ("About 12.35 in all", "12.3456", []),
        ("52.7 %", "0.52684", []),
        ("3 of 17", "17", ["3"]),
        ("none", "", []),
        ("v2 of a1b2", "", []),
    ],
)
def test_numbers_are_looked_for_as_people_write_them(answer: str, seen: str, unseen: list[str]) -> None:
    assert rlm.unseen_numbers(answer, seen) == unseen


# --- the last answer -------------------------------------------------------------------------------------------------


def test_on_the_last_turn_one_call_without_tools_asks_for_the_best_answer(openai: Server) -> None:
    result = run(openai, code("print(len(context))"), code("print(1)"), "Some 13,000.", max_iterations=3)
    assert [bool(request.tools) for request in openai.requests] == [True, True, False]
    assert openai.requests[2].last.startswith(ANSWER_NOW)
    assert (result.response, result.status, result.forced) == ("Some 13,000.", "answered", True)
    calls = [event.get("forced") for event in events_of(result) if event["event"] == "call"]
    assert (calls, events_of(result)[-1]["forced"]) == ([None, None, True], True)


@pytest.mark.parametrize(
    "last",
    [code("print(2)"), block("print(2)"), '{"name": "execute_code", "arguments": {"code": "print(context)"}}', ""],
    ids=["tool call", "block", "written call", "nothing"],
)
def test_the_limit_is_raised_only_if_the_last_call_gives_no_answer(openai: Server, last: Any) -> None:
    with pytest.raises(rlm.MaxIterationsExceeded) as caught:
        run(openai, code("1 / 0"), last, max_iterations=2)
    assert len(openai.requests) == 2 and caught.value.result is not None


@pytest.mark.parametrize(("last", "answer"), [("FINAL(total)", 15389), ('FINAL_VAR("total")', 15389), ("FINAL(7)", 7)])
def test_the_last_answer_may_name_a_variable(openai: Server, last: str, answer: int) -> None:
    result = run(openai, code("total = len(context)"), last, max_iterations=2)
    assert (result.value, result.forced) == (answer, True)


def test_max_errors_asks_for_the_best_answer_before_it_is_raised(openai: Server) -> None:
    result = run(openai, code("1 / 0"), code("2 / 0"), "It cannot be said.", max_errors=2)
    assert (result.response, result.forced, openai.requests[2].tools) == ("It cannot be said.", True, [])


def test_a_single_turn_is_no_last_one(openai: Server) -> None:
    result = run(openai, "The answer.", context=None, max_iterations=1)
    assert (result.response, result.forced, bool(openai.requests[0].tools)) == ("The answer.", False, True)


@pytest.mark.parametrize(
    ("first", "partial"),
    [
        pytest.param(f"I count them.\n{block('print(len(context))')}", "I count them.", id="words and a block"),
        pytest.param(block("print(len(context))"), None, id="a block"),
        pytest.param(f"{block('print(1)')}\nOutput: 1\nSo it is 1.", None, id="a block and invented output"),
        pytest.param('{"name": "execute_code", "arguments": {"code": "print(1)"}}', None, id="a written call"),
        pytest.param("```python\nrows = [row for row in context if row >", None, id="an unclosed block"),
    ],
)
def test_a_partial_answer_is_never_code(openai: Server, first: str, partial: str | None) -> None:
    with pytest.raises(rlm.MaxIterationsExceeded) as caught:
        run(openai, first, "", protocol="text", max_iterations=2)
    assert (caught.value.result.response or None) == partial


def test_a_childs_last_answer_is_what_its_callers_code_gets(openai: Server) -> None:
    def script(request: Request) -> Any:
        if request.prompt.startswith("child"):
            return "best guess" if request.last.startswith(ANSWER_NOW) else code("print(1)")
        return code("FINAL(rlm_query('child'))")

    openai.script = script
    assert rlm.complete("go", model=MODEL, max_iterations=3).value == "best guess"


def test_a_resume_with_more_turns_goes_on_where_the_last_call_gave_no_answer(openai: Server) -> None:
    openai.script = [code("x = len(context)"), code("x += 1"), code("FINAL(x)")]
    with pytest.raises(rlm.MaxIterationsExceeded) as caught:
        rlm.complete("go", LOG, model=MODEL, max_iterations=2)
    resumed = rlm.RLM(model=MODEL).resume(str(caught.value.trajectory_id), max_iterations=5)
    assert (resumed.value, resumed.forced, len(openai.requests)) == (len(LOG) + 1, False, 3)


def test_a_forced_answer_still_has_to_fit_the_schema(openai: Server) -> None:
    schema = {"type": "integer"}
    assert run(openai, code("print(len(context))"), "42", max_iterations=2, schema=schema).value == 42
    with pytest.raises(rlm.MaxIterationsExceeded):
        run(openai, code("print(len(context))"), "many", max_iterations=2, schema=schema)


# --- replies without end ---------------------------------------------------------------------------------------------


def test_a_reply_that_repeats_itself_is_stopped_while_it_streams(openai: Server) -> None:
    loop = "I will count the lines. " * 2000
    result = run(openai, scripted.drip(loop, 0), code("FINAL(len(context))"), on_event=lambda event: None)
    [first, _] = [event for event in events_of(result) if event["event"] == "call"]
    assert (first["stop_reason"], len(first["response"]) < 100) == ("repetition", True)
    assert openai.requests[1].last.startswith("Your reply repeated itself and was stopped.")
    assert result.value == len(LOG)


def test_code_before_the_repetition_is_run(openai: Server) -> None:
    reply = block("print(len(context))") + "\nOutput:\n" + "0 0 1\n" * 1000
    result = run(openai, reply, "long", on_event=lambda event: None, protocol="text")
    assert (openai.requests[1].messages[2]["content"], result.response) == (block("print(len(context))"), "long")


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("ab " * 400, 3),
        ("one line\n" * 100, 9),
        ("The answer is 4. " + "x" * 100, 0),
        ("-" * 600, 0),
        ("".join(f"{n}, " for n in range(400)), 0),
        ("", 0),
        ("| a | b |\n|---|---|\n" + "".join(f"| {n} | {n * n} |\n" for n in range(90)), 0),
    ],
    ids=["word", "line", "short", "rule", "numbers", "empty", "table"],
)
def test_repetition_is_told_from_lists_and_tables(text: str, period: int) -> None:
    assert rlm.repeated_passage(text[-2400:], 6, 480) == period


def test_a_small_models_turn_is_capped(openai: Server) -> None:
    run(openai, block("FINAL(len(context))"), model=SMALL)
    assert openai.requests[0].max_tokens == 1500
    run(openai, code("FINAL(1)"))
    assert openai.requests[-1].max_tokens is None or openai.requests[-1].max_tokens > 1500


# --- profiles --------------------------------------------------------------------------------------------------------


def test_the_system_prompt_and_tools_are_the_same_for_every_run_and_child(openai: Server) -> None:
    def script(request: Request) -> Any:
        return (
            code("FINAL(1)") if request.prompt.startswith("child") else code("FINAL(rlm_query('child', context[:9]))")
        )

    openai.script = script
    with rlm.RLM(model=MODEL, max_depth=1) as runtime:
        runtime.completion("first", LOG)
        runtime.completion("second", LOG + "another")
    starts = {json.dumps([request.body["messages"][0], request.body["tools"]]) for request in openai.requests}
    assert (len(openai.requests), len(starts)) == (4, 1)
    assert "context` is a str" not in openai.requests[0].system


def test_the_journal_has_the_schemas_of_the_tools_that_were_sent(openai: Server) -> None:
    result = run(openai, code("print(len(context))"), "long")
    sent = [tool["function"] for tool in openai.requests[0].body["tools"]]
    assert events_of(result)[0]["tool_schemas"] == sent
    assert events_of(run(openai, block("print(len(context))"), "long", protocol="text"))[0]["tool_schemas"] is None


def test_a_small_model_gets_the_small_prompt_and_the_text_protocol(openai: Server) -> None:
    result = run(openai, block("print(len(context))"), "ANSWER: very long", model=SMALL)
    first = openai.requests[0]
    assert first.tools == [] and "ANSWER:" in first.system and "rlm_query" not in first.system
    assert (first.body["temperature"], first.body["stop"]) == (0, ["\nOutput:", "\nUser:"])
    assert openai.requests[1].last == (
        f"Output:\n{len(LOG)}\nIf this output answers every part of the question (Is it long?) reply with one "
        "line: ANSWER: <the answer>. Otherwise reply with another ```python block."
    )
    assert result.response == "very long"
    start = events_of(result)[0]
    assert (start["profile"], start["protocol"], start["params"]) == ("small", "text", None)


@pytest.mark.parametrize("name", ["full", "small"])
def test_the_profile_can_be_chosen(openai: Server, name: str) -> None:
    openai.script = [block("FINAL(len(context))")]
    rlm.RLM(model=MODEL, prompt=name, protocol="text").completion("go", LOG)
    assert ("ANSWER:" in openai.requests[0].system) is (name == "small")


def test_a_prompt_of_ones_own_is_a_file(openai: Server, workspace: Path) -> None:
    (workspace / "own.txt").write_text("You count. {curly} braces are text. Tools: {functions}.")
    openai.script = [code("FINAL(len(context))")]
    rlm.RLM(model=MODEL, prompt="own.txt").completion("go", LOG, system="Be brief.")
    system = openai.requests[0].system
    assert system.startswith("You count. {curly} braces are text. Tools: file_read(") and system.endswith(
        "\n\nBe brief."
    )


def test_a_prompt_that_cannot_be_read_is_an_error_before_anything_is_sent(openai: Server) -> None:
    with pytest.raises(rlm.ConfigError, match=r"missing\.txt"):
        rlm.RLM(model=MODEL, prompt="missing.txt").completion("go")
    assert openai.requests == [] and list(Path("logs").iterdir()) == []


def test_a_sub_model_without_a_key_is_an_error_of_ours_before_anything_is_sent(openai: Server) -> None:
    with pytest.raises(rlm.ConfigError, match="key"):
        rlm.RLM(model=MODEL, sub_model="claude-haiku-4-5").completion("go")
    assert openai.requests == [] and list(Path("logs").iterdir()) == []


@pytest.mark.parametrize(
    ("context", "words"),
    [
        ("a,b\n" + "1,2\n" * 1900, "CSV with the columns a, b"),
        (json.dumps([{"id": 1, "user": {"plan": "pro"}}] * 200), 'JSON: a list of 200 items, the first is {"id": 1, '),
        (json.dumps({"rows": list(range(3000))}), "JSON: an object with the key rows, the first holds [0, 1, 2"),
        ("name\tsize\n" + "a\t1\n" * 1500, "tab-separated with the columns name, size"),
        ({"a.csv": "x,y\n" + "1,2\n" * 2000}, "'a.csv': str, 8,004 characters, CSV with the columns x, y"),
        ("Dear Ada, it rains.\n" * 400, "in 400 lines. It begins:"),
    ],
    ids=["csv", "json list", "json object", "tabs", "dict", "prose"],
)
def test_what_is_known_of_the_context_is_in_the_users_message(openai: Server, context: Any, words: str) -> None:
    run(openai, code("FINAL(1)"), context=context)
    assert words in openai.requests[0].messages[1]["content"]


# --- errors that teach -----------------------------------------------------------------------------------------------

CSV = "id,total\n" + "1,2.50\n" * 900


@pytest.mark.parametrize(
    ("context", "source", "advice"),
    [
        (CSV, "import pandas as pd", "rows = list(csv.DictReader(context.splitlines()))"),
        (json.dumps([1] * 3000), "import pandas", "data = json.loads(context)"),
        (CSV, "import csv\nprint(len(list(csv.reader(context))))", "looping over it gives single characters"),
        (CSV, "import csv\nprint(next(csv.DictReader(context)))", "csv.DictReader(context.splitlines())"),
        (CSV, "print(sum(1 for line in context))", "looping over it gives single characters"),
        (CSV, "print(open('context').read())", "it is already in `context`"),
        (CSV, "import json\njson.load(context)", "`context` is a str, not a file"),
        (CSV, "context.read()", "`context` is a str, not a file"),
        ({"a": CSV}, "context.splitlines()", "for name, text in context.items()"),
        (["x" * 5000], "context.split()", "for item in context"),
        (CSV, "json.loads('1')", "Write `import json` first."),
    ],
)
def test_the_commonest_mistakes_are_answered_with_what_to_write(
    openai: Server, context: Any, source: str, advice: str
) -> None:
    run(openai, code(source), code("FINAL(len(context))"), context=context)
    assert advice in openai.requests[1].last


def test_a_small_model_without_an_input_is_not_asked_to_look_at_it(openai: Server) -> None:
    result = run(openai, block("x = 2 + 2"), block("print(2 + 2)"), "ANSWER: four", model=SMALL, context=None)
    assert (
        "Nothing was printed. Write a ```python block that goes on with x and prints what the question asks for"
        in openai.requests[1].last
    )
    assert result.response == "four"


def test_a_small_model_is_told_of_the_callers_tools(openai: Server) -> None:
    @rlm.tool
    def lookup(word: str) -> str:
        """The meaning of a word."""
        return word

    run(openai, block("FINAL(lookup('a') + context[:1])"), model=SMALL, tools=[lookup])
    assert "Other functions in Python: lookup(word): The meaning of a word." in openai.requests[0].system


# --- sub-calls -------------------------------------------------------------------------------------------------------


def sub(request: Request) -> bool:
    return not request.system


def test_the_first_llm_query_without_any_text_is_not_sent(openai: Server) -> None:
    question = "llm_query('count the lines with level ERROR in the log')"

    def script(request: Request) -> Any:
        if sub(request):
            return "17"
        return [code(question), code(f"FINAL({question})")][request.turn - 1]

    openai.script = script
    result = rlm.complete("How many?", LOG, model=MODEL)
    assert "llm_query sees only its prompt, and this one holds no text of `context`" in openai.requests[1].last
    assert (result.value, sum(map(sub, openai.requests))) == ("17", 1)  # the same call again goes through


@pytest.mark.parametrize(
    "prompt",
    ["'What is this? ' + context[:200]", "'x' * 401", "f'Is {context.splitlines()[3]} an error?'"],
    ids=["a piece", "a long prompt", "a line"],
)
def test_an_llm_query_with_text_is_sent_at_once(openai: Server, prompt: str) -> None:
    openai.script = lambda request: "yes" if sub(request) else code(f"FINAL(llm_query({prompt}))")
    assert rlm.complete("go", LOG, model=MODEL).value == "yes"


@pytest.mark.parametrize(
    ("schema", "replies", "value"),
    [
        ("{'type': 'integer'}", ['{"answer": 4}'], 4),
        ("{'type': 'integer'}", ["4"], 4),
        ("'int'", ["```json\n4\n```"], 4),
        ("{'type': 'integer'}", ["four", '{"answer": 4}'], 4),
        ("{'type': 'array', 'items': {'type': 'string'}}", ['["a", "b"]'], ["a", "b"]),
        ("{'type': 'object', 'properties': {'n': {'type': 'integer'}}}", ['{"n": 1}'], {"n": 1}),
    ],
    ids=["wrapped", "bare", "fenced", "second time", "array", "object"],
)
def test_an_llm_query_with_a_schema_gives_python_data(
    openai: Server, schema: str, replies: list[str], value: Any
) -> None:
    left = iter(replies)
    openai.script = lambda request: (
        next(left) if sub(request) else code(f"FINAL(llm_query('x' * 500, schema={schema}))")
    )
    result = rlm.complete("go", LOG, model=MODEL)
    assert (result.value, sum(map(sub, openai.requests))) == (value, len(replies))
    if len(replies) == 2:
        again = openai.requests[2].messages
        assert [message["role"] for message in again] == ["user", "assistant", "user"]
        assert again[2]["content"].startswith("That does not fit: ")


def test_an_answer_that_never_fits_is_an_exception_with_the_text(openai: Server) -> None:
    source = (
        "try:\n    llm_query('x' * 500, schema='int')\nexcept Exception as e:\n    FINAL([type(e).__name__, e.partial])"
    )
    openai.script = lambda request: "four" if sub(request) else code(source)
    assert rlm.complete("go", LOG, model=MODEL).value == ["SubcallError", "four"]


def test_map_query_packs_items_and_gives_one_answer_for_each(openai: Server) -> None:
    def script(request: Request) -> Any:
        if not sub(request):
            return code("FINAL(map_query('Its first letter?', [f'{chr(97 + n % 26)}{n}' for n in range(120)]))")
        items = [line.split(". ", 1) for line in request.prompt.splitlines() if line[:1].isdigit()]
        return json.dumps({number: text[0] for number, text in items})

    openai.script = script
    result = rlm.complete("go", LOG, model=MODEL)
    assert result.value == [chr(97 + n % 26) for n in range(120)]
    assert sum(map(sub, openai.requests)) == 3


def test_map_query_asks_again_for_missing_answers_and_counts_it(openai: Server) -> None:
    replies = iter(['{"1": 5}', '{"1": 5, "2": 6}'])
    source = "FINAL([map_query('Length?', ['aaaaa', 'bbbbbb'], schema='int'), budget()['subcalls']])"
    openai.script = lambda request: next(replies) if sub(request) else code(source)
    assert rlm.complete("go", LOG, model=MODEL, max_subcalls=10).value == [[5, 6], 8]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("map_query('q', 'text')", "map_query takes a list of items, not str"),
        ("map_query('', ['a'])", "the question is a text"),
        ("map_query('q', ['x' * 200000])", "use chunks(text)"),
        ("llm_query('x' * 500, schema=5)", "schema is a JSON Schema"),
        ("llm_query('x' * 500, images=['https://x.example/a.png'])", "images: each is the bytes of a PNG"),
        ("llm_query('x' * 2000000)", "cut it with chunks(text)"),
    ],
)
def test_misused_sub_calls_say_what_to_write(openai: Server, source: str, words: str) -> None:
    run(openai, code(source), code("FINAL(len(context))"))
    assert words in openai.requests[1].last and len(openai.requests) == 2


def test_a_map_query_that_fails_in_part_has_an_answer_for_each_other_item(openai: Server) -> None:
    def script(request: Request) -> Any:
        if not sub(request):
            return code(source)
        return "no JSON" if "x60" in request.messages[0]["content"] else json.dumps({str(n): "y" for n in range(1, 51)})

    query = "map_query('q', [f'x{n}' for n in range(100)])"
    source = f"try:\n    {query}\nexcept Exception as e:\n    FINAL([e.results, str(e.errors[99])])"
    openai.script = script
    results, error = rlm.complete("go", LOG, model=MODEL).value
    assert results == ["y"] * 50 + [None] * 50 and "does not fit the schema" in error


def test_an_object_schema_with_an_answer_of_its_own_is_left_as_it_is(openai: Server) -> None:
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    openai.script = lambda request: (
        '{"answer": "x"}' if sub(request) else code(f"FINAL(llm_query('x' * 500, schema={schema}))")
    )
    assert rlm.complete("go", LOG, model=MODEL).value == {"answer": "x"}


def test_llm_query_shows_images(openai: Server) -> None:
    png = "b'\\x89PNG\\r\\n\\x1a\\n' + b'0' * 50"
    openai.script = lambda request: "a cat" if sub(request) else code(f"FINAL(llm_query('x' * 500, images=[{png}]))")
    assert rlm.complete("go", LOG, model=MODEL).value == "a cat"
    parts = openai.requests[1].messages[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url"]


def test_chunks_are_sized_to_the_sub_models_window(openai: Server) -> None:
    source = "pieces = chunks(context * 40)\nFINAL([max(map(len, pieces)), ''.join(pieces) == context * 40])"
    longest, whole = run(openai, code(source)).value
    assert 90_000 < longest <= 100_000 and whole is True


# --- parameters ------------------------------------------------------------------------------------------------------


def test_params_go_into_every_request_and_the_journal(openai: Server) -> None:
    openai.script = lambda request: "4" if sub(request) else code("FINAL(llm_query('x' * 500))")
    runtime = rlm.RLM(
        model=MODEL, params={"temperature": 0.2, "user": "tester"}, sub_params={"seed": 7, "max_output_tokens": 50}
    )
    result = runtime.completion("go", LOG)
    turn, leaf = openai.requests
    assert (turn.body["temperature"], turn.body["user"], "seed" in turn.body) == (0.2, "tester", False)
    assert (leaf.body["seed"], leaf.max_tokens, "temperature" in leaf.body) == (7, 50, False)
    start = events_of(result)[0]
    assert start["params"] == {"temperature": 0.2, "user": "tester"}
    assert start["sub_params"] == {"seed": 7, "max_output_tokens": 50}


def test_params_hold_for_sub_calls_where_they_have_none_of_their_own(openai: Server) -> None:
    openai.script = lambda request: "4" if sub(request) else code("FINAL(llm_query('x' * 500))")
    rlm.complete("go", LOG, model=MODEL, params={"temperature": 0.2})
    assert [request.body["temperature"] for request in openai.requests] == [0.2, 0.2]


def test_a_callers_params_win_over_a_profiles(openai: Server) -> None:
    run(openai, block("FINAL(len(context))"), model=SMALL, params={"temperature": 0.7})
    assert openai.requests[0].body["temperature"] == 0.7


# --- what goes on ----------------------------------------------------------------------------------------------------


def test_progress_tells_what_goes_on_and_is_not_journalled(openai: Server) -> None:
    seen: list[dict[str, Any]] = []
    lock = threading.Lock()

    def note(event: dict[str, Any]) -> None:
        with lock:
            seen.append(event)

    openai.script = lambda request: "4" if sub(request) else code("FINAL(llm_query_batched(['x' * 500] * 3))")
    result = rlm.RLM(model=MODEL, on_progress=note).completion("go", LOG)
    phases = [(event["phase"], event.get("kind"), event.get("cell"), event.get("done")) for event in seen]
    assert phases[:2] == [("asking", "turn", None, None), ("running", None, 1, None)]
    assert sorted(done for _, _, _, done in phases if done) == [1, 2, 3]
    assert all(event["event"] != "progress" for event in events_of(result))


# --- resume and replay, with each rule ------------------------------------------------------------------------------

RULES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "sent back": (["There are 2.", code("print(len(context))"), "500"], {}),
    "sent back in text": (["There are 2.", block("print(len(context))"), "500"], {"protocol": "text"}),
    "repeated": ([code("print(len(context))"), code("print(len(context))"), "long"], {}),
    "failed": ([block("print(contxt)"), block("print(len(context))"), "long"], {"protocol": "text"}),
    "afresh": (
        [
            block("import numpy\nprint(context)"),
            block("import numpy\nprint(context)"),
            block("print(len(context))"),
            "ANSWER: long",
        ],
        {"model": SMALL},
    ),
    "afresh after success": ([block("print(len(context))")] * 3 + ["ANSWER: long"], {"model": SMALL}),
    "forced": ([code("print(len(context))"), "long"], {"max_iterations": 2}),
    "forced by errors": ([code("1 / 0"), code("2 / 0"), "unknown"], {"max_errors": 2}),
    "dropped": ([block("print(len(context))") + "\nOutput:\n3\nANSWER: 3", "long"], {"protocol": "text"}),
    "advice": ([code("import csv\nprint(len(list(csv.reader(context))))"), "long"], {}),
}


def spoken(request: Request) -> list[Any]:
    """What a request says and how; the ids of tool calls are the scripted server's own, and count on."""
    options = {name: value for name, value in request.body.items() if name not in ("messages", "max_completion_tokens")}
    return [options, *((message["role"], message["content"]) for message in request.messages)]


@pytest.mark.parametrize("name", RULES)
def test_a_run_in_which_a_rule_fired_is_resumed_at_every_line_and_replayed(openai: Server, name: str) -> None:
    turns, options = RULES[name]
    before = iter(turns)
    openai.script = lambda request: next(before)
    options = {"model": MODEL, **options}
    whole = rlm.RLM(**options).completion("Is it long?", LOG)
    sent = [spoken(request) for request in openai.requests]
    lines = Path(str(whole.log)).read_text().splitlines(keepends=True)
    paid = list(itertools.accumulate(json.loads(line)["event"] == "call" for line in lines))
    for kept in range(1, len(lines)):
        Path(str(whole.log)).write_text("".join(lines[:kept]))
        openai.requests.clear()
        left = iter(turns[paid[kept - 1] :])
        openai.script = lambda request, left=left: next(left)
        result = rlm.RLM(model=options["model"]).resume(whole.trajectory_id)
        assert (result.response, result.forced) == (whole.response, whole.forced), kept
        assert [spoken(request) for request in openai.requests] == sent[paid[kept - 1] :], kept
    Path(str(whole.log)).write_text("".join(lines))
    openai.requests.clear()
    replayed = rlm.RLM().replay(whole.trajectory_id)
    assert (replayed.result.response, replayed.divergence, openai.requests) == (whole.response, [], [])


def test_a_tool_call_that_is_not_one_of_the_tools_is_named(openai: Server) -> None:
    run(openai, Turn(tool_calls=[call("web_search", q="x")]), code("FINAL(len(context))"))
    assert "no tool is called 'web_search'" in openai.requests[1].last


# --- a lead for a search ----------------------------------------------------------------------------------------------

PROSE = "It rained. The captain kept a chest. " * 200


@pytest.mark.parametrize(
    ("hidden", "shown"),
    [
        pytest.param("The secret number of the carpenter's chest is 17.", True, id="one passage has the words"),
        pytest.param("The secret number of the carpenter's chest is 17. " + "x" * 400 + " A secret carpenter's chest.",
                     False, id="two passages have as many"),
        pytest.param("A carpenter.", False, id="too few words"),
        pytest.param("The secret carpenter's chest. " * 201, False, id="too many places"),
    ],
)  # fmt: skip
def test_a_small_model_is_shown_where_the_words_of_its_question_meet(openai: Server, hidden: str, shown: bool) -> None:
    text = PROSE + hidden + PROSE
    prompt = "What is the secret number of the carpenter's chest?"
    run(openai, block("print(17)"), *["ANSWER: 17"] * 3, context=text, prompt=prompt, model=SMALL)
    message = openai.requests[0].messages[-1]["content"]
    assert "In it: " in message
    assert ("Most of these words together: " in message and "is 17." in message) is shown


def test_the_words_of_a_question_are_found_in_linear_time() -> None:
    words = " ".join(f"word{number}" for number in range(300))
    text = ("word0 " * 3_000_000)[:20_000_000]
    assert "together" not in rlm.words_of(f"Find {words}", rlm.Context(text))


# --- a context that is parsed already, for a small model --------------------------------------------------------------

TABLE = "id,kind,price,code\n1,book,12.50,007\n2,book,3,010\n3,pen,1,100\n"
LINES = "2026-05-04 06:00:05 [INFO] pump: 17 bar\n" * 4 + "2026-05-04 06:00:09 [WARN] pump: 18 bar\n" * 3


@pytest.mark.parametrize(
    ("context", "cell", "value", "told"),
    [
        pytest.param(TABLE, "rows[0]", {"id": 1, "kind": "book", "price": 12.5, "code": "007"},
                     "`rows`, a list of 3 dicts, the first is {'id': 1,", id="numbers are numbers, names are not"),
        pytest.param(TABLE.replace(",", "\t"), "rows[1]['price']", 3, "`rows`", id="tabs"),
        pytest.param('id,total\n1,80.50\n2,"1,250.00"\n3,-20\n', "sum(row['total'] for row in rows)", 1310.5, "`rows`",
                     id="commas between thousands"),
        pytest.param('{"a": [1, 2]}' + " " * 900, "data['a']", [1, 2], "`data`", id="JSON"),
        pytest.param("1\n2\n3.5\n" * 300, "sum(numbers)", 1950.0, "`numbers`, a list of 900 numbers", id="numbers"),
        pytest.param({"x/items.csv": TABLE, "b": "x" * 900}, "items[2]['kind']", "pen", "`items`, a list of 3 dicts",
                     id="a table among files"),
        pytest.param({"a.csv": TABLE, "list.csv": TABLE, "b.txt": "x" * 900}, "tables['list.csv'][2]['kind']", "pen",
                     "`tables['a.csv']`, a list", id="files without a name for a variable"),
        pytest.param(LINES, "lines[-1][:19]", "2026-05-04 06:00:09", "line[:19] is its time", id="lines with times"),
        pytest.param("one two\nthree\n" * 90, "len(lines)", 180, "for number, line in enumerate(lines, 1)", id="lines"),
    ],
)  # fmt: skip
def test_a_small_model_finds_its_context_parsed(openai: Server, context: Any, cell: str, value: Any, told: str) -> None:
    result = run(openai, block(f"FINAL({cell})"), context=context, model=SMALL)
    assert result.value == value
    assert "Ready to use: " in openai.requests[0].last and told in openai.requests[0].last


@pytest.mark.parametrize(
    ("context", "options", "whole"),
    [
        pytest.param("We meet at noon.\nBring the keys to the old house.\nAnn\n", {}, True, id="prose"),
        pytest.param("oak\nelm\noak\n", {}, True, id="a word a line"),
        pytest.param(TABLE, {}, False, id="a table"),
        pytest.param("3\n5\n8\n", {}, False, id="numbers"),
        pytest.param(LINES, {}, False, id="lines alike"),
        pytest.param(TABLE, {"show_below": 2000}, True, id="a table, as the caller wants it"),
    ],
)
def test_a_small_model_reckons_with_code_however_short_the_data(
    openai: Server, context: str, options: dict[str, Any], whole: bool
) -> None:
    run(openai, block("FINAL(1)"), context=context, model=SMALL, **options)
    assert ("This is all of it:\n" + context.strip() in openai.requests[0].last) is whole


def test_a_replay_goes_by_what_the_recorded_run_showed(openai: Server) -> None:
    """A journal of a version that showed a small model short tables whole: its first reply could be the answer."""
    result = run(openai, "Three.", context=TABLE, model=SMALL, show_below=2000)
    path = Path(str(result.log))
    path.write_text(path.read_text().replace('"show_below":2000', '"show_below":800'))
    assert rlm.RLM().replay(result.trajectory_id).result.response == "Three."


def test_a_small_model_that_wants_pandas_is_told_of_the_variable(openai: Server) -> None:
    replies = [block("import pandas\npandas.read_csv(context)"), block("FINAL(len(rows))")]
    run(openai, *replies, context=TABLE, model=SMALL, show_below=0)
    told = openai.requests[1].last
    assert "no module 'pandas' here\n" in told and "`rows`, a list of 3 dicts" in told
    assert "It is made by csv.DictReader(context.splitlines()), with numbers as numbers." in told


@pytest.mark.parametrize(
    "context",
    [
        pytest.param("a,b\n" + "1,2\n" * 300 + "3,4,5\n", id="rows of different lengths"),
        pytest.param("id,name\n" + "1,Anna\n" * 300_000, id="a long table"),
        pytest.param("1\n2\n3\n4\n5\n" * 90 + "1,5\n", id="numbers with a decimal comma"),
        pytest.param("one line " * 200, id="one line"),
        pytest.param(["a", "b"] * 500, id="a list"),
    ],
)
def test_a_context_that_is_not_parsed_is_used_as_it_is(openai: Server, context: Any) -> None:
    run(openai, block("FINAL(len(context))"), context=context, model=SMALL)
    assert "Use: " in openai.requests[0].last and "Ready" not in openai.requests[0].last


def test_an_answer_may_be_a_final_call_in_json(openai: Server) -> None:
    schema = {"type": "object", "properties": {"paid": {"type": "boolean"}}, "required": ["paid"]}
    replies = [block("print(len(rows))"), 'ANSWER: FINAL({"paid": false})']
    assert run(openai, *replies, context=TABLE, model=SMALL, schema=schema).value == {"paid": False}
    assert "The answer must be the JSON of a value of this JSON Schema" in openai.requests[0].last


def test_a_list_as_python_shows_it_fits_a_schema(openai: Server) -> None:
    schema = {"type": "array", "items": {"type": "string"}}
    replies = [block("print([row['kind'] for row in rows])"), "ANSWER: ['book', 'pen']"]
    assert run(openai, *replies, context=TABLE, model=SMALL, schema=schema).value == ["book", "pen"]
    assert "ANSWER: <the answer as JSON>" in openai.requests[1].last


def test_an_answer_in_a_block_is_an_answer(openai: Server) -> None:
    result = run(openai, block("print(len(rows))"), block("ANSWER: 3"), context=TABLE, model=SMALL)
    assert (result.response, len(openai.requests)) == ("3", 2)


def test_an_answer_may_be_a_final_call_with_a_variable(openai: Server) -> None:
    replies = [block("print(n := len(rows))"), "ANSWER: FINAL(n)"]
    assert run(openai, *replies, context=TABLE, model=SMALL).value == 3


def test_a_large_model_parses_for_itself(openai: Server) -> None:
    result = run(openai, code("FINAL(sorted(SHOW_VARS()))"), context=TABLE * 30)
    assert result.value == ["context"] and "Ready" not in openai.requests[0].last


def test_the_variables_of_the_next_context_take_the_place_of_the_last(openai: Server) -> None:
    def script(request: Request) -> str:
        output = request.last.split("\n")[1]
        return f"ANSWER: {output}" if request.last.startswith("Output") else block("print(len(rows))")

    openai.script = script
    with rlm.RLM(model=SMALL, persistent=True, show_below=0) as runtime:
        answers = [runtime.completion("How many rows?", TABLE + more).response for more in ("", "4,pen,1,101\n")]
    assert answers == ["3", "4"]


@pytest.mark.parametrize(
    ("prompt", "tests"),
    [
        ("Did it say WARN?", "'WARN' in line"),
        ("Did it say WARN before 2026-05-04 06:00:09?", "'WARN' in line and line[:19] < '2026-05-04 06:00:09'"),
        (
            "Which WARN came from 2026-05-04 06:00:05 to 2026-05-04 06:00:09?",
            "'WARN' in line and line[:19] >= '2026-05-04 06:00:05' and line[:19] <= '2026-05-04 06:00:09'",
        ),
        ("Did it say WARN after 2026-05-04 06:00?", "'WARN' in line"),
    ],
)
def test_a_line_of_code_finds_the_lines_that_a_question_names(openai: Server, prompt: str, tests: str) -> None:
    run(openai, block("FINAL(1)"), context=LINES, prompt=prompt, model=SMALL, show_below=0)
    line = openai.requests[0].last.splitlines()[-2]
    assert line == f"Use: found = [line for line in lines if {tests}]; print(len(found), found[0], found[-1])"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("We sent KX-1219.\nNo KX-1300 there.\n" * 50, r"re.findall(r'\bKX-\d{4}\b', context)"),
        ("We sent KX-1234.\nNo KX-1300 there.\n" * 50, "if 'KX-1234' in line]"),
        ("We sent RB-12.\nNo KX-130 there.\n" * 50, "In it: 'KX' 50 times"),
    ],
    ids=["others like it", "itself", "nothing like it"],
)
def test_a_sample_of_a_code_becomes_a_pattern(openai: Server, text: str, told: str) -> None:
    run(openai, block("FINAL(1)"), context=text, prompt="How many codes like KX-1234 begin with KX?", model=SMALL)
    assert told in openai.requests[0].last


@pytest.mark.parametrize(("word", "shown"), [("first", "found[0]"), ("last", "found[-1]")])
def test_the_first_or_last_line_is_shown_where_it_is_asked_for(openai: Server, word: str, shown: str) -> None:
    prompt = f"When did the pump {word} say WARN?"
    run(openai, block("FINAL(1)"), context=LINES, prompt=prompt, model=SMALL, show_below=0)
    assert f"print({shown})" in openai.requests[0].last


@pytest.mark.parametrize(
    ("prompt", "source", "told"),
    [
        ("Which kind is the most common, and how many are there?", "print('book')", "a part of what the question"),
        ("How many books are there?", "print('book-2')", "a part of what the question"),
        ("Which kind is the most common, and how many are there?", "print(1, 2)", "a part of what the question"),
        ("Which is the most common, and how often?", "n = {'a': 2}\nprint(max(n, key=n.get))", "max(n.items(), key="),
        (
            "Which kind costs most?",
            "print({row['kind']: row['price'] for row in rows})",
            "totals.get(row['kind'], 0) + row['price']",
        ),
        ("Which kind costs most?", "print({row['id']: row['price'] for row in rows})", "If this output answers"),
        ("How many different kinds are there?", "print(len([r['kind'] for r in rows]))", "puts them into a set"),
        ("How many different kinds are there?", "print(len({r['kind'] for r in rows}))", "If this output answers"),
        (
            "How many are there?",
            "n = {}\nfor row in rows:\n    n[row['kind']] = 1",
            "Nothing was printed. Write a ```python block that goes on with n and prints",
        ),
        ("Which costs most?", "print(rows[7])", "The list is shorter than that"),
        ("Which costs most?", "print([r for r in rows if r['id'] > 9][0])", "leave it out"),
    ],
)
def test_an_output_that_cannot_be_the_answer_is_not_offered_as_one(
    openai: Server, prompt: str, source: str, told: str
) -> None:
    openai.script = lambda request: "ANSWER: 2 books" if "Output" in request.last else block(source)
    rlm.complete(prompt, TABLE, model=SMALL, show_below=0, max_iterations=4)
    assert told in openai.requests[1].last


def test_an_answer_that_repeats_the_question_is_sent_back(openai: Server) -> None:
    prompt = "At what time did the pump first say WARN?"
    replies = [block("print(lines[4][:19])"), f"ANSWER: {prompt}", "ANSWER: 2026-05-04 06:00:09"]
    result = run(openai, *replies, context=LINES, prompt=prompt, model=SMALL, show_below=0)
    assert result.response == "2026-05-04 06:00:09"
    assert "That is the question, not its answer." in openai.requests[2].last
