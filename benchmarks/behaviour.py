"""`make compare`: what this project and others do where things go wrong, as a table of behaviours.

    python benchmarks/behaviour.py [--subjects rlms,dspy] [--only WORD] [--write docs/comparison.md]

Each behaviour is a script of what the model says, and a check on what can be seen from outside: the answer, the
exception, the requests that reached the server, the files written, the end of the process. Each runs in a process of
its own, in each project's own environment (those of `bench.py`), through its public interface and with its own option
where it has one (`behaviour_run.py`). A project is killed when it has neither answered nor failed long after its limit.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import datetime
import itertools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import bench
import model
import scripted  # model has put its folder on the path
from model import SPEECH, Speech, call, fence, say

JSON = dict[str, Any]
SUBJECTS = [subject for subject in bench.SUBJECTS if subject.name != "flat-rlm docker"]
START_SECONDS = 120  # for the imports of a subject, on a busy machine
RUN_SECONDS = 40  # from the first request on
LIMIT = 5  # seconds, where a behaviour sets a limit of the subject's own
OVER = "the script is over"
SECRET = "planted-in-the-environment"
OUTSIDE = "planted-in-a-file"


# --- how a script is spoken to each subject ------------------------------------------------------------------------

TEXT = SPEECH["flat-rlm"]._replace(run=fence("repl"))  # this project's protocol for models without tool calls
FENCES = {"smolagents": ("<code>\n", "\n</code>"), "minrlm": ("```python\n", "\n```"), "dspy": ("```python\n", "\n```")}
FIELDS = re.compile(
    r"\[\[ ## reasoning ## \]\]\n(.*?)\n\n\[\[ ## code ## \]\]\n(.*?)(?:\n\n\[\[ ## completed|\Z)", re.S
)


@dataclass(frozen=True)
class Voice:
    """A subject's own way of being told things."""

    subject: str
    speech: Speech

    @property
    def fences(self) -> tuple[str, str]:
        return FENCES.get(self.subject, ("```repl\n", "\n```"))

    @property
    def calls_in_code(self) -> bool:
        return self.subject != "rlm-runtime"

    @property
    def context(self) -> str:
        return self.speech.context.removesuffix("[:]")


class Reply(NamedTuple):
    """What the server answers; an assistant message alone is one with everything in order."""

    message: JSON
    status: int = 200
    output: int = 10  # completion tokens
    usage: bool = True


Step = Callable[[Voice], list[Any]]  # each an assistant message, a Reply, or what makes a message of the request
Code = str | Callable[[Voice], str]


def cell(code: Code) -> Step:
    return lambda voice: [voice.speech.run(code if isinstance(code, str) else code(voice))]


def final(expression: Code) -> Step:
    """The answer is the value of an expression. Where code cannot end a run, the model repeats what the code gave."""

    def steps(voice: Voice) -> list[Any]:
        value = expression if isinstance(expression, str) else expression(voice)
        said: list[Any] = [voice.speech.run(voice.speech.final.format(value))]
        return said if voice.calls_in_code else [*said, lambda request: say(str(request["messages"][-1]["content"]))]

    return steps


def ask_many(prompts: str, wide: int = 64) -> Step:
    """`r` is what a batch of sub-calls gave; `prompts` is an expression."""

    def steps(voice: Voice) -> list[Any]:
        if voice.calls_in_code:
            guarded = f"try:\n    r = {voice.speech.batch.format(prompts)}\nexcept Exception as e:\n    r = getattr"
            return [voice.speech.run(f"{guarded}(e, 'results', 'nothing')")]
        queries = [{"query": prompt} for prompt in eval(prompts)]
        return [call("rlm_batch_complete", {"queries": queries, "max_parallel": wide})]

    return steps


def ask_one(prompt: str) -> Step:
    def steps(voice: Voice) -> list[Any]:
        if voice.calls_in_code:
            return [voice.speech.run("r = " + voice.speech.ask.format(prompt))]
        return [call("rlm_sub_complete", {"query": eval(prompt)})]

    return steps


def says(text: Code) -> Step:
    """A reply as the model wrote it, around or instead of a well-formed block."""

    def steps(voice: Voice) -> list[Any]:
        raw = text if isinstance(text, str) else text(voice)
        if voice.subject == "dspy":
            return [say(f"[[ ## reasoning ## ]]\nx\n\n[[ ## code ## ]]\n{raw}\n\n[[ ## completed ## ]]")]
        return [say(raw)]

    return steps


def garbled(voice: Voice) -> list[Any]:
    """A reply that cannot be read in the subject's own protocol."""
    if voice.subject in ("flat-rlm", "rlm-runtime"):
        broken = call("execute_code", {})
        broken["tool_calls"][0]["function"]["arguments"] = '{"code": "print(1'
        return [broken]
    return [say("I shall look at the data first, line by line, then group what I find there, and then I shall count.")]


def silent(voice: Voice) -> list[Any]:
    return [{"role": "assistant", "content": None}]


def unmeasured(step: Step) -> Step:
    """The same without `usage`."""
    return lambda voice: [said if callable(said) else Reply(said, usage=False) for said in step(voice)]


def as_asked(voice: Voice, request: JSON, message: JSON) -> JSON:
    """dspy asks again for JSON where it could not read a reply; the scripted model can do that too."""
    if voice.subject == "dspy" and "response_format" in request and (found := FIELDS.search(message["content"] or "")):
        return say(json.dumps({"reasoning": found[1], "code": found[2]}))
    return message


# --- the server ----------------------------------------------------------------------------------------------------


