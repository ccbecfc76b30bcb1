"""The command line as its users meet it: a process with arguments, pipes or a terminal, an exit code, two streams."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import pytest
import scripted
from conftest import need
from scripted import Request, Server, Turn, answer_with, call, code

import rlm_cli
import rlm_viz

MODULE = [sys.executable, "-m", "rlm"]
SCRIPT = [sys.executable, "-c", "import rlm_cli; raise SystemExit(rlm_cli.main())"]  # as the installed `rlm` starts
KEYS = {
    *("status", "response", "value", "trajectory_id", "model", "total_calls", "total_tokens", "usage", "cost_usd"),
    *("depth_reached", "tool_calls", "duration_ms", "log", "error"),
}


def rlm(*arguments: str, program: list[str] = MODULE, env: dict[str, str] | None = None, **how: Any) -> Any:
    """Run the command to its end; stdin is empty unless given."""
    if "input" not in how:
        how.setdefault("stdin", subprocess.DEVNULL)
    command = [*program, *arguments]
    return subprocess.run(command, capture_output=True, env={**os.environ, **(env or {})}, timeout=60, **how)


def here(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    """What `rlm` gives, of the command in this process: where it is what it writes that counts, not how it ends."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in "12")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = rlm_cli.main(arguments)
        out.flush()
        err.flush()
    return subprocess.CompletedProcess(arguments, status, out.buffer.getvalue(), err.buffer.getvalue())  # type: ignore[attr-defined]


def start(*arguments: str, **how: Any) -> subprocess.Popen[bytes]:
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    return subprocess.Popen([*MODULE, *arguments], **how)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out.decode(), err.decode()


def journals() -> list[Path]:
    return sorted(Path("logs").glob("*.jsonl"))


def events() -> list[dict[str, Any]]:
    (path,) = journals()
    return [json.loads(line) for line in path.read_text().splitlines()]


class Terminal:
    """A process on a pseudo-terminal: what it shows, and what is typed."""

    started: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(
        self, *arguments: str, env: dict[str, str] | None = None, streams: str = "012", columns: int = 80
    ) -> None:
        import fcntl
        import termios

        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        for name, value in (("TERM", "xterm"), ("COLUMNS", "100")):
            os.environ.setdefault(name, value)
        others = {"0": subprocess.DEVNULL}  # a pipe would be waited for
        ends = [slave if number in streams else others.get(number, subprocess.PIPE) for number in "012"]
        environment = {**os.environ, "TERM": "xterm", **(env or {})}
        self.process = subprocess.Popen(
            [*MODULE, *arguments],
            stdin=ends[0],
            stdout=ends[1],
            stderr=ends[2],
            env=environment,
            start_new_session=True,
            preexec_fn=_own_terminal if "0" in streams else None,
        )
        os.close(slave)
        self.shown = ""
        Terminal.started.append(self.process)

    def read(self, seconds: float) -> bool:
        """Take in what is there; False at the end."""
        if not select.select([self.master], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self.master, 65536)
        except OSError:  # Linux's way of saying that the other side was closed
            return False
        self.shown += piece.decode("utf-8", "replace")
        return bool(piece)

    def wait_for(self, pattern: str) -> None:
        end = time.monotonic() + 30
        while not re.search(pattern, self.shown):
            assert time.monotonic() < end, f"{pattern!r} was never shown: {self.shown!r}"
            assert self.read(1), f"ended without {pattern!r}: {self.shown!r}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def finish(self) -> int:
        end = time.monotonic() + 60
        while self.read(1):
            assert time.monotonic() < end, f"does not end: {self.shown!r}"
        os.close(self.master)
        return self.process.wait(30)


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """What a failed test left on a terminal is ended."""
    yield
    for process in Terminal.started:
        process.kill()
        process.wait(30)
    Terminal.started.clear()


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


# --- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["python -m rlm", "rlm"])
@pytest.mark.parametrize("words", [["Capital of France?"], ["run", "Capital of France?"]], ids=["bare", "run"])
def test_stdout_is_the_answer_and_a_newline(openai: Server, program: list[str], words: list[str]) -> None:
    openai.script = answer_with("Paris")
    ran = rlm(*words, program=program)
    assert (ran.returncode, ran.stdout) == (0, b"Paris\n")
    assert re.fullmatch(r"✓ [\d.]+ m?s · 1 call · [\d,]+ tok · \$\d\.\d+ · \./logs/\S+\.jsonl\n", ran.stderr.decode())
    assert openai.requests[0].prompt.startswith("Capital of France?")


def test_quiet_leaves_stderr_empty(openai: Server) -> None:
    openai.script = answer_with("Paris")
    ran = rlm("-q", "Capital of France?")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"Paris\n", b"")


def test_anthropic_answers_as_well(anthropic: Server) -> None:
    anthropic.script = answer_with("Paris")
    assert rlm("-m", "claude-sonnet-4-20250514", "Capital?").stdout == b"Paris\n"


def test_piped_text_is_the_context_and_not_in_the_prompt(openai: Server) -> None:
    openai.script = answer_with(code("FINAL(context.upper())"))
    text = "the needle is pink\n" * 500
    ran = rlm("Where is it?", input=text.encode())
    assert ran.stdout.decode() == text.upper() + "\n"
    assert openai.requests[0].raw.count(b"the needle is pink") <= 5  # its first lines, in the description


def test_files_globs_folders_and_stdin_become_the_context(openai: Server, workspace: Path) -> None:
    (workspace / "src" / "deep").mkdir(parents=True)
    (workspace / "src" / "a.py").write_text("A")
    (workspace / "src" / "deep" / "b.py").write_text("B")
    (workspace / "one.csv").write_text("x,y\n1,2\n")
    openai.script = answer_with(code("FINAL(context)"))

    def context(*arguments: str, **how: Any) -> Any:
        ran = (rlm if how else here)("-q", "--json", "What?", *arguments, **how)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)["value"]

    assert context("-c", "one.csv") == "x,y\n1,2\n"
    assert context("-c", "src/**/*.py") == {"src/a.py": "A", "src/deep/b.py": "B"}
    assert context("-c", "src") == {"src/a.py": "A", "src/deep/b.py": "B"}
    assert context("-c", "-", input=b"piped") == "piped"
    assert context("-c", "one.csv", "-c", "-", input=b"piped") == {"one.csv": "x,y\n1,2\n", "-": "piped"}
    assert context("-c", "one.csv", input=b"a list of a shell's loop") == "x,y\n1,2\n"
    for name in ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"):
        assert context("-c", name, input=b"piped") == "piped"
    assert context("-c", "one.csv", "-c", "src/a.py") == {"one.csv": "x,y\n1,2\n", "src/a.py": "A"}
    assert list(context("-c", ".")) == ["one.csv", "src/a.py", "src/deep/b.py"]  # and not the logs of the runs above
    Path.home().mkdir(exist_ok=True)
    (Path.home() / "a.txt").write_text("at home")
    assert context("-c", "~/a.txt") == "at home"
    reader, writer = os.pipe()  # as -c <(command) gives it
    os.write(writer, b"from a command")
    os.close(writer)
    assert context("-c", f"/dev/fd/{reader}", pass_fds=[reader]) == "from a command"


def test_a_run_over_a_relative_folder_is_resumed_and_replayed(openai: Server, workspace: Path) -> None:
    (workspace / "src").mkdir()
    (workspace / "src" / "a.py").write_text("A")
    openai.script = answer_with(code("x = context"), code("FINAL(x)"))
    assert rlm("What?", "-c", "src", "--max-iterations", "1").returncode == 3
    assert rlm("resume", "-q", "--max-iterations", "5").stdout == b'{"src/a.py": "A"}\n'
    (path,) = journals()
    assert rlm("replay", "-q", path.stem, "--max-iterations", "5").returncode == 0


