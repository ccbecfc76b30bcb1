"""The long-context evaluation: its tasks have the answers that they say, its scores are its benchmarks, and a run of
it with the scripted reader ends, resumes and stops as it should."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import scripted
from conftest import ROOT, need

sys.path.append(str(ROOT / "benchmarks"))

import longcontext
import longtasks
import reader

sys.path.remove(str(ROOT / "benchmarks"))  # it has a mcp.py, which must not stand in for the package of that name

PAGE = (ROOT / "docs" / "evaluation.md").read_text()
PRICES = '{"scripted-reader": [1.0, 4.0]}'


# --- the tasks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", longtasks.TASKS)
def test_a_sample_is_the_same_each_time_and_another_for_another_seed(task: str) -> None:
    first = longtasks.sample(task, 4000, 0)
    assert first == longtasks.sample(task, 4000, 0)
    others = [longtasks.sample(task, 4000, 1), longtasks.sample(task, 5000, 0), longtasks.sample(task, 4000, 0, 3.5)]
    assert all(other.context != first.context for other in others)


def test_samples_are_those_of_this_generation() -> None:
    """On every Python and machine. When this fails on purpose: raise GENERATOR, or old results are mixed with new."""
    digest = hashlib.sha256()
    for task, seed in itertools.product(longtasks.TASKS, range(7)):
        digest.update(repr(longtasks.sample(task, 2000, seed)).encode())
    assert (longtasks.GENERATOR, digest.hexdigest()[:16]) == (1, "2102034d7bfcb294")


@pytest.mark.parametrize("task", longtasks.TASKS)
@pytest.mark.parametrize("length", [1000, 8000, 100_000])
def test_a_sample_is_about_as_long_as_it_is_called_and_never_longer(task: str, length: int) -> None:
    for seed in range(3):
        made = longtasks.sample(task, length, seed)
        size = len(made.question) + len(made.context)
        assert size <= length * 4
        assert size >= length * 4 - longtasks.LONGEST_QUESTION - 1000


def pattern_of(template: str) -> str:
    parts = re.split(r"\{\w+\}", template)
    return r"[\w]+".join(map(re.escape, parts))


OWN_KINDS = {kind: re.compile("|".join(map(pattern_of, templates))) for kind, templates in longtasks.QUESTIONS.items()}


def own_kind(question: str) -> str:
    """A question's kind by the template it was made from: neither the generator's count nor the reader's judgement."""
    (kind,) = [kind for kind, pattern in OWN_KINDS.items() if pattern.fullmatch(question)]
    return kind


def rows_of(context: str) -> list[tuple[str, int, str]]:
    parts = [line.split(" || ") for line in context.splitlines()]
    return [(date[6:], int(user[6:]), own_kind(question[10:])) for date, user, question in parts]


def quoted(text: str) -> list[str]:
    found: list[str] = re.findall(r"'(\w+)'", text)
    return [word for word in found if word in longtasks.KINDS]


@pytest.mark.parametrize("seed", range(14))
def test_the_answer_of_a_count_is_what_counting_again_gives(seed: int) -> None:
    made = longtasks.sample("counts", 8000, seed)
    asked = made.question.removeprefix(longtasks.INTRODUCTION)
    rows, kinds = rows_of(made.context), quoted(asked)
    totals = Counter(kind for _, _, kind in rows)
    days = re.findall(r"\d{4}-\d\d-\d\d", asked)
    if made.kind == "number":
        assert made.expected == totals[kinds[0]]
    elif made.kind.endswith(" common"):
        wanted = (max if made.kind == "most common" else min)(totals.values())
        assert [kind for kind in longtasks.KINDS if totals[kind] == wanted] == [made.expected]
    elif made.kind == "comparison":
        assert made.expected == compared(totals[kinds[0]], totals[kinds[1]])
    elif made.kind == "number of users":
        users = set(map(int, re.findall(r"\b\d{5}\b", asked)))
        assert len(users) == 3
        assert made.expected == sum(user in users and kind == kinds[0] for _, user, kind in rows)
    elif made.kind == "comparison over time":
        before = sum(date < days[0] for date, _, kind in rows if kind == kinds[0])
        assert made.expected == compared(before, totals[kinds[0]] - before)
    elif made.kind == "number of days":
        assert made.expected == sum(days[0] <= date <= days[1] and kind == kinds[0] for date, _, kind in rows)
    else:
        assert made.kind == "users"
        by_user = Counter((user, kind) for _, user, kind in rows)
        users = {user for _, user, _ in rows}
        assert made.expected == sorted(user for user in users if by_user[user, kinds[0]] > by_user[user, kinds[1]])


