"""The page as a reader: what happened, what was sent, where a value comes from; in a real Chromium."""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import journals
import pytest
import viz_browser
from viz_browser import PHONE, Open, names, settle, until

import rlm_viz

pytestmark = pytest.mark.slow
chromium, pages, visit = viz_browser.chromium, viz_browser.pages, viz_browser.visit  # fixtures


def row(page: Any, name: str) -> Any:
    return page.locator("#rows [role=row]", has=page.locator("b", has_text=re.compile(f"^{re.escape(name)}$"))).first


def told(page: Any, name: str) -> str:
    """A row's words: what it is → what came of it."""
    return " ".join(row(page, name).locator(".said, .arrow, .out").all_text_contents())


def inspected(page: Any, title: str) -> None:
    until(page, f"document.querySelector('#inspector h2')?.textContent === {json.dumps(title)}")


# --- rows tell the outcome --------------------------------------------------------------------------------------------


def test_a_row_tells_what_it_is_and_what_came_of_it(visit: Open) -> None:
    page = visit("failed")
    assert told(page, "cell 2").startswith("by_service.most_common(4) → [('payments', 1771)")
    assert told(page, "cell 3") == "rate = count / total → ZeroDivisionError: division by zero"
    assert row(page, "cell 3").locator(".out.failed").count() == 1
    assert told(page, "file_read").endswith("PermissionError: 'notes/../../etc/passwd' is outside the allowed paths")
    assert told(page, "turn 4") == "while True:"
    deep = visit("deep")
    row(deep, "llm_query × 64").locator(".twist").click()
    assert re.fullmatch(r"#1 → (pool-timeout|deploy|oom)", told(deep, "llm_query"))
    assert told(deep, "rlm_query").endswith(
        "→ pool of ledger-db exhausted: 02:14:07 ERROR payments pool timeout after 5000 ms"
    )
    assert "execute_code" not in deep.inner_text("#rows")


def test_a_turn_without_words_shows_its_first_comment(visit: Open) -> None:
    assert told(visit("many"), "turn 1") == "行を数える"


# --- the heading explains ---------------------------------------------------------------------------------------------


def test_the_answer_is_markdown_with_a_switch_to_its_source(visit: Open) -> None:
    page = visit("deep")
    answer = page.locator("#answer")
    assert answer.locator("strong").inner_text() == "02:14 to 02:51 UTC"
    assert answer.locator("li").count() == 3
    assert answer.locator("code").all_text_contents()[:2] == ["503", "payments"]
    page.locator(".qa").get_by_role("button", name="Raw").click()
    assert answer.inner_text() == journals.ANSWER and answer.locator("li, strong").count() == 0


MARKDOWN = """# Heading
Text with *stress*, **bold `code`** and a < b.

1. one
   - deeper
2. two

| a | b |
|---|--:|
| 1 | <img src=x onerror=window.hit=1> |

```python
x = "**not bold**"
```
> quoted
---
**unclosed and `unclosed"""


def test_markdown_is_made_of_text_nodes(visit: Open) -> None:
    page = visit("deep")
    page.evaluate(
        "text => { const box = markdown(text); box.id = 'made'; document.querySelector('main').append(box); }", MARKDOWN
    )
    made = page.locator("#made")
    assert made.locator(".mdh").inner_text() == "Heading"
    assert made.locator("em").inner_text() == "stress"
    assert made.locator("strong").inner_text() == "bold code"
    assert made.locator("ol > li").count() == 2 and made.locator("ol ul li").inner_text() == "deeper"
    assert made.locator("td").all_text_contents() == ["1", "<img src=x onerror=window.hit=1>"]
    assert made.locator("pre .str").inner_text() == '"**not bold**"'
    assert made.locator("blockquote").inner_text() == "quoted" and made.locator("hr").count() == 1
    assert made.inner_text().endswith("**unclosed and `unclosed")
    assert page.evaluate("window.hit") is None and made.locator("img").count() == 0


@pytest.mark.parametrize(
    "text", ["**" * 20_000, "`" * 40_000, "* " * 20_000, "| " * 20_000 + "\n" + "|-" * 9000, "> " * 9000]
)
def test_markdown_of_a_hostile_text_takes_no_time(visit: Open, text: str) -> None:
    page = visit("deep")
    assert (
        page.evaluate("text => { const t = performance.now(); markdown(text); return performance.now() - t; }", text)
        < 3000
    )


