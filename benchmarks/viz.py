"""Sizes and speeds of the trajectory page in a real Chromium, and the pictures of the documentation.

    python benchmarks/viz.py                  the table, against the bars in its last columns
    python benchmarks/viz.py --pictures DIR   tree.png, timeline.png and transcript.png

Needs playwright from PyPI and a chromium; the logs are made by tests/journals.py, about 2.3 kB an event.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "tests")]

import journals  # noqa: E402

import rlm_viz  # noqa: E402

BARS = {1_000: ("0.5 s", "-"), 10_000: ("1 s", "-"), 100_000: ("3 s", "60 MB")}
TIMED = "(async () => {{ const t = performance.now(); {}; return performance.now() - t; }})()"
ONE_EVENT = TIMED.format("await body(run, run.meta.events >> 1)")
SEARCH = TIMED.format("STATE.q = 'a text that is nowhere'; await search()")
TWENTY_FRAMES = TIMED.format("for (let i = 0; i < 20; i++) drawNow()")


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--enable-precise-memory-info"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


def measure(browser: Any, count: int, folder: str) -> list[str]:
    """One line of the table for a run of about `count` events."""
    log = journals.save(journals.large_run(count, body=1900), folder)
    began = time.perf_counter()
    page_file = rlm_viz.write([log], os.path.join(folder, "page.html"))
    written = time.perf_counter() - began
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"file://{page_file}", wait_until="commit")
    page.wait_for_selector("html[data-ready]", timeout=60_000)
    ready = float(page.evaluate("document.documentElement.dataset.ready"))
    page.wait_for_load_state("load")
    page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
    heap = page.evaluate("performance.memory.usedJSHeapSize")
    one, search = page.evaluate(ONE_EVENT), page.evaluate(SEARCH)
    page.evaluate("setView(2)")
    frame = page.evaluate(TWENTY_FRAMES) / 20
    sizes = [os.path.getsize(path) / 1e6 for path in (log, page_file)]
    page.close()
    figures = [f"{count:,}", *(f"{size:.1f} MB" for size in sizes), f"{written:.1f} s", f"{ready / 1000:.2f} s"]
    return [
        *figures,
        f"{heap / 1e6:.0f} MB",
        f"{one:.0f} ms",
        f"{search / 1000:.1f} s",
        f"{frame:.1f} ms",
        *BARS[count],
    ]


def table() -> None:
    print(f"viewer overhead: {len(rlm_viz.render([]).encode()) / 1000:.1f} kB (bar 75 kB)\n")
    heads = ["events", "log", "page", "written", "ready", "heap", "one event", "search all", "flame frame"]
    print("  ".join(head.rjust(11) for head in [*heads, "bar: ready", "bar: heap"]))
    with chromium() as browser:
        for count in BARS:
            with tempfile.TemporaryDirectory() as folder:
                print("  ".join(figure.rjust(11) for figure in measure(browser, count, folder)), flush=True)


def pictures(folder: str) -> None:
    views = {"tree": ("light", "#e=70"), "timeline": ("dark", "#v=2&e=70"), "transcript": ("light", "#v=5&e=6")}
    with chromium() as browser, tempfile.TemporaryDirectory() as scratch:
        path = os.path.join(scratch, "page.html")
        with open(path, "w", encoding="utf-8") as file:
            file.write(rlm_viz.render(journals.deep_run()))
        for name, (theme, fragment) in views.items():
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=theme)
            page.goto(f"file://{path}{fragment}")
            page.wait_for_selector("html[data-ready]")
            page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
            page.screenshot(path=os.path.join(folder, f"{name}.png"))
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="sizes and speeds of the trajectory page")
    parser.add_argument("--pictures", metavar="DIR", help="take the documentation's pictures instead")
    options = parser.parse_args()
    if options.pictures:
        os.makedirs(options.pictures, exist_ok=True)
        pictures(options.pictures)
    else:
        table()


if __name__ == "__main__":
    main()