def test_the_prompt_itself_can_come_from_stdin(openai: Server) -> None:
    openai.script = answer_with(lambda r: r.prompt.partition("\n")[0])
    assert rlm("-", input=b"Capital of France?").stdout == b"Capital of France?\n"


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        (["show me the logs"], "show me the logs"),
        (["--", "logs"], "logs"),
        (["-q", "logs"], "logs"),
        (["run", "logs"], "logs"),
        (["-q", "--", "--json"], "--json"),
        (["-5 + 3?"], "-5 + 3?"),
        (["run", "logz"], "logz"),
        (["config", "--"], None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_command_word_is_one_only_as_the_first_argument(openai: Server, words: list[str], prompt: str | None) -> None:
    openai.script = answer_with("answered")
    ran = here(*words)
    assert ran.returncode == 0, ran.stderr
    assert [r.prompt.startswith(prompt or "") for r in openai.requests] == ([True] if prompt else [])


def test_a_schema_makes_the_answer_json(openai: Server, workspace: Path) -> None:
    (workspace / "s.json").write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    openai.script = answer_with(code("FINAL({'n': 42})"))
    ran = rlm("-q", "How many?", "--schema", "s.json")
    assert (ran.returncode, json.loads(ran.stdout)) == (0, {"n": 42})


def test_streaming_prints_what_arrives_without_a_repl(openai: Server) -> None:
    openai.script = lambda request: "one two three"
    ran = rlm("--stream", "Count.")
    assert (ran.returncode, ran.stdout) == (0, b"one two three\n")
    assert openai.requests[0].tools == [] and openai.requests[0].stream


def test_streaming_as_events_ends_with_the_model_that_answered(openai: Server) -> None:
    openai.script = lambda request: "one"
    ran = rlm("--stream", "--jsonl", "Count.")
    last = json.loads(ran.stdout.splitlines()[-1])
    assert (last["event"], last["response"], last["model"]) == ("result", "one", "gpt-4o-mini")
    openai.script = lambda request: scripted.error(400, "no")
    failed = rlm("--stream", "Count.")
    assert failed.returncode == 1 and b"rlm resume" not in failed.stderr  # it would be refused


def test_streaming_takes_no_context(openai: Server, workspace: Path) -> None:
    (workspace / "f").write_text("x")
    for how in ({}, {"input": b"piped"}):
        arguments = [] if how else ["-c", "f"]
        ran = rlm("--stream", "Count.", *arguments, **how)
        assert ran.returncode == 2
        assert ran.stderr.decode().startswith("rlm: --stream is a simple completion and takes no context\n  next: ")
    assert openai.requests == []


def test_html_writes_the_page(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("print(6 * 7)"), "forty-two <b>")
    ran = rlm("What?", "--html", "page.html", "--no-log")
    assert ran.returncode == 0, ran.stderr
    page = (workspace / "page.html").read_text()
    assert "forty-two" in page and "<b>" not in page.partition("forty-two")[2][:10]
    assert not Path("logs").exists()


# --- JSON ------------------------------------------------------------------------------------------------------------

HOSTILE = "[bold]x[/bold] \n\t\"'\\ 🎉 \x1b[31m \u2028 </script> \ud83d " * 20_000


def test_json_is_one_valid_line_whatever_the_answer_holds(openai: Server) -> None:
    openai.script = answer_with(code(f"FINAL({HOSTILE[:60]!r} * 20_000)"))
    ran = rlm("--json", "What?", env={"FORCE_COLOR": "1"})
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count(b"\n") == 1 and ran.stdout.endswith(b"\n") and len(ran.stdout) > 1_000_000
    found = json.loads(ran.stdout)
    assert found["response"] == HOSTILE[:60].replace("\ud83d", "\ufffd") * 20_000
    assert set(found) == KEYS and found["error"] is None
    assert set(found["usage"]) == {"input", "output", "cached", "cache_write", "reasoning"}


@pytest.mark.parametrize(
    ("script", "arguments", "exit_code", "status", "error"),
    [
        ("Paris", [], 0, "answered", None),
        (scripted.error(401, "bad key"), ["--max-retries", "0"], 1, "error", "ProviderError"),
        ("Paris", ["--no-such-flag"], 2, "error", "ConfigError"),
        ("Paris", ["-m", "nobody/knows-it"], 2, "error", "ConfigError"),
        (code("1"), ["--max-iterations", "2"], 3, "partial", "MaxIterationsExceeded"),
    ],
    ids=["answered", "failed", "usage", "model", "limit"],
)
def test_json_has_every_key_however_it_ends(
    openai: Server, script: Any, arguments: list[str], exit_code: int, status: str, error: str | None
) -> None:
    openai.script = answer_with(script)
    ran = rlm("--json", "What?", *arguments)
    found = json.loads(ran.stdout)
    assert (ran.returncode, found["status"], set(found)) == (exit_code, status, KEYS)
    assert (found["error"] or {}).get("type") == error
    if error:
        assert set(found["error"]) == {"type", "message", "hint"}
        assert ran.stderr.decode().startswith("rlm: " + found["error"]["message"][:40])


def test_an_answer_of_the_last_call_is_told_from_others_on_stderr(openai: Server) -> None:
    openai.script = answer_with(code("print(1)"), "Some.")
    ran = rlm("What?", "--max-iterations", "2")
    assert (ran.returncode, ran.stdout) == (0, b"Some.\n")
    assert b"was reached; this is the model's best answer" in ran.stderr


def test_jsonl_is_the_events_and_then_the_result(openai: Server) -> None:
    openai.script = answer_with(code("print(llm_query('hm'))"), "done")
    ran = rlm("--jsonl", "What?")
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    *seen, last = lines
    assert seen == events()
    assert (last["event"], last["status"], last["response"]) == ("result", "answered", "done")
    assert set(last) == {"event", *KEYS}


def test_jsonl_is_written_as_it_happens(openai: Server) -> None:
    free = threading.Event()
    openai.script = answer_with(Turn("done", until=free))
    process = start("--jsonl", "What?", env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert process.stdout is not None
    seen = select.select([process.stdout], [], [], 30)[0]
    free.set()
    assert seen and ended(process)[0] == 0


STDOUT_LOST = """
import sys, rlm_cli

class Stdout:
    def __init__(self, stream, event):
        self.stream, self.event = stream, event

    def write(self, text):
        if self.event in text:
            raise OSError(28, "No space left on device")
        return self.stream.write(text)

    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stdout = Stdout(sys.stdout, '"event": "' + sys.argv.pop(1) + '"')
raise SystemExit(rlm_cli.main())
"""


def stdout_lost(event: str, *arguments: str) -> str:
    """What happened to the run after stdout was lost at the event: the status that its journal has."""
    ran = rlm("-q", "--jsonl", *arguments, program=[sys.executable, "-c", STDOUT_LOST, event])
    lines = three_lines(ran.stderr)
    assert ran.returncode == 1 and re.fullmatch(r"rlm: cannot write .*to stdout: No space left on device", lines[0])
    assert "No space" not in "".join(lines[1:])
    return str([event["status"] for event in events() if event["event"] == "end"][-1])


@pytest.mark.parametrize("event", ["start", "call", "tool"])
def test_a_run_whose_events_cannot_be_written_is_stopped(openai: Server, event: str) -> None:
    openai.script = answer_with(scripted.hang() if event == "start" else code("x = 1"), scripted.hang())
    assert stdout_lost(event, "What?") == "error"


def test_a_run_that_has_just_ended_is_left_as_it_is(openai: Server) -> None:
    openai.script = answer_with("done")
    assert stdout_lost("end", "What?") == "answered"


def test_a_resumed_run_whose_events_cannot_be_written_is_stopped(openai: Server) -> None:
    openai.script = answer_with(code("x = 1"), code("x = 2"), scripted.hang())
    assert rlm("What?", "--max-iterations", "1").returncode == 3
    program = [sys.executable, "-c", STDOUT_LOST, "call"]
    ran = rlm("resume", "-q", "--jsonl", "--max-iterations", "9", program=program)
    assert (ran.returncode, *three_lines(ran.stderr)) == (
        1,
        "rlm: cannot write to stdout: No space left on device",
        f"  next: rlm resume {journals()[0].stem} --max-iterations 9",
    )


# --- errors ----------------------------------------------------------------------------------------------------------


def three_lines(stderr: bytes) -> list[str]:
    """The lines of an error, which are at most three and hold no traceback."""
    lines = stderr.decode().splitlines()
    assert 1 <= len(lines) <= 3 and lines[0].startswith("rlm: "), lines
    assert all(line.startswith("  ") for line in lines[1:]) and "Traceback" not in stderr.decode()
    return lines


def test_no_key_at_all() -> None:
    ran = rlm("What?", "-m", "gpt-4o-mini")
    first, second, third = three_lines(ran.stderr)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert first == "rlm: no API key for model 'gpt-4o-mini'"
    assert second == "  looked for: OPENAI_API_KEY (environment, .env), api_key (rlm.toml, user configuration)"
    assert third == "  next: export OPENAI_API_KEY=…   or   rlm providers   or   rlm demo"


def test_a_wrong_key_is_never_shown(openai: Server) -> None:
    openai.script = lambda request: scripted.error(401, f"Incorrect API key provided: {scripted.KEY}")
    ran = rlm("What?")
    lines = three_lines(ran.stderr)
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert scripted.KEY not in "".join(lines) and any("next: " in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message", "following"),
    [
        ([], "no prompt", "rlm --help"),
        ([""], "the prompt is empty", ""),
        (["logz"], "unknown command 'logz'", "`rlm logs`"),
        (["visualise"], "unknown command 'visualise'", "`rlm visualize`"),
        (["help"], "unknown command 'help'", "`rlm --help`"),
        (["resum", "abc"], "unknown command 'resum'", "`rlm resume`"),
        (["which", "errors"], "more than one prompt", "quotes"),
        (["x", "--max-dpeth", "3"], "unknown option '--max-dpeth'", "'--max-depth'"),
        (["x", "--zzzzzz"], "unknown option '--zzzzzz'", "--help"),
        (["x", "--api-kee=sk-secret-secret"], "unknown option '--api-kee'", "'--api-key'"),
        (["x", "-m"], "argument -m/--model: expected one argument", "--help"),
        (["x", "--max-depth", "deep"], "--max-depth: 'deep' is not a whole number", ""),
        (["x", "--max-depth", "-1"], "max_depth", ""),
        (["x", "-p", "hot"], "-p: 'hot' is not a parameter", "temperature=0"),
        (["x", "--sub-params", "[1]"], "--sub-params: '[1]' is not a parameter", "temperature=0"),
        (["x", "--env", "lokal"], "rlm: --env is 'lokal'", "did you mean 'local'?"),
        (["x", "--max-depth=-1"], "max_depth (--max-depth) is -1", "at least 0"),
        (["x", "--docker-memory", "lots"], "docker_memory (--docker-memory)", ""),
        (["visualize", "--port", "99999"], "there is no port 99999", ""),
        (["x", "--backend", "opnai"], "no provider is called 'opnai'", "openai"),
        (["x", "-c", "missing.csv"], "context 'missing.csv' was not found", "-c"),
        (["-", "-c", "-"], "stdin cannot be both the prompt and the context", ""),
        (["x", "--config", "none.toml"], "no configuration file at 'none.toml'", "rlm init"),
        (["x", "--html", "no/such/folder.html"], "cannot write 'no/such/folder.html'", ""),
        (["x", "--schema", "none.json"], "--schema: cannot read 'none.json'", ""),
        (["x", "--color", "sometimes"], "argument --color: invalid choice: 'sometimes'", ""),
        (["logs", "zzz"], "no run 'zzz'", "rlm logs"),
        (["resume"], "no unfinished run", "rlm logs"),
        (["resume", "zzz"], "no run 'zzz'", ""),
        (["replay"], "name one run", "rlm logs"),
        (["visualize"], "no logs in", ""),
        (["trust"], "no rlm.toml here or above", "rlm init"),
        (["completion", "tcsh"], "which shell?", "bash|zsh|fish"),
        (["config", "extra"], "unexpected argument 'extra'", "rlm config --help"),
        (["batch"], "give one file", ""),
        (["batch", "none.jsonl"], "cannot read 'none.jsonl'", ""),
        (["providers", "qqqq"], "no provider matches 'qqqq'", "rlm providers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_exit_2_and_says_what_to_do(
    openai: Server, arguments: list[str], message: str, following: str
) -> None:
    ran = here(*arguments)
    lines = three_lines(ran.stderr)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert message in lines[0] and following in lines[-1]
    assert b"secret" not in ran.stderr
    assert openai.requests == [] and not Path("logs").exists()


def test_bad_context_files(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("FINAL([type(context).__name__, len(context)])"))
    (workspace / "empty").touch()
    (workspace / "binary").write_bytes(bytes(range(256)) * 10)
    for name, expected in (("empty", ["str", 0]), ("binary", ["bytes", 2560])):
        ran = rlm("--json", "-q", "What?", "-c", name)
        assert (ran.returncode, json.loads(ran.stdout)["value"]) == (0, expected), ran.stderr


def test_an_unreadable_file_or_folder(openai: Server, workspace: Path) -> None:
    need("linux")
    (workspace / "shut").mkdir()
    (workspace / "shut" / "file").write_text("x")
    (workspace / "file").write_text("x")
    (workspace / "file").chmod(0)
    (workspace / "shut").chmod(0)
    try:
        for name in ("file", "shut"):
            ran = rlm("What?", "-c", name, preexec_fn=without_override)
            lines = three_lines(ran.stderr)
            assert (ran.returncode, "Permission denied" in lines[0]) == (2, True), lines
    finally:
        (workspace / "shut").chmod(0o700)


def without_override() -> None:
    """Give up root's right to read whatever there is (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) before the exec."""
    import ctypes

    if os.getuid() == 0:
        for capability in (1, 2):
            assert ctypes.CDLL(None, use_errno=True).prctl(24, capability, 0, 0, 0) == 0


def test_a_log_folder_that_cannot_be_written_is_exit_2_before_anything_is_sent(openai: Server, workspace: Path) -> None:
    need("linux")
    (workspace / "logs").mkdir(mode=0o500)
    ran = rlm("What?", preexec_fn=without_override)
    assert (ran.returncode, ran.stdout, openai.requests) == (2, b"", [])
    assert "logs" in three_lines(ran.stderr)[0] and "Permission denied" in three_lines(ran.stderr)[0]


def small_files() -> None:
    """No file may grow beyond 6,000 bytes: to the journal that is a full disk, in the middle of the run."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))


def test_a_disk_that_fills_in_mid_run_stops_it_with_what_there_is(openai: Server) -> None:
    need("linux")
    openai.script = answer_with(Turn("so far: 12", [call("execute_code", code="print('x' * 4_000)")]))
    ran = rlm("What?", preexec_fn=small_files, env={"PYTHONDONTWRITEBYTECODE": "1"})  # a cut cache would outlive it
    assert (ran.returncode, ran.stdout) == (1, b"so far: 12\n"), ran.stderr
    assert "cannot write the journal" in three_lines(ran.stderr)[0]
    (log,) = journals()
    assert [json.loads(line)["event"] for line in log.read_text().splitlines()[:2]] == ["start", "call"]


@pytest.mark.nightly
def test_a_context_of_a_gigabyte(openai: Server, workspace: Path) -> None:
    """The REPL has it whole, and nothing of it is sent."""
    with open(workspace / "big.log", "wb") as file:
        for _ in range(1024):
            file.write(b"0123456789abcdef" * 65_536)
    openai.script = answer_with(code("FINAL(len(context))"))
    process = start("-q", "How long?", "-c", "big.log")
    out, err = process.communicate(timeout=280)
    assert (process.returncode, out) == (0, b"1073741824\n"), err
    assert openai.bytes_received < 100_000


@pytest.mark.parametrize("flag", [["--debug"], []], ids=["--debug", "RLM_DEBUG"])
def test_debugging_shows_the_traceback(flag: list[str]) -> None:
    ran = rlm("x", *flag, "-m", "gpt-4o-mini", env={} if flag else {"RLM_DEBUG": "1"})
    assert ran.returncode == 2
    assert b"Traceback" in ran.stderr and b"rlm: no API key" in ran.stderr


@pytest.mark.parametrize(
    "reply",
    [scripted.html(), scripted.empty(), scripted.half(), scripted.error(500), scripted.hang()],
    ids=["html", "empty", "half", "500", "silence"],
)
def test_a_server_that_makes_no_sense_is_exit_1(openai: Server, reply: Any) -> None:
    openai.script = lambda request: reply
    limit = ["--timeout", "1"] if reply == scripted.hang() else ["--max-retries", "0"]
    ran = rlm("What?", *limit)
    three_lines(ran.stderr)
    assert (ran.returncode, ran.stdout) == (3 if "--timeout" in limit else 1, b"")


# --- limits and going on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--token-budget", "3000"], "--token-budget 6000"),
        (["--cost-budget", "0.0006"], "--cost-budget 0.0012"),
        (["--max-subcalls", "1"], "--max-subcalls 2"),
        (["--max-iterations", "2"], "--max-iterations 4"),
    ],
    ids=["tokens", "cost", "sub-calls", "iterations"],
)
def test_a_limit_is_exit_3_and_names_one_command_that_goes_on(openai: Server, arguments: list[str], flag: str) -> None:
    step = Turn("so far: 12", [call("execute_code", code="llm_query('q')")])
    openai.script = answer_with(step)
    ran = rlm("What?", *arguments)
    *_, last = three_lines(ran.stderr)
    (log,) = journals()
    assert (ran.returncode, ran.stdout) == (3, b"so far: 12\n")
    assert last == f"  next: rlm resume {log.stem} {flag}"


def test_the_command_after_a_limit_runs_as_it_is_and_is_doubled_again(openai: Server) -> None:
    openai.script = answer_with(*[code("x = 1")] * 5, code("FINAL(42)"))
    stopped, printed = rlm("What?", "--max-iterations", "1"), []
    for _ in range(3):
        printed.append(three_lines(stopped.stderr)[-1].removeprefix("  next: rlm ").split())
        stopped = rlm(*printed[-1])
    assert [words[2:] for words in printed] == [["--max-iterations", number] for number in ("2", "4", "8")]
    assert (stopped.returncode, stopped.stdout) == (0, b"42\n")


PRINTING_TOOL = """
import sys
from rlm import tool
print("tools are loaded")
@tool
def stock(item: str) -> int:
    "How many are left."
    print("looking up", item)
    sys.stdout.write("still looking\\n")
    return 7
"""


@pytest.mark.parametrize("form", ["--json", "--jsonl", "-q"])
def test_what_a_tool_prints_does_not_get_between_the_lines_of_stdout(
    openai: Server, workspace: Path, form: str
) -> None:
    (workspace / "stock.py").write_text(PRINTING_TOOL)
    openai.script = answer_with(Turn("", [call("stock", item="bolt")]), code("FINAL(stock('nut'))"))
    ran = rlm("How many?", "--tools", "stock.py", form)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.decode().splitlines()
    assert lines == ["7"] if form == "-q" else json.loads(lines[-1])["response"] == "7"
    assert all(isinstance(json.loads(line), dict) for line in lines if form != "-q")
    for said in (b"tools are loaded", b"looking up bolt", b"looking up nut", b"still looking"):
        assert said in ran.stderr


def test_what_a_tool_prints_stays_out_of_a_batchs_rows_a_chats_answers_and_a_stream(
    openai: Server, workspace: Path
) -> None:
    (workspace / "stock.py").write_text(PRINTING_TOOL)
    (workspace / "p.jsonl").write_text('"How many?"\n')
    openai.script = answer_with(code("FINAL(stock('nut'))"))
    (row,) = rlm("batch", "p.jsonl", "--tools", "stock.py").stdout.splitlines()
    assert json.loads(row)["response"] == "7"
    openai.script = answer_with(code("FINAL(stock('nut'))"))
    assert rlm("chat", "--tools", "stock.py", input=b"How many?\n").stdout == b"7\n"
    openai.script = lambda request: "seven"
    assert rlm("How many?", "--stream", "--tools", "stock.py").stdout == b"seven\n"


def test_a_glob_that_the_shell_has_expanded_is_named_as_such(workspace: Path) -> None:
    (workspace / "src").mkdir()
    for name in "abc":
        (workspace / "src" / f"{name}.py").write_text("")
    ran = rlm("Why?", "-c", "src/a.py", "src/b.py", "src/c.py")
    assert three_lines(ran.stderr)[-1] == "  next: put quotes around the glob: -c 'src/*.py'"
    assert three_lines(rlm("Why", "not?").stderr)[-1] == "  next: put quotes around the prompt"


def test_a_port_in_use_is_said_with_another(openai: Server) -> None:
    openai.script = answer_with("Paris")
    assert rlm("Capital?").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = rlm("visualize", "--port", str(port))
    first, *_, last = three_lines(ran.stderr)
    assert (ran.returncode, first) == (2, f"rlm: port {port} is in use")
    assert last.startswith("  next: --port ")


def test_resume_goes_on_with_a_raised_limit_and_repeats_no_call(openai: Server) -> None:
    openai.script = answer_with(code("x = 1"), code("x += 1"), code("FINAL(x)"))
    stopped = rlm("What?", "--max-iterations", "2")
    assert stopped.returncode == 3
    resumed = rlm("resume", "--max-iterations", "5")
    assert (resumed.returncode, resumed.stdout) == (0, b"2\n"), resumed.stderr
    assert len(openai.requests) == 3
    assert rlm("resume").returncode == 2  # nothing is unfinished now


def test_resume_finds_the_folder_that_the_run_was_given(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("1"), "done")
    stopped = rlm("What?", "--max-iterations", "1", "--log-dir", "other")
    following = three_lines(stopped.stderr)[-1].removeprefix("  next: rlm ")
    assert following.endswith("--log-dir other")
    assert rlm(*following.split(), "--max-iterations", "3").stdout == b"done\n"


def run_as_printed(stderr: str) -> subprocess.CompletedProcess[bytes]:
    """What the last line of an error says to do next, typed into a shell as it stands."""
    following = stderr.splitlines()[-1].removeprefix("  next: ")
    shell = f'rlm() {{ "$0" -m rlm "$@"; }}\n{following}'
    command = ["sh", "-c", shell, sys.executable]
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=60)


def test_the_printed_command_goes_on_at_the_same_server_with_the_same_tools(
    server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLM_API_KEY", scripted.KEY)
    (workspace / "my tools.py").write_text(
        'import rlm\n\n@rlm.tool\ndef half(n: int) -> int:\n    """Half of a number."""\n    return n // 2\n'
    )
    (workspace / "s.json").write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    server.script = answer_with(code("x = half(84)"), scripted.hang(), code("FINAL({'n': x})"))
    given = ["--base-url", server.base_url, "--backend", "openai", "-m", "a-model", "--tools", "my tools.py"]
    process = start("How many?", "--schema", "s.json", "--prices", '{"a-model": [1, 2]}', *given)
    server.wait_for(2)
    _, _, err = interrupt(process)
    assert "--tools 'my tools.py'" in err and scripted.KEY not in err
    server.script = lambda request: code("FINAL({'n': x})")
    resumed = run_as_printed(err)
    assert (resumed.returncode, json.loads(resumed.stdout)) == (0, {"n": 42}), resumed.stderr
    assert len(server.requests) == 3
    assert b"$?" not in resumed.stderr  # the prices as well
    assert [event["limits"] for event in events() if event["event"] == "resume"] == [{}]


def test_no_key_and_no_login_is_printed_for_the_way_on(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("1"))
    address = "https://me:secret@snipara.invalid"
    given = ["--api-key", scripted.KEY, "--snipara-api-url", address, "--no-cache", "--prices", '{"a b": [1, 2]}']
    ran = rlm("What?", "--max-iterations", "1", *given, "-p", "temperature=0", "-p", "user=a b")
    following = three_lines(ran.stderr)[-1]
    assert following.endswith(
        """ --params temperature=0 --params 'user=a b' --prices '{"a b": [1, 2]}' --no-cache --snipara-api-url https://snipara.invalid"""
    )
    assert b"secret" not in ran.stderr and scripted.KEY not in following


def test_without_a_log_no_resume_is_offered(openai: Server) -> None:
    openai.script = answer_with(code("1"))
    ran = rlm("What?", "--max-iterations", "1", "--no-log")
    assert ran.returncode == 3 and b"resume" not in ran.stderr and not Path("logs").exists()


def test_replay_runs_the_code_again_offline_and_says_where_it_differs(openai: Server, workspace: Path) -> None:
    (workspace / "data").write_text("5")
    openai.script = answer_with(code("x = int(context)\nprint(x)"), code("FINAL(x * 2)"))
    assert rlm("What?", "-c", "data").stdout == b"10\n"
    (log,) = journals()
    same = rlm("replay", log.stem[:4])
    assert (same.returncode, same.stdout) == (0, b"10\n"), same.stderr
    limited = rlm("replay", log.stem, "--max-iterations", "1")
    assert limited.returncode == 3 and b"rlm resume" not in limited.stderr, limited.stderr
    log.write_text(log.read_text().replace("FINAL(x * 2)", "FINAL(x * 3)"))
    other = rlm("replay", log.stem)
    assert (other.returncode, other.stdout) == (1, b"15\n")
    assert b"differs from the recording" in other.stderr
    assert len(openai.requests) == 2


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------


def interrupt(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    process.send_signal(signal.SIGINT)
    return ended(process)


def journal_line(word: str) -> None:
    """Wait until the journal has a line with this."""
    wait_until(lambda: any(word in path.read_text() for path in journals()), f"{word} was never journalled")


def wait_until(happened: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end, otherwise
        threading.Event().wait(0.02)


def the_way_on(err: str) -> None:
    lines = three_lines(err.encode())
    assert lines[0] == "rlm: interrupted"
    assert lines[-1] == f"  next: rlm resume {journals()[0].stem}"


def test_interrupted_while_the_thread_of_a_run_starts(openai: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is at work before its `start` has returned: it must not be left alone with the run."""
    import rlm as library

    starting = threading.Thread.start

    def start_and_interrupt(thread: threading.Thread) -> None:
        starting(thread)
        is_work = isinstance(getattr(vars(thread).get("_target"), "__self__", None), library.Future)
        if is_work and threading.current_thread() is threading.main_thread():
            openai.wait_for(1)
            raise KeyboardInterrupt

    openai.script = lambda request: scripted.hang()
    runtime = library.RLM(log_dir="logs")
    monkeypatch.setattr(threading.Thread, "start", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        runtime.completion("What?")
    assert [event["event"] for event in events()] == ["start", "interrupted", "end"]


def test_interrupted_while_it_reports(openai: Server) -> None:
    program = "import os, rlm_cli\nrlm_cli.Invocation.flush = lambda self: os.kill(os.getpid(), 2)\n"
    ran = rlm("providers", "openai", program=[sys.executable, "-c", f"{program}raise SystemExit(rlm_cli.main())"])
    assert (ran.returncode, ran.stderr) == (130, b"")


def test_interrupted_before_the_first_byte(openai: Server) -> None:
    openai.script = lambda request: scripted.hang()
    process = start("What?")
    openai.wait_for(1)
    code_, out, err = interrupt(process)
    assert (code_, out) == (130, "")
    assert three_lines(err.encode())[0] == "rlm: interrupted"
    assert events()[-1]["status"] == "interrupted"


def test_interrupted_in_the_middle_of_a_reply(openai: Server) -> None:
    openai.script = lambda request: scripted.drip("a very long reply " * 100, 0.005)
    process = start("--stream", "What?")
    assert process.stdout
    assert process.stdout.read(1) == b"a"
    code_, _, err = interrupt(process)
    assert code_ == 130 and three_lines(err.encode())[0] == "rlm: interrupted"
    assert events()[-1]["status"] == "interrupted"


@pytest.mark.parametrize("loop", ["while True: pass", "sum(range(10**12))", "import time; time.sleep(60)"])
def test_interrupted_in_sandboxed_code(openai: Server, loop: str) -> None:
    openai.script = answer_with(Turn("looking", [call("execute_code", code=f"llm_query('now')\n{loop}")]))
    process = start("What?")
    journal_line('"kind":"sub"')
    code_, out, err = interrupt(process)
    assert (code_, out) == (130, "looking\n")
    the_way_on(err)


def test_a_second_interrupt_does_not_cut_the_tidying_up_short(openai: Server) -> None:
    openai.script = answer_with(Turn("looking", [call("execute_code", code="llm_query('now')\nwhile True: pass")]))
    process = start("What?")
    journal_line('"kind":"sub"')
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    code_, out, err = interrupt(process)
    assert (code_, out) == (130, "looking\n")
    the_way_on(err)
    assert events()[-1]["status"] == "interrupted"


def test_interrupted_in_parallel_sub_calls_and_resumed(openai: Server) -> None:
    free = threading.Event()
    sub = lambda request: "one" if request.last == "1" else scripted.Turn("more", until=free)  # noqa: E731
    openai.script = answer_with(code("FINAL(llm_query_batched(['1', '2', '3', '4']))"), sub=sub)
    process = start("What?")
    openai.wait_for(5)
    journal_line('"kind":"sub"')
    code_, _, err = interrupt(process)
    free.set()
    assert code_ == 130
    the_way_on(err)
    recorded = [e["event"] for e in events()]
    assert recorded.count("interrupted") == 3 and recorded[-1] == "end"
    resumed = rlm("resume", "--json")
    assert json.loads(resumed.stdout)["value"] == ["one", "more", "more", "more"], resumed.stderr
    assert [r.last for r in openai.requests].count("1") == 1


def test_interrupted_while_it_waits_to_try_again(openai: Server) -> None:
    openai.script = lambda request: scripted.error(429, "slow down", retry_after=30)
    process = start("--json", "What?")
    openai.wait_for(1)
    code_, out, _ = interrupt(process)
    assert (code_, json.loads(out)["status"], set(json.loads(out))) == (130, "interrupted", KEYS)


@pytest.mark.parametrize("where", ["reply", "cell"])
def test_a_terminated_run_is_tidied_up_after_like_an_interrupted_one(openai: Server, where: str) -> None:
    work = Turn("looking", [call("execute_code", code="llm_query('now')\nwhile True: pass")])
    openai.script = answer_with(work) if where == "cell" else lambda request: scripted.hang()
    process = start("What?")
    journal_line('"kind":"sub"') if where == "cell" else openai.wait_for(1)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    code_, out, err = ended(process)
    assert (code_, out) == (143, "looking\n" if where == "cell" else "")
    assert three_lines(err.encode())[0] == "rlm: terminated"
    assert events()[-1]["event"] == "end" and events()[-1]["status"] == "interrupted"


# --- pipes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [[], ["--json"], ["--jsonl"]], ids=["text", "json", "jsonl"])
def test_a_reader_that_leaves_ends_it_quietly(openai: Server, form: list[str]) -> None:
    openai.script = answer_with(code("print(1)"), code("FINAL('line\\n' * 300_000)"))
    process = start("-q", "What?", *form)
    assert process.stdout and process.stderr
    process.stdout.read(1)
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()


def test_a_closed_stdout_costs_nothing_but_the_answer_there(openai: Server) -> None:
    openai.script = answer_with("Paris")
    command = 'exec "$0" -m rlm "What?" >&-'
    ran = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, stdin=subprocess.DEVNULL)
    assert (ran.returncode, ran.stdout) == (0, b"")
    assert b"stdout is closed; the answer is in ./logs/" in ran.stderr
    assert events()[-1]["response"] == "Paris"


def test_a_full_device_is_an_error_that_says_where_the_answer_is(openai: Server) -> None:
    need("linux")
    openai.script = answer_with("Paris")
    with open("/dev/full", "wb") as full:
        process = start("What?", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert three_lines(err)[0] == "rlm: cannot write the answer to stdout: No space left on device"


def test_stderr_that_nobody_reads_does_not_matter(openai: Server) -> None:
    openai.script = answer_with("Paris")
    command = 'exec "$0" -m rlm -v "What?" 2>&-'
    ran = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, stdin=subprocess.DEVNULL)
    assert (ran.returncode, ran.stdout) == (0, b"Paris\n")


@contextlib.contextmanager
def stdin_of(kind: str, workspace: Path) -> Iterator[int | IO[bytes]]:
    """A standard input of each kind that is met in practice."""
    with contextlib.ExitStack() as stack:
        if kind in ("empty pipe", "slow pipe"):
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            if kind == "empty pipe":
                os.close(writer)
            else:
                threading.Thread(target=_write_slowly, args=(writer,)).start()
            yield reader
        elif kind == "file":
            (workspace / "in.txt").write_text("slow")
            yield stack.enter_context(open(workspace / "in.txt", "rb"))
        elif kind == "socket":
            ours, theirs = socket.socketpair()
            ours.sendall(b"slow")
            ours.close()
            stack.callback(theirs.close)
            yield theirs.fileno()
        else:
            yield subprocess.DEVNULL


def _write_slowly(writer: int) -> None:
    for piece in (b"s", b"lo", b"w"):
        os.write(writer, piece)
        threading.Event().wait(0.3)
    os.close(writer)


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("null", None),
        ("empty pipe", None),
        ("slow pipe", "slow"),
        ("file", "slow"),
        ("socket", "slow"),
    ],
)
def test_stdin_is_read_when_it_is_one_and_a_pipe_is_waited_for(
    openai: Server, workspace: Path, kind: str, context: str | None
) -> None:
    openai.script = answer_with(code("FINAL(context)"))
    with stdin_of(kind, workspace) as stdin:
        ran = rlm("--json", "What?", stdin=stdin)
    assert (ran.returncode, json.loads(ran.stdout)["value"]) == (0, context)


@pytest.mark.parametrize("arguments", [["What?"], ["What?", "-c", "-"], ["-"]], ids=" ".join)
def test_a_slow_producer_is_waited_for_and_that_is_said(openai: Server, arguments: list[str]) -> None:
    openai.script = answer_with(code("FINAL(context)"))
    reader, writer = os.pipe()
    process = start(*arguments, stdin=reader)
    os.close(reader)
    assert process.stderr is not None
    assert b"rlm: waiting for input on stdin (--no-stdin to go on without it)" in process.stderr.readline()
    os.write(writer, b"late")
    os.close(writer)
    assert ended(process)[:2] == (0, "None\n" if arguments == ["-"] else "late\n")
    if arguments == ["-"]:
        assert openai.requests[0].prompt == "late"


def test_an_open_stdin_can_be_left_out(openai: Server) -> None:
    openai.script = answer_with(code("FINAL(context)"))
    reader, writer = os.pipe()
    process = start("What?", "--no-stdin", stdin=reader)
    os.close(reader)
    assert ended(process)[:2] == (0, "None\n")
    os.close(writer)


def test_another_package_of_the_modules_name_is_named(workspace: Path) -> None:
    (workspace / "rlm.py").write_text("")
    folder = os.path.dirname(rlm_cli.__file__)
    program = (
        f"import sys; sys.path.append({folder!r}); import rlm_cli; sys.exit(rlm_cli.main(['What?', '--no-stdin']))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (2, "")
    what, following = ran.stderr.splitlines()
    assert what == f"rlm: another package hides flat-rlm's module rlm: {workspace / 'rlm.py'}"
    assert following.startswith("  next: ")


def test_a_loop_of_a_shell_keeps_its_list(openai: Server, workspace: Path) -> None:
    openai.script = answer_with(code("FINAL(context)"))
    for name in ("a", "b", "c"):
        (workspace / f"{name}.txt").write_text(name)
    loop = 'printf \'a.txt\\nb.txt\\nc.txt\\n\' | while read f; do "$0" -m rlm -q what? -c "$f"; done'
    ran = subprocess.run(["sh", "-c", loop, sys.executable], capture_output=True, timeout=60)
    assert ran.stdout == b"a\nb\nc\n", ran.stderr


def test_waiting_for_stdin_can_be_interrupted(openai: Server) -> None:
    reader, writer = os.pipe()
    process = start("What?", stdin=reader)
    os.close(reader)
    assert process.stderr is not None
    assert b"waiting for input on stdin" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    os.close(writer)
    assert openai.requests == []


def test_piped_text_is_read_where_select_takes_sockets_only(openai: Server) -> None:
    openai.script = answer_with(code("FINAL(context)"))
    as_on_windows = (
        "import select\n"
        "def refuse(*_): raise OSError(10038, 'an operation was attempted on something that is not a socket')\n"
        "select.select = refuse\n"
        "import rlm_cli\nraise SystemExit(rlm_cli.main())"
    )
    ran = rlm("-q", "What?", program=[sys.executable, "-c", as_on_windows], input=b"piped")
    assert (ran.returncode, ran.stdout) == (0, b"piped\n"), ran.stderr


def test_a_pipe_that_its_parent_left_without_waiting_is_waited_for(openai: Server) -> None:
    openai.script = answer_with(code("FINAL(context)"))
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    threading.Thread(target=_write_slowly, args=(writer,)).start()
    ran = rlm("-q", "What?", stdin=reader)
    os.close(reader)
    assert (ran.returncode, ran.stdout) == (0, b"slow\n"), ran.stderr


def test_a_closed_stdin_is_none(openai: Server) -> None:
    openai.script = answer_with(code("FINAL(context)"))
    command = 'exec "$0" -m rlm --json "What?" <&-'
    ran = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True)
    assert (ran.returncode, json.loads(ran.stdout)["value"]) == (0, None), ran.stderr


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_a_terminal_sees_progress_on_one_line_and_then_the_answer(openai: Server) -> None:
    free = threading.Event()
    openai.script = answer_with(
        code("llm_query('q')"), Turn("Paris", until=free), sub=Turn("s", usage={"input": 17_000, "output": 1_240})
    )
    terminal = Terminal("--cost-budget", "0.5", "--max-subcalls", "40", "What?", columns=120)
    figures = r"\d+s  2 calls  [\d,]+ tok  \$0\.\d{4} / \$0\.50  depth 1  llm_query 1/40"
    terminal.wait_for(figures + r"  waiting for the model \d s")
    free.set()
    assert terminal.finish() == 0
    assert terminal.shown.endswith(".jsonl\r\n") and "\r\x1b[KParis" in terminal.shown.replace(
        "\r\x1b[K\r\x1b[K", "\r\x1b[K"
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What time it is: the first item."""
    now = [1000.0]
    fake = types.SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep)
    monkeypatch.setattr(rlm_viz, "time", fake)
    monkeypatch.setattr(rlm_cli, "time", fake)
    yield now


def told(phase: str, node: str = "n0", **fields: Any) -> dict[str, Any]:
    return {"event": "progress", "trajectory_id": "t", "phase": phase, "node": node, "depth": 0, **fields}


def happened(event: str, node: str = "n0", **fields: Any) -> dict[str, Any]:
    return {"v": 1, "event": event, "trajectory_id": "t", "node": node, "depth": 0, **fields}


def writes(delta: str, node: str = "n0") -> dict[str, Any]:
    return {"event": "text", "trajectory_id": "t", "node": node, "delta": delta}


ASKED, SUB = told("asking", kind="turn"), told("asking", kind="sub")
DOING: dict[str, tuple[list[dict[str, Any]], str]] = {
    "nothing yet": ([], ""),
    "loading": ([told("loading", text="loading qwen.gguf (1.1 GB): 3 s")], "loading qwen.gguf (1.1 GB): 3 s"),
    "loaded": ([told("loading", text="loading qwen.gguf (1.1 GB): 3 s"), happened("start")], ""),
    "asked": ([ASKED], "waiting for the model 12 s"),
    "reading": ([ASKED, told("reading", processed=512, total=2048)], "reading the prompt 25%"),
    "reading, at its start": ([ASKED, told("reading", processed=0, total=2048)], "reading the prompt"),
    "reading of an unknown length": ([ASKED, told("reading", processed=512, total=0)], "reading the prompt"),
    "reading too much": ([ASKED, told("reading", processed=9, total=3)], "reading the prompt 100%"),
    "writing": ([ASKED, told("reading", processed=9, total=9), *[writes("abcd")] * 312], "writing 312 tok"),
    "writing a little": ([ASKED, writes("a")], "writing 1 tok"),
    "answered": ([ASKED, writes("abcd" * 9), happened("call", kind="turn")], ""),
    "asked again": ([ASKED, writes("abcd"), happened("call", kind="turn"), ASKED], "waiting for the model 12 s"),
    "asked again after a failure": ([ASKED, writes("abcd"), ASKED, happened("call", kind="turn")], ""),
    "running": ([ASKED, happened("call", kind="turn"), told("running", cell=3)], "running cell 3: 12 s"),
    "ran": ([told("running", cell=3), happened("tool", code="1")], ""),
    "a file was read": ([told("running", cell=3), happened("tool", name="file_read")], "running cell 3: 12 s"),
    "a call from a cell": ([told("running", cell=3), SUB], "waiting for the model 12 s"),
    "answered to a cell": ([told("running", cell=3), SUB, happened("call", kind="sub")], "running cell 3: 12 s"),
    "one of two": ([told("running", cell=3), SUB, SUB, happened("call", kind="sub")], "waiting for the model 12 s"),
    "sub-calls": ([told("running", cell=3), told("subcalls", done=3, total=16), SUB], "3 of 16 sub-calls"),
    "one sub-call": ([told("subcalls", done=0, total=1), SUB], "0 of 1 sub-call"),
    "all sub-calls": ([told("running", cell=3), told("subcalls", done=16, total=16)], "running cell 3: 12 s"),
    "a cell that failed in its sub-calls": (
        [told("running", cell=3), told("subcalls", done=3, total=16), SUB, happened("tool", code="1", error="x")],
        "",
    ),
    "a child": ([told("running", cell=3), told("running", node="n0.1", cell=1)], "running cell 1: 12 s"),
    "a child that ended": (
        [told("running", cell=3), told("running", node="n0.1", cell=1), happened("end", node="n0.1", depth=1)],
        "running cell 3: 12 s",
    ),
    "interrupted": ([ASKED, happened("interrupted", kind="turn")], ""),
    "ended": ([told("running", cell=3), told("subcalls", done=3, total=16), SUB, happened("end")], ""),
    "an unknown phase": ([ASKED, told("dreaming", text="x")], "waiting for the model 12 s"),
    "an event of odd types": ([told("reading", processed="x", total=[]), told("subcalls")], "reading the prompt"),
}


@pytest.mark.parametrize("name", DOING)
def test_progress_says_what_goes_on_now(clock: list[float], name: str) -> None:
    seen, words = DOING[name]
    progress = rlm_cli.Progress(rlm_cli.Terminal(io.StringIO()), {})
    for event in seen:
        progress.update(event)
    clock[0] += 12
    calls = sum(event["event"] == "call" for event in seen)
    head = f"12s  {calls} call{'s' * (calls != 1)}  0 tok  "
    assert progress.line().startswith(head)
    tail = re.split(r"depth \d", progress.line())[1].removeprefix("  llm_query 1")
    assert tail == (f"  {words}" if words else "")


def test_a_line_too_narrow_for_all_keeps_what_goes_on_now(clock: list[float]) -> None:
    limits = {"cost_budget_usd": 0.5, "max_subcalls": 40}
    progress = rlm_cli.Progress(rlm_cli.Terminal(io.StringIO()), limits)
    progress.update(happened("call", kind="sub", cost_usd=0.0131, token_usage={"input": 18_000, "output": 240}))
    progress.update(told("subcalls", done=3, total=16))
    whole = "0s  1 call  18,240 tok  $0.0131 / $0.50  depth 0  llm_query 1/40  3 of 16 sub-calls"
    shorter = ["0s  1 call  18,240 tok  $0.0131 / $0.50  llm_query 1/40  3 of 16 sub-calls"]
    shorter += ["0s  1 call  $0.0131 / $0.50  llm_query 1/40  3 of 16 sub-calls"]
    shorter += ["0s  1 call  llm_query 1/40  3 of 16 sub-calls", "0s  1 call  3 of 16 sub-calls"]
    shorter += ["0s  3 of 16 sub-calls"]
    assert progress.line() == progress.line(len(whole)) == whole
    assert [progress.line(len(before) - 1) for before in [whole, *shorter[:-1]]] == shorter
    batch = rlm_cli.BatchProgress(rlm_cli.Terminal(io.StringIO()), limits)
    batch.update(told("asking", kind="turn"))
    assert batch.line(30) == "0/0 rows  0s  0 calls  $0"[: len(batch.line(30))] and len(batch.line(30)) <= 30


@pytest.mark.parametrize("quiet", [False, True])
def test_the_plain_line_tells_it_too_and_quiet_says_nothing(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ticked = threading.Event()

    class End(threading.Event):
        """Ten seconds go by once."""

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == 10
            if ticked.is_set():
                self.set()
            ticked.set()
            return self.is_set()

    class Stream(io.StringIO):
        def flush(self) -> None:
            written.set()

    written = threading.Event()
    stream = Stream()
    fake = types.SimpleNamespace(Event=End, Thread=threading.Thread, Lock=threading.Lock)
    monkeypatch.setattr(rlm_cli, "threading", fake)
    progress = rlm_cli.Progress(rlm_cli.Terminal(stream), {}, quiet=quiet)
    with progress:
        progress.update(told("loading", text="loading qwen\x1b[2J.gguf (1.1 GB): 3 s"))
        assert quiet or written.wait(10)
    shown = stream.getvalue()
    assert (
        shown == ""
        if quiet
        else re.fullmatch(r"0s  0 calls .*depth 0(  loading qwen\.gguf \(1\.1 GB\): 3 s)?\n", shown)
    )


def test_many_threads_may_tell_at_once() -> None:
    activity = rlm_viz.Activity()
    failures: list[BaseException] = []

    def tell(node: str) -> None:
        try:
            for _ in range(300):
                for event in (told("running", node, cell=1), told("asking", node, kind="sub"), happened("end", node)):
                    activity.update(event)
                    activity.words()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=tell, args=(f"n0.{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failures, activity.words()) == ([], "")


def test_progress_is_no_line_of_jsonl(openai: Server) -> None:
    openai.script = answer_with(code("llm_query('q')"), "Paris", sub="s")
    for arguments in (["What?"], ["--stream", "What?"]):
        ran = rlm("--jsonl", *arguments)
        kinds = {json.loads(line)["event"] for line in ran.stdout.splitlines()}
        assert "progress" not in kinds and {"start", "end", "result"} <= kinds


def test_a_stream_on_a_terminal_waits_visibly_and_takes_the_line_away(openai: Server) -> None:
    free = threading.Event()
    openai.script = lambda request: Turn("Paris", until=free)
    terminal = Terminal("--stream", "What?")
    terminal.wait_for(r"\ds  0 calls  0 tok  \$0  depth 0  waiting for the model \d s")
    free.set()
    assert terminal.finish() == 0
    assert terminal.shown.endswith("\r\x1b[KParis\r\n")


def test_without_a_terminal_nothing_is_painted(openai: Server) -> None:
    openai.script = answer_with(code("1"), "Paris")
    ran = rlm("What?")
    assert b"\r" not in ran.stderr and b"\x1b" not in ran.stderr and ran.stderr.count(b"\n") == 1


STEERING = "a\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b2J\x08\x00z\r\n\tend\u202e"


def test_control_characters_reach_a_pipe_and_not_a_terminal(openai: Server) -> None:
    openai.script = answer_with(STEERING)
    assert rlm("-q", "What?").stdout.decode("utf-8") == STEERING + "\n"
    terminal = Terminal("-q", "What?")
    assert terminal.finish() == 0
    assert "aredz\r\n\tend\r\n" in terminal.shown.replace("\r\x1b[K", "")


@pytest.mark.parametrize(
    ("variables", "arguments", "coloured"),
    [
        ({}, [], False),
        ({"FORCE_COLOR": "1"}, [], True),
        ({"FORCE_COLOR": ""}, [], False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, [], False),
        ({"FORCE_COLOR": "1", "NO_COLOR": ""}, [], True),
        ({"NO_COLOR": "1"}, ["--color", "always"], True),
        ({"FORCE_COLOR": "1"}, ["--color", "never"], False),
    ],
)
def test_colours_follow_flag_then_no_color_then_force_color(
    openai: Server, variables: dict[str, str], arguments: list[str], coloured: bool
) -> None:
    openai.script = answer_with("Paris")
    ran = rlm("What?", *arguments, env=variables)
    assert (b"\x1b[32m" in ran.stderr, ran.stdout) == (coloured, b"Paris\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"},
    ],
    ids=["C", "C, not coerced", "ascii", "latin-1"],
)
def test_no_locale_breaks_on_a_check_mark(openai: Server, variables: dict[str, str]) -> None:
    openai.script = answer_with(code("print('→')"), "naïve 🎉")
    for arguments in (["-v", "What?"], ["logs"], ["doctor"], ["--help"], ["providers"]):
        ran = rlm(*arguments, env=variables)
        assert ran.returncode == 0 and b"Traceback" not in ran.stderr, ran.stderr
    (log,) = journals()
    assert rlm("logs", log.stem, env=variables).returncode == 0


def test_a_lone_surrogate_in_the_prompt_and_in_the_answer(openai: Server) -> None:
    openai.script = answer_with(code(r"FINAL('a\ud83dz')"))
    ran = subprocess.run([*MODULE, "-q", b"caf\xe9?"], capture_output=True, stdin=subprocess.DEVNULL)
    assert (ran.returncode, ran.stdout.decode()) == (0, "a\ufffdz\n"), ran.stderr


def test_verbose_shows_the_call_tree_as_it_grows(openai: Server) -> None:
    openai.script = answer_with(code("print(llm_query('hm'))"), "done", sub="yes")
    ran = rlm("-v", "What?")
    lines = ran.stderr.decode().splitlines()
    shapes = [
        r"◆ gpt-4o-mini: What\?",
        r"● turn 1 · .*tok .*",
        r"  ○ llm_query · .* · yes",
        r"  ▶ cell 1: print.* → yes",
    ]
    shapes += [r"● turn 2 · .* · done", r"✓ done", r"✓ [\d.]+ m?s · 3 calls · .*"]
    assert len(lines) == len(shapes) and all(re.fullmatch(s, line) for s, line in zip(shapes, lines, strict=True)), (
        lines
    )


# --- logs and pages --------------------------------------------------------------------------------------------------


def test_logs_lists_runs_and_shows_one_by_any_unique_prefix(openai: Server) -> None:
    openai.script = answer_with(code("print(6 * 7)"), "forty-two")
    for prompt in ("First?", "Second?"):
        assert rlm("-q", prompt).returncode == 0
    listed = rlm("logs").stdout.decode().splitlines()
    assert len(listed) == 2 and listed[0].endswith("Second?") and " answered " in listed[0]
    name = listed[0].split()[0]
    tree = rlm("logs", name[:6]).stdout.decode()
    assert name in tree and "turn 2" in tree and "cell 1" in tree and "print(6 * 7)" in tree
    merged = json.loads(rlm("logs", name, "--json").stdout)
    assert [e["event"] for e in merged] == ["start", "call", "tool", "call", "end"]
    assert all("content" in message for e in merged if e["event"] == "call" for message in e["prompt"])
    assert [run["id"] for run in json.loads(rlm("logs", "--json").stdout)] == [line.split()[0] for line in listed]
    assert rlm("logs", "-n", "1").stdout.decode().splitlines() == listed[:1]


def test_the_tree_of_a_run_is_coloured_as_the_flag_says(openai: Server) -> None:
    openai.script = answer_with("Paris")
    assert rlm("-q", "Capital?").returncode == 0
    (log,) = journals()
    assert b"\x1b[" in rlm("logs", log.stem, "--color", "always").stdout
    assert b"\x1b[" not in rlm("logs", log.stem, "--color", "never", env={"FORCE_COLOR": "1"}).stdout


def test_logs_of_an_empty_folder() -> None:
    ran = rlm("logs")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"no runs in ./logs\n")


def test_an_ambiguous_prefix_names_the_candidates(workspace: Path) -> None:
    (workspace / "logs").mkdir()
    for name in ("abc123-000001", "abc123-000002"):
        (workspace / "logs" / f"{name}.jsonl").write_text("")
    ran = rlm("logs", "abc")
    assert ran.returncode == 2 and "abc123-000001" in three_lines(ran.stderr)[0]


def test_following_a_run_shows_its_steps_as_they_happen(openai: Server) -> None:
    free = threading.Event()
    openai.script = answer_with(code("print(1)"), Turn("done", until=free))
    run = start("What?")
    journal_line('"event":"tool"')
    follower = start("logs", "--follow")
    assert follower.stdout
    first = follower.stdout.readline().decode()
    assert first.startswith("◆ gpt-4o-mini: What?")
    free.set()
    assert ended(run)[0] == 0
    code_, out, _ = ended(follower)
    assert code_ == 0 and out.splitlines()[-1] == "✓ done"


def test_visualize_writes_one_page_of_all_runs(openai: Server, workspace: Path) -> None:
    openai.script = answer_with("Paris")
    rlm("-q", "What?")
    ran = rlm("visualize", "-o", "out.html")
    assert (ran.returncode, ran.stdout) == (0, b"out.html\n")
    assert "Paris" in (workspace / "out.html").read_text()
    assert rlm("visualize", journals()[0].stem[:5], "--dir", "logs").stdout == b"trajectory.html\n"


# --- configuration, trust, doctor and the rest ------------------------------------------------------------------------


def test_config_shows_value_and_origin_and_masks_keys(workspace: Path) -> None:
    (workspace / "rlm.toml").write_text("[rlm]\nmax_subcalls = 7\nmax_depth = 2\n")
    variables = {"RLM_MAX_DEPTH": "3", "RLM_API_KEY": scripted.KEY, "RLM_BASE_URL": "http://me:hush@localhost:1/v1"}
    ran = rlm("config", "--json", "--token-budget", "9", env=variables)
    found = json.loads(ran.stdout)
    assert found["max_subcalls"] == {"value": 7, "origin": "rlm.toml:2"}
    assert found["max_depth"] == {"value": 3, "origin": "RLM_MAX_DEPTH"}
    assert found["token_budget"] == {"value": 9, "origin": "--token-budget"}
    assert found["max_errors"] == {"value": 5, "origin": "default"}
    assert found["api_key"] == {"value": "…" + scripted.KEY[-4:], "origin": "RLM_API_KEY"}
    assert found["base_url"]["value"] == "http://…@localhost:1/v1"
    text = rlm("config", env=variables)
    assert re.search(r"^max_depth +3 +RLM_MAX_DEPTH$", text.stdout.decode(), re.MULTILINE)
    assert scripted.KEY.encode() not in text.stdout + text.stderr and b"hush" not in text.stdout


def test_init_writes_a_file_that_changes_nothing_until_it_is_edited(workspace: Path) -> None:
    before = rlm("config", "--json").stdout
    assert rlm("init").stdout == b"rlm.toml\n"
    assert rlm("config", "--json").stdout == before
    again = rlm("init")
    assert again.returncode == 2 and "is already there" in three_lines(again.stderr)[0]
    given = rlm("init", "--force", "-m", "gpt-4o", "--base-url", "http://localhost:9/v1")
    assert given.returncode == 0, given.stderr
    found = json.loads(rlm("config", "--json").stdout)
    assert (found["model"]["value"], found["base_url"]["value"]) == ("gpt-4o", "http://localhost:9/v1")


def test_init_in_a_folder_that_cannot_be_written(workspace: Path) -> None:
    (workspace / "rlm.toml").mkdir()
    ran = rlm("init", "--force")
    assert (ran.returncode, three_lines(ran.stderr)[0]) == (2, "rlm: cannot write rlm.toml: Is a directory")


def test_trust_is_asked_for_given_shown_and_taken_back(openai: Server, workspace: Path) -> None:
    (workspace / "rlm.toml").write_text('[rlm]\nmodel = "gpt-4o-mini"\nallowed_paths = ["/"]\n')
    openai.script = answer_with("Paris")
    refused = rlm("What?")
    lines = three_lines(refused.stderr)
    assert refused.returncode == 2 and "rlm.toml:3: 'allowed_paths'" in lines[0] and "rlm trust" in lines[-1]
    assert rlm("trust", "--show").stdout.decode().splitlines()[0].endswith("rlm.toml: not trusted")
    assert rlm("trust").returncode == 0
    assert json.loads(rlm("trust", "--show", "--json").stdout) == {
        "path": str(workspace / "rlm.toml"),
        "trusted": True,
        "needs_trust": {"allowed_paths": ["/"]},
    }
    assert rlm("What?").stdout == b"Paris\n"
    (workspace / "rlm.toml").write_text('[rlm]\nallowed_paths = ["/etc"]\n')
    assert rlm("What?").returncode == 2
    assert rlm("trust").returncode == 0 and rlm("trust", "--revoke").returncode == 0
    assert rlm("What?").returncode == 2
    assert len(openai.requests) == 1


def test_a_file_that_cannot_be_read_is_not_trusted_and_its_trust_can_be_taken_back(workspace: Path) -> None:
    file = workspace / "rlm.toml"
    file.write_text('[rlm]\nallowed_paths = ["/"]\n')
    assert rlm("trust").returncode == 0
    before = file.read_text()
    for text, message in (("[rlm]\nmdoel = 1\n", "unknown key 'mdoel'"), ("[rlm", "not valid TOML")):
        file.write_text(text)
        ran = rlm("trust")
        assert ran.returncode == 2 and message in three_lines(ran.stderr)[0]
    assert rlm("trust", "--revoke").stdout.decode() == f"{file}: no longer trusted\n"
    file.write_text(before)
    assert rlm("trust", "--show").stdout.decode().splitlines()[0] == f"{file}: not trusted"


def test_doctor_says_what_works_and_exits_1_if_a_required_line_fails(workspace: Path) -> None:
    ran = rlm("doctor", "--json", env={"OPENAI_API_KEY": scripted.KEY})
    found = json.loads(ran.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert (ran.returncode, found["ok"]) == (0, True), found
    assert {
        "rlm",
        "python",
        "requests",
        "RestrictedPython",
        "configuration",
        "keys",
        "sandbox",
        "docker",
        "logs",
    } <= set(checks)
    assert f"OPENAI_API_KEY …{scripted.KEY[-4:]}" in checks["keys"]["detail"]
    (workspace / "rlm.toml").write_text("[rlm]\nno_such_key = 1\n")
    broken = rlm("doctor")
    assert broken.returncode == 1
    assert re.search(r"✗ configuration .*'no_such_key'\n +next: ", broken.stdout.decode())


def test_the_demo_in_a_folder_that_cannot_be_written_says_where_it_writes(workspace: Path) -> None:
    (workspace / "logs").write_text("a file, and no folder")
    ran = rlm("demo", "-q", env={"TMPDIR": str(workspace)})
    assert ran.returncode == 0, ran.stderr
    (folder,) = workspace.glob("rlm-demo-*")
    first = ran.stderr.decode().splitlines()[0]
    assert first == f"rlm: ./logs cannot be written; the journal and the page go to {folder}"
    assert {path.suffix for path in folder.iterdir()} >= {".jsonl", ".html"}
    refused = rlm("demo", "--log-dir", "logs")
    assert refused.returncode == 2 and three_lines(refused.stderr)[0] == "rlm: cannot write to 'logs'"


def doctor_says(*arguments: str, env: dict[str, str] | None = None) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(rlm("doctor", "--json", *arguments, env=env).stdout)["checks"]}


def test_doctor_says_whether_the_configured_server_answers(server: Server, workspace: Path) -> None:
    """Asked for its list of models only, which the scripted server has not: no call, no key."""
    own = {"RLM_BASE_URL": server.base_url, "RLM_MODEL": "toy"}
    found = doctor_says(env=own)
    assert found["model"]["state"] == "ok" and found["model"]["detail"] == f"toy at {server.base_url} answers"
    assert "keys" not in found
    assert not server.requests
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    gone = doctor_says("-m", "toy", "--base-url", f"http://127.0.0.1:{port}/v1")["model"]
    assert (gone["state"], f"toy at http://127.0.0.1:{port}/v1: no answer" in gone["detail"]) == ("fail", True)


def test_doctor_names_broken_tools_and_a_variable_that_nothing_reads(workspace: Path) -> None:
    (workspace / "broken.py").write_text("import no_such_module\n")
    found = doctor_says("--tools", "broken.py", env={"RLM_MODLE": "x"})
    assert (found["tools"]["state"], "no_such_module" in found["tools"]["detail"]) == ("fail", True)
    assert (
        "! environment    RLM_MODLE is not an option and is ignored\n                 next: did you mean 'RLM_MODEL'?"
        in rlm("doctor", env={"RLM_MODLE": "x"}).stdout.decode()
    )


def test_a_run_says_that_a_mistyped_variable_was_not_read(openai: Server) -> None:
    openai.script = answer_with("Paris")
    ran = rlm("Capital?", env={"RLM_MODLE": "x", "RLM_OF_ANOTHER_PROGRAM": "y"})
    notes = [line for line in ran.stderr.decode().splitlines() if line.startswith("rlm: ")]
    assert notes == ["rlm: RLM_MODLE is not an option and is ignored: did you mean 'RLM_MODEL'?"]


def test_doctor_takes_dockers_trouble_from_the_sandbox_that_would_use_it(workspace: Path) -> None:
    found = doctor_says(env={"DOCKER_HOST": "unix:///nowhere/docker.sock"})["docker"]
    assert found["state"] == "warn" and "no Docker daemon answers at unix:///nowhere/docker.sock" in found["detail"]
    assert "systemctl start docker" in found["next"]


def test_doctor_online_calls_each_provider_that_has_a_key(openai: Server) -> None:
    openai.script = lambda request: "ok"
    found = json.loads(rlm("doctor", "--json", "--online").stdout)
    (check,) = [check for check in found["checks"] if check["name"] == "openai"]
    assert (check["state"], len(openai.requests)) == ("ok", 1)
    openai.script = lambda request: scripted.error(401, f"bad key {scripted.KEY}")
    failing = rlm("doctor", "--json", "--online")
    (check,) = [check for check in json.loads(failing.stdout)["checks"] if check["name"] == "openai"]
    assert (check["state"], failing.returncode) == ("fail", 1)


def test_providers_lists_the_table(workspace: Path) -> None:
    (workspace / ".env").write_text(f"OPENAI_API_KEY={scripted.KEY}\n")
    rows = json.loads(rlm("providers", "--json").stdout)
    assert len(rows) > 100 and all(
        set(row) == {"id", "name", "wire", "base_url", "key_env", "key_present"} for row in rows
    )
    assert [row["key_present"] for row in rows if row["id"] in ("openai", "anthropic")] == [False, True]
    assert re.search(r"^✓ openai ", rlm("providers", "openai").stdout.decode(), re.MULTILINE)


def test_completion_scripts_complete(workspace: Path) -> None:
    need("bash")
    script = rlm("completion", "bash").stdout.decode()
    ask = 'COMP_WORDS=(rlm "$@"); COMP_CWORD=$#; _rlm; printf "%s\\n" "${COMPREPLY[@]}"'

    def complete(*words: str) -> list[str]:
        ran = subprocess.run(
            ["bash", "-c", f"{script}\n{ask}", "bash", *words], capture_output=True, text=True, check=True
        )
        return ran.stdout.split()

    assert complete("vis") == ["visualize"]
    assert complete("logs", "--fo") == ["--follow"]
    assert complete("prompt", "--max-it") == ["--max-iterations"]
    for shell in ("zsh", "fish"):
        assert b"visualize" in rlm("completion", shell).stdout


def test_version_and_help() -> None:
    import rlm as library

    assert rlm("--version").stdout.decode() == f"rlm {library.__version__}\n"
    text = rlm("--help").stdout.decode()
    for word in ("mcp-install", "--cost-budget", "-c, --context", "--no-log", "--jsonl", "-e, "):
        assert word in text
    assert rlm("logs", "-h").stdout.decode().startswith("usage: rlm logs")


def test_every_option_is_a_flag_and_every_command_has_help() -> None:
    import rlm as library
    import rlm_cli

    text = rlm("--help").stdout.decode()
    assert [name for name in library.OPTIONS if f"--{name.replace('_', '-')}" not in text] == []
    commands = (
        "run init logs cost visualize resume replay chat batch mcp-serve mcp-install config doctor providers demo trust"
    )
    assert set(rlm_cli.COMMANDS) == {*commands.split(), "models", "export", "completion"}
    for name in rlm_cli.COMMANDS:
        ran = rlm(name, "--help")
        assert (ran.returncode, ran.stdout.split()[:3]) == (0, [b"usage:", b"rlm", name.encode()]), name


def test_help_and_mcp_serve_import_only_what_they_need(workspace: Path) -> None:
    report = "import sys, rlm_cli\ncode = rlm_cli.main({!r})\nsys.stderr.write(' '.join(sys.modules))\nsys.exit(code)"
    served = rlm(program=[sys.executable, "-c", report.format(["mcp-serve"])], input=b"")
    assert served.returncode == 0 and not {"argparse", "rlm", "rlm_backends", "requests"} & set(
        served.stderr.decode().split()
    )
    helped = rlm(program=[sys.executable, "-c", report.format(["--help"])])
    assert not {"requests", "docker", "RestrictedPython", "rlm_viz", "rlm_mcp"} & set(helped.stderr.decode().split())


def test_mcp_serve_says_nothing_on_stdout_where_stderr_is_closed() -> None:
    command = ["sh", "-c", 'exec "$0" -m rlm mcp-serve --nope 2>&-', sys.executable]
    ran = subprocess.run(command, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (2, b"")


def test_mcp_serve_refuses_what_it_does_not_know() -> None:
    for arguments in (["--nope"], ["--env", "cloud"], ["--max-wait", "soon"], ["--workspace"]):
        ran = rlm("mcp-serve", *arguments)
        assert (ran.returncode, ran.stdout) == (2, b"") and len(three_lines(ran.stderr)) == 2


# --- the demo --------------------------------------------------------------------------------------------------------


def test_the_demo_works_on_its_log_and_is_checked() -> None:
    ran = rlm("demo")
    assert ran.returncode == 0, ran.stderr
    said = ran.stderr.decode()
    assert "a scripted model answers here" in said and "checked: this is what the log's generator says" in said
    recorded = events()
    kinds = [(e["event"], e.get("kind")) for e in recorded]
    assert kinds.count(("start", "child")) == 1 and kinds.count(("call", "sub")) > 1
    assert recorded[0]["context"]["size"] >= 5_000_000
    assert ran.stdout.decode().strip() == recorded[-1]["response"]
    assert re.search(r"log: \./logs/\S+\.jsonl\npage: \./logs/\S+\.html\n", said)
    assert list(Path("logs").glob("*.html"))


def test_an_interrupted_demo_is_not_to_be_resumed() -> None:
    """Its model is gone."""
    process = start("demo", "-q")
    journal_line('"event":"call"')
    status, _, err = interrupt(process)
    assert status == 130 and "rlm: interrupted" in err and "resume" not in err


def test_the_demo_uses_no_key_and_no_configuration_that_is_there(workspace: Path) -> None:
    (workspace / "rlm.toml").write_text("[rlm]\nno_such_key = 1\n")
    ran = rlm("demo", "-q", env={"OPENAI_API_KEY": scripted.KEY, "RLM_PROTOCOL": "text", "RLM_TOKEN_BUDGET": "10"})
    assert ran.returncode == 0, ran.stderr


def test_the_generator_knows_the_truth() -> None:
    import rlm_cli

    log, truth = rlm_cli.demo_log(200_000)
    failed = re.findall(r'customer="([^"]+)" .*status=failed', log)
    worst = max(set(failed), key=failed.count)
    assert truth.startswith(f"{worst}: {failed.count(worst)} failed payments")


# --- batch -----------------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_keeps_the_order_and_a_failure_is_a_row(openai: Server, workspace: Path) -> None:
    prompts = ["slow", "bad", {"prompt": "with context", "context": "ctx"}, "quick"]
    (workspace / "p.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts) + "\n")
    quick_done = threading.Event()

    def reply(request: Request) -> Any:
        if "slow" in request.prompt:
            return Turn("slow!", until=quick_done)
        if "bad" in request.prompt:
            return scripted.error(400, "no")
        if "with context" in request.prompt:
            return code("FINAL(context)")
        quick_done.set()
        return "quick!"

    openai.script = reply
    ran = rlm("batch", "p.jsonl", "-o", "r.jsonl", "-j", "4")
    assert ran.returncode == 1, ran.stderr
    rows = rows_of(workspace / "r.jsonl")
    assert [(r["index"], r["status"], r["response"]) for r in rows] == [
        (0, "answered", "slow!"),
        (1, "error", None),
        (2, "answered", "ctx"),
        (3, "answered", "quick!"),
    ]
    assert rows[1]["error"]["type"] == "ProviderError" and "4/4 rows  1 failed" in ran.stderr.decode()
    sent = len(openai.requests)
    openai.script = lambda request: "better"
    again = rlm("batch", "p.jsonl", "-o", "r.jsonl")
    assert (again.returncode, len(openai.requests) - sent) == (0, 1)
    assert [r["response"] for r in rows_of(workspace / "r.jsonl")] == ["slow!", "better", "ctx", "quick!"]


def test_a_batch_that_was_killed_does_only_what_is_missing(openai: Server, workspace: Path) -> None:
    (workspace / "p.jsonl").write_text("".join(f'"item {n}"\n' for n in range(6)))
    free = threading.Event()
    openai.script = lambda request: Turn("done", until=free) if re.search("item [345]", request.prompt) else "done"
    process = start("batch", "p.jsonl", "-o", "r.jsonl", "-j", "2")
    openai.wait_for(5)
    process.kill()
    ended(process)
    free.set()
    assert len(rows_of(workspace / "r.jsonl")) == 3
    with open(workspace / "r.jsonl", "a") as file:
        file.write('{"index": 5, "ke')  # as a kill in mid-write leaves it
    sent = len(openai.requests)
    assert rlm("batch", "p.jsonl", "-o", "r.jsonl").returncode == 0
    assert len(openai.requests) - sent == 3
    assert [r["index"] for r in rows_of(workspace / "r.jsonl")] == list(range(6))


def test_a_batch_keeps_what_other_prompts_came_to(openai: Server, workspace: Path) -> None:
    (workspace / "a.jsonl").write_text('"one"\n"two"\n')
    (workspace / "b.jsonl").write_text('"three"\n')
    openai.script = lambda request: request.prompt
    for name in ("a", "b"):
        assert rlm("batch", f"{name}.jsonl", "-o", "r.jsonl").returncode == 0
    assert [row["prompt"] for row in rows_of(workspace / "r.jsonl")] == ["three", "one", "two"]
    assert rlm("batch", "a.jsonl", "-o", "r.jsonl").returncode == 0
    assert [row["prompt"] for row in rows_of(workspace / "r.jsonl")] == ["one", "two", "three"]
    assert len(openai.requests) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not\nours, and no last newline", "holds something else"),
        ("no newline at all", "holds something else"),
        ('{"a": "row"}\n', "holds something else"),
        (None, "that is not a batch results file"),
    ],
)
def test_a_batch_writes_over_nothing_that_is_not_its_own(
    openai: Server, workspace: Path, content: str | None, message: str
) -> None:
    (workspace / "p.jsonl").write_text('"x"\n')
    target = workspace / "notes.txt"
    target.write_text(content) if content else os.link("p.jsonl", target)
    before = target.read_bytes()
    ran = rlm("batch", "p.jsonl", "-o", "notes.txt")
    assert (ran.returncode, target.read_bytes(), openai.requests) == (2, before, [])
    assert message in three_lines(ran.stderr)[0]


def test_a_row_without_its_newline_is_kept_and_a_torn_one_is_not(openai: Server, workspace: Path) -> None:
    (workspace / "p.jsonl").write_text('"x"\n"y"\n')
    openai.script = lambda request: request.prompt
    assert rlm("batch", "p.jsonl", "-o", "r.jsonl").returncode == 0
    whole = (workspace / "r.jsonl").read_bytes()
    for cut, asked in ((1, 2), (9, 3), (len(whole) - 5, 5)):
        (workspace / "r.jsonl").write_bytes(whole[:-cut])
        assert rlm("batch", "p.jsonl", "-o", "r.jsonl").returncode == 0
        assert [row["response"] for row in rows_of(workspace / "r.jsonl")] == ["x", "y"]
        assert len(openai.requests) == asked


def test_a_terminated_batch_keeps_what_it_has_and_every_journal_an_end(openai: Server, workspace: Path) -> None:
    (workspace / "p.jsonl").write_text('"quick"\n"slow"\n"slower"\n')
    openai.script = lambda request: "done" if "quick" in request.prompt else scripted.hang()
    process = start("batch", "p.jsonl", "-o", "r.jsonl")
    openai.wait_for(3)
    wait_until(lambda: bool((workspace / "r.jsonl").read_text()), "no row was written")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert [row["prompt"] for row in rows_of(workspace / "r.jsonl")] == ["quick"]
    statuses = [json.loads(path.read_text().splitlines()[-1]).get("status") for path in journals()]
    assert sorted(map(str, statuses)) == ["answered", "interrupted", "interrupted"]


def test_two_batches_do_not_write_to_one_file(openai: Server, workspace: Path) -> None:
    (workspace / "p.jsonl").write_text('"x"\n')
    free = threading.Event()
    openai.script = lambda request: Turn("done", until=free)
    first = start("batch", "p.jsonl", "-o", "r.jsonl")
    openai.wait_for(1)
    second = rlm("batch", "p.jsonl", "-o", "r.jsonl")
    free.set()
    assert (ended(first)[0], second.returncode, len(openai.requests)) == (0, 2, 1)
    assert "in use" in three_lines(second.stderr)[0]
    assert [row["response"] for row in rows_of(workspace / "r.jsonl")] == ["done"]


def test_a_csv_with_a_template(openai: Server, workspace: Path) -> None:
    (workspace / "rows.csv").write_text('name,place name\n"Ada, L.",London\nBob,Bern\n')
    openai.script = lambda request: request.prompt
    ran = rlm("batch", "rows.csv", "--prompt", 'Where is {name} in {place name}? {"json": 1}', "-q")
    rows = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [r["prompt"] for r in rows] == [
        'Where is Ada, L. in London? {"json": 1}',
        'Where is Bob in Bern? {"json": 1}',
    ]


@pytest.mark.parametrize(
    ("name", "content", "arguments", "message"),
    [
        ("p.jsonl", '"ok"\n{bad\n', [], "p.jsonl:2: not JSON"),
        ("p.jsonl", "[1]\n", [], "p.jsonl:1: neither a string nor an object"),
        ("p.jsonl", '{"prompt": " "}\n', [], "p.jsonl:1: no prompt in this row"),
        ("p.csv", "a,b\n1,2\n", ["--prompt", "{aa}"], "--prompt: no column 'aa'"),
        ("p.jsonl", "\n", [], "'p.jsonl' has no rows"),
        ("p.jsonl", '"x"\n', ["-j", "0"], "-j of at least 1"),
        ("p.jsonl", '"x"\n', ["-o", "no/such/r.jsonl"], "cannot write 'no/such/r.jsonl'"),
    ],
)
def test_a_bad_batch_is_refused_before_anything_is_sent(
    openai: Server, workspace: Path, name: str, content: str, arguments: list[str], message: str
) -> None:
    (workspace / name).write_text(content)
    ran = rlm("batch", name, *arguments)
    assert (ran.returncode, openai.requests) == (2, [])
    assert message in three_lines(ran.stderr)[0]


@pytest.mark.parametrize(
    ("lines", "first", "last"),
    [
        ("What?\nWhy?\n", "p.jsonl:1: not JSON", "a JSON string in quotes, or an object, on each line"),
        ('\n\n{"promt": "x"}\n', "p.jsonl:3: unknown key 'promt'", "did you mean 'prompt'?"),
        ('{"prompt": "x", "model": "y"}\n', "p.jsonl:1: unknown key 'model'", "there are: context, prompt"),
        ('"x"\n\n[1]\n', "p.jsonl:3: neither a string nor an object", '{"prompt": "…"'),
    ],
    ids=["plain text", "mistyped", "unknown", "after a blank line"],
)
def test_a_row_that_is_none_is_named_with_its_line(workspace: Path, lines: str, first: str, last: str) -> None:
    (workspace / "p.jsonl").write_text(lines)
    said = three_lines(rlm("batch", "p.jsonl").stderr)
    assert first in said[0] and last in said[-1]


def test_a_batch_names_the_reason_of_its_first_failure(openai: Server, workspace: Path) -> None:
    (workspace / "p.jsonl").write_text('"a"\n"b"\n')
    openai.script = lambda request: scripted.error(401, f"bad key {scripted.KEY}")
    ran = rlm("batch", "p.jsonl", "-o", "r.jsonl")
    figures, reason = ran.stderr.decode().splitlines()[-2:]
    assert "2 failed" in figures and reason.startswith("rlm: first failure: ")
    assert rows_of(workspace / "r.jsonl")[0]["error"]["message"][:40] in reason and scripted.KEY not in reason


def test_a_batch_that_is_stopped_says_how_far_it_came(openai: Server, workspace: Path) -> None:
    (workspace / "p.jsonl").write_text('"quick"\n"slow"\n')
    openai.script = lambda request: "done" if "quick" in request.prompt else scripted.hang()
    process = start("batch", "p.jsonl", "-o", "r.jsonl", "-j", "1")
    openai.wait_for(2)
    process.send_signal(signal.SIGINT)
    status, _, err = ended(process)
    assert status == 130
    assert err.endswith("rlm: interrupted\n  1 of 2 done\n  next: the same command goes on\n")


def test_one_budget_for_the_whole_batch(openai: Server, workspace: Path) -> None:
    (workspace / "p.jsonl").write_text('"a"\n"b"\n"c"\n')
    openai.script = lambda request: Turn("x", usage={"input": 900, "output": 100})
    ran = rlm("batch", "p.jsonl", "-j", "1", "--one-budget", "--token-budget", "2400", "-q")
    statuses = [json.loads(line)["status"] for line in ran.stdout.splitlines()]
    assert (ran.returncode, statuses[0], statuses[-1]) == (1, "answered", "partial")


# --- chat ------------------------------------------------------------------------------------------------------------


def test_a_chat_keeps_its_variables_and_says_them(openai: Server) -> None:
    replies = {"set": code("x = 41\nFINAL('set')"), "add": code("FINAL(x + 1)")}
    openai.script = lambda request: replies[request.messages[-1]["content"].partition("\n")[0]]
    ran = rlm("chat", input=b"set\nadd\n/vars\n/cost\n/save talk.md\n/nope\n/quit\n")
    assert (ran.returncode, ran.stdout) == (0, b"set\n42\n"), ran.stderr
    said = ran.stderr.decode()
    assert re.search(r"^x +int +", said, re.MULTILINE) and "2 calls" in said and "/reset" in said
    assert Path("talk.md").read_text() == "## set\n\nset\n\n## add\n\n42\n"


def test_a_chat_says_what_was_assumed_about_its_context(openai: Server, workspace: Path) -> None:
    (workspace / "a.txt").write_bytes("caf\xe9 cr\xe8me, d\xe9j\xe0 vu, na\xefve".encode("latin-1"))
    openai.script = answer_with("ok")
    noted = [line for line in rlm("What?", "-c", "a.txt").stderr.splitlines() if b"rlm: context: " in line]
    assert noted and noted[0] in rlm("chat", "-c", "a.txt", input=b"What?\n").stderr.splitlines()


def test_a_chat_sums_its_cost_without_the_limits_of_a_prompt(openai: Server) -> None:
    openai.script = lambda request: "yes" if request.prompt == "more?" else code("FINAL(llm_query('more?'))")
    ran = rlm("chat", "--max-subcalls", "1", input=b"first\nsecond\n/cost\n")
    assert (ran.returncode, ran.stdout) == (0, b"yes\nyes\n"), ran.stderr
    assert b"llm_query 2\n" in ran.stderr


def test_a_chat_overwrites_only_what_it_has_saved(openai: Server, workspace: Path) -> None:
    openai.script = answer_with("ok")
    (workspace / "chat.md").symlink_to("elsewhere.md")
    (workspace / "notes.txt").write_text("mine")
    ran = rlm("chat", input=b"first\n/save\n/save notes.txt\n/save new.md\nsecond\n/save new.md\n")
    assert b"cannot write chat.md: it exists" in ran.stderr and b"cannot write notes.txt: it exists" in ran.stderr
    assert not Path("elsewhere.md").exists() and Path("notes.txt").read_text() == "mine"
    assert Path("new.md").read_text() == "## first\n\nok\n\n## second\n\nok\n"


def test_an_open_quote_in_a_table_is_an_error() -> None:
    Path("rows.csv").write_text('id,text\n1,"Came broken\n2,lamp\n')
    ran = here("batch", "rows.csv", "--prompt", "{text}")
    assert ran.returncode == 2 and b"is a quote not closed?" in ran.stderr


def test_an_empty_pipe_is_told_of(openai: Server) -> None:
    openai.script = answer_with("ok")
    note = b"rlm: stdin was empty: the run has no input"
    assert note in rlm("what?", input=b"").stderr
    assert note not in rlm("what?", "-q", input=b"").stderr + rlm("what?", "--no-stdin", input=b"").stderr


@pytest.mark.parametrize("flags", [["--schema", "s.json"], ["--json"], ["--html", "p.html"]])
def test_a_stream_refuses_what_it_would_ignore(flags: list[str]) -> None:
    ran = here("--stream", "--no-stdin", "hi", *flags)
    assert ran.returncode == 2 and b"--stream cannot be combined with " + flags[0].encode() in ran.stderr


def test_too_many_failures_name_the_command_that_allows_more(openai: Server) -> None:
    openai.script = answer_with(*[code("1/0")] * 3)
    ran = rlm("what?", "--no-stdin", "--max-errors", "2")
    assert re.search(rb"next: rlm resume \S+ --max-errors 4", ran.stderr), ran.stderr


def test_a_missing_package_is_no_bug() -> None:
    error = ModuleNotFoundError("No module named 'requests'", name="requests")
    assert rlm_cli.describe_error(error) == ("the package requests is not installed", "", "pip install requests")


def test_a_chat_reads_several_lines_and_forgets(openai: Server) -> None:
    openai.script = lambda request: str([m["content"] for m in request.messages if m["role"] == "user"])
    ran = rlm("chat", input=b'uno \\\ntwo\n"""\na\n\nb\n"""\n/reset\nfresh\n')
    lines = ran.stdout.decode().splitlines()
    assert "uno \\ntwo" in lines[0] and "a\\n\\nb" in lines[1] and "uno" not in lines[2] and "fresh" in lines[2]


def test_an_interrupted_turn_does_not_end_the_chat(openai: Server) -> None:
    hanging = threading.Event()

    def reply(request: Request) -> Any:
        text = request.last
        if "hang" in text:
            hanging.set()
            return scripted.hang()
        return code("x = 7\nFINAL('kept')") if "set" in text else code("FINAL(x)")

    openai.script = reply
    terminal = Terminal("chat")
    terminal.wait_for("> ")
    terminal.type("set\r")
    terminal.wait_for("kept\r\n")
    terminal.type("hang\r")
    assert hanging.wait(20)
    terminal.type("\x03")
    terminal.wait_for("the turn was interrupted")
    terminal.type("show\r")
    terminal.wait_for(r"\b7\r\n> ")
    terminal.type("/save\r")
    terminal.wait_for("chat.md\r\n> ")
    terminal.type("\x04")
    assert terminal.finish() == 0
    saved = Path("chat.md").read_text()
    assert saved == "## set\n\nkept\n\n## hang\n\n(no answer)\n\n## show\n\n7\n"


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Again after a while: readline does not see a signal that comes just before it waits, until the next one.

    Not too soon: a second signal, while the first is being obeyed, ends the process at once."""
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


@pytest.mark.parametrize("where", ["turn", "prompt"])
def test_a_terminated_chat_ends(openai: Server, where: str) -> None:
    openai.script = lambda request: scripted.hang() if "hang" in request.last else code("FINAL('kept')")
    terminal = Terminal("chat")
    terminal.type("set\r")
    terminal.wait_for(r"kept\r\n> ")
    if where == "turn":
        terminal.type("hang\r")
        openai.wait_for(2)
    ending = threading.Thread(target=terminate, args=(terminal.process,))
    ending.start()
    assert terminal.finish() == 143
    ending.join()
    assert re.search(r"to go on: rlm chat --resume \S+\r\n.*terminated\r\n$", terminal.shown)
    assert "the turn was interrupted" not in terminal.shown
    assert events()[-1]["event"] == "end"


def test_a_failing_turn_does_not_end_the_chat(openai: Server) -> None:
    openai.script = lambda request: scripted.error(400, "no") if "bad" in request.last else "fine"
    ran = rlm("chat", input=b"bad\ngood\n")
    assert (ran.returncode, ran.stdout) == (0, b"fine\n") and b"rlm: " in ran.stderr
