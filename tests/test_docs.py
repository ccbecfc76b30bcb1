"""The documentation is run: commands and programs of README and quickstart; flags, keys and links of every page.

A ```console block is a session: lines after `$ ` are commands, the others what they print, `…` standing for anything.
A ```python block is a program; a ```text block after it is its whole output. The model is the scripted server.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scripted
from conftest import ROOT, need
from scripted import Request, Server, code

import rlm
import rlm_backends
import rlm_mcp
import rlm_sandbox
import rlm_tools
import rlm_worker

PAGES = sorted(
    [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *(ROOT / "docs").glob("*.md")]
)
RUN = {"README.md": ROOT / "README.md", "quickstart.md": ROOT / "docs" / "quickstart.md"}
INSTALLS = {"pip install .", "pip install -e '.[dev]' && make fast"}  # test_layout runs them, in a fresh environment
PAYMENTS = """customer,status,reason
Acme,failed,expired card
Brix,paid,
Acme,failed,expired card
Coil,failed,no funds
Acme,failed,no funds
"""


# --- the model -----------------------------------------------------------------------------------------------------

COUNT = "FINAL(sum(',failed,' in line for line in context.splitlines()))"
WORST = """import collections
rows = [line.split(",") for line in context.splitlines()[1:]]
failed = [row for row in rows if row[1] == "failed"]
worst, number = collections.Counter(row[0] for row in failed).most_common(1)[0]
why, times = collections.Counter(row[2] for row in failed if row[0] == worst).most_common(1)[0]
answer = f"{worst}: {number} failed payments, {times} of them for {why}"
print(answer)"""
BUSIEST = """import collections
errors = [line.split(None, 3)[2:] for line in context.splitlines() if " ERROR " in line]
service, number = collections.Counter(service for service, _ in errors).most_common(1)[0]
words = collections.Counter(text.partition(":")[0] for name, text in errors if name == service).most_common(1)[0][0]
answer = f"{service}: {number} errors; the most common is {words!r}"
print(answer)"""


def model(request: Request) -> Any:
    """Works by code, as a real one would; `answer` is what its first cell printed."""
    for words, program in (("failed payments, and why", WORST), ("logs the most errors", BUSIEST)):
        if words in request.prompt:
            return code(program) if request.turn == 1 else request.last.strip().splitlines()[0]
    if "How many payments failed" in request.prompt:
        return code(COUNT)
    if "bolt" in request.prompt:
        return code("FINAL(price('bolt') + price('nut'))")
    return "an answer"


@pytest.fixture
def desk(openai: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the pages speak of, `rlm` on the PATH and a model that answers."""
    openai.script = model
    (workspace / "payments.csv").write_text(PAYMENTS)
    (workspace / "big.log").write_text("08:00 ERROR disk full\n" * 1000)
    shutil.copytree(ROOT / "examples" / "data", workspace / "examples" / "data")
    (workspace / "src").mkdir()
    (workspace / "src" / "client.py").write_text("def retry(): ...\n")
    programs = workspace.parent / "bin"
    programs.mkdir()
    starts = {"python": '"$@"', "rlm": '-c "import sys, rlm_cli; sys.exit(rlm_cli.main())" "$@"'}
    for name, arguments in starts.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {sys.executable} {arguments}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    yield workspace


# --- sessions ------------------------------------------------------------------------------------------------------


