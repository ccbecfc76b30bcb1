# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Everything that shows a trajectory: the reader of journals, totals, the page, the terminal tree, the notebook table.

A leaf: it imports nothing of ours, works vendored alone (`python rlm_viz.py LOG.jsonl`), and treats every byte of a
log as hostile. One builder, `rows`, turns events into the tree that page, terminal and notebook all show, so that
their figures cannot differ. Not here: writing journals (rlm.py), and judging whether a recorded answer is right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

__all__ = [
    "find_log",
    "list_runs",
    "merge",
    "read",
    "render",
    "rows",
    "serve",
    "table",
    "totals",
    "tree",
    "visualize",
    "write",
]

Event = dict[str, Any]

EVENTS = ("start", "call", "tool", "end", "resume", "interrupted", "compact")
VERSION = 1  # the newest journal version this reader knows
MAX_LINE = 256 << 20
USAGE = ("input", "output", "cached", "cache_write", "reasoning")


# --- reading a journal ----------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str], *, bodies: bool = True) -> tuple[list[Event], list[str]]:
    """Events of a log and, in words, what of it could not be used; a damaged log is never an error.

    With `bodies=False` prompts, replies, code and outputs are dropped as they are read: metrics only.
    """
    events: list[Event] = []
    problems: list[str] = []
    number, line = 0, b"\n"
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            if not line.strip():
                continue
            event, problem = _parse(line)
            if problem:
                problems.append(
                    f"line {number} {problem}" if line.endswith(b"\n") else f"the last line ({number}) is torn"
                )
            if event is not None:
                events.append(event if bodies else without_bodies(event))
    if not events and not problems:
        problems.append("the log is empty")
    return events, problems


