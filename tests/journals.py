"""Realistic journals for the viewer's tests and benchmarks, written to the letter of docs/trajectories.md.

`Journal` is a clock and a list of events with one method for each thing that happens in a run; the functions below
it tell whole stories with it. Everything is seeded: the same call makes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from datetime import datetime, timedelta, timezone
from typing import Any

Event = dict[str, Any]
BEGIN = datetime(2026, 11, 22, 9, 30, tzinfo=timezone.utc)
PRICES = {"gpt-4o": (2.5e-6, 10e-6), "gpt-4o-mini": (0.15e-6, 0.6e-6), "local-llm": None}
SYSTEM = (
    "You answer by writing Python in a REPL. `context` is a str of {size:,} characters.\n"
    "Look before you plan: size, head, structure, by code. llm_query reads a piece; rlm_query works on one.\n"
    'Finish with FINAL(value) or FINAL_VAR("name"). Left: 50 sub-calls, 1,000,000 tokens.'
)


class Journal:
    """Events of one run on one clock; each method appends what the runtime would and returns what callers need."""

    def __init__(self, seed: int = 1, *, model: str = "gpt-4o", sub_model: str = "gpt-4o-mini") -> None:
        self.random = random.Random(seed)
        self.id = f"{self.random.getrandbits(24):06x}-{self.random.getrandbits(24):06x}"
        self.model, self.sub_model = model, sub_model
        self.events: list[Event] = []
        self.now = self.began = 0.0  # milliseconds since BEGIN: now, and when this completion (or resumption) began
        self.active_before = 0  # milliseconds of earlier completions
        self.nodes = self.calls = 0
        self.truth = {"calls": 0, "tokens": 0, "cost": 0.0, "unpriced": 0, "depth": 0, "tool_calls": 0}

    def line(self, event: str, call: str | None, parent: str | None, depth: int, node: str, **fields: Any) -> Event:
        at = (BEGIN + timedelta(milliseconds=self.now)).isoformat(timespec="microseconds").replace("+00:00", "Z")
        head = {"v": 2, "event": event, "index": len(self.events), "trajectory_id": self.id, "call_id": call}
        place = {"parent_call_id": parent, "depth": depth, "timestamp": at, "node": node}
        self.events.append({**head, **place, **fields})
        return self.events[-1]

    def active(self) -> int:
        return self.active_before + round(self.now - self.began)

    def pause(self, ms: float) -> None:
        """The run has ended, and goes on that much later."""
        self.active_before = self.active()
        self.now += ms
        self.began = self.now

    def call_id(self) -> str:
        self.calls += 1
        return f"c{self.calls}"

    def paid(self, model: str, tokens_in: int, tokens_out: int, *, cached: int = 0, reasoning: int = 0) -> Event:
        """The usage and cost fields of a call, entered into the truth as well."""
        price = PRICES.get(model)
        cost = None if price is None else round(tokens_in * price[0] + tokens_out * price[1], 9)
        self.truth["calls"] += 1
        self.truth["tokens"] += tokens_in + tokens_out
        self.truth["cost"] += cost or 0.0
        self.truth["unpriced"] += cost is None
        usage = {"input": tokens_in, "output": tokens_out, "cached": cached, "cache_write": 0, "reasoning": reasoning}
        left = {
            "tokens": 1_000_000 - self.truth["tokens"],
            "cost_usd": round(0.5 - self.truth["cost"], 6),
            "subcalls": max(0, 500 - self.truth["calls"]),
            "iterations": 20,
            "seconds": None,
        }
        return {"token_usage": usage, "cost_usd": cost, "left": left}


class Node:
    """One RLM of a journal: opened at once; `turn`, `cell`, `tool`, `subs` and `end` are what happens in it."""

    depth: int

    def __init__(self, journal: Journal, prompt: str, parent: Node | None = None, context: int = 5_200_000) -> None:
        self.journal, self.parent = journal, parent
        self.name = f"n{journal.nodes}"
        journal.nodes += 1
        self.depth = parent.depth + 1 if parent else 0
        self.turns = self.cells = 0
        self.last_call: str | None = None
        self.newest: Event | None = None
        self.pending: list[Event] = []
        self.prompt = prompt
        self.first_event = len(journal.events)
        self.parent_call = parent.last_call if parent else None
        self._start(context)

    def _start(self, context: int) -> None:
        journal = self.journal
        extra = {"key": _digest(self.prompt), "cell": self.parent.cells + 1} if self.parent else {}
        head = "2026-11-21T00:00:03Z INFO gateway req=8f1c status=200 ms=41"
        start = journal.line(
            "start", None, self.parent_call, self.depth, self.name,
            kind="child" if self.parent else "root", prompt=self.prompt, system=SYSTEM.format(size=context),
            announcement=None, profile="full", prompt_file=None, show_below=4000, subcall_characters=100_000,
            params=None, sub_params=None,
            model=journal.model, sub_model=journal.sub_model, backend="openai", protocol="tools", environment="local",
            limits={"max_depth": 4, "max_subcalls": 500, "max_iterations": 30, "token_budget": 1_000_000,
                    "cost_budget_usd": 0.5, "timeout_seconds": None, "max_errors": 5, "max_parallel": 16,
                    "output_limit": 10_000, "cell_timeout": 30},
            context={"type": "str", "size": context, "bytes": context, "sha256": _digest(str(context)),
                     "source": "access.log", "preview": head},
            allowed_paths=["/work"], docker_mount="ro", require="best", mcp=None, confirm_above=None,
            instructions=None, schema=None, base_url="https://api.openai.com/v1",
            tools=["execute_code", "file_read", "file_list", "file_search"], version="0.1.0", **extra,
            tool_schemas=[{"name": "execute_code", "description": "Run Python.", "parameters": {"required": ["code"]}}],
            active_ms=journal.active(),
        )  # fmt: skip
        self.pending = [{"role": role, "refs": [reference(start)]} for role in ("system", "user")]

    def turn(self, text: str = "", code: str | None = None, tools: list[Event] | None = None, ms: float = 1800) -> str:
        """A reply of the model: text, perhaps a cell's code, perhaps tool calls. Returns the call's id."""
        journal = self.journal
        self.turns += 1
        self.last_call = journal.call_id()
        calls = list(tools or [])
        if code is not None:
            calls.append({"id": f"{self.last_call}x", "name": "execute_code", "arguments": {"code": code}})
        journal.now += ms
        tokens_in = 900 + 700 * self.turns
        paid = journal.paid(journal.model, tokens_in, 60 + len(text + (code or "")) // 3, cached=tokens_in * 3 // 5)
        journal.truth["depth"] = max(journal.truth["depth"], self.depth)
        line = journal.line(
            "call", self.last_call, self.parent_call, self.depth, self.name,
            kind="turn", turn=self.turns, prompt=self.pending, response=text, tool_calls=calls,
            duration_ms=round(ms, 1), model=journal.model, stop_reason="tool_calls" if calls else "stop",
            attempts=1, **paid,
        )  # fmt: skip
        self.pending, self.newest = [], reference(line)
        return self.last_call

    def cell(self, code: str, stdout: str = "", *, value: str | None = None, error: str | None = None,
             ms: float = 40, status: str | None = None, began: float | None = None, **extra: Any) -> None:  # fmt: skip
        """The code of the last turn has run; it began at `began` (clock), or `ms` ago."""
        journal = self.journal
        began = journal.now if began is None else began
        journal.now = max(journal.now, began) + ms
        self.cells += 1
        journal.truth["tool_calls"] += 1
        status = status or ("error" if error else "ok")
        result = {"id": f"{self.last_call}x", "name": "execute_code", "is_error": error is not None}
        line = journal.line(
            "tool", self.last_call, self.parent_call, self.depth, self.name,
            turn=self.turns, tool_calls=[f"{self.last_call}x"], tool_results=[result],
            cell=self.cells, code=code, stdout=stdout, traceback=error, error=_error(error),
            value=value, status=status, restored=status in ("timeout", "memory", "crash"),
            duration_ms=round(journal.now - began, 1), images=[], note="", **extra,
        )  # fmt: skip
        self.newest = reference(line)
        message = {"role": "tool", "tool_call_id": f"{self.last_call}x", "name": "execute_code"}
        self.pending.append({**message, "refs": [self.newest]})

    def tool(self, name: str, arguments: Event, content: str, *, error: bool = False, ms: float = 6) -> None:
        """A tool call of the last turn (other than code) has run; give `turn` the call with id `name`-1."""
        journal = self.journal
        journal.now += ms
        journal.truth["tool_calls"] += 1
        call = f"{name}-{self.turns}"
        result = {"id": call, "name": name, "is_error": error, "content": content}
        line = journal.line(
            "tool", self.last_call, self.parent_call, self.depth, self.name,
            turn=self.turns, tool_calls=[call], tool_results=[result], error=_error(content if error else None),
            duration_ms=ms,
        )  # fmt: skip
        self.pending.append({"role": "tool", "tool_call_id": call, "name": name, "refs": [reference(line)]})

    def subs(self, prompts: list[str], answers: list[str], *, wide: int = 16, ms: float = 700) -> float:
        """A batch of llm_query from the running cell, `wide` at once; returns when it began."""
        journal = self.journal
        began = journal.now
        lanes = [began] * wide
        ended: list[tuple[float, float, str, str]] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            lane = min(range(wide), key=lanes.__getitem__)
            length = ms * journal.random.uniform(0.6, 1.7)
            lanes[lane] += length
            ended.append((lanes[lane], length, prompt, answer))
        for at, length, prompt, answer in sorted(ended):
            journal.now = at
            tokens_in = max(8, len(prompt) // 4)
            paid = journal.paid(journal.sub_model, tokens_in, max(2, len(answer) // 4))
            journal.truth["depth"] = max(journal.truth["depth"], self.depth + 1)
            attempts = 2 if journal.random.random() < 0.03 else 1
            journal.line(
                "call", journal.call_id(), self.last_call, self.depth + 1, self.name,
                kind="sub", cell=self.cells + 1, key=_digest(prompt), prompt=[{"role": "user", "content": prompt}],
                response=answer, tool_calls=[], duration_ms=round(length, 1), model=journal.sub_model,
                stop_reason="stop", attempts=attempts, **paid,
            )  # fmt: skip
        return began

    def called_tool(self, name: str, arguments: Event, content: str, *, ms: float = 4) -> None:
        """The running cell has called a tool as a function."""
        journal = self.journal
        journal.now += ms
        journal.truth["tool_calls"] += 1
        key = f"{self.name}/{self.cells + 1}/{_digest(name + content)[:12]}/0"
        journal.line(
            "tool", self.last_call, self.parent_call, self.depth, self.name,
            turn=self.turns, key=key, from_cell=self.cells + 1, name=name, arguments=arguments, result=content,
            tool_calls=[key], tool_results=[{"id": key, "name": name, "content": content, "is_error": False}],
            error=None, duration_ms=ms,
        )  # fmt: skip

    def interrupted(self, what: str, error: str, ms: float = 900) -> None:
        self.journal.line(
            "interrupted", None, self.last_call, self.depth + 1, self.name,
            kind="sub", key=_digest(what), cell=self.cells + 1, error=error, duration_ms=ms,
        )  # fmt: skip

    def end(
        self, response: str | None, status: str = "answered", error: Event | None = None, *, given: bool = False
    ) -> None:
        truth = self.journal.truth
        cost = None if truth["unpriced"] else round(truth["cost"], 9)
        value = {"value": response} if given else {}
        answered = {"given": given, "forced": False, "answer": self.newest, **value}
        extra = answered if status == "answered" else {}
        self.journal.line(
            "end", None, self.parent_call, self.depth, self.name,
            status=status, response=response, error=error, **extra,
            totals={"calls": truth["calls"], "tokens": truth["tokens"], "usage": {}, "cost_usd": cost,
                    "tool_calls": truth["tool_calls"], "depth_reached": truth["depth"],
                    "duration_ms": round(self.journal.now - self.journal.began)},
            active_ms=self.journal.active(),
        )  # fmt: skip


def reference(line: Event) -> Event:
    return {"call_id": line["call_id"], "index": line["index"]}


def _error(text: str | None) -> Event | None:
    """The error in a line such as "ValueError: its message", or at a traceback's end."""
    name, _, message = (text or "").rstrip().rpartition("\n")[2].partition(": ")
    return {"type": name, "message": message} if text else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def dumps(events: list[Event]) -> str:
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)


