"""The sandbox as its callers see it: one suite for every way of running the worker.

`make(**options)` is a factory for sandboxes: forked from the zygote with a copy before each cell ("local"), the same
without copies ("alone"), as a process by itself ("plain", what macOS and Windows get), and in a container ("docker").
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, need

import rlm_sandbox
import rlm_worker
from rlm_sandbox import UNSET, AbortCell, BaseSandbox, Cell, Chunks, DockerSandbox, LocalSandbox, SandboxError

Make = Callable[..., BaseSandbox]
LINUX = sys.platform == "linux"


DOCKER = pytest.param("docker", marks=pytest.mark.slow)


@pytest.fixture(params=["local", "alone", "plain", DOCKER])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    yield from factories(request.param, monkeypatch)


@pytest.fixture(params=["local", DOCKER])
def forked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[BaseSandbox]:
    """With a copy before each cell."""
    for factory in factories(request.param, monkeypatch):
        yield factory()


def factories(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    if kind == "plain":
        monkeypatch.setattr(rlm_sandbox, "FORKS_SESSIONS", False)
    elif kind == "docker":
        need("docker")
    elif not LINUX:
        pytest.skip("needs Linux")
    made: list[BaseSandbox] = []

    def factory(**options: Any) -> BaseSandbox:
        options = {"cell_timeout": 20, **({"snapshot": False} if kind == "alone" else {}), **options}
        made.append(DockerSandbox(**options) if kind == "docker" else LocalSandbox(**options))
        return made[-1]

    yield factory
    for box in made:
        box.close()


@pytest.fixture
def local() -> Iterator[LocalSandbox]:
    """With a copy before each cell."""
    if not LINUX:
        pytest.skip("needs Linux")
    with LocalSandbox(cell_timeout=20) as box:
        yield box


def value(cell: Cell) -> str | None:
    assert cell.ok, cell.error
    return cell.value


# --- cells -----------------------------------------------------------------------------------------------------------


def test_a_cell_shows_what_it_prints_and_its_last_expression(make: Make) -> None:
    cell = make().execute("x = 40\nprint('hello', x)\nx + 2")
    assert (cell.ok, cell.status, cell.stdout, cell.value, cell.error) == (True, "ok", "hello 40\n", "42", None)
    assert (cell.final, bool(cell.final), repr(cell.final)) == (UNSET, False, "UNSET")
    assert (cell.n, cell.stdout_chars, cell.restored, cell.images) == (1, 9, False, [])


def test_variables_functions_and_imports_stay(make: Make) -> None:
    box = make()
    box.execute("import math\ndef area(r):\n    return math.floor(math.pi * r * r)\nr = 3")
    assert value(box.execute("area(r)")) == "28"


def test_a_failing_cell_keeps_what_it_did_before(make: Make) -> None:
    box = make()
    cell = box.execute("a = 1\nb = 1 / 0\nc = 3")
    assert (cell.ok, cell.status) == (False, "error")
    assert cell.error is not None and 'File "<cell 1>", line 2' in cell.error and "b = 1 / 0" in cell.error
    assert cell.error.endswith("ZeroDivisionError: division by zero")
    assert set(box.names()) == {"a"}


def test_a_traceback_speaks_of_the_users_lines_only(make: Make) -> None:
    box = make()
    box.execute("def inner(n):\n    raise ValueError(f'bad {n}')\n")
    error = box.execute("\ndef outer():\n    inner(7)\nouter()").error or ""
    assert [line for line in error.splitlines() if "File" in line] == [
        '  File "<cell 2>", line 4, in <module>',
        '  File "<cell 2>", line 3, in outer',
        '  File "<cell 1>", line 2, in inner',
    ]
    assert "rlm_sandbox" not in error and error.endswith("ValueError: bad 7")


def test_a_syntax_error_shows_where(make: Make) -> None:
    cell = make().execute("x = 1\ndef (:\n    pass")
    assert cell.status in ("error", "refused") and "line 2" in (cell.error or "") and "def (:" in (cell.error or "")


def test_an_empty_cell_is_fine(make: Make) -> None:
    assert make().execute("").ok
    assert make().execute("# nothing\n").ok


def test_cells_are_numbered_and_their_output_kept(make: Make) -> None:
    box = make(output_limit=200)
    box.execute("print('first')")
    cell = box.execute("for i in range(1000): print(i)")
    assert cell.n == 2 and cell.stdout_chars == 3890
    assert cell.stdout.startswith("0\n1\n") and cell.stdout.endswith("998\n999\n")
    assert "3690 of 3890 characters left out; the whole is in _out[2]" in cell.stdout and len(cell.stdout) < 300
    assert value(box.execute("_out[1], len(_out[2])")) == "('first\\n', 3890)"


def test_a_long_value_is_cut(make: Make) -> None:
    box = make(output_limit=100)
    for code in ("'x' * 10**6", "list(range(10**5))", "{i: i for i in range(10**5)}", "b'x' * 10**6"):
        shown = value(box.execute(code)) or ""
        assert len(shown) < 250 and "..." in shown, code


def test_a_flood_of_output_keeps_both_ends_of_it(forked: BaseSandbox) -> None:
    cell = forked.execute("print('begin')\nfor _ in range(300): print('x' * 10**5)\nprint('end')")
    assert cell.stdout_chars == 6 + 300 * 100_001 + 4
    assert cell.stdout.startswith("begin\nxx") and cell.stdout.endswith("x\nend\n")
    kept = value(forked.execute("len(_out[1]), _out[1][:5], _out[1][-4:]"))
    assert kept is not None and kept.startswith("(100000") and kept.endswith("'begin', 'end\\n')")


def test_output_is_streamed_while_the_cell_runs(make: Make) -> None:
    seen: list[str] = []
    arrived = threading.Event()

    def on_output(text: str) -> None:
        seen.append(text)
        arrived.set()

    def proceed() -> bool:
        return arrived.wait(10)

    cell = make().execute(
        "print('one')\nassert proceed()\nprint('two')", functions={"proceed": proceed}, on_output=on_output
    )
    assert cell.ok, cell.error
    assert "".join(seen) == cell.stdout == "one\ntwo\n"


def test_a_cell_that_ends_itself_politely_is_no_error(make: Make) -> None:
    cell = make().execute("print('done')\nraise SystemExit\nprint('not')")
    assert (cell.ok, cell.stdout) == (True, "done\n")
    assert make().execute("raise SystemExit('no')").status == "error"


def test_surrogates_are_made_printable(make: Make) -> None:
    cell = make().execute("print('a\\ud800b')\n'\\udfff'")
    assert cell.ok and cell.stdout.encode() and (cell.value or "").encode()


# --- FINAL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, final",
    [
        ("FINAL('done')", "done"),
        ("FINAL({'a': [1, 2.5, None, True]})", {"a": [1, 2.5, None, True]}),
        ("FINAL((1, {2, 3}, b'x', {4: 'y'}))", (1, {2, 3}, b"x", {4: "y"})),
        ("FINAL(float('inf'))", float("inf")),
        ("FINAL(2**100)", 2**100),
        ("FINAL({'$': 'int', 'v': 'x'})", {"$": "int", "v": "x"}),
        ("FINAL(None)", None),
        ("x = [1]\nFINAL_VAR('x')", [1]),
        ("from collections import Counter\nFINAL(Counter('aab'))", {"a": 2, "b": 1}),
        ("FINAL('first')\nFINAL('second')", "second"),
    ],
)
def test_final_carries_plain_data(make: Make, code: str, final: object) -> None:
    cell = make().execute(code)
    assert cell.ok, cell.error
    assert cell.final == final and type(cell.final) is type(final)


def test_final_of_something_else_is_its_text(make: Make) -> None:
    code = "class Thing:\n    def __str__(self):\n        return 'a thing'\nFINAL(Thing())"
    assert make().execute(code).final == "a thing"
    assert isinstance(make().execute("FINAL(10**20000)").final, str)


@pytest.mark.parametrize(
    "given, advice",
    [
        ("(x for x in 'ab')", "not a generator: FINAL(list(x))"),
        ("map(str, [1])", "not a map: FINAL(list(x))"),
        ("print", "not a function: FINAL(f(...))"),
        ("lambda: 1", "not a function: FINAL(f(...))"),
        ("json", "not a module: FINAL(x.name)"),
        ("Thing", "not a class: FINAL(C(...))"),
        ("Thing()", "not a Thing without a text of its own: FINAL(x.name)"),
    ],
)
def test_final_of_what_has_no_text_says_what_to_give_it(make: Make, given: str, advice: str) -> None:
    box = make()
    for code in (f"FINAL({given})", f"x = {given}\nFINAL_VAR('x')"):
        cell = box.execute(f"import json\nclass Thing: pass\n{code}")
        assert (cell.ok, cell.final) == (False, UNSET)
        assert f"TypeError: FINAL takes text or data, {advice}" in str(cell.error)


def test_an_answer_whose_end_is_a_loop_does_not_stop_the_next_cell(make: Make) -> None:
    box = make(cell_timeout=1)
    box.execute("class D:\n    def __repr__(self): return 'd'\n    def __del__(self):\n        while True: pass")
    assert box.execute("FINAL(D())").final == "d"
    assert value(box.execute("6 * 7")) == "42"


def test_final_is_void_when_the_cell_fails(make: Make) -> None:
    cell = make().execute("FINAL('done')\n1 / 0")
    assert (cell.ok, cell.final) == (False, UNSET)


def test_final_var_says_what_there_is(make: Make) -> None:
    box = make()
    assert "there is no variable 'answr'; there are: answer" in (
        box.execute("answer = 1\nFINAL_VAR('answr')").error or ""
    )
    assert "FINAL(value) takes the value" in (box.execute("FINAL_VAR(answer)").error or "")


def test_show_vars_lists_the_cells_own_variables(make: Make) -> None:
    box = make()
    box.set("context", "some text")
    shown = value(box.execute("n = [1, 2]\nSHOW_VARS()", functions={"llm_query": len}))
    assert shown == "{'context': \"str[9] 'some text'\", 'n': 'list[2] [1, 2]'}"


def test_what_a_cell_overwrites_is_there_again_in_the_next(make: Make) -> None:
    box = make()
    box.execute("FINAL = SHOW_VARS = llm_query = _out = None", functions={"llm_query": len})
    assert box.execute("FINAL(llm_query('abc'))", functions={"llm_query": len}).final == 3


def test_help_needs_no_pager_and_no_site(make: Make) -> None:
    cell = make().execute("help(len)\nhelp(FINAL)")
    assert cell.ok, cell.error
    assert "Return the number of items in a container" in cell.stdout and "Answer with this value." in cell.stdout


def test_the_threads_that_work_for_a_cell_end_with_it(make: Make) -> None:
    box = make()
    before = threading.active_count()
    assert value(box.execute("[f(n) for n in range(5)]", functions={"f": lambda n: n})) == "[0, 1, 2, 3, 4]"
    assert eventually(lambda: threading.active_count() <= before)


# --- variables from outside ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        "",
        "plain",
        "é" * 1000 + "🎉\ud800\n",
        ["a", "b\nc", "", "é"],
        {"a.txt": "x", "b/é.txt": "y\nz"},
        [],
        {},
        ["x"] * 1000,
        [1, "two", None, {"three": (3.0, {4})}],
        {1: "a", (2, 3): b"b"},
        None,
        True,
        10**40,
        float("nan"),
        b"\x00\xff",
        frozenset({"x"}),
    ],
    ids=lambda given: type(given).__name__,
)
def test_plain_data_goes_in_and_comes_out_as_it_is(make: Make, given: object) -> None:
    box = make()
    box.set("x", given)
    got = box.get("x")
    assert type(got) is type(given) and repr(got) == repr(given)


def test_a_large_context_is_handed_over_by_reference(make: Make) -> None:
    box = make()
    text = "0123456789" * 2_500_000
    box.set("context", text)
    assert value(box.execute("len(context), context[-3:]")) == "(25000000, '789')"
    box.set("context", [text[i : i + 100] for i in range(0, 10_000_000, 100)])
    assert value(box.execute("len(context), context[99_999]")) == f"(100000, '{text[:100]}')"
    assert box.execute("context = None; small = 1").ok


def test_what_is_not_plain_data_is_refused_with_advice(make: Make) -> None:
    box = make()
    with pytest.raises(TypeError, match=r"cannot hand object to the sandbox: object is not plain data.*convert it"):
        box.set("x", object())
    with pytest.raises(ValueError, match="'a b' is not a name"):
        box.set("a b", 1)
    box.execute("f = len\nbig = 'x' * 40_000_000")
    with pytest.raises(TypeError, match="is not plain data"):
        box.get("f")
    with pytest.raises(KeyError, match="missing"):
        box.get("missing")
    with pytest.raises(ValueError, match="8 MB"):
        box.get("big")
    assert value(box.execute("len(big)")) == "40000000"


def test_names_gives_type_size_and_a_glimpse_without_running_code(make: Make) -> None:
    box = make()
    code = "class Evil:\n    def __repr__(self): raise SystemExit\n    __len__ = __str__ = __repr__\n"
    assert box.execute(code + "e = Evil()\ns = 'abc'\nn = [e, {'k': 1}]\nbig = 10**5000").ok
    assert box.names() == {
        "Evil": ("type", None, "<type>"),
        "e": ("Evil", None, "<Evil>"),
        "s": ("str", 3, "'abc'"),
        "n": ("list", 2, "[<Evil>, {'k': 1}]"),
        "big": ("int", None, "<int of 16610 bits>"),
    }


def test_reset_forgets_everything(make: Make) -> None:
    box = make()
    box.set("context", "x")
    box.execute("y = 1")
    box.reset()
    assert box.names() == {}
    assert value(box.execute("1 + 1")) == "2"


def test_random_and_hashes_are_the_same_in_each_session(make: Make) -> None:
    code = "import random\nrandom.random(), hash('text'), [random.randrange(100) for _ in range(5)]"
    assert value(make().execute(code)) == value(make().execute(code))


# --- host functions --------------------------------------------------------------------------------------------------


def test_a_cell_calls_the_host(make: Make) -> None:
    def join(*parts: str, sep: str = "-") -> str:
        return sep.join(parts)

    box = make()
    assert value(box.execute("join('a', 'b', sep='+') * 2", functions={"join": join})) == "'a+ba+b'"
    assert "NameError" in (box.execute("join('a')").error or "")


def test_data_of_all_plain_kinds_goes_both_ways(make: Make) -> None:
    got: list[Any] = []

    def echo(item: Any) -> Any:
        got.append(item)
        return item

    items = "[None, True, 1, 2**80, 1.5, 'é\\ud800', b'x', (1,), {2}, {3: [4]}, {'$': 1}]"
    code = f"items = {items}\n[echo(i) == i and type(echo(i)) is type(i) for i in items] == [True] * len(items)"
    assert value(make().execute(code, functions={"echo": echo})) == "True"
    assert got[6] == 2**80 and len(got) == 22


# - chunks


def texts(count: int) -> Iterator[tuple[str, int, int]]:
    """(text, size, overlap), small and full of ends of lines, spaces and long words."""
    chance = random.Random(7)
    for _ in range(count):
        text = "".join(
            chance.choices("abé \n", [4, 3, 1, chance.randint(0, 3), chance.randint(0, 3)], k=chance.randrange(60))
        )
        size = chance.randint(1, 20)
        yield text, size, chance.randint(0, size // 2)


def test_pieces_join_to_the_text_and_are_within_the_size() -> None:
    for text, size, _ in texts(3000):
        pieces = Chunks(size)(text)
        assert "".join(pieces) == text
        assert all(0 < len(piece) <= size for piece in pieces)
        for piece, following in itertools.pairwise(pieces):
            if not piece.endswith("\n"):  # then no line ends in what could have been taken
                assert "\n" not in piece
                assert piece.endswith(" ") or (" " not in piece and len(piece) == size), (text, size, following)


def test_pieces_that_overlap_repeat_at_most_that_much_and_leave_nothing_out() -> None:
    for text, size, overlap in texts(3000):
        pieces = Chunks(20)(text, size, overlap)
        assert all(0 < len(piece) <= size for piece in pieces)
        ends = {0}  # where what was seen so far may end
        for piece in pieces:
            starts = {at for end in ends for at in range(max(0, end - overlap), end + 1) if text.startswith(piece, at)}
            ends = {at + len(piece) for at in starts if at + len(piece) > min(ends)}
            assert ends, (text, size, overlap, pieces)
        assert len(text) in ends


def test_an_overlap_is_whole_lines_where_these_fit() -> None:
    lines = "one\ntwo\nthree\nfour\nfive\n"
    assert Chunks(15)(lines, overlap=6) == ["one\ntwo\nthree\n", "three\nfour\n", "four\nfive\n"]
    assert Chunks(12)("a word and a wordy word", overlap=6) == ["a word and ", "and a wordy ", "wordy word"]
    assert Chunks(6)("x" * 14, overlap=2) == ["xxxxxx"] * 3


def test_texts_are_grouped_as_they_fit() -> None:
    chance = random.Random(8)
    for _ in range(1000):
        items = ["x" * chance.randrange(8) for _ in range(chance.randrange(20))]
        size = chance.randint(7, 30)
        groups = Chunks(size)(items)
        assert [item for group in groups for item in group] == items
        assert all(group and len("\n".join(group)) <= size for group in groups)
        for group, following in itertools.pairwise(groups):
            assert len("\n".join([*group, following[0]])) > size
        overlapping = Chunks(size)(tuple(items), overlap=size // 2)
        assert all(len("\n".join(group)) <= size for group in overlapping)
        assert {id(item) for group in overlapping for item in group} == {id(item) for item in items}
    assert Chunks(4)(["ab", "cdefgh", "i"]) == [["ab"], ["cdef"], ["gh", "i"]]
    assert Chunks(5)(["ab", "cd", "ef"], overlap=2) == [["ab", "cd"], ["cd", "ef"]]
    assert (Chunks(4)(""), Chunks(4)([]), Chunks(4)([""])) == ([], [], [[""]])


@pytest.mark.parametrize("unit", ["x" * 79 + "\n", "x", " ", "\n", "é" * 79 + "\n"], ids=ascii)
@pytest.mark.parametrize("overlap", [0, 500])
def test_the_time_to_cut_a_text_grows_with_its_length(unit: str, overlap: int) -> None:
    text = unit * (20_000_000 // len(unit))
    began = time.process_time()
    pieces = Chunks(1000)(text, overlap=overlap)
    assert time.process_time() - began < 2  # a tenth of it, on a quiet machine
    assert len(pieces) <= 2 * len(text) // (1000 - overlap) + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "chunks({'a': 'b'})",
            'TypeError: chunks takes a text or a list of texts, not dict: list(context.values()), or context["name"]',
        ),
        ("chunks(b'x')", "TypeError: chunks takes a text or a list of texts, not bytes: context.decode("),
        ("chunks(None)", "TypeError: chunks takes a text or a list of texts, not None: str(x)"),
        ("chunks(x for x in 'ab')", "TypeError: chunks takes a text or a list of texts, not generator: str(x)"),
        ("chunks(['a', 1])", "TypeError: chunks takes a list of texts, but item 1 is int: [str(item) for item in x]"),
        ("chunks('ab', 0)", "ValueError: size is 0: at least 1"),
        ("chunks('ab', 2.5)", "TypeError: size is a whole number of characters, not 2.5: int(...)"),
        ("chunks('ab', overlap=-1)", "ValueError: overlap is -1: at least 0"),
        ("chunks('ab', 10, 10)", "ValueError: overlap is 10: at most half of the size, which is 10"),
        ("chunks('ab', 10, 6)", "ValueError: overlap is 6: at most half of the size, which is 10"),
    ],
    ids=lambda value: value if value.startswith("chunks") else "",
)
def test_what_cannot_be_cut_says_what_to_write(local: LocalSandbox, call: str, message: str) -> None:
    cell = local.execute(call, functions={"chunks": Chunks(100)})
    assert (cell.error or "").splitlines()[-1].startswith(message)


def test_chunks_runs_in_the_worker_with_the_hosts_size(make: Make) -> None:
    class Watched(Chunks):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("the host was asked")

    box = make()
    text = "line\n" * 10_000
    box.set("context", text)
    code = "pieces = chunks(context)\n''.join(pieces) == context, max(map(len, pieces)), len(chunks(context, 500))"
    assert value(box.execute(code, functions={"chunks": Watched(1000)})) == "(True, 1000, 100)"
    assert value(box.execute("len(chunks(context)[0])", functions={"chunks": Watched(2000)})) == "2000"
    assert "chunks" not in box.names()
    assert value(box.execute("chunks = 1\nchunks", functions={"chunks": Watched(2000)})) == "1"
    assert value(box.execute("chunks(['a', 'b'])", functions={"chunks": Watched(2000)})) == "[['a', 'b']]"
    assert "NameError" in (box.execute("chunks('a')").error or "")
    assert value(box.execute("chunks('a')", functions={"chunks": lambda text: [text, "host"]})) == "['a', 'host']"


@pytest.mark.parametrize("size", [0, -1, "5", True, None, 1.5, 1 << 53], ids=str)
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="the size is"):
        Chunks(size)


class Budget(Exception):
    cell_data: dict[str, Any] = {"limit": 5, "results": ["a", None]}  # noqa: RUF012


def test_an_exception_of_the_host_is_raised_in_the_cell(make: Make) -> None:
    def fail(kind: str) -> None:
        raise {"budget": Budget("too much"), "value": ValueError("bad"), "file": FileNotFoundError("no.txt")}[kind]

    functions = {"fail": fail}
    box = make()
    code = """