def _parse(line: bytes) -> tuple[Event | None, str]:
    try:
        event = json.loads(line.decode("utf-8", "replace"), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None, "is not JSON and was left out"
    if not isinstance(event, dict):
        return None, "is not an object and was left out"
    if not isinstance(event.get("event"), str) or event["event"] not in EVENTS:
        return event, f"has an unknown event, {_brief(event.get('event'), 40)!r}, shown as it is"
    if _number(event.get("v")) > VERSION:
        return event, f"was written by a newer version ({event['v']})"
    return event, ""


def merge(events: Iterable[Event]) -> list[Event]:
    """The same events, each with every specified field and with the message contents that the log stores elsewhere."""
    events = list(events)
    elsewhere = _stored_contents(events)
    return [_filled(event, elsewhere) for event in events]


_FIELDS: Mapping[str, Any] = {
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


def _filled(event: Event, elsewhere: Mapping[tuple[str, str, str], tuple[int, Any]]) -> Event:
    full: Event = {**_FIELDS, **event}
    if event.get("event") == "call" and isinstance(event.get("prompt"), list):
        full["prompt"] = [_whole_message(event, message, elsewhere) for message in event["prompt"]]
    if event.get("event") == "tool":
        full["tool_results"] = [_whole_result(event, result) for result in _dicts(event.get("tool_results"))]
    return full


def _whole_message(event: Event, message: Any, elsewhere: Mapping[tuple[str, str, str], tuple[int, Any]]) -> Any:
    found = elsewhere.get(_message_key(event, message)) if _is_elsewhere(message) else None
    return {**message, "content": found[1]} if found else message


def _is_elsewhere(message: Any) -> bool:
    return isinstance(message, dict) and "content" not in message and message.get("role") != "assistant"


def _message_key(event: Event, message: Event) -> tuple[str, str, str]:
    role = str(message.get("role"))
    return str(event.get("node")), role, str(message.get("tool_call_id")) if role == "tool" else ""


def _stored_contents(events: Sequence[Event]) -> dict[tuple[str, str, str], tuple[int, Any]]:
    """Where each omitted message lies: (node, role, tool call id) -> (event number, content)."""
    found: dict[tuple[str, str, str], tuple[int, Any]] = {}
    for index, event in enumerate(events):
        node = str(event.get("node"))
        if event.get("event") == "start":
            found.setdefault((node, "system", ""), (index, event.get("system")))
            found.setdefault((node, "user", ""), (index, event.get("prompt")))
        elif event.get("event") == "tool":
            for result in _dicts(event.get("tool_results")):
                found[node, "tool", str(result.get("id"))] = (index, _whole_result(event, result).get("content"))
    return found


def _whole_result(event: Event, result: Event) -> Event:
    return result if "content" in result or "code" not in event else {**result, "content": cell_text(event)}


def cell_text(event: Event) -> str:
    """What a cell showed: its output, the value of its last expression, its error."""
    parts = [event.get("stdout"), event.get("value"), event.get("error")]
    return "\n".join(part.rstrip("\n") for part in parts if isinstance(part, str) and part)


_METRICS = {
    *("v", "event", "trajectory_id", "call_id", "parent_call_id", "depth", "timestamp", "node", "kind", "key"),
    *("model", "sub_model", "backend", "protocol", "environment", "limits", "version", "cell", "turn", "name"),
    *("token_usage", "cost_usd", "duration_ms", "stop_reason", "attempts", "left", "status", "restored", "images"),
    *("from_cell", "totals", "lines", "cells", "tokens_before", "tokens_after"),
}


def without_bodies(event: Event) -> Event:
    """The event's metrics alone: no prompt, reply, code, output, argument or message."""
    bare = {name: value for name, value in event.items() if name in _METRICS and not _holds_text(name, value)}
    if "code" in event:
        bare["code"] = ""
    if event.get("error"):
        bare["error"] = _error_name(event["error"])
    if isinstance(event.get("tool_calls"), list):
        bare["tool_calls"] = [_bare_call(call) for call in event["tool_calls"]]
    if isinstance(event.get("tool_results"), list):
        bare["tool_results"] = [
            {name: result.get(name) for name in ("id", "name", "is_error")} for result in _dicts(event["tool_results"])
        ]
    if event.get("final") is not None:
        bare["final"] = True
    return bare


def _holds_text(name: str, value: Any) -> bool:
    return name in ("limits", "left", "totals", "token_usage") and not isinstance(value, dict)


def _bare_call(call: Any) -> Any:
    return {"id": call.get("id"), "name": call.get("name")} if isinstance(call, dict) else call


def _error_name(error: Any) -> str:
    """The exception's class out of an error object or a traceback, without its message."""
    text = str(error.get("type") or "error") if isinstance(error, dict) else str(error).strip().rpartition("\n")[2]
    named = re.match(r"[\w.]{1,80}", text)
    return named.group() if named else "error"


# --- reading values that may be anything --------------------------------------------------------------------------


def _number(value: Any) -> float:
    """A finite, non-negative number; 0 for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15:
        return value
    return 0


def _dicts(value: Any) -> list[Event]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _dict(value: Any) -> Event:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """The words of a message's content: a text, or the text parts of a list."""
    if isinstance(value, list):
        return " ".join(str(part.get("text") or f"[{part.get('type')}]") for part in _dicts(value))
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)


def _brief(value: Any, length: int = 96) -> str:
    """The first line with anything on it, cut to a length."""
    text = _text(value)[:4000].strip()
    line = " ".join(text.partition("\n")[0].split())
    return line if len(line) <= length else line[: length - 1] + "…"


def _moment(value: Any) -> float | None:
    """Milliseconds since 1970 of an ISO 8601 time, or None."""
    try:
        return datetime.fromisoformat(str(value).replace("Z", "+00:00")).timestamp() * 1000
    except (ValueError, OverflowError, OSError):
        return None


# --- the rows that every display shares -----------------------------------------------------------------------------

ERROR, WARNING, RESTORED, FINAL, ESTIMATED, RETRIED = 1, 2, 4, 8, 16, 32
BATCH = 6  # this many sibling calls of one kind are shown as one row that opens


@dataclass
class Row:
    """A line of the tree: an event, or (index -1) a batch of sibling calls or the heading of detached events.

    Figures without a prefix are the row's own; `all_` ones include everything below it. Costs are of the calls whose
    price is known; `unpriced` counts the others. Times are milliseconds since 1970.
    """

    index: int
    kind: str
    name: str
    text: str = ""
    level: int = 0
    model: str = ""
    depth: int = 0
    start: float = 0.0
    end: float = 0.0
    all_ms: float = 0.0
    own_ms: float = 0.0
    usage: tuple[int, ...] = (0, 0, 0, 0, 0)
    tokens: int = 0
    cost: float = 0.0
    unpriced: int = 0
    all_tokens: int = 0
    all_cost: float = 0.0
    all_unpriced: int = 0
    all_errors: int = 0
    flags: int = 0
    width: int = 0
    children: list[int] = field(default_factory=list)

    @property
    def error(self) -> bool:
        return bool(self.flags & ERROR)


def rows(events: Sequence[Event]) -> list[Row]:
    """The run as a tree, in the order in which it is shown (a parent before its children, siblings by start).

    Linear and iterative, so that a chain of any depth works; what has no parent, or is its own ancestor, stands
    under one heading, "detached".
    """
    flat = [
        _row(index, event, start, end)
        for index, (event, (start, end)) in enumerate(zip(events, _spans(events), strict=True))
    ]
    above = _parents(events)
    _mark_answer(events, flat)
    detached = _break_cycles(above)
    tops: list[int] = []
    lost: list[int] = []
    for index, parent in enumerate(above):
        if parent >= 0:
            flat[parent].children.append(index)
        else:
            (lost if parent == _LOST or index in detached else tops).append(index)
    if lost:
        tops.append(len(flat))
        flat.append(
            Row(-1, "detached", "detached", f"{len(lost)} events whose parent is not in this log", children=lost)
        )
    order = _preorder(flat, tops)
    _accumulate(order, _pauses(events))
    return order


_TOP, _LOST = -1, -2


def _spans(events: Sequence[Event]) -> list[tuple[float, float]]:
    """Start and end of each event; a line is written when its call ends; one without a time takes its neighbour's."""
    spans: list[tuple[float, float]] = []
    last = next((at for at in (_moment(event.get("timestamp")) for event in events) if at is not None), 0.0)
    for event in events:
        at = _moment(event.get("timestamp"))
        last = last if at is None else at
        length = _number(event.get("duration_ms")) if event.get("event") in ("call", "tool", "interrupted") else 0.0
        spans.append((last - length, last))
    return spans


def _parents(events: Sequence[Event]) -> list[int]:
    """For each event the number of the one it hangs under, _TOP, or _LOST when that one is not in the log."""
    nodes: dict[str, int] = {}
    calls: dict[str, int] = {}
    cells: dict[tuple[str, float], int] = {}
    for index, event in enumerate(events):
        kind, call = event.get("event"), str(event.get("call_id"))
        if kind == "start":
            nodes.setdefault(str(event.get("node")), index)
        elif kind == "tool" and "code" in event:
            cells[call, _number(event.get("cell"))] = index
        elif kind not in ("tool", "end") and event.get("call_id") is not None:
            calls.setdefault(call, index)

    def under_call(call: Any, cell: Any) -> int:
        if call is None:
            return _TOP
        found = cells.get((str(call), _number(cell))) if cell is not None else None
        return calls.get(str(call), _LOST) if found is None else found

    def under_node(event: Event) -> int:
        found = nodes.get(str(event.get("node")), _LOST)
        return under_call(event.get("parent_call_id"), None) if found == _LOST else found

    def parent(event: Event) -> int:
        kind = event.get("event")
        if kind == "tool":
            return under_call(event.get("call_id"), event.get("from_cell"))
        if kind == "start" or (kind == "call" and event.get("kind") == "sub"):
            return under_call(event.get("parent_call_id"), event.get("cell"))
        if kind == "interrupted" and event.get("parent_call_id") is not None:
            return under_call(event.get("parent_call_id"), event.get("cell"))
        return under_node(event)

    return [parent(event) for event in events]


def _break_cycles(above: list[int]) -> set[int]:
    """Cut each circle of parents at one event; the numbers of those cut."""
    cut: set[int] = set()
    seen = [0] * len(above)  # 0 new, else the number of the walk that met it
    for begin in range(len(above)):
        at = begin
        while at >= 0 and not seen[at]:
            seen[at] = begin + 1
            at = above[at]
        if at >= 0 and seen[at] == begin + 1:
            above[at] = _LOST
            cut.add(at)
    return cut


def _preorder(flat: list[Row], tops: list[int]) -> list[Row]:
    """Rows in display order, batches folded into rows of their own; `children` then count in that order."""
    order: list[Row] = []
    stack: list[tuple[Row, int, Row | None]] = [(flat[index], 0, None) for index in reversed(_by_start(flat, tops))]
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
    """The same siblings with each long stretch of one kind of call behind a new "batch" row."""
    folded: list[int] = []
    begin = 0
    while begin < len(indices):
        first = flat[indices[begin]]
        end = begin + 1
        while end < len(indices) and (flat[indices[end]].kind, flat[indices[end]].name) == (first.kind, first.name):
            end += 1
        if first.kind in ("sub", "node", "tool") and end - begin >= BATCH:
            folded.append(len(flat))
            label = f"{first.name} × {end - begin}"
            flat.append(Row(-1, "batch", label, model=first.model, depth=first.depth, children=indices[begin:end]))
        else:
            folded.extend(indices[begin:end])
        begin = end
    return folded


def _accumulate(order: list[Row], pauses: list[tuple[float, float]]) -> None:
    """Fill in the totals, own times and parallel widths, leaves first."""
    for row in reversed(order):
        below = [order[index] for index in row.children]
        row.all_tokens = row.tokens + sum(child.all_tokens for child in below)
        row.all_cost = row.cost + sum(child.all_cost for child in below)
        row.all_unpriced = row.unpriced + sum(child.all_unpriced for child in below)
        row.all_errors = (row.flags & ERROR) + sum(child.all_errors for child in below)
        covered, row.width = _coverage([(child.start, child.end) for child in below])
        if row.kind in ("batch", "detached") and below:
            row.start, row.end = below[0].start, below[0].end
        for child in below:
            row.start, row.end = min(row.start, child.start), max(row.end, child.end)
        still = sum(length for at, length in pauses if row.start <= at and at + length <= row.end)
        row.all_ms = row.end - row.start - still
        if row.kind in ("turn", "sub", "tool", "interrupted"):
            continue  # own time is the call's own duration
        row.own_ms = max(0.0, (row.own_ms if row.kind == "cell" else row.all_ms) - covered)


def _coverage(spans: list[tuple[float, float]]) -> tuple[float, int]:
    """Time covered by at least one span, and how many ran at once at most."""
    edges = sorted(edge for start, end in spans if end > start for edge in ((start, 1), (end, -1)))
    covered, active, since = 0.0, 0, 0.0
    for at, step in edges:
        covered += at - since if active else 0.0
        active, since = active + step, at
    return covered, _most_at_once(spans)


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many overlap by more than a millisecond: a lane's next call begins where its last one ended."""
    width = active = 0
    for _, step in sorted(edge for start, end in spans if end - start > 1 for edge in ((start + 1, 1), (end, -1))):
        active += step
        width = max(width, active)
    return width


def _row(index: int, event: Event, start: float, end: float) -> Row:
    kind = _kind(event)
    row = Row(index, kind, *_words(kind, event), start=start, end=end, own_ms=end - start, flags=_flags(kind, event))
    row.depth = int(_number(event.get("depth")))
    row.model = _brief(event.get("model"), 60)
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
        return "sub" if event.get("kind") == "sub" else "turn"
    if name == "tool":
        return "cell" if "code" in event else "tool"
    return str(name) if name in EVENTS else "other"


def _words(kind: str, event: Event) -> tuple[str, str]:
    """The name and the detail of a row."""
    if kind == "node":
        return ("run" if event.get("parent_call_id") is None else "rlm_query"), _brief(event.get("prompt"))
    if kind == "turn":
        calls = ", ".join(_brief(call.get("name"), 40) for call in _dicts(event.get("tool_calls"))[:4])
        return f"turn {_count(event.get('turn'))}", _brief(event.get("response")) or calls
    if kind == "sub":
        return "llm_query", _brief(_last_user_text(event.get("prompt")))
    if kind == "cell":
        return f"cell {_count(event.get('cell'))}", _first_code_line(event.get("code"))
    if kind == "tool":
        return _tool_words(event)
    return _other_words(kind, event)


def _tool_words(event: Event) -> tuple[str, str]:
    names = [_brief(result.get("name"), 40) for result in _dicts(event.get("tool_results"))]
    name = _brief(event.get("name"), 40) or ", ".join(dict.fromkeys(names)) or "tool"
    arguments = event.get("arguments")
    return name, _brief(arguments if isinstance(arguments, str) else _text(arguments)) if arguments else ""


def _other_words(kind: str, event: Event) -> tuple[str, str]:
    error = _dict(event.get("error"))
    if kind == "end":
        status = _brief(event.get("status"), 20) or "ended"
        return status, _brief(error.get("message") or event.get("response"))
    if kind == "resume":
        return "resumed", f"after {_count(event.get('lines'))} recorded lines"
    if kind == "interrupted":
        what = error.get("message") or event.get("error")
        return "interrupted", _brief(" ".join(filter(None, [_brief(event.get("kind"), 20), _brief(what)])))
    if kind == "compact":
        before, after = (format(int(_number(event.get(name))), ",") for name in ("tokens_before", "tokens_after"))
        return "compacted", f"{before} → {after} tokens"
    return _brief(event.get("event"), 40) or "unknown", ""


def _count(value: Any) -> str:
    return str(int(_number(value))) if _number(value) else "?"


def _last_user_text(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    texts = [_text(message.get("content")) for message in _dicts(prompt) if message.get("role") == "user"]
    return texts[-1] if texts else ""


def _first_code_line(code: Any) -> str:
    lines = [line for line in _text(code)[:4000].splitlines() if line.strip()]
    telling = [line for line in lines if not line.lstrip().startswith(("#", "import ", "from "))]
    return _brief((telling or lines or [""])[0])


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
    elif kind == "end" and event.get("status") in ("partial", "interrupted"):
        flags |= WARNING
    return flags


def _mark_answer(events: Sequence[Event], flat: list[Row]) -> None:
    """Flag the event that each answered node's answer came from: the cell that called FINAL, else its last turn."""
    source: dict[str, int] = {}
    for index, event in enumerate(events):
        node = str(event.get("node"))
        if event.get("final") is not None or (flat[index].kind == "turn" and not event.get("tool_calls")):
            source[node] = index
        if flat[index].kind == "end" and event.get("status") == "answered" and node in source:
            flat[source[node]].flags |= FINAL


# --- totals -----------------------------------------------------------------------------------------------------------


def totals(events: Sequence[Event], tree_rows: Sequence[Row] | None = None) -> dict[str, Any]:
    """Calls, tokens, usage, cost (None: a price is unknown), depth, tool calls, time, errors, status of the run."""
    listed = rows(events) if tree_rows is None else tree_rows
    made = [row for row in listed if row.kind in ("turn", "sub")]
    unpriced = sum(row.unpriced for row in made)
    known = round(sum(row.cost for row in made), 12)
    return {
        "calls": len(made),
        "tokens": sum(row.tokens for row in made),
        "usage": {name: sum(row.usage[place] for row in made) for place, name in enumerate(USAGE)},
        "cost_usd": None if unpriced else known,
        "cost_known": known,
        "depth_reached": max((row.depth for row in made), default=0),
        "tool_calls": sum(row.kind in ("cell", "tool") for row in listed),
        "duration_ms": round(_active_ms(events)),
        "errors": sum(row.flags & ERROR for row in listed),
        "status": _status(events),
    }


def _status(events: Sequence[Event]) -> str:
    """The root's last word: answered, partial, error, interrupted, or unfinished when it has not ended."""
    status = "unfinished" if events else "empty"
    for event in events:
        if event.get("event") == "resume":
            status = "unfinished"
        elif event.get("event") == "end" and not _number(event.get("depth")):
            status = _brief(event.get("status"), 20) or "ended"
    return status


def _active_ms(events: Sequence[Event]) -> float:
    """Time from first to last event, without the pauses before resumptions."""
    spans = _spans(events)
    begin, end = min((start for start, _ in spans), default=0.0), max((end for _, end in spans), default=0.0)
    return end - begin - sum(length for _, length in _pauses(events))


def _pauses(events: Sequence[Event]) -> list[tuple[float, float]]:
    """(when it began, how long it was) of each time in which the run lay still until it was resumed."""
    spans = _spans(events)
    found = []
    for index, event in enumerate(events):
        if event.get("event") == "resume" and index:
            found.append((spans[index - 1][1], max(0.0, spans[index][0] - spans[index - 1][1])))
    return found


# --- figures and text as people read them -----------------------------------------------------------------------------

# Characters that would move, hide or reorder what is shown: controls, direction marks, zero-width, lone surrogates.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def money(known: float, unpriced: int = 0) -> str:
    """Dollars; "?" stands for calls whose price is unknown, and is never shown as zero."""
    if unpriced and not known:
        return "?"
    if not known:
        shown = "$0"
    elif known < 0.00005:
        shown = "<$0.0001"
    else:
        shown = f"${known:,.2f}" if known >= 100 else f"${known:.4f}"
    return f"{shown} + ?" if unpriced else shown


def duration(ms: float) -> str:
    """A time span with two or three significant parts: 41 ms, 2.1 s, 1 m 05 s, 2 h 03 m."""
    if ms < 999.5:
        return f"{ms:.0f} ms" if ms >= 9.95 or ms < 0.05 else f"{ms:.1f} ms"
    seconds = ms / 1000
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {seconds:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} m"


def _visible(text: str) -> str:
    """The text on one line with every unseen character written as an escape."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text.replace("\n", " ").replace("\t", " "))


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
    lines = [_paint(_heading(events, listed), "1", color), *_columns(width)]
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
    name = _visible(_brief(next((event.get("trajectory_id") for event in events), None) or "no run", 40))
    cost = money(sums["cost_known"], sum(row.unpriced for row in listed))
    parts = [name, sums["status"], f"{sums['calls']:,} calls", f"{sums['tokens']:,} tok", cost]
    parts += [duration(sums["duration_ms"]), f"depth {sums['depth_reached']}"]
    return " · ".join(parts + ([f"{sums['errors']} errors"] if sums["errors"] else []))


_FIGURES = (20, 22, 20)  # columns for tokens, cost and time


def _columns(width: int) -> list[str]:
    if width < 90:
        return []
    titles = [
        title.rjust(wide) for title, wide in zip(("tokens (self)", "cost (self)", "time (self)"), _FIGURES, strict=True)
    ]
    return [" " * (width - sum(_FIGURES)) + "".join(titles)]


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
    mark = "✗" if row.error else _MARKS[row.kind]
    flags = "".join(words for bit, words in _FLAG_WORDS.items() if row.flags & bit)
    wide = f" ({row.width} at once)" if row.kind in ("cell", "batch") and row.width > 1 else ""
    label = _fit(f"{bars}{mark} {_visible(row.name)}{wide}{flags}  {_visible(row.text)}", room)
    code = "31" if row.error else "32" if row.flags & FINAL else "36" if row.kind in ("node", "batch") else ""
    return (_paint(label, code, color) + _figures(row, width)).rstrip()


_FLAG_WORDS = {FINAL: " [answer]", WARNING: " [!]", RESTORED: " [variables restored]", RETRIED: " [retried]"}


def _figures(row: Row, width: int) -> str:
    tokens, cost, time = _figure_texts(row)
    if width < 90:
        return tokens[0].rjust(10) + cost[0].rjust(11) + time[0].rjust(9)
    pairs = (f"{total} ({own})" if own and own != total else total for total, own in (tokens, cost, time))
    return "".join(text.rjust(wide) for text, wide in zip(pairs, _FIGURES, strict=True))


def _figure_texts(row: Row) -> tuple[tuple[str, str], tuple[str, str], tuple[str, str]]:
    """(total, self) for tokens, cost and time; empty where the row has none."""
    calls = bool(row.all_tokens or row.all_unpriced or row.all_cost)
    tokens = (f"{row.all_tokens:,}", f"{row.tokens:,}") if calls else ("", "")
    cost = (money(row.all_cost, row.all_unpriced), money(row.cost, row.unpriced)) if calls else ("", "")
    timed = row.kind not in ("end", "resume", "compact", "other")
    return tokens, cost, (duration(row.all_ms), duration(row.own_ms)) if timed else ("", "")


def _paint(text: str, code: str, color: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if color and code else text


# --- the table in a notebook ------------------------------------------------------------------------------------------

NOTEBOOK_LIMIT = 20_000


def table(events: Sequence[Event], rows: int = 30) -> str:
    """The first rows of the tree as HTML for a notebook: escaped, no script, inline styles, at most 20 KB."""
    listed = _rows(events)
    shown = [row for row in listed if row.level <= 24][:rows]
    while True:
        page = _fragment(_heading(events, listed), shown, len(listed) - len(shown))
        if len(page.encode("utf-8", "replace")) <= NOTEBOOK_LIMIT or not shown:
            return page
        shown = shown[: len(shown) * 3 // 4]


def _fragment(heading: str, shown: Sequence[Row], more: int) -> str:
    cell = "text-align:right;padding:1px 10px;white-space:nowrap;font-variant-numeric:tabular-nums"
    head = "".join(f'<th style="{cell}">{title}</th>' for title in ("tokens", "cost", "time"))
    body = "".join(_fragment_row(row, cell) for row in shown)
    note = f"<p>… and {more:,} more rows</p>" if more > 0 else ""
    return (
        f"<details><summary>{_html(heading)}</summary>"
        f'<table><thead><tr><th style="text-align:left">call</th>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"{note}</details>"
    )


def _fragment_row(row: Row, cell: str) -> str:
    mark = "✗" if row.error else _MARKS[row.kind]
    name = f"{mark} <b>{_html(_visible(row.name))}</b> {_html(_visible(row.text[:60]))}"
    figures = "".join(f'<td style="{cell}">{_html(total)}</td>' for total, _ in _figure_texts(row))
    left = f"text-align:left;padding:1px 10px 1px {row.level * 14}px"
    return f'<tr><td style="{left}">{name}</td>{figures}</tr>'


def _html(text: str) -> str:
    return (
        text.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
        .replace("'", "&#39;")
    )


_rows = rows  # `table` has a parameter of that name


# --- a folder of logs -------------------------------------------------------------------------------------------------


def find_log(dir: str | os.PathLike[str], id_prefix: str) -> str:
    """The log whose id starts with the prefix (or the named .jsonl file); ValueError says what there is instead."""
    if id_prefix.endswith(".jsonl") and os.path.isfile(id_prefix):
        return id_prefix
    names = [name[: -len(".jsonl")] for name in _log_names(dir)]
    matches = [id_prefix] if id_prefix in names else [name for name in names if name.startswith(id_prefix)]
    if len(matches) == 1:
        return os.path.join(dir, matches[0] + ".jsonl")
    shown = ", ".join((matches or names)[:8]) + (", …" if len(matches or names) > 8 else "")
    if matches:
        raise ValueError(f"{id_prefix!r} is the beginning of {len(matches)} runs: {shown}")
    raise ValueError(
        f"no run {id_prefix!r} in {os.fspath(dir)!r}" + (f"; there are {shown}" if names else ", which has none")
    )


def _log_names(dir: str | os.PathLike[str]) -> list[str]:
    """Names of the logs in a folder, newest first; none if there is no such folder."""
    try:
        with os.scandir(dir) as found:
            logs = [(entry.stat().st_mtime_ns, entry.name) for entry in found if entry.name.endswith(".jsonl")]
    except FileNotFoundError:
        return []
    return [name for _, name in sorted(logs, reverse=True)]


def list_runs(dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """What is known of each run without reading its whole log, newest first: id, status, prompt, figures, path."""
    runs = [_run_line(os.path.join(dir, name)) for name in _log_names(dir)]
    return sorted(runs, key=lambda run: run["started"] or "", reverse=True)


def _run_line(path: str) -> dict[str, Any]:
    first, last = _ends(path)
    sums = _dict(last.get("totals")) if last.get("event") == "end" and not _number(last.get("depth")) else None
    if sums is None and os.path.getsize(path) <= 4 << 20:
        sums = totals(read(path, bodies=False)[0])
    sums = sums or {}
    return {
        "id": os.path.basename(path)[: -len(".jsonl")],
        "status": _brief(last.get("status"), 20) if "totals" in last else sums.get("status", "unfinished"),
        "prompt": _brief(first.get("prompt"), 200),
        "model": _brief(first.get("model"), 60),
        "started": first.get("timestamp") if isinstance(first.get("timestamp"), str) else None,
        "duration_ms": sums.get("duration_ms"),
        "calls": sums.get("calls"),
        "tokens": sums.get("tokens"),
        "cost_usd": sums.get("cost_usd"),
        "path": path,
        "bytes": os.path.getsize(path),
    }


def _ends(path: str) -> tuple[Event, Event]:
    """The first event and the last whole one, by reading only the file's two ends."""
    with open(path, "rb") as file:
        first = _parse(file.readline(8 << 20))[0] or {}
        size = file.seek(0, os.SEEK_END)
        for reach in (64 << 10, 16 << 20):
            file.seek(max(0, size - reach))
            tail = file.read(reach).splitlines()
            whole = tail if size <= reach else tail[1:]  # the first line of a window is cut
            for line in reversed(whole):
                event, _ = _parse(line) if line.strip() else (None, "")
                if event is not None:
                    return first, event
            if size <= reach:
                break
    return first, {}


# --- secrets ----------------------------------------------------------------------------------------------------------

_KEY_SHAPES = (
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{8,}",
    r"(?i:bearer)\s+[A-Za-z0-9._~+/-]{8,}=*",
    r"(?<![A-Za-z0-9])(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|AIza[A-Za-z0-9_-]{30,}|xox[abpr]-[A-Za-z0-9-]{10,})",
)


def secrets_pattern(environ: Mapping[str, str] | None = None) -> re.Pattern[str]:
    """What is never written into a page: key shapes, and the values of variables named like KEY, TOKEN or SECRET."""
    environ = os.environ if environ is None else environ
    values = {
        form
        for name, value in environ.items()
        if re.search("KEY|TOKEN|SECRET|PASSWORD", name.upper()) and len(value) >= 8 and not value.isdigit()
        for form in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])
    }
    return re.compile(
        "|".join([re.escape(value) for value in sorted(values, key=len, reverse=True)] + list(_KEY_SHAPES))
    )


