"""`make scaling`: does cost grow as the work grows, and no faster?

    python benchmarks/scaling.py [--series turns,subcalls,parallel,events,context] [--quick] [--write]

Each point is a fresh process that does one whole run of its size, checked for its answer; of several such processes
the least disturbed counts. What is fitted is the exponent of growth: 1.00 is a straight line, 2.00 a parabola. With
--write the tables and plots go into docs/benchmarks.md and docs/img/ (matplotlib: the extra `bench`).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import bench

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGE, IMAGES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "img"
MODEL = "gpt-4o-mini"  # a window of 128,000 tokens, which the backend knows
STRAIGHT = 1.1  # an exponent up to this is a straight line, as far as a few points tell


class Figure(NamedTuple):
    """A column: a quantity, whether it is shown for each unit of work, and why it may grow faster than the work."""

    key: str
    title: str
    unit: str
    each: bool = True
    reason: str = ""


class Series(NamedTuple):
    key: str
    title: str
    work: str  # what is counted
    sizes: tuple[int, ...]
    figures: tuple[Figure, ...]
    how: str
    repeats: int = 2


TIME = Figure("ms", "time", "ms")
CPU = Figure("cpu", "CPU of the host", "ms")
JOURNAL = Figure("journal", "journal", "bytes")
SENT = Figure("sent", "sent", "bytes")
HOST = Figure("host", "host, peak", "MB", each=False)
WORKER = Figure("worker", "worker, peak", "MB", each=False)
RESENT = "every turn sends the history again: n turns of one size send n²/2 messages"
FILLING = "the history stops growing when the window is three quarters full"
WAITING = "one completion alone mostly waits; from some width on the cores are busy all the time"
COLLECTOR = (
    "Python's garbage collector visits ever more objects. With the collector off, reading and the tree grow in a "
    "straight line"
)
SENDING = "sending takes time, and what is sent grows"

SERIES = [
    Series(
        "turns",
        "Turns of one run",
        "turns",
        (10, 100, 250, 500, 1000),
        (
            TIME._replace(reason=SENDING),
            CPU._replace(reason=SENDING),
            JOURNAL,
            SENT._replace(reason=RESENT),
            HOST,
            WORKER,
        ),
        "each turn is a cell that prints a character; nothing is near the model's window",
    ),
    Series(
        "outputs",
        "Turns that print 2 kB, compaction on",
        "turns",
        (10, 100, 250, 500, 1000),
        (
            TIME._replace(reason=FILLING),
            CPU._replace(reason=FILLING),
            JOURNAL,
            SENT._replace(reason=FILLING),
            HOST,
            WORKER,
        ),
        "the window has 128,000 tokens. When it is three quarters full, the oldest outputs become stubs, so that what "
        "a turn sends stops growing",
    ),
    Series(
        "batch",
        "Sub-calls of one cell, batched",
        "sub-calls",
        (10, 100, 1000, 2500, 5000, 10_000),
        (TIME, CPU, JOURNAL, SENT, HOST, WORKER),
        "`llm_query_batched` with that many prompts, 16 at a time, answered at once",
    ),
    Series(
        "loop",
        "Sub-calls of one cell, one after another",
        "sub-calls",
        (10, 100, 500, 1000, 2000),
        (TIME, CPU, JOURNAL, SENT, HOST, WORKER),
        "`llm_query` in a loop, answered at once",
    ),
    Series(
        "parallel",
        "Completions side by side in one process",
        "completions",
        (1, 2, 4, 8, 16, 32),
        (
            TIME._replace(reason=WAITING),
            CPU,
            JOURNAL,
            HOST,
            Figure("workers", "workers at once, memory of their own", "MB", each=False),
            Figure("threads", "threads, peak", "number", each=False),
        ),
        "`RLM.batch`, as wide as there are items; each has a REPL, three turns and eight sub-calls of 100 ms",
        repeats=3,
    ),
    Series(
        "events",
        "Events of one journal",
        "events",
        (1000, 10_000, 25_000, 50_000, 100_000),
        (
            Figure("run", "CPU: the run itself", "ms"),
            JOURNAL,
            Figure("read", "CPU: read, merge, totals", "ms", reason=COLLECTOR),
            Figure("tree", "CPU: tree", "ms", reason=COLLECTOR),
            Figure("page", "CPU: page", "ms", reason=COLLECTOR),
            Figure("html", "page", "bytes"),
            Figure("resume", "CPU: resume", "ms", reason=COLLECTOR),
            Figure("writer", "host after the run, peak", "MB", each=False),
            HOST,
        ),
        "a run of one cell with that many sub-calls, answered by a Python object in the process; then everything that "
        "reads its journal",
    ),
    Series(
        "context",
        "Context, given as a file",
        "MB",
        (10, 100, 250, 500, 1000),
        (
            TIME,
            CPU,
            Figure("first", "until the first cell has ended", "ms"),
            Figure("later", "a later cell that does not look at it", "ms", each=False),
            Figure("look", "a cell that counts a word in it", "ms"),
            JOURNAL._replace(each=False),
            SENT._replace(each=False),
            HOST._replace(each=True),
            WORKER._replace(each=True),
        ),
        "a log of that size from disk; four turns",
    ),
]


GROUPS = {
    "turns": ("turns", "outputs"),
    "subcalls": ("batch", "loop"),
    "parallel": ("parallel",),
    "events": ("events",),
    "context": ("context",),
}


# --- one point, in a process of its own ----------------------------------------------------------------------------


class Watch:
    """What a run has cost: wall and processor time from here on, and peaks of memory as the kernel keeps them."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        return {"ms": wall * 1000, "cpu": cpu * 1000, "host": peak(os.getpid())}