def save(events: list[Event], folder: Any) -> str:
    """Write the events as the runtime would; the file's path."""
    path = f"{folder}/{events[0]['trajectory_id']}.jsonl"
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(dumps(events))
    return path


# --- stories ----------------------------------------------------------------------------------------------------------

LOOK = """print(len(context), "characters")
lines = context.splitlines()
print(len(lines), "lines")
for line in lines[:3]:
    print(line)"""
COUNT = """import re
from collections import Counter

# Count what failed, by hour and by service
failed = [line for line in lines if re.search(r"status=5\\d\\d", line)]
by_hour = Counter(line[:13] for line in failed)
by_service = Counter(line.split()[2] for line in failed)
for hour, count in by_hour.most_common(5):
    print(f"{hour}  {count:>6,}")
by_service.most_common(4)"""
READ = """chunks = ["\\n".join(failed[i:i + 120]) for i in range(0, len(failed), 120)]
prompts = [f"Name the root cause in these log lines, one word.\\n{chunk}" for chunk in chunks]
causes = llm_query_batched(prompts)
Counter(causes).most_common()"""
RECURSE = """worst = [line for line in failed if "payments" in line]
verdict = rlm_query("What made payments fail between 02:00 and 03:00? Quote one line.", worst)
print(verdict)"""
QUESTION = "Which errors took the payment service down on 21 November, when did they begin, and what caused them?"
ANSWER = (
    "The payment service failed from **02:14 to 02:51 UTC** on 21 November.\n\n"
    "- 1,842 requests ended in `503`; 96 % of them in `payments`.\n"
    "- They began when the connection pool of `ledger-db` was exhausted (`pool timeout after 5000 ms`).\n"
    "- The cause was a deploy at 02:12 that lowered `max_connections` from 200 to 20."
)  # fmt: skip