@dataclass
class Script:
    """The model's side of one run, and what it saw of it."""

    voice: Voice
    said: list[Any]
    leaf: Callable[[int], Reply]
    child: Callable[[int], list[Step]]
    on_root: Callable[[int], None] = lambda turn: None
    roots: list[JSON] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    children: dict[str, list[JSON]] = field(default_factory=dict)
    leaves: int = 0
    spent: float = 0.0
    tokens: int = 0
    contacted: bool = False
    problems: list[str] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)

    def reply(self, request: JSON, size: int) -> Reply:
        if self.roots and self.opening(request) != self.opening(self.roots[0]):
            return self.sub_call(request)
        self.roots.append(request)
        self.sizes.append(size)
        self.began.set()
        self.on_root(len(self.roots))
        said = self.said[len(self.roots) - 1] if len(self.roots) <= len(self.said) else None
        if said is None:
            return Reply(self.voice.speech.run(self.voice.speech.final.format(repr(OVER))))
        said = said(request) if callable(said) else said
        whole = said if isinstance(said, Reply) else Reply(said)
        return whole._replace(message=as_asked(self.voice, request, whole.message))

    def opening(self, request: JSON) -> str:
        """What all turns of a node have in common."""
        contents = [message["content"] for message in request["messages"]]
        if self.voice.subject == "dspy":  # one user message with all there is; what stays is the task
            task = re.search(r"given the inputs .*", str(contents[0]))
            return task[0] if task else str(contents[0])
        return json.dumps(contents[: 1 if self.voice.subject == "rlm-runtime" else 2])

    def sub_call(self, request: JSON) -> Reply:
        text = json.dumps(request["messages"])
        if leaf := re.search(r"leaf (\d+) of", text):
            self.leaves += 1
            return self.leaf(int(leaf[1]))
        turns = self.children.setdefault(self.opening(request), [])
        turns.append(request)
        number = list(self.children).index(self.opening(request))
        said = [said for step in self.child(number) for said in step(self.voice)]
        message = said[len(turns) - 1] if len(turns) <= len(said) else say(OVER)
        return Reply(message(request) if callable(message) else message)

    def settle(self, request: JSON, reply: Reply) -> int:
        """Count what a reply costs, and say how long it is: a limit on output that was asked for is kept."""
        if reply.status != 200:
            return 0
        asked = request.get("max_tokens") or request.get("max_completion_tokens") or reply.output
        output = min(int(asked), reply.output)
        self.tokens += 100 + output
        self.spent += price(output)
        return output


def price(output: int) -> float:
    """gpt-4o-mini: 0.15 dollars a million tokens in, 0.60 out; every request has 100 in."""
    return (100 * 0.15 + output * 0.60) / 1e6


class Server(scripted.Server):
    """The tests' server with a script for each API key; `GET /…/KEY` is contact with a forbidden place."""

    def __init__(self) -> None:
        super().__init__(self.say, strict=False)
        self.scripts: dict[str, Script] = {}
        self.lock = threading.Lock()

    def say(self, request: scripted.Request) -> scripted.Reply:
        script = self.scripts.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if script is None:  # of a run that is over
            return scripted.error(401)
        sent = json.loads(request.raw)
        with self.lock:
            try:
                reply = script.reply(sent, len(request.raw))
                answer = completion(sent, reply, script.settle(sent, reply))
            except Exception as error:  # the harness's own mistake: it must not look like the subject's
                script.problems.append(f"{type(error).__name__}: {error}")
                return scripted.error(400)
        return scripted.body(answer) if reply.status == 200 else scripted.error(reply.status)

    def listing(self, path: str) -> scripted.Fault:
        if planted := self.scripts.get(path.rpartition("/")[2]):
            planted.contacted = True
        return scripted.body({})


def completion(request: JSON, reply: Reply, output: int) -> JSON:
    whole = model.completion(request["model"], reply.message)
    usage = {"prompt_tokens": 100, "completion_tokens": output, "total_tokens": 100 + output, "cost": price(output)}
    if reply.usage:
        return whole | {"usage": usage}
    return {key: value for key, value in whole.items() if key != "usage"}


# --- one run -------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What could be seen of a run from outside."""

    script: Script
    result: JSON | None = None  # of behaviour_run.py: answer and tokens, or error and message, or lacks
    exit_code: int | None = None  # None: had to be killed
    complaint: str = ""  # the last line of its standard error
    disk: int = 0
    files: str = ""
    work: dict[int, float] = field(default_factory=dict)  # seconds of CPU at each root request

    @property
    def answer(self) -> str | None:
        return self.result.get("answer") if self.result else None

    def ending(self) -> str:
        if self.result is None:
            return f"had to be killed after {RUN_SECONDS} s" if self.exit_code is None else self.death()
        if self.answer is not None:
            answered = f"answered {short(self.answer)}" if self.answer else "answered with an empty text"
            return self.last_error() if OVER in self.answer else answered
        return f"raised {self.result['error']}: {short(self.result['message'])}"

    def last_error(self) -> str:
        """What the model was told of its last cell, when that was to give the answer."""
        error = self.error_shown(len(self.script.roots))
        return f"its last cell gave {error}" if error else "its last cell did not give the answer"

    def error_shown(self, turn: int) -> str:
        errors = re.findall(r"\w+(?:Error|Exception)\b.{0,90}", self.shown(turn))
        return short(errors[-1]) if errors else ""

    def death(self) -> str:
        return f"the whole process ended with exit code {self.exit_code}"

    def shown(self, turn: int) -> str:
        """All that the model was sent in a turn, from 1."""
        contents = [message.get("content") for message in self.script.roots[turn - 1]["messages"]]
        parts = [part for said in contents for part in (said if isinstance(said, list) else [{"text": said or ""}])]
        return "\n".join(part.get("text", "") for part in parts)


def short(text: str) -> str:
    plain = " ".join(str(text).replace("`", "'").split())
    return f"`{plain[:90]}…`" if len(plain) > 90 else f"`{plain}`"


Check = Callable[[Outcome], "str | None"]  # what is wrong, or None


