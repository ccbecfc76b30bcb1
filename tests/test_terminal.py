"""Nothing that comes from outside steers the terminal: hostile bytes in every field that a command prints."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import scripted
from mcp_peer import Peer
from scripted import Server, Turn, answer_with, call, code
from test_cli import Terminal, journals
from test_cli import rlm as command

import rlm_cli

OSC = "\x1b]52;c;ZXZpbA==\x07"  # the clipboard
HOSTILE = f"{OSC}\x1b[2J\x1b[8m\x9b31m\x9d0;title\x9c\x1bPq\x1b\\\u202e\u2066\u200f\x00\r\x7f\nFORGED"
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|(?m:^FORGED)")


def harmless(*streams: bytes) -> None:
    for stream in streams:
        text = stream.decode("utf-8", "surrogateescape")
        found = STEERS.search(text)
        assert found is None, f"{found[0]!r} in {text[max(0, found.start() - 200) : found.start() + 80]!r}"


def toml(value: str) -> str:
    return json.dumps(value).replace("\x7f", "\\u007f")


def ran(*arguments: str, ok: tuple[int, ...] = (0, 1, 2, 3), **how: Any) -> Any:
    done = command(*arguments, **how)
    assert done.returncode in ok and ("--debug" in arguments or b"Traceback" not in done.stderr), done.stderr
    harmless(done.stdout, done.stderr)
    return done


def inside(*arguments: str) -> None:
    """The same in this process, which costs a hundredth."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in "12")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert rlm_cli.main(arguments) in (0, 1, 2, 3)
    for stream in (out, err):
        stream.flush()
        if stream is err or arguments[0] not in ("resume", "replay"):  # an answer in a pipe is exact
            harmless(stream.buffer.getvalue())  # type: ignore[attr-defined]


# --- configuration --------------------------------------------------------------------------------------------------

TOMLS = {
    "model": f"model = {toml(HOSTILE)}",
    "sub_model": f'model = "gpt-4o"\nsub_model = {toml(HOSTILE)}',
    "backend": f"backend = {toml(HOSTILE)}",
    "key": f"{toml(HOSTILE)} = 1",
    "table": f"x = 1\n[{toml(HOSTILE)}]",
    "docker_memory": f"docker_memory = {toml(HOSTILE)}",
    "environment": f"environment = {toml(HOSTILE)}",
    "base_url": f'model = "x"\nbase_url = {toml("http://127.0.0.1:9/" + HOSTILE)}',
    "log_dir": f"log_dir = {toml(HOSTILE.replace(chr(0), ''))}",
    "prompt": f"prompt = {toml(HOSTILE)}",
    "tools": f"tools = [{toml(HOSTILE)}]",
    "snipara": f'snipara_api_key = "k"\nsnipara_project_slug = {toml(HOSTILE)}',
    "torn": f"model = {HOSTILE}",
}


@pytest.mark.parametrize("name", TOMLS)
@pytest.mark.parametrize("trusted", [False, True])
def test_a_projects_configuration(openai: Server, workspace: Path, name: str, trusted: bool) -> None:
    openai.script = lambda request: scripted.error(404, f"no model {HOSTILE}")
    (workspace / "rlm.toml").write_text(f"[rlm]\n{TOMLS[name]}\n")
    inside("trust", "--show")
    if trusted:
        inside("trust")
    for arguments in (["config"], ["config", "--json"], ["what?", "--max-retries", "0"]):
        inside(*arguments)
    if name in ("model", "base_url", "tools", "log_dir", "key"):
        ran("doctor")


def test_variables_of_the_environment(openai: Server) -> None:
    text = HOSTILE.replace("\0", "")
    ran("what?", "--max-retries", "0", env={"RLM_MODEL": text})
    ran("config", env={"RLM_MODEL": text, f"RLM_MODLE{text.replace('=', '')}": "1", "RLM_BACKEND": text})
    ran("doctor", env={f"RLM_MODLE{text.replace('=', '')}": "1", "RLM_LOG_DIR": text, "OPENAI_API_KEY": text})
    ran("providers", text)


# --- journals -------------------------------------------------------------------------------------------------------

STRUCTURE = {"v", "event", "kind", "trajectory_id", "call_id", "parent_call_id", "node", "key", "depth", "sha256"}


