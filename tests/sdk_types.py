"""The official SDKs' own types as judges of requests: nested parts are looked into, and unknown keys are errors."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

PACKAGES = ("openai", "anthropic", "google.genai")


def need_packages() -> None:
    """Skip where the SDKs are not installed; in CI that is a failure."""
    for name in PACKAGES:
        if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
            __import__(name)
        else:
            pytest.importorskip(name)


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