def _redacted(value: Any, secret: re.Pattern[str]) -> Any:
    if isinstance(value, str):
        return secret.sub("[redacted]", value)
    if isinstance(value, list):
        return [_redacted(item, secret) for item in value]
    if isinstance(value, dict):
        return {_redacted(name, secret): _redacted(item, secret) for name, item in value.items()}
    return value


# --- the page: what is embedded ---------------------------------------------------------------------------------------

CHUNK = 256  # events in a block that is inflated on demand
PLAIN_LIMIT = 256 << 10  # below this the page carries plain JSON and stays greppable
BODY_LIMIT = 240 << 20  # of journal, about 200 MB of bodies: beyond it a page carries metrics only, and says so
STATIC_ROWS = 200
KINDS = ("node", "turn", "sub", "cell", "tool", "batch", "end", "resume", "interrupted", "compact", "other", "detached")


@dataclass
class _Room:
    """What a page may still take, and the patterns of what it must not."""

    secret: re.Pattern[str]
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

    def meta(self) -> dict[str, Any]:
        """What the page's heading, picker and comparison need of the run."""
        first = next((event for event in self.events if event.get("event") == "start"), {})
        ending, answer = _answer(self.events)
        source = next((row.index for row in self.rows if row.flags & FINAL and row.depth == 0), -1)
        question = _text(first.get("prompt"))
        return {
            "id": self.name,
            "question": question[:20_000],
            "answer": answer[:20_000],
            "cut": [len(question) > 20_000, len(answer) > 20_000],
            "at": [self.events.index(first) if first else -1, ending, source],
            "model": _brief(first.get("model"), 60),
            "sub_model": _brief(first.get("sub_model"), 60),
            "started": _brief(first.get("timestamp"), 40),
            "limits": {name: value for name, value in _dict(first.get("limits")).items() if _number(value)},
            "used": _used(self.events, self.rows),
            "unpriced": sum(row.unpriced for row in self.rows),
            "problems": self.problems[:20] + ([f"… and {len(self.problems) - 20} more"] if self.problems[20:] else []),
            "events": len(self.events),
            "plain": self.plain,
            "chunks": len(self.chunks),
            **totals(self.events, self.rows),
        }


