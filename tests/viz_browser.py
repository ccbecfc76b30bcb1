"""A real Chromium for the tests of the trajectory page, the pages that they look at, and small helpers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import journals
import pytest
from conftest import CI, need

import rlm_viz

WIDE = {"width": 1440, "height": 900}
PHONE = {"width": 360, "height": 780}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    need("chromium")
    if importlib.util.find_spec("playwright") is None:
        (pytest.fail if CI else pytest.skip)("playwright is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of each story, written once."""
    folder = tmp_path_factory.mktemp("pages")
    stories = {"deep": journals.deep_run(), "failed": journals.failed_run(), "resumed": journals.resumed_run()}
    stories |= {"hostile": journals.hostile_run(), "chain": journals.chain(), "large": journals.large_run(9000, 400)}
    stories |= {"chat": journals.text_run(), "many": journals.many_tongues(), "long": journals.compacted_run()}
    for name, events in stories.items():
        (folder / f"{name}.html").write_text(rlm_viz.render(events), encoding="utf-8")
    several = [journals.deep_run(), journals.failed_run(), journals.resumed_run()]
    (folder / "several.html").write_text(rlm_viz.render(several), encoding="utf-8")
    logs = [journals.save(events, folder) for events in (several[0], journals.deep_run(levels=2, seed=8))]
    rlm_viz.write(logs, folder / "diff.html", diff=True)
    return folder


Open = Callable[..., Any]
# Whatever makes elements of text is an error in the page, and so of the test: no text of a run goes that way.
NO_MARKUP = """
const refuse = () => { throw new Error("text was parsed as markup") };
for (const name of ["innerHTML", "outerHTML"]) {
  const { get } = Object.getOwnPropertyDescriptor(Element.prototype, name);
  Object.defineProperty(Element.prototype, name, { get, set: refuse });
}
window.insertMarkup = Element.prototype.insertAdjacentHTML;  // for the test of what stops it then
Element.prototype.insertAdjacentHTML = Range.prototype.createContextualFragment = refuse;
Document.prototype.write = Document.prototype.writeln = refuse;
"""


@pytest.fixture
def visit(chromium: Any, pages: Path) -> Iterator[Open]:
    """Open a page and wait until it is ready; its errors fail the test, its requests are in `page.asked`."""
    opened: list[Any] = []

    def opener(name: str, fragment: str = "", *, wait: bool = True, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": WIDE, **options})
        context.add_init_script(NO_MARKUP)
        page = context.new_page()
        page.set_default_timeout(8000)
        page.asked, page.troubles = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("console", lambda message: page.troubles.append(message.text) if message.type == "error" else None)
        opened.append(page)
        page.goto(name if name.startswith("http") else f"file://{pages}/{name}.html{fragment}")
        if wait:
            page.wait_for_selector("html[data-ready]")
        return page

    yield opener
    for page in opened:
        assert page.troubles == []
        page.context.close()


def chosen(page: Any) -> str:
    """The name of the row that has the focus."""
    return str(page.evaluate("document.activeElement.closest('[role=row]')?.querySelector('b').textContent"))


def names(page: Any) -> list[str]:
    return list(page.locator("#rows [role=row] b").all_text_contents())


def until(page: Any, condition: str) -> None:
    """Wait until a condition holds in the page (Playwright's own way needs eval, which the policy forbids)."""
    page.evaluate(f"new Promise(done => {{ const look = () => {condition} ? done() : setTimeout(look, 9); look(); }})")


def settle(page: Any) -> None:
    """Let the page paint what it has been told."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
