"""The MCP server through its pipes: framing, both eras, the tools, what must not break it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import alive, eventually, need
from mcp_peer import FIBONACCI, HANDSHAKE, META, MODERN, PATIENCE, ROOT, Peer, descendants, text_of

import rlm_mcp

EVERY = (*HANDSHAKE, MODERN)
ENDLESS = "print('started')\nwhile True:\n    pass"


@pytest.fixture(scope="module")
def shared() -> Iterator[Peer]:
    """One handshake server for the tests that leave nothing behind in it."""
    with Peer() as peer:
        yield peer


@pytest.fixture(scope="module")
def modern() -> Iterator[Peer]:
    with Peer(MODERN) as peer:
        yield peer


def running(peer: Peer, code: str = ENDLESS, **arguments: Any) -> Any:
    """The id of an execute_python that has begun: its session answers that it is at work."""
    id = peer.start("execute_python", code=code, **arguments)
    session = arguments.get("session_id", "default")
    while True:
        rows = peer.json("list_sessions")["sessions"]
        if any(row["session_id"] == session and row["busy"] for row in rows):
            return id


# --- framing and process ----------------------------------------------------------------------------------------


def test_the_specifications_example_answers_as_printed_there(shared: Peer) -> None:
    assert shared.run(FIBONACCI) == "Output: [0, 1, 1, 2, 3, 5, 8, 13]"


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\u2028\u0085", "\N{GRINNING FACE}", "\x00\x1b[31m", '"\\'])
def test_any_text_travels_in_one_line(shared: Peer, text: str) -> None:
    shared.call("set_repl_context", key="text", value=json.dumps(text))
    assert shared.run("print([ord(c) for c in text])") == f"Output: {[ord(c) for c in text]}"
    assert shared.run("print(text + 'x')").removeprefix("Output:").strip("\n ") == (text + "x").strip("\n ")


def test_a_lone_surrogate_reaches_the_client_as_a_replacement(shared: Peer) -> None:
    assert shared.run("print('a' + chr(0xD800) + 'b')") in ("Output: a?b", "Output: a\ufffdb")


@pytest.mark.parametrize("id", [0, -3, 2**53, "a", "", "1", "ü"])
def test_an_id_comes_back_as_it_was(shared: Peer, id: Any) -> None:
    assert shared.ask("ping", id=id)["id"] == id


@pytest.mark.parametrize("id", [None, True, 1.5, [], {}], ids=repr)
def test_any_other_id_is_an_invalid_request(id: Any) -> None:
    with Peer() as peer:
        peer.send({"jsonrpc": "2.0", "id": id, "method": "ping"})
        assert peer.wait(None)["error"]["code"] == -32600
        peer.nothing_more()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"garbage", -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "ping"', -32700),
        (b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}', -32700),
        (b"\xff\xfe{}", -32700),
        (b"[" * 100_000, -32700),
        (b'{"a":' * 100_000, -32700),
        (b'{"id": ' + b"9" * 10_000 + b"}", -32700),
        (b"{}", -32600),
        (b"[]", -32600),
        (b"3", -32600),
        (b'"ping"', -32600),
        (b"null", -32600),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', -32600),
        (b'{"jsonrpc": "2.0", "method": 3}', -32600),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_a_line_that_is_no_message_is_answered_and_survived(line: bytes, code: int) -> None:
    with Peer() as peer:
        peer.write(line + b"\n")
        answer = peer.wait(None)
        assert answer["error"]["code"] == code
        assert "id" not in answer
        peer.nothing_more()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"id": 7, "method": "ping"}, -32600),
        ({"jsonrpc": "1.0", "id": 7, "method": "ping"}, -32600),
        ({"jsonrpc": "2.0", "id": 7}, -32600),
        ({"jsonrpc": "2.0", "id": 7, "method": 1}, -32600),
        ({"jsonrpc": "2.0", "id": 7, "method": "ping", "params": [1]}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "ping", "params": {"_meta": 1}}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "no/such"}, -32601),
        ({"jsonrpc": "2.0", "id": 7, "method": "prompts/list"}, -32601),
        ({"jsonrpc": "2.0", "id": 7, "method": "server/discover"}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "no_such"}}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": 3}}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "tools/call"}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "resume", "arguments": []}}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "tools/list", "params": {"cursor": "x"}}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "resources/read"}, -32602),
        ({"jsonrpc": "2.0", "id": 7, "method": "resources/read", "params": {"uri": "rlm://no"}}, -32002),
        ({"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": {}}, -32602),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_wrong_request_gets_the_code_for_it(shared: Peer, message: dict[str, Any], code: int) -> None:
    shared.send(message)
    assert shared.wait(7)["error"]["code"] == code


def test_a_sixteen_megabyte_message_is_an_ordinary_one(shared: Peer) -> None:
    shared.call("set_repl_context", key="big", value="x" * (16 << 20))
    assert shared.run("len(big)") == f"Value: {16 << 20}"


def test_a_line_beyond_the_limit_is_refused_without_being_kept() -> None:
    with Peer(None, setup="rlm_mcp.MAX_LINE = 1000") as peer:
        peer.write(b'"' + b"x" * 100_000 + b'"\n')
        assert peer.wait(None)["error"]["code"] == -32600
        assert peer.ask("ping")["result"] == {}


def test_notifications_are_never_answered(shared: Peer) -> None:
    before = len(shared.transcript)
    shared.notify("no/such")
    shared.notify("notifications/cancelled", {"requestId": "no such"})
    shared.notify("notifications/cancelled", {"requestId": [1]})
    shared.notify("notifications/cancelled")
    shared.notify("tools/call", {"name": "no_such"})
    shared.nothing_more()
    assert [list(entry) for entry in shared.transcript[before:]] == [["sent"]] * 6 + [["got"]]


def test_an_answer_that_nobody_waits_for_is_ignored(shared: Peer) -> None:
    before = len(shared.transcript)
    shared.send({"jsonrpc": "2.0", "id": "rlm-99", "result": {}})
    shared.send({"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": "x"}})
    shared.nothing_more()
    assert [list(entry) for entry in shared.transcript[before:]] == [["sent"]] * 3 + [["got"]]


def test_an_id_in_flight_cannot_be_used_again(shared: Peer) -> None:
    id = running(shared)
    for wrong in ({"name": "list_sessions"}, []):
        shared.send({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": wrong})
        refused = shared.wait(None)  # with the id, the first request would seem to be answered
        assert (refused["error"]["code"], "id" in refused) == (-32600, False)
    shared.notify("notifications/cancelled", {"requestId": id})
    shared.nothing_more()


def test_the_first_request_of_an_id_is_still_answered_when_a_second_is_refused() -> None:
    with Peer() as peer:
        id = running(peer)
        peer.request("ping", id=id)
        assert peer.wait(None)["error"]["code"] == -32600
        peer.json("clear_repl_context")
        assert text_of(peer.wait(id)["result"]) == "the session was cleared"


@pytest.mark.parametrize("where", ["roots/list", "an answer", "a method"])
def test_what_goes_wrong_with_a_line_is_logged_and_survived(where: str) -> None:
    setup = {
        "roots/list": "rlm_mcp._path_of = lambda uri: 1 / 0",
        "an answer": "rlm_mcp.Server._response = lambda self, message: 1 / 0",
        "a method": "rlm_mcp.Server.list_resources = None\ndef f(*_): raise rlm_mcp.ToolError('1 / 0')\n"
        "rlm_mcp.HANDSHAKE_METHODS['resources/list'] = f",
    }[where]
    with Peer(setup=setup, roots=["file:///tmp"]) as peer:
        if where == "a method":
            assert "1 / 0" in peer.error("resources/list")["message"]
        while not any(entry.get("sent", {}).get("result") for entry in list(peer.transcript)):
            peer.nothing_more()
        assert peer.run("1 + 1") == "Value: 2"
    assert where == "a method" or b"ZeroDivisionError" in peer.stderr


def test_the_first_answers_need_no_module_that_is_slow_to_load() -> None:
    code = "import sys; before = set(sys.modules); import rlm_backends, rlm_mcp; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "rlm_mcp" in loaded
    assert not {"rlm", "rlm_config", "dataclasses", "inspect", "hashlib", "subprocess", "queue"} & set(loaded)


def test_the_end_of_stdin_ends_the_server_and_its_workers() -> None:
    with Peer() as peer:
        peer.run("x = 1")
        below = descendants(peer.process.pid)
        assert below
        assert peer.close() == 0
        assert not [pid for pid in below if alive(pid)]


def test_calls_piped_in_before_the_end_of_stdin_are_answered() -> None:
    initialize = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "sh", "version": "1"}}
    call = {"name": "execute_python", "arguments": {"code": "6 * 7"}}
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": initialize},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call},
    ]
    given = "".join(json.dumps(line) + "\n" for line in lines).encode()
    command = [sys.executable, str(ROOT / "rlm.py"), "mcp-serve"]
    done = subprocess.run(command, input=given.rstrip(b"\n"), capture_output=True, timeout=PATIENCE)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["id"] for answer in answers] == [1, 2]
    assert text_of(answers[1]["result"]) == "Value: 42"
    assert done.returncode == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_signal_ends_the_server_and_its_workers(name: str, busy: bool) -> None:
    with Peer() as peer:
        peer.run("x = 1")
        if busy:
            running(peer)
        below = descendants(peer.process.pid)
        peer.process.send_signal(getattr(signal, name))
        assert peer.join() == 0
        assert not [pid for pid in below if alive(pid)]


def test_a_client_that_vanishes_in_mid_call_leaves_nothing_running() -> None:
    with Peer() as peer:
        peer.run("x = 1")  # so that there is a worker
        running(peer)
        below = descendants(peer.process.pid)
        assert peer.close() == 0
        assert below and not [pid for pid in below if alive(pid)]


def test_a_killed_server_leaves_no_worker() -> None:
    with Peer() as peer:
        peer.run("x = 1")  # so that there is a worker
        running(peer)
        below = descendants(peer.process.pid)
        peer.process.kill()
        peer.join()
        assert below and eventually(lambda: not any(map(alive, below)))


def test_a_client_that_stops_reading_does_not_hold_the_server(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "rlm.py"), "mcp-serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    ping = json.dumps({"jsonrpc": "2.0", "id": "x" * 1000, "method": "ping"}).encode() + b"\n"
    os.set_blocking(process.stdin.fileno(), False)
    with contextlib.suppress(BlockingIOError):  # until both pipes are full
        while True:
            process.stdin.write(ping * 100)
            process.stdin.flush()
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        process.stdin.close()
    assert process.wait(PATIENCE) == 0
    process.stdout.close()


def test_nothing_but_messages_reaches_stdout() -> None:
    # What libraries of ours might print, or leave to a child, must not land in the protocol.
    setup = "import os, sys\nold = rlm_mcp.Server.ping\ndef ping(self, request):\n"
    setup += "    print('noise', flush=True); os.system('echo noise'); os.write(1, b'noise')\n"
    setup += "    assert sys.stdin.read() == ''\n    return old(self, request)\n"
    setup += "rlm_mcp.HANDSHAKE_METHODS['ping'] = ping"
    with Peer(setup=setup) as peer:
        assert peer.ask("ping")["result"] == {}
        peer.close()
        assert peer.stderr.count(b"noise") == 3


# --- the handshake era ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", HANDSHAKE)
def test_a_known_revision_is_agreed_to(version: str) -> None:
    with Peer(None) as peer:
        peer.version = version
        answer = peer.handshake()["result"]
        assert answer["protocolVersion"] == version
        assert answer["serverInfo"]["name"] == "rlm"
        assert answer["capabilities"] == {"tools": {"listChanged": True}, "resources": {"listChanged": True}}
        assert ("websiteUrl" in answer["serverInfo"]) == (version == "2025-11-25")


@pytest.mark.parametrize("version", ["1999-01-01", "2099-01-01", MODERN, "x"])
def test_an_unknown_revision_is_answered_with_the_latest(version: str) -> None:
    with Peer(None) as peer:
        answer = peer.ask("initialize", {"protocolVersion": version, "capabilities": {}, "clientInfo": {}})
        assert answer["result"]["protocolVersion"] == "2025-11-25"


def test_before_initialize_only_ping_is_served() -> None:
    with Peer(None) as peer:
        assert peer.result("ping") == {}
        assert peer.error("tools/list")["code"] == -32602
        assert peer.error("tools/call", {"name": "list_sessions"})["code"] == -32602


FIELDS = {
    "2024-11-05": {"name", "description", "inputSchema"},
    "2025-03-26": {"name", "description", "inputSchema", "annotations"},
    "2025-06-18": {"name", "description", "inputSchema", "annotations", "title", "_meta"},
    "2025-11-25": {"name", "description", "inputSchema", "annotations", "title", "_meta"},
    MODERN: {"name", "description", "inputSchema", "annotations", "title", "_meta"},
}


@pytest.mark.parametrize("version", EVERY)
def test_tools_are_listed_with_the_fields_of_the_revision(version: str) -> None:
    with Peer(version) as peer:
        tools = peer.result("tools/list")["tools"]
        assert set().union(*tools) == FIELDS[version]
        assert [tool["name"] for tool in tools] == [
            "execute_python",
            "get_repl_context",
            "set_repl_context",
            "clear_repl_context",
            "list_sessions",
            "destroy_session",
            "set_project",
            "run_completion",
            "resume",
        ]
        assert not any("outputSchema" in tool for tool in tools)
        for tool in tools:
            assert set(tool["inputSchema"]) <= {"type", "properties", "required"}
            for argument in tool["inputSchema"]["properties"].values():
                assert argument["description"] and argument["type"] in rlm_mcp._TYPES and "default" not in argument


def test_the_tools_cost_a_prompt_less_than_two_thousand_tokens(shared: Peer) -> None:
    assert len(json.dumps(shared.result("tools/list"))) < 6_800


def test_a_batch_is_answered_as_one_array_when_the_last_answer_is_there() -> None:
    with Peer("2025-03-26") as peer:
        call = {"name": "execute_python", "arguments": {"code": "1 + 1"}}
        peer.send(
            [
                {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": call},
                {"jsonrpc": "2.0", "method": "notifications/initialized"},
                {"jsonrpc": "2.0", "id": "b", "method": "ping"},
                {"jsonrpc": "2.0", "id": "c", "method": "no/such"},
                {"jsonrpc": "2.0", "id": "d", "method": "initialize", "params": {"protocolVersion": "2025-03-26"}},
                {"jsonrpc": "2.0", "id": None, "method": "ping"},
                17,
            ]
        )
        assert text_of(peer.wait("a")["result"]) == "Value: 2"
        batch = peer.transcript[-1]["got"]
        codes = {answer.get("id"): answer.get("error", {}).get("code") for answer in batch}
        assert codes == {"a": None, "b": None, "c": -32601, "d": -32600, None: -32600}
        assert len(batch) == 6


def test_a_batch_whose_only_call_is_cancelled_gets_no_answer() -> None:
    with Peer("2025-03-26") as peer:
        call = {"name": "execute_python", "arguments": {"code": ENDLESS}}
        peer.send([{"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": call}])
        peer.notify("notifications/cancelled", {"requestId": "a"})
        assert peer.run("1") == "Value: 1"
        assert not [entry for entry in peer.transcript if isinstance(entry.get("got"), list)]


def test_a_batch_of_notifications_gets_no_answer() -> None:
    with Peer("2025-03-26") as peer:
        peer.send([{"jsonrpc": "2.0", "method": "notifications/x"}])
        peer.nothing_more()
        peer.send([])
        assert peer.wait(None)["error"]["code"] == -32600


# --- the modern era ---------------------------------------------------------------------------------------------


def test_discover_names_every_revision_and_the_server(modern: Peer) -> None:
    answer = modern.result("server/discover")
    assert answer["supportedVersions"] == [MODERN, *reversed(HANDSHAKE)]
    assert answer["_meta"][f"{META}serverInfo"]["name"] == "rlm"
    assert answer["resultType"] == "complete"
    assert answer["ttlMs"] >= 0 and answer["cacheScope"] == "public"


@pytest.mark.parametrize("method", ["tools/list", "resources/list", "resources/templates/list", "server/discover"])
def test_what_may_be_cached_says_so(modern: Peer, method: str) -> None:
    answer = modern.result(method)
    assert isinstance(answer["ttlMs"], int) and answer["cacheScope"] in ("public", "private")


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ({}, -32602),
        ({f"{META}protocolVersion": MODERN}, -32602),
        ({f"{META}protocolVersion": MODERN, f"{META}clientCapabilities": []}, -32602),
        ({f"{META}clientCapabilities": {}}, -32602),
        ({f"{META}protocolVersion": 3, f"{META}clientCapabilities": {}}, -32602),
        ({f"{META}protocolVersion": "1900-01-01", f"{META}clientCapabilities": {}}, -32022),
        ({f"{META}protocolVersion": "2025-11-25", f"{META}clientCapabilities": {}}, -32022),
    ],
    ids=lambda value: str(value)[:60],
)
@pytest.mark.parametrize("method", ["server/discover", "tools/list"])
def test_a_request_that_does_not_say_what_it_speaks_is_refused(method: str, meta: dict[str, Any], code: int) -> None:
    with Peer(None) as peer:
        error = peer.error(method, {"_meta": meta})
        assert error["code"] == code
        if code == -32022:
            assert error["data"] == {
                "supported": [MODERN, *reversed(HANDSHAKE)],
                "requested": meta[f"{META}protocolVersion"],
            }


@pytest.mark.parametrize(
    "method",
    ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "roots/list", "no/such"],
)
def test_what_the_modern_revision_removed_is_no_method(modern: Peer, method: str) -> None:
    assert modern.error(method)["code"] == -32601


def test_a_modern_resource_that_is_not_there_is_a_bad_parameter(modern: Peer) -> None:
    assert modern.error("resources/read", {"uri": "rlm://output/none"})["code"] == -32602


def test_the_list_of_tools_does_not_change_with_calls(modern: Peer) -> None:
    before = modern.result("tools/list")
    modern.run("x = 1", session_id="new")
    assert modern.result("tools/list") == before


def test_a_subscription_is_acknowledged_told_and_ended() -> None:
    with Peer(MODERN) as peer:
        peer.run("print('x' * 50_000)")
        id = peer.request("subscriptions/listen", {"notifications": {"resourcesListChanged": True, "other": True}})
        params = peer.wait_note("notifications/subscriptions/acknowledged")["params"]
        assert params == {
            "_meta": {f"{META}subscriptionId": id},
            "notifications": {"resourcesListChanged": True},
        }
        peer.run("print('x' * 50_000)")
        told = peer.wait_note("notifications/resources/list_changed")
        assert told["params"]["_meta"] == {f"{META}subscriptionId": id}
        peer.notify("notifications/cancelled", {"requestId": id})
        peer.run("print('x' * 50_000)")
        peer.nothing_more()
        assert len([n for n in peer.notifications if n["method"].endswith("list_changed")]) == 1


def test_both_eras_are_served_on_one_stdin() -> None:
    with Peer("2025-06-18") as peer:
        peer.run("x = 5")
        modern = peer.ask("tools/call", {"name": "get_repl_context", "_meta": {**Peer.meta(peer)}})["result"]
        assert modern["resultType"] == "complete"
        assert '"x"' in text_of(modern)
        handshake = peer.ask("tools/call", {"name": "get_repl_context"})["result"]
        assert "resultType" not in handshake


# --- calls: order, concurrency, progress, cancellation, time --------------------------------------------------------


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
def test_the_server_answers_while_code_runs(version: str) -> None:
    with Peer(version) as peer:
        id = running(peer)
        peer.nothing_more()
        assert peer.run("1", session_id="new").startswith("Value: 1")
        peer.notify("notifications/cancelled", {"requestId": id})


def test_calls_of_one_session_run_in_the_order_they_came(shared: Peer) -> None:
    shared.run("order = []")
    ids = [shared.start("execute_python", code=f"order.append({n})") for n in range(30)]
    for id in ids:
        shared.wait(id)
    assert shared.run("order == list(range(30))") == "Value: True"


def test_a_cancelled_call_is_stopped_not_answered_and_leaves_its_variables(shared: Peer) -> None:
    shared.run("kept = 1")
    id = running(shared, "kept = 2\nwhile True:\n    pass")
    shared.notify("notifications/cancelled", {"requestId": id, "reason": "enough"})
    assert shared.run("kept in (1, 2)") == "Value: True"  # 1 where it had to be killed
    assert id not in shared._answers


def test_a_cancelled_call_that_waits_is_never_run(shared: Peer) -> None:
    first = running(shared)
    second = shared.start("execute_python", code="never = 1")
    shared.notify("notifications/cancelled", {"requestId": second})
    shared.notify("notifications/cancelled", {"requestId": first})
    assert shared.run("'never' in globals()") == "Value: False"


def test_uninterruptible_code_is_cancelled_too(shared: Peer) -> None:
    shared.run("kept = 3")
    id = running(shared, "sum(range(10**13))")
    shared.notify("notifications/cancelled", {"requestId": id})
    assert shared.run("kept") == "Value: 3"


def test_initialize_cannot_be_cancelled() -> None:
    with Peer(None) as peer:
        peer.write(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}\n')
        peer.version = "2025-11-25"
        assert "result" in peer.handshake()


@pytest.mark.parametrize("version", EVERY)
def test_heartbeats_grow_carry_the_last_line_and_stop_with_the_answer(version: str) -> None:
    with Peer(version, setup="rlm_mcp.HEARTBEAT_SECONDS = 0.05") as peer:
        id = peer.start(
            "execute_python", token="t", code="import time\nwhile True:\n    print('tick')\n    time.sleep(0.06)"
        )
        number = 3
        while (
            version != "2024-11-05"
            and "message" not in peer.wait_note("notifications/progress", number=number)["params"]
        ):
            number += 1
        peer.wait_note("notifications/progress", number=number)
        peer.notify("notifications/cancelled", {"requestId": id})
        peer.run("1")
        notes = [n["params"] for n in peer.notifications if n["method"] == "notifications/progress"]
        assert all(note["progressToken"] == "t" for note in notes)
        figures = [note["progress"] for note in notes]
        assert figures == sorted(set(figures))
        if version != "2024-11-05":
            assert notes[-1]["message"] == "tick"
        else:
            assert "message" not in notes[-1]
        before = len(notes)
        peer.run("1")
        assert len([n for n in peer.notifications if n["method"] == "notifications/progress"]) == before


def test_without_a_token_there_is_no_progress() -> None:
    with Peer(setup="rlm_mcp.HEARTBEAT_SECONDS = 0.01\noptions = {'max_wait': 0.3}") as peer:
        peer.json("execute_python", code=ENDLESS)
        assert not peer.notifications


def test_a_call_that_outlives_its_time_is_collected_by_its_handle() -> None:
    with Peer(arguments=("--max-wait", "0.3")) as peer:
        code = "import time\nprint('working')\ntime.sleep(1)\nx = 7\nx"
        status = peer.json("execute_python", code=code)
        assert status["status"] == "running"
        while '"running"' in (told := peer.text("resume", handle=status["handle"])):
            pass  # each of these calls waits for the job
        assert told == "Output: working\nValue: 7"
        assert "unknown" in peer.refused("resume", handle=status["handle"])
        assert peer.run("x") == "Value: 7"


def test_a_session_with_a_job_says_so_and_can_be_cleared() -> None:
    with Peer(arguments=("--max-wait=1.5",)) as peer:
        handle = peer.json("execute_python", code=ENDLESS)["handle"]
        assert handle in peer.refused("execute_python", code="1")
        assert peer.json("clear_repl_context") == {"session_id": "default", "cleared": True}
        assert "no run" in peer.refused("resume", handle=handle)
        assert peer.run("1") == "Value: 1"


def test_two_calls_cannot_wait_for_one_job() -> None:
    with Peer(setup="options = {'max_wait': 2}") as peer:
        handle = peer.json("execute_python", code=ENDLESS)["handle"]
        first = peer.start("resume", handle=handle)
        assert "waits for this run already" in peer.refused("resume", handle=handle)
        assert handle in text_of(peer.wait(first)["result"])


# --- the tools --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("execute_python", {}, "needs 'code'"),
        ("execute_python", {"code": 1}, "code must be a string"),
        ("execute_python", {"code": None}, "code must be a string"),
        ("execute_python", {"code": "1", "timeout": 301}, "timeout must be between 0.1 and 300"),
        ("execute_python", {"code": "1", "timeout": True}, "timeout must be a number"),
        ("execute_python", {"code": "1", "profile": "huge"}, "profile must be one of quick"),
        ("execute_python", {"code": "1", "tiemout": 1}, "no argument 'tiemout'; it takes code, timeout"),
        ("execute_python", {"code": "1", "session_id": "s_none"}, "no session 's_none'"),
        ("set_repl_context", {"key": "a b", "value": 1}, "must be a variable's name"),
        ("set_repl_context", {"key": "class", "value": 1}, "must be a variable's name"),
        ("set_repl_context", {"key": "__builtins__", "value": 1}, "must be a variable's name"),
        ("set_repl_context", {"key": "a"}, "needs 'value'"),
        ("destroy_session", {"session_id": "s_none"}, "no session"),
        ("resume", {"handle": "job_0"}, "no run 'job_0'"),
        ("resume", {"handle": "job_0", "answers": [1]}, "answers must be an array of strings"),
        ("run_completion", {"prompt": "x", "max_depth": -1}, "max_depth must be between"),
        ("set_project", {"directory": "/no/such"}, "no folder"),
        ("set_project", {"directory": "a\0b"}, "no folder can be called"),
        ("set_project", {"directory": "a\ud800b"}, "no folder can be called"),
        ("set_project", {"directory": "~\0"}, "no folder can be called"),
        ("set_project", {"directory": "/"}, "not a project's folder"),
        ("set_project", {"directory": "~"}, "not a project's folder"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_the_model_can_mend_is_a_result(shared: Peer, tool: str, arguments: dict[str, Any], told: str) -> None:
    assert told in shared.refused(tool, **arguments)


@pytest.mark.parametrize("value", ["0", "''", "[]", "False", "None", "{}", "'x'"])
def test_any_final_answer_is_shown(shared: Peer, value: str) -> None:
    assert shared.run(f"FINAL({value})") == f"Final: {value}"


def test_failing_code_gives_its_output_and_its_own_lines(shared: Peer) -> None:
    text = shared.refused("execute_python", code="print('before')\ndef f():\n    return 1 / 0\nf()")
    assert text.startswith("Output: before\nError (error):\nTraceback")
    assert "line 3" in text and "ZeroDivisionError: division by zero" in text
    assert "rlm" not in text


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x ===", "SyntaxError"),
        ("import socket", "socket"),
        ("open('/etc/passwd').read()", "Error"),
        ("raise SystemExit(3)", "Error"),
        ("input('?')", "Error"),
        ("def f():\n    f()\nf()", "RecursionError"),
        ("'a' * 10**12", "Error (memory)"),
        ("().__class__.__subclasses__()", "PolicyError"),
    ],
)
def test_code_that_goes_wrong_ends_its_cell_only(shared: Peer, code: str, told: str) -> None:
    shared.run("kept = 11")
    assert told in shared.refused("execute_python", code=code)
    assert shared.run("kept") == "Value: 11"


def test_a_timeout_ends_the_cell_and_keeps_the_session(shared: Peer) -> None:
    shared.run("kept = 12")
    assert "Error (timeout)" in shared.refused("execute_python", code=ENDLESS, timeout=0.2)
    assert shared.run("kept") == "Value: 12"


@pytest.mark.parametrize(
    ("profile", "fits", "too_much"),
    [("quick", 60, 200), ("default", 300, 700)],
)
def test_a_profile_bounds_the_memory_of_its_call(shared: Peer, profile: str, fits: int, too_much: int) -> None:
    code = "block = bytearray({} << 20)\ndel block"
    shared.run(code.format(fits), profile=profile)
    assert "Error (memory)" in shared.refused("execute_python", code=code.format(too_much), profile=profile)
    shared.run(code.format(300))  # the next call has its own


def test_a_profile_bounds_the_time_of_its_call() -> None:
    with Peer(setup="rlm_mcp.PROFILES['quick'] = (0.2, '128m')") as peer:
        assert "0.2 s" in peer.refused("execute_python", code=ENDLESS, profile="quick")
        assert peer.run("import time\ntime.sleep(0.3)\n1") == "Value: 1"


def test_variables_are_listed_set_and_cleared(shared: Peer) -> None:
    session = shared.text("execute_python", code="n = 3", session_id="new").rpartition(": ")[2]
    for key, value in {"text": "plain", "number": "17", "data": '{"a": [1]}', "real": {"b": 2}, "odd": "NaN"}.items():
        shared.json("set_repl_context", key=key, value=value, session_id=session)
    listed = shared.json("get_repl_context", session_id=session)
    kinds = {row["name"]: row["type"] for row in listed["variables"]}
    assert kinds == {"n": "int", "text": "str", "number": "int", "data": "dict", "real": "dict", "odd": "str"}
    assert shared.run("data['a'][0] + real['b']", session_id=session) == "Value: 3"
    shared.json("clear_repl_context", session_id=session)
    assert shared.json("get_repl_context", session_id=session)["variables"] == []


def test_the_list_of_variables_is_bounded(shared: Peer) -> None:
    code = "big = 'x' * 10**6\nfor i in range(500):\n    globals()[f'v{i}'] = i"
    session = shared.text("execute_python", code=code, session_id="new").rpartition(": ")[2]
    listed = shared.text("get_repl_context", session_id=session)
    assert len(listed) < 40_000
    assert json.loads(listed)["more"] == 302


def test_sessions_do_not_share_variables(shared: Peer) -> None:
    one, two = (shared.run(f"x = {n}", session_id="new").rpartition(": ")[2] for n in (1, 2))
    assert one != two and len(one) > 16
    assert shared.run("x", session_id=one) == "Value: 1"
    assert shared.run("x", session_id=two) == "Value: 2"
    assert {one, two} <= {row["session_id"] for row in shared.json("list_sessions")["sessions"]}
    assert shared.json("destroy_session", session_id=one) == {"session_id": one, "destroyed": True}
    assert "no session" in shared.refused("execute_python", code="1", session_id=one)
    assert shared.run("x", session_id=two) == "Value: 2"


def test_a_destroyed_session_stops_what_runs_in_it(shared: Peer) -> None:
    session = shared.run("1", session_id="new").rpartition(": ")[2]
    id = running(shared, session_id=session)
    shared.json("destroy_session", session_id=session)
    assert shared.wait(id)["result"]["isError"] is True


def test_sessions_are_limited_in_number() -> None:
    with Peer(setup="rlm_mcp.MAX_SESSIONS = 3") as peer:
        names = [peer.run("1", session_id="new").rpartition(": ")[2] for _ in range(3)]
        assert "3 sessions are open" in peer.refused("execute_python", code="1", session_id="new")
        peer.json("destroy_session", session_id=names[0])
        peer.run("1", session_id="new")


def test_a_session_that_cannot_be_ended_now_can_be_ended_later() -> None:
    with Peer(setup="rlm_mcp.MAX_RUNNING = 1") as peer:
        session = peer.run("x = 1", session_id="new").rpartition(": ")[2]
        handle = peer.json("run_completion", prompt="p")["handle"]
        assert "1 calls are running already" in peer.refused("destroy_session", session_id=session)
        assert peer.run("x", session_id=session) == "Value: 1"
        peer.call("resume", handle=handle, answers=["done"])
        assert peer.json("destroy_session", session_id=session) == {"session_id": session, "destroyed": True}


@pytest.mark.slow
def test_thirty_two_sessions_live_side_by_side() -> None:
    with Peer() as peer:
        names = [peer.run(f"x = {n}", session_id="new").rpartition(": ")[2] for n in range(32)]
        ids = [peer.start("execute_python", code="x * x", session_id=name) for name in names]
        assert [text_of(peer.wait(id)["result"]) for id in ids] == [f"Value: {n * n}" for n in range(32)]


def test_idle_sessions_and_uncollected_jobs_end() -> None:
    with Peer(setup="rlm_mcp.IDLE_SECONDS = 0.2\noptions = {'max_wait': 0.1}") as peer:
        session = peer.run("x = 1", session_id="new").rpartition(": ")[2]
        handle = peer.json("execute_python", code=ENDLESS)["handle"]
        assert eventually(lambda: session not in peer.text("list_sessions"))
        assert eventually(lambda: "running" not in text_of(peer.call("get_repl_context")))
        assert eventually(lambda: handle not in text_of(peer.call("execute_python", code="1")))
        assert eventually(lambda: not any(session["busy"] for session in peer.json("list_sessions")["sessions"]))
        assert "no run" in peer.refused("resume", handle=handle)


HOSTILE = {
    "raw output": ("import os\nos.write(1, b'noise')\nos.write(2, b'noise')\nprint('said')", "Output: said"),
    "stdin": ("import sys\nprint(repr(sys.stdin.read()))", "Output: ''"),
    "fork": ("import os, time\nif os.fork() == 0:\n    time.sleep(600)\nprint('parent')", "Output: parent"),
    "exit": ("import os\nos._exit(3)", "Error (crash)"),
    "segfault": ("import ctypes\nctypes.string_at(0)", "SIGSEGV"),
    "memory": (
        "def eat():\n    many = []\n    while True:\n        many.append(bytearray(10**7))\neat()",
        "Error (memory)",
    ),
    "suicide": ("import os\nos.kill(0, 9)", "SIGKILL"),
    "kill all": ("import os\nos.kill(-1, 9)", ""),
}


@pytest.mark.slow
def test_code_in_a_container_can_do_what_it_likes() -> None:
    need("docker")
    with Peer(arguments=("--env", "docker")) as peer:
        peer.run("kept = 41")
        for code, told in HOSTILE.values():
            assert told in text_of(peer.call("execute_python", code=code))
            assert peer.run("kept") == "Value: 41"
        id = running(peer)
        peer.notify("notifications/cancelled", {"requestId": id})
        assert peer.run("kept") == "Value: 41"
        assert containers_of(peer.process.pid)
        assert peer.close() == 0
    while containers_of(peer.process.pid):  # the engine takes a moment to remove one
        pass


def containers_of(pid: int) -> list[str]:
    """The containers that a process of ours started."""
    listing = ["docker", "ps", "-a", "--no-trunc", "--format", "{{.Labels}}"]
    labels = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    return [label for label in labels if re.search(rf"\b{pid}\b", label)]


# --- projects ---------------------------------------------------------------------------------------------------


def project(folder: Path, name: str, **files: str) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    for file, text in files.items():
        (path / file.replace("__", ".")).write_text(text)
    return path


def test_a_session_begins_in_the_working_directory_and_moves_between_projects(workspace: Path) -> None:
    (workspace / "here.txt").write_text("here")
    one, two = project(workspace, "one", a__txt="first"), project(workspace, "two", a__txt="second")
    with Peer() as peer:
        assert peer.run("open('here.txt').read()") == "Value: 'here'"
        assert peer.json("set_project", directory=str(one))["directory"] == str(one.resolve())
        assert peer.run("x = open('a.txt').read()\nx") == "Value: 'first'"
        peer.json("set_project", directory=str(two))
        assert "NameError" in peer.refused("execute_python", code="x")
        assert peer.run("open('a.txt').read()") == "Value: 'second'"
        peer.json("set_project", directory=str(one))
        assert peer.run("x") == "Value: 'first'"


def test_a_file_out_of_reach_is_explained_by_the_tools_that_there_are(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = project(workspace, "one")
    with Peer() as peer:
        peer.json("set_project", directory=str(one))
        for path in ("/etc/passwd", "no-such-file"):
            told = peer.refused("execute_python", code=f"open({path!r})")
            assert f"code reads what is in {one.resolve()}" in told and "file_read" not in told
    monkeypatch.chdir("/")  # which is no project
    with Peer() as peer:
        told = peer.refused("execute_python", code="open('/etc/passwd')")
        assert "call set_project" in told and "file_read" not in told


def test_projects_are_read_only_and_end_at_their_folder(workspace: Path) -> None:
    one = project(workspace, "one", a__txt="first", __env="SECRET=1")
    (workspace / "outside.txt").write_text("outside")
    with Peer() as peer:
        peer.json("set_project", directory="one")
        peer.refused("execute_python", code="open('../outside.txt').read()")
        peer.refused("execute_python", code="open('.env').read()")
        peer.call("execute_python", code="open('a.txt', 'w').write('changed')")
    assert (one / "a.txt").read_text() == "first"


def test_a_workspace_bounds_the_projects(tmp_path: Path) -> None:
    inside, outside = project(tmp_path / "work", "in"), project(tmp_path, "out")
    with Peer(arguments=("--workspace", str(tmp_path / "work"))) as peer:
        assert peer.json("set_project", directory=str(inside))["directory"] == str(inside.resolve())
        assert "outside of what this server was given" in peer.refused("set_project", directory=str(outside))
        os.symlink(outside, inside / "link")
        assert "outside of what this server was given" in peer.refused("set_project", directory=str(inside / "link"))


def test_a_clients_roots_name_the_first_project_and_bound_the_others(workspace: Path) -> None:
    one, two = project(workspace, "my one", a__txt="first"), project(workspace, "two")
    with Peer(
        roots=["file://[/home", "file:///a%00b", "file:///\ud800", one.as_uri(), "https://no", "file://h/x"]
    ) as peer:
        assert peer.run("open('a.txt').read()") == "Value: 'first'"
        assert "outside" in peer.refused("set_project", directory=str(two))
        peer.roots = [two.as_uri()]
        peer.notify("notifications/roots/list_changed")
        while "outside" in text_of(peer.call("set_project", directory=str(two))):
            pass


# --- images and long output -----------------------------------------------------------------------------------------


def test_long_output_is_a_preview_and_a_resource(shared: Peer) -> None:
    result = shared.call("execute_python", code="for i in range(20_000):\n    print(i)")
    assert len(text_of(result)) < 20_500
    link = next(block for block in result["content"] if block["type"] == "resource_link")
    assert link["uri"] in text_of(result)
    contents = shared.result("resources/read", {"uri": link["uri"]})["contents"]
    assert contents[0]["text"].split("\n")[1:] == [str(i) for i in range(20_000)]
    listed = shared.result("resources/list")["resources"]
    assert link["uri"] in [resource["uri"] for resource in listed]
    shared.wait_note("notifications/resources/list_changed")


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26"])
def test_older_revisions_get_the_address_without_a_link(version: str) -> None:
    with Peer(version) as peer:
        result = peer.call("execute_python", code="print('x' * 50_000)")
        assert {block["type"] for block in result["content"]} == {"text"}
        uri = text_of(result).partition("the resource ")[2].split()[0]
        assert len(peer.result("resources/read", {"uri": uri})["contents"][0]["text"]) > 50_000


def test_only_so_many_outputs_are_kept() -> None:
    with Peer(setup="rlm_mcp.MAX_OUTPUTS = 2") as peer:
        for _ in range(4):
            peer.run("print('x' * 30_000)")
        assert len(peer.result("resources/list")["resources"]) == 2


PICTURES = {
    "matplotlib": "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nprint('drawn')",
    "PIL": "from PIL import Image\nprint('drawn')\nImage.new('RGB', (10, 10), 'red')",
}


@pytest.mark.slow
@pytest.mark.parametrize("package", PICTURES)
def test_figures_and_pictures_are_image_blocks(package: str) -> None:
    for needed in ("matplotlib", "PIL"):
        pytest.importorskip(needed)
    with Peer(environ={"RLM_ALLOWED_IMPORTS": "matplotlib.pyplot,PIL.Image"}) as peer:
        result = peer.call("execute_python", code=PICTURES[package])
        assert "drawn" in text_of(result)
        (image,) = [block for block in result["content"] if block["type"] == "image"]
        assert image["mimeType"] == "image/png"
        assert base64.b64decode(image["data"]).startswith(b"\x89PNG\r\n\x1a\n")
        assert not [block for block in peer.call("execute_python", code="1")["content"] if block["type"] == "image"]


# --- what clients send that nobody should ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_random_lines_neither_end_nor_hold_the_server(seed: int) -> None:
    chance = random.Random(seed)
    good = json.dumps({"jsonrpc": "2.0", "id": 5, "method": "tools/list", "params": {"a": [1, {"b": "c"}]}}).encode()
    with Peer() as peer:
        for _ in range(300):
            line = bytearray(good)
            for _ in range(chance.randrange(1, 8)):
                place = chance.randrange(len(line))
                line[place : place + chance.randrange(3)] = bytes(chance.randrange(256) for _ in range(3))
            peer.write(bytes(line).replace(b"\n", b" ")[: chance.randrange(1, 200)] + b"\n")
        assert peer.ask("ping", id="last")["result"] == {}


VALUES: list[Any] = [None, True, -1, 1e300, "", "x" * 1000, [], [[]], {}, {"a": 1}, "\ud800", 2**70]


@pytest.mark.parametrize("tool", ["execute_python", "set_repl_context", "destroy_session", "resume", "set_project"])
def test_any_value_in_any_argument_is_answered(shared: Peer, tool: str) -> None:
    listed = {entry["name"]: entry for entry in shared.result("tools/list")["tools"]}
    names = listed[tool]["inputSchema"]["properties"]
    for name in names:
        for value in VALUES:
            given = {"code": "1", "key": "k", "value": 1, "session_id": "s", "handle": "h", "directory": "d"}
            arguments = {key: text for key, text in given.items() if key in names} | {name: value}
            answer = shared.wait(shared.start(tool, **arguments))
            assert "result" in answer or answer["error"]["code"] == -32602, answer


def test_a_flood_of_calls_beside_the_sessions_is_bounded() -> None:
    with Peer(setup="rlm_mcp.MAX_RUNNING = 4\nrlm_mcp.MAX_WAITING = 4") as peer:
        running(peer)
        beside = [peer.start("run_completion", prompt="x") for _ in range(20)]
        waiting = [peer.start("execute_python", code="1") for _ in range(20)]
        peer.nothing_more()
        told = [text_of(peer.wait(id)["result"]) for id in (*beside, *waiting[4:])]
        assert sum("calls are running already" in text for text in told) >= 16
        assert sum("calls are waiting for this session already" in text for text in told) == 16


@pytest.mark.nightly
def test_ten_thousand_calls_in_one_process() -> None:
    with Peer() as peer:
        peer.run("n = 0")
        for start in range(0, 10_000, 500):
            ids = [peer.start("execute_python", code="n += 1") for _ in range(start, start + 500)]
            for id in ids:
                peer.wait(id)
        assert peer.run("n") == "Value: 10000"
        assert peer.json("get_repl_context")["variables"] == [
            {"name": "n", "type": "int", "size": None, "repr": "10000"}
        ]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_sessions_are_listed_though_the_process_of_one_has_ended() -> None:
    with Peer() as peer:
        assert peer.run("x = 1\nx") == "Value: 1"
        os.kill(max(descendants(peer.process.pid)), signal.SIGKILL)
        [row] = peer.json("list_sessions")["sessions"]
        assert (row["session_id"], row["busy"], row["variables"]) == ("default", False, None)
