"""The live evaluation without a live model: its tasks have the answers they claim, its proxy counts what passes, and
its results can be resumed."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import statistics
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import requests
import scripted
from conftest import ROOT, need
from scripted import Server, Turn, code

sys.path.append(str(ROOT / "benchmarks"))

import live
import live_tasks
from live_tasks import Task

sys.path.remove(str(ROOT / "benchmarks"))  # it has a mcp.py, which must not stand in for the package of that name

PAGE = (ROOT / "docs" / "evaluation.md").read_text()
SEEDS = (*live_tasks.TUNING, *live_tasks.REPORTING)


# --- the tasks, solved from the context alone ----------------------------------------------------------------------


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def top(counts: dict[str, Any]) -> str:
    """The key with the highest value, which must be the only one, and the value."""
    first, second = sorted(counts.items(), key=lambda pair: -pair[1])[:2]
    assert first[1] > second[1]
    return f"{first[0]}: {first[1]}"


def one(found: list[Any]) -> str:
    assert len(found) == 1, found
    return str(found[0])


def line_of(context: str, text: str) -> str:
    return one([number for number, line in enumerate(context.splitlines(), 1) if text in line])


def sums(pairs: list[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for name, value in pairs:
        found[name] += value
    return found


def log(context: str) -> list[tuple[str, str, str, int, str]]:
    pattern = r"^(\S+ \S+) \[(\w+)\] (\w+): job (\d+) finished in (\d+) ms$"
    found = [
        (when, level, service, int(ms), job)
        for when, level, service, job, ms in re.findall(pattern, context, re.MULTILINE)
    ]
    assert len(found) == len(context.splitlines())
    return found


def times(question: str) -> list[str]:
    return re.findall(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", question)


def last_word(question: str) -> str:
    return re.split(r"[ ?]+", question.strip())[-2]


def solve_join(q: str, c: Any) -> float:
    homes = {row["customer_id"]: row["city"] for row in rows(c["customers.csv"])}
    orders = [row for row in rows(c["orders.csv"]) if homes[row["customer_id"]] == last_word(q)]
    return round(sum(float(row["amount"]) for row in orders), 2)


def solve_average(q: str, c: Any) -> float:
    city = re.search(r"from (\w+)\?", q)
    return statistics.fmean(float(row["score"]) for row in rows(c) if city and row["city"] == city[1])


def solve_dates(q: str, c: Any) -> int:
    first, last = re.findall(r"\d{4}-\d\d-\d\d", q)
    return sum(first <= row["date"] <= last for row in rows(c))


def solve_slowest(q: str, c: Any) -> str:
    found = defaultdict(list)
    for _, _, service, ms, _ in log(c):
        found[service].append(ms)
    return top({service: sum(all_ms) / len(all_ms) for service, all_ms in found.items()}).partition(":")[0]


def solve_gap(q: str, c: Any) -> int:
    return max((b - a).days for a, b in itertools.pairwise(map(date.fromisoformat, c.splitlines())))


def solve_config(q: str, c: Any) -> str:
    key, where = re.findall(r"of (\w+) in (\w+)\?", q)[0]
    return one(re.findall(rf"^{key}=(\d+)$", c[f"conf/{where}.env"], re.MULTILINE))


def solve_percent(q: str, c: Any) -> float:
    return 100 * sum(row["status"] == "failed" for row in rows(c)) / len(rows(c))


SOLVERS: dict[str, Callable[[str, Any], Any]] = {
    "csv_sum": lambda q, c: sum(float(row["amount"]) for row in rows(c)),
    "csv_top": lambda q, c: top(Counter(row["assignee"] for row in rows(c))),
    "csv_average": solve_average,
    "csv_max": lambda q, c: top({x["code"]: int(x["price"]) for x in rows(c) if x["type"] == last_word(q)}).split(":")[
        0
    ],
    "revenue": lambda q, c: top(sums([(x["category"], int(x["quantity"]) * float(x["price"])) for x in rows(c)])),
    "date_range": solve_dates,
    "percent": solve_percent,
    "join": solve_join,
    "fifth": lambda q, c: sorted((int(row["km"]), row["river"]) for row in rows(c))[-5][1],
    "log_count": lambda q, c: sum(level == "WARNING" for _, level, *_ in log(c)),
    "log_first": lambda q, c: next(x[0] for x in log(c) if x[1] == "ERROR" and x[2] in q.split("service ")[1]),
    "last_before": lambda q, c: [x[4] for x in log(c) if x[1] == "ERROR" and x[0] < times(q)[0]][-1],
    "log_window": lambda q, c: sum(times(q)[0] <= line[0] <= times(q)[1] for line in log(c)),
    "slowest": solve_slowest,
    "addresses": lambda q, c: len({line.split()[0] for line in c.splitlines()}),
    "json_unique": lambda q, c: len({record["user"] for record in json.loads(c)}),
    "json_nested": lambda q, c: sum(
        record["account"]["active"] and record["account"]["plan"] == last_word(q) for record in json.loads(c)
    ),
    "most_items": lambda q, c: top({cart: len(items) for cart, items in json.loads(c).items()}),
    "median": lambda q, c: sorted(map(int, c.split()))[350],
    "duplicate": lambda q, c: one([number for number, n in Counter(c.split()).items() if n == 2]),
    "gap": solve_gap,
    "word": lambda q, c: top(Counter(c.split())),
    "longest_line": lambda q, c: top({str(n): len(line) for n, line in enumerate(c.splitlines(), 1)}),
    "line_number": lambda q, c: line_of(c, "the boiler was replaced"),
    "codes": lambda q, c: len(set(re.findall(r"KX-\d{4}", c))),
    "difference": lambda q, c: one(list(set(c["invited.txt"].split()) - set(c["paid.txt"].split()))),
    "needle": lambda q, c: one(re.findall(r"lighthouse is (\d+)", c)),
    "inventory": lambda q, c: sum(item["stock"] < int(last_word(q)) for item in c),
    "files": lambda q, c: one([f"{n}: {x}" for n, t in c.items() for x in re.findall(r"upload limit is (\d+)", t)]),
    "config": solve_config,
    "todos": lambda q, c: top({name: text.count("TODO") for name, text in c.items()}),
    "largest": lambda q, c: top({name: len(text) for name, text in c.items()}),
    "topic": lambda q, c: line_of(c, "piano"),
    "refund": lambda q, c: one([name for name, text in c.items() if "money" in text]),
    "french": lambda q, c: line_of(c, "matin"),
    "reason": lambda q, c: one(re.findall(r"A storm|strike|Customs", c)),
    "contracts": lambda q, c: " then ".join(re.findall(r"rent is (\d+)", "".join(c.values()))),
    "reviews": lambda q, c: sum(bool(re.search(r"came off|left\.|glue|worst|Do not|Stopped", text)) for text in c),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_every_task_has_the_answer_that_its_context_gives(seed: int) -> None:
    made = live_tasks.tasks(seed)
    assert [task.name for task in made] == list(live_tasks.KINDS)
    assert set(live_tasks.KINDS) == set(SOLVERS)
    wrong = {
        task.name: (answer, task.wanted)
        for task in made
        if live_tasks.score(answer := str(SOLVERS[task.name](task.question, task.context)), task) != 1
    }
    assert wrong == {}


def test_the_tasks_are_those_of_this_generation() -> None:
    """On every Python and machine. If this fails on purpose, raise GENERATION: old and new results do not mix."""
    digest = hashlib.sha256(repr([live_tasks.tasks(seed) for seed in SEEDS]).encode()).hexdigest()
    assert (live_tasks.GENERATION, digest[:16]) == (1, "95b1280b1ca6617f")


def test_another_seed_makes_other_tasks_and_the_two_sets_of_seeds_share_none() -> None:
    first, second = live_tasks.tasks(1), live_tasks.tasks(2)
    same = {a.name for a, b in zip(first, second) if a.context == b.context}
    assert same <= set(live_tasks.READING)
    assert not set(live_tasks.TUNING) & set(live_tasks.REPORTING)


@pytest.fixture
def data(tmp_path: Path) -> live_tasks.Data:
    """A folder in the layout of the real data."""
    (tmp_path / "trec").mkdir()
    (tmp_path / "prose").mkdir()
    lines = [f"{label}:x What is {label} {n} ?" for label in live_tasks.LABELS for n in range(80)]
    (tmp_path / "trec" / "train.txt").write_text("\n".join(lines))
    (tmp_path / "trec" / "test.txt").write_text("DESC:def What is an atom ?\n")
    heads = [f"CHAPTER {n}. A Title." for n in range(1, 61)]
    chapters = [f"{head}\n\n" + "\n\n".join(f"{head} A sentence {n}." for n in range(30)) for head in heads]
    (tmp_path / "prose" / "moby-dick.txt").write_text("\n\n".join([*heads, *chapters]))
    return live_tasks.Data.read(tmp_path)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_tasks_on_real_data_have_the_answer_that_the_data_give(seed: int, data: live_tasks.Data) -> None:
    made = {task.name: task for task in live_tasks.tasks(seed, data)}
    assert list(made) == [*live_tasks.KINDS, *live_tasks.DATA_KINDS]
    labels = {text: label for label, text in data.questions}
    counts = {name: Counter(labels[text] for text in made[name].context) for name in made if name.startswith("trec")}
    asked = re.search(r"belong to the class (\w+)", made["trec_count"].question)
    more, less = re.findall(r"frequent, (\w+) or (\w+)", made["trec_compare"].question)[0]
    compared = {name: counts["trec_compare"][name] for name in (more, less)}
    text = made["prose_chapter"].context
    before = text[: text.index("On the cabin door")]
    answers = {
        "trec_count": counts["trec_count"][asked[1]] if asked else None,
        "trec_most": top(counts["trec_most"]).partition(":")[0],
        "trec_compare": top(compared).partition(":")[0],
        "prose_needle": one(re.findall(r"chest is (\d+)", made["prose_needle"].context)),
        "prose_needles": sum(map(int, re.findall(r"locker is (\d+)", made["prose_needles"].context))),
        "prose_chapter": re.findall(r"^CHAPTER (\d+)\.", before, re.MULTILINE)[-1],
    }
    assert {name: live_tasks.score(str(answer), made[name]) for name, answer in answers.items()} == dict.fromkeys(
        live_tasks.DATA_KINDS, 1.0
    )


# --- scores and verdicts -------------------------------------------------------------------------------------------


def task(*wanted: str, scoring: str = "answer") -> Task:
    return Task("t", "?", "", list(wanted), scoring)


@pytest.mark.parametrize(
    ("answer", "asked", "points"),
    [
        ("There are 1,224 lines.", task("1224"), 1),
        ("46633.870000000024", task("46633.87"), 1),
        ("$1,046,633.87", task("1046633.87"), 1),
        ("40MB", task("40"), 1),
        ("about 41", task("40"), 0),
        ("1400", task("40"), 0),
        ("v1.40", task("40"), 0),
        ("ADA with 7", task("Ada&7"), 1),
        ("Ada", task("Ada&7"), 0),
        ("river-130", task("river-13"), 0),
        ("docs/storage.md says 15", task("storage.md&15"), 1),
        ("two", task("2", "two"), 1),
        (None, task("2"), 0),
        ("2" + " filler" * 300, task("2"), 0),
        ("Answer: 21", task("21", scoring="count"), 1),
        ("23", task("21", scoring="count"), 0.75**2),
        ("of 100 questions, the count is: 20", task("21", scoring="count"), 0.75),
        ("none", task("21", scoring="count"), 0),
        ("Human.", task("human", scoring="label"), 1),
        ("The class is **human**", task("human", scoring="label"), 1),
        ("Not location, so: human", task("human", scoring="label"), 1),
        ("human or location", task("human", scoring="label"), 0),
    ],
)
def test_score(answer: str | None, asked: Task, points: float) -> None:
    assert live_tasks.score(answer, asked) == points


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        ({"answer": "It is 17."}, "right"),
        ({"answer": "It is 17.", "cells": 0}, "right"),
        ({"answer": "It is 18."}, "wrong"),
        ({"answer": "It is 18.", "cells": 2}, "wrong"),
        ({"answer": "It is 18.", "cells": 0}, "unread"),
        ({"answer": " "}, "none"),
        ({"ended": "timeout"}, "none"),
        ({"ended": "limit", "answer": "17"}, "none"),
        ({"answer": '{"name": "execute_code", "arguments": {"code": "print(17)"}}'}, "markup"),
        ({"answer": '<tool_call>\n{"name": "f"}'}, "markup"),
        ({"answer": "Run this:\n```python\nprint(17)\n```"}, "markup"),
        ({"answer": "import re\nprint(17)"}, "markup"),
        ({"answer": "FINAL(17)"}, "markup"),
        ({"answer": "```\n17\n```"}, "right"),
        ({"answer": "The imports came to 17 for the year."}, "right"),
    ],
)
def test_verdict(result: dict[str, Any], verdict: str) -> None:
    assert live.verdict_of({"ended": "answered", **result}, task("17"))[0] == verdict


def test_wilson() -> None:
    assert [round(value, 3) for value in (*live.wilson(7, 12), *live.wilson(0, 10))] == [0.320, 0.807, 0.0, 0.278]


# --- the proxy -----------------------------------------------------------------------------------------------------


def ask(proxy: live.Proxy, **body: Any) -> requests.Response:
    sent = {"model": "m", "messages": [{"role": "user", "content": "how many?"}], **body}
    return requests.post(f"{proxy.base_url}/chat/completions", json=sent, timeout=20)


COUNTED = Turn("seventeen", usage={"input": 100, "output": 7, "cached": 60})


@pytest.mark.parametrize("stream", [False, True])
def test_the_proxy_counts_by_the_servers_usage(stream: bool, server: Server) -> None:
    server.script = lambda request: COUNTED
    with live.Proxy(server.base_url, scripted.KEY, max_output=64) as proxy:
        replies = [ask(proxy, stream=stream) for _ in range(2)]
    assert all("seven" in reply.text and "teen" in reply.text for reply in replies)
    found = proxy.usage
    assert (found.calls, found.input, found.output, found.cached, found.estimated) == (2, 200, 14, 120, 0)


def test_a_stream_passes_as_it_was_and_its_usage_only_to_who_asked_for_it(server: Server) -> None:
    server.script = lambda request: COUNTED
    asked = {"stream": True, "stream_options": {"include_usage": True}}
    direct = requests.post(
        f"{server.base_url}/chat/completions",
        json={"model": "m", "messages": [{"role": "user", "content": "how many?"}], "max_tokens": 64, **asked},
        headers={"Authorization": f"Bearer {scripted.KEY}"},
        timeout=20,
    )
    with live.Proxy(server.base_url, scripted.KEY, max_output=64) as proxy:
        full, short = ask(proxy, **asked), ask(proxy, stream=True)

    def chunks(reply: requests.Response) -> list[str]:
        return re.sub(r"chatcmpl-\d+", "id", reply.text).split("\n\n")

    assert chunks(full) == chunks(direct)
    assert chunks(short) == [chunk for chunk in chunks(full) if '"choices": []' not in chunk]


def test_a_call_without_usage_is_estimated_and_said_to_be(server: Server) -> None:
    server.script = lambda request: Turn("x" * 400, usage=None)
    with live.Proxy(server.base_url, scripted.KEY, max_output=64) as proxy:
        ask(proxy, stream=True)
    assert (proxy.usage.calls, proxy.usage.estimated, proxy.usage.output) == (1, 1, 100)


@pytest.mark.parametrize(("asked", "sent"), [(None, 64), (10, 10), (5000, 64)])
def test_the_same_limits_hold_for_everyone(asked: int | None, sent: int, server: Server) -> None:
    server.script = lambda request: COUNTED
    with live.Proxy(server.base_url, scripted.KEY, max_output=64, temperature=0.0) as proxy:
        ask(proxy, max_completion_tokens=asked, temperature=0.9)
    body = server.requests[0].body
    assert (body["max_tokens"], body["temperature"], body.get("max_completion_tokens")) == (sent, 0.0, None)


def test_a_refusal_is_passed_on_and_recorded(server: Server) -> None:
    server.script = lambda request: scripted.error(500, "two assistant messages in a row")
    with live.Proxy(server.base_url, scripted.KEY, max_output=64) as proxy:
        reply = ask(proxy)
    assert (reply.status_code, proxy.usage.calls, proxy.usage.trouble) == (500, 0, False)
    assert "two assistant messages in a row" in proxy.usage.refusals[0]


def test_a_server_that_is_not_there_is_trouble() -> None:
    with live.Proxy("http://127.0.0.1:9/v1", max_output=64) as proxy:
        assert ask(proxy).status_code == 502
    assert proxy.usage.trouble


def test_closing_the_proxy_ends_a_call_in_flight(server: Server) -> None:
    server.script = lambda request: scripted.hang()
    proxy = live.Proxy(server.base_url, scripted.KEY, max_output=64)
    failed: list[Exception] = []

    def call() -> None:
        try:
            ask(proxy)
        except requests.RequestException as error:
            failed.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    server.wait_for(1)
    proxy.close()
    caller.join(20)
    assert failed and proxy.usage.estimated == 1


# --- runs ----------------------------------------------------------------------------------------------------------


def evaluate(server: Server, *more: str, tasks: str = "files", subjects: str = "flat-rlm") -> list[dict[str, Any]]:
    how = ("--base-url", server.base_url, "--model", "m", "--key-env", "EVAL_KEY", "--out", "live.jsonl")
    assert live.main([*how, "--tasks", tasks, "--subjects", subjects, "--seeds", "1", *more]) == 0
    return [json.loads(line) for line in Path("live.jsonl").read_text().splitlines() if line.endswith("}")]


@pytest.fixture
def model(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Looks at the files with a cell, then answers; without tools or a REPL it makes a wrong guess."""
    monkeypatch.setenv("EVAL_KEY", scripted.KEY)
    wanted = next(task for task in live_tasks.tasks(1) if task.name == "files").wanted[0].replace("&", " says ")

    def reply(request: scripted.Request) -> Any:
        if not request.tools:
            return "I guess it is 7."
        return code("print(len(context))") if request.turn == 1 else wanted

    server.script = reply
    return server


