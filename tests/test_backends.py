"""A model behind HTTP, as a caller of `connect` and `complete` sees it, against the scripted server."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import random
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import KEY, Fault, Request, Server, Turn, body, call, closed, cut, drip, error, half, hang, html, reset
from sdk_types import every_request_is_one_that_the_sdks_could_send  # noqa: F401

import rlm_backends
from rlm_backends import BackendError, HTTPBackend, Reply, connect

WIRES = ("openai", "anthropic")
ADD: dict[str, Any] = {
    "name": "add",
    "description": "adds two numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
}
ASK = [{"role": "system", "content": "be terse"}, {"role": "user", "content": "how are you?"}]
NO_USAGE = {"input": 0, "output": 0, "cached": 0, "cache_write": 0, "reasoning": 0}


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once where the server does not ask for a wait."""
    monkeypatch.setattr(random, "uniform", lambda *_: 0.0)


def to(server: Server, wire: str = "openai", **options: Any) -> HTTPBackend:
    """A backend for the server."""
    model = {"openai": "gpt-4o-mini", "anthropic": "claude-sonnet-4-5"}[wire]
    url = server.base_url if wire == "openai" else server.url
    return connect(options.pop("model", model), options.pop("backend", wire), base_url=url, api_key=KEY, **options)


def failing(backend: HTTPBackend, **how: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        backend.complete(how.pop("messages", ASK), **how)
    return caught.value


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def on_text(request: pytest.FixtureRequest) -> Callable[[str], None] | None:
    return (lambda _: None) if request.param else None


# --- answers --------------------------------------------------------------------------------------------------------


def test_an_answer_has_its_text_usage_cost_and_reason(server: Server, wire: str, on_text: Any) -> None:
    usage = {"input": 1000, "output": 50, "cached": 400, "cache_write": 0 if wire == "openai" else 100}
    server.script = [Turn("fine – 好", usage=usage)]
    backend = to(server, wire)
    reply = backend.complete(ASK, on_text=on_text)
    price = {"openai": (600 * 0.15 + 400 * 0.075 + 50 * 0.6), "anthropic": 500 * 3 + 400 * 0.3 + 100 * 3.75 + 50 * 15}
    assert reply == Reply(
        "fine – 好", [], {**usage, "reasoning": 0}, "stop", backend.model, pytest.approx(price[wire] / 1e6), None, 1
    )


def test_the_text_is_handed_on_as_it_comes(server: Server, wire: str) -> None:
    text = "a long story, told in pieces: 🐢 é 好\u2028end"
    server.script = [Turn(text)]
    heard: list[str] = []
    assert to(server, wire).complete(ASK, on_text=heard.append).text == text == "".join(heard)
    assert len(heard) > 1


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
def test_a_server_that_answers_in_the_form_it_was_not_asked_for_is_understood(
    server: Server, content_type: str
) -> None:
    whole = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    events = b'data: {"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
    server.script = [body(whole if "json" in content_type else events, content_type=content_type)]
    heard: list[str] = []
    on_text = heard.append if "json" in content_type else None
    assert to(server).complete(ASK, on_text=on_text).text == "hi"
    assert heard == (["hi"] if on_text else [])


def test_parallel_tool_calls_and_their_results_make_the_round_trip(server: Server, wire: str, on_text: Any) -> None:
    server.script = [Turn("adding", tool_calls=[call("add", a=1, b=2), call("add", a=3, b=4)]), "3 and 7"]
    backend = to(server, wire)
    first = backend.complete(ASK, tools=[ADD], on_text=on_text)
    assert (first.text, first.stop_reason) == ("adding", "tool_calls")
    assert [(made["name"], made["arguments"]) for made in first.tool_calls] == [
        ("add", {"a": 1, "b": 2}),
        ("add", {"a": 3, "b": 4}),
    ]
    results = [
        {"role": "tool", "tool_call_id": made["id"], "name": "add", "content": str(sum(made["arguments"].values()))}
        for made in first.tool_calls
    ]
    turn = {"role": "assistant", "content": first.text, "tool_calls": first.tool_calls, "raw": first.raw}
    assert backend.complete([*ASK, turn, *results], tools=[ADD], on_text=on_text).text == "3 and 7"
    assert list(server.requests[1].results.values()) == ["3", "7"]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("", {}),
        ("null", {}),
        ('{"a": 1}', {"a": 1}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('{"a": 1', '{"a": 1'),
        ("[1]", "[1]"),
        ('{"a": NaN}', '{"a": NaN}'),
        ("[" * 100000, "[" * 100000),
    ],
    ids=["empty", "null", "object", "encoded twice", "cut", "list", "NaN", "deep"],
)
def test_arguments_are_an_object_or_the_text_that_could_not_be_read(
    server: Server, on_text: Any, sent: str, read: Any
) -> None:
    server.script = [Turn(tool_calls=[{"name": "add", "arguments": sent}])]
    assert to(server).complete(ASK, tools=[ADD], on_text=on_text).tool_calls[0]["arguments"] == read


def test_a_history_with_unreadable_arguments_can_be_sent(server: Server, wire: str) -> None:
    made = {"id": "call_1", "name": "add", "arguments": '{"a": 1'}
    turn = {"role": "assistant", "content": "", "tool_calls": [made]}
    result = {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": "not JSON", "is_error": True}
    assert to(server, wire).complete([*ASK, turn, result], tools=[ADD]).text == "ok"


def test_a_history_of_tools_can_be_sent_without_offering_any(server: Server, wire: str) -> None:
    made = {"id": "call_1", "name": "add", "arguments": {"a": 1}}
    turn = {"role": "assistant", "content": "\n", "tool_calls": [made]}
    result = {"role": "tool", "tool_call_id": "call_1", "name": "add", "content": ""}
    also = {"role": "user", "content": "and now sum up"}
    assert to(server, wire).complete([*ASK, turn, result, also]).text == "ok"


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("stop", "stop"), ("length", "length"), ("content_filter", "content_filter"), ("eos", "stop")],
)
def test_stop_reasons_of_openai(server: Server, on_text: Any, finish: str, reason: str) -> None:
    server.script = [Turn("hm", finish=finish)]
    assert to(server).complete(ASK, on_text=on_text).stop_reason == reason


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("pause_turn", "pause"),
        ("refusal", "refusal"),
        ("model_context_window_exceeded", "length"),
    ],
)
def test_stop_reasons_of_anthropic(server: Server, on_text: Any, finish: str, reason: str) -> None:
    server.script = [Turn("hm", finish=finish)]
    assert to(server, "anthropic").complete(ASK, on_text=on_text).stop_reason == reason