class Behaviour(NamedTuple):
    key: str
    name: str
    steps: list[Step]
    check: Check
    wishes: JSON = {}  # noqa: RUF012
    context: str | None = None
    lacks: dict[str, str] = {}  # noqa: RUF012 - subject: why it does not apply there
    leaf: Callable[[int], Reply] = lambda number: Reply(say("yes"))
    child: Callable[[int], list[Step]] = lambda number: [final("'yes'")]
    kill_at: int | None = None  # the process is killed when this turn is asked for


class Verdict(NamedTuple):
    mark: str  # holds, fails, n/a, trouble
    evidence: str = ""


NUMBERS = itertools.count(1)
LACKING = {
    "cell_seconds": "has no time limit",
    "dollars": "has no limit on money",
    "subcalls": "has no cap on sub-calls",
    "log": "writes no log of its own",
    "system": "takes no instructions of the caller's",
    "text": "its code comes in tool calls only",
}


def examine(behaviour: Behaviour, subject: str, python: Path, environment: dict[str, str], server: Server) -> Verdict:
    if subject in behaviour.lacks:
        return Verdict("n/a", behaviour.lacks[subject])
    with tempfile.TemporaryDirectory(prefix="flat-rlm-behaviour-", ignore_cleanup_errors=True) as folder:
        outcome = run(behaviour, subject, python, environment, server, Path(folder))
    if outcome.result and "lacks" in outcome.result:
        return Verdict("n/a", LACKING[outcome.result["lacks"]])
    began = outcome.script.roots or (outcome.result and "cell_seconds" not in behaviour.wishes)
    if outcome.script.problems or not began:
        return Verdict("trouble", "; ".join(outcome.script.problems) or outcome.complaint or outcome.ending())
    try:
        wrong = behaviour.check(outcome)
    except Exception as error:
        return Verdict("trouble", f"{type(error).__name__}: {error}")
    return Verdict("holds") if wrong is None else Verdict("fails", wrong)


def run(
    behaviour: Behaviour, subject: str, python: Path, environment: dict[str, str], server: Server, folder: Path
) -> Outcome:
    voice = Voice(subject, TEXT if subject == "flat-rlm" and "text" in behaviour.wishes else SPEECH[spoken(subject)])
    key = f"sk-behaviour-{os.getpid()}-{next(NUMBERS)}"
    places = {"OUTSIDE": str(folder / "outside.txt"), "PORT": str(server.port), "KEY": key}
    said = [placed(said, places) for step in behaviour.steps for said in step(voice)]
    script = server.scripts[key] = Script(voice, said, behaviour.leaf, behaviour.child)
    outcome = Outcome(script)
    command = [str(python), str(Path(__file__).parent / "behaviour_run.py"), subject, str(server.port), key]
    planted = {"BEHAVIOUR_SECRET": SECRET, "BEHAVIOUR_RUN": key, "TMPDIR": str(folder)}
    process = start(command, environment | planted, {"wishes": behaviour.wishes, "context": behaviour.context}, folder)
    script.on_root = lambda turn: on_root(turn, behaviour, outcome, process.pid)
    try:
        outcome.exit_code = wait(process, script)
    finally:
        end(process, key)
        del server.scripts[key]
    look(folder, outcome)
    return outcome


def start(command: list[str], environment: dict[str, str], job: JSON, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "outside.txt").write_text(OUTSIDE)
    (folder / "job.json").write_text(json.dumps(job))
    (folder / "work").mkdir()
    with (folder / "job.json").open("rb") as given, (folder / "stderr.txt").open("wb") as errors:
        return subprocess.Popen(
            [*command, str(folder / "result.json")],
            cwd=folder / "work",
            env=environment,
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )


def look(folder: Path, outcome: Outcome) -> None:
    """What a run has left on disk."""
    written = [path for path in (folder / "work").rglob("*") if path.is_file() and path.name != "context.txt"]
    outcome.disk = sum(path.stat().st_size for path in written)
    outcome.files = "".join(path.read_text("utf-8", "replace") for path in written if path.stat().st_size < 5e6)
    if (folder / "result.json").exists():
        outcome.result = json.loads((folder / "result.json").read_text())
    lines = (folder / "stderr.txt").read_text("utf-8", "replace").strip().splitlines()
    outcome.complaint = lines[-1][:200] if lines else ""


def spoken(subject: str) -> str:
    return subject.split()[0]


def placed(said: Any, places: dict[str, str]) -> Any:
    """Paths and ports that are known only now."""
    if callable(said) or isinstance(said, Reply):
        return said
    text = json.dumps(said)
    for name, value in places.items():
        text = text.replace(f"<{name}>", value)
    return json.loads(text)


def on_root(turn: int, behaviour: Behaviour, outcome: Outcome, pid: int) -> None:
    outcome.work[turn] = sum(cpu_seconds(one) for one in family(pid))
    if turn == behaviour.kill_at:
        os.kill(pid, signal.SIGKILL)


