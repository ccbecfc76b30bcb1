"""A scripted model server on loopback: real HTTP, the OpenAI chat and Anthropic messages wires, strict about requests.

    with Server(lambda request: Turn(f"you said {request.last}")) as server:
        ... base_url=server.base_url, api_key=server.key ...

A script is a function of the `Request`, or a list of turns served in order; it returns a `Turn`, a plain string, or a
`Fault` (`error`, `hang`, `drip`, `cut`, `html`, …). What a real provider would refuse is refused with that provider's
own error, and noted in `server.problems`, which the `server` fixture wants empty at the end of a test.
"""

from __future__ import annotations

import json
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

JSON: TypeAlias = dict[str, Any]
Wire: TypeAlias = Literal["openai", "anthropic"]
KEY = "sk-planted-4f1c9a7be2d05836af"  # searched for in everything that the tests write


# --- what a script answers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One reply. `usage`: "count" counts characters / 4, None leaves it out; else {"input", "output", "cached", …}."""

    text: str | None = ""
    tool_calls: Sequence[JSON] = ()  # {"name": …, "arguments": dict, or str to send as it is, "id": … if it matters}
    usage: JSON | Literal["count"] | None = "count"
    finish: str | None = None  # stop, length, tool_calls, refusal, content_filter, pause; anything else as it is
    thinking: str | None = None
    delay: float = 0.0
    until: threading.Event | None = None  # answer only once it is set
    extra: JSON = field(default_factory=dict)  # merged into the reply's top level


@dataclass(frozen=True)
class Fault:
    """A reply that goes wrong on the way. Made by the functions below."""

    turn: Turn = field(default_factory=Turn)
    status: int = 200
    headers: JSON = field(default_factory=dict)
    message: str = ""
    code: str | None = None
    body: bytes | None = None
    content_type: str = "application/json"
    framing: Literal["auto", "close"] = "auto"
    hang: bool = False
    cut: int | None = None  # stop after so many bytes of the body
    reset: bool = False  # … with a TCP reset instead of an orderly end
    drip: float = 0.0  # seconds between bytes


def error(
    status: int, message: str = "scripted error", *, code: str | None = None, retry_after: Any = None, **headers: str
) -> Fault:
    """The wire's own error object with this status; `retry_after` goes into the header of that name as it is."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if retry_after is not None:
        named["Retry-After"] = str(retry_after)
    return Fault(status=status, message=message, code=code, headers=named)


def hang() -> Fault:
    """The request is read and never answered."""
    return Fault(hang=True)


def drip(turn: Turn | str, seconds: float = 0.05) -> Fault:
    """The reply comes one byte at a time."""
    return Fault(turn=as_turn(turn), drip=seconds)


def cut(turn: Turn | str, after: int, *, framing: Literal["auto", "close"] = "auto") -> Fault:
    """The connection ends after so many bytes of the body; with framing="close" HTTP itself cannot tell."""
    return Fault(turn=as_turn(turn), cut=after, framing=framing)


def closed(turn: Turn | str) -> Fault:
    """A whole reply whose end is only the connection's end, as old proxies send it."""
    return Fault(turn=as_turn(turn), framing="close")


def reset(turn: Turn | str = "", after: int = -1) -> Fault:
    """A TCP reset: before any byte, or after so many bytes of the body."""
    return Fault(turn=as_turn(turn), cut=after, reset=True)


def html(status: int = 200) -> Fault:
    page = b"<!DOCTYPE html><html><head><title>Login</title></head><body>Please sign in</body></html>"
    return Fault(status=status, body=page, content_type="text/html; charset=utf-8")


def empty(status: int = 200) -> Fault:
    return Fault(status=status, body=b"")