def peak(pid: int, field: str = "VmHWM") -> float:
    """A process's peak of resident memory in MB, 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(rf"{field}:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):  # one that has just ended has none
        for task in os.listdir(f"/proc/{pid}/task"):
            for word in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(word), *descendants(int(word))]
    return found


def private_memory(pid: int) -> float:
    """The MB that a process shares with no other."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return sum(int(kb) for kb in re.findall(r"Private_\w+:\s*(\d+) kB", rollup)) / 1024


def options(**more: Any) -> dict[str, Any]:
    limits = {"max_iterations": 10**6, "max_subcalls": 10**6, "token_budget": 10**12}
    return {"model": MODEL, "config": False, "log_dir": "logs", **limits, **more}


def complete(port: int, scenario: str, count: int, context: Any = None, **more: Any) -> dict[str, Any]:
    """One whole run against the scripted model; its REPL is kept until it has been measured."""
    from rlm import RLM

    name = f"{os.getpid()}-{scenario}-{time.monotonic_ns()}"
    where = {"backend": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "persistent": True}
    watch = Watch()
    with RLM(**options(**where, api_key=f"flat-rlm:{name}:{scenario}:{count}", **more)) as rlm:
        start = time.perf_counter()
        result = rlm.completion("go", context)
        found = watch.read()
        found["worker"] = max(map(peak, descendants(os.getpid())))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/runs/{name}") as reply:
        told = json.load(reply)
    found |= {"journal": os.path.getsize(str(result.log)), "sent": told["bytes"], "response": result.response}
    return found | {"arrivals": [(arrival - start) * 1000 for arrival in told["arrivals"]]}


def right(found: dict[str, Any], answer: str) -> dict[str, Any]:
    """A run that does not give the right answer is no measurement."""
    if found["response"] != answer:
        raise SystemExit(f"the answer was {found['response'][:300]!r}, not {answer!r}")
    return found


def turns(port: int, count: int) -> dict[str, Any]:
    complete(port, "turns", 1)
    return right(complete(port, "turns", count), "done")


def outputs(port: int, count: int) -> dict[str, Any]:
    complete(port, "turns", 1)
    return right(complete(port, "outputs", count), "done")


def batch(port: int, count: int) -> dict[str, Any]:
    complete(port, "turns", 1)
    return right(complete(port, "batch", count), str(count))


def loop(port: int, count: int) -> dict[str, Any]:
    complete(port, "turns", 1)
    return right(complete(port, "loop", count), str(count))


def parallel(port: int, count: int) -> dict[str, Any]:
    """`count` completions at once, by `RLM.batch`; memory and threads are looked at while they all wait."""
    from rlm import RLM

    complete(port, "turns", 1)
    watch, name = Watch(), f"{os.getpid()}-work"
    where = {"backend": "openai", "base_url": f"http://127.0.0.1:{port}/v1", "api_key": f"flat-rlm:{name}:work:8"}
    with RLM(**options(**where, max_parallel=64, log_dir="parallel")) as rlm, Sampler() as sampler:
        responses = [str(result) for result in rlm.batch(["go"] * count, max_workers=count)]
    found = watch.read() | sampler.peaks
    found["journal"] = sum(path.stat().st_size for path in Path("parallel").iterdir())
    return right(found | {"response": ",".join(responses)}, ",".join(["8"] * count))