def wait(process: subprocess.Popen[bytes], script: Script) -> int | None:
    """The exit code, or None where it had to be killed."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and not script.began.wait(0.2):
        if time.monotonic() > end:
            return None
    try:
        return process.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def family(pid: int) -> list[int]:
    """A process and those it started."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # gone meanwhile
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kill what is left of a run: its processes, and those of them whose parent has gone."""
    running = family(process.pid) if process.poll() is None else []
    marked = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/environ") if carries(p, mark)]
    for one in {*running, *marked}:
        try:
            os.kill(one, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def carries(path: Path, mark: str) -> bool:
    try:
        return f"BEHAVIOUR_RUN={mark}\0".encode() in path.read_bytes()
    except OSError:
        return False


# --- checks --------------------------------------------------------------------------------------------------------


def answers(*wanted: str, never: str = "\0") -> Check:
    def check(outcome: Outcome) -> str | None:
        answer = outcome.answer
        if answer is not None and all(word in answer for word in wanted) and never not in answer:
            return None if outcome.exit_code is not None else "answered, but its process did not end"
        return outcome.ending()

    return check


def first_cell_runs(outcome: Outcome) -> str | None:
    """The answer is 42, or else what the first cell gave."""
    wrong = answers("42")(outcome)
    error = outcome.error_shown(2) if wrong and len(outcome.script.roots) > 1 else ""
    return f"the cell gave {error}" if error else wrong


def shows(turn: int, *wanted: str) -> Check:
    def check(outcome: Outcome) -> str | None:
        if len(outcome.script.roots) < turn:
            return outcome.ending()
        missing = [word for word in wanted if word not in outcome.shown(turn)]
        return f"the model was not shown {short(missing[0])}" if missing else None

    return check


def ends(outcome: Outcome) -> str | None:
    return outcome.ending() if outcome.exit_code is None else None


def own_output_only(outcome: Outcome) -> str | None:
    if len(outcome.script.children) < 3:
        return outcome.ending()
    for number, turns in enumerate(outcome.script.children.values()):
        shown = json.dumps(turns[1]["messages"]) if len(turns) > 1 else ""
        own, all_of_them = shown.count(f"mark-{number}"), shown.count("mark-")
        if (own, all_of_them) != (20, 20):
            return f"a child that printed 20 lines was shown {own} of them, and {all_of_them - own} of others"
    return None


def failed_call_raises(outcome: Outcome) -> str | None:
    if not outcome.script.voice.calls_in_code:
        return error_as_response(outcome)
    return answers("unset", never="rror")(outcome)


def failed_call_of_three(outcome: Outcome) -> str | None:
    if not outcome.script.voice.calls_in_code:
        return error_as_response(outcome)
    if outcome.answer is None:
        return outcome.ending()
    try:
        given = ast.literal_eval(outcome.answer)
    except (SyntaxError, ValueError):
        return outcome.ending()
    texts = [one for one in given if isinstance(one, str)]
    return None if texts == ["yes", "yes"] else outcome.ending()


def error_as_response(outcome: Outcome) -> str | None:
    told = re.search(r"'response': 'Error[^']*'", outcome.shown(len(outcome.script.roots)))
    return f"the model was given {short(told[0])}" if told else None


def all_tokens_reported(outcome: Outcome) -> str | None:
    if outcome.answer is None or outcome.result is None:
        return outcome.ending()
    reported, spent = outcome.result["tokens"], outcome.script.tokens
    return None if reported == spent else f"reported {reported} tokens where the server gave {spent}"


def spent_at_most(dollars: float) -> Check:
    def check(outcome: Outcome) -> str | None:
        spent, leaves = outcome.script.spent, outcome.script.leaves
        if not leaves:
            return f"no sub-call was sent: {outcome.ending()}"
        return None if spent <= dollars else f"spent ${spent:.2f} in {leaves} sub-calls"

    return check


def leaves_at_most(count: int) -> Check:
    def check(outcome: Outcome) -> str | None:
        leaves = outcome.script.leaves
        return None if leaves <= count else f"{leaves} were sent"

    return check


def disk_at_most(limit: float) -> Check:
    def check(outcome: Outcome) -> str | None:
        if not outcome.disk:
            return f"nothing was written ({outcome.ending()})"
        return None if outcome.disk <= limit else f"wrote {outcome.disk / 1e6:.1f} MB"

    return check


def logged_at_most(mark: str, times: int) -> Check:
    def check(outcome: Outcome) -> str | None:
        count = outcome.files.count(mark)
        if not count:
            return f"it is not in the {outcome.disk:,} bytes that were written"
        return None if count <= times else f"it is there {count} times"

    return check


def first_request_at_most(limit: int) -> Check:
    def check(outcome: Outcome) -> str | None:
        size = outcome.script.sizes[0]
        return None if size <= limit else f"the first request had {size:,} bytes"

    return check


def sent_at_most(turns: int, limit: int) -> Check:
    def check(outcome: Outcome) -> str | None:
        if len(outcome.script.sizes) < turns:
            return outcome.ending()
        sent = sum(outcome.script.sizes[:turns])
        return None if sent <= limit else f"sent {sent:,} bytes"

    return check


def works_at_most(seconds: float) -> Check:
    """CPU of the subject's processes for a turn, from the second to the fifth request."""

    def check(outcome: Outcome) -> str | None:
        if 5 not in outcome.work:
            return outcome.ending()
        each = (outcome.work[5] - outcome.work[2]) / 3
        return None if each <= seconds else f"{each:.2f} s of CPU for each turn that prints a number"

    return check


def both(*checks: Check) -> Check:
    return lambda outcome: next((wrong for check in checks if (wrong := check(outcome))), None)


def hides(planted: str) -> Check:
    def check(outcome: Outcome) -> str | None:
        if planted in (outcome.answer or ""):
            return "the cell read it"
        return None if outcome.answer is not None else outcome.ending()

    return check


def not_contacted(outcome: Outcome) -> str | None:
    if outcome.script.contacted:
        return "the cell's request arrived"
    return None if outcome.answer is not None else outcome.ending()


# --- the behaviours ------------------------------------------------------------------------------------------------

NO_SUBCALLS = {"smolagents": "has no sub-calls"}
NO_CHILDREN = NO_SUBCALLS | {"minrlm": "its sub-calls have no REPL"}
PEERS = [subject.name for subject in SUBJECTS if subject.name != "flat-rlm"]
NOT_RLMS = [subject.name for subject in SUBJECTS if not subject.name.startswith("rlms")]
LONG = "for i in range(4000):\n    print('a line of output, as cells print them', i)\n"
CHILDREN = "rlm_query_batched(['child %d' % 10 ** n for n in range(3)])"  # told apart by their lengths, if need be
PLAN = "My plan: I look at the data, and when I know more I call FINAL(answer) or final_answer(answer).\n\n"
KEEP = cell("kept = 6 * 7")
KEPT = final("str(kept)")
DONE = final("'done'")
LOOP = cell("while True:\n    pass")
UNSEEN, SEEN = cell("seen = 'nothing'"), final("str(seen)")
PROC_ENVIRON = "seen = seen + open('/proc/self/environ').read()"
CONNECT = """import socket
s = socket.create_connection(("127.0.0.1", <PORT>), 5)
s.sendall(b"GET /<KEY> HTTP/1.1\\r\\n\\r\\n")
seen = str(s.recv(12))"""
ORDINARY = """class Box:
    def __init__(self, n):
        self.n = n
    def __iter__(self):
        yield from range(self.n)
total = sum(Box(3))
for i, (first, *rest) in enumerate([(1, 2), (3, 4)]):
    total += first + sum(rest)
text = f"{total + 29}"
"""
POOL = """from concurrent.futures import ThreadPoolExecutor
ps = ["leaf %d of 4" % n for n in range(4)]
with ThreadPoolExecutor(4) as pool:
    r = list(pool.map(lambda p: """