def look_and_count(root: Node) -> None:
    root.turn("I'll look at the log before planning.", LOOK, ms=1420)
    root.cell(
        LOOK,
        "5242880 characters\n61,204 lines\n" + "2026-11-21T00:00:03Z INFO gateway req=8f1c status=200\n" * 3,
        ms=38,
    )
    root.turn("Failures can be counted with code.", COUNT, ms=2210)
    shown = "2026-11-21T02   1,842\n2026-11-21T03      97\n2026-11-21T14      12\n"
    root.cell(COUNT, shown, value="[('payments', 1771), ('ledger', 143), ('gateway', 31), ('auth', 6)]", ms=212)


def read_in_parallel(node: Node, calls: int, wide: int = 16) -> None:
    node.turn("The lines themselves have to be read. One batch.", READ, ms=2620)
    prompts = [
        f"Name the root cause in these log lines, one word.\nchunk {n}\n" + "status=503 pool timeout\n" * 90
        for n in range(calls)
    ]
    answers = [node.journal.random.choice(["pool-timeout", "pool-timeout", "deploy", "oom"]) for _ in prompts]
    began = node.subs(prompts, answers, wide=wide)
    node.cell(READ, value="[('pool-timeout', 49), ('deploy', 11), ('oom', 4)]", began=began, ms=9)