def poisoned(value: Any, key: str = "") -> Any:
    """The value with hostile bytes in front of every text in it, but those that hold it together."""
    if isinstance(value, str):
        return value if key in STRUCTURE else HOSTILE + value
    if isinstance(value, dict):
        return {name: poisoned(item, name) for name, item in value.items()}
    return [poisoned(item, key) for item in value] if isinstance(value, list) else value


@pytest.fixture
def journal(openai: Server) -> Path:
    openai.script = answer_with(
        Turn(tool_calls=[call("file_list")]),
        code("print(llm_query('hm'))\nrlm_query('deeper')"),
        code("1 / 0"),
        code("FINAL(1)"),
    )
    assert command("what?").returncode == 0
    return journals()[0]


def test_a_journal(journal: Path, workspace: Path) -> None:
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    name = journal.stem
    variants = [[poisoned(event) for event in events]]
    variants.append([poisoned(event) if event["event"] == "start" else event for event in events])
    for number, field in enumerate(("status", "error", "timestamp", "model", "trajectory_id", "node", "kind", "event")):
        variants.append([{**event, field: HOSTILE} if number != 7 or n else event for n, event in enumerate(events)])
    for variant in variants:
        journal.write_text("".join(json.dumps(event) + "\n" for event in variant))
        for arguments in (["logs"], ["logs", name], ["logs", name, "--json"], ["visualize", name]):
            inside(*arguments)
    journal.write_text("".join(json.dumps(event) + "\n" for event in variants[0]))
    for arguments in (["logs", "--follow", name], ["resume", name], ["replay", name]):
        inside(*arguments)
    ran("chat", "--resume", name, input=b"/cost\n/vars\n")
    inside("logs", HOSTILE.replace("\0", ""))
    os.rename(journal, workspace / "logs" / f"a{HOSTILE}.jsonl".replace("\0", "").replace("/", ""))
    for arguments in (["logs"], ["logs", "a"], ["visualize"], ["resume"]):
        inside(*arguments)


# --- files and tools ------------------------------------------------------------------------------------------------


def test_names_of_files(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("FINAL(1)"))
    name = HOSTILE.replace("\0", "").replace("/", "")
    folder = workspace / f"d{name}"
    folder.mkdir()
    (folder / f"a{name}.txt").write_text("text")
    (folder / f"b{name}.pdf").write_bytes(b"%PDF-1.4\n\xff")
    (folder / f"c{name}.txt").write_bytes("Привет, мир".encode("cp1251"))
    (folder / f"p{name}.jsonl").write_text("nonsense")
    (folder / f"p{name}.csv").write_text(f"a,b{name.splitlines()[0]}\n1,2,3\n")
    for file in folder.iterdir():
        inside("what?", "-c", str(file))
        inside("batch", str(file))
        inside("what?", "--tools", str(file))
        inside("what?", "--schema", str(file))
        inside("what?", "--html", f"{file}.html", "-q")
        inside("what?", "--config", str(file))
    inside("what?", "-c", str(folder))
    inside("what?", "-c", f"missing{name}")
    inside("what?", "--log-dir", f"{folder}/logs")
    inside("logs", "--dir", f"missing{name}")
    inside("visualize", "--dir", str(folder))
    inside("visualize", "-o", f"{folder}/none/x.html")
    inside(f"unknown{name}", "words")
    inside("what?", f"--unknown{name}")
    inside("mcp-install", f"cursor{name}")
    inside("completion", name)
    ran("mcp-serve", "--workspace", f"missing{name}", stdin=subprocess.DEVNULL)


LINE = HOSTILE.replace("\nFORGED", "")  # a tool is the user's own code and may print lines
TOOLS = f"""
import sys, warnings
from rlm import tool
print({LINE!r})
print({LINE!r}, file=sys.stderr)
warnings.warn({LINE!r})

@tool
def bad() -> str:
    "Fails."
    print({LINE!r})
    raise ValueError({LINE!r})
"""


