"""The three wires byte by byte: requests that are sent, streams in every framing, and the dialects of servers."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import need
from sdk_types import every_request_is_one_that_the_sdks_could_send  # noqa: F401

import rlm_backends
from rlm_backends import BackendError, HTTPBackend, connect

KEY = "sk-planted-wires-4f1c9a7be2d05836af"
ASK = [{"role": "user", "content": "hello"}]
ADD = {"name": "add", "description": "adds", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
Send = Callable[[bytes], None]
Handler = Callable[[dict[str, Any], Send], None]


class Listener:
    """A loopback server that hands each connection to `serve`."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.serve(connection)

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._listener.close()


class Wire(Listener):
    """A server that hands each request to `handler`, which writes the bytes of the answer; then it hangs up."""

    def __init__(self) -> None:
        self.handler: Handler = lambda request, send: None
        self.requests: list[dict[str, Any]] = []
        self.secured: ssl.SSLContext | None = None
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if self.secured:
                connection = self.secured.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                self._one(connection, stream)
        except OSError:
            connection.close()  # the client did not like the certificate

    def _one(self, connection: socket.socket, stream: Any) -> None:
        method, path, _ = stream.readline().decode().split(" ", 2)
        headers = {}
        while line := stream.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        body = json.loads(stream.read(int(headers["content-length"])))
        self.requests.append({"method": method, "path": path, "headers": headers, "body": body})
        try:
            self.handler(self.requests[-1], connection.sendall)
        except OSError:
            pass  # the client left

    def answers(self, body: Any, status: int = 200) -> None:
        """The same JSON body for every request."""
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        self.handler = lambda _, send: send(head + data)

    def streams(self, *events: Any) -> None:
        """The same stream, of these events, for every request."""
        data = b"".join(
            b"data: " + (e.encode() if isinstance(e, str) else json.dumps(e).encode()) + b"\n\n" for e in events
        )
        self.handler = lambda _, send: send(EVENTS + b"\r\n" + data)


EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@pytest.fixture
def wire() -> Iterator[Wire]:
    running = Wire()
    yield running
    running.close()


def to(wire: Wire, backend: str = "openai", model: str = "some-model", **options: Any) -> HTTPBackend:
    path = {"openai": "/v1", "anthropic": "", "gemini": "/v1beta"}.get(backend, "/v1")
    return connect(model, backend, base_url=wire.url + path, api_key=KEY, max_retries=0, timeout=20, **options)


def delta(text: str = "", finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}]}


def streamed(backend: HTTPBackend, **how: Any) -> Any:
    return backend.complete(ASK, on_text=lambda _: None, **how)


# --- framing ---------------------------------------------------------------------------------------------------------


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@pytest.mark.parametrize("framing", ["chunked", "close-delimited", "gzip", "gzip chunked"])
def test_the_first_token_is_there_before_the_second_is_sent(wire: Wire, framing: str) -> None:
    """The server holds the second token back until the caller has the first."""
    heard, texts = threading.Event(), []

    def handler(_: Any, send: Send) -> None:
        zipped = "gzip" in framing
        zipper = zlib.compressobj(wbits=31)

        def push(data: bytes, last: bool = False) -> None:
            if zipped:
                data = zipper.compress(data) + zipper.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
            send(chunked(data) if "chunked" in framing else data)

        head = EVENTS + (b"Transfer-Encoding: chunked\r\n" if "chunked" in framing else b"Connection: close\r\n")
        send(head + (b"Content-Encoding: gzip\r\n" if zipped else b"") + b"\r\n")
        push(b"data: " + json.dumps(delta("first")).encode() + b"\n\n")
        assert heard.wait(20)
        push(b"data: " + json.dumps(delta(" second", "stop")).encode() + b"\n\ndata: [DONE]\n\n", last=True)
        send(b"0\r\n\r\n" if "chunked" in framing else b"")

    def listen(text: str) -> None:
        texts.append(text)
        heard.set()

    wire.handler = handler
    assert to(wire).complete(ASK, on_text=listen).text == "first second"
    assert texts == ["first", " second"]


TEXT = "é好🐢\u2028\u0085 it's"