def sessions(page: Path) -> list[tuple[str, str]]:
    """Each command of a page with the output that the page shows for it."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def like(shown: str) -> re.Pattern[str]:
    """What a page shows, as a pattern: a line `…` is any lines, `…` in a line anything but its end."""
    lines = [
        r"(?:.*\n)*?" if line.strip() == "…" else re.escape(line).replace("…", ".*?") + r"\n"
        for line in shown.splitlines()
    ]
    return re.compile("".join(lines))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUN)
def test_the_sessions_of_a_page_run_as_it_shows_them(page: str, desk: Path) -> None:
    """One shell for a page, so that what one command leaves is there for the next."""
    need("docker")
    commands = [(command, output) for command, output in sessions(RUN[page]) if command not in INSTALLS]
    # The key is there already; the page's own placeholder would replace it.
    commands = [(command, output) for command, output in commands if "OPENAI_API_KEY=…" not in command]
    assert len(commands) >= 5
    run_session(commands, desk)


def run_session(commands: list[tuple[str, str]], desk: Path) -> None:
    """Run the commands in one shell; each prints what the page shows, and fails only where the page shows an error."""
    end = "-- end of a command, exit code"
    script = "".join(f"{{\n{command}\n}} 2>&1\necho '{end}' $?\n" for command, _ in commands)
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 280}
    ran = subprocess.run(["bash", "-c", script], cwd=desk, **how)
    printed = re.split(rf"{end} (\d+)\n", ran.stdout)
    assert len(printed) == 2 * len(commands) + 1, ran.stderr
    for (command, shown), output, status in zip(commands, printed[::2], printed[1::2]):
        fails = re.match("rlm: (?!context: )", shown) is not None or "\nrlm: first failure: " in shown
        assert (int(status) != 0) == fails, f"$ {command}\n{output}"
        assert not shown or like(shown).fullmatch(output), f"$ {command}\n{output}"


# --- programs ------------------------------------------------------------------------------------------------------


# Other pages' programs are run by test_examples (tools.md) and test_layout (vendoring.md).
PROGRAMS = RUN | {f"{name}.md": ROOT / "docs" / f"{name}.md" for name in ("providers", "sandbox", "scaling")}
ELSEWHERE = ("import Client", "allowed_imports=")  # needs a cluster (test_batch), or numpy (test_sandbox)


def programs() -> list[Any]:
    found = []
    for name, page in PROGRAMS.items():
        blocks = re.findall(
            r"^```python\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", page.read_text(), re.MULTILINE | re.DOTALL
        )
        found += [
            pytest.param(source, shown, id=f"{name}-{number}")
            for number, (source, shown) in enumerate(blocks, 1)
            if not any(word in source for word in ELSEWHERE)
        ]
    return found


@pytest.mark.parametrize(("source", "shown"), programs())
def test_a_program_prints_what_the_page_says(
    source: str, shown: str, desk: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", scripted.KEY)
    (desk / "program.py").write_text(source)
    ran = subprocess.run([sys.executable, "program.py"], cwd=desk, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert not shown or ran.stdout == shown


# --- names ---------------------------------------------------------------------------------------------------------


def help_of(*command: str) -> str:
    ran = subprocess.run([sys.executable, "-m", "rlm", *command, "--help"], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Every flag of every command."""
    commands = re.findall(r"^  ([a-z-]+)  ", help_of().split("commands")[1], re.MULTILINE)
    assert {"run", "logs", "doctor", "mcp-serve"} <= set(commands)
    return set(re.findall(r"--[a-z][a-z-]+", "\n".join([help_of(), *map(help_of, commands)])))


def ours(text: str) -> Iterator[str]:
    """The flags that a page gives to `rlm`: in its commands, and in `code` that is a flag alone."""
    for line in re.findall(r"(?:^|`)(?:\$ )?(?:[\w. -]+\| )?(?:python -m )?rlm ([^`\n]*)", text, re.MULTILINE):
        yield from re.findall(r"(?<!\S)--[a-z][a-z-]+", line.partition("#")[0])
    yield from re.findall(r"`(--[a-z][a-z-]+)[^`]*`", text)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_on_a_page_exists(page: Path, flags: set[str]) -> None:
    # What pages say about other programs' flags: pip's, Docker's, vLLM's, rlm-runtime's and the like.
    foreign = {
        "--runtime",
        "--host",
        "--port",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "--modle",
        "--max-sub-calls",
    }
    unknown = {flag for flag in ours(page.read_text()) if flag not in flags | foreign}
    negated = {flag for flag in unknown if flag.replace("--no-", "--") in flags}
    assert unknown - negated == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_in_a_pages_toml_exists(page: Path) -> None:
    for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for section in re.findall(r"^\[rlm\]\n((?:[^\[].*\n|\n)*)", block, re.MULTILINE):
            keys = re.findall(r"^#? ?([a-z_]+) *=", section, re.MULTILINE)
            assert set(keys) <= set(rlm.OPTIONS), section
        tables = re.findall(r"^\[(?!project\.|mcp\.)([^\]]*)\]", block, re.MULTILINE)
        assert set(tables) <= {"rlm", *(f"rlm.{name}" for name in rlm.OPTIONS)}, block


def test_the_page_on_configuration_has_every_option_and_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = {row[0]: row[1] for row in re.findall(r"^\| `([a-z_]+)` \|(.*)\|$", text, re.MULTILINE)}
    assert set(rows) == set(rlm.OPTIONS)
    for name, option in rlm.OPTIONS.items():
        if option.default is not None and not isinstance(option.default, bool):
            default = f"{option.default:,}" if isinstance(option.default, int) else str(option.default)
            assert default in rows[name] or str(option.default) in rows[name], f"{name}: {rows[name]}"


