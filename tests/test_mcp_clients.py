"""The MCP server in front of what real clients send: absent values as null, data as text, timeouts they do not tell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import alive
from mcp_peer import HANDSHAKE, MODERN, ROOT, Peer, descendants, text_of

import rlm_mcp

EVERY = (*HANDSHAKE, MODERN)


@pytest.fixture(scope="module")
def shared() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


# --- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("absent", [None, ""], ids=["null", "empty"])
@pytest.mark.parametrize("tool", list(rlm_mcp.TOOLS))
def test_null_and_an_empty_text_stand_for_an_optional_argument_that_is_absent(tool: str, absent: Any) -> None:
    spec = rlm_mcp.TOOLS[tool]
    required = dict.fromkeys(spec.required, "x")
    optional = [name for name in spec.properties if name not in spec.required and name != spec.any_json]
    assert spec.checked({**required, **dict.fromkeys(optional, absent), "unknown": None}) == required


def test_calls_of_a_client_that_fills_in_null_are_answered(shared: Peer) -> None:
    nothing: dict[str, Any] = {"timeout": None, "profile": None, "session_id": None}
    assert shared.run("6 * 7", **nothing) == "Value: 42"
    assert shared.json("set_repl_context", key="nothing", value=None, session_id=None)["type"] == "NoneType"
    assert shared.run("nothing is None") == "Value: True"
    assert shared.json("list_sessions", session_id="")["sessions"]


@pytest.mark.parametrize(
    ("tool", "given", "taken"),
    [
        ("execute_python", {"code": "1", "timeout": "30"}, {"code": "1", "timeout": 30}),
        ("execute_python", {"code": "1", "timeout": " 2.5 "}, {"code": "1", "timeout": 2.5}),
        ("execute_python", {"code": "[1]"}, {"code": "[1]"}),
        ("run_completion", {"prompt": "p", "max_depth": "2"}, {"prompt": "p", "max_depth": 2}),
        ("run_completion", {"prompt": "p", "max_depth": 2.0}, {"prompt": "p", "max_depth": 2}),
        ("run_completion", {"prompt": "p", "max_depth": "2.0"}, {"prompt": "p", "max_depth": 2}),
        ("run_completion", {"prompt": "p", "files": '["a", "b"]'}, {"prompt": "p", "files": ["a", "b"]}),
        ("resume", {"handle": "h", "answers": '["[1]"]'}, {"handle": "h", "answers": ["[1]"]}),
        ("resume", {"handle": "h", "answers": ["[1]", ""]}, {"handle": "h", "answers": ["[1]", ""]}),
    ],
    ids=lambda value: json.dumps(value),
)
def test_json_in_a_text_is_taken_where_no_text_is_wanted(
    tool: str, given: dict[str, Any], taken: dict[str, Any]
) -> None:
    checked = rlm_mcp.TOOLS[tool].checked(given)
    assert checked == taken
    assert [type(value) for value in checked.values()] == [type(value) for value in taken.values()]


@pytest.mark.parametrize(
    ("tool", "given", "told"),
    [
        ("execute_python", {"code": "1", "timeout": "soon"}, "timeout must be a number"),
        ("execute_python", {"code": "1", "timeout": "true"}, "timeout must be a number"),
        ("execute_python", {"code": "1", "timeout": "NaN"}, "timeout must be a number"),
        ("execute_python", {"code": "1", "timeout": "1e999"}, "timeout must be between 0.1 and 300"),
        ("execute_python", {"code": "1", "timeout": "[" * 100_000}, "timeout must be a number"),
        ("run_completion", {"prompt": "p", "max_depth": 2.5}, "max_depth must be an integer"),
        ("run_completion", {"prompt": "p", "files": "[1]"}, "files must be an array of strings"),
        ("run_completion", {"prompt": "p", "files": [None]}, "files must be an array of strings"),
        ("run_completion", {"prompt": "p", "files": "a.txt"}, "files must be an array"),
        ("execute_python", {"code": "1", "sessionId": "x"}, "no argument 'sessionId'; it takes code, timeout, profile, "
         "session_id; did you mean 'session_id'?"),
        ("execute_python", {"code": "1", "zzz": 1}, "no argument 'zzz'; it takes code, timeout, profile, session_id"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)  # fmt: skip
def test_what_has_no_certain_meaning_is_refused_by_name(
    shared: Peer, tool: str, given: dict[str, Any], told: str
) -> None:
    assert shared.refused(tool, **given).endswith(told)


@pytest.mark.parametrize(
    ("value", "kind"),
    [([1, 2], "list"), ("[1, 2]", "list"), ({"a": 1}, "dict"), ('{"a": 1}', "dict"), (3, "int"), ("text", "str")],
    ids=lambda value: json.dumps(value),
)
def test_a_value_is_json_or_a_text(shared: Peer, value: Any, kind: str) -> None:
    assert shared.json("set_repl_context", key="v", value=value)["type"] == kind


@pytest.mark.parametrize(
    ("context", "kind"),
    [
        ('{"a": [1]}', "dict"),
        ({"a": [1]}, "dict"),
        ("[1, 2]", "list"),
        ("[a link](x)", "str"),
        ('{"a": 1}\n{"a": 2}', "str"),
        ("17", "str"),
    ],
    ids=lambda value: json.dumps(value),
)
def test_a_context_is_text_or_a_json_object_or_array(context: Any, kind: str) -> None:
    with Peer() as peer:
        status = peer.json("run_completion", prompt="look", context=context)
        code = "```repl\nFINAL(type(context).__name__)\n```"
        answered = peer.call("resume", handle=status["handle"], answers=[code])
        assert text_of(answered).startswith(kind)


@pytest.mark.parametrize("version", EVERY)
def test_null_members_of_a_request_are_absent(version: str) -> None:
    with Peer(version) as peer:
        if version != MODERN:
            for params in (None, {"_meta": None}, {"cursor": None}, {"cursor": ""}):
                peer.send({"jsonrpc": "2.0", "id": "p", "method": "tools/list", "params": params})
                assert len(peer.wait("p")["result"]["tools"]) == 9
        for cursor in (None, ""):
            for method in ("tools/list", "resources/list", "resources/templates/list"):
                peer.result(method, {"cursor": cursor})
        for arguments in (None, "", {}, "{}"):
            assert "sessions" in text_of(peer.result("tools/call", {"name": "list_sessions", "arguments": arguments}))
        call = {"name": "execute_python", "arguments": json.dumps({"code": "1 + 1"})}
        assert text_of(peer.result("tools/call", {**call, "inputResponses": None, "requestState": None})) == "Value: 2"


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
def test_an_ability_that_is_null_is_not_there(version: str) -> None:
    with Peer(version, capabilities={"sampling": None, "roots": None}) as peer:
        assert peer.json("execute_python", code="llm_query('p')")["status"] == "needs_completions"


# --- roots at 2026-07-28 ------------------------------------------------------------------------------------------

ASKED = {"roots": {"method": "roots/list"}}


def given(peer: Peer, tool: str, roots: Any, **arguments: Any) -> dict[str, Any]:
    """The result of a call whose client is asked for its roots first."""
    call = {"name": tool, "arguments": arguments}
    asked = peer.result("tools/call", call)
    assert (asked["resultType"], asked["inputRequests"]) == ("input_required", ASKED)
    return peer.result("tools/call", {**call, "inputResponses": roots})


def listed(*folders: Path) -> dict[str, Any]:
    return {"roots": {"roots": [{"uri": folder.as_uri()} for folder in folders]}}


def folders(workspace: Path) -> tuple[Path, Path]:
    one, two = workspace / "one", workspace / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "a.txt").write_text(folder.name)
    return one, two


def test_a_modern_clients_roots_are_asked_for_and_are_bounds(workspace: Path) -> None:
    one, two = folders(workspace)
    with Peer(MODERN, capabilities={"roots": {}}) as peer:
        assert peer.json("list_sessions")["sessions"] == []  # which needs no folder
        read = given(peer, "execute_python", listed(one), code="open('a.txt').read()")
        assert text_of(read) == "Value: 'one'"
        assert peer.run("1 + 1") == "Value: 2"  # asked once
        refused = given(peer, "set_project", listed(one), directory=str(two))
        assert refused["isError"] and "outside of what this server was given" in text_of(refused)
        moved = given(peer, "set_project", listed(two), directory=str(two))  # they may have changed
        assert json.loads(text_of(moved))["directory"] == str(two.resolve())
        assert peer.run("open('a.txt').read()") == "Value: 'two'"


@pytest.mark.parametrize("roots", [{}, {"roots": None}, {"roots": {"roots": None}}, {"other": 1}], ids=json.dumps)
def test_a_modern_client_that_gives_no_roots_is_held_to_the_working_directory(roots: Any, tmp_path: Path) -> None:
    with Peer(MODERN, capabilities={"roots": {}}) as peer:
        assert text_of(given(peer, "execute_python", roots, code="1")) == "Value: 1"
        refused = given(peer, "set_project", roots, directory=str(tmp_path))
        assert "outside of what this server was given" in text_of(refused)


def test_a_modern_client_without_roots_is_not_asked() -> None:
    with Peer(MODERN) as peer:
        assert peer.run("1") == "Value: 1"


# --- a client that is gone, or has given up -------------------------------------------------------------------------


def test_a_client_that_dies_while_its_pipe_stays_open_ends_the_server_and_its_workers() -> None:
    # What it started holds the other end of the pipe, here this test.
    start = "import subprocess, sys, time; server = subprocess.Popen(sys.argv[1:], stdin=0)\n"
    start += "print(server.pid, file=sys.stderr, flush=True); time.sleep(600)"
    command = [sys.executable, "-c", start, sys.executable, str(ROOT / "rlm.py"), "mcp-serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as client:
        assert client.stdin is not None and client.stdout is not None and client.stderr is not None
        server = int(client.stderr.readline())
        client.stdin.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        client.stdin.flush()
        assert json.loads(client.stdout.readline())["result"] == {}
        below = descendants(server)
        os.kill(client.pid, signal.SIGKILL)
        assert client.stdout.read() == b""  # the server's end, and its workers'
        assert not [pid for pid in (server, *below) if alive(pid)]


def test_after_a_timeout_of_the_client_the_session_answers_soon() -> None:
    with Peer(setup="rlm_mcp.PARALLEL_SECONDS = 0.1") as peer:
        peer.start("execute_python", code="kept = 1\nprint('begun')\nwhile True:\n    pass")  # and gives up, silently
        while not peer.json("list_sessions")["sessions"][0]["busy"]:
            pass
        time.sleep(0.2)  # what is sent at the same time, as parallel calls are, waits
        started = time.monotonic()
        status = peer.json("execute_python", code="kept + 1")
        assert time.monotonic() - started < 15
        assert status["status"] == "running" and "clear_repl_context" in status["next"]
        assert peer.run("1", session_id="new").startswith("Value: 1")
        peer.json("clear_repl_context")
        assert peer.run("2") == "Value: 2"


def test_a_call_that_waited_is_run_and_collected_by_its_handle() -> None:
    with Peer(setup="rlm_mcp.PARALLEL_SECONDS = 0.1\nrlm_mcp.QUEUE_SECONDS = 0.1") as peer:
        first = peer.start("execute_python", code="import time\ntime.sleep(3)\nkept = 1")
        while not peer.json("list_sessions")["sessions"][0]["busy"]:
            pass
        time.sleep(0.2)
        handle = peer.json("execute_python", code="kept + 1")["handle"]
        assert text_of(peer.call("resume", handle=handle)) == "Value: 2"
        assert text_of(peer.wait(first)["result"]) == "(no output)"


# --- what a result costs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "label"),
    [
        ("list(range(100_000))", "Value: "),
        ("'x' * 100_000", "Value: "),
        ("FINAL(list(range(100_000)))", "Final: "),
        ("raise ValueError('x' * 100_000)", "Error (error):\n"),
        ("{}['x' * 100_000]", "Error (error):\n"),
    ],
)
def test_a_large_value_is_shown_in_part_and_kept_whole(shared: Peer, code: str, label: str) -> None:
    result = shared.call("execute_python", code=f"print('printed')\n{code}")
    text = text_of(result)
    assert text.startswith(f"Output: printed\n{label}") and len(text) < 4_200
    link = next(block for block in result["content"] if block["type"] == "resource_link")
    assert link["uri"] in text
    whole = shared.result("resources/read", {"uri": link["uri"]})["contents"][0]["text"]
    assert len(whole) >= 100_000 and whole[-1] == text[-1]


def test_a_value_of_four_thousand_characters_is_shown_whole(shared: Peer) -> None:
    assert shared.run("'x' * 3_998") == f"Value: '{'x' * 3_998}'"


def test_the_list_of_variables_is_bounded_in_characters(shared: Peer) -> None:
    code = "for i in range(300):\n    globals()[f'v{i}'] = 'x' * 1000"
    session = shared.text("execute_python", code=code, session_id="new").rpartition(": ")[2]
    text = shared.text("get_repl_context", session_id=session)
    answer = json.loads(text)
    assert len(text) < 21_000 and len(answer["variables"]) + answer["more"] == 301


def test_a_completion_says_where_its_journal_is(workspace: Path) -> None:
    with Peer() as peer:
        assert "logs/" in next(
            tool["description"] for tool in peer.result("tools/list")["tools"] if tool["name"] == "run_completion"
        )
        status = peer.json("run_completion", prompt="hello", context="some text")
        done = peer.call("resume", handle=status["handle"], answers=["FINAL(1)"])
        facts = json.loads(done["content"][1]["text"])
        assert facts["journal"] == str(workspace.resolve() / "logs" / f"{facts['trajectory_id']}.jsonl")
        assert Path(facts["journal"]).is_file()


# --- an rlm.toml that is not trusted --------------------------------------------------------------------------------

UNTRUSTED = {
    "allowed_imports": '["this"]',
    "base_url": '"http://example.org"',
    "local_memory": '"2g"',
    "allowed_paths": '["/etc"]',
    "tools": '["evil.py"]',
}


def test_an_untrusted_rlm_toml_does_not_keep_code_from_running(workspace: Path) -> None:
    (workspace / "rlm.toml").write_text("[rlm]\n" + "".join(f"{key} = {text}\n" for key, text in UNTRUSTED.items()))
    with Peer() as peer:
        first = peer.run("6 * 7")
        assert first.startswith("Value: 42")
        for line, key in enumerate(UNTRUSTED, 2):
            assert f"left out: rlm.toml:{line}: {key!r} is not taken from a project file that is not trusted" in first
        assert "rlm trust" in first
        assert peer.run("6 * 7") == "Value: 42"  # said once
        assert "ModuleNotFoundError" in peer.refused("execute_python", code="import this")
        assert "base_url" in peer.refused("execute_python", code="llm_query('p')")  # which might go elsewhere
        assert "base_url" in peer.refused("run_completion", prompt="p")
        assert "allowed_imports" in peer.json("set_project", directory=str(workspace))["problem"]


def test_a_completion_goes_on_without_what_an_untrusted_file_would_add_and_says_so(workspace: Path) -> None:
    (workspace / "rlm.toml").write_text('[rlm]\nallowed_imports = ["this"]\nmax_depth = 1\n')
    with Peer() as peer:
        assert peer.json("execute_python", code="llm_query('p')")["requests"] == ["p"]
        status = peer.json("run_completion", prompt="hello", context="some text", session_id="new")
        done = peer.call("resume", handle=status["handle"], answers=["FINAL(1)"])
        assert "'allowed_imports'" in json.loads(done["content"][1]["text"])["notes"][0]


def test_a_model_that_an_untrusted_file_names_does_not_keep_code_from_running(workspace: Path) -> None:
    (workspace / "rlm.toml").write_text('[rlm]\nmodel = "other"\n')
    with Peer(environ={"RLM_API_KEY": "sk-none"}) as peer:
        assert "'model'" in peer.run("1 + 1")
        assert "where the key" in peer.refused("execute_python", code="llm_query('p')")


def test_what_would_confine_code_further_is_not_passed_over(workspace: Path) -> None:
    (workspace / "rlm.toml").write_text('[rlm]\nrequire = "full"\n')
    with Peer() as peer:
        assert "'require'" in peer.refused("execute_python", code="1")


def test_a_trusted_rlm_toml_counts_from_the_next_clear_on(workspace: Path, tmp_path: Path) -> None:
    (workspace / "rlm.toml").write_text('[rlm]\nallowed_imports = ["this"]\n')
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    with Peer(environ=environ) as peer:
        peer.run("1")
        trust = [sys.executable, str(ROOT / "rlm.py"), "trust"]
        subprocess.run(trust, cwd=workspace, env={**os.environ, **environ}, check=True, capture_output=True)
        peer.json("clear_repl_context")
        assert peer.run("import this\nlen(this.d)") == "Value: 52"