def test_thinking_goes_back_unmodified_to_the_model_that_thought_and_to_no_other(server: Server, on_text: Any) -> None:
    server.script = [Turn("", thinking="first, add", tool_calls=[call("add", a=1, b=2)]), "3", "three"]
    backend = to(server, "anthropic")
    reply = backend.complete(ASK, tools=[ADD], on_text=on_text)
    turn = {"role": "assistant", "content": reply.text, "tool_calls": reply.tool_calls, "raw": reply.raw}
    result = {"role": "tool", "tool_call_id": reply.tool_calls[0]["id"], "name": "add", "content": "3"}
    history = json.loads(json.dumps([*ASK, turn, result]))
    backend.complete(history, tools=[ADD])
    backend.with_model("claude-haiku-4-5").complete(history, tools=[ADD])
    kinds = [[block["type"] for block in request.messages[1]["content"]] for request in server.requests[1:]]
    assert kinds == [["thinking", "tool_use"], ["tool_use"]]


def test_usage_is_estimated_where_the_server_sends_none(server: Server, wire: str) -> None:
    server.script = [Turn("x" * 300, usage=None)]
    usage = to(server, "openai").complete(ASK).usage
    assert usage == {**NO_USAGE, "input": usage["input"], "output": usage["output"], "estimated": True}
    assert usage["output"] >= 100


def test_the_price_that_a_provider_reports_counts(server: Server) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "cost": 0.0123}
    server.script = [Turn("hm", extra={"usage": usage})]
    assert to(server).complete(ASK).cost_usd == 0.0123


def test_lone_surrogates_do_not_stop_a_request(server: Server, wire: str) -> None:
    to(server, wire).complete([{"role": "user", "content": "half an emoji: \ud83d"}])
    assert server.requests[0].prompt == "half an emoji: ?"


def test_empty_and_blank_texts_are_sent_as_the_provider_takes_them(server: Server, wire: str) -> None:
    blank = [{"role": "system", "content": " "}, {"role": "user", "content": "\n"}]
    assert to(server, wire).complete(blank).text == "ok"


# --- images ---------------------------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n-not really-"


def test_images_are_read_from_files_bytes_urls_and_data_uris(workspace: Path) -> None:
    (workspace / "dot.png").write_bytes(PNG)
    made = {"type": "image", "media_type": "image/png", "data": "iVBORw0KGgotbm90IHJlYWxseS0="}
    assert rlm_backends.image_part(PNG) == rlm_backends.image_part(workspace / "dot.png") == made
    assert rlm_backends.image_part(f"data:image/png;base64,{made['data']}") == made
    assert rlm_backends.image_part("https://x.example/a.png") == {"type": "image", "url": "https://x.example/a.png"}
    with pytest.raises(ValueError, match="not a PNG"):
        rlm_backends.image_part(b"%PDF-1.7")


def test_images_are_sent_in_prompts_and_in_tool_results(server: Server, wire: str) -> None:
    picture = rlm_backends.image_part(PNG)
    linked = {"type": "image", "url": "https://x.example/a.png"}
    prompt = {"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture, linked]}
    turn = {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "name": "add", "arguments": {}}]}
    result = {
        "role": "tool",
        "tool_call_id": "c1",
        "name": "add",
        "content": [{"type": "text", "text": "a plot"}, picture],
    }
    to(server, wire).complete([prompt, turn, result], tools=[ADD])
    sent = server.requests[0].raw.decode()
    assert (sent.count(picture["data"]), sent.count(linked["url"])) == (2, 1)
    assert server.requests[0].results["c1"].startswith("a plot")


def test_a_model_that_cannot_see_says_so_before_anything_is_sent(server: Server) -> None:
    messages = [{"role": "user", "content": [rlm_backends.image_part(PNG)]}]
    caught = failing(to(server, model="gpt-3.5-turbo"), messages=messages)
    assert (caught.code, caught.message, server.requests) == ("no_images", "'gpt-3.5-turbo' cannot see images", [])


def test_a_server_that_turns_out_not_to_see_is_remembered(server: Server) -> None:
    server.script = [error(400, "image input is not supported - hint: you may need to provide the mmproj")]
    backend = to(server, model="some-model")
    messages = [{"role": "user", "content": [rlm_backends.image_part(PNG)]}]
    assert [failing(backend, messages=messages).code for _ in range(2)] == ["no_images"] * 2
    assert len(server.requests) == 1


# --- what is tried again, and what is not ---------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_passing_failures_are_tried_again(server: Server, wire: str, on_text: Any, status: int) -> None:
    server.script = [error(status), error(status), "at last"]
    reply = to(server, wire).complete(ASK, on_text=on_text)
    assert (reply.text, reply.attempts, len(server.requests)) == ("at last", 3, 3)


