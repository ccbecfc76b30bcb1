"""What commands write: JSON that is JSON, files where they were asked for, and a full disk."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import need
from scripted import Server, Turn, answer_with, call, code
from test_cli import MODULE, here, journals
from test_cli import rlm as command

import rlm_tools

# --- one encoder for Python data as JSON --------------------------------------------------------------------------


def strict(text: str | bytes) -> Any:
    """What a strict parser reads: neither NaN nor the same key twice."""

    def no_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(items)) == len(items), f"a key twice: {items}"
        return dict(items)

    return json.loads(text, parse_constant=no_constant, object_pairs_hook=pairs)


ODD = {
    "tuple keys": ('{("a", "b"): 3, ("a", 1): 4}', {"('a', 'b')": 3, "('a', 1)": 4}),
    "a Counter": ('__import__("collections").Counter([("x", 1), ("x", 1)])', {"('x', 1)": 2}),
    "deep": ('{"rows": [{"by": {(1, 2): [{frozenset([1]): b"x"}]}}]}', None),
    "bytes": ('[b"ab", {b"k": b"v"}]', ["b'ab'", {"b'k'": "b'v'"}]),
    "sets": ("{3, 1, 2}", [1, 2, 3]),
    "other keys": ("{None: 1, True: 2, 3: 4, 2.5: 5}", {"null": 1, "true": 2, "3": 4, "2.5": 5}),
    "keys that meet": ('{1: "a", "1": "b", None: 2}', {"1 (int)": "a", "1": "b", "null": 2}),
    "NaN": ('[float("nan"), {"x": float("inf")}, -float("inf"), 1.5]', [None, {"x": None}, None, 1.5]),
    "NaN alone": ('float("nan")', None),
    "large": ("10 ** 5000", None),
    "tuples": ("((1, 2), [(3,)])", [[1, 2], [[3]]]),
}


@pytest.mark.parametrize("name", ODD)
def test_whatever_final_is_given_comes_out_as_json(openai: Server, workspace: Path, name: str) -> None:
    source, expected = ODD[name]
    source = source.replace('__import__("collections").', "")
    openai.script = lambda r: code(f"from collections import Counter\nFINAL({source})") if r.turn == 1 else "done"
    (workspace / "b.jsonl").write_text('"one"\n"two"\n')
    ran = here("--json", "what?")
    assert ran.returncode == 0, ran.stderr
    found = strict(ran.stdout)["value"]
    assert expected is None or found == expected
    ran = here("--jsonl", "what?")
    assert [strict(line) for line in ran.stdout.splitlines()][-1]["value"] == found
    for path in journals():
        for line in path.read_bytes().splitlines():
            strict(line)
    ran = here("replay", "--json", journals()[0].stem)
    assert (ran.returncode, strict(ran.stdout)["value"]) == (0, found), ran.stderr
    for where in ([], ["-o", "r.jsonl"]):
        ran = here("batch", "b.jsonl", *where)
        assert ran.returncode == 0, ran.stderr
        rows = ran.stdout if not where else (workspace / "r.jsonl").read_bytes()
        assert [strict(row)["value"] for row in rows.splitlines()] == [found, found]
    asked = len(openai.requests)
    assert here("batch", "b.jsonl", "-o", "r.jsonl").returncode == 0
    assert len(openai.requests) == asked  # nothing is paid for twice


def test_a_schema_prints_json(openai: Server, workspace: Path) -> None:
    (workspace / "s.json").write_text('{"type": "array"}')
    openai.script = answer_with(code('FINAL([float("nan"), 1, float("inf")])'))
    ran = command("what?", "--schema", "s.json")
    assert (ran.returncode, strict(ran.stdout)) == (0, [None, 1, None]), ran.stderr


TOOLS = """
from rlm import tool

@tool
def pairs() -> dict:
    "Counts of pairs."
    return {("a", "b"): 3, "other": {1, 2}}
