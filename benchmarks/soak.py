"""`make soak`: a thousand completions in one process while the provider fails, and nothing may grow.

    python benchmarks/soak.py [--count 1000] [--faults 0.05] [--docker 25] [--width 4] [--seed 1]

Scenarios of every kind (answers, cells that fail, hang or die, recursion, batches, every limit, schemas,
conversations, resume, replay, streams left in the middle) take turns, `--width` at a time, against the tests' scripted
server in a process of its own, which spoils a share of its replies and keeps account of what it did. Each completion
has to end as that account says: with the right answer, or with the right error. Each journal is read and compared
with the account. In between, with nothing under way, the process is looked at; what is fitted over the last two thirds
has to be level. Exit code 1 and an account of it otherwise. Every `--docker`-th completion runs in a container, if an
engine answers.

The process has one malloc arena. By default glibc gives threads up to eight arenas for each core, and what is resident
then grows until each of them has once held the largest thing that a thread held: on two cores from 44 MB to 88 MB,
over the first thousand completions, and no further. With one arena what is resident shows leaks.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import dataclasses
import datetime
import faulthandler
import gc
import itertools
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import bench  # noqa: E402
import scripted  # noqa: E402

import rlm  # noqa: E402
import rlm_sandbox  # noqa: E402
import rlm_viz  # noqa: E402

SAMPLES = 10
PATIENCE = 1800  # seconds for the completions between two looks; where they hang, it is shown where
MODEL = "gpt-4o-mini"


# --- the model's side: what it says, and how the provider fails ----------------------------------------------------

TAG = re.compile(r"\[run (\w+), (\w+(?: \d+)?) of ([\w-]+)\]")
FAULTS: dict[str, Callable[[scripted.Turn], scripted.Reply]] = {
    "500": lambda turn: scripted.error(500),
    "429": lambda turn: scripted.error(429, retry_after=0),
    "reset": lambda turn: scripted.reset(),
    "half": lambda turn: scripted.half(),
    "html": lambda turn: scripted.html(),
    "empty": lambda turn: scripted.empty(),
    "cut": lambda turn: scripted.cut(turn, 60),
    "slow": lambda turn: dataclasses.replace(turn, delay=0.2),
}
HARMLESS = ("ok", "slow")


class Provider(scripted.Server):
    """The scripted server with faults. `GET /account/RUN`: {call: what became of each attempt}, `/problems`."""

    def __init__(self, faults: float, seed: int) -> None:
        super().__init__(self.say)
        self.faults, self.seed = faults, seed
        self.accounts: dict[str, dict[str, list[str]]] = collections.defaultdict(dict)

    def say(self, request: scripted.Request) -> scripted.Reply:
        self.forget_bodies(request.number - 200)
        found = TAG.search(request.prompt)
        assert found, f"whose request is this: {request.prompt[:200]}"
        run, role, name = found.groups()
        attempts = self.accounts[run].setdefault(f"{role}/{request.turn}", [])
        dice = random.Random(f"{self.seed} {run} {role} {request.turn} {len(attempts)}")
        what = dice.choice(list(FAULTS)) if dice.random() < self.faults else "ok"
        attempts.append(what)
        turn = scripted.as_turn(BY_NAME[name].reply(run, role, request.turn))
        return turn if what == "ok" else FAULTS[what](turn)

    def forget_bodies(self, number: int) -> None:
        if number > 0:
            old = self.requests[number - 1]
            old.raw, old.body = b"", {}

    def listing(self, path: str) -> scripted.Fault:
        if path.startswith("/account/"):
            return scripted.body(dict(self.accounts[path.rpartition("/")[2]]))
        if path == "/problems":
            return scripted.body({"problems": self.problems, "requests": len(self.requests)})
        return super().listing(path)


class Account(NamedTuple):
    """What the server did to a run's calls: {"root/1": ["500", "ok"], "leaf 3/1": ["ok"]}."""

    calls: dict[str, list[str]]

    def lost(self, role: str) -> bool:
        """Whether a call of that role was given up."""
        mine = [attempts for call, attempts in self.calls.items() if call.partition("/")[0] == role]
        return any(attempts[-1] not in HARMLESS for attempts in mine)

    def answered(self) -> int:
        return sum(attempts[-1] in HARMLESS for attempts in self.calls.values())