def caught(kind):
    try:
        fail(kind)
    except Exception as error:
        return error
e = caught('budget')
print(type(e).__name__, isinstance(e, RuntimeError), e, e.limit, e.results)
print(isinstance(caught('value'), ValueError), caught('file'), type(caught('file')) is FileNotFoundError)
print(type(caught('nothing')) is KeyError)
"""
    cell = box.execute(code, functions=functions)
    assert cell.ok, cell.error
    assert cell.stdout == "Budget True too much 5 ['a', None]\nTrue no.txt True\nTrue\n"
    error = box.execute("fail('budget')", functions=functions).error or ""
    assert error.endswith("Budget: too much") and "rlm_sandbox" not in error


@pytest.mark.parametrize("problem", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_host_function_that_would_end_its_thread_is_an_error_in_the_cell(make: Make, problem: BaseException) -> None:
    def leave() -> None:
        raise problem

    cell = make().execute(
        "try:\n    leave()\nexcept RuntimeError as e:\n    print(type(e).__name__)", functions={"leave": leave}
    )
    assert (cell.ok, cell.stdout) == (True, type(problem).__name__ + "\n"), cell.error


def test_what_cannot_travel_is_an_error_in_the_cell(make: Make) -> None:
    box = make()
    functions: dict[str, Any] = {"give": lambda: object(), "take": lambda item: None}
    assert "TypeError: object is not plain data" in (box.execute("give()", functions=functions).error or "")
    assert "is not plain data" in (box.execute("take(len)", functions=functions).error or "")
    assert "8 MB" in (box.execute("take('x' * 40_000_000)", functions=functions).error or "")
    assert "TypeError" in (box.execute("take(1, 2, 3)", functions=functions).error or "")
    assert value(box.execute("take('x' * 7_900_000)", functions=functions)) is None


def test_accept_is_called_in_the_order_of_arrival(make: Make) -> None:
    order: list[Any] = []

    def query(prompt: str) -> str:
        raise AssertionError("schedule comes first")

    def schedule(prompt: str) -> Callable[[], str]:
        order.append((prompt, threading.current_thread()))
        return lambda: prompt.upper()

    query.schedule = schedule  # type: ignore[attr-defined]
    cell = make().execute("[query(p) for p in 'abc']", functions={"query": query})
    assert value(cell) == "['A', 'B', 'C']"
    assert order == [(prompt, threading.current_thread()) for prompt in "abc"]


def test_tasks_ask_the_host_together(forked: BaseSandbox) -> None:
    """Without threads, those that are nothing but a host function; the others run one after the other."""
    barrier = threading.Barrier(8)

    def query(prompt: str) -> str:
        if prompt.startswith("a"):
            barrier.wait(20)  # nobody passes until all have asked
        return prompt.upper()

    code = """