def events_with(end: bytes, space: bytes = b" ") -> bytes:
    lines = [b": a comment", b"retry: 100", b"event: x", b"id: 7"]
    pieces = [json.dumps(delta(c), ensure_ascii=False).encode() for c in TEXT] + [
        json.dumps(delta("", "stop")).encode()
    ]
    for piece in [*pieces, b"[DONE]"]:
        lines += [b"data:" + space + piece, b""]
    return end.join([*lines, b""])


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("space", [b" ", b""], ids=["space", "no space"])
def test_events_are_read_however_they_are_cut(end: bytes, size: int, space: bytes) -> None:
    whole = events_with(end, space)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    data = list(rlm_backends._events(iter(pieces)))
    assert data.pop() == "[DONE]"
    assert "".join(json.loads(one)["choices"][0]["delta"]["content"] for one in data) == TEXT


def test_an_event_of_several_lines_is_one_and_the_last_needs_no_empty_line() -> None:
    assert list(rlm_backends._events(iter([b'data: {\ndata: "a": 1}\n\n', b"data: [DONE]"]))) == [
        '{\n"a": 1}',
        "[DONE]",
    ]


@pytest.mark.parametrize("size", [1, 2, 10_000])
@pytest.mark.parametrize("end", [b"\n\n", b""], ids=["whole", "no empty line"])
def test_a_byte_order_mark_before_a_stream_is_no_part_of_it(size: int, end: bytes) -> None:
    data = b"\xef\xbb\xbfdata: one" + end
    assert list(rlm_backends._events(data[n : n + size] for n in range(0, len(data), size))) == ["one"]


def test_an_event_of_many_megabytes_takes_no_time_to_speak_of() -> None:
    """Quadratic copying would take minutes."""
    pieces = [b"data: "] + [b"x" * 65_536] * 500 + [b"\n\n"]
    (data,) = rlm_backends._events(iter(pieces))
    assert len(data) == 65_536 * 500


def test_an_answer_without_end_is_cut_off(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm_backends, "BODY_LIMIT", 1 << 20)

    def handler(_: Any, send: Send) -> None:
        send(EVENTS + b"\r\n")
        while True:
            send(b"data: " + b"x" * 65_536)

    wire.handler = handler
    with pytest.raises(BackendError, match="larger than 1 MB"):
        streamed(to(wire))


def test_what_follows_the_answer_is_not_waited_for(wire: Wire) -> None:
    """A server that keeps the connection open after [DONE]."""
    over = threading.Event()

    def handler(_: Any, send: Send) -> None:
        send(EVENTS + b"\r\ndata: " + json.dumps(delta("all", "stop")).encode() + b"\n\ndata: [DONE]\n\n")
        over.wait(20)

    wire.handler = handler
    assert streamed(to(wire)).text == "all"
    over.set()


# --- OpenAI's dialects -----------------------------------------------------------------------------------------------


def test_arguments_in_pieces_are_put_together_by_index(wire: Wire) -> None:
    def piece(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
        return delta(tool_calls=[{"index": index, "function": function, **more}])

    wire.streams(
        {"choices": [], "prompt_filter_results": []},
        piece(0, "", id="a", name="add", type="function"),
        piece(0, '{"a"'),
        piece(1, "", id="b", name="add"),
        piece(1, '{"a": 2}'),
        piece(0, ": 1}"),
        delta("", "tool_calls"),
        "[DONE]",
    )
    made = streamed(to(wire), tools=[ADD]).tool_calls
    assert made == [
        {"id": "a", "name": "add", "arguments": {"a": 1}},
        {"id": "b", "name": "add", "arguments": {"a": 2}},
    ]


@pytest.mark.parametrize(
    "fragments",
    [
        [
            {"id": "a", "function": {"name": "add", "arguments": '{"a": 1}'}},
            {"id": "b", "function": {"name": "add", "arguments": '{"a": 2}'}},
        ],
        [
            {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"a": 1}'}},
            {"index": 0, "id": "b", "function": {"name": "add", "arguments": '{"a": 2}'}},
        ],
        [
            {"id": "a", "function": {"name": "add", "arguments": '{"a"'}},
            {"function": {"arguments": ": 1}"}},
            {"id": "b", "function": {"name": "add", "arguments": '{"a": 2}'}},
        ],
        [
            {"index": 0, "id": "a", "function": {"name": "add", "arguments": {"a": 1}}},
            {"index": 1, "id": "b", "function": {"name": "add", "arguments": {"a": 2}}},
        ],
        [
            {"index": 0, "id": "a", "function": {"name": "add", "arguments": '{"a"'}},
            {"index": 0, "id": "a", "function": {"name": "add", "arguments": ": 1}"}},
            {"index": 1, "id": "b", "function": {"name": "add", "arguments": '{"a": 2}'}},
        ],
    ],
    ids=["no index", "one index", "no index, in pieces", "as objects", "id in every piece"],
)
def test_tool_calls_of_servers_with_habits_of_their_own_are_read(wire: Wire, fragments: list[Any]) -> None:
    wire.streams(*(delta(tool_calls=[fragment]) for fragment in fragments), delta("", "stop"), "[DONE]")
    reply = streamed(to(wire), tools=[ADD])
    assert [(made["id"], made["arguments"]) for made in reply.tool_calls] == [("a", {"a": 1}), ("b", {"a": 2})]
    assert reply.stop_reason == "tool_calls"  # though the server says stop


def test_ids_that_are_missing_or_twice_the_same_are_filled_in(wire: Wire) -> None:
    calls = [{"id": id_, "function": {"name": "add", "arguments": "{}"}} for id_ in ("call_2", None, "call_2", "", 7)]
    wire.answers({"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": "tool_calls"}]})
    ids = [made["id"] for made in to(wire).complete(ASK, tools=[ADD]).tool_calls]
    assert ids[0] == "call_2"
    assert len(set(ids)) == 5