def test_a_failed_run_says_why_and_what_to_do(visit: Open) -> None:
    page = visit("failed", permissions=["clipboard-read", "clipboard-write"])
    why = page.inner_text("#failure")
    assert "ProviderError: openai answered 429 five times: quota exceeded" in why
    assert "raise the quota" in why
    page.locator(".command button").click()
    assert page.evaluate("navigator.clipboard.readText()") == "rlm resume 2a3a21-6b01a1"
    page.locator("#failure .link").click()
    inspected(page, "cell 3")


def test_a_partial_run_keeps_its_reason_beside_what_it_found(visit: Open, pages: Path) -> None:
    events = journals.resumed_run()
    stop = next(n for n, event in enumerate(events) if event["event"] == "end")
    events[stop] = {**events[stop], "response": "So far: a pool timeout."}
    (pages / "partial.html").write_text(rlm_viz.render(events[: stop + 1]), encoding="utf-8")
    page = visit("partial")
    assert page.inner_text("#answer") == "So far: a pool timeout."
    assert "TokenBudgetExhausted: token budget exhausted" in page.inner_text("#failure")
    assert "--token-budget 120000" in page.inner_text("#failure")
    bare = visit("partial", wait=False, java_script_enabled=False)
    assert "TokenBudgetExhausted" in bare.inner_text("#summary") and "--token-budget" in bare.inner_text("#summary")


def test_findings_are_told_in_words_and_lead_to_their_event(visit: Open) -> None:
    page = visit("deep")
    page.wait_for_selector(".findings li")
    assert page.locator(".findings li").all_text_contents() == [
        "55 % of the cost in one child",
        "6 calls retried: 6.0 s",
    ]
    page.locator(".findings .link").first.click()
    inspected(page, "rlm_query")
    for name, words in (("chat", ["answered without running code"]), ("long", ["the same cell 2 times"])):
        page = visit(name)
        page.wait_for_selector(".findings li")
        assert page.locator(".findings li").all_text_contents() == words


def test_the_meters_of_a_conversation_are_of_its_latest_prompt(visit: Open, pages: Path) -> None:
    events = journals.text_run()
    for event in events:
        if event["event"] == "start":
            event["limits"] = {**event["limits"], "token_budget": 5000, "max_iterations": 4}
    (pages / "chat2.html").write_text(rlm_viz.render(events), encoding="utf-8")
    page = visit("chat2")
    cards = dict(
        zip(page.locator(".cards dt").all_text_contents(), page.locator(".cards > div").all_inner_texts(), strict=True)
    )
    assert "7,119" in cards["Tokens"] and "this prompt: 3,067 of 5,000" in cards["Tokens"]
    assert "root: 1 of 4" in cards["Turns"] and "1 node" in cards["Depth"]
    assert page.locator(".qa .link").inner_text() == "from turn 3"


def test_a_second_prompt_that_failed_has_no_source_in_the_first(visit: Open, pages: Path) -> None:
    events = journals.text_run()
    del events[-2]
    events[-1] = {
        **events[-1],
        "status": "error",
        "response": None,
        "error": {"type": "ProviderError", "message": "gone", "hint": ""},
    }
    (pages / "chat3.html").write_text(rlm_viz.render(events), encoding="utf-8")
    page = visit("chat3")
    assert page.locator(".qa h2 .link").count() == 0
    assert "ProviderError: gone" in page.inner_text("#failure")


def test_subcalls_and_durations_have_one_figure_each(visit: Open) -> None:
    page = visit("deep")
    cards = dict(
        zip(page.locator(".cards dt").all_text_contents(), page.locator(".cards > div").all_inner_texts(), strict=True)
    )
    assert "14 turns · 69 sub-calls" in cards["Calls"] and "69 llm_query · 3 rlm_query" in cards["Sub-calls"]
    for name in ("deep", "resumed", "failed"):
        page = visit(name)
        [heading] = page.locator(".cards > div", has_text="Duration").locator("dd:not(.note)").all_text_contents()
        assert row(page, "run").locator(".figure span").last.inner_text() == heading