from concurrent.futures import ThreadPoolExecutor
done = []
def task(i):
    done.append(i)
    return query(f'b{i}')
with ThreadPoolExecutor(8) as pool:
    first = list(pool.map(query, [f'a{i}' for i in range(8)]))
    second = list(pool.map(task, range(8)))
first, second, sorted(done)
"""
    shown = value(forked.execute(code, functions={"query": query}))
    assert shown == repr(([f"A{i}" for i in range(8)], [f"B{i}" for i in range(8)], list(range(8))))


def test_more_tasks_than_may_ask_at_once_are_run(local: LocalSandbox) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    total = sum(pool.map(lambda i: query(i), range(150)))
total
"""
    assert value(local.execute(code, functions={"query": lambda i: i * 2})) == str(150 * 149)


def test_a_task_that_fails_or_prints_or_writes_does_so_once(local: LocalSandbox) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def task(i):
    answer = query(i)
    print('task', i, answer)
    with open('log.txt', 'a') as log: log.write(f'{i}\\n')
    if i == 1: raise ValueError('one')
    return query(answer)
with ThreadPoolExecutor() as pool:
    futures = [pool.submit(task, i) for i in range(3)]
[(f.exception() and str(f.exception())) or f.result() for f in futures], open('log.txt').read()
"""
    calls: list[int] = []

    def query(i: int) -> int:
        calls.append(i)
        return i + 10

    cell = local.execute(code, functions={"query": query})
    assert value(cell) == "([20, 'one', 22], '0\\n1\\n2\\n')"
    assert cell.stdout.replace(rlm_worker.WRITTEN, "") == "task 0 10\ntask 1 11\ntask 2 12\n"
    assert calls == [0, 10, 1, 2, 12]


def test_batches_beyond_a_frame_are_split(forked: BaseSandbox) -> None:
    sizes: list[int] = []

    def llm_query_batched(prompts: list[str]) -> list[str]:
        sizes.append(len(prompts))
        return [str(len(prompt)) for prompt in prompts]

    llm_query_batched.batched = True  # type: ignore[attr-defined]
    functions = {"llm_query_batched": llm_query_batched}
    code = "set(llm_query_batched(['x' * 1_000_000] * 40)), len(llm_query_batched(['x'] * 40))"
    assert value(forked.execute(code, functions=functions)) == "({'1000000'}, 40)"
    assert len(sizes) > 2 and sum(sizes) == 80
    sizes.clear()
    assert value(forked.execute("len(llm_query_batched(['x'] * 100_000))", functions=functions)) == "100000"
    assert len(sizes) > 1 and sum(sizes) == 100_000


class Halt(AbortCell):
    pass


def test_stop_ends_the_cell_and_comes_out(make: Make) -> None:
    def halt() -> None:
        raise Halt("enough")

    box = make()
    with pytest.raises(Halt, match="enough"):
        box.execute("x = 1\nhalt()\nx = 2", functions={"halt": halt})
    with pytest.raises(Halt):
        box.execute("while True:\n    try: halt()\n    except BaseException: pass", functions={"halt": halt})
    assert value(box.execute("1 + 1")) == "2"


def test_the_clock_stands_still_while_the_host_works(make: Make) -> None:
    released = threading.Event()

    def slow() -> str:
        released.wait(1.5)
        return "done"

    cell = make().execute("slow()", functions={"slow": slow}, timeout=0.5)
    assert value(cell) == "'done'"


def test_a_deadline_holds_while_the_host_works(make: Make) -> None:
    released = threading.Event()
    began = time.monotonic()
    cell = make().execute("slow()", functions={"slow": lambda: released.wait(15)}, deadline=began + 0.5)
    released.set()
    assert (cell.status, time.monotonic() - began < 5) == ("timeout", True)


def test_calls_without_end_do_not_stop_the_clock(make: Make) -> None:
    cell = make().execute("while True: query('x')", functions={"query": lambda prompt: prompt}, timeout=0.5)
    assert cell.status == "timeout"


def test_calls_are_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm_sandbox, "CALLS_MAX", 3)
    cell = make().execute("for i in range(5): print(query(i))", functions={"query": lambda i: i})
    assert cell.stdout == "0\n1\n2\n" and "3 times at most" in (cell.error or "")


# --- the ladder ------------------------------------------------------------------------------------------------------


def test_a_loop_is_interrupted_and_its_variables_stay(make: Make) -> None:
    box = make()
    cell = box.execute("x = 1\nprint('before')\nwhile True: x += 1", timeout=0.3)
    assert (cell.status, cell.restored, cell.stdout) == ("timeout", False, "before\n")
    assert "KeyboardInterrupt" in (cell.error or "") and "its limit" in (cell.error or "")
    assert int(value(box.execute("x")) or 0) > 1


DEATHS = {
    "c loop": ("sum(range(10**13))", "timeout"),
    "bare except": ("while True:\n    try:\n        while True: z = 1\n    except BaseException: z = 2", "timeout"),
    "memory": ("y = 'y'\nwhile True: y = y * 100", "memory"),
    "deep recursion in c": ("a = None\nfor _ in range(10**7): a = (a,)\ndel a", None),
}


@pytest.mark.parametrize("code, status", DEATHS.values(), ids=DEATHS)
def test_variables_survive_what_kills_a_cell(forked: BaseSandbox, code: str, status: str | None) -> None:
    forked.execute("kept = {'a': 1}")
    limit = 20 if status == "memory" else 1  # a busy machine takes a while to fill it
    cell = forked.execute("kept['a'] = 2\nprint('so far')\n" + code, timeout=limit)
    if status is not None:
        assert cell.status == status, cell
        assert cell.stdout == "so far\n"
    assert value(forked.execute("kept['a']")) == ("1" if cell.restored else "2")


CRASHES = {
    "exit": ("import os\nos._exit(7)", "crash", "exit status 7"),
    "segfault": ("import ctypes\nctypes.string_at(0)", "crash", "SIGSEGV"),
    "kill": ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "memory", "out of memory"),
    "closed descriptors": ("import os\nos.closerange(0, 100)", "crash", "exit status"),
    "kill all": ("import os\nos.kill(-1, 9)", None, ""),
    "all descriptors": ("import os\nl = []\nwhile True: l.append(os.dup(0))", "error", "Too many open files"),
    "signals ignored": (
        "import signal\nfor n in (2, 10, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "timeout",
        "killed",
    ),
    "children left": (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0: time.sleep(600)\nos._exit(1)",
        "crash",
        "exit status 1",
    ),
}


@pytest.mark.skipif(not LINUX, reason="needs Linux")
@pytest.mark.parametrize("code, status, words", CRASHES.values(), ids=CRASHES)
def test_variables_survive_code_that_the_policy_would_refuse(code: str, status: str | None, words: str) -> None:
    with LocalSandbox(layers=("confinement",), cell_timeout=1) as box:
        box.execute("kept = 41")
        cell = box.execute(code)
        if status is not None:
            assert cell.status == status, cell
        assert words in (cell.error or "")
        assert value(box.execute("kept")) == "41"
        for _ in range(3):
            assert value(box.execute("kept + 1")) == "42"


def test_above_a_size_there_is_no_copy_and_the_loss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalSandbox(cell_timeout=20) as box:
        box.set("context", "given")
        assert box.execute("hoard = [str(i) * 100 for i in range(700_000)]").ok
        cell = box.execute("print('so far')\nsum(range(10**13))", timeout=0.5)
        assert (cell.status, cell.restored, cell.stdout) == ("timeout", False, "so far\n")
        assert "the variables are lost (what the host had set is there again: context)" in (cell.error or "")
        assert value(box.execute("context")) == "'given'"
        assert set(box.names()) == {"context"}


def test_another_thread_interrupts(make: Make) -> None:
    box = make()
    started = threading.Event()
    threading.Thread(target=lambda: started.wait(20) and box.interrupt()).start()
    cell = box.execute("x = 1\nstarted()\nwhile True: pass", functions={"started": started.set})
    assert (cell.status, cell.restored) == ("error", False)
    assert "KeyboardInterrupt" in (cell.error or "")
    assert value(box.execute("x")) == "1"


def test_interrupt_reaches_a_cell_that_waits_for_the_host(make: Make) -> None:
    box = make()
    release = threading.Event()

    def hang() -> None:
        threading.Timer(0.05, box.interrupt).start()
        release.wait(20)

    cell = box.execute("x = 5\nhang()", functions={"hang": hang})
    release.set()
    assert cell.status == "error" and "KeyboardInterrupt" in (cell.error or "")
    assert value(box.execute("x")) == "5"


def test_interrupt_without_a_cell_does_nothing(make: Make) -> None:
    box = make()
    box.interrupt()
    assert value(box.execute("1")) == "1"


def test_kill_ends_the_cell_and_the_next_finds_a_fresh_worker(make: Make) -> None:
    box = make()
    box.set("context", "given")
    started = threading.Event()
    threading.Thread(target=lambda: started.wait(20) and box.kill()).start()
    cell = box.execute("started()\nwhile True: pass", functions={"started": started.set})
    assert (cell.ok, cell.status) == (False, "lost")
    assert "the variables are lost" in (cell.error or "")
    assert value(box.execute("context")) == "'given'"


def test_a_worker_that_died_in_between_is_told_and_renewed(make: Make) -> None:
    box = make()
    box.set("context", "given")
    box.kill()
    cell = box.execute("x = 1")
    assert (cell.status, cell.ok) == ("lost", False)
    assert value(box.execute("context")) == "'given'"


def test_a_closed_sandbox_says_so(make: Make) -> None:
    box = make()
    box.close()
    box.close()
    with pytest.raises(SandboxError, match="the sandbox is closed"):
        box.execute("1")


def test_an_exception_in_the_hosts_own_callback_comes_out_and_kills_the_cell(make: Make) -> None:
    def on_output(text: str) -> None:
        raise ZeroDivisionError

    box = make()
    with pytest.raises(ZeroDivisionError):
        box.execute("print('x')\nwhile True: pass", on_output=on_output)
    assert value(box.execute("1 + 1")) == "2"


def test_ctrl_c_comes_out_of_execute_and_kills_the_cell(make: Make) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    box = make()
    with pytest.raises(KeyboardInterrupt):
        box.execute(
            "interrupt()\nwhile True:\n    try: interrupt()\n    except BaseException: pass",
            functions={"interrupt": interrupt},
        )
    assert value(box.execute("1 + 1")) == "2"


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match='require is "best" or "full"'):
        LocalSandbox(require="some")
    with pytest.raises(ValueError, match="'much' is not an amount of memory"):
        LocalSandbox(memory="much")
    with pytest.raises(SandboxError, match="'no_such_package' is not installed") as caught:
        LocalSandbox(allowed_imports=["no_such_package"])
    assert caught.value.hint == "pip install no_such_package"
    with LocalSandbox() as box, pytest.raises(TypeError, match="code must be a str"):
        box.execute(b"1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text, size", [("1g", 1 << 30), ("512m", 512 << 20), ("64K", 64 << 10), ("1.5GB", 3 << 29), (7, 7), ("9", 9)]
)
def test_amounts_of_memory(text: str | int, size: int) -> None:
    assert rlm_sandbox.parse_size(text) == size


# --- files -----------------------------------------------------------------------------------------------------------


def test_cells_read_the_workspace_and_write_a_folder_of_their_own(make: Make, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("line\n")
    tmp_path.chmod(0o755)  # in a container another user reads it if this one is root
    box = make(workspace=str(tmp_path))
    assert value(box.execute("open('data.txt').read()")) == "'line\\n'"
    assert value(box.execute("open('own.txt', 'w').write('mine')\nopen('own.txt').read()")) == "'mine'"
    assert value(box.execute("open('data.txt', 'w').write('other')\nopen('data.txt').read()")) == "'other'"
    assert "FileNotFoundError" in (box.execute("open('none.txt')").error or "")
    assert not (tmp_path / "own.txt").exists() and (tmp_path / "data.txt").read_text() == "line\n"


@pytest.mark.parametrize("make", ["local", "alone", "plain"], indirect=True)
def test_files_that_are_not_for_cells_are_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("KEY=secret")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("token")
    box = make(workspace=str(tmp_path))
    for code in (
        "open('.env').read()",
        "open('.git/config').read()",
        "open('../x')",
        "open('/etc/passwd')",
        "open('/etc/x', 'w')",
    ):
        cell = box.execute(code)
        assert not cell.ok and "PermissionError" in (cell.error or ""), code


# --- packages that the caller allows ----------------------------------------------------------------------------------

SCIENCE = ["numpy", "pandas", "matplotlib.pyplot", "yaml"]
WORK = {
    "arrays": ("import numpy as np\na = np.arange(12).reshape(3, 4)\nint(a.sum()), a.T.shape", "(66, (4, 3))"),
    "products": ("import numpy as np\nfloat(np.dot(np.ones((99, 99)), np.ones((99, 99))).sum())", "970299.0"),
    "columns": ("import pandas as pd\ndf = pd.DataFrame({'a': [1, 2]})\ndf['b'] = df['a'] * 2\nint(df.b.sum())", "6"),
    "groups": (
        "import pandas as pd\npd.DataFrame({'k': ['x', 'y', 'x'], 'v': [1, 2, 3]}).groupby('k').v.sum().to_dict()",
        "{'x': 4, 'y': 2}",
    ),
    "files": (
        "import pandas as pd\npd.DataFrame({'a': [1]}).to_csv('t.csv')\npd.read_csv('t.csv').shape",
        "(1, 2)",
    ),
    "submodules": ("import numpy.linalg as la\nfloat(la.norm([3, 4]))", "5.0"),
    "from a submodule": ("from numpy.random import default_rng\nround(default_rng(1).random(), 3)", "0.512"),
    "yaml": ("import yaml\nyaml.safe_load('a: [1, {b: c}]')", "{'a': [1, {'b': 'c'}]}"),
}


@pytest.fixture(scope="module")
def science() -> Iterator[LocalSandbox]:
    for name in ("numpy", "pandas", "matplotlib", "yaml"):
        pytest.importorskip(name)
    with LocalSandbox(allowed_imports=SCIENCE, cell_timeout=60) as box:
        yield box


@pytest.mark.skipif(not LINUX, reason="needs the confinement")
@pytest.mark.parametrize("code, shown", WORK.values(), ids=WORK)
def test_allowed_packages_work(science: LocalSandbox, code: str, shown: str) -> None:
    assert value(science.execute(code)) == shown


@pytest.mark.skipif(not LINUX, reason="needs the confinement")
def test_figures_become_images_once(science: LocalSandbox) -> None:
    import base64

    cell = science.execute(
        "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.title('ä')\nplt.show()\nplt.figure()"
    )
    assert cell.ok, cell.error
    assert [image["media_type"] for image in cell.images] == ["image/png"] * 2
    assert all(base64.b64decode(image["data"]).startswith(b"\x89PNG") for image in cell.images)
    assert science.execute("1").images == []


@pytest.mark.skipif(not LINUX, reason="needs the confinement")
def test_allowed_packages_do_not_reach_beyond_the_confinement(science: LocalSandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("CANARY")
    assert science.level == "full"
    cell = science.execute(f"import numpy as np\nnp.fromfile({str(secret)!r}, dtype='u1')")
    assert not cell.ok and "CANARY" not in str(cell)
    assert science.execute("import numpy as np\nnp.ones(10**10)").status == "memory"
    assert value(science.execute("1 + 1")) == "2"


# --- nothing is left -------------------------------------------------------------------------------------------------


def descriptors() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }


def processes(mark: str) -> list[int]:
    """Those whose environment or command line names the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark in (entry / "cmdline").read_text(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


HOST = """
import sys, threading
sys.path.insert(0, {root!r})
import rlm_sandbox
boxes = [rlm_sandbox.LocalSandbox(snapshot=snapshot) for snapshot in (True, False, True)]
print("ready", flush=True)
def spin(box, code):
    threading.Thread(target=box.execute, args=(code,), kwargs={{"timeout": 600}}, daemon=True).start()
spin(boxes[0], "while True: pass")
spin(boxes[1], "sum(range(10**13))")
boxes[2].execute("x = 1")
print("running", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize("how", ["kill", "exception", "exit"])
def test_nothing_outlives_the_host(how: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tmp_path = tmp_path_factory.mktemp("host")
    code = HOST.format(root=str(Path(rlm_sandbox.__file__).parent))
    if how == "exception":
        code += "raise SystemError\n"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    host = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    with host:
        assert host.stdout is not None and host.stdin is not None
        assert host.stdout.readline() == b"ready\n" and host.stdout.readline() == b"running\n"
        assert len(processes(str(tmp_path))) >= 7  # the zygote, and a supervisor and a worker for each session
        if how == "kill":
            host.send_signal(signal.SIGKILL)
        host.stdin.close()
        host.wait(20)
        assert eventually(lambda: not processes(str(tmp_path)))
        assert eventually(lambda: not list(tmp_path.iterdir()))


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.nightly)])
def test_many_sandboxes_leave_nothing_in_the_host(count: int) -> None:
    def use() -> None:
        with LocalSandbox() as box:
            assert box.execute("f('x')", functions={"f": str.upper}).value == "'X'"

    use()
    gc.collect()
    before, size, threads = descriptors(), memory(), threading.active_count()
    zygote = rlm_sandbox.zygote_for((), True)
    assert eventually(lambda: not children(zygote.process.pid))
    inner = len(os.listdir(f"/proc/{zygote.process.pid}/fd"))
    for _ in range(count):
        use()
    gc.collect()
    assert descriptors() == before
    assert memory() - size < 8 << 20
    assert eventually(lambda: len(os.listdir(f"/proc/{zygote.process.pid}/fd")) == inner)
    assert eventually(lambda: not children(zygote.process.pid))
    assert threading.active_count() <= threads + 2
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    assert len(list(folder.glob(f"rlm-sandbox-{os.getuid()}-{zygote.process.pid}-*"))) == 1  # the zygote's own


@pytest.fixture
def own_zygote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A zygote whose files lie in a folder of their own; which is returned."""
    if not LINUX:
        pytest.skip("needs Linux")
    rlm_sandbox.shutdown()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield tmp_path
    rlm_sandbox.shutdown()


def folders_in(folder: Path) -> set[Path]:
    return set(folder.glob("rlm-sandbox-*"))


def test_sessions_survive_the_loss_of_the_temporary_folder(own_zygote: Path) -> None:
    with LocalSandbox() as box:
        box.execute("kept = 41")
        zygote = rlm_sandbox.zygote_for((), True).process
        shutil.rmtree(own_zygote)
        with LocalSandbox() as other:
            assert value(other.execute("open('f', 'w').write('x')")) == "1"
        assert value(box.execute("kept")) == "41" and zygote.poll() is None


def test_a_folder_in_the_place_of_the_lost_one_is_not_used(own_zygote: Path) -> None:
    with LocalSandbox() as box:
        before = folders_in(own_zygote)
        for path in before:
            path.rename(own_zygote / f"aside-{path.name}")
            path.mkdir()
        with LocalSandbox() as other:
            assert value(other.execute("1")) == "1"
            assert len(folders_in(own_zygote) - before) == 1
        assert value(box.execute("2")) == "2"


def test_sessions_survive_one_that_cannot_be_made(own_zygote: Path) -> None:
    import resource

    with LocalSandbox() as box:
        box.execute("kept = 41")
        zygote = rlm_sandbox.zygote_for((), True).process
        open_now = len(os.listdir(f"/proc/{zygote.pid}/fd"))
        resource.prlimit(zygote.pid, resource.RLIMIT_NOFILE, (open_now - 1, 1024))
        for _ in range(3):
            with pytest.raises(SandboxError, match="did not start"):
                LocalSandbox()
        assert value(box.execute("kept")) == "41" and zygote.poll() is None
        resource.prlimit(zygote.pid, resource.RLIMIT_NOFILE, (1024, 1024))
        with LocalSandbox() as other:
            assert value(other.execute("1")) == "1"


def test_abandoned_folders_are_removed_and_those_in_use_are_not(own_zygote: Path) -> None:
    import fcntl

    prefix = f"rlm-sandbox-{os.getuid()}-"
    abandoned, used = own_zygote / f"{prefix}1-dead", own_zygote / f"{prefix}4194999-used"
    abandoned.mkdir()
    used.mkdir()
    lock = os.open(used, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as a process that has another number there
    with LocalSandbox():
        assert used.exists() and not abandoned.exists()
    os.close(lock)


def test_paths_too_long_for_a_request_are_refused_and_the_others_go_on(local: LocalSandbox) -> None:
    with pytest.raises(SandboxError, match="too long") as caught:
        LocalSandbox(workspace=[f"/tmp/{'x' * 200}{i}" for i in range(400)])
    assert "common parent" in caught.value.hint
    zygote = rlm_sandbox.zygote_for((), True)
    zygote.socket.send(b"not JSON")
    with pytest.raises(SandboxError, match="not understood"):
        zygote.answer()
    assert value(local.execute("1")) == "1"


def test_without_descriptors_the_error_says_so_and_none_are_lost(local: LocalSandbox) -> None:
    import resource

    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for left in range(3):
        taken: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            for _ in range(left):
                os.close(taken.pop())
            with pytest.raises(SandboxError, match="Too many open files") as caught:
                LocalSandbox()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in taken:
                os.close(descriptor)
        assert "ulimit -n" in caught.value.hint
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("folder, works", [("made", True), ("missing", False)])
def test_the_temporary_folder_may_be_relative_but_must_be_there(
    own_zygote: Path, monkeypatch: pytest.MonkeyPatch, folder: str, works: bool
) -> None:
    monkeypatch.chdir(own_zygote)
    (own_zygote / "made").mkdir()
    monkeypatch.setenv("TMPDIR", folder)
    if works:
        with LocalSandbox() as box:
            assert value(box.execute("1")) == "1" and folders_in(own_zygote / folder)
    else:
        with pytest.raises(SandboxError, match="missing") as caught:
            LocalSandbox()
        assert caught.value.hint == "export TMPDIR=/tmp"


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_a_session_keeps_its_descriptors_over_many_cells(forked: BaseSandbox) -> None:
    with LocalSandbox(layers=("confinement",)) as box:
        count = (
            "import os, errno\ndef opened(fd):\n    try: return bool(os.fstat(fd))\n    except OSError: return False\n"
        )
        box.execute(count)
        first = value(box.execute("[fd for fd in range(200) if opened(fd)]"))
        for _ in range(50):
            box.execute("x = 1")
        assert value(box.execute("[fd for fd in range(200) if opened(fd)]")) == first


def test_a_zygote_that_died_is_replaced(local: LocalSandbox) -> None:
    client = next(client for key, client in rlm_sandbox._zygotes.items() if key[0] == os.getpid())
    client.process.kill()
    client.process.wait()
    assert eventually(lambda: local.execute("1").status == "lost" or local.execute("1").ok)
    with LocalSandbox() as box:
        assert value(box.execute("2")) == "2"
    assert eventually(lambda: local.execute("3").ok)


def test_a_forked_host_has_a_zygote_of_its_own(local: LocalSandbox) -> None:
    child = os.fork()
    if child == 0:
        try:
            with LocalSandbox() as box:
                fine = box.execute("f(2)", functions={"f": lambda n: n * 2}).value == "4"
            rlm_sandbox.shutdown()
        finally:
            os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert value(local.execute("1 + 1")) == "2"


@pytest.mark.parametrize("how", ["dropped", "used"])
def test_a_forked_host_leaves_its_parents_sandbox_alone(make: Make, how: str) -> None:
    box = make()
    box.execute("kept = 41")
    child = os.fork()
    if child == 0:
        fine = False
        try:
            fine = how == "dropped" or value(box.execute("6 * 7")) == "42"  # in a worker of its own
            box.close()
            rlm_sandbox.shutdown()
        finally:
            os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert value(box.execute("kept")) == "41"


def test_a_forked_host_does_not_wait_for_a_lock_that_its_parent_held(local: LocalSandbox) -> None:
    channel = local._channel
    assert isinstance(channel, rlm_sandbox.LocalChannel)
    with channel.lock:
        child = os.fork()
        if child == 0:
            local.kill()
            os._exit(0)
    try:
        assert eventually(lambda: os.waitpid(child, os.WNOHANG)[0] == child)
    except AssertionError:
        os.kill(child, signal.SIGKILL)
        raise
    assert value(local.execute("1 + 1")) == "2"


def test_a_host_forked_while_a_zygote_starts_does_not_wait_for_ever(local: LocalSandbox) -> None:
    with rlm_sandbox._zygotes_lock, rlm_sandbox._warm_lock:  # as another thread would hold them
        child = os.fork()
        if child == 0:
            free = rlm_sandbox._zygotes_lock.acquire(blocking=False) and rlm_sandbox._warm_lock.acquire(blocking=False)
            os._exit(0 if free else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_many_threads_share_and_have_sandboxes(local: LocalSandbox) -> None:
    results: list[Any] = []

    def work(i: int) -> None:
        with LocalSandbox() as box:
            results.append(box.execute(f"f({i})", functions={"f": lambda n: n * 2}).value)
        results.append(local.execute(f"{i} * 2").value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results, key=int) == sorted([str(i * 2) for i in range(8)] * 2, key=int)


def test_a_forgotten_sandbox_ends_with_its_last_reference() -> None:
    box = LocalSandbox()
    channel = box._channel
    assert isinstance(channel, rlm_sandbox.LocalChannel)
    zygote = channel.zygote.process.pid
    supervisor = str(channel.group)
    assert supervisor in children(zygote)
    del box
    gc.collect()
    assert eventually(lambda: supervisor not in children(zygote))


def test_an_interrupted_start_does_not_confuse_the_next(local: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = rlm_sandbox.ZygoteClient.answer

    def interrupted(self: rlm_sandbox.ZygoteClient) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(rlm_sandbox.ZygoteClient, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LocalSandbox()
    monkeypatch.setattr(rlm_sandbox.ZygoteClient, "answer", answer)
    with LocalSandbox() as box:
        assert value(box.execute("1")) == "1"
        channel = local._channel
        assert isinstance(channel, rlm_sandbox.LocalChannel)
        assert eventually(lambda: len(children(channel.zygote.process.pid)) == 2)


def test_a_worker_is_not_used_without_what_the_host_had_set(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    box = make()
    box.set("context", "abc")
    box.kill()
    box.execute("1")
    receive = rlm_sandbox.Channel.receive

    def interrupted(self: rlm_sandbox.Channel, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rlm_sandbox.Channel, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        box.execute("1")
    monkeypatch.setattr(rlm_sandbox.Channel, "receive", receive)
    assert value(box.execute("context")) == "'abc'"


def test_warm_and_shutdown_can_come_at_any_time() -> None:
    rlm_sandbox.shutdown()
    rlm_sandbox.warm()
    with LocalSandbox() as box:
        rlm_sandbox.warm()
        assert value(box.execute("1")) == "1"
        rlm_sandbox.shutdown()
        assert box.execute("1").status == "lost"
        assert value(box.execute("1")) == "1"


# --- by itself -------------------------------------------------------------------------------------------------------


def test_the_three_files_alone_run_their_own_test(tmp_path: Path) -> None:
    alone = tmp_path / "vendored" / "rlm_sandbox.py"
    alone.parent.mkdir()
    for name in ("rlm_sandbox.py", "rlm_worker.py", "rlm_policy.py"):
        (alone.parent / name).write_bytes(Path(rlm_sandbox.__file__).with_name(name).read_bytes())
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(alone), "--self-test"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "level: full" in done.stdout and "FAILED" not in done.stdout


def test_the_worker_is_python_3_8() -> None:
    """What is sent into containers must parse there."""
    import ast

    worker = ast.parse(Path(rlm_worker.__file__).read_text(), feature_version=(3, 8))
    assert {"Packer", "Worker"} <= {node.name for node in worker.body if isinstance(node, ast.ClassDef)}


def test_json_of_a_cell_is_possible(make: Make) -> None:
    cell = make().execute("print('x')\n{'a': 1}")
    assert json.loads(json.dumps([cell.stdout, cell.value, cell.error, cell.images])) == ["x\n", "{'a': 1}", None, []]


def test_a_thread_that_waits_for_the_host_does_not_hold_back_the_others() -> None:
    answered = threading.Event()

    def count(number: int) -> None:
        if number == 2:
            answered.set()

    code = (
        "import threading\nfound = []\n"
        "slow = threading.Thread(target=lambda: found.append(ask()))\nslow.start()\n"
        "for n in range(3): count(n)\nslow.join()\nfound"
    )
    with LocalSandbox(layers=(), cell_timeout=20) as sandbox:  # the confinement allows no threads
        assert value(sandbox.execute(code, functions={"ask": lambda: answered.wait(5), "count": count})) == "[True]"


@pytest.mark.skipif(not LINUX, reason="needs Linux")
@pytest.mark.parametrize("late", [False, True], ids=["before it is opened", "before it is locked"])
def test_a_folder_that_another_process_sweeps_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    import fcntl

    module, name = (fcntl, "flock") if late else (rlm_worker, "locked")
    place, swept = tmp_path / "temporary", list[Path]()
    original = getattr(module, name)

    def sweep_first(*arguments: Any) -> Any:
        if not swept:
            swept.extend(place.iterdir())
            shutil.rmtree(swept[0])
        return original(*arguments)

    monkeypatch.setattr(module, name, sweep_first)
    folder, lock = rlm_worker.make_folder(str(place))
    assert list(place.iterdir()) == [Path(folder)] != swept
    rlm_worker.remove_folder(folder, lock)


@pytest.mark.parametrize("given", [["a\0b", ""], {"a\0": "\1\2"}, ["\0\1\2\3"]], ids=["NUL", "more", "all"])
def test_texts_with_control_characters_are_handed_over_as_texts(local: LocalSandbox, given: Any) -> None:
    form = "json" if given == ["\0\1\2\3"] else type(given).__name__
    assert rlm_worker.to_pieces(given)[0]["form"] == form
    local.set("given", given)
    assert local.get("given") == given