def test_a_call_in_the_form_before_tools_is_read(wire: Wire) -> None:
    message = {"content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    wire.answers({"choices": [{"message": message, "finish_reason": "function_call"}]})
    assert to(wire).complete(ASK, tools=[ADD]).tool_calls == [{"id": "call_1", "name": "add", "arguments": {"a": 1}}]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_not_the_answer(wire: Wire, field: str) -> None:
    wire.streams(delta("", **{field: "let me think"}), delta("42", "stop"), "[DONE]")
    assert streamed(to(wire)).text == "42"


def test_reasoning_goes_back_with_tool_calls_where_the_provider_wants_it(wire: Wire) -> None:
    calls = [{"id": "a", "function": {"name": "add", "arguments": "{}"}}]
    message = {"content": None, "reasoning_content": "hm", "tool_calls": calls}
    wire.answers({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    result = {"role": "tool", "tool_call_id": "a", "name": "add", "content": "3"}
    for provider, expected in (("deepseek", "hm"), ("openai", None)):
        backend = to(wire, provider)
        reply = backend.complete(ASK, tools=[ADD])
        turn = {"role": "assistant", "content": "", "tool_calls": reply.tool_calls, "raw": reply.raw}
        assert backend.dry_run([*ASK, turn, result])[2]["messages"][1].get("reasoning_content") == expected
        del turn["raw"]  # of another model
        sent = backend.dry_run([*ASK, turn, result])[2]["messages"][1]
        assert sent.get("reasoning_content") == ("" if expected else None)


def test_openrouter_s_reasoning_details_and_google_s_signatures_go_back(wire: Wire) -> None:
    details = [{"type": "reasoning.encrypted", "data": "xyz"}]
    extra = {"google": {"thought_signature": "sig"}}
    calls = [{"id": "a", "function": {"name": "add", "arguments": "{}"}, "extra_content": extra}]
    message = {"content": "", "reasoning_details": details, "tool_calls": calls}
    wire.answers({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    backend = to(wire, "openrouter")
    reply = backend.complete(ASK, tools=[ADD])
    turn = {"role": "assistant", "content": "", "tool_calls": reply.tool_calls, "raw": reply.raw}
    sent = backend.dry_run([*ASK, turn])[2]["messages"][1]
    assert (sent["reasoning_details"], sent["tool_calls"][0]["extra_content"]) == (details, extra)


def test_claude_s_cache_marks_go_through_openrouter_and_to_nobody_else() -> None:
    history = [{"role": "system", "content": "be terse"}, *ASK]

    def marked(model: str) -> list[bool]:
        sent = connect(model, api_key=KEY).dry_run(history)[2]["messages"]
        return ["cache_control" in json.dumps(message) for message in sent]

    assert marked("openrouter/anthropic/claude-opus-5-5") == [True, True]
    assert marked("openrouter/openai/gpt-4o") == marked("groq/anthropic/claude") == [False, False]


def test_a_refusal_is_told_apart(wire: Wire) -> None:

    wire.answers({"choices": [{"message": {"content": None, "refusal": "I can't"}, "finish_reason": "stop"}]})
    reply = to(wire).complete(ASK)
    assert (reply.text, reply.stop_reason) == ("I can't", "refusal")


def test_content_in_parts_is_joined(wire: Wire) -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "42"}]
    wire.answers({"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]})
    assert to(wire).complete(ASK).text == "42"


@pytest.mark.parametrize(
    ("usage", "read"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, (10, 5, 0, 0)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "total_tokens": 40,
                "completion_tokens_details": {"reasoning_tokens": 25},
            },
            (10, 30, 0, 25),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}, (10, 5, 8, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 7}, (10, 5, 7, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}}, (10, 5, 10, 0)),
        ({"prompt_tokens": 10.0, "completion_tokens": "5", "prompt_tokens_details": None}, (10, 0, 0, 0)),
    ],
    ids=["plain", "reasoning outside", "cached", "deepseek", "more cached than there was", "odd types"],
)
def test_usage_is_read_as_servers_count_it(wire: Wire, usage: dict[str, Any], read: tuple[int, ...]) -> None:
    wire.answers({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage})
    found = to(wire).complete(ASK).usage
    assert (found["input"], found["output"], found["cached"], found["reasoning"]) == read


@pytest.mark.parametrize(
    "usages",
    [
        [None, None, {"prompt_tokens": 9, "completion_tokens": 3}],
        [{"prompt_tokens": 9, "completion_tokens": n} for n in (1, 2, 3)],
    ],
    ids=["with the end", "in every event"],
)
def test_usage_is_found_wherever_a_stream_has_it(wire: Wire, usages: list[Any]) -> None:
    finishes = [None, None, "stop"]
    wire.streams(
        *({**delta("x", finish), "usage": usage} for finish, usage in zip(finishes, usages, strict=True)), "[DONE]"
    )
    found = streamed(to(wire)).usage
    assert (found["input"], found["output"]) == (9, 3)


def test_a_stream_that_ends_in_done_without_a_reason_is_whole(wire: Wire) -> None:
    wire.streams(delta("all"), "[DONE]")
    assert streamed(to(wire)).stop_reason == "stop"


@pytest.mark.parametrize(
    "junk",
    [
        {"choices": [None]},
        {"choices": {}},
        {"choices": [{"delta": None, "finish_reason": None}]},
        {"choices": [{"delta": {"content": 7, "tool_calls": [None, {"function": None}]}}]},
        {"usage": [], "choices": None},
        {"object": "ping"},
    ],
    ids=str,
)
def test_events_that_make_no_sense_are_passed_over(wire: Wire, junk: Any) -> None:
    wire.streams(junk, delta("fine", "stop"), "[DONE]")
    assert streamed(to(wire)).text == "fine"


# --- Anthropic -------------------------------------------------------------------------------------------------------


def test_unknown_events_and_blocks_of_anthropic_are_passed_over(wire: Wire) -> None:
    wire.streams(
        {
            "type": "message_start",
            "message": {"model": "m", "usage": {"input_tokens": 5, "cache_read_input_tokens": 3}},
        },
        {"type": "ping"},
        {"type": "something_new", "x": 1},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "fine"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {}}},
        {"type": "content_block_delta", "index": 9, "delta": {"type": "text_delta", "text": "nowhere"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "id": "t", "name": "add", "input": {}},
        },
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ""}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    )
    reply = streamed(to(wire, "anthropic"))
    assert (reply.text, reply.tool_calls) == ("fine", [{"id": "t", "name": "add", "arguments": {}}])
    assert (reply.usage["input"], reply.usage["cached"], reply.usage["output"]) == (8, 3, 7)