def half(text: str = "half a reply") -> Fault:
    """A well-framed body that is only the first half of its JSON."""
    whole = json.dumps({"id": "x", "choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
    return Fault(body=whole[: len(whole) // 2])


def redirect(location: str, status: int = 307) -> Fault:
    return Fault(status=status, body=b"", headers={"Location": location})


def body(content: bytes | JSON, status: int = 200, content_type: str = "application/json", delay: float = 0.0) -> Fault:
    """Exactly this body."""
    return Fault(
        turn=Turn(delay=delay),
        status=status,
        body=content if isinstance(content, bytes) else json.dumps(content).encode(),
        content_type=content_type,
    )


Reply: TypeAlias = Turn | Fault | str
Script: TypeAlias = Callable[["Request"], Reply] | Sequence[Reply]


def as_turn(reply: Turn | str) -> Turn:
    return Turn(reply) if isinstance(reply, str) else reply


def call(name: str, /, **arguments: Any) -> JSON:
    """A tool call for `Turn.tool_calls`."""
    return {"name": name, "arguments": arguments}


def code(source: str) -> Turn:
    """A turn that runs this code in the REPL."""
    return Turn(tool_calls=[call("execute_code", code=source)])


def answer_with(*turns: Any, sub: Any = "sub-answer") -> Callable[[Request], Any]:
    """A script: the root says these in turn, the last of them for ever; a sub-call (no system prompt) gets `sub`."""

    def reply(request: Request) -> Any:
        if not request.system:
            return sub(request) if callable(sub) else sub
        turn = turns[min(request.turn, len(turns)) - 1]
        return turn(request) if callable(turn) else turn

    return reply


# --- what a script sees --------------------------------------------------------------------------------------------


@dataclass
class Request:
    """A request as it came, and what is asked of it most, the same for both wires."""

    number: int
    wire: Wire
    path: str
    headers: dict[str, str]  # names in lower case
    raw: bytes
    body: JSON = field(default_factory=dict)
    status: int = 0  # what it was answered with
    gone: threading.Event = field(default_factory=threading.Event)  # the client left while it waited

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def messages(self) -> list[JSON]:
        messages: list[JSON] = self.body["messages"]
        return messages

    @property
    def max_tokens(self) -> int | None:
        found = self.body.get("max_completion_tokens", self.body.get("max_tokens"))
        return None if found is None else int(found)

    @property
    def system(self) -> str:
        if self.wire == "anthropic":
            return text_of(self.body.get("system", ""))
        return "\n".join(text_of(m["content"]) for m in self.messages if m["role"] in ("system", "developer"))

    @property
    def prompt(self) -> str:
        """The first user message, without what it says of the context."""
        text = next((text_of(m["content"]) for m in self.messages if m["role"] == "user"), "")
        return text.split("\n\n`context` is ", 1)[0]

    @property
    def last(self) -> str:
        """The text of the last message, tool results included."""
        return text_of(self.messages[-1]["content"])

    @property
    def turn(self) -> int:
        """1 for a conversation's first request."""
        return 1 + len([m for m in self.messages if m["role"] == "assistant"])

    @property
    def tools(self) -> list[str]:
        return [t["function"]["name"] if self.wire == "openai" else t["name"] for t in self.body.get("tools", [])]

    @property
    def results(self) -> dict[str, str]:
        """The tool results since the last assistant message, by the id of their call."""
        found: dict[str, str] = {}
        for message in self.messages:
            if message["role"] == "assistant":
                found = {}
            elif message["role"] == "tool":
                found[message["tool_call_id"]] = text_of(message["content"])
            elif isinstance(message["content"], list):
                found |= {b["tool_use_id"]: text_of(b.get("content", "")) for b in of_type(message, "tool_result")}
        return found


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(text_of(b.get("text", b.get("content", ""))) for b in content)
    return content if isinstance(content, str) else ""


def of_type(message: JSON, kind: str) -> list[JSON]:
    content = message["content"]
    return [b for b in content if b["type"] == kind] if isinstance(content, list) else []


# --- strictness: both wires ----------------------------------------------------------------------------------------


class Refused(Exception):
    """A request that a provider would refuse."""

    def __init__(self, message: str, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def want(condition: object, message: str) -> None:
    if not condition:
        raise Refused(message)


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def one_of(*words: str) -> Callable[[Any], bool]:
    return lambda value: value in words


Keys: TypeAlias = dict[str, Callable[[Any], object]]


def keys(value: Any, where: str, required: Keys, optional: Keys | None = None) -> None:
    """An object with these keys of these kinds and no others."""
    want(isinstance(value, dict), f"{where}: expected an object, got {type(value).__name__}")
    allowed = required | (optional or {})
    for name in value:
        want(name in allowed, f"{where}: unrecognized key {name!r}")
        want(allowed[name](value[name]), f"{where}.{name}: invalid value {value[name]!r:.80}")
    for name in required:
        want(name in value, f"{where}: missing required key {name!r}")


def read_json(raw: bytes) -> JSON:
    def pairs(items: list[tuple[str, Any]]) -> JSON:
        want(len(items) == len({name for name, _ in items}), "duplicate key in a JSON object")
        return dict(items)

    def constant(name: str) -> None:
        raise Refused(f"{name} is not JSON")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:  # UnicodeEncodeError: a lone surrogate
        raise Refused(f"could not parse the JSON body: {error}") from None
    want(isinstance(value, dict), "the JSON body must be an object")
    return dict(value)


def check_schema(schema: Any, where: str) -> None:
    want(isinstance(schema, dict) and schema.get("type") == "object", f"{where}: schema must have type 'object'")
    want(isinstance(schema.get("properties", {}), dict), f"{where}: properties must be an object")
    required = schema.get("required", [])
    want(isinstance(required, list) and all(map(is_text, required)), f"{where}: required must be a list of names")
    want(set(required) <= set(schema.get("properties", {})), f"{where}: required names a property that is not there")


def check_names(names: list[str]) -> None:
    for name in names:
        want(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name), f"tools: invalid function name {name!r}")
    want(len(names) == len(set(names)), "tools: tool names must be unique")


# --- strictness: OpenAI chat completions ---------------------------------------------------------------------------

OPENAI_KEYS: Keys = {
    "max_tokens": lambda v: is_int(v) and v >= 1,
    "max_completion_tokens": lambda v: is_int(v) and v >= 1,
    "tools": lambda v: isinstance(v, list) and 1 <= len(v) <= 128,
    "tool_choice": is_a(str, dict),
    "parallel_tool_calls": is_a(bool),
    "response_format": is_a(dict),
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "verbosity": one_of("low", "medium", "high"),
    "service_tier": one_of("auto", "default", "flex", "scale", "priority", "fast"),
    "stream": is_a(bool),
    "stream_options": is_a(dict),
    "prompt_cache_key": is_text,
    "prompt_cache_options": is_a(dict),
    "safety_identifier": is_text,
    "user": is_text,
    "store": is_a(bool),
    "metadata": is_a(dict),
    "seed": is_int,
    "stop": lambda v: is_text(v) or (isinstance(v, list) and 1 <= len(v) <= 4 and all(map(is_text, v))),
    "temperature": lambda v: is_number(v) and 0 <= v <= 2,
    "top_p": lambda v: is_number(v) and 0 <= v <= 1,
    "n": lambda v: v == 1,
    "return_progress": is_a(bool),  # of llama.cpp's servers only
}
REASONING_MODEL = re.compile(r"(openai/)?(o\d|gpt-[5-9])")


def check_openai(request: Request) -> None:
    sent = request.body
    keys(sent, "request", {"model": is_text, "messages": lambda v: isinstance(v, list) and v}, OPENAI_KEYS)
    want(not {"max_tokens", "max_completion_tokens"} <= set(sent), "max_tokens and max_completion_tokens are both set")
    if REASONING_MODEL.match(sent["model"]):
        for name in ("max_tokens", "stop", "temperature", "top_p"):
            want(name not in sent, f"Unsupported parameter: '{name}' is not supported with this model.")
    if "stream_options" in sent:
        want(sent.get("stream"), "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
        keys(
            sent["stream_options"],
            "stream_options",
            {},
            {"include_usage": is_a(bool), "include_obfuscation": is_a(bool)},
        )
    if "tools" not in sent:
        for name in ("tool_choice", "parallel_tool_calls"):
            want(name not in sent, f"'{name}' is only allowed when 'tools' are specified.")
    for number, tool in enumerate(sent.get("tools", [])):
        check_openai_tool(tool, f"tools[{number}]")
    check_names(request.tools)
    if "response_format" in sent:
        check_openai_format(sent["response_format"])
    check_openai_order(request.messages)


def check_openai_tool(tool: Any, where: str) -> None:
    keys(tool, where, {"type": one_of("function"), "function": is_a(dict)})
    optional: Keys = {"description": is_a(str), "parameters": is_a(dict), "strict": is_a(bool)}
    keys(tool["function"], f"{where}.function", {"name": is_text}, optional)
    schema = tool["function"].get("parameters", {"type": "object"})
    check_schema(schema, f"{where}.function.parameters")
    if tool["function"].get("strict"):
        want(schema.get("additionalProperties") is False, f"{where}: strict needs additionalProperties false")
        want(
            set(schema.get("required", [])) == set(schema.get("properties", {})), f"{where}: strict needs all required"
        )


def check_openai_format(wanted: JSON) -> None:
    keys(wanted, "response_format", {"type": one_of("text", "json_object", "json_schema")}, {"json_schema": is_a(dict)})
    if wanted["type"] == "json_schema":
        want("json_schema" in wanted, "response_format: missing required key 'json_schema'")
        optional: Keys = {"schema": is_a(dict), "strict": is_a(bool), "description": is_a(str)}
        keys(wanted["json_schema"], "response_format.json_schema", {"name": is_text}, optional)
        check_names([wanted["json_schema"]["name"]])


def check_openai_order(messages: list[JSON]) -> None:
    """Each tool call is answered, once, before anything else is said."""
    open_calls: set[str] = set()
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        want(isinstance(message, dict), f"{where}: expected an object")
        role = message.get("role")
        if role == "tool":
            keys(message, where, {"role": is_text, "tool_call_id": is_text, "content": is_a(str, list)})
            want(
                message["tool_call_id"] in open_calls,
                f"{where}: messages with role 'tool' must be a response to a preceding message with 'tool_calls'",
            )
            open_calls.discard(message["tool_call_id"])
        else:
            want(not open_calls, f"{where}: 'tool_calls' without tool messages responding to: {sorted(open_calls)}")
            open_calls = check_openai_message(message, where)
        check_openai_content(message, where)
    want(not open_calls, f"'tool_calls' without tool messages responding to: {sorted(open_calls)}")


def check_openai_message(message: JSON, where: str) -> set[str]:
    """The ids of the tool calls that it makes."""
    role = message.get("role")
    want(role in ("system", "developer", "user", "assistant"), f"{where}: invalid role {role!r}")
    if role != "assistant":
        keys(message, where, {"role": is_text, "content": is_a(str, list)}, {"name": is_text})
        return set()
    optional: Keys = {"content": is_a(str, list, type(None)), "refusal": is_a(str, type(None)), "name": is_text}
    optional["tool_calls"] = lambda v: isinstance(v, list) and v
    optional["reasoning_content"] = is_a(str)
    keys(message, where, {"role": is_text}, optional)
    calls = message.get("tool_calls", [])
    want(calls or message.get("content") is not None, f"{where}: an assistant message needs content or tool_calls")
    for number, made in enumerate(calls):
        at = f"{where}.tool_calls[{number}]"
        keys(
            made, at, {"id": lambda v: is_text(v) and len(v) <= 40, "type": one_of("function"), "function": is_a(dict)}
        )
        keys(made["function"], f"{at}.function", {"name": is_text, "arguments": is_a(str)})
        check_names([made["function"]["name"]])
    ids = {made["id"] for made in calls}
    want(len(ids) == len(calls), f"{where}: duplicate tool call ids")
    return ids


def check_openai_content(message: JSON, where: str) -> None:
    content = message.get("content")
    if not isinstance(content, list):
        return
    want(content, f"{where}.content: empty array")
    for number, part in enumerate(content):
        at = f"{where}.content[{number}]"
        want(isinstance(part, dict), f"{at}: expected an object")
        if part.get("type") == "image_url" and message["role"] == "user":
            keys(part, at, {"type": is_text, "image_url": is_a(dict)})
            keys(part["image_url"], f"{at}.image_url", {"url": is_text}, {"detail": one_of("auto", "low", "high")})
        else:
            keys(part, at, {"type": one_of("text"), "text": is_a(str)})


# --- strictness: Anthropic messages --------------------------------------------------------------------------------

ANTHROPIC_VERSIONS = ("2023-06-01", "2026-10-21")
ANTHROPIC_KEYS: Keys = {
    "system": is_a(str, list),
    "tools": is_a(list),
    "tool_choice": is_a(dict),
    "stream": is_a(bool),
    "stop_sequences": lambda v: isinstance(v, list) and all(is_text(word) and word.strip() for word in v),
    "metadata": is_a(dict),
    "thinking": is_a(dict),
    "output_config": is_a(dict),
    "service_tier": one_of("auto", "standard_only"),
    "cache_control": is_a(dict),
    "temperature": lambda v: is_number(v) and 0 <= v <= 1,
    "top_p": lambda v: is_number(v) and 0 <= v <= 1,
    "top_k": is_int,
}
CACHE: Keys = {"cache_control": is_a(dict)}
BLOCKS: dict[str, tuple[Keys, Keys]] = {
    "text": ({"text": is_a(str)}, CACHE),
    "image": ({"source": is_a(dict)}, CACHE),
    "tool_use": (
        {"id": lambda v: is_text(v) and re.fullmatch(r"[a-zA-Z0-9_-]+", v), "name": is_text, "input": is_a(dict)},
        CACHE,
    ),
    "tool_result": ({"tool_use_id": is_text}, {"content": is_a(str, list), "is_error": is_a(bool), **CACHE}),
    "thinking": ({"thinking": is_a(str), "signature": is_text}, {}),
    "redacted_thinking": ({"data": is_text}, {}),
}
BLOCKS_OF = {
    "system": ("text",),
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "tool_result": ("text", "image"),
}


def check_anthropic(request: Request) -> None:
    sent = request.body
    required: Keys = {"model": is_text, "max_tokens": lambda v: is_int(v) and v >= 1, "messages": is_a(list)}
    keys(sent, "request", required, ANTHROPIC_KEYS)
    if request.headers["anthropic-version"] == "2026-10-21":
        for name in ("temperature", "top_p", "top_k"):
            want(name not in sent, f"{name}: not supported in this API version")
    for number, tool in enumerate(sent.get("tools", [])):
        optional: Keys = {"description": is_a(str), "strict": is_a(bool), **CACHE}
        keys(tool, f"tools.{number}", {"name": is_text, "input_schema": is_a(dict)}, optional)
        check_schema(tool["input_schema"], f"tools.{number}.input_schema")
    check_names(request.tools)
    if "output_config" in sent:
        effort = one_of("low", "medium", "high", "xhigh", "max")
        keys(sent["output_config"], "output_config", {}, {"effort": effort, "format": is_a(dict)})
        if "format" in sent["output_config"]:
            required = {"type": one_of("json_schema"), "schema": is_a(dict)}
            keys(sent["output_config"]["format"], "output_config.format", required)
    if "tool_choice" in sent:
        want(sent.get("tools"), "tool_choice may only be specified while providing tools")
        optional = {"name": is_text, "disable_parallel_tool_use": is_a(bool)}
        keys(sent["tool_choice"], "tool_choice", {"type": one_of("auto", "any", "tool", "none")}, optional)
    if isinstance(sent.get("system"), list):
        check_blocks(sent["system"], "system", "system")
    check_anthropic_order(sent)
    check_cache_control(sent)


def check_anthropic_order(sent: JSON) -> None:
    messages = sent["messages"]
    want(messages, "messages: at least one message is required")
    open_calls: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        keys(message, where, {"role": one_of("user", "assistant"), "content": is_a(str, list)})
        blocks = message["content"]
        if isinstance(blocks, str):
            want(blocks.strip(), f"{where}: all messages must have non-empty content")
            blocks = [{"type": "text", "text": blocks}]
        check_blocks(blocks, message["role"], where)
        answered = [b["tool_use_id"] for b in blocks if b["type"] == "tool_result"]
        want(
            set(open_calls) <= set(answered),
            f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after: {open_calls}",
        )
        want(set(answered) <= set(open_calls), f"{where}: unexpected `tool_use_id` found in `tool_result` blocks")
        want(len(set(answered)) == len(answered), f"{where}: each tool_use must have a single result")
        first = [b["type"] for b in blocks[: len(answered)]]
        want(first == ["tool_result"] * len(answered), f"{where}: tool_result blocks must come first")
        open_calls = [b["id"] for b in blocks if b["type"] == "tool_use"]
        want(len(set(open_calls)) == len(open_calls), f"{where}: `tool_use` ids must be unique")
        want(sent.get("tools") or not (open_calls or answered), "tool blocks need `tools` to be defined")
    want(messages[0]["role"] == "user", "messages: first message must use the user role")
    want(messages[-1]["role"] == "user", "messages: this model does not support assistant message prefill")


def check_blocks(blocks: list[Any], role: str, where: str) -> None:
    want(blocks, f"{where}: content must not be empty")
    for number, block in enumerate(blocks):
        at = f"{where}.content.{number}"
        want(isinstance(block, dict), f"{at}: expected an object")
        kind = block.get("type")
        want(kind in BLOCKS_OF[role], f"{at}: block type {kind!r} is not allowed here")
        required, optional = BLOCKS[kind]
        keys(block, at, {"type": is_text, **required}, optional)
        if kind == "text":
            want(block["text"].strip(), f"{at}: text content blocks must contain non-whitespace text")
        elif kind == "image":
            check_image(block["source"], f"{at}.source")
        elif kind == "thinking":
            want(block["signature"] == sign(block["thinking"]), f"{at}: `thinking` blocks cannot be modified")
        elif kind == "tool_result" and isinstance(block.get("content"), list):
            check_blocks(block["content"], "tool_result", at)


def check_image(source: JSON, where: str) -> None:
    if source.get("type") == "url":
        keys(source, where, {"type": is_text, "url": is_text})
    else:
        media = one_of("image/png", "image/jpeg", "image/gif", "image/webp")
        keys(source, where, {"type": one_of("base64"), "media_type": media, "data": is_text})


def check_cache_control(sent: JSON) -> None:
    found = [b["cache_control"] for b in walk(sent) if "cache_control" in b]
    want(len(found) <= 4, f"a maximum of 4 blocks with cache_control may be provided, found {len(found)}")
    for control in found:
        keys(control, "cache_control", {"type": one_of("ephemeral")}, {"ttl": one_of("5m", "1h")})


def walk(value: Any) -> Iterator[JSON]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def sign(thinking: str) -> str:
    return f"sig-{len(thinking)}-{sum(thinking.encode()) % 9973}"


# --- writing replies -----------------------------------------------------------------------------------------------

FINISH: dict[str, dict[str, str]] = {
    "openai": {"refusal": "stop", "pause": "stop"},
    "anthropic": {
        "stop": "end_turn",
        "length": "max_tokens",
        "tool_calls": "tool_use",
        "pause": "pause_turn",
        "content_filter": "refusal",
    },
}


def settle(turn: Turn, request: Request) -> Turn:
    """The turn with ids, counted usage and finish filled in, cut where the request's max_tokens cuts it."""
    calls = [
        {"id": f"call_{request.number}_{n}", **c, "arguments": as_arguments(c["arguments"])}
        for n, c in enumerate(turn.tool_calls)
    ]
    text, usage = turn.text, turn.usage
    finish = turn.finish or ("tool_calls" if calls else "stop")
    if usage == "count":
        length = len(text or "") + sum(len(c["arguments"]) for c in calls)
        usage = {"input": len(request.raw) // 4, "output": length // 4 + 1}
        if request.max_tokens is not None and usage["output"] > request.max_tokens:
            usage["output"], finish = request.max_tokens, "length"
            text = (text or "")[: request.max_tokens * 4]
    return replace(turn, text=text, tool_calls=calls, usage=usage, finish=FINISH[request.wire].get(finish, finish))


def as_arguments(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)


def as_input(arguments: str) -> Any:
    """Anthropic's `input` is an object; what is not JSON can only be sent in a stream, so it goes under one key."""
    try:
        return json.loads(arguments)
    except ValueError:
        return {"malformed": arguments}


def pieces(text: str) -> list[str]:
    size = max(12, len(text) // 200)
    return [text[at : at + size] for at in range(0, len(text), size)]


def openai_usage(usage: JSON) -> JSON:
    details = {"cached_tokens": usage.get("cached", 0), "cache_write_tokens": usage.get("cache_write", 0)}
    return {
        "prompt_tokens": usage["input"],
        "completion_tokens": usage["output"],
        "total_tokens": usage["input"] + usage["output"],
        "prompt_tokens_details": details,
        "completion_tokens_details": {"reasoning_tokens": usage.get("reasoning", 0)},
    }


def openai_body(turn: Turn, request: Request) -> JSON:
    message: JSON = {"role": "assistant", "content": turn.text, "refusal": None}
    if turn.tool_calls:
        message["content"] = turn.text or None
        message["tool_calls"] = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in turn.tool_calls
        ]
    if turn.thinking is not None:
        message["reasoning_content"] = turn.thinking
    sent: JSON = {
        "id": f"chatcmpl-{request.number}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": request.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": turn.finish}],
    }
    if isinstance(turn.usage, dict):
        sent["usage"] = openai_usage(turn.usage)
    return sent | turn.extra


def openai_events(turn: Turn, request: Request) -> Iterator[bytes]:
    with_usage = request.body.get("stream_options", {}).get("include_usage", False)
    head = {"id": f"chatcmpl-{request.number}", "object": "chat.completion.chunk", "created": 1_790_000_000}
    head |= {"model": request.model} | turn.extra

    def event(delta: JSON, finish: str | None = None) -> bytes:
        chunk = {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        return sse(chunk | ({"usage": None} if with_usage else {}))

    if request.body.get("return_progress"):
        for processed in (0, 7, 14):
            progress = {"total": 14, "cache": 0, "processed": processed, "time_ms": processed}
            choice = {"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}
            yield sse({**head, "choices": [choice], "prompt_progress": progress})
    yield event({"role": "assistant", "content": "" if turn.text is not None else None, "refusal": None})
    for piece in pieces(turn.thinking or ""):
        yield event({"reasoning_content": piece})
    for piece in pieces(turn.text or ""):
        yield event({"content": piece})
    for index, made in enumerate(turn.tool_calls):
        first = {"index": index, "id": made["id"], "type": "function"}
        yield event({"tool_calls": [{**first, "function": {"name": made["name"], "arguments": ""}}]})
        for piece in pieces(made["arguments"]):
            yield event({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield event({}, turn.finish)
    if with_usage and isinstance(turn.usage, dict):
        yield sse({**head, "choices": [], "usage": openai_usage(turn.usage)})
    yield b"data: [DONE]\n\n"


def sse(data: JSON, event: str | None = None) -> bytes:
    return (f"event: {event}\n" if event else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"


def anthropic_usage(usage: JSON) -> JSON:
    cached, written = usage.get("cached", 0), usage.get("cache_write", 0)
    return {
        "input_tokens": usage["input"] - cached - written,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "output_tokens": usage["output"],
        "service_tier": "standard",
    }


def anthropic_blocks(turn: Turn) -> list[JSON]:
    blocks: list[JSON] = []
    if turn.thinking is not None:
        blocks.append({"type": "thinking", "thinking": turn.thinking, "signature": sign(turn.thinking)})
    if turn.text:
        blocks.append({"type": "text", "text": turn.text})
    for made in turn.tool_calls:
        arguments = as_input(made["arguments"])
        blocks.append({"type": "tool_use", "id": made["id"], "name": made["name"], "input": arguments})
    return blocks


def anthropic_body(turn: Turn, request: Request) -> JSON:
    sent: JSON = {
        "id": f"msg_{request.number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": anthropic_blocks(turn),
        "stop_reason": turn.finish,
        "stop_sequence": None,
    }
    if isinstance(turn.usage, dict):
        sent["usage"] = anthropic_usage(turn.usage)
    return sent | turn.extra


def anthropic_events(turn: Turn, request: Request) -> Iterator[bytes]:
    start = anthropic_body(turn, request) | {"content": [], "stop_reason": None}
    if "usage" in start:
        start["usage"] = start["usage"] | {"output_tokens": 1}
    yield sse({"type": "message_start", "message": start}, "message_start")
    yield sse({"type": "ping"}, "ping")
    calls = iter(turn.tool_calls)
    for index, block in enumerate(anthropic_blocks(turn)):
        if block["type"] == "tool_use":
            opened, deltas = (
                block | {"input": {}},
                [
                    {"type": "input_json_delta", "partial_json": piece}
                    for piece in ["", *pieces(next(calls)["arguments"])]
                ],
            )
        elif block["type"] == "thinking":
            opened, deltas = (
                block | {"thinking": "", "signature": ""},
                [
                    *({"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])),
                    {"type": "signature_delta", "signature": block["signature"]},
                ],
            )
        else:
            opened = block | {"text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
        yield sse({"type": "content_block_start", "index": index, "content_block": opened}, "content_block_start")
        for delta in deltas:
            yield sse({"type": "content_block_delta", "index": index, "delta": delta}, "content_block_delta")
        yield sse({"type": "content_block_stop", "index": index}, "content_block_stop")
    end: JSON = {"type": "message_delta", "delta": {"stop_reason": turn.finish, "stop_sequence": None}}
    if isinstance(turn.usage, dict):
        end["usage"] = {"output_tokens": turn.usage["output"]}
    yield sse(end, "message_delta")
    yield sse({"type": "message_stop"}, "message_stop")


ERROR_TYPES: dict[str, dict[int, str]] = {
    "openai": {429: "requests", 500: "server_error", 503: "server_error"},
    "anthropic": {
        401: "authentication_error",
        402: "billing_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        504: "timeout_error",
        529: "overloaded_error",
    },
}


def error_body(wire: str, status: int, message: str, code: str | None) -> JSON:
    kind = ERROR_TYPES[wire].get(status, "invalid_request_error")
    if wire == "anthropic":
        return {"type": "error", "error": {"type": code or kind, "message": message}, "request_id": "req_1"}
    if status == 429 and code is None:
        code = "rate_limit_exceeded"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# --- the server ----------------------------------------------------------------------------------------------------


class Gone(Exception):
    """This connection ends here: the script says so, or the server is closing."""


class Server:
    """Listens from construction on; `close()` (or leaving `with`) ends every connection and thread."""

    def __init__(
        self,
        script: Script = "ok",
        *,
        key: str | None = KEY,
        port: int = 0,
        models: Sequence[str] = (),  # known ones; empty: any
        window: int | None = None,  # tokens; longer inputs get the provider's own error
        also_allow: Sequence[str] = (),  # validation messages that contain one of these are let pass
        llamacpp: bool = False,  # it lists its models as llama.cpp does, and tells the progress of a prompt
        strict: bool = True,  # False: whatever any client sends goes to the script unread, and is not kept
    ) -> None:
        self.script: Script = script
        self.key, self.models, self.window, self.also_allow = key, models, window, also_allow
        self.llamacpp, self.strict = llamacpp, strict
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.in_flight = self.peak = self.connections = 0
        self._served = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._acceptor = threading.Thread(target=self._accept, name="scripted-accept", daemon=True)
        self._acceptor.start()

    @property
    def base_url(self) -> str:
        """What goes into OPENAI_BASE_URL; ANTHROPIC_BASE_URL is `url`."""
        return self.url + "/v1"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stopping.set()
        # A shutdown wakes the thread that is in accept(); a close alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(10)
        self._listener.close()
        with self._changed:
            for connection in self._sockets:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the client was faster
        for thread in self._threads:
            thread.join(10)

    def wait_for(self, count: int, timeout: float = 20.0) -> Request:
        """The request number `count` (from 1), as soon as it has arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= count, timeout), "no such request came"
            return self.requests[count - 1]

    @property
    def bytes_received(self) -> int:
        """Of request bodies."""
        return sum(len(r.raw) for r in self.requests)

    # -- connections

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._connection, args=(connection,), name="scripted", daemon=True)
            with self._changed:
                self.connections += 1
                self._sockets.add(connection)
                self._threads = [t for t in self._threads if t.is_alive()] + [thread]
            thread.start()

    def _connection(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as stream:
                while not self._stopping.is_set() and self._exchange(connection, stream):
                    pass
        except (OSError, Gone):
            pass  # the client's right at any point; `Request.gone` tells
        finally:
            with self._changed:
                self._sockets.discard(connection)

    def _exchange(self, connection: socket.socket, stream: Any) -> bool:
        """Serve one request; whether the connection can carry another."""
        first = stream.readline(65537)
        if not first.strip():
            return False
        method, path, _ = first.decode("latin-1").split(" ", 2)
        headers: dict[str, str] = {}
        while (line := stream.readline(65537).decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers.get("content-length", "0"))
        raw = stream.read(length)
        if len(raw) < length:
            raise Gone  # the client was killed while it sent the request
        if method == "GET":
            self._send(connection, None, self.listing(path))
            return True
        return self._answer(connection, method, path, headers, raw)

    def listing(self, path: str) -> Fault:
        """The model lists of OpenAI-compatible servers and Ollama, which clients use to find local servers."""
        if path.endswith("/models"):
            meta = {"n_ctx": self.window or 16_384, "n_ctx_train": 32_768, "n_params": 1_777_088_000}
            own = {"owned_by": "llamacpp", "meta": meta} if self.llamacpp else {}
            return body({"object": "list", "data": [{"id": name, "object": "model", **own} for name in self.models]})
        if path == "/api/tags":
            return body({"models": [{"name": name, "model": name} for name in self.models]})
        if path == "/api/version":
            return body({"version": "0.0.0"})
        return error(404, f"nothing at {path}")

    def _answer(self, connection: socket.socket, method: str, path: str, headers: dict[str, str], raw: bytes) -> bool:
        wire: Wire = "anthropic" if path.split("?")[0].endswith("/messages") else "openai"
        with self._changed:
            request = Request(len(self.requests) + 1, wire, path, headers, raw)
            self.requests.append(request)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self._changed.notify_all()
        try:
            reply = self._reply(request, method)
            fault = reply if isinstance(reply, Fault) else Fault(turn=as_turn(reply))
            if not self.strict:
                request.raw = b""
            self._pause(connection, fault)
        except OSError:
            request.gone.set()
            raise
        finally:  # before the reply is out: the client may ask the next thing at once
            with self._changed:
                self.in_flight -= 1
        try:
            self._send(connection, request, fault)
        except OSError:
            request.gone.set()
            raise
        return fault.framing != "close" and fault.cut is None

    def _reply(self, request: Request, method: str) -> Reply:
        try:
            if self.strict:
                self._check(request, method)
        except Refused as refused:
            if refused.status == 400 and refused.code is None:
                self.problems.append(f"request {request.number}: {refused}")
            return error(refused.status, str(refused), code=refused.code)
        try:
            return self._scripted(request)
        except Exception as failure:
            self.problems.append(f"request {request.number}: the script failed: {failure!r}")
            return error(500, "the script failed")

    def _scripted(self, request: Request) -> Reply:
        if callable(self.script):
            return self.script(request)
        if isinstance(self.script, str):
            return self.script
        with self._changed:
            turn = self._served
            self._served += 1
        assert turn < len(self.script), f"the script has {len(self.script)} turns, this is one more"
        return self.script[turn]

    def _pause(self, connection: socket.socket, fault: Fault) -> None:
        """Wait as the script says, and no longer than the client does."""
        end = time.monotonic() + fault.turn.delay
        until = fault.turn.until
        while (left := end - time.monotonic()) > 0 or fault.hang or (until is not None and not until.is_set()):
            readable, _, _ = select.select([connection], [], [], left if left > 0 else 0.02)
            if self._stopping.is_set():
                raise Gone
            if readable and connection.recv(1, socket.MSG_PEEK) == b"":
                raise ConnectionResetError("the client left")

    # -- strictness

    def _check(self, request: Request, method: str) -> None:
        headers = request.headers
        want(method == "POST", f"method {method} not allowed")
        if not re.search(r"/(chat/completions|messages)$", request.path):
            raise Refused(f"nothing at {request.path}", 404)
        self._check_key(request)
        want(
            headers.get("content-type", "").split(";")[0] == "application/json", "Content-Type must be application/json"
        )
        want("content-length" in headers, "no Content-Length")
        want("cookie" not in headers, "a Cookie header")
        if request.wire == "anthropic":
            want(headers.get("anthropic-version") in ANTHROPIC_VERSIONS, "anthropic-version: header is required")
        try:
            request.body = read_json(request.raw)
            (check_anthropic if request.wire == "anthropic" else check_openai)(request)
            want(self.llamacpp or "return_progress" not in request.body, "request: unrecognized key 'return_progress'")
        except Refused as refused:
            if not any(word in str(refused) for word in self.also_allow):
                raise
        if self.models and request.model not in self.models:
            raise Refused(f"The model `{request.model}` does not exist", 404, "model_not_found")
        if self.window is not None and len(request.raw) // 4 > self.window:
            self._refuse_length(request)

    def _check_key(self, request: Request) -> None:
        """One key, the right one, in one header; a refusal repeats the key, as some servers do."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        own = request.headers.get("x-api-key", "") if request.wire == "anthropic" else ""
        strangers = {"api-key", "x-goog-api-key"} | ({"x-api-key"} if request.wire == "openai" else set())
        want(not strangers & set(request.headers), f"a key in a header of another provider: {request.path}")
        want(not (bearer and own and request.wire == "openai"), "two keys")
        if self.key is not None and {bearer, own} - {""} != {self.key}:
            raise Refused(f"Incorrect API key provided: {bearer or own}", 401, "invalid_api_key")

    def _refuse_length(self, request: Request) -> None:
        tokens = len(request.raw) // 4
        if request.wire == "anthropic":
            raise Refused(f"prompt is too long: {tokens} tokens > {self.window} maximum", 400, "invalid_request_error")
        message = f"This model's maximum context length is {self.window} tokens. Your messages resulted in {tokens}."
        raise Refused(message, 400, "context_length_exceeded")

    # -- writing

    def _send(self, connection: socket.socket, request: Request | None, fault: Fault) -> None:
        if request is not None:
            request.status = fault.status
        if fault.reset and fault.cut == -1:
            self._reset(connection)
        kind, parts = self._content(request, fault)
        stream = kind == "text/event-stream"
        head = [f"HTTP/1.1 {fault.status} Scripted", f"Content-Type: {kind}"]
        head += [f"{name}: {value}" for name, value in fault.headers.items()]
        if fault.framing == "close":
            head.append("Connection: close")
        elif stream:
            head.append("Transfer-Encoding: chunked")
        else:
            head.append(f"Content-Length: {sum(map(len, parts))}")
        start = "\r\n".join([*head, "", ""]).encode("latin-1")
        chunked = stream and fault.framing != "close"
        if fault.cut is None and not fault.drip and not chunked:
            connection.sendall(start + b"".join(parts))
            return
        connection.sendall(start)
        left = fault.cut
        for part in parts:
            shown = part if left is None else part[:left]
            self._write(connection, shown, chunked, fault.drip)
            if left is not None and (left := left - len(shown)) <= 0:
                if fault.reset:
                    self._reset(connection)
                raise Gone
        if chunked:
            connection.sendall(b"0\r\n\r\n")

    def _write(self, connection: socket.socket, data: bytes, chunked: bool, pause: float) -> None:
        for piece in [bytes([b]) for b in data] if pause else [data] if data else []:
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if pause and self._stopping.wait(pause):
                raise Gone

    def _reset(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Gone

    def _content(self, request: Request | None, fault: Fault) -> tuple[str, list[bytes]]:
        if fault.body is not None:
            return fault.content_type, [fault.body]
        wire = request.wire if request else "openai"
        if fault.status >= 400 or request is None:
            return "application/json", [json.dumps(error_body(wire, fault.status, fault.message, fault.code)).encode()]
        turn = settle(fault.turn, request)
        if request.stream:
            events = anthropic_events if wire == "anthropic" else openai_events
            return "text/event-stream", list(events(turn, request))
        whole = anthropic_body(turn, request) if wire == "anthropic" else openai_body(turn, request)
        return "application/json", [json.dumps(whole).encode()]
