# /// script
# requires-python = ">=3.10"
# dependencies = ["requests"]
# ///
"""Everything that shows a trajectory: the reader of journals, totals, the page, the terminal tree, the notebook table;
and what exports one: training samples, a notebook, OpenTelemetry spans (only sending these needs `requests`).

A leaf: it imports nothing of ours, works vendored alone (`python rlm_viz.py LOG.jsonl`), and treats every byte of a
journal as hostile. One function, `rows`, makes the tree that page, terminal and notebook show, so that their figures
agree. Not here: writing journals (rlm.py), and judging whether a recorded answer is right.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

__all__ = [
    "Activity",
    "History",
    "OTel",
    "card",
    "find_log",
    "list_runs",
    "merge",
    "notebook",
    "otlp",
    "read",
    "render",
    "rows",
    "serve",
    "show",
    "spans",
    "step",
    "table",
    "totals",
    "training_samples",
    "tree",
    "visualize",
    "write",
]

Event = dict[str, Any]  # of a journal, or a message, call or result in one
JSONObject = dict[str, Any]  # one that is made here

EVENTS = ("start", "call", "tool", "end", "resume", "interrupted", "compact")
VERSION = 2  # the newest journal version this reader knows
MAX_LINE = 64 << 20
EVENT_DEPTH = 400  # of lists and objects: Python data that JSON lacks takes three for one
USAGE = ("input", "output", "cached", "cache_write", "reasoning")


# --- JSON from outside: the same lines in each module that stands alone -------------------------------------------

JSON_VALUES = 300_000  # of one text: a list takes two characters of it, and up to a hundred bytes of memory
JSON_DEPTH = 100
JSON_DIGITS = 4_300  # of an integer: a longer one cannot be printed


def from_json(
    data: str | bytes | bytearray,
    *,
    values: int = JSON_VALUES,
    depth: int = JSON_DEPTH,
    strict: bool = True,
    constant: Callable[[str], Any] | None = None,
) -> Any:
    """What JSON (bytes are UTF-8) says; ValueError if it is none, or has more values, levels or digits than it may.

    `strict=False` takes raw line breaks in strings; `constant` makes something of NaN and Infinity, which are refused.
    """
    if len(data) > values and _count_json(data, values) > values:
        raise ValueError(f"more than {values:,} values")
    text = data if isinstance(data, str) else data.decode("utf-8-sig")
    try:
        value = json.loads(text, strict=strict, parse_int=_json_int, parse_constant=constant or _no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(value, depth)
    return value


def check_depth(value: Any, depth: int = JSON_DEPTH) -> None:
    """ValueError for a list or an object with more levels than that."""
    level = [value]
    for _ in range(depth + 1):
        inner = [item.values() if type(item) is dict else item for item in level if type(item) in (dict, list)]
        if not inner:
            return
        level = [item for items in inner for item in items]
    raise ValueError(f"nested more than {depth} deep")


def _count_json(data: str | bytes | bytearray, enough: int) -> int:
    """At least how many values there are, not counted much beyond `enough`."""
    count = sum(map(data.count, ",[{" if isinstance(data, str) else (b",", b"[", b"{")))  # type: ignore[arg-type]
    if count <= enough:
        return count
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    count, quoted, rest = 0, False, b""
    for start in range(0, len(data), 1 << 16):
        piece = rest + data[start : start + (1 << 16)]
        rest = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""  # it may escape the next piece's first
        piece = piece[: len(piece) - len(rest)].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.translate(None, _NO_JSON_MARKS).split(b'"')
        count += sum(map(len, parts[quoted::2]))
        quoted ^= len(parts) % 2 == 0
        if count > enough:
            break
    return count


_NO_JSON_MARKS = bytes(set(range(256)) - set(b'",[{'))


def _json_int(text: str) -> int:
    if len(text) > JSON_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# --- reading a journal ----------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str], *, bodies: bool = True) -> tuple[list[Event], list[str]]:
    """(events, problems) of a journal: a damaged one is never an error, but described in `problems`.

    With `bodies=False` prompts, replies, code and outputs are dropped while reading: metrics only.
    """
    problems: list[str] = []
    events = [event if bodies else without_bodies(event) for event, _ in _scan(path, problems)]
    return events, problems


def _scan(path: str | os.PathLike[str], problems: list[str]) -> Iterator[tuple[Event, int]]:
    """(event, bytes of journal up to it) of each usable line; the others are described in `problems`."""
    number = size = ended = 0
    upgrade = Upgrade()
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            number, size = number + 1, size + len(line)
            event, problem = _parse(line) if line.strip() else (None, "")
            if problem:
                torn = event is None and not line.endswith(b"\n")
                text = f"line {number} {problem}"
                problems.append(f"the last line ({number}) is torn and left out" if torn else text)
            if event is not None:
                yield upgrade.add(event, ended), size
            ended += line.endswith(b"\n")
    if not size:
        problems.append("the log is empty")


def _parse(line: bytes) -> tuple[Event | None, str]:
    try:
        try:
            event = from_json(line, constant=_none, depth=EVENT_DEPTH)
        except UnicodeDecodeError:
            event = from_json(line.decode("utf-8", "replace"), constant=_none, depth=EVENT_DEPTH)
    except ValueError as error:
        problem = "is not JSON" if len(line) <= JSON_VALUES else f"cannot be read ({error})"
        return None, f"{problem} and was left out"
    if not isinstance(event, dict):
        return None, "is not an object and was left out"
    if not isinstance(event.get("event"), str) or event["event"] not in EVENTS:
        return event, f"has an unknown event, {first_line(event.get('event'), 40)!r}, shown as it is"
    if _number(event.get("v")) > VERSION:
        return event, f"was written by a newer version ({event['v']})"
    return event, ""


def _none(constant: str) -> None:
    """Read NaN and Infinity as null."""


def merge(events: Iterable[Event]) -> list[Event]:
    """The events, each with every specified field and with the message contents that other lines hold."""
    listed = upgraded(events)
    lines = _by_index(listed)
    return [_filled(event, lines) for event in listed]


_FIELDS: Mapping[str, object] = {
    "trajectory_id": None,
    "call_id": None,
    "parent_call_id": None,
    "depth": 0,
    "prompt": None,
    "response": None,
    "tool_calls": [],
    "tool_results": [],
    "token_usage": None,
    "duration_ms": None,
}


def _filled(event: Event, lines: Mapping[int, Event]) -> Event:
    full: Event = {**_FIELDS, **event}
    if event.get("event") == "call" and isinstance(event.get("prompt"), list):
        full["prompt"] = [_with_content(m, lines) if isinstance(m, dict) else m for m in event["prompt"]]
    if event.get("event") == "tool":
        full["tool_results"] = [_whole_result(event, result) for result in _dicts(event.get("tool_results"))]
    return full


def _by_index(events: Iterable[Event]) -> dict[int, Event]:
    """The lines that references can name, by their index."""
    return {event["index"]: event for event in events if type(event.get("index")) is int}


def _named_by(message: Event, lines: Mapping[int, Event]) -> list[tuple[Event, Event]]:
    """(reference, line) for each line that holds the message's content and is in the journal."""
    found = {ref["index"]: ref for ref in _dicts(message.get("refs")) if type(ref.get("index")) is int}
    pairs = ((ref, lines.get(index, {})) for index, ref in found.items())
    return [(ref, line) for ref, line in pairs if line and line.get("call_id") == ref.get("call_id")]


def _with_content(message: Event, lines: Mapping[int, Event]) -> Event:
    """The message as it was sent: its references replaced by the content that those lines hold."""
    if "refs" not in message:
        return message
    bare, contents = _without(message, "refs"), []
    for ref, line in _named_by(message, lines):
        content = _content_in(line, message)
        contents.append(f"{ref['heading']}\n{_text(content)}" if ref.get("heading") else content)
    if not contents or "content" in message:
        return bare
    return {**bare, "content": contents[0] if len(contents) == 1 else "\n\n".join(map(_text, contents))}


def _content_in(line: Event, message: Event) -> object:
    """What a line holds of a message: a system prompt, a prompt with its announcement, a summary, or a result."""
    if line.get("event") == "compact":
        return line.get("summary")
    if line.get("event") == "tool":
        results = _dicts(line.get("tool_results"))
        asked = [result for result in results if result.get("id") == message.get("tool_call_id")]
        return next((_whole_result(line, result).get("content") for result in asked or results), None)
    if message.get("role") == "system":
        return line.get("system")
    announced = line.get("announcement")
    return f"{line.get('prompt')}\n\n{announced}" if announced else line.get("prompt")


def _without(message: Event, *names: str) -> Event:
    return {name: value for name, value in message.items() if name not in names}


def _whole_result(event: Event, result: Event) -> Event:
    return result if "content" in result or "code" not in event else {**result, "content": cell_text(event)}


def cell_text(event: Event) -> str:
    """What the model saw of a cell: its output, the value of its last expression, its error."""
    stdout, value = (_text(event.get(name)) for name in ("stdout", "value"))
    error = _text(event.get("brief")) or _traceback(event)
    images = f"[images made: {count}]" if (count := _image_count(event)) else ""
    output = "\n".join(part for part in (stdout.rstrip("\n"), value, error, images) if part) or "[no output]"
    return f"{output}\n{note}" if (note := _text(event.get("note"))) else output


def _traceback(event: Event) -> str:
    """A cell's error as Python printed it; of anything else its error's message."""
    return _text(event.get("traceback")) or _error_words(event)


def _error_words(event: Event) -> str:
    """A line's error as `ValueError: its message`, or its message alone where no exception was raised."""
    error = event.get("error")
    if not isinstance(error, dict):
        return _text(error)
    name, message = (_text(error.get(part)) for part in ("type", "message"))
    is_exception = name not in ("error", event.get("status"))
    return ": ".join(filter(None, [name, message])) if is_exception or not message else message


def _error_type(error: object) -> str:
    """The class of an error, without its message; "error" for one that has none."""
    named = re.match(r"[\w.]{1,80}", _text(error.get("type"))) if isinstance(error, dict) else None
    return named.group() if named else "error"


def _image_count(event: Event) -> int:
    images = event.get("images")
    return len(images) if isinstance(images, list) else int(_number(images))


_METRICS = {
    *("index", "active_ms", "answer"),
    *("v", "event", "trajectory_id", "call_id", "parent_call_id", "depth", "timestamp", "node", "kind", "key"),
    *("model", "sub_model", "backend", "protocol", "environment", "limits", "version", "cell", "turn", "name"),
    *("token_usage", "cost_usd", "duration_ms", "stop_reason", "attempts", "left", "status", "restored", "images"),
    *("from_cell", "totals", "lines", "cells", "tokens_before", "tokens_after"),
}


def without_bodies(event: Event) -> Event:
    """The event's metrics alone: no prompt, reply, code, output, argument or message."""
    event = {**event, **_explicit_error(event)}
    bare = {name: value for name, value in event.items() if name in _METRICS and not is_malformed(name, value)}
    if "code" in event:
        bare["code"] = ""
    if "images" in event:
        bare["images"] = _image_count(event)
    if event.get("error"):
        bare["error"] = _error_type(event["error"])
    if isinstance(event.get("tool_calls"), list):
        bare["tool_calls"] = [
            {"id": call.get("id"), "name": call.get("name")} if isinstance(call, dict) else call
            for call in event["tool_calls"]
        ]
    if isinstance(event.get("tool_results"), list):
        bare["tool_results"] = [
            {name: result.get(name) for name in ("id", "name", "is_error")} for result in _dicts(event["tool_results"])
        ]
    return bare


def is_malformed(name: str, value: object) -> bool:
    return name in ("limits", "left", "totals", "token_usage", "answer") and not isinstance(value, dict)


# --- journals of version 1 --------------------------------------------------------------------------------------------


def upgraded(events: Iterable[Event]) -> list[Event]:
    """The events of one journal, in their order, in version 2."""
    upgrade = Upgrade()
    return [upgrade.add(event, index) for index, event in enumerate(events)]


class Upgrade:
    """Makes events of version 1 into those of version 2, which says what version 1 leaves to be inferred.

    Add every event of one journal, in order: the lines that hold a message or gave an answer are among those before.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str, str], Event] = {}  # (node, "role" or "result", its name) -> reference
        self._newest: dict[str, Event] = {}  # node -> reference to its newest turn or cell

    def add(self, event: Event, index: int) -> Event:
        """The event, whose number in the journal is `index`, in version 2."""
        if _number(event.get("v")) >= 2:
            return event
        event = {**event, **_explicit_error(event), "v": 2, "index": index}
        kind, node = event.get("event"), str(event.get("node"))
        line = {"call_id": event.get("call_id"), "index": index}
        if kind == "call" and isinstance(event.get("prompt"), list):
            event["prompt"] = [self._with_refs(node, message) for message in event["prompt"]]
        elif kind == "end":
            event["answer"] = self._newest.get(node)
        self._note(event, node, line)
        return event

    def _note(self, event: Event, node: str, line: Event) -> None:
        kind = _kind(event)
        if kind == "node":
            self._newest.pop(node, None)
            self._lines.setdefault((node, "role", "system"), line)
        elif kind in ("turn", "cell"):
            self._newest[node] = line
        if kind == "node" or (kind == "compact" and event.get("summary")):
            self._lines[node, "role", "user"] = line
        if kind in ("cell", "tool"):
            heading = "Output:" if "note" in event or kind == "tool" else f"[cell {event.get('cell')}]"
            for result in _dicts(event.get("tool_results")):
                self._lines[node, "result", str(result.get("id"))] = {**line, "heading": heading}

    def _with_refs(self, node: str, message: object) -> object:
        if not isinstance(message, dict) or "content" in message or message.get("role") == "assistant":
            return message
        if isinstance(message.get("tool_call_ids"), list):
            found = [self._lines.get((node, "result", str(name))) for name in message["tool_call_ids"]]
            return {**message, "refs": [line for line in found if line]}
        if message.get("role") == "tool":
            result = self._lines.get((node, "result", str(message.get("tool_call_id"))))
            return {**message, "refs": [_without(result, "heading")]} if result else message
        line = self._lines.get((node, "role", str(message.get("role"))))
        return {**message, "refs": [line]} if line else message


def _explicit_error(event: Event) -> Event:
    """The fields `error` and `traceback` of a tool's line that has its error as text; {} for any other line."""
    error = event.get("error")
    if event.get("event") != "tool" or not error or isinstance(error, dict):
        return {}
    text, status = str(error), event.get("status")
    name, mark, message = text.partition(": ")
    if "key" in event and mark and name.isidentifier():  # of a tool that code called: no traceback, and any class
        return {"error": {"type": name, "message": message}}
    lines = _CHAINED.split(text)[-1].removeprefix("error: ").split("\n")
    # The exception is on the first line after the frames. Later lines belong to its message, whatever they look like.
    place = next((n for n, line in enumerate(lines) if not re.match(r"\s|Traceback|$", line)), 0)
    message = "\n".join(lines[place:]).rstrip()
    named = re.match(_RAISED if place else _RAISED_ALONE, lines[place])
    name = named.group()[:80] if named else "error" if status in ("ok", None) else _text(status)
    message = message[len(name) :].removeprefix(": ") if named else message
    return {"error": {"type": name, "message": message}, **({"traceback": text} if "code" in event else {})}


_CHAINED = re.compile(r"\n\n(?:The above exception was the direct cause of|During handling of the above)[^\n]*\n\n")
_RAISED = r"(?:\w+\.)*[A-Z]\w*(?=:|$)"
_RAISED_ALONE = r"[A-Z]\w*(?:Error|Exception|Exceeded|Interrupt|Exit)(?=:|$)"  # without frames before it


# --- reading values that may be anything --------------------------------------------------------------------------


def _number(value: object) -> float:
    """A finite, non-negative number; 0 for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15:
        return value
    return 0


def _number_or_none(value: object) -> float | None:
    return number if (number := _number(value)) == value and not isinstance(value, bool) else None


def _dicts(value: object) -> list[Event]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _dict(value: object) -> Event:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(value, list):
        return " ".join(str(part.get("text") or f"[{part.get('type')}]") for part in _dicts(value))
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)


def first_line(value: object, length: int = 96) -> str:
    """The first line that is not blank, truncated to `length`."""
    text = _text(value)[:4000].strip()
    line = " ".join(text.partition("\n")[0].split())
    return line if len(line) <= length else line[: length - 1] + "…"


def parse_timestamp(value: object) -> float | None:
    """Milliseconds since 1970 of an ISO 8601 time, or None."""
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp() * 1000
    except (ValueError, OverflowError, OSError):
        return None


# --- the rows that every display shares -----------------------------------------------------------------------------

ERROR, WARNING, RESTORED, FINAL, ESTIMATED, RETRIED = 1, 2, 4, 8, 16, 32
UNTIMED = ("end", "resume", "compact", "other")  # kinds of row without a duration
COLLAPSE_AT = 6  # this many sibling calls of one kind are shown as one row that opens


@dataclass
class Row:
    """A line of the tree: an event, or (index -1) a batch of sibling calls or the heading of detached events.

    `text` describes it, `outcome` its result. Figures without a prefix are the row's own; `all_` ones include
    everything below it. Costs are those of calls with a known price; `unpriced` counts the others. Times are
    milliseconds since 1970.
    """

    index: int  # the place of its event
    kind: str  # node, turn, sub, cell, tool, end, …; "batch" and "detached" for rows without an event
    name: str  # its heading
    text: str = ""  # what it asked or ran, in a line
    outcome: str = ""  # what came of it, in a line
    level: int = 0  # how far it is indented
    model: str = ""  # the model that answered
    depth: int = 0  # of its node
    start: float = 0.0  # milliseconds since 1970
    end: float = 0.0  # the same
    total_ms: float = 0.0  # from its start to the end of the last row below it
    self_ms: float = 0.0  # of that, without the time in which rows below it ran; of a call its own duration
    usage: tuple[int, ...] = (0, 0, 0, 0, 0)  # tokens: input, output, cached, cache_write, reasoning
    tokens: int = 0  # input and output
    cost: float = 0.0  # US dollars
    unpriced: int = 0  # calls without a known price
    all_tokens: int = 0  # of the row and all below it, as the next three
    all_cost: float = 0.0  # US dollars of calls with a known price
    all_unpriced: int = 0  # calls without a known price
    all_errors: int = 0  # rows with an error
    flags: int = 0  # bits: 1 error, 2 warning, 4 restored, 8 final, 16 estimated, 32 retried
    max_concurrency: int = 0  # how many rows directly below it ran at once, at most
    children: list[int] = field(default_factory=list)  # places of the rows below it

    @property
    def error(self) -> bool:
        """Whether it failed."""
        return bool(self.flags & ERROR)


def rows(events: Sequence[Event]) -> list[Row]:
    """The run as a tree, in the order in which it is shown (a parent before its children, siblings by start).

    It is linear and iterative, so that a chain of any depth works. Events without a parent, or in a cycle of parents,
    are under one heading, "detached".
    """
    events = _with_arguments(upgraded(events))
    spans = _spans(events)
    flat = [_row(index, event, *span) for index, (event, span) in enumerate(zip(events, spans, strict=True))]
    parents = _parents(events)
    _mark_answer(events, flat)
    for index, parent in enumerate(parents):
        if parent >= 0:
            flat[parent].children.append(index)
    roots = [index for index, parent in enumerate(parents) if parent == _TOP]
    if orphans := [index for index, parent in enumerate(parents) if parent == _LOST]:
        roots.append(len(flat))
        words = f"{counted(len(orphans), 'event')} whose parent is not in this log"
        flat.append(Row(-1, "detached", "detached", words, children=orphans))
    order = _preorder(flat, roots)
    _accumulate(order, _clock(events, spans))
    for number, row in enumerate((row for row in order if row.name == "llm_query" and row.kind == "sub"), 1):
        row.text = f"#{number}"
    return order


_TOP, _LOST = -1, -2


def _parents(events: Sequence[Event]) -> list[int]:
    """For each event the number of its parent, _TOP, or _LOST if the parent is not in the journal."""
    nodes: dict[str, int] = {}
    calls: dict[str, int] = {}
    cells: dict[tuple[str, float], int] = {}
    for index, event in enumerate(events):
        kind, call = event.get("event"), str(event.get("call_id"))
        if kind == "tool" and "code" in event:
            cells[call, _number(event.get("cell"))] = index
        elif kind not in ("tool", "end") and event.get("call_id") is not None:
            calls.setdefault(call, index)

    parents: list[int] = []
    for index, event in enumerate(events):
        kind, node = event.get("event"), str(event.get("node"))
        if kind == "start":
            nodes[node] = index  # later events are children of the node's latest prompt
        names = ("call_id", "from_cell") if kind == "tool" else ("parent_call_id", "cell")
        above, cell = (event.get(name) for name in names)
        if kind in ("start", "tool") or (kind in ("call", "interrupted") and event.get("kind") == "sub"):
            place = None if cell is None else cells.get((str(above), _number(cell)))
        else:
            place = nodes.get(node)
        if place is None:
            place = _TOP if above is None else calls.get(str(above), _LOST)
        parents.append(place)
    return _without_cycles(parents)


def _without_cycles(parents: list[int]) -> list[int]:
    """The parents, each cycle of them cut at one event, which has lost its parent."""
    seen = [0] * len(parents)  # 0 new, else the number of the walk that met it
    for begin in range(len(parents)):
        at = begin
        while at >= 0 and not seen[at]:
            seen[at] = begin + 1
            at = parents[at]
        if at >= 0 and seen[at] == begin + 1:
            parents[at] = _LOST
    return parents


def _preorder(flat: list[Row], roots: list[int]) -> list[Row]:
    """Rows in display order, with rows for folded batches; `children` then are indices in that order."""
    order: list[Row] = []
    stack: list[tuple[Row, int, Row | None]] = [(flat[index], 0, None) for index in reversed(_by_start(flat, roots))]
    while stack:
        row, level, parent = stack.pop()
        row.level = level
        below = row.children if row.kind == "batch" else _folded(flat, _by_start(flat, row.children))
        if parent is not None:
            parent.children.append(len(order))
        order.append(row)
        row.children = []
        stack.extend((flat[index], level + 1, row) for index in reversed(below))
    return order


def _by_start(flat: list[Row], indices: list[int]) -> list[int]:
    return sorted(indices, key=lambda index: (flat[index].kind == "detached", flat[index].start, index))


def _folded(flat: list[Row], indices: list[int]) -> list[int]:
    """The siblings, with each long sequence of one kind of call replaced by a new "batch" row."""
    folded: list[int] = []
    for (kind, name), group in groupby(indices, lambda index: (flat[index].kind, flat[index].name)):
        alike = list(group)
        if kind in ("sub", "node", "tool") and len(alike) >= COLLAPSE_AT:
            first = flat[alike[0]]
            folded.append(len(flat))
            label = f"{name} × {len(alike)}"
            flat.append(Row(-1, "batch", label, model=first.model, depth=first.depth, children=alike))
        else:
            folded += alike
    return folded


def _accumulate(order: list[Row], clock: Sequence[float]) -> None:
    """Compute totals, own times and concurrency, leaves first. `clock` is the time that the run was active."""
    active = [(0.0, 0.0)] * len(order)  # when each row began and ended, by that clock
    for place in reversed(range(len(order))):
        row = order[place]
        below = [order[index] for index in row.children]
        row.all_tokens = row.tokens + sum(child.all_tokens for child in below)
        row.all_cost = round(row.cost + sum(child.all_cost for child in below), 10)
        row.all_unpriced = row.unpriced + sum(child.all_unpriced for child in below)
        row.all_errors = (row.flags & ERROR) + sum(child.all_errors for child in below)
        covered, row.max_concurrency = _coverage([(child.start, child.end) for child in below])
        spans = [(row.start, row.end, clock[row.index] - row.self_ms, clock[row.index])] if row.index >= 0 else []
        spans += [(child.start, child.end, *active[index]) for index, child in zip(row.children, below, strict=True)]
        starts, ends, begun, ended = zip(*spans, strict=True)
        row.start, row.end = min(starts), max(ends)
        active[place] = begun[0] if row.kind == "node" else min(begun), max(ended)
        row.total_ms = max(0.0, active[place][1] - active[place][0])
        if row.kind in ("turn", "sub", "tool", "interrupted"):
            continue  # own time is the call's own duration
        row.self_ms = max(0.0, (row.self_ms if row.kind == "cell" else row.total_ms) - covered)


def _coverage(spans: list[tuple[float, float]]) -> tuple[float, int]:
    """Time covered by at least one span, and how many overlap at most, by more than a millisecond.

    In sequence, a call may begin in the millisecond in which the last one ended.
    """
    covered, until = 0.0, -math.inf
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    edges = sorted(edge for start, end in spans if end - start > 1 for edge in ((start + 1, 1), (end, -1)))
    return covered, max(accumulate(step for _, step in edges), default=0)


def _row(index: int, event: Event, start: float = 0.0, end: float = 0.0) -> Row:
    kind = _kind(event)
    row = Row(index, kind, *_words(kind, event), start=start, end=end, self_ms=end - start)
    row.flags = _flags(kind, event)
    row.depth = int(_number(event.get("depth")))
    row.model = first_line(event.get("model"), 60)
    if kind in ("turn", "sub"):
        usage = _dict(event.get("token_usage"))
        row.usage = tuple(int(_number(usage.get(name))) for name in USAGE)
        row.tokens = row.usage[0] + row.usage[1]
        cost = event.get("cost_usd")
        row.unpriced = int(cost is None or isinstance(cost, (str, bool)))
        row.cost = _number(cost)
    return row


def _kind(event: Event) -> str:
    name = event.get("event")
    if name == "start":
        return "node"
    if name == "call":
        return "sub" if event.get("kind") in ("sub", "summary") else "turn"
    if name == "tool":
        return "cell" if "code" in event else "tool"
    return str(name) if name in EVENTS else "other"


def _words(kind: str, event: Event) -> tuple[str, str, str]:
    """What a row is called, what it asked or ran, and what came of it."""
    if kind == "node":
        name = "next prompt" if event.get("continues") else "run"
        return name if event.get("parent_call_id") is None else "rlm_query", first_line(event.get("prompt")), ""
    if kind == "turn":
        return f"turn {_count_text(event.get('turn'))}", _turn_text(event), ""
    if kind == "sub":
        name = "summary" if event.get("kind") == "summary" else "llm_query"
        return name, "", first_line(event.get("response")) or first_line(_last_user_text(event.get("prompt")))
    if kind == "cell":
        text = _telling_line(event.get("code"), event.get("traceback"))
        return f"cell {_count_text(event.get('cell'))}", text, _outcome(event)
    if kind == "tool":
        return _tool_name(event), first_line(event.get("arguments") or ""), _outcome(event)
    return *_other_words(kind, event), ""


def _turn_text(event: Event) -> str:
    """A turn's prose; without any, the first comment or line of its code, or the calls it makes."""
    prose, _, block = _text(event.get("response"))[:4000].partition("```")
    if prose.strip():
        return first_line(prose)
    calls = (_dict(call.get("arguments")).get("code") for call in _dicts(event.get("tool_calls")))
    code = next((code for code in calls if code), block.partition("\n")[2].partition("```")[0])
    comment = re.search(r"^[ \t]*#+[ \t]*(\w.*)", _text(code)[:4000], re.MULTILINE)
    return (first_line(comment[1]) if comment else _telling_line(code)) or _calls_in_words(event)


def _outcome(event: Event) -> str:
    """The error of a cell or a tool, or the last line of a cell's output, or a tool's result."""
    if event.get("error"):
        return first_line(_error_words(event))
    if "code" not in event:
        return first_line(next((result.get("content") for result in _dicts(event.get("tool_results"))), None))
    last = (_text(event.get("value")) or _text(event.get("stdout"))).strip().rpartition("\n")[2]
    images = f"[{counted(count, 'image')}]" if (count := _image_count(event)) else ""
    return " ".join(filter(None, [first_line(last), images]))


def _tool_name(event: Event) -> str:
    names = [first_line(result.get("name"), 40) for result in _dicts(event.get("tool_results"))]
    return first_line(event.get("name"), 40) or ", ".join(dict.fromkeys(names)) or "tool"


def _other_words(kind: str, event: Event) -> tuple[str, str]:
    error = _dict(event.get("error"))
    if kind == "end":
        status = first_line(event.get("status"), 20) or "ended"
        return status, first_line(error.get("message") or event.get("response"))
    if kind == "resume" and "divergence" in event:
        return "diverged", first_line(event["divergence"])
    if kind == "resume":
        return "resumed", f"after {_count_text(event.get('lines'))} recorded lines"
    if kind == "interrupted":
        what = error.get("message") or event.get("error")
        return "interrupted", first_line(" ".join(filter(None, [first_line(event.get("kind"), 20), first_line(what)])))
    if kind == "compact":
        before, after = (format(int(_number(event.get(name))), ",") for name in ("tokens_before", "tokens_after"))
        return "compacted", f"{before} → {after} tokens"
    return first_line(event.get("event"), 40) or "unknown", ""


def _count_text(value: object) -> str:
    return str(int(_number(value))) if _number(value) else "?"


def _last_user_text(prompt: object) -> str:
    if isinstance(prompt, str):
        return prompt
    texts = [_text(message.get("content")) for message in _dicts(prompt) if message.get("role") == "user"]
    return texts[-1] if texts else ""


def _telling_line(code: object, error: object = None) -> str:
    """The most telling line of code: the one that failed, asks a model or answers; else the last to show a value."""
    lines = _text(code)[:8000].splitlines()
    failed = re.findall(r'"<cell[^"\n]*>", line (\d{1,6}), in <module>', _text(error))
    if failed and 0 < int(failed[-1]) <= len(lines):
        return first_line(lines[int(failed[-1]) - 1])
    telling = [
        line for line in lines if line.strip() and not re.match(r"\s*(#|import |from |def |class |@|[)\]}])", line)
    ]
    asking = [line for line in telling if re.search(r"\b(llm_query|rlm_query|map_query|FINAL)", line)]
    showing = [line for line in telling if re.match(r"\s*print\(|[\w.]+[(\[.]|\w+$", line)]
    return first_line((asking[:1] or showing[-1:] or telling or lines or [""])[0])


def _flags(kind: str, event: Event) -> int:
    flags = 0
    if kind in ("cell", "tool"):
        failed = event.get("status", "ok") not in ("ok", None) or bool(event.get("error"))
        flags |= ERROR if failed or any(result.get("is_error") for result in _dicts(event.get("tool_results"))) else 0
        flags |= RESTORED if event.get("restored") else 0
    elif kind in ("turn", "sub"):
        flags |= WARNING if event.get("stop_reason") in ("length", "refusal", "content_filter") else 0
        flags |= ESTIMATED if _dict(event.get("token_usage")).get("estimated") else 0
        flags |= RETRIED if _number(event.get("attempts")) > 1 else 0
    elif kind == "interrupted" or (kind == "end" and event.get("status") == "error"):
        flags |= ERROR
    elif (kind == "end" and event.get("status") in ("partial", "interrupted")) or "divergence" in event:
        flags |= WARNING
    return flags


# --- when things happened, what asked for them, and where an answer came from -----------------------------------------


def _spans(events: Sequence[Event]) -> list[tuple[float, float]]:
    """Start and end of each event, whose line is written when it ends; one without a time gets its neighbour's."""
    spans: list[tuple[float, float]] = []
    last = next((at for at in (parse_timestamp(event.get("timestamp")) for event in events) if at is not None), 0.0)
    for event in events:
        at = parse_timestamp(event.get("timestamp"))
        last = last if at is None else at
        spans.append((last - _length_ms(event), last))
    return spans


def _length_ms(event: Event) -> float:
    return _number(event.get("duration_ms")) if event.get("event") in ("call", "tool", "interrupted") else 0.0


def _with_arguments(events: Sequence[Event]) -> list[Event]:
    """The events, with the arguments of each tool call where its outcome is."""
    asked = {
        (str(event.get("call_id")), str(call.get("id"))): call.get("arguments")
        for event in events
        if event.get("event") == "call"
        for call in _dicts(event.get("tool_calls"))
    }

    def arguments(event: Event) -> object:
        result = next(iter(_dicts(event.get("tool_results"))), {})
        return asked.get((str(event.get("call_id")), str(result.get("id") if result else "")))

    return [{"arguments": arguments(event), **event} if event.get("event") == "tool" else event for event in events]


def _mark_answer(events: Sequence[Event], flat: list[Row]) -> None:
    """Flag the turn or cell that gave each node's answer, and give the answer to the node."""
    places = {event["index"]: place for place, event in enumerate(events) if type(event.get("index")) is int}
    opened: dict[str, int] = {}
    for index, event in enumerate(events):
        node = str(event.get("node"))
        if flat[index].kind == "node":
            opened[node] = index
        elif flat[index].kind == "end":
            named = _dict(event.get("answer")).get("index")
            source = places.get(named, -1) if type(named) is int else -1
            if source >= 0 and event.get("status") == "answered" and flat[source].kind in ("turn", "cell"):
                flat[source].flags |= FINAL
            if node in opened:
                flat[opened[node]].outcome = first_line(event.get("response"))


def active_ms(events: Sequence[Event]) -> float:
    """How long the run was active during these events: as the last line that records it says, and since then."""
    clock = _clock(events, _spans(events))
    before = clock[0] if events and "active_ms" in events[0] else 0.0
    return max(0.0, clock[-1] - before) if clock else 0.0


def _clock(events: Sequence[Event], spans: Sequence[tuple[float, float]]) -> list[float]:
    """For how many milliseconds the run had been active when each event ended: pauses are not counted."""
    clock: list[float] = []
    active, since = 0.0, spans[0][0] if spans else 0.0
    last = since
    for event, (_, end) in zip(events, spans, strict=True):
        recorded = _recorded_ms(event, active, active + last - since)
        last = max(last, end)
        if recorded is not None:
            active, since, last = recorded, end, end
        clock.append(active + last - since)
    return list(accumulate(reversed(clock), min))[::-1]  # what is recorded is right, and a clock never goes back


def _recorded_ms(event: Event, begun: float, now: float) -> float | None:
    """How long the run has been active, if the event says so. In version 1 it follows from when the run went on."""
    kind, totals = event.get("event"), _dict(event.get("totals"))
    if _number(event.get("depth")):
        return None
    if "active_ms" in event:
        return _number(event["active_ms"])
    if event.get("continues") or (kind == "resume" and "divergence" not in event):
        return now
    return begun + took if kind == "end" and (took := _number(totals.get("duration_ms"))) else None


# --- totals -----------------------------------------------------------------------------------------------------------


def totals(events: Sequence[Event], tree_rows: Sequence[Row] | None = None) -> JSONObject:
    """The figures of a run: {calls, tokens, usage, cost_usd, cost_known, depth_reached, tool_calls, duration_ms, …}.

    Besides these `errors`, a count, and `status`. `cost_usd` is None if the price of a call is unknown; `cost_known` is
    the sum of the others. `tree_rows`: the run's `rows`, where they are made already.
    """
    events = upgraded(events)
    listed = rows(events) if tree_rows is None else tree_rows
    calls = [row for row in listed if row.kind in ("turn", "sub")]
    unpriced = sum(row.unpriced for row in calls)
    known = round(sum(row.cost for row in calls), 10)
    return {
        "calls": len(calls),
        "tokens": sum(row.tokens for row in calls),
        "usage": {name: sum(row.usage[place] for row in calls) for place, name in enumerate(USAGE)},
        "cost_usd": None if unpriced else known,
        "cost_known": known,
        "depth_reached": max((row.depth for row in calls), default=0),
        "tool_calls": sum(row.kind in ("cell", "tool") for row in listed),
        "duration_ms": round(active_ms(events)),
        "errors": sum(row.flags & ERROR for row in listed),
        "status": _status(events),
    }


def _root_lines(events: Sequence[Event]) -> list[tuple[int, Event]]:
    """(place, event) of the lines with which the root begins, goes on and ends."""
    return [
        (place, event)
        for place, event in enumerate(events)
        if event.get("event") in ("start", "resume", "end") and not _number(event.get("depth"))
    ]


def _status(events: Sequence[Event]) -> str:
    """The root's status: answered, partial, error, interrupted, or unfinished if it has not ended."""
    last = _root_lines(events)[-1:]
    if last and last[0][1]["event"] == "end":
        return first_line(last[0][1].get("status"), 20) or "ended"
    return "unfinished" if events else "empty"


# --- figures and text as people read them -----------------------------------------------------------------------------

# Characters that would move, hide or reorder what is shown: controls, direction marks, zero-width, lone surrogates.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


_TIE = 1e-9  # added before rounding, here and in the page: halves go up in both


