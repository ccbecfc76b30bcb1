"""What the language policy costs: `python benchmarks/policy.py`. The same code, plain and under the policy, in turn.

Each figure is the ratio of the best of several runs, beside the bar that it is to keep.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import rlm_policy

ROUNDS = 7
COUNT = 100_000
CASES: dict[str, tuple[float | None, str]] = {  # name: bar, code
    "for loop, +=": (1.3, "s = 0\nfor i in range(N): s += i"),
    "method calls that set attributes": (
        1.3,
        "class A:\n    def __init__(self): self.n = 0\n    def add(self, k): self.n += k\n"
        "a = A()\nfor i in range(N): a.add(i)",
    ),
    "attributes read and written": (1.3, "class A: x = 0\na = A()\nfor i in range(N): a.x = a.x + 1"),
    "calls": (1.3, "def f(x, y=1): return x + y\nfor i in range(N): f(i)"),
    "calls with stars": (1.3, "def f(*a, **k): return a\nfor i in range(N): f(*(1, 2), **{'z': i})"),
    "comprehensions": (1.3, "for j in range(N // 100): [x * 2 for x in range(100) if x % 2]"),
    "unpacking in loops": (1.3, "p = [(1, 2)] * 100\nfor j in range(N // 100):\n    for a, b in p: pass"),
    "d[k] += 1": (2.0, "d = dict.fromkeys(range(100), 0)\nfor i in range(N): d[i % 100] += 1"),
    "item stores": (2.0, "d = {}\nfor i in range(N): d[i % 100] = i"),
    "f-strings": (1.3, "for i in range(N): f'{i} x'"),
    "self._private": (
        None,
        "class A:\n    def __init__(self): self._n = 0\n    def add(self): self._n += 1\n"
        "a = A()\nfor i in range(N): a.add()",
    ),
    "other._private": (None, "class A: _x = 1\na = A()\nfor i in range(N): a._x"),
    "getattr()": (None, "class A: x = 1\na = A()\nfor i in range(N): getattr(a, 'x')"),
    "format of a variable": (None, "t = '{} x'\nfor i in range(N): t.format(i)"),
}


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()  # on a busy machine, too
    work()
    return time.process_time() - began


def ratio(code: str, space: dict[str, object]) -> float:
    """How much longer the code takes under the policy, within a function."""
    source = "def work():\n" + "".join(f"    {line}\n" for line in code.splitlines())
    plain: dict[str, object] = {"N": COUNT}
    exec(compile(source, "<plain>", "exec", dont_inherit=True), plain)
    guarded = rlm_policy.policy_compile(source, "<cell 1>")[0]
    exec(guarded, space)
    best = {"plain": float("inf"), "guarded": float("inf")}
    for _ in range(ROUNDS):
        for name, where in (("plain", plain), ("guarded", space)):
            best[name] = min(best[name], seconds(where["work"]))  # type: ignore[arg-type]
    return best["guarded"] / best["plain"]


def main() -> None:
    shown, sys.stdout = sys.stdout, io.StringIO()
    space = rlm_policy.PolicyLanguage({"allowed_imports": ()}).namespace({"N": COUNT})
    print(f"Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}", file=shown)
    for name, (bar, code) in CASES.items():
        figure = ratio(code, space)
        kept = "" if bar is None else f"<= {bar:g} {'ok' if figure <= bar else 'MISSED'}"
        print(f"{name:36} {figure:6.2f} x  {kept}", file=shown)


if __name__ == "__main__":
    main()
