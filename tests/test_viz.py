"""The viewer's Python side: reading, merging, rows, totals, terminal, notebook, page text, comparison, server."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import stat
import threading
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import journals
import pytest

import rlm
import rlm_viz

Event = dict[str, Any]


def saved(tmp_path: Path, events: list[Event]) -> str:
    return journals.save(events, tmp_path)


def text_of(page: str) -> str:
    """Everything that a page says, its compressed blocks included."""
    blocks = re.findall(r'<script type="application/gzip" id="r[^"]*">([^<]*)</script>', page)
    return page + "".join(gzip.decompress(b64decode(block)).decode() for block in blocks)


# --- reading ----------------------------------------------------------------------------------------------------------

GOOD = b'{"v":1,"event":"resume","lines":3}\n'


@pytest.mark.parametrize(
    ("log", "kept", "problem"),
    [
        (b"", 0, "the log is empty"),
        (b"\n  \n", 0, ""),
        (GOOD, 1, ""),
        (GOOD + b'{"v":1,"event":"ca', 1, "the last line (2) is torn and left out"),
        (GOOD + GOOD.rstrip(), 2, ""),
        (b"not json\n" + GOOD, 1, "line 1 is not JSON and was left out"),
        (b"[1, 2]\n" + GOOD, 1, "line 1 is not an object and was left out"),
        (b'{"v":1,"event":"teleport"}\n', 1, "line 1 has an unknown event, 'teleport', shown as it is"),
        (b'{"v":1}\n', 1, "line 1 has an unknown event, '', shown as it is"),
        (b'{"v":3,"event":"end"}\n', 1, "line 1 was written by a newer version (3)"),
        (GOOD + b"\x00" * 4096 + b"\n", 1, "line 2 is not JSON and was left out"),
        (b"[" * 100_000 + b"\n" + GOOD, 1, "line 1 is not JSON and was left out"),
        (b'{"event":"end","n":' + b"9" * 5000 + b"}\n" + GOOD, 1, "line 1 is not JSON and was left out"),
        (b'{"v":1,"event":"end","response":"\xff\xfe"}\n', 1, ""),
        (b'{"v":1,"event":"call","cost_usd":NaN,"duration_ms":Infinity}\n', 1, ""),
    ],
)
def test_a_damaged_log_is_read_as_far_as_it_goes_and_says_what_was_left_out(
    tmp_path: Path, log: bytes, kept: int, problem: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(log)
    events, problems = rlm_viz.read(path)
    assert len(events) == kept
    assert problems == ([problem] if problem else [])
    page = rlm_viz.write([path], tmp_path / "x.html")
    assert (problem.replace("'", "&#39;") in Path(page).read_text()) or not problem
    rlm_viz.tree(events)
    rlm_viz.table(events)


def test_metrics_only_reading_keeps_every_figure_and_no_word(tmp_path: Path) -> None:
    events = journals.deep_run()
    path = saved(tmp_path, events)
    bare, _ = rlm_viz.read(path, bodies=False)
    assert rlm_viz.totals(bare) == rlm_viz.totals(events)
    text = json.dumps(bare)
    for words in ("payment", "pool-timeout", "Counter", "5242880", "You answer by"):
        assert words in json.dumps(events)
        assert words not in text


def test_merge_fills_in_what_is_stored_elsewhere(tmp_path: Path) -> None:
    events = journals.failed_run()
    merged = rlm_viz.merge(events)
    first, second = [event for event in merged if event["event"] == "call" and event.get("kind") == "turn"][:2]
    assert first["prompt"] == [
        {"role": "system", "content": events[0]["system"]},
        {"role": "user", "content": events[0]["prompt"]},
    ]
    cell = next(event for event in events if event["event"] == "tool")
    stored = events[3]["prompt"][-1]
    assert stored.keys() == {"role", "tool_call_id", "name", "refs"}
    assert stored["refs"] == [{"call_id": cell["call_id"], "index": events.index(cell)}]
    bare = {name: value for name, value in stored.items() if name != "refs"}
    assert second["prompt"][-1] == {**bare, "content": cell["stdout"].rstrip("\n")}
    for event in merged:
        assert event.keys() >= {
            *("trajectory_id", "call_id", "parent_call_id", "depth", "prompt", "response"),
            *("tool_calls", "tool_results", "token_usage", "duration_ms"),
        }


def test_merge_of_the_text_protocol_and_of_a_second_prompt() -> None:
    turns = [event for event in rlm_viz.merge(journals.text_run()) if event["event"] == "call"]
    shown = "Output:\n[no output]\n\nOutput:\nnotes.md"
    assert turns[1]["prompt"] == [{"role": "user", "tool_call_ids": ["cell_1", "cell_2"], "content": shown}]
    assert turns[2]["prompt"] == [{"role": "user", "content": "And who made it?"}]


def test_a_summary_takes_the_place_of_the_prompt() -> None:
    events = journals.resumed_run()
    place = next(index for index, event in enumerate(events) if event["event"] == "compact")
    events[place] = {**events[place], "summary": "so far: 503s"}
    refs = [{"call_id": None, "index": place}]
    events[place + 1] = {**events[place + 1], "prompt": [{"role": "user", "refs": refs}]}
    assert rlm_viz.merge(events)[place + 1]["prompt"] == [{"role": "user", "content": "so far: 503s"}]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stdout": "before\n", "value": None, "error": "ZeroDivisionError: x"}, "before\nZeroDivisionError: x"),
        ({"stdout": "\n one\n\n", "value": "'two\\n'"}, "\n one\n'two\\n'"),
        ({"stdout": "", "value": None, "error": None, "images": 0}, "[no output]"),
        ({"images": 2}, "[images made: 2]"),
    ],
)
def test_a_cells_result_is_what_the_model_was_shown(fields: dict[str, Any], text: str) -> None:
    event = {"event": "tool", "code": "1/0", "tool_results": [{"id": "c"}], **fields}
    assert rlm_viz.cell_text(event) == rlm.show_cell(event) == text
    assert rlm_viz.merge([event])[0]["tool_results"][0]["content"] == text


@pytest.mark.parametrize(
    "response",
    ['"' * 9000, "<script>alert(1)</script>\ud83d" * 400, "é" * 5000, ""],
    ids=["quotes", "script", "wide", "empty"],
)
def test_a_card_is_small_and_harmless_whatever_it_holds(response: str) -> None:
    fields = {"response": response, "status": "answered", "total_calls": 1200, "total_tokens": 5, "duration_ms": 61_000}
    page = rlm_viz.card({**fields, "cost_usd": None}, journals.deep_run())
    assert len(page.encode()) <= rlm_viz.NOTEBOOK_LIMIT and "<script" not in page
    assert "answered · 1,200 calls · 5 tokens · ? · 1 m 01 s" in page
    assert rlm_viz.card({**fields, "cost_usd": 0.25}, []).endswith("5 tokens · $0.25 · 1 m 01 s</div></div>")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        ({"event": "start", "model": "m", "prompt": "Why?\nWell?"}, "◆ m: Why?"),
        (
            {
                "event": "call",
                "turn": 2,
                "response": "so",
                "token_usage": {"input": 1200, "output": 5},
                "cost_usd": 0.5,
            },
            "● turn 2 · 1,200→5 tok · $0.50 · 0 ms · so",
        ),
        ({"event": "call", "kind": "sub", "depth": 1, "duration_ms": 90}, "  ○ llm_query · 0→0 tok · ? · 90 ms"),
        (
            {"event": "tool", "code": "f()", "cell": 3, "error": "Traceback\nKeyError: x\n"},
            "  ✗ cell 3: f() → KeyError: x",
        ),
        ({"event": "tool", "code": "f()", "cell": 3, "stdout": "a\nb"}, "  ▶ cell 3: f() → a"),
        ({"event": "tool", "tool_results": [{"name": "grep", "is_error": True}]}, "  ✗ grep"),
        (
            {
                "event": "tool",
                "arguments": {"item": "boom"},
                "tool_results": [{"name": "stock", "is_error": True}],
                "error": "error: OSError: no disk",
            },
            '  ✗ stock: {"item": "boom"} → OSError: no disk',
        ),
        (
            {"event": "call", "turn": 1, "tool_calls": [{"name": "stock", "arguments": {"item": "boom"}}]},
            '● turn 1 · 0→0 tok · ? · 0 ms · stock({"item": "boom"})',
        ),
        ({"event": "end", "response": "done"}, "✓ done"),
        ({"event": "end", "status": "interrupted", "error": {"type": "Stop", "message": ""}}, "✗ interrupted"),
        ({"event": "end", "status": "partial", "error": {"message": "too many"}, "response": "so far"}, "✗ too many"),
        ({"event": "resume", "lines": 4}, "↻ resumed: after 4 recorded lines"),
        ({"event": "end", "response": "\x1b]0;\u202e\ud83d", "depth": 1e14}, "  " * 24 + r"✓ \u001b]0;\u202e\ud83d"),
        ({"event": "text", "delta": "a"}, ""),
        ({"event": "tool", "code": 5, "depth": "x", "stdout": {}, "tool_results": 7}, "  ▶ cell ?: 5"),
    ],
)
def test_a_step_is_a_line_as_it_happens(event: dict[str, Any], line: str) -> None:
    assert rlm_viz.step(event) == line


# --- rows and totals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_totals_tree_table_and_page_agree_with_the_run(seed: int, tmp_path: Path) -> None:
    events = journals.random_run(seed)
    result = events[-1]["totals"]
    sums = rlm_viz.totals(events)
    for name in ("calls", "tokens", "tool_calls", "depth_reached", "duration_ms"):
        assert sums[name] == result[name], name
    assert sums["cost_usd"] == (None if result["cost_usd"] is None else pytest.approx(result["cost_usd"], abs=1e-9))
    data = re.search(r'id="data">(.*?)</script>', rlm_viz.render(events))
    assert data
    meta = json.loads(data.group(1))["runs"][0]
    assert {name: meta[name] for name in sums} == sums
    cost = rlm_viz.money(sums["cost_known"], meta["unpriced"])
    line = f"{sums['calls']:,} calls · {sums['tokens']:,} tok · {cost} · {rlm_viz.duration(sums['duration_ms'])}"
    assert line in rlm_viz.tree(events).splitlines()[0]
    assert line.replace("<", "&lt;") in rlm_viz.table(events)
    root = rlm_viz.rows(events)[0]
    assert (root.all_tokens, rlm_viz.money(root.all_cost, root.all_unpriced)) == (sums["tokens"], cost)
    [listed] = rlm_viz.list_runs(os.path.dirname(saved(tmp_path, events)))
    assert (listed["calls"], listed["tokens"]) == (sums["calls"], sums["tokens"])


def test_an_unknown_price_is_a_question_mark_everywhere() -> None:
    events = journals.resumed_run()
    assert rlm_viz.totals(events)["cost_usd"] is None
    batch = next(row for row in rlm_viz.rows(events) if row.kind == "batch")
    assert rlm_viz.money(batch.all_cost, batch.all_unpriced) == "?"
    assert re.search(r"llm_query × 24.* \? \(\$0\)", rlm_viz.tree(events, width=120))
    assert "$0.044 + ?" in rlm_viz.tree(events).splitlines()[0]


MONEY = [(0, 0, "$0"), (0, 2, "?"), (0.00001, 0, "$0.000010"), (0.0131, 0, "$0.013"), (0.03125, 0, "$0.031")]
MONEY += [(1.5, 1, "$1.50 + ?"), (1234.5, 0, "$1,234.50")]
SPANS = [(0, "0 ms"), (0.4, "0.4 ms"), (10.5, "11 ms"), (41, "41 ms"), (2140, "2.1 s"), (59_960, "1 m 00 s")]
SPANS += [(65_000, "1 m 05 s"), (3_599_900, "1 h 00 m"), (7_380_000, "2 h 03 m"), (1e11, "27,777 h 46 m")]


@pytest.mark.parametrize(("known", "unpriced", "shown"), MONEY)
def test_money(known: float, unpriced: int, shown: str) -> None:
    assert rlm_viz.money(known, unpriced) == shown


@pytest.mark.parametrize(("ms", "shown"), SPANS)
def test_duration(ms: float, shown: str) -> None:
    assert rlm_viz.duration(ms) == shown


def test_recursion_is_visible_in_the_rows() -> None:
    listed = rlm_viz.rows(journals.deep_run(levels=3, calls=64))
    batch = next(row for row in listed if row.kind == "batch")
    assert (batch.name, batch.max_concurrency, len(batch.children)) == ("llm_query × 64", 16, 64)
    children = [row for row in listed if row.name == "rlm_query"]
    assert [row.depth for row in children] == [1, 2, 3]
    above = {child: row for row in listed for child in row.children}
    for child in children:
        cell = above[listed.index(child)]
        assert (cell.kind, above[listed.index(cell)].name) == ("cell", f"turn {4 if child.depth == 1 else 2}")
    assert [row.name for row in listed if row.flags & rlm_viz.FINAL and row.depth == 0] == ["cell 5"]


def test_total_and_self_add_up() -> None:
    listed = rlm_viz.rows(journals.deep_run())
    for row in listed:
        below = [listed[child] for child in row.children]
        assert row.all_tokens == row.tokens + sum(child.all_tokens for child in below)
        assert row.all_cost == pytest.approx(row.cost + sum(child.all_cost for child in below))
        assert row.self_ms <= row.total_ms + 1
    cell = next(row for row in listed if row.name == "cell 3" and row.depth == 0)
    assert cell.total_ms > 2000 > 20 > cell.self_ms


def test_a_pause_before_a_resumption_is_not_counted_as_time() -> None:
    events = journals.resumed_run()
    assert rlm_viz.duration(rlm_viz.totals(events)["duration_ms"]) == "13.5 s"
    assert rlm_viz.duration(rlm_viz.rows(events)[0].total_ms) == "13.5 s"


def test_an_empty_journal_took_no_time() -> None:
    assert rlm_viz.totals([])["duration_ms"] == 0


def test_a_second_prompt_is_a_tree_of_its_own_and_the_wait_for_it_no_time() -> None:
    events = journals.text_run()
    listed = rlm_viz.rows(events)
    tops = [row for row in listed if row.level == 0]
    assert [(row.name, row.text) for row in tops] == [("run", events[0]["prompt"]), ("next prompt", "And who made it?")]
    assert [row.name for row in listed if row.kind == "tool"] == ["file_list"]
    assert listed[listed.index(next(row for row in listed if row.kind == "tool")) - 1].name == "cell 1"
    assert rlm_viz.totals(events)["duration_ms"] < 10_000
    assert rlm_viz.totals(events)["status"] == "answered"


def test_what_a_tool_was_asked_is_found_in_the_turn_that_called_it() -> None:
    row = next(row for row in rlm_viz.rows(journals.failed_run()) if row.kind == "tool")
    assert (row.name, row.text) == ("file_read", '{"path": "notes/../../etc/passwd"}')


def test_a_chain_of_a_thousand_levels_works() -> None:
    events = journals.chain(1000)
    listed = rlm_viz.rows(events)
    assert max(row.level for row in listed) == 1999
    assert listed[0].all_tokens == events[-1]["totals"]["tokens"]
    assert len(rlm_viz.tree(events).splitlines()) > 3000
    assert len(rlm_viz.table(events)) < 20_000
    rlm_viz.render(events)


def test_orphans_and_cycles_stand_under_detached() -> None:
    events = journals.deep_run(levels=1, calls=3)
    events += [
        {"v": 1, "event": "call", "kind": "sub", "call_id": "lost", "parent_call_id": "nowhere", "depth": 1},
        {"v": 1, "event": "call", "kind": "sub", "call_id": "self", "parent_call_id": "self", "depth": 1},
        {"v": 1, "event": "call", "kind": "sub", "call_id": "a", "parent_call_id": "b", "depth": 1},
        {"v": 1, "event": "call", "kind": "sub", "call_id": "b", "parent_call_id": "a", "depth": 1},
    ]
    listed = rlm_viz.rows(events)
    heading = next(row for row in listed if row.kind == "detached")
    assert len(heading.children) == 3  # the lost one, the one under itself, and one of the circle with the other below
    assert sorted(row.index for row in listed if row.index >= 0) == list(range(len(events)))
    assert "? detached" in rlm_viz.tree(events)


WRONG: list[Any] = [None, True, -1, 1e300, "x", [], {}, [[]], [None], {"a": {"b": []}}, "9" * 400]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: repr(value)[:12])
def test_any_field_of_any_event_may_be_anything(wrong: Any, tmp_path: Path) -> None:
    whole = [*journals.failed_run(), *journals.resumed_run()]
    for name in sorted({name for event in whole for name in event}):
        events = [{**event, name: wrong} if name in event else event for event in whole]
        rlm_viz.tree(events)
        rlm_viz.merge(events)
        assert "</html>" in rlm_viz.render(events)
        assert rlm_viz.totals(events)["calls"] >= 0


# --- terminal and notebook --------------------------------------------------------------------------------------------


def test_the_terminal_tree_shows_structure_and_figures() -> None:
    lines = rlm_viz.tree(journals.deep_run(levels=1, calls=8), width=110).splitlines()
    assert lines[1].split() == ["tokens", "(self)", "cost", "(self)", "time", "(self)"]
    assert any(re.match(r"│ └─▶ cell 3 .*\(0\) .*\$0\.0\d+ \(\$0\)", line) for line in lines)
    assert any("≡ llm_query × 8 (8 at once)" in line for line in lines)
    assert not any("○ llm_query" in line for line in lines if "× 8" in line)
    assert lines[-1].startswith("└─✓ answered")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    for events in (journals.deep_run(), journals.hostile_run(), journals.chain(60)):
        for line in rlm_viz.tree(events, width=width).splitlines()[1:]:
            assert rlm_viz._width(line) <= width


def test_hostile_text_cannot_steer_the_terminal() -> None:
    text = rlm_viz.tree(journals.hostile_run(), color=False)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066\ud800-\udfff]", text)
    text.encode("utf-8")
    colored = rlm_viz.tree(journals.deep_run(), color=True)
    assert re.sub(r"\x1b\[\d*m", "", colored) == rlm_viz.tree(journals.deep_run())


def test_ascii_only_for_terminals_without_more() -> None:
    run = journals.deep_run(levels=1, calls=9)
    plain = rlm_viz.tree(run, ascii_only=True)
    assert plain.isascii() and not rlm_viz.tree(run).isascii()
    assert plain.count("\n") == rlm_viz.tree(run).count("\n")


@pytest.mark.parametrize("name", ["deep_run", "failed_run", "resumed_run", "hostile_run", "chain"])
def test_the_notebook_table_is_small_inert_html(name: str) -> None:
    page = rlm_viz.table(getattr(journals, name)())
    assert len(page.encode()) <= 20_000
    assert set(re.findall(r"<(\w+)", page)) <= {
        "details",
        "summary",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "b",
        "p",
    }
    assert page.count("<tr>") <= 31
    assert not re.search(r"<[^>]*\son\w+=", page)


# --- the page's text --------------------------------------------------------------------------------------------------


def test_the_viewer_itself_is_at_most_75_kb() -> None:
    assert len(rlm_viz.render([]).encode()) <= 75_000


def test_a_small_run_is_plain_and_greppable_and_a_large_one_is_packed(tmp_path: Path) -> None:
    small = rlm_viz.render(journals.deep_run(levels=1, calls=3))
    assert 'type="application/gzip" id="r0' not in small
    assert "deploy at 02:12 that lowered" in small
    large = rlm_viz.render(journals.large_run(1200, body=900))
    assert large.count('type="application/gzip" id="r0c') == 5
    assert "a terse answer" in text_of(large)


def test_the_same_log_makes_the_same_bytes(tmp_path: Path) -> None:
    path = saved(tmp_path, journals.large_run(700))
    pages = [Path(rlm_viz.write([path], tmp_path / name)).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_a_page_is_private_and_replaces_the_old_one_whole(tmp_path: Path) -> None:
    path, out = saved(tmp_path, journals.failed_run()), tmp_path / "t.html"
    assert rlm_viz.write([path], out) == str(out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    out.write_text("old")
    assert rlm_viz.write([path], out) == str(out) and out.read_text() != "old"
    with pytest.raises(FileNotFoundError):
        rlm_viz.write([path, tmp_path / "none.jsonl"], out)
    assert sorted(os.listdir(tmp_path)) == sorted([os.path.basename(path), "t.html", "work"])


def test_a_history_heavy_run_is_at_most_5_percent_of_naive_jsonl() -> None:
    journal = journals.Journal(9)
    root = journals.Node(journal, "sixty turns")
    history, naive = "", 0
    for turn in range(60):
        code = f"print(lines[{turn}:{turn + 60}])"
        output = "".join(f"{journal.random.getrandbits(40):x} status=200 GET /item\n" for _ in range(120))
        root.turn("Next.", code)
        history += code + output
        naive += len(history)
        root.cell(code, output)
    root.end("done")
    assert len(rlm_viz.render(journal.events)) - len(rlm_viz.render([])) < naive * 0.05


def test_hostile_text_stays_text_in_the_html() -> None:
    page = rlm_viz.render(journals.hostile_run())
    markup = re.sub(r"<script[^>]*>[^<]*</script>", "", page)
    assert "<script" not in markup
    assert "window.hit=1" in markup
    for tag in re.findall(r"<[^>]+>", markup):
        assert "window.hit" not in tag and "steal" not in tag, tag
    page.encode("utf-8")


def test_nothing_of_the_page_is_left_to_inline_handlers_or_style_attributes() -> None:
    page = rlm_viz.render(journals.deep_run())
    assert re.findall(r'\sstyle="', page) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy and policy.group(1).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.group(1) and "http" not in policy.group(1)


SECRETS = {
    "sk-": "sk-proj-abcdefghijklmnop1234",
    "bearer": "Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc",
    "aws": "AKIAABCDEFGHIJKLMNOP",
    "github": "ghp_" + "a1B2" * 9,
    "google": "AIza" + "x1_-" * 9,
    "environment": 'p"a\\ss/wörd-of-mine',
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_replaced_before_a_page_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = SECRETS[name]
    monkeypatch.setenv("MY_SERVICE_TOKEN", SECRETS["environment"])
    for filler in ("", "x" * 400_000):
        events = journals.failed_run()
        events[0] = {**events[0], "prompt": f"use {secret} please", "system": filler}
        events[2] = {**events[2], "stdout": secret, "tool_results": [{"id": "a", "name": secret, secret: 1}]}
        page = text_of(Path(rlm_viz.write([saved(tmp_path, events)], tmp_path / "p.html")).read_text())
        assert secret not in page and json.dumps(secret)[1:-1] not in page
        assert json.dumps(secret, ensure_ascii=False)[1:-1] not in page
        assert "use [redacted] please" in page


def test_a_notebooks_table_shows_what_came_of_a_prompt() -> None:
    assert "And who made it? → The notes name nobody." in rlm_viz.table(journals.text_run())


def test_a_notebooks_table_holds_no_secret() -> None:
    key = "sk-" + "a1" * 40
    events = journals.failed_run()
    for event in events:
        event |= {name: f"use the key {key} and go on" for name in ("prompt", "code", "response") if name in event}
        for call in event.get("tool_calls", []) if event["event"] == "call" else []:
            call["arguments"] = {"key": key}
    page = rlm_viz.table(events)
    assert "sk-a1" not in page
    assert page.count("[redacted]") > 8


def test_ordinary_words_are_not_taken_for_secrets() -> None:
    words = "a task-management-board, risk-adjusted-return, bearer of news, asking sk-8"
    assert rlm_viz.Secrets({"MAX_TOKENS": "123456789"}).removed(words) == words


TRACED = 'Traceback (most recent call last):\n  File "<cell 1>", line 1, in <module>\n    f()\n'
CAUSE = "\n\nThe above exception was the direct cause of the following exception:\n\n"


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (TRACED + "ValueError: cannot parse\nhunter2 is not a number", "ValueError"),
        (TRACED + "ValueError: cannot parse\nhunter2", "ValueError"),
        (TRACED + "ValueError: cannot parse\n  as it is\nHunter2: no", "ValueError"),
        (TRACED + "ValueError: cannot\n\nparse\n\nHunter2", "ValueError"),
        (TRACED.replace("f()", "x = 'a\u2028Hunter2: b'") + "KeyError: 'a'", "KeyError"),
        (TRACED + "json.decoder.JSONDecodeError: hunter2", "json.decoder.JSONDecodeError"),
        (TRACED + "Odd: hunter2", "Odd"),
        (TRACED + "KeyboardInterrupt\nthe cell was stopped after 1 s (its limit)", "KeyboardInterrupt"),
        (TRACED + "KeyError: hunter2" + CAUSE + TRACED + "ValueError: hunter2", "ValueError"),
        ("Traceback...\nValueError: cannot parse\nhunter2 is not a number", "ValueError"),
        ('  File "<cell 3>", line 1\n    x =\n       ^\nSyntaxError: invalid syntax', "SyntaxError"),
        ("error: ToolError: hunter2", "ToolError"),
        ("KeyError: 'hunter2'", "KeyError"),
        ("Hunter2: no", "error"),
        ("hunter2", "error"),
        ("the cell ended: lost", "error"),
        ("", "error"),
        (["hunter2"], "error"),
        ({"type": "BudgetExceeded", "message": "hunter2"}, "BudgetExceeded"),
        ({"type": None, "message": "hunter2"}, "error"),
    ],
    ids=lambda value: repr(value)[-40:],
)
def test_without_bodies_an_error_is_its_class_and_no_word_of_its_message(error: Any, name: str) -> None:
    shown = rlm_viz.without_bodies({"event": "tool", "error": error or "?"})["error"]
    assert shown == name


def test_without_bodies_text_in_the_place_of_figures_is_left_out() -> None:
    forged = dict.fromkeys(("limits", "left", "totals", "token_usage", "answer"), "a secret")
    assert rlm_viz.without_bodies({"event": "end", **forged}) == {"event": "end"}


def test_a_page_without_bodies_has_figures_and_no_words(tmp_path: Path) -> None:
    events = journals.failed_run()
    page = Path(rlm_viz.write([saved(tmp_path, events)], tmp_path / "p.html", bodies=False)).read_text()
    for words in ("payments", "splitlines", "429 five times", "passwd", "ZeroDivisionError: division"):
        assert words in rlm_viz.render(events)
        assert words not in page
    assert "20,869" in page or "20,868" in page
    assert rlm_viz.NO_BODIES in page


def test_bodies_beyond_the_limit_are_left_out_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rlm_viz, "BODY_LIMIT", 300_000)
    monkeypatch.setattr(rlm_viz.PageBudget, "bodies", 300_000)
    room = rlm_viz.PageBudget(bodies=300_000)
    run = rlm_viz._load(saved(tmp_path, journals.large_run(600)), room)
    assert any(re.match(r"the text of \d+ events is left out", problem) for problem in run.problems)
    assert run.meta()["answer"] == journals.ANSWER
    assert rlm_viz.totals(run.events) == rlm_viz.totals(journals.large_run(600))


def test_values_that_json_cannot_say_do_not_stop_the_page() -> None:
    nested: Any = []
    for _ in range(3000):
        nested = [nested]
    events = [*journals.deep_run(levels=1, calls=1), {"event": "odd", "a": float("inf"), "b": nested, "c": {1, 2}}]
    page = rlm_viz.render(events)
    assert "cannot be shown" in page


# --- folders, commands, server ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("aaaa11-000001", "aaaa22-000002", "bbbb33-000003"):
        events = [{**event, "trajectory_id": name} for event in journals.random_run(int(name[-1]))]
        path = Path(journals.save(events, tmp_path))
        os.utime(path, (1000 * int(name[-1]),) * 2)
    (tmp_path / "notes.txt").write_text("not a log")
    return tmp_path


def test_a_log_is_found_by_any_unique_prefix(folder: Path) -> None:
    assert rlm_viz.find_log(folder, "b") == str(folder / "bbbb33-000003.jsonl")
    assert rlm_viz.find_log(folder, "aaaa11-000001") == str(folder / "aaaa11-000001.jsonl")
    assert rlm_viz.find_log("elsewhere", str(folder / "aaaa11-000001.jsonl")).endswith("aaaa11-000001.jsonl")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("aaaa", "'aaaa' is the beginning of 2 runs: aaaa22-000002, aaaa11-000001"),
        ("zz", "no run 'zz' in"),
        ("../x", "no run '../x' in"),
    ],
)
def test_an_ambiguous_or_unknown_id_names_the_candidates(folder: Path, wanted: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        rlm_viz.find_log(folder, wanted)
    assert "aaaa22-000002" in str(caught.value)


def test_a_folder_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert rlm_viz.list_runs(tmp_path / "none") == []
    with pytest.raises(ValueError, match="which has none"):
        rlm_viz.find_log(tmp_path / "none", "a")
    with pytest.raises(ValueError, match="no logs in"):
        rlm_viz.visualize(dir=tmp_path / "none", out=tmp_path / "x.html")


def test_runs_are_listed_from_the_ends_of_their_logs(folder: Path) -> None:
    events = journals.resumed_run()[:-1]
    Path(journals.save(events, folder)).touch()
    runs = {run["id"]: run for run in rlm_viz.list_runs(folder)}
    ended = runs["aaaa11-000001"]
    assert (ended["status"], ended["prompt"], ended["model"]) == ("answered", "random run 1", "gpt-4o")
    unfinished = runs[events[0]["trajectory_id"]]
    assert (unfinished["status"], unfinished["calls"]) == ("unfinished", 29)


@pytest.mark.parametrize("run", [journals.resumed_run, journals.text_run], ids=["resumed", "another prompt"])
def test_the_list_counts_what_the_tree_and_the_page_count(folder: Path, run: Callable[[], list[Any]]) -> None:
    events = run()
    parts = [place for place, event in enumerate(events) if event["event"] == "resume" or event.get("continues")]
    for stop in [*parts, len(events)]:  # as rlm writes it: since the run went on
        end = events[stop - 1]
        if end["event"] == "end":
            end["totals"] = {**end["totals"], "duration_ms": 5000, "calls": 1}
    path = journals.save(events, folder)
    listed = next(run for run in rlm_viz.list_runs(folder) if run["path"] == str(path))
    sums = rlm_viz.totals(rlm_viz.read(path)[0])
    assert {name: listed[name] for name in ("calls", "tokens", "duration_ms")} == {
        name: sums[name] for name in ("calls", "tokens", "duration_ms")
    }
    assert listed["duration_ms"] > 5000 and listed["calls"] > 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_what_cannot_be_read_to_an_end_is_no_log(folder: Path) -> None:
    known = [run["id"] for run in rlm_viz.list_runs(folder)]
    os.mkfifo(folder / "cccc44-000004.jsonl")
    (folder / "cccc55-000005.jsonl").symlink_to("/dev/zero")
    (folder / "cccc66-000006.jsonl").symlink_to("nowhere")
    assert [run["id"] for run in rlm_viz.list_runs(folder)] == known != []
    with pytest.raises(ValueError, match="no run 'cccc'"):
        rlm_viz.find_log(folder, "cccc")


def test_listing_survives_what_is_not_a_journal(folder: Path) -> None:
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "noise.jsonl").write_bytes(os.urandom(3000))
    odd = {"calls": "x", "tokens": [], "cost_usd": True, "duration_ms": -1}
    (folder / "odd.jsonl").write_text(json.dumps({"v": 1, "event": "end", "totals": odd}) + "\n")
    (folder / "long.jsonl").write_bytes(b'{"event":"start","prompt":"' + b"x" * 200_000 + b'"}\n')
    runs = {run["id"]: run for run in rlm_viz.list_runs(folder)}
    assert {runs[name]["status"] for name in ("empty", "noise", "long")} == {"empty", "unfinished"}
    assert {runs["odd"][name] for name in odd} == {None}
    rlm_viz.visualize(dir=folder, out=folder / "all.html")


def test_a_log_that_goes_while_it_is_read_takes_no_other_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [run["id"] for run in rlm_viz.list_runs(folder)]
    (folder / "cccc77-000007.jsonl").symlink_to("cccc77-000007.jsonl")  # a loop: not even its kind can be told
    (folder / "cccc88-000008.jsonl").mkdir()
    assert [run["id"] for run in rlm_viz.list_runs(folder)] == known
    names = rlm_viz._log_names(folder)
    monkeypatch.setattr(rlm_viz, "_log_names", lambda _: ["gone.jsonl", *names])
    assert [run["id"] for run in rlm_viz.list_runs(folder)] == known


def test_visualize_takes_ids_or_all_and_a_second_run_to_compare(folder: Path) -> None:
    out = folder / "page.html"

    def ids() -> list[str]:
        found = re.search(r'id="data">(.*?)</script>', out.read_text())
        assert found
        return [run["id"] for run in json.loads(found.group(1))["runs"]]

    assert rlm_viz.visualize(["bb"], dir=folder, out=out) == str(out)
    assert ids() == ["bbbb33-000003"]
    rlm_viz.visualize(dir=folder, out=out)
    assert sorted(ids()) == ["aaaa11-000001", "aaaa22-000002", "bbbb33-000003"]
    rlm_viz.visualize(["bb"], dir=folder, out=out, diff="aaaa1")
    assert ids() == ["bbbb33-000003", "aaaa11-000001"]
    assert '"diff":{' in out.read_text()


def test_the_file_alone_makes_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, out = str(folder / "bbbb33-000003.jsonl"), str(folder / "alone.html")
    assert rlm_viz.main([log, "-o", out]) == 0
    assert capsys.readouterr().out == out + "\n"
    assert rlm_viz.main([log, "--tree"]) == 0
    assert capsys.readouterr().out.startswith("bbbb33-000003 · answered")
    assert rlm_viz.main([str(folder / "none.jsonl")]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.fixture
def server(folder: Path) -> Any:
    made = rlm_viz.make_server(folder, 0)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def get(server: Any, path: str, **headers: str) -> tuple[int, str]:
    request = Request(f"http://127.0.0.1:{server.server_address[1]}{path}", headers=headers)
    try:
        with urlopen(request, timeout=10) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_server_shows_the_folder_and_makes_pages_again_when_a_log_grows(server: Any, folder: Path) -> None:
    assert server.server_address[0] == "127.0.0.1"
    status, page = get(server, "/?run=aaaa11-000001")
    assert status == 200 and '"id":"aaaa11-000001"' in page and '"href":"?run=bbbb33-000003"' in page
    version = get(server, "/version?run=aaaa11-000001")
    assert version[0] == 200 and f'"live":"{version[1]}"' in page
    assert get(server, "/version?run=aaaa11-000001") == version
    with (folder / "aaaa11-000001.jsonl").open("a") as log:
        log.write('{"v":1,"event":"resume","lines":1}\n')
    assert get(server, "/version?run=aaaa11-000001") != version
    assert '"status":"unfinished"' in get(server, "/?run=aaaa11-000001")[1]


@pytest.mark.parametrize("path", ["/etc/passwd", "/../x", "/?run=../../etc/passwd", "/?run=nope", "/favicon.ico"])
def test_the_server_has_nothing_else(server: Any, path: str) -> None:
    assert get(server, path)[0] == 404


def test_the_server_shows_a_log_whose_name_is_not_utf8_and_those_beside_it(server: Any, folder: Path) -> None:
    with open(os.path.join(os.fsencode(folder), b"odd\xff.jsonl"), "w") as log:
        log.write('{"v":1,"event":"start","depth":0,"prompt":"by another name"}\n')
    status, page = get(server, "/?run=aaaa11-000001")
    assert status == 200 and '"href":"?run=odd%FF"' in page
    status, page = get(server, "/?run=odd%FF")
    assert status == 200 and "by another name" in page
    assert f'"live":"{get(server, "/version?run=odd%FF")[1]}"' in page
    assert get(server, "/?run=odd%FE")[0] == 404


def test_a_log_that_goes_while_its_page_is_made_is_not_found(
    server: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = rlm_viz._log_names(folder)
    monkeypatch.setattr(rlm_viz, "_log_names", lambda _: ["gone.jsonl", *names])
    assert get(server, "/?run=gone")[0] == 404
    assert get(server, "/?run=aaaa11-000001")[0] == 200


def test_an_address_that_is_none_is_not_found(server: Any) -> None:
    with socket.create_connection(server.server_address, timeout=10) as connection:
        connection.sendall(b"GET http://[/ HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert connection.makefile("rb").readline() == b"HTTP/1.0 404 Not Found\r\n"


def test_the_server_answers_no_rebound_name(server: Any) -> None:
    assert get(server, "/", Host="evil.example:80") == (403, "only by a loopback address\n")
    assert get(server, "/", Host=f"localhost:{server.server_address[1]}")[0] == 200