def _answer(events: Sequence[Event]) -> tuple[int, str]:
    """Number of the root's last end and what it says."""
    for index in range(len(events) - 1, -1, -1):
        event = events[index]
        if event.get("event") == "end" and not _number(event.get("depth")):
            error = _dict(event.get("error"))
            return index, _text(event.get("response")) or _text(error.get("message"))
    return -1, ""


def _used(events: Sequence[Event], listed: Sequence[Row]) -> dict[str, float]:
    """What was used of each limit, by the limit's name."""
    return {
        "token_budget": sum(row.tokens for row in listed),
        "cost_budget_usd": sum(row.cost for row in listed),
        "timeout_seconds": _active_ms(events) / 1000,
        "max_subcalls": sum(row.kind == "sub" or (row.kind == "node" and row.name == "rlm_query") for row in listed),
        "max_iterations": sum(row.kind == "turn" and row.depth == 0 for row in listed),
        "max_depth": max((row.depth for row in listed), default=0),
    }


class _Packer:
    """Collects JSON lines into blocks: plain while the page's allowance lasts, else gzip of CHUNK lines each."""

    def __init__(self, allowance: int) -> None:
        self.allowance = allowance
        self.size = 0
        self.lines: list[str] = []
        self.chunks: list[str] = []

    @property
    def plain(self) -> bool:
        return self.size <= self.allowance

    def add(self, line: str) -> None:
        self.lines.append(line)
        self.size += len(line)
        if not self.plain and len(self.lines) % CHUNK == 0:
            self.flush(_gzip)

    def flush(self, form: Callable[[str], str]) -> None:
        for at in range(0, len(self.lines), CHUNK):
            self.chunks.append(form("\n".join(self.lines[at : at + CHUNK])))
        self.lines = []