def compared(first: int, second: int) -> str:
    return {True: "more common", False: "less common"}[first > second] if first != second else "same frequency"


@pytest.mark.parametrize("seed", range(6))
def test_the_answer_of_a_pairs_task_is_what_looking_at_each_pair_gives(seed: int) -> None:
    made = longtasks.sample("pairs", 16_000, seed)
    asked = made.question.removeprefix(longtasks.INTRODUCTION)
    rows, (first, second, *_) = rows_of(made.context), [*quoted(asked), ""]
    (day,) = re.findall(r"\d{4}-\d\d-\d\d", asked) or [""]

    def qualify(a: int, b: int) -> bool:
        mine, theirs = [{kind for _, user, kind in rows if user == who} for who in (a, b)]
        if made.kind == "both":
            return bool(mine & {first, second}) and bool(theirs & {first, second})
        if made.kind == "both, dated":
            dates = [[date for date, user, kind in rows if (user, kind) == (who, first)] for who in (a, b)]
            return all(own and min(own) > day for own in dates)
        return any(
            first in x and second not in x and second in y and first not in y
            for x, y in ((mine, theirs), (theirs, mine))
        )

    users = sorted({user for _, user, _ in rows})
    assert made.expected == [pair for pair in itertools.combinations(users, 2) if qualify(*pair)]
    assert 0 < len(made.expected) < len(users) * (len(users) - 1) / 2


def test_a_needle_is_in_its_text_once_and_at_every_depth() -> None:
    depths = set()
    for seed in range(80):
        made = longtasks.sample("needle", 2000, seed)
        assert made.context.count(made.expected) == 1
        depths.add(round(10 * made.context.index(made.expected) / len(made.context)))
    assert {made for made in depths if 0 <= made <= 10} == set(range(11))
    assert {longtasks.sample("needle", 2000, seed).kind for seed in range(4)} == {
        "noise, number", "essay, number", "essay, UUID", "noise, word",
    }  # fmt: skip


@pytest.mark.parametrize("kind", longtasks.KINDS)
def test_the_reader_tells_every_kind_of_question_by_its_words(kind: str) -> None:
    import random

    rng = random.Random(0)
    for form in longtasks.FORMS[kind]:
        questions = [longtasks.fill(rng, form) for _ in range(40)]
        assert {reader.kind_of(question) for question in questions} == {kind}, questions[0]