def test_a_redacted_thought_goes_back_as_it_came(wire: Wire) -> None:
    blocks = [
        {"type": "redacted_thinking", "data": "opaque"},
        {"type": "text", "text": "hm", "citations": None},
        {"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}, "caller": {"type": "direct"}},
    ]
    wire.answers({"type": "message", "content": blocks, "stop_reason": "tool_use", "usage": {"output_tokens": 1}})
    backend = to(wire, "anthropic")
    reply = backend.complete(ASK, tools=[ADD])
    turn = {"role": "assistant", "content": reply.text, "tool_calls": reply.tool_calls, "raw": reply.raw}
    sent = backend.dry_run([*ASK, turn])[2]["messages"][1]["content"]
    assert sent == [blocks[0], {"type": "text", "text": "hm"}, {k: v for k, v in blocks[2].items() if k != "caller"}]


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("", "/v1/messages"),
        ("/v1", "/v1/messages"),
        ("/anthropic", "/anthropic/v1/messages"),
        ("/x/v3", "/x/v3/messages"),
        ("/v1/messages", "/v1/messages"),
        ("/", "/v1/messages"),
    ],
)
def test_where_anthropic_s_messages_go(base: str, path: str) -> None:
    url, headers, _ = connect("m", "anthropic", base_url=f"http://h{base}", api_key=KEY).dry_run(ASK)
    assert (url, headers["x-api-key"], headers["anthropic-version"]) == (f"http://h{path}", KEY, "2023-06-01")