THREAD = """import threading
r = []
t = threading.Thread(target=lambda: r.append(6 * 7))
t.start()
t.join()"""


def own_block(code: str) -> Step:
    return says(lambda voice: voice.fences[0] + code + voice.fences[1])


def planned(code: str) -> Step:
    def steps(voice: Voice) -> list[Any]:
        said = voice.speech.run(code)
        if voice.subject == "dspy":
            return [say((said["content"] or "").replace("\nx\n", f"\n{PLAN}\n"))]
        return [said | {"content": PLAN + (said["content"] or "")}]

    return steps


def loop_of_calls(count: int) -> Step:
    """Sub-calls one after the other."""
    prompt = f"'leaf %d of {count}' % n"
    code = cell(lambda voice: f"for n in range({count}):\n    r = {voice.speech.ask.format(prompt)}")
    batch = ask_many(f"[{prompt} for n in range({count})]", wide=1)
    return lambda voice: (code if voice.calls_in_code else batch)(voice)


def ask_child(voice: Voice) -> list[Any]:
    if voice.subject == "dspy":
        return [voice.speech.run("import dspy\nr = dspy.RLM('query -> answer')(query='child 1').answer")]
    if voice.calls_in_code:
        return [voice.speech.run("r = " + voice.speech.child.format("'child 1'"))]
    return [call("rlm_sub_complete", {"query": "child 1"})]


def run_async(voice: Voice) -> str:
    awaited = "await f()" if voice.subject == "rlms isolated" else "asyncio.run(f())"  # a kernel has its loop running
    return f"import asyncio\nasync def f():\n    return 6 * 7\nr = {awaited}"


def failing(*numbers: int) -> Callable[[int], Reply]:
    return lambda number: Reply(say("yes"), status=400 if number in numbers else 200)


def printing_child(number: int) -> list[Step]:
    lines = f"for i in range(20):\n    print('mar' + 'k-{number}')\n    time.sleep(0.01)"
    return [cell("import time\n" + lines), final("'yes'")]