def test_images_that_a_cell_made_are_counted(visit: Open) -> None:
    page = visit("many")
    assert told(page, "cell 1").endswith("[2 images]")
    row(page, "cell 1").click()
    inspected(page, "cell 1")
    assert "2 images made" in page.inner_text("#inspector")


def test_an_unknown_run_is_still_named_when_the_page_is_ready(visit: Open) -> None:
    page = visit("deep", "#run=nope&e=99999")
    assert page.inner_text("#notice") == "This page has no run “nope”. This run has no event “99999”."
    row(page, "turn 1").click()
    assert "This page has no run “nope”." in page.inner_text("#notice")


# --- sent to the model ------------------------------------------------------------------------------------------------


def sent(page: Any, turn: int) -> list[dict[str, Any]]:
    script = f"(async () => (await sentBefore(rowsOf('turn')[{turn - 1}])).map(wire))()"
    return list(page.evaluate(script))


def test_everything_that_a_turn_was_sent_is_rebuilt(visit: Open) -> None:
    page = visit("deep")
    events = journals.deep_run()
    messages = sent(page, 3)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "assistant", "tool"]
    assert messages[0]["content"] == events[0]["system"] and messages[1]["content"] == journals.QUESTION
    assert messages[2]["tool_calls"][0]["arguments"] == {"code": journals.LOOK}
    cell = next(event for event in events if "code" in event)
    assert messages[3]["content"] == rlm_viz.cell_text(cell)
    row(page, "turn 3").click()
    inspected(page, "turn 3")
    everything = page.locator("#inspector .choose .chip").nth(1)
    until(page, "document.querySelectorAll('#inspector .choose .chip')[1].textContent.includes('messages')")
    assert everything.inner_text() == "Everything sent (6 messages, 3,000 tokens)"
    everything.click()
    page.wait_for_selector("#inspector .role-assistant")
    assert page.locator("#inspector .sent h3").all_text_contents()[:3] == ["system", "user", "assistant · turn 1"]
    assert page.locator("#inspector .sent .more").count() >= 5  # the old ones are folded
    page.locator("#inspector .block", has_text="Tools offered").locator(".more").click()
    offered = page.locator("#inspector .block", has_text="Tools offered").inner_text()
    assert "execute_code" in offered and "Run Python." in offered


def test_compaction_left_out_attempts_and_dropped_tails_are_honoured(visit: Open) -> None:
    page = visit("long")
    fourth = sent(page, 4)
    assert [message["content"][:44] for message in fourth[3:6:2]] == [
        "[1,400 characters of output stood here; it i",
        "[1,400 characters of output stood here; it i",
    ]
    assert fourth[3]["content"].endswith("it is in _out[1]]") and fourth[7]["content"].startswith("part 3 part 3")
    fifth = sent(page, 5)
    assert [message["role"] for message in fifth] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "user",
    ]
    assert fifth[-1]["content"] == "You have this output already."
    sixth = sent(page, 6)
    assert [message["content"] for message in sixth[2:]] == ["[the work so far, summed up]\nthree parts"]
    kept = page.evaluate("replied({ response: 'The same again.\\nOutput: invented', dropped: 17 }).content")
    assert kept == "The same again."


# --- sorting ----------------------------------------------------------------------------------------------------------


def test_a_column_sorts_by_own_value_reverses_and_gives_the_tree_back(visit: Open) -> None:
    page = visit("deep")
    tree = names(page)
    cost = page.locator("#grid [data-sort=cost]")
    for url, order, sort in (("s=cost", "descending", -1), ("s=-cost", "ascending", 1)):
        cost.locator("button").click()
        assert url in page.url and cost.get_attribute("aria-sort") == order
        values = page.evaluate("run.visible.map(i => run.cost[i])")
        assert values == sorted(values, key=lambda value: sort * value) and len(values) == 83  # those in batches too
        settle(page)
    first = page.locator("#rows [role=row]").first
    assert first.locator(".where").inner_text().endswith("llm_query × 64 ›")
    cost.locator("button").click()
    assert names(page) == tree and "s=" not in page.url
    again = visit("deep", "#s=time")
    assert again.evaluate("run.visible.every((row, n, all) => !n || run.own[all[n - 1]] >= run.own[row])")
    row(again, "turn 5").click()
    again.keyboard.press("f")
    again.get_by_role("button", name="from turn 5, cell 5").click()
    assert row(again, "cell 5").get_attribute("aria-selected") == "true"


