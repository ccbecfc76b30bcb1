"""What a project that may be anyone's cannot do: bring secrets into a context, redirect journals, steer a terminal."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import scripted
from conftest import need
from mcp_peer import Peer
from scripted import Server, answer_with, code
from test_cli import rlm as command
from test_mcp_models import keyed

import rlm
import rlm_tools

# --- files: by a name that the caller gives -----------------------------------------------------------------------

SECRET = "kept-from-everybody-7d1f"


@pytest.fixture
def secrets(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose files are links to what is none of its business, and a home with credentials in it."""
    monkeypatch.setenv("PLANTED", SECRET)
    home = Path(os.environ["HOME"])
    (home / ".aws").mkdir(parents=True)
    (home / ".aws" / "credentials").write_text(SECRET)
    (home / ".ssh").mkdir()
    (home / ".ssh" / "id_rsa").write_text(SECRET)
    (workspace / ".env").write_text(f"KEY={SECRET}")
    (workspace / "docs").mkdir()
    (workspace / "docs" / "deep").symlink_to(home / ".aws")
    (workspace / "home").symlink_to(home)
    (workspace / "up").symlink_to("..")
    (workspace / "kernel").symlink_to("/proc/self")
    (workspace / "twice.md").symlink_to("NOTES.md")
    for name, target in LINKS.items():
        (workspace / name).symlink_to(str(target).replace("~", str(home)))
    return workspace


LINKS = {
    "NOTES.md": "/proc/self/environ",
    "TASK.md": "/proc/thread-self/environ",
    "README.md": ".env",
    "guide.md": "~/.ssh/id_rsa",
    "config.md": "~/.aws/credentials",
    "shadow.md": "/etc/shadow",
    "kernel.md": "/sys/kernel/notes",
    "endless.md": "/dev/zero",
    "terminal.md": "/dev/tty",
    "descriptor.md": "/dev/fd/0",
}
NAMES = [*LINKS, "twice.md", "docs/deep/credentials", "home/.ssh/id_rsa", "kernel/environ", "/proc/self/environ"]
WHOLE = ["kernel", "docs/deep", "home", "up", "kernel/env*", "docs/deep/*", "home/.a*/**", "/proc/self/env*"]


@pytest.mark.parametrize("name", NAMES)
def test_no_link_leads_to_what_the_caller_did_not_name(secrets: Path, name: str) -> None:
    need("linux")
    for given in (Path(name), [Path(name)]):
        with pytest.raises(rlm.ConfigError) as raised:
            rlm.as_context(given)
        assert SECRET not in str(raised.value)
    with pytest.raises(rlm.ConfigError):
        rlm.read_prompt(name)
    with pytest.raises(rlm_tools.ToolError):
        rlm_tools.load_tools(os.path.abspath(name))


@pytest.mark.parametrize("spec", WHOLE)
def test_no_folder_and_no_glob_leads_there(secrets: Path, spec: str) -> None:
    need("linux")
    with pytest.raises(rlm.ConfigError) as raised:
        rlm.read_context([spec])
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["x", "-c", "NOTES.md"],
        ["x", "-c", "README.md", "-c", "plain.txt"],
        ["x", "--prompt-file", "README.md"],
        ["x", "--schema", "README.md"],
        ["x", "--tools", "./README.md"],
        ["x", "-c", "kernel"],
        ["batch", "README.md", "--prompt", "{KEY}"],
        ["chat", "-c", "README.md"],
    ],
    ids=" ".join,
)
def test_no_command_sends_a_secret(openai: Server, secrets: Path, arguments: list[str]) -> None:
    need("linux")
    (secrets / "plain.txt").write_text("plain")
    ran = command(*arguments, input=b"what?\n")
    assert ran.returncode == 2, ran.stderr
    assert SECRET.encode() not in ran.stdout + ran.stderr
    assert openai.requests == []