@pytest.mark.parametrize(
    ("fault", "code", "status"),
    [
        (error(400), "bad_request", 400),
        (error(401), "auth", 401),
        (error(402), "quota", 402),
        (error(403), "auth", 403),
        (error(404), "not_found", 404),
        (error(413), "bad_request", 413),
        (error(422), "bad_request", 422),
        (error(429, code="insufficient_quota"), "quota", 429),
        (error(429, code="organization_spend_limit_exceeded"), "quota", 429),
        (error(400, "Your credit balance is too low"), "quota", 400),
        (error(429, retry_after=3600), "rate", 429),
        (error(503, x_should_retry="false"), "server", 503),
        (error(400, code="context_length_exceeded"), "context_length", 400),
        (error(400, code="content_filter"), "refused", 400),
        (html(), "protocol", 200),
        (Fault(status=307, headers={"Location": "https://elsewhere.example/v1"}, body=b""), "redirect", 307),
    ],
    ids=lambda value: str(getattr(value, "code", None) or getattr(value, "status", value)),
)
def test_lasting_failures_are_not_tried_again(
    server: Server, on_text: Any, fault: Fault, code: str, status: int
) -> None:
    server.script = [fault]
    caught = failing(to(server), on_text=on_text)
    assert (caught.code, caught.status, caught.provider, len(server.requests)) == (code, status, "openai", 1)


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize(
    "fault",
    [
        reset(),
        reset("hello there", 0),
        half(),
        body(b""),
        body({"choices": []}),
        cut("hello there", 40),
        body({"error": {"message": "overloaded", "type": "overloaded_error"}}),
        body({"error": {"code": 502}}),
    ],
    ids=["reset", "reset in the head", "half", "empty", "no choice", "cut", "error with 200", "code with 200"],
)
def test_broken_answers_are_tried_again(server: Server, fault: Fault) -> None:
    server.script = [fault, "whole"]
    reply = to(server).complete(ASK)
    assert (reply.text, reply.attempts) == ("whole", 2)


@pytest.mark.usefixtures("no_pause")
def test_max_retries_counts_further_attempts(server: Server) -> None:
    server.script = lambda _: error(503)
    assert failing(to(server, max_retries=2)).status == 503
    assert len(server.requests) == 3
    failing(to(server, max_retries=0))
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("headers", "said", "wait"),
    [
        ({"retry-after": "7"}, b"", 7.0),
        ({"retry-after": "0.25"}, b"", 0.25),
        ({"retry-after-ms": "120", "retry-after": "7"}, b"", 0.12),
        ({"retry-after": "nan"}, b"", None),
        ({"retry-after": "-5"}, b"", None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:09 GMT"}, b"", 0.0),
        ({"retry-after": "soon"}, b"", None),
        ({}, b'{"error": {"details": [{"retryDelay": "37.5s"}]}}', 37.5),
        ({}, b'{"retryDelay": "later"}', None),
    ],
)
def test_the_wait_that_a_server_asks_for_is_read(headers: dict[str, str], said: bytes, wait: float | None) -> None:
    assert rlm_backends._wait_asked(headers, said) == wait


def test_a_date_to_wait_for_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    assert rlm_backends._wait_asked({"retry-after": "Sun, 09 Sep 2001 01:46:50 GMT"}, b"") == 10.0


def test_the_server_is_given_the_time_it_asks_for() -> None:
    assert 7 < rlm_backends.backoff(BackendError("", code="rate", retry_after=7), 1) < 7.1


def test_pauses_grow_and_are_never_quite_the_same() -> None:
    def pause(failures: int) -> float:
        return rlm_backends.backoff(BackendError("", code="server"), failures)

    assert all(0.75 * 0.5 * 2**n <= pause(n + 1) <= 0.5 * 2**n for n in range(5))
    assert pause(40) <= 8
    assert len({pause(1) for _ in range(10)}) > 1


def test_a_wait_that_does_not_fit_before_the_deadline_is_not_begun(server: Server) -> None:
    server.script = [error(429, "slow down", retry_after=60)]
    caught = failing(to(server), deadline=time.monotonic() + 20)
    assert (caught.code, len(server.requests)) == ("rate", 1)