def _prepare(name: str, events: Sequence[Event], problems: Sequence[str], room: _Room, bodies: bool = True) -> _Run:
    """Redact a run, compute its rows and pack its bodies, as far as the page has room for them."""
    clean: list[Event] = []
    packer = _Packer(room.plain)
    elsewhere = _stored_contents(events)
    dropped = 0
    for event in events:
        if not bodies or packer.size > room.bodies:
            dropped += 1
            event = without_bodies(event)
        event, line = _clean(_with_addresses(event, elsewhere), room.secret)
        clean.append(event)
        packer.add(line)
    packer.flush(_script_safe if packer.plain else _gzip)
    room.bodies = max(0, room.bodies - packer.size)
    room.plain -= packer.size if packer.plain else 0
    left_out = [_left_out(dropped, bodies)] if dropped else []
    return _Run(name, clean, rows(clean), [*problems, *left_out], packer.chunks, packer.plain)


def _left_out(dropped: int, wanted: bool) -> str:
    if not wanted:
        return "metrics only: prompts, replies, code and outputs are left out"
    return f"the text of the last {dropped:,} events is left out: more than {BODY_LIMIT >> 20} MB of log"


def _with_addresses(event: Event, elsewhere: Mapping[tuple[str, str, str], tuple[int, Any]]) -> Event:
    """The event with, on each message that is stored elsewhere, the number of the event that has it."""
    if event.get("event") != "call" or not isinstance(event.get("prompt"), list):
        return event
    found = [elsewhere.get(_message_key(event, item)) if _is_elsewhere(item) else None for item in event["prompt"]]
    messages = [{**item, "_at": at[0]} if at else item for item, at in zip(event["prompt"], found, strict=True)]
    return {**event, "prompt": messages}


