"""The official SDKs' own types as judges of requests: nested parts are looked into, and unknown keys are errors."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from conftest import CI

import rlm_backends


@functools.cache
def are_here() -> bool:
    return all(importlib.util.find_spec(name) for name in ("openai", "anthropic", "google"))


def need_packages() -> None:
    """Skip where the SDKs are not installed; in CI that is a failure."""
    if not are_here():
        (pytest.fail if CI else pytest.skip)("the SDKs openai, anthropic and google-genai are not installed")


@pytest.fixture(autouse=True)
def every_request_is_one_that_the_sdks_could_send(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the modules that import this: whatever is sent from this process is judged before it goes."""
    problems: list[str] = []
    send = rlm_backends.HostPool.open

    def judged(link: Any, flight: Any, url: str, headers: Any, body: bytes) -> Any:
        try:
            if wire := wire_of(url):
                check(wire, json.loads(body))
        except Exception as problem:
            problems.append(f"{url}: {problem}")
        return send(link, flight, url, headers, body)

    if are_here():
        monkeypatch.setattr(rlm_backends.HostPool, "open", judged)
    yield
    assert not problems, "\n".join(problems)


def wire_of(url: str) -> str | None:
    ends = {"/chat/completions": "openai", "/messages": "anthropic", "enerateContent": "gemini"}
    return next((wire for end, wire in ends.items() if url.partition("?")[0].endswith(end)), None)


def check(wire: str, body: Mapping[str, Any]) -> None:
    """Raise what pydantic raises for a request that the wire's SDK could not send."""
    {"openai": check_openai, "anthropic": check_anthropic, "gemini": check_gemini}[wire](body)


def exhaust(value: Any) -> None:
    """Walk through everything: pydantic looks at the items of an `Iterable` only as they are taken."""
    if isinstance(value, Mapping):
        for inner in value.values():
            exhaust(inner)
    elif hasattr(value, "__iter__") and not isinstance(value, (str, bytes)):
        for inner in value:
            exhaust(inner)


@functools.cache
def adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))


def check_openai(body: Mapping[str, Any]) -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParams

    exhaust(adapter(CompletionCreateParams).validate_python(dict(body)))


def check_anthropic(body: Mapping[str, Any]) -> None:
    from anthropic.types import ContentBlockParam
    from anthropic.types.message_create_params import MessageCreateParams

    exhaust(adapter(MessageCreateParams).validate_python(dict(body)))
    for message in body["messages"]:  # there, the blocks of answers are let pass too, with any key
        for block in message["content"]:
            exhaust(adapter(ContentBlockParam).validate_python(block))


def check_gemini(body: Mapping[str, Any]) -> None:
    from google.genai import types

    kinds: dict[str, Callable[[str], Any]] = {
        "systemInstruction": types.Content.model_validate_json,
        "generationConfig": types.GenerationConfig.model_validate_json,
    }
    lists: dict[str, Callable[[str], Any]] = {
        "contents": types.Content.model_validate_json,
        "tools": types.Tool.model_validate_json,
    }
    for name, value in body.items():
        if name in lists:
            for item in value:
                lists[name](json.dumps(item))
        else:
            kinds[name](json.dumps(value))  # KeyError: a key that no request has
