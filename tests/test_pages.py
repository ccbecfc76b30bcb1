"""The pages on chat, batch, migrating, extending, questions and words: their sessions, programs and messages."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import ROOT
from scripted import Request, Server, Turn, code
from test_docs import desk, like, run_session, sessions

import rlm
import rlm_backends
import rlm_cli

__all__ = ["desk"]  # a fixture
DOCS = ROOT / "docs"


# --- the model -----------------------------------------------------------------------------------------------------

CELLS = {
    "How many payments failed?": "rows = [line.split(',') for line in context.splitlines()[1:]]\n"
    "failed = [row for row in rows if row[1] == 'failed']\nFINAL(len(failed))",
    "Which customers are they?": "FINAL(sorted({row[0] for row in failed}))",
    "Ask about each payment, one at a time.": "for line in context.splitlines(): llm_query('Paid? ' + line)",
    "Add these up.": "FINAL(sum(context))",
    "How many payments failed, and how many by the customer?": "failed = [row for row in context.splitlines() if "
    "',failed,' in row]\nwhose = llm_query_batched(['Is this the fault of the customer? ' + row for row in failed])\n"
    "FINAL(f\"{len(failed)} failed, {whose.count('yes')} by the customer\")",
    "What do a bolt and a nut cost together?": "FINAL(sum(price(item) for item in context))",
    "What does a bolt cost?": "FINAL(price('bolt'))",
    "Who wrote this?": "FINAL(context.removeprefix('From: ').split()[0])",
    "What do these cost together?": "FINAL(sum(price(item) for item in context['items']))",
}
SAID = {"What is a ledger?": "A book of accounts.", "What is a journal?": "A file of what happened."}


def model(request: Request) -> Any:
    """Answers the prompts of these pages: by code where the prompt needs it."""
    if not request.system:
        return "yes"
    asked = [str(message["content"]) for message in request.messages if message["role"] == "user"][-1]
    prompt = asked.partition("\n\n`context` is ")[0]
    if prompt in SAID:
        return SAID[prompt]
    return code(CELLS[prompt]) if prompt in CELLS else "yes"


# --- chat.md and batch.md ------------------------------------------------------------------------------------------


@pytest.fixture
def pages(desk: Path, openai: Server) -> Path:
    """The folder that the pages on chat and batch speak of."""
    refused: list[Request] = []

    def script(request: Request) -> Any:
        if "refused at first" in request.prompt and not refused:
            refused.append(request)
            return scripted.error(400, "try again later")
        return model(request)

    openai.script = script
    (desk / "prompts.jsonl").write_text(shown_by("batch.md", "cat prompts.jsonl"))
    (desk / "reviews.csv").write_text(shown_by("batch.md", "cat reviews.csv"))
    (desk / "mixed.jsonl").write_text('"a row"\n"a row that is refused at first"\n')
    return desk


def shown_by(page: str, command: str) -> str:
    return dict(sessions(DOCS / page))[command]


@pytest.mark.slow
@pytest.mark.parametrize("page", ["chat.md", "batch.md"])
def test_the_sessions_of_a_page_run_as_it_shows_them(page: str, pages: Path) -> None:
    run_session(sessions(DOCS / page), pages)


FIGURES = {
    "batch.md": {
        "at the same time (default {}": rlm_cli.command_parser("batch").get_default("jobs"),
        "at most {})": rlm_cli._MOST_JOBS,
        "`max_workers={}`": inspect.signature(rlm.RLM.batch).parameters["max_workers"].default,
    },
    "faq.md": {"up to {} characters are sent whole": rlm.OPTIONS["show_below"].default},
}


@pytest.mark.parametrize("page", FIGURES)
def test_the_figures_on_a_page_are_those_of_the_code(page: str) -> None:
    text = " ".join((DOCS / page).read_text().split())
    said = [words.format(f"{value:,}") for words, value in FIGURES[page].items()]
    assert [words for words in said if words not in text] == []


def conversations() -> list[Any]:
    """The chats of a page: the command, the lines that are typed, and the page's own text of all of it."""
    blocks = re.findall(r"^```chat\n\$ (.*?)\n(.*?)^```", (DOCS / "chat.md").read_text(), re.MULTILINE | re.DOTALL)
    return [
        pytest.param(
            command,
            "".join(re.findall(r"^> (.*\n)", text, re.MULTILINE)),
            re.sub(r"^> .*\n", "", text, flags=re.MULTILINE),
            id=command,
        )
        for command, text in blocks
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "typed", "shown"), conversations())
def test_a_conversation_goes_as_the_page_shows_it(command: str, typed: str, shown: str, pages: Path) -> None:
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 100}
    ran = subprocess.run(command, shell=True, cwd=pages, input=typed, **how)
    assert ran.returncode == 0
    assert like(shown).fullmatch(ran.stdout), ran.stdout