def test_money_has_two_significant_digits(visit: Open) -> None:
    page = visit("deep")
    assert row(page, "turn 3").locator(".figure").nth(1).inner_text().split() == ["$0.014", "($0.0090)"]


# --- search -----------------------------------------------------------------------------------------------------------


def test_search_lists_its_hits_and_lands_on_the_first(visit: Open) -> None:
    page = visit("deep")
    page.keyboard.press("/")
    page.keyboard.type("max_connections")
    page.wait_for_selector("#found button")
    lines = page.locator("#found button")
    until(
        page, "document.querySelector('#found mark')?.textContent === 'max_connections'"
    )  # not of what was typed before
    until(page, "!document.getElementById('hits').textContent.includes('…')")
    assert len(lines.first.locator(".around").inner_text()) <= 110
    lines.nth(1).click()
    until(page, "SEARCH.here >= 0 && SEARCH.ranges.length > 0")
    inside = page.evaluate(
        """() => { const hit = SEARCH.ranges[SEARCH.here].getBoundingClientRect();
        const box = document.getElementById('inspector').getBoundingClientRect();
        return hit.top >= box.top && hit.bottom <= box.bottom; }"""
    )
    assert inside
    page.fill("#q", "zebra crossing")
    until(page, "document.getElementById('hits').textContent === 'no match'")
    assert page.locator("#found").is_hidden()


def test_next_walks_the_hits_of_an_event_before_the_next_event(visit: Open) -> None:
    page = visit("deep")
    page.fill("#q", "pool timeout")
    until(page, "/^\\d+$/.test(document.getElementById('hits').textContent)")
    seen = []
    for _ in range(92):  # one more than the first of the batch has
        page.locator("#q").press("Enter")
        until(page, "SEARCH.here >= 0 && SEARCH.list[SEARCH.at] === rowOf(STATE.e)")
        seen.append((page.evaluate("SEARCH.at"), page.evaluate("SEARCH.here")))
    assert seen[0][0] == 0 and len(set(seen)) == len(seen)
    rows = [at for at, _ in seen]
    assert rows == sorted(rows) and len(set(rows)) >= 2
    for (at, here), (next_at, next_here) in itertools.pairwise(seen):
        assert (next_at, next_here) == (at, here + 1) or next_at == at + 1


@pytest.mark.parametrize(
    ("wanted", "finds"), [("1842", "1,842"), ("1,842", "1842"), ("1'842.50", "1 842.50"), ("61204", "61,204")]
)
def test_numbers_match_whatever_their_separators(visit: Open, wanted: str, finds: str) -> None:
    page = visit("deep")
    assert page.evaluate("([a, b]) => matcher(a).test(b)", [wanted, finds])
    assert not page.evaluate("a => matcher(a).test('18420, 19 and 7')", "1,943")


# --- the transcript ---------------------------------------------------------------------------------------------------


def test_the_transcript_reads_as_a_notebook(visit: Open) -> None:
    page = visit("failed", "#v=5")
    page.wait_for_selector("#script .act pre")
    until(page, "allSections()[0].filled")
    first = page.locator("#script > .act").first
    assert first.locator(".reply").inner_text() == "I'll look at the log before planning."
    assert first.locator("pre.src").inner_text().startswith("print(len(context)")
    assert "5242880 characters" in first.inner_text()
    assert page.locator(".outline button b").all_text_contents() == [*(f"turn {n}" for n in range(1, 7)), "error"]
    page.locator(".outline button", has_text="turn 3").click()
    page.wait_for_selector("#script .block.error")
    until(page, "document.activeElement.getAttribute('aria-label') === 'turn 3'")
    assert "ZeroDivisionError" in page.locator("#script .act", has_text="turn 3").first.inner_text()


