"""`rlm export` and `rlm_viz.OTel`: what leaves a journal for collectors, trainers and Jupyter, checked by those."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import pickle
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import journals
import pytest
import scripted
from conftest import ROOT, eventually, need
from scripted import Request, Server, Turn, answer_with, call, code

import rlm
import rlm_viz

Event = dict[str, Any]


def export(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "rlm", "export", *arguments]
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60}
    ran = subprocess.run(command, env={**os.environ, **(env or {})}, **how)
    return ran.returncode, ran.stdout, ran.stderr


def saved(story: list[Event], name: str = "run") -> list[Event]:
    """The story as logs/NAME.jsonl."""
    Path("logs").mkdir(exist_ok=True)
    Path(f"logs/{name}.jsonl").write_text(journals.dumps(story), encoding="utf-8", errors="surrogatepass")
    return story


def attributes(span: Event) -> dict[str, Any]:
    [*values] = ((pair["key"], next(iter(pair["value"].values()))) for pair in span["attributes"])
    return dict(values)


# --- journals that say anything ------------------------------------------------------------------------------------

WRONG: list[Any] = [None, True, -1, 1e300, "x", [], {}, [[]], [None], {"a": {"b": []}}, "9" * 400, [{"type": ["text"]}]]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every field of an event, at any depth; of a list, those of its first three items."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def odd_story() -> list[Event]:
    """Events of every kind; their messages are those that a journal may hold, and some that only a forged one does."""
    told = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image", "data": "x"}]},
        {"role": "user", "tool_call_ids": ["t1"], "_at": [0], "_stored": "x", "_cells": [1], "_is_prompt": True},
        {"role": "tool", "tool_call_id": "t1", "content": ["x"], "replaces": True, "tool_calls": [{"id": "t1"}]},
    ]
    found: list[Event] = []
    seen: set[tuple[Any, ...]] = set()
    for event in [*journals.compacted_run(), *journals.failed_run(), *journals.resumed_run()]:
        kind = (event["event"], event.get("kind"), event.get("name"), "code" in event, sorted(event) if found else 0)
        if str(kind) in seen:
            continue
        seen.add(str(kind))
        prompt = [*event["prompt"], *told] if isinstance(event.get("prompt"), list) else event.get("prompt")
        found.append({**event, **({"prompt": prompt} if prompt else {})})
    restart = {"event": "compact", "node": "n0", "restart": True, "cells": [1], "timestamp": "2026-01-01T00:00:00Z"}
    return [*found, restart, *found[-3:]]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: repr(value)[:12])
def test_any_field_at_any_depth_may_be_anything(wrong: Any, tmp_path: Path) -> None:
    story, tried = odd_story(), set[tuple[Any, ...]]()
    for number, event in enumerate(story):
        for place in places(event):
            same = (event["event"], event.get("kind"), *place)
            if same in tried:
                continue
            tried.add(same)
            odd = json.loads(json.dumps(event))
            functools.reduce(lambda inner, key: inner[key], place[:-1], odd)[place[-1]] = wrong
            events = [*story[:number], odd, *story[number + 1 :]]
            for bodies in (False, True):
                json.dumps(rlm_viz.otlp(rlm_viz.spans(events, bodies=bodies)))
            json.dumps([list(rlm_viz.training_samples(events)), rlm_viz.notebook(events)])
            json.dumps([rlm_viz.chrome_trace(events), list(rlm_viz.csv_table(events))])
            (tmp_path / "run.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events[: number + 1]))
            for by in rlm_viz.COST_KEYS:
                assert rlm_viz.costs([tmp_path], by)["total"]["cost_usd"] >= 0


# --- a collector -----------------------------------------------------------------------------------------------------


class Receiver(ThreadingHTTPServer):
    """An OTLP/HTTP endpoint on loopback that keeps what it is sent; `answers` are given in turn, then 200."""

    daemon_threads = True

    def __init__(self, *answers: tuple[int, dict[str, str], bytes], delay: float = 0) -> None:
        self.requests: list[tuple[str, dict[str, str], Event]] = []
        self.answers, self.delay = list(answers), delay
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def spans(self) -> list[Event]:
        return [span for _, _, body in self.requests for span in spans_of(body)]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.delay)
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        status, headers, content = self.server.answers.pop(0) if self.server.answers else (200, {}, b"{}")
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@contextlib.contextmanager
def receiver(*answers: tuple[int, dict[str, str], bytes], delay: float = 0) -> Iterator[Receiver]:
    with Receiver(*answers, delay=delay) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def spans_of(body: Event) -> list[Event]:
    return [s for resource in body["resourceSpans"] for scope in resource["scopeSpans"] for s in scope["spans"]]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# --- spans -----------------------------------------------------------------------------------------------------------


def recursive(request: Request) -> Any:
    """A root that asks in a batch and recurs; a child that answers by code."""
    if not request.system:
        return "sub-answer"
    if "the child" in request.prompt:
        return code("FINAL(len(context))")
    cells = ["print(context[:3])\nllm_query_batched(['a', 'b'])", "n = rlm_query('the child', context='xyz')", "1 / 0"]
    return code(cells[request.turn - 1]) if request.turn <= 3 else "done"


def test_spans_are_those_of_the_conventions(openai: Server) -> None:
    openai.script = recursive
    result = rlm.complete("the question", "a context", model="gpt-4o", sub_model="gpt-4o-mini", show_below=0)
    made = rlm_viz.spans(result.events())
    named = {span["spanId"]: span for span in made}
    assert len(named) == len(made)
    assert {span["traceId"] for span in made} == {made[0]["traceId"]} and len(made[0]["traceId"]) == 32

    def above(span: Event) -> str:
        return named[span["parentSpanId"]]["name"] if "parentSpanId" in span else ""

    shape = sorted((span["name"], span["kind"], above(span)) for span in made)
    assert shape == sorted(
        [("invoke_agent rlm", 1, ""), ("invoke_agent rlm", 1, "chat gpt-4o")]
        + [("chat gpt-4o", 3, "invoke_agent rlm")] * 5
        + [("chat gpt-4o-mini", 3, "chat gpt-4o")] * 2
        + [("execute_tool execute_code", 1, "chat gpt-4o")] * 4
    )
    chat = attributes(next(span for span in made if span["name"] == "chat gpt-4o"))
    assert chat["gen_ai.operation.name"] == "chat" and chat["gen_ai.provider.name"] == "openai"
    assert chat["gen_ai.request.model"] == "gpt-4o" and int(chat["gen_ai.usage.input_tokens"]) > 0
    assert chat["gen_ai.conversation.id"] == result.trajectory_id
    failed = [span for span in made if span["status"]]
    assert [attributes(span)["error.type"] for span in failed] == ["ZeroDivisionError"]
    root = attributes(next(span for span in made if "parentSpanId" not in span))
    assert root["gen_ai.operation.name"] == "invoke_agent" and root["rlm.status"] == "answered"
    text = json.dumps(made)
    for secret in ("the question", "a context", "sub-answer", "print(", "division by zero", "done", scripted.KEY):
        assert secret not in text, secret


def test_spans_hold_texts_only_when_asked_for(openai: Server) -> None:
    openai.script = recursive
    result = rlm.complete("the question", "a context", model="gpt-4o", show_below=0)
    made = rlm_viz.spans(result.events(), bodies=True)
    turns = [span for span in made if span["name"] == "chat gpt-4o" and "gen_ai.input.messages" in attributes(span)]
    sent = [json.loads(attributes(span)["gen_ai.input.messages"]) for span in turns]
    requests = sorted(openai.requests, key=lambda request: request.number)
    assert sorted(len(messages) for messages in sent) == sorted(len(request.messages) for request in requests)
    second = next(messages for messages in sent if len(messages) == 4)
    assert [message["role"] for message in second] == ["system", "user", "assistant", "tool"]
    assert second[2]["parts"][0]["type"] == "tool_call"
    assert second[2]["parts"][0]["arguments"]["code"].startswith("print(context[:3])")
    assert second[3]["parts"][0]["type"] == "tool_call_response"
    cell = next(attributes(s) for s in made if "ZeroDivisionError" in json.dumps(s))
    assert json.loads(cell["gen_ai.tool.call.arguments"]) == {"code": "1 / 0"}


@pytest.mark.parametrize("story", [journals.deep_run, journals.failed_run, journals.resumed_run, journals.text_run,
                                   journals.compacted_run, journals.hostile_run, journals.many_tongues])  # fmt: skip
@pytest.mark.parametrize("bodies", [False, True])
def test_every_story_is_what_the_official_schema_takes(story: Callable[[], list[Event]], bodies: bool) -> None:
    need("import opentelemetry")
    need("import opentelemetry.proto")
    from google.protobuf import json_format
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

    events = story()
    made = rlm_viz.spans(events, bodies=bodies)
    text = json.dumps(rlm_viz.otlp(made))
    # In OTLP's JSON ids are hexadecimal, which is the one thing that protobuf's own mapping does otherwise.
    text = re.sub(r'("(?:trace|span|parentSpan)Id": )"([0-9a-f]+)"', lambda m: f'{m[1]}"{_base64(m[2])}"', text)
    message = json_format.Parse(text, trace_service_pb2.ExportTraceServiceRequest())
    parsed = message.resource_spans[0].scope_spans[0].spans
    assert len(parsed) == len(made) > 0
    assert all(len(s.trace_id) == 16 and len(s.span_id) == 8 and s.start_time_unix_nano for s in parsed)
    assert all(s.end_time_unix_nano >= s.start_time_unix_nano for s in parsed)
    known = {s.span_id for s in parsed}
    if story is not journals.hostile_run:  # which has calls of one id
        assert len(known) == len(made) and all(s.parent_span_id in {b"", *known} for s in parsed)
    spans_of_calls = sum(event["event"] in ("call", "tool", "interrupted") for event in events)
    assert sum(s.name != "invoke_agent rlm" for s in parsed) == spans_of_calls


def _base64(digits: str) -> str:
    from base64 import b64encode

    return b64encode(bytes.fromhex(digits)).decode()


@pytest.mark.slow
def test_a_real_collector_takes_them() -> None:
    """rotel, a collector in Rust that its package carries, shows what it was sent."""
    need("import rotel")
    import rotel

    port = free_port()
    events = saved(journals.deep_run())
    program = Path(rotel.__file__).parent / "rotel-agent"
    where = ["--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}"]
    shows = ["--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed"]
    with open("rotel.log", "wb") as log:
        command = [str(program), "start", *where, *shows, "--pid-file", "rotel.pid"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        assert eventually(lambda: answers(port))
        code, out, err = export("run", "--otel", "--bodies", "--endpoint", f"http://127.0.0.1:{port}")
        made = rlm_viz.spans(events, bodies=True)
        assert (code, out, err) == (0, "", f"rlm: {len(made)} spans sent to http://127.0.0.1:{port}\n")
        assert eventually(lambda: Path("rotel.log").read_text().count("\nSpan #") == len(made))
    finally:
        process.terminate()
        process.wait(10)
    shown = Path("rotel.log").read_text()
    assert set(re.findall(r"Trace ID +: (\w+)", shown)) == {made[0]["traceId"]}
    assert sorted(re.findall(r"^    ID +: (\w+)", shown, re.MULTILINE)) == sorted(span["spanId"] for span in made)
    assert "service.name: Str(rlm)" in shown and "gen_ai.operation.name: Str(invoke_agent)" in shown


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_run_that_was_watched_has_the_spans_that_are_exported_later(openai: Server) -> None:
    openai.script = recursive
    with receiver() as collector:
        listener = rlm_viz.OTel(collector.url)
        result = rlm.complete("q", "a context", model="gpt-4o", show_below=0, on_event=listener)
        assert {path for path, _, _ in collector.requests} == {"/v1/traces"}
        assert collector.spans == rlm_viz.spans(result.events())


def test_a_resumed_run_appends_to_its_trace(openai: Server) -> None:
    script = answer_with(code("x = 1"), code("FINAL(x)"))
    openai.script = script
    with receiver() as collector:
        with pytest.raises(rlm.MaxIterationsExceeded) as stopped:
            openai.script = lambda request: code("x = 1") if request.tools else code("pass")
            rlm.complete("q", model="gpt-4o", max_iterations=1, on_event=rlm_viz.OTel(collector.url))
        first = collector.spans
        openai.script = lambda request: code("FINAL(x)")
        with rlm.RLM(model="gpt-4o", on_event=rlm_viz.OTel(collector.url)) as again:
            again.resume(stopped.value.trajectory_id, max_iterations=5)
        made = collector.spans
    assert len({span["traceId"] for span in made}) == 1 and len({span["spanId"] for span in made}) == len(made)
    agents = [attributes(span)["rlm.status"] for span in made if span["name"] == "invoke_agent rlm"]
    assert agents == ["partial", "answered"] and len(made) > len(first)
    whole = rlm_viz.spans(rlm_viz.read(f"logs/{stopped.value.trajectory_id}.jsonl")[0])
    assert [span["spanId"] for span in whole] == [span["spanId"] for span in made]


def test_many_runs_share_one_exporter(openai: Server) -> None:
    openai.script = answer_with(code("1 + 1"), "done")
    with receiver() as collector:
        prompts = [f"question {number}" for number in range(12)]
        with rlm.RLM(model="gpt-4o", on_event=rlm_viz.OTel(collector.url)) as runtime:
            results = list(runtime.batch(prompts, max_workers=4))
        expected = {span["spanId"] for result in results for span in rlm_viz.spans(result.events())}  # type: ignore[union-attr]
        assert {span["spanId"] for span in collector.spans} == expected and len(expected) == 12 * 4


# --- a collector that is not there, or will not ----------------------------------------------------------------------


def test_a_collector_that_is_down_costs_a_run_nothing(openai: Server, capfd: pytest.CaptureFixture[str]) -> None:
    openai.script = answer_with("done")
    listener = rlm_viz.OTel(f"http://user:hunter2@127.0.0.1:{free_port()}")
    for _ in range(2):
        assert rlm.complete("q", model="gpt-4o", on_event=listener).response == "done"
    said = capfd.readouterr().err
    assert "Connection refused; later: rlm export ID --otel" in said and said.count("OpenTelemetry") == 1
    assert "hunter2" not in said


def test_a_collector_that_hangs_is_waited_for_once(openai: Server, capfd: pytest.CaptureFixture[str]) -> None:
    openai.script = answer_with("done")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        listener = rlm_viz.OTel(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout=0.5)
        rlm.complete("q", model="gpt-4o", on_event=listener)
        assert eventually(lambda: not listener._answers)
        listener.timeout = 1e6  # what this test would take if the next runs waited
        for _ in range(3):
            rlm.complete("q", model="gpt-4o", on_event=listener)
    assert "does not answer" in capfd.readouterr().err


def test_events_beyond_the_queue_are_left_out(capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(rlm_viz, "_QUEUE", 1)
    with receiver(delay=0.3) as collector:
        listener = rlm_viz.OTel(collector.url, timeout=0.2)
        for _ in range(50):
            listener({"v": 1, "event": "end", "depth": 0, "trajectory_id": "t"})
            listener._answers = False  # a busy collector is not waited for
        assert "events come faster than they can be sent" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        ([(503, {}, b"")], 2),
        ([(429, {"Retry-After": "1"}, b"")], 2),
        ([(502, {}, b""), (504, {}, b"")], 3),
        ([(200, {}, b"")], 1),
        ([(200, {}, b"not JSON")], 1),
        ([(200, {}, b'{"partialSuccess": null}')], 1),
        ([(200, {}, b'{"partialSuccess": {"rejectedSpans": "0", "errorMessage": "a warning"}}')], 1),
    ],
    ids=["503", "429", "502-504", "empty", "no-json", "null", "warning"],
)
def test_a_busy_collector_is_asked_again(answers: list[Any], requests: int) -> None:
    saved(journals.text_run())
    with receiver(*answers) as collector:
        assert export("run", "--otel", "--endpoint", collector.url)[0] == 0
        assert len(collector.requests) == requests


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((400, {}, b""), "answers with HTTP status 400"),
        ((307, {"Location": "http://127.0.0.1:1/v1/traces"}, b""), "answers with HTTP status 307"),
        (
            (200, {}, b'{"partialSuccess": {"rejectedSpans": "3", "errorMessage": "too old"}}'),
            "rejects 3 spans: too old",
        ),
        ((503, {"Retry-After": "3600"}, b""), "answers with HTTP status 503"),
    ],
    ids=["400", "redirect", "partial", "much-later"],
)
def test_what_a_collector_does_not_take_is_an_error(answer: Any, said: str) -> None:
    saved(journals.text_run())
    with receiver(answer) as collector:
        code, out, err = export("run", "--otel", "--endpoint", collector.url)
        assert (code, out) == (1, "") and f"rlm: {collector.url} {said}" in err and "next: " in err


def test_a_collector_that_is_down_is_an_error_with_the_next_step() -> None:
    saved(journals.text_run())
    code, out, err = export("run", "--otel", "--endpoint", f"http://127.0.0.1:{free_port()}")
    assert (code, out) == (1, "") and "does not answer: Connection refused" in err and "-o FILE keeps the JSON" in err


@pytest.mark.parametrize("url", ["localhost:4318", "ftp://x", "http://", "not an address"])
def test_what_is_no_address_is_refused(url: str) -> None:
    saved(journals.text_run())
    code, _, err = export("run", "--otel", "--endpoint", url)
    assert code == 2 and "no address of a collector" in err and "--endpoint http://localhost:4318" in err
    with pytest.raises(ValueError, match="no address of a collector"):
        rlm_viz.OTel(url)


# --- OpenTelemetry's own variables -----------------------------------------------------------------------------------


def test_the_environment_names_endpoint_headers_and_service() -> None:
    saved(journals.text_run())
    with receiver() as collector:
        names = {"ENDPOINT": collector.url + "/base/", "HEADERS": "authorization=Bearer%20abc123def,x-team = red"}
        env = {f"OTEL_EXPORTER_OTLP_{name}": value for name, value in names.items()} | {"OTEL_SERVICE_NAME": "triage"}
        code, out, err = export("run", "--otel", env={**env, "OTEL_RESOURCE_ATTRIBUTES": "deployment=test"})
        assert (code, out) == (0, ""), err
        [(path, headers, body)] = collector.requests
    assert path == "/base/v1/traces"
    assert (headers["authorization"], headers["x-team"]) == ("Bearer abc123def", "red")
    about = attributes(body["resourceSpans"][0]["resource"])
    assert about == {"service.name": "triage", "deployment": "test"}


def test_a_header_of_the_environment_goes_to_no_other_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=abc123def")
    given = "https://other.example/v1/traces"
    assert rlm_viz.OTel(given).headers == {"api-key": "abc123def"}  # named by the caller, with nothing else named
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "https://own.example")
    assert rlm_viz.OTel(given).headers == {}
    assert rlm_viz.OTel().headers == {"api-key": "abc123def"}
    assert rlm_viz.OTel(given).url == given
    assert rlm_viz.OTel("https://own.example/otel", headers={"a": "b"}).headers == {"api-key": "abc123def", "a": "b"}


def test_a_login_in_the_address_is_sent_and_never_shown() -> None:
    saved(journals.text_run())
    with receiver() as collector:
        url = collector.url.replace("//", "//user:p%40ss@")
        code, out, err = export("run", "--otel", "--endpoint", url)
        assert (code, out) == (0, "") and "user" not in err and "ss@" not in err
        [(_, headers, _)] = collector.requests
    assert headers["authorization"] == "Basic dXNlcjpwQHNz"


def test_a_login_of_netrc_replaces_no_header(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(os.environ["HOME"]).mkdir(exist_ok=True)
    Path(os.environ["HOME"], ".netrc").write_text("machine 127.0.0.1 login them password theirs\n")
    with receiver() as collector:
        rlm_viz.OTel(collector.url, headers={"Authorization": "Bearer ours"}).send(rlm_viz.spans(journals.text_run()))
        [(_, headers, _)] = collector.requests
    assert headers["authorization"] == "Bearer ours"


def test_without_an_endpoint_the_json_is_printed_and_o_keeps_it_even_with_one() -> None:
    events = saved(journals.text_run())
    code, out, err = export("run", "--otel")
    assert (code, err) == (0, "") and spans_of(json.loads(out)) == rlm_viz.spans(events)
    assert export("run", "--otel", "-o", "spans.json", "--endpoint", "http://127.0.0.1:1") == (0, "", "")
    assert json.loads(Path("spans.json").read_text()) == json.loads(out)


def test_an_exporter_is_pickled_as_what_it_was_given() -> None:
    again = pickle.loads(pickle.dumps(rlm_viz.OTel("http://127.0.0.1:4318", headers={"a": "b"}, bodies=True)))
    assert (again.url, again.bodies, again.timeout) == ("http://127.0.0.1:4318/v1/traces", True, 5.0)
    assert again.headers["a"] == "b"


# --- training samples ------------------------------------------------------------------------------------------------


def samples(*names: str) -> list[Event]:
    code, out, err = export(*(names or ("*",)), "--sft")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


def check_chat_format(sample: Event) -> None:
    """The rules of OpenAI's format for fine-tuning on chats with tools."""
    assert sample.keys() <= {"messages", "tools"} and sample["messages"]
    open_calls: set[str] = set()
    for message in sample["messages"]:
        assert message["role"] in ("system", "user", "assistant", "tool")
        allowed = {"assistant": {"tool_calls"}, "tool": {"tool_call_id"}}.get(message["role"], set())
        assert message.keys() - {"role", "content"} <= allowed
        assert isinstance(message["content"], (str, list))
        if message["role"] == "tool":
            open_calls.remove(message["tool_call_id"])
        else:
            assert not open_calls, "a tool call without a result"
        for asked in message.get("tool_calls", ()):
            assert asked["type"] == "function" and isinstance(json.loads(asked["function"]["arguments"]), dict)
            open_calls.add(asked["id"])
    assert sample["messages"][-1]["role"] == "assistant"
    for tool in sample.get("tools", ()):
        assert tool["type"] == "function" and tool["function"]["parameters"]["type"] == "object"


