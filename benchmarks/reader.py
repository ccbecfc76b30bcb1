"""A scripted model that reads perfectly, within a window: the OpenAI chat wire on loopback, for longcontext.py.

It knows nothing but what is in the prompt it is given: it finds the needle there, and tells by the wording of each
question what kind of thing it asks for. Told that it has `context` in a REPL, it works as the root of an RLM: it looks
at `context`, has the questions labelled by sub-calls in chunks, and counts by code. A prompt beyond the window gets the
error that OpenAI sends. It is no language model: what it shows is that the harness and the runtime work.

Not covered: any task but those of longcontext.py, streaming, other wires. Needs only the standard library.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

JSON = dict[str, Any]
MODEL = "scripted-reader"
CHARACTERS_PER_TOKEN = 4
QUESTIONS_PER_CALL = 1000  # some 17,000 tokens

# --- reading a question --------------------------------------------------------------------------------------------

KINDS = ("abbreviation", "description", "entity", "human", "location", "number")
_JOBS = (
    r"actor|actress|architect|astronaut|baker|chemist|composer|dancer|doctor|engineer|explorer|farmer|general|inventor"
    r"|king|lawyer|mayor|nurse|painter|philosopher|pilot|poet|president|queen|sailor|sculptor|singer|swimmer|teacher"
)
_PLACES = (
    r"bay|bridge|city|continent|country|desert|district|harbour|island|lake|mountain|part of the world|province|region"
    r"|river|street|town|valley|village"
)
# Tried in this order: what a question asks for is in its first words, or in a phrase that names it.
_ASKS = [
    ("abbreviation", r"stands? for\b|full form|abbreviat|acronym|spelled out|the letters [A-Z]{2,}"),
    ("human", rf"^(?:Who|Whose|By whom|To whom)\b|^(?:Which|What|Name the) (?:\w+ )?(?:{_JOBS}|family|team)\b"),
    ("location", rf"^Where\b|^(?:(?:In|On|Through) )?(?:[Ww]hat|[Ww]hich|Name the) (?:\w+ )?(?:{_PLACES})\b"),
    ("number", r"^How (?:many|much|tall|long|old|far|fast|deep|heavy|often|high|wide)\b"),
    ("number", r"^(?:In|On|At|For) (?:what|which|how many) (?:year|date|age|temperature|speed|days)\b"),
    ("number", r"^What (?:is|was) the (?:\w+ )?(?:population|price|weight|length|speed|distance|percentage|share)\b"),
    ("number", r"^What (?:share|percentage) of\b|^What does a [\w ]+ (?:weigh|cost)\b|^When\b"),
    (
        "entity",
        r"^(?:What|Which|Name an?) (?:kind|sort|type|brand) of\b|^What is the (?:favourite|main) (?:food|crop)\b",
    ),
    (
        "entity",
        r"^(?:What|Which|Name an?) (?:\w+ )?(?:animal|bird|colour|crop|currency|dance|disease|drink|dish|fish|flower"
        r"|food|fruit|game|holiday|instrument|language|material|medicine|metal|novel|plant|product|religion|song|sport"
        r"|substance|tool|tree|vehicle|vegetable)\b",
    ),
]
_COMPILED = [(kind, re.compile(pattern)) for kind, pattern in _ASKS]


def kind_of(question: str) -> str:
    """What kind of thing a question asks for; what no other kind claims wants an explanation."""
    for kind, pattern in _COMPILED:
        if pattern.search(question):
            return kind
    return "description"


# --- what the asked question wants, as a program -------------------------------------------------------------------

_QUOTED = r"'([a-z]+)'"
_DAY = r"(\d{4}-\d\d-\d\d)"


class Plan(NamedTuple):
    """Which rows matter, and the program that makes `answer` of the `rows` (date, user, kind) that do."""

    subset: str  # a condition on `date` and `user`
    program: str


_COUNT = "answer = 'Answer: ' + str(sum(kind == {0!r} for date, user, kind in rows))"
_EXTREME = (
    "counts = dict.fromkeys({1!r}, 0)\n"
    "for date, user, kind in rows:\n"
    "    counts[kind] += 1\n"
    "answer = 'Label: ' + {0}(sorted(counts), key=lambda kind: counts[kind])"
)
_COMPARE = (
    "first = sum({0} for date, user, kind in rows)\n"
    "second = sum({1} for date, user, kind in rows)\n"
    "answer = 'Answer: ' + ('more common' if first > second else 'less common' if first < second "
    "else 'same frequency')"
)
_USERS_WITH_MORE = (
    "balance = {{}}\n"
    "for date, user, kind in rows:\n"
    "    balance[user] = balance.get(user, 0) + (kind == {0!r}) - (kind == {1!r})\n"
    "answer = 'Users: ' + ', '.join(str(user) for user in sorted(balance) if balance[user] > 0)"
)
_PAIRS = (
    "kinds, dates = {{}}, {{}}\n"
    "for date, user, kind in rows:\n"
    "    kinds.setdefault(user, set()).add(kind)\n"
    "    dates.setdefault((user, kind), []).append(date)\n"
    "users = sorted(kinds)\n"
    "one = {{user for user in users if {0}}}\n"
    "other = {{user for user in users if {1}}}\n"
    "pairs = [(a, b) for n, a in enumerate(users) for b in users[n + 1:]\n"
    "         if (a in one and b in other) or (a in other and b in one)]\n"
    "answer = '\\n'.join('(%d, %d)' % pair for pair in pairs)"
)


def plan_of(question: str) -> Plan:
    """How to answer, found in the words of the question. ValueError if there is no task of ours in them."""
    subset = "True"
    if found := re.search(r"questions of the users ([\d, and]+)", question):
        subset = f"user in {set(map(int, re.findall(r'[0-9]+', found[1])))}"
    elif found := re.search(rf"questions dated from {_DAY} to {_DAY}", question):
        subset = f"{found[1]!r} <= date <= {found[2]!r}"
    for pattern, make in _PLANS:
        if found := re.search(pattern, question):
            return Plan(subset, make(*found.groups()))
    raise ValueError("no question that this reader knows")


def _pairs(one: str, other: str | None = None) -> str:
    return _PAIRS.format(one, other or one)


_PLANS: list[tuple[str, Any]] = [
    (
        rf"both users have asked at least one {_QUOTED} or {_QUOTED}",
        lambda a, b: _pairs(f"kinds[user] & {{{a!r}, {b!r}}}"),
    ),
    (
        rf"both users have asked at least one {_QUOTED} question, and all of their {_QUOTED} questions are dated "
        rf"after {_DAY}",
        lambda a, _, day: _pairs(f"{a!r} in kinds[user] and min(dates[user, {a!r}]) > {day!r}"),
    ),
    (
        rf"one user has asked at least one {_QUOTED} question but no {_QUOTED} question",
        lambda a, b: _pairs(
            f"{a!r} in kinds[user] and {b!r} not in kinds[user]", f"{b!r} in kinds[user] and {a!r} not in kinds[user]"
        ),
    ),
    (rf"[Ww]hich users have asked more {_QUOTED} than {_QUOTED}", _USERS_WITH_MORE.format),
    (
        r"[Ww]hich label is the (most|least) common",
        lambda which: _EXTREME.format("max" if which == "most" else "min", KINDS),
    ),
    (
        rf"label {_QUOTED} more common, less common or of the same frequency as label {_QUOTED}",
        lambda a, b: _COMPARE.format(f"kind == {a!r}", f"kind == {b!r}"),
    ),
    (
        rf"label {_QUOTED} more common, less common or of the same frequency before {_DAY}",
        lambda a, day: _COMPARE.format(f"kind == {a!r} and date < {day!r}", f"kind == {a!r} and date >= {day!r}"),
    ),
    (rf"[Hh]ow many questions have the label {_QUOTED}", _COUNT.format),
]


# --- reading a prompt ----------------------------------------------------------------------------------------------

_ROW = re.compile(r"^Date: (\d{4}-\d\d-\d\d) \|\| User: (\d+) \|\| Question: (.*)$", re.MULTILINE)
_NEEDLE_WANTED = re.compile(r"What is the special magic (number|word|UUID) for ([\w-]+)\?")
_NUMBERED = re.compile(r"^(\d+)\. (.*)$", re.MULTILINE)
_LABELLING = "Reply with one line for each question"


class Reader:
    """What answers a prompt: its window in tokens, and how often it slips (`lapses`: never, unless asked for).

    A lapse is likelier the fuller the window and the nearer the middle of the prompt, which is how long prompts are
    known to fail; its rate is invented, and the same prompt always meets the same lapses.
    """

    def __init__(self, window: int = 128_000, lapses: float = 0.0) -> None:
        self.window = window
        self.lapses = lapses

    def overlooks(self, text: str, at: int, prompt: str) -> bool:
        if not self.lapses:
            return False
        place = at / len(prompt)
        filled = len(prompt) / CHARACTERS_PER_TOKEN / self.window
        chance = self.lapses * filled * 4 * place * (1 - place)
        return zlib.crc32(f"{at}:{text}".encode()) / 2**32 < chance

    def label(self, question: str, at: int, prompt: str) -> str:
        kind = kind_of(question)
        if self.overlooks(question, at, prompt):
            return KINDS[(KINDS.index(kind) + 1) % len(KINDS)]
        return kind

    def read(self, prompt: str) -> str:
        """The answer to a prompt that holds everything: a sub-call's chunk, or a whole task."""
        if _LABELLING in prompt[:2000]:
            lines = [(n[1], self.label(n[2], n.start(), prompt)[0]) for n in _NUMBERED.finditer(prompt)]
            return "\n".join(f"{number} {letter}" for number, letter in lines)
        if wanted := _NEEDLE_WANTED.search(prompt[-2000:]):
            return self.find(wanted[1], wanted[2], prompt)
        try:
            plan = plan_of(prompt[-4000:])
        except ValueError:
            return "I see nothing to answer here."
        rows = [(r[1], int(r[2]), self.label(r[3], r.start(), prompt)) for r in _ROW.finditer(prompt)]
        scope: JSON = {"rows": [row for row in rows if _holds(plan.subset, row)]}
        exec(plan.program, scope)
        return str(scope["answer"])

    def find(self, what: str, key: str, text: str) -> str:
        found = re.search(rf"special magic {what} for {re.escape(key)} is ([\w-]+)", text)
        if not found or self.overlooks(found[0], found.start(), text):
            return f"The text does not mention a special magic {what} for {key}."
        return found[1]


