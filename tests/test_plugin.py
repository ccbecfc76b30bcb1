"""The plug-in that `make plugin` makes: Claude Code takes it, its skill and llms.txt agree, and what they say is so."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import CI, ROOT, need
from scripted import Request, Server, code

import rlm
import rlm_mcp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GUIDE = (ROOT / "plugin" / "guide.md").read_text(encoding="utf-8")
CLIENTS = Path(
    os.environ.get("RLM_TEST_MCP")
    or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flat-rlm" / "mcp"
)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "plugin"
    before = (ROOT / "llms.txt").read_bytes()
    made = subprocess.run([sys.executable, str(ROOT / ".ci" / "plugin"), str(folder)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert (ROOT / "llms.txt").read_bytes() == before, "llms.txt is not that of plugin/guide.md: make plugin"
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- one text --------------------------------------------------------------------------------------------------------


def test_the_skill_and_llms_txt_are_the_same_text(plugin: Path) -> None:
    head, text = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", (plugin / "skills/rlm/SKILL.md").read_text(), re.S).groups()  # type: ignore[union-attr]
    assert text == GUIDE == (ROOT / "llms.txt").read_text(encoding="utf-8")
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert fields.keys() == {"name", "description"} and fields["name"] == "rlm"
    assert 0 < len(json.loads(fields["description"])) <= 1024
    assert f"\n> {json.loads(fields['description'])}\n" in text


def test_llms_txt_has_the_form_of_llmstxt_org() -> None:
    """A title, a quotation, text without headings, then sections that are lists of links."""
    head, *sections = re.split(r"^## ", GUIDE, flags=re.MULTILINE)
    assert re.match(r"# \S+\n\n> \S.*\n\n", head)
    without_code = re.sub(r"(?ms)^```.*?^```$", "", head)
    assert re.findall(r"^#.*", without_code, re.MULTILINE) == ["# rlm"]
    assert [section.partition("\n")[0] for section in sections] == ["Docs", "Optional"]
    for section in sections:
        for line in filter(None, section.splitlines()[1:]):
            assert re.fullmatch(r"- \[[^\]]+\]\(docs/[\w.-]+\.md\): .+", line), line


def test_every_link_leads_somewhere_in_the_project_and_in_the_skill(plugin: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", GUIDE):
        assert (ROOT / link).is_file() and (plugin / "skills/rlm" / link).is_file(), link


# --- what it says is so ----------------------------------------------------------------------------------------------

PAYMENTS = "customer,status\nAcme,failed\nBrix,paid\nAcme,failed\n"
ANSWERS = {"Which customer": "Acme, twice", "Where is the retry": "in client.py", "Why did": "no funds"}


def model(request: Request) -> Any:
    """Looks, then answers."""
    answer = next(answer for words, answer in ANSWERS.items() if request.prompt.startswith(words))
    return code("print(str(context)[:20])") if request.turn == 1 and "Why" not in request.prompt[:4] else answer


def commands() -> list[str]:
    return [command.strip() for command in re.findall(r"^```sh\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)]


def run(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    how = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 60} | how
    return subprocess.run([sys.executable, "-m", "rlm", *words], **how)


def test_the_worked_commands_work(openai: Server, workspace: Path) -> None:
    openai.script = model
    (workspace / "payments.csv").write_text(PAYMENTS)
    (workspace / "src").mkdir()
    (workspace / "src" / "client.py").write_text("def retry(): ...\n")
    first, second, third = commands()
    name, *words = shlex.split(first)
    done = run(*words)
    assert (name, done.returncode, done.stdout) == ("rlm", 0, "Acme, twice\n"), done.stderr
    done = run(*shlex.split(second)[1:])
    result = json.loads(done.stdout)
    for key in re.findall(r"`(\w+)`", GUIDE.partition("as one JSON object (")[2].partition(")")[0]):
        assert key in result
    assert (done.returncode, result["status"], result["response"]) == (0, "answered", "in client.py")
    for already in (0, 3):
        before = len(openai.requests)
        done = run(*shlex.split(third)[1:])
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
        assert [row["response"] for row in rows] == ["no funds"] * 3
        assert len(openai.requests) - before == 3 - already
    assert rows[0]["prompt"] == "Why did the payment of Acme fail? Status: failed"


def test_failures_read_as_it_says(openai: Server) -> None:
    openai.script = lambda request: code("x = 1") if request.tools else ""
    stopped = run("q", "--max-iterations", "2")
    assert stopped.returncode == 3
    [resume] = re.findall(r"next: (rlm resume (\S+) --max-iterations \d+)", stopped.stderr)
    assert run("logs", resume[1]).returncode == 0
    wrong = run("q", "--max-iteration", "2")
    assert wrong.returncode == 2 and "next: " in wrong.stderr
    openai.script = lambda request: scripted.error(401)
    failed = run("q")
    assert failed.returncode == 1 and re.match(r"rlm: .*\n(  .*\n)?  next: .*\n", failed.stderr)


# --- the plug-in -----------------------------------------------------------------------------------------------------


def test_manifests_name_one_version_and_what_is_there(plugin: Path) -> None:
    manifest, shop = read(plugin / ".claude-plugin/plugin.json"), read(plugin / ".claude-plugin/marketplace.json")
    gemini = read(plugin / "gemini-extension.json")
    assert manifest["version"] == gemini["version"] == rlm.__version__
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", manifest["name"]) and manifest["name"] == gemini["name"]
    [offered] = shop["plugins"]
    assert (offered["name"], offered["source"]) == (manifest["name"], "./")
    for servers, root in ((read(plugin / ".mcp.json"), "${CLAUDE_PLUGIN_ROOT}"), (gemini, "${extensionPath}")):
        [entry] = servers["mcpServers"].values()
        assert (plugin / entry["args"][-1].removeprefix(f"{root}/")).is_file()
    assert sorted(path.name for path in (plugin / ".claude-plugin").iterdir()) == ["marketplace.json", "plugin.json"]


def test_its_server_serves_with_what_its_head_names(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = plugin / "server" / "server.py"
    block = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", program.read_text(), re.MULTILINE)
    assert block
    declared = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert declared == {"requires-python": project["requires-python"], "dependencies": project["dependencies"]}
    monkeypatch.delenv("PYTHONPATH")
    initialize = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    lines = [{"id": 1, "method": "initialize", "params": initialize}, {"id": 2, "method": "tools/list", "params": {}}]
    given = "".join(json.dumps({"jsonrpc": "2.0", **line}) + "\n" for line in lines)
    how: dict[str, Any] = {"input": given, "capture_output": True, "text": True, "timeout": 60}
    done = subprocess.run([sys.executable, str(program)], **how)
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["result"]["serverInfo"]["version"] == rlm.__version__
    assert [tool["name"] for tool in second["result"]["tools"]] == list(rlm_mcp.TOOLS)


@pytest.mark.slow
def test_claude_code_takes_it_and_reaches_its_server(plugin: Path) -> None:
    need("uv")
    claude = next((CLIENTS / "claude" / "node_modules" / "@anthropic-ai").glob("claude-code-*/claude"), None)
    if claude is None:
        (pytest.fail if CI else pytest.skip)("Claude Code is not here: .ci/mcp-clients fetches it")

    def says(*words: str) -> str:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        kept |= {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
        done = subprocess.run([str(claude), *words], capture_output=True, text=True, timeout=100, env=kept)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    for name in ("plugin.json", "marketplace.json"):
        assert "Validation passed\n" in says("plugin", "validate", str(plugin / ".claude-plugin" / name))
    says("plugin", "marketplace", "add", str(plugin))
    says("plugin", "install", "rlm@flat-rlm")
    assert re.search(r"Skills \(1\)  rlm\n(.*\n)*?  MCP servers \(1\)  rlm", says("plugin", "details", "rlm@flat-rlm"))
    assert re.search(r"plugin:rlm:rlm: uv run .*Connected", says("mcp", "list"))