def programs(page: str) -> list[Any]:
    text = (DOCS / page).read_text()
    found = re.findall(r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", text, re.MULTILINE | re.DOTALL)
    return [
        pytest.param(source, shown, id=f"{page}-{number}")
        for number, (source, shown) in enumerate(found, 1)
        if "import Client" not in source  # needs a cluster: test_batch
    ]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        program
        for page in ("chat.md", "batch.md", "migrating.md", "extending.md", "faq.md")
        for program in programs(page)
    ],
)
def test_a_program_prints_what_the_page_says(source: str, shown: str, pages: Path) -> None:
    (pages / "program.py").write_text(source)
    ran = subprocess.run([sys.executable, "program.py"], cwd=pages, capture_output=True, text=True, timeout=60)
    assert (ran.stderr, ran.stdout) == ("", shown)


# --- migrating.md --------------------------------------------------------------------------------------------------

ENVIRONMENTS = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flat-rlm" / "bench"  # `make bench`


def fenced(tag: str, source: str) -> str:
    return f"```{tag}\n{source}\n```"


def to_rlms(request: Request) -> Any:
    if request.last.startswith("Is this the fault"):
        return "yes"
    cell = CELLS["How many payments failed, and how many by the customer?"]
    return fenced("repl", re.sub(r"FINAL\((.*)\)$", r"answer['content'] = \1\nanswer['ready'] = True", cell))


def to_dspy(request: Request) -> Any:
    cell = fenced("python", "SUBMIT(context.count(',failed,'))")
    return f"[[ ## reasoning ## ]]\nCount.\n\n[[ ## code ## ]]\n{cell}\n\n[[ ## completed ## ]]"


def to_rlm_runtime(request: Request) -> Any:
    if request.turn == 1:
        return Turn(tool_calls=[scripted.call("price", item=item) for item in ("bolt", "nut")])
    return code("result = len(context['items'])") if request.turn == 2 else "0.2"


def to_smolagents(request: Request) -> Any:
    return "Thought: add.\n<code>\nfinal_answer(sum(price(item) for item in items))\n</code>"


PEERS = {"rlms": to_rlms, "dspy": to_dspy, "rlm-runtime": to_rlm_runtime, "smolagents": to_smolagents}


def migration(peer: str) -> tuple[str, str, str]:
    """A section of the page: the peer's program, what both programs print, and the table of names."""
    text = (DOCS / "migrating.md").read_text()
    section = re.split(rf"^## From {'dspy.RLM' if peer == 'dspy' else peer}$", text, flags=re.MULTILINE)[1]
    section = section.partition("\n## ")[0]
    (program,) = re.findall(r"^```py\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return program, shown, section


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("peer", PEERS)
def test_a_program_of_theirs_prints_the_same(peer: str, server: Server, pages: Path) -> None:
    python = ENVIRONMENTS / peer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"make bench has not installed {peer} here")
    program, shown, _ = migration(peer)
    server.script = PEERS[peer]
    (pages / "program.py").write_text(program)
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "OPENAI_API_KEY", "OPENAI_BASE_URL", "NO_PROXY")}
    # litellm would fetch its prices at import
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "OPENAI_API_BASE": server.base_url}
    how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 180, "env": environment}
    ran = subprocess.run([str(python), "program.py"], cwd=pages, **how)
    assert ran.returncode == 0, ran.stderr
    # rlm-runtime logs to stdout
    assert [line for line in ran.stdout.splitlines(keepends=True) if "[debug" not in line] == [shown]


@pytest.mark.parametrize("peer", PEERS)
def test_every_option_of_ours_in_a_table_exists(peer: str) -> None:
    rows = re.findall(r"^\| (.*?) \| (.*?) \|", migration(peer)[2], re.MULTILINE)
    ours = {name for _, cell in rows[2:] for name in re.findall(r"`([a-z_]+)(?:=True)?`", cell)}
    arguments = {"on_event", "context", "completion"}
    in_the_repl = {"llm_query", "llm_query_batched", "rlm_query", "file_list", "context_query", "search", "remember"}
    assert len(ours) >= 5
    assert ours - set(rlm.OPTIONS) - arguments - in_the_repl == set()


def test_the_defaults_in_the_tables_are_ours() -> None:
    cells = re.findall(r"^\| .*? \| (.*?) \|", (DOCS / "migrating.md").read_text(), re.MULTILINE)
    said = {match for cell in cells for match in re.findall(r"`(\w+)` \(([\d,]+)\)", cell)}
    assert len(said) >= 5
    assert [(name, told) for name, told in said if f"{rlm.OPTIONS[name].default:,}" != told] == []