def test_subcalls_and_children_are_folded_in_their_places(visit: Open) -> None:
    page = visit("deep", "#v=5&e=8")
    strip = page.locator("#script .strip > summary", has_text="64 calls")
    strip.wait_for()
    assert re.sub(r"\s+", " ", strip.inner_text()) == "64 calls · 16 at once · $0.0054"
    strip.click()
    page.wait_for_selector("#script .strip[open] .strip")
    assert page.locator("#script .strip[open] > .acts > .strip").count() == 64
    page.evaluate("goSection(rowsOf('turn').find(i => run.level[i] === 1 && run.names[run.name[i]] === 'turn 4'))")
    child = page.locator("#script .strip > summary", has_text="rlm_query").first
    child.click()
    page.wait_for_selector("#script .strip .act pre")
    assert "print(context[:2000])" in page.locator("#script .strip[open] .act").first.inner_text()


def test_turns_follow_each_other_by_key_and_by_button(visit: Open) -> None:
    page = visit("deep", "#v=5")
    page.wait_for_selector("#script .act pre")
    for act, title in (("]", "turn 1"), ("]", "turn 2"), ("]", "turn 3"), ("[", "turn 2")):
        page.keyboard.press(act)
        until(page, f"document.activeElement.getAttribute('aria-label') === '{title}'")
        settle(page)
    page.get_by_role("button", name="Next turn ›").click()
    until(page, "document.activeElement.getAttribute('aria-label') === 'turn 3'")


def test_sections_are_filled_only_as_they_come_into_view(visit: Open) -> None:
    page = visit("large", "#v=5")
    page.wait_for_selector("#script .act pre")
    assert page.evaluate("allSections().length") > 50
    assert page.evaluate("allSections().filter(section => section.filled).length") < 20
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    until(page, "allSections().at(-1).filled")


def test_a_phone_begins_with_the_transcript(visit: Open) -> None:
    page = visit("deep", viewport=PHONE, has_touch=True)
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "Transcript"
    page.wait_for_selector("#script .act pre")
    assert "v=" not in page.url
    page.evaluate("setView(1)")
    assert "v=1" in page.url


def test_print_has_code_output_and_errors(visit: Open) -> None:
    page = visit("failed")
    page.emulate_media(media="print")
    until(page, "document.querySelectorAll('#print .act').length === 7 && !document.querySelector('#print .more')")
    paper = page.inner_text("#print")
    assert journals.READ.splitlines()[0] in paper and "[('payments', 1771)" in paper
    assert "ZeroDivisionError: division by zero" in paper and "read this" in paper
    assert not page.locator("#app").is_visible()


# --- comparing --------------------------------------------------------------------------------------------------------


def test_a_step_that_differs_opens_into_the_lines_that_do(visit: Open) -> None:
    page = visit("diff")
    page.wait_for_selector("#divergence")
    first = page.locator("#divergence")
    one, other = first.locator(".side").all_inner_texts()
    assert one != other
    first.locator("summary").click()
    assert first.locator(".minus").inner_text()[2:] in one and first.locator(".plus").inner_text()[2:] in other
    assert not page.locator(".step.same").first.is_visible()
    page.get_by_role("button", name="Only differences").click()
    assert page.locator(".step.same").first.is_visible()
    for side in page.locator(".step.changed").all()[:20]:
        texts = side.locator(".side").all_inner_texts()
        assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("left", "right", "edits"),
    [
        ("abc", "abc", 0),
        ("abcabba", "cbabac", 5),
        ("", "ab", 2),
        ("ab", "", 2),
        ("axb", "ayb", 2),
        ("kitten", "sitting", 5),
    ],
)
def test_alignment_is_the_shortest_edit_script(visit: Open, left: str, right: str, edits: int) -> None:
    page = visit("deep")
    pairs = page.evaluate("([a, b]) => aligned([...a], [...b])", [left, right])
    assert [a for a, _ in pairs if a >= 0] == list(range(len(left)))
    assert [b for _, b in pairs if b >= 0] == list(range(len(right)))
    assert all(left[a] == right[b] for a, b in pairs if a >= 0 and b >= 0)
    assert sum(a < 0 or b < 0 for a, b in pairs) == edits