def _clean(event: Event, secret: re.Pattern[str]) -> tuple[Event, str]:
    """The event without secrets, and as a line of JSON that any browser reads."""
    try:
        line = _json(event)
        if secret.search(line):
            event = _redacted(event, secret)
            line = _json(event)
    except (ValueError, TypeError, RecursionError):
        event = _finite(event)
        line = _json(event)
    return event, line


def _finite(event: Event) -> Event:
    """The event with what JSON cannot say (infinity, endless nesting) put into words."""
    fields: Event = {}
    for name, value in event.items():
        try:
            _json(value)
            fields[str(name)] = value
        except (ValueError, TypeError, RecursionError):
            fields[str(name)] = f"[{type(value).__name__} that cannot be shown]"
    return fields


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()  # lone surrogates as \\udXXX


def _script_safe(text: str) -> str:
    """JSON that no HTML parser can read as the end of its script, or as the beginning of another."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _gzip(text: str) -> str:
    import gzip
    from base64 import b64encode

    return b64encode(gzip.compress(text.encode(), 4, mtime=0)).decode()


def _index(run: _Run) -> str:
    """The columns of a run's rows: all that the tree, the timeline and the charts need, without a body."""
    base = min((row.start for row in run.rows), default=0.0)
    names, models = _numbered(row.name for row in run.rows), _numbered(row.model for row in run.rows)
    columns: dict[str, list[Any]] = {
        "level": [row.level for row in run.rows],
        "at": [row.index for row in run.rows],
        "kind": [KINDS.index(row.kind) for row in run.rows],
        "name": [names[row.name] for row in run.rows],
        "model": [models[row.model] for row in run.rows],
        "depth": [row.depth for row in run.rows],
        "start": [round(row.start - base, 1) for row in run.rows],
        "end": [round(row.end - base, 1) for row in run.rows],
        "all": [round(row.all_ms, 1) for row in run.rows],
        "own": [round(row.own_ms, 1) for row in run.rows],
        "cost": [-1 if row.unpriced else round(row.cost, 9) for row in run.rows],
        "allTokens": [row.all_tokens for row in run.rows],
        "allCost": [round(row.all_cost, 9) for row in run.rows],
        "unpriced": [row.all_unpriced for row in run.rows],
        "errors": [row.all_errors for row in run.rows],
        "flags": [row.flags for row in run.rows],
        "width": [row.width for row in run.rows],
    }
    columns |= {name: [row.usage[place] for row in run.rows] for place, name in enumerate(USAGE)}
    texts = "\n".join(row.text.replace("\n", " ") for row in run.rows)
    text = _json({"base": base, "names": list(names), "models": list(models), "cols": columns, "texts": texts})
    return _script_safe(text) if run.plain else _gzip(text)