def _holds(condition: str, row: tuple[str, int, str]) -> bool:
    return condition == "True" or bool(eval(condition, {}, {"date": row[0], "user": row[1]}))


# --- working as the root of an RLM ---------------------------------------------------------------------------------

_LOOK = "print(type(context).__name__, len(context))\nprint(context[:600])\nprint('...')\nprint(context[-300:])"
_GREP = (
    "import re\n"
    "for found in re.finditer({0!r}, context):\n"
    "    print(context[max(0, found.start() - 200):found.end() + 200])"
)
# Written to be run again: what has a label is not asked for a second time.
_LABEL = '''\
if "labels" not in globals():
    rows = []
    for line in context.splitlines():
        parts = line.split(" || ")
        if len(parts) == 3:
            rows.append((parts[0].removeprefix("Date: "), int(parts[1].removeprefix("User: ")),
                         parts[2].removeprefix("Question: ")))
    rows = [(date, user, question) for date, user, question in rows if {subset}]
    labels = {{}}
names = {{name[0]: name for name in {kinds!r}}}
missing = [n for n in range(len(rows)) if n not in labels]
chunks = [missing[n:n + {size}] for n in range(0, len(missing), {size})]
instruction = """{instruction}"""
prompts = [instruction + "\\n\\n" + "\\n".join("%d. %s" % (k, rows[n][2]) for k, n in enumerate(chunk, 1))
           for chunk in chunks]
try:
    replies = llm_query_batched(prompts)
except Exception as error:
    replies = [reply or "" for reply in error.results]
for chunk, reply in zip(chunks, replies):
    for line in reply.splitlines():
        number, _, letter = line.partition(" ")
        if number.isdigit() and 0 < int(number) <= len(chunk) and letter in names:
            labels[chunk[int(number) - 1]] = names[letter]
print(len(rows), "rows,", len(rows) - len(labels), "without a label")'''
_ANSWER = "rows = [(date, user, labels[n]) for n, (date, user, question) in enumerate(rows)]\n{program}\nFINAL(answer)"
_INSTRUCTION = (
    "What kind of thing does each of these numbered questions ask for? {definitions}\n"
    + _LABELLING
    + ": its number, a space, and the first letter of the kind. Nothing else."
)
_TRIES = 3