def recurse(node: Node, levels: int) -> None:
    """The node's next turn asks a child, which asks a child, `levels` deep."""
    node.turn("This part deserves a REPL of its own.", RECURSE, ms=1980)
    began = node.journal.now
    child = Node(node.journal, "What made payments fail between 02:00 and 03:00? Quote one line.", node, 240_000)
    child.turn("Let me see.", "print(context[:2000])", ms=1210)
    child.cell("print(context[:2000])", "02:14:07 ERROR payments pool timeout after 5000 ms\n" * 6, ms=5)
    if levels > 1:
        recurse(child, levels - 1)
    else:
        read_in_parallel(child, 5, wide=5)
    answer = "pool of ledger-db exhausted: 02:14:07 ERROR payments pool timeout after 5000 ms"
    child.turn("", f"FINAL({answer!r})", ms=900)
    child.cell(f"FINAL({answer!r})", ms=3)
    child.end(answer, given=True)
    node.cell(RECURSE, answer + "\n", began=began, ms=4)


def deep_run(levels: int = 3, calls: int = 64, seed: int = 7) -> list[Event]:
    """A recursion of some levels with parallel sub-calls on the way, answered."""
    journal = Journal(seed)
    root = Node(journal, QUESTION)
    look_and_count(root)
    read_in_parallel(root, calls)
    recurse(root, levels)
    root.turn("", f"answer = {ANSWER!r}\nFINAL_VAR('answer')", ms=1640)
    root.cell(f"answer = {ANSWER!r}\nFINAL_VAR('answer')", ms=2)
    root.end(ANSWER, given=True)
    return journal.events