"""


def test_a_tools_result_is_shown_to_the_model_whatever_its_keys(openai: Server, workspace: Path) -> None:
    (workspace / "t.py").write_text(TOOLS)
    openai.script = lambda r: (
        Turn(tool_calls=[call("pairs")]) if r.turn == 1 else code("FINAL(pairs())") if r.turn == 2 else "x"
    )
    ran = command("--json", "what?", "--tools", "t.py")
    assert ran.returncode == 0, ran.stderr
    assert "class 'dict'" not in str(openai.requests[1].messages)
    assert json.loads(openai.requests[1].last) == {"('a', 'b')": 3, "other": [1, 2]}
    assert strict(ran.stdout)["value"] == {"('a', 'b')": 3, "other": [1, 2]}


def test_the_encoder_on_its_own() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no")

    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    assert strict(rlm_tools.to_json({"a": Odd()})) == {"a": "<Odd whose str raises RuntimeError>"}
    assert strict(rlm_tools.to_json(nested)) == "<a list, nested too deep>"
    assert rlm_tools.to_json({"a": [1, "é", None, True, 2.5]}) == json.dumps({"a": [1, "é", None, True, 2.5]})
    assert math.isclose(strict(rlm_tools.to_json(0.1)), 0.1)


# --- -o, --html and the like ----------------------------------------------------------------------------------------


@pytest.fixture
def recorded(openai: Server, workspace: Path) -> str:
    openai.script = answer_with(code("FINAL(1)"))
    assert here("what?").returncode == 0
    return journals()[0].stem


def write_to(kind: str, path: str) -> list[str]:
    """A command that writes to the path."""
    return {"visualize": ["visualize", "-o", path], "html": ["x", "--html", path]}[kind]


@pytest.mark.parametrize("kind", ["visualize", "html"])
def test_what_is_not_a_regular_file_is_written_through(recorded: str, workspace: Path, kind: str) -> None:
    need("root")
    os.mknod(workspace / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null; that itself is not risked
    os.mkfifo(workspace / "fifo")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((workspace / "fifo").read_bytes()))
    reader.start()
    assert command(*write_to(kind, "fifo")).returncode == 0
    reader.join(30)
    assert b"<!doctype html>" in got[0].lower()
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    assert command(*write_to(kind, "null")).returncode == 0
    assert os.stat("null").st_rdev == os.makedev(1, 3)


@pytest.mark.parametrize("kind", ["visualize", "html"])
def test_links_are_followed_and_modes_are_kept(recorded: str, workspace: Path, kind: str) -> None:
    (workspace / "pages").mkdir()
    (workspace / "pages" / "old.html").write_text("old")
    os.chmod("pages/old.html", 0o644)
    (workspace / "link.html").symlink_to("pages/old.html")
    (workspace / "new.html").symlink_to("pages/new.html")
    for name in ("link.html", "new.html"):
        assert command(*write_to(kind, name)).returncode == 0
        assert (workspace / name).is_symlink() and "<!doctype html>" in (workspace / name).read_text().lower()
    assert stat.S_IMODE(os.stat("pages/old.html").st_mode) == 0o644
    assert stat.S_IMODE(os.stat("pages/new.html").st_mode) == 0o600
    assert sorted(path.name for path in (workspace / "pages").iterdir()) == ["new.html", "old.html"]


@pytest.mark.parametrize("kind", ["visualize", "html"])
def test_a_dash_is_stdout(recorded: str, workspace: Path, kind: str) -> None:
    ran = command(*write_to(kind, "-"))
    assert ran.returncode == 0 and ran.stdout.lower().startswith(b"<!doctype html>"), ran.stderr
    assert ran.stdout.rstrip().endswith(b"</html>") and not (workspace / "-").exists()


def test_a_page_that_nobody_named_is_not_written_through_a_link(recorded: str, workspace: Path) -> None:
    mine = workspace.parent / "mine"
    mine.write_text("mine")
    (workspace / "trajectory.html").symlink_to(mine)
    ran = command("visualize")
    assert ran.returncode == 2 and b"is a link to" in ran.stderr
    assert mine.read_text() == "mine"


def test_batch_results_go_through_links_to_devices_and_to_stdout(openai: Server, workspace: Path) -> None:
    need("root")
    openai.script = answer_with("ok")
    (workspace / "b.jsonl").write_text('"one"\n')
    (workspace / "real.jsonl").touch(0o640)
    (workspace / "link.jsonl").symlink_to("real.jsonl")
    os.mknod(workspace / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(workspace / "fifo")
    assert command("batch", "b.jsonl", "-o", "link.jsonl").returncode == 0
    assert (workspace / "link.jsonl").is_symlink() and strict((workspace / "real.jsonl").read_text())[
        "response"
    ] == "ok"
    assert stat.S_IMODE(os.stat("real.jsonl").st_mode) == 0o640
    assert command("batch", "b.jsonl", "-o", "null").returncode == 0
    assert os.stat("null").st_rdev == os.makedev(1, 3)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((workspace / "fifo").read_bytes()))
    reader.start()
    assert command("batch", "b.jsonl", "-o", "fifo").returncode == 0
    reader.join(30)
    assert strict(got[0])["response"] == "ok"
    ran = command("batch", "b.jsonl", "-o", "-")
    assert strict(ran.stdout)["response"] == "ok" and not (workspace / "-").exists()


def test_init_writes_through_a_link_and_keeps_the_mode(workspace: Path) -> None:
    (workspace / "real.toml").write_text("")
    os.chmod("real.toml", 0o640)
    (workspace / "rlm.toml").symlink_to("real.toml")
    assert command("init").returncode == 2
    assert command("init", "--force", "--max-depth", "3").returncode == 0
    assert (workspace / "rlm.toml").is_symlink() and "max_depth = 3" in (workspace / "real.toml").read_text()
    assert stat.S_IMODE(os.stat("real.toml").st_mode) == 0o640


# --- stdout on a full disk ------------------------------------------------------------------------------------------

COMMANDS = [
    ["what?"],
    ["--json", "what?"],
    ["--jsonl", "what?"],
    ["--stream", "what?"],
    ["what?", "--html", "-"],
    ["chat"],
    ["batch", "b.jsonl"],
    ["replay", "ID"],
    ["replay", "--json", "ID"],
    ["logs"],
    ["logs", "ID"],
    ["logs", "--json"],
    ["logs", "--follow", "ID"],
    ["visualize"],
    ["visualize", "-o", "-"],
    ["init", "--force"],
    ["config"],
    ["config", "--json"],
    ["trust", "--show"],
    ["doctor"],
    ["providers"],
    ["mcp-install"],
    ["mcp-install", "cursor"],
    ["completion", "bash"],
    ["--help"],
    ["--version"],
    ["logs", "--help"],
    ["mcp-serve", "--help"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_message_and_exit_1(recorded: str, workspace: Path, arguments: list[str]) -> None:
    need("linux")
    (workspace / "b.jsonl").write_text('"one"\n')
    (workspace / "rlm.toml").write_text("[rlm]\n")
    words = [recorded if word == "ID" else word for word in arguments]
    with open("/dev/full", "wb") as full:
        given: Any = {"input": b"hello\n"} if "chat" in words else {"stdin": subprocess.DEVNULL}
        ran = subprocess.run([*MODULE, *words], stdout=full, stderr=subprocess.PIPE, timeout=60, **given)
    lines = ran.stderr.decode().splitlines()
    assert ran.returncode == 1, lines
    assert sum("No space left on device" in line for line in lines) == 1, lines
    faults = ("Traceback", "Exception ignored", "fault of rlm")
    assert not any(word in line for line in lines for word in faults), lines


def test_a_pipe_that_nobody_reads_is_quiet(recorded: str) -> None:
    for words in (["providers"], ["--help"], ["config", "--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        ran = subprocess.run([*MODULE, *words], stdout=writing, stderr=subprocess.PIPE, timeout=60)
        os.close(writing)
        assert (ran.returncode, ran.stderr) == (0, b"")
