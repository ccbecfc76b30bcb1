"""The trajectory page in real browsers: Chromium for everything, Firefox for opening and for hostile logs."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import journals
import pytest
import viz_browser
from conftest import ROOT, need, node_module
from viz_browser import PHONE, WIDE, Open, chosen, names, settle, until

import rlm_viz

pytestmark = pytest.mark.slow

chromium, pages, visit = viz_browser.chromium, viz_browser.pages, viz_browser.visit  # fixtures


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_page_shows_question_answer_and_the_totals_that_python_counts(visit: Open) -> None:
    page = visit("deep")
    sums = rlm_viz.totals(journals.deep_run())
    assert page.inner_text("#question") == journals.QUESTION
    page.locator(".qa").get_by_role("button", name="Raw").click()
    assert page.inner_text("#answer") == journals.ANSWER
    titles, figures = page.locator(".cards dt"), page.locator(".cards dd:not(.note)")
    cards = dict(zip(titles.all_text_contents(), figures.all_text_contents(), strict=True))
    assert cards["Calls"] == f"{sums['calls']:,}"
    assert cards["Tokens"] == f"{sums['tokens']:,}"
    assert cards["Cost"] == rlm_viz.money(sums["cost_usd"])
    assert cards["Duration"] == rlm_viz.duration(sums["duration_ms"])
    assert cards["Depth"] == "4"
    root = page.locator("#rows [role=row]").first.locator(".figure span").all_text_contents()
    assert root == [f"{sums['tokens']:,}", rlm_viz.money(sums["cost_usd"]), rlm_viz.duration(sums["duration_ms"])]


def test_figures_are_written_the_same_in_python_and_in_the_page(visit: Open) -> None:
    page = visit("deep")
    amounts = [0, 1e-6, 0.00005, 0.00999, 0.0999999, 0.03125, 0.1 + 0.2, 7, 99.99999, 100, 12345.678]
    spans = [0, 0.04, 0.05, 9.95, 10.5, 999.4, 999.5, 1250, 59_949, 59_950, 60_500, 3_599_499, 7_380_000, 1e11]
    for unpriced in (0, 3):
        shown = page.evaluate("([values, n]) => values.map(value => money(value, n))", [amounts, unpriced])
        assert shown == [rlm_viz.money(amount, unpriced) for amount in amounts]
    assert page.evaluate("values => values.map(duration)", spans) == [rlm_viz.duration(span) for span in spans]


def test_recursion_and_parallel_calls_are_visible(visit: Open) -> None:
    page = visit("deep")
    shown = names(page)
    assert shown.count("rlm_query") == 3
    batch = page.locator("#rows [role=row]", has_text="llm_query × 64")
    assert "16 at once" in batch.inner_text()
    assert batch.get_attribute("aria-expanded") == "false"
    batch.locator(".twist").click()
    assert names(page).count("llm_query") == shown.count("llm_query") + 64
    page.locator("#rows [role=row]", has_text="cell 3").first.click()
    assert "16 at once" in page.inner_text("#inspector")


def test_code_and_output_stand_side_by_side_with_the_failing_line_marked(visit: Open) -> None:
    page = visit("failed", viewport={"width": 2000, "height": 900})
    page.locator("#rows [role=row]", has_text="cell 3").click()
    code, error = page.locator("#inspector pre.src").first, page.locator("#inspector .block.error pre").first
    assert code.locator(".kw").all_text_contents()[:2] == ["for", "in"]
    assert code.locator(".at").inner_text() == "rate = count / total"
    assert error.inner_text() == journals.TRACEBACK
    left, right = code.bounding_box(), error.bounding_box()
    assert left["x"] + left["width"] <= right["x"] and abs(left["y"] - right["y"]) < 60


def test_the_inspector_names_everything_a_call_carries(visit: Open) -> None:
    page = visit("deep")
    page.locator("#rows [role=row]", has_text="turn 2").first.click()
    told = page.inner_text("#inspector")
    for words in ("gpt-4o", "Tokens", "cached", "Cost", "Time", "stop reason", "attempts", "tokens left"):
        assert words.lower() in told.lower()
    for words in ("Failures can be counted with code.", "Code to run", "What it ran", "Prompt · tool"):
        assert words in told
    assert "stored in event 2" in told  # the tool message is in the cell's own line, and shown from there
    page.locator("#inspector .block", has_text="Prompt · tool").locator(".more").click()
    assert "5242880 characters" in page.inner_text("#inspector")


def test_nothing_is_cut_without_a_button_that_shows_all(visit: Open) -> None:
    page = visit("deep")
    page.locator("#rows [role=row]", has_text="llm_query × 64").locator(".twist").click()
    page.locator("#rows [role=row] b", has_text=re.compile("^llm_query$")).first.click()
    prompt = page.locator("#inspector .block", has_text="Prompt · user")
    assert prompt.locator(".more").inner_text() == "Show all 93 lines"
    prompt.locator(".more").click()
    assert prompt.locator("pre").inner_text().count("status=503 pool timeout") == 90
    assert prompt.locator(".more").count() == 0


def test_the_answer_links_to_where_it_came_from(visit: Open) -> None:
    page = visit("deep")
    page.get_by_role("button", name="from turn 5, cell 5").click()
    assert "FINAL_VAR" in page.inner_text("#inspector pre.src")


def test_timeline_lanes_keep_parallel_calls_apart_and_draw_gaps(visit: Open) -> None:
    page = visit("resumed", "#v=2")
    assert page.evaluate("run.time.gaps.length") == 1
    width = page.evaluate("run.time.share(run.time.gaps[0][1]) - run.time.share(run.time.gaps[0][0])")
    assert 0.01 < width < 0.1
    clashes = page.evaluate(
        """() => { let clashes = 0;
        for (let a = 0; a < run.count; a++) for (let b = a + 1; b < run.count; b++)
          clashes += run.lane[a] === run.lane[b] && run.start[a] + 1.1 < run.end[b] && run.start[b] + 1.1 < run.end[a];
        return clashes; }"""
    )
    assert clashes == 0
    there_and_back = page.evaluate(
        "[0, 500, 9000, run.time.total].map(t => Math.abs(run.time.when(run.time.share(t)) - t))"
    )
    assert max(there_and_back) < 1
    page.get_by_role("button", name="Shorten idle gaps").click()
    assert page.get_by_role("button", name="Shorten idle gaps").get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="Zoom in").click()
    assert page.evaluate("FLAME.to - FLAME.from") == pytest.approx(0.625)
    page.get_by_role("button", name="Fit").click()
    assert page.evaluate("[FLAME.from, FLAME.to]") == [0, 1]


def test_a_click_in_the_timeline_selects_what_is_under_it(visit: Open) -> None:
    page = visit("deep", "#v=2")
    settle(page)
    page.locator("#v2 canvas").click(position={"x": 400, "y": 22 + 19 * 0 + 8})
    assert page.inner_text("#inspector h2") == "run"
    page.locator("#v2 canvas").focus()
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("FLAME.from") > 0.18


def test_charts_count_what_the_columns_hold(visit: Open) -> None:
    page = visit("deep", "#v=3")
    figures = page.locator("#v3 figure")
    titles = ["Tokens per call", "Duration per call", "Cumulative cost", "Where the time went", "Calls by model"]
    assert figures.locator("figcaption b").all_text_contents() == [*titles, "Cost by model", "Tools"]
    assert "83 calls" in figures.nth(0).locator("svg[role=img]").get_attribute("aria-label")
    sums = rlm_viz.totals(journals.deep_run())
    assert figures.nth(2).locator(".y span").first.inner_text() == rlm_viz.money(sums["cost_usd"])
    assert figures.nth(4).locator(".share > span:nth-child(3n)").all_text_contents() == ["69 · 83 %", "14 · 17 %"]
    assert figures.nth(4).locator(".donut circle").count() == 2
    page.locator("#v3 figure").nth(0).locator("g").last.click(force=True)
    assert page.url.endswith("v=1") or "v=" not in page.url
    assert page.inner_text("#inspector h2").startswith("turn")


def test_unknown_prices_are_never_zero(visit: Open) -> None:
    page = visit("resumed")
    row = page.locator("#rows [role=row]", has_text="llm_query × 24")
    assert row.locator(".figure").nth(1).locator("span").inner_text() == "?"
    page.get_by_role("tab", name="Charts").click()
    assert "24 calls of unknown price" in page.inner_text("#v3")


# --- moving about -----------------------------------------------------------------------------------------------------


def test_the_tree_is_worked_by_the_treegrid_keys(visit: Open) -> None:
    page = visit("deep")
    page.locator("#rows [role=row]").first.focus()
    steps = [("ArrowDown", "turn 1"), ("ArrowDown", "cell 1"), ("ArrowLeft", "turn 1"), ("ArrowLeft", "turn 1")]
    steps += [("ArrowDown", "turn 2"), ("ArrowUp", "turn 1"), ("ArrowRight", "turn 1"), ("ArrowDown", "cell 1")]
    steps += [("j", "turn 2"), ("k", "cell 1"), ("End", "answered"), ("Home", "run")]
    for key, expected in steps:
        page.keyboard.press(key)
        assert chosen(page) == expected, key
    assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "gridcell"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "row"
    page.keyboard.press("ArrowLeft")
    assert names(page) == ["run"]
    tabbable = page.evaluate("document.querySelectorAll('#rows [tabindex=\"0\"]').length")
    assert tabbable == 1


def test_every_row_says_its_place_to_a_screen_reader(visit: Open) -> None:
    page = visit("deep")
    rows = page.locator("#rows [role=row]")
    assert rows.nth(0).get_attribute("aria-level") == "1"
    assert rows.nth(2).get_attribute("aria-level") == "3"
    assert rows.nth(2).get_attribute("aria-expanded") is None
    assert page.locator("#grid").get_attribute("aria-rowcount") == str(rows.count() + 1)
    assert [rows.nth(i).get_attribute("aria-rowindex") for i in range(3)] == ["2", "3", "4"]


def test_views_errors_and_the_legend_by_key(visit: Open) -> None:
    page = visit("failed")
    for key, view in (("2", "Timeline"), ("3", "Charts"), ("4", "Runs"), ("5", "Transcript"), ("1", "Tree")):
        page.keyboard.press(key)
        assert page.locator("[role=tab][aria-selected=true]").inner_text() == view
        assert page.locator(f"#v{key}").is_visible()
    page.keyboard.press("f")
    assert page.inner_text("#inspector h2") == "cell 3"
    page.keyboard.press("f")
    assert page.inner_text("#inspector h2") == "cell 4"
    page.keyboard.press("?")
    legend = page.inner_text("#legend")
    for item in page.locator("[data-shortcut]").all():
        for key in item.get_attribute("data-shortcut").split():
            assert key in legend
    page.keyboard.press("Escape")
    assert not page.locator("#legend").is_visible()


def test_a_link_leads_to_its_event_and_back_and_forward_work(visit: Open) -> None:
    page = visit("deep", "#e=10&v=1")
    assert page.locator("#rows [aria-selected=true] b").inner_text() == "llm_query"
    page.locator("#rows [role=row]", has_text="turn 1").first.click()
    page.get_by_role("tab", name="Charts").click()
    page.go_back()
    page.wait_for_selector("#v1:visible")
    assert page.locator("#rows [aria-selected=true] b").inner_text() == "turn 1"
    page.go_back()
    until(page, "STATE.e === '10'")
    assert page.locator("#rows [aria-selected=true] b").inner_text() == "llm_query"
    page.go_forward()
    until(page, "document.querySelector('#inspector h2').textContent === 'turn 1'")


@pytest.mark.parametrize(
    ("fragment", "said"),
    [
        ("#e=99999", "This run has no event “99999”."),
        ("#e=__proto__", "This run has no event “__proto__”."),
        ("#run=nope", "This page has no run “nope”."),
        ("#v=77&k=<img>&d=x", ""),
    ],
)
def test_an_unknown_address_says_so(visit: Open, fragment: str, said: str) -> None:
    assert visit("deep", fragment).inner_text("#notice") == said


def test_search_finds_names_and_bodies_and_opens_what_is_closed(visit: Open) -> None:
    page = visit("deep")
    page.keyboard.press("c")
    assert names(page) == ["run", "turn 1", "turn 2", "turn 3", "turn 4", "turn 5", "answered"]
    page.keyboard.press("/")
    page.keyboard.type("chunk 17")
    until(page, "document.getElementById('hits').textContent === '1'")
    page.keyboard.press("Enter")
    assert page.inner_text("#hits").startswith("1 / 1")
    assert page.locator("#rows [aria-selected=true] b").inner_text() == "llm_query"
    assert "q=chunk+17" in page.url
    page.fill("#q", "Pool Timeout")
    until(page, "/^\\d+$/.test(document.getElementById('hits').textContent)")
    count = int(page.inner_text("#hits"))
    assert count > 64
    page.locator("#q").press("Enter")
    assert page.inner_text("#hits").startswith(f"1 / {count}")
    page.evaluate("SEARCH.ranges = []")  # nothing more in this event
    page.locator("#q").press("Shift+Enter")
    assert page.inner_text("#hits").startswith(f"{count} / {count}")


def test_search_sees_values_and_not_the_names_of_fields(visit: Open) -> None:
    page = visit("deep", "#q=stop_reason")
    until(page, "document.getElementById('hits').textContent === 'no match'")
    page.evaluate("STATE.q = 'in failed)\\nby_service'; search()")
    until(page, "document.getElementById('hits').textContent === '2'")
    assert page.locator("#rows .hit b").all_text_contents() == ["turn 2", "cell 2"]


def test_filters_combine_and_stay_in_the_address(visit: Open) -> None:
    page = visit("deep")
    page.keyboard.press("i")
    page.locator(".chip", has_text="cell").click()
    page.locator(".sheet select").nth(0).select_option("3")
    assert names(page)[:4] == ["run", "turn 4", "cell 4", "rlm_query"]  # the way to those that pass
    assert page.locator("#rows [role=row]:not(.dim) b").all_text_contents() == ["cell 1", "cell 2", "cell 3"]
    assert "k=cell" in page.url and "d=3" in page.url
    again = visit("deep", page.url[page.url.index("#") :])
    assert names(again) == names(page)
    page.get_by_role("button", name="Clear filters").click()
    assert "k=" not in page.url
    errors = visit("failed", "#err=1")
    assert errors.locator("#rows [role=row]:not(.dim)").count() == 6
    assert visit("failed", "#t=file_read").locator("#rows [role=row]:not(.dim) b").all_text_contents() == ["file_read"]
    assert visit("failed", "#ms=20000").locator("#rows [role=row]:not(.dim) b").all_text_contents() == ["cell 4"]
    assert visit("failed", "#cost=9").inner_text("#rows") == "No row passes these filters."


def test_copy_gives_the_text_itself(visit: Open) -> None:
    page = visit("hostile", "#e=1", permissions=["clipboard-read", "clipboard-write"])
    page.locator("#inspector .block", has_text="Response").get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == journals.HOSTILE[0]
    page.get_by_role("button", name="Copy JSON").click()
    assert json.loads(page.evaluate("navigator.clipboard.readText()"))["event"] == "call"
    page.get_by_role("button", name="Copy link").click()
    assert page.evaluate("navigator.clipboard.readText()").endswith("e=1")


def test_several_runs_can_be_picked(visit: Open) -> None:
    page = visit("several")
    assert page.locator("#pick option").count() == 3
    page.locator("#pick").select_option("1")
    until(page, "run.place === 1")
    assert page.inner_text("#status") == "error"
    assert "run=2a3a21-6b01a1" in page.url
    page.keyboard.press("4")
    assert page.locator("#v4 tbody tr").count() == 3
    page.get_by_role("button", name="92010b-2ad124").click()
    until(page, "run.place === 2")
    page.go_back()
    until(page, "run.place === 1")
    last = len(journals.resumed_run()) - 1
    assert visit("several", f"#run=92010b-2ad124&e={last}").locator("#inspector h2").inner_text() == "answered"


def test_two_runs_are_compared(visit: Open) -> None:
    page = visit("diff")
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "Runs"
    assert page.locator(".deltas dt").all_text_contents() == ["Calls", "Tokens", "Cost", "Duration", "Errors", "Depth"]
    assert "First divergence" in page.inner_text("#v4")
    assert page.locator("#divergence").count() == 1
    page.locator("#divergence summary").click()
    page.locator("#divergence .link").first.click()
    page.wait_for_selector("#v1:visible")
    assert page.locator("#rows [aria-selected=true]").count() == 1


def test_exports_open_elsewhere(visit: Open) -> None:
    page = visit("deep")
    page.locator("#export summary").click()

    def download(label: str) -> str:
        with page.expect_download() as got:
            page.get_by_role("button", name=label).click()
        return Path(got.value.path()).read_text()

    table = list(csv.DictReader(io.StringIO(download("CSV of all rows"))))
    assert len(table) == page.evaluate("run.count")
    assert sum(int(row["input"]) + int(row["output"]) for row in table) == rlm_viz.totals(journals.deep_run())["tokens"]
    trace = json.loads(download("Chrome trace JSON"))["traceEvents"]
    assert {event["ph"] for event in trace} == {"X"} and len(trace) == len(table)
    for thread in {event["tid"] for event in trace}:
        open_until = [float("inf")]
        for event in sorted((e for e in trace if e["tid"] == thread), key=lambda e: (e["ts"], -e["dur"])):
            while event["ts"] >= open_until[-1] - 1100:
                open_until.pop()
            assert event["ts"] + event["dur"] <= open_until[-1] + 1100, "spans of one thread must nest"
            open_until.append(event["ts"] + event["dur"])


def test_a_spreadsheet_does_not_run_a_cell_of_the_csv(visit: Open) -> None:
    page = visit("deep")
    page.evaluate("run.texts[0] = '=HYPERLINK(1)'")
    assert '"\'=HYPERLINK(1)"' in page.evaluate("asCsv()")


# --- large, odd and hostile -------------------------------------------------------------------------------------------


def test_a_large_tree_has_few_elements_and_every_row_in_reach(visit: Open) -> None:
    page = visit("large")
    page.keyboard.press("e")
    count = page.evaluate("run.visible.length")
    assert count == page.evaluate("run.count") > 9000
    assert page.locator("#rows > *").count() < 120
    page.locator("#rows [role=row]").first.focus()
    page.keyboard.press("End")
    assert chosen(page) == "answered"
    settle(page)
    assert page.locator("#rows > *").count() < 140
    assert page.evaluate("document.activeElement.getAttribute('aria-rowindex')") == str(count + 1)
    page.keyboard.press("ArrowUp")
    assert chosen(page).startswith("turn")
    page.evaluate("scrollTo(0, 60000)")
    settle(page)
    assert page.evaluate("[...document.querySelectorAll('#rows > *')].some(r => r.getBoundingClientRect().top > 200)")


def test_a_chain_of_a_thousand_levels_opens(visit: Open) -> None:
    page = visit("chain", "#e=1500")
    assert "level" in page.locator("#rows [aria-selected=true]").inner_text()
    page.keyboard.press("2")
    settle(page)
    page.keyboard.press("3")


@pytest.mark.parametrize(
    "log", [b"", b'{"event":"start","prompt":"torn"}\n{"event":', b"noise\n", b'{"event":"odd"}\n']
)
def test_a_damaged_log_opens_and_says_what_was_left_out(visit: Open, pages: Path, log: bytes) -> None:
    (pages / "damaged.jsonl").write_bytes(log)
    rlm_viz.write([pages / "damaged.jsonl"], pages / "damaged.html")
    page = visit("damaged")
    assert re.search("empty|torn|not JSON|unknown event", page.inner_text(".problems"))
    for key in "2341":
        page.keyboard.press(key)


def test_no_runs_at_all_is_a_page_too(visit: Open, pages: Path) -> None:
    rlm_viz.write([], pages / "none.html")
    assert "There is no run here yet." in visit("none", wait=False).inner_text("main")


def open_everything(page: Any) -> None:
    """Show every event of the page in every view."""
    page.evaluate("setAll(true)")
    page.evaluate("(async () => { for (let i = 0; i < run.count; i += 1) await showEvent(i); })()")
    for view in "2341":
        page.evaluate(f"setView({view})")
    page.evaluate("document.querySelectorAll('#inspector .more').forEach(more => more.click())")


def test_nothing_hostile_runs_and_nothing_is_fetched(visit: Open, pages: Path) -> None:
    page = visit("hostile")
    open_everything(page)
    assert page.evaluate("window.hit") is None
    assert [url for url in page.asked if not url.startswith("data:")] == [f"file://{pages}/hostile.html"]
    assert page.evaluate("document.querySelectorAll('#app img, #app style, #app script, #app [onerror]').length") == 0
    assert page.evaluate("({}).polluted") is None


def test_hostile_text_is_shown_as_it_is(visit: Open) -> None:
    page = visit("hostile")
    length = len(journals.hostile_base())
    for number, payload in enumerate(journals.HOSTILE):
        page.evaluate(f"showEvent(run.rowAt[{number * length + 1}])")
        shown = page.evaluate("document.querySelector('#inspector pre').textContent")
        assert well_formed(shown) == well_formed(payload)


def well_formed(text: str) -> str:
    """The text with what a browser makes of lone surrogates."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def test_direction_marks_are_named_and_confined(visit: Open) -> None:
    page = visit("hostile")
    place = 10 * len(journals.hostile_base()) + 1
    page.evaluate(f"showEvent(run.rowAt[{place}])")
    marks = page.locator("#inspector pre").first.locator(".ctl")
    assert marks.evaluate_all("all => all.map(e => e.dataset.u)") == ["U+202E", "U+2066", "U+200B", "U+FEFF"]
    assert marks.first.evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"


