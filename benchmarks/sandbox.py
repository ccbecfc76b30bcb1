"""The local sandbox's figures beside an earlier commit's and another project's, all taken in one run.

    python benchmarks/sandbox.py [--against REV] [--rounds 3] [--all] [--write docs/sandbox.md]

Every round starts a fresh process for each subject in turn, so that all of them meet the same load; the figure is the
best of the rounds. `--against` takes any commit whose tree has a `rlm_sandbox.py` (default: the newest tag before this
commit). `pydantic-monty` is a reference for speed only: it interprets a part of Python, in a process that nothing
confines. `--all` adds what has no counterpart there: the guards' price, cells that do not want to stop, many sandboxes.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MONTY = "pydantic-monty==1.4.0"  # a comparison names what it compared
MARK = "<!-- sandbox figures -->"


def median(work: Callable[[], Any], times: int) -> float:
    """Milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


def steady(work: Callable[[], Any], times: int) -> float:
    """The lowest median of ten series, in milliseconds: the one that other work on the machine disturbed least."""
    return min(median(work, max(1, times // 10)) for _ in range(10))


# --- the comparison ---------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    key: str
    title: str
    ratio: float | None = None  # wanted: at most so many times the other commit's figure
    bar: float | None = None  # wanted: at most so much


ROWS = [
    Row("cold", "import, cold start and first cell, ms", ratio=1.0),
    Row("next", "next session, ms", ratio=1.2),
    Row("snapshot", "cell with snapshot, ms", ratio=1.0),
    Row("plain", "cell without, ms", bar=0.2),
    Row("call", "host call, ms", bar=0.1),
    Row("add", "10^6 additions, of native", bar=1.2),
    Row("context", "100 MB context, ms", ratio=1.0),
    Row("file", "reading a 100 MB file, of native", bar=1.3),
]
ADDITIONS = "t = 0\nfor i in range(10**6):\n    t += i\n"
CALLS = "for i in range(100): f('x')"
READ = "len(open({!r}).read())"
CONTEXT = "0123456789" * 10_000_000


def file_of_100_mb() -> str:
    path = os.path.join(tempfile.mkdtemp(prefix="rlm-bench-"), "large.txt")
    Path(path).write_text("0123456789 " * 9_000_000)
    return path


def native(code: str) -> float:
    compiled = compile(code, "<native>", "exec")
    return min(median(lambda: exec(compiled, {}), 1) for _ in range(5))


def measure_ours(tree: str) -> Iterator[tuple[str, float]]:
    """The figures of the `rlm_sandbox` in a folder; this process must be a fresh one."""
    sys.path.insert(0, tree)
    began = time.perf_counter()
    from rlm_sandbox import LocalSandbox

    with LocalSandbox() as box:
        box.execute("1")
        yield "cold", (time.perf_counter() - began) * 1000
        time.sleep(0.3)  # what is imported later is imported
        made: list[LocalSandbox] = []
        yield "next", steady(lambda: made.append(LocalSandbox()), 20)
        for one in made:
            one.close()
        yield "snapshot", steady(lambda: box.execute("x = 1"), 300)
    path = file_of_100_mb()
    folder, name = os.path.split(path)
    with LocalSandbox(snapshot=False, memory="2g", workspace=folder) as box:
        yield "plain", steady(lambda: box.execute("x = 1"), 500)
        calls = {"f": lambda text: text}
        single = steady(lambda: box.execute("f('x')", functions=calls), 100)
        yield "call", (steady(lambda: box.execute(CALLS, functions=calls), 30) - single) / 99
        yield "add", min(median(lambda: box.execute(ADDITIONS), 1) for _ in range(5)) / native(ADDITIONS)
        yield "context", min(median(lambda: box.set("context", CONTEXT), 1) for _ in range(5))
        read = READ.format(name)
        assert box.execute(read).value == "99000000", box.execute(read)
        yield "file", min(median(lambda: box.execute(read), 1) for _ in range(5)) / native(READ.format(path))


def measure_monty(_: str) -> Iterator[tuple[str, float]]:
    began = time.perf_counter()
    from pydantic_monty import Monty, MountDir

    with Monty() as pool:
        with pool.checkout() as session:
            session.feed_run("1")
            yield "cold", (time.perf_counter() - began) * 1000

        def use() -> None:
            with pool.checkout():
                pass

        yield "next", steady(use, 20)
        with pool.checkout() as session:
            yield "plain", steady(lambda: session.feed_run("x = 1"), 500)
            calls = {"f": lambda text: text}
            single = steady(lambda: session.feed_run("f('x')", external_lookup=calls), 100)
        taken = []
        for _round in range(9):  # a session has a budget of calls
            with pool.checkout() as session:
                taken.append(median(lambda: session.feed_run(CALLS, external_lookup=calls), 1))
        yield "call", (min(taken) - single) / 99
        with pool.checkout() as session:
            yield "add", min(median(lambda: session.feed_run(ADDITIONS), 1) for _ in range(5)) / native(ADDITIONS)
            yield "context", min(median(lambda: session.feed_run("1", inputs={"c": CONTEXT}), 1) for _ in range(5))
        path = file_of_100_mb()
        mount = MountDir(
            host_path=os.path.dirname(path), virtual_path="/data", mode="read-only", memory_usage_limit=1 << 30
        )
        with pool.checkout() as session:
            read = READ.format("/data/large.txt")
            yield (
                "file",
                min(median(lambda: session.feed_run(read, mount=mount), 1) for _ in range(3))
                / native(READ.format(path)),
            )


def report_measures(subject: str, tree: str) -> None:
    """Print the figures of one subject as JSON, as far as it has them."""
    found: dict[str, float] = {}
    trouble = ""
    try:
        for key, figure in measure_monty(tree) if subject == "monty" else measure_ours(tree):
            found[key] = figure
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}"
    print(json.dumps({"figures": found, "trouble": trouble}))


class Subject(NamedTuple):
    name: str
    python: str
    tree: str
    remark: str


def take_figures(subjects: list[Subject], rounds: int) -> dict[str, dict[str, float]]:
    best: dict[str, dict[str, float]] = {subject.name: {} for subject in subjects}
    for number in range(rounds):
        for subject in subjects:
            print(f"round {number + 1} of {rounds}: {subject.name}", file=sys.stderr)
            command = [subject.python, str(Path(__file__).resolve()), "--measure", subject.name, "--tree", subject.tree]
            done = subprocess.run(command, capture_output=True, text=True, cwd=os.sep, timeout=300, check=True)
            report = json.loads(done.stdout.splitlines()[-1])
            if report["trouble"]:
                print(f"  {report['trouble'][:300]}", file=sys.stderr)
            for key, figure in report["figures"].items():
                best[subject.name][key] = min(figure, best[subject.name].get(key, figure))
    return best


@contextlib.contextmanager
def tree_of(revision: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="rlm-bench-") as folder:
        tree = os.path.join(folder, "tree")
        subprocess.run(["git", "worktree", "add", "--detach", "--quiet", tree, revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def newest_tag() -> str | None:
    found = subprocess.run(
        ["git", "describe", "--tags", "--abbrev=0", "HEAD^"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None


def monty_python() -> str | None:
    """The interpreter of an environment with pydantic-monty, made if it is missing; None if it cannot be had."""
    sys.path.insert(0, str(HERE))
    import bench

    subject = bench.Subject("monty", "monty", (MONTY,), "pydantic_monty")
    try:
        bench.set_up(subject)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"without {MONTY}: {error}", file=sys.stderr)
        return None
    return str(bench.python_of(subject))


def compare(revision: str | None, rounds: int) -> str:
    """The table, as Markdown, with what it was taken on."""
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as trees:
        subjects = [Subject("flat-rlm", sys.executable, str(ROOT), "this tree")]
        if revision:
            subjects.append(Subject(revision, sys.executable, trees.enter_context(tree_of(revision)), "that commit"))
        if python := monty_python():
            subjects.append(Subject("monty", python, "", f"{MONTY}, not confined"))
        figures = take_figures(subjects, rounds)
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, Linux {platform.release()}"
    lines = [
        f"Made by `python benchmarks/sandbox.py` on {datetime.date.today():%d %B %Y}; {machine},",
        f"load average {load:.1f} at its start.",
        "The best of several rounds; in brackets: how many times the figure of this tree.",
        "",
        f"| | wanted | {' | '.join(subject.name for subject in subjects)} |",
        "| --- | ---: |" + " ---: |" * len(subjects),
    ]
    lines += [table_line(row, [figures[subject.name].get(row.key) for subject in subjects], revision) for row in ROWS]
    return "\n".join([*lines, "", *(f"- **{subject.name}**: {subject.remark}" for subject in subjects)])


def table_line(row: Row, figures: list[float | None], revision: str | None) -> str:
    ours = figures[0]
    wanted = f"≤ {row.bar:g}" if row.bar is not None else f"≤ {row.ratio:g}× {revision}" if revision else ""
    cells = ["–" if figure is None else f"{figure:.3g}" for figure in figures]
    for at, figure in enumerate(figures[1:], start=1):
        cells[at] += f" ({figure / ours:.2f}×)" if figure is not None and ours else ""
    limit = row.bar if row.bar is not None else (row.ratio or 0) * (figures[1] or 0) if revision else None
    if limit is not None and ours is not None and ours > limit:
        cells[0] += " **missed**"
    return f"| {row.title} | {wanted} | {' | '.join(cells)} |"


# --- what has no counterpart elsewhere --------------------------------------------------------------------------------


def row(name: str, figure: float, bar: float | None = None, beside: str = "", unit: str = "ms") -> None:
    kept = "" if bar is None else f"<= {bar:g} {'ok' if figure <= bar else 'MISSED'}"
    print(f"{name:52} {figure:10.2f} {unit:3} {kept:16} {beside}")


def contexts() -> None:
    from rlm_sandbox import LocalSandbox

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
    from rlm_sandbox import LocalSandbox

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
    from rlm_sandbox import LocalSandbox

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
    from rlm_sandbox import LocalSandbox

    with LocalSandbox(snapshot=False) as box, LocalSandbox(snapshot=False, layers=("confinement",)) as plain:
        for name, code in LOOPS.items():
            timed = f"import time\nbegan = time.perf_counter()\n{code}(time.perf_counter() - began) * 1000"
            guarded = min(float(box.execute(timed).value or "nan") for _ in range(5))
            bare = min(float(plain.execute(timed).value or "nan") for _ in range(5))
            bar = 2.0 if name in ("d[k] += 1", "item stores") else 1.3
            row(f"under the policy: {name}", guarded / bare, bar, f"{bare:.1f} ms bare", unit="x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", default=newest_tag(), help="a commit (default: the newest tag)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default 3)")
    parser.add_argument("--all", action="store_true", help="the figures without a counterpart, too")
    parser.add_argument("--sandboxes", type=int, default=100, help="with --all, how many in a row (default 100)")
    parser.add_argument("--write", metavar="FILE", type=Path, help=f"put the table into FILE, after {MARK}")
    parser.add_argument("--measure", metavar="SUBJECT", help=argparse.SUPPRESS)
    parser.add_argument("--tree", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        report_measures(options.measure, options.tree)
        return
    table = compare(options.against, options.rounds)
    print(table)
    if options.write:
        before, mark, _ = options.write.read_text().partition(MARK)
        options.write.write_text(f"{before}{mark or MARK}\n\n{table}\n")
    if options.all:
        sys.path.insert(0, str(ROOT))
        for part in (contexts, ladder, guards):
            part()
        many(options.sandboxes)


if __name__ == "__main__":
    main()