class Sampler:
    """Peaks that the kernel keeps no account of, looked at some ten times a second."""

    def __init__(self) -> None:
        self.peaks = {"workers": 0.0, "threads": 0.0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.08):
            workers = sum(map(private_memory, descendants(os.getpid())))
            now = {"workers": workers, "threads": float(threading.active_count())}
            self.peaks = {key: max(value, now[key]) for key, value in self.peaks.items()}


class InProcess:
    """A model that is a Python object: it asks for one cell of `count` sub-calls, and answers them."""

    provider, model, window, max_output, supports_tools, price_known = "scripted", MODEL, None, None, True, True

    def __init__(self, count: int) -> None:
        self.cells = [f"r = llm_query_batched(['item %d' % n for n in range({count})])", "FINAL(str(len(r)))"]

    def complete(self, messages: list[dict[str, Any]], **how: Any) -> Any:
        from rlm_backends import Reply

        usage = {"input": 100, "output": 10, "cached": 0, "cache_write": 0, "reasoning": 0}
        calls = []
        if how.get("tools"):
            turn = sum(message["role"] == "assistant" for message in messages)
            calls = [{"id": f"call_{turn}", "name": "execute_code", "arguments": {"code": self.cells[turn]}}]
        return Reply("" if calls else "yes", calls, usage, "tool_calls" if calls else "stop", MODEL, 0.0001)


def events(port: int, count: int) -> dict[str, Any]:
    """A run that writes that many events, and everything that reads them."""
    import rlm_viz
    from rlm import RLM

    calls = count - 6  # start, end, two turns and two cells
    found: dict[str, Any] = {}
    with RLM(backend=InProcess(calls), **options()) as rlm:
        result = timed(found, "run", lambda: rlm.completion("go"))
        found["writer"] = peak(os.getpid())
        log = str(result.log)
        found["journal"] = os.path.getsize(log)
        recorded, problems = timed(found, "read", lambda: read_all(log))
        timed(found, "tree", lambda: rlm_viz.tree(recorded, color=False, width=120))
        page = timed(found, "page", lambda: rlm_viz.write([log], "page.html"))
        found["html"] = os.path.getsize(page)
        with open(log, "rb+") as file:  # as if it had been killed before its end, and before its last cell
            file.truncate(file.read().rindex(b'{"v":2,"event":"tool"'))
        resumed = timed(found, "resume", lambda: rlm.resume(result.trajectory_id))
    assert (len(recorded), problems) == (count, []), (len(recorded), problems)
    return right(found | {"response": str(resumed), "host": peak(os.getpid())}, str(calls))


def read_all(log: str) -> tuple[list[dict[str, Any]], list[str]]:
    import rlm_viz

    events, problems = rlm_viz.read(log)
    rlm_viz.totals(rlm_viz.merge(events))
    return events, problems


def timed(found: dict[str, Any], key: str, work: Callable[[], Any]) -> Any:
    start = time.process_time()  # what is read is in memory, and other people's load is not
    value = work()
    found[key] = (time.process_time() - start) * 1000
    return value


LINE = "2026-11-02 12:00:00 INFO a line of an ordinary log, with a number at its end: 00000000\n"
ERROR = LINE.replace("INFO ", "ERROR")
MEGABYTE = (ERROR + LINE * 11_494 + " " * 1_000_000)[:1_000_000]


def context(port: int, count: int) -> dict[str, Any]:
    complete(port, "look", 1, MEGABYTE)
    with open("context.log", "w") as file:
        for _ in range(count):
            file.write(MEGABYTE)
    found = complete(port, "look", 1, Path("context.log"))
    return context_figures(right(found, f"{count * 1_000_000} {count}"))


def context_figures(found: dict[str, Any]) -> dict[str, Any]:
    _, first, later, look = found["arrivals"]
    return found | {"first": first, "later": later - first, "look": look - later}


POINTS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "turns": turns,
    "outputs": outputs,
    "batch": batch,
    "loop": loop,
    "parallel": parallel,
    "events": events,
    "context": context,
}