def test_the_policy_stops_what_would_get_past_the_escaping(visit: Open) -> None:
    page = visit("deep")
    page.evaluate(
        """() => { insertMarkup.call(document.body, 'beforeend',
             '<img src=x onerror="window.hit=1"><img src="http://127.0.0.1:9/x.png"><div style="color:red" id=styled>');
           const script = document.createElement('script');
           script.textContent = 'window.hit=2';
           document.body.append(script); }"""
    )
    fetched = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'fetched', () => 'refused')")
    assert (fetched, page.evaluate("window.hit")) == ("refused", None)
    assert page.evaluate("getComputedStyle(document.getElementById('styled')).color") != "rgb(255, 0, 0)"
    assert any("Content Security Policy" in trouble for trouble in page.troubles)
    page.troubles.clear()


def test_firefox_opens_the_page_and_nothing_hostile_runs(pages: Path) -> None:
    need("firefox-esr")
    from firefox import Firefox

    ready = "new Promise(done => { const look = () => {} ? done(1) : setTimeout(look, 9); look(); })"
    ready = ready.replace("{}", "document.documentElement.dataset.ready")
    with Firefox("firefox-esr") as browser:
        for name in ("deep", "large", "hostile"):
            browser.open(f"file://{pages}/{name}.html")
            assert browser.evaluate(ready) == 1
            assert browser.evaluate("document.querySelectorAll('#rows > *').length") > 5
        browser.evaluate("(async () => { setAll(true); for (let i = 0; i < run.count; i++) await showEvent(i); })()")
        assert browser.evaluate("window.hit") is None
        browser.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit=1\">')")
        assert browser.evaluate("fetch('http://127.0.0.1:9/').then(() => 'fetched', () => 'refused')") == "refused"
        assert browser.evaluate("window.hit") is None
        outside = [url for url in browser.requests if not url.startswith(("file:", "data:"))]
        assert outside == []
        assert [error for error in browser.errors if "Content-Security-Policy" not in error] == []