def test_a_long_prompt_may_take_longer_than_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow line a prompt of megabytes takes longer than a server may take to accept the connection."""
    monkeypatch.setattr(rlm_backends, "CONNECT_TIMEOUT", 0.2)
    text, reply = "x" * 20_000_000, json.dumps({"choices": [{"message": {"content": "read"}}]}).encode()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as stream:
                threading.Event().wait(0.5)  # nobody reads for longer than connecting may take
                length = max(
                    int(line[15:]) for line in iter(stream.readline, b"\r\n") if line.startswith(b"Content-Length")
                )
                stream.read(length)
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                connection.sendall(head % len(reply) + reply)

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        backend = connect("gpt-4o-mini", "openai", base_url=url, api_key="a-key-for-nobody", max_retries=0)
        assert backend.complete([{"role": "user", "content": text}]).text == "read"
        thread.join()


class Clock:
    """The time as the backend reads it: it goes on by itself, and further where a test says so."""

    time, sleep = staticmethod(time.time), staticmethod(time.sleep)

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def test_the_deadline_holds_over_all_attempts(
    server: Server, wire: str, on_text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def reply(request: Request) -> Fault:
        clock.ahead += 200  # each attempt by itself would be in time
        return error(503, retry_after=0.01) if request.number < 3 else hang()

    server.script = reply
    monkeypatch.setattr(rlm_backends, "time", clock)
    monkeypatch.setattr(rlm_backends, "_links", {})  # whose gates open in that time
    backend = to(server, wire)
    caught = failing(backend, on_text=on_text, deadline=clock.monotonic() + 500)
    assert (caught.code, caught.message) == ("timeout", "no answer before the deadline")
    assert len(server.requests) == 3
    backend.close()


def test_a_deadline_in_the_past_sends_nothing(server: Server) -> None:
    assert failing(to(server), deadline=time.monotonic() - 1).code == "timeout"
    assert server.requests == []


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("fault", [hang(), drip("slowly", 0.05)], ids=["silent", "dripping"])
def test_a_server_that_says_nothing_whole_in_time_is_given_up(server: Server, on_text: Any, fault: Fault) -> None:
    server.script = lambda _: fault
    caught = failing(to(server, timeout=0.3, max_retries=1), on_text=on_text)
    assert (caught.code, len(server.requests)) == ("timeout", 2)


def test_a_slow_listener_is_not_a_silent_server(server: Server) -> None:
    over = threading.Event()
    server.script = "one two three four five"
    backend = to(server, timeout=0.3)
    heard: list[str] = []

    def listen(text: str) -> None:
        heard.append(text)
        over.wait(0.6 if len(heard) == 1 else 0)

    assert backend.complete(ASK, on_text=listen).text == "one two three four five"


def test_nobody_there_is_an_error_with_the_next_step() -> None:
    with Server() as gone:
        backend = to(gone, max_retries=0)
    caught = failing(backend)
    place = gone.url.partition("//")[2]
    assert (caught.code, caught.message) == ("connection", f"no connection to {place}: connection refused")
    assert caught.hint == "is the server running?"


def test_a_connection_that_the_server_closed_while_idle_costs_no_retry(server: Server) -> None:
    """Closed as the request comes in, which the client cannot have known."""
    server.script = ["one", reset(), "two", reset(), "three"]
    backend = to(server, max_retries=0)
    assert [backend.complete(ASK).text for _ in range(2)] == ["one", "two"]
    assert len(server.requests) == 3


def test_a_connection_that_the_server_closed_after_an_answer_is_not_used_again(server: Server) -> None:
    server.script = lambda request: closed("one") if request.number == 1 else "two"
    backend = to(server, max_retries=0)
    assert [backend.complete(ASK).text for _ in range(2)] == ["one", "two"]


def test_a_new_connection_that_breaks_is_a_failure(server: Server) -> None:
    server.script = lambda _: reset()
    assert failing(to(server, max_retries=0)).code == "connection"
    assert len(server.requests) == 1


# --- streams that break ---------------------------------------------------------------------------------------------

LONG = "the quick brown fox jumps over the lazy dog, " * 8


@pytest.mark.parametrize("framing", ["auto", "close"])
@pytest.mark.parametrize("wire_", WIRES)
def test_a_stream_cut_after_text_is_an_error_with_that_text(server: Server, wire_: str, framing: Any) -> None:
    server.script = [cut(LONG, 1500, framing=framing)]
    heard: list[str] = []
    caught = failing(to(server, wire_), on_text=heard.append)
    assert caught.code in ("truncated", "connection")
    assert caught.partial == "".join(heard) != ""
    assert LONG.startswith(caught.partial) and caught.partial != LONG
    assert len(server.requests) == 1


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("framing", ["auto", "close"])
@pytest.mark.parametrize(("wire_", "after"), [("openai", 0), ("openai", 150), ("anthropic", 0), ("anthropic", 150)])
def test_a_stream_cut_before_its_first_token_is_asked_for_again(
    server: Server, wire_: str, after: int, framing: Any
) -> None:
    server.script = [cut(LONG, after, framing=framing), LONG]
    heard: list[str] = []
    reply = to(server, wire_).complete(ASK, on_text=heard.append)
    assert (reply.text, "".join(heard), reply.attempts) == (LONG, LONG, 2)


@pytest.mark.parametrize("wire_", WIRES)
def test_a_tool_call_that_was_cut_is_never_handed_on(server: Server, wire_: str) -> None:
    turn = Turn(tool_calls=[call("add", a=1, b="x" * 500)])
    server.script = [cut(turn, 900, framing="close")]
    caught = failing(to(server, wire_), tools=[ADD], on_text=lambda _: None)
    assert (caught.code, caught.partial) == ("truncated", "")


def test_an_error_in_the_middle_of_a_stream_is_one(server: Server) -> None:
    events = b'data: {"choices": [{"delta": {"content": "so far"}}]}\n\n'
    events += b'data: {"error": {"message": "the engine broke", "type": "server_error"}}\n\n'
    server.script = [body(events, content_type="text/event-stream")]
    caught = failing(to(server), on_text=lambda _: None)
    assert (caught.code, caught.partial) == ("server", "so far")
    assert "the engine broke" in caught.message


@pytest.mark.parametrize("junk", [b"{not json", b"[1]", b"42", b'"text"'])
def test_an_event_that_is_no_object_ends_the_stream_with_an_error(server: Server, junk: bytes) -> None:
    events = b'data: {"choices": [{"delta": {"content": "so far"}}]}\n\ndata: ' + junk + b"\n\n"
    server.script = [body(events, content_type="text/event-stream")]
    assert failing(to(server), on_text=lambda _: None).code == "truncated"


def test_a_whole_answer_counts_though_the_end_of_its_stream_is_missing(server: Server) -> None:
    events = b'data: {"choices": [{"delta": {"content": "all of it"}, "finish_reason": "stop"}]}\n\n'
    server.script = [body(events, content_type="text/event-stream")]
    assert to(server).complete(ASK, on_text=lambda _: None).text == "all of it"


def test_what_the_listener_raises_reaches_the_caller_and_nothing_is_asked_again(server: Server) -> None:
    class Enough(Exception):
        pass

    def listen(_: str) -> None:
        raise Enough

    backend = to(server, max_parallel=1)
    with pytest.raises(Enough):
        backend.complete(ASK, on_text=listen)
    assert backend.complete(ASK).text == "ok"  # the place was given back
    assert len(server.requests) == 2


# --- ending a call --------------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as caught:
            outcome.append(caught)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def cancelled(backend: HTTPBackend, begun: Callable[[], object], on_text: Any = None) -> BackendError:
    """The error of a call that is cancelled once `begun` has returned."""
    cancel = threading.Event()
    thread, outcome = in_thread(lambda: backend.complete(ASK, on_text=on_text, cancel=cancel))
    begun()
    cancel.set()
    thread.join(20)
    assert not thread.is_alive()
    assert isinstance(outcome[0], BackendError)
    return outcome[0]


def test_a_call_can_be_cancelled_while_it_waits_for_an_answer(server: Server, wire: str, on_text: Any) -> None:
    server.script = lambda _: hang()
    caught = cancelled(to(server, wire), lambda: server.wait_for(1), on_text)
    assert (caught.code, len(server.requests)) == ("cancelled", 1)
    assert server.requests[0].gone.wait(20)  # the server is told, and stops working


def test_a_call_can_be_cancelled_in_the_middle_of_a_stream(server: Server, wire: str) -> None:
    heard, partial = threading.Event(), []
    server.script = [drip(LONG, 0.001)]

    def listen(text: str) -> None:
        partial.append(text)
        heard.set()

    caught = cancelled(to(server, wire), lambda: heard.wait(20), listen)
    assert (caught.code, caught.partial) == ("cancelled", "".join(partial))


def test_a_call_can_be_cancelled_between_attempts(server: Server) -> None:
    server.script = lambda _: error(503, retry_after=100)
    answered = threading.Event()
    sleep = rlm_backends.CallState.sleep

    def begun() -> None:
        server.wait_for(1)
        assert answered.wait(20)

    def told(state: rlm_backends.CallState, seconds: float | None) -> None:
        answered.set()
        sleep(state, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rlm_backends.CallState, "sleep", told)
        assert cancelled(to(server), begun).code == "cancelled"


def test_a_call_can_be_cancelled_while_it_waits_for_its_turn(server: Server) -> None:
    release = threading.Event()
    server.script = [Turn("first", until=release), "third"]
    backend = to(server, max_parallel=1)
    first, answer = in_thread(lambda: backend.complete(ASK))
    server.wait_for(1)
    assert cancelled(backend, lambda: None).code == "cancelled"
    release.set()
    first.join(20)
    assert (answer[0].text, backend.complete(ASK).text, len(server.requests)) == ("first", "third", 2)


def test_a_call_can_be_cancelled_while_it_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes the connection and then does not read."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))
    backend = connect("gpt-4o-mini", base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key=KEY)
    cancel, accepted = threading.Event(), []
    prompt = [{"role": "user", "content": "x" * 30_000_000}]
    thread, outcome = in_thread(lambda: backend.complete(prompt, cancel=cancel))
    accepted.append(listener.accept())
    assert accepted[0][0].recv(10, socket.MSG_PEEK) == b"POST /v1/c"
    cancel.set()
    thread.join(20)
    accepted[0][0].close()
    listener.close()
    assert outcome[0].code == "cancelled"


def test_a_call_can_be_cancelled_while_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that does not answer: `getaddrinfo` cannot be interrupted, so the thread in it is left."""
    import socket

    asked, answer = threading.Event(), threading.Event()
    resolve = socket.getaddrinfo

    def slow(host: Any, *args: Any, **options: Any) -> Any:
        asked.set()
        answer.wait(30)
        return resolve("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    backend = connect("gpt-4o-mini", base_url="http://model.invalid:9/v1", api_key=KEY)
    assert cancelled(backend, lambda: asked.wait(20)).code == "cancelled"
    answer.set()


def test_a_cancelled_call_is_not_begun(server: Server) -> None:
    cancel = threading.Event()
    cancel.set()
    assert failing(to(server), cancel=cancel).code == "cancelled"
    assert server.requests == []


# --- many at once ---------------------------------------------------------------------------------------------------


def all_at_once(backend: HTTPBackend, prompts: list[str], **how: Any) -> list[Any]:
    """What each prompt came to, in order."""
    started = [in_thread(lambda p=p: backend.complete([{"role": "user", "content": p}], **how)) for p in prompts]
    for thread, _ in started:
        thread.join(60)
    return [outcome[0] for _, outcome in started]


def test_no_more_calls_are_under_way_than_max_parallel(server: Server) -> None:
    server.script = lambda request: Turn(request.last, delay=0.01)
    prompts = [f"prompt {n}" for n in range(40)]
    assert [reply.text for reply in all_at_once(to(server, max_parallel=5), prompts)] == prompts
    assert server.peak <= 5
    assert server.connections <= 5


def test_a_provider_that_takes_few_at_once_loses_none_of_many(server: Server) -> None:
    """More than three at once are turned away, as a rate limit does it."""

    def busy(request: Request) -> Turn | Fault:
        return error(429, retry_after=0.02) if server.in_flight > 3 else Turn(request.last, delay=0.005)

    server.script = busy
    prompts = [f"prompt {n}" for n in range(200)]
    backend = to(server, max_parallel=16)
    assert [getattr(reply, "text", reply) for reply in all_at_once(backend, prompts)] == prompts
    assert backend.max_output == 16_000


def test_what_fails_among_many_is_its_own_exception(server: Server) -> None:
    server.script = lambda request: error(400, "no") if request.last.endswith("7") else request.last
    prompts = [f"prompt {n}" for n in range(20)]
    results = all_at_once(to(server), prompts)
    failed = [n for n, result in enumerate(results) if isinstance(result, BackendError)]
    assert failed == [7, 17]
    assert [result.text for n, result in enumerate(results) if n not in failed] == [
        prompt for prompt in prompts if not prompt.endswith("7")
    ]


def test_the_width_shrinks_with_429_and_grows_with_answers() -> None:
    gate = rlm_backends.AdaptiveLimiter(16)
    gate.throttle(0)
    assert gate.limit == 8
    gate.opens_at = time.monotonic() + 100
    gate.throttle(0)  # of the same burst
    assert gate.limit == 8
    gate.busy = 1000
    for _ in range(1000):
        gate.count_answer()
    assert gate.limit == 16


def test_a_thread_that_could_not_be_started_once_is_started_by_the_next_call(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(rlm_backends, "_watch", rlm_backends.CancelWatcher())
    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refuse)
        caught = failing(to(server))
        assert (caught.code, caught.message) == ("config", "no thread for the call can be started")
    server.script = lambda _: hang()
    assert failing(to(server), deadline=time.monotonic() + 0.2).message == "no answer before the deadline"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_process_forked_while_a_question_is_asked_can_ask_it_too(server: Server, workspace: Path) -> None:
    release = threading.Event()
    server.script = lambda request: Turn("fine", until=release if request.number == 1 else None)
    backend = to(server, cache=str(workspace))
    asking, _ = in_thread(lambda: backend.complete(ASK))
    server.wait_for(1)
    with rlm_backends._serving, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # to fork with threads is what is tried here
        child = os.fork()
        if child == 0:
            text = ""
            try:
                assert not rlm_backends._serving.locked()
                text = backend.complete(ASK, deadline=time.monotonic() + 20).text
            finally:
                os._exit(0 if text == "fine" else 1)
    assert os.waitpid(child, 0)[1] == 0
    release.set()
    asking.join(20)


# --- answers kept ---------------------------------------------------------------------------------------------------


def test_an_answer_is_kept_across_runs_and_costs_nothing_again(server: Server, workspace: Path, wire: str) -> None:
    server.script = [Turn("fine", tool_calls=[call("add", a=1)])]
    first = to(server, wire, cache=True).complete(ASK, tools=[ADD], max_tokens=100)
    heard: list[str] = []
    again = to(server, wire, cache=True).complete(ASK, tools=[ADD], max_tokens=50, on_text=heard.append)
    assert (again.text, again.tool_calls, heard) == (first.text, first.tool_calls, ["fine"])
    assert (again.usage, again.cost_usd, again.attempts) == (NO_USAGE, 0.0, 0)
    kept = list((workspace.parent / "xdg_cache_home" / "rlm").iterdir())
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600]
    assert KEY not in kept[0].read_text()


