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


OVERRIDES = [
    ("claude-code", "CLAUDE_CONFIG_DIR", ".claude.json"),
    ("codex", "CODEX_HOME", "config.toml"),
    ("copilot", "COPILOT_HOME", "mcp-config.json"),
    ("gemini", "GEMINI_CLI_HOME", ".gemini/settings.json"),
    ("cline", "CLINE_DIR", "data/settings/cline_mcp_settings.json"),
    ("cline", "CLINE_DATA_DIR", "settings/cline_mcp_settings.json"),
    ("cline", "CLINE_MCP_SETTINGS_PATH", ""),
    ("goose", "GOOSE_PATH_ROOT", "config/config.yaml"),
    ("vscode", "VSCODE_PORTABLE", "user-data/User/mcp.json"),
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "home"
    path.mkdir(exist_ok=True)
    for name in ("APPDATA", "LOCALAPPDATA", "VSCODE_APPDATA", *(row[1] for row in OVERRIDES)):
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


PLACES = {
    "linux": {
        "claude-desktop": ".config/Claude/claude_desktop_config.json",
        "claude-code": ".claude.json",
        "cursor": ".cursor/mcp.json",
        "vscode": ".config/Code/User/mcp.json",
        "windsurf": ".codeium/windsurf/mcp_config.json",
        "zed": ".config/zed/settings.json",
        "codex": ".codex/config.toml",
        "gemini": ".gemini/settings.json",
        "copilot": ".copilot/mcp-config.json",
        "cline": ".cline/data/settings/cline_mcp_settings.json",
        "opencode": ".config/opencode/opencode.json",
        "goose": ".config/goose/config.yaml",
    },
    "darwin": {
        "claude-desktop": "Library/Application Support/Claude/claude_desktop_config.json",
        "vscode": "Library/Application Support/Code/User/mcp.json",
        "zed": ".config/zed/settings.json",
        "opencode": ".config/opencode/opencode.json",
        "goose": ".config/goose/config.yaml",
    },
    "win32": {
        "claude-desktop": "AppData/Roaming/Claude/claude_desktop_config.json",
        "vscode": "AppData/Roaming/Code/User/mcp.json",
        "zed": "AppData/Roaming/Zed/settings.json",
        "opencode": ".config/opencode/opencode.json",
        "goose": "AppData/Roaming/Block/goose/config/config.yaml",
    },
}


@pytest.mark.parametrize("platform", PLACES)
def test_the_file_is_where_the_system_has_it(platform: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    everywhere = {name: place for name, place in PLACES["linux"].items() if ".config" not in place}
    for name, place in {**everywhere, **PLACES[platform]}.items():
        assert file_of(name) == home / place, name


@pytest.mark.parametrize(("name", "variable", "inside"), OVERRIDES)
def test_the_clients_own_variable_says_where(
    name: str, variable: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert file_of(name) == tmp_path / "elsewhere" / inside
    if name == "claude-code":
        assert file_of(name, "local") == tmp_path / "elsewhere" / inside


def test_the_packaged_claude_desktop_of_windows_has_a_folder_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    given("claude-desktop", "{}")  # of an installation from before
    packages = home / "AppData" / "Local" / "Packages"
    inside = Path("LocalCache", "Roaming", "Claude", "claude_desktop_config.json")
    (packages / "Claude_pzs8sxrjxfjjc").mkdir(parents=True)
    assert file_of("claude-desktop") == packages / "Claude_pzs8sxrjxfjjc" / inside
    (packages / "Claude_x" / inside).parent.mkdir(parents=True)
    (packages / "Claude_x" / inside).write_text("{}")
    assert file_of("claude-desktop") == packages / "Claude_x" / inside
    assert rlm_mcp.install(["claude-desktop"], action="write") == 0
    assert "rlm" in (packages / "Claude_x" / inside).read_text()


def test_an_old_cline_keeps_its_settings_where_they_are(home: Path) -> None:
    old = "saoudrizwan.claude-dev/settings/cline_mcp_settings.json"
    path = file_of("vscode").parent / "globalStorage" / old
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert file_of("cline") == path
    (home / ".cline" / "data").mkdir(parents=True)  # it has moved them since
    assert file_of("cline") == home / ".cline/data/settings/cline_mcp_settings.json"


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
    tree = rlm_mcp.parse_jsonc(after)
    assert tree[rlm_mcp.CLIENTS[name].path[0]]["rlm"]["command"] == sys.executable
    backup = next(p for p in path.parent.iterdir() if p.suffix == ".bak")
    assert backup.read_bytes().decode() == text
    assert rlm_mcp.install([name], action="write") == 0
    assert path.read_bytes().decode() == after
    assert rlm_mcp.install([name], action="remove") == 0
    left = rlm_mcp.parse_jsonc(path.read_bytes().decode())
    expected = rlm_mcp.parse_jsonc(text)
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


# What the user has put into our entry, as (before, after) of a text in which OLD is a list of arguments and NEW ours.
ADDED = {
    "environment and options": (
        '{"command": "old", "args": ["-m", "rlm", "mcp-serve", "--workspace", "/w"], "env": {"A": "1"}, "timeout": 9}',
        {"args": ["--workspace", "/w"], "env": {"A": "1"}, "timeout": 9},
    ),
    "comments": (
        '{ // mine\n "env": {"A": "1"}, // a key\n "command": "old", "args": ["mcp-serve"], "disabled": true }',
        {"args": [], "env": {"A": "1"}, "disabled": True},
    ),
    "no arguments": ('{"command": "/bin/wrapper", "env": {}}', {"args": [], "env": {}}),
    "another's arguments": ('{"command": "old", "args": ["x"], "cwd": "/w"}', {"args": [], "cwd": "/w"}),
}


@pytest.mark.parametrize(("entry", "kept"), ADDED.values(), ids=ADDED)
@pytest.mark.parametrize("name", ["cursor", "claude-code"])
def test_what_the_user_added_to_our_entry_stays(name: str, entry: str, kept: dict[str, Any]) -> None:
    path = given(name, f'{{"mcpServers": {{"rlm": {entry}}}}}')
    assert rlm_mcp.install([name], action="write") == 0
    command, *ours = rlm_mcp.server_command()
    written = rlm_mcp.parse_jsonc(path.read_text())["mcpServers"]["rlm"]
    expected = {**kept, **rlm_mcp.CLIENTS[name].extra, "command": command, "args": [*ours, *kept["args"]]}
    assert written == expected
    assert entry.count("//") == path.read_text().count("//")
    again = path.read_bytes()
    assert rlm_mcp.install([name], action="write") == 0
    assert path.read_bytes() == again


def test_a_server_of_that_name_that_starts_no_command_is_replaced() -> None:
    path = given("vscode", '{"servers": {"rlm": {"type": "http", "url": "http://x"}}}')
    assert rlm_mcp.install(["vscode"], action="write") == 0
    assert set(entry_in(path, "vscode", "user")) == {"type", "command", "args"}


def test_the_type_and_the_tools_that_a_user_chose_stay() -> None:
    path = given("copilot", '{"mcpServers": {"rlm": {"type": "stdio", "command": "x", "tools": ["resume"]}}}')
    assert rlm_mcp.install(["copilot"], action="write") == 0
    entry = entry_in(path, "copilot", "user")
    assert (entry["type"], entry["tools"]) == ("stdio", ["resume"])


OPENCODE = {
    "1.x": ('{"mcp": {"a": {"type": "local", "command": ["a"]}}}', ("mcp",), {"enabled": True}),
    "2.x": ('{"mcp": {"servers": {"a": {"type": "local", "command": ["a"]}}}}', ("mcp", "servers"), {}),
    "2.x, empty": ('{"mcp": {"servers": {}}}', ("mcp", "servers"), {}),
    "a server that is called servers": (
        '{"mcp": {"servers": {"type": "local", "command": ["a"]}}}',
        ("mcp",),
        {"enabled": True},
    ),
    "ours is there in the form of 1.x": (
        '{"mcp": {"servers": {}, "rlm": {"type": "local", "command": ["o", "mcp-serve", "--env", "local"], '
        '"enabled": false, "environment": {"A": "1"}}}}',
        ("mcp",),
        {"enabled": False, "environment": {"A": "1"}, "tail": ["--env", "local"]},
    ),
    "ours is there in the form of 2.x": (
        '{"mcp": {"servers": {"rlm": {"type": "local", "command": ["o", "mcp-serve"], "disabled": true}}}}',
        ("mcp", "servers"),
        {"disabled": True},
    ),
}


@pytest.mark.parametrize(("text", "where", "kept"), OPENCODE.values(), ids=OPENCODE)
def test_opencode_has_two_forms_and_a_file_keeps_its_own(
    text: str, where: tuple[str, ...], kept: dict[str, Any]
) -> None:
    path = given("opencode", text)
    assert rlm_mcp.install(["opencode"], action="write") == 0
    tree = json.loads(path.read_text())
    for key in where:
        tree = tree[key]
    kept = dict(kept)
    command = [*rlm_mcp.server_command(), *kept.pop("tail", [])]
    assert tree["rlm"] == {"type": "local", "command": command, **kept}
    assert rlm_mcp.install(["opencode"], action="check") == 0
    assert rlm_mcp.install(["opencode"], action="remove") == 0
    assert "mcp-serve" not in path.read_text()


def test_opencodes_commented_file_is_the_one_that_is_edited() -> None:
    path = given("opencode", "").with_suffix(".jsonc")
    path.write_text("{ // mine\n}\n")
    assert rlm_mcp.install(["opencode"], action="write") == 0
    assert "// mine" in path.read_text() and "mcp-serve" in path.read_text()


def test_every_backup_is_kept() -> None:
    path = given("cursor", '{"n": 0}')
    for n in range(4):
        path.write_text(f'{{"n": {n}}}')
        assert rlm_mcp.install(["cursor"], action="write") == 0
    kept = sorted(p.read_text() for p in path.parent.glob("*.bak"))
    assert kept == [f'{{"n": {n}}}' for n in range(4)]
    assert not list(path.parent.glob("*.tmp"))


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


OWN_TABLE = {
    "values, comments and sub-tables": (
        '[mcp_servers.rlm] # mine\nstartup_timeout_sec = 60 # slow\ncommand = "old"\n'
        'args = [\n  "-m", "rlm",\n  "mcp-serve", # ours\n  "--workspace", "/w",\n]\nenabled = true\n\n'
        '[mcp_servers.rlm.env]\nA = "1"\n',
        {"startup_timeout_sec": 60, "enabled": True, "env": {"A": "1"}},
        ["--workspace", "/w"],
    ),
    "no arguments": ('[mcp_servers.rlm]\ncommand = "old"\n', {}, []),
    "quoted names": ('[mcp_servers."rlm"]\n"command" = "old"\n"args" = ["mcp-serve"]\n', {}, []),
    "Windows lines": ('[mcp_servers.rlm]\r\ncommand = "old"\r\ntool_timeout_sec = 5\r\n', {"tool_timeout_sec": 5}, []),
}


@pytest.mark.parametrize(("own", "kept", "tail"), OWN_TABLE.values(), ids=OWN_TABLE)
def test_toml_keeps_what_the_user_added_to_our_table(own: str, kept: dict[str, Any], tail: list[str]) -> None:
    before, after = "# top\n[a]\nx = 1\n\n", "\n# about b\n[b]\ny = 2\n"
    path = given("codex", before + own + after)
    assert rlm_mcp.install(["codex"], action="write") == 0
    written = path.read_bytes().decode()
    assert written.startswith(before) and written.endswith(after) and '"old"' not in written
    command, *ours = rlm_mcp.server_command()
    assert entry_in(path, "codex", "user") == {**kept, "command": command, "args": [*ours, *tail]}
    assert written.count("# slow") == own.count("# slow")
    assert rlm_mcp.install(["codex"], action="write") == 0
    assert path.read_bytes().decode() == written
    assert rlm_mcp.install(["codex"], action="remove") == 0
    assert path.read_text() == before.removesuffix("\n") + after


def test_toml_gives_our_table_its_heading_when_only_a_sub_table_has_one() -> None:
    path = given("codex", '[mcp_servers.rlm.env]\nA = "1"\n')
    assert rlm_mcp.install(["codex"], action="write") == 0
    assert set(entry_in(path, "codex", "user")) == {"command", "args", "env"}


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


def test_goose_is_printed_and_never_written(capsys: pytest.CaptureFixture[str]) -> None:
    path = given("goose", "extensions: {}\n")
    for action, told in (("write", "add the entry by hand"), ("remove", "take the entry out by hand")):
        assert rlm_mcp.install(["goose"], action=action) == 1
        printed = capsys.readouterr().err
        assert told in printed and "--write" not in printed
    assert path.read_text() == "extensions: {}\n"


def test_a_check_of_goose_never_recommends_a_write(capsys: pytest.CaptureFixture[str]) -> None:
    assert rlm_mcp.install(["goose"], action="check") == 1
    printed = capsys.readouterr().err
    assert "no entry 'rlm'" in printed and "--write" not in printed
    assert rlm_mcp.install(["goose"]) == 0
    entry = "extensions:" + capsys.readouterr().out.partition("extensions:")[2].partition("nothing was written")[0]
    given("goose", entry)
    assert rlm_mcp.install(["goose"], action="check") == 0
    assert "Goose: works" in capsys.readouterr().out


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
        (["/no/such/python"], "cannot be started: /no/such/python"),
        ([sys.executable, "-c", "raise SystemExit('no such option')"], "ended with status 1; its stderr ends with: no"),
        ([sys.executable, "-c", "input(); print('noise')"], "ended with status 0; it sent 1 messages that answer"),
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
