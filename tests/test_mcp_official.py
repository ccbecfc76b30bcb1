"""The server as the official clients, the official types and an independent auditor see it (`.ci/mcp-clients`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from conftest import CI
from mcp_peer import HANDSHAKE, MODERN, PATIENCE, ROOT, Peer, text_of

import rlm
import rlm_mcp

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flat-rlm" / "mcp"
FOLDER = Path(os.environ.get("RLM_TEST_MCP") or CACHE)
SERVER = [sys.executable, str(ROOT / "rlm.py"), "mcp-serve"]
# Heartbeats come often enough here for a call of a second to have some.
QUICK = f"import sys; sys.path[0] = {str(ROOT)!r}; import rlm_mcp; rlm_mcp.HEARTBEAT_SECONDS = 0.1; "
QUICK += "sys.exit(rlm_mcp.serve(max_wait=20))"
pytestmark = pytest.mark.slow


def program(name: str) -> str:
    path = FOLDER / name
    if not path.exists():
        (pytest.fail if CI else pytest.skip)(f"{path} is not here: .ci/mcp-clients makes it")
    return str(path)


def official(environment: str, *arguments: str, given: str = "", file: str = "mcp_official.py") -> Any:
    """What a program of these tests says in an environment of `.ci/mcp-clients`."""
    command = [program(f"{environment}/bin/python"), str(Path(__file__).parent / file), *arguments]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=5 * PATIENCE, env=kept)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("environment", "mode"),
    [("client2", "auto"), ("client2", "legacy"), ("client2", MODERN), ("client1", "handshake")],
)
def test_an_official_client_finds_all_it_needs(environment: str, mode: str, workspace: Path) -> None:
    # The 1.x client gives no roots: its session works in the server's own folder.
    folder = workspace if mode == "handshake" else workspace / "root"
    (workspace / "root").mkdir()
    seen = official(environment, "session", mode, sys.executable, "-c", QUICK)
    assert len(seen.pop("tools")) == 9
    assert seen.pop("resource") > 50_000
    assert seen == {
        "fibonacci": "Output: [0, 1, 1, 2, 3, 5, 8, 13]",
        "variables": [
            {"name": "a", "type": "int", "size": None, "repr": "21"},
            {"name": "b", "type": "int", "size": None, "repr": "34"},
            {"name": "seen", "type": "list", "size": 8, "repr": "[0, 1, 1, 2, 3, 5, 8, 13]"},
            {"name": "x", "type": "list", "size": 2, "repr": "[1, 2]"},
        ],
        "error": True,
        "resources": True,
        "progress": True,
        "after cancel": "Value: 'kept'",
        "requests": ["hello"],
        "resumed": "Value: 'hi'",
        "sampled": "Value: ['A', 'B', 'C']",
        "completion": "SHOUT",
        "directory": str(folder.resolve()),
    }


@pytest.mark.timeout(300)  # five frameworks are imported, and each starts the server
def test_every_framework_converts_all_tools_and_calls_one() -> None:
    # As each sends it: AutoGen fills in null for what is absent, OpenAI's strict mode makes every argument required.
    seen = official("converters", *SERVER, file="mcp_converters.py")
    assert list(seen) == ["google_genai", "openai_agents", "pydantic_ai", "langchain", "autogen"]
    for framework, found in seen.items():
        assert set(found["tools"]) == set(rlm_mcp.TOOLS), framework
        assert found["answer"] == "Value: 42", framework
        for name, schema in found["tools"].items():
            assert set(schema["properties"]) == set(rlm_mcp.TOOLS[name].properties), (framework, name)
    for framework in ("openai_agents", "pydantic_ai", "langchain"):
        for schema in seen[framework]["tools"].values():
            assert schema["additionalProperties"] is False
            assert set(schema["required"]) == set(schema["properties"])


def everything(peer: Peer) -> None:
    """A conversation in which the server sends each kind of line that it can send."""
    for method in ("tools/list", "resources/list", "resources/templates/list"):
        peer.result(method)
    peer.run("print('a')\n1")
    peer.run("x = 1", session_id="new")
    peer.call("execute_python", code="1 / 0")
    result = peer.call("execute_python", code="print('x' * 50_000)")
    uri = text_of(result).partition("the resource ")[2].split()[0]
    peer.result("resources/read", {"uri": uri})
    peer.result("resources/list")
    for tool in ("get_repl_context", "list_sessions", "clear_repl_context"):
        peer.call(tool)
    peer.call("set_repl_context", key="x", value={"a": None})
    peer.call("set_project", directory=".")
    id = peer.start("execute_python", token=7, code="import time\nwhile True:\n    print('tick')\n    time.sleep(0.05)")
    peer.wait_note("notifications/progress")
    peer.notify("notifications/cancelled", {"requestId": id})
    peer.call("execute_python", code="while True:\n    pass")
    peer.call("clear_repl_context")
    for method in ("no/such", "resources/read", "tools/call"):
        peer.error(method)
    peer.write(b"garbage\n")
    peer.wait(None)
    if peer.version == MODERN:
        peer.result("server/discover")
        listening = peer.request("subscriptions/listen", {"notifications": {"resourcesListChanged": True}})
        peer.wait_note("notifications/subscriptions/acknowledged")
        peer.run("print('x' * 50_000)")
        peer.wait_note("notifications/resources/list_changed")
        peer.notify("notifications/cancelled", {"requestId": listening})
    if peer.version == "2025-03-26":
        peer.send([{"jsonrpc": "2.0", "id": f"b{n}", "method": "ping"} for n in range(3)])
        peer.wait("b2")


def suspended_and_sampled(peer: Peer) -> None:
    """The same for what depends on the client's abilities."""
    code = {"name": "execute_python", "arguments": {"code": "llm_query('p')"}}
    if not peer.capabilities:
        status = json.loads(text_of(peer.result("tools/call", code)))
        peer.call("resume", handle=status["handle"], answers=["x"])
        return
    id = peer.request("tools/call", code)
    reply = {"role": "assistant", "content": {"type": "text", "text": "x"}, "model": "m"}
    if peer.version == MODERN:
        asked = peer.wait(id)["result"]
        answers = dict.fromkeys(asked["inputRequests"], reply)
        peer.result("tools/call", {**code, "inputResponses": answers, "requestState": asked["requestState"]})
    else:
        request = peer.requests.get(timeout=PATIENCE)
        peer.send({"jsonrpc": "2.0", "id": request["id"], "result": reply})
        peer.wait(id)