def test_links_to_plain_files_are_followed_and_files_are_named_by_their_own_name(secrets: Path) -> None:
    (secrets / "real.txt").write_text("real")
    (secrets / "link.txt").symlink_to("real.txt")
    (secrets / "far.txt").symlink_to(secrets.parent / "far.txt")
    (secrets.parent / "far.txt").write_text("far")
    (secrets / "data").symlink_to(secrets.parent / "elsewhere")
    (secrets.parent / "elsewhere").mkdir()
    (secrets.parent / "elsewhere" / "a.txt").write_text("a")
    assert rlm.read_context(["link.txt"]).value == "real"
    assert rlm.read_context(["far.txt"]).value == "far"
    assert rlm.read_context(["data/a.txt"]).value == "a"
    assert rlm.read_context(["data"]).value == {"data/a.txt": "a"}
    assert rlm.read_context([".env"]).value == f"KEY={SECRET}"  # named by its own name: the user's word


def test_a_link_that_changes_while_it_is_opened_gains_nothing(secrets: Path) -> None:
    need("linux")
    (secrets / "real.txt").write_text("real")
    stop = threading.Event()

    def swap() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            (secrets / "new").symlink_to(("real.txt", ".env", "/proc/self/environ")[n % 3])
            os.replace(secrets / "new", secrets / "swap.txt")

    thread = threading.Thread(target=swap)
    (secrets / "swap.txt").symlink_to("real.txt")
    thread.start()
    try:
        seen = set()
        for _ in range(500):
            try:
                seen.add(rlm.read_context(["swap.txt"]).value)
            except rlm.ConfigError:
                seen.add("refused")
    finally:
        stop.set()
        thread.join()
    assert seen == {"real", "refused"}


def test_files_of_mcp_stay_in_the_project(server: scripted.Server, secrets: Path) -> None:
    need("linux")
    (secrets / "a.txt").write_text("alpha")
    (secrets / "inner.txt").symlink_to("a.txt")
    server.script = lambda request: "done"
    with Peer(environ=keyed(server)) as peer:
        for name in [*NAMES, *WHOLE, ".env", "home/x", "/etc/hosts"]:
            assert SECRET not in peer.refused("run_completion", prompt="x", files=[name])
        assert not server.requests
        assert "done" in str(peer.call("run_completion", prompt="x", files=["inner.txt"]))


# --- journals: where they go ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["../elsewhere", "nowhere"])
def test_a_log_folder_that_is_a_link_is_asked_about(openai: Server, workspace: Path, target: str) -> None:
    openai.script = answer_with("ok")
    (workspace.parent / "elsewhere").mkdir()
    (workspace / "logs").symlink_to(target)
    for arguments in (["x"], ["x", "-q"], ["x", "--stream"]):
        ran = command(*arguments)
        assert (ran.returncode, ran.stdout) == (2, b"")
        assert b"is a link to" in ran.stderr and b"--log-dir" in ran.stderr
    assert openai.requests == [] and not list((workspace.parent / "elsewhere").iterdir())
    assert not (workspace / "nowhere").exists()


def test_a_log_folder_that_is_named_may_be_a_link(openai: Server, workspace: Path) -> None:
    openai.script = answer_with("ok")
    (workspace.parent / "elsewhere").mkdir()
    (workspace / "logs").symlink_to("../elsewhere")
    assert command("x", "--log-dir", "logs").returncode == 0
    assert command("x", env={"RLM_LOG_DIR": "./logs"}).returncode == 0
    assert len(list((workspace.parent / "elsewhere").glob("*.jsonl"))) == 2


def test_a_journal_that_is_a_link_is_not_written_to(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("print(1)"), "ok")
    command("x", "--max-iterations", "1")
    (journal,) = (workspace / "logs").glob("*.jsonl")
    elsewhere = workspace.parent / "mine.jsonl"
    journal.rename(elsewhere)
    journal.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    assert command("resume", journal.stem, "--max-iterations", "5").returncode == 2
    assert elsewhere.read_bytes() == before


def test_mcp_does_not_follow_a_log_folder_that_is_a_link(server: scripted.Server, workspace: Path) -> None:
    (workspace.parent / "elsewhere").mkdir()
    (workspace / "logs").symlink_to("../elsewhere")
    server.script = lambda request: "done"
    with Peer(environ=keyed(server)) as peer:
        assert "is a link to" in peer.refused("run_completion", prompt="x")
    assert not list((workspace.parent / "elsewhere").iterdir())