def point(key: str, count: int, port: int) -> None:
    with tempfile.TemporaryDirectory(prefix="flat-rlm-scaling-") as folder:
        os.chdir(folder)
        found = POINTS[key](port, count)
        os.chdir("/")
    print("RESULT " + json.dumps({name: value for name, value in found.items() if isinstance(value, (int, float))}))


# --- all points ----------------------------------------------------------------------------------------------------


@contextmanager
def scripted_model() -> Iterator[int]:
    server = subprocess.Popen(
        [sys.executable, str(HERE / "model.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin and server.stdout
    try:
        yield int(server.stdout.readline())
    finally:
        server.stdin.close()
        server.wait(10)


def one_process(key: str, count: int, port: int) -> dict[str, float]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, str(HERE / "scaling.py"), "--point", key, str(count), str(port)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd="/")
    found = re.search(r"^RESULT (.*)$", ran.stdout, re.MULTILINE)
    if not found:
        raise SystemExit(f"{key}, {count}: {(ran.stderr.strip() or ran.stdout.strip())[-2000:]}")
    result: dict[str, float] = json.loads(found[1])
    return result


def measure(series: Series, sizes: tuple[int, ...], repeats: int) -> list[dict[str, float]]:
    """The best of several processes for each size; rounds go through all sizes, so that a bad moment hits one try."""
    tries: list[list[dict[str, float]]] = [[] for _ in sizes]
    for _ in range(repeats):
        with scripted_model() as port:
            for place, size in enumerate(sizes):
                tries[place].append(one_process(series.key, size, port))
    peaks = {figure.key for figure in series.figures if figure.unit in ("MB", "number")}
    return [
        {key: (max if key in peaks else min)(found[key] for found in several) for key in several[0]}
        for several in tries
    ]


# --- what it comes to ----------------------------------------------------------------------------------------------


def exponent(sizes: tuple[int, ...], values: list[float]) -> float | None:
    """The p of the curve a + b·size^p that is nearest to all points; None for what has not even doubled."""
    if values[-1] <= 2 * values[0]:
        return None
    return min((n / 100 for n in range(5, 301)), key=lambda p: distance([size**p for size in sizes], values))


def distance(xs: list[float], ys: list[float]) -> float:
    """How far, as shares of each value, the points are from the nearest line a + b·x with a and b not below 0."""
    weights = [1 / max(y, 1e-9) ** 2 for y in ys]
    mean_x = sum(w * x for w, x in zip(weights, xs)) / sum(weights)
    mean_y = sum(w * y for w, y in zip(weights, ys)) / sum(weights)
    spread = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, xs))
    b = max(0.0, sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, xs, ys)) / spread)
    a = mean_y - b * mean_x
    if a < 0:
        a, b = 0.0, sum(w * x * y for w, x, y in zip(weights, xs, ys)) / sum(w * x * x for w, x in zip(weights, xs))
    return sum(w * (a + b * x - y) ** 2 for w, x, y in zip(weights, xs, ys))


def shown(value: float, unit: str) -> str:
    if unit in ("bytes", "number") or value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def unit_of(figure: Figure, series: Series) -> str:
    one = series.work.removesuffix("s")
    return f"{figure.unit} per {one}" if figure.each else figure.unit


