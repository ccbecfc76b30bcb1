"""`make bench`: this project beside others, one scripted model server, each project in an environment of its own.

    python benchmarks/bench.py [--subjects rlms,dspy] [--rows turns,fan] [--write docs/benchmarks.md]

Times are the best of several runs, in milliseconds: on a shared machine the best is the least disturbed. The server
does the same for everyone and runs in a process of its own. Environments are kept in the cache and made where missing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flat-rlm" / "bench"
COLD_RUNS = 3


class Subject(NamedTuple):
    name: str
    environment: str  # the folder of its virtual environment
    packages: tuple[str, ...]
    module: str  # what is imported
    remark: str = ""


# Versions are pinned: a comparison names what it compared.
SUBJECTS = [
    Subject("flat-rlm", "flat-rlm", (str(ROOT),), "rlm", "confined child process"),
    Subject("flat-rlm docker", "flat-rlm", (str(ROOT),), "rlm", "container"),
    Subject("rlms", "rlms", ("rlms[ipython]==0.1.3",), "rlm", "in the host's process"),
    Subject("rlms isolated", "rlms", ("rlms[ipython]==0.1.3",), "rlm", "IPython kernel process"),
    Subject("dspy", "dspy", ("dspy==3.4.1",), "dspy", "worker process, not confined (its Pyodide needs a download)"),
    Subject("smolagents", "smolagents", ("smolagents[openai]==1.26.0",), "smolagents", "own interpreter, in process"),
    Subject("minrlm", "minrlm", ("minrlm==0.1.5",), "minrlm", "in the host's process"),
    Subject("rlm-runtime", "rlm-runtime", ("rlm-runtime[mcp]==2.1.3",), "rlm", "RestrictedPython, in process"),
]


class Row(NamedTuple):
    key: str
    title: str
    source: str  # the row of subjects.py that measures it
    wanted: float | None = None
    unit: str = "ms"


ROWS = [
    Row("import", "import, over bare Python", "import", 60),
    Row("cold", "a first run of one turn", "cold", 60),
    Row("warm", "a later run of one turn", "turns", 30),
    Row("turn", "one turn more", "turns", 4),
    Row("fan", "64 sub-calls of 100 ms, 64 wide", "fan", 150),
    Row("context", "100 MB of context into the worker", "context", 150),
    Row("child", "a child RLM", "child", 20),
    Row("bytes", "bytes sent in 20 trivial turns", "turns", 120_000, "bytes"),
    Row("add", "10^6 additions in a cell, of native", "add", 1.3, "times"),
    Row("packages", "packages installed", "size", None, "number"),
    Row("size", "installed, MB", "size", None, "number"),
]


# --- environments --------------------------------------------------------------------------------------------------


def python_of(subject: Subject) -> Path:
    return CACHE / subject.environment / "bin" / "python"


def set_up(subject: Subject) -> None:
    """Make the subject's environment, or bring it up to date where it is this project."""
    marker = CACHE / subject.environment / "installed.json"
    wanted = [*subject.packages, (ROOT / "pyproject.toml").read_text() if subject.packages[0] == str(ROOT) else ""]
    if marker.exists() and json.loads(marker.read_text()) == wanted:
        return
    print(f"setting up {subject.environment} …", file=sys.stderr)
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", CACHE / subject.environment], check=True)
    subprocess.run([python_of(subject), "-m", "pip", "install", "-qq", *subject.packages], check=True)
    marker.write_text(json.dumps(wanted))