def test_the_session_with_a_configuration_file_of_rlm_runtime(pages: Path) -> None:
    (shown, told) = [output for _, output in sessions(DOCS / "migrating.md")]
    (pages / "rlm.toml").write_text(shown)
    run_session([("rlm config", told)], pages)


# --- extending.md --------------------------------------------------------------------------------------------------

EXTENDING = (DOCS / "extending.md").read_text()


def module_of_the_page(name: str) -> str:
    (source,) = re.findall(rf"^```py\n# {re.escape(name)}\n(.*?)^```", EXTENDING, re.MULTILINE | re.DOTALL)
    return str(source)


def install(group: str, module: str, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's module with the page's entry point, as pip would have installed them."""
    (entry,) = re.findall(
        rf'^\[project\.entry-points\."{re.escape(group)}"\]\n(\w+ = )"(.*)"$', EXTENDING, re.MULTILINE
    )
    info = site / f"{group}-1.dist-info"
    info.mkdir(parents=True)
    (site / module).write_text(module_of_the_page(module))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {group}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{''.join(entry)}\n")
    monkeypatch.setenv("PYTHONPATH", f"{site}:{os.environ['PYTHONPATH']}")


@pytest.mark.slow
def test_the_sessions_with_a_tools_file_and_a_reader(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("rlm.readers", "rlm_mail.py", tmp_path / "site", monkeypatch)
    (pages / "shop.py").write_text(module_of_the_page("shop.py"))
    (pages / "letter.eml").write_text("From: Ada <ada@example.org>\nSubject: Engines\n\nDear Charles,\n")
    run_session(sessions(DOCS / "extending.md"), pages)


@pytest.mark.slow
def test_the_page_s_package_of_tools_is_there_in_every_run(
    pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("rlm.tools", "shop.py", tmp_path / "site", monkeypatch)
    run_session([('rlm "What does a bolt cost?" -q', "0.12\n")], pages)


class Failing:
    """A backend whose first call fails with this code."""

    model = "failing-1"

    def __init__(self, code: str) -> None:
        self.code, self.calls = code, 0

    def complete(self, messages: Any, **_: Any) -> str:
        self.calls += 1
        if self.calls == 1:
            raise rlm_backends.BackendError("scripted", code=self.code)
        return "```python\nFINAL(6 * 7)\n```"


def test_what_the_page_says_of_a_backend_s_errors() -> None:
    changed, failed = Failing("no_tools"), Failing("rate")
    assert str(rlm.complete("go", backend=changed)) == "42"
    with pytest.raises(rlm.ProviderError, match="scripted"):
        rlm.complete("go", backend=failed)
    assert (changed.calls, failed.calls) == (2, 1)


# --- faq.md --------------------------------------------------------------------------------------------------------

ELSEWHERE = {"module 'rlm' has no attribute …", "… maximum context length is …"}  # of Python and of providers


def messages() -> list[str]:
    """The messages in the first column of the page's tables."""
    text = (DOCS / "faq.md").read_text().split("## Troubleshooting by message")[1]
    return [cell.strip("` ") for cell in re.findall(r"^\| (`.*?`+) \|", text, re.MULTILINE)]


@functools.cache
def strings_of_the_code() -> str:
    """Every string in the modules, a line each or more, `…` standing for what an f-string fills in."""
    found = []
    for path in ROOT.glob("rlm*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def is_in_the_code(words: str) -> bool:
    """Whether a string holds the words, or two strings do that the code puts together."""
    blanks = [found.start() for found in re.finditer(" ", words)]
    ways = [[words], *([words[:place], words[place + 1 :]] for place in blanks)]
    return any(all(part in strings_of_the_code() for part in way) for way in ways)


@pytest.mark.parametrize("message", messages())
def test_every_message_on_the_page_is_in_the_code(message: str) -> None:
    pieces = [piece.strip(" '") for piece in re.split(r"…|\d+", message)]
    pieces = [piece for piece in pieces if len(piece) >= 5]
    assert pieces
    assert message in ELSEWHERE or [piece for piece in pieces if not is_in_the_code(piece)] == []


def test_the_page_has_the_messages_that_users_meet_most() -> None:
    assert len(set(messages())) >= 40


# --- glossary.md ---------------------------------------------------------------------------------------------------


def test_the_glossary_is_in_order() -> None:
    words = re.findall(r"^\*\*(.+?)\*\*: ", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    asked = "root child node turn cell sub-call journal trajectory context profile protocol ledger budget snapshot"
    assert words == sorted(words, key=str.lower)
    assert set(f"{asked} compaction replay resume".split()) <= {word.lower() for word in words}