def test_the_reader_knows_nothing_of_the_tasks() -> None:
    tree = ast.parse((ROOT / "benchmarks" / "reader.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= set(sys.stdlib_module_names)


# --- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scoring", "expected", "response", "wanted"),
    [
        ("contains", "1234567", "It is 1234567.", 1.0),
        ("contains", "Tidy-Otter", "tidy-otter", 1.0),
        ("contains", "1234567", "I cannot find it", 0.0),
        ("number", 40, "Answer: 40", 1.0),
        ("number", 40, "**Answer:** [40]", 1.0),
        ("number", 40, "40", 1.0),
        ("number", 40, "Answer: 41", 0.75),
        ("number", 40, "Answer: 38.", 0.75**2),
        ("number", 1040, "Answer: 1,040", 1.0),
        ("number", 40, "Answer: about forty", 0.0),
        ("number", 40, "", 0.0),
        ("number", 40, "Answer: -1", 0.75**41),
        ("number", 40, "Answer: 40.5", 0.0),
        ("number", 40, "Answer: " + "9" * 5000, 0.0),
        ("number", 40, '{"Answer": 40}', 1.0),
        ("label", "human", "Label: human", 1.0),
        ("label", "human", "The most common one is Human.", 1.0),
        ("label", "human", "Label: location", 0.0),
        ("label", "human", "Label: human or location", 0.0),
        ("phrase", "more common", "Answer: human is more common than entity", 1.0),
        ("phrase", "same frequency", "Answer: same frequency", 1.0),
        ("phrase", "more common", "more common", 1.0),
        ("phrase", "more common", "Answer: less common", 0.0),
        ("phrase", "more common", "more common, less common or same frequency", 0.0),
        ("users", [10001, 10002], "Users: 10001, 10002", 1.0),
        ("users", [10001, 10002], "[10002, 10001]", 1.0),
        ("users", [10001, 10002], "Users: 10001", 2 / 3),
        ("users", [], "Users:", 1.0),
        ("users", [], "Users: 10001", 0.0),
        ("users", [10001], "", 0.0),
        ("pairs", [(1, 2), (1, 3)], "(1, 2)\n(1, 3)", 1.0),
        ("pairs", [(1, 2), (1, 3)], "(2, 1)\n(3, 1)\n(1, 3)", 1.0),
        ("pairs", [(1, 2), (1, 3)], "[[1, 2], [1, 4]]", 0.5),
        ("pairs", [(1, 2), (1, 3)], "(1, 2)", 2 / 3),
        ("pairs", [(1, 2)], "there are none", 0.0),
        ("pairs", [], "there are none", 1.0),
    ],
)
def test_an_answer_is_scored_as_its_benchmark_does(scoring: str, expected: Any, response: str, wanted: float) -> None:
    made = longtasks.Sample("counts", "", "", "", expected, scoring)
    assert longtasks.score(made, response) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("mean", "n", "low", "high"),
    [(0.0, 10, 0.0, 0.2775), (1.0, 10, 0.7225, 1.0), (0.5, 10, 0.2366, 0.7634), (0.9, 100, 0.8256, 0.9448)],
)
def test_the_interval_is_wilsons(mean: float, n: int, low: float, high: float) -> None:
    assert longcontext.wilson(mean, n) == pytest.approx((low, high), abs=1e-4)


def test_an_interval_holds_its_mean() -> None:
    for n, k in itertools.product(range(1, 40), range(41)):
        mean = min(k, n) / n
        low, high = longcontext.wilson(mean, n)
        assert 0 <= low <= mean <= high <= 1


# --- running it ----------------------------------------------------------------------------------------------------


class Model:
    """The scripted reader in this process, and what it was asked."""

    def __init__(self, window: int, lapses: float) -> None:
        self.requests: list[dict[str, Any]] = []
        self.faults: set[int] = set()  # numbers of requests that are answered with 500
        self.reader = reader.Reader(window, lapses)
        self.server = reader.serve(self.reader)
        handler: Any = self.server.RequestHandlerClass
        send = handler.send

        def counted(this: Any, status: int, reply: dict[str, Any]) -> None:
            self.requests.append(reply)
            faulty = len(self.requests) in self.faults
            send(
                this,
                *((500, {"error": {"message": "try again", "type": "server_error"}}) if faulty else (status, reply)),
            )

        handler.send = counted
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


Start = Callable[..., Model]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    running: list[Model] = []
    monkeypatch.setenv("OPENAI_API_KEY", scripted.KEY)

    def made(window: int = 128_000, lapses: float = 0.0) -> Model:
        model = Model(window, lapses)
        threading.Thread(target=model.server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(model)
        return model

    yield made
    for model in running:
        model.server.shutdown()
        model.server.server_close()


def evaluate(url: str, *more: str, out: str = "results.jsonl", prices: str = PRICES) -> int:
    where = ["--model", reader.MODEL, "--backend", "openai", "--base-url", url, "--prices", prices, "--out", out]
    return longcontext.main([*where, *more])


def results(out: str = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out).read_text().splitlines()]