def test_a_run_does_not_differ_from_itself_and_call_ids_are_no_difference(visit: Open, pages: Path) -> None:
    one = journals.deep_run(levels=1, calls=8)
    other = json.loads(re.sub(r'"c(\d+x?)"', r'"z\1"', json.dumps(one)))
    (pages / "same.html").write_text(rlm_viz.render([one, [{**event, "trajectory_id": "b"} for event in other]]))
    page = visit("same", "#v=4&c=52e6b4-f2a74d~b")
    page.wait_for_selector("#diff .steps")
    assert "Both runs took the same steps to the same results." in page.inner_text("#diff")


def test_two_ticked_runs_are_compared(visit: Open) -> None:
    page = visit("several", "#v=4")
    assert page.locator("#compare").is_disabled()
    page.get_by_label("Compare 52e6b4-f2a74d").check()
    page.get_by_label("Compare 92010b-2ad124").check()
    page.locator("#compare").click()
    page.wait_for_selector("#diff .steps")
    assert "A 92010b-2ad124 → B 52e6b4-f2a74d" in page.inner_text("#diff")
    assert "c=92010b-2ad124~52e6b4-f2a74d" in page.url.replace("%7E", "~")
    assert "only B" in page.inner_text("#diff")


# --- where a value comes from -----------------------------------------------------------------------------------------


def test_a_value_of_the_answer_lists_every_place_it_was_in(visit: Open) -> None:
    page = visit("deep")
    page.locator("#answer .value", has_text="1,842").click()
    page.wait_for_selector(".tracing")
    assert page.locator(".tracing > p .link").all_text_contents() == ["cell 2's output"]
    assert page.locator(".tracing p").inner_text().startswith("1,842: cell 2's output → answer")
    assert page.locator(".tracing li mark").all_text_contents() == ["1,842"]
    page.locator(".tracing li .link").first.click()
    inspected(page, "cell 2")
    page.locator("#answer .value", has_text="pool timeout after 5000 ms").click()
    until(page, "document.querySelector('.tracing b').textContent === 'pool timeout after 5000 ms'")
    chain = page.locator(".tracing > p .link").all_text_contents()
    assert chain[0] == "cell 1's output" and chain[-1] == "cell 4's output" and len(chain) > 4


def test_a_value_that_is_nowhere_is_said_to_be_so(visit: Open) -> None:
    page = visit("deep")
    page.wait_for_selector("#lost")
    assert page.inner_text("#lost") == "Not found in the run: 02:51, 96 %, 02:12, max_connections"
    assert page.locator("#answer .value.lost").all_text_contents() == ["02:51", "96 %", "02:12", "max_connections"]
    page.locator("#answer .value", has_text="96 %").click()
    page.wait_for_selector(".tracing .lost")
    assert page.locator(".tracing p").inner_text().startswith("96 %: not found in the run")


@pytest.mark.parametrize(
    ("value", "text", "found"),
    [
        ("1,842", "total: 1842 rows", True),
        ("1,842", "total: 1841.7", True),
        ("1,842", "11842 or 18420", False),
        ("96 %", "share 0.9614", True),
        ("96 %", "share 0.93", False),
        ("12.35", "12.3462", True),
        ("12.35", "12.36", False),
        ("1.2 million", "1,204,331", True),
        ("3.5k", "3489", True),
        ("42", "42.4", True),
        ("7.5", "7.50", True),
        ("1.234,50", "1234.5", True),
        ("02:14", "at 02:14:07", True),
        ("“Pool  Timeout”", "a pool timeout", True),
        ("42", "the 420 of 142", False),
    ],
)
def test_a_value_is_known_whatever_its_rounding_and_separators(visit: Open, value: str, text: str, found: bool) -> None:
    assert visit("chat").evaluate("([value, text]) => recogniser(value)(text).length > 0", [value, text]) is found


def test_a_value_computed_in_the_last_cell_is_not_lost(visit: Open, pages: Path) -> None:
    journal = journals.Journal(5)
    root = journals.Node(journal, "How many?")
    root.turn("", "FINAL(total * 2)")
    root.cell("FINAL(total * 2)")
    root.end("8,412", given=True)
    (pages / "computed.html").write_text(rlm_viz.render(journal.events), encoding="utf-8")
    page = visit("computed")
    page.locator("#answer .value").click()
    page.wait_for_selector(".tracing")
    assert page.locator(".tracing p").inner_text().startswith("8,412: computed in cell 1 → answer")
    assert page.locator("#lost").count() == 0


