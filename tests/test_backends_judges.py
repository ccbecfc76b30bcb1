"""What others make of us: the official SDKs' types of each request, and llmock's verdict on how faults are handled."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sdk_types
from sdk_types import every_request_is_one_that_the_sdks_could_send  # noqa: F401

import rlm_backends
from rlm_backends import BackendError, HTTPBackend, Reply, connect

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
llmock_testing = __import__("llmock.testing") if CI else pytest.importorskip("llmock.testing")

pytestmark = pytest.mark.slow

MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-sonnet-4-5", "gemini": "gemini-2.5-flash"}
ASK = [{"role": "user", "content": "hello world"}]
ADD: dict[str, Any] = {
    "name": "add",
    "description": "adds two numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
}


@pytest.fixture(params=MODELS)
def wire(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def stream(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --- the SDKs' types ------------------------------------------------------------------------------------------------

PICTURE = rlm_backends.image_part(b"\x89PNG\r\n\x1a\n")
HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "be terse"},
    {"role": "user", "content": [{"type": "text", "text": "what is this?"}, PICTURE]},
    {"role": "assistant", "content": "adding", "tool_calls": [{"id": "c1", "name": "add", "arguments": {"a": 1}}]},
    {"role": "tool", "tool_call_id": "c1", "name": "add", "content": [{"type": "text", "text": "4"}, PICTURE]},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c2", "name": "add", "arguments": "{cut"}]},
    {"role": "tool", "tool_call_id": "c2", "name": "add", "content": "cannot be read", "is_error": True},
    {"role": "user", "content": "go on", "_ours": 1},
]
THOUGHT = {"role": "assistant", "content": "hm", "tool_calls": []}
RAW: dict[str, dict[str, Any]] = {
    "openai": {"fields": {}, "extras": {}},
    "anthropic": {
        "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "hm"}]
    },
    "gemini": {"parts": [{"text": "hm", "thoughtSignature": "c2lnbmVk"}]},
}


@pytest.mark.parametrize("tools", [None, [ADD]], ids=["no tools", "tools"])
@pytest.mark.parametrize("schema", [None, {"type": "object"}], ids=["text", "schema"])
def test_every_form_of_request_is_one_that_the_sdk_could_send(wire: str, stream: bool, tools: Any, schema: Any) -> None:
    sdk_types.need_packages()
    backend = connect(MODELS[wire], wire, api_key="x" * 20)
    raw = {"wire": wire, "model": backend.model, "provider": backend.provider, **RAW[wire]}
    messages = [*HISTORY, {**THOUGHT, "raw": raw}, {"role": "user", "content": "and?"}]
    sdk_types.check(wire, backend.dry_run(messages, tools=tools, max_tokens=9, schema=schema, stream=stream)[2])


def test_these_judges_look_into_nested_parts(wire: str) -> None:
    sdk_types.need_packages()
    body = connect(MODELS[wire], wire, api_key="x" * 20).dry_run(HISTORY, tools=[ADD])[2]
    turns = body.get("messages") or body["contents"]
    content = next(turn.get("content") or turn.get("parts") for turn in turns if turn["role"] == "user")
    for place in (body, turns[-1], content[0], body["tools"][0]):
        place["unheard_of"] = 1
        with pytest.raises(Exception, match="unheard_of"):
            sdk_types.check(wire, copy.deepcopy(body))
        del place["unheard_of"]


# --- llmock's verdict -----------------------------------------------------------------------------------------------


@pytest.fixture
def judge(llmock: Any) -> Iterator[Any]:
    """llmock, whose strict verdict the test must stand at its end."""
    yield llmock
    llmock.assert_resilient(strict=True)


@pytest.fixture
def backend(judge: Any, wire: str) -> HTTPBackend:
    """A backend for it."""
    url = judge.base_url(wire) + ("/v1beta" if wire == "gemini" else "")
    return connect(MODELS[wire], wire, base_url=url, api_key="x" * 20, timeout=20)


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one retry that a test is about follows soon, unless the server asks for a wait."""
    monkeypatch.setattr(random, "uniform", lambda *_: 0.2)


