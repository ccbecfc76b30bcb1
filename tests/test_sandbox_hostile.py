"""Cells without the language policy that write to the host's channel themselves: no frame may stall or fill the host.

Each attack runs against a host in a process of its own, whose memory and time are then its alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, need
from scripted import Server, answer_with, code

import rlm
from rlm_sandbox import LocalSandbox

MEMORY = 256  # MB

pytestmark = [
    pytest.mark.slow,  # most of them wait for a limit
    pytest.mark.skipif(sys.platform != "linux", reason="the confinement is Linux's"),
]

LIMIT = 2.0  # seconds for the cell
BACK = 1.0  # seconds after that in which the host has to be back
GROWTH = 50  # MB that the host may grow by

# What an attack starts with: the channel to the host, and a way to make frames.
CHANNEL = """
import json, os, signal, struct, sys, time
calls = sys.modules["rlm_worker"].session_calls
host = calls.host.writer
def frame(body, **fields):
    body = body or json.dumps(dict({"id": calls.request}, **fields)).encode()
    return struct.pack(">I", len(body)) + body
def write(data):
    view = memoryview(data)
    while view:
        view = view[os.write(host, view):]
def result(final):
    return b'{"op":"result","id":%d,"status":"ok","final":%s}' % (calls.request, final)
"""

HOST = """
import json, os, resource, sys, time
import rlm_sandbox
plan = json.loads(sys.argv[1])
# The peak is that of this process from here on: what was imported before counts for nothing.
def memory():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10
if plan["docker"]:
    box = rlm_sandbox.DockerSandbox(cell_timeout=plan["limit"])
else:
    box = rlm_sandbox.LocalSandbox(cell_timeout=plan["limit"], layers=("confinement",))
with box:
    box.execute(plan["channel"])
    open("/proc/self/clear_refs", "w").write("5")
    before, began = memory(), time.monotonic()
    cell = box.execute(plan["code"], functions={"f": lambda *_: None})
    took, grown = time.monotonic() - began, memory() - before
    box.execute("0", timeout=2)  # whose request a cell that has answered twice may have swallowed
    after = box.execute("6 * 7", timeout=20)
    final = None if cell.final is rlm_sandbox.UNSET else str(cell.final)[:100]
    print(json.dumps({"status": cell.status, "error": cell.error, "final": final, "seconds": took, "grown": grown,
                      "after": after.value}))