def test_the_newer_version_is_for_anthropic_s_own_host() -> None:
    backend = connect("claude-opus-5-5", api_key=KEY)
    url, headers, body = backend.dry_run(ASK)
    assert (url, headers["anthropic-version"]) == ("https://api.anthropic.com/v1/messages", "2026-10-21")
    assert not {"temperature", "top_p", "top_k", "thinking", "tool_choice"} & set(body)


# --- Gemini ----------------------------------------------------------------------------------------------------------

SIGNED = {"functionCall": {"name": "add", "args": {"a": 1}, "id": "native-1"}, "thoughtSignature": "sig=="}


def candidate(*parts: dict[str, Any], finish: str | None = "STOP") -> dict[str, Any]:
    made: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}}
    return {"candidates": [{**made, **({"finishReason": finish} if finish else {})}], "modelVersion": "gemini-4-argon"}


def test_gemini_s_turns_are_whole_and_signatures_return_unchanged(wire: Wire) -> None:
    usage = {"promptTokenCount": 20, "cachedContentTokenCount": 5, "candidatesTokenCount": 7, "thoughtsTokenCount": 11}
    wire.answers({**candidate({"text": "hm", "thought": True}, {"text": "adding"}, SIGNED), "usageMetadata": usage})
    backend = to(wire, "gemini", "gemini-4-argon")
    system = {"role": "system", "content": "be terse"}
    reply = backend.complete([system, *ASK], tools=[ADD], max_tokens=99)
    assert (reply.text, reply.stop_reason) == ("adding", "tool_calls")
    assert reply.tool_calls == [{"id": "native-1", "name": "add", "arguments": {"a": 1}}]
    assert reply.usage == {"input": 20, "output": 18, "cached": 5, "cache_write": 0, "reasoning": 11}
    request = wire.requests[0]
    assert (request["path"], request["headers"]["x-goog-api-key"]) == (
        "/v1beta/models/gemini-4-argon:generateContent",
        KEY,
    )
    assert "authorization" not in request["headers"]
    declared = {"name": "add", "description": "adds", "parametersJsonSchema": ADD["parameters"]}
    assert request["body"] == {
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "systemInstruction": {"parts": [{"text": "be terse"}]},
        "tools": [{"functionDeclarations": [declared]}],
        "generationConfig": {"maxOutputTokens": 99},
    }
    turn = {"role": "assistant", "content": reply.text, "tool_calls": reply.tool_calls, "raw": reply.raw}
    result = {"role": "tool", "tool_call_id": "native-1", "name": "add", "content": "3"}
    contents = backend.dry_run([*ASK, turn, result], tools=[ADD])[2]["contents"]
    assert contents[1] == {"role": "model", "parts": [{"text": "adding"}, SIGNED]}
    answer = {"name": "add", "response": {"result": "3"}, "id": "native-1"}
    assert contents[2] == {"role": "user", "parts": [{"functionResponse": answer}]}