# --- the scenarios -------------------------------------------------------------------------------------------------

Right = Callable[[Account], Any]  # the response or the class of the error that this account must lead to


class Scenario(NamedTuple):
    """A kind of run: what its model says (by role, the last goes on), how it must end, its options and its driver."""

    name: str
    says: dict[str, list[scripted.Turn | str]]
    right: Right
    options: dict[str, Any] = {}  # noqa: RUF012
    drive: str = "complete"

    @property
    def key(self) -> str:
        return self.name.replace(" ", "-")

    def reply(self, run: str, role: str, turn: int) -> scripted.Turn | str:
        kind, _, number = role.partition(" ")
        turns = self.says.get(kind) or ["yes"]
        reply = turns[min(turn, len(turns)) - 1]
        if isinstance(reply, str):
            return reply.replace("RUN", run).replace("NUMBER", number)
        code = [scripted.call(c["name"], **filled(c["arguments"], run, number, self.key)) for c in reply.tool_calls]
        return dataclasses.replace(reply, tool_calls=code)


def filled(arguments: dict[str, Any], run: str, number: str, name: str) -> dict[str, Any]:
    words = {"RUN": run, "NUMBER": number, "NAME": name}
    return {k: re.sub("RUN|NUMBER|NAME", lambda m: words[m[0]], v) for k, v in arguments.items()}


def always(outcome: Any) -> Right:
    return lambda account: outcome


def leaves_read(account: Account) -> str:
    return str(8 - sum(account.lost(f"leaf {n}") for n in range(8)))


def tree_read(account: Account) -> str:
    def child(n: int) -> int:
        return 0 if account.lost(f"child {n}") else 3 - account.lost(f"leaf {n}") - account.lost(f"grand {n}")

    return str(child(1) + child(2))


READ_EIGHT = """
try:
    read = llm_query_batched(["[run RUN, leaf %d of NAME] read this" % n for n in range(8)])
except Exception as error:
    read = error.results
"""
ASK_CHILDREN = """
try:
    found = rlm_query_batched(["[run RUN, child %d of NAME] count" % n for n in (1, 2)], [["a"] * 100, {"b": 1}])
except Exception as error:
    found = error.results
FINAL(sum(n for n in found if n))
"""
CHILD = """
n = 1
try:
    llm_query("[run RUN, leaf NUMBER of NAME] read this")
    n += 1
except Exception:
    pass
try:
    n += rlm_query("[run RUN, grand NUMBER of NAME] count")
except Exception:
    pass
FINAL(n)
"""
TOO_DEEP = """
try:
    rlm_query("[run RUN, child 1 of NAME] go on")
except Exception as error:
    FINAL(type(error).__name__)
"""
WAIT = """
try:
    llm_query("[run RUN, late 1 of NAME] read this")
except Exception:
    pass
while True:
    pass
"""
USE_TOOLS = """
failed = 0
try:
    double(n="three")
except Exception:
    failed += 1
FINAL(double(n=20) + failed + len(file_list(".")) * 0)
"""
cell = scripted.code
dear = dataclasses.replace(cell("1"), usage={"input": 60_000, "output": 10})
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