TRACEBACK = """Traceback (most recent call last):
  File "<cell 3>", line 4, in <module>
    rate = count / total
ZeroDivisionError: division by zero"""


def failed_run(seed: int = 21) -> list[Event]:
    """Errors of each kind, and in the end the provider's."""
    journal = Journal(seed)
    root = Node(journal, "How large was the share of failed payments in each hour?")
    look_and_count(root)
    code = (
        "count = len(failed)\ntotal = len([line for line in lines if 'checkout' in line])\n\nrate = count / total\nrate"
    )
    root.turn("Now the share.", code, ms=1700)
    root.cell(code, error=TRACEBACK, ms=4)
    root.turn("", "while True:\n    pass", ms=900)
    root.cell("while True:\n    pass", error="TimeoutError: the cell ran longer than 30 s", status="timeout", ms=30_000)
    call: Event = {"id": "file_read-5", "name": "file_read", "arguments": {"path": "notes/../../etc/passwd"}}
    root.turn("Is there a note on it?", tools=[call], ms=800)
    root.tool(
        "file_read",
        call["arguments"],
        "PermissionError: 'notes/../../etc/passwd' is outside the allowed paths",
        error=True,
    )
    root.turn("", READ, ms=1100)
    began = root.subs(["read this"] * 9, ["deploy"] * 9, wide=4)
    root.interrupted("read that", "openai answered 429 five times")
    root.cell(READ, error="RuntimeError: 1 of 10 sub-calls failed: openai answered 429 five times", began=began)
    root.end(None, "error", {"type": "ProviderError", "message": "openai answered 429 five times: quota exceeded",
                             "hint": "raise the quota, then: rlm resume " + journal.id})  # fmt: skip
    return journal.events


def resumed_run(seed: int = 33) -> list[Event]:
    """Stopped by a token budget, resumed some hours later with a larger one, answered."""
    journal = Journal(seed, sub_model="local-llm")
    root = Node(journal, QUESTION)
    look_and_count(root)
    read_in_parallel(root, 24, wide=8)
    message = "token budget exhausted: 61,204 of 60,000 used"
    root.end(None, "partial", {"type": "TokenBudgetExhausted", "message": message, "hint": "--token-budget 120000"})
    journal.pause(3 * 3_600_000 + 720_000)
    resumed = {"lines": len(journal.events), "limits": {"token_budget": 120_000}, "active_ms": journal.active()}
    journal.line("resume", None, None, 0, "n0", **resumed)
    journal.now += 2
    compacted = {"places": [3, 5], "cells": [1, 2], "tokens_before": 81_204, "tokens_after": 12_410}
    journal.line("compact", None, None, 0, "n0", **compacted, turn=root.turns, summary="503s from 02:14; pool timeout")
    root.turn("I have what I need.", ms=2100)
    root.turn(ANSWER, ms=2400)
    root.end(ANSWER)
    return journal.events