def test_what_was_cut_short_or_failed_is_not_kept(server: Server, workspace: Path) -> None:
    server.script = [Turn("hm", finish="length"), error(400), "whole"]
    backend = to(server, cache=str(workspace / "kept"))
    assert backend.complete(ASK).stop_reason == "length"
    assert failing(backend).code == "bad_request"
    assert [backend.complete(ASK).text for _ in range(2)] == ["whole"] * 2
    assert len(server.requests) == 3


def test_a_torn_answer_is_asked_for_again(server: Server, workspace: Path) -> None:
    backend = to(server, cache=str(workspace / "kept"))
    backend.complete(ASK)
    (path,) = (workspace / "kept").iterdir()
    for torn in (
        "",
        "{",
        "[]",
        '{"text": null}',
        '{"text": 3, "tool_calls": [], "usage": {}, "stop_reason": "", "model": ""}',
    ):
        path.write_text(torn)
        assert backend.complete(ASK).attempts == 1


@pytest.mark.parametrize("folder", ["file", "file/within", "\0"], ids=repr)
def test_a_cache_that_cannot_be_written_is_noticed_before_anything_is_paid_for(
    server: Server, workspace: Path, folder: str
) -> None:
    (workspace / "file").write_text("")
    caught = failing(to(server, cache=f"{workspace}/{folder}"))
    assert (caught.code, caught.message[:25]) == ("config", "cannot write to the cache")
    assert server.requests == []