def environment_of(subject: Subject) -> dict[str, str]:
    """The variables a subject runs with: nothing of this machine's settings or keys."""
    environment = {"PATH": f"{python_of(subject).parent}:/usr/local/bin:/usr/bin:/bin", "NO_PROXY": "127.0.0.1"}
    environment |= {"HOME": str(CACHE / "home"), "LANG": "C.UTF-8", "PYTHONWARNINGS": "ignore"}
    # litellm would fetch its prices at import, and where there is no network try thrice.
    environment["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    if subject.environment == "flat-rlm":
        environment["PYTHONPATH"] = str(ROOT)  # the tree as it is now, not as it was when installed
    return environment


def command(subject: Subject, *arguments: str) -> subprocess.CompletedProcess[str]:
    (CACHE / "home").mkdir(exist_ok=True)
    # Not in the tree: with `-c` the current folder is on the path, and it has a rlm.py too.
    how: dict[str, Any] = {"cwd": CACHE / "home", "capture_output": True, "text": True, "timeout": 900}
    return subprocess.run([str(python_of(subject)), *arguments], env=environment_of(subject), **how)


# --- measuring -----------------------------------------------------------------------------------------------------


def measure(subject: Subject, source: str, port: int) -> dict[str, float]:
    if source == "import":
        return {"import": max(0.0, import_time(subject, f"import {subject.module}") - import_time(subject, "pass"))}
    if source == "size":
        return installed_size(subject)
    tries = [one_process(subject, source, port) for _ in range(COLD_RUNS if source == "cold" else 1)]
    return {key: min(found[key] for found in tries) for key in tries[0]}


def one_process(subject: Subject, source: str, port: int) -> dict[str, float]:
    ran = command(subject, str(HERE / "subjects.py"), subject.name, str(port), source)
    found = re.search(r"^RESULT (.*)$", ran.stdout, re.MULTILINE)
    if not found:
        last = (ran.stderr.strip() or ran.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"{subject.name}, {source}: {last}")
    result: dict[str, float] = json.loads(found[1])
    return result


def import_time(subject: Subject, statement: str) -> float:
    timed = f"import time; start = time.perf_counter(); {statement}; print((time.perf_counter() - start) * 1000)"
    return min(float(command(subject, "-c", timed).stdout.split()[-1]) for _ in range(10))


def installed_size(subject: Subject) -> dict[str, float]:
    site = next((CACHE / subject.environment / "lib").glob("python3.*/site-packages"))
    own = {"pip", "setuptools"}
    packages = [p for p in site.glob("*.dist-info") if p.name.split("-")[0] not in own]
    skipped = [site / name for name in ("pip", "setuptools", "pkg_resources")]
    files = [f for f in site.rglob("*") if f.is_file() and not any(s in f.parents for s in skipped)]
    return {"packages": len(packages), "size": sum(f.stat().st_size for f in files) / 1e6}


def measure_all(subjects: list[Subject], sources: list[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {subject.name: {} for subject in subjects}
    server = subprocess.Popen(
        [sys.executable, str(HERE / "model.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin and server.stdout
    port = int(server.stdout.readline())
    try:
        for source in sources:
            for subject in subjects:
                print(f"{source}: {subject.name}", file=sys.stderr)
                try:
                    found[subject.name] |= measure(subject, source, port)
                except (RuntimeError, subprocess.TimeoutExpired) as failure:
                    print(f"  {failure}", file=sys.stderr)
    finally:
        server.stdin.close()
        server.wait(10)
    return found


# --- the table -----------------------------------------------------------------------------------------------------


def shown(value: float | None, row: Row) -> str:
    if value is None:
        return "–"
    if row.unit in ("bytes", "number"):
        return f"{value:,.0f}"
    if row.unit == "times":
        return f"{value:.2f}×"
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def cell(value: float | None, ours: float | None, row: Row) -> str:
    """A figure, and how many times ours it is."""
    if value is None or not ours or row.unit == "times":
        return shown(value, row)
    return f"{shown(value, row)} ({value / ours:.1f}×)"


def table(found: dict[str, dict[str, float]], rows: list[Row]) -> str:
    names = list(found)
    head = ["", "wanted", *names]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for row in rows:
        ours = found.get("flat-rlm", {}).get(row.key)
        wanted = "" if row.wanted is None else f"≤ {shown(row.wanted, row)}"
        figures = [found[name].get(row.key) for name in names]
        first = [shown(figures[0], row)] if names[0] == "flat-rlm" else [cell(figures[0], ours, row)]
        lines.append([row.title, wanted, *first, *(cell(figure, ours, row) for figure in figures[1:])])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    kind = model[1] if model else platform.machine()
    return f"{os.cpu_count()} cores ({kind}), {platform.platform()}, load average {os.getloadavg()[1]:.1f}"


def page(found: dict[str, dict[str, float]], rows: list[Row], subjects: list[Subject]) -> str:
    what = "\n".join(
        f"- **{s.name}**: {', '.join('this tree' if p == str(ROOT) else p for p in s.packages)}; {s.remark}"
        for s in subjects
    )
    return f"""# Benchmarks

After this page you know how much time, memory and disk flat-rlm costs beside five other projects, and how its cost
grows with the work. The page is about overhead. It says nothing about how well a model answers.

`make bench` made the table on {datetime.date.today():%d %B %Y} with Python {platform.python_version()},
{machine()}.
Each figure is the best of several runs, in milliseconds unless the row says otherwise. Each run is a whole completion
through the project's public interface, against one scripted model server on loopback. The server answers at once, and
sub-calls after 100 ms.

- In brackets: how many times our figure.
- A dash: the project has no such feature, or failed.
- A turn, a batch, a child run and an addition count what they add to a run that prints a number. The two rows of whole
  runs include the start of the worker.
- If the load average is well above the number of cores, trust the order of the figures more than their size.

{table(found, rows)}

What was measured, and where each runs the model's code:

{what}
"""


# --- the page is shared: a region between `<!-- name -->` and `<!-- /name -->` belongs to whoever writes it ---------


def region(path: Path, name: str) -> str:
    """What the page has between the markers of that name, or nothing."""
    found = (
        re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", path.read_text(), re.DOTALL) if path.exists() else None
    )
    return found[1] if found else ""


def write_region(path: Path, name: str, text: str) -> None:
    """Put the text between the markers of that name; where there are none, at the page's end."""
    page = path.read_text() if path.exists() else ""
    new = f"<!-- {name} -->\n{text.strip()}\n\n<!-- /{name} -->\n"
    before, found, rest = page.partition(f"<!-- {name} -->\n")
    after = rest.partition(f"<!-- /{name} -->\n")[2]
    path.write_text(before + new + after if found else f"{page.rstrip()}\n\n{new}")


def write_page(path: Path, text: str) -> None:
    """Write the page anew, with the regions that it has."""
    names = re.findall(r"^<!-- (\w+) -->$", path.read_text(), re.MULTILINE) if path.exists() else []
    regions = {name: region(path, name) for name in names}
    path.write_text(text)
    for name, kept in regions.items():
        write_region(path, name, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", help="comma-separated; default: all")
    parser.add_argument("--rows", help="comma-separated: import, cold, turns, fan, context, child, add, size")
    parser.add_argument("--write", type=Path, help="write the page here as well")
    options = parser.parse_args()
    names = options.subjects.split(",") if options.subjects else [s.name for s in SUBJECTS]
    subjects = [s for s in SUBJECTS if s.name in names]
    sources = options.rows.split(",") if options.rows else list(dict.fromkeys(row.source for row in ROWS))
    for subject in subjects:
        set_up(subject)
    found = measure_all(subjects, sources)
    rows = [row for row in ROWS if row.source in sources]
    print(table(found, rows))
    if options.write:
        write_page(options.write, page(found, rows, subjects))


if __name__ == "__main__":
    main()