def money(known: float, unpriced: int = 0) -> str:
    """Dollars to two significant digits or cents; "?" stands for calls whose price is unknown, and is never zero."""
    if unpriced and not known:
        return "?"
    places = 2 if known >= 1 or not known else min(9, 1 - math.floor(math.log10(known)))
    shown = f"${known + _TIE / 10**places:,.{places}f}" if known else "$0"
    return f"{shown} + ?" if unpriced else shown


def duration(ms: float) -> str:
    """A time span with two or three significant parts: 41 ms, 2.1 s, 1 m 05 s, 2 h 03 m."""
    if ms < 999.5:
        return f"{ms + _TIE:.0f} ms" if ms >= 9.95 or ms < 0.05 else f"{ms + _TIE:.1f} ms"
    if ms < 59_950:
        return f"{ms / 1000 + _TIE:.1f} s"
    minutes, seconds = divmod(int(ms / 1000 + 0.5), 60)
    if minutes < 60:
        return f"{minutes} m {seconds:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} m"


def _visible(text: str) -> str:
    """The text on one line with every unseen character written as an escape."""
    return _shown(text.replace("\n", " ").replace("\t", " "))


def _shown(text: str) -> str:
    """The text with characters that move or hide text as escapes."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _width(text: str) -> int:
    """Terminal columns of a text."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _fit(text: str, width: int) -> str:
    """The text cut or padded to exactly that many columns."""
    if _width(text) > width:
        while text and _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


# --- the tree in a terminal -------------------------------------------------------------------------------------------

_MARKS = {
    "node": "◆",
    "turn": "●",
    "sub": "○",
    "cell": "▶",
    "tool": "■",
    "batch": "≡",
    "end": "✓",
    "resume": "↻",
    "interrupted": "✗",
    "compact": "⇊",
    "detached": "?",
    "other": "·",
}
_ASCII = str.maketrans("◆●○▶■≡✓↻✗⇊·×→…├└│─", "#*o>+=v@x%.x>.|`|-")


def tree(events: Sequence[Event], *, color: bool = False, width: int = 100, ascii_only: bool = False) -> str:
    """The run as a tree for a terminal: each line with tokens, cost and time as `total (self)`, batches folded."""
    listed = rows(events)
    lines = [_paint(_heading(events, listed), "1", color)]
    if width >= 90:
        lines.append(" " * (width - sum(_FIGURES)) + _aligned(["tokens (self)", "cost (self)", "time (self)"]))
    guides: list[bool] = []  # for each level: does a later sibling follow?
    later = _has_later_sibling(listed)
    folded = -1
    for place, row in enumerate(listed):
        if folded >= 0 and row.level > folded:
            continue
        folded = row.level if row.kind == "batch" else -1
        del guides[row.level :]
        guides.append(later[place])
        lines.append(_tree_line(row, guides, width, color))
    text = "\n".join(lines)
    return text.translate(_ASCII) if ascii_only else text


def _heading(events: Sequence[Event], listed: Sequence[Row]) -> str:
    sums = totals(events, listed)
    name = _visible(first_line(next((event.get("trajectory_id") for event in events), None) or "no run", 40))
    cost = money(sums["cost_known"], sum(row.unpriced for row in listed))
    parts = [name, sums["status"], counted(sums["calls"], "call"), f"{sums['tokens']:,} tok", cost]
    parts += [duration(sums["duration_ms"]), f"depth {sums['depth_reached']}"]
    return " · ".join(parts + ([counted(sums["errors"], "error")] if sums["errors"] else []))


_FIGURES = (20, 22, 20)  # columns for tokens, cost and time


def _aligned(texts: Iterable[str]) -> str:
    return "".join(text.rjust(wide) for text, wide in zip(texts, _FIGURES, strict=True))


def _has_later_sibling(listed: Sequence[Row]) -> list[bool]:
    later = [False] * len(listed)
    for row in listed:
        for child in row.children[:-1]:
            later[child] = True
    return later


def _tree_line(row: Row, guides: list[bool], width: int, color: bool) -> str:
    room = width - sum(_FIGURES) if width >= 90 else width - 30
    shown = guides[1:] if row.level <= 24 else guides[-8:]  # a chain of 1,000 levels must stay readable
    lead = "" if row.level <= 24 else f"[{row.level}] "
    bars = lead + "".join("│ " if on else "  " for on in shown[:-1]) + (("├─" if shown[-1] else "└─") if shown else "")
    mark = _mark(row)
    flags = "".join(words for bit, words in _FLAG_WORDS.items() if row.flags & bit)
    wide = f" ({row.max_concurrency} at once)" if row.kind in ("cell", "batch") and row.max_concurrency > 1 else ""
    label = _fit(f"{bars}{mark} {_visible(row.name)}{wide}{flags}  {_visible(_row_words(row))}", room)
    code = "31" if row.error else "32" if row.flags & FINAL else "36" if row.kind in ("node", "batch") else ""
    return (_paint(label, code, color) + _figures(row, width)).rstrip()


def _mark(row: Row) -> str:
    return "✗" if row.error else "!" if row.kind == "end" and row.flags & WARNING else _MARKS[row.kind]


def _row_words(row: Row) -> str:
    """A row's text and outcome."""
    return " → ".join(filter(None, [row.text, row.outcome]))


_FLAG_WORDS = {FINAL: " [answer]", WARNING: " [!]", RESTORED: " [variables restored]", RETRIED: " [retried]"}


def _figures(row: Row, width: int) -> str:
    tokens, cost, time = _figure_texts(row)
    if width < 90:
        return tokens[0].rjust(10) + cost[0].rjust(11) + time[0].rjust(9)
    return _aligned(f"{total} ({own})" if own and own != total else total for total, own in (tokens, cost, time))


def _figure_texts(row: Row) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str]]:
    """(total, self) for tokens, cost and time; empty where the row has none."""
    calls = bool(row.all_tokens or row.all_unpriced or row.all_cost)
    tokens = (f"{row.all_tokens:,}", f"{row.tokens:,}") if calls else ("", "")
    cost = (money(row.all_cost, row.all_unpriced), money(row.cost, row.unpriced)) if calls else ("", "")
    timed = row.kind not in UNTIMED
    return tokens, cost, (duration(row.total_ms), duration(row.self_ms)) if timed else ("", "")