def test_tools_and_cells(openai: Server, workspace: Path) -> None:
    (workspace / "t.py").write_text(TOOLS)
    (workspace / "broken.py").write_text(f"raise ImportError({LINE!r})")
    openai.script = answer_with(
        Turn(tool_calls=[call("bad")]),
        Turn(tool_calls=[call("nothing", **{"a" + HOSTILE: HOSTILE})]),
        code(f"print({LINE!r})\nraise RuntimeError({LINE!r})"),
        code(f"print(llm_query({LINE!r}))\nFINAL(2)"),
        sub=HOSTILE,
    )
    assert ran("what?", "-v", "--tools", "t.py").returncode == 0
    ran("what?", "--tools", "broken.py")
    ran("what?", "--tools", "broken.py", "--debug")
    ran("doctor", env={"RLM_TOOLS": "t.py"})
    openai.script = answer_with(code(f"x{1} = {LINE!r}\n" * 3), code("FINAL(1)"))
    ran("chat", "-v", "--tools", "t.py", input=b"what?\n/vars\n/cost\n/save\n/nonsense\n")
    openai.script = lambda request: code(f"raise RuntimeError({LINE!r})")
    ran("what?", "--max-errors", "2")


# --- providers ------------------------------------------------------------------------------------------------------

FAULTS = {
    "error": lambda request: scripted.error(400, HOSTILE, code=HOSTILE),
    "refused": lambda request: scripted.error(401, HOSTILE),
    "rate": lambda request: scripted.error(429, HOSTILE),
    "page": lambda request: scripted.body(f"<html><title>{HOSTILE}</title></html>".encode(), 502, "text/html"),
    "text": lambda request: scripted.body(HOSTILE.encode(), 500, "text/plain"),
    "odd": lambda request: scripted.body({"choices": HOSTILE}),
    "model": lambda request: Turn("ok", extra={"model": HOSTILE}),
    "finish": lambda request: Turn("ok", finish=HOSTILE),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_provider_answers(openai: Server, workspace: Path, fault: str) -> None:
    openai.script = FAULTS[fault]
    (workspace / "b.jsonl").write_text('"one"\n"two"\n')
    inside("what?", "--max-retries", "0", "-v")
    inside("what?", "--max-retries", "0", "--json")
    inside("what?", "--max-retries", "0", "--stream")
    inside("batch", "b.jsonl", "--max-retries", "0")
    inside("logs")


def test_an_answer_is_exact_in_a_pipe_and_harmless_on_a_terminal(openai: Server) -> None:
    text = HOSTILE.replace("\r", "")  # a terminal makes its own
    openai.script = lambda request: f"begin {text} end"
    done = command("what?", "-q")
    assert done.stdout == f"begin {text} end\n".encode()
    for arguments in (["what?"], ["--stream", "what?"], ["what?", "-v"]):
        terminal = Terminal(*arguments, "--color", "never", streams="1")
        assert terminal.finish() == 0
        harmless(terminal.shown.replace("\r\n", "\n").replace("\nFORGED", "").encode())


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_a_sequence_in_pieces_is_no_sequence(piece: int) -> None:
    text = HOSTILE.replace("\nFORGED", "")
    shown = "".join(rlm_cli.strip_control(text[n : n + piece]) for n in range(0, len(text), piece))
    assert STEERS.search(shown) is None


# --- MCP ------------------------------------------------------------------------------------------------------------


def test_a_clients_file_and_the_servers_log(workspace: Path) -> None:
    for path in (".mcp.json", ".cursor/mcp.json", ".vscode/mcp.json"):
        (workspace / path).parent.mkdir(exist_ok=True)
        entry = {"command": HOSTILE, "args": [HOSTILE], "env": {HOSTILE: HOSTILE}}
        (workspace / path).write_text(json.dumps({HOSTILE: 1, "mcpServers": {"x": entry}}, ensure_ascii=False))
    for client in ("cursor", "claude-code", "vscode"):
        for action in ("--dry-run", "--write", "--check", "--remove"):
            ran("mcp-install", client, "--scope", "project", action)
        (workspace / ".mcp.json").write_text(HOSTILE)
    with Peer() as peer:
        peer.call("execute_python", code=f"raise RuntimeError({HOSTILE!r})")
        peer.request(HOSTILE, {HOSTILE: HOSTILE})
        peer.call("execute_python", code="1", session_id=HOSTILE)
    harmless(peer.stderr)