# fmt: off
SCENARIOS = [
    Scenario("prose", {"root": ["the answer is 42"]}, always("the answer is 42")),
    Scenario("final", {"root": [cell("x = 6 * 7"), cell("FINAL(x)")]}, always("42"), drive="replay"),
    Scenario("mended", {"root": [cell("kept = [1, 2, 3]\nmissing"), cell("FINAL(sum(kept))")]}, always("6")),
    Scenario("hung", {"root": [cell("kept = 7"), cell("while True:\n    pass"), cell("FINAL(kept)")]}, always("7"),
             {"cell_timeout": 0.5}),
    Scenario("killed", {"root": [cell("kept = 7"), cell("sum(range(10**13))"), cell("FINAL(kept)")]}, always("7"),
             {"cell_timeout": 0.5}),
    Scenario("exit", {"root": [cell("kept = 7"), cell("import os\nos._exit(3)"), cell("FINAL(kept)")]}, always("7")),
    Scenario("batched", {"root": [cell(READ_EIGHT), cell("FINAL(sum(1 for r in read if r))")]}, leaves_read),
    Scenario("recursion", {"root": [cell(ASK_CHILDREN)], "child": [cell(CHILD)], "grand": [cell("FINAL(1)")]},
             tree_read, {"max_depth": 2}),
    Scenario("too deep", {"root": [cell(TOO_DEEP)]}, always("MaxDepthExceeded"), {"max_depth": 0}),
    Scenario("sub-calls", {"root": [cell(READ_EIGHT)]}, always(rlm.MaxSubcallsExceeded), {"max_subcalls": 3}),
    Scenario("tokens", {"root": [dear]}, always(rlm.TokenBudgetExhausted), {"token_budget": 100_000}),
    Scenario("money", {"root": [dear]}, always(rlm.CostBudgetExhausted), {"cost_budget_usd": 0.01}),
    Scenario("turns", {"root": [cell("1")]}, always(rlm.MaxIterationsExceeded), {"max_iterations": 3}),
    Scenario("failures", {"root": [cell("missing")]}, always(rlm.REPLExecutionError), {"max_errors": 3}),
    Scenario("no such tool", {"root": [scripted.Turn(tool_calls=[scripted.call("guess")])]},
             always(rlm.ToolNotFoundError), {"max_errors": 2}),
    Scenario("time", {"root": [cell(WAIT)], "late": [scripted.Turn("yes", delay=30)]}, always(rlm.TimeoutExceeded),
             {"timeout_seconds": 1.5}),
    Scenario("schema", {"root": ['{"n": "seven"}', cell('FINAL({"n": 7})')]}, always('{"n": 7}'), {"schema": SCHEMA}),
    Scenario("text", {"root": ["```repl\nx = 6\n```", "```python\nx *= 7\n```", "FINAL(x)"]}, always("42"),
             {"protocol": "text"}),
    Scenario("tools", {"root": [cell(USE_TOOLS)]}, always("41"), drive="tools"),
    Scenario("streamed", {"root": [cell(READ_EIGHT), "forty-two"]}, always("forty-two"), drive="events"),
    Scenario("context", {"root": [cell("FINAL(len(context))")]}, always("1500000"), drive="context"),
    Scenario("conversation", {"root": [cell("kept = 7"), "noted", cell("FINAL(kept)")]}, always("7"),
             {"persistent": True}, drive="conversation"),
    Scenario("resumed", {"root": [cell(READ_EIGHT), cell("FINAL(sum(1 for r in read if r))")]}, leaves_read,
             {"max_iterations": 1}, drive="resume"),
    Scenario("stream", {"root": ["one two three four"]}, always("one two three four"), drive="stream"),
    Scenario("left", {"root": ["word " * 400]}, always(GeneratorExit), drive="leave"),
    Scenario("batch", {"root": [cell("x = 6 * 7"), cell("FINAL(x)")]}, always("42"), drive="batch"),
]
# fmt: on
BY_NAME = {scenario.key: scenario for scenario in SCENARIOS}


# --- one completion ------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a completion ended, the account of it and its journal."""

    run: str
    ended: Any  # the response, or the exception
    log: str | None
    stopped: bool = False  # by a limit or by its caller: calls in flight were abandoned