def test_selected_text_can_be_traced(visit: Open) -> None:
    page = visit("deep", "#v=5")
    page.wait_for_selector("#script .act pre")
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#script .reply'))")
    page.wait_for_selector("#offer:visible")
    page.keyboard.press("v")
    page.wait_for_selector(".tracing")
    assert page.locator(".tracing > p .link").first.inner_text() == "turn 1's reply"


# --- runs -------------------------------------------------------------------------------------------------------------


def test_the_runs_can_be_sorted_and_filtered(visit: Open) -> None:
    page = visit("several", "#v=4")
    heads = ["Run", "Question", "Answer", "Status", "Model", "Started", "Duration", "Calls", "Errors", "Tokens", "Cost"]
    assert page.locator(".runs thead button").all_text_contents() == heads
    page.locator(".runs thead button", has_text="Tokens").click()
    assert page.locator(".runs tbody .mono").all_text_contents() == ["52e6b4-f2a74d", "92010b-2ad124", "2a3a21-6b01a1"]
    page.locator(".runs thead button", has_text="Tokens").click()
    assert page.locator(".runs tbody .mono").first.inner_text() == "2a3a21-6b01a1"
    page.get_by_label("Status", exact=True).select_option("error")
    assert page.locator(".runs tbody tr").count() == 1
    page.get_by_label("Status", exact=True).select_option("")
    page.get_by_label("Filter runs").fill("payment service failed")
    assert page.locator(".runs tbody tr").count() == 2 and page.inner_text("#listed") == "2 runs"
    phone = visit("several", "#v=4", viewport=PHONE, has_touch=True)
    cell = phone.locator(".runs td[data-label=Tokens]").first
    assert cell.bounding_box()["x"] + cell.bounding_box()["width"] <= 360
    assert "Tokens" in cell.evaluate("e => getComputedStyle(e, '::before').content")


