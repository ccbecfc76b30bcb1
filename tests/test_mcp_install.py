"""`rlm mcp-install`: what it writes, and that it leaves everything else of a user's file as it was."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

import rlm_mcp

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

JSON_CLIENTS = [name for name, client in rlm_mcp.CLIENTS.items() if client.form == "json"]
SCOPES = [(name, scope) for name, client in rlm_mcp.CLIENTS.items() for scope in client.files if client.form != "yaml"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    path.mkdir(exist_ok=True)
    for name in ("CODEX_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    return path


def file_of(name: str, scope: str | None = None) -> Path:
    client = rlm_mcp.CLIENTS[name]
    return Path(rlm_mcp.config_file(client, scope or next(iter(client.files))))


def given(name: str, text: str, scope: str | None = None) -> Path:
    path = file_of(name, scope)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def entry_in(path: Path, name: str, scope: str) -> Any:
    text = path.read_text()
    tree = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    for key in rlm_mcp.config_path(rlm_mcp.CLIENTS[name], scope):
        tree = tree[key]
    return tree


@pytest.mark.parametrize(("name", "scope"), SCOPES)
def test_a_new_file_holds_the_entry_alone_with_an_absolute_interpreter(name: str, scope: str) -> None:
    assert rlm_mcp.install([name], action="write", scope=scope) == 0
    path = file_of(name, scope)
    entry = entry_in(path, name, scope)
    words = entry["command"] if isinstance(entry["command"], list) else [entry["command"], *entry["args"]]
    assert words[0] == sys.executable and os.path.isabs(words[0])
    assert words[-1] == "mcp-serve"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_bytes()
    assert rlm_mcp.install([name], action="write", scope=scope) == 0
    assert path.read_bytes() == written
    assert [p.name for p in path.parent.iterdir() if p.is_file()] == [path.name]


def test_each_client_gets_its_own_shape() -> None:
    shapes = {}
    for name in ("claude-desktop", "claude-code", "vscode", "zed", "copilot", "opencode"):
        client = rlm_mcp.CLIENTS[name]
        entry = rlm_mcp.new_entry(client, name)
        shapes[name] = (client.path, {k: v for k, v in entry.items() if k not in ("command", "args")})
    assert shapes == {
        "claude-desktop": (("mcpServers",), {}),
        "claude-code": (("mcpServers",), {"type": "stdio"}),
        "vscode": (("servers",), {"type": "stdio"}),
        "zed": (("context_servers",), {"source": "custom"}),
        "copilot": (("mcpServers",), {"type": "local", "tools": ["*"]}),
        "opencode": (("mcp",), {"type": "local", "enabled": True}),
    }


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux", ".config/Claude/claude_desktop_config.json"),
        ("darwin", "Library/Application Support/Claude/claude_desktop_config.json"),
        ("win32", "AppData/Roaming/Claude/claude_desktop_config.json"),
    ],
)
def test_the_file_is_where_the_system_has_it(
    platform: str, expected: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert file_of("claude-desktop") == home / expected


JSON_FILES = {
    "empty object": "{}",
    "one line": '{"theme": "dark"}',
    "no newline at the end": '{\n  "theme": "dark"\n}',
    "tabs": '{\n\t"theme": "dark",\n\t"mcpServers": {\n\t\t"other": {"command": "x"}\n\t}\n}\n',
    "windows lines": '{\r\n    "theme": "dark",\r\n    "mcpServers": {}\r\n}\r\n',
    "byte order mark": '\ufeff{"theme": "dark"}\n',
    "comments": '// mine\n{\n  // first\n  "a": 1, // one\n  /* two */ "b": [1, 2], // last\n}\n',
    "comment after the last value": '{\n  "a": {"b": 1} // note, with a comma\n}\n',
    "servers of others": '{"mcpServers": {"one": {"command": "a", "args": []}, "two": {"command": "b"}}, "z": 1}',
    "empty container with a comment": '{"mcpServers": { // none yet\n}}',
    "odd spacing": '{ "mcpServers"  :\n\n{"one":{"command":"a"}  }   , "z":null}  \n\n',
    "escapes": '{"mcpServers": {"a\\"}{": {"command": "\\u00e9 \\\\"}}, "ü": "\\ud83d\\ude00"}',
    "large numbers": '{"n": 1.50, "big": 123456789012345678901234567890, "e": 1e400}',
}


@pytest.mark.parametrize("text", JSON_FILES.values(), ids=JSON_FILES.keys())
@pytest.mark.parametrize("name", ["claude-desktop", "vscode"])
def test_every_byte_of_others_stays_and_what_was_written_can_be_taken_out(name: str, text: str) -> None:
    path = given(name, text)
    assert rlm_mcp.install([name], action="write") == 0
    after = path.read_bytes().decode()
    without = remove_once(after, text)
    assert without is not None, after
    tree = rlm_mcp.parse_jsonc(after).value
    assert tree[rlm_mcp.CLIENTS[name].path[0]]["rlm"]["command"] == sys.executable
    backup = next(p for p in path.parent.iterdir() if p.suffix == ".bak")
    assert backup.read_bytes().decode() == text
    assert rlm_mcp.install([name], action="write") == 0
    assert path.read_bytes().decode() == after
    assert rlm_mcp.install([name], action="remove") == 0
    left = rlm_mcp.parse_jsonc(path.read_bytes().decode()).value
    expected = rlm_mcp.parse_jsonc(text).value
    key = rlm_mcp.CLIENTS[name].path[0]
    assert left == {key: {}, **expected}
    assert "\r" not in path.read_bytes().decode().replace("\r\n", "")


def remove_once(after: str, before: str) -> str | None:
    """What was inserted, if `after` is `before` with one or two insertions: the second is a comma alone."""
    start = next((i for i, (a, b) in enumerate(zip(after, before)) if a != b), min(len(after), len(before)))
    rest = before[start:]
    if after.endswith(rest):
        return after[start : len(after) - len(rest)]
    if after[start] == ",":
        return remove_once(after[:start] + after[start + 1 :], before)
    return None


def test_an_older_entry_of_ours_is_replaced_alone() -> None:
    text = '{"mcpServers": {"a": {"command": "1"}, "rlm": {"command": "old", "args": ["x"]}, "b": {"command": "2"}}}'
    path = given("cursor", text)
    assert rlm_mcp.install(["cursor"], action="write") == 0
    before, after = text.split('{"command": "old", "args": ["x"]}')
    written = path.read_text()
    assert written.startswith(before) and written.endswith(after)
    assert rlm_mcp.install(["cursor"], action="remove") == 0
    assert path.read_text() == '{"mcpServers": {"a": {"command": "1"}, "b": {"command": "2"}}}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"a": 1,, "b": 2}',
        "[]",
        "3",
        "{'a': 1}",
        '{"a": 1} x',
        '{"mcpServers": []}',
        '{"mcpServers": {"a": 1}, "mcpServers": {}}',
        '{"mcpServers": {"rlm": 1, "rlm": 2}}',
        '{"a": NaN}',
        '{"a": 01}',
        '{"a": "\n"}',
        '{"a": tru}',
        "{" * 100_000,
        "\x00\x01",
        "/* never closed",
    ],
    ids=lambda text: repr(text[:30]),
)
@pytest.mark.parametrize("action", ["write", "remove"])
def test_what_does_not_parse_is_left_alone(action: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = given("cursor", text)
    rlm_mcp.install(["cursor"], action=action)
    assert path.read_bytes() == text.encode()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if action == "write":
        assert "Traceback" not in capsys.readouterr().err


def test_what_is_not_utf8_is_left_alone() -> None:
    path = given("cursor", "")
    path.write_bytes(b'{"a": "\xff"}')
    assert rlm_mcp.install(["cursor"], action="write") == 1
    assert path.read_bytes() == b'{"a": "\xff"}'


def test_a_link_stays_a_link_and_the_mode_stays(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.json"
    real.write_text('{"a": 1}')
    real.chmod(0o640)
    path = file_of("cursor")
    path.parent.mkdir(parents=True)
    path.symlink_to(real)
    assert rlm_mcp.install(["cursor"], action="write") == 0
    assert path.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    assert json.loads(real.read_text())["a"] == 1


TOML_FILES = {
    "empty": "",
    "settings": 'model = "o3" # mine\n\n[profiles.a]\nx = 1\n',
    "no newline at the end": "[a]\nb = 1",
    "windows lines": '[a]\r\nb = "c"\r\n',
    "others": '[mcp_servers.one]\ncommand = "a"\nargs = []\n\n# about two\n[mcp_servers.two]\ncommand = "b"\n',
    "similar names": '[mcp_servers.rlm2]\ncommand = "a"\n\n[mcp_servers."x.rlm"]\ncommand = "b"\n',
}


@pytest.mark.parametrize("text", TOML_FILES.values(), ids=TOML_FILES.keys())
def test_toml_keeps_what_others_wrote(text: str) -> None:
    path = given("codex", text)
    assert rlm_mcp.install(["codex"], action="write") == 0
    after = path.read_bytes().decode()
    assert after.startswith(text)
    assert tomllib.loads(after)["mcp_servers"]["rlm"]["args"][-1] == "mcp-serve"
    assert rlm_mcp.install(["codex"], action="write") == 0
    assert path.read_bytes().decode() == after
    assert rlm_mcp.install(["codex"], action="remove") == 0
    assert path.read_bytes().decode().rstrip("\r\n") == text.rstrip("\r\n")


def test_toml_replaces_our_table_with_its_sub_tables_alone() -> None:
    before, after = "# top\n[a]\nx = 1\n\n", "\n# about b\n[b]\ny = 2\n"
    own = '[mcp_servers.rlm]\ncommand = "old"\n\n[mcp_servers.rlm.env]\nA = "1"\n'
    path = given("codex", before + own + after)
    assert rlm_mcp.install(["codex"], action="write") == 0
    written = path.read_text()
    assert written.startswith(before) and written.endswith(after) and "old" not in written
    assert rlm_mcp.install(["codex"], action="remove") == 0
    assert path.read_text() == before.removesuffix("\n") + after


@pytest.mark.parametrize(
    "text",
    [
        "= 1",
        'mcp_servers = {one = {command = "a"}}\n',
        'mcp_servers.rlm.command = "a"\n',
        "mcp_servers = 3\n",
        'x = """\n[mcp_servers.rlm]\n"""\n[mcp_servers.rlm]\ncommand = "a"\n',
    ],
    ids=["broken", "inline", "dotted", "number", "in a string"],
)
def test_toml_that_cannot_be_edited_safely_is_left_alone(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = given("codex", text)
    assert rlm_mcp.install(["codex"], action="write") == 1
    assert path.read_text() == text
    assert "rlm: Codex: " in capsys.readouterr().err


def test_print_changes_nothing_and_shows_the_file_and_the_entry(capsys: pytest.CaptureFixture[str], home: Path) -> None:
    for name in rlm_mcp.CLIENTS:
        assert rlm_mcp.install([name]) == 0
        printed = capsys.readouterr().out
        assert str(file_of(name)) in printed and sys.executable in printed
    assert rlm_mcp.install([]) == 0
    assert f"from a clone, without installing it: {shlex.join(rlm_mcp.server_command())}" in capsys.readouterr().out
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_dry_run_shows_the_change_and_makes_none(capsys: pytest.CaptureFixture[str]) -> None:
    path = given("cursor", '{\n  "a": 1\n}\n')
    assert rlm_mcp.install(["cursor"], action="dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert '+  "mcpServers": {' in lines
    assert path.read_text() == '{\n  "a": 1\n}\n'


@pytest.mark.parametrize(
    ("clients", "options", "told"),
    [
        (["emacs"], {}, "no client 'emacs'"),
        (["claude"], {}, "did you mean 'claude-desktop' or 'claude-code'?"),
        (["cursr"], {}, "did you mean 'cursor'?"),
        ([], {"action": "write"}, "which client?"),
        (["windsurf"], {"scope": "project"}, "Windsurf has no scope 'project'"),
    ],
    ids=["unknown", "begun", "mistyped", "none", "scope"],
)
def test_wrong_usage_says_what_there_is(
    clients: list[str], options: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rlm_mcp.install(clients, **options) == 2
    assert told in capsys.readouterr().err


def test_what_is_printed_says_that_nothing_was_written_and_the_clients_own_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = shlex.join(rlm_mcp.server_command())
    assert rlm_mcp.install(["claude-code"], scope="project") == 0
    *_, said, same = capsys.readouterr().out.splitlines()
    assert said == "nothing was written; rlm mcp-install claude-code --scope project --write writes it"
    assert same == f"  the same: claude mcp add --scope project rlm -- {command}"
    assert rlm_mcp.install(["claude-code"], action="write") == 0
    assert f"claude mcp add --scope user rlm -- {command}" in capsys.readouterr().out
    assert rlm_mcp.install(["claude-code"], action="remove") == 0
    removed = capsys.readouterr().out
    assert "claude mcp remove --scope user rlm" in removed and "claude mcp add" not in removed
    assert rlm_mcp.install(["goose"]) == 0
    assert "nothing was written; this file is not edited here" in capsys.readouterr().out


def test_a_broken_configuration_is_named_with_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    path = given("cursor", '{"a": \n')
    assert rlm_mcp.install(["cursor"], action="write") == 1
    assert f"rlm: Cursor: {path}: not JSON" in capsys.readouterr().err


def test_goose_is_printed_and_never_written() -> None:
    path = given("goose", "extensions: {}\n")
    assert rlm_mcp.install(["goose"], action="write") == 1
    assert path.read_text() == "extensions: {}\n"


# --- the check --------------------------------------------------------------------------------------------------


def test_the_check_starts_the_server_as_the_client_would(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("claude-code", "codex", "opencode"):
        assert rlm_mcp.install([name], action="write") == 0
        capsys.readouterr()
        assert rlm_mcp.install([name], action="check") == 0
        assert re.search(r"works \(\d+ ms", capsys.readouterr().out)


def test_the_check_needs_no_client(capsys: pytest.CaptureFixture[str]) -> None:
    assert rlm_mcp.install([], action="check") == 0
    assert "the server: works" in capsys.readouterr().out


def test_a_hostile_working_directory_is_not_on_the_servers_path(workspace: Path, tmp_path: Path) -> None:
    (workspace / "json.py").write_text("raise SystemExit('taken')")
    (workspace / "rlm_mcp.py").write_text("raise SystemExit('taken')")
    import subprocess

    done = subprocess.run(
        rlm_mcp.server_command(), cwd=workspace, input=b"", env={"HOME": str(tmp_path)}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["/no/such/python"], "does not start"),
        ([sys.executable, "-c", "pass"], "server/discover was answered with {}"),
        ([sys.executable, "-c", "input(); print('noise')"], "server/discover was answered with {}"),
    ],
    ids=["missing", "silent", "noise"],
)
def test_a_check_that_fails_says_where(command: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    given("cursor", json.dumps({"mcpServers": {"rlm": {"command": command[0], "args": command[1:]}}}))
    assert rlm_mcp.install(["cursor"], action="check") == 1
    assert told in capsys.readouterr().err


def test_a_check_without_an_entry_says_how_to_make_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert rlm_mcp.install(["cursor"], action="check") == 1
    assert "rlm mcp-install cursor --write" in capsys.readouterr().err


def test_a_server_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rlm_mcp, "CHECK_SECONDS", 0.2)
    command = {"command": sys.executable, "args": ["-c", "import time; time.sleep(600)"]}
    given("cursor", json.dumps({"mcpServers": {"rlm": command}}))
    assert rlm_mcp.install(["cursor"], action="check") == 1