def test_a_cache_in_a_folder_that_may_only_be_read_is_read(
    server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = to(server, cache=str(workspace / "kept"))
    kept.complete(ASK)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert kept.complete(ASK).attempts == 0
    assert failing(kept, messages=ASK[1:]).code == "config"
    assert len(server.requests) == 1


def test_an_answer_that_cannot_be_kept_is_an_answer_still(server: Server, workspace: Path) -> None:
    folder = workspace / "kept"
    listen = in_the_way(folder)
    assert to(server, cache=str(folder)).complete(ASK, on_text=listen).text == "ok"
    (path,) = folder.iterdir()
    assert path.is_dir()  # and no temporary file beside it


def in_the_way(folder: Path) -> Callable[[str], None]:
    """A listener that puts a folder where the answer is about to be kept."""

    def listen(_: str) -> None:
        (name,) = rlm_backends._pending
        Path(name).mkdir()
        (Path(name) / "x").write_text("")

    return listen


def test_the_same_prompt_in_flight_is_sent_once(server: Server, workspace: Path) -> None:
    release = threading.Event()
    server.script = [Turn("fine", until=release)]
    backend = to(server, cache=str(workspace))
    started = [in_thread(lambda: backend.complete(ASK)) for _ in range(8)]
    server.wait_for(1)
    while sum(len(pending.queue) for pending in rlm_backends._pending.values()) < 7:
        threading.Event().wait(0.001)
    release.set()
    for thread, _ in started:
        thread.join(20)
    assert sorted(outcome[0].attempts for _, outcome in started) == [0] * 7 + [1]
    assert len(server.requests) == 1


def test_who_waits_for_another_s_answer_asks_himself_when_that_one_gives_up(server: Server, workspace: Path) -> None:
    server.script = lambda request: hang() if request.number == 1 else "mine"
    backend = to(server, cache=str(workspace))
    cancel = threading.Event()
    first, _ = in_thread(lambda: backend.complete(ASK, cancel=cancel))
    server.wait_for(1)
    second, answer = in_thread(lambda: backend.complete(ASK))
    while not any(pending.queue for pending in rlm_backends._pending.values()):
        threading.Event().wait(0.001)
    cancel.set()
    first.join(20)
    second.join(20)
    assert answer[0].text == "mine"


# --- servers that are not quite the provider ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "registry.ollama.ai/library/gemma:2b does not support tools",
        '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        "tools param requires --jinja flag",
        "Function calling is not enabled for models/gemma",
        "`tool calling` is not supported with this model",
        "tool_choice is not supported by this model",
    ],
)
def test_a_model_without_tools_is_noticed_once(server: Server, message: str) -> None:
    server.script = [error(400, message), "as text"]
    backend = to(server, model="some-model")
    assert [failing(backend, tools=[ADD]).code for _ in range(2)] == ["no_tools"] * 2
    assert (backend.supports_tools, backend.complete(ASK).text, len(server.requests)) == (False, "as text", 2)


def test_an_error_about_one_tool_is_not_taken_for_a_lack_of_tools(server: Server) -> None:
    server.script = [error(400, "Invalid schema for function 'add': 'integr' is not a type")]
    backend = to(server)
    assert failing(backend, tools=[ADD]).code == "bad_request"
    assert backend.supports_tools


