"""The snippets of rlm-runtime's own page, one by one, in their synchronous form: no `await`, and `from rlm import …`.

Where the page's snippet is a program, it is executed here as a user would have it in a file; the model is the scripted
server, which is strict about what it is sent.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import need
from fake_snipara import KEY as SNIPARA_KEY
from fake_snipara import SLUG, FakeSnipara
from mcp_peer import FIBONACCI
from scripted import Request, Server, Turn, call, code

CSV = "name,amount\n" + "".join(f"n{number},{number}\n" for number in range(1, 9))
EVENT_FIELDS = {
    *("trajectory_id", "call_id", "parent_call_id", "depth", "prompt", "response"),
    *("tool_calls", "tool_results", "token_usage", "duration_ms"),
}


def rlm(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlm", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        **how,
    )


def turns(*said: Any) -> Any:
    """Each conversation gets these turns in order; whoever has no REPL is answered with "sub"."""

    def script(request: Request) -> Any:
        return said[min(request.turn, len(said)) - 1] if request.system else "sub"

    return script


@pytest.fixture
def snipara(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSnipara]:
    with FakeSnipara() as running:
        monkeypatch.setenv("SNIPARA_API_URL", running.url)
        yield running


# --- claude and the MCP server -------------------------------------------------------------------------------------


def mcp(*requests: tuple[str, dict[str, Any]]) -> list[Any]:
    """The results of these requests, sent to `rlm mcp-serve` as a client's configuration starts it."""
    opening = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    lines = [{"id": 0, "method": "initialize", "params": opening}, {"method": "notifications/initialized"}]
    lines += [{"id": number, "method": m, "params": p} for number, (m, p) in enumerate(requests, 1)]
    server = subprocess.Popen(
        [sys.executable, "-m", "rlm", "mcp-serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin and server.stdout
    results: dict[int, Any] = {}
    with server:
        for line in lines:
            server.stdin.write(json.dumps({"jsonrpc": "2.0", **line}) + "\n")
            server.stdin.flush()
            while "id" in line and line["id"] not in results:
                reply = json.loads(server.stdout.readline())
                if "result" in reply:
                    results[reply["id"]] = reply["result"]
        server.stdin.close()
        assert server.wait(20) == 0
    return [results[number] for number in range(1, len(requests) + 1)]


def test_the_four_mcp_tools_need_no_key_and_run_the_fibonacci_example() -> None:
    listed, ran, value, shown, cleared, empty = mcp(
        ("tools/list", {}),
        ("tools/call", {"name": "execute_python", "arguments": {"code": FIBONACCI}}),
        ("tools/call", {"name": "set_repl_context", "arguments": {"key": "limit", "value": "[1, 2]"}}),
        ("tools/call", {"name": "get_repl_context", "arguments": {}}),
        ("tools/call", {"name": "clear_repl_context", "arguments": {}}),
        ("tools/call", {"name": "get_repl_context", "arguments": {}}),
    )
    names = {tool["name"] for tool in listed["tools"]}
    assert {"execute_python", "get_repl_context", "set_repl_context", "clear_repl_context"} <= names
    assert "[0, 1, 1, 2, 3, 5, 8, 13]" in ran["content"][0]["text"]
    assert not any(result.get("isError") for result in (ran, value, shown, cleared, empty))
    assert "limit" in shown["content"][0]["text"] and "result" in shown["content"][0]["text"]
    assert "limit" not in empty["content"][0]["text"]


# --- quick start ---------------------------------------------------------------------------------------------------


def test_rlm_init_then_rlm_run(openai: Server, workspace: Path) -> None:
    assert rlm("init").returncode == 0
    (workspace / "data.csv").write_text(CSV)
    openai.script = turns(
        code("lines = file_read('data.csv').splitlines()\nprint(len(lines), lines[:5])"),
        "9 lines; the first is name,amount",
    )
    ran = rlm("run", "Count the lines in data.csv and show the top 5 rows")
    assert "9 ['name,amount', 'n1,1', 'n2,2', 'n3,3', 'n4,4']" in openai.requests[1].last
    assert (ran.returncode, ran.stdout) == (0, "9 lines; the first is name,amount\n")


def test_rlm_run_in_docker(openai: Server, workspace: Path) -> None:
    need("docker")
    for number in range(3):
        (workspace / f"{number}.json").write_text(json.dumps({"email": f"p{number}@example.org"}))
    openai.script = turns(
        code(
            "import glob, json\n"
            "FINAL(sorted(json.load(open(name))['email'] for name in glob.glob('/workspace/*.json')))"
        )
    )
    ran = rlm("run", "--env", "docker", "Parse the JSON files and extract all emails")
    assert (ran.returncode, ran.stderr.count("Traceback")) == (0, 0), ran.stderr
    assert [f"p{number}@example.org" in ran.stdout for number in range(3)] == [True] * 3


def test_rlm_run_v_shows_the_trajectory(openai: Server, workspace: Path) -> None:
    (workspace / "auth.py").write_text("def login(user): ...\n")
    openai.script = turns(code("print(file_search('def login'))"), "It calls login.")
    ran = rlm("run", "-v", "Explain the authentication flow in this codebase")
    assert (ran.returncode, ran.stdout) == (0, "It calls login.\n")
    assert "file_search" in ran.stderr and "turn 1" in ran.stderr


def test_python_api(openai: Server, workspace: Path) -> None:
    from rlm import RLM

    (workspace / "data.csv").write_text(CSV)
    openai.script = turns(code("print(max(file_read('data.csv').splitlines()[1:]))"), "n8 is the outlier")
    rlm = RLM(model="gpt-4o-mini", environment="local")
    result = rlm.completion("Analyze data.csv and find outliers")
    assert result.response == "n8 is the outlier"
    assert f"Calls: {result.total_calls}, Tokens: {result.total_tokens}".startswith("Calls: 2, Tokens: ")


def test_with_snipara(openai: Server, snipara: FakeSnipara) -> None:
    from rlm import RLM

    openai.script = turns(
        Turn(tool_calls=[call("context_query", query="How does authentication work?")]),
        "Tokens expire after 30 minutes.",
    )
    rlm = RLM(model="gpt-4o-mini", snipara_api_key=SNIPARA_KEY, snipara_project_slug=SLUG)
    result = rlm.completion("Explain how authentication works in this project")
    assert result.response == "Tokens expire after 30 minutes."
    assert {"context_query", "sections", "search"} <= set(openai.requests[0].tools)
    assert "30 minutes" in openai.requests[1].last


# --- configuration -------------------------------------------------------------------------------------------------

TOML = """
[rlm]
backend = "litellm"
model = "gpt-4o-mini"
environment = "docker"  # "local" or "docker"
max_depth = 4
max_subcalls = 12
token_budget = 8000
verbose = false

# Docker settings
docker_image = "python:3.11-slim"
docker_cpus = 1.0
docker_memory = "512m"

# Snipara (optional but recommended)
snipara_api_key = "rlm_..."
snipara_project_slug = "your-project"
"""
FROM_TOML = {
    "backend": "litellm",
    "model": "gpt-4o-mini",
    "environment": "docker",
    "max_depth": 4,
    "max_subcalls": 12,
    "token_budget": 8000,
    "verbose": False,
    "docker_image": "python:3.11-slim",
    "docker_cpus": 1.0,
    "docker_memory": "512m",
    "snipara_api_key": "rlm_...",
    "snipara_project_slug": "your-project",
}


def test_rlm_toml_is_taken_whole_once_it_is_trusted(workspace: Path) -> None:
    from rlm import RLM, ConfigError

    (workspace / "rlm.toml").write_text(TOML)
    with pytest.raises(ConfigError, match=r"rlm\.toml:12: 'docker_image'"):
        RLM()
    assert rlm("trust").returncode == 0
    options = RLM().options
    assert {name: getattr(options, name) for name in FROM_TOML} == FROM_TOML


def test_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlm import RLM

    given = {
        "RLM_MODEL": "gpt-4o-mini",
        "RLM_ENVIRONMENT": "docker",
        "SNIPARA_API_KEY": "rlm_...",
        "SNIPARA_PROJECT_SLUG": "my-project",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    options = RLM().options
    found = (options.model, options.environment, options.snipara_api_key, options.snipara_project_slug)
    assert found == tuple(given.values())


# --- tools, logs, the visualizer -----------------------------------------------------------------------------------


def test_custom_tools(openai: Server) -> None:
    from rlm import RLM, Tool

    async def fetch_weather(city: str) -> dict[str, Any]:
        return {"city": city, "temp": 72}

    weather_tool = Tool(
        name="get_weather",
        description="Get current weather for a city",
        parameters={
            "type": "object",
            "properties": {"city": {"type": "string", "description": "City name"}},
            "required": ["city"],
        },
        handler=fetch_weather,
    )
    openai.script = turns(
        Turn(tool_calls=[call("get_weather", city="Oslo")]), code("print(get_weather('Rome')['temp'])"), "72 in both"
    )
    result = RLM(tools=[weather_tool]).completion("How warm is it?")
    assert result.response == "72 in both"
    assert '"temp": 72' in openai.requests[1].last and "72" in openai.requests[2].last
    assert result.tool_calls[0]["name"] == "get_weather"


def test_logs(openai: Server, workspace: Path) -> None:
    openai.script = turns(code("print(llm_query('read this'))"), "done")
    assert rlm("run", "look").returncode == 0
    (path,) = (workspace / "logs").glob("*.jsonl")
    listed, shown = rlm("logs"), rlm("logs", path.stem)
    assert (listed.returncode, shown.returncode) == (0, 0)
    assert path.stem in listed.stdout
    assert "llm_query" in shown.stdout
    events = json.loads(rlm("logs", path.stem, "--json").stdout)
    assert [EVENT_FIELDS - set(event) for event in events] == [set()] * len(events)
    turn, sub = (next(e for e in events if e["event"] == "call" and e["depth"] == depth) for depth in (0, 1))
    assert (turn["parent_call_id"], sub["parent_call_id"]) == (None, turn["call_id"])


def test_visualize_with_a_folder_and_a_port(openai: Server, workspace: Path) -> None:
    openai.script = "done"
    assert rlm("run", "look at this one").returncode == 0
    viewer = subprocess.Popen(
        [sys.executable, "-m", "rlm", "visualize", "--dir", "./logs", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert viewer.stdout
    with viewer:
        url = next(word for line in viewer.stdout for word in line.split() if word.startswith("http://"))
        with urllib.request.urlopen(url) as page:
            assert "look at this one" in page.read().decode()
        viewer.terminate()


# --- reference -----------------------------------------------------------------------------------------------------


def test_every_constructor_argument_of_the_reference(tmp_path: Path) -> None:
    from rlm import RLM

    given: dict[str, Any] = {
        "model": "gpt-4o-mini",
        "backend": "litellm",
        "api_key": None,
        "environment": "local",
        "max_depth": 4,
        "max_subcalls": 12,
        "token_budget": 8000,
        "docker_image": "python:3.11-slim",
        "docker_cpus": 1.0,
        "docker_memory": "512m",
        "docker_network_disabled": True,
        "tools": None,
        "snipara_api_key": None,
        "snipara_project_slug": None,
        "snipara_api_url": None,
        "verbose": False,
        "log_dir": "./logs",
    }
    options = RLM(**given).options
    assert {name: getattr(options, name) for name in given} == given


def test_every_field_of_the_result(openai: Server) -> None:
    from rlm import RLM

    openai.script = turns(code("x = llm_query('read')"), "the answer")
    result = RLM().completion("Your prompt")
    assert result.response == str(result) == "the answer"
    assert Path("logs", f"{result.trajectory_id}.jsonl").exists()
    assert (result.total_calls, result.depth_reached, len(result.tool_calls)) == (3, 1, 1)
    assert result.total_tokens == result.usage["input"] + result.usage["output"] > 0
    assert result.duration_ms > 0


def test_the_four_exceptions(openai: Server) -> None:
    from rlm import RLM, MaxDepthExceeded, REPLExecutionError, RLMError, TokenBudgetExhausted, ToolNotFoundError

    openai.script = turns(code("rlm_query('deeper')"))
    with pytest.raises(MaxDepthExceeded) as depth:
        RLM(max_depth=0, max_errors=2).completion("Complex task...")
    assert f"Hit max depth at {depth.value.depth}" == "Hit max depth at 1"

    openai.script = turns(code("print('x' * 9000)"))
    with pytest.raises(TokenBudgetExhausted) as tokens:
        RLM(token_budget=8000).completion("Complex task...")
    assert 0 < tokens.value.tokens_used <= tokens.value.budget == 8000

    openai.script = turns(code("1 / 0"))
    with pytest.raises(REPLExecutionError) as failed:
        RLM(max_errors=2).completion("Complex task...")
    assert "ZeroDivisionError" in failed.value.stderr

    openai.script = turns(Turn(tool_calls=[call("no_such_tool")]))
    with pytest.raises(ToolNotFoundError) as unknown:
        RLM(max_errors=2).completion("Complex task...")
    assert unknown.value.tool_name == "no_such_tool"
    assert issubclass(ToolNotFoundError, RLMError)


# --- advanced examples ---------------------------------------------------------------------------------------------


def test_recursive_data_analysis(anthropic: Server, workspace: Path) -> None:
    """Claude's wire, depth 6: the root lists the files, a child of its own reads each of them."""
    from rlm import RLM

    (workspace / "data").mkdir()
    for quarter in ("q1", "q2"):
        (workspace / "data" / f"{quarter}.csv").write_text(CSV)

    def script(request: Request) -> Any:
        if "columns of" in request.prompt:
            return code("FINAL(context.splitlines()[0])")
        return code(
            "paths = [p for p in file_list('data/*.csv')]\n"
            "texts = [file_read(p) for p in paths]\n"
            "columns = rlm_query_batched(['columns of ' + p for p in paths], texts)\n"
            "FINAL('# Report: ' + ' / '.join(columns))"
        )

    anthropic.script = script
    rlm = RLM(model="claude-sonnet-4-20250514", max_depth=6)
    result = rlm.completion("Analyze all CSV files in ./data/: 1. Find common columns across files")
    assert result.response == "# Report: name,amount / name,amount"
    assert (result.total_calls, result.depth_reached) == (3, 1)


def test_code_generation_with_context(openai: Server, snipara: FakeSnipara) -> None:
    from rlm import RLM

    openai.script = turns(
        Turn(tool_calls=[call("search", pattern="password")]),
        code("print(context_query('password reset'))"),
        "def reset(): ...",
    )
    rlm = RLM(model="gpt-4o", snipara_api_key=SNIPARA_KEY, snipara_project_slug=SLUG)
    assert rlm.completion("Add a password reset endpoint").response == "def reset(): ..."
    assert len(snipara.requests) == 2


def test_streaming_output(openai: Server) -> None:
    from rlm import RLM

    text = "Quantum computers work with amplitudes. " * 5
    openai.script = text
    chunks = list(RLM(model="gpt-4o-mini").stream("Explain quantum computing"))
    assert "".join(chunks) == text
    assert len(chunks) > 1


def test_batch_processing(openai: Server) -> None:
    """What the page does with asyncio.gather: on threads, and as `batch`; both answer in order."""
    from rlm import RLM

    openai.script = lambda request: request.prompt.split("_")[1]
    rlm = RLM(model="gpt-4o-mini")
    prompts = ["Analyze report_q1.csv", "Analyze report_q2.csv", "Analyze report_q3.csv"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        results = list(pool.map(rlm.completion, prompts))
    assert [result.response for result in results] == ["q1.csv", "q2.csv", "q3.csv"]
    assert [str(result) for result in rlm.batch(prompts)] == ["q1.csv", "q2.csv", "q3.csv"]


def test_the_planted_key_is_where_it_belongs(openai: Server) -> None:
    """The other tests rest on it: the key is sent, and the environment is where it comes from."""
    openai.script = "done"
    assert rlm("hello").returncode == 0
    assert os.environ["OPENAI_API_KEY"] == scripted.KEY
    assert openai.requests[0].headers["authorization"] == f"Bearer {scripted.KEY}"
