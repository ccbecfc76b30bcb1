"""Who answers `llm_query` and `run_completion` behind the MCP server: a provider, a command, the client's own model."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import alive, eventually
from mcp_peer import META, MODERN, Peer, descendants, text_of
from test_mcp import ENDLESS

LOOK = "Let me look.\n```repl\nprint(len(context))\n```"


def suspended(result: dict[str, Any]) -> dict[str, Any]:
    status = json.loads(text_of(result))
    assert status["status"] == "needs_completions"
    assert result["isError"] is False
    found: dict[str, Any] = status
    return found


# --- suspend and resume -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2024-11-05", "2025-11-25", MODERN])
def test_a_cell_that_asks_a_model_waits_for_the_hosts_answers(version: str) -> None:
    with Peer(version) as peer:
        status = suspended(peer.call("execute_python", code="a = llm_query('2 + 2?')\na + '!'"))
        assert status["requests"] == ["2 + 2?"]
        assert peer.text("resume", handle=status["handle"], answers=["four"]) == "Value: 'four!'"
        assert peer.run("a") == "Value: 'four'"


def test_sub_calls_of_one_batch_are_one_round() -> None:
    with Peer() as peer:
        code = "answers = llm_query_batched([f'p{i}' for i in range(40)])\nanswers[-1]"
        status = suspended(peer.call("execute_python", code=code))
        assert status["requests"] == [f"p{i}" for i in range(40)]
        answers = [f"a{i}" for i in range(40)]
        assert peer.text("resume", handle=status["handle"], answers=answers) == "Value: 'a39'"


def test_sub_calls_from_parallel_code_are_one_round() -> None:
    code = """\
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor() as pool:
    print(list(pool.map(llm_query, ['p0', 'p1', 'p2'])))"""
    with Peer() as peer:
        status = suspended(peer.call("execute_python", code=code))
        assert status["requests"] == ["p0", "p1", "p2"]
        text = peer.text("resume", handle=status["handle"], answers=["x", "y", "z"])
        assert text == "Output: ['x', 'y', 'z']"


def test_a_completion_with_recursion_is_answered_round_by_round(workspace: Path) -> None:
    with Peer() as peer:
        first = suspended(peer.call("run_completion", prompt="how many?", context="one two three"))
        handle = first["handle"]
        whole = "`context` is a str of {} characters. This is all of it:\n"
        asked = f"[user]\nhow many?\n\n{whole.format(13)}one two three"
        assert first["requests"][0].startswith("[system]") and first["requests"][0].endswith(asked)
        code = "n = len(context.split())\nparts = llm_query_batched(['p1', 'p2'])\nchild = rlm_query('deeper', 'ctx')"
        second = suspended(
            peer.call("resume", handle=handle, answers=[f"```repl\n{code}\nprint(n, parts, child)\n```"])
        )
        assert second["requests"] == ["p1", "p2"]
        third = suspended(peer.call("resume", handle=handle, answers=["one", "two"]))
        assert third["requests"][0].endswith(f"[user]\ndeeper\n\n{whole.format(3)}ctx")
        fourth = suspended(peer.call("resume", handle=handle, answers=["FINAL"]))
        assert "3 ['one', 'two'] FINAL" in fourth["requests"][0]
        # The conversation that the host is in the middle of is not sent again, but can be read.
        assert "[system]" not in fourth["requests"][0]
        whole = fourth["requests"][0].partition("the resource ")[2].partition(")")[0]
        assert peer.result("resources/read", {"uri": whole})["contents"][0]["text"].startswith("[system]")
        result = peer.call("resume", handle=handle, answers=["There are 3."])
        assert result["content"][0]["text"] == "There are 3."
        facts = json.loads(result["content"][1]["text"])
        assert (facts["status"], facts["calls"], facts["depth"]) == ("answered", 5, 1)
        link = next(block for block in result["content"] if block["type"] == "resource_link")
        lines = peer.result("resources/read", {"uri": link["uri"]})["contents"][0]["text"].splitlines()
        assert json.loads(lines[0])["event"] == "start"
        assert link["uri"] in [row["uri"] for row in peer.result("resources/list")["resources"]]
    assert [path.suffix for path in (workspace / "logs").iterdir() if path.suffix == ".jsonl"] == [".jsonl"]


@pytest.mark.parametrize("asks", ["rlm_query('p')", "llm_query('p')"])
def test_a_cell_that_was_answered_can_still_be_cancelled(asks: str) -> None:
    with Peer() as peer:
        handle = suspended(peer.call("execute_python", code=f"{asks}\n{ENDLESS}"))["handle"]
        id = peer.start("resume", handle=handle, answers=["x"])
        peer.notify("notifications/cancelled", {"requestId": id})
        assert eventually(lambda: handle not in text_of(peer.call("execute_python", code="1")))
        assert peer.run("2") == "Value: 2"


def test_completions_run_beside_the_sessions() -> None:
    with Peer() as peer:
        one = suspended(peer.call("run_completion", prompt="first"))
        two = suspended(peer.call("run_completion", prompt="second"))
        assert peer.run("1 + 1") == "Value: 2"
        assert text_of(peer.call("resume", handle=two["handle"], answers=["B"])).startswith("B\n")
        assert text_of(peer.call("resume", handle=one["handle"], answers=["A"])).startswith("A\n")


def test_a_completion_names_the_session_that_was_made_for_it(workspace: Path) -> None:
    with Peer(environ={"RLM_MAX_ITERATIONS": "1"}) as peer:
        for answer in ("done", LOOK):
            handle = suspended(peer.call("run_completion", prompt="p", session_id="new"))["handle"]
            result = peer.call("resume", handle=handle, answers=[answer])
            while "needs_completions" in text_of(result):
                result = peer.call("resume", handle=handle, answers=[""])
            told = result["content"][-1]["text"]
            assert told.startswith("session_id: s_")
            assert peer.run("6 * 7", session_id=told.removeprefix("session_id: ")).startswith("Value: 42")


@pytest.mark.parametrize(
    ("answers", "told"),
    [([], "2 answers are needed"), (["a"], "2 answers are needed"), (["a"] * 3, "not 3"), ("ab", "must be an array")],
    ids=["none", "few", "many", "text"],
)
def test_answers_that_do_not_fit_leave_the_run_waiting(answers: Any, told: str) -> None:
    with Peer() as peer:
        status = suspended(peer.call("execute_python", code="llm_query_batched(['p', 'q'])"))
        assert told in peer.refused("resume", handle=status["handle"], answers=answers)
        again = suspended(peer.call("resume", handle=status["handle"]))
        assert again["requests"] == ["p", "q"]
        assert peer.text("resume", handle=status["handle"], answers=["a", "b"]) == "Value: ['a', 'b']"


def test_a_handle_works_once_and_cannot_be_guessed() -> None:
    with Peer() as peer:
        handle = suspended(peer.call("execute_python", code="llm_query('p')"))["handle"]
        assert len(handle) >= 24
        forged = handle[:-1] + ("0" if handle[-1] != "0" else "1")
        assert "no run" in peer.refused("resume", handle=forged, answers=["x"])
        assert peer.text("resume", handle=handle, answers=["x"]) == "Value: 'x'"
        assert "no run" in peer.refused("resume", handle=handle, answers=["x"])


def test_a_run_that_nobody_resumes_ends_and_its_session_is_free() -> None:
    with Peer(setup="rlm_mcp.IDLE_SECONDS = 0.3") as peer:
        handle = suspended(peer.call("execute_python", code="llm_query('p')"))["handle"]
        assert eventually(lambda: handle not in text_of(peer.call("execute_python", code="1")))
        assert "no run" in peer.refused("resume", handle=handle, answers=["x"])


@pytest.mark.parametrize("how", ["clear_repl_context", "destroy_session"])
def test_a_suspended_run_can_be_stopped(how: str) -> None:
    with Peer() as peer:
        session = peer.run("1", session_id="new").rpartition(": ")[2]
        code = "try:\n    llm_query('p')\nfinally:\n    print('over')"
        handle = suspended(peer.call("execute_python", code=code, session_id=session))["handle"]
        peer.json(how, session_id=session)
        assert "no run" in peer.refused("resume", handle=handle, answers=["x"])


def test_the_end_of_the_client_ends_suspended_runs() -> None:
    with Peer() as peer:
        suspended(peer.call("execute_python", code="llm_query('p')"))
        suspended(peer.call("run_completion", prompt="x"))
        below = descendants(peer.process.pid)
        assert peer.close() == 0
        assert not [pid for pid in below if alive(pid)]


def test_the_model_must_be_asked_with_text() -> None:
    with Peer() as peer:
        for code in ("llm_query(3)", "llm_query_batched('abc')", "llm_query_batched([1])"):
            assert "TypeError: llm_query" in peer.refused("execute_python", code=code)


# --- sampling ---------------------------------------------------------------------------------------------------


def sampled(text: Any) -> dict[str, Any]:
    content = {"type": "text", "text": text} if isinstance(text, str) else text
    return {"role": "assistant", "content": content, "model": "host-model", "stopReason": "endTurn"}


@pytest.mark.parametrize("version", ["2024-11-05", "2025-06-18", "2025-11-25"])
def test_a_handshake_client_that_samples_is_asked_while_its_call_waits(version: str) -> None:
    with Peer(version, capabilities={"sampling": {}}) as peer:
        id = peer.start("execute_python", code="llm_query_batched(['p', 'q'])")
        asked = {}
        for _ in range(2):
            request = peer.requests.get(timeout=60)
            assert request["method"] == "sampling/createMessage"
            prompt = request["params"]["messages"][0]["content"]["text"]
            asked[prompt] = request
        for prompt in ("q", "p"):  # answered in another order than asked
            peer.send({"jsonrpc": "2.0", "id": asked[prompt]["id"], "result": sampled(prompt.upper())})
        assert text_of(peer.wait(id)["result"]) == "Value: ['P', 'Q']"


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"error": {"code": -1, "message": "the user said no"}}, "the user said no"),
        ({"error": 3}, "refused"),
        ({"result": sampled({"type": "image", "data": "", "mimeType": "image/png"})}, "without text"),
        ({"result": None}, "without text"),
    ],
    ids=["refused", "malformed", "image", "null"],
)
def test_a_sample_that_brings_no_text_is_an_error_in_the_code_that_asked(reply: dict[str, Any], told: str) -> None:
    with Peer(capabilities={"sampling": {}}) as peer:
        id = peer.start("execute_python", code="llm_query('p')")
        request = peer.requests.get(timeout=60)
        peer.send({"jsonrpc": "2.0", "id": request["id"], **reply})
        result = peer.wait(id)["result"]
        assert result["isError"] is True and told in text_of(result)


def test_a_call_cancelled_while_its_sample_is_out_is_stopped() -> None:
    with Peer(capabilities={"sampling": {}}) as peer:
        id = peer.start("execute_python", code="kept = 1\nllm_query('p')")
        request = peer.requests.get(timeout=60)
        peer.notify("notifications/cancelled", {"requestId": id})
        assert peer.run("kept") == "Value: 1"
        peer.send({"jsonrpc": "2.0", "id": request["id"], "result": sampled("late")})
        assert peer.run("kept + 1") == "Value: 2"


def test_a_completion_by_sampling_carries_its_system_prompt() -> None:
    with Peer(capabilities={"sampling": {}}) as peer:
        id = peer.start("run_completion", prompt="how long?", context="abc")
        request = peer.requests.get(timeout=60)
        assert "REPL" in request["params"]["systemPrompt"]
        assert "`context` is a str of 3 characters" in str(request["params"]["messages"][0]["content"])
        assert [m["role"] for m in request["params"]["messages"]] == ["user"]
        peer.send({"jsonrpc": "2.0", "id": request["id"], "result": sampled(LOOK)})
        request = peer.requests.get(timeout=60)
        assert [m["role"] for m in request["params"]["messages"]] == ["user", "assistant", "user"]
        peer.send({"jsonrpc": "2.0", "id": request["id"], "result": sampled([{"type": "text", "text": "three"}])})
        assert text_of(peer.wait(id)["result"]).startswith("three\n")


def retry(peer: Peer, first: dict[str, Any], answers: dict[str, Any], **changed: Any) -> dict[str, Any]:
    params = {**first, "inputResponses": answers, **changed}
    return peer.ask("tools/call", params)


def test_a_modern_client_that_samples_answers_by_calling_again() -> None:
    with Peer(MODERN, capabilities={"sampling": {}}) as peer:
        first = {"name": "execute_python", "arguments": {"code": "llm_query_batched(['p', 'q']) + [llm_query('r')]"}}
        asked = peer.result("tools/call", first)
        assert asked["resultType"] == "input_required"
        prompts = {
            key: request["params"]["messages"][0]["content"]["text"] for key, request in asked["inputRequests"].items()
        }
        assert list(prompts.values()) == ["p", "q"]
        assert {request["method"] for request in asked["inputRequests"].values()} == {"sampling/createMessage"}
        # One answer is missing: it is asked for again, the other is kept.
        one, two = prompts
        state = asked["requestState"]
        again = retry(peer, first, {one: sampled("P"), "unknown": sampled("x")}, requestState=state)["result"]
        assert list(again["inputRequests"]) == [two]
        third = retry(peer, first, {two: sampled("Q")}, requestState=again["requestState"])["result"]
        (last,) = third["inputRequests"]
        done = retry(peer, first, {last: sampled("R")}, requestState=third["requestState"])["result"]
        assert (done["resultType"], text_of(done)) == ("complete", "Value: ['P', 'Q', 'R']")


def test_a_request_state_is_refused_unless_it_is_ours_fresh_and_for_this_call() -> None:
    with Peer(MODERN, capabilities={"sampling": {}}) as peer:
        first = {"name": "execute_python", "arguments": {"code": "llm_query('p')"}}
        asked = peer.result("tools/call", first)
        state = asked["requestState"]
        (key,) = asked["inputRequests"]
        handle, _, asked_round = state.partition(".")
        other_handle = handle[:-1] + "01"[handle[-1] == "0"]
        for wrong in ("", "x", "a.b", 3, [], f"{other_handle}.{asked_round}", handle, f"{handle}.2", state + "\ud800"):
            assert retry(peer, first, {key: sampled("P")}, requestState=wrong)["error"]["code"] == -32602
        other = {"name": "execute_python", "arguments": {"code": "llm_query('other')"}}
        assert retry(peer, other, {key: sampled("P")}, requestState=state)["error"]["code"] == -32602
        done = retry(peer, first, {key: sampled("P")}, requestState=state)["result"]
        assert text_of(done) == "Value: 'P'"
        assert retry(peer, first, {key: sampled("P")}, requestState=state)["error"]["code"] == -32602


def test_a_request_state_that_is_sent_twice_is_refused_and_the_first_is_answered() -> None:
    with Peer(MODERN, capabilities={"sampling": {}}) as peer:
        code = "answer = llm_query('p')\nimport time\ntime.sleep(0.5)\nanswer"
        first = {"name": "execute_python", "arguments": {"code": code}}
        asked = peer.result("tools/call", first)
        (key,) = asked["inputRequests"]
        again = {**first, "inputResponses": {key: sampled("P")}, "requestState": asked["requestState"]}
        ids = [peer.request("tools/call", again) for _ in range(3)]
        assert text_of(peer.wait(ids[0])["result"]) == "Value: 'P'"
        assert [peer.wait(id)["error"]["code"] for id in ids[1:]] == [-32602] * 2


def test_a_suspended_run_can_be_resumed_by_a_client_that_samples() -> None:
    with Peer(MODERN) as peer:
        code = "[llm_query('p'), llm_query('q')]"
        handle = suspended(peer.call("execute_python", code=code))["handle"]
        peer.capabilities = {"sampling": {}}
        first = {"name": "resume", "arguments": {"handle": handle, "answers": ["P"]}}
        asked = peer.result("tools/call", first)
        (key,) = asked["inputRequests"]
        done = retry(peer, first, {key: sampled("Q")}, requestState=asked["requestState"])["result"]
        assert text_of(done) == "Value: ['P', 'Q']"


def test_a_session_that_waits_for_its_client_says_so() -> None:
    with Peer(MODERN, capabilities={"sampling": {}}) as peer:
        first = {"name": "execute_python", "arguments": {"code": "llm_query('p')"}}
        asked = peer.result("tools/call", first)
        assert "this session still runs job_" in peer.refused("execute_python", code="1")
        (key,) = asked["inputRequests"]
        retry(peer, first, {key: sampled("P")}, requestState=asked["requestState"])
        assert peer.run("1") == "Value: 1"


def test_a_request_state_expires() -> None:
    setup = "rlm_mcp.IDLE_SECONDS = -1\nrlm_mcp.Server._expire = lambda self, now: None"
    with Peer(MODERN, capabilities={"sampling": {}}, setup=setup) as peer:
        first = {"name": "execute_python", "arguments": {"code": "llm_query('p')"}}
        asked = peer.result("tools/call", first)
        (key,) = asked["inputRequests"]
        answer = retry(peer, first, {key: sampled("P")}, requestState=asked["requestState"])
        assert answer["error"]["code"] == -32602


def test_a_modern_client_that_does_not_sample_is_handed_the_prompts() -> None:
    with Peer(MODERN) as peer:
        result = peer.call("execute_python", code="llm_query('p')")
        assert result["resultType"] == "complete"
        assert suspended(result)["requests"] == ["p"]


def test_era_and_ability_are_those_of_each_request() -> None:
    with Peer("2025-11-25", capabilities={"sampling": {}}) as peer:
        meta = {f"{META}protocolVersion": MODERN, f"{META}clientCapabilities": {}}
        call = {"name": "execute_python", "arguments": {"code": "llm_query('p')"}, "_meta": meta}
        handle = suspended(peer.ask("tools/call", call)["result"])["handle"]
        assert peer.requests.empty()
        assert peer.text("resume", handle=handle, answers=["x"]) == "Value: 'x'"


# --- a command --------------------------------------------------------------------------------------------------

CLAUDE = """\
#!/usr/bin/env python3
import json, os, sys
prompt = sys.stdin.read()
with open(os.environ["HOME"] + "/asked", "a") as file:
    file.write(json.dumps({"argv": sys.argv[1:], "prompt": prompt, "nested": "CLAUDECODE" in os.environ}) + "\\n")
