"""The MCP server in front of what real clients send: absent values as null, data as text, timeouts they do not tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from mcp_peer import HANDSHAKE, MODERN, Peer, text_of

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
        ("run_completion", {"prompt": "p", "files": "a.txt"}, {"prompt": "p", "files": ["a.txt"]}),
        ("resume", {"handle": "h", "answers": '["[1]"]'}, {"handle": "h", "answers": ["[1]"]}),
        ("resume", {"handle": "h", "answers": "42"}, {"handle": "h", "answers": ["42"]}),
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
