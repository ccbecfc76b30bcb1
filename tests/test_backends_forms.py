"""Answers whose parts are of other types than their wire has: read where that can be, an error of ours where not."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from test_backends_wires import ADD, ASK, KEY, Wire, delta, streamed, to, wire  # noqa: F401  # the fixture

import rlm_backends
from rlm_backends import BackendError, Reply

START = {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 1}}}
STOP = [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"}]


def block(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": fields}


def more(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": f"{kind}_delta", **fields}}


def parts(*made: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(made)}, "finishReason": "STOP"}]}


def function(arguments: Any, **fields: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": 0, "id": "t", "function": {"name": "add", "arguments": arguments}, **fields}])


# --- what compatible servers send, and can be read -------------------------------------------------------------------


def test_a_text_that_starts_as_null_is_read(wire: Wire) -> None:  # noqa: F811
    wire.streams(START, block(0, type="text", text=None), more(0, "text", text="fine"), *STOP)
    assert streamed(to(wire, "anthropic")).text == "fine"
    wire.answers({"content": [{"type": "text", "text": None}, {"type": "text", "text": "fine"}]})
    assert to(wire, "anthropic").complete(ASK).text == "fine"


def test_a_thought_that_starts_as_null_is_read_and_goes_back_whole(wire: Wire) -> None:  # noqa: F811
    thought = [more(0, "thinking", thinking="hm"), more(0, "signature", signature="s")]
    wire.streams(START, block(0, type="thinking", thinking=None, signature=None), *thought, *STOP)
    raw = streamed(to(wire, "anthropic")).raw
    assert raw["content"] == [{"type": "thinking", "thinking": "hm", "signature": "s"}]


def test_null_in_a_part_of_gemini_s_is_as_if_it_were_not_there(wire: Wire) -> None:  # noqa: F811
    signed = {"text": None, "functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": "s"}
    wire.answers(parts({"text": "so", "functionCall": None}, {"text": " far", "thought": None}, signed))
    backend = to(wire, "gemini")
    reply = backend.complete(ASK, tools=[ADD])
    assert (reply.text, [call["arguments"] for call in reply.tool_calls]) == ("so far", [{"a": 1}])
    assert sent_again(backend, reply)["contents"][1]["parts"] == [
        {"text": "so far"},
        {"functionCall": {"name": "add", "args": {"a": 1}}, "thoughtSignature": "s"},
    ]


@pytest.mark.parametrize("pieces", [[{"a": 1}, ""], ["", {"a": 1}], [{}, '{"a": ', "1}"], [None, {"a": 1}, None]])
def test_arguments_are_read_as_objects_and_as_text(wire: Wire, pieces: list[Any]) -> None:  # noqa: F811
    wire.streams(*map(function, pieces), delta(finish="tool_calls"), "[DONE]")
    assert streamed(to(wire), tools=[ADD]).tool_calls == [{"id": "t", "name": "add", "arguments": {"a": 1}}]


@pytest.mark.parametrize("word", [["x"], {"a": 1}, 5, None, True], ids=str)
@pytest.mark.parametrize("field", ["type", "code", "status"])
def test_an_error_in_words_of_its_own_is_the_server_s(wire: Wire, field: str, word: Any) -> None:  # noqa: F811
    wire.streams({"error": {"message": "it broke", field: word}})
    with pytest.raises(BackendError, match="answers 500: it broke") as caught:
        streamed(to(wire))
    assert caught.value.code == "server"


# --- and what cannot --------------------------------------------------------------------------------------------------

NO_FORM = [
    ("openai", [delta(tool_calls=True)]),
    ("openai", [function("", extra_content={"a": 1}, id=["x"]), delta(finish="tool_calls")]),
    ("anthropic", [START, {"type": "message_delta", "delta": ["x"]}]),
    ("anthropic", [START, block(0, type="text", text=5), more(0, "text", text="a"), *STOP]),
    ("gemini", [{"candidates": [{"content": {"parts": 5}, "finishReason": "STOP"}]}]),
    ("gemini", [parts({"text": "so far"}, {"text": 5})]),
    ("gemini", [parts({"functionCall": "add"})]),
]


@pytest.mark.parametrize(("backend", "events"), NO_FORM, ids=str)
def test_an_answer_of_no_known_form_is_an_error_of_the_protocol(
    wire: Wire,  # noqa: F811
    backend: str,
    events: list[Any],
) -> None:
    wire.streams(*events, *(["[DONE]"] if backend == "openai" else []))
    with pytest.raises(BackendError, match="the server's answer has an unexpected form: ") as caught:
        streamed(to(wire, backend))
    assert (caught.value.code, caught.value.provider) == ("protocol", {"gemini": "google"}.get(backend, backend))


def test_an_answer_of_no_known_form_is_asked_for_again(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(rlm_backends, "backoff", lambda *_: 0.0)
    wire.answers({"content": 5})
    backend = to(wire, "anthropic")
    with pytest.raises(BackendError):
        backend._sibling("other").complete(ASK)
    backend._how = backend._how._replace(max_retries=2)
    with pytest.raises(BackendError, match="an unexpected form"):
        backend.complete(ASK)
    assert len(wire.requests) == 1 + 3


@pytest.mark.parametrize("raised", [TypeError, KeyError, ValueError, BackendError], ids=lambda kind: kind.__name__)
def test_what_the_listener_raises_is_not_the_server_s_doing(wire: Wire, raised: Any) -> None:  # noqa: F811
    wire.streams(delta("so far"), "[DONE]")
    mine = raised("mine", code="timeout") if raised is BackendError else raised("mine")

    def listen(_: str) -> None:
        raise mine

    with pytest.raises(raised) as caught:
        to(wire).complete(ASK, on_text=listen)
    assert caught.value is mine
    assert not getattr(mine, "provider", "")


# --- any value in any place -------------------------------------------------------------------------------------------

CALL = {"index": 0, "id": "t", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 1}}
MESSAGE = {
    "role": "assistant",
    "content": [{"type": "text", "text": "hi"}],
    "refusal": "no",
    "reasoning_content": "hm",
    "reasoning_details": [{"type": "x"}],
    "tool_calls": [{**CALL, "extra_content": {"google": {"thought_signature": "s"}}}],
}
BLOCKS = [
    {"type": "thinking", "thinking": "hm", "signature": "s"},
    {"type": "text", "text": "hi"},
    {"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}},
]
COUNTS = {"input_tokens": 9, "output_tokens": 4, "output_tokens_details": {"thinking_tokens": 1}}
CANDIDATE = {
    "modelVersion": "m",
    "promptFeedback": {"blockReason": ""},
    "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4},
    "candidates": [
        {
            "content": {
                "parts": [
                    {"text": "hm", "thought": True},
                    {"text": "hi"},
                    {"text": "ho"},
                    {"functionCall": {"id": "n", "name": "add", "args": {"a": 1}}, "thoughtSignature": "s"},
                ]
            },
            "finishReason": "STOP",
        }
    ],
}
FAULT = {"error": {"type": "t", "code": "c", "status": "s", "message": "m", "details": {"error_code": "e"}}}
WHOLE = [
    (
        "openai",
        {"model": "m", "usage": {**USAGE, "cost": 0.1}, "choices": [{"message": MESSAGE, "finish_reason": "stop"}]},
    ),
    ("deepseek", {"choices": [{"message": MESSAGE}]}),
    ("openrouter", {"choices": [{"message": MESSAGE}]}),
    ("openai", {"choices": [{"message": {"function_call": {"name": "add", "arguments": "{}"}}}]}),
    ("openai", FAULT),
    ("anthropic", {"model": "m", "content": BLOCKS, "stop_reason": "tool_use", "usage": COUNTS}),
    ("gemini", CANDIDATE),
]
STREAMED = [
    ("openai", [{"model": "m", "choices": [{"delta": MESSAGE}]}, function(""), {"usage": USAGE}, delta(finish="stop")]),
    (
        "anthropic",
        [
            {"type": "message_start", "message": {"model": "m", "usage": COUNTS}},
            *(block(index, **{**made, "input": {}}) for index, made in enumerate(BLOCKS)),
            more(0, "thinking", thinking="m"),
            more(0, "signature", signature="t"),
            more(1, "text", text="!"),
            more(2, "input_json", partial_json='{"a": 2}'),
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": COUNTS},
            {"type": "message_stop"},
        ],
    ),
    ("gemini", [CANDIDATE, CANDIDATE]),
]
ODD = (None, True, 5, 1e308, 10**400, "x", "\ud800", [], ["x"], [[]], {}, {"a": 1})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within `value`."""
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, name)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, name))