def tools_and_an_error(request: Request) -> Any:
    turns = [
        Turn("Look.", tool_calls=[call("execute_code", code="print(context[:9])")]),
        Turn(tool_calls=[call("python", code="1 / 0")]),  # a name that stands for another
        Turn(tool_calls=[call("file_list", path="."), call("execute_code", code="2 + 2")]),
    ]
    return turns[request.turn - 1] if request.turn <= len(turns) else "The answer is 4."


def text_with_invented_output(request: Request) -> Any:
    replies = [
        "<think>hm</think>First:\n```python\nprint(len(context))\n```\nOutput:\n99\nSo it is 99.",
        "<think>again</think>```python\nprint(2)\n```\n",
        "```python\n1 / 0\n```",
    ]
    return replies[request.turn - 1] if request.turn <= len(replies) else "It is 2."


def careless(request: Request) -> Any:
    """Answers before it has looked, then repeats itself, then answers with a number that no output shows."""
    replies = ["It is 7.", code_block("len(context)"), code_block("x = nothing"), code_block("x = nothing")]
    replies += [code_block("x = nothing"), "ANSWER: 123456", code_block("print(40 + 2)")]
    return replies[min(number_of(request), len(replies)) - 1] if number_of(request) <= len(replies) else "ANSWER: 42"