"""


def attack(code: str, *, docker: bool = False, limit: float = LIMIT, channel: str = CHANNEL) -> dict[str, Any]:
    """What became of a host whose cell ran this."""
    code = f"signal.signal(signal.SIGINT, signal.SIG_IGN)\n{code}"
    plan = json.dumps({"code": code, "docker": docker, "limit": limit, "channel": channel})
    done = subprocess.run(
        [sys.executable, "-c", HOST, plan],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


FLOODS = {
    "frames of another request": (
        "data = frame(b'', id=-1, op='output', text='x' * 1000) * 100\nwhile True: write(data)"
    ),
    "frames of no known kind": "data = frame(b'', op='surprise') * 1000\nwhile True: write(data)",
    "calls of unknown functions": "data = frame(b'', op='call', call=1, name='g') * 1000\nwhile True: write(data)",
    "twenty writers of single bytes": (
        "write(struct.pack('>I', 8_000_000) + b'\"')\n"
        "for _ in range(20):\n    if os.fork() == 0: break\n"
        "while True: os.write(host, b'x')"
    ),
    "frames that take long to read": (
        "data = frame(result(b'[' + b'1.5,' * 1_500_000 + b'1]').replace(b'result', b'output'))\n"
        "while True: write(data)"
    ),
    "output in single characters": "data = frame(b'', op='output', text='x') * 1000\nwhile True: write(data)",
    "half a frame": "write(struct.pack('>I', 1000) + b'{')\nwhile True: time.sleep(1)",
}


@pytest.mark.parametrize("code", FLOODS.values(), ids=FLOODS)
def test_the_host_is_back_in_time_whatever_arrives(code: str) -> None:
    found = attack(code)
    assert found["seconds"] < LIMIT + BACK + 0.5, found  # the half second is for a busy machine
    assert found["grown"] <= GROWTH and found["after"] == "42", found


@pytest.mark.parametrize("code", FLOODS.values(), ids=FLOODS)
def test_the_host_is_back_in_time_whatever_arrives_from_a_container(code: str) -> None:
    need("docker")
    found = attack(code, docker=True)
    assert found["seconds"] < LIMIT + BACK + 0.5, found
    assert found["grown"] <= GROWTH and found["after"] == "42", found


FINALS = {
    "short texts": "FINAL(['ab'] * 5_900_000)",
    "nothing": "FINAL([None] * 5_900_000)",
    "fractions": "FINAL([1.5] * 4_000_000)",
    "a dict": "FINAL({str(i): i for i in range(600_000)})",
    "a dict of numbers": "FINAL(dict.fromkeys(range(600_000), 0))",
    "a set": "FINAL(set(range(600_000)))",
    "dicts": "FINAL([{'a': 1}] * 1_000_000)",
    "a long text": "FINAL('x' * 60_000_000)",
    "a wide text": "FINAL('\\U0001f600' + 'x' * 7_000_000)",
    "a long text in Greek": "FINAL('\u03b1' * 7_000_000)",
}
FORGED = {
    "short texts": "write(frame(result(b'[' + b'\"ab\",' * 1_600_000 + b'1]')))",
    "texts with marks": "write(frame(result(b'[' + b'\"[,\",' * 1_300_000 + b'1]')))",
    "texts in 30 MB": "write(frame(result(b'[' + b'\"ab\",' * 6_000_000 + b'1]')))",
    "numbers": "write(frame(result(b'[' + b'1,' * 4_000_000 + b'1]')))",
    "fractions": "write(frame(result(b'[' + b'.5,'.replace(b'.', b'1.') * 2_000_000 + b'1]')))",
    "objects": "write(frame(result(b'[' + b'{\"a\":1},' * 900_000 + b'1]')))",
    "keys": "write(frame(result(b'{' + b','.join(b'\"%d\":1' % i for i in range(700_000)) + b'}')))",
    "lists": "write(frame(result(b'[' + b'[],' * 2_700_000 + b'1]')))",
    "depth": "write(frame(result(b'[' * 4_000_000 + b']' * 4_000_000)))",
    "depth with much text": "write(frame(result(b'{\"%s\":' % (b'x' * 200) * 40_000 + b'1' + b'}' * 40_000)))",
    "a wide text": "write(frame(result(b'\"\\\\ud83d\\\\ude00' + b'x' * 8_300_000 + b'\"')))",
    "half a character": "write(frame(result(b'\"\\\\ud83d' + b'x' * 8_300_000 + b'\"')))",
    "a long number": "write(frame(result(b'9' * 24_000)))",
    "a long number in hexadecimal": 'write(frame(result(b\'{"$":"int","v":"0x\' + b\'f\' * 20_000 + b\'"}\')))',
    "a fraction of many digits": "write(frame(result(b'0.' + b'1' * 8_000_000)))",
    "one hash": (
        'same = b\',\'.join(b\'{"$":"int","v":"%x"}\' % (i * (2**61 - 1) << 64) for i in range(9_000))\n'
        "write(frame(result(b'{\"$\":\"set\",\"v\":[%s,%s]}' % (same, b','.join(b'%d' % i for i in range(9_000))))))"
    ),
    "calls": (
        'body = b\'{"op":"call","id":%d,"call":1,"name":"f","kwargs":{},"args":[%s1]}\'\n'
        "data = frame(body % (calls.request, b'{},' * 45_000))\n"
        "for _ in range(100): write(data)"
    ),
    "calls of long texts": (
        'body = b\'{"op":"call","id":%d,"call":1,"name":"f","kwargs":{},"args":["%s"]}\'\n'
        "data = frame(body % (calls.request, b'x' * 7_000_000))\n"
        "for _ in range(30): write(data)"
    ),
}


@pytest.mark.parametrize("code", FINALS.values(), ids=FINALS)
def test_a_large_value_costs_the_host_little(code: str) -> None:
    found = attack(code, limit=20)
    assert (found["status"], found["after"]) == ("ok", "42"), found
    assert found["final"] and found["grown"] <= GROWTH, found


@pytest.mark.parametrize("code", FORGED.values(), ids=FORGED)
def test_a_forged_frame_costs_the_host_little(code: str) -> None:
    found = attack(code)
    assert found["seconds"] < LIMIT + BACK + 0.5 and found["grown"] <= GROWTH, found
    assert found["final"] in (None, "0.1111111111111111") and found["after"] == "42", found


FORGED_ANSWERS = {
    "in decimal": "9" * 24_000,
    "in hexadecimal": '{"$": "int", "v": "0x' + "f" * 20_000 + '"}',
    "at the limit": '{"$": "int", "v": "0x' + "f" * 3_500 + '"}',
}


@pytest.mark.parametrize("final", FORGED_ANSWERS.values(), ids=FORGED_ANSWERS)
def test_a_forged_answer_never_comes_out_of_a_completion_as_anything_but_an_answer(openai: Server, final: str) -> None:
    openai.script = answer_with(code(f"{CHANNEL}\nwrite(frame(result({final.encode()!r})))"), "the end")
    with LocalSandbox(layers=("confinement",)) as box:
        result = rlm.complete("go", model="gpt-4o-mini", environment=box, config=False)
    assert result.response == "the end" or (result.response.isdigit() and len(result.response) < 4_300)


def test_the_time_of_a_run_counts_what_a_tool_took_for_a_cell(openai: Server) -> None:
    @rlm.tool
    def slow() -> str:
        """Wait."""
        time.sleep(3.5)
        return "late"

    openai.script = answer_with(code("slow()\nwhile True: pass"), "never")
    began = time.monotonic()
    with pytest.raises(rlm.TimeoutExceeded):
        rlm.complete("go", model="gpt-4o-mini", tools=[slow], timeout_seconds=4, config=False)
    assert time.monotonic() - began < 4 + BACK + 1.5  # it was 7.5; the rest is for a busy machine


# --- memory -----------------------------------------------------------------------------------------------------------

TOUCH = """
import ctypes, mmap, os, resource, signal, time
def touch(megabytes):
    taken = 0
    pieces = []
    try:
        while taken < megabytes:
            pieces.append(bytearray(b"x") * (8 << 20))
            taken += 8
    except MemoryError:
        pass
    return taken, pieces