def test_the_other_spelling_of_the_limit_is_learnt(server: Server) -> None:
    refusal = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )
    server.script = [error(400, refusal), "ok", "ok"]
    backend = to(server, model="some-model")
    for _ in range(2):
        backend.complete(ASK, max_tokens=9)
    limits = [{name for name in request.body if name.startswith("max_")} for request in server.requests]
    assert limits == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]


def test_a_field_that_the_server_does_not_know_is_left_out_from_then_on(server: Server) -> None:
    server.script = [error(422, "extra fields not permitted: stream_options"), "ok", "ok"]
    backend = to(server)
    for _ in range(2):
        assert backend.complete(ASK, on_text=lambda _: None).text == "ok"
    assert ["stream_options" in request.body for request in server.requests] == [True, False, False]


def test_a_limit_that_is_too_high_is_lowered_to_what_the_server_says(server: Server) -> None:
    server.script = [error(400, "max_tokens: 90000 > 8192, which is the maximum allowed number of output tokens"), "ok"]
    backend = to(server, "anthropic", model="claude-other")
    assert backend.complete(ASK, max_tokens=90_000).text == "ok"
    assert (server.requests[1].max_tokens, backend.max_output) == (8192, 8192)


def test_the_window_is_learnt_from_a_prompt_that_was_too_long(server: Server) -> None:
    server.window = 10
    backend = to(server, model="some-model")
    assert (failing(backend).code, backend.window) == ("context_length", 10)


@pytest.mark.parametrize("wire_", WIRES)
def test_a_schema_for_the_answer_is_sent_in_the_provider_s_form(server: Server, wire_: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    server.also_allow = ["output_config"]
    to(server, wire_).complete(ASK, response_schema=schema)
    sent = server.requests[0].body
    form = sent["output_config"]["format"] if wire_ == "anthropic" else sent["response_format"]["json_schema"]
    assert form["schema"] == schema


# --- prompt caches --------------------------------------------------------------------------------------------------


def marks(request: Request) -> list[str]:
    """Where the marks are: each marked block's text, or the name of the tool."""
    found = [*request.body.get("tools", []), *request.body.get("system", [])]
    for message in request.messages:
        found += message["content"]
    return [str(b.get("name") or b.get("text") or b.get("tool_use_id")) for b in found if "cache_control" in b]


def test_each_turn_reads_all_but_the_newest_from_the_cache(server: Server) -> None:
    server.script = lambda request: Turn(tool_calls=[{**call("add", a=1), "id": f"call_{request.turn}"}])
    backend, history = to(server, "anthropic"), list(ASK)
    for _ in range(4):
        reply = backend.complete(history, tools=[ADD])
        history.append({"role": "assistant", "content": "", "tool_calls": reply.tool_calls})
        for made in reply.tool_calls:
            history.append({"role": "tool", "tool_call_id": made["id"], "name": "add", "content": "3"})
    assert [marks(request) for request in server.requests] == [
        ["add", "be terse", "how are you?"],
        ["add", "be terse", "how are you?", "call_1"],
        ["add", "be terse", "call_1", "call_2"],
        ["add", "be terse", "call_2", "call_3"],
    ]
    unmarked = [
        json.dumps(request.messages).replace(', "cache_control": {"type": "ephemeral"}', "")
        for request in server.requests
    ]
    assert all(later.startswith(earlier[:-1]) for earlier, later in itertools.pairwise(unmarked))


def test_a_prompt_that_is_not_sent_again_is_not_marked(server: Server) -> None:
    to(server, "anthropic").complete([{"role": "user", "content": "read this"}])
    assert "cache_control" not in server.requests[0].raw.decode()


def test_messages_that_go_out_with_every_turn_go_out_as_they_are_now(server: Server) -> None:
    backend = to(server)
    called = {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "name": "add", "arguments": {"a": 1}}]}
    result = {"role": "tool", "tool_call_id": "a", "name": "add", "content": "a long résumé"}
    history = [{**message, "_tokens": 5} for message in [*ASK, called, result]]
    backend.complete(history, tools=[ADD])
    history[-1]["content"] = "[a stub]"
    history[1] = {**history[1], "content": "how are you now?"}
    backend.complete([*history, {"role": "user", "content": "and then?"}], tools=[ADD])
    before, after = (request.messages for request in server.requests)
    assert [m["content"] for m in before] == ["be terse", "how are you?", "", "a long résumé"]
    assert [m["content"] for m in after] == ["be terse", "how are you now?", "", "[a stub]", "and then?"]
    assert before[2] == after[2]
    assert before[2]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_a_caller_s_messages_stay_as_they_are(server: Server) -> None:
    messages = [dict(message) for message in ASK]
    to(server).complete(messages)
    assert messages == ASK


# --- keys -----------------------------------------------------------------------------------------------------------


def shown(caught: BaseException) -> str:
    """All that a tool which prints tracebacks with locals would print, of our own frames and below."""
    summary = traceback.TracebackException.from_exception(caught, capture_locals=True)
    chain: list[traceback.TracebackException] = [summary]
    while chain[-1].__context__ or chain[-1].__cause__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)  # type: ignore[arg-type]
    ours = [frame for part in chain for frame in part.stack if "test_backends" not in frame.filename]
    frames = "".join(f"{frame.name} {frame.locals}" for frame in ours)
    return (
        frames + "".join(summary.format_exception_only()) + repr(vars(caught)) + pickle.dumps(caught).decode("latin-1")
    )


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        (KEY, reset()),
        (KEY, cut(LONG, 120)),
        (KEY, error(401, f"Incorrect API key provided: {KEY}")),
        (KEY, hang()),
        (KEY, body({"error": {"message": f"bad {KEY}"}})),
        (KEY, error(400, f"\x1b[31m{KEY[:8]}\n{KEY}")),
        (KEY, half()),
    ],
    ids=["reset", "cut", "echoed", "silent", "echoed with 200", "control characters", "half"],
)
def test_no_error_shows_the_key(server: Server, on_text: Any, key: str, fault: Fault) -> None:
    server.script = lambda _: fault
    backend = connect(
        "gpt-4o-mini", base_url=server.base_url, environ={"OPENAI_API_KEY": key}, timeout=0.3, max_retries=0
    )
    caught = failing(backend, on_text=on_text)
    assert KEY not in shown(caught)
    assert "\x1b" not in str(caught)
    assert KEY not in repr(backend) + repr(vars(backend)) + repr(backend.dry_run(ASK)) + repr(copy.copy(backend))