def test_gemini_s_streams_are_put_together(wire: Wire) -> None:
    wire.streams(
        candidate({"text": "add"}, finish=None),
        candidate({"text": "ing"}, finish=None),
        candidate(SIGNED, {"functionCall": {"name": "add", "args": {"a": 2}}}, finish=None),
        {**candidate({"text": ""}), "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4}},
    )
    texts: list[str] = []
    reply = to(wire, "gemini", "gemini-4-argon").complete(ASK, tools=[ADD], on_text=texts.append)
    assert (reply.text, texts, reply.stop_reason) == ("adding", ["add", "ing"], "tool_calls")
    assert [made["arguments"] for made in reply.tool_calls] == [{"a": 1}, {"a": 2}]
    assert reply.raw is not None
    assert reply.raw["parts"][:2] == [{"text": "adding"}, SIGNED]
    assert wire.requests[0]["path"].endswith(":streamGenerateContent?alt=sse")
    assert reply.usage["input"] == 9


def test_calls_of_another_model_are_marked_so_for_gemini_3_and_later() -> None:
    turn = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": "add", "arguments": {}}]}
    result = {"role": "tool", "tool_call_id": "c", "name": "add", "content": "no", "is_error": True}

    def contents(model: str) -> Any:
        return connect(model, "gemini", api_key=KEY).dry_run([*ASK, turn, result])[2]["contents"]

    assert contents("gemini-3.8-flash")[1]["parts"][0]["thoughtSignature"] == "skip_thought_signature_validator"
    assert "thoughtSignature" not in contents("gemini-2.5-pro")[1]["parts"][0]
    assert contents("gemini-2.5-pro")[2]["parts"] == [
        {"functionResponse": {"name": "add", "response": {"error": "no"}}}
    ]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [("STOP", "stop"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter"), ("RECITATION", "content_filter")],
)
def test_stop_reasons_of_gemini(wire: Wire, finish: str, reason: str) -> None:
    wire.answers(candidate({"text": "hm"}, finish=finish))
    assert to(wire, "gemini").complete(ASK).stop_reason == reason


def test_a_blocked_prompt_is_no_empty_answer(wire: Wire) -> None:
    wire.answers({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 9}})
    reply = to(wire, "gemini").complete(ASK)
    assert (reply.text, reply.stop_reason, reply.usage["input"]) == ("", "content_filter", 9)


def test_a_call_that_gemini_could_not_write_is_an_error(wire: Wire) -> None:
    wire.answers(candidate(finish="MALFORMED_FUNCTION_CALL"))
    with pytest.raises(BackendError, match="MALFORMED_FUNCTION_CALL") as caught:
        to(wire, "gemini").complete(ASK, tools=[ADD])
    assert (caught.value.code, caught.value.retryable) == ("protocol", True)


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ([{"@type": "x/google.rpc.RetryInfo", "retryDelay": "300s"}], "rate"),
        ([{"violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}]}], "quota"),
    ],
    ids=["by the minute", "by the day"],
)
def test_quotas_of_gemini_are_told_apart(wire: Wire, details: Any, code: str) -> None:
    said = "You exceeded your current quota, please check your plan and billing details."
    wire.answers({"error": {"code": 429, "message": said, "status": "RESOURCE_EXHAUSTED", "details": details}}, 429)
    with pytest.raises(BackendError) as caught:
        to(wire, "gemini").complete(ASK)
    assert (caught.value.code, len(wire.requests)) == (code, 1)


def test_an_error_of_gemini_in_a_list_is_read(wire: Wire) -> None:
    wire.answers([{"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT"}}], 400)
    with pytest.raises(BackendError, match="API key not valid"):
        streamed(to(wire, "gemini"))


# --- proxies and certificates, each in a process of its own: both are settled once ------------------------------------

CALL = """
import sys, rlm_backends
key = "sk-planted-wires-4f1c9a7be2d05836af"
backend = rlm_backends.connect("gpt-4o", base_url=sys.argv[1], api_key=key, max_retries=1)
for _ in range(2):
    try:
        print(backend.complete([{"role": "user", "content": "hello"}]).text)
    except rlm_backends.BackendError as error:
        print(error.code, error.retryable, error.message)
"""


def called(url: str, **environment: str) -> list[str]:
    """What two calls printed, with these variables in the environment."""
    settled = ("_proxy", "_ca_bundle", "ssl_cert_file")
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith(settled)}
    ran = subprocess.run(
        [sys.executable, "-c", CALL, url], env={**clean, **environment}, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


class Proxy(Listener):
    """Carries what it is sent to `target`, whatever the request names, and keeps the heads that it was sent."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.heads: list[str] = []
        super().__init__()

    def serve(self, connection: socket.socket) -> None:
        threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        host, _, port = self.target.rpartition("/")[2].partition(":")
        with client, socket.create_connection((host, int(port))) as server:
            data = client.recv(65536)
            self.heads.append(data.decode("latin-1").split("\r\n")[0])
            if data.startswith(b"CONNECT"):
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                server.sendall(data)
            back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
            back.start()
            self._copy(client, server)
            back.join()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def proxy(wire: Wire) -> Iterator[Proxy]:
    running = Proxy(wire.url)
    yield running
    running.close()


FINE = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}


def test_a_proxy_of_the_environment_is_used_and_no_proxy_is_heeded(wire: Wire, proxy: Proxy) -> None:
    wire.answers(FINE)
    assert called("http://model.example/v1", HTTP_PROXY=proxy.url) == ["fine", "fine"]
    assert proxy.heads[0] == "POST http://model.example/v1/chat/completions HTTP/1.1"
    (first, _) = called("http://model.invalid/v1", HTTP_PROXY=proxy.url, NO_PROXY="model.invalid")
    assert first.startswith("connection True no connection to model.invalid")


def test_loopback_needs_no_proxy(wire: Wire, proxy: Proxy) -> None:
    wire.answers(FINE)
    assert called(f"{wire.url}/v1", HTTP_PROXY=proxy.url) == ["fine", "fine"]
    assert proxy.heads == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and its self-signed certificate for localhost and secure.example."""
    need("openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    names = "subjectAltName=DNS:localhost,DNS:secure.example,IP:127.0.0.1"
    options = ["-newkey", "rsa:2048", "-nodes", "-keyout", path, "-out", f"{path}.crt", "-subj", "/CN=localhost"]
    subprocess.run(["openssl", "req", "-x509", *options, "-addext", names], check=True, capture_output=True, timeout=60)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def secure(wire: Wire, certificate: Path) -> Wire:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    wire.secured = context
    wire.answers(FINE)
    return wire


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_certificates_are_checked_against_those_of_the_environment(
    secure: Wire, certificate: Path, variable: str
) -> None:
    url = secure.url.replace("http:", "https:") + "/v1"
    assert called(url, **{variable: f"{certificate}.crt"}) == ["fine", "fine"]
    assert called(url.replace("127.0.0.1", "localhost"), **{variable: f"{certificate}.crt"}) == ["fine", "fine"]


def test_a_certificate_that_nobody_vouches_for_ends_the_call_at_once(secure: Wire) -> None:
    for line in called(secure.url.replace("http:", "https:") + "/v1"):
        assert line.startswith("connection False no connection to 127.0.0.1:")
        assert "certificate verify failed" in line
    assert secure.requests == []


def test_a_certificate_for_another_name_is_none(secure: Wire, certificate: Path, proxy: Proxy) -> None:
    lines = called("https://other.example/v1", HTTPS_PROXY=proxy.url, SSL_CERT_FILE=f"{certificate}.crt")
    assert ["certificate" in line for line in lines] == [True, True]


def test_https_goes_through_a_proxy_s_tunnel(secure: Wire, certificate: Path, proxy: Proxy) -> None:
    lines = called("https://secure.example/v1", HTTPS_PROXY=proxy.url, SSL_CERT_FILE=f"{certificate}.crt")
    assert lines == ["fine", "fine"]
    assert proxy.heads[0] == "CONNECT secure.example:443 HTTP/1.0" or proxy.heads[0].startswith(
        "CONNECT secure.example:443"
    )
    assert KEY not in "".join(proxy.heads)


def test_certificates_that_cannot_be_read_are_an_error_that_names_them(secure: Wire) -> None:
    line, _ = called(secure.url.replace("http:", "https:") + "/v1", SSL_CERT_FILE="/nowhere.pem")
    assert line.startswith("config False cannot read the certificates in '/nowhere.pem'")


def test_a_call_over_tls_can_be_cancelled(secure: Wire, certificate: Path) -> None:
    """In a process of its own, for the certificates."""
    asked, over = threading.Event(), threading.Event()

    def handler(_: Any, send: Send) -> None:
        asked.set()
        over.wait(20)

    secure.handler = handler
    source = """
import sys, threading, rlm_backends
cancel = threading.Event()
threading.Thread(target=lambda: (sys.stdin.readline(), cancel.set()), daemon=True).start()
backend = rlm_backends.connect("gpt-4o", base_url=sys.argv[1], api_key="x" * 9)
try:
    backend.complete([{"role": "user", "content": "x"}], cancel=cancel)
except rlm_backends.BackendError as error:
    print(error.code)
"""
    url = secure.url.replace("http:", "https:") + "/v1"
    environment = {**os.environ, "REQUESTS_CA_BUNDLE": f"{certificate}.crt"}
    with subprocess.Popen(
        [sys.executable, "-c", source, url], stdin=-1, stdout=-1, text=True, env=environment
    ) as process:
        assert asked.wait(20)
        out, _ = process.communicate("now\n", timeout=20)
    over.set()
    assert out == "cancelled\n"