def with_odd_values(value: Any) -> Iterator[Any]:
    for path in places(value):
        for odd in ODD:
            changed = copy.deepcopy(value)
            place = changed
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = odd
            yield changed


def sent_again(backend: Any, reply: Reply) -> dict[str, Any]:
    """The body of the next turn, in which the answer is part of the history; it has to be one that can be sent."""
    turn = {"role": "assistant", "content": reply.text, "tool_calls": reply.tool_calls, "raw": reply.raw}
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": call["name"], "content": "3"} for call in reply.tool_calls
    ]
    sent: dict[str, Any] = backend.dry_run([*ASK, turn, *results], tools=[ADD])[2]
    assert rlm_backends._dumps(sent)
    return sent


def is_answered_or_refused(backend: Any, on_text: Any) -> None:
    try:
        reply = backend.complete(ASK, tools=[ADD], on_text=on_text)
    except BackendError as caught:
        assert KEY not in str(caught)
        backend.supports_tools = True  # it may have been said not to
        return
    assert isinstance(reply.text, str)
    assert all(
        isinstance(call["name"], str) and isinstance(call["arguments"], (dict, str)) for call in reply.tool_calls
    )
    assert all(isinstance(count, int) and count >= 0 for count in reply.usage.values())
    sent_again(backend, reply)


@pytest.mark.parametrize(("backend", "body"), WHOLE, ids=lambda value: value if isinstance(value, str) else "")
def test_any_value_in_any_place_is_an_answer_or_an_error(wire: Wire, backend: str, body: Any) -> None:  # noqa: F811
    asked = to(wire, backend)
    for changed in with_odd_values(body):
        wire.answers(changed)
        is_answered_or_refused(asked, None)


@pytest.mark.parametrize("status", [302, 400, 429, 500])
def test_any_value_in_a_refusal_is_an_error(wire: Wire, status: int, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(rlm_backends, "backoff", lambda *_: 0.0)
    asked = to(wire)
    for changed in (*ODD, *with_odd_values(FAULT), *([odd] for odd in ODD)):
        wire.answers(changed, status)
        with pytest.raises(BackendError) as caught:
            asked.complete(ASK)
        assert caught.value.status == status


@pytest.mark.parametrize(("backend", "events"), STREAMED, ids=lambda value: value if isinstance(value, str) else "")
def test_any_value_in_any_event_is_an_answer_or_an_error(wire: Wire, backend: str, events: list[Any]) -> None:  # noqa: F811
    asked = to(wire, backend)
    for changed in with_odd_values(events):
        wire.streams(*map(json.dumps, changed))
        is_answered_or_refused(asked, lambda _: None)
