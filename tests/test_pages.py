"""The pages on chat, batch, migrating, extending, questions and words: their sessions, programs and messages."""

from __future__ import annotations

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

__all__ = ["desk"]  # a fixture
DOCS = ROOT / "docs"


# --- the model -----------------------------------------------------------------------------------------------------

CELLS = {
    "How many payments failed?": "rows = [line.split(',') for line in context.splitlines()[1:]]\n"
    "failed = [row for row in rows if row[1] == 'failed']\nFINAL(len(failed))",
    "Which customers are they?": "FINAL(sorted({row[0] for row in failed}))",
    "Ask about each payment, one at a time.": "for line in context.splitlines(): llm_query('Paid? ' + line)",
    "Add these up.": "FINAL(sum(context))",
}
SAID = {"What is a ledger?": "A book of accounts."}


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


@pytest.mark.parametrize(("source", "shown"), [*programs("chat.md"), *programs("batch.md")])
def test_a_program_prints_what_the_page_says(source: str, shown: str, pages: Path) -> None:
    (pages / "program.py").write_text(source)
    ran = subprocess.run([sys.executable, "program.py"], cwd=pages, capture_output=True, text=True, timeout=60)
    assert (ran.stderr, ran.stdout) == ("", shown)