class Job:
    """One scenario with its number: runs it and says what was wrong with it."""

    def __init__(self, soak: Soak, number: int) -> None:
        self.soak, self.number = soak, number
        self.scenario = SCENARIOS[number % len(SCENARIOS)]
        self.turn = number // len(SCENARIOS)
        self.docker = bool(soak.docker) and number % soak.docker == 0
        self.logs: list[str] = []

    @property
    def prompt(self) -> str:
        return self.prompt_of(str(self.number))

    def prompt_of(self, run: str) -> str:
        return f"[run {run}, root of {self.scenario.key}] go"

    def rlm(self, **more: Any) -> rlm.RLM:
        anthropic = self.turn // 3 % 3 == 2
        where = {"base_url": self.soak.url if anthropic else f"{self.soak.url}/v1"}
        where |= (
            {"backend": "anthropic", "model": "claude-haiku-4-5"}
            if anthropic
            else {"backend": "openai", "model": MODEL}
        )
        options = {"max_retries": (4, 2, 0)[self.number % 3], "environment": "docker" if self.docker else "local"}
        options |= {"api_key": scripted.KEY, "config": False, "log_dir": self.soak.logs, **where}
        return rlm.RLM(**{**options, **self.scenario.options, **more})

    def run(self) -> list[str]:
        """What was wrong."""
        drive: Callable[[], list[Outcome]] = getattr(self, f"drive_{self.scenario.drive}")
        outcomes = drive()
        found = [problem for outcome in outcomes for problem in self.judge(outcome)]
        where = " in a container" if self.docker else ""
        return [f"{self.number} ({self.scenario.name}{where}): {problem}" for problem in found]

    # how it is driven

    def ended(self, work: Callable[[], Any], run: str | None = None) -> Outcome:
        run = run or str(self.number)
        try:
            result = work()
            return Outcome(run, str(result), result.log)
        except rlm.RLMError as error:
            log = os.path.join(self.soak.logs, f"{error.trajectory_id}.jsonl") if error.trajectory_id else None
            return Outcome(run, error, log, isinstance(error, rlm.LimitExceeded))

    def drive_complete(self, **more: Any) -> list[Outcome]:
        with self.rlm(**more) as own:
            return [self.ended(lambda: own.completion(self.prompt))]

    def drive_tools(self) -> list[Outcome]:
        async def double(n: int) -> int:
            return 2 * n

        return self.drive_complete(tools=[rlm.tool(double)])

    def drive_events(self) -> list[Outcome]:
        return self.drive_complete(on_event=lambda event: None)

    def drive_context(self) -> list[Outcome]:
        with self.rlm() as own:
            return [self.ended(lambda: own.completion(self.prompt, "word " * 300_000))]

    def drive_replay(self) -> list[Outcome]:
        with self.rlm() as own:
            outcome = self.ended(lambda: own.completion(self.prompt))
            if isinstance(outcome.ended, str) and outcome.log:
                again = own.replay(Path(outcome.log).stem)
                assert (str(again.result), again.divergence) == (outcome.ended, []), again
        return [outcome]

    def drive_conversation(self) -> list[Outcome]:
        with self.rlm() as own:
            outcome = self.ended(lambda: own.completion(self.prompt))
            if outcome.ended == "noted":
                outcome = self.ended(lambda: own.completion("and now the rest"))
        return [outcome]

    def drive_resume(self) -> list[Outcome]:
        """Stopped after a turn, then resumed until it is answered or fails as it should."""
        with self.rlm() as own:
            outcome = self.ended(lambda: own.completion(self.prompt))
            assert isinstance(outcome.ended, (rlm.MaxIterationsExceeded, rlm.ProviderError)), outcome
            if not outcome.log:
                return [outcome]
            return [self.ended(lambda: own.resume(Path(str(outcome.log)).stem, max_iterations=5))]

    def drive_batch(self) -> list[Outcome]:
        runs = [f"{self.number}x{n}" for n in range(3)]
        with self.rlm() as own:
            results = list(own.batch(map(self.prompt_of, runs), max_workers=3, one_ledger=True))
        return [self.ended(lambda r=result: reraised(r), run) for run, result in zip(runs, results)]

    def drive_stream(self) -> list[Outcome]:
        events: list[dict[str, Any]] = []
        with self.rlm(on_event=events.append) as own:
            ended: Any
            try:
                ended = "".join(own.stream(self.prompt))
            except rlm.RLMError as error:
                ended = error
        return [Outcome(str(self.number), ended, self.log_of(events))]

    def drive_leave(self) -> list[Outcome]:
        """Whoever reads the stream goes away after its first words."""
        events: list[dict[str, Any]] = []
        with self.rlm(on_event=events.append) as own:
            words = own.stream(self.prompt)
            ended: Any = GeneratorExit()
            try:
                next(words)
                words.close()
            except rlm.RLMError as error:
                ended = error
        return [Outcome(str(self.number), ended, self.log_of(events), stopped=True)]

    def log_of(self, events: list[dict[str, Any]]) -> str:
        return os.path.join(self.soak.logs, f"{events[0]['trajectory_id']}.jsonl")

    # what is right

    def judge(self, outcome: Outcome) -> Iterator[str]:
        account = self.soak.account(outcome.run)
        self.soak.note(self, outcome, account)
        yield from self.wrong_ending(outcome.ended, account)
        for call, attempts in account.calls.items():
            if any(attempt in HARMLESS for attempt in attempts[:-1]) and call.partition(" ")[0] != "late":
                yield f"{call} was asked again after it was answered: {attempts}"
        if outcome.log:
            yield from self.wrong_journal(outcome, account)
        elif account.calls:
            yield f"it has no journal, and the provider did {account.calls}"

    def wrong_ending(self, ended: Any, account: Account) -> Iterator[str]:
        right = self.scenario.right(account)
        if account.lost("root"):
            last = next(
                a[-1] for call, a in account.calls.items() if call.startswith("root/") and a[-1] not in HARMLESS
            )
            may = (
                (rlm.ProviderError, rlm.TimeoutExceeded)
                if "timeout_seconds" in self.scenario.options
                else rlm.ProviderError
            )
            if not isinstance(ended, may):
                yield f"its provider failed for good ({last}), and it ended as {ended!r}"
            elif last.isdigit() and getattr(ended, "status", None) != int(last):
                yield f"the provider answered {last}, the error says {getattr(ended, 'status', None)}"
        elif isinstance(right, type) and not isinstance(ended, right):
            yield f"it should have ended as {right.__name__}, not {ended!r}; the provider did {account.calls}"
        elif isinstance(right, str) and ended != right:
            yield f"it should have answered {right!r}, not {ended!r}; the provider did {account.calls}"

    def wrong_journal(self, outcome: Outcome, account: Account) -> Iterator[str]:
        log = str(outcome.log)
        self.logs.append(log)
        blob = Path(log).read_bytes()
        if scripted.KEY.encode() in blob:
            yield "the key is in its journal"
        events, problems = rlm_viz.read(log)
        yield from problems
        yield from wrong_events(rlm_viz.merge(events))
        calls = sum(event["event"] == "call" for event in events)
        if not outcome.stopped and calls != account.answered():
            yield f"its journal has {calls} calls, the server answered {account.answered()}"