@pytest.mark.parametrize("version", [*HANDSHAKE, MODERN])
def test_every_line_is_what_the_official_types_of_its_revision_say(version: str, workspace: Path) -> None:
    setup = "rlm_mcp.HEARTBEAT_SECONDS = 0.05\noptions = {'max_wait': 3}"
    lines = []
    for capabilities in ({}, {"sampling": {}}):
        roots = [workspace.as_uri()] if capabilities and version != MODERN else None
        with Peer(version, setup=setup, capabilities=capabilities, roots=roots) as peer:
            everything(peer)
            suspended_and_sampled(peer)
        lines.append(json.dumps({"version": version, "transcript": peer.transcript}))
    if version == MODERN:
        with Peer(version, capabilities={"roots": {}}) as asked:
            asked.result("tools/call", {"name": "execute_python", "arguments": {"code": "1"}})
        lines.append(json.dumps({"version": version, "transcript": asked.transcript}))
    methods = {entry["got"].get("method") for entry in peer.transcript if isinstance(entry.get("got"), dict)}
    assert "notifications/progress" in methods
    assert official("client2", "validate", str(FOLDER), given="\n".join(lines)) == []
    if folder := os.environ.get("MCP_TRANSCRIPTS"):  # for a look by other validators
        (Path(folder) / f"{version}.jsonl").write_text("\n".join(lines))


def test_an_auditor_gives_every_point() -> None:
    command = [program("client2/bin/mcpscore"), "--no-config", "--json", "--smoke", "--fail-under", "100"]
    command += ["--fail-under-readiness", "100", "--stdio", *SERVER]
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=kept)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert report["score"] == report["max_score"]
    assert report["readiness"]["score"] == report["readiness"]["max_score"]


def test_the_bundle_is_accepted_by_its_own_tool_and_serves(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / ".ci" / "mcpb"), str(tmp_path)], check=True, capture_output=True)
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(tmp_path / "rlm.mcpb") as bundle:
        bundle.extractall(unpacked)
    tool = program("npm/node_modules/.bin/mcpb")
    checked = subprocess.run([tool, "validate", str(unpacked / "manifest.json")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    manifest = json.loads((unpacked / "manifest.json").read_text())
    assert [row["name"] for row in manifest["tools"]] == list(rlm_mcp.TOOLS)
    initialize = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": initialize})
    command = [sys.executable, "server.py", "--workspace", str(tmp_path)]
    done = subprocess.run(command, cwd=unpacked, input=line, capture_output=True, text=True, timeout=PATIENCE)
    assert json.loads(done.stdout)["result"]["serverInfo"]["version"] == manifest["version"]


def test_the_registry_entry_names_the_version_and_how_to_start(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / ".ci" / "mcpb"), str(tmp_path)], check=True, capture_output=True)
    entry = json.loads((tmp_path / "server.json").read_text())
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", entry["name"])
    assert 1 <= len(entry["description"]) <= 100
    (package,) = entry["packages"]
    assert entry["version"] == package["version"] == rlm.__version__
    assert (package["registryType"], package["identifier"], package["transport"]) == (
        "pypi",
        "flat-rlm",
        {"type": "stdio"},
    )