def table(series: Series, sizes: tuple[int, ...], found: list[dict[str, float]]) -> str:
    head = [series.work, *(f"{f.title}, {unit_of(f, series)}" for f in series.figures)]
    lines = [head, ["---:"] * len(head)]
    for size, row in zip(sizes, found):
        values = [row[f.key] / size if f.each else row[f.key] for f in series.figures]
        lines.append([f"{size:,}", *(shown(value, f.unit) for value, f in zip(values, series.figures))])
    lines.append(["exponent", *(growth(sizes, [row[f.key] for row in found]) for f in series.figures)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def growth(sizes: tuple[int, ...], values: list[float]) -> str:
    found = exponent(sizes, values)
    return "flat" if found is None else f"{found:.2f}"


def section(series: Series, sizes: tuple[int, ...], found: list[dict[str, float]]) -> str:
    tried = "one process" if series.repeats == 1 else f"the best of {series.repeats} processes"
    how = f"{series.how[0].upper()}{series.how[1:]}. Each point: {tried}."
    words = [how, *bends(series, sizes, found)]
    picture = f"![{series.title}](img/scaling-{series.key}.svg)"
    return "\n\n".join([f"### {series.title}", " ".join(words), table(series, sizes, found), picture])


def bends(series: Series, sizes: tuple[int, ...], found: list[dict[str, float]]) -> Iterator[str]:
    """What has grown faster than the work, and why, if that is known."""
    bent: dict[str, list[str]] = {}
    for figure in series.figures:
        grew = exponent(sizes, [row[figure.key] for row in found])
        if grew is not None and grew > STRAIGHT:
            bent.setdefault(figure.reason, []).append(f"{figure.title} ({grew:.2f})")
    for reason, figures in bent.items():
        yield f"Grows faster than the work: {', '.join(figures)}{': ' if reason else ''}{reason}."


def plot(series: Series, sizes: tuple[int, ...], found: list[dict[str, float]]) -> None:
    """A picture with a small plot for each figure: what was measured, and the straight line through its ends."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": series.key, "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9}
    from matplotlib import pyplot

    across = min(4, len(series.figures))
    down = -(-len(series.figures) // across)
    picture, axes = pyplot.subplots(
        down, across, figsize=(2.9 * across, 2.4 * down), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(series.figures) :]:
        axis.set_visible(False)
    for axis, figure in zip(axes.flat, series.figures):
        values = [row[figure.key] for row in found]
        axis.plot([sizes[0], sizes[-1]], [values[0], values[-1]], "--", color="#999999", linewidth=1)
        axis.plot(sizes, values, "o-", color="#1f5fa8", markersize=3.5)
        axis.set_ylim(0, max(values) * 1.1 or 1)
        axis.set_xlim(0)
        axis.set_title(f"{figure.title}, {figure.unit}: {growth(sizes, values)}")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.6g}")
        axis.grid(color="#e5e5e5", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    picture.supxlabel(series.work, fontsize=9)
    IMAGES.mkdir(exist_ok=True)
    pyplot.savefig(IMAGES / f"scaling-{series.key}.svg", metadata={"Date": None})
    pyplot.close(picture)


INTRODUCTION = """## Does cost grow as the work grows?

Made by `make scaling` on {date}; Python {python}, {machine}.

Each point is a fresh process that does one whole run of that size against the scripted model; its answer is checked.
The last row of a table is the exponent p of the curve a + b·size^p that fits the points best. 1.00 is a straight line.
"flat" means that the value has not even doubled from the first point to the last. The dashed line of a plot joins the
first and the last point: a cost that grows like the work stays on it."""


def write(sections: dict[str, str]) -> None:
    """Put the sections that were measured into the page; those of other series stay as they are."""
    old = bench.region(PAGE, "scaling")
    kept = {text.split("\n", 1)[0]: text.strip() for text in re.split(r"(?m)^(?=### )", old)[1:]}
    now = [sections.get(f"### {s.title}") or kept.get(f"### {s.title}", "") for s in SERIES]
    introduction = INTRODUCTION.format(
        date=f"{datetime.date.today():%d %B %Y}", python=platform.python_version(), machine=bench.machine()
    )
    bench.write_region(PAGE, "scaling", "\n\n".join(filter(None, [introduction, *now])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", help=f"comma-separated; default: all of {', '.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="the first three sizes, once")
    parser.add_argument("--write", action="store_true", help="write tables and plots into docs/")
    parser.add_argument("--point", nargs=3, metavar=("SERIES", "SIZE", "PORT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.point:
        # This folder has a mcp.py: it must not stand in for the package of that name.
        sys.path.remove(str(HERE))
        point(given.point[0], int(given.point[1]), int(given.point[2]))
        return
    words = given.series.split(",") if given.series else list(GROUPS)
    if strange := [word for word in words if word not in GROUPS]:
        parser.error(f"there is no series {strange[0]!r}; there are: {', '.join(GROUPS)}")
    sections = {}
    for series in [s for s in SERIES if any(s.key in GROUPS[word] for word in words)]:
        sizes = series.sizes[:3] if given.quick else series.sizes
        began = time.monotonic()
        found = measure(series, sizes, 1 if given.quick else series.repeats)
        text = section(series, sizes, found)
        print(f"{text}\n", flush=True)
        print(f"({time.monotonic() - began:.0f} s)\n", file=sys.stderr)
        if given.write:
            plot(series, sizes, found)
            sections[text.split("\n", 1)[0]] = text
    if given.write:
        write(sections)


if __name__ == "__main__":
    main()