def reraised(result: Any) -> Any:
    if isinstance(result, Exception):
        raise result
    return result


COMMON = ("v", "event", "trajectory_id", "call_id", "parent_call_id", "depth", "timestamp")


def wrong_events(events: list[dict[str, Any]]) -> Iterator[str]:
    """What a journal of a run that has ended may not lack."""
    calls = [event["call_id"] for event in events if event["event"] == "call"]
    if len(set(calls)) != len(calls) or None in calls:
        yield f"call ids are not unique: {calls}"
    for place, event in enumerate(events):
        if missing := [name for name in COMMON if name not in event]:
            yield f"line {place + 1} lacks {missing}"
        if event.get("parent_call_id") not in (None, *calls):
            yield f"line {place + 1}: the parent {event['parent_call_id']} is no call"
        if event["event"] == "tool" and event["call_id"] not in calls:
            yield f"line {place + 1}: a tool of no call"
    started = {event["node"] for event in events if event["event"] == "start"}
    ended = {event["node"] for event in events if event["event"] == "end"}
    if started != ended:
        yield f"nodes {sorted(started)} were started, {sorted(ended)} ended"
    if len({event["trajectory_id"] for event in events}) != 1:
        yield "several trajectories in one journal"
    totals = rlm_viz.totals(events)
    prompts = [event for event in events if event["event"] == "start" and event["node"] == "n0"]
    ends = [event["totals"] for event in events if event["event"] == "end" and event["node"] == "n0"]
    told = ends if len(prompts) > 1 else ends[-1:]  # the prompts of a conversation count for themselves
    for name in ("calls", "tokens"):
        if totals[name] != (said := sum(end[name] for end in told)):
            yield f"its end says {said} {name}, its lines {totals[name]}"