MB = 1_000_000
FIGURES: dict[str, dict[str, float]] = {
    "tools.md": {
        "more than {} MB at once is an error": rlm_tools.READ_LIMIT / MB,
        "as many as fit in {} characters": rlm_tools.VIEW_LIMIT,
        "more than {} matches are an error": rlm_tools.MATCH_LIMIT,
        "is killed after {} seconds": rlm_tools.SEARCH_SECONDS,
        "one that takes longer than {} seconds": rlm_tools.IMPORT_SECONDS,
    },
    "providers.md": {
        "up to `max_retries` more times ({})": rlm.OPTIONS["max_retries"].default,
        "at most {} attempts in all": rlm_backends.MOST_ATTEMPTS,
        "within some {} ms": rlm_backends.TICK * 1000,
        "the model's, at most {} tokens": rlm_backends._LONGEST_CONTEXT,
    },
    "mcp.md": {
        "At most {};": rlm_mcp.MAX_SESSIONS,
        "idle ones end after {} minutes": rlm_mcp.IDLE_SECONDS / 60,
        "a heartbeat every {} seconds": rlm_mcp.HEARTBEAT_SECONDS,
        "more than {} characters comes as a preview": rlm_mcp.PREVIEW_CHARS,
        "a value or an error of more than {};": rlm_mcp.VALUE_CHARS,
        "its handle after {} seconds": rlm_mcp.QUEUE_SECONDS,
        "`--max-wait {}`": inspect.signature(rlm_mcp.serve).parameters["max_wait"].default,
    },
    "sandbox.md": {
        "A cell may call the host {} times": rlm_sandbox.CALLS_MAX,
        "files above {} MB": rlm_worker.SCRATCH_SIZE >> 20,
        "{} MB in the session's folder": rlm_worker.SCRATCH_SIZE >> 20,
        "core dumps, more than {} descriptors": rlm_worker.DESCRIPTORS_MAX,
        "more than {} processes |": rlm_worker.PROCESSES_MAX,
        "more than {} processes or threads": rlm_sandbox.PIDS_MAX,
        "A folder with more than {} files": rlm_sandbox.FILES_MAX,
        "or {} of those": rlm_sandbox.MASKS_MAX,
    },
    "configuration.md": {
        "larger than {} MB, or one": rlm_tools.DOCUMENT_LIMIT / MB,
        "takes more than {} GB of memory": rlm_tools.READER_MEMORY >> 30,
        "or {} seconds) is an error": rlm_tools.READER_SECONDS,
        "up to {} MB (also when compressed)": rlm_tools.FETCH_LIMIT / MB,
        "within {} seconds. The type": rlm_tools.FETCH_SECONDS,
        "Up to {} redirects": rlm_tools.FETCH_REDIRECTS,
    },
    "trajectories.md": {"version of this format: {}": rlm.SCHEMA_VERSION},
}


@pytest.mark.parametrize("page", FIGURES)
def test_the_figures_on_a_page_are_those_of_the_code(page: str) -> None:
    text = " ".join((ROOT / "docs" / page).read_text().split())
    said = [words.format(f"{value:,.10g}") for words, value in FIGURES[page].items()]
    assert [words for words in said if words not in text] == []


def test_the_table_of_errors_is_whole() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", text.split("all are `RLMError`")[1], re.MULTILINE)
    ours = {n for n in rlm.__all__ if isinstance(kind := getattr(rlm, n), type) and issubclass(kind, rlm.RLMError)}
    assert set(listed) | {"RLMError"} == ours


COMPARED = (ROOT / "docs" / "comparison.md").read_text()


def test_what_the_readme_says_of_sizes_is_what_was_measured() -> None:
    table = (ROOT / "docs" / "benchmarks.md").read_text()
    rows = {row[0]: row[1:] for line in table.splitlines() if (row := [cell.strip() for cell in line.split("|")[1:-1]])}
    heads = next(row for name, row in rows.items() if "flat-rlm" in row)
    said = []
    for name in ("packages installed", "installed, MB"):
        figures = {head: int(cell.split()[0]) for head, cell in zip(heads, rows[name]) if cell}
        others = [figures[project] for project in ("rlms", "dspy", "smolagents", "minrlm", "rlm-runtime")]
        said.append((figures["flat-rlm"], min(others), max(others)))
    (packages, *range_of_packages), (size, *range_of_sizes) = said
    ours = f"{packages} packages, {size} MB"
    theirs = "{} to {} packages, {} to {} MB".format(*range_of_packages, *range_of_sizes)
    readme = (ROOT / "README.md").read_text()
    assert f"| Installed | {ours} | {theirs} |" in readme
    assert set(re.findall(r"wrote \d+\.\d MB", readme)) <= set(re.findall(r"wrote \d+\.\d MB", COMPARED)) != set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings]
    return {slug + (f"-{before}" if (before := slugs[:n].count(slug)) else "") for n, slug in enumerate(slugs)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_heading_finds_it(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#\s]*\.md|)#([^)]*)\)", page.read_text())
    there = [(page.parent / name if name else page, anchor) for name, anchor in links]
    assert [(file.name, anchor) for file, anchor in there if file.exists() and anchor not in anchors(file)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    named = set(re.findall(r"`(?:tests/)?(test_\w+)(?:\.py)?`", page.read_text()))
    there = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    for path in (ROOT / "tests").glob("test_*.py"):
        there |= set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    assert named - there == set()


def test_the_readme_names_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w.-]+\.md)\)", (ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} - linked == set()


def test_the_changelog_s_newest_section_is_this_version_s() -> None:
    sections = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert sections[:1] == [rlm.__version__]


def test_what_is_exported_is_documented() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    assert [name for name in rlm.__all__ if not re.search(rf"\b{name}\b", text)] == []