def asked(judge: Any, backend: HTTPBackend, stream: bool, **how: Any) -> Reply | BackendError:
    """The answer or the error; whoever gets part of an answer asks again, as a caller would."""
    for _ in range(2):
        try:
            return backend.complete(ASK, on_text=(lambda _: None) if stream else None, **how)
        except BackendError as error:
            if not error.partial:
                return error
            assert error.code in ("truncated", "connection", "timeout")
            assert judge.requests  # waits until llmock has noted how the stream ended
    raise AssertionError("cut twice")


@pytest.mark.usefixtures("short_pause")
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_passing_failures_pass_the_judge(judge: Any, backend: HTTPBackend, stream: bool, status: int) -> None:
    judge.fail(status, retry_after=0.1)
    reply = asked(judge, backend, stream)
    assert isinstance(reply, Reply)
    assert reply.attempts == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_lasting_failures_pass_the_judge(judge: Any, backend: HTTPBackend, stream: bool, status: int) -> None:
    judge.fail(status)
    error = asked(judge, backend, stream)
    assert isinstance(error, BackendError)
    assert (error.status, len(judge.requests)) == (status, 1)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (lambda judge: judge.rate_limit(times=2, retry_after=0.3), None),
        (lambda judge: judge.delay(0.1), None),
        (lambda judge: judge.slow_first_token(0.1), None),
        (lambda judge: judge.context_overflow(), "context_length"),
    ],
    ids=["rate limit", "delay", "slow first token", "overflow"],
)
def test_waiting_passes_the_judge(judge: Any, backend: HTTPBackend, stream: bool, fault: Any, code: str | None) -> None:
    fault(judge)
    assert getattr(asked(judge, backend, stream), "code", None) == code


def test_an_outage_passes_the_judge(judge: Any, backend: HTTPBackend) -> None:
    judge.outage()
    backend._how = backend._how._replace(max_retries=2)
    error = asked(judge, backend, stream=False)
    assert isinstance(error, BackendError)
    assert (error.status, len(judge.requests)) == (503, 3)


@pytest.mark.usefixtures("short_pause")
@pytest.mark.parametrize("after", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", ["disconnect", "truncate", "corrupt", "stall"])
def test_broken_streams_pass_the_judge(judge: Any, backend: HTTPBackend, kind: str, after: int) -> None:
    if kind == "stall":
        backend._how = backend._how._replace(timeout=0.3)
    judge.reply("one two three four five six seven", times=None).pace(10)  # still sending when the client hangs up
    getattr(judge, kind)(after_chunks=after, **({"seconds": 2} if kind == "stall" else {}))
    reply = asked(judge, backend, stream=True)
    assert isinstance(reply, Reply)
    assert reply.text == "one two three four five six seven"


@pytest.mark.usefixtures("short_pause")
def test_a_stream_that_broke_in_a_tool_call_passes_the_judge(judge: Any, backend: HTTPBackend) -> None:
    judge.call_tool("add", {"a": 1}, times=None).truncate(after_chunks=0)
    reply = asked(judge, backend, stream=True, tools=[ADD])
    assert isinstance(reply, Reply)
    assert [made["arguments"] for made in reply.tool_calls] == [{"a": 1}]


@pytest.mark.parametrize("kind", ["malformed_arguments", "unknown_tool"])
def test_broken_tool_calls_reach_the_caller_as_they_are(
    judge: Any, backend: HTTPBackend, stream: bool, kind: str
) -> None:
    judge.break_tool_call(kind)
    reply = asked(judge, backend, stream, tools=[ADD])
    assert isinstance(reply, Reply)
    (made,) = reply.tool_calls
    as_text = backend.wire == "openai" or (backend.wire == "anthropic" and stream)  # the others send objects
    assert isinstance(made["arguments"], str) == (kind == "malformed_arguments" and as_text)


def test_real_quotas_lose_no_answer(judge: Any, backend: HTTPBackend) -> None:
    """More than the minute allows: each waits for as long as the server says, together."""
    from test_backends import all_at_once

    judge.limits(rpm=1200)
    prompts = [f"prompt {n}" for n in range(40)]
    results = all_at_once(backend, prompts, deadline=time.monotonic() + 60)
    assert [type(result) for result in results] == [Reply] * 40