def test_a_run_has_its_verdict_and_what_it_used(model: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = evaluate(model)
    known = {name: row[name] for name in ("subject", "task", "seed", "ended", "verdict", "score", "cells", "calls")}
    assert known == {
        "subject": "flat-rlm",
        "task": "files",
        "seed": 1,
        "ended": "answered",
        "verdict": "right",
        "score": 1.0,
        "cells": 1,
        "calls": 2,
    }
    assert row["input"] > 0 and row["output"] > 0
    assert "| flat-rlm | 1 of 1 |" in capsys.readouterr().out


@pytest.mark.slow
def test_only_what_is_missing_is_done_and_a_torn_line_is_done_again(model: Server) -> None:
    evaluate(model, tasks="files,config", subjects="plain")
    assert len(model.requests) == 2
    evaluate(model, tasks="files,config", subjects="plain")
    assert len(model.requests) == 2
    path = Path("live.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    rows = evaluate(model, tasks="files,config", subjects="plain")
    assert len(model.requests) == 3
    assert sorted(row["task"] for row in rows) == ["config", "files"]
    assert [line.endswith("}") for line in path.read_text().splitlines()] == [True, False, True]


def test_what_does_not_fit_the_window_is_not_sent_to_the_plain_model(model: Server) -> None:
    (row,) = evaluate(model, "--window", "2000", tasks="log_count", subjects="plain")
    assert (row["ended"], row["verdict"], row["calls"]) == ("does not fit", "none", 0)
    assert model.requests == []


def test_a_run_ends_at_its_time_limit(model: Server) -> None:
    model.script = lambda request: scripted.hang()
    (row,) = evaluate(model, "--limit-seconds", "1.5", subjects="plain")
    assert (row["ended"], row["verdict"], row["message"]) == ("timeout", "none", "killed after 1.5 s")


@pytest.mark.slow
def test_trouble_is_no_result_and_three_times_in_a_row_stops(model: Server) -> None:
    model.script = lambda request: scripted.error(401, "bad key")
    with pytest.raises(SystemExit, match="stopped: 401"):
        evaluate(model, tasks="files,config,topic,french", subjects="plain")
    assert [row["ended"] for row in live.Results(Path("live.jsonl")).rows] == ["trouble"] * 3
    model.script = lambda request: "7"
    rows = evaluate(model, tasks="files,config,topic,french", subjects="plain")
    assert Counter(row["ended"] for row in rows) == {"trouble": 3, "answered": 4}


# --- the report ----------------------------------------------------------------------------------------------------


def row(subject: str, verdict: str, **more: Any) -> dict[str, Any]:
    return {
        "generation": 1,
        "model": "m",
        "limits": {"seconds": 300.0},
        "subject": subject,
        "task": "files",
        "seed": 1,
        "ended": "answered",
        "verdict": verdict,
        "score": float(verdict == "right"),
        "seconds": 30.0,
        "input": 1000,
        "output": 100,
        "cached": 500,
        "calls": 3,
        "estimated": 0,
        **more,
    }


ROWS = [
    row("plain", "none", ended="does not fit"),
    row("flat-rlm", "wrong"),
    row("flat-rlm", "right"),  # the same run once more: the last counts
    row("flat-rlm", "markup", task="config"),
    row("flat-rlm", "none", task="config", ended="trouble", seed=2),
]


def test_the_tables_have_a_line_for_each_subject() -> None:
    lines = live.lines_of(ROWS)
    assert live.table(lines, [1.0, 4.0]).splitlines()[2:] == [
        "| flat-rlm | 1 of 2 | 9% to 91% | 0.50 | 2,200 | 50% | 3.0 | 60 | 0.0028 |",
        "| plain | 0 of 1 | 0% to 79% | 0.00 | – | 50% | 3.0 | – | – |",
    ]
    assert live.ends_table(lines).splitlines()[2:] == [
        "| flat-rlm | 2 |  |  |  |  |  | 1 |  |  |  |",
        "| plain |  |  |  |  | 1 |  |  |  | 1 |  |",
    ]
    assert live.kinds_table(lines).splitlines()[2:] == ["| files | 1/1 | 0/1 |", "| config | 0/1 |  |"]


@pytest.mark.slow
def test_the_plot_is_an_svg_that_is_the_same_each_time() -> None:
    need("import matplotlib")
    for name in ("one.svg", "two.svg"):
        live.plot(live.lines_of(ROWS), Path(name), "m")
    assert Path("one.svg").read_bytes() == Path("two.svg").read_bytes()
    assert "axes_2" in {element.get("id") for element in ElementTree.parse("one.svg").iter()}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "m"],
        ["--report", "--max-cost", "1"],
        ["--seeds", "some"],
        ["--tasks", "none"],
        ["--prices", "1"],
    ],
    ids=" ".join,
)
def test_arguments_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        live.main(arguments)
    assert stop.value.code == 2


def test_the_page_names_every_subject_and_task_and_only_flags_that_exist() -> None:
    flags = {flag for action in live.arguments()._actions for flag in action.option_strings}
    named = {flag for line in re.findall(r"live\.py ([^`\n]*)", PAGE) for flag in re.findall(r"--[a-z-]+", line)}
    assert len(named) > 8 and named - flags == set()
    missing = [name for name in (*live.SUBJECTS, *live_tasks.KINDS, *live_tasks.DATA_KINDS) if f"`{name}`" not in PAGE]
    assert missing == []