def _paint(text: str, code: str, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color and code else text


def step(event: Event) -> str:
    """The progress line of an event, indented by its depth; "" for text deltas and other events without one."""
    if event.get("event") not in EVENTS:
        return ""
    event = {**event, **_explicit_error(event)}
    row = _row(0, event)
    failed = row.error or (row.kind == "end" and bool(event.get("error")))
    indent = min(row.depth, 24) + (row.kind in ("cell", "tool"))
    return "  " * indent + f"{'✗' if failed else _MARKS[row.kind]} {_visible(_step_words(row, event))}"


def _step_words(row: Row, event: Event) -> str:
    if row.kind == "node":
        return f"{row.model}: {first_line(row.text, 80)}"
    if row.kind in ("turn", "sub"):
        reply = first_line(row.text if row.kind == "turn" else event.get("response"), 60)
        figures = [f"{row.usage[0]:,}→{row.usage[1]:,} tok", money(row.cost, row.unpriced)]
        figures.append(duration(_number(event.get("duration_ms"))))
        return " · ".join([row.name, *figures, *([reply] if reply else [])])
    if row.kind == "cell":
        shown = _error_words(event) or _text(event.get("stdout") or event.get("value"))
        return f"{row.name}: {first_line(row.text, 60)}" + (f" → {first_line(shown, 60)}" if shown.strip() else "")
    if row.kind == "end":
        return row.text or row.name
    words = f"{row.name}: {row.text}" if row.text else row.name
    failure = _error_words(event) if row.kind == "tool" else ""
    return f"{words} → {first_line(failure, 100)}" if failure else words


def _calls_in_words(event: Event) -> str:
    """The calls of a turn: tools with their arguments, cells by name, because their code has a row."""
    calls = []
    for call in _dicts(event.get("tool_calls"))[:4]:
        name, arguments = first_line(call.get("name"), 40), call.get("arguments")
        shown = "" if name == "execute_code" or not arguments else first_line(_text(arguments), 60)
        calls.append(f"{name}({shown})" if shown else name)
    return ", ".join(calls)


# --- in a notebook ----------------------------------------------------------------------------------------------------

NOTEBOOK_LIMIT = 20_000
_CARD_RESPONSE = 3_000  # bytes of the response in a card, before escaping


def card(result: Mapping[str, Any], events: Sequence[Event]) -> str:
    """A result as HTML: response, figures and, folded, the first rows of the tree; escaped like `table`."""
    whole = str(result["response"]).encode("utf-8", "replace")
    response = whole[:_CARD_RESPONSE].decode("utf-8", "ignore") + (" …" if len(whole) > _CARD_RESPONSE else "")
    cost = money(result["cost_usd"] or 0.0, result["cost_usd"] is None)
    figures = [result["status"], counted(result["total_calls"], "call"), counted(result["total_tokens"], "token"), cost]
    head = (
        f'<div><pre style="white-space:pre-wrap;margin:0">{_html(response)}</pre>'
        f'<div style="opacity:.7">{_html(" · ".join([*figures, duration(result["duration_ms"])]))}</div>'
    )
    room = NOTEBOOK_LIMIT - 1_000 - len(head.encode())
    return f"{head}{_table(events, 30, room) if events else ''}</div>"


def show(log: str) -> str:
    """Write a run's page next to its log and display it, inline in a notebook, else in the browser; the page's path."""
    path = write([log], os.path.splitext(log)[0] + ".html")
    if _ipython() is None:
        _open(os.path.abspath(path))
    else:
        from IPython import display

        show_inline: Callable[..., object] = display.display
        show_inline(display.IFrame(os.path.relpath(path), width="100%", height=640))
    print(path)
    return path


def _ipython() -> object:
    """The IPython shell that this program runs in, if it does."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def table(events: Sequence[Event], rows: int = 30) -> str:
    """The first rows of the tree as HTML for a notebook: escaped, no script, inline styles, at most 20 KB."""
    return _table(events, rows, NOTEBOOK_LIMIT)


def _table(events: Sequence[Event], most: int, limit: int) -> str:
    """At most so many rows and so many bytes."""
    clean = _redacted(events)
    listed = rows(clean)
    shown = [row for row in listed if row.level <= 24][:most]
    figure = ' style="text-align:right;padding:1px 10px;white-space:nowrap;font-variant-numeric:tabular-nums"'
    while True:
        tree = _html_tree(shown, len(listed) - len(shown), figure, brief=60)
        page = f"<details><summary>{_html(_heading(clean, listed))}</summary>{tree}</details>"
        if len(page.encode("utf-8", "replace")) <= limit or not shown:
            return page
        shown = shown[: len(shown) * 3 // 4]


def _html_tree(shown: Sequence[Row], more: int, figure: str = "", brief: int = 120) -> str:
    """Rows as a table: for a notebook (with the attributes of a figure's cell), for print, and without scripts."""
    head = "".join(f"<th{figure}>{title}</th>" for title in ("tokens", "cost", "time"))
    body = "".join(_html_row(row, figure, brief) for row in shown)
    note = f"<p>… and {more:,} more rows</p>" if more > 0 else ""
    return f"<table><thead><tr><th>call</th>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _html_row(row: Row, figure: str, brief: int) -> str:
    mark = _mark(row)
    left = figure and f' style="text-align:left;padding:1px 10px 1px {row.level * 14}px"'
    indent = "" if left else "\u00a0\u00a0" * min(row.level, 24)
    figures = "".join(f"<td{figure}>{_html(total)}</td>" for total, _ in _figure_texts(row))
    words = f"{indent}{mark} <b>{_html(_visible(row.name))}</b> {_html(_visible(_row_words(row)[:brief]))}"
    return f"<tr><td{left}>{words}</td>{figures}</tr>"


# --- current activity -------------------------------------------------------------------------------------------------


class Activity:
    """What a run is doing now, in a few words, from the events that its listener gets; thread-safe.

    Nested runs overlap: the latest activity is shown, and a batch of sub-calls rather than its single ones.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading = ""
        self._doing: dict[tuple[str, ...], defaultdict[str, float]] = {}  # (what, run, node, …): figures; latest last

    def update(self, event: Event) -> None:
        """Add an event; unknown ones are ignored."""
        what = event.get("phase") if event.get("event") == "progress" else event.get("event")
        node = str(event.get("trajectory_id")), str(event.get("node"))
        call = ("call", *node, str(event.get("kind") or "turn"))
        with self._lock:
            self._loading = first_line(event.get("text"), 120) if what == "loading" else ""
            if what == "asking":
                if call[-1] != "sub":  # the turns of a node do not overlap
                    self._doing.pop(call, None)
                self._latest(call)["open"] += 1
            elif what == "reading":
                self._latest(call).update(read=_number(event.get("processed")), total=_number(event.get("total")))
            elif what == "text":
                self._latest(call)["letters"] += len(_text(event.get("delta")))
            elif what == "running":
                self._latest(("cell", *node)).update(number=_number(event.get("cell")), began=time.monotonic())
            elif what == "subcalls":
                self._latest(("batch", *node)).update({name: _number(event.get(name)) for name in ("done", "total")})
            elif what in ("call", "interrupted"):
                if (doing := self._doing.get(call)) and doing["open"] > 1:
                    doing["open"] -= 1
                else:
                    self._doing.pop(call, None)
            elif what == "end" or (what == "tool" and "code" in event):
                over = [key for key in self._doing if key[1:3] == node and (what == "end" or key[-1] != "turn")]
                for key in over:
                    del self._doing[key]

    def words(self, *, timed: bool = True) -> str:
        """`running cell 3: 4 s`, or "". Without `timed` there are no seconds, for a line that is rarely repainted."""
        with self._lock:
            if self._loading:
                return self._loading
            for what in ("batch", "call", "cell"):
                for key in reversed(self._doing):
                    if key[0] == what and (shown := _activity_words(what, self._doing[key], timed)):
                        return shown
        return ""

    def _latest(self, key: tuple[str, ...]) -> defaultdict[str, float]:
        """The figures of an activity, which is now the latest."""
        self._doing[key] = self._doing.pop(key, defaultdict(float, began=time.monotonic()))
        return self._doing[key]


def _activity_words(what: str, doing: Mapping[str, float], timed: bool) -> str:
    took = f"{time.monotonic() - doing['began']:.0f} s"
    if what == "batch":
        done, total = int(doing["done"]), int(doing["total"])
        return f"{done:,} of {counted(total, 'sub-call')}" if done < total else ""
    if what == "cell":
        number = f" {doing['number']:.0f}" if doing["number"] else ""
        return f"running cell{number}" + (f": {took}" if timed else "")
    if doing["letters"]:
        return f"writing {max(1, int(doing['letters'] / 4)):,} tok"  # about four characters each
    if "read" in doing:
        is_known = doing["total"] and doing["read"]
        return "reading the prompt" + (f" {min(100, 100 * doing['read'] / doing['total']):.0f}%" if is_known else "")
    return "waiting for the model" + (f" {took}" if timed else "")


@dataclass
class Counts:
    """What a run has used until now, from the events that its listener gets."""

    calls: int = 0
    tokens: int = 0
    subcalls: int = 0
    depth: int = 0
    cost: float = 0.0
    unpriced: int = 0

    def update(self, event: Event) -> None:
        """Add an event."""
        kind = event.get("event")
        self.depth = max(self.depth, int(_number(event.get("depth"))))
        if kind == "call":
            usage = _dict(event.get("token_usage"))
            self.calls += 1
            self.tokens += int(_number(usage.get("input")) + _number(usage.get("output")))
            self.unpriced += event.get("cost_usd") is None
            self.cost += _number(event.get("cost_usd"))
        if (kind == "call" and event.get("kind") == "sub") or (kind == "start" and event.get("depth")):
            self.subcalls += 1


def _batch_words(batch: Mapping[str, float], timed: bool) -> str:
    done, total = int(batch["done"]), int(batch["total"])
    return f"{done:,} of {counted(total, 'sub-call')}" if done < total else ""


def _call_words(call: Mapping[str, float], timed: bool) -> str:
    if call["letters"]:
        return f"writing {max(1, int(call['letters'] / 4)):,} tok"  # about four characters each
    if "read" in call:
        total = call["total"]
        return "reading the prompt" + (
            f" {min(100, 100 * call['read'] / total):.0f}%" if total and call["read"] else ""
        )
    return "waiting for the model" + (f" {time.monotonic() - call['began']:.0f} s" if timed else "")


def _cell_words(cell: Mapping[str, float], timed: bool) -> str:
    number = f" {cell['number']:.0f}" if cell["number"] else ""
    return f"running cell{number}" + (f": {time.monotonic() - cell['began']:.0f} s" if timed else "")


def counted(number: int, word: str) -> str:
    """`1 call`, `1,200 calls`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


# - in a notebook's kernel


class NotebookProgress:
    """A listener for runs in a notebook: one line under the cell, updated at most twice a second."""

    def __init__(self, display: Callable[..., object]) -> None:
        self._display = display
        self._handle: Any = None
        self._began = self._shown = time.monotonic()
        self._counts, self._activity = Counts(), Activity()

    def __call__(self, event: Event) -> None:
        kind = event.get("event")
        self._activity.update(event)
        self._counts.update(event)
        if kind == "start" and not event.get("depth"):
            self._began = time.monotonic()
        last = kind == "end" and not event.get("depth")
        begins = self._handle is None and kind == "progress"  # the first wait may be the longest
        if last or begins or time.monotonic() - self._shown >= 0.5:
            self._show("✓" if last and event.get("status") == "answered" else "✗" if last else "…")

    def _show(self, mark: str) -> None:
        self._shown = time.monotonic()
        took = duration((self._shown - self._began) * 1000)
        used = self._counts
        figures = [f"{mark} {took}", counted(used.calls, "call"), counted(used.tokens, "token")]
        figures += [money(used.cost, used.unpriced), f"depth {used.depth}"]
        doing = _visible(self._activity.words(timed=False)) if mark == "…" else ""
        line = {"text/plain": " · ".join([*figures, doing] if doing else figures)}
        if self._handle is None:
            self._handle = self._display(line, raw=True, display_id=True)
        else:
            self._handle.update(line, raw=True)


def kernel_line() -> NotebookProgress | None:
    """A progress line, if this is a notebook's kernel."""
    if not hasattr(_ipython(), "kernel"):
        return None
    from IPython.display import display

    return NotebookProgress(display)


def _html(text: str) -> str:
    from html import escape

    return escape(text).replace("&#x27;", "&#39;")


# --- a folder of logs -------------------------------------------------------------------------------------------------


def find_log(dir: str | os.PathLike[str], id_prefix: str) -> str:
    """The journal whose id starts with the prefix (or the named .jsonl file); ValueError lists those that exist."""
    if id_prefix.endswith(".jsonl") and os.path.isfile(id_prefix):
        return id_prefix
    names = [name[: -len(".jsonl")] for name in _log_names(dir)]
    matches = [id_prefix] if id_prefix in names else [name for name in names if name.startswith(id_prefix)]
    if len(matches) == 1:
        return os.path.join(dir, matches[0] + ".jsonl")
    shown = ", ".join((matches or names)[:8]) + (", …" if len(matches or names) > 8 else "")
    if matches:
        raise ValueError(f"{id_prefix!r} is the beginning of {len(matches)} runs: {shown}")
    there = f"; there are {shown}" if names else ", which has none"
    raise ValueError(f"no run {id_prefix!r} in {os.fspath(dir)!r}{there}")


def _log_names(dir: str | os.PathLike[str]) -> list[str]:
    """Names of the logs in a folder, newest first; none if there is no such folder."""
    logs: list[tuple[int, str]] = []
    with contextlib.suppress(FileNotFoundError), os.scandir(dir) as found:
        for entry in found:
            with contextlib.suppress(OSError):  # it has been deleted since, or is a loop of links
                if entry.name.endswith(".jsonl") and entry.is_file():
                    logs.append((entry.stat().st_mtime_ns, entry.name))
    return [name for _, name in sorted(logs, reverse=True)]


def list_runs(dir: str | os.PathLike[str]) -> list[JSONObject]:
    """Each run of a folder, newest first, as a dict.

    Its keys: id, status, prompt, answer, model, started, duration_ms, calls, tokens, cost_usd, path, bytes. Of a long
    journal only the first and last lines are read; figures that would need more are None.
    """
    runs = []
    for name in _log_names(dir):
        with contextlib.suppress(OSError):  # gone by now, or not for this user to read
            runs.append(_run_line(os.path.join(dir, name)))
    return sorted(runs, key=lambda run: run["started"] or "", reverse=True)


def _run_line(path: str) -> JSONObject:
    first, last = first_and_last(path)
    ended = last.get("event") == "end" and not _number(last.get("depth"))  # the root's end, not a child's
    sums = _dict(last.get("totals")) if ended else {}
    if not ended or _has_paused(first, last, sums):  # then no single line knows the figures
        sums = totals(read(path, bodies=False)[0]) if os.path.getsize(path) <= 4 << 20 else {}
    return {
        "id": os.path.basename(path)[: -len(".jsonl")],
        "status": first_line(last.get("status"), 20) if ended else sums.get("status", "unfinished"),
        "prompt": first_line(first.get("prompt"), 200),
        "answer": first_line(last.get("response"), 200) if ended else "",
        "model": first_line(first.get("model"), 60),
        "started": first.get("timestamp") if isinstance(first.get("timestamp"), str) else None,
        **{name: _number_or_none(sums.get(name)) for name in ("duration_ms", "calls", "tokens", "cost_usd")},
        "path": path,
        "bytes": os.path.getsize(path),
    }


def _has_paused(first: Event, end: Event, sums: Event) -> bool:
    """Whether a run was active for longer than its last prompt or resumption, whose figures alone its end has."""
    began, ended = parse_timestamp(first.get("timestamp")), parse_timestamp(end.get("timestamp"))
    active = _number(end.get("active_ms")) or (ended or 0.0) - (began or 0.0)  # an end of version 1 does not say
    return active > _number(sums.get("duration_ms")) + 50


def first_and_last(path: str) -> tuple[Event, Event]:
    """The first event and the last whole one, by reading only the file's two ends."""
    with open(path, "rb") as file:
        first = _parse(file.readline(8 << 20))[0] or {}
        size = file.seek(0, os.SEEK_END)
        for reach in (64 << 10, 16 << 20):
            file.seek(max(0, size - reach))
            lines = file.read(reach).splitlines()[size > reach :]  # the first line of a window is cut
            events = (_parse(line)[0] for line in reversed(lines) if line.strip())
            last = next((event for event in events if event is not None), None)
            if last is not None or size <= reach:
                return first, last or {}
    return first, {}


# --- costs of runs ----------------------------------------------------------------------------------------------------

COST_KEYS = ("model", "day", "project")


def costs(dirs: Iterable[str | os.PathLike[str]], by: str = "model") -> JSONObject:
    """{"by", "rows", "total"}: the calls in the journals of some folders, by model, day (local) or project folder.

    `cost_usd` is the sum of the prices that are known, `unpriced` counts the calls without one, abandoned ones among
    them: a provider may bill these as well.
    """
    rows: dict[str, JSONObject] = {}
    total = _cost_row("total")
    for dir in dirs:
        for name in _log_names(dir):
            project, path = os.path.dirname(os.path.abspath(dir)), os.path.join(dir, name)
            seen: set[str] = set()
            model = ""
            with contextlib.suppress(OSError):  # gone by now, or not for this user to read
                for event, _ in _scan(path, []):
                    folders = event.get("allowed_paths")
                    if isinstance(folders, list) and folders and not _number(event.get("depth")):
                        project = _text(folders[0])
                    model = _text(event.get("model")) or model  # an abandoned call has no model
                    if event.get("event") not in ("call", "interrupted"):
                        continue
                    key = {"model": model, "day": _day(event), "project": project}[by] or "?"
                    for row in (rows.setdefault(key, _cost_row(key)), total):
                        _add_cost(row, event, is_new_run=not seen if row is total else key not in seen)
                    seen.add(key)
    listed = sorted(rows.values(), key=lambda row: row["key"] if by == "day" else -row["cost_usd"])
    return {"by": by, "rows": listed, "total": total}


def _cost_row(key: str) -> JSONObject:
    figures = dict.fromkeys(("runs", "calls", *USAGE), 0)
    return {"key": key, **figures, "cost_usd": 0.0, "unpriced": 0}


def _add_cost(row: JSONObject, event: Event, *, is_new_run: bool) -> None:
    usage, cost = _dict(event.get("token_usage")), _number_or_none(event.get("cost_usd"))
    row["runs"] += is_new_run
    row["calls"] += 1
    for name in USAGE:
        row[name] += round(_number(usage.get(name)))
    row["cost_usd"] = round(row["cost_usd"] + (cost or 0.0), 9)
    row["unpriced"] += cost is None


def _day(event: Event) -> str:
    moment = parse_timestamp(event.get("timestamp"))
    try:
        return "" if moment is None else datetime.fromtimestamp(moment / 1000).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return ""


# --- secrets ----------------------------------------------------------------------------------------------------------

_KEY_SHAPES = (
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}",
    r"(?:[Bb]earer|BEARER)\s+[A-Za-z0-9._~+/-]{8,}=*",
    r"(?<![A-Za-z0-9])(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|AIza[A-Za-z0-9_-]{30,}|xox[abpr]-[A-Za-z0-9-]{10,})",
)
_KEY_HINTS = ("sk-", "earer", "BEARER", "AKIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "AIza", "xox")


class Secrets:
    """Redacts key shapes, and the values of variables named like KEY, TOKEN, SECRET or PASSWORD."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        named = re.compile("KEY|TOKEN|SECRET|PASSWORD")
        values = {
            form
            for name, value in (os.environ if environ is None else environ).items()
            if named.search(name.upper()) and len(value) >= 8 and not value.isdigit()
            for form in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
        }
        literal = [re.escape(value) for value in sorted(values, key=len, reverse=True)]
        self.shapes = re.compile("|".join([*literal, *_KEY_SHAPES]))
        self.hints = (*_KEY_HINTS, *values)  # a plain search is twenty times faster than the shapes

    def within(self, text: str) -> bool:
        return any(hint in text for hint in self.hints) and self.shapes.search(text) is not None

    def removed(self, value: Any) -> Any:
        """The value with each secret replaced by "[redacted]"."""
        if isinstance(value, str):
            return self.shapes.sub("[redacted]", value)
        if isinstance(value, list):
            return [self.removed(item) for item in value]
        if isinstance(value, dict):
            return {self.removed(name): self.removed(item) for name, item in value.items()}
        return value


# --- the page: what is embedded ---------------------------------------------------------------------------------------

CHUNK = 256  # events in a block that is inflated on demand
PLAIN_LIMIT = 256 << 10  # below this the page carries plain JSON and stays greppable
BODY_LIMIT = 200_000_000  # bytes of journal: beyond it a page carries metrics only, and says so
STATIC_ROWS = 200
NO_BODIES = "metrics only: prompts, replies, code and outputs are left out"


@dataclass
class PageBudget:
    """The bytes that a page may still hold, and the secrets that it must not."""

    secrets: Secrets = field(default_factory=Secrets)
    plain: int = PLAIN_LIMIT
    bodies: int = BODY_LIMIT


@dataclass
class _Run:
    """A run made ready for a page: redacted events, the shared rows, and the packed bodies."""

    name: str
    events: list[Event]
    rows: list[Row]
    problems: list[str]
    chunks: list[str]
    plain: bool

    def meta(self) -> JSONObject:
        """The data for the page's heading, picker and comparison."""
        root = _root_lines(self.events)
        begin, prompt = next((line for line in reversed(root) if line[1]["event"] == "start"), (-1, {}))
        ending, end = next((line for line in root[-1:] if line[1]["event"] == "end"), (-1, {}))  # it has not gone on
        limits = {name: limit for _, event in root for name, limit in _dict(event.get("limits")).items()}
        now = [row for row in self.rows if row.index >= begin]  # a limit is for one prompt of a conversation
        source = max((row.index for row in now if row.flags & FINAL and row.depth == 0), default=-1)
        question, answer = _text(prompt.get("prompt")), _text(end.get("response"))
        sums = {**totals(self.events, self.rows), "unpriced": sum(row.unpriced for row in self.rows)}
        spent = sums if begin <= 0 else totals(self.events[begin:], now)
        return {
            **sums,
            "id": self.name,
            "question": question[:20_000],
            "answer": answer[:20_000],
            "cut": [len(question) > 20_000, len(answer) > 20_000],
            "at": [begin, ending, source],
            "failure": _failure(end, prompt, now) if end.get("error") else None,
            "model": first_line(prompt.get("model"), 60),
            "started": first_line(prompt.get("timestamp"), 40),
            "cards": _cards(self, sums, spent, now, limits),
            "problems": self.problems[:20] + ([f"… and {len(self.problems) - 20} more"] if self.problems[20:] else []),
            "events": len(self.events),
            "chunks": len(self.chunks),
        }


def _failure(end: Event, prompt: Event, now: Sequence[Row]) -> JSONObject:
    """Why a run has no answer, what to do next, and the event that failed first."""
    error, name = _dict(end["error"]), _text(end.get("trajectory_id"))
    command = f"rlm resume {name}" if name and prompt.get("protocol") != "stream" else ""
    first = next((row.index for row in now if row.error and row.index >= 0 and row.kind != "end"), -1)
    return {**{key: _text(error.get(key)) for key in ("type", "message", "hint")}, "command": command, "first": first}


_Card = tuple[str, str, str, list[tuple[str, float]]]


def _cards(run: _Run, sums: JSONObject, spent: JSONObject, now: Sequence[Row], limits: Event) -> list[_Card]:
    """(title, figure, note, [(used of a limit in words, share)]) of each total; a limit is for the latest prompt."""
    usage, count, named = sums["usage"], Counter(row.kind for row in run.rows), Counter(row.name for row in run.rows)
    nodes = len({str(event.get("node")) for event in run.events if event.get("event") == "start"})
    counts = {"turn": count["turn"], "sub-call": count["sub"] - named["summary"], "summary call": named["summary"]}
    asked = {name: named[name] for name in ("llm_query", "rlm_query")}
    cached = f" · {100 * usage['cached'] / usage['input']:.0f} % cached" if usage["cached"] and usage["input"] else ""
    whose = "" if spent is sums else "this prompt: "

    def of(name: str, used: float, form: str = "{:,.0f}", shown: str = "") -> list[tuple[str, float]]:
        limit = _number(limits.get(name))
        return [(f"{whose}{shown or form.format(used)} of {form.format(limit)}", used / limit)] if limit else []

    tokens = of("token_budget", spent["tokens"])
    paid = money(spent["cost_known"], sum(row.unpriced for row in now))
    budget = of("cost_budget_usd", spent["cost_known"], "${:,.2f}", paid)
    subcalls = of("max_subcalls", sum(row.name in asked for row in now))
    rounds = sum(row.kind == "turn" and row.depth == 0 for row in now)
    unpriced = f"{counted(sums['unpriced'], 'call')} without a known price" if sums["unpriced"] else ""
    time = of("timeout_seconds", spent["duration_ms"] / 1000, "{:,.0f} s")
    issued = " · ".join(f"{n:,} {name}" for name, n in asked.items() if n)
    return [
        ("Calls", f"{sums['calls']:,}", " · ".join(counted(n, word) for word, n in counts.items() if n), []),
        ("Tokens", f"{sums['tokens']:,}", f"{usage['input']:,} in · {usage['output']:,} out{cached}", tokens),
        ("Cost", money(sums["cost_known"], sums["unpriced"]), unpriced, budget),
        ("Duration", duration(sums["duration_ms"]), "", time),
        ("Sub-calls", f"{sum(asked.values()):,}", issued, subcalls),
        ("Turns", f"{count['turn']:,}", "", of("max_iterations", rounds, "{:,.0f}", f"root: {rounds:,}")),
        ("Depth", f"{sums['depth_reached']}", counted(nodes, "node"), of("max_depth", spent["depth_reached"])),
        ("Errors", f"{sums['errors']:,}", "", []),
        ("Tool calls", f"{sums['tool_calls']:,}", f"{counted(count['cell'], 'cell')} among them", []),
    ]


def _prepare(name: str, events: Sequence[Event], problems: Sequence[str], room: PageBudget) -> _Run:
    """Redact a run, compute its rows and pack its bodies: as plain JSON while the page has room for it, else gzip."""
    clean: list[Event] = []
    plain: list[str] = []
    packed: list[str] = []
    size = 0
    for at in range(0, len(events), CHUNK):
        pairs = [_clean(event, room.secrets) for event in events[at : at + CHUNK]]
        clean += [event for event, _ in pairs]
        plain.append("\n".join(line for _, line in pairs))
        size += len(plain[-1])
        if size > room.plain:
            packed += map(_gzip, plain)
            plain = []
    room.bodies = max(0, room.bodies - size)
    room.plain -= 0 if packed else size
    chunks = packed or [_script_safe(chunk) for chunk in plain]
    return _Run(name, clean, rows(clean), list(problems), chunks, not packed)


def _clean(event: Event, secrets: Secrets) -> tuple[Event, str]:
    """The event without secrets, and as a line of JSON that any browser reads."""
    try:
        line = _json(event)
        if secrets.within(line):
            event = secrets.removed(event)
            line = _json(event)
    except (ValueError, TypeError, RecursionError):
        event = json_safe(event)
        line = _json(event)
    return event, line


def _redacted(events: Iterable[Event]) -> list[Event]:
    """The events of one journal in version 2, without secrets."""
    secrets = Secrets()
    return [_clean(event, secrets)[0] for event in upgraded(events)]


def json_safe(event: Event) -> Event:
    """The event, with a description in place of each value that JSON cannot hold (infinity, endless nesting)."""
    fields: Event = {}
    for name, value in event.items():
        try:
            _json(value)
            fields[str(name)] = value
        except (ValueError, TypeError, RecursionError):
            fields[str(name)] = f"[{type(value).__name__} that cannot be shown]"
    return fields


def _json(value: object) -> str:
    return _sendable(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")))


def _script_safe(text: str) -> str:
    """The JSON, escaped so that it cannot end its script element or begin another."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _gzip(text: str) -> str:
    import gzip
    from base64 import b64encode

    return b64encode(gzip.compress(text.encode(), 4, mtime=0)).decode()


_COLUMNS = (
    *("index", "level", "depth", "flags", "max_concurrency", "total_ms", "self_ms"),
    *("all_errors", "all_tokens", "all_cost", "all_unpriced"),
)


def _index(run: _Run) -> str:
    """The columns of a run's rows: all that the tree, the timeline and the charts need, without a body."""
    base = min((row.start for row in run.rows), default=0.0)
    kinds = list(_MARKS)
    names, models = intern(row.name for row in run.rows), intern(row.model for row in run.rows)
    nodes = [str(run.events[row.index].get("node")) if row.index >= 0 else "" for row in run.rows]
    node_numbers = intern(nodes)
    columns: dict[str, list[float]] = {
        "kind": [kinds.index(row.kind) for row in run.rows],
        "name": [names[row.name] for row in run.rows],
        "model": [models[row.model] for row in run.rows],
        "node": [node_numbers[node] for node in nodes],
        "start": [round(row.start - base, 1) for row in run.rows],
        "end": [round(row.end - base, 1) for row in run.rows],
        "cost": [-1 if row.unpriced else round(row.cost, 9) for row in run.rows],
        **{name: [round(getattr(row, name), 9) for row in run.rows] for name in _COLUMNS},
        **{name: [row.usage[place] for row in run.rows] for place, name in enumerate(USAGE)},
    }
    words = {name: "\n".join(getattr(row, name).replace("\n", " ") for row in run.rows) for name in ("text", "outcome")}
    numbers = [event.get("index") for event in run.events]
    lines = None if numbers == list(range(len(numbers))) else numbers  # what a reference names, if lines are missing
    data = {"base": base, "names": list(names), "models": list(models), "lines": lines}
    text = _json({**data, "cols": columns, **words})
    return _script_safe(text) if run.plain else _gzip(text)


def intern(words: Iterable[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


# --- the page: its HTML -----------------------------------------------------------------------------------------------


def render(runs: Sequence[Event] | Sequence[Sequence[Event]], *, bodies: bool = True) -> str:
    """One self-contained page for a run's events, or for a list of such runs, newest first."""
    listed: list[Sequence[Event]] = [runs] if not runs or isinstance(runs[0], dict) else list(runs)  # type: ignore[list-item,arg-type]
    room = PageBudget()
    notes = [] if bodies else [NO_BODIES]
    stripped = [[event if bodies else without_bodies(event) for event in upgraded(events)] for events in listed]
    return "".join(_page([_prepare(_run_name(events), events, notes, room) for events in stripped]))


def _run_name(events: Sequence[Event]) -> str:
    return first_line(next((event["trajectory_id"] for event in events if event.get("trajectory_id")), "run"), 60)


def write(
    paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, bodies: bool = True, diff: bool = False
) -> str:
    """Write one page for these logs, in this order, and return its path; with `diff` the first two are compared."""
    room = PageBudget()
    runs = [_load(path, room, bodies) for path in paths]
    target = os.fspath(out)
    write_file(target, _page(runs, diff=diff and len(runs) > 1))
    return target


def write_file(path: str, pieces: Iterable[str], mode: int = 0o600) -> None:
    """Write a text file atomically, through symbolic links, keeping its mode; `mode` is that of a new file.

    Devices and pipes are written to directly. "-" is stdout.
    """
    import stat
    import tempfile

    if path == "-":
        sys.stdout.writelines(pieces)
        return
    target, owner = os.path.realpath(path), None
    with contextlib.suppress(FileNotFoundError):
        owner = os.stat(path)  # not of the target's name: that of a descriptor's pipe (/dev/fd/63) is none
    if owner is not None and not stat.S_ISREG(owner.st_mode):
        with open(os.open(path, os.O_WRONLY), "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(pieces)
        return
    descriptor, part = tempfile.mkstemp(prefix=".rlm-", dir=os.path.dirname(target))
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(pieces)
        os.chmod(part, stat.S_IMODE(owner.st_mode) if owner else mode)
        if owner is not None and hasattr(os, "chown"):
            with contextlib.suppress(OSError):  # the file becomes ours if it was another user's
                os.chown(part, owner.st_uid, owner.st_gid)
        os.replace(part, target)
    except BaseException:
        os.unlink(part)
        raise


def _load(path: str | os.PathLike[str], room: PageBudget, bodies: bool = True) -> _Run:
    """Prepare a journal for a page, with bodies while the page has room for them."""
    problems: list[str] = []
    events: list[Event] = []
    dropped = 0
    for event, size in _scan(path, problems):
        whole = bodies and (size <= room.bodies or event.get("event") in ("start", "end"))
        dropped += not whole
        events.append(event if whole else without_bodies(event))
    if dropped:
        full = f"the page holds {BODY_LIMIT // 1_000_000} MB of log already"
        problems.append(f"the text of {dropped:,} events is left out: {full}" if bodies else NO_BODIES)
    return _prepare(os.path.basename(os.fspath(path)).removesuffix(".jsonl"), events, problems, room)


def _page(
    runs: Sequence[_Run], *, others: Sequence[JSONObject] = (), diff: bool = False, live: str = ""
) -> Iterator[str]:
    """The pieces of the page: the static part first, the bodies last."""
    metas = [run.meta() for run in runs]
    policy = (
        f"default-src 'none'; script-src '{_sha256(_HEAD_SCRIPT)}' '{_sha256(_LOADER)}' '{_sha256(_SCRIPT)}'; "
        f"style-src '{_sha256(_STYLE)}' '{_sha256(_APP_STYLE)}'; "
        f"img-src data:; base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if live else "")
    )
    title = _html(_shown(first_line(metas[0]["question"], 60))) if metas else "no runs"
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title} · rlm trajectory</title>'
        f'<link rel="icon" href="{_ICON}"><style>{_STYLE}</style><script>{_HEAD_SCRIPT}</script></head>\n<body>'
    )
    head, _, rest = _BODY.partition("%SUMMARY%")
    middle, _, below = rest.partition("%TREE%")
    yield head + (_summary(metas[0]) if metas else _EMPTY) + middle
    yield (_html_tree(runs[0].rows[:STATIC_ROWS], len(runs[0].rows) - STATIC_ROWS) if runs else "") + below
    data = {
        **_SHARED,
        "staticRows": STATIC_ROWS,
        "runs": [*metas, *others],
        "diff": {"a": 0, "b": 1} if diff else None,
        "live": live,
    }
    yield _block("data", _script_safe(_json(data)), plain=True)
    for number, run in enumerate(runs[:1]):
        yield _block(f"r{number}", _index(run), run.plain)
    yield _block("program", _program(), plain=False) + f"<script>{_LOADER}</script>\n"
    for number, run in enumerate(runs):
        if number:
            yield _block(f"r{number}", _index(run), run.plain)
        for place, chunk in enumerate(run.chunks):
            yield _block(f"r{number}c{place}", chunk, run.plain)
    yield "</body></html>\n"


def _block(name: str, text: str, plain: bool) -> str:
    return f'<script type="application/{"json" if plain else "gzip"}" id="{name}">{text}</script>\n'


def _program() -> str:
    """The page's style and script, compressed and encoded in characters that are safe in HTML."""
    import gzip
    from base64 import b85encode

    packed = gzip.compress(f"{_APP_STYLE}\0{_SCRIPT}".encode(), 9, mtime=0)
    return b85encode(packed).decode().replace("<", ",")


def _sha256(text: str) -> str:
    from base64 import b64encode

    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _summary(meta: JSONObject) -> str:
    cards = "".join(
        f'<div><dt>{title}</dt><dd>{_html(value)}</dd><dd class="note">{_html(note)}'
        f"{''.join(f'<span>{_html(words)}</span>' for words, _ in used)}</dd></div>"
        for title, value, note, used in meta["cards"]
    )
    problems = "".join(f"<li>{_html(_shown(problem))}</li>" for problem in meta["problems"])
    why = _dict(meta["failure"])
    lines = (why.get(name) for name in ("type", "message", "hint", "command"))
    failure = "".join(f"<p>{_html(_shown(line))}</p>" for line in lines if line)
    question, answer, status = (_html(_shown(meta[name])) for name in ("question", "answer", "status"))
    return (
        f'<div class="qa"><div><h2>Question</h2><div id="question" class="prose">{question}</div></div>'
        f'<div><h2>Answer <span id="status" class="badge {status}">{status}</span></h2>{failure}'
        f'<div id="answer" class="prose">{answer}</div></div></div>'
        f'<dl id="cards" class="cards">{cards}</dl><ul id="problems" class="problems">{problems}</ul>'
    )


_EMPTY = '<p class="empty">There is no run here yet.</p>'
# Constants that the page's script shares with this file.
_FLAGS = (ERROR, WARNING, RESTORED, FINAL, ESTIMATED, RETRIED)
_SHARED = {"kinds": list(_MARKS), "untimed": UNTIMED, "usage": USAGE, "flags": _FLAGS, "chunk": CHUNK, "tie": _TIE}


# --- exports: a table, a Chrome trace, training samples, a notebook, OpenTelemetry spans ------------------------------

_CSV_COLUMNS = (
    *("event", "level", "depth", "kind", "name", "text", "outcome", "model", "start_ms", "end_ms", "self_ms"),
    *("input", "output", "cached", "reasoning", "cost_usd"),
    *("total_tokens", "total_cost_usd", "unpriced_calls", "error"),
)
_LANES = 64  # rows that overlap are drawn below each other in a Chrome trace, up to this many


def _base_of(listed: Sequence[Row]) -> float:
    """When a run began, in milliseconds since 1970."""
    return min((row.start for row in listed if row.start), default=0.0)


def csv_table(events: Sequence[Event]) -> Iterator[str]:
    """The rows of the tree as lines of CSV (RFC 4180), with a header: what the page's button writes.

    Times are milliseconds since the beginning of the run. `cost_usd` is "?" where the price is unknown. Text that a
    spreadsheet would take for a formula begins with an apostrophe.
    """
    listed = rows(events)
    base = _base_of(listed)

    def cell(value: object) -> str:
        if isinstance(value, (int, float)):
            return format(value, ".12g")
        text = f"'{value}" if str(value)[:1] in tuple("=+-@\t\r") else str(value)
        return '"' + text.replace('"', '""') + '"'

    yield ",".join(_CSV_COLUMNS) + "\r\n"
    for row in listed:
        read, written, cached, _, reasoning = row.usage
        times = (round(row.start - base, 1), round(row.end - base, 1), round(row.self_ms, 1))
        own_cost = "?" if row.unpriced else row.cost
        totals = (row.all_tokens, row.all_cost, row.all_unpriced, int(row.error))
        values = (row.index, row.level, row.depth, row.kind, row.name, row.text, row.outcome, row.model, *times)
        yield ",".join(map(cell, (*values, read, written, cached, reasoning, own_cost, *totals))) + "\r\n"


def chrome_trace(events: Sequence[Event]) -> JSONObject:
    """The run in the Trace Event Format (complete events, microseconds), for Perfetto and chrome://tracing."""
    listed = rows(events)
    base = _base_of(listed)
    lanes: list[list[float]] = []
    spans = []
    for row in sorted(listed, key=lambda row: (row.start, -row.end)):
        args = {"text": row.text, "tokens": row.all_tokens, "cost_usd": row.all_cost, "event": row.index}
        span = {"name": row.name, "cat": row.kind, "ph": "X", "pid": 1, "tid": _lane(lanes, row)}
        span.update(ts=round((row.start - base) * 1000), dur=round(max(0.0, row.end - row.start) * 1000))
        spans.append({**span, "args": {**args, "error": row.error}})
    run = next((str(event.get("trajectory_id")) for event in events), "")
    return {"displayTimeUnit": "ms", "otherData": {"run": run}, "traceEvents": spans}


def _lane(lanes: list[list[float]], row: Row) -> int:
    """The first lane in which the row overlaps nothing but rows that enclose it; each lane holds the ends of those."""
    for number, ends in enumerate(lanes):
        while ends and ends[-1] <= row.start:
            ends.pop()
        if not ends or row.end <= ends[-1] or number == _LANES - 1:
            ends.append(row.end)
            return number
    lanes.append([row.end])
    return len(lanes) - 1


class History:
    """The messages of each node as they were sent to its model, after compaction and truncation.

    Add every event of one journal, in order.
    """

    def __init__(self) -> None:
        self._lines: dict[int, Event] = {}
        self._nodes: dict[str, _Conversation] = {}

    def add(self, event: Event) -> list[Event]:
        """The messages that a turn was sent, if the event is that turn's call; else []."""
        if event.get("event") in ("start", "tool", "compact"):
            self._lines |= _by_index([event])
        node = self._nodes.setdefault(str(event.get("node")), _Conversation())
        if event.get("event") == "compact":
            node.compact(event)
        elif event.get("event") == "call" and event.get("kind") == "turn":
            node.add_new(event, self._lines)
            sent = list(node.messages)
            node.messages.append(_reply_message(event))
            return sent
        return []


class _Conversation:
    """One node's messages. Keys with an underscore are notes for this class, not part of a message."""

    def __init__(self) -> None:
        self.messages: list[Event] = []
        self.stubs: list[object] = []  # places whose outputs become stubs before the next turn
        self.restarted = False

    def add_new(self, event: Event, lines: Mapping[int, Event]) -> None:
        if event.get("system") and self.messages:
            self.messages[0] = {"role": "system", "content": event["system"]}
        for message in _dicts(event.get("prompt")):
            sources = [line for _, line in _named_by(message, lines)]
            names = [line.get("event") for line in sources]
            if "compact" in names and any("_summary" in known for known in self.messages):
                continue
            self._mend_reply(message)
            bare = {"content": None, **_without(_with_content(message, lines), "replaces")}
            bare["_cells"] = [line["cell"] for line in sources if line.get("cell")]
            bare["_is_prompt"] = "start" in names
            bare["_is_restart"] = self.restarted and not sources
            self.messages.append(bare)
        for place in self.stubs:
            if isinstance(place, int) and 0 <= place < len(self.messages):
                self.messages[place] = _stub(self.messages[place])
        self.stubs, self.restarted = [], False

    def _mend_reply(self, message: Event) -> None:
        """Apply what a new message implies for the reply before it: that it was replaced, or a tool's name."""
        newest = next((known for known in reversed(self.messages) if known.get("role") == "assistant"), {})
        if message.get("replaces") and self.messages and self.messages[-1] is newest:
            self.messages.pop()
        for call in _dicts(newest.get("tool_calls")):
            if message.get("role") == "tool" and call.get("id") == message.get("tool_call_id"):
                call["name"] = message.get("name") or call.get("name")
        if isinstance(message.get("tool_call_ids"), list) and newest and not newest.get("tool_calls"):
            newest["content"] = _without_thinking(_text(newest["content"])).rstrip()

    def compact(self, event: Event) -> None:
        if event.get("restart"):
            self._leave_out({cell for cell in _list(event.get("cells")) if isinstance(cell, int)})
        elif event.get("summary"):
            newest = [message for message in self.messages[2:] if message.get("_is_prompt")][-1:]
            text = f"[the work so far, summed up]\n{event['summary']}"
            self.messages[2:] = [{"role": "user", "content": text, "_summary": True}, *newest]
        else:
            self.stubs = _list(event.get("places"))

    def _leave_out(self, cells: set[int]) -> None:
        self.messages = self.messages[:-1]  # the newest reply: its results are not among the messages yet
        while len(self.messages) > 2 and cells.intersection(self.messages[-1].get("_cells", ())):
            del self.messages[-2:]
        if self.messages and self.messages[-1].get("_is_restart"):
            self.messages.pop()
        self.restarted = True


def _reply_message(event: Event) -> Event:
    """A turn's reply as a message, without the output that the model invented and rlm dropped."""
    text, dropped = _text(event.get("response")), int(_number(event.get("dropped")))
    message: Event = {"role": "assistant", "content": text}
    if dropped:
        message["content"] = _without_thinking(text).rstrip()[:-dropped]
    if calls := _dicts(event.get("tool_calls")):
        message["tool_calls"] = [dict(call) for call in calls]
    return message


def _without_thinking(text: str) -> str:
    return re.sub(r"(?s)\A\s*<think(?:ing)?>.*?</think(?:ing)?>", "", text, count=1)


def _stub(message: Event) -> Event:
    kept = " and ".join(f"_out[{cell}]" for cell in message.get("_cells", ()))
    where = f"it is in {kept}" if kept else "call the tool again if you need it"
    return {**message, "content": f"[{len(_text(message['content'])):,} characters of output stood here; {where}]"}


def training_samples(events: Iterable[Event]) -> Iterator[JSONObject]:
    """Each turn as OpenAI's chat format has it: {"messages": what was sent and the reply, "tools": as offered}."""
    history, schemas, plain = History(), dict[str, object](), set[str]()
    for event in _redacted(events):
        sent, node = history.add(event), str(event.get("node"))
        if event.get("event") == "start":
            schemas[node] = event.get("tool_schemas")
            plain |= {node} if event.get("protocol") == "plain" else set()
        if event.get("system"):  # of a call: the loop continues after a plain call, or in another protocol
            plain -= {node} if event.get("event") == "call" else set()
        if sent:
            messages = [_openai_message(message) for message in [*sent, _reply_message(event)]]
            without = event.get("protocol") == "text" or event.get("forced") or node in plain
            offered = None if without else schemas.get(node)
            tools = [{"type": "function", "function": tool} for tool in _dicts(offered)]
            yield {"messages": messages, **({"tools": tools} if tools else {})}


def _openai_message(message: Event) -> JSONObject:
    role, content = message.get("role"), message.get("content")
    if role == "tool":
        return {"role": role, "tool_call_id": message.get("tool_call_id"), "content": _plain_text(content)}
    has_image = any(part.get("type") != "text" for part in _dicts(content))
    made = {"role": role, "content": content if role == "user" and has_image else _plain_text(content)}
    if calls := _dicts(message.get("tool_calls")):
        made["tool_calls"] = [_openai_call(call) for call in calls]
    return made


def _openai_call(call: Event) -> JSONObject:
    arguments = call.get("arguments")
    asked = arguments if isinstance(arguments, dict) else {"unreadable": str(arguments)}
    function = {"name": call.get("name"), "arguments": json.dumps(asked, ensure_ascii=False)}
    return {"id": call.get("id"), "type": "function", "function": function}


def _plain_text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in _dicts(content))
    return _text(content)


# - a notebook


def notebook(events: Sequence[Event], context: str = "") -> JSONObject:
    """A run as a Jupyter notebook (nbformat 4.5): its cells with their outputs, sub-calls and prose between them.

    `context` is the file that the run's input was saved to. Nothing is run.
    """
    clean, cells = _redacted(events), list[JSONObject]()
    shown = _under_cells(clean)
    for index, event in enumerate(clean):
        kind, root = _kind(event), not _number(event.get("depth"))
        if kind == "node" and root:
            run, model = (first_line(event.get(name), 60) for name in ("trajectory_id", "model"))
            cells += [_markdown(f"# {_text(event.get('prompt'))}\n\n{_NOTEBOOK_NOTE.format(run, model)}")]
            cells += _context_cell(_dict(event.get("context")), context)
        elif kind == "turn" and root:
            prose = _without_thinking(_text(event.get("response"))).partition("```")[0].strip()
            cells += [_markdown(prose)] if prose else []
        elif kind == "cell" and root:
            cells += [_code_cell(event), *([_markdown_cell("\n\n".join(shown[index]))] if index in shown else [])]
        elif kind == "tool" and root and event.get("from_cell") is None:
            cells += [_markdown_cell(_exchange(_tool_name(event), event.get("arguments"), _outcome(event)))]
        elif kind == "end" and root:
            said = _text(event.get("response")) or _text(_dict(event.get("error")).get("message"))
            cells += [_markdown(f"## {first_line(event.get('status'), 20)}\n\n{said}")]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


_NOTEBOOK_NOTE = (
    "Run `{}` with `{}`. The outputs below are those of the run. Code that calls `llm_query`, `rlm_query` or a tool "
    "runs only inside rlm (`rlm replay`)."
)


def _under_cells(events: Sequence[Event]) -> dict[int, list[str]]:
    """The calls of models and tools from each of the root's cells, as Markdown, by the cell's index in the journal."""
    parents, found = _parents(events), dict[int, list[str]]()
    owners = {_TOP: -1, _LOST: -1}  # event -> the root's cell that it is below
    for index, event in enumerate(events):
        path, at = [], index
        while at not in owners and not (_kind(events[at]) == "cell" and not _number(events[at].get("depth"))):
            path.append(at)
            at = parents[at]
        cell = owners.get(at, at)
        owners |= dict.fromkeys(path, cell)
        row, kind = _row(index, event), _kind(event)
        if cell < 0 or cell == index or kind not in ("sub", "node", "cell", "tool", "end"):
            continue
        asked = event.get("code") or _last_user_text(event.get("prompt")) or event.get("arguments")
        came = event.get("response") if kind in ("sub", "end") else cell_text(event) if kind == "cell" else None
        name = f"child: {row.name}" if kind in ("cell", "end") else row.name
        found.setdefault(cell, []).append(_exchange(name, asked, came or row.outcome))
    return found


def _exchange(name: str, asked: object, answer: object) -> str:
    """A request and its result in a folded block, fenced so that neither is read as Markdown."""
    parts = [f"<details><summary>{_html(_visible(name))}</summary>"]
    for text in filter(None, (_text(asked).strip(), _text(answer).strip())):
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        parts.append(f"{fence}text\n{text}\n{fence}")
    return "\n\n".join([*parts, "</details>"])


def _context_cell(about: Event, saved: str) -> list[JSONObject]:
    """The cell that loads the variable `context` from the saved copy, or from the original files."""
    source = about.get("source")
    load = f"with open({saved!r}, 'rb') as file:\n    saved = zlib.decompress(file.read())[1:]\n"
    if saved and about.get("type") == "str":
        code = f"import zlib\n\n{load}context = saved.decode('utf-8', 'surrogatepass')"
    elif saved:
        code = f"import json\nimport zlib\n\nimport rlm_sandbox\n\n{load}"
        code += "context = rlm_sandbox.unpack(json.loads(saved))"
    elif isinstance(source, dict) and source.get("paths"):
        code = f"import rlm\n\ncontext = rlm.read_context({source['paths']!r}).value"
    elif about:
        code = "context = ...  # the input of this run was not saved: put it here"
    else:
        code = "context = None  # this run had no input"
    return [{"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": code}]


def _markdown(text: str) -> JSONObject:
    """A cell of prose that loads nothing over the network and holds no HTML."""
    return _markdown_cell(re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text).replace("![", "!&#91;"))


def _markdown_cell(source: str) -> JSONObject:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _code_cell(event: Event) -> JSONObject:
    count = int(_number(event.get("cell"))) or None
    outputs: list[JSONObject] = []
    if stdout := _text(event.get("stdout")):
        outputs.append({"output_type": "stream", "name": "stdout", "text": stdout})
    images = event.get("images")
    for image in _list(images):
        if found := re.fullmatch(r"data:(image/(?:png|jpeg|gif|webp));base64,([A-Za-z0-9+/=\s]+)", str(image)):
            outputs.append({"output_type": "display_data", "data": {found[1]: found[2]}, "metadata": {}})
    if lost := images.count(None) if isinstance(images, list) else _image_count(event):
        note = f"[images made: {lost}]\n"
        outputs.append({"output_type": "stream", "name": "stdout", "text": note})
    if value := _text(event.get("value")):
        data = {"text/plain": value}
        outputs.append({"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": count})
    if traceback := _traceback(event):
        message = _text(_dict(event.get("error")).get("message"))
        said = {"ename": _error_type(event.get("error")), "evalue": message, "traceback": traceback.split("\n")}
        outputs.append({"output_type": "error", **said})
    code = _text(event.get("code"))
    return {"cell_type": "code", "execution_count": count, "metadata": {}, "outputs": outputs, "source": code}


# - OpenTelemetry, by the GenAI semantic conventions

_PROVIDERS = {  # as the conventions name them; others keep our names
    "azure": "azure.ai.openai", "azure_ai": "azure.ai.inference", "bedrock": "aws.bedrock", "google": "gcp.gemini",
    "mistral": "mistral_ai", "moonshotai": "moonshot_ai", "xai": "x_ai",
}  # fmt: skip
_USAGE_ATTRIBUTES = ("input_tokens", "output_tokens", "cache_read.input_tokens", "cache_creation.input_tokens")
_CLIENT = 3  # the kind of a span that calls another program; 1 is one that does not


def spans(events: Iterable[Event], *, bodies: bool = False) -> list[JSONObject]:
    """A run's events as OTLP/JSON spans; prompts, replies, code and outputs are in them only with `bodies`."""
    trace = Trace(bodies)
    made = [span for event in upgraded(events) for span in trace.add(event)]
    return made + trace.close()


class Trace:
    """The spans of one run, made from its events in their order.

    Ids depend on the journal alone: a run has the same ones live, resumed elsewhere, or exported later.
    """

    def __init__(self, bodies: bool = False) -> None:
        self.bodies = bodies
        self.history, self.secrets = History(), Secrets()
        self.open: dict[str, JSONObject] = {}  # node -> data of its span
        self.about: dict[str, Event] = {}  # node -> its newest `start`
        self.name = self.resumed = ""
        self.now = 0  # nanoseconds

    def add(self, event: Event) -> list[JSONObject]:
        """The spans that end with this event."""
        event = _clean(event, self.secrets)[0] if self.bodies else _span_metrics(event)
        sent = self.history.add(event) if self.bodies else []
        kind, node, before = event.get("event"), str(event.get("node", "n0")), self.now
        self.name = self.name or first_line(event.get("trajectory_id"), 80)
        if (moment := parse_timestamp(event.get("timestamp"))) is not None:
            self.now = round(moment * 1000) * 1000  # a float holds microseconds
        if kind == "start":
            cut_short = self._close(node)
            self.about[node] = event
            self._agent(event, str(event.get("timestamp")))
            return cut_short
        if kind == "resume" and "divergence" not in event:
            self.resumed = str(event.get("timestamp"))
            return self.close(before)
        if kind == "end":
            self._agent(event)
            ended = self._close(node, end=event)
            return ended if _number(event.get("depth")) else ended + self.close()
        if kind in ("call", "interrupted"):
            return [self._chat(event, sent)]
        if kind == "tool":
            return [self._tool(event)]
        if kind in ("compact", "resume"):
            self._agent(event)["events"] += [{"timeUnixNano": str(self.now), "name": f"rlm.{kind}"}]
        return []

    def close(self, now: int | None = None) -> list[JSONObject]:
        """Close the nodes that have not ended; their spans, as interrupted."""
        return [span for node in list(self.open)[::-1] for span in self._close(node, now)]

    def _agent(self, event: Event, mark: str = "") -> JSONObject:
        """The node's open span; a new one where it begins, and where a resumed run goes on in it."""
        node = str(event.get("node", "n0"))
        if node not in self.open:
            parent, about = event.get("parent_call_id"), self.about.get(node, self.about.get("n0", {}))
            provider = first_line(about.get("backend"), 60)
            self.open[node] = {
                "id": self._id("agent", node, mark or self.resumed),
                "parent": "" if parent is None else self._id("call", parent),
                "start": self.now - round(_length_ms(event) * 1e6),
                "events": [],
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": "rlm",
                "gen_ai.agent.version": about.get("version"),
                "gen_ai.provider.name": _PROVIDERS.get(provider, provider) or "unknown",
                "gen_ai.request.model": first_line(about.get("model"), 80) or None,
                "gen_ai.conversation.id": self.name,
                "gen_ai.input.messages": self._messages([{"role": "user", "content": about.get("prompt")}]),
                "rlm.node": node,
                "rlm.depth": int(_number(event.get("depth"))),
            }
        return self.open[node]

    def _chat(self, event: Event, sent: list[Event]) -> JSONObject:
        """The span of a call: a turn's, or a sub-call's, whose model may be another."""
        is_sub, failed = event.get("kind") == "sub", event.get("event") == "interrupted"
        about = self.about.get(str(event.get("node")), {})
        agent = self._agent({**event, "parent_call_id": None} if is_sub else event)
        model = answered = first_line(event.get("model"), 80)
        asked = [first_line(about.get(name), 80) for name in (("sub_model", "model") if is_sub else ("model",))]
        model = next((name for name in asked if name and (answered.startswith(name) or not is_sub)), model)
        usage, reason = _dict(event.get("token_usage")), event.get("stop_reason")
        values = {name: agent[name] for name in ("gen_ai.provider.name", "gen_ai.conversation.id")} | {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": model or None,
            "gen_ai.response.model": answered or None,
            "gen_ai.response.finish_reasons": [str(reason)] if reason else None,
            **{f"gen_ai.usage.{name}": usage.get(key) for key, name in zip(USAGE, _USAGE_ATTRIBUTES)},
            "gen_ai.usage.reasoning.output_tokens": usage.get("reasoning"),
            "rlm.kind": event.get("kind"),
            "rlm.cost_usd": event.get("cost_usd"),
            "rlm.attempts": event.get("attempts"),
            "error.type": "interrupted" if failed else None,
        }
        finish = {"finish_reason": {"tool_calls": "tool_call"}.get(str(reason), reason or "stop")}
        reply = [] if failed else [{**_reply_message({**event, "dropped": 0}), **finish}]
        values["gen_ai.input.messages"] = self._messages(sent or _dicts(event.get("prompt")))
        values["gen_ai.output.messages"] = self._messages(reply)
        name = ("failed", event.get("timestamp"), event.get("key")) if failed else ("call", event.get("call_id"))
        parent = self._id("call", event.get("parent_call_id")) if is_sub else agent["id"]
        return self._span(f"chat {model}".strip(), (self._id(*name), parent), values, event, kind=_CLIENT)

    def _tool(self, event: Event) -> JSONObject:
        """The span of a cell or a tool. Its parent is the turn that called it, as in the journal."""
        agent, is_cell = self._agent(event), "code" in event
        result = next(iter(_dicts(event.get("tool_results"))), {})
        name = "execute_code" if is_cell else _tool_name(event)
        status = first_line(event.get("status"), 20)
        error = _error_type(event.get("error")) if status in ("", "ok", "error") else status
        values = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": name,
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": first_line(result.get("id"), 200) or None,
            "rlm.cell": event.get("cell"),
            "error.type": error if _flags("cell", event) & ERROR else None,
        }
        if self.bodies:
            asked = {"code": event["code"]} if is_cell else event.get("arguments")
            values["gen_ai.tool.call.arguments"] = _json(asked) if asked is not None else None
            values["gen_ai.tool.call.result"] = cell_text(event) if is_cell else _text(result.get("content"))
        own = self._id("tool", agent["id"], event.get("cell"), event.get("tool_calls"))
        parent = agent["id"] if event.get("call_id") is None else self._id("call", event["call_id"])
        return self._span(f"execute_tool {name}", (own, parent), values, event)

    def _close(self, node: str, now: int | None = None, end: Event | None = None) -> list[JSONObject]:
        """The span of a node, if it is open; without its `end` it was interrupted."""
        if (agent := self.open.pop(node, None)) is None:
            return []
        own, parent, start, marks = (agent.pop(name) for name in ("id", "parent", "start", "events"))
        event = {"status": "interrupted"} if end is None else end
        status, sums = first_line(event.get("status"), 20), _dict(event.get("totals"))
        agent |= {"rlm.status": status, **{f"rlm.{name}": sums.get(name) for name in ("calls", "tokens", "cost_usd")}}
        agent["error.type"] = None if status == "answered" else _error_type(event.get("error") or {"type": status})
        if end is not None:
            reply = {"role": "assistant", "content": end.get("response"), "finish_reason": "stop"}
            agent["gen_ai.output.messages"] = self._messages([reply])
        span = self._span("invoke_agent rlm", (own, parent), agent, event, times=(start, now or self.now))
        return [{**span, "events": marks} if marks else span]

    def _span(
        self, name: str, ids: tuple[str, str], values: Event, event: Event, *, kind: int = 1, times: Sequence[int] = ()
    ) -> JSONObject:
        start, end = times or (self.now - round(_length_ms(event) * 1e6), self.now)
        error = event.get("error")
        why = _text(event.get("traceback") or _dict(error).get("message") or error)[-2000:] if self.bodies else ""
        status = {"code": 2, **({"message": _sendable(why)} if why else {})} if values.get("error.type") else {}
        return {
            "traceId": _hash(self.name)[:32],
            "spanId": ids[0],
            **({"parentSpanId": ids[1]} if ids[1] else {}),
            "name": _sendable(name),
            "kind": kind,
            "startTimeUnixNano": str(max(0, start)),
            "endTimeUnixNano": str(max(0, start, end)),
            "attributes": _attributes(values),
            "status": status,
        }

    def _id(self, *parts: object) -> str:
        return _hash(self.name, *parts)[:16]

    def _messages(self, messages: Iterable[Event]) -> str | None:
        """Messages in the conventions' form, as JSON text, because few collectors accept structured attributes.

        None without bodies, and if there are no messages."""
        made = []
        for message in messages if self.bodies else ():
            text = _plain_text(message.get("content"))
            parts: list[JSONObject] = [{"type": "text", "content": text}] if text else []
            if message.get("role") == "tool":
                parts = [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": text}]
            for call in _dicts(message.get("tool_calls")):
                parts.append({"type": "tool_call", **{name: call.get(name) for name in ("id", "name", "arguments")}})
            reason = {"finish_reason": message["finish_reason"]} if "finish_reason" in message else {}
            made.append({"role": str(message.get("role")), "parts": parts, **reason})
        return _json(made) if made else None


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(["rlm", *map(str, parts)]).encode()).hexdigest()


def _span_metrics(event: Event) -> Event:
    """The event without texts, for spans without bodies."""
    bare = without_bodies(event)
    return {**bare, "error": {"type": bare["error"]}} if "error" in bare else bare


def _attributes(values: Mapping[str, object]) -> list[JSONObject]:
    """Attributes in OTLP/JSON form; those that are None are left out."""

    def wrapped(value: object) -> JSONObject:
        if isinstance(value, list):
            return {"arrayValue": {"values": [wrapped(item) for item in value]}}
        if _number_or_none(value) is not None:
            return {"intValue": str(value)} if isinstance(value, int) else {"doubleValue": value}
        return {"stringValue": _sendable(_text(value))}

    return [{"key": name, "value": wrapped(value)} for name, value in values.items() if value is not None]


def _sendable(text: str) -> str:
    """The text with lone surrogates as \\udXXX: neither UTF-8 nor protobuf has them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def otlp(made: Sequence[JSONObject]) -> JSONObject:
    """Spans as the body of an OTLP/HTTP JSON request, with the resource that OpenTelemetry's variables describe."""
    resource = {"service.name": "rlm", **_named_values("OTEL_RESOURCE_ATTRIBUTES")}
    resource["service.name"] = os.environ.get("OTEL_SERVICE_NAME") or resource["service.name"]
    scope = {"scope": {"name": "rlm"}, "spans": list(made)}
    return {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]}


def _named_values(variable: str) -> dict[str, str]:
    """The pairs of a variable such as "key=value,other=value", percent-encoded."""
    from urllib.parse import unquote

    pairs = (pair.partition("=") for pair in os.environ.get(variable, "").split(",") if "=" in pair)
    return {unquote(name).strip(): unquote(value).strip() for name, _, value in pairs}


class OTel:
    """An `on_event` that sends a run's spans to an OpenTelemetry collector while it runs: `RLM(on_event=OTel(url))`.

    It never fails a run, and delays its end for at most `timeout` seconds, while the last spans are sent. A fault of
    the collector is reported once, on stderr. Prompts, replies, code and outputs are sent only with `bodies`.
    The endpoint is the argument or OTEL_EXPORTER_OTLP_ENDPOINT; /v1/traces is added to a base address; ValueError if it
    is not a URL. Headers from the environment go only to the endpoint it names, or to any if it names none.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        bodies: bool = False,
        timeout: float = 5.0,
    ) -> None:
        from urllib.parse import unquote, urlsplit

        own = os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
        parts = urlsplit(endpoint or own)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"no address of a collector: {endpoint or own!r}" if endpoint or own else "no endpoint")
        host, path = parts.netloc.rpartition("@")[2], parts.path.rstrip("/")
        self.shown = f"{parts.scheme}://{host}"
        path = path if path.endswith("/v1/traces") else path + "/v1/traces"
        self.url = parts._replace(path=path, netloc=host).geturl()
        self.login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
        is_named = not own or urlsplit(own)[:2] == parts[:2]
        self.headers = {**(_named_values("OTEL_EXPORTER_OTLP_HEADERS") if is_named else {}), **(headers or {})}
        self.bodies, self.timeout = bodies, timeout
        self._again = functools.partial(OTel, endpoint, headers=headers, bodies=bodies, timeout=timeout)
        self._process, self._lock = 0, threading.Lock()  # the process that has a thread for the queue
        self._answers, self._complained = True, False

    def __reduce__(self) -> tuple[object, ...]:
        return self._again, ()

    def __call__(self, event: Event) -> None:
        if "v" not in event:
            return  # a piece of text, not an event of the journal
        import queue

        with self._lock:
            if self._process != os.getpid():  # at the first event, and after a fork
                self._process, self._queue = os.getpid(), queue.Queue[Any](_QUEUE)
                threading.Thread(target=self._work, args=(self._queue,), name="rlm-otel", daemon=True).start()
        is_end = event.get("event") == "end" and not event.get("depth")
        done = threading.Event() if is_end else None
        try:
            self._queue.put_nowait((event if self.bodies else _span_metrics(event), done))
        except queue.Full:
            self._complain("events come faster than they can be sent")
        else:
            if done and self._answers:
                done.wait(self.timeout)

    def _work(self, events: Any) -> None:
        """Make spans from the events and send them: in batches, and all that are left at a run's end."""
        import queue

        traces: dict[str, Trace] = {}
        made: list[JSONObject] = []
        while True:
            done = event = None
            try:
                with contextlib.suppress(queue.Empty):
                    event, done = events.get(timeout=1.0 if made else None)
                    made += self._add(traces, event)
                if made and (done or event is None or len(made) >= _BATCH):
                    batch, made = made, []
                    self.send(batch)
                    self._answers = True
            except Exception as error:
                self._answers = False
                self._complain(str(error) or type(error).__name__)
            if done:
                done.set()

    def _add(self, traces: dict[str, Trace], event: Event) -> list[JSONObject]:
        ended = [name for name, trace in traces.items() if not trace.open]
        for name in ended[:-32]:  # a conversation continues the trace of its earlier prompts
            del traces[name]
        if (name := str(event.get("trajectory_id"))) not in traces:
            traces[name] = Trace(self.bodies)
        return traces[name].add(event)

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            print(f"rlm: OpenTelemetry: {what}; later: rlm export ID --otel", file=sys.stderr)

    def send(self, made: Sequence[JSONObject]) -> None:
        """Send spans within the timeout, in bodies that collectors accept; OSError if some were not accepted."""
        until, batch, size = time.monotonic() + self.timeout, list[JSONObject](), 0
        for span in made:
            length = len(_json(span))
            if batch and (len(batch) >= _BATCH or size + length > 2 << 20):
                self._post(batch, until)
                batch, size = [], 0
            batch.append(span)
            size += length
        self._post(batch, until)

    def _post(self, batch: list[JSONObject], until: float) -> None:
        """Send one request, repeated if the collector asks for that and time is left."""
        import requests

        headers, pause = {**self.headers, "Content-Type": "application/json"}, 0.25
        how: dict[str, Any] = {"data": _json(otlp(batch)).encode(), "headers": headers, "allow_redirects": False}
        how["auth"] = self.login or (lambda request: request)  # or a login from ~/.netrc would replace a header
        while True:
            try:
                timeout = max(0.05, until - time.monotonic())
                with requests.post(self.url, timeout=timeout, stream=True, **how) as answer:
                    content = next(answer.iter_content(1 << 16), b"")
            except requests.RequestException as error:
                raise OSError(f"{self.shown} does not answer: {_root_cause(error)}") from None
            asked = answer.headers.get("Retry-After", "")
            pause = int(asked) if re.fullmatch(r"\d{1,6}", asked) else 2 * pause
            if answer.status_code not in (429, 502, 503, 504) or time.monotonic() + pause > until:
                break
            time.sleep(pause)
        if answer.status_code // 100 != 2:
            raise OSError(f"{self.shown} answers with HTTP status {answer.status_code}")
        with contextlib.suppress(ValueError):  # an empty body also means that all were accepted
            partial = _dict(_dict(from_json(content)).get("partialSuccess"))
            if (count := first_line(partial.get("rejectedSpans", 0), 20)) != "0":
                raise OSError(f"{self.shown} rejects {count} spans: {first_line(partial.get('errorMessage'), 200)}")