def _numbered(words: Iterable[str]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for word in words:
        numbers.setdefault(word, len(numbers))
    return numbers


# --- the page: its HTML -----------------------------------------------------------------------------------------------


def render(runs: Sequence[Event] | Sequence[Sequence[Event]], *, bodies: bool = True) -> str:
    """One self-contained page for a run's events, or for a list of such runs, newest first."""
    listed: list[Sequence[Event]] = [runs] if not runs or isinstance(runs[0], dict) else list(runs)  # type: ignore[list-item,arg-type]
    room = _Room(secrets_pattern())
    return "".join(_page([_prepare(_run_name(events), events, [], room, bodies) for events in listed]))


def _run_name(events: Sequence[Event]) -> str:
    return _brief(next((event["trajectory_id"] for event in events if event.get("trajectory_id")), "run"), 60)


def write(
    paths: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], *, bodies: bool = True, diff: bool = False
) -> str:
    """Write one page for these logs, in this order, and return its path; with `diff` the first two are compared."""
    room = _Room(secrets_pattern())
    runs = [_load(path, room, bodies) for path in paths]
    target = os.fspath(out)
    part = f"{target}.{os.getpid()}.part"
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.writelines(_page(runs, diff=_diff(runs) if diff else None))
    os.replace(part, target)
    return target


def _load(path: str | os.PathLike[str], room: _Room, bodies: bool = True) -> _Run:
    within = os.path.getsize(path) <= room.bodies or room.bodies == BODY_LIMIT
    events, problems = read(path, bodies=bodies and within)
    if bodies and not within:
        problems.append(f"metrics only: the page already holds {BODY_LIMIT >> 20} MB of newer logs")
    name = os.path.basename(os.fspath(path)).removesuffix(".jsonl")
    return _prepare(name, events, problems, room, bodies)


def _page(
    runs: Sequence[_Run], *, others: Sequence[dict[str, Any]] = (), diff: dict[str, Any] | None = None, live: str = ""
) -> Iterator[str]:
    """The pieces of the page: what can be read at once first, the bodies last."""
    metas = [run.meta() for run in runs]
    style, script = _compact(_STYLE), _compact(_SCRIPT)
    policy = (
        f"default-src 'none'; script-src '{_sha256(_HEAD_SCRIPT)}' '{_sha256(script)}'; style-src '{_sha256(style)}'; "
        f"img-src data:; base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if live else "")
    )
    title = _html(_shown(_brief(metas[0]["question"], 60))) if metas else "no runs"
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title} · rlm trajectory</title>'
        f'<link rel="icon" href="{_ICON}"><style>{style}</style><script>{_HEAD_SCRIPT}</script></head>\n<body>'
    )
    yield _BODY.replace("%SUMMARY%", _summary(metas[0]) if metas else _EMPTY).replace(
        "%TREE%", _static_tree(runs[0].rows) if runs else ""
    )
    yield _block("data", _script_safe(_json({"runs": [*metas, *others], "diff": diff, "live": live})), plain=True)
    for number, run in enumerate(runs[:1]):
        yield _block(f"r{number}", _index(run), run.plain)
    yield f"<script>{script}</script>\n"
    for number, run in enumerate(runs):
        if number:
            yield _block(f"r{number}", _index(run), run.plain)
        for place, chunk in enumerate(run.chunks):
            yield _block(f"r{number}c{place}", chunk, run.plain)
    yield "</body></html>\n"


def _block(name: str, text: str, plain: bool) -> str:
    return f'<script type="application/{"json" if plain else "gzip"}" id="{name}">{text}</script>\n'


def _sha256(text: str) -> str:
    from base64 import b64encode

    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _compact(text: str) -> str:
    """Style or script without indentation and comment lines; a browser needs neither."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def _shown(text: str) -> str:
    """Text for static HTML: what HTML cannot hold as a picture of it, direction marks as escapes."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _summary(meta: Mapping[str, Any]) -> str:
    cards = "".join(f"<div><dt>{title}</dt><dd>{_html(value)}</dd></div>" for title, value in _cards(meta))
    problems = "".join(f"<li>{_html(_shown(problem))}</li>" for problem in meta["problems"])
    question, answer, status = (_html(_shown(meta[name])) for name in ("question", "answer", "status"))
    return (
        f'<div class="qa"><div><h2>Question</h2><div id="question" class="prose">{question}</div></div>'
        f'<div><h2>Answer <span id="status" class="badge {status}">{status}</span></h2>'
        f'<div id="answer" class="prose">{answer}</div></div></div>'
        f'<dl id="cards" class="cards">{cards}</dl><ul id="problems" class="problems">{problems}</ul>'
    )


def _cards(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Calls", f"{meta['calls']:,}"),
        ("Tokens", f"{meta['tokens']:,}"),
        ("Cost", money(meta["cost_known"], meta["unpriced"])),
        ("Duration", duration(meta["duration_ms"])),
        ("Errors", f"{meta['errors']:,}"),
        ("Depth", f"{meta['depth_reached']}"),
        ("Tool calls", f"{meta['tool_calls']:,}"),
    ]


_EMPTY = '<p class="empty">There is no run here yet.</p>'


def _static_tree(listed: Sequence[Row]) -> str:
    """The first rows as a plain table: for print, and for a browser without scripts."""
    head = "<tr><th>Call</th><th>Tokens</th><th>Cost</th><th>Time</th></tr>"
    body = "".join(_static_row(row) for row in listed[:STATIC_ROWS])
    more = len(listed) - STATIC_ROWS
    note = f"<p>… and {more:,} more rows</p>" if more > 0 else ""
    return f"<table><caption>Call tree</caption><thead>{head}</thead><tbody>{body}</tbody></table>{note}"