# --- the process under observation ---------------------------------------------------------------------------------


class Look(NamedTuple):
    """What the process holds, with nothing under way."""

    completions: int
    rss: float  # MB
    heap: float  # MB that malloc has given out, 0 where the C library does not tell
    blocks: int  # that Python's own allocator has given out
    helper: float  # MB of the process that starts sandboxes, the largest of those that stay
    descriptors: int
    threads: int
    processes: int
    zombies: int
    containers: int
    files: int  # in the temporary folder and in shared memory


# How far each may seem to grow over the last two thirds. Noise is of that size; a leak of one thing for each completion
# is far above it in a thousand.
BOUNDS = {
    "rss": 2.0,  # a context of 1.5 MB
    "heap": 1.5,  # a table of interned names that doubles is 0.6
    "blocks": 2500,
    "helper": 1.0,
    "descriptors": 5,  # idle connections: how many calls happened to overlap
    "threads": 3,  # the pool's and those that wait for a container
    "processes": 1.0,  # the next sandbox may or may not be waiting already
    "zombies": 0.5,
    "containers": 0.5,
    "files": 0.5,
}


def grown(looks: list[Look], name: str) -> float:
    """What a straight line through the last two thirds rises by."""
    late = looks[len(looks) // 3 :]
    xs, ys = [one.completions for one in late], [float(getattr(one, name)) for one in late]
    middle_x, middle_y = sum(xs) / len(xs), sum(ys) / len(ys)
    rise = sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys)) / sum((x - middle_x) ** 2 for x in xs)
    return rise * (xs[-1] - xs[0])


def look(completions: int, scratch: Path, server: int, docker: bool) -> Look:
    gc.collect()
    give_back()
    children = settled_children(server)
    zombies = sum(state(pid) == "Z" for pid in children)
    return Look(
        completions,
        rss_of(os.getpid()),
        heap_in_use(),
        sys.getallocatedblocks(),
        max(map(rss_of, children), default=0.0),
        len(os.listdir("/proc/self/fd")) - 1,
        len(os.listdir("/proc/self/task")),
        len(children) - zombies,
        zombies,
        containers() if docker else 0,
        sum(1 for _ in scratch.rglob("*")) + len(os.listdir("/dev/shm")),
    )