def root_turn(reader: Reader, messages: list[JSON]) -> JSON:
    """The next message of a root: a look, the work, the answer. Without tools code goes into a fence."""
    question, *seen = [str(m["content"]) for m in messages if m["role"] in ("user", "tool")]
    if tools := [str(m["content"]) for m in messages if m["role"] == "tool"]:
        seen = tools
    step = root_step(reader, question, seen)
    return step if "execute_code" in str(messages[0]["content"]) else in_a_fence(step)


def root_step(reader: Reader, question: str, seen: list[str]) -> JSON:
    """What to do after what was seen: one output for each cell that was run."""
    if not seen:
        return run(_LOOK)
    wanted = _NEEDLE_WANTED.search(question)
    if wanted:
        where = rf"special magic {wanted[1]} for {re.escape(wanted[2])}\b"
        return run(_GREP.format(where)) if len(seen) == 1 else say(reader.find(wanted[1], wanted[2], seen[-1]))
    try:
        plan = plan_of(question)
    except ValueError as error:
        return say(f"I cannot do this: {error}.")
    if seen[-1].strip().endswith(" 0 without a label"):
        return run(_ANSWER.format(program=plan.program))
    if len(seen) > _TRIES:
        return say(f"I could not get all labels: {seen[-1][-300:]}")
    instruction = _INSTRUCTION.format(definitions="\n".join(["", *re.findall(r"(?m)^- .*$", question)]))
    return run(
        _LABEL.format(
            subset=plan.subset, kinds=KINDS, size=min(QUESTIONS_PER_CALL, reader.window // 60), instruction=instruction
        )
    )


def say(text: str) -> JSON:
    return {"role": "assistant", "content": text}


def run(code: str) -> JSON:
    function = {"name": "execute_code", "arguments": json.dumps({"code": code})}
    call = {"id": f"call_{zlib.crc32(code.encode()):x}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def in_a_fence(message: JSON) -> JSON:
    for call in message.get("tool_calls") or ():
        message = say(f"```repl\n{json.loads(call['function']['arguments'])['code']}\n```")
    return message


# --- the server ----------------------------------------------------------------------------------------------------


def tokens_in(value: Any) -> int:
    return -(-len(value if isinstance(value, str) else json.dumps(value)) // CHARACTERS_PER_TOKEN)


def too_long(window: int, tokens: int) -> JSON:
    """The body of OpenAI's 400 for a prompt beyond the window."""
    message = (
        f"This model's maximum context length is {window} tokens. However, your messages resulted in {tokens} tokens. "
        "Please reduce the length of the messages."
    )
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    }


def respond(reader: Reader, request: JSON) -> tuple[int, JSON]:
    """Status and body for a chat request."""
    messages = request["messages"]
    tools = request.get("tools") or []
    size = sum(tokens_in(m.get("content") or "") + tokens_in(m.get("tool_calls") or "") for m in messages)
    size += tokens_in(tools) if tools else 0
    if size > reader.window:
        return 400, too_long(reader.window, size)
    if messages[0]["role"] == "system" and "`context`" in str(messages[0]["content"]):
        message = root_turn(reader, messages)
    else:
        message = say(reader.read(str(messages[-1]["content"])))
    return 200, completion(request, message, size)


def completion(request: JSON, message: JSON, size: int) -> JSON:
    most = request.get("max_completion_tokens") or request.get("max_tokens")
    text = message["content"]
    finish = "tool_calls" if message.get("tool_calls") else "stop"
    if text and most and tokens_in(text) > most:
        message, finish = say(text[: most * CHARACTERS_PER_TOKEN]), "length"
    written = tokens_in(message["content"] or "") + tokens_in(message.get("tool_calls") or "")
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": size, "completion_tokens": written, "total_tokens": size + written},
    }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    reader: Reader

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            request = json.loads(body)
            status, reply = respond(self.reader, request)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            text = f"not a chat request: {type(error).__name__}"
            status, reply = 400, {"error": {"message": text, "type": "invalid_request_error", "code": None}}
        self.send(status, reply)

    def send(self, status: int, reply: JSON) -> None:
        body = json.dumps(reply).encode()
        head = f"HTTP/1.1 {status} {self.responses[status][0]}\r\nContent-Type: application/json\r\n"
        self.wfile.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def log_message(self, *about: Any) -> None:
        """Nothing: the harness says what happens."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def serve(reader: Reader) -> Server:
    """The server on a free port of loopback, already listening; `serve_forever` is the caller's."""
    return Server(("127.0.0.1", 0), type("Handler", (Handler,), {"reader": reader}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=int, default=128_000, metavar="TOKENS")
    parser.add_argument("--lapses", type=float, default=0.0, metavar="RATE")
    options = parser.parse_args()
    server = serve(Reader(options.window, options.lapses))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()  # ends with its parent: standard input is the parent's end of a pipe


if __name__ == "__main__":
    main()