# --- for everyone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", [1, 2, 3, 4, 5])
def test_axe_finds_nothing(visit: Open, theme: str, view: int) -> None:
    axe = node_module("axe-core/axe.min.js").read_text()
    for name, size in (("diff" if view == 4 else "failed", WIDE), ("resumed", PHONE)):
        page = visit(name, f"#v={view}" + ("&e=6" if size is WIDE else ""), color_scheme=theme, viewport=size)
        if view == 1:
            page.keyboard.press("i")
        if name == "diff":
            page.locator("#divergence summary").click()
        if view == 5:
            page.wait_for_selector("#script .act pre")
            page.locator("#q").fill("status")
            page.wait_for_selector("#found button")
        page.evaluate(axe)
        found = page.evaluate("axe.run()")
        assert [(rule["id"], [n["html"][:200] for n in rule["nodes"]]) for rule in found["violations"]] == []


def test_without_javascript_the_essentials_are_there(visit: Open) -> None:
    page = visit("deep", wait=False, java_script_enabled=False)
    told = page.inner_text("body")
    assert journals.QUESTION in told and "deploy at 02:12" in told
    assert "75,753" in told and "answered" in told
    assert page.locator("#static tbody tr").count() == len(rlm_viz.rows(journals.deep_run()))
    assert not page.locator("#app").is_visible()
    assert visit("chain", wait=False, java_script_enabled=False).locator("#static tbody tr").count() == 200


