"""What comes from outside costs time in proportion to its length, and a small multiple of its bytes of memory."""

from __future__ import annotations

import contextlib
import encodings
import hashlib
import json
import os
import pkgutil
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rlm
import rlm_backends
import rlm_cli
import rlm_config
import rlm_mcp
import rlm_tools
import rlm_viz

KNOWN = ["execute_code", "file_read", "llm_query", "FINAL", "FINAL_VAR", "SHOW_VARS"]
TOOL = rlm_tools.file_tools([])[0]


def quietly(work: Callable[[str], Any]) -> Callable[[str], Any]:
    def run(text: str) -> None:
        with contextlib.suppress(ValueError, rlm_tools.ToolError, rlm.ConfigError):
            work(text)

    return run


def dotenv(text: str) -> Any:
    Path(".env").write_text(text)
    return rlm_config._dotenv_keys(".")


def toml(text: str) -> Any:
    Path("rlm.toml").write_text(text)
    return rlm_config.read_toml("rlm.toml", False)


READERS: dict[str, Callable[[str], Any]] = {
    "visible": rlm.visible,
    "fences": rlm.fences,
    "code_blocks": rlm.code_blocks,
    "written_action": lambda text: rlm.written_action(text, KNOWN),
    "final_call": rlm.final_call,
    "code_argument": rlm.code_argument,
    "read_arguments": rlm.read_arguments,
    "clean_code": rlm.clean_code,
    "tool_name": lambda text: rlm.tool_name(text, KNOWN),
    "unseen_numbers": lambda text: rlm.unseen_numbers(text, text),
    "brief_error": lambda text: rlm.brief_error(text, text, 1, has_advice=True),
    "lacks_a_part": lambda text: rlm.lacks_a_part(text, text),
    "sums": lambda text: rlm._sums_for(text, [{"a": 1}, {"a": 1}]),
    "parsed": lambda text: rlm._parsed(text, rlm._format_of(text)),
    "words": lambda text: rlm.words_of(text, rlm.Context(text)),
    "start": lambda text: rlm.ready_in(rlm.Context(text)),
    "format of a context": rlm._format_of,
    "answer as JSON": rlm._json_in,
    "dotenv": dotenv,
    "toml": quietly(toml),
    "params": quietly(lambda text: rlm.parse_params([text])),
    "suggestion": lambda text: rlm_config.suggestion(text, rlm.OPTIONS),
    "from_json": quietly(rlm_backends.from_json),
    "last_object": rlm_backends.last_object,
    "events": lambda text: list(rlm_backends._events(iter([text.encode()]))),
    "error text": lambda text: rlm_backends._error_text({"error": {"message": text, "details": [text]}}),
    "error body": lambda text: rlm_backends._code_for(500, rlm_backends._error_text(text.encode())),
    "tidy": lambda text: rlm_backends._tidy(text, "k" * 20),
    "tool arguments": quietly(lambda text: rlm_tools.check_arguments(TOOL, text)),
    "tool values": quietly(lambda text: rlm_tools.check_arguments(TOOL, {"path": "x", "start_line": text, text: 1})),
    "is_secret": rlm_tools.is_secret,
    "file_list": quietly(lambda text: rlm_tools._Files([], None, []).paths(text)),
    "braces": quietly(lambda text: rlm_tools._expanded(text[: rlm_tools.PATTERN_LIMIT])),
    "journal line": lambda text: rlm_viz._parse(text.encode()),
    "error of version 1": lambda text: rlm_viz._explicit_error({"event": "tool", "code": "", "error": text}),
    "error of a cell": lambda text: rlm.error_in(text, "error"),
    "time": rlm_cli.local_time,
    "plain": rlm_cli.strip_control,
}
UNITS = [
    *(
        " ",
        "\n",
        " \n",
        "\t",
        "\r\n",
        "```",
        "```\n",
        "```a\n",
        "```python\nx=(\n",
        "```python\nx=1\n```\n",
        "~~~\n",
        "`",
    ),
    *("{", "[", "(", ")", "]", "[{", "{\n", "<", "|", ",", "1,", "1", "a", "a.", "A", "-", "::", "/", "\\", '"', "'"),
    *(
        '{"name": ',
        '{"name":"x"}',
        '{"name":"execute_code","arguments":{',
        '{"code":"',
        "{a,",
        "{row['a']: ",
        "how many different ",
        "2026-05-04 06:00:05 ",
        "KX-1234 ",
        "**/",
        "*a",
        "[!a",
        "a=1,",
    ),
    *("execute_code(", "execute_code(\n", "FINAL(", "FINAL(\n", "**FINAL(", "functools[", "to=functions.a ", "not "),
    *("<tool_call>", "<tool_call>\n", "[TOOL_CALLS]", "<|channel|> to=a ", "<|python_tag|>", "<code>", "<parameter=a>"),
    *(
        "<think>",
        "</tool_call>",
        "Action: a\nAction Input:",
        "> ",
        "- ",
        ">>> x\n",
        "PerDay",
        "sk-",
        "TypeError: ",
        "\x1b[",
    ),
    *("data:\n", "data: {}\n\n", "=", "export ", "x=1\n", "é", "\x00"),
]
PREFIXES = ["", "```python\n", "<tool_call>", '{"name":', "execute_code("]
LENGTH = 12_000  # where a quadratic reader takes most of a second


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def seconds(work: Callable[[str], Any], text: str, times: int = 1) -> float:
    """The least processor time of some runs of this thread."""
    taken = []
    for _ in range(times):
        start = time.thread_time()
        work(text)
        taken.append(time.thread_time() - start)
    return min(taken)


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_takes_twice_the_time_for_twice_the_text(reader: str) -> None:
    work = READERS[reader]
    for unit in UNITS:
        for prefix in PREFIXES:
            text = prefix + unit * (LENGTH // len(unit)) + "x"
            if seconds(work, text) > 0.15:  # of many texts, only the slow ones are looked at more closely
                one = seconds(work, text, 2)
                two = seconds(work, prefix + unit * (2 * LENGTH // len(unit)) + "x", 2)
                assert two < 3 * one + 0.1 or two < 0.5, (prefix, unit, one, two)
                assert one < 2.5, (prefix, unit, one)


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        ("written_action", "```" + " " * 2000),
        ("written_action", " " * 12_000 + "x"),
        ("written_action", "<tool_call>" + " " * 12_000 + "x"),
        ("error text", "a" * 50_000),
        ("dotenv", " " * 60_000),
        ("file_list", "{" + "," * 30_000),
        ("file_list", "**/" * 2000),
        ("fences", "```python\nx = (\n" * 20_000),
        ("fences", "```python\n" + "x = (1,\n```\n" * 20_000),
        ("final_call", "FINAL(\n" * 50_000 + ")"),
    ],
)
def test_what_once_took_seconds_or_minutes(reader: str, text: str) -> None:
    assert seconds(READERS[reader], text) < 2.5


ENCODINGS = sorted({name for _, name, _ in pkgutil.iter_modules(encodings.__path__) if rlm_tools._known_charset(name)})


def test_the_encodings_that_may_be_named_are_decoded_in_linear_time() -> None:
    assert len(ENCODINGS) > 90 and {"utf_8", "cp1251", "gb18030", "utf_7"} <= set(ENCODINGS)
    units = [b"a", b"a-", b"+AAA-", b"~{", b"\x1b$B", b"\\u0041", b"\xff", b"\xed\xa0\x80", bytes(range(256))]
    for name in ENCODINGS:
        for unit in units:

            def decode(length: str, name: str = name, unit: bytes = unit) -> Any:
                blob = unit * (int(length) // len(unit))
                return rlm_tools.read_blob(blob + b"-" + blob, name)

            assert (one := seconds(decode, "100000")) < 0.15 or seconds(decode, "200000", 2) < 3 * one + 0.1, name


@pytest.mark.parametrize("name", [name for _, name, _ in pkgutil.iter_modules(encodings.__path__)])
def test_the_option_takes_what_a_web_page_may_name(name: str) -> None:
    allowed = contextlib.nullcontext() if name in ENCODINGS else pytest.raises(rlm.ConfigError)
    with allowed:
        rlm_config.require_encoding(name, "--encoding")
    assert rlm_config.NO_ENCODINGS == rlm_tools.NO_ENCODINGS


def test_the_names_of_a_hub_cost_no_more_than_their_number() -> None:
    """Each of the first names once cost the 99,999 names of its parts."""
    names = [f"n{number:05}-Q4_K_M-00001-of-99999.gguf" for number in range(20_000)]
    start = time.thread_time()
    assert rlm_backends._variants([rlm_backends._HubFile(name, 5, "") for name in names]) == []
    variants = rlm_backends._variants([rlm_backends._HubFile(f"{number}-Q8_0.gguf", 5, "") for number in range(20_000)])
    with pytest.raises(rlm_backends.BackendError, match="has several models"):
        rlm_backends._Hub("hf:a/b:Q8_0", rlm_backends._Environ({}))._chosen(variants)
    assert time.thread_time() - start < 2.5


# --- memory -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def growth_below(megabytes: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1e6


LISTS = b"[" + b"[]," * 10_000_000 + b"[]]"


def in_chunks(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 65_536] for at in range(0, len(data), 65_536))


@pytest.mark.parametrize("length", [10_000, 1_000_000, 10_000_000])
def test_a_body_of_lists_is_refused_before_it_is_read(length: int) -> None:
    body = b"[" + b"[]," * length + b"[]]"
    with growth_below(50), contextlib.suppress(rlm_backends.BackendError, ValueError):
        rlm_backends.from_json(rlm_backends._gathered(in_chunks(body)))


def test_an_event_of_lists_is_refused_before_it_is_read() -> None:
    stream = b"data: " + LISTS + b"\n\n"
    with growth_below(50), pytest.raises(rlm_backends.BackendError, match="more than 300,000 values"):
        list(rlm_backends._events(in_chunks(stream)))


def test_what_looks_like_lists_in_a_string_is_text() -> None:
    text = '[],"\\' * 200_000
    assert rlm_backends.from_json(json.dumps({"a": text}).encode()) == {"a": text}
    with pytest.raises(ValueError, match="more than 300,000 values"):
        rlm_backends.from_json(json.dumps([text, *[[]] * 200_000]).encode())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 200 + "]" * 200, "nested more than 100 deep"),
        ("9" * 24_000, "a number of 24,000 digits"),
        ('{"a": [%s]}' % ("1" * 5000), "a number of 5,000 digits"),
        ("NaN", "NaN is not JSON"),
        ("[1", "delimiter"),
    ],
    ids=["open", "deep", "long", "within", "no number", "torn"],
)
def test_what_the_decoder_refuses(text: str, problem: str) -> None:
    for module in (rlm_backends, rlm_tools, rlm_viz):
        with pytest.raises(ValueError, match=problem):
            module.from_json(text)


