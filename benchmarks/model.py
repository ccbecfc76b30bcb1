"""The scripted model that every benchmarked project talks to: OpenAI's chat wire, as little work per request as can be.

The API key says who asks and what for, `SUBJECT:RUN:SCENARIO:N`, since every project passes a key through unchanged.
`POST /v1/chat/completions` answers the scenario's next step in the subject's own way of speaking; `GET /runs/RUN`
tells the bytes that run sent and when its requests came. Needs only the standard library.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

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


RUNS: dict[str, Run] = defaultdict(Run)
MARK = re.compile(r"leaf \d+ of 64|child 1\b|item \d+")
MODEL = re.compile(rb'"model": ?"([^"]+)"')


class Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parts: list[bytes] = []
        self.size = self.wanted = 0

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        self.size += len(data)
        if self.size < self.wanted:
            return
        received = b"".join(self.parts)
        head, found, _ = received.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        self.wanted = len(head) + 4 + int(length[1] if length else 0) if found else self.size + 1
        if self.size < self.wanted:
            self.parts = [received]
            return
        self.parts, self.size = [received[self.wanted :]], self.size - self.wanted
        body = received[len(head) + 4 : self.wanted]
        self.wanted = 0
        self.serve(head.decode("latin-1"), body)

    def serve(self, head: str, body: bytes) -> None:
        method, path, _ = head.split(" ", 2)
        if method == "GET":
            run = RUNS[path.rpartition("/")[2]]
            self.send({"bytes": run.bytes, "arrivals": run.arrivals})
            return
        key = re.search(r"authorization: *Bearer (\S+)", head, re.IGNORECASE)
        assert key, "no key"
        subject, name, scenario, count = key[1].split(":")
        run = RUNS[name]
        arrival = time.perf_counter()
        run.bytes += len(body)
        # A long history is a node's turn: reading it, turn after turn, would be measured too.
        request = json.loads(body) if len(body) < 60_000 else {"model": MODEL.search(body)[1].decode()}  # type: ignore[index]
        leaf = MARK.search(last_words(request)) if "messages" in request else None
        if leaf is None or leaf[0].startswith("child"):
            run.arrivals.append(arrival)
        if leaf is None:
            run.turn += 1
            script = steps(subject, scenario, int(count))
            if scenario == "work":  # several runs at once under one name
                run.turn = 1 + sum(m["role"] == "assistant" for m in request["messages"])
            message = script[run.turn - 1] if run.turn <= len(script) else finish(subject, request)
        elif leaf[0].startswith("leaf"):
            asyncio.get_running_loop().call_later(LEAF_SECONDS, self.send, completion(request["model"], say("yes")))
            return
        elif leaf[0].startswith("item"):
            message = say("yes")
        else:
            message = finish(subject, request)
        self.send(completion(request["model"], message))

    def send(self, value: JSON) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)  # type: ignore[attr-defined]


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


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    # Ends with its parent: standard input is the parent's end of a pipe.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
