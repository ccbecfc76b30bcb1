"""The local sandbox's figures, in one run: `python benchmarks/sandbox.py [--sandboxes 1000]`.

Medians in milliseconds beside the bar that each is to keep and, where there is one, plain Python's figure for the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import rlm_sandbox  # noqa: E402 - the path comes first
from rlm_sandbox import LocalSandbox  # noqa: E402


def median(work: Callable[[], Any], times: int) -> float:
    """Milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def row(name: str, figure: float, bar: float | None = None, beside: str = "", unit: str = "ms") -> None:
    kept = "" if bar is None else f"<= {bar:g} {'ok' if figure <= bar else 'MISSED'}"
    print(f"{name:52} {figure:10.2f} {unit:3} {kept:16} {beside}")


def in_process(code: str) -> float:
    """What a fresh process measured of itself."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout)


COLD = """
import time, rlm_sandbox
began = time.perf_counter()
box = rlm_sandbox.LocalSandbox()
print((time.perf_counter() - began) * 1000)
"""


def starts() -> None:
    bare = median(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), 9)
    row("cold start", statistics.median(in_process(COLD) for _ in range(9)), 120, f"python -c pass: {bare:.0f}")
    made: list[LocalSandbox] = []
    row("next session from the zygote", median(lambda: made.append(LocalSandbox()), 30), 20)
    row("close", median(lambda: made.pop().close(), 30))


def cells() -> None:
    with LocalSandbox(snapshot=False) as alone, LocalSandbox() as box:
        plain: dict[str, Any] = {}
        code = compile("x = 1", "<cell>", "exec")
        row("a cell without snapshot", median(lambda: alone.execute("x = 1"), 500), 0.2, "a copy before each: no")
        row(
            "a cell with snapshot",
            median(lambda: box.execute("x = 1"), 300),
            4,
            f"exec: {median(lambda: exec(code, plain), 500):.4f}",
        )
        calls = {"f": lambda text: text}
        single = median(lambda: alone.execute("f('x')", functions=calls), 300)
        many = median(lambda: alone.execute("for i in range(100): f('x')", functions=calls), 20)
        row("a host call", (many - single) / 99, 0.3, f"first of a cell: {single:.2f}")


def contexts() -> None:
    kinds = {
        "100 MB of text": "0123456789" * 10_000_000,
        "100 MB of text with umlauts": "äöü456789\n" * 8_000_000,
        "a million lines": ["a line of a hundred characters" + "." * 70] * 1_000_000,
        "10,000 files": {f"folder/{i}.txt": "x" * 10_000 for i in range(10_000)},
    }
    with LocalSandbox(memory="2g") as box:
        without = median(lambda: box.execute("1"), 100)
        for name, context in kinds.items():
            handed = median(lambda context=context: box.set("context", context), 3)
            as_json = median(lambda context=context: json.loads(json.dumps(context)), 1)
            row(f"{name}: handed over", handed, None, f"as JSON, both ways: {as_json:.0f}")
            row(
                f"{name}: a cell afterwards",
                median(lambda: box.execute("len(context)"), 60),
                None,
                f"without: {without:.2f}",
            )


STUBBORN = {
    "a loop": "while True: pass",
    "a loop in C": "sum(range(10**13))",
    "a bare except": "import time\nwhile True:\n    try: time.sleep(1000)\n    except: pass",
    "a regular expression": "import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')",
    "a power": "9**9**9",
    "memory": "x = []\nwhile True: x.append('y' * 10**7 + str(len(x)))",
    "output": "while True: print('x' * 100_000)",
    "a result": "'x' * 400_000_000",
    "calls": "while True: f('x' * 100_000)",
    "a final value": "FINAL(['x' * 1000] * 10**6)",
    "deep nesting": "a = []\nfor _ in range(10**6): a = [a]\nFINAL(a)",
}


def ladder() -> None:
    limit = 0.5
    with LocalSandbox(cell_timeout=limit) as box:
        for name, code in STUBBORN.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            began = time.perf_counter()
            cell = box.execute(code, functions={"f": len})
            over = (time.perf_counter() - began - limit) * 1000
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            row(
                f"{name}: back after the limit by",
                max(0.0, over),
                1000,
                f"{cell.status}; host grew by {grown:.0f} MB (<= 50)",
            )


def many(count: int) -> None:
    def use() -> None:
        with LocalSandbox() as box:
            box.execute("x = 1")

    use()
    before, descriptors = memory(), len(os.listdir("/proc/self/fd"))
    taken = median(use, count)
    row(
        f"{count} sandboxes, one after the other: each",
        taken,
        None,
        f"host grew by {(memory() - before) / 2**20:.1f} MB",
    )
    row("descriptors more", len(os.listdir("/proc/self/fd")) - descriptors, 0, unit="")


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


LOOPS = {
    "a loop with arithmetic": "t = 0\nfor i in range(300_000):\n    t += i * 2\n",
    "attributes": "class P: pass\np = P()\np.v = 1\nfor i in range(200_000):\n    p.v = p.v + 1\n",
    "method calls": "class P:\n    def m(self, x): return x\np = P()\nfor i in range(200_000):\n    p.m(i)\n",
    "function calls": "def f(a, b=1): return a\nfor i in range(200_000):\n    f(i)\n",
    "comprehensions": "for _ in range(20): [x * 2 for x in range(20_000) if x % 3]\n",
    "unpacking": "t = 0\nfor a, b in [(1, 2)] * 200_000:\n    t += a\n",
    "d[k] += 1": "d = {}\nfor i in range(200_000):\n    d[i % 10] = 0\nfor i in range(200_000):\n    d[i % 10] += 1\n",
    "item stores": "d = {}\nfor i in range(300_000):\n    d[i % 10] = i\n",
    "strings": "t = ''\nfor w in ('a b c ' * 30_000).split():\n    t = w.upper() + f'{w}!'\n",
}


def guards() -> None:
    """Plain Python's time for the same code is taken in a worker too, without the policy: the ratio is their price."""
    with LocalSandbox(snapshot=False) as box, LocalSandbox(snapshot=False, layers=("confinement",)) as plain:
        for name, code in LOOPS.items():
            timed = f"import time\nbegan = time.perf_counter()\n{code}(time.perf_counter() - began) * 1000"
            guarded = min(float(box.execute(timed).value or "nan") for _ in range(5))
            bare = min(float(plain.execute(timed).value or "nan") for _ in range(5))
            bar = 2.0 if name in ("d[k] += 1", "item stores") else 1.3
            row(f"under the policy: {name}", guarded / bare, bar, f"{bare:.1f} ms bare", unit="x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sandboxes", type=int, default=100, help="how many to make one after the other (default 100)")
    count = parser.parse_args().sandboxes
    load = os.getloadavg()[0]  # absolute bars are for a machine with little else to do
    level = rlm_sandbox.capabilities()["level"]
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {load:.1f}, level {level}")
    for part in (starts, cells, contexts, ladder, guards):
        part()
    many(count)


if __name__ == "__main__":
    main()