def test_print_shows_question_answer_totals_and_rows(visit: Open) -> None:
    page = visit("several", "#run=2a3a21-6b01a1")
    page.emulate_media(media="print")
    assert not page.locator("#app").is_visible() and not page.locator("#top").is_visible()
    assert "How large was the share" in page.inner_text("#summary")
    assert "file_read" in page.inner_text("#static")


def test_the_theme_follows_the_system_and_the_button(visit: Open) -> None:
    page = visit("deep", color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.keyboard.press("t")
    light = page.evaluate(background)
    assert dark != light
    page.reload()
    page.wait_for_selector("html[data-ready]")
    page.wait_for_function(f"{background} === {json.dumps(light)}")
    assert visit("deep", color_scheme="light").evaluate(background) == light


def test_reduced_motion_is_respected(visit: Open) -> None:
    moving = "getComputedStyle(document.querySelector('.twist.has'), '::before').transitionDuration"
    assert visit("deep", reduced_motion="reduce").evaluate(moving) == "0s"
    assert visit("deep", reduced_motion="no-preference").evaluate(moving) != "0s"


@pytest.mark.parametrize("name", ["deep", "failed", "hostile", "diff"])
def test_on_a_phone_it_is_one_column_with_targets_to_hit(visit: Open, name: str) -> None:
    page = visit(name, viewport=PHONE, has_touch=True)
    for view in (4, 3, 2, 1):
        page.evaluate(f"setView({view})")
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        small = page.evaluate(
            """[...document.querySelectorAll('button:not(.link), select, input, summary, #rows [role=row]')]
               .filter(e => e.offsetWidth && (e.offsetHeight < 44 || e.offsetWidth < 44))
               .map(e => e.outerHTML.slice(0, 80) + e.offsetWidth + 'x' + e.offsetHeight)"""
        )
        assert small == []
    page.locator("#rows [role=row]").nth(1).tap()
    assert page.locator("#inspector").bounding_box()["width"] == 360
    page.get_by_role("button", name="Close").tap()
    assert not page.locator("#inspector").is_visible()


@pytest.mark.parametrize("width", [1440, 1024, 360])
def test_nothing_is_wider_than_the_window(visit: Open, width: int) -> None:
    page = visit("hostile", "#e=18", viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_page_that_is_served_follows_its_log(visit: Open, tmp_path: Path) -> None:
    events = journals.deep_run(levels=1, calls=4)
    path = journals.save(events[:6], tmp_path)
    server = rlm_viz.make_server(tmp_path, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        page = visit(f"http://127.0.0.1:{server.server_address[1]}/")
        assert page.inner_text("#status") == "unfinished"
        page.locator("#rows [role=row]").nth(1).click()
        with open(path, "a", encoding="utf-8") as log:
            log.write(journals.dumps(events[6:]))
        page.wait_for_selector("#status.answered")
        page.wait_for_selector("html[data-ready]")
        assert page.locator("#rows [aria-selected=true] b").inner_text() == "turn 1"
        assert {url.split("?")[0].rsplit("/", 1)[1] for url in page.asked if url.startswith("http")} == {"", "version"}
    finally:
        page.context.close()
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_served_link_to_another_run_finds_it(visit: Open, tmp_path: Path) -> None:
    logs = [journals.save(events, tmp_path) for events in (journals.deep_run(), journals.failed_run())]
    os.utime(logs[0], (1, 1))
    server = rlm_viz.make_server(tmp_path, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        page = visit(f"http://127.0.0.1:{server.server_address[1]}/#run=52e6b4-f2a74d&e=70")
        page.wait_for_selector("#status.answered")
        page.wait_for_selector("#inspector h2")
        assert page.inner_text("#inspector h2") == "cell 3"
        page.keyboard.press("4")
        page.get_by_role("button", name="2a3a21-6b01a1").click()
        page.wait_for_selector("#status.error")
    finally:
        page.context.close()
        server.shutdown()
        thread.join()
        server.server_close()


# --- the program itself -----------------------------------------------------------------------------------------------


def test_the_module_holds_the_sources_of_the_page() -> None:
    done = subprocess.run([sys.executable, ROOT / "viewer" / "build.py", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_source_of_the_page_is_part_of_it() -> None:
    names = {path.name for path in (ROOT / "viewer").iterdir() if path.is_file()}
    build = (ROOT / "viewer" / "build.py").read_text()
    for name in names - {"build.py", "eslint.config.js"}:
        assert f'"{name}"' in build or f'"{name.removesuffix(".js")}"' in build, name


def test_the_scripts_are_sound() -> None:
    need("node")
    for path in (ROOT / "viewer").glob("*.js"):
        subprocess.run(["node", "--check", path], check=True)


def test_the_linter_has_nothing_to_say(tmp_path: Path) -> None:
    need("node")
    eslint = node_module("eslint/bin/eslint.js")
    build = importlib.util.spec_from_file_location("build", ROOT / "viewer" / "build.py")
    assert build and build.loader
    made = importlib.util.module_from_spec(build)
    build.loader.exec_module(made)
    (tmp_path / "eslint.config.js").write_bytes((ROOT / "viewer" / "eslint.config.js").read_bytes())
    (tmp_path / "page.js").write_text(made.source(*(f"{name}.js" for name in made.SCRIPTS)))
    command = ["node", str(eslint), "--no-cache", "page.js"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