def settled_children(server: int) -> list[int]:
    """The descendants but for the model's server, once they stay the same: ended sandboxes take a moment to go."""
    seen: list[int] = []
    same_since = began = time.monotonic()
    while time.monotonic() - same_since < 0.3 and time.monotonic() - began < 10:
        found = [pid for pid in descendants(os.getpid()) if pid != server]
        if found != seen:
            seen, same_since = found, time.monotonic()
        time.sleep(0.02)
    return seen


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue  # that thread has ended
        for child in children:
            found += [child, *descendants(child)]
    return found


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def rss_of(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in (*"abcd", "mapped", *"ef", "used", *"gh")]


def give_back() -> None:
    """What is free at the end of the heap, to the system: some 2 MB come and go there with every large context."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def heap_in_use() -> float:
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0.0
    mallinfo2.restype = MallInfo
    info = mallinfo2()
    return (info.used + info.mapped) / 2**20


def containers() -> int:
    """Those of this process."""
    label = f"label={rlm_sandbox.LABEL}={rlm_sandbox.owner_label(os.getpid())}"
    command = ["docker", "ps", "--all", "--quiet", "--filter", label]
    return len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def docker_answers() -> bool:
    try:
        command = ["docker", "image", "inspect", "python:3.11-slim"]
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


# --- all of them ---------------------------------------------------------------------------------------------------


class Soak:
    def __init__(self, url: str, server: int, scratch: Path, *, docker: int) -> None:
        self.url, self.server, self.docker = url, server, docker
        self.logs = str(scratch / "logs")
        self.endings: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.attempts: collections.Counter[str] = collections.Counter()
        self.contained = 0  # completions that ran in a container
        self._lock = threading.Lock()

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return json.load(reply)

    def account(self, run: str) -> Account:
        return Account(self.ask(f"/account/{run}"))

    def note(self, job: Job, outcome: Outcome, account: Account) -> None:
        name = "answered" if isinstance(outcome.ended, str) else type(outcome.ended).__name__
        with self._lock:
            self.contained += job.docker
            self.endings[job.scenario.name][name] += 1
            for attempts in account.calls.values():
                self.attempts.update(attempts)

    def summary(self) -> str:
        done = sum(endings.total() for endings in self.endings.values())
        spoilt = [f"{what} {count}" for what, count in self.attempts.most_common() if what != "ok"]
        return (
            f"{done:,} completions ended, {self.contained} of them in containers; "
            f"of {self.attempts.total():,} requests these were spoilt: {', '.join(spoilt)}."
        )

    def do(self, number: int) -> list[str]:
        job = Job(self, number)
        try:
            return job.run()
        except Exception as error:  # nothing may get out of a completion but what is judged
            return [f"{number} ({job.scenario.name}): {type(error).__name__}: {error}"]
        finally:
            for log in job.logs:
                Path(log).unlink()


@contextlib.contextmanager
def provider(faults: float, seed: int) -> Iterator[tuple[str, int]]:
    """The address and the process of a provider that fails."""
    command = [sys.executable, __file__, "--serve", str(faults), str(seed)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout
    try:
        yield server.stdout.readline().strip(), server.pid
    finally:
        server.stdin.close()
        server.wait(10)


def serve(faults: float, seed: int) -> None:
    with Provider(faults, seed) as server:
        print(server.url, flush=True)
        sys.stdin.read()  # ends with its parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="completions")
    parser.add_argument("--warm", type=int, default=100, help="completions before the first look")
    parser.add_argument("--faults", type=float, default=0.05, help="share of the requests that go wrong")
    parser.add_argument("--docker", type=int, default=25, help="every so many in a container; 0: none")
    parser.add_argument("--width", type=int, default=4, help="completions side by side")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks.md, if all is well")
    parser.add_argument("--serve", nargs=2, metavar=("FAULTS", "SEED"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(float(given.serve[0]), int(given.serve[1]))
        return 0
    if os.environ.get("MALLOC_ARENA_MAX") != "1":
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "MALLOC_ARENA_MAX": "1"})
    docker = given.docker if given.docker and docker_answers() else 0
    with (
        tempfile.TemporaryDirectory(prefix="flat-rlm-soak-") as folder,
        provider(given.faults, given.seed) as (url, pid),
    ):
        scratch = Path(folder)
        (scratch / "tmp").mkdir()
        (scratch / "work").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch / "tmp")
        os.chdir(scratch / "work")
        soak = Soak(url, pid, scratch, docker=docker)
        looks, problems = observed(soak, given, scratch / "tmp")
        told = soak.ask("/problems")
        os.chdir("/")
        rlm_sandbox.shutdown()
    problems = verdict(soak, looks, problems + told["problems"])
    if given.write and not problems:
        write(soak, looks)
    return 1 if problems else 0


def observed(soak: Soak, given: argparse.Namespace, scratch: Path) -> tuple[list[Look], list[str]]:
    """All completions, and a look at the process after each tenth of those that come after the warm-up."""
    looks, problems = [], []
    steps = [0, *(given.warm + given.count * step // SAMPLES for step in range(SAMPLES + 1))]
    print(row(Look._fields))
    with ThreadPoolExecutor(given.width) as pool:
        for begin, end in itertools.pairwise(steps):
            faulthandler.dump_traceback_later(PATIENCE, exit=True)
            problems += soak.do(begin)  # on the main thread, which has a way of its own
            for found in pool.map(soak.do, range(begin + 1, end)):
                problems += found
            looks.append(look(end, scratch, soak.server, bool(soak.docker)))
            print(row(looks[-1]), flush=True)
    faulthandler.cancel_dump_traceback_later()
    return looks, problems


def row(cells: Iterable[Any]) -> str:
    return " ".join(shown(cell).rjust(11) for cell in cells)


def shown(cell: Any) -> str:
    return f"{cell:,.1f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def verdict(soak: Soak, looks: list[Look], problems: list[str]) -> list[str]:
    """All that is wrong, growth included, and the account of it printed."""
    rises = {name: grown(looks, name) for name in BOUNDS}
    print(row(["rise", *rises.values()]))
    print(row(["allowed", *map(float, BOUNDS.values())]))
    print("\nEndings:")
    for name, endings in soak.endings.items():
        print(f"  {name:14}", ", ".join(f"{ending} {count}" for ending, count in endings.most_common()))
    print(f"\n{soak.summary()}")
    problems += [f"{name} grows: by {rises[name]:.1f}" for name, allowed in BOUNDS.items() if rises[name] > allowed]
    print(f"\n{len(problems)} problems", *problems, sep="\n  ")
    return problems


PAGE = """## A thousand completions in one process