def fork(work, count):
    made = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                try: work()
                finally: os._exit(0)
            made.append(pid)
    except OSError:
        pass
    return made
"""


class Watched:
    """A sandbox without the policy, and the most memory that its processes were seen to have together."""

    def __init__(self, **options: Any):
        self.box = LocalSandbox(layers=("confinement",), memory=f"{MEMORY}m", cell_timeout=20, **options)
        self.box.execute(TOUCH)
        self.over = threading.Event()
        self.idle = self.total()
        self.most = 0

    def total(self) -> int:
        """MB in memory, where what several processes share counts once. Only root may look at that."""
        channel: Any = self.box._started()
        kilobytes = 0
        for pid in channel.workers():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kilobytes >> 10

    def watch(self) -> None:
        while not self.over.wait(0.01):
            self.most = max(self.most, self.total())

    def execute(self, code: str, **how: Any) -> Any:
        thread = threading.Thread(target=self.watch)
        thread.start()
        try:
            return self.box.execute(code, **how)
        finally:
            self.over.set()
            thread.join()


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.box.close()


RAISES = {
    "the soft limit": "resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)",
    "through prlimit": "resource.prlimit(0, resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)",
    "by one byte": "soft, hard = resource.getrlimit(resource.RLIMIT_AS); resource.setrlimit(9, (soft + 1, hard))",
    "of the process before it": "resource.prlimit(os.getppid(), resource.RLIMIT_AS, (1 << 33, 1 << 33))",
}


@pytest.mark.parametrize("code", RAISES.values(), ids=RAISES)
def test_a_cell_does_not_raise_its_own_limit(watched: Watched, code: str) -> None:
    cell = watched.execute(f"try: {code}\nexcept (ValueError, OSError) as error: print(error)\ntouch(1000)[0]")
    assert "not allowed" in cell.stdout or "not permitted" in cell.stdout, cell
    assert int(cell.value or 0) <= MEMORY and watched.most <= watched.idle + 1.5 * MEMORY, (cell, watched.most)


MANY = {
    "48 processes": "made = fork(lambda: (touch(200), time.sleep(3)), 48)\ntime.sleep(4)",
    "processes of processes": (
        "def work(): fork(lambda: (touch(200), time.sleep(3)), 6); touch(200); time.sleep(3)\n"
        "fork(work, 6)\ntime.sleep(4)"
    ),
    "orphans": (
        "def work(): fork(lambda: (touch(200), time.sleep(3)), 1)\nfor _ in range(30): fork(work, 1)\ntime.sleep(4)"
    ),
    "shared memory": (
        "shared = [mmap.mmap(-1, 64 << 20) for _ in range(3)]\n"
        "def work(): held = touch(180); time.sleep(3)\nfork(work, 12)\ntime.sleep(4)"
    ),
}


@pytest.mark.parametrize("code", MANY.values(), ids=MANY)
def test_the_memory_is_that_of_all_processes_together(watched: Watched, code: str) -> None:
    cell = watched.execute(code)
    assert (cell.status, cell.restored) == ("memory", True), cell
    assert watched.most <= watched.idle + 6 * MEMORY, watched.most  # what came until the next look included
    assert watched.box.execute("6 * 7").value == "42"


def test_a_cell_may_still_use_what_it_has(watched: Watched) -> None:
    box = watched.box
    box.set("context", "x" * (40 << 20))
    assert box.execute("taken, kept = touch(150)\ntaken, len(context)").value == f"(152, {40 << 20})"
    assert box.execute("taken, more = touch(250)\ntaken < 200").value == "True"
    assert box.execute("del kept, more\ntouch(400)[0]", memory="512m").value == "400"
    assert box.execute("touch(400)[0] < 350").value == "True"


def test_a_cells_own_limit_comes_on_top_of_the_variables(watched: Watched) -> None:
    box = watched.box
    assert box.execute("taken, kept = touch(180)\ntaken").value == "184"
    assert box.execute("time.sleep(0.5)\nlen(kept)", memory="64m").value == "23"
    assert int(box.execute("touch(200)[0]", memory="64m").value or 0) <= 64


UNASKED = {
    "a metaclass's comparison": (
        "class M(type):\n"
        "    def __eq__(self, other):\n        while True: pass\n"
        "    def __hash__(self):\n        while True: pass\n"
        "class A(metaclass=M): pass\n"
        "x = A()"
    ),
    "a class's name": (
        "class S(str):\n    def __str__(self):\n        while True: pass\nclass A: pass\nA.__name__ = S('A')\nx = A()"
    ),
    "the end of an object": "class A:\n    def __del__(self):\n        while True: pass\nx = A()",
    "the end of an object in a cycle": (
        "class A:\n    def __del__(self):\n        while True: pass\n"
        "x = A()\nx.x = x\ndel x\nlarge = [[] for _ in range(9)]\nx = None"
    ),
}


@pytest.mark.parametrize("layers", [("policy", "confinement"), ("confinement",)], ids=["policy", "no policy"])
@pytest.mark.parametrize("code", UNASKED.values(), ids=UNASKED)
def test_what_the_host_asks_between_cells_runs_none_of_their_code(code: str, layers: tuple[str, ...]) -> None:
    with LocalSandbox(layers=layers) as box:
        assert box.execute(code).ok
        began = time.monotonic()
        assert "x" in box.names()
        box.set("large", [[] for _ in range(5_000)])  # enough for a collection
        assert len(box.get("large")) == 5_000
        box.set("x", 1)
        assert box.get("x") == 1
        assert time.monotonic() - began < 5


def test_what_set_replaced_ends_in_the_next_cell_and_in_that_alone() -> None:
    with LocalSandbox(layers=("confinement",)) as box:
        assert box.execute("class A:\n    def __del__(self):\n        print('gone')\nx = A()").ok
        box.set("x", 1)
        assert [box.execute("x").stdout for _ in range(2)] == ["gone\n", ""]
        assert box.execute("class B:\n    def __del__(self):\n        sum(range(10**13))\nx = B()").ok  # no interrupt
        box.set("x", 2)
        assert box.execute("x", timeout=1).status == "timeout"
        assert box.execute("x", timeout=5).value == "2"


def test_a_cell_that_switches_collection_off_keeps_it_off() -> None:
    with LocalSandbox(layers=("confinement",)) as box:
        cells = ("import gc; gc.isenabled()", "gc.isenabled()", "gc.disable()", "gc.isenabled()")
        assert [box.execute(cell).value for cell in cells] == ["True", "True", None, "False"]


def test_a_cell_shares_no_memory_with_the_host_by_which_values_come() -> None:
    attempt = """
import os
names = []
for fd in range(3, 60):
    try:
        names.append(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        pass
[name for name in names if name.partition(":")[0] not in ("pipe", "socket")]
"""
    with LocalSandbox(layers=("confinement",)) as box:
        box.set("text", "x" * 100)
        assert box.execute(attempt).value == "[]"
        box.set("text", "y" * 100)
        assert box.execute("text[:2]").value == "'yy'"
