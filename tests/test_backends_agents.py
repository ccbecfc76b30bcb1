"""Coding agents as models: programs on the PATH that behave as the real ones did when they were asked.

What they print was taken from Claude Code 2.1.197, Codex 0.171.0 and Gemini CLI 0.61.0, run against a scripted API.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
from conftest import alive

import rlm_backends
from rlm_backends import BackendError, HTTPBackend, Reply, SubprocessBackend, connect

AGENTS = ("claude", "codex", "gemini")
SECRET = "sk-planted-" + "0123456789" * 3
ASK = [{"role": "user", "content": "how wide is the river?"}]
TALK = [
    {"role": "system", "content": "be terse"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "again"},
]

PROGRAM = """\
#!{python}
import json, os, sys
prompt = sys.stdin.read()
here = os.getcwd()
above = os.path.dirname(here)
seen = {{
    "argv": sys.argv[1:], "prompt": prompt, "env": dict(os.environ), "folder": here, "files": os.listdir(here),
    "system": open(above + "/system.md").read() if os.path.exists(above + "/system.md") else None,
    "policy": open(above + "/policy.toml").read() if os.path.exists(above + "/policy.toml") else None,
    "session": os.getpid() == os.getsid(0), "mode": os.stat(above).st_mode & 0o777,
}}
with open({log!r}, "a") as file:
    file.write(json.dumps(seen) + "\\n")
{body}
"""


def printing(text: str, status: int = 0, stream: str = "stdout") -> str:
    return f"sys.{stream}.write({text!r})\nsys.exit({status})"


def claude(result: str = "PONG", **more: Any) -> str:
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 30,
        "output_tokens": 3,
        "service_tier": "standard",
    }
    body = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "result": result}
    body |= {"stop_reason": "end_turn", "total_cost_usd": 0.0125, "usage": usage, "permission_denials": []}
    return json.dumps({**body, "modelUsage": {"claude-sonnet-5": {"inputTokens": 10}}, **more})


def codex(*items: dict[str, Any], usage: dict[str, int] | None = None) -> str:
    counts = {"input_tokens": 42, "cached_input_tokens": 30, "cache_write_input_tokens": 2, "output_tokens": 3}
    counts["reasoning_output_tokens"] = 1
    said = [{"type": "item.completed", "item": {"id": "item_0", "type": "agent_message", "text": "PONG"}}]
    events = [{"type": "thread.started", "thread_id": "01a2"}, {"type": "turn.started"}, *(items or said)]
    if usage is None:
        events.append({"type": "turn.completed", "usage": counts})
    return "".join(json.dumps(event) + "\n" for event in events)


def gemini(response: str = "PONG", **more: Any) -> str:
    tokens = {"input": 12, "prompt": 40, "candidates": 2, "total": 43, "cached": 30, "thoughts": 1, "tool": 2}
    model = {"api": {"totalRequests": 1, "totalErrors": 0}, "tokens": tokens}
    body = {"session_id": "38c1", "response": response, "stats": {"models": {"gemini-x": model}, "tools": {}}}
    return json.dumps({**body, **more}, indent=2)


ANSWERS = {"claude": claude(), "codex": codex(), "gemini": gemini()}


class Desk:
    """A PATH with fake programs on it, and what they were given."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.log, self.home = folder / "bin", folder / "seen", folder / "home"
        self.bin.mkdir()
        self.home.mkdir()
        self.environ = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "HOME": str(self.home)}

    def program(self, name: str, body: str) -> str:
        path = self.bin / name
        path.write_text(PROGRAM.format(python=sys.executable, log=str(self.log), body=body))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    def seen(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def ask(self, model: str, messages: Any = ASK, **how: Any) -> Reply:
        return connect(model, environ=self.environ).complete(messages, **how)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    made = Desk(tmp_path)
    for name, printed in ANSWERS.items():
        made.program(name, printing(printed))
    return made


def refused(desk: Desk, model: str, messages: Any = ASK, **how: Any) -> BackendError:
    with pytest.raises(BackendError) as caught:
        desk.ask(model, messages, **how)
    return caught.value


# --- an answer ---------------------------------------------------------------------------------------------------

USAGE = {"input": 42, "output": 3, "cached": 30, "cache_write": 2, "reasoning": 0}


@pytest.mark.parametrize(
    ("name", "usage", "cost", "model"),
    [
        ("claude", USAGE, 0.0125, "claude-sonnet-5"),
        ("codex", {**USAGE, "reasoning": 1}, None, "cli:codex"),
        ("gemini", {**USAGE, "cache_write": 0, "reasoning": 1}, None, "gemini-x"),
    ],
)
def test_an_answer_with_its_usage_and_cost(desk: Desk, name: str, usage: Any, cost: float | None, model: str) -> None:
    heard: list[str] = []
    reply = desk.ask(f"cli:{name}", on_text=heard.append)
    assert reply == Reply("PONG", [], usage, "stop", model, cost, None, 1)
    assert heard == ["PONG"]


@pytest.mark.parametrize("name", AGENTS)
def test_a_single_prompt_goes_in_as_it_is_and_never_as_an_argument(desk: Desk, name: str) -> None:
    (seen,) = [desk.ask(f"cli:{name}"), desk.seen()][1]
    assert (seen["prompt"], seen["system"], seen["files"]) == (ASK[0]["content"], "Answer the prompt.", [])
    assert (seen["session"], seen["mode"]) == (True, 0o700)
    assert not [word for word in seen["argv"] if "river" in word]
    assert not Path(seen["folder"]).exists()


@pytest.mark.parametrize("name", AGENTS)
def test_a_conversation_is_one_prompt_with_roles_and_the_system_prompt_a_file(desk: Desk, name: str) -> None:
    desk.ask(f"cli:{name}", TALK)
    (seen,) = desk.seen()
    assert seen["prompt"] == "[user]\nhello\n\n[assistant]\nhi\n\n[user]\nagain"
    system, _, rule = seen["system"].partition("\n\n")
    assert (system, rule[:27]) == ("be terse", "The prompt is a conversatio")
    assert "be terse" not in " ".join(seen["argv"])


TOOLS_OFF = {
    "claude": [["--tools", ""], ["--strict-mcp-config"], ["--safe-mode"], ["--max-turns", "1"]],
    "codex": [["--sandbox", "read-only"], ["-c", "features.shell_tool=false"], ["-c", "web_search=disabled"]],
    "gemini": [["--allowed-mcp-server-names", "none"], ["--extensions", "none"]],
}


@pytest.mark.parametrize("name", AGENTS)
def test_its_own_tools_are_off(desk: Desk, name: str) -> None:
    desk.ask(f"cli:{name}")
    (seen,) = desk.seen()
    for words in TOOLS_OFF[name]:
        at = [n for n in range(len(seen["argv"])) if seen["argv"][n : n + len(words)] == words]
        assert at, (words, seen["argv"])
    folder = os.path.dirname(seen["folder"])
    if name == "gemini":
        assert seen["argv"][-2:] == ["--policy", f"{folder}/policy.toml"]
        assert seen["policy"].splitlines()[1:3] == ['toolName = "*"', 'decision = "deny"']
        assert seen["env"]["GEMINI_SYSTEM_MD"] == f"{folder}/system.md"
    else:
        assert any(f"{folder}/system.md" in word for word in seen["argv"])


@pytest.mark.parametrize(
    ("model", "flag", "name"),
    [
        ("cli:claude/sonnet", ["--model", "sonnet"], "cli:claude/sonnet"),
        ("cli:claude:sonnet", ["--model", "sonnet"], "cli:claude/sonnet"),
        ("cli:codex/gpt-5.5", ["--model", "gpt-5.5"], "cli:codex/gpt-5.5"),
        ("cli:gemini/gemini-2.5-flash", ["--model", "gemini-2.5-flash"], "cli:gemini/gemini-2.5-flash"),
    ],
)
def test_a_model_can_be_named(desk: Desk, model: str, flag: list[str], name: str) -> None:
    backend = connect(model, environ=desk.environ)
    backend.complete(ASK)
    assert (backend.model, desk.seen()[0]["argv"][-2:]) == (name, flag)
    other = backend.with_model("other-1")
    assert (other.model, other.with_model(name).model) == (f"{name.partition('/')[0]}/other-1", name)


@pytest.mark.parametrize("name", AGENTS)
def test_no_key_goes_where_it_does_not_belong(desk: Desk, name: str) -> None:
    own = set(rlm_backends._AGENTS[name].keys)
    keys = rlm_backends.key_variables() | own
    others = {"RLM_API_KEY": SECRET, "SNIPARA_API_KEY": SECRET, "CLAUDECODE": "1", "CLAUDE_CODE_ENTRYPOINT": "cli"}
    desk.environ |= {**dict.fromkeys(keys, SECRET), **others, "ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "LANG": "C"}
    desk.ask(f"cli:{name}")
    (seen,) = desk.seen()
    assert {variable for variable, value in seen["env"].items() if value == SECRET} == own
    assert {"CLAUDECODE", "CLAUDE_CODE_ENTRYPOINT"}.isdisjoint(seen["env"])
    assert (seen["env"]["LANG"], seen["env"]["HOME"]) == ("C", str(desk.home))


CLOUD = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
OTHERS = (
    *CLOUD, "NPM_TOKEN", "GH_TOKEN", "PGPASSWORD", "DB_PASSWORD_FILE", "CLIENT_SECRET", "SOME_API_KEY", "GITHUB_PAT",
    "AZURE_STORAGE_ACCOUNT_KEY", "stripe_secret_key", "ANTHROPIC_FOUNDRY_API_KEY", "SMTP_PASS", "TOKEN",
)  # fmt: skip
SETTINGS = {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": "9", "CLAUDE_CODE_API_KEY_HELPER_TTL_MS": "9", "SSH_AUTH_SOCK": "/s"}
SETTINGS |= {"GOOGLE_APPLICATION_CREDENTIALS": "/c.json", "AWS_PROFILE": "p", "AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}


@pytest.mark.parametrize("name", AGENTS)
def test_what_looks_like_anothers_secret_stays_here_and_settings_go_on(desk: Desk, name: str) -> None:
    own = rlm_backends._AGENTS[name].keys
    desk.environ |= {**dict.fromkeys((*OTHERS, *own), SECRET), **SETTINGS}
    desk.ask(f"cli:{name}")
    (seen,) = desk.seen()
    assert {variable for variable, value in seen["env"].items() if value == SECRET} == set(own)
    assert {key: seen["env"][key] for key in SETTINGS} == SETTINGS


def test_the_keys_of_a_cloud_go_to_claude_if_it_is_told_to_use_that(desk: Desk) -> None:
    desk.environ |= {**dict.fromkeys(OTHERS, SECRET), "CLAUDE_CODE_USE_BEDROCK": "1"}
    desk.ask("cli:claude")
    assert {variable for variable, value in desk.seen()[0]["env"].items() if value == SECRET} == set(CLOUD)


def test_a_long_prompt_with_anything_in_it_arrives_whole(desk: Desk) -> None:
    text = "é\x00\n\x1b[2J" + "x" * 3_000_000
    assert desk.ask("cli:claude", [{"role": "user", "content": text}]).text == "PONG"
    assert desk.seen()[0]["prompt"] == text
    desk.ask("cli:claude", [{"role": "user", "content": "\ud800"}])
    assert desk.seen()[1]["prompt"] == "?"
    error = refused(desk, "cli:claude", [{"role": "user", "content": "é" * 4_000_001}])
    assert (error.code, len(desk.seen())) == ("context_length", 2)


def test_parameters_are_said_to_be_left_out(desk: Desk) -> None:
    backend = connect("cli:claude", environ=desk.environ)
    with pytest.warns(RuntimeWarning, match="cli:claude takes no request parameters: 'temperature'"):
        backend.complete(ASK, params={"temperature": 0})
    backend.complete(ASK, params={"temperature": 0}, defaults={"stop": ["x"]})
    assert len(desk.seen()) == 2


def test_what_is_kept_is_not_asked_for_twice(desk: Desk, tmp_path: Path) -> None:
    for model in ("cli:claude", "cli:claude", "cli:claude/opus"):
        connect(model, environ=desk.environ, cache=str(tmp_path / "cache")).complete(ASK)
    assert len(desk.seen()) == 2


def test_no_tools_and_no_images(desk: Desk) -> None:
    backend = connect("cli:claude", environ=desk.environ)
    assert (backend.supports_tools, backend.supports_images, backend.parameters) == (False, False, None)
    backend.inspect()
    image = rlm_backends.image_part(b"\x89PNG\r\n\x1a\n")
    assert refused(desk, "cli:claude", [{"role": "user", "content": [image]}]).code == "no_images"


# --- no answer ---------------------------------------------------------------------------------------------------

NOT_LOGGED_IN = claude("Not logged in · Please run /login", is_error=True, total_cost_usd=0, modelUsage={})
INVALID = json.dumps('{"error": {"message": "invalid x-api-key", "code": 401}}')


def failed(message: str) -> dict[str, Any]:
    return {"type": "turn.failed", "error": {"message": message}}


RETRYING = [{"type": "error", "message": f"Reconnecting... {n}/5 (unexpected status 401 Unauthorized)"} for n in (1, 2)]
GEMINI_ERROR = (
    'Warning: 256-color support not detected.\nError: {\n  status: 401\n}\n{\n  "session_id": "55c7",\n  "error": {\n'
    '    "type": "Error",\n    "message": %s,\n    "code": %d\n  }\n}\n'
)
FAILURES: list[tuple[str, str, str, str, str, str]] = [
    ("claude signed out", "claude", printing(NOT_LOGGED_IN, 1), "auth", "Not logged in", "sign in once: claude"),
    (
        "claude's limit",
        "claude",
        printing(claude("Claude AI usage limit reached|1760000000", is_error=True), 1),
        "quota",
        "usage limit reached",
        "wait until the plan's limit is reset",
    ),
    (
        "claude's window",
        "claude",
        printing(claude("Prompt is too long", is_error=True), 1),
        "context_length",
        "Prompt is too long",
        "give it less",
    ),
    (
        "claude is older",
        "claude",
        printing("error: unknown option '--safe-mode'\n", 1, "stderr"),
        "config",
        "unknown option",
        "update it: npm install -g @anthropic-ai/claude-code",
    ),
    (
        "codex signed out",
        "codex",
        printing(codex(*RETRYING, failed("unexpected status 401 Unauthorized"), usage={}), 1),
        "auth",
        "ended with status 1: unexpected status 401 Unauthorized",
        "sign in once: codex login",
    ),
    (
        "codex is limited",
        "codex",
        printing(codex(failed("exceeded retry limit, last status: 429 Too Many"), usage={}), 1),
        "rate",
        "429 Too Many",
        "wait, or lower max_parallel",
    ),
    (
        "codex's plan",
        "codex",
        printing(codex({"type": "error", "message": "You've hit your usage limit. Try again at 3 PM."}, usage={}), 1),
        "quota",
        "hit your usage limit",
        "wait until the plan's limit is reset",
    ),
    (
        "gemini signed out",
        "gemini",
        printing(GEMINI_ERROR % ('"Please set an Auth method in your settings.json"', 41), 41, "stderr"),
        "auth",
        "ended with status 41: Please set an Auth method",
        "sign in once: gemini",
    ),
    (
        "gemini's API",
        "gemini",
        printing(GEMINI_ERROR % (INVALID, 401), 145, "stderr"),
        "auth",
        "invalid x-api-key (401)",
        "sign in once: gemini",
    ),
    ("says nothing", "claude", "sys.exit(0)", "server", "it printed no answer", ""),
    ("crashes", "codex", "os.abort()", "server", "ended with status -6: it printed no answer", ""),
    ("prints a page", "gemini", printing("<html>"), "server", "<html>", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "body", "code", "words", "hint"), [case[1:] for case in FAILURES], ids=[case[0] for case in FAILURES]
)
def test_a_failure_says_what_the_program_said_and_what_to_do(
    desk: Desk, name: str, body: str, code: str, words: str, hint: str
) -> None:
    desk.program(name, body)
    error = refused(desk, f"cli:{name}")
    assert (error.code, words in str(error), error.hint[: len(hint)]) == (code, True, hint), error
    assert str(error).startswith(f"cli:{name}")


BY_HAND = {
    "claude": "try it by hand: echo hello | claude -p --output-format json; rlm was tested with claude 2.1.197",
    "codex": "try it by hand: echo hello | codex exec --json; rlm was tested with codex 0.171.0",
    "gemini": "try it by hand: echo hello | gemini --output-format json; rlm was tested with gemini 0.61.0",
}


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("status", [0, 1])
@pytest.mark.parametrize("printed", ["{{{{", "[1,2]", '{"result": null}', '{"result":\n null}', ""])
def test_what_is_not_an_answer_is_called_so(desk: Desk, name: str, status: int, printed: str) -> None:
    desk.program(name, printing(printed, status))
    error = refused(desk, f"cli:{name}")
    ended = f"cli:{name} ended with status 1" if status else f"cli:{name}"
    what = f"it printed what is not an answer: {' '.join(printed.split())}" if printed else "it printed no answer"
    assert (str(error), error.hint) == (f"{ended}: {what}", BY_HAND[name])


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("sys.exit('boom')", "cli:claude ended with status 1: boom"),
        (printing(claude("x"), 3), "cli:claude ended with status 3: although it printed an answer"),
        (printing(claude(" " * 700, is_error=True)), "cli:claude: success"),
        (printing(json.dumps({"is_error": True, "subtype": "error_max_turns"})), "cli:claude: error_max_turns"),
        ("while True: sys.stdout.write('x' * 1000_000)", "cli:claude printed more than 32 MB"),
    ],
    ids=["complains", "answers", "blank", "no text", "no end"],
)
def test_a_failure_without_a_known_cause_says_what_to_try(desk: Desk, body: str, told: str) -> None:
    desk.program("claude", body)
    error = refused(desk, "cli:claude")
    assert (str(error), error.hint) == (told, BY_HAND["claude"])


def test_a_command_of_the_users_own_that_fails_says_what_to_try(desk: Desk) -> None:
    words = [desk.program("mine", "sys.exit(2)"), "--key", "hidden"]
    with pytest.raises(BackendError) as caught:
        SubprocessBackend(words).complete(ASK)
    assert str(caught.value) == "mine ended with status 2: it printed no answer"
    assert caught.value.hint == "try it by hand: echo hello | mine …"


ODD: list[Any] = [None, 5, [1], "x", {"a": 1}, {"models": 3}, {"models": {"m": 4}}, float("nan"), True]


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_an_answer_is_kept_whatever_is_beside_it(desk: Desk, odd: Any) -> None:
    beside = dict.fromkeys(("usage", "total_cost_usd", "modelUsage", "stop_reason", "permission_denials"), odd)
    said = {"type": "item.completed", "item": {"type": "agent_message", "text": "PONG"}}
    noise = [{"type": "item.completed", "item": odd}, {"type": odd}, odd, {"type": "turn.completed", "usage": odd}]
    desk.program("claude", printing(claude(**beside)))
    desk.program("codex", printing("a warning\n" + codex(said, *noise, usage={})))
    desk.program("gemini", printing(gemini(stats=odd)))
    for name in AGENTS:
        reply = desk.ask(f"cli:{name}")
        assert (reply.text, reply.cost_usd, reply.usage["estimated"]) == (
            "PONG",
            5.0 if odd == 5 and name == "claude" else None,
            True,
        )


def test_a_last_message_of_codex_that_cannot_be_read_is_not_replaced_by_an_earlier_one(desk: Desk) -> None:
    said = {"type": "item.completed", "item": {"type": "agent_message", "text": "I look first"}}
    for last in (
        '{"type": "item.completed", "item": {"type": "agent_message", "te\n',
        json.dumps({"type": "item.completed", "item": {"type": "agent_message", "text": 7}}) + "\n",
    ):
        desk.program("codex", printing(codex(said, usage={}) + last))
        assert "it printed what is not an answer" in str(refused(desk, "cli:codex"))


def test_a_warning_of_codex_is_no_failure(desk: Desk) -> None:
    note = {
        "type": "item.completed",
        "item": {"id": "item_0", "type": "error", "message": "Codex is ignoring 1 setting"},
    }
    said = [
        {"type": "item.completed", "item": {"type": "agent_message", "text": text}} for text in ("thinking", "PONG")
    ]
    desk.program("codex", printing(codex(note, *RETRYING, *said)))
    assert desk.ask("cli:codex").text == "PONG"


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    "printed",
    [
        b"", b"null", b"[]", b"{}", b"[" * 200_000, b"\xff\xfe", b'{"result": null, "response": {}, "type": 1}',
        b'{"type": "item.completed", "item": 3}', b'{"result": [1], "is_error": true}' * 2, b"[1," * 400_000,
        b'{"response": 1, "stats": {"models": [1]}}', b'{"error": 7}', b'{"type": "turn.failed", "error": 7}',
    ],
    ids=lambda printed: repr(printed[:20]),
)  # fmt: skip
def test_output_that_is_nothing_of_the_kind_is_no_answer(desk: Desk, name: str, printed: bytes) -> None:
    (desk.home / "out").write_bytes(printed)
    desk.program(name, "sys.stdout.buffer.write(open(os.environ['HOME'] + '/out', 'rb').read())")
    assert refused(desk, f"cli:{name}").code in ("server", "auth", "config")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_without_end_is_stopped(desk: Desk, stream: str) -> None:
    desk.program("claude", f"while True: sys.{stream}.write('x' * 1000_000)")
    error = refused(desk, "cli:claude")
    assert (error.code, str(error)) == ("protocol", "cli:claude printed more than 32 MB")


def test_a_secret_in_what_it_says_is_not_shown(desk: Desk) -> None:
    desk.environ["ANTHROPIC_API_KEY"] = "not-shaped-like-a-key-0123456789"
    desk.program("claude", "sys.stderr.write(os.environ['ANTHROPIC_API_KEY'] + ' is invalid\\x1b[2J'); sys.exit(1)")
    error = refused(desk, "cli:claude")
    shown = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert str(error) == "cli:claude ended with status 1: [redacted] is invalid [2J"
    assert desk.environ["ANTHROPIC_API_KEY"] not in shown


WAIT = "import time\nos.fork()\nopen(os.environ['HOME'] + f'/up{os.getpid()}', 'w').close()\ntime.sleep(600)"


def started(desk: Desk) -> list[int]:
    """The processes of a program that has started a second one."""
    end = time.monotonic() + 20
    while len(found := [int(path.name[2:]) for path in desk.home.glob("up*")]) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return found


def survivors(pids: list[int]) -> list[int]:
    """Those that live on; the kernel may take a moment to end what was killed."""
    end = time.monotonic() + 10
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < end:
        time.sleep(0.01)
    return left


@pytest.mark.parametrize("how", ["cancel", "deadline", "timeout"])
def test_a_program_is_killed_with_all_that_it_started(desk: Desk, how: str) -> None:
    desk.program("claude", WAIT)
    cancel, errors = threading.Event(), list[BackendError]()
    limits = {"cancel": cancel, "deadline": time.monotonic() + 3 if how == "deadline" else None}
    backend = connect("cli:claude", environ=desk.environ, timeout=3 if how == "timeout" else 600)

    def ask() -> None:
        with pytest.raises(BackendError) as caught:
            backend.complete(ASK, **limits)
        errors.append(caught.value)

    asking = threading.Thread(target=ask)
    asking.start()
    below = started(desk)
    if how == "cancel":
        cancel.set()
    asking.join(20)
    assert [error.code for error in errors] == ["cancelled" if how == "cancel" else "timeout"]
    assert (len(below), survivors(below)) == (2, [])


def test_programs_end_with_the_process(desk: Desk) -> None:
    desk.program("claude", WAIT)
    source = (
        "import threading, time, os, glob, rlm_backends as b\n"
        "ask = lambda: b.connect('cli:claude').complete([{'role': 'user', 'content': 'x'}])\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "while len(glob.glob(os.environ['HOME'] + '/up*')) < 2: time.sleep(0.01)\n"
    )
    subprocess.run([sys.executable, "-c", source], env={**os.environ, **desk.environ}, timeout=60, check=True)
    assert survivors(started(desk)) == []


def test_four_run_at_once(desk: Desk) -> None:
    count = "import time\nhome = os.environ['HOME']\nopen(f'{home}/run{os.getpid()}', 'w').close()\n"
    count += "n = len([f for f in os.listdir(home) if f.startswith('run')])\ntime.sleep(0.3)\n"
    count += "os.unlink(f'{home}/run{os.getpid()}')\n" + printing(claude("N")).replace("'N'", "str(n)")
    desk.program("claude", count.replace('"result": "N"', '"result": "\' + str(n) + \'"'))
    backend = connect("cli:claude", environ=desk.environ)
    widths: list[int] = []
    threads = [threading.Thread(target=lambda: widths.append(int(backend.complete(ASK).text))) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(widths) == 9
    assert 2 <= max(widths) <= 4


# --- what cannot be asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "told", "hint"),
    [
        ("cli:", "unknown coding agent 'cli:'", "cli:claude or cli:codex or cli:gemini"),
        ("cli:bash", "unknown coding agent 'cli:bash'", "cli:claude or cli:codex or cli:gemini"),
        ("cli:../claude", "unknown coding agent 'cli:../claude'", "cli:claude or"),
        ("cli:claude/--evil", "invalid model name '--evil'", "cli:claude/MODEL"),
        ("cli:claude/a b", "invalid model name 'a b'", "cli:claude/MODEL"),
        (
            "cli:codex",
            "'cli:codex' needs the program 'codex', which is not on the PATH",
            "npm install -g @openai/codex",
        ),
    ],
)
def test_a_name_that_is_none(desk: Desk, model: str, told: str, hint: str) -> None:
    (desk.bin / "codex").unlink()
    desk.environ["PATH"] = str(desk.bin)
    error = refused(desk, model)
    assert (str(error), error.code, error.hint[: len(hint)]) == (told, "config", hint)


@pytest.mark.parametrize("model", ["cli:codex", "cli:bash", "--evil", "a b", "x" * 200])
def test_code_of_a_model_starts_no_other_program_and_gives_no_argument(desk: Desk, model: str) -> None:
    with pytest.raises(BackendError) as caught:
        connect("cli:claude", environ=desk.environ).with_model(model)
    assert caught.value.code == "config"
    main = connect("gpt-4o-mini", environ={**desk.environ, "OPENAI_API_KEY": SECRET})
    with pytest.raises(BackendError, match="can only be the main model"):
        main.with_model("cli:claude")


def test_a_command_of_the_users_own(desk: Desk) -> None:
    words = [desk.program("mine", "print('plain', sys.argv[1], prompt)"), "an argument"]
    backend = SubprocessBackend(words)
    reply = backend.complete(TALK)
    assert reply.text.startswith("plain an argument [system]\nbe terse\n\n[user]\nhello")
    assert (reply.usage["estimated"], reply.cost_usd, backend.model) == (True, None, "mine")
    assert isinstance(backend, HTTPBackend)
    missing = SubprocessBackend([str(desk.bin / "nowhere")])
    with pytest.raises(BackendError, match="nowhere: No such file or directory"):
        missing.complete(ASK)


def test_which_agents_are_there(desk: Desk) -> None:
    (desk.bin / "gemini").unlink()
    desk.environ["PATH"] = str(desk.bin)
    assert rlm_backends.agents(desk.environ) == [
        ("cli:claude", str(desk.bin / "claude")),
        ("cli:codex", str(desk.bin / "codex")),
        ("cli:gemini", None),
    ]


# --- on the command line -----------------------------------------------------------------------------------------

LOOP = """\
said = "```repl\\nprint(len(context), llm_query('how long?'))\\n```" if "[assistant]" not in prompt else "it is 3"
said = "very" if prompt == "how long?" else said
print(json.dumps({"type": "result", "is_error": False, "result": said, "total_cost_usd": 0.01, "usage": {}}))"""


def rlm(desk: Desk, *arguments: str, **env: str) -> Any:
    command = [sys.executable, "-m", "rlm", *arguments]
    environ = {**os.environ, **desk.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environ, timeout=100)


def test_a_run_is_answered_by_a_coding_agent(desk: Desk, workspace: Path) -> None:
    desk.program("claude", LOOP)
    Path("a.txt").write_text("abc")
    ran = rlm(desk, "-m", "cli:claude/sonnet", "--show-below", "0", "--cost-budget", "1", "what?", "-c", "a.txt")
    assert (ran.returncode, ran.stdout) == (0, "it is 3\n"), ran.stderr
    assert "$0.03" in ran.stderr
    assert [seen["argv"][-1] for seen in desk.seen()] == ["sonnet"] * 3
    assert "llm_query" in desk.seen()[0]["system"]
    (journal,) = Path("logs").glob("*.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    assert events[0]["profile"] == "full"
    assert [event["cost_usd"] for event in events if event["event"] == "call"] == [0.01] * 3


def test_a_run_that_cannot_be_answered_says_why_in_three_lines(desk: Desk, workspace: Path) -> None:
    desk.program("claude", printing(NOT_LOGGED_IN, 1))
    ran = rlm(desk, "-m", "cli:claude", "what?")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[0] == "rlm: cli:claude ended with status 1: Not logged in · Please run /login"
    assert "  next: sign in once: claude, then /login" in ran.stderr
    budget = rlm(desk, "-m", "cli:codex", "what?", "--cost-budget", "1")
    assert (budget.returncode, "the price of 'cli:codex' is not known" in budget.stderr) == (2, True)
    absent = rlm(desk, "-m", "cli:codex", "what?", PATH=str(desk.home))
    assert (absent.returncode, "next: npm install -g @openai/codex" in absent.stderr) == (2, True)


@pytest.mark.parametrize("key", ["model", "sub_model"])
@pytest.mark.parametrize("value", ["cli:claude", "hf:owner/repo", "./x.gguf"])
def test_a_project_file_that_is_not_trusted_starts_no_program(
    desk: Desk, workspace: Path, key: str, value: str
) -> None:
    Path("rlm.toml").write_text(f'[rlm]\n{key} = "{value}"\n')
    ran = rlm(desk, "what?")
    assert (ran.returncode, desk.log.exists()) == (2, False)
    assert f"rlm.toml:2: '{key}' is not taken from a project file that is not trusted" in ran.stderr


def test_the_doctor_and_the_list_of_providers_know_them(desk: Desk, workspace: Path) -> None:
    assert "cli:claude, cli:codex, cli:gemini" in rlm(desk, "doctor").stdout
    listed = rlm(desk, "providers").stdout
    assert f"{desk.bin / 'claude'}" in listed
    assert "hf:OWNER/REPO" in listed


RACE = """\
import sys, threading, rlm_backends as b
errors = []
def run(work, *arguments):
    try:
        work(*arguments)
    except BaseException as error:
        errors.append(error)
jobs = [(b.local_servers, 0.0001), *((b._link, f"cli://{number}", 4) for number in range(6))]
threads = [threading.Thread(target=run, args=job) for job in jobs]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(str(errors) if errors else 0)
"""


def test_first_calls_at_once_do_not_meet_a_module_half_imported() -> None:
    for _ in range(4):  # each failed every second time
        ran = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stderr) == (0, "")