# --- live -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """A page's address, its log of the first nine events, and all events."""
    events = journals.deep_run(levels=1, calls=4)
    path = journals.save(events[:9], tmp_path)
    server = rlm_viz.make_server(tmp_path, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", path, events
    server.shutdown()
    thread.join()
    server.server_close()


def grow(path: str, events: list[dict[str, Any]]) -> None:
    with open(path, "a", encoding="utf-8") as log:
        log.write(journals.dumps(events))


def test_a_live_page_adds_rows_and_closes_nothing(visit: Open, served: tuple[str, str, list[dict[str, Any]]]) -> None:
    address, path, events = served
    page = visit(address)
    try:
        assert page.inner_text("#ago").startswith("live, ")
        row(page, "turn 2").locator(".twist").click()  # closes it
        page.locator("#inspector .more").first.click()
        page.evaluate("window.kept = document.querySelector('#inspector .blocks'); scrollTo(0, 120)")
        before = names(page)
        grow(path, events[9:])
        page.wait_for_selector("#status.answered")
        assert page.evaluate("window.kept") is not None  # the same document
        assert row(page, "turn 2").get_attribute("aria-expanded") == "false"
        assert [name for name in before if name not in names(page)] == []
        assert "answered" in names(page) and page.evaluate("scrollY") == 120
    finally:
        page.context.close()


def test_a_live_transcript_grows_and_follows(visit: Open, served: tuple[str, str, list[dict[str, Any]]]) -> None:
    address, path, events = served
    page = visit(address + "#v=5")
    try:
        page.wait_for_selector("#script .act pre")
        page.evaluate("allSections()[0].mine = true")
        page.get_by_label("Follow").check()
        grow(path, events[9:])
        until(page, "allSections().length === 6")
        assert page.evaluate("allSections()[0].mine") is True
        until(page, f"STATE.e === '{len(events) - 1}'")
    finally:
        page.context.close()


def test_served_runs_are_compared_on_one_page(visit: Open, tmp_path: Path) -> None:
    logs = [journals.save(events, tmp_path) for events in (journals.deep_run(), journals.failed_run())]
    os.utime(logs[0], (1, 1))
    server = rlm_viz.make_server(tmp_path, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        page = visit(f"http://127.0.0.1:{server.server_address[1]}/#v=4")
        for tick in page.locator(".runs .tick input").all():
            tick.check()
        page.locator("#compare").click()
        page.wait_for_selector("#diff .steps")
        assert page.url.count("run=") >= 2
    finally:
        page.context.close()
        server.shutdown()
        thread.join()
        server.server_close()


# --- the timeline and its exports -------------------------------------------------------------------------------------


def test_the_timeline_has_round_ticks_and_a_strip_of_what_ran_at_once(visit: Open) -> None:
    page = visit("deep", "#v=2")
    settle(page)
    assert page.evaluate("ticks().map(tick => tickLabel(tick.t))")[:4] == ["0 ms", "5 s", "10 s", "15 s"]
    assert page.inner_text(".strip-chart") == "at once: up to 16"
    box = page.evaluate("FLAME.strip.getAttribute('viewBox')")
    page.get_by_role("button", name="Zoom in").click()
    settle(page)
    assert page.evaluate("FLAME.strip.getAttribute('viewBox')") != box
    for label in ("0.5 ms", "250 ms", "2.5 s", "1 m 30 s", "2 m", "1 h 30 m"):
        factor = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
        ms = sum(float(n) * factor[unit] for n, unit in re.findall(r"([\d.]+) (\w+)", label))
        assert page.evaluate("tickLabel", ms) == label


def test_speedscope_has_a_profile_for_each_node_that_nests(visit: Open) -> None:
    page = visit("deep")
    made = json.loads(page.evaluate("asSpeedscope()"))
    assert [profile["name"].split(":")[0] for profile in made["profiles"]] == [
        "1 run",
        *(f"{n} rlm_query" for n in (2, 3, 4)),
    ]
    frames = [frame["name"] for frame in made["shared"]["frames"]]
    assert {"turn", "cell", "llm_query ×"} <= {re.sub(r" × \d+$", " ×", name) for name in frames}
    assert max(map(len, frames)) < 30
    for profile in made["profiles"]:
        opened: list[int] = []
        last = profile["startValue"]
        for event in profile["events"]:
            assert event["at"] >= last
            last = event["at"]
            if event["type"] == "O":
                opened.append(event["frame"])
            else:
                assert opened.pop() == event["frame"]
        assert opened == [] and last <= profile["endValue"]


# --- small things -----------------------------------------------------------------------------------------------------


def test_joined_emoji_and_scripts_stay_whole_and_have_their_direction(visit: Open) -> None:
    page = visit("many")
    assert page.locator("#summary .ctl").count() == 0
    assert page.evaluate("put(h('p'), 'pay\\u200dpal').querySelector('.ctl').dataset.u") == "U+200D"
    first = page.locator("#answer p").first
    assert first.evaluate("e => getComputedStyle(e).direction") == "rtl"
    assert row(page, "cell 1").locator(".out").evaluate("e => getComputedStyle(e).direction") == "rtl"


def test_an_end_is_marked_for_what_it_is(visit: Open) -> None:
    resumed, failed = visit("resumed"), visit("failed")
    mark = "e => e.querySelector('.name use').getAttribute('href')"
    assert row(resumed, "partial").evaluate(mark) == "#i-stopped"
    assert row(resumed, "answered").evaluate(mark) == "#i-end"
    assert row(failed, "error").inner_text().split()[:2] == ["error", "openai"]


def test_labels_say_what_they_mean(visit: Open) -> None:
    page = visit("deep")
    page.keyboard.press("i")
    assert "Own time ≥ (ms)" in page.inner_text("#filters")
    assert page.get_by_role("button", name="Switch theme").count() == 1
    assert visit("large").locator("#rows .tag", has_text="one after another").count() == 0


def test_the_bar_does_not_stick_to_a_phone(visit: Open) -> None:
    page = visit("deep", viewport=PHONE, has_touch=True)
    assert page.evaluate("getComputedStyle(document.getElementById('bar')).position") == "static"
    boxes = [page.locator(f"#{name} > summary").bounding_box() for name in ("filters", "export")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["height"] == boxes[1]["height"]