Made by `make soak` on {date}; Python {python}, {machine}.
{summary}
The server records every request and every fault. Each completion ended as that record requires: with the right answer,
with the error of its scenario, or with the error of a failure that outlasted the retries. Each journal agreed with the
record. The table shows the process between completions. Memory is in MB, with one malloc arena; "helper" is the process
that starts sandboxes.

{table}

"Rise" is the rise of a straight line through the last two thirds of the rows; "allowed" is the size of noise. With
glibc's default number of malloc arenas, resident memory settles near 90 MB instead. `MALLOC_ARENA_MAX=1` avoids this in
a long-lived process with many threads."""


def write(soak: Soak, looks: list[Look]) -> None:
    rises = ["rise", *(grown(looks, name) for name in BOUNDS)]
    lines = [Look._fields, ["---:"] * len(Look._fields), *looks, rises, ["allowed", *map(float, BOUNDS.values())]]
    text = PAGE.format(
        date=f"{datetime.date.today():%d %B %Y}",
        python=platform.python_version(),
        machine=bench.machine(),
        summary=soak.summary(),
        table="\n".join("| " + " | ".join(map(shown, line)) + " |" for line in lines),
    )
    bench.write_region(ROOT / "docs" / "benchmarks.md", "soak", text)


if __name__ == "__main__":
    sys.exit(main())
