"""The scripted model that every benchmarked project talks to, behind the tests' server: OpenAI's chat wire.

The API key says who asks and what for, `SUBJECT:RUN:SCENARIO:N`, since every project passes a key through unchanged.
`POST /v1/chat/completions` answers the scenario's next step in the subject's own way of speaking, with as little work
per request as can be; `GET /runs/RUN` tells the bytes that run sent and when its requests came. Needs only the
standard library.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import scripted

JSON = dict[str, Any]
LEAF_SECONDS = 0.1
ADDITIONS = "total = 0\nfor i in range(1000000):\n    total += i"


# --- how each project is spoken to ---------------------------------------------------------------------------------


class Speech(NamedTuple):
    """What a model says to a project to run code, and what that code says to finish, fan out and recurse."""

    run: Callable[[str], JSON]  # code -> assistant message
    final: str  # with {} for the answer
    batch: str = ""  # with {} for a list of prompts
    child: str = ""  # with {} for a prompt
    context: str = "context"
    ask: str = "llm_query({})"


def say(text: str) -> JSON:
    return {"role": "assistant", "content": text}


def fence(tag: str) -> Callable[[str], JSON]:
    return lambda code: say(f"```{tag}\n{code}\n```")


def call(name: str, arguments: JSON) -> JSON:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


def dspy_fields(code: str) -> JSON:
    return say(f"[[ ## reasoning ## ]]\nx\n\n[[ ## code ## ]]\n```python\n{code}\n```\n\n[[ ## completed ## ]]")


LEAVES = '["leaf %d of 64" % n for n in range(64)]'
SPEECH = {
    "flat-rlm": Speech(
        lambda code: call("execute_code", {"code": code}),
        "FINAL({})",
        "llm_query_batched({})",
        "rlm_query({})",
    ),
    "rlms": Speech(
        fence("repl"),
        "answer['content'] = {}\nanswer['ready'] = True",
        "llm_query_batched({})",
        "rlm_query({})",
    ),
    "dspy": Speech(dspy_fields, "SUBMIT({})", "llm_query_batched({})"),
    "smolagents": Speech(lambda code: say(f"Thought: x\n<code>\n{code}\n</code>"), "final_answer({})"),
    "minrlm": Speech(
        fence("python"),
        "FINAL({})",
        "sub_llm_batch([(leaf, '') for leaf in {}])",
        context="input_0[:]",
        ask="sub_llm({}, '')",
    ),
    "rlm-runtime": Speech(
        lambda code: call("execute_code", {"code": code}), "result = {}", context="context['context']"
    ),
}
# How this project's cost grows with the work (scaling.py), {0} being how much of it: cells of a run that answers in the
# end. Prompts of "item" are answered at once, those of "leaf" after LEAF_SECONDS.
SCALING = {
    "outputs": ["print('a line of output, as cells print them\\n' * 50)"],
    "batch": ["r = llm_query_batched(['item %d' % n for n in range({0})])", "FINAL(str(r.count('yes')))"],
    "loop": ["r = [llm_query('item %d' % n) for n in range({0})]", "FINAL(str(r.count('yes')))"],
    "work": ["x = 1", "r = llm_query_batched(['leaf %d of 64' % n for n in range({0})])", "FINAL(str(r.count('yes')))"],
    "look": ["n = len(context)", "m = 1", "e = context.count('ERROR')", "FINAL(f'{{n}} {{e}}')"],
}
ANSWERS_IN_TEXT = {"rlm-runtime"}  # its code cannot end a run: the model then repeats what the code gave


@functools.cache
def steps(subject: str, scenario: str, count: int) -> list[JSON]:
    """The assistant messages of a run, in order. Each ends with an answer that only the work itself can give."""
    speech = SPEECH[subject]
    if scenario == "outputs":
        return [*map(speech.run, SCALING[scenario] * count), speech.run("FINAL('done')")]
    if scenario in SCALING:
        return [speech.run(cell.format(count)) for cell in SCALING[scenario]]
    if subject in ANSWERS_IN_TEXT and scenario == "fan":  # sub-calls are a tool of the model's, not of the code's
        return [
            call(
                "rlm_batch_complete", {"queries": [{"query": f"leaf {n} of 64"} for n in range(64)], "max_parallel": 64}
            )
        ]
    if subject in ANSWERS_IN_TEXT and scenario == "child":
        return [call("rlm_sub_complete", {"query": "child 1"})]
    code, answer = {
        "turns": ("", "'done'"),
        "fan": (f"r = {speech.batch.format(LEAVES)}", "str(r.count('yes'))" if subject != "minrlm" else "str(len(r))"),
        "context": (f"size = len({speech.context})", "str(size)"),
        "child": ("r = " + speech.child.format("'child 1'"), "r"),
        "add": (ADDITIONS, "str(total)"),
    }[scenario]
    cells = ["print(1)"] * count if scenario == "turns" else [code or "print(1)"]
    return [*map(speech.run, cells), speech.run(speech.final.format(answer))]


def finish(subject: str, request: JSON) -> JSON:
    """What ends a child, or a run that its code cannot end."""
    if subject in ANSWERS_IN_TEXT:
        return say(str(request["messages"][-1]["content"]))
    speech = SPEECH[subject]
    return speech.run(speech.final.format("'yes'"))


# --- the server ----------------------------------------------------------------------------------------------------


class Run:
    def __init__(self) -> None:
        self.turn = self.bytes = 0
        self.arrivals: list[float] = []  # of all requests but leaves', by the clock that all processes share


MARK = re.compile(r"leaf \d+ of 64|child 1\b|item \d+")
MODEL = re.compile(rb'"model": ?"([^"]+)"')


class Server(scripted.Server):
    """The tests' server, answering each run by its key."""

    def __init__(self) -> None:
        super().__init__(self.say, strict=False)
        self.runs: dict[str, Run] = defaultdict(Run)
        self.lock = threading.Lock()

    def say(self, request: scripted.Request) -> scripted.Reply:
        arrival = time.perf_counter()
        subject, name, scenario, count = request.headers["authorization"].removeprefix("Bearer ").split(":")
        # A long history is a node's turn: reading it, turn after turn, would be measured too.
        short = len(request.raw) < 60_000
        sent = json.loads(request.raw) if short else {"model": MODEL.search(request.raw)[1].decode()}  # type: ignore[index]
        leaf = MARK.search(last_words(sent)) if "messages" in sent else None
        with self.lock:
            run = self.runs[name]
            run.bytes += len(request.raw)
            if leaf is None or leaf[0].startswith("child"):
                run.arrivals.append(arrival)
            if leaf is None:
                run.turn += 1
            turn = run.turn
        if leaf is None:
            script = steps(subject, scenario, int(count))
            if scenario == "work":  # several runs at once under one name
                turn = 1 + sum(m["role"] == "assistant" for m in sent["messages"])
            message = script[turn - 1] if turn <= len(script) else finish(subject, sent)
        else:
            message = finish(subject, sent) if leaf[0].startswith("child") else say("yes")
        seconds = LEAF_SECONDS if leaf and leaf[0].startswith("leaf") else 0.0
        return scripted.body(completion(sent["model"], message), delay=seconds)

    def listing(self, path: str) -> scripted.Fault:
        with self.lock:
            run = self.runs[path.rpartition("/")[2]]
            return scripted.body({"bytes": run.bytes, "arrivals": run.arrivals})


def last_words(request: JSON) -> str:
    """The last user message, unless it is the first of a run (whose prompt names neither leaf nor child)."""
    said = [m["content"] for m in request["messages"] if m["role"] == "user"]
    return said[-1] if said and isinstance(said[-1], str) else json.dumps(said[-1:])


def completion(model: str, message: JSON) -> JSON:
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def main() -> None:
    with Server() as server:
        print(server.port, flush=True)
        sys.stdin.read()  # the parent's end of a pipe: this ends with it


if __name__ == "__main__":
    main()