def _root_cause(error: BaseException) -> str:
    """The innermost cause of an error of `requests`, in a word or two."""
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return getattr(error, "strerror", None) or type(error).__name__


_BATCH, _QUEUE = 512, 2_000


# --- commands ---------------------------------------------------------------------------------------------------------


def visualize(
    ids: Sequence[str] = (),
    *,
    dir: str | os.PathLike[str] = "./logs",
    out: str | os.PathLike[str] = "trajectory.html",
    open_browser: bool = False,
    port: int | None = None,
    diff: str | None = None,
    bodies: bool = True,
) -> str:
    """Write the page for these runs (all of the folder without ids) and return its path.

    With a port the folder is served on loopback until Ctrl-C instead, re-made as logs change, and the address is
    returned. ValueError names an unknown id, or says that the folder has no log.
    """
    if port is not None:
        return serve(dir, port, open_browser=open_browser, bodies=bodies)
    paths = [find_log(dir, name) for name in ids] or [run["path"] for run in list_runs(dir)]
    if diff is not None:
        paths = [*paths[:1], find_log(dir, diff), *paths[1:]]
    if not paths:
        raise ValueError(f"no logs in {os.fspath(dir)!r}")
    target = write(paths, out, bodies=bodies, diff=diff is not None)
    if open_browser and target != "-":
        _open(os.path.abspath(target))
    return target


def _open(target: str) -> None:
    import webbrowser
    from urllib.request import pathname2url

    webbrowser.open(target if target.startswith("http") else "file://" + pathname2url(target))


def serve(dir: str | os.PathLike[str], port: int, *, open_browser: bool = False, bodies: bool = True) -> str:
    """Serve a folder's runs on 127.0.0.1 until Ctrl-C; a page follows its run as the log grows."""
    server = make_server(dir, port, bodies=bodies)
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    print(f"serving {os.fspath(dir)} at {address} (Ctrl-C ends)", file=sys.stderr)
    if open_browser:
        _open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        server.server_close()
    return address


def make_server(dir: str | os.PathLike[str], port: int, *, bodies: bool = True) -> ThreadingHTTPServer:
    """The server that `serve` runs: loopback only, and only for requests that name loopback as their host."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    pages = _Pages(dir, bodies)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, kind, body = pages.respond(self.path, self.headers.get("Host", ""))
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Write no log of requests."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


class _Pages:
    """The folder's runs as pages. A page is rendered again only if its journal or the list of journals has changed."""

    def __init__(self, dir: str | os.PathLike[str], bodies: bool) -> None:
        self.dir = dir
        self.bodies = bodies
        self.lock = threading.Lock()
        self.cache: tuple[str, bytes] = ("", b"")

    def respond(self, target: str, host: str) -> tuple[int, str, bytes]:
        """Status, media type and body for a request; a foreign host name means DNS rebinding."""
        if host.partition(":")[0] not in ("127.0.0.1", "localhost"):
            return 403, "text/plain", b"only by a loopback address\n"
        try:
            return self.found(target)
        except OSError:  # the journal may have been deleted
            return 404, "text/plain", b"not found\n"

    def found(self, target: str) -> tuple[int, str, bytes]:
        """The response to an address; FileNotFoundError for an unknown one."""
        from urllib.parse import parse_qs, urlsplit

        try:
            parts = urlsplit(target)
        except ValueError:
            raise FileNotFoundError(target) from None
        names = [name.removesuffix(".jsonl") for name in _log_names(self.dir)]
        # As a folder hands it out, a name that is not UTF-8 has surrogates for its bytes.
        chosen = parse_qs(parts.query, errors="surrogateescape").get("run", names[:1])[:2]
        if parts.path not in ("/", "/version") or not set(chosen) <= set(names):
            raise FileNotFoundError(target)
        status = [os.stat(os.path.join(self.dir, name + ".jsonl")) for name in chosen]
        facts = [sorted(names), chosen, [(log.st_size, log.st_mtime_ns) for log in status]]
        stamp = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        if parts.path == "/version":
            return 200, "text/plain", stamp.encode()
        with self.lock:
            if self.cache[0] != stamp:
                self.cache = (stamp, "".join(self.pieces(chosen, stamp)).encode())
            return 200, "text/html", self.cache[1]

    def pieces(self, chosen: Sequence[str], stamp: str) -> Iterator[str]:
        """The page, with a stamp that changes whenever the page would."""
        listed = {run["id"]: run for run in list_runs(self.dir)}
        room = PageBudget()
        runs = [_load(listed.pop(name)["path"], room, self.bodies) for name in dict.fromkeys(chosen) if name in listed]
        others = [_listed_meta(run, room.secrets) for run in listed.values()]
        return _page(runs, others=others, diff=len(runs) > 1, live=stamp)