def _static_row(row: Row) -> str:
    mark = "✗" if row.error else _MARKS[row.kind]
    indent = "\u00a0\u00a0" * min(row.level, 24)
    figures = "".join(f"<td>{_html(total)}</td>" for total, _ in _figure_texts(row))
    return f"<tr><td>{indent}{mark} <b>{_html(_shown(row.name))}</b> {_html(_shown(row.text))}</td>{figures}</tr>"


# --- comparing two runs -----------------------------------------------------------------------------------------------

DIFF_STEPS = 2000


def _diff(runs: Sequence[_Run]) -> dict[str, Any] | None:
    """Two runs' steps side by side, with the first place where they part."""
    if len(runs) < 2:
        return None
    left, right = (_steps(run) for run in runs[:2])
    steps = _aligned([step[1] for step in left], [step[1] for step in right])
    listed = [_compared(left[a] if a >= 0 else None, right[b] if b >= 0 else None) for a, b in steps[:DIFF_STEPS]]
    first = next((place for place, step in enumerate(listed) if step[0] != "same"), -1)
    return {"steps": listed, "first": first, "more": max(0, len(steps) - DIFF_STEPS)}


def _steps(run: _Run) -> list[tuple[Row, str, str]]:
    """(row, what was asked, what came of it) of each step; times and costs do not count as differences."""
    found: list[tuple[Row, str, str]] = []
    for row in run.rows:
        event = run.events[row.index] if row.index >= 0 else {}
        if row.kind in ("turn", "cell", "tool", "node", "sub", "end"):
            asked = [
                row.kind,
                row.name,
                event.get("code"),
                event.get("arguments"),
                event.get("prompt") if row.kind != "turn" else 0,
            ]
            came = [event.get(name) for name in ("response", "tool_calls", "stdout", "value", "error", "status")]
            found.append((row, _json(asked), _json(came)))
    return found


def _aligned(left: list[str], right: list[str]) -> list[tuple[int, int]]:
    """Pairs of step numbers; -1 where the other run has none. Long runs are aligned by position."""
    if max(len(left), len(right)) > DIFF_STEPS:
        longest = max(len(left), len(right))
        return [(at if at < len(left) else -1, at if at < len(right) else -1) for at in range(longest)]
    from difflib import SequenceMatcher

    pairs: list[tuple[int, int]] = []
    for _, a0, a1, b0, b1 in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        both = min(a1 - a0, b1 - b0)
        pairs += [(a0 + at, b0 + at) for at in range(both)]
        pairs += [(at, -1) for at in range(a0 + both, a1)] + [(-1, at) for at in range(b0 + both, b1)]
    return pairs


def _compared(left: tuple[Row, str, str] | None, right: tuple[Row, str, str] | None) -> list[Any]:
    """[state, event of the left, event of the right, level, left label, right label]."""
    if left and right:
        state = "same" if left[1:] == right[1:] else "changed"
    else:
        state = "left" if left else "right"
    sides = [(step[0].index, f"{step[0].name}  {step[0].text}") if step else (-1, "") for step in (left, right)]
    level = (left or right or (Row(-1, "other", ""), "", ""))[0].level
    return [state, sides[0][0], sides[1][0], level, sides[0][1], sides[1][1]]


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
    if open_browser:
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
            status, kind, body = pages.answer(self.path, self.headers.get("Host", ""))
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
            """Requests are nobody's business."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


class _Pages:
    """The folder's runs as pages, each made again only when its log or the list of logs has changed."""

    def __init__(self, dir: str | os.PathLike[str], bodies: bool) -> None:
        self.dir = dir
        self.bodies = bodies
        self.lock = threading.Lock()
        self.made: tuple[str, bytes] = ("", b"")

    def answer(self, target: str, host: str) -> tuple[int, str, bytes]:
        """Status, media type and body for a request; another host's name means a page that has rebound its DNS."""
        from urllib.parse import parse_qs, urlsplit

        parts = urlsplit(target)
        if host.rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            return 403, "text/plain", b"only by a loopback address\n"
        names = [name.removesuffix(".jsonl") for name in _log_names(self.dir)]
        name = parse_qs(parts.query).get("run", names[:1])[0] if names else ""
        if parts.path not in ("/", "/version") or (names and name not in names):
            return 404, "text/plain", b"not found\n"
        stamp = self.stamp(name, names)
        if parts.path == "/version":
            return 200, "text/plain", stamp.encode()
        return 200, "text/html", self.page(name, stamp)

    def stamp(self, name: str, names: Sequence[str]) -> str:
        """Changes whenever the page would."""
        facts = [str(sorted(names))]
        if name:
            status = os.stat(os.path.join(self.dir, name + ".jsonl"))
            facts += [name, str(status.st_size), str(status.st_mtime_ns)]
        return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]

    def page(self, name: str, stamp: str) -> bytes:
        with self.lock:
            if self.made[0] != stamp:
                self.made = (stamp, "".join(self.pieces(name, stamp)).encode())
            return self.made[1]

    def pieces(self, name: str, stamp: str) -> Iterator[str]:
        listed = list_runs(self.dir)
        room = _Room(secrets_pattern())
        chosen = [_load(run["path"], room, self.bodies) for run in listed if run["id"] == name]
        others = [_listed_meta(run, room.secret) for run in listed if run["id"] != name]
        return _page(chosen, others=others, live=stamp)


def _listed_meta(run: Mapping[str, Any], secret: re.Pattern[str]) -> dict[str, Any]:
    """The picker's line for a run that another page holds."""
    from urllib.parse import quote

    shown: dict[str, Any] = _redacted({name: run[name] for name in run if name not in ("path", "prompt")}, secret)
    return {**shown, "question": secret.sub("[redacted]", run["prompt"]), "href": "?run=" + quote(run["id"], safe="")}


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
    except OSError as error:
        print(f"rlm_viz: {error}", file=sys.stderr)
        return 2
    return 0


# --- the page's own text ----------------------------------------------------------------------------------------------

_ICON = "data:,"
_HEAD_SCRIPT = "document.documentElement.className='js'"
_BODY = '<main>%SUMMARY%<div id="static">%TREE%</div></main>'
_STYLE = "body{font:14px system-ui}"
_SCRIPT = "void 0"


if __name__ == "__main__":
    raise SystemExit(main())