def code_block(source: str) -> str:
    return f"```python\n{source}\n```"


def number_of(request: Request) -> int:
    return request.number


def long_outputs(request: Request) -> Any:
    return code(f"print('{request.turn}' * 9000)") if request.turn < 12 else "done"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        (recursive, {}),
        (tools_and_an_error, {}),
        (text_with_invented_output, {"protocol": "text"}),
        (text_with_invented_output, {"protocol": "text", "prompt": "small"}),
        (careless, {"protocol": "text", "prompt": "small"}),
        (careless, {"protocol": "text", "prompt": "full"}),
        (lambda request: code("x = 1") if request.tools else "my best answer", {"max_iterations": 3}),
        (long_outputs, {"max_iterations": 14}),
        (lambda request: "done", {"plain_below": 20_000}),
        (lambda request: code("FINAL(2)") if "tools" in request.body else "", {"plain_below": 20_000}),
    ],
    ids=[
        *("recursion", "tools", "text", "text-small", "careless-small", "careless-full", "forced", "compacted"),
        *("plain", "plain-then-loop"),
    ],
)
def test_a_sample_is_what_the_model_was_sent_and_its_reply(
    script: Any, options: dict[str, Any], openai: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is long_outputs:
        monkeypatch.setattr(rlm, "_UNKNOWN_WINDOW", 12_000)
        monkeypatch.setattr("rlm_backends.HTTPBackend.window", None, raising=False)
    openai.script = script
    model = "some-model" if script is long_outputs else "gpt-4o"
    with rlm.RLM(model=model, show_below=0, backend="openai", **options) as runtime:
        runtime.completion("How many are there?", "a context that is too long to be shown\n" * 200)
    made = samples()
    for sample in made:
        check_chat_format(sample)
    turns = [request for request in openai.requests if request.system or "plain_below" in options]
    assert sorted((s["messages"][:-1] for s in made), key=json.dumps) == sorted(
        (r.messages for r in turns), key=json.dumps
    )
    by_messages = {json.dumps(r.messages): r for r in turns}
    for sample in made:
        request = by_messages[json.dumps(sample["messages"][:-1])]
        assert sample.get("tools", []) == request.body.get("tools", [])
    if script is long_outputs:
        assert "characters of output stood here; it is in _out[1]" in json.dumps(made[-1])


def same_messages(requests: Any) -> None:
    """Each sample is a request that the server got, with its reply."""
    sent = sorted((request.messages for request in requests if request.system), key=json.dumps)
    assert sorted((sample["messages"][:-1] for sample in samples()), key=json.dumps) == sent


def test_samples_of_a_resumed_run_are_what_was_sent(openai: Server) -> None:
    openai.script = lambda request: code(f"x = {request.turn}") if request.number < 3 else scripted.error(400)
    with pytest.raises(rlm.ProviderError) as stopped:
        rlm.complete("q", model="gpt-4o")
    openai.script = lambda request: code(f"x = {request.turn}") if request.turn < 5 else "done"
    with rlm.RLM(model="gpt-4o") as again:
        assert again.resume(stopped.value.trajectory_id).response == "done"
    same_messages([request for request in openai.requests if request.status == 200])


def test_samples_of_a_conversation_are_what_was_sent(openai: Server) -> None:
    openai.script = lambda request: code("1 + 1") if request.messages[-1]["role"] == "user" else "two"
    with rlm.RLM(model="gpt-4o", persistent=True) as runtime:
        for prompt in ("first", "second", "third"):
            runtime.completion(prompt)
    assert len(samples()) == 6
    same_messages(openai.requests)


def test_samples_after_a_summary_are_what_was_sent(openai: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prose that no stub can replace fills the window, so that the work is summed up."""
    monkeypatch.setattr(rlm, "_UNKNOWN_WINDOW", 8_000)

    def script(request: Request) -> Any:
        if not request.system:
            return "a short summary"
        prose = f"{request.number} " + "thinking it over at length. " * 200
        calls = [call("execute_code", code=f"print({request.number})")]
        return Turn(prose, tool_calls=calls) if request.number < 9 else "done"

    openai.script = script
    name = rlm.complete("q", model="some-model", backend="openai").trajectory_id
    assert any(event.get("summary") for event in rlm_viz.read(f"logs/{name}.jsonl")[0])
    same_messages(openai.requests)


def test_samples_of_the_runs_with_a_status_and_a_score(openai: Server) -> None:
    openai.script = answer_with("done")
    good, poor = (rlm.complete(f"q{n}", model="gpt-4o").trajectory_id for n in range(2))
    with pytest.raises(rlm.MaxIterationsExceeded) as stopped:
        openai.script = lambda request: code("pass")
        rlm.complete("q", model="gpt-4o", max_iterations=1)
    assert len(samples()) == 3 + len(samples(stopped.value.trajectory_id)) - 1
    code_, out, err = export("*", "--sft", "--status", "answered")
    assert code_ == 0 and len(out.splitlines()) == 2 and err == "rlm: 2 samples from 2 of 3 runs\n"
    Path("scores.json").write_text(json.dumps({good: 0.9, poor: 0.2}))
    rows = [{"trajectory_id": good, "score": 0.9, "prompt": "q0"}, {"id": poor, "score": 0.2}, {"id": "other"}]
    Path("scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("scores.json", "scores.jsonl"):
        code_, out, err = export("*", "--sft", "--scores", name, "--min-score", "0.5", "-o", "samples.jsonl")
        assert (code_, out, err) == (0, "", "rlm: 1 sample from 1 of 3 runs\n")
        [line] = Path("samples.jsonl").read_text().splitlines()
        assert json.loads(line)["messages"][-1]["content"] == "done"


def test_a_key_in_a_run_is_in_no_export(openai: Server) -> None:
    leak = "sk-leaked0123456789abcdef"
    openai.script = answer_with(code(f"print('{leak[:6]}' + '{leak[6:]}')"), f"it is {leak}")
    name = rlm.complete("q", model="gpt-4o").trajectory_id
    assert leak in Path(f"logs/{name}.jsonl").read_text()
    for form in (["--sft"], ["--ipynb"], ["--otel", "--bodies"]):
        code_, out, _ = export(name, *form)
        assert code_ == 0 and leak not in out and "[redacted]" in out


# --- a notebook ------------------------------------------------------------------------------------------------------


def notebook(*arguments: str) -> Any:
    import nbformat

    code_, out, err = export(*arguments, "--ipynb")
    assert (code_, err) == (0, "")
    book = nbformat.reads(out, as_version=4)
    nbformat.validate(book)
    assert (book.nbformat, book.nbformat_minor) == (4, 5)
    return book


def test_a_notebook_has_the_cells_with_their_outputs_in_place(openai: Server) -> None:
    need("import nbformat")
    openai.script = recursive
    name = rlm.complete("the question", "a context", model="gpt-4o", show_below=0).trajectory_id
    book = notebook(name)
    kinds = [cell.cell_type for cell in book.cells]
    assert kinds == [*("markdown", "code", "code", "markdown", "code", "markdown", "code"), *("markdown",) * 2]
    question, load, first, asked, second, child, third, prose, end = book.cells
    assert question.source.startswith("# the question") and "a context" not in load.source
    assert first.outputs[0] == {"output_type": "stream", "name": "stdout", "text": "a c\n"}
    assert first.outputs[1].data["text/plain"] == "['sub-answer', 'sub-answer']"
    assert asked.source.count("<summary>llm_query</summary>") == 2
    assert "the child" in child.source and "FINAL(len(context))" in child.source
    assert third.outputs[0].ename == "ZeroDivisionError" and third.outputs[0].evalue == "division by zero"
    assert (prose.source, end.source) == ("done", "## answered\n\ndone")
    assert [cell.execution_count for cell in (load, first, second, third)] == [None, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["the text of it", {"a": [1, 2], "b": b"bytes"}], ids=["text", "data"])
def test_a_notebook_runs_again_in_jupyter_with_its_input(
    openai: Server, context: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("import nbclient")
    monkeypatch.setenv("IPYTHONDIR", str(workspace / "ipython"))
    import nbclient

    openai.script = answer_with(code("print(type(context).__name__, len(context))"), "done")
    name = rlm.complete("q", context, model="gpt-4o", show_below=0).trajectory_id
    book = notebook(name)
    recorded = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    nbclient.NotebookClient(book, timeout=60).execute()
    assert [cell.outputs for cell in book.cells if cell.cell_type == "code"] == recorded


@pytest.mark.parametrize("story", [journals.deep_run, journals.failed_run, journals.resumed_run, journals.text_run,
                                   journals.compacted_run, journals.hostile_run, journals.many_tongues])  # fmt: skip
def test_every_story_is_a_notebook_that_asks_for_nothing(story: Callable[[], list[Event]]) -> None:
    need("import nbformat")
    saved(story())
    _, out, _ = export("run", "--ipynb")
    import nbformat

    book = nbformat.reads(out, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "markdown":
            free = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", cell.source)
            free = re.sub(r"<details><summary>[^<>]*</summary>|</details>", "", free)
            assert not re.search(r"<[A-Za-z/!?]|!\[", free), free


def test_an_image_that_a_journal_holds_is_in_its_place() -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    cell = {
        "event": "tool",
        "depth": 0,
        "cell": 1,
        "code": "plot()",
        "images": [f"data:image/png;base64,{pixel}", "data:x"],
    }
    [made] = (cell for cell in rlm_viz.notebook([cell])["cells"] if cell["cell_type"] == "code")
    assert made["outputs"] == [{"output_type": "display_data", "data": {"image/png": pixel}, "metadata": {}}]


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_torn_journal_is_exported_as_far_as_it_goes() -> None:
    text = journals.dumps(journals.text_run())
    Path("logs").mkdir()
    Path("logs/run.jsonl").write_text(text[:-30])
    for form in ("--otel", "--sft", "--ipynb"):
        code_, out, err = export("run", form)
        assert code_ == 0 and out and "is torn and left out" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "no export format given"),
        (["--sft"], "name one or more runs"),
        (["nothing", "--sft"], "no run 'nothing'"),
        (["no*", "--sft"], "matches 'no*'"),
        (["*", "--ipynb"], "this format takes one run, not 2"),
        (["*", "--csv"], "this format takes one run, not 2"),
        (["run", "--sft", "--bodies"], "--bodies goes with --otel"),
        (["run", "--otel", "--status", "answered"], "--status goes with --sft"),
        (["run", "--sft", "--min-score", "0"], "--min-score and --scores go together"),
        (["run", "--sft", "--min-score", "1", "--scores", "none.json"], "--scores: cannot read 'none.json'"),
        (["run", "--sft", "--min-score", "1", "--scores", "logs/run.jsonl"], "sample"),
        (["run", "--sft", "--min-score", "1", "--scores", "bad.json"], "holds no scores"),
        (["run", "--sft", "--otel"], "not allowed with"),
        (["run", "--sft", "-o", "no/such/folder"], "cannot write 'no/such/folder'"),
        (["empty", "--sft"], "holds no events"),
    ],
)
def test_a_wrong_call_is_an_error_with_the_next_step(arguments: list[str], said: str) -> None:
    saved(journals.text_run())
    Path("logs/empty.jsonl").touch()
    Path("bad.json").write_text("[1, 2]")
    code_, _, err = export(*arguments)
    assert said in err, err
    assert said == "sample" or (code_ == 2 and "next: " in err)


# --- the page --------------------------------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "trajectories.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page_work(openai: Server) -> None:
    openai.script = answer_with(code("print(1)"), "done")
    name = rlm.complete("q", model="gpt-4o").trajectory_id
    lines = re.findall(r"^\$ rlm export (.*?)(?: +#.*)?$", PAGE, re.MULTILINE)
    assert len(lines) == 6
    with receiver() as collector:
        for line in lines:
            words = shlex.split(line.replace("a1b2", name[:8]).replace("http://localhost:4318", collector.url))
            code_, out, err = export(*words)
            assert code_ == 0, err
            assert bool(out) == (line == "a1b2 --otel")
        assert len(collector.spans) == 4
    assert len(Path("samples.jsonl").read_text().splitlines()) == 2
    assert json.loads(Path("run.ipynb").read_text())["nbformat"] == 4


def test_the_program_of_the_page_works(openai: Server) -> None:
    openai.script = answer_with("2")
    [program] = re.findall(
        r"^```python\n(import rlm\nfrom rlm_viz import OTel\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL
    )
    with receiver() as collector:
        source = program.replace("http://localhost:4318", collector.url)
        ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "2\n", "")
        assert [span["name"].split()[0] for span in collector.spans] == ["chat", "invoke_agent"]


def test_what_an_import_loads_has_no_http_client() -> None:
    report = "import rlm, rlm_viz, sys; print({'requests', 'queue', 'rlm_viz'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "{'rlm_viz'}\n", ran.stderr


# --- a table, and a trace --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("story", [journals.deep_run, journals.failed_run, journals.resumed_run, journals.hostile_run])
def test_the_table_has_a_line_for_each_row_of_the_tree(story: Callable[[], list[Event]]) -> None:
    events = saved(story())
    status, out, _ = export("run", "--csv")
    header, *cells = csv.reader(io.StringIO(out, newline=""))
    listed = rlm_viz.rows(events)
    assert (status, {len(row) for row in cells}) == (0, {len(header)})
    assert [int(row[header.index("event")]) for row in cells] == [row.index for row in listed]
    assert [float(row[header.index("total_tokens")]) for row in cells] == [row.all_tokens for row in listed]
    assert not [value for row in cells for value in row if re.match(r"[=+@\t\r]|-\D", value)], "a formula"


@pytest.mark.parametrize("story", [journals.deep_run, journals.failed_run, journals.resumed_run, journals.hostile_run])
def test_what_a_chrome_trace_draws_on_one_line_is_nested(story: Callable[[], list[Event]]) -> None:
    events = saved(story())
    status, out, _ = export("run", "--chrome")
    spans = json.loads(out)["traceEvents"]
    assert (status, len(spans)) == (0, len(rlm_viz.rows(events)))
    lanes: dict[int, list[tuple[float, float]]] = {}
    for span in spans:
        start, end = span["ts"], span["ts"] + span["dur"]
        for before, until in lanes.setdefault(span["tid"], []):
            assert end <= until or start >= until - 1000, (before, until, span)  # times are whole microseconds
        lanes[span["tid"]].append((start, end))
