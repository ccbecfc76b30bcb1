"""The scripted server itself: its strictness is what the other tests rest on."""

from __future__ import annotations

import concurrent.futures
import json
import threading
from typing import Any

import pytest
import requests
import scripted
from scripted import KEY, Server, Turn, call

USER = {"role": "user", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
TOLD = {"role": "tool", "tool_call_id": "c1", "content": "seen"}
USE = {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "look", "input": {}}]}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "seen"}]}
LOOK = {"name": "look", "input_schema": {"type": "object"}}


def openai(server: Server, **sent: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {KEY}"}
    sent = {"model": "gpt-4o-mini", "messages": [USER], **sent}
    return requests.post(server.base_url + "/chat/completions", json=sent, headers=headers, timeout=10)


def anthropic(server: Server, **sent: Any) -> requests.Response:
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    sent = {"model": "claude-sonnet-5-5", "max_tokens": 100, "messages": [USER], **sent}
    return requests.post(server.url + "/v1/messages", json=sent, headers=headers, timeout=10)


@pytest.mark.parametrize(
    ("ask", "sent"),
    [
        (openai, {}),
        (openai, {"tools": [TOOL], "messages": [USER, ASKED, TOLD, USER]}),
        (openai, {"messages": [{"role": "system", "content": "s"}, USER], "stream": True}),
        (anthropic, {}),
        (anthropic, {"tools": [LOOK], "messages": [USER, USE, RESULT]}),
        (
            anthropic,
            {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}], "stream": True},
        ),
    ],
)
def test_a_right_request_is_answered(server: Server, ask: Any, sent: dict[str, Any]) -> None:
    assert ask(server, **sent).status_code == 200


@pytest.mark.parametrize(
    ("ask", "sent", "refusal"),
    [
        (openai, {"colour": "red"}, "unrecognized key 'colour'"),
        (openai, {"max_tokens": 1.5}, "invalid value"),
        (openai, {"max_tokens": True}, "invalid value"),
        (openai, {"tools": []}, "invalid value"),
        (openai, {"tools": [TOOL, TOOL]}, "unique"),
        (openai, {"tool_choice": "auto"}, "only allowed when 'tools'"),
        (openai, {"stream_options": {"include_usage": True}}, "only allowed when 'stream'"),
        (openai, {"model": "gpt-5", "max_tokens": 10}, "Unsupported parameter"),
        (openai, {"messages": [USER, ASKED, USER]}, "without tool messages"),
        (openai, {"messages": [USER, ASKED]}, "without tool messages"),
        (openai, {"messages": [USER, TOLD]}, "must be a response"),
        (openai, {"messages": [USER, ASKED, TOLD, TOLD]}, "must be a response"),
        (openai, {"messages": [USER, {**ASKED, "raw": {}}, TOLD]}, "unrecognized key 'raw'"),
        (openai, {"messages": [{"role": "user", "content": None}]}, "invalid value"),
        (openai, {"messages": [{"role": "user", "content": "\ud800"}]}, "could not parse"),
        (openai, {"temperature": float("nan")}, "NaN"),
        (anthropic, {"max_tokens": None}, "invalid value"),
        (anthropic, {"messages": [{"role": "system", "content": "s"}, USER]}, "invalid value 'system'"),
        (anthropic, {"messages": [USER, {"role": "assistant", "content": "so"}]}, "prefill"),
        (anthropic, {"messages": [USER, USE, RESULT]}, "`tools`"),
        (anthropic, {"tools": [LOOK], "messages": [USER, USE, USER]}, "without `tool_result`"),
        (anthropic, {"tools": [LOOK], "messages": [USER, RESULT]}, "unexpected `tool_use_id`"),
        (anthropic, {"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "non-whitespace"),
        (anthropic, {"messages": [{"role": "user", "content": ""}]}, "non-empty"),
        (anthropic, {"max_completion_tokens": 5}, "unrecognized key"),
    ],
)
def test_a_wrong_request_is_refused(ask: Any, sent: dict[str, Any], refusal: str) -> None:
    with Server() as server:
        # requests refuses NaN itself, so the JSON is written here.
        answer = ask(server, **sent) if "temperature" not in sent else post_as_it_is(server, sent)
        assert answer.status_code == 400
        assert refusal in answer.text.replace('\\"', '"')
        assert [refusal in problem for problem in server.problems] == [True]


def post_as_it_is(server: Server, sent: dict[str, Any]) -> requests.Response:
    data = json.dumps({"model": "gpt-4o-mini", "messages": [USER], **sent})
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    return requests.post(server.base_url + "/chat/completions", data=data, headers=headers, timeout=10)


def test_a_wrong_key_is_401_and_the_answer_repeats_it(server: Server) -> None:
    server.key = "another"
    answer = openai(server)
    assert (answer.status_code, KEY in answer.text) == (401, True)


def test_both_wires_say_the_same_turn(server: Server) -> None:
    server.script = lambda request: Turn("look:", [call("look", at=1)], usage={"input": 9, "output": 4, "cached": 2})
    chat = openai(server, tools=[TOOL]).json()
    message = chat["choices"][0]["message"]
    assert (message["content"], message["tool_calls"][0]["function"]["arguments"]) == ("look:", '{"at": 1}')
    assert chat["usage"]["prompt_tokens"] == 9
    said = anthropic(server, tools=[LOOK]).json()
    assert [b["type"] for b in said["content"]] == ["text", "tool_use"]
    assert said["usage"]["input_tokens"] + said["usage"]["cache_read_input_tokens"] == 9


def test_a_long_answer_is_cut_at_max_tokens(server: Server) -> None:
    server.script = lambda request: "x" * 1000
    choice = openai(server, max_tokens=10).json()["choices"][0]
    assert (len(choice["message"]["content"]), choice["finish_reason"]) == (40, "length")


def test_a_stream_is_cut_where_the_script_says(server: Server) -> None:
    server.script = lambda request: scripted.cut("a long enough answer", 100)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        openai(server, stream=True)


def test_64_clients_are_served_at_once(server: Server) -> None:
    gate = threading.Event()
    server.script = lambda request: Turn(request.last, until=gate)
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = [pool.submit(openai, server, messages=[{"role": "user", "content": str(n)}]) for n in range(64)]
        server.wait_for(64)
        gate.set()
        texts = [answer.result().json()["choices"][0]["message"]["content"] for answer in answers]
    assert (texts, server.peak) == ([str(n) for n in range(64)], 64)


def test_a_client_that_leaves_a_hanging_request_is_noticed(server: Server) -> None:
    server.script = lambda request: scripted.hang()
    with pytest.raises(requests.exceptions.ReadTimeout):
        requests.post(
            server.base_url + "/chat/completions",
            json={"model": "m", "messages": [USER]},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=0.05,
        )
    assert server.wait_for(1).gone.wait(10)