STATE = [
    Behaviour(
        "error_keeps",
        "variables assigned before an error survive it",
        [cell("kept = 6 * 7\nraise ValueError('a typo at the end')"), KEPT],
        answers("42"),
    ),
    Behaviour(
        "later_global",
        "a function sees a global that a later cell sets",
        [cell("def show():\n    return later"), cell("later = 6 * 7"), final("str(show())")],
        answers("42"),
    ),
    Behaviour(
        "global_counts",
        "`global n` in a function changes the `n` that later cells see",
        [cell("n = 0\ndef bump():\n    global n\n    n = n + 21"), cell("bump()\nbump()"), final("str(n)")],
        answers("42"),
    ),
    Behaviour(
        "runs_again",
        "the same code again is run again",
        [cell("seen = [40]"), cell("seen.append(1)"), cell("seen.append(1)"), final("str(sum(seen))")],
        answers("42"),
    ),
    Behaviour(
        "own_output",
        "children that run side by side are shown their own output only",
        [cell(f"r = {CHILDREN}"), DONE],
        own_output_only,
        lacks=NO_CHILDREN
        | {"rlm-runtime": "its children are tool calls of the model's", "dspy": "has no batch of children"},
        child=printing_child,
    ),
]
CONTROL = [
    Behaviour(
        "loop_stops",
        "the time limit stops `while True: pass`",
        [LOOP, DONE],
        ends,
        {"cell_seconds": LIMIT},
    ),
    Behaviour(
        "loop_keeps",
        "… and the run goes on, with its variables",
        [KEEP, LOOP, KEPT],
        answers("42"),
        {"cell_seconds": LIMIT},
    ),
    Behaviour(
        "c_call_stops",
        "… also if a single call of a builtin takes the time",
        [KEEP, cell("sum(range(10 ** 12))"), KEPT],
        answers("42"),
        {"cell_seconds": LIMIT},
    ),
    Behaviour(
        "sys_exit",
        "`sys.exit(3)` and `raise SystemExit(3)` in a cell do not end the run",
        [KEEP, cell("import sys\nsys.exit(3)"), cell("raise SystemExit(3)"), KEPT],
        answers("42"),
    ),
    Behaviour(
        "os_exit",
        "`os._exit(1)` in a cell does not end the run",
        [KEEP, cell("import os\nos._exit(1)"), KEPT],
        answers("42"),
        {"cell_seconds": LIMIT},
    ),
    Behaviour(
        "killed_log",
        "a run that is killed leaves a record of what it did on disk",
        [cell("print('first ' + 'finding')"), cell("print('second ' + 'finding')"), DONE],
        logged_at_most("first finding", 99),
        {"log": "logs"},
        kill_at=3,
    ),
]
PARSING = [
    Behaviour(
        "python_fence",
        "a ```` ```python ```` block is run",
        [says("```python\nkept = 6 * 7\n```"), KEPT],
        answers("42"),
        {"text": True},
    ),
    Behaviour(
        "bare_fence",
        "a block that names no language is run",
        [says("```\nkept = 6 * 7\n```"), KEPT],
        answers("42"),
        {"text": True},
    ),
    Behaviour(
        "fence_in_string",
        "a block with ```` ``` ```` in one of its strings is run whole",
        [own_block('text = """\n```\nquoted\n```\n"""\nkept = 6 * 7'), KEPT],
        answers("42"),
        {"text": True},
    ),
    Behaviour(
        "open_fence",
        "a block that is not closed is run",
        [says(lambda voice: voice.fences[0] + "kept = 6 * 7"), KEPT],
        answers("42"),
        {"text": True},
    ),
    Behaviour(
        "null_content",
        "a reply with `content: null` does not end the run",
        [KEEP, silent, KEPT],
        answers("42"),
    ),
    Behaviour(
        "no_usage",
        "a reply without `usage` does not end the run",
        [KEEP, unmeasured(cell("kept = kept + 0")), KEPT],
        answers("42"),
    ),
    Behaviour(
        "garbled",
        "a reply that cannot be read does not end the run",
        [KEEP, garbled, KEPT],
        answers("42"),
    ),
]
ANSWERS = [
    Behaviour(
        "flag_first",
        "setting the ready flag before the answer does not give an empty answer",
        [cell("answer['ready'] = True\nanswer['content'] = str(6 * 7)"), DONE],
        answers("42"),
        lacks=dict.fromkeys(NOT_RLMS, "answer and flag are one call"),
    ),
    Behaviour(
        "final_value",
        "the answer is a variable's value, not its name",
        [cell("found = str(6 * 7)"), final("found")],
        answers("42", never="found"),
    ),
    Behaviour(
        "plan_is_no_answer",
        "a plan that mentions FINAL(answer) is not the answer",
        [planned("kept = 6 * 7"), KEPT],
        answers("42"),
        {"text": True},
    ),
    Behaviour(
        "braces",
        "a `{` in the caller's instructions is kept unchanged",
        [DONE],
        both(answers("done"), shows(1, "such as {")),
        {"system": 'Answer with JSON, such as {"a": 1}.'},
    ),
]
BUDGETS = [
    Behaviour(
        "money",
        "a limit of $0.05 holds within a cell that makes 20 sub-calls of a cent each",
        [loop_of_calls(20), DONE],
        spent_at_most(0.05 + price(16_000)),
        {"dollars": 0.05},
        lacks=NO_SUBCALLS,
        leaf=lambda number: Reply(say("yes"), output=16_000),
    ),
    Behaviour(
        "money_batch",
        "… and within a batch of 20",
        [ask_many("['leaf %d of 20' % n for n in range(20)]"), DONE],
        spent_at_most(0.05 + price(16_000)),
        {"dollars": 0.05},
        lacks=NO_SUBCALLS,
        leaf=lambda number: Reply(say("yes"), output=16_000),
    ),
    Behaviour(
        "tokens",
        "the tokens reported include those of sub-calls",
        [ask_many("['leaf %d of 4' % n for n in range(4)]"), DONE],
        all_tokens_reported,
        lacks=NO_SUBCALLS,
    ),
    Behaviour(
        "child_tokens",
        "… and those of children",
        [ask_child, DONE],
        all_tokens_reported,
        lacks=NO_CHILDREN,
    ),
    Behaviour(
        "cap",
        "a cap of 5 sub-calls holds against one batch of 16",
        [ask_many("['leaf %d of 16' % n for n in range(16)]"), DONE],
        leaves_at_most(5),
        {"subcalls": 5},
        lacks=NO_SUBCALLS,
    ),
    Behaviour(
        "failed_call",
        "a failed sub-call is an exception, not a text in the data",
        [cell("r = 'unset'"), ask_one("'leaf %d of 1' % 0"), final("str(r)")],
        failed_call_raises,
        lacks=NO_SUBCALLS,
        leaf=failing(0),
    ),
    Behaviour(
        "failed_of_three",
        "a failed call of a batch leaves no text in the data, and the other answers are kept",
        [ask_many("['leaf %d of 3' % n for n in range(3)]"), final("str(r)")],
        failed_call_of_three,
        lacks=NO_SUBCALLS,
        leaf=failing(1),
    ),
]
SIZE = [
    Behaviour(
        "log_size",
        "three turns over 10 MB write less than 20 MB",
        [cell(lambda voice: f"print(len({voice.speech.context}))"), cell("print(2)"), DONE],
        disk_at_most(20e6),
        {"log": "logs"},
        context="megabytes 10",
    ),
    Behaviour(
        "log_once",
        "the log holds an output once or twice, not once for each later turn",
        [cell("print('first ' + 'finding')"), *[cell(f"print({n})") for n in range(10)], DONE],
        logged_at_most("first finding", 2),
        {"log": "logs"},
    ),
    Behaviour(
        "not_copied",
        "a turn does not process a 40 MB context again",
        [*[cell(f"print({n})") for n in range(5)], DONE],
        works_at_most(0.15),
        context="megabytes 40",
    ),
    Behaviour(
        "bytes_and_sets",
        "the context may contain bytes and sets",
        [final(lambda voice: f"str(len({voice.context}['tags']) + {voice.context}['raw'][1])")],
        answers("258"),
        context="mixed",
    ),
    Behaviour(
        "path",
        "a path can be given as the context",
        [final(lambda voice: f"str({voice.context}.count('INFO') + 32)")],
        answers("42"),
        lacks=dict.fromkeys(PEERS, "takes the data itself"),
        context="path",
    ),
    Behaviour(
        "not_in_prompt",
        "a context of 1 MB is not in the prompt",
        [DONE],
        first_request_at_most(100_000),
        context="megabytes 1",
    ),
]
OUTPUT = [
    Behaviour(
        "end_shown",
        "the model is also shown the end of a long output",
        [cell(LONG + "print('the very ' + 'end')"), DONE],
        shows(2, "the very end"),
    ),
    Behaviour(
        "error_shown",
        "the model is shown an error that follows a long output",
        [cell(LONG + "raise ValueError('what went ' + 'wrong')"), DONE],
        shows(2, "what went wrong"),
    ),
    Behaviour(
        "last_expression",
        "the model is shown the value of a bare last expression",
        [cell("6 * 7 * 1000 + 1"), DONE],
        shows(2, "42001"),
    ),
    Behaviour(
        "bytes_sent",
        "20 trivial turns send at most 220,000 bytes",
        [*[cell("print(1)")] * 20, DONE],
        sent_at_most(21, 220_000),
    ),
]
ISOLATION = [
    Behaviour(
        "environment",
        "a cell cannot read the host's environment",
        [UNSEEN, cell("import os\nseen = str(dict(os.environ))"), cell(PROC_ENVIRON), SEEN],
        hides(SECRET),
    ),
    Behaviour(
        "files",
        "… nor its files",
        [UNSEEN, cell("seen = open('<OUTSIDE>').read()"), SEEN],
        hides(OUTSIDE),
    ),
    Behaviour(
        "network",
        "… nor reach its network",
        [UNSEEN, cell(CONNECT), SEEN],
        not_contacted,
    ),
]
PYTHON = [
    Behaviour(
        "ordinary",
        "classes, generators, unpacking, `+=` and f-strings run",
        [cell(ORDINARY), final("text")],
        first_cell_runs,
    ),
    Behaviour(
        "pool",
        "sub-calls through a `ThreadPoolExecutor` run",
        [cell(lambda voice: POOL + f"{voice.speech.ask.format('p')}, ps))"), final("str(r.count('yes') + 38)")],
        first_cell_runs,
        lacks=NO_SUBCALLS | {"rlm-runtime": "sub-calls are tool calls of the model's"},
    ),
    Behaviour(
        "threads",
        "raw threads run",
        [cell(THREAD), final("str(sum(r))")],
        first_cell_runs,
    ),
    Behaviour(
        "asyncio",
        "`async` functions run",
        [cell(run_async), final("str(r)")],
        first_cell_runs,
    ),
    Behaviour(
        "packages",
        "an installed package can be imported without an option",
        [cell("import idna\nr = len(idna.encode('bücher')) + 29"), final("str(r)")],
        first_cell_runs,
    ),
]
PLAIN = Behaviour(
    "plain",
    "a plain run answers, and its process ends",
    [cell("x = 41"), final("str(x + 1)")],
    answers("42"),
)
SECTIONS = {
    "Basics": [PLAIN],
    "State": STATE,
    "Control": CONTROL,
    "Parsing": PARSING,
    "Final answers": ANSWERS,
    "Budgets": BUDGETS,
    "Size": SIZE,
    "Output and cost": OUTPUT,
    "Isolation": ISOLATION,
    "Python in cells": PYTHON,
}
BEHAVIOURS = [behaviour for section in SECTIONS.values() for behaviour in section]