def text_run(seed: int = 41) -> list[Event]:
    """A model without tool calls: fenced code, two cells in a reply, a tool called from code, then a second prompt."""
    journal = Journal(seed, model="local-llm", sub_model="local-llm")
    root = Node(journal, "What do the notes say about the deploy?")
    root.turn("```repl\nfiles = file_list('.')\n```\n```repl\nprint(files)\n```")
    began = journal.now
    root.called_tool("file_list", {"path": "."}, "notes.md")
    root.cell("files = file_list('.')", began=began)
    root.cell("print(files)", "notes.md\n")
    cells = [event for event in journal.events if "code" in event]
    refs = [{**reference(event), "heading": "Output:"} for event in cells]
    root.pending = [{"role": "user", "tool_call_ids": [f"cell_{n}" for n in (1, 2)], "refs": refs}]
    for number, event in enumerate(cells, 1):
        event["tool_calls"] = [f"cell_{number}"]
        event["tool_results"] = [{"id": f"cell_{number}", "name": "execute_code", "is_error": False}]
    root.turn("They say that it lowered max_connections.")
    root.end("They say that it lowered max_connections.")
    journal.pause(60_000)
    start = {name: value for name, value in journal.events[0].items() if name not in _HEAD}
    prompt = "And who made it?"
    more = {"prompt": prompt, "continues": True, "turn": 2, "system": None, "active_ms": journal.active()}
    line = journal.line("start", None, None, 0, "n0", **{**start, **more})
    root.pending = [{"role": "user", "refs": [reference(line)]}]
    root.turn("The notes name nobody.")
    root.end("The notes name nobody.")
    return journal.events


_HEAD = ("v", "event", "index", "trajectory_id", "call_id", "parent_call_id", "depth", "timestamp", "node")


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJ"
    "RU5ErkJggg=="
)


def many_tongues(seed: int = 71) -> list[Event]:
    """A run in Japanese, Arabic and joined emoji, with a cell that made images."""
    journal = Journal(seed)
    root = Node(journal, "この記録には何件のエラーがありますか？ 👩\u200d🚀👨\u200d👩\u200d👧")
    code = "# 行を数える\nprint(len(context))\nprint('مرحبا')"
    root.turn("", code)
    root.cell(code, "1234\nمرحبا: كان هناك 42 خطأ\n")
    journal.events[-1]["images"] = [PIXEL, None]
    answer = "في السجل **42** خطأ، و 1,234 طلبًا.\n\n- الأول: `مرحبا`\n- क्\u200dष 👩\u200d🚀"
    root.turn(answer)
    root.end(answer)
    return journal.events


def compacted_run(seed: int = 77) -> list[Event]:
    """Outputs replaced by stubs, attempts left out, an invented tail dropped, then everything summed up."""
    journal = Journal(seed)
    root = Node(journal, "What is in it?")
    for number in range(1, 4):
        root.turn(f"Part {number}.", f"print(part({number}))")
        root.cell(f"print(part({number}))", f"part {number} " * 200 + "\n")
    compact = {"places": [3, 5], "cells": [1, 2], "tokens_before": 9_000, "tokens_after": 900}
    journal.line("compact", None, None, 0, "n0", **compact, turn=3)
    root.turn("The same again.\nOutput: invented", "print(part(3))")
    journal.events[-1]["dropped"] = len("\nOutput: invented")
    root.cell("print(part(3))", "part 3 " * 200 + "\n")
    root.pending = [{"role": "user", "content": "You have this output already."}]
    restart = {"places": [], "cells": [3, 4], "tokens_before": 900, "tokens_after": 700, "restart": True}
    journal.line("compact", None, None, 0, "n0", **restart, turn=4)
    root.turn("Then it is parts.")
    summed_up = {"places": [], "cells": [], "tokens_before": 900, "tokens_after": 90, "summary": "three parts"}
    journal.line("compact", None, None, 0, "n0", **summed_up, turn=5)
    root.turn("It is three parts.")
    root.end("It is three parts.")
    return journal.events


def chain(depth: int = 1000, seed: int = 3) -> list[Event]:
    """Each node asks one child, down to a depth."""
    journal = Journal(seed)
    nodes = [Node(journal, "level 0")]
    for level in range(1, depth):
        nodes[-1].turn("", "rlm_query('deeper')", ms=10)
        nodes.append(Node(journal, f"level {level}", nodes[-1]))
    for node in reversed(nodes):
        node.turn("done", ms=5)
        node.end("done")
    return journal.events


def random_run(seed: int) -> list[Event]:
    """A run of any shape; the journal's own truth is in the last event's totals."""
    dice = random.Random(seed)
    journal = Journal(seed, sub_model=dice.choice(["gpt-4o-mini", "gpt-4o", "local-llm"]))
    root = Node(journal, f"random run {seed}")
    for _ in range(dice.randrange(1, 6)):
        step = dice.randrange(4)
        if step == 0:
            look_and_count(root)
        elif step == 1:
            read_in_parallel(root, dice.randrange(1, 30), wide=dice.randrange(1, 9))
        elif step == 2:
            recurse(root, dice.randrange(1, 4))
        else:
            call: Event = {"id": f"file_list-{root.turns + 1}", "name": "file_list", "arguments": {"path": "."}}
            root.turn("", tools=[call])
            root.tool("file_list", {"path": "."}, "a.txt\nb.txt")
    root.turn("the end")
    root.end("the end")
    return journal.events