def test_the_modules_that_stand_alone_read_json_with_the_same_lines() -> None:
    blocks = set()
    for module in (rlm_backends, rlm_tools, rlm_viz):
        text = Path(str(module.__file__)).read_text()
        blocks.add(text[text.index("# --- JSON from outside") :].split("\n# --- ")[0])
    assert len(blocks) == 1 and "def from_json" in blocks.pop()


def test_a_line_of_lists_to_the_mcp_server() -> None:
    """40 MB from a client; what follows it is read at once."""
    reading, writing = os.pipe()

    def client() -> None:
        with open(writing, "wb") as pipe:
            pipe.write(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[' + b"[]," * 13_000_000 + b"[]]}\n{}\n")

    threading.Thread(target=client, daemon=True).start()
    answers = []
    with growth_below(150):  # of which the client's own text is the most
        for line in rlm_mcp.StdioTransport(reading, 1).lines():
            assert line is not None
            try:
                answers.append(rlm_mcp._parse(line))
            except rlm_mcp.ProtocolError as error:
                answers.append(error.code)
    os.close(reading)
    assert answers == [rlm_mcp.PARSE_ERROR, {}]


@pytest.mark.parametrize("kind", ["str", "list"])
def test_the_copy_of_a_context_that_unpacks_to_gigabytes(tmp_path: Path, kind: str) -> None:
    squeeze = zlib.compressobj(9)
    packed = squeeze.compress(b"j[" if kind == "list" else b"s")
    packed += b"".join(squeeze.compress(b"[]," * 300_000) for _ in range(60)) + squeeze.flush()
    log = tmp_path / "a1b2c3-d4e5f6.jsonl"
    log.with_suffix(".context").write_bytes(packed)
    about = {"type": kind, "size": 10, "bytes": 10, "sha256": hashlib.sha256(b"x").hexdigest(), "source": "value"}
    with growth_below(50), pytest.raises(rlm.ConfigError, match="was not kept"):
        rlm.RLM(config=False)._recorded_context({"context": about}, str(log))


def test_a_fence_of_megabytes_is_not_parsed_here() -> None:
    code = "x = [" + "a," * 1_000_000 + "]"
    with growth_below(50):
        action = rlm.written_action(f"```python\n{code}\n```", KNOWN)
        assert rlm.parses(code) is False and "context" not in rlm.names_in(code)
    assert action is not None and action.code == code[: rlm._READ - len("```python\n")]


def test_a_journal_of_lists(tmp_path: Path) -> None:
    log = tmp_path / "a1b2c3-d4e5f6.jsonl"
    good = json.dumps({"v": 1, "event": "end", "timestamp": "0001-01-01T00:00:00Z"})
    log.write_bytes(b'{"event":"end","x":' + LISTS + b"}\n" + good.encode() + b"\n")
    with growth_below(80):
        assert [event["event"] for event in rlm.read_journal(str(log))] == ["end"]
        events, problems = rlm_viz.read(log)
    assert [event["event"] for event in events] == ["end"]
    assert problems == ["line 1 cannot be read (more than 300,000 values) and was left out"]


def test_a_search_has_little_memory_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlm_tools, "SEARCH_SECONDS", 3.0)
    (tmp_path / "long.txt").write_text("ab" * 2_000_000 + "\nneedle\n")
    search = {tool.name: tool.handler for tool in rlm_tools.file_tools([tmp_path])}["file_search"]
    with growth_below(50), pytest.raises((rlm_tools.ToolError, TimeoutError), match=r"in '.*long\.txt'"):
        search("(?:(a)|(b))*c")
    monkeypatch.undo()
    assert [row["line"] for row in search(f"{tmp_path}/needle"[-6:], str(tmp_path / "long.txt"))] == [2]


# --- clear errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[rlm]\nmodel = " + "[" * 5000 + "]" * 5000, "rlm.toml is nested too deeply"),
        ("[rlm]\nmodel = " + "[" * 300 + "]" * 300, "nested more than 100 deep"),
        ("[rlm." + "a." * 20_000 + "b]\nx = 1", "more than 1,000 dots"),
        ("[rlm]\nmax_depth = " + "9" * 5000, "max_depth = .* more than 4,300 digits"),
        ("[rlm]\nmax_depth = 0x" + "f" * 5000, "max_depth = .* more than 4,300 digits"),
        ("[rlm]\n" + "# x\n" * 40_000, "rlm.toml is larger than 100 kB"),
    ],
    ids=["deep", "less deep", "dotted", "long", "hexadecimal", "large"],
)
def test_a_configuration_that_cannot_be_read(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "rlm.toml").write_text(text)
    with pytest.raises(rlm.ConfigError, match=problem):
        rlm.load_config({}, cwd=str(tmp_path))


def test_a_journal_of_the_year_one_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = {"v": 1, "event": "start", "trajectory_id": "a1b2c3-d4e5f6", "node": "n0", "prompt": "hello", "depth": 0}
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a1b2c3-d4e5f6.jsonl").write_text(
        json.dumps({**start, "call_id": None, "timestamp": "0001-01-01T00:00:00Z"}) + "\n"
    )
    assert rlm_cli.main(["logs"]) == 0
    assert "hello" in capsys.readouterr().out