def _listed_meta(run: JSONObject, secrets: Secrets) -> JSONObject:
    """The picker's line for a run that is on another page."""
    from urllib.parse import quote

    shown: JSONObject = secrets.removed({name: run[name] for name in run if name != "path"})
    return {**shown, "question": shown["prompt"], "href": "?run=" + quote(run["id"], safe="", errors="surrogateescape")}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python rlm_viz.py LOG.jsonl … [-o trajectory.html]`: the page, with this file alone."""
    import argparse

    parser = argparse.ArgumentParser(description="make a page of trajectory logs")
    parser.add_argument("logs", nargs="+", help="JSONL files, newest first")
    parser.add_argument("-o", "--out", default="trajectory.html")
    parser.add_argument("--diff", action="store_true", help="compare the first two")
    parser.add_argument("--no-bodies", action="store_true", help="metrics only")
    parser.add_argument("--tree", action="store_true", help="print the call tree instead")
    options = parser.parse_args(arguments)
    try:
        if options.tree:
            print("\n\n".join(tree(read(log)[0]) for log in options.logs))
        else:
            print(write(options.logs, options.out, bodies=not options.no_bodies, diff=options.diff))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except OSError as error:
        print(f"rlm_viz: {error}", file=sys.stderr)
        return 2
    return 0


# --- the page's own text: `make viewer` writes it from viewer/ --------------------------------------------------------

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'"
    " viewBox='0 0 16 16'%3E%3Cpath fill='%235b50e6' d='M8 1 15 8 8 15 1 8z'/%3E%3C/svg%3E"
)
# <viewer>
_BODY = r"""<svg class="sprite" aria-hidden="true">
<symbol id="i-node" viewBox="0 0 16 16"><path d="M8 1.2 14.8 8 8 14.8 1.2 8z"/></symbol>
<symbol id="i-turn" viewBox="0 0 16 16"><path d="M2 2.5h12v8.6H7.2L4 14v-2.9H2z"/></symbol>
<symbol id="i-sub" viewBox="0 0 16 16"><circle cx="8" cy="8" r="5" class="line"/></symbol>
<symbol id="i-cell" viewBox="0 0 16 16"><path d="M3.5 1.8 13.5 8l-10 6.2z"/></symbol>
<symbol id="i-tool" viewBox="0 0 16 16"><path d="M2.5 2.5h11v11h-11z" class="line"/><path d="M6 6h4v4H6z"/></symbol>
<symbol id="i-batch" viewBox="0 0 16 16"><path d="M2 2.6h12v2.6H2zM2 6.7h12v2.6H2zM2 10.8h12v2.6H2z"/></symbol>
<symbol id="i-end" viewBox="0 0 16 16"><path d="m2.5 8.6 3.6 3.6 7.4-8" class="line"/></symbol>
<symbol id="i-resume" viewBox="0 0 16 16">
<path d="M13.2 8.6A5.3 5.3 0 1 1 11.4 4" class="line"/>
<path d="M11 .8v4.4h4.2z"/></symbol>
<symbol id="i-interrupted" viewBox="0 0 16 16"><path d="m3 3 10 10M13 3 3 13" class="line"/></symbol>
<symbol id="i-stopped" viewBox="0 0 16 16"><path d="M3 3h10v10H3z"/></symbol>
<symbol id="i-compact" viewBox="0 0 16 16"><path d="m3 2 5 5 5-5M3 9l5 5 5-5" class="line"/></symbol>
<symbol id="i-other" viewBox="0 0 16 16"><circle cx="8" cy="8" r="2.4"/></symbol>
<symbol id="i-detached" viewBox="0 0 16 16"><path d="M2 8h3m2 0h2m2 0h3" class="line"/></symbol>
<symbol id="i-theme" viewBox="0 0 16 16"><circle cx="8" cy="8" r="6" class="line"/>
<path d="M8 2a6 6 0 0 1 0 12z"/></symbol>
<symbol id="i-link" viewBox="0 0 16 16">
<path d="M6.6 9.4 9.4 6.6M7 4.5 9 2.6a3.1 3.1 0 0 1 4.4 4.4l-2 2M9 11.5l-2 1.9A3.1 3.1 0 0 1 2.6 9l2-2" class="line"/>
</symbol>
<symbol id="i-copy" viewBox="0 0 16 16"><path d="M5.5 5.5h8v8h-8zM10.500 3V2.500H2.500v8H3" class="line"/></symbol>
</svg>
<header id="top">
<div class="brand"><svg aria-hidden="true"><use href="#i-node"/></svg><h1>rlm <span>trajectory</span></h1></div>
<select id="pick" aria-label="Run"></select>
<div class="find" role="search">
<input id="q" type="search" placeholder="Search names and bodies" aria-label="Search names and bodies"
autocomplete="off" spellcheck="false" data-shortcut="/" data-does="Search">
<output id="hits"></output>
<button id="prev" class="icon" aria-label="Previous match" data-shortcut="N">↑</button>
<button id="next" class="icon" aria-label="Next match" data-shortcut="n">↓</button>
<div id="found" role="region" aria-label="Matches" hidden></div></div>
<div id="live" hidden><i aria-hidden="true">●</i> <span id="ago"></span>
<label><input type="checkbox" id="follow"> Follow</label></div>
<button id="theme" class="icon" aria-label="Switch theme" data-shortcut="t">
<svg aria-hidden="true"><use href="#i-theme"/></svg></button>
<button id="help" class="icon" aria-label="Keys" data-shortcut="?">?</button>
</header>
<main>
<section id="summary" aria-label="Summary">%SUMMARY%</section>
<p id="notice" role="status"></p>
<div id="app">
<div id="bar">
<div class="tabs" role="tablist" aria-label="Views">
<button role="tab" id="t1" aria-controls="v1" data-shortcut="1">Tree</button>
<button role="tab" id="t2" aria-controls="v2" data-shortcut="2">Timeline</button>
<button role="tab" id="t3" aria-controls="v3" data-shortcut="3">Charts</button>
<button role="tab" id="t4" aria-controls="v4" data-shortcut="4">Runs</button>
<button role="tab" id="t5" aria-controls="v5" data-shortcut="5">Transcript</button></div>
<div id="tools">
<button id="errors" data-shortcut="f">Next error</button>
<button id="expand" data-shortcut="e">Expand</button>
<button id="fold" data-shortcut="c">Collapse</button>
<details id="filters"><summary data-shortcut="i" data-does="Filters">Filters <b id="active"></b></summary>
<div class="sheet"></div></details>
<details id="export"><summary>Export</summary>
<div class="sheet">
<button id="csv">CSV of all rows</button>
<button id="trace">Chrome trace JSON</button>
<button id="speedscope">Speedscope JSON</button>
<button id="paper">Print</button></div></details></div>
</div>
<div class="split">
<div class="views">
<section id="v1" role="tabpanel" aria-labelledby="t1">
<div id="grid" role="treegrid" aria-label="Call tree" data-shortcut="j k" data-does="Next, previous row">
<div role="rowgroup" class="head">
<div role="row">
<div role="columnheader">Call</div>
<div role="columnheader" class="bar">When</div>
<div role="columnheader" class="figure" data-sort="tokens"><button class="sort">Tokens</button><i>(self)</i></div>
<div role="columnheader" class="figure" data-sort="cost"><button class="sort">Cost</button><i>(self)</i></div>
<div role="columnheader" class="figure" data-sort="time"><button class="sort">Time</button><i>(self)</i></div>
</div></div>
<div role="rowgroup" id="rows"></div></div></section>
<section id="v2" role="tabpanel" aria-labelledby="t2" hidden></section>
<section id="v3" role="tabpanel" aria-labelledby="t3" hidden></section>
<section id="v4" role="tabpanel" aria-labelledby="t4" hidden></section>
<section id="v5" role="tabpanel" aria-labelledby="t5" hidden></section>
</div>
<aside id="inspector" aria-label="Event" tabindex="0"></aside>
</div>
</div>
<section id="print" aria-label="Transcript" hidden></section>
<section id="static" aria-label="Call tree, first rows">%TREE%</section>
</main>
<button id="offer" data-shortcut="v" hidden>Trace this text</button>
<dialog id="legend" aria-labelledby="legend-title"><h2 id="legend-title">Keys</h2>
<dl></dl><form method="dialog">
<button>Close</button></form></dialog>
"""
_STYLE = r""":root{color-scheme:light dark;
--bg:light-dark(#f5f6f9,#0e1116);--panel:light-dark(#fff,#161a21);--raised:light-dark(#f0f2f6,#1d222b);
--line:light-dark(#dfe3ea,#2b323d);
--text:light-dark(#171b26,#e7eaf0);--muted:light-dark(#586174,#9ca6b7);--accent:light-dark(#4a3fd6,#9aa0ff);
--tint:light-dark(#eeedfd,#22243f);
--node:light-dark(#4a3fd6,#9aa0ff);--turn:light-dark(#1f66d6,#6cabff);--sub:light-dark(#0b756b,#4ccfc1);
--cell:light-dark(#7a35d4,#c49cff);--tool:light-dark(#a64f08,#f0b35a);
--batch:light-dark(#0b756b,#4ccfc1);--end:light-dark(#16783c,#62d491);--resume:light-dark(#a64f08,#f0b35a);
--interrupted:light-dark(#bd2130,#ff8585);--compact:light-dark(#586174,#9ca6b7);
--other:light-dark(#586174,#9ca6b7);--detached:light-dark(#586174,#9ca6b7);
--error:light-dark(#bd2130,#ff8585);--errorbg:light-dark(#fdecee,#3a1a1f);--warn:light-dark(#8a5a00,#e9c35a);
--ok:light-dark(#16783c,#62d491);--okbg:light-dark(#e6f5ec,#15301f);--hit:light-dark(#fff0b8,#4d4011);
--kw:light-dark(#8b2bc0,#c49cff);--str:light-dark(#16703a,#8fd6a4);--num:light-dark(#a64f08,#f0b35a);
--com:light-dark(#667085,#8b95a7);--fn:light-dark(#1f66d6,#7db4ff);
--mono:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono","DejaVu Sans Mono",monospace}
:root[data-theme=light]{color-scheme:light}
:root[data-theme=dark]{color-scheme:dark}
*{box-sizing:border-box}
[hidden]{display:none!important}
body{margin:0;background:var(--bg);color:var(--text);
font:14px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif;
-webkit-text-size-adjust:100%}
h1,h2,h3,p,dl,dd,ul,figure,pre{margin:0;padding:0}
h2,h3{font-size:12px;font-weight:600;color:var(--muted)}
button,select,input,summary{font:inherit;color:inherit}
button,select,summary{cursor:pointer}
button,select,input,#tools summary{background:var(--panel);border:1px solid var(--line);border-radius:7px;
padding:4px 10px;min-height:32px}
:focus-visible{outline:2px solid var(--accent);outline-offset:1px}
svg{width:14px;height:14px;fill:currentColor;flex:none}
svg .line,.line{fill:none;stroke:currentColor;stroke-width:2;stroke-linecap:round;stroke-linejoin:round}
.sprite{position:absolute;width:0;height:0}
.icon{min-width:32px;padding:0;display:inline-grid;place-items:center}
.link{border:0;background:none;padding:0;min-height:0;color:var(--accent);text-decoration:underline;
text-underline-offset:2px;text-align:left;overflow-wrap:anywhere}
.vh{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.mono,pre,code,kbd{font-family:var(--mono);font-size:12.5px}
.ctl{unicode-bidi:isolate;color:var(--error)}
.ctl::before{content:attr(data-u);font:10px var(--mono);border:1px solid;border-radius:3px;padding:0 2px;
margin:0 1px}
#top{position:sticky;top:0;z-index:5;display:flex;gap:10px;align-items:center;padding:8px 20px;
background:var(--panel);border-bottom:1px solid var(--line)}
.brand{display:flex;gap:8px;align-items:center;color:var(--accent)}
.brand svg{width:18px;height:18px}
.brand h1{font-size:16px;font-weight:700;color:var(--text);white-space:nowrap}
.brand span{font-weight:400;color:var(--muted)}
#pick{max-width:min(420px,34vw);min-width:0;text-overflow:ellipsis}
.find{position:relative;margin-left:auto;display:flex;gap:4px;align-items:center;flex:0 1 460px;min-width:0}
.find input{flex:1;min-width:60px;width:100%}
#hits{color:var(--muted);font-size:12px;white-space:nowrap;text-align:right;font-variant-numeric:tabular-nums}
main{padding:16px 20px 40px;max-width:1720px;margin:auto}
.qa{display:grid;grid-template-columns:minmax(0,2fr) minmax(0,3fr);gap:14px}
.qa>div,.cards,.panel{background:var(--panel);border:1px solid var(--line);border-radius:10px}
.qa>div{padding:12px 16px}
.qa h2{display:flex;flex-wrap:wrap;gap:8px;align-items:center;min-height:22px;margin-bottom:4px}
.failure{margin-bottom:8px;padding:8px 12px;background:var(--errorbg);border-radius:8px;overflow-wrap:anywhere}
.failure p+p{margin-top:2px}
.findings:empty{display:none}
.findings{list-style:none;display:flex;flex-wrap:wrap;gap:6px;margin-top:12px}
.findings button.link{font-size:13px;text-decoration:none;padding:3px 10px;min-height:28px;border-radius:14px;
background:var(--hit);color:var(--text)}
.findings button:hover{text-decoration:underline}
.prose{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate}
#question{font-size:16px;line-height:1.45}
.badge{display:inline-block;font-size:11px;font-weight:600;line-height:18px;padding:0 8px;border-radius:9px;
background:var(--raised);color:var(--muted);white-space:nowrap}
.badge.answered{background:var(--okbg);color:var(--ok)}
.badge.error,.badge.interrupted{background:var(--errorbg);color:var(--error)}
.badge.partial,.badge.unfinished{background:var(--hit);color:var(--warn)}
.cards{display:flex;flex-wrap:wrap;margin-top:14px;overflow:hidden}
.cards>div{flex:1 1 auto;min-width:86px;padding:10px 12px;box-shadow:1px 0 var(--line),0 1px var(--line)}
.cards dt{font-size:12px;color:var(--muted)}
.cards dd{font-size:20px;font-weight:600;line-height:1.3;font-variant-numeric:tabular-nums;white-space:nowrap}
.cards .note{contain:inline-size;font-size:12px;font-weight:400;color:var(--muted);line-height:1.4;white-space:normal}
.cards .bad dd:not(.note){color:var(--error)}
.note>span{display:block;margin-top:3px}
.track{display:block;height:12px;background:var(--raised);border-radius:3px;overflow:hidden}
.problems:not(:empty){margin-top:14px;padding:8px 16px 8px 32px;background:var(--hit);border-radius:10px;
font-size:13px;overflow-wrap:anywhere}
#notice:not(:empty){margin-top:14px;padding:8px 16px;border-radius:10px;background:var(--tint)}
#app{display:none;margin-top:16px}
.js #static{display:none}
.empty{padding:40px 20px;text-align:center;color:var(--muted)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 14px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-size:12px;color:var(--muted)}
th:first-child,td:first-child,.l{text-align:left}
caption{text-align:left;font-weight:600;padding:10px 14px}
#static{margin-top:16px;overflow-x:auto;background:var(--panel)}
#static td:first-child{white-space:normal;overflow-wrap:anywhere}
dialog{border:1px solid var(--line);border-radius:12px;background:var(--panel);color:var(--text);
padding:18px 22px;min-width:300px}
dialog::backdrop{background:#0007}
dialog h2{font-size:15px;color:var(--text)}
dialog dl{display:grid;grid-template-columns:auto 1fr;gap:8px 16px;margin:12px 0 16px;align-items:center}
@media print{
#top,#app,#notice,#offer,#origin,#print button:not(.link),#summary button:not(.value):not(.link){display:none!important}
.js #static,#print{display:block!important}
.js .clamp,.js .prose.clamp{display:block!important}
.act,.block{break-inside:auto;overflow:visible!important}
.block pre,.block>.readable{max-height:none!important;overflow:visible!important}
:root{color-scheme:light}
}
@media (max-width:900px){.qa{grid-template-columns:minmax(0,1fr)}}"""
_APP_STYLE = r"""button:hover,select:hover,#tools summary:hover{border-color:var(--muted)}
#found{position:absolute;right:0;top:40px;z-index:9;width:min(700px,calc(100vw - 24px));max-height:60vh;overflow:auto;
padding:6px;background:var(--panel);border:1px solid var(--line);border-radius:10px;box-shadow:0 8px 30px #0003}
#found button{display:block;width:100%;border:0;text-align:left;padding:5px 8px;overflow-wrap:anywhere}
#found button:hover,#found [aria-current=true]{background:var(--tint)}
#found .where{display:block}
#found .where b{color:var(--text)}
#found i{margin-left:8px}
.around{color:var(--muted);font-size:12px;unicode-bidi:isolate}
mark{background:var(--hit);color:var(--text)}
#live{display:flex;gap:6px;align-items:center;font-size:12px;color:var(--muted);white-space:nowrap}
#live i{color:var(--ok);font-style:normal}
#live.gone i{color:var(--error)}
#live input{min-height:0;margin:0;vertical-align:-2px}
.qa .link{font-size:12px;font-weight:500}
.qa h2 .link{margin-left:auto}
.qa h2 button:not(.link),.raw{min-height:26px;border:0;background:none;font-size:12px;color:var(--muted);padding:0 6px;
display:inline-flex;gap:5px;align-items:center}
.raw[aria-pressed=true]{background:var(--tint)}
.grow{flex:1}
.readable{overflow-wrap:anywhere}
.block>.readable{padding:8px 12px;max-height:60vh;overflow:auto}
.md>*+*,.md li+li{margin-top:6px}
.md li>ul,.md li>ol{margin-top:4px}
.md p,.md li,.md blockquote{white-space:pre-wrap;unicode-bidi:plaintext}
.md ul,.md ol{padding-inline-start:22px}
.md .mdh{font-weight:700}
.md code{background:var(--raised);border-radius:4px;padding:1px 4px}
.md pre{background:var(--raised);border-radius:6px;padding:8px 10px;overflow:auto;max-height:60vh}
.md table{width:auto}
.md th,.md td{text-align:start;padding:3px 10px;white-space:normal}
.md blockquote{margin:0;padding-inline-start:10px;border-inline-start:3px solid var(--line);color:var(--muted)}
.md hr{border:0;border-top:1px solid var(--line)}
.link.value{display:inline;color:inherit;text-decoration:none;font:inherit;border:0;border-radius:0;background:none;padding:0;min-height:0!important;
min-width:0!important;text-align:start;border-bottom:1px dotted var(--accent)}
.value:hover{background:var(--tint)}
.value.lost{border-bottom:2px dashed var(--warn)}
.lost:not(.value){color:var(--warn)}
.tracing{margin-top:10px;padding:8px 12px;background:var(--tint);border-radius:8px;font-size:13px;
overflow-wrap:anywhere}
.tracing ul{list-style:none;margin-top:4px;max-height:220px;overflow:auto}
.tracing .icon{min-height:24px;min-width:24px;border:0;background:none;float:right}
.command{display:flex;gap:8px;align-items:center}
.command button{min-height:26px;font-size:12px;display:inline-flex;gap:5px;align-items:center}
.js .prose.clamp{display:-webkit-box;-webkit-line-clamp:5;-webkit-box-orient:vertical;overflow:hidden}
.js .readable.clamp{max-height:150px;overflow:hidden}
.note .track{height:6px;margin-top:4px;box-shadow:inset 0 0 0 1px var(--line)}
.js #app{display:block}
#offer{position:fixed;z-index:20;background:var(--accent);color:var(--panel)}
#bar{position:sticky;top:49px;z-index:4;display:flex;gap:8px 16px;align-items:center;flex-wrap:wrap;
background:var(--bg);padding:6px 0}
.tabs{display:flex;gap:2px;background:var(--raised);border-radius:9px;padding:3px}
.tabs button{border:0;background:none;min-height:28px;color:var(--muted);font-weight:500}
.tabs [aria-selected=true]{background:var(--panel);color:var(--text);box-shadow:0 1px 2px #0003}
#tools{margin-left:auto;display:flex;gap:6px;flex-wrap:wrap;align-items:stretch}
#tools details{position:relative}
#tools summary{list-style:none;line-height:22px}
#tools summary::-webkit-details-marker{display:none}
#active:not(:empty){background:var(--accent);color:var(--panel);border-radius:9px;padding:0 6px;font-size:11px}
.sheet{position:absolute;right:0;top:38px;z-index:6;width:340px;max-width:calc(100vw - 24px);display:grid;
gap:10px;padding:14px;background:var(--panel);border:1px solid var(--line);border-radius:10px;
box-shadow:0 8px 30px #0003}
#export .sheet{width:200px}
.sheet label{display:grid;grid-template-columns:110px 1fr;align-items:center;gap:8px;font-size:13px}
.sheet .chips{display:flex;flex-wrap:wrap;gap:6px}
.chip{display:inline-flex;gap:5px;align-items:center;font-size:12px;min-height:28px;padding:2px 8px}
.chip[aria-pressed=true]{background:var(--tint);border-color:var(--accent)}
.split{display:grid;grid-template-columns:minmax(0,1fr) minmax(360px,31%);gap:14px;align-items:start;margin-top:6px}
.views{min-width:0;container-type:inline-size}
#grid,#v2,#v3,#v4{background:var(--panel);border:1px solid var(--line);border-radius:10px}
#grid{font-variant-numeric:tabular-nums;overflow:clip}
#grid [role=row]{display:grid;grid-template-columns:minmax(0,1fr) minmax(50px,8%) 118px 130px 122px;
align-items:center;padding:0 12px 0 8px}
.head{position:sticky;top:95px;z-index:2;background:var(--panel);border-bottom:1px solid var(--line)}
#grid [role=columnheader]{padding:7px 0;font-size:12px;color:var(--muted);font-weight:600;text-align:right}
#grid [role=columnheader]:first-child{text-align:left;padding-left:22px}
#grid [role=columnheader] i{font-weight:400;font-size:11px}
#rows{position:relative}
#rows [role=row]{height:32px;border-bottom:1px solid color-mix(in srgb,var(--line) 45%,transparent);
cursor:default;content-visibility:auto;contain-intrinsic-size:auto 32px}
#rows.virtual [role=row]{position:absolute;left:0;right:0;content-visibility:visible}
#rows [role=row]:hover{background:var(--raised)}
#rows [aria-selected=true],#rows [aria-selected=true]:hover{background:var(--tint);
box-shadow:inset 3px 0 var(--accent)}
#rows [role=row]:focus-visible,#rows [role=gridcell]:focus-visible{outline-offset:-2px}
#rows .hit .name b{background:var(--hit)}
#rows .dim{opacity:.72}
.name{overflow:hidden;display:flex;align-items:center;gap:6px;min-width:0;height:100%}
.in{flex:none;max-width:45%;align-self:stretch;width:calc(var(--l)*16px);
background:repeating-linear-gradient(90deg,transparent 0 7px,var(--line) 7px 8px,transparent 8px 16px)}
.twist{flex:none;width:16px;height:16px;color:var(--muted)}
.twist.has::before{content:"";display:block;width:0;height:0;margin:4px 5px;border:4px solid transparent;
border-left:6px solid}
[aria-expanded=true]>.name>.twist::before{transform:rotate(90deg) translate(1px,2px)}
.name b{font-weight:600;white-space:nowrap}
.name .said{color:var(--muted);overflow:hidden;text-overflow:ellipsis;white-space:nowrap;min-width:0;
unicode-bidi:isolate}
.name .code,.line .code,.strip .code{font:12px var(--mono)}
.name .said{flex:0 1 auto}
.name .said:not(:last-child){max-width:50%}
.name .out{flex:1 1 0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;min-width:0;unicode-bidi:isolate}
.name .out,.line .out,.strip .out{color:var(--text)}
.arrow,.where{flex:none;color:var(--muted)}
.strip .arrow{margin:0 5px}
.where{font-size:12px}
.out.failed{color:var(--error)!important}
.sort{border:0;background:none;padding:0 2px;min-height:24px;font-weight:600}
[aria-sort=descending] .sort::after{content:" ↓"}
[aria-sort=ascending] .sort::after{content:" ↑"}
.tag{flex:none;font-size:11px;line-height:17px;padding:0 6px;border-radius:8px;background:var(--raised);
color:var(--muted);white-space:nowrap}
.tag.error{background:var(--errorbg);color:var(--error)}
.tag.final{background:var(--okbg);color:var(--ok)}
.tag.warn{background:var(--hit);color:var(--warn)}
.figure{display:grid;align-items:baseline;grid-template-columns:1fr 70px;gap:5px;padding-right:8px;
text-align:right;white-space:nowrap}
.figure i{font-style:normal;color:var(--muted);font-size:12px;text-align:left}
.bar{position:relative;height:100%;overflow:hidden;margin:0 6px}
#grid .head .bar{text-align:left;height:auto}
.bar span{position:absolute;top:50%;height:10px;margin-top:-5px;min-width:2px;border-radius:2px;opacity:.85}
.k-node{color:var(--node)}
.k-turn{color:var(--turn)}
.k-sub{color:var(--sub)}
.k-cell{color:var(--cell)}
.k-tool{
color:var(--tool)}
.k-batch{color:var(--batch)}
.k-end{color:var(--end)}
.k-resume{color:var(--resume)}
.k-interrupted,.k-error{color:var(--error)}
.k-stopped{color:var(--warn)}
.k-compact,.k-other,.k-detached{color:var(--muted)}
.bar span,.fill{background:currentColor}
#inspector{container-type:inline-size;position:sticky;top:101px;max-height:calc(100vh - 113px);overflow:auto;
background:var(--panel);border:1px solid var(--line);border-radius:10px;overscroll-behavior:contain}
.title{position:sticky;top:0;z-index:1;display:flex;gap:8px;align-items:center;padding:10px 14px;
background:var(--panel);border-bottom:1px solid var(--line)}
.title{flex-wrap:wrap}
.title h2{font-size:15px;color:var(--text);overflow-wrap:anywhere;min-width:4em}
.title button{flex:none}
.title .icon{margin-left:0}
.title .grow{flex:1}
.path{padding:8px 14px 0;font-size:12px;color:var(--muted);display:flex;flex-wrap:wrap;gap:2px 6px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(92px,1fr));gap:8px 12px;padding:12px 14px}
.facts dt::first-letter{text-transform:uppercase}
.facts dt{font-size:11px;color:var(--muted)}
.facts dd{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.blocks{display:grid;gap:12px;padding:2px 14px 16px;min-width:0}
.blocks>*{min-width:0}
.pair,.results{display:grid;gap:12px;min-width:0;align-content:start}
.pair>*{min-width:0}
.block{border:1px solid var(--line);border-radius:8px;overflow:hidden;min-width:0}
.block.error{border-color:var(--error)}
.block header{display:flex;gap:8px;align-items:center;min-height:32px;padding:2px 4px 2px 10px;
background:var(--raised);font-size:12px}
.block header h3{color:var(--text)}
.block header .note{color:var(--muted);overflow:hidden;text-overflow:ellipsis;white-space:nowrap;min-width:0}
.block header button{margin-left:auto;min-height:26px;border:0;background:none;font-size:12px;
color:var(--muted);padding:0 8px;display:inline-flex;gap:5px;align-items:center;white-space:nowrap}
.block pre{padding:8px 10px;white-space:pre-wrap;overflow-wrap:anywhere;tab-size:4;unicode-bidi:isolate;
max-height:60vh;overflow:auto}
.block.error pre{background:var(--errorbg)}
.block>.more{width:100%;border-width:1px 0 0;border-radius:0;color:var(--accent);font-size:12px}
.block img{max-width:100%;display:block;margin:8px auto}
pre.src{counter-reset:n;padding-left:0}
pre.src>span{display:block;padding-left:44px;position:relative;min-height:1.5em}
pre.src>span::before{counter-increment:n;content:counter(n);position:absolute;left:0;width:32px;
text-align:right;color:var(--muted);opacity:.8;user-select:none}
pre.src>.at{background:var(--errorbg);box-shadow:inset 3px 0 var(--error)}
.kw{color:var(--kw)}
.str{color:var(--str)}
.num{color:var(--num)}
.com{color:var(--com);font-style:italic}
.fn{
color:var(--fn)}
.rlm{color:var(--accent);font-weight:600}
.spawn{display:grid;gap:1px}
.spawn button{border:0;border-radius:0;display:grid;grid-template-columns:16px minmax(0,1fr) auto auto;gap:8px;
align-items:center;text-align:left;font-variant-numeric:tabular-nums;padding:4px 10px}
.spawn button:hover{background:var(--raised)}
.spawn .said{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.spawn i{font-style:normal;color:var(--muted);font-size:12px}
.flame{position:relative}
.strip-chart{position:relative;height:34px;border-top:1px solid var(--line)}
.strip-chart svg{display:block;width:100%;height:100%;opacity:.45}
.strip-chart span{position:absolute;left:6px;top:2px;font-size:11px;color:var(--text)}
.choose{display:flex;flex-wrap:wrap;gap:6px 8px;align-items:center}
.choose h3{flex-basis:100%}
.choose .chip[aria-pressed=true]{font-weight:600}
.choose>button:not(.chip){margin-left:auto;font-size:12px;min-height:28px;
display:inline-flex;gap:5px;align-items:center}
.sent{display:grid;gap:12px;min-width:0}
.sent>*{min-width:0}
.role{border-left:4px solid var(--muted)}
.role-user{border-left-color:var(--turn)}
.role-assistant{border-left-color:var(--node)}
.role-tool{border-left-color:var(--cell)}
#v5{display:grid;grid-template-columns:minmax(170px,230px) minmax(0,1fr);gap:14px;align-items:start}
#v5 .page{min-width:0}
.outline{position:sticky;top:101px;max-height:calc(100vh - 113px);overflow:auto;display:grid;padding:6px;
background:var(--panel);border:1px solid var(--line);border-radius:10px}
.outline button{border:0;background:none;text-align:left;display:flex;gap:6px;align-items:center;padding:3px 6px;
min-height:28px;font-size:13px;min-width:0}
.outline button:hover{background:var(--raised)}
.outline b{white-space:nowrap;font-weight:600}
.outline span{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;color:var(--muted)}
.outline .bad b{color:var(--error)}
.turns{position:sticky;top:95px;z-index:2;display:flex;gap:8px;padding:6px 0;background:var(--bg)}
.turns select{min-width:0;flex:0 1 420px;margin-left:auto}
.act{background:var(--panel);border:1px solid var(--line);border-radius:10px;margin-bottom:12px;
min-height:60px;min-width:0}
.act>header{display:flex;gap:8px;align-items:center;padding:8px 14px;flex-wrap:wrap}
.act>header i{font-style:normal;color:var(--muted);font-size:12px;font-variant-numeric:tabular-nums}
.act>header .link{color:var(--text);font-weight:600;text-decoration:none}
.act>header .link:hover{text-decoration:underline}
.acts{display:grid;gap:10px;padding:0 14px 12px;min-width:0}
.acts:empty{padding:0}
.acts>*{min-width:0}
.acts .act .acts,.strip .acts{padding:8px 10px}
.reply{position:relative;overflow-wrap:anywhere}
.reply>.raw{position:absolute;right:0;top:0}
.line{overflow-wrap:anywhere;display:flex;gap:6px;align-items:center;flex-wrap:wrap}
.strip{border:1px solid var(--line);border-left:3px solid var(--sub);border-radius:8px;background:var(--raised)}
.strip>summary{padding:5px 10px;overflow-wrap:anywhere;min-height:32px}
.strip>summary svg{vertical-align:-2px;margin-right:6px}
.strip>summary i{font-style:normal;color:var(--muted);font-size:12px;margin-left:8px}
.strip .strip{background:var(--panel)}
.strip .said{color:var(--muted)}
.steps{display:grid;gap:2px;padding:0 8px 14px}
.steps.differing .same{display:none}
.step>summary{display:grid;grid-template-columns:76px minmax(0,1fr) minmax(0,1fr);gap:8px 14px;
padding:4px 6px;align-items:center}
.step>summary:hover{background:var(--raised)}
.step>summary .tag{justify-self:start}
.side{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.step .acts{padding-top:8px}
.step .row{display:flex;gap:14px}
.diff pre span{display:block}
.minus{background:var(--errorbg)}
.plus{background:var(--okbg)}
.skip{color:var(--muted)}
.v4row input{min-width:220px}
.runs th{padding:2px 10px}
.runs td{padding:5px 10px}
.runs .tick input{min-height:0;margin:0;width:16px;height:16px;vertical-align:-2px}
.flame .row,.v4row{display:flex;gap:8px;align-items:center;flex-wrap:wrap;padding:10px 14px}
.flame canvas{display:block;width:100%;border-top:1px solid var(--line);touch-action:none;cursor:grab}
.key{display:inline-flex;gap:5px;align-items:center;font-size:12px;color:var(--muted)}
.tip{position:absolute;pointer-events:none;z-index:3;max-width:340px;padding:6px 10px;border-radius:7px;
background:var(--text);color:var(--panel);font-size:12px;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));border-radius:10px;
overflow:hidden}
.charts figure{box-shadow:1px 0 var(--line),0 1px var(--line);padding:14px 16px;min-width:0}
.charts figcaption{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px;color:var(--muted);margin-bottom:10px}
.charts figcaption b{color:var(--text);font-size:13px;flex-basis:100%}
.plot{display:grid;grid-template-columns:auto minmax(0,1fr);gap:0 8px;font-size:11px;color:var(--muted);
font-variant-numeric:tabular-nums}
.plot svg{width:100%;height:150px;border-bottom:1px solid var(--line);border-left:1px solid var(--line)}
.plot .y{display:flex;flex-direction:column;justify-content:space-between;text-align:right}
.plot .x{grid-column:2;display:flex;justify-content:space-between}
.share{display:grid;grid-template-columns:minmax(0,max-content) minmax(40px,1fr) auto;gap:6px 10px;
align-items:center;font-variant-numeric:tabular-nums;font-size:13px}
.share span:first-child,.share .label{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;max-width:180px}
.track .fill{display:block;height:100%;border-radius:3px}
.donut{display:flex;gap:16px;align-items:center}
.donut>svg{width:104px;height:104px}
.donut .share{flex:1;min-width:0}
.scroll{overflow-x:auto}
td.l{max-width:300px;overflow:hidden;text-overflow:ellipsis}
tr.on{background:var(--tint)}
.deltas{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;padding:0 14px 14px}
.deltas div{background:var(--raised);border-radius:8px;padding:8px 12px}
.deltas dt{font-size:12px;color:var(--muted)}
.deltas dd{font-variant-numeric:tabular-nums}
.deltas .d{font-weight:600;font-size:16px}
.step.first{outline:2px solid var(--warn);outline-offset:-2px}
.step .tag.changed{background:var(--hit);color:var(--warn)}
kbd{border:1px solid var(--line);border-bottom-width:2px;border-radius:5px;padding:1px 6px;background:var(--raised)}
.close{display:none}
::highlight(hit){background:var(--hit);color:var(--text)}
::highlight(here){background:var(--accent);color:var(--panel)}
@container (max-width:820px){#grid [role=row]{grid-template-columns:minmax(0,1fr) 128px 122px 116px}#grid .bar{
display:none}}
@container (max-width:620px){#grid [role=row]{grid-template-columns:minmax(0,1fr) 84px 92px 70px}.figure{
grid-template-columns:1fr}.figure i,#grid [role=columnheader] i{display:none}}
@container (min-width:560px){.pair{grid-template-columns:minmax(0,1fr) minmax(0,1fr)}}
@media (min-width:1700px){.split{grid-template-columns:minmax(0,1fr) minmax(360px,34%)}}
.split.single{grid-template-columns:minmax(0,1fr)}
.title button:not(.icon),.chip{display:inline-flex;gap:6px;align-items:center}
@media (max-width:900px){
.split{grid-template-columns:minmax(0,1fr)}
#inspector{display:none;position:fixed;inset:0;top:0;z-index:9;max-height:none;border:0;border-radius:0}
.open #inspector{display:block}
.open{overflow:hidden}
.close{display:inline-grid}
.qa{grid-template-columns:minmax(0,1fr)}
#v5{grid-template-columns:minmax(0,1fr)}
.outline{position:static;max-height:180px}
}
@media (max-width:480px){
main{padding:10px 10px 30px}
#top{flex-wrap:wrap;padding:8px 10px;position:static}
#pick{flex:1;max-width:none}
.find{order:9;flex-basis:100%}
#live{order:8;flex-basis:100%}
#live label{display:flex;gap:8px;align-items:center;min-height:44px}
#bar{position:static}
.turns{top:0}
.turns button{flex:1;padding:4px}
.turns select{display:none}
.find #found{left:0;right:auto}
#found button{min-height:44px}
.raw,.qa h2 button:not(.link),.command button,.choose button,.block header button,.tracing .icon{
min-height:44px!important;min-width:44px!important}
.runs thead{display:none}
.runs tr{display:grid;grid-template-columns:1fr 1fr;padding:8px 6px;border-bottom:1px solid var(--line)}
.runs td{border:0;white-space:normal;text-align:left;padding:2px 6px;overflow-wrap:anywhere;max-width:none}
.runs td::before{content:attr(data-label) " ";font-size:11px;color:var(--muted)}
.runs td:nth-child(2),.runs td:nth-child(3),.runs td:nth-child(4){grid-column:1/-1}
.runs .tick{grid-column:1/-1}
.runs .tick input{width:44px;height:44px}
.v4row input{flex-basis:100%}
.v4row select{flex:1;min-width:0}
.step>summary{grid-template-columns:minmax(0,1fr)}
.head{display:none}
button,select,input,#tools summary,.tabs button,.chip,.block header button{min-height:44px}
button:not(.link){min-width:44px}
.tabs,#tools{width:100%;margin:0}
.tabs button,#tools>button,#tools summary{flex:1;padding:4px 3px}
.tabs button{font-size:13px}
#tools{display:grid;grid-template-columns:repeat(3,1fr)}
#tools summary{display:flex;justify-content:center;align-items:center;gap:4px}
.brand span{display:none}
.cards>div{flex-basis:28%;padding:6px 10px}
.cards .note{display:none}
#grid #rows [role=row]{height:58px;grid-template-columns:auto auto auto 1fr;grid-template-rows:34px 20px;
gap:0 12px;contain-intrinsic-size:auto 58px;align-content:start}
#rows .name{grid-column:1/-1}
#rows .figure{font-size:12px;color:var(--muted)}
#rows .figure.first{padding-left:24px}
.in{width:calc(min(var(--l),8)*9px);
background:repeating-linear-gradient(90deg,transparent 0 4px,var(--line) 4px 5px,transparent 5px 9px)}
#tools details{position:static}
.sheet{left:12px;right:12px;top:auto;width:auto!important}
.donut{flex-direction:column;align-items:stretch}
}
@media (prefers-reduced-motion:no-preference){.twist::before{transition:transform .12s}}"""
_HEAD_SCRIPT = r"""if (window.DecompressionStream) document.documentElement.className = "js";
try { document.documentElement.dataset.theme = localStorage.getItem("rlm-theme") || ""; } catch {}"""
_LOADER = r"""(async () => {
const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
const value = Object.fromEntries([...letters].map((letter, at) => [letter, at]));
const packed = document.getElementById("program").textContent, spare = (5 - packed.length % 5) % 5;
const text = packed + "~".repeat(spare), view = new DataView(new ArrayBuffer(text.length / 5 * 4));
for (let at = 0; text[at]; at += 5) {
view.setUint32(at / 5 * 4, [...text.slice(at, at + 5)].reduce((sum, letter) => sum * 85 + value[letter], 0));
}
const bytes = new Blob([new Uint8Array(view.buffer, 0, view.byteLength - spare)]);
const whole = await new Response(bytes.stream().pipeThrough(new DecompressionStream("gzip"))).text();
for (const [at, tag] of ["style", "script"].entries()) {
const element = document.createElement(tag);
element.textContent = whole.split("\0")[at];
document.body.append(element);
}
})().catch(() => { document.documentElement.className = ""; });"""
_SCRIPT = r""""use strict";
const $ = id => document.getElementById(id);
const DATA = JSON.parse($("data").textContent);
const RUNS = DATA.runs;
const { kinds: KINDS, untimed: UNTIMED, usage: USAGE, chunk: CHUNK, staticRows: STATIC_ROWS, tie: TIE } = DATA;
const [ERROR, WARNING, RESTORED, FINAL, ESTIMATED, RETRIED] = DATA.flags;
const kindName = k => ({ sub: "sub-call", compact: "compaction" })[k] || k;
const PLAIN_ROWS = 5000, FIRST_ROWS = 120, SHOWN_LINES = 40, SHOWN_CHARS = 8000;
let run = null;
const UNSEEN = new RegExp(
"([\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff]" +
"|(?<![\\p{Extended_Pictographic}\\p{Emoji_Modifier}\\p{M}\\u0600-\\u06ff\\u0900-\\u0dff])[\\u200c\\u200d])", "u");
function put(element, text) {
if (!UNSEEN.test(text)) { element.append(text); return element; }
text.split(UNSEEN).forEach((part, i) => {
if (i % 2) element.append(control(part));
else if (part) element.append(part);
});
return element;
}
function control(letter) {
const mark = document.createElement("span");
mark.className = "ctl";
mark.dataset.u = "U+" + letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
mark.textContent = letter;
return mark;
}
function h(tag, attributes, ...children) {
const element = document.createElement(tag);
for (const [name, value] of Object.entries(attributes || {})) {
if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
else if (value !== null && (value !== false || name.startsWith("aria-"))) element.setAttribute(name, value);
}
for (const child of children.flat(Infinity)) {
if (child instanceof Node) element.append(child);
else if (child !== null && child !== undefined) put(element, String(child));
}
return element;
}
function s(tag, attributes, ...children) {
const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
element.append(...children);
return element;
}
const icon = name => s("svg", { "aria-hidden": "true", class: "k-" + name }, s("use", { href: "#i-" + name }));
const button = (label, act, attributes) => h("button", { type: "button", ...attributes, onclick: act }, label);
const firstLine = text => text.split("\n", 1)[0];
const BETWEEN = ",.'\u00a0\u202f\u066c";
const number = value => Math.round(value).toLocaleString("en-US");
const counted = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
function money(known, unpriced) {
if (unpriced && !known) return "?";
if (known < 0) return "−" + money(-known, unpriced);
const places = known >= 1 || !known ? 2 : Math.min(9, 1 - Math.floor(Math.log10(known)));
const digits = { minimumFractionDigits: places, maximumFractionDigits: places };
const shown = known ? "$" + (known + TIE / 10 ** places).toLocaleString("en-US", digits) : "$0";
return unpriced ? shown + " + ?" : shown;
}
function duration(ms) {
if (ms < 999.5) return (ms + TIE).toFixed(ms >= 9.95 || ms < 0.05 ? 0 : 1) + " ms";
if (ms < 59950) return (ms / 1000 + TIE).toFixed(1) + " s";
const seconds = Math.round(ms / 1000), minutes = Math.floor(seconds / 60), two = n => String(n).padStart(2, "0");
if (minutes < 60) return `${minutes} m ${two(seconds % 60)} s`;
return `${number(Math.floor(minutes / 60))} h ${two(minutes % 60)} m`;
}
const parsed = new Promise(done => document.readyState === "loading" ? addEventListener("DOMContentLoaded", done)
: done());
async function block(id) {
if (!$(id)) await parsed;
const element = $(id);
if (!element) return "";
if (element.type.endsWith("json")) return element.textContent;
const packed = element.textContent;
return inflated(Uint8Array.fromBase64?.(packed) ?? Uint8Array.from(atob(packed), letter => letter.charCodeAt(0)));
}
async function inflated(bytes) {
const stream = new DecompressionStream("gzip"), writer = stream.writable.getWriter();
const written = Promise.all([writer.write(bytes), writer.close()]);
const reader = stream.readable.getReader(), decoder = new TextDecoder();
let text = "";
for (let part = await reader.read(); !part.done; part = await reader.read()) {
text += decoder.decode(part.value, { stream: true });
}
await written;
return text + decoder.decode();
}
const FIELDS = { index: "at", total_ms: "all", self_ms: "own", max_concurrency: "width",
all_errors: "errors", all_tokens: "allTokens", all_cost: "allCost", all_unpriced: "unpriced" };
const FRACTIONS = new Set(["start", "end", "all", "own", "cost", "allCost", "allTokens", "input", "output", "cached"]);
const OPENED = new Map();
function openedRun(place) {
if (OPENED.size > 3 && !OPENED.has(place)) OPENED.delete(OPENED.keys().next().value);
if (!OPENED.has(place)) OPENED.set(place, openRun(place));
return OPENED.get(place);
}
async function openRun(place) {
const index = JSON.parse(await block("r" + place)), count = index.cols.level.length;
const opened = { place, meta: RUNS[place], count, base: index.base, names: index.names, models: index.models,
eventAt: index.lines && new Map(index.lines.map((line, at) => [line, at])), chunks: new Map(),
texts: index.text.split("\n"), outcomes: index.outcome.split("\n") };
for (const [field, column] of Object.entries(index.cols)) {
const name = FIELDS[field] || field;
opened[name] = (FRACTIONS.has(name) ? Float64Array : Int32Array).from(column);
index.cols[field] = null;
}
return relate(opened);
}
function relate(r) {
r.parent = new Int32Array(r.count).fill(-1);
r.size = new Int32Array(r.count).fill(1);
r.rowAt = new Int32Array(r.meta.events).fill(-1);
r.groupAt = new Map();
r.open = new Uint8Array(r.count);
const path = [];
for (let i = 0; i < r.count; i++) {
path.length = r.level[i];
if (path.length) r.parent[i] = path[path.length - 1];
path.push(i);
if (r.at[i] >= 0) r.rowAt[r.at[i]] = i;
else r.groupAt.set("g" + groupKey(r, i), i);
}
for (let i = r.count - 1; i > 0; i--) if (r.parent[i] >= 0) r.size[r.parent[i]] += r.size[i];
r.time = timeAxis(r);
return r;
}
function groupKey(r, i) {
let first = i + 1;
while (first < r.count && r.at[first] < 0) first++;
return first < r.count ? r.at[first] : i;
}
function chunk(r, place) {
if (!r.chunks.has(place)) {
if (r.chunks.size > 12) r.chunks.delete(r.chunks.keys().next().value);
r.chunks.set(place, block(`r${r.place}c${place}`));
}
return r.chunks.get(place);
}
async function* allChunks(r) {
for (let place = 0; place < r.meta.chunks; place++) {
for (let ahead = 1; ahead < 4 && place + ahead < r.meta.chunks; ahead++) chunk(r, place + ahead);
yield [await chunk(r, place), place * CHUNK];
}
}
async function body(r, at) {
const lines = (await chunk(r, Math.floor(at / CHUNK))).split("\n");
return JSON.parse(lines[at % CHUNK] || "{}");
}
const kind = i => KINDS[run.kind[i]];
const name = i => run.names[run.name[i]];
const rowId = i => run.at[i] >= 0 ? String(run.at[i]) : "g" + groupKey(run, i);
function rowOf(id) {
if (run.groupAt.has(id)) return run.groupAt.get(id);
return /^\d+$/.test(id) ? (run.rowAt[id] ?? -1) : -1;
}
const isError = i => (run.flags[i] & ERROR) > 0;
const isPaid = i => run.allTokens[i] || run.unpriced[i] || run.allCost[i];
function childrenOf(i) {
const found = [];
for (let at = i + 1; at < i + run.size[i]; at += run.size[at]) found.push(at);
return found;
}
function markOf(i) {
if (isError(i)) return "interrupted";
return kind(i) === "end" && run.flags[i] & WARNING ? "stopped" : kind(i);
}
function pathOf(row) {
const path = [];
for (let i = run.parent[row]; i >= 0 && path.length < 12; i = run.parent[i]) path.unshift(i);
return path;
}
const STATE = { run: 0, e: "", v: 1, q: "", k: "", d: "", m: "", t: "", err: "", cost: "", ms: "", s: "", c: "" };
const FILTERS = ["k", "d", "m", "t", "err", "cost", "ms"];
const VIEW_COUNT = 5;
const isNarrow = () => matchMedia("(max-width:480px)").matches;
function firstView() {
if (DATA.diff && !STATE.e) return 4;
return isNarrow() ? 5 : 1;
}
function readHash() {
const asked = new URLSearchParams(location.hash.slice(1));
for (const key of Object.keys(STATE)) if (key !== "run") STATE[key] = asked.get(key) || "";
STATE.v = Math.min(VIEW_COUNT, Math.max(1, +STATE.v || firstView()));
const wanted = asked.get("run"), place = wanted ? RUNS.findIndex(meta => meta.id === wanted) : STATE.run;
say(place < 0 ? `This page has no run “${wanted}”.` : "", "run");
return Math.max(0, place);
}
function hash() {
const asked = new URLSearchParams();
if (RUNS.length) asked.set("run", RUNS[STATE.run].id);
for (const [key, value] of Object.entries(STATE)) if (key !== "run" && value &&
!(key === "v" && value === firstView())) asked.set(key, value);
return "#" + asked;
}
function go(changes, push = true) {
Object.assign(STATE, changes);
const target = hash();
if (target !== location.hash) history[push ? "pushState" : "replaceState"](null, "", target);
}
const NOTICES = { run: "", event: "" };
function say(text, about = "event") {
NOTICES[about] = text;
$("notice").replaceChildren();
put($("notice"), Object.values(NOTICES).filter(Boolean).join(" "));
}
function text(title, value, options = {}) {
if (value === undefined || value === null || value === "") return null;
const { code = "", error = false, folded = false, note = null, at = 0 } = options;
const whole = show(value), look = { class: code === "python" ? "src" : "" };
const [part, count] = beginning(whole, folded, options.repeats);
const pre = h("pre", { tabindex: 0, "aria-label": title, dir: code ? null : "auto", ...look });
const [shown, raw] = options.readable && MARKED.test(part) ? readable(part) : [pre, null];
const head = [h("h3", {}, title), h("span", { class: "note" }, note ?? count), raw, copyButton("Copy", () => whole)];
const box = h("section", { class: "block" + (error ? " error" : "") }, h("header", {}, head), shown);
pre.hidden = !part;
fillText(pre, part, code, at);
if (part.length < whole.length) {
box.append(showMore(`Show ${folded ? "" : "all "}${count}`, () => {
pre.hidden = false;
fillText(pre, whole, code, at);
shown.replaceWith(raw ? readable(whole)[0] : pre);
}));
}
return box;
}
function beginning(whole, folded, repeats) {
const lines = whole.split("\n");
const count = lines.length > 1 ? `${number(lines.length)} lines` : `${number(whole.length)} characters`;
if (!repeats && hits(whole)) return [whole, count];
return [folded ? "" : lines.slice(0, SHOWN_LINES).join("\n").slice(0, SHOWN_CHARS), count];
}
const hits = whole => STATE.q !== "" && whole.length < 500000 && matcher(STATE.q).test(whole);
function showMore(label, act) {
const more = button(label, () => {
act();
markHits(more.parentNode);
more.remove();
}, { class: "more" });
return more;
}
function fillText(pre, content, code, at) {
pre.replaceChildren();
if (!code || content.length > 200000) { pre.classList.remove("src"); put(pre, content); return; }
let line = h("span", {});
const lines = [line];
for (const [look, words] of tokens(content, code)) {
words.split("\n").forEach((piece, i) => {
if (i) lines.push(line = h("span", {}));
if (piece) line.append(look ? h("span", { class: look }, piece)
: put(document.createDocumentFragment(), piece));
});
}
if (code === "python") pre.append(...lines.flatMap((item, i) => i ? ["", item] : [item]));
else pre.append(...lines.flatMap((item, i) => i ? ["\n", item] : [item]));
if (at && lines[at - 1]) lines[at - 1].className = "at";
}
const PYTHON = new RegExp(
[
/(#[^\n]*)/,
/((?:\b[rbfuRBFU]{1,2})?(?:"{3}[^]*?(?:"{3}|$)|'{3}[^]*?(?:'{3}|$)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?))/,
/\b(llm_query(?:_batched)?|rlm_query(?:_batched)?|FINAL(?:_VAR)?|SHOW_VARS|budget|context)\b/,
/\b(and|as|assert|async|await|break|case|class|continue|def|del|elif|else|except|False|finally|for|from|global)\b/,
/\b(if|import|in|is|lambda|match|None|nonlocal|not|or|pass|raise|return|True|try|while|with|yield)\b/,
/\b(\d[\w.]*)/,
/\b([A-Za-z_]\w*)(?=\()/,
].map(part => part.source).join("|"), "g");
const JSON_TOKENS = /("(?:\\.|[^"\\])*")(?=\s*:)|("(?:\\.|[^"\\])*")|\b(true|false|null)\b|(-?\b\d[\d.eE+-]*)/g;
function* tokens(content, code) {
const looks = code === "python" ? ["com", "str", "rlm", "kw", "kw", "num", "fn"] : ["fn", "str", "kw", "num"];
let last = 0;
for (const found of content.matchAll(code === "python" ? PYTHON : JSON_TOKENS)) {
if (found.index > last) yield ["", content.slice(last, found.index)];
yield [looks[found.slice(1).findIndex(group => group !== undefined)], found[0]];
last = found.index + found[0].length;
}
if (last < content.length) yield ["", content.slice(last)];
}
function copyButton(label, content) {
const act = async () => copy(await content(), made);
const made = button("", act, { "aria-label": label === "Copy" ? null : "Copy " + label });
made.append(icon("copy"), label);
return made;
}
async function copy(content, from) {
try { await navigator.clipboard.writeText(content); }
catch {
const field = h("textarea", { class: "vh" });
field.value = content;
document.body.append(field);
field.select();
document.execCommand("copy");
field.remove();
}
const old = [...from.childNodes];
from.replaceChildren("✓");
setTimeout(() => from.replaceChildren(...old), 1200);
}
const MARKED = /\*\*\S|`[^`\n]|^\s{0,6}(?:[-*+•]|\d{1,3}[.)])\s+\S|^#{1,6}\s|^\s*\|.*\|\s*$/m;
function markdown(source) {
const box = h("div", { class: "md" }), lines = source.split("\n");
for (let at = 0; at < lines.length;) {
const block = [mdFence, mdHeading, mdRule, mdTable, mdList, mdQuote, mdParagraph].find(make => make.at(lines, at));
const [element, next] = block(lines, at);
if (element) box.append(element);
at = next;
}
return auto(box);
}
function auto(element) {
element.dir = "auto";
return element;
}
function spanned(lines, at, belongs) {
let end = at + 1;
while (end < lines.length && belongs(lines[end])) end++;
return end;
}
const FENCE = /^\s{0,9}(`{3,}|~{3,})\s*([\w+-]*)/, ITEM = /^(\s{0,40})(?:[-*+•]|(\d{1,9})[.)])\s+(\S.*)$/;
const RULED = /^\s*\|?\s*:?-{1,99}:?\s*(?:\|\s*:?-{1,99}:?\s*){0,99}\|?\s*$/;
const isTable = (lines, at) => lines[at].includes("|") && /\|/.test(lines[at + 1] || "") && RULED.test(lines[at + 1]);
function mdFence(lines, at) {
const [, mark, language] = FENCE.exec(lines[at]);
const end = spanned(lines, at, line => !line.trim().startsWith(mark));
const pre = h("pre", { tabindex: 0, "aria-label": "Code" });
fillText(pre, lines.slice(at + 1, end).join("\n"), /^(py|python|repl)\w*$/.test(language) ? "python" : "", 0);
return [pre, end + 1];
}
mdFence.at = (lines, at) => FENCE.test(lines[at]);
const mdHeading = (lines, at) =>
[inline(h("p", { class: "mdh" }), lines[at].replace(/^#{1,6}\s+/, "").replace(/\s+#+$/, "")), at + 1];
mdHeading.at = (lines, at) => /^#{1,6}\s+\S/.test(lines[at]);
const mdRule = (lines, at) => [h("hr"), at + 1];
mdRule.at = (lines, at) => /^\s{0,3}(?:-\s*){3,99}$|^\s{0,3}(?:\*\s*){3,99}$/.test(lines[at]);
function mdTable(lines, at) {
const end = spanned(lines, at + 1, line => line.includes("|"));
const cells = line => line.trim().replace(/^\||\|$/g, "").split("|").map(cell => cell.trim());
const made = (line, tag) => h("tr", {}, cells(line).map(cell => auto(inline(h(tag), cell))));
const rows = lines.slice(at + 2, end).map(line => made(line, "td"));
const table = h("table", {}, h("thead", {}, made(lines[at], "th")), h("tbody", {}, rows));
return [h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" }, table), end];
}
mdTable.at = isTable;
function mdList(lines, at) {
const end = spanned(lines, at, line => ITEM.test(line) || /^\s+\S/.test(line)), open = [];
let last = null;
for (const line of lines.slice(at, end)) {
const [, space, count, words] = ITEM.exec(line) || [];
if (words === undefined) { inline(last, "\n" + line.trim()); continue; }
while (open.length > 1 && open.at(-1).deep > space.length) open.pop();
if (!open.length || (open.at(-1).deep < space.length && open.length < 8)) {
const list = count ? h("ol", { start: count }) : h("ul");
if (open.length) last.append(list);
else open.root ??= list;
open.push({ deep: space.length, list });
}
open.at(-1).list.append(last = auto(inline(h("li"), words)));
}
return [auto(open.root), end];
}
mdList.at = (lines, at) => ITEM.test(lines[at]);
function mdQuote(lines, at) {
const end = spanned(lines, at, line => /^\s*>/.test(line));
return [inline(h("blockquote"), lines.slice(at, end).map(line => line.replace(/^\s*>\s?/, "")).join("\n")), end];
}
mdQuote.at = (lines, at) => /^\s{0,3}>/.test(lines[at]);
function mdParagraph(lines, at) {
const starts = next => [mdFence, mdHeading, mdRule, mdTable, mdList, mdQuote].some(make => make.at(lines, next));
let end = at + 1;
while (end < lines.length && lines[end].trim() && !starts(end)) end++;
const words = lines.slice(at, end).join("\n");
return [words.trim() ? auto(inline(h("p"), words)) : null, end];
}
mdParagraph.at = () => true;
const INLINE = new RegExp([
/(`{1,3})(?!`)([^\n]{1,400}?)(?<!`)\1(?!`)/,
/\*\*(?=\S)([^]{1,400}?\S?)\*\*/,
/(?<![\w*])\*(?=[^\s*])([^*\n]{1,200})(?<!\s)\*(?![\w*])/,
/(?<!\w)_(?=[^\s_])([^_\n]{1,200})(?<!\s)_(?!\w)/,
].map(part => part.source).join("|"), "g");
function inline(box, words) {
const parts = document.createDocumentFragment();
let last = 0;
INLINE.lastIndex = 0;
for (let found = INLINE.exec(words); found; found = INLINE.exec(words)) {
put(parts, words.slice(last, found.index));
const [whole, , code, bold, star, line] = found;
if (code !== undefined) parts.append(h("code", {}, code));
else parts.append(inline(h(bold === undefined ? "em" : "strong"), bold ?? star ?? line));
INLINE.lastIndex = last = found.index + whole.length; // what is within has moved it
}
box.append(put(parts, words.slice(last)));
return box;
}
function readable(content, made) {
const raw = () => put(h("div", { class: "prose", dir: "auto" }), content);
const box = h("div", { class: "readable" }, MARKED.test(content) ? markdown(content) : raw());
made?.(box);
if (!MARKED.test(content)) return [box, null];
const toggle = button("Raw", () => {
const pressed = toggle.getAttribute("aria-pressed") === "true";
toggle.setAttribute("aria-pressed", !pressed);
box.replaceChildren(pressed ? markdown(content) : raw());
made?.(box);
}, { class: "raw", "aria-pressed": false });
return [box, toggle];
}
function showSummary() {
const meta = run.meta, [asked, ended, source] = meta.at;
const [answer, raw] = readable(meta.answer || (meta.status === "unfinished" ? "none yet" : "none"), wrapValues);
answer.id = "answer";
answer.classList.add("clamp");
$("summary").replaceChildren(
h("div", { class: "qa" },
h("div", {}, h("h2", {}, "Question", meta.cut[0] ? eventLink("whole text", asked) : null),
h("div", { id: "question", class: "prose clamp", dir: "auto" }, meta.question)),
h("div", {}, h("h2", {}, "Answer ", h("span", { id: "status", class: "badge " + meta.status }, meta.status),
h("span", { class: "grow" }), answerLink(meta, ended, source), raw, copyButton("Copy", () => meta.answer)),
failure(meta), answer, h("div", { id: "origin" }))),
h("ul", { id: "findings", class: "findings", "aria-label": "Findings" }),
h("dl", { class: "cards" }, meta.cards.map(card => cardOf(card, meta))),
h("ul", { class: "problems" }, meta.problems.map(text => h("li", {}, text))));
for (const box of document.querySelectorAll(".clamp")) clamp(box);
showFindings();
document.title = (firstLine(meta.question).slice(0, 60) || meta.id) + " · rlm trajectory";
}
function answerLink(meta, ended, source) {
if (meta.cut[1]) return eventLink("whole text", ended);
if (source < 0 || run.rowAt[source] < 0) return null;
const row = run.rowAt[source];
return eventLink("from " + (kind(row) === "cell" ? `${name(run.parent[row])}, ${name(row)}` : name(row)), source);
}
const eventLink = (label, at) => button(label, () => select(run.rowAt[at], { push: true, reveal: true }),
{ class: "link" });
function failure(meta) {
const open = meta.status === "unfinished" && !DATA.live;
const why = meta.failure || (open && { message: "The run has no end: it goes on, or it was killed.",
command: "rlm resume " + meta.id, first: -1 });
if (!why) return null;
const first = run.rowAt[why.first] >= 0 ? run.rowAt[why.first] : -1;
return h("div", { class: "failure", id: "failure" },
h("p", {}, why.type ? [h("b", {}, why.type), ": "] : "", why.message),
why.hint ? h("p", {}, "Next: " + why.hint) : null,
why.command ? h("p", { class: "command" }, h("code", {}, why.command), copyButton("Copy", () => why.command))
: null,
first < 0 ? null : h("p", {}, "First failure: ", eventLink(`${name(first)}: ${run.outcomes[first]}`, why.first)));
}
async function showFindings() {
const r = run;
await new Promise(done => idle(done));
if (r !== run) return;
const found = [...notes(), ...await repeated(r)].filter(([, rows]) => rows.length);
if (r !== run) return;
$("findings").replaceChildren(...found.map(([words, [row]]) =>
h("li", {}, button(words, () => select(row, { push: true, reveal: true }), { class: "link" }))));
}
function notes() {
const rows = [...run.level.keys()], flagged = flag => rows.filter(i => run.flags[i] & flag);
const cut = flagged(WARNING).filter(i => kind(i) === "turn" || kind(i) === "sub"), retried = flagged(RETRIED);
const now = rows.filter(i => run.at[i] >= run.meta.at[0]), ran = now.some(i => ["cell", "tool"].includes(kind(i)));
const took = retried.reduce((sum, i) => sum + run.own[i], 0);
return [
["answered without running code", ran || run.meta.status !== "answered" ? [] : now.filter(isTurn).slice(-1)],
dearest(rows),
[counted(cut.length, "reply").replace("replys", "replies") + " cut off", cut],
[`${counted(retried.length, "call")} retried: ${duration(took)}`, retried],
["variables lost with a cell that was stopped", flagged(RESTORED)],
];
}
const isTurn = i => kind(i) === "turn";
function dearest(rows) {
const whole = rows.reduce((sum, i) => sum + Math.max(0, run.cost[i]), 0);
const row = rows.findLast(i => (kind(i) === "batch" || name(i) === "rlm_query") && run.allCost[i] > whole / 2);
if (!whole || row === undefined) return ["", []];
const what = kind(row) === "batch" ? "batch" : "child";
return [`${Math.round(100 * run.allCost[row] / whole)} % of the cost in one ${what}`, [row]];
}
const COMPARED_CELLS = 400;
async function repeated(r) {
const cells = rowsOf("cell"), groups = new Map();
if (cells.length > COMPARED_CELLS) return [];
for (const i of cells) {
const { code } = await body(r, r.at[i]), key = r.node[i] + show(code).trim();
groups.set(key, [...(groups.get(key) || []), i]);
}
const same = [...groups.values()].filter(rows => rows.length > 1).sort((a, b) => b.length - a.length);
return same.slice(0, 2).map(rows => [`the same cell ${counted(rows.length, "time")}`, rows]);
}
function clamp(box) {
if (box.scrollHeight <= box.clientHeight + 4) { box.classList.remove("clamp"); return; }
const more = button("Show all", () => {
more.textContent = box.classList.toggle("clamp") ? "Show all" : "Show less";
}, { class: "link" });
box.after(more);
}
function cardOf([title, value, note, limits], meta) {
const bad = title === "Errors" && meta.errors;
const meters = limits.map(([words, share]) => [h("span", {}, words), meter(words, share)]);
return h("div", { class: bad ? "bad" : "" }, h("dt", {}, title), h("dd", {}, value),
h("dd", { class: "note" }, note, meters));
}
function meter(label, share) {
const full = Math.min(100, Math.round(share * 100));
const fill = h("span", { class: `fill k-${share < 0.9 ? "end" : "tool"}` });
fill.style.width = full + "%";
const range = { role: "meter", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": full };
return h("span", { class: "track", "aria-label": label, ...range }, fill);
}
function showPicker() {
$("pick").replaceChildren(...RUNS.map((meta, i) =>
h("option", { value: i }, `${meta.id} · ${meta.status} · ${firstLine(meta.question).slice(0, 60)}`)));
$("pick").value = STATE.run;
$("pick").hidden = !RUNS.length;
}
const DIGITS = `\\d+(?:[${BETWEEN}]\\d+)*`, NUMBER = new RegExp(DIGITS, "g");
const UNITS = "%|(?:thousand|million|billion|[kMB])\\b", FIGURE = new RegExp(`^(${DIGITS})\\s?(${UNITS})?$`);
const VALUE = new RegExp([
"\\d{4}-\\d\\d-\\d\\d(?:[T ]\\d\\d:\\d\\d(?::\\d\\d)?)?|\\d{1,2}:\\d\\d(?::\\d\\d)?", // a date or a time, as written
'“[^”\\n]{2,200}”|"[^"\\n]{2,200}"|`[^`\\n]{2,200}`|‘[^’\\n]{3,200}’',
`${DIGITS}(?:\\s?(?:${UNITS}))?`,
].join("|"), "g");
const SCALES = { k: 1e3, thousand: 1e3, M: 1e6, million: 1e6, B: 1e9, billion: 1e9 };
const TRACED_ANSWERS = 60, TRACED_EVENTS = 3000;
function numberOf(words) {
const marks = words.replace(/\d/g, "");
const last = words.length - 1 - Math.max(words.lastIndexOf("."), words.lastIndexOf(","));
const alone = marks.length === 1 && (marks === "." || last !== 3);
const decimal = /[.,]/.test(marks) && (new Set(marks).size > 1 || alone);
const decimals = decimal ? last : 0, digits = words.replace(/\D/g, "");
return { value: +digits / 10 ** decimals, decimals };
}
function recogniser(words) {
const [, figure, unit] = FIGURE.exec(words) || [];
if (figure === undefined) {
const each = new RegExp(escaped(bare(words)).replace(/\s+/g, "\\s+"), "gi");
return content => [...content.matchAll(each)].map(hit => [hit.index, hit.index + hit[0].length]);
}
const { value, decimals } = numberOf(figure), scale = SCALES[unit] || 1, close = 0.5000001 * 10 ** -decimals;
const rounds = figure.replace(/\D/g, "").length > 1;
const same = other => Math.abs(other / scale - value) <= (rounds ? close : 0) ||
(unit === "%" && Math.abs(other * 100 - value) <= close);
return (content, numbers = numbersIn(content)) => numbers.filter(hit => same(hit[2])).map(([from, to]) => [from, to]);
}
const numbersIn = content => [...content.matchAll(NUMBER)].map(hit =>
[hit.index, hit.index + hit[0].length, numberOf(hit[0]).value]);
const isTelling = words => !/^\d$/.test(words);
const bare = words => words.replace(/^[“"`‘]|[”"`’]$/g, "");
function valuesOf(content) {
return [...new Set([...content.matchAll(VALUE)].map(hit => bare(hit[0])).filter(isTelling))].slice(0, TRACED_ANSWERS);
}
function wrapValues(box) {
const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), nodes = [];
while (walker.nextNode()) nodes.push(walker.currentNode);
for (const node of nodes) {
const code = node.parentElement.tagName === "CODE" && node.data.length > 2 && node.data.length < 200;
if (code) { node.replaceWith(valueButton(node.data)); continue; }
for (const hit of [...node.data.matchAll(VALUE)].reverse()) {
if (!isTelling(hit[0])) continue;
const rest = node.splitText(hit.index);
rest.splitText(hit[0].length);
rest.replaceWith(valueButton(hit[0]));
}
}
markLost(box);
}
const valueButton = words =>
button(words, () => trace(bare(words)), { class: "link value", title: "Where it comes from" });
const SAID = {
node: (event, i) => {
const [asked, given] = run.depth[i] ? [`${name(i)}'s prompt`, `${name(i)}'s context`]
: ["the question", "the context's beginning"];
return [[asked, event.prompt], [given, event.announcement || event.context?.preview]];
},
turn: (event, i) => [[`${name(i)}'s reply`, event.response]],
sub: (event, i) => [[subName(i) + "'s prompt", contentOf(event.prompt)], [subName(i), event.response]],
cell: (event, i) => [[`${name(i)}'s code`, event.code], [`${name(i)}'s output`,
[event.stdout, event.value].filter(Boolean).map(show).join("\n")], [`${name(i)}'s error`, tracebackOf(event)]],
tool: (event, i) => [[`${name(i)}'s result`, contentOf(event.tool_results)]],
compact: event => [["a summary", event.summary]],
end: (event, i) => run.depth[i] ? [[`${name(nodeOf(i))}'s answer`, event.response]] : [],
};
const subName = i => name(i) === "llm_query" ? "sub-call " + run.texts[i].slice(1) : name(i);
const contentOf = list => Array.isArray(list) ? list.map(item => contentText(item?.content ?? "")).join("\n")
: show(list);
function answerRows() {
const source = run.rowAt[run.meta.at[2]] ?? -1;
return new Set(source < 0 ? [] : [source, kind(source) === "cell" ? run.parent[source] : source]);
}
async function placesOf(recognisers, enough = false) {
const answer = answerRows(), found = recognisers.map(() => []), open = new Set(recognisers.keys()), r = run;
for await (const [lines, first] of allChunks(r)) {
if (r !== run || !open.size) break;
lines.split("\n").forEach((line, n) => {
const i = r.rowAt[first + n], said = i >= 0 && first + n < endOfRun() && open.size ? SAID[kind(i)] : null;
for (const [label, value] of said ? said(JSON.parse(line), i) : []) {
const content = contentText(value ?? ""), numbers = numbersIn(content), own = answer.has(i);
for (const at of open) {
const [hit] = recognisers[at](content, numbers);
if (hit) found[at].push({ i, label, content, hit, own });
if (hit && enough && !own) open.delete(at);
}
}
});
}
return found;
}
const endOfRun = () => run.meta.at[1] < 0 ? run.meta.events : run.meta.at[1];
async function trace(words) {
const [places] = await placesOf([recogniser(words)]), before = places.filter(place => !place.own);
const typed = places.some(place => place.own && (kind(place.i) === "turn" || place.label.endsWith("code")));
const source = run.rowAt[run.meta.at[2]] ?? -1;
const made = !before.length && !typed && source >= 0 && kind(source) === "cell";
const chain = [...before.slice(0, 12).map(place => placeLink(place, words)),
before.length > 12 ? `… ${number(before.length - 12)} more` : null,
made ? [eventLink(`computed in ${name(source)}`, run.at[source])] : null, h("b", {}, "answer")].filter(Boolean);
const heading = before.length || made ? chain.flatMap((step, n) => n ? [" → ", step] : [step])
: [h("b", { class: "lost" }, "not found in the run"), " before the answer"];
$("origin").replaceChildren(h("div", { class: "tracing", role: "status" },
h("p", {}, h("b", {}, words), ": ", heading, " ", button("×", () => $("origin").replaceChildren(), { class: "icon",
"aria-label": "Close the trace" })),
h("ul", {}, before.slice(0, 100).map(place => placeLine(place, words)))));
}
function placeLink(place, words) {
const act = () => { go({ q: place.content.slice(...place.hit) }, false); $("q").value = STATE.q; search();
select(place.i, { push: true, reveal: true }); };
return button(place.label, act, { class: "link", "aria-label": `${words} in ${place.label}` });
}
function placeLine(place, words) {
const [from, to] = place.hit, { content } = place;
return h("li", {}, placeLink(place, words), " ", h("span", { class: "around", dir: "auto" },
(from > AROUND ? "…" : "") + content.slice(Math.max(0, from - AROUND), from),
h("mark", {}, content.slice(from, to)),
content.slice(to, to + AROUND) + (content.length > to + AROUND ? "…" : "")));
}
async function markLost(box) {
const values = valuesOf(run.meta.answer || ""), r = run;
if (!values.length || r.meta.events > TRACED_EVENTS || r.meta.at[2] < 0) return;
await new Promise(done => idle(done));
if (r !== run) return;
r.lost ??= placesOf(values.map(recogniser), true).then(found => {
const source = r.rowAt[r.meta.at[2]], computed = KINDS[r.kind[source]] === "cell";
return values.filter((_, at) => !found[at].some(place => !place.own) && !(computed &&
!found[at].some(place => place.own && place.label.endsWith("code"))));
});
const lost = new Set(await r.lost);
if (r !== run) return;
for (const made of box.querySelectorAll(".value")) made.classList.toggle("lost", lost.has(bare(made.textContent)));
$("lost")?.remove();
const words = "Not found in the run: " + [...lost].join(", ");
if (lost.size) $("origin").before(h("p", { id: "lost", class: "note" }, words));
}
function offerTrace() {
const chosen = getSelection(), offer = $("offer");
const words = chosen.isCollapsed ? "" : String(chosen).trim();
const inside = chosen.rangeCount && chosen.anchorNode?.parentElement?.closest("#summary, #inspector, #v5");
offer.hidden = !inside || words.length < 2 || words.length > 200;
if (offer.hidden) return;
const box = chosen.getRangeAt(0).getBoundingClientRect();
offer.style.left = Math.max(4, Math.min(innerWidth - 130, box.left)) + "px";
offer.style.top = Math.max(4, box.top - 40) + "px";
}
function traceSelected() {
const words = String(getSelection()).trim();
$("offer").hidden = true;
if (words.length < 2) return;
trace(words);
$("origin").scrollIntoView({ block: "nearest" });
}
const FILTER_TESTS = {
k: (i, want) => want.split(",").includes(kind(i)),
d: (i, want) => run.depth[i] === +want,
m: (i, want) => run.models[run.model[i]] === want && run.input[i] + run.output[i] > 0,
t: (i, want) => want === "execute_code" ? kind(i) === "cell" : kind(i) === "tool" && name(i) === want,
err: i => isError(i),
cost: (i, want) => run.cost[i] >= +want && run.input[i] + run.output[i] > 0,
ms: (i, want) => run.own[i] >= +want,
};
function applyFilters() {
const active = FILTERS.filter(key => STATE[key]);
run.match = run.keep = null;
if (active.length) {
run.match = new Uint8Array(run.count);
run.keep = new Uint8Array(run.count);
for (let i = run.count - 1; i >= 0; i--) {
run.match[i] = active.every(key => FILTER_TESTS[key](i, STATE[key])) ? 1 : 0;
run.keep[i] |= run.match[i];
if (run.keep[i] && run.parent[i] >= 0) run.keep[run.parent[i]] = run.open[run.parent[i]] = 1;
}
}
$("active").textContent = active.length || "";
}
const ORDERS = {
tokens: i => run.input[i] + run.output[i],
cost: i => run.cost[i],
time: i => UNTIMED.includes(kind(i)) ? 0 : run.own[i],
};
const order = () => STATE.s.replace("-", "") in ORDERS ? STATE.s.replace("-", "") : "";
function inOrder() {
const value = ORDERS[order()], up = STATE.s.startsWith("-") ? -1 : 1, found = [];
for (let i = 0; i < run.count; i++) if (value(i) && (!run.match || run.match[i])) found.push(i);
return found.sort((a, b) => up * (value(b) - value(a)) || a - b);
}
function sortBy(column) {
const next = { "": column, [column]: "-" + column, ["-" + column]: "" }[STATE.s] ?? column;
go({ s: next }, false);
showRows();
showOrder();
}
function showOrder() {
for (const head of document.querySelectorAll("#grid [data-sort]")) {
const mine = order() === head.dataset.sort, up = STATE.s.startsWith("-");
head.setAttribute("aria-sort", mine ? up ? "ascending" : "descending" : "none");
}
}
function findVisible() {
if (order()) { run.visible = inOrder(); return; }
const found = [];
for (let i = 0; i < run.count; i += run.open[i] ? 1 : run.size[i]) {
if (run.keep && !run.keep[i]) { i += run.size[i] - (run.open[i] ? 1 : run.size[i]); continue; }
found.push(i);
}
run.visible = found;
}
function openAtFirst() {
const atLevel = [];
for (let i = 0; i < run.count; i++) atLevel[run.level[i]] = (atLevel[run.level[i]] || 0) + 1;
let sum = 0, deepest = 0;
while (deepest < atLevel.length && (sum += atLevel[deepest]) <= 3000) deepest++;
for (let i = 0; i < run.count; i++) run.open[i] = run.size[i] > 1 && kind(i) !== "batch" &&
run.level[i] < Math.max(3, deepest) ? 1 : 0;
}
function reveal(row) {
let changed = Boolean(order() && !run.visible.includes(row));
if (changed) go({ s: "" }, false);
for (let i = run.parent[row]; i >= 0; i = run.parent[i]) if (!run.open[i]) changed = run.open[i] = true;
if (changed) showRows();
}
function setAll(open) {
for (let i = 0; i < run.count; i++) run.open[i] = open && run.size[i] > 1 ? 1 : 0;
if (!open) for (let i = 0; i < run.count; i += run.size[i]) run.open[i] = 1;
showRows();
}
let rowHeight = 32, filling = 0;
const virtual = () => run.visible.length > PLAIN_ROWS;
function showRows() {
findVisible();
const box = $("rows"), kept = document.activeElement?.closest("#rows") ? STATE.e : "";
cancelIdle(filling);
box.replaceChildren();
box.classList.toggle("virtual", virtual());
$("grid").setAttribute("aria-rowcount", run.visible.length + 1);
box.style.height = "";
if (!run.visible.length) box.append(noRow());
else if (virtual()) {
rowHeight = matchMedia("(max-width:480px)").matches ? 58 : 32;
box.style.height = run.visible.length * rowHeight + "px";
fillWindow();
} else fillSome(0, FIRST_ROWS);
if (kept) focusRow(rowOf(kept));
}
function noRow() {
const why = run.count ? "No row passes these filters." : "This log has no event yet.";
return h("div", { role: "row", class: "empty" }, h("div", { role: "gridcell" }, why));
}
const idle = window.requestIdleCallback || (act => setTimeout(act, 1));
const cancelIdle = window.cancelIdleCallback || clearTimeout;
function fillSome(from, to) {
$("rows").append(...run.visible.slice(from, to).map((row, i) => rowElement(row, from + i)));
if (to < run.visible.length) filling = idle(() => fillSome(to, to + 400));
}
function fillWindow() {
if (!virtual() || $("v1").hidden) return;
const box = $("rows"), top = Math.max(0, -box.getBoundingClientRect().top), shown = new Set();
const from = Math.max(0, Math.floor(top / rowHeight) - 15);
const to = Math.min(run.visible.length, from + Math.ceil(innerHeight / rowHeight) + 30);
for (const old of [...box.children]) {
const outside = old.place < from || old.place >= to;
if (outside && !old.contains(document.activeElement)) old.remove();
else shown.add(old.place);
}
for (let place = from; place < to; place++) {
if (!shown.has(place)) box.append(placed(rowElement(run.visible[place], place)));
}
}
function placed(element) {
element.style.top = element.place * rowHeight + "px";
return element;
}
function rowElement(i, place) {
const parent = run.parent[i], chosen = rowId(i) === STATE.e, flat = order() !== "", many = run.size[i] > 1 && !flat;
const element = h("div", {
role: "row", id: "row" + rowId(i), tabindex: chosen || (place === 0 && !STATE.e) ? 0 : -1,
"aria-level": flat ? 1 : run.level[i] + 1, "aria-rowindex": place + 2,
"aria-selected": chosen, "aria-expanded": many ? !!run.open[i] : null,
class: (run.match && !run.match[i] ? "dim " : "") + (SEARCH.hits.has(i) ? "hit" : ""),
}, nameCell(i), barCell(i), ...figureCells(i));
element.row = i;
element.place = place;
if (parent >= 0 && run.level[i] > 40) element.title = `level ${run.level[i]}`;
return element;
}
function nameCell(i) {
const indent = h("span", { class: "in" }), flat = order() !== "";
indent.style.setProperty("--l", flat ? 0 : Math.min(run.level[i], 24));
const where = flat ? h("span", { class: "where" }, pathOf(i).slice(-3).map(above => name(above) + " › ")) : null;
return h("div", { role: "gridcell", class: "name" }, indent,
h("span", { class: "twist" + (run.size[i] > 1 && !flat ? " has" : "") }), icon(markOf(i)), where,
h("b", {}, name(i)), tags(i), told(i));
}
function told(i) {
const k = kind(i), code = k === "cell" || k === "tool" ? " code" : "", outcome = run.outcomes[i];
const result = outcome && h("span", { class: `out${isError(i) ? " failed" : ""}${code}`, dir: "auto" }, outcome);
return [h("span", { class: "said" + code, dir: "auto" }, run.texts[i]),
result ? [h("span", { class: "arrow" }, "→"), result] : null];
}
function tags(i) {
const found = [], add = (text, look) => found.push(h("span", { class: "tag " + look }, text)),
flags = run.flags[i], k = kind(i);
if (run.level[i] > 24) add("level " + run.level[i], "");
if (flags & ERROR) k === "end" || add("error", "error");
else if (run.errors[i] && !run.open[i]) add(run.errors[i] + (run.errors[i] > 1 ? " errors" : " error"), "error");
if (flags & FINAL) add("answer", "final");
if (flags & WARNING) add(k === "end" ? "stopped" : "cut short", "warn");
if (flags & RESTORED) add("variables restored", "warn");
if (flags & RETRIED) add("retried", "warn");
if (flags & ESTIMATED) add("estimate", "");
if (run.width[i] > 1 && (k === "batch" || k === "cell")) add(run.width[i] + " at once", "");
else if (k === "batch") add("sequential", "");
return found;
}
function barCell(i) {
const bar = h("span", {}), left = run.time.share(run.start[i]);
bar.style.left = left * 100 + "%";
bar.style.width = (run.time.share(run.end[i]) - left) * 100 + "%";
return h("div", { role: "gridcell", class: `bar k-${isError(i) ? "error" : kind(i)}` }, bar);
}
function figureCells(i) {
const paid = isPaid(i), own = run.input[i] + run.output[i], cost = run.cost[i], flat = order() !== "";
const timed = !UNTIMED.includes(kind(i));
const cell = (total, self, look) => h("div", { role: "gridcell", class: "figure" + (look || "") },
h("span", {}, flat ? self : total), h("i", {}, self && self !== total && !flat ? ` (${self})` : ""));
const nonzero = (value, words) => value ? words : "";
return [
paid ? cell(number(run.allTokens[i]), nonzero(own, number(own)), " first") : cell("", "", " first"),
paid ? cell(money(run.allCost[i], run.unpriced[i]), cost < 0 ? "?" : nonzero(flat || cost < run.allCost[i],
nonzero(cost, money(cost, 0)))) : cell("", ""),
timed ? cell(duration(run.all[i]), nonzero(run.own[i] >= 1, duration(run.own[i]))) : cell("", ""),
];
}
const element = row => row < 0 ? null : $("row" + rowId(row));
function ensured(row) {
const place = run.visible.indexOf(row);
if (place >= 0 && !element(row)) {
if (virtual()) $("rows").append(placed(rowElement(row, place)));
else { cancelIdle(filling); fillSome($("rows").childElementCount, run.visible.length); }
}
return element(row);
}
function focusRow(row, cell = -1) {
const found = ensured(row);
if (!found) return;
const target = found.children[cell] || found;
if (target !== found) target.tabIndex = -1;
target.focus({ preventScroll: true });
intoView(found);
}
function intoView(target) {
const box = target.getBoundingClientRect(), top = 140;
if (box.top < top) scrollBy(0, box.top - top);
else if (box.bottom > innerHeight - 8) scrollBy(0, box.bottom - innerHeight + 40);
}
function select(row, options = {}) {
if (row === undefined || row < 0) return;
const { push, focus, reveal: open, inspect } = options, reading = STATE.v === 5;
if (open && reading && !inspect) { readAt(row, push); return; }
if (open && !focus && !reading && STATE.v !== 1) setView(1);
if (open) reveal(row);
markRow(row, Boolean(push), (open || focus) && !reading);
showEvent(row);
if (inspect && reading && push) document.body.classList.add("open");
}
function markRow(row, push, focus) {
const before = element(rowOf(STATE.e)) || $("rows").querySelector("[tabindex='0']");
go({ e: rowId(row) }, push);
if (before) mark(before, false);
if (focus) focusRow(row);
if (element(row)) mark(element(row), true);
}
function readAt(row, push) {
go({ e: rowId(row) }, push);
showTranscript();
showEvent(row);
}
function mark(target, chosen) {
target.setAttribute("aria-selected", chosen);
target.tabIndex = chosen ? 0 : -1;
}
function toggle(row, open = !run.open[row]) {
if (run.size[row] < 2 || !!run.open[row] === open) return;
run.open[row] = open ? 1 : 0;
showRows();
focusRow(row);
}
const GRID_KEYS = {
ArrowDown: (row, cell) => step(row, 1, cell), ArrowUp: (row, cell) => step(row, -1, cell),
j: row => step(row, 1, -1), k: row => step(row, -1, -1),
PageDown: (row, cell) => step(row, 15, cell), PageUp: (row, cell) => step(row, -15, cell),
Home: (row, cell, event) => cell < 0 || event.ctrlKey ? step(row, -1e9, cell) : focusRow(row, 0),
End: (row, cell, event) => cell < 0 || event.ctrlKey ? step(row, 1e9, cell) : focusRow(row, 4),
ArrowRight: (row, cell) => cell < 0 && run.size[row] > 1 && !run.open[row] ? toggle(row, true)
: focusRow(row, Math.min(4, nextCell(row, cell, 1))),
ArrowLeft: (row, cell) => cell >= 0 ? focusRow(row, nextCell(row, cell, -1)) : run.size[row] > 1 && run.open[row]
? toggle(row, false) : run.parent[row] >= 0 && select(run.parent[row], { focus: true }),
Enter: row => { select(row, { push: true }); document.body.classList.add("open");
if (matchMedia("(max-width:900px)").matches) $("inspector").focus(); },
" ": row => toggle(row),
};
function nextCell(row, cell, by) {
const cells = element(row).children;
do cell += by; while (cells[cell] && !cells[cell].offsetWidth);
return cell;
}
function step(row, by, cell) {
const place = Math.max(0, Math.min(run.visible.length - 1, run.visible.indexOf(row) + by)),
next = run.visible[place];
if (next === undefined) return;
select(next, { focus: true });
focusRow(next, cell);
}
function gridKey(event) {
const target = event.target.closest("[role=row]"), act = GRID_KEYS[event.key];
if (!target || target.row === undefined || !act || event.altKey || event.metaKey) return;
event.preventDefault();
event.stopPropagation();
act(target.row, [...target.children].indexOf(event.target.closest("[role=gridcell]")), event);
}
function gridClick(event) {
const target = event.target.closest("[role=row]");
if (!target || target.row === undefined) return;
const twice = event.detail === 2 && run.size[target.row] > 1;
if (twice || event.target.closest(".twist.has")) { toggle(target.row); return; }
select(target.row, { push: true, focus: true });
document.body.classList.add("open");
}
function nextError() {
const from = rowOf(STATE.e);
for (let by = 1; by <= run.count; by++) {
const i = (from + by) % run.count;
if (isError(i)) { select(i, { push: true, reveal: true }); return; }
}
say("This run has no error.");
}
let shown = 0;
async function showEvent(row, stay = false) {
const ticket = ++shown, box = $("inspector"), top = stay ? box.scrollTop : 0;
const event = run.at[row] >= 0 ? await body(run, run.at[row]) : null;
const answers = event ? await elsewhere(row, event) : new Map();
if (ticket !== shown) return;
box.replaceChildren(inspectorTitle(row, event), pathTo(row), facts(row, event || {}),
h("div", { class: "blocks" }, ...blocks(row, event, answers)));
markHits(box);
box.scrollTop = top;
if (STATE.q && !stay) landOnHit();
}
function showNothing() {
shown++;
$("inspector").replaceChildren(h("p", { class: "empty" },
"Nothing has happened yet."));
}
function inspectorTitle(row, event) {
const close = button("×", () => { document.body.classList.remove("open"); focusRow(row); },
{ class: "icon close", "aria-label": "Close" });
const link = button("", () => copy(location.href, link),
{ class: "icon", "aria-label": "Copy link", "data-shortcut": "l" });
link.append(icon("link"));
return h("div", { class: "title" }, icon(markOf(row)), h("h2", {}, name(row)),
tags(row), h("span", { class: "grow" }), link,
event ? copyButton("JSON", () => JSON.stringify(event, null, 2)) : null, close);
}
function pathTo(row) {
const path = pathOf(row);
return h("nav", { class: "path", "aria-label": "Ancestors" },
path.map(i => [button(name(i), () => select(i, { push: true, reveal: true }), { class: "link" }),
h("span", { "aria-hidden": "true" }, "›")]), path.length ? h("span", {}, name(row)) : null);
}
const PLAIN_FACTS = ["status", "stop_reason", "attempts", "environment", "protocol", "backend", "sub_model", "depth"];
function facts(row, event) {
const usage = event.token_usage || {}, words = key => key.replace("_usd", "").replace("_", " ");
const list = [
["Model", run.models[run.model[row]]],
["Tokens", run.allTokens[row] ? number(run.allTokens[row]) + (usage.estimated ? " (estimate)" : "") : ""],
...USAGE.map(key => [words(key), usage[key] ? number(usage[key]) : ""]),
["Cost", run.allTokens[row] || run.unpriced[row] ? money(run.allCost[row], run.unpriced[row]) : ""],
["Time", run.all[row] ? duration(run.all[row]) : ""],
["Self", run.all[row] && run.own[row] !== run.all[row] ? duration(run.own[row]) : ""],
["Began", "+" + duration(run.start[row])],
...PLAIN_FACTS.map(key => [words(key), typeof event[key] === "object" ? "" : event[key]]),
["Images", imageCount(event) || ""], ["Dropped characters", event.dropped || ""],
...Object.entries(event.left || {}).map(([key, left]) => [words(key) + " left", leftOf(key, left)]),
];
const told = list.filter(([, value]) => value !== "" && value !== undefined);
const pairs = told.map(([title, value]) => h("div", {}, h("dt", {}, title), h("dd", {}, value)));
return h("dl", { class: "facts" }, pairs);
}
function leftOf(key, left) {
if (typeof left !== "number") return left === null ? "" : show(left);
return key === "cost_usd" ? money(left) : number(left);
}
async function elsewhere(row, event) {
const found = new Map(), wanted = Array.isArray(event.prompt)
? event.prompt.flatMap(message => refsOf(message).map(ref => ref.at)) : [];
if (kind(row) === "tool" && run.parent[row] >= 0) wanted.push(run.at[run.parent[row]]);
for (const at of wanted) if (at >= 0) found.set(at, await body(run, at));
return found;
}
function blocks(row, event, answers) {
if (!event) return [spawned(row, "Calls")];
const made = { node: nodeBlocks, turn: callBlocks, sub: callBlocks, cell: cellBlocks, tool: toolBlocks }[kind(row)];
const list = made ? made(row, event, answers)
: [event.error ? errorBlock(event.error) : null, text("Response", event.response), text("Value", event.value),
text("Summary", event.summary)];
list.push(text("Event", JSON.stringify(event, null, 2), { folded: true, code: "json", repeats: true }));
return list.filter(Boolean);
}
function nodeBlocks(row, event) {
return [text("Prompt", event.prompt), context(event.context), spawned(row, "Steps"),
fields("Limits", event.limits), fields("Tools", event.tools),
text("System prompt", event.system, { folded: true })];
}
function callBlocks(row, event, answers) {
const prompt = Array.isArray(event.prompt) ? sentBlocks(row, event, answers) : [text("Prompt", event.prompt)];
const calls = (event.tool_calls || []).map(call => callBlock(call));
return [text("Response", event.response, { readable: true }), ...calls, spawned(row, "What it ran"), ...prompt,
event.raw ? text("Raw", JSON.stringify(event.raw, null, 2), { folded: true, code: "json" }) : null];
}
function callBlock(call) {
if (!call || typeof call !== "object") return text("Tool call", show(call));
const code = call.arguments && call.arguments.code;
return typeof code === "string" ? text("Code to run", code, { code: "python", note: call.id })
: text("Call " + call.name, show(call.arguments), { code: "json", note: call.id });
}
function messageBlock(message, answers) {
if (!message || typeof message !== "object") return text("Message", show(message));
const role = String(message.role), refs = refsOf(message).filter(ref => answers.has(ref.at));
if (role === "assistant") return null;
const content = refs.length ? storedText(message, refs, refs.map(ref => answers.get(ref.at))) : message.content;
const note = refs.length ? refs.map(({ at }) => eventLink("stored in event " + at, at)) : null;
const images = Array.isArray(content) ? content.map(picture).filter(Boolean) : [];
return [text(`Prompt · ${role}`, contentText(content), { folded: role !== "user", note }), ...images];
}
function refsOf(message) {
const refs = Array.isArray(message?.refs) ? message.refs : [];
return refs.map(ref => ({ heading: ref?.heading, at: run.eventAt ? run.eventAt.get(ref?.index) : ref?.index }))
.filter(({ at }) => Number.isInteger(at) && at >= 0 && at < run.rowAt.length);
}
function storedText(message, refs, sources) {
const texts = sources.map((source, i) => {
const content = storedIn(source, message);
return refs[i].heading ? `${refs[i].heading}\n${contentText(content)}` : content;
});
return texts.length > 1 ? texts.map(contentText).join("\n\n") : texts[0];
}
function storedIn(source, message) {
if (source.event === "compact") return source.summary;
if (source.event !== "tool") {
const asked = [source.prompt, source.announcement].filter(Boolean);
return message.role === "system" ? source.system : asked.join("\n\n");
}
const results = (source.tool_results || []).filter(Boolean);
return (results.find(item => item.id === message.tool_call_id) || results[0])?.content ?? cellText(source);
}
function cellText(cell) {
const parts = [cell.stdout ?? "", cell.value ?? "", cell.brief || tracebackOf(cell)].map(show);
parts[0] = parts[0].replace(/\n+$/, "");
if (imageCount(cell)) parts.push(`[images made: ${imageCount(cell)}]`);
return (parts.filter(Boolean).join("\n") || "[no output]") + (cell.note ? "\n" + show(cell.note) : "");
}
const tracebackOf = event => event.traceback || errorText(event.error);
const imageCount = event => Array.isArray(event.images) ? event.images.length : event.images || 0;
const contentText = content => content === null ? "" : Array.isArray(content)
? content.map(part => part && part.type === "text" ? part.text
: `[${show(part && part.type)}] ${part && part.url || ""}`).join("\n") : show(content);
function picture(part) {
if (part?.type !== "image" || !/^image\/(png|jpeg|gif|webp)$/.test(part.media_type) ||
!/^[\w+/=\s]+$/.test(part.data)) return null;
return h("div", { class: "block" }, h("img",
{ alt: "image in the prompt", src: `data:${part.media_type};base64,${part.data}` }));
}
function madeImages(event) {
const kept = Array.isArray(event.images) ? event.images.filter(uri =>
/^data:image\/(png|jpeg|gif|webp);base64,[\w+/=\s]+$/.test(uri)) : [];
const note = imageCount(event) ? h("p", { class: "note" }, counted(imageCount(event), "image") + " made") : null;
return [note, ...kept.map(src => h("div", { class: "block" }, h("img", { alt: "image that the cell made", src })))];
}
function cellBlocks(row, event) {
const trouble = event.error ? errorBlock(tracebackOf(event)) : null,
at = /line (\d+), in <module>/.exec(show(event.traceback || ""));
const output = event.stdout || event.value
? [text("Output", event.stdout), text("Value", event.value, { code: "python" })]
: [trouble ? null : h("p", { class: "note" }, "No output.")];
return [h("div", { class: "pair" }, text("Code", event.code, { code: "python", at: at ? +at[1] : 0 }),
h("div", { class: "results" }, output.filter(Boolean), trouble)),
...madeImages(event),
"final" in event ? text("FINAL", show(event.final)) : null, spawned(row, "What it called")];
}
function toolBlocks(row, event, answers) {
const asked = (answers.get(run.at[run.parent[row]])?.tool_calls || []).find(call => call &&
call.id === event.tool_calls?.[0]);
const results = (event.tool_results || []).map(result => result &&
text("Result" + (result.is_error ? " (error)" : ""), contentText(result.content), { error: result.is_error }));
const sent = event.arguments ?? asked?.arguments;
return [sent === undefined ? null : text("Arguments", show(sent), { code: "json" }), ...results,
spawned(row, "Below")];
}
function errorBlock(error) {
if (typeof error !== "object") return text("Error", show(error), { error: true });
return text("Error", [error.type, error.message].filter(Boolean).map(show).join(": ") + (error.hint
? "\nnext: " + show(error.hint) : ""), { error: true });
}
const show = value => typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value, null, 2);
const context = value => value && typeof value === "object"
? text("Context", [["type", value.type], ["size", value.size], ["bytes", value.bytes], ["source", value.source],
["sha256", value.sha256]].filter(pair => pair[1] !== undefined &&
pair[1] !== null).map(([key, item]) =>
`${key.padEnd(7)} ${typeof item === "number" ? number(item) : show(item)}`).join("\n") + (value.preview
? "\n\n" + show(value.preview) : "")) : null;
const fields = (title, value) => value && typeof value === "object"
? text(title, Array.isArray(value) ? value.map(show).join("\n")
: Object.entries(value).map(([key, item]) => `${key.padEnd(18)} ${show(item)}`).join("\n"), { folded: true })
: null;
function spawned(row, title) {
const below = childrenOf(row);
if (!below.length) return null;
let how = "";
if (run.width[row] > 1) how = `${below.length} · up to ${run.width[row]} at once`;
else if (below.length > 1) how = `${below.length} · sequential`;
const more = below.length - 200;
const rest = more > 0 ? h("p", { class: "empty" }, `… and ${number(more)} more in the tree`) : null;
return h("section", { class: "block" },
h("header", {}, h("h3", {}, title), h("span", { class: "note" }, how)),
h("div", { class: "spawn" }, below.slice(0, 200).map(spawnedLine)), rest);
}
function spawnedLine(i) {
const line = button("", () => select(i, { push: true, reveal: true }));
const cost = isPaid(i) ? money(run.allCost[i], run.unpriced[i]) : "";
line.append(
icon(markOf(i)),
h("span", { class: "said", dir: "auto" }, h("b", {}, name(i)), " ", tags(i), " ",
h("i", {}, [run.texts[i], run.outcomes[i]].filter(Boolean).join(" → "))),
h("i", {}, cost), h("span", {}, duration(run.all[i])));
return line;
}
async function sentBefore(row) {
const log = [], messages = [], state = { messages, stubs: [], restarted: false };
for (let at = 0; at <= run.at[row]; at++) {
const i = run.rowAt[at];
if (i >= 0 && run.node[i] === run.node[row] && (kind(i) === "turn" || kind(i) === "compact")) log.push(at);
}
for (const at of log) {
const event = await body(run, at);
if (event.event === "compact") compacted(state, event);
else {
await hear(state, event);
if (at !== run.at[row]) state.messages.push(replied(event));
}
}
return state.messages;
}
async function hear(state, event) {
if (event.system && state.messages.length) state.messages[0] = { role: "system", content: event.system };
for (const message of Array.isArray(event.prompt) ? event.prompt : []) {
if (!message || typeof message !== "object") continue;
const refs = refsOf(message), sources = [];
for (const ref of refs) sources.push(await body(run, ref.at));
if (sources[0]?.event === "compact" && state.messages.some(known => known.summary)) continue;
sent(state, message, refs, sources);
}
for (const place of state.stubs) if (state.messages[place]) stub(state.messages[place]);
Object.assign(state, { stubs: [], restarted: false });
}
function sent(state, message, refs, sources) {
const reply = message.tool_call_ids && state.messages.at(-1);
if (reply?.role === "assistant" && !reply.tool_calls) reply.content = reply.content.trimEnd();
const content = sources.length ? storedText(message, refs, sources) : message.content;
const { refs: _, ...bare } = message;
state.messages.push({ ...bare, content, cells: sources.map(source => source.cell).filter(Boolean),
asked: sources[0]?.event === "start", restart: state.restarted && !sources.length });
}
function replied(event) {
const whole = show(event.response), kept = event.dropped ? whole.trimEnd().slice(0, -event.dropped) : whole;
const calls = event.tool_calls?.length ? { tool_calls: event.tool_calls } : {};
return { role: "assistant", content: kept, ...calls, turn: event.turn, dropped: event.dropped };
}
function stub(message) {
const kept = message.cells.map(cell => `_out[${cell}]`).join(" and ");
const where = kept ? `it is in ${kept}` : "call the tool again if you need it";
message.content = `[${number(contentText(message.content).length)} characters of output stood here; ${where}]`;
}
function compacted(state, event) {
if (event.restart) leaveOut(state, new Set(event.cells));
else if (event.summary) {
const newest = state.messages.slice(2).filter(message => message.asked).slice(-1);
const summary = { role: "user", content: "[the work so far, summed up]\n" + event.summary, summary: true };
state.messages.splice(2, Infinity, summary, ...newest);
} else state.stubs = event.places || [];
}
function leaveOut(state, cells) {
const { messages } = state, leaves = message => message.cells?.some(cell => cells.has(cell));
messages.pop(); // the newest reply: what came of it is not among them yet
while (messages.length > 2 && leaves(messages.at(-1))) messages.splice(-2);
if (messages.at(-1)?.restart) messages.pop();
state.restarted = true;
}
function sentBlocks(row, event, answers) {
const fresh = (Array.isArray(event.prompt) ? event.prompt : []).flatMap(m => messageBlock(m, answers) || []);
const box = h("div", { class: "sent" }, fresh);
if (kind(row) !== "turn") return [box];
const tokens = event.token_usage?.input ? `, ${number(event.token_usage.input)} tokens` : "";
const views = [["New messages", () => fresh], ["Everything sent", () => everything(row, event)]];
const buttons = views.map(([label, made]) => button(label, async () => {
for (const other of buttons) other.setAttribute("aria-pressed", other === pressed(label));
box.replaceChildren(...await made());
markHits(box);
}, { class: "chip", "aria-pressed": label === "New messages" }));
const pressed = label => buttons.find(other => other.dataset.label === label);
buttons.forEach((made, i) => { made.dataset.label = views[i][0]; });
sentBefore(row).then(messages => buttons[1].append(` (${counted(messages.length, "message")}${tokens})`));
const copyAll = copyButton("Messages", async () => JSON.stringify((await sentBefore(row)).map(wire), null, 2));
return [h("div", { class: "choose", role: "group", "aria-label": "Sent to the model" },
h("h3", {}, "Sent to the model"), buttons, copyAll), box];
}
const wire = ({ cells, asked, restart, summary, turn, dropped, ...message }) => message;
async function everything(row, event) {
const messages = await sentBefore(row), start = await startOf(row);
const last = messages.length - (Array.isArray(event.prompt) ? event.prompt.length : 0);
const sent = messages.map((message, i) => sentMessage(message, i < last));
return [...sent, offered(start.tool_schemas || start.tools)].filter(Boolean);
}
const ROLES = ["system", "user", "assistant", "tool"];
function sentMessage(message, old) {
const calls = (message.tool_calls || []).map(call => show(call?.arguments?.code ?? call)).join("\n\n");
const words = [contentText(message.content), calls].filter(Boolean).join("\n\n");
const from = message.turn ? ` · turn ${message.turn}` : "";
const note = message.dropped ? `without ${counted(message.dropped, "character")} that it made up` : null;
const made = text(`${message.role}${from}`, words || "(empty)", { folded: old, note });
made.classList.add("role", ROLES.includes(message.role) ? "role-" + message.role : "role-other");
return made;
}
async function startOf(row) {
const first = run.rowAt.findIndex(i => i >= 0 && run.node[i] === run.node[row] && kind(i) === "node");
return first < 0 ? {} : body(run, first);
}
function offered(tools) {
const list = Array.isArray(tools) ? tools.map(show).join("\n") : "";
return text("Tools offered", list, { folded: true });
}
const SEARCH = { hits: new Map(), list: [], at: -1, ticket: 0, sorted: true, ranges: [], here: -1,
backwards: false };
const NOISE = new Set([
"v", "event", "kind", "trajectory_id", "call_id", "parent_call_id", "timestamp", "node", "key", "id", "role", "type",
"tool_call_id", "tool_call_ids", "media_type", "sha256", "index", "images", "stop_reason", "status", "depth",
]);
const AROUND = 40;
const GROUPED = new RegExp(`^\\s*(\\d{1,3}(?:[${BETWEEN} _]?\\d{3})+)((?:[.,]\\d+)?)\\s*$`);
function matcher(wanted, flags = "i") {
const whole = GROUPED.exec(wanted);
if (!whole) return new RegExp(escaped(wanted), flags);
const digits = whole[1].replace(/\D/g, ""), lead = digits.length % 3 || 3;
const groups = [digits.slice(0, lead), ...digits.slice(lead).match(/\d{3}/g) || []];
return new RegExp(groups.join(`[${BETWEEN} _]?`) + (whole[2] && "[.,]" + whole[2].slice(1)), flags);
}
const escaped = words => words.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
const rawMatcher = wanted =>
new RegExp(matcher(JSON.stringify(wanted).slice(1, -1)).source.replaceAll("<", "(?:<|\\\\u003c)"), "i");
async function search() {
const ticket = ++SEARCH.ticket, r = run, wanted = STATE.q;
Object.assign(SEARCH, { hits: new Map(), list: [], at: -1, sorted: true, ranges: [], here: -1 });
if (wanted) {
searchNames(matcher(wanted, "gi"));
showHits(true);
const raw = rawMatcher(wanted), each = matcher(wanted, "gi");
for await (const [lines, first] of allChunks(r)) {
if (ticket !== SEARCH.ticket || r !== run) return;
if (raw.test(lines)) searchChunk(lines.split("\n"), first, raw, each);
if (first % (CHUNK * 8) === 0) showHits(true);
}
}
showHits(false);
}
function searchNames(each) {
for (let i = 0; i < run.count; i++) {
const words = `${name(i)} ${run.texts[i]} ${run.outcomes[i]}`;
if (each.test(words)) found(i, 1, around(words, each));
each.lastIndex = 0;
}
}
function searchChunk(lines, first, raw, each) {
lines.forEach((line, i) => {
if (!raw.test(line)) return;
const [count, words] = hitsIn(JSON.parse(line), each);
if (count) found(run.rowAt[first + i], count, words);
});
}
function found(row, count, words) {
if (row < 0) return;
if (!SEARCH.hits.has(row)) {
SEARCH.list.push(row);
SEARCH.sorted = false;
element(row)?.classList.add("hit");
}
SEARCH.hits.set(row, { count, words });
}
function hitsIn(event, each) {
let count = 0, words = null;
const queue = [event];
for (let at = 0; at < queue.length; at++) {
for (const [key, value] of Object.entries(queue[at])) {
if (NOISE.has(key)) continue;
if (value && typeof value === "object") { queue.push(value); continue; }
const content = String(value), places = content.match(each);
if (!places) continue;
count += places.length;
words ??= around(content, each);
}
}
return [count, words];
}
function around(content, each) {
each.lastIndex = 0;
const [hit] = each.exec(content), end = each.lastIndex, at = end - hit.length;
each.lastIndex = 0;
return [(at > AROUND ? "…" : "") + content.slice(Math.max(0, at - AROUND), at), hit,
content.slice(end, end + AROUND) + (content.length > end + AROUND ? "…" : "")];
}
function showHits(going) {
const rows = number(SEARCH.list.length) + (going ? "…" : ""), here = SEARCH.ranges.length;
let words = SEARCH.at < 0 ? rows : `${number(SEARCH.at + 1)} / ${rows}`;
if (SEARCH.at >= 0 && here > 1) words += ` · ${number(SEARCH.here + 1)} of ${number(here)}`;
$("hits").textContent = !STATE.q ? "" : going || SEARCH.list.length ? words : "no match";
if (!going) for (const old of $("rows").children) old.classList.toggle("hit", SEARCH.hits.has(old.row));
showFound();
}
const LISTED = 60;
function showFound() {
sortHits();
const lines = SEARCH.list.slice(0, LISTED).map((row, place) => {
const { count, words } = SEARCH.hits.get(row), [before, hit, after] = words;
const line = button("", () => { SEARCH.at = place; openHit(1); }, { "aria-current": place === SEARCH.at });
line.append(h("span", { class: "where" }, pathOf(row).slice(-2).map(i => name(i) + " › "), h("b", {}, name(row)),
h("i", {}, count > 1 ? `${number(count)} hits` : "")),
h("span", { class: "around", dir: "auto" }, before, h("mark", {}, hit), after));
return line;
});
const more = SEARCH.list.length - LISTED;
if (more > 0) lines.push(h("p", { class: "empty" }, `… and ${counted(more, "more row")}`));
$("found").replaceChildren(...lines);
$("found").hidden = !lines.length || !$("found").parentNode.contains(document.activeElement);
}
function nextHit(by) {
if (!SEARCH.list.length) return;
const next = SEARCH.here + by;
if (SEARCH.at >= 0 && SEARCH.list[SEARCH.at] === rowOf(STATE.e) && next >= 0 && next < SEARCH.ranges.length) {
showRange(next);
showHits(false);
return;
}
sortHits();
SEARCH.at = (Math.max(SEARCH.at, by < 0 ? 0 : -1) + by + SEARCH.list.length) % SEARCH.list.length;
openHit(by);
}
function openHit(by) {
const typing = $("q").parentNode.contains(document.activeElement);
SEARCH.backwards = by < 0;
SEARCH.ranges = [];
select(SEARCH.list[SEARCH.at], { reveal: true });
if (typing) $("q").focus({ preventScroll: true });
showHits(false);
}
function sortHits() {
if (SEARCH.sorted) return;
const here = SEARCH.list[SEARCH.at];
SEARCH.list.sort((a, b) => a - b);
SEARCH.sorted = true;
SEARCH.at = SEARCH.list.indexOf(here);
}
function markHits(box) {
if (!window.Highlight) return;
const inspector = $("inspector");
SEARCH.ranges = STATE.q ? rangesOf(inspector.contains(box) ? inspector : box, matcher(STATE.q, "gi")) : [];
CSS.highlights.set("hit", new Highlight(...SEARCH.ranges));
if (!STATE.q) CSS.highlights.delete("here");
}
function rangesOf(box, each) {
const ranges = [], walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
while (walker.nextNode() && ranges.length < 2000) {
for (const hit of walker.currentNode.data.matchAll(each)) {
const range = new Range();
range.setStart(walker.currentNode, hit.index);
range.setEnd(walker.currentNode, hit.index + hit[0].length);
ranges.push(range);
}
}
return ranges;
}
function landOnHit() {
if (!SEARCH.ranges.length) return;
const inBlocks = SEARCH.ranges.findIndex(range => range.startContainer.parentElement.closest(".blocks"));
showRange(SEARCH.backwards ? SEARCH.ranges.length - 1 : Math.max(0, inBlocks));
showHits(false);
}
function showRange(place) {
const range = SEARCH.ranges[place], box = $("inspector");
SEARCH.here = place;
SEARCH.backwards = false;
CSS.highlights.set("here", new Highlight(range));
const inner = range.startContainer.parentElement.closest("pre");
for (const scroller of [inner, box].filter(Boolean)) {
const hit = range.getBoundingClientRect(), frame = scroller.getBoundingClientRect();
if (hit.top < frame.top + 60 || hit.bottom > frame.bottom - 20) {
scroller.scrollTop += hit.top - frame.top - Math.min(160, frame.height / 3);
}
}
}
function showFilters() {
const distinct = column => [...new Set(column)];
const used = distinct(run.kind).map(place => KINDS[place]);
const models = distinct(run.model).filter(place => run.models[place]).map(place => run.models[place]);
const tools = new Set(), depths = distinct(run.depth).sort((a, b) => a - b);
for (let i = 0; i < run.count; i++) {
if (kind(i) === "tool") tools.add(name(i));
else if (kind(i) === "cell") tools.add("execute_code");
}
const chips = used.map(k => chip(k));
const errors = button("Errors only", () => filter({ err: STATE.err ? "" : "1" }),
{ class: "chip", "aria-pressed": !!STATE.err });
errors.prepend(icon("interrupted"));
$("filters").querySelector(".sheet").replaceChildren(
h("div", { class: "chips" }, chips, errors),
choice("Depth", "d", depths), choice("Model", "m", models), choice("Tool", "t", [...tools]),
amount("Own cost ≥ ($)", "cost", 0.001), amount("Own time ≥ (ms)", "ms", 1), orderChoice(),
button("Clear filters", () => filter(Object.fromEntries(FILTERS.map(key => [key, ""])))));
}
function chip(k) {
const chosen = new Set(STATE.k.split(",").filter(Boolean));
const made = button(kindName(k), () => {
if (!chosen.delete(k)) chosen.add(k);
filter({ k: [...chosen].join(",") });
}, { class: "chip", "aria-pressed": chosen.has(k) });
made.prepend(icon(k));
return made;
}
function choice(label, key, values) {
const list = h("select", { onchange: event => filter({ [key]: event.target.value }) },
h("option", { value: "" }, "any"), values.map(value => h("option", { value }, value)));
list.value = STATE[key];
return h("label", {}, label, list);
}
function orderChoice() {
const list = h("select", { onchange: event => { go({ s: event.target.value }, false); showRows(); showOrder(); } },
h("option", { value: "" }, "as a tree"), Object.keys(ORDERS).flatMap(column => [
h("option", { value: column }, "most " + column), h("option", { value: "-" + column }, "least " + column)]));
list.value = STATE.s;
return h("label", {}, "Order", list);
}
function amount(label, key, step) {
const onchange = event => filter({ [key]: event.target.value });
return h("label", {}, label, h("input", { type: "number", min: 0, step, value: STATE[key], onchange }));
}
function filter(changes) {
const at = document.activeElement?.textContent;
go(changes, false);
applyFilters();
showFilters();
showRows();
for (const made of $("filters").querySelectorAll("button")) if (made.textContent === at) made.focus();
}
function timeAxis(r) {
let total = 1;
const spans = [];
for (let i = 0; i < r.count; i++) {
const k = KINDS[r.kind[i]];
total = Math.max(total, r.end[i]);
if (k === "turn") spans.push([r.start[i], r.start[i] + r.own[i]]);
else if (k !== "node" && k !== "batch" && k !== "detached") spans.push([r.start[i], r.end[i]]);
}
spans.sort((a, b) => a[0] - b[0]);
const holes = [];
let reach = 0;
for (const [start, end] of spans) {
if (start - reach > 2000) holes.push([reach, start]);
reach = Math.max(reach, end);
}
const busy = total - holes.reduce((sum, [a, b]) => sum + b - a, 0);
const gaps = holes.filter(([a, b]) => b - a > Math.max(2000, busy * 0.15)), pad = busy * 0.03;
return axis(total, gaps, pad);
}
function axis(total, gaps, pad) {
const short = gaps.reduce((sum, [a, b]) => sum + b - a - pad, 0), length = total - short;
return {
total, gaps, length,
share(t) {
let at = t;
for (const [a, b] of gaps) if (t >= b) at -= b - a - pad; else if (t > a) at -= (t - a) * (1 - pad / (b - a));
return Math.min(1, Math.max(0, at / length));
},
when(x) {
let t = x * length;
for (const [a, b] of gaps) if (t >= a + pad) t += b - a - pad; else if (t > a) t = a + (t - a) * (b - a) / pad;
return t;
},
};
}
const FLAME = { from: 0, to: 1, top: 0, squeeze: true, hover: -1 };
const LANE = 19;
function lanes(r) {
if (r.lane) return;
const slot = new Int32Array(r.count), tall = new Int32Array(r.count).fill(1), offsets = new Map();
for (let i = r.count - 1; i >= 0; i--) if (r.size[i] > 1) tall[i] = 1 + stack(r, i, slot, tall, offsets);
r.lane = new Int32Array(r.count);
r.thread = new Int32Array(r.count).fill(1);
let threads = 1, top = 0;
for (let i = 0; i < r.count; i++) {
if (r.parent[i] < 0) {
r.lane[i] = top;
r.thread[i] = threads++;
top += tall[i];
}
if (!offsets.has(i)) continue;
const { heights, begin } = offsets.get(i), own = heights.map((_, at) => at ? ++threads : r.thread[i]);
for (let at = i + 1; at < i + r.size[i]; at += r.size[at]) {
r.lane[at] = r.lane[i] + 1 + begin[slot[at]];
r.thread[at] = own[slot[at]];
}
}
r.lanes = top;
}
function stack(r, parent, slot, tall, offsets) {
const ends = [], heights = [];
for (let at = parent + 1; at < parent + r.size[parent]; at += r.size[at]) {
let place = ends.findIndex(end => end <= r.start[at] + 1);
if (place < 0) place = Math.min(ends.length, 255);
slot[at] = place;
ends[place] = Math.max(ends[place] || 0, r.end[at]);
heights[place] = Math.max(heights[place] || 0, tall[at]);
}
let sum = 0;
const begin = heights.map(height => (sum += height) - height);
offsets.set(parent, { heights, begin });
return sum;
}
function showTimeline() {
lanes(run);
const canvas = h("canvas", { tabindex: 0, role: "img",
"aria-label": "Timeline: arrow keys pan, plus and minus zoom, 0 fits, j and k choose the next and previous row" });
$("v2").className = "flame";
$("v2").replaceChildren(flameBar(), concurrency(), canvas, h("div", { class: "tip", hidden: "" }));
canvas.addEventListener("wheel", flameWheel, { passive: false });
canvas.addEventListener("pointerdown", flameDrag);
canvas.addEventListener("pointermove", flameHover);
canvas.addEventListener("pointerleave", () => flameHover(null));
canvas.addEventListener("dblclick", event => zoomTo(rowUnder(event)));
canvas.addEventListener("keydown", flameKey);
Object.assign(FLAME, { from: 0, to: 1, top: 0, canvas, hover: -1 });
draw();
}
function flameBar() {
const squeeze = button("Shorten idle gaps", () => {
FLAME.squeeze = !FLAME.squeeze;
squeeze.setAttribute("aria-pressed", FLAME.squeeze);
fit();
}, { class: "chip", "aria-pressed": FLAME.squeeze });
return h("div", { class: "row" },
button("−", () => zoom(1.6), { class: "icon", "aria-label": "Zoom out" }),
button("+", () => zoom(0.625), { class: "icon", "aria-label": "Zoom in" }),
button("Fit", fit), run.time.gaps.length ? squeeze : null,
["node", "turn", "sub", "cell", "tool"].map(k => keyOf(icon(k), kindName(k))));
}
function concurrency() {
const edges = rowsOf("turn", "sub").filter(i => run.own[i] > 1)
.flatMap(i => [[run.start[i] + 1, 1], [run.start[i] + run.own[i], -1]]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
let active = 0, most = 1;
const steps = edges.map(([at, by]) => { active += by; most = Math.max(most, active); return [at, active]; });
FLAME.steps = steps;
FLAME.most = most;
FLAME.strip = s("svg", { class: "k-sub", preserveAspectRatio: "none", role: "img",
"aria-label": `Calls at once: at most ${number(most)}` }, s("path", { fill: "currentColor" }));
return h("div", { class: "strip-chart" }, h("span", {}, `at once: up to ${number(most)}`), FLAME.strip);
}
function drawStrip() {
const { steps, most, strip } = FLAME;
let path = "M0 1", high = 1;
for (const [at, active] of steps) {
const x = across(at).toFixed(6);
path += `L${x} ${high}L${x} ${high = 1 - active / most}`;
}
strip.firstChild.setAttribute("d", path + "L1 1Z");
strip.setAttribute("viewBox", `${FLAME.from} 0 ${FLAME.to - FLAME.from} 1`);
}
const keyOf = (mark, label) => h("span", { class: "key" }, mark, label);
const across = t => FLAME.squeeze ? run.time.share(t) : t / run.time.total;
function fit() {
Object.assign(FLAME, { from: 0, to: 1, top: 0 });
draw();
}
function zoom(by, at = 0.5) {
const middle = FLAME.from + (FLAME.to - FLAME.from) * at,
width = Math.min(1, Math.max(1e-7, (FLAME.to - FLAME.from) * by));
FLAME.from = Math.max(0, Math.min(1 - width, middle - width * at));
FLAME.to = FLAME.from + width;
draw();
}
function zoomTo(row) {
if (row < 0) return;
const from = across(run.start[row]), width = Math.max(1e-7, across(run.end[row]) - from);
Object.assign(FLAME, { from: Math.max(0, from - width * 0.04), to: Math.min(1, from + width * 1.04) });
draw();
}
function pan(x, y) {
const width = FLAME.to - FLAME.from;
FLAME.from = Math.max(0, Math.min(1 - width, FLAME.from + x * width));
FLAME.to = FLAME.from + width;
FLAME.top = Math.max(0, Math.min(run.lanes * LANE - FLAME.high + 30, FLAME.top + y));
draw();
}
function flameWheel(event) {
const focused = document.activeElement === FLAME.canvas;
if (!event.ctrlKey && !focused && Math.abs(event.deltaX) <= Math.abs(event.deltaY)) return;
event.preventDefault();
if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan(event.deltaX / FLAME.wide, 0);
else zoom(event.deltaY > 0 ? 1.2 : 0.83, event.offsetX / FLAME.wide);
}
function flameDrag(event) {
let { clientX: x, clientY: y } = event, moved = 0;
const canvas = FLAME.canvas;
canvas.setPointerCapture(event.pointerId);
canvas.onpointermove = next => {
moved += Math.abs(next.clientX - x) + Math.abs(next.clientY - y);
if (moved > 4) pan((x - next.clientX) / FLAME.wide, y - next.clientY);
x = next.clientX;
y = next.clientY;
};
canvas.onpointerup = canvas.onpointercancel = next => {
canvas.onpointermove = canvas.onpointerup = null;
const row = rowUnder(next);
if (moved <= 4 && row >= 0) { select(row, { push: true }); draw(); document.body.classList.add("open"); }
};
}
function flameKey(event) {
const acts = { ArrowLeft: () => pan(-0.1, 0), ArrowRight: () => pan(0.1, 0), ArrowUp: () => pan(0, -LANE * 2),
ArrowDown: () => pan(0, LANE * 2), "+": () => zoom(0.625), "=": () => zoom(0.625), "-": () => zoom(1.6),
0: fit, Enter: () => zoomTo(rowOf(STATE.e)) };
if (!acts[event.key] || event.ctrlKey || event.metaKey) return;
event.preventDefault();
acts[event.key]();
}
function flameHover(event) {
const tip = $("v2").querySelector(".tip"), row = event ? rowUnder(event) : -1;
tip.hidden = row < 0;
if (row !== FLAME.hover) { FLAME.hover = row; draw(); }
if (row < 0) return;
tip.replaceChildren(h("b", {}, name(row)), ` ${duration(run.all[row])} `,
run.allTokens[row] ? `${number(run.allTokens[row])} tokens ${money(run.allCost[row], run.unpriced[row])} `
: "", h("span", {}, run.texts[row]));
tip.style.left = Math.max(0, Math.min(event.offsetX + 12, FLAME.wide - 300)) + "px";
tip.style.top = event.offsetY + FLAME.canvas.offsetTop + 18 + "px";
}
function rowUnder(event) {
const lane = Math.floor((event.offsetY - 22 + FLAME.top) / LANE);
let hit = -1;
eachShown((i, x, w) => { if (run.lane[i] === lane && event.offsetX >= x - 1 &&
event.offsetX <= x + Math.max(w, 3)) hit = i; });
return event.offsetY < 22 ? -1 : hit;
}
function eachShown(act) {
const scale = FLAME.wide / (FLAME.to - FLAME.from);
for (let i = 0; i < run.count;) {
const x = (across(run.start[i]) - FLAME.from) * scale, w = (across(run.end[i]) - FLAME.from) * scale - x;
if (x > FLAME.wide || x + w < -3) { i += run.size[i]; continue; }
act(i, x, w);
i += w < 0.4 ? run.size[i] : 1;
}
}
function paints() {
const probe = h("span", { class: "vh" }), found = {};
document.body.append(probe);
for (const name of [...KINDS, "error", "text", "muted", "line", "panel", "raised"]) {
probe.style.color = `var(--${name})`;
found[name] = getComputedStyle(probe).color;
}
probe.remove();
return found;
}
function draw() {
cancelAnimationFrame(FLAME.frame);
FLAME.frame = requestAnimationFrame(drawNow);
}
function drawNow() {
const canvas = FLAME.canvas, ratio = devicePixelRatio || 1;
if (!canvas || $("v2").hidden) return;
FLAME.wide = canvas.clientWidth;
FLAME.high = Math.min(Math.max(200, run.lanes * LANE + 40), Math.max(320, innerHeight * 0.68));
canvas.style.height = FLAME.high + "px";
canvas.width = FLAME.wide * ratio;
canvas.height = FLAME.high * ratio;
const pen = canvas.getContext("2d"), color = paints();
drawStrip();
pen.scale(ratio, ratio);
pen.font = "11px system-ui,sans-serif";
pen.textBaseline = "middle";
drawGaps(pen, color);
pen.save();
pen.rect(0, 22, FLAME.wide, FLAME.high);
pen.clip();
const lastX = new Float64Array(run.lanes + 1).fill(-9), chosen = rowOf(STATE.e);
eachShown((i, x, w) => drawSpan(pen, color, i, x, w, lastX, chosen));
pen.restore();
drawTicks(pen, color);
}
function drawSpan(pen, color, i, x, w, lastX, chosen) {
const lane = run.lane[i], y = 22 + lane * LANE - FLAME.top, k = kind(i), wide = Math.max(w - 0.5, 1.5);
if (y < 0 || y > FLAME.high || (w < 1 && x - lastX[lane] < 1)) return;
lastX[lane] = x + w;
const own = k === "turn" && run.all[i] ? wide * Math.min(1, run.own[i] / run.all[i]) : wide;
const solid = SOLID.has(k) || run.size[i] === 1;
pen.fillStyle = color[isError(i) ? "error" : k];
pen.globalAlpha = 0.26;
pen.fillRect(x, y + 1, wide, LANE - 3);
pen.globalAlpha = solid ? 0.85 : 0;
pen.fillRect(x, y + 1, Math.max(own, 1.5), LANE - 3);
pen.globalAlpha = 1;
if (i === chosen || i === FLAME.hover) outline(pen, color, x, y, wide, i === chosen ? 2 : 1);
if (w > 60) label(pen, color, i, x, y, w, solid ? own : 0);
}
const SOLID = new Set(["turn", "sub", "tool"]);
function outline(pen, color, x, y, wide, width) {
pen.strokeStyle = color.text;
pen.lineWidth = width;
pen.strokeRect(x + 0.5, y + 1.5, Math.max(wide - 1, 2), LANE - 4);
}
function label(pen, color, i, x, y, w, solid) {
const left = Math.max(x, 0) + 5, room = Math.min(x + w, FLAME.wide) - left - 4, onSolid = x + solid - left;
if (room < 34 || (solid && onSolid < 30)) return;
pen.save();
pen.beginPath();
pen.rect(left, y, solid ? Math.min(room, onSolid - 3) : room, LANE);
pen.clip();
pen.fillStyle = solid ? color.panel : color.text;
pen.fillText(name(i) + "  " + run.texts[i].slice(0, 80), left, y + LANE / 2);
pen.restore();
}
function drawGaps(pen, color) {
if (!FLAME.squeeze) return;
const scale = FLAME.wide / (FLAME.to - FLAME.from);
for (const [a, b] of run.time.gaps) {
const x = (across(a) - FLAME.from) * scale, w = (across(b) - FLAME.from) * scale - x;
if (x > FLAME.wide || x + w < 0) continue;
pen.strokeStyle = color.line;
pen.lineWidth = 1;
pen.save();
pen.beginPath();
pen.rect(x, 22, w, FLAME.high);
pen.clip();
pen.beginPath();
for (let at = x - FLAME.high; at < x + w; at += 7) { pen.moveTo(at, FLAME.high); pen.lineTo(at + FLAME.high, 0); }
pen.stroke();
pen.restore();
pen.fillStyle = color.muted;
pen.textAlign = "center";
pen.fillText("idle " + duration(b - a), x + w / 2, FLAME.high - 9);
pen.textAlign = "left";
}
}
const ROUND = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3,
1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5, 216e5, 432e5, 864e5];
function ticks() {
const whole = FLAME.squeeze ? run.time.length : run.time.total, seen = whole * (FLAME.to - FLAME.from);
const step = ROUND.find(size => size >= seen * 100 / FLAME.wide) || 864e5 * Math.ceil(seen / 864e7);
const when = x => FLAME.squeeze ? run.time.when(x) : x * run.time.total, list = [];
const inGap = t => FLAME.squeeze && run.time.gaps.find(([a, b]) => t > a && t < b);
for (let t = Math.ceil(when(FLAME.from) / step) * step; t <= when(FLAME.to) + step / 1000 && list.length < 400;) {
const gap = inGap(t);
if (!gap) list.push({ t, step, x: (across(t) - FLAME.from) / (FLAME.to - FLAME.from) * FLAME.wide });
t = gap ? Math.ceil(gap[1] / step) * step : t + step;
}
return list;
}
function tickLabel(t, step = 60000) {
if (t < 1000) return +t.toFixed(3) + " ms";
if (t < 60000) return +(t / 1000).toFixed(3) + " s";
const minutes = Math.floor(t / 60000 + 1e-9), seconds = Math.round(t / 1000) - minutes * 60;
const rest = seconds && (minutes < 60 || step < 60000) ? ` ${seconds} s` : "";
if (minutes < 60) return `${minutes} m${rest}`;
return `${Math.floor(minutes / 60)} h${minutes % 60 ? ` ${minutes % 60} m` : ""}${rest}`;
}
function drawTicks(pen, color) {
pen.fillStyle = color.muted;
let free = -1;
for (const { t, step, x } of ticks()) {
pen.fillRect(x, 4, 1, 14);
if (x < free || x > FLAME.wide - 30) continue;
const words = tickLabel(t, step);
pen.fillText(words, x + 4, 11);
free = x + 14 + pen.measureText(words).width;
}
}
function showCharts() {
const calls = rowsOf("turn", "sub").sort((a, b) => run.end[a] - run.end[b]);
const charts = calls.length ? [...plots(calls), ...sharesOf(calls)] : [];
$("v3").replaceChildren(calls.length ? h("div", { class: "charts" }, charts)
: h("p", { class: "empty" }, "No call has been answered yet."));
}
const rowsOf = (...kinds) => [...run.kind.keys()].filter(i => kinds.includes(kind(i)));
function plots(calls) {
const of = column => calls.map(i => column[i]), unknown = run.meta.unpriced;
let sum = 0;
const spent = calls.map(i => sum += Math.max(0, run.cost[i]));
const fresh = calls.map(i => Math.max(0, run.input[i] - run.cached[i]));
const cost = "cost" + (unknown ? ` (without ${number(unknown)} calls of unknown price)` : "");
const cached = ["cached input", "batch", of(run.cached)];
const tokens = [["input", "turn", fresh], cached, ["output", "cell", of(run.output)]];
return [
plot("Tokens per call", calls, tokens, number),
plot("Duration per call", calls, [["duration", "sub", of(run.own)]], duration),
plot("Cumulative cost", calls, [[cost, "end", spent]], value => money(value)),
];
}
function sharesOf(calls) {
const model = i => run.models[run.model[i]], tool = i => kind(i) === "cell" ? "execute_code" : name(i);
const costs = tally(calls, model, i => Math.max(0, run.cost[i]));
return [
shares("Where the time went", byKind(), duration, "own time of each kind; parallel calls add up"),
shares("Calls by model", tally(calls, model, () => 1), number, "", true),
shares("Cost by model", costs, value => money(value), run.meta.unpriced ? "calls with a known price" : ""),
shares("Tools", tally(rowsOf("cell", "tool"), tool, () => 1), number, "calls of each tool", true),
];
}
function tally(rows, label, amount) {
const sums = new Map();
for (const i of rows) sums.set(label(i) || "unknown", (sums.get(label(i) || "unknown") || 0) + amount(i));
return [...sums].sort((a, b) => b[1] - a[1]);
}
function byKind() {
const sums = tally(rowsOf("turn", "sub", "cell", "tool"), kind, i => run.own[i]);
return sums.map(([k, sum]) => [kindName(k) + "s", sum, k]);
}
function plot(title, calls, series, format) {
const bars = binned(calls, series), most = Math.max(0, ...bars.map(bar => bar.whole));
const chart = s("svg", { viewBox: `0 0 ${bars.length * 10} 100`, preserveAspectRatio: "none", role: "img",
"aria-label": `${title}: ${number(calls.length)} calls, at most ${format(most)}` });
chart.append(...bars.map((bar, at) => barOf(bar, at * 10, most, series, format)));
const legend = series.map(([label, look]) => keyOf(swatch(look), label));
return h("figure", {}, h("figcaption", {}, h("b", {}, title), legend),
h("div", { class: "plot" },
h("div", { class: "y" }, h("span", {}, format(most)), h("span", {}, "0")), chart,
h("div", { class: "x" }, h("span", {}, "first call"), h("span", {}, `call ${number(calls.length)}`))));
}
function binned(calls, series) {
const bins = Math.min(calls.length, 160), per = calls.length / bins;
const whole = at => series.reduce((sum, [, , values]) => sum + values[at], 0);
return Array.from({ length: bins }, (_, bin) => {
const from = Math.floor(bin * per), to = Math.max(from + 1, Math.floor((bin + 1) * per));
let best = from;
for (let at = from; at < to; at++) if (whole(at) > whole(best)) best = at;
return { row: calls[best], values: series.map(([, , values]) => values[best]), whole: whole(best) };
});
}
const swatch = look => s("svg", { class: "k-" + look, viewBox: "0 0 16 16" }, s("path", { d: "M2 2h12v12H2z" }));
function barOf(bar, x, most, series, format) {
const group = s("g", {}), hint = s("title", {});
let y = 100;
bar.values.forEach((value, at) => {
const height = most ? value / most * 100 : 0;
y -= height;
group.append(s("rect", { class: "k-" + series[at][1], x: x + 0.5, y, width: 9, height, fill: "currentColor" }));
});
put(hint, `${name(bar.row)}: ${series.map(([label], at) => `${label} ${format(bar.values[at])}`).join(", ")}`);
group.append(hint);
group.addEventListener("click", () => {
select(bar.row, { push: true, reveal: true });
document.body.classList.add("open");
});
return group;
}
const SLICES = ["turn", "sub", "cell", "tool", "end", "interrupted", "other"];
function shares(title, rows, format, note, round = false) {
const whole = rows.reduce((sum, row) => sum + row[1], 0), most = rows.length ? rows[0][1] : 0;
const lines = rows.slice(0, 12).map(([label, value, look], at) => {
const fill = h("span", { class: "fill k-" + (look || slice(at)) });
fill.style.width = (most ? value / most * 100 : 0) + "%";
const part = whole ? Math.round(value / whole * 100) : 0;
return [h("span", { class: "label", title: label }, label), h("div", { class: "track" }, fill),
h("span", {}, `${format(value)} · ${part} %`)];
});
let content = h("div", { class: "share" }, lines);
if (!rows.length) content = h("p", { class: "empty" }, "none");
else if (round && rows.length > 1) content = h("div", { class: "donut" }, donut(rows, whole), content);
return h("figure", {}, h("figcaption", {}, h("b", {}, title), note), content);
}
const slice = at => SLICES[Math.min(at, SLICES.length - 1)];
function donut(rows, whole) {
const ring = s("svg", { viewBox: "0 0 36 36", "aria-hidden": "true" }), gap = 0.6;
const circle = { cx: 18, cy: 18, r: 15.915, fill: "none", stroke: "currentColor", "stroke-width": 5 };
let turned = 25;
rows.forEach(([, value], at) => {
const part = value / whole * 100, dashes = `${Math.max(0.1, part - gap)} ${100 - part + gap}`;
const look = { class: "k-" + slice(at), "stroke-dasharray": dashes, "stroke-dashoffset": turned };
ring.append(s("circle", { ...circle, ...look }));
turned -= part;
});
return ring;
}
const SCRIPT = { node: -1, watcher: null };
function nodeOf(row) {
let i = row;
while (i >= 0 && kind(i) !== "node") i = run.parent[i];
return i;
}
function showTranscript() {
const nodes = rowsOf("node"), chosen = rowOf(STATE.e), node = chosen >= 0 ? nodeOf(chosen) : nodes[0] ?? -1;
if (SCRIPT.node !== node || !$("script") || SCRIPT.run !== run) {
Object.assign(SCRIPT, { node, run });
SCRIPT.watcher?.disconnect();
SCRIPT.watcher = new IntersectionObserver(entries => entries.forEach(fillSeen), { rootMargin: "700px 0px" });
const body = h("div", { class: "notebook", id: "script" }, sections(node, SCRIPT.watcher));
$("v5").replaceChildren(outlineOf(node), h("div", { class: "page" }, scriptBar(nodes, node), body));
}
if (chosen >= 0 && chosen !== node) requestAnimationFrame(() => toSection(chosen));
}
function fillSeen(entry) {
if (!entry.isIntersecting) return;
SCRIPT.watcher.unobserve(entry.target);
fillSection(entry.target);
}
function sectionRows(node) {
if (node >= 0) return childrenOf(node);
const found = [];
for (let i = 0; i < run.count; i += run.size[i]) found.push(i);
return found;
}
function sections(node, watcher) {
return sectionRows(node).map(i => {
const section = h("section", { class: "act", tabindex: -1, "aria-label": name(i) }, sectionHead(i),
h("div", { class: "acts" }));
Object.assign(section, { row: i, size: run.size[i] });
watcher?.observe(section);
return section;
});
}
function sectionHead(i) {
const figures = [isPaid(i) ? `${number(run.allTokens[i])} tokens` : "", isPaid(i) ? money(run.allCost[i],
run.unpriced[i]) : "", UNTIMED.includes(kind(i)) ? "" : duration(run.all[i])].filter(Boolean).join(" · ");
return h("header", {}, icon(markOf(i)), inspectLink(i), tags(i), h("span", { class: "grow" }), h("i", {}, figures));
}
const inspectLink = i => button(name(i), () => select(i, { push: true, inspect: true }), { class: "link" });
async function fillSection(section) {
const i = section.row;
section.filled = true;
section.lastElementChild.replaceChildren(...await acts(i));
markHits(section);
}
async function acts(i) {
const event = run.at[i] >= 0 ? await body(run, run.at[i]) : null;
if (kind(i) === "turn") return turnActs(i, event);
if (kind(i) === "cell") return cellActs(i, event);
if (kind(i) === "node") return [childStrip(i)];
if (kind(i) === "sub") return [subStrip([i])];
if (!event) return [...childrenOf(i)].map(lineOf);
const made = blocks(i, event, await elsewhere(i, event));
return made.slice(0, -1); // without the event's JSON
}
async function turnActs(i, event) {
const below = childrenOf(i), calls = below.length ? [] : (event.tool_calls || []).map(callBlock);
const said = prose(event, below);
const parts = [said ? h("div", { class: "reply" }, readableBlock(said)) : null, ...calls];
for (const child of below) parts.push(...await acts(child));
return parts.filter(Boolean);
}
function prose(event, below) {
const whole = show(event.response).trim(), ran = below.some(child => kind(child) === "cell");
return ran && !event.tool_calls?.length ? whole.replace(/```\w*\n[^]*?(?:\n```|$)[^]*/, "").trim() : whole;
}
function readableBlock(words) {
const [box, raw] = readable(words);
return [raw, box];
}
async function cellActs(i, event) {
const at = /line (\d+), in <module>/.exec(show(event.traceback || ""));
const results = [text("Output", event.stdout), text("Value", event.value, { code: "python" }),
event.error ? errorBlock(tracebackOf(event)) : null, ...madeImages(event),
"final" in event ? text("FINAL", show(event.final)) : null];
return [text(name(i), event.code, { code: "python", at: at ? +at[1] : 0 }), ...strips(i), ...results].filter(Boolean);
}
function strips(i) {
const below = childrenOf(i).flatMap(child => kind(child) === "batch" ? childrenOf(child) : [child]);
const subs = below.filter(child => kind(child) === "sub"), found = subs.length ? [subStrip(subs, i)] : [];
return [...found, ...below.filter(child => kind(child) !== "sub").map(child => kind(child) === "node"
? childStrip(child) : lineOf(child))];
}
function lineOf(i) {
return h("p", { class: "line" }, icon(markOf(i)), inspectLink(i), " ", told(i));
}
function foldedStrip(title, fill) {
const strip = h("details", { class: "strip" }, h("summary", {}, title), h("div", { class: "acts" }));
strip.fill = async () => {
if (strip.filled) return;
strip.filled = true;
strip.lastElementChild.replaceChildren(...await fill());
markHits(strip);
};
strip.addEventListener("toggle", () => { if (strip.open) strip.fill(); });
return strip;
}
function subStrip(subs, above) {
const sum = column => subs.reduce((total, i) => total + column[i], 0);
const wide = Math.max(0, ...subs.map(i => run.width[run.parent[i]]), above ? run.width[above] : 0);
const title = [counted(subs.length, "call"), subs.length > 1 && wide > 1 ? wide + " at once" : "",
money(sum(run.allCost), sum(run.unpriced))].filter(Boolean).join(" · ");
return foldedStrip([icon("sub"), h("b", {}, title)], () => [...subs.slice(0, 200).map(oneSub),
subs.length > 200 ? h("p", { class: "empty" }, `… and ${number(subs.length - 200)} more in the tree`) : ""]);
}
function oneSub(i) {
return foldedStrip([icon(markOf(i)), h("b", {}, name(i)), " ", told(i)], async () => {
const event = await body(run, run.at[i]);
const asked = Array.isArray(event.prompt) ? event.prompt.map(message => contentText(message?.content)).join("\n\n")
: show(event.prompt);
return [text("Prompt", asked), text("Reply", event.response, { readable: true })].filter(Boolean);
});
}
function childStrip(i) {
const figures = [isPaid(i) ? money(run.allCost[i], run.unpriced[i]) : "", duration(run.all[i])].filter(Boolean);
return foldedStrip([icon("node"), h("b", {}, name(i)), " ", told(i), h("i", {}, figures.join(" · "))], async () => {
const list = sections(i, null);
for (const section of list) await fillSection(section);
return list;
});
}
function outlineOf(node) {
const lines = sectionRows(node).slice(0, 2000).map(i => {
const line = button("", () => goSection(i), { class: isError(i) || run.errors[i] ? "bad" : "" });
line.append(icon(markOf(i)), h("b", {}, name(i)), h("span", { dir: "auto" }, run.texts[i]));
return line;
});
return h("nav", { class: "outline", "aria-label": "Outline" }, lines);
}
function scriptBar(nodes, node) {
const pick = h("select", { "aria-label": "Node", onchange: event => goSection(+event.target.value) },
nodes.slice(0, 500).map(i => h("option", { value: i }, "\u00a0".repeat(2 * Math.min(run.depth[i], 9)) +
`${name(i)}: ${run.texts[i]}`)));
pick.value = node;
return h("div", { class: "turns" },
button("‹ Previous turn", () => byTurn(-1), { "data-shortcut": "[" }),
button("Next turn ›", () => byTurn(1), { "data-shortcut": "]" }), nodes.length > 1 ? pick : null);
}
const allSections = () => [...$("v5").querySelectorAll("#script > .act")];
function byTurn(by) {
if (STATE.v !== 5) return;
const list = allSections().filter(section => kind(section.row) === "turn");
const here = list.findLastIndex(section => section.getBoundingClientRect().top < scriptTop() + 20);
const next = list[Math.max(0, Math.min(list.length - 1, here + by))];
if (next) goSection(next.row);
}
function goSection(row) {
go({ e: rowId(row) });
showTranscript();
}
const scriptTop = () => ($("v5").querySelector(".turns")?.getBoundingClientRect().height || 0) + stickyTop();
const stickyTop = () => getComputedStyle($("bar")).position === "sticky" ? $("bar").offsetHeight + 50 : 0;
async function toSection(row) {
const list = allSections(), place = list.findIndex(one => row >= one.row && row < one.row + one.size);
if (place < 0) return;
for (const near of list.slice(Math.max(0, place - 4), place + 1)) if (!near.filled) await fillSection(near);
const section = list[place];
scrollBy(0, section.getBoundingClientRect().top - scriptTop());
section.focus({ preventScroll: true });
}
const PRINTED_ROWS = 2000;
async function fillPrint() {
if (!run || $("print").run === run) return;
const roots = run.count ? rowsOf("node").filter(i => run.level[i] === 0) : [];
$("print").run = run;
$("print").replaceChildren();
for (const root of roots.length ? roots : [-1]) {
const list = sections(root, null);
$("print").append(h("h2", {}, root < 0 ? "Events" : run.texts[root]), ...list);
for (const section of list.slice(0, PRINTED_ROWS)) await fillSection(section);
}
if (run.count <= PRINTED_ROWS) await unfold($("print"));
}
async function unfold(box) {
for (const more of box.querySelectorAll(".more")) more.click();
for (const strip of box.querySelectorAll("details:not([open])")) {
strip.open = true;
await strip.fill();
await unfold(strip.lastElementChild);
}
}
function aligned(left, right) {
let head = 0, tail = 0;
const most = Math.min(left.length, right.length);
while (head < most && left[head] === right[head]) head++;
while (tail < most - head && left.at(-1 - tail) === right.at(-1 - tail)) tail++;
const pairs = Array.from({ length: head }, (_, at) => [at, at]);
const middle = edits(left.slice(head, left.length - tail), right.slice(head, right.length - tail));
for (const [a, b] of middle) pairs.push([a < 0 ? -1 : a + head, b < 0 ? -1 : b + head]);
for (let at = tail; at > 0; at--) pairs.push([left.length - at, right.length - at]);
return pairs;
}
const MOST_EDITS = 600;
function edits(left, right) {
const trace = furthest(left, right), pairs = [];
let a = left.length, b = right.length;
if (!trace) return [...left.map((_, at) => [at, at < b ? at : -1]), ...right.map((_, at) => [-1, at]).slice(a)];
for (let d = trace.length - 1; d >= 0; d--) {
const reach = trace[d], k = a - b, down = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1));
const before = down ? k + 1 : k - 1, x = d ? reach.get(before) : 0, y = d ? x - before : 0;
while (a > x && b > y && a > 0 && b > 0 && left[a - 1] === right[b - 1]) pairs.push([--a, --b]);
if (d) pairs.push(down ? [-1, --b] : [--a, -1]);
}
return pairs.reverse();
}
function furthest(left, right) {
const reach = new Map([[1, 0]]), trace = [];
for (let d = 0; d <= Math.min(MOST_EDITS, left.length + right.length); d++) {
trace.push(new Map(reach));
for (let k = -d; k <= d; k += 2) {
let x = k === -d || (k !== d && reach.get(k - 1) < reach.get(k + 1)) ? reach.get(k + 1) : reach.get(k - 1) + 1;
while (x < left.length && x - k < right.length && left[x] === right[x - k]) x++;
reach.set(k, x);
if (x >= left.length && x - k >= right.length) return trace;
}
}
return null;
}
const DIFF_STEPS = 2000;
const STEP_PARTS = {
node: event => ({ Question: event.prompt }),
turn: event => ({ Reply: event.response, Calls: (event.tool_calls || []).map(call => call?.arguments?.code ??
`${call?.name} ${show(call?.arguments)}`).join("\n\n") }),
sub: event => ({ Prompt: contentOf(event.prompt), Reply: event.response }),
cell: event => ({ Code: event.code, Output: [event.stdout, event.value].filter(Boolean).map(show).join("\n"),
Error: tracebackOf(event) }),
tool: event => ({ Arguments: show(event.arguments), Result: contentOf(event.tool_results) }),
end: event => ({ Answer: event.response, Status: event.status, Error: errorText(event.error) }),
};
const errorText = error => error && typeof error === "object"
? [error.type, error.message].filter(Boolean).join(": ") : show(error ?? "");
const ASKED = ["Question", "Prompt", "Code", "Arguments"];
async function stepsOf(r) {
const found = [];
let batch = [];
const close = () => { found.push(...batch.sort((a, b) => a.asked < b.asked ? -1 : 1)); batch = []; };
for (let i = 0; i < r.count && found.length < DIFF_STEPS; i++) {
const k = KINDS[r.kind[i]], parts = STEP_PARTS[k] && r.at[i] >= 0 ? STEP_PARTS[k](await body(r, r.at[i])) : null;
if (!parts) continue;
const texts = Object.entries(parts).map(([title, value]) => [title, contentText(value ?? "")]);
const asked = texts.filter(([title]) => ASKED.includes(title)).map(([, words]) => words);
const words = [r.texts[i], r.outcomes[i]].filter(Boolean).join(" → ");
const step = { i, at: r.at[i], name: r.names[r.name[i]], words, texts,
asked: JSON.stringify([k, r.names[r.name[i]], asked]), all: JSON.stringify(texts) };
if (k !== "sub") close();
(k === "sub" ? batch : found).push(step); // which call of a batch began first is chance
}
close();
return found.slice(0, DIFF_STEPS);
}
async function compare(a, b) {
const [left, right] = [await stepsOf(await openedRun(a)), await stepsOf(await openedRun(b))];
return aligned(left.map(step => step.asked), right.map(step => step.asked)).map(([x, y]) => {
const one = left[x], other = right[y], state = !other ? "left" : !one ? "right"
: one.all === other.all ? "same" : "changed";
return { state, one, other };
});
}
const DELTAS = [["Calls", "calls", number], ["Tokens", "tokens", number],
["Cost", "cost_usd", value => money(value || 0, value === null)], ["Duration", "duration_ms", duration],
["Errors", "errors", number], ["Depth", "depth_reached", number]];
const STEP_WORDS = { same: "same", changed: "differs", left: "only A", right: "only B" };
async function showComparison(a, b) {
const box = $("diff"), steps = await compare(a, b), first = steps.findIndex(step => step.state !== "same");
const jump = first >= 0
? button("First divergence: " + (steps[first].one || steps[first].other).name, () => {
const row = box.querySelector("#divergence");
row.open = true;
row.scrollIntoView({ block: "center" });
}, { class: "link" })
: h("p", {}, "Both runs took the same steps to the same results.");
const same = steps.filter(step => step.state === "same").length;
const lines = h("div", { class: "steps differing" }, steps.map((step, i) => stepLine(step, a, b, i === first)));
const only = button("Only differences", () => {
only.setAttribute("aria-pressed", lines.classList.toggle("differing"));
}, { class: "chip", "aria-pressed": true });
box.replaceChildren(
h("div", { class: "v4row" }, h("h2", {}, `A ${RUNS[a].id} → B ${RUNS[b].id}`), jump, h("span", { class: "grow" }),
h("span", { class: "note" }, `${counted(steps.length, "step")}, ${number(same)} the same`), only),
h("dl", { class: "deltas" }, DELTAS.map(part => delta(part, RUNS[a], RUNS[b]))), lines);
}
function delta([title, key, format], a, b) {
const by = b[key] - a[key], sign = by > 0 ? "+" : by < 0 ? "−" : "±";
const known = [a[key], b[key]].every(value => typeof value === "number");
const told = value => typeof value === "number" ? format(value) : "?";
return h("div", {}, h("dt", {}, title), h("dd", { class: "d" }, known ? sign + format(Math.abs(by)) : "?"),
h("dd", {}, `${told(a[key])} → ${told(b[key])}`));
}
function stepLine({ state, one, other }, a, b, first) {
const side = step => h("span", { class: "side", dir: "auto" }, step ? [h("b", {}, step.name), " ",
state === "changed" ? differing(step, step === one ? other : one) : step.words] : "—");
const line = h("details", { class: `step ${state}${first ? " first" : ""}`, id: first ? "divergence" : null },
h("summary", {}, h("span", { class: "tag " + state }, STEP_WORDS[state]), side(one), side(other)));
line.addEventListener("toggle", () => {
if (line.open && line.children.length < 2) line.append(stepDetail({ one, other }, a, b));
});
return line;
}
function differing(step, from) {
const part = step.texts.findIndex(([, words], n) => words !== from.texts[n]?.[1]);
const lines = (step.texts[part]?.[1] || "").split("\n"), others = (from.texts[part]?.[1] || "").split("\n");
const line = lines.find((words, n) => words !== others[n] && words.trim());
return line === undefined ? step.words : `${step.texts[part][0].toLowerCase()}: ${line.trim().slice(0, 160)}`;
}
function stepDetail({ one, other }, a, b) {
const links = [[one, a, "A"], [other, b, "B"]].filter(([step]) => step).map(([step, place, letter]) =>
button(`Open in ${letter}`, () => pickRun(place, String(step.at)), { class: "link" }));
const titles = [...new Set([...(one?.texts || []), ...(other?.texts || [])].map(([title]) => title))];
const of = (step, title) => step?.texts.find(([name]) => name === title)?.[1] ?? "";
const parts = titles.map(title => [title, of(one, title), of(other, title)]);
return h("div", { class: "acts" }, h("p", { class: "row" }, links),
parts.filter(([, x, y]) => x !== y).map(([title, x, y]) => lineDiff(title, x, y)));
}
const CONTEXT = 2;
function lineDiff(title, before, after) {
const left = before ? before.split("\n") : [], right = after ? after.split("\n") : [], pre = h("pre", { tabindex: 0,
"aria-label": title });
const pairs = aligned(left, right), near = new Set();
pairs.forEach(([x, y], n) => {
if (x < 0 || y < 0 || left[x] !== right[y]) for (let by = -CONTEXT; by <= CONTEXT; by++) near.add(n + by);
});
let skipped = 0;
const skip = () => {
if (skipped) pre.append(h("span", { class: "skip" }, `… ${counted(skipped, "equal line")}`));
skipped = 0;
};
pairs.slice(0, 5000).forEach(([x, y], n) => {
if (!near.has(n)) { skipped++; return; }
skip();
if (x >= 0 && y >= 0 && left[x] === right[y]) pre.append(h("span", {}, "  " + left[x]));
else {
if (x >= 0) pre.append(h("span", { class: "minus" }, "− " + left[x]));
if (y >= 0) pre.append(h("span", { class: "plus" }, "+ " + right[y]));
}
});
skip();
return h("section", { class: "block diff" }, h("header", {}, h("h3", {}, title)), pre);
}
const LIST = { by: "", up: false, words: "", status: "", ticked: new Set() };
const COLUMNS = [
["Run", meta => meta.id, "mono"], ["Question", meta => firstLine(meta.question), "l"],
["Answer", meta => firstLine(meta.answer || "").replace(/\*\*|`/g, ""), "l"], ["Status", meta => meta.status],
["Model", meta => meta.model || ""], ["Started", meta => (meta.started || "").slice(0, 16).replace("T", " ")],
["Duration", meta => meta.duration_ms, "n", duration], ["Calls", meta => meta.calls, "n", number],
["Errors", meta => meta.errors, "n", number], ["Tokens", meta => meta.tokens, "n", number],
["Cost", meta => meta.cost_usd ?? (meta.cost_known || null), "n"],
];
function showRuns() {
const chosen = STATE.c.split("~").map(id => RUNS.findIndex(meta => meta.id === id));
const pair = chosen.length === 2 && chosen.every(place => place >= 0) ? chosen : DATA.diff ? [0, 1] : null;
if (!$("runs")) $("v4").replaceChildren(h("div", { id: "diff" }), h("div", { id: "runs" }));
$("diff").hidden = !pair;
if (pair && $("diff").shown !== pair.join()) {
$("diff").shown = pair.join();
showComparison(...pair);
}
showRunList();
}
function showRunList() {
const statuses = [...new Set(RUNS.map(meta => meta.status))];
const words = h("input", { type: "search", "aria-label": "Filter runs", placeholder: "Filter runs",
value: LIST.words, oninput: event => { LIST.words = event.target.value; fillRuns(); } });
const onchange = event => { LIST.status = event.target.value; fillRuns(); };
const status = h("select", { "aria-label": "Status", onchange }, h("option", { value: "" }, "any status"),
statuses.map(value => h("option", { value }, value)));
status.value = LIST.status;
const both = button("Compare", compareTicked, { id: "compare", disabled: "" });
const listed = h("span", { class: "note", id: "listed" });
$("runs").replaceChildren(h("div", { class: "v4row" }, words, status, both, listed), h("div", { id: "list" }));
fillRuns();
}
function listedRuns() {
const wanted = LIST.words.toLowerCase(), column = COLUMNS.find(([title]) => title === LIST.by);
const shown = RUNS.map((meta, place) => ({ meta, place })).filter(({ meta }) =>
(!LIST.status || meta.status === LIST.status) &&
`${meta.id} ${meta.question} ${meta.answer || ""} ${meta.model || ""}`.toLowerCase().includes(wanted));
const order = (a, b) => typeof a === "number" || typeof b === "number" ? (a ?? -1) - (b ?? -1)
: String(a).localeCompare(String(b));
return column ? shown.sort((a, b) => (LIST.up ? 1 : -1) * order(column[1](a.meta), column[1](b.meta))) : shown;
}
function fillRuns() {
const shown = listedRuns(), title = `${counted(shown.length, "run")}${LIST.by ? "" : ", newest first"}`;
const heads = COLUMNS.map(([word, , look]) => h("th", { scope: "col", class: look === "n" ? "" : "l",
"aria-sort": LIST.by === word ? LIST.up ? "ascending" : "descending" : null }, button(word, () => sortRuns(word),
{ class: "sort" })));
const table = h("table", { class: "runs" }, h("caption", { class: "vh" }, title),
h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "vh" }, "Compare")), heads)),
h("tbody", {}, shown.map(({ meta, place }) => runLine(meta, place))));
$("list").replaceChildren(h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, table));
$("listed").textContent = title;
$("compare").disabled = LIST.ticked.size !== 2;
}
function sortRuns(word) {
const again = LIST.by === word;
Object.assign(LIST, again && LIST.up ? { by: "" } : { by: word, up: again });
fillRuns();
}
function runLine(meta, place) {
const tick = h("input", { type: "checkbox", "aria-label": "Compare " + meta.id, onchange: event => {
LIST.ticked[event.target.checked ? "add" : "delete"](place);
$("compare").disabled = LIST.ticked.size !== 2;
} });
tick.checked = LIST.ticked.has(place);
const cells = COLUMNS.map(([title, value, look, format]) => {
const attributes = { class: look === "n" ? "" : "l", "data-label": title };
return h("td", attributes, runCell(title, meta, place, value(meta), format));
});
return h("tr", { class: place === STATE.run ? "on" : "" }, h("td", { class: "tick" }, tick), cells);
}
function runCell(title, meta, place, value, format) {
if (title === "Run") return button(meta.id, () => pickRun(place), { class: "link mono" });
if (title === "Status") return h("span", { class: "badge " + meta.status }, meta.status);
if (title === "Cost") return meta.cost_usd === null ? money(meta.cost_known || 0, 1) : money(meta.cost_usd ?? 0);
if (format) return typeof value === "number" ? format(value) : "?";
return h("span", { dir: "auto" }, value.slice(0, 120));
}
function compareTicked() {
const [a, b] = [...LIST.ticked].sort((one, other) => other - one); // the older one first
if (RUNS[a].href || RUNS[b].href) {
location.assign("?" + [a, b].map(place => "run=" + encodeURIComponent(RUNS[place].id)).join("&"));
return;
}
go({ c: `${RUNS[a].id}~${RUNS[b].id}` });
showRuns();
$("diff").scrollIntoView({ block: "nearest" });
}
function pickRun(place, e = "") {
if (RUNS[place].href) { location.assign(RUNS[place].href); return; }
go({ run: place, e, v: e && STATE.v === 4 ? 1 : STATE.v === 4 ? firstView() : STATE.v, q: "", s: "",
...Object.fromEntries(FILTERS.map(key => [key, ""])) });
showRun(place);
}
function save(content, file, type) {
const link = h("a", { href: URL.createObjectURL(new Blob([content], { type })), download: file });
link.click();
setTimeout(() => URL.revokeObjectURL(link.href), 5000);
}
function asCsv() {
const cell = value => {
if (typeof value === "number") return value;
const inert = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
return '"' + inert.replaceAll('"', '""') + '"';
};
const columns = {
event: i => run.at[i], level: i => run.level[i], depth: i => run.depth[i], kind, name,
text: i => run.texts[i], outcome: i => run.outcomes[i],
model: i => run.models[run.model[i]],
start_ms: i => run.start[i], end_ms: i => run.end[i], self_ms: i => run.own[i],
input: i => run.input[i], output: i => run.output[i], cached: i => run.cached[i], reasoning: i => run.reasoning[i],
cost_usd: i => run.cost[i] < 0 ? "?" : run.cost[i], total_tokens: i => run.allTokens[i],
total_cost_usd: i => run.allCost[i], unpriced_calls: i => run.unpriced[i], error: i => Number(isError(i)),
};
const lines = [...run.level.keys()].map(i => Object.values(columns).map(value => cell(value(i))).join(","));
return [Object.keys(columns).join(","), ...lines].join("\r\n") + "\r\n";
}
function asSpeedscope() {
const frames = [], known = new Map(), nodes = rowsOf("node");
const frame = words => {
if (!known.has(words)) { known.set(words, frames.length); frames.push({ name: words }); }
return known.get(words);
};
const profiles = nodes.map((node, n) => {
const events = [];
stacked(node, run.start[node], run.end[node], events, frame, true);
return { type: "evented", name: `${n + 1} ${name(node)}: ${run.texts[node]}`.slice(0, 80), unit: "milliseconds",
startValue: run.start[node], endValue: run.end[node], events };
});
return JSON.stringify({ $schema: "https://www.speedscope.app/file-format-schema.json", name: run.meta.id,
exporter: "rlm", shared: { frames }, profiles });
}
function stacked(row, from, to, events, frame, top = false) {
const begin = Math.max(from, run.start[row]), end = Math.max(begin, Math.min(to, run.end[row]));
const label = name(row).replace(/ \d+$/, "");
events.push({ type: "O", frame: frame(label), at: begin });
if (top || kind(row) !== "node") {
let at = begin;
for (const group of atOnce(childrenOf(row))) {
if (group.length === 1) { stacked(group[0], at, end, events, frame); at = events.at(-1).at; continue; }
const open = Math.max(at, Math.min(...group.map(i => run.start[i])));
at = Math.min(end, Math.max(open, ...group.map(i => run.end[i])));
const many = frame(`${name(group[0])} at once`);
events.push({ type: "O", frame: many, at: Math.min(open, end) });
events.push({ type: "C", frame: many, at: Math.max(open, at) });
}
}
events.push({ type: "C", frame: frame(label), at: end });
}
function atOnce(siblings) {
const groups = [];
let reach = -1;
for (const i of siblings.filter(row => run.end[row] > run.start[row]).sort((a, b) => run.start[a] - run.start[b])) {
if (groups.length && run.start[i] < reach - 1) groups.at(-1).push(i);
else groups.push([i]);
reach = Math.max(reach, run.end[i]);
}
return groups;
}
function asTrace() {
lanes(run);
const micro = ms => Math.round(ms * 1000);
const events = [...run.level.keys()].map(i => ({
name: name(i), cat: kind(i), ph: "X", ts: micro(run.start[i]), dur: micro(run.end[i] - run.start[i]),
pid: 1, tid: run.thread[i],
args: { text: run.texts[i], tokens: run.allTokens[i], cost_usd: run.allCost[i], event: run.at[i],
error: isError(i) },
}));
return JSON.stringify({ displayTimeUnit: "ms", otherData: { run: run.meta.id }, traceEvents: events });
}
const LIVE = { changed: Date.now(), gone: false };
function followLog() {
$("live").hidden = false;
setInterval(tellLive, 1000);
tellLive();
const poll = async () => {
const reply = await fetch("version" + location.search).catch(() => null);
LIVE.gone = !reply?.ok;
if (reply?.ok && await reply.text() !== DATA.live) await takeOver();
setTimeout(poll, 2000);
};
setTimeout(poll, 2000);
}
function tellLive() {
const since = Math.round((Date.now() - LIVE.changed) / 1000);
const ago = since < 60 ? since + " s" : duration(since * 1000);
$("ago").textContent = LIVE.gone ? "no longer served" : `live, ${ago} ago`;
$("live").classList.toggle("gone", LIVE.gone);
}
async function takeOver() {
const reply = await fetch(location.pathname + location.search).catch(() => null);
if (!reply?.ok) return;
const fresh = new DOMParser().parseFromString(await reply.text(), "text/html"), data = fresh.getElementById("data");
if (!data) return;
const next = JSON.parse(data.textContent);
for (const old of document.querySelectorAll('script[id^="r"]')) old.remove();
for (const made of fresh.querySelectorAll('script[id^="r"]')) {
document.body.append(h("script", { type: made.type, id: made.id }));
$(made.id).textContent = made.textContent;
}
DATA.live = next.live;
RUNS.splice(0, RUNS.length, ...next.runs);
OPENED.clear();
LIVE.changed = Date.now();
await refresh();
tellLive();
}
async function refresh() {
const old = run, kept = old && keptState(old);
run = await openedRun(STATE.run);
openAtFirst();
if (old) restore(old, kept);
showSummary();
showPicker();
applyFilters();
showFilters();
showRows();
if (STATE.v === 5 && $("script")) growTranscript(kept);
else if (VIEWS[STATE.v]) VIEWS[STATE.v]();
if (STATE.q) search();
const last = run.rowAt[run.meta.events - 1], reveal = STATE.v === 1;
if ($("follow").checked && run.count) select(last, { reveal, inspect: true });
else if (rowOf(STATE.e) >= 0 && kept && kept.size !== run.size[rowOf(STATE.e)]) showEvent(rowOf(STATE.e), true);
else if (rowOf(STATE.e) < 0 && run.count) showEvent(0, true);
}
function keptState(old) {
const rows = new Map();
for (let i = 0; i < old.count; i++) if (old.size[i] > 1) rows.set(rowId(i), old.open[i]);
const chosen = rowOf(STATE.e);
return { rows, size: chosen < 0 ? 0 : old.size[chosen], sections: $("script") ? allSections() : [],
ids: $("script") ? allSections().map(section => rowId(section.row)) : [] };
}
function restore(old, kept) {
for (let i = 0; i < run.count; i++) if (kept.rows.has(rowId(i))) run.open[i] = kept.rows.get(rowId(i));
}
function growTranscript(kept) {
const box = $("script"), known = new Map(kept.ids.map((id, n) => [id, kept.sections[n]]));
SCRIPT.run = run;
SCRIPT.node = rowOf(STATE.e) >= 0 ? nodeOf(rowOf(STATE.e)) : rowsOf("node")[0] ?? -1;
for (const made of sections(SCRIPT.node, null)) {
const old = known.get(rowId(made.row));
if (!old) { box.append(made); SCRIPT.watcher.observe(made); continue; }
const grown = old.size !== made.size;
Object.assign(old, { row: made.row, size: made.size });
if (grown && old.filled) fillSection(old);
}
$("v5").firstElementChild.replaceWith(outlineOf(SCRIPT.node));
}
const VIEWS = { 2: showTimeline, 3: showCharts, 4: showRuns, 5: showTranscript };
function setView(v) {
go({ v });
applyView();
}
function applyView() {
for (let i = 1; i <= VIEW_COUNT; i++) {
$("v" + i).hidden = i !== STATE.v;
$("t" + i).setAttribute("aria-selected", i === STATE.v);
$("t" + i).tabIndex = i === STATE.v ? 0 : -1;
}
const alone = STATE.v > 2;
$("inspector").hidden = alone;
document.querySelector(".split").classList.toggle("single", alone);
if (VIEWS[STATE.v]) VIEWS[STATE.v]();
else fillWindow();
}
function showStatic() {
const rows = [...run.level.keys()].slice(0, STATIC_ROWS).map(i => {
const indent = "\u00a0\u00a0".repeat(Math.min(run.level[i], 24)), mark = isError(i) ? "✗ " : "";
const words = [run.texts[i], run.outcomes[i]].filter(Boolean).join(" → ");
const figures = figureCells(i).map(cell => h("td", {}, cell.firstChild.textContent));
return h("tr", {}, h("td", {}, indent, mark, h("b", {}, name(i)), " ", words), figures);
});
$("static").querySelector("tbody")?.replaceChildren(...rows);
}
async function showRun(place) {
if (RUNS[place].href) { location.replace(RUNS[place].href + location.hash); return; }
const changed = !run || run.place !== place;
STATE.run = place;
if (changed) {
run = await openedRun(place);
openAtFirst();
showSummary();
if (place) showStatic();
}
showPicker();
applyFilters();
showFilters();
showRows();
showOrder();
applyView();
$("q").value = STATE.q;
search();
showChosen(changed);
requestAnimationFrame(() => { document.documentElement.dataset.ready = Math.round(performance.now()); });
}
function showChosen(changed) {
const row = rowOf(STATE.e);
if (row < 0) {
if (run.count) showEvent(0);
else showNothing();
say(STATE.e ? `This run has no event “${STATE.e}”.` : "");
return;
}
say("");
if (changed && STATE.v < 3) document.body.classList.add("open");
reveal(row);
select(row, { inspect: true });
if (STATE.v === 1) intoView(ensured(row) || $("grid"));
}
function flipTheme() {
const page = document.documentElement.dataset, system = matchMedia("(prefers-color-scheme: dark)").matches;
const dark = page.theme ? page.theme === "dark" : system;
page.theme = dark ? "light" : "dark";
try { localStorage.setItem("rlm-theme", page.theme); } catch { /* a browser that keeps nothing */ }
if (STATE.v === 2) draw();
}
const FIXED_KEYS = [["↑ ↓ Home End", "Move in the tree"], ["→ ←", "Open, close, parent, cells"],
["Enter Space", "Show, open or close"], ["Esc", "Back"]];
function showLegend() {
const line = ([keys, does]) =>
[h("dt", {}, keys.split(" ").map(key => [h("kbd", {}, key), " "])), h("dd", {}, does)];
const does = item => item.dataset.does || item.getAttribute("aria-label") || item.textContent;
const shortcuts = [...document.querySelectorAll("[data-shortcut]")].map(item => [item.dataset.shortcut, does(item)]);
$("legend").querySelector("dl").replaceChildren(...[...shortcuts, ...FIXED_KEYS].flatMap(line));
$("legend").showModal();
}
function pressed(event) {
const inField = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
const held = event.ctrlKey || event.metaKey || event.altKey;
if ((event.ctrlKey || event.metaKey) && event.key === "p") printAll();
else if (event.key === "Escape") leave(event.target);
else if (inField || held || $("legend").open) return;
else if (event.key === "j" || event.key === "k") nextRow(event.key);
else if (!pressShortcut(event.key)) return;
event.preventDefault();
}
function leave(target) {
if ($("legend").open) { $("legend").close(); return; }
document.body.classList.remove("open");
$("found").hidden = $("offer").hidden = true;
for (const open of document.querySelectorAll("#tools [open]")) open.open = false;
if (target === $("q")) focusRow(Math.max(0, rowOf(STATE.e)));
}
function nextRow(key) {
const row = rowOf(STATE.e), focus = STATE.v === 1;
if (row >= 0) step(row, key === "j" ? 1 : -1, -1);
else if (run.visible.length) select(run.visible[0], { focus });
if (STATE.v === 2) draw();
}
async function printAll() {
await fillPrint();
window.print();
}
function pressShortcut(key) {
const wanted = [...document.querySelectorAll("[data-shortcut]")].find(item => item.dataset.shortcut === key);
if (wanted) wanted.matches("input") ? wanted.focus() : wanted.click();
return Boolean(wanted);
}
function listen() {
const clicks = { theme: flipTheme, help: showLegend, errors: nextError,
next: () => nextHit(1), prev: () => nextHit(-1),
expand: () => setAll(true), fold: () => setAll(false),
csv: () => save(asCsv(), run.meta.id + ".csv", "text/csv"),
speedscope: () => save(asSpeedscope(), run.meta.id + ".speedscope.json", "application/json"),
paper: printAll, offer: traceSelected,
trace: () => save(asTrace(), run.meta.id + ".trace.json", "application/json") };
for (const [id, act] of Object.entries(clicks)) $(id).onclick = act;
for (let v = 1; v <= VIEW_COUNT; v++) $("t" + v).onclick = () => setView(v);
$("pick").onchange = () => pickRun(+$("pick").value);
$("q").addEventListener("input", typed);
$("q").addEventListener("keydown", event => { if (event.key === "Enter") nextHit(event.shiftKey ? -1 : 1); });
for (const head of document.querySelectorAll("#grid [data-sort]")) head.onclick = () => sortBy(head.dataset.sort);
$("q").addEventListener("focus", () => { if (STATE.q) showFound(); });
document.addEventListener("focusin", event => { if (!event.target.closest(".find")) $("found").hidden = true; });
document.addEventListener("pointerdown", event => { if (!event.target.closest(".find")) $("found").hidden = true; });
document.addEventListener("selectionchange", offerTrace);
addEventListener("beforeprint", fillPrint);
matchMedia("print").addEventListener("change", event => { if (event.matches) fillPrint(); });
document.querySelector("[role=tablist]").addEventListener("keydown", tabKey);
$("rows").addEventListener("keydown", gridKey);
$("rows").addEventListener("click", gridClick);
addEventListener("scroll", fillWindow, { passive: true });
addEventListener("resize", () => { fillWindow(); draw(); });
addEventListener("keydown", pressed);
addEventListener("popstate", () => showRun(readHash()));
}
let typing = 0;
function typed() {
clearTimeout(typing);
typing = setTimeout(() => { go({ q: $("q").value }, false); search(); }, 140);
}
function tabKey(event) {
const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
if (!by) return;
setView((STATE.v + by + VIEW_COUNT - 1) % VIEW_COUNT + 1);
$("t" + STATE.v).focus();
}
if (RUNS.length) { listen(); showRun(readHash()); }
else document.documentElement.className = "";
if (DATA.live) followLog();"""
# </viewer>


if __name__ == "__main__":
    raise SystemExit(main())