def large_run(count: int, body: int = 2000, seed: int = 5) -> list[Event]:
    """About `count` events with bodies of some `body` characters: cells that read in batches, and children."""
    journal = Journal(seed)
    root = Node(journal, QUESTION)
    words = [journal.random.choice(QUESTION.split()) + str(n) for n in range(4000)]
    node = root
    while len(journal.events) < count - 2:
        code = f"part = lines[{node.cells * 1000}:{node.cells * 1000 + 1000}]\nllm_query_batched(part)"
        node.turn("Next part.", code, ms=900)
        began = journal.now
        batch = min(journal.random.choice([4, 16, 64, 200]), max(1, count - len(journal.events) - 4))
        prompts = [" ".join(journal.random.choices(words, k=body // 8)) for _ in range(batch)]
        node.subs(prompts, ["a terse answer"] * batch, ms=300)
        node.cell(code, "x" * (body // 4), began=began)
        if journal.random.random() < 0.1:
            if node is root:
                root.turn("", "rlm_query('a part')")
                node = Node(journal, "a part", root)
            else:
                node.turn("part done")
                node.end("part done")
                root.cell("rlm_query('a part')", "part done")
                node = root
    root.turn(ANSWER)
    root.end(ANSWER)
    return journal.events


HOSTILE = (
    "</script><script>window.hit=1</script>",
    "</SCRIPT ><SCRIPT>window.hit=1</SCRIPT>",
    "<!--<script>window.hit=1</script>-->",
    "<img src=x onerror=window.hit=1>",
    '" onmouseover="window.hit=1" x=\'',
    "javascript:window.hit=1",
    "http://127.0.0.1:9/steal.png",
    "<svg onload=window.hit=1><style>*{background:url(http://127.0.0.1:9/c)}</style>",
    "line\u2028separator\u2029paragraph",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07 \x00 nul \x08",
    "user\u202etxt.exe\u2066 \u200b zero \ufeff",
    "lone \ud800 surrogate \udfff",
    "{{constructor.constructor('window.hit=1')()}} ${window.hit=1} %SUMMARY% %TREE%",
    "__proto__",
    "\U0001f469\u200d\U0001f680 é 漢字 " + "long" * 200,
)


def hostile_base(seed: int = 66) -> list[Event]:
    """A run that has every event, in every form: of events that differ in their values alone, the first two."""
    kept: list[Event] = []
    seen: Counter[str] = Counter()
    for event in [*failed_run(seed), *resumed_run(seed)]:
        seen[form := _form(event)] += 1
        if seen[form] <= 2:
            kept.append(event)
    return kept


def _form(value: Any, name: str = "") -> str:
    """What is the same in values that are shown the same way."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_form(item, key)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(sorted({_form(item) for item in value}))}]"
    return str(value) if name in ("event", "kind") or value is None else type(value).__name__


def hostile_run(seed: int = 66) -> list[Event]:
    """Every payload in every field of a run that has every event."""
    events: list[Event] = []
    for number, payload in enumerate(HOSTILE):
        for event in hostile_base(seed):
            ids = {name: f"{number}-{event[name]}" if event.get(name) else event.get(name) for name in _IDS}
            events.append(
                {**_poisoned(event, payload), **ids, "event": event["event"], "timestamp": event["timestamp"]}
            )
    return [{**event, "trajectory_id": "6b6b6b-6b6b6b"} for event in events]


_IDS = ("call_id", "parent_call_id", "node")


def _poisoned(value: Any, payload: str) -> Any:
    if isinstance(value, str):
        return payload
    if isinstance(value, list):
        return [_poisoned(item, payload) for item in value]
    if isinstance(value, dict):
        keep = {name: _poisoned(item, payload) for name, item in value.items()}
        return {**keep, payload: payload}
    return value