# --- the page ------------------------------------------------------------------------------------------------------

MARKS = {"holds": "✓", "fails": "✗", "n/a": "–", "trouble": "?"}
Verdicts = dict[tuple[str, str], Verdict]


def examine_all(behaviours: list[Behaviour], subjects: list[bench.Subject]) -> Verdicts:
    server = Server()
    (bench.CACHE / "home").mkdir(parents=True, exist_ok=True)

    def one(pair: tuple[Behaviour, bench.Subject]) -> tuple[tuple[str, str], Verdict]:
        behaviour, subject = pair
        verdict = examine(behaviour, subject.name, bench.python_of(subject), bench.environment_of(subject), server)
        print(f"{behaviour.key:16} {subject.name:14} {verdict.mark:7} {verdict.evidence}", file=sys.stderr, flush=True)
        return (behaviour.key, subject.name), verdict

    pool = concurrent.futures.ThreadPoolExecutor(2)
    try:
        return dict(pool.map(one, itertools.product(behaviours, subjects)))
    finally:
        pool.shutdown(cancel_futures=True)


def facts(subjects: list[bench.Subject]) -> str:
    """Versions, licences and sizes, read from what is installed."""
    rows = [
        "|  | version | licence | packages | MB | runs the model's code in |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for subject in subjects:
        told = json.loads(bench.command(subject, "-c", ABOUT.format(distribution(subject))).stdout)
        size = bench.installed_size(subject)
        cells = [subject.name, told["version"], LICENCES.get(subject.environment) or told["licence"]]
        rows.append(f"| {' | '.join(cells)} | {size['packages']:.0f} | {size['size']:.0f} | {subject.remark} |")
    return "\n".join(rows)


def distribution(subject: bench.Subject) -> str:
    return "flat-rlm" if subject.packages[0] == str(bench.ROOT) else re.split(r"[\[=]", subject.packages[0])[0]


ABOUT = """
import importlib.metadata, json
about = importlib.metadata.metadata({!r})
print(json.dumps({{"version": about["Version"], "licence": about["License-Expression"] or about["License"] or ""}}))
"""
LICENCES = {"dspy": "MIT", "smolagents": "Apache-2.0"}  # whose metadata say it at length, or leave it to the file


def table(behaviours: list[Behaviour], subjects: list[bench.Subject], verdicts: Verdicts) -> str:
    """A row for each behaviour, under its section, and the evidence as footnotes."""
    names = [subject.name for subject in subjects]
    rows = [f"|  | {' | '.join(names)} |", f"| --- |{' :---: |' * len(names)}"]
    notes: dict[str, int] = {}
    for title, section in SECTIONS.items():
        shown = [behaviour for behaviour in section if behaviour in behaviours]
        rows += [f"| **{title}** |{'  |' * len(names)}"] if shown else []
        for behaviour in shown:
            marks = [marked(verdicts[behaviour.key, name], notes) for name in names]
            rows.append(f"| {behaviour.name} | {' | '.join(marks)} |")
    return "\n".join(rows) + "\n\n" + "\n".join(f"[^{number}]: {note}" for note, number in notes.items())


def marked(verdict: Verdict, notes: dict[str, int]) -> str:
    if not verdict.evidence:
        return MARKS[verdict.mark]
    return f"{MARKS[verdict.mark]}[^{notes.setdefault(verdict.evidence, len(notes) + 1)}]"


def page(behaviours: list[Behaviour], subjects: list[bench.Subject], verdicts: Verdicts) -> str:
    return PAGE.format(
        date=f"{datetime.date.today():%d %B %Y}",
        python=platform.python_version(),
        table=table(behaviours, subjects, verdicts),
        facts=facts(subjects),
        seconds=RUN_SECONDS,
        limit=LIMIT,
    )


PAGE = """\
# Comparison

After this page you know how flat-rlm and five other projects behave when something goes wrong, what only the others
have, and what only flat-rlm has. `make compare` (`python benchmarks/behaviour.py --write docs/comparison.md`) wrote
this page on {date} with Python {python}. [benchmarks.md](benchmarks.md) compares the overhead of these
projects. This page does not say how well a model answers; [evaluation.md](evaluation.md) has results with live models.

## Behaviour

Each row states something that a user would want from such a runtime. Each mark is the result of a test run:

✓ holds · ✗ does not hold (the note says what we saw) · – does not apply (the note says why) · ? the test itself failed

A scripted model gives every project the same replies, in that project's own protocol. We check what is visible from
outside: the answer, the exception, the requests that reached the server, the files, the end of the process. Each run
has its own process and environment and uses the project's public interface. Each project keeps its defaults, except for
limits that would end a run early. If a row is about an option, that option is set. A run that has not
ended {seconds} s after its first request is killed. Time limits are set to {limit} s.

We chose the rows from faults that we had seen in the other projects, and built flat-rlm to pass them. The others did
not set out to pass most of them, so read a ✗ as something to know, not as a verdict. The last section of the table
has the rows that flat-rlm fails.

{table}

The columns are:

- **flat-rlm**: `environment="local"`, with the protocol `tools`; in rows about fenced blocks, with the protocol `text`
- **rlms**: `environment="local"`, its default, which is not a sandbox, as its README says
- **rlms isolated**: our name for rlms with `environment="ipython"` and `kernel_mode="subprocess"`, which isolates code
  from the host's process but not from its machine
- **dspy**: `dspy.RLM` with `LocalInterpreter`, which is not a security sandbox, as its documentation says. Its default,
  Pyodide in Deno, is a sandbox. It could not run here, because it fetches a module from deno.land when it first starts
- **smolagents**: `CodeAgent` with its own interpreter. It is an agent, not an RLM, and has no sub-calls
- **minrlm**, **rlm-runtime**: their defaults, which run code in the host's process

We did not run the Docker and cloud sandboxes of rlms and smolagents, or the Docker environments of minrlm and
rlm-runtime. rlms counts money only if the server states a cost, so our server states it. `benchmarks/behaviour_run.py`
has the options that single rows need.

## Where flat-rlm fails

The local sandbox refuses threads and `async`, with an error that names what to use instead: `llm_query_batched`, or
`concurrent.futures`, whose tasks overlap while they wait for a model. A container has real threads. Cells can import a
package only if `allowed_imports` names it. Both rules follow from the confinement that [sandbox.md](sandbox.md)
describes.

## What you install

{facts}

The sizes are those of a fresh environment without pip and setuptools. We installed rlms with its extra `ipython`,
smolagents with `openai` and rlm-runtime with `mcp`. Without `mcp`, the first call of rlm-runtime ended with `No module
named 'mcp'`, because litellm 1.106.2, which pip had installed with it, needs that module.

## What the others have

- **rlms** is by the authors of the idea and of its paper. It has sandboxes in the cloud (Modal, E2B, Daytona, Prime),
  and its repository has a harness for training models as RLMs.
- **dspy** has signatures with typed outputs, optimisers that tune prompts against a metric, an async interface
  (`acall`), sub-agents (`Predict`, `ReAct`, `RLM`) in the REPL, a sandbox in WebAssembly, and a large community.
- **smolagents** has executors at E2B, Modal and Blaxel, models that run in the same process (transformers, MLX),
  tools from the Hugging Face Hub, and a large community.
- **minrlm** publishes an evaluation with live models (12 tasks, 4 models, in comparison with plain completions), and
  has a Gradio page that shows runs side by side.
- **rlm-runtime** has an async interface, a WebAssembly environment, a Streamlit dashboard, and an autonomous agent.

flat-rlm is synchronous: in `async` code you need `asyncio.to_thread`. Its local sandbox is confined only on Linux. It
is a young project.

## What only flat-rlm has

- **Resume.** A run that was killed or that reached a limit continues from its journal, and no answered call is paid for
  again. (dspy has a part of this: its cache on disk answers equal calls.)
- **Replay.** A recorded run is re-run offline, and its code is really executed.
- **Limits for the whole tree of calls.** Money and tokens are reserved before a call is sent, and the model's code can
  ask what is left.
- **Variables that survive** when the REPL's process dies.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", help="comma-separated; default: all")
    parser.add_argument("--only", default="", help="behaviours whose key or name has this word")
    parser.add_argument("--write", type=Path, help="write the page here as well")
    options = parser.parse_args()
    names = options.subjects.split(",") if options.subjects else [s.name for s in SUBJECTS]
    subjects = [s for s in SUBJECTS if s.name in names]
    behaviours = [b for b in BEHAVIOURS if options.only in f"{b.key} {b.name}"]
    for subject in subjects:
        bench.set_up(subject)
    verdicts = examine_all(behaviours, subjects)
    for behaviour in behaviours:
        marks = [MARKS[verdicts[behaviour.key, subject.name].mark] for subject in subjects]
        print(" ".join(marks), behaviour.name)
    if options.write:
        options.write.write_text(page(behaviours, subjects, verdicts))


if __name__ == "__main__":
    main()