%s
"""
SAY = """\
asked = "how long?" in prompt and "Output:" not in prompt
said = "```repl\\nprint(len(context))\\n```" if asked else "it is " + prompt.strip()[-1]
usage = {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 1}
print(json.dumps({"type": "result", "is_error": False, "result": said, "total_cost_usd": 0.01, "usage": usage}))"""


def fake_claude(tmp_path: Path, body: str = SAY, *, name: str = "claude") -> dict[str, str]:
    """An environment whose PATH has a `claude` that does `body`."""
    home, binaries = tmp_path / "home", tmp_path / "bin"
    home.mkdir(exist_ok=True)
    binaries.mkdir()
    program = binaries / name
    program.write_text(CLAUDE % body)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "CLAUDECODE": "1"}


def asked_of(environ: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(environ["HOME"]) / "asked").read_text().splitlines()]


def test_claude_on_the_path_answers_cells_without_a_key(tmp_path: Path) -> None:
    environ = fake_claude(tmp_path)
    with Peer(environ=environ) as peer:
        assert peer.run("llm_query_batched(['a', 'b', 'c'])") == "Value: ['it is a', 'it is b', 'it is c']"
        assert peer.run("llm_query('d', model='opus')") == "Value: 'it is d'"
    calls = asked_of(environ)
    assert sorted(call["prompt"] for call in calls) == ["a", "b", "c", "d"]
    assert calls[0]["argv"][:3] == ["-p", "--output-format", "json"] and "--strict-mcp-config" in calls[0]["argv"]
    assert calls[3]["argv"][-2:] == ["--model", "opus"]
    assert not any(call["nested"] for call in calls)


def test_claude_on_the_path_runs_a_completion(tmp_path: Path) -> None:
    with Peer(environ=fake_claude(tmp_path)) as peer:
        result = peer.call("run_completion", prompt="how long?", context="abc")
        assert result["content"][0]["text"] == "it is 3"
        facts = json.loads(result["content"][1]["text"])
        assert (facts["calls"], facts["tokens"], facts["cost_usd"]) == (2, 20, 0.02)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("sys.stderr.write('not logged in'); sys.exit(3)", "ended with status 3: not logged in"),
        ("print(json.dumps({'is_error': True, 'result': 'credit balance too low'}))", "credit balance too low"),
    ],
    ids=["status", "is_error"],
)
def test_a_command_that_fails_says_why_in_the_code_that_asked(tmp_path: Path, body: str, told: str) -> None:
    with Peer(environ=fake_claude(tmp_path, body)) as peer:
        assert told in peer.refused("execute_python", code="llm_query('p')")


def test_another_command_is_taken_from_the_environment(tmp_path: Path) -> None:
    environ = fake_claude(tmp_path, "print('plain ' + sys.argv[1] + prompt)", name="other")
    with Peer(environ={**environ, "RLM_MCP_CLI": "other 'an argument '"}) as peer:
        assert peer.run("llm_query('p')") == "Value: 'plain an argument p'"


def test_a_command_is_killed_with_the_call_that_started_it(tmp_path: Path) -> None:
    environ = fake_claude(
        tmp_path, "os.fork()\nopen(os.environ['HOME'] + '/up', 'w').close()\nimport time\ntime.sleep(600)"
    )
    with Peer(environ=environ) as peer:
        id = peer.start("execute_python", code="llm_query('p')")
        assert eventually((Path(environ["HOME"]) / "up").exists)
        before = {pid for pid in descendants(peer.process.pid) if "bin/claude" in command_of(pid)}
        assert before
        peer.notify("notifications/cancelled", {"requestId": id})
        assert eventually(lambda: not any(map(alive, before)))
        assert peer.run("1") == "Value: 1"


def test_a_command_is_killed_with_the_server(tmp_path: Path) -> None:
    environ = fake_claude(tmp_path, "open(os.environ['HOME'] + '/up', 'w').close()\nimport time\ntime.sleep(600)")
    with Peer(environ=environ) as peer:
        peer.start("execute_python", code="llm_query('p')")
        assert eventually((Path(environ["HOME"]) / "up").exists)
        below = descendants(peer.process.pid)
        assert peer.close() == 0
        assert not [pid for pid in below if alive(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


# --- a provider -------------------------------------------------------------------------------------------------


def keyed(server: scripted.Server) -> dict[str, str]:
    return {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": scripted.KEY, "RLM_PROTOCOL": "text"}


def test_a_key_in_the_environment_comes_first(server: scripted.Server, tmp_path: Path) -> None:
    server.script = lambda request: f"you said {request.last}"
    with Peer(environ={**fake_claude(tmp_path, "sys.exit(1)"), **keyed(server)}) as peer:
        assert peer.run("llm_query_batched(['a', 'b'])") == "Value: ['you said a', 'you said b']"
        assert text_of(peer.call("run_completion", prompt="c")).startswith("you said c\n")
        assert scripted.KEY not in peer.run("import json\nlist(globals())")


def test_files_of_the_project_are_the_context(server: scripted.Server, workspace: Path) -> None:
    (workspace / "a.txt").write_text("alpha")
    (workspace / "b.txt").write_text("beta")
    (workspace / ".env").write_text("KEY=1")
    (workspace.parent / "outside.txt").write_text("outside")
    (workspace / "link.txt").symlink_to(workspace.parent / "outside.txt")
    (workspace / "plain.txt").symlink_to(".env")
    server.script = ["```repl\nprint(sorted(context))\n```", "done"]
    with Peer(environ=keyed(server)) as peer:
        assert text_of(peer.call("run_completion", prompt="x", files=["[ab].txt"])).startswith("done\n")
        assert "['a.txt', 'b.txt']" in server.requests[-1].last
        for wrong in ("../outside.txt", "/etc/passwd", ".env", "link.txt", "plain.txt", "none.txt", "-", ""):
            peer.refused("run_completion", prompt="x", files=[wrong])


def test_limits_are_those_of_the_call(server: scripted.Server) -> None:
    server.script = lambda request: LOOK
    with Peer(environ=keyed(server)) as peer:
        told = peer.refused("run_completion", prompt="x", context="abc", max_iterations=2)
        assert told.startswith("MaxIterationsExceeded") and "rlm resume" in told


def test_a_providers_error_is_told(server: scripted.Server) -> None:
    server.script = lambda request: scripted.error(401, "bad key")
    with Peer(environ=keyed(server)) as peer:
        told = peer.refused("run_completion", prompt="x")
        assert told.startswith("ProviderError") and scripted.KEY not in told


def test_a_cancelled_completion_stops(server: scripted.Server) -> None:
    server.script = lambda request: scripted.hang()
    with Peer(environ=keyed(server)) as peer:
        id = peer.start("run_completion", prompt="x")
        server.wait_for(1)
        peer.notify("notifications/cancelled", {"requestId": id})
        peer.nothing_more()
        assert peer.close() == 0