@pytest.mark.slow
def test_a_perfect_reader_answers_everything_alone_and_in_an_rlm(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    model = start()
    assert evaluate(model.url, "--lengths", "8k", "--samples", "7") == 0
    rows = results()
    assert [(row["task"], row["seed"], row["method"]) for row in rows] == [
        (task, seed, method)
        for seed in range(7)
        for task in ("needle", "counts", "pairs")
        for method in ("plain", "rlm")
    ]
    assert {(row["status"], row["score"], row["error"]) for row in rows} == {("answered", 1.0, None)}
    for row in rows:
        used = row["tokens"]
        assert row["cost_usd"] == pytest.approx((used["input"] + 4 * used["output"]) / 1e6)
        assert row["calls"] == 1 if row["method"] == "plain" else row["calls"] >= 3
    assert sum(row["calls"] for row in rows) == len(model.requests)
    shown = capsys.readouterr().out
    for method, count in (("plain", "8,007"), ("rlm", "")):  # what an RLM uses changes with its instructions
        line = f"| 8k | {method} | 21 | 1.00 (0.85–1.00) | 1.00 | 1.00 | 1.00 | {count}"
        assert line in shown and line in PAGE


def test_an_input_beyond_the_window_gets_the_providers_error_and_no_point(start: Start) -> None:
    model = start(window=6000)
    assert evaluate(model.url, "--lengths", "4k,16k", "--samples", "1") == 0
    rows = {(row["length"], row["task"], row["method"]): row for row in results()}
    for task in longtasks.TASKS:
        assert rows[4000, task, "plain"]["score"] == rows[4000, task, "rlm"]["score"] == 1.0
        assert rows[16_000, task, "rlm"]["score"] == 1.0
        refused = rows[16_000, task, "plain"]
        assert (refused["status"], refused["score"], refused["cost_usd"]) == ("refused", 0.0, 0.0)
        assert refused["error"]["code"] == "context_length"
        assert "maximum context length is 6000 tokens" in refused["error"]["message"]
    assert len(rows) == 12


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_any_providers_wire_will_do(wire: str, server: scripted.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the strict server, whose own words for what is too long are taken as such on both wires."""

    def answer(request: scripted.Request) -> scripted.Turn | str:
        find = r"import re; FINAL(re.search(r'is (\d{7})\.', context)[1])"
        return scripted.code(find) if request.body.get("tools") else reader.Reader().read(request.last)

    server.script, server.window = answer, 5000
    monkeypatch.setenv(f"{wire.upper()}_API_KEY", scripted.KEY)
    url = server.base_url if wire == "openai" else server.url
    where = ["--backend", wire, "--model", "a-model", "--base-url", url, "--prices", '{"a-model": [1, 4]}']
    how = ["--lengths", "1k,8k", "--samples", "1", "--tasks", "needle", "--out", "results.jsonl"]
    assert longcontext.main([*where, *how]) == 0
    assert [(row["length"], row["method"], row["status"], row["score"]) for row in results()] == [
        (1000, "plain", "answered", 1.0),
        (1000, "rlm", "answered", 1.0),
        (8000, "plain", "refused", 0.0),
        (8000, "rlm", "answered", 1.0),
    ]
    assert results()[2]["error"]["code"] == "context_length"
    assert all("too long" in problem or "maximum context length" in problem for problem in server.problems)
    server.problems.clear()


def test_what_is_done_is_not_done_again_wherever_it_was_cut(start: Start) -> None:
    """After any number of whole lines, and with any line torn: only what is missing is run, and all ends the same."""
    model = start()
    how = ("--lengths", "1k,2k", "--samples", "1", "--tasks", "needle,counts", "--methods", "plain")
    assert evaluate(model.url, *how) == 0
    whole, asked = Path("results.jsonl").read_bytes(), len(model.requests)
    assert asked == 4
    ends = [0, *(n + 1 for n, byte in enumerate(whole) if byte == 10)]
    cuts = [(end, kept) for kept, end in enumerate(ends)]
    cuts += [(end + size, kept) for kept, end in enumerate(ends[:-1]) for size in (1, 200)]
    cuts += [(end - 1, kept) for kept, end in enumerate(ends) if end]  # whole but for its newline: it counts
    for cut, kept in cuts:
        Path("results.jsonl").write_bytes(whole[:cut])
        model.requests.clear()
        assert evaluate(model.url, *how) == 0
        assert len(model.requests) == asked - kept, f"cut at {cut}"
        after = longcontext.Results(Path("results.jsonl"))
        assert len(after.done()) == 4 and len(after.rows) == 4
        assert Path("results.jsonl").read_bytes().startswith(whole[:cut])


def test_lines_that_are_no_results_are_left_alone(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    model = start()
    how = ("--lengths", "1k", "--samples", "1", "--tasks", "needle", "--methods", "plain")
    good = {
        "model": "m",
        "sub_model": None,
        "generator": 1,
        "characters_per_token": 4,
        "task": "needle",
        "seed": 0,
        "length": 1,
        "method": "plain",
        "status": "answered",
        "score": 1,
        "cost_usd": 0,
        "seconds": 1,
        "tokens": {"input": 1, "output": 1},
    }
    bad = [{**good, name: [1]} for name in good] + [{k: v for k, v in good.items() if k != name} for name in good]
    junk = [
        b"",
        b"junk",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b'"text"',
        b"{}",
        b"null",
        *(json.dumps(row).encode() for row in bad),
    ]
    Path("results.jsonl").write_bytes(b"\n".join(junk))
    assert evaluate(model.url, *how) == 0
    lines = Path("results.jsonl").read_bytes().split(b"\n")
    assert lines[: len(junk)] == junk
    assert json.loads(lines[len(junk)])["score"] == 1.0
    assert f"{len(junk) - 1} lines of results.jsonl are no results" in capsys.readouterr().err
    assert longcontext.is_result(good)


@pytest.mark.slow
def test_ctrl_c_leaves_whole_lines_and_the_rest_for_the_next_time(workspace: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "longcontext.py"), "--scripted", "--out", "results.jsonl"]
    command += ["--lengths", "2k", "--samples", "40", "--tasks", "counts"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if " rlm " in line:
                process.send_signal(signal.SIGINT)
                break
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "interrupted; run again for the rest" in said and "Traceback" not in said
    rows = results()
    done = [row for row in rows if row["status"] != "interrupted"]
    assert 2 <= len(done) < 80 and len(rows) - len(done) <= 1
    command[command.index("40")] = str(len(done))
    assert subprocess.run(command, capture_output=True, timeout=100).returncode == 0
    finished = longcontext.Results(workspace / "results.jsonl")
    assert {row["score"] for row in finished.rows if row["status"] in longcontext.FINAL} == {1.0}
    assert len(finished.done()) == 2 * len(done)


def test_a_model_cannot_read_the_answers_out_of_the_results(openai: scripted.Server, workspace: Path) -> None:
    """They lie in the working directory, where the file tools and the REPL look unless told otherwise."""
    look = """
def tried(read, *arguments):
    try:
        return str(read(*arguments))
    except Exception as error:
        return type(error).__name__
path = "results.jsonl"
FINAL([tried(file_list), tried(file_read, path), tried(file_search, "expected"), tried(lambda: open(path).read())])
""".replace("results.jsonl", str(workspace / "results.jsonl"))
    openai.script = lambda request: scripted.code(look) if request.body.get("tools") else "nothing"
    assert evaluate(openai.base_url, "--lengths", "1k", "--samples", "1", "--tasks", "needle") == 0
    plain, in_rlm = results()
    assert plain["expected"] and plain["score"] == 0.0
    assert in_rlm["status"] == "answered"
    assert plain["expected"] not in in_rlm["answer"] and in_rlm["score"] == 0.0


# --- money ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", longcontext.METHODS)
def test_the_evaluation_stops_before_it_costs_more_than_it_may(
    method: str, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    model = start()
    cap = 0.035 if method == "rlm" else 0.1
    how = ("--lengths", "4k", "--samples", "9", "--methods", method, "--max-cost", str(cap), "--max-output", "2000")
    assert evaluate(model.url, *how) == 3
    spent = sum(reply["usage"]["prompt_tokens"] + 4 * reply["usage"]["completion_tokens"] for reply in model.requests)
    assert 0 < spent / 1e6 <= cap
    rows = results()
    assert sum(row["cost_usd"] for row in rows) == pytest.approx(spent / 1e6)
    answered = [row for row in rows if row["status"] == "answered"]
    assert answered and len(answered) >= len(rows) - 1 and {row["score"] for row in answered} == {1.0}
    assert f"| 4k | {method} | {len(answered)} | 1.00" in capsys.readouterr().out
    assert evaluate(model.url, *how) == 3
    assert sum(row["cost_usd"] for row in results()) <= cap


def test_a_cap_without_a_price_is_refused(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    model = start()
    assert evaluate(model.url, "--max-cost", "1", prices="{}") == 2
    assert "the price of 'scripted-reader' is not known, so --max-cost cannot hold" in capsys.readouterr().err
    assert model.requests == []


def test_without_a_price_the_cost_is_unknown(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--lengths", "1k", "--samples", "1", "--tasks", "needle")
    assert evaluate(start().url, *how, prices="{}") == 0
    assert {row["cost_usd"] for row in results()} == {None}
    assert capsys.readouterr().out.count("| unknown |") == 2


def test_a_model_without_tools_writes_its_code_into_fences(start: Start) -> None:
    model = start()
    assert evaluate(model.url, "--lengths", "2k", "--samples", "1", "--methods", "rlm", "--protocol", "text") == 0
    assert [row["score"] for row in results()] == [1.0] * 3
    written = [reply["choices"][0]["message"] for reply in model.requests]
    assert not any("tool_calls" in message for message in written)
    assert sum("```repl" in str(message["content"]) for message in written) == 2 + 3 + 3


def test_a_runs_own_limit_is_its_result(start: Start) -> None:
    model = start()
    how = ("--lengths", "8k", "--samples", "1", "--tasks", "counts", "--methods", "rlm")
    assert evaluate(model.url, *how, "--token-budget", "4000") == 0
    (row,) = results()
    assert (row["status"], row["score"], row["error"]["type"]) == ("limit", 0.0, "TokenBudgetExhausted")
    assert 0 < row["tokens"]["input"] <= 4000


# --- trouble -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [scripted.error(500), scripted.error(429), scripted.error(400), scripted.html(), scripted.reset()],
    ids=repr,
)
def test_trouble_is_no_result_and_three_times_in_a_row_ends_it(
    fault: scripted.Fault, start: Start, server: scripted.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda request: fault
    how = ("--lengths", "1k", "--samples", "2", "--methods", "plain", "--max-retries", "0")
    assert evaluate(server.base_url, *how) == 3
    assert [row["status"] for row in results()] == ["trouble"] * 3
    assert "stopped: " in capsys.readouterr().err
    assert evaluate(start().url, *how) == 0
    assert Counter(row["status"] for row in results()) == {"trouble": 3, "answered": 6}
    assert "| 1k | plain | 6 | 1.00" in capsys.readouterr().out


def test_trouble_now_and_then_leaves_its_runs_for_the_next_time(
    start: Start, server: scripted.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = lambda request: scripted.error(500) if request.number % 2 else reader.Reader().read(request.last)
    how = ("--lengths", "1k", "--samples", "3", "--tasks", "needle", "--methods", "plain", "--max-retries", "0")
    assert evaluate(server.base_url, *how) == 3
    assert "2 runs have no result" in capsys.readouterr().err
    assert evaluate(start().url, *how) == 0
    assert [(row["seed"], row["status"]) for row in results()] == [
        (0, "trouble"), (1, "answered"), (2, "trouble"), (0, "answered"), (2, "answered"),
    ]  # fmt: skip


def test_the_scripted_root_asks_again_only_for_what_it_did_not_get(start: Start) -> None:
    model = start(window=6000)  # a hundred questions in a sub-call
    how = ("--lengths", "16k", "--samples", "1", "--tasks", "counts", "--methods", "rlm", "--max-retries", "0")
    assert evaluate(model.url, *how) == 0
    calls = results()[0]["calls"]
    model.requests.clear()
    model.faults = {4, 6}
    assert evaluate(model.url, *how, out="faulty.jsonl") == 0
    (row,) = results("faulty.jsonl")
    assert (row["status"], row["score"]) == ("answered", 1.0)
    assert row["calls"] == calls + 1  # a turn more; the two that failed are counted once they are answered
    assert len(model.requests) == row["calls"] + 2


@pytest.mark.parametrize("method", longcontext.METHODS)
def test_ones_own_time_limit_is_a_result(method: str, openai: scripted.Server) -> None:
    openai.script = lambda request: scripted.hang()
    how = ("--lengths", "1k", "--samples", "1", "--tasks", "needle", "--methods", method, "--timeout", "0.3")
    assert evaluate(openai.base_url, *how) == 0
    (row,) = results()
    assert (row["status"], row["score"]) == ("limit", 0.0)


def test_a_wrong_key_ends_it_at_once(server: scripted.Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.key = "another"
    assert evaluate(server.base_url, "--lengths", "1k") == 3
    assert [row["status"] for row in results()] == ["stop"]
    assert "401" in capsys.readouterr().err
    server.problems.clear()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lengths", "8x"],
        ["--lengths", "0"],
        ["--lengths", "100G"],
        ["--lengths", ""],
        ["--tasks", "needles"],
        ["--methods", "both"],
        ["--samples", "0"],
        ["--samples", "-1"],
        ["--max-cost", "0"],
        ["--max-cost", "nan"],
        ["--max-cost", "free"],
        ["--prices", "[1]"],
        ["--prices", "{"],
        ["--lapses", "2"],
        ["--characters-per-token", "-4"],
        ["--unknown"],
    ],
    ids=" ".join,
)
def test_an_argument_that_makes_no_sense_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        longcontext.main(arguments)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_said_before_anything_is_paid_for(
    start: Start, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = start()
    assert evaluate(model.url, "--lengths", "1k", out=str(workspace)) == 2
    assert "Is a directory" in capsys.readouterr().err
    assert model.requests == []


# --- the reader ----------------------------------------------------------------------------------------------------


def ask(text: str, **more: Any) -> tuple[int, dict[str, Any]]:
    request = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    return reader.respond(reader.Reader(window=100), request)


def test_the_reader_refuses_what_is_beyond_its_window_in_openais_words() -> None:
    assert ask("x" * 400)[0] == 200
    status, body = ask("x" * 401)
    assert status == 400
    assert body["error"] == {
        "message": "This model's maximum context length is 100 tokens. However, your messages resulted in 101 tokens. "
        "Please reduce the length of the messages.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }


def test_the_reader_writes_no_more_than_it_may() -> None:
    needle = "The special magic UUID for a-b is 01234567-89ab. What is the special magic UUID for a-b?"
    whole = ask(needle)[1]["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("01234567-89ab", "stop")
    cut = ask(needle, max_tokens=2)[1]
    assert cut["choices"][0]["message"]["content"] == "01234567"
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 2)


def test_the_reader_says_so_when_the_answer_is_not_there() -> None:
    for text in ("What is the special magic word for a-b?", "Is this a question?", ""):
        status, body = ask(text)
        assert status == 200
        assert re.search("does not mention|nothing to answer", body["choices"][0]["message"]["content"])


def test_lapses_are_many_in_a_full_window_and_few_in_an_empty_one_and_always_the_same(start: Start) -> None:
    model = start(window=16_000, lapses=1.0)
    assert evaluate(model.url, "--lengths", "2k,16k", "--samples", "3", "--tasks", "pairs") == 0
    mean = {(line.length, line.method): line.accuracy for line in longcontext.lines_of(results())}
    assert mean[16_000, "plain"] < mean[2000, "plain"]
    assert mean[16_000, "plain"] < mean[16_000, "rlm"] < 1
    made = longtasks.sample("pairs", 16_000, 0)
    again = {reader.Reader(16_000, 1.0).read(f"{made.context}\n{made.question}") for _ in range(2)}
    assert len(again) == 1
    assert again != {reader.Reader(16_000, 0.0).read(f"{made.context}\n{made.question}")}


# --- what is shown -------------------------------------------------------------------------------------------------


def row(length: int, method: str, score: float, **more: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "sub_model": None,
        "generator": 1,
        "characters_per_token": 4.0,
        "task": "needle",
        "length": length,
        "seed": 0,
        "method": method,
        "status": "answered",
        "score": score,
        "cost_usd": 0.5,
        "seconds": 2.0,
        "tokens": {"input": 1000, "output": 10},
        **more,
    }


def test_the_table_has_a_line_for_each_length_and_method() -> None:
    rows = [
        row(8000, "plain", 0.0),
        row(8000, "plain", 1.0),  # the same run once more: the last counts
        row(8000, "plain", 0.5, seed=1, task="pairs", cost_usd=1.5),
        row(8000, "rlm", 1.0, cost_usd=None),
        row(1_500_000, "plain", 0.0, status="refused", cost_usd=0.0, tokens={"input": 0, "output": 0}),
        row(8000, "rlm", 0.0, status="trouble", seed=1),
    ]
    assert longcontext.table(longcontext.lines_of(rows)).splitlines()[2:] == [
        "| 8k | plain | 2 | 0.75 (0.20–0.97) | 1.00 | – | 0.50 | 1,010 | $1.0000 | 2.0 |  |",
        "| 8k | rlm | 1 | 1.00 (0.21–1.00) | 1.00 | – | – | 1,010 | unknown | 2.0 |  |",
        "| 1.5M | plain | 1 | 0.00 (0.00–0.79) | 0.00 | – | – | 0 | $0.0000 | 2.0 | 1 |",
    ]


def test_different_models_are_not_averaged() -> None:
    rows = [row(8000, "rlm", 1.0), row(8000, "rlm", 0.0, sub_model="small"), row(8000, "rlm", 0.0, generator=0)]
    rows += [row(8000, "rlm", 0.0, characters_per_token=3.0)]
    assert {name: lines[0].accuracy for name, lines in longcontext.by_configuration(rows).items()} == {
        "m": 1.0,
        "m with small for sub-calls": 0.0,
        "m, samples of generation 0": 0.0,
        "m, 3 characters a token": 0.0,
    }


@pytest.mark.slow
@pytest.mark.parametrize("cost", [0.5, None, 0.0])
def test_the_plot_is_an_svg_that_is_the_same_each_time(cost: float | None, workspace: Path) -> None:
    need("import matplotlib")
    rows = [row(length, method, 1.0, cost_usd=cost) for length in (8000, 10**6) for method in longcontext.METHODS]
    rows.append(row(10**7, "plain", 0.0, status="refused", cost_usd=0.0, tokens={"input": 0, "output": 0}))
    lines = longcontext.lines_of(rows)
    for name in ("one.svg", "two.svg"):
        longcontext.plot(lines, Path("plots") / name, "a model")
    one, two = (Path("plots") / name for name in ("one.svg", "two.svg"))
    assert one.read_bytes() == two.read_bytes()
    ids = {element.get("id") for element in ElementTree.parse(one).iter()}
    assert {"axes_1", "axes_2"} <= ids


def test_the_page_names_only_flags_that_exist() -> None:
    flags = {flag for action in longcontext.arguments()._actions for flag in action.option_strings}
    lines = re.findall(r"longcontext\.py ([^`\n]*)", PAGE)
    named = {flag for line in lines for flag in re.findall(r"--[a-z-]+", line)}
    assert len(named) > 10 and named - flags == set()


def test_a_report_needs_results_and_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        longcontext.main(["--report", "--out", "results.jsonl"])
    assert "there is no results.jsonl to report" in capsys.readouterr().err
    Path("results.jsonl").write_text(json.dumps(row(8000, "rlm", 1.0)) + "\n")
    assert longcontext.main(["--report", "--out", "results.jsonl"]) == 0
    assert "| 8k | rlm | 1 |" in capsys.readouterr().out