def test_no_error_shows_the_key_when_there_is_no_connection() -> None:
    with Server() as gone:
        backend = to(gone, max_retries=0)
    assert KEY not in shown(failing(backend))


@pytest.mark.parametrize("key", [f"{KEY}\n{KEY}", f"{KEY} {KEY}", f"{KEY}\x00", f"“{KEY}”", f"Bearer {KEY}"])
@pytest.mark.parametrize("source", ["api_key", "OPENAI_API_KEY"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(key: str, source: str) -> None:
    given: dict[str, Any] = {"api_key": key} if source == "api_key" else {"environ": {source: key}}
    with pytest.raises(BackendError, match=f"the API key from {source} holds") as caught:
        connect("gpt-4o-mini", **given)
    assert KEY not in shown(caught.value)


def test_space_around_a_key_is_stripped(server: Server) -> None:
    connect("gpt-4o-mini", base_url=server.base_url, api_key=f" {KEY}\r\n").complete(ASK)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_netrc_does_not_replace_the_key(server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(workspace / "netrc"))
    assert to(server).complete(ASK).text == "ok"


def test_a_redirect_is_not_followed(server: Server) -> None:
    with Server(key=None) as thief:
        server.script = [Fault(status=307, headers={"Location": f"{thief.base_url}/chat/completions"}, body=b"")]
        assert failing(to(server)).code == "redirect"
        assert thief.requests == []


def test_cookies_are_not_kept(server: Server) -> None:
    server.script = [Fault(turn=Turn("one"), headers={"Set-Cookie": "who=me"}), "two"]
    backend = to(server)
    assert [backend.complete(ASK).text for _ in range(2)] == ["one", "two"]  # the server refuses a Cookie header


def test_an_interrupt_carries_no_key(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib3.connection import HTTPConnection

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(HTTPConnection, "getresponse", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        to(server).complete(ASK)
    assert KEY not in shown(caught.value)


def test_mask_replaces_secrets_of_some_length_only() -> None:
    assert rlm_backends.mask(f"a {KEY}b cat", [KEY, "cat", ""]) == "a [redacted]b cat"
    assert rlm_backends.mask("abcdefgh12345678", ["abcdefgh", "abcdefgh12345678"]) == "[redacted]"


# --- post -----------------------------------------------------------------------------------------------------------


def test_post_returns_the_last_status_and_body(server: Server) -> None:
    server.script = [error(503, retry_after=0.01), body({"choices": 1}), error(404), error(429, retry_after=0.01)]
    request = {"model": "x", "messages": ASK}
    headers = {"Authorization": f"Bearer {KEY}"}
    url = f"{server.base_url}/chat/completions"
    status, named, content = rlm_backends.post(url, json=request, headers=headers)
    assert (status, named["content-type"], content) == (200, "application/json", b'{"choices": 1}')
    assert rlm_backends.post(url, json=request, headers=headers)[0] == 404
    assert rlm_backends.post(url, json=request, headers=headers, max_retries=0)[0] == 429
    assert len(server.requests) == 4


def test_post_raises_for_want_of_a_connection_and_shows_no_header() -> None:
    with Server() as gone:
        pass
    with pytest.raises(BackendError) as caught:
        rlm_backends.post(gone.url, json={}, headers={"X-API-Key": KEY}, max_retries=0)
    assert caught.value.code == "connection"
    assert KEY not in shown(caught.value)


@pytest.fixture(autouse=True)
def closed_connections() -> Iterator[None]:
    yield
    for link in list(rlm_backends._links.values()):
        link.adapter.close()


# --- mocked by those who test what they built upon this ------------------------------------------------------------


def test_the_calls_can_be_mocked_with_responses() -> None:
    import responses

    answer = {"choices": [{"message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}]}
    with responses.RequestsMock() as mocked:
        mocked.add(responses.POST, "https://api.openai.com/v1/chat/completions", json=answer)
        assert connect("gpt-4o-mini", api_key=KEY).complete(ASK).text == "Paris"
        sent = mocked.calls[0].request
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert json.loads(sent.body)["messages"] == ASK


@pytest.mark.parametrize("kind", ["SSLError", "ProxyError", "ConnectTimeout", "ChunkedEncodingError"])
def test_what_requests_itself_raises_is_an_error_of_ours_without_the_key(kind: str) -> None:
    import requests
    import responses

    with responses.RequestsMock() as mocked:
        fault = getattr(requests.exceptions, kind)(f"Authorization: Bearer {KEY}")
        mocked.add(responses.POST, "https://api.openai.com/v1/chat/completions", body=fault)
        error = failing(connect("gpt-4o-mini", api_key=KEY, max_retries=0))
    assert (error.code, str(error)) == ("connection", "no connection to api.openai.com: it broke off")
    assert KEY not in "".join(traceback.format_exception(error))


def test_a_tls_error_without_a_reason_is_an_error_of_ours() -> None:
    import ssl

    import requests
    import responses

    fault = requests.exceptions.SSLError(ssl.SSLError("Underlying socket has been closed."))
    with responses.RequestsMock() as mocked:
        mocked.add(responses.POST, "https://api.openai.com/v1/chat/completions", body=fault)
        error = failing(connect("gpt-4o-mini", api_key=KEY, max_retries=0))
    assert (error.code, str(error)) == ("connection", "no connection to api.openai.com: it broke off")
